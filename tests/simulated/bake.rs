//! Boxes that are baked: what is in them and what is not, machines that start from them, and bakes that are cut off.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use p1::internals::event::Outcome;

use super::sim::{Sim, spec};

/// The names of the baked boxes of this host, and whether each fits the spec.
pub fn baked(sim: &Sim) -> Vec<(String, bool)> {
    let out = sim.p1(&["-o", "json", "box", "list"]).exits(0).stdout();
    let lines = out.lines().map(|l| serde_json::from_str::<serde_json::Value>(l).unwrap());
    let one = |l: serde_json::Value| {
        l["box"]["origin"]["baked"].as_object()?;
        Some((l["box"]["name"].as_str()?.to_owned(), l["fits"].as_bool()?))
    };
    lines.filter_map(one).collect()
}

fn library(sim: &Sim) -> PathBuf {
    sim.at("home/.local/share/p1/boxes")
}

/// No bake is left of, whole or half.
pub fn nothing_is_left(sim: &Sim) {
    let left = sim
        .sh("virsh list --all --name; virsh net-list --all --name; virsh vol-list default; ls disks; \
         ls -A home/.local/share/p1/boxes home/.local/share/p1/baking 2>/dev/null || :");
    assert!(!left.contains("bake.") && !left.contains(".baking") && !left.contains(".p1"), "{left}");
}

/// The disk in a box, as the simulated machines have it.
fn unpacked(sim: &Sim, name: &str) -> PathBuf {
    let to = sim.at("unpacked");
    fs::create_dir_all(&to).unwrap();
    let file = library(sim).join(name).join("box.box");
    let (file, to) = (file.display(), to.display());
    sim.sh(&format!("cd {to} && tar -xf {file} box.img && tar -xpf box.img && rm box.img"));
    sim.at("unpacked/root")
}

fn skipped(sim: &Sim, step: &str) -> bool {
    matches!(sim.last().outcomes.get(step), Some(Outcome::Skipped { .. }))
}

fn names(dir: &Path) -> BTreeSet<String> {
    let all = fs::read_dir(dir).into_iter().flatten().flatten();
    all.map(|e| e.file_name().to_string_lossy().into_owned()).collect()
}

#[test]
fn machines_start_from_a_baked_box_that_has_nothing_of_the_machine_it_was_baked_of() {
    let sim = Sim::new(&spec(1, 1, "engine: direct\n"));
    sim.p1(&["box", "bake"]).exits(0).says(&[
        "install k3s for both roles",
        "as a worker",
        "baked fake-v1.34.1-k3s1-",
    ]);
    nothing_is_left(&sim);
    assert!(!sim.state().exists(), "the cluster is not begun");
    let name = baked(&sim).remove(0).0;
    assert_eq!(baked(&sim), [(name.clone(), true)]);
    sim.p1(&["box", "bake"]).exits(0).says(&["is there already"]);

    // Its files: what the machine was known by is in none of them.
    let root = unpacked(&sim, &name);
    let read = |path: &str| fs::read_to_string(root.join(path)).unwrap_or_else(|e| panic!("{path}: {e}"));
    assert_eq!((read("etc/machine-id").as_str(), read("etc/hostname").trim()), ("", "debian"));
    let keys = names(&root.join("etc/ssh")).into_iter().filter(|n| n.starts_with("ssh_host_"));
    assert_eq!(keys.collect::<Vec<_>>(), [""; 0]);
    assert_eq!(
        read("home/vagrant/.ssh/authorized_keys"),
        fs::read_to_string(sim.at("insecure.pub")).unwrap()
    );
    assert_eq!(names(&root.join("home/vagrant/.ssh")), ["authorized_keys".to_owned()].into());
    assert_eq!(names(&root.join("root")), [].into());
    let kept = ["baked", "files", "install.sh"].map(String::from).into();
    assert_eq!(names(&root.join("var/lib/p1")), kept);
    for gone in
        ["etc/rancher", "var/lib/rancher/k3s/server", "var/lib/kubelet", "var/lib/systemd/random-seed"]
    {
        assert!(!root.join(gone).exists(), "{gone}");
    }
    assert_eq!(names(&root.join("var/log/journal")), [].into());
    // Nor is anything of k3s begun by its init.
    let units = names(&root.join("etc/systemd/system/multi-user.target.wants"));
    assert_eq!(units, ["ssh.service".to_owned()].into());
    assert_eq!(names(&root.join("usr/local/bin")), [].into(), "it is in its own file system here");
    let bin = names(&root.parent().unwrap().join("local/bin"));
    assert_eq!(bin, ["k3s".to_owned()].into());

    sim.p1(&["plan"]).exits(10).says(&[]);
    let plan = sim.p1(&["-v", "plan"]).exits(10).stdout();
    assert!(
        plan.contains("? server/install  ") && plan.contains(&format!("the box {name} has it")),
        "{plan}"
    );
    assert!(!plan.contains("+ cluster/files"), "{plan}");
    sim.p1(&["up"]).exits(0).says(&["is up"]);
    for node in ["server", "worker"] {
        for step in ["stage", "install"] {
            assert!(skipped(&sim, &format!("{node}/{step}")), "{node}/{step}: {:?}", sim.last().outcomes);
        }
        assert_eq!(sim.node(node).sh("ls -d /var/lib/p1/baked 2>/dev/null || :"), "");
    }
    let scripts = |node: &str| sim.node(node).sh("cd /usr/local/bin && ls *uninstall.sh");
    assert_eq!(
        (scripts("server").trim(), scripts("worker").trim()),
        ("k3s-uninstall.sh", "k3s-agent-uninstall.sh")
    );
    // Each is one of its own.
    for file in ["/etc/machine-id", "/etc/ssh/ssh_host_ed25519_key.pub"] {
        let of = |node: &str| sim.node(node).sh(&format!("cat {file}"));
        assert!(of("server") != of("worker") && of("server").len() > 30, "{file}");
    }
    sim.p1(&["up"]).exits(0).says(&["nothing to do"]);
    sim.p1(&["status"]).exits(0);

    // Then they are nodes as any.
    sim.p1(&["killall"]).exits(0);
    sim.p1(&["--yes", "uninstall"]).exits(0);
    for node in ["server", "worker"] {
        let left = "ls -d /usr/local/bin/k3s* /etc/systemd/system/k3s* /var/lib/rancher /var/lib/p1 2>/dev/null || :";
        assert_eq!(sim.node(node).sh(left), "", "{node}");
    }
    sim.p1(&["up"]).exits(0);
    assert!(!skipped(&sim, "server/stage") && !skipped(&sim, "worker/install"));
    sim.p1(&["--yes", "destroy"]).exits(0);
    assert!(
        !sim.sh("virsh vol-list default; ls disks").contains("fake"),
        "its base image goes with the last machine"
    );

    // Vagrant makes machines from it as from any box.
    sim.spec(&spec(1, 1, "engine: vagrant\n"));
    fs::remove_dir_all(sim.at("home/.local/share/p1/vagrant/boxes")).unwrap();
    sim.p1(&["up"]).exits(0);
    assert!(sim.calls().iter().any(|c| c.contains("box add")), "{:?}", sim.calls());
    assert!(skipped(&sim, "server/stage") && skipped(&sim, "worker/install"), "{:?}", sim.last().outcomes);
    sim.p1(&["up"]).exits(0).says(&["nothing to do"]);
    sim.p1(&["--yes", "destroy"]).exits(0);

    // Whoever wants none has none; a damaged one is not used.
    sim.spec(&spec(1, 1, "bake: off\n"));
    assert!(sim.p1(&["-v", "plan"]).exits(10).stdout().contains("install k3s: the machine is new"));
    sim.spec(&spec(1, 1, "engine: direct\n"));
    fs::remove_dir_all(sim.at("home/.local/share/p1/vagrant/boxes")).unwrap();
    fs::write(library(&sim).join(&name).join("box.box"), "half").unwrap();
    sim.p1(&["up"]).exits(0).says(&["was damaged and is removed"]);
    assert!(!skipped(&sim, "server/stage"));
    assert_eq!(baked(&sim), []);
}

#[test]
fn up_bakes_a_box_where_the_spec_asks_for_that_and_none_fits() {
    let auto = |more: &str| spec(1, 1, &format!("engine: direct\nbake: auto\n{more}"));
    let sim = Sim::new(&auto(""));
    let plan = sim.p1(&["-v", "plan"]).exits(10).stdout();
    assert!(plan.contains("+ cluster/box") && plan.contains("no baked box fits, and one is baked"), "{plan}");

    // A disk that is full leaves what was there.
    sim.node("box").vm_fault("fail-download=No space left on device");
    sim.p1(&["up"]).exits(1).says(&["no box was baked", "No space left on device", "p1 retry"]);
    nothing_is_left(&sim);
    assert_eq!((baked(&sim), sim.node("server").state()), (vec![], String::new()));
    sim.node("box").vm_fault("");
    sim.p1(&["retry"]).exits(0).says(&["no baked box fitted, so one was baked"]);
    nothing_is_left(&sim);
    let first = baked(&sim);
    assert!(matches!(&first[..], [(_, true)]), "{first:?}");
    assert!(skipped(&sim, "server/stage") && skipped(&sim, "worker/install"), "{:?}", sim.last().outcomes);
    sim.p1(&["up"]).exits(0).says(&["nothing to do"]);

    // It is baked once, and of other files another one.
    sim.p1(&["--yes", "destroy"]).exits(0);
    sim.p1(&["up"]).exits(0);
    assert_eq!(baked(&sim), first);
    sim.p1(&["--yes", "destroy"]).exits(0);
    sim.sh("cat images.tar >other.tar; rm images.tar; mv other.tar images.tar; head -c 10240 /dev/zero >>images.tar");
    sim.p1(&["up"]).exits(0).says(&["so one was baked"]);
    let mut now = baked(&sim);
    now.retain(|(name, _)| *name != first[0].0);
    assert!(matches!(&now[..], [(_, true)]), "{now:?}");

    // A server that was made from one and a worker from another: the base of either goes with the last machine.
    sim.p1(&["box", "remove", &now[0].0]).exits(0);
    sim.spec(&spec(1, 2, "engine: direct\n").replace("name: worker-1", "name: worker"));
    sim.p1(&["up"]).exits(0);
    assert!(!skipped(&sim, "worker-2/stage"));
    sim.p1(&["--yes", "destroy"]).exits(0);
    assert!(!sim.sh("virsh vol-list default").contains("img"), "{}", sim.sh("virsh vol-list default"));

    // What is baked of another file than there is now fits nothing.
    sim.sh("echo more >>fake.box");
    let list = sim.p1(&["box", "list"]).exits(0).stdout();
    assert!(
        list.contains("fits nothing any more: ") && list.contains("fake.box has changed since"),
        "{list}"
    );
}

#[test]
fn what_a_killed_bake_leaves_is_told_of_and_taken_away() {
    let sim = Sim::new(&spec(1, 1, "engine: direct\n"));
    let bake = sim.start(&["box", "bake"]);
    bake.until_said("install k3s for both roles");
    bake.signal(nix::sys::signal::Signal::SIGKILL);
    bake.end();
    sim.p1(&["box", "list"]).exits(0).says(&["a bake was killed", "p1 box bake --clean"]);
    assert!(sim.sh("virsh list --all --name").contains("p1-bake."));
    sim.p1(&["box", "bake", "--clean"]).exits(0).says(&["is removed"]);
    nothing_is_left(&sim);
    sim.p1(&["box", "bake", "--clean"]).exits(0).says(&["no bake has left anything"]);

    // One that is ended takes its own away.
    let bake = sim.start(&["box", "bake"]);
    bake.until_said("install k3s for both roles");
    bake.signal(nix::sys::signal::Signal::SIGINT);
    bake.end().exits(130);
    nothing_is_left(&sim);
    assert_eq!(baked(&sim), []);
}
