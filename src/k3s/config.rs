//! `/etc/rancher/k3s/config.yaml` and `registries.yaml`.
//!
//! Every key of the file is a flag of `k3s server` or `k3s agent`; a key the command does not know
//! stops k3s at once. A list gives the flag several times. `key+` adds to what earlier files in
//! `config.yaml.d` said (docs.k3s.io/installation/configuration), and is kept as it is.

use serde_yaml::Value;

use super::token::Tokens;
use super::yaml;
use crate::spec::{Cluster, Node, Role};

/// Where it goes on a node; mode 0600, as it holds the token.
pub const CONFIG_PATH: &str = "/etc/rancher/k3s/config.yaml";
/// Where the registries go on a node; mode 0600, as it may hold passwords.
pub const REGISTRIES_PATH: &str = "/etc/rancher/k3s/registries.yaml";

/// Keys that are p1's alone: the same key in a spec's config is left out.
pub const OWN_KEYS: [&str; 10] = [
    "cluster-init",
    "node-name",
    "node-ip",
    "flannel-iface",
    "advertise-address",
    "server",
    "token",
    "token-file",
    "agent-token",
    "agent-token-file",
];
/// Keys whose lists p1 begins and a spec's config goes on with, as `key` or `key+`.
pub const MERGED_KEYS: [&str; 3] = ["tls-san", "node-label", "node-taint"];

/// The port on which a server's API listens: `https-listen-port`, else 6443 (`pkg/cli/cmds/server.go`).
pub fn api_port(server: &Node) -> u16 {
    let value = server.config.get("https-listen-port");
    let number = value.and_then(|v| v.as_u64().or_else(|| v.as_str()?.parse().ok()));
    number.and_then(|n| u16::try_from(n).ok()).unwrap_or(6443)
}

/// A node's address for others: its outer one where the spec says so.
pub fn external_ip(node: &Node) -> Option<&str> {
    node.config.get("node-external-ip")?.as_str()
}

/// Where a server's API is, and where others join through it: `https://IP:PORT`. Where flannel goes by outer addresses, so
/// do they.
pub fn server_url(server: &Node) -> String {
    let outer = server.config.get("flannel-external-ip").and_then(Value::as_bool) == Some(true);
    let ip = external_ip(server).filter(|_| outer).map_or_else(|| server.ip.to_string(), str::to_owned);
    format!("https://{ip}:{}", api_port(server))
}

/// Where the kubeconfig finds the cluster's API: the spec's own endpoint, else this server.
pub fn api_url(cluster: &Cluster, server: &Node) -> String {
    match &cluster.k3s.endpoint {
        Some(endpoint) => format!("https://{}:{}", endpoint.host, endpoint.port),
        None => server_url(server),
    }
}

/// How a node begins.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Join {
    /// By itself: with SQLite, or with a datastore of the spec's.
    Alone,
    /// With a new etcd, or one made from its SQLite (docs.k3s.io/datastore/ha-embedded).
    Init,
    /// Through the server at this URL.
    Server(String),
}

/// The config file of one node. `iface` is the card that holds the node's address. The same input
/// gives the same bytes, so that they tell whether k3s has to be restarted.
pub fn config_yaml(cluster: &Cluster, node: &Node, iface: &str, tokens: &Tokens, join: &Join) -> String {
    let server = node.role == Role::Server;
    let mut out = String::from("# Written by p1; changes are overwritten by the next `p1 up`.\n");
    let mut set = |key: &str, value: Value| out.push_str(&yaml::entry(key, &value));

    set("node-name", node.name.as_str().into());
    set("node-ip", node.ip.to_string().into());
    set("flannel-iface", iface.into());
    if server {
        set("advertise-address", node.ip.to_string().into());
        let mut names = vec![node.ip.to_string()];
        names.extend(cluster.servers().map(|s| s.ip.to_string()));
        names.extend(cluster.servers().filter_map(external_ip).map(str::to_owned));
        names.extend(cluster.k3s.endpoint.iter().map(|e| e.host.clone()));
        set("tls-san", merged(node, "tls-san", &names).into());
    }
    match join {
        Join::Alone => {}
        Join::Init => set("cluster-init", true.into()),
        Join::Server(url) => set("server", url.as_str().into()),
    }
    set("token", tokens.of(node.role).reveal().into());
    if server {
        set("agent-token", tokens.agent.reveal().into());
    }
    for (key, own) in [("node-label", &node.labels), ("node-taint", &node.taints)] {
        let list = merged(node, key, own);
        if !list.is_empty() {
            set(key, list.into());
        }
    }
    for (key, value) in &node.config {
        let Some(key) = key.as_str() else { continue };
        let name = key.trim_end_matches('+');
        if !OWN_KEYS.contains(&name) && !MERGED_KEYS.contains(&name) {
            set(key, value.clone());
        }
    }
    out
}

/// `own`, then what the config says under `key` and `key+`; each value once.
fn merged(node: &Node, key: &str, own: &[String]) -> Vec<Value> {
    let mut all: Vec<Value> = Vec::new();
    let more = [key.to_owned(), format!("{key}+")];
    let user = more.iter().filter_map(|k| node.config.get(k.as_str())).flat_map(|value| match value {
        Value::Sequence(items) => items.clone(),
        Value::Null => Vec::new(),
        other => vec![other.clone()],
    });
    for value in own.iter().map(|s| Value::from(s.as_str())).chain(user) {
        if !all.contains(&value) {
            all.push(value);
        }
    }
    all
}

/// The registries file, the same on every node; `None` when the spec has none.
pub fn registries_yaml(cluster: &Cluster) -> Option<String> {
    if cluster.k3s.registries.is_empty() {
        return None;
    }
    let text = serde_yaml::to_string(&cluster.k3s.registries).expect("a YAML map can be written as YAML");
    Some(format!("# Written by p1; changes are overwritten by the next `p1 up`.\n{text}"))
}

/// The variables of k3s' environment as init systems and shells read them from a file; `None` when the spec has none.
pub fn environment_file(cluster: &Cluster) -> Option<String> {
    if cluster.k3s.env.is_empty() {
        return None;
    }
    let quoted = |value: &str| -> String {
        let special = |c| matches!(c, '"' | '\\' | '`' | '$');
        value.chars().flat_map(|c| special(c).then_some('\\').into_iter().chain([c])).collect()
    };
    let lines = cluster.k3s.env.iter().map(|(name, value)| format!("{name}=\"{}\"\n", quoted(value)));
    Some(format!(
        "# Written by p1; changes are overwritten by the next `p1 up`.\n{}",
        lines.collect::<String>()
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::fixture;

    fn node(name: &str, role: Role, last: u8, config: &str) -> Node {
        let config = serde_yaml::from_str(config).unwrap();
        Node { config, ..fixture::node(name, role, [192, 168, 56, last]) }
    }

    fn tokens() -> Tokens {
        Tokens::from_random([0x11; 32], [0x22; 32])
    }

    #[test]
    fn a_server_with_everything_merged() {
        let mut server = node(
            "server",
            Role::Server,
            110,
            "{write-kubeconfig-mode: '0644', tls-san: [k3s.lan, 192.168.56.110], tls-san+: a.lan, \
             node-ip: 1.2.3.4, token-file: /x, disable: [traefik, servicelb], kubelet-arg+: [max-pods=50], \
             secrets-encryption: true, https-listen-port: 7443, node-label: zone=b}",
        );
        server.labels = vec!["tier=control".into()];
        server.taints = vec!["only=control:NoSchedule".into()];
        let cluster = fixture::of(vec![server]);
        insta::assert_snapshot!(config_yaml(&cluster, &cluster.nodes[0], "enp1s0", &tokens(), &Join::Alone), @r#"
        # Written by p1; changes are overwritten by the next `p1 up`.
        node-name: server
        node-ip: "192.168.56.110"
        flannel-iface: enp1s0
        advertise-address: "192.168.56.110"
        tls-san:
          - "192.168.56.110"
          - k3s.lan
          - a.lan
        token: "1111111111111111111111111111111111111111111111111111111111111111"
        agent-token: "2222222222222222222222222222222222222222222222222222222222222222"
        node-label:
          - tier=control
          - zone=b
        node-taint:
          - only=control:NoSchedule
        write-kubeconfig-mode: "0644"
        disable:
          - traefik
          - servicelb
        kubelet-arg+:
          - max-pods=50
        secrets-encryption: true
        https-listen-port: 7443
        "#);
        assert_eq!(server_url(&cluster.nodes[0]), "https://192.168.56.110:7443");
    }

    #[test]
    fn a_worker_joins_the_first_server_with_the_agent_token_only() {
        let nodes = vec![node("server", Role::Server, 110, "{}"), node("worker", Role::Worker, 111, "{}")];
        let cluster = fixture::of(nodes);
        let join = Join::Server(server_url(&cluster.nodes[0]));
        let text = config_yaml(&cluster, &cluster.nodes[1], "eth1", &tokens(), &join);
        insta::assert_snapshot!(text, @r#"
        # Written by p1; changes are overwritten by the next `p1 up`.
        node-name: worker
        node-ip: "192.168.56.111"
        flannel-iface: eth1
        server: https://192.168.56.110:6443
        token: "2222222222222222222222222222222222222222222222222222222222222222"
        "#);
        assert!(!text.contains(tokens().server.reveal()));
    }

    #[test]
    fn servers_know_each_other_and_the_endpoint() {
        let mut cluster = fixture::of(vec![
            node("a", Role::Server, 110, "{cluster-init: true}"),
            node("b", Role::Server, 111, "{cluster-init: true}"),
        ]);
        cluster.k3s.endpoint = Some(crate::spec::Endpoint { host: "k3s.lan".into(), port: 7443 });
        let text =
            config_yaml(&cluster, &cluster.nodes[1], "eth1", &tokens(), &Join::Server("https://x".into()));
        assert!(
            text.contains("tls-san:\n  - \"192.168.56.111\"\n  - \"192.168.56.110\"\n  - k3s.lan\n"),
            "{text}"
        );
        assert!(text.contains("server: https://x\n") && !text.contains("cluster-init"), "{text}");
        let text = config_yaml(&cluster, &cluster.nodes[0], "eth1", &tokens(), &Join::Init);
        assert!(text.contains("cluster-init: true\n") && !text.contains("server:"), "{text}");
        assert_eq!(api_url(&cluster, &cluster.nodes[1]), "https://k3s.lan:7443");
    }

    #[test]
    fn where_flannel_goes_by_outer_addresses_nodes_join_by_them() {
        let config = "{node-external-ip: 192.0.2.7, flannel-external-ip: true}";
        let cluster = fixture::of(vec![node("a", Role::Server, 110, config)]);
        let text = config_yaml(&cluster, &cluster.nodes[0], "eth0", &tokens(), &Join::Alone);
        for line in ["node-ip: \"192.168.56.110\"", "node-external-ip: \"192.0.2.7\"", "  - \"192.0.2.7\""] {
            assert!(text.lines().any(|l| l == line), "{line} is not in\n{text}");
        }
        assert_eq!(server_url(&cluster.nodes[0]), "https://192.0.2.7:6443");
        let plain = fixture::of(vec![node("a", Role::Server, 110, "{node-external-ip: 192.0.2.7}")]);
        assert_eq!(server_url(&plain.nodes[0]), "https://192.168.56.110:6443");
    }

    #[test]
    fn registries_are_passed_on_or_absent() {
        let mut cluster = fixture::of(vec![node("server", Role::Server, 110, "{}")]);
        assert_eq!(registries_yaml(&cluster), None);
        cluster.k3s.registries =
            serde_yaml::from_str("{mirrors: {'*': {endpoint: ['https://mirror.lan:5000']}}}").unwrap();
        insta::assert_snapshot!(registries_yaml(&cluster).unwrap(), @r"
        # Written by p1; changes are overwritten by the next `p1 up`.
        mirrors:
          '*':
            endpoint:
            - https://mirror.lan:5000
        ");
    }
}
