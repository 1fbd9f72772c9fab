//! The machines and all that belongs to them are gone, whatever state they are in.

use serde_json::json;

use super::start::forget_node;
use super::{Ctx, Definition, View};
use crate::engine::Trouble;
use crate::explain::Explain;
use crate::os::lock::Lock;
use crate::plan::{After, Check, Scope, Shape};
use crate::providers::{Leftovers, State};
use crate::spec::{Cluster, Node};
use crate::ssh::KnownHosts;

/// A single node that goes while its cluster stays is taken out of the cluster first.
pub const LEAVE: Definition = Definition {
    shape: Shape {
        name: "leave",
        title: "leave the cluster",
        scope: Scope::Nodes,
        after: &[],
        serves: false,
    },
    retry: false,
    check: leaves,
    inputs: |_, node| json!(node.map(|n| &n.name)),
    apply: leave,
};

/// Vagrant destroys what it knows of.
pub const MACHINES: Definition = Definition {
    shape: Shape {
        name: "machine",
        title: "destroy the machine",
        scope: Scope::Nodes,
        after: &[After::Node("leave")],
        serves: false,
    },
    retry: true,
    check: |view, node| match node.map(|n| view.machine(n).state) {
        // Something of it may be left all the same: a disk, Vagrant's files.
        None | Some(State::Absent) => Check::Needed("it does not exist; what is left of it goes".into()),
        Some(state) => Check::Needed(format!("it is {state}")),
    },
    inputs: |_, node| json!(node.map(|n| &n.name)),
    apply: machine,
};

/// The rest: leftovers, network, base image.
pub const CLEAN: Definition = Definition {
    shape: Shape {
        name: "clean",
        title: "remove what is left",
        scope: Scope::Cluster,
        after: &[After::Node("machine")],
        serves: false,
    },
    retry: true,
    check: |_, _| Check::Needed("asked for".into()),
    inputs: |cluster: &Cluster, _| json!(cluster.name),
    apply: clean,
};

fn leaves(view: &View<'_>, _: Option<&Node>) -> Check {
    let last = view.cluster.servers().all(|s| view.seen.doomed.contains(&s.name));
    if view.seen.whole || last {
        return Check::Done("the whole cluster goes".into());
    }
    match view.seen.kubeconfig {
        true => Check::Needed("the cluster stays".into()),
        false => Check::Done("there is no cluster to leave".into()),
    }
}

fn leave(ctx: &Ctx<'_>) -> Result<Option<String>, Trouble> {
    let (world, node) = (ctx.world, ctx.node());
    let done = world.serving(Some(node)).and_then(|server| {
        world.script(server, "taking the node out of the cluster", &forget_node(&node.name))
    });
    // The machine goes all the same; `up` takes the stale Node away before a new one joins.
    if let Err(trouble) = done {
        ctx.control.warn(format!("The cluster was not told that it goes: {}.", trouble.failure.cause));
    }
    Ok(None)
}

fn machine(ctx: &Ctx<'_>) -> Result<Option<String>, Trouble> {
    let (world, node) = (ctx.world, ctx.node());
    let cancel = ctx.control.cancel();
    if world.look_at_machines()?.get(&node.name).is_some_and(|m| m.foreign) {
        super::machine::must_be_ours(ctx)?;
    }
    // One Ruby for all of them, one after the other within: Vagrant's own lock is per machine, ours
    // keeps the steps of one run from starting one each.
    let _turn = world.destroying();
    let known: Vec<String> = world.vagrant.ids().into_keys().collect();
    if known.contains(&node.name) && world.state.vagrantfile().is_file() {
        let all: Vec<String> = known.into_iter().filter(|n| world.seen().doomed.contains(n)).collect();
        ctx.control.says("asking Vagrant");
        if let Err(error) = world.vagrant.destroy(&all, cancel) {
            if error.cancelled() {
                return Err(error.into());
            }
            // What Vagrant cannot do (its lock is held, its plugin is gone) the provider can.
            ctx.control.log(&format!("vagrant destroy: {error}"));
        }
    }
    let ids = world.vagrant.ids();
    let nodes = [node.name.clone()];
    let what = Leftovers { nodes: &nodes, ids: &ids, whole: false, image: None };
    let did = world.provider.clean(&world.cluster, &what, &mut |m| ctx.control.says(m), cancel)?;
    for line in &did {
        ctx.control.log(line);
    }
    world.vagrant.forget(&node.name)?;
    KnownHosts::pinned(world.state.known_hosts()).forget(&node.name)?;
    world.forget_node(&node.name);
    Ok(None)
}

fn clean(ctx: &Ctx<'_>) -> Result<Option<String>, Trouble> {
    let world = ctx.world;
    let cancel = ctx.control.cancel();
    if !world.seen().whole {
        return Ok(None);
    }
    let _lock = Lock::take(&world.host_lock, "clean", std::time::Duration::from_secs(600), cancel)?;
    let ids = world.vagrant.ids();
    // Nodes that left the spec are known to Vagrant only.
    let mut nodes: Vec<String> = world.cluster.nodes.iter().map(|n| n.name.clone()).collect();
    nodes.extend(ids.keys().filter(|n| world.cluster.node(n).is_none()).cloned());
    let image = world.known_box()?;
    let what = Leftovers { nodes: &nodes, ids: &ids, whole: true, image: image.as_ref() };
    let did = world.provider.clean(&world.cluster, &what, &mut |m| ctx.control.says(m), cancel)?;
    for line in &did {
        ctx.control.log(line);
    }
    Ok((!did.is_empty()).then(|| did.join(", ")))
}
