//! What was applied runs: Deployments, StatefulSets, DaemonSets, Jobs and pods, as they themselves say.

use serde_json::{Value, json};

use super::shared::rollout::await_all;
use super::shared::wait::again;
use super::{ClusterDef, Ctx, Step};
use crate::apps::{self, Inventory};
use crate::engine::StepError;
use crate::observe::apps::{apps_now, inventory};
use crate::observed::applied::{and_more, applied, unseen};
use crate::observed::{View, holds};
use crate::plan::{After, Check, ClusterStep};
use crate::spec::Cluster;

pub const STEP: Step = Step::Cluster(ClusterDef {
    name: ClusterStep::Rollouts,
    title: "await the rollouts",
    after: &[After::Cluster(ClusterStep::Manifests)],
    on_demand: false,
    needs: None,
    retry: false,
    check,
    inputs,
    apply,
});

fn check(view: &View<'_>) -> Check {
    let Some(apps) = &view.seen.apps else { return unseen(view) };
    if apps.inventory == Inventory::default() && view.cluster.manifests.is_empty() {
        return Check::Done("the spec has none".into());
    }
    if applied(view).may_run() {
        return match view.cluster.manifests.is_empty() {
            true => Check::Done("the spec has none".into()),
            false => Check::Unknown("checked when they are applied".into()),
        };
    }
    let first = apps.unfinished.first();
    let wrong = first.map(|(object, why)| and_more(format!("{object}: {why}"), apps.unfinished.len()));
    holds("all that was applied runs", wrong)
}

fn inputs(cluster: &Cluster) -> Value {
    json!(apps::digest(cluster))
}

fn apply(ctx: &Ctx<'_>) -> Result<Option<String>, StepError> {
    let world = ctx.world;
    let bound = world.cluster.timeouts.rollout;
    let inventory = again(ctx, bound, || inventory(world))?;
    let all = await_all(ctx, &inventory.objects, bound)?;
    again(ctx, bound, || apps_now(world))?;
    Ok((all > 0).then(|| format!("{all} running")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::apps::Item;
    use crate::observed::Apps;
    use crate::observed::Observed;
    use crate::spec::fixture::cluster;

    #[test]
    fn what_does_not_run_is_due_and_named() {
        let mut cluster = cluster(0);
        cluster.manifests.push(crate::spec::Manifest {
            shown: "web.yaml".into(),
            path: "/web.yaml".into(),
            namespace: None,
            when: Default::default(),
            wait: false,
            kustomize: false,
            files: vec![],
            root: "/".into(),
            digest: "d".into(),
        });
        let inventory = Inventory {
            digest: apps::digest(&cluster),
            objects: vec![Item::default()],
            ..Default::default()
        };
        let look =
            |apps: Option<Apps>| check(&View::new(&cluster, &Observed { apps, ..Observed::default() }));
        let good = Apps { inventory: inventory.clone(), ..Apps::default() };
        assert_eq!(look(Some(good.clone())), Check::Done("all that was applied runs".into()));
        let unfinished = vec![("Deployment web".to_owned(), "2 of 3 pods are available".to_owned())];
        let late = Apps { unfinished, ..good.clone() };
        assert_eq!(look(Some(late)), Check::Needed("Deployment web: 2 of 3 pods are available".into()));
        let other = Apps { inventory: Inventory { digest: "other".into(), ..inventory }, ..Apps::default() };
        assert!(matches!(look(Some(other)), Check::Unknown(_)));
        assert!(matches!(look(None), Check::Needed(_)));
    }
}
