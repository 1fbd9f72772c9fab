//! The same cluster again: machines whose memory is put on disk and back.

use super::run::began;
use super::sim::{Sim, spec};

/// What is gone when a machine is started again.
fn mark(sim: &Sim, word: &str) {
    for node in ["server", "worker"] {
        sim.node(node).sh(&format!("echo {word} >/run/mark"));
    }
}

fn marks(sim: &Sim) -> Vec<String> {
    ["server", "worker"]
        .map(|node| sim.node(node).sh("cat /run/mark 2>/dev/null || :").trim().to_owned())
        .into()
}

fn states(sim: &Sim) -> [String; 2] {
    ["server", "worker"].map(|node| sim.node(node).state())
}

/// The digest under which a cluster is kept.
fn kept(sim: &Sim) -> Vec<String> {
    let out = sim.p1(&["-o", "json", "kept", "list"]).exits(0).stdout();
    let lines = out.lines().map(|l| serde_json::from_str::<serde_json::Value>(l).unwrap());
    lines.filter_map(|l| l["kept"].as_str().map(str::to_owned)).collect()
}

/// Volumes of kept machines.
fn volumes(sim: &Sim) -> usize {
    sim.sh("virsh vol-list default").matches(" p1-kept-").count()
}

fn write(sim: &Sim, word: &str) {
    for node in ["server", "worker"] {
        sim.node(node).sh(&format!("echo {word} >/root/mark"));
    }
}

fn written(sim: &Sim) -> [String; 2] {
    ["server", "worker"].map(|node| sim.node(node).sh("cat /root/mark 2>/dev/null || :").trim().to_owned())
}

/// An `up` changes nothing. It may wait for a heartbeat: kubelets answer before they have reported.
fn is_as_it_should_be(sim: &Sim) {
    sim.p1(&["up"]).exits(0);
    let begun = began(&sim.last());
    assert!(begun.iter().all(|step| step.ends_with("/ready")), "{begun:?}");
}

#[test]
fn a_kept_cluster_comes_again_from_nothing() {
    let sim = Sim::new(&spec(1, 1, "engine: direct\n"));
    sim.p1(&["kept", "list"]).exits(0).says(&["no cluster is kept"]);
    sim.p1(&["up"]).exits(0);
    write(&sim, "then");
    sim.p1(&["snapshot", "save", "before"]).exits(0);

    // What is broken on purpose is not kept.
    sim.p1(&["fault", "slow-disk", "worker", "--for", "10m"]).exits(0);
    sim.p1(&["up", "--keep"]).says(&["not kept", "`worker` is under `slow-disk"]);
    assert_eq!((kept(&sim).len(), volumes(&sim)), (0, 0));
    sim.p1(&["fault", "heal"]).exits(0);

    // One that fails before it comes to that keeps the cluster when it has been gone on with.
    sim.p1(&["stop", "worker"]).exits(0);
    sim.node("worker").vm_fault("fail-start=no memory");
    sim.p1(&["up", "--keep"]).exits(1).says(&["no memory"]);
    sim.node("worker").vm_fault("");
    sim.p1(&["retry"]).exits(0).says(&["is kept"]);
    let key = kept(&sim).remove(0);
    sim.p1(&["kept", "remove", &key]).exits(0);

    // A disk that is full leaves what was there.
    sim.node("worker").vm_fault("fail-copy=No space left on device");
    sim.p1(&["up", "--keep"]).exits(1).says(&["No space left on device", "p1 retry"]);
    assert_eq!(
        (states(&sim), kept(&sim).len(), volumes(&sim)),
        (["running", "running"].map(String::from), 0, 0)
    );
    sim.node("worker").vm_fault("");
    sim.p1(&["retry"]).exits(0).says(&["is kept"]);
    let key = kept(&sim).remove(0);
    assert_eq!(volumes(&sim), 4);
    // Its secrets are for this user alone, and nothing of it is kept twice.
    let modes = sim.sh("find home/.local/share/p1/kept -type f -exec stat -c %a {} + | sort -u");
    assert_eq!(modes.trim(), "600");
    sim.p1(&["up", "--keep"]).exits(0);
    assert_eq!((kept(&sim), volumes(&sim)), (vec![key.clone()], 4));
    // The machine is as it was, its snapshots too.
    assert!(sim.p1(&["snapshot", "list"]).exits(0).stdout().contains("before"));
    write(&sim, "now");

    let id = |node: &str| {
        std::fs::read_to_string(sim.state().join(format!(".vagrant/machines/{node}/libvirt/id")))
    };
    let ids = ["server", "worker"].map(|node| id(node).unwrap());
    sim.p1(&["--yes", "destroy"]).exits(0).says(&["it is kept as of", &format!("p1 kept remove {key}")]);
    assert!(!sim.state().exists());
    let plan = sim.p1(&["-v", "plan"]).exits(10).says(&["is kept as of", "`up` restores it"]).stdout();
    assert!(plan.contains("+ cluster/reset") && plan.contains("+ worker/ready"), "{plan}");
    assert!(!sim.state().exists());
    sim.p1(&["up"]).exits(0).says(&["is restored", "is as it was kept"]);
    assert_eq!(
        (written(&sim), ["server", "worker"].map(|node| id(node).unwrap())),
        (["then", "then"].map(String::from), ids)
    );
    is_as_it_should_be(&sim);
    // Back to it in place; snapshots that would be lost are named.
    write(&sim, "now");
    sim.p1(&["snapshot", "save", "later"]).exits(0);
    sim.p1(&["--yes", "reset"]).exits(1).says(&["would be lost: later", "p1 snapshot delete later"]);
    sim.p1(&["--yes", "snapshot", "delete", "later"]).exits(0);
    sim.p1(&["reset"]).exits(2).says(&["there is no terminal to confirm on"]);
    assert_eq!(written(&sim), ["now", "now"]);
    // One that fails keeps other verbs away from machines of different moments, and `up` goes on with it.
    sim.node("worker").vm_fault("fail-restore=no memory");
    sim.p1(&["--yes", "reset"]).exits(1).says(&["no memory"]);
    sim.p1(&["start"]).exits(1).says(&["`p1 reset", "was not finished", "`p1 up` puts all of them back"]);
    sim.node("worker").vm_fault("");
    sim.p1(&["up"]).exits(0).says(&["is as it was kept"]);
    assert_eq!(written(&sim), ["then", "then"]);
    // Vagrant takes it over.
    sim.spec(&spec(1, 1, "engine: vagrant\n"));
    is_as_it_should_be(&sim);
    sim.p1(&["stop"]).exits(0);
    sim.p1(&["start"]).exits(0);

    // What machines run from goes with the last of them.
    sim.p1(&["kept", "remove", "0"]).exits(2);
    sim.p1(&["kept", "remove", &key]).exits(0);
    assert_eq!((kept(&sim).len(), volumes(&sim)), (0, 2));
    sim.p1(&["--yes", "destroy"]).exits(0);
    let left =
        sim.sh("virsh list --all --name; virsh vol-list default; ls disks; ls home/.local/share/p1/kept -A");
    assert!(!left.contains("p1-") && !left.contains("gone"), "{left}");

    // Another digest is made the long way, and kept; a moment that is not whole is not used.
    sim.spec(&spec(1, 1, "engine: direct\nkeep: true\n"));
    sim.p1(&["up"]).exits(0).says(&["is kept"]);
    sim.p1(&["--yes", "destroy"]).exits(0);
    sim.spec(&spec(1, 1, "engine: direct\nkeep: true\n").replace("memory: 512", "memory: 640"));
    sim.p1(&["up"]).exits(0).says(&["is up", "is kept"]);
    assert_eq!(kept(&sim).len(), 2);
    sim.p1(&["--yes", "destroy"]).exits(0);
    let volume = sim
        .sh("virsh vol-list default")
        .split_whitespace()
        .find(|w| w.ends_with("worker.mem"))
        .unwrap()
        .to_owned();
    sim.virsh(&["vol-delete", "--pool", "default", &volume]);
    sim.spec(&spec(1, 1, "engine: direct\n"));
    let first = sim.p1(&["up"]);
    sim.spec(&spec(1, 1, "engine: direct\n").replace("memory: 512", "memory: 640"));
    let fails = if first.0.status.success() {
        sim.p1(&["--yes", "destroy"]).exits(0);
        sim.p1(&["up"])
    } else {
        first
    };
    fails.exits(1).says(&["is not whole", "p1 kept remove"]);
}

#[test]
fn a_cluster_is_suspended_and_goes_on_where_it_was() {
    let sim = Sim::new(&spec(1, 1, ""));
    sim.p1(&["suspend"]).exits(1).says(&["no machine exists", "p1 up"]);
    sim.p1(&["up"]).exits(0);
    mark(&sim, "then");
    let vagrant = sim.calls();
    sim.p1(&["suspend"]).exits(0).says(&["is suspended"]);
    assert_eq!(states(&sim), ["shut off", "shut off"]);
    sim.p1(&["suspend"]).exits(0).says(&["nothing to do"]);
    let status = sim.p1(&["status"]).exits(1).says(&["suspended since", "`p1 resume` continues"]);
    assert_eq!(status.stdout().matches("suspended").count(), 4, "{}", status.stdout());
    assert!(sim.p1(&["-v", "plan"]).exits(10).stdout().contains("boot the machine: it is suspended"));
    sim.p1(&["snapshot", "save", "a"]).exits(1).says(&["is suspended"]);
    sim.p1(&["resume"]).exits(0).says(&["is resumed"]);
    assert_eq!(marks(&sim), ["then", "then"]);
    sim.p1(&["resume"]).exits(0).says(&["nothing to do"]);
    sim.p1(&["status"]).exits(0);

    // What boots machines resumes these, all of them at one moment; Vagrant is not asked.
    for verb in ["up", "start"] {
        sim.p1(&["suspend"]).exits(0);
        sim.p1(&[verb]).exits(0).says(&["it was suspended and is resumed"]);
        assert_eq!(marks(&sim), ["then", "then"], "{verb}");
    }
    assert_eq!(sim.calls(), vagrant);
    // As a p1 leaves it that is killed in the middle.
    sim.node("server").pause();
    sim.virsh(&["managedsave", "p1-sim-server"]);
    sim.node("worker").pause();
    sim.p1(&["resume"]).exits(0);
    assert_eq!(
        (states(&sim), marks(&sim)),
        (["running", "running"].map(String::from), vec!["then".to_owned(); 2])
    );

    // All of it or nothing.
    sim.node("worker").vm_fault("fail-save=no space left on device");
    sim.p1(&["suspend"]).exits(1).says(&["no space left on device"]);
    assert_eq!(
        (states(&sim), marks(&sim)),
        (["running", "running"].map(String::from), vec!["then".to_owned(); 2])
    );
    sim.p1(&["status"]).exits(0).says(&["1 step of `p1 suspend` outstanding"]);
    sim.node("worker").vm_fault("");
    sim.p1(&["retry"]).exits(0);
    assert_eq!(states(&sim), ["shut off", "shut off"]);
    sim.p1(&["--yes", "destroy"]).exits(0);
    let left = sim.sh("virsh list --all --name; virsh vol-list default; ls disks; ip -br link");
    assert!(!left.contains("sim") && !left.contains("veth"), "{left}");
}
