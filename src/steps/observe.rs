//! Looking at a cluster before planning: everything at once, bounded, without Ruby.

use std::sync::Arc;
use std::thread;
use std::time::Duration;

use super::{World, artifacts, view::Seen};
use crate::engine::Trouble;
use crate::providers::State;
use crate::spec::Node;

/// How much is looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Depth {
    /// The machines, by their provider.
    Machines,
    /// And what runs in them.
    Nodes,
}

/// A machine that runs has its sshd; if it does not answer by then, it is said so.
const PATIENCE: Duration = Duration::from_secs(10);

/// Looks, and keeps what was seen in the world.
pub fn observe(world: &Arc<World>, depth: Depth) -> Result<Seen, Trouble> {
    world.read_tokens()?;
    let kubeconfig = world.state.kubeconfig().is_file();
    world.note(|seen| seen.kubeconfig = kubeconfig);
    if !world.state.exists() && depth == Depth::Machines {
        // Nothing was ever made here, but somebody may have the name.
        world.look_at_machines()?;
        return Ok(world.seen());
    }
    thread::scope(|scope| {
        let api = scope.spawn(|| {
            if depth >= Depth::Nodes && kubeconfig {
                look_at_api(world);
            }
        });
        let files = scope.spawn(|| {
            if depth >= Depth::Nodes {
                artifacts::look(world)
            }
        });
        // Those with an id have a machine that probably runs: SSH is tried while the provider is asked.
        let known = world.vagrant.ids();
        let nodes: Vec<_> = world
            .cluster
            .nodes
            .iter()
            .filter(|n| depth >= Depth::Nodes && known.contains_key(&n.name) && world.state.key().is_file())
            .map(|node| scope.spawn(move || look_at(world, node)))
            .collect();
        let machines = world.look_at_machines();
        for thread in nodes {
            let _ = thread.join();
        }
        let _ = (api.join(), files.join());
        machines
    })?;
    let seen = world.seen();
    let idle = |n: &&Node| seen.machines.get(&n.name).is_none_or(|m| m.state != State::Running);
    if depth >= Depth::Nodes && world.cluster.nodes.iter().any(|n| idle(&n)) {
        look_at_host(world);
    }
    Ok(world.seen())
}

fn look_at(world: &World, node: &Node) {
    let looked = world
        .on(node, |remote| remote.wait_for(PATIENCE, &mut |_| {}).map(|_| ()))
        .and_then(|()| world.look_at_node(node));
    if let Err(trouble) = looked {
        world.note(|seen| {
            seen.silent.insert(node.name.clone(), trouble.failure.cause);
        });
    }
}

/// What the API says of the nodes.
pub fn look_at_api(world: &World) {
    let answer = world.api().and_then(|api| api.nodes(&world.cancel).map_err(Trouble::from));
    world.note(|seen| match answer {
        Ok(nodes) => seen.api = Some(nodes.into_iter().map(|n| (n.name.clone(), n)).collect()),
        Err(_) => seen.api = None,
    });
}

/// The box and what the provider has of it; only where machines have to be made or started.
fn look_at_host(world: &World) {
    let Ok(Some(info)) = world.box_info() else {
        world.note(|seen| seen.box_ready = false);
        return;
    };
    let unprepared = match world.provider.prepared(&world.cluster, &info, &world.cancel) {
        Ok(what) => what,
        Err(error) => Some(error.to_string()),
    };
    world.note(|seen| {
        seen.box_ready = true;
        seen.unprepared = unprepared;
    });
}
