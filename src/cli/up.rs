//! `p1 up`.

use std::cell::RefCell;

use super::args::Up;
use super::change;
use super::context::Context;
use super::doctor;
use super::error::{CliError, code};
use super::fork;
use super::here;
use super::kept;
use super::plan;
use super::run::{self, Job};
use crate::access::World;
use crate::event::VerbName;
use crate::observe::look_at_ground;
use crate::observed::preflight::Finding;
use crate::plan::{ClusterStep, NodeStep, Plan};
use crate::ui::{Tone, count};
use crate::verbs::Verb;

/// Makes the cluster as the spec says.
pub fn up(context: &Context, args: &Up) -> Result<(), CliError> {
    if args.dry_run {
        return plan::plan(context, &args.looks, &args.replace, args.fresh);
    }
    let cluster = context.spec_with_warnings()?;
    let targets = context.targets(&cluster, &args.looks.nodes.nodes)?;
    if args.setup && context.global.offline {
        let hint = "Run `p1 doctor --fix` while there is a connection.";
        return Err(CliError::new(
            code::USAGE,
            "`--setup` installs packages, which `--offline` forbids",
            hint,
        ));
    }
    let replace = context.targets(&cluster, &args.replace)?;
    if let Some(other) = replace.iter().find(|n| !targets.is_empty() && !targets.contains(n)) {
        let what = format!("`{other}` is to be replaced, and is not one of the nodes that `up` is for");
        return Err(CliError::new(code::USAGE, what, "Name it among the nodes as well."));
    }
    if args.setup {
        doctor::set_up(context, &cluster)?;
    }
    if let Some(made) = fork::unfinished(context, &cluster) {
        return made;
    }
    let alone = targets.is_empty() && replace.is_empty() && args.only.is_none();
    let keeps = alone && (args.keep || cluster.keep);
    if alone
        && !args.fresh
        && let Some(moment) = kept::to_restore(context, &cluster)?
    {
        let at = kept::when(&moment);
        eprintln!("note: this cluster is kept as of {at} and is restored; `--fresh` makes it the long way");
        return kept::restore(context, cluster, &moment);
    }
    let (again, key) = (cluster.clone(), RefCell::new(None));
    let job = Job {
        verb: Verb::of(if args.only.is_some() { VerbName::Machines } else { VerbName::Up }),
        replace: replace.clone(),
        targets,
        subject: keeps.then(|| kept::TO_KEEP.to_owned()),
        retry_of: None,
        deep: args.looks.deep,
    };
    let after = |world: &World| *key.borrow_mut() = world.kept_key();
    let report = run::run_then(context, cluster, job, &after, &|world, plan| {
        if let Some(note) = change::neighbours(world) {
            eprintln!("note: {note}");
        }
        if let Some(note) = change::not_replaced(world) {
            eprintln!("note: {note}");
        }
        preflight(context, world, plan)?;
        if !args.skip_preflight {
            existing(context, world)?;
        }
        Ok(ask_for_namespaces(context, world))
    })?;
    run::verdict(&report)?;
    if args.only.is_some() {
        let p1 = context.called();
        eprintln!("`{p1} ssh` and `{p1} exec` reach them; `{p1} up` goes on from here");
    }
    if keeps {
        return kept::keep(context, again, key.into_inner());
    }
    Ok(())
}

/// A namespace that left the spec goes by itself only if nothing in it is anybody else's. Without a
/// yes it stays, and `up` goes on. Those that were agreed to.
fn ask_for_namespaces(context: &Context, world: &World) -> Vec<String> {
    let mut agreed = Vec::new();
    for (name, others) in world.seen().apps.clone().map(|a| a.held).unwrap_or_default() {
        let shown: Vec<&str> = others.iter().take(3).map(String::as_str).collect();
        let more = if others.len() > 3 { format!(" and {} more", others.len() - 3) } else { String::new() };
        let question = format!(
            "The namespace {name} left the spec. p1 did not apply {}{more} in it. Delete all of it?",
            shown.join(", ")
        );
        match context.ask(&question) {
            Ok(true) => agreed.push(name),
            // Without a terminal as after a no.
            Ok(false) | Err(_) => eprintln!("the namespace {name} stays"),
        }
    }
    agreed
}

/// Whether k3s can run on the machines that exist already: of all of them everything is told, before anything is changed.
fn existing(context: &Context, world: &World) -> Result<(), CliError> {
    let findings = look_at_ground(world);
    let shown = |f: &Finding| {
        let text = format!("{}: {}", f.node, f.what);
        context.shown(&if f.remedy.is_empty() { text } else { format!("{text}. {}", f.remedy) })
    };
    let (problems, warnings): (Vec<&Finding>, Vec<&Finding>) = findings.iter().partition(|f| f.problem);
    for finding in warnings {
        eprintln!("{} {}", context.paint().tone(Tone::Warn, "warning:"), shown(finding));
    }
    if problems.is_empty() {
        return Ok(());
    }
    let what = match problems.len() {
        1 => "a machine is not ready for k3s".to_owned(),
        n => format!("machines are not ready for k3s: {}", count(n, "finding")),
    };
    let hint = "Nothing was changed on them. `p1 up --skip-preflight` begins all the same.";
    Err(CliError {
        evidence: problems.into_iter().map(shown).collect(),
        ..CliError::new(code::HOST, what, hint)
    })
}

/// Machines can only be made on a host that is ready for it; told before anything is begun.
pub fn preflight(context: &Context, world: &World, plan: &Plan) -> Result<(), CliError> {
    here::must_fit(context, plan)?;
    if context.global.offline {
        let missing =
            crate::access::missing(world, plan.is_due(ClusterStep::Box), plan.is_due(ClusterStep::Artifacts));
        if !missing.is_empty() {
            let hint = "`p1 artifacts fetch` fills a folder on a host with a connection, which the spec here names as \
                        `k3s.artifacts.dir`; `p1 box add --help` says how to take the file of a box that was built elsewhere.";
            let what = "p1 is offline, and required files are missing on this host";
            return Err(CliError { evidence: missing, ..CliError::new(code::HOST, what, hint) });
        }
    }
    let new = plan.nodes_for(NodeStep::Vm);
    if new.is_empty() {
        return Ok(());
    }
    doctor::must_be_ready(context, world, &new)
}
