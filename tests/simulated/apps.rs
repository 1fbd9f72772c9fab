//! Applications among simulated machines: see tests/support/sim.rs. No container runs there: pods are
//! the stand-in's records of them.

use std::fs;

use p1::internals::event::{Kind, Outcome};
use serde_json::Value;

use super::run::began;
use super::sim::{K3S, Sim, spec};

const WEB: &str = "apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: web}\nspec: {replicas: 3, selector: {matchLabels: {app: web}}, \
    template: {metadata: {labels: {app: web}}, spec: {containers: [{name: web, image: nginx:1}]}}}\n";
const SECRET: &str =
    "apiVersion: v1\nkind: Secret\nmetadata: {name: key}\nstringData: {password: correct-horse-battery}\n";
const KIND: &str = "apiVersion: apiextensions.k8s.io/v1\nkind: CustomResourceDefinition\nmetadata: {name: toys.example.org}\n\
    spec: {group: example.org, scope: Namespaced, names: {plural: toys, kind: Toy}, versions: [{name: v1, served: true, storage: true}]}\n";
const ROLE: &str = "apiVersion: rbac.authorization.k8s.io/v1\nkind: ClusterRole\nmetadata: {name: 'my rôle?#+'}\nrules: []\n";
const TOY: &str = "apiVersion: example.org/v1\nkind: Toy\nmetadata: {name: bear}\nspec: {fur: brown}\n";

fn write(sim: &Sim, name: &str, text: &str) {
    let path = sim.at(name);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, text).unwrap();
}

/// What p1 says on either stream.
#[track_caller]
fn shows(sim: &Sim, args: &[&str], code: i32, words: &[&str]) -> String {
    let done = sim.p1(args).exits(code);
    let text = done.stdout() + &done.stderr();
    // However the lines are broken.
    let flat = text.split_whitespace().collect::<Vec<_>>().join(" ");
    for word in words {
        assert!(text.contains(word) || flat.contains(word), "`{word}` is not in\n{text}");
    }
    text
}

/// What kubectl on the server says.
fn kubectl(sim: &Sim, line: &str) -> String {
    sim.node("server").sh(&format!("k3s kubectl {line}"))
}

fn objects(sim: &Sim, what: &str) -> Vec<String> {
    let list: Value = serde_json::from_str(&kubectl(sim, &format!("get {what} -o json"))).unwrap();
    let name = |o: &Value| o["metadata"]["name"].as_str().unwrap().to_owned();
    list["items"].as_array().unwrap().iter().map(name).collect()
}

#[test]
fn manifests_are_applied_awaited_and_pruned() {
    let manifests = "namespaces: [shop, {name: data, labels: {stage: live}}]\nmanifests: [apps, {path: key.yaml, namespace: shop}, over]\n";
    let sim = Sim::new(&spec(1, 1, manifests));
    // The object of a new kind comes before its kind in the order of names.
    write(&sim, "apps/a-toy.yaml", TOY);
    write(&sim, "apps/b-web.yaml", WEB);
    write(&sim, "apps/z-kind.yaml", KIND);
    // A name that a path cannot have as it is.
    write(&sim, "apps/c-role.yaml", ROLE);
    write(&sim, "key.yaml", SECRET);
    write(&sim, "base/kustomization.yaml", "resources: [web.yaml]\n");
    write(&sim, "base/web.yaml", WEB);
    write(&sim, "over/kustomization.yaml", "namespace: data\nresources: [../base]\n");
    shows(&sim, &["-v", "plan"], 10, &["+ cluster/manifests"]);
    let up = shows(&sim, &["up"], 0, &[]);
    assert_eq!(objects(&sim, "deployments -n default"), ["web"]);
    assert_eq!(objects(&sim, "deployments -n data"), ["web"]);
    assert_eq!(objects(&sim, "toys"), ["bear"]);
    assert_eq!(objects(&sim, "clusterroles"), ["my rôle?#+"]);
    assert_eq!(objects(&sim, "secrets -n shop"), ["key"]);
    assert!(kubectl(&sim, "get ns data -o json").contains("\"stage\": \"live\""));
    assert!(
        matches!(&sim.last().outcomes["cluster/rollouts"], Outcome::Done { detail: Some(d) } if d == "2 running")
    );

    // Nothing is due, and nothing was written down that nobody may see.
    shows(&sim, &["up"], 0, &["nothing to do"]);
    shows(&sim, &["up", "--deep"], 0, &["nothing to do"]);
    sim.p1(&["status"]).exits(0);
    let secrets = ["correct-horse-battery", "Y29ycmVjdC1ob3JzZS1iYXR0ZXJ5"];
    let written = sim.sh("cat $(find .p1 -type f -not -path '*/.vagrant/*') | strings; true") + &up;
    assert!(!secrets.iter().any(|s| written.contains(s)), "a secret was written down");

    // Changed here, gone there, changed there.
    write(&sim, "apps/b-web.yaml", &WEB.replace("replicas: 3", "replicas: 2"));
    shows(&sim, &["plan"], 10, &["they changed since they were applied"]);
    sim.p1(&["up"]).exits(0);
    // One pod less may have gone before it is looked for.
    let record = sim.last();
    assert!(
        began(&record)[0] == "cluster/manifests" && record.passed("cluster/rollouts"),
        "{:?}",
        began(&record)
    );
    kubectl(&sim, "delete deployment web");
    shows(&sim, &["status"], 1, &["Deployment default/web is not there"]);
    sim.p1(&["up"]).exits(0);
    kubectl(&sim, "label toys/bear x=y");
    shows(&sim, &["up", "--deep"], 0, &["nothing to do"]);
    sim.node("server").sh("printf '%s\\n' 'apiVersion: example.org/v1' 'kind: Toy' 'metadata: {name: bear}' 'spec: {fur: white}' | k3s kubectl apply -f -");
    sim.p1(&["plan"]).exits(0);
    shows(&sim, &["plan", "--deep"], 10, &["Toy default/bear was changed in the cluster"]);
    sim.p1(&["up", "--deep"]).exits(0);
    assert!(kubectl(&sim, "get toys/bear -o json").contains("brown"));

    // What left the spec goes; what is somebody else's stays until there is a yes.
    kubectl(&sim, "create namespace theirs");
    sim.node("server").sh("printf '%s\\n' 'apiVersion: v1' 'kind: ConfigMap' 'metadata: {name: mine, namespace: data}' | k3s kubectl apply -f -");
    sim.spec(&spec(1, 1, "namespaces: [theirs]\nmanifests: [apps/b-web.yaml]\n"));
    shows(&sim, &["up"], 0, &["namespace data left the spec and stays", "ConfigMap data/mine"]);
    let all = objects(&sim, "ns");
    assert!(!all.contains(&"shop".to_owned()) && all.contains(&"data".to_owned()), "{all:?}");
    assert_eq!(objects(&sim, "deployments -n data"), [""; 0]);
    assert_eq!(objects(&sim, "crd"), [""; 0]);
    assert_eq!(objects(&sim, "clusterroles"), [""; 0]);
    shows(&sim, &["up"], 0, &["nothing to do"]);
    // A namespace that was there before stays when it leaves the spec; and with nothing wanted the note goes too.
    sim.spec(&spec(1, 1, ""));
    sim.p1(&["up"]).exits(0);
    assert!(objects(&sim, "ns").contains(&"theirs".to_owned()));
    assert!(!objects(&sim, "cm -n kube-system").contains(&"p1-inventory".to_owned()));
    assert_eq!(objects(&sim, "deployments"), [""; 0]);
    shows(&sim, &["up"], 0, &["nothing to do"]);

    sim.spec(&spec(1, 1, "namespaces: [mine]\n"));
    sim.p1(&["up"]).exits(0);
    sim.node("server").sh("printf '%s\\n' 'apiVersion: v1' 'kind: ConfigMap' 'metadata: {name: x, namespace: mine}' | k3s kubectl apply -f -");
    sim.spec(&spec(1, 1, ""));
    sim.p1(&["--yes", "up"]).exits(0);
    assert!(!objects(&sim, "ns").contains(&"mine".to_owned()));

    // What was applied, and its kind is gone: kubectl can no longer be told to delete it.
    sim.spec(&spec(1, 1, "manifests: [apps/a-toy.yaml, apps/z-kind.yaml]\n"));
    sim.p1(&["up"]).exits(0);
    kubectl(&sim, "delete crd toys.example.org");
    sim.spec(&spec(1, 1, ""));
    sim.p1(&["up"]).exits(0);
    shows(&sim, &["up"], 0, &["nothing to do"]);
}

#[test]
fn a_rollout_that_does_not_end_is_explained() {
    let more = "manifests: [web.yaml]\ntimeouts: {rollout: 3s}\n";
    let sim = Sim::new(&spec(1, 1, more));
    write(&sim, "web.yaml", WEB);
    sim.node("server").fault("image-pull", "nginx");
    shows(&sim, &["up"], 1, &["not running within 3s", "ImagePullBackOff", "event: Pod/web-", "registry"]);
    shows(&sim, &["status"], 1, &["0 of 3 pods are available"]);
    sim.node("server").heal();
    sim.node("server").fault("crash", "nginx");
    shows(
        &sim,
        &["retry"],
        1,
        &[
            "container web keeps crashing: stand-in fault crash: exiting with 1",
            "web | stand-in fault crash",
            "what nginx:1 wants of its user",
            "`p1 kubectl -n default logs web-",
        ],
    );
    assert_eq!(began(&sim.last()), ["cluster/rollouts"]);
    // The command that the advice names shows what the container said.
    let Some(Outcome::Failed(failure)) = sim.last().outcomes.remove("cluster/rollouts") else {
        panic!("failed")
    };
    let hint = failure.hint.unwrap();
    let advised = hint.split('`').find(|part| part.starts_with("p1 kubectl")).unwrap();
    let words: Vec<&str> = advised.split(' ').skip(1).collect();
    shows(&sim, &words, 0, &["stand-in fault crash: exiting with 1"]);
    sim.node("server").heal();
    sim.p1(&["retry"]).exits(0);

    // What the cluster refuses is told in its words, and without what is secret.
    write(&sim, "web.yaml", &format!("{SECRET}---\napiVersion: v9\nkind: Nonsense\nmetadata: {{name: x}}\n"));
    shows(&sim, &["up"], 1, &["the cluster knows no Nonsense of v9"]);
    write(&sim, "web.yaml", &SECRET.replace("name: key", "name: key, namespace: nowhere"));
    shows(&sim, &["up"], 1, &["namespaces \"nowhere\" not found"]);
}

/// The lines of an example's spec from `from` on, and its manifests beside the lab's spec.
fn example(sim: &Sim, name: &str, servers: usize, workers: usize) {
    let dir = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("examples").join(name);
    sim.sh(&format!("rm -rf apps live web.yaml; cp -r '{}'/* . && rm README.md", dir.display()));
    let text = fs::read_to_string(dir.join("cluster.yaml")).unwrap();
    let from = text.find("\nnamespaces:").or(text.find("\nmanifests:")).unwrap() + 1;
    sim.spec(&spec(servers, workers, &text[from..]));
}

#[test]
fn the_examples_run() {
    let sim = Sim::new(&spec(1, 2, ""));
    example(&sim, "nginx", 1, 2);
    sim.p1(&["up"]).exits(0);
    let nodes = kubectl(&sim, "get pods -l app=nginx -o jsonpath={.items[*].spec.nodeName}");
    let mut nodes: Vec<&str> = nodes.split_whitespace().collect();
    nodes.sort_unstable();
    assert_eq!(nodes, ["server", "worker-1", "worker-2"]);

    example(&sim, "namespaces", 1, 2);
    sim.p1(&["up"]).exits(0);
    assert_eq!(objects(&sim, "deployments -n test"), ["web"]);
    assert_eq!(objects(&sim, "deployments -n live"), ["web"]);
    assert_eq!(objects(&sim, "deployments -n default"), [""; 0]);

    example(&sim, "ingress", 1, 2);
    sim.p1(&["up"]).exits(0);
    let get = |host: &str, ip: &str| sim.sh(&format!("curl -s -m 10 -H 'Host: {host}' http://{ip}"));
    // Traefik's part is played by the stand-in, on every node.
    for ip in ["192.168.56.110", "192.168.56.111"] {
        for (host, app) in [("app1.com", "app1"), ("app2.com", "app2"), ("else.com", "app3")] {
            assert_eq!(get(host, ip).trim(), format!("hello from {app}"));
        }
    }

    // A node dies while somebody asks; then it is taken for dead, and nothing more is lost.
    example(&sim, "failover", 1, 2);
    sim.p1(&["up"]).exits(0);
    assert!(sim.sh("./ask http://192.168.56.110 2").contains(" 0 lost"));
    sim.node("worker-2").power_off();
    let said = sim.sh("./ask http://192.168.56.110 20");
    let count = |word: &str| -> u32 {
        let at = said.lines().last().unwrap().split(", ").find(|p| p.contains(word)).unwrap();
        at.split(' ').next().unwrap().parse().unwrap()
    };
    assert!(count("lost") > 0 && count("lost") < count("asked") / 2, "{said}");
    println!("{said}");
    super::run::until("nothing is lost any more", || {
        sim.sh("./ask http://192.168.56.110 3").contains(" 0 lost")
    });
    shows(&sim, &["status"], 1, &["worker-2"]);
    sim.p1(&["up"]).exits(0);
    sim.p1(&["status"]).exits(0);
}

/// Each lesson as a user runs it: what it shows, and at which words of the stand-in it ends where that cannot go on.
#[test]
fn the_lessons_run_as_far_as_the_stand_in_goes() {
    const LESSONS: &[(&str, &[&str], Option<&str>)] = &[
        (
            "pod",
            &["pod/hello condition met", "pod \"hello\" deleted", "\"web\" successfully rolled out"],
            None,
        ),
        (
            "run",
            &["pod/once created", "runs here; once is a record", "pod \"once\" deleted"],
            Some("curl: ("),
        ),
        ("node", &["worker-2 | PRETTY_NAME=", "pod/look created"], Some("unrecognized condition")),
        ("balance", &["3 k3s stand-in: pod web-", "worker-2   Ready,SchedulingDisabled"], None),
        (
            "rollout",
            &["image: nginx:1.29-alpine", "image: nginx:1.28-alpine"],
            Some("knows `rollout status` only"),
        ),
        ("rbac", &["rolebinding.rbac.authorization.k8s.io/reader-reads-pods"], Some("unknown flag: --as")),
        ("rest", &["\"kubeletVersion\":", "\"replicas\":", "without a certificate: 401"], None),
        ("metrics", &["\"metrics-server\" successfully rolled out"], Some("unknown command \"top\"")),
        ("copies", &["lessons-f2 | deployment.apps \"web\" deleted", "is as it was kept: 3 nodes"], None),
        ("puppet-chef", &["'manifest_file': 'site.pp'", "'run_list': ['recipe[motd]']"], None),
    ];
    let sim = Sim::new(&spec(1, 2, ""));
    example(&sim, "lessons", 1, 2);
    let own = fs::read_to_string(sim.at("cluster.yaml")).unwrap();
    sim.spec(&own.replace("name: sim\n", "name: lessons\nengine: direct\n"));
    // Whether this host has a kubectl or not, it is the stand-in's.
    for (to, name) in [(env!("CARGO_BIN_EXE_p1"), "bin/p1"), ("../k3s", "bin/kubectl")] {
        std::os::unix::fs::symlink(to, sim.at(name)).unwrap();
    }
    sim.p1(&["up"]).exits(0);
    let readme =
        fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/examples/lessons/README.md")).unwrap();
    let here = fs::read_dir(sim.dir.path()).unwrap().flatten().map(|e| e.path());
    let here = here.filter(|p| p.extension().is_some_and(|e| e == "sh") && !p.ends_with("install.sh"));
    let mut scripts: Vec<String> = here.map(|p| p.file_stem().unwrap().to_string_lossy().into()).collect();
    for (name, shows, ends) in LESSONS {
        let said = sim.sh(&format!("./{name}.sh 2>&1 && echo lesson done || echo lesson ended"));
        println!("== {name}\n{said}");
        shows.iter().for_each(|word| assert!(said.contains(word), "{name}: `{word}` is not in\n{said}"));
        assert_eq!(said.ends_with("lesson done\n"), ends.is_none(), "{name}: {said}");
        assert!(ends.is_none_or(|word| said.contains(word)), "{name} ends elsewhere: {said}");
        let row = readme.lines().find(|l| l.starts_with(&format!("| [{name}.sh]"))).unwrap_or_default();
        assert_eq!(row.contains("| to its end"), ends.is_none(), "{name}: {row}");
        scripts.retain(|s| s != name);
    }
    assert_eq!(scripts, [""; 0], "lessons without a row in the table of this test");
    // After the reset nodes may have to report once more.
    sim.p1(&["up"]).exits(0);
    sim.p1(&["up", "--deep"]).exits(0).says(&["nothing to do"]);
}

/// Of the corpus of specs, those chosen for it come up and go, one after the other on one host.
#[test]
fn specs_of_the_corpus_come_up() {
    let sim = Sim::new("");
    sim.sh(concat!("cp -r '", env!("CARGO_MANIFEST_DIR"), "/tests/corpus/.' ."));
    let text = fs::read_to_string(sim.at("specs.yaml")).unwrap();
    let chosen: Vec<&str> = text.split("\n---\n").filter(|t| t.contains("\n# comes up\n")).collect();
    assert!(chosen.len() > 5);
    for text in chosen {
        let mut spec: serde_yaml::Value = serde_yaml::from_str(text).unwrap();
        let own: serde_yaml::Value = serde_yaml::from_str(&format!("{{{K3S}}}")).unwrap();
        let all = spec.as_mapping_mut().unwrap();
        let k3s = all.entry("k3s".into()).or_insert_with(|| serde_yaml::Value::Mapping(Default::default()));
        k3s.as_mapping_mut().unwrap().extend(own.as_mapping().unwrap().clone());
        all.insert("box".into(), serde_yaml::from_str("{path: fake.box}").unwrap());
        all.insert("provider".into(), "libvirt".into());
        all.insert("engine".into(), "direct".into());
        sim.spec(&serde_yaml::to_string(&spec).unwrap());
        println!("== {}", spec["name"].as_str().unwrap());
        sim.p1(&["up"]).exits(0);
        sim.p1(&["up", "--deep"]).exits(0).says(&["nothing to do"]);
        sim.p1(&["--yes", "destroy"]).exits(0);
    }
}

#[test]
fn a_cluster_is_proven_and_nothing_is_left() {
    let sim = Sim::new(&spec(1, 2, ""));
    shows(&sim, &["verify"], 1, &["has not been made yet"]);
    sim.p1(&["up"]).exits(0);
    let space = || objects(&sim, "ns").contains(&"p1-verify".to_owned());
    let text = shows(
        &sim,
        &["-o", "plain", "verify"],
        0,
        &["stand-in", "works: 3 nodes", "2 answered", "answered by"],
    );
    println!("{text}");
    assert!(!space());
    let json = sim.p1(&["-o", "json", "verify"]).exits(0).stdout();
    let last: Value = serde_json::from_str(json.lines().rev().nth(1).unwrap()).unwrap();
    assert_eq!((&last["event"], &last["success"]), (&"run_finished".into(), &true.into()));

    // One node alone; an image that cannot be pulled; then what the last one left outstanding.
    sim.p1(&["verify", "worker-1"]).exits(0);
    sim.node("server").fault("image-pull", "nowhere");
    let running = sim.start(&["verify", "--image", "nowhere/busybox"]);
    super::run::until("the pods wait", || {
        kubectl(&sim, "get pods -n p1-verify").contains("ImagePullBackOff")
    });
    // Ctrl-C, and it cleans up all the same.
    running.signal(nix::sys::signal::Signal::SIGINT);
    running.end().exits(130);
    assert!(!space());
    sim.node("server").heal();
    sim.p1(&["retry"]).exits(0);
    assert_eq!(sim.last().subject.as_deref(), Some("nowhere/busybox"));

    // A killed one leaves its namespace; the next takes it away.
    sim.node("server").fault("image-pull", "busybox");
    let running = sim.start(&["verify"]);
    super::run::until("the pods wait", || kubectl(&sim, "get pods -A").contains("ImagePullBackOff"));
    running.signal(nix::sys::signal::Signal::SIGKILL);
    running.end();
    assert!(space());
    sim.node("server").heal();
    sim.p1(&["verify"]).exits(0);
    assert!(!space());

    // An API that is silent for longer than one answer may take: it is asked again.
    sim.node("server").fault("image-pull", "busybox");
    let running = sim.start(&["verify"]);
    super::run::until("the pods wait", || kubectl(&sim, "get pods -A").contains("ImagePullBackOff"));
    sim.node("server").sh("kill -STOP $(systemctl show -p MainPID --value k3s)");
    super::run::until("a question has had no answer", || {
        sim.sh("cat .p1/sim/logs/*/cluster-pods.log").contains("did not answer within 10s")
    });
    sim.node("server").heal();
    sim.node("server").sh("kill -CONT $(systemctl show -p MainPID --value k3s)");
    running.end().exits(0);

    // A pod that crashes is not waited for: what it said itself is the cause, and the image is what to change.
    sim.node("server").fault("crash", "busybox");
    let begun = std::time::Instant::now();
    let words = ["its pods crash", "keeps crashing: stand-in fault crash: exiting with 1", "verify --image"];
    let said = shows(&sim, &["verify"], 1, &words);
    assert!(begun.elapsed().as_secs() < 60 && !said.contains("CrashLoopBackOff as"), "{said}");
    sim.node("server").heal();

    // Names that are not resolved, a k3s that is not active: told apart.
    sim.node("server").fault("image-pull", "coredns");
    let pods = objects(&sim, "pods -n kube-system -l k8s-app=kube-dns");
    kubectl(&sim, &format!("-n kube-system delete pod {}", pods.join(" ")));
    shows(&sim, &["verify"], 1, &["worker-1/dns", "dns does not answer", "CoreDNS"]);
    let outcomes = sim.last().outcomes;
    assert!(outcomes["worker-1/service"].passed() && outcomes["worker-1/network"].passed());
    assert!(matches!(outcomes["worker-1/dns"], Outcome::Failed(_)) && outcomes["cluster/clean"].passed());
    sim.node("server").heal();
    sim.node("worker-2").sh("systemctl stop k3s-agent");
    shows(&sim, &["verify"], 1, &["worker-2/healthy", "its unit k3s-agent is inactive"]);
    assert!(!space());
}

#[test]
fn what_a_cluster_has_is_asked_of_it_and_not_of_one_setting() {
    let k3s = |config: &str| spec(1, 0, &format!("k3s: {{{}, config: {{{config}}}}}\n", super::sim::K3S));
    // Nothing brings Traefik, though nothing disables it.
    let bare =
        "cluster-domain: corp.example, disable-helm-controller: true, disable: [coredns, metrics-server]";
    let sim = Sim::new(&k3s(bare));
    sim.p1(&["up"]).exits(0);
    let words = ["the cluster has no ingress controller", "the cluster has no Service for names"];
    shows(&sim, &["-o", "plain", "verify"], 0, &words);
    // Nothing gives Services addresses outside: the ingress is at the nodes.
    sim.spec(&k3s("cluster-domain: corp.example, disable: [servicelb]"));
    sim.p1(&["up"]).exits(0);
    shows(&sim, &["-o", "plain", "verify"], 0, &["192.168.56.110:30080 answered by server"]);
    // The files on this host are of another version than the spec's: status and plan say so.
    let other = k3s("cluster-domain: corp.example, disable: [servicelb]").replace("v1.34.1", "v1.34.7");
    sim.spec(&other);
    let words = ["is k3s v1.34.1+k3s1, not v1.34.7+k3s1 as the spec says", "`k3s.version: v1.34.1+k3s1`"];
    shows(&sim, &["status"], 1, &words);
    shows(&sim, &["plan"], 2, &words[..1]);
}

/// What is applied may bring the pods of a webhook that it has to pass itself: it is applied again until they answer, and
/// what such a webhook answers is an error at once.
#[test]
fn a_webhook_that_is_not_up_yet_is_waited_for() {
    let sim = Sim::new(&spec(1, 0, "retry: {attempts: 1}\n"));
    write(&sim, "web.yaml", WEB);
    let lacks = "Error from server (InternalError): Internal error occurred: failed calling webhook \"hook.example.org\": failed \
                 to call webhook: Post \"https://hook.default.svc:443/x\": dial tcp 10.43.0.9:443: connect: connection refused";
    let denied = "Error from server: error when creating \"STDIN\": admission webhook \"hook.example.org\" denied the request: no";
    // As the server's own kubectl would say it, so many times.
    let says = |times: u32, words: &str| {
        sim.node("server").sh(&format!(
            "mkdir -p /usr/local/sbin && printf '%s\\n' '{words}' >/root/words && echo {times} >/root/times && cat >/usr/local/sbin/k3s <<'X'\n\
             #!/bin/sh\nn=$(cat /root/times)\ncase \"$*\" in *' apply '*)\n\
             if [ \"$n\" -gt 0 ]; then echo $((n - 1)) >/root/times; cat >/dev/null; cat /root/words >&2; exit 1; fi ;;\nesac\n\
             exec /usr/local/bin/k3s \"$@\"\nX\nchmod 755 /usr/local/sbin/k3s"
        ));
    };
    sim.p1(&["up"]).exits(0);
    sim.spec(&spec(1, 0, "manifests: [web.yaml]\nretry: {attempts: 1}\n"));
    says(1, denied);
    shows(&sim, &["up"], 1, &["denied the request: no"]);
    says(3, lacks);
    sim.p1(&["up"]).exits(0);
    assert_eq!(sim.node("server").sh("cat /root/times").trim(), "0");
    assert_eq!(objects(&sim, "deployments"), ["web"]);
}

/// A chart that k3s' own controller installs is there when its job is done and its workloads run; what keeps them is told as
/// of any workload, by the log of the job where it is that.
#[test]
fn a_chart_is_waited_for_until_its_workloads_run() {
    let more = "manifests: [chart]\ntimeouts: {rollout: 20s}\nretry: {attempts: 1}\n";
    let sim = Sim::new(&spec(1, 0, "timeouts: {rollout: 20s}\n"));
    sim.p1(&["up"]).exits(0);
    // The controller's part, which the stand-in does not have.
    let job = "apiVersion: batch/v1\nkind: Job\nmetadata: {name: helm-install-web, namespace: kube-system}\nspec: {selector: {matchLabels: {job-name: helm-install-web}}, template: {metadata: \
               {labels: {job-name: helm-install-web}}, spec: {restartPolicy: OnFailure, containers: [{name: helm, image: klipper-helm:1}]}}}\n";
    let workload = "apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: web, namespace: kube-system, annotations: \
                    {meta.helm.sh/release-name: web}}\nspec: {selector: {matchLabels: {app: web}}, template: {metadata: {labels: \
                    {app: web}}, spec: {containers: [{name: web, image: charted:1}]}}}\n";
    let server = sim.node("server");
    let applies = |text: &str| server.sh(&format!("cat <<'X' | k3s kubectl apply -f -\n{text}X\n"));
    let kind = "apiVersion: apiextensions.k8s.io/v1\nkind: CustomResourceDefinition\nmetadata: {name: helmcharts.helm.cattle.io}\n\
                spec: {group: helm.cattle.io, scope: Namespaced, names: {plural: helmcharts, kind: HelmChart}, versions: [{name: v1, served: true, storage: true}]}\n";
    applies(kind);
    server.fault("crash", "klipper-helm");
    applies(job);
    write(
        &sim,
        "chart/web.yaml",
        "apiVersion: helm.cattle.io/v1\nkind: HelmChart\nmetadata: {name: web, namespace: kube-system}\nspec: {chart: web}\n",
    );
    sim.spec(&spec(1, 0, more));
    shows(&sim, &["up"], 1, &["HelmChart kube-system/web: ", "helm-install-web", "container helm"]);
    // It is not taken for done by the next one either.
    sim.p1(&["plan"]).exits(10);
    server.heal();
    server.fault("crash", "charted");
    applies(workload);
    shows(&sim, &["up"], 1, &["HelmChart kube-system/web: ", "container web"]);
    server.heal();
    sim.p1(&["up"]).exits(0);
    shows(&sim, &["up"], 0, &["nothing to do"]);
}

/// Without flannel no node becomes Ready before the user's network is there, which is applied as soon as the API
/// answers, while servers go on joining. If it never comes, that is one failure, and it says whose it is.
#[test]
fn a_network_of_the_users_own_is_there_before_nodes_are_ready() {
    let k3s = format!("k3s: {{{K3S}, cni: none}}\ntimeouts: {{node_ready: 20s}}\n");
    let sim = Sim::new(&spec(3, 1, &k3s));
    shows(&sim, &["validate"], 0, &["no pod network of its own", "when: api, wait: true"]);
    sim.spec(&spec(3, 1, &format!("{k3s}manifests: [web.yaml, {{path: cni/, when: api, wait: true}}]\n")));
    write(&sim, "web.yaml", WEB);
    let map = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: cni, namespace: kube-system}\ndata: {mtu: '1450'}\n";
    write(&sim, "cni/config.yaml", map);
    assert!(!shows(&sim, &["validate"], 0, &[]).contains("no pod network"));
    shows(
        &sim,
        &["up"],
        1,
        &[
            "no node has a network within 20s",
            "`flannel-backend: none` leaves it to `cni/`",
            "cni plugin not initialized",
        ],
    );
    let record = sim.last();
    let failed = record.outcomes.values().filter(|o| matches!(o, Outcome::Failed(_))).count();
    assert_eq!(failed, 1, "{:?}", record.outcomes);
    for step in ["server-2/start", "server-3/start", "worker/start"] {
        assert!(record.passed(step), "{step}: {:?}", record.outcomes);
    }

    let set = "apiVersion: apps/v1\nkind: DaemonSet\nmetadata: {name: net, namespace: kube-system}\nspec: {selector: {matchLabels: \
        {app: net}}, template: {metadata: {labels: {app: net}}, spec: {hostNetwork: true, containers: [{name: net, image: net:1}]}}}\n";
    write(&sim, "cni/net.yaml", set);
    shows(&sim, &["-v", "plan"], 10, &["+ cluster/foundations"]);
    sim.p1(&["up"]).exits(0);
    let record = sim.last();
    let at = |start: bool, step: &str| {
        let is = |k: &Kind| match k {
            Kind::StepStarted { step: s, .. } => start && s == step,
            Kind::StepFinished { step: s, .. } => !start && s == step,
            _ => false,
        };
        record.events.iter().position(|e| is(&e.kind)).unwrap_or_else(|| panic!("{step}"))
    };
    assert!(at(false, "cluster/foundations") < at(true, "server-1/ready"));
    assert!(at(false, "worker/ready") < at(true, "cluster/manifests"));
    shows(&sim, &["up"], 0, &["nothing to do"]);
    // Gone: it is put back before anything waits for Ready.
    sim.node("server-1").sh("k3s kubectl -n kube-system delete configmap cni");
    shows(&sim, &["-v", "plan"], 10, &["+ cluster/foundations", "ConfigMap kube-system/cni is not there"]);
    sim.p1(&["up"]).exits(0);
}
