//! Faults on purpose: they are brought, and healed when their time is over, by whoever comes first: the machine itself, the
//! process that was started for it, or the next p1.
//!
//! What a fault is and when it ends is written down before anything is done (`faults.json`), and what heals it works
//! then. Its lock is held for what is written, not for what is done: to bring one and to heal one can be done twice.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};

use super::shared::back;
use super::{Item, NodeCtx, NodeDef, Step, asked_of, named_of};
use crate::access::World;
use crate::engine::StepError;
use crate::explain::FailureKind;
use crate::fault::{Active, Fault, Wish};
use crate::guest::{LACKS, Strike, UNHEALED};
use crate::machines::{Limit, MachineState};
use crate::observed::{View, faults};
use crate::os::Cancel;
use crate::plan::{Check, NodeStep, Per};
use crate::spec::{Node, Role};

/// A fault is brought to a node.
pub const STRIKE: Step = Step::Node(NodeDef {
    name: NodeStep::Strike,
    title: "bring the fault",
    per: Per::Node,
    after: &[],
    needs: None,
    retry: false,
    check: asked_of,
    inputs: named_of,
    apply: strike,
});

/// All faults of a node are ended.
pub const HEAL: Step = Step::Node(NodeDef {
    name: NodeStep::Heal,
    title: "end its faults",
    per: Per::Node,
    after: &[],
    needs: None,
    retry: true,
    check: has_faults,
    inputs: named_of,
    apply: heal,
});

fn has_faults(view: &View<'_>, node: &Node, _: Item<'_>) -> Check {
    let mine = view.seen.here.faults.iter().filter(|a| a.node == node.name);
    let names: Vec<&str> = mine.map(|a| a.fault.name()).collect();
    match names.is_empty() {
        true => Check::Done("it is under no fault".into()),
        false => Check::Needed(format!("it is under {}", names.join(", "))),
    }
}

/// What was asked for, with the nodes that it is for.
fn wish(world: &World) -> Result<Wish, StepError> {
    let seen = world.seen();
    let subject = seen.request.subject.as_deref().unwrap_or_default();
    let wish = Wish::read(subject).map_err(|why| StepError::new(why, ""))?;
    Ok(Wish { nodes: seen.request.targets.clone(), ..wish })
}

fn strike(ctx: &NodeCtx<'_>) -> Result<Option<String>, StepError> {
    let (world, node, cancel) = (ctx.world, ctx.node, ctx.control.cancel());
    let wish = wish(world)?;
    let seen = world.seen();
    let others = faults::others(&View::new(&world.cluster, &seen), &wish);
    let address = |n: &Node| world.memory(&n.name).and_then(|m| m.made).map_or(n.ip, |made| made.ip);
    let others = others.into_iter().filter(|n| n.name != node.name);
    let begins = |since: Timestamp| Active {
        node: node.name.clone(),
        machine: world.machines.id(&node.name).unwrap_or_default(),
        fault: wish.fault.clone(),
        between: others.clone().map(|n| (n.name.clone(), address(n))).collect(),
        since,
        until: since + SignedDuration::try_from(wish.lasts()).unwrap_or_default(),
        run: world.run.clone(),
    };
    let planned = begins(world.now());
    world.note_fault(&planned)?;
    world.healer.ensure()?;
    let struck = match &wish.fault {
        Fault::Pause => {
            world.machines.pause(&world.cluster, &[node.name.clone()].into(), cancel).map_err(Into::into)
        }
        Fault::PowerCut => {
            let power = world.machines.power(&node.name)?;
            power.off(&world.cluster, &node.name, cancel).map_err(Into::into)
        }
        Fault::LinkDown => {
            let link = world.machines.link(&node.name)?;
            link.link(&world.cluster, &node.name, false, cancel).map_err(Into::into)
        }
        Fault::SlowDisk { iops, rate } => {
            let limit = Limit { iops: *iops, bytes: rate * 1024 };
            let disk = world.machines.throttle(&node.name)?;
            disk.throttle(&world.cluster, &node.name, Some(limit), cancel).map_err(Into::into)
        }
        _ => inside(ctx, &planned, wish.lasts()),
    };
    if let Err(error) = struck {
        // What was done of it is taken back; where that fails, it is healed like any other.
        if mend(world, &planned, SOON).is_ok() {
            world.forget_fault(&planned)?;
        }
        return Err(error);
    }
    if wish.fault.hides_the_machine() {
        world.forget_node(&node.name);
    }
    // It lasts as long as was asked for, however long it took to bring it.
    let active = begins(world.now());
    world.note_fault(&active)?;
    world.healer.ensure()?;
    Ok(Some(format!("until {} UTC", active.until.strftime("%H:%M:%S"))))
}

/// Brings a fault that is done inside the machine.
fn inside(ctx: &NodeCtx<'_>, active: &Active, time: Duration) -> Result<(), StepError> {
    let (world, node) = (ctx.world, ctx.node);
    let guest = world.guest(node);
    let strike = of_guest(active, node);
    let script = guest.strike(&strike, time.as_secs().max(1));
    let output = world.run_script(node, "bringing the fault", &script)?;
    let said = output.text();
    for line in said.lines() {
        ctx.control.log(line);
    }
    match output.status {
        0 => Ok(()),
        LACKS => {
            let why = said.lines().last().unwrap_or("something that it takes is missing").trim();
            let (name, why) = (active.fault.name(), why.trim_end_matches('.'));
            let hint = match active.fault {
                Fault::Latency { .. } | Fault::Loss { .. } => {
                    "It takes tc (package `iproute2`) and a kernel with the modules sch_netem, sch_prio and cls_u32."
                }
                Fault::Partition { .. } => "It takes iptables or nft on the node.",
                Fault::Clock { .. } => "It takes a machine with a clock of its own.",
                _ => "",
            };
            Err(StepError::new(format!("`{name}` cannot be done there: {why}"), hint)
                .kind(FailureKind::Cannot))
        }
        UNHEALED => Err(StepError::new(
            "the machine cannot be made to heal itself, so nothing was done",
            "Its init system runs no unit for that; the log has its words.",
        )),
        _ => output.ok().map(|_| ()).map_err(Into::into),
    }
}

fn of_guest<'a>(active: &'a Active, node: &'a Node) -> Strike<'a> {
    Strike { active, ip: node.ip, k3s: node.role.unit() }
}

fn heal(ctx: &NodeCtx<'_>) -> Result<Option<String>, StepError> {
    let (world, node) = (ctx.world, ctx.node);
    let mut mine: Vec<Active> = world.faults()?.into_iter().filter(|a| a.node == node.name).collect();
    from_outside_in(&mut mine);
    for active in &mine {
        ctx.control.says(format!("ending {}", active.fault.name()));
        mend(world, active, world.cluster.timeouts.ssh)?;
        world.forget_fault(active)?;
    }
    let names: Vec<&str> = mine.iter().map(|a| a.fault.name()).collect();
    Ok((!names.is_empty()).then(|| format!("ended {}", names.join(", "))))
}

/// Takes a fault back. Fine if it is not there, or its machine was recreated since.
fn mend(world: &World, active: &Active, patience: Duration) -> Result<(), StepError> {
    // Whatever the user wishes by now: it is not left half done.
    let (name, cancel) = (&active.node, &Cancel::new());
    if world.machines.id(name).as_deref() != Some(&active.machine) {
        return Ok(());
    }
    let unknown;
    let node = match world.cluster.node(name) {
        Some(node) => node,
        // It has left the spec meanwhile.
        None => {
            let made = world.memory(name).and_then(|m| m.made);
            let base = &world.cluster.nodes[0];
            let role = made.as_ref().map_or(Role::Worker, |m| m.role);
            let ip = made.map_or(base.ip, |m| m.ip);
            unknown = Node { name: name.clone(), role, ip, ..base.clone() };
            &unknown
        }
    };
    let state = world.look_at_machine(node)?.map_or(MachineState::Absent, |m| m.state);
    let (cluster, runs) = (&world.cluster, matches!(state, MachineState::Running | MachineState::Paused));
    match &active.fault {
        Fault::PowerCut if state == MachineState::Off => {
            world.machines.power(name)?.on(cluster, name, cancel)?;
            world.forget_node(name);
        }
        Fault::Pause if runs => {
            world.machines.resume(cluster, &[name.clone()].into(), cancel)?;
            // Its clock stood still.
            back::clock_of(world, node, patience, false)?;
        }
        Fault::LinkDown if runs => world.machines.link(name)?.link(cluster, name, true, cancel)?,
        Fault::SlowDisk { .. } if runs => {
            world.machines.throttle(name)?.throttle(cluster, name, None, cancel)?;
        }
        fault if fault.is_inside() && state == MachineState::Running => {
            world.on(node, |remote| remote.wait_for(patience, &mut |_| {}).map(|_| ()))?;
            let script = world.guest(node).heal(&of_guest(active, node));
            world.script(node, "ending the fault", &script)?;
            if matches!(fault, Fault::Clock { .. }) {
                back::clock_of(world, node, patience, false)?;
            }
        }
        // What is on its disk is there again when it runs.
        fault if fault.is_inside() && !fault.ends_with_the_machine() && state != MachineState::Absent => {
            return Err(StepError::new(
                format!("the machine of `{name}` is {state}, and `{}` is on its disk", fault.name()),
                format!("`p1 up {name}` starts it; then `p1 fault heal {name}` ends it."),
            ));
        }
        _ => {}
    }
    Ok(())
}

/// Heals these; says of each what came of it.
pub fn heal_due(world: &World, mut due: Vec<Active>) -> Vec<(Active, Result<(), StepError>)> {
    from_outside_in(&mut due);
    let healed = due.into_iter().map(|active| {
        let result =
            mend(world, &active, world.cluster.timeouts.ssh).and_then(|()| world.forget_fault(&active));
        (active, result)
    });
    healed.collect()
}

/// What hides a machine is taken away before what is inside it.
fn from_outside_in(all: &mut [Active]) {
    all.sort_by_key(|active| active.fault.is_inside());
}

/// For a verb that begins: what is due is healed, and what goes on is told.
pub fn overdue(world: &World, tell: &dyn Fn(&str)) -> Result<(), StepError> {
    let now = world.now();
    let (due, on): (Vec<Active>, Vec<Active>) = world.faults()?.into_iter().partition(|a| a.is_due(now));
    for (active, result) in heal_due(world, due) {
        let (node, name) = (&active.node, active.fault.name());
        match result {
            Ok(()) => tell(&format!("note: ended the fault `{name}` of {node}, whose time was over")),
            Err(error) => tell(&format!(
                "note: the fault `{name}` of {node} could not be ended yet: {}",
                error.failure.cause
            )),
        }
    }
    for active in &on {
        tell(&format!("note: {} is under {}", active.node, active.told(now)));
    }
    Ok(())
}

/// For a verb that takes machines from under their faults: those of these nodes are ended, and one whose plug was pulled
/// stays off. What is inside a machine that does not answer ends with it, unless it is on its disk.
pub fn end_for(world: &World, nodes: &[String], gone: bool, tell: &dyn Fn(&str)) -> Result<(), StepError> {
    let mut mine: Vec<Active> = world.faults()?.into_iter().filter(|a| nodes.contains(&a.node)).collect();
    from_outside_in(&mut mine);
    for active in &mine {
        let (node, name) = (&active.node, active.fault.name());
        let ended = match active.fault {
            Fault::PowerCut => Ok(()),
            _ if gone && active.fault.is_inside() => Ok(()),
            _ => mend(world, active, SOON),
        };
        if let Err(error) = &ended {
            tell(&format!("note: the fault `{name}` of {node} could not be ended: {}", error.failure.cause));
        }
        if ended.is_ok() || active.fault.ends_with_the_machine() {
            world.forget_fault(active)?;
            tell(&format!("note: the fault `{name}` of {node} is over"));
        }
    }
    Ok(())
}

/// A machine that is about to be stopped is not waited for any longer.
const SOON: Duration = Duration::from_secs(10);

/// Between two tries to heal a fault: longer after each, up to this.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// How long a fault may stay that cannot be healed, until the next p1 tries again.
pub const GIVES_UP: Duration = Duration::from_secs(3600);
