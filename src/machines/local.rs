//! Machines of this host: an [`Engine`] creates and destroys them with a [`Hypervisor`], which does the rest.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::Duration;

use super::direct;
use super::making::{Making, Place};
use super::seam::wanted_size;
use super::vagrant::{self, Libvirt, Progress, Up, Vagrant};
use super::{
    Base, BoxInfo, Caps, Error, FileDisk, Hear, Heard, Holdings, Hosting, Hypervisor, Kind, Leftovers,
    Machine, Machines, Made, Make, Note, Orphan, Owner, PowerSwitch, Provision, Resize, Results, Snapshot,
    Snapshots, Suspend, Way,
};
use crate::explain::Explain;
use crate::os::process::Cmd;
use crate::os::sync::lock;
use crate::os::{Cancel, files, many};
use crate::spec::{Cluster, Node};
use crate::ssh::Root;

/// The comment of Vagrant's insecure public keys (vagrant `keys/README.md`).
const INSECURE: &str = "vagrant insecure public key";

/// What makes machines with a hypervisor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Engine {
    Vagrant,
    /// p1 itself. It keeps to Vagrant's names, ids and folders, so that either takes over the other's machines.
    Direct,
}

/// One cluster's machines on this host.
pub struct Local {
    pub vagrant: Vagrant,
    pub hypervisor: Box<dyn Hypervisor>,
    /// How libvirt is used, if it is libvirt.
    pub libvirt: Option<Libvirt>,
    /// The user's own VAGRANT_HOME, for the plugins in it.
    pub users_home: Option<PathBuf>,
    /// What makes them.
    pub engine: Engine,
    /// At most so many nodes at a time.
    pub jobs: usize,
    /// One `vagrant destroy` at a time.
    pub destroying: Mutex<()>,
}

impl Local {
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
        let address = match made.and_then(|made| self.hypervisor.address(made)) {
            Some(address) => address,
            None => self.hypervisor.endpoint(cluster, &node.name, &self.known(&node.name), stop)?,
        };
        Ok(Way {
            host: address.ip().to_string(),
            port: address.port(),
            user: vagrant::USER.to_owned(),
            keys: self.vagrant.insecure_keys(),
            insecure: vec![INSECURE],
            root: Root::Sudo,
            jump: None,
        })
    }

    /// Every port of a node's address: this host is in the machines' network.
    fn door(&self, node: &Node, port: u16) -> Option<SocketAddr> {
        Some((node.ip, port).into())
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

    fn provision(&self) -> Option<&dyn Provision> {
        (self.engine == Engine::Vagrant).then_some(self as &dyn Provision)
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
        if self.engine == Engine::Direct {
            return direct::unpack(&self.vagrant, image, file, stop);
        }
        self.vagrant.prepare_home(self.users_home.as_deref())?;
        Ok(self.vagrant.add_box(image, file, stop)?)
    }

    fn rendered(&self, cluster: &Cluster, image: &BoxInfo) -> Result<Vec<(String, String)>, Error> {
        let text = vagrant::readable(cluster, self.hypervisor.name(), self.libvirt.as_ref(), image)?;
        let mut all = vec![("Vagrantfile".to_owned(), text)];
        all.extend(self.hypervisor.rendered(cluster)?);
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
        if self.engine == Engine::Direct {
            return direct::create(self, cluster, &ready, base, hear, stop);
        }
        let count = u32::try_from(ready.len()).unwrap_or(u32::MAX);
        let turns = if self.hypervisor.parallel() { 1 } else { count };
        // Making a machine comes before booting it.
        let bound = cluster.timeouts.boot.saturating_mul(turns.saturating_add(1)) + Duration::from_secs(60);
        let _ = hear(Heard::Begun(bound));
        if ready.is_empty() {
            return Ok(Results::new());
        }
        let up = Up { vagrant: &self.vagrant, nodes: &ready, bound };
        let heard = &mut |node: &str, progress: Progress| {
            let heard = match progress {
                Progress::Says(text) => {
                    // vagrant-libvirt's locales/en.yml `starting_domain`.
                    if text.starts_with("Starting domain") {
                        let _ = hear(Heard::Starts(node));
                    }
                    Heard::Says(node, text)
                }
                Progress::Booting => Heard::Booting(node, self.hypervisor.known_address(cluster, node)),
                Progress::Up => Heard::Up(node),
                Progress::Failed => Heard::Failed(node),
            };
            let _ = hear(heard);
        };
        let log = &mut |line: &str| {
            let _ = hear(Heard::Log(line));
        };
        let results = up.run(stop, heard, log);
        Ok(results.into_iter().map(|(node, result)| (node, result.map_err(Error::from))).collect())
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
        if self.engine == Engine::Direct {
            match self.hypervisor.unseed(cluster, node, stop) {
                // It is done before the machine is started the next time.
                Err(error) if error.cancelled() => {}
                taken => taken?,
            }
        }
        files::remove_if_there(&self.place().making(node))?;
        Ok(())
    }

    /// One Ruby for all that go, one after the other within: Vagrant's own lock is per machine.
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
        if self.engine == Engine::Vagrant
            && all.iter().any(|n| n == node)
            && self.vagrant.dir.join("Vagrantfile").is_file()
        {
            say("asking Vagrant");
            if let Err(error) = self.vagrant.destroy(&all, stop) {
                if error.cancelled() {
                    return Err(error.into());
                }
                // What Vagrant cannot do (its lock is held, its plugin is gone) the hypervisor can.
                log(&format!("vagrant destroy: {error}"));
            }
        }
        let what = Leftovers {
            nodes: &[node.to_owned()],
            ids: &self.vagrant.ids(),
            spared: &BTreeSet::new(),
            owner: None,
            whole: false,
            image: None,
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
        image: Option<&BoxInfo>,
        say: &mut dyn FnMut(&str),
        stop: &Cancel,
    ) -> Result<Vec<String>, Error> {
        let ids = self.vagrant.ids();
        // Nodes that left the spec are known to Vagrant only.
        let mut nodes: Vec<String> = cluster.nodes.iter().map(|n| n.name.clone()).collect();
        nodes.extend(ids.keys().filter(|n| cluster.node(n).is_none()).cloned());
        let what = Leftovers { nodes: &nodes, ids: &ids, spared, owner: Some(owner), whole: true, image };
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
        if self.engine == Engine::Direct {
            self.hypervisor.unseed(cluster, node, stop)?;
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
        self.hypervisor.resize(cluster, &node.name, &self.known(&node.name), wanted_size(node), stop)?;
        base.map_or(Ok(()), |base| self.write(cluster, base))
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
