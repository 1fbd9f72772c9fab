//! VirtualBox, through `VBoxManage`.
//!
//! Written from Vagrant's own driver (vagrant 2.3.4, `plugins/providers/virtualbox/`), which reads
//! the same commands' output, and tested against a script that answers as `VBoxManage` does. None
//! of it was seen on a real VirtualBox, in particular not: how long a session stays locked after
//! `poweroff`, what `unregistervm --delete` says about a machine whose disks are gone, and snapshots
//! (after VirtualBox' manual, `VBoxManage snapshot`).
//!
//! Host-only adapters are shared by all machines of the host and Vagrant makes the one it needs, so
//! nothing here creates or removes one.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use ipnet::Ipv4Net;

use super::{
    BoxInfo, Error, Held, Holdings, Hypervisor, Kind, Leftovers, Machine, MachineState, Note, Owner, Size,
    Snapshot, Tools, machine_name,
};
use crate::explain::Explain;
use crate::os::cancel::Level;
use crate::os::process::{self, Cmd, Finished};
use crate::os::{Cancel, files};
use crate::spec::Cluster;

/// VirtualBox' list of allowed host-only ranges (since 6.1.28, on Linux).
pub const NETWORKS_CONF: &str = "/etc/vbox/networks.conf";

/// What is allowed without that file (vagrant, `HOSTONLY_DEFAULT_RANGE`).
const DEFAULT_RANGE: &str = "192.168.56.0/21";
/// A command that only asks. `VBoxSVC` may have to start first.
const ASK: Duration = Duration::from_secs(30);
/// A command that changes something; deleting disks takes a while.
const CHANGE: Duration = Duration::from_secs(120);
/// Writing a machine's memory to a file, or merging disks.
const MEMORY: Duration = Duration::from_secs(600);
/// How long a machine may stay locked by its ended session.
const UNLOCK: Duration = Duration::from_secs(20);

/// The key of a machine's extra data under which its owner is noted.
const EXTRA_DATA: &str = "p1/owner";
/// A machine whose settings file cannot be read.
const INACCESSIBLE: &str = "inaccessible";

/// VirtualBox on this host, asked by `VBoxManage`.
#[derive(Clone, Debug)]
pub struct VirtualBox {
    program: PathBuf,
    networks: PathBuf,
}

impl VirtualBox {
    /// With these tools.
    pub fn new(tools: &Tools) -> Self {
        Self { program: tools.vboxmanage.clone(), networks: tools.vbox_networks.clone() }
    }

    /// Asks or does something; a failure is an error.
    fn run(&self, args: &[&str], bound: Duration, doing: &str, cancel: &Cancel) -> Result<Finished, Error> {
        self.try_run(args, bound, cancel).and_then(Finished::ok).map_err(failed(doing))
    }

    fn try_run(&self, args: &[&str], bound: Duration, cancel: &Cancel) -> Result<Finished, process::Error> {
        // Messages are translated where the host's language is not English (VirtualBox 7).
        process::run(&Cmd::new(&self.program).args(args).env("LC_ALL", "C"), bound, cancel)
    }

    /// All machines of this user, id by name.
    fn list(&self, cancel: &Cancel) -> Result<Vec<Listed>, Error> {
        let done = self.run(&["list", "vms"], ASK, "list VirtualBox' machines", cancel)?;
        Ok(machines_listed(&done.stdout))
    }

    /// `showvminfo` of a machine; `None` if there is no such machine.
    fn info(&self, id: &str, cancel: &Cancel) -> Result<Option<String>, Error> {
        let doing = || failed(format!("look at VirtualBox' machine {id}"));
        let args = ["showvminfo", id, "--machinereadable"];
        let done = self.try_run(&args, ASK, cancel).map_err(doing())?;
        if !done.success() && not_found(&done.stderr) {
            return Ok(None);
        }
        done.ok().map(|d| Some(d.stdout)).map_err(doing())
    }

    fn state(&self, id: &str, cancel: &Cancel) -> Result<MachineState, Error> {
        Ok(self.info(id, cancel)?.map_or(MachineState::Absent, |info| state_of(&info)))
    }

    fn switch_off(&self, id: &str, cancel: &Cancel) -> Result<bool, Error> {
        match self.state(id, cancel)? {
            MachineState::Off | MachineState::Saved | MachineState::Absent => return Ok(false),
            MachineState::Other(word) if word == INACCESSIBLE => return Ok(false),
            _ => {}
        }
        let doing = || failed(format!("switch off VirtualBox' machine {id}"));
        let done = self.try_run(&["controlvm", id, "poweroff"], CHANGE, cancel).map_err(doing())?;
        // It may have ended by itself in between.
        if !done.success()
            && !matches!(
                self.state(id, cancel)?,
                MachineState::Off | MachineState::Saved | MachineState::Absent
            )
        {
            done.ok().map_err(doing())?;
        }
        Ok(true)
    }

    /// Unregisters a machine and deletes its disks.
    fn delete(&self, id: &str, cancel: &Cancel) -> Result<(), Error> {
        let doing = format!("delete VirtualBox' machine {id}");
        // An inaccessible machine is unregistered although deleting its files then fails.
        let gone = || Ok(self.state(id, cancel)? == MachineState::Absent);
        self.unlocked(&["unregistervm", id, "--delete"], CHANGE, &doing, &gone, cancel)
    }

    /// Changes a machine that was switched off, waiting for the lock of its ended session; `is_so`
    /// looks whether it is done in spite of an error.
    fn unlocked(
        &self,
        args: &[&str],
        bound: Duration,
        doing: &str,
        is_so: &dyn Fn() -> Result<bool, Error>,
        cancel: &Cancel,
    ) -> Result<(), Error> {
        let end = Instant::now() + UNLOCK;
        loop {
            let doing = || failed(doing);
            let done = self.try_run(args, bound, cancel).map_err(doing())?;
            if done.success() || is_so()? {
                return Ok(());
            }
            let locked = done.stderr.contains("while it is locked");
            if !locked || Instant::now() > end || cancel.sleep(Duration::from_millis(250), Level::Abort) {
                return done.ok().map(|_| ()).map_err(doing());
            }
        }
    }

    /// What keeps Vagrant from making the cluster's host-only network.
    fn obstacle(&self, cluster: &Cluster, cancel: &Cancel) -> Result<Option<(String, String)>, Error> {
        let cidr = cluster.network.cidr;
        let allowed = allowed_ranges(files::read_if_there(&self.networks)?.as_deref());
        if !is_allowed(cidr, &allowed) {
            let file = self.networks.display();
            return Ok(Some((
                format!("VirtualBox does not allow host-only networks in {cidr}"),
                format!(
                    "Add the line `{}` to {file}, or choose a network in {}.",
                    conf_line(cidr),
                    list_of(&allowed)
                ),
            )));
        }
        let adapters = self.run(&["list", "hostonlyifs"], ASK, "list host-only adapters", cancel)?;
        for adapter in adapters_listed(&adapters.stdout) {
            let other = adapter.network;
            let remedy = format!(
                "Choose another network in the spec, or remove the adapter if nothing uses it: VBoxManage hostonlyif remove {}",
                adapter.name
            );
            // Vagrant takes an adapter over when its network is the same, by address and mask.
            if other.trunc() != cidr.trunc()
                && (other.contains(&cidr.network()) || cidr.contains(&other.addr()))
            {
                return Ok(Some((
                    format!("the host-only adapter {} has {other}, which overlaps {cidr}", adapter.name),
                    remedy,
                )));
            }
            if let Some(node) = cluster.nodes.iter().find(|n| n.ip == other.addr()) {
                return Ok(Some((
                    format!(
                        "the host-only adapter {} has the address of node {}, {}",
                        adapter.name, node.name, node.ip
                    ),
                    remedy,
                )));
            }
        }
        Ok(None)
    }
}

impl Hypervisor for VirtualBox {
    fn kind(&self) -> Kind {
        Kind::Virtualbox
    }

    fn parallel(&self) -> bool {
        false
    }

    /// One command for the list, and one for each of ours that exists.
    fn machines(
        &self,
        cluster: &Cluster,
        ids: &BTreeMap<String, String>,
        cancel: &Cancel,
    ) -> Result<BTreeMap<String, Machine>, Error> {
        let listed = self.list(cancel)?;
        let nodes = cluster.nodes.iter().map(|n| &n.name).chain(ids.keys());
        let mut machines = BTreeMap::new();
        for node in nodes {
            if machines.contains_key(node) {
                continue;
            }
            let known = ids.get(node).and_then(|id| listed.iter().find(|l| l.id == *id));
            let name = machine_name(&cluster.name, node);
            let found = known.or_else(|| listed.iter().find(|l| l.name == name));
            let machine = match found {
                None => Machine::absent(),
                Some(l) => self.info(&l.id, cancel)?.map_or_else(Machine::absent, |info| Machine {
                    id: Some(l.id.clone()),
                    state: state_of(&info),
                    foreign: known.is_none(),
                    size: size_of(&info),
                    ..Machine::absent()
                }),
            };
            machines.insert(node.clone(), machine);
        }
        Ok(machines)
    }

    /// Looks for obstacles only: the host-only adapter and the base machine are Vagrant's work.
    fn prepared(&self, cluster: &Cluster, _: &BoxInfo, cancel: &Cancel) -> Result<Option<String>, Error> {
        Ok(self.obstacle(cluster, cancel)?.map(|(what, _)| what))
    }

    fn prepare(
        &self,
        cluster: &Cluster,
        _: &BoxInfo,
        _: &Owner,
        _: &mut dyn FnMut(&str),
        cancel: &Cancel,
    ) -> Result<Vec<String>, Error> {
        match self.obstacle(cluster, cancel)? {
            Some((what, remedy)) => Err(Error::Conflict { what, remedy, next: Vec::new() }),
            None => Ok(Vec::new()),
        }
    }

    /// Host-only networks are VirtualBox' own, and nobody's in particular.
    fn holdings(
        &self,
        cluster: &Cluster,
        nodes: &BTreeSet<String>,
        cancel: &Cancel,
    ) -> Result<Holdings, Error> {
        let listed = self.list(cancel)?;
        let mut machines = BTreeMap::new();
        for node in nodes {
            let name = machine_name(&cluster.name, node);
            let Some(machine) = listed.iter().find(|l| l.name == name) else { continue };
            let doing = "ask whose a machine is";
            let text = self.run(&["getextradata", &machine.id, EXTRA_DATA], ASK, doing, cancel)?.stdout;
            // Without one it says `No value set!`.
            let owner = text.trim().strip_prefix("Value: ").and_then(Owner::read);
            machines.insert(node.clone(), Held { id: machine.id.clone(), owner, source: None });
        }
        Ok(Holdings { network: None, machines })
    }

    fn own_machine(
        &self,
        _: &Cluster,
        _: &str,
        id: &str,
        owner: &Owner,
        cancel: &Cancel,
    ) -> Result<(), Error> {
        let text = owner.to_string();
        let args = ["setextradata", id, EXTRA_DATA, &text];
        self.run(&args, CHANGE, "note whose the machine is", cancel).map(|_| ())
    }

    fn endpoint(&self, _: &Cluster, node: &str, id: &str, cancel: &Cancel) -> Result<SocketAddr, Error> {
        let info = self.info(id, cancel)?.unwrap_or_default();
        ssh_forwarded(&info).ok_or_else(|| Error::Answer {
            program: "VBoxManage",
            what: format!("forwarded SSH port of node {node}"),
            lines: info
                .lines()
                .filter(|l| l.starts_with("VMState=") || l.starts_with("Forw"))
                .map(str::to_owned)
                .collect(),
        })
    }

    fn look_further(&self, cluster: &Cluster, node: &str) -> String {
        let name = machine_name(&cluster.name, node);
        format!("VBoxManage controlvm {name} screenshotpng {name}.png")
    }

    fn power_off(&self, _: &Cluster, _: &str, id: &str, cancel: &Cancel) -> Result<(), Error> {
        self.switch_off(id, cancel).map(|_| ())
    }

    fn pause(&self, _: &Cluster, ids: &BTreeMap<String, String>, cancel: &Cancel) -> Result<(), Error> {
        for id in ids.values() {
            if self.state(id, cancel)? != MachineState::Paused {
                let doing = format!("pause VirtualBox' machine {id}");
                self.run(&["controlvm", id, "pause"], CHANGE, &doing, cancel)?;
            }
        }
        Ok(())
    }

    /// A restored machine is a saved one: starting it reads its memory back.
    fn resume(&self, _: &Cluster, ids: &BTreeMap<String, String>, cancel: &Cancel) -> Result<(), Error> {
        for id in ids.values() {
            let doing = format!("resume VirtualBox' machine {id}");
            if self.state(id, cancel)? == MachineState::Saved {
                self.run(&["startvm", id, "--type", "headless"], MEMORY, &doing, cancel)?;
            }
            if self.state(id, cancel)? == MachineState::Paused {
                self.run(&["controlvm", id, "resume"], CHANGE, &doing, cancel)?;
            }
        }
        Ok(())
    }

    fn snapshots(
        &self,
        _: &Cluster,
        ids: &BTreeMap<String, String>,
        cancel: &Cancel,
    ) -> Result<BTreeMap<String, Vec<Snapshot>>, Error> {
        let mut found = BTreeMap::new();
        for (node, id) in ids {
            let doing = || failed(format!("list the snapshots of VirtualBox' machine {id}"));
            let args = ["snapshot", id, "list", "--machinereadable"];
            let done = self.try_run(&args, ASK, cancel).map_err(doing())?;
            // None at all is an error to it, and told on either stream.
            let none = [&done.stdout, &done.stderr].iter().any(|t| t.contains("does not have any snapshots"));
            if !none {
                let all = snapshots_listed(&done.ok().map_err(doing())?.stdout);
                found.extend((!all.is_empty()).then(|| (node.clone(), all)));
            }
        }
        Ok(found)
    }

    fn take(
        &self,
        _: &Cluster,
        (_, id): (&str, &str),
        (name, note): (&str, &Note),
        cancel: &Cancel,
    ) -> Result<(), Error> {
        let note = note.to_string();
        let args = ["snapshot", id, "take", name, "--description", &note];
        self.run(&args, MEMORY, "take the snapshot", cancel).map(|_| ())
    }

    /// Only a machine that is off can be restored.
    fn restore(&self, _: &Cluster, (_, id): (&str, &str), name: &str, cancel: &Cancel) -> Result<(), Error> {
        self.switch_off(id, cancel)?;
        let args = ["snapshot", id, "restore", name];
        self.unlocked(&args, MEMORY, "restore the machine", &|| Ok(false), cancel)
    }

    fn forget(
        &self,
        cluster: &Cluster,
        (node, id): (&str, &str),
        name: &str,
        cancel: &Cancel,
    ) -> Result<(), Error> {
        let ids = BTreeMap::from([(node.to_owned(), id.to_owned())]);
        let gone = || {
            let left = self.snapshots(cluster, &ids, cancel)?;
            Ok(!left.values().flatten().any(|s| s.name == name))
        };
        let args = ["snapshot", id, "delete", name];
        self.unlocked(&args, MEMORY, "remove the snapshot", &gone, cancel)
    }

    fn resize(&self, _: &Cluster, node: &str, id: &str, size: Size, cancel: &Cancel) -> Result<(), Error> {
        let (cpus, memory) = (size.cpus.to_string(), size.memory.to_string());
        let args = ["modifyvm", id, "--cpus", &cpus, "--memory", &memory];
        self.run(&args, CHANGE, &format!("give the machine of {node} another size"), cancel).map(|_| ())
    }

    fn boot(&self, _: &Cluster, node: &str, id: &str, cancel: &Cancel) -> Result<(), Error> {
        if self.state(id, cancel)? == MachineState::Running {
            return Ok(());
        }
        let args = ["startvm", id, "--type", "headless"];
        self.run(&args, CHANGE, &format!("start the machine of {node}"), cancel).map(|_| ())
    }

    /// The hidden machine that linked clones start from stays with its box.
    fn evidence(&self, _: &str, _: &[String]) -> Vec<(String, Cmd)> {
        vec![("machines".to_owned(), Cmd::new(&self.program).args(["list", "-l", "vms"]))]
    }

    fn clean(
        &self,
        cluster: &Cluster,
        what: &Leftovers<'_>,
        report: &mut dyn FnMut(&str),
        cancel: &Cancel,
    ) -> Result<Vec<String>, Error> {
        let mut removed = Vec::new();
        for machine in self.list(cancel)? {
            let ours = what.nodes.iter().filter(|n| !what.spared.contains(*n)).any(|node| {
                what.ids.get(node) == Some(&machine.id) || machine.name == machine_name(&cluster.name, node)
            });
            if !ours {
                continue;
            }
            report(&format!("deleting machine {}", machine.name));
            self.switch_off(&machine.id, cancel)?;
            self.delete(&machine.id, cancel)?;
            removed.push(format!("machine {} ({})", machine.name, machine.id));
        }
        Ok(removed)
    }
}

/// For `map_err`: tells a VirtualBox that does not work at all from a question that it refuses.
fn failed(doing: impl Into<String>) -> impl FnOnce(process::Error) -> Error {
    // Its words where its server does not start (VBoxManage.cpp), and where the kernel's module is missing.
    const GONE: [&str; 3] =
        ["failed to create the virtualbox object", "kernel module is not loaded", "vboxdrv"];
    let doing = doing.into();
    move |error| {
        let lines = error.evidence();
        let text = lines.join("\n").to_lowercase();
        match error {
            process::Error::Failed { .. } if GONE.iter().any(|w| text.contains(w)) => {
                Error::Down { doing, who: "VirtualBox", lines }
            }
            error => Error::doing(doing)(error),
        }
    }
}

/// A line of `VBoxManage list vms`.
#[derive(Debug, PartialEq)]
struct Listed {
    name: String,
    id: String,
}

fn machines_listed(text: &str) -> Vec<Listed> {
    let line = |line: &str| {
        let (name, id) = line.trim().strip_suffix('}')?.rsplit_once(" {")?;
        Some(Listed { name: name.trim_matches('"').to_owned(), id: id.to_owned() })
    };
    text.lines().filter_map(line).collect()
}

/// From `snapshot list --machinereadable`: `SnapshotName="a"`, and with `-1`, `-1-1` for those that come
/// after it; `SnapshotDescription` likewise.
fn snapshots_listed(text: &str) -> Vec<Snapshot> {
    let names = text.lines().filter_map(|l| l.strip_prefix("SnapshotName")?.split_once("=\""));
    let one = |(which, name): (&str, &str)| {
        let note = Note::read(value(text, &format!("SnapshotDescription{which}"))?)?;
        Some(Snapshot { name: name.trim_end().trim_end_matches('"').to_owned(), note, bytes: None })
    };
    names.filter_map(one).collect()
}

fn not_found(stderr: &str) -> bool {
    stderr.contains("VBOX_E_OBJECT_NOT_FOUND") || stderr.contains("Could not find a registered machine")
}

/// The value of `key="value"` in machine-readable output.
fn value<'a>(info: &'a str, key: &str) -> Option<&'a str> {
    info.lines().find_map(|l| Some(l.strip_prefix(key)?.strip_prefix('=')?.trim().trim_matches('"')))
}

fn state_of(info: &str) -> MachineState {
    if value(info, "name") == Some("<inaccessible>") {
        return MachineState::Other(INACCESSIBLE.to_owned());
    }
    match value(info, "VMState") {
        Some("running") => MachineState::Running,
        Some("poweroff" | "aborted") => MachineState::Off,
        Some("paused") => MachineState::Paused,
        Some("saved" | "aborted-saved") => MachineState::Saved,
        Some(other) => MachineState::Other(other.to_owned()),
        None => MachineState::Other("unknown".to_owned()),
    }
}

fn size_of(info: &str) -> Option<Size> {
    let number = |key: &str| value(info, key)?.parse().ok();
    Some(Size { cpus: number("cpus")?, memory: number("memory")? })
}

/// From `Forwarding(0)="ssh,tcp,127.0.0.1,2222,,22"`: rule, protocol, host address and port, guest
/// address and port. Vagrant names its rule `ssh`.
fn ssh_forwarded(info: &str) -> Option<SocketAddr> {
    let rules: Vec<Vec<&str>> = info
        .lines()
        .filter(|l| l.starts_with("Forwarding"))
        .filter_map(|l| Some(l.split_once('=')?.1.trim().trim_matches('"').split(',').collect()))
        .filter(|fields: &Vec<&str>| fields.len() == 6)
        .collect();
    let rule = rules.iter().find(|r| r[0] == "ssh").or_else(|| rules.iter().find(|r| r[5] == "22"))?;
    let host: Ipv4Addr = rule[2].parse().unwrap_or(Ipv4Addr::LOCALHOST);
    let host = if host.is_unspecified() { Ipv4Addr::LOCALHOST } else { host };
    Some(SocketAddr::from((host, rule[3].parse::<u16>().ok()?)))
}

/// A host-only adapter that has an address.
struct Adapter {
    name: String,
    network: Ipv4Net,
}

fn adapters_listed(text: &str) -> Vec<Adapter> {
    let field = |block: &str, key: &str| {
        block.lines().find_map(|l| Some(l.strip_prefix(key)?.strip_prefix(':')?.trim().to_owned()))
    };
    let adapter = |block: &str| {
        let mask: Ipv4Addr = field(block, "NetworkMask")?.parse().ok()?;
        let address: Ipv4Addr = field(block, "IPAddress")?.parse().ok()?;
        Some(Adapter {
            name: field(block, "Name")?,
            network: Ipv4Net::with_netmask(address, mask).ok().filter(|_| !address.is_unspecified())?,
        })
    };
    text.split("\n\n").filter_map(adapter).collect()
}

/// The ranges that VirtualBox allows for host-only networks; `conf` is the text of its
/// `networks.conf`, if there is one, which replaces the default. Only lines that begin with `*`
/// count (vagrant, `load_net_conf`); IPv6 ranges are passed over.
pub fn allowed_ranges(conf: Option<&str>) -> Vec<Ipv4Net> {
    let Some(text) = conf else {
        return vec![DEFAULT_RANGE.parse().expect("a network")];
    };
    text.lines()
        .filter_map(|l| l.trim().strip_prefix('*'))
        .flat_map(str::split_whitespace)
        .filter_map(|word| word.parse().ok())
        .collect()
}

/// Whether VirtualBox lets a host-only network have these addresses.
pub fn is_allowed(cidr: Ipv4Net, allowed: &[Ipv4Net]) -> bool {
    allowed.iter().any(|range| range.contains(&cidr))
}

/// The line of `networks.conf` that allows a network.
pub fn conf_line(cidr: Ipv4Net) -> String {
    format!("* {}", cidr.trunc())
}

fn list_of(ranges: &[Ipv4Net]) -> String {
    match ranges {
        [] => "no range at all, as the file allows none".to_owned(),
        _ => ranges.iter().map(ToString::to_string).collect::<Vec<_>>().join(" or "),
    }
}

#[cfg(test)]
#[path = "virtualbox_tests.rs"]
mod tests;
