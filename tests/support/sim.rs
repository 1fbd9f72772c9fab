//! p1 among simulated machines (tests/sim): real sshd, real scripts, the k3s stand-in by its own
//! installer; no VM. Each [`Sim`] is a lab of its own, in namespaces that go with it.
//!
//! ```ignore
//! let sim = Sim::new(&spec(1, 1, ""));            // a server and a worker
//! sim.node("worker").fault("install-fail", "enable");
//! sim.p1(&["up"]).exits(1).says(&["stand-in fault"]);
//! sim.node("worker").heal();
//! sim.p1(&["retry"]).exits(0);
//! assert_eq!(sim.node("server").sh("systemctl is-active k3s").trim(), "active");
//! sim.node("worker").power_off();
//! ```

#![allow(dead_code)]

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::OnceLock;
use std::thread;
use std::time::{Duration, Instant};

use p1::internals::journal::{self, Record};
use serde_json::{Value, json};

use super::run::{Done, Running, until};

/// The cluster's name in specs of [`spec`].
pub const NAME: &str = "sim";

/// A spec of so many servers and workers: `server` (or `server-1`, ...), `worker` (or `worker-1`, ...),
/// at 192.168.56.110 and on. `more` is added to it; a `k3s:` in it takes the place of the usual one. Vagrant makes the
/// machines unless `more` says otherwise, or `P1_TEST_ENGINE` for all that it does not.
pub fn spec(servers: usize, workers: usize, more: &str) -> String {
    let nodes = |role: &str, count: usize, memory: u32, from: usize| -> String {
        let name = |i: usize| if count == 1 { role.to_owned() } else { format!("{role}-{}", i + 1) };
        let line = |i: usize| {
            let n = from + i;
            format!(
                "  - {{name: {}, role: {role}, ip: 192.168.{}.{}, cpus: 1, memory: {memory}}}\n",
                name(i),
                56 + n / 250,
                n % 250
            )
        };
        (0..count).map(line).collect()
    };
    let mut text = format!(
        "name: {NAME}\nprovider: libvirt\nbox: {{path: fake.box}}\nnetwork: {{cidr: 192.168.56.0/21}}\nnodes:\n{}{}",
        nodes("server", servers, 1024, 110),
        nodes("worker", workers, 512, 110 + servers)
    );
    if !more.contains("k3s:") {
        text += &format!("k3s: {{{K3S}}}\n");
    }
    if let Ok(engine) = std::env::var("P1_TEST_ENGINE")
        && !["engine:", "type: ansible"].iter().any(|key| more.contains(key))
    {
        text += &format!("engine: {engine}\n");
    }
    if !more.contains("retry:") {
        text += "retry: {attempts: 2, backoff: 200ms}\n";
    }
    text + more
}

/// For a `k3s:` of your own: the version and the files of the stand-in.
pub const K3S: &str = "version: v1.34.1+k3s1, artifacts: {binary: {path: k3s}, installer: {path: install.sh}, \
                       images: [{path: images.tar}]}";

pub struct Sim {
    pub dir: tempfile::TempDir,
    lab: Child,
    /// The lab ends when this does.
    line: Option<ChildStdin>,
    /// Variables for every p1.
    pub env: Vec<(String, String)>,
}

impl Sim {
    pub fn new(spec: &str) -> Self {
        assert!(nix::unistd::Uid::effective().is_root(), "namespaces need root");
        let programs = programs();
        let dir = tempfile::Builder::new().prefix("p1-sim-").tempdir().unwrap();
        lay_out(dir.path(), &programs);
        let mut command = Command::new("unshare");
        command.args(["--net", "--mount", "--propagation", "private"]).arg(programs.join("p1-sim"));
        command.arg("lab").arg(dir.path()).stdin(Stdio::piped()).stdout(Stdio::piped());
        command.stderr(fs::File::create(dir.path().join("lab.log")).unwrap());
        let mut lab = command.spawn().expect("unshare (package util-linux)");
        let mut word = String::new();
        BufReader::new(lab.stdout.take().unwrap()).read_line(&mut word).unwrap();
        let line = lab.stdin.take();
        let sim = Self { dir, lab, line, env: Vec::new() };
        assert_eq!(word, "ready\n", "{}", fs::read_to_string(sim.at("lab.log")).unwrap_or_default());
        sim.spec(spec);
        sim
    }

    pub fn at(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Another spec from now on.
    pub fn spec(&self, text: &str) {
        fs::write(self.at("cluster.yaml"), text).unwrap();
    }

    /// A command in the lab's host, where p1 runs.
    pub fn command(&self, program: impl AsRef<Path>) -> Command {
        let mut command = Command::new("nsenter");
        command.args(["--target", &self.lab.id().to_string(), "--net", "--mount"]);
        command.arg(format!("--wdns={}", self.dir.path().display())).arg(program.as_ref());
        let path = format!("{}:{}", self.at("bin").display(), std::env::var("PATH").unwrap());
        command.env_clear().env("PATH", path).env("HOME", self.at("home")).env("LC_ALL", "C.UTF-8");
        command.env("P1_SIM_DIR", self.dir.path()).envs(self.env.iter().cloned());
        command.stdin(Stdio::null());
        command
    }

    pub fn p1(&self, args: &[&str]) -> Done {
        self.start(args).end()
    }

    pub fn start(&self, args: &[&str]) -> Running {
        let mut command = self.command(env!("CARGO_BIN_EXE_p1"));
        command.args(args);
        Running::start(command, self.dir.path())
    }

    /// Does what p1 said was next.
    #[track_caller]
    pub fn follow(&self, done: &Done) -> Done {
        done.followed(&|args| self.p1(args), &|line| {
            self.sh(line);
        })
    }

    /// Runs a shell's lines on the lab's host.
    pub fn sh(&self, script: &str) -> String {
        let mut command = self.command("/bin/sh");
        output(command.args(["-euc", script]), script)
    }

    /// `virsh`, outside p1.
    pub fn virsh(&self, args: &[&str]) -> String {
        let mut command = self.command(self.at("bin/virsh"));
        output(command.args(args), &args.join(" "))
    }

    /// One question to the lab.
    fn ask(&self, request: &Value) -> Value {
        let mut stream = UnixStream::connect(self.at("sim.sock")).unwrap();
        writeln!(stream, "{request}").unwrap();
        let mut answer = String::new();
        BufReader::new(stream).read_line(&mut answer).unwrap();
        serde_json::from_str(&answer).unwrap()
    }

    /// libvirtd is gone (`false`: it is back).
    pub fn libvirt_is_deaf(&self, deaf: bool) {
        self.ask(&json!({"deaf": deaf}));
    }

    pub fn node(&self, name: &str) -> Node<'_> {
        Node { sim: self, name: name.to_owned() }
    }

    /// Every command line that vagrant was called by.
    pub fn calls(&self) -> Vec<String> {
        let text = fs::read_to_string(self.at("calls")).unwrap_or_default();
        text.lines().map(str::to_owned).collect()
    }

    /// The cluster's state folder.
    pub fn state(&self) -> PathBuf {
        self.at(".p1").join(NAME)
    }

    pub fn runs(&self) -> Vec<PathBuf> {
        journal::runs(&self.state().join("runs"))
    }

    /// The newest run that has a plan.
    pub fn last(&self) -> Record {
        journal::latest(&self.state().join("runs")).unwrap().expect("a run")
    }
}

impl Drop for Sim {
    fn drop(&mut self) {
        drop(self.line.take());
        let begun = Instant::now();
        while let Ok(None) = self.lab.try_wait() {
            if begun.elapsed() > Duration::from_secs(10) {
                let _ = self.lab.kill();
            }
            thread::park_timeout(Duration::from_millis(5));
        }
        if thread::panicking() {
            let consoles = fs::read_dir(self.at("console")).into_iter().flatten().flatten();
            let mut files: Vec<PathBuf> = consoles.map(|entry| entry.path()).collect();
            files.sort();
            for path in std::iter::once(self.at("lab.log")).chain(files) {
                let text = fs::read_to_string(&path).unwrap_or_default();
                if !text.is_empty() {
                    eprintln!("-- {}\n{text}", path.display());
                }
            }
        }
    }
}

/// A machine of the lab, there or not.
pub struct Node<'a> {
    sim: &'a Sim,
    name: String,
}

impl Node<'_> {
    fn domain(&self) -> String {
        format!("p1-{NAME}-{}", self.name)
    }

    /// Runs a shell's lines in the machine, as root, without SSH; it has to run, and they have to exit with 0.
    #[track_caller]
    pub fn sh(&self, script: &str) -> String {
        let pid = self.sim.ask(&json!({"init": self.name}))["pid"].as_i64().expect("it runs");
        let mut command = Command::new("nsenter");
        command.args([
            "--target",
            &pid.to_string(),
            "--mount",
            "--uts",
            "--ipc",
            "--net",
            "--pid",
            "--wdns=/",
        ]);
        command.args(["/bin/sh", "-euc", script]).env_clear().stdin(Stdio::null());
        command.env("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin");
        output(&mut command, script)
    }

    /// Lays the files of an archive into the machine.
    pub fn unpack(&self, archive: &Path) {
        let pid = self.sim.ask(&json!({"init": self.name}))["pid"].as_i64().expect("it runs");
        let mut command = Command::new("nsenter");
        command.args(["--target", &pid.to_string(), "--mount", "--wdns=/", "tar", "-x", "-C", "/"]);
        command.arg("--keep-directory-symlink").stdin(fs::File::open(archive).unwrap());
        output(&mut command, "tar");
    }

    /// `running`, `shut off`, `paused`, or empty if there is none.
    pub fn state(&self) -> String {
        let mut command = self.sim.command(self.sim.at("bin/virsh"));
        let out = command.args(["domstate", &self.domain()]).output().unwrap();
        String::from_utf8_lossy(&out.stdout).trim().to_owned()
    }

    /// Pulls its plug; its disk stays.
    pub fn power_off(&self) {
        self.sim.virsh(&["destroy", &self.domain()]);
    }

    /// Switches it on.
    pub fn power_on(&self) {
        self.sim.virsh(&["start", &self.domain()]);
    }

    /// Presses its button: it shuts itself down.
    pub fn shut_down(&self) {
        self.sim.virsh(&["shutdown", &self.domain()]);
        until("the machine is off", || self.state() == "shut off");
    }

    pub fn pause(&self) {
        self.sim.virsh(&["suspend", &self.domain()]);
    }

    pub fn resume(&self) {
        self.sim.virsh(&["resume", &self.domain()]);
    }

    /// Removes it with its disk, behind p1's back.
    pub fn destroy(&self) {
        if self.state() == "running" {
            self.power_off();
        }
        self.sim.virsh(&["undefine", &self.domain(), "--remove-all-storage"]);
    }

    /// A fault of the k3s stand-in (tests/standin/src/faults.rs); may be set before there is a machine.
    pub fn fault(&self, name: &str, value: &str) {
        let dir = self.sim.at("faults").join(&self.name);
        fs::create_dir_all(&dir).unwrap();
        fs::write(dir.join(name), value).unwrap();
    }

    /// Takes all faults of the stand-in away.
    pub fn heal(&self) {
        for entry in fs::read_dir(self.sim.at("faults").join(&self.name)).into_iter().flatten().flatten() {
            fs::remove_file(entry.path()).unwrap();
        }
    }

    /// Faults of the machine and of vagrant, a line `NAME[=VALUE]` each, in place of those before.
    /// A NAME with `-once` strikes once.
    ///
    /// - `no-address`: it boots without an address; `no-ssh`: without sshd (from its first boot on); `no-hotplug`: it
    ///   takes no disk while it runs.
    /// - `slow-WHEN=SECONDS`, `hang-WHEN`, `fail-WHEN=TEXT` (this machine's part of vagrant fails),
    ///   `exit-WHEN=CODE` (all of vagrant ends): WHEN is `begin`, `disk` (made), `domain` (defined, its
    ///   id not noted), `boot` (switched on), `end` (it answers), `destroy`, `provision`.
    pub fn vm_fault(&self, lines: &str) {
        fs::write(self.sim.at("vm-faults").join(&self.name), lines).unwrap();
    }
}

#[track_caller]
fn output(command: &mut Command, what: &str) -> String {
    let out = command.output().unwrap();
    let text = String::from_utf8_lossy(&out.stdout).into_owned();
    assert!(out.status.success(), "{what}\n{text}{}", String::from_utf8_lossy(&out.stderr));
    text
}

/// The folder with the stand-in's package and p1-sim, built if they are not there.
fn programs() -> PathBuf {
    static BUILT: OnceLock<PathBuf> = OnceLock::new();
    let build = || {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/sim/programs");
        PathBuf::from(output(&mut Command::new(script), "tests/sim/programs").trim())
    };
    BUILT.get_or_init(build).clone()
}

/// What a lab needs in its folder; `tests/sim/lab` does the same for people.
fn lay_out(dir: &Path, programs: &Path) {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/sim/lay-out");
    output(Command::new(script).arg(dir).arg(programs), "tests/sim/lay-out");
    assert!(dir.join("bin/vagrant").exists());
}
