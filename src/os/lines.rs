//! Bytes as they arrive, cut into lines: what comes from a pipe or a connection comes in chunks, and a chunk
//! ends anywhere, also within a character.

/// A longer line comes in parts, so that one without an end needs no memory without one.
pub const LONGEST: usize = 1 << 20;

/// Cuts bytes into lines. A line is told when it is whole; [`Lines::finish`] tells the last one, which need not
/// have an end.
#[derive(Debug, Default)]
pub struct Lines(Vec<u8>);

impl Lines {
    /// Takes a chunk, and tells the lines that are whole by it, without their ends.
    pub fn push(&mut self, bytes: &[u8], on_line: &mut dyn FnMut(&str)) {
        // Only what is new can have an end in it.
        let mut from = self.0.len();
        self.0.extend_from_slice(bytes);
        let mut begun = 0;
        while let Some(end) = self.0[from..].iter().position(|b| *b == b'\n').map(|at| from + at) {
            self.tell(begun, end, on_line);
            (begun, from) = (end + 1, end + 1);
        }
        while self.0.len() - begun > LONGEST {
            let end = begun + whole(&self.0[begun..begun + LONGEST]);
            self.tell(begun, end, on_line);
            begun = end;
        }
        self.0.drain(..begun);
    }

    /// Nothing more comes.
    pub fn finish(&mut self, on_line: &mut dyn FnMut(&str)) {
        let rest = std::mem::take(&mut self.0);
        if !rest.is_empty() {
            tell(&rest, on_line);
        }
    }

    /// Tells one line, in parts where it is too long.
    fn tell(&self, begun: usize, end: usize, on_line: &mut dyn FnMut(&str)) {
        let mut line = &self.0[begun..end];
        while line.len() > LONGEST {
            let (part, rest) = line.split_at(whole(&line[..LONGEST]));
            tell(part, on_line);
            line = rest;
        }
        tell(line, on_line);
    }
}

fn tell(line: &[u8], on_line: &mut dyn FnMut(&str)) {
    on_line(String::from_utf8_lossy(line).trim_end_matches('\r'));
}

/// How much of a part there is before a character that goes on behind it.
fn whole(part: &[u8]) -> usize {
    match std::str::from_utf8(part) {
        Err(error) if error.error_len().is_none() && error.valid_up_to() > 0 => error.valid_up_to(),
        // What is no UTF-8 is cut anywhere.
        _ => part.len(),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn cut(chunks: &[&[u8]]) -> Vec<String> {
        let mut seen = Vec::new();
        let mut lines = Lines::default();
        for bytes in chunks {
            lines.push(bytes, &mut |l| seen.push(l.to_owned()));
        }
        lines.finish(&mut |l| seen.push(l.to_owned()));
        seen
    }

    #[test]
    fn lines_come_when_they_are_whole() {
        let mut seen = Vec::new();
        let mut lines = Lines::default();
        for bytes in ["a\nb", "c\r\n\n", "d"] {
            lines.push(bytes.as_bytes(), &mut |l| seen.push(l.to_owned()));
        }
        assert_eq!(seen, ["a", "bc", ""]);
        lines.finish(&mut |l| seen.push(l.to_owned()));
        assert_eq!(seen[3..], ["d"]);
    }

    #[test]
    fn a_line_without_an_end_comes_in_parts_and_cuts_no_character() {
        let endless = "é".repeat(2 * LONGEST);
        let chunks: Vec<&[u8]> = endless.as_bytes().chunks(9999).collect();
        let seen = cut(&chunks);
        assert!(seen.len() > 3 && seen.iter().all(|l| l.len() <= LONGEST), "{}", seen.len());
        assert_eq!(seen.concat(), endless);
        // The same where it has one and comes at once.
        assert_eq!(cut(&[format!("{endless}\nx").as_bytes()]).concat(), format!("{endless}x"));
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        /// Wherever the chunks end.
        #[test]
        fn chunks_do_not_show(text in "[aé€\\n\\r]{0,40}", cuts in prop::collection::vec(0usize..80, 0..8)) {
            let mut cuts: Vec<usize> = cuts.into_iter().filter(|at| *at <= text.len()).collect();
            cuts.extend([0, text.len()]);
            cuts.sort_unstable();
            let chunks: Vec<&[u8]> = cuts.windows(2).map(|w| &text.as_bytes()[w[0]..w[1]]).collect();
            prop_assert_eq!(cut(&chunks), cut(&[text.as_bytes()]));
            let whole: Vec<&str> = text.split_terminator('\n').map(|l| l.trim_end_matches('\r')).collect();
            prop_assert_eq!(cut(&chunks), whole);
        }
    }
}
