//! What was seen of a cluster, and the questions that conditions ask of it.

use std::collections::BTreeMap;
use std::path::PathBuf;

use crate::api::NodeStatus;
use crate::facts::NodeFacts;
use crate::k3s::Tokens;
use crate::plan::Check;
use crate::providers::{Machine, State};
use crate::spec::{Cluster, Node};

/// Everything that was seen.
#[derive(Clone, Debug, Default)]
pub struct Seen {
    /// By node: the provider's word.
    pub machines: BTreeMap<String, Machine>,
    /// By node: what it said of itself over SSH.
    pub nodes: BTreeMap<String, NodeFacts>,
    /// By node: why it did not answer over SSH.
    pub silent: BTreeMap<String, String>,
    /// What the cluster's API said of its nodes, if it answered.
    pub api: Option<BTreeMap<String, NodeStatus>>,
    /// The box is known and in Vagrant's home.
    pub box_ready: bool,
    /// Whether the provider has all that the machines share, or what it lacks; none if it was not asked.
    pub prepared: Option<Result<(), String>>,
    /// The cluster's secrets, if they are made.
    pub tokens: Option<Tokens>,
    /// The files that belong on nodes, if they are known.
    pub wanted: Option<Vec<Wanted>>,
    /// The version of k3s that is wanted, if it is known.
    pub version: Option<String>,
    /// The kubeconfig is in the state folder.
    pub kubeconfig: bool,
    /// By node: when p1 started k3s in this run, by the node's clock, seconds since 1970.
    pub started: BTreeMap<String, i64>,
    /// By provisioner: what it is made from, or why its files cannot be read.
    pub provision: BTreeMap<String, Result<MadeFrom, String>>,
    /// The verb is for the whole cluster.
    pub whole: bool,
    /// The nodes that the verb is for.
    pub doomed: Vec<String>,
    /// What the verb is about beside nodes.
    pub subject: Option<String>,
}

/// Digests of a provisioner's settings and of what the files that it names hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MadeFrom {
    /// For the journal: without the values of its environment, which may be secrets.
    pub told: String,
    /// For the node: with them, and with the cluster's own secret, so that they cannot be guessed from it.
    pub noted: String,
}

/// A file that belongs on every node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wanted {
    /// On this host.
    pub source: PathBuf,
    /// On the node.
    pub path: String,
    /// Its checksum.
    pub sha256: String,
    /// Bytes.
    pub len: u64,
    /// Its mode.
    pub mode: u32,
}

/// What a condition is told from.
pub struct View<'a> {
    /// The spec.
    pub cluster: &'a Cluster,
    /// What was seen.
    pub seen: &'a Seen,
    /// Which of several steps of a kind is asked about: a provisioner's name.
    pub item: Option<&'a str>,
}

impl<'a> View<'a> {
    /// Of everything that was seen.
    pub fn new(cluster: &'a Cluster, seen: &'a Seen) -> Self {
        Self { cluster, seen, item: None }
    }

    /// What a provisioner is made from, for the journal; none if its files cannot be read, or were not looked at.
    pub fn provisioner(&self, name: &str) -> Option<String> {
        self.seen.provision.get(name)?.as_ref().ok().map(|made| made.told.clone())
    }

    /// The node's machine.
    pub fn machine(&self, node: &Node) -> Machine {
        self.seen.machines.get(&node.name).cloned().unwrap_or_else(Machine::absent)
    }

    /// What the node said of itself, or what to think of a step inside it until it has.
    pub fn facts(&self, node: &Node) -> Result<&NodeFacts, Check> {
        if let Some(facts) = self.seen.nodes.get(&node.name) {
            return Ok(facts);
        }
        Err(match self.machine(node).state {
            State::Absent => Check::Needed("the machine is new".into()),
            _ => Check::Unknown("looked at when the machine answers".into()),
        })
    }

    /// What the API said of the node.
    pub fn status(&self, node: &Node) -> Option<&NodeStatus> {
        self.seen.api.as_ref()?.get(&node.name)
    }
}

/// A check over facts: `Done` unless `wrong` finds something.
pub fn holds(done: &str, wrong: Option<String>) -> Check {
    wrong.map_or_else(|| Check::Done(done.into()), Check::Needed)
}
