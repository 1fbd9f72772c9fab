//! What the steps of a run share: the cluster's tools, the ways to its nodes, what was seen of it.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use crate::api::{self, NodeStatus};
use crate::artifacts::{self, Cache};
use crate::boxes::Library;
use crate::engine::Trouble;
use crate::guest::{self, Guest, NodeFacts};
use crate::k3s;
use crate::machines::vagrant::{self, Libvirt, Vagrant};
use crate::machines::{self, BoxInfo, Claimant, Hypervisor, Kind, Machine, Made, Owner, Whose};
use crate::observed::files::INSTALLER;
use crate::observed::refusal;
use crate::observed::{Seen, View, Wanted};
use crate::os::sync::lock;
use crate::os::{self, Cancel, files, hash};
use crate::redact::Redactor;
use crate::spec::{Cluster, Node};
use crate::ssh::{self, Endpoint, KnownHosts, Login, Options, Remote, Tunnel};
use crate::state::{NodeMemory, State};

/// One answer over SSH to a short question. Under emulation on a loaded host it takes seconds.
pub const SHORT: Duration = Duration::from_secs(60);
/// How long a server's API port may take to open.
const KNOCK: Duration = Duration::from_secs(2);
/// What one question to the API may take, whichever servers are asked.
const ANSWER: Duration = Duration::from_secs(10);
/// The last of them is asked for so long.
const LEAST: Duration = Duration::from_secs(1);
/// Where etcd's members answer each other (docs.k3s.io/installation/requirements).
const PEERS: u16 = 2380;
/// An answer of the API serves all who ask within so long of it.
const FRESH: Duration = Duration::from_millis(300);
/// The comment of Vagrant's insecure public keys (vagrant `keys/README.md`).
pub const INSECURE: &str = "vagrant insecure public key";
/// Where an image archive is imported from at start (docs.k3s.io/installation/airgap).
const IMAGES: &str = "/var/lib/rancher/k3s/agent/images";

/// What a [`World`] is made of.
pub struct Parts {
    pub cluster: Cluster,
    pub state: State,
    /// What makes its machines.
    pub provider: Box<dyn Hypervisor>,
    /// How libvirt is used, if it is libvirt.
    pub libvirt: Option<Libvirt>,
    /// Its Vagrant.
    pub vagrant: Vagrant,
    /// This host's downloads.
    pub cache: Cache,
    /// How to get at what is elsewhere.
    pub net: artifacts::Net,
    /// This host's boxes.
    pub library: Library,
    /// A lock for what all clusters of this host share.
    pub host_lock: PathBuf,
    /// The user's own VAGRANT_HOME, for the plugins in it.
    pub users_vagrant_home: Option<PathBuf>,
    pub run: String,
    /// The cluster's token, where the spec has it in the environment.
    pub token: Option<String>,
    pub cancel: Cancel,
    /// At most so many nodes at a time.
    pub jobs: usize,
    /// Learns the secrets that this cluster has.
    pub redactor: Redactor,
}

/// Everything shared.
pub struct World {
    parts: Parts,
    seen: Mutex<Arc<Seen>>,
    remotes: Mutex<BTreeMap<String, Arc<Mutex<Remote>>>>,
    files: Mutex<Option<Arc<artifacts::Files>>>,
    api: Mutex<Option<Arc<api::Client>>>,
    answer: Mutex<Option<(Instant, Arc<Vec<NodeStatus>>)>>,
    tunnel: Mutex<Option<Tunnel>>,
    /// Which server is asked first.
    turn: AtomicUsize,
    /// The version that an upgrade goes to.
    aim: Mutex<Option<String>>,
    destroying: Mutex<()>,
    provisioning: Mutex<()>,
    leaving: Mutex<()>,
    getting: Mutex<()>,
    making_key: Mutex<()>,
    pub(super) making_tokens: Mutex<()>,
    memory: Mutex<BTreeMap<String, NodeMemory>>,
    owner: Mutex<Option<Owner>>,
}

impl std::ops::Deref for World {
    type Target = Parts;

    fn deref(&self) -> &Parts {
        &self.parts
    }
}

impl World {
    /// Nothing is looked at yet.
    pub fn new(parts: Parts) -> Arc<Self> {
        let memory = Mutex::new(parts.state.memory());
        Arc::new(Self {
            parts,
            memory,
            seen: Mutex::default(),
            remotes: Mutex::default(),
            files: Mutex::default(),
            api: Mutex::default(),
            answer: Mutex::default(),
            tunnel: Mutex::default(),
            turn: AtomicUsize::new(0),
            aim: Mutex::default(),
            destroying: Mutex::default(),
            provisioning: Mutex::default(),
            leaving: Mutex::default(),
            getting: Mutex::default(),
            making_key: Mutex::default(),
            owner: Mutex::default(),
            making_tokens: Mutex::default(),
        })
    }

    /// The run goes to this version, whatever the cluster is held to.
    pub fn aim_at(&self, version: &str) {
        *lock(&self.aim) = Some(version.to_owned());
    }

    pub(super) fn aim(&self) -> Option<String> {
        lock(&self.aim).clone()
    }

    /// What was seen so far.
    pub fn seen(&self) -> Arc<Seen> {
        Arc::clone(&lock(&self.seen))
    }

    /// Keeps something that was seen.
    pub fn note(&self, change: impl FnOnce(&mut Seen)) {
        change(Arc::make_mut(&mut lock(&self.seen)));
    }

    /// The log of something that is no single step.
    pub fn run_log(&self, name: &str) -> PathBuf {
        self.state.log(&self.run, name)
    }

    /// This folder as an owner; it is given its id when it is one for the first time.
    pub fn owner(&self) -> Result<Owner, Trouble> {
        let mut held = lock(&self.owner);
        if let Some(owner) = &*held {
            return Ok(owner.clone());
        }
        let id = match self.state.id()? {
            Some(id) => id,
            None => {
                let id: String = hash::hex(&random()?[..16]);
                self.state.keep_id(&id)?;
                id
            }
        };
        let owner = Owner { cluster: self.cluster.name.clone(), id, folder: self.state.place() };
        *held = Some(owner.clone());
        Ok(owner)
    }

    /// Whose the machines are now that have the names of these nodes'.
    pub fn whose(&self, nodes: &BTreeSet<String>) -> Result<BTreeMap<String, Whose>, Trouble> {
        let holdings = self.provider.holdings(&self.cluster, nodes, &self.cancel)?;
        let us = self.claimant()?;
        Ok(holdings
            .machines
            .into_iter()
            .map(|(node, held)| {
                let whose = us.judge(&held, Some(&node));
                (node, whose)
            })
            .collect())
    }

    /// This folder as somebody who asks whose things are.
    pub fn claimant(&self) -> Result<Claimant, Trouble> {
        Ok(Claimant {
            cluster: self.cluster.name.clone(),
            folder: self.state.place(),
            id: self.state.id()?,
            machines: self.vagrant.ids(),
        })
    }

    /// How the machines are now.
    pub fn look_at_machines(&self) -> Result<BTreeMap<String, Machine>, Trouble> {
        let ids = self.vagrant.ids();
        let mut machines = self.provider.machines(&self.cluster, &ids, &self.cancel)?;
        let known = lock(&self.seen).machines.clone();
        // Named like ours: whose they are costs a question, and does not change.
        let ours = |node: &String| {
            self.cluster.node(node).is_some() || ids.contains_key(node) || known.contains_key(node)
        };
        let alike: BTreeSet<String> = machines.keys().filter(|n| !ours(n)).cloned().collect();
        if !alike.is_empty() {
            let whose = self.whose(&alike)?;
            machines.retain(|n, _| !alike.contains(n) || whose.get(n).is_some_and(Whose::is_ours));
        }
        self.note(|seen| seen.machines.clone_from(&machines));
        Ok(machines)
    }

    /// How one node's machine is now. What was seen of the others stays: steps at work on them know better.
    pub fn look_at_machine(&self, node: &Node) -> Result<Option<Machine>, Trouble> {
        let mut machines = self.provider.machines(&self.cluster, &self.vagrant.ids(), &self.cancel)?;
        let machine = machines.remove(&node.name);
        self.note(|seen| {
            seen.machines.remove(&node.name);
            seen.machines.extend(machine.clone().map(|m| (node.name.clone(), m)));
        });
        Ok(machine)
    }

    /// A node's machine is gone or new: what was known of it is no longer true.
    pub fn forget_node(&self, node: &str) {
        lock(&self.remotes).remove(node);
        self.note(|seen| {
            seen.nodes.remove(node);
            seen.machines.remove(node);
        });
    }

    /// What is remembered of a node's present machine.
    pub fn memory(&self, node: &str) -> Option<NodeMemory> {
        let machine = self.vagrant.id(node)?;
        lock(&self.memory).get(node).filter(|m| m.machine == machine).cloned()
    }

    /// Remembers something of a node's present machine.
    pub fn remember(&self, node: &str, change: impl FnOnce(&mut NodeMemory)) -> Result<(), Trouble> {
        let mut change = Some(change);
        self.remember_all([node], |_, memory| change.take().expect("of one node")(memory))
    }

    /// Remembers something of each of these nodes' present machines. Written once: what is remembered of
    /// all nodes is one file.
    pub fn remember_all<'n>(
        &self,
        nodes: impl IntoIterator<Item = &'n str>,
        mut change: impl FnMut(&str, &mut NodeMemory),
    ) -> Result<(), Trouble> {
        let mut all = lock(&self.memory);
        let mut changed = false;
        for node in nodes {
            let machine = self.vagrant.id(node).unwrap_or_default();
            // Compared alone: with many nodes the others would be most of the work.
            let before = all.get(node).cloned();
            let entry = all.entry(node.to_owned()).or_default();
            if entry.machine != machine {
                // Written down before there was a machine to bind it to.
                let made = entry.made.take().filter(|_| entry.machine.is_empty());
                *entry = NodeMemory { machine, made, ..NodeMemory::default() };
            }
            change(node, entry);
            changed |= Some(&*entry) != before.as_ref();
        }
        if changed {
            self.state.remember(&all)?;
        }
        Ok(())
    }

    /// Nothing is remembered of a node whose machine is gone.
    pub fn forget_memory(&self, node: &str) -> Result<(), Trouble> {
        let mut all = lock(&self.memory);
        if all.remove(node).is_some() {
            self.state.remember(&all)?;
        }
        Ok(())
    }

    /// What the node's machine is made from and for, from here on.
    pub fn remember_made(&self, node: &Node) -> Result<(), Trouble> {
        let image = self.state.facts()?.image.map(|i| i.wanted).unwrap_or_default();
        let network = &self.cluster.network;
        let made = Made { role: node.role, ip: node.ip, cidr: network.cidr, nics: network.nics, image };
        self.note(|seen| {
            seen.made.insert(node.name.clone(), made.clone());
        });
        self.remember(&node.name, |m| m.made = Some(made))
    }

    /// The way to a node; does not connect yet.
    pub fn remote(&self, node: &Node) -> Result<Arc<Mutex<Remote>>, Trouble> {
        if let Some(remote) = lock(&self.remotes).get(&node.name) {
            return Ok(Arc::clone(remote));
        }
        let login = self.login(node)?;
        let root = login.endpoint.user != vagrant::USER;
        let mut remote = Remote::new(login, self.cancel.clone());
        if root {
            remote = remote.or_as(vagrant::USER);
        }
        let remote = Arc::new(Mutex::new(remote));
        lock(&self.remotes).insert(node.name.clone(), Arc::clone(&remote));
        Ok(remote)
    }

    /// How to log in to a node.
    pub fn login(&self, node: &Node) -> Result<Login, Trouble> {
        let id = self.vagrant.id(&node.name).unwrap_or_default();
        let address = match self.memory(&node.name).and_then(|m| m.made) {
            // Where it is, which need not be where the spec wants the node to be.
            Some(made) if made.nics == 1 && self.provider.kind() == Kind::Libvirt => (made.ip, 22).into(),
            _ => self.provider.endpoint(&self.cluster, &node.name, &id, &self.cancel)?,
        };
        let endpoint = Endpoint {
            node: node.name.clone(),
            host: address.ip().to_string(),
            port: address.port(),
            user: match self.memory(&node.name) {
                Some(NodeMemory { root: true, .. }) => "root".to_owned(),
                _ => vagrant::USER.to_owned(),
            },
        };
        let mut keys = vec![self.state.key()];
        keys.extend(self.vagrant.insecure_keys());
        let known_hosts = KnownHosts::learning(self.state.known_hosts());
        Ok(Login { endpoint, keys, known_hosts, options: Options::default() })
    }

    /// A way to a node for the user's own commands: as the login user, not as root.
    pub fn users_remote(&self, node: &Node) -> Result<Remote, Trouble> {
        let mut login = self.login(node)?;
        login.endpoint.user = vagrant::USER.to_owned();
        Ok(Remote::new(login, self.cancel.clone()))
    }

    /// Works on a node over SSH.
    pub fn on<T, E: Into<Trouble>>(
        &self,
        node: &Node,
        work: impl FnOnce(&mut Remote) -> Result<T, E>,
    ) -> Result<T, Trouble> {
        let remote = self.remote(node)?;
        let mut remote = lock(&remote);
        work(&mut remote).map_err(Into::into)
    }

    /// Runs a short script of root's on a node; its output, if it exits with 0.
    pub fn script(&self, node: &Node, what: &str, script: &str) -> Result<String, Trouble> {
        self.on(node, |r| r.script(what, script, true, SHORT, &mut |_| {})?.ok().map(|o| o.text()))
    }

    /// Asks a node about itself.
    pub fn look_at_node(&self, node: &Node) -> Result<NodeFacts, Trouble> {
        let asked = epoch();
        let text = self.script(node, "asking the node about itself", guest::SCRIPT)?;
        let mut facts = guest::parse(&text)?;
        // Of this moment: whoever reads it later may have waited for other nodes meanwhile.
        facts.ahead = ahead(facts.epoch, asked, epoch());
        self.note(|seen| {
            seen.silent.remove(&node.name);
            seen.remembered.remove(&node.name);
            seen.nodes.insert(node.name.clone(), facts.clone().into());
        });
        Ok(facts)
    }

    /// A node's facts: those that were seen, or asked for now.
    pub fn facts(&self, node: &Node) -> Result<NodeFacts, Trouble> {
        let seen = lock(&self.seen).nodes.get(&node.name).cloned();
        seen.map_or_else(|| self.look_at_node(node), |facts| Ok((*facts).clone()))
    }

    /// The public half of the cluster's key; the first caller makes the pair.
    pub fn public_key(&self) -> Result<String, Trouble> {
        let _one = lock(&self.making_key);
        let comment = format!("p1 {}", self.cluster.name);
        let public = ssh::generate_key(&self.state.key(), &comment, &self.cancel)?;
        self.redactor.learn([std::fs::read_to_string(self.state.key()).unwrap_or_default()]);
        Ok(public)
    }

    /// Knows the secrets that this cluster has by now: the spec's, the tokens, the keys. Those that are made or
    /// come to light later in this run it learns, with all its clones ([`World::learn_tokens`],
    /// [`World::learn_access`]).
    pub fn redactor(&self) -> Redactor {
        let read = |path: PathBuf| files::read_if_there(&path).ok().flatten().unwrap_or_default();
        self.redactor.learn(k3s::secrets(&self.cluster));
        for path in [self.state.token(), self.state.former_token(), self.state.kept_token()] {
            self.learn_tokens(&read(path));
        }
        self.redactor.learn(self.token.clone());
        self.redactor.learn([read(self.state.key())]);
        self.learn_access(&read(self.state.kubeconfig()));
        self.redactor.clone()
    }

    /// The secrets of a file of tokens are known from here on: whatever stands behind the names, should it be
    /// damaged.
    pub fn learn_tokens(&self, text: &str) {
        self.redactor.learn(text.lines().map(|l| l.split_once('=').map_or(l, |(_, value)| value)));
    }

    /// The secrets of a kubeconfig are known from here on.
    pub fn learn_access(&self, kubeconfig: &str) {
        let Ok(access) = k3s::kubeconfig::access(kubeconfig) else { return };
        for pem in [access.key, access.cert] {
            self.redactor.learn([k3s::kubeconfig::encode(&pem), String::from_utf8_lossy(&pem).into_owned()]);
        }
    }

    /// The files that belong on the nodes: resolved, downloaded where they are not in the cache, and
    /// verified.
    pub fn files(
        &self,
        progress: &mut dyn FnMut(artifacts::Progress<'_>),
        warn: &mut dyn FnMut(String),
    ) -> Result<Arc<artifacts::Files>, Trouble> {
        // Held while downloading: whoever comes second waits and finds them.
        let mut held = lock(&self.files);
        if let Some(files) = &*held {
            return Ok(Arc::clone(files));
        }
        let files = Arc::new(self.fetch(progress, warn)?);
        self.note(|seen| {
            seen.wanted = Some(wanted(&files));
            seen.version.clone_from(&files.version);
        });
        // Only now it may be known which version it is.
        let seen = self.seen();
        if let Some(refusal) = refusal::refusal(&View::new(&self.cluster, &seen)) {
            return Err(refusal.into());
        }
        self.keep_version(&files)?;
        *held = Some(Arc::clone(&files));
        Ok(files)
    }

    /// The API of the running cluster, by the kubeconfig in the state folder, at a server that answers.
    fn api_by(&self, end: Instant) -> Result<Arc<api::Client>, Trouble> {
        let mut held = lock(&self.api);
        if let Some(client) = &*held {
            return Ok(Arc::clone(client));
        }
        let path = self.state.kubeconfig();
        let text = files::read_if_there(&path)?
            .ok_or_else(|| Trouble::new("the cluster has no kubeconfig yet", "`p1 up` makes it."))?;
        let (server, through) = self.way_to_api(end);
        let ours = k3s::rewrite(&text, &k3s::server_url(server), &self.cluster.name)?;
        let address = through.as_ref().map(Tunnel::address);
        let client = Arc::new(api::Client::new(&ours, address, ANSWER)?);
        *lock(&self.tunnel) = through;
        *held = Some(Arc::clone(&client));
        Ok(client)
    }

    /// Asks the API, over another server where the one that is asked does not answer: all of it within
    /// [`ANSWER`], however many there are. What none of them answers may pass by itself; who has a
    /// wait's bound asks again ([`super::wait::again`]).
    pub fn ask<T>(&self, question: impl Fn(&api::Client) -> Result<T, api::Error>) -> Result<T, Trouble> {
        let end = Instant::now() + ANSWER;
        let ask =
            |share| self.api_by(end).and_then(|api| question(&api.within(share)).map_err(Trouble::from));
        let next = || {
            self.turn.fetch_add(1, Ordering::Relaxed);
            self.forget_api();
        };
        in_turn(self.cluster.servers().count(), end, || self.cancel.stopping(), ask, next)
    }

    /// The servers, the one that answered last first, without those whose machines are known to be off.
    pub(super) fn servers_in_turn(&self) -> Vec<&Node> {
        let mut all: Vec<&Node> = self.cluster.servers().collect();
        let turn = self.turn.load(Ordering::Relaxed) % all.len();
        all.rotate_left(turn);
        let seen = lock(&self.seen);
        let off = |n: &&Node| seen.machines.get(&n.name).is_some_and(|m| m.state != machines::State::Running);
        match all.iter().all(off) {
            true => all,
            false => all.into_iter().filter(|n| !off(n)).collect(),
        }
    }

    /// A server whose API answers, and a way through SSH where this host cannot reach its address: SSH
    /// may come by a forwarded port. All servers are knocked at at once; one that refuses is reached, but not
    /// surely by its own word, so it comes last. A node that a step works on is left out, or the answer would
    /// take as long as that work.
    fn way_to_api(&self, end: Instant) -> (&Node, Option<Tunnel>) {
        let servers = self.servers_in_turn();
        let heard = os::many::each(servers.len(), &servers, |s| knock(s, KNOCK));
        if let Some(at) = heard.iter().position(|h| *h == Knocked::Open) {
            return (servers[at], None);
        }
        let of = |knocked| servers.iter().zip(&heard).filter(move |(_, h)| **h == knocked).map(|(s, _)| *s);
        for server in of(Knocked::Silent).chain(of(Knocked::Refused)) {
            if Instant::now() >= end {
                break;
            }
            let port = k3s::config::api_port(server);
            let Ok(remote) = self.remote(server) else { continue };
            let Ok(remote) = remote.try_lock() else { continue };
            let Ok(tunnel) = remote.tunnel("127.0.0.1", port) else { continue };
            drop(remote);
            let answers = || {
                let (url, bound) = (k3s::server_url(server), Duration::from_secs(5));
                api::cacerts(&url, Some(tunnel.address()), bound, &self.cancel).is_ok()
            };
            if servers.len() == 1 || answers() {
                return (server, Some(tunnel));
            }
        }
        (servers[0], None)
    }

    /// A server that runs, to work on the cluster through; `not` this one, which joins or leaves.
    pub fn serving(&self, not: Option<&Node>) -> Result<&Node, Trouble> {
        let mut servers = self.servers_in_turn();
        servers.retain(|s| not.is_none_or(|n| n.name != s.name));
        if let [only] = servers[..] {
            return Ok(only);
        }
        let open = servers.iter().find(|s| listens(s, KNOCK));
        open.or_else(|| servers.iter().find(|s| self.is_active(s))).copied().ok_or_else(|| {
            Trouble::new("no other server of the cluster runs", "`p1 status` shows how they are.").transient()
        })
    }

    /// The system of a node's machine, by what was seen of it.
    pub fn guest(&self, node: &Node) -> &'static dyn Guest {
        guest::of(lock(&self.seen).nodes.get(&node.name).map(|facts| &**facts))
    }

    /// Whether k3s runs on a server, by its own word.
    pub fn is_up(&self, server: &Node) -> bool {
        listens(server, KNOCK) || self.is_active(server)
    }

    /// Whether the unit is active on a server, by its init system's word.
    pub(super) fn is_active(&self, server: &Node) -> bool {
        let script = self.guest(server).service().is_active(server.role.unit());
        self.script(server, "looking for a server", &script).is_ok()
    }

    /// How many of the spec's servers have something that answers where etcd's members do, and how many there
    /// are. Without a word over SSH: who asks wants to know why nobody else answers.
    pub fn members(&self) -> (usize, usize) {
        let servers: Vec<&Node> = self.cluster.servers().collect();
        let seen = self.seen();
        let runs = |n: &Node| seen.machines.get(&n.name).is_none_or(|m| m.state == machines::State::Running);
        let there = AtomicUsize::new(0);
        os::many::each(servers.len(), &servers, |server| {
            let etcd = (server.ip, PEERS).into();
            let open =
                || std::net::TcpStream::connect_timeout(&etcd, KNOCK).is_ok() || listens(server, KNOCK);
            if runs(server) && open() {
                there.fetch_add(1, Ordering::Relaxed);
            }
        });
        (there.into_inner(), servers.len())
    }

    /// What the API says of all nodes just now. Steps that ask at the same time share an answer: each
    /// costs as much as there are nodes.
    pub fn nodes(&self) -> Result<Arc<Vec<NodeStatus>>, Trouble> {
        let mut held = lock(&self.answer);
        if let Some((asked, nodes)) = &*held
            && asked.elapsed() < FRESH
        {
            return Ok(Arc::clone(nodes));
        }
        let asked = Instant::now();
        let nodes = Arc::new(self.ask(|api| api.nodes(&self.cancel))?);
        *held = Some((asked, Arc::clone(&nodes)));
        Ok(nodes)
    }

    /// What the API said is no longer so: the next [`World::nodes`] asks.
    pub fn forget_nodes(&self) {
        *lock(&self.answer) = None;
    }

    /// Another kubeconfig, or another server: the next [`World::ask`] looks.
    pub fn forget_api(&self) {
        *lock(&self.api) = None;
    }

    /// One `vagrant destroy` at a time.
    pub fn destroying(&self) -> MutexGuard<'_, ()> {
        lock(&self.destroying)
    }

    /// One `vagrant provision` at a time.
    pub fn provisioning(&self) -> MutexGuard<'_, ()> {
        lock(&self.provisioning)
    }

    /// One server at a time leaves a cluster.
    pub fn leaving(&self) -> MutexGuard<'_, ()> {
        lock(&self.leaving)
    }

    /// What several steps of a run need is got by the first of them; the others wait and find it.
    pub fn getting(&self) -> MutexGuard<'_, ()> {
        lock(&self.getting)
    }

    /// A line to be said before anything else, if what is used is not what it is called.
    pub fn banner(&self) -> Option<String> {
        let artifacts = &self.cluster.k3s.artifacts;
        let crate::spec::Source::Path(installer) = artifacts.installer.as_ref()? else { return None };
        banner_of(&files::read_if_there(installer).ok()??)
    }

    /// Writes the configuration for `ssh -F`.
    pub fn write_ssh_config(&self) -> Result<(), Trouble> {
        let mut hosts = Vec::new();
        for node in &self.cluster.nodes {
            if let Ok(host) = self.ssh_host(node) {
                hosts.push(host);
            }
        }
        files::write_if_changed(&self.state.ssh_config(), ssh::config(&hosts).as_bytes(), 0o600)?;
        Ok(())
    }

    /// A node for the system's `ssh`.
    pub fn ssh_host(&self, node: &Node) -> Result<ssh::Host, Trouble> {
        Ok(ssh::Host {
            endpoint: Endpoint { user: vagrant::USER.to_owned(), ..self.login(node)?.endpoint },
            key: self.state.key(),
            known_hosts: self.state.known_hosts(),
        })
    }

    /// The box the machines are made from, if it is known and in Vagrant's home.
    pub fn box_info(&self) -> Result<Option<BoxInfo>, Trouble> {
        let Some(fact) = self.state.facts()?.image else { return Ok(None) };
        if fact.wanted != super::image::wanted(self)? {
            return Ok(None);
        }
        let info = self.vagrant.box_info(&fact.label, &fact.sha256);
        Ok(self.vagrant.has_box(&info).then_some(info))
    }

    /// Writes the Vagrantfile, private as provisioners may have passwords, and makes the key that it names.
    pub fn write_vagrantfile(&self) -> Result<(), Trouble> {
        self.public_key()?;
        let info =
            self.box_info()?.ok_or_else(|| Trouble::new("the box is not there", "`p1 up` gets it."))?;
        let text = vagrant::vagrantfile(&self.cluster, self.provider.name(), self.libvirt.as_ref(), &info)?;
        files::write_if_changed(&self.state.vagrantfile(), text.as_bytes(), 0o600)?;
        Ok(())
    }
}

/// Asks `tries` servers at most, one after the other, for as long as what keeps them from answering may pass by
/// itself. However many there are, all of it ends at `end`: each has half of what is left, the last one all.
fn in_turn<T>(
    mut tries: usize,
    end: Instant,
    stopping: impl Fn() -> bool,
    ask: impl Fn(Duration) -> Result<T, Trouble>,
    next: impl Fn(),
) -> Result<T, Trouble> {
    let mut first: Option<Trouble> = None;
    loop {
        let left = end.saturating_duration_since(Instant::now());
        let share = if tries > 1 { left / 2 } else { left }.max(LEAST);
        match ask(share) {
            // A server that is down, or one that is cut off from the others: the next one is asked.
            Err(trouble) if trouble.may_pass() && !stopping() => {
                tries = tries.saturating_sub(1);
                next();
                let trouble = first.get_or_insert(trouble);
                if tries == 0 || Instant::now() >= end {
                    // All have been asked: what the one says that answered before tells most.
                    return Err(trouble.clone());
                }
            }
            answer => return answer,
        }
    }
}

/// Whether something accepts connections at a server's API port.
pub fn listens(server: &Node, bound: Duration) -> bool {
    knock(server, bound) == Knocked::Open
}

/// What a connection to a server's API port came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Knocked {
    Open,
    /// The machine answers, and nothing listens there.
    Refused,
    Silent,
}

fn knock(server: &Node, bound: Duration) -> Knocked {
    let address = (server.ip, k3s::config::api_port(server)).into();
    match std::net::TcpStream::connect_timeout(&address, bound) {
        Ok(_) => Knocked::Open,
        Err(e) if e.kind() == std::io::ErrorKind::ConnectionRefused => Knocked::Refused,
        Err(_) => Knocked::Silent,
    }
}

/// What an installer says of itself within its first lines: `# p1-banner: TEXT`.
fn banner_of(installer: &str) -> Option<String> {
    let mark = installer.lines().take(5).find_map(|l| l.strip_prefix("# p1-banner:"))?;
    Some(mark.trim().to_owned())
}

/// Where each file goes on a node.
pub fn wanted(files: &artifacts::Files) -> Vec<Wanted> {
    let one = |file: &artifacts::File, path: String, mode| Wanted {
        source: file.path.clone(),
        path,
        sha256: file.sha256.clone(),
        len: file.len,
        mode,
    };
    let mut all = vec![
        one(&files.binary, format!("{}/k3s", k3s::BIN_DIR), 0o755),
        one(&files.installer, INSTALLER.to_owned(), 0o700),
    ];
    for image in &files.images {
        all.push(one(image, format!("{IMAGES}/{}", image.name), 0o600));
    }
    all
}

/// This host's clock, seconds since 1970.
fn epoch() -> i64 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(0, |d| d.as_secs());
    i64::try_from(now).unwrap_or(i64::MAX)
}

/// By how much a clock is ahead that said `said` at some moment between `from` and `to`.
fn ahead(said: i64, from: i64, to: i64) -> i64 {
    said - said.clamp(from, to.max(from))
}

pub(super) fn random() -> Result<[u8; 32], Trouble> {
    use crate::os::files::At;
    use std::io::Read;
    let (path, mut bytes) = (std::path::Path::new("/dev/urandom"), [0; 32]);
    std::fs::File::open(path).and_then(|mut f| f.read_exact(&mut bytes)).at("read", path)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fail_over_has_one_bound_however_many_servers_are_silent() {
        let bound = LEAST * 4;
        let shares = std::cell::RefCell::new(Vec::new());
        let silent = |share: Duration| {
            shares.borrow_mut().push(share);
            std::thread::sleep(share);
            Err::<u8, _>(Trouble::new(format!("silent {}", shares.borrow().len()), "").transient())
        };
        let start = Instant::now();
        let trouble = in_turn(5, start + bound, || false, silent, || {}).unwrap_err();
        assert_eq!(trouble.failure.cause, "silent 1", "the one that answered before tells most");
        assert!(start.elapsed() < bound + 2 * LEAST, "{:?}", shares.borrow());
        assert!(shares.borrow().len() > 2 && shares.borrow()[0] <= bound / 2, "{:?}", shares.borrow());

        // The first is silent for its share, the second answers; what lasts is asked of nobody else.
        let asked = std::cell::Cell::new(0);
        let second = |_| {
            asked.set(asked.get() + 1);
            if asked.get() == 2 { Ok(7) } else { Err(Trouble::new("reset", "").transient()) }
        };
        assert_eq!(in_turn(3, Instant::now() + bound, || false, second, || {}).unwrap(), 7);
        asked.set(0);
        let lasting = |_| {
            asked.set(asked.get() + 1);
            Err::<u8, _>(Trouble::new("forbidden", ""))
        };
        in_turn(3, Instant::now() + bound, || false, lasting, || {}).unwrap_err();
        assert_eq!(asked.get(), 1);
    }

    /// An answer that takes its time says nothing about the clock.
    #[test]
    fn a_clock_is_off_by_what_the_answers_time_does_not_explain() {
        assert_eq!(ahead(1000, 1000, 1015), 0);
        assert_eq!(ahead(1014, 1000, 1015), 0);
        assert_eq!(ahead(1100, 1000, 1015), 85);
        assert_eq!(ahead(900, 1000, 1015), -100);
        // This host's own clock was set back meanwhile.
        assert_eq!(ahead(1000, 1000, 990), 0);
    }

    /// Nobody may take a cluster of the stand-in for one of k3s.
    #[test]
    fn the_stand_in_says_what_it_is() {
        let banner = banner_of(include_str!("../../tests/standin/install.sh")).unwrap();
        assert!(banner.contains("stand-in"), "{banner}");
        assert_eq!(banner_of("#!/bin/sh\n# Installs k3s.\n"), None);
    }
}
