//! `p1 kept`, and what `p1 up`, `p1 reset` and `p1 destroy` have to do with kept clusters.

use std::sync::Arc;

use jiff::Timestamp;
use serde_json::json;

use super::args::KeptVerb;
use super::context::Context;
use super::error::{CliError, code};
use super::run::{self, Job};
use super::{out, print};
use crate::access::World;
use crate::event::VerbName;
use crate::kept::{Moment, Moments};
use crate::machines::{self, Keep, MachineState};
use crate::observe::look_at_parts;
use crate::spec::{Cluster, Libvirt, LibvirtUri, Release};
use crate::state::StateDir;
use crate::steps::snapshot;
use crate::ui::{Cell, Format, Layout, bytes, table};
use crate::verbs::Verb;

/// What an `up` is about after which the cluster is to be kept, so that a retry of it keeps it too.
pub const TO_KEEP: &str = "keep";

/// Runs one of them.
pub fn run(context: &Context, verb: KeptVerb) -> Result<(), CliError> {
    match verb {
        KeptVerb::List => list(context),
        KeptVerb::Remove { key } => remove(context, &key),
    }
}

/// Of every libvirt that there is.
fn libraries(context: &Context) -> impl Iterator<Item = (LibvirtUri, Moments)> {
    LibvirtUri::WORDS.iter().map(|(_, uri)| (*uri, context.kept(*uri)))
}

fn keeper(context: &Context, of: LibvirtUri) -> Box<dyn Keep> {
    machines::keeper(&context.tools(&Libvirt { uri: of, bridge: None }))
}

/// When it was kept, as text.
pub fn when(moment: &Moment) -> String {
    moment.at.strftime("%Y-%m-%d %H:%M:%S UTC").to_string()
}

fn list(context: &Context) -> Result<(), CliError> {
    let mut all = Vec::new();
    for (_, kept) in libraries(context) {
        all.extend(kept.all()?.into_iter().map(|moment| (kept.used(&moment), moment)));
    }
    all.sort_by_key(|(used, _)| std::cmp::Reverse(*used));
    if context.ui.format == Format::Json {
        for (used, moment) in &all {
            out::object(&json!({
                "v": 1, "kept": moment.key, "cluster": moment.cluster, "folder": moment.folder, "at": moment.at,
                "used": used, "bytes": moment.bytes(),
                "nodes": moment.machines.iter().map(|m| &m.node).collect::<Vec<_>>(),
            }));
        }
        return Ok(());
    }
    if all.is_empty() {
        eprintln!("no cluster is kept; `p1 up --keep` keeps one");
        return Ok(());
    }
    let row = |(used, moment): &(Timestamp, Moment)| {
        let nodes: Vec<&str> = moment.machines.iter().map(|m| m.node.as_str()).collect();
        vec![
            Cell::from(moment.key.clone()),
            Cell::from(moment.cluster.clone()),
            Cell::from(when(moment)),
            Cell::from(used.strftime("%Y-%m-%d").to_string()),
            Cell::from(bytes(moment.bytes())),
            Cell::from(nodes.join(", ")),
            Cell::from(moment.folder.display().to_string()),
        ]
    };
    let rows: Vec<_> = all.iter().map(row).collect();
    let layout = Layout { paint: context.paint(), right: false, indent: 0 };
    print(table(&["kept", "cluster", "at", "used", "size", "nodes", "folder"], &rows, layout));
    Ok(())
}

fn remove(context: &Context, key: &str) -> Result<(), CliError> {
    let missing = || {
        let hint = "`p1 kept list` shows what is kept.";
        CliError::new(code::USAGE, format!("nothing is kept as {key}"), hint)
    };
    if key.is_empty() || !key.bytes().all(|b| b.is_ascii_hexdigit()) {
        return Err(missing());
    }
    let _signals = super::signals::watch_plain(context.cancel.clone())?;
    let has = |(_, kept): &(LibvirtUri, Moments)| kept.files(key).is_dir();
    let (of, kept) = libraries(context).find(has).ok_or_else(missing)?;
    let _lock = kept.lock(&context.cancel)?;
    let moment = kept.find(key)?.ok_or_else(missing)?;
    kept.set_aside(key)?;
    kept.sweep(&*keeper(context, of), &context.cancel)?;
    match context.ui.format {
        Format::Json => out::object(&json!({"v": 1, "removed": moment.key, "bytes": moment.bytes()})),
        _ => eprintln!(
            "removed {key} of cluster `{}` ({}); what machines still run from goes with the last of them",
            moment.cluster,
            bytes(moment.bytes())
        ),
    }
    Ok(())
}

/// The kept moment from which this cluster can be made, where nothing of it is there, or where that was begun.
pub fn to_restore(context: &Context, cluster: &Cluster) -> Result<Option<Moment>, CliError> {
    let kept = context.kept(context.libvirt(cluster).uri);
    let state = StateDir::of(cluster.home(), &cluster.name);
    let begun = state.unfinished()?.filter(|u| VerbName::parse(&u.verb) == Some(VerbName::Reset));
    if let Some(key) = begun.and_then(|u| u.subject) {
        return Ok(kept.find(&key)?);
    }
    // It costs a look at all that the cluster is made of.
    let any = || kept.all().is_ok_and(|all| all.iter().any(|m| m.cluster == cluster.name));
    if crate::machines::has_machines(state.dir()) || !any() {
        return Ok(None);
    }
    let kind = context.kind(cluster, &state)?;
    let world = context.world(cluster.clone(), kind);
    let Some(key) = key(&world)? else { return Ok(None) };
    let there = |m: &crate::machines::Machine| m.state != MachineState::Absent;
    if world.look_at_machines()?.values().any(there) {
        return Ok(None);
    }
    Ok(kept.find(&key)?)
}

/// Under which digest a cluster is kept, or would be.
pub fn key(world: &Arc<World>) -> Result<Option<String>, CliError> {
    look_at_parts(world)?;
    if world.seen().here.wanted.is_empty()
        && matches!(world.release()?, Release::Channel(_))
        && let Ok((Some(version), _)) = world.resolve(&world.release()?)
    {
        world.aim_at(&version);
        look_at_parts(world)?;
    }
    Ok(world.kept_key())
}

/// Puts a cluster that is there back to the moment at which it was kept.
pub fn reset(context: &Context) -> Result<(), CliError> {
    let cluster = context.spec()?;
    let state = StateDir::of(cluster.home(), &cluster.name);
    let kept = context.kept(context.libvirt(&cluster).uri);
    let begun = state.unfinished()?.filter(|u| VerbName::parse(&u.verb) == Some(VerbName::Reset));
    let key = match begun.and_then(|u| u.subject) {
        Some(key) => Some(key),
        None => key(&context.world(cluster.clone(), context.kind(&cluster, &state)?))?,
    };
    let moment = key.map(|key| kept.find(&key)).transpose()?.flatten().ok_or_else(|| {
        let hint = "`p1 up --keep` keeps it, as the spec says and as it is then.";
        CliError::new(code::USAGE, "this cluster is not kept", hint).next(["p1 up --keep"])
    })?;
    let question = format!(
        "This puts {} back to {}; what happened on the cluster since is lost. Continue?",
        moment.machines.iter().map(|m| m.node.as_str()).collect::<Vec<_>>().join(", "),
        when(&moment)
    );
    restore_if(context, cluster, &moment, &|world| {
        let seen = world.seen();
        let other = |(node, m): &(&String, &crate::machines::Machine)| {
            m.state != MachineState::Absent && !moment.machines.iter().any(|k| k.node == **node)
        };
        if let Some((node, _)) = seen.machines.iter().find(other) {
            let (what, next) = (format!("what is kept knows no `{node}`"), format!("p1 destroy {node}"));
            return Err(CliError::new(code::FAILED, what, format!("`{next}` takes it away.")).next([next]));
        }
        // They are in the disks that go.
        let lost: Vec<String> = snapshot::look(world)?.into_iter().map(|set| set.name).collect();
        if !lost.is_empty() {
            let what = format!("the snapshots of this cluster would be lost: {}", lost.join(", "));
            let next: Vec<String> = lost.iter().map(|name| format!("p1 snapshot delete {name}")).collect();
            return Err(CliError::new(code::FAILED, what, "Remove them before, or go back to one of them.")
                .next(next));
        }
        if seen.machines.values().all(|m| m.state == MachineState::Absent) {
            return Ok(());
        }
        context.agree(&question)
    })
}

/// Puts the cluster back to that moment.
pub fn restore(context: &Context, cluster: Cluster, moment: &Moment) -> Result<(), CliError> {
    restore_if(context, cluster, moment, &|_| Ok(()))
}

fn restore_if(
    context: &Context,
    cluster: Cluster,
    moment: &Moment,
    ready: &dyn Fn(&World) -> Result<(), CliError>,
) -> Result<(), CliError> {
    let job = Job {
        verb: Verb::of(VerbName::Reset),
        replace: Vec::new(),
        targets: Vec::new(),
        subject: Some(moment.key.clone()),
        retry_of: None,
        deep: false,
    };
    let report = run::run(context, cluster, job, &|world, _| ready(world))?;
    run::verdict(&report)
}

/// Keeps the cluster, which is up, under that digest, unless it is kept.
pub fn keep(context: &Context, cluster: Cluster, key: Option<String>) -> Result<(), CliError> {
    let kept = context.kept(context.libvirt(&cluster).uri);
    let Some(key) = key else {
        let hint = "It takes machines of libvirt, and a cluster whose data is on them.";
        return Err(CliError::new(code::USAGE, "the cluster is up, and it cannot be kept", hint));
    };
    if kept.find(&key)?.is_some() {
        return Ok(());
    }
    let job = Job {
        verb: Verb::of(VerbName::Keep),
        replace: Vec::new(),
        targets: Vec::new(),
        subject: Some(key),
        retry_of: None,
        deep: false,
    };
    let report = run::run(context, cluster, job, &|_, _| Ok(()))?;
    run::verdict(&report)
}

/// After the end of a cluster: what of it is still kept is named, and what was to go with its machines goes.
pub fn after_destroy(context: &Context, cluster: &str, of: LibvirtUri) {
    let kept = context.kept(of);
    if !context.dirs().kept(of).is_dir() {
        return;
    }
    if let Ok(_lock) = kept.lock(&context.cancel) {
        let _ = kept.sweep(&*keeper(context, of), &context.cancel);
    }
    for moment in kept.all().unwrap_or_default().iter().filter(|m| m.cluster == cluster) {
        let (key, size) = (&moment.key, bytes(moment.bytes()));
        eprintln!(
            "note: it is kept as of {} ({size}): `p1 up` restores it, `p1 kept remove {key}` removes it",
            when(moment)
        );
    }
}
