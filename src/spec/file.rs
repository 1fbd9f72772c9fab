//! The spec as it is written: every key there is, with its description.
//!
//! A new key is one line here, and what it means in [`super::resolve`].

use super::defaults::{BOX, CHANNEL, CIDR, NICS, RETRY, ROLLOUT, TIMEOUTS, written};
use super::environment::{Direct, Environment, ProxyUrl};
use super::report::Span;
use super::shape::{At, object};
use super::value::{
    Address, AnyPath, Argument, Bridge, Channel, Cidr, Config, Count, DiskEntry, FilePath, Flag, FolderPath,
    HostName, Hosts, Image, Jump, KeyPath, Labels, ManifestEntry, Map, Memory, Name, NamespaceEntry,
    Registries, Room, SshHost, Taints, Text, Time, User, Version,
};
use super::{
    Ask, BakeChoice, BecomeChoice, BoxRef, Cni, Endpoint, EngineChoice, HostKeys, LibvirtUri, ProviderChoice,
    ProvisionType, Repeat, Role, Slot, Source, TokenSource,
};

object! {
    /// A k3s cluster of virtual machines, as p1 makes it.
    File {
        /// The cluster's name: a DNS label. Machines, network and kubeconfig are named after it.
        required name: Name,
        /// What makes the machines; auto takes libvirt or VirtualBox, whichever works on this host. ssh: they exist already.
        optional provider: ProviderChoice = "auto",
        /// What drives libvirt: vagrant, or direct, which needs no Vagrant; auto takes Vagrant where it is installed.
        optional engine: EngineChoice = "auto",
        /// Which libvirt makes them, and what with.
        optional libvirt: LibvirtFile,
        /// What the machines start from: the name of a definition in boxes/, or a box file as
        /// {path: ..} or {url: .., sha256: ..}.
        optional r#box: BoxRef = BOX,
        /// The private network in which the nodes meet.
        optional network: NetworkFile,
        /// Fast disks that do not survive a power cut of this host, nor its crash: what the machines have
        /// written is safe only when they are shut down. For clusters that can be made again. On libvirt.
        optional disposable: Flag = false,
        /// Start network, machines and k3s with this host, without p1. On libvirt only.
        optional autostart: Flag = false,
        /// Keep the pristine cluster when `up` has succeeded: the next `up` of the same from nothing restores it, memory
        /// included, and `p1 reset` goes back to it. On libvirt only.
        optional keep: Flag = false,
        /// Boxes that have k3s' files already, so that machines start without copying and installing them: auto bakes one
        /// where none fits, existing takes one that is there, never (or off) takes none. On libvirt only.
        optional bake: BakeChoice = "existing",
        /// Keep the images that nodes pull on this host, and give them to new nodes of this cluster before k3s starts there:
        /// they pull nothing a second time.
        optional keep_images: Flag = true,
        /// Names beside the nodes' own that every node knows by its /etc/hosts: {registry.test: 10.11.0.4}.
        optional hosts: Hosts,
        /// How machines that exist already are reached, where a node's own `ssh` does not say otherwise.
        optional ssh: SshFile,
        /// The machines: an odd number of servers and any number of workers.
        required nodes: Vec<Option<At<NodeFile>>>,
        /// The proxy by which k3s and containerd reach what is outside; the cluster's own networks are left out of it.
        optional proxy: ProxyFile,
        /// What runs on them.
        optional k3s: K3sFile,
        /// Vagrant's provisioners, in the order in which they run on a node.
        optional provision: Vec<Option<At<ProvisionFile>>>,
        /// Namespaces that are made before anything is applied: names, or {name: .., labels: ..}.
        optional namespaces: Vec<Option<At<NamespaceEntry>>>,
        /// What is applied, in this order, when the nodes are Ready: files, directories of files,
        /// kustomizations; or {path: .., namespace: .., when: .., wait: ..}.
        optional manifests: Vec<Option<At<ManifestEntry>>>,
        /// How `p1 verify` proves the cluster.
        optional verify: VerifyFile,
        /// How long to wait for what, e.g. 90s, 5m or 1h30m.
        optional timeouts: TimeoutsFile,
        /// How often a step is tried when its error may pass.
        optional retry: RetryFile,
        /// How nodes that run are restarted when their settings or their version change: servers one by
        /// one, then workers in batches.
        optional rollout: RolloutFile,
    }
}

object! {
    /// How nodes that run are restarted when their settings or their version change.
    RolloutFile {
        /// So many workers at a time.
        optional workers: Count<1, 250> = ROLLOUT.workers,
        /// Move the pods off a node before its k3s is restarted, and let them back when it is Ready.
        optional drain: Flag = ROLLOUT.drain,
    }
}

object! {
    /// Which libvirt makes the machines, and what with.
    LibvirtFile {
        /// The system's, or this user's own, which needs no group and no rights of root but those to one bridge.
        optional uri: LibvirtUri = "qemu:///system",
        /// With qemu:///session: the bridge that the machines are on, which root has made and allowed to
        /// qemu-bridge-helper.
        optional bridge: Bridge,
    }
}

object! {
    /// The private network in which the nodes meet.
    NetworkFile {
        /// Its addresses; the first one is the host's, the gateway.
        optional cidr: Cidr = CIDR,
        /// Network cards per machine on libvirt: 1, or 2 with Vagrant's own first. VirtualBox always
        /// has 2.
        optional nics: Count<1, 2> = NICS,
    }
}

object! {
    /// How machines that exist already are reached; what is left out is what the user's `ssh_config` says.
    SshFile {
        /// A name or an address, or a name of the user's `ssh_config`. Default: the node's `ip`.
        optional host: SshHost,
        /// Who logs in.
        optional user: User,
        /// Where its SSH server listens.
        optional port: Count<1, 65535>,
        /// The private key that opens it. Default: those of the user's `ssh_config`, and of the agent.
        optional key: KeyPath,
        /// The host through which it is reached, as `ssh -J` takes it; several with commas, the nearest one first.
        optional jump: Jump,
        /// How that user becomes root, if it is not root.
        optional r#become: BecomeChoice = "sudo",
        /// What sudo asks for: {from: prompt}, or {from: NAME}, a variable of p1's environment. It is sent by standard input.
        optional sudo_password: Ask,
        /// pin: a host key that the user's known_hosts does not have is taken at the first contact and defended from then on;
        /// known: it has to be in there.
        optional host_key: HostKeys = "pin",
    }
}

object! {
    /// A machine, or several alike with count.
    NodeFile {
        /// A DNS label; with count, machines are called NAME-1, NAME-2, ...
        required name: Name,
        /// What the machine calls itself: a host name, its case kept, or a fully qualified one. Default: its name. With count:
        /// HOSTNAME-1, HOSTNAME-2, ...
        optional hostname: HostName,
        /// server runs the control plane; worker (k3s says agent) runs workloads only; none is a machine without k3s.
        optional role: Role = "worker",
        /// How many machines like this.
        optional count: Count<0, 250>,
        /// Its address; without it the next free one of the network. With count: the first one's.
        optional ip: Address,
        /// What makes this machine, where it is not what makes the others. ssh: it exists already.
        optional provider: ProviderChoice,
        /// How this machine, which exists already, is reached.
        optional ssh: SshFile,
        /// Its address for others, where that is not `ip`: k3s' node-external-ip.
        optional external_ip: Address,
        /// Virtual processors. Default: 2 for a server, 1 for a worker.
        optional cpus: Count<1, 256>,
        /// MiB, or a text with a unit such as 2GiB. Default: 2048 for a server, 1024 for a worker.
        optional memory: Memory,
        /// Its disk, with a unit: 40GiB. Its file system fills it. Default: as large as the box has it.
        optional disk: Room,
        /// Disks beside it, empty at first: sizes, or {size: 10GiB, serial: data}.
        optional disks: Vec<Option<At<DiskEntry>>>,
        /// Labels of its Node object: {key: value} or [key=value].
        optional labels: Labels,
        /// Taints of its Node object: key=value:Effect.
        optional taints: Taints,
        /// k3s settings for this machine alone, beyond those of k3s.
        optional config: Config,
    }
}

object! {
    /// The proxy by which k3s and containerd reach what is outside: HTTP_PROXY, HTTPS_PROXY and NO_PROXY of k3s.env.
    ProxyFile {
        /// For http; without https for that too.
        optional http: ProxyUrl,
        /// For https; without http for that too.
        optional https: ProxyUrl,
        /// Hosts, domains and networks that are reached without it, beside those of the cluster.
        optional no_proxy: Vec<Option<At<Direct>>>,
    }
}

object! {
    /// Which k3s, and how it is set up.
    K3sFile {
        /// A release channel: stable, latest, testing or a minor version such as v1.34.
        optional channel: Channel = CHANNEL,
        /// One release, e.g. v1.34.1+k3s1, instead of a channel.
        optional version: Version,
        /// A name or address of your own, with a port if it is not 6443, at which the API answers
        /// whichever server runs; it goes into the kubeconfig and into the servers' certificates.
        optional endpoint: Endpoint,
        /// The pods' network: flannel, k3s' own, or none, where the spec's manifests bring another.
        optional cni: Cni = "flannel",
        /// Settings of /etc/rancher/k3s/config.yaml for every node. Those that only a server knows go
        /// to the servers.
        optional config: Config,
        /// Settings for servers, beyond config.
        optional server_config: Config,
        /// Settings for workers, beyond config.
        optional worker_config: Config,
        /// The cluster's token, where p1 is not to make one: {file: ..}, private, or {env: ..}. For data that
        /// outlives the cluster, as in a datastore of your own.
        optional token: TokenSource,
        /// Variables of the environment of k3s and its containerd, on every node.
        optional env: Environment,
        /// /etc/rancher/k3s/registries.yaml as it is.
        optional registries: Registries,
        /// Files to take instead of downloading k3s' release.
        optional artifacts: ArtifactsFile,
    }
}

object! {
    /// Files to take instead of downloading k3s' release.
    ArtifactsFile {
        /// The k3s binary.
        optional binary: Source,
        /// The installer script, install.sh.
        optional installer: Source,
        /// A folder that p1 artifacts fetch wrote, relative to the folder of the spec; everything comes from there.
        optional dir: FolderPath,
        /// Image archives for every node.
        optional images: Vec<Option<At<Source>>>,
    }
}

object! {
    /// One of Vagrant's provisioners, as a step of its own on each node that it is for.
    ProvisionFile {
        /// A DNS label, also its name in Vagrant; the step is called provision-NAME.
        required name: Name,
        /// Which of Vagrant's provisioners; or local, a command on this host.
        required r#type: ProvisionType,
        /// before-k3s, which is the default: when the system is prepared; after-k3s: when the node is Ready; after-cluster:
        /// when all nodes are. For local: after-cluster, before-up, after-up (the default), before-destroy, after-destroy.
        optional when: Slot,
        /// once, which is the default: again when it or its files change; always: in every run.
        optional run: Repeat = "once",
        /// The machine is restarted after it, and waited for; where k3s runs its pods leave before.
        optional reboot: Flag = false,
        /// Names of nodes, or of a group with count, or roles. Default: all; with after-cluster the first server.
        optional nodes: Vec<Option<At<Text>>>,
        /// Files and directories whose change makes it due again, beside those that it names.
        optional watch: Vec<Option<At<AnyPath>>>,
        /// Every other setting that Vagrant knows for this type, by Vagrant's name.
        optional options: Map,
        /// shell, local: a script of this host.
        optional path: FilePath,
        /// shell, local: the script itself.
        optional inline: Text,
        /// shell, local: the script's arguments.
        optional args: Vec<Option<At<Argument>>>,
        /// shell, local: variables of its environment. They are not shown in lists of processes or logs.
        optional env: Map,
        /// shell: run by root, which is the default, or by the login user.
        optional privileged: Flag,
        /// file: a file or a directory of this host.
        optional source: AnyPath,
        /// file: where it goes on the node.
        optional destination: Text,
        /// ansible: the playbook. ansible_local: its path below provisioning_path, on the node.
        optional playbook: Text,
        /// ansible_local: the directory on the node with the playbook.
        optional provisioning_path: Text,
        /// ansible: an inventory instead of the one that Vagrant makes.
        optional inventory_path: AnyPath,
        /// ansible: variables.
        optional extra_vars: Map,
        /// ansible: hosts to which it is limited; the default is the node.
        optional limit: Text,
        /// ansible: groups of the inventory, {name: [node, ..]}.
        optional groups: Map,
        /// ansible: become root.
        optional r#become: Flag,
        /// puppet: the directory with the manifests.
        optional manifests_path: AnyPath,
        /// puppet: the manifest in it; Vagrant's default is default.pp.
        optional manifest_file: Text,
        /// puppet: the directory with the modules.
        optional module_path: AnyPath,
        /// puppet: facts.
        optional facter: Map,
        /// chef_solo, chef_zero: the directory with the cookbooks.
        optional cookbooks_path: AnyPath,
        /// chef_solo, chef_zero: the directory with the roles.
        optional roles_path: AnyPath,
        /// chef: what is run, such as recipe[apt] or role[web].
        optional run_list: Vec<Option<At<Text>>>,
        /// chef: recipes to be run, by name, after run_list.
        optional recipes: Vec<Option<At<Text>>>,
        /// chef: attributes.
        optional json: Map,
        /// chef_apply: the recipe itself.
        optional recipe: Text,
        /// salt: the minion's configuration, a file of this host.
        optional minion_config: FilePath,
        /// salt: run the highstate.
        optional run_highstate: Flag,
        /// salt: without a master.
        optional masterless: Flag,
    }
}

impl ProvisionFile {
    /// The keys that depend on its type, as far as they are there; without a place what was reported.
    pub fn given(&self) -> Vec<(&'static str, Option<Span>)> {
        macro_rules! given {
            ($($key:ident)*) => {
                [$((
                    super::shape::key(stringify!($key)),
                    !matches!(self.$key, super::shape::Field::Missing),
                    self.$key.get().map(|v| v.at),
                )),*]
            };
        }
        let all = given!(options path inline args env privileged source destination playbook provisioning_path
            inventory_path extra_vars limit groups r#become manifests_path manifest_file module_path facter
            cookbooks_path roles_path run_list recipes json recipe minion_config run_highstate masterless);
        all.into_iter().filter(|(_, there, _)| *there).map(|(key, _, at)| (key, at)).collect()
    }
}

object! {
    /// How `p1 verify` proves the cluster.
    VerifyFile {
        /// The image of its pods, with busybox in it; without it one that k3s brings along.
        optional image: Image,
    }
}

object! {
    /// How long to wait for what, e.g. 90s, 5m or 1h30m.
    TimeoutsFile {
        /// From power-on to an address.
        optional boot: Time = written(TIMEOUTS.boot),
        /// From an address to a login.
        optional ssh: Time = written(TIMEOUTS.ssh),
        /// The installer.
        optional install: Time = written(TIMEOUTS.install),
        /// From the start of the server to an answering API.
        optional server_ready: Time = written(TIMEOUTS.server_ready),
        /// From the start of a node's k3s to a Ready node.
        optional node_ready: Time = written(TIMEOUTS.node_ready),
        /// One download.
        optional download: Time = written(TIMEOUTS.download),
        /// A provisioner on one node.
        optional provision: Time = written(TIMEOUTS.provision),
        /// From the applied manifests to running applications.
        optional rollout: Time = written(TIMEOUTS.rollout),
    }
}

object! {
    /// How often a step is tried when its error may pass.
    RetryFile {
        /// In all.
        optional attempts: Count<1, 20> = RETRY.attempts,
        /// The pause before the second attempt; it doubles each time.
        optional backoff: Time = written(RETRY.backoff),
        /// The longest pause.
        optional max_backoff: Time = written(RETRY.max_backoff),
    }
}
