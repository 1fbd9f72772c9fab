//! Whose the cluster is: this folder's, or another one's of the same name.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::time::Duration;

use super::World;
use super::secrets::random;
use crate::engine::StepError;
use crate::machines::owner::is_there;
use crate::machines::{self, Claimant, Owner, Whose, machine_name, network_name};
use crate::os::lock::{self, Lock};
use crate::os::sync::lock as held_by;
use crate::os::{hash, many};

/// Another p1 may be changing a network.
const LOCK_TIMEOUT: Duration = Duration::from_secs(600);

/// What was found of the cluster's things, each with what it is called.
pub struct Claims {
    all: Vec<(Thing, Whose)>,
    /// Somebody else's machines, by the nodes that would have their names.
    pub spared: BTreeMap<String, Whose>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Thing {
    Network,
    Machine { node: String, id: String },
}

impl Thing {
    fn name(&self, cluster: &str) -> String {
        match self {
            Self::Network => format!("the network {}", network_name(cluster)),
            Self::Machine { node, .. } => format!("the machine {}", machine_name(cluster, node)),
        }
    }
}

impl Claims {
    /// Looks whose everything is.
    pub fn look(world: &World) -> Result<Self, StepError> {
        let machines = world.machines.look(&world.cluster, &world.cancel)?;
        let there = machines.iter().filter(|(_, m)| m.id.is_some()).map(|(n, _)| n.clone());
        let nodes: BTreeSet<String> = there.collect();
        let holdings = world.machines.holdings(&world.cluster, &nodes, &world.cancel)?;
        let us = world.claimant()?;
        let (mut all, mut spared) = (Vec::new(), BTreeMap::new());
        all.extend(holdings.network.iter().map(|held| (Thing::Network, us.judge(held, None))));
        for (node, held) in &holdings.machines {
            match us.judge(held, Some(node)) {
                whose @ (Whose::Other(_) | Whose::Stranger) => drop(spared.insert(node.clone(), whose)),
                whose => all.push((Thing::Machine { node: node.clone(), id: held.id.clone() }, whose)),
            }
        }
        Ok(Self { all, spared })
    }

    /// The folder that has the cluster in place of this one, if there is one.
    pub fn contested(&self) -> Option<&Whose> {
        self.all.iter().map(|(_, whose)| whose).find(|whose| whose.is_contested())
    }

    /// What the other folder has, a line each.
    pub fn evidence(&self, cluster: &str) -> Vec<String> {
        let theirs = self.all.iter().filter(|(_, whose)| !whose.is_ours());
        theirs.map(|(thing, whose)| format!("{} belongs to {}", thing.name(cluster), whose.name())).collect()
    }

    /// Whether that folder is there.
    pub fn contested_by_what_is_gone(&self) -> bool {
        match self.contested() {
            Some(Whose::Theirs(owner) | Whose::Before(owner)) => !is_there(owner),
            _ => false,
        }
    }

    /// The place that this folder was moved from.
    pub fn moved(&self) -> Option<&Owner> {
        self.all.iter().find_map(|(_, whose)| match whose {
            Whose::Moved(owner) => Some(owner),
            _ => None,
        })
    }

    /// Whose the cluster is, if it is not this folder's as it lies.
    pub fn whose(&self) -> Option<&Whose> {
        let moved = || self.all.iter().map(|(_, whose)| whose).find(|whose| matches!(whose, Whose::Moved(_)));
        self.contested().or_else(moved)
    }

    /// The folders that have something of the cluster and are not this one.
    fn others(&self) -> BTreeSet<PathBuf> {
        let folder = |whose: &Whose| match whose {
            Whose::Copied(owner) | Whose::Theirs(owner) | Whose::Before(owner) => Some(owner.folder.clone()),
            // Nothing is there any more.
            _ => None,
        };
        self.all.iter().filter_map(|(_, whose)| folder(whose)).filter(|f| f.is_dir()).collect()
    }

    /// Holds the locks of the folders that the cluster is taken from: nobody may be at work there.
    pub fn lock_others(&self, world: &World, verb: &str, wait: Duration) -> Result<Vec<Lock>, lock::Error> {
        let take = |folder: PathBuf| Lock::take(&folder.join("lock"), verb, wait, &world.cancel);
        self.others().into_iter().map(take).collect()
    }

    /// Makes all of it this folder's.
    pub fn take(&self, world: &World) -> Result<(), StepError> {
        let due = |whose: &Whose| *whose != Whose::Ours;
        let owner = match self.all.iter().any(|(_, whose)| due(whose)) {
            true => world.owner()?,
            false => return Ok(()),
        };
        let network = self.all.iter().any(|(thing, whose)| *thing == Thing::Network && due(whose));
        if network {
            let _lock = Lock::take(&world.host_lock, "owner", LOCK_TIMEOUT, &world.cancel)?;
            for make in world.machines.makers() {
                make.own_network(&world.cluster, &owner, &world.cancel)?;
            }
        }
        let machines: Vec<(&String, &String)> = self
            .all
            .iter()
            .filter(|(_, whose)| due(whose))
            .filter_map(|(thing, _)| match thing {
                Thing::Machine { node, id } => Some((node, id)),
                Thing::Network => None,
            })
            .collect();
        let done = many::each(world.jobs, &machines, |(node, id)| {
            world.machines.make(node)?.own_machine(&world.cluster, node, id, &owner, &world.cancel)
        });
        done.into_iter().collect::<Result<(), machines::Error>>()?;
        Ok(())
    }
}

impl World {
    /// This folder as an owner; it is given its id when it is one for the first time.
    pub fn owner(&self) -> Result<Owner, StepError> {
        let mut held = held_by(&self.held.owner);
        if let Some(owner) = &*held {
            return Ok(owner.clone());
        }
        let id = match self.state.id()? {
            Some(id) => id,
            None => {
                let id: String = hash::hex(&random()?[..16]);
                self.state.keep_id(&id)?;
                id
            }
        };
        let owner = Owner { cluster: self.cluster.name.clone(), id, folder: self.state.place() };
        *held = Some(owner.clone());
        Ok(owner)
    }

    /// By which this folder's k3s is known on machines that existed before; none where nothing was begun.
    pub fn mark(&self) -> Option<String> {
        let id = self.state.id().ok().flatten()?;
        Some(Owner { cluster: self.cluster.name.clone(), id, folder: self.state.place() }.mark())
    }

    /// Whose the machines are now that have the names of these nodes'.
    pub fn whose(&self, nodes: &BTreeSet<String>) -> Result<BTreeMap<String, Whose>, StepError> {
        let holdings = self.machines.holdings(&self.cluster, nodes, &self.cancel)?;
        let us = self.claimant()?;
        Ok(holdings
            .machines
            .into_iter()
            .map(|(node, held)| {
                let whose = us.judge(&held, Some(&node));
                (node, whose)
            })
            .collect())
    }

    /// This folder as somebody who asks whose things are.
    pub fn claimant(&self) -> Result<Claimant, StepError> {
        let ids = self.machines.ids(&self.cluster);
        Ok(Claimant::of(&self.cluster.name, self.state.dir(), ids)?)
    }
}
