//! The machine has the processors and the memory that the spec gives it.
//!
//! One node after the other: each is shut down in order, changed, started, and has to be Ready again
//! before the next one goes, so that the cluster serves on where it has nodes to serve with.

use serde_json::json;

use super::shared::{console, power, quorum, reboot};
use super::{Item, NodeCtx, NodeDef, Step};
use crate::engine::StepError;
use crate::machines::{Base, Cap, MachineState};
use crate::observed::View;
use crate::plan::{After, Check, NodeStep, Per};
use crate::spec::{Cluster, Node, Role};

pub const STEP: Step = Step::Node(NodeDef {
    name: NodeStep::Resize,
    title: "give the machine its size",
    per: Per::Node,
    after: &[After::Before(NodeStep::Resize)],
    needs: Some(Cap::Resize),
    retry: true,
    check,
    inputs,
    apply,
});

fn check(view: &View<'_>, node: &Node, _: Item<'_>) -> Check {
    let machine = view.machine(node);
    if machine.state == MachineState::Absent || machine.foreign {
        return Check::Done("it is made with it".into());
    }
    match (machine.size, node.size) {
        (Some(size), Some(wanted)) if size != wanted => Check::Needed(format!("it has {size}, not {wanted}")),
        _ => Check::Done("it has it".into()),
    }
}

fn inputs(_: &Cluster, node: &Node) -> serde_json::Value {
    let size = node.size.map_or((0, 0), |size| (size.cpus, size.memory));
    json!((&node.name, size.0, size.1))
}

fn apply(ctx: &NodeCtx<'_>) -> Result<Option<String>, StepError> {
    let (world, node) = (ctx.world, ctx.node);
    let cancel = ctx.control.cancel();
    let before = world.look_at_machine(node)?;
    let Some(before) = before.filter(|m| m.state != MachineState::Absent && !m.foreign) else {
        return Ok(None);
    };
    let suspended = before.state == MachineState::Saved && before.can.has(Cap::Suspend);
    let runs = suspended || !matches!(before.state, MachineState::Off | MachineState::Saved);
    let status = world.seen().api.as_ref().and_then(|api| api.get(&node.name).cloned()).filter(|s| s.ready);
    if runs {
        if node.role == Role::Server {
            quorum::wait_to_stop(ctx, node)?;
        }
        if suspended || before.state == MachineState::Paused {
            // Who is halted hears of nothing.
            world.wake(&world.seen().request.targets.iter().cloned().collect(), cancel)?;
        }
        ctx.control.says("shutting it down");
        power::shut_down(ctx)?;
    }
    let base = world.box_info()?.map(Base::Box);
    if base.is_some() {
        world.public_key()?;
    }
    world.machines.resize(&node.name)?.resize(&world.cluster, node, base.as_ref(), cancel)?;
    if runs {
        ctx.control.says("starting it");
        world.machines.power(&node.name)?.on(&world.cluster, &node.name, cancel)?;
        console::wait_for_sshd(ctx)?;
        world.on(node, |r| r.wait_for(world.cluster.timeouts.ssh, &mut |_| {}).map(|_| ()))?;
        if let Some(status) = status {
            reboot::is_back(ctx, &status.boot_id)?;
        }
        world.look_at_node(node)?;
    }
    world.look_at_machine(node)?;
    let had = before.size.map(|s| format!("it had {s}"));
    Ok(had)
}
