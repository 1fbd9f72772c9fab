//! Labels and taints as a node is to have them, and p1's note of them on the node.

use std::collections::BTreeMap;

use super::stamp::stamp;
use crate::spec::Node;

/// p1's note.
pub const STAMP: &str = "labels";

/// Labels by key, and taints by key and effect, each with what it is set by.
pub type Marks = BTreeMap<(bool, String), String>;

/// Which label or taint a text of the spec sets, and the text.
pub fn mark(text: &str, taint: bool) -> ((bool, String), String) {
    let key = match taint {
        false => text.split('=').next().unwrap_or_default().to_owned(),
        true => taint_key(text),
    };
    ((taint, key), text.to_owned())
}

/// `key:Effect` of `key=value:Effect`: two taints of one key differ by their effect.
pub fn taint_key(taint: &str) -> String {
    let (head, effect) = taint.rsplit_once(':').unwrap_or((taint, ""));
    format!("{}:{effect}", head.split('=').next().unwrap_or_default())
}

/// What the spec gives the node.
pub fn wanted(node: &Node) -> Marks {
    let labels = node.labels.iter().map(|l| mark(l, false));
    labels.chain(node.taints.iter().map(|t| mark(t, true))).collect()
}

/// The note of what is wanted now.
pub fn note(node: &Node) -> String {
    let words: Vec<String> = wanted(node)
        .into_iter()
        .map(|((taint, _), text)| format!("{}/{text}", if taint { "taint" } else { "label" }))
        .collect();
    words.join(" ")
}

/// Notes on a node that joins with its labels and taints what these are; none for one without any.
pub fn first_note(node: &Node) -> Option<String> {
    let note = note(node);
    (!note.is_empty()).then(|| stamp(STAMP, &note))
}
