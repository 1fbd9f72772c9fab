//! The file as a tree in which every node knows its place.
//!
//! Serde's derived readers stop at their first error; a tree can be read to its end whatever is
//! wrong with it. serde-saphyr does the YAML, with its limits against alias bombs and deep nesting.

use std::borrow::Cow;
use std::fmt;

use serde::de::{self, Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_saphyr::{
    DuplicateKeyPolicy, Error, Location, MessageFormatter, NonFiniteFloatPolicy, Spanned,
    UserMessageFormatter,
};

use super::report::{Report, Span, short};

/// A value and its place. For an alias (`*x`) that is the alias.
#[derive(Clone, Debug)]
pub(super) struct Node {
    pub at: Span,
    pub value: Value,
    pub filled: Filled,
}

/// Whether variables of the environment made a value what it is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Filled {
    /// It is as it was written.
    #[default]
    No,
    /// Written without quotes: where anything may stand, a number is one.
    Plain,
    /// Text, unless a number or a truth value is wanted.
    Text,
}

/// What YAML 1.2 knows.
#[derive(Clone, Debug)]
pub(super) enum Value {
    Null,
    Bool(bool),
    Int(i64),
    /// Beyond `i64`.
    Large(u64),
    Float(f64),
    Text(String),
    List(Vec<Node>),
    /// In the order of the file, duplicates included.
    Map(Vec<(Node, Node)>),
}

impl Node {
    /// The value as it may be shown in a message, without the quotes of the file.
    pub fn shown(&self, report: &Report<'_>) -> String {
        match &self.value {
            Value::Text(text) => short(text),
            _ => report.excerpt(self.at),
        }
    }

    /// The value where a number or a truth value is wanted: variables make text of everything.
    pub fn scalar(&self) -> Cow<'_, Value> {
        let Value::Text(text) = &self.value else { return Cow::Borrowed(&self.value) };
        let read = match text.as_str() {
            _ if self.filled == Filled::No => None,
            "true" => Some(Value::Bool(true)),
            "false" => Some(Value::Bool(false)),
            text => text.parse::<i64>().ok().filter(|number| number.to_string() == text).map(Value::Int),
        };
        read.map_or(Cow::Borrowed(&self.value), Cow::Owned)
    }

    /// What it is, for `expected ..., found ...`.
    pub fn kind(&self) -> &'static str {
        match self.value {
            Value::Null => "nothing",
            Value::Bool(_) => "a truth value",
            Value::Int(_) | Value::Large(_) => "a whole number",
            Value::Float(_) => "a fraction",
            Value::Text(_) => "text",
            Value::List(_) => "a list",
            Value::Map(_) => "a mapping",
        }
    }
}

/// A syntax error: place, message, help.
pub(super) type Syntax = (Span, String, String);

/// Reads one YAML document.
pub(super) fn read(text: &str) -> Result<Node, Syntax> {
    let options = serde_saphyr::options! {
        budget: serde_saphyr::budget! {
            max_depth: 64,
            max_nodes: 50_000,
            max_events: 200_000,
            // Texts repeated by aliases included.
            max_total_scalar_bytes: 4 << 20,
            max_recorded_anchor_bytes: 4 << 20,
        },
        alias_limits: serde_saphyr::alias_limits! { max_total_replayed_events: 20_000 },
        duplicate_keys: DuplicateKeyPolicy::PassThrough,
        // As in YAML 1.2; `yes` and `0644` stay the text that the user sees.
        strict_booleans: true,
        leading_zero_numbers_as_strings: true,
        underscored_numbers_as_strings: true,
        non_finite_float_policy: NonFiniteFloatPolicy::AsString,
        reject_unsupported_tags: true,
        with_snippet: false,
    };
    serde_saphyr::from_str_with_options(text, options).map_err(|e| syntax(text, &e))
}

fn syntax(text: &str, error: &Error) -> Syntax {
    let at = error.location().map_or(Span::default(), |l| span_in(text, l));
    let message = UserMessageFormatter.format_message(error.without_snippet()).into_owned();
    let (message, help) = match error {
        Error::MultipleDocuments { .. } => (
            "a second YAML document starts here".to_owned(),
            "One file describes one cluster; put the second one into a file of its own.",
        ),
        Error::Budget { .. } | Error::AliasReplayLimitExceeded { .. } => (
            "the file is too deeply nested, or its aliases make too much of it".to_owned(),
            "A spec needs neither; write the values out.",
        ),
        _ if message.contains("too complex") => (
            "the file's aliases make too much of it".to_owned(),
            "A spec needs few aliases or none; write the values out.",
        ),
        Error::RecursiveReferencesRequireWeakTypes { .. } => {
            ("an alias refers to what contains it".to_owned(), "Write the value out.")
        }
        _ if message.contains("recursion limit") => (
            "the file is too deeply nested".to_owned(),
            "A spec is a few levels deep; a bracket is probably never closed.",
        ),
        Error::UnsupportedTag { .. } => (message, "A spec uses no YAML tags; remove it."),
        Error::UnknownAnchor { .. } => (
            message,
            "An alias (`*name`) needs an anchor (`&name`) before it; quote text that starts with `*`.",
        ),
        // Braces are YAML's own within `{..}` and `[..]`.
        _ if text.get(at.start.saturating_sub(1)..).is_some_and(|rest| rest.starts_with("${")) => {
            (message, "Within `{..}` and `[..]` a variable needs quotes: `\"${NAME}\"`.")
        }
        _ if message.contains("tab") => (message, "YAML is indented with spaces; replace the tab."),
        _ if message.contains("mapping values") => (
            message,
            "Keys of one mapping start in the same column, and text that contains `: ` needs quotes.",
        ),
        _ if message.contains("unexpected character") => {
            (message, "Put quotes around text that starts with a special character.")
        }
        _ => (message, "This is not valid YAML; look at the indentation, brackets and quotes just before."),
    };
    (at, message, help.to_owned())
}

/// A location as bytes. The parser's own errors have lines and columns only.
fn span_in(text: &str, at: Location) -> Span {
    let span = at.span();
    if let (Some(start), Some(len)) = (span.byte_offset(), span.byte_len()) {
        return Span { start: start as usize, end: (start + len) as usize };
    }
    let line = (at.line() as usize).saturating_sub(1);
    let from = match line {
        0 => 0,
        _ => text.match_indices('\n').nth(line - 1).map_or(text.len(), |(i, _)| i + 1),
    };
    let column = (at.column() as usize).saturating_sub(1);
    let start = text[from..].char_indices().nth(column).map_or(text.len(), |(i, _)| from + i);
    Span { start, end: start }
}

impl<'de> Deserialize<'de> for Node {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let spanned = Spanned::<Value>::deserialize(deserializer)?;
        let span = spanned.referenced.span();
        let start = span.byte_offset().unwrap_or(0) as usize;
        let end = start + span.byte_len().unwrap_or(0) as usize;
        Ok(Self { at: Span { start, end }, value: spanned.value, filled: Filled::No })
    }
}

impl<'de> Deserialize<'de> for Value {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(Any)
    }
}

struct Any;

impl<'de> Visitor<'de> for Any {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("any YAML value")
    }

    fn visit_unit<E: de::Error>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E: de::Error>(self, v: bool) -> Result<Value, E> {
        Ok(Value::Bool(v))
    }

    fn visit_i64<E: de::Error>(self, v: i64) -> Result<Value, E> {
        Ok(Value::Int(v))
    }

    fn visit_u64<E: de::Error>(self, v: u64) -> Result<Value, E> {
        Ok(i64::try_from(v).map_or(Value::Large(v), Value::Int))
    }

    fn visit_f64<E: de::Error>(self, v: f64) -> Result<Value, E> {
        Ok(Value::Float(v))
    }

    fn visit_str<E: de::Error>(self, v: &str) -> Result<Value, E> {
        Ok(Value::Text(v.to_owned()))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Value, A::Error> {
        let mut items = Vec::new();
        while let Some(item) = seq.next_element()? {
            items.push(item);
        }
        Ok(Value::List(items))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Value, A::Error> {
        let mut entries = Vec::new();
        while let Some(entry) = map.next_entry()? {
            entries.push(entry);
        }
        Ok(Value::Map(entries))
    }
}
