//! `p1 upgrade`: another version of k3s.

use super::args::Upgrade;
use super::context::Context;
use super::error::{CliError, code};
use super::run::{self, Job};
use crate::access::World;
use crate::event::VerbName;
use crate::k3s::Version;
use crate::observed::View;
use crate::plan::Plan;
use crate::spec::{Cluster, Release};
use crate::state::StateDir;
use crate::verbs::Verb;

/// Brings every node to a version: the one given, or the one that the spec's channel is by now.
pub fn upgrade(context: &Context, args: &Upgrade) -> Result<(), CliError> {
    let cluster = context.spec()?;
    let state = StateDir::of(cluster.home(), &cluster.name);
    let release = wanted(&cluster, args.to.as_deref())?;
    context.must_be_made(&cluster, &state)?;
    let job = Job {
        verb: Verb::of(VerbName::Upgrade),
        replace: Vec::new(),
        targets: Vec::new(),
        retry_of: None,
        deep: false,
        subject: None,
    };
    let before = |world: &World| aim(world, &release);
    let report =
        run::run_to(context, cluster, job, &before, &|world, plan| begin(world, plan).map(|()| Vec::new()))?;
    run::verdict(&report)
}

fn wanted(cluster: &Cluster, to: Option<&str>) -> Result<Release, CliError> {
    if cluster.k3s.artifacts.binary.is_some() {
        return Err(CliError::new(
            code::USAGE,
            "the spec gives the k3s binary itself, under `k3s: artifacts:`",
            "Let it name the new one; `p1 up` then does the same as an upgrade, by the same rules.",
        ));
    }
    let Some(to) = to else { return Ok(cluster.k3s.release.clone()) };
    if let Ok(version) = to.parse::<Version>() {
        return Ok(Release::Version(version.to_string()));
    }
    let minor = |text: &str| {
        let mut parts = text.strip_prefix('v')?.split('.');
        let number = |part: Option<&str>| part?.parse::<u32>().ok();
        (number(parts.next()).is_some() && number(parts.next()).is_some() && parts.next().is_none())
            .then_some(())
    };
    match ["stable", "latest", "testing"].contains(&to) || minor(to).is_some() {
        true => Ok(Release::Channel(to.to_owned())),
        false => Err(CliError::new(
            code::USAGE,
            format!("`{to}` is neither a version nor a channel of k3s"),
            "Write `v1.34.2+k3s1`, a minor version such as `v1.34`, `stable`, `latest` or `testing`.",
        )),
    }
}

/// Finds out which version it is, and makes the run go there.
fn aim(world: &World, release: &Release) -> Result<(), CliError> {
    let (version, warnings) = world.resolve(release)?;
    for warning in warnings {
        eprintln!("{warning}");
    }
    let Some(version) = version else {
        return Err(CliError::new(code::FAILED, "it is not known which version that is", ""));
    };
    if let Release::Version(spec) = &world.cluster.k3s.release
        && !crate::k3s::runs(spec, &version)
    {
        return Err(CliError::new(
            code::USAGE,
            format!("the spec says `version: {spec}`, and the upgrade goes to {version}"),
            format!("Let the spec say `version: {version}`; then `p1 upgrade` or `p1 up` brings it about."),
        ));
    }
    world.aim_at(&version);
    Ok(())
}

/// Says where it goes, and holds the cluster to the new version, so that `retry` goes there too.
fn begin(world: &World, plan: &Plan) -> Result<(), CliError> {
    let seen = world.seen();
    let view = View::new(&world.cluster, &seen);
    let to = seen.here.version.clone().unwrap_or_default();
    if !plan.is_done() {
        let mut from: Vec<&str> = world.cluster.nodes.iter().filter_map(|n| view.version(n)).collect();
        from.sort_unstable();
        from.dedup();
        let from = if from.is_empty() { "an unknown version".to_owned() } else { from.join(" and ") };
        let batch = world.cluster.rollout.workers;
        eprintln!(
            "k3s of cluster `{}`: from {from} to {to}; servers one by one, then workers, {batch} at a time",
            world.cluster.name
        );
    }
    Ok(world.pin(&to)?)
}
