//! What keeps k3s from running on machines that exist already, told of all of them before anything is changed there. Pure.

use std::collections::BTreeMap;

use super::ways::{closed, needs, ports, reached_at};
use super::{View, found};
use crate::guest::{self, Ground, NodeFacts, Peer, Protocol, Reached};
use crate::k3s::{Arch, Version};
use crate::spec::{Node, Slot};

/// Something that was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    pub node: String,
    /// k3s would not run, or nodes would not find each other.
    pub problem: bool,
    /// A fragment.
    pub what: String,
    /// Full sentences.
    pub remedy: String,
}

/// Since this version a kubelet does not start on cgroup v1 unless it is told to (Kubernetes 1.35, KEP-5573).
const NO_OLD_CGROUP: &str = "v1.35.0";
/// A node's clock may be off by so many seconds: certificates made on one are used on another.
pub const SKEW: i64 = 10;

/// A node's machine that exists already, and has no k3s of this cluster's yet: p1 notes there whose it has put on it.
pub fn is_new(view: &View<'_>, node: &Node) -> bool {
    let Some(facts) = view.seen.nodes.get(&node.name) else { return false };
    let ours = view.seen.here.mark.as_ref().is_some_and(|mark| facts.stamps.get("cluster") == Some(mark));
    node.ssh.is_some() && !view.seen.joined.contains(&node.name) && !ours
}

/// What p1 gives its own machines, and these have to have: the address and the time. With what to do about it.
pub fn unfit(facts: &NodeFacts, node: &Node) -> Vec<(String, String)> {
    let mut all = Vec::new();
    if facts.interface_of(node.ip).is_none() {
        let own = facts.addresses.iter().filter(|(iface, _)| iface != "lo");
        let has: Vec<String> = own.map(|(iface, ip)| format!("{ip} ({iface})")).collect();
        let has = if has.is_empty() { "none".to_owned() } else { has.join(", ") };
        let remedy = format!(
            "Write one of its own as `ip`. If {0} is what a NAT in front of it is called by, the other nodes reach it there: \
             `external_ip: {0}`, and `flannel-external-ip: true` in `k3s: server_config`.",
            node.ip
        );
        all.push((format!("it does not have the address {}; it has {has}", node.ip), remedy));
    }
    if facts.ahead.abs() > SKEW {
        let remedy = "Certificates made by one clock are checked by another. Set it, and have it kept right: `timedatectl \
                      set-ntp true`.";
        all.push((format!("its clock is {} s off", facts.ahead), remedy.to_owned()));
    }
    all
}

/// Where SELinux is enforced its rules for k3s have to be there before k3s is: what is wrong, and what to do about it. It is never
/// switched off.
pub fn policy(facts: &NodeFacts) -> Option<(&'static str, &'static str)> {
    let lacks = facts.selinux && !facts.selinux_policy;
    lacks.then_some((
        "SELinux is enforced, and its rules for k3s are not there",
        "Install the packages container-selinux and k3s-selinux (github.com/k3s-io/k3s-selinux/releases), or have a provisioner of \
         `when: before-k3s` do it, also without internet: docs/guests.md has one.",
    ))
}

/// What a node has to reach of the others: of the new ones all, and of those that run k3s already the same, as each has to
/// be reached by the new ones too.
pub fn peers(view: &View<'_>, from: &Node) -> Vec<Peer> {
    let mut all = Vec::new();
    for to in view.cluster.members().filter(|to| to.name != from.name && from.role.has_k3s()) {
        // One of both is new, and both are there.
        let there = |node: &Node| {
            let known = view.seen.nodes.get(&node.name);
            known.is_some_and(|facts| facts.interface_of(node.ip).is_some())
        };
        if !there(to) || !(is_new(view, from) || is_new(view, to)) {
            continue;
        }
        let wanted = ports(view.cluster, to).into_iter().filter(|(_, port)| needs(from, *port));
        let ip = reached_at(view.cluster, to);
        all.extend(wanted.map(|(protocol, port)| Peer { protocol, ip, port }));
    }
    all
}

/// What was found on all of them.
pub fn findings(view: &View<'_>, grounds: &BTreeMap<String, Ground>) -> Vec<Finding> {
    let mut all = Vec::new();
    for node in view.cluster.nodes.iter().filter(|n| is_new(view, n)) {
        of_node(view, node, grounds.get(&node.name), &mut all);
    }
    twins(view, &mut all);
    for (name, ground) in grounds {
        ways(view, name, ground, &mut all);
    }
    all
}

/// Whether the spec tells its kubelet to run there all the same.
fn bears_old_cgroup(node: &Node) -> bool {
    ["kubelet-arg", "kubelet-arg+"].iter().filter_map(|key| node.config.get(*key)).any(|value| {
        let is = |value: &serde_yaml::Value| value.as_str() == Some("fail-cgroupv1=false");
        value.as_sequence().map_or_else(|| is(value), |all| all.iter().any(is))
    })
}

fn of_node(view: &View<'_>, node: &Node, ground: Option<&Ground>, all: &mut Vec<Finding>) {
    let Some(facts) = view.seen.nodes.get(&node.name) else { return };
    let mut add = |problem: bool, what: String, remedy: &str| {
        all.push(Finding { node: node.name.clone(), problem, what, remedy: remedy.to_owned() });
    };
    if !node.role.has_k3s() {
        unfit(facts, node).into_iter().for_each(|(what, remedy)| add(true, what, &remedy));
        return;
    }
    if Arch::from_uname(&facts.arch).is_none() {
        add(
            true,
            format!("its processor is {}, for which there is no k3s", facts.arch),
            "Name another machine.",
        );
    }
    let found = found::lacks(view, node);
    let host = node.ssh.as_ref().map_or(&node.name, |access| &access.host);
    if let Some(lacks) = &found {
        for lack in lacks {
            let remedy = format!(
                "Let the spec say what it is: `p1 init --from {host}` writes one from what is there. p1 takes a k3s over as it \
                 runs, and changes nothing of it for that."
            );
            add(true, format!("its k3s was installed before p1, and differs from the spec: {lack}"), &remedy);
        }
    } else if facts.has_k3s() {
        let whose = facts.stamps.get("cluster").and_then(|mark| mark.split(' ').next());
        let ours = whose == Some(view.cluster.name.as_str());
        let what = match ours {
            true => format!("it has the k3s of a cluster `{}` of another folder", view.cluster.name),
            false => "it has a k3s that is not this cluster's".to_owned(),
        };
        let remedy = match ours {
            true => "Work there. Where that folder is gone, `p1 up --skip-preflight` takes the cluster over, with the token that \
                     its servers have."
                .to_owned(),
            false => format!(
                "`p1 init --from {host}` writes the spec by which one that runs is taken over. Or take it off there, with its data, \
                 by the script that it came with (`k3s-uninstall.sh`, `k3s-agent-uninstall.sh` in /usr/local/bin), or name another \
                 machine."
            ),
        };
        add(true, what, &remedy);
    }
    unfit(facts, node).into_iter().for_each(|(what, remedy)| add(true, what, &remedy));
    let guest = guest::of(Some(facts));
    guest.obstacles(facts).into_iter().for_each(|o| add(true, o.cause, o.hint));
    guest.warnings(facts, node.role).into_iter().for_each(|text| add(false, lower(&text), ""));
    // What is done on it before k3s comes may well be that.
    let before =
        view.cluster.provision.iter().any(|p| p.when == Slot::BeforeK3s && p.nodes.contains(&node.name));
    if let Some((cause, hint)) = policy(facts) {
        add(!before, cause.to_owned(), hint);
    }
    let Some(ground) = ground else { return };
    for (name, path) in &ground.others {
        let remedy = "Two of them fight for ports, containers and rules of the network. Remove it, or name another machine.";
        add(true, format!("{name} is there ({path})"), remedy);
    }
    let version = view.seen.here.version.as_deref().and_then(|v| v.parse::<Version>().ok());
    let since: Version = NO_OLD_CGROUP.parse().expect("a version");
    if ground.old_cgroup && !bears_old_cgroup(node) && version.as_ref().is_none_or(|v| *v >= since) {
        let remedy = "Boot it with `systemd.unified_cgroup_hierarchy=1` on the kernel's command line, or take an older k3s \
                      (`k3s: {channel: v1.34}`), or `kubelet-arg: [fail-cgroupv1=false]`.";
        add(true, format!("it has cgroup v1 only, which k3s refuses since {NO_OLD_CGROUP}"), remedy);
    }
    // Of its own, should it run already.
    for (protocol, port) in
        ports(view.cluster, node).into_iter().filter(|p| !facts.runs() && ground.listens.contains(p))
    {
        let remedy = format!("See who does: `ss -lnp 'sport = :{port}'` there.");
        add(true, format!("something listens at {port}/{protocol}, which k3s needs"), &remedy);
    }
    for module in &ground.lacks {
        let remedy = "Install the package that has it: `kernel-modules-extra` on Enterprise Linux 10, \
                      `linux-modules-extra-raspi` on Ubuntu for Raspberry Pi.";
        add(true, format!("its kernel has no module {module}"), remedy);
    }
    if ground.proxy {
        let remedy = "k3s pulls images through it; its NO_PROXY has to name the nodes and the networks of pods and services.";
        add(false, "a proxy is set for all programs".to_owned(), remedy);
    }
}

/// A sentence as a fragment.
fn lower(text: &str) -> String {
    let text = text.trim_end_matches('.');
    let mut chars = text.chars();
    let word = text.split(' ').next().unwrap_or_default();
    // What begins with a name keeps it.
    match chars.next() {
        Some(first) if word.chars().skip(1).all(char::is_lowercase) => {
            first.to_lowercase().chain(chars).collect()
        }
        _ => text.to_owned(),
    }
}

/// Two nodes with one machine, and two machines that cannot be told apart.
fn twins(view: &View<'_>, all: &mut Vec<Finding>) {
    let known: Vec<(&Node, _)> =
        view.cluster.nodes.iter().filter_map(|n| Some((n, view.seen.nodes.get(&n.name)?))).collect();
    for (i, (node, facts)) in known.iter().enumerate() {
        let mut before = known[..i].iter();
        let mut add = |problem: bool, what: String, remedy: &str| {
            all.push(Finding { node: node.name.clone(), problem, what, remedy: remedy.to_owned() });
        };
        if let Some((other, _)) = before.clone().find(|(_, f)| !f.boot.is_empty() && f.boot == facts.boot) {
            let remedy = "Each node needs a machine of its own: look at `ip` and `ssh: {host: ..}` of both.";
            add(true, format!("it is the same machine as {}", other.name), remedy);
        } else if let Some((other, _)) = before.find(|(o, f)| {
            (is_new(view, node) || is_new(view, o))
                && !f.machine_id.is_empty()
                && f.machine_id == facts.machine_id
        }) {
            let remedy = "They were copied from one disk. Give one another: `rm /etc/machine-id; systemd-machine-id-setup`, and a \
                          restart.";
            add(false, format!("it has the machine id of {}", other.name), remedy);
        }
    }
}

/// What a node does not reach.
fn ways(view: &View<'_>, name: &str, ground: &Ground, all: &mut Vec<Finding>) {
    for (peer, how) in ground.reached.iter().filter(|(_, how)| *how != Reached::Open) {
        let to = view.cluster.nodes.iter().find(|n| reached_at(view.cluster, n) == peer.ip);
        // A firewall that p1 opens before k3s is started, where it is asked to.
        let targets = &view.seen.request.targets;
        let touched = |to: &&Node| targets.is_empty() || targets.contains(&to.name);
        if to
            .filter(touched)
            .and_then(|to| closed(view, to))
            .is_some_and(|gap| gap.closes(peer.protocol, peer.port))
        {
            continue;
        }
        // Where k3s listens already nobody refuses a packet.
        let runs = |n: &Node| view.seen.nodes.get(&n.name).is_some_and(|facts| facts.runs());
        if peer.protocol == Protocol::Udp && *how == Reached::Silent && to.is_some_and(runs) {
            continue;
        }
        let to = to.map_or_else(|| peer.ip.to_string(), |n| n.name.clone());
        let at = format!("{}/{}", peer.port, peer.protocol);
        // A packet that nobody refused may have been taken.
        let sure = *how == Reached::Barred || peer.protocol == Protocol::Tcp;
        let what = match how {
            Reached::Barred => format!("the way to {at} of {to} ({}) is closed", peer.ip),
            _ if sure => format!("nobody answers at {at} of {to} ({})", peer.ip),
            _ => format!("nothing came back from {at} of {to} ({}): a firewall may take it", peer.ip),
        };
        let remedy = "Let it through in the firewalls of both and between them (docs.k3s.io/installation/requirements); is the \
                      address one that the others can reach?";
        all.push(Finding { node: name.to_owned(), problem: sure, what, remedy: remedy.to_owned() });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::observed::Observed;
    use crate::spec::{SshAccess, fixture};

    fn good(n: u8) -> NodeFacts {
        NodeFacts {
            arch: "x86_64".into(),
            boot: format!("b{n}"),
            machine_id: format!("m{n}"),
            init: Some("systemd".into()),
            default_routes: vec!["eth0".into()],
            cgroup_memory: true,
            disk_free_mib: 9000,
            memory_mib: 4000,
            ..NodeFacts::default()
        }
    }

    #[test]
    fn each_of_it_is_found_on_its_node_and_says_what_to_do() {
        let mut cluster = fixture::cluster(1);
        let access = SshAccess {
            host: "h".into(),
            user: None,
            port: None,
            key: None,
            jump: None,
            r#become: Default::default(),
            password: None,
            host_key: Default::default(),
        };
        cluster.nodes.iter_mut().for_each(|n| n.ssh = Some(Box::new(access.clone())));
        let found = |facts: fn(&mut NodeFacts), ground: fn(&mut Ground), version: &str| {
            let mut seen = Observed::default();
            seen.here.version = Some(version.to_owned());
            let (mut server, mut worker) = (good(1), good(2));
            server.addresses = vec![("eth0".into(), cluster.nodes[0].ip)];
            worker.addresses = vec![("eth0".into(), cluster.nodes[1].ip)];
            facts(&mut worker);
            seen.nodes.insert("server".into(), server.into());
            seen.nodes.insert("worker-1".into(), worker.into());
            let mut told = Ground::default();
            ground(&mut told);
            let grounds = [("server".to_owned(), Ground::default()), ("worker-1".to_owned(), told)].into();
            let all = findings(&View::new(&cluster, &seen), &grounds);
            assert!(all.iter().all(|f| f.node == "worker-1"), "{all:?}");
            all.into_iter().map(|f| (f.problem, f.what)).collect::<Vec<_>>()
        };
        assert_eq!(found(|_| {}, |_| {}, "v1.36.3+k3s1"), []);
        type Case = (fn(&mut NodeFacts), fn(&mut Ground), &'static str, bool);
        let cases: [Case; 15] = [
            (|f| f.addresses.clear(), |_| {}, "does not have the address", true),
            (|f| f.ahead = -40, |_| {}, "clock is -40 s off", true),
            (|f| f.arch = "riscv64".into(), |_| {}, "no k3s", true),
            (
                |f| f.scripts.push("/usr/local/bin/k3s-uninstall.sh".into()),
                |_| {},
                "not this cluster's",
                true,
            ),
            (|f| f.boot = "b1".into(), |_| {}, "the same machine as server", true),
            (|f| f.machine_id = "m1".into(), |_| {}, "the machine id of server", false),
            (|f| f.cgroup_memory = false, |_| {}, "memory cgroup", true),
            (|_| {}, |g| g.old_cgroup = true, "cgroup v1", true),
            (|_| {}, |g| g.others.push(("k0s".into(), "/var/lib/k0s".into())), "k0s is there", true),
            (|_| {}, |g| _ = g.listens.insert((Protocol::Tcp, 10250)), "10250/tcp", true),
            (|_| {}, |g| g.lacks.push("vxlan".into()), "module vxlan", true),
            (|f| f.selinux = true, |_| {}, "SELinux is enforced", true),
            (|_| {}, |g| g.proxy = true, "proxy", false),
            (
                |_| {},
                |g| {
                    let ip = [192, 168, 56, 110].into();
                    g.reached.push((Peer { protocol: Protocol::Tcp, ip, port: 6443 }, Reached::Silent));
                },
                "nobody answers at 6443/tcp of server",
                true,
            ),
            (
                |_| {},
                |g| {
                    let ip = [192, 168, 56, 110].into();
                    g.reached.push((Peer { protocol: Protocol::Udp, ip, port: 8472 }, Reached::Silent));
                },
                "a firewall may take it",
                false,
            ),
        ];
        for (facts, ground, words, problem) in cases {
            let all = found(facts, ground, "v1.36.3+k3s1");
            assert!(all.len() == 1 && all[0].1.contains(words) && all[0].0 == problem, "{words}: {all:?}");
        }
        assert_eq!(found(|_| {}, |g| g.old_cgroup = true, "v1.34.1+k3s1"), []);
        let node = |arg: &str| {
            let mut node = fixture::cluster(0).nodes[0].clone();
            node.config.insert("kubelet-arg+".into(), vec![arg].into());
            bears_old_cgroup(&node)
        };
        assert!(node("fail-cgroupv1=false") && !node("fail-cgroupv1=true"));
    }
}
