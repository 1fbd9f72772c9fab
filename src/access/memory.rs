//! What is remembered of nodes from one run to the next.

use super::World;
use crate::engine::StepError;
use crate::machines::Made;
use crate::os::sync::lock;
use crate::spec::Node;
use crate::state::NodeMemory;

impl World {
    /// What is remembered of a node's present machine.
    pub fn memory(&self, node: &str) -> Option<NodeMemory> {
        let machine = self.machines.id(node)?;
        lock(&self.held.memory).get(node).filter(|m| m.machine == machine).cloned()
    }

    /// Remembers something of a node's present machine.
    pub fn remember(&self, node: &str, change: impl FnOnce(&mut NodeMemory)) -> Result<(), StepError> {
        let mut change = Some(change);
        self.remember_all([node], |_, memory| change.take().expect("of one node")(memory))
    }

    /// Remembers something of each of these nodes' present machines. Written once: what is remembered of
    /// all nodes is one file.
    pub fn remember_all<'n>(
        &self,
        nodes: impl IntoIterator<Item = &'n str>,
        mut change: impl FnMut(&str, &mut NodeMemory),
    ) -> Result<(), StepError> {
        let mut all = lock(&self.held.memory);
        let mut changed = false;
        for node in nodes {
            let machine = self.machines.id(node).unwrap_or_default();
            // Compared alone: with many nodes the others would be most of the work.
            let before = all.get(node).cloned();
            let entry = all.entry(node.to_owned()).or_default();
            if entry.machine != machine {
                // Written down before there was a machine to bind it to.
                let made = entry.made.take().filter(|_| entry.machine.is_empty());
                *entry = NodeMemory { machine, made, ..NodeMemory::default() };
            }
            change(node, entry);
            changed |= Some(&*entry) != before.as_ref();
        }
        if changed {
            self.state.remember(&all)?;
        }
        Ok(())
    }

    /// Nothing is remembered of a node whose machine is gone.
    pub fn forget_memory(&self, node: &str) -> Result<(), StepError> {
        let mut all = lock(&self.held.memory);
        if all.remove(node).is_some() {
            self.state.remember(&all)?;
        }
        Ok(())
    }

    /// The node's machine has the disks of the spec, beside those that it had.
    pub fn remember_disks(&self, node: &Node) -> Result<(), StepError> {
        let give = |made: &mut Made| {
            made.disk = node.disk.or(made.disk);
            made.disks.retain(|has| node.disks.iter().all(|disk| disk.serial != has.serial));
            made.disks.splice(0..0, node.disks.iter().cloned());
        };
        self.note(|seen| seen.made.get_mut(&node.name).map_or((), give));
        self.remember(&node.name, |memory| memory.made.as_mut().map_or((), give))
    }

    /// What the node's machine is made from and for, from here on.
    pub fn remember_made(&self, node: &Node) -> Result<(), StepError> {
        let image = match node.ssh {
            Some(_) => String::new(),
            None => self.state.facts()?.image.map(|i| i.wanted).unwrap_or_default(),
        };
        let network = &self.cluster.network;
        let made = Made {
            role: node.role,
            ip: node.ip,
            cidr: network.cidr,
            nics: network.nics,
            image,
            ssh: node.ssh.clone(),
            // They are given when it is there.
            disk: None,
            disks: Vec::new(),
        };
        self.note(|seen| {
            seen.made.insert(node.name.clone(), made.clone());
        });
        self.remember(&node.name, |m| m.made = Some(made))
    }
}
