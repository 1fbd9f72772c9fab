//! A run from its lock to its end, in three entries: [`open`], [`look`], [`run`]. Whoever calls them asks the user in between,
//! and prints.

use std::sync::Arc;
use std::time::Duration;

use super::{Decision, Intent, Refused, Steps, Takes, Verb, decide};
use crate::access::{Claims, World};
use crate::engine::{self, Report, Run, StepError};
use crate::event::{Event, Kind, StepInfo, VerbName};
use crate::explain::{Explain, FailureKind, seconds};
use crate::journal::{Record, Writer};
use crate::machines::{self, Batch, Make, Orphan, Whose};
use crate::observe::{Depth, look_at_box, look_at_given, look_at_hosting, look_at_provisioners, observe};
use crate::observed::View;
use crate::observed::drift::node_as_made;
use crate::observed::refusal::{not_finished, refusal};
use crate::os::lock;
use crate::plan::{At, Check, ClusterStep, NodeStep, Plan};
use crate::redact::Redactor;
use crate::spec::{self, Node};
use crate::steps::shared::batch::finish;
use crate::steps::{fault, files, snapshot};

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
    /// Nodes that were named to be recreated.
    pub replace: Vec<String>,
}

/// Why a run does not begin, or does not go on.
#[derive(Debug)]
pub enum Error {
    /// Something failed.
    Step(StepError),
    /// What was asked for, or what is there, does not allow it.
    Refused(Refused),
    /// Another folder has the cluster, or another p1 its lock.
    Contested(StepError),
    /// A node was named for what its machine cannot.
    Unable(StepError),
}

impl From<StepError> for Error {
    fn from(error: StepError) -> Self {
        Self::Step(error)
    }
}

impl From<Refused> for Error {
    fn from(refused: Refused) -> Self {
        Self::Refused(refused)
    }
}

impl<E: Explain> From<E> for Error {
    fn from(error: E) -> Self {
        Self::Step(error.into())
    }
}

/// What is to be said before a run has a screen, a line each.
pub type Tell<'a> = &'a dyn Fn(&str);

/// Hears of a run while it goes on.
pub trait Audience {
    /// Something happened.
    fn event(&self, event: Event);
    /// Something is to be said that is no event.
    fn note(&self, text: &str);
}

/// The cluster is this folder's, no p1 of before is at work on it, and nothing that is unfinished is in the way. `over`: take
/// it over from another folder, waiting so long for that one's lock.
pub fn open(world: &World, job: &Job, over: Option<Duration>, tell: Tell<'_>) -> Result<(), Error> {
    claim(world, job, over, tell)?;
    survive(world, job.verb, tell)?;
    unfinished(world, job.verb)?;
    // That one says itself what it could not end.
    if job.verb.name != VerbName::HealFault {
        fault::overdue(world, tell)?;
    }
    Ok(())
}

/// Looks at the cluster and decides what the run does.
pub fn look(world: &Arc<World>, job: &Job) -> Result<Decision, Error> {
    let verb = job.verb;
    let intent = Intent { verb, targets: &job.targets, replace: &job.replace };
    world.note(|seen| {
        intent.note(&world.cluster, seen);
        seen.request.subject.clone_from(&job.subject);
    });
    look_at_given(world);
    let decision = match &job.retry_of {
        Some(record) => {
            let plan = outstanding(world, verb, record)?;
            let seen = world.seen();
            if verb.changes_k3s()
                && let Some(refusal) = refusal(&View::new(&world.cluster, &seen))
            {
                return Err(Refused::There(refusal).into());
            }
            Decision::to_do(plan, seen.request.leaving.clone())
        }
        None => {
            let seen = observe(world, if job.deep { Depth::Inside } else { verb.depth })?;
            let seen = match verb.name {
                // Whether a plug may be pulled depends on it.
                VerbName::Fault => {
                    look_at_hosting(world);
                    world.seen()
                }
                _ => seen,
            };
            let seen = match job.replace.is_empty() {
                true => seen,
                false => {
                    // It was not looked at for machines that run.
                    look_at_box(world, true);
                    world.seen()
                }
            };
            let decision = decide(&world.cluster, &seen, &intent);
            if let Some(refused) = decision.refused {
                return Err(refused.into());
            }
            world.note(|seen| decision.note(seen));
            remember(world, &decision.plan)?;
            decision
        }
    };
    must_be_able(verb, &View::new(&world.cluster, &world.seen()), &job.targets).map_err(Error::Unable)?;
    must_be_reached(world, verb)?;
    Ok(decision)
}

/// Runs the plan. `start` opens what hears of it; `agreed` are the namespaces that go with all that is in them.
pub fn run<'a, E: From<Error>>(
    world: &Arc<World>,
    job: &Job,
    plan: &Plan,
    agreed: Vec<String>,
    tell: Tell<'_>,
    start: impl FnOnce(&Redactor) -> Result<Box<dyn Audience + 'a>, E>,
) -> Result<Report, E> {
    let batch = Arc::new(Batch::default());
    begin(world, job, plan, agreed, &batch, tell)?;
    let redactor = world.redactor();
    let heard = start(&redactor)?;
    Ok(engine(world, job, plan, &batch, &redactor, &*heard)?)
}

fn begin(
    world: &World,
    job: &Job,
    plan: &Plan,
    agreed: Vec<String>,
    batch: &Batch<StepError>,
    tell: Tell<'_>,
) -> Result<(), Error> {
    let verb = job.verb;
    let left_out = must_be_able(verb, &View::new(&world.cluster, &world.seen()), &job.targets);
    left_out.map_err(Error::Unable)?.iter().for_each(|what| tell(&format!("note: {what}")));
    world.note(|seen| seen.request.agreed = agreed);
    if verb.traits.makes_secrets {
        let told = world.tokens_of_now(&mut |amiss| tell(&format!("note: {amiss}")));
        // Servers that do not run yet are asked when they do, by the step that needs it.
        let later = |n: &Node| {
            world.seen().machines.get(&n.name).is_some_and(|m| m.state != machines::MachineState::Running)
        };
        if !world.cluster.servers().any(later) {
            told?;
        }
    }
    batch.plan(to_be_made(world, plan));
    if verb.takes_all(&job.targets)
        && let Some(kept) = world.keep_token()?
    {
        tell(&format!(
            "note: the datastore of `datastore-endpoint` stays as it is. What opens its data is kept in {}, and the \
             next `p1 up` takes it; remove it when the datastore is emptied",
            kept.display()
        ));
    }
    if verb.traits.ends_faults {
        let nodes = world.seen().request.targets.clone();
        fault::end_for(world, &nodes, verb.traits.takes == Takes::All, tell)?;
    }
    if let Some(begin) = verb.traits.begin {
        begin(world)?;
    }
    Ok(())
}

fn engine(
    world: &Arc<World>,
    job: &Job,
    plan: &Plan,
    batch: &Arc<Batch<StepError>>,
    redactor: &Redactor,
    heard: &dyn Audience,
) -> Result<Report, Error> {
    let verb = job.verb;
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
    let run = Run {
        started,
        jobs: world.jobs,
        retry: &world.cluster.retry,
        logs: &logs,
        cancel: &world.cancel,
        redactor,
    };
    let leaving = world.seen().request.leaving.clone();
    let steps = Steps { verb, world: Arc::clone(world), batch: Arc::clone(batch), leaving };
    let report = engine::run(plan, &steps, run, &mut writer, &mut |event| heard.event(event.clone()));
    if let (Some(end), Ok(report)) = (verb.traits.end, &report) {
        end(world, &report.outcomes)?;
    }
    if let Err(error) = snapshot::resume_paused(world) {
        heard.note(&format!("machines are still paused ({}); `p1 up` resumes them", error.failure.cause));
    }
    if let Err(error) = files::end(world) {
        heard.note(&format!(
            "the disk with k3s' files is left until k3s is put on a node again, or the cluster destroyed ({})",
            error.failure.cause
        ));
    }
    world.forget_packed();
    for (node, error) in finish(batch, &mut || heard.note("waiting for Vagrant to end")) {
        if report.as_ref().is_ok_and(|r| r.outcomes.get(&NodeStep::Vm.id(&node)).is_some_and(|o| o.passed()))
        {
            let cause = redactor.text(&error.failure.cause);
            heard.note(&format!("vagrant ended badly for {node} after it was up: {cause}"));
        }
    }
    Ok(report?)
}

/// The cluster is this folder's before anything of it is changed: nothing is done to another folder's, a folder
/// that was moved takes over, and what nobody is noted for is noted now.
fn claim(world: &World, job: &Job, over: Option<Duration>, tell: Tell<'_>) -> Result<(), Error> {
    let claims = Claims::look(world)?;
    if claims.contested().is_some() {
        let Some(wait) = over else {
            return Err(Error::Contested(contested(world, &claims, job.verb.name, &job.targets)));
        };
        let whom = claims.contested().map(Whose::name).unwrap_or_default();
        let _locks = claims.lock_others(world, job.verb.name.as_str(), wait).map_err(|e| match e {
            lock::Error::Held { .. } => Error::Contested(e.into()),
            e => e.into(),
        })?;
        claims.take(world)?;
        tell(&format!(
            "note: the cluster `{}` belonged to {whom}; it belongs to this folder now",
            world.cluster.name
        ));
        return Ok(());
    }
    if let Some(former) = claims.moved() {
        tell(&format!(
            "note: the cluster `{}` belonged to {}, which is gone; it belongs to this folder now",
            world.cluster.name,
            former.place().display()
        ));
    }
    // Of what goes as a whole nobody needs to be noted.
    if claims.moved().is_some() || !job.verb.takes_all(&job.targets) {
        claims.take(world)?;
    }
    Ok(())
}

/// Why nothing is done to a cluster that another folder has.
pub fn contested(world: &World, claims: &Claims, verb: VerbName, targets: &[String]) -> StepError {
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
    let error = StepError::new(what, hint).kind(FailureKind::Conflict);
    error.evidence(claims.evidence(name)).next(["p1 status".to_owned()])
}

/// What was begun with the cluster's data and has not come to its end must not be buried by another verb,
/// which would take what is there for the cluster.
fn unfinished(world: &World, verb: &Verb) -> Result<(), Error> {
    let found = world.state.unfinished()?;
    world.note(|seen| seen.here.unfinished.clone_from(&found));
    match found {
        Some(what) if !what.settled && !verb.passes(&what) => Err(Refused::There(not_finished(&what)).into()),
        _ => Ok(()),
    }
}

/// A p1 that was killed leaves behind what makes its machines, which goes on and holds their locks.
/// What boots machines waits for it, since it does what is wanted; everything else ends it.
fn survive(world: &World, verb: &Verb, tell: Tell<'_>) -> Result<(), Error> {
    world
        .machines
        .makers()
        .filter_map(Make::left_behind)
        .try_for_each(|left| outlive(world, verb, &left, tell))
}

fn outlive(world: &World, verb: &Verb, left: &Orphan, tell: Tell<'_>) -> Result<(), Error> {
    let (name, pid) = (left.name, left.pid);
    if verb.boots() {
        let bound = world.cluster.timeouts.boot;
        let patience = seconds(bound);
        tell(&format!("waiting up to {patience} for the {name} that a killed p1 left at work (pid {pid})"));
        if left.outlast(bound) {
            return Ok(());
        }
    }
    tell(&format!("ending the {name} that a killed p1 left at work (pid {pid})"));
    if left.end() {
        return Ok(());
    }
    Err(StepError::new(
        format!("the {name} that a killed p1 left at work (pid {pid}) does not end"),
        format!("Look what it does, and end it: kill -9 -{pid}"),
    )
    .into())
}

/// A verb that has nothing to do for a machine, whatever its state: a failure where the node was named; otherwise what is
/// to be said of it.
fn must_be_able(verb: &Verb, view: &View<'_>, targets: &[String]) -> Result<Vec<String>, StepError> {
    let mut notes = Vec::new();
    let nodes = &view.cluster.nodes;
    if let (true, Some(lack)) = (targets.is_empty(), verb.lacks(view, &nodes[0]))
        && nodes.iter().all(|node| verb.lacks(view, node).is_some())
    {
        let what = format!("`p1 {}` does nothing for any node of this cluster: {}", verb.name, lack.told());
        let hint = "None of its machines is p1's own. Do it on them by hand.";
        return Err(StepError::new(what, hint).kind(FailureKind::Cannot));
    }
    for node in &view.cluster.nodes {
        let named = targets.contains(&node.name);
        if let Some(lack) = verb.lacks(view, node).filter(|_| named || targets.is_empty()) {
            let what = format!("`p1 {}` does nothing for {}: {}", verb.name, node.name, lack.told());
            if named {
                let hint = "Leave it out, or name no node: then p1 leaves it out.";
                return Err(StepError::new(what, hint).kind(FailureKind::Cannot));
            }
            // What the spec says itself is no news.
            notes.extend(Some(what).filter(|_| lack != super::Lack::K3s));
        }
    }
    Ok(notes)
}

/// What is asked over a network that is not there is not waited for. Some verbs mend it, others do without.
fn must_be_reached(world: &World, verb: &Verb) -> Result<(), Error> {
    if verb.has(ClusterStep::Link) || !verb.traits.reaches_nodes {
        return Ok(());
    }
    match world.seen().link.clone() {
        Some(lack) => Err(StepError::new(lack, "`p1 up` fixes it.").into()),
        None => Ok(()),
    }
}

/// The nodes whose machines have to be brought up. What is halted goes on without it, and what runs
/// still goes, or is started by the step that stopped it.
fn to_be_made(world: &World, plan: &Plan) -> Vec<String> {
    use machines::MachineState::{Paused, Running, Saved};
    let seen = world.seen();
    let by_itself = |n: &String| {
        seen.machines.get(n).is_some_and(|m| {
            !m.foreign
                && match m.state {
                    Paused | Running => true,
                    Saved => m.can.has(machines::Cap::Suspend),
                    _ => false,
                }
        })
    };
    plan.nodes_for(NodeStep::Vm).into_iter().filter(|n| !by_itself(n)).collect()
}

/// Nodes on which nothing is due are remembered as they are.
fn remember(world: &World, plan: &Plan) -> Result<(), Error> {
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
/// another look; the rest is checked when its turn comes.
fn outstanding(world: &Arc<World>, verb: &'static Verb, record: &Record) -> Result<Plan, Error> {
    // Several servers are restarted or started together by how they stand, which only they can say.
    let several = world.cluster.servers().count() > 1;
    observe(world, if several { verb.depth } else { Depth::Machines })?;
    look_at_provisioners(world);
    let leaving = going(world, &record.steps);
    let gone = |name: &str| GOES.iter().any(|step| record.passed(&step.id(name)));
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
        seen.machines.get(node).is_some_and(|m| m.state == machines::MachineState::Running && !m.foreign)
    };
    let anew = verb.begins_anew(&|step| record.passed(step));
    let look = |at: At<'_>| {
        let step = at.id();
        let goes = match at {
            // The provider's word is at hand, and it outweighs the journal's.
            At::Cluster(ClusterStep::Link) | At::Node { step: NodeStep::Vm, .. } => {
                return verb.condition(at, &view);
            }
            At::Node {
                step: NodeStep::Leave | NodeStep::Uninstall | NodeStep::Machine | NodeStep::Release,
                ..
            } => true,
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

/// The last step of a node that goes, whoever has its machine.
const GOES: [NodeStep; 2] = [NodeStep::Machine, NodeStep::Release];

/// The machines that a run to be gone on with was to take away. Those that are gone pass as such.
fn going(world: &World, steps: &[StepInfo]) -> Vec<Node> {
    let seen = world.seen();
    let view = View::new(&world.cluster, &seen);
    let goes = steps.iter().filter(|s| GOES.iter().any(|step| step.is(&s.id)));
    let unknown = |name: &str| Node { name: name.to_owned(), ..world.cluster.nodes[0].clone() };
    let node = |name: &String| node_as_made(&view, name).unwrap_or_else(|| unknown(name));
    goes.filter_map(|s| s.node.as_ref()).map(node).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::machines::tests::SshOnly;
    use crate::machines::{Fleet, Machine};
    use crate::observed::Observed;
    use crate::os::Cancel;
    use crate::spec::fixture;

    #[test]
    fn a_node_that_is_named_for_what_its_machine_cannot_is_a_failure_and_otherwise_a_note() {
        let cluster = fixture::cluster(1);
        let mut machines = Fleet::new(Box::new(SshOnly), vec![]).look(&cluster, &Cancel::new()).unwrap();
        machines.insert("server".into(), Machine::absent());
        let seen = Observed { machines, ..Observed::default() };
        let view = View::new(&cluster, &seen);
        let asked = |verb: VerbName, targets: &[&str]| {
            let targets: Vec<String> = targets.iter().map(ToString::to_string).collect();
            must_be_able(Verb::of(verb), &view, &targets)
        };
        let cause = asked(VerbName::Stop, &["server", "worker-1"]).unwrap_err().failure.cause;
        assert_eq!(cause, "`p1 stop` does nothing for worker-1: p1 cannot switch its machine on or off");
        assert_eq!(asked(VerbName::Stop, &["server"]).unwrap().len(), 0);
        assert_eq!(asked(VerbName::Stop, &[]).unwrap(), [cause]);
        assert_eq!(asked(VerbName::Up, &["worker-1"]).unwrap().len(), 0);
    }
}
