//! k3s' configuration is on the node: config.yaml with the token (0600), registries.yaml.

use std::sync::Arc;

use serde_json::json;

use super::{Item, NodeCtx, NodeDef, Step};
use crate::access::SCRIPT_TIMEOUT;
use crate::engine::StepError;
use crate::k3s;
use crate::observed::files::files;
use crate::observed::refusal;
use crate::observed::{View, holds};
use crate::os::hash::sha256;
use crate::os::process::quote;
use crate::plan::{After, Check, NodeStep, Per};
use crate::spec::{Cluster, Node};
use crate::ssh::{Source, Upload};

pub const STEP: Step = Step::Node(DEF);

/// With the action of `up`: a restore has another one.
pub(super) const DEF: NodeDef = NodeDef {
    name: NodeStep::Config,
    title: "configure k3s",
    per: Per::Node,
    after: &[After::Node(NodeStep::System), After::PreviousInOrderIfRunning(NodeStep::Ready)],
    needs: None,
    retry: true,
    check,
    inputs,
    apply: keep,
};

fn check(view: &View<'_>, node: &Node, _: Item<'_>) -> Check {
    let facts = match view.facts(node) {
        Ok(facts) => facts,
        Err(check) => return check,
    };
    let Some(tokens) = &view.seen.here.tokens else {
        return Check::Needed("the token is not made yet".into());
    };
    let files = files(view, node, facts, tokens);
    let differs =
        files.iter().find(|(path, text)| facts.written.get(*path) != text.as_deref().map(sha256).as_ref());
    let moves = facts.datastore.as_deref() == Some("sqlite") && view.join(node) == k3s::Join::Init;
    let why = |path: &str| match facts.written.contains_key(path) {
        true if moves => "k3s moves its data from SQLite to etcd at its next start".to_owned(),
        true => format!("{path} differs from the spec"),
        false => format!("{path} is not there"),
    };
    holds("its configuration matches the spec", differs.map(|(path, _)| why(path)))
}

pub(super) fn inputs(cluster: &Cluster, node: &Node) -> serde_json::Value {
    let node = (&node.name, node.ip, &node.labels, &node.taints, &node.config);
    let servers: Vec<_> = cluster.servers().map(|s| s.ip).collect();
    json!([servers, cluster.k3s.endpoint, cluster.k3s.registries, node])
}

/// Where a server's data stay. What it was told before may be known only now, when its machine answers.
fn keep(ctx: &NodeCtx<'_>) -> Result<Option<String>, StepError> {
    ctx.world.facts(ctx.node)?;
    let seen = ctx.world.seen();
    match refusal::fixed(&View::new(&ctx.world.cluster, &seen)) {
        Some(refusal) => Err(refusal.into()),
        None => apply(ctx),
    }
}

/// Writes the files.
pub(super) fn apply(ctx: &NodeCtx<'_>) -> Result<Option<String>, StepError> {
    let (world, node) = (ctx.world, ctx.node);
    let (tokens, facts) = (world.tokens()?, world.facts(node)?);
    let seen = world.seen();
    let view = View::new(&world.cluster, &seen);
    let join = match view.join(node) {
        k3s::Join::Alone => None,
        k3s::Join::Init => Some("init".to_owned()),
        k3s::Join::Server(url) => Some(url),
    };
    for (path, text) in files(&view, node, &facts, &tokens) {
        let Some(text) = text else {
            if !facts.written.contains_key(path) {
                continue;
            }
            world.script(node, &format!("removing {path}"), &format!("rm -f {}", quote(path)))?;
            continue;
        };
        if facts.written.get(path) == Some(&sha256(&text)) {
            continue;
        }
        let upload = Upload { source: Source::Bytes(text.as_bytes()), dest: path, mode: 0o600, sha256: None };
        world.on(node, |r| r.upload(&upload, SCRIPT_TIMEOUT, &mut |_| {}))?;
        world.note(|seen| {
            if let Some(facts) = seen.nodes.get_mut(&node.name).map(Arc::make_mut) {
                facts.written.insert(path.to_owned(), sha256(&text));
                facts.joins.clone_from(&join);
            }
        });
    }
    Ok(None)
}
