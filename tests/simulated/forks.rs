//! All clusters of this user, wherever their folders lie.

use serde_json::Value;

use super::run::Done;
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
