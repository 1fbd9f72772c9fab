//! `p1 snapshot`: all machines of the cluster at one moment, memory included.

use serde_json::json;

use super::args::SnapshotVerb;
use super::context::Context;
use super::error::{CliError, code};
use super::print;
use super::run::{self, Job};
use crate::access::World;
use crate::event::VerbName;
use crate::machines::snapshot::is_name;
use crate::state::StateDir;
use crate::steps::snapshot::{self, Set};
use crate::ui::{Cell, Format, Layout, Tone, bytes, table};
use crate::verbs::Verb;

/// Runs one of them.
pub fn run(context: &Context, verb: SnapshotVerb) -> Result<(), CliError> {
    match verb {
        SnapshotVerb::Save { name } => {
            if !is_name(&name) {
                let hint = "A name is made of letters, digits, `-`, `_` and `.`, at most 60, and begins with a letter or a digit.";
                return Err(CliError::new(code::USAGE, format!("`{name}` is no name for a snapshot"), hint));
            }
            change(context, VerbName::SaveSnapshot, name, &|world, name| {
                if snapshot::look(world)?.iter().any(|s| s.name == name && s.lacks().is_empty()) {
                    let hint = format!("Choose another name, or remove it: p1 snapshot delete {name}");
                    return Err(CliError::new(
                        code::USAGE,
                        format!("there is a snapshot `{name}` already"),
                        hint,
                    ));
                }
                match snapshot::unfit(&world.cluster, &world.seen().machines) {
                    Some(error) => Err(error.into()),
                    None => Ok(()),
                }
            })
        }
        SnapshotVerb::Restore { name } => change(context, VerbName::RestoreSnapshot, name, &|world, name| {
            let set = find(world, name)?;
            if let Some((what, hint)) = set.obstacle(&world.seen().machines) {
                return Err(CliError::new(code::FAILED, what, hint));
            }
            let question = format!(
                "This puts the cluster `{}` ({}) back to {}; what happened on it since is lost. Continue?",
                world.cluster.name,
                set.note.nodes.join(", "),
                when(&set)
            );
            context.agree(&question)
        }),
        SnapshotVerb::Delete { name } => change(context, VerbName::DeleteSnapshot, name, &|world, name| {
            let set = find(world, name)?;
            context.agree(&format!(
                "This removes the snapshot `{name}` of the cluster `{}`, taken {}. Continue?",
                world.cluster.name,
                when(&set)
            ))
        }),
        SnapshotVerb::List => list(context),
    }
}

type Ready<'a> = &'a dyn Fn(&World, &str) -> Result<(), CliError>;

fn change(context: &Context, verb: VerbName, name: String, ready: Ready<'_>) -> Result<(), CliError> {
    let cluster = context.spec()?;
    context.must_be_made(&cluster, &StateDir::of(cluster.home(), &cluster.name))?;
    let verb = Verb::of(verb);
    let job = Job {
        verb,
        replace: Vec::new(),
        targets: Vec::new(),
        subject: Some(name.clone()),
        retry_of: None,
        deep: false,
    };
    let report = run::run(context, cluster, job, &|world, _| ready(world, &name))?;
    run::verdict(&report)
}

fn find(world: &World, name: &str) -> Result<Set, CliError> {
    let mut all = snapshot::look(world)?;
    if let Some(at) = all.iter().position(|s| s.name == name) {
        return Ok(all.remove(at));
    }
    let names: Vec<String> = all.into_iter().map(|s| s.name).collect();
    let hint = match names.is_empty() {
        true => "There is none. `p1 snapshot save first` takes one of that name.".to_owned(),
        false => format!("There are: {}.", names.join(", ")),
    };
    Err(CliError::new(code::USAGE, format!("there is no snapshot `{name}`"), hint))
}

fn when(set: &Set) -> String {
    set.note.at.strftime("%Y-%m-%d %H:%M:%S UTC").to_string()
}

fn list(context: &Context) -> Result<(), CliError> {
    let cluster = context.spec()?;
    let state = StateDir::of(cluster.home(), &cluster.name);
    context.must_be_made(&cluster, &state)?;
    let kind = context.kind(&cluster, &state)?;
    let world = context.world(cluster, kind);
    let machines = world.look_at_machines()?;
    let all = snapshot::look(&world)?;
    let mut rows = Vec::new();
    for set in &all {
        let obstacle = set.obstacle(&machines);
        if context.ui.format == Format::Json {
            let line = json!({
                "v": 1, "snapshot": set.name, "at": set.note.at, "nodes": set.note.nodes, "ready": set.note.ready,
                "lacks": set.lacks(), "bytes": set.bytes(), "usable": obstacle.is_none(),
                "obstacle": obstacle.map(|(what, _)| what),
            });
            print(format!("{line}\n"));
            continue;
        }
        let state = match obstacle {
            None => Cell::new(Tone::Good, "whole"),
            Some(_) if !set.lacks().is_empty() => {
                Cell::new(Tone::Bad, format!("not whole: lacks {}", set.lacks().join(", ")))
            }
            Some((what, _)) => Cell::new(Tone::Warn, what),
        };
        rows.push(vec![
            Cell::from(set.name.clone()),
            Cell::from(when(set)),
            Cell::from(set.bytes().map_or("-".to_owned(), bytes)),
            Cell::from(set.note.nodes.join(", ")),
            state,
        ]);
    }
    if context.ui.format == Format::Json {
        return Ok(());
    }
    if rows.is_empty() {
        eprintln!(
            "there is no snapshot of cluster `{}`; `p1 snapshot save first` takes one of that name",
            world.cluster.name
        );
        return Ok(());
    }
    let layout = Layout { paint: context.paint(), right: false, indent: 0 };
    print(table(&["snapshot", "taken", "memory", "nodes", "state"], &rows, layout));
    Ok(())
}
