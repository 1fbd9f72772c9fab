//! The spec: which machines make a cluster.
//!
//! [`Cluster`] is the spec as everybody else uses it: parsed, valid, every default filled in, every
//! shorthand spelled out. [`load`] makes it from a file, or tells everything that is wrong with the
//! file at once:
//!
//! `node` reads YAML into a tree that knows its places; `file` says which keys there are and `value`
//! what each may be (`shape` makes both the reader and the JSON Schema from that); `resolve` fills in
//! what was left out, and `validate` looks at what has to go together. All of them write what they
//! find into a `report`.

pub mod defaults;
mod digest;
mod environment;
mod file;
#[cfg(test)]
pub(crate) mod fixture;
mod fork;
mod here;
mod init;
mod k3s_keys;
mod load;
pub mod manifest;
mod node;
mod plain;
mod problem;
mod provision;
mod report;
mod resolve;
mod retry;
mod schema;
mod secret;
mod select;
mod settings;
mod shape;
#[cfg(test)]
mod tests;
mod validate;
mod value;
mod variables;

pub use digest::{digest, made_of};
pub use fork::{Fork, renamed};
pub use here::{Part, Remark};
pub use init::{FROM, Init, init, name_for};
pub use k3s_keys::{is_list, is_switch, long, owned};
pub use load::{Error, Parsed, load, load_here, parse, parse_with};
pub use manifest::{Document, Manifest, Namespace, Object, When};
pub use plain::plain;
pub use problem::Severity;
pub use provision::{ProvisionType, Provisioner, Repeat, Slot, hide, without_secrets};
pub use schema::schema;
pub use secret::{conceal, masked, secrets};
pub use validate::{AUTOSTART, BAKE, BAKE_ELSEWHERE, DISKS};

use std::collections::BTreeMap;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use ipnet::Ipv4Net;
use serde::{Deserialize, Serialize};

/// A map that goes into one of k3s' own YAML files as it is.
pub type Yaml = serde_yaml::Mapping;

/// A whole cluster.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Cluster {
    /// A DNS label.
    pub name: String,
    /// What makes the machines.
    pub provider: ProviderChoice,
    /// What makes them with libvirt.
    #[serde(skip_serializing_if = "EngineChoice::is_auto")]
    pub engine: EngineChoice,
    /// Which libvirt.
    #[serde(skip_serializing_if = "Libvirt::is_default")]
    pub libvirt: Libvirt,
    /// What the machines start from.
    #[serde(rename = "box")]
    pub image: BoxRef,
    /// Where they meet; of no size where none of them is p1's own.
    #[serde(skip_serializing_if = "Network::is_none")]
    pub network: Network,
    /// Disks that do not survive a power cut of the host, for speed.
    #[serde(skip_serializing_if = "is_false")]
    pub disposable: bool,
    /// Network and machines start with the host.
    #[serde(skip_serializing_if = "is_false")]
    pub autostart: bool,
    /// The pristine cluster is kept, to be restored.
    #[serde(skip_serializing_if = "is_false")]
    pub keep: bool,
    /// Whether machines start from boxes that have k3s' files already.
    #[serde(skip_serializing_if = "BakeChoice::is_usual")]
    pub bake: BakeChoice,
    /// The images that nodes pull are kept on this host.
    #[serde(skip_serializing_if = "is_true")]
    pub keep_images: bool,
    /// Names that every node knows beside those of the nodes.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub hosts: BTreeMap<String, IpAddr>,
    /// The servers first, then the workers, in the order of the file.
    pub nodes: Vec<Node>,
    /// What the nodes are called together that one entry makes by its `count`.
    #[serde(skip)]
    pub groups: std::collections::BTreeMap<String, Vec<String>>,
    /// What they run.
    pub k3s: K3s,
    /// Vagrant's provisioners, in the order in which they run on a node.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub provision: Vec<Provisioner>,
    /// Namespaces that p1 makes, in order.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub namespaces: Vec<Namespace>,
    /// What is applied when the nodes are Ready, in order.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub manifests: Vec<Manifest>,
    /// How `p1 verify` proves it.
    #[serde(skip_serializing_if = "Verify::is_default")]
    pub verify: Verify,
    /// Bounds of the waits.
    pub timeouts: Timeouts,
    /// How often a step is tried.
    pub retry: Retry,
    /// How what runs is restarted.
    #[serde(skip_serializing_if = "Rollout::is_default")]
    pub rollout: Rollout,
    /// The folder of the spec file; relative paths of the spec were resolved against it.
    #[serde(skip)]
    pub base: PathBuf,
    /// What it is a fork of, if it is one.
    #[serde(skip)]
    pub fork: Option<Fork>,
    /// What variables brought in that nobody is to see.
    #[serde(skip)]
    pub secrets: Vec<String>,
}

impl Cluster {
    /// The folder in which its state is: that of the spec file.
    pub fn home(&self) -> &Path {
        self.fork.as_ref().map_or(&self.base, |fork| &fork.home)
    }

    /// The name from which its machines' MAC addresses follow.
    pub fn macs(&self) -> &str {
        self.fork.as_ref().map_or(&self.name, |fork| &fork.macs)
    }
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde calls it so")]
fn is_false(flag: &bool) -> bool {
    !*flag
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde calls it so")]
fn is_true(flag: &bool) -> bool {
    *flag
}

shape::choices! {
    /// What makes the machines, as asked for.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
    ProviderChoice {
        /// Whichever works on this host; libvirt if both do.
        #[default]
        Auto = "auto",
        /// QEMU/KVM through libvirt.
        Libvirt = "libvirt",
        /// Oracle VirtualBox.
        Virtualbox = "virtualbox",
        /// Nothing: they exist, and are reached over SSH.
        Ssh = "ssh",
    }
}

shape::choices! {
    /// How a user who is not root becomes root.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
    BecomeChoice {
        #[default]
        Sudo = "sudo",
        /// OpenBSD's, in its portable form.
        Doas = "doas",
    }
}

shape::choices! {
    /// Which host keys count.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
    HostKeys {
        /// One that the user's known_hosts has, or else the one of the first contact.
        #[default]
        Pin = "pin",
        /// One that the user's known_hosts has.
        Known = "known",
    }
}

/// Where a password is had from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Ask {
    /// The user is asked.
    Prompt,
    /// A variable of p1's environment.
    Env(String),
}

/// How a machine that exists already is reached; what is none is as the user's `ssh_config` says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SshAccess {
    /// A name or an address, or a name of the user's `ssh_config`.
    pub host: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub port: Option<u16>,
    /// Absolute, or below `~/`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<PathBuf>,
    /// As `ssh -J` takes it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub jump: Option<String>,
    /// How root's work is done.
    #[serde(default)]
    pub r#become: BecomeChoice,
    /// What sudo asks for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub password: Option<Ask>,
    #[serde(default)]
    pub host_key: HostKeys,
}

shape::choices! {
    /// What makes machines with libvirt, as asked for.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
    EngineChoice {
        /// Vagrant where it is installed, else p1 itself.
        #[default]
        Auto = "auto",
        /// Vagrant.
        Vagrant = "vagrant",
        /// p1 itself.
        Direct = "direct",
    }
}

shape::choices! {
    /// Whose the pods' network is.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
    Cni {
        /// k3s' own.
        #[default]
        Flannel = "flannel",
        /// What the spec's manifests bring.
        None = "none",
    }
}

shape::choices! {
    /// Whose libvirt makes the machines.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
    LibvirtUri {
        /// The host's: root's daemon, for the group libvirt.
        #[default]
        System = "qemu:///system",
        /// This user's own.
        Session = "qemu:///session",
    }
}

/// Which libvirt makes the machines, and what with.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Libvirt {
    pub uri: LibvirtUri,
    /// The bridge that the machines are on, where p1 can make no network: with the user's own libvirt.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bridge: Option<String>,
}

impl Libvirt {
    /// Whether it is the user's own.
    pub fn is_session(&self) -> bool {
        self.uri == LibvirtUri::Session
    }

    fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

impl fmt::Display for Libvirt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.uri.word())?;
        self.bridge.as_ref().map_or(Ok(()), |bridge| write!(f, " on the bridge {bridge}"))
    }
}

impl EngineChoice {
    #[expect(clippy::trivially_copy_pass_by_ref, reason = "serde calls it so")]
    fn is_auto(&self) -> bool {
        *self == Self::Auto
    }
}

shape::choices! {
    /// Whether machines start from baked boxes, which have k3s' files already.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
    BakeChoice {
        /// One is baked where none fits.
        Auto = "auto",
        /// From one that is there.
        #[default]
        Existing = "existing",
        /// From none.
        Never = "never",
        /// The same in another word.
        Off = "off",
    }
}

impl BakeChoice {
    #[expect(clippy::trivially_copy_pass_by_ref, reason = "serde calls it so")]
    fn is_usual(&self) -> bool {
        *self == Self::Existing
    }
}

/// What the name of a cluster begins with that p1 makes for itself to bake a box in; a dot is in no cluster's name of a spec.
const BAKING: &str = "bake.";

impl Cluster {
    /// Its name of a cluster to bake boxes in.
    pub fn baking(id: &str) -> String {
        format!("{BAKING}{id}")
    }

    /// Whether a box is baked in it.
    pub fn bakes(&self) -> bool {
        self.name.starts_with(BAKING)
    }
}

/// What the machines start from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum BoxRef {
    /// A definition in `boxes/`, built here when it is missing.
    Definition(String),
    /// A box file on this host.
    Path(PathBuf),
    /// A box file somewhere else.
    Url {
        /// Where.
        url: String,
        /// Its checksum, 64 hex digits.
        sha256: String,
    },
}

/// The nodes' private network.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Network {
    /// Addresses; the first host address is the gateway's (the host's).
    pub cidr: Ipv4Net,
    /// How many network cards a VM gets on libvirt: one, on this network with NAT (the default),
    /// or two, the first one Vagrant's own. VirtualBox always has two.
    pub nics: u8,
}

impl Network {
    /// That of a cluster of machines that exist already: p1 makes none.
    pub fn none() -> Self {
        Self { cidr: Ipv4Net::new(Ipv4Addr::UNSPECIFIED, 32).expect("a network"), nics: 1 }
    }

    /// Whether there is none of p1's.
    pub fn is_none(&self) -> bool {
        self.cidr.prefix_len() == 32
    }

    /// The host's address in the network.
    pub fn gateway(&self) -> Ipv4Addr {
        self.cidr.hosts().next().unwrap_or(self.cidr.network())
    }
}

/// What a node is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Runs the control plane (and workloads).
    Server,
    /// Runs workloads; k3s calls it an agent.
    Worker,
    /// A machine without k3s.
    None,
}

impl Role {
    /// Whether its machine has k3s.
    pub fn has_k3s(self) -> bool {
        self != Self::None
    }

    /// The systemd unit that k3s' installer makes (`install.sh`, `SYSTEM_NAME`); no unit is called like that of a
    /// machine without k3s.
    pub fn unit(self) -> &'static str {
        match self {
            Self::Server => "k3s",
            Self::Worker => "k3s-agent",
            Self::None => "",
        }
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Server => "server",
            Self::Worker => "worker",
            Self::None => "none",
        })
    }
}

/// One machine.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Node {
    /// A DNS label, also its Node object's name, if it has one.
    pub name: String,
    /// What the machine calls itself, where that is not its name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hostname: Option<String>,
    /// What it is for.
    pub role: Role,
    /// Its address: in [`Network::cidr`], where its machine is p1's own.
    pub ip: Ipv4Addr,
    /// How its machine is reached, if it exists already and is not p1's own.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ssh: Option<Box<SshAccess>>,
    /// What its machine is to have; none where p1 does not say, as of a node that has left the spec.
    #[serde(flatten)]
    pub size: Option<Size>,
    /// How large its machine's disk is, GiB, if not as the box has it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub disk: Option<u32>,
    /// Its machine's other disks.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub disks: Vec<Disk>,
    /// k3s' `node-label`: `key=value`.
    pub labels: Vec<String>,
    /// k3s' `node-taint`: `key=value:Effect`.
    pub taints: Vec<String>,
    /// k3s' config for this node: the spec's `config`, then its role's, then its own; later wins.
    /// Without the keys that p1 itself sets.
    pub config: Yaml,
}

impl Node {
    /// One that the spec does not have, with what is known of it all the same.
    pub fn former(name: String, role: Role, ip: Ipv4Addr) -> Self {
        let (disks, labels, taints, config) = Default::default();
        let (hostname, ssh, size, disk) = Default::default();
        Self { name, hostname, role, ip, ssh, size, disk, disks, labels, taints, config }
    }
}

impl Node {
    /// What its machine calls itself.
    pub fn hostname(&self) -> &str {
        self.hostname.as_deref().unwrap_or(&self.name)
    }

    /// All that it is called: as its machine calls itself, the first label of that, and its name; each once whatever its
    /// case.
    pub fn names(&self) -> Vec<&str> {
        let hostname = self.hostname();
        let mut all: Vec<&str> = Vec::new();
        for name in [hostname, hostname.split('.').next().unwrap_or_default(), &self.name] {
            if !all.iter().any(|known| known.eq_ignore_ascii_case(name)) {
                all.push(name);
            }
        }
        all
    }
}

/// What a machine is given.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Size {
    /// Virtual processors.
    pub cpus: u32,
    /// MiB.
    pub memory: u32,
}

/// A disk of a machine beside the one with its system.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Disk {
    /// What the guest finds it by.
    pub serial: String,
    /// GiB.
    pub size: u32,
}

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let s = if self.cpus == 1 { "" } else { "s" };
        write!(f, "{} CPU{s} and {} MiB", self.cpus, self.memory)
    }
}

/// What runs on the nodes.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct K3s {
    /// A channel to be resolved, or a version.
    pub release: Release,
    /// An address of the user's choosing at which the API answers, whichever server runs.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub endpoint: Option<Endpoint>,
    /// Where the cluster's token is, if p1 is not to make one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub token: Option<TokenSource>,
    /// Variables of the environment of k3s and its containerd.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub env: BTreeMap<String, String>,
    /// `/etc/rancher/k3s/registries.yaml`, as it is.
    pub registries: Yaml,
    /// Where the files come from, if not from k3s' releases.
    pub artifacts: Artifacts,
}

/// Where a secret is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum TokenSource {
    /// In a file of this host.
    File(PathBuf),
    /// In a variable of p1's environment.
    Env(String),
}

/// Which k3s.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Release {
    /// `stable`, `latest`, `v1.34`.
    Channel(String),
    /// `v1.34.1+k3s1`.
    Version(String),
}

/// A name or an address, and a port.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Endpoint {
    /// A DNS name or an IPv4 address.
    pub host: String,
    /// 6443 unless it is given.
    pub port: u16,
}

/// Files given by the spec; what is `None` comes from the release.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Artifacts {
    pub binary: Option<Source>,
    pub installer: Option<Source>,
    /// Image archives for every node; empty: nodes pull from registries.
    pub images: Vec<Source>,
    /// A folder with all of it, in place of the others; absolute.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dir: Option<PathBuf>,
}

/// Where a file comes from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Source {
    /// A file on this host, absolute.
    Path(PathBuf),
    /// A file somewhere else.
    Url {
        /// Where.
        url: String,
        /// Its checksum, 64 hex digits; required, as nothing else vouches for the file.
        sha256: String,
    },
}

/// How `p1 verify` proves a cluster.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Verify {
    /// The image of its pods, if the spec names one.
    pub image: Option<String>,
}

impl Verify {
    fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

/// Bounds of the long waits.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Timeouts {
    /// From power-on to an address.
    pub boot: Duration,
    /// From an address to a login.
    pub ssh: Duration,
    pub install: Duration,
    /// From the start of a server's unit to an answering API.
    pub server_ready: Duration,
    /// From the start of a worker's unit, or a server's API, to a Ready node.
    pub node_ready: Duration,
    /// One download.
    pub download: Duration,
    /// A provisioner on one node.
    pub provision: Duration,
    /// From the applied manifests to running applications.
    pub rollout: Duration,
}

/// How often a step is tried when its error may pass.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Retry {
    /// In all.
    pub attempts: u32,
    /// Before the second; doubled each time.
    pub backoff: Duration,
    /// At most.
    pub max_backoff: Duration,
}

/// How nodes that run are restarted: servers one by one, then workers in batches.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Rollout {
    /// So many workers at a time.
    pub workers: u32,
    /// Move the pods off a node before its k3s is restarted. Default false.
    pub drain: bool,
}

impl Rollout {
    fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

impl Cluster {
    /// The node of that name.
    pub fn node(&self, name: &str) -> Option<&Node> {
        self.nodes.iter().find(|n| n.name == name)
    }

    /// The spec's commands for this host of that slot, in order.
    pub fn on_this_host(&self, slot: Slot) -> impl Iterator<Item = &Provisioner> {
        let of = move |p: &&Provisioner| p.kind == ProvisionType::Local && p.when == slot;
        self.provision.iter().filter(of)
    }

    /// Those that have k3s, in the spec's order: machines without it are no part of the cluster that k3s makes.
    pub fn members(&self) -> impl Iterator<Item = &Node> {
        self.nodes.iter().filter(|n| n.role.has_k3s())
    }

    /// Those that run the control plane, in the spec's order.
    pub fn servers(&self) -> impl Iterator<Item = &Node> {
        self.nodes.iter().filter(|n| n.role == Role::Server)
    }

    /// Those that run workloads alone, in the spec's order.
    pub fn workers(&self) -> impl Iterator<Item = &Node> {
        self.nodes.iter().filter(|n| n.role == Role::Worker)
    }

    /// The server that begins a new cluster. In one that runs, any other may do what it does.
    pub fn first_server(&self) -> &Node {
        self.servers().next().expect("a valid spec has a server")
    }

    /// Whether the cluster's state is in a datastore of the user's, which outlives the cluster.
    pub fn has_own_datastore(&self) -> bool {
        let value = self.first_server().config.get("datastore-endpoint");
        value.is_some_and(|v| !matches!(v, serde_yaml::Value::Bool(false) | serde_yaml::Value::Null))
    }

    /// The networks of pods and of services.
    pub fn networks(&self) -> Vec<String> {
        let of = |key, default| settings::words_of(Some(self.first_server()), key, default);
        [of("cluster-cidr", settings::PODS), of("service-cidr", settings::SERVICES)].concat()
    }

    /// Whether k3s leaves the pods' network to what the spec's manifests bring (`flannel-backend: none`).
    pub fn brings_network(&self) -> bool {
        self.first_server().config.get("flannel-backend").and_then(|v| v.as_str()) == Some("none")
    }

    /// Whether the servers keep the cluster's state in an etcd of their own: several do, unless they
    /// are given a datastore; one does if it is told to.
    pub fn has_etcd(&self) -> bool {
        let on = |key: &str| {
            let value = self.first_server().config.get(key).map(settings::plain).unwrap_or_default();
            !matches!(value.to_ascii_lowercase().as_str(), "" | "0" | "f" | "false")
        };
        !on("datastore-endpoint") && (self.servers().count() > 1 || on("cluster-init"))
    }
}
