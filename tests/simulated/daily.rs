//! What one does with a cluster every day: files to and from nodes, ports, what was done.

use std::fs;
use std::io::Write;
use std::path::Path;
use std::process::Stdio;

use serde_json::Value;

use super::run::{Running, until};
use super::sim::{Sim, spec};

#[test]
fn files_ports_and_what_was_done() {
    let sim = Sim::new(&spec(1, 2, ""));
    sim.node("worker-2").fault("install-fail", "enable");
    sim.p1(&["up"]).exits(1);
    sim.node("worker-2").heal();
    sim.p1(&["retry"]).exits(0);
    what_was_done(&sim);
    files_go_and_come(&sim);
    ports_lead_there(&sim);
}

fn objects(out: &str) -> Vec<Value> {
    out.lines().map(|line| serde_json::from_str(line).unwrap_or_else(|e| panic!("{e}: {line}"))).collect()
}

fn what_was_done(sim: &Sim) {
    let all = objects(&sim.p1(&["-o", "json", "history"]).exits(0).stdout());
    let told: Vec<_> = all.iter().map(|o| (o["verb"].as_str(), o["outcome"].as_str())).collect();
    assert_eq!(
        told,
        [(Some("up"), Some("failed")), (Some("up"), Some("done")), (Some("history"), None)],
        "{all:?}"
    );
    assert_eq!(all[0]["failed"][0]["step"], "worker-2/install");
    assert_eq!(all[1]["retry_of"], all[0]["run"]);
    // The last run did all it had to: of the one before the log is still there.
    let run = all[0]["run"].as_str().unwrap();
    let log = sim.p1(&["logs", "--run", run]).exits(0).stdout();
    assert!(log.contains("stand-in fault install-fail=enable"), "{log}");
    sim.p1(&["logs"]).exits(0).says(&["no step of the last run"]);
    sim.p1(&["history"]).exits(0).says(&[&format!("logs --run {run}")]);
}

fn files_go_and_come(sim: &Sim) {
    let here = |name: &str| sim.at(name);
    let read = |name: &str| fs::read(here(name)).unwrap_or_else(|e| panic!("{name}: {e}"));
    fs::create_dir_all(here("site/css")).unwrap();
    let large: Vec<u8> = (0..3_000_000u32).map(|i| (i % 251) as u8).collect();
    fs::write(here("site/page.html"), &large).unwrap();
    fs::write(here("site/css/it's a style"), "x").unwrap();
    let on = |script: &str| sim.node("worker-1").sh(script);
    // Under that name, into a folder that is there, and a folder into one that is there, file by file.
    sim.p1(&["cp", "site/page.html", "worker-1:other.html"]).exits(0).says(&["copied 1 file, 2.9 MiB"]);
    sim.p1(&["cp", "site", "worker-1:/tmp/"]).exits(0).says(&["2 files", "/tmp/site"]);
    on(
        "cmp ~vagrant/other.html /tmp/site/page.html; echo mine >/tmp/site/css/mine; echo old >/tmp/site/page.html",
    );
    sim.p1(&["cp", "./site", "worker-1:/tmp"]).exits(0);
    assert_eq!(
        on("cd /tmp/site; cat css/mine css/it*; stat -c %U page.html; wc -c <page.html"),
        "mine\nxvagrant\n3000000\n"
    );
    sim.p1(&["cp", "worker-1:/tmp/site", "back"]).exits(0);
    assert_eq!(read("back/page.html"), large);
    assert_eq!([read("back/css/mine"), read("back/css/it's a style")], [b"mine\n".to_vec(), b"x".to_vec()]);
    let told = objects(&sim.p1(&["-o", "json", "cp", "worker-1:other.html", "."]).exits(0).stdout());
    assert!(
        told[0]["files"] == 1 && told[0]["bytes"] == 3_000_000 && read("other.html") == large,
        "{told:?}"
    );
    // Whose it is, is asked for.
    sim.p1(&["cp", "worker-1:/etc/shadow", "."]).exits(1).says(&["permission denied", "--root"]);
    sim.p1(&["cp", "--root", "worker-1:/etc/shadow", "."]).exits(0);
    sim.p1(&["cp", "site", "worker-1:/etc/site"]).exits(1).says(&["/etc cannot be written to", "--root"]);
    sim.p1(&["cp", "--root", "site", "worker-1:/etc/site"]).exits(0);
    assert_eq!(on("stat -c %U:%G /etc/site/page.html").trim(), "root:root");
    for (args, why) in [
        (["site", "worker-1:/none/site"], "there is no folder /none"),
        (["worker-1:none", "."], "there is no none"),
        (["site", "worker-1:other.html"], "is a file, and what is copied is a folder"),
    ] {
        sim.p1(&["cp", args[0], args[1]]).exits(1).says(&[why]);
    }
    sim.p1(&["cp", "site", "worker-9:/tmp/"]).exits(2).says(&["no node `worker-9`"]);
    sim.p1(&["cp", "none", "worker-1:/tmp/"]).exits(2).says(&["none"]);
    // To a role at once, from a folder below the spec's.
    let done = sim.p1(&["-C", "site/css", "cp", "it's a style", "role:worker:/tmp/style"]).exits(0);
    done.says(&["note: the spec is ", "worker-1: copied", "worker-2: copied"]);
    assert_eq!(sim.node("worker-2").sh("cat /tmp/style"), "x");
    sim.p1(&["cp", "role:worker:/tmp/style", "."]).exits(2).says(&["is 2 nodes", "worker-1, worker-2"]);
    assert!(!here("site/css/.p1").exists());
    // Whichever end is lost, nothing looks whole, and nothing is left of it.
    let files = || on("ls -A /tmp ~vagrant") + &names(sim.dir.path());
    let before = files();
    sim.sh("truncate -s 3G sparse");
    let growing = |place: &str| {
        let running = sim.start(&["cp", "sparse", place]);
        until("it grows", || !on("find /tmp -path '*/.big.p1-*/new' -size +0").is_empty());
        running
    };
    let running = growing("worker-1:/tmp/big");
    running.signal(nix::sys::signal::Signal::SIGINT);
    running.end().exits(130);
    until("the node has taken it away", || on("find /tmp -name '.big*'").is_empty());
    let running = growing("worker-1:/tmp/big");
    on("pkill -9 -x tar");
    running.end().exits(1);
    until("the node has taken it away", || on("find /tmp -name '*big*'").is_empty());
    fs::remove_file(here("sparse")).unwrap();
    on("truncate -s 3G ~vagrant/sparse");
    let running = sim.start(&["cp", "worker-1:sparse", "got"]);
    until("it comes", || !on("pgrep -x tar || true").is_empty());
    assert!(names(sim.dir.path()).contains(".got.p1-"));
    on("pkill -9 -x tar");
    running.end().exits(1);
    on("rm ~vagrant/sparse");
    assert_eq!(files(), before);
}

fn names(dir: &Path) -> String {
    let mut all: Vec<_> =
        fs::read_dir(dir).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    all.sort();
    all.join("\n")
}

fn ports_lead_there(sim: &Sim) {
    // What listens, at an address of the node's own or at one that stands for a Service's or a pod's.
    let serve = |node: &str, address: &str| {
        let at =
            format!("ip addr add {address}/32 dev lo 2>/dev/null || true; systemd-run --quiet --collect");
        let answer =
            format!("socat TCP-LISTEN:8000,bind={address},reuseaddr,fork SYSTEM:\"cat; echo {address}\"");
        sim.node(node).sh(&format!("{at} --unit=serve-{} {answer}", address.replace('.', "-")));
    };
    let web = "apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: web}\nspec:\n  selector: {matchLabels: {app: web}}\n  \
               template: {metadata: {labels: {app: web}}, spec: {containers: [{name: c, image: x}]}}\n---\n\
               apiVersion: v1\nkind: Service\nmetadata: {name: web}\nspec: {selector: {app: web}, ports: [{name: http, \
               port: 8000}]}";
    let kubectl = |line: &str| sim.node("server").sh(&format!("k3s kubectl {line}"));
    kubectl(&format!("apply -f - <<'X'\n{web}\nX\n"));
    let get =
        |what: &str| -> Value { serde_json::from_str(&kubectl(&format!("get {what} -o json"))).unwrap() };
    let service = get("service web")["spec"]["clusterIP"].as_str().unwrap().to_owned();
    let pod = || get("pods").pointer("/items/0").cloned().unwrap_or_default();
    until("the pod has an address", || pod()["status"]["podIP"].is_string());
    let pod = pod();
    let of = |part: &str, key: &str| pod[part][key].as_str().unwrap().to_owned();
    let (pod, pod_ip, on) = (of("metadata", "name"), of("status", "podIP"), of("spec", "nodeName"));
    serve("worker-1", "127.0.0.1");
    for node in ["server", "worker-1", "worker-2"] {
        serve(node, &service);
    }
    serve(&on, &pod_ip);
    for (target, port, answer) in [
        ("worker-1", ":8000", &"127.0.0.1".to_owned()),
        ("web", "18000:http", &service),
        ("pod/PODS", ":8000", &pod_ip),
    ] {
        let target = target.replace("PODS", &pod);
        let running = sim.start(&["-o", "json", "forward", &target, port]);
        until("it says where", || running.stdout().ends_with('\n'));
        let address = objects(&running.stdout())[0]["address"].as_str().unwrap().to_owned();
        let ask = || sim.sh(&format!("printf hello | timeout 5 socat -t3 - TCP:{address} || true"));
        assert_eq!(ask(), format!("hello{answer}\n"), "{target}");
        if target == "worker-1" {
            // Its connection is lost, and it has another one.
            sim.node("worker-1").sh("pkill -f 'sshd.*: (root|vagrant)' || true");
            until("it leads there again", || ask() == format!("hello{answer}\n"));
            sim.p1(&["forward", "worker-1", &format!("{}:8000", address.split(':').nth(1).unwrap())])
                .exits(2)
                .says(&["is in use", ":8000"]);
        }
        running.signal(nix::sys::signal::Signal::SIGINT);
        running.end().exits(0);
    }
    sim.p1(&["forward", "web", "81"]).exits(2).says(&["has no port 81", "8000 (http)"]);
    sim.p1(&["forward", "shop", "80"]).exits(2).says(&["no node, Service or pod `shop`", "web"]);
    sim.p1(&["forward", "deployment/web", "80"]).exits(2).says(&["service/web"]);
}

/// Everything else is then done by a later `up`, or by hand.
#[test]
fn machines_alone_are_a_beginning() {
    let sim = Sim::new(&spec(1, 1, ""));
    let said = sim.p1(&["up", "--only", "machines"]).exits(0);
    said.says(&["cluster `sim` has its machines: 2 nodes", "`p1 up` goes on from here"]);
    assert_eq!(
        sim.p1(&["exec", "worker", "--", "cat /proc/sys/kernel/hostname"]).exits(0).stdout(),
        "worker | worker\n"
    );
    sim.sh("ssh -F .p1/sim/ssh_config server true");
    for node in ["server", "worker"] {
        assert_eq!(sim.node(node).sh("ls /usr/local/bin").trim(), "", "{node}");
    }
    sim.p1(&["up", "--only", "machines"]).exits(0).says(&["nothing to do"]);
    assert!(sim.p1(&["history"]).exits(0).stdout().contains("up --only machines"));
    // A machine whose plug was pulled is a machine again, and no more.
    sim.node("worker").power_off();
    sim.p1(&["up", "--only", "machines", "worker"]).exits(0);
    assert_eq!(sim.node("worker").state(), "running");
    sim.p1(&["up"]).exits(0).says(&["cluster `sim` is up"]);
    sim.p1(&["status"]).exits(0);
    what_was_typed_before_is_no_answer(&sim);
    status_is_watched(&sim);
}

fn what_was_typed_before_is_no_answer(sim: &Sim) {
    // script(1) hands on what it reads at once, long before p1 has looked and asks.
    let mut command = sim.command("/usr/bin/script");
    command
        .args(["-qefc", &format!("{} destroy", env!("CARGO_BIN_EXE_p1")), "/dev/null"])
        .stdin(Stdio::piped());
    let mut running = Running::start(command, sim.dir.path());
    let mut keys = running.child.stdin.take().unwrap();
    keys.write_all(b"y\ny\n").unwrap();
    until("it asks", || running.stdout().contains("[y/N]"));
    keys.write_all(b"n\n").unwrap();
    let done = running.end().exits(2);
    let said = done.stdout();
    assert!(said.contains("This destroys the cluster `sim`") && said.contains("nothing was done"), "{said}");
    assert!(!said.contains("error"), "a no is none: {said}");
    assert_eq!(sim.node("worker").state(), "running");
    // Without a terminal it is said what would have been asked.
    sim.p1(&["destroy"]).exits(2).says(&[
        "there is no terminal to confirm on",
        "This destroys the cluster `sim`",
        "--yes",
    ]);
}

fn status_is_watched(sim: &Sim) {
    let running = sim.start(&["-o", "json", "status", "--watch=100ms"]);
    let seen = |state: &str| {
        let all = running.stdout();
        let whole = all.lines().rev().filter_map(|line| serde_json::from_str::<Value>(line).ok());
        whole.filter(|o| o["node"] == "worker").take(1).any(|o| o["machine"] == state)
    };
    until("it runs", || seen("running"));
    sim.node("worker").power_off();
    until("it is off", || seen("off"));
    sim.node("worker").power_on();
    until("it runs again", || seen("running"));
    running.signal(nix::sys::signal::Signal::SIGINT);
    running.end().exits(0);
}

/// The picture in README.md is of a session as p1 speaks now: drawn again it has the same words, figures apart.
#[test]
fn the_picture_in_the_readme_has_the_words_of_p1() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let dir = tempfile::tempdir().unwrap();
    let drawn = dir.path().join("picture.svg");
    let mut command = std::process::Command::new(root.join("docs/picture"));
    let out = command.arg(&drawn).env("P1", env!("CARGO_BIN_EXE_p1")).output().unwrap();
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    let words = |path: &Path| -> Vec<String> {
        let text = fs::read_to_string(path).unwrap();
        let figures = regex::Regex::new("[0-9][0-9.]*").unwrap();
        let lines = text.lines().filter(|line| line.starts_with("<text"));
        let plain =
            lines.map(|line| regex::Regex::new("<[^>]*>").unwrap().replace_all(line, " ").into_owned());
        let words = plain.flat_map(|l| l.split_whitespace().map(str::to_owned).collect::<Vec<_>>());
        words.map(|word| figures.replace_all(&word, "#").into_owned()).collect()
    };
    let (now, then) = (words(&drawn), words(&root.join("docs/picture.svg")));
    assert!(now.len() > 60, "{now:?}");
    assert_eq!(now, then, "run docs/picture, and look at what changed");
}
