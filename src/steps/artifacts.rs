//! The files of k3s are on this host, verified.

use std::fmt::Write;
use std::path::PathBuf;

use serde_json::json;

use super::{ClusterDef, Ctx, Step};
use crate::access::World;
use crate::artifacts::{self, Doing, Progress};
use crate::engine::Trouble;
use crate::observed::View;
use crate::plan::{Check, ClusterStep};
use crate::spec::{Cluster, Release, Source};

pub const STEP: Step = Step::Cluster(ClusterDef {
    name: ClusterStep::Artifacts,
    title: "get k3s",
    after: &[],
    serves: true,
    retry: true,
    check,
    inputs,
    apply,
});

fn check(view: &View<'_>) -> Check {
    match &view.seen.wanted {
        Some(_) => Check::Done("in the cache".into()),
        None => Check::Needed(match &view.seen.unfit {
            Some(failure) => failure.cause.clone(),
            None => "not in the cache".into(),
        }),
    }
}

fn inputs(cluster: &Cluster) -> serde_json::Value {
    json!([cluster.k3s.release, cluster.k3s.artifacts])
}

fn apply(ctx: &Ctx<'_>) -> Result<Option<String>, Trouble> {
    let mut progress = |p: Progress<'_>| match p.doing {
        Doing::Waiting => ctx.control.says(format!("another p1 fetches {}", p.name)),
        Doing::Downloading => ctx.control.moved(&format!("fetching {}", p.name), p.done, p.total),
        Doing::Checking => ctx.control.moved(&format!("checking {}", p.name), p.done, p.total),
    };
    let files = ctx.world.files(&mut progress, &mut |text| ctx.control.warn(text))?;
    Ok(files.version.clone())
}

/// What is known without a connection: a cluster that is as it should be needs none.
pub fn look(world: &World) {
    match world.release().map_err(Some).and_then(|release| world.without_connection(&release)) {
        Ok(files) => world.note(|seen| {
            seen.wanted = Some(crate::access::wanted(&files));
            seen.version.clone_from(&files.version);
        }),
        Err(why) => {
            // What is merely not here yet is no fault.
            world.note(|seen| seen.unfit = why.map(|trouble| trouble.failure));
            if let (Ok(Release::Version(version)), None) =
                (world.release(), &world.cluster.k3s.artifacts.binary)
            {
                world.note(|seen| seen.version = Some(version));
            }
        }
    }
}

/// What tells the files of this host that the spec gives from others of the same name: a user who mends a
/// cause by replacing one means it to be used.
pub fn look_at_given(world: &World) {
    let wanted = &world.cluster.k3s.artifacts;
    let sources = wanted.binary.iter().chain(&wanted.installer).chain(&wanted.images);
    let mut paths: Vec<PathBuf> = sources
        .filter_map(|source| match source {
            Source::Path(path) => Some(path.clone()),
            Source::Url { .. } => None,
        })
        .collect();
    // The manifest has the checksums of all that is in there.
    paths.extend(wanted.dir.iter().map(|dir| dir.join(artifacts::folder::MANIFEST)));
    let mut given = String::new();
    for path in paths {
        let meta = std::fs::metadata(&path).ok();
        let time = meta.as_ref().and_then(|m| m.modified().ok()?.duration_since(std::time::UNIX_EPOCH).ok());
        let _ = writeln!(
            given,
            "{} {} {}",
            path.display(),
            meta.map_or(0, |m| m.len()),
            time.map_or(0, |t| t.as_nanos())
        );
    }
    world.note(|seen| seen.given = given);
}
