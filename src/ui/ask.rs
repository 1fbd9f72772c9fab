//! Questions to the user.

use std::io::{self, BufRead, Write};

use super::wording;

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

/// Asks the terminal for a line that it does not show.
///
/// # Errors
/// When there is no terminal, or nothing is to be read from it.
pub fn secret(question: &str) -> io::Result<String> {
    use nix::sys::termios::{LocalFlags, SetArg, tcgetattr, tcsetattr};
    let mut terminal = std::fs::File::options().read(true).write(true).open("/dev/tty")?;
    terminal.write_all(question.as_bytes())?;
    let before = tcgetattr(&terminal)?;
    let mut hidden = before.clone();
    hidden.local_flags.remove(LocalFlags::ECHO);
    // What was typed before the question is no answer to it.
    tcsetattr(&terminal, SetArg::TCSAFLUSH, &hidden)?;
    let mut line = String::new();
    let read = io::BufReader::new(&terminal).read_line(&mut line);
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
