//! Collects the problems of one file while it is read, so that all of them are told at once.

use std::path::Path;

use super::problem::{Problem, Severity};
use crate::redact::{self, Redactor};

/// So many problems are kept; a file with more has one cause, not hundreds.
const MAX_PROBLEMS: usize = 100;
/// Characters of a line that are shown.
const WIDTH: usize = 100;

/// A range of bytes of the file.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Span {
    pub start: usize,
    pub end: usize,
}

/// What the readers of the spec write into.
pub(super) struct Report<'a> {
    text: &'a str,
    /// Where lines start, in bytes.
    lines: Vec<usize>,
    /// The spec's folder, absolute; relative paths of the spec start here.
    pub base: &'a Path,
    problems: Vec<Problem>,
    errors: usize,
    /// The first problem that was not kept, and how many there were.
    dropped: Option<(Span, usize)>,
    /// What variables brought in that nobody is to see.
    secrets: Vec<String>,
    /// Values that are not known, and their keys: nothing more is said of them.
    unknown: Vec<Span>,
    redactor: Redactor,
}

impl<'a> Report<'a> {
    /// Nothing is wrong yet with the text of a file in the folder `base`.
    pub fn new(text: &'a str, base: &'a Path) -> Self {
        let lines = std::iter::once(0).chain(text.match_indices('\n').map(|(i, _)| i + 1)).collect();
        Self {
            text,
            lines,
            base,
            problems: Vec::new(),
            errors: 0,
            dropped: None,
            secrets: Vec::new(),
            unknown: Vec::new(),
            redactor: Redactor::default(),
        }
    }

    /// An error. `message` is a lower-case fragment, `help` full sentences.
    pub fn error(&mut self, at: Span, message: impl Into<String>, help: impl Into<String>) {
        self.errors += 1;
        self.add(Severity::Error, at, message.into(), help.into());
    }

    /// Something unwise.
    pub fn warning(&mut self, at: Span, message: impl Into<String>, help: impl Into<String>) {
        self.add(Severity::Warning, at, message.into(), help.into());
    }

    /// An error of a part of a value, where that is found in the file. Of the value, whose entry is `of`, nothing else is
    /// said.
    pub fn unknown(&mut self, of: Span, at: Span, part: &str, message: String, help: String) {
        let whole = self.text.get(at.start..at.end).unwrap_or_default();
        let found = whole.find(part).filter(|_| !part.contains('\n'));
        let at = found.map_or(at, |start| {
            let start = at.start + start;
            // With the brace that closes it.
            let end = start + part.len() + usize::from(self.text[start + part.len()..].starts_with('}'));
            Span { start, end }
        });
        self.error(at, message, help);
        self.unknown.push(of);
    }

    /// From here on no message has this text.
    pub fn hide(&mut self, secret: &str) {
        if !secret.is_empty() && !self.secrets.iter().any(|known| known == secret) {
            self.secrets.push(secret.to_owned());
            self.redactor.learn([secret]);
        }
    }

    /// What was hidden is not shown, nor the beginning of it where a long value was cut.
    fn without_secrets(&self, text: &str) -> String {
        let mut text = self.redactor.known_in(text);
        for secret in self.secrets.iter().filter(|_| text.contains('…')).map(|s| short(s)).collect::<Vec<_>>()
        {
            for (end, _) in secret.char_indices().skip(2).collect::<Vec<_>>().into_iter().rev() {
                let cut = format!("{}…", &secret[..end]);
                if text.contains(&cut) {
                    text = text.replace(&cut, &format!("{}…", redact::MASK));
                }
            }
        }
        text
    }

    /// All that was hidden.
    pub fn hidden(&self) -> &[String] {
        &self.secrets
    }

    /// How many errors were reported so far.
    pub fn errors(&self) -> usize {
        self.errors
    }

    /// All problems in the order of the file.
    pub fn finish(mut self) -> Vec<Problem> {
        self.problems.sort_by_key(|p| (p.line, p.column));
        if let Some((at, count)) = self.dropped {
            let message = format!("{count} more problems are not shown");
            let help = "They often have one cause; fix those above first.".to_owned();
            self.problems.push(locate(self.text, Severity::Warning, at, message, help));
        }
        self.problems
    }

    /// The text at a place, short enough for a message.
    pub fn excerpt(&self, at: Span) -> String {
        short(self.text.get(at.start..at.end).unwrap_or_default())
    }

    /// The line of a place, from 1.
    pub fn line(&self, at: Span) -> usize {
        self.lines.partition_point(|start| *start <= at.start)
    }

    fn add(&mut self, severity: Severity, at: Span, message: String, help: String) {
        if self.unknown.iter().any(|of| (of.start..of.end).contains(&at.start)) {
            return;
        }
        // An error must not be lost behind warnings.
        if self.problems.len() >= MAX_PROBLEMS && !(severity == Severity::Error && self.errors == 1) {
            self.dropped.get_or_insert((at, 0)).1 += 1;
            return;
        }
        let (message, help) = (self.without_secrets(&message), self.without_secrets(&help));
        let problem = locate(self.text, severity, at, message, help);
        if !self.problems.contains(&problem) {
            self.problems.push(problem);
        }
    }
}

/// A problem with line, column and snippet worked out.
pub(super) fn locate(text: &str, severity: Severity, at: Span, message: String, help: String) -> Problem {
    let mut start = at.start.min(text.len());
    while !text.is_char_boundary(start) {
        start -= 1;
    }
    let line = text[..start].matches('\n').count() + 1;
    let from = text[..start].rfind('\n').map_or(0, |i| i + 1);
    let to = text[start..].find('\n').map_or(text.len(), |i| start + i);
    let whole = text[from..to].trim_end_matches('\r');
    let start = start.min(from + whole.len());
    let column = text[from..start].chars().count();

    let end = at.end.clamp(start, from + whole.len().max(start - from));
    let marked = text.get(start..end).unwrap_or_default().trim_end().chars().count().max(1);

    // Long lines are shown in part, around the place.
    let skip = if column + 20 > WIDTH { column - 30 } else { 0 };
    let lead = if skip > 0 { "…" } else { "" };
    // What is shown goes to terminals and into logs.
    let shown = redact::covered(whole);
    let mut snippet: String = lead.chars().chain(shown.chars().skip(skip).take(WIDTH).map(visible)).collect();
    let mark = column - skip + lead.chars().count();
    let length = marked.min((WIDTH + 1).saturating_sub(mark)).max(1);
    if whole.chars().count() > skip + WIDTH {
        snippet.push('…');
    }
    Problem { severity, line, column: column + 1, length, message, help, snippet, mark }
}

/// Text as it may be shown in a message: one line, without control characters, not long.
pub(super) fn short(text: &str) -> String {
    let mut chars = text.trim_end().chars();
    let mut out: String = chars.by_ref().take(60).map(visible).collect();
    if chars.next().is_some() {
        out.push('…');
    }
    out
}

/// A character as it may be shown on a terminal: one column wide, and no control character.
fn visible(c: char) -> char {
    match c {
        '\t' | '\n' => ' ',
        // Bidirectional overrides can make a line read as something else.
        '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' => '\u{fffd}',
        c if c.is_control() => '\u{fffd}',
        c => c,
    }
}

/// The candidate that `word` was probably meant to be.
pub(super) fn nearest<'c>(word: &str, candidates: impl IntoIterator<Item = &'c str>) -> Option<&'c str> {
    // Levenshtein's cost grows with the product of the lengths, and no key is that long.
    let word: String = word.chars().take(64).flat_map(char::to_lowercase).collect();
    let word = word.replace('_', "-");
    candidates
        .into_iter()
        .map(|c| (strsim::damerau_levenshtein(&word, &c.replace('_', "-")), c))
        .filter(|(distance, c)| *distance <= (c.chars().count() / 3).max(1))
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, c)| c)
}

/// Names in backquotes with commas: `` `a`, `b`, `c` ``.
pub(super) fn listed<'c>(names: impl IntoIterator<Item = &'c str>) -> String {
    names.into_iter().map(|n| format!("`{n}`")).collect::<Vec<_>>().join(", ")
}
