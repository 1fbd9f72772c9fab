//! The one path to the cluster's API: whichever server answers, within one deadline.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use super::World;
use crate::api::{self, NodeStatus};
use crate::engine::StepError;
use crate::k3s;
use crate::machines::{self, Fleet, Machine};
use crate::os::sync::lock;
use crate::os::{self, files};
use crate::spec::Node;
use crate::ssh::Tunnel;

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

/// Through which server something is done.
#[derive(Clone, Copy, Debug)]
pub enum Via<'a> {
    /// Any that runs.
    Any,
    /// Any but this one, which joins or leaves.
    Not(&'a Node),
    /// This one.
    On(&'a Node),
}

/// The way that there is.
#[derive(Default)]
pub(super) struct Held {
    client: Mutex<Option<Arc<api::Client>>>,
    answer: Mutex<Option<(Instant, Arc<Vec<NodeStatus>>)>>,
    tunnel: Mutex<Option<Tunnel>>,
    /// Which server is asked first.
    turn: AtomicUsize,
}

impl World {
    /// The API of the running cluster, by the kubeconfig in the state folder, at a server that answers.
    fn api_by(&self, end: Instant) -> Result<Arc<api::Client>, StepError> {
        let mut held = lock(&self.held.api.client);
        if let Some(client) = &*held {
            return Ok(Arc::clone(client));
        }
        let path = self.state.kubeconfig();
        let text = files::read_if_there(&path)?
            .ok_or_else(|| StepError::new("the cluster has no kubeconfig yet", "`p1 up` makes it."))?;
        let (server, through) = self.way_to_api(end);
        // Its certificate is for the address by which nodes call it, wherever this host finds it.
        let ours = k3s::rewrite(&text, &k3s::server_url(server), &self.cluster.name)?;
        let door = || self.machines.door(server, k3s::config::api_port(server));
        let address = through.as_ref().map(Tunnel::address).or_else(door);
        let client = Arc::new(api::Client::new(&ours, address, ANSWER)?);
        *lock(&self.held.api.tunnel) = through;
        *held = Some(Arc::clone(&client));
        Ok(client)
    }

    /// Asks the API, over another server where the one that is asked does not answer: all of it within
    /// [`ANSWER`], however many there are. What none of them answers may pass by itself; who has a
    /// wait's bound asks again (`steps/wait.rs`).
    pub fn ask<T>(&self, question: impl Fn(&api::Client) -> Result<T, api::Error>) -> Result<T, StepError> {
        let end = Instant::now() + ANSWER;
        let ask =
            |share| self.api_by(end).and_then(|api| question(&api.within(share)).map_err(StepError::from));
        let next = || {
            self.held.api.turn.fetch_add(1, Ordering::Relaxed);
            self.forget_api();
        };
        in_turn(self.cluster.servers().count(), end, || self.cancel.stopping(), ask, next)
    }

    /// The servers, the one that answered last first, without those whose machines are known to be off.
    pub fn servers_in_turn(&self) -> Vec<&Node> {
        let mut all: Vec<&Node> = self.cluster.servers().collect();
        let turn = self.held.api.turn.load(Ordering::Relaxed) % all.len();
        all.rotate_left(turn);
        let seen = lock(&self.held.seen);
        let off = |n: &&Node| {
            seen.machines.get(&n.name).is_some_and(|m| m.state != machines::MachineState::Running)
        };
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
        let heard = os::many::each(servers.len(), &servers, |s| knock(&self.machines, s, KNOCK));
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

    /// A server to work on the cluster through. Of several, one whose API port is open, and of those one that the
    /// API calls Ready, the one that answered last before others; where this host cannot reach any, one whose k3s is
    /// active by its own word.
    pub fn server<'a>(&'a self, via: Via<'a>) -> Result<&'a Node, StepError> {
        let not = match via {
            Via::On(node) => return Ok(node),
            Via::Not(node) => Some(&node.name),
            Via::Any => None,
        };
        let seen = self.seen();
        let mut servers = self.servers_in_turn();
        servers.retain(|s| Some(&s.name) != not);
        let other = if not.is_some() { "other " } else { "" };
        let off = |n: &&Node, machines: &BTreeMap<String, Machine>| {
            machines.get(&n.name).is_some_and(|m| m.state != machines::MachineState::Running)
        };
        // Seen a while ago, maybe.
        if servers.iter().all(|n| off(n, &seen.machines)) {
            let now = self.look_at_machines()?;
            if servers.iter().all(|n| off(n, &now)) {
                let what = format!("no {other}server's machine runs");
                return Err(StepError::new(what, "`p1 start` starts them."));
            }
        }
        if let [only] = servers[..] {
            return Ok(only);
        }
        servers.sort_by_key(|s| !seen.api.as_ref().and_then(|a| a.get(&s.name)).is_some_and(|s| s.ready));
        let open = servers.iter().find(|s| self.listens(s, KNOCK));
        open.or_else(|| servers.iter().find(|s| self.is_active(s))).copied().ok_or_else(|| {
            let what = format!("no {other}server of the cluster runs");
            StepError::new(what, "`p1 status` shows how they are.").transient()
        })
    }

    /// Whether k3s runs on a server, by its own word.
    pub fn is_up(&self, server: &Node) -> bool {
        self.listens(server, KNOCK) || self.is_active(server)
    }

    /// Whether something accepts connections at a server's API port, as far as this host can reach it.
    pub fn listens(&self, server: &Node, bound: Duration) -> bool {
        listens(&self.machines, server, bound)
    }

    /// Where the cluster's kubeconfig says that the API is: at the spec's endpoint, or at this server.
    pub fn api_url(&self, server: &Node) -> String {
        match self.cluster.k3s.endpoint {
            Some(_) => k3s::api_url(&self.cluster, server),
            None => url_from_here(&self.machines, server),
        }
    }

    /// Whether the unit is active on a server, by its init system's word.
    pub fn is_active(&self, server: &Node) -> bool {
        let script = self.guest(server).service().is_active(server.role.unit());
        self.script(server, "looking for a server", &script).is_ok()
    }

    /// How many of the spec's servers have something that answers where etcd's members do, and how many there
    /// are. Without a word over SSH: who asks wants to know why nobody else answers. None where this host cannot reach
    /// that port of all of them.
    pub fn members(&self) -> Option<(usize, usize)> {
        let servers: Vec<(&Node, SocketAddr)> = self
            .cluster
            .servers()
            .map(|s| Some((s, self.machines.door(s, PEERS)?)))
            .collect::<Option<_>>()?;
        let seen = self.seen();
        let runs =
            |n: &Node| seen.machines.get(&n.name).is_none_or(|m| m.state == machines::MachineState::Running);
        let there = AtomicUsize::new(0);
        os::many::each(servers.len(), &servers, |(server, etcd)| {
            let open =
                || std::net::TcpStream::connect_timeout(etcd, KNOCK).is_ok() || self.listens(server, KNOCK);
            if runs(server) && open() {
                there.fetch_add(1, Ordering::Relaxed);
            }
        });
        Some((there.into_inner(), servers.len()))
    }

    /// What the API says of all nodes just now. Steps that ask at the same time share an answer: each
    /// costs as much as there are nodes.
    pub fn nodes(&self) -> Result<Arc<Vec<NodeStatus>>, StepError> {
        let mut held = lock(&self.held.api.answer);
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
        *lock(&self.held.api.answer) = None;
    }

    /// Another kubeconfig, or another server: the next [`World::ask`] looks.
    pub fn forget_api(&self) {
        *lock(&self.held.api.client) = None;
    }
}

/// Asks `tries` servers at most, one after the other, for as long as what keeps them from answering may pass by
/// itself. However many there are, all of it ends at `end`: each has half of what is left, the last one all.
fn in_turn<T>(
    mut tries: usize,
    end: Instant,
    stopping: impl Fn() -> bool,
    ask: impl Fn(Duration) -> Result<T, StepError>,
    next: impl Fn(),
) -> Result<T, StepError> {
    let mut first: Option<StepError> = None;
    loop {
        let left = end.saturating_duration_since(Instant::now());
        let share = if tries > 1 { left / 2 } else { left }.max(LEAST);
        match ask(share) {
            // A server that is down, or one that is cut off from the others: the next one is asked.
            Err(error) if error.may_pass() && !stopping() => {
                tries = tries.saturating_sub(1);
                next();
                let error = first.get_or_insert(error);
                if tries == 0 || Instant::now() >= end {
                    // All have been asked: what the one says that answered before tells most.
                    return Err(error.clone());
                }
            }
            answer => return answer,
        }
    }
}

/// Whether something accepts connections at a server's API port, as far as this host can reach it.
pub fn listens(machines: &Fleet, server: &Node, bound: Duration) -> bool {
    knock(machines, server, bound) == Knocked::Open
}

/// Where programs of this host find a server's API; what nodes call it where only SSH leads there.
pub fn url_from_here(machines: &Fleet, server: &Node) -> String {
    let door = machines.front().or_else(|| machines.door(server, k3s::config::api_port(server)));
    door.map_or_else(|| k3s::server_url(server), |door| format!("https://{door}"))
}

/// What a connection to a server's API port came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Knocked {
    Open,
    /// The machine answers, and nothing listens there.
    Refused,
    Silent,
}

fn knock(machines: &Fleet, server: &Node, bound: Duration) -> Knocked {
    let Some(address) = machines.door(server, k3s::config::api_port(server)) else { return Knocked::Silent };
    match std::net::TcpStream::connect_timeout(&address, bound) {
        Ok(_) => Knocked::Open,
        Err(e) if e.kind() == std::io::ErrorKind::ConnectionRefused => Knocked::Refused,
        Err(_) => Knocked::Silent,
    }
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
            Err::<u8, _>(StepError::new(format!("silent {}", shares.borrow().len()), "").transient())
        };
        let start = Instant::now();
        let error = in_turn(5, start + bound, || false, silent, || {}).unwrap_err();
        assert_eq!(error.failure.cause, "silent 1", "the one that answered before tells most");
        assert!(start.elapsed() < bound + 2 * LEAST, "{:?}", shares.borrow());
        assert!(shares.borrow().len() > 2 && shares.borrow()[0] <= bound / 2, "{:?}", shares.borrow());

        // The first is silent for its share, the second answers; what lasts is asked of nobody else.
        let asked = std::cell::Cell::new(0);
        let second = |_| {
            asked.set(asked.get() + 1);
            if asked.get() == 2 { Ok(7) } else { Err(StepError::new("reset", "").transient()) }
        };
        assert_eq!(in_turn(3, Instant::now() + bound, || false, second, || {}).unwrap(), 7);
        asked.set(0);
        let lasting = |_| {
            asked.set(asked.get() + 1);
            Err::<u8, _>(StepError::new("forbidden", ""))
        };
        in_turn(3, Instant::now() + bound, || false, lasting, || {}).unwrap_err();
        assert_eq!(asked.get(), 1);
    }
}
