//! Machines of this host: a [`Maker`] creates and destroys them with a [`Hypervisor`], which does the rest.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use super::making::{Making, Place};
use super::vagrant::{self, Libvirt, Vagrant};
use super::{
    Arranged, Base, BoxInfo, Caps, Error, FileDisk, Hear, Heard, Here, Holdings, Hosting, Hypervisor, Keep,
    Kind, Leftovers, Limit, Link, Machine, Machines, Made, Make, Note, Orphan, Owner, PowerSwitch, Provision,
    Reach, Resize, Results, Snapshot, Snapshots, Suspend, Throttle, Way,
};
use crate::explain::Explain;
use crate::os::process::Cmd;
use crate::os::sync::lock;
use crate::os::{Cancel, files, many};
use crate::spec::{Cluster, Node};
use crate::ssh::Root;

/// The comment of Vagrant's insecure public keys (vagrant `keys/README.md`).
const INSECURE: &str = "vagrant insecure public key";

/// What an engine does in its own way. It keeps to Vagrant's names, ids and folders, so that each takes over the others'
/// machines.
pub trait Maker: Sync {
    /// Whether it runs Vagrant's provisioners.
    fn provisions(&self) -> bool {
        false
    }

    /// [`Make::take_image`].
    fn take_image(&self, local: &Local, image: &BoxInfo, file: &Path, stop: &Cancel) -> Result<(), Error>;

    /// Makes and boots the machines of these nodes, for which all is prepared.
    fn create(
        &self,
        local: &Local,
        cluster: &Cluster,
        nodes: &[String],
        base: &Base,
        hear: Hear<'_>,
        stop: &Cancel,
    ) -> Result<Results, Error>;

    /// Whether it gives machines the cluster's key, root's too, for their first boot.
    fn opens(&self) -> bool {
        false
    }

    /// Takes away what a machine was given for its first boot, which is over. Fine if there is none.
    fn booted(&self, _local: &Local, _cluster: &Cluster, _node: &str, _stop: &Cancel) -> Result<(), Error> {
        Ok(())
    }

    /// Destroys the machines of these nodes in its own way; what it leaves the hypervisor destroys.
    fn destroy(
        &self,
        _local: &Local,
        _nodes: &[String],
        _say: &mut dyn FnMut(&str),
        _log: &mut dyn FnMut(&str),
        _stop: &Cancel,
    ) -> Result<(), Error> {
        Ok(())
    }
}

/// One cluster's machines on this host.
pub struct Local {
    pub vagrant: Vagrant,
    pub hypervisor: Box<dyn Hypervisor>,
    /// How libvirt is used, if it is libvirt.
    pub libvirt: Option<Libvirt>,
    /// The user's own VAGRANT_HOME, for the plugins in it.
    pub users_home: Option<PathBuf>,
    /// How they are reached, if they are a fork's.
    pub reach: Option<Reach>,
    /// What makes them.
    pub maker: &'static dyn Maker,
    /// At most so many nodes at a time.
    pub jobs: usize,
    /// One engine destroys at a time.
    pub destroying: Mutex<()>,
}

impl Local {
    /// Those of a hypervisor, made as it is asked for.
    pub(super) fn open(hypervisor: Box<dyn Hypervisor>, here: Here) -> Self {
        let libvirt = here.cpu.map(|cpu| Libvirt {
            uri: here.tools.libvirt_uri.clone(),
            driver: cpu.driver,
            cpu_mode: cpu.mode,
            cpu_model: cpu.model,
            pool: super::libvirt::POOL.to_owned(),
        });
        let (home, users_home) = here.homes;
        let vagrant = Vagrant {
            program: here.vagrant,
            home,
            dir: here.dir,
            provider: hypervisor.name(),
            no_proxy: here.no_proxy,
        };
        let maker = here.engine.maker();
        let destroying = Mutex::default();
        let (reach, jobs) = (here.reach, here.jobs);
        Self { vagrant, hypervisor, libvirt, users_home, reach, maker, jobs, destroying }
    }

    pub(super) fn place(&self) -> Place {
        Place(self.vagrant.dir.clone())
    }

    /// The ids of these nodes' machines.
    fn ids(&self, nodes: &BTreeSet<String>) -> BTreeMap<String, String> {
        let mut ids = self.vagrant.ids();
        ids.retain(|node, _| nodes.contains(node));
        ids
    }

    fn known(&self, node: &str) -> String {
        self.vagrant.id(node).unwrap_or_default()
    }

    /// Writes the Vagrantfile, private as provisioners may have passwords.
    fn write(&self, cluster: &Cluster, Base::Box(image): &Base) -> Result<(), Error> {
        if !self.hypervisor.takes_vagrant() {
            return Ok(());
        }
        let text = vagrant::vagrantfile(cluster, self.hypervisor.name(), self.libvirt.as_ref(), image)?;
        files::write_if_changed(&self.vagrant.dir.join("Vagrantfile"), text.as_bytes(), 0o600)?;
        Ok(())
    }

    /// Those that Vagrant is to be asked for.
    fn ready(
        &self,
        cluster: &Cluster,
        nodes: &[&Node],
        hear: Hear<'_>,
        stop: &Cancel,
    ) -> Result<Vec<String>, Error> {
        let (ids, place) = (self.vagrant.ids(), self.place());
        let machines = self.hypervisor.machines(cluster, &ids, stop)?;
        let making = Making {
            hypervisor: &*self.hypervisor,
            place: &place,
            cluster,
            ids: &ids,
            forget: &|node| self.forget(node),
            stop,
        };
        let ready = many::each(self.jobs, nodes, |node| {
            match making.prepare(node, machines.get(&node.name), hear) {
                Ok(true) => return Some(node.name.clone()),
                Ok(false) => {}
                Err(error) => {
                    let _ = hear(Heard::Cannot(&node.name, error));
                }
            }
            None
        });
        Ok(ready.into_iter().flatten().collect())
    }
}

impl Machines for Local {
    fn kind(&self) -> Kind {
        self.hypervisor.kind()
    }

    fn look(
        &self,
        cluster: &Cluster,
        _: &[&Node],
        stop: &Cancel,
    ) -> Result<BTreeMap<String, Machine>, Error> {
        let mut machines = self.hypervisor.machines(cluster, &self.vagrant.ids(), stop)?;
        let can = Caps::of(self);
        machines.values_mut().for_each(|machine| machine.can = can);
        Ok(machines)
    }

    fn id(&self, node: &str) -> Option<String> {
        self.vagrant.id(node)
    }

    fn way(&self, cluster: &Cluster, node: &Node, made: Option<&Made>, stop: &Cancel) -> Result<Way, Error> {
        let (host, port) = match (&self.reach, made.and_then(|made| self.hypervisor.address(made))) {
            (Some(reach), _) => (reach.host(node), 22),
            (None, Some(address)) => (address.ip().to_string(), address.port()),
            (None, None) => {
                let known = self.known(&node.name);
                let address = self.hypervisor.endpoint(cluster, &node.name, &known, stop)?;
                (address.ip().to_string(), address.port())
            }
        };
        Ok(Way {
            host,
            port,
            user: vagrant::USER.to_owned(),
            keys: self.vagrant.insecure_keys(),
            insecure: vec![INSECURE],
            root: Root::Sudo,
            opened: self.maker.opens(),
            jump: None,
            arranged: Arranged::default(),
        })
    }

    /// Every port of a node's address: this host is in the machines' network.
    fn door(&self, node: &Node, port: u16) -> Option<SocketAddr> {
        match &self.reach {
            Some(reach) => reach.door(node, port),
            None => Some((node.ip, port).into()),
        }
    }

    fn front(&self) -> Option<SocketAddr> {
        self.reach.as_ref().and_then(Reach::front)
    }

    fn make(&self) -> Option<&dyn Make> {
        Some(self)
    }

    fn power(&self) -> Option<&dyn PowerSwitch> {
        Some(self)
    }

    fn resize(&self) -> Option<&dyn Resize> {
        Some(self)
    }

    fn snapshots(&self) -> Option<&dyn Snapshots> {
        Some(self)
    }

    fn suspend(&self) -> Option<&dyn Suspend> {
        self.hypervisor.suspends().then_some(self as &dyn Suspend)
    }

    fn keep(&self) -> Option<&dyn Keep> {
        self.hypervisor.keep()
    }

    fn provision(&self) -> Option<&dyn Provision> {
        self.maker.provisions().then_some(self as &dyn Provision)
    }

    fn link(&self) -> Option<&dyn Link> {
        self.hypervisor.disturbs().then_some(self as &dyn Link)
    }

    fn throttle(&self) -> Option<&dyn Throttle> {
        self.hypervisor.disturbs().then_some(self as &dyn Throttle)
    }
}

impl Make for Local {
    fn noted(&self) -> BTreeMap<String, String> {
        self.vagrant.ids()
    }

    fn image(&self, label: &str, sha256: &str) -> BoxInfo {
        self.vagrant.box_info(label, sha256)
    }

    fn has_image(&self, image: &BoxInfo) -> bool {
        self.vagrant.has_box(image)
    }

    fn take_image(&self, image: &BoxInfo, file: &Path, stop: &Cancel) -> Result<(), Error> {
        self.maker.take_image(self, image, file, stop)
    }

    fn rendered(&self, cluster: &Cluster, image: &BoxInfo) -> Result<Vec<(String, String)>, Error> {
        let mut all = Vec::new();
        if self.hypervisor.takes_vagrant() {
            let text = vagrant::readable(cluster, self.hypervisor.name(), self.libvirt.as_ref(), image)?;
            all.push(("Vagrantfile".to_owned(), text));
        }
        all.extend(self.hypervisor.rendered(cluster, self.libvirt.as_ref())?);
        Ok(all)
    }

    fn prepared(&self, cluster: &Cluster, image: &BoxInfo, stop: &Cancel) -> Result<Option<String>, Error> {
        self.hypervisor.prepared(cluster, image, stop)
    }

    fn prepare(
        &self,
        cluster: &Cluster,
        image: &BoxInfo,
        owner: &Owner,
        say: &mut dyn FnMut(&str),
        stop: &Cancel,
    ) -> Result<Vec<String>, Error> {
        self.hypervisor.prepare(cluster, image, owner, say, stop)
    }

    fn network(&self, cluster: &Cluster, stop: &Cancel) -> Result<Option<String>, Error> {
        self.hypervisor.network(cluster, stop)
    }

    fn unplugged(
        &self,
        cluster: &Cluster,
        nodes: &BTreeSet<String>,
        stop: &Cancel,
    ) -> Result<Vec<String>, Error> {
        self.hypervisor.unplugged(cluster, &self.ids(nodes), stop)
    }

    fn connect(
        &self,
        cluster: &Cluster,
        owner: &Owner,
        nodes: &BTreeSet<String>,
        say: &mut dyn FnMut(&str),
        stop: &Cancel,
    ) -> Result<Vec<String>, Error> {
        self.hypervisor.connect(cluster, owner, &self.ids(nodes), say, stop)
    }

    fn holdings(
        &self,
        cluster: &Cluster,
        nodes: &BTreeSet<String>,
        stop: &Cancel,
    ) -> Result<Holdings, Error> {
        self.hypervisor.holdings(cluster, nodes, stop)
    }

    fn own_machine(
        &self,
        cluster: &Cluster,
        node: &str,
        id: &str,
        owner: &Owner,
        stop: &Cancel,
    ) -> Result<(), Error> {
        self.hypervisor.own_machine(cluster, node, id, owner, stop)
    }

    fn own_network(&self, cluster: &Cluster, owner: &Owner, stop: &Cancel) -> Result<(), Error> {
        self.hypervisor.own_network(cluster, owner, stop)
    }

    fn create(
        &self,
        cluster: &Cluster,
        nodes: &[&Node],
        base: &Base,
        hear: Hear<'_>,
        stop: &Cancel,
    ) -> Result<Results, Error> {
        self.write(cluster, base)?;
        let ready = self.ready(cluster, nodes, hear, stop)?;
        self.maker.create(self, cluster, &ready, base, hear, stop)
    }

    fn is_making(&self, node: &str) -> bool {
        self.place().making(node).exists()
    }

    fn created(&self, cluster: &Cluster, node: &str, owner: &Owner, stop: &Cancel) -> Result<(), Error> {
        match self.hypervisor.own_machine(cluster, node, &self.known(node), owner, stop) {
            // What is not noted is noted by the next run, which knows the machine's id.
            Err(error) if error.cancelled() => {}
            noted => noted?,
        }
        match self.maker.booted(self, cluster, node, stop) {
            // It is done before the machine is started the next time.
            Err(error) if error.cancelled() => {}
            taken => taken?,
        }
        files::remove_if_there(&self.place().making(node))?;
        Ok(())
    }

    fn destroy(
        &self,
        cluster: &Cluster,
        node: &str,
        goes: &dyn Fn(&str) -> bool,
        say: &mut dyn FnMut(&str),
        log: &mut dyn FnMut(&str),
        stop: &Cancel,
    ) -> Result<Vec<String>, Error> {
        let _turn = lock(&self.destroying);
        // Vagrant knows of nodes that its file has.
        let known = self.vagrant.ids().into_keys().filter(|n| cluster.node(n).is_some());
        let all: Vec<String> = known.filter(|n| goes(n)).collect();
        if all.iter().any(|n| n == node) {
            self.maker.destroy(self, &all, say, log, stop)?;
        }
        let what = Leftovers {
            nodes: &[node.to_owned()],
            ids: &self.vagrant.ids(),
            spared: &BTreeSet::new(),
            owner: None,
            whole: false,
            images: &[],
        };
        let did = self.hypervisor.clean(cluster, &what, say, stop)?;
        self.forget(node)?;
        Ok(did)
    }

    fn clear(
        &self,
        cluster: &Cluster,
        spared: &BTreeSet<String>,
        owner: &Owner,
        images: &[BoxInfo],
        say: &mut dyn FnMut(&str),
        stop: &Cancel,
    ) -> Result<Vec<String>, Error> {
        let ids = self.vagrant.ids();
        // Nodes that left the spec are known to Vagrant only.
        let mut nodes: Vec<String> = cluster.nodes.iter().map(|n| n.name.clone()).collect();
        nodes.extend(ids.keys().filter(|n| cluster.node(n).is_none()).cloned());
        let what = Leftovers { nodes: &nodes, ids: &ids, spared, owner: Some(owner), whole: true, images };
        self.hypervisor.clean(cluster, &what, say, stop)
    }

    fn write_files(
        &self,
        cluster: &Cluster,
        files: &[PathBuf],
        say: &mut dyn FnMut(&str),
        stop: &Cancel,
    ) -> Result<Option<FileDisk>, Error> {
        self.hypervisor.write_files(cluster, files, say, stop)
    }

    fn attach_files(
        &self,
        cluster: &Cluster,
        node: &str,
        disk: &FileDisk,
        stop: &Cancel,
    ) -> Result<(), Error> {
        self.hypervisor.attach_files(cluster, node, disk, stop)
    }

    fn detach_files(&self, cluster: &Cluster, node: &str, stop: &Cancel) -> Result<(), Error> {
        self.hypervisor.detach_files(cluster, node, stop)
    }

    fn remove_files(&self, cluster: &Cluster, stop: &Cancel) -> Result<(), Error> {
        self.hypervisor.remove_files(cluster, stop)
    }

    fn flatten(
        &self,
        cluster: &Cluster,
        node: &str,
        image: &BoxInfo,
        to: &Path,
        say: &mut dyn FnMut(&str),
        stop: &Cancel,
    ) -> Result<u64, Error> {
        self.hypervisor.flatten(cluster, node, image, to, say, stop)
    }

    fn note(&self, node: &str, id: &str) -> Result<(), Error> {
        files::remove_if_there(&self.place().making(node))?;
        super::direct::note(&self.vagrant, node, id)
    }

    fn forget(&self, node: &str) -> Result<(), Error> {
        Ok(self.vagrant.forget(node)?)
    }

    fn left_behind(&self) -> Option<Orphan> {
        self.vagrant.left_behind()
    }
}

impl PowerSwitch for Local {
    fn off(&self, cluster: &Cluster, node: &str, stop: &Cancel) -> Result<(), Error> {
        self.hypervisor.power_off(cluster, node, &self.known(node), stop)
    }

    fn on(&self, cluster: &Cluster, node: &str, stop: &Cancel) -> Result<(), Error> {
        if !self.is_making(node) {
            self.maker.booted(self, cluster, node, stop)?;
        }
        self.hypervisor.boot(cluster, node, &self.known(node), stop)
    }

    fn pause(&self, cluster: &Cluster, nodes: &BTreeSet<String>, stop: &Cancel) -> Result<(), Error> {
        self.hypervisor.pause(cluster, &self.ids(nodes), stop)
    }

    fn resume(&self, cluster: &Cluster, nodes: &BTreeSet<String>, stop: &Cancel) -> Result<(), Error> {
        self.hypervisor.resume(cluster, &self.ids(nodes), stop)
    }

    fn console(&self, cluster: &Cluster, node: &str) -> Option<Vec<String>> {
        self.hypervisor.console(cluster, node)
    }

    fn look_further(&self, cluster: &Cluster, node: &str) -> String {
        self.hypervisor.look_further(cluster, node)
    }

    fn hosting(
        &self,
        cluster: &Cluster,
        nodes: &[String],
        stop: &Cancel,
    ) -> Result<BTreeMap<String, Hosting>, Error> {
        self.hypervisor.hosting(cluster, nodes, stop)
    }

    fn keep_disk(&self, cluster: &Cluster, node: &str, stop: &Cancel) -> Result<Option<String>, Error> {
        self.hypervisor.keep_disk(cluster, node, stop)
    }

    fn keep_up(&self, cluster: &Cluster, node: &str, stop: &Cancel) -> Result<(), Error> {
        self.hypervisor.keep_up(cluster, node, stop)
    }

    fn evidence(&self, cluster: &str, nodes: &[String]) -> Vec<(String, Cmd)> {
        self.hypervisor.evidence(cluster, nodes)
    }
}

impl Resize for Local {
    fn resize(
        &self,
        cluster: &Cluster,
        node: &Node,
        base: Option<&Base>,
        stop: &Cancel,
    ) -> Result<(), Error> {
        let size = node.size.ok_or_else(|| Error::cannot(&node.name, super::Cap::Resize))?;
        self.hypervisor.resize(cluster, &node.name, &self.known(&node.name), size, stop)?;
        base.map_or(Ok(()), |base| self.write(cluster, base))
    }

    fn disks(&self, cluster: &Cluster, node: &Node, stop: &Cancel) -> Result<Vec<String>, Error> {
        self.hypervisor.disks(cluster, node, stop)
    }
}

impl Snapshots for Local {
    fn list(
        &self,
        cluster: &Cluster,
        nodes: &BTreeSet<String>,
        stop: &Cancel,
    ) -> Result<BTreeMap<String, Vec<Snapshot>>, Error> {
        self.hypervisor.snapshots(cluster, &self.ids(nodes), stop)
    }

    fn take(
        &self,
        cluster: &Cluster,
        node: &str,
        snapshot: (&str, &Note),
        stop: &Cancel,
    ) -> Result<(), Error> {
        self.hypervisor.take(cluster, (node, &self.known(node)), snapshot, stop)
    }

    fn restore(&self, cluster: &Cluster, node: &str, name: &str, stop: &Cancel) -> Result<(), Error> {
        self.hypervisor.restore(cluster, (node, &self.known(node)), name, stop)
    }

    fn remove(&self, cluster: &Cluster, node: &str, name: &str, stop: &Cancel) -> Result<(), Error> {
        self.hypervisor.forget(cluster, (node, &self.known(node)), name, stop)
    }
}

impl Suspend for Local {
    fn suspend(&self, cluster: &Cluster, node: &str, stop: &Cancel) -> Result<(), Error> {
        self.hypervisor.suspend(cluster, node, stop)
    }

    fn wake(&self, cluster: &Cluster, node: &str, stop: &Cancel) -> Result<(), Error> {
        self.hypervisor.wake(cluster, node, stop)
    }
}

impl Link for Local {
    fn link(&self, cluster: &Cluster, node: &str, up: bool, stop: &Cancel) -> Result<(), Error> {
        self.hypervisor.set_link(cluster, node, up, stop)
    }
}

impl Throttle for Local {
    fn throttle(
        &self,
        cluster: &Cluster,
        node: &str,
        limit: Option<Limit>,
        stop: &Cancel,
    ) -> Result<(), Error> {
        self.hypervisor.set_limit(cluster, node, limit, stop)
    }
}

impl Provision for Local {
    fn run(
        &self,
        cluster: &Cluster,
        node: &str,
        name: &str,
        base: &Base,
        hear: &mut dyn FnMut(&str),
        stop: &Cancel,
    ) -> Result<(), (Error, Vec<String>)> {
        self.write(cluster, base).map_err(|error| (error, Vec::new()))?;
        let bound = cluster.timeouts.provision;
        self.vagrant
            .provision(node, name, bound, stop, hear)
            .map_err(|(error, said)| (Error::from(error), said))
    }
}
