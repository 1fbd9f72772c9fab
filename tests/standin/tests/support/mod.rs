//! Stand-in processes below temporary roots, on loopback only.
#![allow(dead_code)] // Each test file uses a part of it.

use std::fs;
use std::io::Write as _;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::time::{Duration, Instant};

pub const BINARY: &str = env!("CARGO_BIN_EXE_k3s-standin");
const LIMIT: Duration = Duration::from_secs(30);

/// Looks again and again until `look` finds something. Panics with `what` when it takes too long.
pub fn until<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let end = Instant::now() + LIMIT;
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(Instant::now() < end, "timed out: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

pub fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

/// A machine: a root directory that outlives the processes started in it.
pub struct Machine {
    pub root: tempfile::TempDir,
}

impl Machine {
    pub fn new() -> Self {
        Machine { root: tempfile::tempdir().unwrap() }
    }

    pub fn path(&self, absolute: &str) -> PathBuf {
        self.root.path().join(absolute.trim_start_matches('/'))
    }

    pub fn read(&self, absolute: &str) -> String {
        fs::read_to_string(self.path(absolute)).unwrap_or_default()
    }

    pub fn write(&self, absolute: &str, text: &str) {
        let path = self.path(absolute);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::File::create(path).unwrap().write_all(text.as_bytes()).unwrap();
    }

    pub fn remove(&self, absolute: &str) {
        fs::remove_file(self.path(absolute)).unwrap();
    }

    pub fn command(&self) -> Command {
        let mut command = Command::new(BINARY);
        command.env_clear().env("PATH", std::env::var("PATH").unwrap());
        command.env("K3S_STANDIN_ROOT", self.root.path());
        for (name, value) in [
            ("HEARTBEAT", "0.2"),
            ("GRACE", "1.5"),
            ("READY_DELAY", "0.1"),
            ("VALIDATE_RETRY", "0.1"),
            ("CONFIG_RETRY", "0.1"),
            ("CONTROLLER_PERIOD", "0.05"),
            ("KUBELET_PORT", "0"),
        ] {
            command.env(format!("K3S_STANDIN_{name}"), value);
        }
        command
    }

    pub fn start(&self, arguments: &[&str]) -> Process {
        self.start_with(arguments, &[])
    }

    pub fn start_with(&self, arguments: &[&str], variables: &[(&str, &str)]) -> Process {
        let log = self.path(&format!("{}.log", arguments[0]));
        let file = fs::OpenOptions::new().create(true).append(true).open(&log).unwrap();
        let mut command = self.command();
        command.args(arguments).envs(variables.iter().copied());
        let child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(file).spawn().unwrap();
        Process { child, log }
    }

    pub fn kubectl(&self, arguments: &[&str]) -> Output {
        self.command().arg("kubectl").args(arguments).output().unwrap()
    }

    /// Standard output of a `kubectl` that has to succeed.
    pub fn ask(&self, arguments: &[&str]) -> String {
        let output = self.kubectl(arguments);
        assert!(
            output.status.success(),
            "kubectl {arguments:?}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        String::from_utf8(output.stdout).unwrap()
    }

    pub fn server(&self, port: u16, token: &str) -> Process {
        let port = port.to_string();
        let mut arguments =
            vec!["server", "--bind-address=127.0.0.1", "--node-ip=127.0.0.1", "--node-name=server"];
        arguments.extend(["--https-listen-port", &port]);
        // No variable at all, rather than an empty one: the token is to be generated or kept.
        let variables: Vec<_> = [("K3S_TOKEN", token)].into_iter().filter(|(_, v)| !v.is_empty()).collect();
        self.start_with(&arguments, &variables)
    }

    pub fn agent(&self, port: u16, name: &str, token: &str) -> Process {
        let url = format!("https://127.0.0.1:{port}");
        let name = format!("--node-name={name}");
        self.start_with(&["agent", "--node-ip=127.0.0.1", &name], &[("K3S_URL", &url), ("K3S_TOKEN", token)])
    }

    /// The Ready condition's status and reason, once the API answers and has the node.
    pub fn ready(&self, node: &str) -> Option<(String, String)> {
        let output = self.kubectl(&["get", "node", node, "-o", "json"]);
        let node: serde_json::Value = serde_json::from_slice(&output.stdout).ok()?;
        let condition = node["status"]["conditions"].as_array()?.iter().find(|c| c["type"] == "Ready")?;
        Some((condition["status"].as_str()?.into(), condition["reason"].as_str()?.into()))
    }

    pub fn until_ready(&self, node: &str, wanted: &str) -> String {
        until(&format!("{node} Ready={wanted}"), || self.ready(node).filter(|(s, _)| s == wanted)).1
    }
}

/// A running stand-in; killed by its own pid when the test is done with it.
pub struct Process {
    child: Child,
    log: PathBuf,
}

impl Process {
    pub fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    pub fn until_logged(&self, text: &str) {
        let last = || self.log();
        let end = Instant::now() + LIMIT;
        while !last().contains(text) {
            assert!(Instant::now() < end, "not logged: {text}\n{}", last());
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    pub fn until_exit(&mut self) -> ExitStatus {
        until("the process to end", || self.child.try_wait().unwrap())
    }

    pub fn is_running(&mut self) -> bool {
        self.child.try_wait().unwrap().is_none()
    }

    pub fn terminate(mut self) -> ExitStatus {
        let done = Command::new("kill").arg(self.child.id().to_string()).status().unwrap();
        assert!(done.success());
        self.until_exit()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

pub fn mode(path: &Path) -> u32 {
    use std::os::unix::fs::PermissionsExt as _;
    fs::metadata(path).unwrap().permissions().mode() & 0o7777
}
