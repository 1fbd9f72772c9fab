//! libvirt, through `virsh`: one process for a question about all machines, no Ruby.
//!
//! p1 makes the network and the base image itself, under a lock of the host: two vagrant processes
//! that do it at once take the same bridge or clone from a half-uploaded image (vagrant-libvirt
//! #1229, #1863; `@@lock` there is per process).

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::time::Duration;

use ipnet::Ipv4Net;

use super::{
    BoxInfo, Error, Kind, Leftovers, Machine, Note, Provider, Size, Snapshot, State, Tools, machine_name,
    machine_prefix, network_name, node_mac, snapshot,
};
use crate::explain::Explain;
use crate::os::Cancel;
use crate::os::files::At;
use crate::os::orphan;
use crate::os::process::{self, Cmd, Finished};
use crate::render;
use crate::spec::Cluster;

/// A question to libvirtd takes 30 ms; two minutes is for a host that swaps.
const SHORT: Duration = Duration::from_secs(120);
/// Sending a base image of some GiB to the pool.
const UPLOAD: Duration = Duration::from_secs(1800);
/// For a program of a killed p1 to end, after each signal.
const ORPHAN: Duration = Duration::from_secs(10);
/// Writing a machine's memory into its disk, or reading it back.
const MEMORY: Duration = Duration::from_secs(600);
/// The only pool that vagrant-libvirt makes by itself (`handle_storage_pool.rb`).
pub const POOL: &str = "default";
/// Where that one keeps its volumes.
const POOL_PATH: &str = "/var/lib/libvirt/images";

/// libvirt on this host.
pub struct Libvirt {
    tools: Tools,
}

impl Libvirt {
    /// With these programs.
    pub fn new(tools: Tools) -> Self {
        Self { tools }
    }

    fn virsh<S: AsRef<str>>(&self, args: impl IntoIterator<Item = S>) -> Cmd {
        let mut cmd = Cmd::new(&self.tools.virsh).env("LC_ALL", "C").arg("-c").arg(&self.tools.libvirt_uri);
        for arg in args {
            cmd = cmd.arg(arg.as_ref());
        }
        cmd
    }

    fn ask(&self, doing: &str, args: &[&str], cancel: &Cancel) -> Result<Finished, Error> {
        let done = process::run(&self.virsh(args), SHORT, cancel).map_err(failed(doing))?;
        done.ok().map_err(failed(doing))
    }

    /// A command that may find its work done: the machine runs already.
    fn unless(&self, doing: &str, args: &[&str], cancel: &Cancel) -> Result<(), Error> {
        let done = process::run(&self.virsh(args), SHORT, cancel).map_err(failed(doing))?;
        if done.stderr.contains("already active") || done.stderr.contains("already running") {
            return Ok(());
        }
        done.ok().map(|_| ()).map_err(failed(doing))
    }

    /// Standard output, or `None` if virsh says no: the thing is not there.
    fn look(&self, doing: &str, args: &[&str], cancel: &Cancel) -> Result<Option<String>, Error> {
        let done = process::run(&self.virsh(args), SHORT, cancel).map_err(failed(doing))?;
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
        let Some(xml) = self.look(doing, &["net-dumpxml", name], cancel)? else { return Ok(None) };
        let info = self.ask(doing, &["net-info", name], cancel)?.stdout;
        Ok(Some(Network::read(&xml, info.lines().any(|l| l.starts_with("Active:") && l.ends_with("yes")))))
    }

    /// What the network lacks.
    fn network_wants(&self, cluster: &Cluster, found: Option<&Network>) -> Result<Want, Error> {
        let Some(found) = found else { return Ok(Want::Define) };
        let name = network_name(&cluster.name);
        if found.cidr != Some(cluster.network.cidr) {
            let is = found.cidr.map_or("no IPv4 addresses".to_owned(), |c| c.to_string());
            return Err(Error::Conflict {
                what: format!("the libvirt network `{name}` has {is}, the spec {}", cluster.network.cidr),
                remedy: format!(
                    "`p1 destroy` removes the cluster with its network; or give the spec another name. To remove \
                     only the network: virsh -c {uri} net-destroy {name}; virsh -c {uri} net-undefine {name}.",
                    uri = self.tools.libvirt_uri
                ),
            });
        }
        let missing: Vec<Host> = if cluster.network.nics == 1 {
            hosts(cluster).into_iter().filter(|h| !found.hosts.contains(h)).collect()
        } else {
            Vec::new()
        };
        Ok(Want::Mend { start: !found.active, missing })
    }

    /// Bytes of the volume in the pool.
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
        // What a killed p1 left at that goes on writing to the volume, which is about to be made anew.
        let input = image.image.with_extension("sending");
        let program = self.tools.virsh.file_name().unwrap_or_default().to_string_lossy();
        if !orphan::end(&input, &program, ORPHAN) {
            return Err(Error::Conflict {
                what: "the virsh that a killed p1 left sending the base image does not end".into(),
                remedy: format!("It holds {}; end it by hand.", input.display()),
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
        let cmd = Cmd::new(&self.tools.qemu_img).args(["info", "--output=json"]).arg(&image.image);
        let doing = "read the box' disk image";
        let done = process::run(&cmd, SHORT, cancel).and_then(Finished::ok).map_err(failed(doing))?;
        let info: Option<serde_json::Value> = serde_json::from_str(&done.stdout).ok();
        let size = info.and_then(|i| i["virtual-size"].as_u64());
        size.map(|s| format!("{s}b")).ok_or_else(|| Error::Answer {
            program: "qemu-img",
            what: "virtual size".into(),
            lines: process::tail(&done.stdout, 8),
        })
    }

    /// The pool, where vagrant-libvirt would make it too (`handle_storage_pool.rb`), but not before
    /// p1 needs it.
    fn pool(&self, did: &mut Vec<String>, cancel: &Cancel) -> Result<(), Error> {
        let doing = "make the storage pool";
        let info = self.look("look at the storage pool", &["pool-info", POOL], cancel)?;
        if info.is_none() {
            let define = ["pool-define-as", POOL, "dir", "--target", POOL_PATH];
            self.ask(doing, &define, cancel)?;
            self.ask(doing, &["pool-build", POOL], cancel)?;
            did.push(format!("made the storage pool {POOL} ({POOL_PATH})"));
        }
        let running = |text: &String| text.lines().any(|l| l.starts_with("State:") && l.ends_with("running"));
        if !info.as_ref().is_some_and(running) {
            self.ask("start the storage pool", &["pool-start", POOL], cancel)?;
        }
        Ok(())
    }

    /// Every domain: its name, its UUID.
    fn domains(&self, cancel: &Cancel) -> Result<BTreeMap<String, String>, Error> {
        let done = self.ask("list the machines", &["list", "--all", "--uuid", "--name"], cancel)?;
        Ok(pairs(&done.stdout))
    }

    fn volumes(&self, cancel: &Cancel) -> Result<BTreeSet<String>, Error> {
        let list = self.look("list the volumes", &["vol-list", POOL], cancel)?.unwrap_or_default();
        Ok(list.lines().skip(2).filter_map(|l| Some(l.split_whitespace().next()?.to_owned())).collect())
    }

    /// True if a volume of the pool has this one behind it.
    fn backing(&self, base: &str, cancel: &Cancel) -> Result<bool, Error> {
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

/// For `map_err`: tells a daemon that does not answer from a question that it refuses.
fn failed(doing: &str) -> impl FnOnce(process::Error) -> Error {
    // virsh' words where the socket is gone, and where the daemon goes while it is asked.
    const GONE: [&str; 5] = [
        "failed to connect socket",
        "failed to connect to the hypervisor",
        "end of file while reading data",
        "cannot recv data",
        "cannot write data",
    ];
    move |error| {
        let lines = error.evidence();
        let text = lines.join("\n").to_lowercase();
        let gone = matches!(error, process::Error::Failed { .. }) && GONE.iter().any(|w| text.contains(w));
        match gone && !text.contains("permission denied") {
            true => Error::Down { doing: doing.to_owned(), who: "libvirt", lines },
            false => Error::doing(doing)(error),
        }
    }
}

/// The volume that vagrant-libvirt clones its machines' disks from
/// (`lib/vagrant-libvirt/action/handle_box_image.rb`).
fn volume(image: &BoxInfo) -> String {
    format!("{}_vagrant_box_image_{}_box.img", image.folder(), image.version)
}

/// vagrant-libvirt's name for a root disk (`create_domain_volume.rb`).
fn disk(cluster: &str, node: &str) -> String {
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

#[derive(Clone, Debug, PartialEq, Eq)]
struct Host {
    mac: String,
    name: String,
    ip: String,
}

fn hosts(cluster: &Cluster) -> Vec<Host> {
    let host = |n: &crate::spec::Node| Host {
        mac: node_mac(&cluster.name, &n.name, n.ip),
        name: n.name.clone(),
        ip: n.ip.to_string(),
    };
    cluster.nodes.iter().map(host).collect()
}

#[derive(Debug)]
struct Network {
    active: bool,
    cidr: Option<Ipv4Net>,
    hosts: Vec<Host>,
}

enum Want {
    Define,
    Mend { start: bool, missing: Vec<Host> },
}

impl Network {
    /// From `virsh net-dumpxml`, which writes one element a line and attributes in single quotes.
    fn read(xml: &str, active: bool) -> Self {
        let value = |line: &str, key: &str| {
            let rest = line.split(&format!(" {key}='")).nth(1)?;
            Some(rest.split('\'').next()?.to_owned())
        };
        let mut network = Self { active, cidr: None, hosts: Vec::new() };
        for line in xml.lines().map(str::trim) {
            if line.starts_with("<ip ") && network.cidr.is_none() {
                let address = value(line, "address").and_then(|a| a.parse().ok());
                let mask = value(line, "netmask").and_then(|m| m.parse().ok());
                let prefix = value(line, "prefix").and_then(|p| p.parse().ok());
                network.cidr = match (address, mask, prefix) {
                    (Some(a), Some(m), _) => Ipv4Net::with_netmask(a, m).ok().map(|n| n.trunc()),
                    (Some(a), None, Some(p)) => Ipv4Net::new(a, p).ok().map(|n| n.trunc()),
                    _ => None,
                };
            }
            if line.starts_with("<host ")
                && let (Some(mac), Some(ip)) = (value(line, "mac"), value(line, "ip"))
            {
                network.hosts.push(Host { mac, name: value(line, "name").unwrap_or_default(), ip });
            }
        }
        network
    }
}

impl Provider for Libvirt {
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
        let names: BTreeSet<&String> = cluster.nodes.iter().map(|n| &n.name).chain(ids.keys()).collect();
        // One virsh: it goes on after a `dominfo` of what is not there, and its exit code is the last one's.
        let infos: String =
            names.iter().map(|n| format!("dominfo {}; ", machine_name(&cluster.name, n))).collect();
        let all = [format!("list --all --uuid --name; {infos}list --all")];
        let text = self.ask("list the machines", &[&all[0]], cancel)?.stdout;
        let (uuids, table) = text.split_once(" Id ").unwrap_or((&text, ""));
        // Between them, lines of `key: value`.
        let (uuids, sizes) = (pairs(uuids), sizes(uuids));
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
        Ok(names
            .into_iter()
            .map(|node| {
                let domain = machine_name(&cluster.name, &node);
                let machine = uuids.get(&domain).map_or_else(Machine::absent, |uuid| Machine {
                    id: Some(uuid.clone()),
                    state: states.get(&domain).cloned().unwrap_or(State::Other("unknown".into())),
                    foreign: ids.get(&node) != Some(uuid),
                    size: sizes.get(&domain).copied(),
                });
                (node, machine)
            })
            .collect())
    }

    fn prepared(&self, cluster: &Cluster, image: &BoxInfo, cancel: &Cancel) -> Result<Option<String>, Error> {
        let found = self.network(&network_name(&cluster.name), cancel)?;
        Ok(match self.network_wants(cluster, found.as_ref())? {
            Want::Define => Some("the network is not there".into()),
            Want::Mend { start: true, .. } => Some("the network is not started".into()),
            Want::Mend { missing, .. } if !missing.is_empty() => {
                Some(format!("the network has no address reserved for {}", missing[0].name))
            }
            Want::Mend { .. } if !self.image_ready(image, cancel)? => {
                Some("the base image is not there".into())
            }
            Want::Mend { .. } => None,
        })
    }

    fn prepare(
        &self,
        cluster: &Cluster,
        image: &BoxInfo,
        report: &mut dyn FnMut(&str),
        cancel: &Cancel,
    ) -> Result<Vec<String>, Error> {
        let name = network_name(&cluster.name);
        let mut did = Vec::new();
        let found = self.network(&name, cancel)?;
        let start = match self.network_wants(cluster, found.as_ref())? {
            Want::Define => {
                report("making the network");
                let xml = network_xml(cluster).map_err(|e| Error::Conflict {
                    what: e.to_string(),
                    remedy: e.hint().unwrap_or_default(),
                })?;
                let cmd = self.virsh(["net-define", "/dev/stdin"]).stdin(xml);
                let doing = "make the network";
                process::run(&cmd, SHORT, cancel).and_then(Finished::ok).map_err(failed(doing))?;
                did.push(format!("made the network {name} ({})", cluster.network.cidr));
                true
            }
            Want::Mend { start, missing } => {
                for host in missing {
                    self.reserve(&name, &host, !start, cancel)?;
                    did.push(format!("reserved {} for {}", host.ip, host.name));
                }
                start
            }
        };
        if start {
            self.ask("start the network", &["net-start", &name], cancel)?;
            did.push(format!("started the network {name}"));
        }
        self.pool(&mut did, cancel)?;
        if !self.image_ready(image, cancel)? {
            self.upload(image, report, cancel)?;
            did.push(format!("sent the base image of {}", image.name));
        }
        Ok(did)
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

    fn known_address(&self, cluster: &Cluster, node: &str) -> Option<SocketAddr> {
        let node = cluster.node(node).filter(|_| cluster.network.nics == 1)?;
        Some((node.ip, 22).into())
    }

    /// vagrant-libvirt writes `Source: PATH` into a domain's description (`create_domain.rb`).
    fn made_from(
        &self,
        cluster: &Cluster,
        node: &str,
        vagrantfile: &Path,
        cancel: &Cancel,
    ) -> Result<bool, Error> {
        let domain = machine_name(&cluster.name, node);
        let text = self.look("look at the machine", &["desc", &domain], cancel)?.unwrap_or_default();
        Ok(text.trim().strip_prefix("Source: ").is_some_and(|p| Path::new(p) == vagrantfile))
    }

    fn disk_left(&self, cluster: &Cluster, node: &str, cancel: &Cancel) -> Result<bool, Error> {
        Ok(self.volumes(cancel)?.contains(&disk(&cluster.name, node)))
    }

    fn power_off(&self, cluster: &Cluster, node: &str, _id: &str, cancel: &Cancel) -> Result<(), Error> {
        let domain = machine_name(&cluster.name, node);
        let doing = "switch the machine off";
        let done = process::run(&self.virsh(["destroy", &domain]), SHORT, cancel).map_err(failed(doing))?;
        if done.stderr.contains("not running") || done.stderr.contains("failed to get domain") {
            return Ok(());
        }
        done.ok().map(|_| ()).map_err(failed(doing))
    }

    /// One virsh for all of them: a process takes 30 ms to start, a machine a fraction of one to pause.
    fn pause(&self, cluster: &Cluster, ids: &BTreeMap<String, String>, cancel: &Cancel) -> Result<(), Error> {
        self.turn("suspend", "pause the machines", &State::Paused, cluster, ids, cancel)
    }

    fn resume(
        &self,
        cluster: &Cluster,
        ids: &BTreeMap<String, String>,
        cancel: &Cancel,
    ) -> Result<(), Error> {
        self.turn("resume", "let the machines go on", &State::Running, cluster, ids, cancel)
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

    fn boot(&self, cluster: &Cluster, node: &str, _id: &str, cancel: &Cancel) -> Result<(), Error> {
        self.unless("start the machine", &["start", &machine_name(&cluster.name, node)], cancel)
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
        for node in what.nodes {
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
            let disk = disk(&cluster.name, node);
            if volumes.contains(&disk) {
                self.ask("remove a disk", &["vol-delete", "--pool", POOL, &disk], cancel)?;
                did.push(format!("removed the disk {disk}"));
            }
        }
        let name = network_name(&cluster.name);
        if what.whole
            && let Some(network) = self.network(&name, cancel)?
        {
            if network.active {
                self.ask("stop the network", &["net-destroy", &name], cancel)?;
            }
            self.ask("remove the network", &["net-undefine", &name], cancel)?;
            did.push(format!("removed the network {name}"));
        }
        if let Some(image) = what.image {
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
    /// The answers to several questions, asked of one virsh.
    fn several(&self, doing: &str, commands: &[Vec<&str>], cancel: &Cancel) -> Result<Vec<String>, Error> {
        if commands.is_empty() {
            return Ok(Vec::new());
        }
        let line: Vec<String> = commands.iter().map(|words| words.join(" ")).collect();
        let text = self.ask(doing, &[&line.join(&format!("; echo {BETWEEN}; "))], cancel)?.stdout;
        Ok(text.split(&format!("{BETWEEN}\n")).map(str::to_owned).collect())
    }

    /// Gives machines a command and sees to it that each is as it should be then.
    fn turn(
        &self,
        command: &str,
        doing: &str,
        wanted: &State,
        cluster: &Cluster,
        ids: &BTreeMap<String, String>,
        cancel: &Cancel,
    ) -> Result<(), Error> {
        let names = ids.keys().map(|node| format!("{command} {}", machine_name(&cluster.name, node)));
        let line = names.collect::<Vec<_>>().join("; ");
        if line.is_empty() {
            return Ok(());
        }
        // Its exit code is that of the last one, and one that is so already may be an error to it.
        let done = process::run(&self.virsh([line]), SHORT, cancel).map_err(failed(doing))?;
        let now = self.machines(cluster, ids, cancel)?;
        match ids.keys().find(|node| now.get(*node).is_none_or(|m| m.state != *wanted)) {
            None => Ok(()),
            Some(_) if !done.success() => done.ok().map(|_| ()).map_err(failed(doing)),
            Some(node) => Err(Error::Answer {
                program: "virsh",
                what: format!("{wanted} machine {}", machine_name(&cluster.name, node)),
                lines: process::tail(&done.stderr, 5),
            }),
        }
    }

    fn at_length(&self, doing: &str, args: &[&str], cancel: &Cancel) -> Result<(), Error> {
        let done = process::run(&self.virsh(args), MEMORY, cancel).and_then(Finished::ok);
        done.map(|_| ()).map_err(failed(doing))
    }

    /// By snapshot: the bytes of memory that are in a disk, if this user may look into it.
    fn memory_sizes(&self, disk: &str, cancel: &Cancel) -> BTreeMap<String, u64> {
        let look = || {
            let path = self.ask("find the disk", &["vol-path", "--pool", POOL, disk], cancel).ok()?.stdout;
            let cmd = Cmd::new(&self.tools.qemu_img).args(["info", "-U", "--output=json"]).arg(path.trim());
            let done = process::run(&cmd, SHORT, cancel).and_then(Finished::ok).ok()?;
            let info: serde_json::Value = serde_json::from_str(&done.stdout).ok()?;
            let one =
                |s: &serde_json::Value| Some((s["name"].as_str()?.to_owned(), s["vm-state-size"].as_u64()?));
            Some(info["snapshots"].as_array()?.iter().filter_map(one).collect())
        };
        look().unwrap_or_default()
    }

    /// Adds a reservation to a network; a stale one for the same name or address goes first.
    fn reserve(&self, network: &str, host: &Host, live: bool, cancel: &Cancel) -> Result<(), Error> {
        let xml = self.look("look at the network", &["net-dumpxml", network], cancel)?.unwrap_or_default();
        let at: &[&str] = if live { &["--live", "--config"] } else { &["--config"] };
        let update = |command: &str, host: &Host| {
            let xml = format!("<host mac='{}' name='{}' ip='{}'/>", host.mac, host.name, host.ip);
            let mut args = vec!["net-update", network, command, "ip-dhcp-host", xml.as_str()];
            args.extend(at);
            self.ask("reserve an address", &args, cancel)
        };
        let stale = |h: &&Host| h.mac == host.mac || h.name == host.name || h.ip == host.ip;
        for old in Network::read(&xml, live).hosts.iter().filter(stale) {
            update("delete", old)?;
        }
        update("add-last", host).map(|_| ())
    }
}

/// The definition of the cluster's network.
pub fn network_xml(cluster: &Cluster) -> Result<String, render::Error> {
    let node = |n: &crate::spec::Node| serde_json::json!({"name": n.name, "ip": n.ip, "mac": node_mac(&cluster.name, &n.name, n.ip)});
    render::render(
        "network.xml",
        &serde_json::json!({
            "nics": cluster.network.nics,
            "network": {
                "name": network_name(&cluster.name),
                "gateway": cluster.network.gateway(),
                "netmask": cluster.network.cidr.netmask(),
            },
            "nodes": cluster.nodes.iter().map(node).collect::<Vec<_>>(),
        }),
    )
}

/// Between the answers of one virsh.
const BETWEEN: &str = "=p1=";

/// A snapshot's own description, from its XML; the machine's follows in there. A note of p1's has no
/// character that XML writes in another way.
fn description(xml: &str) -> Option<String> {
    let own = xml.split("<domain ").next()?;
    Some(own.split_once("<description>")?.1.split_once("</description>")?.0.to_owned())
}

fn state(word: &str) -> State {
    match word {
        "running" | "idle" | "in shutdown" => State::Running,
        "shut off" | "crashed" => State::Off,
        "paused" | "pmsuspended" => State::Paused,
        other => State::Other(other.to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
        let network = Network::read(xml, true);
        assert_eq!(network.cidr, Some("192.168.56.0/24".parse().unwrap()));
        let host =
            Host { mac: "52:54:00:0a:0b:0c".into(), name: "server".into(), ip: "192.168.56.110".into() };
        assert_eq!(network.hosts, [host]);
    }
}
