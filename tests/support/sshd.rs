//! A real OpenSSH server on loopback, with keys, known hosts and a home directory of its own.
//!
//! It is started without systemd, as root, and lets root in; nothing outside its temporary
//! directory is touched, but for `/run/sshd`, which sshd insists on.

#![allow(dead_code)]

use std::fs;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use p1::internals::os::Cancel;
use p1::internals::ssh::{Endpoint, KnownHosts, Login, Options, Remote, Session, connect, generate_key};

pub const LONG: Duration = Duration::from_secs(60);

pub struct Sshd {
    pub dir: tempfile::TempDir,
    pub port: u16,
    /// Lines for sshd_config, in force after the next start.
    pub more: String,
    /// A file system of so many bytes at `small()`, seen by this server only.
    pub small: Option<usize>,
    child: Option<Child>,
}

impl Sshd {
    pub fn start() -> Self {
        let mut sshd = Self::stopped();
        sshd.run();
        sshd
    }

    /// Everything is prepared, but nothing listens yet.
    pub fn stopped() -> Self {
        assert!(nix::unistd::Uid::effective().is_root(), "this test logs in as root, so it must run as root");
        let dir = tempfile::tempdir().unwrap();
        let free = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = free.local_addr().unwrap().port();
        let sshd = Self { dir, port, more: String::new(), small: None, child: None };
        fs::create_dir_all(sshd.home().join(".ssh")).unwrap();
        sshd.new_host_key("ed25519");
        let public = sshd.new_key("own");
        fs::write(sshd.authorized_keys(), format!("{public}\n")).unwrap();
        sshd
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub fn home(&self) -> PathBuf {
        self.path("home")
    }

    pub fn small(&self) -> PathBuf {
        self.path("small")
    }

    pub fn authorized_keys(&self) -> PathBuf {
        self.home().join(".ssh/authorized_keys")
    }

    /// A command that says `begun` and does not end before this server's directory is gone.
    pub fn hang(&self) -> String {
        format!("echo begun; while [ -d {} ]; do sleep 0.1; done", self.dir.path().display())
    }

    /// A client's key pair; returns its public line.
    pub fn new_key(&self, name: &str) -> String {
        generate_key(&self.path(name), &format!("p1 test {name}"), &Cancel::new()).unwrap()
    }

    /// A host key, instead of the one of this type that may be there.
    pub fn new_host_key(&self, kind: &str) -> PathBuf {
        let path = self.path(&format!("host_{kind}"));
        let _ = fs::remove_file(&path);
        let made = Command::new("ssh-keygen").args(["-q", "-N", "", "-t", kind, "-f"]).arg(&path).status();
        assert!(made.expect("ssh-keygen (package openssh-client)").success());
        path
    }

    pub fn run(&mut self) {
        self.end();
        let program = Path::new("/usr/sbin/sshd");
        assert!(program.exists(), "there is no {}: install the package openssh-server", program.display());
        fs::create_dir_all("/run/sshd").unwrap();
        let mut config = format!(
            "ListenAddress 127.0.0.1:{}\nPidFile none\nStrictModes no\nUsePAM no\nPermitRootLogin yes\n\
             PasswordAuthentication no\nKbdInteractiveAuthentication no\nAuthorizedKeysFile {}\n{}\n",
            self.port,
            self.authorized_keys().display(),
            self.more,
        );
        if !self.more.contains("SetEnv") {
            config += &format!("SetEnv HOME={}\n", self.home().display());
        }
        for kind in ["ed25519", "ecdsa", "rsa"] {
            let key = self.path(&format!("host_{kind}"));
            if key.exists() {
                config += &format!("HostKey {}\n", key.display());
            }
        }
        let file = self.path("sshd_config");
        fs::write(&file, config).unwrap();
        let log = fs::File::create(self.path("sshd.log")).unwrap();
        let mut command = match self.small {
            None => Command::new(program),
            Some(size) => {
                fs::create_dir_all(self.small()).unwrap();
                let mut command = Command::new("unshare");
                let mount = format!("mount -t tmpfs -o size={size} none '{}'", self.small().display());
                command.args(["-m", "sh", "-c", &format!("{mount} && exec \"$@\"")]).arg("sh").arg(program);
                command
            }
        };
        command.args(["-D", "-e", "-f"]).arg(file).stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
        self.child = Some(command.spawn().unwrap());
    }

    pub fn login(&self) -> Login {
        Login {
            endpoint: Endpoint {
                node: "worker".into(),
                host: "127.0.0.1".into(),
                port: self.port,
                user: "root".into(),
            },
            keys: vec![self.path("own")],
            known_hosts: KnownHosts::learning(self.path("known_hosts")),
            options: Options::default(),
            jump: None,
            proxy: None,
        }
    }

    pub fn session(&self) -> Session {
        self.session_of(&Cancel::new())
    }

    pub fn session_of(&self, cancel: &Cancel) -> Session {
        let result = p1::internals::ssh::wait_for(&self.login(), LONG, cancel, &mut |_| {});
        result.unwrap_or_else(|e| panic!("{e}\n{}", self.log()))
    }

    pub fn remote(&self) -> Remote {
        drop(self.session());
        Remote::new(self.login(), Cancel::new())
    }

    pub fn try_login(&self, key: &str) -> Result<Session, p1::internals::ssh::Error> {
        let mut login = self.login();
        login.keys = vec![self.path(key)];
        connect(&login, &Cancel::new())
    }

    pub fn log(&self) -> String {
        fs::read_to_string(self.path("sshd.log")).unwrap_or_default()
    }

    /// The processes that serve logged-in (or half logged-in) connections.
    pub fn connections(&self) -> Vec<Pid> {
        self.child.as_ref().map_or_else(Vec::new, |child| children(child.id()))
    }

    /// Signals them all.
    pub fn signal(&self, signal: Signal) {
        for pid in self.connections() {
            let _ = kill(pid, signal);
        }
    }

    pub fn end(&mut self) {
        if let Some(mut child) = self.child.take() {
            for pid in children(child.id()) {
                let _ = kill(pid, Signal::SIGKILL);
            }
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

impl Drop for Sshd {
    fn drop(&mut self) {
        self.end();
    }
}

fn children(parent: u32) -> Vec<Pid> {
    let processes = fs::read_dir("/proc").unwrap().flatten();
    let pids = processes.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    let ours = pids.filter(|pid| {
        // pid (name) state ppid ...
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        let after = stat.rsplit(')').next().unwrap_or_default();
        after.split_whitespace().nth(1) == Some(&parent.to_string())
    });
    ours.map(Pid::from_raw).collect()
}
