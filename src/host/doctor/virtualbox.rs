//! VirtualBox.

use semver::Version;

use super::{Finding, Status};
use crate::host::facts::Host;
use crate::host::fix::{Stage, Step};
use crate::host::kvm::Kvm;
use crate::machines::virtualbox::{NETWORKS_CONF, conf_line, is_allowed};
use crate::os::process::quote;
use crate::spec::Cluster;

/// The series that Vagrant 2.3 drives (`plugins/providers/virtualbox/driver/`).
const OLDEST: Version = Version::new(6, 0, 0);
/// Since when host-only networks are confined to ranges (vagrant, `HOSTONLY_VALIDATE_VERSION`).
const RANGES: Version = Version::new(6, 1, 28);

pub(super) fn checks(host: &Host, cluster: Option<&Cluster>) -> Vec<Finding> {
    let finding = |status, detail: String| Finding::new("virtualbox", "VirtualBox", status, detail);
    let Some(vbox) = &host.virtualbox else {
        // No steps: Debian has no package, and Ubuntu's comes with a kernel module to be built.
        return vec![finding(Status::Problem, "not installed".to_owned()).remedy(
            "Install it from https://www.virtualbox.org/wiki/Linux_Downloads, or set `provider: libvirt`.",
            [],
        )];
    };
    let mut findings = vec![match (&vbox.fault, &vbox.version) {
        (Some(fault), _) => finding(Status::Problem, fault.clone())
            .remedy("Run `/sbin/vboxconfig` as root, which builds and loads its kernel modules.", []),
        (None, Some(v)) if *v < OLDEST => {
            finding(Status::Problem, format!("{v} is too old; Vagrant needs {OLDEST} or later"))
                .remedy("Install a newer one from https://www.virtualbox.org/wiki/Linux_Downloads.", [])
        }
        (None, Some(v)) => finding(Status::Ok, v.to_string()),
        (None, None) => finding(Status::Note, "of an unknown version".to_owned()),
    }];
    if let Kvm::Missing { why } | Kvm::Decoy { why } = host.kvm.verdict()
        && !host.kvm.flags
    {
        findings.push(
            Finding::new("kvm", "hardware virtualisation", Status::Problem, format!("{why}; VirtualBox needs it for 64-bit guests"))
                .remedy("Switch virtualisation on in the firmware (VT-x, AMD-V), or use `provider: libvirt`, which can emulate.", []),
        );
    }
    let confined = vbox.version.as_ref().is_none_or(|v| *v >= RANGES);
    if let Some(cluster) = cluster.filter(|_| confined) {
        findings.push(range(cluster, &vbox.ranges));
    }
    findings
}

fn range(cluster: &Cluster, allowed: &[ipnet::Ipv4Net]) -> Finding {
    let cidr = cluster.network.cidr;
    let title = "VirtualBox' address ranges";
    if is_allowed(cidr, allowed) {
        return Finding::new("ranges", title, Status::Ok, format!("{cidr} is allowed"));
    }
    let ranges: Vec<String> = allowed.iter().map(ToString::to_string).collect();
    let line = conf_line(cidr);
    Finding::new(
        "ranges",
        title,
        Status::Problem,
        format!("{cidr} is not allowed for host-only networks; allowed: {}", if ranges.is_empty() { "none".to_owned() } else { ranges.join(", ") }),
    )
    .remedy(
        format!("Add the line `{line}` to {NETWORKS_CONF}, or choose a network in an allowed range."),
        [Step::root(
            Stage::Configure,
            "allow the network in VirtualBox",
            // The file replaces the default range, on which other projects may rely.
            format!("{{ mkdir -p /etc/vbox && {{ [ -e {NETWORKS_CONF} ] || echo '* 192.168.56.0/21' >{NETWORKS_CONF}; }} && echo {} >>{NETWORKS_CONF}; }}", quote(&line)),
        )],
    )
}
