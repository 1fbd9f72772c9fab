//! What is remembered of a node whose machine is gone, or is the cluster's no more.

use std::time::Duration;

use crate::access::World;
use crate::engine::StepError;
use crate::observed::View;
use crate::observed::quorum::cluster_stays;
use crate::os::files;
use crate::spec::{Node, Role};
use crate::ssh::KnownHosts;

/// What a `destroy` is about that takes machines which do not answer for gone for good.
pub const GONE: &str = "--gone";

/// How long such a machine may take to answer.
const PATIENCE: Duration = Duration::from_secs(10);

/// Whether a machine that exists already is given up: the user said that what does not answer is gone, and it does not.
pub fn is_given_up(world: &World, node: &Node) -> bool {
    let seen = world.seen();
    if seen.request.subject.as_deref() != Some(GONE) {
        return false;
    }
    if seen.silent.contains_key(&node.name) {
        return true;
    }
    let reached = world.on(node, |remote| remote.wait_for(PATIENCE, &mut |_| {}).map(|_| ()));
    let Err(error) = reached else { return false };
    world.note(|seen| _ = seen.silent.insert(node.name.clone(), error.failure.cause.clone()));
    !error.cancelled()
}

/// Nothing of what was known is true any more.
pub fn note(world: &World, node: &Node) -> Result<(), StepError> {
    let seen = world.seen();
    if node.role == Role::Server && !cluster_stays(&View::new(&world.cluster, &seen)) {
        // The next server is of another cluster, with other certificates.
        files::remove_if_there(&world.state.kubeconfig())?;
        world.forget_api();
        world.note(|seen| (seen.here.kubeconfig, seen.api) = (false, None));
    }
    world.forget_node(&node.name);
    if !seen.request.whole_goes {
        // Each is one file of all nodes. With the whole cluster they go as files; should that not come
        // about, the making of a machine forgets its node.
        KnownHosts::pinned(world.state.known_hosts()).forget(&node.name)?;
        world.forget_memory(&node.name)?;
    }
    world.note(|seen| {
        seen.made.remove(&node.name);
        seen.run.gone.insert(node.name.clone());
        seen.former.retain(|n| n.name != node.name);
        if let Some(api) = &mut seen.api {
            api.remove(&node.name);
        }
    });
    Ok(())
}
