//! What is said of machines as data and what can be done with them are one, whoever has them.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use super::*;
use crate::os::Cancel;
use crate::spec::fixture;
use crate::spec::{Cluster, Node};
use crate::ssh::Root;

/// Machines that are only reached.
pub struct SshOnly;

impl Machines for SshOnly {
    fn kind(&self) -> Kind {
        Kind::default()
    }

    fn look(&self, _: &Cluster, nodes: &[&Node], _: &Cancel) -> Result<BTreeMap<String, Machine>, Error> {
        let machine = Machine { state: MachineState::Running, can: Caps::NONE, ..Machine::absent() };
        Ok(nodes
            .iter()
            .map(|n| (n.name.clone(), Machine { id: self.id(&n.name), ..machine.clone() }))
            .collect())
    }

    fn id(&self, node: &str) -> Option<String> {
        Some(format!("key of {node}"))
    }

    fn way(&self, _: &Cluster, node: &Node, _: Option<&Made>, _: &Cancel) -> Result<Way, Error> {
        let host = format!("{}.example", node.name);
        Ok(Way {
            host,
            port: 2222,
            user: "admin".into(),
            keys: vec![],
            insecure: vec![],
            root: Root::Sudo,
            opened: false,
            jump: None,
            arranged: Arranged::default(),
        })
    }

    fn door(&self, _: &Node, _: u16) -> Option<SocketAddr> {
        None
    }
}

/// Those of a provider whose programs have nothing to tell.
fn of(kind: Kind, engine: Engine, dir: &Path) -> Fleet {
    let silent = dir.join("silent");
    std::fs::write(&silent, "#!/bin/sh\n").unwrap();
    std::fs::set_permissions(&silent, std::fs::Permissions::from_mode(0o700)).unwrap();
    let tools = Tools { virsh: silent.clone(), vboxmanage: silent.clone(), ..Tools::default() };
    Fleet::open(
        kind,
        Here {
            reach: None,
            tools,
            cpu: None,
            engine,
            vagrant: silent,
            homes: (dir.join("home"), None),
            dir: dir.join(".p1/iot"),
            no_proxy: String::new(),
            users: Users::default(),
            jobs: 2,
        },
        BTreeSet::new(),
    )
}

#[test]
fn what_machines_are_said_to_be_able_to_is_what_can_be_done_with_them() {
    let (dir, stop, cluster) = (tempfile::tempdir().unwrap(), Cancel::new(), fixture::cluster(2));
    let by = |kind, engine| of(kind, engine, dir.path());
    let but = |without: &[Cap]| Cap::ALL.into_iter().filter(|c| !without.contains(c)).collect::<Vec<_>>();
    let all = [
        (by(Kind::Libvirt, Engine::Vagrant), but(&[Cap::Release])),
        (by(Kind::Libvirt, Engine::Direct), but(&[Cap::Provision, Cap::Release])),
        (
            by(Kind::Virtualbox, Engine::Vagrant),
            but(&[Cap::Suspend, Cap::Keep, Cap::Link, Cap::Throttle, Cap::Release]),
        ),
        (by(Kind::Ssh, Engine::Direct), vec![Cap::Release]),
        (Fleet::new(Box::new(SshOnly), vec![]), but(&Cap::ALL)),
    ];
    for (fleet, wanted) in all {
        let machines = fleet.look(&cluster, &stop).unwrap();
        for node in &cluster.nodes {
            let has = Caps::of(fleet.of(&node.name));
            assert_eq!(machines[&node.name].can, has, "{} {}", fleet.kind(), node.name);
            for cap in Cap::ALL {
                assert_eq!(has.has(cap), wanted.contains(&cap), "{cap:?}");
            }
        }
    }
}

#[test]
fn a_node_is_asked_of_whoever_has_its_machine() {
    let (dir, stop, cluster) = (tempfile::tempdir().unwrap(), Cancel::new(), fixture::cluster(2));
    let worker = cluster.nodes[1].clone();
    let theirs: BTreeSet<String> = [worker.name.clone()].into();
    let mut fleet = of(Kind::Libvirt, Engine::Vagrant, dir.path());
    fleet = Fleet::new(fleet.into_usual(), vec![(theirs.clone(), Box::new(SshOnly))]);

    // Of two kinds without anything that tells their values apart each has its own.
    let (one, two) = (cluster.nodes[1].name.clone(), cluster.nodes[2].name.clone());
    let others: Vec<(BTreeSet<String>, Box<dyn Machines>)> =
        vec![([one].into(), Box::new(SshOnly)), ([two].into(), Box::new(SshOnly))];
    let both = Fleet::new(Box::new(SshOnly), others);
    let asked = both.look(&cluster, &stop).unwrap().len();
    let parts: Vec<usize> = (0..3).map(|place| both.part(&cluster, place).nodes.len()).collect();
    assert_eq!((asked, parts), (3, vec![1, 1, 1]));

    let machines = fleet.look(&cluster, &stop).unwrap();
    assert_eq!(
        machines.keys().collect::<Vec<_>>(),
        cluster.nodes.iter().map(|n| &n.name).collect::<Vec<_>>()
    );
    assert_eq!(
        (&machines[&worker.name].state, machines[&worker.name].can),
        (&MachineState::Running, Caps::NONE)
    );
    assert_eq!(machines[&cluster.nodes[0].name].can, Caps::ALL);
    assert_eq!(
        fleet.ids(&cluster),
        BTreeMap::from([(worker.name.clone(), format!("key of {}", worker.name))])
    );

    assert_eq!(fleet.way(&cluster, &worker, None, &stop).unwrap().user, "admin");
    assert_eq!(fleet.door(&worker, 6443), None);
    assert_eq!(fleet.door(&cluster.nodes[0], 6443), Some((cluster.nodes[0].ip, 6443).into()));
    fleet.power(&cluster.nodes[0].name).map(drop).unwrap();
    let error = fleet.power(&worker.name).map(drop).unwrap_err().to_string();
    assert!(error.contains(&worker.name) && error.contains("on or off"), "{error}");
    // Nothing is asked of those who cannot, and nobody else is asked about their nodes.
    fleet.pause(&cluster, &theirs, &stop).unwrap();
    assert_eq!(fleet.evidence(&cluster.name, std::slice::from_ref(&worker.name)).len(), 0);
    let seen = std::sync::Mutex::new(Vec::new());
    fleet
        .for_makers(&cluster, &mut |_, part| {
            seen.lock().unwrap().extend(part.nodes.iter().map(|n| n.name.clone()));
            Ok(vec![])
        })
        .unwrap();
    assert!(!seen.into_inner().unwrap().contains(&worker.name));
}
