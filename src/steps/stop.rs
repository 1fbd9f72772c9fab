//! The machine is shut down: in order, and by its plug if it does not go.

use std::time::Duration;

use serde_json::json;

use super::wait::{Patience, wait_for};
use super::{Item, NodeCtx, NodeDef, Step};
use crate::access::SCRIPT_TIMEOUT;
use crate::engine::StepError;
use crate::explain::seconds;
use crate::machines::{Cap, MachineState};
use crate::observed::View;
use crate::plan::{After, Check, NodeStep, Per};
use crate::spec::{Cluster, Node};

pub const STEP: Step = Step::Node(NodeDef {
    name: NodeStep::Stop,
    title: "shut the machine down",
    per: Per::Node,
    // Workers first: they leave while somebody hears of it.
    after: &[After::Workers(NodeStep::Stop)],
    needs: Some(Cap::Power),
    retry: false,
    check,
    inputs,
    apply: shut_down,
});

/// A guest with many containers takes its time; under emulation more of it.
const SHUTDOWN: Duration = Duration::from_secs(120);

fn check(view: &View<'_>, node: &Node, _: Item<'_>) -> Check {
    match view.machine(node) {
        machine if machine.foreign => Check::Done("no machine of its name is this folder's".into()),
        machine => of(&machine.state),
    }
}

fn of(state: &MachineState) -> Check {
    match state {
        MachineState::Absent => Check::Done("it does not exist".into()),
        MachineState::Off | MachineState::Saved => Check::Done("it is off".into()),
        state => Check::Needed(format!("it is {state}")),
    }
}

fn inputs(_: &Cluster, node: &Node) -> serde_json::Value {
    json!(&node.name)
}

/// In order, and by its plug if it does not go.
pub fn shut_down(ctx: &NodeCtx<'_>) -> Result<Option<String>, StepError> {
    let (world, node) = (ctx.world, ctx.node);
    // Its answer may be lost with it. What it could not be told is seen in its state.
    let told = world.script(node, "shutting down", world.guest(node).power_off());
    let gone = |s: &MachineState| matches!(s, MachineState::Off | MachineState::Absent | MachineState::Saved);
    let patience = if told.is_ok() { SHUTDOWN } else { SCRIPT_TIMEOUT.min(Duration::from_secs(10)) };
    let off = wait_for(ctx, Patience::stubborn(patience), || {
        let off = world.look_at_machines()?.get(&node.name).is_none_or(|m| gone(&m.state));
        Ok(if off { Ok(()) } else { Err("waiting for it to go off".to_owned()) })
    })?;
    if off.is_ok() {
        world.forget_node(&node.name);
        return Ok(None);
    }
    world.machines.power(&node.name)?.off(&world.cluster, &node.name, ctx.control.cancel())?;
    world.forget_node(&node.name);
    ctx.control.warn(match told {
        Ok(_) => format!("It did not go off within {} and was switched off.", seconds(patience)),
        Err(t) => format!("It could not be told to shut down ({}) and was switched off.", t.failure.cause),
    });
    Ok(Some("switched off".into()))
}
