//! The Vagrantfile, and the names that Vagrant and its providers give to things.

use std::net::Ipv4Addr;

use serde::Serialize;
use serde_json::json;
use sha2::{Digest, Sha256};

use crate::render;
use crate::spec::{Cluster, Node};

/// A box as Vagrant knows it. The name carries the checksum of the box file, so another file is
/// another box and nothing has to be replaced under running machines.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct BoxInfo {
    /// `p1/debian-12-0a1b2c3d4e5f`.
    pub name: String,
    /// Always the same, as the name tells boxes apart; Vagrant wants a real version to be quiet.
    pub version: String,
}

impl BoxInfo {
    /// For the box file with this checksum; `label` is for people.
    pub fn new(label: &str, sha256: &str) -> Self {
        let short = &sha256[..sha256.len().min(12)];
        Self { name: format!("p1/{label}-{short}"), version: "1.0.0".to_owned() }
    }

    /// The name of its folder in VAGRANT_HOME (`lib/vagrant/box_collection.rb`).
    pub fn folder(&self) -> String {
        self.name.replace('/', "-VAGRANTSLASH-")
    }

    /// The volume that vagrant-libvirt clones its machines' disks from
    /// (`lib/vagrant-libvirt/action/handle_box_image.rb`).
    pub fn volume(&self) -> String {
        format!("{}_vagrant_box_image_{}_box.img", self.folder(), self.version)
    }
}

/// How libvirt is to be used on this host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Libvirt {
    /// `qemu:///system`.
    pub uri: String,
    /// `kvm` or `qemu` (emulation).
    pub driver: String,
    /// `host-passthrough`, or `custom` with a model.
    pub cpu_mode: String,
    /// With `custom`.
    pub cpu_model: Option<String>,
    /// The storage pool.
    pub pool: String,
}

/// The name of a node's VM at its provider. vagrant-libvirt: `default_prefix` + name.
pub fn domain(cluster: &str, node: &str) -> String {
    format!("{}{node}", prefix(cluster))
}

fn prefix(cluster: &str) -> String {
    format!("p1-{cluster}-")
}

/// The name of the cluster's libvirt network.
pub fn network_name(cluster: &str) -> String {
    format!("p1-{cluster}")
}

/// A node's MAC address: made from cluster, node and address, so that it is known beforehand and
/// stays. 52:54:00 is QEMU's prefix.
pub fn mac(cluster: &str, node: &str, ip: Ipv4Addr) -> String {
    let hash = Sha256::digest(format!("{cluster}/{node}/{ip}"));
    format!("52:54:00:{:02x}:{:02x}:{:02x}", hash[0], hash[1], hash[2])
}

/// Everything the templates `Vagrantfile` and `network.xml` need.
pub fn values(
    cluster: &Cluster,
    provider: &str,
    libvirt: Option<&Libvirt>,
    box_info: &BoxInfo,
) -> serde_json::Value {
    let node = |n: &Node| {
        json!({
            "name": n.name, "ip": n.ip, "cpus": n.cpus, "memory": n.memory,
            "mac": mac(&cluster.name, &n.name, n.ip), "domain": domain(&cluster.name, &n.name),
        })
    };
    json!({
        "cluster": cluster.name,
        "provider": provider,
        "prefix": prefix(&cluster.name),
        "box": box_info,
        "boot_timeout": cluster.timeouts.boot.as_secs(),
        "ssh_user": "vagrant",
        "libvirt": libvirt,
        "nics": cluster.network.nics,
        "network": {
            "name": network_name(&cluster.name),
            "cidr": cluster.network.cidr,
            "gateway": cluster.network.gateway(),
            "netmask": cluster.network.cidr.netmask(),
        },
        "nodes": cluster.nodes.iter().map(node).collect::<Vec<_>>(),
    })
}

/// The cluster's Vagrantfile. `libvirt` is needed for that provider only.
pub fn vagrantfile(
    cluster: &Cluster,
    provider: &str,
    libvirt: Option<&Libvirt>,
    box_info: &BoxInfo,
) -> Result<String, render::Error> {
    render::render("Vagrantfile", &values(cluster, provider, libvirt, box_info))
}
