//! The files of k3s are on this host, verified.

use std::fmt::Write;
use std::path::PathBuf;

use serde_json::json;

use super::{ClusterDef, Ctx, Step, World};
use crate::artifacts::{self, Bounds, Doing, Net, Progress};
use crate::engine::Trouble;
use crate::observed::View;
use crate::plan::{Check, ClusterStep};
use crate::spec::{Cluster, Release, Source};
use crate::state::{Pinned, State};

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
            seen.wanted = Some(super::world::wanted(&files));
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

/// What the spec's channel or version is called.
fn wanted_release(cluster: &Cluster) -> String {
    match &cluster.k3s.release {
        Release::Channel(name) | Release::Version(name) => name.clone(),
    }
}

/// The release to look for: a channel that was resolved for this cluster stays what it was.
pub fn release(cluster: &Cluster, state: &State) -> Result<Release, Trouble> {
    let pinned = state.facts()?.k3s;
    Ok(match pinned {
        Some(Pinned { wanted, version: Some(version) }) if wanted == wanted_release(cluster) => {
            Release::Version(version)
        }
        _ => cluster.k3s.release.clone(),
    })
}

/// Everything that a run without a connection would miss on this host: of the box, of k3s' files. What
/// cannot even be named, such as a channel's version, is told by what could not be asked for.
pub fn missing(world: &World, of_box: bool, of_k3s: bool) -> Vec<String> {
    let mut all = Vec::new();
    if of_box {
        all.extend(super::image::missing(world));
    }
    if !of_k3s {
        return all;
    }
    let net = Net { offline: true, ..world.net.clone() };
    match world.release().and_then(|release| world.resolved(&release, &net)) {
        Ok(resolved) => all.extend(artifacts::missing(&resolved)),
        Err(trouble) => {
            all.push(trouble.failure.cause);
            let given = &world.cluster.k3s.artifacts;
            let sources = given.binary.iter().chain(&given.installer).chain(&given.images);
            all.extend(sources.filter_map(|source| artifacts::lacks(source, &world.cache)));
        }
    }
    all
}

impl World {
    /// Bounds of a download within a step: the step is what is tried again.
    pub fn bounds(&self) -> Bounds {
        Bounds::new(&self.cluster.timeouts, &self.cluster.retry.once())
    }

    fn resolved(&self, release: &Release, net: &Net) -> Result<artifacts::Resolved, Trouble> {
        self.resolved_within(release, net, &self.bounds())
    }

    fn resolved_within(
        &self,
        release: &Release,
        net: &Net,
        bounds: &Bounds,
    ) -> Result<artifacts::Resolved, Trouble> {
        // Nodes are of this host's architecture: neither provider runs another one.
        let arch = artifacts::arch(std::env::consts::ARCH)?;
        let given = &self.cluster.k3s.artifacts;
        Ok(artifacts::resolve(release, given, arch, &self.cache, net, bounds, &self.cancel)?)
    }

    /// The files that are here; else why they cannot be used, if it is more than that they are not.
    fn without_connection(&self, release: &Release) -> Result<artifacts::Files, Option<Trouble>> {
        let unless_absent = |error: artifacts::Error| match error {
            artifacts::Error::Offline { .. } => None,
            error => Some(Trouble::from(error)),
        };
        let net = Net { offline: true, ..self.net.clone() };
        let (given, bounds) = (&self.cluster.k3s.artifacts, self.bounds());
        let arch = artifacts::arch(std::env::consts::ARCH).map_err(unless_absent)?;
        let resolved = artifacts::resolve(release, given, arch, &self.cache, &net, &bounds, &self.cancel)
            .map_err(unless_absent)?;
        artifacts::fetch(&resolved, &self.cache, &net, &bounds, &mut |_| {}, &self.cancel)
            .map_err(unless_absent)
    }

    fn fetch_with(
        &self,
        net: &Net,
        progress: &mut dyn FnMut(Progress<'_>),
        warn: &mut dyn FnMut(String),
    ) -> Result<artifacts::Files, Trouble> {
        let (resolved, bounds) = (self.resolved(&self.release()?, net)?, self.bounds());
        resolved.warnings.iter().cloned().for_each(&mut *warn);
        Ok(artifacts::fetch(&resolved, &self.cache, net, &bounds, progress, &self.cancel)?)
    }

    pub(super) fn fetch(
        &self,
        progress: &mut dyn FnMut(Progress<'_>),
        warn: &mut dyn FnMut(String),
    ) -> Result<artifacts::Files, Trouble> {
        self.fetch_with(&self.net, progress, warn)
    }

    /// The version that a release is now, asking the network where that takes it.
    pub fn resolve(&self, release: &Release) -> Result<(Option<String>, Vec<String>), Trouble> {
        // Not within a step, so that it is tried again here.
        let bounds = Bounds::new(&self.cluster.timeouts, &self.cluster.retry);
        let found = self.resolved_within(release, &self.net, &bounds)?;
        Ok((found.version, found.warnings))
    }

    /// The release to look for: where an upgrade goes, else see [`release`].
    pub fn release(&self) -> Result<Release, Trouble> {
        match self.aim() {
            Some(version) => Ok(Release::Version(version)),
            None => release(&self.cluster, &self.state),
        }
    }

    pub(super) fn keep_version(&self, files: &artifacts::Files) -> Result<(), Trouble> {
        let mut facts = self.state.facts()?;
        facts.k3s = Some(Pinned { wanted: wanted_release(&self.cluster), version: files.version.clone() });
        self.state.keep(&facts)?;
        Ok(())
    }

    /// Holds the cluster to a version.
    pub fn pin(&self, version: &str) -> Result<(), Trouble> {
        let mut facts = self.state.facts()?;
        facts.k3s = Some(Pinned { wanted: wanted_release(&self.cluster), version: Some(version.to_owned()) });
        self.state.keep(&facts)?;
        Ok(())
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
