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
