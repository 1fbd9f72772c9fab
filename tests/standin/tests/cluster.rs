//! Servers and agents of the stand-in, joined over loopback.

mod support;

use std::os::unix::net::UnixDatagram;
use std::os::unix::process::ExitStatusExt as _;

use base64::Engine as _;
use serde_json::Value;
use support::{Machine, free_port, mode, until};

const KUBECONFIG: &str = "/etc/rancher/k3s/k3s.yaml";
const TOKEN: &str = "/var/lib/rancher/k3s/server/node-token";

#[test]
fn an_agent_joins_and_goes_unknown_when_it_falls_silent() {
    let (server, worker, port) = (Machine::new(), Machine::new(), free_port());
    let _s = server.server(port, "secret");
    let agent = worker.agent(port, "worker", "secret");
    assert_eq!(server.until_ready("worker", "True"), "KubeletReady");
    server.until_ready("server", "True");
    let names = server.ask(&["get", "nodes", "-o", "name"]);
    assert_eq!(names, "node/server\nnode/worker\n");
    let wide = server.ask(&["get", "node", "server", "-o", "wide"]);
    assert!(
        wide.contains("control-plane") && wide.contains("127.0.0.1") && wide.contains("v1.34.1+k3s1"),
        "{wide}"
    );

    // Stopped in an orderly way or not, a kubelet that says nothing is found out by its silence.
    assert!(agent.terminate().success());
    assert_eq!(server.until_ready("worker", "Unknown"), "NodeStatusUnknown");
    let _agent = worker.agent(port, "worker", "secret");
    server.until_ready("worker", "True");
}

#[test]
fn wrong_tokens_are_refused_for_ever() {
    let (server, worker, port) = (Machine::new(), Machine::new(), free_port());
    let _s = server.server(port, "secret");
    server.until_ready("server", "True");

    let mut short = worker.agent(port, "worker", "guess");
    short.until_logged("failed to retrieve configuration from server: https://127.0.0.1:6444/v1-k3s/config: 401 Unauthorized");
    assert!(short.is_running());
    assert!(!short.log().contains("up and running"));
    drop(short);

    let foreign = format!("K10{}::server:secret", "0".repeat(64));
    let mut long = worker.agent(port, "worker", &foreign);
    long.until_logged("token CA hash does not match the Cluster CA certificate hash");
    assert!(long.is_running());
    drop(long);

    let long = server.read(TOKEN).trim().to_owned();
    assert!(long.starts_with("K10") && long.ends_with("::server:secret"), "{long}");
    let _agent = worker.agent(port, "worker", &long);
    server.until_ready("worker", "True");
}

#[test]
fn an_agent_waits_for_its_server() {
    let (server, worker, port) = (Machine::new(), Machine::new(), free_port());
    let agent = worker.agent(port, "worker", "secret");
    agent.until_logged("failed to get CA certs");
    agent.until_logged("connection reset by peer");
    let _s = server.server(port, "secret");
    server.until_ready("worker", "True");
}

#[test]
fn an_agent_token_joins_agents() {
    let (server, worker, port) = (Machine::new(), Machine::new(), free_port());
    server.write("/etc/rancher/k3s/config.yaml", "agent-token: lesser\nwrite-kubeconfig-mode: \"0640\"\n");
    let _s = server.server(port, "secret");
    server.until_ready("server", "True");
    assert_eq!(mode(&server.path(KUBECONFIG)), 0o640);
    let _agent = worker.agent(port, "worker", "lesser");
    server.until_ready("worker", "True");
    assert!(server.read("/var/lib/rancher/k3s/server/agent-token").trim().ends_with("::node:lesser"));
}

#[test]
fn a_host_name_belongs_to_the_machine_that_used_it_first() {
    let (server, first, second, port) = (Machine::new(), Machine::new(), Machine::new(), free_port());
    let _s = server.server(port, "secret");
    let agent = first.agent(port, "worker", "secret");
    server.until_ready("worker", "True");
    drop(agent);
    let impostor = second.agent(port, "worker", "secret");
    impostor.until_logged(
        "Node password rejected, duplicate hostname or contents of '/etc/rancher/node/password'",
    );
    // Deleting the Node takes its password along, and the newcomer gets in.
    server.ask(&["delete", "node", "worker"]);
    server.until_ready("worker", "True");
}

#[test]
fn a_restart_keeps_ca_token_and_nodes() {
    let (server, port) = (Machine::new(), free_port());
    let process = server.server(port, "");
    server.until_ready("server", "True");
    let before = (server.read(TOKEN), server.read("/var/lib/rancher/k3s/server/tls/server-ca.crt"));
    let uid = server.ask(&["get", "node", "server", "-o", "jsonpath={.metadata.uid}"]);
    assert!(process.terminate().success());
    let refused = server.kubectl(&["get", "nodes"]);
    assert_eq!(refused.status.code(), Some(1));
    assert_eq!(
        String::from_utf8_lossy(&refused.stderr).trim(),
        format!(
            "The connection to the server 127.0.0.1:{port} was refused - did you specify the right host or port?"
        )
    );

    let _process = server.server(port, "");
    server.until_ready("server", "True");
    assert_eq!(before, (server.read(TOKEN), server.read("/var/lib/rancher/k3s/server/tls/server-ca.crt")));
    assert_eq!(uid, server.ask(&["get", "node", "server", "-o", "jsonpath={.metadata.uid}"]));
}

#[test]
fn another_token_cannot_open_the_datastore() {
    let (server, port) = (Machine::new(), free_port());
    let process = server.server(port, "secret");
    server.until_ready("server", "True");
    process.terminate();
    let mut process = server.server(port, "other");
    assert_eq!(process.until_exit().code(), Some(1));
    process.until_logged("bootstrap data already found and encrypted with different token");
}

#[test]
fn the_kubeconfigs_certificate_opens_the_api_and_nothing_else_does() {
    let (server, port) = (Machine::new(), free_port());
    let _s = server.server(port, "secret");
    server.until_ready("server", "True");
    assert_eq!(mode(&server.path(KUBECONFIG)), 0o600);
    let config: serde_yaml::Value = serde_yaml::from_str(&server.read(KUBECONFIG)).unwrap();
    assert_eq!(config["current-context"], "default");
    let data = |value: &serde_yaml::Value| {
        base64::engine::general_purpose::STANDARD.decode(value.as_str().unwrap()).unwrap()
    };
    let (cluster, user) = (&config["clusters"][0]["cluster"], &config["users"][0]["user"]);
    let base = cluster["server"].as_str().unwrap().to_owned();
    let ca = ureq::tls::Certificate::from_pem(&data(&cluster["certificate-authority-data"])).unwrap();
    let agent = |with_certificate: bool| {
        let mut tls = ureq::tls::TlsConfig::builder()
            .root_certs(ureq::tls::RootCerts::new_with_certs(std::slice::from_ref(&ca)));
        if with_certificate {
            let pem = data(&user["client-certificate-data"]);
            let chain: Vec<_> = ureq::tls::parse_pem(&pem)
                .filter_map(|i| match i.unwrap() {
                    ureq::tls::PemItem::Certificate(c) => Some(c),
                    _ => None,
                })
                .collect();
            let key = ureq::tls::PrivateKey::from_pem(&data(&user["client-key-data"])).unwrap();
            tls = tls.client_cert(Some(ureq::tls::ClientCert::new_with_certs(&chain, key)));
        }
        ureq::Agent::new_with_config(
            ureq::Agent::config_builder().tls_config(tls.build()).http_status_as_error(false).build(),
        )
    };
    let get = |with_certificate: bool, path: &str| {
        let mut answer = agent(with_certificate).get(format!("{base}{path}")).call().unwrap();
        (answer.status().as_u16(), answer.body_mut().read_to_string().unwrap())
    };

    assert_eq!(get(true, "/readyz"), (200, "ok".into()));
    let nodes: Value = serde_json::from_str(&get(true, "/api/v1/nodes").1).unwrap();
    assert_eq!(nodes["kind"], "NodeList");
    assert_eq!(nodes["items"][0]["metadata"]["labels"]["p1.standin"], "true");
    assert_eq!(nodes["items"][0]["status"]["addresses"][0]["type"], "InternalIP");
    let missing: Value = serde_json::from_str(&get(true, "/api/v1/nodes/nobody").1).unwrap();
    assert_eq!(
        (&missing["kind"], &missing["reason"], &missing["code"]),
        (&"Status".into(), &"NotFound".into(), &404.into())
    );

    assert_eq!(get(false, "/ping"), (200, "pong".into()));
    assert!(get(false, "/cacerts").1.starts_with("-----BEGIN CERTIFICATE-----"));
    assert_eq!(get(false, "/api/v1/nodes").0, 401);
    assert_eq!(get(false, "/version").0, 401);
    let basic = base64::engine::general_purpose::STANDARD.encode("node:secret");
    let forbidden = agent(false)
        .get(format!("{base}/api/v1/secrets"))
        .header("Authorization", format!("Basic {basic}"))
        .call();
    assert_eq!(forbidden.unwrap().status(), 403);
}

#[test]
fn systemd_is_told_when_the_service_is_up() {
    let (server, worker, port) = (Machine::new(), Machine::new(), free_port());
    for abstract_name in [false, true] {
        let path = server.path("notify").display().to_string();
        let (socket, name) = if abstract_name {
            use std::os::linux::net::SocketAddrExt as _;
            let name = format!("p1-standin-{}", std::process::id());
            let address = std::os::unix::net::SocketAddr::from_abstract_name(&name).unwrap();
            (UnixDatagram::bind_addr(&address).unwrap(), format!("@{name}"))
        } else {
            (UnixDatagram::bind(&path).unwrap(), path)
        };
        socket.set_read_timeout(Some(std::time::Duration::from_secs(30))).unwrap();
        let (port, machine) = (port.to_string(), if abstract_name { &worker } else { &server });
        let _s = machine.start_with(
            &["server", "--bind-address=127.0.0.1", "--node-ip=127.0.0.1", "--https-listen-port", &port],
            &[("NOTIFY_SOCKET", &name)],
        );
        let mut buffer = [0; 100];
        let size = socket.recv(&mut buffer).unwrap();
        assert!(String::from_utf8_lossy(&buffer[..size]).starts_with("READY=1"));
    }
}

#[test]
fn mistakes_in_the_configuration_end_the_process() {
    let exits = |text: &str, arguments: &[&str], message: &str| {
        let machine = Machine::new();
        machine.write("/etc/rancher/k3s/config.yaml", text);
        let mut process = machine.start(arguments);
        assert_eq!(process.until_exit().code(), Some(1), "{message}");
        assert!(process.log().contains(message), "wanted {message}, got {}", process.log());
    };
    let agent = &["agent", "--node-ip=127.0.0.1"];
    exits("tls-san: [a]\n", agent, "flag provided but not defined: -tls-san");
    exits("server: https://127.0.0.1:1\n", agent, "--token is required");
    exits("token: x\n", agent, "--server is required");
    exits("", &["server", "--frobnicate"], "flag provided but not defined: -frobnicate");
    exits("node-ip: 203.0.113.9\n", &["server"], "failed to find interface with specified node ip");
    exits(
        "server: https://127.0.0.1:1\nnode-ip: 127.0.0.1\n",
        &["server"],
        "--token is required to join a cluster",
    );
    exits(
        "token: K10abc::server:x\n",
        &["server", "--node-ip=127.0.0.1"],
        "failed to normalize server token",
    );
    exits("a: [\n", &["server"], "yaml");
}

#[test]
fn a_missing_interface_looks_like_a_server_that_is_not_ready() {
    let (server, port) = (Machine::new(), free_port());
    server.write("/etc/rancher/k3s/config.yaml", "flannel-iface: nope0\nfrobnicate: 1\n");
    let process = server.server(port, "secret");
    process.until_logged(
        "Waiting to retrieve agent configuration; server is not ready: unable to find interface nope0",
    );
    process.until_logged("Unknown flag --frobnicate found in config.yaml, skipping");
    process.until_logged("k3s is up and running");
}

#[test]
fn a_taken_port_is_fatal() {
    let machine = Machine::new();
    let holder = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let mut process = machine.server(holder.local_addr().unwrap().port(), "secret");
    assert_eq!(process.until_exit().code(), Some(1));
    assert!(process.log().contains("bind: address already in use"));
}

#[test]
fn faults_strike_and_heal() {
    let (server, worker, port) = (Machine::new(), Machine::new(), free_port());
    let faults = "/etc/p1-standin/faults";
    server.write(&format!("{faults}/unit-crash-once"), "");
    assert_eq!(server.server(port, "secret").until_exit().code(), Some(1));
    server.write(&format!("{faults}/oom-once"), "");
    assert_eq!(server.server(port, "secret").until_exit().signal(), Some(9));
    server.write(&format!("{faults}/image-pull"), "broken");
    let _s = server.server(port, "secret");
    server.until_ready("server", "True");

    worker.write(&format!("{faults}/never-ready"), "");
    worker.write(&format!("{faults}/list"), "# two at once\nwrong-ip=10.0.2.15\nwrong-version=v1.2.3+k3s1\n");
    let _agent = worker.agent(port, "worker", "secret");
    assert_eq!(server.until_ready("worker", "False"), "KubeletNotReady");
    let json = server.ask(&["get", "node", "worker", "-o", "json"]);
    assert!(
        json.contains("cni plugin not initialized")
            && json.contains("10.0.2.15")
            && json.contains("v1.2.3+k3s1"),
        "{json}"
    );
    worker.remove(&format!("{faults}/never-ready"));
    server.until_ready("worker", "True");
    worker.write(&format!("{faults}/silent"), "");
    server.until_ready("worker", "Unknown");
    worker.remove(&format!("{faults}/silent"));
    server.until_ready("worker", "True");

    let manifest = "---\n{apiVersion: apps/v1, kind: Deployment, metadata: {name: web}, spec: {replicas: 2, selector: {matchLabels: {app: web}}, \
                    template: {metadata: {labels: {app: web}}, spec: {containers: [{name: web, image: broken/image}]}}}}";
    worker.write("/web.yaml", manifest);
    let file = worker.path("/web.yaml").display().to_string();
    assert_eq!(server.ask(&["apply", "-f", &file]), "deployment.apps/web created\n");
    assert_eq!(server.ask(&["apply", "-f", &file]), "deployment.apps/web unchanged\n");
    until("ImagePullBackOff", || server.ask(&["get", "pods"]).contains("ImagePullBackOff").then_some(()));
    let late = server.kubectl(&["rollout", "status", "deployment/web", "--timeout=0s"]);
    assert_eq!(late.status.code(), Some(1));
    server.remove(&format!("{faults}/image-pull"));
    assert!(
        server
            .ask(&["rollout", "status", "deployment/web", "--timeout=20s"])
            .contains("successfully rolled out")
    );
}

#[test]
fn a_dead_api_and_a_silent_unit() {
    let (server, port) = (Machine::new(), free_port());
    let socket = UnixDatagram::bind(server.path("notify")).unwrap();
    socket.set_read_timeout(Some(std::time::Duration::from_millis(500))).unwrap();
    let port_text = port.to_string();
    let arguments =
        ["server", "--bind-address=127.0.0.1", "--node-ip=127.0.0.1", "--https-listen-port", &port_text];
    let notify = server.path("notify").display().to_string();
    let process = server.start_with(
        &arguments,
        &[("K3S_STANDIN_FAULTS", "api-dead,never-notify"), ("NOTIFY_SOCKET", &notify)],
    );
    process.until_logged("k3s is up and running");
    process.until_logged("connection reset by peer");
    assert_eq!(server.kubectl(&["get", "nodes"]).status.code(), Some(1));
    assert!(socket.recv(&mut [0; 10]).is_err());
}

#[test]
fn kubectl_speaks_like_kubectl() {
    let (server, port) = (Machine::new(), free_port());
    let none = server.kubectl(&["get", "nodes"]);
    assert!(String::from_utf8_lossy(&none.stderr).contains("localhost:8080 was refused"));
    let _s = server.server(port, "secret");
    server.until_ready("server", "True");
    let missing = server.kubectl(&["get", "node", "nope"]);
    assert_eq!(missing.status.code(), Some(1));
    assert_eq!(
        String::from_utf8_lossy(&missing.stderr),
        "Error from server (NotFound): nodes \"nope\" not found\n"
    );
    let unknown = server.kubectl(&["exec", "x"]);
    assert_eq!(unknown.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&unknown.stderr).contains("stand-in does not know"));
    assert_eq!(
        server.ask(&["wait", "--for=condition=Ready", "node", "--all", "--timeout=20s"]),
        "node/server condition met\n"
    );
    assert_eq!(server.ask(&["cordon", "server"]), "node/server cordoned\n");
    assert!(server.ask(&["get", "nodes", "--no-headers"]).contains("Ready,SchedulingDisabled"));
    assert_eq!(server.ask(&["uncordon", "server"]), "node/server uncordoned\n");
    until("coredns Running", || {
        let pods = server.ask(&["get", "pods", "-A"]);
        pods.lines().any(|l| l.contains("coredns") && l.contains("Running")).then_some(())
    });
    assert!(
        server
            .ask(&["drain", "server", "--ignore-daemonsets", "--delete-emptydir-data"])
            .contains("node/server drained")
    );
    assert!(server.ask(&["get", "secrets", "-n", "kube-system"]).contains("server.node-password.k3s"));
    assert_eq!(server.ask(&["get", "--raw", "/readyz"]), "ok");
    assert!(!server.ask(&["config", "view"]).contains("LS0t"));
    let version = server.ask(&["version"]);
    assert!(version.contains("Server Version: v1.34.1+k3s1 (k3s stand-in)"), "{version}");
}

#[test]
fn the_version_can_be_set() {
    let machine = Machine::new();
    let ask = |machine: &Machine| {
        String::from_utf8(machine.command().arg("--version").output().unwrap().stdout).unwrap()
    };
    let text = ask(&machine);
    assert!(text.starts_with("k3s version v1.34.1+k3s1 (standin)\ngo version"), "{text}");
    machine.write("/etc/p1-standin/version", "v1.33.5+k3s1\n");
    assert!(ask(&machine).starts_with("k3s version v1.33.5+k3s1 (standin)\n"));
}

#[test]
fn a_created_token_joins_an_agent() {
    let (server, worker, port) = (Machine::new(), Machine::new(), free_port());
    let _s = server.server(port, "secret");
    server.until_ready("server", "True");
    let token =
        String::from_utf8(server.command().args(["token", "create", "--ttl", "1h"]).output().unwrap().stdout)
            .unwrap();
    let _agent = worker.agent(port, "worker", token.trim());
    server.until_ready("worker", "True");
}
