//! Parts of the spec that belong to k3s and Kubernetes: settings, registries, labels, taints.

use serde_json::{Value as Json, json};

use crate::spec::Yaml;
use crate::spec::node::{Node, Value};
use crate::spec::report::{Report, Span};
use crate::spec::shape::{At, Shape, entries, text, wrong_kind};

/// One of k3s' settings.
#[derive(Clone, Debug)]
pub(in crate::spec) struct Entry {
    /// Without dashes; may end in `+`, which appends.
    pub key: String,
    pub key_at: Span,
    pub at: Span,
    pub value: serde_yaml::Value,
}

/// Settings for k3s' config.yaml: keys are those of its command line.
#[derive(Clone, Debug, Default)]
pub(in crate::spec) struct Config(pub Vec<Entry>);

impl Shape for Config {
    fn schema() -> Json {
        let scalar = json!({ "type": ["string", "number", "boolean"] });
        json!({
            "type": "object",
            "propertyNames": { "pattern": "^[a-z][a-z0-9-]*\\+?$" },
            "additionalProperties": { "anyOf": [scalar, { "type": "array", "items": scalar }] },
        })
    }

    fn read(node: &Node, report: &mut Report<'_>) -> Option<Self> {
        let before = report.errors();
        let mut out = Vec::new();
        for (key, key_at, value) in entries(node, report)? {
            let option = key.strip_suffix('+').unwrap_or(key);
            let mut rest = option.chars();
            let fits = rest.next().is_some_and(|c| c.is_ascii_lowercase())
                && rest.all(|c| matches!(c, 'a'..='z' | '0'..='9' | '-'));
            if !fits {
                let better = option.trim_start_matches('-').to_ascii_lowercase().replace('_', "-");
                let message = format!("`{}` is not a setting of k3s", report.excerpt(key_at));
                report.error(
                    key_at,
                    message,
                    format!("Write it without leading dashes: `{}:`.", show(&better)),
                );
            }
            if let Some(yaml) = setting(value, report) {
                out.push(Entry { key: key.to_owned(), key_at, at: value.at, value: yaml });
            }
        }
        (report.errors() == before).then_some(Self(out))
    }
}

fn show(key: &str) -> String {
    key.chars().filter(|c| c.is_ascii_graphic()).take(40).collect()
}

/// A value of a setting: one word or a list of them. k3s turns each into a command line argument
/// (k3s, pkg/configfilearg/parser.go), so a mapping or nothing would become nonsense.
fn setting(node: &Node, report: &mut Report<'_>) -> Option<serde_yaml::Value> {
    match &node.value {
        Value::List(items) => {
            let items: Vec<_> = items.iter().map(|i| scalar(i, report)).collect();
            items.into_iter().collect::<Option<Vec<_>>>().map(serde_yaml::Value::Sequence)
        }
        _ => scalar(node, report),
    }
}

fn scalar(node: &Node, report: &mut Report<'_>) -> Option<serde_yaml::Value> {
    // k3s reads YAML 1.1, where these are truth values when nothing quotes them.
    const OLD: [&str; 6] = ["yes", "no", "on", "off", "y", "n"];
    match &node.value {
        Value::Text(text) => {
            let lower = text.to_ascii_lowercase();
            if OLD.contains(&lower.as_str()) && report.excerpt(node.at) == *text {
                let bool = matches!(lower.as_str(), "yes" | "on" | "y");
                let message = format!("`{text}` is a truth value in YAML 1.1 and text in YAML 1.2");
                report.error(node.at, message, format!("Write `{bool}`, or `\"{text}\"` for the text."));
                return None;
            }
            Some(text.as_str().into())
        }
        Value::Bool(value) => Some((*value).into()),
        Value::Int(value) => Some((*value).into()),
        Value::Large(value) => Some((*value).into()),
        Value::Float(value) => Some((*value).into()),
        _ => {
            wrong_kind(
                node,
                "a value",
                "Write text, a number, `true` or `false`, or a list of these.",
                report,
            );
            None
        }
    }
}

/// Any mapping, as it is.
#[derive(Clone, Debug, Default)]
pub(in crate::spec) struct Map(pub Yaml);

impl Shape for Map {
    fn schema() -> Json {
        json!({ "type": "object" })
    }

    fn read(node: &Node, report: &mut Report<'_>) -> Option<Self> {
        let mut out = Yaml::new();
        let before = report.errors();
        for (key, _, value) in entries(node, report)? {
            if let Some(value) = any(value, report) {
                out.insert(key.into(), value);
            }
        }
        (report.errors() == before).then_some(Self(out))
    }
}

fn any(node: &Node, report: &mut Report<'_>) -> Option<serde_yaml::Value> {
    match &node.value {
        Value::Null => Some(serde_yaml::Value::Null),
        Value::List(items) => {
            let items: Vec<_> = items.iter().map(|i| any(i, report)).collect();
            items.into_iter().collect::<Option<Vec<_>>>().map(serde_yaml::Value::Sequence)
        }
        Value::Map(_) => Map::read(node, report).map(|m| serde_yaml::Value::Mapping(m.0)),
        _ => scalar(node, report),
    }
}

/// Labels of a node: a mapping, or a list of `key=value`.
#[derive(Clone, Debug, Default)]
pub(in crate::spec) struct Labels(pub Vec<String>);

impl Shape for Labels {
    fn schema() -> Json {
        json!({ "anyOf": [
            { "type": "object", "additionalProperties": { "type": "string" } },
            { "type": "array", "items": { "type": "string", "pattern": "^[^=]+=[^=]*$" } },
        ]})
    }

    fn read(node: &Node, report: &mut Report<'_>) -> Option<Self> {
        let before = report.errors();
        let mut out = Vec::new();
        let mut seen: Vec<String> = Vec::new();
        let mut add = |at: Span, label: String, report: &mut Report<'_>| {
            check_label(&label, at, report);
            let key = label.split('=').next().unwrap_or_default().to_owned();
            if seen.contains(&key) {
                let message = format!("the label `{}` is here twice", show(&key));
                report.error(at, message, "A node has one value for each label; keep one of them.");
            }
            seen.push(key);
            out.push(label);
        };
        match &node.value {
            Value::List(items) => {
                for item in items {
                    if let Some(label) = text(item, report) {
                        add(item.at, label.to_owned(), report);
                    }
                }
            }
            Value::Map(_) => {
                for (key, at, value) in entries(node, report)? {
                    if let Some(value) = text(value, report) {
                        add(at, format!("{key}={value}"), report);
                    }
                }
            }
            _ => {
                let help = "Write `{key: value}` or a list: `[key=value]`.";
                wrong_kind(node, "labels", help, report);
            }
        }
        (report.errors() == before).then_some(Self(out))
    }
}

/// One taint: `key=value:Effect` or `key:Effect`.
#[derive(Clone, Debug)]
pub(in crate::spec) struct Taint(pub String);

impl Shape for Taint {
    fn schema() -> Json {
        json!({ "type": "string", "pattern": "^[^=:]+(=[^=:]*)?:(NoSchedule|PreferNoSchedule|NoExecute)$" })
    }

    fn read(node: &Node, report: &mut Report<'_>) -> Option<Self> {
        let taint = text(node, report)?;
        check_taint(taint, node.at, report).then(|| Self(taint.to_owned()))
    }
}

/// Taints of a node.
pub(in crate::spec) type Taints = Vec<Option<At<Taint>>>;

/// Reports what Kubernetes' API or the kubelet would refuse in `key=value`.
pub(in crate::spec) fn check_label(label: &str, at: Span, report: &mut Report<'_>) -> bool {
    let Some((key, value)) = label.split_once('=') else {
        let message = format!("`{}` is not a label", report.excerpt(at));
        report.error(at, message, "Write `key=value`; the value may be empty: `key=`.");
        return false;
    };
    if !is_qualified(key) || !is_value(value) {
        report.error(at, format!("`{}` is not a label", report.excerpt(at)), SYNTAX);
        return false;
    }
    if !kubelet_accepts(key) {
        let message = format!("the kubelet refuses to start with the label `{}`", show(key));
        let help = "Labels of kubernetes.io and k8s.io are Kubernetes' own. Use a name of your own, or one \
                    that starts with node.kubernetes.io/; a role can be set when the node is Ready: \
                    `kubectl label node NAME node-role.kubernetes.io/ROLE=true`.";
        report.error(at, message, help);
        return false;
    }
    true
}

/// Reports what is not a taint as k3s' `node-taint` takes it.
pub(in crate::spec) fn check_taint(taint: &str, at: Span, report: &mut Report<'_>) -> bool {
    const EFFECTS: [&str; 3] = ["NoSchedule", "PreferNoSchedule", "NoExecute"];
    let message = format!("`{}` is not a taint", report.excerpt(at));
    let Some((rest, effect)) = taint.rsplit_once(':') else {
        report.error(at, message, "Write `key=value:Effect` or `key:Effect`, e.g. `gpu=true:NoSchedule`.");
        return false;
    };
    if !EFFECTS.contains(&effect) {
        let help = match EFFECTS.iter().find(|e| e.eq_ignore_ascii_case(effect)) {
            Some(near) => format!("The effect is written `{near}`."),
            None => "The effect is `NoSchedule`, `PreferNoSchedule` or `NoExecute`.".to_owned(),
        };
        report.error(at, message, help);
        return false;
    }
    let (key, value) = rest.split_once('=').unwrap_or((rest, ""));
    let fits = is_qualified(key) && is_value(value);
    if !fits {
        report.error(at, message, SYNTAX);
    }
    fits
}

const SYNTAX: &str = "Keys and values are up to 63 letters, digits, `-`, `_` and `.`, with a letter or digit \
                      at both ends; a key may have a DNS name before it: `example.org/tier`.";

/// Kubernetes' qualified names (apimachinery, validation.IsQualifiedName).
fn is_qualified(key: &str) -> bool {
    let (prefix, name) = match key.split_once('/') {
        Some((prefix, name)) => (Some(prefix), name),
        None => (None, key),
    };
    let dns = |p: &str| p.len() <= 253 && p.split('.').all(super::is_label);
    !name.is_empty() && is_value(name) && prefix.is_none_or(dns)
}

/// Kubernetes' label values (apimachinery, validation.IsValidLabelValue).
fn is_value(value: &str) -> bool {
    let edge = |c: Option<char>| c.is_none_or(|c| c.is_ascii_alphanumeric());
    value.len() <= 63
        && value.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.'))
        && edge(value.chars().next())
        && edge(value.chars().last())
}

/// What the kubelet takes in `--node-labels` (kubernetes, cmd/kubelet/app/options and
/// pkg/kubelet/apis, KubeletLabels and KubeletLabelNamespaces).
fn kubelet_accepts(key: &str) -> bool {
    const ALLOWED: [&str; 11] = [
        "kubernetes.io/hostname",
        "kubernetes.io/os",
        "kubernetes.io/arch",
        "topology.kubernetes.io/zone",
        "topology.kubernetes.io/region",
        "failure-domain.beta.kubernetes.io/zone",
        "failure-domain.beta.kubernetes.io/region",
        "beta.kubernetes.io/instance-type",
        "beta.kubernetes.io/os",
        "beta.kubernetes.io/arch",
        "node.kubernetes.io/instance-type",
    ];
    let Some((prefix, _)) = key.split_once('/') else { return true };
    let below = |domain: &str| prefix == domain || prefix.ends_with(&format!(".{domain}"));
    if !below("kubernetes.io") && !below("k8s.io") {
        return true;
    }
    ALLOWED.contains(&key) || below("kubelet.kubernetes.io") || below("node.kubernetes.io")
}
