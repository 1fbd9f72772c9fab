//! The embedded etcd of several servers, as far as others can see it: members that join, a majority
//! without which nothing is served, state that outlives the loss of a server, snapshots.
//!
//! Underneath it is much simpler than etcd. Every server has all of the state in memory and on its disk.
//! Members look for each other a few times a second; among those that are there, the one with the
//! newest state leads (of several, the one that joined first), as long as they are a majority. The
//! leader's store is the cluster's: others hand their requests on to it, and it sends its state to them
//! before it answers a write. That keeps every write through the loss of any minority, which is what
//! tests are after; it is no consensus among servers that only lose sight of each other.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::client::{Answer, Client};
use crate::config::{Config, Role};
use crate::http::{Request, Response};
use crate::store::{Store, StoreState};
use crate::{agent, kubelet, log, paths, util};

/// Where members speak to each other, below `/v1-k3s/`.
pub const PEERS: &str = "standin-etcd";
/// The whole state, for one that joins or was away.
pub const STATE: &str = "standin-etcd-state";
/// Who joins asks to be taken in.
pub const MEMBERS: &str = "standin-etcd-members";
/// A key that the API cannot list.
const KEY: &str = "standin/etcd/-/members";
/// One that does not answer in time is still counted for so long; one that refuses is gone at once.
const PATIENCE: Duration = Duration::from_secs(10);

/// Files of the certificate authorities, which are the same on all servers.
pub const BOOTSTRAP: [&str; 4] = ["server-ca.crt", "server-ca.key", "client-ca.crt", "client-ca.key"];

/// One server's view of the others.
pub struct Etcd {
    store: Arc<Store>,
    name: String,
    token: String,
    ca: String,
    /// By URL and seconds of patience: who is asked.
    clients: Mutex<BTreeMap<(String, u64), Arc<Client>>>,
    peers: Mutex<BTreeMap<String, Peer>>,
    leader: Mutex<Option<Leader>>,
}

#[derive(Clone, Copy)]
struct Peer {
    heard: Instant,
    version: u64,
    leads: bool,
}

/// Who leads.
#[derive(Clone, PartialEq, Eq)]
pub enum Leader {
    /// This server.
    Me,
    /// The one at this URL.
    At(String),
}

#[derive(Clone)]
struct Member {
    name: String,
    url: String,
    learner: bool,
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn members(state: &StoreState) -> Vec<Member> {
    let list = state.objects.get(KEY).map(|o| o["members"].clone()).unwrap_or_default();
    let text = |v: &Value| v.as_str().unwrap_or_default().to_owned();
    let member =
        |m: &Value| Member { name: text(&m["name"]), url: text(&m["url"]), learner: m["learner"] == true };
    list.as_array().into_iter().flatten().map(member).collect()
}

fn cluster(state: &StoreState) -> Value {
    state.objects.get(KEY).map(|o| o["cluster"].clone()).unwrap_or_default()
}

fn keep(state: &mut StoreState, cluster: &Value, members: &[Member]) {
    let list: Vec<Value> =
        members.iter().map(|m| json!({"name": m.name, "url": m.url, "learner": m.learner})).collect();
    state.put(KEY, json!({"cluster": cluster, "members": list, "metadata": {}}));
}

/// Where the state lies: as SQLite's file, or as etcd's.
pub struct Place {
    pub sqlite: PathBuf,
    pub etcd: PathBuf,
}

impl Place {
    pub fn of(config: &Config) -> Self {
        let db = config.data_dir().join("server/db");
        Self { sqlite: db.join("state.db"), etcd: db.join("etcd/member/snap/db") }
    }

    fn db(&self) -> &Path {
        self.sqlite.parent().expect("it is below db")
    }

    fn flag(&self) -> PathBuf {
        self.db().join("reset-flag")
    }
}

/// What the flags and the disk come to: the file of the state, and whether it is etcd's. A server that
/// has etcd's data goes on with it whatever the flags say; SQLite's becomes etcd's with `--cluster-init`
/// (`pkg/etcd/etcd.go`, `migrateFromSQLite`); with neither it joins where `--server` says.
pub fn settle(config: &Config) -> (PathBuf, bool) {
    let place = Place::of(config);
    let _ = std::fs::remove_file(place.flag());
    if place.etcd.exists() {
        return (place.etcd, true);
    }
    if config.is_on("cluster-init") {
        if let Some(parent) = place.etcd.parent().filter(|_| place.sqlite.exists()) {
            log::info("Migrating content from sqlite to etcd");
            let moved = std::fs::create_dir_all(parent)
                .and_then(|()| std::fs::copy(&place.sqlite, &place.etcd))
                .and_then(|_| std::fs::rename(&place.sqlite, place.sqlite.with_extension("db.migrated")));
            if let Err(e) = moved {
                log::fatal(format!(
                    "Error: preparing server: failed to migrate content from sqlite to etcd: {e}"
                ));
            }
        }
        return (place.etcd, true);
    }
    match config.server_url() {
        Some(url) if !place.sqlite.exists() => {
            join(config, &url, &place);
            (place.etcd, true)
        }
        _ => (place.sqlite, false),
    }
}

/// Settings that have to be the same on all servers (docs/cli/server.md, "Critical Configuration Values").
fn critical(config: &Config) -> Value {
    let or = |key: &str, default: &str| config.get(key).unwrap_or_else(|| default.to_owned());
    json!({
        "ClusterIPRange": or("cluster-cidr", "10.42.0.0/16"),
        "ServiceIPRange": or("service-cidr", "10.43.0.0/16"),
        "ClusterDNS": or("cluster-dns", "10.43.0.10"),
        "ClusterDomain": or("cluster-domain", "cluster.local"),
        "FlannelBackend": or("flannel-backend", "vxlan"),
        "EgressSelectorMode": or("egress-selector-mode", "agent"),
        "DisableHelmController": config.is_on("disable-helm-controller"),
        "DisableCCM": config.is_on("disable-cloud-controller"),
        "DisableNPC": config.is_on("disable-network-policy"),
        "DisableServiceLB": config.disabled("servicelb"),
        "EncryptSecrets": config.is_on("secrets-encryption"),
    })
}

/// The same for whoever asks.
pub fn with_critical(mut answer: Value, config: &Config) -> Value {
    for (key, value) in critical(config).as_object().into_iter().flatten() {
        answer[key] = value.clone();
    }
    answer
}

/// Where others reach this server.
fn own_url(config: &Config) -> String {
    let ip = config.get("advertise-address").or_else(|| kubelet::node_ips(config).first().cloned());
    format!("https://{}:{}", ip.unwrap_or_default(), config.port())
}

/// Takes the state, the authorities and a place among the members from a server that runs. What does
/// not work ends the process, and systemd starts it again.
fn join(config: &Config, url: &str, place: &Place) {
    let fatal = |why: String| -> ! { log::fatal(format!("starting kubernetes: preparing server: {why}")) };
    let Some(token) = config.token() else { fatal("--token is required to join a cluster".into()) };
    let ca =
        agent::validate(url, &token).unwrap_or_else(|why| fatal(format!("failed to validate token: {why}")));
    let client = peer(url, &ca, &crate::server::secret_of(&token));
    let get = |path: &str| -> Answer {
        match client.get(&format!("/v1-k3s/{path}")) {
            Ok(answer) if answer.ok() => answer,
            Ok(answer) if answer.status == 401 => fatal(format!(
                "failed to validate token: {url}/v1-k3s/{path}: 401 Unauthorized: not authorized"
            )),
            Ok(answer) => fatal(format!("{url}/v1-k3s/{path}: {}", answer.status)),
            Err(e) => fatal(format!("Get \"{url}/v1-k3s/{path}\": {e}")),
        }
    };
    let theirs = get("config").json();
    let ours = critical(config);
    for (key, value) in ours.as_object().into_iter().flatten() {
        if !theirs[key].is_null() && theirs[key] != *value {
            fatal(format!(
                "failed to validate server configuration: critical configuration value mismatch between servers: \
                 {key}: {value} != {}",
                theirs[key]
            ));
        }
    }
    let files = get("server-bootstrap").json();
    let tls = config.data_dir().join("server/tls");
    for name in BOOTSTRAP {
        let text = files[name].as_str().unwrap_or_default();
        if let Err(e) = util::write_atomically(&tls.join(name), text.as_bytes(), 0o600) {
            fatal(format!("writing {name}: {e}"));
        }
    }
    let me = json!({"name": config.node_name(), "url": own_url(config)}).to_string();
    loop {
        let answer =
            client.send("POST", &format!("/v1-k3s/{MEMBERS}"), Some(("application/json", me.clone())));
        match answer {
            Ok(answer) if answer.ok() => break,
            Ok(answer) => {
                let why = answer.json()["message"].as_str().map_or_else(|| answer.text(), str::to_owned);
                if !why.contains("too many learner") && answer.status != 503 {
                    fatal(format!("start managed database: etcd cluster join failed: {why}"));
                }
                log::info(format!("Waiting for other members to finish joining etcd cluster: {why}"));
            }
            Err(e) => fatal(format!("start managed database: etcd cluster join failed: {e}")),
        }
        std::thread::sleep(paths::seconds("join_retry", 1.0));
    }
    let state = get(STATE);
    if let Err(e) = util::write_atomically(&place.etcd, &state.body, 0o600) {
        fatal(format!("writing etcd's data: {e}"));
    }
    log::info(format!("Joined the etcd cluster through {url}"));
}

fn peer(url: &str, ca: &str, token: &str) -> Client {
    match Client::new(url, Some(ca), None) {
        Ok(client) => client.basic("server", token),
        Err(e) => log::fatal(format!("client for {url}: {e}")),
    }
}

impl Etcd {
    /// Begins to look for the others. The first server of a cluster is its own first member.
    pub fn start(config: &Config, store: &Arc<Store>, token: &str, ca: &str) -> Arc<Self> {
        let (name, url) = (config.node_name(), own_url(config));
        store.update(|state| {
            if members(state).is_empty() {
                let first = Member { name: name.clone(), url, learner: false };
                keep(state, &json!(util::random_hex(8)), &[first]);
            }
        });
        Arc::new(Self {
            store: store.clone(),
            name,
            token: token.to_owned(),
            ca: ca.to_owned(),
            clients: Mutex::default(),
            peers: Mutex::default(),
            leader: Mutex::default(),
        })
    }

    fn client(&self, url: &str, patience: u64) -> Arc<Client> {
        let new = || Arc::new(peer(url, &self.ca, &self.token).within(Duration::from_secs(patience)));
        lock(&self.clients).entry((url.to_owned(), patience)).or_insert_with(new).clone()
    }

    /// Looks for the others until the process ends.
    pub fn watch(self: &Arc<Self>) {
        let etcd = Arc::clone(self);
        let period = paths::seconds("etcd_tick", 0.3).max(Duration::from_millis(20));
        std::thread::spawn(move || {
            loop {
                etcd.look();
                std::thread::sleep(period);
            }
        });
    }

    /// Blocks until this server is a full member of a cluster that has a leader.
    pub fn wait(&self) {
        let mut told = Instant::now() - Duration::from_secs(60);
        loop {
            let learner = members(&self.store.lock()).iter().any(|m| m.name == self.name && m.learner);
            if !learner && self.leader().is_some() {
                return;
            }
            if told.elapsed() > Duration::from_secs(5) {
                told = Instant::now();
                log::info("Waiting for etcd server to become available");
                if !learner {
                    log::info(
                        "Failed to test etcd connection: failed to get etcd status: rpc error: code = Unavailable \
                         desc = etcdserver: no leader",
                    );
                }
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    pub fn leader(&self) -> Option<Leader> {
        lock(&self.leader).clone()
    }

    pub fn leads(&self) -> bool {
        self.leader() == Some(Leader::Me)
    }

    /// The addresses of all servers, for the agents' load balancers.
    pub fn addresses(&self) -> Vec<String> {
        members(&self.store.lock()).into_iter().map(|m| m.url).collect()
    }

    fn look(&self) {
        let (all, ours, cluster) = {
            let state = self.store.lock();
            (members(&state), state.version(), cluster(&state))
        };
        for member in all.iter().filter(|m| m.name != self.name) {
            let client = self.client(&member.url, 2);
            match client.get(&format!("/v1-k3s/{PEERS}")) {
                Ok(answer) if answer.ok() && answer.json()["cluster"] == cluster => {
                    let said = answer.json();
                    let known =
                        |n: &Value| n.as_array().is_some_and(|a| a.iter().any(|m| m == self.name.as_str()));
                    let version = said["version"].as_u64().unwrap_or(0);
                    if version > ours && !known(&said["members"]) {
                        log::fatal(format!(
                            "Failed to start: this server is a not a member of the etcd cluster. Found {}, expect: {}",
                            said["members"], self.name
                        ));
                    }
                    let peer = Peer { heard: Instant::now(), version, leads: said["leads"] == true };
                    lock(&self.peers).insert(member.name.clone(), peer);
                }
                Err(e)
                    if matches!(e.kind(), std::io::ErrorKind::TimedOut | std::io::ErrorKind::WouldBlock) => {}
                _ => drop(lock(&self.peers).remove(&member.name)),
            }
        }
        self.elect(&all, ours);
        if self.leads() {
            self.push();
            self.promote();
        } else if let Some(Leader::At(url)) = self.leader() {
            let theirs =
                all.iter().find(|m| m.url == url).and_then(|m| lock(&self.peers).get(&m.name).copied());
            // What the leader could not send, e.g. to one that was away.
            if theirs.is_some_and(|t| t.version > ours) {
                self.pull(&url);
            }
        }
    }

    fn elect(&self, all: &[Member], ours: u64) {
        let peers = lock(&self.peers).clone();
        let version = |m: &Member| match m.name == self.name {
            true => Some(ours),
            false => peers.get(&m.name).filter(|p| p.heard.elapsed() < PATIENCE).map(|p| p.version),
        };
        let voters: Vec<&Member> = all.iter().filter(|m| !m.learner).collect();
        let there: Vec<(&Member, u64)> = voters.iter().filter_map(|m| Some((*m, version(m)?))).collect();
        let newest = there.iter().map(|(_, v)| *v).max();
        // Whoever leads goes on unless it is gone, or another one does with a newer state.
        let leads = |m: &Member| match m.name == self.name {
            true => self.leads() && !peers.values().any(|p| p.leads && p.version > ours),
            false => peers.get(&m.name).is_some_and(|p| p.leads),
        };
        let held = there.iter().map(|(m, _)| *m).find(|m| leads(m));
        let leader = (there.len() > voters.len() / 2)
            .then(|| held.or_else(|| there.iter().find(|(_, v)| Some(*v) == newest).map(|(m, _)| *m)))
            .flatten()
            .map(|m| if m.name == self.name { Leader::Me } else { Leader::At(m.url.clone()) });
        if self.leader() != leader {
            log::info(match &leader {
                Some(Leader::Me) => format!("stand-in etcd: {} leads", self.name),
                Some(Leader::At(url)) => format!("stand-in etcd: following {url}"),
                None => {
                    format!("stand-in etcd: no leader, {} of {} members are there", there.len(), voters.len())
                }
            });
            // Every node has its full grace with a new leader. Nobody holds both locks: who answers peers
            // would take them in the other order.
            self.store.lock().heard.clear();
            *lock(&self.leader) = leader;
        }
    }

    /// Sends the state to whoever is there and has an older one.
    pub fn push(&self) {
        let (all, version, text) = {
            let state = self.store.lock();
            (members(&state), state.version(), self.store.text(&state))
        };
        for member in all.iter().filter(|m| m.name != self.name) {
            let behind = lock(&self.peers).get(&member.name).is_some_and(|p| p.version < version);
            if !behind {
                continue;
            }
            let client = self.client(&member.url, 5);
            let sent =
                client.send("PUT", &format!("/v1-k3s/{PEERS}"), Some(("application/json", text.clone())));
            if sent.is_ok_and(|a| a.ok())
                && let Some(peer) = lock(&self.peers).get_mut(&member.name)
            {
                peer.version = peer.version.max(version);
            }
        }
    }

    /// A learner that has all of the state becomes a member in full.
    fn promote(&self) {
        let peers = lock(&self.peers).clone();
        self.store.update(|state| {
            let (mut all, cluster) = (members(state), cluster(state));
            let version = state.version();
            let mut found = false;
            for member in all.iter_mut().filter(|m| m.learner) {
                // Heartbeats go on meanwhile; a few of them do not matter.
                if peers.get(&member.name).is_some_and(|p| p.version + 20 >= version) {
                    log::info(format!("Promoted learner {}", member.name));
                    (member.learner, found) = (false, true);
                }
            }
            if found {
                keep(state, &cluster, &all);
            }
        });
    }

    fn pull(&self, url: &str) {
        let client = self.client(url, 5);
        if let Ok(answer) = client.get(&format!("/v1-k3s/{STATE}"))
            && answer.ok()
        {
            self.store.replace(&answer.json());
        }
    }

    /// Takes the member of that node's name out, as k3s does when the Node is deleted.
    pub fn forget(state: &mut StoreState, name: &str) {
        let (mut all, cluster) = (members(state), cluster(state));
        if all.iter().any(|m| m.name == name) && all.len() > 1 {
            all.retain(|m| m.name != name);
            log::info(format!("Removing etcd member {name}"));
            keep(state, &cluster, &all);
        }
    }

    /// What members ask each other.
    pub fn answer(&self, path: &str, request: &Request) -> Response {
        match (path, request.method.as_str()) {
            (PEERS, "GET") => {
                let leads = self.leads();
                let state = self.store.lock();
                let names: Vec<String> = members(&state).into_iter().map(|m| m.name).collect();
                Response::json(
                    200,
                    &json!({"name": self.name, "leads": leads, "version": state.version(), "cluster": cluster(&state), "members": names}),
                )
            }
            (PEERS, "PUT") => {
                let Ok(sent) = serde_json::from_slice::<Value>(&request.body) else {
                    return Response::text(400, "not a state");
                };
                let theirs = &sent["objects"][KEY]["cluster"];
                if *theirs != cluster(&self.store.lock()) {
                    return Response::text(409, "another cluster");
                }
                self.store.replace(&sent);
                Response::text(200, "ok")
            }
            (STATE, "GET") => {
                let state = self.store.lock();
                let text = self.store.text(&state);
                Response { status: 200, content_type: "application/json", body: text.into_bytes() }
            }
            (MEMBERS, "POST") => self.admit(request),
            _ => Response::text(404, "404 page not found\n"),
        }
    }

    fn admit(&self, request: &Request) -> Response {
        let asked: Value = serde_json::from_slice(&request.body).unwrap_or_default();
        let text = |key: &str| asked[key].as_str().unwrap_or_default().to_owned();
        let new = Member { name: text("name"), url: text("url"), learner: true };
        let refused = |message: &str| Response::failure(409, "Conflict", message, json!({}));
        let answer = self.store.update(|state| {
            let (mut all, cluster) = (members(state), cluster(state));
            if let Some(same) = all.iter().find(|m| m.name == new.name) {
                // One that joined, and was cut off before it had the state.
                if same.learner && same.url == new.url {
                    return Response::text(200, "ok");
                }
                return refused("duplicate node name found, please use a unique name for this node");
            }
            if all.iter().any(|m| m.url == new.url) {
                return refused("etcdserver: Peer URLs already exists");
            }
            if all.iter().any(|m| m.learner) {
                return refused("etcdserver: too many learner members in cluster");
            }
            log::info(format!("Adding member {} to the etcd cluster", new.name));
            all.push(new);
            keep(state, &cluster, &all);
            Response::text(200, "ok")
        });
        self.push();
        answer
    }

    /// Hands a request on to the server that leads, with the word that this one knows who asks.
    pub fn hand_on(&self, url: &str, request: &Request, user: &str, group: &str) -> Response {
        let mut client = peer(url, &self.ca, &self.token)
            .header("standin-user", user)
            .header("standin-group", group)
            .within(Duration::from_secs(15));
        for name in ["k3s-node-name", "k3s-node-password", "k3s-node-ip"] {
            if let Some(value) = request.header(name) {
                client = client.header(name, value);
            }
        }
        let kind = request.header("content-type").unwrap_or("application/json");
        let body = String::from_utf8_lossy(&request.body).into_owned();
        match client.send(&request.method, &request.target, Some((kind, body))) {
            Ok(answer) => {
                Response { status: answer.status, content_type: "application/json", body: answer.body }
            }
            Err(e) => no_leader(&format!(
                "etcdserver: request timed out, possibly due to previous leader failure ({e})"
            )),
        }
    }
}

/// What the API says when there is no majority.
pub fn no_leader(why: &str) -> Response {
    Response::failure(
        503,
        "ServiceUnavailable",
        format!("rpc error: code = Unavailable desc = {why}"),
        json!({}),
    )
}

/// The authorities' files, for a server that joins.
pub fn bootstrap(tls: &Path) -> Value {
    let read = |name: &str| std::fs::read_to_string(tls.join(name)).unwrap_or_default();
    BOOTSTRAP
        .iter()
        .map(|name| ((*name).to_owned(), json!(read(name))))
        .collect::<serde_json::Map<_, _>>()
        .into()
}

/// `k3s server --cluster-reset`: this server alone goes on, with its own state or with a snapshot's.
pub fn reset(config: &Config) -> ! {
    let place = Place::of(config);
    if place.flag().exists() {
        log::fatal(format!(
            "Managed etcd cluster membership was already reset to this node; please remove the --cluster-reset flag \
             and start normally. If you need to perform another cluster reset, you must first manually delete the file \
             {}",
            place.flag().display()
        ));
    }
    if let Some(snapshot) = config.get("cluster-reset-restore-path") {
        let from = paths::at(&snapshot);
        if !from.is_file() {
            log::fatal(format!("etcd: snapshot path does not exist: {snapshot}"));
        }
        log::info(format!("Pre-restore etcd database moved aside; restoring snapshot {snapshot}"));
        let etcd = place.db().join("etcd");
        let _ = std::fs::rename(&etcd, place.db().join(format!("etcd-old-{}", util::unix_seconds())));
        let copied = std::fs::create_dir_all(place.etcd.parent().unwrap_or(&etcd))
            .and_then(|()| std::fs::copy(&from, &place.etcd));
        if let Err(e) = copied {
            log::fatal(format!("etcd: failed to restore snapshot: {e}"));
        }
    } else if !place.etcd.exists() {
        log::fatal("cannot perform cluster-reset while the node has no etcd data");
    }
    let store = Store::open(place.etcd.clone()).unwrap_or_else(|e| log::fatal(e));
    let tls = config.data_dir().join("server/tls");
    let token = config.token().or_else(|| util::read(config.data_dir().join("server/token")));
    crate::server::check_bootstrap(&store, &crate::server::secret_of(&token.unwrap_or_default()), &tls);
    store.update(|state| {
        let me = Member { name: config.node_name(), url: own_url(config), learner: false };
        keep(state, &json!(util::random_hex(8)), &[me]);
    });
    if let Err(e) = util::write_atomically(&place.flag(), b"", 0o600) {
        log::fatal(format!("{}: {e}", place.flag().display()));
    }
    log::info(
        "Managed etcd cluster membership has been reset, restart without --cluster-reset flag now. Backup and delete \
         ${datadir}/server/db on each peer etcd server and rejoin the nodes",
    );
    std::process::exit(0)
}

/// `k3s etcd-snapshot save|ls|delete|prune`: files beside the state.
pub fn snapshot(arguments: &[String]) -> ExitCode {
    let option = |name: &str| {
        arguments.iter().enumerate().find_map(|(i, a)| {
            let rest = a.strip_prefix("--")?;
            match rest.split_once('=') {
                Some((key, value)) if key == name => Some(value.to_owned()),
                None if rest == name => arguments.get(i + 1).cloned(),
                _ => None,
            }
        })
    };
    let config = Config::load(Role::Server, &[]);
    let place = Place::of(&config);
    let dir = option("dir")
        .or_else(|| option("etcd-snapshot-dir"))
        .map_or_else(|| place.db().join("snapshots"), |d| paths::at(&d));
    if !place.etcd.exists() {
        log::fatal(
            "Error: etcd datastore disabled: this server keeps its state in SQLite, and snapshots are etcd's",
        );
    }
    let names = || {
        let mut all: Vec<String> = std::fs::read_dir(&dir)
            .into_iter()
            .flatten()
            .flatten()
            .map(|e| e.file_name().to_string_lossy().into_owned())
            .filter(|n| !n.contains(".tmp"))
            .collect();
        all.sort();
        all
    };
    let line = |name: &str| {
        let meta = std::fs::metadata(dir.join(name)).ok();
        let made = meta.as_ref().and_then(|m| m.modified().ok()?.duration_since(std::time::UNIX_EPOCH).ok());
        let at = util::rfc3339(made.map_or(0, |d| d.as_secs()));
        format!("{name} file://{} {} {at}", dir.join(name).display(), meta.map_or(0, |m| m.len()))
    };
    match arguments.first().map(String::as_str) {
        Some("save") => {
            let here = std::net::TcpStream::connect(("127.0.0.1", config.port()));
            if let Err(e) = here {
                log::fatal(format!(
                    "Error: see server log for details: Post \"https://127.0.0.1:{}/db/snapshot\": {e}",
                    config.port()
                ));
            }
            let name = option("name").unwrap_or_else(|| "on-demand".into());
            let name = format!("{name}-{}-{}", config.node_name(), util::unix_seconds());
            let saved = std::fs::read(&place.etcd)
                .and_then(|bytes| util::write_atomically(&dir.join(&name), &bytes, 0o600));
            match saved {
                Ok(()) => log::info(format!("Snapshot {name} saved.")),
                Err(e) => log::fatal(format!("Error: failed to save snapshot: {e}")),
            }
        }
        Some("ls" | "list" | "l") => {
            println!("Name Location Size Created");
            names().iter().for_each(|n| println!("{}", line(n)));
        }
        Some("delete") => {
            for name in arguments[1..].iter().filter(|a| !a.starts_with('-')) {
                match std::fs::remove_file(dir.join(name)) {
                    Ok(()) => log::info(format!("Snapshot {name} deleted.")),
                    Err(e) => log::fatal(format!("Error: snapshot {name}: {e}")),
                }
            }
        }
        Some("prune") => {
            let keep = option("snapshot-retention").and_then(|n| n.parse().ok()).unwrap_or(5);
            let prefix = option("name").unwrap_or_else(|| "on-demand".into());
            let mut all = names();
            all.retain(|n| n.starts_with(&format!("{prefix}-")));
            let gone = all.len().saturating_sub(keep);
            for name in &all[..gone] {
                let _ = std::fs::remove_file(dir.join(name));
                log::info(format!("Snapshot {name} deleted."));
            }
        }
        other => {
            eprintln!("the k3s stand-in does not know `etcd-snapshot {}`", other.unwrap_or_default());
            return ExitCode::FAILURE;
        }
    }
    ExitCode::SUCCESS
}
