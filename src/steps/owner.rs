//! Whose the cluster is: this folder's, or another one's of the same name.
//!
//! What the provider has carries its owner (`machines::Owner`). What has none was made by a p1 of before, or by
//! one that was cut off: it belongs to the folder whose `.p1` knows its id.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::World;
use crate::engine::Trouble;
use crate::machines::{Held, Owner, machine_name, network_name};
use crate::observed::drift::{Drift, Interrupts, Kind, Loss, Mend};
use crate::os::lock::{self, Lock};
use crate::os::many;
use crate::state::State;

/// Another p1 may be changing a network.
const OTHERS: Duration = Duration::from_secs(600);

/// Whose something is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Whose {
    /// This folder's, noted as such.
    Ours,
    /// Nobody's yet by what is noted, and this folder's by what is known of it.
    Unclaimed,
    /// This folder's, which lay elsewhere: that one is gone.
    Moved(Owner),
    /// Another folder's that this one is a copy of, or that is a copy of this one.
    Copied(Owner),
    /// A cluster's of the same name, kept by another folder.
    Theirs(Owner),
    /// The same, made by a p1 that noted no owners; its id is not known.
    Before(Owner),
    /// Another cluster's of this host, whose machine happens to have the name.
    Other(Owner),
    /// Somebody's who is no p1, or not to be known.
    Stranger,
}

impl Whose {
    /// True for what this folder may work on.
    pub fn is_ours(&self) -> bool {
        matches!(self, Self::Ours | Self::Unclaimed)
    }

    /// True for what another folder of the same cluster has: none of it is touched, nor anything else.
    fn is_contested(&self) -> bool {
        matches!(self, Self::Copied(_) | Self::Theirs(_) | Self::Before(_))
    }

    /// Who it is, as a fragment after `belongs to`.
    pub fn name(&self) -> String {
        match self {
            Self::Ours | Self::Unclaimed => "this folder".to_owned(),
            Self::Moved(owner) | Self::Copied(owner) | Self::Theirs(owner) | Self::Before(owner) => {
                owner.place().display().to_string()
            }
            Self::Other(owner) => format!("the cluster `{}` in {}", owner.cluster, owner.place().display()),
            Self::Stranger => "somebody else: it was not made from this folder".to_owned(),
        }
    }
}

/// Who asks.
#[derive(Clone, Debug)]
pub struct Claimant {
    pub cluster: String,
    pub folder: PathBuf,
    /// Its id, if it ever was an owner.
    pub id: Option<String>,
    /// The machines that it knows, by node.
    pub machines: BTreeMap<String, String>,
}

impl Claimant {
    /// Whose something is that the provider has: a node's machine, or else the network.
    pub fn judge(&self, held: &Held, node: Option<&str>) -> Whose {
        let known = node.and_then(|n| self.machines.get(n)).is_some_and(|id| *id == held.id);
        let Some(owner) = held.owner.clone() else { return self.unnoted(held, node, known) };
        if owner.cluster != self.cluster {
            return Whose::Other(owner);
        }
        if owner.is_at(&self.folder) {
            return Whose::Ours;
        }
        match (known || self.id.as_ref() == Some(&owner.id), is_there(&owner)) {
            (true, false) => Whose::Moved(owner),
            (true, true) => Whose::Copied(owner),
            (false, _) => Whose::Theirs(owner),
        }
    }

    fn unnoted(&self, held: &Held, node: Option<&str>, known: bool) -> Whose {
        if known || node.is_none() {
            return Whose::Unclaimed;
        }
        // Vagrant's own note of a machine: FOLDER/.p1/CLUSTER/Vagrantfile.
        let Some(folder) = held.source.as_deref().and_then(Path::parent) else { return Whose::Stranger };
        let owner =
            |cluster: &str| Owner { cluster: cluster.to_owned(), id: String::new(), folder: folder.into() };
        let in_p1 = folder.parent().and_then(Path::file_name).is_some_and(|name| name == ".p1");
        match folder.file_name().and_then(|name| name.to_str()).filter(|_| in_p1) {
            Some(name) if name != self.cluster => Whose::Other(owner(name)),
            Some(name) if owner(name).is_at(&self.folder) => Whose::Unclaimed,
            Some(name) => Whose::Before(owner(name)),
            None => Whose::Stranger,
        }
    }
}

/// Whether the folder is still where it was, and still that cluster's; what cannot be looked at is.
fn is_there(owner: &Owner) -> bool {
    match owner.folder.try_exists() {
        Ok(false) => false,
        Err(_) => true,
        Ok(true) => {
            let (Some(base), Some(name)) =
                (owner.folder.parent().and_then(Path::parent), owner.folder.file_name())
            else {
                return true;
            };
            let id = State::of(base, &name.to_string_lossy()).id();
            // With another id it is another cluster's by now.
            id.map_or(true, |id| id.is_none_or(|id| id == owner.id))
        }
    }
}

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
    pub fn look(world: &World) -> Result<Self, Trouble> {
        let machines = world.provider.machines(&world.cluster, &world.vagrant.ids(), &world.cancel)?;
        let there = machines.iter().filter(|(_, m)| m.id.is_some()).map(|(n, _)| n.clone());
        let nodes: BTreeSet<String> = there.collect();
        let holdings = world.provider.holdings(&world.cluster, &nodes, &world.cancel)?;
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

    /// The same as a difference to be told.
    pub fn drift(&self) -> Option<Drift> {
        let of = |whose: &Whose, then: &str| Drift {
            node: None,
            kind: Kind::Owner,
            what: format!("it belongs to {}", whose.name()),
            mend: Mend::Note,
            then: then.to_owned(),
            lost: None,
            loss: Loss::Nothing,
            interrupts: Interrupts::Nothing,
        };
        let moved = self.all.iter().map(|(_, whose)| whose).find(|whose| matches!(whose, Whose::Moved(_)));
        match (self.contested(), moved) {
            (Some(whose), _) => Some(of(whose, "nothing; `p1 up --take-over` makes it this folder's")),
            (None, Some(whose)) => {
                Some(of(whose, "that folder is gone: the next `p1 up` makes it this one's"))
            }
            (None, None) => None,
        }
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
    pub fn take(&self, world: &World) -> Result<(), Trouble> {
        let due = |whose: &Whose| *whose != Whose::Ours;
        let owner = match self.all.iter().any(|(_, whose)| due(whose)) {
            true => world.owner()?,
            false => return Ok(()),
        };
        let network = self.all.iter().any(|(thing, whose)| *thing == Thing::Network && due(whose));
        if network {
            let _lock = Lock::take(&world.host_lock, "owner", OTHERS, &world.cancel)?;
            world.provider.own_network(&world.cluster, &owner, &world.cancel)?;
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
            world.provider.own_machine(&world.cluster, node, id, &owner, &world.cancel)
        });
        done.into_iter().collect::<Result<(), _>>()?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Folders {
        dir: tempfile::TempDir,
    }

    impl Folders {
        fn state(&self, place: &str) -> State {
            State::of(&self.dir.path().canonicalize().unwrap().join(place), "iot")
        }

        fn made(&self, place: &str, id: &str) -> Owner {
            let state = self.state(place);
            state.create().unwrap();
            state.keep_id(id).unwrap();
            self.owner(place, id)
        }

        fn owner(&self, place: &str, id: &str) -> Owner {
            Owner { cluster: "iot".into(), id: id.into(), folder: self.state(place).place() }
        }

        fn asks(&self, place: &str, known: &[(&str, &str)]) -> Claimant {
            let state = self.state(place);
            Claimant {
                cluster: "iot".into(),
                folder: state.place(),
                id: state.id().unwrap(),
                machines: known.iter().map(|(n, id)| ((*n).to_owned(), (*id).to_owned())).collect(),
            }
        }
    }

    fn held(owner: Option<&Owner>) -> Held {
        Held { id: "u1".into(), owner: owner.cloned(), source: None }
    }

    #[test]
    fn what_is_noted_tells_a_folder_that_moved_from_a_copy_and_from_another_one() {
        let folders = Folders { dir: tempfile::tempdir().unwrap() };
        let a = folders.made("a", "a1");
        let whose =
            |place: &str, owner: &Owner| folders.asks(place, &[]).judge(&held(Some(owner)), Some("server"));
        assert_eq!(whose("a", &a), Whose::Ours);
        std::os::unix::fs::symlink(folders.dir.path().join("a"), folders.dir.path().join("link")).unwrap();
        assert_eq!(whose("link", &a), Whose::Ours);
        assert_eq!(whose("b", &a), Whose::Theirs(a.clone()));
        folders.made("copy", "a1");
        assert_eq!(whose("copy", &a), Whose::Copied(a.clone()));
        assert_eq!(folders.asks("copy", &[]).judge(&held(Some(&a)), None), Whose::Copied(a.clone()));
        // Its own id may be lost, or be older than the note: it knows the machine.
        std::fs::remove_file(folders.state("copy").owner_file()).unwrap();
        assert_eq!(whose("copy", &a), Whose::Theirs(a.clone()));
        let knows = folders.asks("copy", &[("server", "u1")]).judge(&held(Some(&a)), Some("server"));
        assert_eq!(knows, Whose::Copied(a.clone()));

        folders.made("copy", "a1");
        std::fs::remove_dir_all(folders.state("a").dir()).unwrap();
        assert_eq!(whose("copy", &a), Whose::Moved(a.clone()));
        assert_eq!(whose("b", &a), Whose::Theirs(a.clone()), "gone, and still not this one's");
        // Something new where it was.
        folders.made("a", "a2");
        assert_eq!(whose("copy", &a), Whose::Moved(a.clone()));

        let other = Owner { cluster: "iot-x".into(), ..a.clone() };
        assert_eq!(whose("a", &other), Whose::Other(other));
    }

    #[test]
    fn what_is_not_noted_belongs_to_whoever_knows_its_id() {
        let folders = Folders { dir: tempfile::tempdir().unwrap() };
        folders.state("a").create().unwrap();
        let judge = |place: &str, known: &[(&str, &str)], source: Option<PathBuf>| {
            folders.asks(place, known).judge(&Held { source, ..held(None) }, Some("server"))
        };
        let of = |place: &str| Some(folders.state(place).place().join("Vagrantfile"));
        assert_eq!(judge("a", &[("server", "u1")], None), Whose::Unclaimed);
        assert_eq!(judge("a", &[("server", "u2")], None), Whose::Stranger);
        assert_eq!(judge("a", &[], of("a")), Whose::Unclaimed, "half-made, or its state is gone");
        assert_eq!(judge("b", &[], of("a")), Whose::Before(folders.owner("a", "")));
        let other = "/x/.p1/iot-x/Vagrantfile";
        assert!(matches!(judge("a", &[], Some(other.into())), Whose::Other(o) if o.cluster == "iot-x"));
        assert_eq!(judge("a", &[], Some("/x/iot/Vagrantfile".into())), Whose::Stranger);
        assert_eq!(folders.asks("a", &[]).judge(&held(None), None), Whose::Unclaimed);
    }
}
