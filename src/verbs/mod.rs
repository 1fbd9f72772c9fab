//! The verbs that run steps: which steps each has, in which order, and what else is particular about it.
//!
//! A new verb is a row here, made of steps.

#[cfg(test)]
mod before_tests;
mod decide;
#[cfg(test)]
mod drift_tests;
#[cfg(test)]
mod needs_tests;
mod run;
mod work;

use std::collections::BTreeMap;

use crate::access::World;
use crate::engine::StepError;
use crate::event::{Outcome, VerbName};
use crate::machines::Cap;
use crate::observe::Depth;
use crate::observed::View;
use crate::os::hash;
use crate::plan::{self, After, At, Check, ClusterStep, NodeStep, Plan, PlanInput, StepName, StepSpec};
use crate::spec::{self, Node, Slot};
use crate::state::Unfinished;
use crate::steps::{
    Step, artifacts, autostart, backup, bake, clean, config, disks, fault, files, fork, foundations, hosts,
    image, images, install, keep, kubeconfig, labels, launch, leave, link, local, machine, manifests,
    network, provision, push, ready, release, reset, resize, restore, rollouts, save, snapshot, ssh, stage,
    start, stop, suspend, system, uninstall, verify, vm,
};

pub use decide::{Decision, Intent, Refused, decide};
pub use run::{Audience, Error, Job, contested, look, open, run};
use work::Steps;

/// A step of a verb.
pub struct Use {
    /// Which.
    pub step: &'static Step,
    /// What has to be done before it in this verb, where that is not what it is in others.
    pub after: Option<&'static [After]>,
}

impl Use {
    /// As it is.
    const fn of(step: &'static Step) -> Self {
        Self { step, after: None }
    }

    /// After others than elsewhere.
    const fn after(step: &'static Step, after: &'static [After]) -> Self {
        Self { step, after: Some(after) }
    }

    fn comes_after(&self) -> &'static [After] {
        self.after.unwrap_or(self.step.after())
    }
}

/// A verb that runs steps.
pub struct Verb {
    /// Its name on the command line.
    pub name: VerbName,
    /// Its steps, in an order in which they could run one after the other.
    pub steps: &'static [Use],
    /// How much has to be checked before it can be planned.
    pub depth: Depth,
    /// What else is particular about it.
    pub traits: Traits,
}

/// What a verb does just before its steps.
type Begin = fn(&World) -> Result<(), StepError>;
/// And just after them, told what came of them.
type End = fn(&World, &BTreeMap<String, Outcome>) -> Result<(), StepError>;

/// What is particular about a verb.
#[derive(Clone, Copy, Debug)]
pub struct Traits {
    /// Which machines it may take away.
    pub takes: Takes,
    /// It is for k3s alone: machines without it have no part in it.
    pub of_k3s: bool,
    /// It has the cluster's secrets made where there are none, so that they are looked for first.
    pub makes_secrets: bool,
    /// It asks nodes over the network.
    pub reaches_nodes: bool,
    /// k3s is stopped on all nodes before it goes on: none counts as one that runs.
    pub stops_k3s_first: bool,
    /// What its retry goes on with.
    pub resumes: Resumes,
    /// Faults of the nodes that it is for are over before: it takes their machines from under them.
    pub ends_faults: bool,
    /// Whether it may do its work while a restore has not come to its end.
    pub within: Within,
    /// What is done just before its steps.
    pub begin: Option<Begin>,
    /// What is done just after its steps.
    pub end: Option<End>,
}

impl Traits {
    /// Of a verb with which nothing is particular.
    const PLAIN: Self = Self {
        takes: Takes::None,
        of_k3s: false,
        makes_secrets: false,
        reaches_nodes: true,
        stops_k3s_first: false,
        resumes: Resumes::WhatIsLeft,
        ends_faults: false,
        within: Within::Any,
        begin: None,
        end: None,
    };
}

/// Why a verb has nothing to do for a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lack {
    /// Its machine cannot be asked for that.
    Machine(Cap),
    /// The spec gives it no k3s.
    K3s,
}

impl Lack {
    /// As a sentence without its full stop.
    pub fn told(self) -> &'static str {
        match self {
            Self::Machine(cap) => cap.lacking(),
            Self::K3s => "the spec gives it no k3s (`role: none`)",
        }
    }
}

/// Which machines a verb may take away.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Takes {
    /// None.
    None,
    /// Those that differ from the spec, after a yes.
    Differing,
    /// The same, and those that it was asked to recreate, after a yes as well.
    Named,
    /// All that it is for.
    All,
}

/// What the retry of a verb goes on with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Resumes {
    /// What is outstanding.
    WhatIsLeft,
    /// Nothing: what was done belongs to a moment that is over, as what a backup asked the nodes for, which ended with
    /// its p1, or a proof.
    Nothing,
    /// What is outstanding where this step passed, and nothing otherwise: a restore that did not succeed was put back.
    Since(ClusterStep),
}

/// While what has not come to its end a verb may do its work: where it takes what is there for the cluster, it may not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Within {
    /// Whatever it is: it ends that, or it does not matter to it.
    Any,
    /// A restore of a backup only, with which it goes on.
    Restore,
    /// Nothing.
    Nothing,
}

/// The cluster as the spec says.
const UP: &[Use] = &[
    Use::of(&local::BEFORE_UP),
    Use::of(&images::LEAVING),
    Use::of(&leave::STEP),
    Use::of(&uninstall::LEAVING),
    Use::of(&machine::STEP),
    Use::of(&release::STEP),
    Use::of(&image::STEP),
    Use::of(&artifacts::STEP),
    Use::of(&save::STEP),
    Use::of(&network::STEP),
    Use::of(&files::STEP),
    Use::of(&link::STEP),
    Use::of(&resize::STEP),
    Use::of(&vm::STEP),
    Use::of(&autostart::STEP),
    Use::of(&ssh::STEP),
    Use::of(&disks::STEP),
    Use::of(&system::STEP),
    Use::of(&hosts::STEP),
    Use::of(&push::STEP),
    Use::of(&stage::STEP),
    Use::of(&images::GIVE),
    Use::of(&provision::BEFORE),
    Use::of(&config::STEP),
    Use::of(&install::STEP),
    Use::of(&launch::STEP),
    Use::of(&start::STEP),
    Use::of(&kubeconfig::STEP),
    Use::of(&foundations::STEP),
    Use::of(&ready::STEP),
    Use::of(&labels::STEP),
    Use::of(&provision::AFTER),
    Use::of(&manifests::STEP),
    Use::of(&rollouts::STEP),
    Use::of(&provision::AFTER_CLUSTER),
    Use::of(&local::AFTER_CLUSTER),
    Use::of(&images::COLLECT),
    Use::of(&local::AFTER_UP),
];

/// What `up` and those that do a part of it have in common.
const LIKE_UP: Traits = Traits { makes_secrets: true, within: Within::Nothing, ..Traits::PLAIN };

impl Verb {
    /// The verb of that name.
    pub const fn of(name: VerbName) -> &'static Self {
        match name {
            VerbName::Up => {
                const {
                    &Self {
                        name: VerbName::Up,
                        steps: UP,
                        depth: Depth::Nodes,
                        traits: Traits { takes: Takes::Differing, ..LIKE_UP },
                    }
                }
            }
            VerbName::Machines => {
                const {
                    &Self {
                        name: VerbName::Machines,
                        steps: &[
                            Use::of(&image::STEP),
                            Use::of(&network::STEP),
                            Use::of(&link::STEP),
                            Use::of(&vm::STEP),
                            Use::of(&autostart::STEP),
                            Use::of(&ssh::STEP),
                            Use::of(&disks::STEP),
                            Use::of(&system::STEP),
                        ],
                        depth: Depth::Nodes,
                        traits: Traits { within: Within::Nothing, ..Traits::PLAIN },
                    }
                }
            }
            VerbName::Replace => {
                const {
                    &Self {
                        name: VerbName::Replace,
                        steps: UP,
                        depth: Depth::Nodes,
                        traits: Traits { takes: Takes::Named, ..LIKE_UP },
                    }
                }
            }
            VerbName::Upgrade => {
                const {
                    &Self {
                        name: VerbName::Upgrade,
                        steps: &[
                            Use::of(&artifacts::STEP),
                            Use::of(&files::STEP),
                            Use::of(&save::STEP),
                            Use::of(&link::STEP),
                            Use::of(&ssh::STEP),
                            Use::of(&system::STEP),
                            Use::of(&push::STEP),
                            Use::of(&stage::STEP),
                            Use::of(&config::STEP),
                            Use::of(&install::STEP),
                            Use::of(&start::STEP),
                            Use::of(&kubeconfig::STEP),
                            Use::of(&ready::STEP),
                            Use::of(&labels::STEP),
                        ],
                        depth: Depth::Nodes,
                        traits: Traits { of_k3s: true, ..LIKE_UP },
                    }
                }
            }
            VerbName::Start => {
                const {
                    &Self {
                        name: VerbName::Start,
                        steps: &[
                            Use::of(&network::STEP),
                            Use::of(&link::STEP),
                            Use::of(&vm::STEP),
                            Use::of(&ssh::STEP),
                            Use::of(&system::STEP),
                            Use::of(&start::STEP),
                            Use::of(&kubeconfig::STEP),
                            Use::of(&ready::STEP),
                        ],
                        depth: Depth::Nodes,
                        traits: LIKE_UP,
                    }
                }
            }
            VerbName::Verify => {
                const {
                    &Self {
                        name: VerbName::Verify,
                        steps: &[
                            Use::of(&verify::HEALTHY),
                            Use::of(&verify::PODS_RUN),
                            Use::of(&verify::PEERS_ANSWER),
                            Use::of(&verify::SERVICE),
                            Use::of(&verify::NAME),
                            Use::of(&verify::OUTSIDE),
                            Use::of(&verify::STEADY),
                            Use::of(&verify::CLEAN),
                        ],
                        depth: Depth::Nodes,
                        traits: Traits { resumes: Resumes::Nothing, ..Traits::PLAIN },
                    }
                }
            }
            VerbName::Stop => {
                const {
                    &Self {
                        name: VerbName::Stop,
                        steps: &[Use::of(&stop::STEP)],
                        depth: Depth::Machines,
                        traits: Traits { reaches_nodes: false, ends_faults: true, ..Traits::PLAIN },
                    }
                }
            }
            VerbName::Killall => {
                const {
                    &Self {
                        name: VerbName::Killall,
                        steps: &[Use::of(&uninstall::KILLALL)],
                        depth: Depth::Machines,
                        traits: Traits { of_k3s: true, ..Traits::PLAIN },
                    }
                }
            }
            VerbName::Uninstall => {
                const {
                    &Self {
                        name: VerbName::Uninstall,
                        steps: &[Use::of(&uninstall::STEP), Use::of(&uninstall::FORGET)],
                        depth: Depth::Machines,
                        traits: Traits { of_k3s: true, ..Traits::PLAIN },
                    }
                }
            }
            VerbName::Destroy => {
                const {
                    &Self {
                        name: VerbName::Destroy,
                        steps: &[
                            Use::of(&local::BEFORE_DESTROY),
                            Use::of(&images::LEAVING),
                            Use::after(&leave::STEP, &[After::Cluster(ClusterStep::Images)]),
                            Use::of(&uninstall::LEAVING),
                            Use::of(&machine::STEP),
                            Use::of(&release::STEP),
                            Use::of(&clean::STEP),
                            Use::of(&local::AFTER_DESTROY),
                        ],
                        depth: Depth::Machines,
                        traits: Traits {
                            takes: Takes::All,
                            reaches_nodes: false,
                            ends_faults: true,
                            ..Traits::PLAIN
                        },
                    }
                }
            }
            VerbName::Backup => {
                const {
                    &Self {
                        name: VerbName::Backup,
                        steps: &[Use::of(&backup::ASK), Use::of(&backup::COPY)],
                        depth: Depth::Machines,
                        traits: Traits {
                            of_k3s: true,
                            resumes: Resumes::Nothing,
                            within: Within::Nothing,
                            ..Traits::PLAIN
                        },
                    }
                }
            }
            VerbName::Restore => {
                const {
                    &Self {
                        name: VerbName::Restore,
                        steps: &[
                            Use::after(&ssh::STEP, &[]),
                            Use::of(&restore::HALT),
                            Use::of(&restore::SECRETS),
                            Use::of(&config::RESTORED),
                            Use::of(&restore::DATA),
                            Use::of(&start::STEP),
                            Use::of(&kubeconfig::STEP),
                            Use::of(&ready::STEP),
                            Use::of(&restore::SETTLE),
                        ],
                        depth: Depth::Machines,
                        traits: Traits {
                            of_k3s: true,
                            stops_k3s_first: true,
                            resumes: Resumes::Since(ClusterStep::Settle),
                            within: Within::Restore,
                            begin: Some(restore::begin),
                            ..Traits::PLAIN
                        },
                    }
                }
            }
            VerbName::UndoRestore => {
                const {
                    &Self {
                        name: VerbName::UndoRestore,
                        steps: &[Use::of(&restore::UNDO)],
                        depth: Depth::Machines,
                        traits: Traits { of_k3s: true, ..Traits::PLAIN },
                    }
                }
            }
            VerbName::Keep => {
                const {
                    &Self {
                        name: VerbName::Keep,
                        steps: &[Use::of(&keep::KEEP), Use::of(&keep::CLOCK)],
                        depth: Depth::Machines,
                        traits: Traits { within: Within::Nothing, ..Traits::PLAIN },
                    }
                }
            }
            VerbName::Reset => {
                const {
                    &Self {
                        name: VerbName::Reset,
                        steps: &[Use::of(&reset::RESET), Use::of(&reset::READY), Use::of(&reset::CLOCK)],
                        depth: Depth::States,
                        traits: Traits { reaches_nodes: false, ends_faults: true, ..Traits::PLAIN },
                    }
                }
            }
            VerbName::Fork => {
                const {
                    &Self {
                        name: VerbName::Fork,
                        steps: &[Use::of(&keep::MOMENT), Use::of(&keep::CLOCK)],
                        depth: Depth::Machines,
                        traits: Traits { within: Within::Nothing, ..Traits::PLAIN },
                    }
                }
            }
            VerbName::MakeFork => {
                const {
                    &Self {
                        name: VerbName::MakeFork,
                        steps: &[Use::of(&fork::FORK), Use::of(&fork::READY), Use::of(&fork::CLOCK)],
                        depth: Depth::States,
                        traits: Traits { reaches_nodes: false, ..Traits::PLAIN },
                    }
                }
            }
            VerbName::Suspend => {
                const {
                    &Self {
                        name: VerbName::Suspend,
                        steps: &[Use::of(&suspend::SUSPEND)],
                        depth: Depth::States,
                        traits: Traits {
                            reaches_nodes: false,
                            ends_faults: true,
                            within: Within::Nothing,
                            ..Traits::PLAIN
                        },
                    }
                }
            }
            VerbName::Resume => {
                const {
                    &Self {
                        name: VerbName::Resume,
                        steps: &[
                            Use::of(&network::STEP),
                            Use::of(&link::STEP),
                            Use::of(&suspend::WAKE),
                            Use::of(&suspend::CLOCK),
                            Use::of(&suspend::READY),
                        ],
                        depth: Depth::Machines,
                        traits: Traits { within: Within::Nothing, ..Traits::PLAIN },
                    }
                }
            }
            VerbName::SaveSnapshot => {
                const {
                    &Self {
                        name: VerbName::SaveSnapshot,
                        steps: &[
                            Use::of(&snapshot::PAUSE),
                            Use::of(&snapshot::TAKE),
                            Use::of(&snapshot::CLOCK),
                        ],
                        depth: Depth::Machines,
                        traits: Traits {
                            resumes: Resumes::Nothing,
                            ends_faults: true,
                            within: Within::Nothing,
                            ..Traits::PLAIN
                        },
                    }
                }
            }
            VerbName::RestoreSnapshot => {
                const {
                    &Self {
                        name: VerbName::RestoreSnapshot,
                        steps: &[
                            Use::of(&snapshot::RESTORE),
                            Use::of(&snapshot::RESUME),
                            Use::of(&snapshot::CLOCK),
                            Use::of(&snapshot::KUBECONFIG),
                            Use::of(&snapshot::READY),
                        ],
                        depth: Depth::Machines,
                        traits: Traits {
                            resumes: Resumes::Nothing,
                            ends_faults: true,
                            begin: Some(snapshot::begin),
                            end: Some(snapshot::end),
                            ..Traits::PLAIN
                        },
                    }
                }
            }
            VerbName::Fault => {
                const {
                    &Self {
                        name: VerbName::Fault,
                        steps: &[Use::of(&fault::STRIKE)],
                        depth: Depth::Machines,
                        traits: Traits { reaches_nodes: false, within: Within::Nothing, ..Traits::PLAIN },
                    }
                }
            }
            VerbName::LoadImage => {
                const {
                    &Self {
                        name: VerbName::LoadImage,
                        steps: &[Use::of(&images::LOAD)],
                        depth: Depth::Machines,
                        traits: Traits { of_k3s: true, ..Traits::PLAIN },
                    }
                }
            }
            VerbName::HealFault => {
                const {
                    &Self {
                        name: VerbName::HealFault,
                        steps: &[Use::of(&fault::HEAL)],
                        depth: Depth::Machines,
                        traits: Traits { reaches_nodes: false, ..Traits::PLAIN },
                    }
                }
            }
            VerbName::Bake => {
                const {
                    &Self {
                        name: VerbName::Bake,
                        steps: &[
                            Use::of(&image::STEP),
                            Use::of(&artifacts::STEP),
                            Use::of(&network::STEP),
                            Use::of(&files::STEP),
                            Use::of(&vm::STEP),
                            Use::of(&ssh::STEP),
                            Use::after(
                                &stage::STEP,
                                &[
                                    After::Node(NodeStep::Ssh),
                                    After::Cluster(ClusterStep::Artifacts),
                                    After::Cluster(ClusterStep::Files),
                                ],
                            ),
                            Use::of(&bake::ASIDE),
                            Use::of(&bake::IMPORT),
                            Use::of(&bake::WIPE),
                            Use::of(&bake::PACK),
                        ],
                        depth: Depth::Nodes,
                        traits: Traits { resumes: Resumes::Nothing, reaches_nodes: false, ..Traits::PLAIN },
                    }
                }
            }
            VerbName::DeleteSnapshot => {
                const {
                    &Self {
                        name: VerbName::DeleteSnapshot,
                        steps: &[Use::of(&snapshot::FORGET)],
                        depth: Depth::Machines,
                        traits: Traits { reaches_nodes: false, ..Traits::PLAIN },
                    }
                }
            }
        }
    }

    /// True if it has that step.
    pub fn has(&self, step: impl Into<StepName>) -> bool {
        let step = step.into();
        self.steps.iter().any(|u| u.step.of().name() == step)
    }

    /// True if it brings machines up.
    pub fn boots(&self) -> bool {
        self.has(NodeStep::Vm)
    }

    /// True if it changes k3s on nodes, so that what p1 refuses is checked before.
    pub fn changes_k3s(&self) -> bool {
        self.has(NodeStep::Stage)
    }

    /// True if the whole cluster goes, asked for these nodes.
    pub fn takes_all(&self, targets: &[String]) -> bool {
        self.traits.takes == Takes::All && targets.is_empty()
    }

    /// True if a retry starts over; `passed` tells which steps passed, by their ids.
    pub fn begins_anew(&self, passed: &dyn Fn(&str) -> bool) -> bool {
        match self.traits.resumes {
            Resumes::WhatIsLeft => false,
            Resumes::Nothing => true,
            Resumes::Since(step) => !passed(&step.id()),
        }
    }

    /// Whether it may do its work while this has not come to its end.
    pub fn passes(&self, unfinished: &Unfinished) -> bool {
        match self.traits.within {
            Within::Any => true,
            Within::Restore => {
                let verb = VerbName::parse(&unfinished.verb);
                !matches!(verb, Some(VerbName::RestoreSnapshot | VerbName::Reset | VerbName::MakeFork))
            }
            Within::Nothing => false,
        }
    }

    /// What the node lacks for each of the verb's steps of nodes, if it lacks something for all of them: the
    /// verb has nothing to do there.
    pub fn lacks(&self, view: &View<'_>, node: &Node) -> Option<Lack> {
        let of_nodes = self.steps.iter().map(|u| u.step).filter(|step| matches!(step, Step::Node(_)));
        let lacks: Option<Vec<Lack>> = of_nodes.map(|step| self.lacks_for(step, view, node)).collect();
        lacks?.first().copied()
    }

    /// What the node lacks for that step.
    fn lacks_for(&self, step: &Step, view: &View<'_>, node: &Node) -> Option<Lack> {
        let of_k3s = self.traits.of_k3s || matches!(step.of().name(), StepName::NodeStep(s) if s.is_of_k3s());
        if of_k3s && !node.role.has_k3s() {
            return Some(Lack::K3s);
        }
        step.needs().filter(|cap| !view.can(node).has(*cap)).map(Lack::Machine)
    }

    /// Whether that step is needed, by its own condition.
    pub fn condition(&self, at: At<'_>, view: &View<'_>) -> Check {
        self.step(at.name()).check(view, at)
    }

    fn step(&self, name: StepName) -> &'static Step {
        let mut steps = self.steps.iter().map(|u| u.step);
        steps.find(|step| step.of().name() == name).expect("a step of this verb")
    }

    /// The plan, with the steps' own conditions to say whether one is needed.
    pub fn plan(&self, view: &View<'_>, targets: &[String]) -> Plan {
        let leaving: Vec<Node> = view.seen.leaving().cloned().collect();
        self.plan_with(view, targets, &leaving, &|at| self.condition(at, view))
    }

    /// The plan, with `look` to say whether a step is needed.
    pub fn plan_with(
        &self,
        view: &View<'_>,
        targets: &[String],
        leaving: &[Node],
        look: &dyn Fn(At<'_>) -> Check,
    ) -> Plan {
        let shapes: Vec<StepSpec> = self.steps.iter().map(|u| u.step.spec(u.comes_after())).collect();
        let digest = |at: At<'_>| {
            if let Some(item) = at.item() {
                return view.provisioner(item).unwrap_or_default();
            }
            let mut inputs = self.step(at.name()).inputs(view.cluster, at);
            // The journal has the digest, and who reads that could try which secret gives it: not without the cluster's own.
            let secrets = spec::conceal(&mut inputs, &view.cluster.secrets);
            let inputs = match (&view.seen.here.tokens, secrets.is_empty()) {
                (Some(tokens), false) => format!("{inputs} {} {}", secrets.join(" "), tokens.server.reveal()),
                _ => inputs.to_string(),
            };
            // Beside what the spec says: which file stands behind a path of it.
            let given = match at {
                At::Cluster(ClusterStep::Artifacts)
                | At::Node { step: NodeStep::Stage | NodeStep::Install | NodeStep::Start, .. } => {
                    view.seen.here.given.as_str()
                }
                At::Cluster(ClusterStep::Box | ClusterStep::Network) => {
                    view.seen.here.image.as_deref().unwrap_or_default()
                }
                _ => "",
            };
            match given {
                "" => short_digest(&[&inputs]),
                given => short_digest(&[&inputs, given]),
            }
        };
        let stands = |node: &Node| match self.traits.stops_k3s_first {
            // However k3s stood, it is stopped on all of them first, and only the first server has the data.
            true => plan::K3sState::New,
            false => view.k3s_state(node),
        };
        // A restore takes its turns: its first server has data.
        let fresh = self.boots() && view.is_fresh(leaving);
        let can = |at: At<'_>| {
            if let Some(slot) = on_this_host(at) {
                let verb = match slot {
                    Slot::BeforeUp | Slot::AfterUp => self.name == VerbName::Up,
                    Slot::BeforeDestroy | Slot::AfterDestroy => view.seen.request.whole_goes,
                    _ => true,
                };
                return verb && view.cluster.on_this_host(slot).next().is_some();
            }
            let step = self.step(at.name());
            let lacks = |node: &Node| self.lacks_for(step, view, node);
            match at.of() {
                Some(node) => lacks(node).is_none(),
                None => step
                    .needs()
                    .is_none_or(|cap| view.cluster.nodes.iter().chain(leaving).any(|n| view.can(n).has(cap))),
            }
        };
        let basis = PlanInput {
            cluster: view.cluster,
            targets,
            leaving,
            can: &can,
            look,
            digest: &digest,
            k3s_state: &stands,
            fresh,
        };
        plan::make(&shapes, &basis)
    }
}

/// The spec's commands for this host that the step runs.
fn on_this_host(at: At<'_>) -> Option<Slot> {
    match at {
        At::Cluster(ClusterStep::BeforeUp) => Some(Slot::BeforeUp),
        At::Cluster(ClusterStep::AfterUp) => Some(Slot::AfterUp),
        At::Cluster(ClusterStep::AfterCluster) => Some(Slot::AfterCluster),
        At::Cluster(ClusterStep::BeforeDestroy) => Some(Slot::BeforeDestroy),
        At::Cluster(ClusterStep::AfterDestroy) => Some(Slot::AfterDestroy),
        _ => None,
    }
}

/// 16 hex digits that tell one set of texts from another.
fn short_digest(parts: &[&str]) -> String {
    hash::hex(&hash::parts(parts)[..8])
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::observed::Observed;
    use crate::spec::{Cluster, fixture};

    fn former(name: &str, last: u8) -> Node {
        let ip = [192, 168, 56, last].into();
        Node { name: name.into(), ip, ..fixture::cluster(1).nodes[1].clone() }
    }

    #[test]
    fn names_of_verbs_lead_to_their_verb_and_back() {
        for name in VerbName::ALL {
            assert_eq!((Verb::of(name).name, VerbName::parse(name.as_str())), (name, Some(name)));
        }
        assert_eq!(VerbName::parse("fly"), None);
    }

    /// What takes what is there for the cluster does not begin before that is known; what ends it does.
    #[test]
    fn an_unfinished_restore_is_in_the_way_of_what_takes_the_data_for_the_clusters() {
        use VerbName as V;
        let during = |verb: V| {
            let (id, since) = (String::new(), jiff::Timestamp::UNIX_EPOCH);
            let what = Unfinished { verb: verb.to_string(), id, subject: None, since, settled: false };
            V::ALL.into_iter().filter(|v| !Verb::of(*v).passes(&what)).collect::<Vec<_>>()
        };
        let kept = [
            V::Up,
            V::Machines,
            V::Replace,
            V::Upgrade,
            V::Start,
            V::Backup,
            V::Keep,
            V::Fork,
            V::Suspend,
            V::Resume,
            V::SaveSnapshot,
            V::Fault,
        ];
        assert_eq!(during(V::Restore), kept);
        let kept = [
            V::Up,
            V::Machines,
            V::Replace,
            V::Upgrade,
            V::Start,
            V::Backup,
            V::Restore,
            V::Keep,
            V::Fork,
            V::Suspend,
            V::Resume,
            V::SaveSnapshot,
            V::Fault,
        ];
        assert_eq!(during(V::RestoreSnapshot), kept);
    }

    /// What a step comes after in one verb is a step of that verb, and what it comes after wherever it is used is one of
    /// some verb. Steps are listed in an order in which they could run: `plan::make` and the screen go by it.
    #[test]
    fn steps_come_after_steps_that_their_verb_lists_before_them() {
        let verbs = VerbName::ALL.map(Verb::of);
        for verb in verbs {
            for (at, one) in verb.steps.iter().enumerate() {
                let name = one.step.of().name();
                for after in one.comes_after() {
                    let place = verb.steps.iter().position(|u| u.step.of().name() == after.step());
                    let told = || format!("{}: {} after {after:?}", verb.name, name.as_str());
                    let known = if one.after.is_some() {
                        place.is_some()
                    } else {
                        verbs.iter().any(|v| v.has(after.step()))
                    };
                    assert!(known, "{}", told());
                    assert!(after.of_another_turn() || place.is_none_or(|before| before < at), "{}", told());
                }
                let same = verb.steps.iter().filter(|u| u.step.of().name() == name).count();
                assert!(same == 1 || name == NodeStep::Provision.into(), "{}: {}", verb.name, name.as_str());
            }
        }
    }

    /// Every verb's steps can be put in order, for one node and for several, and step ids are unique.
    #[test]
    fn every_verb_makes_a_plan() {
        for verb in VerbName::ALL.map(Verb::of) {
            for workers in [0, 3] {
                let cluster = fixture::cluster(workers);
                let (seen, leaving) = (Observed::default(), [cluster.nodes[0].clone(), former("old", 250)]);
                let view = View::new(&cluster, &seen);
                let plan = verb.plan_with(&view, &[], &leaving, &|_| Check::Needed("x".into()));
                let ids: std::collections::BTreeSet<_> = plan.steps.iter().map(|s| &s.info.id).collect();
                assert_eq!(ids.len(), plan.steps.len(), "{}", verb.name);
            }
        }
    }

    #[test]
    fn k3s_is_installed_behind_the_provisioners_before_it_and_ready_before_those_after_it() {
        use crate::spec::{ProvisionType, Provisioner};
        let mut cluster = fixture::cluster(1);
        let one = |name: &str, when| Provisioner {
            name: name.into(),
            kind: ProvisionType::Shell,
            when,
            always: false,
            reboot: false,
            nodes: vec!["worker-1".into()],
            settings: Default::default(),
            by_vagrant: false,
            inputs: vec![],
        };
        cluster.provision = vec![one("early", Slot::BeforeK3s), one("late", Slot::AfterK3s)];
        let seen = Observed::default();
        let plan = Verb::of(VerbName::Up).plan(&View::new(&cluster, &seen), &[]);
        let after = |id: &str, before: &str| {
            let step = plan.steps.iter().find(|s| s.info.id == id).unwrap();
            assert!(step.check.may_run() && step.info.after.iter().any(|a| a == before), "{:?}", step.info);
        };
        after("worker-1/provision-early", "worker-1/system");
        after("worker-1/install", "worker-1/provision-early");
        after("worker-1/provision-late", "worker-1/ready");
        assert!(!plan.steps.iter().any(|s| s.info.id.starts_with("server/provision")));
    }

    /// Everything that a step waits for, directly or not.
    fn waits_for(plan: &Plan, id: &str) -> std::collections::BTreeSet<String> {
        let (mut all, mut open) = (std::collections::BTreeSet::new(), vec![id.to_owned()]);
        while let Some(id) = open.pop() {
            let step = plan.steps.iter().find(|s| s.info.id == id).unwrap();
            let before = step.info.after.iter().chain(&step.after_end).cloned();
            open.extend(before.filter(|b| all.insert(b.clone())));
        }
        all
    }

    /// A server that has been part of a cluster, its k3s at work.
    fn serving() -> Arc<crate::guest::NodeFacts> {
        let mut facts = crate::guest::NodeFacts { datastore: Some("etcd".into()), ..Default::default() };
        let unit = crate::guest::Unit { loaded: true, active: "active".into(), ..Default::default() };
        facts.units.extend([("k3s".to_owned(), unit.clone()), ("k3s-agent".to_owned(), unit)]);
        facts.node_password = true;
        facts.into()
    }

    #[test]
    fn in_a_fresh_cluster_nothing_waits_for_what_k3s_waits_for_itself() {
        let cluster = fixture::sized(3, 2);
        let up = Verb::of(VerbName::Up);
        let plan = up.plan(&View::new(&cluster, &Observed::default()), &[]);
        for worker in ["worker-1", "worker-2"] {
            let launch = format!("{worker}/launch");
            assert!(plan.steps.iter().any(|s| s.info.id == launch && s.check.may_run()), "{plan:?}");
            let before = waits_for(&plan, &launch);
            assert!(before.contains(&format!("{worker}/install")));
            let of_server = |b: &String| b.starts_with("server") && !NodeStep::Resize.is(b);
            assert!(!before.iter().any(|b| of_server(b) || b == "cluster/kubeconfig"), "{before:?}");
            // It is judged when there is an API, and by no other server's start.
            let start = waits_for(&plan, &format!("{worker}/start"));
            assert!(start.contains("server/start") && start.contains(&launch), "{start:?}");
            assert!(!start.contains("server-2/start") && !start.contains("server/ready"), "{start:?}");
        }
        let before = waits_for(&plan, "server-2/launch");
        assert!(before.contains("server-2/install") && !before.contains("server/start"), "{before:?}");
        let before = waits_for(&plan, "server-3/start");
        assert!(before.contains("server-2/start") && !before.contains("server/ready"), "{before:?}");

        // Where a server has data, or its machines go, or the data may be elsewhere, each has its turn.
        let mut seen = Observed::default();
        seen.nodes.insert("server-2".into(), serving());
        let launched = |cluster: &Cluster, seen: &Observed, leaving: &[Node]| {
            let mut seen = seen.clone();
            seen.request.leaving = leaving.to_vec();
            up.plan(&View::new(cluster, &seen), &[]).nodes_for(NodeStep::Launch)
        };
        assert_eq!(launched(&cluster, &seen, &[]), [""; 0]);
        let none = Observed::default();
        assert_eq!(launched(&cluster, &none, &cluster.nodes[..1]), [""; 0]);
        assert_eq!(launched(&cluster, &none, &[]).len(), 4);
        let mut outside = cluster.clone();
        outside.nodes[0].config.insert("datastore-endpoint".into(), "mysql://x".into());
        assert_eq!(launched(&outside, &none, &[]), [""; 0]);
    }

    #[test]
    fn the_next_k3s_is_everywhere_before_the_first_turn() {
        let cluster = fixture::sized(3, 2);
        let mut seen = Observed::default();
        seen.nodes.extend(cluster.nodes.iter().map(|n| (n.name.clone(), serving())));
        for verb in [VerbName::Up, VerbName::Upgrade] {
            let verb = Verb::of(verb);
            let plan = verb.plan(&View::new(&cluster, &seen), &[]);
            let stage = plan.steps.iter().find(|s| s.info.id == "server/stage").unwrap();
            let pushes: Vec<String> = cluster.nodes.iter().map(|n| format!("{}/push", n.name)).collect();
            assert!(pushes[1..].iter().all(|p| stage.after_end.contains(p)), "{:?}", stage.after_end);
            assert!(stage.info.after.contains(&pushes[0]));
            for push in pushes {
                let before = waits_for(&plan, &push);
                assert!(!before.iter().any(|b| NodeStep::Stage.is(b) || NodeStep::Ready.is(b)), "{before:?}");
            }
        }
    }

    /// One that a run before has made already: those whose turn comes after it wait for it all the same.
    #[test]
    fn in_a_retry_a_server_leaves_when_the_one_before_it_is_ready_again() {
        let cluster = fixture::sized(3, 0);
        let mut seen = Observed::default();
        seen.here.kubeconfig = true;
        seen.request.leaving = vec![cluster.nodes[2].clone()];
        for server in &cluster.nodes[..2] {
            seen.nodes.insert(server.name.clone(), serving());
        }
        let view = View::new(&cluster, &seen);
        let verb = Verb::of(VerbName::Replace);
        let passed = |at: At<'_>| match at.of().map_or("", |n| n.name.as_str()) {
            "server" => Check::Done("done in the run before".into()),
            "server-2" if at.name() != NodeStep::Ready.into() => Check::Done("done in the run before".into()),
            _ => Check::Unknown("outstanding".into()),
        };
        let plan = verb.plan_with(&view, &[], &cluster.nodes, &passed);
        let before = waits_for(&plan, "server-3/leave");
        assert!(before.contains("server-2/ready"), "{before:?}");
        assert!(waits_for(&plan, "server-3/start").contains("server-3/machine"));
    }

    #[test]
    fn a_proof_is_due_every_time_and_cleans_up_in_any_case() {
        let cluster = fixture::cluster(1);
        let verb = Verb::of(VerbName::Verify);
        let one = verb.plan(&View::new(&cluster, &Observed::default()), &[]);
        assert!(one.steps.iter().all(|s| s.check.may_run()) && verb.begins_anew(&|_| true));
        let last = one.steps.last().unwrap();
        assert!(
            last.info.id == "cluster/clean" && last.always && last.info.after.len() == one.steps.len() - 1
        );
        assert!(one.steps.iter().filter(|s| s.always).count() == 1);
    }
}
