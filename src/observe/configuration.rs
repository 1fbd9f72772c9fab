//! What a run would change in k3s' configuration files, read on the nodes on which that is due.

use std::collections::BTreeMap;

use crate::access::World;
use crate::explain::printable;
use crate::machines::MachineState;
use crate::observed::changes::{FileDiff, diff};
use crate::observed::files::files;
use crate::observed::{Observed, View};
use crate::os::hash::sha256;
use crate::os::many;
use crate::os::process::quote;
use crate::plan::{NodeStep, Plan};
use crate::redact::MASK;
use crate::spec::Node;

/// Of a longer file so much is read.
const BYTES: u32 = 64 << 10;

/// By node: what the plan changes in its files, without secrets. Where it cannot be told, it is left out.
pub fn look_at_configuration(world: &World, seen: &Observed, plan: &Plan) -> BTreeMap<String, Vec<FileDiff>> {
    let due = plan.nodes_for(NodeStep::Config);
    let runs = |n: &&Node| view_of(world, seen).machine(n).state == MachineState::Running;
    let nodes: Vec<&Node> =
        world.cluster.nodes.iter().filter(|n| due.contains(&n.name)).filter(runs).collect();
    let found = many::each(world.jobs, &nodes, |node| (node.name.clone(), of_node(world, seen, node)));
    found.into_iter().filter(|(_, files)| !files.is_empty()).collect()
}

fn view_of<'a>(world: &'a World, seen: &'a Observed) -> View<'a> {
    View::new(&world.cluster, seen)
}

fn of_node(world: &World, seen: &Observed, node: &Node) -> Vec<FileDiff> {
    let view = view_of(world, seen);
    let (Ok(facts), Some(tokens)) = (view.facts(node), &seen.here.tokens) else { return Vec::new() };
    // On one that never had any everything is new.
    if !facts.written.keys().any(|path| path.starts_with("/etc/rancher/k3s/")) {
        return Vec::new();
    }
    let wanted = files(&view, node, facts, tokens).into_iter();
    let differs =
        wanted.filter(|(path, text)| facts.written.get(path) != text.as_deref().map(sha256).as_ref());
    let shown = |text: &str| world.redactor.text(text);
    let one = |(path, text): (String, Option<String>)| {
        let old = match facts.written.contains_key(&path) {
            true => {
                let script = format!("head -c {BYTES} {}", quote(&path));
                world.script(node, "reading its configuration", &script).ok()?
            }
            false => String::new(),
        };
        let new = shown(&text.unwrap_or_default());
        let old = hidden_alike(&shown(&old), &new);
        let mut lines = diff(&old, &new);
        if lines.is_empty() {
            lines.push(" a secret in it changes".to_owned());
        }
        let lines = lines.into_iter().map(|line| printable(&line).into_owned()).collect();
        Some(FileDiff { path, lines })
    };
    differs.filter_map(one).collect()
}

/// The key of a line; an item of a list belongs to the key before it.
fn key<'a>(line: &'a str, last: &mut &'a str) -> &'a str {
    let text = line.trim_start();
    if !text.starts_with("- ")
        && let Some((key, _)) = text.split_once([':', '='])
    {
        *last = key;
    }
    last
}

/// The text with what stood where a secret stands now taken out, and what stood under keys that are gone: a former secret is not
/// known any more.
fn hidden_alike(old: &str, new: &str) -> String {
    let mut last = "";
    let stands: Vec<(&str, &str)> = new.lines().map(|l| (key(l, &mut last), l)).collect();
    let hides = |key: &str, line: &str| {
        let mut of = stands.iter().filter(|(known, _)| *known == key).peekable();
        let choice = line.ends_with(": true") || line.ends_with(": false");
        if of.peek().is_none() { !choice } else { of.any(|(_, line)| line.contains(MASK)) }
    };
    let mut last = "";
    let mut out = String::new();
    for line in old.lines() {
        let key = key(line, &mut last);
        if line.contains(MASK) || !hides(key, line) {
            out.push_str(line);
        } else if line.trim_start().starts_with("- ") {
            out.push_str(&format!("{}- {MASK}", &line[..line.len() - line.trim_start().len()]));
        } else {
            let at = line.find([':', '=']).map_or(line.len(), |at| at + 1);
            let bare = line[at..].trim().is_empty();
            out.push_str(&if bare { line.to_owned() } else { format!("{} {MASK}", &line[..at]) });
        }
        out.push('\n');
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_may_have_been_a_secret_is_hidden() {
        let new = "a: b\nkubelet-arg:\n  - --key=***\n  - max-pods=50\nurl: ***\n";
        let old =
            "a: c\nkubelet-arg:\n  - --key=former\nurl: former\ndebug: true\ngone: x\nall:\n  - y\n# p1\n";
        let hidden = hidden_alike(old, new);
        assert_eq!(
            hidden,
            "a: c\nkubelet-arg:\n  - ***\nurl: ***\ndebug: true\ngone: ***\nall:\n  - ***\n# p1\n"
        );
    }
}
