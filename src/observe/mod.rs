//! Looking at a cluster before planning: everything at once, bounded, without Ruby.

pub mod apps;
mod configuration;
mod host;
mod preflight;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use jiff::Timestamp;

use crate::access::{Claims, World, image_wanted};
use crate::api::NodeStatus;
use crate::engine::StepError;
use crate::explain::without_name;
use crate::guest::NodeFacts;
use crate::k3s;
use crate::machines::MachineState;
use crate::observed::drift::{self, former_nodes};
use crate::observed::{Observed, faults};
use crate::os::many;
use crate::spec::{Node, Role};

pub use apps::apps_now;
pub use configuration::look_at_configuration;
pub use host::{
    look_at_box, look_at_files, look_at_given, look_at_hosting, look_at_images, look_at_provisioners,
    made_from, running,
};
pub use preflight::look_at_ground;

/// How much is looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Depth {
    /// How the machines are, by their provider.
    States,
    /// And how they are connected.
    Machines,
    /// And what runs in them, as far as it is not known already.
    Nodes,
    /// And every node from inside.
    Inside,
}

/// A machine that runs has its sshd; if it does not answer by then, it is said so.
const PATIENCE: Duration = Duration::from_secs(10);

/// A kubelet renews its lease every 10 s (`nodeLeaseDurationSeconds` / 4), and the API takes a node for Ready until 40 s have
/// passed: one that has missed two is looked at.
const QUIET: Duration = Duration::from_secs(25);

/// The same as [`observe`], where whose the cluster is was looked at as well.
pub fn observe_claimed(
    world: &Arc<World>,
    depth: Depth,
    claims: &Claims,
) -> Result<Arc<Observed>, StepError> {
    world.note(|seen| seen.differs.extend(claims.whose().map(drift::owner)));
    observe(world, depth)
}

/// Looks, and keeps what was seen in the world.
pub fn observe(world: &Arc<World>, depth: Depth) -> Result<Arc<Observed>, StepError> {
    let tokens = world.read_tokens();
    // Whoever only ends or removes machines opens nothing with them: that is the way out of wrong ones.
    if depth > Depth::Machines {
        tokens?;
    }
    let unfinished = world.state.unfinished()?;
    let on_nodes = world.state.faults()?;
    let kubeconfig = world.state.kubeconfig().is_file();
    let images = host::look_at_images(world);
    let known = world.cluster.nodes.iter().filter_map(|n| Some((n.name.clone(), world.memory(&n.name)?)));
    let known: Vec<_> = known.collect();
    world.note(|seen| {
        seen.here.kubeconfig = kubeconfig;
        seen.here.unfinished = unfinished;
        seen.here.faults = on_nodes;
        seen.here.images = images;
        for (name, memory) in known {
            seen.versions.extend(memory.version.map(|v| (name.clone(), v)));
            seen.settings.extend(memory.settings.filter(|_| memory.joined).map(|s| (name.clone(), s)));
            seen.before.extend(memory.before.then(|| name.clone()));
            seen.joined.extend(memory.joined.then_some(name));
        }
    });
    if !world.state.exists() && depth <= Depth::Machines {
        // Nothing was ever made here, but somebody may have the name.
        world.look_at_machines()?;
        look_at_memory(world);
        return Ok(world.seen());
    }
    thread::scope(|scope| {
        let files = scope.spawn(|| {
            if depth >= Depth::Nodes {
                host::look_at_files(world);
                host::look_at_provisioners(world);
                host::look_at_hosting(world);
            }
        });
        let machines = world.look_at_machines();
        if machines.is_ok() && depth >= Depth::Machines {
            host::look_at_link(world);
        }
        // An address that nobody has keeps one waiting for seconds, and so does one that nobody gets to.
        let cut = world.seen().link.clone().filter(|_| depth >= Depth::Nodes);
        let seen = world.seen();
        let runs = |n: &Node| seen.machines.get(&n.name).is_some_and(|m| m.state == MachineState::Running);
        if cut.is_none() && depth >= Depth::Nodes && kubeconfig && world.cluster.servers().any(runs) {
            look_at_api(world);
        }
        look_at_memory(world);
        let seen = world.seen();
        let answers = seen.api.is_some();
        // What cannot be told now is asked again when the step's turn comes.
        let apps = scope.spawn(move || answers.then(|| look_at_apps(world, depth)));
        let runs = |n: &&Node| {
            seen.machines.get(&n.name).is_some_and(|m| m.state == MachineState::Running && !m.foreign)
        };
        let nodes = world.cluster.nodes.iter().filter(|n| depth >= Depth::Nodes && runs(n));
        // Nor does one answer whose cable is pulled.
        let hidden = faults::hidden(&seen.here.faults);
        let (cut_off, nodes): (Vec<&Node>, Vec<&Node>) =
            nodes.partition(|n| hidden.contains(n.name.as_str()));
        world.note(|seen| {
            let why = || "it is under a fault that hides its machine".to_owned();
            seen.silent.extend(cut_off.iter().map(|n| (n.name.clone(), why())));
        });
        let nodes = nodes.into_iter();
        let unknown: Vec<&Node> =
            nodes.filter(|node| depth == Depth::Inside || !vouched_for(world, &seen, node)).collect();
        match &cut {
            Some(lack) => {
                let silent = unknown.iter().map(|n| (n.name.clone(), lack.clone()));
                world.note(|seen| seen.silent.extend(silent));
            }
            None => drop(many::each(world.jobs, &unknown, |node| look_at(world, node))),
        }
        if depth >= Depth::Nodes {
            host::look_at_cards(world);
        }
        let _ = files.join();
        let _ = apps.join();
        machines
    })?;
    if depth >= Depth::Nodes
        && let Some(amiss) = world.look_at_tokens()
    {
        world.note(|seen| seen.differs.push(drift::token(amiss)));
    }
    let seen = world.seen();
    let idle = |n: &Node| seen.machines.get(&n.name).is_none_or(|m| m.state != MachineState::Running);
    if depth >= Depth::Nodes && world.cluster.nodes.iter().any(idle) {
        host::look_at_box(world, world.makes_machines());
    }
    Ok(world.seen())
}

/// Looks at what the cluster is made of, and at nothing that is there of it.
pub fn look_at_parts(world: &World) -> Result<(), StepError> {
    world.read_tokens()?;
    let image = image_wanted(world).ok();
    world.note(|seen| seen.here.image = image);
    host::look_at_files(world);
    host::look_at_provisioners(world);
    Ok(())
}

/// What this folder remembers of machines, and which of them the spec no longer has.
fn look_at_memory(world: &World) {
    let image = image_wanted(world).ok();
    let facts = world.state.facts().unwrap_or_default();
    let seen = world.seen();
    let made: BTreeMap<_, _> =
        seen.machines.keys().filter_map(|n| Some((n.clone(), world.memory(n)?.made?))).collect();
    let former = former_nodes(&world.cluster, &seen, &made);
    let mark = world.mark();
    world.note(|seen| {
        seen.here.mark = mark;
        seen.here.image = image;
        seen.here.provider = facts.provider;
        seen.here.libvirt = facts.libvirt();
        seen.here.ran = facts.ran.clone();
        seen.made = made;
        seen.former = former;
    });
}

/// What is remembered of a node still holds as far as can be told without logging in: the API says
/// that it is Ready, has heard of it just now, and it is the same boot of the same machine, on which p1 has done nothing
/// since.
/// A login costs 0.5 s under emulation, this nothing. What somebody changed by hand inside a node
/// that stays Ready is seen by [`Depth::Inside`] only.
fn vouched_for(world: &World, seen: &Observed, node: &Node) -> bool {
    let Some(facts) = world.memory(&node.name).and_then(|m| m.facts) else { return false };
    let status = seen.api.as_ref().and_then(|api| api.get(&node.name));
    if !status.is_some_and(|s| s.ready && !s.boot_id.is_empty() && s.boot_id == facts.boot) {
        return false;
    }
    if !seen.reported.get(&node.name).is_some_and(|at| is_recent(*at, Timestamp::now())) {
        return false;
    }
    // What says how it is configured may be anywhere, and is read each time.
    if seen.before.contains(&node.name) && !facts.stamps.contains_key("install") {
        return false;
    }
    // An older p1 did not ask for this; and what cannot change is not judged from memory.
    let version = seen.versions.get(&node.name).and_then(|v| v.parse().ok());
    let fixed = |was| !k3s::fixed::changes(was, node, version.as_ref()).is_empty();
    if node.role == Role::Server && facts.settings.as_ref().is_none_or(fixed) {
        return false;
    }
    world.note(|seen| {
        // How its clock was is not a thing to be remembered.
        seen.nodes.insert(node.name.clone(), NodeFacts { ahead: 0, ..facts }.into());
        seen.remembered.insert(node.name.clone());
    });
    true
}

/// Whether what was said at that moment of the node's clock counts at this one of ours.
fn is_recent(at: Timestamp, now: Timestamp) -> bool {
    Duration::try_from(now.duration_since(at)).is_ok_and(|past| past < QUIET) || at > now
}

fn look_at(world: &World, node: &Node) {
    let patience = PATIENCE.min(world.cluster.timeouts.ssh);
    let looked = world
        .on(node, |remote| remote.wait_for(patience, &mut |_| {}).map(|_| ()))
        .and_then(|()| world.look_at_node(node));
    if let Err(error) = looked {
        world.note(|seen| {
            let why = without_name(&node.name, &error.failure.cause).to_owned();
            seen.silent.insert(node.name.clone(), why);
        });
    }
}

/// What the API says of the nodes.
pub fn look_at_api(world: &World) {
    let answer = world.nodes();
    let leases = answer.is_ok().then(|| world.ask(|api| api.leases(&world.cancel)).unwrap_or_default());
    let leases = leases.unwrap_or_default();
    let reported = |node: &NodeStatus| {
        let lease = leases.get(&node.name).and_then(|at| at.parse().ok());
        Some((node.name.clone(), lease.max(node.heartbeat)?))
    };
    // Too few servers for etcd look like an API that is silent, or that knows nobody.
    let members = (answer.is_err() && world.cluster.servers().count() > 1).then(|| world.members()).flatten();
    world.note(|seen| match answer {
        Ok(nodes) => {
            seen.api = Some(nodes.iter().map(|n| (n.name.clone(), n.clone())).collect());
            seen.reported = nodes.iter().filter_map(reported).collect();
            (seen.deaf, seen.members) = (None, None);
        }
        Err(error) => {
            seen.api = None;
            (seen.deaf, seen.members) = (Some(error.failure.cause), members);
        }
    });
}

/// What was applied there; whether it is still as the manifests say only on a close look.
fn look_at_apps(world: &World, depth: Depth) -> Result<(), StepError> {
    apps_now(world)?;
    if depth == Depth::Inside && !world.cluster.manifests.is_empty() {
        let differing = apps::differing(world)?;
        world.note(|seen| {
            if let Some(apps) = &mut seen.apps {
                apps.differing = differing;
            }
        });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_counts_as_heard_of_until_it_has_missed_two_leases() {
        let now: Timestamp = "2026-11-29T06:00:40Z".parse().unwrap();
        let recent = |at: &str| is_recent(at.parse().unwrap(), now);
        assert!(recent("2026-11-29T06:00:30Z") && recent("2026-11-29T06:00:16Z"));
        assert!(!recent("2026-11-29T06:00:15Z") && !recent("2026-11-29T05:00:40Z"));
        // A clock that is ahead.
        assert!(recent("2026-11-29T06:00:45Z"));
    }
}
