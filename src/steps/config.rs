//! k3s' configuration is on the node: config.yaml with the token (0600), registries.yaml.

use serde_json::json;
use sha2::{Digest, Sha256};

use super::view::holds;
use super::world::SHORT;
use super::{Ctx, Definition, View};
use crate::engine::Trouble;
use crate::facts::NodeFacts;
use crate::k3s::{self, Tokens};
use crate::os::process::quote;
use crate::plan::{After, Check, Scope, Shape};
use crate::spec::{Cluster, Node};
use crate::ssh::{Source, Upload};

pub const STEP: Definition = Definition {
    shape: Shape {
        name: "config",
        title: "configure k3s",
        scope: Scope::Nodes,
        after: &[After::Node("system")],
        serves: false,
    },
    retry: true,
    check,
    inputs,
    apply,
};

/// The node's files: path and text; no text means that there must be none.
pub fn files(
    cluster: &Cluster,
    node: &Node,
    facts: &NodeFacts,
    tokens: &Tokens,
) -> [(&'static str, Option<String>); 2] {
    let iface = facts.interface_of(node.ip).unwrap_or_default();
    [
        (k3s::CONFIG_PATH, Some(k3s::config_yaml(cluster, node, iface, tokens))),
        (k3s::REGISTRIES_PATH, k3s::registries_yaml(cluster)),
    ]
}

fn sum(text: &str) -> String {
    Sha256::digest(text).iter().map(|b| format!("{b:02x}")).collect()
}

fn check(view: &View<'_>, node: Option<&Node>) -> Check {
    let Some(node) = node else { return Check::Done(String::new()) };
    let facts = match view.facts(node) {
        Ok(facts) => facts,
        Err(check) => return check,
    };
    let Some(tokens) = &view.seen.tokens else { return Check::Needed("the token is not made yet".into()) };
    let files = files(view.cluster, node, facts, tokens);
    let differs =
        files.iter().find(|(path, text)| facts.written.get(*path) != text.as_deref().map(sum).as_ref());
    let why = |path: &str| match facts.written.contains_key(path) {
        true => format!("{path} is another one"),
        false => format!("{path} is not there"),
    };
    holds("its configuration is the wanted one", differs.map(|(path, _)| why(path)))
}

fn inputs(cluster: &Cluster, node: Option<&Node>) -> serde_json::Value {
    let node = node.map(|n| (&n.name, n.ip, &n.labels, &n.taints, &n.config));
    json!([cluster.first_server().ip, cluster.k3s.registries, node])
}

fn apply(ctx: &Ctx<'_>) -> Result<Option<String>, Trouble> {
    let (world, node) = (ctx.world, ctx.node());
    let (tokens, facts) = (world.tokens()?, world.facts(node)?);
    for (path, text) in files(&world.cluster, node, &facts, &tokens) {
        let Some(text) = text else {
            if !facts.written.contains_key(path) {
                continue;
            }
            world.script(node, &format!("removing {path}"), &format!("rm -f {}", quote(path)))?;
            continue;
        };
        if facts.written.get(path) == Some(&sum(&text)) {
            continue;
        }
        let upload = Upload { source: Source::Bytes(text.as_bytes()), dest: path, mode: 0o600, sha256: None };
        world.on(node, |r| r.upload(&upload, SHORT, &mut |_| {}))?;
        world.note(|seen| {
            if let Some(facts) = seen.nodes.get_mut(&node.name) {
                facts.written.insert(path.to_owned(), sum(&text));
            }
        });
    }
    Ok(None)
}

/// What k3s runs with: another value, and it has to be restarted.
pub fn digest(cluster: &Cluster, node: &Node, facts: &NodeFacts, tokens: &Tokens) -> String {
    let mut hash = Sha256::new();
    for (path, text) in files(cluster, node, facts, tokens) {
        hash.update(path);
        hash.update(text.unwrap_or_default());
    }
    // The node's own note of the binary: what it will run, whatever the spec says by now.
    let binary = format!("{}/k3s", k3s::BIN_DIR);
    hash.update(facts.staged.get(&binary).map(String::as_str).unwrap_or_default());
    hash.finalize()[..8].iter().map(|b| format!("{b:02x}")).collect()
}
