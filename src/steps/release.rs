//! A machine that was there before its node stays when the node goes, without anything of p1's.

use serde_json::json;

use super::shared::gone;
use super::{NodeCtx, NodeDef, Step};
use crate::access::SCRIPT_TIMEOUT;
use crate::engine::StepError;
use crate::machines::Cap;
use crate::observed::{View, found};
use crate::plan::{After, Check, NodeStep, Per};

/// The cluster's key goes last: by it everything else was done.
pub const STEP: Step = Step::Node(NodeDef {
    name: NodeStep::Release,
    title: "remove p1's key",
    per: Per::Leaving,
    after: &[After::Node(NodeStep::Leave), After::Node(NodeStep::Uninstall)],
    needs: Some(Cap::Release),
    retry: true,
    check: |view, node, _| match found::stays(view, node) {
        true => Check::Needed("its machine stays, and its k3s with its data too".into()),
        false => Check::Needed("its machine stays".into()),
    },
    inputs: |_, node| json!(node.name),
    apply: release,
});

fn release(ctx: &NodeCtx<'_>) -> Result<Option<String>, StepError> {
    let (world, node) = (ctx.world, ctx.node);
    let machines = world.machines.release(&node.name)?;
    let known = world.machines.id(&node.name).is_some();
    let given_up = known && gone::is_given_up(world, node);
    let seen = world.seen();
    if known && !given_up && found::stays(&View::new(&world.cluster, &seen), node) {
        world.look_at_node(node)?;
        let script = format!("{}\nrm -rf /var/lib/p1\n", world.guest(node).undo());
        world.script(node, "removing p1's notes", &script)?;
    }
    if known && !given_up && world.state.key().is_file() {
        let (public, user) = (world.public_key()?, world.way(node)?.user);
        world.on(node, |remote| remote.remove_key(&user, &public, SCRIPT_TIMEOUT))?;
    }
    gone::note(world, node)?;
    machines.forget(&node.name)?;
    Ok(match (known, given_up) {
        (false, _) => Some("p1 never was on it".into()),
        (true, true) => Some("its machine is gone".into()),
        (true, false) => None,
    })
}
