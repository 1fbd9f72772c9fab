//! The spec as it is written: every key there is, with its description.
//!
//! A new key is one line here, and what it means in [`super::resolve`].

use super::shape::{At, object};
use super::value::{Address, Channel, Cidr, Config, Count, Labels, Map, Memory, Name, Taints, Time, Version};
use super::{BoxRef, ProviderChoice, Role, Source};

object! {
    /// A k3s cluster of virtual machines, as p1 makes it.
    File {
        /// The cluster's name: a DNS label. Machines, network and kubeconfig are named after it.
        required name: Name,
        /// What makes the machines; auto takes libvirt or VirtualBox, whichever works on this host.
        optional provider: ProviderChoice = "auto",
        /// What the machines start from: the name of a definition in boxes/, or a box file as
        /// {path: ..} or {url: .., sha256: ..}.
        optional r#box: BoxRef = "debian-12",
        /// The private network in which the nodes meet.
        optional network: NetworkFile,
        /// The machines: exactly one server and any number of workers.
        required nodes: Vec<Option<At<NodeFile>>>,
        /// What runs on them.
        optional k3s: K3sFile,
        /// How long to wait for what, e.g. 90s, 5m or 1h30m.
        optional timeouts: TimeoutsFile,
        /// How often a step is tried when its error may pass.
        optional retry: RetryFile,
    }
}

object! {
    /// The private network in which the nodes meet.
    NetworkFile {
        /// Its addresses; the first one is the host's, the gateway.
        optional cidr: Cidr = "192.168.56.0/24",
        /// Network cards per machine on libvirt: 1, or 2 with Vagrant's own first. VirtualBox always
        /// has 2.
        optional nics: Count<1, 2> = 1,
    }
}

object! {
    /// A machine, or several alike with count.
    NodeFile {
        /// A DNS label, also the hostname; with count, machines are called NAME-1, NAME-2, ...
        required name: Name,
        /// server runs the control plane; worker (k3s says agent) runs workloads only.
        optional role: Role = "worker",
        /// How many machines like this.
        optional count: Count<0, 250>,
        /// Its address; without it the next free one of the network. With count: the first one's.
        optional ip: Address,
        /// Virtual processors. Default: 2 for a server, 1 for a worker.
        optional cpus: Count<1, 256>,
        /// MiB, or a text with a unit such as 2GiB. Default: 2048 for a server, 1024 for a worker.
        optional memory: Memory,
        /// Labels of its Node object, set when it joins: {key: value} or [key=value].
        optional labels: Labels,
        /// Taints of its Node object, set when it joins: key=value:Effect.
        optional taints: Taints,
        /// k3s settings for this machine alone, beyond those of k3s.
        optional config: Config,
    }
}

object! {
    /// Which k3s, and how it is set up.
    K3sFile {
        /// A release channel: stable, latest, testing or a minor version such as v1.34.
        optional channel: Channel = "stable",
        /// One release, e.g. v1.34.1+k3s1, instead of a channel.
        optional version: Version,
        /// Settings of /etc/rancher/k3s/config.yaml for every node. Those that only a server knows go
        /// to the servers.
        optional config: Config,
        /// Settings for servers, beyond config.
        optional server_config: Config,
        /// Settings for workers, beyond config.
        optional worker_config: Config,
        /// /etc/rancher/k3s/registries.yaml as it is.
        optional registries: Map,
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
        /// Image archives for every node.
        optional images: Vec<Option<At<Source>>>,
    }
}

object! {
    /// How long to wait for what, e.g. 90s, 5m or 1h30m.
    TimeoutsFile {
        /// From power-on to an address.
        optional boot: Time = "5m",
        /// From an address to a login.
        optional ssh: Time = "2m",
        /// The installer.
        optional install: Time = "5m",
        /// From the start of the server to an answering API.
        optional server_ready: Time = "5m",
        /// From the start of a node's k3s to a Ready node.
        optional node_ready: Time = "3m",
        /// One download.
        optional download: Time = "10m",
    }
}

object! {
    /// How often a step is tried when its error may pass.
    RetryFile {
        /// In all.
        optional attempts: Count<1, 20> = 3,
        /// The pause before the second attempt; it doubles each time.
        optional backoff: Time = "2s",
        /// The longest pause.
        optional max_backoff: Time = "30s",
    }
}
