//! Whether a node's kubelet reports.

use std::sync::Arc;

use crate::access::World;
use crate::engine::StepError;
use crate::observed::ready::wrong;
use crate::spec::Node;

/// What shows that a node's kubelet lives when it changes, and what is wrong with the node. What the API
/// says of a node right after it was put back is what it had heard before the snapshot.
pub fn pulse(world: &Arc<World>, node: &Node) -> Result<(String, Option<String>), StepError> {
    let nodes = world.ask(|api| api.nodes(&world.cancel))?;
    let status = nodes.iter().find(|n| n.name == node.name);
    let lease = world.ask(|api| api.leases(&world.cancel))?.remove(&node.name);
    let beat = format!("{lease:?} {:?}", status.and_then(|s| s.heartbeat));
    Ok((beat, wrong(node, None, status)))
}
