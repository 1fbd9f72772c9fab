//! What nodes know each other by: p1's part of their /etc/hosts.

use crate::os::hash::sha256;
use crate::spec::Cluster;

/// The same on every node: addresses and names, nodes first.
pub fn lines(cluster: &Cluster) -> Vec<String> {
    let nodes = cluster.nodes.iter().map(|node| format!("{} {}", node.ip, node.names().join(" ")));
    nodes.chain(cluster.hosts.iter().map(|(name, ip)| format!("{ip} {name}"))).collect()
}

/// How a node tells of them.
pub fn digest(cluster: &Cluster) -> String {
    sha256(lines(cluster).join("\n"))
}
