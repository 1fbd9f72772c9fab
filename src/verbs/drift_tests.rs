//! Drift over random pairs of specs: reality is what the old one made, and the new one is looked at.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use proptest::prelude::*;

use crate::api::NodeStatus;
use crate::event::VerbName;
use crate::guest::{NodeFacts, Unit};
use crate::k3s::{self, Arch, Tokens};
use crate::machines::Made;
use crate::machines::{Machine, MachineState};
use crate::observed::drift::*;
use crate::observed::{Apps, Observed, Request, View, Wanted, files};
use crate::plan::{NodeStep, Plan};
use crate::spec::{BoxRef, Cluster, Node, ProviderChoice, Release, Role, Size};
use crate::verbs::{Intent, Refused, Verb, decide};

fn image(cluster: &Cluster) -> String {
    let BoxRef::Definition(name) = &cluster.image else { unreachable!() };
    format!("{name} sum-of-{name}")
}

fn version(cluster: &Cluster) -> String {
    let Release::Version(version) = &cluster.k3s.release else { unreachable!() };
    version.clone()
}

fn wanted(cluster: &Cluster) -> Vec<Wanted> {
    let file =
        |path: String, sha256: String| Wanted { source: "/x".into(), path, sha256, len: 1, mode: 0o755 };
    vec![
        file(format!("{}/k3s", k3s::BIN_DIR), format!("sum-of-{}", version(cluster))),
        file(files::INSTALLER.into(), "sum-of-installer".into()),
    ]
}

/// Everything is as this spec wants it.
fn reality(cluster: &Cluster) -> Observed {
    let tokens = Tokens::from_random([0x11; 32], [0x22; 32]);
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs();
    let mut seen = Observed {
        here: crate::observed::Here {
            provider: Some(match cluster.provider {
                ProviderChoice::Virtualbox => crate::machines::Kind::Virtualbox,
                _ => crate::machines::Kind::Libvirt,
            }),
            kubeconfig: true,
            tokens: Some(tokens.clone()),
            box_ready: true,
            prepared: Some(Ok(())),
            ..Default::default()
        },
        request: Request { whole: true, ..Request::default() },
        api: Some(BTreeMap::new()),
        apps: Some(Apps::default()),
        ..Observed::default()
    };
    for node in &cluster.nodes {
        let unit = Unit { loaded: true, active: "active".into(), ..Unit::default() };
        let mut facts = NodeFacts {
            boot: "boot".into(),
            hostname: node.hostname().into(),
            hosts: Some(crate::steps::shared::hosts::digest(cluster)),
            epoch: i64::try_from(now).unwrap(),
            addresses: vec![("eth0".into(), node.ip)],
            default_routes: vec!["eth0".into()],
            init: Some("systemd".into()),
            cgroup_memory: true,
            disk_free_mib: 8000,
            units: [(node.role.unit().to_owned(), unit)].into(),
            scripts: vec![k3s::uninstall_script(node.role)],
            staged: wanted(cluster).into_iter().map(|w| (w.path, w.sha256)).collect(),
            ..NodeFacts::default()
        };
        if !node.role.has_k3s() {
            (facts.units, facts.scripts, facts.staged) = Default::default();
        }
        let first = cluster.first_server();
        match node.role {
            Role::Server => {
                facts.datastore = Some(if cluster.has_etcd() { "etcd" } else { "sqlite" }.into());
                facts.joins = cluster.has_etcd().then(|| match node.name == first.name {
                    true => "init".into(),
                    false => k3s::server_url(first),
                });
            }
            Role::Worker => (facts.node_password, facts.joins) = (true, Some(k3s::server_url(first))),
            Role::None => {}
        }
        for (path, text) in
            files::files(&View::new(cluster, &Observed::default()), node, &facts.clone(), &tokens)
        {
            if let Some(text) = text.filter(|_| node.role.has_k3s()) {
                facts.written.insert(path, crate::os::hash::sha256(&text));
            }
        }
        let marks: Vec<String> = node.labels.iter().map(|l| format!("label/{l}")).collect();
        facts.stamps.insert("labels".into(), marks.join(" "));
        facts.stamps.insert("install".into(), files::installation(&facts, node));
        facts.stamps.insert(
            "start".into(),
            files::running(&View::new(cluster, &Observed::default()), node, &facts, &tokens),
        );
        if !node.role.has_k3s() {
            facts.stamps.clear();
        }
        let network = &cluster.network;
        let made = Made {
            role: node.role,
            ip: node.ip,
            cidr: network.cidr,
            nics: network.nics,
            image: image(cluster),
            ssh: None,
            disk: None,
            disks: Vec::new(),
        };
        let status = NodeStatus {
            name: node.name.clone(),
            ready: true,
            internal_ip: Some(node.ip.into()),
            version: version(cluster),
            roles: if node.role == Role::Server { vec!["control-plane".into()] } else { vec![] },
            labels: node
                .labels
                .iter()
                .filter_map(|l| l.split_once('='))
                .map(|(k, v)| (k.into(), v.into()))
                .collect(),
            ..NodeStatus::default()
        };
        let size = node.size;
        let machine =
            Machine { id: Some(node.name.clone()), state: MachineState::Running, size, ..Machine::absent() };
        seen.machines.insert(node.name.clone(), machine);
        seen.nodes.insert(node.name.clone(), facts.into());
        seen.made.insert(node.name.clone(), made);
        if node.role.has_k3s() {
            seen.api.as_mut().unwrap().insert(node.name.clone(), status);
        }
    }
    seen
}

/// What `up` sees when the spec has become another one.
fn look_with(new: &Cluster, mut seen: Observed) -> Observed {
    seen.here.image = Some(image(new));
    seen.here.arch = Some(Arch::Amd64);
    seen.here.wanted = [(Arch::Amd64, wanted(new))].into();
    seen.here.version = Some(version(new));
    for node in &new.nodes {
        seen.machines.entry(node.name.clone()).or_insert_with(Machine::absent);
    }
    seen.former = former_nodes(new, &seen, &seen.made.clone());
    seen
}

#[derive(Clone, Debug)]
struct Spec {
    servers: usize,
    /// By letter: whether it is there, the last part of its address, memory, CPUs, a label, whether it has k3s.
    workers: Vec<(bool, u8, u32, u32, bool, bool)>,
    server: (u8, u32, u32),
    /// The letters of servers change places with workers'.
    swapped: bool,
    other: [bool; 5],
}

impl Spec {
    fn cluster(&self) -> Cluster {
        let mut cluster = crate::spec::fixture::cluster(1);
        let [cidr, nics, image, version, provider] = self.other;
        cluster.network.cidr = if cidr { "192.168.0.0/16" } else { "192.168.56.0/24" }.parse().unwrap();
        cluster.network.nics = if nics { 2 } else { 1 };
        cluster.image = BoxRef::Definition(if image { "debian-13" } else { "debian-12" }.into());
        cluster.k3s.release = Release::Version(if version { "v1.35.0+k3s1" } else { "v1.34.1+k3s1" }.into());
        cluster.provider = if provider { ProviderChoice::Virtualbox } else { ProviderChoice::Libvirt };
        let (server, worker) = (cluster.nodes[0].clone(), cluster.nodes[1].clone());
        let name = |i: usize, server: bool| format!("{}{i}", if server != self.swapped { "s" } else { "w" });
        cluster.nodes = (0..self.servers)
            .map(|i| Node {
                name: name(i, true),
                ip: Ipv4Addr::from([192, 168, 56, self.server.0 + i as u8]),
                size: Some(Size { memory: self.server.1, cpus: self.server.2 }),
                ..server.clone()
            })
            .collect();
        let workers = self.workers.iter().enumerate().filter(|(_, w)| w.0);
        cluster.nodes.extend(workers.map(|(i, w)| Node {
            name: name(i, false),
            // No two have one address.
            ip: Ipv4Addr::from([192, 168, 56, 100 + 10 * i as u8 + w.1]),
            size: Some(Size { memory: w.2, cpus: w.3 }),
            labels: if w.4 && w.5 { vec!["tier=web".into()] } else { vec![] },
            role: if w.5 { Role::Worker } else { Role::None },
            ..worker.clone()
        }));
        cluster.nodes.sort_by_key(|n| n.role);
        cluster
    }
}

fn specs() -> impl Strategy<Value = Spec> {
    let rare = || prop::bool::weighted(0.1);
    let worker = (any::<bool>(), 0u8..2, 1u32..3, 1u32..3, any::<bool>(), prop::bool::weighted(0.7))
        .prop_map(|(there, ip, memory, cpus, label, k3s)| (there, ip, memory * 512, cpus, label, k3s));
    (
        prop_oneof![Just(1usize), Just(3)],
        prop::collection::vec(worker, 4),
        (0u8..2, 1u32..3, 1u32..3).prop_map(|(ip, memory, cpus)| (11 + ip * 10, memory * 1024, cpus)),
        rare(),
        [rare(), rare(), rare(), rare(), rare()],
    )
        .prop_map(|(servers, workers, server, swapped, other)| Spec {
            servers,
            workers,
            server,
            swapped,
            other,
        })
}

fn found(view: &View<'_>) -> (Vec<Drift>, Vec<Node>) {
    changes(view, &plan(view), &[])
}

fn plan(view: &View<'_>) -> Plan {
    Verb::of(VerbName::Up).plan(view, &[])
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    /// What is as the spec says is left alone.
    #[test]
    fn nothing_changed_nothing_to_do(spec in specs()) {
        let cluster = spec.cluster();
        let seen = look_with(&cluster, reality(&cluster));
        let view = View::new(&cluster, &seen);
        let (drift, leaving) = found(&view);
        prop_assert_eq!(&drift, &[]);
        prop_assert!(leaving.is_empty());
        let due: Vec<_> = plan(&view).steps.into_iter().filter(|s| s.check.may_run()).collect();
        prop_assert!(due.is_empty(), "{:?}", due);
    }

    /// No machine goes that was not named as lost, and only for a reason that needs it.
    #[test]
    fn nothing_is_destroyed_unsaid(old in specs(), new in specs()) {
        let (old, new) = (old.cluster(), new.cluster());
        let mut seen = look_with(&new, reality(&old));
        let (drift, leaving) = found(&View::new(&new, &seen));
        let undisturbed = plan(&View::new(&new, &seen));
        prop_assert!(!undisturbed.steps.iter().any(|s| s.name == NodeStep::Machine.into()), "destroys unasked");
        seen.request.leaving = leaving;
        let plan = plan(&View::new(&new, &seen));
        for step in plan.steps.iter().filter(|s| s.name == NodeStep::Machine.into()) {
            let name = step.info.node.as_deref().unwrap();
            let said = drift.iter().any(|d| {
                d.node.as_deref() == Some(name) && d.destroys() && d.lost.is_some() && !d.then.is_empty()
            });
            prop_assert!(said, "{} goes unsaid: {:?}", name, drift);
        }
        for was in &old.nodes {
            let goes = seen.leaving().any(|n| n.name == was.name);
            // A machine without k3s gets one in place.
            let same = |n: &Node| n.ip == was.ip && (n.role == was.role || was.role == Role::None);
            let stays = new.node(&was.name).is_some_and(same);
            prop_assert_eq!(goes, !stays, "{}", &was.name);
        }
        let anew = old.network != new.network || old.provider != new.provider;
        prop_assert_eq!(drift.iter().any(|d| d.mend == Mend::Anew), anew);
    }

    /// A plan and the run that follows it decide the same, for all nodes and for some, and what the run's steps are
    /// told from afterwards is what was decided from.
    #[test]
    fn a_plan_says_what_the_run_does(old in specs(), new in specs(), mask in 0u16..1024) {
        let (old, new) = (old.cluster(), new.cluster());
        let names: Vec<String> = new.nodes.iter().map(|n| n.name.clone()).collect();
        let some: Vec<String> = names.into_iter().enumerate().filter(|(i, _)| mask >> i & 1 == 1).map(|(_, n)| n).collect();
        let intent = Intent { verb: Verb::of(VerbName::Up), targets: &some, replace: &[] };
        // `plan` looks, and decides.
        let planned = decide(&new, &look_with(&new, reality(&old)), &intent);
        // `up` knows for whom it is, looks, decides, and begins.
        let mut seen = look_with(&new, reality(&old));
        intent.note(&new, &mut seen);
        let run = decide(&new, &seen, &intent);
        run.note(&mut seen);
        let view = View::new(&new, &seen);
        prop_assert_eq!(&planned.plan, &run.plan);
        prop_assert_eq!(&planned.plan, &intent.verb.plan(&view, &some));
        prop_assert_eq!(&planned.leaving, &run.leaving);
        prop_assert_eq!(&planned.losses, &run.losses);
        prop_assert_eq!(&planned.refused, &run.refused);
        let then = crate::observed::refusal::refusal(&view).map(Refused::There);
        prop_assert!(run.refused == then || matches!(run.refused, Some(Refused::Asked(_))), "{:?}", then);
    }

    /// If the cluster's data goes, that is what is asked about: when no server that has it stays, and no two are
    /// recreated one after the other.
    #[test]
    fn the_loss_of_all_data_is_asked_about_by_its_value(old in specs(), new in specs()) {
        let (old, new) = (old.cluster(), new.cluster());
        let seen = look_with(&new, reality(&old));
        let (drift, leaving) = found(&View::new(&new, &seen));
        let goes = |n: &Node| leaving.iter().any(|l| l.name == n.name);
        let stays = old.servers().any(|s| !goes(s));
        let again = old.servers().filter(|s| new.node(&s.name).is_some_and(|n| n.role == Role::Server)).count() > 1;
        let asked = drift.iter().any(|d| d.destroys() && d.mend != Mend::Anew && d.loss == Loss::Cluster);
        prop_assert_eq!(asked, !stays && !again);
    }

    /// Each change is told under its name, and mended by a step of the node that it concerns.
    #[test]
    fn every_change_is_named(old in specs(), new in specs()) {
        let (old, new) = (old.cluster(), new.cluster());
        let mut seen = look_with(&new, reality(&old));
        let (drift, leaving) = found(&View::new(&new, &seen));
        seen.request.leaving = leaving;
        let plan = plan(&View::new(&new, &seen));
        let told = |node: &str, kind: Kind| drift.iter().any(|d| d.kind == kind && d.node.as_deref() == Some(node));
        let due = |node: &str, step: &str| {
            plan.steps.iter().any(|s| s.info.id == format!("{node}/{step}") && s.check.may_run())
        };
        for node in &new.nodes {
            let Some(was) = old.node(&node.name) else {
                prop_assert!(told(&node.name, Kind::VmMissing) && due(&node.name, "vm"));
                continue;
            };
            prop_assert_eq!(told(&node.name, Kind::Role), was.role != node.role && was.role != Role::None);
            prop_assert_eq!(told(&node.name, Kind::Address), was.ip != node.ip);
            prop_assert_eq!(told(&node.name, Kind::Memory), was.size.unwrap().memory != node.size.unwrap().memory);
            prop_assert_eq!(told(&node.name, Kind::Cpus), was.size.unwrap().cpus != node.size.unwrap().cpus);
            prop_assert_eq!(told(&node.name, Kind::Box), old.image != new.image);
            if seen.leaving().any(|n| n.name == node.name) {
                prop_assert!(due(&node.name, "vm") && due(&node.name, "machine"));
                continue;
            }
            prop_assert_eq!(due(&node.name, "resize"), was.size != node.size);
            prop_assert!(!due(&node.name, "vm"), "it has a machine");
            if was.role != node.role {
                prop_assert!(due(&node.name, "stage") && due(&node.name, "start"));
                continue;
            }
            if node.role == Role::None {
                let steps = ["leave", "stage", "config", "start", "ready", "labels"];
                let any = |step: &str| plan.steps.iter().any(|s| s.info.id == format!("{}/{step}", node.name));
                prop_assert!(!steps.into_iter().any(any));
                continue;
            }
            prop_assert_eq!(told(&node.name, Kind::K3sVersion), old.k3s.release != new.k3s.release);
            if was.labels != node.labels {
                prop_assert!(told(&node.name, Kind::K3sConfig) && due(&node.name, "config"));
            }
        }
        for was in old.nodes.iter().filter(|n| new.node(&n.name).is_none()) {
            prop_assert!(told(&was.name, Kind::VmExtra) && due(&was.name, "machine"));
        }
    }
}

/// One thing is changed in a cluster that is as it should be, and found under its name.
#[test]
fn what_somebody_did_is_found() {
    let mut cluster = crate::spec::fixture::cluster(2);
    cluster.k3s.release = Release::Version("v1.34.1+k3s1".into());
    let found = |change: fn(&mut Observed)| {
        let mut seen = look_with(&cluster, reality(&cluster));
        change(&mut seen);
        seen.former = former_nodes(&cluster, &seen, &seen.made.clone());
        let (drift, _) = found(&View::new(&cluster, &seen));
        drift.into_iter().map(|d| (d.node.unwrap_or_default(), d.kind, d.mend)).collect::<Vec<_>>()
    };
    fn machine(seen: &mut Observed) -> &mut Machine {
        seen.machines.get_mut("worker-1").unwrap()
    }
    fn facts(seen: &mut Observed) -> &mut NodeFacts {
        std::sync::Arc::make_mut(seen.nodes.get_mut("worker-1").unwrap())
    }
    fn object(seen: &mut Observed) -> &mut NodeStatus {
        seen.api.as_mut().unwrap().get_mut("worker-1").unwrap()
    }
    type Change = fn(&mut Observed);
    let cases: Vec<(Change, Kind, Mend)> = vec![
        (|s| *machine(s) = Machine::absent(), Kind::VmMissing, Mend::Up),
        (|s| machine(s).state = MachineState::Off, Kind::VmStopped, Mend::Up),
        (|s| machine(s).state = MachineState::Paused, Kind::VmPaused, Mend::Up),
        (|s| machine(s).foreign = true, Kind::VmForeign, Mend::Up),
        (|s| machine(s).size.as_mut().unwrap().cpus = 7, Kind::Cpus, Mend::Up),
        (|s| machine(s).size.as_mut().unwrap().memory = 7, Kind::Memory, Mend::Up),
        (|s| facts(s).addresses.clear(), Kind::Nic, Mend::Up),
        (|s| facts(s).hostname = "debian".into(), Kind::System, Mend::Up),
        (|s| facts(s).hosts = None, Kind::Hosts, Mend::Up),
        (|s| drop(facts(s).staged.remove(files::INSTALLER)), Kind::K3sFiles, Mend::Up),
        (|s| facts(s).written.clear(), Kind::K3sConfig, Mend::Up),
        (|s| facts(s).scripts.clear(), Kind::K3sInstall, Mend::Up),
        (|s| facts(s).units.get_mut("k3s-agent").unwrap().active = "failed".into(), Kind::K3sUnit, Mend::Up),
        (|s| facts(s).units.get_mut("k3s-agent").unwrap().restarts = 3, Kind::K3sRestarts, Mend::Note),
        (|s| object(s).ready = false, Kind::NodeNotReady, Mend::Up),
        (|s| object(s).internal_ip = None, Kind::NodeAddress, Mend::Up),
        (|s| object(s).version = "v1.33.0+k3s1".into(), Kind::K3sVersion, Mend::Up),
        (|s| object(s).unschedulable = true, Kind::NodeCordoned, Mend::Up),
        (|s| drop(facts(s).stamps.insert("labels".into(), "label/old=x".into())), Kind::NodeLabels, Mend::Up),
        (|s| drop(s.api.as_mut().unwrap().remove("worker-1")), Kind::NodeMissing, Mend::Up),
        (|s| s.here.image = Some("other sum".into()), Kind::Box, Mend::Note),
        (|s| s.made.get_mut("worker-1").unwrap().ip = [192, 168, 56, 9].into(), Kind::Address, Mend::Replace),
    ];
    for (change, kind, mend) in cases {
        let found = found(change);
        assert!(found.contains(&("worker-1".into(), kind, mend)), "{kind:?} is not in {found:?}");
    }
    let extra = found(|s| {
        let stranger = NodeStatus { name: "stranger".into(), ..NodeStatus::default() };
        s.api.as_mut().unwrap().insert("stranger".into(), stranger);
        s.machines.insert("old".into(), Machine { state: MachineState::Off, ..Machine::absent() });
    });
    assert_eq!(
        extra,
        [("old".into(), Kind::VmExtra, Mend::Remove), ("stranger".into(), Kind::NodeExtra, Mend::Remove)]
    );
    let apps = found(|s| s.apps.as_mut().unwrap().inventory.digest = "of others".into());
    assert_eq!(apps, [(String::new(), Kind::Manifests, Mend::Up)]);
    assert_eq!(found(|s| s.here.provider = Some(crate::machines::Kind::Virtualbox)).len(), 1);
    // Whatever is there: where the spec says to look is not where the cluster is.
    let elsewhere = found(|s| {
        let (uri, bridge) = (crate::spec::LibvirtUri::Session, Some("br0".into()));
        s.here.libvirt = Some(crate::spec::Libvirt { uri, bridge });
        s.machines.clear();
    });
    assert!(elsewhere.contains(&(String::new(), Kind::Provider, Mend::Anew)), "{elsewhere:?}");
    assert!(found(|s| s.here.libvirt = Some(crate::spec::Libvirt::default())).is_empty());
}

/// What becomes of each node is told once, and what is away meanwhile: the steps are `-v`'s.
#[test]
fn a_plan_says_what_becomes_of_each_node() {
    use crate::observed::changes::{Api, Fate, changes};
    let old = Spec {
        servers: 1,
        workers: vec![(true, 0, 512, 1, false, true); 3],
        server: (11, 1024, 1),
        swapped: false,
        other: [false; 5],
    };
    let told = |new: &Cluster, old: &Cluster| {
        let mut seen = look_with(new, reality(old));
        let intent = Intent { verb: Verb::of(VerbName::Up), targets: &[], replace: &[] };
        let found = decide(new, &seen, &intent);
        found.note(&mut seen);
        let view = View::new(new, &seen);
        let all = changes(&view, &found.plan, &found.drift, &found.leaving, &BTreeMap::new());
        let fates: Vec<(String, Fate)> =
            all.all.iter().map(|c| (c.node.clone().unwrap_or_default(), c.fate)).collect();
        (fates, all)
    };
    let (was, mut new) = (old.cluster(), old.cluster());
    assert_eq!(told(&new, &was).0, []);
    new.nodes[1].size = Some(Size { memory: 1024, cpus: 1 });
    new.nodes[2].ip = [192, 168, 56, 99].into();
    new.nodes[3].name = "late".into();
    let (fates, all) = told(&new, &was);
    let named = |name: &str| fates.iter().find(|(n, _)| n == name).map(|(_, fate)| *fate);
    // /etc/hosts of the server names others then.
    for (name, fate) in [
        ("s0", Fate::Change),
        ("w0", Fate::Change),
        ("w1", Fate::Recreate),
        ("late", Fate::Add),
        ("w2", Fate::Destroy),
    ] {
        assert_eq!(named(name), Some(fate), "{name}: {fates:?}");
    }
    assert_eq!((all.counts(), all.away.api), ([2, 2, 2], Api::Stays));
    assert_eq!(
        (&all.away.pods[..], &all.away.leave[..]),
        (&["w0".to_owned()][..], &["w1".into(), "w2".into()][..])
    );
    let memory = &all.all.iter().find(|c| c.node.as_deref() == Some("w0")).unwrap().what[0];
    assert_eq!((memory.before.as_deref(), memory.after.as_deref()), (Some("512 MiB"), Some("1024 MiB")));
    // Another release: the only server's API is away, and pods go on.
    let newer = Spec { other: [false, false, false, true, false], ..old.clone() };
    let (fates, all) = told(&newer.cluster(), &was);
    assert!(fates.len() == 5 && fates.iter().all(|(_, fate)| *fate == Fate::Change), "{fates:?}");
    // The cluster's own is the copy that is kept before.
    let k3s = &all.all[1].what;
    assert_eq!((k3s.len(), k3s[0].what.as_str(), k3s[0].after.as_deref()), (1, "k3s", Some("v1.35.0+k3s1")));
    assert_eq!(
        (all.away.api, &all.away.servers[..], all.away.pods.len()),
        (Api::Away, &["s0".to_owned()][..], 0)
    );
    // The only server goes with all data; of three each is away in its turn.
    let moved = Spec { server: (21, 1024, 1), ..old.clone() };
    assert_eq!(told(&moved.cluster(), &was).1.away.api, Api::Ends);
    let three = Spec { servers: 3, ..old.clone() };
    let newer = Spec { servers: 3, ..newer };
    assert_eq!(told(&newer.cluster(), &three.cluster()).1.away.api, Api::InTurn);
    // Nothing is there.
    let all = changes(
        &View::new(&new, &Observed::default()),
        &Verb::of(VerbName::Up).plan(&View::new(&new, &Observed::default()), &[]),
        &[],
        &[],
        &BTreeMap::new(),
    );
    assert_eq!((all.counts(), all.away.api), ([4, 0, 0], Api::None));
}

/// The only server takes all with it, and says so; a renamed node is told as such.
#[test]
fn what_is_lost_is_said() {
    let old = {
        let mut cluster = crate::spec::fixture::cluster(1);
        cluster.k3s.release = Release::Version("v1.34.1+k3s1".into());
        cluster
    };
    let mut new = old.clone();
    new.nodes[0].ip = [192, 168, 56, 77].into();
    new.nodes[1].name = "renamed".into();
    let seen = look_with(&new, reality(&old));
    let (drift, leaving) = found(&View::new(&new, &seen));
    let said: Vec<String> = drift.iter().map(ToString::to_string).collect();
    insta::assert_snapshot!(said.join("\n"));
    let names: Vec<_> = leaving.iter().map(|n| (n.name.as_str(), n.ip)).collect();
    assert_eq!(names, [("worker-1", old.nodes[1].ip), ("server", old.nodes[0].ip)]);
}

/// A server that says nothing of itself may have the data, and is no reason to think that the data stays.
#[test]
fn a_silent_server_takes_the_data_with_it_and_keeps_none() {
    let with = |servers: usize| {
        let mut cluster = crate::spec::fixture::cluster(1);
        cluster.k3s.release = Release::Version("v1.34.1+k3s1".into());
        let first = cluster.nodes[0].clone();
        for i in 1..servers {
            let ip = Ipv4Addr::from([192, 168, 56, 200 + i as u8]);
            cluster.nodes.insert(i, Node { name: format!("server-{i}"), ip, ..first.clone() });
        }
        cluster
    };
    let losses = |cluster: &Cluster, silent: &[&str], replace: &[&str], change: fn(&mut NodeFacts)| {
        let mut seen = look_with(cluster, reality(cluster));
        seen.api = None;
        seen.nodes.retain(|name, _| !silent.contains(&name.as_str()));
        seen.nodes.values_mut().for_each(|facts| change(std::sync::Arc::make_mut(facts)));
        let replace: Vec<String> = replace.iter().map(|n| (*n).to_owned()).collect();
        decide(cluster, &seen, &Intent { verb: Verb::of(VerbName::Up), targets: &[], replace: &replace })
            .losses
    };
    let (one, three) = (with(1), with(3));
    let first = one.nodes[0].name.as_str();
    let lost = losses(&one, &[first], &[first], |_| {});
    assert!(lost.len() == 1 && lost[0].contains("all data of the cluster"), "{lost:?}");
    let new = |facts: &mut NodeFacts| {
        (facts.datastore, facts.units) = (None, BTreeMap::new());
        facts.stamps.clear();
    };
    assert_eq!(losses(&one, &[], &[first], new), [""; 0], "it says that it has none");
    assert_eq!(losses(&three, &["server-1"], &["server-1"], |_| {}), [""; 0], "the others have it");
    let lost = losses(&three, &[first, "server-1"], &["server-2"], |_| {});
    assert!(lost.len() == 1 && lost[0].contains("no server that has it stays"), "{lost:?}");
}
