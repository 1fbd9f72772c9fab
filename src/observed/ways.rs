//! Which ways k3s' traffic takes between nodes, and what is let in for it. Pure.

use std::net::Ipv4Addr;

use super::View;
use crate::guest::Protocol;
use crate::guest::firewall::{self, Gap, Opening};
use crate::k3s;
use crate::spec::{Cluster, Node, Role};

/// Where flannel carries pods' packets over VXLAN, and over WireGuard (docs.k3s.io/installation/requirements).
const VXLAN: u16 = 8472;
const WIREGUARD: u16 = 51820;
const KUBELET: u16 = 10250;
/// Where nodes give each other images, if the spec has it so.
const REGISTRY: u16 = 5001;
/// etcd's clients and its members.
const ETCD: [u16; 2] = [2379, 2380];

/// Where the others reach a node: at its outer address, if that is how flannel does.
pub fn reached_at(cluster: &Cluster, node: &Node) -> Ipv4Addr {
    let outer = |node: &Node| node.config.get("node-external-ip")?.as_str()?.parse().ok();
    let by_outer =
        |server: &Node| server.config.get("flannel-external-ip").and_then(serde_yaml::Value::as_bool);
    match cluster.servers().any(|s| by_outer(s) == Some(true)) {
        true => outer(node).unwrap_or(node.ip),
        false => node.ip,
    }
}

fn overlay(cluster: &Cluster) -> Option<(Protocol, u16)> {
    let backend = cluster.first_server().config.get("flannel-backend").and_then(|v| v.as_str());
    match backend.unwrap_or("vxlan") {
        "vxlan" => Some((Protocol::Udp, VXLAN)),
        "wireguard-native" => Some((Protocol::Udp, WIREGUARD)),
        _ => None,
    }
}

/// What is listened at on a node by k3s.
pub fn ports(cluster: &Cluster, node: &Node) -> Vec<(Protocol, u16)> {
    if !node.role.has_k3s() {
        return Vec::new();
    }
    let mut all = vec![(Protocol::Tcp, KUBELET)];
    all.extend(overlay(cluster));
    if node.role == Role::Server {
        all.push((Protocol::Tcp, k3s::config::api_port(node)));
        let etcd = cluster.servers().count() > 1 && !cluster.has_own_datastore();
        all.extend(ETCD.into_iter().filter(|_| etcd).map(|port| (Protocol::Tcp, port)));
    }
    all
}

/// Whether a node needs another's port: etcd is the servers' own matter.
pub fn needs(from: &Node, port: u16) -> bool {
    from.role == Role::Server || !ETCD.contains(&port)
}

/// What a node's firewalls have to let in: its API for everybody, pods and services as they are, as k3s' documentation has it
/// (docs.k3s.io/installation/requirements), and what else the other nodes need of it for them alone.
pub fn openings(cluster: &Cluster, node: &Node) -> Vec<Opening> {
    let api = k3s::config::api_port(node);
    let mut all = Vec::new();
    if node.role == Role::Server {
        all.push(Opening { from: None, to: Some((Protocol::Tcp, vec![api])) });
    }
    let networks = cluster.networks().into_iter();
    all.extend(networks.filter_map(|net| Some(Opening { from: Some(net.parse().ok()?), to: None })));
    let on = |value: &serde_yaml::Value| value.as_bool() == Some(true);
    let shares = cluster.servers().any(|s| s.config.get("embedded-registry").is_some_and(on));
    for peer in cluster.members().filter(|peer| peer.name != node.name) {
        let mut addresses = vec![peer.ip, reached_at(cluster, peer)];
        addresses.dedup();
        for protocol in [Protocol::Tcp, Protocol::Udp] {
            let of = ports(cluster, node).into_iter().filter(|(of, _)| *of == protocol).map(|(_, port)| port);
            let registry = (shares && protocol == Protocol::Tcp).then_some(REGISTRY);
            let mut to: Vec<u16> =
                of.filter(|port| *port != api && needs(peer, *port)).chain(registry).collect();
            to.sort_unstable();
            let open = |ip: &Ipv4Addr| Opening {
                from: Some(ipnet::Ipv4Net::from(*ip).into()),
                to: Some((protocol, to.clone())),
            };
            all.extend(addresses.iter().filter(|_| !to.is_empty()).map(open));
        }
    }
    all
}

/// What a node's firewalls keep out; none where that is nothing, or where it is not known.
pub fn closed(view: &View<'_>, node: &Node) -> Option<Gap> {
    let facts = view.facts(node).ok().filter(|_| node.role.has_k3s())?;
    let gap = firewall::gap(facts, node.ip, &openings(view.cluster, node));
    (gap != Gap::default()).then_some(gap)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::fixture::sized;

    fn told(cluster: &Cluster, node: usize) -> Vec<String> {
        openings(cluster, &cluster.nodes[node]).iter().map(ToString::to_string).collect()
    }

    #[test]
    fn the_api_is_for_everybody_and_the_rest_for_the_other_nodes() {
        let networks = ["10.42.0.0/16", "10.43.0.0/16"];
        let mut cluster = sized(1, 1);
        let server = ["10250/tcp from 192.168.56.111", "8472/udp from 192.168.56.111"];
        assert_eq!(told(&cluster, 0), [&["6443/tcp"], &networks[..], &server].concat());
        let worker = ["10250/tcp from 192.168.56.110", "8472/udp from 192.168.56.110"];
        assert_eq!(told(&cluster, 1), [&networks[..], &worker].concat());
        for (key, value) in [("cluster-cidr", "10.50.0.0/16,fd00::/56"), ("flannel-backend", "host-gw")] {
            cluster.nodes[0].config.insert(key.into(), value.into());
        }
        let own = ["6443/tcp", "10.50.0.0/16", "fd00::/56", "10.43.0.0/16", server[0]];
        assert_eq!(told(&cluster, 0), own);
        // etcd is among servers.
        let three = told(&sized(3, 1), 0);
        assert!(three.contains(&"2379,2380,10250/tcp from 192.168.56.212".to_owned()), "{three:?}");
        assert!(three.contains(&"10250/tcp from 192.168.56.111".to_owned()), "{three:?}");
    }
}
