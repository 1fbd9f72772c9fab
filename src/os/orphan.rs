//! Programs that outlive a p1 that was killed: each is in a group of its own and goes on.
//!
//! A program that is to be found again has a file as its standard input, and with it a shared lock on
//! that file, which the kernel keeps as long as the program or a child with the same input lives. So
//! nothing has to be noted, and no number of a process can be taken for another's.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;

use super::files;

/// How often it is looked whether it still lives.
const PAUSE: Duration = Duration::from_millis(50);
/// What is left of a program's time when it was killed.
const KILLED: Duration = Duration::from_secs(5);

/// The file at `path`, made empty if it is not there, to be a program's standard input.
pub(super) fn hold(path: &Path) -> io::Result<File> {
    let file =
        OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(path)?;
    file.lock_shared()?;
    Ok(file)
}

/// The program of this name that a p1 of before left with the input at `path`. The caller holds the
/// lock that its p1 held, so no other p1 can be the one that started it.
pub fn left(path: &Path, program: &str) -> Option<Pid> {
    let file = files::open(path).ok()?;
    // Without a holder there is none to look for, which is nearly always so.
    if !matches!(file.try_lock(), Err(TryLockError::WouldBlock)) {
        return None;
    }
    let path = path.canonicalize().ok()?;
    let processes = fs::read_dir("/proc").ok()?.flatten();
    let pids = processes.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    let ours = |pid: &i32| {
        let input = fs::read_link(format!("/proc/{pid}/fd/0"));
        input.is_ok_and(|input| input == path) && is(*pid, program)
    };
    pids.filter(ours).map(Pid::from_raw).find(|pid| nix::unistd::getpgid(Some(*pid)) == Ok(*pid))
}

/// `ruby /usr/bin/vagrant up` and the like: a script's own name comes after its interpreter's.
fn is(pid: i32, program: &str) -> bool {
    let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    let mut words = line.split(|b| *b == 0).take(4);
    words.any(|word| word.rsplit(|b| *b == b'/').next() == Some(program.as_bytes()))
}

/// Waits until it has ended by itself; false if it has not within the bound.
pub fn ends(path: &Path, program: &str, bound: Duration) -> bool {
    let start = Instant::now();
    while left(path, program).is_some() {
        if start.elapsed() >= bound {
            return false;
        }
        thread::sleep(PAUSE);
    }
    true
}

/// Ends it with its group by INT, TERM and KILL, with `grace` in between; false if it is still there.
pub fn end(path: &Path, program: &str, grace: Duration) -> bool {
    for (signal, patience) in [(Signal::SIGINT, grace), (Signal::SIGTERM, grace), (Signal::SIGKILL, KILLED)] {
        let Some(pid) = left(path, program) else { return true };
        // It may have ended in this very moment.
        let _ = killpg(pid, signal);
        if ends(path, program, patience) {
            return true;
        }
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::process::CommandExt;
    use std::process::Command;

    #[test]
    fn a_program_is_found_by_its_input_and_ended() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("input");
        assert_eq!(left(&path, "work"), None);
        let script = dir.path().join("work");
        fs::write(&script, "trap '' INT\necho\nsleep 600\n").unwrap();
        let mut command = Command::new("sh");
        command.arg(&script).process_group(0).stdin(hold(&path).unwrap());
        command.stdout(std::process::Stdio::piped());
        let mut child = command.spawn().unwrap();
        drop(command);
        io::Read::read_exact(child.stdout.as_mut().unwrap(), &mut [0]).unwrap();
        let pid = Pid::from_raw(i32::try_from(child.id()).unwrap());
        assert_eq!(left(&path, "work"), Some(pid));
        assert_eq!(left(&path, "other"), None);
        assert!(!ends(&path, "work", Duration::ZERO));
        let collector = thread::spawn(move || child.wait().unwrap());
        assert!(end(&path, "work", Duration::from_millis(300)));
        assert!(!collector.join().unwrap().success());
        assert_eq!(left(&path, "work"), None);
    }
}
