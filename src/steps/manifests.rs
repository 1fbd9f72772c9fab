//! The spec's namespaces and manifests are applied, and what left the spec is taken away.

use serde_json::{Value, json};

use super::shared::apply::{ANSWERS, Part, put};
use super::shared::wait::again;
use super::{ClusterDef, Ctx, Step};
use crate::apps::{self};
use crate::engine::StepError;
use crate::observe::apps::apps_now;
use crate::observed::View;
use crate::observed::applied::applied;
use crate::plan::{After, ClusterStep, NodeStep};
use crate::spec::{Cluster, Slot};

pub const STEP: Step = Step::Cluster(ClusterDef {
    name: ClusterStep::Manifests,
    title: "apply the manifests",
    // Of all nodes: pods that start when there is one node stay on it.
    after: &[
        After::Cluster(ClusterStep::Foundations),
        After::Node(NodeStep::Ready),
        After::Provisioners(Slot::AfterK3s),
        After::Cluster(ClusterStep::Kubeconfig),
    ],
    on_demand: false,
    needs: None,
    retry: true,
    check: applied,
    inputs,
    apply,
});

fn inputs(cluster: &Cluster) -> Value {
    json!(apps::digest(cluster))
}

fn apply(ctx: &Ctx<'_>) -> Result<Option<String>, StepError> {
    let world = ctx.world;
    let changed_there = world.seen().apps.as_ref().is_some_and(|a| !a.differing.is_empty());
    let apps = again(ctx, ANSWERS, || apps_now(world))?;
    let seen = world.seen();
    if !changed_there && !applied(&View::new(&world.cluster, &seen)).may_run() {
        return Ok(Some("up to date".into()));
    }
    put(ctx, Part::All, &apps.inventory, &mut |_| Ok(()))
}
