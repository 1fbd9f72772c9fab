//! What a run will do, decided before anything begins: `plan` shows it, and the run that follows does it. Pure.

use super::{Takes, Verb};
use crate::event::VerbName;
use crate::observed::drift::{Drift, Loss, Mend, changes, lost_with, node_as_made, to_mend};
use crate::observed::quorum::{may_leave, seen as members_seen};
use crate::observed::refusal::{Refusal, disks, refusal};
use crate::observed::{Observed, View, faults};
use crate::plan::{NodeStep, Plan};
use crate::spec::{Cluster, Node};

/// What was asked for.
#[derive(Clone, Copy)]
pub struct Intent<'a> {
    /// The verb; a plan is one of `up`.
    pub verb: &'static Verb,
    /// For which nodes; empty for all.
    pub targets: &'a [String],
    /// Nodes that were named to be recreated.
    pub replace: &'a [String],
}

/// What comes of it.
pub struct Decision {
    /// What differs from the spec, for verbs that mend it.
    pub drift: Vec<Drift>,
    /// The machines that go, as they were made.
    pub leaving: Vec<Node>,
    /// What is lost by that and was not agreed to by naming it, a line each.
    pub losses: Vec<String>,
    /// Nodes that go and are not in the spec.
    pub removed: Vec<String>,
    /// Nodes that are recreated and were not named.
    pub replaced: Vec<String>,
    pub plan: Plan,
    /// Why it is not begun.
    pub refused: Option<Refused>,
}

/// Why a run is not begun.
#[derive(Clone, Debug, PartialEq)]
pub enum Refused {
    /// The spec, or what was asked for, has to be another one.
    Asked(Refusal),
    /// What is there does not allow it.
    There(Refusal),
}

impl Intent<'_> {
    /// Notes for whom it is: conditions ask for that.
    pub fn note(&self, cluster: &Cluster, seen: &mut Observed) {
        seen.request.whole = self.targets.is_empty();
        let all = cluster.nodes.iter().map(|n| n.name.clone());
        seen.request.targets = if seen.request.whole { all.collect() } else { self.targets.to_vec() };
        seen.request.whole_goes = self.verb.takes_all(self.targets);
    }
}

impl Decision {
    /// Of a run that is gone on with: what it does was decided, and agreed to, before.
    pub fn to_do(plan: Plan, leaving: Vec<Node>) -> Self {
        let none = Vec::new;
        Self {
            drift: Vec::new(),
            leaving,
            losses: none(),
            removed: none(),
            replaced: none(),
            plan,
            refused: None,
        }
    }

    /// Notes which machines go.
    pub fn note(&self, seen: &mut Observed) {
        seen.request.leaving.clone_from(&self.leaving);
    }
}

/// Decides, from the spec and what was seen, as after a yes to all that is asked.
pub fn decide(cluster: &Cluster, seen: &Observed, intent: &Intent<'_>) -> Decision {
    let mut seen = seen.clone();
    intent.note(cluster, &mut seen);
    let view = View::new(cluster, &seen);
    let mut found = Decision::to_do(Plan::default(), Vec::new());
    match intent.verb.traits.takes {
        Takes::All => found.leaving = destroyed(&view, intent.targets),
        Takes::Differing | Takes::Named => mended(&view, intent, &mut found),
        Takes::None => {}
    }
    found.note(&mut seen);
    let view = View::new(cluster, &seen);
    found.plan = intent.verb.plan(&view, intent.targets);
    if found.refused.is_none() && intent.verb.has(NodeStep::Disks) {
        found.refused = disks(&view).map(Refused::Asked);
    }
    if intent.verb.name == VerbName::Fault {
        found.refused = faults::asked(&view).map(Refused::Asked);
    }
    if found.refused.is_none() && intent.verb.changes_k3s() {
        found.refused = refusal(&view).map(Refused::There);
    }
    found
}

fn known(view: &View<'_>, names: &[String]) -> Vec<Node> {
    names.iter().filter_map(|n| node_as_made(view, n)).collect()
}

fn destroyed(view: &View<'_>, targets: &[String]) -> Vec<Node> {
    if !view.seen.request.whole {
        return known(view, targets);
    }
    let all = view.cluster.nodes.iter().chain(&view.seen.former).map(|n| n.name.clone());
    known(view, &all.collect::<Vec<_>>())
}

/// `up` and `replace` take only what was named or agreed to.
fn mended(view: &View<'_>, intent: &Intent<'_>, found: &mut Decision) {
    let replace = intent.replace;
    let plan = Verb::of(VerbName::Up).plan(view, intent.targets);
    let (drift, _) = changes(view, &plan, intent.targets);
    let unnamed =
        |mend| to_mend(&drift, mend).into_iter().filter(|n| !replace.contains(n)).collect::<Vec<_>>();
    (found.removed, found.replaced) = (unnamed(Mend::Remove), unnamed(Mend::Replace));
    found.leaving = known(view, &found.removed);
    let in_order = view.cluster.nodes.iter().map(|n| &n.name);
    let again: Vec<String> =
        in_order.filter(|n| replace.contains(n) || found.replaced.contains(n)).cloned().collect();
    found.leaving.extend(known(view, &again));
    for drift in drift.iter().filter(|d| d.destroys()) {
        if drift.node.as_ref().is_some_and(|n| replace.contains(n)) {
            continue;
        }
        let mut drift = drift.clone();
        // Together with those that were named more may be lost than by itself.
        let node = drift.node.as_ref().and_then(|name| found.leaving.iter().find(|n| n.name == *name));
        if let Some((loss @ Loss::Cluster, words)) = node.map(|node| lost_with(view, node, &found.leaving)) {
            (drift.loss, drift.lost) = (loss, Some(words));
        }
        found.losses.push(drift.to_string());
    }
    for node in found.leaving.iter().filter(|n| replace.contains(&n.name)) {
        let (loss, lost) = lost_with(view, node, &found.leaving);
        // Naming it is agreeing to what is its own, not to the end of the cluster.
        if intent.verb.traits.takes == Takes::Named || loss == Loss::Cluster {
            found.losses.push(format!("{}: its machine is recreated; lost: {lost}", node.name));
        }
    }
    found.refused = anew(&drift).or_else(|| majority(view, &found.leaving)).map(Refused::Asked);
    found.drift = drift;
}

fn anew(drift: &[Drift]) -> Option<Refusal> {
    let anew = drift.iter().find(|d| d.mend == Mend::Anew)?;
    Some(Refusal::new(
        format!("this needs the whole cluster to be recreated: {}", anew.what),
        format!(
            "`p1 destroy` removes it with its data; then `p1 up` makes it as the spec says now. Lost: {}.",
            anew.lost.as_deref().unwrap_or("nothing")
        ),
    ))
}

/// What would leave etcd without a majority is refused, not asked.
fn majority(view: &View<'_>, leaving: &[Node]) -> Option<Refusal> {
    let mut api = members_seen(view.seen)?;
    for node in leaving {
        if let Err(why) = may_leave(&api, &node.name) {
            return Some(Refusal::new(
                format!("`{}` must not leave the cluster now: {why}", node.name),
                "Without a majority etcd accepts no writes. Bring the other servers back first (`p1 status`).",
            ));
        }
        if view.cluster.node(&node.name).is_none() {
            api.remove(&node.name);
        }
    }
    None
}
