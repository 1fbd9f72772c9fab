//! What is to run on the cluster: namespaces and manifests.

use serde_json::{Value as Json, json};

use super::free::check_any_label;
use super::place::FilePath;
use super::{Flag, Name};
use crate::spec::manifest::{self, Document, Manifest, Namespace, When};
use crate::spec::node::{Node, Value};
use crate::spec::report::Report;
use crate::spec::shape::{At, Shape, choice, entries, object, text};

object! {
    /// A namespace with labels.
    NamespaceFile {
        /// Its name, a DNS label.
        required name: Name,
        /// Its labels: {key: value}.
        optional labels: PlainLabels,
    }
}

object! {
    /// A manifest with the namespace of its objects.
    ManifestFile {
        /// A file, a directory of files, or a kustomization, relative to the folder of the spec.
        required path: Place,
        /// Where objects go that do not say it themselves.
        optional namespace: Name,
        /// ready: when all nodes are Ready; api: as soon as the API answers, such as a network plugin, without which
        /// no node becomes Ready.
        optional when: When = "ready",
        /// What comes after it waits until it runs; with `when: api` the nodes' Ready does so too.
        optional wait: Flag = false,
    }
}

/// An entry of `namespaces`.
#[derive(Clone, Debug)]
pub(in crate::spec) struct NamespaceEntry(pub Namespace);

impl Shape for NamespaceEntry {
    fn schema() -> Json {
        json!({ "anyOf": [Name::schema(), NamespaceFile::schema()] })
    }

    fn read(node: &Node, report: &mut Report<'_>) -> Option<Self> {
        if !matches!(node.value, Value::Map(_)) {
            return Name::read(node, report).map(|name| Self(Namespace { name: name.0, labels: Vec::new() }));
        }
        let file = NamespaceFile::read(node, report)?;
        let name = file.name.value()?.0.clone();
        if file.labels.is_bad() {
            return None;
        }
        Some(Self(Namespace { name, labels: file.labels.value().map(|l| l.0.clone()).unwrap_or_default() }))
    }
}

impl Shape for When {
    fn schema() -> Json {
        json!({ "enum": ["ready", "api"] })
    }

    fn read(node: &Node, report: &mut Report<'_>) -> Option<Self> {
        choice(node, &[("ready", Self::Ready), ("api", Self::Api)], report)
    }
}

/// Labels of an object, as Kubernetes wants them.
#[derive(Clone, Debug)]
pub(in crate::spec) struct PlainLabels(pub Vec<String>);

impl Shape for PlainLabels {
    fn schema() -> Json {
        json!({ "type": "object", "additionalProperties": { "type": "string" }, "maxProperties": 100 })
    }

    fn read(node: &Node, report: &mut Report<'_>) -> Option<Self> {
        let before = report.errors();
        let mut out = Vec::new();
        for (key, at, value) in entries(node, report)? {
            let Some(value) = text(value, report) else { continue };
            let label = format!("{key}={value}");
            check_any_label(&label, at, report);
            out.push(label);
        }
        if out.len() > 100 {
            report.error(node.at, "more than 100 labels", "Fewer do.");
        }
        (report.errors() == before).then_some(Self(out))
    }
}

/// A path as it is written; what is there is looked at with its namespace.
#[derive(Clone, Debug)]
pub(in crate::spec) struct Place(String);

impl Shape for Place {
    fn schema() -> Json {
        FilePath::schema()
    }

    fn read(node: &Node, report: &mut Report<'_>) -> Option<Self> {
        let text = text(node, report)?;
        if text.is_empty() || text.chars().any(char::is_control) {
            let help = "Write a path relative to the spec's folder, without control characters.";
            report.error(node.at, format!("`{}` is not a path", node.shown(report)), help);
            return None;
        }
        if text.contains("://") {
            let help = "p1 applies what lies on this host: download it first, and look at it.";
            report.error(node.at, format!("`{}` is a URL", node.shown(report)), help);
            return None;
        }
        Some(Self(text.to_owned()))
    }
}

/// An entry of `manifests`, with what is in it.
#[derive(Clone, Debug)]
pub(in crate::spec) struct ManifestEntry {
    pub manifest: Manifest,
    pub documents: Vec<Document>,
}

impl Shape for ManifestEntry {
    fn schema() -> Json {
        json!({ "anyOf": [Place::schema(), ManifestFile::schema()] })
    }

    fn read(node: &Node, report: &mut Report<'_>) -> Option<Self> {
        let (mut when, mut wait) = (When::default(), false);
        let (place, namespace) = if let Value::Map(_) = node.value {
            let file = ManifestFile::read(node, report)?;
            let At { at, value } = file.path.get()?.clone();
            if file.namespace.is_bad() || file.when.is_bad() || file.wait.is_bad() {
                return None;
            }
            when = file.when.value().copied().unwrap_or_default();
            wait = file.wait.value().is_some_and(|w| w.0);
            (At { at, value }, file.namespace.value().map(|n| n.0.clone()))
        } else {
            (At { at: node.at, value: Place::read(node, report)? }, None)
        };
        let shown = &place.value.0;
        let path = report.base.join(shown);
        match manifest::look(shown, &path, namespace.as_deref()) {
            Ok((manifest, documents)) => {
                Some(Self { manifest: Manifest { when, wait, ..manifest }, documents })
            }
            Err(flaws) => {
                for flaw in flaws {
                    let mut message = match &flaw.file {
                        // A file that is its own entry was named already.
                        Some(file) if !path.ends_with(file) => format!("`{shown}`, {}", file.display()),
                        _ => format!("`{shown}`"),
                    };
                    if let Some(line) = flaw.line {
                        message = format!("{message}, line {line}");
                    }
                    let colon = if flaw.of_the_file { "" } else { ":" };
                    report.error(place.at, format!("{message}{colon} {}", flaw.message), flaw.help);
                }
                None
            }
        }
    }
}

/// The name of a container image.
#[derive(Clone, Debug)]
pub(in crate::spec) struct Image(pub String);

impl Shape for Image {
    fn schema() -> Json {
        json!({ "type": "string", "pattern": "^[a-zA-Z0-9][a-zA-Z0-9._:/@-]*$", "maxLength": 255 })
    }

    fn read(node: &Node, report: &mut Report<'_>) -> Option<Self> {
        let text = text(node, report)?;
        let fits = |c: char| c.is_ascii_alphanumeric() || "._:/@-".contains(c);
        if text.starts_with(|c: char| c.is_ascii_alphanumeric())
            && text.chars().all(fits)
            && text.len() <= 255
        {
            return Some(Self(text.to_owned()));
        }
        let help = "Write it as in a pod: `busybox:1.36.1`, `registry.example.org/tools/busybox:1.36.1`.";
        report.error(node.at, format!("`{}` is not the name of an image", node.shown(report)), help);
        None
    }
}
