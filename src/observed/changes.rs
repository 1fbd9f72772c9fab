//! What a run changes, node by node: what is made, changed and lost, rather than the steps that bring it about. Pure.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use serde::Serialize;

use super::View;
use super::drift::{Drift, Interrupts, Kind, Loss, Mend, lost_with};
use crate::machines::{Cap, MachineState};
use crate::plan::{Check, ClusterStep, K3sState, NodeStep, Plan, Step};
use crate::spec::{BoxRef, Node, Release};

/// What becomes of a node, or of the cluster. The names are part of what `-o json` promises.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Fate {
    /// It is made, or joins.
    Add,
    /// It stays, and something of it is changed.
    Change,
    /// Its machine goes, and it comes back as a new one.
    Recreate,
    /// It goes.
    Destroy,
    /// Whether anything has to be done is decided during the run.
    Unknown,
}

/// One thing that differs afterwards.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct What {
    /// Its name, where it has a value before and after; else a fragment in words.
    pub what: String,
    pub before: Option<String>,
    /// Its value afterwards; without one before, what is done.
    pub after: Option<String>,
}

/// A file of a node that is written, or removed: the lines that come (`+`) and go (`-`), without secrets, and the keys that
/// they belong to (` `).
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct FileDiff {
    pub path: String,
    pub lines: Vec<String>,
}

/// What becomes of a node, or of the cluster itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Change {
    /// The node; none for what belongs to no node.
    pub node: Option<String>,
    pub fate: Fate,
    /// Its address, where its machine is made.
    pub address: Option<Ipv4Addr>,
    pub what: Vec<What>,
    pub files: Vec<FileDiff>,
    /// What is lost by that, in words.
    pub lost: Option<String>,
    pub loss: Loss,
    pub interrupts: Interrupts,
}

/// Whether the API answers while the run works.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Api {
    /// None answers before.
    #[default]
    None,
    Stays,
    /// One server after the other is away, and the others answer.
    InTurn,
    /// The only server is away for a while.
    Away,
    /// It ends, with the cluster's data.
    Ends,
}

/// What cannot be used while the run works.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Away {
    pub api: Api,
    /// The servers whose API is away.
    pub servers: Vec<String>,
    /// The nodes whose pods stop and are started again there.
    pub pods: Vec<String>,
    /// The nodes whose pods have to go elsewhere.
    pub leave: Vec<String>,
}

/// All of it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Changes {
    /// The cluster's own first, then the nodes in the order of the spec, then those that the spec does not have.
    pub all: Vec<Change>,
    pub away: Away,
    /// Steps that are run every time: nothing differs for that.
    pub every_time: Vec<String>,
}

impl Changes {
    /// How many are made, changed and destroyed; what is recreated is both made and destroyed.
    pub fn counts(&self) -> [usize; 3] {
        let of = |fates: &[Fate]| {
            let one = |c: &&Change| fates.contains(&c.fate) && (c.node.is_some() || c.fate == Fate::Change);
            self.all.iter().filter(one).count()
        };
        [of(&[Fate::Add, Fate::Recreate]), of(&[Fate::Change]), of(&[Fate::Destroy, Fate::Recreate])]
    }

    /// With every text replaced by what `change` makes of it: a node's words may be among them.
    #[must_use]
    pub fn map_texts(mut self, change: &dyn Fn(&str) -> String) -> Self {
        for one in &mut self.all {
            for what in &mut one.what {
                what.what = change(&what.what);
                for value in [&mut what.before, &mut what.after].into_iter().flatten() {
                    *value = change(value);
                }
            }
            if let Some(lost) = &mut one.lost {
                *lost = change(lost);
            }
            for line in one.files.iter_mut().flat_map(|file| &mut file.lines) {
                *line = change(line);
            }
        }
        self
    }
}

/// What a plan changes. `drift` is what was found to differ, `leaving` the machines that go, as they were made, and `files`
/// what was read of nodes' configuration.
pub fn changes(
    view: &View<'_>,
    plan: &Plan,
    drift: &[Drift],
    leaving: &[Node],
    files: &BTreeMap<String, Vec<FileDiff>>,
) -> Changes {
    let mut all: Vec<Change> = of_cluster(view, plan, drift).into_iter().collect();
    let nodes = view.cluster.nodes.iter().filter_map(|node| {
        let mut found = of_node(view, node, plan, drift, leaving)?;
        found.files = files.get(&node.name).cloned().unwrap_or_default();
        if !found.files.is_empty() {
            // The lines say it.
            found.what.retain(|w| !found.files.iter().any(|file| w.what.starts_with(&file.path)));
        }
        Some(found)
    });
    all.extend(nodes);
    let former = leaving.iter().filter(|n| view.cluster.node(&n.name).is_none());
    all.extend(former.map(|node| goes(view, node, Fate::Destroy, drift, leaving)));
    let away = away(view, &all);
    let every_time = plan.steps.iter().filter(|s| s.every_time).map(|s| s.info.id.clone()).collect();
    Changes { all, away, every_time }
}

fn in_words(what: impl Into<String>) -> What {
    What { what: what.into(), ..What::default() }
}

fn of_drift(drift: &Drift) -> What {
    match (&drift.before, &drift.after) {
        (Some(before), Some(after)) => What {
            what: match drift.kind {
                Kind::Cpus => "CPUs",
                Kind::Memory => "memory",
                Kind::Address => "address",
                Kind::Role => "role",
                _ => "k3s",
            }
            .to_owned(),
            before: Some(before.clone()),
            after: Some(after.clone()),
        },
        _ => What { what: drift.what.clone(), before: None, after: Some(drift.then.clone()) },
    }
}

fn of_cluster(view: &View<'_>, plan: &Plan, drift: &[Drift]) -> Option<Change> {
    let cluster = view.cluster;
    let exists = view.seen.machines.values().any(|m| m.state != MachineState::Absent);
    let mut what: Vec<What> = drift.iter().filter(|d| d.node.is_none() && d.counts()).map(of_drift).collect();
    let due = |step: ClusterStep| {
        plan.steps.iter().find(|s| s.name == step.into() && matches!(s.check, Check::Needed(_)))
    };
    // What takes its time on this host, and what no difference tells of.
    let told = |step: &Step| in_words(format!("{}: {}", step.info.title, step.check.reason()));
    let own = [
        ClusterStep::Box,
        ClusterStep::Artifacts,
        ClusterStep::Save,
        ClusterStep::Foundations,
        ClusterStep::AfterCluster,
    ];
    what.extend(own.into_iter().filter_map(due).map(told));
    if exists {
        let interrupts = Interrupts::Nothing;
        return (!what.is_empty()).then_some(Change {
            node: None,
            fate: Fate::Change,
            address: None,
            what,
            files: Vec::new(),
            lost: None,
            loss: Loss::Nothing,
            interrupts,
        });
    }
    if plan.is_done() {
        return None;
    }
    let version = view.seen.here.version.clone().unwrap_or_else(|| match &cluster.k3s.release {
        Release::Version(version) => version.clone(),
        Release::Channel(channel) => format!("of the channel {channel}"),
    });
    let mut made = vec![in_words(format!("k3s {version}"))];
    if let BoxRef::Definition(name) = &cluster.image
        && !cluster.network.is_none()
    {
        made.push(in_words(format!("box {name}")));
    }
    let count = |n: usize, noun: &str| format!("{n} {noun}{}", if n == 1 { "" } else { "s" });
    if !cluster.manifests.is_empty() {
        made.push(in_words(count(cluster.manifests.len(), "manifest")));
    }
    what.splice(0..0, made);
    Some(Change {
        node: None,
        fate: Fate::Add,
        address: None,
        what,
        files: Vec::new(),
        lost: None,
        loss: Loss::Nothing,
        interrupts: Interrupts::Nothing,
    })
}

fn of_node(view: &View<'_>, node: &Node, plan: &Plan, drift: &[Drift], leaving: &[Node]) -> Option<Change> {
    if let Some(old) = leaving.iter().find(|n| n.name == node.name) {
        let mut found = goes(view, old, Fate::Recreate, drift, leaving);
        found.address = Some(node.ip);
        return Some(found);
    }
    let mine = |s: &&Step| s.info.node.as_deref() == Some(&node.name) && s.check.may_run() && !s.every_time;
    let due: Vec<&Step> = plan.steps.iter().filter(mine).collect();
    let is_new = view.machine(node).state == MachineState::Absent;
    let differs = |d: &&Drift| d.node.as_deref() == Some(&*node.name) && d.mend == Mend::Up;
    let drift: Vec<&Drift> = drift.iter().filter(differs).collect();
    if due.is_empty() && drift.is_empty() {
        return None;
    }
    let change = |fate, what| Change {
        node: Some(node.name.clone()),
        fate,
        address: (fate == Fate::Add).then_some(node.ip),
        what,
        files: Vec::new(),
        lost: None,
        loss: Loss::Nothing,
        interrupts: drift.iter().map(|d| d.interrupts).max().unwrap_or_default(),
    };
    let told = |s: &&Step| in_words(format!("{}: {}", s.info.title, s.check.reason()));
    let joins = |s: &&Step| {
        let of_k3s = [NodeStep::Install, NodeStep::Launch, NodeStep::Start];
        of_k3s.iter().any(|step| s.name == (*step).into())
    };
    if is_new {
        return Some(change(Fate::Add, made(view, node)));
    }
    if view.k3s_state(node) == K3sState::New && due.iter().any(joins) {
        let joins = in_words(format!("{}: its machine is there; k3s joins", node.role));
        // What is changed of the machine for it, a firewall among others.
        let system = |s: &&&Step| s.name == NodeStep::System.into() && matches!(s.check, Check::Needed(_));
        let more = due.iter().filter(system).map(told);
        return Some(change(Fate::Add, [joins].into_iter().chain(more).collect()));
    }
    if !drift.is_empty() {
        let version = drift.iter().any(|d| d.kind == Kind::K3sVersion);
        // Another release brings these along.
        let more =
            |d: &&&Drift| !version || !matches!(d.kind, Kind::K3sFiles | Kind::K3sInstall | Kind::K3sUnit);
        return Some(change(Fate::Change, drift.iter().filter(more).map(|d| of_drift(d)).collect()));
    }
    let needed: Vec<What> = due.iter().filter(|s| matches!(s.check, Check::Needed(_))).map(told).collect();
    if needed.is_empty() {
        return Some(change(Fate::Unknown, vec![in_words(due[0].check.reason())]));
    }
    Some(change(Fate::Change, needed))
}

/// What a machine is made as.
fn made(view: &View<'_>, node: &Node) -> Vec<What> {
    let role = if node.role.has_k3s() { node.role.to_string() } else { "without k3s".to_owned() };
    let mut what = vec![in_words(role)];
    what.extend(node.size.map(|size| in_words(size.to_string().replace(" and ", ", "))));
    what.extend(node.disk.map(|gib| in_words(format!("a disk of {gib} GiB"))));
    what.extend(
        node.disks.iter().map(|disk| in_words(format!("the disk {} of {} GiB", disk.serial, disk.size))),
    );
    let of = |p: &&crate::spec::Provisioner| p.nodes.contains(&node.name);
    what.extend(view.cluster.provision.iter().filter(of).map(|p| in_words(format!("runs {}", p.name))));
    what
}

/// A machine goes.
fn goes(view: &View<'_>, node: &Node, fate: Fate, drift: &[Drift], leaving: &[Node]) -> Change {
    let mine: Vec<&Drift> =
        drift.iter().filter(|d| d.node.as_deref() == Some(&*node.name) && d.destroys()).collect();
    let (loss, lost) = match mine.iter().max_by_key(|d| d.loss) {
        Some(Drift { loss, lost: Some(lost), .. }) => (*loss, lost.clone()),
        _ => lost_with(view, node, leaving),
    };
    let machine = view.seen.machines.get(&node.name).filter(|m| m.state != MachineState::Absent);
    let stays = machine.is_some_and(|m| m.can.has(Cap::Release));
    let runs = machine.is_some_and(|m| m.state == MachineState::Running) && !stays;
    let mut what: Vec<What> = mine
        .iter()
        .map(|d| if d.before.is_some() { of_drift(d) } else { in_words(d.what.clone()) })
        .collect();
    let then = match (fate, stays) {
        (Fate::Recreate, true) => "k3s is uninstalled there, and it joins again",
        (Fate::Recreate, false) => "its machine is recreated and joins again",
        (_, true) => "k3s is uninstalled there; its machine stays",
        (_, false) => "its machine is destroyed",
    };
    what.push(in_words(mine.first().map_or_else(|| then.to_owned(), |d| d.then.clone())));
    Change {
        node: Some(node.name.clone()),
        fate,
        address: None,
        what,
        files: Vec::new(),
        lost: Some(lost),
        loss,
        interrupts: if runs { Interrupts::Machine } else { Interrupts::Nothing },
    }
}

fn away(view: &View<'_>, all: &[Change]) -> Away {
    let is = |node: &Node, wanted: K3sState| view.k3s_state_now(node) == wanted;
    let serving: Vec<&Node> = view.cluster.servers().filter(|n| is(n, K3sState::Running)).collect();
    let by = |name: &str| all.iter().find(|c| c.node.as_deref() == Some(name));
    let touched = |n: &&&Node| by(&n.name).is_some_and(|c| c.interrupts > Interrupts::Nothing);
    let servers: Vec<String> = serving.iter().filter(touched).map(|n| n.name.clone()).collect();
    let names = |wanted: &dyn Fn(&Change) -> bool| {
        all.iter().filter(|c| wanted(c)).filter_map(|c| c.node.clone()).collect::<Vec<_>>()
    };
    let goes = |c: &Change| matches!(c.fate, Fate::Recreate | Fate::Destroy);
    Away {
        api: match servers.len() {
            _ if all.iter().any(|c| c.loss == Loss::Cluster) => Api::Ends,
            _ if serving.is_empty() => Api::None,
            0 => Api::Stays,
            _ if serving.len() > 1 => Api::InTurn,
            _ => Api::Away,
        },
        servers,
        pods: names(&|c| !goes(c) && c.interrupts == Interrupts::Machine),
        leave: names(&|c| goes(c) && c.interrupts == Interrupts::Machine),
    }
}

/// More lines than these are not compared.
const LINES: usize = 1000;

/// The lines that come and go between two texts; of what stays only the key that a line belongs to.
pub fn diff(old: &str, new: &str) -> Vec<String> {
    let (old, new): (Vec<&str>, Vec<&str>) = (old.lines().collect(), new.lines().collect());
    if old.len() > LINES || new.len() > LINES {
        return vec![" too long to be compared".to_owned()];
    }
    // The longest common subsequence from each place on.
    let mut common = vec![vec![0_usize; new.len() + 1]; old.len() + 1];
    for i in (0..old.len()).rev() {
        for j in (0..new.len()).rev() {
            common[i][j] = match old[i] == new[j] {
                true => common[i + 1][j + 1] + 1,
                false => common[i + 1][j].max(common[i][j + 1]),
            };
        }
    }
    let (mut i, mut j, mut out, mut key) = (0, 0, Vec::new(), None);
    let inner = |line: &str| line.starts_with([' ', '-']);
    while i < old.len() || j < new.len() {
        if i < old.len() && j < new.len() && old[i] == new[j] {
            if !inner(old[i]) {
                key = Some(old[i]);
            }
            (i, j) = (i + 1, j + 1);
            continue;
        }
        let goes = j == new.len() || i < old.len() && common[i + 1][j] >= common[i][j + 1];
        let (mark, line) = if goes { ('-', old[i]) } else { ('+', new[j]) };
        match inner(line) {
            true => out.extend(key.take().map(|key| format!(" {key}"))),
            false => key = None,
        }
        out.push(format!("{mark}{line}"));
        if goes { i += 1 } else { j += 1 }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_difference_is_the_lines_that_come_and_go_and_their_key() {
        let old = "bind-address: x\ndisable:\n  - traefik\n  - servicelb\nnode-ip: 1\n";
        let new = "bind-address: x\ndebug: true\ndisable:\n  - servicelb\nnode-ip: 1\n";
        assert_eq!(diff(old, new), ["+debug: true", " disable:", "-  - traefik"]);
        assert_eq!(diff("", "a: b\n"), ["+a: b"]);
        assert_eq!(diff(old, old), [""; 0]);
        assert_eq!(diff("a:\n  - x\n  - y\n", "b: c\n"), ["-a:", "-  - x", "-  - y", "+b: c"]);
    }
}
