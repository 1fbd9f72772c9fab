//! How machines that exist already are reached.

use std::path::{Component, PathBuf};

use serde_json::{Value as Json, json};

use super::Text;
use crate::spec::Ask;
use crate::spec::node::{Node, Value};
use crate::spec::report::Report;
use crate::spec::shape::{Field, Shape, object, text, wrong_kind};

/// A host as `ssh` is told of it: a name or an address, or a name of the user's `ssh_config`.
#[derive(Clone, Debug)]
pub(in crate::spec) struct SshHost(pub String);

/// What `ssh` would take for an option, or a shell for more than a word, is no host.
fn is_host(text: &str) -> bool {
    let fine = |c: char| c.is_ascii_alphanumeric() || "._:-[]%".contains(c);
    !text.is_empty() && text.len() <= 255 && !text.starts_with('-') && text.chars().all(fine)
}

impl Shape for SshHost {
    fn schema() -> Json {
        json!({ "type": "string", "pattern": "^[A-Za-z0-9_.:\\[\\]%][A-Za-z0-9_.:\\[\\]%-]*$", "maxLength": 255 })
    }

    fn read(node: &Node, report: &mut Report<'_>) -> Option<Self> {
        let text = text(node, report)?;
        if is_host(text) {
            return Some(Self(text.to_owned()));
        }
        let help = match text.split_once('@') {
            Some((user, host)) if is_host(host) => {
                format!("The user stands by itself: `{{host: {host}, user: {user}}}`.")
            }
            _ => "Write a name or an address as `ssh` takes it: `pi.local`, `192.168.1.21`.".to_owned(),
        };
        report.error(node.at, format!("`{}` is not a host", node.shown(report)), help);
        None
    }
}

/// A login name.
#[derive(Clone, Debug)]
pub(in crate::spec) struct User(pub String);

impl Shape for User {
    fn schema() -> Json {
        json!({ "type": "string", "pattern": "^[A-Za-z0-9_.][A-Za-z0-9_.@-]*$", "maxLength": 64 })
    }

    fn read(node: &Node, report: &mut Report<'_>) -> Option<Self> {
        let text = text(node, report)?;
        let fine = |c: char| c.is_ascii_alphanumeric() || "_.@-".contains(c);
        if !text.is_empty() && text.len() <= 64 && !text.starts_with(['-', '@']) && text.chars().all(fine) {
            return Some(Self(text.to_owned()));
        }
        let message = format!("`{}` is not a login name", node.shown(report));
        report.error(node.at, message, "Write the name that `ssh USER@HOST` would have: `pi`, `root`.");
        None
    }
}

/// The hosts through which another is reached, the nearest one first, as `ssh -J` takes them.
#[derive(Clone, Debug)]
pub(in crate::spec) struct Jump(pub String);

impl Shape for Jump {
    fn schema() -> Json {
        json!({ "type": "string", "pattern": "^[A-Za-z0-9_.:@,\\[\\]%-]+$" })
    }

    fn read(node: &Node, report: &mut Report<'_>) -> Option<Self> {
        let text = text(node, report)?;
        let good =
            |hop: &str| is_host(hop.rsplit_once('@').map_or(hop, |(_, host)| host)) && !hop.starts_with('-');
        if !text.is_empty() && text.split(',').all(good) {
            return Some(Self(text.to_owned()));
        }
        let message = format!("`{}` is not a jump host", node.shown(report));
        report.error(node.at, message, "Write it as `ssh -J` takes it: `bastion`, `me@bastion:2222`.");
        None
    }
}

/// A private key, which need not be there yet; `~/` is the user's home.
#[derive(Clone, Debug)]
pub(in crate::spec) struct KeyPath(pub PathBuf);

impl Shape for KeyPath {
    fn schema() -> Json {
        json!({ "type": "string", "minLength": 1 })
    }

    fn read(node: &Node, report: &mut Report<'_>) -> Option<Self> {
        let Text(text) = Text::read(node, report)?;
        if text.chars().any(char::is_control) || text.ends_with(".pub") {
            let message = format!("`{}` is not a private key", node.shown(report));
            report.error(node.at, message, "Name the file of the private half: `~/.ssh/id_ed25519`.");
            return None;
        }
        if text.starts_with("~/") {
            return Some(Self(text.into()));
        }
        Some(Self(report.base.join(text).components().filter(|c| *c != Component::CurDir).collect()))
    }
}

object! {
    /// Where a password is.
    PasswordFile {
        /// `prompt`, or the name of a variable of p1's environment.
        required from: Text,
    }
}

impl Shape for Ask {
    fn schema() -> Json {
        PasswordFile::schema()
    }

    fn read(node: &Node, report: &mut Report<'_>) -> Option<Self> {
        const HELP: &str =
            "Write `{from: prompt}`, to be asked, or `{from: NAME}`, a variable of the environment.";
        match &node.value {
            // Not shown: it is the secret itself.
            Value::Text(_) | Value::Int(_) => {
                report.error(node.at, "a password does not stand in the spec itself", HELP);
                return None;
            }
            Value::Map(_) => {}
            _ => {
                wrong_kind(node, "a mapping", HELP, report);
                return None;
            }
        }
        let file = PasswordFile::read(node, report)?;
        let Field::Good(from) = &file.from else { return None };
        match from.value.0.as_str() {
            "prompt" => Some(Self::Prompt),
            name if super::is_variable(name) => Some(Self::Env(name.to_owned())),
            _ => {
                report.error(from.at, "that is not the name of a variable", HELP);
                None
            }
        }
    }
}
