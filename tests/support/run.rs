//! A p1 that a test runs: its end, its words, signals to it.

#![allow(dead_code)]

use std::fs;
use std::path::Path;
use std::process::{Child, Command, Output};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use p1::internals::event::{Event, Kind};
use p1::internals::journal::Record;

/// What no test should come near to.
pub const LONG: Duration = Duration::from_secs(150);

pub struct Running {
    pub child: Child,
    stdout: tempfile::NamedTempFile,
    stderr: tempfile::NamedTempFile,
}

impl Running {
    /// Starts it with its output in files in `dir`.
    pub fn start(mut command: Command, dir: &Path) -> Self {
        let log = |name: &str| {
            let file = tempfile::Builder::new().prefix(name).tempfile_in(dir).unwrap();
            (file.reopen().unwrap(), file)
        };
        let ((out, stdout), (err, stderr)) = (log("stdout"), log("stderr"));
        let child = command.stdout(out).stderr(err).spawn().unwrap();
        Self { child, stdout, stderr }
    }

    pub fn pid(&self) -> Pid {
        Pid::from_raw(i32::try_from(self.child.id()).unwrap())
    }

    pub fn signal(&self, signal: Signal) {
        kill(self.pid(), signal).unwrap();
    }

    pub fn stderr(&self) -> String {
        fs::read_to_string(self.stderr.path()).unwrap()
    }

    pub fn stdout(&self) -> String {
        fs::read_to_string(self.stdout.path()).unwrap()
    }

    /// Until it wrote anything to standard output.
    pub fn until_printed(&self) {
        until("it prints", || fs::metadata(self.stdout.path()).is_ok_and(|m| m.len() > 0));
    }

    pub fn until_said(&self, word: &str) {
        until(word, || self.stderr().contains(word));
    }

    pub fn end(mut self) -> Done {
        let begun = Instant::now();
        let status = loop {
            match self.child.try_wait().unwrap() {
                Some(status) => break status,
                None if begun.elapsed() > LONG => {
                    let text = self.stderr();
                    self.child.kill().unwrap();
                    self.child.wait().unwrap();
                    panic!("p1 does not end:\n{text}");
                }
                None => thread::park_timeout(Duration::from_millis(10)),
            }
        };
        let read = |file: &tempfile::NamedTempFile| fs::read(file.path()).unwrap();
        Done(Output { status, stdout: read(&self.stdout), stderr: read(&self.stderr) })
    }
}

impl Drop for Running {
    /// A test that failed half-way leaves no p1 and no vagrant of its behind.
    fn drop(&mut self) {
        let begun = Instant::now();
        while let Ok(None) = self.child.try_wait() {
            if begun.elapsed() > Duration::from_secs(20) {
                let _ = self.child.kill();
            }
            self.signal(Signal::SIGTERM);
            thread::park_timeout(Duration::from_millis(100));
        }
    }
}

pub struct Done(pub Output);

impl Done {
    pub fn stdout(&self) -> String {
        String::from_utf8_lossy(&self.0.stdout).into_owned()
    }

    pub fn stderr(&self) -> String {
        String::from_utf8_lossy(&self.0.stderr).into_owned()
    }

    #[track_caller]
    pub fn exits(self, code: i32) -> Self {
        assert_eq!(self.0.status.code(), Some(code), "{}{}{}", self.stdout(), self.stderr(), self.logs());
        self
    }

    /// What p1 itself says is to be done next: the commands of its `next:` line.
    #[track_caller]
    pub fn next(&self) -> Vec<String> {
        let text = self.stderr();
        let line = text.lines().rev().find_map(|l| l.strip_prefix("next: "));
        let line = line.unwrap_or_else(|| panic!("p1 does not say what is next:\n{text}"));
        line.split(" && ").map(str::to_owned).collect()
    }

    /// Does as p1 says, with `run` for its own verbs and `sh` for other commands: the last one's end. What
    /// mends a host (`p1 doctor --fix`) is the test's, which plays the host.
    #[track_caller]
    pub fn followed(&self, run: &dyn Fn(&[&str]) -> Done, sh: &dyn Fn(&str)) -> Done {
        let mut last = None;
        for command in self.next() {
            let words = shlex::split(&command).unwrap();
            let words: Vec<&str> = words.iter().map(String::as_str).collect();
            match &words[..] {
                ["p1", "doctor", "--fix"] => {}
                ["p1", args @ ..] => {
                    if let Some(done) = last.replace(run(&[&["--yes"], args].concat())) {
                        done.exits(0);
                    }
                }
                _ => sh(&command),
            }
        }
        last.unwrap_or_else(|| panic!("no verb of p1 leads on:\n{}", self.stderr()))
    }

    /// The logs that p1 named: they go with their folder.
    fn logs(&self) -> String {
        let named = |line: &str| line.trim().strip_prefix("log ").map(|path| path.trim().to_owned());
        let read = |path: String| Some(format!("-- {path}\n{}\n", fs::read_to_string(&path).ok()?));
        self.stderr().lines().filter_map(named).filter_map(read).collect()
    }

    #[track_caller]
    pub fn says(self, words: &[&str]) -> Self {
        let text = self.stderr();
        for word in words {
            assert!(text.contains(word), "`{word}` is not in\n{text}");
        }
        self
    }
}

/// Waits for a condition.
#[track_caller]
pub fn until(what: &str, condition: impl Fn() -> bool) {
    let begun = Instant::now();
    while !condition() {
        assert!(begun.elapsed() < LONG, "waited in vain: {what}");
        thread::park_timeout(Duration::from_millis(10));
    }
}

/// True if there is no such process any more, or only its name until somebody collects it.
pub fn gone(pid: Pid) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit(')').next().is_none_or(|rest| rest.trim_start().starts_with(['Z', 'X']) || rest.is_empty())
}

/// The steps that began in a run, once for each attempt.
pub fn began(record: &Record) -> Vec<String> {
    let step = |e: &Event| match &e.kind {
        Kind::StepStarted { step, .. } => Some(step.clone()),
        _ => None,
    };
    record.events.iter().filter_map(step).collect()
}
