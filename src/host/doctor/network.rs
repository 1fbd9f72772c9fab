//! Whether the cluster's addresses are free on this host.

use ipnet::Ipv4Net;

use super::{Finding, Status};
use crate::host::facts::Host;
use crate::host::libvirt::Link;
use crate::machines::{Kind, network_name};
use crate::spec::Cluster;

const ID: &str = "addresses";
const TITLE: &str = "addresses";

pub(super) fn checks(host: &Host, cluster: &Cluster, kind: Kind) -> Vec<Finding> {
    if cluster.fork.is_some() {
        return vec![Finding::new(ID, TITLE, Status::Ok, "those of its original, in a network of its own")];
    }
    let cidr = cluster.network.cidr.trunc();
    let mut findings = Vec::new();
    let mut found = |status, detail: String, remedy: String| {
        findings.push(Finding::new(ID, TITLE, status, detail).remedy(remedy, []));
    };
    let ours = network_name(&cluster.name);
    let uri = host.libvirt.uri.word();
    let another = "Choose another `network.cidr` in the spec.";

    for network in &host.libvirt.networks {
        let Some(other) = network.cidr else { continue };
        if network.name == ours && other != cidr && kind == Kind::Libvirt {
            found(
                Status::Problem,
                format!("libvirt's network {ours} has {other}, the spec says {cidr}"),
                format!(
                    "Run `p1 destroy` before you change a cluster's network. If nothing uses it any more: \
                     virsh -c {uri} net-destroy {ours}; virsh -c {uri} net-undefine {ours}"
                ),
            );
        } else if network.name != ours && overlap(other, cidr) {
            let state = if network.active { "" } else { " (not started)" };
            found(
                Status::Problem,
                format!("libvirt's network {}{state} has {other}, which overlaps {cidr}", network.name),
                another.to_owned(),
            );
        }
    }
    // Bridges were told of above, or are told of by themselves; what VirtualBox has made for such a network, Vagrant takes over.
    let told = |device: &str| {
        host.bridge.as_ref().is_some_and(|b| b.name == device)
            || host.libvirt.networks.iter().any(|n| n.bridge.as_deref() == Some(device))
    };
    let reused =
        |device: &str, net: Ipv4Net| kind == Kind::Virtualbox && device.starts_with("vboxnet") && net == cidr;
    let mut devices = Vec::new();
    for route in &host.routes {
        let (net, device) = (route.net.trunc(), route.device.as_str());
        if !overlap(net, cidr) || told(device) || reused(device, net) {
            continue;
        }
        devices.push(device);
        if net.prefix_len() < cidr.prefix_len()
            && !host.addresses.iter().any(|a| a.device == device && cidr.contains(&a.address.addr()))
        {
            found(
                Status::Warning,
                format!(
                    "the host reaches {net} through {device}; the part {cidr} of it would be hidden by the cluster"
                ),
                format!("{another} Keep it if nothing behind {device} has such an address."),
            );
        } else {
            found(
                Status::Problem,
                format!("the host has a route to {net} through {device}, which overlaps {cidr}"),
                another.to_owned(),
            );
        }
    }
    for address in &host.addresses {
        let device = address.device.as_str();
        if cidr.contains(&address.address.addr())
            && !told(device)
            && !devices.contains(&device)
            && !reused(device, address.address.trunc())
        {
            found(
                Status::Problem,
                format!(
                    "the host has the address {} at {device}, which lies in {cidr}",
                    address.address.addr()
                ),
                another.to_owned(),
            );
        }
    }
    if findings.is_empty() {
        findings.push(Finding::new(ID, TITLE, Status::Ok, format!("{cidr} is free")));
    }
    findings
}

/// Machines that run, and their network does not: they cannot be reached.
pub(super) fn link(host: &Host, cluster: &Cluster, kind: Kind, running: &[String]) -> Option<Finding> {
    if kind != Kind::Libvirt || host.bridge.is_some() || running.is_empty() || host.libvirt.link != Link::Up {
        return None;
    }
    let ours = network_name(&cluster.name);
    let how = match host.libvirt.networks.iter().find(|n| n.name == ours) {
        Some(network) if network.active => return None,
        Some(_) => "is not started",
        None => "is not there",
    };
    let detail = format!("libvirt's network {ours} {how}, and {} cannot be reached", running.join(", "));
    let finding = Finding::new("network", "the cluster's network", Status::Warning, detail);
    Some(finding.remedy("`p1 up` fixes it and connects the machines.", []))
}

fn overlap(a: Ipv4Net, b: Ipv4Net) -> bool {
    a.contains(&b.network()) || b.contains(&a.network())
}
