//! The steps: one file each, with its condition (`check`, pure), its inputs and its action.
//!
//! A new step is a file here and a line in the lists of the verbs that have it.

mod artifacts;
mod autostart;
pub mod backup;
mod batch;
#[cfg(test)]
mod before_tests;
mod config;
mod console;
mod decide;
mod destroy;
mod drift;
mod foundations;
mod image;
mod install;
mod kubeconfig;
mod launch;
mod link;
mod login;
mod machine;
mod manifests;
mod marks;
mod network;
mod observe;
mod owner;
mod provision;
mod push;
mod quorum;
mod ready;
mod resize;
pub mod restore;
mod rollouts;
mod rules;
mod save;
pub mod snapshot;
mod stage;
mod start;
mod stop;
mod system;
mod tokens;
mod uninstall;
mod unit;
mod verify;
mod view;
mod wait;
mod world;

use std::sync::Arc;

use serde_json::Value;

use crate::engine::{Control, Trouble, Work};
use crate::os::hash;
use crate::plan::{self, Basis, Check, Plan, Scope, Shape, Step};
use crate::spec::{Cluster, Node};

pub use artifacts::{look_at_given, missing, release};
pub use config::files as config_files;
pub use decide::{Decision, Intent, Refused, decide};
pub use drift::{Drift, Interrupts, Loss, Mend, changes, leaver, lost_with, to_mend, worst};
pub use image::{box_label, build as build_box};
pub use login::{KEY_GONE, key_is_gone};
pub use manifests::Apps;
pub use observe::{Depth, observe};
pub use owner::{Claims, Whose};
pub use provision::{look_at_provisioners, without_secrets};
pub use rules::{not_finished, refusal, unfinished};
pub use system::script as system_script;
pub use view::{Seen, View, Wanted};
pub use world::{INSTALLER, Parts, World, listens};

/// A step: what planning knows of it, and what it does.
pub struct Definition {
    /// For the plan.
    pub shape: Shape,
    /// Whether errors that may pass are worth another try.
    pub retry: bool,
    /// Whether it is needed, told from what was seen.
    pub check: fn(&View<'_>, Option<&Node>) -> Check,
    /// What it is made from: other inputs, another digest, and it is due again.
    pub inputs: fn(&Cluster, Option<&Node>) -> Value,
    /// Does it. What it answers is kept in the journal and shown.
    pub apply: fn(&Ctx<'_>) -> Result<Option<String>, Trouble>,
}

/// What a step has at hand.
pub struct Ctx<'a> {
    /// Everything shared.
    pub world: &'a Arc<World>,
    /// To be heard by.
    pub control: &'a Control,
    /// The node it works on, if it is a node's step.
    node: Option<&'a Node>,
    /// Which of several of its kind: a provisioner's name.
    item: Option<&'a str>,
}

impl Ctx<'_> {
    /// The node; only a node's step may ask.
    pub fn node(&self) -> &Node {
        self.node.expect("a step of a node")
    }
}

/// A verb that runs steps.
pub struct Verb {
    /// Its name on the command line.
    pub name: &'static str,
    /// Its steps.
    pub steps: &'static [&'static Definition],
    /// How much has to be looked at before it can be planned.
    pub depth: Depth,
}

/// The cluster as the spec says.
const UP: &[&Definition] = &[
    &destroy::LEAVE,
    &destroy::UNINSTALL,
    &destroy::MACHINES,
    &image::STEP,
    &artifacts::STEP,
    &save::STEP,
    &network::STEP,
    &link::STEP,
    &resize::STEP,
    &machine::STEP,
    &autostart::STEP,
    &login::STEP,
    &system::STEP,
    &push::STEP,
    &stage::STEP,
    &provision::BEFORE,
    &config::STEP,
    &install::STEP,
    &launch::STEP,
    &start::STEP,
    &kubeconfig::STEP,
    &foundations::STEP,
    &ready::STEP,
    &marks::STEP,
    &provision::AFTER,
    &manifests::STEP,
    &rollouts::STEP,
];

/// Every verb that runs steps.
pub const VERBS: &[Verb] = &[
    Verb { name: "up", steps: UP, depth: Depth::Nodes },
    Verb { name: "replace", steps: UP, depth: Depth::Nodes },
    Verb {
        name: "upgrade",
        steps: &[
            &artifacts::STEP,
            &save::STEP,
            &link::STEP,
            &login::STEP,
            &system::STEP,
            &push::STEP,
            &stage::STEP,
            &config::STEP,
            &install::STEP,
            &start::STEP,
            &kubeconfig::STEP,
            &ready::STEP,
            &marks::STEP,
        ],
        depth: Depth::Nodes,
    },
    Verb {
        name: "start",
        steps: &[
            &network::STEP,
            &link::STEP,
            &machine::STEP,
            &login::STEP,
            &system::STEP,
            &start::STEP,
            &kubeconfig::STEP,
            &ready::STEP,
        ],
        depth: Depth::Nodes,
    },
    Verb {
        name: "verify",
        steps: &[
            &verify::HEALTHY,
            &verify::PODS_RUN,
            &verify::PEERS_ANSWER,
            &verify::SERVICE,
            &verify::NAME,
            &verify::OUTSIDE,
            &verify::STEADY,
            &verify::CLEAN,
        ],
        depth: Depth::Nodes,
    },
    Verb { name: "stop", steps: &[&stop::STEP], depth: Depth::Machines },
    Verb { name: "killall", steps: &[&uninstall::KILLALL], depth: Depth::Machines },
    Verb { name: "uninstall", steps: &[&uninstall::STEP, &uninstall::FORGET], depth: Depth::Machines },
    Verb {
        name: "destroy",
        steps: &[&destroy::GO, &destroy::UNINSTALL, &destroy::MACHINES, &destroy::CLEAN],
        depth: Depth::Machines,
    },
    Verb { name: "backup", steps: &[&backup::ASK, &backup::COPY], depth: Depth::Machines },
    Verb {
        name: "restore",
        steps: &[
            &restore::LOGIN,
            &restore::HALT,
            &restore::SECRETS,
            &restore::CONFIG,
            &restore::DATA,
            &start::STEP,
            &kubeconfig::STEP,
            &ready::STEP,
            &restore::SETTLE,
        ],
        depth: Depth::Machines,
    },
    Verb { name: "restore --undo", steps: &[&restore::UNDO], depth: Depth::Machines },
    Verb {
        name: "snapshot save",
        steps: &[&snapshot::PAUSE, &snapshot::TAKE, &snapshot::CLOCK],
        depth: Depth::Machines,
    },
    Verb {
        name: "snapshot restore",
        steps: &[
            &snapshot::RESTORE,
            &snapshot::RESUME,
            &snapshot::CLOCK,
            &snapshot::KUBECONFIG,
            &snapshot::READY,
        ],
        depth: Depth::Machines,
    },
    Verb { name: "snapshot delete", steps: &[&snapshot::FORGET], depth: Depth::Machines },
];

impl Verb {
    /// The verb of that name.
    pub fn find(name: &str) -> Option<&'static Self> {
        VERBS.iter().find(|v| v.name == name)
    }

    /// True if it brings machines up.
    pub fn boots(&self) -> bool {
        self.steps.iter().any(|d| d.shape.name == "vm")
    }

    /// True if a retry begins anew, since what was done belongs to a moment that is over: what a backup
    /// asked the nodes for ended with its p1, and a restore that did not succeed was put back. `passed` tells
    /// which steps passed.
    pub fn begins_anew(&self, passed: &dyn Fn(&str) -> bool) -> bool {
        match self.name {
            "snapshot save" | "snapshot restore" | "backup" => true,
            "restore" => !passed("cluster/settle"),
            _ => false,
        }
    }

    /// Whether it may do its work while something that was begun with the cluster's data has not come to its
    /// end: it does not take what is there for the cluster, or it ends that.
    pub fn passes_unfinished(&self, verb: &str) -> bool {
        match verb {
            "snapshot restore" => !matches!(
                self.name,
                "up" | "start" | "upgrade" | "replace" | "backup" | "restore" | "snapshot save"
            ),
            _ => !matches!(self.name, "up" | "start" | "upgrade" | "replace" | "backup" | "snapshot save"),
        }
    }

    /// Whether the step of that name is needed, by its own condition.
    pub fn condition(&self, name: &str, view: &View<'_>, node: Option<&Node>) -> Check {
        let (definition, item) = self.definition(name);
        (definition.check)(&View { item, ..*view }, node)
    }

    /// The step of that name, and which of several it is.
    fn definition<'n>(&self, name: &'n str) -> (&'static Definition, Option<&'n str>) {
        let named = |d: &&Definition| match d.shape.scope {
            Scope::Provisioners(_) => provisioner(name).is_some(),
            _ => d.shape.name == name,
        };
        (self.steps.iter().copied().find(|d| named(&&**d)).expect("a step of this verb"), provisioner(name))
    }

    /// The plan, with `look` to say whether a step is needed, or the steps' own conditions.
    pub fn plan(&self, view: &View<'_>, targets: &[String]) -> Plan {
        self.plan_with(view, targets, &view.seen.leaving, &|name, node| self.condition(name, view, node))
    }

    /// See [`Verb::plan`].
    pub fn plan_with(
        &self,
        view: &View<'_>,
        targets: &[String],
        leaving: &[Node],
        look: &dyn Fn(&str, Option<&Node>) -> Check,
    ) -> Plan {
        let shapes: Vec<Shape> = self.steps.iter().map(|d| d.shape.clone()).collect();
        let digest = |name: &str, node: Option<&Node>| {
            let (definition, item) = self.definition(name);
            if let Some(item) = item {
                return view.provisioner(item).unwrap_or_default();
            }
            let inputs = (definition.inputs)(view.cluster, node).to_string();
            // Beside what the spec says: which file stands behind a path of it.
            let given = match name {
                "artifacts" | "stage" | "install" | "start" => view.seen.given.as_str(),
                "box" | "network" => view.seen.image.as_deref().unwrap_or_default(),
                _ => "",
            };
            match given {
                "" => short_digest(&[&inputs]),
                given => short_digest(&[&inputs, given]),
            }
        };
        let stands = |node: &Node| match self.name {
            // However k3s stood, it is stopped on all of them first, and only the first server has the data.
            "restore" => plan::Standing::New,
            _ => view.standing(node),
        };
        // A restore takes its turns: its first server has data.
        let fresh = self.boots() && view.is_fresh(leaving);
        let basis =
            Basis { cluster: view.cluster, targets, leaving, look, digest: &digest, stands: &stands, fresh };
        plan::make(&shapes, &basis)
    }
}

/// The provisioner that a step of that name runs.
fn provisioner(name: &str) -> Option<&str> {
    name.strip_prefix(plan::PROVISION)?.strip_prefix('-')
}

/// 16 hex digits that tell one set of texts from another.
fn short_digest(parts: &[&str]) -> String {
    hash::hex(&hash::parts(parts)[..8])
}

/// The steps of a verb, for the engine.
pub struct Steps {
    /// Which.
    pub verb: &'static Verb,
    /// What they share.
    pub world: Arc<World>,
    /// The machines that go, as the plan has them.
    pub leaving: Vec<Node>,
}

impl Work for Steps {
    fn check(&self, step: &Step) -> Check {
        let seen = self.world.seen();
        let view = View { item: step.item.as_deref(), ..View::new(&self.world.cluster, &seen) };
        (step_definition(self.verb, step).check)(&view, self.node(step))
    }

    fn apply(&self, step: &Step, control: &Control) -> Result<Option<String>, Trouble> {
        let node = self.node(step);
        if let Some(node) = node {
            // Before anything is done there: what is remembered may no longer be so.
            self.world.remember(&node.name, |m| m.facts = None)?;
        }
        let ctx = Ctx { world: &self.world, control, node, item: step.item.as_deref() };
        let mut done = (step_definition(self.verb, step).apply)(&ctx);
        if let (Err(trouble), Some(node)) = (&mut done, node) {
            // The step says whose it is.
            let cause = &mut trouble.failure.cause;
            *cause = crate::explain::without_name(&node.name, cause).to_owned();
        }
        // The machine ran when the step before passed.
        let inside = self.verb.boots() && step.name != machine::STEP.shape.name;
        match (done, node) {
            (Err(trouble), Some(node)) if inside && trouble.may_pass() => {
                Err(machine::lost(&self.world, node, trouble))
            }
            (done, _) => done,
        }
    }

    fn retries(&self, step: &Step) -> bool {
        step_definition(self.verb, step).retry
    }
}

fn step_definition(verb: &Verb, step: &Step) -> &'static Definition {
    verb.steps.iter().find(|d| d.shape.name == step.name).expect("a step of this verb")
}

impl Steps {
    fn node(&self, step: &Step) -> Option<&Node> {
        let name = step.info.node.as_deref()?;
        match step_definition(self.verb, step).shape.scope {
            Scope::Leaving => self.leaving.iter().find(|n| n.name == name),
            _ => self.world.cluster.node(name),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::fixture;

    fn former(name: &str, last: u8) -> Node {
        let ip = [192, 168, 56, last].into();
        Node { name: name.into(), ip, ..fixture::cluster(1).nodes[1].clone() }
    }

    /// Every verb's steps can be put in order, for one node and for several, and step ids are unique.
    #[test]
    fn every_verb_makes_a_plan() {
        for verb in VERBS {
            for workers in [0, 3] {
                let cluster = fixture::cluster(workers);
                let (seen, leaving) = (Seen::default(), [cluster.nodes[0].clone(), former("old", 250)]);
                let view = View::new(&cluster, &seen);
                let plan = verb.plan_with(&view, &[], &leaving, &|_, _| Check::Needed("x".into()));
                let ids: std::collections::BTreeSet<_> = plan.steps.iter().map(|s| &s.info.id).collect();
                assert_eq!(ids.len(), plan.steps.len(), "{}", verb.name);
            }
        }
    }

    #[test]
    fn k3s_is_installed_behind_the_provisioners_before_it_and_ready_before_those_after_it() {
        use crate::spec::{ProvisionType, Provisioner, Slot};
        let mut cluster = fixture::cluster(1);
        let one = |name: &str, when| Provisioner {
            name: name.into(),
            kind: ProvisionType::Shell,
            when,
            nodes: vec!["worker-1".into()],
            settings: Default::default(),
            by_vagrant: false,
            inputs: vec![],
        };
        cluster.provision = vec![one("early", Slot::BeforeK3s), one("late", Slot::AfterK3s)];
        let seen = Seen::default();
        let plan = Verb::find("up").unwrap().plan(&View::new(&cluster, &seen), &[]);
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
            let before = step.info.after.iter().chain(&step.behind).cloned();
            open.extend(before.filter(|b| all.insert(b.clone())));
        }
        all
    }

    /// A server that has been part of a cluster, its k3s at work.
    fn serving() -> Arc<crate::facts::NodeFacts> {
        let mut facts = crate::facts::NodeFacts { datastore: Some("etcd".into()), ..Default::default() };
        let unit = crate::facts::Unit { loaded: true, active: "active".into(), ..Default::default() };
        facts.units.extend([("k3s".to_owned(), unit.clone()), ("k3s-agent".to_owned(), unit)]);
        facts.node_password = true;
        facts.into()
    }

    #[test]
    fn in_a_fresh_cluster_nothing_waits_for_what_k3s_waits_for_itself() {
        let cluster = fixture::sized(3, 2);
        let up = Verb::find("up").unwrap();
        let plan = up.plan(&View::new(&cluster, &Seen::default()), &[]);
        for worker in ["worker-1", "worker-2"] {
            let launch = format!("{worker}/launch");
            assert!(plan.steps.iter().any(|s| s.info.id == launch && s.check.may_run()), "{plan:?}");
            let before = waits_for(&plan, &launch);
            assert!(before.contains(&format!("{worker}/install")));
            let of_server = |b: &String| b.starts_with("server") && !b.ends_with("/resize");
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
        let mut seen = Seen::default();
        seen.nodes.insert("server-2".into(), serving());
        let launched = |cluster: &Cluster, seen: &Seen, leaving: &[Node]| {
            let seen = Seen { leaving: leaving.to_vec(), ..seen.clone() };
            up.plan(&View::new(cluster, &seen), &[]).nodes_for("launch")
        };
        assert_eq!(launched(&cluster, &seen, &[]), [""; 0]);
        let none = Seen::default();
        assert_eq!(launched(&cluster, &none, &cluster.nodes[..1]), [""; 0]);
        assert_eq!(launched(&cluster, &none, &[]).len(), 4);
        let mut outside = cluster.clone();
        outside.nodes[0].config.insert("datastore-endpoint".into(), "mysql://x".into());
        assert_eq!(launched(&outside, &none, &[]), [""; 0]);
    }

    #[test]
    fn the_next_k3s_is_everywhere_before_the_first_turn() {
        let cluster = fixture::sized(3, 2);
        let mut seen = Seen::default();
        seen.nodes.extend(cluster.nodes.iter().map(|n| (n.name.clone(), serving())));
        for verb in ["up", "upgrade"] {
            let verb = Verb::find(verb).unwrap();
            let plan = verb.plan(&View::new(&cluster, &seen), &[]);
            let stage = plan.steps.iter().find(|s| s.info.id == "server/stage").unwrap();
            let pushes: Vec<String> = cluster.nodes.iter().map(|n| format!("{}/push", n.name)).collect();
            assert!(pushes[1..].iter().all(|p| stage.behind.contains(p)), "{:?}", stage.behind);
            assert!(stage.info.after.contains(&pushes[0]));
            for push in pushes {
                let before = waits_for(&plan, &push);
                assert!(!before.iter().any(|b| b.ends_with("/stage") || b.ends_with("/ready")), "{before:?}");
            }
        }
    }

    /// One that a run before has made already: those whose turn comes after it wait for it all the same.
    #[test]
    fn in_a_retry_a_server_leaves_when_the_one_before_it_is_ready_again() {
        let cluster = fixture::sized(3, 0);
        let mut seen = Seen { kubeconfig: true, leaving: vec![cluster.nodes[2].clone()], ..Seen::default() };
        for server in &cluster.nodes[..2] {
            seen.nodes.insert(server.name.clone(), serving());
        }
        let view = View::new(&cluster, &seen);
        let verb = Verb::find("replace").unwrap();
        let passed = |name: &str, node: Option<&Node>| match node.map_or("", |n| n.name.as_str()) {
            "server" => Check::Done("done in the run before".into()),
            "server-2" if name != "ready" => Check::Done("done in the run before".into()),
            _ => Check::Unknown("outstanding".into()),
        };
        let plan = verb.plan_with(&view, &[], &cluster.nodes, &passed);
        let before = waits_for(&plan, "server-3/leave");
        assert!(before.contains("server-2/ready"), "{before:?}");
        assert!(waits_for(&plan, "server-3/start").contains("server-3/machine"));
    }
}
