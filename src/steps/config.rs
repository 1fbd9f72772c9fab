//! k3s' configuration is on the node: config.yaml with the token (0600), registries.yaml, the variables of its environment.

use std::sync::Arc;

use super::shared::found::rewrites;
use super::shared::inputs;
use super::{Item, NodeCtx, NodeDef, Step};
use crate::access::SCRIPT_TIMEOUT;
use crate::engine::StepError;
use crate::explain::FailureKind;
use crate::guest::NodeFacts;
use crate::k3s;
use crate::observed::files::files;
use crate::observed::found::BEFORE;
use crate::observed::refusal;
use crate::observed::{View, found, holds};
use crate::os::hash::sha256;
use crate::os::process::quote;
use crate::plan::{After, Check, ClusterStep, NodeStep, Per};
use crate::spec::Node;
use crate::ssh::{Source, Upload};

pub const STEP: Step = Step::Node(DEF);

/// The configuration has them, before k3s itself puts an etcd snapshot back.
pub const RESTORED: Step = Step::Node(NodeDef {
    after: &[After::Cluster(ClusterStep::Secrets)],
    // The data of then comes, and what was told to the data of now is no matter.
    apply,
    ..DEF
});

/// With the action of `up`: a restore has another one.
const DEF: NodeDef = NodeDef {
    name: NodeStep::Config,
    title: "configure k3s",
    per: Per::Node,
    after: &[After::Node(NodeStep::System), After::PreviousInOrderIfRunning(NodeStep::Ready)],
    needs: None,
    retry: true,
    check,
    inputs: inputs::config,
    apply: keep,
};

fn check(view: &View<'_>, node: &Node, _: Item<'_>) -> Check {
    if let Some(done) = found::holds(view, node) {
        return done;
    }
    let facts = match view.facts(node) {
        Ok(facts) => facts,
        Err(check) => return check,
    };
    let Some(tokens) = &view.seen.here.tokens else {
        return Check::Needed("the token is not made yet".into());
    };
    let files = files(view, node, facts, tokens);
    let differs =
        files.iter().find(|(path, text)| facts.written.get(path) != text.as_deref().map(sha256).as_ref());
    let moves = facts.datastore.as_deref() == Some("sqlite") && view.join(node) == k3s::Join::Init;
    let why = |path: &str| match facts.written.contains_key(path) {
        true if moves => "k3s moves its data from SQLite to etcd at its next start".to_owned(),
        true => format!("{path} differs from the spec"),
        false => format!("{path} is not there"),
    };
    holds("its configuration matches the spec", differs.map(|(path, _)| why(path)))
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

/// A k3s that was there before p1 becomes p1's own: what configured it beside config.yaml stands in the spec, and is put aside so
/// that it does not count twice. Which files.
fn own(ctx: &NodeCtx<'_>, facts: &NodeFacts) -> Result<Vec<String>, StepError> {
    let (world, node) = (ctx.world, ctx.node);
    rewrites(world, node, facts)?;
    if !facts.stamps.contains_key(BEFORE) || facts.stamps.contains_key("install") {
        return Ok(Vec::new());
    }
    let places = ["/etc/rancher/k3s/config.yaml.d/", "/etc/default/", "/etc/sysconfig/"];
    let beside = facts.elsewhere.keys().filter(|path| places.iter().any(|place| path.starts_with(place)));
    let beside: Vec<String> = beside.cloned().collect();
    if beside.is_empty() {
        return Ok(beside);
    }
    let aside = |path: &String| format!("mv -f {} {}\n", quote(path), quote(&format!("{path}.before-p1")));
    let script: String = beside.iter().map(aside).collect();
    world.script(node, "putting aside what configured its k3s", &format!("set -e\n{script}"))?;
    for path in &beside {
        ctx.control.log(&format!("{path} is {path}.before-p1 from here on: the spec says it"));
    }
    Ok(beside)
}

/// Writes the files.
fn apply(ctx: &NodeCtx<'_>) -> Result<Option<String>, StepError> {
    let (world, node) = (ctx.world, ctx.node);
    let (tokens, facts) = (world.tokens()?, world.facts(node)?);
    let beside = own(ctx, &facts)?;
    let seen = world.seen();
    let view = View::new(&world.cluster, &seen);
    let join = match view.join(node) {
        k3s::Join::Alone => None,
        k3s::Join::Init => Some("init".to_owned()),
        k3s::Join::Server(url) => Some(url),
    };
    for (path, text) in files(&view, node, &facts, &tokens) {
        let Some(text) = text else {
            if !facts.written.contains_key(&path) {
                continue;
            }
            world.script(node, &format!("removing {path}"), &format!("rm -f {}", quote(&path)))?;
            continue;
        };
        if facts.written.get(&path) == Some(&sha256(&text)) {
            continue;
        }
        if let Some(names) = facts.elsewhere.get(&path).filter(|_| !beside.contains(&path)) {
            return Err(StepError::new(
                format!("{path} is there, with {}, and p1 did not write it", names.join(", ")),
                "What `k3s.env` and `proxy` say goes there. Move its variables into `k3s.env` and remove it: \
                 `p1 exec --root {node} -- rm /etc/default/k3s /etc/default/k3s-agent`.",
            )
            .kind(FailureKind::Conflict));
        }
        let upload =
            Upload { source: Source::Bytes(text.as_bytes()), dest: &path, mode: 0o600, sha256: None };
        world.on(node, |r| r.upload(&upload, SCRIPT_TIMEOUT, &mut |_| {}))?;
        world.note(|seen| {
            if let Some(facts) = seen.nodes.get_mut(&node.name).map(Arc::make_mut) {
                facts.written.insert(path.clone(), sha256(&text));
                facts.joins.clone_from(&join);
            }
        });
    }
    Ok(None)
}
