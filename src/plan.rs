//! The plan: which steps there are, in which order, which of them are needed and why.
//!
//! Pure: a function of the steps' definitions, the cluster and what was observed, so that a dry run
//! is real.

use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;

use crate::event::StepInfo;
use crate::spec::{Cluster, Node, Role, Slot};

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
    /// The reason.
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

/// What a step is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// Once for the cluster.
    Cluster,
    /// Once for every node.
    Nodes,
    /// Once for every provisioner of this slot and each of its nodes, in the spec's order on a node.
    Provisioners(Slot),
}

/// What has to be done before a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum After {
    /// The cluster's step of that name.
    Cluster(&'static str),
    /// This node's step of that name (for a step of the cluster: every node's).
    Node(&'static str),
    /// For a worker's step: the first server's step of that name.
    FirstServer(&'static str),
    /// For a server's step: every worker's step of that name.
    Workers(&'static str),
    /// This node's provisioners of that slot (for a step of the cluster: every node's).
    Provisioners(Slot),
    /// As [`After::Node`], whatever came of them, and even when the user asked to stop: for a step that
    /// cleans up.
    Ended(&'static str),
}

/// The shape of a step: what planning knows of it.
#[derive(Clone, Debug)]
pub struct Shape {
    /// The second half of its id.
    pub name: &'static str,
    /// For people: what it does, e.g. `start k3s`.
    pub title: &'static str,
    /// What it is for.
    pub scope: Scope,
    /// What has to be done before. Names that are not in the plan are passed over.
    pub after: &'static [After],
    /// True if it serves others only: it is needed when one that comes after it is.
    pub serves: bool,
}

/// A step in a plan.
#[derive(Clone, Debug, PartialEq)]
pub struct Step {
    /// As events tell it.
    pub info: StepInfo,
    /// The name of its shape.
    pub name: &'static str,
    /// Which of several of that shape: a provisioner's name.
    pub item: Option<String>,
    /// Whether it has to run.
    pub check: Check,
    /// It runs when the steps before it are over, whatever came of them.
    pub anyway: bool,
}

/// Steps in an order in which they could run one after the other.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Plan {
    /// The steps.
    pub steps: Vec<Step>,
}

impl Plan {
    /// True if nothing has to be done.
    pub fn is_done(&self) -> bool {
        self.steps.iter().all(|s| !s.check.may_run())
    }

    /// The nodes for which the step of that name may have to run.
    pub fn nodes_for(&self, name: &str) -> Vec<String> {
        let wanted = self.steps.iter().filter(|s| s.name == name && s.check.may_run());
        wanted.filter_map(|s| s.info.node.clone()).collect()
    }
}

/// Makes a plan.
///
/// `targets` are node names; empty means all. A step of the cluster is always in. `look` says of a
/// step whether it is needed, `digest` what its inputs come to; both are asked by the second half of
/// its id.
pub fn make(
    shapes: &[Shape],
    cluster: &Cluster,
    targets: &[String],
    look: &dyn Fn(&str, Option<&Node>) -> Check,
    digest: &dyn Fn(&str, Option<&Node>) -> String,
) -> Plan {
    let chosen = |n: &&Node| targets.is_empty() || targets.contains(&n.name);
    let nodes: Vec<&Node> = cluster.nodes.iter().filter(chosen).collect();
    let mut steps: Vec<(&Shape, Option<&Node>, Option<String>)> = Vec::new();
    for shape in shapes {
        match shape.scope {
            Scope::Cluster => steps.push((shape, None, None)),
            Scope::Nodes => steps.extend(nodes.iter().map(|n| (shape, Some(*n), None))),
            Scope::Provisioners(slot) => {
                let of = |n: &&Node| provisioners(cluster, n, slot).map(str::to_owned).collect::<Vec<_>>();
                steps
                    .extend(nodes.iter().flat_map(|n| of(n).into_iter().map(|p| (shape, Some(*n), Some(p)))));
            }
        }
    }
    let name = |shape: &Shape, item: &Option<String>| match item {
        Some(item) => format!("{}-{item}", shape.name),
        None => shape.name.to_owned(),
    };
    let ids: BTreeSet<String> = steps.iter().map(|(s, n, i)| id(&name(s, i), *n)).collect();
    let first = cluster.first_server();
    let mut plan = Plan::default();
    for (shape, node, item) in &steps {
        let name = name(shape, item);
        let before = shape.after.iter().flat_map(|after| match (*after, node) {
            (After::Cluster(name), _) => vec![id(name, None)],
            (After::Node(name) | After::Ended(name), Some(n)) => vec![id(name, Some(n))],
            (After::Node(name) | After::Ended(name), None) => {
                nodes.iter().map(|n| id(name, Some(n))).collect()
            }
            (After::FirstServer(name), Some(n)) if n.name != first.name => vec![id(name, Some(first))],
            (After::FirstServer(name), None) => vec![id(name, Some(first))],
            (After::Workers(name), Some(n)) if n.role == Role::Server => {
                cluster.workers().map(|w| id(name, Some(w))).collect()
            }
            (After::Provisioners(slot), Some(n)) => {
                provisioners(cluster, n, slot).map(|p| id(&format!("{PROVISION}-{p}"), Some(n))).collect()
            }
            (After::Provisioners(slot), None) => nodes
                .iter()
                .flat_map(|n| {
                    provisioners(cluster, n, slot).map(move |p| id(&format!("{PROVISION}-{p}"), Some(n)))
                })
                .collect(),
            (After::FirstServer(_) | After::Workers(_), _) => Vec::new(),
        });
        let mut after: Vec<String> = before.filter(|b| ids.contains(b)).collect();
        if let (Scope::Provisioners(slot), Some(n)) = (shape.scope, node) {
            let mut earlier = provisioners(cluster, n, slot).take_while(|p| Some(*p) != item.as_deref());
            after.extend(earlier.by_ref().last().map(|p| id(&format!("{PROVISION}-{p}"), Some(n))));
        }
        let check = look(&name, *node);
        plan.steps.push(Step {
            info: StepInfo {
                id: id(&name, *node),
                node: node.map(|n| n.name.clone()),
                title: match item {
                    Some(item) => format!("{} {item}", shape.title),
                    None => shape.title.to_owned(),
                },
                digest: digest(&name, *node),
                after,
                reason: String::new(),
                needed: false,
            },
            name: shape.name,
            item: item.clone(),
            check,
            anyway: shape.after.iter().any(|a| matches!(a, After::Ended(_))),
        });
    }
    in_order(&mut plan.steps);
    only_if_served(&mut plan.steps, shapes);
    for step in &mut plan.steps {
        step.info.reason = step.check.reason().to_owned();
        step.info.needed = step.check.may_run();
    }
    plan
}

/// The name of the provisioners' steps, before that of the provisioner.
pub const PROVISION: &str = "provision";

/// A node's provisioners of a slot, in the spec's order.
fn provisioners<'c>(cluster: &'c Cluster, node: &'c Node, slot: Slot) -> impl Iterator<Item = &'c str> {
    let of = move |p: &&crate::spec::Provisioner| p.when == slot && p.nodes.contains(&node.name);
    cluster.provision.iter().filter(of).map(|p| p.name.as_str())
}

/// A step's id.
pub fn id(name: &str, node: Option<&Node>) -> String {
    format!("{}/{name}", node.map_or("cluster", |n| n.name.as_str()))
}

/// Each step behind the steps it comes after; otherwise as they were.
fn in_order(steps: &mut Vec<Step>) {
    let mut rest = std::mem::take(steps);
    let mut placed = BTreeSet::new();
    while !rest.is_empty() {
        let at = rest.iter().position(|s| s.info.after.iter().all(|a| placed.contains(a)));
        // A circle would be a defect in the definitions; a test runs over all of them.
        let step = rest.remove(at.expect("steps form no circle"));
        placed.insert(step.info.id.clone());
        steps.push(step);
    }
}

/// A serving step whose dependents are all done is done as well.
fn only_if_served(steps: &mut [Step], shapes: &[Shape]) {
    let mut wanted: BTreeMap<String, bool> = BTreeMap::new();
    for i in (0..steps.len()).rev() {
        let step = &steps[i];
        let serves = shapes.iter().any(|s| s.name == step.name && s.serves);
        if serves && step.check.may_run() && !wanted.get(&step.info.id).copied().unwrap_or(false) {
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
pub(crate) mod tests {
    use super::*;

    pub(crate) fn cluster(workers: usize) -> Cluster {
        use crate::spec::{K3s, Network, ProviderChoice, Release};
        let node = |name: String, role, i: u8| Node {
            name,
            role,
            ip: [192, 168, 56, 110 + i].into(),
            cpus: 1,
            memory: 1024,
            labels: vec![],
            taints: vec![],
            config: Default::default(),
        };
        let mut nodes = vec![node("server".into(), Role::Server, 0)];
        nodes.extend((1..=workers).map(|i| node(format!("worker-{i}"), Role::Worker, i as u8)));
        Cluster {
            name: "iot".into(),
            provider: ProviderChoice::Libvirt,
            image: crate::spec::BoxRef::Definition("debian-12".into()),
            network: Network { cidr: "192.168.56.0/24".parse().unwrap(), nics: 1 },
            nodes,
            k3s: K3s {
                release: Release::Channel("stable".into()),
                registries: Default::default(),
                artifacts: Default::default(),
            },
            provision: vec![],
            namespaces: vec![],
            manifests: vec![],
            verify: Default::default(),
            timeouts: Default::default(),
            retry: Default::default(),
            base: "/base".into(),
        }
    }

    const SHAPES: &[Shape] = &[
        Shape { name: "files", title: "f", scope: Scope::Cluster, after: &[], serves: true },
        Shape { name: "vm", title: "v", scope: Scope::Nodes, after: &[], serves: false },
        Shape {
            name: "start",
            title: "s",
            scope: Scope::Nodes,
            after: &[After::Node("vm"), After::Cluster("files"), After::FirstServer("start")],
            serves: false,
        },
    ];

    fn planned(look: &dyn Fn(&str, Option<&Node>) -> Check) -> Plan {
        make(SHAPES, &cluster(2), &[], look, &|_, _| "d".into())
    }

    #[test]
    fn workers_wait_for_the_server_and_order_holds() {
        let plan = planned(&|_, _| Check::Needed("x".into()));
        let at = |id: &str| plan.steps.iter().position(|s| s.info.id == id).unwrap();
        assert!(at("server/start") < at("worker-1/start") && at("worker-2/vm") < at("worker-2/start"));
        let after = &plan.steps[at("worker-2/start")].info.after;
        assert_eq!(after, &["worker-2/vm", "cluster/files", "server/start"]);
    }

    #[test]
    fn what_serves_nobody_is_not_done() {
        let plan = planned(&|name, node| match (name, node) {
            ("files", _) => Check::Needed("not there".into()),
            ("start", Some(n)) if n.name == "worker-1" => Check::Needed("stopped".into()),
            _ => Check::Done("there".into()),
        });
        let run: Vec<_> = plan.steps.iter().filter(|s| s.check.may_run()).map(|s| &s.info.id).collect();
        assert_eq!(run, ["cluster/files", "worker-1/start"]);
        let done = planned(&|name, _| match name {
            "files" => Check::Needed("not there".into()),
            _ => Check::Done("there".into()),
        });
        assert!(done.is_done());
    }

    #[test]
    fn provisioners_run_one_after_the_other_in_their_slots() {
        const SHAPES: &[Shape] = &[
            Shape {
                name: PROVISION,
                title: "run",
                scope: Scope::Provisioners(Slot::BeforeK3s),
                after: &[],
                serves: false,
            },
            Shape {
                name: "install",
                title: "i",
                scope: Scope::Nodes,
                after: &[After::Provisioners(Slot::BeforeK3s)],
                serves: false,
            },
            Shape {
                name: PROVISION,
                title: "run",
                scope: Scope::Provisioners(Slot::AfterK3s),
                after: &[After::Node("install")],
                serves: false,
            },
        ];
        let mut cluster = cluster(1);
        let one = |name: &str, when, nodes: &[&str]| crate::spec::Provisioner {
            name: name.into(),
            kind: crate::spec::ProvisionType::Shell,
            when,
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
        let plan = make(SHAPES, &cluster, &[], &|name, _| Check::Needed(name.into()), &|name, _| name.into());
        let edges: Vec<String> =
            plan.steps.iter().map(|s| format!("{} < {}", s.info.after.join(" "), s.info.id)).collect();
        assert_eq!(
            edges,
            [
                " < server/provision-a",
                "server/provision-a < server/provision-b",
                "server/provision-b < server/provision-c",
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
}
