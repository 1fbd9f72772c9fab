//! What a machine that exists already says before k3s is put on it.

use std::collections::BTreeSet;
use std::fmt;
use std::net::Ipv4Addr;

use super::facts::Incomplete;
use crate::explain::printable;

/// What k3s' traffic goes over.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Protocol {
    Tcp,
    Udp,
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if *self == Self::Tcp { "tcp" } else { "udp" })
    }
}

impl Protocol {
    fn read(word: &str) -> Option<Self> {
        match word {
            "tcp" => Some(Self::Tcp),
            "udp" => Some(Self::Udp),
            _ => None,
        }
    }
}

/// Somewhere that a node has to reach.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Peer {
    pub protocol: Protocol,
    pub ip: Ipv4Addr,
    pub port: u16,
}

/// What came of trying to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reached {
    /// Somebody answered, be it by a refusal.
    Open,
    /// Nobody did. Over UDP that may be no more than a lost answer.
    Silent,
    /// Something on the way said no.
    Barred,
}

/// See the module.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ground {
    /// Only the first version of cgroups.
    pub old_cgroup: bool,
    /// What is listened at.
    pub listens: BTreeSet<(Protocol, u16)>,
    /// Other distributions of Kubernetes, and by which path each was found.
    pub others: Vec<(String, String)>,
    /// Kernel modules that cannot be had.
    pub lacks: Vec<String>,
    /// A proxy is set for all programs.
    pub proxy: bool,
    pub reached: Vec<(Peer, Reached)>,
}

/// The script that asks; `peers` is what it has to reach.
pub fn script(peers: &[Peer]) -> String {
    let lines: Vec<String> = peers.iter().map(|p| format!("{} {} {}", p.protocol, p.ip, p.port)).collect();
    format!("peers='{}'\n{}", lines.join("\n"), include_str!("../../templates/preflight.sh"))
}

/// Its answer. It is data: what does not have its form is passed over.
pub fn parse(text: &str) -> Result<Ground, Incomplete> {
    let (mut ground, mut whole) = (Ground::default(), false);
    for line in text.lines().filter(|line| line.len() < 400).take(20_000) {
        let line = printable(line);
        let Some((key, value)) = line.split_once('=') else { continue };
        let words: Vec<&str> = value.split(' ').collect();
        match (key, &words[..]) {
            ("cgroup", ["1"]) => ground.old_cgroup = true,
            ("listens", [protocol, port]) => {
                ground.listens.extend(Protocol::read(protocol).zip(port.parse().ok()));
            }
            ("other", [name, path]) => ground.others.push(((*name).into(), (*path).into())),
            ("lacks", [module]) => ground.lacks.push((*module).into()),
            ("proxy", _) => ground.proxy = true,
            ("reach", [protocol, ip, port, how]) => {
                let how = match *how {
                    "open" => Reached::Open,
                    "silent" => Reached::Silent,
                    _ => Reached::Barred,
                };
                if let (Some(protocol), Ok(ip), Ok(port)) =
                    (Protocol::read(protocol), ip.parse(), port.parse())
                {
                    ground.reached.push((Peer { protocol, ip, port }, how));
                }
            }
            ("end", ["ok"]) => whole = true,
            _ => {}
        }
    }
    if whole { Ok(ground) } else { Err(Incomplete { tail: crate::os::process::tail(text, 6) }) }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// On this host: a port that is listened at, one that is not, and what is left open is no answer.
    #[test]
    fn the_script_answers_here_as_well() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let peer = |protocol, port| Peer { protocol, ip: Ipv4Addr::LOCALHOST, port };
        let peers = [peer(Protocol::Tcp, port), peer(Protocol::Tcp, 1), peer(Protocol::Udp, 1)];
        let cmd = crate::os::process::Cmd::new("sh").stdin(script(&peers));
        let bound = std::time::Duration::from_secs(20);
        let done = crate::os::process::run(&cmd, bound, &crate::os::Cancel::new()).unwrap();
        let ground = parse(&done.stdout).unwrap();
        assert!(ground.listens.contains(&(Protocol::Tcp, port)), "{ground:?}");
        for peer in peers {
            assert!(ground.reached.contains(&(peer, Reached::Open)), "{ground:?}");
        }
        assert!(parse(done.stdout.trim_end().trim_end_matches("end=ok")).is_err());
    }
}
