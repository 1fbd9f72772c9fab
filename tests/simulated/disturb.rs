//! Faults on purpose: brought, shown, healed by themselves or before their time.

use std::fs;
use std::path::Path;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use p1::internals::fault::Fault;
use serde_json::Value;

use super::run::{Done, gone, until};
use super::sim::{Sim, spec};

/// What `faults.json` has.
pub fn faults(sim: &Sim) -> Vec<Value> {
    let text = fs::read_to_string(sim.state().join("faults.json")).unwrap_or("[]".into());
    serde_json::from_str(&text).unwrap_or_default()
}

pub fn until_healed(sim: &Sim) {
    until("all faults are healed", || faults(sim).is_empty());
}

/// The process that would end the faults.
fn healer(sim: &Sim) -> Pid {
    let owner: Value =
        serde_json::from_str(&fs::read_to_string(sim.state().join("healer")).unwrap()).unwrap();
    Pid::from_raw(i32::try_from(owner["pid"].as_i64().unwrap()).unwrap())
}

/// Ends it.
pub fn kill_healer(sim: &Sim) {
    let pid = healer(sim);
    kill(pid, Signal::SIGKILL).unwrap();
    until("it is gone", || gone(pid));
}

#[track_caller]
fn as_before(sim: &Sim) -> Done {
    until_healed(sim);
    sim.p1(&["up"]).exits(0);
    sim.p1(&["status"]).exits(0)
}

#[test]
fn a_fault_is_shown_is_no_drift_and_heals_by_itself() {
    let sim = Sim::new(&spec(1, 1, ""));
    sim.p1(&["up"]).exits(0);
    let runs = sim.runs().len();
    sim.p1(&["fault", "pause", "worker", "--for", "1h"]).exits(0).says(&["is disturbed"]);
    assert_eq!(sim.node("worker").state(), "paused");
    assert_eq!((sim.runs().len(), sim.last().verb.as_str()), (runs + 1, "fault"));
    sim.p1(&["status"]).exits(0).says(&["worker is under `pause` until ", "p1 fault heal worker"]);
    let json = sim.p1(&["-o", "json", "status"]).exits(0);
    assert!(json.stdout().contains(r#""fault":"pause""#), "{}", json.stdout());
    // A second one of its kind, and one that has to get in.
    sim.p1(&["fault", "pause", "worker"]).exits(2).says(&["it is there already"]);
    sim.p1(&["fault", "kill-k3s", "worker"]).exits(2).says(&["its machine does not run"]);
    sim.p1(&["fault", "heal"]).exits(0).says(&["is under no fault any more"]);
    assert_eq!((sim.node("worker").state().as_str(), faults(&sim).len()), ("running", 0));

    // By itself, and by the next p1 where what would do it was killed.
    sim.p1(&["fault", "link-down", "worker", "--for", "1s"]).exits(0);
    as_before(&sim);
    sim.p1(&["fault", "link-down", "worker", "--for", "2s"]).exits(0);
    kill_healer(&sim);
    let due = || sim.p1(&["status"]).stderr().contains("it is being healed") || faults(&sim).is_empty();
    until("its time is over", due);
    as_before(&sim);
}

/// Whether one machine reaches another's sshd, over the nodes' network.
fn reaches(sim: &Sim, from: &str, ip: &str) -> bool {
    let script = format!("timeout 1 bash -c '</dev/tcp/{ip}/22' 2>/dev/null && echo yes || echo no");
    sim.node(from).sh(&script).trim() == "yes"
}

const WORKER_1: &str = "192.168.56.111";
const WORKER_2: &str = "192.168.56.112";

#[test]
fn what_is_done_inside_a_machine_is_taken_back_by_the_machine() {
    let sim = Sim::new(&spec(1, 2, ""));
    sim.p1(&["up"]).exits(0);
    assert!(reaches(&sim, "worker-1", WORKER_2));
    let peer = ["--peer", "worker-2"];
    sim.p1(&[&["fault", "partition", "worker-1", "--for", "4s"], &peer[..]].concat()).exits(0);
    // Nobody but the machine itself is left to heal it.
    kill_healer(&sim);
    assert!(!reaches(&sim, "worker-1", WORKER_2) && !reaches(&sim, "worker-2", WORKER_1));
    assert!(reaches(&sim, "worker-1", "192.168.56.110"));
    until("the machine has healed itself", || reaches(&sim, "worker-1", WORKER_2));
    assert!(!sim.node("worker-1").sh("iptables -t raw -S").contains("P1-FAULT"));
    assert_eq!(sim.node("worker-1").sh("ls /run/p1-fault").trim(), "");
    // Until a p1 looks, it is written down.
    assert_eq!(faults(&sim).len(), 1);
    sim.p1(&["status"]);
    as_before(&sim);

    // As often as k3s comes back.
    let killed = |sim: &Sim| sim.node("worker-2").sh("systemctl show -p NRestarts --value k3s-agent");
    sim.p1(&["fault", "kill-k3s", "worker-2", "--for", "1h"]).exits(0);
    let first = killed(&sim);
    until("it was killed once more", || killed(&sim) != first);
    sim.p1(&["status"]).exits(0).says(&["worker-2 is under `kill-k3s` until "]);
    // A verb that takes the machine ends it.
    sim.p1(&["fault", "heal", "worker-2"]).exits(0);
    until("k3s runs", || sim.node("worker-2").sh("systemctl is-active k3s-agent || true").trim() == "active");

    // On a disk that a test can fill.
    sim.sh("mount -o remount,size=300m disks/p1-sim-worker-1");
    let full = "echo x >/root/x 2>/dev/null && echo room || echo full";
    sim.p1(&["fault", "disk-full", "worker-1", "--for", "1h"]).exits(0);
    assert_eq!(sim.node("worker-1").sh(full).trim(), "full");
    sim.p1(&["fault", "heal"]).exits(0);
    assert_eq!(sim.node("worker-1").sh(full).trim(), "room");
    sim.sh("mount -o remount,size=6g disks/p1-sim-worker-1");
    as_before(&sim);

    // What the machine's kernel lacks is told, and nothing of it is left.
    sim.node("worker-1").sh("printf '#!/bin/sh\\n[ \"$1 $2\" != \"qdisc add\" ] || { echo Error: Specified qdisc kind is unknown. >&2; exit 2; }\\n' >/usr/local/bin/tc; chmod 755 /usr/local/bin/tc");
    let done = sim.p1(&["fault", "latency", "worker-1"]).exits(1);
    let done =
        done.says(&["`latency` cannot be done there: Error: Specified qdisc kind is unknown", "sch_netem"]);
    assert_eq!((faults(&sim).len(), done.stderr().contains("next: p1 retry")), (0, true));
    let units = sim.node("worker-1").sh("ls /run/p1-fault; systemctl is-active p1-fault-latency || true");
    assert_eq!(units.trim(), "inactive");
}

#[test]
fn what_is_done_to_a_machine_from_outside_is_taken_back_from_there() {
    let sim = Sim::new(&spec(1, 1, ""));
    sim.p1(&["up"]).exits(0);
    let limits = || sim.virsh(&["blkdeviotune", "p1-sim-worker", "vda"]);
    sim.p1(&["fault", "slow-disk", "worker", "--iops", "20", "--for", "1h"]).exits(0);
    assert!(limits().contains("total_iops_sec : 20\n"), "{}", limits());
    assert!(limits().contains("total_bytes_sec: 1048576\n"), "{}", limits());
    sim.p1(&["fault", "heal"]).exits(0);
    assert!(limits().contains("total_iops_sec : 0\n"), "{}", limits());

    sim.p1(&["fault", "power-cut", "worker", "--for", "2s"]).exits(0);
    assert_eq!(sim.node("worker").state(), "shut off");
    sim.p1(&["status"]).exits(0).says(&["worker is under `power-cut` until "]);
    as_before(&sim);

    // A machine that is stopped meanwhile stays off; one that is resumed is no longer under it.
    sim.p1(&["fault", "power-cut", "worker", "--for", "1h"]).exits(0);
    sim.p1(&["stop"]).exits(0).says(&["the fault `power-cut` of worker is over"]);
    assert_eq!((faults(&sim).len(), sim.node("worker").state().as_str()), (0, "shut off"));
    sim.p1(&["start"]).exits(0);

    // libvirt is away when its time is over: it is healed when that is back.
    sim.p1(&["fault", "pause", "worker", "--for", "1s"]).exits(0);
    sim.libvirt_is_deaf(true);
    let log = || fs::read_to_string(sim.state().join("healer.log")).unwrap();
    until("it was tried in vain", || log().contains("pause of worker cannot be ended"));
    sim.libvirt_is_deaf(false);
    as_before(&sim);

    // What nobody agreed to lose.
    sim.p1(&["fault", "disk-full", "server"]).exits(2).says(&["the only server", "disposable: true"]);
    sim.p1(&["fault", "clock", "server"]).exits(2).says(&["--by=-1h"]);
    assert!(faults(&sim).is_empty());

    // With the cluster goes what would heal it.
    sim.p1(&["fault", "pause", "worker", "--for", "1h"]).exits(0);
    let healer = healer(&sim);
    sim.p1(&["--yes", "destroy"]).exits(0);
    until("it has ended", || gone(healer));
    assert!(!sim.state().exists());
}

#[test]
fn a_proof_under_a_fault_heals_it_whatever_comes_of_it() {
    let sim = Sim::new(&spec(1, 2, ""));
    sim.p1(&["up"]).exits(0);
    let proof = |under: &str, nodes: &[&str]| sim.p1(&[&["verify"], nodes, &["--under", under]].concat());
    proof("slow-disk worker-2", &[]).exits(0).says(&["is disturbed", "cluster `sim` works"]);
    assert!(faults(&sim).is_empty());
    assert_eq!(sim.runs().len(), 4, "the fault, the proof and its end are runs");
    proof("pause worker-2", &["worker-2"]).exits(1).says(&["is under no fault any more"]);
    assert_eq!((faults(&sim).len(), sim.node("worker-2").state().as_str()), (0, "running"));
    proof("pause", &[]).exits(2).says(&["names no node"]);
    proof("flood worker-1", &[]).exits(2).says(&["`flood` is no fault"]);
    as_before(&sim);
}

/// The examples, as a user runs them: each ends what it began.
#[test]
fn every_scenario_of_the_examples_disturbs_a_node_and_leaves_it_as_it_was() {
    let sim = Sim::new(&spec(1, 2, "disposable: true\n"));
    sim.p1(&["up"]).exits(0);
    let examples = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/faults");
    std::os::unix::fs::symlink(env!("CARGO_BIN_EXE_p1"), sim.at("bin/p1")).unwrap();
    // What this host's kernel may lack, and what a machine here has none of its own of.
    let played = "printf '#!/bin/sh\\necho \"$0 $*\" >>/root/played\\ncase \"$*\" in *\"show dev\"*) ;; *show*) echo netem ;; esac\\n' >/usr/local/bin/tc
        printf '#!/bin/sh\\ncase \"$1\" in -s) echo \"$0 $*\" >>/root/played ;; *) exec /usr/bin/date \"$@\" ;; esac\\n' >/usr/local/bin/date
        chmod 755 /usr/local/bin/tc /usr/local/bin/date";
    sim.node("worker-1").sh(played);
    sim.sh("mount -o remount,size=300m disks/p1-sim-worker-1");
    let mut seen = 0;
    for fault in Fault::all() {
        let said = sim.sh(&format!("{}/{}.sh 2>&1", examples.display(), fault.name()));
        assert!(said.contains(&format!("is under `{}", fault.name())), "{said}");
        assert!(said.contains("is under no fault any more") && faults(&sim).is_empty(), "{said}");
        seen += 1;
    }
    assert_eq!(seen, 10);
    let played = sim.node("worker-1").sh("cat /root/played");
    for wanted in ["netem delay 300ms", "netem loss 20%", "match ip dst 192.168.56.110/32", "date -s @"] {
        assert!(played.contains(wanted), "{wanted}: {played}");
    }
    sim.sh("mount -o remount,size=6g disks/p1-sim-worker-1");
    as_before(&sim);
}
