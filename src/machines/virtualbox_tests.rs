use std::fs;
use std::os::unix::fs::symlink;

use super::*;
use crate::explain::Explain;
use crate::spec::fixture::named as cluster;

/// Linked to rather than written: a script that another thread's fork still holds open for writing
/// cannot be run (ETXTBSY).
const FAKE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fakes/VBoxManage");

const ADAPTERS: &str = "\
Name:            vboxnet0
GUID:            786f6276-656e-4074-8000-0a0027000000
DHCP:            Disabled
IPAddress:       192.168.56.1
NetworkMask:     255.255.255.0
IPV6Address:
Status:          Up
VBoxNetworkName: HostInterfaceNetworking-vboxnet0

Name:            vboxnet1
GUID:            786f6276-656e-4174-8000-0a0027000001
DHCP:            Disabled
IPAddress:       0.0.0.0
NetworkMask:     0.0.0.0
Status:          Down
";

struct Fake {
    dir: tempfile::TempDir,
    cancel: Cancel,
}

impl Fake {
    fn new(machines: &[(&str, &str)]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("vms")).unwrap();
        fs::write(dir.path().join("adapters"), ADAPTERS).unwrap();
        symlink(FAKE, dir.path().join("VBoxManage")).unwrap();
        for (id, line) in machines {
            fs::write(dir.path().join("vms").join(id), format!("{line}\n")).unwrap();
        }
        Self { dir, cancel: Cancel::new() }
    }

    fn provider(&self) -> VirtualBox {
        VirtualBox::new(&Tools {
            vboxmanage: self.dir.path().join("VBoxManage"),
            vbox_networks: self.dir.path().join("networks.conf"),
            ..Tools::default()
        })
    }

    fn left(&self) -> Vec<String> {
        let files = fs::read_dir(self.dir.path().join("vms")).unwrap();
        let mut names: Vec<_> = files.map(|f| f.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }
}

fn ids(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
    pairs.iter().map(|(node, id)| ((*node).to_owned(), (*id).to_owned())).collect()
}

fn image() -> BoxInfo {
    BoxInfo { name: "p1/debian-12".into(), version: "1.0.0".into(), image: "/none".into() }
}

#[test]
fn machines_are_found_by_id_first_and_by_name_as_strangers() {
    let fake = Fake::new(&[
        ("id-1", "p1-iot-server running 0"),
        ("id-2", "p1-iot-worker-1 paused 0"),
        ("id-3", "debian_1795_temp aborted 0"),
        ("id-4", "p1-iot-more-server running 0"),
    ]);
    let cluster = cluster("iot", "192.168.56.0/24", &["server", "worker-1", "worker-2", "worker-3"]);
    let known = ids(&[("server", "id-1"), ("worker-1", "gone"), ("worker-2", "id-3"), ("old", "gone")]);
    let found = fake.provider().machines(&cluster, &known, &fake.cancel).unwrap();
    let machine =
        |id: &str, state, foreign| Machine { id: Some(id.to_owned()), state, foreign, ..Machine::absent() };
    assert_eq!(found["server"], machine("id-1", MachineState::Running, false));
    assert_eq!(found["worker-1"], machine("id-2", MachineState::Paused, true));
    assert_eq!(found["worker-2"], machine("id-3", MachineState::Off, false));
    assert_eq!(found["worker-3"], Machine::absent());
    assert_eq!(found["old"], Machine::absent());
    assert_eq!(found.len(), 5);
}

#[test]
fn the_endpoint_is_the_forwarded_ssh_port() {
    let fake = Fake::new(&[("id-1", "p1-iot-server running 0")]);
    let cluster = cluster("iot", "192.168.56.0/24", &["server"]);
    let at = |id| fake.provider().endpoint(&cluster, "server", id, &fake.cancel);
    assert_eq!(at("id-1").unwrap(), "127.0.0.1:2201".parse().unwrap());
    assert_eq!(at("gone").unwrap_err().to_string(), "`VBoxManage` gave no forwarded SSH port of node server");
}

#[test]
fn an_owner_is_noted_in_a_machines_extra_data_and_what_is_spared_stays() {
    let fake = Fake::new(&[("id-1", "p1-iot-server running 0"), ("id-2", "p1-iot-x-server poweroff 0")]);
    let cluster = cluster("iot", "192.168.56.0/24", &["server", "x-server"]);
    let nodes = ["server", "x-server", "none"].map(str::to_owned);
    let held = || fake.provider().holdings(&cluster, &nodes.clone().into(), &fake.cancel).unwrap().machines;
    let owner = Owner { cluster: "iot-x".into(), id: "1".into(), folder: "/it's #{a}/.p1/iot-x".into() };
    assert_eq!(held()["x-server"], Held { id: "id-2".into(), owner: None, source: None });
    fake.provider().own_machine(&cluster, "x-server", "id-2", &owner, &fake.cancel).unwrap();
    assert_eq!(held()["x-server"].owner, Some(owner));
    assert_eq!((held().len(), &held()["server"].owner), (2, &None));
    let (known, spared) = (BTreeMap::new(), BTreeSet::from(["x-server".to_owned()]));
    let what =
        Leftovers { nodes: &nodes, ids: &known, spared: &spared, owner: None, whole: true, images: &[] };
    fake.provider().clean(&cluster, &what, &mut |_| {}, &fake.cancel).unwrap();
    assert_eq!(fake.left(), ["id-2", "id-2.extra"]);
}

#[test]
fn powering_off_is_fine_when_it_is_off_or_gone() {
    let fake = Fake::new(&[("id-1", "p1-iot-server running 0")]);
    let cluster = cluster("iot", "192.168.56.0/24", &["server"]);
    for id in ["id-1", "id-1", "gone"] {
        fake.provider().power_off(&cluster, "server", id, &fake.cancel).unwrap();
    }
    let calls = fs::read_to_string(fake.dir.path().join("calls")).unwrap();
    assert_eq!(calls.matches("controlvm id-1 poweroff").count(), 1, "{calls}");
}

#[test]
fn clean_takes_exactly_ours_whatever_their_condition() {
    let fake = Fake::new(&[
        ("id-1", "p1-iot-server running 1"),
        ("id-2", "<inaccessible> x 0"),
        ("id-3", "p1-iot-more-server running 0"),
        ("id-4", "p1-iot-worker-2 poweroff 0"),
    ]);
    let cluster = cluster("iot", "192.168.56.0/24", &["server"]);
    let nodes = ["server", "worker-1"].map(str::to_owned);
    let known = ids(&[("server", "gone"), ("worker-1", "id-2")]);
    let spared = BTreeSet::new();
    let what =
        Leftovers { nodes: &nodes, ids: &known, spared: &spared, owner: None, whole: true, images: &[] };
    let mut said = Vec::new();
    let removed =
        fake.provider().clean(&cluster, &what, &mut |s| said.push(s.to_owned()), &fake.cancel).unwrap();
    assert_eq!(removed, ["machine p1-iot-server (id-1)", "machine <inaccessible> (id-2)"]);
    assert_eq!(said.len(), 2);
    assert_eq!(fake.left(), ["id-3", "id-4"]);
    assert!(fake.provider().clean(&cluster, &what, &mut |_| {}, &fake.cancel).unwrap().is_empty());
}

#[test]
fn a_machine_that_stays_locked_is_waited_for_as_long_as_is_said() {
    let fake = Fake::new(&[("id-1", "p1-iot-server poweroff 1000000")]);
    let cluster = cluster("iot", "192.168.56.0/24", &["server"]);
    let (nodes, known) = (["server".to_owned()], ids(&[("server", "id-1")]));
    let spared = BTreeSet::new();
    let what =
        Leftovers { nodes: &nodes, ids: &known, spared: &spared, owner: None, whole: true, images: &[] };
    let start = std::time::Instant::now();
    let error = fake.provider().clean(&cluster, &what, &mut |_| {}, &fake.cancel).unwrap_err();
    let took = start.elapsed();
    assert!(took >= UNLOCK && took < UNLOCK + std::time::Duration::from_secs(10), "{took:?}");
    let words = crate::explain::Explain::evidence(&error).join("\n");
    assert!(words.contains("while it is locked"), "{error}: {words}");
    assert_eq!(fake.left(), ["id-1"]);
}

#[test]
fn prepare_names_what_is_in_the_way() {
    let fake = Fake::new(&[]);
    let said = |cidr: &str, nodes: &[&str]| {
        let cluster = cluster("iot", cidr, nodes);
        let prepared = fake.provider().prepared(&cluster, &image(), &fake.cancel).unwrap();
        let owner = Owner { cluster: "iot".into(), id: "1".into(), folder: "/a/.p1/iot".into() };
        let result = fake.provider().prepare(&cluster, &image(), &owner, &mut |_| {}, &fake.cancel);
        match result {
            Ok(_) => assert_eq!(prepared, None),
            Err(ref e) => assert_eq!(prepared.unwrap(), e.to_string()),
        }
        result.err().map(|e| format!("{e}. {}", e.hint().unwrap()))
    };
    assert_eq!(said("192.168.56.0/24", &["server"]), None);
    assert_eq!(said("192.168.57.0/24", &["server"]), None);
    let outside = said("192.168.42.0/24", &["server"]).unwrap();
    assert!(outside.contains("Add the line `* 192.168.42.0/24` to "), "{outside}");
    let wider = said("192.168.56.0/22", &["server"]).unwrap();
    assert!(
        wider.starts_with("the host-only adapter vboxnet0 has 192.168.56.1/24, which overlaps"),
        "{wider}"
    );

    fs::write(fake.dir.path().join("networks.conf"), "# mine\n* 10.0.0.0/8 fe80::/10\n* 192.168.42.0/24\n")
        .unwrap();
    assert_eq!(said("192.168.42.0/24", &["server"]), None);
    assert!(said("192.168.56.0/24", &["server"]).is_some());
}

#[test]
fn a_missing_program_points_at_doctor() {
    let tools = Tools { vboxmanage: "/nonexistent/VBoxManage".into(), ..Tools::default() };
    let cluster = cluster("iot", "192.168.56.0/24", &["server"]);
    let error = VirtualBox::new(&tools).machines(&cluster, &BTreeMap::new(), &Cancel::new()).unwrap_err();
    assert!(error.hint().unwrap().contains("p1 doctor"));
}

#[test]
fn a_snapshot_is_taken_of_a_paused_machine_and_restored_to_one_that_is_off() {
    let fake = Fake::new(&[("id-1", "p1-iot-server running 1"), ("id-2", "p1-iot-worker running 0")]);
    let cluster = cluster("iot", "192.168.56.0/24", &["server", "worker"]);
    let (provider, cancel) = (fake.provider(), &fake.cancel);
    let ids = ids(&[("server", "id-1"), ("worker", "id-2")]);
    let state = |id| provider.state(id, cancel).unwrap();
    let note = Note::read("p1 set=r1 at=2026-11-25T22:00:00Z nodes=server,worker ready=").unwrap();
    assert!(provider.snapshots(&cluster, &ids, cancel).unwrap().is_empty());

    for _ in 0..2 {
        provider.pause(&cluster, &ids, cancel).unwrap();
        assert_eq!((state("id-1"), state("id-2")), (MachineState::Paused, MachineState::Paused));
    }
    let server = ("server", "id-1");
    provider.take(&cluster, server, ("a", &note), cancel).unwrap();
    provider.take(&cluster, server, ("b", &note), cancel).unwrap();
    // One that somebody took by hand.
    let file = fake.dir.path().join("vms/id-1.snapshots");
    fs::write(&file, format!("mine\n{}", fs::read_to_string(&file).unwrap())).unwrap();
    for _ in 0..2 {
        provider.resume(&cluster, &ids, cancel).unwrap();
        assert_eq!((state("id-1"), state("id-2")), (MachineState::Running, MachineState::Running));
    }
    let found = provider.snapshots(&cluster, &ids, cancel).unwrap();
    let one = |name: &str| Snapshot { name: name.into(), note: note.clone(), bytes: None };
    assert_eq!(found, BTreeMap::from([("server".to_owned(), vec![one("a"), one("b")])]));

    provider.restore(&cluster, server, "a", cancel).unwrap();
    assert_eq!(state("id-1"), MachineState::Saved);
    provider.resume(&cluster, &ids, cancel).unwrap();
    assert_eq!(state("id-1"), MachineState::Running);
    provider.forget(&cluster, server, "a", cancel).unwrap();
    provider.forget(&cluster, server, "a", cancel).unwrap();
    let left = provider.snapshots(&cluster, &ids, cancel).unwrap();
    assert_eq!(left["server"], [one("b")]);
}
