//! The plan: which steps there are, in which order, which of them are needed and why.
//!
//! Pure: a function of the steps' definitions, the cluster and what was observed, so that a dry run
//! is real.

mod names;

use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;

use crate::event::StepInfo;
use crate::spec::{Cluster, Node, Role, Slot};

pub use names::{At, ClusterStep, NodeStep, StepName};

/// Whether a step has to run.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "need", content = "reason", rename_all = "snake_case")]
pub enum Check {
    /// The wanted state is there.
    Done(String),
    /// It is not, and why.
    Needed(String),
    /// It cannot be told yet, e.g. because the machine is off; looked at again when its turn comes.
    Unknown(String),
}

impl Check {
    /// Why, whatever it says: a fragment for the plan.
    pub fn reason(&self) -> &str {
        match self {
            Self::Done(r) | Self::Needed(r) | Self::Unknown(r) => r,
        }
    }

    /// False if there is nothing to do.
    pub fn may_run(&self) -> bool {
        !matches!(self, Self::Done(_))
    }
}

/// Which step, and how often it is taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Of {
    /// Once for the cluster.
    Cluster(ClusterStep),
    /// For nodes.
    Node(NodeStep, Per),
}

impl Of {
    /// Which step.
    pub const fn name(self) -> StepName {
        match self {
            Self::Cluster(step) => StepName::ClusterStep(step),
            Self::Node(step, _) => StepName::NodeStep(step),
        }
    }
}

/// How often a step of a node is taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Per {
    /// Once for every node.
    Node,
    /// Once for every provisioner of this slot and each of its nodes, in the spec's order on a node.
    Provisioner(Slot),
    /// Once for every machine that goes: of a node that left the spec, or that is recreated.
    Leaving,
}

/// What has to be done before a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum After {
    /// That step of the cluster.
    Cluster(ClusterStep),
    /// That step of this node (for a step of the cluster: of every node).
    Node(NodeStep),
    /// This node's step of that name, which leaves all that later steps ask about as it was: they are not
    /// looked at again for it.
    NodeUnchanged(NodeStep),
    /// For a step of a worker or of the cluster: that step of the server that leads, which is one that
    /// runs, or else the one that starts first.
    LeadServer(NodeStep),
    /// For a worker's step: that step of the other servers is over, whatever came of it. Passed over in a
    /// fresh cluster (see [`PlanInput::fresh`]).
    OtherServersEnded(NodeStep),
    /// For a node whose k3s runs: that step of all of these is over, whatever came of it.
    RunningNodesEnded(NodeStep),
    /// For a server's step: every worker's step of that name.
    Workers(NodeStep),
    /// That step of every node in the plan.
    EveryNode(NodeStep),
    /// This node's provisioners of that slot (for a step of the cluster: every node's).
    Provisioners(Slot),
    /// As [`After::Node`], whatever came of them, and even when the user asked to stop: for a step that
    /// cleans up.
    Ended(NodeStep),
    /// For a step of the cluster: every server's step of that name.
    Servers(NodeStep),
    /// The step of that name of the node before, so that they take turns.
    Before(NodeStep),
    /// The step of that name of the machine that goes and has this node's name or address.
    Leaving(NodeStep),
    /// For a server that goes: the step of that name of every machine that goes before it.
    LeavingBefore(NodeStep),
    /// For a server that goes: the step of that name of every server that is made in the place of those
    /// before it, and needs none of the others gone.
    ReplacementsBefore(NodeStep),
    /// That step of the nodes whose turn comes before this one's: see [`K3sState`]. In a fresh cluster the next
    /// server follows when this same step of the one before has passed.
    PreviousInOrder(NodeStep),
    /// The same, only where k3s runs already: what is changed there takes effect by a restart, and the
    /// node is not touched before its turn.
    PreviousInOrderIfRunning(NodeStep),
}

impl After {
    /// The step that it is about.
    #[allow(dead_code, reason = "a test holds the verbs' lists to it")]
    pub fn step(self) -> StepName {
        match self {
            Self::Cluster(step) => step.into(),
            Self::Provisioners(_) => NodeStep::Provision.into(),
            Self::Node(step)
            | Self::NodeUnchanged(step)
            | Self::LeadServer(step)
            | Self::OtherServersEnded(step)
            | Self::RunningNodesEnded(step)
            | Self::Workers(step)
            | Self::Ended(step)
            | Self::Servers(step)
            | Self::Before(step)
            | Self::EveryNode(step)
            | Self::Leaving(step)
            | Self::LeavingBefore(step)
            | Self::ReplacementsBefore(step)
            | Self::PreviousInOrder(step)
            | Self::PreviousInOrderIfRunning(step) => step.into(),
        }
    }

    /// Whether that step is taken for another node than the one that comes after it, whose turn is another.
    #[allow(dead_code, reason = "a test holds the verbs' lists to it")]
    pub fn of_another_turn(self) -> bool {
        match self {
            Self::LeadServer(_)
            | Self::OtherServersEnded(_)
            | Self::Workers(_)
            | Self::Before(_)
            | Self::LeavingBefore(_)
            | Self::ReplacementsBefore(_)
            | Self::PreviousInOrder(_)
            | Self::PreviousInOrderIfRunning(_) => true,
            Self::Cluster(_)
            | Self::Node(_)
            | Self::NodeUnchanged(_)
            | Self::RunningNodesEnded(_)
            | Self::Provisioners(_)
            | Self::EveryNode(_)
            | Self::Ended(_)
            | Self::Servers(_)
            | Self::Leaving(_) => false,
        }
    }
}

/// How k3s stands on a node before the run, as far as the order of the nodes depends on it.
///
/// - Servers have their turns one after the other: whoever was down comes back first, then those that
///   run are restarted and new ones join. A new one comes before a restart where two or more run, as
///   one of them may have been lost; a lone server is restarted before the others join it.
/// - Servers that were down start together where those that run are less than half: none of them
///   becomes active before the others are there.
/// - Workers come after the server that leads, and behind the others. Those that join do so all at
///   once; those that run are restarted in batches, after all servers that are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum K3sState {
    /// It was never part of the cluster.
    New,
    /// It was, and its k3s does not run.
    Stopped,
    /// Its k3s runs.
    Running,
}

/// What planning knows of it.
#[derive(Clone, Debug)]
pub struct StepSpec {
    /// Which step it is, and how often it is taken.
    pub of: Of,
    /// For people: what it does, e.g. `start k3s`.
    pub title: &'static str,
    /// What has to be done before. What is not in the plan is passed over.
    pub after: &'static [After],
    /// True if it serves others only: it is needed when one that comes after it is.
    pub on_demand: bool,
}

/// A step in a plan.
#[derive(Clone, Debug, PartialEq)]
pub struct Step {
    /// As events tell it.
    pub info: StepInfo,
    /// Which step it is.
    pub name: StepName,
    /// Which of several of that step: a provisioner's name.
    pub item: Option<String>,
    /// Ids of steps that must be over before, whatever came of them.
    pub after_end: Vec<String>,
    /// Whether it has to run.
    pub check: Check,
    /// It runs when the steps before it are over, whatever came of them.
    pub always: bool,
    /// It ends only when its like on other nodes has begun too, so it takes no place among those that run at
    /// a time: with too few of them each would wait for one that waits for its place.
    pub outside_jobs: bool,
    /// It is due in every run because the spec says so: nothing differs for that.
    pub every_time: bool,
}

/// Steps in an order in which they could run one after the other.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Plan {
    pub steps: Vec<Step>,
}

impl Plan {
    /// With every text replaced by what `change` makes of it: reasons may have a node's words in them.
    #[must_use]
    pub fn map_texts(mut self, change: &dyn Fn(String) -> String) -> Self {
        for step in &mut self.steps {
            step.info = step.info.clone().map_texts(change);
            step.check = match std::mem::replace(&mut step.check, Check::Done(String::new())) {
                Check::Done(reason) => Check::Done(change(reason)),
                Check::Needed(reason) => Check::Needed(change(reason)),
                Check::Unknown(reason) => Check::Unknown(change(reason)),
            };
        }
        self
    }

    /// True if nothing has to be done, but for what is run every time.
    pub fn is_done(&self) -> bool {
        self.steps.iter().all(|s| !s.check.may_run() || s.every_time)
    }

    /// Whether this step of the cluster may have to run.
    pub fn is_due(&self, step: ClusterStep) -> bool {
        self.steps.iter().any(|s| s.name == step.into() && s.check.may_run())
    }

    /// The nodes for which that step may have to run.
    pub fn nodes_for(&self, step: NodeStep) -> Vec<String> {
        let wanted = self.steps.iter().filter(|s| s.name == step.into() && s.check.may_run());
        wanted.filter_map(|s| s.info.node.clone()).collect()
    }
}

/// What a plan is told from.
pub struct PlanInput<'a> {
    pub cluster: &'a Cluster,
    /// Node names; empty means all. A step of the cluster is always in.
    pub targets: &'a [String],
    /// The machines that go, as they were made: their names may be of nodes that are recreated, and
    /// `targets` does not concern them.
    pub leaving: &'a [Node],
    /// Says of a step whether it can be taken there at all. What comes after one that cannot comes after what that one
    /// comes after.
    pub can: &'a dyn Fn(At<'_>) -> bool,
    /// Says of a step whether it is needed.
    pub look: &'a dyn Fn(At<'_>) -> Check,
    /// What a step's inputs come to.
    pub digest: &'a dyn Fn(At<'_>) -> String,
    /// How a node stands.
    pub k3s_state: &'a dyn Fn(&Node) -> K3sState,
    /// No server has data yet, and none goes: there is nothing to be kept by taking turns, so that nothing
    /// waits for what k3s waits for itself.
    pub fresh: bool,
}

/// Makes a plan.
pub fn make(specs: &[StepSpec], input: &PlanInput<'_>) -> Plan {
    let PlanInput { cluster, targets, .. } = *input;
    let chosen = |n: &&Node| targets.is_empty() || targets.contains(&n.name);
    let nodes: Vec<&Node> = cluster.nodes.iter().filter(chosen).collect();
    let mut steps: Vec<(&StepSpec, At<'_>)> = Vec::new();
    for spec in specs {
        match spec.of {
            Of::Cluster(step) => steps.push((spec, At::Cluster(step))),
            Of::Node(step, Per::Node) => steps.extend(nodes.iter().map(|n| (spec, At::node(step, n)))),
            Of::Node(step, Per::Provisioner(slot)) => {
                for node in nodes.iter().copied() {
                    let of = provisioners(cluster, node, slot);
                    steps.extend(of.map(|p| (spec, At::Node { step, node, item: Some(p) })));
                }
            }
            Of::Node(step, Per::Leaving) => {
                steps.extend(input.leaving.iter().map(|n| (spec, At::node(step, n))));
            }
        }
    }
    let out: BTreeSet<String> =
        steps.iter().filter(|(_, at)| !(input.can)(*at)).map(|(_, at)| at.id()).collect();
    let looked = steps.iter().map(|(_, at)| match out.contains(&at.id()) {
        true => Check::Done("it is left out".into()),
        false => (input.look)(*at),
    });
    let looked = looked.collect();
    let checks = look_again(&steps, looked);
    let ids: BTreeSet<String> = steps.iter().map(|(_, at)| at.id()).collect();
    let due: BTreeSet<String> =
        steps.iter().zip(&checks).filter(|(_, check)| check.may_run()).map(|((_, at), _)| at.id()).collect();
    // A node is touched by the steps that have to wait for its turn.
    let waits = |s: &StepSpec| {
        s.after.iter().any(|a| matches!(a, After::PreviousInOrder(_) | After::PreviousInOrderIfRunning(_)))
    };
    let changed: BTreeSet<&str> = steps
        .iter()
        .zip(&checks)
        .filter(|((s, _), check)| waits(s) && check.may_run())
        .filter_map(|((_, at), _)| at.of().map(|n| n.name.as_str()))
        .collect();
    // Who is made in the place of one that goes can be made once it has gone; of two that it takes the
    // name and the address of, the later one counts. Servers come back in the order in which they go,
    // and none goes before those that need less than it have come: so there is no circle. One of that name
    // that a run before has made already still replaces it: those behind it wait for it all the same.
    let replaces = |n: &Node| {
        let same = |other: &Node| other.name == n.name || other.ip == n.ip;
        let again = input.leaving.iter().any(|l| l.name == n.name);
        input.leaving.iter().rposition(same).filter(|_| again || (input.k3s_state)(n) == K3sState::New)
    };
    let k3s_state = |n: &Node| if replaces(n).is_some() { K3sState::New } else { (input.k3s_state)(n) };
    let place = |n: &Node| input.leaving.iter().position(|l| l.name == n.name).unwrap_or_default();
    let order = Order::of(cluster, &nodes, &k3s_state, &replaces, &changed);
    let mut plan = Plan::default();
    for ((spec, at), check) in steps.iter().zip(checks) {
        let (mut before, mut after_end) = (Vec::new(), Vec::new());
        let leaves = matches!(spec.of, Of::Node(_, Per::Leaving));
        for after in spec.after {
            match (*after, at.of()) {
                (After::Cluster(step), _) => before.push(step.id()),
                (After::Node(step) | After::NodeUnchanged(step) | After::Ended(step), Some(n)) => {
                    before.push(step.id(&n.name));
                }
                (After::Node(step) | After::Ended(step), None) => {
                    before.extend(nodes.iter().copied().chain(input.leaving).map(|n| step.id(&n.name)));
                }
                (After::LeadServer(step), Some(n)) if leaves => {
                    let lead = Some(order.lead).filter(|lead| replaces(lead) < Some(place(n)));
                    before.extend(lead.map(|lead| step.id(&lead.name)));
                }
                (After::EveryNode(step), _) => before.extend(nodes.iter().map(|n| step.id(&n.name))),
                (After::Before(step), Some(n)) => {
                    let at = nodes.iter().position(|other| other.name == n.name).unwrap_or(0);
                    before.extend(nodes[..at].last().map(|other| step.id(&other.name)));
                }
                (After::Leaving(step), Some(n)) if replaces(n).is_some() => {
                    let same = |other: &&Node| other.name == n.name || other.ip == n.ip;
                    before.extend(input.leaving.iter().filter(same).map(|n| step.id(&n.name)));
                }
                (After::LeavingBefore(step), Some(n)) if n.role == Role::Server => {
                    before.extend(input.leaving[..place(n)].iter().map(|n| step.id(&n.name)));
                }
                (After::ReplacementsBefore(step), Some(n)) if n.role == Role::Server => {
                    let earlier = |s: &&Node| replaces(s).is_some_and(|at| at < place(n));
                    before.extend(cluster.servers().filter(earlier).map(|s| step.id(&s.name)));
                }
                (After::LeadServer(step), n) if n.is_none_or(|n| n.role == Role::Worker) => {
                    before.push(step.id(&order.lead.name));
                }
                (After::OtherServersEnded(step), Some(n)) if n.role == Role::Worker && !input.fresh => {
                    after_end.extend(cluster.servers().map(|s| step.id(&s.name)));
                }
                (After::RunningNodesEnded(step), Some(n)) if k3s_state(n) == K3sState::Running => {
                    let runs = nodes.iter().filter(|n| k3s_state(n) == K3sState::Running);
                    after_end.extend(runs.map(|n| step.id(&n.name)).filter(|id| due.contains(id)));
                }
                (After::Workers(step), Some(n)) if n.role == Role::Server => {
                    before.extend(cluster.workers().map(|w| step.id(&w.name)));
                }
                (After::Servers(step), None) => before.extend(cluster.servers().map(|s| step.id(&s.name))),
                (After::PreviousInOrderIfRunning(_), Some(n)) if k3s_state(n) != K3sState::Running => {}
                (After::PreviousInOrder(step) | After::PreviousInOrderIfRunning(step), Some(n)) => {
                    let step = match spec.of {
                        Of::Node(own, _) if input.fresh && n.role == Role::Server => own,
                        _ => step,
                    };
                    let turn = order.before.get(n.name.as_str()).into_iter().flatten();
                    before.extend(turn.map(|other| step.id(&other.name)));
                }
                (After::Provisioners(slot), Some(n)) => before.extend(provisions(cluster, n, slot)),
                (After::Provisioners(slot), None) => {
                    before.extend(nodes.iter().flat_map(|n| provisions(cluster, n, slot)));
                }
                _ => {}
            }
        }
        if let (Of::Node(_, Per::Provisioner(slot)), Some(n)) = (spec.of, at.of()) {
            // All of them: one between may be done already.
            let own = at.id();
            before.extend(provisions(cluster, n, slot).take_while(|id| *id != own));
        }
        let mut seen = BTreeSet::new();
        before.retain(|b| ids.contains(b) && seen.insert(b.clone()));
        after_end.retain(|b| ids.contains(b) && seen.insert(b.clone()));
        plan.steps.push(Step {
            info: StepInfo {
                id: at.id(),
                node: at.of().map(|n| n.name.clone()),
                title: match at.item() {
                    Some(item) => format!("{} {item}", spec.title),
                    None => spec.title.to_owned(),
                },
                digest: (input.digest)(*at),
                after: before,
                reason: String::new(),
                needed: false,
            },
            name: at.name(),
            item: at.item().map(str::to_owned),
            after_end,
            check,
            always: spec.after.iter().any(|a| matches!(a, After::Ended(_))),
            outside_jobs: at.of().is_some_and(|n| order.together.contains(n.name.as_str()))
                && spec.after.iter().any(|a| matches!(a, After::PreviousInOrder(_))),
            every_time: match at {
                At::Cluster(step) => AROUND.iter().flatten().any(|around| around == step),
                At::Node { item, .. } => {
                    cluster.provision.iter().any(|p| p.always && Some(&*p.name) == *item)
                }
            },
        });
    }
    in_order(&mut plan.steps);
    leave_out(&mut plan.steps, &out);
    only_if_served(&mut plan.steps, specs);
    around(&mut plan.steps);
    for step in &mut plan.steps {
        step.info.reason = step.check.reason().to_owned();
        step.info.needed = step.check.may_run();
    }
    plan
}

/// A node's provisioners of a slot, in the spec's order.
fn provisioners<'c>(cluster: &'c Cluster, node: &'c Node, slot: Slot) -> impl Iterator<Item = &'c str> {
    let of = move |p: &&crate::spec::Provisioner| p.when == slot && p.nodes.contains(&node.name);
    cluster.provision.iter().filter(of).map(|p| p.name.as_str())
}

/// The ids of a node's provisioners of a slot, in the spec's order.
fn provisions<'c>(cluster: &'c Cluster, node: &'c Node, slot: Slot) -> impl Iterator<Item = String> {
    let step = NodeStep::Provision;
    provisioners(cluster, node, slot).map(move |p| At::Node { step, node, item: Some(p) }.id())
}

/// Whose turn comes before whose.
struct Order<'a> {
    /// The server that others go by.
    lead: &'a Node,
    /// By node: those that have to be Ready before it is touched.
    before: BTreeMap<&'a str, Vec<&'a Node>>,
    /// Servers of which none comes up before others of them do.
    together: BTreeSet<&'a str>,
}

impl<'a> Order<'a> {
    /// `chosen`: the nodes in the plan; `replaces`: which of the machines that go has to be gone before;
    /// `changed`: the nodes on which something may be done.
    fn of(
        cluster: &'a Cluster,
        chosen: &[&'a Node],
        k3s_state: &dyn Fn(&Node) -> K3sState,
        replaces: &dyn Fn(&Node) -> Option<usize>,
        changed: &BTreeSet<&str>,
    ) -> Self {
        let is_in = |n: &Node| chosen.iter().any(|c| c.name == n.name);
        let changed = |n: &Node| changed.contains(n.name.as_str());
        let servers = |wanted| cluster.servers().filter(move |n| k3s_state(n) == wanted).collect::<Vec<_>>();
        let (mut new, down, runs) =
            (servers(K3sState::New), servers(K3sState::Stopped), servers(K3sState::Running));
        new.sort_by_key(|n| replaces(n));
        let rolls = |n: &&Node| is_in(n) && k3s_state(n) == K3sState::Running && changed(n);
        let untouched = runs.iter().find(|n| !changed(n)).copied();

        // Each in a list may go when all of the lists before are Ready.
        let members = runs.len() + down.len();
        let together = runs.len() * 2 <= members;
        let (rest, joining) = match runs.len() {
            0 | 1 => (runs, new),
            _ => (new, runs),
        };
        let mut turns: Vec<Vec<&Node>> = match together {
            true => vec![down],
            false => down.into_iter().map(|n| vec![n]).collect(),
        };
        turns.extend(rest.into_iter().chain(joining).map(|n| vec![n]));
        let first = turns.iter().flatten().next().copied();
        let lead = untouched.or(first).unwrap_or_else(|| cluster.first_server());
        // Whoever runs and stays as it is waits for nobody.
        turns
            .iter_mut()
            .for_each(|turn| turn.retain(|n| is_in(n) && (k3s_state(n) != K3sState::Running || changed(n))));
        turns.retain(|turn| !turn.is_empty());
        let together =
            turns.iter().filter(|turn| turn.len() > 1).flatten().map(|n| n.name.as_str()).collect();
        let (mut before, mut former) = (BTreeMap::new(), Vec::new());
        for turn in turns {
            before.extend(turn.iter().map(|n| (n.name.as_str(), former.clone())));
            // What is done is passed over at once, and says nothing of who was before it.
            if turn.iter().any(|n| changed(n)) {
                former.clear();
            }
            former.extend(turn);
        }

        let rolling: Vec<&Node> = cluster.servers().filter(rolls).collect();
        let mut batch: Vec<&Node> = Vec::new();
        let (mut former, most) = (rolling.clone(), cluster.rollout.workers.max(1) as usize);
        for worker in cluster.workers().filter(|n| is_in(n)) {
            if !rolls(&worker) {
                before.insert(worker.name.as_str(), rolling.clone());
                continue;
            }
            if batch.len() == most {
                former = std::mem::take(&mut batch);
            }
            before.insert(worker.name.as_str(), former.clone());
            batch.push(worker);
        }
        Self { lead, before, together }
    }
}

/// Each step behind the steps it comes after; otherwise as they were.
fn in_order(steps: &mut Vec<Step>) {
    let mut rest = std::mem::take(steps);
    let mut placed = BTreeSet::new();
    while !rest.is_empty() {
        let at =
            rest.iter().position(|s| s.info.after.iter().chain(&s.after_end).all(|a| placed.contains(a)));
        // A circle would be a defect in the definitions; a test runs over all of them.
        let step = rest.remove(at.expect("steps form no circle"));
        placed.insert(step.info.id.clone());
        steps.push(step);
    }
}

/// Takes these steps out; what comes after one of them comes after what that one comes after.
fn leave_out(steps: &mut Vec<Step>, out: &BTreeSet<String>) {
    let mut across: BTreeMap<String, (Vec<String>, Vec<String>)> = BTreeMap::new();
    steps.retain_mut(|step| {
        let (mut before, mut after_end) = (Vec::new(), Vec::new());
        for id in std::mem::take(&mut step.info.after) {
            match across.get(&id) {
                Some((after, over)) => {
                    before.extend(after.iter().cloned());
                    after_end.extend(over.iter().cloned());
                }
                None => before.push(id),
            }
        }
        for id in std::mem::take(&mut step.after_end) {
            match across.get(&id) {
                Some((after, over)) => after_end.extend(after.iter().chain(over).cloned()),
                None => after_end.push(id),
            }
        }
        let mut seen = BTreeSet::new();
        before.retain(|id| seen.insert(id.clone()));
        after_end.retain(|id| seen.insert(id.clone()));
        if out.contains(&step.info.id) {
            across.insert(step.info.id.clone(), (before, after_end));
            return false;
        }
        (step.info.after, step.after_end) = (before, after_end);
        true
    });
}

/// What is done on a node on the way to what others wait for is looked at again where something before
/// it is still to be done there: a unit runs with its binary until another one is pushed.
fn look_again(steps: &[(&StepSpec, At<'_>)], mut checks: Vec<Check>) -> Vec<Check> {
    let mut open: BTreeSet<(NodeStep, &str)> = BTreeSet::new();
    // They are listed in an order in which they could run.
    let mut way: BTreeSet<NodeStep> = BTreeSet::new();
    for (spec, _) in steps.iter().rev() {
        way.extend(spec.after.iter().filter_map(|after| match after {
            After::PreviousInOrder(step) | After::PreviousInOrderIfRunning(step) => Some(*step),
            _ => None,
        }));
    }
    for (spec, _) in steps.iter().rev() {
        if let Of::Node(step, Per::Node | Per::Leaving) = spec.of
            && way.contains(&step)
        {
            way.extend(spec.after.iter().filter_map(|after| match after {
                After::Node(step) => Some(*step),
                _ => None,
            }));
        }
    }
    for ((spec, at), check) in steps.iter().zip(&mut checks) {
        let At::Node { step, node, .. } = *at else { continue };
        let before = spec.after.iter().find_map(|after| match after {
            After::Node(step) if open.contains(&(*step, node.name.as_str())) => Some(*step),
            _ => None,
        });
        if let (Check::Done(_), Some(before), true) = (&check, before, way.contains(&step)) {
            *check = Check::Unknown(format!("checked again after `{before}`"));
        }
        // To add a key where one is let in changes nothing of what was seen there; where nobody is, nothing was seen.
        let only_key = step == NodeStep::Ssh && before.is_none();
        if check.may_run() && !only_key {
            open.insert((step, node.name.as_str()));
        }
    }
    checks
}

/// The steps that come before all others of a run, and after them.
const AROUND: [[ClusterStep; 2]; 2] =
    [[ClusterStep::BeforeUp, ClusterStep::BeforeDestroy], [ClusterStep::AfterUp, ClusterStep::AfterDestroy]];

/// What is run on this host before everything else is over before anything begins, and what is run after it waits for all.
fn around(steps: &mut [Step]) {
    let of = |names: [ClusterStep; 2], steps: &[Step]| {
        steps.iter().find(|s| names.iter().any(|name| s.name == (*name).into())).map(|s| s.info.id.clone())
    };
    let [first, last] = AROUND.map(|names| of(names, steps));
    let all: Vec<String> = steps.iter().map(|s| s.info.id.clone()).collect();
    for step in steps {
        let own = Some(&step.info.id);
        if own == last.as_ref() {
            step.info.after = all.iter().filter(|id| Some(*id) != own).cloned().collect();
        } else if let Some(first) = first.as_ref().filter(|first| Some(*first) != own) {
            step.info.after.insert(0, first.clone());
        }
    }
}

/// A serving step whose dependents are all done is done as well.
fn only_if_served(steps: &mut [Step], specs: &[StepSpec]) {
    let mut wanted: BTreeMap<String, bool> = BTreeMap::new();
    for i in (0..steps.len()).rev() {
        let step = &steps[i];
        let on_demand = specs.iter().any(|s| s.of.name() == step.name && s.on_demand);
        if on_demand && step.check.may_run() && !wanted.get(&step.info.id).copied().unwrap_or(false) {
            steps[i].check = Check::Done("nothing needs it".into());
        }
        if steps[i].check.may_run() {
            for after in steps[i].info.after.clone() {
                wanted.insert(after, true);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::fixture::{cluster, sized};

    const STEP_SPECS: &[StepSpec] = &[
        StepSpec { of: Of::Cluster(ClusterStep::Artifacts), title: "f", after: &[], on_demand: true },
        StepSpec { of: Of::Node(NodeStep::Vm, Per::Node), title: "v", after: &[], on_demand: false },
        StepSpec {
            of: Of::Node(NodeStep::Start, Per::Node),
            title: "s",
            after: &[
                After::Node(NodeStep::Vm),
                After::Cluster(ClusterStep::Artifacts),
                After::LeadServer(NodeStep::Start),
            ],
            on_demand: false,
        },
    ];

    fn planned(look: &dyn Fn(At<'_>) -> Check) -> Plan {
        let (cluster, digest) = (cluster(2), |_: At<'_>| "d".into());
        make(
            STEP_SPECS,
            &PlanInput {
                cluster: &cluster,
                targets: &[],
                leaving: &[],
                can: &|_| true,
                look,
                digest: &digest,
                k3s_state: &|_| K3sState::New,
                fresh: false,
            },
        )
    }

    #[test]
    fn workers_wait_for_the_server_and_order_holds() {
        let plan = planned(&|_| Check::Needed("x".into()));
        let at = |id: &str| plan.steps.iter().position(|s| s.info.id == id).unwrap();
        assert!(at("server/start") < at("worker-1/start") && at("worker-2/vm") < at("worker-2/start"));
        let after = &plan.steps[at("worker-2/start")].info.after;
        assert_eq!(after, &["worker-2/vm", "cluster/artifacts", "server/start"]);
    }

    #[test]
    fn what_serves_nobody_is_not_done() {
        let plan = planned(&|at| match at {
            At::Cluster(ClusterStep::Artifacts) => Check::Needed("not there".into()),
            At::Node { step: NodeStep::Start, node, .. } if node.name == "worker-1" => {
                Check::Needed("stopped".into())
            }
            _ => Check::Done("there".into()),
        });
        let run: Vec<_> = plan.steps.iter().filter(|s| s.check.may_run()).map(|s| &s.info.id).collect();
        assert_eq!(run, ["cluster/artifacts", "worker-1/start"]);
        let done = planned(&|at| match at {
            At::Cluster(ClusterStep::Artifacts) => Check::Needed("not there".into()),
            _ => Check::Done("there".into()),
        });
        assert!(done.is_done());
    }

    #[test]
    fn provisioners_run_one_after_the_other_in_their_slots() {
        const STEP_SPECS: &[StepSpec] = &[
            StepSpec {
                of: Of::Node(NodeStep::Provision, Per::Provisioner(Slot::BeforeK3s)),
                title: "run",
                after: &[],
                on_demand: false,
            },
            StepSpec {
                of: Of::Node(NodeStep::Install, Per::Node),
                title: "i",
                after: &[After::Provisioners(Slot::BeforeK3s)],
                on_demand: false,
            },
            StepSpec {
                of: Of::Node(NodeStep::Provision, Per::Provisioner(Slot::AfterK3s)),
                title: "run",
                after: &[After::Node(NodeStep::Install)],
                on_demand: false,
            },
        ];
        let mut cluster = cluster(1);
        let one = |name: &str, when, nodes: &[&str]| crate::spec::Provisioner {
            name: name.into(),
            kind: crate::spec::ProvisionType::Shell,
            when,
            always: false,
            reboot: false,
            nodes: nodes.iter().map(|n| (*n).to_owned()).collect(),
            settings: Default::default(),
            by_vagrant: false,
            inputs: vec![],
        };
        let (before, after) = (Slot::BeforeK3s, Slot::AfterK3s);
        cluster.provision = vec![
            one("a", before, &["server", "worker-1"]),
            one("late", after, &["worker-1"]),
            one("b", before, &["server"]),
            one("c", before, &["server", "worker-1"]),
            one("later", after, &["worker-1"]),
        ];
        let told = |at: At<'_>| at.id().split_once('/').unwrap().1.to_owned();
        let input = PlanInput {
            cluster: &cluster,
            targets: &[],
            leaving: &[],
            can: &|_| true,
            look: &|at| Check::Needed(told(at)),
            digest: &told,
            k3s_state: &|_| K3sState::New,
            fresh: false,
        };
        let plan = make(STEP_SPECS, &input);
        let edges: Vec<String> =
            plan.steps.iter().map(|s| format!("{} < {}", s.info.after.join(" "), s.info.id)).collect();
        assert_eq!(
            edges,
            [
                " < server/provision-a",
                "server/provision-a < server/provision-b",
                "server/provision-a server/provision-b < server/provision-c",
                " < worker-1/provision-a",
                "worker-1/provision-a < worker-1/provision-c",
                "server/provision-a server/provision-b server/provision-c < server/install",
                "worker-1/provision-a worker-1/provision-c < worker-1/install",
                "worker-1/install < worker-1/provision-late",
                "worker-1/install worker-1/provision-late < worker-1/provision-later",
            ]
        );
        let step = &plan.steps[3];
        assert_eq!((step.item.as_deref(), step.info.title.as_str()), (Some("a"), "run a"));
        assert_eq!((step.info.reason.as_str(), step.info.digest.as_str()), ("provision-a", "provision-a"));
    }

    /// Steps as `up` has them, as far as order goes.
    fn up() -> Vec<StepSpec> {
        let spec =
            |step, after| StepSpec { of: Of::Node(step, Per::Node), title: "t", after, on_demand: false };
        vec![
            spec(NodeStep::Vm, &[]),
            spec(
                NodeStep::Stage,
                &[After::Node(NodeStep::Vm), After::PreviousInOrderIfRunning(NodeStep::Ready)],
            ),
            spec(
                NodeStep::Config,
                &[After::Node(NodeStep::Vm), After::PreviousInOrderIfRunning(NodeStep::Ready)],
            ),
            spec(
                NodeStep::Start,
                &[
                    After::Node(NodeStep::Stage),
                    After::Node(NodeStep::Config),
                    After::LeadServer(NodeStep::Start),
                    After::OtherServersEnded(NodeStep::Start),
                    After::PreviousInOrder(NodeStep::Ready),
                ],
            ),
            StepSpec {
                of: Of::Cluster(ClusterStep::Kubeconfig),
                ..spec(NodeStep::Ready, &[After::LeadServer(NodeStep::Start)])
            },
            spec(NodeStep::Ready, &[After::Node(NodeStep::Start), After::Cluster(ClusterStep::Kubeconfig)]),
        ]
    }

    /// What a run of a plan does, one step at a time in an order chosen by `pick`; `fails` says which
    /// steps do. Returns the steps in the order of their starts, and who passed.
    fn run(plan: &Plan, pick: &mut dyn FnMut(usize) -> usize, fails: &dyn Fn(&str) -> bool) -> Ran {
        let mut over: BTreeMap<String, bool> = BTreeMap::new();
        let mut ran = Ran::default();
        let mut running: Vec<&Step> = Vec::new();
        loop {
            for step in &plan.steps {
                let id = &step.info.id;
                if over.contains_key(id) || running.iter().any(|r| r.info.id == *id) {
                    continue;
                }
                if !step.check.may_run() {
                    over.insert(id.clone(), true);
                } else if step.info.after.iter().any(|a| over.get(a) == Some(&false)) {
                    over.insert(id.clone(), false);
                } else if step.info.after.iter().all(|a| over.get(a) == Some(&true))
                    && step.after_end.iter().all(|b| over.contains_key(b))
                {
                    running.push(step);
                    ran.began.push(id.clone());
                }
            }
            ran.moments.push(running.iter().map(|s| s.info.id.clone()).collect());
            if running.is_empty() {
                ran.over = over;
                return ran;
            }
            let step = running.remove(pick(running.len()));
            over.insert(step.info.id.clone(), !fails(&step.info.id));
            ran.ended.push(step.info.id.clone());
        }
    }

    #[derive(Default)]
    struct Ran {
        began: Vec<String>,
        ended: Vec<String>,
        moments: Vec<BTreeSet<String>>,
        over: BTreeMap<String, bool>,
    }

    fn state_of(n: u8) -> K3sState {
        [K3sState::New, K3sState::Stopped, K3sState::Running][n as usize % 3]
    }

    proptest::proptest! {
        /// Whatever the checks say, whoever stands how, whichever steps fail: nodes that run are taken
        /// down one server at a time and workers in batches, never a server and a worker at once, and
        /// nothing is touched after one did not come back.
        #[test]
        fn what_runs_is_restarted_in_its_turn(
            servers in 1usize..6, workers in 0usize..9, most in 1u32..4,
            k3s_states in proptest::collection::vec(0u8..3, 16),
            checks in proptest::collection::vec(0u8..3, 128),
            fails in proptest::collection::vec(proptest::bool::weighted(0.1), 128),
            picks in proptest::collection::vec(0usize..64, 256),
        ) {
            let mut cluster = sized(servers, workers);
            cluster.rollout.workers = most;
            let at = |name: &str| cluster.nodes.iter().position(|n| n.name == name).unwrap();
            let hash = |id: &str| {
                let (node, name) = id.split_once('/').unwrap();
                let step = ["vm", "stage", "config", "start", "kubeconfig", "ready"].iter().position(|s| *s == name);
                step.unwrap() * 16 + if node == "cluster" { 15 } else { at(node) }
            };
            let k3s_state = |n: &Node| state_of(k3s_states[at(&n.name)]);
            let look = |at: At<'_>| match checks[hash(&at.id())] {
                0 => Check::Done("d".into()),
                1 => Check::Unknown("u".into()),
                _ => Check::Needed("n".into()),
            };
            let digest = |_: At<'_>| String::new();
            let fresh = cluster.servers().all(|s| k3s_state(s) == K3sState::New);
            let plan = make(&up(), &PlanInput { cluster: &cluster, targets: &[], leaving: &[], can: &|_| true, look: &look, digest: &digest, k3s_state: &k3s_state, fresh });
            let mut picks = picks.iter().cycle();
            let failing = |id: &str| fails[hash(id)];
            let ran = run(&plan, &mut |n| picks.next().unwrap() % n, &failing);

            // Down from the first touch to its Ready, or for good if that never comes.
            let touches = |id: &str| ["stage", "config", "start"].contains(&id.split_once('/').unwrap().1);
            let mut down: BTreeMap<&str, usize> = BTreeMap::new();
            let mut up_again: BTreeMap<&str, usize> = BTreeMap::new();
            let mut clock = 0;
            let mut began: BTreeSet<&String> = BTreeSet::new();
            for (i, moment) in ran.moments.iter().enumerate() {
                clock += 1;
                for id in moment.iter().filter(|id| began.insert(*id)) {
                    let node = cluster.node(id.split('/').next().unwrap());
                    if let Some(node) = node.filter(|n| touches(id) && k3s_state(n) == K3sState::Running) {
                        down.entry(node.name.as_str()).or_insert(clock);
                    }
                }
                if let Some(ended) = ran.ended.get(i) {
                    let (node, name) = ended.split_once('/').unwrap();
                    if name == "ready" && ran.over[ended] {
                        up_again.insert(at_name(&cluster, node), clock);
                    }
                }
            }
            let span = |n: &str| (down[n], up_again.get(n).copied().unwrap_or(usize::MAX));
            let role = |n: &str| cluster.node(n).unwrap().role;
            let names: Vec<&str> = down.keys().copied().collect();
            for a in &names {
                let together = names.iter().filter(|b| {
                    let ((from, to), (start, end)) = (span(a), span(b));
                    start < to && from < end && start <= from
                });
                let together: Vec<_> = together.collect();
                let servers = together.iter().filter(|n| role(n) == Role::Server).count();
                proptest::prop_assert!(servers <= 1, "two servers at once: {together:?}");
                proptest::prop_assert!(servers == 0 || together.len() == 1, "a server and a worker: {together:?}");
                proptest::prop_assert!(together.len() <= most as usize, "{together:?}");
            }
            // A worker begins after the server that leads has started.
            let begins = |id: &str| ran.began.iter().position(|b| b == id);
            for worker in cluster.workers() {
                let id = format!("{}/start", worker.name);
                if begins(&id).is_some() {
                    proptest::prop_assert!(cluster.servers().any(|s| ran.over[&format!("{}/start", s.name)]), "{id}");
                }
            }
        }
    }

    fn at_name<'a>(cluster: &'a Cluster, name: &str) -> &'a str {
        &cluster.node(name).unwrap().name
    }

    fn up_of(
        cluster: &Cluster,
        look: &dyn Fn(At<'_>) -> Check,
        k3s_state: &dyn Fn(&Node) -> K3sState,
    ) -> Plan {
        make(
            &up(),
            &PlanInput {
                cluster,
                targets: &[],
                leaving: &[],
                can: &|_| true,
                look,
                digest: &|_| String::new(),
                k3s_state,
                fresh: cluster.servers().all(|s| k3s_state(s) == K3sState::New),
            },
        )
    }

    fn after<'p>(plan: &'p Plan, id: &str) -> Vec<&'p str> {
        let step = plan.steps.iter().find(|s| s.info.id == id).unwrap();
        step.info.after.iter().map(String::as_str).collect()
    }

    #[test]
    fn a_new_cluster_begins_with_one_server_and_its_workers_join_at_once() {
        let cluster = sized(3, 2);
        let needed = |_: At<'_>| Check::Needed("x".into());
        let plan = up_of(&cluster, &needed, &|_| K3sState::New);
        assert_eq!(after(&plan, "server/start"), ["server/stage", "server/config"]);
        // A server's API is all that the next one waits for: it may be Ready only when the user's network
        // is there, which may need them all.
        assert_eq!(after(&plan, "server-2/start"), ["server-2/stage", "server-2/config", "server/start"]);
        assert_eq!(after(&plan, "server-3/start"), ["server-3/stage", "server-3/config", "server-2/start"]);
        assert_eq!(after(&plan, "worker-1/start"), ["worker-1/stage", "worker-1/config", "server/start"]);
        assert_eq!(after(&plan, "server-3/stage"), ["server-3/vm"], "files go everywhere at once");
        let ran = run(&plan, &mut |_| 0, &|id| id == "server-3/start");
        assert!(
            ran.over["worker-2/ready"] && !ran.over["server-3/ready"],
            "a third server keeps no worker away"
        );
        let began = |id: &str| ran.began.iter().position(|b| b == id).unwrap();
        assert!(began("worker-1/start") < began("server-3/start"), "nor do workers wait for it");
        // Where there is data, they do.
        let plan = up_of(&cluster, &needed, &|n| match n.name.as_str() {
            "server" => K3sState::Running,
            _ => K3sState::New,
        });
        assert_eq!(after(&plan, "server-2/start")[2], "server/ready");
        let worker = plan.steps.iter().find(|s| s.info.id == "worker-1/start").unwrap();
        assert!(worker.after_end.contains(&"server-3/start".to_owned()), "{:?}", worker.after_end);
    }

    #[test]
    fn a_lost_first_server_joins_another_and_those_that_were_down_start_together() {
        let cluster = sized(3, 1);
        let lost = |at: At<'_>| match at.of().is_some_and(|n| n.name == "server") {
            true => Check::Needed("new".into()),
            false if at.id() == "server-2/config" => Check::Needed("other".into()),
            false => Check::Done("d".into()),
        };
        let plan = up_of(&cluster, &lost, &|n| match n.name.as_str() {
            "server" => K3sState::New,
            _ => K3sState::Running,
        });
        assert_eq!(after(&plan, "cluster/kubeconfig"), ["server-3/start"]);
        assert_eq!(
            after(&plan, "server-2/config"),
            ["server-2/vm", "server/ready"],
            "not while one is missing"
        );
        let start = plan.steps.iter().find(|s| s.info.id == "server-2/start").unwrap();
        assert_eq!(start.check, Check::Unknown("checked again after `config`".into()));
        let needed = |_: At<'_>| Check::Needed("x".into());
        let plan = up_of(&cluster, &needed, &|_| K3sState::Stopped);
        for server in ["server", "server-2", "server-3"] {
            assert_eq!(
                after(&plan, &format!("{server}/start")).len(),
                2,
                "without a majority none comes up alone"
            );
        }
        let outside_jobs: Vec<_> =
            plan.steps.iter().filter(|s| s.outside_jobs).map(|s| s.info.id.as_str()).collect();
        assert_eq!(outside_jobs, ["server/start", "server-2/start", "server-3/start"]);
    }

    #[test]
    fn what_comes_after_a_step_that_is_left_out_comes_after_what_that_one_comes_after() {
        const CHAIN: &[StepSpec] = &[
            StepSpec { of: Of::Cluster(ClusterStep::Network), title: "n", after: &[], on_demand: true },
            StepSpec {
                of: Of::Node(NodeStep::Vm, Per::Node),
                title: "v",
                after: &[After::Cluster(ClusterStep::Network)],
                on_demand: false,
            },
            StepSpec {
                of: Of::Node(NodeStep::Ssh, Per::Node),
                title: "s",
                after: &[After::Node(NodeStep::Vm)],
                on_demand: false,
            },
        ];
        let cluster = cluster(1);
        let planned = |reached: &[&str]| {
            let can = |at: At<'_>| {
                at.name() != NodeStep::Vm.into() || !at.of().is_some_and(|n| reached.contains(&&*n.name))
            };
            let input = PlanInput {
                cluster: &cluster,
                targets: &[],
                leaving: &[],
                can: &can,
                look: &|_| Check::Needed("x".into()),
                digest: &|_| String::new(),
                k3s_state: &|_| K3sState::New,
                fresh: false,
            };
            let plan = make(CHAIN, &input);
            plan.steps
                .iter()
                .map(|s| format!("{} < {}", s.info.after.join(" "), s.info.id))
                .collect::<Vec<_>>()
        };
        let of_server = ["cluster/network < server/vm", "server/vm < server/ssh"];
        let worker = ["cluster/network < worker-1/ssh"];
        let mut told = planned(&["worker-1"]);
        told.sort();
        let mut wanted = [&[" < cluster/network"][..], &of_server, &worker].concat();
        wanted.sort();
        assert_eq!(told, wanted);
    }
}
