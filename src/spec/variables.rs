//! `${NAME}` in the values of a spec: what it stands for, and which of them are secrets.
//!
//! The environment is handed in, and so is the way to the file `.env`, which is read only where a variable is not in
//! the environment.

use std::cell::OnceCell;
use std::collections::HashMap;
use std::ffi::OsString;

use super::node::{Filled, Node, Value};
use super::report::{Report, Span, short};
use super::value::is_variable;
use crate::redact::is_secret;

/// The variables of whoever called p1.
pub type Environment<'e> = &'e dyn Fn(&str) -> Option<OsString>;

/// The file beside the spec with variables that the environment does not have.
pub(super) const FILE: &str = ".env";

/// Bytes that variables may make of a spec.
const MOST: usize = 4 << 20;

/// What that file says, read once; a text that says why it cannot be read.
type Read<'e> = &'e dyn Fn() -> Result<HashMap<String, String>, String>;

/// Where variables have their values from.
pub(super) struct Variables<'e> {
    env: Environment<'e>,
    read: Read<'e>,
    file: OnceCell<Result<HashMap<String, String>, String>>,
    left: usize,
}

impl<'e> Variables<'e> {
    /// Nothing of the file is read yet.
    pub fn new(env: Environment<'e>, read: Read<'e>) -> Self {
        Self { env, read, file: OnceCell::new(), left: MOST }
    }

    /// Its value, or why that is not known and what to do.
    fn get(&self, name: &str) -> Result<Option<String>, (String, &'static str)> {
        if let Some(value) = (self.env)(name) {
            let text = value.into_string().map(Some);
            let why = || format!("the variable `{name}` of the environment is not UTF-8");
            return text.map_err(|_| (why(), "Set it to text in UTF-8."));
        }
        match self.file.get_or_init(self.read) {
            Ok(all) => Ok(all.get(name).cloned()),
            Err(why) => {
                Err((why.clone(), "Its variables are those that the environment does not have: mend it."))
            }
        }
    }
}

/// What a value is of, as far as it matters here.
#[derive(Clone, Copy, PartialEq)]
enum Place {
    Top,
    Provision,
    Provisioner,
    /// The environment of a provisioner, all of which counts as secret.
    Env,
    Other,
}

/// Puts values in the place of variables, everywhere but in scripts that stand in the spec themselves.
pub(super) fn fill(root: &mut Node, from: &mut Variables<'_>, report: &mut Report<'_>) {
    walk(root, None, Place::Top, false, from, report);
}

fn walk(
    node: &mut Node,
    key: Option<Span>,
    place: Place,
    secret: bool,
    from: &mut Variables<'_>,
    report: &mut Report<'_>,
) {
    match &mut node.value {
        Value::Map(entries) => {
            for (key, value) in entries {
                let Value::Text(name) = &key.value else { continue };
                let within = match (place, name.as_str()) {
                    (Place::Top, "provision") => Place::Provision,
                    // These are programs, in which `$` has a meaning of its own.
                    (Place::Provisioner, "inline" | "recipe") => continue,
                    (Place::Provisioner, "env") => Place::Env,
                    (Place::Env, _) => Place::Env,
                    _ => Place::Other,
                };
                walk(value, Some(key.at), within, within == Place::Env || is_secret(name), from, report);
            }
        }
        Value::List(items) => {
            let within = if place == Place::Provision { Place::Provisioner } else { place };
            items.iter_mut().for_each(|item| walk(item, None, within, secret, from, report));
        }
        Value::Text(text) if text.contains('$') => {
            let plain = !report.excerpt(node.at).starts_with(['"', '\'', '|', '>']);
            let mut filled = Filling { secret, any: false, text: String::new() };
            match filled.all(text, from, report) {
                Ok(()) if filled.any => {
                    node.filled = if plain && !filled.secret { Filled::Plain } else { Filled::Text };
                    node.value = Value::Text(filled.text);
                }
                Ok(()) => node.value = Value::Text(filled.text),
                Err(Wrong { what, message, help }) => {
                    // Some errors of a value stand at its key.
                    let of = Span { start: key.map_or(node.at.start, |key| key.start), end: node.at.end };
                    report.unknown(of, node.at, &what, message, help);
                }
            }
        }
        _ => {}
    }
}

/// What is wrong, and with which part of the value.
struct Wrong {
    what: String,
    message: String,
    help: String,
}

const FORMS: &str = "Write `${NAME}`, `${NAME:-DEFAULT}` or `${secret:NAME}`; `$${` is a literal `${`.";

/// A value in the making.
struct Filling {
    /// By its key; from the first `${secret:..}` on by its own word.
    secret: bool,
    /// A variable was in it.
    any: bool,
    text: String,
}

impl Filling {
    fn all(&mut self, text: &str, from: &mut Variables<'_>, report: &mut Report<'_>) -> Result<(), Wrong> {
        let mut rest = text;
        while let Some(at) = rest.find('$') {
            self.text.push_str(&rest[..at]);
            let after = &rest[at + 1..];
            if let Some(behind) = after.strip_prefix('$') {
                self.text.push('$');
                rest = behind;
            } else if let Some(inner) = after.strip_prefix('{') {
                rest = self.one(inner, from, report)?;
            } else {
                self.text.push('$');
                rest = after;
            }
        }
        self.text.push_str(rest);
        Ok(())
    }

    /// The value of one; what stands behind it.
    fn one<'t>(
        &mut self,
        inner: &'t str,
        from: &mut Variables<'_>,
        report: &mut Report<'_>,
    ) -> Result<&'t str, Wrong> {
        let wrong = |what: &str, message: String, help: &str| Wrong {
            what: format!("${{{what}"),
            message,
            help: help.to_owned(),
        };
        let Some((within, rest)) = inner.split_once('}') else {
            return Err(wrong(inner, "a `${` is not closed".to_owned(), FORMS));
        };
        let (name, default) = match within.split_once(":-") {
            Some((name, default)) => (name, Some(default)),
            None => (within, None),
        };
        let (secret, name) = match name.strip_prefix("secret:") {
            Some(name) => (true, name),
            None => (self.secret, name),
        };
        if !is_variable(name) {
            return Err(wrong(within, format!("`${{{}}}` is not a variable", short(within)), FORMS));
        }
        if default.is_some_and(|text| text.contains("${")) {
            let message = format!("the default of `{name}` has a variable in it");
            return Err(wrong(within, message, "A default is text alone."));
        }
        let value = from.get(name).map_err(|(why, help)| wrong(within, why, help))?;
        let value = match (value, default) {
            (Some(value), None) => value,
            (Some(value), Some(_)) if !value.is_empty() => value,
            (_, Some(default)) => default.to_owned(),
            (None, None) => {
                let help = "Set it in the environment, or in the file `.env` beside the spec; `:-` gives it a \
                            default: `${NAME:-VALUE}`.";
                return Err(wrong(within, format!("the variable `{name}` is not set"), help));
            }
        };
        if value.contains('\0') {
            return Err(wrong(
                within,
                format!("the variable `{name}` has a null character"),
                "Leave it out.",
            ));
        }
        let Some(left) = from.left.checked_sub(value.len()) else {
            return Err(wrong(
                within,
                "variables make more than 4 MiB of the spec".to_owned(),
                "Use smaller ones.",
            ));
        };
        from.left = left;
        self.any = true;
        if secret {
            self.secret = true;
            report.hide(&value);
        }
        self.text.push_str(&value);
        Ok(rest)
    }
}

/// The variables of a file `.env`; the number of a line that is none.
pub(super) fn of_file(text: &str) -> Result<HashMap<String, String>, usize> {
    let mut all = HashMap::new();
    for (number, line) in (1..).zip(text.trim_start_matches('\u{feff}').lines()) {
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let line = line.strip_prefix("export ").unwrap_or(line);
        let (name, value) = line.split_once('=').ok_or(number)?;
        let name = name.trim();
        if !is_variable(name) {
            return Err(number);
        }
        all.insert(name.to_owned(), of_line(value.trim()).ok_or(number)?);
    }
    Ok(all)
}

/// A value without its quotes and without a comment behind it.
fn of_line(value: &str) -> Option<String> {
    let nothing_behind = |rest: &str| rest.trim_start().is_empty() || rest.trim_start().starts_with('#');
    if let Some(inner) = value.strip_prefix('\'') {
        let (inner, rest) = inner.split_once('\'')?;
        return nothing_behind(rest).then(|| inner.to_owned());
    }
    let Some(inner) = value.strip_prefix('"') else {
        let comment = value.match_indices('#').find(|(at, _)| value[..*at].ends_with(char::is_whitespace));
        let end = comment.map_or(value.len(), |(at, _)| at);
        return Some(if value.starts_with('#') { String::new() } else { value[..end].trim_end().to_owned() });
    };
    let mut out = String::new();
    let mut chars = inner.chars();
    loop {
        match chars.next()? {
            '"' => return nothing_behind(chars.as_str()).then_some(out),
            '\\' => match chars.next()? {
                'n' => out.push('\n'),
                't' => out.push('\t'),
                c @ ('"' | '\\' | '$') => out.push(c),
                c => out.extend(['\\', c]),
            },
            c => out.push(c),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_of_variables_is_read_as_shells_write_it() {
        let text = "# a\n\nA=1\nexport B = two words # said\nC='it is $A # all' # x\nD=\"a\\n\\\"b\\\"\\$\"\nE=\nF=a#b\nG=#b\n";
        let all = of_file(text).unwrap();
        for (name, value) in [
            ("A", "1"),
            ("B", "two words"),
            ("C", "it is $A # all"),
            ("D", "a\n\"b\"$"),
            ("E", ""),
            ("F", "a#b"),
            ("G", ""),
        ] {
            assert_eq!(all[name], value, "{name}");
        }
        for (text, line) in [("A=1\nB\n", 2), ("1A=x", 1), ("A='x", 1), ("A=\"x\" y", 1), ("a b=c", 1)] {
            assert_eq!(of_file(text), Err(line), "{text}");
        }
    }
}
