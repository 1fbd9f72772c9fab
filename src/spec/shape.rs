//! How a part of the spec is read and how its JSON Schema looks, side by side, so that neither can
//! drift from the other.

use serde_json::{Value as Json, json};

use super::node::{Node, Value};
use super::report::{Report, Span, listed, nearest};

/// A part of the spec as written.
pub(super) trait Shape: Sized {
    /// What editors are told.
    fn schema() -> Json;

    /// Reads it; `None` after at least one error was reported.
    fn read(node: &Node, report: &mut Report<'_>) -> Option<Self>;
}

/// A value with its place.
#[derive(Clone, Debug)]
pub(super) struct At<T> {
    pub at: Span,
    pub value: T,
}

impl<T: Shape> Shape for At<T> {
    fn schema() -> Json {
        T::schema()
    }

    fn read(node: &Node, report: &mut Report<'_>) -> Option<Self> {
        T::read(node, report).map(|value| Self { at: node.at, value })
    }
}

/// The value of a key of an [`object!`].
#[derive(Clone, Debug, Default)]
pub(super) enum Field<T> {
    /// The key is not there.
    #[default]
    Missing,
    /// It is there, and what is wrong with it was reported.
    Bad,
    /// It was understood.
    Good(At<T>),
}

impl<T> Field<T> {
    /// With its place, where it was understood.
    pub fn get(&self) -> Option<&At<T>> {
        match self {
            Self::Good(at) => Some(at),
            _ => None,
        }
    }

    /// Where it was understood.
    pub fn value(&self) -> Option<&T> {
        self.get().map(|at| &at.value)
    }

    /// An error was reported, so nothing is to be said of its absence.
    pub fn is_bad(&self) -> bool {
        matches!(self, Self::Bad)
    }
}

/// Items of a list; `None` for one that was reported.
impl<T: Shape> Shape for Vec<Option<At<T>>> {
    fn schema() -> Json {
        json!({ "type": "array", "items": T::schema() })
    }

    fn read(node: &Node, report: &mut Report<'_>) -> Option<Self> {
        match &node.value {
            Value::List(items) => Some(items.iter().map(|item| Shape::read(item, report)).collect()),
            _ => {
                wrong_kind(node, "a list", "Write `[..]`, or one item per line after `- `.", report);
                None
            }
        }
    }
}

/// Reports `expected ..., found ...`.
pub(super) fn wrong_kind(node: &Node, expected: &str, help: &str, report: &mut Report<'_>) {
    let found = match node.value {
        Value::List(_) | Value::Map(_) | Value::Null => node.kind().to_owned(),
        _ => format!("{} `{}`", node.kind(), report.excerpt(node.at)),
    };
    report.error(node.at, format!("expected {expected}, found {found}"), help);
}

/// Text, or an error that says to quote what YAML takes for something else.
pub(super) fn text<'n>(node: &'n Node, report: &mut Report<'_>) -> Option<&'n str> {
    match &node.value {
        Value::Text(text) => Some(text),
        Value::Bool(_) | Value::Int(_) | Value::Large(_) | Value::Float(_) => {
            let help = format!("Put quotes around it: `\"{}\"`.", report.excerpt(node.at));
            wrong_kind(node, "text", &help, report);
            None
        }
        _ => {
            wrong_kind(node, "text", "Write one word, in quotes if it has special characters.", report);
            None
        }
    }
}

/// A mapping with its keys as text, each once.
pub(super) fn entries<'n>(node: &'n Node, report: &mut Report<'_>) -> Option<Vec<(&'n str, Span, &'n Node)>> {
    let Value::Map(map) = &node.value else {
        wrong_kind(node, "a mapping", "Write `key: value` lines, indented below the key.", report);
        return None;
    };
    let mut seen: std::collections::HashMap<&str, Span> = Default::default();
    let mut out = Vec::with_capacity(map.len());
    for (key, value) in map {
        let Value::Text(name) = &key.value else {
            let help = match key.value {
                Value::List(_) | Value::Map(_) => "Text in brackets needs quotes.".to_owned(),
                _ => format!("Put quotes around it: `\"{}\":`.", report.excerpt(key.at)),
            };
            report.error(key.at, format!("a key must be text, found {}", key.kind()), help);
            continue;
        };
        if let Some(first) = seen.get(name.as_str()) {
            let message = format!("the key `{}` is here twice", report.excerpt(key.at));
            let help = format!("Its first value is in line {}; keep one of the two.", report.line(*first));
            report.error(key.at, message, help);
            continue;
        }
        seen.insert(name, key.at);
        out.push((name.as_str(), key.at, value));
    }
    Some(out)
}

/// The entries of an object whose keys are known; others are reported.
pub(super) fn known<'n>(
    node: &'n Node,
    keys: &[&'static str],
    report: &mut Report<'_>,
) -> Option<Vec<(&'static str, &'n Node)>> {
    let mut out = Vec::new();
    for (name, at, value) in entries(node, report)? {
        match keys.iter().find(|k| **k == name) {
            // A key without a value: every part of the spec has a default for being absent.
            Some(key) if matches!(value.value, Value::Null) => {
                report.error(at, format!("`{key}` has no value"), "Give it one, or remove the key.");
            }
            Some(key) => out.push((*key, value)),
            None => {
                let help = match nearest(name, keys.iter().copied()) {
                    Some(key) => format!("Did you mean `{key}`?"),
                    None => format!("Known here: {}.", listed(keys.iter().copied())),
                };
                report.error(at, format!("unknown key `{}`", report.excerpt(at)), help);
            }
        }
    }
    Some(out)
}

/// One of a few words.
pub(super) fn choice<T: Copy>(
    node: &Node,
    words: &[(&'static str, T)],
    report: &mut Report<'_>,
) -> Option<T> {
    let word = text(node, report)?;
    let found = words.iter().find(|(w, _)| *w == word);
    if found.is_none() {
        let all = || words.iter().map(|(w, _)| *w);
        let help = match nearest(word, all()) {
            Some(near) => format!("Did you mean `{near}`?"),
            None => format!("Possible: {}.", listed(all())),
        };
        report.error(node.at, format!("unknown value `{}`", node.shown(report)), help);
    }
    found.map(|(_, value)| *value)
}

/// A schema with more said about it.
pub(super) fn with(mut schema: Json, more: Json) -> Json {
    if let (Json::Object(schema), Json::Object(more)) = (&mut schema, more) {
        schema.extend(more);
    }
    schema
}

/// Lines of a doc comment as one text.
pub(super) fn prose(lines: &[&str]) -> String {
    lines.iter().map(|l| l.trim()).collect::<Vec<_>>().join(" ").trim().to_owned()
}

/// The name of a key: that of the Rust field, where `box` has to be written `r#box`.
pub(super) fn key(field: &'static str) -> &'static str {
    field.trim_start_matches("r#")
}

/// Defines a mapping of the spec: a struct with a [`Field`] for each key, its reader and its
/// schema. Each key is `required` or `optional`, has a doc comment (its description in editors)
/// and may have a default, which is only for the schema: `resolve` applies it.
macro_rules! object {
    (
        $(#[doc = $about:literal])*
        $name:ident {
            $( $(#[doc = $doc:literal])* $need:ident $field:ident : $type:ty $(= $default:expr)? ),* $(,)?
        }
    ) => {
        $(#[doc = $about])*
        #[derive(Clone, Debug, Default)]
        pub(super) struct $name { $( $(#[doc = $doc])* pub $field: $crate::spec::shape::Field<$type>, )* }

        impl $name {
            pub const KEYS: &'static [(&'static str, bool)] = &[
                $( (stringify!($field), matches!(stringify!($need).as_bytes(), b"required")), )*
            ];
        }

        impl $crate::spec::shape::Shape for $name {
            fn schema() -> serde_json::Value {
                use $crate::spec::shape::{key, prose, with};
                let mut properties = serde_json::Map::new();
                $(
                    let doc: &[&str] = &[$($doc),*];
                    let schema = with(<$type>::schema(), serde_json::json!({ "description": prose(doc) }));
                    $( let schema = with(schema, serde_json::json!({ "default": $default })); )?
                    properties.insert(key(stringify!($field)).to_owned(), schema);
                )*
                let required: Vec<_> = Self::KEYS.iter().filter(|(_, need)| *need).map(|(k, _)| key(k)).collect();
                let about: &[&str] = &[$($about),*];
                serde_json::json!({
                    "description": prose(about),
                    "type": "object",
                    "properties": properties,
                    "required": required,
                    "additionalProperties": false,
                })
            }

            fn read(
                node: &$crate::spec::node::Node,
                report: &mut $crate::spec::report::Report<'_>,
            ) -> Option<Self> {
                use $crate::spec::shape::{Field, Shape, key, known, missing};
                let keys: Vec<&'static str> = Self::KEYS.iter().map(|(k, _)| key(k)).collect();
                let entries = known(node, &keys, report)?;
                missing(node, Self::KEYS, report);
                let mut out = Self::default();
                for (name, value) in entries {
                    $(
                        if name == key(stringify!($field)) {
                            out.$field = Shape::read(value, report).map_or(Field::Bad, Field::Good);
                        }
                    )*
                }
                // A key without a value was reported; it is not absent.
                $( if matches!(out.$field, Field::Missing)
                    && $crate::spec::shape::has(node, key(stringify!($field))) { out.$field = Field::Bad; } )*
                Some(out)
            }
        }
    };
}
pub(super) use object;

/// Defines a value of the spec that is one of a few words: an enum, its words, its reader and its schema.
macro_rules! choices {
    (
        $(#[$about:meta])*
        $name:ident { $( $(#[$doc:meta])* $value:ident = $word:literal ),* $(,)? }
    ) => {
        $(#[$about])*
        pub enum $name { $( $(#[$doc])* #[serde(rename = $word)] $value, )* }

        impl $name {
            /// Every value with its word, in the order in which people are told of them.
            pub const WORDS: &'static [(&'static str, Self)] = &[$( ($word, Self::$value) ),*];

            /// As it is written.
            #[allow(dead_code, reason = "of choices that messages name")]
            pub const fn word(self) -> &'static str {
                match self { $( Self::$value => $word, )* }
            }

            /// The value that is written like this.
            #[allow(dead_code, reason = "of choices that are made on the command line too")]
            pub fn parse(word: &str) -> Option<Self> {
                Self::WORDS.iter().find(|(known, _)| *known == word).map(|(_, value)| *value)
            }
        }

        impl $crate::spec::shape::Shape for $name {
            fn schema() -> serde_json::Value {
                serde_json::json!({ "enum": Self::WORDS.iter().map(|(word, _)| *word).collect::<Vec<_>>() })
            }

            fn read(
                node: &$crate::spec::node::Node,
                report: &mut $crate::spec::report::Report<'_>,
            ) -> Option<Self> {
                $crate::spec::shape::choice(node, Self::WORDS, report)
            }
        }
    };
}
pub(super) use choices;

/// Whether a mapping has a key.
pub(super) fn has(node: &Node, key: &str) -> bool {
    let Value::Map(map) = &node.value else { return false };
    map.iter().any(|(k, _)| matches!(&k.value, Value::Text(t) if t == key))
}

/// Reports required keys that are not there.
pub(super) fn missing(node: &Node, keys: &[(&'static str, bool)], report: &mut Report<'_>) {
    for (field, _) in keys.iter().filter(|(k, required)| *required && !has(node, key(k))) {
        let key = key(field);
        let example = match key {
            "name" => "Add it, e.g. `name: demo`.",
            "nodes" => "Add it, e.g.\nnodes:\n  - {name: server, role: server}\n  - {name: worker, count: 2}",
            _ => "Add it.",
        };
        let at = match &node.value {
            Value::Map(map) if !map.is_empty() && node.at.start == node.at.end => map[0].0.at,
            _ => node.at,
        };
        report.error(at, format!("`{key}` is missing"), example);
    }
}
