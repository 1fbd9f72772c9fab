//! A p1 with a scripted vagrant and virsh around it (tests/fakes), in a network and a mount namespace
//! of its own, so that no address of a spec can be reached and no libvirt of this machine is asked;
//! that takes root.

#![allow(dead_code)]

use std::fs;
use std::os::unix::fs::symlink;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use nix::unistd::Pid;
use p1::internals::journal::{self, Record};

use super::run::{Done, Running, until};

pub fn executable(path: &Path, text: &str) {
    use std::os::unix::fs::PermissionsExt;
    fs::write(path, text).unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
}

pub struct Fake {
    pub dir: tempfile::TempDir,
    /// PATH.
    pub path: String,
    /// What a shell does in p1's namespaces before p1 begins, e.g. mount something.
    pub before: String,
    /// More of p1's environment.
    pub vars: Vec<(&'static str, String)>,
    /// libvirt's log daemon, for whoever looks whether it listens.
    _virtlogd: UnixListener,
}

impl Fake {
    /// With what `vagrant up` is to do.
    pub fn new(up: &str) -> Self {
        assert!(nix::unistd::Uid::effective().is_root(), "namespaces need root");
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        for folder in ["bin", "home/.local/share/p1/vagrant", "run"] {
            fs::create_dir_all(at(folder)).unwrap();
        }
        let fakes = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fakes");
        for name in ["vagrant", "virsh", "qemu-img"] {
            symlink(fakes.join(name), at("bin").join(name)).unwrap();
        }
        let qemu = format!("qemu-system-{}", std::env::consts::ARCH);
        for name in ["dnsmasq", "iptables", "virtlogd", &qemu] {
            symlink(fakes.join("nothing"), at("bin").join(name)).unwrap();
        }
        let plugin = r#"{"version":"1","installed":{"vagrant-libvirt":{"installed_gem_version":"0.12.2"}}}"#;
        fs::write(at("home/.local/share/p1/vagrant/plugins.json"), plugin).unwrap();
        fs::write(at("install.sh"), "#!/bin/sh\n").unwrap();
        executable(&at("k3s"), "#!/bin/sh\necho 'k3s version v1.34.1+k3s1 (fake)'\n");
        let socket = UnixListener::bind(at("run/virtlogd-sock")).unwrap();
        let path = format!("{}:{}", at("bin").display(), std::env::var("PATH").unwrap());
        let (before, vars) = (String::new(), Vec::new());
        let fake = Self { dir, path, before, vars, _virtlogd: socket };
        fake.box_file("fake.box", "libvirt");
        fake.up(up);
        fake.spec("timeouts: {boot: 3s, ssh: 500ms}\nretry: {attempts: 1}\n");
        fake
    }

    pub fn at(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// A box file as Vagrant knows them, for a provider.
    pub fn box_file(&self, name: &str, provider: &str) {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("metadata.json"), format!("{{\"provider\": \"{provider}\"}}")).unwrap();
        let tar = Command::new("tar")
            .arg("-czf")
            .arg(self.at(name))
            .arg("-C")
            .arg(folder.path())
            .arg("--mtime=@0")
            .arg(".")
            .status();
        assert!(tar.unwrap().success());
    }

    /// What `vagrant up` is to do from now on.
    pub fn up(&self, script: &str) {
        fs::write(self.at("bin/up"), script).unwrap();
    }

    pub fn spec(&self, more: &str) {
        let text = format!(
            "name: fake\nprovider: libvirt\nbox: {{path: fake.box}}\nnetwork: {{cidr: 192.168.56.0/24}}\nnodes:\n  \
             - {{name: server, role: server, ip: 192.168.56.110, cpus: 1, memory: 1024}}\n  \
             - {{name: worker, role: worker, ip: 192.168.56.111, cpus: 1, memory: 512}}\n\
             k3s:\n  version: v1.34.1+k3s1\n  artifacts: {{binary: {{path: k3s}}, installer: {{path: install.sh}}}}\n{more}"
        );
        fs::write(self.at("cluster.yaml"), text).unwrap();
    }

    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new("unshare");
        let enter = format!(
            "mount -t tmpfs none /run && mkdir /run/libvirt && mount --bind \"$0\" /run/libvirt || exit 98\n\
             {}\nexec \"$@\"",
            self.before
        );
        command.args(["--net", "--mount", "--propagation", "private", "/bin/sh", "-c", &enter]);
        command.arg(self.at("run")).arg(env!("CARGO_BIN_EXE_p1")).args(args);
        command.env_clear().env("PATH", &self.path).env("HOME", self.at("home")).env("LC_ALL", "C.UTF-8");
        command.envs(self.vars.iter().map(|(k, v)| (k, v)));
        command.current_dir(self.dir.path()).stdin(Stdio::null());
        command
    }

    pub fn run(&self, args: &[&str]) -> Done {
        self.start(args).end()
    }

    pub fn start(&self, args: &[&str]) -> Running {
        Running::start(self.command(args), self.dir.path())
    }

    /// Does what p1 said was next.
    #[track_caller]
    pub fn follow(&self, done: &Done) -> Done {
        done.followed(&|args| self.run(args), &|line| {
            let status = Command::new("/bin/sh").args(["-euc", line]).current_dir(self.dir.path()).status();
            assert!(status.unwrap().success(), "{line}");
        })
    }

    pub fn calls(&self) -> String {
        fs::read_to_string(self.at("bin/calls")).unwrap_or_default()
    }

    pub fn runs(&self) -> Vec<PathBuf> {
        journal::runs(&self.at(".p1/fake/runs"))
    }

    pub fn last(&self) -> Record {
        journal::latest(&self.at(".p1/fake/runs")).unwrap().expect("a run")
    }

    /// The processes of the vagrant that hangs.
    pub fn hanging(&self) -> Vec<Pid> {
        let file = self.at("bin/hanging");
        until("vagrant hangs", || file.exists());
        let text = fs::read_to_string(file).unwrap();
        text.split_whitespace().map(|p| Pid::from_raw(p.parse().unwrap())).collect()
    }
}
