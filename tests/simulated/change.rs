//! Changes of the spec and of reality, on simulated machines.

use std::fs;
use std::time::Duration;

use nix::sys::signal::Signal;
use p1::internals::event::{Kind, Outcome};
use p1::internals::journal::Record;
use serde_json::Value;

use super::run::{began, until};
use super::sim::{K3S, Sim, spec};

/// The spec with something of it replaced.
fn edit(sim: &Sim, from: &str, to: &str) {
    let text = fs::read_to_string(sim.at("cluster.yaml")).unwrap();
    assert!(text.contains(from), "`{from}` is not in\n{text}");
    sim.spec(&text.replacen(from, to, 1));
}

/// The line of a node in the spec.
fn line(sim: &Sim, node: &str) -> String {
    let text = fs::read_to_string(sim.at("cluster.yaml")).unwrap();
    let found = text.lines().find(|l| l.contains(&format!("{{name: {node},")));
    format!("{}\n", found.unwrap_or_else(|| panic!("{node} is not in\n{text}")))
}

fn kubectl(sim: &Sim, server: &str, args: &str) -> String {
    sim.node(server).sh(&format!("k3s kubectl {args}"))
}

/// Node objects, as the API has them: name and status.
fn nodes(sim: &Sim, server: &str) -> Vec<(String, String)> {
    let text = kubectl(sim, server, "get nodes --no-headers");
    let words = text.lines().map(|l| l.split_whitespace().map(str::to_owned).collect::<Vec<_>>());
    let mut all: Vec<_> = words.map(|w| (w[0].clone(), w[1].clone())).collect();
    all.sort();
    all
}

fn boot(sim: &Sim, node: &str) -> String {
    sim.node(node).sh("cat /proc/sys/kernel/random/boot_id")
}

/// Kinds of drift of a node, as `status` tells them to programs.
fn drift(sim: &Sim, node: &str) -> Vec<String> {
    let out = sim.p1(&["-o", "json", "status", "--deep"]).stdout();
    let lines: Vec<Value> = out.lines().map(|l| serde_json::from_str(l).unwrap()).collect();
    let Some(line) = lines.iter().find(|l| l["node"] == node) else { return Vec::new() };
    let drift = line["drift"].as_array().unwrap();
    drift.iter().map(|d| d["kind"].as_str().unwrap().to_owned()).collect()
}

fn settled(sim: &Sim) {
    sim.p1(&["status", "--deep"]).exits(0);
    sim.p1(&["plan", "--deep"]).exits(0);
    let calls = sim.calls();
    sim.p1(&["up"]).exits(0).says(&["nothing to do"]);
    assert_eq!(sim.calls(), calls);
}

#[test]
fn a_machine_gets_another_size_and_nothing_else_happens() {
    let sim = Sim::new(&spec(1, 2, ""));
    sim.p1(&["up"]).exits(0);
    let (server, other) = (boot(&sim, "server"), boot(&sim, "worker-2"));
    let was = line(&sim, "worker-1");
    edit(&sim, &was, &was.replace("cpus: 1, memory: 512", "cpus: 2, memory: 640"));
    assert_eq!(drift(&sim, "worker-1"), ["cpus", "memory"]);
    let plan = sim.p1(&["plan"]).exits(10).stdout();
    assert!(
        plan.contains("CPUs 1 ") && plan.contains("~ worker-1") && plan.contains("its machine restarts"),
        "{plan}"
    );
    let calls = sim.calls();
    sim.p1(&["up"]).exits(0);
    let steps = began(&sim.last());
    assert_eq!(steps, ["worker-1/resize"]);
    assert_eq!(sim.calls(), calls, "Vagrant has no part in it");
    assert_eq!((boot(&sim, "server"), boot(&sim, "worker-2")), (server, other));
    let info = sim.virsh(&["dominfo", "p1-sim-worker-1"]);
    assert!(info.contains("CPU(s):         2") && info.contains("655360 KiB"), "{info}");
    let file = fs::read_to_string(sim.state().join("Vagrantfile")).unwrap();
    assert!(file.contains("libvirt.memory = 640"), "{file}");
    settled(&sim);

    // All at once in the spec, one after the other in reality; smaller as well as larger.
    let text = fs::read_to_string(sim.at("cluster.yaml")).unwrap();
    sim.spec(
        &text
            .replace("memory: 512", "memory: 600")
            .replace("memory: 640", "memory: 520")
            .replace("memory: 1024", "memory: 1100"),
    );
    sim.p1(&["up"]).exits(0);
    let steps = began(&sim.last());
    assert_eq!(steps, ["server/resize", "worker-1/resize", "worker-2/resize"]);
    settled(&sim);

    // Several go at once: no machine goes while k3s is being uninstalled there, whoever is through before.
    sim.node("worker-1").sh("sed -i '1a sleep 4' /usr/local/bin/k3s-agent-uninstall.sh");
    sim.p1(&["--yes", "destroy", "worker-1", "worker-2"]).exits(0);
    let record = sim.last();
    let warnings: Vec<_> =
        record.events.iter().filter(|e| matches!(e.kind, Kind::StepWarning { .. })).collect();
    assert!(warnings.is_empty(), "{warnings:?}");
    assert!(record.passed("worker-1/uninstall") && record.passed("worker-2/machine"));
}

#[test]
fn a_node_joins_and_a_node_leaves() {
    let sim = Sim::new(&spec(1, 2, ""));
    sim.p1(&["up"]).exits(0);
    let gone = line(&sim, "worker-2");
    edit(&sim, &gone, "  - {name: late, role: worker, ip: 192.168.56.120, cpus: 1, memory: 512}\n");
    assert_eq!(drift(&sim, "worker-2"), ["vm_extra"]);
    assert_eq!(drift(&sim, "late"), ["vm_missing"]);
    sim.p1(&["up"]).exits(2).says(&["worker-2", "p1 destroy worker-2"]);
    assert_eq!(sim.node("worker-2").state(), "running");
    // The one that went is not counted.
    sim.p1(&["--yes", "up"]).exits(0).says(&["cluster `sim` is up: 3 nodes in"]);
    let record = sim.last();
    for step in ["worker-2/leave", "worker-2/uninstall", "worker-2/machine", "late/ready"] {
        assert!(record.passed(step), "{step}: {:?}", record.outcomes);
    }
    assert_eq!(sim.node("worker-2").state(), "");
    let names: Vec<_> = nodes(&sim, "server").into_iter().map(|n| n.0).collect();
    assert_eq!(names, ["late", "server", "worker-1"]);
    let secrets = kubectl(&sim, "server", "-n kube-system get secrets --no-headers");
    assert!(
        !secrets.contains("worker-2.node-password") && secrets.contains("late.node-password"),
        "{secrets}"
    );
    settled(&sim);
    // It may come back under its name.
    edit(&sim, &line(&sim, "late"), &gone);
    sim.p1(&["--yes", "up"]).exits(0);
    settled(&sim);
}

/// The API calls a node Ready for 40 s after the last word of it.
/// p1's part of a node's /etc/hosts.
fn part(sim: &Sim, node: &str) -> String {
    sim.node(node).sh("sed -n '/^# p1: begin/,/^# p1: end/p' /etc/hosts | grep -v '^#' || true")
}

#[test]
fn nodes_know_each_other_by_name_and_call_themselves_as_the_spec_says() {
    for engine in ["vagrant", "direct"] {
        let more = format!("hosts: {{registry.test: 10.11.0.4}}\nengine: {engine}\n");
        let sim =
            Sim::new(&spec(1, 1, &more).replace("{name: worker,", "{name: worker, hostname: wilS.lab.test,"));
        sim.p1(&["up"]).exits(0);
        let known =
            "192.168.56.110 server\n192.168.56.111 wilS.lab.test wilS worker\n10.11.0.4 registry.test\n";
        for node in ["server", "worker"] {
            assert_eq!(part(&sim, node), known, "{engine}: {node}");
        }
        assert_eq!(
            sim.node("worker").sh("cat /proc/sys/kernel/hostname /etc/hostname"),
            "wilS.lab.test\nwilS.lab.test\n"
        );
        assert!(sim.node("worker").sh("cat /etc/hosts").contains("127.0.1.1 wilS.lab.test wilS\n"));
        assert_eq!(
            nodes(&sim, "server").iter().map(|(name, _)| name.as_str()).collect::<Vec<_>>(),
            ["server", "worker"]
        );
        settled(&sim);

        // What somebody does in there is seen, and mended without a restart; what is theirs stays.
        sim.node("worker").sh("sed -i /registry/d /etc/hosts; echo '10.0.0.9 theirs' >>/etc/hosts");
        assert_eq!(drift(&sim, "worker"), ["hosts"]);
        sim.p1(&["up", "--deep"]).exits(0);
        assert_eq!(began(&sim.last()), ["worker/hosts"]);
        let theirs = |node: &str| sim.node(node).sh("grep -c theirs /etc/hosts || true");
        assert_eq!((part(&sim, "worker").as_str(), theirs("worker").trim()), (known, "1"));

        // Another address, and another name of a machine, which all nodes hear of.
        edit(&sim, "10.11.0.4", "10.11.0.5");
        edit(&sim, "wilS.lab.test", "wilS2");
        sim.p1(&["up"]).exits(0);
        let mut steps = began(&sim.last());
        // What serves other steps is looked at with a new hostname; no k3s is touched.
        steps.retain(|step| !step.ends_with("/system") && !step.starts_with("cluster/"));
        steps.sort();
        assert_eq!(steps, ["server/hosts", "worker/hosts"], "{engine}");
        let known = "192.168.56.110 server\n192.168.56.111 wilS2 worker\n10.11.0.5 registry.test\n";
        assert_eq!((part(&sim, "server").as_str(), part(&sim, "worker").as_str()), (known, known));
        let file = sim.node("worker").sh("cat /etc/hosts");
        assert!(file.contains("127.0.1.1 wilS2\n") && !file.contains("lab.test"), "{file}");
        settled(&sim);

        sim.p1(&["--yes", "uninstall"]).exits(0);
        for node in ["server", "worker"] {
            let file = sim.node(node).sh("cat /etc/hosts");
            assert!(
                !file.contains("p1") && !file.contains("registry") && !file.contains("wilS"),
                "{node}: {file}"
            );
        }
        assert_eq!(theirs("worker").trim(), "1");
    }
}

/// The variables of a node's k3s that runs.
fn environ(sim: &Sim, node: &str, unit: &str) -> Vec<String> {
    let pid = sim.node(node).sh(&format!("systemctl show -p MainPID {unit} | cut -d= -f2"));
    let text = sim.node(node).sh(&format!("tr '\\0' '\\n' </proc/{}/environ", pid.trim()));
    let ours = ["HTTP_PROXY=", "HTTPS_PROXY=", "NO_PROXY=", "GOMEMLIMIT="];
    let mut all: Vec<String> = text
        .lines()
        .filter(|line| ours.iter().any(|name| line.starts_with(name)))
        .map(str::to_owned)
        .collect();
    all.sort();
    all
}

#[test]
fn k3s_has_the_environment_of_the_spec_and_a_change_restarts_it() {
    let units = [("server", "k3s"), ("worker", "k3s-agent")];
    for engine in ["vagrant", "direct"] {
        let k3s = format!("k3s: {{{K3S}, env: {{GOMEMLIMIT: '1 $\"GiB'}}}}\n");
        let more = format!("{k3s}engine: {engine}\nproxy: {{http: 'http://ci:pr0xy-pa55@proxy.lan:3128'}}\n");
        let sim = Sim::new(&spec(1, 1, &more));
        sim.p1(&["up"]).exits(0);
        let all = |url: &str| {
            let own = "localhost,127.0.0.0/8,192.168.56.0/21,10.42.0.0/16,10.43.0.0/16,.svc,.cluster.local";
            vec![
                "GOMEMLIMIT=1 $\"GiB".to_owned(),
                format!("HTTPS_PROXY={url}"),
                format!("HTTP_PROXY={url}"),
                format!("NO_PROXY={own}"),
            ]
        };
        for (node, unit) in units {
            assert_eq!(
                environ(&sim, node, unit),
                all("http://ci:pr0xy-pa55@proxy.lan:3128"),
                "{engine}: {node}"
            );
            assert_eq!(sim.node(node).sh(&format!("stat -c '%a %U' /etc/default/{unit}")), "600 root\n");
        }
        settled(&sim);
        assert_eq!(drift(&sim, "worker"), [""; 0]);

        // Another one restarts k3s, in its turn; its password is shown nowhere.
        edit(&sim, "proxy.lan:3128", "other.lan:3128");
        let plan = sim.p1(&["plan"]).exits(10).stdout();
        assert!(
            plan.contains("/etc/default/k3s-agent")
                && plan.contains("other.lan:3128")
                && !plan.contains("pa55"),
            "{plan}"
        );
        sim.p1(&["up"]).exits(0);
        let steps = began(&sim.last());
        for node in ["server", "worker"] {
            assert!(steps.contains(&format!("{node}/start")), "{steps:?}");
        }
        for (node, unit) in units {
            assert_eq!(
                environ(&sim, node, unit),
                all("http://ci:pr0xy-pa55@other.lan:3128"),
                "{engine}: {node}"
            );
        }
        let run = fs::read_to_string(sim.runs().last().unwrap()).unwrap();
        assert!(!run.contains("pa55"), "{run}");

        // Without any the file goes.
        edit(&sim, "proxy: {http: 'http://ci:pr0xy-pa55@other.lan:3128'}\n", "");
        edit(&sim, "env: {GOMEMLIMIT: '1 $\"GiB'}", "env: {}");
        sim.p1(&["up"]).exits(0);
        for (node, unit) in units {
            assert_eq!(environ(&sim, node, unit), [""; 0], "{engine}: {node}");
            sim.node(node).sh(&format!("[ ! -e /etc/default/{unit} ]"));
        }
        settled(&sim);

        // Somebody else's is not written over; p1's own goes with k3s.
        sim.node("worker").sh("echo GOGC=50 >/etc/default/k3s-agent");
        edit(&sim, "env: {}", "env: {GOMEMLIMIT: 1GiB}");
        sim.p1(&["up", "--deep"]).exits(1).says(&["/etc/default/k3s-agent is there, with GOGC"]);
        assert_eq!(sim.node("worker").sh("cat /etc/default/k3s-agent"), "GOGC=50\n");
        sim.node("worker").sh("rm /etc/default/k3s-agent");
        sim.p1(&["retry"]).exits(0);
        assert_eq!(environ(&sim, "worker", "k3s-agent"), ["GOMEMLIMIT=1GiB"]);
        sim.p1(&["--yes", "uninstall"]).exits(0);
        for (node, unit) in units {
            sim.node(node).sh(&format!("[ ! -e /etc/default/{unit} ]"));
        }
    }
}

#[test]
fn a_node_that_fell_silent_is_looked_at_before_the_api_gives_it_up() {
    let sim = Sim::new(&spec(1, 1, ""));
    sim.p1(&["up"]).exits(0);
    // From here on the API's word is enough.
    sim.p1(&["up"]).exits(0);
    sim.node("worker").sh("systemctl stop k3s-agent");
    // Its last word may have been 10 s ago.
    std::thread::sleep(Duration::from_secs(26));
    assert!(nodes(&sim, "server").iter().any(|(name, status)| name == "worker" && status == "Ready"));
    sim.p1(&["up"]).exits(0);
    assert_eq!(sim.node("worker").sh("systemctl is-active k3s-agent || :").trim(), "active");
    settled(&sim);
}

/// The machine of the old name gives the address back before the new one asks for it.
#[test]
fn a_renamed_node_keeps_its_address() {
    let sim = Sim::new(&spec(1, 1, ""));
    sim.p1(&["up"]).exits(0);
    edit(&sim, "name: worker,", "name: renamed,");
    let plan = sim.p1(&["plan"]).exits(10).stdout();
    assert!(plan.contains("renamed is made new at its address"), "{plan}");
    sim.p1(&["--yes", "up"]).exits(0);
    let order = began(&sim.last());
    let at = |step: &str| order.iter().position(|s| s == step).unwrap_or_else(|| panic!("{step}: {order:?}"));
    assert!(at("worker/machine") < at("renamed/vm"));
    settled(&sim);
}

#[test]
fn a_worker_is_replaced_in_one_run() {
    let sim = Sim::new(&spec(1, 1, ""));
    sim.p1(&["up"]).exits(0);
    let (server, worker) = (boot(&sim, "server"), sim.virsh(&["domuuid", "p1-sim-worker"]));
    sim.p1(&["replace", "worker"]).exits(2).says(&["lost: what is on its disk"]);
    sim.p1(&["--yes", "replace", "worker"]).exits(0);
    assert_ne!(sim.virsh(&["domuuid", "p1-sim-worker"]), worker);
    assert_eq!(boot(&sim, "server"), server);
    settled(&sim);
    // Its address and its role are what a machine is made for.
    edit(&sim, "ip: 192.168.56.111", "ip: 192.168.56.130");
    assert_eq!(drift(&sim, "worker"), ["address"]);
    sim.p1(&["up", "--replace", "worker"]).exits(0);
    assert!(sim.node("worker").sh("ip -4 addr").contains("192.168.56.130"));
    settled(&sim);
}

/// Without its only server a cluster is a new one, and its workers have to learn that.
#[test]
fn the_only_server_is_replaced_and_its_workers_join_the_new_one() {
    let sim = Sim::new(&spec(1, 2, ""));
    sim.p1(&["up"]).exits(0);
    kubectl(&sim, "server", "create namespace precious");
    let worker = boot(&sim, "worker-1");
    sim.p1(&["replace", "server"]).exits(2).says(&["all data of the cluster `sim`"]);
    sim.p1(&["--yes", "replace", "server"]).exits(0);
    assert_eq!(boot(&sim, "worker-1"), worker, "the workers' machines stay");
    let ready = |n: &(String, String)| n.1 == "Ready";
    let all = nodes(&sim, "server");
    assert!(all.len() == 3 && all.iter().all(ready), "{all:?}");
    assert!(!kubectl(&sim, "server", "get namespaces").contains("precious"));
    settled(&sim);

    // The same when somebody else took it away.
    sim.node("server").destroy();
    sim.p1(&["up"]).exits(0);
    let all = nodes(&sim, "server");
    assert!(all.len() == 3 && all.iter().all(ready), "{all:?}");
    settled(&sim);
}

/// Cut off after every step that has begun: `retry` finishes it, and no step that passed runs again.
#[test]
fn a_replacement_cut_anywhere_is_finished_by_retry() {
    let sim = Sim::new(&spec(1, 1, ""));
    sim.p1(&["up"]).exits(0);
    for step in
        ["worker/leave", "worker/uninstall", "worker/machine", "worker/vm", "worker/install", "worker/ready"]
    {
        let before = sim.runs().len();
        let running = sim.start(&["--yes", "replace", "worker"]);
        until(step, || sim.runs().len() > before && began(&sim.last()).iter().any(|s| s == step));
        running.signal(Signal::SIGKILL);
        running.end();
        let record = sim.last();
        sim.p1(&["--yes", "retry"]).exits(0);
        let again: Vec<_> = began(&sim.last()).into_iter().filter(|s| record.passed(s)).collect();
        assert_eq!(again, [""; 0], "after {step}");
        settled(&sim);
    }
}

#[test]
fn what_somebody_did_is_named_and_mended() {
    let sim = Sim::new(&spec(1, 1, ""));
    sim.p1(&["up"]).exits(0);
    kubectl(&sim, "server", "cordon worker");
    assert_eq!(drift(&sim, "worker"), ["node_cordoned"]);
    sim.p1(&["up"]).exits(0);
    settled(&sim);

    sim.node("worker").pause();
    assert_eq!(drift(&sim, "worker"), ["vm_paused"]);
    let calls = sim.calls();
    sim.p1(&["up"]).exits(0);
    assert_eq!(sim.calls(), calls, "a paused machine needs no Vagrant");

    sim.node("worker").power_off();
    assert_eq!(drift(&sim, "worker")[0], "vm_stopped");
    sim.p1(&["up"]).exits(0);
    settled(&sim);

    sim.node("worker").sh("systemctl stop k3s-agent");
    assert_eq!(drift(&sim, "worker")[0], "k3s_unit");
    sim.node("worker").sh("echo '# by hand' >>/etc/rancher/k3s/config.yaml");
    assert!(drift(&sim, "worker").contains(&"k3s_config".to_owned()));
    sim.p1(&["up", "--deep"]).exits(0);
    settled(&sim);

    kubectl(&sim, "server", "delete node worker");
    assert_eq!(drift(&sim, "worker"), ["node_missing"]);
    sim.p1(&["up"]).exits(0);
    settled(&sim);

    // What configures k3s beside what p1 writes is named, by its file and by names alone.
    sim.node("worker").sh("mkdir -p /etc/rancher/k3s/config.yaml.d /etc/default && \
         echo 'token: s3cret-value' >'/etc/rancher/k3s/config.yaml.d/my own.yaml' && \
         printf 'HTTPS_PROXY=http://x\\nK3S_URL=y\\n' >/etc/default/k3s-agent");
    let said = sim.p1(&["plan", "--deep"]).exits(0);
    let plan = said.stdout() + &said.stderr();
    for word in [
        "config.yaml.d/my own.yaml sets `token`, over what p1 writes",
        "/etc/default/k3s-agent sets `K3S_URL`",
    ] {
        assert!(plan.contains(word), "{plan}");
    }
    assert!(
        !plan.contains("s3cret") && !plan.contains("HTTPS_PROXY") && !plan.contains("nothing to do:"),
        "{plan}"
    );
    assert_eq!(drift(&sim, "worker"), ["k3s_elsewhere"]);
    sim.node("worker").sh("rm '/etc/rancher/k3s/config.yaml.d/my own.yaml' /etc/default/k3s-agent");
    settled(&sim);

    // What is fixed once there is data is refused before anything is begun, also where no machine runs.
    let good = fs::read_to_string(sim.at("cluster.yaml")).unwrap();
    let set = |config: &str| sim.spec(&good.replacen("k3s: {", &format!("k3s: {{config: {{{config}}}, "), 1));
    let runs = sim.runs().len();
    for (config, cause, way) in [
        (
            "cluster-cidr: 10.50.0.0/16",
            "`cluster-cidr` cannot change from 10.42.0.0/16 to 10.50.0.0/16",
            "Put `cluster-cidr` back",
        ),
        (
            "datastore-endpoint: 'mysql://a:b@tcp(h)/d'",
            "`datastore-endpoint` cannot change from none to mysql",
            "p1 destroy",
        ),
        (
            "secrets-encryption: true",
            "`secrets-encryption` cannot change from false to true",
            "since v1.34.4+k3s1",
        ),
    ] {
        set(config);
        for verb in [&["plan"][..], &["up"], &["up", "worker"], &["--yes", "replace", "worker"]] {
            sim.p1(verb).exits(1).says(&[cause, way]);
        }
    }
    sim.node("server")
        .sh("cd /var/lib/rancher/k3s/server && mkdir -p cred && touch cred/encryption-config.json");
    sim.p1(&["plan"]).exits(10);
    sim.spec(&good);
    sim.p1(&["stop"]).exits(0);
    set("service-cidr: 10.96.0.0/16");
    sim.p1(&["plan"]).exits(1).says(&["`service-cidr` cannot change from 10.43.0.0/16 to 10.96.0.0/16"]);
    sim.p1(&["up"]).exits(1).says(&["`service-cidr` cannot change"]);
    assert_eq!(sim.runs().len(), runs + 1, "only the stop has begun");
}

/// Names of nodes that etcd counts as members, by their roles.
fn servers(sim: &Sim, server: &str) -> Vec<String> {
    let text = kubectl(sim, server, "get nodes --no-headers -l node-role.kubernetes.io/etcd=true");
    let mut names: Vec<_> = text.lines().map(|l| l.split_whitespace().next().unwrap().to_owned()).collect();
    names.sort();
    names
}

/// Where a step began, or ended well, among a run's events.
fn at(record: &Record, step: &str, ended: bool) -> usize {
    let is = |kind: &Kind| match kind {
        Kind::StepStarted { step: s, .. } => !ended && s == step,
        Kind::StepFinished { step: s, outcome, .. } => ended && s == step && outcome.passed(),
        _ => false,
    };
    record.events.iter().position(|e| is(&e.kind)).unwrap_or_else(|| panic!("{step} is not in the run"))
}

fn detail(record: &Record, step: &str) -> String {
    match &record.outcomes[step] {
        Outcome::Done { detail } => detail.clone().unwrap_or_default(),
        other => panic!("{step}: {other:?}"),
    }
}

/// All servers are recreated, one at a time, and what the cluster knows is kept; then their number
/// shrinks, and p1 stops where a majority would be lost.
#[test]
fn servers_are_replaced_in_turn_and_leave_as_long_as_a_majority_stays() {
    let sim = Sim::new(&spec(3, 1, ""));
    sim.p1(&["up"]).exits(0);
    kubectl(&sim, "server-1", "create namespace precious");
    let boots = ["server-1", "server-2", "server-3"].map(|s| boot(&sim, s));
    sim.p1(&["--yes", "replace", "server-1", "server-2", "server-3"]).exits(0);
    let record = sim.last();
    for (one, next) in [("server-1", "server-2"), ("server-2", "server-3")] {
        let ready = at(&record, &format!("{one}/ready"), true);
        assert!(ready < at(&record, &format!("{next}/leave"), false), "{next} left before {one} was back");
    }
    // etcd is not made to lose its leader by taking it out.
    assert_eq!(detail(&record, "server-1/leave"), "drained, its k3s stopped");
    for (was, server) in boots.iter().zip(["server-1", "server-2", "server-3"]) {
        assert_ne!(*was, boot(&sim, server));
    }
    assert!(kubectl(&sim, "server-2", "get namespaces").contains("precious"));
    assert_eq!(servers(&sim, "server-3"), ["server-1", "server-2", "server-3"]);
    settled(&sim);

    // One is down, so none of the others may go, also before the API has noticed.
    sim.node("server-2").power_off();
    sim.p1(&["--yes", "replace", "server-3"]).exits(2).says(&["must not leave", "no majority"]);
    sim.p1(&["--yes", "destroy", "server-3"]).exits(1).says(&["must not leave", "no majority"]);
    assert_eq!(sim.node("server-3").state(), "running");
    // The one that is down may.
    sim.p1(&["--yes", "destroy", "server-2"]).exits(0);
    assert_eq!(servers(&sim, "server-1"), ["server-1", "server-3"]);

    // Back to one server, which was not the first.
    for server in ["server-1", "server-2"] {
        edit(&sim, &line(&sim, server), "");
    }
    sim.p1(&["--yes", "up"]).exits(0);
    assert_eq!(servers(&sim, "server-3"), ["server-3"]);
    // The one of two runs until it is out: etcd takes no writes from the other alone.
    assert_eq!(detail(&sim.last(), "server-1/leave"), "drained");
    assert!(kubectl(&sim, "server-3", "get namespaces").contains("precious"));
    settled(&sim);
}

/// A server and a worker change places: both are recreated, and the cluster goes on meanwhile.
#[test]
fn a_server_and_a_worker_change_places() {
    let sim = Sim::new(&spec(3, 1, ""));
    sim.p1(&["up"]).exits(0);
    kubectl(&sim, "server-1", "create namespace precious");
    let text = fs::read_to_string(sim.at("cluster.yaml")).unwrap();
    let swapped = text.replace("name: server-2,", "name: other,").replace("name: worker,", "name: server-2,");
    sim.spec(&swapped.replace("name: other,", "name: worker,"));
    assert!(drift(&sim, "worker").contains(&"role".to_owned()));
    sim.p1(&["up"]).exits(2).says(&["server-2", "worker"]);
    sim.p1(&["up", "--replace", "server-2", "--replace", "worker"]).exits(0);
    assert_eq!(servers(&sim, "server-1"), ["server-1", "server-3", "worker"]);
    assert!(kubectl(&sim, "server-1", "get namespaces").contains("precious"));
    settled(&sim);
}

/// A machine without k3s is one of the cluster's in all but k3s; it gets one in place, and loses it with its machine only.
#[test]
fn a_machine_without_k3s_is_made_named_and_left_out_of_what_is_k3s() {
    let sim = Sim::new(&spec(1, 1, ""));
    let text = fs::read_to_string(sim.at("cluster.yaml")).unwrap();
    let extra = "  - {name: disk, role: none, ip: 192.168.56.120, cpus: 1, memory: 512}\n";
    let prepare = "provision: [{name: mark, type: shell, inline: echo made >/etc/marked, nodes: [none], when: after-k3s}]\n";
    sim.spec(&(text.replace("nodes:\n", &format!("nodes:\n{extra}")) + prepare));
    sim.p1(&["up"]).exits(0).says(&["cluster `sim` is up: 3 nodes in"]);
    let ran = began(&sim.last());
    let of_disk: Vec<&str> = ran.iter().filter_map(|s| s.strip_prefix("disk/")).collect();
    assert_eq!(of_disk, ["vm", "ssh", "system", "hosts", "provision-mark"]);
    assert_eq!(sim.node("disk").sh("cat /etc/marked; ls /usr/local/bin"), "made\n");
    assert!(sim.node("server").sh("cat /etc/hosts").contains("192.168.56.120 disk\n"));
    let members = [("server".to_owned(), "Ready".to_owned()), ("worker".to_owned(), "Ready".to_owned())];
    assert_eq!(nodes(&sim, "server"), members);
    settled(&sim);
    let status = sim.p1(&["status"]).exits(0).stdout();
    let row = status.lines().find(|l| l.starts_with("disk")).unwrap();
    assert_eq!(
        row.split_whitespace().collect::<Vec<_>>(),
        ["disk", "none", "192.168.56.120", "running", "-", "-", "-"]
    );

    // Where it is named for what is k3s', that is said before anything is done.
    for verb in ["killall", "uninstall"] {
        sim.p1(&["--yes", verb, "disk"]).exits(2).says(&["disk", "role: none"]);
    }
    sim.p1(&["logs", "disk"]).exits(2).says(&["role: none"]);
    sim.p1(&["--yes", "fault", "kill-k3s", "disk"]).exits(2).says(&["role: none"]);
    assert_eq!(sim.p1(&["exec", "role:none", "--", "hostname"]).exits(0).stdout().trim(), "disk | disk");
    sim.p1(&["verify"]).exits(0);
    assert!(sim.last().passed("disk/healthy") && !sim.last().steps.iter().any(|s| s.id == "disk/network"));
    sim.p1(&["backup", "x.p1"]).exits(0);
    sim.p1(&["--yes", "restore", "x.p1"]).exits(0);
    assert!(!sim.last().steps.iter().any(|s| s.id.starts_with("disk/h")));
    sim.p1(&["stop"]).exits(0);
    assert_eq!(sim.node("disk").state(), "shut off");
    sim.p1(&["start"]).exits(0);
    sim.p1(&["suspend"]).exits(0);
    sim.p1(&["resume"]).exits(0);
    assert_eq!(sim.node("disk").sh("cat /etc/marked"), "made\n");

    // It becomes a worker as it is, and no worker any more only with a new machine.
    let was = boot(&sim, "disk");
    edit(&sim, "name: disk, role: none", "name: disk, role: worker");
    edit(&sim, "nodes: [none]", "nodes: [worker]");
    sim.p1(&["up"]).exits(0);
    assert_eq!((nodes(&sim, "server").len(), boot(&sim, "disk")), (3, was));
    edit(&sim, "name: disk, role: worker", "name: disk, role: none");
    assert_eq!(drift(&sim, "disk"), ["role"]);
    sim.p1(&["up"])
        .exits(2)
        .says(&["it is a worker, and the spec gives it no k3s", "volumes of pods included"]);
    sim.p1(&["--yes", "up"]).exits(0);
    assert!(sim.last().passed("disk/leave"));
    assert_eq!(nodes(&sim, "server"), members);
    sim.p1(&["--yes", "replace", "disk"]).exits(0);
    settled(&sim);
    let gone = line(&sim, "disk");
    edit(&sim, &gone, "");
    sim.p1(&["--yes", "up"]).exits(0);
    assert_eq!(sim.node("disk").state(), "");
    assert!(!sim.last().steps.iter().any(|s| s.id == "disk/leave"));
    settled(&sim);
}

/// A machine has the disks of the spec from its first `up` on; it gets more and larger ones while it runs, and none smaller.
#[test]
fn a_machine_has_its_disks_and_they_go_with_it_alone() {
    let sim = Sim::new(&spec(1, 1, ""));
    let was = line(&sim, "worker");
    let with = |keys: &str| was.replace("cpus: 1", &format!("{keys}, cpus: 1"));
    let sizes = |volume: &str| {
        let told = sim.virsh(&["vol-info", "--pool", "default", "--bytes", volume]);
        let line = told.lines().find_map(|l| l.strip_prefix("Capacity:")).unwrap();
        line.split_whitespace().next().unwrap().parse::<u64>().unwrap() >> 30
    };
    let first = with("disk: 20GiB, disks: [50GiB, {size: 1GiB, serial: data}]");
    edit(&sim, &was, &first);
    sim.p1(&["up"]).exits(0);
    let volume = |serial: &str| format!("p1-sim-worker.disk.{serial}.img");
    assert_eq!([sizes("p1-sim-worker.img"), sizes(&volume("disk-1")), sizes(&volume("data"))], [20, 50, 1]);
    sim.node("worker").sh("test -e /dev/disk/by-id/virtio-data");
    settled(&sim);
    let booted = boot(&sim, "worker");

    let second = with("disk: 30GiB, disks: [50GiB, {size: 2GiB, serial: data}, {size: 3GiB, serial: more}]");
    edit(&sim, &first, &second);
    assert_eq!(drift(&sim, "worker"), ["disks"]);
    sim.p1(&["up"]).exits(0);
    assert_eq!(began(&sim.last()), ["worker/disks"]);
    assert_eq!([sizes("p1-sim-worker.img"), sizes(&volume("data")), sizes(&volume("more"))], [30, 2, 3]);
    assert_eq!(boot(&sim, "worker"), booted);
    sim.p1(&["stop", "worker"]).exits(0);
    sim.p1(&["start"]).exits(0);
    settled(&sim);

    // Smaller is refused before anything is done, and one that leaves the spec stays.
    edit(&sim, &second, &with("disk: 20GiB, disks: [50GiB, {size: 2GiB, serial: data}]"));
    sim.p1(&["up"]).exits(2).says(&["has 30 GiB and cannot become 20 GiB", "--replace worker"]);
    let third = with("disks: [50GiB, {size: 2GiB, serial: data}]");
    edit(&sim, &with("disk: 20GiB, disks: [50GiB, {size: 2GiB, serial: data}]"), &third);
    let plan = sim.p1(&["plan"]).exits(0).stdout();
    assert!(plan.contains("it has disks that the spec does not have: more"), "{plan}");
    sim.p1(&["replace", "worker"]).exits(2).says(&["and its disks disk-1, data, more"]);
    assert_eq!(sizes(&volume("more")), 3);
    sim.p1(&["--yes", "replace", "worker"]).exits(0);
    assert!(!sim.virsh(&["vol-list", "default"]).contains(&volume("more")));
    settled(&sim);
    sim.p1(&["destroy"]).exits(2).says(&["disks", "data"]);
    sim.p1(&["--yes", "destroy"]).exits(0);
    assert!(!sim.virsh(&["vol-list", "default"]).contains("p1-sim-"));
}
