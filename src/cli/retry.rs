//! `p1 retry`: what the last run left outstanding, same verb, same nodes.

use std::cell::RefCell;

use super::change;
use super::context::Context;
use super::error::{CliError, code};
use super::fork;
use super::kept;
use super::run::{self, Job};
use super::up::preflight;
use crate::access::World;
use crate::event::VerbName;
use crate::journal::{self, Record};
use crate::spec::Cluster;
use crate::state::StateDir;
use crate::ui::Tone;
use crate::verbs::Verb;

/// Goes on where the last run ended.
pub fn retry(context: &Context) -> Result<(), CliError> {
    let cluster = context.spec()?;
    let state = StateDir::of(cluster.home(), &cluster.name);
    let Some(record) = journal::latest(&state.runs())? else {
        return Err(CliError::new(code::USAGE, "nothing has been run yet", "`p1 up` makes the cluster.")
            .next(["p1 up"]));
    };
    if !record.damaged.is_empty() {
        let lines: Vec<String> = record.damaged.iter().take(5).map(ToString::to_string).collect();
        eprintln!(
            "{} {}: {} no event (line {}{}); what was lost counts as outstanding",
            context.paint().tone(Tone::Warn, "warning:"),
            state.runs().join(format!("{}.jsonl", record.run)).display(),
            match record.damaged.len() {
                1 => "1 line is".to_owned(),
                n => format!("{n} lines are"),
            },
            lines.join(", "),
            if record.damaged.len() > 5 { ", ..." } else { "" },
        );
    }
    if record.outstanding().next().is_none() {
        eprintln!(
            "nothing is outstanding: the last run (`p1 {}`, {}) did all it had to",
            record.verb, record.run
        );
        finish(context, &cluster, &record)?;
        if record.subject.as_deref() == Some(kept::TO_KEEP) {
            let world = context.world(cluster.clone(), context.kind(&cluster, &state)?);
            return kept::keep(context, cluster, kept::key(&world)?);
        }
        return Ok(());
    }
    let verb = VerbName::parse(&record.verb).map(Verb::of).ok_or_else(|| {
        let what = format!("the last run was `{}`, which this p1 does not know", record.verb);
        CliError::new(code::USAGE, what, "Use the p1 that began it.")
    })?;
    let targets = change::targets(context, &cluster, &record.targets)?;
    let subject = record.subject.clone();
    let keeps = subject.as_deref() == Some(kept::TO_KEEP);
    let (again, key) = (cluster.clone(), RefCell::new(None));
    let job =
        Job { verb, replace: Vec::new(), targets, subject, retry_of: Some(record.clone()), deep: false };
    let after = |world: &World| *key.borrow_mut() = keeps.then(|| world.kept_key()).flatten();
    let report = run::run_then(context, cluster, job, &after, &|world, plan| {
        preflight(context, world, plan).map(|()| Vec::new())
    })?;
    if report.success {
        finish(context, &again, &record)?;
    }
    run::verdict(&report)?;
    if keeps {
        return kept::keep(context, again, key.into_inner());
    }
    Ok(())
}

/// What follows when every step of a run has passed: of a destroyed cluster nothing is kept.
fn finish(context: &Context, cluster: &Cluster, record: &Record) -> Result<(), CliError> {
    let verb = VerbName::parse(&record.verb).map(Verb::of);
    if let (Some(VerbName::Fork), Some(subject)) = (verb.map(|verb| verb.name), &record.subject) {
        return fork::go_on(context, subject);
    }
    if verb.is_some_and(|verb| verb.takes_all(&record.targets)) {
        run::gone(context, cluster)?;
    }
    Ok(())
}
