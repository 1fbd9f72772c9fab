//! `proxy` and `k3s.env`: what the nodes' k3s gets, and what is said of what cannot be.

use super::super::{digest, masked, secrets};
use super::{brief, cluster};

const NODES: &str = "name: demo\nnodes: [{name: server, role: server}, {name: worker}]\n";

#[test]
fn a_proxy_is_not_asked_for_what_is_the_cluster_s_own() {
    let text = format!(
        "{NODES}proxy: {{http: \"http://u:hunter22@proxy.lan:3128\", no_proxy: [.lan, 10.42.0.0/16]}}\nk3s:\n  endpoint: api.lan\n  \
         server_config: {{cluster-cidr: 10.52.0.0/16, cluster-domain: lab.internal}}\n  env: {{CONTAINERD_X: 1, GOGC: \"$5\"}}\n"
    );
    let one = cluster(&text);
    let env: Vec<String> = one.k3s.env.iter().map(|(name, value)| format!("{name}={value}")).collect();
    assert_eq!(
        env,
        [
            "CONTAINERD_X=1",
            "GOGC=$5",
            "HTTPS_PROXY=http://u:hunter22@proxy.lan:3128",
            "HTTP_PROXY=http://u:hunter22@proxy.lan:3128",
            "NO_PROXY=localhost,127.0.0.0/8,192.168.56.0/24,10.52.0.0/16,10.43.0.0/16,.svc,.lab.internal,api.lan,.lan,10.42.0.0/16",
        ]
    );
    // Its password is a secret, and a node more restarts nobody.
    assert!(secrets(&one).iter().any(|secret| secret == "hunter22"));
    assert!(!format!("{:?}", masked(&one).k3s.env).contains("hunter22"));
    assert_eq!(digest(&one), digest(&cluster(&text.replace("hunter22", "other-one"))));
    assert_ne!(digest(&one), digest(&cluster(&text.replace("GOGC", "GOMEMLIMIT"))));
    assert_eq!(one.k3s.env, cluster(&text.replace("{name: worker}", "{name: worker, count: 3}")).k3s.env);
    assert!(cluster(NODES).k3s.env.is_empty());
}

/// Machines that exist already have no network of p1's: each address is named.
#[test]
fn a_proxy_is_asked_for_no_existing_machine() {
    let text = "name: lan\nprovider: ssh\nproxy: {http: \"http://proxy.lan:3128\"}\nnodes:\n  \
                - {name: s, role: server, ip: 192.168.1.20}\n  - {name: w, ip: 10.9.0.4}\n";
    let env = cluster(text).k3s.env;
    let direct = env.iter().find_map(|(name, value)| (name == "NO_PROXY").then_some(value.as_str()));
    assert_eq!(
        direct,
        Some("localhost,127.0.0.0/8,192.168.1.20,10.9.0.4,10.42.0.0/16,10.43.0.0/16,.svc,.cluster.local")
    );
}

#[test]
fn what_is_not_for_k3s_environment_has_its_place() {
    insta::assert_snapshot!(brief(&format!(
        "{NODES}proxy: {{http: \"proxy:3128\", no_proxy: [\"a,b\"]}}\nk3s: {{env: {{K3S_TOKEN: hunter22, a-b: 1, A: [1], B: \"x\\ny\", http_proxy: x}}}}\n"
    )));
    let alone = brief(&format!("{NODES}k3s: {{env: {{HTTP_PROXY: \"http://proxy:1\"}}}}\n"));
    assert!(alone.contains("warning: `HTTP_PROXY` without `NO_PROXY`"), "{alone}");
    let none = brief(&format!("{NODES}proxy: {{no_proxy: [x]}}\n"));
    assert!(none.contains("`proxy` names no proxy"), "{none}");
}
