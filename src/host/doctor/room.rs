//! Memory, processors and disks against what the spec asks for.

use super::{Finding, Question, Status};
use crate::host::facts::Host;
use crate::host::libvirt::Link;
use crate::machines::Kind;

/// What QEMU itself takes per VM, in MiB (seen: 60 to 120 under emulation, which caches translated
/// code besides).
const OVERHEAD: u64 = 120;
/// What a VM's disk grows to with k3s and its images, in MiB.
const DISK: u64 = 3 * 1024;
/// The base image, in MiB.
const BASE: u64 = 1024;
/// State, logs and downloads, in MiB.
const STATE: u64 = 1024;

pub(super) fn checks(host: &Host, question: &Question<'_>) -> Vec<Finding> {
    let mut findings = Vec::new();
    let images = match (&host.libvirt.link, &host.libvirt.pool) {
        _ if question.kind == Kind::Virtualbox => host.free_state,
        // libvirt counts blocks that are reserved for root as well, and QEMU does not run as root.
        (Link::Up, Some(pool)) => [pool.free, host.free_images].into_iter().flatten().min(),
        _ => host.free_images,
    };
    let mut new = 0;
    if question.kind == Kind::Ssh {
        return host.free_state.map(|free| disk("state", "disk for p1", free, STATE)).into_iter().collect();
    }
    if let Some(cluster) = question.cluster {
        let made = || cluster.nodes.iter().filter(|n| n.ssh.is_none());
        let stopped = || made().filter(|n| !question.running.contains(&n.name));
        new = stopped().count() as u64;
        let asked: u64 = stopped().filter_map(|n| n.size).map(|size| u64::from(size.memory) + OVERHEAD).sum();
        findings.push(memory(host, asked, new));
        let cpus_of = || cluster.nodes.iter().filter_map(|n| n.size).map(|size| size.cpus);
        let (largest, sum) = (cpus_of().max().unwrap_or(0), cpus_of().sum());
        findings.push(cpus(host, largest, sum));
    }
    findings.extend(images.map(|free| disk("disk", "disk for VMs", free, BASE + new * DISK)));
    findings.extend(host.free_state.map(|free| disk("state", "disk for p1", free, STATE)));
    findings
}

fn memory(host: &Host, asked: u64, new: u64) -> Finding {
    let (total, available) = (host.memory.total, host.memory.available);
    let finding = |status, detail| Finding::new("memory", "memory", status, detail);
    let detail = format!("{new} VMs to be started need {}, {} are free", size(asked), size(available));
    let detail = if new == 1 {
        detail.replacen("1 VMs to be started need", "1 VM to be started needs", 1)
    } else {
        detail
    };
    let advice = "Give the nodes less memory in the spec, have fewer of them, or end other programs.";
    if new == 0 {
        finding(Status::Ok, format!("all VMs run, {} are free", size(available)))
    } else if total > 0 && asked > total {
        finding(Status::Problem, format!("{detail}, and the host has {} in all", size(total)))
            .remedy(advice, [])
    } else if asked > available {
        finding(Status::Warning, format!("{detail}; the host will swap or VMs will be killed"))
            .remedy(advice, [])
    } else {
        finding(Status::Ok, detail)
    }
}

fn cpus(host: &Host, largest: u32, sum: u32) -> Finding {
    let finding = |status, detail| Finding::new("cpus", "processors", status, detail);
    if largest > host.cpus {
        finding(
            Status::Warning,
            format!("a node has {largest} and the host has {}; it works, slowly", host.cpus),
        )
        .remedy("Give the node no more processors than the host has.", [])
    } else if sum > 2 * host.cpus {
        finding(Status::Warning, format!("the nodes have {sum} in all and the host has {}", host.cpus))
            .remedy("Expect long waits when all nodes work at once, or give them less.", [])
    } else {
        finding(Status::Ok, format!("the nodes have {sum} in all, the host has {}", host.cpus))
    }
}

fn disk(id: &'static str, title: &str, free: u64, asked: u64) -> Finding {
    let detail = format!("{} are free", size(free));
    let (status, detail) = if free < asked / 4 {
        (Status::Problem, format!("only {detail}, {} are needed", size(asked)))
    } else if free < asked {
        (Status::Warning, format!("only {detail}, {} may be needed", size(asked)))
    } else {
        return Finding::new(id, title, Status::Ok, detail);
    };
    Finding::new(id, title, status, detail)
        .remedy("Free some space; `p1 box list` shows what boxes take.", [])
}

/// MiB as people write them.
fn size(mib: u64) -> String {
    if mib < 1024 { format!("{mib} MiB") } else { format!("{:.1} GiB", mib as f64 / 1024.0) }
}
