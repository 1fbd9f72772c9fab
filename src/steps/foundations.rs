//! What nodes need to become Ready: manifests that are applied as soon as the API answers, such as a network of
//! the user's. Servers go on joining meanwhile; Ready follows.

use std::time::Duration;

use serde_json::{Value, json};

use super::shared::apply::{ANSWERS, Part, put};
use super::shared::rollout;
use super::shared::wait::{Patience, again, wait_for};
use super::{ClusterDef, Ctx, Step};
use crate::apps;
use crate::engine::StepError;
use crate::explain::{FailureKind, seconds};
use crate::observe::apps_now;
use crate::observed::applied::{and_more, unseen};
use crate::observed::{View, holds};
use crate::plan::{After, Check, ClusterStep, NodeStep};
use crate::spec::{Cluster, When};

pub const STEP: Step = Step::Cluster(ClusterDef {
    name: ClusterStep::Foundations,
    title: "apply what nodes need to become Ready",
    after: &[After::LeadServer(NodeStep::Start), After::Cluster(ClusterStep::Kubeconfig)],
    on_demand: false,
    needs: None,
    retry: true,
    check,
    inputs,
    apply,
});

fn check(view: &View<'_>) -> Check {
    let Some(digest) = apps::foundations(view.cluster) else {
        return Check::Done("nothing goes before the nodes are Ready".into());
    };
    let Some(apps) = &view.seen.apps else { return unseen(view) };
    let wrong = if apps.inventory.foundations != digest {
        Some(match apps.inventory.foundations.is_empty() {
            true => "not applied yet".to_owned(),
            false => "they changed since they were applied".to_owned(),
        })
    } else {
        apps.shaken.first().map(|first| and_more(format!("{first} is not there"), apps.shaken.len()))
    };
    holds("they are applied", wrong)
}

fn inputs(cluster: &Cluster) -> Value {
    json!(apps::foundations(cluster))
}

fn apply(ctx: &Ctx<'_>) -> Result<Option<String>, StepError> {
    let world = ctx.world;
    let apps = again(ctx, ANSWERS, || apps_now(world))?;
    let seen = world.seen();
    if !check(&View::new(&world.cluster, &seen)).may_run() {
        return Ok(Some("up to date".into()));
    }
    let whose = || {
        let early = world.cluster.manifests.iter().filter(|m| m.when == When::Api);
        early.map(|m| format!("`{}`", m.shown)).collect::<Vec<_>>().join(", ")
    };
    let bare = world.cluster.brings_network();
    let mut told = false;
    let done = put(ctx, Part::Foundations, &apps.inventory, &mut |items| {
        if !bare {
            return Ok(());
        }
        let bound = world.cluster.timeouts.node_ready;
        let patience = Patience { every: Duration::from_secs(1), ..Patience::of(bound) };
        let network = wait_for(ctx, patience, || {
            let nodes = match world.nodes() {
                Ok(nodes) => nodes,
                Err(error) => return Ok(Err(error.failure.cause)),
            };
            if nodes.iter().any(|n| n.ready) {
                return Ok(Ok(()));
            }
            let said = nodes.first().map(|n| format!("{}: {}", n.name, n.message));
            Ok(Err(said.unwrap_or_else(|| "no node has registered".to_owned())))
        })?;
        let Err(last) = network else { return Ok(()) };
        told = true;
        // What of it does not run tells more than the kubelet.
        let why = rollout::await_all(ctx, items, Duration::ZERO).err();
        let more = why.as_ref().map_or_else(|| last.clone(), |why| why.failure.cause.clone());
        let evidence = why.map(|why| why.failure.evidence).unwrap_or_default();
        Err(StepError::new(
            format!(
                "no node has a network within {}: `flannel-backend: none` leaves it to {}: {more}",
                seconds(bound),
                whose()
            ),
            "Fix it, then `p1 up`: it applies what changed. `p1 kubectl get pods -A` shows what does not run.",
        )
        .kind(FailureKind::bound(bound))
        .evidence([evidence, vec![last]].concat()))
    });
    done.map_err(|mut error| {
        if bare && !told && !error.cancelled() && !world.nodes().is_ok_and(|n| n.iter().any(|n| n.ready)) {
            let cause = &error.failure.cause;
            error.failure.cause = format!(
                "no node has a network, which `flannel-backend: none` leaves to {}: {cause}",
                whose()
            );
        }
        error
    })
}
