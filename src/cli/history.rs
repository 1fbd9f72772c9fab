//! `p1 history`: what was done to the cluster, as the journals of its runs tell it.

use std::path::Path;
use std::time::Duration;

use serde_json::json;

use super::args::History;
use super::context::Context;
use super::error::{CliError, code};
use super::{out, print};
use crate::event::{Kind, Outcome};
use crate::explain::{chain, printable};
use crate::journal::{self, Record};
use crate::os::lock;
use crate::state::StateDir;
use crate::ui::{Cell, Format, Layout, Tone, count, table, text};

/// How a run ended.
#[derive(Clone, Copy, Debug, PartialEq)]
enum End {
    Done,
    NothingToDo,
    Failed,
    Interrupted,
    /// Its p1 was killed, or this host lost its power.
    CutOff,
    Runs,
}

/// Shows the last runs, the newest last.
pub fn history(context: &Context, args: &History) -> Result<(), CliError> {
    let cluster = context.spec()?;
    let state = StateDir::of(cluster.home(), &cluster.name);
    state.readable().map_err(|e| CliError::of(code::FAILED, &e))?;
    let paths = journal::runs(&state.runs());
    let works = lock::holder(&state.lock()).is_some();
    let (mut rows, mut failed) = (Vec::new(), None);
    for path in &paths[paths.len().saturating_sub(args.lines as usize)..] {
        let run = name(path);
        let record = match journal::read(path) {
            Ok(Some(record)) => record,
            // It ended before there was anything to be done.
            Ok(None) => continue,
            Err(error) if context.ui.format == Format::Json => {
                out::object(&json!({"v": 1, "run": run, "cause": context.shown(&chain(&error))}));
                continue;
            }
            Err(error) => {
                let why = Cell::new(Tone::Warn, context.shown(&chain(&error)));
                rows.push(vec![Cell::from(run), Cell::from(""), Cell::from(""), Cell::from(""), why]);
                continue;
            }
        };
        let newest = paths.last() == Some(path);
        let end = end(&record, newest && works);
        if context.ui.format == Format::Json {
            out::object(&object(context, &record, end));
            continue;
        }
        if end == End::Failed {
            failed = Some(run.clone());
        }
        let (tone, said) = told(&record, end);
        rows.push(vec![
            Cell::new(Tone::Dim, run),
            Cell::from(record.started.strftime("%Y-%m-%d %H:%M:%S").to_string()),
            Cell::from(context.shown(&what(&record))),
            Cell::from(text::took(took(&record))),
            Cell::new(tone, context.shown(&said)),
        ]);
    }
    if context.ui.format == Format::Json {
        return Ok(());
    }
    if rows.is_empty() {
        eprintln!("nothing has been run yet; `{} up` makes the cluster", context.called());
        return Ok(());
    }
    let layout = Layout { paint: context.paint(), right: false, indent: 0 };
    print(table(&["run", "began (UTC)", "p1", "took", "outcome"], &rows, layout));
    if let Some(run) = failed {
        eprintln!("`{} logs --run {run}` shows what its failed steps wrote", context.called());
    }
    Ok(())
}

fn name(journal: &Path) -> String {
    journal.file_stem().unwrap_or_default().to_string_lossy().into_owned()
}

/// The run of that id, or of the only one that begins so.
pub fn find(state: &StateDir, run: &str) -> Result<Record, CliError> {
    let all = journal::runs(&state.runs());
    let alike: Vec<_> = all.iter().filter(|path| name(path).starts_with(run)).collect();
    let exact = alike.iter().find(|path| name(path) == run).or(alike.first());
    if alike.len() > 1 && exact.is_some_and(|path| name(path) != run) {
        let what = format!("{} begin with `{run}`", count(alike.len(), "run"));
        return Err(CliError::new(code::USAGE, what, "`p1 history` lists them."));
    }
    exact.map_or(Ok(None), |path| journal::read(path))?.ok_or_else(|| {
        CliError::new(code::USAGE, format!("there is no run `{run}`"), "`p1 history` lists them.")
    })
}

/// The command line that it was, without its options.
pub fn what(record: &Record) -> String {
    let retry = record.events.iter().any(|e| matches!(&e.kind, Kind::RunStarted { retry_of: Some(_), .. }));
    let words = retry.then_some("retry:").into_iter().chain([record.verb.as_str()]);
    let words = words.chain(record.targets.iter().map(String::as_str));
    words.chain(record.subject.as_deref()).collect::<Vec<_>>().join(" ")
}

/// From its beginning to the last that is known of it.
fn took(record: &Record) -> Duration {
    Duration::from_millis(record.events.iter().map(|e| e.elapsed_ms).max().unwrap_or(0))
}

fn end(record: &Record, runs: bool) -> End {
    let finished = record.events.iter().rev().find_map(|e| match e.kind {
        Kind::RunFinished { success, interrupted } => Some((success, interrupted)),
        _ => None,
    });
    match finished {
        None if runs => End::Runs,
        None => End::CutOff,
        Some((_, true)) => End::Interrupted,
        Some((false, _)) => End::Failed,
        Some((true, _)) => match record.outcomes.values().all(|o| matches!(o, Outcome::Skipped { .. })) {
            true => End::NothingToDo,
            false => End::Done,
        },
    }
}

/// Each step that failed, in the plan's order, with its cause.
fn failures(record: &Record) -> Vec<(&str, &str)> {
    let failed = record.steps.iter().filter_map(|step| match record.outcomes.get(&step.id) {
        Some(Outcome::Failed(failure)) => Some((step.id.as_str(), failure.cause.as_str())),
        _ => None,
    });
    failed.collect()
}

fn told(record: &Record, end: End) -> (Tone, String) {
    let left = || count(record.outstanding().count(), "step");
    match end {
        End::Done => {
            let done = record.outcomes.values().filter(|o| matches!(o, Outcome::Done { .. })).count();
            (Tone::Good, format!("done: {}", count(done, "step")))
        }
        End::NothingToDo => (Tone::Dim, "nothing to do".to_owned()),
        End::Failed => (
            Tone::Bad,
            match &failures(record)[..] {
                [] => format!("failed: {} outstanding", left()),
                [(step, cause)] => format!("failed: {step}: {cause}"),
                [(step, cause), more @ ..] => {
                    format!("failed: {step}: {cause} (and {})", count(more.len(), "step"))
                }
            },
        ),
        End::Interrupted => (Tone::Warn, format!("interrupted: {} outstanding", left())),
        End::CutOff => (Tone::Warn, format!("cut off: {} outstanding", left())),
        End::Runs => (Tone::Plain, "runs".to_owned()),
    }
}

fn object(context: &Context, record: &Record, end: End) -> serde_json::Value {
    let retry_of = record.events.iter().find_map(|e| match &e.kind {
        Kind::RunStarted { retry_of, .. } => retry_of.as_deref(),
        _ => None,
    });
    let shown = |text: &str| printable(&context.redactor.text(text)).into_owned();
    let failed: Vec<_> = failures(record)
        .into_iter()
        .map(|(step, cause)| json!({"step": step, "cause": shown(cause)}))
        .collect();
    let of = |which: fn(&Outcome) -> bool| record.outcomes.values().filter(|o| which(o)).count();
    json!({
        "v": 1, "run": record.run, "verb": record.verb, "nodes": record.targets,
        "subject": record.subject.as_deref().map(shown), "retry_of": retry_of, "began": record.started.to_string(),
        "took_ms": took(record).as_millis() as u64, "steps": record.steps.len(),
        "done": of(|o| matches!(o, Outcome::Done { .. })), "skipped": of(|o| matches!(o, Outcome::Skipped { .. })),
        "failed": failed, "outstanding": record.outstanding().count(),
        "outcome": match end {
            End::Done => "done",
            End::NothingToDo => "nothing_to_do",
            End::Failed => "failed",
            End::Interrupted => "interrupted",
            End::CutOff => "cut_off",
            End::Runs => "runs",
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::{Failure, StepInfo};

    fn record(outcomes: &[(&str, Outcome)], finished: Option<(bool, bool)>) -> Record {
        let info = |id: &str| StepInfo {
            id: id.into(),
            node: None,
            title: id.into(),
            digest: String::new(),
            after: vec![],
            reason: String::new(),
            needed: true,
        };
        let end = finished.map(|(success, interrupted)| Kind::RunFinished { success, interrupted });
        Record {
            run: "r".into(),
            verb: "up".into(),
            targets: vec!["worker".into()],
            subject: None,
            spec_digest: String::new(),
            started: jiff::Timestamp::UNIX_EPOCH,
            steps: outcomes.iter().map(|(id, _)| info(id)).collect(),
            outcomes: outcomes.iter().map(|(id, o)| ((*id).to_owned(), o.clone())).collect(),
            success: finished.map(|(success, _)| success),
            events: end.into_iter().map(|kind| journal::stamp(9, 65_000, kind)).collect(),
            damaged: Vec::new(),
        }
    }

    #[test]
    fn how_a_run_ended_is_told_from_its_journal_alone() {
        let failed = |cause: &str| Outcome::Failed(Failure { cause: cause.into(), ..Failure::default() });
        let done = Outcome::Done { detail: None };
        let said = |outcomes: &[(&str, Outcome)], finished, runs| {
            let record = record(outcomes, finished);
            let end = end(&record, runs);
            (end, told(&record, end).1)
        };
        let some = [("b/x", failed("no disk")), ("a/x", failed("late")), ("c/x", done.clone())];
        assert_eq!(
            said(&some, Some((false, false)), false),
            (End::Failed, "failed: b/x: no disk (and 1 step)".into())
        );
        assert_eq!(said(&some[..1], Some((false, false)), false).1, "failed: b/x: no disk");
        assert_eq!(said(&some[2..], Some((true, false)), false), (End::Done, "done: 1 step".into()));
        let nothing = [("a/x", Outcome::Skipped { reason: "it is".into() })];
        assert_eq!(said(&nothing, Some((true, false)), false), (End::NothingToDo, "nothing to do".into()));
        let stopped = [("a/x", Outcome::Interrupted), ("c/x", done)];
        assert_eq!(
            said(&stopped, Some((false, true)), false),
            (End::Interrupted, "interrupted: 1 step outstanding".into())
        );
        // No last word: killed, or at it.
        assert_eq!(said(&stopped, None, false), (End::CutOff, "cut off: 1 step outstanding".into()));
        assert_eq!(said(&stopped, None, true).0, End::Runs);
        assert_eq!(what(&record(&[], None)), "up worker");
        assert_eq!(took(&record(&[], Some((true, false)))), Duration::from_secs(65));
    }
}
