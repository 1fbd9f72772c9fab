//! How an error of any room says what to do about it.

use std::borrow::Cow;
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// What kind of failure it was, for programs and for decisions: neither reads the words.
///
/// In JSON it is the fields `kind` and, where the kind has one, `exit_code`, `signal` or `bound_ms`. A kind of a
/// newer p1, and a failure of an older one, which has none, are [`FailureKind::Other`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "Wire", into = "Wire")]
pub enum FailureKind {
    /// A program, a script or a job ended with this status, here or on a node.
    Exit {
        /// Its exit status, never 0.
        code: i32,
    },
    /// A signal ended a program, here or on a node.
    Signal {
        /// The signal's name without `SIG`.
        name: String,
    },
    /// It did not come within its bound.
    Bound {
        /// The bound, in milliseconds.
        ms: u64,
    },
    /// Whoever was asked is there and turned it away: nothing listens, or an error was the answer.
    Refused,
    /// No way there, or nobody answers.
    Unreachable,
    /// The connection, or the work behind it, broke while it was under way.
    Lost,
    /// A right is missing: of a file, of a login, of the API.
    Denied,
    /// No space is left on a disk.
    NoSpace,
    /// What is there is not what it should be: a checksum, a certificate, a file's form.
    Damaged,
    /// Something else is in the way: another p1, another cluster, a machine of the same name.
    Conflict,
    /// It cannot be done as asked, or not with what this host or the cluster has.
    Cannot,
    /// p1 itself failed.
    Defect,
    /// None of these.
    #[default]
    Other,
}

impl FailureKind {
    /// It did not come within `bound`.
    pub fn bound(bound: Duration) -> Self {
        Self::Bound { ms: u64::try_from(bound.as_millis()).unwrap_or(u64::MAX) }
    }

    /// With every text that may have come from elsewhere replaced by what `change` makes of it: a node says
    /// which signal it was.
    #[must_use]
    pub fn map_texts(self, change: &dyn Fn(String) -> String) -> Self {
        match self {
            Self::Signal { name } => Self::Signal { name: change(name) },
            kind => kind,
        }
    }

    /// Its name in JSON.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Exit { .. } => "exit",
            Self::Signal { .. } => "signal",
            Self::Bound { .. } => "bound",
            Self::Refused => "refused",
            Self::Unreachable => "unreachable",
            Self::Lost => "lost",
            Self::Denied => "denied",
            Self::NoSpace => "no_space",
            Self::Damaged => "damaged",
            Self::Conflict => "conflict",
            Self::Cannot => "cannot",
            Self::Defect => "defect",
            Self::Other => "other",
        }
    }
}

impl From<&std::io::Error> for FailureKind {
    fn from(error: &std::io::Error) -> Self {
        use std::io::ErrorKind as E;
        match error.kind() {
            E::PermissionDenied | E::ReadOnlyFilesystem => Self::Denied,
            E::StorageFull | E::QuotaExceeded => Self::NoSpace,
            E::InvalidData => Self::Damaged,
            E::AlreadyExists => Self::Conflict,
            E::NotFound | E::InvalidInput | E::Unsupported => Self::Cannot,
            E::ConnectionRefused => Self::Refused,
            E::ConnectionReset | E::ConnectionAborted | E::BrokenPipe | E::UnexpectedEof => Self::Lost,
            E::HostUnreachable | E::NetworkUnreachable | E::TimedOut => Self::Unreachable,
            _ => Self::Other,
        }
    }
}

/// [`FailureKind`] as it is written: flat, so that a program asks for `.kind` alone.
#[derive(Serialize, Deserialize)]
struct Wire {
    #[serde(default)]
    kind: Cow<'static, str>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    exit_code: Option<i32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    signal: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    bound_ms: Option<u64>,
}

impl From<FailureKind> for Wire {
    fn from(kind: FailureKind) -> Self {
        let mut wire = Self { kind: kind.name().into(), exit_code: None, signal: None, bound_ms: None };
        match kind {
            FailureKind::Exit { code } => wire.exit_code = Some(code),
            FailureKind::Signal { name } => wire.signal = Some(name),
            FailureKind::Bound { ms } => wire.bound_ms = Some(ms),
            _ => {}
        }
        wire
    }
}

impl From<Wire> for FailureKind {
    fn from(wire: Wire) -> Self {
        match (&*wire.kind, wire.exit_code, wire.signal, wire.bound_ms) {
            ("exit", Some(code), ..) => Self::Exit { code },
            ("signal", _, Some(name), _) => Self::Signal { name },
            ("bound", _, _, Some(ms)) => Self::Bound { ms },
            ("refused", ..) => Self::Refused,
            ("unreachable", ..) => Self::Unreachable,
            ("lost", ..) => Self::Lost,
            ("denied", ..) => Self::Denied,
            ("no_space", ..) => Self::NoSpace,
            ("damaged", ..) => Self::Damaged,
            ("conflict", ..) => Self::Conflict,
            ("cannot", ..) => Self::Cannot,
            ("defect", ..) => Self::Defect,
            _ => Self::Other,
        }
    }
}

/// Whether another try may go better.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Again {
    /// Not by trying alone.
    #[default]
    No,
    /// The same may work when tried again soon.
    Soon,
    /// The user ended it, so nothing is tried again.
    Cancelled,
}

/// Every room's error type implements this beside [`std::error::Error`]. The error's own text is a
/// lower-case fragment that reads well after "failed:"; the hint is a full sentence.
pub trait Explain: std::error::Error {
    /// What the user can do, as full sentences.
    fn hint(&self) -> Option<String> {
        None
    }

    /// Commands that lead on, in this order, as they can be pasted: where what to do is known, and trying
    /// again alone does not help.
    fn next(&self) -> Vec<String> {
        Vec::new()
    }

    /// Lines that show the cause: a journal's tail, a program's last words.
    fn evidence(&self) -> Vec<String> {
        Vec::new()
    }

    /// What kind of failure it was.
    fn kind(&self) -> FailureKind {
        FailureKind::Other
    }

    /// Whether another try may go better, or the user ended it.
    fn again(&self) -> Again {
        Again::No
    }

    /// [`Explain::again`] is [`Again::Soon`].
    fn transient(&self) -> bool {
        self.again() == Again::Soon
    }

    /// [`Explain::again`] is [`Again::Cancelled`].
    fn cancelled(&self) -> bool {
        self.again() == Again::Cancelled
    }

    /// How long to wait before that, where whoever refused has said so.
    fn pause(&self) -> Option<Duration> {
        None
    }

    /// Whether this host is not ready: a program or a daemon that p1 works with is not there.
    fn unready(&self) -> bool {
        false
    }
}

/// An error and its sources on one line, each said once.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(source) = next {
        let more = source.to_string();
        if !text.contains(&more) {
            text = format!("{text}: {more}");
        }
        next = source.source();
    }
    text
}

impl Explain for crate::os::files::Error {
    fn kind(&self) -> FailureKind {
        FailureKind::from(&self.source)
    }

    fn hint(&self) -> Option<String> {
        use std::io::ErrorKind::{InvalidInput, NotFound, PermissionDenied, ReadOnlyFilesystem, StorageFull};
        match self.source.kind() {
            PermissionDenied if self.action == "read" => Some(match crate::os::files::owner(&self.path) {
                Some(owner) => format!("{} is {owner}'s: p1 has to run as that user.", self.path.display()),
                None => format!("Make {} readable for this user.", self.path.display()),
            }),
            InvalidInput if self.source.raw_os_error().is_none() => Some(format!(
                "Only files are read and replaced: look what {} is, and remove it.",
                self.path.display()
            )),
            PermissionDenied | ReadOnlyFilesystem => {
                Some(format!("Make {} writable for this user.", self.path.display()))
            }
            StorageFull => Some(format!("Free some space where {} lies.", self.path.display())),
            NotFound => {
                let folder = self.path.parent().filter(|f| !f.as_os_str().is_empty() && !f.exists())?;
                Some(format!(
                    "There is no such folder: mkdir -p {}",
                    crate::os::process::quote_os(folder.as_os_str())
                ))
            }
            _ => None,
        }
    }
}

impl Explain for crate::os::lock::Error {
    fn kind(&self) -> FailureKind {
        match self {
            Self::Held { .. } => FailureKind::Conflict,
            Self::File(e) => e.kind(),
        }
    }

    fn hint(&self) -> Option<String> {
        match self {
            Self::Held { .. } => Some("Wait for it, or give `--wait 5m`.".to_owned()),
            Self::File(e) => e.hint(),
        }
    }
}

/// What is told of a node, for a place that names the node itself: `worker: it is off` is `it is off` there.
pub fn without_name<'a>(node: &str, text: &'a str) -> &'a str {
    text.strip_prefix(node).and_then(|rest| rest.strip_prefix(": ")).unwrap_or(text)
}

/// The beginning of a line that may be too long to be shown: at most so many characters.
pub fn clipped(line: &str, most: usize) -> String {
    match line.char_indices().nth(most) {
        Some((at, _)) => format!("{}…", &line[..at]),
        None => line.to_owned(),
    }
}

/// Text from elsewhere (a node, a program, a file) as it may be shown on a terminal or kept in a file that
/// somebody looks into: without escape sequences and other control characters, by which a screen can be
/// rewritten, a title set or a clipboard filled, and without marks that change the order of what follows. Line
/// ends and tabs stay.
pub fn printable(text: &str) -> Cow<'_, str> {
    let harmless = |c: char| !c.is_control() || matches!(c, '\n' | '\t');
    if text.chars().all(|c| harmless(c) && !turns(c)) {
        return Cow::Borrowed(text);
    }
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(c) = rest.chars().next() {
        let len = match c {
            '\u{1b}' | '\u{9b}' | '\u{90}' | '\u{9d}'..='\u{9f}' => sequence(rest),
            // The end of a line as other systems have it.
            '\r' if rest[1..].starts_with('\n') => 1,
            c if turns(c) => c.len_utf8(),
            c => {
                out.push(if harmless(c) { c } else { ' ' });
                c.len_utf8()
            }
        };
        rest = &rest[len..];
    }
    Cow::Owned(out)
}

/// True for what changes the direction of the text behind it.
fn turns(c: char) -> bool {
    matches!(c, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

/// How long the escape sequence is with which a text begins (ECMA-48, "Control functions"). One without an end
/// ends with its line.
fn sequence(text: &str) -> usize {
    let mut chars = text.char_indices().skip(1);
    let first = text.chars().next();
    let kind = match first {
        Some('\u{1b}') => match chars.next() {
            Some((_, c)) => c,
            None => return text.len(),
        },
        Some('\u{9b}') => '[',
        _ => ']',
    };
    match kind {
        // Parameters and intermediates up to a final byte.
        '[' => {
            for (at, c) in chars {
                match c {
                    ' '..='?' => {}
                    '@'..='~' => return at + 1,
                    _ => return at,
                }
            }
            text.len()
        }
        // A string up to its terminator or BEL: titles, clipboards, links, device control.
        ']' | 'P' | 'X' | '^' | '_' => {
            for (at, c) in chars {
                match c {
                    '\u{7}' | '\u{9c}' => return at + c.len_utf8(),
                    '\u{1b}' => return at + if text[at + 1..].starts_with('\\') { 2 } else { 0 },
                    '\n' => return at,
                    _ => {}
                }
            }
            text.len()
        }
        // `ESC ( B` and the like.
        ' '..='/' => match chars.find(|(_, c)| !matches!(c, ' '..='/')) {
            Some((at, '0'..='~')) => at + 1,
            Some((at, _)) => at,
            None => text.len(),
        },
        '0'..='~' => 2,
        _ => 1,
    }
}

/// How often something was done.
pub fn times(n: u32) -> String {
    match n {
        1 => "once".to_owned(),
        2 => "twice".to_owned(),
        n => format!("{n} times"),
    }
}

/// A duration as people write it: `0.4s`, `12s`, `3m05s`, `1h02m`.
pub fn seconds(time: std::time::Duration) -> String {
    let whole = time.as_secs();
    match whole {
        0..10 => {
            let text = format!("{:.1}s", time.as_secs_f64());
            text.replace(".0s", "s")
        }
        10..60 => format!("{whole}s"),
        60..3600 => format!("{}m{:02}s", whole / 60, whole % 60),
        _ => format!("{}h{:02}m", whole / 3600, whole % 3600 / 60),
    }
}

/// Reads a time such as `90s`, `5m`, `1h30m` or `500ms`: units from long to short, each at most once. `None` for
/// anything else.
pub fn parse_seconds(text: &str) -> Option<std::time::Duration> {
    let mut rest = text;
    let mut time = std::time::Duration::ZERO;
    for (unit, millis) in [("h", 3_600_000), ("m", 60_000), ("s", 1000), ("ms", 1)] {
        let after = rest.trim_start_matches(|c: char| c.is_ascii_digit());
        let letters = after.len() - after.trim_start_matches(|c: char| c.is_ascii_lowercase()).len();
        if &after[..letters] != unit {
            continue;
        }
        let number: u64 = rest[..rest.len() - after.len()].parse().ok()?;
        time = time.checked_add(std::time::Duration::from_millis(number.checked_mul(millis)?))?;
        rest = &after[letters..];
    }
    (rest.is_empty() && !text.is_empty()).then_some(time)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_shown_cannot_move_a_cursor() {
        for (text, shown) in [
            ("plain \t é 日本\n", "plain \t é 日本\n"),
            ("a\u{1b}[31;1mred\u{1b}[0m b\r\nc\rd", "ared b\nc d"),
            ("\u{1b}]0;title\u{7}x\u{1b}]52;c;ZXZpbA==\u{1b}\\y\u{9d}8;;l\u{9c}z", "xyz"),
            ("\u{1b}Pq#0\u{1b}\\x\u{1b}(Bb\u{1b}cd\u{9b}2Je", "xbde"),
            // Cut off, or none at all.
            ("a\u{1b}", "a"),
            ("a\u{1b}]0;never ended\nb", "a\nb"),
            ("a\u{1b}[3\u{1b}[Kb", "ab"),
            ("a\u{8}\u{8}\u{0}b\u{7f}\u{202e}c", "a   b c"),
            ("\u{1b}é", "é"),
        ] {
            assert_eq!(printable(text), shown, "{text:?}");
        }
    }

    proptest::proptest! {
        #[test]
        fn nothing_that_is_shown_controls_anything(
            text in "(\u{1b}|\u{9b}|\u{9d}|[\\[\\]();mK\\\\é\u{7}\r\n 0a]|\\PC){0,40}"
        ) {
            let shown = printable(&text);
            proptest::prop_assert!(shown.chars().all(|c| c == '\n' || c == '\t' || !c.is_control()), "{shown:?}");
            proptest::prop_assert_eq!(printable(&shown), shown.clone());
        }
    }

    #[test]
    fn kinds_of_failures_read_back_and_unknown_ones_are_survived() {
        use FailureKind as K;
        let all = [
            K::Exit { code: 3 },
            K::Signal { name: "KILL".into() },
            K::bound(Duration::from_secs(2)),
            K::Refused,
            K::Unreachable,
            K::Lost,
            K::Denied,
            K::NoSpace,
            K::Damaged,
            K::Conflict,
            K::Cannot,
            K::Defect,
            K::Other,
        ];
        for kind in all {
            let text = serde_json::to_string(&kind).unwrap();
            assert_eq!(serde_json::from_str::<K>(&text).unwrap(), kind, "{text}");
        }
        assert_eq!(serde_json::to_string(&K::Exit { code: 3 }).unwrap(), r#"{"kind":"exit","exit_code":3}"#);
        assert_eq!(serde_json::from_str::<K>(r#"{"kind":"bewitched","spell":1}"#).unwrap(), K::Other);
        assert_eq!(serde_json::from_str::<K>("{}").unwrap(), K::Other);
    }

    #[test]
    fn times_are_read_and_written() {
        assert_eq!(parse_seconds("1h30m"), Some(Duration::from_secs(5400)));
        assert_eq!(parse_seconds("500ms"), Some(Duration::from_millis(500)));
        for bad in [
            "",
            "5",
            "m",
            "5x",
            "-5s",
            "5 m",
            "5s1m",
            "5m5m",
            "99999999999999999999s",
            "9999999999999999999h",
        ] {
            assert_eq!(parse_seconds(bad), None, "{bad}");
        }
        let texts = [400, 2000, 12_000, 185_000, 3_720_000].map(|ms| seconds(Duration::from_millis(ms)));
        assert_eq!(texts, ["0.4s", "2s", "12s", "3m05s", "1h02m"]);
    }
}
