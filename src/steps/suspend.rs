//! The whole cluster to disk and back: all machines stand still at one moment, their memory is written down and given back to
//! this host, and all of them go on at one moment.

use std::collections::BTreeSet;

use super::shared::back;
use super::{ClusterDef, Ctx, Item, NodeCtx, NodeDef, Step, named, named_of};
use crate::access::World;
use crate::engine::StepError;
use crate::machines::{Cap, Machine, MachineState};
use crate::observe;
use crate::observed::View;
use crate::os::{Cancel, many};
use crate::plan::{After, Check, ClusterStep, NodeStep, Per};
use crate::spec::Node;
use crate::state::Suspended;

/// All of them or none: what was begun is undone where one cannot be.
pub const SUSPEND: Step = Step::Cluster(ClusterDef {
    name: ClusterStep::Suspend,
    title: "suspend the machines",
    after: &[],
    on_demand: false,
    needs: Some(Cap::Suspend),
    retry: false,
    check: |view| match stand_in(view, &[MachineState::Running, MachineState::Paused]) {
        nodes if nodes.is_empty() => Check::Done("no machine runs".into()),
        nodes => Check::Needed(run(&nodes)),
    },
    inputs: named,
    apply: suspend,
});

/// All of them go on.
pub const WAKE: Step = Step::Cluster(ClusterDef {
    name: ClusterStep::Wake,
    title: "resume the machines",
    after: &[After::Cluster(ClusterStep::Network)],
    on_demand: false,
    needs: Some(Cap::Suspend),
    retry: true,
    check: |view| match stand_in(view, &[MachineState::Saved, MachineState::Paused]) {
        nodes if nodes.is_empty() => Check::Done("none is suspended".into()),
        nodes => Check::Needed(format!("{} suspended", are(&nodes))),
    },
    inputs: named,
    apply: wake,
});

/// Their clocks stood still.
pub const CLOCK: Step = Step::Node(NodeDef {
    name: NodeStep::Clock,
    title: "set the clock",
    per: Per::Node,
    after: &[After::Cluster(ClusterStep::Wake)],
    needs: Some(Cap::Suspend),
    retry: true,
    check: of_suspended,
    inputs: named_of,
    apply: |ctx| back::set_clock(ctx, false),
});

/// Nodes that were Ready are so again.
pub const READY: Step = Step::Node(NodeDef {
    name: NodeStep::Ready,
    title: "be Ready again",
    per: Per::Node,
    after: &[After::Cluster(ClusterStep::Wake)],
    needs: Some(Cap::Suspend),
    retry: false,
    check: of_suspended,
    inputs: named_of,
    apply: be_ready,
});

/// The nodes whose machines are this folder's, can be suspended, and are in one of these states.
fn stand_in<'v>(view: &'v View<'_>, states: &[MachineState]) -> Vec<&'v str> {
    let fits = |m: &Machine| states.contains(&m.state) && !m.foreign && m.can.has(Cap::Suspend);
    let all = view.seen.machines.iter().filter(|(_, m)| fits(m));
    all.map(|(node, _)| node.as_str()).collect()
}

fn are(nodes: &[&str]) -> String {
    format!("{} {}", nodes.join(", "), if nodes.len() == 1 { "is" } else { "are" })
}

fn run(nodes: &[&str]) -> String {
    format!("{} {}", nodes.join(", "), if nodes.len() == 1 { "runs" } else { "run" })
}

fn of_suspended(view: &View<'_>, node: &Node, _: Item<'_>) -> Check {
    match view.machine(node).state {
        MachineState::Saved | MachineState::Paused => Check::Needed("its machine is suspended".into()),
        _ if view.seen.run.woken.contains(&node.name) => Check::Needed("its machine was suspended".into()),
        _ => Check::Done("its machine was not suspended".into()),
    }
}

fn suspend(ctx: &Ctx<'_>) -> Result<Option<String>, StepError> {
    let (world, cancel) = (ctx.world, ctx.control.cancel());
    world.look_at_machines()?;
    let seen = world.seen();
    let view = View::new(&world.cluster, &seen);
    let all: Vec<String> = stand_in(&view, &[MachineState::Running, MachineState::Paused])
        .into_iter()
        .map(str::to_owned)
        .collect();
    let running: BTreeSet<String> =
        stand_in(&view, &[MachineState::Running]).into_iter().map(str::to_owned).collect();
    if !running.is_empty() {
        note_ready(world)?;
        world.note(|seen| seen.run.paused.clone_from(&running));
        world.machines.pause(&world.cluster, &running, cancel)?;
    }
    ctx.control.says("writing down memory");
    let results = many::each(world.jobs, &all, |node| {
        world.machines.suspend(node)?.suspend(&world.cluster, node, cancel)?;
        Ok::<_, StepError>(node.clone())
    });
    let (done, mut failed): (Vec<_>, Vec<_>) = results.into_iter().partition(Result::is_ok);
    if let Some(Err(error)) = failed.pop() {
        // Even when the user ended the run: half a cluster is none.
        let done: Vec<String> = done.into_iter().flatten().collect();
        many::each(world.jobs, &done, |node| {
            world.machines.suspend(node)?.wake(&world.cluster, node, &Cancel::new())
        });
        world.machines.resume(&world.cluster, &all.into_iter().collect(), &Cancel::new())?;
        world.note(|seen| seen.run.paused.clear());
        world.look_at_machines()?;
        return Err(error);
    }
    world.note(|seen| seen.run.paused.clear());
    all.iter().for_each(|node| world.forget_node(node));
    world.forget_api();
    world.look_at_machines()?;
    Ok(None)
}

/// While they run: what the API says of them when they are paused comes too late.
fn note_ready(world: &std::sync::Arc<World>) -> Result<(), StepError> {
    if world.seen().here.kubeconfig {
        observe::look_at_api(world);
    }
    let api = world.seen().api.clone().unwrap_or_default();
    let ready = api.into_iter().filter(|(_, status)| status.ready).map(|(node, _)| node).collect();
    Ok(world.state.keep_suspended(&Suspended { since: world.now(), ready })?)
}

fn wake(ctx: &Ctx<'_>) -> Result<Option<String>, StepError> {
    let all = ctx.world.cluster.nodes.iter().map(|n| n.name.clone()).collect();
    ctx.world.wake(&all, ctx.control.cancel()).map(|_| None)
}

fn be_ready(ctx: &NodeCtx<'_>) -> Result<Option<String>, StepError> {
    let (world, node) = (ctx.world, ctx.node);
    if !world.state.suspended().is_none_or(|then| then.ready.contains(&node.name)) {
        return Ok(Some("it was not Ready then".into()));
    }
    if !world.state.kubeconfig().is_file() {
        return Ok(Some("there is no cluster yet; `p1 up` continues".into()));
    }
    back::be_ready(ctx)
}
