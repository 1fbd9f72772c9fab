//! The same cluster again: machines whose memory is put on disk and back.

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
    assert!(sim.p1(&["plan"]).exits(10).stdout().contains("boot the machine: it is suspended"));
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
