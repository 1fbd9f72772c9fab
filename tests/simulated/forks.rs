//! All clusters of this user, wherever their folders lie.

use nix::sys::signal::Signal;
use serde_json::Value;

use super::run::{Done, Running, until};
use super::sim::{Sim, spec};

/// What `p1 list` says, an object for each cluster.
fn listed(sim: &Sim) -> Vec<Value> {
    let out = sim.p1(&["-o", "json", "list"]).exits(0).stdout();
    let all = out.lines().map(|l| serde_json::from_str::<Value>(l).unwrap());
    all.filter(|l| l["cluster"].is_string()).collect()
}

#[test]
fn clusters_are_listed_and_worked_on_from_anywhere() {
    let sim = Sim::new(&spec(1, 1, "engine: direct\n"));
    sim.p1(&["list"]).exits(0).says(&["has no cluster on this host"]);
    sim.p1(&["-C", "gone", "up"]).exits(2).says(&["cannot go to the folder gone", "No such file"]);
    let other =
        spec(1, 0, "engine: direct\n").replace("name: sim", "name: far").replace("56.0/21", "64.0/21");
    std::fs::create_dir_all(sim.at("a b/c")).unwrap();
    std::fs::write(sim.at("a b/c/far.yaml"), other.replace("192.168.56.", "192.168.64.")).unwrap();
    for file in ["fake.box", "k3s", "install.sh", "images.tar"] {
        std::os::unix::fs::symlink(sim.at(file), sim.at("a b/c").join(file)).unwrap();
    }
    // Each folder is entered from the one before, and so is the spec looked for; what to do next can be pasted.
    let there =
        |args: &[&str]| -> Done { sim.p1(&[&["-C", "a b", "-C", "c", "-f", "far.yaml"], args].concat()) };
    there(&["exec", "--", "true"]).exits(1).says(&["p1 -C 'a b' -C c -f far.yaml up"]);
    sim.p1(&["up"]).exits(0);
    there(&["up"]).exits(0);
    there(&["stop"]).exits(0);
    assert!(sim.at("a b/c/.p1/far").is_dir());
    let all = listed(&sim);
    let told = |i: usize| (all[i]["cluster"].as_str().unwrap(), all[i]["machines"].to_string());
    assert_eq!(told(0), ("far", r#"{"server":"off"}"#.to_owned()));
    assert_eq!(told(1), ("sim", r#"{"server":"running","worker":"running"}"#.to_owned()));
    assert_eq!((all.len(), all[1]["engine"].as_str()), (2, Some("direct")));
    assert_eq!(all[0]["folder"].as_str(), sim.at("a b/c").to_str());
    let says = |words: &[&str]| {
        let text = sim.p1(&["list"]).exits(0).stdout();
        words.iter().for_each(|word| assert!(text.contains(word), "`{word}` is not in\n{text}"));
    };
    says(&["far", "server off", "libvirt (direct)", "a b/c"]);
    // It needs nobody.
    sim.libvirt_is_deaf(true);
    says(&["not known", "libvirt does not answer", "a b/c"]);
    sim.libvirt_is_deaf(false);

    there(&["--yes", "destroy"]).exits(0);
    std::fs::remove_dir_all(sim.at(".p1")).unwrap();
    sim.p1(&["list"]).exits(0).says(&["the folder of the cluster `sim` is gone"]);
    sim.p1(&["list"]).exits(0).says(&["has no cluster on this host"]);
}

/// What a node of a cluster answers, by p1.
fn on(sim: &Sim, folder: &str, node: &str, line: &str) -> String {
    let out = sim.p1(&["-C", folder, "exec", "--root", node, "--", line]).exits(0).stdout();
    let lines = out.lines().map(|l| l.split_once("| ").map_or(l, |(_, text)| text));
    lines.collect::<Vec<_>>().join("\n").trim().to_owned()
}

/// Volumes, machines and networks of libvirt's that are p1's, and the files of forks and moments.
fn left(sim: &Sim) -> String {
    let all = sim.sh(
        "virsh vol-list default; virsh list --all --name; virsh net-list --all --name; ls disks; ip -br link; \
         ls -A home/.local/share/p1/forks home/.local/share/p1/kept home/.local/share/p1/clusters",
    );
    let ours = all
        .lines()
        .filter(|l| ["p1-", "p1f", "gone-", "part-", ".json", "sim"].iter().any(|w| l.contains(w)));
    ours.collect::<Vec<_>>().join("\n")
}

#[test]
fn forks_run_beside_their_original_and_do_not_see_each_other() {
    let sim = Sim::new(&spec(1, 1, "engine: direct\n"));
    sim.p1(&["fork"]).exits(1).says(&["neither runs nor is kept", "p1 up --keep"]);
    sim.p1(&["up"]).exits(0);
    for node in ["server", "worker"] {
        sim.node(node).sh("echo then >/root/mark");
    }
    sim.p1(&["fork", "--name", "Bad_Name"]).exits(2).says(&["cannot be a fork's name"]);
    let one = sim.p1(&["fork"]).exits(0).says(&["cluster `sim-f1` is up", "p1 -C "]);
    let folder = |name: &str| sim.at("home/.local/share/p1/forks").join(name).display().to_string();
    let (a, b) = (folder("sim-f1"), folder("two"));
    assert!(one.stderr().contains(&a), "{}", one.stderr());
    sim.p1(&["fork", "--name", "two"]).exits(0);
    sim.p1(&["fork", "--name", "two"]).exits(2).says(&["a cluster `two` is there already"]);
    let all: Vec<(String, String)> = listed(&sim)
        .iter()
        .map(|l| (l["cluster"].as_str().unwrap().to_owned(), l["fork_of"].as_str().unwrap_or("-").to_owned()))
        .collect();
    let pair = |a: &str, b: &str| (a.to_owned(), b.to_owned());
    assert_eq!(all, [pair("sim", "-"), pair("sim-f1", "sim"), pair("two", "sim")]);

    // Each has what was there then, and nothing of what the others write since.
    for (folder, word) in [(".", "original"), (&a, "one"), (&b, "two")] {
        for node in ["server", "worker"] {
            assert_eq!(on(&sim, folder, node, "cat /root/mark"), "then", "{folder}");
            on(&sim, folder, node, &format!("echo {word} >/root/mark"));
        }
    }
    for (folder, word) in [(".", "original"), (&a, "one"), (&b, "two")] {
        for node in ["server", "worker"] {
            assert_eq!(
                on(&sim, folder, node, "cat /root/mark; hostname"),
                format!("{word}\n{node}"),
                "{folder}"
            );
        }
        let addresses = on(&sim, folder, "server", "ip -4 -br addr show dev eth0");
        assert!(addresses.contains("192.168.56.110/"), "{folder}: {addresses}");
        sim.p1(&["-C", folder, "status"]).exits(0);
        sim.p1(&["-C", folder, "up"]).exits(0).says(&["nothing to do"]);
    }
    // Its API is reached at a port of this host's own, with what the original's certificate says.
    let kubeconfig = |folder: &str| {
        let path = sim.p1(&["-C", folder, "kubeconfig"]).exits(0).stdout();
        std::fs::read_to_string(path.trim()).unwrap()
    };
    let server = |folder: &str| {
        let text = kubeconfig(folder);
        text.lines().find_map(|l| l.trim().strip_prefix("server: ").map(str::to_owned)).unwrap()
    };
    assert!(server(".").contains("192.168.56.110:6443") && server(&a).starts_with("https://127.0.0.1:"));
    assert_ne!(server(&a), server(&b));
    let asks = |folder: &str| sim.sh(&format!("curl -sk --max-time 10 {}/cacerts", server(folder)));
    assert!(asks(&a).contains("BEGIN CERTIFICATE") && asks(&a) == asks(&b));

    // Every verb works there.
    for verb in ["stop", "start", "verify"] {
        sim.p1(&["-C", &a, verb]).exits(0);
    }
    assert_eq!(on(&sim, &a, "worker", "cat /root/mark; hostname"), "one\nworker");
    assert!(asks(&a).contains("BEGIN CERTIFICATE"));
    sim.p1(&["-C", &a, "snapshot", "save", "x"]).exits(0);
    sim.p1(&["-C", &a, "suspend"]).exits(0);
    sim.p1(&["-C", &a, "resume"]).exits(0);
    let modes = sim.sh("find home/.local/share/p1/forks -type f -not -path '*/logs/*' -exec stat -c '%a %n' {} + | grep -v ^600 || :");
    assert!(
        !modes.contains("token") && !modes.contains("kubeconfig") && !modes.contains("id_ed25519\n"),
        "{modes}"
    );
    // A fork of a fork.
    sim.p1(&["-C", &a, "fork", "--name", "deep"]).exits(0);
    let deep = folder("deep");
    assert_eq!(on(&sim, &deep, "server", "cat /root/mark"), "one");

    // They go in any order, the original among them, and nothing is left.
    sim.p1(&["-C", &a, "--yes", "destroy"]).exits(0);
    sim.p1(&["--yes", "destroy"]).exits(0);
    sim.p1(&["-C", &deep, "status"]).exits(0);
    assert_eq!(on(&sim, &b, "server", "cat /root/mark"), "two");
    sim.p1(&["-C", &deep, "--yes", "destroy"]).exits(0);
    sim.p1(&["-C", &b, "--yes", "destroy"]).exits(0);
    assert_eq!(left(&sim), "");
    // Its forwarder ends with a fork; other labs have theirs.
    let own = sim.at("home").display().to_string();
    assert!(!sim.sh("ps -eo args").lines().any(|l| l.contains(&own) && l.contains("--forward")));
}

#[test]
fn a_command_runs_for_each_of_several_forks_which_go_with_it() {
    let sim = Sim::new(&spec(1, 0, "engine: direct\n"));
    sim.p1(&["up", "--keep"]).exits(0);
    // Also without a word of which fork it is.
    let line = format!(
        "echo $P1_FORK; grep -c 127.0.0.1 $KUBECONFIG; {} exec --root server -- hostname; case $P1_FORK in *f2) exit 7;; esac",
        env!("CARGO_BIN_EXE_p1")
    );
    let done = sim.p1(&["fork", "-n", "3", "--", "sh", "-c", &line]).exits(7);
    let out = done.stdout();
    for name in ["sim-f1", "sim-f2", "sim-f3"] {
        let own: Vec<&str> = out.lines().filter_map(|l| l.strip_prefix(name)?.strip_prefix(" | ")).collect();
        assert!(own[0].ends_with(name) && own[1] == "1" && own[2].contains("server"), "{out}");
    }
    done.says(&["sim-f2: exit code 7"]);
    // From what is kept, where nothing of it is there.
    sim.p1(&["--yes", "destroy"]).exits(0);
    sim.p1(&["fork", "--", "true"]).exits(0);
    assert_eq!(listed(&sim).len(), 0);
    // As whom the memory is described is up to who was made from it last, and keeps nobody from it.
    sim.p1(&["up"]).exits(0).says(&["is as it was kept"]);
    sim.p1(&["fork", "--kept", "--", "true"]).exits(0);
    sim.p1(&["--yes", "reset"]).exits(0);
    sim.p1(&["--yes", "destroy"]).exits(0);
    assert_eq!(sim.sh("virsh vol-list default | grep -c ' p1-kept-'").trim(), "2", "{}", left(&sim));

    // One that was made before its nodes were looked at for it is refused before anything is made.
    let moment = sim.sh("ls -d home/.local/share/p1/kept/*/moment.json").trim().to_owned();
    let text = std::fs::read_to_string(sim.at(&moment))
        .unwrap()
        .replace("\"reachable\": true", "\"reachable\": false");
    std::fs::write(sim.at(&moment), text).unwrap();
    sim.p1(&["fork"]).exits(1).says(&["lack what a fork is reached by", "p1 box build"]);
    assert_eq!(listed(&sim).len(), 0);
}

#[test]
fn forks_for_a_command_go_with_it_also_where_p1_is_interrupted_or_killed() {
    let sim = Sim::new(&spec(1, 0, "engine: direct\n"));
    sim.p1(&["up"]).exits(0);
    let began = sim.at("began");
    let line = format!("echo up >>{}; exec sleep 60", began.display());
    let struck = |signal: Signal| {
        let _ = std::fs::remove_file(&began);
        let mut command = sim.command(env!("CARGO_BIN_EXE_p1"));
        command.args(["fork", "-n", "2", "--", "sh", "-c", &line]);
        let p1 = Running::start(command, sim.dir.path());
        let both = || std::fs::read_to_string(&began).is_ok_and(|text| text.lines().count() == 2);
        until("both commands run", both);
        assert_eq!(listed(&sim).len(), 3);
        p1.signal(signal);
        p1.end()
    };
    struck(Signal::SIGINT).exits(130);
    assert_eq!(listed(&sim).len(), 1);
    struck(Signal::SIGKILL);
    // They are seen, and go before others are made.
    assert_eq!(listed(&sim).len(), 3);
    sim.p1(&["fork", "--name", "x"]).exits(0).says(&["removing the fork `sim-f1`, which a killed p1 left"]);
    assert_eq!(listed(&sim).len(), 2);
}
