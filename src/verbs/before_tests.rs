//! A cluster that an earlier p1 made (tests/fixtures/before): nothing of what it wrote is read otherwise
//! now, nobody is restarted for it, and what it left half-done is gone on with.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::Verb;
use crate::event::VerbName;
use crate::journal::{self, Record};
use crate::k3s::{Arch, Tokens};
use crate::machines::{Machine, MachineState};
use crate::observed::{Observed, View, Wanted};
use crate::plan::{At, Check, NodeStep};
use crate::spec::Cluster;
use crate::state::{NodeMemory, StateDir};

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/before").join(name)
}

/// The spec, with the files that it names, and the state folder beside it.
fn cluster(dir: &Path) -> (Cluster, StateDir) {
    for name in ["k3s", "install.sh", "images.tar", "fake.box"] {
        std::fs::write(dir.join(name), "").unwrap();
    }
    std::fs::copy(fixture("cluster.yaml"), dir.join("cluster.yaml")).unwrap();
    let cluster = crate::spec::load(&dir.join("cluster.yaml"), &|_| None).unwrap().cluster;
    let state = StateDir::of(dir, &cluster.name);
    state.create().unwrap();
    for name in ["cluster.json", "nodes.json", "token"] {
        std::fs::copy(fixture(name), state.dir().join(name)).unwrap();
    }
    (cluster, state)
}

/// What would be seen of it: the machines run, and the nodes say what is remembered of them.
fn seen(state: &StateDir) -> Observed {
    let mut seen = Observed::default();
    (seen.here.kubeconfig, seen.here.version) = (true, Some("v1.34.1+k3s1".into()));
    seen.here.tokens = Some(Tokens::parse(&std::fs::read_to_string(state.token()).unwrap()).unwrap());
    for (name, NodeMemory { machine, facts, joined, version, made, .. }) in state.memory() {
        let facts = facts.expect("it was idle");
        seen.here.wanted.entry(Arch::Amd64).or_insert_with(|| {
            let files = facts.staged.iter().map(|(path, sha256)| Wanted {
                source: PathBuf::new(),
                path: path.clone(),
                sha256: sha256.clone(),
                len: 1,
                mode: 0o600,
            });
            files.collect()
        });
        assert!(joined && made.is_some(), "{name}");
        seen.joined.insert(name.clone());
        seen.versions.extend(version.map(|v| (name.clone(), v)));
        seen.nodes.insert(name.clone(), Arc::new(facts));
        let there = Machine { id: Some(machine), state: MachineState::Running, ..Machine::absent() };
        seen.machines.insert(name, there);
    }
    seen
}

#[test]
fn a_cluster_of_an_earlier_p1_has_nothing_to_be_restarted_for() {
    let dir = tempfile::tempdir().unwrap();
    let (cluster, state) = cluster(dir.path());
    let kept = state.facts().unwrap();
    assert_eq!(kept.k3s.and_then(|k| k.version).as_deref(), Some("v1.34.1+k3s1"));
    let seen = seen(&state);
    assert_eq!(seen.nodes.len(), 5);
    let (verb, view) = (Verb::of(VerbName::Up), View::new(&cluster, &seen));
    for node in &cluster.nodes {
        for step in [NodeStep::Stage, NodeStep::Config, NodeStep::Install, NodeStep::Start] {
            let check = verb.condition(At::node(step, node), &view);
            assert!(matches!(check, Check::Done(_)), "{}: {check:?}", step.id(&node.name));
        }
    }
}

fn run(name: &str) -> Record {
    let record = journal::read(&fixture(name)).unwrap().expect("a plan");
    assert_eq!(record.damaged, Vec::<usize>::new(), "{name}");
    record
}

#[test]
fn journals_of_an_earlier_p1_say_what_is_outstanding() {
    let left = |record: &Record| record.outstanding().map(|s| s.id.clone()).collect::<Vec<_>>();
    let up = run("up-failed.jsonl");
    assert_eq!((up.verb.as_str(), up.targets.len()), ("up", 0));
    assert_eq!(left(&up), ["worker-2/install", "worker-2/start", "worker-2/ready"]);
    let replace = run("replace-killed.jsonl");
    assert_eq!((replace.verb.as_str(), &replace.targets[..]), ("replace", &["worker-1".to_owned()][..]));
    assert!(replace.passed("worker-1/machine") && !replace.passed("worker-1/ready"), "{:?}", left(&replace));
    let destroy = run("destroy-killed.jsonl");
    assert_eq!(left(&destroy), ["worker-2/machine", "cluster/clean"]);
}

#[test]
fn a_later_field_of_what_is_remembered_does_not_forget_the_rest() {
    let dir = tempfile::tempdir().unwrap();
    let (_, state) = cluster(dir.path());
    let path = state.dir().join("nodes.json");
    let text = std::fs::read_to_string(&path).unwrap();
    std::fs::write(&path, text.replace("\"root\":", "\"later\":{\"x\":1},\"root\":")).unwrap();
    assert_eq!(state.memory().len(), 5);
}
