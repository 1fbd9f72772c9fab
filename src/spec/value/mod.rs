//! The single values of a spec: names, addresses, sizes, times, files. Each knows its schema, its
//! rules and what to say when they are broken.

mod apps;
mod disk;
mod free;
mod k3s;
mod net;
mod place;
mod registries;
mod ssh;

pub(super) use apps::{Image, ManifestEntry, NamespaceEntry};
pub(super) use disk::{DiskEntry, Room};
pub(super) use free::{Config, Entry, Labels, Map, Taints, check_label, check_taint};
pub(super) use k3s::{Channel, Version};
pub(super) use net::{Address, Bridge, Cidr, HostName, Hosts, is_private};
pub(super) use place::{AnyPath, FilePath, FolderPath};
pub(super) use registries::Registries;
pub(super) use ssh::{Jump, KeyPath, SshHost, User};

use std::time::Duration;

use serde_json::{Value as Json, json};

use super::node::{Node, Value};
use super::provision::{SLOTS, TYPES};
use super::report::Report;
use super::shape::{Shape, choice, text, wrong_kind};
use super::{ProvisionType, Role, Slot};
use crate::explain::parse_seconds;

impl Shape for Role {
    fn schema() -> Json {
        json!({ "enum": ["server", "worker", "agent", "none"] })
    }

    fn read(node: &Node, report: &mut Report<'_>) -> Option<Self> {
        // k3s calls a worker an agent.
        let words = [
            ("server", Self::Server),
            ("worker", Self::Worker),
            ("agent", Self::Worker),
            ("none", Self::None),
        ];
        choice(node, &words, report)
    }
}

impl Shape for Slot {
    fn schema() -> Json {
        json!({ "enum": SLOTS.map(|(name, _)| name) })
    }

    fn read(node: &Node, report: &mut Report<'_>) -> Option<Self> {
        choice(node, &SLOTS, report)
    }
}

impl Shape for ProvisionType {
    fn schema() -> Json {
        json!({ "enum": TYPES.map(|(name, _)| name) })
    }

    fn read(node: &Node, report: &mut Report<'_>) -> Option<Self> {
        choice(node, &TYPES, report)
    }
}

/// An argument of a script: any text, nothing included.
#[derive(Clone, Debug)]
pub(super) struct Argument(pub String);

impl Shape for Argument {
    fn schema() -> Json {
        json!({ "type": "string" })
    }

    fn read(node: &Node, report: &mut Report<'_>) -> Option<Self> {
        let text = text(node, report)?;
        if text.contains('\0') {
            report.error(node.at, "an argument cannot have a null character", "Leave it out.");
            return None;
        }
        Some(Self(text.to_owned()))
    }
}

/// Any text but nothing.
#[derive(Clone, Debug)]
pub(super) struct Text(pub String);

impl Shape for Text {
    fn schema() -> Json {
        json!({ "type": "string", "minLength": 1 })
    }

    fn read(node: &Node, report: &mut Report<'_>) -> Option<Self> {
        let text = text(node, report)?;
        if text.is_empty() || text.contains('\0') {
            report.error(
                node.at,
                "expected text, found none",
                "Write what it is to be, or leave the key out.",
            );
            return None;
        }
        Some(Self(text.to_owned()))
    }
}

/// `true` or `false`.
#[derive(Clone, Copy, Debug)]
pub(super) struct Flag(pub bool);

impl Shape for Flag {
    fn schema() -> Json {
        json!({ "type": "boolean" })
    }

    fn read(node: &Node, report: &mut Report<'_>) -> Option<Self> {
        let Value::Bool(value) = *node.scalar() else {
            wrong_kind(node, "`true` or `false`", "Write it without quotes.", report);
            return None;
        };
        Some(Self(value))
    }
}

/// Whether a name can be that of a variable in a shell's environment.
pub(super) fn is_variable(name: &str) -> bool {
    name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_')
        && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
}

/// A whole number between two bounds.
#[derive(Clone, Copy, Debug)]
pub(super) struct Count<const MIN: u32, const MAX: u32>(pub u32);

impl<const MIN: u32, const MAX: u32> Shape for Count<MIN, MAX> {
    fn schema() -> Json {
        json!({ "type": "integer", "minimum": MIN, "maximum": MAX })
    }

    fn read(node: &Node, report: &mut Report<'_>) -> Option<Self> {
        let help = format!("Write a whole number from {MIN} to {MAX}, without quotes.");
        let number = match *node.scalar() {
            Value::Int(number) => u32::try_from(number).ok(),
            Value::Large(_) => None,
            _ => {
                wrong_kind(node, "a whole number", &help, report);
                return None;
            }
        };
        let number = number.filter(|n| (MIN..=MAX).contains(n));
        if number.is_none() {
            report.error(node.at, format!("`{}` is out of range", node.shown(report)), help);
        }
        number.map(Self)
    }
}

/// The longest DNS label (RFC 1035, 2.3.4).
pub(super) const LABEL: usize = 63;

/// A DNS label as Kubernetes wants it (RFC 1123, lower case).
#[derive(Clone, Debug)]
pub(super) struct Name(pub String);

impl Shape for Name {
    fn schema() -> Json {
        json!({ "type": "string", "pattern": "^[a-z0-9]([-a-z0-9]*[a-z0-9])?$", "maxLength": LABEL })
    }

    fn read(node: &Node, report: &mut Report<'_>) -> Option<Self> {
        let name = text(node, report)?;
        if is_label(name) {
            return Some(Self(name.to_owned()));
        }
        let better = to_label(name);
        let mut help = format!(
            "Use 1 to {LABEL} lower-case letters, digits and `-`, with a letter or digit at both ends."
        );
        if !better.is_empty() {
            help = format!("{help} `{better}` would do.");
        }
        report.error(node.at, format!("`{}` is not a DNS label", node.shown(report)), help);
        None
    }
}

/// Whether a name is a DNS label as Kubernetes wants it.
pub(super) fn is_label(name: &str) -> bool {
    let edge = |c: Option<char>| c.is_some_and(|c| c != '-');
    name.len() <= LABEL
        && name.chars().all(|c| matches!(c, 'a'..='z' | '0'..='9' | '-'))
        && edge(name.chars().next())
        && edge(name.chars().last())
}

/// The DNS label nearest to any text; empty if nothing of it can be kept.
pub(super) fn to_label(any: &str) -> String {
    let mut out = String::new();
    for c in any.chars().take(4 * LABEL) {
        match c.to_ascii_lowercase() {
            c @ ('a'..='z' | '0'..='9') => out.push(c),
            _ if !out.is_empty() && !out.ends_with('-') => out.push('-'),
            _ => {}
        }
    }
    out.truncate(LABEL);
    out.trim_matches('-').to_owned()
}

/// A machine's memory in MiB.
#[derive(Clone, Copy, Debug)]
pub(super) struct Memory(pub u32);

impl Memory {
    /// No Debian boots in less.
    const MIN: u32 = 128;
    /// 4 TiB.
    const MAX: u32 = 4 << 20;
}

impl Shape for Memory {
    fn schema() -> Json {
        json!({ "anyOf": [
            { "type": "integer", "minimum": Self::MIN, "maximum": Self::MAX },
            { "type": "string", "pattern": "^[0-9]+ ?(M|Mi|MiB|G|Gi|GiB)$" },
        ]})
    }

    fn read(node: &Node, report: &mut Report<'_>) -> Option<Self> {
        const HELP: &str = "Write MiB (`2048`) or a whole number with a unit: `512MiB`, `2GiB`.";
        let mib = match &*node.scalar() {
            Value::Int(number) => u32::try_from(*number).ok(),
            Value::Large(_) => None,
            Value::Text(text) => {
                let Some(mib) = parse_memory(text) else {
                    let message = format!("`{}` is not a size", node.shown(report));
                    report.error(node.at, message, HELP);
                    return None;
                };
                u32::try_from(mib).ok()
            }
            _ => {
                wrong_kind(node, "a size", HELP, report);
                return None;
            }
        };
        let mib = mib.filter(|m| (Self::MIN..=Self::MAX).contains(m));
        if mib.is_none() {
            let message = format!("`{}` is out of range", node.shown(report));
            report.error(node.at, message, format!("A machine gets from {} MiB to 4 TiB. {HELP}", Self::MIN));
        }
        mib.map(Self)
    }
}

fn parse_memory(text: &str) -> Option<u64> {
    let digits = text.trim_start_matches(|c: char| c.is_ascii_digit());
    let number: u64 = text[..text.len() - digits.len()].parse().ok()?;
    match digits.strip_prefix(' ').unwrap_or(digits) {
        "M" | "Mi" | "MiB" => Some(number),
        "G" | "Gi" | "GiB" => number.checked_mul(1024),
        _ => None,
    }
}

/// A length of time, more than nothing and at most a day.
#[derive(Clone, Copy, Debug)]
pub(super) struct Time(pub Duration);

impl Shape for Time {
    fn schema() -> Json {
        json!({ "type": "string", "pattern": "^([0-9]+h)?([0-9]+m)?([0-9]+s)?([0-9]+ms)?$", "minLength": 2 })
    }

    fn read(node: &Node, report: &mut Report<'_>) -> Option<Self> {
        const HELP: &str = "Write a time with its unit: `90s`, `5m`, `1h30m` or `500ms`.";
        if matches!(node.value, Value::Int(_) | Value::Float(_) | Value::Large(_)) {
            report.error(node.at, format!("`{}` has no unit", node.shown(report)), HELP);
            return None;
        }
        let text = text(node, report)?;
        let Some(time) = parse_seconds(text) else {
            report.error(node.at, format!("`{}` is not a time", node.shown(report)), HELP);
            return None;
        };
        if time.is_zero() || time > Duration::from_secs(24 * 60 * 60) {
            let message = format!("`{}` is out of range", node.shown(report));
            report.error(
                node.at,
                message,
                "Every wait is longer than nothing and ends within a day (`24h`).",
            );
            return None;
        }
        Some(Self(time))
    }
}
