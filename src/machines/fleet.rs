//! The machines of a cluster's nodes, each with whoever has it.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::path::PathBuf;

use super::existing::{Existing, Users};
use super::{
    Base, BoxInfo, Cap, Engine, Error, Hear, Holdings, Hosting, Keep, Kind, Link, Machine, Machines, Made,
    Make, PowerSwitch, Provision, Reach, Release, Resize, Results, Snapshot, Snapshots, Suspend, Throttle,
    Tools, Way, open,
};
use crate::os::Cancel;
use crate::os::process::Cmd;
use crate::spec::{Cluster, Node};

/// What machines are made and reached with on this host.
pub struct Here {
    pub tools: Tools,
    /// How virtual processors are to be had, where libvirt makes the machines.
    pub cpu: Option<Cpu>,
    /// What makes them with libvirt.
    pub engine: Engine,
    /// Vagrant.
    pub vagrant: PathBuf,
    /// Its home for p1's machines, and the user's own, for the plugins in it.
    pub homes: (PathBuf, Option<PathBuf>),
    /// The cluster's state folder.
    pub dir: PathBuf,
    /// How its machines are reached, if it is a fork.
    pub reach: Option<Reach>,
    /// What must not be asked of a proxy.
    pub no_proxy: String,
    /// What the user has for getting into machines that exist already.
    pub users: Users,
    /// At most so many nodes at a time.
    pub jobs: usize,
}

/// How libvirt makes virtual processors.
pub struct Cpu {
    /// `kvm` or `qemu` (emulation).
    pub driver: String,
    /// `host-passthrough`, or `custom` with a model.
    pub mode: String,
    /// With `custom`.
    pub model: Option<String>,
}

/// What is done with each who makes machines and its part of the cluster. It answers what was done, a line each.
pub type ForMakers<'a> = &'a mut dyn FnMut(&dyn Make, &Cluster) -> Result<Vec<String>, Error>;

/// Finds who has a node's machine. What is asked of several nodes at once is asked of each who has some of them, with
/// a cluster that has no others.
pub struct Fleet {
    /// Who has the machines that nobody in particular has.
    usual: Box<dyn Machines>,
    /// Who has those of these nodes.
    others: Vec<(BTreeSet<String>, Box<dyn Machines>)>,
}

impl Fleet {
    /// The machines of a cluster whose machines are of that kind, but for those of these nodes, which exist already.
    pub fn open(kind: Kind, here: Here, exist: BTreeSet<String>) -> Self {
        let others: Vec<(BTreeSet<String>, Box<dyn Machines>)> = match kind {
            Kind::Ssh => Vec::new(),
            _ if exist.is_empty() => Vec::new(),
            _ => vec![(exist.clone(), Box::new(Existing::open(&here, exist.clone())))],
        };
        Self::new(open(kind, here, exist), others)
    }

    /// `usual` has the machines of all nodes but those that `others` have.
    pub fn new(usual: Box<dyn Machines>, others: Vec<(BTreeSet<String>, Box<dyn Machines>)>) -> Self {
        Self { usual, others }
    }

    #[cfg(test)]
    pub(super) fn into_usual(self) -> Box<dyn Machines> {
        self.usual
    }

    fn all(&self) -> impl Iterator<Item = &dyn Machines> {
        std::iter::once(&*self.usual).chain(self.others.iter().map(|(_, machines)| &**machines))
    }

    /// Which of [`Fleet::all`] has the machine of the node of that name.
    fn place(&self, node: &str) -> usize {
        self.others.iter().position(|(nodes, _)| nodes.contains(node)).map_or(0, |other| other + 1)
    }

    /// Who has the machine of the node of that name.
    pub fn of(&self, node: &str) -> &dyn Machines {
        let other = self.others.iter().find(|(nodes, _)| nodes.contains(node));
        other.map_or(&*self.usual, |(_, machines)| &**machines)
    }

    /// The cluster with those nodes alone whose machines are at that place.
    pub(super) fn part<'c>(&self, cluster: &'c Cluster, place: usize) -> Cow<'c, Cluster> {
        if self.others.is_empty() {
            return Cow::Borrowed(cluster);
        }
        let mut part = cluster.clone();
        part.nodes.retain(|n| self.place(&n.name) == place);
        Cow::Owned(part)
    }

    /// Those who have some of these nodes, each with what it has of them.
    fn split<'a>(
        &'a self,
        nodes: &BTreeSet<String>,
    ) -> impl Iterator<Item = (&'a dyn Machines, BTreeSet<String>)> {
        let parts = self.all().enumerate().map(|(place, machines)| {
            (machines, nodes.iter().filter(|n| self.place(n) == place).cloned().collect::<BTreeSet<_>>())
        });
        parts.filter(|(_, nodes)| !nodes.is_empty()).collect::<Vec<_>>().into_iter()
    }

    /// Of which kind machines are that nothing else is said of.
    pub fn kind(&self) -> Kind {
        self.usual.kind()
    }

    /// How all machines are.
    pub fn look(&self, cluster: &Cluster, stop: &Cancel) -> Result<BTreeMap<String, Machine>, Error> {
        let mut found = BTreeMap::new();
        for (place, machines) in self.all().enumerate() {
            let part = self.part(cluster, place);
            let nodes: Vec<&Node> = part.nodes.iter().collect();
            let mut theirs = machines.look(&part, &nodes, stop)?;
            // What is called like another's node is not that node's.
            theirs.retain(|node, _| cluster.node(node).is_none() || self.place(node) == place);
            found.extend(theirs);
        }
        Ok(found)
    }

    /// What tells a node's present machine from a former one.
    pub fn id(&self, node: &str) -> Option<String> {
        self.of(node).id(node)
    }

    /// The same of all nodes, those that left the spec and are noted still included.
    pub fn ids(&self, cluster: &Cluster) -> BTreeMap<String, String> {
        let mut ids: BTreeMap<String, String> = self.makers().flat_map(Make::noted).collect();
        ids.extend(self.all().filter_map(|machines| machines.release()).flat_map(Release::noted));
        let unmade = cluster.nodes.iter().filter(|n| self.of(&n.name).make().is_none());
        ids.extend(unmade.filter_map(|n| Some((n.name.clone(), self.id(&n.name)?))));
        ids
    }

    /// How this host gets into a node.
    pub fn way(
        &self,
        cluster: &Cluster,
        node: &Node,
        made: Option<&Made>,
        stop: &Cancel,
    ) -> Result<Way, Error> {
        self.of(&node.name).way(cluster, node, made, stop)
    }

    /// How this host reaches a port of a node; none where only SSH leads there.
    pub fn door(&self, node: &Node, port: u16) -> Option<SocketAddr> {
        self.of(&node.name).door(node, port)
    }

    /// Where programs of this host find the API, if not at a server's address.
    pub fn front(&self) -> Option<SocketAddr> {
        self.usual.front()
    }

    /// Those that make machines.
    pub fn makers(&self) -> impl Iterator<Item = &dyn Make> {
        self.all().filter_map(|machines| machines.make())
    }

    /// Who makes and destroys the node's machine.
    pub fn make(&self, node: &str) -> Result<&dyn Make, Error> {
        self.of(node).make().ok_or_else(|| Error::cannot(node, Cap::Make))
    }

    /// Who switches the node's machine on and off.
    pub fn power(&self, node: &str) -> Result<&dyn PowerSwitch, Error> {
        self.of(node).power().ok_or_else(|| Error::cannot(node, Cap::Power))
    }

    /// Who changes the size of the node's machine.
    pub fn resize(&self, node: &str) -> Result<&dyn Resize, Error> {
        self.of(node).resize().ok_or_else(|| Error::cannot(node, Cap::Resize))
    }

    /// Who keeps and restores the node's machine.
    pub fn snapshots(&self, node: &str) -> Result<&dyn Snapshots, Error> {
        self.of(node).snapshots().ok_or_else(|| Error::cannot(node, Cap::Snapshot))
    }

    /// Who puts the memory of the node's machine on disk.
    pub fn suspend(&self, node: &str) -> Result<&dyn Suspend, Error> {
        self.of(node).suspend().ok_or_else(|| Error::cannot(node, Cap::Suspend))
    }

    /// Who keeps the node's machine and makes it again.
    pub fn keep(&self, node: &str) -> Result<&dyn Keep, Error> {
        self.of(node).keep().ok_or_else(|| Error::cannot(node, Cap::Keep))
    }

    /// Who runs Vagrant's provisioners on the node.
    pub fn provision(&self, node: &str) -> Result<&dyn Provision, Error> {
        self.of(node).provision().ok_or_else(|| Error::cannot(node, Cap::Provision))
    }

    /// Who pulls the network cable of the node's machine.
    pub fn link(&self, node: &str) -> Result<&dyn Link, Error> {
        self.of(node).link().ok_or_else(|| Error::cannot(node, Cap::Link))
    }

    /// Who slows the disk of the node's machine down.
    pub fn throttle(&self, node: &str) -> Result<&dyn Throttle, Error> {
        self.of(node).throttle().ok_or_else(|| Error::cannot(node, Cap::Throttle))
    }

    /// Who lets go of the node's machine.
    pub fn release(&self, node: &str) -> Result<&dyn Release, Error> {
        self.of(node).release().ok_or_else(|| Error::cannot(node, Cap::Release))
    }

    /// Whose the cluster's network is and the machines of these names are, as far as they are made.
    pub fn holdings(
        &self,
        cluster: &Cluster,
        nodes: &BTreeSet<String>,
        stop: &Cancel,
    ) -> Result<Holdings, Error> {
        let mut all = Holdings::default();
        for (machines, nodes) in self.each_maker(nodes) {
            let found = machines.holdings(cluster, &nodes, stop)?;
            all.network = all.network.or(found.network);
            all.machines.extend(found.machines);
        }
        Ok(all)
    }

    /// Each who makes machines, with those of these nodes that it has.
    fn each_maker(&self, nodes: &BTreeSet<String>) -> impl Iterator<Item = (&dyn Make, BTreeSet<String>)> {
        let all = self.all().enumerate().filter_map(|(place, machines)| {
            let nodes = nodes.iter().filter(|n| self.place(n) == place).cloned().collect();
            Some((machines.make()?, nodes))
        });
        all.collect::<Vec<_>>().into_iter()
    }

    /// Lets the machines of these nodes go on that are paused or restored.
    pub fn resume(&self, cluster: &Cluster, nodes: &BTreeSet<String>, stop: &Cancel) -> Result<(), Error> {
        for (machines, nodes) in self.split(nodes) {
            if let Some(power) = machines.power() {
                power.resume(cluster, &nodes, stop)?;
            }
        }
        Ok(())
    }

    /// Halts the machines of these nodes.
    pub fn pause(&self, cluster: &Cluster, nodes: &BTreeSet<String>, stop: &Cancel) -> Result<(), Error> {
        for (machines, nodes) in self.split(nodes) {
            if let Some(power) = machines.power() {
                power.pause(cluster, &nodes, stop)?;
            }
        }
        Ok(())
    }

    /// The snapshots of the machines of these nodes.
    pub fn list_snapshots(
        &self,
        cluster: &Cluster,
        nodes: &BTreeSet<String>,
        stop: &Cancel,
    ) -> Result<BTreeMap<String, Vec<Snapshot>>, Error> {
        let mut all = BTreeMap::new();
        for (machines, nodes) in self.split(nodes) {
            if let Some(snapshots) = machines.snapshots() {
                all.extend(snapshots.list(cluster, &nodes, stop)?);
            }
        }
        Ok(all)
    }

    /// How this host keeps the machines of these nodes.
    pub fn hosting(
        &self,
        cluster: &Cluster,
        nodes: &BTreeSet<String>,
        stop: &Cancel,
    ) -> Result<BTreeMap<String, Hosting>, Error> {
        let mut all = BTreeMap::new();
        for (machines, nodes) in self.split(nodes) {
            if let Some(power) = machines.power() {
                all.extend(power.hosting(cluster, &nodes.into_iter().collect::<Vec<_>>(), stop)?);
            }
        }
        Ok(all)
    }

    /// Commands that show how the machines of these nodes are, each with the part of a bundle that it belongs to.
    pub fn evidence(&self, cluster: &str, nodes: &[String]) -> Vec<(String, Cmd)> {
        let nodes = nodes.iter().cloned().collect();
        let of = |(machines, nodes): (&dyn Machines, BTreeSet<String>)| {
            let nodes: Vec<String> = nodes.into_iter().collect();
            machines.power().map(|power| power.evidence(cluster, &nodes)).unwrap_or_default()
        };
        self.split(&nodes).flat_map(of).collect()
    }

    /// What machines still lack of what they share.
    pub fn prepared(
        &self,
        cluster: &Cluster,
        image: &BoxInfo,
        stop: &Cancel,
    ) -> Result<Option<String>, Error> {
        for (place, machines) in self.all().enumerate() {
            if let Some(make) = machines.make()
                && let Some(lack) = make.prepared(&self.part(cluster, place), image, stop)?
            {
                return Ok(Some(lack));
            }
        }
        Ok(None)
    }

    /// Does `work` with each who makes machines and its part of the cluster. Answers what was answered, a line each.
    pub fn for_makers(&self, cluster: &Cluster, work: ForMakers<'_>) -> Result<Vec<String>, Error> {
        let mut did = Vec::new();
        for (place, machines) in self.all().enumerate() {
            if let Some(make) = machines.make() {
                did.extend(work(make, &self.part(cluster, place))?);
            }
        }
        Ok(did)
    }

    /// Makes and boots the machines of these nodes.
    pub fn create(
        &self,
        cluster: &Cluster,
        nodes: &[&Node],
        base: &Base,
        hear: Hear<'_>,
        stop: &Cancel,
    ) -> Result<Results, Error> {
        let mut results = Results::new();
        for (place, machines) in self.all().enumerate() {
            let theirs: Vec<&Node> = nodes.iter().copied().filter(|n| self.place(&n.name) == place).collect();
            if theirs.is_empty() {
                continue;
            }
            let part = self.part(cluster, place);
            let made = machines.make().map(|make| make.create(&part, &theirs, base, hear, stop));
            match made {
                Some(made) => results.extend(made?),
                None => {
                    let cannot = |n: &&Node| (n.name.clone(), Err(Error::cannot(&n.name, Cap::Make)));
                    results.extend(theirs.iter().map(cannot));
                }
            }
        }
        Ok(results)
    }
}
