//! Machines and all that belongs to them are gone, whatever state they are in. A node that goes while
//! its cluster stays leaves it first.

use std::collections::BTreeSet;
use std::time::Duration;

use serde_json::json;

use super::{ClusterDef, Ctx, Item, NodeCtx, NodeDef, Step, asked, quorum, stop, uninstall};
use crate::access::{Claims, World, kubectl};
use crate::engine::StepError;
use crate::explain::seconds;
use crate::machines::{Cap, MachineState, Whose};
use crate::observed::View;
use crate::observed::quorum::{self as judged, Api, cluster_stays};
use crate::os::files;
use crate::os::lock::Lock;
use crate::os::process::tail;
use crate::plan::{After, Check, ClusterStep, NodeStep, Per};
use crate::spec::{Node, Role};
use crate::ssh::KnownHosts;

/// Out of the cluster: drained, forgotten by the API, no longer a member of etcd. One server after the
/// other, and where it is recreated the next one goes when it is back.
pub const LEAVE: Step = Step::Node(NodeDef {
    name: NodeStep::Leave,
    title: "leave the cluster",
    per: Per::Leaving,
    after: &[
        After::LeadServer(NodeStep::Ready),
        After::LeavingBefore(NodeStep::Machine),
        After::ReplacementsBefore(NodeStep::Ready),
    ],
    needs: None,
    retry: false,
    check: leaves,
    inputs: |_, node| json!(node.name),
    apply: leave,
});

/// k3s ends in order, so that nothing of it speaks for the node any more.
pub const UNINSTALL: Step = Step::Node(NodeDef {
    name: NodeStep::Uninstall,
    title: "uninstall k3s",
    per: Per::Leaving,
    after: &[After::Node(NodeStep::Leave)],
    needs: None,
    retry: false,
    check: uninstalls,
    inputs: |_, node| json!(node.name),
    apply: uninstall,
});

/// Vagrant destroys what it knows of.
pub const MACHINES: Step = Step::Node(NodeDef {
    name: NodeStep::Machine,
    title: "destroy the machine",
    per: Per::Leaving,
    after: &[After::Node(NodeStep::Leave), After::Node(NodeStep::Uninstall)],
    needs: Some(Cap::Make),
    retry: true,
    check: |view, node, _| match view.seen.machines.get(&node.name).map(|m| &m.state) {
        // Something of it may be left all the same: a disk, Vagrant's files.
        None | Some(MachineState::Absent) => {
            Check::Needed("it does not exist; what is left of it goes".into())
        }
        Some(state) => Check::Needed(format!("it is {state}")),
    },
    inputs: |_, node| json!(node.name),
    apply: machine,
});

/// The rest: leftovers, network, base image.
pub const CLEAN: Step = Step::Cluster(ClusterDef {
    name: ClusterStep::Clean,
    title: "remove what is left",
    after: &[After::Node(NodeStep::Machine)],
    on_demand: false,
    needs: Some(Cap::Make),
    retry: true,
    check: asked,
    inputs: |cluster| json!(cluster.name),
    apply: clean,
});

/// How long pods may take to go elsewhere. Those that do not are ended with the machine.
pub const DRAIN: Duration = Duration::from_secs(90);

fn leaves(view: &View<'_>, node: &Node, _: Item<'_>) -> Check {
    if view.seen.run.left.contains(&node.name) {
        return Check::Done("it has left".into());
    }
    match cluster_stays(view) {
        true => Check::Needed("the cluster stays".into()),
        false => Check::Done("there is no cluster that stays".into()),
    }
}

fn leave(ctx: &NodeCtx<'_>) -> Result<Option<String>, StepError> {
    let (world, node) = (ctx.world, ctx.node);
    let _turn = (node.role == Role::Server).then(|| world.leaving());
    world.look_at_machines()?;
    let api = match quorum::now(world) {
        // A worker is nobody's majority.
        Err(_) if node.role == Role::Worker => Ok(Api::new()),
        api => api,
    };
    let told = api.and_then(|api| tell(ctx, &api));
    let done = match told {
        Ok(done) => done,
        Err(error) if error.cancelled() || node.role == Role::Server => return Err(error),
        // The machine goes all the same; what the API still says of the node is drift, which `up` mends.
        Err(error) => {
            ctx.control.warn(format!("The cluster was not told that it goes: {}.", error.failure.cause));
            None
        }
    };
    world.note(|seen| seen.run.left.push(node.name.clone()));
    Ok(done)
}

fn tell(ctx: &NodeCtx<'_>, api: &Api) -> Result<Option<String>, StepError> {
    let (world, node) = (ctx.world, ctx.node);
    if node.role == Role::Server {
        judged::may_leave(api, &node.name).map_err(|why| {
            StepError::new(
                format!("{} must not leave now: {why}", node.name),
                "Without a majority etcd accepts no writes. Bring the others back first (`p1 status`).",
            )
        })?;
    }
    let ready = |api: &Api| api.get(&node.name).is_some_and(|s| s.ready);
    let mut done = Vec::new();
    if ready(api) {
        ctx.control.says("moving its pods elsewhere");
        let drained = kubectl::drain(world, node, DRAIN, true, &mut |line| ctx.control.log(line))?;
        let text = drained.text();
        match drained.status {
            0 => done.push("drained"),
            // kubectl's words for a drain that is not over in time (kubectl, pkg/drain).
            _ if text.contains("timeout reached") => ctx.control.warn(format!(
                "Not all pods went elsewhere within {}; the rest end with the machine.",
                seconds(DRAIN)
            )),
            _ => {
                let last = tail(&text, 1).pop().unwrap_or_else(|| "kubectl failed".to_owned());
                ctx.control.warn(format!("Its pods were not moved, they end with the machine: {last}"));
            }
        }
    }
    // Asked again: the drain may have taken its time.
    let spared = |api: Api| ready(&api) && judged::can_lose(&api, &node.name);
    if node.role == Role::Server && quorum::now(world).is_ok_and(spared) {
        // Otherwise etcd may lose its leader by being told to do without it, and servers that wait for
        // another one too long end themselves (seen on k3s v1.21). A stop is what every restart is.
        ctx.control.says("stopping its k3s");
        let stop = world.guest(node).service().stop(node.role.unit());
        match world.script(node, "stopping k3s", &stop) {
            Ok(_) => done.push("its k3s stopped"),
            Err(error) if error.cancelled() => return Err(error),
            Err(error) => ctx.control.log(&error.failure.cause),
        }
    }
    ctx.control.says("taking it out of the cluster");
    kubectl::remove_node(world, node)?;
    Ok(Some(done.join(", ")).filter(|done| !done.is_empty()))
}

fn uninstalls(view: &View<'_>, node: &Node, _: Item<'_>) -> Check {
    let machine = view.seen.machines.get(&node.name);
    match machine.map(|m| &m.state) {
        _ if !cluster_stays(view) => Check::Done("there is no cluster that stays".into()),
        Some(MachineState::Running) if machine.is_some_and(|m| !m.foreign) => {
            Check::Needed("its machine runs".into())
        }
        _ => Check::Done("its machine does not run".into()),
    }
}

fn uninstall(ctx: &NodeCtx<'_>) -> Result<Option<String>, StepError> {
    match uninstall::uninstall(ctx) {
        Err(error) if !error.cancelled() => {
            ctx.control.warn(format!("k3s was not uninstalled before: {}.", error.failure.cause));
            Ok(None)
        }
        done => done,
    }
}

fn machine(ctx: &NodeCtx<'_>) -> Result<Option<String>, StepError> {
    let (world, node) = (ctx.world, ctx.node);
    let cancel = ctx.control.cancel();
    let machine = world.look_at_machine(node)?;
    let foreign = machine.as_ref().is_some_and(|m| m.foreign && m.state != MachineState::Absent);
    if foreign && let Some(whose) = theirs(world, node)? {
        let name = crate::machines::machine_name(&world.cluster.name, &node.name);
        ctx.control.warn(format!("The machine `{name}` stays: it belongs to {}.", whose.name()));
        world.machines.make(&node.name)?.forget(&node.name)?;
        world.note(|seen| {
            seen.run.gone.insert(node.name.clone());
            seen.former.retain(|n| n.name != node.name);
        });
        return Ok(Some("there is none of this folder".into()));
    }
    let heir = world.cluster.nodes.iter().find(|n| n.ip == node.ip && n.name != node.name);
    if heir.is_some() && machine.is_some_and(|m| m.state == MachineState::Running) {
        // In order, so that it gives its address back: its lease would keep the address from the other.
        stop::shut_down(ctx)?;
    }
    world.note(|seen| {
        seen.run.ends.insert(node.name.clone());
    });
    // Not who has left the cluster: k3s may be just being uninstalled there.
    let goes = |name: &str| {
        let seen = world.seen();
        let ends = seen.request.whole_goes || seen.run.ends.contains(name);
        ends && seen.leaving().any(|l| l.name == name)
    };
    let (say, log) = (&mut |text: &str| ctx.control.says(text), &mut |line: &str| ctx.control.log(line));
    let make = world.machines.make(&node.name)?;
    for line in &make.destroy(&world.cluster, &node.name, &goes, say, log, cancel)? {
        ctx.control.log(line);
    }
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
    Ok(None)
}

fn clean(ctx: &Ctx<'_>) -> Result<Option<String>, StepError> {
    let world = ctx.world;
    let cancel = ctx.control.cancel();
    if !world.seen().request.whole {
        return Ok(None);
    }
    let _lock = Lock::take(&world.host_lock, "clean", Duration::from_secs(600), cancel)?;
    let image = world.known_box()?;
    let claims = Claims::look(world)?;
    if claims.contested().is_some() || claims.moved().is_some() {
        // Somebody took the cluster since this run began.
        return Err(StepError::new("the cluster belongs to another folder", "`p1 status` says to which.")
            .evidence(claims.evidence(&world.cluster.name)));
    }
    let spared: BTreeSet<String> = claims.spared.into_keys().collect();
    let owner = world.owner()?;
    let did = world.machines.for_makers(&world.cluster, &mut |make, part| {
        make.clear(part, &spared, &owner, image.as_ref(), &mut |m| ctx.control.says(m), cancel)
    })?;
    for line in &did {
        ctx.control.log(line);
    }
    Ok((!did.is_empty()).then(|| did.join(", ")))
}

/// Whose the machine of the node's name is, if it is not this folder's.
fn theirs(world: &World, node: &Node) -> Result<Option<Whose>, StepError> {
    let whose = world.whose(&[node.name.clone()].into())?.remove(&node.name);
    Ok(whose.filter(|whose| !whose.is_ours()))
}
