//! What was seen of a cluster, and every judgement of it: the questions that conditions ask, what differs from the spec,
//! what is lost, what is refused, what etcd bears. Pure: a judgement looks at nothing but what it is given.

pub mod applied;
pub mod changes;
pub mod describe;
pub mod drift;
pub mod faults;
pub mod files;
pub mod found;
pub mod images;
pub mod preflight;
pub mod quorum;
pub mod ready;
pub mod refusal;
pub mod start;
pub mod ways;

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;

use jiff::Timestamp;

use crate::api::NodeStatus;
use crate::apps::Inventory;
use crate::backup::Backup;
use crate::event::Failure;
use crate::fault::Active;
use crate::guest::{Activity, NodeFacts, Since, Unit};
use crate::k3s::{self, Arch, Join, Tokens};
use crate::machines::{Caps, Hosting, Kind, Machine, MachineState, Made, Note};
use crate::plan::{Check, K3sState};
use crate::spec::{Cluster, Libvirt, Node, Role};
use crate::state::Unfinished;

pub use drift::Drift;

/// Everything that is known of a cluster: what was seen of it, which only a look writes and a step that has changed it,
/// what was asked for, and what this run has done.
#[derive(Clone, Debug, Default)]
pub struct Observed {
    /// By node: the provider's word.
    pub machines: BTreeMap<String, Machine>,
    /// By node: how this host keeps its machine, as far as the provider can tell.
    pub hosting: BTreeMap<String, Hosting>,
    /// The nodes whose present machine p1 has made start with this host.
    pub autostarts: BTreeSet<String>,
    /// By node: what it said of itself over SSH.
    pub nodes: BTreeMap<String, Arc<NodeFacts>>,
    /// By node: the k3s that somebody installed on its machine, as far as p1 has not installed one since.
    pub found: BTreeMap<String, Arc<k3s::Found>>,
    /// The nodes whose present machine had its k3s before p1 came.
    pub before: BTreeSet<String>,
    /// By node: why it did not answer over SSH.
    pub silent: BTreeMap<String, String>,
    /// What the cluster's API said of its nodes, if it answered.
    pub api: Option<BTreeMap<String, NodeStatus>>,
    /// By node: when the API last heard of its kubelet, by the node's clock.
    pub reported: BTreeMap<String, Timestamp>,
    /// Why the API did not answer.
    pub deaf: Option<String>,
    /// Of several servers, where the API did not answer: how many have an etcd that does, and how many there are.
    pub members: Option<(usize, usize)>,
    /// Nodes of which is known what they said before: the API vouches for them, and they were not asked.
    pub remembered: BTreeSet<String>,
    /// What runs there by the spec's manifests, if the API told.
    pub apps: Option<Apps>,
    /// What the network of the machines that run lacks, or which of them are not connected to it.
    pub link: Option<String>,
    /// The nodes whose present machine is known to have been part of the cluster.
    pub joined: BTreeSet<String>,
    /// By node: the version that it had when it was Ready last.
    pub versions: BTreeMap<String, String>,
    /// By server: what it was told of the settings that are fixed once there is data, as far as it is remembered.
    pub settings: BTreeMap<String, k3s::fixed::Written>,
    /// By node: what its present machine was made from and for, as far as it is remembered.
    pub made: BTreeMap<String, Made>,
    /// Machines and Node objects of nodes that the spec does not have, as far as they are this
    /// cluster's; with the role and the address that they had.
    pub former: Vec<Node>,
    /// What else differs from the spec, told by whoever looked.
    pub differs: Vec<Drift>,
    /// What this host and this folder have for it.
    pub here: Here,
    /// What was asked for.
    pub request: Request,
    /// What this run has done.
    pub run: RunState,
}

/// What this host and this folder have for a cluster.
#[derive(Clone, Debug, Default)]
pub struct Here {
    /// By which this folder's k3s is known on a machine that existed before; none where nothing was begun.
    pub mark: Option<String>,
    /// Why the files of k3s that are on this host cannot be used.
    pub unfit: Option<Failure>,
    /// The box is known and in Vagrant's home.
    pub box_ready: bool,
    /// Whether machines that are made start from a baked box.
    pub baked: Baked,
    /// Whether the provider has all that the machines share, or what it lacks; none if it was not asked.
    pub prepared: Option<Result<(), String>>,
    /// The cluster's secrets, if they are made.
    pub tokens: Option<Tokens>,
    /// By architecture: the files that belong on nodes, as far as they are known.
    pub wanted: BTreeMap<Arch, Vec<Wanted>>,
    /// This host's architecture: that of machines which are still to be made.
    pub arch: Option<Arch>,
    /// The version of k3s that is wanted, if it is known.
    pub version: Option<String>,
    /// The kubeconfig is in the state folder.
    pub kubeconfig: bool,
    /// By provisioner: what it is made from, or why its files cannot be read.
    pub provision: BTreeMap<String, Result<MadeFrom, String>>,
    /// The commands on this host that were run for the cluster, with the digest of each.
    pub ran: BTreeMap<String, String>,
    /// What the spec's box stands for just now.
    pub image: Option<String>,
    /// What makes the cluster's machines.
    pub provider: Option<Kind>,
    /// Which libvirt has them.
    pub libvirt: Option<Libvirt>,
    /// The files of this host that the spec gives as artifacts: what tells each from another of its name.
    pub given: String,
    /// What was begun with the cluster's data and has not come to its end.
    pub unfinished: Option<Unfinished>,
    /// The faults that are on nodes.
    pub faults: Vec<Active>,
    /// How many images this host keeps for the cluster's new nodes.
    pub images: usize,
}

/// Whether machines that are made start from a box that has k3s' files already.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Baked {
    /// They do not.
    #[default]
    No,
    /// It is told when it is known which k3s is wanted.
    Unknown,
    /// None fits, and one is baked.
    Due,
    /// From the one of this name.
    Fits(String),
}

/// What was asked for. It is written before a run begins, and not after.
#[derive(Clone, Debug, Default)]
pub struct Request {
    /// The verb is for the whole cluster.
    pub whole: bool,
    /// The nodes that the verb is for.
    pub targets: Vec<String>,
    /// No machine of the cluster stays or comes back.
    pub whole_goes: bool,
    /// What the verb is about beside nodes.
    pub subject: Option<String>,
    /// The machines that go, as they were made: of former nodes, and of nodes that are recreated.
    pub leaving: Vec<Node>,
    /// Namespaces that the user agreed to delete with all that is in them.
    pub agreed: Vec<String>,
}

/// What this run has done, for the steps that come later. Only steps write it.
#[derive(Clone, Debug, Default)]
pub struct RunState {
    /// By node: when p1 started k3s in this run, by the node's clock, seconds since 1970.
    pub started: BTreeMap<String, i64>,
    /// By node: since when its k3s, which was started in this run before there was a server, counts; it is still to
    /// be judged.
    pub launched: BTreeMap<String, Since>,
    /// By node: k3s' unit when a `verify` began.
    pub proven: BTreeMap<String, Unit>,
    /// By name: nodes that are out of the cluster, so that their machines may go.
    pub left: Vec<String>,
    /// Nodes with whose machines nothing is left to do but to destroy them.
    pub ends: BTreeSet<String>,
    /// Nodes of [`Request::leaving`] whose machines are gone.
    pub gone: BTreeSet<String>,
    /// The disk that it made for machines to copy k3s from.
    pub on_disk: Option<Arc<files::OnDisk>>,
    /// The moment of the snapshot that it takes, or goes back to.
    pub moment: Option<Note>,
    /// Machines that it paused and that do not go on yet.
    pub paused: BTreeSet<String>,
    /// Nodes whose machines it let go on: what the API says of them is what it had heard before.
    pub woken: BTreeSet<String>,
    /// By node: the password that a backup asked for.
    pub passwords: BTreeMap<String, String>,
    /// The backup that it puts back, read and checked.
    pub backup: Option<Arc<Backup>>,
    /// The data of that backup is in its place.
    pub placed: bool,
}

impl Observed {
    /// The machines that are still to go, as they were made.
    pub fn leaving(&self) -> impl Iterator<Item = &Node> {
        self.request.leaving.iter().filter(|n| !self.run.gone.contains(&n.name))
    }
}

/// What was seen of the applications.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Apps {
    /// The note of what was applied; empty if nothing was.
    pub inventory: Inventory,
    /// What was applied and is not there.
    pub missing: Vec<String>,
    /// Those of them that are applied as soon as the API answers.
    pub shaken: Vec<String>,
    /// What was applied and does not run as it should: object, and what it lacks.
    pub unfinished: Vec<(String, String)>,
    /// Namespaces that p1 made and that left the spec, with objects in them that p1 did not apply.
    pub held: BTreeMap<String, Vec<String>>,
    /// Objects that the cluster has in another form than the manifests say; only when looked at closely.
    pub differing: Vec<String>,
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
    /// SHA-256, hexadecimal.
    pub sha256: String,
    /// Bytes.
    pub len: u64,
    pub mode: u32,
}

/// What a condition is told from.
pub struct View<'a> {
    pub cluster: &'a Cluster,
    /// What was seen.
    pub seen: &'a Observed,
}

impl<'a> View<'a> {
    /// Of everything that was seen.
    pub fn new(cluster: &'a Cluster, seen: &'a Observed) -> Self {
        Self { cluster, seen }
    }

    /// What a provisioner is made from, for the journal; none if its files cannot be read, or were not looked at.
    pub fn provisioner(&self, name: &str) -> Option<String> {
        self.seen.here.provision.get(name)?.as_ref().ok().map(|made| made.told.clone())
    }

    /// The node's machine; none for one that goes before the node is recreated.
    pub fn machine(&self, node: &Node) -> Machine {
        if self.is_recreated(node) {
            return Machine::absent();
        }
        self.seen.machines.get(&node.name).cloned().unwrap_or_else(Machine::absent)
    }

    /// What may be asked of the node's machine; one that nobody has looked at is taken for one that p1 makes.
    pub fn can(&self, node: &Node) -> Caps {
        self.seen.machines.get(&node.name).map_or(Caps::ALL, |machine| machine.can)
    }

    /// Whether its machine is still to go before the node is made.
    pub fn is_recreated(&self, node: &Node) -> bool {
        self.seen.leaving().any(|n| n.name == node.name) && self.cluster.node(&node.name).is_some()
    }

    /// What the node said of itself, or what to think of a step inside it until it has.
    pub fn facts(&self, node: &Node) -> Result<&NodeFacts, Check> {
        if let Some(facts) = self.seen.nodes.get(&node.name)
            && !self.is_recreated(node)
        {
            return Ok(facts);
        }
        Err(match self.machine(node).state {
            MachineState::Absent => Check::Needed("the machine is new".into()),
            _ => Check::Unknown("checked when the machine answers".into()),
        })
    }

    /// The same for a step that a box may have been through already.
    pub fn facts_or_baked(&self, node: &Node) -> Result<&NodeFacts, Check> {
        self.facts(node).map_err(|check| match (check, &self.seen.here.baked) {
            (check, Baked::No) | (check @ (Check::Done(_) | Check::Unknown(_)), _) => check,
            (Check::Needed(_), Baked::Fits(name)) => Check::Unknown(format!("the box {name} has it")),
            (Check::Needed(_), _) => Check::Unknown("a baked box has it".into()),
        })
    }

    /// The node's architecture: its own word, else this host's.
    pub fn arch(&self, node: &Node) -> Option<Arch> {
        let said = self.seen.nodes.get(&node.name).and_then(|facts| Arch::from_uname(&facts.arch));
        said.or(self.seen.here.arch)
    }

    /// The files that belong on the node, if they are known.
    pub fn wanted(&self, node: &Node) -> Option<&'a [Wanted]> {
        self.seen.here.wanted.get(&self.arch(node)?).map(Vec::as_slice)
    }

    /// The architectures of the nodes with k3s.
    pub fn archs(&self) -> BTreeSet<Arch> {
        self.cluster.members().filter_map(|node| self.arch(node)).collect()
    }

    /// The version that a node runs: by the API's word, else the last that is known.
    pub fn version(&self, node: &Node) -> Option<&str> {
        let said = self.status(node).map(|s| s.version.as_str()).filter(|v| !v.is_empty());
        said.or_else(|| self.seen.versions.get(&node.name).map(String::as_str))
    }

    /// Whether a server has a cluster's data, on its own disk or in a datastore that it is given.
    pub fn has_data(server: &NodeFacts) -> bool {
        server.datastore.is_some() || server.stamps.contains_key("start")
    }

    /// What a server with data was told of the settings that are fixed then; none if it has none, or if it
    /// is not known.
    pub fn fixed(&self, server: &Node) -> Option<&'a k3s::fixed::Written> {
        match self.seen.nodes.get(&server.name) {
            Some(facts) => facts.settings.as_ref().filter(|_| Self::has_data(facts)),
            None => self.seen.settings.get(&server.name),
        }
    }

    /// How k3s stands on the node: by what it says of itself, else by what is remembered of it. One that is
    /// recreated is new.
    pub fn k3s_state(&self, node: &Node) -> K3sState {
        if self.is_recreated(node) { K3sState::New } else { self.k3s_state_now(node) }
    }

    /// Too few of several servers have an etcd that answers, so that nothing of the cluster can be asked or changed.
    pub fn minority(&self) -> Option<String> {
        let (answer, all) = self.seen.members.filter(|(answer, all)| answer * 2 <= *all)?;
        Some(format!("{answer} of {all} servers answer, and it needs {} of them", all / 2 + 1))
    }

    /// The same of the machine that is there now, be it about to go or not.
    pub fn k3s_state_now(&self, node: &Node) -> K3sState {
        if !node.role.has_k3s() {
            return K3sState::New;
        }
        if let Some(facts) = self.seen.nodes.get(&node.name) {
            let was = match node.role {
                Role::Server => facts.datastore.is_some() || facts.stamps.contains_key("start"),
                Role::Worker | Role::None => facts.node_password,
            };
            return match facts.unit(node.role.unit()).active {
                Activity::Active => K3sState::Running,
                _ if was => K3sState::Stopped,
                _ => K3sState::New,
            };
        }
        match self.machine(node).state {
            MachineState::Absent => K3sState::New,
            _ if !self.seen.joined.contains(&node.name) => K3sState::New,
            MachineState::Running => K3sState::Running,
            _ => K3sState::Stopped,
        }
    }

    /// No server has data yet, none goes, and there is no datastore of the spec's: what joins is unknown to the
    /// cluster, so nothing of its former life has to be taken out of it first.
    pub fn is_fresh(&self, leaving: &[Node]) -> bool {
        let new =
            |s: &Node| self.k3s_state_now(s) == K3sState::New && !s.config.contains_key("datastore-endpoint");
        self.cluster.servers().all(new) && !leaving.iter().any(|n| n.role == Role::Server)
    }

    /// How the node begins, or began: what its configuration says stays as long as it is good for
    /// anything, so that no node is restarted because another one is down.
    pub fn join(&self, node: &Node) -> Join {
        let (cluster, server) = (self.cluster, node.role == Role::Server);
        if server && !cluster.has_etcd() {
            return Join::Alone;
        }
        let facts = self.facts(node).ok();
        let datastore = facts.and_then(|f| f.datastore.as_deref());
        let others = |wanted: K3sState| {
            cluster.servers().filter(move |s| s.name != node.name && self.k3s_state_now(s) == wanted)
        };
        // Rather one that stays; but one that goes later is still of the cluster.
        let stays = |s: &&Node| !self.is_recreated(s);
        let running = others(K3sState::Running).find(stays).or_else(|| others(K3sState::Running).next());
        let other = running.or_else(|| others(K3sState::Stopped).next());
        match facts.and_then(|f| f.joins.as_deref()) {
            Some("init") if server && (datastore.is_some() || other.is_none()) => return Join::Init,
            Some(url) => {
                let named = cluster.servers().find(|s| s.name != node.name && k3s::server_url(s) == url);
                let knows = datastore == Some("etcd") || facts.is_some_and(|f| !server && f.node_password);
                let good =
                    |s: &Node| knows || running.is_none() || self.k3s_state_now(s) == K3sState::Running;
                if named.is_some_and(good) {
                    return Join::Server(url.to_owned());
                }
            }
            None => {}
        }
        match other {
            _ if server && datastore == Some("sqlite") => Join::Init,
            Some(other) => Join::Server(k3s::server_url(other)),
            None if node.name == cluster.first_server().name => Join::Init,
            None => Join::Server(k3s::server_url(cluster.first_server())),
        }
    }

    /// What the API said of the node.
    pub fn status(&self, node: &Node) -> Option<&NodeStatus> {
        self.seen.api.as_ref()?.get(&node.name).filter(|_| !self.is_recreated(node))
    }
}

/// A check over facts: `Done` unless `wrong` finds something.
pub fn holds(done: &str, wrong: Option<String>) -> Check {
    wrong.map_or_else(|| Check::Done(done.into()), Check::Needed)
}
