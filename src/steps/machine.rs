//! A machine and all that belongs to it is gone, whatever state it is in.

use serde_json::json;

use super::shared::{gone, power};
use super::{NodeCtx, NodeDef, Step};
use crate::access::World;
use crate::engine::StepError;
use crate::machines::{Cap, MachineState, Whose};
use crate::plan::{After, Check, ClusterStep, NodeStep, Per};
use crate::spec::Node;

/// Vagrant destroys what it knows of.
pub const STEP: Step = Step::Node(NodeDef {
    name: NodeStep::Machine,
    title: "destroy the machine",
    per: Per::Leaving,
    after: &[
        After::Cluster(ClusterStep::Images),
        After::Node(NodeStep::Leave),
        After::Node(NodeStep::Uninstall),
    ],
    needs: Some(Cap::Make),
    retry: true,
    check: |view, node, _| match view.seen.machines.get(&node.name).map(|m| &m.state) {
        // Something of it may be left all the same: a disk, Vagrant's files.
        None | Some(MachineState::Absent) => {
            Check::Needed("it does not exist; what is left of it goes".into())
        }
        Some(state) => Check::Needed(format!("it is {state}")),
    },
    inputs: |_, node| json!(node.name),
    apply: machine,
});

fn machine(ctx: &NodeCtx<'_>) -> Result<Option<String>, StepError> {
    let (world, node) = (ctx.world, ctx.node);
    let cancel = ctx.control.cancel();
    let machine = world.look_at_machine(node)?;
    let foreign = machine.as_ref().is_some_and(|m| m.foreign && m.state != MachineState::Absent);
    if foreign && let Some(whose) = theirs(world, node)? {
        let name = crate::machines::machine_name(&world.cluster.name, &node.name);
        ctx.control.warn(format!("The machine `{name}` stays: it belongs to {}.", whose.name()));
        world.machines.make(&node.name)?.forget(&node.name)?;
        world.note(|seen| {
            seen.run.gone.insert(node.name.clone());
            seen.former.retain(|n| n.name != node.name);
        });
        return Ok(Some("there is none of this folder".into()));
    }
    let successor = world.cluster.nodes.iter().find(|n| n.ip == node.ip && n.name != node.name);
    if successor.is_some() && machine.is_some_and(|m| m.state == MachineState::Running) {
        // In order, so that it gives its address back: its lease would keep the address from the other.
        power::shut_down(ctx)?;
    }
    world.note(|seen| {
        seen.run.ends.insert(node.name.clone());
    });
    // Not who has left the cluster: k3s may be just being uninstalled there.
    let goes = |name: &str| {
        let seen = world.seen();
        let ends = seen.request.whole_goes || seen.run.ends.contains(name);
        ends && seen.leaving().any(|l| l.name == name)
    };
    let (say, log) = (&mut |text: &str| ctx.control.says(text), &mut |line: &str| ctx.control.log(line));
    let make = world.machines.make(&node.name)?;
    for line in &make.destroy(&world.cluster, &node.name, &goes, say, log, cancel)? {
        ctx.control.log(line);
    }
    gone::note(world, node)?;
    Ok(None)
}

/// Whose the machine of the node's name is, if it is not this folder's.
fn theirs(world: &World, node: &Node) -> Result<Option<Whose>, StepError> {
    let whose = world.whose(&[node.name.clone()].into())?.remove(&node.name);
    Ok(whose.filter(|whose| !whose.is_ours()))
}
