//! The ways to nodes: how their machines are, and what is asked and done over SSH.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use super::World;
use crate::engine::StepError;
use crate::guest::{self, Guest, NodeFacts};
use crate::k3s::Found;
use crate::machines::{Machine, Way, Whose};
use crate::observed::found;
use crate::os::files;
use crate::os::sync::lock;
use crate::spec::Node;
use crate::ssh::{self, Endpoint, KnownHosts, Login, Options, Output, Remote, Root};

/// One answer over SSH to a short question. Under emulation on a loaded host it takes seconds.
pub const SCRIPT_TIMEOUT: Duration = Duration::from_secs(60);
/// Who may do anything on a node.
const ROOT: &str = "root";

/// The ways that there are.
#[derive(Default)]
pub(super) struct Held {
    remotes: Mutex<BTreeMap<String, Arc<Mutex<Remote>>>>,
    making_key: Mutex<()>,
}

impl World {
    /// How the machines are now.
    pub fn look_at_machines(&self) -> Result<BTreeMap<String, Machine>, StepError> {
        let ids = self.machines.ids(&self.cluster);
        let mut machines = self.machines.look(&self.cluster, &self.cancel)?;
        let known = lock(&self.held.seen).machines.clone();
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
    pub fn look_at_machine(&self, node: &Node) -> Result<Option<Machine>, StepError> {
        let mut machines = self.machines.look(&self.cluster, &self.cancel)?;
        let machine = machines.remove(&node.name);
        self.note(|seen| {
            seen.machines.remove(&node.name);
            seen.machines.extend(machine.clone().map(|m| (node.name.clone(), m)));
        });
        Ok(machine)
    }

    /// A node's machine is gone or new: what was known of it is no longer true.
    pub fn forget_node(&self, node: &str) {
        lock(&self.held.nodes.remotes).remove(node);
        self.note(|seen| {
            seen.nodes.remove(node);
            seen.found.remove(node);
            seen.machines.remove(node);
        });
    }

    /// The way to a node; does not connect yet.
    pub fn remote(&self, node: &Node) -> Result<Arc<Mutex<Remote>>, StepError> {
        if let Some(remote) = lock(&self.held.nodes.remotes).get(&node.name) {
            return Ok(Arc::clone(remote));
        }
        let way = self.way(node)?;
        let login = self.login_by(node, &way);
        let users = self.login_as(&node.name, &way.user, way.root, &way);
        let is_new = self.memory(&node.name).is_none_or(|m| m.facts.is_none() && !m.joined);
        let remote = match login.endpoint.user == users.endpoint.user {
            // It saves a second login, and a login takes a second under emulation. By another key root is not let in unasked:
            // what else opens the machine would stay.
            true if way.opened && is_new && self.state.key().exists() => {
                let mut first = self.login_as(&node.name, ROOT, Root::Already, &way);
                first.keys = vec![self.state.key()];
                Remote::new(first, self.cancel.clone()).or(users)
            }
            true => Remote::new(login, self.cancel.clone()),
            false => Remote::new(login, self.cancel.clone()).or(users),
        };
        let remote = Arc::new(Mutex::new(remote));
        lock(&self.held.nodes.remotes).insert(node.name.clone(), Arc::clone(&remote));
        Ok(remote)
    }

    /// How this host gets into a node.
    pub fn way(&self, node: &Node) -> Result<Way, StepError> {
        let made = self.memory(&node.name).and_then(|m| m.made);
        Ok(self.machines.way(&self.cluster, node, made.as_ref(), &self.cancel)?)
    }

    /// How to log in to a node.
    pub fn login(&self, node: &Node) -> Result<Login, StepError> {
        Ok(self.login_by(node, &self.way(node)?))
    }

    fn login_by(&self, node: &Node, way: &Way) -> Login {
        let as_root = self.memory(&node.name).is_some_and(|m| m.root);
        let (user, root) = if as_root { (ROOT, Root::Already) } else { (way.user.as_str(), way.root) };
        self.login_as(&node.name, user, root, way)
    }

    /// How to log in somewhere as that user; its host key is pinned under `name`.
    fn login_as(&self, name: &str, user: &str, root: Root, way: &Way) -> Login {
        let jump = |jump: &Way| Box::new(self.login_as(&jump.host, &jump.user, jump.root, jump));
        Login {
            endpoint: Endpoint {
                node: name.to_owned(),
                host: way.host.clone(),
                port: way.port,
                user: user.to_owned(),
            },
            keys: std::iter::once(self.state.key()).chain(way.keys.iter().cloned()).collect(),
            known_hosts: match &way.arranged.known {
                Some(known) => KnownHosts::learning(self.state.known_hosts()).expecting(known.clone()),
                None => KnownHosts::learning(self.state.known_hosts()),
            },
            options: Options {
                root: Some(root),
                password: way.arranged.password.clone(),
                agent: way.arranged.agent.clone(),
                ..Options::default()
            },
            jump: way.jump.as_deref().map(jump),
            proxy: way.arranged.proxy.clone(),
        }
    }

    /// A way to a node for the user's own commands: as the login user, not as root.
    pub fn users_remote(&self, node: &Node) -> Result<Remote, StepError> {
        let way = self.way(node)?;
        let mut login = self.login_by(node, &way);
        (login.endpoint.user, login.options.root) = (way.user, Some(way.root));
        Ok(Remote::new(login, self.cancel.clone()))
    }

    /// Works on a node over SSH.
    pub fn on<T, E: Into<StepError>>(
        &self,
        node: &Node,
        work: impl FnOnce(&mut Remote) -> Result<T, E>,
    ) -> Result<T, StepError> {
        let remote = self.remote(node)?;
        let mut remote = lock(&remote);
        work(&mut remote).map_err(Into::into)
    }

    /// Runs a short script of root's on a node; its output, if it exits with 0.
    pub fn script(&self, node: &Node, what: &str, script: &str) -> Result<String, StepError> {
        self.on(node, |r| r.script(what, script, true, SCRIPT_TIMEOUT, &mut |_| {})?.ok().map(|o| o.text()))
    }

    /// The same, whatever its exit status.
    pub fn run_script(&self, node: &Node, what: &str, script: &str) -> Result<Output, StepError> {
        self.on(node, |r| r.script(what, script, true, SCRIPT_TIMEOUT, &mut |_| {}))
    }

    /// Asks a node about itself.
    pub fn look_at_node(&self, node: &Node) -> Result<NodeFacts, StepError> {
        let asked = epoch();
        let text = self.script(node, "asking the node about itself", guest::script())?;
        let mut facts = guest::parse(&text)?;
        // Of this moment: whoever reads it later may have waited for other nodes meanwhile.
        facts.ahead = ahead(facts.epoch, asked, epoch());
        let found = self.look_at_found(node, &mut facts);
        self.note(|seen| {
            seen.silent.remove(&node.name);
            seen.remembered.remove(&node.name);
            match found {
                Some(found) => _ = seen.found.insert(node.name.clone(), found.into()),
                None => _ = seen.found.remove(&node.name),
            }
            seen.nodes.insert(node.name.clone(), facts.clone().into());
        });
        Ok(facts)
    }

    /// The k3s that somebody installed there, if it is one: what its files, flags and variables say counts as what config.yaml
    /// says.
    fn look_at_found(&self, node: &Node, facts: &mut NodeFacts) -> Option<Found> {
        if node.ssh.is_none() || !found::may_be(facts) {
            return None;
        }
        let text = self.script(node, "reading how its k3s is configured", guest::found::script()).ok()?;
        let found = guest::found::parse(&text, facts)?;
        self.redactor.learn(found::secrets(&found));
        found::tell(&found, facts);
        Some(found)
    }

    /// A node's facts: those that were seen, or asked for now.
    pub fn facts(&self, node: &Node) -> Result<NodeFacts, StepError> {
        let seen = lock(&self.held.seen).nodes.get(&node.name).cloned();
        seen.map_or_else(|| self.look_at_node(node), |facts| Ok((*facts).clone()))
    }

    /// The system of a node's machine, by what was seen of it, or is remembered.
    pub fn guest(&self, node: &Node) -> &'static dyn Guest {
        let seen = lock(&self.held.seen).nodes.get(&node.name).cloned();
        let known = seen.or_else(|| self.memory(&node.name)?.facts.map(Into::into));
        guest::of(known.as_deref())
    }

    /// The public half of the cluster's key; the first caller makes the pair.
    pub fn public_key(&self) -> Result<String, StepError> {
        let _one = lock(&self.held.nodes.making_key);
        let comment = format!("p1 {}", self.cluster.name);
        let public = ssh::generate_key(&self.state.key(), &comment, &self.cancel)?;
        self.redactor.learn([std::fs::read_to_string(self.state.key()).unwrap_or_default()]);
        Ok(public)
    }

    /// Writes the configuration for `ssh -F`.
    pub fn write_ssh_config(&self) -> Result<(), StepError> {
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
    pub fn ssh_host(&self, node: &Node) -> Result<ssh::Host, StepError> {
        let way = self.way(node)?;
        Ok(self.host_of(&node.name, &way, self.state.key()))
    }

    fn host_of(&self, name: &str, way: &Way, key: PathBuf) -> ssh::Host {
        let jump = |jump: &Way| {
            let own = jump.keys.iter().find(|key| key.exists()).cloned();
            // Where there is a file it is tried alone: sshd gives up after six keys, and agents have more.
            let agent = own.is_none() && jump.arranged.agent.is_some();
            let host = self.host_of(&jump.host, jump, own.unwrap_or_else(|| self.state.key()));
            Box::new(ssh::Host { agent, ..host })
        };
        ssh::Host {
            endpoint: Endpoint {
                node: name.to_owned(),
                host: way.host.clone(),
                port: way.port,
                user: way.user.clone(),
            },
            root: way.root,
            key,
            known_hosts: self.state.known_hosts(),
            jump: way.jump.as_deref().map(jump),
            proxy: way.arranged.proxy.clone(),
            agent: false,
        }
    }
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

#[cfg(test)]
mod tests {
    use super::*;

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
}
