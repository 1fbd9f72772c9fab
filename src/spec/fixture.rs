//! A cluster for tests, without a file: no test of another room has to know what a spec consists of.

use super::{
    BoxRef, Cluster, EngineChoice, K3s, Network, Node, ProviderChoice, Release, Role, Yaml, defaults,
};

/// A machine with little of everything.
pub(crate) fn node(name: impl Into<String>, role: Role, ip: [u8; 4]) -> Node {
    Node {
        name: name.into(),
        role,
        ip: ip.into(),
        cpus: 1,
        memory: 1024,
        labels: Vec::new(),
        taints: Vec::new(),
        config: Yaml::new(),
    }
}

/// A cluster of these nodes, with what a spec means that says nothing else.
pub(crate) fn of(nodes: Vec<Node>) -> Cluster {
    Cluster {
        name: "iot".into(),
        provider: ProviderChoice::Libvirt,
        engine: EngineChoice::Auto,
        image: BoxRef::Definition(defaults::BOX.into()),
        network: Network { cidr: defaults::CIDR.parse().expect("a network"), nics: defaults::NICS },
        disposable: false,
        autostart: false,
        nodes,
        k3s: K3s {
            release: Release::Channel(defaults::CHANNEL.into()),
            endpoint: None,
            token: None,
            registries: Yaml::new(),
            artifacts: Default::default(),
        },
        provision: Vec::new(),
        namespaces: Vec::new(),
        manifests: Vec::new(),
        verify: Default::default(),
        timeouts: Default::default(),
        retry: Default::default(),
        rollout: Default::default(),
        base: "/base".into(),
    }
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
        engine: EngineChoice::Auto,
        network: Network { cidr, nics: defaults::NICS },
        base: "/nowhere".into(),
        ..of(nodes)
    }
}
