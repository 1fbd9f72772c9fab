//! What steps are made from that several of them share.

use serde_json::{Value, json};

use crate::spec::{Cluster, Node};

/// Which files of k3s a node gets.
pub fn files(cluster: &Cluster, _: &Node) -> Value {
    json!([cluster.k3s.release, cluster.k3s.artifacts])
}

/// How k3s is configured on a node.
pub fn config(cluster: &Cluster, node: &Node) -> Value {
    let node = (&node.name, node.ip, &node.labels, &node.taints, &node.config);
    let servers: Vec<_> = cluster.servers().map(|s| s.ip).collect();
    match cluster.k3s.env.is_empty() {
        true => json!([servers, cluster.k3s.endpoint, cluster.k3s.registries, node]),
        false => {
            json!([servers, cluster.k3s.endpoint, cluster.k3s.registries, node, {"env": cluster.k3s.env}])
        }
    }
}

/// What k3s is started with.
pub fn start(cluster: &Cluster, node: &Node) -> Value {
    json!([config(cluster, node), cluster.k3s.release, cluster.k3s.artifacts])
}
