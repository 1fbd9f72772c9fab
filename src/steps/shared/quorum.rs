//! Asking whether a cluster can do without one of its servers, and waiting until it can.

use super::wait::{Patience, wait_for};
use crate::access::World;
use crate::engine::StepError;
use crate::explain::seconds;
use crate::observed::quorum::{Api, may_stop, put_right};
use crate::spec::Node;
use crate::steps::Ctx;

/// The same just now; and servers have to answer themselves.
pub fn now(world: &World) -> Result<Api, StepError> {
    let nodes = world.ask(|api| api.nodes(&world.cancel))?;
    let api = nodes.into_iter().map(|n| (n.name.clone(), n)).collect();
    let mut api = put_right(api, &world.seen().machines);
    for server in world.cluster.servers() {
        if let Some(status) = api.get_mut(&server.name).filter(|s| s.ready) {
            status.ready = world.is_up(server);
        }
    }
    Ok(api)
}

/// Waits until the cluster can do without the server for the time of a restart.
pub fn wait_to_stop(ctx: &Ctx<'_>, node: &Node) -> Result<(), StepError> {
    let world = ctx.world;
    let bound = world.cluster.timeouts.server_ready;
    let other = wait_for(ctx, Patience::of(bound), || match now(world) {
        Ok(api) => Ok(may_stop(&api, &node.name)),
        // One or two servers cannot do without each other anyway, and without a kubeconfig there is
        // no cluster yet.
        Err(_) if world.cluster.servers().count() < 3 || !world.seen().here.kubeconfig => Ok(Ok(())),
        Err(error) => Ok(Err(error.failure.cause)),
    })?;
    other.map_err(|why| {
        let late = format!("(waited {})", seconds(bound));
        StepError::new(
            format!("the cluster cannot do without {} for a moment: {why} {late}", node.name),
            "`p1 status` shows which server is not Ready; once it is, `p1 retry` continues.",
        )
    })
}
