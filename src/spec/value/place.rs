//! Where files come from: a path beside the spec, or a URL with its checksum.

use std::path::{Component, PathBuf};

use serde_json::{Value as Json, json};

use crate::spec::node::{Node, Value};
use crate::spec::report::Report;
use crate::spec::shape::{Field, Shape, object, text, with};
use crate::spec::{BoxRef, Source, TokenSource};

/// A file on this host that exists, absolute.
#[derive(Clone, Debug)]
pub(in crate::spec) struct FilePath(pub PathBuf);

/// A file or a directory on this host that exists, absolute.
#[derive(Clone, Debug)]
pub(in crate::spec) struct AnyPath(pub PathBuf);

impl Shape for AnyPath {
    fn schema() -> Json {
        FilePath::schema()
    }

    fn read(node: &Node, report: &mut Report<'_>) -> Option<Self> {
        path(node, &|meta| meta.is_file() || meta.is_dir(), report).map(Self)
    }
}

impl Shape for FilePath {
    fn schema() -> Json {
        json!({ "type": "string", "minLength": 1 })
    }

    fn read(node: &Node, report: &mut Report<'_>) -> Option<Self> {
        path(node, &std::fs::Metadata::is_file, report).map(Self)
    }
}

/// The path of something that is there and fits.
fn path(node: &Node, fits: &dyn Fn(&std::fs::Metadata) -> bool, report: &mut Report<'_>) -> Option<PathBuf> {
    let text = text(node, report)?;
    let shown = node.shown(report);
    if text.is_empty() || text.chars().any(char::is_control) {
        let help = "Write a path relative to the spec's folder, without control characters.";
        report.error(node.at, format!("`{shown}` is not a path"), help);
        return None;
    }
    let path: PathBuf = report.base.join(text).components().filter(|c| *c != Component::CurDir).collect();
    let (what, help) = match std::fs::metadata(&path) {
        Ok(meta) if fits(&meta) => return Some(path),
        Ok(_) => ("is not a file", format!("Name the file itself, not {}.", path.display())),
        Err(_) if text.starts_with('~') => {
            ("is not there", "`~` means nothing here; write the whole path.".to_owned())
        }
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => (
            "is not there",
            format!("p1 looked for {}: relative paths start at the spec's folder.", path.display()),
        ),
        Err(e) => ("cannot be checked", format!("{}: {e}.", path.display())),
    };
    report.error(node.at, format!("the file `{shown}` {what}"), help);
    None
}

/// A folder on this host, absolute; it need not be there yet.
#[derive(Clone, Debug)]
pub(in crate::spec) struct FolderPath(pub PathBuf);

impl Shape for FolderPath {
    fn schema() -> Json {
        json!({ "type": "string", "minLength": 1 })
    }

    fn read(node: &Node, report: &mut Report<'_>) -> Option<Self> {
        let text = text(node, report)?;
        if text.is_empty() || text.starts_with('~') || text.chars().any(char::is_control) {
            let message = format!("`{}` is not a folder", node.shown(report));
            report.error(node.at, message, "Write a path relative to the spec's folder, or a whole one.");
            return None;
        }
        Some(Self(report.base.join(text).components().filter(|c| *c != Component::CurDir).collect()))
    }
}

/// An `http`, `https` or `file` URL.
#[derive(Clone, Debug)]
pub(in crate::spec) struct Url(pub String);

impl Shape for Url {
    fn schema() -> Json {
        json!({ "type": "string", "pattern": "^(https?|file)://[!-~]+$" })
    }

    fn read(node: &Node, report: &mut Report<'_>) -> Option<Self> {
        let text = text(node, report)?;
        let rest = ["https://", "http://", "file://"].iter().find_map(|s| text.strip_prefix(s));
        // Quotes and spaces have no place in a URL unescaped (RFC 3986, 2), but do in shell and Ruby.
        let clean = |c: char| c.is_ascii_graphic() && !matches!(c, '"' | '\'' | '`' | '<' | '>' | '\\');
        if rest.is_some_and(|r| !r.is_empty() && r.chars().all(clean) && !r.starts_with(['-', '?', '#'])) {
            return Some(Self(text.to_owned()));
        }
        let message = format!("`{}` is not a URL", node.shown(report));
        let help = "Write `https://`, `http://` or `file://` and the rest, with spaces and quotes escaped \
                    (`%20`).";
        report.error(node.at, message, help);
        None
    }
}

/// A SHA-256 sum, lower case.
#[derive(Clone, Debug)]
pub(in crate::spec) struct Sha256(pub String);

impl Shape for Sha256 {
    fn schema() -> Json {
        json!({ "type": "string", "pattern": "^[0-9a-fA-F]{64}$" })
    }

    fn read(node: &Node, report: &mut Report<'_>) -> Option<Self> {
        const HELP: &str = "Write the 64 hex digits that `sha256sum` prints, in quotes.";
        if matches!(node.value, Value::Int(_) | Value::Float(_) | Value::Large(_)) {
            report.error(node.at, "a checksum of digits alone needs quotes", HELP);
            return None;
        }
        let text = text(node, report)?;
        if text.len() == 64 && text.bytes().all(|b| b.is_ascii_hexdigit()) {
            return Some(Self(text.to_ascii_lowercase()));
        }
        let count = text.chars().count();
        let message = format!("`{}` is not a SHA-256 sum", node.shown(report));
        report.error(node.at, message, format!("{HELP} This has {count} characters."));
        None
    }
}

object! {
    /// A file: `path`, or `url` with `sha256`.
    Location {
        /// A file on this host, relative to the folder of the spec.
        optional path: FilePath,
        /// Where the file is downloaded from: http, https or file.
        optional url: Url,
        /// The checksum of the file behind `url`: 64 hex digits.
        optional sha256: Sha256,
    }
}

impl Location {
    /// `Err` if it was reported or is incomplete.
    fn source(&self, node: &Node, report: &mut Report<'_>) -> Option<Source> {
        use crate::spec::shape::has;
        let given = [has(node, "path"), has(node, "url"), has(node, "sha256")];
        let problem = match given {
            [true, false, false] | [false, true, true] => None,
            [false, true, false] => {
                Some(("`sha256` is missing", "Nothing else vouches for a downloaded file; add its `sha256`."))
            }
            [true, ..] => {
                Some(("`path` and `url` exclude each other", "Keep `path`, or `url` with `sha256`."))
            }
            _ => Some(("a file is missing", "Write `{path: ..}`, or `{url: .., sha256: ..}`.")),
        };
        if let Some((message, help)) = problem {
            report.error(node.at, message, help);
            return None;
        }
        match (&self.path, &self.url, &self.sha256) {
            (Field::Good(path), ..) => Some(Source::Path(path.value.0.clone())),
            (_, Field::Good(url), Field::Good(sum)) => {
                Some(Source::Url { url: url.value.0.clone(), sha256: sum.value.0.clone() })
            }
            _ => None,
        }
    }
}

impl Shape for Source {
    fn schema() -> Json {
        with(
            Location::schema(),
            json!({
                "oneOf": [{ "required": ["path"] }, { "required": ["url"] }],
                "dependentRequired": { "url": ["sha256"], "sha256": ["url"] },
            }),
        )
    }

    fn read(node: &Node, report: &mut Report<'_>) -> Option<Self> {
        if let Value::Text(text) = &node.value {
            let message = format!("expected a mapping, found text `{}`", node.shown(report));
            let key = if text.contains("://") { "url" } else { "path" };
            report.error(node.at, message, format!("Say what it is: `{{{key}: {}}}`.", node.shown(report)));
            return None;
        }
        Location::read(node, report)?.source(node, report)
    }
}

object! {
    /// A secret that is kept elsewhere.
    Secret {
        /// A file of this host with the secret alone, relative to the folder of the spec. Mode 0600.
        optional file: FilePath,
        /// A variable of p1's environment.
        optional env: Variable,
    }
}

/// The name of a variable.
#[derive(Clone, Debug)]
pub(in crate::spec) struct Variable(pub String);

impl Shape for Variable {
    fn schema() -> Json {
        json!({ "type": "string", "pattern": "^[A-Za-z_][A-Za-z0-9_]*$" })
    }

    fn read(node: &Node, report: &mut Report<'_>) -> Option<Self> {
        let text = text(node, report)?;
        let good = |c: char| c.is_ascii_alphanumeric() || c == '_';
        if text.chars().all(good) && !text.is_empty() && !text.starts_with(|c: char| c.is_ascii_digit()) {
            return Some(Self(text.to_owned()));
        }
        let message = format!("`{}` is not the name of a variable", node.shown(report));
        report.error(node.at, message, "Letters, digits and `_`: `K3S_TOKEN`.");
        None
    }
}

impl Shape for TokenSource {
    fn schema() -> Json {
        with(Secret::schema(), json!({ "oneOf": [{ "required": ["file"] }, { "required": ["env"] }] }))
    }

    fn read(node: &Node, report: &mut Report<'_>) -> Option<Self> {
        const HELP: &str = "Write `{file: PATH}`, a file with the token alone, or `{env: NAME}`, a variable.";
        if let Value::Text(_) = &node.value {
            // Not shown: it is the secret itself.
            report.error(node.at, "a token does not stand in the spec itself", HELP);
            return None;
        }
        let secret = Secret::read(node, report)?;
        match (secret.file, secret.env) {
            (Field::Good(file), Field::Missing) => Some(Self::File(file.value.0)),
            (Field::Missing, Field::Good(env)) => Some(Self::Env(env.value.0)),
            (Field::Bad, _) | (_, Field::Bad) => None,
            _ => {
                report.error(node.at, "either `file` or `env` says where the token is", HELP);
                None
            }
        }
    }
}

impl Shape for BoxRef {
    fn schema() -> Json {
        json!({ "anyOf": [
            { "type": "string", "pattern": "^[a-z0-9]([a-z0-9._-]*[a-z0-9])?$", "maxLength": 63 },
            Source::schema(),
        ]})
    }

    fn read(node: &Node, report: &mut Report<'_>) -> Option<Self> {
        let Value::Text(name) = &node.value else {
            return match Source::read(node, report)? {
                Source::Path(path) => Some(Self::Path(path)),
                Source::Url { url, sha256 } => Some(Self::Url { url, sha256 }),
            };
        };
        let inner = name.chars().all(|c| matches!(c, 'a'..='z' | '0'..='9' | '.' | '_' | '-'));
        let edges = !name.starts_with(['.', '_', '-']) && !name.ends_with(['.', '_', '-']);
        if inner && edges && (1..=63).contains(&name.len()) {
            return Some(Self::Definition(name.clone()));
        }
        let message = format!("`{}` is not the name of a box definition", node.shown(report));
        let help = if name.contains("://") {
            "Write a box behind a URL as `{url: .., sha256: ..}`.".to_owned()
        } else if name.ends_with(".box") || name.starts_with(['.', '/', '~']) {
            format!("Write a box file as `{{path: {}}}`.", node.shown(report))
        } else if name.contains('/') {
            // reference: hashicorp/vagrant #13836.
            let own = name.replace('/', "-").to_lowercase();
            let like = definition_like(name);
            format!(
                "Vagrant's public box registry ends on 31 December 2026, so p1 does not use it. Write `box: {like}`, which p1 \
                 builds itself (`p1 box list` shows what else). If Vagrant has it on this host, \
                 `p1 box add --from-vagrant {name}` takes it over, for `box: {own}`; a file is `{{path: ..}}` or \
                 `{{url: .., sha256: ..}}`."
            )
        } else {
            "Use lower-case letters, digits, `-`, `_` and `.`; boxes/NAME.yaml defines it.".to_owned()
        };
        report.error(node.at, message, help);
        None
    }
}

/// Which of the definitions that come with p1 a registry's name means, by what it is called there.
fn definition_like(name: &str) -> &'static str {
    let letters: String = name.to_lowercase().chars().filter(char::is_ascii_alphanumeric).collect();
    let has = |words: &[&str]| words.iter().any(|word| letters.contains(word));
    match () {
        () if has(&["jammy", "ubuntu2204"]) => "ubuntu-22.04",
        () if has(&["ubuntu"]) => "ubuntu-24.04",
        () if has(&["alma10", "almalinux10", "rocky10", "rockylinux10", "stream10"]) => "almalinux-10",
        () if has(&["rocky"]) => "rocky-9",
        () if has(&["alma", "centos", "rhel", "oracle"]) => "almalinux-9",
        () if has(&["trixie", "debian13"]) => "debian-13",
        () => "debian-12",
    }
}
