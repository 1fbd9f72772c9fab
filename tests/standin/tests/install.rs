//! The installer, below a temporary root, with a `systemctl` that only writes down what it was told.

mod support;

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::process::{Command, Output};

use support::{Machine, mode};

const INSTALLER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/install.sh");
const UNIT: &str = "/etc/systemd/system/k3s.service";
const BIN: &str = "/usr/local/bin";

struct Host(Machine);

impl Host {
    fn new() -> Self {
        let host = Host(Machine::new());
        host.script("/fake/systemctl", "#!/bin/sh\necho \"$@\" >>\"$(dirname \"$0\")/calls\"\n");
        host.script(&format!("{BIN}/k3s"), "#!/bin/sh\necho stand-in\n");
        host
    }

    fn script(&self, path: &str, text: &str) {
        self.0.write(path, text);
        fs::set_permissions(self.0.path(path), fs::Permissions::from_mode(0o755)).unwrap();
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        command.env_clear().env("K3S_STANDIN_ROOT", self.0.root.path());
        command.env("PATH", format!("{}:/usr/bin:/bin:/usr/sbin:/sbin", self.0.path("/fake").display()));
        command
    }

    fn install(&self, variables: &[(&str, &str)], arguments: &[&str]) -> Output {
        let mut command = self.command("sh");
        command.arg(INSTALLER).args(arguments).env("INSTALL_K3S_SKIP_DOWNLOAD", "true");
        command.envs(variables.iter().copied()).output().unwrap()
    }

    fn run(&self, script: &str) -> Output {
        self.command(self.0.path(script).to_str().unwrap()).output().unwrap()
    }

    fn calls(&self) -> String {
        let calls = self.0.read("/fake/calls");
        let _ = fs::remove_file(self.0.path("/fake/calls"));
        calls
    }

    fn exists(&self, path: &str) -> bool {
        self.0.path(path).symlink_metadata().is_ok()
    }
}

fn ok(output: &Output) -> String {
    let text =
        format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{text}");
    text
}

fn failed(output: &Output) -> String {
    assert!(!output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn a_server_gets_unit_environment_scripts_and_links() {
    let host = Host::new();
    ok(&host.install(&[("K3S_TOKEN", "it's $ecret"), ("UNRELATED", "x")], &["--node-ip", "10.0.0.1"]));
    let unit = host.0.read(UNIT);
    for line in [
        "Type=notify",
        "KillMode=process",
        "Delegate=yes",
        "Restart=always",
        "RestartSec=5s",
        "TimeoutStartSec=0",
        "ExecStartPre=-/sbin/modprobe overlay",
        "WantedBy=multi-user.target",
    ] {
        assert!(unit.lines().any(|l| l == line), "{line} in {unit}");
    }
    assert!(unit.contains("/usr/local/bin/k3s \\\n    server \\\n\t'--node-ip' \\\n\t'10.0.0.1'"), "{unit}");
    assert!(unit.contains("stand-in"));
    assert!(!unit.contains("ecret"));
    let environment = format!("{UNIT}.env");
    assert_eq!(mode(&host.0.path(&environment)), 0o600);
    let text = host.0.read(&environment);
    assert!(text.contains("K3S_TOKEN=\"it's \\$ecret\"") && !text.contains("UNRELATED"), "{text}");
    for script in ["k3s-killall.sh", "k3s-uninstall.sh"] {
        assert_eq!(mode(&host.0.path(&format!("{BIN}/{script}"))), 0o755);
    }
    let calls = host.calls();
    assert!(calls.contains("daemon-reload") && calls.trim().ends_with("restart k3s"), "{calls}");

    // Again: nothing changed, nothing is started, unless asked to.
    let text = ok(&host.install(&[("K3S_TOKEN", "it's $ecret")], &["--node-ip", "10.0.0.1"]));
    assert!(text.contains("No change detected so skipping service start"), "{text}");
    assert!(!host.calls().contains("restart"));
    ok(&host.install(
        &[("K3S_TOKEN", "it's $ecret"), ("INSTALL_K3S_FORCE_RESTART", "true")],
        &["--node-ip", "10.0.0.1"],
    ));
    assert!(host.calls().contains("restart k3s"));
    ok(&host.install(&[("K3S_TOKEN", "another")], &["--node-ip", "10.0.0.1"]));
    assert!(host.calls().contains("restart k3s"));
}

#[test]
fn links_give_way_to_commands_that_are_there() {
    let host = Host::new();
    host.script("/fake/kubectl", "#!/bin/sh\n");
    let text = ok(&host.install(&[], &[]));
    assert!(text.contains("kubectl symlink to k3s, command exists in PATH"), "{text}");
    assert!(!host.exists(&format!("{BIN}/kubectl")));
    ok(&host.install(&[("INSTALL_K3S_SYMLINK", "skip")], &[]));
    assert!(!host.exists(&format!("{BIN}/kubectl")));
    ok(&host.install(&[("INSTALL_K3S_SYMLINK", "force")], &[]));
    assert_eq!(fs::read_link(host.0.path(&format!("{BIN}/kubectl"))).unwrap().to_str(), Some("k3s"));
}

#[test]
fn a_url_makes_an_agent() {
    let host = Host::new();
    let url = ("K3S_URL", "https://10.0.0.1:6443");
    ok(&host.install(&[url, ("K3S_TOKEN", "x"), ("INSTALL_K3S_SKIP_START", "true")], &[]));
    assert!(host.exists("/etc/systemd/system/k3s-agent.service"));
    assert!(
        host.exists(&format!("{BIN}/k3s-agent-uninstall.sh"))
            && host.exists(&format!("{BIN}/k3s-killall.sh"))
    );
    assert!(!host.exists(&format!("{BIN}/k3s-uninstall.sh")) && !host.exists(UNIT));
    let calls = host.calls();
    assert!(calls.contains("enable") && !calls.contains("restart"), "{calls}");

    assert!(failed(&host.install(&[url], &[])).contains("K3S_TOKEN or K3S_TOKEN_FILE is not defined"));
    assert!(
        failed(&host.install(&[("K3S_URL", "http://x"), ("K3S_TOKEN", "x")], &[]))
            .contains("Only https:// URLs are supported")
    );
    ok(&host.install(
        &[
            ("INSTALL_K3S_EXEC", "agent --server https://a:6443 --node-label 'a=b c'"),
            ("INSTALL_K3S_NAME", "two"),
        ],
        &[],
    ));
    assert!(host.0.read("/etc/systemd/system/k3s-two.service").contains("'a=b c'"));
    assert!(host.exists(&format!("{BIN}/k3s-two-uninstall.sh")));
}

#[test]
fn without_a_binary_it_says_so() {
    let host = Host::new();
    host.0.remove(&format!("{BIN}/k3s"));
    let output = host.install(&[], &[]);
    assert_eq!(output.status.code(), Some(1));
    assert!(failed(&output).contains(&format!(
        "Executable k3s binary not found at {}",
        host.0.path(&format!("{BIN}/k3s")).display()
    )));
    assert!(!host.exists(UNIT));
}

#[test]
fn a_download_is_checked() {
    let host = Host::new();
    let source = Machine::new();
    let text = "#!/bin/sh\necho newer\n";
    source.write("/k3s", text);
    let sum = Command::new("sha256sum").arg(source.path("/k3s")).output().unwrap().stdout;
    let sum = String::from_utf8(sum).unwrap();
    source.write("/sha256sum-amd64.txt", &format!("{}  k3s\n", sum.split(' ').next().unwrap()));
    let url = format!("file://{}", source.root.path().display());
    let variables = [
        ("INSTALL_K3S_SKIP_DOWNLOAD", ""),
        ("INSTALL_K3S_ARTIFACT_URL", url.as_str()),
        ("INSTALL_K3S_SKIP_START", "true"),
    ];
    ok(&host.install(&variables, &[]));
    assert_eq!(host.0.read(&format!("{BIN}/k3s")), text);
    assert!(ok(&host.install(&variables, &[])).contains("installed k3s matches hash"));
    source.write("/sha256sum-amd64.txt", &format!("{}  k3s\n", "0".repeat(64)));
    assert!(failed(&host.install(&variables, &[])).contains("Download sha256 does not match"));
    assert!(failed(&host.install(&[("INSTALL_K3S_SKIP_DOWNLOAD", "")], &[])).contains("no release to fetch"));
}

#[test]
fn uninstalling_leaves_the_node_password_only() {
    let host = Host::new();
    ok(&host.install(&[("K3S_URL", "https://10.0.0.1:6443"), ("K3S_TOKEN", "x")], &[]));
    ok(&host.install(&[("INSTALL_K3S_SYMLINK", "force")], &["server"]));
    host.0.write("/etc/rancher/node/password", "p");
    host.0.write("/etc/rancher/k3s/config.yaml", "");
    host.0.write("/var/lib/rancher/k3s/server/token", "t");
    host.calls();
    ok(&host.run(&format!("{BIN}/k3s-killall.sh")));
    let calls = host.calls();
    assert!(calls.contains("stop k3s.service") && calls.contains("stop k3s-agent.service"), "{calls}");
    assert!(host.exists("/var/lib/rancher/k3s/server/token"));

    // The other service is still there, so the first script takes its own things only.
    let text = ok(&host.run(&format!("{BIN}/k3s-agent-uninstall.sh")));
    assert!(text.contains("Additional k3s services installed, skipping uninstall of k3s"), "{text}");
    assert!(host.exists(&format!("{BIN}/k3s")) && !host.exists(&format!("{BIN}/k3s-agent-uninstall.sh")));
    ok(&host.run(&format!("{BIN}/k3s-uninstall.sh")));
    for gone in [
        "/var/lib/rancher/k3s",
        "/etc/rancher/k3s",
        UNIT,
        "/usr/local/bin/k3s",
        "/usr/local/bin/kubectl",
        "/usr/local/bin/k3s-killall.sh",
        "/usr/local/bin/k3s-uninstall.sh",
    ] {
        assert!(!host.exists(gone), "{gone} is still there");
    }
    assert_eq!(host.0.read("/etc/rancher/node/password"), "p");
}

#[test]
fn a_read_only_bin_dir_gets_no_scripts() {
    let host = Host::new();
    ok(&host.install(&[("INSTALL_K3S_BIN_DIR_READ_ONLY", "true")], &[]));
    assert!(host.exists(UNIT));
    for absent in ["k3s-killall.sh", "k3s-uninstall.sh", "kubectl"] {
        assert!(!host.exists(&format!("{BIN}/{absent}")), "{absent}");
    }
}

#[test]
fn faults_stop_it_at_their_stage() {
    for stage in ["env", "verify", "symlinks", "killall", "uninstall", "remove", "unit", "enable", "start"] {
        let host = Host::new();
        host.0.write("/etc/p1-standin/faults/install-fail", &format!("{stage}\n"));
        assert!(failed(&host.install(&[], &[])).contains(&format!("stand-in fault install-fail={stage}")));
        assert_eq!(host.exists(UNIT), matches!(stage, "enable" | "start"), "{stage}");
        assert_eq!(
            host.exists(&format!("{BIN}/k3s-uninstall.sh")),
            matches!(stage, "remove" | "unit" | "enable" | "start"),
            "{stage}"
        );
        // A second run cannot tell that the start went wrong: all its hashes are the same. The real
        // installer behaves like that too, so "installed" says nothing about "running".
        let again = host.install(&[], &[]);
        if stage == "start" {
            assert!(ok(&again).contains("No change detected so skipping service start"));
        } else {
            failed(&again);
        }
    }
    let host = Host::new();
    host.0.write("/etc/p1-standin/faults/install-fail-once=unit", "");
    failed(&host.install(&[], &[]));
    ok(&host.install(&[], &[]));
}
