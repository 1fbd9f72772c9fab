//! A cluster for tests, without a file: no test of another room has to know what a spec consists of.

use std::path::Path;
use std::sync::LazyLock;

use super::{Cluster, Network, Node, ProviderChoice, Role, defaults, parse};

/// What a spec means that says as little as it can.
static LEAST: LazyLock<Cluster> = LazyLock::new(|| {
    let text = "name: iot\nprovider: libvirt\nnodes: [{name: server, role: server, cpus: 1, memory: 1024}]\n";
    parse(text, Path::new("/base/cluster.yaml")).expect("a spec").cluster
});

/// A machine with little of everything.
pub(crate) fn node(name: impl Into<String>, role: Role, ip: [u8; 4]) -> Node {
    Node { name: name.into(), role, ip: ip.into(), ..LEAST.nodes[0].clone() }
}

/// A cluster of these nodes, with what a spec means that says nothing else.
pub(crate) fn of(nodes: Vec<Node>) -> Cluster {
    Cluster { nodes, ..LEAST.clone() }
}

/// `server` (.110) and `worker-1` (.111), `worker-2`, ...
pub(crate) fn cluster(workers: usize) -> Cluster {
    sized(1, workers)
}

/// The same with more servers: `server`, `server-2` (.212), `server-3`, ...
pub(crate) fn sized(servers: usize, workers: usize) -> Cluster {
    let ip = |last: usize| [192, 168, 56, u8::try_from(last).expect("a small cluster")];
    let mut nodes = vec![node("server", Role::Server, ip(110))];
    nodes.extend((2..=servers).map(|i| node(format!("server-{i}"), Role::Server, ip(210 + i))));
    nodes.extend((1..=workers).map(|i| node(format!("worker-{i}"), Role::Worker, ip(110 + i))));
    of(nodes)
}

/// Those nodes, the first of them the server, at .110 and on of a network.
pub(crate) fn named(name: &str, cidr: &str, nodes: &[&str]) -> Cluster {
    let cidr: ipnet::Ipv4Net = cidr.parse().expect("a network");
    let [a, b, c, _] = cidr.network().octets();
    let role = |n| if n == 0 { Role::Server } else { Role::Worker };
    let nodes = (0..).zip(nodes).map(|(n, name)| node(*name, role(n), [a, b, c, 110 + n])).collect();
    Cluster {
        name: name.to_owned(),
        provider: ProviderChoice::Auto,
        network: Network { cidr, nics: defaults::NICS },
        base: "/nowhere".into(),
        fork: None,
        secrets: Vec::new(),
        ..of(nodes)
    }
}
