//! The Vagrantfile, and the names that Vagrant and its providers give to things.

use std::time::Duration;

use serde::Serialize;
use serde_json::json;

use crate::providers::{BoxInfo, machine_name, machine_prefix, network_name, node_mac};
use crate::render;
use crate::spec::{Cluster, Node, Provisioner};

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

/// Everything the template `Vagrantfile` needs.
pub fn values(
    cluster: &Cluster,
    provider: &str,
    libvirt: Option<&Libvirt>,
    box_info: &BoxInfo,
) -> serde_json::Value {
    let node = |n: &Node| {
        json!({
            "name": n.name, "ip": n.ip, "cpus": n.cpus, "memory": n.memory,
            "mac": node_mac(&cluster.name, &n.name, n.ip), "domain": machine_name(&cluster.name, &n.name),
            "provision": cluster.provision.iter().filter(|p| p.nodes.contains(&n.name)).map(provisioner)
                .collect::<Vec<_>>(),
        })
    };
    json!({
        "cluster": cluster.name,
        "provider": provider,
        "prefix": machine_prefix(&cluster.name),
        "box": {"name": box_info.name, "version": box_info.version},
        // Later than p1, which says more about a machine that does not come.
        "boot_timeout": (cluster.timeouts.boot + Duration::from_secs(10)).as_secs(),
        "ssh_user": super::USER,
        "libvirt": libvirt,
        "asks_guest": cluster.provision.iter().any(|p| p.kind.asks_guest()),
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

fn provisioner(one: &Provisioner) -> serde_json::Value {
    let mut settings = one.settings.clone();
    if one.kind.shares() {
        // The others need more of the host (NFS) or of the guest (9p, guest additions).
        settings.entry("synced_folder_type").or_insert("rsync".into());
    }
    let settings: Vec<_> = settings.iter().map(|(k, v)| json!({"key": k, "value": v})).collect();
    json!({"name": one.name, "type": one.kind.name(), "shares": one.kind.shares(), "settings": settings})
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
