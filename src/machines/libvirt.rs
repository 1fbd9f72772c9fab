//! libvirt, through `virsh`: one process for a question about all machines, no Ruby.
//!
//! p1 makes the network and the base image itself, under a lock of the host: two vagrant processes
//! that do it at once take the same bridge or clone from a half-uploaded image (vagrant-libvirt
//! #1229, #1863; `@@lock` there is per process).

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use ipnet::Ipv4Net;

use super::{
    BoxInfo, Error, FileDisk, Held, Holdings, Hosting, Hypervisor, Kind, Leftovers, Limit, Machine,
    MachineState, Made, Note, Owner, Size, Snapshot, Tools, disks, fork, machine_name, machine_prefix,
    network_name, node_mac, snapshot,
};
use crate::explain::Explain;
use crate::os::Cancel;
use crate::os::files::At;
use crate::os::orphan;
use crate::os::process::{self, Cmd, Finished};
use crate::render;
use crate::spec::{self, Cluster};

/// A question to libvirtd takes 30 ms; two minutes is for a host that swaps.
pub(super) const VIRSH_TIMEOUT: Duration = Duration::from_secs(120);
/// Sending a base image of some GiB to the pool.
const UPLOAD: Duration = Duration::from_secs(1800);
/// For a program of a killed p1 to end, after each signal.
const ORPHAN: Duration = Duration::from_secs(10);
/// Writing a machine's memory into its disk, or reading it back.
pub(super) const MEMORY: Duration = Duration::from_secs(600);
/// The only pool that vagrant-libvirt makes by itself (`handle_storage_pool.rb`).
pub const POOL: &str = "default";
/// The namespace of what p1 writes into libvirt's `<metadata>`.
const METADATA: &str = "urn:p1:owner";
/// The ending of what a box had as `authorized_keys` while a box is baked of its machine.
pub const KEYS_OF_BOX: &str = ".p1-box";
/// Where that one keeps its volumes.
pub const POOL_PATH: &str = "/var/lib/libvirt/images";

/// libvirt on this host.
pub struct Libvirt {
    tools: Tools,
}

impl Libvirt {
    /// With these programs.
    pub fn new(tools: Tools) -> Self {
        Self { tools }
    }

    pub(super) fn virsh<S: AsRef<str>>(&self, args: impl IntoIterator<Item = S>) -> Cmd {
        let mut cmd = Cmd::new(&self.tools.virsh).env("LC_ALL", "C").arg("-c").arg(&self.tools.libvirt_uri);
        for arg in args {
            cmd = cmd.arg(arg.as_ref());
        }
        cmd
    }

    pub(super) fn ask(&self, doing: &str, args: &[&str], cancel: &Cancel) -> Result<Finished, Error> {
        let done = process::run(&self.virsh(args), VIRSH_TIMEOUT, cancel).map_err(failed(doing))?;
        done.ok().map_err(failed(doing))
    }

    /// A command that may find its work done: the machine runs already.
    fn unless(&self, doing: &str, args: &[&str], cancel: &Cancel) -> Result<(), Error> {
        let done = process::run(&self.virsh(args), VIRSH_TIMEOUT, cancel).map_err(failed(doing))?;
        if done.stderr.contains("already active") || done.stderr.contains("already running") {
            return Ok(());
        }
        done.ok().map(|_| ()).map_err(failed(doing))
    }

    /// Standard output, or `None` if virsh says no: the thing is not there.
    pub(super) fn look(&self, doing: &str, args: &[&str], cancel: &Cancel) -> Result<Option<String>, Error> {
        let done = process::run(&self.virsh(args), VIRSH_TIMEOUT, cancel).map_err(failed(doing))?;
        if done.success() {
            return Ok(Some(done.stdout));
        }
        // Absent is an answer; a daemon that does not is a failure.
        let absent = ["not found", "no domain with", "no storage vol", "no storage pool", "no network with"];
        if absent.iter().any(|w| done.stderr.to_lowercase().contains(w)) {
            return Ok(None);
        }
        done.ok().map(|_| None).map_err(failed(doing))
    }

    fn network(&self, name: &str, cancel: &Cancel) -> Result<Option<Network>, Error> {
        let doing = "look at the network";
        // What is written down and counts at the next start, and what runs; the last one only has to succeed.
        let asked = [
            vec!["net-dumpxml", "--inactive", name],
            vec!["net-info", name],
            vec!["net-dumpxml", name],
            vec!["list", "--all", "--name"],
        ];
        let told = self.several(doing, &asked, cancel)?;
        let [kept, info, live, _] = &told[..] else { return Ok(None) };
        if kept.trim().is_empty() {
            return Ok(None);
        }
        let value = |key: &str| info.lines().find_map(|l| Some(l.strip_prefix(key)?.trim().to_owned()));
        let active = value("Active:").as_deref() == Some("yes");
        Ok(Some(Network {
            kept: Layout::read(kept),
            live: active.then(|| Layout::read(live)),
            owner: owner_in(kept),
            bridge: value("Bridge:").unwrap_or_default(),
        }))
    }

    /// What the network lacks.
    fn network_wants(&self, cluster: &Cluster, found: Option<&Network>) -> Result<Want, Error> {
        let Some(found) = found else { return Ok(Want::Define) };
        let name = network_name(&cluster.name);
        for layout in [Some(&found.kept), found.live.as_ref()].into_iter().flatten() {
            let Some(what) = layout.differs(cluster) else { continue };
            let verbs: &[&str] =
                if found.live.is_some() { &["net-destroy", "net-undefine"] } else { &["net-undefine"] };
            let virsh = |verb: &&str| format!("virsh -c {} {verb} {name}", self.tools.libvirt_uri);
            let next: Vec<String> = verbs.iter().map(virsh).collect();
            return Err(Error::Conflict {
                what: format!("the libvirt network `{name}` has {what}"),
                remedy: format!(
                    "Remove only the network, and `p1 up` makes it as the spec says: {}. Where the spec was changed, \
                     `p1 destroy` removes the cluster with its network.",
                    next.join("; ")
                ),
                next,
            });
        }
        let missing = |layout: &Layout| match cluster.network.nics {
            1 if cluster.fork.is_none() => {
                hosts(cluster).into_iter().filter(|h| !layout.hosts.contains(h)).collect()
            }
            _ => Vec::new(),
        };
        let live = found.live.as_ref();
        Ok(Want::Mend {
            start: live.is_none(),
            kept: missing(&found.kept),
            live: live.map(missing).unwrap_or_default(),
        })
    }

    /// What the network lacks, as a fragment.
    fn network_lacks(&self, cluster: &Cluster, cancel: &Cancel) -> Result<Option<String>, Error> {
        if let Some(bridge) = &self.tools.bridge {
            return self.must_be_up(&bridge.name, cancel).map(|()| None);
        }
        let name = network_name(&cluster.name);
        let found = self.network(&name, cancel)?;
        Ok(match self.network_wants(cluster, found.as_ref())? {
            Want::Define => Some(format!("the libvirt network `{name}` is not there")),
            Want::Mend { start: true, .. } => Some(format!("the libvirt network `{name}` is not started")),
            Want::Mend { kept, live, .. } => live.first().or(kept.first()).map(|host| {
                format!("the libvirt network `{name}` has no address reserved for {}", host.name)
            }),
        })
    }

    /// Nothing of a bridge of root's is p1's to make or to mend.
    fn must_be_up(&self, bridge: &str, cancel: &Cancel) -> Result<(), Error> {
        let links = self.links("look at the bridge", cancel)?;
        let what = match links.lines().find(|l| link_name(l) == Some(bridge)) {
            None => "is not there",
            Some(link) if !link.split(['<', '>']).nth(1).is_some_and(|f| f.split(',').any(|f| f == "UP")) => {
                "is not up"
            }
            Some(_) => return Ok(()),
        };
        Err(Error::Conflict {
            what: format!("the bridge {bridge} {what}"),
            remedy: "Root makes it: `p1 doctor` says with which commands.".into(),
            next: vec!["p1 doctor".into()],
        })
    }

    fn links(&self, doing: &str, cancel: &Cancel) -> Result<String, Error> {
        let cmd = Cmd::new(&self.tools.ip).args(["-o", "link", "show"]);
        Ok(process::run(&cmd, VIRSH_TIMEOUT, cancel).and_then(Finished::ok).map_err(failed(doing))?.stdout)
    }

    /// What machines' cards are on, as libvirt says it: its kind and its name.
    fn ground(&self, cluster: &Cluster) -> (&'static str, String) {
        match &self.tools.bridge {
            Some(bridge) => ("bridge", bridge.name.clone()),
            None => ("network", network_name(&cluster.name)),
        }
    }

    /// Makes or mends the network. The caller holds a lock of the host.
    fn make_network(
        &self,
        cluster: &Cluster,
        owner: &Owner,
        report: &mut dyn FnMut(&str),
        did: &mut Vec<String>,
        cancel: &Cancel,
    ) -> Result<(), Error> {
        if let Some(bridge) = &self.tools.bridge {
            return self.must_be_up(&bridge.name, cancel);
        }
        let name = network_name(&cluster.name);
        let found = self.network(&name, cancel)?;
        if let Some(other) = found.as_ref().and_then(|n| n.owner.as_ref()).filter(|o| !o.is(owner)) {
            // Between the look before the run and now.
            return Err(theirs(format!("the libvirt network `{name}`"), other));
        }
        let start = match self.network_wants(cluster, found.as_ref())? {
            Want::Define => {
                report("making the network");
                let xml = network_xml(cluster, Some(owner)).map_err(Error::Render)?;
                self.define_network(&xml, "make the network", cancel)?;
                did.push(format!("made the network {name} ({})", cluster.network.cidr));
                true
            }
            Want::Mend { start, kept, live } => {
                for (hosts, at) in [(&kept, "--config"), (&live, "--live")] {
                    for host in hosts {
                        self.reserve(&name, host, at, cancel)?;
                    }
                }
                let all = kept.iter().chain(live.iter().filter(|h| !kept.contains(h)));
                did.extend(all.map(|host| format!("reserved {} for {}", host.ip, host.name)));
                start
            }
        };
        if start {
            self.ask("start the network", &["net-start", &name], cancel)?;
            did.push(format!("started the network {name}"));
        }
        Ok(())
    }

    fn define_network(&self, xml: &str, doing: &str, cancel: &Cancel) -> Result<(), Error> {
        let cmd = self.virsh(["net-define", "/dev/stdin"]).stdin(xml);
        process::run(&cmd, VIRSH_TIMEOUT, cancel).and_then(Finished::ok).map(|_| ()).map_err(failed(doing))
    }

    /// The cards of machines that run and are not on the network's bridge, by node: a network that is stopped
    /// and started again has another bridge, and nobody puts the cards of before onto it.
    fn loose(
        &self,
        cluster: &Cluster,
        ids: &BTreeMap<String, String>,
        cancel: &Cancel,
    ) -> Result<(String, Vec<(String, String)>), Error> {
        let (kind, name) = self.ground(cluster);
        let doing = "look at the machines' cards";
        let bridge = match &self.tools.bridge {
            Some(bridge) => bridge.name.clone(),
            None => self.network(&name, cancel)?.map(|n| n.bridge).unwrap_or_default(),
        };
        let domains: Vec<String> = ids.keys().map(|node| machine_name(&cluster.name, node)).collect();
        let asked: Vec<_> = domains.iter().map(|d| vec!["domiflist", d]).collect();
        let lists = self.several(doing, &asked, cancel)?;
        let links = self.links(doing, cancel)?;
        let mut loose = Vec::new();
        for (node, list) in ids.keys().zip(&lists) {
            for line in list.lines() {
                let words: Vec<&str> = line.split_whitespace().collect();
                let [card, of, source, ..] = words[..] else { continue };
                // Of a machine that is off it says `-`.
                let Some(link) = links.lines().find(|l| link_name(l) == Some(card)) else { continue };
                if (of, source) == (kind, &*name) && !link.contains(&format!(" master {bridge} ")) {
                    loose.push((node.clone(), card.to_owned()));
                }
            }
        }
        Ok((bridge, loose))
    }

    /// Bytes of the volume in the pool.
    /// The network of machines' first card where they have two, as vagrant-libvirt makes it.
    fn management(&self, cancel: &Cancel) -> Result<(), Error> {
        let doing = "make the network vagrant-libvirt";
        if self.network(MANAGEMENT, cancel)?.is_none() {
            self.define_network(MANAGEMENT_XML, doing, cancel)?;
        }
        self.unless(doing, &["net-start", MANAGEMENT], cancel)
    }

    fn volume_size(&self, volume: &str, cancel: &Cancel) -> Result<Option<u64>, Error> {
        let args = ["vol-info", "--pool", POOL, "--bytes", "--physical", volume];
        let Some(text) = self.look("look at the base image", &args, cancel)? else { return Ok(None) };
        let physical = text.lines().find_map(|l| l.strip_prefix("Physical:"));
        Ok(physical.and_then(|l| l.split_whitespace().next()?.parse().ok()))
    }

    fn image_ready(&self, image: &BoxInfo, cancel: &Cancel) -> Result<bool, Error> {
        let want = fs::metadata(&image.image).at("read", &image.image)?.len();
        Ok(self.volume_size(&volume(image), cancel)?.is_some_and(|have| have >= want))
    }

    fn upload(&self, image: &BoxInfo, report: &mut dyn FnMut(&str), cancel: &Cancel) -> Result<(), Error> {
        let name = volume(image);
        report("sending the base image to libvirt");
        // What a killed p1 left at that goes on writing to the volume, which is about to be recreated.
        let input = image.image.with_extension("sending");
        let program = self.tools.virsh.file_name().unwrap_or_default().to_string_lossy();
        if !orphan::end(&input, &program, ORPHAN) {
            return Err(Error::Conflict {
                what: "the virsh that a killed p1 left sending the base image does not end".into(),
                remedy: format!("It holds {}; end it by hand.", input.display()),
                next: Vec::new(),
            });
        }
        if self.volume_size(&name, cancel)?.is_some() {
            // Cut off in the middle of an upload. vagrant-libvirt would clone from it for ever.
            self.ask("remove a broken base image", &["vol-delete", "--pool", POOL, &name], cancel)?;
        }
        let capacity = self.capacity(image, cancel)?;
        let create = ["vol-create-as", POOL, &name, &capacity, "--format", "qcow2"];
        self.ask("make the base image", &create, cancel)?;
        let path = image.image.to_string_lossy();
        let cmd = self.virsh(["vol-upload", "--pool", POOL, &name, &path]).held_by(input);
        let doing = "send the base image";
        process::run(&cmd, UPLOAD, cancel).and_then(Finished::ok).map_err(failed(doing))?;
        self.ask("read the pool again", &["pool-refresh", POOL], cancel)?;
        if self.image_ready(image, cancel)? {
            return Ok(());
        }
        Err(Error::Answer {
            program: "virsh",
            what: "whole base image after sending it".into(),
            lines: vec![],
        })
    }

    fn capacity(&self, image: &BoxInfo, cancel: &Cancel) -> Result<String, Error> {
        Ok(format!("{}b", self.virtual_size(&image.image, cancel)?))
    }

    fn virtual_size(&self, image: &Path, cancel: &Cancel) -> Result<u64, Error> {
        let cmd = Cmd::new(&self.tools.qemu_img).args(["info", "--output=json"]).arg(image);
        let doing = "read the box' disk image";
        let done = process::run(&cmd, VIRSH_TIMEOUT, cancel).and_then(Finished::ok).map_err(failed(doing))?;
        let info: Option<serde_json::Value> = serde_json::from_str(&done.stdout).ok();
        let size = info.and_then(|i| i["virtual-size"].as_u64());
        size.ok_or_else(|| Error::Answer {
            program: "qemu-img",
            what: "virtual size".into(),
            lines: process::tail(&done.stdout, 8),
        })
    }

    /// The pool, where vagrant-libvirt would make it too (`handle_storage_pool.rb`), but not before
    /// p1 needs it.
    fn pool(
        &self,
        report: &mut dyn FnMut(&str),
        did: &mut Vec<String>,
        cancel: &Cancel,
    ) -> Result<(), Error> {
        let doing = "make the storage pool";
        let info = self.look("look at the storage pool", &["pool-info", POOL], cancel)?;
        if info.is_none() {
            let path = self.tools.images.to_string_lossy();
            report(&format!("making the storage pool {POOL} in {path}"));
            self.ask(doing, &["pool-define-as", POOL, "dir", "--target", &path], cancel)?;
            self.ask(doing, &["pool-build", POOL], cancel)?;
            did.push(format!("made the storage pool {POOL} ({path})"));
        }
        if !info.as_deref().is_some_and(pool_runs) {
            self.ask("start the storage pool", &["pool-start", POOL], cancel)?;
        }
        Ok(())
    }

    /// Every domain: its name, its UUID.
    fn domains(&self, cancel: &Cancel) -> Result<BTreeMap<String, String>, Error> {
        let done = self.ask("list the machines", &["list", "--all", "--uuid", "--name"], cancel)?;
        Ok(pairs(&done.stdout))
    }

    pub(super) fn volumes(&self, cancel: &Cancel) -> Result<BTreeSet<String>, Error> {
        // After a start of the host it may be there and not started.
        if let Some(info) = self.look("look at the storage pool", &["pool-info", POOL], cancel)?
            && !pool_runs(&info)
        {
            self.unless("start the storage pool", &["pool-start", POOL], cancel)?;
        }
        let list = self.look("list the volumes", &["vol-list", POOL], cancel)?.unwrap_or_default();
        Ok(list.lines().skip(2).filter_map(|l| Some(l.split_whitespace().next()?.to_owned())).collect())
    }

    /// True if a volume of the pool has this one behind it.
    pub(super) fn backing(&self, base: &str, cancel: &Cancel) -> Result<bool, Error> {
        for volume in self.volumes(cancel)? {
            let args = ["vol-dumpxml", "--pool", POOL, &volume];
            let xml = self.look("look at a volume", &args, cancel)?.unwrap_or_default();
            if xml.split("<backingStore>").nth(1).is_some_and(|behind| behind.contains(&format!("/{base}<")))
            {
                return Ok(true);
            }
        }
        Ok(false)
    }
}

/// virsh' words where the socket is gone, and where the daemon goes while it is asked.
const GONE: [&str; 5] = [
    "failed to connect socket",
    "failed to connect to the hypervisor",
    "end of file while reading data",
    "cannot recv data",
    "cannot write data",
];

/// For `map_err`: tells a daemon that does not answer from a question that it refuses.
pub(super) fn failed(doing: &str) -> impl FnOnce(process::Error) -> Error {
    // And where it is there for others (libvirt's socket, its polkit rules).
    const CLOSED: [&str; 4] = ["permission denied", "authentication", "polkit", "access denied"];
    move |error| {
        let lines = error.evidence();
        let text = lines.join("\n").to_lowercase();
        let says = |words: &[&str]| words.iter().any(|w| text.contains(w));
        let (doing, who) = (doing.to_owned(), "libvirt");
        match error {
            process::Error::Failed { .. } if says(&GONE) && says(&CLOSED) => {
                Error::Denied { doing, who, lines }
            }
            process::Error::Failed { .. } if says(&GONE) => Error::Down { doing, who, lines },
            error => Error::doing(doing)(error),
        }
    }
}

/// The volume that vagrant-libvirt clones its machines' disks from
/// (`lib/vagrant-libvirt/action/handle_box_image.rb`).
fn volume(image: &BoxInfo) -> String {
    format!("{}_vagrant_box_image_{}_box.img", image.folder(), image.version)
}

/// vagrant-libvirt's name for a root disk (`create_domain_volume.rb`).
pub(super) fn disk(cluster: &str, node: &str) -> String {
    format!("{}.img", machine_name(cluster, node))
}

fn pairs(text: &str) -> BTreeMap<String, String> {
    let mut map = BTreeMap::new();
    for line in text.lines().filter(|l| !l.contains(':')) {
        let mut words = line.split_whitespace();
        if let (Some(uuid), Some(name)) = (words.next(), words.next()) {
            map.insert(name.to_owned(), uuid.to_owned());
        }
    }
    map
}

/// By domain, from what `virsh dominfo` says of several, one after the other.
fn sizes(text: &str) -> BTreeMap<String, Size> {
    let (mut all, mut name, mut cpus) = (BTreeMap::new(), String::new(), None);
    for line in text.lines() {
        let Some((key, value)) = line.split_once(':') else { continue };
        let value = value.trim();
        match key {
            "Name" => {
                value.clone_into(&mut name);
                cpus = None;
            }
            "CPU(s)" => cpus = value.parse().ok(),
            "Max memory" => {
                let kib: Option<u32> = value.strip_suffix("KiB").and_then(|n| n.trim().parse().ok());
                if let (Some(cpus), Some(kib)) = (cpus, kib) {
                    all.insert(name.clone(), Size { cpus, memory: kib / 1024 });
                }
            }
            _ => {}
        }
    }
    all
}

/// The question how machines are. One virsh: it goes on after a `dominfo` of what is not there, and its exit code is the
/// last one's.
fn listing(cluster: &Cluster, ids: &BTreeMap<String, String>) -> String {
    let names: BTreeSet<&String> = cluster.nodes.iter().map(|n| &n.name).chain(ids.keys()).collect();
    let infos: String =
        names.iter().map(|n| format!("dominfo {}; ", machine_name(&cluster.name, n))).collect();
    format!("list --all --uuid --name; {infos}list --all")
}

/// The answer to it.
fn listed(text: &str, cluster: &Cluster, ids: &BTreeMap<String, String>) -> BTreeMap<String, Machine> {
    let names: BTreeSet<&String> = cluster.nodes.iter().map(|n| &n.name).chain(ids.keys()).collect();
    let (uuids, table) = text.split_once(" Id ").unwrap_or((text, ""));
    // Between them, lines of `key: value`.
    let (uuids, sizes, saved) = (pairs(uuids), sizes(uuids), saved(uuids));
    let mut states = BTreeMap::new();
    for line in table.lines().skip(2) {
        let mut words = line.split_whitespace().skip(1);
        if let Some(name) = words.next() {
            states.insert(name.to_owned(), state(&words.collect::<Vec<_>>().join(" ")));
        }
    }
    let prefix = machine_prefix(&cluster.name);
    let alike = uuids.keys().filter_map(|domain| domain.strip_prefix(&prefix).map(str::to_owned));
    let names: BTreeSet<String> = names.into_iter().cloned().chain(alike).collect();
    names
        .into_iter()
        .map(|node| {
            let domain = machine_name(&cluster.name, &node);
            let machine = uuids.get(&domain).map_or_else(Machine::absent, |uuid| Machine {
                id: Some(uuid.clone()),
                state: match states.get(&domain) {
                    Some(MachineState::Off) if saved.contains(&domain) => MachineState::Saved,
                    Some(state) => state.clone(),
                    None => MachineState::Other("unknown".into()),
                },
                foreign: ids.get(&node) != Some(uuid),
                size: sizes.get(&domain).copied(),
                ..Machine::absent()
            });
            (node, machine)
        })
        .collect()
}

/// The domains whose memory lies on disk, from what `virsh dominfo` says of several.
fn saved(text: &str) -> BTreeSet<String> {
    let (mut all, mut name) = (BTreeSet::new(), "");
    for (key, value) in text.lines().filter_map(|line| line.split_once(':')) {
        match (key, value.trim()) {
            ("Name", value) => name = value,
            ("Managed save", "yes") => drop(all.insert(name.to_owned())),
            _ => {}
        }
    }
    all
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Host {
    mac: String,
    name: String,
    ip: String,
}

fn hosts(cluster: &Cluster) -> Vec<Host> {
    let host = |n: &spec::Node| Host {
        mac: node_mac(cluster.macs(), &n.name, n.ip),
        name: n.name.clone(),
        ip: n.ip.to_string(),
    };
    cluster.nodes.iter().map(host).collect()
}

/// A network as it is.
#[derive(Debug)]
struct Network {
    /// As it is written down.
    kept: Layout,
    /// As it runs, if it does.
    live: Option<Layout>,
    owner: Option<Owner>,
    bridge: String,
}

enum Want {
    Define,
    Mend { start: bool, kept: Vec<Host>, live: Vec<Host> },
}

/// What of a network matters to a cluster.
#[derive(Debug, Default)]
struct Layout {
    gateway: Option<IpAddr>,
    cidr: Option<Ipv4Net>,
    forwards: bool,
    hosts: Vec<Host>,
}

impl Layout {
    /// From `virsh net-dumpxml`, which writes one element a line and attributes in single quotes.
    fn read(xml: &str) -> Self {
        let value = |line: &str, key: &str| {
            let rest = line.split(&format!(" {key}='")).nth(1)?;
            Some(rest.split('\'').next()?.to_owned())
        };
        let mut layout = Self::default();
        for line in xml.lines().map(str::trim) {
            layout.forwards |= line.starts_with("<forward ");
            if line.starts_with("<ip ") && layout.cidr.is_none() {
                let address = value(line, "address").and_then(|a| a.parse().ok());
                let mask = value(line, "netmask").and_then(|m| m.parse().ok());
                let prefix = value(line, "prefix").and_then(|p| p.parse().ok());
                layout.gateway = address.map(IpAddr::V4);
                layout.cidr = match (address, mask, prefix) {
                    (Some(a), Some(m), _) => Ipv4Net::with_netmask(a, m).ok().map(|n| n.trunc()),
                    (Some(a), None, Some(p)) => Ipv4Net::new(a, p).ok().map(|n| n.trunc()),
                    _ => None,
                };
            }
            if line.starts_with("<host ")
                && let (Some(mac), Some(ip)) = (value(line, "mac"), value(line, "ip"))
            {
                layout.hosts.push(Host { mac, name: value(line, "name").unwrap_or_default(), ip });
            }
        }
        layout
    }

    /// What cannot be mended while it runs, as a fragment.
    fn differs(&self, cluster: &Cluster) -> Option<String> {
        if cluster.fork.is_some() {
            // They would meet those of the original.
            return self.cidr.map(|cidr| format!("the IPv4 addresses {cidr}, and a fork's has none"));
        }
        let (network, gateway) = (&cluster.network, cluster.network.gateway());
        if self.cidr != Some(network.cidr) {
            let is = self.cidr.map_or("no IPv4 addresses".to_owned(), |c| c.to_string());
            return Some(format!("{is}, the spec {}", network.cidr));
        }
        if let Some(is) = self.gateway.filter(|is| *is != IpAddr::V4(gateway)) {
            return Some(format!("the address {is}, the machines expect {gateway}"));
        }
        (network.nics == 1 && !self.forwards).then(|| "no way out: its `<forward>` is missing".to_owned())
    }
}

/// Between `<p1:owner ...>` or `<owner>`, as libvirt answers when it is asked for the element alone, and the
/// element's end.
fn owner_in(xml: &str) -> Option<Owner> {
    let rest = xml.split_once("<p1:owner").or_else(|| xml.split_once("<owner"))?.1;
    Owner::read(rest.split_once('>')?.1.split_once("</")?.0)
}

/// A network's XML with another owner in it.
pub(super) fn owned(xml: &str, owner: &Owner) -> String {
    let element = format!("<p1:owner xmlns:p1='{METADATA}'>{owner}</p1:owner>");
    if let Some((before, rest)) = xml.split_once("<p1:owner")
        && let Some((_, after)) = rest.split_once("</p1:owner>")
    {
        return format!("{before}{element}{after}");
    }
    if xml.contains("<metadata>") {
        return xml.replacen("<metadata>", &format!("<metadata>\n    {element}"), 1);
    }
    xml.replacen("</name>", &format!("</name>\n  <metadata>\n    {element}\n  </metadata>"), 1)
}

/// Somebody else's, found where it must not be touched.
fn theirs(what: String, owner: &Owner) -> Error {
    Error::Conflict {
        what: format!("{what} belongs to the cluster `{}` in {}", owner.cluster, owner.place().display()),
        remedy: "Give the cluster another name in the spec, or work in that folder.".into(),
        next: vec!["p1 status".into()],
    }
}

/// The name in a line of `ip -o link`: `7: vnet0@if6: <BROADCAST,...`.
fn link_name(line: &str) -> Option<&str> {
    line.split_whitespace().nth(1)?.trim_end_matches(':').split('@').next()
}

impl Hypervisor for Libvirt {
    fn kind(&self) -> Kind {
        Kind::Libvirt
    }

    fn parallel(&self) -> bool {
        true
    }

    fn machines(
        &self,
        cluster: &Cluster,
        ids: &BTreeMap<String, String>,
        cancel: &Cancel,
    ) -> Result<BTreeMap<String, Machine>, Error> {
        let text = self.ask("list the machines", &[&listing(cluster, ids)], cancel)?.stdout;
        Ok(listed(&text, cluster, ids))
    }

    fn prepared(&self, cluster: &Cluster, image: &BoxInfo, cancel: &Cancel) -> Result<Option<String>, Error> {
        Ok(match self.network_lacks(cluster, cancel)? {
            None if !self.image_ready(image, cancel)? => Some("the base image is not there".into()),
            lack => lack,
        })
    }

    fn prepare(
        &self,
        cluster: &Cluster,
        image: &BoxInfo,
        owner: &Owner,
        report: &mut dyn FnMut(&str),
        cancel: &Cancel,
    ) -> Result<Vec<String>, Error> {
        let mut did = Vec::new();
        self.make_network(cluster, owner, report, &mut did, cancel)?;
        self.pool(report, &mut did, cancel)?;
        if !self.image_ready(image, cancel)? {
            self.upload(image, report, cancel)?;
            did.push(format!("sent the base image of {}", image.name));
        }
        Ok(did)
    }

    fn network(&self, cluster: &Cluster, cancel: &Cancel) -> Result<Option<String>, Error> {
        self.network_lacks(cluster, cancel)
    }

    fn unplugged(
        &self,
        cluster: &Cluster,
        ids: &BTreeMap<String, String>,
        cancel: &Cancel,
    ) -> Result<Vec<String>, Error> {
        Ok(self.loose(cluster, ids, cancel)?.1.into_iter().map(|(node, _)| node).collect())
    }

    fn connect(
        &self,
        cluster: &Cluster,
        owner: &Owner,
        ids: &BTreeMap<String, String>,
        report: &mut dyn FnMut(&str),
        cancel: &Cancel,
    ) -> Result<Vec<String>, Error> {
        let mut did = Vec::new();
        self.make_network(cluster, owner, report, &mut did, cancel)?;
        if ids.is_empty() {
            return Ok(did);
        }
        let (bridge, loose) = self.loose(cluster, ids, cancel)?;
        let mut left = Vec::new();
        for (node, card) in loose {
            let cmd = Cmd::new(&self.tools.ip).args(["link", "set", "dev", &card, "master", &bridge, "up"]);
            match process::run(&cmd, VIRSH_TIMEOUT, cancel).and_then(Finished::ok) {
                Ok(_) => did.push(format!("connected {node}")),
                Err(e) if e.cancelled() => return Err(failed("connect a machine")(e)),
                Err(_) => left.push((node, format!("ip link set dev {card} master {bridge} up"))),
            }
        }
        if left.is_empty() {
            return Ok(did);
        }
        let (nodes, lines): (Vec<String>, Vec<String>) = left.into_iter().unzip();
        Err(Error::Conflict {
            what: format!(
                "the {} `{}` was stopped and started, and {} {} not connected to it any more",
                self.ground(cluster).0,
                self.ground(cluster).1,
                nodes.join(", "),
                if nodes.len() == 1 { "is" } else { "are" }
            ),
            remedy: format!(
                "As root: {}. Or `p1 stop {}`, then `p1 up`, which restarts what is not connected.",
                lines.join("; "),
                nodes.join(" ")
            ),
            next: vec![format!("p1 stop {}", nodes.join(" ")), "p1 up".into()],
        })
    }

    fn holdings(
        &self,
        cluster: &Cluster,
        nodes: &BTreeSet<String>,
        cancel: &Cancel,
    ) -> Result<Holdings, Error> {
        let (name, doing) = (network_name(&cluster.name), "ask whose the machines are");
        let domains: Vec<String> = nodes.iter().map(|node| machine_name(&cluster.name, node)).collect();
        let mut asked = vec![vec!["net-dumpxml", "--inactive", &name]];
        for domain in &domains {
            asked.push(vec!["domuuid", domain]);
            asked.push(vec!["desc", domain, "--config"]);
            // What is written down: an owner need not be told to a machine that runs.
            asked.push(vec!["metadata", domain, METADATA, "--config"]);
        }
        // Its exit code is the last one's, and what is not there is no failure.
        asked.push(vec!["list", "--all", "--name"]);
        let told = self.several(doing, &asked, cancel)?;
        let part = |n: usize| told.get(n).map(|t| t.trim()).filter(|t| !t.is_empty());
        let network = part(0).map(|xml| Held { owner: owner_in(xml), ..Held::default() });
        let machine = |(i, node): (usize, &String)| {
            let id = part(3 * i + 1)?.to_owned();
            let source = part(3 * i + 2).and_then(|t| t.strip_prefix("Source: ")).map(Into::into);
            Some((node.clone(), Held { id, source, owner: part(3 * i + 3).and_then(owner_in) }))
        };
        Ok(Holdings { network, machines: nodes.iter().enumerate().filter_map(machine).collect() })
    }

    fn own_machine(
        &self,
        cluster: &Cluster,
        node: &str,
        _id: &str,
        owner: &Owner,
        cancel: &Cancel,
    ) -> Result<(), Error> {
        let (domain, element) = (machine_name(&cluster.name, node), format!("<owner>{owner}</owner>"));
        let args = ["metadata", &domain, METADATA, "--config", "--key", "p1", "--set", &element];
        // One that is gone again is nobody's, and told by whoever needs it.
        self.look("note whose the machine is", &args, cancel).map(|_| ())
    }

    fn own_network(&self, cluster: &Cluster, owner: &Owner, cancel: &Cancel) -> Result<(), Error> {
        if self.tools.bridge.is_some() {
            return Ok(());
        }
        let (name, doing) = (network_name(&cluster.name), "note whose the network is");
        // `virsh net-metadata` came with libvirt 9.7. What runs is not touched by a new definition.
        match self.look(doing, &["net-dumpxml", "--inactive", &name], cancel)? {
            Some(xml) => self.define_network(&owned(&xml, owner), doing, cancel),
            None => Ok(()),
        }
    }

    fn endpoint(
        &self,
        cluster: &Cluster,
        node: &str,
        _machine_id: &str,
        cancel: &Cancel,
    ) -> Result<SocketAddr, Error> {
        let spec = cluster.node(node);
        if cluster.network.nics == 1
            && let Some(spec) = spec
        {
            return Ok((spec.ip, 22).into());
        }
        let domain = machine_name(&cluster.name, node);
        let text = self.ask("ask for the machine's address", &["domifaddr", &domain], cancel)?.stdout;
        let other = |ip: &IpAddr| spec.is_none_or(|n| IpAddr::V4(n.ip) != *ip);
        let addresses =
            text.lines().filter_map(|l| l.split_whitespace().nth(3)?.split('/').next()?.parse().ok());
        addresses.filter(IpAddr::is_ipv4).find(other).map(|ip| (ip, 22).into()).ok_or_else(|| Error::Answer {
            program: "virsh",
            what: format!("address of {domain}"),
            lines: process::tail(&text, 5),
        })
    }

    fn address(&self, made: &Made) -> Option<SocketAddr> {
        (made.nics == 1).then(|| (made.ip, 22).into())
    }

    fn known_address(&self, cluster: &Cluster, node: &str) -> Option<SocketAddr> {
        let node = cluster.node(node).filter(|_| cluster.network.nics == 1)?;
        Some((node.ip, 22).into())
    }

    fn disk_left(&self, cluster: &Cluster, node: &str, cancel: &Cancel) -> Result<bool, Error> {
        let (own, domain) = (disk(&cluster.name, node), machine_name(&cluster.name, node));
        Ok(self.volumes(cancel)?.iter().any(|v| *v == own || disks::serial(&domain, v).is_some()))
    }

    fn console(&self, cluster: &Cluster, node: &str) -> Option<Vec<String>> {
        let virsh = self.tools.virsh.to_string_lossy().into_owned();
        let domain = machine_name(&cluster.name, node);
        Some(vec![virsh, "-c".into(), self.tools.libvirt_uri.clone(), "console".into(), domain])
    }

    fn look_further(&self, cluster: &Cluster, node: &str) -> String {
        format!("virsh -c {} console {}", self.tools.libvirt_uri, machine_name(&cluster.name, node))
    }

    fn power_off(&self, cluster: &Cluster, node: &str, _id: &str, cancel: &Cancel) -> Result<(), Error> {
        let domain = machine_name(&cluster.name, node);
        let doing = "switch the machine off";
        let done =
            process::run(&self.virsh(["destroy", &domain]), VIRSH_TIMEOUT, cancel).map_err(failed(doing))?;
        if done.stderr.contains("not running") || done.stderr.contains("failed to get domain") {
            return Ok(());
        }
        done.ok().map(|_| ()).map_err(failed(doing))
    }

    /// One virsh for all of them: a process takes 30 ms to start, a machine a fraction of one to pause.
    fn pause(&self, cluster: &Cluster, ids: &BTreeMap<String, String>, cancel: &Cancel) -> Result<(), Error> {
        self.turn("suspend", "pause the machines", &MachineState::Paused, cluster, ids, cancel)
    }

    fn resume(
        &self,
        cluster: &Cluster,
        ids: &BTreeMap<String, String>,
        cancel: &Cancel,
    ) -> Result<(), Error> {
        self.turn("resume", "resume the machines", &MachineState::Running, cluster, ids, cancel)
    }

    fn snapshots(
        &self,
        cluster: &Cluster,
        ids: &BTreeMap<String, String>,
        cancel: &Cancel,
    ) -> Result<BTreeMap<String, Vec<Snapshot>>, Error> {
        let doing = "list the snapshots";
        let domains: Vec<String> = ids.keys().map(|node| machine_name(&cluster.name, node)).collect();
        let lists = domains.iter().map(|d| vec!["snapshot-list", d, "--name"]);
        let lists = self.several(doing, &lists.collect::<Vec<_>>(), cancel)?;
        let mut named = Vec::new();
        for ((node, domain), list) in ids.keys().zip(&domains).zip(&lists) {
            // A name that p1 would not give is somebody else's.
            let names = list.lines().map(str::trim).filter(|name| snapshot::is_name(name));
            named.extend(names.map(|name| (node, domain, name)));
        }
        let dumps: Vec<_> = named.iter().map(|(_, d, name)| vec!["snapshot-dumpxml", d, name]).collect();
        let dumps = self.several(doing, &dumps, cancel)?;
        let mut found: BTreeMap<String, Vec<Snapshot>> = BTreeMap::new();
        for ((node, _, name), xml) in named.iter().zip(&dumps) {
            let Some(note) = description(xml).and_then(|text| Note::read(&text)) else { continue };
            let all = found.entry((*node).clone()).or_default();
            all.push(Snapshot { name: (*name).to_owned(), note, bytes: None });
        }
        for (node, all) in &mut found {
            let sizes = self.memory_sizes(&disk(&cluster.name, node), cancel);
            for one in all {
                one.bytes = sizes.get(&one.name).copied();
            }
        }
        Ok(found)
    }

    /// An internal snapshot: disk and memory go into the machine's own qcow2, and with it when it is
    /// destroyed.
    fn take(
        &self,
        cluster: &Cluster,
        (node, _): (&str, &str),
        (name, note): (&str, &Note),
        cancel: &Cancel,
    ) -> Result<(), Error> {
        // What a killed p1 left attached is no part of the machine.
        self.detach_files(&cluster.name, node, cancel)?;
        let (domain, note) = (machine_name(&cluster.name, node), note.to_string());
        let args = ["snapshot-create-as", &domain, name, "--description", &note, "--atomic"];
        self.at_length("take the snapshot", &args, cancel)
    }

    /// libvirt ends the machine's QEMU and starts another one with that memory; `--force` is its word
    /// for leave to do so.
    fn restore(
        &self,
        cluster: &Cluster,
        (node, _): (&str, &str),
        name: &str,
        cancel: &Cancel,
    ) -> Result<(), Error> {
        let domain = machine_name(&cluster.name, node);
        // Of a suspended machine: the next start would put that memory onto the disk of then.
        self.ask("forget the machine's suspended memory", &["managedsave-remove", &domain], cancel)?;
        let args = ["snapshot-revert", &domain, name, "--paused", "--force"];
        self.at_length("restore the machine", &args, cancel)
    }

    fn forget(
        &self,
        cluster: &Cluster,
        (node, _): (&str, &str),
        name: &str,
        cancel: &Cancel,
    ) -> Result<(), Error> {
        let domain = machine_name(&cluster.name, node);
        let doing = "remove the snapshot";
        let cmd = self.virsh(["snapshot-delete", &domain, name]);
        let done = process::run(&cmd, MEMORY, cancel).map_err(failed(doing))?;
        if done.stderr.contains("snapshot not found") || done.stderr.contains("no domain snapshot") {
            return Ok(());
        }
        done.ok().map(|_| ()).map_err(failed(doing))
    }

    fn keep(&self) -> Option<&dyn super::Keep> {
        Some(self)
    }

    fn suspends(&self) -> bool {
        true
    }

    /// libvirt's managed save: a file of its own (0600, root's), which every start of the machine reads and removes, whoever
    /// starts it, and which goes with the machine's description.
    fn suspend(&self, cluster: &Cluster, node: &str, cancel: &Cancel) -> Result<(), Error> {
        // A machine has to start without it.
        self.detach_files(&cluster.name, node, cancel)?;
        let (domain, doing) = (machine_name(&cluster.name, node), "suspend the machine");
        let cmd = self.virsh(["managedsave", &domain]);
        let done = process::run(&cmd, MEMORY, cancel).map_err(failed(doing))?;
        // By a p1 that was killed meanwhile.
        if done.stderr.contains("not running") && self.is_saved(&domain, cancel)? {
            return Ok(());
        }
        done.ok().map(|_| ()).map_err(failed(doing))
    }

    fn wake(&self, cluster: &Cluster, node: &str, cancel: &Cancel) -> Result<(), Error> {
        let (domain, doing) = (machine_name(&cluster.name, node), "resume the machine");
        let cmd = self.virsh(["start", &domain, "--paused"]);
        let done = process::run(&cmd, MEMORY, cancel).map_err(failed(doing))?;
        if done.stderr.contains("already active") || done.stderr.contains("already running") {
            return Ok(());
        }
        done.ok().map(|_| ()).map_err(failed(doing))
    }

    /// vagrant-libvirt gives a machine as many processors and as much memory as it may ever have.
    fn resize(
        &self,
        cluster: &Cluster,
        node: &str,
        _id: &str,
        size: Size,
        cancel: &Cancel,
    ) -> Result<(), Error> {
        let domain = machine_name(&cluster.name, node);
        let (cpus, memory) = (size.cpus, size.memory);
        // What it has may never be more than what it may have, so the order depends on the direction.
        let may_cpus = format!("setvcpus {domain} {cpus} --maximum --config");
        let has_cpus = format!("setvcpus {domain} {cpus} --config");
        let may_memory = format!("setmaxmem {domain} {memory}MiB --config");
        let has_memory = format!("setmem {domain} {memory}MiB --config");
        for command in [may_cpus, has_cpus, may_memory, has_memory] {
            self.ask("give the machine another size", &[&command], cancel)?;
        }
        Ok(())
    }

    fn disks(&self, cluster: &Cluster, node: &spec::Node, cancel: &Cancel) -> Result<Vec<String>, Error> {
        self.give_disks(cluster, node, cancel)
    }

    fn hosting(
        &self,
        cluster: &Cluster,
        nodes: &[String],
        cancel: &Cancel,
    ) -> Result<BTreeMap<String, Hosting>, Error> {
        let mut questions: Vec<Vec<String>> = Vec::new();
        for network in self.networks(cluster) {
            questions.push(vec!["net-info".into(), network]);
        }
        let shared = questions.len();
        for node in nodes {
            let domain = machine_name(&cluster.name, node);
            questions.push(vec!["dominfo".into(), domain.clone()]);
            questions.push(vec!["dumpxml".into(), domain.clone()]);
            questions.push(vec!["dumpxml".into(), domain, "--inactive".into()]);
        }
        // The exit code is that of the last one, and what is not there has no answer.
        questions.push(vec!["version".into()]);
        let questions: Vec<Vec<&str>> =
            questions.iter().map(|words| words.iter().map(String::as_str).collect()).collect();
        let answers = self.several("look at how the machines are kept", &questions, cancel)?;
        let starts = |text: &String| {
            text.lines()
                .any(|l| l.strip_prefix("Autostart:").is_some_and(|v| matches!(v.trim(), "yes" | "enable")))
        };
        let network = answers.iter().take(shared).all(starts);
        let mut all = BTreeMap::new();
        for (node, told) in nodes.iter().zip(answers.get(shared..).unwrap_or_default().chunks_exact(3)) {
            if told[2].trim().is_empty() {
                continue;
            }
            let runs = told[0].lines().any(|l| l.starts_with("State:") && !l.ends_with("shut off"));
            let hosting = Hosting {
                unsafe_now: runs && with_cache(&told[1], true).is_some(),
                unsafe_next: with_cache(&told[2], true).is_some(),
                autostart: starts(&told[0]),
                network,
            };
            all.insert(node.clone(), hosting);
        }
        Ok(all)
    }

    /// vagrant-libvirt writes a disk's cache when it makes the machine, and never again.
    fn keep_disk(&self, cluster: &Cluster, node: &str, cancel: &Cancel) -> Result<Option<String>, Error> {
        let (domain, doing) = (machine_name(&cluster.name, node), "see to the machine's disk");
        let args = ["dumpxml", &domain, "--inactive", "--security-info"];
        let Some(xml) = self.look(doing, &args, cancel)? else { return Ok(None) };
        let Some(xml) = with_cache(&xml, !cluster.disposable) else { return Ok(None) };
        let cmd = self.virsh(["define", "/dev/stdin"]).stdin(xml);
        process::run(&cmd, VIRSH_TIMEOUT, cancel).and_then(Finished::ok).map_err(failed(doing))?;
        Ok(Some(format!("its disk's cache is {} now", if cluster.disposable { UNSAFE } else { SAFE })))
    }

    fn keep_up(&self, cluster: &Cluster, node: &str, cancel: &Cancel) -> Result<(), Error> {
        let doing = "have the machine start with this host";
        let off: &[&str] = if cluster.autostart { &[] } else { &["--disable"] };
        for network in self.networks(cluster) {
            // Vagrant's own network is not for this cluster alone.
            if cluster.autostart || network != MANAGEMENT {
                self.ask(doing, &[&["net-autostart", &network], off].concat(), cancel)?;
            }
        }
        let domain = machine_name(&cluster.name, node);
        self.ask(doing, &[&["autostart", domain.as_str()], off].concat(), cancel).map(|_| ())
    }

    fn write_files(
        &self,
        cluster: &Cluster,
        files: &[PathBuf],
        report: &mut dyn FnMut(&str),
        cancel: &Cancel,
    ) -> Result<Option<FileDisk>, Error> {
        Libvirt::write_files(self, &cluster.name, files, report, cancel).map(Some)
    }

    fn attach_files(
        &self,
        cluster: &Cluster,
        node: &str,
        disk: &FileDisk,
        cancel: &Cancel,
    ) -> Result<(), Error> {
        Libvirt::attach_files(self, &cluster.name, node, disk, cancel)
    }

    fn detach_files(&self, cluster: &Cluster, node: &str, cancel: &Cancel) -> Result<(), Error> {
        Libvirt::detach_files(self, &cluster.name, node, cancel)
    }

    fn remove_files(&self, cluster: &Cluster, cancel: &Cancel) -> Result<(), Error> {
        Libvirt::remove_files(self, &cluster.name, cancel).map(|_| ())
    }

    fn boot(&self, cluster: &Cluster, node: &str, _id: &str, cancel: &Cancel) -> Result<(), Error> {
        self.keep_disk(cluster, node, cancel)?;
        self.unless("start the machine", &["start", &machine_name(&cluster.name, node)], cancel)
    }

    fn define(
        &self,
        cluster: &Cluster,
        node: &str,
        image: &BoxInfo,
        libvirt: Option<&super::vagrant::Libvirt>,
        (source, key): (&Path, &str),
        cancel: &Cancel,
    ) -> Result<String, Error> {
        let wanted = cluster.node(node).ok_or_else(|| Error::cannot(node, super::Cap::Make))?;
        let (domain, disk, base) =
            (machine_name(&cluster.name, node), disk(&cluster.name, node), volume(image));
        if cluster.network.nics == 2 {
            self.management(cancel)?;
        }
        let box_size = self.virtual_size(&image.image, cancel)?;
        // Smaller than the box it cannot be: who gives machines their disks says so.
        let size = wanted.disk.map_or(box_size, |gib| box_size.max(u64::from(gib) << 30));
        let capacity = format!("{size}b");
        let backing = ["--format", "qcow2", "--backing-vol", &base, "--backing-vol-format", "qcow2"];
        let create = [&["vol-create-as", POOL, &disk, &capacity][..], &backing].concat();
        self.ask("make the machine's disk", &create, cancel)?;
        let path = self.ask("make the machine's disk", &["vol-path", "--pool", POOL, &disk], cancel)?.stdout;
        let xml = self.description(cluster, wanted, libvirt, (source, key, path.trim()))?;
        let doing = "define the machine";
        let cmd = self.virsh(["define", "/dev/stdin"]).stdin(xml);
        process::run(&cmd, VIRSH_TIMEOUT, cancel).and_then(Finished::ok).map_err(failed(doing))?;
        Ok(self.ask(doing, &["domuuid", &domain], cancel)?.stdout.trim().to_owned())
    }

    /// At every boot they would be written again, over what their users have changed since.
    fn unseed(&self, cluster: &Cluster, node: &str, cancel: &Cancel) -> Result<(), Error> {
        let (domain, doing) =
            (machine_name(&cluster.name, node), "describe the machine without its first key");
        let args = ["dumpxml", &domain, "--inactive", "--security-info"];
        let Some(xml) = self.look(doing, &args, cancel)? else { return Ok(()) };
        let Some(xml) = without_seed(&xml) else { return Ok(()) };
        let cmd = self.virsh(["define", "/dev/stdin"]).stdin(xml);
        process::run(&cmd, VIRSH_TIMEOUT, cancel).and_then(Finished::ok).map(|_| ()).map_err(failed(doing))
    }

    /// libvirt reads the pool, which this user may not be able to; what is behind the disk there is the box's image here.
    fn flatten(
        &self,
        cluster: &Cluster,
        node: &str,
        image: &BoxInfo,
        to: &Path,
        report: &mut dyn FnMut(&str),
        cancel: &Cancel,
    ) -> Result<u64, Error> {
        let (disk, over) = (disk(&cluster.name, node), to.with_extension("over"));
        report("taking the machine's disk");
        let doing = "copy the machine's disk";
        let cmd = self.virsh(["vol-download", "--pool", POOL, &disk]).arg(&over);
        process::run(&cmd, UPLOAD, cancel).and_then(Finished::ok).map_err(failed(doing))?;
        report("compressing the disk");
        let qemu_img = || Cmd::new(&self.tools.qemu_img);
        let rebase = qemu_img().args(["rebase", "-u", "-F", "qcow2", "-b"]).arg(&image.image).arg(&over);
        // As a box's own image is compressed (`boxes/build.rs`).
        let convert = qemu_img()
            .args(["convert", "-f", "qcow2", "-O", "qcow2", "-c", "-W", "-o", "compression_type=zstd"])
            .arg(&over)
            .arg(to);
        for cmd in [rebase, convert] {
            process::run(&cmd, UPLOAD, cancel).and_then(Finished::ok).map_err(failed(doing))?;
        }
        fs::remove_file(&over).at("remove", &over)?;
        self.virtual_size(to, cancel)
    }

    fn disturbs(&self) -> bool {
        true
    }

    /// Of the card on the nodes' network; p1's other way in, where there are two, stays. Without `--config`, so that the
    /// next start has it up.
    fn set_link(&self, cluster: &Cluster, node: &str, up: bool, cancel: &Cancel) -> Result<(), Error> {
        let (domain, (kind, ground)) = (machine_name(&cluster.name, node), self.ground(cluster));
        let doing = if up { "plug the network cable in" } else { "pull the network cable" };
        let cards = self.ask(doing, &["domiflist", &domain], cancel)?.stdout;
        let mac = cards.lines().find_map(|line| match line.split_whitespace().collect::<Vec<_>>()[..] {
            [_, of, source, _, mac] if (of, source) == (kind, &*ground) => Some(mac.to_owned()),
            _ => None,
        });
        let mac = mac.ok_or_else(|| Error::Answer {
            program: "virsh",
            what: format!("card of {domain} on the {kind} {ground}"),
            lines: process::tail(&cards, 5),
        })?;
        let state = if up { "up" } else { "down" };
        self.ask(doing, &["domif-setlink", &domain, &mac, state], cancel).map(|_| ())
    }

    /// By QEMU's own throttling, which needs no control groups.
    fn set_limit(
        &self,
        cluster: &Cluster,
        node: &str,
        limit: Option<Limit>,
        cancel: &Cancel,
    ) -> Result<(), Error> {
        let domain = machine_name(&cluster.name, node);
        let doing = if limit.is_some() { "slow the disk down" } else { "free the disk" };
        let disks = self.ask(doing, &["domblklist", &domain], cancel)?.stdout;
        let own = format!("/{}", disk(&cluster.name, node));
        let target = disks.lines().find_map(|line| match line.split_whitespace().collect::<Vec<_>>()[..] {
            [target, source] if source.ends_with(&own) => Some(target.to_owned()),
            _ => None,
        });
        let target = target.ok_or_else(|| Error::Answer {
            program: "virsh",
            what: format!("disk of {domain}"),
            lines: process::tail(&disks, 5),
        })?;
        let (iops, bytes) = limit.map_or((0, 0), |limit| (u64::from(limit.iops), limit.bytes));
        let (iops, bytes) = (iops.to_string(), bytes.to_string());
        let args = [
            "blkdeviotune",
            &domain,
            &target,
            "--total-iops-sec",
            &iops,
            "--total-bytes-sec",
            &bytes,
            "--live",
        ];
        self.ask(doing, &args, cancel).map(|_| ())
    }

    fn rendered(
        &self,
        cluster: &Cluster,
        libvirt: Option<&super::vagrant::Libvirt>,
    ) -> Result<Vec<(String, String)>, Error> {
        if self.takes_vagrant() {
            return Ok(vec![("network.xml".to_owned(), network_xml(cluster, None)?)]);
        }
        let one = |node: &spec::Node| {
            let disk = self.tools.images.join(disk(&cluster.name, &node.name));
            let about = (Path::new("p1"), "", &*disk.to_string_lossy());
            let text = self.description(cluster, node, libvirt, about)?;
            Ok((format!("{}/domain.xml", node.name), format!("<!-- Written by `p1 render` -->\n{text}")))
        };
        cluster.nodes.iter().map(one).collect()
    }

    fn takes_vagrant(&self) -> bool {
        self.tools.bridge.is_none()
    }

    fn evidence(&self, cluster: &str, nodes: &[String]) -> Vec<(String, Cmd)> {
        let network = network_name(cluster);
        let mut all: Vec<(String, Cmd)> = [
            ("versions", vec!["version"]),
            ("machines", vec!["list", "--all"]),
            ("networks", vec!["net-list", "--all"]),
            ("networks", vec!["net-dumpxml", &network]),
            ("networks", vec!["net-dhcp-leases", &network]),
            ("pools", vec!["pool-list", "--all", "--details"]),
        ]
        .into_iter()
        .map(|(part, args)| (part.to_owned(), self.plain(&args)))
        .collect();
        for node in nodes {
            let machine = machine_name(cluster, node);
            all.push(("machines".to_owned(), self.plain(&["dominfo", &machine])));
            all.push((format!("machine-{node}"), self.plain(&["dumpxml", &machine])));
        }
        all
    }

    fn clean(
        &self,
        cluster: &Cluster,
        what: &Leftovers<'_>,
        report: &mut dyn FnMut(&str),
        cancel: &Cancel,
    ) -> Result<Vec<String>, Error> {
        let mut did = Vec::new();
        let domains = self.domains(cancel)?;
        let volumes = self.volumes(cancel)?;
        for node in what.nodes.iter().filter(|n| !what.spared.contains(*n)) {
            let domain = machine_name(&cluster.name, node);
            let by_id = |uuid: &String| what.ids.get(node) == Some(uuid);
            for (name, _) in domains.iter().filter(|(name, uuid)| **name == domain || by_id(uuid)) {
                report(&format!("removing the machine {name}"));
                let _ = self.look("switch the machine off", &["destroy", name], cancel);
                let mut args = vec!["undefine", name, "--managed-save", "--snapshots-metadata"];
                args.extend(["--checkpoints-metadata", "--nvram"]);
                self.ask("remove the machine", &args, cancel)?;
                did.push(format!("removed the machine {name}"));
            }
            let own = disk(&cluster.name, node);
            let others = |volume: &&String| **volume == own || disks::serial(&domain, volume).is_some();
            for disk in volumes.iter().filter(others) {
                self.ask("remove a disk", &["vol-delete", "--pool", POOL, disk], cancel)?;
                did.push(format!("removed the disk {disk}"));
            }
        }
        if what.whole && Self::remove_files(self, &cluster.name, cancel)? {
            did.push("removed the disk with files".to_owned());
        }
        let name = network_name(&cluster.name);
        if what.whole
            && self.tools.bridge.is_none()
            && let Some(network) = self.network(&name, cancel)?
        {
            if let Some(other) = network.owner.as_ref().filter(|o| !what.owner.is_some_and(|us| o.is(us))) {
                return Err(theirs(format!("the libvirt network `{name}`"), other));
            }
            if network.live.is_some() {
                self.ask("stop the network", &["net-destroy", &name], cancel)?;
            }
            self.ask("remove the network", &["net-undefine", &name], cancel)?;
            did.push(format!("removed the network {name}"));
        }
        for image in what.images {
            let volume = volume(image);
            if volumes.contains(&volume) && !self.backing(&volume, cancel)? {
                self.ask("remove the base image", &["vol-delete", "--pool", POOL, &volume], cancel)?;
                did.push(format!("removed the base image of {}", image.name));
            }
        }
        Ok(did)
    }
}

impl Libvirt {
    /// The networks that a machine needs to start.
    fn networks(&self, cluster: &Cluster) -> Vec<String> {
        match (&self.tools.bridge, cluster.network.nics) {
            (Some(_), _) => Vec::new(),
            (None, 1) => vec![network_name(&cluster.name)],
            (None, _) => vec![network_name(&cluster.name), MANAGEMENT.to_owned()],
        }
    }

    /// What describes a node's machine. `key` opens it at its first boot.
    fn description(
        &self,
        cluster: &Cluster,
        node: &spec::Node,
        libvirt: Option<&super::vagrant::Libvirt>,
        (source, key, disk): (&Path, &str, &str),
    ) -> Result<String, Error> {
        let size = node.size.ok_or_else(|| Error::cannot(&node.name, super::Cap::Make))?;
        let mac = node_mac(cluster.macs(), &node.name, node.ip);
        let (kind, name) = self.ground(cluster);
        let own = serde_json::json!({"kind": kind, "source": name, "mac": mac});
        let cards = match cluster.network.nics {
            1 => vec![own],
            _ => vec![serde_json::json!({"kind": "network", "source": MANAGEMENT, "mac": ""}), own],
        };
        let address = self.tools.bridge.as_ref().map(|bridge| address(cluster, node, &mac, &bridge.dns));
        Ok(render::render(
            "domain.xml",
            &serde_json::json!({
                "name": machine_name(&cluster.name, &node.name), "source": source,
                "memory": u64::from(size.memory) * 1024, "cpus": size.cpus,
                "arch": std::env::consts::ARCH, "libvirt": libvirt, "disk": disk,
                "disk_cache": self::cache(cluster.disposable), "cards": cards,
                "credentials": credentials(key, cluster.bakes(), address.as_deref()),
            }),
        )?)
    }

    /// virsh as somebody would call it.
    fn plain(&self, args: &[&str]) -> Cmd {
        Cmd::new(&self.tools.virsh).arg("-c").arg(&self.tools.libvirt_uri).args(args)
    }

    /// The answers to several questions, asked of one virsh.
    pub(super) fn several(
        &self,
        doing: &str,
        commands: &[Vec<&str>],
        cancel: &Cancel,
    ) -> Result<Vec<String>, Error> {
        if commands.is_empty() {
            return Ok(Vec::new());
        }
        let line: Vec<String> = commands.iter().map(|words| words.join(" ")).collect();
        let done = self.ask(doing, &[&line.join(&format!("; echo {BETWEEN}; "))], cancel)?;
        // Its exit code is the last one's, and it reconnects for each.
        if GONE.iter().any(|w| done.stderr.to_lowercase().contains(w)) {
            let lines = process::tail(&done.stderr, 5);
            return Err(Error::Down { doing: doing.to_owned(), who: "libvirt", lines });
        }
        Ok(done.stdout.split(&format!("{BETWEEN}\n")).map(str::to_owned).collect())
    }

    /// Gives machines a command and sees to it that each is as it should be then.
    fn turn(
        &self,
        command: &str,
        doing: &str,
        wanted: &MachineState,
        cluster: &Cluster,
        ids: &BTreeMap<String, String>,
        cancel: &Cancel,
    ) -> Result<(), Error> {
        let names = ids.keys().map(|node| format!("{command} {}", machine_name(&cluster.name, node)));
        let line = names.collect::<Vec<_>>().join("; ");
        if line.is_empty() {
            return Ok(());
        }
        // One that is so already may be an error to it.
        let line = format!("{line}; echo {BETWEEN}; {}", listing(cluster, ids));
        let done = self.ask(doing, &[&line], cancel)?;
        let (_, now) = done.stdout.split_once(&format!("{BETWEEN}\n")).unwrap_or_default();
        let now = listed(now, cluster, ids);
        match ids.keys().find(|node| now.get(*node).is_none_or(|m| m.state != *wanted)) {
            None => Ok(()),
            Some(node) => Err(Error::Answer {
                program: "virsh",
                what: format!("{wanted} machine {}", machine_name(&cluster.name, node)),
                lines: process::tail(&done.stderr, 5),
            }),
        }
    }

    fn is_saved(&self, domain: &str, cancel: &Cancel) -> Result<bool, Error> {
        let told = self.ask("look at the machine", &["dominfo", domain], cancel)?;
        Ok(saved(&told.stdout).contains(domain))
    }

    pub(super) fn at_length(&self, doing: &str, args: &[&str], cancel: &Cancel) -> Result<(), Error> {
        let done = process::run(&self.virsh(args), MEMORY, cancel).and_then(Finished::ok);
        done.map(|_| ()).map_err(failed(doing))
    }

    /// By snapshot: the bytes of memory that are in a disk, if this user may look into it.
    fn memory_sizes(&self, disk: &str, cancel: &Cancel) -> BTreeMap<String, u64> {
        let look = || {
            let path = self.ask("find the disk", &["vol-path", "--pool", POOL, disk], cancel).ok()?.stdout;
            let cmd = Cmd::new(&self.tools.qemu_img).args(["info", "-U", "--output=json"]).arg(path.trim());
            let done = process::run(&cmd, VIRSH_TIMEOUT, cancel).and_then(Finished::ok).ok()?;
            let info: serde_json::Value = serde_json::from_str(&done.stdout).ok()?;
            let one =
                |s: &serde_json::Value| Some((s["name"].as_str()?.to_owned(), s["vm-state-size"].as_u64()?));
            Some(info["snapshots"].as_array()?.iter().filter_map(one).collect())
        };
        look().unwrap_or_default()
    }

    /// Adds a reservation to a network, at `--config` or `--live`; a stale one for the same name or address
    /// goes first.
    fn reserve(&self, network: &str, host: &Host, at: &str, cancel: &Cancel) -> Result<(), Error> {
        let look: &[&str] = match at {
            "--live" => &["net-dumpxml", network],
            _ => &["net-dumpxml", "--inactive", network],
        };
        let xml = self.look("look at the network", look, cancel)?.unwrap_or_default();
        let update = |command: &str, host: &Host| {
            let xml = format!("<host mac='{}' name='{}' ip='{}'/>", host.mac, host.name, host.ip);
            let args = ["net-update", network, command, "ip-dhcp-host", &xml, at];
            self.ask("reserve an address", &args, cancel)
        };
        let stale = |h: &&Host| h.mac == host.mac || h.name == host.name || h.ip == host.ip;
        for old in Layout::read(&xml).hosts.iter().filter(stale) {
            update("delete", old)?;
        }
        update("add-last", host).map(|_| ())
    }
}

/// The definition of the cluster's network.
pub fn network_xml(cluster: &Cluster, owner: Option<&Owner>) -> Result<String, render::Error> {
    let node = |n: &spec::Node| serde_json::json!({"name": n.name, "ip": n.ip, "mac": node_mac(cluster.macs(), &n.name, n.ip)});
    let xml = render::render(
        "network.xml",
        &serde_json::json!({
            "nics": cluster.network.nics,
            "fork": cluster.fork.as_ref().map(|_| serde_json::json!({
                "bridge": fork::bridge(&cluster.name), "address": fork::host_address(&cluster.name),
            })),
            "network": {
                "name": network_name(&cluster.name),
                "gateway": cluster.network.gateway(),
                // A machine that goes on from a moment knows it from then, and waits half a minute for one that is gone.
                "mac": node_mac(cluster.macs(), "", cluster.network.gateway()),
                "netmask": cluster.network.cidr.netmask(),
            },
            "nodes": cluster.nodes.iter().map(node).collect::<Vec<_>>(),
        }),
    )?;
    Ok(owner.map_or_else(|| xml.clone(), |owner| owned(&xml, owner)))
}

/// Lines for systemd-tmpfiles (tmpfiles.d(5), systemd.system-credentials(7): `tmpfiles.extra`, since 252) in base64: they put
/// the cluster's key in the place of the one that boxes come with, before sshd starts. A system without it is entered by
/// the box's own key. Where nobody gives addresses, they put the machine's own beside it ([`address`]): it stays on its disk
/// for later boots, and a systemd-networkd that has started without it is started again, which costs other boots nothing.
/// (What is written to files that are there is written when all others are made.) Empty without either.
///
/// Where a box is baked of the machine, the keys that it came with are put beside them before ([`KEYS_OF_BOX`]).
fn credentials(key: &str, bakes: bool, address: Option<&str>) -> String {
    let mut lines = String::new();
    if !key.is_empty() {
        let key = STANDARD.encode(key);
        let user = super::vagrant::USER;
        let (root, home) =
            ("/root/.ssh/authorized_keys".to_owned(), format!("/home/{user}/.ssh/authorized_keys"));
        for (path, owner) in [(&root, "root"), (&home, user)].into_iter().filter(|_| bakes) {
            lines.push_str(&format!("C {path}{KEYS_OF_BOX} 0600 {owner} {owner} - {path}\n"));
        }
        lines.push_str(&format!(
            "d /root/.ssh 0700 root root -\nf+~ {root} 0600 root root - {key}\n\
             f+~ {home} 0600 {user} {user} - {key}\n"
        ));
    }
    if let Some(address) = address {
        lines += &format!(
            "f+~ /etc/systemd/network/05-p1.network 0644 root root - {}\n\
             w /sys/fs/cgroup/system.slice/systemd-networkd.service/cgroup.kill - - - - 1\n",
            STANDARD.encode(address)
        );
    }
    if lines.is_empty() { lines } else { STANDARD.encode(lines) }
}

/// A node's address as systemd-networkd reads it (systemd.network(5)), where no DHCP server gives it.
fn address(cluster: &Cluster, node: &spec::Node, mac: &str, dns: &[Ipv4Addr]) -> String {
    let (network, ip) = (&cluster.network, node.ip);
    let mut text = format!(
        "[Match]\nMACAddress={mac}\n\n[Network]\nAddress={ip}/{}\nGateway={}\n",
        network.cidr.prefix_len(),
        network.gateway()
    );
    for server in dns {
        text += &format!("DNS={server}\n");
    }
    text + "LinkLocalAddressing=no\nIPv6AcceptRA=no\n"
}

/// A description without what [`credentials`] brought; none if there is nothing of it.
fn without_seed(xml: &str) -> Option<String> {
    let (before, rest) = xml.split_once("<sysinfo type='smbios'>")?;
    let (seed, after) = rest.split_once("</sysinfo>")?;
    if !seed.contains("tmpfiles.extra=") {
        return None;
    }
    Some(format!("{}{}", before.trim_end(), after).replace("<smbios mode='sysinfo'/>", ""))
}

/// The cache that loses what was flushed (qemu(1), `cache=unsafe`), and the one that does not: written through
/// the host's own cache, flushed when the guest says so.
const UNSAFE: &str = "unsafe";
const SAFE: &str = "writeback";

/// The cache of a new machine's disk.
pub fn cache(disposable: bool) -> &'static str {
    if disposable { UNSAFE } else { SAFE }
}

/// Vagrant's own network, the first card's of machines with two.
const MANAGEMENT: &str = "vagrant-libvirt";
/// Its name and addresses are those of vagrant-libvirt's defaults (`config.rb`).
const MANAGEMENT_XML: &str = "<network>\n  <name>vagrant-libvirt</name>\n  <forward mode='nat'/>\n  \
                              <bridge stp='on' delay='0'/>\n  <ip address='192.168.121.1' netmask='255.255.255.0'>\n    \
                              <dhcp>\n      <range start='192.168.121.2' end='192.168.121.254'/>\n    </dhcp>\n  </ip>\n\
                              </network>\n";

/// By `virsh pool-info`.
fn pool_runs(info: &str) -> bool {
    info.lines().any(|l| l.starts_with("State:") && l.ends_with("running"))
}

/// A domain's XML, as virsh writes it, with its disks made safe or fast; none if they are.
fn with_cache(xml: &str, safe: bool) -> Option<String> {
    let (mut out, mut disk, mut changed) = (String::with_capacity(xml.len()), false, false);
    for line in xml.lines() {
        let text = line.trim_start();
        if text.starts_with("<disk ") {
            disk = text.contains(" device='disk'");
        } else if text.starts_with("</disk>") {
            disk = false;
        }
        if disk && text.starts_with("<driver ") {
            let cache = text.split_once(" cache='").and_then(|(_, rest)| rest.split('\'').next());
            let new = match cache {
                Some(UNSAFE) if safe => Some(line.replace(" cache='unsafe'", " cache='writeback'")),
                Some(UNSAFE) => None,
                Some(cache) if !safe => Some(line.replace(&format!(" cache='{cache}'"), " cache='unsafe'")),
                None if !safe => Some(line.replacen("<driver ", "<driver cache='unsafe' ", 1)),
                _ => None,
            };
            changed |= new.is_some();
            out.push_str(new.as_deref().unwrap_or(line));
        } else {
            out.push_str(line);
        }
        out.push('\n');
    }
    changed.then_some(out)
}

/// Between the answers of one virsh.
const BETWEEN: &str = "=p1=";

/// A snapshot's own description, from its XML; the machine's follows in there. A note of p1's has no
/// character that XML writes in another way.
fn description(xml: &str) -> Option<String> {
    let own = xml.split("<domain ").next()?;
    Some(own.split_once("<description>")?.1.split_once("</description>")?.0.to_owned())
}

fn state(word: &str) -> MachineState {
    match word {
        "running" | "idle" | "in shutdown" => MachineState::Running,
        "shut off" | "crashed" => MachineState::Off,
        "paused" | "pmsuspended" => MachineState::Paused,
        other => MachineState::Other(other.to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn disks_are_made_safe_or_fast_and_nothing_else_is_touched() {
        let disk = |device: &str, driver: &str| {
            format!(
                "    <disk type='file' device='{device}'>\n      {driver}\n      <source file='/x'/>\n    </disk>\n"
            )
        };
        let domain = |driver: &str| {
            format!(
                "<domain type='kvm'>\n  <description>cache='unsafe'</description>\n  <devices>\n{}{}    <interface \
                 type='network'>\n      <driver name='vhost'/>\n    </interface>\n  </devices>\n</domain>\n",
                disk("disk", driver),
                disk("cdrom", "<driver name='qemu' type='raw' cache='unsafe'/>"),
            )
        };
        let driver = |cache: &str| format!("<driver name='qemu' type='qcow2' cache='{cache}' io='threads'/>");
        assert_eq!(with_cache(&domain(&driver(UNSAFE)), true), Some(domain(&driver(SAFE))));
        assert_eq!(with_cache(&domain(&driver(SAFE)), false), Some(domain(&driver(UNSAFE))));
        for (cache, safe) in [(SAFE, true), ("none", true), (UNSAFE, false)] {
            assert_eq!(with_cache(&domain(&driver(cache)), safe), None, "{cache}");
        }
        let plain = "<driver name='qemu' type='qcow2'/>";
        assert_eq!(with_cache(&domain(plain), true), None);
        let fast = "<driver cache='unsafe' name='qemu' type='qcow2'/>";
        assert_eq!(with_cache(&domain(plain), false), Some(domain(fast)));
    }

    #[test]
    fn a_machine_that_is_off_with_its_memory_on_disk_is_told_from_one_that_is_off() {
        let one = |name: &str, saved: &str| format!("Name:           {name}\nManaged save:   {saved}\n\n");
        let told = saved(&(one("p1-iot-server", "no") + &one("p1-iot-worker", "yes")));
        assert_eq!(told, ["p1-iot-worker".to_owned()].into());
    }

    #[test]
    fn sizes_are_read_from_what_libvirt_says() {
        let one = |name: &str, cpus: u32, kib: u32| {
            format!(
                "Id:             1\nName:           {name}\nUUID:           6695eb01\nState:          shut off\n\
                 CPU(s):         {cpus}\nMax memory:     {kib} KiB\nUsed memory:    {kib} KiB\n\n"
            )
        };
        let read = sizes(&(one("p1-iot-server", 2, 2_097_152) + &one("p1-iot-worker", 1, 524_288)));
        assert_eq!(read["p1-iot-server"], Size { cpus: 2, memory: 2048 });
        assert_eq!(read["p1-iot-worker"], Size { cpus: 1, memory: 512 });
        assert!(sizes("").is_empty());
    }

    #[test]
    fn a_network_is_read_back_from_what_libvirt_says() {
        let xml = "<network>\n  <name>p1-iot</name>\n  <forward mode='nat'>\n    <nat/>\n  </forward>\n  \
            <ip address='192.168.56.1' netmask='255.255.255.0'>\n    <dhcp>\n      \
            <host mac='52:54:00:0a:0b:0c' name='server' ip='192.168.56.110'/>\n    </dhcp>\n  </ip>\n</network>";
        let layout = Layout::read(xml);
        assert_eq!(layout.cidr, Some("192.168.56.0/24".parse().unwrap()));
        let host =
            Host { mac: "52:54:00:0a:0b:0c".into(), name: "server".into(), ip: "192.168.56.110".into() };
        assert_eq!(layout.hosts, [host]);
        let cluster = crate::spec::fixture::named("iot", "192.168.56.0/24", &["server"]);
        assert_eq!(layout.differs(&cluster), None);
        let changed = |from: &str, to: &str| Layout::read(&xml.replace(from, to)).differs(&cluster).unwrap();
        assert_eq!(changed("56.1'", "57.1'"), "192.168.57.0/24, the spec 192.168.56.0/24");
        assert_eq!(
            changed("56.1'", "56.254'"),
            "the address 192.168.56.254, the machines expect 192.168.56.1"
        );
        assert!(changed("<forward", "<was").contains("no way out"));
    }

    #[test]
    fn a_machine_on_a_bridge_brings_its_address_and_no_network() {
        let cluster = crate::spec::fixture::named("iot", "192.168.56.0/24", &["server"]);
        let dns = vec![Ipv4Addr::new(192, 0, 2, 53)];
        let session = Libvirt::new(Tools {
            libvirt_uri: "qemu:///session".into(),
            bridge: Some(super::super::Bridge { name: "br0".into(), dns }),
            ..Tools::default()
        });
        let system = Libvirt::new(Tools::default());
        let about = (Path::new("/x/Vagrantfile"), "ssh-ed25519 KEY", "/x/disk.img");
        let describe = |of: &Libvirt| of.description(&cluster, &cluster.nodes[0], None, about).unwrap();
        let seed = |xml: &str| {
            let value = xml.split("tmpfiles.extra=").nth(1).unwrap().split('<').next().unwrap();
            String::from_utf8(STANDARD.decode(value).unwrap()).unwrap()
        };
        let (on_bridge, on_network) = (describe(&session), describe(&system));
        assert!(
            on_network.contains("<interface type='network'>")
                && on_network.contains("<source network='p1-iot'/>")
        );
        assert!(!seed(&on_network).contains("/etc/systemd/network/"));
        assert!(
            on_bridge.contains("<interface type='bridge'>") && on_bridge.contains("<source bridge='br0'/>")
        );
        let lines = seed(&on_bridge);
        let file = lines.lines().find(|l| l.starts_with("f+~ /etc/systemd/network/05-p1.network ")).unwrap();
        let file = STANDARD.decode(file.split_whitespace().next_back().unwrap()).unwrap();
        let mac = node_mac("iot", "server", cluster.nodes[0].ip);
        assert_eq!(
            String::from_utf8(file).unwrap(),
            format!(
                "[Match]\nMACAddress={mac}\n\n[Network]\nAddress=192.168.56.110/24\nGateway=192.168.56.1\n\
                 DNS=192.0.2.53\nLinkLocalAddressing=no\nIPv6AcceptRA=no\n"
            )
        );
        // Both go with the first boot.
        assert!(!without_seed(&on_bridge).unwrap().contains("tmpfiles.extra"));

        let names = |of: &Libvirt| -> Vec<String> {
            of.rendered(&cluster, None).unwrap().into_iter().map(|(name, _)| name).collect()
        };
        assert_eq!(
            (names(&session), names(&system)),
            (vec!["server/domain.xml".into()], vec!["network.xml".into()])
        );
        assert!(session.networks(&cluster).is_empty());
    }

    #[test]
    fn an_owner_is_put_into_a_network_and_read_back_and_nothing_else_is_changed() {
        let cluster = crate::spec::fixture::named("iot", "192.168.56.0/24", &["server"]);
        let owner = |folder: &str| Owner { cluster: "iot".into(), id: "1".into(), folder: folder.into() };
        let (one, two) = (owner("/a/it's #{b}/.p1/iot"), owner("/c/.p1/iot"));
        let bare = network_xml(&cluster, None).unwrap();
        assert_eq!(owner_in(&bare), None);
        let xml = network_xml(&cluster, Some(&one)).unwrap();
        assert_eq!(owner_in(&xml), Some(one.clone()));
        let again = owned(&xml, &two);
        assert_eq!(owner_in(&again), Some(two.clone()));
        assert_eq!(owned(&again, &one), xml);
        // Beside what others keep there.
        let theirs =
            bare.replacen("</name>", "</name>\n  <metadata>\n    <a:b xmlns:a='c'/>\n  </metadata>", 1);
        let both = owned(&theirs, &one);
        assert!(both.contains("<a:b xmlns:a='c'/>") && both.matches("<metadata>").count() == 1, "{both}");
        assert_eq!(owner_in(&both), Some(one.clone()));
        // As libvirt answers for a machine.
        assert_eq!(owner_in(&format!("<owner>{one}</owner>\n\n")), Some(one));
    }
}
