//! What has to go together: names, roles and addresses of the nodes, networks, and k3s' settings
//! with those that p1 makes.

use std::collections::HashMap;
use std::net::Ipv4Addr;

use super::file::{File, K3sFile, NodeFile};
use super::k3s_keys::{self, Taker};
use super::manifest::When;
use super::report::{Report, Span, nearest};
use super::resolve::{self, Draft};
use super::settings::{self, Layers};
use super::shape::{At, Field};
use super::value::{Config, LABEL, check_label, check_taint, is_private};
use super::{Cni, Network, ProvisionType, Role};

/// Names that mean something else already.
const RESERVED: &[(&str, &str)] = &[
    ("cluster", "p1's steps for the cluster as a whole are called that: `cluster/box`."),
    ("localhost", LOOPBACK),
    ("localdomain", LOOPBACK),
    ("localhost4", LOOPBACK),
    ("localhost6", LOOPBACK),
    ("ip6-localhost", LOOPBACK),
    ("ip6-loopback", LOOPBACK),
    ("ip6-localnet", LOOPBACK),
    ("ip6-mcastprefix", LOOPBACK),
    ("ip6-allnodes", LOOPBACK),
    ("ip6-allrouters", LOOPBACK),
    ("broadcasthost", LOOPBACK),
    ("kubernetes", "The cluster's own API is called that inside of it."),
];
/// Linux' longest (`HOST_NAME_MAX`).
const HOSTNAME: usize = 64;
const LOOPBACK: &str = "Every machine's /etc/hosts has it as its own, and no other would find the node.";

/// Names and roles, and whether the machines are large enough. `whole` is false if an entry could
/// not be read, so that nothing can be said about what is missing; `list` is where the nodes are.
pub(super) fn nodes(file: &File, drafts: &[Draft<'_>], whole: bool, report: &mut Report<'_>) {
    let list = file.nodes.get().map_or(Span::default(), |n| n.at);
    // Others look no machine up by its name.
    let direct = file.engine.value() == Some(&super::EngineChoice::Direct)
        || file.libvirt.value().and_then(|l| l.uri.value()) == Some(&super::LibvirtUri::Session);
    let mut names: HashMap<&str, Span> = HashMap::new();
    for draft in drafts {
        let Some(name) = &draft.name else { continue };
        if name.len() > LABEL {
            let message = format!("`{name}` is longer than {LABEL} characters");
            report.error(draft.name_at, message, "A host name has at most 63; take a shorter one.");
        }
        if !direct && draft.ssh.is_none() && name.bytes().all(|b| b.is_ascii_hexdigit()) {
            // Reference: vagrant, lib/vagrant/machine_index.rb; names are looked up as id prefixes too.
            let message = format!("`{name}` consists of hex digits only");
            let help = format!(
                "Vagrant would take it for the beginning of a machine's id and may act on a VM of another \
                 project. Add another letter or a `-`: `node-{name}`; or have p1 itself make the machines: `engine: direct`."
            );
            report.error(draft.name_at, message, help);
        }
        if let Some((_, why)) = RESERVED.iter().find(|(reserved, _)| reserved == name) {
            let help = format!("{why} Take another one: `node-{name}`.");
            report.error(draft.name_at, format!("a node cannot be called `{name}`"), help);
        }
        if let Some(first) = names.get(name.as_str()) {
            let message = format!("the name `{name}` is taken");
            let help =
                format!("Line {} has it too; every node needs a name of its own.", report.line(*first));
            report.error(draft.name_at, message, help);
        } else {
            names.insert(name, draft.name_at);
        }
    }

    if whole && !drafts.iter().any(|d| d.role == Some(Role::Server)) {
        let at = drafts.first().map_or(list, |d| d.name_at);
        let help = "Make one of the nodes the server: `{name: server, role: server}`.";
        report.error(at, "no node is the server", help);
    }
    for draft in drafts.iter().filter(|d| d.index == 0 && d.role == Some(Role::None)) {
        without_k3s(draft, report);
    }
    for draft in drafts.iter().filter(|d| d.index == 0) {
        disks(file, draft, report);
    }
    let made = || drafts.iter().filter(|draft| draft.ssh.is_none());
    if let Some(draft) = made().nth(50) {
        // k3s-io/docs, docs/installation/requirements.md.
        let message = format!("{} nodes are many for one host", made().count());
        let help = "k3s asks to join at most 50 nodes at a time.";
        report.warning(draft.name_at, message, help);
    }
    for draft in made().filter(|d| d.index == 0) {
        size(draft, report);
    }
}

/// What machines call themselves and what else the nodes know by name: each is one host's.
pub(super) fn hosts(file: &File, drafts: &[Draft<'_>], report: &mut Report<'_>) {
    let lower = |name: &str| name.to_ascii_lowercase();
    // That is a matter of steps, which are named after nodes.
    let reserved = RESERVED.iter().filter(|(name, _)| *name != "cluster");
    let mut owners: HashMap<String, (Option<usize>, Span)> = HashMap::new();
    for (index, draft) in drafts.iter().enumerate() {
        if let Some(name) = &draft.name {
            owners.entry(lower(name)).or_insert((Some(index), draft.name_at));
        }
    }
    let named = drafts.iter().enumerate().filter_map(|(index, draft)| {
        let at = draft.file.hostname.get()?.at;
        Some((Some(index), draft.hostname.as_deref()?, at))
    });
    let others = file.hosts.value().into_iter().flat_map(|h| &h.0).map(|h| (None, h.value.0.as_str(), h.at));
    for (owner, name, at) in named.chain(others) {
        let first = name.split('.').next().unwrap_or_default();
        let words = if owner.is_some() { vec![name, first] } else { vec![name] };
        if name.len() > HOSTNAME && owner.is_some() {
            let message = format!("`{name}` is longer than {HOSTNAME} characters");
            report.error(at, message, "Linux takes no longer host name; take a shorter one.");
        }
        if let Some((_, why)) =
            reserved.clone().find(|(reserved, _)| words.iter().any(|w| lower(w) == *reserved))
        {
            report.error(at, format!("a host cannot be called `{name}`"), format!("{why} Take another one."));
            continue;
        }
        for word in words {
            match owners.get(&lower(word)) {
                Some((other, first)) if *other != owner || owner.is_none() => {
                    let help = format!("Line {} has it too; a name is one host's.", report.line(*first));
                    report.error(at, format!("the name `{word}` is taken"), help);
                    break;
                }
                Some(_) => {}
                None => _ = owners.insert(lower(word), (owner, at)),
            }
        }
    }
}

/// A machine takes so many by p1's naming of them, beside its own and the one with k3s' files.
const MOST_DISKS: usize = 24;

/// Disks are told apart by their serials, and are libvirt's.
fn disks(file: &File, draft: &Draft<'_>, report: &mut Report<'_>) {
    let given = [draft.file.disk.get().map(|d| d.at), draft.file.disks.get().map(|d| d.at)];
    if file.provider.value() == Some(&super::ProviderChoice::Virtualbox) {
        for (key, at) in ["disk", "disks"].into_iter().zip(given).filter_map(|(key, at)| Some((key, at?))) {
            report.error(at, format!("`{key}` is for libvirt only"), DISKS);
        }
    }
    let mut seen: HashMap<String, Span> = HashMap::new();
    for (disk, at) in resolve::disks(draft.file) {
        if let Some(first) = seen.get(&disk.serial) {
            let help = format!("Line {} has it too; give this one another `serial`.", report.line(*first));
            report.error(at, format!("the serial `{}` is taken", disk.serial), help);
        }
        seen.entry(disk.serial).or_insert(at);
    }
    if let Some(at) = given[1].filter(|_| seen.len() > MOST_DISKS) {
        report.error(at, format!("more than {MOST_DISKS} disks"), "Make some of them larger instead.");
    }
}

/// Why other providers have no disks of the spec's.
pub const DISKS: &str = "A disk of VirtualBox' has no serial by which a guest finds it, and p1 does not enlarge one. Remove it, or \
                         take `provider: libvirt`.";

/// What only k3s makes anything of.
fn without_k3s(draft: &Draft<'_>, report: &mut Report<'_>) {
    let NodeFile { labels, taints, config, external_ip, .. } = draft.file;
    let keys = [
        ("labels", labels.get().map(|v| v.at)),
        ("taints", taints.get().map(|v| v.at)),
        ("config", config.get().map(|v| v.at)),
        ("external_ip", external_ip.get().map(|v| v.at)),
    ];
    for (key, at) in keys {
        let Some(at) = at else { continue };
        let help = format!("A machine with `role: none` has no k3s. Remove `{key}`, or take another `role`.");
        report.error(at, format!("`{key}` is k3s', and this machine has none"), help);
    }
}

/// k3s' minimum (k3s-io/docs, docs/installation/requirements.md).
fn size(draft: &Draft<'_>, report: &mut Report<'_>) {
    let (who, cpus, memory) = match draft.role {
        Some(Role::Server) => ("server", 2, 2048),
        Some(Role::Worker) => ("worker", 1, 512),
        Some(Role::None) | None => return,
    };
    if let Some(given) = draft.file.cpus.get().filter(|c| c.value.0 < cpus) {
        let message = format!("{} CPU is less than k3s asks for", given.value.0);
        report.warning(given.at, message, format!("A {who} should have {cpus}; it may start slowly."));
    }
    if let Some(given) = draft.file.memory.get().filter(|m| m.value.0 < memory) {
        let message = format!("{} MiB is less than k3s asks for", given.value.0);
        report.warning(
            given.at,
            message,
            format!("A {who} should have {memory} MiB; it may run out of memory."),
        );
    }
}

/// The nodes' network by itself.
pub(super) fn network(network: &Network, at: Option<Span>, report: &mut Report<'_>) {
    let Some(at) = at.filter(|_| !is_private(network.cidr)) else { return };
    let message = format!("{} is not a private network", network.cidr);
    let help = "This host will no longer reach whoever has these addresses on the internet. Private ones are in \
                10.0.0.0/8, 172.16.0.0/12 and 192.168.0.0/16.";
    report.warning(at, message, help);
}

/// The addresses that the spec gives.
pub(super) fn addresses(drafts: &[Draft<'_>], network: &Network, report: &mut Report<'_>) {
    let net = network.cidr;
    let (first, last) = (u32::from(net.network()) + 2, u32::from(net.broadcast()).saturating_sub(1));
    let range = format!("Take one from {} to {}.", Ipv4Addr::from(first), Ipv4Addr::from(last));
    let mut taken: HashMap<Ipv4Addr, Span> = HashMap::new();
    for draft in drafts {
        let Some(at) = draft.ip_at else { continue };
        let exists = draft.ssh.is_some();
        let who = match (&draft.name, draft.index) {
            (Some(name), 1..) => format!(" (`{name}`)"),
            _ => String::new(),
        };
        let Some(ip) = draft.ip else {
            report.error(at, format!("the addresses end before{who}"), &range);
            continue;
        };
        let wrong = if exists {
            let odd = ip.is_loopback() || ip.is_unspecified() || ip.is_multicast() || ip.is_broadcast();
            odd.then(|| "is not the address of a machine".to_owned())
        } else if !net.contains(&ip) {
            Some(format!("is outside of the network {net}"))
        } else if ip == network.gateway() {
            Some("is the host's own address in the network, the gateway".to_owned())
        } else if ip == net.network() || ip == net.broadcast() {
            Some(format!(
                "is the {} address of {net}",
                if ip == net.network() { "network" } else { "broadcast" }
            ))
        } else {
            None
        };
        if let Some(wrong) = wrong {
            let help = if exists { "Write the address by which the other nodes reach it." } else { &range };
            report.error(at, format!("{ip}{who} {wrong}"), help);
        } else if let Some(other) = taken.get(&ip) {
            let free = if exists { "" } else { " Without `ip` a node gets the next free one." };
            let help = format!("Line {} has it too.{free}", report.line(*other));
            report.error(at, format!("the address {ip}{who} is taken"), help);
        } else {
            taken.insert(ip, at);
        }
    }
}

/// k3s' release and settings.
pub(super) fn k3s(file: &File, drafts: &[Draft<'_>], report: &mut Report<'_>) {
    // Something is applied before nodes are Ready: a network of the user's can be there in time.
    let manifests = file.manifests.value().into_iter().flatten().flatten();
    let networked = manifests.into_iter().any(|m| m.value.manifest.when == When::Api);
    if let Some(k3s) = file.k3s.value() {
        if let (Some(version), Some(_)) = (k3s.version.get(), k3s.channel.get()) {
            let help = "A channel names the newest of several versions; keep one of the two.";
            report.error(version.at, "`version` and `channel` exclude each other", help);
        }
        if let Some(artifacts) = k3s.artifacts.value()
            && let Some(dir) = artifacts.dir.get()
        {
            let others = [
                ("binary", artifacts.binary.get().is_some()),
                ("installer", artifacts.installer.get().is_some()),
                ("images", artifacts.images.get().is_some()),
            ];
            if let Some((other, _)) = others.iter().find(|(_, given)| *given) {
                let help = "Binary, installer and images all come from the folder; keep one of the two.";
                report.error(dir.at, format!("`dir` and `{other}` exclude each other"), help);
            }
        }
        embedded_registry(k3s, report);
        cni(k3s, drafts, networked, report);
        let minor = minor(k3s);
        settings(&k3s.config, None, minor, networked, report);
        settings(&k3s.server_config, Some(Role::Server), minor, networked, report);
        settings(&k3s.worker_config, Some(Role::Worker), minor, networked, report);
    }
    let minor = file.k3s.value().and_then(minor);
    for draft in drafts.iter().filter(|d| d.index == 0) {
        // Nothing is said of a worker's settings where the role is in doubt.
        settings(&draft.file.config, draft.role.or(Some(Role::Server)), minor, networked, report);
    }
}

const NO_NETWORK: &str = "k3s will have no pod network of its own";
const BRING_ONE: &str = "Nodes become Ready only when another network plugin is installed. Name its manifests, to be applied before \
                         that: `manifests: [{path: cni/, when: api, wait: true}]`.";

/// Whose the pods' network is, is said in one place.
fn cni(k3s: &K3sFile, drafts: &[Draft<'_>], networked: bool, report: &mut Report<'_>) {
    let Some(cni) = k3s.cni.get() else { return };
    let nodes = drafts.iter().filter(|draft| draft.index == 0).map(|draft| &draft.file.config);
    let all = [&k3s.config, &k3s.server_config].into_iter().chain(nodes);
    for entry in all.filter_map(|config| config.value()).flat_map(|config| &config.0) {
        let none = entry.value().as_str() == Some("none");
        let help = match (k3s_keys::long(&entry.key), cni.value) {
            ("flannel-backend", Cni::None) => {
                "`cni: none` switches flannel off; remove `flannel-backend`, or take `cni: flannel`."
            }
            ("flannel-backend", Cni::Flannel) if none => {
                "Keep one of the two; `cni: none` says all that it takes."
            }
            _ => continue,
        };
        let message = format!("`flannel-backend` and `cni: {}` exclude each other", cni.value.word());
        report.error(entry.key_at, message, help);
    }
    if cni.value == Cni::None && !networked {
        report.warning(cni.at, NO_NETWORK, BRING_ONE);
    }
}

/// A registry within k3s shares the images of those that `registries` names as mirrors, and of no others (k3s-io/docs,
/// docs/installation/registry-mirror.md).
fn embedded_registry(k3s: &K3sFile, report: &mut Report<'_>) {
    let entries = [&k3s.config, &k3s.server_config].into_iter().filter_map(|config| config.value());
    let mut entries = entries.flat_map(|config| &config.0);
    let on = |entry: &&super::value::Entry| {
        entry.key == "embedded-registry"
            && entry.items.last().is_some_and(|item| settings::is_true(&item.value))
    };
    let mirrors = k3s.registries.value().and_then(|registries| registries.0.get("mirrors"));
    if let Some(entry) = entries.find(on)
        && mirrors.and_then(|mirrors| mirrors.as_mapping()).is_none_or(|mirrors| mirrors.is_empty())
        && !k3s.registries.is_bad()
    {
        let help = "Name the registries whose images the nodes take from each other, with nothing below them: \
                    `registries: {mirrors: {docker.io: , registry.k8s.io: }}`, or all of them: `\"*\":`.";
        report.warning(
            entry.key_at,
            "`embedded-registry` shares no images: `registries` has no mirrors",
            help,
        );
    }
}

/// The minor version of Kubernetes that the spec names, by its version or by its channel.
fn minor(k3s: &K3sFile) -> Option<u32> {
    let named = k3s.version.value().map(|v| &v.0).or(k3s.channel.value().map(|c| &c.0))?;
    named.strip_prefix("v1.")?.split(['.', '+', '-']).next()?.parse().ok()
}

/// The settings of one place; `role` is none where they are for all nodes; `networked`: the spec may bring a pod
/// network of its own.
fn settings(
    config: &Field<Config>,
    role: Option<Role>,
    minor: Option<u32>,
    networked: bool,
    report: &mut Report<'_>,
) {
    for entry in config.value().into_iter().flat_map(|c| &c.0) {
        let key = k3s_keys::long(&entry.key);
        if let Some(why) = k3s_keys::owned(key) {
            report.error(entry.key_at, format!("`{key}` cannot be set in the spec"), why);
            continue;
        }
        match k3s_keys::taker(key) {
            Taker::Server if role == Some(Role::Worker) => {
                let message = format!("only a server knows `{key}`");
                let help =
                    "A worker's k3s ends with an error when it finds it; put it under `server_config`.";
                report.error(entry.key_at, message, help);
            }
            Taker::Unknown => {
                let help = match nearest(key, k3s_keys::all()) {
                    Some(near) => format!("Did you mean `{near}`?"),
                    None => "A server skips what it does not know, and a worker does not start.".to_owned(),
                };
                report.warning(entry.key_at, format!("p1 knows no k3s setting `{key}`"), help);
            }
            _ => {}
        }
        settings::value(entry, key, minor, report);
        let check = match key {
            "node-label" => check_label,
            "node-taint" => check_taint,
            "flannel-backend" if entry.value().as_str() == Some("none") => {
                if !networked {
                    report.warning(entry.key_at, NO_NETWORK, BRING_ONE);
                }
                continue;
            }
            _ => continue,
        };
        for item in &entry.items {
            match item.value.as_str() {
                Some(text) => _ = check(text, item.at, report),
                None => report.error(item.at, format!("`{key}` takes text"), "Put quotes around it."),
            }
        }
    }
}

/// Settings that have to be the same on all servers, with what k3s takes where there is none: it compares
/// most of them when a server joins (k3s-io/k3s, `pkg/daemons/config/types.go`, `CriticalControlArgs`;
/// k3s-io/docs, docs/cli/server.md), and one that differs does not start.
const ALIKE: &[(&str, &str)] = &[
    ("cluster-cidr", settings::PODS),
    ("cluster-dns", ""),
    ("cluster-domain", "cluster.local"),
    ("datastore-endpoint", ""),
    ("disable", ""),
    ("disable-cloud-controller", "false"),
    ("disable-helm-controller", "false"),
    ("disable-kube-proxy", "false"),
    ("disable-network-policy", "false"),
    ("egress-selector-mode", "agent"),
    ("embedded-registry", "false"),
    ("flannel-backend", "vxlan"),
    ("flannel-external-ip", "false"),
    ("flannel-ipv6-masq", "false"),
    ("kine-tls", "false"),
    ("secrets-encryption", "false"),
    ("secrets-encryption-provider", "aescbc"),
    ("service-cidr", settings::SERVICES),
    ("service-node-port-range", "30000-32767"),
    ("servicelb-namespace", "kube-system"),
    ("supervisor-metrics", "false"),
    ("system-default-registry", ""),
];

/// How many servers there are, and what has to be alike on them.
pub(super) fn servers(servers: &[(&Draft<'_>, &Layers<'_>)], report: &mut Report<'_>) {
    let external = |layers: &Layers<'_>| layers.text("datastore-endpoint").is_some();
    let count = servers.len();
    let any_external = servers.iter().any(|(_, layers)| external(layers));
    if count > 1 && count.is_multiple_of(2) && !any_external {
        let (last, _) = &servers[count - 1];
        let at = last.file.count.get().filter(|_| last.index > 0).map_or(last.role_at, |c| c.at);
        let (less, more) = (count - 1, count + 1);
        let help = format!(
            "etcd keeps working as long as more than half of its servers run: {count} tolerate the loss of no more servers than {less} do. Make it {less} or {more}; only a cluster with a `datastore-endpoint` may have any number."
        );
        report.error(at, format!("an even number of servers ({count})"), help);
    }
    for (_, layers) in servers.iter().filter(|(_, layers)| external(layers)) {
        if let Some(at) = layers.on("cluster-init") {
            let help =
                "The servers keep their state in the datastore they are given; leave `cluster-init` out.";
            report.error(at, "`cluster-init` and `datastore-endpoint` exclude each other", help);
        }
    }
    for (_, layers) in servers {
        let etcd = !external(layers) && (count > 1 || layers.on("cluster-init").is_some());
        settings::without_effect(etcd, external(layers), layers, report);
    }
    if count < 2 {
        return;
    }
    // Only what a server has of its own can differ.
    let own = |draft: &Draft<'_>, key: &str| -> Option<Span> {
        let entries = draft.file.config.value()?.0.iter();
        entries.filter(|e| k3s_keys::long(&e.key) == key).map(|e| e.key_at).next()
    };
    for (key, default) in ALIKE {
        let told = |layers: &Layers<'_>| alike(layers, key, default);
        let first = told(servers[0].1);
        if servers.iter().all(|(_, layers)| told(layers) == first) {
            continue;
        }
        let why = match *key {
            "disable" => {
                "Each server deploys and removes the components by its own setting, so that two that differ undo each \
                 other's work, and k3s compares `servicelb` when a server joins."
            }
            "system-default-registry" | "service-node-port-range" | "servicelb-namespace" | "kine-tls" => {
                "Which server's setting takes effect depends on which one leads at that moment."
            }
            _ => {
                "k3s compares it when a server joins, and one that differs does not start (`critical configuration \
                 value mismatch`)."
            }
        };
        let help = format!("{why} Put `{key}` under `k3s: server_config`.");
        for at in servers.iter().filter_map(|(draft, _)| own(draft, key)) {
            report.error(at, format!("`{key}` has to be the same on all servers"), &help);
        }
    }
}

/// What a setting says, so that two ways to write the same are the same.
fn alike(layers: &Layers<'_>, key: &str, default: &str) -> Vec<String> {
    if key == "datastore-endpoint" {
        return layers.text(key).map(|(text, _)| text).into_iter().collect();
    }
    if matches!(k3s_keys::takes(key), Some(k3s_keys::Takes::Flag)) {
        return vec![layers.on(key).is_some().to_string()];
    }
    let mut words: Vec<String> = layers.words(key).into_iter().map(|(word, _)| word).collect();
    if words.is_empty() && !default.is_empty() {
        words.push(default.to_owned());
    }
    if key == "disable" {
        words.sort();
        words.dedup();
    }
    words
}

/// Machines that exist already: what is said of them, and what is not for them.
pub(super) fn existing(file: &File, drafts: &[Draft<'_>], report: &mut Report<'_>) {
    use super::ProviderChoice as Choice;
    let all = !drafts.is_empty() && drafts.iter().all(|d| d.ssh.is_some());
    for draft in drafts.iter().filter(|d| d.index == 0) {
        let node = draft.file;
        if draft.ssh.is_none() {
            if let Some(ssh) = node.ssh.get() {
                let help = "Write `provider: ssh` for a machine that exists already, or remove `ssh`.";
                report.error(ssh.at, "`ssh` is for machines that exist already", help);
            }
            let whole = file.provider.value().copied().unwrap_or_default();
            let own =
                node.provider.get().filter(|own| !matches!(own.value, Choice::Auto) && own.value != whole);
            if let Some(own) = own.filter(|_| !matches!(whole, Choice::Ssh)) {
                let help =
                    format!("All machines that p1 makes are of one provider, here `{}`.", whole.word());
                report.error(own.at, "a node cannot be made by another provider than the others", help);
            }
            continue;
        }
        let others = [
            ("cpus", node.cpus.get().map(|v| v.at)),
            ("memory", node.memory.get().map(|v| v.at)),
            ("hostname", node.hostname.get().map(|v| v.at)),
            ("disk", node.disk.get().map(|v| v.at)),
            ("disks", node.disks.get().map(|v| v.at)),
        ];
        for (key, at) in others {
            if let Some(at) = at {
                let help =
                    "p1 gives a machine that exists already neither size nor hostname nor disks; remove it.";
                report.error(at, format!("`{key}` is for machines that p1 makes"), help);
            }
        }
        let host = node.ssh.value().and_then(|ssh| ssh.host.get());
        if let Some(host) = host.filter(|_| node.count.value().is_some_and(|count| count.0 > 1)) {
            let help = "With `count` each is reached by its own address: remove `host`, or write the nodes one by one.";
            report.error(host.at, "several machines cannot have one `host`", help);
        }
        if draft.ip.is_none() && draft.ip_at.is_none() && !node.ip.is_bad() {
            let help = "Write `ip`, the address by which the other nodes reach it.";
            report.error(
                draft.name_at,
                "p1 does not choose the address of a machine that exists already",
                help,
            );
        }
        let password = node.ssh.value().and_then(|ssh| ssh.sudo_password.get());
        let doas = draft.ssh.as_ref().is_some_and(|ssh| ssh.r#become == super::BecomeChoice::Doas);
        if let Some(password) = password.filter(|_| doas) {
            let help = "doas reads it from a terminal alone. Let it do without: `permit nopass USER` in /etc/doas.conf.";
            report.error(password.at, "doas cannot be given a password", help);
        }
    }
    if let Some(host) = file.ssh.value().and_then(|ssh| ssh.host.get()) {
        let help = "It stands at each node; without it a node is reached by its `ip`.";
        report.error(host.at, "`host` is not the same for all nodes", help);
    }
    if let Some(ssh) = file.ssh.get().filter(|_| !drafts.is_empty() && drafts.iter().all(|d| d.ssh.is_none()))
    {
        let help = "No node has `provider: ssh`. Write it for those that exist already, or for all, or remove `ssh`.";
        report.error(ssh.at, "`ssh` is for machines that exist already", help);
    }
    if !all {
        return;
    }
    let set = |on: Option<(Span, bool)>| on.filter(|(_, on)| *on).map(|(at, _)| at);
    let bakes = file.bake.get().map(|b| (b.at, b.value == super::BakeChoice::Auto));
    let keys = [
        ("box", file.r#box.get().map(|v| v.at)),
        ("network", file.network.get().map(|v| v.at)),
        ("libvirt", file.libvirt.get().map(|v| v.at)),
        ("engine", file.engine.get().map(|v| v.at)),
        ("disposable", set(file.disposable.get().map(|v| (v.at, v.value.0)))),
        ("autostart", set(file.autostart.get().map(|v| (v.at, v.value.0)))),
        ("keep", set(file.keep.get().map(|v| (v.at, v.value.0)))),
        ("bake", set(bakes)),
    ];
    for (key, at) in keys {
        if let Some(at) = at {
            let help = "All machines of this spec exist already. Remove it.";
            report.error(at, format!("`{key}` is for machines that p1 makes"), help);
        }
    }
}

/// Bounds that depend on each other.
pub(super) fn limits(file: &File, report: &mut Report<'_>) {
    let virtualbox = file.provider.value() == Some(&super::ProviderChoice::Virtualbox);
    if let Some(asked) = file.autostart.get().filter(|asked| virtualbox && asked.value.0) {
        report.error(asked.at, "`autostart` is for libvirt only", AUTOSTART);
    }
    if let Some(asked) = file.bake.get().filter(|asked| virtualbox && asked.value == super::BakeChoice::Auto)
    {
        report.error(asked.at, "`bake: auto` is for libvirt only", BAKE);
    }
    use super::EngineChoice as Engine;
    let own = file.engine.get().filter(|e| !matches!(e.value, Engine::Auto | Engine::Vagrant));
    if let Some(asked) = own.filter(|_| virtualbox) {
        let help = "VirtualBox' machines are made by Vagrant. Remove `engine`, or take `provider: libvirt`.";
        report.error(asked.at, format!("`engine: {}` is for libvirt only", asked.value.word()), help);
    }
    let session = libvirt(file, virtualbox, report);
    let exist = file.provider.value() == Some(&super::ProviderChoice::Ssh);
    let (without, instead) = match (session, own) {
        _ if exist => ("provider: ssh".to_owned(), "provider: libvirt"),
        (true, _) => (format!("uri: {SESSION}"), "uri: qemu:///system"),
        (false, Some(engine)) => (format!("engine: {}", engine.value.word()), "engine: vagrant"),
        (false, None) => (String::new(), ""),
    };
    for one in file.provision.value().into_iter().flatten().flatten().filter(|_| !without.is_empty()) {
        let one = &one.value;
        let Some(kind) = one.r#type.get() else { continue };
        let (at, what) = match (kind.value, one.options.get()) {
            (ProvisionType::Local, _) | (ProvisionType::Shell | ProvisionType::File, None) => continue,
            (ProvisionType::Shell | ProvisionType::File, Some(options)) => (options.at, "options".to_owned()),
            _ => (kind.at, format!("type: {}", kind.value.name())),
        };
        let help = format!(
            "Use type `shell` or `file` without `options`, which p1 runs itself, or take `{instead}`."
        );
        report.error(at, format!("`{what}` needs Vagrant, and `{without}` is without it"), help);
    }
    let Some(retry) = file.retry.value() else { return };
    let resolved = resolve::retry(Some(retry));
    let at = retry.backoff.get().or(retry.max_backoff.get()).map(|t| t.at);
    if let Some(at) = at.filter(|_| resolved.backoff > resolved.max_backoff) {
        let message = "`backoff` is longer than `max_backoff`";
        let help = format!(
            "The first pause is {}, the longest {}; make the first shorter or the longest longer.",
            crate::explain::seconds(resolved.backoff),
            crate::explain::seconds(resolved.max_backoff)
        );
        report.error(at, message, help);
    }
}

/// The user's own libvirt.
const SESSION: &str = super::LibvirtUri::Session.word();

/// What goes together with which libvirt; whether it is the user's own.
fn libvirt(file: &File, virtualbox: bool, report: &mut Report<'_>) -> bool {
    let Some(asked) = file.libvirt.value() else { return false };
    let bridge = asked.bridge.get();
    let Some(uri) = asked.uri.get().filter(|uri| uri.value == super::LibvirtUri::Session) else {
        if let Some(bridge) = bridge.filter(|_| !asked.uri.is_bad()) {
            let help = format!(
                "With `qemu:///system` p1 makes a network of its own. Remove `bridge`, or add `uri: {SESSION}`."
            );
            report.error(bridge.at, format!("`bridge` is for `{SESSION}` only"), help);
        }
        return false;
    };
    if bridge.is_none() && !asked.bridge.is_bad() {
        let help = "A user's libvirt makes no networks. Add `bridge: br0`, or whatever the bridge is called that root has \
                    made and allowed to qemu-bridge-helper; `p1 doctor` says what it lacks.";
        report.error(uri.at, format!("`{SESSION}` needs a `bridge`"), help);
    }
    if virtualbox {
        let help = "Remove `libvirt`, or take `provider: libvirt`.";
        report.error(uri.at, format!("`{SESSION}` is libvirt's, not VirtualBox'"), help);
    }
    let mut excludes = |at, what: &str, help: String| {
        report.error(at, format!("`{what}` and `uri: {SESSION}` exclude each other"), help);
    };
    if let Some(engine) = file.engine.get().filter(|e| e.value == super::EngineChoice::Vagrant) {
        let help = "p1 itself makes the machines there. Remove `engine`, or take `uri: qemu:///system`.";
        excludes(engine.at, "engine: vagrant", help.to_owned());
    }
    if let Some(asked) = file.autostart.get().filter(|asked| asked.value.0) {
        let help = "A user's libvirt runs while it is used, and nothing starts its machines with the host. Remove \
                    `autostart`, or take `uri: qemu:///system`.";
        excludes(asked.at, "autostart", help.to_owned());
    }
    if let Some(asked) = file.bake.get().filter(|asked| asked.value == super::BakeChoice::Auto) {
        excludes(asked.at, "bake: auto", BAKE_ELSEWHERE.to_owned());
    }
    let nics = file.network.value().and_then(|network| network.nics.get());
    if let Some(nics) = nics.filter(|nics| nics.value.0 == 2) {
        excludes(nics.at, "nics: 2", "The machines have one card, on the bridge. Remove `nics`.".to_owned());
    }
    true
}

/// Why other providers have no `autostart`.
pub const AUTOSTART: &str = "VirtualBox' machines are their user's, and nothing starts them before that user logs in. \
                             Remove `autostart`, or take `provider: libvirt`.";

/// Why no box is baked with a user's own libvirt.
pub const BAKE_ELSEWHERE: &str = "A box is baked on a network that p1 makes: take `uri: qemu:///system` for it. One that fits is \
                                  used with either.";

/// Why other providers have no baked boxes.
pub const BAKE: &str = "A box is baked by a machine that p1 itself makes with libvirt, and VirtualBox takes other disks. \
                        Remove `bake`, or take `provider: libvirt`.";

/// Namespaces and objects that are there twice.
pub(super) fn apps(file: &File, report: &mut Report<'_>) {
    let mut names: HashMap<&str, Span> = HashMap::new();
    for entry in file.namespaces.value().into_iter().flatten().flatten() {
        let name = entry.value.0.name.as_str();
        if let Some(first) = names.get(name) {
            let help = format!("Line {} has it too; keep one of them.", report.line(*first));
            report.error(entry.at, format!("the namespace `{name}` is here twice"), help);
        }
        names.entry(name).or_insert(entry.at);
    }
    let mut objects: HashMap<_, (Span, &str)> = HashMap::new();
    for At { at, value: entry } in file.manifests.value().into_iter().flatten().flatten() {
        for object in entry.documents.iter().flat_map(|d| &d.objects) {
            let group = object.api_version.rsplit_once('/').map_or("", |(group, _)| group);
            let namespace = object.namespace.as_deref().or(entry.manifest.namespace.as_deref());
            let key = (group, &object.kind, namespace, &object.name);
            if let Some((first, other)) = objects.get(&key) {
                let help = match first == at {
                    true => "Keep one of them: the second would undo what the first says.".to_owned(),
                    false => {
                        format!("`{other}` (line {}) has it too; keep one of them.", report.line(*first))
                    }
                };
                report.error(*at, format!("{object} is in `{}` twice", entry.manifest.shown), help);
            }
            objects.entry(key).or_insert((*at, &entry.manifest.shown));
        }
    }
}
