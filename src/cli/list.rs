//! `p1 list`: this user's clusters on this host.

use std::collections::BTreeMap;
use std::thread;
use std::time::Duration;

use serde_json::json;

use super::context::{Context, variable};
use super::error::CliError;
use super::{out, print};
use crate::explain::chain;
use crate::index::Note;
use crate::machines::{Engine, Kind, Machine, MachineState};
use crate::os::cancel::Level;
use crate::os::{Cancel, many};
use crate::spec;
use crate::ui::{Cell, Format, Layout, table};

/// What makes machines answers at once, or not at all.
const ANSWER: Duration = Duration::from_secs(15);

/// A cluster as it is.
struct Found {
    note: Note,
    /// What makes its machines, where its spec can be read.
    engine: Option<Engine>,
    /// By node, or why that is not known.
    machines: Result<BTreeMap<String, String>, String>,
}

/// Shows all of them; those whose folders are gone are told, and no longer noted.
pub fn list(context: &Context) -> Result<(), CliError> {
    let _signals = super::signals::watch_plain(context.cancel.clone())?;
    let index = context.index();
    let (stale, there): (Vec<Note>, Vec<Note>) = index.all().into_iter().partition(Note::is_stale);
    for note in &stale {
        let (name, folder) = (&note.cluster, folder(note));
        eprintln!("note: the folder of the cluster `{name}` is gone, and it is no longer listed: {folder}");
        index.drop(&note.state)?;
    }
    let bound = Cancel::new();
    thread::spawn({
        let (bound, users) = (bound.clone(), context.cancel.clone());
        move || {
            users.sleep(ANSWER, Level::Stop);
            bound.raise(Level::Abort);
        }
    });
    let all = many::each(context.global.jobs, &there, |note| look(context, note.clone(), &bound));
    if context.ui.format == Format::Json {
        for found in &all {
            let note = &found.note;
            out::object(&json!({
                "v": 1, "cluster": note.cluster, "folder": folder(note), "file": note.file,
                "provider": note.provider, "engine": found.engine.map(Engine::name), "fork_of": note.fork_of,
                "machines": found.machines.as_ref().ok(), "cause": found.machines.as_ref().err(),
            }));
        }
        return Ok(());
    }
    if all.is_empty() {
        eprintln!("this user has no cluster on this host; `{} up` makes one", context.called());
        return Ok(());
    }
    let row = |found: &Found| {
        let note = &found.note;
        let by = match found.engine {
            Some(engine) => format!("{} ({})", note.provider, engine.name()),
            None => note.provider.to_string(),
        };
        let machines = match &found.machines {
            Ok(all) => all.iter().map(|(n, state)| format!("{n} {state}")).collect::<Vec<_>>().join(", "),
            Err(why) => format!("not known: {why}"),
        };
        let of = note.fork_of.clone().unwrap_or_default();
        [note.cluster.clone(), by, machines, of, folder(note)].map(Cell::from).into()
    };
    let rows: Vec<Vec<Cell>> = all.iter().map(row).collect();
    let layout = Layout { paint: context.paint(), right: false, indent: 0 };
    print(table(&["cluster", "made by", "machines", "fork of", "folder"], &rows, layout));
    Ok(())
}

/// Where its spec lies.
fn folder(note: &Note) -> String {
    note.file.parent().unwrap_or(&note.file).display().to_string()
}

fn look(context: &Context, note: Note, bound: &Cancel) -> Found {
    let cluster = match spec::load(&note.file, &variable) {
        Ok(parsed) => parsed.cluster,
        Err(error) => return Found { machines: Err(chain(&error)), note, engine: None },
    };
    if cluster.name != note.cluster {
        let why = format!("its spec names the cluster `{}` now", cluster.name);
        return Found { note, engine: None, machines: Err(why) };
    }
    let engine = (note.provider != Kind::Ssh).then(|| context.engine(&cluster, note.provider));
    let machines = context.machines(&cluster, note.provider).look(&cluster, bound);
    let machines = match machines {
        Ok(all) => {
            // What is named alike may be another cluster's.
            let ours = all.into_iter().filter(|(node, m)| cluster.node(node).is_some() || !m.foreign);
            let told = |m: Machine| if m.foreign { MachineState::Absent.to_string() } else { m.told() };
            Ok(ours.map(|(node, m)| (node, told(m))).collect())
        }
        Err(error) => Err(context.shown(&chain(&error))),
    };
    Found { note, engine, machines }
}
