//! Who has the machines: [`Fleet`] finds who has a node's, and [`Machines`] is what can be asked of them, with all that
//! not everybody can do as a capability beside it (`seam.rs`).
//!
//! [`local`] has an engine make machines of this host with a [`Hypervisor`]: Vagrant, or p1 itself (`direct.rs`), creates and
//! destroys, and the hypervisor does what Vagrant does slowly, wrongly or not at all: it looks at the machines without starting Ruby, makes
//! the network and the base image ready under one owner, and clears away what a half-made machine left behind.
//!
//! A new hypervisor, or machines that somebody else has, is a file here, a [`Kind`], and a line in [`open`]; a new
//! engine a file with its [`local::Maker`] and an [`Engine`].

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};

use ipnet::Ipv4Net;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::explain::{Again, Explain, FailureKind};
use crate::os::process::Cmd;
use crate::os::{Cancel, files, process};
use crate::spec::{Cluster, Disk, EngineChoice, LibvirtUri, Node, ProviderChoice, Role, SshAccess};
use crate::{render, ssh};

pub use batch::Batch;
pub use existing::{Users, accesses};
pub use fleet::{Cpu, Fleet, Here};
pub use fork::{Reach, address_of, port_file, settle};
#[cfg(test)]
pub use keep::Part;
pub use keep::{Keep, Kept, PREFIX as KEPT_PREFIX, keeper};
pub use libvirt::{KEYS_OF_BOX, cache as disk_cache};
pub use owner::{Claimant, Held, Holdings, Owner, Whose};
pub use seam::{
    Arranged, Base, Cap, Caps, Hear, Heard, Limit, Link, Machines, Make, Orphan, PowerSwitch, Provision,
    Release, Resize, Results, Snapshots, Suspend, Throttle, Way,
};
pub use snapshot::{Note, Snapshot};

pub use crate::spec::Size;

mod batch;
mod direct;
mod disks;
mod existing;
mod filedisk;
mod fleet;
mod fork;
mod keep;
pub mod libvirt;
mod local;
mod making;
pub mod owner;
mod seam;
pub mod snapshot;
#[cfg(test)]
pub mod tests;
pub mod vagrant;
pub mod virtualbox;

/// A provider that p1 knows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// QEMU, with or without KVM, through libvirt and the plugin vagrant-libvirt. It is taken where nothing tells.
    #[default]
    Libvirt,
    /// Oracle VirtualBox.
    Virtualbox,
    /// Nobody p1 works with: they exist, and are reached over SSH.
    Ssh,
}

impl Kind {
    /// The name that Vagrant, the spec and people use.
    pub fn name(self) -> &'static str {
        match self {
            Self::Libvirt => "libvirt",
            Self::Virtualbox => "virtualbox",
            Self::Ssh => "ssh",
        }
    }

    /// The one that a spec names; none if it leaves it open.
    pub fn wished(choice: ProviderChoice) -> Option<Self> {
        match choice {
            ProviderChoice::Auto => None,
            ProviderChoice::Libvirt => Some(Self::Libvirt),
            ProviderChoice::Virtualbox => Some(Self::Virtualbox),
            ProviderChoice::Ssh => Some(Self::Ssh),
        }
    }

    /// Whether boxes that p1 builds are for it.
    pub fn takes_built_boxes(self) -> bool {
        self == Self::Libvirt
    }

    /// Whether p1 gives its machines disks as the spec says.
    pub fn gives_disks(self) -> bool {
        self == Self::Libvirt
    }

    /// Whether its machines can start with this host.
    pub fn starts_with_host(self) -> bool {
        self == Self::Libvirt
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// What makes machines with a hypervisor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Engine {
    Vagrant,
    /// p1 itself.
    Direct,
}

impl Engine {
    /// The one that a spec names; none if it leaves it open.
    pub fn wished(choice: EngineChoice) -> Option<Self> {
        match choice {
            EngineChoice::Auto => None,
            EngineChoice::Vagrant => Some(Self::Vagrant),
            EngineChoice::Direct => Some(Self::Direct),
        }
    }

    /// The name that the spec uses.
    pub fn name(self) -> &'static str {
        match self {
            Self::Vagrant => "vagrant",
            Self::Direct => "direct",
        }
    }

    fn maker(self) -> &'static dyn local::Maker {
        match self {
            Self::Vagrant => &vagrant::ByVagrant,
            Self::Direct => &direct::Direct,
        }
    }
}

/// The programs a provider uses and where they connect to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tools {
    /// `virsh`.
    pub virsh: PathBuf,
    /// `qemu-img`.
    pub qemu_img: PathBuf,
    /// The libvirt daemon, e.g. `qemu:///system`. The same for p1 and for Vagrant: Vagrant forgets
    /// machines that it does not find at another URI (vagrant, `Machine#initialize`).
    pub libvirt_uri: String,
    /// With the user's own libvirt: what its machines are on in place of a network that p1 makes.
    pub bridge: Option<Bridge>,
    /// Where libvirt's storage pool is made if it has none.
    pub images: PathBuf,
    /// `ip`, of iproute2.
    pub ip: PathBuf,
    /// `VBoxManage`.
    pub vboxmanage: PathBuf,
    /// VirtualBox' list of allowed host-only ranges.
    pub vbox_networks: PathBuf,
}

/// A bridge that root has made for machines of this user's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bridge {
    pub name: String,
    /// Nobody there tells machines whom to ask for names.
    pub dns: Vec<Ipv4Addr>,
}

impl Default for Tools {
    /// Whatever is on PATH, the system's libvirt.
    fn default() -> Self {
        Self {
            virsh: "virsh".into(),
            qemu_img: "qemu-img".into(),
            libvirt_uri: LibvirtUri::default().word().to_owned(),
            bridge: None,
            images: libvirt::POOL_PATH.into(),
            ip: "ip".into(),
            vboxmanage: "VBoxManage".into(),
            vbox_networks: virtualbox::NETWORKS_CONF.into(),
        }
    }
}

/// The box that a cluster's machines start from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BoxInfo {
    /// As Vagrant knows it, e.g. `p1/debian-12`.
    pub name: String,
    /// As Vagrant knows it, e.g. `1.0.0`; `0` for a box that was added without a catalog.
    pub version: String,
    /// The disk image inside Vagrant's copy of the box.
    pub image: PathBuf,
}

impl BoxInfo {
    /// The name of its folder in VAGRANT_HOME (`lib/vagrant/box_collection.rb`).
    pub fn folder(&self) -> String {
        self.name.replace('/', "-VAGRANTSLASH-")
    }
}

/// How a machine is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum MachineState {
    /// Its CPU runs.
    Running,
    /// It exists and is off.
    Off,
    /// It exists and its CPU is halted, its memory kept.
    Paused,
    /// It is off and its memory lies on disk.
    Saved,
    /// Something else, in the provider's own word.
    Other(String),
    /// There is none.
    Absent,
}

impl fmt::Display for MachineState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Running => "running",
            Self::Off => "off",
            Self::Paused => "paused",
            Self::Saved => "suspended",
            Self::Other(word) => word,
            Self::Absent => "absent",
        })
    }
}

/// What a machine was made from and for: what cannot be changed of it while it lives.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Made {
    /// What it was to be.
    pub role: Role,
    pub ip: Ipv4Addr,
    /// The network that it was made for.
    pub cidr: Ipv4Net,
    /// How many cards it has.
    pub nics: u8,
    /// What the spec's box stood for then.
    pub image: String,
    /// How it is reached, if it existed before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ssh: Option<Box<SshAccess>>,
    /// The size that p1 has given its disk, GiB.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub disk: Option<u32>,
    /// The disks that p1 has given it beside that.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub disks: Vec<Disk>,
}

/// How a machine outlives a power cut of this host, and whether it comes back after it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Hosting {
    /// It runs, and what it flushes does not reach the disk.
    pub unsafe_now: bool,
    /// The same from its next start on.
    pub unsafe_next: bool,
    /// It starts with the host.
    pub autostart: bool,
    /// So do its networks.
    pub network: bool,
}

/// A machine as the provider sees it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Machine {
    /// The provider's id of it (a UUID on both), which is Vagrant's machine id as well.
    pub id: Option<String>,
    /// How it is.
    pub state: MachineState,
    /// True if it has our name but not the id that Vagrant knows: left over from an interrupted
    /// `up`, or somebody else's. Vagrant would stop at its name.
    pub foreign: bool,
    /// What it has, if the provider says so.
    pub size: Option<Size>,
    /// What may be asked of it.
    #[serde(skip)]
    pub can: Caps,
}

impl Machine {
    /// How it is, for people and programs: of one that p1 only reaches nobody knows more than that it is there.
    pub fn told(&self) -> String {
        if self.can.has(Cap::Release) { "exists".to_owned() } else { self.state.to_string() }
    }

    /// No machine at all, of somebody who makes them.
    pub fn absent() -> Self {
        Self { id: None, state: MachineState::Absent, foreign: false, size: None, can: Caps::ALL }
    }
}

/// A disk with files that machines can be given while they run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FileDisk {
    /// By which a guest finds it: `/dev/disk/by-id/virtio-SERIAL`, `/sys/block/*/serial`.
    pub serial: &'static str,
    /// Where the host has it.
    pub source: String,
    /// Where each file begins on it, MiB.
    pub starts: Vec<u64>,
}

/// What to clear away.
#[derive(Clone, Copy, Debug)]
pub struct Leftovers<'a> {
    /// Nodes by their exact names, those that left the spec included. Never a prefix: the machines
    /// of a cluster `a-b` begin with the prefix of a cluster `a`.
    pub nodes: &'a [String],
    /// Machine ids as far as Vagrant knew them; a half-made machine may not have its name yet.
    pub ids: &'a BTreeMap<String, String>,
    /// Nodes of whose names somebody else's machines are: neither these nor disks of their names are touched.
    pub spared: &'a BTreeSet<String>,
    /// This folder, if it was ever noted as an owner: a network of another one stays.
    pub owner: Option<&'a Owner>,
    /// True to take away also what the whole cluster shares: its network.
    pub whole: bool,
    /// The base images that may go too; one stays while another machine uses it.
    pub images: &'a [BoxInfo],
}

/// Why a provider could not do its work.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Its program failed.
    #[error("cannot {doing}: {source}")]
    Program {
        /// What was being done, as a verb: `list the machines`.
        doing: String,
        /// How it failed.
        #[source]
        source: process::Error,
    },
    /// Whoever makes the machines does not answer: it is stopped, or is being restarted.
    #[error("cannot {doing}: {who} does not answer")]
    Down {
        /// What was being done, as a verb.
        doing: String,
        /// Who: `libvirt`.
        who: &'static str,
        /// What its program said.
        lines: Vec<String>,
    },
    /// Whoever makes the machines does not let this user in.
    #[error("cannot {doing}: {who} does not let this user in")]
    Denied {
        /// What was being done, as a verb.
        doing: String,
        /// Who: `libvirt`.
        who: &'static str,
        /// What its program said.
        lines: Vec<String>,
    },
    /// Its program answered something that was not understood.
    #[error("`{program}` gave no {what}")]
    Answer {
        /// Which.
        program: &'static str,
        /// What was looked for, e.g. `forwarded SSH port`.
        what: String,
        /// What it said instead.
        lines: Vec<String>,
    },
    /// Something on this host is in the way.
    #[error("{what}")]
    Conflict {
        /// What, as a fragment.
        what: String,
        /// How to get it out of the way, as full sentences.
        remedy: String,
        /// The commands that do so, as far as they are known.
        next: Vec<String>,
    },
    /// What was to be done is not done to machines of this kind.
    #[error("this cannot be done to {node}: {}", cap.lacking())]
    Cannot {
        /// Whose machine.
        node: String,
        /// What it lacks.
        cap: Cap,
    },
    /// A file could not be used.
    #[error(transparent)]
    File(#[from] files::Error),
    /// Vagrant did not do it.
    #[error(transparent)]
    Vagrant(#[from] vagrant::Error),
    /// A host key could not be forgotten.
    #[error(transparent)]
    Ssh(#[from] ssh::Error),
    /// A file could not be made from its template.
    #[error(transparent)]
    Render(#[from] render::Error),
}

impl Error {
    fn cannot(node: &str, cap: Cap) -> Self {
        Self::Cannot { node: node.to_owned(), cap }
    }

    /// Whether more of it is in the log of what was heard ([`Heard::Log`]).
    pub fn logged(&self) -> bool {
        matches!(self, Self::Vagrant(_))
    }

    /// The error that it is of another room.
    fn other(&self) -> Option<&dyn Explain> {
        Some(match self {
            Self::Program { source, .. } => source,
            Self::File(e) => e,
            Self::Vagrant(e) => e,
            Self::Ssh(e) => e,
            Self::Render(e) => e,
            _ => return None,
        })
    }

    /// For `map_err`: adds what was being done to a program's failure.
    pub fn doing(doing: impl Into<String>) -> impl FnOnce(process::Error) -> Self {
        let doing = doing.into();
        move |source| Self::Program { doing, source }
    }
}

impl Explain for Error {
    fn hint(&self) -> Option<String> {
        match self {
            Self::Conflict { remedy, .. } => Some(remedy.clone()),
            Self::Down { who, .. } => {
                Some(format!("`p1 doctor --fix` starts {who}, and says what it would run before."))
            }
            Self::Denied { who, .. } => {
                Some(format!("`p1 doctor --fix` gives this user what {who} asks for, as far as it can."))
            }
            _ => self.other().and_then(Explain::hint),
        }
    }

    fn next(&self) -> Vec<String> {
        match self {
            Self::Down { .. } | Self::Denied { .. } => vec!["p1 doctor --fix".to_owned()],
            Self::Conflict { next, .. } => next.clone(),
            _ => self.other().map(Explain::next).unwrap_or_default(),
        }
    }

    fn evidence(&self) -> Vec<String> {
        match self {
            Self::Answer { lines, .. } | Self::Down { lines, .. } | Self::Denied { lines, .. } => {
                lines.clone()
            }
            _ => self.other().map(Explain::evidence).unwrap_or_default(),
        }
    }

    fn kind(&self) -> FailureKind {
        match self {
            Self::Down { .. } => FailureKind::Unreachable,
            Self::Denied { .. } => FailureKind::Denied,
            Self::Answer { .. } => FailureKind::Damaged,
            Self::Conflict { .. } => FailureKind::Conflict,
            Self::Cannot { .. } => FailureKind::Cannot,
            _ => self.other().map_or(FailureKind::Other, Explain::kind),
        }
    }

    fn again(&self) -> Again {
        match self {
            Self::Down { .. } => Again::Soon,
            _ => self.other().map_or(Again::No, Explain::again),
        }
    }

    fn unready(&self) -> bool {
        match self {
            Self::Down { .. } | Self::Denied { .. } => true,
            _ => self.other().is_some_and(Explain::unready),
        }
    }
}

/// What makes machines for Vagrant, and does what Vagrant does slowly, wrongly or not at all. Every call is bounded and none of them starts Ruby.
trait Hypervisor: Send + Sync {
    /// Which.
    fn kind(&self) -> Kind;

    /// Vagrant's name of it.
    fn name(&self) -> &'static str {
        self.kind().name()
    }

    /// Whether Vagrant brings several of its machines up at once (`parallel` in the provider's
    /// `plugin.rb`: libvirt yes, virtualbox no).
    fn parallel(&self) -> bool;

    /// How every node's machine is, by one or two cheap commands for all of them. `ids` holds the
    /// machine ids that Vagrant knows, by node. The answer has every node of the cluster, every key of
    /// `ids`, and what else is named like a machine of this cluster: that may be another cluster's,
    /// which [`Hypervisor::holdings`] tells.
    fn machines(
        &self,
        cluster: &Cluster,
        ids: &BTreeMap<String, String>,
        cancel: &Cancel,
    ) -> Result<BTreeMap<String, Machine>, Error>;

    /// What [`Hypervisor::prepare`] would still have to do, as a fragment; `None` if nothing.
    fn prepared(&self, cluster: &Cluster, image: &BoxInfo, cancel: &Cancel) -> Result<Option<String>, Error>;

    /// Makes ready what the machines share, their network and their base image. Answers what was
    /// done, a line each, empty if it was all there. The caller holds a lock of the host.
    fn prepare(
        &self,
        cluster: &Cluster,
        image: &BoxInfo,
        owner: &Owner,
        report: &mut dyn FnMut(&str),
        cancel: &Cancel,
    ) -> Result<Vec<String>, Error>;

    /// What the network of machines that run lacks, as a fragment; `None` if nothing. An error says what
    /// [`Hypervisor::connect`] cannot mend.
    fn network(&self, _cluster: &Cluster, _cancel: &Cancel) -> Result<Option<String>, Error> {
        Ok(None)
    }

    /// The nodes whose machines run without being connected to their network. `ids` as for
    /// [`Hypervisor::pause`].
    fn unplugged(
        &self,
        _cluster: &Cluster,
        _ids: &BTreeMap<String, String>,
        _cancel: &Cancel,
    ) -> Result<Vec<String>, Error> {
        Ok(Vec::new())
    }

    /// Mends both. Answers what was done, a line each. The caller holds a lock of the host.
    fn connect(
        &self,
        _cluster: &Cluster,
        _owner: &Owner,
        _ids: &BTreeMap<String, String>,
        _report: &mut dyn FnMut(&str),
        _cancel: &Cancel,
    ) -> Result<Vec<String>, Error> {
        Ok(Vec::new())
    }

    /// Whose the cluster's network is, and the machines of these names.
    fn holdings(
        &self,
        cluster: &Cluster,
        nodes: &BTreeSet<String>,
        cancel: &Cancel,
    ) -> Result<Holdings, Error>;

    /// Writes down whose a machine is.
    fn own_machine(
        &self,
        cluster: &Cluster,
        node: &str,
        machine_id: &str,
        owner: &Owner,
        cancel: &Cancel,
    ) -> Result<(), Error>;

    /// Writes down whose the cluster's network is, if there is one.
    fn own_network(&self, _cluster: &Cluster, _owner: &Owner, _cancel: &Cancel) -> Result<(), Error> {
        Ok(())
    }

    /// Where a node's SSH is reached from this host; asked again after every start, as VirtualBox'
    /// forwarded ports change.
    fn endpoint(
        &self,
        cluster: &Cluster,
        node: &str,
        machine_id: &str,
        cancel: &Cancel,
    ) -> Result<SocketAddr, Error>;

    /// Where the SSH of a machine is that was made so, if that tells.
    fn address(&self, _made: &Made) -> Option<SocketAddr> {
        None
    }

    /// Where a node's SSH will answer, if that is known before it boots.
    fn known_address(&self, _cluster: &Cluster, _node: &str) -> Option<SocketAddr> {
        None
    }

    /// Makes a machine of its own, without Vagrant: its disk over the box's image and what describes it. `source` is the
    /// Vagrantfile that would make it and the public key that is to open it at its first boot, where the box takes one.
    /// Answers its id.
    fn define(
        &self,
        _cluster: &Cluster,
        node: &str,
        _image: &BoxInfo,
        _libvirt: Option<&vagrant::Libvirt>,
        _source: (&Path, &str),
        _cancel: &Cancel,
    ) -> Result<String, Error> {
        Err(Error::cannot(node, Cap::Make))
    }

    /// Takes what a machine was given for its first boot out of its description. Fine if there is none.
    fn unseed(&self, _cluster: &Cluster, _node: &str, _cancel: &Cancel) -> Result<(), Error> {
        Ok(())
    }

    /// [`Make::flatten`].
    fn flatten(
        &self,
        _cluster: &Cluster,
        node: &str,
        _image: &BoxInfo,
        _to: &Path,
        _say: &mut dyn FnMut(&str),
        _cancel: &Cancel,
    ) -> Result<u64, Error> {
        Err(Error::cannot(node, Cap::Make))
    }

    /// Whether a disk is left of a node's machine that is not there: Vagrant would stop at it.
    fn disk_left(&self, _cluster: &Cluster, _node: &str, _cancel: &Cancel) -> Result<bool, Error> {
        Ok(false)
    }

    /// The command that shows a running machine's serial console on a terminal, if it can be followed.
    fn console(&self, _cluster: &Cluster, _node: &str) -> Option<Vec<String>> {
        None
    }

    /// For people: the command line that shows what a machine shows.
    fn look_further(&self, cluster: &Cluster, node: &str) -> String;

    /// Switches a machine off as by its plug. Fine if it is off already.
    fn power_off(
        &self,
        cluster: &Cluster,
        node: &str,
        machine_id: &str,
        cancel: &Cancel,
    ) -> Result<(), Error>;

    /// Halts the CPUs of machines, as nearly at one moment as it can; their memory is kept. `ids` are
    /// the machines' ids, by node. Fine for those that are paused already.
    fn pause(&self, cluster: &Cluster, ids: &BTreeMap<String, String>, cancel: &Cancel) -> Result<(), Error>;

    /// Lets machines go on that are paused or restored. Fine for those that run.
    fn resume(&self, cluster: &Cluster, ids: &BTreeMap<String, String>, cancel: &Cancel)
    -> Result<(), Error>;

    /// The snapshots that p1 took of these machines, by node.
    fn snapshots(
        &self,
        cluster: &Cluster,
        ids: &BTreeMap<String, String>,
        cancel: &Cancel,
    ) -> Result<BTreeMap<String, Vec<Snapshot>>, Error>;

    /// Takes a snapshot, memory included, of a machine that is paused; it stays so.
    fn take(
        &self,
        cluster: &Cluster,
        machine: (&str, &str),
        snapshot: (&str, &Note),
        cancel: &Cancel,
    ) -> Result<(), Error>;

    /// Puts a machine back to a snapshot, whatever it does now. It does not run before
    /// [`Hypervisor::resume`].
    fn restore(
        &self,
        cluster: &Cluster,
        machine: (&str, &str),
        name: &str,
        cancel: &Cancel,
    ) -> Result<(), Error>;

    /// Removes a snapshot. Fine if there is none.
    fn forget(
        &self,
        cluster: &Cluster,
        machine: (&str, &str),
        name: &str,
        cancel: &Cancel,
    ) -> Result<(), Error>;

    /// Keeps machines and makes them again.
    fn keep(&self) -> Option<&dyn Keep> {
        None
    }

    /// Whether it can put a machine's memory on disk: [`Hypervisor::suspend`], [`Hypervisor::wake`].
    fn suspends(&self) -> bool {
        false
    }

    /// Writes the memory of a machine that is paused to disk and switches it off. Fine if that is done already.
    fn suspend(&self, _cluster: &Cluster, node: &str, _cancel: &Cancel) -> Result<(), Error> {
        Err(Error::cannot(node, Cap::Suspend))
    }

    /// Reads the memory of a suspended machine back; it stays paused.
    fn wake(&self, _cluster: &Cluster, node: &str, _cancel: &Cancel) -> Result<(), Error> {
        Err(Error::cannot(node, Cap::Suspend))
    }

    /// Gives a machine that is off another size, from its next start on.
    fn resize(
        &self,
        cluster: &Cluster,
        node: &str,
        machine_id: &str,
        size: Size,
        cancel: &Cancel,
    ) -> Result<(), Error>;

    /// Sees to it that a machine has the disks that the spec gives it, as large as it says. Answers what was done, a line each.
    /// None is made smaller, and none is taken away.
    fn disks(&self, _cluster: &Cluster, node: &Node, _cancel: &Cancel) -> Result<Vec<String>, Error> {
        Err(Error::cannot(&node.name, Cap::Resize))
    }

    /// Starts a machine that exists and is off, as it is. Fine if it runs.
    fn boot(&self, cluster: &Cluster, node: &str, machine_id: &str, cancel: &Cancel) -> Result<(), Error>;

    /// How this host keeps the machines of these nodes, as far as the provider can tell.
    fn hosting(
        &self,
        _cluster: &Cluster,
        _nodes: &[String],
        _cancel: &Cancel,
    ) -> Result<BTreeMap<String, Hosting>, Error> {
        Ok(BTreeMap::new())
    }

    /// Has a machine's disk be as safe as the spec says, from its next start on. Answers what was changed.
    fn keep_disk(&self, _cluster: &Cluster, _node: &str, _cancel: &Cancel) -> Result<Option<String>, Error> {
        Ok(None)
    }

    /// Has a machine and its networks start with this host, or not, as the spec says.
    fn keep_up(&self, _cluster: &Cluster, _node: &str, _cancel: &Cancel) -> Result<(), Error> {
        Ok(())
    }

    /// Writes files of this host, each named once, onto a disk that its machines can be given while they run: they
    /// copy from it what would be sent to each of them otherwise. One that was written before is replaced. None
    /// where machines cannot be given one.
    fn write_files(
        &self,
        _cluster: &Cluster,
        _files: &[PathBuf],
        _report: &mut dyn FnMut(&str),
        _cancel: &Cancel,
    ) -> Result<Option<FileDisk>, Error> {
        Ok(None)
    }

    /// Gives a running machine that disk, to read. It has it until it is switched off at the longest.
    fn attach_files(
        &self,
        _cluster: &Cluster,
        _node: &str,
        _disk: &FileDisk,
        _cancel: &Cancel,
    ) -> Result<(), Error> {
        Ok(())
    }

    /// Takes it from the machine again. Fine if it does not have it.
    fn detach_files(&self, _cluster: &Cluster, _node: &str, _cancel: &Cancel) -> Result<(), Error> {
        Ok(())
    }

    /// Removes it from this host. Fine if there is none.
    fn remove_files(&self, _cluster: &Cluster, _cancel: &Cancel) -> Result<(), Error> {
        Ok(())
    }

    /// Whether [`Hypervisor::set_link`] and [`Hypervisor::set_limit`] do anything.
    fn disturbs(&self) -> bool {
        false
    }

    /// Cuts a running machine's card off from the nodes' network, or puts it back.
    fn set_link(&self, _cluster: &Cluster, node: &str, _up: bool, _cancel: &Cancel) -> Result<(), Error> {
        Err(Error::cannot(node, Cap::Link))
    }

    /// Holds a running machine's own disk to a limit, or to none.
    fn set_limit(
        &self,
        _cluster: &Cluster,
        node: &str,
        _limit: Option<Limit>,
        _cancel: &Cancel,
    ) -> Result<(), Error> {
        Err(Error::cannot(node, Cap::Throttle))
    }

    /// For people: what would be written for these machines beside Vagrant's own, name and text of each file.
    fn rendered(
        &self,
        _cluster: &Cluster,
        _libvirt: Option<&vagrant::Libvirt>,
    ) -> Result<Vec<(String, String)>, Error> {
        Ok(Vec::new())
    }

    /// Whether Vagrant can make machines as these are.
    fn takes_vagrant(&self) -> bool {
        true
    }

    /// For a bundle: commands that show how the machines of these nodes are, each with the part that it belongs to.
    fn evidence(&self, cluster: &str, nodes: &[String]) -> Vec<(String, Cmd)>;

    /// Takes away what is left after `vagrant destroy`, or in its place: machines, their disks, the
    /// network, the base image. Works on half-made and on vanished machines. Answers what was
    /// removed, a line each.
    fn clean(
        &self,
        cluster: &Cluster,
        what: &Leftovers<'_>,
        report: &mut dyn FnMut(&str),
        cancel: &Cancel,
    ) -> Result<Vec<String>, Error>;
}

/// Who has the machines of that kind.
fn open(kind: Kind, here: Here, exist: BTreeSet<String>) -> Box<dyn Machines> {
    let hypervisor: Box<dyn Hypervisor> = match kind {
        Kind::Libvirt => Box::new(libvirt::Libvirt::new(here.tools.clone())),
        Kind::Virtualbox => Box::new(virtualbox::VirtualBox::new(&here.tools)),
        Kind::Ssh => return Box::new(existing::Existing::open(&here, exist)),
    };
    Box::new(local::Local::open(hypervisor, here))
}

/// Whether a cluster was begun in this state folder.
pub fn is_begun(folder: &Path) -> bool {
    folder.join(".vagrant").is_dir()
}

/// Whether a machine was made from this state folder.
pub fn has_machines(folder: &Path) -> bool {
    let machines = fs::read_dir(folder.join(".vagrant/machines")).into_iter().flatten().flatten();
    let mut providers = machines.flat_map(|m| fs::read_dir(m.path()).into_iter().flatten().flatten());
    providers.any(|p| p.path().join("id").exists())
}

/// Whether anything is noted in this state folder of a machine of that node, be it of a former one.
pub fn is_noted(folder: &Path, node: &str) -> bool {
    folder.join(".vagrant/machines").join(node).is_dir()
}

/// The name of the machine of `node` in the cluster of that name; what Vagrantfiles call
/// `default_prefix` + name (libvirt) or `vb.name` (VirtualBox).
pub fn machine_name(cluster: &str, node: &str) -> String {
    format!("{}{node}", machine_prefix(cluster))
}

/// What the names of a cluster's machines begin with.
pub fn machine_prefix(cluster: &str) -> String {
    format!("p1-{cluster}-")
}

/// A node's MAC address: made from cluster, node and address, so that it is known beforehand and
/// stays. 52:54:00 is QEMU's prefix.
pub fn node_mac(cluster: &str, node: &str, ip: Ipv4Addr) -> String {
    let hash = Sha256::digest(format!("{cluster}/{node}/{ip}"));
    format!("52:54:00:{:02x}:{:02x}:{:02x}", hash[0], hash[1], hash[2])
}

/// The name of a cluster's network.
pub fn network_name(cluster: &str) -> String {
    format!("p1-{cluster}")
}
