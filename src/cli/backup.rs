//! `p1 backup` and `p1 restore`: the cluster's data in a file, and back.

use std::path::{Path, PathBuf};

use super::context::Context;
use super::error::{CliError, code};
use super::run::{self, Job};
use crate::access::World;
use crate::event::VerbName;
use crate::machines::MachineState;
use crate::spec::Cluster;
use crate::state::StateDir;
use crate::steps::shared::archive;
use crate::verbs::Verb;

/// Writes a backup.
pub fn save(context: &Context, path: Option<&Path>) -> Result<(), CliError> {
    let cluster = context.spec()?;
    on_its_servers(&cluster)?;
    let now = jiff::Timestamp::now().strftime("%Y%m%dT%H%M%SZ");
    let path = path.map_or_else(|| format!("{}-{now}.backup", cluster.name).into(), Path::to_owned);
    let path = absolute(&path)?;
    // Also a link to nothing yet: what is written takes its place.
    if path.symlink_metadata().is_ok() {
        let what = format!("{} exists already", path.display());
        return Err(CliError::new(code::USAGE, what, "Give the backup another name, or remove the file."));
    }
    if !path.parent().is_some_and(Path::is_dir) {
        let what = format!("there is no folder for {}", path.display());
        return Err(CliError::new(code::USAGE, what, "Make it, or write the backup elsewhere."));
    }
    change(context, cluster, VerbName::Backup, path, &|world| {
        let seen = world.seen();
        let state = |s: &crate::spec::Node| {
            seen.machines.get(&s.name).map_or(MachineState::Absent, |m| m.state.clone())
        };
        match world.cluster.servers().any(|s| state(s) == MachineState::Running) {
            true => Ok(()),
            false => {
                let server = world.cluster.first_server();
                Err(not_running(&server.name, state(server)))
            }
        }
    })
}

/// Puts one back.
pub fn restore(context: &Context, path: &Path) -> Result<(), CliError> {
    let cluster = context.spec()?;
    on_its_servers(&cluster)?;
    let path = absolute(path)?;
    change(context, cluster, VerbName::Restore, path, &|world| {
        let backup = archive::read(world).map_err(|t| CliError { code: code::USAGE, ..t.into() })?;
        let seen = world.seen();
        for node in world.cluster.members() {
            let state = seen.machines.get(&node.name).map_or(MachineState::Absent, |m| m.state.clone());
            if state != MachineState::Running {
                let fail = not_running(&node.name, state);
                // What else starts machines refuses meanwhile.
                return Err(match &seen.here.unfinished {
                    Some(what) if !what.settled => {
                        fail.hint("`p1 restore --undo` starts it, with the former data.")
                    }
                    _ => fail,
                });
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
            "This replaces the data of the cluster `{}` by that of {when}; what is in it now is lost. Continue?",
            manifest.cluster
        ))
    })
}

/// Ends a restore that was cut off.
pub fn undo(context: &Context) -> Result<(), CliError> {
    let cluster = context.spec()?;
    let state = StateDir::of(cluster.home(), &cluster.name);
    context.must_be_made(&cluster, &state)?;
    let verb = Verb::of(VerbName::UndoRestore);
    let job =
        Job { verb, replace: Vec::new(), targets: Vec::new(), subject: None, retry_of: None, deep: false };
    let report = run::run(context, cluster, job, &|world, _| match &world.seen().here.unfinished {
        Some(what) if what.verb == VerbName::Restore.as_str() => Ok(()),
        _ => Err(CliError::new(
            code::USAGE,
            "no restore is unfinished: there is nothing to be put back",
            "`p1 status` shows how the cluster is.",
        )),
    })?;
    run::verdict(&report)
}

/// Only what the servers keep themselves is copied and put back.
fn on_its_servers(cluster: &Cluster) -> Result<(), CliError> {
    if !cluster.has_own_datastore() {
        return Ok(());
    }
    let endpoint = cluster.first_server().config.get("datastore-endpoint").and_then(|v| v.as_str());
    let tool = match endpoint.unwrap_or_default().split("://").next().unwrap_or_default() {
        "mysql" => "`mysqldump` copies a MySQL or MariaDB database",
        "postgres" | "postgresql" => "`pg_dump` copies a PostgreSQL database",
        "http" | "https" => "`etcdctl snapshot save FILE` copies an etcd",
        "nats" => "`nats stream backup` copies a NATS stream",
        _ => "its own tools copy a database",
    };
    let token = match &cluster.k3s.token {
        Some(_) => "the token that `k3s.token` names".to_owned(),
        None => StateDir::of(cluster.home(), &cluster.name).token().display().to_string(),
    };
    Err(CliError::new(
        code::USAGE,
        "the cluster's data is not on its servers but in the datastore of `datastore-endpoint`",
        format!("Copy it there: {tool}. Keep {token} with the copy, as it opens the data."),
    ))
}

fn not_running(node: &str, state: MachineState) -> CliError {
    let (what, hint) = match state {
        MachineState::Absent => (format!("there is no machine for `{node}`"), "`p1 up` makes it."),
        state => (format!("the machine of `{node}` is {state}"), "`p1 start` starts it."),
    };
    CliError::new(code::FAILED, what, hint)
}

/// A retry may be called from elsewhere.
fn absolute(path: &Path) -> Result<PathBuf, CliError> {
    let path = std::path::absolute(path)
        .map_err(|e| CliError::new(code::USAGE, format!("{}: {e}", path.display()), ""))?;
    match path.to_str() {
        Some(_) => Ok(path),
        // The journal, which is text, could not say which file it was.
        None => Err(CliError::new(
            code::USAGE,
            format!("the name {} is not UTF-8", path.display()),
            "Use another name.",
        )),
    }
}

fn change(
    context: &Context,
    cluster: Cluster,
    verb: VerbName,
    path: PathBuf,
    ready: &dyn Fn(&World) -> Result<(), CliError>,
) -> Result<(), CliError> {
    context.must_be_made(&cluster, &StateDir::of(cluster.home(), &cluster.name))?;
    let verb = Verb::of(verb);
    let subject = Some(path.to_string_lossy().into_owned());
    let job = Job { verb, replace: Vec::new(), targets: Vec::new(), subject, retry_of: None, deep: false };
    let report = run::run(context, cluster, job, &|world, _| ready(world))?;
    run::verdict(&report)
}
