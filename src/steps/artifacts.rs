//! The files of k3s are on this host, verified.

use serde_json::json;

use super::{ClusterDef, Ctx, Step};
use crate::artifacts::{Doing, Progress};
use crate::engine::StepError;
use crate::observed::View;
use crate::plan::{Check, ClusterStep};
use crate::spec::Cluster;

pub const STEP: Step = Step::Cluster(ClusterDef {
    name: ClusterStep::Artifacts,
    title: "get k3s",
    after: &[],
    on_demand: true,
    needs: None,
    retry: true,
    check,
    inputs,
    apply,
});

fn check(view: &View<'_>) -> Check {
    let archs = view.archs();
    match !archs.is_empty() && archs.iter().all(|arch| view.seen.here.wanted.contains_key(arch)) {
        true => Check::Done("in the cache".into()),
        false => Check::Needed(match &view.seen.here.unfit {
            Some(failure) => failure.cause.clone(),
            None => "not in the cache".into(),
        }),
    }
}

fn inputs(cluster: &Cluster) -> serde_json::Value {
    json!([cluster.k3s.release, cluster.k3s.artifacts])
}

fn apply(ctx: &Ctx<'_>) -> Result<Option<String>, StepError> {
    let mut progress = |p: Progress<'_>| match p.doing {
        Doing::Waiting => ctx.control.says(format!("another p1 fetches {}", p.name)),
        Doing::Downloading => ctx.control.moved(&format!("fetching {}", p.name), p.done, p.total),
        Doing::Checking => ctx.control.moved(&format!("checking {}", p.name), p.done, p.total),
    };
    let seen = ctx.world.seen();
    let mut version = None;
    for arch in View::new(&ctx.world.cluster, &seen).archs() {
        let files = ctx.world.files(arch, &mut progress, &mut |text| ctx.control.warn(text))?;
        version.clone_from(&files.version);
    }
    Ok(version)
}
