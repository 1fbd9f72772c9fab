//! Snapshots of all machines at one moment, memory included, and the way back to them.
//!
//! All machines are paused, each is written down, and each goes on as soon as it is written: what it
//! does then reaches no other before that one is written too, since a paused machine hears nothing.
//! The way back is the same: none runs before all are restored.

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;

use super::shared::back;
use super::shared::kubeconfig::fetch;
use super::{ClusterDef, Ctx, NodeCtx, NodeDef, Step, asked, asked_of, named, named_of};
use crate::access::World;
use crate::engine::StepError;
use crate::event::{Outcome, VerbName};
use crate::machines::{Cap, Machine, MachineState, Note, Snapshot};
use crate::observe;
use crate::os::Cancel;
use crate::os::files;
use crate::plan::{After, ClusterStep, NodeStep, Per};
use crate::spec::{Cluster, Node};
use crate::state::Unfinished;

/// The moment: every machine of the cluster is paused.
pub const PAUSE: Step = Step::Cluster(ClusterDef {
    name: ClusterStep::Pause,
    title: "pause the machines",
    after: &[],
    on_demand: false,
    needs: Some(Cap::Snapshot),
    retry: false,
    check: asked,
    inputs: named,
    apply: pause,
});

/// One machine is written down, and goes on.
pub const TAKE: Step = Step::Node(NodeDef {
    name: NodeStep::Take,
    title: "write down disk and memory",
    per: Per::Node,
    after: &[After::Cluster(ClusterStep::Pause)],
    needs: Some(Cap::Snapshot),
    retry: false,
    check: asked_of,
    inputs: named_of,
    apply: take,
});

/// One machine is put back; it stays paused.
pub const RESTORE: Step = Step::Node(NodeDef {
    name: NodeStep::Restore,
    title: "put the machine back",
    per: Per::Node,
    after: &[],
    needs: Some(Cap::Snapshot),
    retry: false,
    check: asked_of,
    inputs: named_of,
    apply: restore,
});

/// All of them go on.
pub const RESUME: Step = Step::Cluster(ClusterDef {
    name: ClusterStep::Resume,
    title: "resume the machines",
    after: &[After::Node(NodeStep::Restore)],
    on_demand: false,
    needs: Some(Cap::Snapshot),
    retry: false,
    check: asked,
    inputs: named,
    apply: resume,
});

/// The clock of a machine stood still while it was paused, or is that of the snapshot.
pub const CLOCK: Step = Step::Node(NodeDef {
    name: NodeStep::Clock,
    title: "set the clock",
    per: Per::Node,
    after: &[After::Node(NodeStep::Take), After::Cluster(ClusterStep::Resume)],
    needs: Some(Cap::Snapshot),
    retry: true,
    check: asked_of,
    inputs: named_of,
    apply: |ctx| back::set_clock(ctx, true),
});

/// The kubeconfig is that of the k3s which the snapshot has.
pub const KUBECONFIG: Step = Step::Cluster(ClusterDef {
    name: ClusterStep::Kubeconfig,
    title: "fetch the kubeconfig",
    after: &[After::LeadServer(NodeStep::Clock)],
    on_demand: false,
    needs: Some(Cap::Snapshot),
    retry: true,
    check: asked,
    inputs: named,
    apply: fetch_kubeconfig,
});

/// Nodes that were Ready at that moment are so again, and show that they live.
pub const READY: Step = Step::Node(NodeDef {
    name: NodeStep::Ready,
    title: "be Ready again",
    per: Per::Node,
    after: &[After::Cluster(ClusterStep::Resume)],
    needs: Some(Cap::Snapshot),
    retry: false,
    check: asked_of,
    inputs: named_of,
    apply: be_ready,
});

/// One machine's snapshot is removed.
pub const FORGET: Step = Step::Node(NodeDef {
    name: NodeStep::Forget,
    title: "remove the snapshot",
    per: Per::Node,
    after: &[],
    needs: Some(Cap::Snapshot),
    retry: true,
    check: asked_of,
    inputs: named_of,
    apply: forget,
});

/// Lets go on what this run paused and nobody let go on: steps that never began, or failed. To be
/// called when a run ends, however it ends.
pub fn resume_paused(world: &World) -> Result<(), StepError> {
    let mut left = BTreeSet::new();
    world.note(|seen| left = std::mem::take(&mut seen.run.paused));
    // Even when the user ended the run: a machine that stays paused looks like one that died.
    world.machines.resume(&world.cluster, &left, &Cancel::new()).map_err(StepError::from)
}

fn go_on(world: &World, node: &str) -> Result<(), StepError> {
    world.machines.resume(&world.cluster, &[node.to_owned()].into(), &Cancel::new())?;
    world.note(|seen| {
        seen.run.paused.remove(node);
    });
    Ok(())
}

/// A cluster's snapshot.
#[derive(Clone, Debug, PartialEq)]
pub struct Set {
    /// What people call it.
    pub name: String,
    /// As each of its machines has it.
    pub note: Note,
    /// By node that has it: the bytes of memory in it, where that can be told.
    pub has: BTreeMap<String, Option<u64>>,
}

impl Set {
    /// Nodes whose machine does not have it: it was cut off, or the machine was replaced.
    pub fn lacks(&self) -> Vec<&str> {
        let lacks = |n: &&String| !self.has.contains_key(*n);
        self.note.nodes.iter().filter(lacks).map(String::as_str).collect()
    }

    /// Bytes of memory in all of it.
    pub fn bytes(&self) -> Option<u64> {
        self.has.values().copied().sum()
    }

    /// Why the cluster cannot go back to it: what is wrong, and what to do.
    pub fn obstacle(&self, machines: &BTreeMap<String, Machine>) -> Option<(String, String)> {
        let lacks = self.lacks();
        if !lacks.is_empty() {
            let gone = format!(
                "the snapshot `{}` is not whole: the machine of {} does not have it",
                self.name,
                lacks.join(" and of ")
            );
            return Some((
                gone,
                format!(
                    "It was cut off, or the machine was recreated since. `p1 snapshot delete {}` removes what there is of it.",
                    self.name
                ),
            ));
        }
        let later = machines
            .iter()
            .find(|(node, m)| m.state != MachineState::Absent && !self.note.nodes.contains(node));
        later.map(|(node, _)| {
            (
                format!("the snapshot `{}` is from before `{node}` was made", self.name),
                format!("`p1 destroy {node}` takes it away; after the restore `p1 up` makes it again."),
            )
        })
    }
}

/// The sets among the machines' snapshots, the newest first.
pub fn sets(found: &BTreeMap<String, Vec<Snapshot>>) -> Vec<Set> {
    let mut all: BTreeMap<(Timestamp, String), Set> = BTreeMap::new();
    for (node, snapshots) in found {
        for one in snapshots {
            let key = (one.note.at, format!("{} {}", one.note.set, one.name));
            let set = all.entry(key).or_insert_with(|| Set {
                name: one.name.clone(),
                note: one.note.clone(),
                has: BTreeMap::new(),
            });
            set.has.insert(node.clone(), one.bytes);
        }
    }
    all.into_values().rev().collect()
}

/// The sets of a cluster. The machines have to have been looked at.
pub fn look(world: &World) -> Result<Vec<Set>, StepError> {
    Ok(sets(&world.machines.list_snapshots(&world.cluster, &there(world), &world.cancel)?))
}

/// The nodes whose machines exist, are ours and can be kept.
fn there(world: &World) -> BTreeSet<String> {
    let ours = |m: &Machine| m.state != MachineState::Absent && !m.foreign && m.can.has(Cap::Snapshot);
    let seen = world.seen();
    let there = seen.machines.iter().filter(|(_, m)| ours(m) && m.id.is_some());
    there.map(|(node, _)| node.clone()).collect()
}

fn name(world: &World) -> Result<String, StepError> {
    world.seen().request.subject.clone().ok_or_else(|| StepError::new("no snapshot was named", ""))
}

/// Why machines cannot be written down now.
pub fn unfit(cluster: &Cluster, machines: &BTreeMap<String, Machine>) -> Option<StepError> {
    let state = |n: &Node| machines.get(&n.name).map_or(MachineState::Absent, |m| m.state.clone());
    let odd =
        cluster.nodes.iter().find(|n| !matches!(state(n), MachineState::Running | MachineState::Paused))?;
    let (what, hint) = match state(odd) {
        MachineState::Absent => ("does not exist".to_owned(), "`p1 up` makes it."),
        state => (format!("is {state}"), "`p1 start` starts it."),
    };
    Some(StepError::new(format!("the machine of `{}` {what}: it has no memory to be kept", odd.name), hint))
}

fn pause(ctx: &Ctx<'_>) -> Result<Option<String>, StepError> {
    let (world, cancel) = (ctx.world, ctx.control.cancel());
    let name = name(world)?;
    let machines = world.look_at_machines()?;
    if let Some(error) = unfit(&world.cluster, &machines) {
        return Err(error);
    }
    let nodes = there(world);
    for set in look(world)?.into_iter().filter(|s| s.name == name) {
        if set.lacks().is_empty() {
            return Ok(Some("it was taken before".into()));
        }
        ctx.control.says("removing what an interrupted run left of it");
        for node in set.has.keys() {
            world.machines.snapshots(node)?.remove(&world.cluster, node, &name, cancel)?;
        }
        ctx.control.log("removed what an interrupted run left of this snapshot");
    }
    // While they run: what the API says of them when they are paused comes too late.
    if world.seen().here.kubeconfig {
        observe::look_at_api(world);
    }
    let api = world.seen().api.clone().unwrap_or_default();
    let is_ready = |node: &&String| api.get(*node).is_some_and(|status| status.ready);
    world.note(|seen| seen.run.paused.clone_from(&nodes));
    world.machines.pause(&world.cluster, &nodes, cancel)?;
    let note = Note {
        set: world.run.clone(),
        at: world.now(),
        nodes: nodes.iter().cloned().collect(),
        ready: nodes.iter().filter(is_ready).cloned().collect(),
    };
    world.note(|seen| seen.run.moment = Some(note));
    Ok(None)
}

fn take(ctx: &NodeCtx<'_>) -> Result<Option<String>, StepError> {
    let (world, node) = (ctx.world, ctx.node);
    let Some(note) = world.seen().run.moment.clone() else { return Ok(Some("it was taken before".into())) };
    let (name, machines) = (name(world)?, world.machines.snapshots(&node.name)?);
    let taken = machines.take(&world.cluster, &node.name, (&name, &note), ctx.control.cancel());
    let goes_on = go_on(world, &node.name);
    taken?;
    goes_on.map(|()| None)
}

/// The set that the run goes back to, looked for once.
fn chosen(world: &World) -> Result<Note, StepError> {
    let _one = world.getting();
    if let Some(note) = &world.seen().run.moment {
        return Ok(note.clone());
    }
    let name = name(world)?;
    let machines = world.look_at_machines()?;
    let set = look(world)?.into_iter().find(|s| s.name == name);
    let set = set.ok_or_else(|| {
        StepError::new(
            format!("there is no snapshot `{name}`"),
            "`p1 snapshot list` shows those that there are.",
        )
    })?;
    if let Some((what, hint)) = set.obstacle(&machines) {
        return Err(StepError::new(what, hint));
    }
    world.note(|seen| seen.run.moment = Some(set.note.clone()));
    Ok(set.note)
}

/// Notes that machines are put back, before the first one is: until all of them are, they are of different
/// moments. What was begun before with the cluster's data is over by it.
pub fn begin(world: &World) -> Result<(), StepError> {
    let subject = world.seen().request.subject.clone();
    let since = world.now();
    let what = Unfinished {
        verb: VerbName::RestoreSnapshot.to_string(),
        id: world.run.clone(),
        subject,
        since,
        settled: false,
    };
    Ok(world.state.begin(&what)?)
}

/// They are of one moment: all were put back and go on, or none was touched.
pub fn end(world: &World, outcomes: &BTreeMap<String, Outcome>) -> Result<(), StepError> {
    let mut restores = outcomes.iter().filter(|(id, _)| NodeStep::Restore.is(id)).map(|(_, o)| o);
    let none = restores.clone().all(|o| matches!(o, Outcome::Blocked { .. } | Outcome::Skipped { .. }));
    let all =
        restores.all(Outcome::passed) && outcomes.get(&ClusterStep::Resume.id()).is_some_and(Outcome::passed);
    if none || all {
        world.state.end()?;
    }
    Ok(())
}

fn restore(ctx: &NodeCtx<'_>) -> Result<Option<String>, StepError> {
    let (world, node) = (ctx.world, ctx.node);
    chosen(world)?;
    world.forget_node(&node.name);
    let (name, id) = (name(world)?, world.machines.id(&node.name).unwrap_or_default());
    let cancel = ctx.control.cancel();
    world.machines.snapshots(&node.name)?.restore(&world.cluster, &node.name, &name, cancel)?;
    // With the machine's description of then came its owner of then.
    if let Some(make) = world.machines.of(&node.name).make() {
        make.own_machine(&world.cluster, &node.name, &id, &world.owner()?, cancel)?;
    }
    Ok(None)
}

fn resume(ctx: &Ctx<'_>) -> Result<Option<String>, StepError> {
    let world = ctx.world;
    let nodes = chosen(world)?.nodes;
    let nodes = nodes.into_iter().collect();
    // What the API said was said by another past.
    world.forget_api();
    world.note(|seen| seen.api = None);
    world.machines.resume(&world.cluster, &nodes, ctx.control.cancel())?;
    world.look_at_machines()?;
    Ok(None)
}

fn fetch_kubeconfig(ctx: &Ctx<'_>) -> Result<Option<String>, StepError> {
    let world = ctx.world;
    if chosen(world)?.ready.is_empty() {
        files::remove_if_there(&world.state.kubeconfig())?;
        world.forget_api();
        return Ok(Some("no node was Ready then; `p1 up` continues from there".into()));
    }
    fetch(ctx)
}

fn be_ready(ctx: &NodeCtx<'_>) -> Result<Option<String>, StepError> {
    if !chosen(ctx.world)?.ready.contains(&ctx.node.name) {
        return Ok(Some("it was not Ready then".into()));
    }
    back::be_ready(ctx)
}

fn forget(ctx: &NodeCtx<'_>) -> Result<Option<String>, StepError> {
    let (world, node) = (ctx.world, ctx.node);
    let name = name(world)?;
    if !there(world).contains(&node.name) {
        return Ok(Some("there is no machine".into()));
    }
    world.machines.snapshots(&node.name)?.remove(&world.cluster, &node.name, &name, ctx.control.cancel())?;
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn note(set: &str, at: &str, nodes: &[&str]) -> Note {
        let nodes = nodes.iter().map(ToString::to_string).collect();
        Note { set: set.into(), at: at.parse().unwrap(), nodes, ready: vec![] }
    }

    fn snapshot(name: &str, note: &Note, bytes: u64) -> Snapshot {
        Snapshot { name: name.into(), note: note.clone(), bytes: Some(bytes) }
    }

    fn machines(nodes: &[&str]) -> BTreeMap<String, Machine> {
        let one = |n: &&str| (n.to_string(), Machine { state: MachineState::Running, ..Machine::absent() });
        nodes.iter().map(one).collect()
    }

    #[test]
    fn machines_snapshots_become_sets_and_what_is_lost_shows() {
        let (old, new) = (
            note("r1", "2026-11-25T10:00:00Z", &["server", "worker"]),
            note("r2", "2026-11-25T11:00:00Z", &["server", "worker"]),
        );
        let found = BTreeMap::from([
            ("server".to_owned(), vec![snapshot("a", &old, 1), snapshot("b", &new, 2)]),
            ("worker".to_owned(), vec![snapshot("b", &new, 3)]),
        ]);
        let all = sets(&found);
        assert_eq!(all.iter().map(|s| s.name.as_str()).collect::<Vec<_>>(), ["b", "a"]);
        assert_eq!((all[0].lacks(), all[0].bytes()), (vec![], Some(5)));
        assert_eq!(all[1].lacks(), ["worker"]);
        assert_eq!(all[0].obstacle(&machines(&["server", "worker"])), None);
        let (what, hint) = all[1].obstacle(&machines(&["server", "worker"])).unwrap();
        assert!(
            what.contains("of worker does not have it") && hint.contains("p1 snapshot delete a"),
            "{what}"
        );
        let (what, hint) = all[0].obstacle(&machines(&["server", "worker", "late"])).unwrap();
        assert!(what.contains("before `late`") && hint.contains("p1 destroy late"), "{what}");
        let mut gone = machines(&["server", "worker", "late"]);
        gone.get_mut("late").unwrap().state = MachineState::Absent;
        assert_eq!(all[0].obstacle(&gone), None);
    }

    #[test]
    fn two_cut_off_runs_of_one_name_are_not_taken_for_a_whole_set() {
        let (one, other) = (
            note("r1", "2026-11-25T10:00:00Z", &["server", "worker"]),
            note("r2", "2026-11-25T10:05:00Z", &["server", "worker"]),
        );
        let found = BTreeMap::from([
            ("server".to_owned(), vec![snapshot("a", &one, 1)]),
            ("worker".to_owned(), vec![snapshot("a", &other, 1)]),
        ]);
        assert!(sets(&found).iter().all(|s| s.lacks().len() == 1));
    }

    #[test]
    fn a_machine_without_memory_is_named() {
        let cluster = crate::spec::fixture::cluster(1);
        assert!(unfit(&cluster, &machines(&["server", "worker-1"])).is_none());
        let cause = |machines| unfit(&cluster, &machines).unwrap().failure.cause;
        assert!(cause(machines(&["server"])).contains("`worker-1` does not exist"));
        let mut off = machines(&["server", "worker-1"]);
        off.get_mut("server").unwrap().state = MachineState::Off;
        assert!(cause(off).contains("`server` is off"));
    }
}
