//! Faults on purpose: which are refused, and which differences are theirs.

use std::collections::BTreeSet;

use super::View;
use super::drift::{Drift, Kind};
use super::refusal::Refusal;
use crate::fault::{Active, Fault, Wish};
use crate::machines::{Cap, MachineState};
use crate::spec::Node;

/// What a machine has to be able to for a fault; none where it is done inside it.
pub fn needs(fault: &Fault) -> Option<Cap> {
    match fault {
        Fault::Pause | Fault::PowerCut => Some(Cap::Power),
        Fault::LinkDown => Some(Cap::Link),
        Fault::SlowDisk { .. } => Some(Cap::Throttle),
        fault => {
            debug_assert!(fault.is_inside());
            None
        }
    }
}

/// The nodes on the other side of a fault that is between nodes.
pub fn others<'a>(view: &View<'a>, wish: &Wish) -> Vec<&'a Node> {
    let Some(peers) = wish.fault.peers() else { return Vec::new() };
    let other = |n: &&Node| match peers.is_empty() {
        true => !wish.nodes.contains(&n.name),
        false => peers.contains(&n.name),
    };
    // The nodes of a partition are on one side; what is late or lost is so between any two.
    let alone = peers.is_empty() && !matches!(wish.fault, Fault::Partition { .. });
    view.cluster.nodes.iter().filter(|n| alone || other(n)).collect()
}

/// Why the fault that is asked for is not begun.
pub fn asked(view: &View<'_>) -> Option<Refusal> {
    let request = &view.seen.request;
    match Wish::read(request.subject.as_deref().unwrap_or_default()) {
        Ok(wish) => refusal(view, &Wish { nodes: request.targets.clone(), ..wish }),
        Err(why) => Some(Refusal::new(why, "")),
    }
}

fn refusal(view: &View<'_>, wish: &Wish) -> Option<Refusal> {
    for name in &wish.nodes {
        let node = view.cluster.node(name)?;
        if let Some(refusal) = of_node(view, wish, node) {
            return Some(refusal);
        }
    }
    let others = others(view, wish);
    if wish.fault.peers().is_some()
        && let Some(name) = wish.nodes.iter().find(|name| others.iter().all(|n| n.name == **name))
    {
        let what = format!("there is no node on the other side of `{}` for {name}", wish.fault.name());
        return Some(Refusal::new(what, "Leave nodes of the cluster out: those are the other side."));
    }
    data(view, wish)
}

fn of_node(view: &View<'_>, wish: &Wish, node: &Node) -> Option<Refusal> {
    let (name, fault) = (&node.name, &wish.fault);
    if let Some(cap) = needs(fault).filter(|cap| !view.can(node).has(*cap)) {
        return Some(Refusal::new(
            format!("`{}` cannot be done to {name}: {}", fault.name(), cap.lacking()),
            "Faults that are done inside machines can be: `partition`, `latency`, `loss`, `disk-full`, `clock`, `kill-k3s`.",
        ));
    }
    if matches!(fault, Fault::KillK3s) && !node.role.has_k3s() {
        return Some(Refusal::new(
            format!("`{}` cannot be done to {name}: the spec gives it no k3s (`role: none`)", fault.name()),
            "Name nodes with k3s.",
        ));
    }
    let machine = view.machine(node);
    if machine.foreign {
        return Some(Refusal::new(
            format!("the machine of {name} is not this folder's"),
            "`p1 status` says whose it is.",
        ));
    }
    let mine = view.seen.here.faults.iter().filter(|a| a.node == *name);
    if let Some((active, why)) = mine.filter_map(|a| Some((a, a.fault.bars(fault)?))).next() {
        let what = format!("{name} is under `{}`, and {why}", active.fault.name());
        return Some(Refusal::new(what, format!("`p1 fault heal {name}` ends that.")));
    }
    match machine.state {
        MachineState::Running => None,
        MachineState::Absent => {
            Some(Refusal::new(format!("there is no machine for {name}"), "`p1 up` makes it."))
        }
        state => Some(Refusal::new(
            format!("the machine of {name} is {state}"),
            format!("`p1 up {name}` starts it."),
        )),
    }
}

/// So far ahead a server's clock may be: what it deletes by age and renews by date is as it was after it.
const AHEAD: i64 = 600;

/// What nobody has agreed to lose. Naming a node is agreeing to what is its own, not to the end of the cluster's data;
/// `disposable: true` is agreeing to that.
fn data(view: &View<'_>, wish: &Wish) -> Option<Refusal> {
    if view.cluster.disposable {
        return None;
    }
    let named = |n: &Node| wish.nodes.contains(&n.name);
    const AGREE: &str = "`disposable: true` in the spec says that the cluster's data may be lost.";
    match wish.fault {
        Fault::DiskFull { .. } => {
            let full = |n: &Node| {
                let is = |a: &Active| a.node == n.name && matches!(a.fault, Fault::DiskFull { .. });
                named(n) || view.seen.here.faults.iter().any(is)
            };
            let all = view.cluster.servers().count();
            let room = view.cluster.servers().filter(|n| !full(n)).count();
            let hit = view.cluster.servers().any(named);
            (hit && room * 2 <= all).then(|| {
                let what = match all {
                    1 => "the only server with the cluster's data would have no room to write it".to_owned(),
                    _ => format!("only {room} of {all} servers would have room to write the cluster's data, which is no majority"),
                };
                let hint = format!("What is written there just then may be damaged on all of them. Name fewer servers, or only workers. {AGREE}");
                Refusal::new(what, hint)
            })
        }
        Fault::PowerCut => {
            let lost = |name: &&String| view.seen.hosting.get(*name).is_some_and(|h| h.unsafe_now);
            let name = wish.nodes.iter().find(lost)?;
            let what = format!(
                "what {name} has written may not be on its disk: it still runs with the cache of `disposable: true`"
            );
            let hint = format!("`p1 stop {name}`, then `p1 up {name}`, gives it the safe one. {AGREE}");
            Some(Refusal::new(what, hint))
        }
        Fault::Clock { by } if by > AHEAD => {
            let name = &view.cluster.servers().find(|n| named(n))?.name;
            let what = format!(
                "a server's clock that is ahead by more than {} deletes what is old by it",
                crate::explain::seconds(std::time::Duration::from_secs(AHEAD.unsigned_abs()))
            );
            let hint = format!(
                "Tokens, Jobs and events expire by the clock of {name}, and certificates that it makes then are not valid yet afterwards. Put the clock back (`--by=-1h`), or that of a worker. {AGREE}"
            );
            Some(Refusal::new(what, hint))
        }
        _ => None,
    }
}

/// What a fault brings about on a node that it concerns.
const OF_NODE: [Kind; 9] = [
    Kind::VmPaused,
    Kind::VmStopped,
    Kind::Ssh,
    Kind::System,
    Kind::Nic,
    Kind::Network,
    Kind::K3sUnit,
    Kind::NodeNotReady,
    Kind::Other,
];

/// And of the cluster, whichever node it is on: servers are away, pods are elsewhere.
const OF_CLUSTER: [Kind; 5] =
    [Kind::Kubeconfig, Kind::Datastore, Kind::Rollout, Kind::Manifests, Kind::Network];

/// The differences without those that faults bring about.
pub fn excuse(view: &View<'_>, drift: Vec<Drift>) -> Vec<Drift> {
    let faults = &view.seen.here.faults;
    let expected = |d: &Drift| match &d.node {
        Some(node) => faults.iter().any(|a| a.concerns(node)) && OF_NODE.contains(&d.kind),
        None => !faults.is_empty() && OF_CLUSTER.contains(&d.kind),
    };
    drift.into_iter().filter(|d| d.destroys() || !d.counts() || !expected(d)).collect()
}

/// The nodes that nothing can be asked of while a fault is on them.
pub fn hidden(faults: &[Active]) -> BTreeSet<&str> {
    faults.iter().filter(|a| a.fault.hides_the_machine()).map(|a| a.node.as_str()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::machines::{Caps, Hosting, Machine};
    use crate::observed::Observed;
    use crate::observed::drift::{Interrupts, Loss, Mend};
    use crate::spec::{Cluster, fixture};

    fn running(cluster: &Cluster) -> Observed {
        let runs = Machine { state: MachineState::Running, ..Machine::absent() };
        let machines = cluster.nodes.iter().map(|n| (n.name.clone(), runs.clone())).collect();
        Observed { machines, ..Observed::default() }
    }

    fn why(cluster: &Cluster, seen: &Observed, text: &str) -> String {
        let wish = Wish::read(text).unwrap();
        refusal(&View::new(cluster, seen), &wish)
            .map_or(String::new(), |r| format!("{}. {}", r.cause, r.hint))
    }

    fn on(node: &str, fault: Fault) -> Active {
        let at = jiff::Timestamp::UNIX_EPOCH;
        let (node, machine, run) = (node.to_owned(), String::new(), String::new());
        Active { node, machine, fault, between: Default::default(), since: at, until: at, run }
    }

    #[test]
    fn what_may_take_the_clusters_data_is_refused_unless_the_spec_agrees() {
        let unsafe_now = Hosting { unsafe_now: true, unsafe_next: false, autostart: false, network: false };
        for (servers, text, refused) in [
            (1, "disk-full server", "only server"),
            (1, "disk-full worker-1", ""),
            (3, "disk-full server", ""),
            (3, "disk-full server server-2", "only 1 of 3"),
            (1, "clock server --by 1h", "ahead by more than 10m"),
            (1, "clock server --by=-1h", ""),
            (1, "clock server --by 5m", ""),
            (1, "clock worker-1 --by 1h", ""),
            (1, "power-cut worker-1", "cache of `disposable"),
            (1, "power-cut server", ""),
        ] {
            let mut cluster = fixture::sized(servers, 2);
            let mut seen = running(&cluster);
            seen.hosting.insert("worker-1".into(), unsafe_now);
            let said = why(&cluster, &seen, text);
            assert_eq!(said.is_empty(), refused.is_empty(), "{text}: {said}");
            assert!(said.contains(refused), "{text}: {said}");
            cluster.disposable = true;
            assert_eq!(why(&cluster, &seen, text), "", "{text}");
        }
        // A second one counts with the first.
        let cluster = fixture::sized(3, 0);
        let mut seen = running(&cluster);
        seen.here.faults = vec![on("server-3", Fault::DiskFull { leave: 0 })];
        assert!(why(&cluster, &seen, "disk-full server").contains("only 1 of 3"));
    }

    #[test]
    fn machines_that_cannot_and_faults_that_do_not_go_together_are_told() {
        let cluster = fixture::cluster(2);
        let mut seen = running(&cluster);
        seen.machines.get_mut("worker-2").unwrap().can = Caps::NONE;
        for (text, refused) in [
            ("pause worker-2", "cannot switch its machine"),
            ("link-down worker-2", "cannot pull the network cable"),
            ("slow-disk worker-2", "cannot slow down"),
            ("partition worker-2", ""),
            ("partition server worker-1 worker-2", "no node on the other side"),
            ("latency server worker-1 worker-2", ""),
        ] {
            let said = why(&cluster, &seen, text);
            assert!(said.contains(refused) && said.is_empty() == refused.is_empty(), "{text}: {said}");
        }
        seen.here.faults = vec![on("worker-1", Fault::all()[1].clone()), on("server", Fault::Pause)];
        for (text, refused) in [
            ("latency worker-1", "it is there already"),
            ("loss worker-1", "queue"),
            ("partition worker-1", ""),
            ("pause worker-1", ""),
            ("clock server --by=-1h", "does not run"),
        ] {
            let said = why(&cluster, &seen, text);
            assert!(said.contains(refused) && said.is_empty() == refused.is_empty(), "{text}: {said}");
        }
        seen.machines.get_mut("worker-1").unwrap().state = MachineState::Off;
        assert!(why(&cluster, &seen, "kill-k3s worker-1").contains("p1 up worker-1"));
    }

    #[test]
    fn a_fault_excuses_what_it_brings_about_and_nothing_else() {
        let cluster = fixture::cluster(2);
        let mut seen = running(&cluster);
        let mut fault = on("worker-1", Fault::Partition { peers: vec!["server".into()] });
        fault.between.insert("server".into(), [10, 0, 0, 1].into());
        seen.here.faults = vec![fault];
        let drift = |node: Option<&str>, kind, mend| Drift {
            node: node.map(str::to_owned),
            kind,
            what: String::new(),
            before: None,
            after: None,
            mend,
            then: String::new(),
            lost: None,
            loss: Loss::Nothing,
            interrupts: Interrupts::Nothing,
        };
        let all = vec![
            drift(Some("worker-1"), Kind::NodeNotReady, Mend::Up),
            drift(Some("server"), Kind::Ssh, Mend::Up),
            drift(None, Kind::Rollout, Mend::Up),
            drift(Some("worker-2"), Kind::NodeNotReady, Mend::Up),
            drift(Some("worker-1"), Kind::K3sConfig, Mend::Up),
            drift(Some("worker-1"), Kind::Network, Mend::Replace),
            drift(None, Kind::Network, Mend::Anew),
        ];
        let left = excuse(&View::new(&cluster, &seen), all.clone());
        assert_eq!(left, all[3..]);
        seen.here.faults.clear();
        assert_eq!(excuse(&View::new(&cluster, &seen), all.clone()), all);
    }
}
