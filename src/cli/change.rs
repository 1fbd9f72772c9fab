//! What a run takes away, and whether the user agreed to that: told, and asked, before anything begins.

use std::fmt::Write;

use super::context::Context;
use super::error::{CliError, code};
use crate::access::World;
use crate::event::VerbName;
use crate::explain::printable;
use crate::machines;
use crate::observed::View;
use crate::observed::drift::{Drift, changes};
use crate::plan::{NodeStep, Plan};
use crate::state::StateDir;
use crate::verbs::{self, Decision, Refused};

/// The differences that `up` would find, whose plan this is.
pub fn look(world: &World, plan: &Plan, targets: &[String]) -> Vec<Drift> {
    let seen = world.seen();
    told(world, changes(&View::new(&world.cluster, &seen), plan, targets).0)
}

/// As they may be shown: a node's words may be among them.
pub fn told(world: &World, mut all: Vec<Drift>) -> Vec<Drift> {
    for drift in &mut all {
        drift.what = printable(&world.redactor.text(&drift.what)).into_owned();
    }
    all
}

/// A run that takes data away begins only after a yes.
pub fn must_be_agreed(
    context: &Context,
    world: &World,
    decision: &Decision,
    replace: &[String],
) -> Result<(), CliError> {
    if decision.losses.is_empty() {
        return Ok(());
    }
    let shown = |line: &String| printable(&world.redactor.text(line)).into_owned();
    let losses: Vec<String> = decision.losses.iter().map(shown).collect();
    agree(context, &world.cluster.name, &losses, &decision.removed, &decision.replaced, replace)
}

impl From<Refused> for CliError {
    fn from(refused: Refused) -> Self {
        match refused {
            Refused::Asked(refusal) => Self { code: code::USAGE, ..refusal.into() },
            Refused::There(refusal) => refusal.into(),
        }
    }
}

impl From<verbs::Error> for CliError {
    fn from(error: verbs::Error) -> Self {
        match error {
            verbs::Error::Step(error) => error.into(),
            verbs::Error::Refused(refused) => refused.into(),
            verbs::Error::Contested(error) => Self { code: code::LOCKED, ..error.into() },
            verbs::Error::Unable(error) => Self { code: code::USAGE, ..error.into() },
        }
    }
}

fn agree(
    context: &Context,
    cluster: &str,
    lines: &[String],
    removed: &[String],
    replaced: &[String],
    named: &[String],
) -> Result<(), CliError> {
    if context.global.yes || context.can_ask() {
        let mut question = format!("This deletes data of the cluster `{cluster}`:\n");
        for line in lines {
            let _ = writeln!(question, "  {line}");
        }
        return context.agree(&format!("{question}Continue?"));
    }
    let mut ways = Vec::new();
    if !replaced.is_empty() {
        let all = named.iter().chain(replaced);
        let options: String = all.map(|n| format!(" --replace {n}")).collect();
        ways.push(format!("`p1 up{options}` recreates {}.", replaced.join(", ")));
    }
    if !removed.is_empty() {
        ways.push(format!("`p1 destroy {}` removes what is not in the spec.", removed.join(" ")));
    }
    ways.push("Pass `--yes` to confirm all of it.".to_owned());
    let fail = CliError::new(
        code::USAGE,
        "this deletes data, and there is no terminal to confirm on",
        ways.join(" "),
    );
    Err(CliError { evidence: lines.to_vec(), ..fail })
}

/// Words of the command line: for the spec's nodes, or names of what is left of former ones.
pub fn targets(
    context: &Context,
    cluster: &crate::spec::Cluster,
    names: &[String],
) -> Result<Vec<String>, CliError> {
    let state = StateDir::of(cluster.home(), &cluster.name);
    let memory = state.memory();
    let former = |name: &String| memory.contains_key(name) || machines::is_noted(state.dir(), name);
    let mut all: Vec<String> = Vec::new();
    for name in names {
        let meant = match cluster.node(name).is_none() && former(name) {
            true => vec![name.clone()],
            false => context.targets(cluster, std::slice::from_ref(name))?,
        };
        all.extend(meant.into_iter().filter(|name| !all.contains(name)).collect::<Vec<_>>());
    }
    Ok(all)
}

/// Nodes that a `replace` was to recreate and has not come to: nothing else does it.
pub fn not_replaced(world: &World) -> Option<String> {
    let record = crate::journal::latest(&world.state.runs()).ok().flatten()?;
    if VerbName::parse(&record.verb) != Some(VerbName::Replace) {
        return None;
    }
    let left = record
        .outstanding()
        .filter(|s| NodeStep::Machine.is(&s.id) || NodeStep::Release.is(&s.id))
        .filter_map(|s| s.node.as_deref());
    let left: Vec<&str> = left.filter(|n| world.cluster.node(n).is_some()).collect();
    let is = if left.len() == 1 { "is" } else { "are" };
    (!left.is_empty()).then(|| {
        let names = left.join(" ");
        format!(
            "{} {is} not replaced: the replacement was not finished, and `p1 replace {names}` does it",
            left.join(", ")
        )
    })
}

/// Other clusters of this folder, told where this one is new: the spec may have been given another name.
pub fn neighbours(world: &World) -> Option<String> {
    if world.state.exists() && world.state.vagrantfile().exists() {
        return None;
    }
    let top = world.state.dir().parent()?;
    let mut others: Vec<String> = std::fs::read_dir(top)
        .ok()?
        .flatten()
        .filter(|e| machines::is_begun(&e.path()))
        .filter_map(|e| e.file_name().into_string().ok())
        .filter(|n| *n != world.cluster.name)
        .collect();
    others.sort();
    let first = others.first()?;
    Some(format!(
        "`{}` is a new cluster. What was made before stays as it is in .p1/: {}. If the spec was only renamed: \
         `name: {first}` is the way back, and there `p1 destroy` removes it.",
        world.cluster.name,
        others.join(", ")
    ))
}

/// True if a plan does anything.
pub fn is_due(plan: &Plan, all: &[Drift]) -> bool {
    !plan.is_done() || all.iter().any(Drift::counts)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::StepError;

    #[test]
    fn what_a_named_machine_cannot_is_an_error_of_usage() {
        let fail = CliError::from(verbs::Error::Unable(StepError::new("x", "y")));
        assert_eq!((fail.code, fail.message.as_str(), fail.hint.as_deref()), (code::USAGE, "x", Some("y")));
    }
}
