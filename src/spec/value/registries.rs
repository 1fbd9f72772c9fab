//! `registries.yaml`, as k3s reads it: a key that it does not know is passed over without a word, and a
//! value of another kind keeps k3s from starting (rancher/wharfie, `pkg/registries/types.go`;
//! k3s-io/docs, docs/installation/private-registry.md).

use serde_json::{Value as Json, json};

use super::free::Map;
use crate::spec::Yaml;
use crate::spec::node::{Node, Value};
use crate::spec::report::{Report, listed, nearest, short};
use crate::spec::shape::{Shape, entries, wrong_kind};

/// Its content, as it is.
#[derive(Clone, Debug, Default)]
pub(in crate::spec) struct Registries(pub Yaml);

/// What is below a key.
enum Kind {
    /// These keys, and no others.
    Keys(&'static [(&'static str, Kind)]),
    /// Names of the user's choice, and below each the same.
    Each(&'static Kind),
    /// One text.
    Text,
    /// A truth value.
    Flag,
    /// Addresses.
    Addresses,
}

const AUTH: Kind = Kind::Keys(&[
    ("username", Kind::Text),
    ("password", Kind::Text),
    ("auth", Kind::Text),
    ("identity_token", Kind::Text),
]);

const TLS: Kind = Kind::Keys(&[
    ("ca_file", Kind::Text),
    ("cert_file", Kind::Text),
    ("key_file", Kind::Text),
    ("insecure_skip_verify", Kind::Flag),
]);

const MIRROR: Kind = Kind::Keys(&[("endpoint", Kind::Addresses), ("rewrite", Kind::Each(&Kind::Text))]);
const CONFIG: Kind = Kind::Keys(&[("auth", AUTH), ("tls", TLS)]);
const WHOLE: Kind = Kind::Keys(&[
    ("mirrors", Kind::Each(&MIRROR)),
    ("configs", Kind::Each(&CONFIG)),
    ("auths", Kind::Each(&AUTH)),
]);

impl Shape for Registries {
    fn schema() -> Json {
        json!({ "type": "object" })
    }

    fn read(node: &Node, report: &mut Report<'_>) -> Option<Self> {
        let before = report.errors();
        check(node, &WHOLE, "registries", report);
        if report.errors() > before {
            return None;
        }
        Map::read(node, report).map(|map| Self(map.0))
    }
}

fn check(node: &Node, kind: &Kind, within: &str, report: &mut Report<'_>) {
    match kind {
        // A mirror with nothing below it is one that the embedded registry shares.
        Kind::Keys(_) | Kind::Each(_) if matches!(node.value, Value::Null) => {}
        Kind::Keys(keys) => {
            for (name, at, value) in entries(node, report).into_iter().flatten() {
                if let Some((key, kind)) = keys.iter().find(|(key, _)| *key == name) {
                    check(value, kind, key, report);
                    continue;
                }
                let names = || keys.iter().map(|(key, _)| *key);
                let begins = || names().find(|key| key.starts_with(name));
                let message = format!("unknown key `{}` under `{within}`", report.excerpt(at));
                match nearest(name, names()).or_else(begins) {
                    Some(near) => report.error(at, message, format!("Did you mean `{near}`?")),
                    // k3s may be newer than this list.
                    None => {
                        let help =
                            format!("k3s passes over what it does not know; it knows {}.", listed(names()));
                        report.warning(at, message, help);
                    }
                }
            }
        }
        Kind::Each(kind) => {
            for (_, _, value) in entries(node, report).into_iter().flatten() {
                check(value, kind, within, report);
            }
        }
        Kind::Text if matches!(node.value, Value::List(_) | Value::Map(_) | Value::Null) => {
            wrong_kind(node, "text", "Write one word, in quotes if it has special characters.", report);
        }
        Kind::Text => {}
        Kind::Flag if matches!(*node.scalar(), Value::Bool(_)) => {}
        Kind::Flag => wrong_kind(node, "a truth value", "Write `true` or `false`.", report),
        Kind::Addresses => addresses(node, report),
    }
}

fn addresses(node: &Node, report: &mut Report<'_>) {
    const EXAMPLE: &str = "`endpoint: [\"https://registry.example.org\"]`";
    let Value::List(items) = &node.value else {
        let help = match &node.value {
            Value::Text(text) => {
                format!("k3s does not start with it: write `[\"{}\"]`.", short(text))
            }
            _ => format!("Write a list of addresses: {EXAMPLE}."),
        };
        return wrong_kind(node, "a list", &help, report);
    };
    for item in items {
        match &item.value {
            Value::Text(text) if is_address(text) => {}
            Value::Text(_) => {
                let message = format!("`{}` is not the address of a registry", item.shown(report));
                report.error(item.at, message, format!("Write it as in {EXAMPLE}."));
            }
            _ => wrong_kind(item, "text", &format!("Write an address: {EXAMPLE}."), report),
        }
    }
}

/// `https://host:port/path`, or without the scheme; variables of a template are not k3s'.
fn is_address(text: &str) -> bool {
    let rest = match text.split_once("://") {
        Some(("http" | "https", rest)) => rest,
        Some(_) => return false,
        None => text,
    };
    let host = rest.split('/').next().unwrap_or_default();
    // A user and a password before it are containerd's business.
    let host = host.rsplit_once('@').map_or(host, |(_, host)| host);
    let name = |c: char| c.is_ascii_alphanumeric() || "-._:[]%".contains(c);
    let port = host.rsplit_once(':').filter(|(before, _)| !before.contains(':') || before.ends_with(']'));
    !host.is_empty()
        && host.chars().all(name)
        && port.is_none_or(|(_, port)| port.parse::<u16>().is_ok_and(|port| port > 0))
        && text.chars().all(|c| c.is_ascii_graphic())
}

#[cfg(test)]
mod tests {
    use super::is_address;

    #[test]
    fn addresses_of_registries_may_name_a_user() {
        for good in [
            "https://mirror.test",
            "mirror.test:5000",
            "http://[::1]:5000/v2",
            "https://u:p-w@mirror.test:5000",
        ] {
            assert!(is_address(good), "{good}");
        }
        for bad in ["ftp://x", "https://a b", "x:0", "https://u:p@", ""] {
            assert!(!is_address(bad), "{bad}");
        }
    }
}
