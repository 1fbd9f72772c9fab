//! A node that goes while its cluster stays leaves it first.

use std::time::Duration;

use serde_json::json;

use super::shared::quorum;
use super::{Item, NodeCtx, NodeDef, Step};
use crate::access::kubectl;
use crate::engine::StepError;
use crate::explain::seconds;
use crate::observed::quorum::{self as judged, Api, cluster_stays};
use crate::observed::{View, found};
use crate::os::process::tail;
use crate::plan::{After, Check, ClusterStep, NodeStep, Per};
use crate::spec::{Node, Role};

/// Out of the cluster: drained, forgotten by the API, no longer a member of etcd. One server after the
/// other, and where it is recreated the next one goes when it is back.
pub const STEP: Step = Step::Node(NodeDef {
    name: NodeStep::Leave,
    title: "leave the cluster",
    per: Per::Leaving,
    after: &[
        After::Cluster(ClusterStep::Images),
        After::LeadServer(NodeStep::Ready),
        After::LeavingBefore(NodeStep::Machine),
        After::LeavingBefore(NodeStep::Release),
        After::ReplacementsBefore(NodeStep::Ready),
    ],
    needs: None,
    retry: false,
    check: leaves,
    inputs: |_, node| json!(node.name),
    apply: leave,
});

/// How long pods may take to go elsewhere. Those that do not are ended with the machine.
pub const DRAIN: Duration = Duration::from_secs(90);

fn leaves(view: &View<'_>, node: &Node, _: Item<'_>) -> Check {
    if view.seen.run.left.contains(&node.name) {
        return Check::Done("it has left".into());
    }
    match cluster_stays(view) {
        _ if found::stays(view, node) => Check::Done("its k3s was there before p1, and stays".into()),
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
