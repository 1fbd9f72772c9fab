//! A program that wants a terminal, followed while something else goes on.

use std::fs::File;
use std::io::Read;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;

/// What is read at a time.
const PART: usize = 8 << 10;

/// Follows a program until it is dropped.
#[derive(Debug)]
pub struct Follower {
    end: Arc<AtomicBool>,
    reader: Option<JoinHandle<()>>,
}

impl Follower {
    /// Starts the program, again after each pause as long as it ends without a word that `heard` counts. That gets
    /// what it prints, as it comes, and nothing (an empty part) when the program is started.
    pub fn start(
        line: Vec<String>,
        pause: Duration,
        mut heard: impl FnMut(&[u8]) -> bool + Send + 'static,
    ) -> Self {
        let end = Arc::new(AtomicBool::new(false));
        let ended = Arc::clone(&end);
        let reader = thread::Builder::new().name("console".to_owned()).spawn(move || {
            while !ended.load(Ordering::Relaxed) {
                let Some((mut child, mut terminal)) = spawn(&line) else { return };
                heard(&[]);
                let counted = read(&mut terminal, &ended, &mut heard);
                // Its whole group: nothing of it may outlive this.
                let _ = killpg(Pid::from_raw(child.id().cast_signed()), Signal::SIGKILL);
                let _ = child.wait();
                if counted {
                    return;
                }
                thread::park_timeout(pause);
            }
        });
        Self { end, reader: reader.ok() }
    }
}

impl Drop for Follower {
    fn drop(&mut self) {
        self.end.store(true, Ordering::Relaxed);
        if let Some(reader) = self.reader.take() {
            reader.thread().unpark();
            let _ = reader.join();
        }
    }
}

fn spawn(line: &[String]) -> Option<(Child, File)> {
    let (program, args) = line.split_first()?;
    let pty = nix::pty::openpty(None, None).ok()?;
    let mut command = Command::new(program);
    command.args(args).process_group(0).stderr(Stdio::null());
    command.stdin(pty.slave.try_clone().ok()?).stdout(pty.slave);
    let child = command.spawn().ok()?;
    Some((child, File::from(pty.master)))
}

/// Until the program is gone or nobody wants to hear; whether something that counts was heard.
fn read(terminal: &mut File, ended: &AtomicBool, heard: &mut dyn FnMut(&[u8]) -> bool) -> bool {
    use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
    use std::os::fd::AsFd;

    let (mut part, mut counted) = (vec![0; PART], false);
    while !ended.load(Ordering::Relaxed) {
        let ready = {
            let mut fds = [PollFd::new(terminal.as_fd(), PollFlags::POLLIN)];
            poll(&mut fds, PollTimeout::from(100_u8))
        };
        match ready {
            Ok(0) | Err(nix::errno::Errno::EINTR) => continue,
            Ok(_) => {}
            Err(_) => break,
        }
        match terminal.read(&mut part) {
            // The other end is closed: EIO on Linux.
            Ok(0) | Err(_) => break,
            Ok(n) => counted |= heard(&part[..n]),
        }
    }
    counted
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc;
    use std::time::Instant;

    #[test]
    fn a_program_gets_a_terminal_and_is_started_until_it_says_something_and_ends_with_its_follower() {
        let dir = tempfile::tempdir().unwrap();
        let tried = dir.path().join("tried");
        // The first call is in vain; the second one hangs.
        let script = format!(
            "[ -t 0 ] && [ -t 1 ] || exit 1; if [ ! -e {0} ]; then : >{0}; exit 1; fi; echo one $$; sleep 600",
            tried.display()
        );
        let (tell, heard) = mpsc::channel();
        let line = ["sh", "-c", &script].map(str::to_owned).to_vec();
        let follower = Follower::start(line, Duration::from_millis(10), move |part| {
            tell.send(String::from_utf8_lossy(part).into_owned()).unwrap();
            !part.is_empty()
        });
        // Each start is told.
        for _ in 0..2 {
            assert_eq!(heard.recv_timeout(Duration::from_secs(60)).unwrap(), "");
        }
        let text = heard.recv_timeout(Duration::from_secs(60)).unwrap();
        let pid: i32 = text.trim().strip_prefix("one ").unwrap().parse().unwrap();
        let begun = Instant::now();
        drop(follower);
        assert!(begun.elapsed() < Duration::from_secs(20));
        assert!(nix::sys::signal::kill(Pid::from_raw(pid), None).is_err(), "it outlived its follower");
    }
}
