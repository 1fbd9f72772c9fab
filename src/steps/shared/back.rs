//! A machine that stood still is back: its clock is right, and its node's kubelet answers.

use std::sync::Arc;
use std::time::Duration;

use super::heartbeat::pulse;
use super::wait::{Patience, wait_for};
use crate::access::{World, random};
use crate::engine::StepError;
use crate::explain::{FailureKind, seconds};
use crate::observed::ready::wrong;
use crate::os::hash::hex;
use crate::spec::Node;
use crate::steps::NodeCtx;

/// What the run is about beside nodes: which kept moment.
pub fn subject(world: &World) -> Result<String, StepError> {
    world.seen().request.subject.clone().ok_or_else(|| StepError::new("no kept moment was named", ""))
}

/// Sets the node's clock. `moment`: what it runs from is a moment that others may run from too, so that nothing of what
/// was random then is any more, and whom it knew in its network may be somebody else.
pub fn set_clock(ctx: &NodeCtx<'_>, moment: bool) -> Result<Option<String>, StepError> {
    clock_of(ctx.world, ctx.node, ctx.world.cluster.timeouts.ssh, moment)
}

/// The same of a fork's node, from a moment; and the addresses that it has are its own from here on.
pub fn stand_alone(ctx: &NodeCtx<'_>) -> Result<Option<String>, StepError> {
    let (world, node) = (ctx.world, ctx.node);
    clock_and(world, node, world.cluster.timeouts.ssh, true, world.guest(node).stand_alone())
}

/// The same outside a step, of a machine that answers within `patience`.
pub fn clock_of(
    world: &World,
    node: &Node,
    patience: Duration,
    moment: bool,
) -> Result<Option<String>, StepError> {
    clock_and(world, node, patience, moment, "")
}

fn clock_and(
    world: &World,
    node: &Node,
    patience: Duration,
    moment: bool,
    then: &str,
) -> Result<Option<String>, StepError> {
    world.on(node, |remote| remote.wait_for(patience, &mut |_| {}).map(|_| ()))?;
    let now = Duration::try_from(world.now().as_duration()).unwrap_or_default();
    let guest = world.guest(node);
    let more = if moment { guest.renew(&hex(&random()?)) } else { String::new() };
    let did = world.script(node, "setting the clock", &(guest.set_clock(now) + &more + then))?;
    Ok(Some(did.lines().collect::<Vec<_>>().join(", ")).filter(|text| !text.is_empty()))
}

/// The node is Ready, by a fresh word: its kubelet answers the API, or what it reports has changed since. What the API says of
/// a node right after its machine went on is what it had heard before.
pub fn be_ready(ctx: &NodeCtx<'_>) -> Result<Option<String>, StepError> {
    let (world, node) = (ctx.world, ctx.node);
    let bound = world.cluster.timeouts.node_ready;
    let mut first: Option<String> = None;
    let patience = Patience { every: Duration::from_millis(200), ..Patience::of(bound) };
    let back = wait_for(ctx, patience, || {
        let status = match world.nodes() {
            Ok(nodes) => nodes.iter().find(|n| n.name == node.name).cloned(),
            Err(error) => return Ok(Err(error.failure.cause)),
        };
        if let Some(why) = wrong(node, None, status.as_ref()) {
            world.forget_nodes();
            return Ok(Err(why));
        }
        Ok(if answers(world, node, &mut first) { Ok(()) } else { Err(SILENT.to_owned()) })
    })?;
    back.map(|()| None).map_err(|why| {
        let hint = format!("`p1 logs {}` shows its journal.", node.name);
        StepError::new(format!("the node was not Ready within {}: {why}", seconds(bound)), hint)
            .kind(FailureKind::bound(bound))
    })
}

/// What a node lacks whose kubelet has not been heard.
pub const SILENT: &str = "its kubelet has not answered since its machine went on";

/// Whether the node's kubelet has been heard since its machine went on: it answers a question that the API hands on to it,
/// or what it reports is no longer what it was when it was asked `first`, for an API that hands nothing on.
pub fn answers(world: &Arc<World>, node: &Node, first: &mut Option<String>) -> bool {
    if world.ask(|api| api.kubelet_answers(&node.name, &world.cancel)).is_ok_and(|answers| answers) {
        return true;
    }
    let Ok((beat, None)) = pulse(world, node) else { return false };
    *first.get_or_insert_with(|| beat.clone()) != beat
}
