//! `p1 backup` and `p1 restore`: the cluster's data in a file, and back.

use std::path::{Path, PathBuf};

use super::context::Context;
use super::fail::{Fail, code};
use super::run::{self, Job};
use crate::providers::State as Power;
use crate::spec::Cluster;
use crate::state::State;
use crate::steps::{Verb, World, backup};

/// Writes a backup.
pub fn save(context: &Context, path: Option<&Path>) -> Result<(), Fail> {
    let cluster = context.spec()?;
    let now = jiff::Timestamp::now().strftime("%Y%m%dT%H%M%SZ");
    let path = path.map_or_else(|| format!("{}-{now}.backup", cluster.name).into(), Path::to_owned);
    let path = absolute(&path)?;
    // Also a link to nothing yet: what is written takes its place.
    if path.symlink_metadata().is_ok() {
        let what = format!("{} exists already", path.display());
        return Err(Fail::new(code::USAGE, what, "Give the backup another name, or remove the file."));
    }
    if !path.parent().is_some_and(Path::is_dir) {
        let what = format!("there is no folder for {}", path.display());
        return Err(Fail::new(code::USAGE, what, "Make it, or write the backup elsewhere."));
    }
    change(context, cluster, "backup", path, &|world| {
        let server = world.cluster.first_server();
        match world.seen().machines.get(&server.name).map(|m| m.state.clone()) {
            Some(Power::Running) => Ok(()),
            state => Err(not_running(&server.name, state.unwrap_or(Power::Absent))),
        }
    })
}

/// Puts one back.
pub fn restore(context: &Context, path: &Path) -> Result<(), Fail> {
    let cluster = context.spec()?;
    let path = absolute(path)?;
    change(context, cluster, "restore", path, &|world| {
        let backup = backup::read(world).map_err(|t| Fail { code: code::USAGE, ..t.into() })?;
        let seen = world.seen();
        for node in &world.cluster.nodes {
            let state = seen.machines.get(&node.name).map_or(Power::Absent, |m| m.state.clone());
            if state != Power::Running {
                return Err(not_running(&node.name, state));
            }
        }
        let manifest = &backup.manifest;
        for member in manifest.nodes.iter().filter(|m| world.cluster.node(&m.name).is_none()) {
            eprintln!(
                "note: `{}` is in the backup and not in the spec: it will be there, not Ready",
                member.name
            );
        }
        let when = manifest.at.strftime("%Y-%m-%d %H:%M:%S UTC");
        context.agree(&format!(
            "This replaces the data of the cluster `{}` by that of {when}; what is in it now is lost. Go on?",
            manifest.cluster
        ))
    })
}

fn not_running(node: &str, state: Power) -> Fail {
    let (what, hint) = match state {
        Power::Absent => (format!("there is no machine for `{node}`"), "`p1 up` makes it."),
        state => (format!("the machine of `{node}` is {state}"), "`p1 start` starts it."),
    };
    Fail::new(code::FAILED, what, hint)
}

/// A retry may be called from elsewhere.
fn absolute(path: &Path) -> Result<PathBuf, Fail> {
    let path = std::path::absolute(path)
        .map_err(|e| Fail::new(code::USAGE, format!("{}: {e}", path.display()), ""))?;
    match path.to_str() {
        Some(_) => Ok(path),
        // The journal, which is text, could not say which file it was.
        None => Err(Fail::new(
            code::USAGE,
            format!("the name {} is not UTF-8", path.display()),
            "Use another name.",
        )),
    }
}

fn change(
    context: &Context,
    cluster: Cluster,
    verb: &str,
    path: PathBuf,
    ready: &dyn Fn(&World) -> Result<(), Fail>,
) -> Result<(), Fail> {
    context.must_be_made(&cluster, &State::of(&cluster.base, &cluster.name))?;
    let verb = Verb::find(verb).expect("a verb");
    let subject = Some(path.to_string_lossy().into_owned());
    let job = Job { verb, targets: Vec::new(), subject, retry_of: None, deep: false };
    let report = run::run(context, cluster, job, &|world, _| ready(world))?;
    run::verdict(&report)
}
