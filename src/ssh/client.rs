//! The system's `ssh`, for people: where somebody types, and for use by hand.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use super::{Endpoint, Root};
use crate::os::process::{Cmd, quote};

/// A node as `ssh` is told of it.
#[derive(Clone, Debug)]
pub struct Host {
    /// Where it is.
    pub endpoint: Endpoint,
    /// How who logs in there becomes root.
    pub root: Root,
    /// Our private key.
    pub key: PathBuf,
    /// Our known_hosts file.
    pub known_hosts: PathBuf,
    /// The host through which it is reached.
    pub jump: Option<Box<Host>>,
    /// The command that carries the connection otherwise.
    pub proxy: Option<String>,
    /// Keys of an agent's may open it too.
    pub agent: bool,
}

impl Host {
    /// What ssh_config(5) calls them, in that order. `HostKeyAlias` because the keys are pinned
    /// under node names; `IdentitiesOnly` because an agent's keys would be tried first and sshd
    /// gives up after six.
    fn options(&self) -> Vec<(&'static str, String)> {
        let mut all = vec![
            ("HostName", self.endpoint.host.replace('%', "%%")),
            ("Port", self.endpoint.port.to_string()),
            ("User", self.endpoint.user.clone()),
            ("IdentityFile", path(&self.key)),
            ("IdentitiesOnly", if self.agent { "no" } else { "yes" }.to_owned()),
            ("HostKeyAlias", self.endpoint.node.clone()),
            ("UserKnownHostsFile", path(&self.known_hosts)),
            ("GlobalKnownHostsFile", "/dev/null".to_owned()),
            ("StrictHostKeyChecking", "yes".to_owned()),
            ("UpdateHostKeys", "no".to_owned()),
            ("PasswordAuthentication", "no".to_owned()),
            ("LogLevel", "ERROR".to_owned()),
        ];
        let proxy = || self.proxy.as_ref().map(|command| command.replace('%', "%%"));
        all.extend(
            self.jump.as_deref().map(Host::carrying).or_else(proxy).map(|line| ("ProxyCommand", line)),
        );
        all
    }

    /// The command that carries a connection to a host behind this one; `ssh` puts that one's address in.
    fn carrying(&self) -> String {
        let mut words = vec!["ssh".to_owned(), "-F".to_owned(), "/dev/null".to_owned()];
        for (option, value) in self.options() {
            words.extend(["-o".to_owned(), quote(&format!("{option}={value}"))]);
        }
        let words = words.join(" ").replace('%', "%%");
        format!("{words} -W '[%h]:%p' -- {}", quote(&self.endpoint.node).replace('%', "%%"))
    }
}

/// A path in an option: quoted, and safe from the expansion of `%`.
fn path(path: &Path) -> String {
    let text = path.to_string_lossy().replace('%', "%%").replace('\\', "\\\\").replace('"', "\\\"");
    format!("\"{text}\"")
}

/// The text of a configuration file with which `ssh -F FILE NODE` works; paths should be absolute.
pub fn config(hosts: &[Host]) -> String {
    let mut text = "# Written by p1. By hand: ssh -F THIS_FILE NODE\n".to_owned();
    for host in hosts {
        let _ = write!(text, "\nHost {}\n", host.endpoint.node);
        for (option, value) in host.options() {
            let _ = writeln!(text, "  {option} {value}");
        }
    }
    text
}

/// The command line of `ssh` for a person at a terminal; without a command, a login shell. As with
/// `ssh` itself, the words of `command` are joined by spaces and read by the remote shell. `terminal`
/// asks for a terminal for a command, too (`-t`). To be run by [`crate::os::process::hand_over`].
pub fn interactive(host: &Host, command: &[String], terminal: bool) -> Cmd {
    // Nothing of the user's own configuration, which may send all hosts through a jump host.
    let mut cmd = Cmd::new("ssh").args(["-F", "/dev/null"]);
    if terminal {
        cmd = cmd.arg("-t");
    }
    for (option, value) in host.options() {
        cmd = cmd.arg("-o").arg(format!("{option}={value}"));
    }
    cmd.arg("--").arg(&host.endpoint.node).args(command)
}
