//! In a fresh cluster: what a node can do before its turn to start comes.
//!
//! A worker imports its images, and its k3s is started as soon as that is done. Its agent waits for the server by itself and for ever
//! (`pkg/agent/run.go`, `pkg/agent/config`), so that the time that its start takes passes while the server starts.
//! Whether it came up is judged by `start`, when the server's API is there. A server that joins ends when there is
//! nobody to join, so it only unpacks the binary.

use super::shared::inputs;
use super::shared::unit::begin;
use super::{Item, NodeCtx, NodeDef, Step};
use crate::engine::StepError;
use crate::k3s;
use crate::observed::{View, holds};
use crate::os::process::quote;
use crate::plan::{After, Check, NodeStep, Per};
use crate::spec::{Node, Role};
use crate::ssh::Bound;
use std::time::Duration;

pub const STEP: Step = Step::Node(NodeDef {
    name: NodeStep::Launch,
    title: "start k3s without waiting",
    per: Per::Node,
    after: &[
        After::Node(NodeStep::Install),
        After::Node(NodeStep::Config),
        After::Node(NodeStep::System),
        After::NodeUnchanged(NodeStep::Hosts),
        After::Node(NodeStep::Images),
    ],
    needs: None,
    retry: true,
    check,
    inputs: inputs::start,
    apply,
});

/// Archives of some hundred MB; what does not go by then is left to k3s.
const IMPORT: Duration = Duration::from_secs(180);
/// Some 200 MB come out of the binary; under emulation that is a matter of a minute at worst.
const UNPACK: Duration = Duration::from_secs(120);

fn check(view: &View<'_>, node: &Node, _: Item<'_>) -> Check {
    let first = view.cluster.first_server();
    if node.name == first.name {
        return Check::Done("it is the one that others wait for".into());
    }
    let targets = &view.seen.request.targets;
    let leaving: Vec<Node> = view.seen.leaving().cloned().collect();
    if !view.is_fresh(&leaving) || !(targets.is_empty() || targets.contains(&first.name)) {
        return Check::Done("it is started in its turn".into());
    }
    let facts = match view.facts(node) {
        Ok(facts) => facts,
        Err(check) => return check,
    };
    if facts.node_password {
        return Check::Done("it is started in its turn".into());
    }
    holds(
        "",
        Some(match node.role {
            Role::Worker | Role::None => "it waits for its server by itself".to_owned(),
            Role::Server => "it joins in its turn".to_owned(),
        }),
    )
}

fn apply(ctx: &NodeCtx<'_>) -> Result<Option<String>, StepError> {
    let (world, node) = (ctx.world, ctx.node);
    if node.role == Role::Worker {
        import(ctx)?;
        let since = begin(ctx)?;
        world.note(|seen| {
            seen.run.launched.insert(node.name.clone(), since);
        });
        return Ok(Some("it waits for the server".to_owned()));
    }
    // Any of the programs inside makes it unpack (`cmd/k3s/main.go`, `stageAndRun`). What comes of it is no
    // matter: the start does it again where it is missing.
    let script = format!("{} ctr --version 2>&1 || :\n", quote(&format!("{}/k3s", k3s::BIN_DIR)));
    let bound = Bound::new(UNPACK, UNPACK);
    let mut log = |line: &str| ctx.control.log(line);
    world.on(node, |r| r.script("unpacking k3s", &script, true, bound, &mut log))?;
    Ok(Some("unpacked".to_owned()))
}

/// The images are there when k3s asks for them: it imports archives only when it has heard from its server, and until then
/// the worker has nothing to do. k3s does it itself where this fails.
fn import(ctx: &NodeCtx<'_>) -> Result<(), StepError> {
    let (world, node) = (ctx.world, ctx.node);
    ctx.control.says("importing images");
    let mut log = |line: &str| ctx.control.log(line);
    let bound = Bound::new(IMPORT, IMPORT);
    let done = world.on(node, |r| r.script("importing images", &k3s::import_script(), true, bound, &mut log));
    match done {
        Err(error) if error.cancelled() => Err(error),
        Err(error) => {
            ctx.control.log(&format!("{}; k3s imports them itself", error.failure.cause));
            Ok(())
        }
        Ok(done) if done.status != 0 => {
            ctx.control.log(&format!("the import ended with {}; k3s imports them itself", done.status));
            Ok(())
        }
        Ok(_) => Ok(()),
    }
}
