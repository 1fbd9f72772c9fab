//! Whether a node counts as Ready, by what the API says of it.

use crate::api::NodeStatus;
use crate::k3s;
use crate::spec::Node;

/// What is wrong with a node; none if it counts.
pub fn wrong(node: &Node, version: Option<&str>, status: Option<&NodeStatus>) -> Option<String> {
    let Some(status) = status else { return Some("not registered yet".into()) };
    if !status.ready {
        let why = [status.reason.as_str(), status.message.as_str()].join(": ");
        return Some(format!("it is not Ready ({})", why.trim_matches([':', ' '])));
    }
    if status.internal_ip != Some(node.ip.into()) {
        let address = status.internal_ip.map_or("none".to_owned(), |ip| ip.to_string());
        return Some(format!("its address in the cluster is {address}, not {}", node.ip));
    }
    let other = version.filter(|v| !k3s::runs(v, &status.version));
    other.map(|v| format!("it runs {}, not {v}", status.version))
}

/// Pods are kept from it: p1 has drained it for a restart or a removal that did not come to its end, or
/// somebody has cordoned it.
pub fn cordoned(status: Option<&NodeStatus>) -> Option<String> {
    status.filter(|s| s.unschedulable).map(|_| "it is cordoned".to_owned())
}

/// After a start of k3s the API goes on to say what it last heard: a Ready counts only when the kubelet
/// has reported since. Both times are of the node's own clock.
pub fn stale(started: Option<i64>, status: Option<&NodeStatus>) -> Option<String> {
    let reported = status?.heartbeat?.as_second();
    (reported < started?).then(|| "it has not reported since k3s was started".to_owned())
}

/// After a power failure the API goes on to say what it last heard, until the node's lease runs out.
pub fn rebooted(boot: Option<&str>, status: Option<&NodeStatus>) -> Option<String> {
    let (boot, reported) = (boot.filter(|b| !b.is_empty())?, &status?.boot_id);
    let other = !reported.is_empty() && boot != reported;
    other.then(|| "it has not reported since its machine was started".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_counts_only_ready_at_its_address_and_version() {
        let cluster = crate::spec::fixture::cluster(0);
        let node = &cluster.nodes[0];
        let good = NodeStatus {
            name: node.name.clone(),
            ready: true,
            internal_ip: Some(node.ip.into()),
            version: "v1.34.1+k3s1".into(),
            ..NodeStatus::default()
        };
        assert_eq!(wrong(node, Some("v1.34.1+k3s1"), Some(&good)), None);
        assert_eq!(wrong(node, None, Some(&good)), None);
        let says = |change: fn(&mut NodeStatus)| {
            let mut status = good.clone();
            change(&mut status);
            wrong(node, Some("v1.34.1+k3s1"), Some(&status)).unwrap()
        };
        assert!(says(|s| s.ready = false).contains("not Ready"));
        assert!(says(|s| s.internal_ip = Some("10.0.2.15".parse().unwrap())).contains("10.0.2.15"));
        assert!(says(|s| s.version = "v1.33.0+k3s1".into()).contains("v1.33.0"));
        assert!(wrong(node, None, None).unwrap().contains("not registered"));
        let reported = |at: &str| NodeStatus { heartbeat: Some(at.parse().unwrap()), ..good.clone() };
        let at = reported("2026-11-22T06:00:00Z");
        let start = at.heartbeat.unwrap().as_second();
        assert!(stale(Some(start + 1), Some(&at)).is_some());
        assert_eq!(stale(Some(start), Some(&at)), None);
        assert_eq!(stale(None, Some(&at)), None);
        let booted = NodeStatus { boot_id: "a".into(), ..good.clone() };
        assert!(rebooted(Some("b"), Some(&booted)).is_some());
        for (boot, status) in [(Some("a"), &booted), (None, &booted), (Some(""), &booted), (Some("b"), &good)]
        {
            assert_eq!(rebooted(boot, Some(status)), None);
        }
    }
}
