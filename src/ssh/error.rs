//! What can go wrong between here and a node, told apart by type.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use super::Root;
use crate::explain::{Again, Explain, FailureKind, seconds, without_name};
use crate::os::{files, process};

/// Why work on a node did not succeed. `node` is the node's name, `address` is `host:port`.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The host's name has no address.
    #[error("{node}: cannot find the address of {host}: {source}")]
    Resolve {
        node: String,
        /// The name that was looked up.
        host: String,
        /// Why not.
        source: io::Error,
    },
    /// The machine answers, but nothing listens there.
    #[error("{node}: nothing listens at {address}")]
    Refused {
        node: String,
        /// Where.
        address: String,
    },
    /// No machine has the address, or no route leads to it.
    #[error("{node}: no machine answers at {address} (no route to it)")]
    NoRoute {
        node: String,
        /// Where.
        address: String,
    },
    /// The peer is silent.
    #[error("{node}: no answer from {address} within {} while {doing}", seconds(*bound))]
    Timeout {
        node: String,
        /// Where.
        address: String,
        /// What was being waited for, e.g. `exchanging keys`.
        doing: &'static str,
        /// How long.
        bound: Duration,
    },
    /// The peer closed before it said that it speaks SSH: sshd is just starting, it has too many
    /// logins under way (its `MaxStartups`), or it is something else.
    #[error("{node}: {address} closed the connection before its SSH greeting ({reason})")]
    Banner {
        node: String,
        /// Where.
        address: String,
        /// In libssh2's words.
        reason: String,
    },
    /// Another failure of the network or of the protocol before the login.
    #[error("{node}: cannot set up SSH with {address}: {reason}")]
    Handshake {
        node: String,
        /// Where.
        address: String,
        /// In libssh2's or the system's words.
        reason: String,
    },
    /// Another machine answers, or the machine was recreated.
    #[error("{node}: the host key has changed: {offered} instead of {pinned}, which {} has", file.display())]
    HostKeyChanged {
        node: String,
        /// The known_hosts file.
        file: PathBuf,
        /// The fingerprints that are pinned.
        pinned: String,
        /// The fingerprint that was offered.
        offered: String,
        /// The name under which that file has it.
        entry: String,
    },
    /// No key is pinned, and learning one was not allowed.
    #[error("{node}: {} has no host key for it (it offers {offered})", file.display())]
    HostKeyUnknown {
        node: String,
        /// The known_hosts file.
        file: PathBuf,
        /// The fingerprint that was offered.
        offered: String,
    },
    /// A private key of ours cannot be used.
    #[error("cannot use the private key {}: {reason}", path.display())]
    Key {
        /// Where it should be.
        path: PathBuf,
        /// Why not.
        reason: String,
    },
    /// The node lets none of our keys in.
    #[error("{node}: {address} refuses to let {user} in with {}", names(tried))]
    AuthRefused {
        node: String,
        /// Where.
        address: String,
        user: String,
        /// The private keys that were tried.
        tried: Vec<PathBuf>,
    },
    /// No login worked within the bound.
    #[error("{node}: not reachable over SSH within {}: {}", seconds(*waited), without_name(node, &last.to_string()))]
    Unreachable {
        node: String,
        /// How long it was tried.
        waited: Duration,
        /// Why the last attempt failed.
        last: Box<Error>,
    },
    /// The connection broke while something was under way.
    #[error("{node}: the connection was lost during {what}: {reason}")]
    Lost {
        node: String,
        /// What was under way.
        what: String,
        /// In libssh2's words.
        reason: String,
        /// False if the node cannot have begun with it, so that it may simply be done again.
        started: bool,
    },
    /// It ran longer than it may.
    #[error("{node}: {what} did not end within {}", seconds(*bound))]
    Deadline {
        node: String,
        /// What.
        what: String,
        /// What it was given.
        bound: Duration,
        tail: Vec<String>,
    },
    /// It said nothing for longer than it may: it hangs, or the node froze or left the network.
    #[error("{node}: {what} was silent for {}", seconds(*bound))]
    Silent {
        node: String,
        /// What.
        what: String,
        /// What it was given.
        bound: Duration,
        tail: Vec<String>,
    },
    /// It said more than anything does that is asked of a node.
    #[error("{node}: {what} said more than {} MB", most.div_ceil(1_000_000))]
    TooMuch {
        node: String,
        /// What.
        what: String,
        /// What it was given, in bytes.
        most: u64,
        tail: Vec<String>,
    },
    /// It ended with another status than 0.
    #[error("{node}: {what} exited with {status}")]
    Failed {
        node: String,
        /// What.
        what: String,
        status: i32,
        tail: Vec<String>,
    },
    /// A signal ended it.
    #[error("{node}: {what} was killed by SIG{signal}")]
    Killed {
        node: String,
        /// What.
        what: String,
        /// The signal's name without `SIG`.
        signal: String,
        tail: Vec<String>,
    },
    /// The login user may not become root without a password.
    #[error("{node}: {user} cannot become root: {reason}")]
    NoSudo {
        node: String,
        user: String,
        /// In sudo's words.
        reason: String,
        /// By which program.
        by: Root,
        /// Whether it was given a password.
        asked: bool,
    },
    /// The command that is to carry the connection does not.
    #[error("{node}: the ProxyCommand `{command}` gives no connection ({reason})")]
    Proxy { node: String, command: String, reason: String },
    /// The node's disk cannot hold the file.
    #[error("{node}: no space for {path}, which needs {} MB{}", needed.div_ceil(1_000_000), left(*free))]
    DiskFull {
        node: String,
        /// Where it was to be.
        path: String,
        /// Its size in bytes.
        needed: u64,
        /// What the file system had left in bytes, if that is what stopped it.
        free: Option<u64>,
    },
    /// What arrived is not what was to be sent.
    #[error("{node}: {path} arrived with another SHA-256 than the expected one")]
    Corrupt {
        node: String,
        /// Where it was to be.
        path: String,
        /// In hex.
        expected: String,
        /// In hex.
        actual: String,
    },
    /// There is no such file on the node.
    #[error("{node}: there is no {path}")]
    NoFile {
        node: String,
        /// Which.
        path: String,
    },
    /// A file on the node is larger than was expected of it.
    #[error("{node}: {path} is larger than {max} bytes")]
    TooLarge {
        node: String,
        /// Which.
        path: String,
        /// The most that was expected.
        max: u64,
    },
    /// A detached job ended without leaving a result: the node was restarted, or the job was killed.
    #[error("{node}: {job} ended without a result")]
    JobLost { node: String, job: String, tail: Vec<String> },
    /// A file or a folder cannot be copied from there or to there.
    #[error("{node}: {reason}")]
    Copy {
        node: String,
        /// In the node's words.
        reason: String,
    },
    /// A name or a path that cannot be sent safely.
    #[error("{what} {value:?} cannot be used on a node")]
    Invalid {
        /// What it is, e.g. `the path`.
        what: &'static str,
        /// As it was given.
        value: String,
    },
    /// The file to be sent cannot be read.
    #[error("cannot read what is to be sent to {node}: {source}")]
    Source {
        node: String,
        /// Why not.
        source: io::Error,
    },
    /// A program on this host failed.
    #[error(transparent)]
    Process(#[from] process::Error),
    /// A file on this host failed.
    #[error(transparent)]
    File(#[from] files::Error),
    /// The user ended it.
    #[error("{node}: interrupted")]
    Cancelled { node: String },
}

fn names(paths: &[PathBuf]) -> String {
    match paths {
        [] => "no key".to_owned(),
        [one] => format!("the key {}", one.display()),
        many => {
            let names: Vec<_> = many.iter().map(|p| p.display().to_string()).collect();
            format!("the keys {}", names.join(", "))
        }
    }
}

fn left(free: Option<u64>) -> String {
    free.map_or_else(String::new, |f| format!(" ({} MB are free)", f / 1_000_000))
}

impl Error {
    /// True if another attempt at logging in may go better, which is what [`super::wait_for`] asks.
    pub fn worth_waiting(&self) -> bool {
        matches!(
            self,
            Self::Resolve { .. }
                | Self::Refused { .. }
                | Self::NoRoute { .. }
                | Self::Timeout { .. }
                | Self::Banner { .. }
                | Self::Proxy { .. }
                | Self::Handshake { .. }
                | Self::AuthRefused { .. }
                | Self::Lost { .. }
        )
    }

    /// True if the connection, not the work, failed: with a new one the same may be done again,
    /// if doing it twice does no harm.
    pub fn connection(&self) -> bool {
        matches!(
            self,
            Self::Refused { .. }
                | Self::NoRoute { .. }
                | Self::Timeout { .. }
                | Self::Banner { .. }
                | Self::Handshake { .. }
                | Self::Lost { .. }
                | Self::Silent { .. }
        )
    }
}

impl Error {
    /// True if the node answers and takes none of our keys.
    pub fn shut_out(&self) -> bool {
        match self {
            Self::AuthRefused { .. } => true,
            Self::Unreachable { last, .. } => last.shut_out(),
            _ => false,
        }
    }
}

impl Explain for Error {
    fn hint(&self) -> Option<String> {
        Some(match self {
            Self::Key { .. } => {
                "Put a copy of it back. Without one nobody gets into the machines that trust it: `p1 \
                                 destroy` and `p1 up` recreate them."
                    .to_owned()
            }
            Self::Refused { .. } => {
                "The machine is up but sshd is not; it may still be booting, or the port may be wrong."
                    .to_owned()
            }
            Self::NoRoute { .. } => {
                "The VM may be off, may still be booting, or may not have got this address.".to_owned()
            }
            Self::Banner { .. } => {
                "sshd may be starting, or refuse because of too many logins at once.".to_owned()
            }
            Self::HostKeyChanged { entry, file, .. } => format!(
                "If this machine was re-created outside p1, forget its former key: ssh-keygen -R {} -f {}. Otherwise \
                 another machine answers at its address.",
                crate::os::process::quote(entry),
                crate::os::process::quote_os(file.as_os_str())
            ),
            Self::HostKeyUnknown { .. } => {
                "Compare it with the machine's own, `ssh-keygen -lf /etc/ssh/ssh_host_ed25519_key.pub` there. If it is the same, \
                 `ssh` to it once and say yes, or have p1 take the key of the first contact: `ssh: {host_key: pin}`."
                    .to_owned()
            }
            Self::AuthRefused { user, .. } => format!(
                "The public part of one of these keys must be in ~{user}/.ssh/authorized_keys on the node."
            ),
            Self::Unreachable { last, .. } => return last.hint(),
            Self::NoSudo { asked: true, .. } => {
                "Give another one where the spec has p1 take it from (`sudo_password`)."
                    .to_owned()
            }
            Self::NoSudo { user, by: Root::Doas, .. } => format!(
                "p1 needs doas without a password: put `permit nopass {user}` into /etc/doas.conf on the node."
            ),
            Self::NoSudo { user, reason, .. } if reason.contains("not found") => format!(
                "Log in as root (`ssh: {{user: root}}`), install sudo for {user}, or say `ssh: {{become: doas}}`."
            ),
            Self::NoSudo { user, .. } => format!(
                "p1 needs sudo without a password: put `{user} ALL=(ALL) NOPASSWD: ALL` into /etc/sudoers.d on the \
                 node, as Vagrant boxes have it. Of a machine that is not p1's own the spec can say where the password is had from \
                 (docs/existing.md)."
            ),
            Self::Proxy { command, .. } => {
                format!("Try it by hand; it has to answer with an SSH greeting: {command}")
            }
            Self::DiskFull { node, .. } => format!(
                "Free some space on the node (`p1 exec {node} -- df -h` shows where it went), or use a box with a \
                 larger disk."
            ),
            Self::Corrupt { expected, actual, .. } => format!(
                "Expected {expected}, the node has {actual}; nothing was put in place. The file on this host \
                 may be damaged or may have changed meanwhile."
            ),
            Self::Silent { node, .. } => {
                format!("It hangs, or the node froze or left the network; `p1 status {node}` tells which.")
            }
            Self::TooMuch { node, .. } => format!(
                "No answer that p1 asks for is that long: look at it with `p1 ssh {node}`, or recreate it with \
                 `p1 replace {node}`."
            ),
            Self::JobLost { .. } => {
                "The node was restarted or the job was killed there; it is safe to run it again.".to_owned()
            }
            Self::Process(e) => return e.hint(),
            Self::File(e) => return e.hint(),
            _ => return None,
        })
    }

    fn next(&self) -> Vec<String> {
        match self {
            Self::HostKeyChanged { entry, file, .. } => {
                let (entry, file) =
                    (crate::os::process::quote(entry), crate::os::process::quote_os(file.as_os_str()));
                vec![format!("ssh-keygen -R {entry} -f {file}"), "p1 retry".to_owned()]
            }
            Self::Unreachable { last, .. } => last.next(),
            _ => Vec::new(),
        }
    }

    fn evidence(&self) -> Vec<String> {
        match self {
            Self::Deadline { tail, .. }
            | Self::Silent { tail, .. }
            | Self::TooMuch { tail, .. }
            | Self::Failed { tail, .. }
            | Self::Killed { tail, .. }
            | Self::JobLost { tail, .. } => tail.clone(),
            Self::Unreachable { last, .. } => last.evidence(),
            Self::Process(e) => e.evidence(),
            _ => Vec::new(),
        }
    }

    fn kind(&self) -> FailureKind {
        match self {
            Self::Refused { .. } => FailureKind::Refused,
            Self::Resolve { .. }
            | Self::NoRoute { .. }
            | Self::Timeout { .. }
            | Self::Banner { .. }
            | Self::Proxy { .. }
            | Self::Handshake { .. } => FailureKind::Unreachable,
            Self::Unreachable { last, .. } => last.kind(),
            Self::HostKeyChanged { .. } => FailureKind::Conflict,
            Self::HostKeyUnknown { .. } | Self::AuthRefused { .. } | Self::NoSudo { .. } => {
                FailureKind::Denied
            }
            Self::Lost { .. } | Self::JobLost { .. } => FailureKind::Lost,
            Self::Deadline { bound, .. } | Self::Silent { bound, .. } => FailureKind::bound(*bound),
            Self::Failed { status, .. } => FailureKind::Exit { code: *status },
            Self::Killed { signal, .. } => FailureKind::Signal { name: signal.clone() },
            Self::DiskFull { .. } => FailureKind::NoSpace,
            Self::Corrupt { .. } => FailureKind::Damaged,
            Self::Key { .. }
            | Self::NoFile { .. }
            | Self::TooLarge { .. }
            | Self::TooMuch { .. }
            | Self::Copy { .. }
            | Self::Invalid { .. } => FailureKind::Cannot,
            Self::Source { source, .. } => source.into(),
            Self::Process(e) => e.kind(),
            Self::File(e) => e.kind(),
            Self::Cancelled { .. } => FailureKind::Other,
        }
    }

    fn again(&self) -> Again {
        match self {
            Self::Cancelled { .. } => Again::Cancelled,
            Self::Process(e) => e.again(),
            Self::Unreachable { last, .. } => last.again(),
            Self::AuthRefused { .. } => Again::No,
            Self::JobLost { .. } | Self::Deadline { .. } => Again::Soon,
            other if other.worth_waiting() || other.connection() => Again::Soon,
            _ => Again::No,
        }
    }
}
