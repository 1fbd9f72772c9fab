//! `p1 logs`: a node's k3s, or what the steps of the last run wrote.

use std::fs;
use std::io::IsTerminal;
use std::path::Path;
use std::time::Duration;

use serde_json::json;

use super::args::Logs;
use super::context::Context;
use super::fail::{Fail, code};
use super::{bundle, out, print, ssh as ssh_verb};
use crate::event::Outcome;
use crate::explain::chain;
use crate::journal;
use crate::spec::Cluster;
use crate::ssh;
use crate::state::State;
use crate::ui::Format;

/// For a node to list its log, and to tell it as it is written: until the user ends it.
const LISTED: Duration = Duration::from_secs(120);
const FOLLOWED: Duration = Duration::from_secs(365 * 24 * 3600);

/// Shows a log, or collects everything.
pub fn logs(context: &Context, args: &Logs) -> Result<(), Fail> {
    if let Some(file) = &args.bundle {
        return bundle::bundle(context, file.as_deref());
    }
    let cluster = context.spec()?;
    let state = State::of(&cluster.base, &cluster.name);
    if let Some(name) = &args.node {
        context.targets(&cluster, std::slice::from_ref(name))?;
        let unit = cluster.node(name).expect("looked up").role.unit();
        if context.ui.format == Format::Json {
            return lines_of(context, cluster, name, unit, args);
        }
        let host = ssh_verb::host(context, cluster, name)?;
        let mut command: Vec<String> =
            ["sudo", "-n", "journalctl", "--no-pager", "-u", unit, "-n"].map(Into::into).into();
        command.push(args.lines.to_string());
        if args.follow {
            command.push("-f".to_owned());
        }
        let terminal = args.follow && std::io::stdout().is_terminal();
        return ssh_verb::exit("journalctl", out::hand_over(&ssh::interactive(&host, &command, terminal))?);
    }
    let last = match journal::latest(&state.runs()) {
        Err(error) if args.step.is_none() => {
            eprintln!("{}", chain(&error));
            return all(context, &state, args.lines);
        }
        last => last?,
    };
    let Some(record) = last else {
        return Err(
            Fail::new(code::FAILED, "nothing has been run yet", "`p1 up` makes the cluster.").next(["p1 up"])
        );
    };
    let failed =
        |s: &String| matches!(record.outcomes.get(s), Some(Outcome::Failed(_) | Outcome::Interrupted));
    let steps: Vec<String> = match &args.step {
        Some(step) if record.steps.iter().any(|s| s.id == *step) => vec![step.clone()],
        Some(step) => {
            let known: Vec<&str> = record.steps.iter().map(|s| s.id.as_str()).collect();
            let what = format!("the last run (`p1 {}`) had no step `{step}`", record.verb);
            return Err(Fail::new(code::USAGE, what, format!("It had: {}.", known.join(", "))));
        }
        None => record.steps.iter().map(|s| s.id.clone()).filter(failed).collect(),
    };
    if steps.is_empty() {
        eprintln!(
            "no step of the last run (`p1 {}`, {}) failed; name a node or a `--step`",
            record.verb, record.run
        );
    }
    for step in &steps {
        show(context, step, &state.log(&record.run, step), args.lines);
    }
    Ok(())
}

/// The log of a node's k3s as objects.
fn lines_of(context: &Context, cluster: Cluster, name: &str, unit: &str, args: &Logs) -> Result<(), Fail> {
    let state = State::of(&cluster.base, &cluster.name);
    context.must_be_made(&cluster, &state)?;
    let kind = context.kind(&cluster, &state)?;
    let world = context.world(cluster, kind);
    let node = world.cluster.node(name).expect("looked up before");
    let _signals = super::signals::watch_plain(context.cancel.clone())?;
    let (follow, bound) = if args.follow { (" -f", FOLLOWED) } else { ("", LISTED) };
    let line = format!("sudo -n journalctl --no-pager -u {unit} -n {}{follow}", args.lines);
    let tell = |line: &[u8]| {
        out::object(&json!({"v": 1, "node": name, "line": String::from_utf8_lossy(line)}));
    };
    let mut part = Vec::new();
    let mut remote = world.users_remote(node)?;
    let done = remote.exec(&line, b"", bound, &mut |bytes| {
        part.extend_from_slice(bytes);
        while let Some(end) = part.iter().position(|b| *b == b'\n') {
            let line: Vec<u8> = part.drain(..=end).collect();
            tell(&line[..end]);
        }
    });
    if !part.is_empty() {
        tell(&part);
    }
    done?.ok()?;
    Ok(())
}

fn show(context: &Context, step: &str, path: &Path, lines: u32) {
    if context.ui.format != Format::Json {
        eprintln!("{}", path.display());
    }
    match fs::read(path) {
        Ok(bytes) => {
            let text = String::from_utf8_lossy(&bytes);
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

/// Every log of the last run, where its journal does not tell which of them matter.
fn all(context: &Context, state: &State, lines: u32) -> Result<(), Fail> {
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
