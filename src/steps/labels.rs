//! A node's labels and taints are the spec's.
//!
//! k3s sets them when a node registers and never again (docs.k3s.io/cli/agent, `node-label`), so what
//! changes later is set here, through a server, and what left the spec is removed: only what p1 has set
//! before, by its note on the node.

use serde_json::json;

use super::shared::labels::{Marks, STAMP, mark, note, wanted};
use super::shared::stamp::stamp;
use super::{Item, NodeCtx, NodeDef, Step};
use crate::access::Via;
use crate::access::kubectl::kubectl;
use crate::api::NodeStatus;
use crate::engine::StepError;
use crate::guest::NodeFacts;
use crate::observed::{View, holds};
use crate::os::process::quote;
use crate::plan::{After, Check, NodeStep, Per};
use crate::spec::{Cluster, Node};

pub const STEP: Step = Step::Node(NodeDef {
    name: NodeStep::Labels,
    title: "set labels and taints",
    per: Per::Node,
    after: &[After::Node(NodeStep::Ready)],
    needs: None,
    retry: true,
    check,
    inputs,
    apply,
});

/// What p1 set last, by its note.
fn noted(facts: &NodeFacts) -> Marks {
    let words = facts.stamps.get(STAMP).map(String::as_str).unwrap_or_default().split_whitespace();
    words
        .filter_map(|word| match word.split_once('/')? {
            ("label", text) => Some(mark(text, false)),
            ("taint", text) => Some(mark(text, true)),
            _ => None,
        })
        .collect()
}

/// What the Node object has.
fn has(status: &NodeStatus, (taint, key): &(bool, String), text: &str) -> bool {
    match taint {
        true => status.taints.iter().any(|t| t == text || *t == text.replacen("=:", ":", 1)),
        false => status.labels.get(key).is_some_and(|value| text == format!("{key}={value}")),
    }
}

/// Arguments for `kubectl label` and `kubectl taint`.
fn changes(node: &Node, facts: &NodeFacts, status: &NodeStatus) -> (Vec<String>, Vec<String>) {
    let (wanted, noted) = (wanted(node), noted(facts));
    let (mut labels, mut taints) = (Vec::new(), Vec::new());
    let mut add = |taint: bool, text: String| if taint { taints.push(text) } else { labels.push(text) };
    for (key, text) in wanted.iter().filter(|(key, text)| !has(status, key, text)) {
        add(key.0, text.clone());
    }
    for (key, text) in noted.iter().filter(|(key, text)| !wanted.contains_key(*key) && has(status, key, text))
    {
        let _ = text;
        add(key.0, format!("{}-", key.1));
    }
    (labels, taints)
}

fn check(view: &View<'_>, node: &Node, _: Item<'_>) -> Check {
    let facts = match view.facts(node) {
        Ok(facts) => facts,
        Err(_) if wanted(node).is_empty() => return Check::Done("it has none of the spec's".into()),
        Err(check) => return check,
    };
    if wanted(node).is_empty() && noted(facts).is_empty() {
        return Check::Done("it has none of the spec's".into());
    }
    let Some(status) = view.status(node) else {
        return Check::Unknown("asked when the API answers".into());
    };
    let (labels, taints) = changes(node, facts, status);
    let wrong = match (labels.first().or(taints.first()), noted(facts) == wanted(node)) {
        (Some(first), _) => match first.strip_suffix('-') {
            Some(key) => Some(format!("{key} left the spec")),
            None => Some(format!("it lacks {first}")),
        },
        (None, false) => Some("p1's record of them differs".to_owned()),
        (None, true) => None,
    };
    holds("its labels and taints are the spec's", wrong)
}

fn inputs(_: &Cluster, node: &Node) -> serde_json::Value {
    json!((&node.labels, &node.taints))
}

fn apply(ctx: &NodeCtx<'_>) -> Result<Option<String>, StepError> {
    let (world, node) = (ctx.world, ctx.node);
    let facts = world.look_at_node(node)?;
    let nodes = world.nodes()?;
    let status = nodes.iter().find(|n| n.name == node.name).ok_or_else(|| {
        StepError::new("the node is not registered", "`p1 logs {node}` shows why it has not joined.")
            .transient()
    })?;
    let (labels, taints) = changes(node, &facts, status);
    let mut script = String::new();
    for (verb, list) in [("label", &labels), ("taint", &taints)] {
        if !list.is_empty() {
            let list: Vec<String> = list.iter().map(|c| quote(c)).collect();
            let line = format!("k3s kubectl {verb} node {} {} --overwrite\n", node.name, list.join(" "));
            script.push_str(&line.replacen('\n', " || exit 1\n", 1));
        }
    }
    if !script.is_empty() {
        kubectl(world, Via::Any, "setting labels and taints", &script)?;
    }
    world.script(node, "noting labels and taints", &stamp(STAMP, &note(node)))?;
    world.look_at_node(node)?;
    let all = [labels, taints].concat();
    Ok((!all.is_empty()).then(|| all.join(", ")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::observed::Observed;

    fn looked(
        labels: &[&str],
        taints: &[&str],
        note: &str,
        there: &[(&str, &str)],
        tainted: &[&str],
    ) -> Check {
        let mut cluster = crate::spec::fixture::cluster(0);
        cluster.nodes[0].labels = labels.iter().map(|l| (*l).to_owned()).collect();
        cluster.nodes[0].taints = taints.iter().map(|l| (*l).to_owned()).collect();
        let mut facts = NodeFacts::default();
        facts.stamps.insert(STAMP.into(), note.into());
        let status = NodeStatus {
            name: "server".into(),
            labels: there.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect(),
            taints: tainted.iter().map(|t| (*t).to_owned()).collect(),
            ..NodeStatus::default()
        };
        let mut seen = Observed { api: Some([("server".to_owned(), status)].into()), ..Observed::default() };
        seen.nodes.insert("server".into(), facts.into());
        check(&View::new(&cluster, &seen), &cluster.nodes[0], None)
    }

    #[test]
    fn only_what_p1_set_is_removed() {
        let done = |c: Check| !c.may_run();
        assert!(done(looked(&[], &[], "", &[("theirs", "x")], &["a:NoExecute"])));
        assert!(done(looked(&["a=b"], &[], "label/a=b", &[("a", "b"), ("c", "d")], &[])));
        let why = |c: Check| c.reason().to_owned();
        assert_eq!(why(looked(&["a=b"], &[], "", &[], &[])), "it lacks a=b");
        assert_eq!(why(looked(&["a=c"], &[], "label/a=b", &[("a", "b")], &[])), "it lacks a=c");
        assert_eq!(why(looked(&[], &[], "label/a=b", &[("a", "b")], &[])), "a left the spec");
        // Somebody gave it another value meanwhile: it is theirs.
        assert_eq!(why(looked(&[], &[], "label/a=b", &[("a", "z")], &[])), "p1's record of them differs");
        assert_eq!(why(looked(&[], &["k=v:NoSchedule"], "", &[], &[])), "it lacks k=v:NoSchedule");
        assert_eq!(
            why(looked(&[], &[], "taint/k=v:NoSchedule", &[], &["k=v:NoSchedule"])),
            "k:NoSchedule left the spec"
        );
        assert!(done(looked(&[], &["k:NoSchedule"], "taint/k:NoSchedule", &[], &["k:NoSchedule"])));
        assert!(done(looked(&[], &["k=:NoSchedule"], "taint/k=:NoSchedule", &[], &["k:NoSchedule"])));
    }
}
