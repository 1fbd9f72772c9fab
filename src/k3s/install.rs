//! How the official installer is called.
//!
//! It only makes units, links and scripts: the binary is staged before, and the start is p1's. A
//! start from the script blocks for ever when an agent cannot join, since the unit is of type
//! `notify` with no start timeout (k3s-io/k3s#6054). Nothing secret is passed: everything is in
//! config.yaml.

use crate::os::process::quote;
use crate::spec::Role;

/// Where the binary is staged, and the scripts will be.
pub const BIN_DIR: &str = "/usr/local/bin";

/// A call of the installer, as data.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Install {
    /// The environment it needs, complete, in order.
    pub env: Vec<(String, String)>,
    /// The program and its arguments.
    pub command: Vec<String>,
}

/// The call that installs a node of that role from the script at `script`.
///
/// `selinux_warn`: go on, with a warning, where SELinux is enforced and k3s' policy is absent;
/// otherwise the script stops there.
pub fn install(role: Role, script: &str, selinux_warn: bool) -> Install {
    let command = match role {
        Role::Server => "server",
        Role::Worker | Role::None => "agent",
    };
    let mut env = vec![
        ("INSTALL_K3S_SKIP_DOWNLOAD", "true"),
        ("INSTALL_K3S_SKIP_START", "true"),
        // Without it the script tries whether /usr/local/bin is writable, and may take /opt/bin.
        ("INSTALL_K3S_BIN_DIR", BIN_DIR),
        // A node may have no way to Rancher's RPM repository; whoever enforces SELinux brings the policy.
        ("INSTALL_K3S_SKIP_SELINUX_RPM", "true"),
        ("INSTALL_K3S_EXEC", command),
    ];
    if selinux_warn {
        env.push(("INSTALL_K3S_SELINUX_WARN", "true"));
    }
    Install {
        env: env.into_iter().map(|(k, v)| (k.to_owned(), v.to_owned())).collect(),
        command: vec!["sh".to_owned(), script.to_owned()],
    }
}

impl Install {
    /// As one line for a POSIX shell. By `env`, since sudo drops a caller's variables; and without
    /// the variables that the script would store or that would turn it round, should the node's
    /// environment have them (`setup_env`, `create_env_file`).
    pub fn line(&self) -> String {
        self.with(&["INSTALL_K3S_SKIP_ENABLE"], &[])
    }

    /// The same call, but the unit is not started with the machine yet: the script's own way has the init system read all
    /// units again, twice (`systemd_enable`).
    pub fn line_without_enabling(&self) -> String {
        self.with(&[], &[("INSTALL_K3S_SKIP_ENABLE", "true")])
    }

    fn with(&self, unset: &[&str], set: &[(&str, &str)]) -> String {
        let unset = ["K3S_URL", "K3S_TOKEN", "K3S_CLUSTER_SECRET", "INSTALL_K3S_NAME"].iter().chain(unset);
        let mut words = vec!["env".to_owned()];
        words.extend(unset.flat_map(|name| ["-u".to_owned(), (*name).to_owned()]));
        words.extend(set.iter().map(|(name, value)| format!("{name}={value}")));
        words.extend(self.env.iter().map(|(k, v)| format!("{k}={}", quote(v))));
        words.extend(self.command.iter().map(|w| quote(w)));
        words.join(" ")
    }
}

/// Why the installer gave up, in its own words: its last line marked `[ERROR]` (`fatal` in
/// install.sh), without the mark. `None` when it did not say.
pub fn complaint(output: &str) -> Option<String> {
    let line = output.lines().rev().find(|l| l.trim_start().starts_with("[ERROR]"))?;
    Some(line.trim_start().trim_start_matches("[ERROR]").trim().to_owned())
}

/// The scripts that the installer leaves (`create_killall`, `create_uninstall`): killall is the
/// same for both roles, and the uninstall script deletes itself when it is done.
pub fn uninstall_script(role: Role) -> String {
    format!("{BIN_DIR}/{}-uninstall.sh", role.unit())
}

/// See [`uninstall_script`].
pub fn killall_script() -> String {
    format!("{BIN_DIR}/k3s-killall.sh")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_starts_and_nothing_secret_is_passed() {
        let line = install(Role::Worker, "/var/lib/p1/in stall.sh", false).line();
        insta::assert_snapshot!(line, @"env -u K3S_URL -u K3S_TOKEN -u K3S_CLUSTER_SECRET -u INSTALL_K3S_NAME -u INSTALL_K3S_SKIP_ENABLE INSTALL_K3S_SKIP_DOWNLOAD=true INSTALL_K3S_SKIP_START=true INSTALL_K3S_BIN_DIR=/usr/local/bin INSTALL_K3S_SKIP_SELINUX_RPM=true INSTALL_K3S_EXEC=agent sh '/var/lib/p1/in stall.sh'");
        assert!(install(Role::Server, "x", true).line().contains("INSTALL_K3S_SELINUX_WARN=true"));
    }

    #[test]
    fn the_complaint_is_the_last_error() {
        let output =
            "[INFO]  a\n[ERROR]  first\n[ERROR]  Executable k3s binary not found at /usr/local/bin/k3s\nx";
        assert_eq!(complaint(output).unwrap(), "Executable k3s binary not found at /usr/local/bin/k3s");
        assert_eq!(complaint("fine"), None);
    }
}
