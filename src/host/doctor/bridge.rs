//! The bridge that machines of a user's own libvirt are on. All of it is root's: nothing of it is p1's to change, `--fix`
//! included.

use super::{Finding, Status};
use crate::host::bridge::{Allowed, BridgeFacts, LIST};
use crate::host::facts::Host;
use crate::machines::node_mac;
use crate::spec::Cluster;

pub(super) fn checks(host: &Host, cluster: Option<&Cluster>) -> Vec<Finding> {
    let Some(bridge) = &host.bridge else { return Vec::new() };
    let mut findings = vec![device(host, bridge, cluster)];
    findings.extend([helper(host, bridge), list(host, bridge)]);
    findings
}

fn device(host: &Host, bridge: &BridgeFacts, cluster: Option<&Cluster>) -> Finding {
    let name = &bridge.name;
    let finding = |status, detail: String| Finding::new("bridge", "bridge", status, detail);
    let problem = |detail, remedy: String| finding(Status::Problem, detail).remedy(remedy, []);
    let up = format!("ip link set {name} up");
    let network = cluster.map(|c| &c.network);
    let give = network.map(|n| format!("ip address add {}/{} dev {name}", n.gateway(), n.cidr.prefix_len()));
    if bridge.there.is_none() {
        let remedy = "Name a bridge as `libvirt.bridge` in the spec.".to_owned();
        return problem(format!("{name} is a network interface and no bridge"), remedy);
    }
    if bridge.there == Some(false) {
        // Without an address of its own it has that of one of its machines, another one as they come and go, and those that
        // are resumed look for the one that they knew.
        let mac =
            network.map(|n| format!(" address {}", node_mac("", name, n.gateway()))).unwrap_or_default();
        let all = [Some(format!("ip link add {name}{mac} type bridge")), give, Some(up)];
        let all: Vec<String> = all.into_iter().flatten().collect();
        return problem(format!("there is no bridge {name}"), format!("As root: {}", all.join(" && ")));
    }
    let Some(network) = network else { return finding(Status::Ok, format!("{name} is there")) };
    let ours = host.addresses.iter().filter(|a| a.device == *name).map(|a| a.address.addr());
    let Some(address) = ours.into_iter().find(|a| network.cidr.contains(a)) else {
        let (detail, give) = (format!("{name} has no address of {}", network.cidr), give.unwrap_or_default());
        return problem(detail, format!("As root: {give} && {up}"));
    };
    if !bridge.up {
        return problem(format!("{name} is not up"), format!("As root: {up}"));
    }
    if let Some(node) = cluster.into_iter().flat_map(|c| &c.nodes).find(|n| n.ip == address) {
        return problem(
            format!("this host has {address} at {name}, which is the address of `{}`", node.name),
            "Give the node another `ip` in the spec.".to_owned(),
        );
    }
    let detail = format!("{name} is up, this host is {address} there");
    if address == network.gateway() {
        return finding(Status::Ok, detail);
    }
    // On a bridge to other hosts that is a router.
    let gateway = network.gateway();
    finding(Status::Note, format!("{detail}; the nodes' gateway is {gateway}, the first of {}", network.cidr))
}

fn helper(host: &Host, bridge: &BridgeFacts) -> Finding {
    let finding =
        |status, detail: String| Finding::new("bridge-helper", "qemu-bridge-helper", status, detail);
    let Some(path) = &bridge.helper else {
        let package = if host.distro.is_fedora_like() { "qemu-common" } else { "qemu-system-common" };
        return finding(Status::Problem, "not installed".to_owned())
            .remedy(format!("Install the package {package}."), []);
    };
    let shown = path.display();
    if bridge.helper_may {
        return finding(Status::Ok, format!("{shown} is setuid"));
    }
    let quoted = crate::os::process::quote_os(path.as_os_str());
    let line = match host.distro.is_debian_like() {
        // So that the next version of the package has it too.
        true => format!("dpkg-statoverride --update --add root root 4755 {quoted}"),
        false => format!("chmod u+s {quoted}"),
    };
    finding(Status::Problem, format!("{shown} is not setuid, and no user gets a card on a bridge from it"))
        .remedy(format!("As root: {line}"), [])
}

fn list(host: &Host, bridge: &BridgeFacts) -> Finding {
    let name = &bridge.name;
    let finding =
        |status, detail: String| Finding::new("bridge-allowed", "use of the bridge", status, detail);
    let allow = format!("mkdir -p /etc/qemu && echo 'allow {name}' >>{LIST}");
    match bridge.allowed {
        Allowed::Yes => finding(Status::Ok, format!("{LIST} allows {name}")),
        Allowed::No => finding(Status::Problem, format!("{LIST} does not allow {name}")).remedy(
            format!("As root, for all users of this host: {allow} && chmod 0644 {LIST}"),
            [],
        ),
        Allowed::Unknown => finding(Status::Warning, format!("{} may not read {LIST}", host.user.name)).remedy(
            format!(
                "See as root that it, or what it includes, has `allow {name}`, and that this user may read that file: \
                 the helper reads it as this user."
            ),
            [],
        ),
    }
}
