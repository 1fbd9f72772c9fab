//! Running other programs: in a process group of their own, bounded, cancellable, line by line.

use std::cell::Cell;
use std::ffi::{OsStr, OsString};
use std::io::{self, Read, Write};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError, SyncSender};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;

use super::cancel::Cancel;
use super::lines::Lines;
use crate::explain::{Again, Explain, FailureKind};

/// How long a program gets between the signals INT, TERM and KILL when it has to end.
const GRACE: Duration = Duration::from_secs(3);
/// How long a pipe may stay open and silent after its program ended: a grandchild may hold it for ever.
const DRAIN: Duration = Duration::from_millis(500);
/// And how long while something still comes.
const REST_OF_OUTPUT: Duration = Duration::from_secs(10);
/// Of what a program writes to a pipe, at least so many of the last bytes are kept.
const KEEP: usize = 8 << 20;
/// Read from a pipe at once.
const CHUNK: usize = 64 << 10;
/// Lines that wait to be taken; then the program waits.
const QUEUE: usize = 1024;
/// A program is looked at so often, however much it says.
const LOOK: Duration = Duration::from_millis(25);
/// And at first, and when it has closed its pipes: most end right after that.
const SOON: Duration = Duration::from_millis(1);
/// How long the rest of a group gets between TERM and KILL when its leader has ended.
const REST: Duration = Duration::from_secs(2);

/// A command line to be.
#[derive(Clone, Debug)]
pub struct Cmd {
    program: PathBuf,
    args: Vec<OsString>,
    env: Vec<(OsString, Option<OsString>)>,
    cwd: Option<PathBuf>,
    stdin: Vec<u8>,
    held: Option<PathBuf>,
    grace: Duration,
}

impl Cmd {
    /// `program` is a path, or a name to be found on PATH.
    pub fn new(program: impl Into<PathBuf>) -> Self {
        Self {
            program: program.into(),
            args: Vec::new(),
            env: Vec::new(),
            cwd: None,
            stdin: Vec::new(),
            held: None,
            grace: GRACE,
        }
    }

    /// One more argument.
    #[must_use]
    pub fn arg(mut self, arg: impl AsRef<OsStr>) -> Self {
        self.args.push(arg.as_ref().to_owned());
        self
    }

    /// More arguments.
    #[must_use]
    pub fn args<S: AsRef<OsStr>>(mut self, args: impl IntoIterator<Item = S>) -> Self {
        self.args.extend(args.into_iter().map(|a| a.as_ref().to_owned()));
        self
    }

    /// Sets a variable of the program's environment.
    #[must_use]
    pub fn env(mut self, key: impl AsRef<OsStr>, value: impl AsRef<OsStr>) -> Self {
        self.env.push((key.as_ref().to_owned(), Some(value.as_ref().to_owned())));
        self
    }

    /// Takes a variable away from the program's environment.
    #[must_use]
    pub fn env_remove(mut self, key: impl AsRef<OsStr>) -> Self {
        self.env.push((key.as_ref().to_owned(), None));
        self
    }

    /// The folder to run in.
    #[must_use]
    pub fn cwd(mut self, dir: impl Into<PathBuf>) -> Self {
        self.cwd = Some(dir.into());
        self
    }

    /// What the program reads; without this it reads nothing (never the terminal: a program in
    /// another process group that reads it is stopped by SIGTTIN).
    #[must_use]
    pub fn stdin(mut self, bytes: impl Into<Vec<u8>>) -> Self {
        self.stdin = bytes.into();
        self
    }

    /// Has the program read the file at `path`, which is empty: a later p1 finds it by that, should
    /// this one be killed ([`super::orphan`]).
    #[must_use]
    pub fn held_by(mut self, path: impl Into<PathBuf>) -> Self {
        self.held = Some(path.into());
        self
    }

    /// How long the program gets after INT, and again after TERM, before it is killed.
    #[must_use]
    pub fn grace(mut self, grace: Duration) -> Self {
        self.grace = grace;
        self
    }

    /// The command line as a shell would take it, for people to read and repeat.
    pub fn line(&self) -> String {
        let mut words = Vec::new();
        for (key, value) in &self.env {
            if let Some(value) = value {
                words.push(format!("{}={}", key.to_string_lossy(), quote(&value.to_string_lossy())));
            }
        }
        words.push(quote(&self.program.to_string_lossy()));
        words.extend(self.args.iter().map(|a| quote(&a.to_string_lossy())));
        words.join(" ")
    }

    fn name(&self) -> String {
        Path::new(&self.program).file_name().unwrap_or_default().to_string_lossy().into_owned()
    }

    fn command(&self) -> Command {
        let mut command = Command::new(&self.program);
        command.args(&self.args).process_group(0);
        for (key, value) in &self.env {
            match value {
                Some(value) => command.env(key, value),
                None => command.env_remove(key),
            };
        }
        if let Some(dir) = &self.cwd {
            command.current_dir(dir);
        }
        command
    }
}

/// Quotes `word` for a POSIX shell where it needs it.
pub fn quote(word: &str) -> String {
    shlex::try_quote(word).map_or_else(|_| "''".to_owned(), |w| w.into_owned())
}

/// The same for a word that need not be UTF-8, as bash and its kin read it.
pub fn quote_os(word: &OsStr) -> String {
    use std::os::unix::ffi::OsStrExt;
    match word.to_str() {
        Some(text) => quote(text),
        None => {
            let bytes = word.as_bytes().iter();
            let part = |b: &u8| match b {
                b'\'' | b'\\' => format!("\\{}", char::from(*b)),
                b' '..=b'~' => char::from(*b).to_string(),
                b => format!("\\x{b:02x}"),
            };
            format!("$'{}'", bytes.map(part).collect::<String>())
        }
    }
}

/// Words as one line of a POSIX shell that means them as they are. A single word is a line already, as
/// with `ssh` and `sh -c`.
pub fn shell_line(words: &[String]) -> String {
    match words {
        [line] => line.clone(),
        words => words.iter().map(|w| quote(w)).collect::<Vec<_>>().join(" "),
    }
}

/// Which pipe a line came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stream {
    /// Standard output.
    Out,
    /// Standard error.
    Err,
}

/// A program that ended by itself.
#[derive(Clone, Debug)]
pub struct Finished {
    /// The name of the program.
    pub program: String,
    pub line: String,
    pub status: ExitStatus,
    /// All it wrote to standard output; of very much, the end.
    pub stdout: String,
    /// All it wrote to standard error; of very much, the end.
    pub stderr: String,
}

impl Finished {
    /// True if it exited with 0.
    pub fn success(&self) -> bool {
        self.status.success()
    }

    /// Itself when it succeeded, an error with its last words otherwise.
    pub fn ok(self) -> Result<Self, Error> {
        if self.success() {
            return Ok(self);
        }
        let words = if self.stderr.trim().is_empty() { &self.stdout } else { &self.stderr };
        Err(Error::Failed {
            how: match (self.status.code(), self.status.signal()) {
                (Some(code), _) => How::Exited(code),
                (None, Some(signal)) => How::Killed(signal),
                (None, None) => How::Ended,
            },
            tail: tail(words, 12),
            program: self.program,
            line: self.line,
        })
    }
}

/// The last `n` lines of `text` that say something; what is said again and again is one of them.
pub fn tail(text: &str, n: usize) -> Vec<String> {
    let mut last: Vec<(&str, usize)> = Vec::new();
    for line in text.lines().rev().filter(|l| !l.trim().is_empty()) {
        let full = last.len() == n;
        match last.last_mut() {
            Some((same, times)) if *same == line => *times += 1,
            _ if full => break,
            _ => last.push((line, 1)),
        }
    }
    let told = |(line, times): (&str, usize)| match times {
        1 => line.to_owned(),
        times => format!("{line} ({times} times)"),
    };
    last.into_iter().rev().map(told).collect()
}

/// How a program ended that did not succeed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum How {
    /// By itself, with this status.
    Exited(i32),
    /// By a signal.
    Killed(i32),
    /// In a way that the system does not tell.
    Ended,
}

impl std::fmt::Display for How {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Exited(code) => write!(f, "exited with {code}"),
            Self::Killed(signal) => write!(f, "was killed by signal {signal}"),
            Self::Ended => f.write_str("ended"),
        }
    }
}

impl From<How> for FailureKind {
    fn from(how: How) -> Self {
        match how {
            How::Exited(code) => Self::Exit { code },
            How::Killed(signal) => {
                let name = Signal::try_from(signal).map_or_else(|_| signal.to_string(), |s| s.to_string());
                Self::Signal { name: name.trim_start_matches("SIG").to_owned() }
            }
            How::Ended => Self::Other,
        }
    }
}

/// Why a program did not do its work.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// It is not there.
    #[error("`{program}` is not installed, or not on PATH")]
    Missing { program: String },
    /// It could not be started.
    #[error("cannot start `{program}`: {source}")]
    Start {
        program: String,
        /// Why.
        source: io::Error,
    },
    /// It exited with another status than 0.
    #[error("`{program}` {how}")]
    Failed {
        program: String,
        /// How it ended.
        how: How,
        /// Its whole command line.
        line: String,
        tail: Vec<String>,
    },
    /// It ran longer than it may.
    #[error("`{program}` did not end within {}", crate::explain::seconds(*bound))]
    Deadline {
        program: String,
        /// What it was given.
        bound: Duration,
        tail: Vec<String>,
    },
    /// The user ended it.
    #[error("`{program}` was interrupted")]
    Cancelled { program: String },
}

impl Explain for Error {
    fn hint(&self) -> Option<String> {
        match self {
            Self::Missing { .. } => Some(
                "`p1 doctor --fix` gets what this host lacks, and says what it would run before.".to_owned(),
            ),
            Self::Failed { line, .. } => Some(format!("The command was: {line}")),
            _ => None,
        }
    }

    fn evidence(&self) -> Vec<String> {
        match self {
            Self::Failed { tail, .. } | Self::Deadline { tail, .. } => tail.clone(),
            _ => Vec::new(),
        }
    }

    fn kind(&self) -> FailureKind {
        match self {
            Self::Missing { .. } => FailureKind::Cannot,
            Self::Start { source, .. } => source.into(),
            Self::Failed { how, .. } => (*how).into(),
            Self::Deadline { bound, .. } => FailureKind::bound(*bound),
            Self::Cancelled { .. } => FailureKind::Other,
        }
    }

    fn again(&self) -> Again {
        match self {
            Self::Cancelled { .. } => Again::Cancelled,
            _ => Again::No,
        }
    }

    fn unready(&self) -> bool {
        matches!(self, Self::Missing { .. })
    }
}

/// Runs `cmd` to its end, at most for `bound`, and keeps what it wrote.
pub fn run(cmd: &Cmd, bound: Duration, cancel: &Cancel) -> Result<Finished, Error> {
    watch(cmd, bound, cancel, &mut |_, _| {})
}

/// [`run()`], handing over each line when it is complete. An abort, or the bound, ends the
/// program's whole process group by INT, TERM and KILL.
pub fn watch(
    cmd: &Cmd,
    bound: Duration,
    cancel: &Cancel,
    on_line: &mut dyn FnMut(Stream, &str),
) -> Result<Finished, Error> {
    let program = cmd.name();
    let mut command = cmd.command();
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    // Without the folder of the file there is nothing that a later p1 could find.
    let held = cmd.held.as_ref().and_then(|path| super::orphan::hold(path).ok());
    command.stdin(match held {
        Some(file) => Stdio::from(file),
        None if cmd.stdin.is_empty() => Stdio::null(),
        None => Stdio::piped(),
    });
    let start = Instant::now();
    let mut child = command.spawn().map_err(|source| match source.kind() {
        io::ErrorKind::NotFound => Error::Missing { program: program.clone() },
        _ => Error::Start { program: program.clone(), source },
    })?;
    // The program alone keeps its input open.
    drop(command);
    if let Some(mut pipe) = child.stdin.take() {
        let bytes = cmd.stdin.clone();
        // On a thread: a program that does not read must not block us. It may close early, too.
        thread::spawn(move || pipe.write_all(&bytes));
    }
    let (lines, received) = mpsc::sync_channel(QUEUE);
    pump(child.stdout.take().expect("piped"), Stream::Out, lines.clone());
    pump(child.stderr.take().expect("piped"), Stream::Err, lines);

    let mut running = Running { child, ending: None, grace: cmd.grace };
    let (mut stdout, mut stderr) = (String::new(), String::new());
    let mut take = |stream: Stream, text: &str| {
        let all = if stream == Stream::Out { &mut stdout } else { &mut stderr };
        all.push_str(text);
        all.push('\n');
        if all.len() > 2 * KEEP {
            let cut = (all.len() - KEEP..).find(|at| all.is_char_boundary(*at)).unwrap_or(0);
            all.drain(..cut);
        }
        on_line(stream, text);
    };
    let mut why: Option<Error> = None;
    let (mut pause, mut closed) = (SOON, false);
    let mut looked = Instant::now();
    let status = loop {
        match received.recv_timeout(pause) {
            Ok((stream, text)) => {
                take(stream, &text);
                // One that never stops talking has its bound too.
                if looked.elapsed() < LOOK {
                    continue;
                }
            }
            Err(RecvTimeoutError::Timeout) => {}
            // Both pipes are closed: it is about to end, or it closed them on purpose.
            Err(RecvTimeoutError::Disconnected) => {
                if !closed {
                    (closed, pause) = (true, SOON);
                }
                thread::sleep(pause);
            }
        }
        pause = (pause * 2).min(LOOK);
        looked = Instant::now();
        let ended = running.child.try_wait();
        match ended {
            Ok(Some(status)) => break status,
            Ok(None) => {}
            Err(source) => return Err(Error::Start { program, source }),
        }
        if why.is_none() {
            if cancel.aborted() {
                why = Some(Error::Cancelled { program: program.clone() });
            } else if start.elapsed() > bound {
                why = Some(Error::Deadline { program: program.clone(), bound, tail: Vec::new() });
            }
        }
        if why.is_some() {
            running.end();
        }
    };
    if why.is_some() {
        running.end_the_rest();
    }
    let end = Instant::now() + REST_OF_OUTPUT;
    while let Some(left) = end.checked_duration_since(Instant::now()) {
        let Ok((stream, text)) = received.recv_timeout(left.min(DRAIN)) else { break };
        take(stream, &text);
    }
    match why {
        Some(Error::Deadline { program, bound, .. }) => {
            let words = if stderr.trim().is_empty() { &stdout } else { &stderr };
            Err(Error::Deadline { program, bound, tail: tail(words, 12) })
        }
        Some(error) => Err(error),
        None => Ok(Finished { program, line: cmd.line(), status, stdout, stderr }),
    }
}

/// Gives the program our terminal and waits for it: for `ssh` and the like, where a person types.
/// It stays in our process group, so that Ctrl-C reaches it.
pub fn hand_over(cmd: &Cmd) -> Result<ExitStatus, Error> {
    handed_over(cmd, None)
}

/// The same where nobody sees the terminal: what the program writes goes to `out`, until that fails. Some
/// programs, ssh among them, do not tell that their output was lost.
pub fn relay(cmd: &Cmd, out: &mut dyn Write) -> Result<ExitStatus, Error> {
    handed_over(cmd, Some(out))
}

fn handed_over(cmd: &Cmd, out: Option<&mut dyn Write>) -> Result<ExitStatus, Error> {
    let mut command = Command::new(&cmd.program);
    command.args(&cmd.args);
    for (key, value) in &cmd.env {
        match value {
            Some(value) => command.env(key, value),
            None => command.env_remove(key),
        };
    }
    let program = cmd.name();
    let run = || match out {
        None => command.status(),
        Some(out) => {
            let mut child = command.stdout(Stdio::piped()).spawn()?;
            // Closed when nobody takes it any more: the program ends by that, as it would alone.
            let _ = child.stdout.take().map(|mut pipe| io::copy(&mut pipe, out));
            child.wait()
        }
    };
    run().map_err(|source| match source.kind() {
        io::ErrorKind::NotFound => Error::Missing { program },
        _ => Error::Start { program, source },
    })
}

struct Running {
    child: Child,
    ending: Option<(Signal, Instant)>,
    grace: Duration,
}

impl Running {
    /// The next signal, when its time has come.
    fn end(&mut self) {
        let next = match self.ending {
            None => Signal::SIGINT,
            Some((_, since)) if since.elapsed() < self.grace => return,
            Some((Signal::SIGINT, _)) => Signal::SIGTERM,
            Some(_) => Signal::SIGKILL,
        };
        // It may have ended in this very moment.
        let _ = killpg(self.group(), next);
        self.ending = Some((next, Instant::now()));
    }

    /// Those of the group that outlived their leader: a shell starts its background commands with
    /// INT ignored.
    fn end_the_rest(&self) {
        let end = Instant::now() + self.grace.min(REST);
        if killpg(self.group(), Signal::SIGTERM).is_err() {
            return;
        }
        while Instant::now() < end {
            // Fails when there is nobody left.
            if killpg(self.group(), None).is_err() {
                return;
            }
            thread::sleep(Duration::from_millis(10));
        }
        let _ = killpg(self.group(), Signal::SIGKILL);
    }

    fn group(&self) -> Pid {
        Pid::from_raw(i32::try_from(self.child.id()).expect("a pid fits"))
    }
}

fn pump(mut pipe: impl Read + Send + 'static, stream: Stream, lines: SyncSender<(Stream, String)>) {
    thread::spawn(move || {
        let mut chunk = vec![0; CHUNK];
        // When nobody listens any more, a grandchild may go on for ever.
        let (mut cut, heard) = (Lines::default(), Cell::new(true));
        let mut tell = |line: &str| heard.set(heard.get() && lines.send((stream, line.to_owned())).is_ok());
        while heard.get() {
            match pipe.read(&mut chunk) {
                Ok(n) if n > 0 => cut.push(&chunk[..n], &mut tell),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                _ => break,
            }
        }
        cut.finish(&mut tell);
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::os::cancel::Level;

    fn sh(script: &str) -> Cmd {
        Cmd::new("sh").arg("-c").arg(script)
    }

    #[test]
    fn keeps_both_pipes_and_the_status() {
        let cancel = Cancel::new();
        let cmd = sh("cat; echo bad >&2; exit 3").stdin("in\n");
        let done = run(&cmd, Duration::from_secs(10), &cancel).unwrap();
        assert_eq!((done.stdout.as_str(), done.stderr.as_str()), ("in\n", "bad\n"));
        let error = done.ok().unwrap_err();
        assert_eq!(error.to_string(), "`sh` exited with 3");
        assert_eq!(error.evidence(), ["bad"]);
    }

    #[test]
    fn the_last_words_say_each_thing_once() {
        let text = "begun\nwaiting\n\nwaiting\nwaiting\nno\nwaiting\n";
        assert_eq!(tail(text, 3), ["waiting (3 times)", "no", "waiting"]);
        assert_eq!(tail(text, 9)[0], "begun");
        assert_eq!(tail(&"the same\n".repeat(40), 12), ["the same (40 times)"]);
        assert_eq!(tail("a\nb\n", 0), [""; 0]);
    }

    #[test]
    fn a_deadline_ends_the_whole_group_even_if_it_ignores_int() {
        let cancel = Cancel::new();
        let cmd = sh("trap '' INT TERM; echo begun; sleep 1000 & wait").grace(Duration::from_millis(50));
        let start = Instant::now();
        let error = run(&cmd, Duration::from_millis(200), &cancel).unwrap_err();
        assert!(matches!(&error, Error::Deadline { tail, .. } if tail == &["begun"]), "{error}");
        assert!(start.elapsed() < Duration::from_secs(10));
    }

    /// It is always about to say more, and what it says would fill any memory.
    #[test]
    fn a_program_that_never_stops_talking_has_its_bound() {
        let start = Instant::now();
        for script in ["yes", "yes >&2", "tr '\\0' x </dev/zero", "trap '' INT; yes & yes"] {
            let (mut lines, mut longest) = (0, 0);
            let cmd = sh(script).grace(Duration::from_millis(100));
            let error = watch(&cmd, Duration::from_millis(300), &Cancel::new(), &mut |_, line| {
                (lines, longest) = (lines + 1, longest.max(line.len()));
            });
            assert!(matches!(error.unwrap_err(), Error::Deadline { .. }), "{script}");
            assert!(lines > 0 && longest <= 1 << 20, "{script}: {lines} lines, one of {longest}");
        }
        assert!(start.elapsed() < Duration::from_secs(60), "{:?}", start.elapsed());
        let much = run(
            &sh("head -c 40000000 /dev/zero | tr '\\0' y; echo end"),
            Duration::from_secs(60),
            &Cancel::new(),
        );
        let much = much.unwrap().stdout;
        assert!(much.ends_with("end\n") && (8 << 20..18 << 20).contains(&much.len()), "{}", much.len());
    }

    #[test]
    fn an_abort_ends_a_grandchild_that_outlives_its_parent() {
        let cancel = Cancel::new();
        let mut pid = None;
        // Without job control a shell's background command ignores INT, and the shell does not.
        let cmd = sh("sleep 1000 & echo $!; wait").grace(Duration::from_millis(200));
        let error = watch(&cmd, Duration::from_secs(60), &cancel, &mut |_, line| {
            pid = line.parse::<u32>().ok();
            cancel.raise(Level::Abort);
        });
        assert!(error.unwrap_err().cancelled());
        let stat = format!("/proc/{}/stat", pid.expect("its pid"));
        let running = || std::fs::read_to_string(&stat).is_ok_and(|s| !s.contains(") Z "));
        let end = Instant::now() + Duration::from_secs(5);
        while running() && Instant::now() < end {
            thread::yield_now();
        }
        assert!(!running());
    }

    #[test]
    fn an_abort_ends_it_and_a_left_behind_grandchild_does_not_hold_us() {
        let cancel = Cancel::new();
        let mut lines = 0;
        let cmd = sh("echo ready; sleep 1000").grace(Duration::from_millis(50));
        let error = watch(&cmd, Duration::from_secs(60), &cancel, &mut |_, _| {
            lines += 1;
            cancel.raise(Level::Abort);
        });
        assert!(error.unwrap_err().cancelled());
        assert_eq!(lines, 1);

        let start = Instant::now();
        let left = run(&sh("sleep 5 & echo done"), Duration::from_secs(60), &Cancel::new()).unwrap();
        assert_eq!(left.stdout, "done\n");
        assert!(start.elapsed() < Duration::from_secs(4));
    }

    #[test]
    fn a_missing_program_is_named() {
        let error = run(&Cmd::new("no-such-program"), GRACE, &Cancel::new()).unwrap_err();
        assert_eq!(error.to_string(), "`no-such-program` is not installed, or not on PATH");
    }

    #[test]
    fn the_line_can_be_pasted_into_a_shell() {
        let cmd = Cmd::new("virsh").env("A", "b c").args(["-c", "qemu:///system", "it's"]);
        assert_eq!(cmd.line(), "A='b c' virsh -c qemu:///system \"it's\"");
    }
}
