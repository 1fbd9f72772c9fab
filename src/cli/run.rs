//! Verbs that run steps: look, plan, run, tell.

use std::sync::Arc;

use super::change;
use super::context::Context;
use super::fail::{Fail, code};
use crate::access::{Claims, World};
use crate::engine::{self, Report, Run};
use crate::event::{Kind, Outcome, VerbName};
use crate::explain::seconds;
use crate::journal::{self, Record, Writer};
use crate::machines::{self, Whose};
use crate::observe::{Depth, look_at_given, look_at_provisioners, observe};
use crate::observed::View;
use crate::observed::refusal::{not_finished, refusal};
use crate::os::lock;
use crate::plan::{At, Check, ClusterStep, NodeStep, Plan};
use crate::redact::Redactor;
use crate::spec::{self, Cluster};
use crate::state::State;
use crate::steps::{Batch, snapshot};
use crate::ui;
use crate::verbs::{Intent, Steps, Verb, decide};

/// A run to be.
pub struct Job {
    /// What is run.
    pub verb: &'static Verb,
    /// For which nodes; empty for all.
    pub targets: Vec<String>,
    /// What it is about beside nodes, such as a snapshot's name.
    pub subject: Option<String>,
    /// The run that is gone on with.
    pub retry_of: Option<Record>,
    /// Look inside every node.
    pub deep: bool,
}

/// Runs steps from the lock to the last line on the screen. `ready` is asked, with the plan, whether
/// it may go ahead; it may ask the user, or look at the host.
pub fn run(
    context: &Context,
    cluster: Cluster,
    job: Job,
    ready: &dyn Fn(&World, &Plan) -> Result<(), Fail>,
) -> Result<Report, Fail> {
    run_to(context, cluster, job, &[], &|_| Ok(()), ready)
}

/// The same, with nodes that were named to be made anew.
pub fn replacing(
    context: &Context,
    cluster: Cluster,
    job: Job,
    replace: &[String],
    ready: &dyn Fn(&World, &Plan) -> Result<(), Fail>,
) -> Result<Report, Fail> {
    run_to(context, cluster, job, replace, &|_| Ok(()), ready)
}

/// The same, with something to be done under the lock before anything is looked at.
pub fn run_to(
    context: &Context,
    cluster: Cluster,
    job: Job,
    replace: &[String],
    before: &dyn Fn(&World) -> Result<(), Fail>,
    ready: &dyn Fn(&World, &Plan) -> Result<(), Fail>,
) -> Result<Report, Fail> {
    let state = State::of(&cluster.base, &cluster.name);
    let kind = context.kind(&cluster, &state)?;
    let existed = state.exists();
    let lock = context.lock(&state, kind, job.verb.name.as_str())?;
    let world = context.world(cluster, kind);
    let result = claim(context, &world, &job)
        .and_then(|()| before(&world))
        .and_then(|()| locked(context, &world, &job, replace, ready));
    if job.verb.takes_all(&job.targets) && result.as_ref().is_ok_and(|r| r.success) {
        // Before the lock is freed: the next owner would lose its folder.
        state.remove()?;
    }
    if !existed && journal::runs(&state.runs()).is_empty() {
        // Nothing was begun: leave no folder behind that would look like a cluster.
        let _ = state.remove();
    }
    drop(lock);
    result
}

fn locked(
    context: &Context,
    world: &Arc<World>,
    job: &Job,
    replace: &[String],
    ready: &dyn Fn(&World, &Plan) -> Result<(), Fail>,
) -> Result<Report, Fail> {
    let verb = job.verb;
    survive(world, verb)?;
    let intent = Intent { verb, targets: &job.targets, replace };
    unfinished(world, verb)?;
    world.note(|seen| {
        intent.note(&world.cluster, seen);
        seen.request.subject.clone_from(&job.subject);
    });
    look_at_given(world);
    let plan = match &job.retry_of {
        Some(record) => {
            let plan = outstanding(world, verb, record)?;
            let seen = world.seen();
            if verb.changes_k3s()
                && let Some(refusal) = refusal(&View::new(&world.cluster, &seen))
            {
                return Err(refusal.into());
            }
            plan
        }
        None => {
            let seen = observe(world, if job.deep { Depth::Inside } else { verb.depth })?;
            let decision = decide(&world.cluster, &seen, &intent);
            change::must_be_agreed(context, world, &decision, replace)?;
            world.note(|seen| decision.note(seen));
            remember(world, &decision.plan)?;
            decision.plan
        }
    };
    must_be_reached(world, verb)?;
    ready(world, &plan)?;
    if verb.traits.makes_secrets {
        let told = world.tokens_of_now(&mut |amiss| eprintln!("note: {amiss}"));
        // Servers that do not run yet are asked when they do, by the step that needs it.
        let later = |n: &spec::Node| {
            world.seen().machines.get(&n.name).is_some_and(|m| m.state != machines::State::Running)
        };
        if !world.cluster.servers().any(later) {
            told?;
        }
    }
    let batch = Arc::new(Batch::default());
    batch.plan(for_vagrant(world, &plan));
    if verb.takes_all(&job.targets)
        && let Some(kept) = world.keep_token()?
    {
        eprintln!(
            "note: the datastore of `datastore-endpoint` stays as it is. What opens its data is kept in {}, and the \
             next `p1 up` takes it; remove it when the datastore is emptied",
            kept.display()
        );
    }
    if let Some(begin) = verb.traits.begin {
        begin(world)?;
    }

    let screen = ui::start(context.ui, Box::new(super::out::Data), Box::new(std::io::stderr()));
    let _signals = super::signals::watch(context.cancel.clone(), screen.sender())?;
    let mut writer = Writer::create(&world.state.runs(), &world.run)?;
    let started = Kind::RunStarted {
        run: world.run.clone(),
        cluster: world.cluster.name.clone(),
        verb: verb.name.to_string(),
        retry_of: job.retry_of.as_ref().map(|r| r.run.clone()),
        targets: job.targets.clone(),
        subject: job.subject.clone(),
        spec_digest: spec::digest(&world.cluster),
        banner: world.banner(),
        steps: Vec::new(),
    };
    let logs = world.state.logs().join(&world.run);
    let redactor = world.redactor();
    tell_of_panics(redactor.clone(), Some(screen.sender()));
    let run = Run {
        started,
        jobs: context.global.jobs,
        retry: &world.cluster.retry,
        logs: &logs,
        cancel: &context.cancel,
        redactor: &redactor,
    };
    let leaving = world.seen().request.leaving.clone();
    let steps = Steps { verb, world: Arc::clone(world), batch: Arc::clone(&batch), leaving };
    let sender = screen.sender();
    let report = engine::run(&plan, &steps, run, &mut writer, &mut |event| sender.event(event.clone()));
    if let (Some(end), Ok(report)) = (verb.traits.end, &report) {
        end(world, &report.outcomes)?;
    }
    if let Err(trouble) = snapshot::let_go(world) {
        sender
            .note(&format!("machines are still paused ({}); `p1 up` lets them go on", trouble.failure.cause));
    }
    for (node, trouble) in batch.finish(&mut || sender.note("waiting for Vagrant to end")) {
        if report.as_ref().is_ok_and(|r| r.outcomes.get(&NodeStep::Vm.id(&node)).is_some_and(|o| o.passed()))
        {
            let cause = redactor.text(&trouble.failure.cause);
            sender.note(&format!("vagrant ended badly for {node} after it was up: {cause}"));
        }
    }
    let mut board = screen.finish();
    board.forgotten = !world.state.runs().join(format!("{}.jsonl", world.run)).exists();
    tell_of_panics(redactor.clone(), None);
    // Also where the journal could not be written: what failed is worth knowing.
    eprint!("{}", ui::closing(&board, &context.ui, &context.called()));
    Ok(report?)
}

/// The cluster is this folder's before anything of it is changed: nothing is done to another folder's, a folder
/// that was moved takes over, and what nobody is noted for is noted now.
fn claim(context: &Context, world: &World, job: &Job) -> Result<(), Fail> {
    let claims = Claims::look(world)?;
    if claims.contested().is_some() {
        if !context.global.take_over {
            return Err(contested(world, &claims, job.verb.name, &job.targets));
        }
        let whom = claims.contested().map(Whose::name).unwrap_or_default();
        let _locks = claims.lock_others(world, job.verb.name.as_str(), context.global.wait).map_err(|e| {
            let code = if matches!(e, lock::Error::Held { .. }) { code::LOCKED } else { code::FAILED };
            Fail::of(code, &e)
        })?;
        claims.take(world)?;
        eprintln!(
            "note: the cluster `{}` belonged to {whom}; it belongs to this folder now",
            world.cluster.name
        );
        return Ok(());
    }
    if let Some(former) = claims.moved() {
        eprintln!(
            "note: the cluster `{}` belonged to {}, which is gone; it belongs to this folder now",
            world.cluster.name,
            former.place().display()
        );
    }
    // Of what goes as a whole nobody needs to be noted.
    if claims.moved().is_some() || !job.verb.takes_all(&job.targets) {
        claims.take(world)?;
    }
    Ok(())
}

/// Why nothing is done to a cluster that another folder has.
pub fn contested(world: &World, claims: &Claims, verb: VerbName, targets: &[String]) -> Fail {
    let name = &world.cluster.name;
    let whose = claims.contested().map(Whose::name).unwrap_or_default();
    let command = format!("`p1 {} --take-over`", [&[verb.to_string()], targets].concat().join(" "));
    let (what, hint) = match claims.contested() {
        Some(Whose::Copied(_)) => (
            format!("the cluster `{name}` belongs to {whose}, and this folder has a copy of its state"),
            format!(
                "Work in {whose}. {command} is for a folder that is to have the cluster from now on, in its place."
            ),
        ),
        _ if claims.contested_by_what_is_gone() => (
            format!("the cluster `{name}` belongs to {whose}, which is gone"),
            format!(
                "If it will not come back, {command} makes the cluster this folder's. Else give this one another \
                 `name` in the spec."
            ),
        ),
        _ => (
            format!("a cluster `{name}` of this host belongs to {whose}"),
            format!(
                "Give this one another `name`, and another `network.cidr`, in the spec. {command} is for a folder \
                 that is to have that cluster from now on."
            ),
        ),
    };
    Fail { evidence: claims.evidence(name), ..Fail::new(code::LOCKED, what, hint) }.next(["p1 status"])
}

/// What was begun with the cluster's data and has not come to its end must not be buried by another verb,
/// which would take what is there for the cluster.
fn unfinished(world: &World, verb: &Verb) -> Result<(), Fail> {
    let found = world.state.unfinished()?;
    world.note(|seen| seen.unfinished.clone_from(&found));
    match found {
        Some(what) if !what.settled && !verb.passes(&what) => Err(not_finished(&what).into()),
        _ => Ok(()),
    }
}

/// A p1 that was killed leaves its Vagrant behind, which goes on and holds the locks of its machines.
/// What boots machines waits for it, since it does what is wanted; everything else ends it.
fn survive(world: &World, verb: &Verb) -> Result<(), Fail> {
    let Some(pid) = world.vagrant.left_behind() else { return Ok(()) };
    if verb.boots() {
        let bound = world.cluster.timeouts.boot;
        let patience = seconds(bound);
        eprintln!("waiting up to {patience} for the Vagrant that a killed p1 left at work (pid {pid})");
        if world.vagrant.outlast(bound) {
            return Ok(());
        }
    }
    eprintln!("ending the Vagrant that a killed p1 left at work (pid {pid})");
    if world.vagrant.end_left_behind() {
        return Ok(());
    }
    Err(Fail::new(
        code::FAILED,
        format!("the Vagrant that a killed p1 left at work (pid {pid}) does not end"),
        format!("Look what it does, and end it: kill -9 -{pid}"),
    ))
}

/// What is asked over a network that is not there is not waited for. Some verbs mend it, others do without.
fn must_be_reached(world: &World, verb: &Verb) -> Result<(), Fail> {
    if verb.has(ClusterStep::Link) || !verb.traits.reaches_nodes {
        return Ok(());
    }
    match world.seen().link.clone() {
        Some(lack) => Err(Fail::new(code::FAILED, lack, "`p1 up` mends it.")),
        None => Ok(()),
    }
}

/// The nodes whose machines Vagrant has to bring up. What is halted goes on without it, and what runs
/// still goes, or is started by the step that stopped it.
fn for_vagrant(world: &World, plan: &Plan) -> Vec<String> {
    use machines::State::{Paused, Running};
    let machines = &world.seen().machines;
    let by_itself =
        |n: &String| machines.get(n).is_some_and(|m| matches!(m.state, Paused | Running) && !m.foreign);
    plan.nodes_for(NodeStep::Vm).into_iter().filter(|n| !by_itself(n)).collect()
}

/// Nodes on which nothing is due are remembered as they are.
fn remember(world: &World, plan: &Plan) -> Result<(), Fail> {
    let seen = world.seen();
    let told = |name: &str| seen.nodes[name].settings.clone().filter(|_| View::has_data(&seen.nodes[name]));
    let servers = seen.nodes.keys().map(String::as_str).filter(|name| told(name).is_some());
    world.remember_all(servers, |name, memory| memory.settings = told(name))?;
    let idle = |name: &str| {
        let mut steps = plan.steps.iter().filter(|s| s.info.node.as_deref() == Some(name)).peekable();
        steps.peek().is_some() && steps.all(|s| !s.check.may_run())
    };
    let idle = seen.nodes.keys().map(String::as_str).filter(|name| idle(name));
    world.remember_all(idle, |name, memory| {
        let facts = &*seen.nodes[name];
        (memory.facts, memory.joined) = (Some(facts.clone()), memory.joined || facts.runs());
    })?;
    Ok(())
}

/// The plan of a retry: what passed with the same inputs on the same machine counts as done without
/// another look; the rest is looked at when its turn comes.
fn outstanding(world: &Arc<World>, verb: &'static Verb, record: &Record) -> Result<Plan, Fail> {
    // Several servers are restarted or started together by how they stand, which only they can say.
    let several = world.cluster.servers().count() > 1;
    observe(world, if several { verb.depth } else { Depth::Machines })?;
    look_at_provisioners(world);
    let leaving = change::outstanding(world, &record.steps);
    let gone = |name: &str| record.passed(&NodeStep::Machine.id(name));
    // What is gone already is not to go again: the machine of that name is the new one.
    world.note(|seen| seen.request.leaving = leaving.iter().filter(|n| !gone(&n.name)).cloned().collect());
    let seen = world.seen();
    let view = View::new(&world.cluster, &seen);
    // Digests of now, to compare with those of then.
    let now = verb.plan_with(&view, &record.targets, &leaving, &|_| Check::Unknown(String::new()));
    let same = |step: &str| {
        let then = record.steps.iter().find(|s| s.id == step);
        let now = now.steps.iter().find(|s| s.info.id == step);
        matches!((then, now), (Some(a), Some(b)) if a.digest == b.info.digest)
    };
    let alive = |node: &str| {
        seen.machines.get(node).is_some_and(|m| m.state == machines::State::Running && !m.foreign)
    };
    let anew = verb.begins_anew(&|step| record.passed(step));
    let look = |at: At<'_>| {
        let step = at.id();
        let goes = match at {
            // The provider's word is at hand, and it outweighs the journal's.
            At::Cluster(ClusterStep::Link) | At::Node { step: NodeStep::Vm, .. } => {
                return verb.condition(at, &view);
            }
            At::Node { step: NodeStep::Leave | NodeStep::Uninstall | NodeStep::Machine, .. } => true,
            _ => false,
        };
        let there = at.of().is_none_or(|n| alive(&n.name) || goes || !verb.boots());
        match record.passed(&step) && same(&step) && there && !anew {
            true => Check::Done("done in the run before".into()),
            false => Check::Unknown("outstanding".into()),
        }
    };
    Ok(verb.plan_with(&view, &record.targets, &leaving, &look))
}

/// A panic is told where it does not break the screen, and without secrets. The step that it ends says
/// so too.
fn tell_of_panics(redactor: Redactor, screen: Option<ui::Sender>) {
    std::panic::set_hook(Box::new(move |panic| {
        let text = format!("p1 itself failed: {}", redactor.text(&panic.to_string()));
        match &screen {
            Some(screen) => screen.note(&text),
            None => eprintln!("{text}"),
        }
    }));
}

/// The exit code of a run.
pub fn verdict(report: &Report) -> Result<(), Fail> {
    match report {
        Report { success: true, .. } => Ok(()),
        Report { interrupted: true, .. } => {
            Err(Fail::told(code::INTERRUPTED, "interrupted").hint("`p1 retry` goes on.").next(["p1 retry"]))
        }
        _ => {
            let failed = report.outcomes.iter().filter_map(|(step, outcome)| match outcome {
                Outcome::Failed(failure) => Some((step, failure)),
                _ => None,
            });
            let failed: Vec<_> = failed.collect();
            let next = ui::wording::leads_on(failed.iter().map(|(_, failure)| &failure.next[..]), false);
            let Some((step, failure)) = failed.first() else {
                return Err(Fail::told(code::FAILED, "not all steps were run").next(next));
            };
            let more = match failed.len() - 1 {
                0 => String::new(),
                n => format!(" ({} failed beside it)", ui::count(n, "step")),
            };
            Err(Fail {
                kind: failure.kind.clone(),
                hint: failure.hint.clone(),
                evidence: failure.evidence.clone(),
                next,
                ..Fail::told(code::FAILED, format!("{step} failed: {}{more}", failure.cause))
            })
        }
    }
}
