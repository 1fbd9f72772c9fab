//! Before a machine is made: what an interrupted run left of it is taken away, and what is about to be made is noted.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::{
    Claimant, Error, Heard, Hypervisor, Leftovers, Machine, MachineState, Whose, machine_name, owner,
};
use crate::os::{Cancel, files};
use crate::spec::{Cluster, Node};
use crate::ssh::KnownHosts;

/// A cluster's state folder, as far as machines are noted there.
#[derive(Clone, Debug)]
pub struct Place(pub PathBuf);

impl Place {
    /// There while the node's machine is being made, until its id is noted: what is found half-made after that was made
    /// by p1, and nothing was ever on it.
    pub fn making(&self, node: &str) -> PathBuf {
        self.0.join("making").join(node)
    }

    fn known_hosts(&self) -> PathBuf {
        self.0.join("known_hosts")
    }

    /// This folder as somebody who asks whose things are; `machines` are the ids that it knows, by node.
    pub fn claimant(&self, cluster: &str, machines: BTreeMap<String, String>) -> Result<Claimant, Error> {
        Claimant::of(cluster, &self.0, machines).map_err(Error::File)
    }
}

/// What a node's machine is made with.
pub struct Making<'a> {
    pub hypervisor: &'a dyn Hypervisor,
    pub place: &'a Place,
    pub cluster: &'a Cluster,
    /// The ids that are known, by node.
    pub ids: &'a BTreeMap<String, String>,
    /// Forgets what is noted of a node's machine.
    pub forget: &'a (dyn Fn(&str) -> Result<(), Error> + Sync),
    pub stop: &'a Cancel,
}

impl Making<'_> {
    /// Before the node's machine is made or booted. False if it is not to be.
    pub fn prepare(
        &self,
        node: &Node,
        machine: Option<&Machine>,
        hear: super::Hear<'_>,
    ) -> Result<bool, Error> {
        let tell = |text: String| {
            let _ = hear(Heard::Warning(&node.name, text));
        };
        if machine.is_some_and(|m| m.state == MachineState::Paused && !m.foreign) {
            let _ = hear(Heard::Passed(&node.name));
            return Ok(false);
        }
        if machine.is_some_and(|m| m.foreign && m.state != MachineState::Absent) {
            self.clear_half_made(node, &tell)?;
        }
        if machine.is_none_or(|m| m.state == MachineState::Absent) {
            self.clear_left_disk(node, &tell)?;
        } else if let Err(error) = self.hypervisor.keep_disk(self.cluster, &node.name, self.stop) {
            tell(format!("Its disk stays as it was made: {error}."));
        }
        if machine.is_none_or(|m| m.state == MachineState::Absent || m.foreign) {
            let making = self.place.making(&node.name);
            files::dir(making.parent().unwrap_or(Path::new(".")))?;
            files::write(&making, b"", 0o600)?;
            // A new machine has a new host key, and nobody's old one may vouch for it.
            KnownHosts::pinned(self.place.known_hosts()).forget(&node.name)?;
            // Now, for a run that is cut off before the machine has an id.
            return Ok(hear(Heard::Making(&node.name)).is_continue());
        }
        Ok(true)
    }

    /// A machine of our name without an id in our folder: what is left when p1 or Vagrant is killed
    /// between making it and writing its id down. It is taken away only if it says that it was made
    /// from this folder's Vagrantfile, and p1 noted that it was making it; anybody else's stays, and so does
    /// one of ours of which p1 knows nothing any more, because somebody removed its state.
    fn clear_half_made(&self, node: &Node, tell: &dyn Fn(String)) -> Result<(), Error> {
        self.must_be_ours(node)?;
        let name = machine_name(&self.cluster.name, &node.name);
        if !self.place.making(&node.name).exists() {
            return Err(Error::Conflict {
                what: format!("the machine `{name}` was made from this folder, but p1's state of it is gone"),
                remedy: format!(
                    "It was in {}, with the key that opens the machine: put it back from a copy if you have one. Else \
                     `p1 destroy{}` removes the machine with all that is on it, and `p1 up` recreates it.",
                    self.place.0.display(),
                    self.alone(node)
                ),
                next: self.anew(node),
            });
        }
        tell(format!("{name} was left half-made by an interrupted run; it is recreated."));
        self.clean(node)?;
        (self.forget)(&node.name)
    }

    /// A disk without its machine. If p1 was making the machine, an interrupted run made the disk and
    /// nothing was ever on it. Otherwise somebody removed the machine, and the disk holds what it held.
    fn clear_left_disk(&self, node: &Node, tell: &dyn Fn(String)) -> Result<(), Error> {
        if !self.hypervisor.disk_left(self.cluster, &node.name, self.stop)? {
            return Ok(());
        }
        if self.ids.contains_key(&node.name) || !self.place.making(&node.name).exists() {
            return Err(Error::Conflict {
                what: "the machine was removed outside p1, and its disk was left behind".to_owned(),
                remedy: format!(
                    "`p1 destroy{}` removes the disk with all that is on it; then `p1 up` recreates the machine.",
                    self.alone(node)
                ),
                next: self.anew(node),
            });
        }
        tell("A disk was left by an interrupted run, before the machine was made; it is recreated.".into());
        self.clean(node)
    }

    fn clean(&self, node: &Node) -> Result<(), Error> {
        let what = Leftovers {
            nodes: std::slice::from_ref(&node.name),
            ids: &BTreeMap::new(),
            spared: &Default::default(),
            owner: None,
            whole: false,
            images: &[],
        };
        self.hypervisor.clean(self.cluster, &what, &mut |_| {}, self.stop).map(drop)
    }

    /// What `p1 destroy` needs to be told to remove this node, where that leaves a cluster: ` NODE`.
    fn alone(&self, node: &Node) -> String {
        let others = |s: &Node| s.name != node.name && self.ids.contains_key(&s.name);
        if self.cluster.servers().any(others) { format!(" {}", node.name) } else { String::new() }
    }

    /// The commands that take a node's machine away and make another.
    fn anew(&self, node: &Node) -> Vec<String> {
        vec![format!("p1 destroy{}", self.alone(node)), "p1 up".to_owned()]
    }

    /// Of a machine that has the node's name and is not known here: an error, unless it is noted as this folder's,
    /// or says that it was made from this folder's Vagrantfile.
    fn must_be_ours(&self, node: &Node) -> Result<(), Error> {
        let us = self.place.claimant(&self.cluster.name, self.ids.clone())?;
        let held = self.hypervisor.holdings(self.cluster, &[node.name.clone()].into(), self.stop)?.machines;
        let whose = held.get(&node.name).map(|held| us.judge(held, Some(&node.name)));
        let Some(whose) = whose.filter(|whose| !whose.is_ours()) else { return Ok(()) };
        let name = machine_name(&self.cluster.name, &node.name);
        let remedy = match &whose {
            // Their names are put together from the cluster's and the node's: `a-b` and `c`, `a` and `b-c`.
            Whose::Other(_) => format!("Give {} or the cluster another name in the spec.", node.name),
            _ => "Give the cluster another name in the spec, or remove that machine where it was made."
                .to_owned(),
        };
        let what = match &whose {
            Whose::Stranger => format!("a machine `{name}` exists that was not made from this folder"),
            whose => format!("the machine `{name}` belongs to {}", whose.name()),
        };
        Err(Error::Conflict { what, remedy, next: Vec::new() })
    }
}

impl Claimant {
    /// The folder of a cluster as somebody who asks whose things are; `machines` are the ids that it knows, by node.
    pub fn of(
        cluster: &str,
        folder: &Path,
        machines: BTreeMap<String, String>,
    ) -> Result<Self, files::Error> {
        Ok(Self {
            cluster: cluster.to_owned(),
            folder: owner::place(folder),
            id: owner::id_of(folder)?,
            machines,
        })
    }
}
