//! `p1 logs`: a node's k3s, or what the steps of the last run wrote.

use std::fs;
use std::io::IsTerminal;
use std::path::Path;

use super::args::Logs;
use super::context::Context;
use super::fail::{Fail, code};
use super::{bundle, print, ssh as ssh_verb};
use crate::event::Outcome;
use crate::explain::chain;
use crate::journal;
use crate::os::process;
use crate::ssh;
use crate::state::State;

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
        let host = ssh_verb::host(context, cluster, name)?;
        let mut command: Vec<String> =
            ["sudo", "-n", "journalctl", "--no-pager", "-u", unit, "-n"].map(Into::into).into();
        command.push(args.lines.to_string());
        if args.follow {
            command.push("-f".to_owned());
        }
        let terminal = args.follow && std::io::stdout().is_terminal();
        return ssh_verb::exit(process::hand_over(&ssh::interactive(&host, &command, terminal))?);
    }
    let last = match journal::latest(&state.runs()) {
        Err(error) if args.step.is_none() => {
            eprintln!("{}", chain(&error));
            return all(&state, args.lines);
        }
        last => last?,
    };
    let Some(record) = last else {
        return Err(Fail::new(code::FAILED, "nothing has been run yet", "`p1 up` makes the cluster."));
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
        show(&state.log(&record.run, step), args.lines);
    }
    Ok(())
}

fn show(path: &Path, lines: u32) {
    eprintln!("{}", path.display());
    match fs::read(path) {
        Ok(bytes) => {
            let text = String::from_utf8_lossy(&bytes);
            let all: Vec<&str> = text.lines().filter(|l| !l.trim().is_empty()).collect();
            print(&(all[all.len().saturating_sub(lines as usize)..].join("\n") + "\n"));
        }
        Err(_) => eprintln!("(the step wrote nothing)"),
    }
}

/// Every log of the last run, where its journal does not tell which of them matter.
fn all(state: &State, lines: u32) -> Result<(), Fail> {
    let inside = |dir: &Path| {
        let mut all: Vec<_> = fs::read_dir(dir).into_iter().flatten().flatten().map(|e| e.path()).collect();
        all.sort();
        all
    };
    for log in inside(&state.logs()).last().map(|run| inside(run)).unwrap_or_default() {
        show(&log, lines);
    }
    Ok(())
}
