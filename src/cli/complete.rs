//! What a shell offers for a word that is being typed. The shell asks p1 itself (clap's dynamic completion), which knows the
//! spec that the rest of the line names.

use std::ffi::OsStr;
use std::path::PathBuf;

use clap::Parser;
use clap_complete::CompleteEnv;
use clap_complete::engine::{CompletionCandidate, PathCompleter, ValueCompleter};
use clap_complete::env::Shells;

use super::args::Cli;
use super::context::{Context, variable};
use super::{help, history, usage};
use crate::journal;
use crate::os::Cancel;
use crate::spec::{self, Cluster};
use crate::state::StateDir;
use crate::steps::snapshot;

/// The variable by which a shell's script asks.
const VARIABLE: &str = "P1_COMPLETE";
/// So many runs are offered, the newest.
const RUNS: usize = 50;

/// Answers a shell that asks, and ends p1 then.
pub fn answer() {
    CompleteEnv::with_factory(help::command).var(VARIABLE).bin("p1").completer("p1").complete();
}

/// The script with which a shell asks; none for a shell that cannot.
pub fn script(shell: &str) -> Option<Vec<u8>> {
    let mut text = Vec::new();
    let shells = Shells::builtins();
    shells.completer(shell)?.write_registration(VARIABLE, "p1", "p1", "p1", &mut text).ok()?;
    Some(text)
}

/// The words of the line, without the program's name.
fn line() -> Vec<String> {
    let words = std::env::args_os().skip_while(|word| word != "--").skip(2);
    words.map(|word| word.to_string_lossy().into_owned()).collect()
}

fn file() -> Option<PathBuf> {
    usage::spec_of(&line())
}

fn cluster() -> Option<Cluster> {
    Some(spec::load(&file()?, &variable).ok()?.cluster)
}

/// Those that begin with what is there.
fn beginning<'a>(
    current: &OsStr,
    all: impl IntoIterator<Item = (String, &'a str)>,
) -> Vec<CompletionCandidate> {
    let current = current.to_string_lossy();
    let all = all.into_iter().filter(|(word, _)| word.starts_with(&*current));
    all.map(|(word, what)| {
        let help = (!what.is_empty()).then(|| what.to_owned().into());
        CompletionCandidate::new(word).help(help)
    })
    .collect()
}

/// What stands for one node.
fn names(cluster: &Cluster) -> Vec<(String, &'static str)> {
    cluster.nodes.iter().map(|n| (n.name.clone(), "")).collect()
}

/// What stands for nodes: their names, those of groups, roles.
fn all(cluster: &Cluster) -> Vec<(String, &'static str)> {
    let mut all = names(cluster);
    all.extend(
        cluster.groups.keys().filter(|g| cluster.node(g).is_none()).map(|g| (g.clone(), "all of them")),
    );
    let mut roles: Vec<String> = cluster.nodes.iter().map(|n| format!("role:{}", n.role)).collect();
    roles.dedup();
    all.extend(roles.into_iter().map(|role| (role, "all of this role")));
    all
}

/// For an argument that takes several nodes.
pub fn nodes(current: &OsStr) -> Vec<CompletionCandidate> {
    cluster().map(|cluster| beginning(current, all(&cluster))).unwrap_or_default()
}

/// For one that takes one node.
pub fn node(current: &OsStr) -> Vec<CompletionCandidate> {
    cluster().map(|cluster| beginning(current, names(&cluster))).unwrap_or_default()
}

/// For a place of `p1 cp`: a path of this host, or a node with a colon.
pub fn place(current: &OsStr) -> Vec<CompletionCandidate> {
    let nodes = cluster().map(|cluster| all(&cluster)).unwrap_or_default();
    let mut found = beginning(current, nodes.into_iter().map(|(name, what)| (format!("{name}:"), what)));
    found.extend(PathCompleter::any().complete(current));
    found
}

/// The snapshots of the cluster.
pub fn snapshots(current: &OsStr) -> Vec<CompletionCandidate> {
    let look = || {
        let cluster = cluster()?;
        let cli = Cli::try_parse_from(["p1", "-f", file()?.to_str()?, "status"]).ok()?;
        let context = Context::new(cli.global, Cancel::new());
        let state = StateDir::of(cluster.home(), &cluster.name);
        let kind = state.facts().ok()?.provider?;
        snapshot::look(&context.world(cluster, kind)).ok()
    };
    beginning(current, look().unwrap_or_default().into_iter().map(|set| (set.name, "")))
}

fn state() -> Option<StateDir> {
    cluster().map(|cluster| StateDir::of(cluster.home(), &cluster.name))
}

/// The cluster's runs, with what each was.
pub fn runs(current: &OsStr) -> Vec<CompletionCandidate> {
    let Some(state) = state() else { return Vec::new() };
    let all = journal::runs(&state.runs());
    let newest = all.iter().rev().take(RUNS);
    let read = newest.filter_map(|path| journal::read(path).ok().flatten());
    let told: Vec<(String, String)> =
        read.map(|record| (record.run.clone(), history::what(&record))).collect();
    beginning(current, told.iter().map(|(run, what)| (run.clone(), what.as_str())))
}

/// The steps of the run that the line names, or of the last one.
pub fn steps(current: &OsStr) -> Vec<CompletionCandidate> {
    let line = line();
    let run = line.windows(2).find(|w| w[0] == "--run").map(|w| w[1].clone());
    let of = |state: StateDir| match &run {
        Some(run) => history::find(&state, run).ok(),
        None => journal::latest(&state.runs()).ok().flatten(),
    };
    let record = state().and_then(of);
    let steps = record.map(|record| record.steps).unwrap_or_default();
    beginning(current, steps.into_iter().map(|step| (step.id, "")))
}
