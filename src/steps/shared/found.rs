//! A k3s that was there before p1, when something of it is rewritten.

use std::sync::Arc;

use super::stamp::STAMPS;
use crate::access::World;
use crate::engine::StepError;
use crate::guest::NodeFacts;
use crate::observed::found::AS_FOUND;
use crate::spec::Node;

/// It no longer counts as it was found, before anything is done to it and whatever comes of that.
pub fn rewrites(world: &World, node: &Node, facts: &NodeFacts) -> Result<(), StepError> {
    if !facts.stamps.contains_key(AS_FOUND) {
        return Ok(());
    }
    world.script(node, "noting that its k3s is rewritten", &format!("rm -f {STAMPS}/{AS_FOUND}\n"))?;
    world.note(|seen| {
        seen.found.remove(&node.name);
        if let Some(facts) = seen.nodes.get_mut(&node.name).map(Arc::make_mut) {
            facts.stamps.remove(AS_FOUND);
        }
    });
    Ok(())
}
