//! What the rest of p1 asks of machines, whoever has them.
//!
//! [`Machines`] is what every kind of machine has to answer: how it is, which one it is, and how it is reached. All else
//! is a capability that a kind may have or lack, told twice: as data ([`Caps`]) for those who plan, and as an `Option`
//! for those who act. A test holds both together.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::{BoxInfo, Error, FileDisk, Holdings, Hosting, Keep, Kind, Machine, Made, Note, Owner, Snapshot};
use crate::os::process::Cmd;
use crate::os::{Cancel, orphan};
use crate::spec::{Cluster, Node};
use crate::ssh::{Known, Password, Root};

/// What may be asked of a machine beside being reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cap {
    /// It is made and destroyed: [`Make`].
    Make,
    /// It is switched on and off, paused and resumed: [`PowerSwitch`].
    Power,
    /// It is given another size: [`Resize`].
    Resize,
    /// Its disk and memory are kept and put back: [`Snapshots`].
    Snapshot,
    /// Its memory is put on disk and given back to this host: [`Suspend`].
    Suspend,
    /// Its disk and memory are kept beside it, to be made from again: [`Keep`].
    Keep,
    /// Vagrant's provisioners are run on it: [`Provision`].
    Provision,
    /// Its link to the nodes' network is cut and put back: [`Link`].
    Link,
    /// Its disk is slowed down: [`Throttle`].
    Throttle,
    /// It stays when its node goes, and what was done to it is taken back: [`Release`].
    Release,
}

impl Cap {
    /// Every one of them.
    pub const ALL: [Self; 10] = [
        Self::Make,
        Self::Power,
        Self::Resize,
        Self::Snapshot,
        Self::Suspend,
        Self::Keep,
        Self::Provision,
        Self::Link,
        Self::Throttle,
        Self::Release,
    ];

    /// Why nothing of the kind is done to a machine that lacks it, as a sentence without its full stop.
    pub fn lacking(self) -> &'static str {
        match self {
            Self::Make => "p1 neither makes nor destroys its machine, which is reached over SSH",
            Self::Power => "p1 cannot switch its machine on or off",
            Self::Resize => "p1 cannot change the size of its machine",
            Self::Snapshot => "p1 cannot take snapshots of its machine",
            Self::Suspend => "p1 suspends machines of libvirt only",
            Self::Keep => "p1 keeps machines of libvirt only",
            Self::Provision => "Vagrant does not manage its machine",
            Self::Link => "p1 cannot pull the network cable of its machine",
            Self::Throttle => "p1 cannot slow down the disk of its machine",
            Self::Release => "p1 destroys its machine",
        }
    }
}

/// What may be asked of a machine, as data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Caps(u16);

impl Caps {
    /// To be reached and nothing else.
    #[allow(dead_code, reason = "of machines that are only reached, which tests have")]
    pub const NONE: Self = Self(0);
    /// All that there is of a machine that is made.
    pub const ALL: Self = Self(((1 << Cap::ALL.len()) - 1) & !(1 << Cap::Release as u8));

    /// Whether it may be asked for that.
    pub fn has(self, cap: Cap) -> bool {
        self.0 & (1 << cap as u8) != 0
    }

    /// What the implementation has, by its `Option`s.
    pub fn of(machines: &dyn Machines) -> Self {
        let has = |cap: &Cap| match cap {
            Cap::Make => machines.make().is_some(),
            Cap::Power => machines.power().is_some(),
            Cap::Resize => machines.resize().is_some(),
            Cap::Snapshot => machines.snapshots().is_some(),
            Cap::Suspend => machines.suspend().is_some(),
            Cap::Keep => machines.keep().is_some(),
            Cap::Provision => machines.provision().is_some(),
            Cap::Link => machines.link().is_some(),
            Cap::Throttle => machines.throttle().is_some(),
            Cap::Release => machines.release().is_some(),
        };
        Self(Cap::ALL.iter().filter(|cap| has(cap)).map(|cap| 1 << *cap as u8).sum())
    }
}

/// How this host gets into a machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Way {
    /// A name or an address.
    pub host: String,
    /// Where its sshd listens, as this host sees it.
    pub port: u16,
    /// Who logs in.
    pub user: String,
    /// Private keys that open it beside the cluster's own.
    pub keys: Vec<PathBuf>,
    /// Pieces of public keys (a comment, the base64) that are taken away once the cluster's own key opens it.
    pub insecure: Vec<&'static str>,
    /// How that user becomes root.
    pub root: Root,
    /// The cluster's own key opens it for root as well, from its first boot on, where its system reads what it is given for that.
    pub opened: bool,
    /// The way to the host through which it is reached, if it is not reached from this one.
    pub jump: Option<Box<Way>>,
    /// What else its user has arranged for it.
    pub arranged: Arranged,
}

/// What a user has arranged to get into a machine.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Arranged {
    /// The command that carries the connection.
    pub proxy: Option<String>,
    /// What sudo asks for.
    pub password: Option<Password>,
    /// The socket of an agent that has keys.
    pub agent: Option<PathBuf>,
    /// The host keys that it may have, where some are known before the first contact or must be.
    pub known: Option<Known>,
}

/// Machines of one kind on one host. Every call is bounded.
pub trait Machines: Send + Sync {
    /// Of which kind.
    fn kind(&self) -> Kind;

    /// How the machines of these nodes are, by one or two cheap questions for all of them. The answer has each of these
    /// nodes, those of which it has a note, and what else is named like a machine of this cluster: that may be somebody
    /// else's, which [`Make::holdings`] tells.
    fn look(
        &self,
        cluster: &Cluster,
        nodes: &[&Node],
        stop: &Cancel,
    ) -> Result<BTreeMap<String, Machine>, Error>;

    /// What tells a node's present machine from a former one; none where none was made. Without starting a process.
    fn id(&self, node: &str) -> Option<String>;

    /// How this host gets into a node, asked again after every start: forwarded ports change. `made` is what the machine
    /// was made for, if it is remembered: it is there, which need not be where the spec wants the node to be.
    fn way(&self, cluster: &Cluster, node: &Node, made: Option<&Made>, stop: &Cancel) -> Result<Way, Error>;

    /// How this host reaches a port of a node; none where only SSH leads there.
    fn door(&self, node: &Node, port: u16) -> Option<SocketAddr>;

    /// Where programs of this host find the API, if not at a server's address.
    fn front(&self) -> Option<SocketAddr> {
        None
    }

    /// Makes and destroys them.
    fn make(&self) -> Option<&dyn Make> {
        None
    }

    /// Switches them on and off.
    fn power(&self) -> Option<&dyn PowerSwitch> {
        None
    }

    /// Changes their size.
    fn resize(&self) -> Option<&dyn Resize> {
        None
    }

    /// Keeps and restores their disks and memory.
    fn snapshots(&self) -> Option<&dyn Snapshots> {
        None
    }

    /// Puts their memory on disk and back.
    fn suspend(&self) -> Option<&dyn Suspend> {
        None
    }

    /// Keeps them and makes them again.
    fn keep(&self) -> Option<&dyn Keep> {
        None
    }

    /// Runs Vagrant's provisioners.
    fn provision(&self) -> Option<&dyn Provision> {
        None
    }

    /// Cuts their link and puts it back.
    fn link(&self) -> Option<&dyn Link> {
        None
    }

    /// Slows their disks down.
    fn throttle(&self) -> Option<&dyn Throttle> {
        None
    }

    /// Lets go of them.
    fn release(&self) -> Option<&dyn Release> {
        None
    }
}

/// What machines are made from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Base {
    /// A box: they boot for the first time.
    Box(BoxInfo),
}

/// What is heard while machines are made.
#[derive(Debug)]
pub enum Heard<'a> {
    /// The node's machine is about to be made: what is known of a former one is no longer true, and is to be forgotten
    /// before this returns.
    Making(&'a str),
    /// It is not made and not booted: it is there, and paused.
    Passed(&'a str),
    /// What the user should know of a node's machine.
    Warning(&'a str, String),
    /// The node's machine cannot be made: it is left out.
    Cannot(&'a str, Error),
    /// All that comes before is done; from here on it takes so long at most.
    Begun(Duration),
    /// What is done about a node's machine just now.
    Says(&'a str, String),
    /// The node's machine is being switched on.
    Starts(&'a str),
    /// It was switched on: it may answer over SSH from here on, at this address if that is known before.
    Booting(&'a str, Option<SocketAddr>),
    /// It is up.
    Up(&'a str),
    /// It was given up; why comes with the result.
    Failed(&'a str),
    /// A line for the log.
    Log(&'a str),
}

/// Hears it. A break as the answer to [`Heard::Making`] leaves that machine out of what is made.
pub type Hear<'a> = &'a (dyn Fn(Heard<'_>) -> ControlFlow<()> + Sync);

/// What came of each machine, by node; those that are passed or left out are not in it.
pub type Results = BTreeMap<String, Result<(), Error>>;

/// Machines that are made and destroyed.
pub trait Make: Send + Sync {
    /// By node: the ids of all machines that it has a note of, those of nodes that left the spec included.
    fn noted(&self) -> BTreeMap<String, String>;

    /// The box that is made of the file with this checksum; `label` is for people.
    fn image(&self, label: &str, sha256: &str) -> BoxInfo;

    /// Whether machines can be made from it.
    fn has_image(&self, image: &BoxInfo) -> bool;

    /// Takes in a box file, so that machines can be made from it.
    fn take_image(&self, image: &BoxInfo, file: &Path, stop: &Cancel) -> Result<(), Error>;

    /// For people: what would be written for these machines, name and text of each file.
    fn rendered(&self, cluster: &Cluster, image: &BoxInfo) -> Result<Vec<(String, String)>, Error>;

    /// What [`Make::prepare`] would still have to do, as a fragment; `None` if nothing.
    fn prepared(&self, cluster: &Cluster, image: &BoxInfo, stop: &Cancel) -> Result<Option<String>, Error>;

    /// Makes ready what the machines share, their network and their base image. Answers what was done, a line each,
    /// empty if it was all there. The caller holds a lock of the host.
    fn prepare(
        &self,
        cluster: &Cluster,
        image: &BoxInfo,
        owner: &Owner,
        say: &mut dyn FnMut(&str),
        stop: &Cancel,
    ) -> Result<Vec<String>, Error>;

    /// What the network of machines that run lacks, as a fragment; `None` if nothing. An error says what
    /// [`Make::connect`] cannot mend.
    fn network(&self, cluster: &Cluster, stop: &Cancel) -> Result<Option<String>, Error>;

    /// Those of these nodes whose machines run without being connected to their network.
    fn unplugged(
        &self,
        cluster: &Cluster,
        nodes: &BTreeSet<String>,
        stop: &Cancel,
    ) -> Result<Vec<String>, Error>;

    /// Mends both. Answers what was done, a line each. The caller holds a lock of the host.
    fn connect(
        &self,
        cluster: &Cluster,
        owner: &Owner,
        nodes: &BTreeSet<String>,
        say: &mut dyn FnMut(&str),
        stop: &Cancel,
    ) -> Result<Vec<String>, Error>;

    /// Whose the cluster's network is, and the machines of these names.
    fn holdings(&self, cluster: &Cluster, nodes: &BTreeSet<String>, stop: &Cancel)
    -> Result<Holdings, Error>;

    /// Writes down whose a node's machine is.
    fn own_machine(
        &self,
        cluster: &Cluster,
        node: &str,
        id: &str,
        owner: &Owner,
        stop: &Cancel,
    ) -> Result<(), Error>;

    /// Writes down whose the cluster's network is, if there is one.
    fn own_network(&self, cluster: &Cluster, owner: &Owner, stop: &Cancel) -> Result<(), Error>;

    /// Makes and boots the machines of these nodes, as far as they are not there and running. What an interrupted run
    /// left half-made is taken away before; somebody else's is an error.
    ///
    /// # Errors
    /// Where none of them was begun with; each machine's own is in the answer.
    fn create(
        &self,
        cluster: &Cluster,
        nodes: &[&Node],
        base: &Base,
        hear: Hear<'_>,
        stop: &Cancel,
    ) -> Result<Results, Error>;

    /// Whether [`Make::create`] has begun to make the node's machine and [`Make::created`] was not called since.
    fn is_making(&self, node: &str) -> bool;

    /// The node's machine has its id, and all that is to be remembered of it is: what is found of it from here on is no
    /// longer half-made. Notes whose it is.
    fn created(&self, cluster: &Cluster, node: &str, owner: &Owner, stop: &Cancel) -> Result<(), Error>;

    /// Destroys a node's machine and all that belongs to it alone, whatever state it is in. `goes` tells of others that
    /// they go as well, and may go at once; it is asked when this one's turn has come. Answers what was removed.
    fn destroy(
        &self,
        cluster: &Cluster,
        node: &str,
        goes: &dyn Fn(&str) -> bool,
        say: &mut dyn FnMut(&str),
        log: &mut dyn FnMut(&str),
        stop: &Cancel,
    ) -> Result<Vec<String>, Error>;

    /// Takes away what is left when all machines are destroyed: what was half-made, the network, the base images.
    /// Machines and disks of the nodes in `spared` are somebody else's. Answers what was removed, a line each.
    fn clear(
        &self,
        cluster: &Cluster,
        spared: &BTreeSet<String>,
        owner: &Owner,
        images: &[BoxInfo],
        say: &mut dyn FnMut(&str),
        stop: &Cancel,
    ) -> Result<Vec<String>, Error>;

    /// Writes files of this host, each named once, onto a disk that machines can be given while they run: they copy from
    /// it what would be sent to each of them otherwise. One that was written before is replaced. None where machines
    /// cannot be given one.
    fn write_files(
        &self,
        cluster: &Cluster,
        files: &[PathBuf],
        say: &mut dyn FnMut(&str),
        stop: &Cancel,
    ) -> Result<Option<FileDisk>, Error>;

    /// Gives a running machine that disk, to read. It has it until it is switched off at the longest.
    fn attach_files(
        &self,
        cluster: &Cluster,
        node: &str,
        disk: &FileDisk,
        stop: &Cancel,
    ) -> Result<(), Error>;

    /// Takes it from the machine again. Fine if it does not have it.
    fn detach_files(&self, cluster: &Cluster, node: &str, stop: &Cancel) -> Result<(), Error>;

    /// Removes it from this host. Fine if there is none.
    fn remove_files(&self, cluster: &Cluster, stop: &Cancel) -> Result<(), Error>;

    /// Writes the disk of a machine that is off into a file of this host that needs no other; `image` is the box that it was
    /// made from. Answers the bytes that a machine sees of it.
    fn flatten(
        &self,
        cluster: &Cluster,
        node: &str,
        image: &BoxInfo,
        to: &Path,
        say: &mut dyn FnMut(&str),
        stop: &Cancel,
    ) -> Result<u64, Error>;

    /// Notes the id of a machine that was made in another way than by [`Make::create`].
    fn note(&self, node: &str, id: &str) -> Result<(), Error>;

    /// Forgets the machine of a node, which is gone.
    fn forget(&self, node: &str) -> Result<(), Error>;

    /// What a killed p1 left at work on these machines.
    fn left_behind(&self) -> Option<Orphan>;
}

/// A program that a killed p1 left at work.
#[derive(Clone, Debug)]
pub struct Orphan {
    /// What people call it.
    pub name: &'static str,
    pub pid: i32,
    /// How it is found: what it has as its standard input, and what it is called.
    pub(super) input: PathBuf,
    pub(super) program: &'static str,
    pub(super) grace: Duration,
}

impl Orphan {
    /// Waits until it has ended by itself; false if it has not within the bound.
    pub fn outlast(&self, bound: Duration) -> bool {
        orphan::ends(&self.input, self.program, bound)
    }

    /// Ends it; false if it cannot be ended.
    pub fn end(&self) -> bool {
        orphan::end(&self.input, self.program, self.grace)
    }
}

/// Machines that are switched on and off by whoever has them.
pub trait PowerSwitch: Send + Sync {
    /// Switches a machine off as by its plug. Fine if it is off already.
    fn off(&self, cluster: &Cluster, node: &str, stop: &Cancel) -> Result<(), Error>;

    /// Starts a machine that exists and is off, as it is. Fine if it runs.
    fn on(&self, cluster: &Cluster, node: &str, stop: &Cancel) -> Result<(), Error>;

    /// Halts the CPUs of machines, as nearly at one moment as it can; their memory is kept. Fine for those that are
    /// paused already.
    fn pause(&self, cluster: &Cluster, nodes: &BTreeSet<String>, stop: &Cancel) -> Result<(), Error>;

    /// Lets machines go on that are paused or restored. Fine for those that run.
    fn resume(&self, cluster: &Cluster, nodes: &BTreeSet<String>, stop: &Cancel) -> Result<(), Error>;

    /// The command that shows a running machine's serial console on a terminal, if it can be followed.
    fn console(&self, cluster: &Cluster, node: &str) -> Option<Vec<String>>;

    /// For people: the command line that shows what a machine shows.
    fn look_further(&self, cluster: &Cluster, node: &str) -> String;

    /// How this host keeps the machines of these nodes, as far as that can be told.
    fn hosting(
        &self,
        cluster: &Cluster,
        nodes: &[String],
        stop: &Cancel,
    ) -> Result<BTreeMap<String, Hosting>, Error>;

    /// Has a machine's disk be as safe as the spec says, from its next start on. Answers what was changed.
    fn keep_disk(&self, cluster: &Cluster, node: &str, stop: &Cancel) -> Result<Option<String>, Error>;

    /// Has a machine and its networks start with this host, or not, as the spec says.
    fn keep_up(&self, cluster: &Cluster, node: &str, stop: &Cancel) -> Result<(), Error>;

    /// For a bundle: commands that show how the machines of these nodes are, each with the part that it belongs to.
    fn evidence(&self, cluster: &str, nodes: &[String]) -> Vec<(String, Cmd)>;
}

/// Machines whose size can be changed.
pub trait Resize: Send + Sync {
    /// Gives a machine that is off the size that the spec says, from its next start on. `base` is what it would be made
    /// from, if that is there.
    fn resize(&self, cluster: &Cluster, node: &Node, base: Option<&Base>, stop: &Cancel)
    -> Result<(), Error>;

    /// Gives a machine, whether it runs or not, the disks that it lacks, and enlarges those that are smaller than the spec
    /// says. Answers what was done, a line each.
    fn disks(&self, cluster: &Cluster, node: &Node, stop: &Cancel) -> Result<Vec<String>, Error>;
}

/// Machines that can be put back to what they were.
pub trait Snapshots: Send + Sync {
    /// The snapshots that p1 took of the machines of these nodes, by node.
    fn list(
        &self,
        cluster: &Cluster,
        nodes: &BTreeSet<String>,
        stop: &Cancel,
    ) -> Result<BTreeMap<String, Vec<Snapshot>>, Error>;

    /// Takes a snapshot, memory included, of a machine that is paused; it stays so.
    fn take(
        &self,
        cluster: &Cluster,
        node: &str,
        snapshot: (&str, &Note),
        stop: &Cancel,
    ) -> Result<(), Error>;

    /// Puts a machine back to a snapshot, whatever it does now. It does not run before [`PowerSwitch::resume`].
    fn restore(&self, cluster: &Cluster, node: &str, name: &str, stop: &Cancel) -> Result<(), Error>;

    /// Removes a snapshot. Fine if there is none.
    fn remove(&self, cluster: &Cluster, node: &str, name: &str, stop: &Cancel) -> Result<(), Error>;
}

/// Machines whose memory can be put on disk, so that this host has it back meanwhile.
pub trait Suspend: Send + Sync {
    /// Writes the memory of a machine that is paused to disk and switches it off. Fine if that is done already. Whoever
    /// starts it, gets it back as it was.
    fn suspend(&self, cluster: &Cluster, node: &str, stop: &Cancel) -> Result<(), Error>;

    /// Reads the memory of a suspended machine back. It does not run before [`PowerSwitch::resume`].
    fn wake(&self, cluster: &Cluster, node: &str, stop: &Cancel) -> Result<(), Error>;
}

/// Machines on which Vagrant's provisioners run.
pub trait Provision: Send + Sync {
    /// Runs the provisioner of that name on a machine that runs. `hear` gets what it prints, a line each.
    ///
    /// # Errors
    /// With the last lines that it printed.
    fn run(
        &self,
        cluster: &Cluster,
        node: &str,
        name: &str,
        base: &Base,
        hear: &mut dyn FnMut(&str),
        stop: &Cancel,
    ) -> Result<(), (Error, Vec<String>)>;
}

/// Machines whose network cable can be pulled.
pub trait Link: Send + Sync {
    /// Cuts a running machine's card off from the nodes' network, or puts it back; its next start does so as well. Fine if
    /// it is so already.
    fn link(&self, cluster: &Cluster, node: &str, up: bool, stop: &Cancel) -> Result<(), Error>;
}

/// How much a disk does at most in a second, reads and writes together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limit {
    pub iops: u32,
    pub bytes: u64,
}

/// Machines whose disks can be slowed down.
pub trait Throttle: Send + Sync {
    /// Holds a running machine's own disk to that, or to nothing any more; its next start frees it as well.
    fn throttle(
        &self,
        cluster: &Cluster,
        node: &str,
        limit: Option<Limit>,
        stop: &Cancel,
    ) -> Result<(), Error>;
}

/// Machines that stay when their nodes go. What p1 did to one is taken back over SSH before.
pub trait Release: Send + Sync {
    /// As [`Make::noted`].
    fn noted(&self) -> BTreeMap<String, String>;

    /// Forgets which machine the node had: the next one may be another.
    fn forget(&self, node: &str) -> Result<(), Error>;
}
