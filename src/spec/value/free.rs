//! Parts of the spec that belong to k3s and Kubernetes: settings, registries, labels, taints.

use std::collections::HashSet;

use serde_json::{Value as Json, json};
use serde_yaml::Value as YamlValue;

use crate::spec::Yaml;
use crate::spec::k3s_keys;
use crate::spec::node::{Filled, Node, Value};
use crate::spec::report::{Report, Span, nearest, short};
use crate::spec::shape::{At, Shape, entries, text, wrong_kind};

/// One of k3s' settings.
#[derive(Clone, Debug)]
pub(in crate::spec) struct Entry {
    /// Without dashes; may end in `+`, which appends.
    pub key: String,
    pub key_at: Span,
    /// One, or the items of a list.
    pub items: Vec<At<YamlValue>>,
    pub is_list: bool,
}

impl Entry {
    /// The value as it goes into the file.
    pub fn value(&self) -> YamlValue {
        let mut items = self.items.iter().map(|item| item.value.clone());
        match self.is_list {
            true => YamlValue::Sequence(items.collect()),
            false => items.next().unwrap_or(YamlValue::Null),
        }
    }
}

/// Bytes of settings in one place.
const MOST_SETTINGS: usize = 64 << 10;
/// Labels, and taints, of one node.
const MOST_LABELS: usize = 100;

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
        let mut out = Vec::new();
        let mut size = 0;
        for (key, key_at, value) in entries(node, report)? {
            // k3s turns each value into an argument of a command line (k3s-io/k3s,
            // pkg/configfilearg/parser.go), where a mapping or nothing would be nonsense.
            let (values, is_list) = match &value.value {
                Value::List(items) => (items.as_slice(), true),
                _ => (std::slice::from_ref(value), false),
            };
            let items: Vec<_> =
                values.iter().filter_map(|v| scalar(v, report).map(|value| At { at: v.at, value })).collect();
            size += items.iter().map(|i| 16 + i.value.as_str().map_or(0, str::len)).sum::<usize>();
            if size > MOST_SETTINGS {
                let help =
                    "They are copied to every node; keep them small, or put them into a file of the box.";
                report.error(key_at, "more than 64 KiB of settings", help);
                return None;
            }
            if is_setting(key) {
                out.push(Entry { key: key.to_owned(), key_at, items, is_list });
                continue;
            }
            let plain = key.trim_start_matches('-').to_ascii_lowercase().replace('_', "-");
            let help = match nearest(&plain, k3s_keys::all()) {
                Some(near) => format!("Did you mean `{near}`?"),
                None => {
                    "Keys are the long options of `k3s server`, without the dashes before them.".to_owned()
                }
            };
            report.error(key_at, format!("`{}` is not a setting of k3s", short(key)), help);
        }
        Some(Self(out))
    }
}

fn is_setting(key: &str) -> bool {
    let mut rest = key.strip_suffix('+').unwrap_or(key).chars();
    rest.next().is_some_and(|c| c.is_ascii_lowercase())
        && rest.all(|c| matches!(c, 'a'..='z' | '0'..='9' | '-'))
}

fn scalar(node: &Node, report: &mut Report<'_>) -> Option<YamlValue> {
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
        for (key, _, value) in entries(node, report)? {
            if let Some(value) = any(value, report) {
                out.insert(key.into(), value);
            }
        }
        Some(Self(out))
    }
}

fn any(node: &Node, report: &mut Report<'_>) -> Option<YamlValue> {
    match &node.value {
        Value::Null => Some(YamlValue::Null),
        Value::List(items) => {
            let items: Vec<_> = items.iter().map(|i| any(i, report)).collect();
            items.into_iter().collect::<Option<Vec<_>>>().map(YamlValue::Sequence)
        }
        Value::Map(_) => Map::read(node, report).map(|m| YamlValue::Mapping(m.0)),
        _ => match (node.filled, &*node.scalar()) {
            (Filled::Plain, Value::Int(number)) => Some((*number).into()),
            (Filled::Plain, Value::Bool(value)) => Some((*value).into()),
            _ => scalar(node, report),
        },
    }
}

/// Labels of a node: a mapping, or a list of `key=value`.
#[derive(Clone, Debug, Default)]
pub(in crate::spec) struct Labels(pub Vec<String>);

impl Shape for Labels {
    fn schema() -> Json {
        json!({ "anyOf": [
            { "type": "object", "additionalProperties": { "type": "string" }, "maxProperties": MOST_LABELS },
            {
                "type": "array",
                "items": { "type": "string", "pattern": "^[^=]+=[^=]*$" },
                "maxItems": MOST_LABELS,
            },
        ]})
    }

    fn read(node: &Node, report: &mut Report<'_>) -> Option<Self> {
        let extra = match &node.value {
            Value::List(items) => items.get(MOST_LABELS).map(|item| item.at),
            Value::Map(map) => map.get(MOST_LABELS).map(|(key, _)| key.at),
            _ => None,
        };
        if let Some(at) = extra {
            report.error(at, format!("more than {MOST_LABELS} labels"), FEWER);
            return None;
        }
        let before = report.errors();
        let mut out = Vec::new();
        let mut seen: HashSet<String> = HashSet::new();
        let mut add = |at: Span, label: String, report: &mut Report<'_>| {
            check_label(&label, at, report);
            let key = label.split('=').next().unwrap_or_default().to_owned();
            let shown = short(&key);
            if !seen.insert(key) {
                let message = format!("the label `{shown}` is here twice");
                report.error(at, message, "A node has one value for each label; keep one of them.");
            }
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

/// Taints of a node: a list of `key=value:Effect` or `key:Effect`.
#[derive(Clone, Debug, Default)]
pub(in crate::spec) struct Taints(pub Vec<String>);

impl Shape for Taints {
    fn schema() -> Json {
        json!({
            "type": "array",
            "items": {
                "type": "string",
                "pattern": "^[^=:]+(=[^=:]*)?:(NoSchedule|PreferNoSchedule|NoExecute)$",
            },
            "maxItems": MOST_LABELS,
        })
    }

    fn read(node: &Node, report: &mut Report<'_>) -> Option<Self> {
        let Value::List(items) = &node.value else {
            wrong_kind(node, "a list", "Write `[key=value:Effect]`.", report);
            return None;
        };
        if items.len() > MOST_LABELS {
            report.error(items[MOST_LABELS].at, format!("more than {MOST_LABELS} taints"), FEWER);
            return None;
        }
        let mut out = Vec::new();
        for item in items {
            if let Some(taint) = text(item, report).filter(|taint| check_taint(taint, item.at, report)) {
                out.push(taint.to_owned());
            }
        }
        Some(Self(out))
    }
}

const FEWER: &str = "A node needs a few; annotations hold what is only for people to read.";

/// Reports what Kubernetes' API would refuse in `key=value`; the key, if it is good.
pub(in crate::spec) fn check_any_label<'l>(
    label: &'l str,
    at: Span,
    report: &mut Report<'_>,
) -> Option<&'l str> {
    let Some((key, value)) = label.split_once('=') else {
        let message = format!("`{}` is not a label", short(label));
        report.error(at, message, "Write `key=value`; the value may be empty: `key=`.");
        return None;
    };
    if !is_qualified(key) || !is_value(value) {
        report.error(at, format!("`{}` is not a label", short(label)), SYNTAX);
        return None;
    }
    Some(key)
}

/// Reports what Kubernetes' API or the kubelet would refuse in `key=value`.
pub(in crate::spec) fn check_label(label: &str, at: Span, report: &mut Report<'_>) -> bool {
    let Some(key) = check_any_label(label, at, report) else { return false };
    if !kubelet_accepts(key) {
        let message = format!("the kubelet refuses to start with the label `{}`", short(key));
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
    let message = format!("`{}` is not a taint", short(taint));
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
