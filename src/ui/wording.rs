//! Every word that a run's output says, in one place.

use std::time::Duration;

use super::board::{Board, Counts, Head, Step};
use super::text::count;
use crate::event::VerbName;
use crate::explain::seconds;

/// The place of a step that belongs to no node.
pub const CLUSTER: &str = "cluster";
/// The place of a plain line about the run as a whole.
pub const RUN: &str = "run";

/// The third column of plain lines; programs look for these, so they stay as they are.
pub mod status {
    pub const STARTED: &str = "started";
    pub const RUNNING: &str = "running";
    pub const RETRYING: &str = "retrying";
    pub const WARNING: &str = "warning";
    pub const DONE: &str = "done";
    pub const SKIPPED: &str = "skipped";
    pub const FAILED: &str = "failed";
    pub const BLOCKED: &str = "blocked";
    pub const INTERRUPTED: &str = "interrupted";
    pub const NOTE: &str = "note";
}

/// What is said when the user asks to stop for the first time.
pub const STOPPING: &str = "stopping after the running steps; press Ctrl-C again to end them now";
/// What is said when the user asks a second time.
pub const ABORTING: &str = "ending the running steps";

/// The heading of a node's whole time in the summary.
pub const TOTAL: &str = "total";
/// The cell of a step that failed.
pub const FAILED_CELL: &str = "failed";
/// The cell of a step that could not run.
pub const BLOCKED_CELL: &str = "blocked";
/// The cell of a step that the user ended.
pub const STOPPED_CELL: &str = "stopped";
/// The cell of a step with nothing to do.
pub const SKIPPED_CELL: &str = "-";
/// The cell of a step that was not reached.
pub const OPEN_CELL: &str = "not run";

/// The labels of a failure's parts.
pub mod label {
    pub const CAUSE: &str = "cause";
    pub const DOING: &str = "doing";
    pub const EVIDENCE: &str = "evidence";
    pub const LOG: &str = "log";
    pub const HINT: &str = "hint";
    pub const BLOCKED: &str = "blocked";
    pub const NEXT: &str = "next";
    pub const ALL: &str = "evidence";
}

/// What collects everything that shows a cause.
pub const BUNDLE: &str = "logs --bundle";
/// What that does.
pub const BUNDLE_IS: &str = "all of it in one file, without secrets";

/// The heading of the live screen.
pub fn heading(head: &Head) -> String {
    let verb = if head.retry { format!("retry {}", head.verb) } else { head.verb.clone() };
    format!("{verb} {}", head.cluster)
}

/// The first plain line.
pub fn begun(head: &Head, board: &Board) -> String {
    let again = if head.retry { ", going on with an earlier run" } else { "" };
    let counts = board.counts();
    let nodes = count(board.nodes().count(), "node");
    format!("{} of cluster `{}`: {}, {nodes}{again}", head.verb, head.cluster, count(counts.total, "step"))
}

/// What a lane that waits is told to wait for.
pub fn waits(next: &Step, before: Option<&Step>) -> String {
    match before {
        Some(step) if step.info.node != next.info.node => match &step.info.node {
            Some(node) => format!("waits for {node}: {}", step.info.title),
            None => format!("waits for: {}", step.info.title),
        },
        _ => format!("next: {}", next.info.title),
    }
}

/// What a verb has done.
struct Words {
    /// To a node that is through.
    node: &'static str,
    /// To the cluster, or to the one node that was named.
    one: &'static str,
    /// To several nodes that were named.
    many: &'static str,
}

/// The words of the verb of that name. For most it is enough that they are done.
fn words(verb: &str) -> Words {
    use VerbName as V;
    let all = |node, one, many| Words { node, one, many };
    match VerbName::parse(verb) {
        Some(V::Up | V::Start | V::Replace) => all("ready", "is up", "are up"),
        Some(V::Machines) => all("made", "has its machines", "have their machines"),
        Some(V::Upgrade) => all("ready", "is upgraded", "are upgraded"),
        Some(V::Stop) => all("stopped", "is stopped", "are stopped"),
        Some(V::Verify) => all("works", "works", "work"),
        Some(V::Killall) => all("k3s stopped", "has no k3s running", "have no k3s running"),
        Some(V::Uninstall) => all("k3s removed", "has no k3s any more", "have no k3s any more"),
        Some(V::Destroy) => all("gone", "is gone", "are gone"),
        Some(V::Backup) => all("done", "is backed up", "are backed up"),
        Some(V::Restore | V::RestoreSnapshot) => all("restored", "is restored", "are restored"),
        Some(V::UndoRestore) => all("done", "has its former data back", "have their former data back"),
        Some(V::Keep) => all("kept", "is kept", "are kept"),
        Some(V::Reset) => all("restored", "is as it was kept", "are as they were kept"),
        Some(V::Fork) => all("written down", "is written down", "are written down"),
        Some(V::MakeFork) => all("forked", "is up", "are up"),
        Some(V::Suspend) => all("suspended", "is suspended", "are suspended"),
        Some(V::Resume) => all("resumed", "is resumed", "are resumed"),
        Some(V::SaveSnapshot) => all("saved", "is saved", "are saved"),
        Some(V::DeleteSnapshot) => all("done", "has one snapshot less", "have one snapshot less"),
        Some(V::Fault) => all("disturbed", "is disturbed", "are disturbed"),
        Some(V::LoadImage) => all("has them", "has the images", "have the images"),
        Some(V::HealFault) => all("healed", "is under no fault any more", "are under no fault any more"),
        Some(V::Bake) => all("baked", "has given a box", "have given a box"),
        _ => all("done", "is done", "are done"),
    }
}

/// A node that is through, by verb.
pub fn node_done(verb: &str) -> &'static str {
    words(verb).node
}

/// A node with nothing to do.
pub const NODE_UNNEEDED: &str = "nothing to do";

/// A lane that cannot go on.
pub fn blocked_by(by: &str) -> String {
    format!("blocked by {by}")
}

/// A step that failed, for a lane.
pub fn failed(step: &Step, cause: &str) -> String {
    format!("{}: {cause}", step.info.title)
}

/// Between two attempts.
pub fn retrying(attempt: u32, attempts: u32, wait: Duration, cause: &str) -> String {
    // A countdown in whole seconds, rounded up, so that it ends with 1.
    let wait = wait.as_millis().div_ceil(1000);
    format!("attempt {} of {attempts} in {wait}s: {cause}", attempt.saturating_add(1))
}

/// A later attempt.
pub fn attempt(attempt: u32, attempts: u32) -> String {
    format!("attempt {attempt} of {attempts}")
}

/// Several steps of a lane at once: how many beside the one that is shown.
pub fn and_more(more: usize) -> String {
    format!("(+{more})")
}

/// The line for the nodes that have no row.
pub fn more_nodes(more: usize, parts: &[(usize, &str)]) -> String {
    let parts: Vec<_> = parts.iter().filter(|(n, _)| *n > 0).map(|(n, what)| format!("{n} {what}")).collect();
    format!("+{more} more: {}", parts.join(", "))
}

/// The kinds of [`more_nodes`].
pub mod kind {
    pub const RUNNING: &str = "at work";
    pub const FAILED: &str = "failed";
    pub const WAITING: &str = "waiting";
    pub const DONE: &str = "done";
}

/// Where the run is: `12/19 steps`.
pub fn steps_of(counts: &Counts) -> String {
    format!("{}/{} {}", counts.passed(), counts.total, if counts.total == 1 { "step" } else { "steps" })
}

/// What the verb did to the cluster or to the nodes that were named.
fn achieved(head: &Head, board: &Board) -> String {
    let Words { one, many, .. } = words(&head.verb);
    // What is gone is counted where that was the aim, and nowhere else.
    let nodes = match VerbName::parse(&head.verb) {
        Some(VerbName::Destroy) => board.nodes().count(),
        _ => board.remaining(),
    };
    match head.targets.as_slice() {
        [] => format!("cluster `{}` {one}: {}", head.cluster, count(nodes, "node")),
        [node] => format!("`{node}` of cluster `{}` {one}", head.cluster),
        some => format!("{} of cluster `{}` {many}", count(some.len(), "node"), head.cluster),
    }
}

/// The last word on a run that succeeded.
pub fn succeeded(board: &Board, took: Duration) -> String {
    let Some(head) = &board.head else { return format!("done in {}", seconds(took)) };
    if board.counts().done > 0 {
        return format!("{} in {}", achieved(head, board), seconds(took));
    }
    let state = match VerbName::parse(&head.verb) {
        Some(VerbName::Up | VerbName::Upgrade) => format!("cluster `{}` is as the spec says", head.cluster),
        _ => achieved(head, board),
    };
    format!("nothing to do: {state} ({})", seconds(took))
}

/// The last word on a run that did not.
pub fn unfinished(board: &Board, took: Duration) -> String {
    let counts = board.counts();
    let mut parts = Vec::new();
    if counts.failed > 0 {
        parts.push(format!("{} failed", count(counts.failed, "step")));
    }
    if board.end.is_some_and(|end| end.interrupted) {
        parts.push("stopped on request".to_owned());
    }
    if parts.is_empty() {
        parts.push("not finished".to_owned());
    }
    let name = board.head.as_ref().map_or_else(String::new, |head| format!("cluster `{}`: ", head.cluster));
    format!("{name}{} after {}", parts.join(", "), seconds(took))
}

/// The nodes that stayed as they were.
pub fn untouched(nodes: &[&str]) -> String {
    format!("not touched, and as before: {}", nodes.join(", "))
}

/// How many steps came to what.
pub fn tally(board: &Board) -> String {
    let counts = board.counts();
    let parts = [
        (counts.done, "done"),
        (counts.skipped, "skipped"),
        (counts.failed, "failed"),
        (counts.blocked, "blocked"),
        (counts.interrupted, "interrupted"),
        (counts.open, "not run"),
    ];
    let mut parts: Vec<_> =
        parts.into_iter().filter(|(n, _)| *n > 0).map(|(n, what)| format!("{n} {what}")).collect();
    if board.retries > 0 {
        parts.push(count(board.retries, "retry"));
    }
    let warnings = board.steps.iter().map(|step| step.warnings.len()).sum::<usize>();
    if warnings > 0 {
        parts.push(count(warnings, "warning"));
    }
    format!("{}: {}", count(counts.total, "step"), parts.join(", "))
}

/// Where and when a step failed: `worker-2/start, attempt 3 of 3, after 18s`.
pub fn failed_where(step: &Step) -> String {
    let tries = if step.attempts > 1 {
        format!(", {}", attempt(step.attempt, step.attempts.max(step.attempt)))
    } else {
        String::new()
    };
    format!("{}{tries}, after {}", step.info.id, seconds(step.took))
}

/// A text as it is to be read where p1 is called in this way: its commands name the spec too.
pub fn called(text: &str, p1: &str) -> String {
    text.replace("`p1 ", &format!("`{p1} "))
}

/// A command as it is to be pasted where p1 is called in this way.
pub fn command(command: &str, p1: &str) -> String {
    match command.strip_prefix("p1 ") {
        // A whole command line of the user's names its spec itself.
        Some(rest) if !rest.starts_with('-') => format!("{p1} {rest}"),
        _ => command.to_owned(),
    }
}

/// Commands, one after the other, as one line to be pasted.
pub fn next(commands: &[String], p1: &str) -> String {
    commands.iter().map(|c| command(c, p1)).collect::<Vec<_>>().join(" && ")
}

/// The commands that lead on after a run. What failures need comes first, and last what does all the rest:
/// a run of its own ends the one that could have been gone on with.
pub fn leads_on<'a>(failures: impl IntoIterator<Item = &'a [String]>, forgotten: bool) -> Vec<String> {
    const LAST: [&str; 2] = ["p1 retry", "p1 up"];
    let (mut all, mut last) = (Vec::new(), usize::from(forgotten));
    for command in failures.into_iter().flatten() {
        match LAST.iter().position(|l| l == command) {
            Some(at) => last = last.max(at),
            None if all.contains(command) => {}
            None => all.push(command.clone()),
        }
    }
    all.push(LAST[last].to_owned());
    all
}

/// The question after which anything but a clear yes is a no.
pub fn question(question: &str) -> String {
    format!("{question} [y/N] ")
}
