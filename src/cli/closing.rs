//! What is so after a run that succeeded, and what to type next.

use std::collections::BTreeMap;
use std::time::Duration;

use super::run::Job;
use crate::access::World;
use crate::event::{Kind, Outcome, VerbName};
use crate::explain::seconds;
use crate::journal::{self, Record};
use crate::observed::View;
use crate::plan::NodeStep;
use crate::spec::Node;
use crate::ui::{bytes, count};

/// How the cluster was before a run, as far as its end is told by that.
pub struct Before {
    /// Its API answered.
    api: bool,
    /// By node: its version.
    versions: BTreeMap<String, String>,
}

impl Before {
    /// By what was seen.
    pub fn of(world: &World) -> Self {
        let seen = world.seen();
        let view = View::new(&world.cluster, &seen);
        let version = |n: &Node| Some((n.name.clone(), view.version(n)?.to_owned()));
        Self { api: seen.api.is_some(), versions: world.cluster.nodes.iter().filter_map(version).collect() }
    }
}

/// What is so now, a line each, and the command that leads on.
pub fn now(world: &World, job: &Job, before: &Before) -> (Vec<String>, Option<String>) {
    match job.verb.name {
        VerbName::Up | VerbName::Start => (vec![running(world, &[])], next("p1 kubectl get pods -A")),
        VerbName::Replace => {
            let new: Vec<&Node> =
                world.cluster.nodes.iter().filter(|n| job.replace.contains(&n.name)).collect();
            let told = new.iter().map(|n| format!("{} is a new machine at {}", n.name, n.ip));
            let mut lines: Vec<String> = told.collect();
            lines.push(running(world, &[]));
            lines.extend(away(world, before));
            (lines, next("p1 status"))
        }
        VerbName::Upgrade => {
            let mut was: Vec<&str> = before.versions.values().map(String::as_str).collect();
            was.sort_unstable();
            was.dedup();
            let mut lines = vec![running(world, &was)];
            lines.extend(away(world, before));
            (lines, next("p1 verify"))
        }
        VerbName::Backup => {
            let Some(file) = &job.subject else { return (Vec::new(), None) };
            let size = std::fs::metadata(file).map(|m| format!(" ({})", bytes(m.len()))).unwrap_or_default();
            let quoted = crate::os::process::quote(file);
            (vec![format!("the backup is {file}{size}")], next(&format!("p1 restore {quoted}")))
        }
        _ => (Vec::new(), None),
    }
}

fn next(command: &str) -> Option<String> {
    Some(command.to_owned())
}

/// The release on how many nodes, and where the API is. `was`: the releases before.
fn running(world: &World, was: &[&str]) -> String {
    let mut versions: Vec<(String, usize)> = Vec::new();
    let of = |n: &Node| world.memory(&n.name).and_then(|memory| memory.version);
    for version in world.cluster.nodes.iter().filter_map(of) {
        match versions.iter_mut().find(|(known, _)| *known == version) {
            Some((_, nodes)) => *nodes += 1,
            None => versions.push((version, 1)),
        }
    }
    let former = |version: &str| match was {
        [] => String::new(),
        [one] if *one == version => String::new(),
        some => format!(" (was {})", some.join(" and ")),
    };
    let told = versions.iter().map(|(v, n)| format!("k3s {v} on {}{}", count(*n, "node"), former(v)));
    let told: Vec<String> = told.collect();
    let url = world.api_url(world.cluster.first_server());
    match told.is_empty() {
        true => format!("the API is {url}"),
        false => format!("{}; the API is {url}", told.join(", ")),
    }
}

/// How long the only server's API was away in this run.
fn away(world: &World, before: &Before) -> Option<String> {
    let path = world.state.runs().join(format!("{}.jsonl", world.run));
    let record = journal::read(&path).ok().flatten().filter(|_| before.api)?;
    let mut servers = world.cluster.servers();
    let (server, None) = (servers.next()?, servers.next()) else { return None };
    Some(format!("the API was away for at most {}", seconds(api_away(&record, &server.name)?)))
}

/// For how long a run had that server's k3s, or its machine, away at most: as long as the steps took that take it away.
pub fn api_away(record: &Record, server: &str) -> Option<Duration> {
    let steps = [NodeStep::Resize, NodeStep::Start].map(|step| step.id(server));
    let took = record.events.iter().filter_map(|event| match &event.kind {
        Kind::StepFinished { step, outcome: Outcome::Done { .. }, took_ms, .. } if steps.contains(step) => {
            Some(Duration::from_millis(*took_ms))
        }
        _ => None,
    });
    let took: Vec<Duration> = took.collect();
    (!took.is_empty()).then(|| took.iter().sum())
}
