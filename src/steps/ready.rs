//! The node counts: its Node object is Ready, at its address, at the wanted version.

use std::time::{Duration, Instant};

use serde_json::json;

use super::shared::back;
use super::shared::unit::{LINES_WITH_CRASHES, Unit, journal, k3s_failure, with_facts};
use super::shared::wait::{Patience, wait_for};
use super::{Item, NodeCtx, NodeDef, Step};
use crate::access::Via;
use crate::access::kubectl::kubectl;
use crate::api::NodeStatus;
use crate::engine::StepError;
use crate::explain::{FailureKind, seconds, times};
use crate::guest::{Activity, Since};
use crate::k3s;
use crate::observed::ready::{cordoned, rebooted, stale, wrong};
use crate::observed::start::started;
use crate::observed::{View, holds};
use crate::os::process;
use crate::plan::{After, Check, ClusterStep, NodeStep, Per};
use crate::spec::{Cluster, Node};

pub const STEP: Step = Step::Node(NodeDef {
    name: NodeStep::Ready,
    title: "become Ready",
    per: Per::Node,
    after: &[
        After::Node(NodeStep::Start),
        // Where all between is as it should be: what is remembered of the node has whose it is.
        After::NodeUnchanged(NodeStep::Ssh),
        After::Cluster(ClusterStep::Kubeconfig),
        After::Cluster(ClusterStep::Foundations),
    ],
    needs: None,
    retry: false,
    check,
    inputs,
    apply,
});

fn check(view: &View<'_>, node: &Node, _: Item<'_>) -> Check {
    let facts = match view.facts(node) {
        Ok(facts) => facts,
        Err(check) => return check,
    };
    // What the API says of a k3s that does not run, or is about to be restarted, is its former word.
    if started(view, node).may_run() {
        return Check::Unknown("asked when its k3s was started".into());
    }
    if view.seen.api.is_none() {
        return Check::Unknown("asked when the API answers".into());
    }
    if view.seen.run.woken.contains(&node.name) {
        return Check::Unknown("asked when its kubelet answers".into());
    }
    let (version, status) = (view.seen.here.version.as_deref(), view.status(node));
    let why = wrong(node, version, status).or_else(|| rebooted(Some(&facts.boot), status));
    holds("it is Ready", why.or_else(|| cordoned(status)))
}

fn inputs(cluster: &Cluster, node: &Node) -> serde_json::Value {
    json!([cluster.k3s.release, cluster.k3s.artifacts, (&node.name, node.ip)])
}

/// How often the unit is looked at meanwhile.
const LOOK: Duration = Duration::from_secs(10);

fn apply(ctx: &NodeCtx<'_>) -> Result<Option<String>, StepError> {
    let (world, node) = (ctx.world, ctx.node);
    let bound = world.cluster.timeouts.node_ready;
    let version = world.seen().here.version.clone();
    let mut uncordoned = false;
    let mut looked = Instant::now();
    let mut heard = None;
    let mut before = world.seen().run.started.contains_key(&node.name).then_some(0);
    // Each answer costs the server that gives it; under emulation that is the one that others wait for.
    let patience = Patience { every: Duration::from_secs(1), ..Patience::of(bound) };
    let found = wait_for(ctx, patience, || {
        // systemd takes a unit for started as soon as its API answers; the kubelet may end k3s right after.
        if looked.elapsed() > LOOK {
            looked = Instant::now();
            if let Ok(unit) = Unit::of(ctx)
                && unit.gave_up(*before.get_or_insert(unit.restarts))
            {
                let ended = unit.restarts > 0;
                return Err(k3s_failure(
                    ctx,
                    &journal(ctx, &Since::default(), LINES_WITH_CRASHES, ended)?,
                    None,
                    unit.restarts,
                ));
            }
        }
        let nodes = match world.nodes() {
            Ok(nodes) => nodes,
            Err(error) => return Ok(Err(error.failure.cause)),
        };
        let status = nodes.iter().find(|n| n.name == node.name);
        let seen = world.seen();
        let started = seen.run.started.get(&node.name).copied();
        let boot = seen.nodes.get(&node.name).map(|facts| facts.boot.as_str());
        let why = wrong(node, version.as_deref(), status).or_else(|| stale(started, status));
        if let Some(why) = why.or_else(|| rebooted(boot, status)) {
            return Ok(Err(why));
        }
        if seen.run.woken.contains(&node.name) && !back::answers(world, node, &mut heard) {
            return Ok(Err(back::SILENT.to_owned()));
        }
        if cordoned(status).is_some() && !uncordoned {
            uncordoned = true;
            ctx.control.says("letting pods onto it again");
            let script = format!("k3s kubectl uncordon {}", node.name);
            kubectl(world, Via::Any, "uncordoning the node", &script)?;
            return Ok(Err("letting pods onto it again".to_owned()));
        }
        Ok(settled(ctx)?.map_or_else(|| Ok(status.cloned()), Err))
    })?;
    match found {
        Ok(status) => done(ctx, status.as_ref()),
        Err(why) => Err(late(ctx, &why, bound)),
    }
}

/// What is known of it now.
fn done(ctx: &NodeCtx<'_>, status: Option<&NodeStatus>) -> Result<Option<String>, StepError> {
    let (world, node) = (ctx.world, ctx.node);
    let Some(status) = status else { return Ok(None) };
    if world.seen().here.images > 0 {
        // Its kubelet runs, which begins when all archives are imported.
        world.script(node, "removing the archive of images", &k3s::images::remove_kept_script())?;
    }
    world.note(|seen| {
        seen.api.get_or_insert_default().insert(node.name.clone(), status.clone());
    });
    world.remember(&node.name, |m| m.version = Some(status.version.clone()))?;
    Ok(Some(status.version.clone()))
}

/// A last look inside: the unit is active, and was not started again in between. What is seen is
/// remembered, so that the next `up` need not look as long as the API vouches for the node.
fn settled(ctx: &NodeCtx<'_>) -> Result<Option<String>, StepError> {
    let (world, node) = (ctx.world, ctx.node);
    let facts = world.look_at_node(node)?;
    let unit = facts.unit(node.role.unit());
    if unit.active != Activity::Active {
        return Ok(Some(format!("its unit {} is {}", node.role.unit(), unit.active)));
    }
    if unit.restarts > 0 {
        let init = world.guest(node).service().name();
        ctx.control.warn(format!("k3s ended and was started again by {init}, {}.", times(unit.restarts)));
    }
    world.remember(&node.name, |m| m.facts = Some(facts))?;
    Ok(None)
}

/// What to do where the kubelet says that no network plugin is there, and the spec has it so.
fn no_network(cluster: &Cluster, why: &str) -> Option<&'static str> {
    let missing = cluster.brings_network() && why.contains("NetworkPluginNotReady");
    missing.then_some(
        "The spec leaves the pods' network to you (`k3s.cni: none`): no node is Ready before one is there. Name its manifests \
         with `when: api`, or apply them yourself, then `p1 up`.",
    )
}

fn late(ctx: &NodeCtx<'_>, why: &str, bound: Duration) -> StepError {
    let (world, node) = (ctx.world, ctx.node);
    let lines = journal(ctx, &Since::default(), LINES_WITH_CRASHES, false).unwrap_or_default();
    let mut evidence = k3s::telling(&lines, false);
    let found = k3s::diagnose(&lines);
    let mut cause = format!("the node was not Ready within {}: {why}", seconds(bound));
    let mut hint = format!("`p1 logs {}` shows its journal.", node.name);
    let mut next: &[&str] = &[];
    if let Some(missing) = no_network(&world.cluster, why) {
        missing.clone_into(&mut hint);
    } else if let Some(found) = found {
        let found = with_facts(world, node, found, &mut evidence);
        cause = format!("{cause}; {}", found.cause);
        (hint, next) = (found.hint, found.next);
    }
    if let Ok(events) = world.ask(|api| api.events(20, &world.cancel)) {
        let of_node = events.iter().filter(|e| e.object.ends_with(&node.name));
        evidence.extend(of_node.map(|e| format!("event: {} {}: {}", e.object, e.reason, e.message)));
    }
    let evidence = process::tail(&evidence.join("\n"), 16);
    StepError::new(cause, hint).kind(FailureKind::bound(bound)).evidence(evidence).next(next.iter().copied())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whoever_has_k3s_make_no_network_is_told_that_it_is_missing() {
        let mut cluster = crate::spec::fixture::cluster(0);
        let why = "it is not Ready (KubeletNotReady: container runtime network not ready: NetworkReady=false \
                   reason:NetworkPluginNotReady message:Network plugin returns error: cni plugin not initialized)";
        assert_eq!(no_network(&cluster, why), None);
        cluster.nodes[0].config.insert("flannel-backend".into(), "none".into());
        assert!(no_network(&cluster, why).is_some_and(|hint| hint.contains("`when: api`")));
        assert_eq!(no_network(&cluster, "it is not Ready (KubeletNotReady: PLEG is not healthy)"), None);
    }

    #[test]
    fn a_ready_node_whose_k3s_is_not_there_is_asked_again() {
        let cluster = crate::spec::fixture::cluster(0);
        let node = &cluster.nodes[0];
        let status = NodeStatus {
            name: node.name.clone(),
            ready: true,
            internal_ip: Some(node.ip.into()),
            ..NodeStatus::default()
        };
        let api = Some([(node.name.clone(), status)].into());
        let mut seen = crate::observed::Observed { api, ..Default::default() };
        seen.nodes.insert(node.name.clone(), Default::default());
        let found = check(&View::new(&cluster, &seen), node, None);
        assert!(matches!(found, Check::Unknown(_)), "{found:?}");
    }
}
