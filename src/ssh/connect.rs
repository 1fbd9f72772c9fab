//! From an address to a session: TCP, key exchange, host key, login; once, or until it works.

use std::io;
use std::net::{SocketAddr, TcpStream, ToSocketAddrs};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use libssh2_sys::{LIBSSH2_ERROR_FILE, LIBSSH2_ERROR_TIMEOUT};
use ssh2::{ErrorCode, MethodType};

use super::session::{Session, Stuck};
use super::{Error, HostKey, KnownHosts, Tunnel, keys};
use crate::os::cancel::Level;
use crate::os::{Cancel, files};

/// Pauses between attempts to log in: a node counts as up the moment it lets us in.
const PAUSES: [Duration; 3] =
    [Duration::from_millis(100), Duration::from_millis(150), Duration::from_millis(250)];
/// For one TCP connection while waiting. Short: an address that nobody has yet answers late or
/// never, the kernel repeats its question after 1, 3 and 7 s, and a new one may be answered at once.
const ATTEMPT: Duration = Duration::from_secs(1);
/// What libssh2 may spend by itself where it is not polled: on closing a channel that is dropped.
const DROP: Duration = Duration::from_secs(2);
/// So many keys of an agent's are tried, lest sshd give up on the login before (`MaxAuthTries`).
const AGENTS_KEYS: usize = 4;
/// Cheap for both ends, and what every OpenSSH of the last ten years has.
const KEX: &str = "curve25519-sha256,curve25519-sha256@libssh.org,ecdh-sha2-nistp256,\
    diffie-hellman-group14-sha256,diffie-hellman-group16-sha512";
const HOST_KEYS: &str = "ssh-ed25519,ecdsa-sha2-nistp256,ecdsa-sha2-nistp384,ecdsa-sha2-nistp521,\
    rsa-sha2-512,rsa-sha2-256";

/// Where a node's sshd is, and who logs in there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// The node's name; its host key is pinned under it.
    pub node: String,
    /// A name or an address.
    pub host: String,
    /// Usually 22; VirtualBox forwards another.
    pub port: u16,
    pub user: String,
}

impl Endpoint {
    /// `host:port`, with brackets around an IPv6 address.
    pub fn address(&self) -> String {
        if self.host.contains(':') {
            return format!("[{}]:{}", self.host, self.port);
        }
        format!("{}:{}", self.host, self.port)
    }
}

/// All that it takes to get into a node.
#[derive(Clone, Debug)]
pub struct Login {
    /// Where to.
    pub endpoint: Endpoint,
    /// Private key files, tried in this order; those that do not exist are passed over. sshd gives
    /// up on a login after six refused keys (`MaxAuthTries`).
    pub keys: Vec<PathBuf>,
    /// Who may answer.
    pub known_hosts: KnownHosts,
    /// Bounds and preferences.
    pub options: Options,
    /// The host through which this one is reached, if it is not reached from here: its endpoint is as that one sees it.
    pub jump: Option<Box<Login>>,
    /// The command of this host's whose standard input and output are the connection, in place of one over TCP:
    /// ssh_config(5), `ProxyCommand`, with its tokens expanded.
    pub proxy: Option<String>,
}

impl Login {
    /// How who logs in does what only root may.
    pub fn root(&self) -> Root {
        self.options.root.unwrap_or_else(|| Root::of(&self.endpoint.user))
    }
}

/// How the user who logs in does what only root may.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Root {
    /// As it is: it is root.
    Already,
    /// By sudo.
    Sudo,
    /// By `doas -n`; what doas would ask for it reads from a terminal alone.
    Doas,
}

impl Root {
    /// What stands before a command of root's.
    pub fn prefix(self) -> &'static str {
        match self {
            Self::Already => "",
            Self::Sudo => "sudo -n ",
            Self::Doas => "doas -n ",
        }
    }

    /// By the name of the user alone.
    pub fn of(user: &str) -> Self {
        if user == "root" { Self::Already } else { Self::Sudo }
    }
}

/// Bounds and preferences of a connection.
#[derive(Clone, Debug)]
pub struct Options {
    /// For a TCP connection.
    pub connect: Duration,
    /// For greeting, key exchange and login together; an emulated guest takes seconds.
    pub login: Duration,
    /// How long [`wait_for`] goes on when all keys are refused: while Debian boots, pam_nologin
    /// refuses the right key too, until systemd-user-sessions has run.
    pub refused: Duration,
    /// For the node to begin with a command; it forks a shell for it.
    pub answer: Duration,
    /// Ciphers, the preferred one first, as `ssh -Q cipher` names them. ChaCha20 first, because a guest
    /// emulated as qemu64 has no AES instructions: OpenSSL in it does 164 MB/s of ChaCha20-Poly1305,
    /// 32 MB/s of AES-GCM (and as `max` 59 and 45 MB/s); on real hardware both outrun a virtual disk.
    pub ciphers: String,
    /// How root work is done; by default through sudo unless the login name is `root`.
    pub root: Option<Root>,
    /// What sudo asks for, where it asks.
    pub password: Option<Password>,
    /// The socket of an agent that may have keys which open it (ssh-agent(1)): asked after the key files.
    pub agent: Option<PathBuf>,
}

/// What a user is asked for by sudo. It is shown nowhere.
#[derive(Clone, PartialEq, Eq)]
pub struct Password(String);

impl Password {
    /// Without the end of its line.
    pub fn new(text: &str) -> Self {
        Self(text.trim_end_matches(['\r', '\n']).to_owned())
    }

    pub(super) fn line(&self) -> String {
        format!("{}\n", self.0)
    }
}

impl std::fmt::Debug for Password {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Password")
    }
}

impl Default for Options {
    fn default() -> Self {
        Self {
            connect: Duration::from_secs(5),
            login: Duration::from_secs(20),
            refused: Duration::from_secs(30),
            answer: Duration::from_secs(30),
            ciphers: "chacha20-poly1305@openssh.com,aes128-gcm@openssh.com,aes256-gcm@openssh.com,\
                aes128-ctr,aes192-ctr,aes256-ctr"
                .to_owned(),
            root: None,
            password: None,
            agent: None,
        }
    }
}

/// One attempt to log in, bounded by the [`Options`]. An abort frees it at once, except from the
/// TCP connection's own short bound.
pub fn connect(login: &Login, cancel: &Cancel) -> Result<Session, Error> {
    let at = At { node: login.endpoint.node.clone(), address: login.endpoint.address() };
    if cancel.aborted() {
        return Err(Error::Cancelled { node: at.node });
    }
    let through = match &login.jump {
        Some(jump) => {
            let (host, port) = (login.endpoint.host.as_str(), login.endpoint.port);
            Some(Tunnel::open(connect(jump, cancel)?, None, host, port)?)
        }
        None => None,
    };
    let mut carrier = None;
    let tcp = match (&through, &login.proxy) {
        (Some(tunnel), _) => TcpStream::connect_timeout(&tunnel.address(), login.options.connect)
            .map_err(|error| at.network(&error, login.options.connect))?,
        (None, Some(command)) => {
            let (tcp, child) = Carrier::start(command).map_err(|e| Error::Proxy {
                node: at.node.clone(),
                command: command.clone(),
                reason: e.to_string(),
            })?;
            carrier = Some(child);
            tcp
        }
        (None, None) => at.tcp(login, cancel)?,
    };
    let session = handshake(login, tcp, cancel, &at).map_err(|error| match (error, &login.proxy) {
        _ if cancel.aborted() => Error::Cancelled { node: at.node.clone() },
        // It ended before anybody spoke SSH.
        (Error::Banner { node, reason, .. }, Some(command)) => {
            Error::Proxy { node, command: command.clone(), reason }
        }
        (error, _) => error,
    })?;
    let mut session = session.through(through, carrier);
    session.prove_password()?;
    Ok(session)
}

/// Tries to log in until it works, at most for `bound`. `on_wait` is told each reason why it does
/// not work yet. What waiting cannot mend (a changed host key, no usable key of ours) ends it at
/// once; refused keys end it after [`Options::refused`]; so does [`Level::Stop`].
pub fn wait_for(
    login: &Login,
    bound: Duration,
    cancel: &Cancel,
    on_wait: &mut dyn FnMut(&Error),
) -> Result<Session, Error> {
    let start = Instant::now();
    let mut refused: Option<Instant> = None;
    let mut before: Option<Error> = None;
    let mut patience = login.options.login;
    let mut pauses = PAUSES.iter().chain(std::iter::repeat(&PAUSES[2]));
    loop {
        let left = bound.saturating_sub(start.elapsed());
        let mut now = login.clone();
        now.options.connect = now.options.connect.min(ATTEMPT).min(left.max(PAUSES[0]));
        now.options.login = patience.min(left.max(PAUSES[0]));
        let error = match connect(&now, cancel) {
            Ok(session) => return Ok(session),
            Err(error) if !error.worth_waiting() => return Err(error),
            Err(error) => telling(error, before.take(), &login.options),
        };
        match error {
            Error::AuthRefused { .. } => {
                if refused.get_or_insert_with(Instant::now).elapsed() >= login.options.refused {
                    return Err(error);
                }
            }
            // Too slow for that, as many guests are that boot at once under emulation: the next attempt has longer,
            // since one that is given up goes on costing the guest a process.
            Error::Timeout { bound, .. } if bound >= patience => {
                patience *= 2;
                refused = None;
            }
            _ => refused = None,
        }
        on_wait(&error);
        let left = bound.saturating_sub(start.elapsed());
        if left.is_zero() {
            let (node, last) = (login.endpoint.node.clone(), Box::new(error));
            return Err(Error::Unreachable { node, waited: start.elapsed(), last });
        }
        if cancel.sleep(left.min(*pauses.next().expect("it repeats")), Level::Stop) {
            return Err(Error::Cancelled { node: login.endpoint.node.clone() });
        }
        before = Some(error);
    }
}

/// Which of two attempts shows why: the last one, unless the end of the whole wait cut it before it
/// could have learned anything.
fn telling(last: Error, before: Option<Error>, usual: &Options) -> Error {
    let cut =
        matches!(&last, Error::Timeout { bound, .. } if *bound < ATTEMPT.min(usual.connect).min(usual.login));
    match before {
        Some(before) if cut => before,
        _ => last,
    }
}

/// Who is being talked to, for errors.
struct At {
    node: String,
    address: String,
}

impl At {
    fn tcp(&self, login: &Login, cancel: &Cancel) -> Result<TcpStream, Error> {
        let (host, port) = (login.endpoint.host.as_str(), login.endpoint.port);
        let addresses: Vec<SocketAddr> = (host, port)
            .to_socket_addrs()
            .map_err(|source| Error::Resolve { node: self.node.clone(), host: host.to_owned(), source })?
            .collect();
        let mut last = io::Error::from(io::ErrorKind::AddrNotAvailable);
        for address in addresses {
            match TcpStream::connect_timeout(&address, login.options.connect) {
                Ok(tcp) => return Ok(tcp),
                Err(_) if cancel.aborted() => return Err(Error::Cancelled { node: self.node.clone() }),
                Err(error) => last = error,
            }
        }
        Err(self.network(&last, login.options.connect))
    }

    fn network(&self, error: &io::Error, bound: Duration) -> Error {
        use io::ErrorKind::{ConnectionRefused, HostUnreachable, NetworkUnreachable, TimedOut};
        let (node, address) = (self.node.clone(), self.address.clone());
        match error.kind() {
            ConnectionRefused => Error::Refused { node, address },
            HostUnreachable | NetworkUnreachable => Error::NoRoute { node, address },
            TimedOut => Error::Timeout { node, address, doing: "connecting", bound },
            _ => Error::Handshake { node, address, reason: error.to_string() },
        }
    }

    fn stuck(&self, stuck: Stuck, doing: &'static str, bound: Duration) -> Error {
        let (node, address) = (self.node.clone(), self.address.clone());
        match stuck {
            Stuck::Cancelled => Error::Cancelled { node },
            Stuck::Late => Error::Timeout { node, address, doing, bound },
            Stuck::Ssh(e) if e.code() == ErrorCode::Session(LIBSSH2_ERROR_TIMEOUT) => {
                Error::Timeout { node, address, doing, bound }
            }
            Stuck::Ssh(e) => Error::Handshake { node, address, reason: e.message().to_owned() },
        }
    }
}

fn handshake(login: &Login, tcp: TcpStream, cancel: &Cancel, at: &At) -> Result<Session, Error> {
    let bound = login.options.login;
    let end = Instant::now() + bound;
    let setup =
        |reason: String| Error::Handshake { node: at.node.clone(), address: at.address.clone(), reason };
    // Small packets go back and forth; waiting to fill them would cost 40 ms each. A socket that a program carries on
    // knows no such delay.
    if login.proxy.is_none() || login.jump.is_some() {
        tcp.set_nodelay(true).map_err(|e| setup(e.to_string()))?;
    }
    let mut ssh = ssh2::Session::new().map_err(|e| setup(e.to_string()))?;
    ssh.set_timeout(u32::try_from(DROP.as_millis()).expect("it is small"));
    let mine = tcp.try_clone().map_err(|e| setup(e.to_string()))?;
    ssh.set_tcp_stream(mine);
    // The pinned kind first: a machine that has it must show it.
    let pinned = login.known_hosts.wanted(&login.endpoint.node)?;
    let kind = |key| match HostKey::kind(key) {
        "ssh-rsa" => "rsa-sha2-512,rsa-sha2-256",
        kind => kind,
    };
    let mut kinds: Vec<&str> = pinned.iter().map(kind).collect();
    kinds.push(HOST_KEYS);
    let host_keys = kinds.join(",");
    for (method, preference) in [
        (MethodType::Kex, KEX),
        (MethodType::HostKey, &host_keys),
        (MethodType::CryptCs, &login.options.ciphers),
        (MethodType::CryptSc, &login.options.ciphers),
    ] {
        ssh.method_pref(method, preference)
            .map_err(|e| setup(format!("none of {preference} can be used: {}", e.message())))?;
    }

    let mut session = Session::new(ssh, tcp, login, cancel).map_err(|e| setup(e.to_string()))?;
    if let Err(stuck) = session.drive(end, |ssh| ssh.handshake()) {
        // sshd says `Exceeded MaxStartups` where its greeting would be.
        let said = session.ssh().banner().unwrap_or_default().to_owned();
        if said.starts_with("SSH-") {
            return Err(at.stuck(stuck, "exchanging keys", bound));
        }
        return Err(match at.stuck(stuck, "waiting for its SSH greeting", bound) {
            Error::Handshake { node, address, reason } if said.is_empty() => {
                Error::Banner { node, address, reason }
            }
            Error::Handshake { node, address, .. } => Error::Banner { node, address, reason: said },
            other => other,
        });
    }
    let offered = session.ssh().host_key().map(|(blob, _)| HostKey::new(blob));
    let offered = offered.ok_or_else(|| setup("it has no host key".to_owned()))?;
    login.known_hosts.check(&login.endpoint.node, &offered)?;
    authenticate(&mut session, login, end, at)?;
    Ok(session)
}

fn authenticate(session: &mut Session, login: &Login, end: Instant, at: &At) -> Result<(), Error> {
    let user = &login.endpoint.user;
    let mut tried = Vec::new();
    let mut unusable: Option<Error> = None;
    let mut damaged: Option<PathBuf> = None;
    for key in &login.keys {
        if let Err(error) = files::open(key) {
            unusable.get_or_insert(Error::Key { path: key.clone(), reason: error.source.to_string() });
            continue;
        }
        match session.drive(end, |ssh| ssh.userauth_pubkey_file(user, None, key, None)) {
            Ok(()) => {
                session.key = key.clone();
                return Ok(());
            }
            Err(Stuck::Ssh(e)) if e.code() == ErrorCode::Session(LIBSSH2_ERROR_FILE) => {
                damaged.get_or_insert(key.clone());
                unusable.get_or_insert(Error::Key { path: key.clone(), reason: e.message().to_owned() });
            }
            Err(Stuck::Ssh(e)) if is_refusal(&e) => tried.push(key.clone()),
            Err(stuck) => return Err(at.stuck(stuck, "logging in", login.options.login)),
        }
    }
    // A damaged key is no reason to say that the node refuses a good one.
    if let Some(socket) = &login.options.agent
        && let Some(key) = by_agent(session, socket, login, end, at)?
    {
        session.key = key;
        return Ok(());
    }
    let worse = login.keys.iter().find_map(|key| Some((key.clone(), keys::damage(key)?)));
    if let Some((path, reason)) = worse.or(damaged.map(|path| (path, "it cannot be read as a key"))) {
        return Err(Error::Key { path, reason: reason.to_owned() });
    }
    match unusable {
        Some(error) if tried.is_empty() => Err(error),
        _ => Err(Error::AuthRefused {
            node: at.node.clone(),
            address: at.address.clone(),
            user: user.clone(),
            tried,
        }),
    }
}

/// Logs in by a key that an agent has; the name that the agent gives the key. None if none of its keys is taken, or if
/// nobody answers there: the files may do.
fn by_agent(
    session: &mut Session,
    socket: &Path,
    login: &Login,
    end: Instant,
    at: &At,
) -> Result<Option<PathBuf>, Error> {
    let Ok(mut agent) = session.ssh().agent() else { return Ok(None) };
    if agent.set_identity_path(socket).is_err() {
        return Ok(None);
    }
    let ready = session
        .drive(end, |_| agent.connect())
        .and_then(|()| session.drive(end, |_| agent.list_identities()));
    let keys = match ready {
        Ok(()) => agent.identities().unwrap_or_default(),
        Err(Stuck::Ssh(_)) => return Ok(None),
        Err(stuck) => return Err(at.stuck(stuck, "asking the agent for its keys", login.options.login)),
    };
    for key in keys.iter().take(AGENTS_KEYS) {
        match session.drive(end, |_| agent.userauth(&login.endpoint.user, key)) {
            Ok(()) => return Ok(Some(format!("agent: {}", key.comment()).into())),
            Err(Stuck::Ssh(_)) => {}
            Err(stuck) => return Err(at.stuck(stuck, "logging in by the agent", login.options.login)),
        }
    }
    Ok(None)
}

/// A program that carries a connection.
pub struct Carrier(std::process::Child);

impl Carrier {
    /// Starts it in a group of its own, its standard input and output one socket. A Unix socket behaves as a TCP one in all
    /// that is asked of it here: to be polled, read, written, shut down.
    fn start(command: &str) -> io::Result<(TcpStream, Self)> {
        use std::os::fd::OwnedFd;
        use std::os::unix::net::UnixStream;
        use std::os::unix::process::CommandExt as _;
        use std::process::{Command, Stdio};
        let (ours, theirs) = UnixStream::pair()?;
        let again = theirs.try_clone()?;
        let mut shell = Command::new("/bin/sh");
        shell.arg("-c").arg(format!("exec {command}")).process_group(0);
        shell.stdin(Stdio::from(OwnedFd::from(theirs))).stdout(Stdio::from(OwnedFd::from(again)));
        let child = shell.stderr(Stdio::null()).spawn()?;
        Ok((TcpStream::from(OwnedFd::from(ours)), Self(child)))
    }
}

impl Drop for Carrier {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn is_refusal(error: &ssh2::Error) -> bool {
    use libssh2_sys::{LIBSSH2_ERROR_AUTHENTICATION_FAILED, LIBSSH2_ERROR_PUBLICKEY_UNVERIFIED};
    matches!(
        error.code(),
        ErrorCode::Session(LIBSSH2_ERROR_AUTHENTICATION_FAILED | LIBSSH2_ERROR_PUBLICKEY_UNVERIFIED)
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_attempt_that_was_cut_does_not_hide_the_reason_of_the_one_before() {
        let (node, address) = (String::from("worker"), String::from("192.0.2.1:22"));
        let refused = || Error::Refused { node: node.clone(), address: address.clone() };
        let late = |ms: u64| Error::Timeout {
            node: node.clone(),
            address: address.clone(),
            doing: "waiting for its SSH greeting",
            bound: Duration::from_millis(ms),
        };
        let told =
            |last: Error, before: Option<Error>| telling(last, before, &Options::default()).to_string();
        assert_eq!(told(late(100), Some(refused())), refused().to_string());
        assert_eq!(told(late(100), None), late(100).to_string());
        // It was long enough to show that somebody listens by now and does not speak.
        assert_eq!(told(late(3000), Some(refused())), late(3000).to_string());
        assert_eq!(told(refused(), Some(late(3000))), refused().to_string());
    }

    #[test]
    fn errors_of_the_network_are_told_apart() {
        let at = At { node: "worker".into(), address: "192.0.2.1:22".into() };
        let told = |kind: io::ErrorKind| at.network(&kind.into(), Duration::from_secs(1)).to_string();
        assert_eq!(told(io::ErrorKind::ConnectionRefused), "worker: nothing listens at 192.0.2.1:22");
        assert_eq!(
            told(io::ErrorKind::HostUnreachable),
            "worker: no machine answers at 192.0.2.1:22 (no route to it)"
        );
        assert_eq!(
            told(io::ErrorKind::TimedOut),
            "worker: no answer from 192.0.2.1:22 within 1s while connecting"
        );
    }
}
