//! This program once more, as a process of its own that outlives this one: in a session of its own, without a terminal.
//! It is there as long as it holds its lock, which the kernel frees with it.

use std::ffi::OsString;
use std::fs::OpenOptions;
use std::io::{BufRead, BufReader};
use std::os::fd::AsFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use nix::fcntl::{OFlag, open};
use nix::sys::stat::Mode;
use nix::unistd::{dup2_stdout, setsid};

use super::files::{self, At};
use super::lock;

/// What it says when it holds its lock.
const READY: &str = "ready";
/// By then it has said so: it starts nothing before.
const START: Duration = Duration::from_secs(10);

/// How it is started.
#[derive(Clone, Debug, Default)]
pub struct Apart {
    /// Its arguments; without any, there is nothing to be started.
    pub args: Vec<OsString>,
    /// The lock that it holds.
    pub lock: PathBuf,
    /// Where its standard error goes.
    pub log: PathBuf,
}

impl Apart {
    /// Whether it is there.
    pub fn lives(&self) -> bool {
        lock::holder(&self.lock).is_some()
    }

    /// Starts it, unless it is there, and waits until it works.
    ///
    /// # Errors
    /// If it cannot be started, or does not say that it is ready.
    pub fn ensure(&self) -> Result<(), files::Error> {
        if self.args.is_empty() || self.lives() {
            return Ok(());
        }
        let mut options = OpenOptions::new();
        let log = options.append(true).create(true).mode(0o600).open(&self.log).at("open", &self.log)?;
        let program = std::env::current_exe().at("find", Path::new("/proc/self/exe"))?;
        let mut command = Command::new(&program);
        command.args(&self.args).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(log);
        let mut child = command.spawn().at("start", &program)?;
        let (sender, heard) = mpsc::channel();
        let mut said = BufReader::new(child.stdout.take().expect("piped"));
        thread::spawn(move || {
            let mut line = String::new();
            let _ = said.read_line(&mut line);
            let _ = sender.send(line);
        });
        // Another p1 may have started one meanwhile: then this one has ended.
        match heard.recv_timeout(START) {
            Ok(line) if line.trim() == READY => Ok(()),
            _ if self.lives() => Ok(()),
            _ => {
                let _ = child.kill();
                let _ = child.wait();
                Err(std::io::Error::other("it does not begin")).at("start", &program)
            }
        }
    }
}

/// For the process itself: from here on it is alone, whatever becomes of who started it.
pub fn leave() {
    // It fails for the first of a group, which is in nobody's way either.
    let _ = setsid();
}

/// For the process itself: it holds its lock, and whoever started it may go on.
pub fn ready() {
    use std::io::Write;
    let _ = writeln!(std::io::stdout(), "{READY}");
    // What is printed later has no reader.
    if let Ok(nothing) = open("/dev/null", OFlag::O_WRONLY, Mode::empty()) {
        let _ = dup2_stdout(nothing.as_fd());
    }
}
