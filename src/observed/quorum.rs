//! Whether a cluster can do without one of its servers. etcd decides by the majority of its members;
//! without one it takes no writes, and p1 never brings that about unasked.

use std::collections::BTreeMap;

use super::{Observed, View, found};
use crate::api::NodeStatus;
use crate::machines::{Machine, MachineState};
use crate::spec::{Node, Role};

/// What the API said, by node.
pub type Api = BTreeMap<String, NodeStatus>;

/// What was seen of nodes; none if the API did not answer.
pub fn seen(seen: &Observed) -> Option<Api> {
    seen.api.clone().map(|api| put_right(api, &seen.machines))
}

/// The API takes 40 s to notice that a node is gone (`node-monitor-grace-period` of the controller manager),
/// so one whose machine does not run is not Ready, whatever it says.
pub fn put_right(mut api: Api, machines: &BTreeMap<String, Machine>) -> Api {
    let runs = |name: &String| machines.get(name).is_none_or(|m| m.state == MachineState::Running);
    api.iter_mut().for_each(|(name, status)| status.ready &= runs(name));
    api
}

/// The servers that the cluster has, by its own word.
fn servers(api: &Api) -> impl Iterator<Item = &NodeStatus> {
    let serves = |n: &&NodeStatus| n.roles.iter().any(|r| r == "control-plane" || r == "master");
    api.values().filter(serves)
}

/// Why a server must not be stopped for a while: too few of the others are Ready. One or two servers
/// cannot do without each other, so that there nothing is kept by waiting.
pub fn may_stop(api: &Api, node: &str) -> Result<(), String> {
    let all = servers(api).count();
    if all < 3 || can_lose(api, node) {
        return Ok(());
    }
    let others = servers(api).filter(|s| s.name != node && s.ready).count();
    Err(format!("only {others} of the {} other servers are Ready", all - 1))
}

/// Whether etcd has a majority without this server before it is told to do without it.
pub fn can_lose(api: &Api, node: &str) -> bool {
    let all = servers(api).count();
    let others = servers(api).filter(|s| s.name != node && s.ready).count();
    others * 2 > all
}

/// Why a server must not leave: those that stay would have no majority among themselves. The last one
/// may go; that ends the cluster, and is asked about as such.
pub fn may_leave(api: &Api, node: &str) -> Result<(), String> {
    let members = servers(api).filter(|s| s.name != node).count();
    let ready: Vec<&str> =
        servers(api).filter(|s| s.name != node && s.ready).map(|s| s.name.as_str()).collect();
    if members == 0 || ready.len() * 2 > members {
        return Ok(());
    }
    let those = if ready.is_empty() { "none".to_owned() } else { ready.join(", ") };
    Err(format!(
        "of the {members} servers that stay, {} are Ready ({those}), which is no majority",
        ready.len()
    ))
}

/// The servers that are there and do not go.
fn servers_that_stay<'a>(view: &'a View<'_>) -> impl Iterator<Item = &'a Node> {
    let exists = |n: &&Node| {
        let machine = view.seen.machines.get(&n.name);
        machine.is_some_and(|m| m.state != MachineState::Absent && !m.foreign)
    };
    view.cluster.servers().filter(exists).filter(|n| !view.seen.leaving().any(|l| l.name == n.name))
}

/// Whether servers stay, or come back one by one: a cluster that a node can leave.
pub fn cluster_stays(view: &View<'_>) -> bool {
    if !view.seen.here.kubeconfig {
        return false;
    }
    let goes = |n: &&Node| n.role == Role::Server && view.seen.machines.contains_key(&n.name);
    let come_back = view.seen.leaving().filter(goes).filter(|n| view.is_recreated(n)).count();
    let kept = view.cluster.servers().any(|n| found::stays(view, n));
    kept || servers_that_stay(view).next().is_some() || (!view.seen.request.whole_goes && come_back > 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn api(ready: &[bool]) -> Api {
        let server = |(i, ready): (usize, &bool)| {
            let name = format!("s{i}");
            let roles = vec!["control-plane".to_owned()];
            (name.clone(), NodeStatus { name, ready: *ready, roles, ..NodeStatus::default() })
        };
        let worker = NodeStatus { name: "w".into(), ready: true, ..NodeStatus::default() };
        ready.iter().enumerate().map(server).chain([("w".to_owned(), worker)]).collect()
    }

    #[test]
    fn a_server_stops_only_where_the_others_are_a_majority() {
        assert!(may_stop(&api(&[true]), "s0").is_ok());
        assert!(may_stop(&api(&[true, true, true]), "s0").is_ok());
        assert!(may_stop(&api(&[true, true, false]), "s0").is_err());
        assert!(may_stop(&api(&[true, true, false]), "s2").is_ok(), "it is the one that is down");
        assert!(may_stop(&api(&[true, true, true, false, true]), "s0").is_ok());
        // Half of them is none.
        assert!(may_stop(&api(&[true, true, true, false]), "s0").is_err());
        assert!(!can_lose(&api(&[true, true]), "s0") && can_lose(&api(&[true, true, true]), "s0"));
    }

    #[test]
    fn a_server_leaves_only_where_a_majority_stays() {
        assert!(may_leave(&api(&[true]), "s0").is_ok(), "that ends the cluster, which is another question");
        assert!(may_leave(&api(&[true, true]), "s0").is_ok());
        assert!(may_leave(&api(&[true, true, false]), "s2").is_ok());
        assert!(may_leave(&api(&[true, true, false]), "s0").is_err());
        assert!(may_leave(&api(&[true, false]), "s0").is_err());
    }

    #[test]
    fn a_server_whose_machine_is_off_is_not_ready_whatever_the_api_says() {
        let off = Machine { state: MachineState::Off, ..Machine::absent() };
        let known = Observed {
            api: Some(api(&[true, true, true])),
            machines: [("s1".to_owned(), off)].into(),
            ..Observed::default()
        };
        let api = seen(&known).unwrap();
        assert!(may_leave(&api, "s0").is_err() && may_stop(&api, "s0").is_err());
        assert!(may_leave(&api, "s1").is_ok());
    }
}
