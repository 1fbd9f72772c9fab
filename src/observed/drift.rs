//! Drift: every difference between the spec and what is there, as data. Pure.
//!
//! What the steps' own conditions find is told here under a name that programs can rely on; what no step
//! mends is found here as well: what would take a machine with its data.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::{IpAddr, Ipv4Addr};

use serde::Serialize;

use super::{Observed, View, found, preflight, ready, ways};
use crate::guest::{self, Activity, NodeFacts};
use crate::k3s;
use crate::machines::{Cap, MachineState, Made, Whose};
use crate::plan::{Check, ClusterStep, K3sState, NodeStep, Plan, StepName};
use crate::spec::{Cluster, Node, Release, Role};

/// What differs. The names are part of what `-o json` promises and are explained in docs/changes.md; there
/// may be more in the future.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    VmMissing,
    VmStopped,
    VmPaused,
    VmForeign,
    VmExtra,
    Cpus,
    Memory,
    Address,
    Nic,
    Network,
    Box,
    Role,
    Provider,
    Ssh,
    System,
    Firewall,
    Hosts,
    K3sFiles,
    K3sConfig,
    K3sInstall,
    K3sVersion,
    K3sUnit,
    K3sRestarts,
    Disk,
    Disks,
    Autostart,
    K3sElsewhere,
    K3sFound,
    NodeMissing,
    NodeNotReady,
    NodeAddress,
    NodeCordoned,
    NodeLabels,
    NodeExtra,
    Kubeconfig,
    Datastore,
    Manifests,
    Rollout,
    Provision,
    Owner,
    /// Whatever another step found.
    Other,
}

/// What mends it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Mend {
    /// `up`, and nothing is lost.
    Up,
    /// `up`, which first asks whether the machine may go: the node is not in the spec.
    Remove,
    /// `up --replace NODE`, or `up` and a yes: the machine is recreated.
    Replace,
    /// `destroy` and `up`: the whole cluster is recreated.
    Anew,
    /// Nothing has to be done; it is as well to know.
    Note,
}

/// What is lost when a machine goes: what is asked about goes by this, never by the words for it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Loss {
    /// Nothing.
    #[default]
    Nothing,
    /// A node's place in the cluster.
    Node,
    /// What is on a node's disk.
    Disk,
    /// The cluster's data: no server that has it stays.
    Cluster,
}

/// What is interrupted, on the nodes that it is for, while a difference is mended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Interrupts {
    /// Nothing that runs.
    #[default]
    Nothing,
    /// k3s, which is restarted; containers go on.
    K3s,
    /// The machine, with all that runs on it.
    Machine,
}

/// What differs from the spec, and what it takes to mend it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Drift {
    /// The node; none for the cluster as a whole.
    pub node: Option<String>,
    /// What differs.
    pub kind: Kind,
    /// In words, a fragment.
    pub what: String,
    /// What it is now, where that is one value.
    pub before: Option<String>,
    /// What it is to be.
    pub after: Option<String>,
    /// What mends it.
    pub mend: Mend,
    /// What will happen to which machine, a fragment.
    pub then: String,
    /// What is lost by that, in words; none if nothing is.
    pub lost: Option<String>,
    /// What is lost by that.
    pub loss: Loss,
    /// What is interrupted for it.
    pub interrupts: Interrupts,
}

impl Drift {
    /// One value in another's place.
    fn with_values(self, before: impl fmt::Display, after: impl fmt::Display) -> Self {
        Self { before: Some(before.to_string()), after: Some(after.to_string()), ..self }
    }

    /// False for what is only said.
    pub fn counts(&self) -> bool {
        self.mend != Mend::Note
    }

    /// True if k3s is configured by more than p1 writes.
    pub fn is_elsewhere(&self) -> bool {
        self.kind == Kind::K3sElsewhere
    }

    /// True if a machine goes for it.
    pub fn destroys(&self) -> bool {
        matches!(self.mend, Mend::Remove | Mend::Replace | Mend::Anew)
    }
}

impl fmt::Display for Drift {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let node = self.node.as_deref().unwrap_or("cluster");
        write!(f, "{node}: {} → {}", self.what, self.then)?;
        match &self.lost {
            Some(lost) => write!(f, "; lost: {lost}"),
            None => Ok(()),
        }
    }
}

/// The state folder's copy of the secrets is amiss, and a server has them.
pub fn token(what: String) -> Drift {
    finding(None, Kind::Other, what, Mend::Note, "`p1 up` reads it back")
}

/// The differences that `up` would find, whose plan this is, and the machines that would go for them after a yes, as
/// they were made: those of former nodes first.
pub fn changes(view: &View<'_>, plan: &Plan, targets: &[String]) -> (Vec<Drift>, Vec<Node>) {
    let mut all = drift(view, plan);
    // Nodes by name concern nobody else.
    let concerns = |d: &Drift| d.mend == Mend::Anew || d.node.as_ref().is_some_and(|n| targets.contains(n));
    all.retain(|d| targets.is_empty() || concerns(d));
    let names = to_mend(&all, Mend::Remove).into_iter().chain(to_mend(&all, Mend::Replace));
    let leaving: Vec<Node> = names.filter_map(|n| node_as_made(view, &n)).collect();
    // Only now it is known who goes: two servers may each be the other one that has the data.
    for drift in all.iter_mut().filter(|d| d.destroys() && d.loss == Loss::Disk) {
        let node = drift.node.as_ref().and_then(|name| leaving.iter().find(|n| n.name == *name));
        if let Some((Loss::Cluster, words)) = node.map(|node| lost_with(view, node, &leaving)) {
            (drift.loss, drift.lost) = (Loss::Cluster, Some(words));
        }
    }
    (all, leaving)
}

/// The nodes that have something to be mended in this way.
pub fn to_mend(all: &[Drift], mend: Mend) -> Vec<String> {
    let mut names: Vec<String> = Vec::new();
    for name in all.iter().filter(|d| d.mend == mend).filter_map(|d| d.node.clone()) {
        if !names.contains(&name) {
            names.push(name);
        }
    }
    names
}

/// The node of that name as its machine was made, whether the spec has it or not.
pub fn node_as_made(view: &View<'_>, name: &str) -> Option<Node> {
    let former = view.seen.former.iter().find(|n| n.name == name);
    view.cluster.node(name).map(|n| as_made(view, n)).or_else(|| former.cloned())
}

/// Everything that differs, by node in the order of the spec, former nodes last. `plan` is that of `up`.
fn drift(view: &View<'_>, plan: &Plan) -> Vec<Drift> {
    let mut all = of_cluster(view, plan);
    for node in &view.cluster.nodes {
        let mut found = of_machine(view, node);
        // One that has to be recreated is not mended otherwise.
        if !found.iter().any(Drift::destroys) && !found.iter().any(|d| d.kind == Kind::VmMissing) {
            found.extend(of_steps(view, node, plan));
        }
        let mut kinds = Vec::new();
        // Of provisioners each is one of its own.
        found.retain(|d| {
            d.kind == Kind::Provision || !kinds.contains(&d.kind) && (kinds.push(d.kind), true).1
        });
        all.extend(found);
    }
    all.extend(view.seen.former.iter().map(|node| former(view, node)));
    all.extend(view.seen.differs.iter().cloned());
    all
}

fn finding(
    node: Option<&Node>,
    kind: Kind,
    what: impl Into<String>,
    mend: Mend,
    then: impl Into<String>,
) -> Drift {
    let (what, then) = (what.into(), then.into());
    let node = node.map(|n| n.name.clone());
    Drift {
        node,
        kind,
        what,
        before: None,
        after: None,
        mend,
        then,
        lost: None,
        loss: Loss::Nothing,
        interrupts: Interrupts::Nothing,
    }
}

/// What goes with a machine when all of `leaving` go: by its value, and in words.
pub fn lost_with(view: &View<'_>, node: &Node, leaving: &[Node]) -> (Loss, String) {
    let (loss, mut lost) = lost_of_system(view, node, leaving);
    if !node.disks.is_empty() {
        let disks: Vec<&str> = node.disks.iter().map(|disk| disk.serial.as_str()).collect();
        let s = if disks.len() == 1 { "" } else { "s" };
        lost += &format!("; and its disk{s} {}", disks.join(", "));
    }
    (loss, lost)
}

/// The same but for disks beside that with the system.
fn lost_of_system(view: &View<'_>, node: &Node, leaving: &[Node]) -> (Loss, String) {
    let cluster = &view.cluster.name;
    match node.role {
        Role::Server if !data_stays(view, node, leaving) => {
            let servers = servers_there(view).filter(|n| may_have_data(view, n)).count();
            let why = match servers > 1 {
                true => "no server that has it stays".to_owned(),
                false => format!("{} is its only server", node.name),
            };
            (Loss::Cluster, format!("all data of the cluster `{cluster}`: {why}"))
        }
        Role::Server if view.can(node).has(Cap::Release) => (
            Loss::Disk,
            "what k3s has on its disk; the cluster's data is on the other servers as well".to_owned(),
        ),
        Role::Server => {
            (Loss::Disk, "what is on its disk; the cluster's data is on the other servers as well".to_owned())
        }
        Role::Worker if view.can(node).has(Cap::Release) => {
            (Loss::Disk, "what k3s has on its disk, volumes of pods included".to_owned())
        }
        Role::Worker => (Loss::Disk, "what is on its disk, volumes of pods included".to_owned()),
        Role::None if view.can(node).has(Cap::Release) => {
            (Loss::Node, "its names in /etc/hosts of the nodes".to_owned())
        }
        Role::None => (Loss::Disk, "what is on its disk".to_owned()),
    }
}

/// The worst that is lost when all of these go.
pub fn worst(view: &View<'_>, names: &[String]) -> Loss {
    let leaving: Vec<Node> = names.iter().filter_map(|n| node_as_made(view, n)).collect();
    leaving.iter().map(|n| lost_with(view, n, &leaving).0).max().unwrap_or_default()
}

/// The servers that have a machine, as they were made.
fn servers_there<'a>(view: &'a View<'_>) -> impl Iterator<Item = Node> + 'a {
    let exists = |n: &&Node| view.seen.machines.get(&n.name).is_some_and(|m| m.state != MachineState::Absent);
    let ours = view.cluster.nodes.iter().chain(&view.seen.former).filter(exists);
    ours.map(|n| as_made(view, n)).filter(|n| n.role == Role::Server)
}

/// Whether this server is known to have the cluster's data: its machine was part of the cluster.
fn has_data(view: &View<'_>, server: &Node) -> bool {
    view.seen.api.as_ref().is_some_and(|api| api.contains_key(&server.name))
        || view.k3s_state_now(server) != K3sState::New
}

/// Whether this server may have it: one that says nothing of itself is not known to have none.
fn may_have_data(view: &View<'_>, server: &Node) -> bool {
    !view.seen.nodes.contains_key(&server.name) || has_data(view, server)
}

/// Whether the data is still there when this server and all of `leaving` are gone: on a server that stays, or
/// because several are recreated, one when the one before has it again. Only what is known counts for that.
fn data_stays(view: &View<'_>, node: &Node, leaving: &[Node]) -> bool {
    let goes = |n: &Node| n.name == node.name || leaving.iter().any(|l| l.name == n.name);
    let there: Vec<Node> = servers_there(view).collect();
    let come_back = |n: &&Node| view.cluster.node(&n.name).is_some_and(|s| s.role == Role::Server);
    // One that never was part of it takes nothing with it.
    if !there.iter().any(|n| n.name == node.name && may_have_data(view, n)) {
        return true;
    }
    let members: Vec<&Node> = there.iter().filter(|n| has_data(view, n)).collect();
    members.iter().any(|n| !goes(n)) || members.iter().copied().filter(come_back).count() > 1
}

/// A node as its machine was made.
fn as_made(view: &View<'_>, node: &Node) -> Node {
    match view.seen.made.get(&node.name) {
        // One that was made without k3s may have it by now: nothing has to go for that.
        Some(made) => {
            let role = if made.role == Role::None { node.role } else { made.role };
            Node { role, ip: made.ip, disks: made.disks.clone(), ..node.clone() }
        }
        None => node.clone(),
    }
}

fn of_cluster(view: &View<'_>, plan: &Plan) -> Vec<Drift> {
    let (cluster, seen) = (view.cluster, view.seen);
    let mut all = Vec::new();
    let exists = seen.machines.values().any(|m| m.state != MachineState::Absent && !m.foreign);
    let anew = |kind, what: String| Drift {
        lost: Some(format!("everything of the cluster `{}`", cluster.name)),
        loss: Loss::Cluster,
        interrupts: Interrupts::Machine,
        ..finding(None, kind, what, Mend::Anew, "`p1 destroy`, then `p1 up`, recreates the whole cluster")
    };
    let wanted = crate::machines::Kind::wished(cluster.provider);
    if let (Some(wanted), Some(has)) = (wanted, seen.here.provider)
        && wanted != has
        && exists
    {
        all.push(anew(Kind::Provider, format!("its machines are of {has}, not of {wanted}")));
    }
    // Also where no machine is there: what else was made is.
    if let Some(has) = seen.here.libvirt.as_ref().filter(|has| **has != cluster.libvirt) {
        all.push(anew(
            Kind::Provider,
            format!("it was made with {has}, and the spec says {}", cluster.libvirt),
        ));
    }
    let present = |n: &&String| seen.machines.get(*n).is_some_and(|m| m.state != MachineState::Absent);
    let mut made = seen.made.iter().filter(|(n, m)| present(n) && m.ssh.is_none()).map(|(_, m)| m);
    if let Some(made) = made.find(|m| m.cidr != cluster.network.cidr || m.nics != cluster.network.nics) {
        let cards = |n: u8| if n == 1 { "1 card".to_owned() } else { format!("{n} cards") };
        let (is, wants) = (
            format!("{} with {}", made.cidr, cards(made.nics)),
            format!("{} with {}", cluster.network.cidr, cards(cluster.network.nics)),
        );
        all.push(anew(Kind::Network, format!("its machines were made for the network {is}, not {wants}")));
    }
    for step in plan.steps.iter().filter(|_| exists) {
        let Check::Needed(why) = &step.check else { continue };
        let StepName::ClusterStep(step) = step.name else { continue };
        if step == ClusterStep::Artifacts {
            if let Some(unfit) = &seen.here.unfit {
                let what = format!("k3s' files cannot be used: {}", unfit.cause);
                let then = unfit.hint.clone().unwrap_or_else(|| "they are fetched again".to_owned());
                all.push(finding(None, Kind::K3sFiles, what, Mend::Up, then));
            }
            continue;
        }
        if let (ClusterStep::Kubeconfig, Some(minority)) = (step, view.minority()) {
            let then = "servers that are down are started";
            all.push(finding(None, Kind::Datastore, format!("etcd: {minority}"), Mend::Up, then));
            continue;
        }
        let (kind, what, then) = match step {
            ClusterStep::Kubeconfig => (Kind::Kubeconfig, "its kubeconfig", "it is fetched again"),
            ClusterStep::Link => {
                (Kind::Network, "its network", "it is fixed, and the machines are connected to it")
            }
            ClusterStep::Manifests => (Kind::Manifests, "its manifests", "they are applied"),
            ClusterStep::Rollouts => (Kind::Rollout, "its applications", "they are waited for"),
            _ => continue,
        };
        all.push(finding(None, kind, format!("{what}: {why}"), Mend::Up, then));
    }
    all
}

fn of_machine(view: &View<'_>, node: &Node) -> Vec<Drift> {
    let seen = view.seen;
    let up = |kind, what: String, then: &str| finding(Some(node), kind, what, Mend::Up, then);
    let Some(machine) = seen.machines.get(&node.name).filter(|m| m.state != MachineState::Absent) else {
        let then = if node.role.has_k3s() { "it is made and joins" } else { "it is made" };
        return vec![up(Kind::VmMissing, "there is no machine".into(), then)];
    };
    if machine.foreign {
        let what = "a machine of its name exists that this folder does not know".to_owned();
        return vec![up(Kind::VmForeign, what, "it is recreated if it is half-made and of this folder")];
    }
    let mut all = Vec::new();
    let (loss, lost) = lost_with(view, &as_made(view, node), &[]);
    let stays = machine.can.has(Cap::Release);
    let runs = matches!(machine.state, MachineState::Running | MachineState::Paused) && !stays;
    let stopped = if runs { Interrupts::Machine } else { Interrupts::Nothing };
    let replace = |kind, what: String| Drift {
        lost: Some(lost.clone()),
        loss,
        interrupts: stopped,
        ..finding(
            Some(node),
            kind,
            what,
            Mend::Replace,
            match (stays, node.role.has_k3s()) {
                (true, true) => "k3s is uninstalled there, and it joins again",
                (true, false) => "k3s is uninstalled there",
                (false, true) => "its machine is recreated and joins again",
                (false, false) => "its machine is recreated",
            },
        )
    };
    let made = seen.made.get(&node.name);
    if let Some(made) = made.filter(|m| m.ip != node.ip) {
        let what = format!("its address is {}, not {}", made.ip, node.ip);
        all.push(replace(Kind::Address, what).with_values(made.ip, node.ip));
    }
    let facts = seen.nodes.get(&node.name);
    let has = |role: Role| facts.is_some_and(|f| f.unit(role.unit()).loaded);
    let mut others = [Role::Server, Role::Worker].into_iter().filter(|role| *role != node.role);
    let was = match facts {
        Some(_) => others.find(|role| has(*role) && !has(node.role)),
        None => others.find(|role| made.is_some_and(|m| m.role == *role)),
    };
    if let Some(other) = was {
        let what = match node.role {
            Role::None => format!("it is a {other}, and the spec gives it no k3s"),
            role => format!("it is a {other}, not a {role}"),
        };
        all.push(replace(Kind::Role, what).with_values(other, node.role));
    }
    match &machine.state {
        MachineState::Running => {}
        MachineState::Paused => all.push(up(Kind::VmPaused, "its machine is paused".into(), "it goes on")),
        state => all.push(up(Kind::VmStopped, format!("its machine is {state}"), "it is started")),
    }
    if let (Some(size), Some(wanted)) = (machine.size, node.size) {
        let then = match runs {
            true => "it is shut down, changed and started; nothing is lost",
            false => "it is changed; nothing is lost",
        };
        let up = |kind, what: String, then| Drift { interrupts: stopped, ..up(kind, what, then) };
        if size.cpus != wanted.cpus {
            let what = format!("its machine has {} CPUs, not {}", size.cpus, wanted.cpus);
            all.push(up(Kind::Cpus, what, then).with_values(size.cpus, wanted.cpus));
        }
        if size.memory != wanted.memory {
            let what = format!("its machine has {} MiB, not {}", size.memory, wanted.memory);
            let mib = |memory: u32| format!("{memory} MiB");
            all.push(up(Kind::Memory, what, then).with_values(mib(size.memory), mib(wanted.memory)));
        }
    }
    if let (Some(made), Some(image)) = (made, &seen.here.image)
        && !made.image.is_empty()
        && made.image != *image
    {
        let name = |text: &str| text.split(' ').next().unwrap_or_default().to_owned();
        let what = match name(&made.image) == name(image) {
            true => format!("its machine was made from another content of the box {}", name(image)),
            false => format!("its machine was made from {}, not {}", name(&made.image), name(image)),
        };
        let then = format!("it stays; `p1 up --replace {}` makes it from the new box", node.name);
        all.push(finding(Some(node), Kind::Box, what, Mend::Note, then));
    }
    let hosting = seen.hosting.get(&node.name).filter(|_| machine.state == MachineState::Running);
    if let Some(hosting) = hosting.filter(|h| h.unsafe_now != view.cluster.disposable) {
        let what = match hosting.unsafe_now {
            true => "its disk was made for speed: a power cut of this host can destroy what it holds",
            false => "its disk is safe from a power cut of this host, and slower than `disposable` asks for",
        };
        let (other, name) = (if hosting.unsafe_now { "safe" } else { "fast" }, &node.name);
        let then = format!("it is {other} from its next start on: `p1 stop {name}`, then `p1 up {name}`");
        all.push(finding(Some(node), Kind::Disk, what, Mend::Note, then));
    }
    let extra = made.into_iter().flat_map(|m| &m.disks);
    let extra: Vec<&str> = extra
        .filter(|has| node.disks.iter().all(|disk| disk.serial != has.serial))
        .map(|has| has.serial.as_str())
        .collect();
    if !extra.is_empty() {
        let what = format!("it has disks that the spec does not have: {}", extra.join(", "));
        let then = format!("they stay; `p1 up --replace {}` makes its machine without them", node.name);
        all.push(finding(Some(node), Kind::Disk, what, Mend::Note, then));
    }
    let found = found::lacks(view, node);
    if found.is_some() && preflight::is_new(view, node) {
        let lacks = found.as_deref().unwrap_or_default().join("; ");
        let host = node.ssh.as_ref().map_or(&node.name, |access| &access.host);
        let (what, then) = match lacks.is_empty() {
            true => (
                "its k3s was installed before p1".to_owned(),
                "it is taken over as it runs, and not restarted".to_owned(),
            ),
            false => (
                format!("its k3s was installed before p1, and differs from the spec: {lacks}"),
                format!(
                    "nothing: `p1 up` refuses it, and `p1 init --from {host}` writes the spec of what is there"
                ),
            ),
        };
        all.push(finding(Some(node), Kind::K3sFound, what, Mend::Note, then));
    }
    let all_said = found.is_some_and(|lacks| lacks.is_empty());
    let facts = facts.filter(|_| node.role.has_k3s());
    if let Some(what) = facts.filter(|_| !all_said).and_then(|facts| elsewhere(node, facts)) {
        let then = "nothing; take it into the spec's `config`, or remove it, and restart k3s";
        all.push(finding(Some(node), Kind::K3sElsewhere, what, Mend::Note, then));
    }
    if let Some(facts) = facts {
        let restarts = facts.unit(node.role.unit()).restarts;
        if restarts > 0 {
            let init = guest::of(Some(facts)).service().name();
            let what = format!("{init} has restarted its k3s {}", crate::explain::times(restarts));
            let then = format!("nothing; `p1 logs {}` may show why", node.name);
            all.push(finding(Some(node), Kind::K3sRestarts, what, Mend::Note, then));
        }
    }
    all
}

/// What configures the node's k3s beside what p1 writes, by the files' names. Proxies are the installer's or the
/// host's matter.
fn elsewhere(node: &Node, facts: &NodeFacts) -> Option<String> {
    let proxy = |name: &str| name.to_ascii_lowercase().ends_with("_proxy");
    let over = |name: &str| {
        let key =
            name.trim_end_matches('+').trim_start_matches("K3S_").to_ascii_lowercase().replace('_', "-");
        k3s::config::OWN_KEYS.contains(&key.as_str())
            || node.config.contains_key(key.as_str())
            || key == "url"
    };
    let mut all = Vec::new();
    for (path, names) in &facts.elsewhere {
        let other = node.role.unit() != "k3s" && path.contains("/k3s.service")
            || node.role.unit() == "k3s" && path.contains("k3s-agent");
        let names: Vec<&str> = names.iter().map(String::as_str).filter(|n| !proxy(n)).collect();
        let drop_in = path.ends_with(".conf");
        if other || (names.is_empty() && !drop_in) {
            continue;
        }
        let shown: String = path.chars().filter(|c| !c.is_control()).take(200).collect();
        let list = names.iter().take(5).map(|n| format!("`{n}`")).collect::<Vec<_>>().join(", ");
        all.push(match (drop_in, names.iter().any(|n| over(n))) {
            (true, _) => format!("{shown} changes k3s' unit"),
            (_, true) => format!("{shown} sets {list}, over what p1 writes"),
            (_, false) => format!("{shown} sets {list}"),
        });
    }
    (!all.is_empty()).then(|| all.join("; "))
}

/// What the conditions of `up`'s steps found.
fn of_steps(view: &View<'_>, node: &Node, plan: &Plan) -> Vec<Drift> {
    let facts = view.seen.nodes.get(&node.name);
    let mine = plan.steps.iter().filter(|s| s.info.node.as_deref() == Some(&node.name) && !s.every_time);
    let needed = mine.filter_map(|s| match &s.check {
        Check::Needed(why) => Some((s, why)),
        _ => None,
    });
    let runs = view.k3s_state(node) == K3sState::Running;
    let mut all = Vec::new();
    for (step, why) in needed {
        let StepName::NodeStep(name) = step.name else { continue };
        let kind = match name {
            // Told with the machine.
            NodeStep::Vm | NodeStep::Resize | NodeStep::Leave | NodeStep::Machine | NodeStep::Uninstall => {
                continue;
            }
            // Told with `stage` and `start`.
            NodeStep::Push | NodeStep::Launch => continue,
            NodeStep::Ssh => Kind::Ssh,
            NodeStep::Autostart => Kind::Autostart,
            NodeStep::Disks => Kind::Disks,
            NodeStep::System if facts.is_some_and(|f| f.interface_of(node.ip).is_none()) => Kind::Nic,
            NodeStep::System if ways::closed(view, node).and_then(|gap| gap.why()).as_ref() == Some(why) => {
                Kind::Firewall
            }
            NodeStep::System => Kind::System,
            NodeStep::Hosts => Kind::Hosts,
            NodeStep::Stage if other_binary(view, node) => Kind::K3sVersion,
            NodeStep::Stage => Kind::K3sFiles,
            NodeStep::Config => Kind::K3sConfig,
            NodeStep::Install => Kind::K3sInstall,
            NodeStep::Start if view.seen.api.is_some() && view.status(node).is_none() => Kind::NodeMissing,
            NodeStep::Start if facts.is_some_and(|f| f.unit(node.role.unit()).active == Activity::Active) => {
                Kind::K3sConfig
            }
            NodeStep::Start => Kind::K3sUnit,
            NodeStep::Provision => Kind::Provision,
            NodeStep::Labels => Kind::NodeLabels,
            NodeStep::Ready => of_object(view, node),
            _ => Kind::Other,
        };
        let restarts = |name: &str| view.cluster.provision.iter().any(|p| p.reboot && p.name == name);
        let interrupts = match name {
            NodeStep::Provision if step.item.as_deref().is_some_and(restarts) => Interrupts::Machine,
            NodeStep::Stage | NodeStep::Config | NodeStep::Install | NodeStep::Start if runs => {
                Interrupts::K3s
            }
            _ => Interrupts::Nothing,
        };
        all.push(Drift {
            interrupts,
            ..finding(Some(node), kind, why.clone(), Mend::Up, step.info.title.clone())
        });
    }
    // Known without the files of the wanted release, which may not be here yet.
    let version = match &view.cluster.k3s.release {
        Release::Version(version) => Some(version),
        Release::Channel(_) => view.seen.here.version.as_ref(),
    };
    let status = view.status(node).filter(|s| s.ready && s.internal_ip == Some(node.ip.into()));
    if let (Some(version), Some(status)) = (version, status)
        && !k3s::runs(version, &status.version)
    {
        let what = format!("it runs {}, not {version}", status.version);
        let then = "its k3s is replaced and restarted";
        let found = finding(Some(node), Kind::K3sVersion, what, Mend::Up, then);
        // In place of what the files alone tell: those of the wanted release may not be here yet.
        all.retain(|d| d.kind != Kind::K3sVersion);
        all.push(Drift { interrupts: Interrupts::K3s, ..found }.with_values(&status.version, version));
    }
    all
}

/// The node has a k3s of p1's, and it differs from the wanted one.
fn other_binary(view: &View<'_>, node: &Node) -> bool {
    let binary = format!("{}/k3s", k3s::BIN_DIR);
    let has = view.seen.nodes.get(&node.name).and_then(|f| f.staged.get(&binary));
    let wants = view.wanted(node).unwrap_or_default().iter().find(|w| w.path == binary);
    matches!((has, wants), (Some(has), Some(wants)) if *has != wants.sha256)
}

fn of_object(view: &View<'_>, node: &Node) -> Kind {
    match view.status(node) {
        None => Kind::NodeMissing,
        Some(s) if !s.ready => Kind::NodeNotReady,
        Some(s) if s.internal_ip != Some(node.ip.into()) => Kind::NodeAddress,
        Some(s) if ready::wrong(node, None, Some(s)).is_none() && ready::cordoned(Some(s)).is_some() => {
            let version = view.seen.here.version.as_deref();
            if ready::wrong(node, version, Some(s)).is_some() { Kind::K3sVersion } else { Kind::NodeCordoned }
        }
        Some(_) => Kind::K3sVersion,
    }
}

/// What is there of a node that the spec does not have.
fn former(view: &View<'_>, node: &Node) -> Drift {
    let machine = view.seen.machines.get(&node.name).filter(|m| m.state != MachineState::Absent);
    let (kind, what, then, (loss, lost)) = match machine {
        Some(machine) if machine.can.has(Cap::Release) => (
            Kind::VmExtra,
            "the spec does not have it".to_owned(),
            match node.role.has_k3s() {
                true => "it leaves the cluster, and k3s is uninstalled there; its machine stays",
                false => "what p1 did there is taken back; its machine stays",
            },
            lost_with(view, node, &[]),
        ),
        Some(machine) => (
            Kind::VmExtra,
            format!("the spec does not have it, and its machine is {}", machine.state),
            match node.role.has_k3s() {
                true => "it leaves the cluster and its machine is destroyed",
                false => "its machine is destroyed",
            },
            lost_with(view, node, &[]),
        ),
        None if view.seen.machines.contains_key(&node.name) => (
            Kind::VmExtra,
            "the spec does not have it, and its machine is gone".to_owned(),
            "what is left of it is removed",
            (Loss::Disk, "its disk, if that was left behind".to_owned()),
        ),
        None => (
            Kind::NodeExtra,
            "the cluster knows it, and the spec does not have it".to_owned(),
            "its Node object is deleted",
            (Loss::Node, "its place in the cluster; p1 knows no machine of it".to_owned()),
        ),
    };
    // Renamed, as far as anybody can tell: the same place under another name.
    let successor = view.cluster.nodes.iter().find(|n| n.ip == node.ip && n.role == node.role);
    let then = match successor {
        Some(successor) => format!("{then}; {} is made new at its address", successor.name),
        None => then.to_owned(),
    };
    let runs = machine.is_some_and(|m| {
        matches!(m.state, MachineState::Running | MachineState::Paused) && !m.can.has(Cap::Release)
    });
    let interrupts = if runs { Interrupts::Machine } else { Interrupts::Nothing };
    Drift { lost: Some(lost), loss, interrupts, ..finding(Some(node), kind, what, Mend::Remove, then) }
}

/// A cluster that belongs to somebody else, or to a place where this folder no longer is.
pub fn owner(whose: &Whose) -> Drift {
    let then = match whose {
        Whose::Moved(_) => "that folder is gone: the next `p1 up` makes it this one's",
        _ => "nothing; `p1 up --take-over` makes it this folder's",
    };
    finding(None, Kind::Owner, format!("it belongs to {}", whose.name()), Mend::Note, then)
}

/// Nodes that the spec does not have and that are still there: as machines of this folder, or as Node
/// objects of the cluster.
pub fn former_nodes(cluster: &Cluster, seen: &Observed, made: &BTreeMap<String, Made>) -> Vec<Node> {
    let objects = seen.api.iter().flat_map(|api| api.keys());
    let names: BTreeSet<&String> = seen.machines.keys().chain(objects).collect();
    let gone = names.into_iter().filter(|n| cluster.node(n).is_none());
    gone.map(|name| {
        let (made, object) = (made.get(name), seen.api.as_ref().and_then(|api| api.get(name)));
        let serves = object.is_some_and(|o| o.roles.iter().any(|r| r == "control-plane" || r == "master"));
        let address = object.and_then(|o| match o.internal_ip {
            Some(IpAddr::V4(ip)) => Some(ip),
            _ => None,
        });
        let role = made.map_or(if serves { Role::Server } else { Role::Worker }, |m| m.role);
        let ip = made.map(|m| m.ip).or(address).unwrap_or(Ipv4Addr::UNSPECIFIED);
        let disks = made.map(|m| m.disks.clone()).unwrap_or_default();
        Node { ssh: made.and_then(|m| m.ssh.clone()), disks, ..Node::former(name.clone(), role, ip) }
    })
    .collect()
}
