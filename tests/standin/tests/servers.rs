//! Several servers of the stand-in: joining, the loss of one, snapshots. Each has a loopback address of
//! its own.

mod support;

use support::{Machine, Process, free_port, until};

const SECRET: &str = "secret";

/// A server at 127.0.0.`last`; `more` are its further arguments.
fn server(machine: &Machine, last: u8, port: u16, more: &[&str]) -> Process {
    let ip = format!("127.0.0.{last}");
    let (port, name) = (port.to_string(), format!("--node-name=server-{last}"));
    let (bind, node) = (format!("--bind-address={ip}"), format!("--node-ip={ip}"));
    let mut arguments = vec!["server", &bind, &node, &name, "--https-listen-port", &port];
    arguments.extend(more);
    machine.start_with(
        &arguments,
        &[("K3S_TOKEN", SECRET), ("K3S_STANDIN_ETCD_TICK", "0.05"), ("K3S_STANDIN_JOIN_RETRY", "0.1")],
    )
}

fn url(last: u8, port: u16) -> String {
    format!("https://127.0.0.{last}:{port}")
}

/// kubectl at one server, whatever its kubeconfig says.
fn nodes(machine: &Machine) -> Option<String> {
    let output = machine.kubectl(&["get", "nodes", "-o", "name"]);
    output.status.success().then(|| String::from_utf8(output.stdout).unwrap())
}

/// Standard output of a kubectl that has to succeed, once there is a leader to ask: a server learns of a new
/// one a moment after the others, and a busy machine has elections of its own.
fn ask(machine: &Machine, arguments: &[&str]) -> String {
    until(&format!("kubectl {arguments:?}"), || {
        let output = machine.kubectl(arguments);
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(
            output.status.success() || said.contains("ServiceUnavailable"),
            "kubectl {arguments:?}: {said}"
        );
        output.status.success().then(|| String::from_utf8(output.stdout).unwrap())
    })
}

#[test]
fn three_servers_survive_the_loss_of_one_and_not_of_two() {
    let (port, m): (_, Vec<Machine>) = (free_port(), (0..4).map(|_| Machine::new()).collect());
    let first = server(&m[0], 1, port, &["--cluster-init"]);
    m[0].until_ready("server-1", "True");
    let join = format!("--server={}", url(1, port));
    let second = server(&m[1], 2, port, &[&join]);
    m[0].until_ready("server-2", "True");
    let mut third = server(&m[2], 3, port, &[&join]);
    m[0].until_ready("server-3", "True");
    let worker = m[3].start_with(
        &["agent", "--node-ip=127.0.0.1", "--node-name=worker"],
        &[("K3S_URL", &url(1, port)), ("K3S_TOKEN", SECRET)],
    );
    m[2].until_ready("worker", "True");
    until("the worker knows all servers", || {
        m[3].read("/var/lib/rancher/k3s/agent/etc/k3s-agent-load-balancer.json")
            .contains("127.0.0.3")
            .then_some(())
    });
    let roles = ask(&m[1], &["get", "node", "server-2"]);
    assert!(roles.contains("control-plane,etcd"), "{roles}");

    // The first one goes, and what was written stays and can be written to.
    ask(&m[2], &["label", "node", "worker", "a=b"]);
    drop(first);
    until("a new leader", || nodes(&m[1]));
    assert!(ask(&m[1], &["get", "node", "worker", "-o", "jsonpath={.metadata.labels.a}"]).contains('b'));
    ask(&m[2], &["label", "node", "worker", "a=c", "--overwrite"]);
    assert_eq!(m[1].until_ready("server-1", "Unknown"), "NodeStatusUnknown");
    m[1].until_ready("worker", "True");
    // An agent comes back although its configuration names the server that is gone.
    drop(worker);
    m[1].until_ready("worker", "Unknown");
    let _worker = m[3].start_with(
        &["agent", "--node-ip=127.0.0.1", "--node-name=worker"],
        &[("K3S_URL", &url(1, port)), ("K3S_TOKEN", SECRET)],
    );
    m[1].until_ready("worker", "True");

    // With two of three gone nothing is served; when one is back it is.
    drop(second);
    until("no leader", || nodes(&m[2]).is_none().then_some(()));
    assert!(third.is_running());
    let first = server(&m[0], 1, port, &["--cluster-init"]);
    m[0].until_ready("server-1", "True");
    assert!(ask(&m[0], &["get", "node", "worker", "-o", "jsonpath={.metadata.labels.a}"]).contains('c'));

    // A machine that was made anew is another member by the same name, until the Node is deleted.
    let new = Machine::new();
    let join = format!("--server={}", url(3, port));
    let mut second = server(&new, 2, port, &[&join]);
    second.until_logged("duplicate node name found, please use a unique name for this node");
    assert!(!second.until_exit().success());
    ask(&m[0], &["delete", "node", "server-2"]);
    let second = server(&new, 2, port, &[&join]);
    new.until_ready("server-2", "True");
    // Whoever was taken out notices.
    drop(second);
    let mut former = server(&m[1], 2, port, &[&join]);
    former.until_logged("server");
    drop(first);
    let _ = third.is_running();
    assert!(former.is_running() || !former.until_exit().success());
}

#[test]
fn what_does_not_fit_does_not_join() {
    let (port, first, other) = (free_port(), Machine::new(), Machine::new());
    let alone = server(&first, 1, port, &[]);
    first.until_ready("server-1", "True");
    let join = format!("--server={}", url(1, port));
    let mut second = server(&other, 2, port, &[&join]);
    second.until_logged("etcd cluster join failed");
    assert!(!second.until_exit().success());
    // A restart with --cluster-init makes etcd's data of SQLite's.
    assert!(alone.terminate().success());
    let _first = server(&first, 1, port, &["--cluster-init"]);
    first.until_ready("server-1", "True");
    assert!(first.path("/var/lib/rancher/k3s/server/db/state.db.migrated").exists());
    let mut second = server(&other, 2, port, &[&join, "--cluster-cidr=10.99.0.0/16"]);
    second.until_logged("critical configuration value mismatch");
    assert!(!second.until_exit().success());
    let _second = server(&other, 2, port, &[&join]);
    other.until_ready("server-2", "True");
}

#[test]
fn a_snapshot_is_restored_on_another_machine() {
    let (port, first, other) = (free_port(), Machine::new(), Machine::new());
    let config = format!("https-listen-port: {port}\nnode-name: server-1\nnode-ip: 127.0.0.1\n");
    for machine in [&first, &other] {
        machine.write("/etc/rancher/k3s/config.yaml", &config);
    }
    let process = server(&first, 1, port, &["--cluster-init"]);
    first.until_ready("server-1", "True");
    first.ask(&["label", "node", "server-1", "kept=yes"]);
    let k3s = |machine: &Machine, arguments: &[&str]| {
        let output = machine.command().env("K3S_TOKEN", SECRET).args(arguments).output().unwrap();
        (
            output.status.success(),
            format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr)),
        )
    };
    let (done, said) = k3s(&first, &["etcd-snapshot", "save", "--name", "mine"]);
    assert!(done && said.contains("Snapshot mine-server-1-"), "{said}");
    let (_, list) = k3s(&first, &["etcd-snapshot", "ls"]);
    let name = list.lines().nth(1).unwrap().split(' ').next().unwrap().to_owned();
    assert!(name.starts_with("mine-server-1-"), "{list}");
    first.ask(&["label", "node", "server-1", "kept-"]);
    drop(process);
    let snapshot = first.path(&format!("/var/lib/rancher/k3s/server/db/snapshots/{name}"));
    std::fs::copy(snapshot, other.path("/snapshot")).unwrap();

    let reset = ["server", "--cluster-reset", "--cluster-reset-restore-path=/snapshot"];
    let (done, said) = k3s(&other, &reset);
    assert!(done && said.contains("Managed etcd cluster membership has been reset"), "{said}");
    let (done, said) = k3s(&other, &reset);
    assert!(!done && said.contains("already reset to this node"), "{said}");
    let _process = server(&other, 1, port, &[]);
    other.until_ready("server-1", "True");
    assert!(
        other.ask(&["get", "node", "server-1", "-o", "jsonpath={.metadata.labels.kept}"]).contains("yes")
    );
    assert_eq!(
        first.read("/var/lib/rancher/k3s/server/tls/server-ca.crt"),
        other.read("/var/lib/rancher/k3s/server/tls/server-ca.crt")
    );
}
