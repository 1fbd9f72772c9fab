//! Standard output: every verb writes to it here and nowhere else.
//!
//! A reader that went away (`p1 status | head -1`) has all it wanted: nothing more is written, and the verb
//! ends as it would have. Anything else that keeps output from being written (a full disk) is an error of
//! the verb, told when it is over.

use std::io::{self, ErrorKind, IsTerminal, Write};
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::process::ExitStatus;
use std::sync::Mutex;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use serde_json::{Value, json};

use super::context::Context;
use super::error::{CliError, code};
use crate::event::VERSION;
use crate::os::process::{self, Cmd};
use crate::os::sync;
use crate::ui::Format;

/// The first error; nothing is written after it. Also held while something is written, so that what
/// several threads write does not mix.
static LOST: Mutex<Option<ErrorKind>> = Mutex::new(None);

/// Standard output for whoever wants a writer.
pub struct Data;

impl Write for Data {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut lost = sync::lock(&LOST);
        let done = match *lost {
            Some(kind) => Err(kind.into()),
            None => all(bytes),
        };
        if let Err(error) = &done {
            lost.get_or_insert(error.kind());
        }
        done.map(|()| bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Past the standard library's buffer, which keeps what could not be written for another try.
fn all(mut bytes: &[u8]) -> io::Result<()> {
    let out = io::stdout();
    while !bytes.is_empty() {
        match nix::unistd::write(&out, bytes) {
            Ok(0) => return Err(ErrorKind::WriteZero.into()),
            Ok(written) => bytes = &bytes[written..],
            Err(Errno::EINTR) => {}
            // Whoever shares the pipe with us made it non-blocking: wait for its reader as others do.
            Err(Errno::EAGAIN) => {
                let mut fds = [PollFd::new(out.as_fd(), PollFlags::POLLOUT)];
                match poll(&mut fds, PollTimeout::NONE) {
                    Ok(_) | Err(Errno::EINTR) => {}
                    Err(error) => return Err(error.into()),
                }
            }
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

/// Prints data; whether that succeeded is asked by [`lost`] at the end.
pub fn print(text: impl AsRef<[u8]>) {
    let _ = Data.write(text.as_ref());
}

/// Prints one JSON object on a line of its own.
pub fn object(object: &Value) {
    print(format!("{object}\n"));
}

/// A path as text, for JSON, which has nothing else.
pub fn lossy(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}

/// Prints where something is: for people the path alone, byte by byte, since it is to be used.
pub fn path(context: &Context, what: &str, path: &Path) {
    match context.ui.format {
        Format::Json => object(&json!({"v": VERSION, what: lossy(path)})),
        _ => print([path.as_os_str().as_bytes(), b"\n"].concat()),
    }
}

/// Runs a program for a person, with our terminal if standard output is one, else its output through here.
pub fn hand_over(cmd: &Cmd) -> Result<ExitStatus, process::Error> {
    match io::stdout().is_terminal() {
        true => process::hand_over(cmd),
        false => process::relay(cmd, &mut Data),
    }
}

/// True if nobody reads any more: whatever a program makes of that is none of our business.
pub fn left_alone() -> bool {
    *sync::lock(&LOST) == Some(ErrorKind::BrokenPipe)
}

/// True if nothing more is written, because its reader went away or because there is no place for it.
pub fn ended() -> bool {
    sync::lock(&LOST).is_some()
}

/// Why standard output is not whole, if that is an error.
pub fn lost() -> Option<CliError> {
    let kind = sync::lock(&LOST).filter(|k| *k != ErrorKind::BrokenPipe)?;
    let what = format!("standard output could not be written: {}", io::Error::from(kind));
    let hint = match kind {
        ErrorKind::StorageFull | ErrorKind::QuotaExceeded => {
            "Free some space where it goes, or send it elsewhere."
        }
        _ => "Send it elsewhere.",
    };
    Some(CliError::new(code::FAILED, what, hint))
}
