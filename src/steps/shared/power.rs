//! A machine is shut down.

use std::time::Duration;

use super::wait::{Patience, wait_for};
use crate::access::SCRIPT_TIMEOUT;
use crate::engine::StepError;
use crate::explain::seconds;
use crate::machines::MachineState;
use crate::steps::NodeCtx;

/// A guest with many containers takes its time; under emulation more of it.
const SHUTDOWN: Duration = Duration::from_secs(120);

/// In order, and by its plug if it does not go.
pub fn shut_down(ctx: &NodeCtx<'_>) -> Result<Option<String>, StepError> {
    let (world, node) = (ctx.world, ctx.node);
    // Its answer may be lost with it. What it could not be told is seen in its state.
    let told = world.script(node, "shutting down", world.guest(node).power_off());
    let patience = if told.is_ok() { SHUTDOWN } else { SCRIPT_TIMEOUT.min(Duration::from_secs(10)) };
    if until_off(ctx, patience)? {
        return Ok(None);
    }
    ctx.control.warn(match told {
        Ok(_) => format!("It did not go off within {} and was switched off.", seconds(patience)),
        Err(t) => format!("It could not be told to shut down ({}) and was switched off.", t.failure.cause),
    });
    Ok(Some("switched off".into()))
}

/// Waits until the machine is off, and switches it off if it is not by then: whether it went by itself.
pub fn until_off(ctx: &NodeCtx<'_>, patience: Duration) -> Result<bool, StepError> {
    let (world, node) = (ctx.world, ctx.node);
    let gone = |s: &MachineState| matches!(s, MachineState::Off | MachineState::Absent | MachineState::Saved);
    let off = wait_for(ctx, Patience::stubborn(patience), || {
        let off = world.look_at_machines()?.get(&node.name).is_none_or(|m| gone(&m.state));
        Ok(if off { Ok(()) } else { Err("waiting for it to go off".to_owned()) })
    })?;
    if off.is_err() {
        world.machines.power(&node.name)?.off(&world.cluster, &node.name, ctx.control.cancel())?;
    }
    world.forget_node(&node.name);
    Ok(off.is_ok())
}
