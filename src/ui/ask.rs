//! Questions to the user.

use std::io::{self, BufRead, Write};
use std::os::fd::AsFd;

use super::wording;
use crate::os::Cancel;

/// Asks, and takes only `y` or `yes` (in any case) for a yes; the end of input is a no.
///
/// # Errors
/// When the question cannot be written or the answer not be read.
pub fn confirm(question: &str, reader: &mut impl BufRead, writer: &mut impl Write) -> io::Result<bool> {
    write!(writer, "{}", wording::question(question))?;
    writer.flush()?;
    let mut answer = String::new();
    // An answer is short; whatever is longer is none.
    let mut reader = io::Read::take(reader, 64);
    if reader.read_line(&mut answer)? == 0 {
        writeln!(writer)?;
    }
    Ok(matches!(answer.trim().to_ascii_lowercase().as_str(), "y" | "yes"))
}

/// Asks the terminal for a line that it does not show. It shows what is typed again from then on, also where `stop` ends it.
///
/// # Errors
/// When there is no terminal, or nothing is to be read from it; [`io::ErrorKind::Interrupted`] at an abort.
pub fn secret(question: &str, stop: &Cancel) -> io::Result<String> {
    use nix::poll::{PollFd, PollFlags, poll};
    use nix::sys::termios::{LocalFlags, SetArg, tcgetattr, tcsetattr};
    let mut terminal = std::fs::File::options().read(true).write(true).open("/dev/tty")?;
    terminal.write_all(question.as_bytes())?;
    let before = tcgetattr(&terminal)?;
    let mut hidden = before.clone();
    hidden.local_flags.remove(LocalFlags::ECHO);
    // What was typed before the question is no answer to it.
    tcsetattr(&terminal, SetArg::TCSAFLUSH, &hidden)?;
    let mut line = String::new();
    let read = loop {
        if stop.aborted() {
            break Err(io::ErrorKind::Interrupted.into());
        }
        // A line is there as a whole.
        if poll(&mut [PollFd::new(terminal.as_fd(), PollFlags::POLLIN)], 100_u16).is_ok_and(|n| n > 0) {
            break io::BufReader::new(&terminal).read_line(&mut line);
        }
    };
    tcsetattr(&terminal, SetArg::TCSAFLUSH, &before)?;
    terminal.write_all(b"\n")?;
    read?;
    Ok(line.trim_end_matches(['\r', '\n']).to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_clear_yes_is_a_yes() {
        let ask = |answer: &str| confirm("Destroy?", &mut answer.as_bytes(), &mut Vec::new()).unwrap();
        assert_eq!(["y\n", "YES\n", " yes "].map(ask), [true; 3]);
        assert_eq!(["\n", "", "n\n", "yesterday\n", "ok\n"].map(ask), [false; 5]);
        let mut said = Vec::new();
        confirm("Destroy `iot`?", &mut "".as_bytes(), &mut said).unwrap();
        assert_eq!(said, b"Destroy `iot`? [y/N] \n");
    }
}
