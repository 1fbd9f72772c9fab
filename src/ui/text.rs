//! Small things done to text: how wide it is on a screen, cutting, wrapping, numbers as people say them.

use std::time::Duration;

use crate::explain::seconds;

/// The columns a text takes on a terminal. Expects text without escape sequences (see [`clean`]).
pub fn width(text: &str) -> usize {
    if text.is_ascii() { text.len() } else { text.chars().map(char_width).sum() }
}

fn char_width(c: char) -> usize {
    if c.is_ascii() { 1 } else { console::measure_text_width(c.encode_utf8(&mut [0; 4])) }
}

/// Text from elsewhere (a program's output, a message of a node) made fit for one line of a terminal.
///
/// Control characters would move the cursor or colour the screen, bidirectional marks would change the
/// order of what follows, and joiners and selectors make widths that terminals do not agree about.
pub fn clean(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.trim_end().chars() {
        match c {
            '\t' => out.push_str("    "),
            '\u{200b}'..='\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2060}'..='\u{206f}' => {}
            '\u{fe00}'..='\u{fe0f}' | '\u{feff}' => {}
            '\u{2028}' | '\u{2029}' => out.push(' '),
            c if c.is_control() => out.push(' '),
            c => out.push(c),
        }
    }
    out
}

/// The text cut to a number of columns; what is cut off is shown by `ellipsis`.
pub fn cut(text: &str, columns: usize, ellipsis: &str) -> String {
    if width(text) <= columns {
        return text.to_owned();
    }
    let mark = if width(ellipsis) <= columns { ellipsis } else { "" };
    let room = columns - width(mark);
    let mut used = 0;
    let mut out: String = text
        .chars()
        .take_while(|&c| {
            used += char_width(c);
            used <= room
        })
        .collect();
    out.push_str(mark);
    out
}

/// The text broken at spaces into lines of at most so many columns; longer words are left whole, so that
/// paths and commands can still be copied.
pub fn wrap(text: &str, columns: usize) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    let mut line = String::new();
    for word in text.split_whitespace() {
        if !line.is_empty() && width(&line) + 1 + width(word) > columns {
            lines.push(std::mem::take(&mut line));
        }
        if !line.is_empty() {
            line.push(' ');
        }
        line.push_str(word);
    }
    lines.push(line);
    lines
}

/// The text with spaces after it up to a number of columns.
pub fn pad(text: &str, columns: usize) -> String {
    format!("{text}{}", " ".repeat(columns.saturating_sub(width(text))))
}

/// The text with spaces before it up to a number of columns.
pub fn pad_left(text: &str, columns: usize) -> String {
    format!("{}{text}", " ".repeat(columns.saturating_sub(width(text))))
}

/// How long something took, to be read below others: `0.4s`, `4.0s`, `12s`, `3m05s`.
pub fn took(time: Duration) -> String {
    if time < Duration::from_secs(10) { format!("{:.1}s", time.as_secs_f64()) } else { seconds(time) }
}

/// A running clock: `0:42`, `12:05`, `1:02:03`.
pub fn clock(time: Duration) -> String {
    let whole = time.as_secs();
    let (hours, minutes, seconds) = (whole / 3600, whole % 3600 / 60, whole % 60);
    match hours {
        0 => format!("{minutes}:{seconds:02}"),
        _ => format!("{hours}:{minutes:02}:{seconds:02}"),
    }
}

const UNITS: [(&str, u64); 4] = [("TiB", 1 << 40), ("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)];

/// The name and the size of the unit in which so many bytes are said.
fn unit(bytes: u64) -> (&'static str, u64) {
    UNITS.into_iter().find(|(_, size)| bytes >= *size).unwrap_or(("B", 1))
}

fn in_unit(bytes: u64, size: u64) -> String {
    if size == 1 { bytes.to_string() } else { format!("{:.1}", bytes as f64 / size as f64) }
}

/// An amount of data: `512 B`, `17.5 KiB`, `73.4 MiB`, `1.2 GiB`.
pub fn bytes(bytes: u64) -> String {
    let (name, size) = unit(bytes);
    format!("{} {name}", in_unit(bytes, size))
}

/// Data moved of a total, both in the unit of the total and of a width that does not change on the way:
/// ` 3.1/73.4 MiB`.
pub fn bytes_of(done: u64, total: u64) -> String {
    let (name, size) = unit(total);
    let total = in_unit(total, size);
    format!("{}/{total} {name}", pad_left(&in_unit(done, size), total.len()))
}

/// A counted noun: `1 step`, `2 steps`, `3 retries`, `2 boxes`.
pub fn count(n: usize, noun: &str) -> String {
    if n == 1 {
        return format!("1 {noun}");
    }
    match noun.strip_suffix('y') {
        Some(stem) if !stem.ends_with(['a', 'e', 'o', 'u']) => format!("{n} {stem}ies"),
        _ if noun.ends_with(['s', 'x']) || noun.ends_with("ch") => format!("{n} {noun}es"),
        _ => format!("{n} {noun}s"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_said_as_people_say_them() {
        let clocks = [5, 65, 3723].map(|s| clock(Duration::from_secs(s)));
        assert_eq!(clocks, ["0:05", "1:05", "1:02:03"]);
        let sizes = [0, 1023, 1536, 76_965_478, 1 << 31].map(bytes);
        assert_eq!(sizes, ["0 B", "1023 B", "1.5 KiB", "73.4 MiB", "2.0 GiB"]);
        assert_eq!(bytes_of(3 << 20, 76_965_478), " 3.0/73.4 MiB");
        let nouns =
            [(1, "step"), (2, "step"), (0, "retry"), (2, "box"), (2, "key")].map(|(n, s)| count(n, s));
        assert_eq!(nouns, ["1 step", "2 steps", "0 retries", "2 boxes", "2 keys"]);
    }

    #[test]
    fn text_is_cut_by_columns_and_cleaned_of_what_moves_the_cursor() {
        assert_eq!(cut("abcdef", 6, "…"), "abcdef");
        assert_eq!(cut("abcdefg", 6, "…"), "abcde…");
        assert_eq!(cut("日本語日本語", 6, "…"), "日本…");
        assert_eq!(cut("abc", 1, ".."), "a");
        assert_eq!(clean("a\x1b[31mb\r\nc\u{202e}d\n"), "a [31mb  cd");
        assert_eq!(wrap("one two three", 7), ["one two", "three"]);
    }
}
