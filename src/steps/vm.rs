//! The machine exists and runs.

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::json;

use super::shared::console;
use super::{Item, NodeCtx, NodeDef, Step};
use crate::access::World;
use crate::engine::{Control, StepError};
use crate::explain::{Again, FailureKind};
use crate::machines::{self, Batch, Cap, Heard, Machine, MachineState};
use crate::observed::View;
use crate::os::Cancel;
use crate::os::cancel::Level;
use crate::plan::{After, Check, ClusterStep, NodeStep, Per};
use crate::spec::{Cluster, Node};
use crate::ssh::Knock;

pub const STEP: Step = Step::Node(NodeDef {
    name: NodeStep::Vm,
    title: "boot the machine",
    per: Per::Node,
    after: &[
        After::Cluster(ClusterStep::Network),
        After::Cluster(ClusterStep::Box),
        After::NodeUnchanged(NodeStep::Resize),
        After::Leaving(NodeStep::Machine),
    ],
    needs: Some(Cap::Make),
    retry: true,
    check,
    inputs,
    apply,
});

fn check(view: &View<'_>, node: &Node, _: Item<'_>) -> Check {
    if view.is_recreated(node) {
        return Check::Needed("it is recreated".into());
    }
    let machine = view.machine(node);
    match machine.state {
        MachineState::Absent => Check::Needed("it does not exist".into()),
        _ if machine.foreign => {
            Check::Needed("a machine of its name exists that this folder does not know".into())
        }
        MachineState::Running => Check::Done("it runs".into()),
        state => Check::Needed(format!("it is {state}")),
    }
}

fn inputs(cluster: &Cluster, node: &Node) -> serde_json::Value {
    let size = node.size.map_or((0, 0), |size| (size.cpus, size.memory));
    json!([cluster.image, cluster.network, (&node.name, node.ip, size.0, size.1)])
}

fn apply(ctx: &NodeCtx<'_>) -> Result<Option<String>, StepError> {
    let (world, node) = (ctx.world, ctx.node);
    // Vagrant may be at work on it already, for another node's step.
    if !ctx.batch.has(&node.name) {
        let machine = world.look_at_machine(node)?.filter(|m| !m.foreign);
        let suspended = machine.as_ref().is_some_and(|m| m.can.has(Cap::Suspend));
        match machine.and_then(|m| Some((m.state, m.id?))) {
            Some((MachineState::Paused, _)) => return go_on(ctx),
            Some((MachineState::Saved, _)) if suspended => return go_on(ctx),
            Some((MachineState::Running, id)) => return Ok(Some(format!("machine {id}"))),
            _ => {}
        }
        let mut waits = || {
            ctx.control.says("waiting for Vagrant");
            !ctx.control.cancel().aborted()
        };
        let (world, batch) = (Arc::clone(world), Arc::clone(ctx.batch));
        ctx.batch.join(&node.name, &mut waits, move |nodes, end| make(&world, &batch, nodes, end));
    }
    let up = wait(ctx);
    let (id, machines) = (world.machines.id(&node.name), world.machines.make(&node.name)?);
    if let Some(id) = id.as_ref().filter(|_| machines.is_making(&node.name)) {
        let (cluster, owner, cancel) = (&world.cluster, world.owner()?, ctx.control.cancel());
        world.remember_made(node)?;
        match up {
            Ok(()) => machines.created(cluster, &node.name, &owner, cancel)?,
            // It may not have booted yet: what it was given for that is still to be read.
            Err(_) => machines.own_machine(cluster, &node.name, id, &owner, cancel)?,
        }
    }
    up?;
    world.note(|seen| {
        let machine = seen.machines.entry(node.name.clone()).or_insert_with(Machine::absent);
        (machine.id, machine.state, machine.foreign) = (id.clone(), MachineState::Running, false);
    });
    Ok(id.map(|id| format!("machine {id}")))
}

/// Has machines made, and keeps what is heard of them.
fn make(
    world: &World,
    batch: &Batch<StepError>,
    names: &[String],
    end: &Cancel,
) -> BTreeMap<String, Result<(), StepError>> {
    let all = |error: StepError| names.iter().map(|n| (n.clone(), Err(error.clone()))).collect();
    let base = match world.base() {
        Ok(base) => base,
        Err(error) => return all(error),
    };
    let place = world.run_log("vagrant");
    let log = Control::silent(place.clone(), world.cancel.clone(), world.redactor());
    let ended = end.clone();
    let _on_abort = world.cancel.on_abort(move || ended.raise(Level::Abort));
    let told = |error: machines::Error| {
        let logged = error.logged();
        let mut error = StepError::from(error);
        error.failure.log = logged.then(|| place.clone()).or(error.failure.log);
        error
    };
    let hear = |heard: Heard<'_>| {
        match heard {
            Heard::Making(name) => {
                if let Err(error) = begin(world, name) {
                    batch.fail(name, error);
                    return ControlFlow::Break(());
                }
            }
            Heard::Cannot(name, error) => batch.fail(name, told(error)),
            Heard::Log(line) => log.log(line),
            heard => batch.hear(heard),
        }
        ControlFlow::Continue(())
    };
    let nodes: Vec<&Node> = names.iter().filter_map(|name| world.cluster.node(name)).collect();
    match world.machines.create(&world.cluster, &nodes, &base, &hear, end) {
        Ok(results) => results.into_iter().map(|(node, result)| (node, result.map_err(told))).collect(),
        Err(error) => all(told(error)),
    }
}

/// The node's machine is about to be made: nothing of a former one is true of it.
fn begin(world: &World, name: &str) -> Result<(), StepError> {
    let Some(node) = world.cluster.node(name) else { return Ok(()) };
    world.forget_node(name);
    world.forget_memory(name)?;
    // Now as well, for a run that is cut off before the machine has an id.
    world.remember_made(node)
}

/// A suspended machine, or a paused one, such as a snapshot that was killed leaves: it needs no Vagrant, and goes on
/// together with the others that this run is for.
fn go_on(ctx: &NodeCtx<'_>) -> Result<Option<String>, StepError> {
    let world = ctx.world;
    let all = world.seen().request.targets.iter().cloned().collect();
    world.wake(&all, ctx.control.cancel())?;
    Ok(Some("it was suspended and is resumed".into()))
}

/// Until its SSH port answers, where its address is known beforehand, else until Vagrant says that the machine is up: Vagrant
/// polls for leases every 2 s and then logs in several times, and the direct engine says no more than that it boots.
fn wait(ctx: &NodeCtx<'_>) -> Result<(), StepError> {
    let (world, node) = (ctx.world, ctx.node);
    let mut booting: Option<Instant> = None;
    let mut knock = Knock::default();
    let mut kept = None;
    loop {
        let heard = ctx.batch.heard(&node.name, Duration::from_millis(200));
        if kept.is_none() && heard.starts {
            kept = Some(console::keep(world, node, true));
        }
        if let Some(text) = heard.says {
            ctx.control.says(text);
        }
        heard.warnings.into_iter().for_each(|text| ctx.control.warn(text));
        match heard.result {
            // Who has only switched it on has not waited for it.
            Some(Ok(())) if heard.booting && heard.address.is_some() => {
                ctx.control.cancel().sleep(Duration::from_millis(200), Level::Abort);
            }
            Some(result) => return result,
            None => {}
        }
        if heard.booting {
            let since = *booting.get_or_insert_with(Instant::now);
            if heard.address.is_some_and(|a| knock.answers(a, Duration::from_millis(300))) {
                return Ok(());
            }
            if since.elapsed() > world.cluster.timeouts.boot {
                ctx.batch.give_up(&node.name);
                // Its last words are on their way.
                drop(kept);
                return Err(console::no_address(ctx));
            }
        }
        if ctx.control.cancel().level() >= Level::Abort {
            return Err(StepError::interrupted());
        }
    }
}

/// What to think of an error that may pass, of a node whose machine was up before. If the machine no
/// longer does, somebody or the host's lack of memory has ended it: waiting does not mend that, `p1 retry`
/// starts it first.
pub fn lost(world: &World, node: &Node, mut error: StepError) -> StepError {
    let Ok(machine) = world.look_at_machine(node) else { return error };
    let Some(machine) = machine.filter(|m| m.state != MachineState::Running) else { return error };
    let what = match machine.state {
        MachineState::Absent => "the machine is gone: it was removed outside p1".to_owned(),
        _ => format!("the machine is {}: it was not p1 that did it", machine.state),
    };
    error.failure.cause = format!("{what} ({})", error.failure.cause);
    error.failure.hint = Some("`p1 retry` brings it back and continues.".to_owned());
    error.failure.kind = FailureKind::Lost;
    error.again = Again::No;
    error
}
