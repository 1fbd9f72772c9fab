//! Several servers, configuration rolled out and upgrades, among simulated machines (tests/sim).

use std::collections::BTreeMap;
use std::fs;

use nix::sys::signal::Signal;
use p1::internals::event::{Kind, Outcome};
use p1::internals::journal::Record;

use super::run::{began, until};
use super::sim::{K3S, Sim, spec};

/// When each node was worked on in a run, by the number of the event: from the first step that touches a
/// running k3s to its Ready.
fn spans(record: &Record) -> BTreeMap<String, (usize, usize)> {
    let mut spans: BTreeMap<String, (usize, usize)> = BTreeMap::new();
    for (at, event) in record.events.iter().enumerate() {
        match &event.kind {
            Kind::StepStarted { step, .. } => {
                let (node, name) = step.split_once('/').unwrap();
                if ["stage", "config", "install", "start"].contains(&name) {
                    spans.entry(node.to_owned()).or_insert((at, usize::MAX));
                }
            }
            Kind::StepFinished { step, outcome, .. } if outcome.passed() => {
                let (node, name) = step.split_once('/').unwrap();
                if let ("ready", Some(span)) = (name, spans.get_mut(node)) {
                    span.1 = at;
                }
            }
            _ => {}
        }
    }
    spans
}

/// Servers one at a time and before all workers, of which at most so many at a time.
#[track_caller]
fn in_turn(record: &Record, workers: usize) {
    let spans = spans(record);
    for (node, (from, to)) in &spans {
        let meanwhile: Vec<_> = spans.iter().filter(|(_, (start, end))| start < to && from < end).collect();
        let servers = meanwhile.iter().filter(|(n, _)| n.starts_with("server")).count();
        if node.starts_with("server") {
            assert_eq!(meanwhile.len(), 1, "{node} was not alone: {meanwhile:?}");
        } else {
            // Spans touch in chains; what counts is how many there are at the moment when this one begins.
            let now = spans.values().filter(|(start, end)| start <= from && from < end).count();
            assert!(servers == 0 && now <= workers, "{node}: {meanwhile:?}");
        }
    }
    let last = spans.iter().filter(|(n, _)| n.starts_with("server")).map(|(_, (_, to))| *to).max();
    let first = spans.iter().filter(|(n, _)| n.starts_with("worker")).map(|(_, (from, _))| *from).min();
    if let (Some(last), Some(first)) = (last, first) {
        assert!(last < first, "a worker before a server: {spans:?}");
    }
}

/// Which nodes' k3s was started in a run.
fn restarted(record: &Record) -> Vec<String> {
    let mut names: Vec<String> =
        began(record).iter().filter_map(|s| Some(s.strip_suffix("/start")?.to_owned())).collect();
    names.sort();
    names
}

#[test]
fn three_servers_bear_the_loss_of_the_first() {
    let sim = Sim::new(&spec(3, 2, ""));
    sim.p1(&["up"]).exits(0);
    let record = sim.last();
    let finished = |step: &str| {
        let is = |k: &Kind| matches!(k, Kind::StepFinished { step: s, .. } if s == step);
        record.events.iter().position(|e| is(&e.kind)).unwrap()
    };
    let started = |step: &str| {
        let is = |k: &Kind| matches!(k, Kind::StepStarted { step: s, .. } if s == step);
        record.events.iter().position(|e| is(&e.kind)).unwrap()
    };
    assert!(finished("server-1/start") < started("server-2/start"));
    assert!(finished("server-2/start") < started("server-3/start"));
    // Workers wait for the server by themselves, and are judged when it is up.
    for worker in ["worker-1", "worker-2"] {
        assert!(finished(&format!("{worker}/launch")) < started(&format!("{worker}/start")), "{worker}");
        let launch = record.steps.iter().find(|s| s.id == format!("{worker}/launch")).unwrap();
        assert!(launch.needed && !launch.after.iter().any(|a| a.starts_with("server")), "{launch:?}");
        assert!(finished("server-1/start") < started(&format!("{worker}/start")), "{worker}");
    }
    assert!(finished("server-3/launch") < started("server-3/start"), "unpacked before its turn");
    assert!(
        started("worker-3/install".replace('3', "2").as_str()) < finished("server-1/ready"),
        "installed meanwhile"
    );
    let calls = sim.calls();
    sim.p1(&["up"]).exits(0).says(&["nothing to do"]);
    assert_eq!(sim.calls(), calls);
    let config = |node: &str| sim.node(node).sh("cat /etc/rancher/k3s/config.yaml");
    assert!(config("server-1").contains("cluster-init: true") && !config("server-1").contains("server:"));
    assert!(config("server-2").contains("server: https://192.168.56.110:6443"));
    assert!(config("server-3").contains("192.168.56.110") && config("server-3").contains("192.168.56.111"));
    let worker = config("worker-1");
    assert!(!worker.contains("cluster-init") && !worker.contains("tls-san"));
    let token = sim.node("server-2").sh("grep ^token: /etc/rancher/k3s/config.yaml");
    assert!(!worker.contains(token.trim()), "a worker has the servers' token");

    // The first one is off: everything goes on, and what p1 says is so.
    sim.node("server-1").power_off();
    let said = sim.p1(&["kubectl", "get", "nodes", "-o", "name"]).exits(0);
    said.says(&["`server-1` does not answer: the kubeconfig names `server-2` now"]);
    let status = sim.p1(&["status"]).exits(1);
    assert!(status.stdout().contains("worker-2") && status.stdout().contains("Ready"), "{}", status.stdout());
    // What does not concern it can be done.
    sim.p1(&["up", "worker-1", "server-2", "server-3"]).exits(0);
    assert_eq!(restarted(&sim.last()), [""; 0], "nobody is restarted because the first server is down");

    // Its machine is recreated: it joins another.
    sim.p1(&["--yes", "destroy", "server-1"]).exits(0);
    sim.p1(&["up"]).exits(0);
    assert_eq!(restarted(&sim.last()), ["server-1"]);
    let config = sim.node("server-1").sh("cat /etc/rancher/k3s/config.yaml");
    assert!(
        config.contains("server: https://192.168.56.111:6443") && !config.contains("cluster-init"),
        "{config}"
    );
    sim.p1(&["status"]).exits(0);
    sim.p1(&["verify"]).exits(0);
    let members = sim.p1(&["kubectl", "get", "nodes", "-o", "json"]).exits(0).stdout();
    assert_eq!(members.matches("node-role.kubernetes.io/etcd").count(), 3, "{members}");

    // All of them at once: none comes up before the others are there, however few steps may run at a time.
    sim.p1(&["stop"]).exits(0);
    sim.p1(&["--jobs", "1", "start"]).exits(0);
    sim.p1(&["status"]).exits(0);
    sim.p1(&["killall"]).exits(0);
    sim.p1(&["up"]).exits(0);
    sim.p1(&["status"]).exits(0).says(&["are reported by the API; its nodes reported within the last"]);

    // The majority is lost: that is what is said, and how many there are.
    sim.node("server-2").power_off();
    sim.node("server-3").power_off();
    until("etcd has lost its leader", || {
        let asked = "k3s kubectl get nodes --request-timeout=2s >/dev/null 2>&1 && echo yes || echo no";
        sim.node("server-1").sh(asked).trim() == "no"
    });
    let status = sim.p1(&["status"]).exits(1).says(&["etcd: 1 of 3 servers answer, and it needs 2 of them"]);
    assert!(!status.stderr().contains("kubeconfig"), "{}", status.stderr());
    sim.p1(&["up"]).exits(0);
    sim.p1(&["status"]).exits(0);
}

#[test]
fn one_server_grows_to_three() {
    let more = "rollout: {workers: 1}\n";
    let sim = Sim::new(&spec(1, 1, more));
    sim.p1(&["up"]).exits(0);
    sim.p1(&["kubectl", "label", "node", "worker", "kept=yes"]).exits(0);
    // The first server keeps its name and address.
    let three = spec(1, 1, more).replace(
        "  - {name: worker,",
        "  - {name: server-b, role: server, ip: 192.168.56.120, cpus: 1, memory: 1024}\n  \
         - {name: server-c, role: server, ip: 192.168.56.121, cpus: 1, memory: 1024}\n  - {name: worker,",
    );
    sim.spec(&three.replace("server-c, role: server", "server-c, role: worker"));
    sim.p1(&["validate"]).exits(2).says(&["an even number of servers (2)"]);
    sim.spec(&three);
    let plan = sim.p1(&["plan"]).exits(10);
    assert!(
        plan.stdout().contains("k3s moves its data from SQLite to etcd at its next start"),
        "{}",
        plan.stdout()
    );
    sim.p1(&["up"]).exits(0);
    assert_eq!(restarted(&sim.last()), ["server", "server-b", "server-c"]);
    let kept =
        sim.p1(&["kubectl", "get", "node", "worker", "-o", "jsonpath={.metadata.labels.kept}"]).exits(0);
    assert_eq!(kept.stdout().trim(), "yes");
    sim.p1(&["up"]).exits(0).says(&["nothing to do"]);
}

#[test]
fn a_changed_spec_reaches_whom_it_concerns_and_stops_at_the_first_that_stays_away() {
    let more = |k3s: &str| {
        format!(
            "k3s: {{{K3S}{k3s}}}\nrollout: {{workers: 2}}\ntimeouts: {{server_ready: 20s, node_ready: 20s}}\n"
        )
    };
    let sim = Sim::new(&spec(3, 4, &more("")));
    sim.p1(&["up"]).exits(0);
    // Everybody's setting.
    sim.spec(&spec(3, 4, &more(", config: {debug: true}")));
    let plan = sim.p1(&["plan"]).exits(10);
    let plan = plan.stdout();
    let said = [
        "worker-[1-4]",
        "+ debug: true",
        "one server after the other (server-[1-3])",
        "0 to add, 7 to change",
    ];
    assert!(said.iter().all(|word| plan.contains(word)), "{plan}");
    sim.p1(&["up"]).exits(0);
    assert_eq!(restarted(&sim.last()).len(), 7);
    in_turn(&sim.last(), 2);
    // Workers' only; and registries everywhere.
    sim.spec(&spec(3, 4, &more(", config: {debug: true}, worker_config: {kubelet-arg: [max-pods=50]}")));
    sim.p1(&["up"]).exits(0);
    assert_eq!(restarted(&sim.last()), ["worker-1", "worker-2", "worker-3", "worker-4"]);
    in_turn(&sim.last(), 2);

    // Labels and taints restart nobody; only p1's own are removed.
    let marked = |marks: &str| {
        spec(3, 4, &more(", config: {debug: true}, worker_config: {kubelet-arg: [max-pods=50]}"))
            .replace("name: worker-2,", &format!("name: worker-2, {marks}"))
    };
    sim.p1(&["kubectl", "label", "node", "worker-2", "theirs=1"]).exits(0);
    sim.spec(&marked("labels: {tier: front, zone: a}, taints: ['only=x:NoSchedule'],"));
    sim.p1(&["up"]).exits(0);
    assert_eq!(restarted(&sim.last()), [""; 0]);
    let object = |path: &str| {
        sim.p1(&["kubectl", "get", "node", "worker-2", "-o", &format!("jsonpath={{{path}}}")])
            .exits(0)
            .stdout()
    };
    assert!(object(".metadata.labels.tier").contains("front") && object(".spec.taints").contains("only"));
    sim.spec(&marked("labels: {zone: b},"));
    let plan = sim.p1(&["-v", "plan"]).exits(10);
    assert!(plan.stdout().contains("+ worker-2/labels"), "{}", plan.stdout());
    sim.p1(&["up"]).exits(0);
    assert_eq!(restarted(&sim.last()), [""; 0]);
    assert_eq!((object(".metadata.labels.tier").trim(), object(".metadata.labels.zone").trim()), ("", "b"));
    assert!(object(".metadata.labels.theirs").contains('1') && !object(".spec.taints").contains("only"));
    sim.p1(&["up"]).exits(0).says(&["nothing to do"]);

    // The second server does not come back: the third and the workers are not touched.
    let runs = |node: &str| {
        let unit = if node.starts_with("server") { "k3s" } else { "k3s-agent" };
        sim.node(node)
            .sh(&format!("systemctl show -p InvocationID {unit}; sha256sum /etc/rancher/k3s/config.yaml"))
    };
    let rest = ["server-3", "worker-1", "worker-2", "worker-3", "worker-4"];
    let before: Vec<String> = rest.iter().map(|n| runs(n)).collect();
    sim.node("server-2").fault("unit-crash", "");
    sim.spec(&marked("labels: {zone: b},").replace("debug: true", "debug: false"));
    let done = sim.p1(&["up"]).exits(1);
    done.says(&[
        "stand-in fault unit-crash",
        "not touched, and as before",
        "server-3",
        "worker-4",
        "p1 retry",
    ]);
    let after: Vec<String> = rest.iter().map(|n| runs(n)).collect();
    assert_eq!(before, after);
    assert!(matches!(sim.last().outcomes["server-2/start"], Outcome::Failed(_)));
    assert!(matches!(sim.last().outcomes["server-3/config"], Outcome::Blocked { .. }));
    sim.node("server-2").heal();
    sim.p1(&["retry"]).exits(0);
    let again = restarted(&sim.last());
    assert!(!again.contains(&"server-1".to_owned()) && again.len() == 6, "{again:?}");
    in_turn(&sim.last(), 2);
    sim.p1(&["up"]).exits(0).says(&["nothing to do"]);
}

#[test]
fn pods_leave_a_node_before_its_k3s_is_restarted() {
    let more = |k3s: &str| {
        format!("k3s: {{{K3S}{k3s}}}\nrollout: {{workers: 1, drain: true}}\nmanifests: [web.yaml]\n")
    };
    let sim = Sim::new(&spec(1, 2, &more("")));
    let web = "apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: web}\nspec: {replicas: 4, selector: \
               {matchLabels: {app: web}}, template: {metadata: {labels: {app: web}}, spec: {containers: \
               [{name: web, image: nginx:1}]}}}\n";
    fs::write(sim.at("web.yaml"), web).unwrap();
    sim.p1(&["up"]).exits(0);
    let kubectl = |line: &str| sim.node("server").sh(&format!("k3s kubectl {line}"));
    let log = |step: &str| {
        let run = sim.runs().pop().unwrap();
        let dir = sim.state().join("logs").join(run.file_stem().unwrap());
        fs::read_to_string(dir.join(format!("{step}.log"))).unwrap()
    };
    let cordoned = || kubectl("get nodes -o json").contains("\"unschedulable\": true");
    sim.spec(&spec(1, 2, &more(", worker_config: {debug: true}")));
    sim.p1(&["up"]).exits(0);
    assert_eq!(restarted(&sim.last()), ["worker-1", "worker-2"]);
    for node in ["worker-1", "worker-2"] {
        let text = log(&format!("{node}-start"));
        assert!(text.contains("evicting pod default/web-") && text.contains("drained"), "{text}");
    }
    assert!(!cordoned());

    // A pod that nobody would recreate is not taken away: the node stays as it is, but for new pods.
    let bare = "apiVersion: v1\nkind: Pod\nmetadata: {name: bare}\nspec: {nodeName: worker-1, containers: [{name: bare, image: nginx:1}]}";
    sim.node("server").sh(&format!("printf '%s\n' '{bare}' | k3s kubectl apply -f -"));
    let unit = || sim.node("worker-1").sh("systemctl show -p InvocationID k3s-agent");
    let before = unit();
    sim.spec(&spec(1, 2, &more(", worker_config: {debug: false}")));
    sim.p1(&["up"]).exits(1).says(&["declare no controller", "It stays cordoned"]);
    assert_eq!(unit(), before);
    assert!(cordoned() && matches!(sim.last().outcomes["worker-2/config"], Outcome::Blocked { .. }));
    kubectl("delete pod bare");
    sim.p1(&["retry"]).exits(0);
    assert!(!cordoned());
    sim.p1(&["up"]).exits(0).says(&["nothing to do"]);
}

/// Releases of the stand-in as k3s' own places have them, and a list of channels.
fn releases(sim: &mut Sim, versions: &[&str], stable: &str) {
    for version in versions {
        sim.sh(&format!(
            "mkdir -p releases/{version}; cat k3s >releases/{version}/k3s\n\
             printf '\\nK3S-STANDIN-VERSION={version}\\n' >>releases/{version}/k3s; chmod 755 releases/{version}/k3s\n\
             cp install.sh releases/{version}/; cd releases/{version}; sha256sum k3s >sha256sum-amd64.txt"
        ));
    }
    let channels = format!(r#"{{"data":[{{"id":"stable","name":"stable","latest":"{stable}"}}]}}"#);
    fs::write(sim.at("channels.json"), channels).unwrap();
    let place = |name: &str| format!("file://{}", sim.at(name).display());
    let all = [
        ("P1_K3S_RELEASES", place("releases")),
        ("P1_K3S_SOURCE", place("releases")),
        ("P1_K3S_CHANNELS", place("channels.json")),
    ];
    sim.env.extend(all.map(|(name, value)| (name.to_owned(), value)));
}

fn versions(sim: &Sim) -> Vec<String> {
    let path = "jsonpath={.items[*].status.nodeInfo.kubeletVersion}";
    let said = sim.p1(&["kubectl", "get", "nodes", "-o", path]).exits(0).stdout();
    said.split_whitespace().map(str::to_owned).collect()
}

#[test]
fn an_upgrade_that_was_killed_is_finished_by_retry() {
    let (old, new, far) = ("v1.33.5+k3s1", "v1.34.1+k3s1", "v1.35.0+k3s1");
    let mut sim = Sim::new(&spec(3, 3, "k3s: {channel: stable}\nrollout: {workers: 2}\n"));
    releases(&mut sim, &[old, new, far], old);
    sim.p1(&["up"]).exits(0);
    assert_eq!(versions(&sim), vec![old; 6]);

    sim.p1(&["upgrade", "--to", far]).exits(1).says(&["skips a minor version", "p1 upgrade --to v1.34"]);
    sim.p1(&["upgrade", "--to", "v1.32.9+k3s1"]).exits(1);
    sim.p1(&["upgrade", "--to", "newest"]).exits(2).says(&["neither a version nor a channel"]);
    sim.p1(&["plan"]).exits(0);

    let before = sim.runs().len();
    let foretold = sim.p1(&["upgrade", "--dry-run", "--to", new]).exits(10).stdout();
    let turns = "order: server-1, then server-2, then server-3, then worker-1 and worker-2, then worker-3";
    for word in [turns, &format!("k3s {old} "), "0 to add, 7 to change, 0 to destroy", "not known yet"] {
        assert!(foretold.contains(word), "{word}: {foretold}");
    }
    assert_eq!(sim.runs().len(), before);
    assert_eq!(versions(&sim), vec![old; 6]);
    let running = sim.start(&["upgrade", "--to", new]);
    until("the second server's turn", || {
        let runs = sim.runs();
        let text = fs::read_to_string(runs.last().unwrap()).unwrap_or_default();
        runs.len() > before && text.contains(r#""step_started","step":"server-2/start""#)
    });
    running.signal(Signal::SIGKILL);
    let pid = running.pid();
    drop(running.end());
    until("it is gone", || nix::sys::signal::kill(pid, None).is_err());
    let record = sim.last();
    assert!(
        record.passed("cluster/save") && record.passed("server-1/ready") && !record.passed("server-2/ready")
    );
    // Everywhere before the first one's turn, which is a rename then.
    let at = |wanted: &dyn Fn(&Kind) -> bool| record.events.iter().rposition(|e| wanted(&e.kind));
    let pushed = at(&|k| matches!(k, Kind::StepFinished { step, .. } if step.ends_with("/push")));
    let touched = |k: &Kind| matches!(k, Kind::StepStarted { step, .. } if step.ends_with("/stage"));
    assert!(pushed.unwrap() < record.events.iter().position(|e| touched(&e.kind)).unwrap());
    assert_eq!(began(&record).iter().filter(|s| s.ends_with("/push")).count(), 6);
    let staged = Outcome::Done { detail: Some("all there".to_owned()) };
    assert_eq!(record.outcomes["server-1/stage"], staged);
    let Outcome::Done { detail: Some(saved) } = &record.outcomes["cluster/save"] else { panic!("not saved") };
    let (name, server) =
        saved.strip_prefix("etcd snapshot `").and_then(|s| s.split_once("` on ")).expect(saved);
    sim.node(server).sh(&format!("test -s /var/lib/rancher/k3s/server/db/snapshots/{name}"));

    sim.p1(&["retry"]).exits(0).says(&["is upgraded", &format!("k3s {new} on 6 nodes"), "p1 verify"]);
    let foretold = sim.p1(&["-o", "json", "upgrade", "--dry-run", "--to", new]).exits(0).stdout();
    let told = foretold.lines().map(|l| serde_json::from_str::<serde_json::Value>(l).unwrap());
    let told = told.map(|l| l["upgrade"].clone()).find(|u| u.is_object()).unwrap();
    assert!(told["to"] == new && told["turns"] == serde_json::json!([]), "{told}");
    assert!(told["before"]["away_ms"]["server-3"].is_u64() && told["before"]["took_ms"].is_u64(), "{told}");
    assert_eq!(versions(&sim), vec![new; 6]);
    assert_eq!(sim.last().outcomes["worker-3/stage"], staged);
    assert_eq!(sim.node("worker-3").sh("ls -d /var/lib/p1/next 2>/dev/null || echo gone").trim(), "gone");
    in_turn(&sim.last(), 2);
    assert!(!restarted(&sim.last()).contains(&"server-1".to_owned()));
    // The channel stays where it was; the cluster stays where it is.
    sim.p1(&["up"]).exits(0).says(&["nothing to do"]);
    // By the spec: back is refused, forward is done.
    sim.spec(&spec(3, 3, &format!("k3s: {{version: {old}}}\n")));
    sim.p1(&["up"]).exits(1).says(&["do not go back"]);
    sim.p1(&["upgrade", "--to", far]).exits(2).says(&[&format!("the spec says `version: {old}`")]);
    sim.spec(&spec(3, 3, &format!("k3s: {{version: {far}}}\n")));
    // A plan for one node says what `up` for that node says.
    for verb in ["plan", "up"] {
        sim.p1(&[verb, "worker-1"]).exits(1).says(&["`worker-1` would run", "No worker may be newer"]);
    }
    sim.p1(&["plan"]).exits(10);
    sim.p1(&["up"]).exits(0);
    assert_eq!(versions(&sim), vec![far; 6]);
    in_turn(&sim.last(), 3);
}

#[test]
fn a_lone_servers_sqlite_is_copied_before_it_changes() {
    let (old, new) = ("v1.33.5+k3s1", "v1.34.1+k3s1");
    let mut sim = Sim::new(&spec(1, 1, "k3s: {channel: stable}\n"));
    releases(&mut sim, &[old, new], old);
    sim.p1(&["up"]).exits(0);
    sim.p1(&["upgrade", "--to", new]).exits(0).says(&["SQLite and token in /var/lib/p1/backups/"]);
    assert_eq!(versions(&sim), vec![new; 2]);
    let files =
        sim.node("server").sh("cd /var/lib/p1/backups/*; ls db token; stat -c %a . token db/state.db");
    assert!(files.contains("state.db") && files.contains("600"), "{files}");
}

#[test]
fn etcds_data_is_put_back_onto_the_same_machines_and_onto_new_ones() {
    let sim = Sim::new(&spec(3, 1, ""));
    sim.p1(&["up"]).exits(0);
    let kubectl = |line: &str| sim.node("server-2").sh(&format!("k3s kubectl {line}"));
    let password = |node: &str| sim.node(node).sh("cat /etc/rancher/node/password");
    let members = || {
        let nodes: serde_json::Value = serde_json::from_str(&kubectl("get nodes -o json")).unwrap();
        let is = |n: &&serde_json::Value| !n["metadata"]["labels"]["node-role.kubernetes.io/etcd"].is_null();
        nodes["items"].as_array().unwrap().iter().filter(is).count()
    };
    kubectl("create namespace kept");
    kubectl("label node worker disk=fast");
    kubectl("label node server-3 disk=slow");
    sim.p1(&["backup", "b"]).exits(0);
    let token = fs::read_to_string(sim.state().join("token")).unwrap();
    let then: Vec<String> = ["server-1", "server-3", "worker"].map(password).into();
    kubectl("create namespace lost");

    sim.node("server-3").fault("unit-crash", "");
    sim.p1(&["--yes", "restore", "b"]).exits(1).says(&["the former data is back in its place"]);
    sim.node("server-3").heal();
    sim.p1(&["up"]).exits(0);
    assert!(kubectl("get namespaces").contains("lost"));
    assert_eq!(members(), 3);

    // Two of three are enough for a backup, be the first one not among them.
    sim.node("server-1").power_off();
    sim.p1(&["backup", "two"]).exits(0);
    sim.p1(&["up"]).exits(0);

    sim.p1(&["--yes", "restore", "b"]).exits(0);
    let names = kubectl("get namespaces");
    assert!(names.contains("kept") && !names.contains("lost"), "{names}");
    assert_eq!(members(), 3);
    sim.p1(&["plan", "--deep"]).exits(0);
    // The first one was replaced meanwhile: it had joined another, and begins all the same.
    sim.p1(&["--yes", "destroy", "server-1"]).exits(0);
    sim.p1(&["up"]).exits(0);
    kubectl("create namespace later");
    sim.p1(&["--yes", "restore", "two"]).exits(0);
    let names = kubectl("get namespaces");
    assert!(names.contains("lost") && !names.contains("later"), "{names}");
    assert_eq!(members(), 3);
    sim.p1(&["plan", "--deep"]).exits(0);

    sim.p1(&["--yes", "destroy"]).exits(0);
    sim.p1(&["up"]).exits(0);
    assert_ne!(password("server-3"), then[1]);
    sim.p1(&["--yes", "restore", "b"]).exits(0);
    assert!(kubectl("get namespaces").contains("kept"));
    for (node, disk) in [("worker", "fast"), ("server-3", "slow")] {
        let labels = kubectl(&format!("get node {node} -o jsonpath={{.metadata.labels.disk}}"));
        assert_eq!(labels.trim(), disk, "it is the same node to the cluster");
    }
    assert_eq!(fs::read_to_string(sim.state().join("token")).unwrap(), token);
    assert_eq!(["server-1", "server-3", "worker"].map(password).to_vec(), then);
    assert_eq!(members(), 3);
    sim.p1(&["plan", "--deep"]).exits(0);
}
