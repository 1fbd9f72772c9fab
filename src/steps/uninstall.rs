//! k3s is stopped, or taken off the nodes, by the scripts that its installer left.

use serde_json::json;

use super::shared::gone::is_given_up;
use super::{ClusterDef, Ctx, Item, NodeCtx, NodeDef, Step};
use crate::engine::StepError;
use crate::explain::FailureKind;
use crate::guest::NodeFacts;
use crate::k3s;
use crate::machines::{Cap, MachineState};
use crate::observed::quorum::cluster_stays;
use crate::observed::{View, found};
use crate::os::{files, process};
use crate::plan::{After, Check, ClusterStep, NodeStep, Per};
use crate::spec::{Cluster, Node, Role};
use crate::ssh::Job;

/// Stops k3s, its containers and its network at once; data stays.
pub const KILLALL: Step = Step::Node(NodeDef {
    name: NodeStep::Killall,
    title: "stop k3s and its containers",
    per: Per::Node,
    after: &[After::Workers(NodeStep::Killall)],
    needs: None,
    retry: true,
    check: reachable,
    inputs,
    apply: killall,
});

/// Takes k3s off a node; the machine stays.
pub const STEP: Step = Step::Node(NodeDef {
    name: NodeStep::Uninstall,
    title: "uninstall k3s",
    per: Per::Node,
    // Workers first, the server last: a worker without its server cannot be told anything.
    after: &[After::Workers(NodeStep::Uninstall)],
    needs: None,
    retry: true,
    check: reachable,
    inputs,
    apply: uninstall,
});

/// k3s ends in order, so that nothing of it speaks for the node any more.
pub const LEAVING: Step = Step::Node(NodeDef {
    name: NodeStep::Uninstall,
    title: "uninstall k3s",
    per: Per::Leaving,
    after: &[After::Cluster(ClusterStep::Images), After::Node(NodeStep::Leave)],
    needs: None,
    retry: false,
    check: uninstalls,
    inputs: |_, node| json!(node.name),
    apply: uninstall_leaving,
});

/// What this host keeps of the k3s that is gone.
pub const FORGET: Step = Step::Cluster(ClusterDef {
    name: ClusterStep::Forget,
    title: "forget the kubeconfig",
    after: &[After::Servers(NodeStep::Uninstall)],
    on_demand: false,
    needs: None,
    retry: false,
    check: kubeconfig_is_void,
    inputs: |cluster| json!(cluster.name),
    apply: forget,
});

fn inputs(_: &Cluster, node: &Node) -> serde_json::Value {
    json!(node.name)
}

fn reachable(view: &View<'_>, node: &Node, _: Item<'_>) -> Check {
    match view.machine(node).state {
        MachineState::Absent => Check::Done("the machine does not exist".into()),
        MachineState::Running => Check::Needed("asked for".into()),
        // Not silently: what is on its disk stays there.
        state => Check::Needed(format!("the machine is {state}")),
    }
}

/// A worker that goes alone leaves a cluster whose kubeconfig is still good.
fn kubeconfig_is_void(view: &View<'_>) -> Check {
    if !view.seen.here.kubeconfig {
        return Check::Done("there is none".into());
    }
    match view.cluster.servers().all(|s| view.seen.request.targets.contains(&s.name)) {
        true => Check::Needed("there is one".into()),
        false => Check::Done("a server stays".into()),
    }
}

fn uninstalls(view: &View<'_>, node: &Node, _: Item<'_>) -> Check {
    let machine = view.seen.machines.get(&node.name);
    let stays = view.can(node).has(Cap::Release);
    match machine.map(|m| &m.state) {
        _ if found::stays(view, node) => Check::Done("its k3s was there before p1, and stays".into()),
        _ if stays => Check::Needed("its machine stays".into()),
        _ if !node.role.has_k3s() => Check::Done("it has no k3s".into()),
        _ if !cluster_stays(view) => Check::Done("there is no cluster that stays".into()),
        Some(MachineState::Running) if machine.is_some_and(|m| !m.foreign) => {
            Check::Needed("its machine runs".into())
        }
        _ => Check::Done("its machine does not run".into()),
    }
}

fn facts(ctx: &NodeCtx<'_>) -> Result<NodeFacts, StepError> {
    let (world, node) = (ctx.world, ctx.node);
    let state = world.look_at_machines()?.remove(&node.name).map(|m| m.state);
    if let Some(state) = state.filter(|s| *s != MachineState::Running) {
        return Err(StepError::new(format!("the machine is {state}"), "`p1 start` starts it."));
    }
    world.look_at_node(node)
}

/// Runs one of k3s' scripts to its end. They stop containers and unmount, which takes a while.
fn run(ctx: &NodeCtx<'_>, name: &str, script: &str) -> Result<(), StepError> {
    let (world, node) = (ctx.world, ctx.node);
    let job = Job { name, id: &world.run, script, env: &[] };
    let done = world
        .on(node, |r| r.detached(&job, world.cluster.timeouts.install, &mut |line| ctx.control.log(line)))?;
    if done.status == 0 {
        return Ok(());
    }
    let text = done.text();
    Err(StepError::new(format!("k3s' own {name} script exited with {}", done.status), "")
        .kind(FailureKind::Exit { code: done.status })
        .evidence(process::tail(&text, 12))
        .transient())
}

fn uninstall_leaving(ctx: &NodeCtx<'_>) -> Result<Option<String>, StepError> {
    let world = ctx.world;
    if world.machines.release(&ctx.node.name).is_ok() {
        let known = world.machines.id(&ctx.node.name).is_some();
        if known && is_given_up(world, ctx.node) {
            let why = world.seen().silent.get(&ctx.node.name).cloned().unwrap_or_default();
            ctx.control.warn(format!(
                "{} is taken for gone ({why}). Should it come back, k3s, its data and p1's key are still on it.",
                ctx.node.name
            ));
            return Ok(Some("its machine is gone".into()));
        }
        return if known {
            uninstall(ctx).map_err(|e| gone(ctx, e))
        } else {
            Ok(Some("p1 never was on it".into()))
        };
    }
    match uninstall(ctx) {
        Err(error) if !error.cancelled() => {
            ctx.control.warn(format!("k3s was not uninstalled before: {}.", error.failure.cause));
            Ok(None)
        }
        done => done,
    }
}

/// A machine that stays is not left with p1's things on it silently; of one that nobody will see again that has to be said.
fn gone(ctx: &NodeCtx<'_>, mut error: StepError) -> StepError {
    if matches!(
        error.failure.kind,
        FailureKind::Unreachable | FailureKind::Refused | FailureKind::Bound { .. }
    ) {
        let seen = ctx.world.seen();
        let names = if seen.request.whole_goes { String::new() } else { format!(" {}", ctx.node.name) };
        error.failure.hint = Some(format!(
            "When it answers, `p1 retry` goes on. If its machine is gone for good, `p1 destroy{names} --gone` forgets it."
        ));
    }
    error
}

/// A network plugin may have put its programs on the node's own card, where k3s' scripts leave them.
fn warn_of_network(ctx: &NodeCtx<'_>) {
    if ctx.world.cluster.brings_network() {
        ctx.control.warn(format!(
            "The network of the pods is not k3s' own (`flannel-backend: none`), and k3s' scripts do not take all of it \
             away: {0} may not be reachable over SSH afterwards. A restart of its machine helps (`p1 stop {0}`, `p1 start {0}`); \
             docs/troubleshooting.md says how to take the plugin out before.",
            ctx.node.name
        ));
    }
}

fn killall(ctx: &NodeCtx<'_>) -> Result<Option<String>, StepError> {
    let script = k3s::killall_script();
    if !facts(ctx)?.scripts.contains(&script) {
        return Ok(Some("k3s is not installed".into()));
    }
    warn_of_network(ctx);
    run(ctx, "killall", &script)?;
    Ok(None)
}

/// Runs k3s' uninstall scripts, and takes away what they and p1 left.
pub fn uninstall(ctx: &NodeCtx<'_>) -> Result<Option<String>, StepError> {
    let (world, node) = (ctx.world, ctx.node);
    let before = facts(ctx)?;
    let mut did = false;
    // A node whose role changed has the other script.
    for role in [Role::Worker, Role::Server] {
        let script = k3s::uninstall_script(role);
        if before.scripts.contains(&script) {
            warn_of_network(ctx);
            // Gone already means done: the script removes itself at its end (install.sh).
            run(ctx, "uninstall", &format!("[ ! -e {script} ] || {script}"))?;
            did = true;
        }
    }
    // What p1 changed is noted in a folder that goes with the rest.
    let guest = world.guest(node);
    let script = format!("{}{}{REMOVE_REST}", guest.service().functions(), guest.undo());
    world.script(node, "removing what is left", &script)?;
    let after = world.look_at_node(node)?;
    if after.has_k3s() {
        return Err(StepError::new(
            "k3s is still there after its uninstall script",
            format!("Look at what is left: p1 ssh {} -- ls /usr/local/bin /etc/systemd/system", node.name),
        )
        .evidence(after.scripts));
    }
    world.remember(&node.name, |m| (m.joined, m.before) = (false, false))?;
    Ok((!did).then(|| "k3s was not installed".into()))
}

/// What the script leaves behind: the node's password (measured; install.sh does not touch
/// /etc/rancher/node), a half-installed binary without scripts, and p1's own notes.
const REMOVE_REST: &str = "\
for unit in k3s k3s-agent; do service_remove $unit; done
rm -f /usr/local/bin/k3s /usr/local/bin/k3s-killall.sh
rm -rf /etc/rancher /var/lib/rancher /var/lib/kubelet /run/k3s /run/flannel /var/lib/p1
";

fn forget(ctx: &Ctx<'_>) -> Result<Option<String>, StepError> {
    let world = ctx.world;
    files::remove_if_there(&world.state.kubeconfig())?;
    if world.seen().request.whole {
        // Whatever was begun with the cluster's data: it is gone, and what was set aside is too.
        world.state.end()?;
    }
    world.forget_api();
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::observed::{Observed, Request};
    use crate::spec::fixture::cluster;

    #[test]
    fn the_kubeconfig_goes_with_the_server_only() {
        let cluster = cluster(1);
        let check = |kubeconfig: bool, nodes: &[&str]| {
            let targets = nodes.iter().map(ToString::to_string).collect();
            let request = Request { targets, ..Request::default() };
            let seen = Observed {
                here: crate::observed::Here { kubeconfig, ..Default::default() },
                request,
                ..Observed::default()
            };
            kubeconfig_is_void(&View::new(&cluster, &seen)).may_run()
        };
        assert!(check(true, &["server", "worker-1"]) && check(true, &["server"]));
        assert!(!check(true, &["worker-1"]) && !check(false, &["server"]));
    }
}
