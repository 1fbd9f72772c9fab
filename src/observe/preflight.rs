//! Asking machines that exist already whether k3s can run there, all at once.

use std::collections::BTreeMap;

use crate::access::World;
use crate::guest::{self, Ground};
use crate::observed::View;
use crate::observed::preflight::{Finding, findings, peers};
use crate::os::many;
use crate::spec::Node;

/// What was found, of the machines that are new to the cluster and of those that they have to reach. Nothing is changed there;
/// what does not answer has been told of elsewhere.
pub fn look_at_ground(world: &World) -> Vec<Finding> {
    let seen = world.seen();
    let view = View::new(&world.cluster, &seen);
    let asked: Vec<(&Node, Vec<_>)> =
        world.cluster.nodes.iter().map(|node| (node, peers(&view, node))).collect();
    let new = |node: &Node| crate::observed::preflight::is_new(&view, node);
    let asked: Vec<_> = asked
        .into_iter()
        .filter(|(node, peers)| seen.nodes.contains_key(&node.name) && (new(node) || !peers.is_empty()))
        .collect();
    let grounds = many::each(world.jobs, &asked, |(node, peers)| {
        let text = world.script(node, "looking at what k3s needs", &guest::preflight::script(peers)).ok()?;
        Some((node.name.clone(), guest::preflight::parse(&text).ok()?))
    });
    let grounds: BTreeMap<String, Ground> = grounds.into_iter().flatten().collect();
    findings(&view, &grounds)
}
