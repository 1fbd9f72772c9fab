//! What a run takes away, and whether the user agreed to that: told, and asked, before anything begins.

use std::fmt::Write;

use super::context::Context;
use super::fail::{Fail, code};
use super::run::Job;
use crate::explain::printable;
use crate::plan::{Check, Plan};
use crate::spec::Node;
use crate::state::State;
use crate::steps::{Drift, Mend, View, World, changes, leaver, lost_with, may_leave, members_seen, to_mend};

/// The differences that `up` would find, and the machines that would go for them after a yes.
pub fn look(world: &World, targets: &[String]) -> (Vec<Drift>, Vec<Node>) {
    let seen = world.seen();
    let (mut all, leaving) = changes(&View::new(&world.cluster, &seen), targets);
    for drift in &mut all {
        // A node's words may be among them.
        drift.what = printable(&world.redactor.text(&drift.what)).into_owned();
    }
    (all, leaving)
}

/// The machines that go in this run. `up` and `replace` take only what was named or agreed to; if that is
/// missing, nothing is begun.
pub fn leaving(context: &Context, world: &World, job: &Job, replace: &[String]) -> Result<Vec<Node>, Fail> {
    let seen = world.seen();
    let view = View::new(&world.cluster, &seen);
    let known = |names: &[String]| names.iter().filter_map(|n| leaver(&view, n)).collect::<Vec<Node>>();
    if job.verb.name == "destroy" {
        if !seen.whole {
            return Ok(known(&job.targets));
        }
        let all = world.cluster.nodes.iter().chain(&seen.former).map(|n| n.name.clone());
        return Ok(known(&all.collect::<Vec<_>>()));
    }
    if !matches!(job.verb.name, "up" | "replace") {
        return Ok(Vec::new());
    }
    let (all, _) = look(world, &job.targets);
    if let Some(anew) = all.iter().find(|d| d.mend == Mend::Anew) {
        return Err(Fail::new(
            code::USAGE,
            format!("this needs the whole cluster to be made anew: {}", anew.what),
            format!(
                "`p1 destroy` removes it with its data; then `p1 up` makes it as the spec says now. Lost: {}.",
                anew.lost.as_deref().unwrap_or("nothing")
            ),
        ));
    }
    let unnamed = |d: &&Drift| d.destroys() && !d.node.as_ref().is_some_and(|n| replace.contains(n));
    let mut lines: Vec<String> = all.iter().filter(unnamed).map(ToString::to_string).collect();
    let unnamed = |mend| to_mend(&all, mend).into_iter().filter(|n| !replace.contains(n)).collect::<Vec<_>>();
    let (removed, replaced) = (unnamed(Mend::Remove), unnamed(Mend::Replace));
    let asked = job.verb.name == "replace";
    for name in replace {
        let Some(node) = leaver(&view, name) else { continue };
        let lost = lost_with(&view, &node);
        // Naming it is agreeing to what is its own, not to the end of the cluster.
        if asked || lost.contains("all data") {
            lines.push(format!("{name}: its machine is made anew; lost: {lost}"));
        }
    }
    let mut leaving = known(&removed);
    let in_order = world.cluster.nodes.iter().map(|n| &n.name);
    let again: Vec<String> =
        in_order.filter(|n| replace.contains(n) || replaced.contains(n)).cloned().collect();
    leaving.extend(known(&again));
    must_be_allowed(&view, &leaving)?;
    if !lines.is_empty() {
        agree(context, &lines, &removed, &replaced, replace)?;
    }
    Ok(leaving)
}

/// What would leave etcd without a majority is refused, not asked.
fn must_be_allowed(view: &View<'_>, leaving: &[Node]) -> Result<(), Fail> {
    let Some(mut api) = members_seen(view.seen) else { return Ok(()) };
    for node in leaving {
        may_leave(&api, &node.name).map_err(|why| {
            Fail::new(
                code::USAGE,
                format!("`{}` must not leave the cluster now: {why}", node.name),
                "Without a majority etcd takes no more writes. Bring the other servers back first (`p1 status`).",
            )
        })?;
        if view.cluster.node(&node.name).is_none() {
            api.remove(&node.name);
        }
    }
    Ok(())
}

fn agree(
    context: &Context,
    lines: &[String],
    removed: &[String],
    replaced: &[String],
    named: &[String],
) -> Result<(), Fail> {
    if context.global.yes || context.can_ask() {
        let mut question = String::from("This takes data away:\n");
        for line in lines {
            let _ = writeln!(question, "  {line}");
        }
        return context.agree(&format!("{question}Go on?"));
    }
    let mut ways = Vec::new();
    if !replaced.is_empty() {
        let all = named.iter().chain(replaced);
        let options: String = all.map(|n| format!(" --replace {n}")).collect();
        ways.push(format!("`p1 up{options}` makes {} anew.", replaced.join(", ")));
    }
    if !removed.is_empty() {
        ways.push(format!("`p1 destroy {}` removes what is not in the spec.", removed.join(" ")));
    }
    ways.push("`--yes` agrees to all of it.".to_owned());
    let fail =
        Fail::new(code::USAGE, "this takes data away, and nobody is there to be asked", ways.join(" "));
    Err(Fail { evidence: lines.to_vec(), ..fail })
}

/// The machines that a run to be gone on with was to take away. Those that are gone pass as such.
pub fn outstanding(world: &World, steps: &[crate::event::StepInfo]) -> Vec<Node> {
    let seen = world.seen();
    let view = View::new(&world.cluster, &seen);
    let goes = steps.iter().filter(|s| s.id.ends_with("/machine"));
    let unknown = |name: &str| Node { name: name.to_owned(), ..world.cluster.nodes[0].clone() };
    let node = |name: &String| leaver(&view, name).unwrap_or_else(|| unknown(name));
    goes.filter_map(|s| s.node.as_ref()).map(node).collect()
}

/// Names on the command line: of the spec's nodes, or of what is left of former ones.
pub fn targets(
    context: &Context,
    cluster: &crate::spec::Cluster,
    names: &[String],
) -> Result<Vec<String>, Fail> {
    let state = State::of(&cluster.base, &cluster.name);
    let memory = state.memory();
    let former = |name: &String| {
        memory.contains_key(name) || state.dir().join(".vagrant/machines").join(name).is_dir()
    };
    let unknown: Vec<String> =
        names.iter().filter(|n| cluster.node(n).is_none() && !former(n)).cloned().collect();
    context.targets(cluster, &unknown)?;
    Ok(names.to_vec())
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
        .filter(|e| e.path().join(".vagrant").is_dir())
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

/// How a plan's notes are shown: what is more than steps can say.
pub fn worth_saying(all: &[Drift]) -> impl Iterator<Item = &Drift> {
    all.iter().filter(|d| d.destroys() || d.mend == Mend::Note || d.then.contains("shut down"))
}

/// True if a plan does anything.
pub fn is_due(plan: &Plan, all: &[Drift]) -> bool {
    plan.steps.iter().any(|s| !matches!(s.check, Check::Done(_))) || all.iter().any(Drift::counts)
}
