//! The Vagrantfile, and the names that Vagrant and its providers give to things.

use std::time::Duration;

use serde::Serialize;
use serde_json::json;

use crate::machines::{BoxInfo, disk_cache, machine_name, machine_prefix, network_name, node_mac};
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
            "name": n.name, "ip": n.ip, "cpus": n.size.map(|s| s.cpus), "memory": n.size.map(|s| s.memory),
            "mac": node_mac(cluster.macs(), &n.name, n.ip), "domain": machine_name(&cluster.name, &n.name),
            "provision": cluster.provision.iter().filter(|p| p.nodes.contains(&n.name)).map(provisioner)
                .collect::<Vec<_>>(),
        })
    };
    json!({
        "rendered": false,
        "cluster": cluster.name,
        "provider": provider,
        "prefix": machine_prefix(&cluster.name),
        "box": {"name": box_info.name, "version": box_info.version},
        // Later than p1, which says more about a machine that does not come.
        "boot_timeout": (cluster.timeouts.boot + Duration::from_secs(10)).as_secs(),
        "ssh_user": super::USER,
        "libvirt": libvirt,
        "disposable": cluster.disposable,
        "disk_cache": disk_cache(cluster.disposable),
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
    if one.kind.is_ansible() {
        // Vagrant asks `ansible --version`, which may be another program than the `ansible-playbook` that it
        // runs, and takes an answer that it does not understand for Ansible 1.8
        // (`plugins/provisioners/ansible/provisioner/base.rb`).
        settings.entry("compatibility_mode").or_insert("2.0".into());
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

/// The same to be read, in a folder where nothing of the cluster is.
pub fn readable(
    cluster: &Cluster,
    provider: &str,
    libvirt: Option<&Libvirt>,
    box_info: &BoxInfo,
) -> Result<String, render::Error> {
    let mut values = values(cluster, provider, libvirt, box_info);
    values["rendered"] = true.into();
    render::render("Vagrantfile", &values)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::fixture::named as cluster;
    use crate::spec::{ProvisionType, Slot};

    fn ansible(name: &str, kind: ProvisionType, settings: serde_json::Value) -> Provisioner {
        Provisioner {
            name: name.to_owned(),
            kind,
            when: Slot::AfterK3s,
            always: false,
            reboot: false,
            nodes: vec!["server".to_owned()],
            settings: settings.as_object().cloned().unwrap_or_default(),
            by_vagrant: true,
            inputs: Vec::new(),
        }
    }

    #[test]
    fn ansible_is_not_taken_for_1_8_where_its_version_cannot_be_told() {
        let mut cluster = cluster("c", "10.0.0.0/24", &["server"]);
        cluster.provision = vec![
            ansible("host", ProvisionType::Ansible, json!({"playbook": "a.yml"})),
            ansible("local", ProvisionType::AnsibleLocal, json!({"playbook": "b.yml"})),
            ansible("own", ProvisionType::Ansible, json!({"compatibility_mode": "auto"})),
            ansible("salt", ProvisionType::Salt, json!({})),
        ];
        let digest = cluster.provision[0].portable(&cluster.base);
        let info = BoxInfo { name: "b".into(), version: "0".into(), image: "".into() };
        let text = vagrantfile(&cluster, "virtualbox", None, &info).unwrap();
        let modes: Vec<&str> = text
            .split("node.vm.provision")
            .skip(1)
            .map(|part| {
                let value = part.split("'compatibility_mode': ").nth(1).unwrap_or("none");
                value.lines().next().unwrap_or_default()
            })
            .collect();
        assert_eq!(modes, ["'2.0'", "'2.0'", "'auto'", "none"], "{text}");
        // What it was run with before is what it is run with now: it is not due again for this.
        assert!(!digest.to_string().contains("compatibility_mode"));
    }
}
