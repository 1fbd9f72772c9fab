//! `p1 logs`: a node's k3s, or what the steps of a run wrote.

use std::fs;
use std::io::{Read, Seek, SeekFrom};
use std::path::Path;
use std::time::Duration;

use serde_json::json;

use super::args::Logs;
use super::context::Context;
use super::error::{CliError, code};
use super::{bundle, history, out, print};
use crate::event::Outcome;
use crate::explain::{Explain, chain};
use crate::journal;
use crate::os::cancel::Level;
use crate::os::lines::Lines;
use crate::spec::Cluster;
use crate::ssh::{Bound, Remote};
use crate::state::StateDir;
use crate::ui::Format;

/// For a node to list its log, and to tell it as it is written: until the user ends it.
const LISTED: Duration = Duration::from_secs(120);
const FOLLOWED: Duration = Duration::from_secs(365 * 24 * 3600);

/// What a node may list, in bytes.
const MOST_LISTED: u64 = 256 << 20;
/// Of a step's log, at most its end.
const MAX_BYTES: u64 = 16 << 20;

/// Shows a log, or collects everything.
pub fn logs(context: &Context, args: &Logs) -> Result<(), CliError> {
    if let Some(file) = &args.bundle {
        return bundle::bundle(context, file.as_deref());
    }
    let cluster = context.spec()?;
    let state = StateDir::of(cluster.home(), &cluster.name);
    if let Some(word) = &args.node {
        let name = context.target(&cluster, word)?;
        let role = cluster.node(&name).expect("looked up").role;
        if !role.has_k3s() {
            let what = format!("{name} has no log of k3s: the spec gives it no k3s (`role: none`)");
            let hint = format!("`p1 ssh {name}` leads to its own logs.");
            return Err(CliError::new(code::USAGE, what, hint));
        }
        let unit = role.unit();
        return lines_of(context, cluster, &name, unit, args);
    }
    let last = match &args.run {
        Some(run) => Ok(Some(history::find(&state, run)?)),
        None => journal::latest(&state.runs()),
    };
    let last = match last {
        Err(error) if args.step.is_none() => {
            eprintln!("{}", chain(&error));
            return all(context, &state, args.lines);
        }
        last => last?,
    };
    let Some(record) = last else {
        return Err(CliError::new(code::FAILED, "nothing has been run yet", "`p1 up` makes the cluster.")
            .next(["p1 up"]));
    };
    let which = match &args.run {
        Some(_) => format!("the run {} (`p1 {}`)", record.run, record.verb),
        None => format!("the last run (`p1 {}`, {})", record.verb, record.run),
    };
    let failed =
        |s: &String| matches!(record.outcomes.get(s), Some(Outcome::Failed(_) | Outcome::Interrupted));
    let steps: Vec<String> = match &args.step {
        Some(step) if record.steps.iter().any(|s| s.id == *step) => vec![step.clone()],
        Some(step) => {
            let known: Vec<&str> = record.steps.iter().map(|s| s.id.as_str()).collect();
            let what = format!("{which} had no step `{step}`");
            return Err(CliError::new(code::USAGE, what, format!("It had: {}.", known.join(", "))));
        }
        None => record.steps.iter().map(|s| s.id.clone()).filter(failed).collect(),
    };
    if steps.is_empty() {
        eprintln!("no step of {which} failed; name a node or a `--step`");
    }
    for step in &steps {
        show(context, step, &state.log(&record.run, step), args.lines);
    }
    Ok(())
}

/// The log of a node's k3s. It goes through p1 rather than to the terminal as it is: what a terminal would obey is
/// taken out, and so are the cluster's secrets, which k3s repeats.
fn lines_of(
    context: &Context,
    cluster: Cluster,
    name: &str,
    unit: &str,
    args: &Logs,
) -> Result<(), CliError> {
    let state = StateDir::of(cluster.home(), &cluster.name);
    context.must_be_made(&cluster, &state)?;
    let kind = context.kind(&cluster, &state)?;
    let world = context.world(cluster, kind);
    let node = world.cluster.node(name).expect("looked up before");
    let _signals = super::signals::watch_plain(context.cancel.clone())?;
    let bound = match args.follow {
        true => Bound::from(FOLLOWED).at_most(u64::MAX),
        false => Bound::from(LISTED).at_most(MOST_LISTED),
    };
    // Its init system says where the log is.
    if world.memory(name).is_none_or(|memory| memory.facts.is_none()) {
        drop(world.facts(node));
    }
    let line = world.guest(node).service().log(unit, args.lines, args.follow);
    let mut tell = |line: &str| {
        let line = context.shown(line);
        match context.ui.format {
            Format::Json => out::object(&json!({"v": 1, "node": name, "line": line})),
            _ => print(format!("{line}\n")),
        }
        // Its reader has seen enough, or there is no place for more.
        if out::ended() {
            context.cancel.raise(Level::Abort);
        }
    };
    let mut lines = Lines::default();
    let mut remote = Remote::new(world.login(node)?, world.cancel.clone());
    let done = remote.exec_as_root(&line, b"", bound, &mut |bytes| lines.push(bytes, &mut tell));
    lines.finish(&mut tell);
    match done {
        Err(error) if error.cancelled() && out::ended() => Ok(()),
        done => Ok(done?.ok().map(drop)?),
    }
}

fn show(context: &Context, step: &str, path: &Path, lines: u32) {
    if context.ui.format != Format::Json {
        eprintln!("{}", path.display());
    }
    match end_of(path) {
        Ok(bytes) => {
            // Logs of an earlier p1 are as the nodes wrote them.
            let text = context.shown(&String::from_utf8_lossy(&bytes));
            let all: Vec<&str> = text.lines().filter(|l| !l.trim().is_empty()).collect();
            let last = &all[all.len().saturating_sub(lines as usize)..];
            match context.ui.format {
                Format::Json => last.iter().for_each(|line| {
                    out::object(&json!({"v": 1, "step": step, "log": out::lossy(path), "line": line}));
                }),
                _ => last.iter().for_each(|line| print(format!("{line}\n"))),
            }
        }
        Err(_) if context.ui.format == Format::Json => {}
        Err(_) => eprintln!("(the step wrote nothing)"),
    }
}

fn end_of(path: &Path) -> std::io::Result<Vec<u8>> {
    let mut file = fs::File::open(path)?;
    let from = file.metadata()?.len().saturating_sub(MAX_BYTES);
    file.seek(SeekFrom::Start(from))?;
    let mut bytes = Vec::new();
    file.take(MAX_BYTES).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// Every log of the last run, where its journal does not tell which of them matter.
fn all(context: &Context, state: &StateDir, lines: u32) -> Result<(), CliError> {
    let inside = |dir: &Path| {
        let mut all: Vec<_> = fs::read_dir(dir).into_iter().flatten().flatten().map(|e| e.path()).collect();
        all.sort();
        all
    };
    for log in inside(&state.logs()).last().map(|run| inside(run)).unwrap_or_default() {
        let step = log.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        show(context, &step, &log, lines);
    }
    Ok(())
}
