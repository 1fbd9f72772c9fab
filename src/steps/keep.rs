//! The cluster as it is now goes into this user's library: disks and memory of all machines at one moment.

use std::collections::BTreeSet;

use super::shared::back;
use super::{ClusterDef, Ctx, NodeDef, Step, asked, asked_of, named, named_of};
use crate::access::World;
use crate::engine::StepError;
use crate::explain::FailureKind;
use crate::kept::{MOST_BYTES, Moment};
use crate::machines::{Cap, Kept, MachineState, address_of};
use crate::observe;
use crate::os::{Cancel, files, many};
use crate::plan::{After, ClusterStep, NodeStep, Per};
use crate::spec::Node;

/// All of it or nothing: the machines go on in any case.
pub const KEEP: Step = Step::Cluster(ClusterDef {
    name: ClusterStep::Keep,
    title: "keep the machines as they are",
    after: &[],
    on_demand: false,
    needs: Some(Cap::Keep),
    retry: false,
    check: asked,
    inputs: named,
    apply: keep,
});

/// The same for forks that are made next: what is written down goes when they are there.
pub const MOMENT: Step = Step::Cluster(ClusterDef {
    name: ClusterStep::Keep,
    title: "write down this moment for forks",
    after: &[],
    on_demand: false,
    needs: Some(Cap::Keep),
    retry: false,
    check: asked,
    inputs: named,
    apply: for_forks,
});

/// What to do about nodes that a fork is not reached by.
pub const REACH: &str = "A fork is reached by the IPv6 link-local address that follows from its MAC address, and nobody gives it \
                         others. p1's own box has it from here on: `p1 box build`, then `p1 destroy` and `p1 up`. Other boxes need \
                         addresses by EUI-64, and systemd-networkd where addresses come by DHCP.";

/// Their clocks stood still meanwhile.
pub const CLOCK: Step = Step::Node(NodeDef {
    name: NodeStep::Clock,
    title: "set the clock",
    per: Per::Node,
    after: &[After::Cluster(ClusterStep::Keep)],
    needs: Some(Cap::Keep),
    retry: true,
    check: asked_of,
    inputs: named_of,
    apply: |ctx| back::set_clock(ctx, false),
});

fn keep(ctx: &Ctx<'_>) -> Result<Option<String>, StepError> {
    let (world, cancel) = (ctx.world, ctx.control.cancel());
    let key = back::subject(world)?;
    let _lock = world.kept.lock(cancel)?;
    if world.kept.find(&key)?.is_some() {
        return Ok(Some("it is kept already".into()));
    }
    // It would be in every cluster that is made again from it, and nothing there would end it.
    if let Some(fault) = world.state.faults()?.first() {
        ctx.control.warn(format!(
            "The cluster is not kept: `{}` is under {}. `p1 fault heal` ends it.",
            fault.node,
            fault.told(world.now())
        ));
        return Ok(Some("not kept".into()));
    }
    let keeper = world.machines.keep(&world.cluster.first_server().name)?;
    let moment = write_down(ctx, &key, false)?;
    let size = moment.bytes();
    if size > MOST_BYTES {
        world.kept.sweep(keeper, &Cancel::new())?;
        let what =
            format!("it would take {}, more than all that is kept may have ({})", mib(size), mib(MOST_BYTES));
        return Err(StepError::new(what, "Take `keep` out of the spec."));
    }
    world.kept.commit(&world.run, &moment)?;
    let mut did = format!("{key}, {}", mib(size));
    for old in world.kept.outlived(world.now(), Some(&key))? {
        world.kept.set_aside(&old.key)?;
        did += &format!("; {} of `{}` gave way", old.key, old.cluster);
    }
    world.kept.sweep(keeper, cancel)?;
    Ok(Some(did))
}

/// Disks, memory and files of the cluster as it is now; it is not found under its key yet.
fn write_down(ctx: &Ctx<'_>, key: &str, fork: bool) -> Result<Moment, StepError> {
    let (world, cancel) = (ctx.world, ctx.control.cancel());
    let keeper = world.machines.keep(&world.cluster.first_server().name)?;
    world.kept.sweep(keeper, cancel)?;
    let nodes: BTreeSet<String> = world.cluster.nodes.iter().map(|n| n.name.clone()).collect();
    // What a killed run left paused heard of nothing since.
    world.wake(&nodes, cancel)?;
    let machines = world.look_at_machines()?;
    let runs =
        |node: &&String| machines.get(*node).is_none_or(|m| m.state != MachineState::Running || m.foreign);
    if let Some(node) = nodes.iter().find(runs) {
        return Err(StepError::new(format!("the machine of `{node}` does not run"), "`p1 up` starts it."));
    }
    for node in &nodes {
        // No kept memory may hold it.
        world.machines.make(node)?.detach_files(&world.cluster, node, cancel)?;
    }
    observe::look_at_api(world);
    let api = world.seen().api.clone().unwrap_or_default();
    let ready: Vec<String> = api.into_iter().filter(|(_, s)| s.ready).map(|(node, _)| node).collect();
    if let Some(node) = nodes.iter().find(|node| !ready.contains(node)) {
        return Err(StepError::new(
            format!("`{node}` is not Ready"),
            "It is written down as a whole: `p1 up`.",
        ));
    }
    let lacks = lack_for_fork(world, &nodes);
    if fork && let Some((node, why)) = lacks.first() {
        let what = format!("the cluster cannot be forked: `{node}`: {why}");
        return Err(StepError::new(what, REACH).kind(FailureKind::Cannot));
    }
    let folder = world.kept.begin(&world.run)?;
    ctx.control.says("writing down disks and memory");
    let kept = moment(world, &nodes, cancel);
    let kept = match kept {
        Ok(kept) => kept,
        Err(error) => {
            // A full disk leaves what was there.
            let _ = world.kept.sweep(keeper, &Cancel::new());
            return Err(error);
        }
    };
    for file in world.state.keepsakes() {
        if let Some(text) = files::read_if_there(&file)? {
            let name = file.file_name().unwrap_or_default();
            files::write(&folder.join(name), text.as_bytes(), 0o600)?;
        }
    }
    Ok(Moment {
        v: 1,
        key: key.to_owned(),
        cluster: world.cluster.name.clone(),
        folder: world.cluster.base.clone(),
        at: world.now(),
        ready,
        machines: kept,
        reachable: lacks.is_empty(),
        fork,
    })
}

fn for_forks(ctx: &Ctx<'_>) -> Result<Option<String>, StepError> {
    let (world, cancel) = (ctx.world, ctx.control.cancel());
    let subject = back::subject(world)?;
    let key = subject.split(' ').next().unwrap_or_default();
    let _lock = world.kept.lock(cancel)?;
    if let Some(fault) = world.state.faults()?.first() {
        let what =
            format!("`{}` is under {}, and would be in the forks", fault.node, fault.told(world.now()));
        return Err(StepError::new(what, "`p1 fault heal` ends it.").next(["p1 fault heal".to_owned()]));
    }
    let moment = write_down(ctx, key, true)?;
    let size = moment.bytes();
    world.kept.commit(&world.run, &moment)?;
    Ok(Some(mib(size)))
}

/// The nodes by which forks would not be reached, or which would lose their addresses there, and why.
fn lack_for_fork(world: &World, nodes: &BTreeSet<String>) -> Vec<(String, String)> {
    let nodes: Vec<&Node> = nodes.iter().filter_map(|name| world.cluster.node(name)).collect();
    let lacks = many::each(world.jobs, &nodes, |node| {
        let script = world.guest(node).lacks_for_fork(address_of(&world.cluster, node));
        match world.script(node, "asking what a fork needs", &script) {
            Ok(text) => text.lines().next().map(str::to_owned),
            Err(error) => Some(error.failure.cause),
        }
    });
    nodes.iter().zip(lacks).filter_map(|(node, why)| Some((node.name.clone(), why?))).collect()
}

/// Every machine as it is at one moment; they go on whatever comes of it.
fn moment(world: &World, nodes: &BTreeSet<String>, cancel: &Cancel) -> Result<Vec<Kept>, StepError> {
    let named = |node: &String| Ok::<_, StepError>((node.clone(), world.kept.volume(&world.run, node)?));
    let names: Vec<(String, String)> = nodes.iter().map(named).collect::<Result<_, _>>()?;
    world.note(|seen| seen.run.paused.clone_from(nodes));
    world.machines.pause(&world.cluster, nodes, cancel)?;
    let kept = many::each(world.jobs, &names, |(node, name)| {
        Ok::<_, StepError>(world.machines.keep(node)?.keep(&world.cluster, node, name, cancel)?)
    });
    world.machines.resume(&world.cluster, nodes, &Cancel::new())?;
    world.note(|seen| seen.run.paused.clear());
    let mut kept: Vec<Kept> = kept.into_iter().collect::<Result<_, _>>()?;
    let keeper = world.machines.keep(&world.cluster.first_server().name)?;
    keeper.measure(&mut kept, cancel)?;
    Ok(kept)
}

fn mib(bytes: u64) -> String {
    format!("{} MiB", bytes >> 20)
}
