//! Machines that exist already: p1 reaches them over SSH, as their user does, and neither makes, switches nor destroys them.
//!
//! What the spec leaves open is asked of `ssh -G` (ssh(1)), which knows the user's configuration as OpenSSH reads it: host
//! name, port, user, keys, jump hosts, commands that carry connections. Its answer has a line `key value` for each setting.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::Duration;

use super::{Arranged, Caps, Error, Here, Kind, Machine, MachineState, Machines, Made, Release, Way};
use crate::os::Cancel;
use crate::os::process::{self, Cmd};
use crate::os::sync::lock;
use crate::spec::{BecomeChoice, Cluster, HostKeys, Node, SshAccess};
use crate::ssh::{HostKey, Known, KnownHosts, Password, Root};

/// ssh and ssh-keygen read a few small files.
const ASKED: Duration = Duration::from_secs(20);
/// So many hosts may lie on the way to one.
const HOPS: usize = 8;

/// What the user has for getting into machines.
#[derive(Clone, Debug, Default)]
pub struct Users {
    /// The user's home.
    pub home: PathBuf,
    /// The account's home, where that is another: ssh goes by it, and not by `HOME`.
    pub account: Option<PathBuf>,
    /// The socket of the agent.
    pub agent: Option<PathBuf>,
    /// What sudo asks for, by node.
    pub passwords: BTreeMap<String, Password>,
}

/// See the module.
pub struct Existing {
    /// Where their host keys are pinned.
    known_hosts: PathBuf,
    users: Users,
    /// The nodes whose machines they are, those that the spec no longer has included.
    nodes: BTreeSet<String>,
    ways: Mutex<BTreeMap<String, Way>>,
}

/// What `ssh -G` says of a host.
#[derive(Debug, Default, PartialEq, Eq)]
struct Said {
    host: String,
    user: String,
    port: u16,
    keys: Vec<String>,
    jump: Option<String>,
    proxy: Option<String>,
    /// The name under which its key is known, where it is not the host's.
    alias: Option<String>,
    /// Files with host keys.
    known: Vec<String>,
}

impl Said {
    fn read(text: &str) -> Self {
        let mut said = Self { port: 22, ..Self::default() };
        let some = |value: &str| (value != "none" && !value.is_empty()).then(|| value.to_owned());
        for line in text.lines() {
            let Some((key, value)) = line.split_once(' ') else { continue };
            match key {
                "hostname" => said.host = value.to_owned(),
                "user" => said.user = value.to_owned(),
                "port" => said.port = value.parse().unwrap_or(22),
                "identityfile" => said.keys.extend(some(value)),
                "proxyjump" => said.jump = some(value),
                "proxycommand" => said.proxy = some(value),
                "hostkeyalias" => said.alias = some(value),
                "globalknownhostsfile" => said.known.extend(value.split(' ').filter_map(some)),
                "userknownhostsfile" => _ = said.known.splice(0..0, value.split(' ').filter_map(some)),
                _ => {}
            }
        }
        said
    }
}

/// A hop as `ssh -J` takes it: `[USER@]HOST[:PORT]`, be it with `ssh://` before it.
fn hop(text: &str) -> (Option<&str>, &str, Option<u16>) {
    let text = text.strip_prefix("ssh://").unwrap_or(text).trim_end_matches('/');
    let (user, rest) = text.rsplit_once('@').map_or((None, text), |(user, rest)| (Some(user), rest));
    if let Some((host, rest)) = rest.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        return (user, host, rest.strip_prefix(':').and_then(|port| port.parse().ok()));
    }
    match rest.split_once(':') {
        Some((host, port)) if !port.contains(':') => (user, host, port.parse().ok()),
        _ => (user, rest, None),
    }
}

/// A ProxyCommand with its tokens in place (ssh_config(5), TOKENS).
fn expanded(command: &str, name: &str, said: &Said) -> String {
    let (mut out, mut chars) = (String::new(), command.chars());
    while let Some(c) = chars.next() {
        if c != '%' {
            out.push(c);
            continue;
        }
        match chars.next() {
            Some('h') => out.push_str(&said.host),
            Some('n') => out.push_str(name),
            Some('p') => out.push_str(&said.port.to_string()),
            Some('r') => out.push_str(&said.user),
            Some('%') => out.push('%'),
            Some(other) => out.extend(['%', other]),
            None => out.push('%'),
        }
    }
    out
}

impl Existing {
    /// Those of a cluster with this state folder.
    pub(super) fn open(here: &Here, nodes: BTreeSet<String>) -> Self {
        let known_hosts = here.dir.join("known_hosts");
        Self { known_hosts, users: here.users.clone(), nodes, ways: Mutex::default() }
    }

    fn ask(&self, user: Option<&str>, host: &str, port: Option<u16>, stop: &Cancel) -> Result<Said, Error> {
        let mut cmd = Cmd::new("ssh").arg("-G");
        let config = self.users.home.join(".ssh/config");
        if self.users.account.is_some() && config.is_file() {
            cmd = cmd.arg("-F").arg(config);
        }
        if let Some(user) = user {
            cmd = cmd.args(["-l", user]);
        }
        if let Some(port) = port {
            cmd = cmd.arg("-p").arg(port.to_string());
        }
        let run = process::run(&cmd.args(["--", host]), ASKED, stop).and_then(process::Finished::ok);
        let done = run.map_err(Error::doing(format!("read the configuration of ssh for {host}")))?;
        Ok(Said::read(&done.stdout))
    }

    /// What the user's known_hosts have for a host: hashed names are found by ssh-keygen alone.
    fn known(&self, name: &str, said: &Said, stop: &Cancel) -> Known {
        let names = said.alias.as_deref().map_or_else(
            || {
                let of = |host: &str| match said.port {
                    22 => host.to_owned(),
                    port => format!("[{host}]:{port}"),
                };
                [of(&said.host), of(name)].to_vec()
            },
            |alias| vec![alias.to_owned()],
        );
        let files: Vec<PathBuf> = said.known.iter().map(|file| self.path(file)).collect();
        let first = files.first().cloned().unwrap_or_else(|| self.users.home.join(".ssh/known_hosts"));
        for file in files.into_iter().filter(|file| file.is_file()) {
            for name in &names {
                let cmd = Cmd::new("ssh-keygen").args(["-F", name]).arg("-f").arg(&file);
                let found = process::run(&cmd, ASKED, stop).map(|done| HostKey::of_lines(&done.stdout));
                if let Ok(keys) = found
                    && !keys.is_empty()
                {
                    return Known { keys, file, entry: name.clone() };
                }
            }
        }
        Known { keys: Vec::new(), file: first, entry: said.host.clone() }
    }

    /// A path as the user's configuration writes it.
    fn path(&self, text: &str) -> PathBuf {
        let path = Path::new(text);
        let of_account = || path.strip_prefix(self.users.account.as_ref()?).ok();
        match path.strip_prefix("~").ok().or_else(of_account) {
            Some(rest) => self.users.home.join(rest),
            None => path.to_owned(),
        }
    }

    /// The way to a host that is called so in the user's configuration; `pinned` is the name under which p1 has its key.
    fn way_to(
        &self,
        pinned: &str,
        host: &str,
        access: &SshAccess,
        left: usize,
        stop: &Cancel,
    ) -> Result<Way, Error> {
        let said = self.ask(access.user.as_deref(), host, access.port, stop)?;
        let hops = access.jump.clone().or_else(|| said.jump.clone());
        let jump = match hops {
            Some(_) if left == 0 => {
                let remedy = "Look at `ProxyJump` in ~/.ssh/config: it seems to lead in a circle.".to_owned();
                let what = format!("more than {HOPS} hosts lie on the way to {host}");
                return Err(Error::Conflict { what, remedy, next: Vec::new() });
            }
            Some(hops) => self.jump(&hops, access.host_key, left - 1, stop)?,
            None => None,
        };
        let keys = match &access.key {
            Some(key) => vec![self.path(&key.to_string_lossy())],
            None => said.keys.iter().map(|key| self.path(key)).filter(|key| key.is_file()).collect(),
        };
        let is_pinned = KnownHosts::pinned(&self.known_hosts).keys(pinned).is_ok_and(|keys| !keys.is_empty());
        let known = (!is_pinned).then(|| self.known(host, &said, stop));
        let known = known.filter(|known| !known.keys.is_empty() || access.host_key == HostKeys::Known);
        let root = match access.r#become {
            _ if said.user == "root" => Root::Already,
            BecomeChoice::Sudo => Root::Sudo,
            BecomeChoice::Doas => Root::Doas,
        };
        let proxy = said.proxy.as_ref().filter(|_| jump.is_none()).map(|line| expanded(line, host, &said));
        let arranged = Arranged { proxy, password: None, agent: self.users.agent.clone(), known };
        Ok(Way {
            host: said.host,
            port: said.port,
            user: said.user,
            keys,
            insecure: Vec::new(),
            root,
            opened: false,
            jump,
            arranged,
        })
    }

    /// The way to the last of these hosts, through the others.
    fn jump(
        &self,
        hops: &str,
        host_key: HostKeys,
        left: usize,
        stop: &Cancel,
    ) -> Result<Option<Box<Way>>, Error> {
        let mut way: Option<Box<Way>> = None;
        for text in hops.split(',') {
            let (user, host, port) = hop(text);
            let access = SshAccess {
                host: host.to_owned(),
                user: user.map(str::to_owned),
                port,
                key: None,
                jump: None,
                r#become: BecomeChoice::Sudo,
                password: None,
                host_key,
            };
            let mut next = self.way_to(host, host, &access, left, stop)?;
            // The one before leads there, whatever its own configuration says.
            if way.is_some() {
                next.jump = way.take();
            }
            way = Some(Box::new(next));
        }
        Ok(way)
    }
}

impl Machines for Existing {
    fn kind(&self) -> Kind {
        Kind::Ssh
    }

    /// They run, as far as anybody knows who does not ask them: whether one answers is seen over SSH.
    fn look(&self, _: &Cluster, nodes: &[&Node], _: &Cancel) -> Result<BTreeMap<String, Machine>, Error> {
        let can = Caps::of(self);
        let machine = |id| Machine { id, state: MachineState::Running, can, ..Machine::absent() };
        let names = nodes.iter().map(|n| &n.name).chain(&self.nodes);
        Ok(names.map(|name| (name.clone(), machine(self.id(name)))).collect())
    }

    /// Its host key: another one is another machine.
    fn id(&self, node: &str) -> Option<String> {
        let keys = KnownHosts::pinned(&self.known_hosts).keys(node).ok()?;
        keys.first().map(HostKey::fingerprint)
    }

    fn way(&self, _: &Cluster, node: &Node, made: Option<&Made>, stop: &Cancel) -> Result<Way, Error> {
        if let Some(way) = lock(&self.ways).get(&node.name) {
            return Ok(way.clone());
        }
        let access = node.ssh.as_deref().or(made.and_then(|made| made.ssh.as_deref()));
        let Some(access) = access else {
            let remedy = "Write at the node how it is reached: `ssh: {host: ..}`.".to_owned();
            let what = format!("it is not known how {} is reached", node.name);
            return Err(Error::Conflict { what, remedy, next: Vec::new() });
        };
        let mut way = self.way_to(&node.name, &access.host, access, HOPS, stop)?;
        way.arranged.password = self.users.passwords.get(&node.name).cloned();
        lock(&self.ways).insert(node.name.clone(), way.clone());
        Ok(way)
    }

    /// Its own address, where that is how it is reached: then this host is in its network.
    fn door(&self, node: &Node, port: u16) -> Option<SocketAddr> {
        let access = node.ssh.as_deref()?;
        let through = lock(&self.ways)
            .get(&node.name)
            .is_some_and(|way| way.jump.is_some() || way.arranged.proxy.is_some());
        let direct = access.jump.is_none() && !through && access.host.parse() == Ok::<Ipv4Addr, _>(node.ip);
        direct.then(|| (node.ip, port).into())
    }

    fn release(&self) -> Option<&dyn Release> {
        Some(self)
    }
}

impl Release for Existing {
    fn noted(&self) -> BTreeMap<String, String> {
        self.nodes.iter().filter_map(|node| Some((node.clone(), self.id(node)?))).collect()
    }

    fn forget(&self, node: &str) -> Result<(), Error> {
        lock(&self.ways).remove(node);
        Ok(KnownHosts::pinned(&self.known_hosts).forget(node)?)
    }
}

/// By node, of a cluster's and those that it had: how the machines are reached that exist already.
pub fn accesses<'a>(
    cluster: &'a Cluster,
    made: impl IntoIterator<Item = (&'a String, &'a Made)>,
) -> BTreeMap<String, SshAccess> {
    let access = |name: &String, access: &SshAccess| (name.clone(), access.clone());
    let of_spec = cluster.nodes.iter().filter_map(|n| Some(access(&n.name, n.ssh.as_deref()?)));
    let former = made.into_iter().filter(|(name, _)| cluster.node(name).is_none());
    of_spec.chain(former.filter_map(|(name, made)| Some(access(name, made.ssh.as_deref()?)))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_ssh_says_is_read() {
        let text = "user pi\nhostname 10.1.2.3\nport 2222\nidentityfile ~/.ssh/a\nidentityfile none\n\
                    proxyjump none\nproxycommand nc %h %p -x %% %n %r\nhostkeyalias pi\n\
                    userknownhostsfile ~/.ssh/known_hosts ~/.ssh/known_hosts2\nglobalknownhostsfile /etc/ssh/known\n\
                    proxyusefdpass no\n";
        let said = Said::read(text);
        assert_eq!((said.host.as_str(), said.user.as_str(), said.port), ("10.1.2.3", "pi", 2222));
        assert_eq!((said.keys.len(), said.jump.as_deref(), said.known.len()), (1, None, 3));
        let command = expanded(said.proxy.as_deref().unwrap(), "box", &said);
        assert_eq!(command, "nc 10.1.2.3 2222 -x % box pi");
    }

    #[test]
    fn a_hop_is_read_as_ssh_reads_it() {
        assert_eq!(hop("bastion"), (None, "bastion", None));
        assert_eq!(hop("me@bastion:2222"), (Some("me"), "bastion", Some(2222)));
        assert_eq!(hop("ssh://me@[fe80::1%eth0]:22/"), (Some("me"), "fe80::1%eth0", Some(22)));
        assert_eq!(hop("fe80::1"), (None, "fe80::1", None));
    }
}
