//! A node's machine is restarted from within, and its node is back.

use std::time::Duration;

use super::wait::{Patience, wait_for};
use super::{console, quorum};
use crate::access::Via;
use crate::access::kubectl::{drain, kubectl};
use crate::engine::StepError;
use crate::explain::{FailureKind, seconds};
use crate::guest::Activity;
use crate::observed::ready::wrong;
use crate::spec::Role;
use crate::steps::NodeCtx;

/// Restarts it and waits for another boot. Where k3s runs its pods leave before, and come back when the node is Ready again.
pub fn reboot(ctx: &NodeCtx<'_>) -> Result<(), StepError> {
    let (world, node) = (ctx.world, ctx.node);
    let facts = world.look_at_node(node)?;
    let runs = facts.unit(node.role.unit()).active == Activity::Active;
    if runs {
        if node.role == Role::Server {
            quorum::wait_to_stop(ctx, node)?;
        }
        let bound = world.cluster.timeouts.node_ready;
        ctx.control.says("moving its pods to other nodes");
        let drained = drain(world, node, bound, false, &mut |line| ctx.control.log(line));
        drained.and_then(|output| Ok(output.ok()?)).map_err(|mut error| {
            let hint = "It stays cordoned until it is Ready in a later run. Pods without a controller are not moved: delete them.";
            error.failure.hint = Some(hint.to_owned());
            error
        })?;
    }
    ctx.control.says("restarting the machine");
    match world.script(node, "restarting the machine", world.guest(node).reboot()) {
        // It may be gone before it has answered.
        Err(error) if error.failure.kind != FailureKind::Lost => return Err(error),
        _ => {}
    }
    let bound = world.cluster.timeouts.boot;
    let other = wait_for(ctx, Patience::stubborn(bound), || {
        let now = world.look_at_node(node)?;
        Ok(if now.boot == facts.boot { Err("it has not been restarted yet".to_owned()) } else { Ok(()) })
    })?;
    other.map_err(|why| {
        let cause = format!("the machine was not back within {}: {why}", seconds(bound));
        StepError::new(cause, "").kind(FailureKind::bound(bound))
    })?;
    console::wait_for_sshd(ctx)?;
    if runs {
        ctx.control.says("waiting for the node");
        is_back(ctx, &facts.boot)?;
        let script = format!("k3s kubectl uncordon {}", node.name);
        kubectl(world, Via::Any, "uncordoning the node", &script)?;
    }
    Ok(())
}

/// A node that was Ready is so again, since its restart.
pub fn is_back(ctx: &NodeCtx<'_>, boot: &str) -> Result<(), StepError> {
    let (world, node) = (ctx.world, ctx.node);
    let timeouts = &world.cluster.timeouts;
    let bound =
        timeouts.node_ready + if node.role == Role::Server { timeouts.server_ready } else { Duration::ZERO };
    let back = wait_for(ctx, Patience::of(bound), || {
        let nodes = match world.ask(|api| api.nodes(&world.cancel)) {
            Ok(nodes) => nodes,
            Err(error) => return Ok(Err(error.failure.cause)),
        };
        let status = nodes.iter().find(|n| n.name == node.name);
        let why = match status.is_some_and(|s| s.boot_id == boot && !boot.is_empty()) {
            true => Some("it has not reported since it was started".to_owned()),
            false => wrong(node, None, status),
        };
        Ok(why.map_or(Ok(()), Err))
    })?;
    back.map_err(|why| {
        StepError::new(
            format!("the node was not Ready again within {}: {why}", seconds(bound)),
            format!("`p1 logs {}` shows its journal.", node.name),
        )
        .kind(FailureKind::bound(bound))
    })
}
