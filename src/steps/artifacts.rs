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
    match &view.seen.here.wanted {
        Some(_) => Check::Done("in the cache".into()),
        None => Check::Needed(match &view.seen.here.unfit {
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
    let files = ctx.world.files(&mut progress, &mut |text| ctx.control.warn(text))?;
    Ok(files.version.clone())
}
