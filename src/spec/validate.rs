//! What has to go together: names, roles and addresses of the nodes, networks, and k3s' settings
//! with those that p1 makes.

use std::collections::HashMap;
use std::net::Ipv4Addr;

use ipnet::Ipv4Net;

use super::file::File;
use super::k3s_keys::{self, Taker};
use super::report::{Report, Span, nearest};
use super::resolve::{self, Draft};
use super::shape::{At, Field};
use super::value::{Config, LABEL, check_label, check_taint, is_private};
use super::{Network, Role, Yaml};

/// Names and roles, and whether the machines are large enough. `whole` is false if an entry could
/// not be read, so that nothing can be said about what is missing; `list` is where the nodes are.
pub(super) fn nodes(drafts: &[Draft<'_>], list: Span, whole: bool, report: &mut Report<'_>) {
    let mut names: HashMap<&str, Span> = HashMap::new();
    for draft in drafts {
        let Some(name) = &draft.name else { continue };
        if name.len() > LABEL {
            let message = format!("`{name}` is longer than {LABEL} characters");
            report.error(draft.name_at, message, "A host name has at most 63; take a shorter one.");
        }
        if name.bytes().all(|b| b.is_ascii_hexdigit()) {
            // Reference: vagrant, lib/vagrant/machine_index.rb; names are looked up as id prefixes too.
            let message = format!("`{name}` consists of hex digits only");
            let help = format!(
                "Vagrant would take it for the beginning of a machine's id and may act on a VM of another \
                 project. Add another letter or a `-`: `node-{name}`."
            );
            report.error(draft.name_at, message, help);
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
    if drafts.len() > 50 {
        // k3s-io/docs, docs/installation/requirements.md.
        let message = format!("{} nodes are many for one host", drafts.len());
        let help = "k3s asks to join at most 50 nodes at a time.";
        report.warning(drafts[50].name_at, message, help);
    }
    for draft in drafts.iter().filter(|d| d.index == 0) {
        size(draft, report);
    }
}

/// k3s' minimum (k3s-io/docs, docs/installation/requirements.md).
fn size(draft: &Draft<'_>, report: &mut Report<'_>) {
    let (who, cpus, memory) = match draft.role {
        Some(Role::Server) => ("server", 2, 2048),
        Some(Role::Worker) => ("worker", 1, 512),
        None => return,
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
    let (first, last) = (u32::from(net.network()) + 2, u32::from(net.broadcast()) - 1);
    let range = format!("Take one from {} to {}.", Ipv4Addr::from(first), Ipv4Addr::from(last));
    let mut taken: HashMap<Ipv4Addr, Span> = HashMap::new();
    for draft in drafts {
        let Some(at) = draft.ip_at else { continue };
        let who = match (&draft.name, draft.index) {
            (Some(name), 1..) => format!(" (`{name}`)"),
            _ => String::new(),
        };
        let Some(ip) = draft.ip else {
            report.error(at, format!("the addresses end before{who}"), &range);
            continue;
        };
        let wrong = if !net.contains(&ip) {
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
            report.error(at, format!("{ip}{who} {wrong}"), &range);
        } else if let Some(other) = taken.get(&ip) {
            let help = format!(
                "Line {} has it too. Without `ip` a node gets the next free one.",
                report.line(*other)
            );
            report.error(at, format!("the address {ip}{who} is taken"), help);
        } else {
            taken.insert(ip, at);
        }
    }
}

/// k3s' release and settings.
pub(super) fn k3s(file: &File, drafts: &[Draft<'_>], report: &mut Report<'_>) {
    if let Some(k3s) = file.k3s.value() {
        if let (Some(version), Some(_)) = (k3s.version.get(), k3s.channel.get()) {
            let help = "A channel names the newest of several versions; keep one of the two.";
            report.error(version.at, "`version` and `channel` exclude each other", help);
        }
        settings(&k3s.config, None, report);
        settings(&k3s.server_config, Some(Role::Server), report);
        settings(&k3s.worker_config, Some(Role::Worker), report);
    }
    for draft in drafts.iter().filter(|d| d.index == 0) {
        // Nothing is said of a worker's settings where the role is in doubt.
        settings(&draft.file.config, draft.role.or(Some(Role::Server)), report);
    }
}

/// The settings of one place; `role` is none where they are for all nodes.
fn settings(config: &Field<Config>, role: Option<Role>, report: &mut Report<'_>) {
    for entry in config.value().into_iter().flat_map(|c| &c.0) {
        let key = k3s_keys::long(&entry.key);
        if let Some(why) = k3s_keys::owned(key) {
            report.error(entry.key_at, format!("`{key}` is not the spec's to set"), why);
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
        let check = match key {
            "node-label" => check_label,
            "node-taint" => check_taint,
            "flannel-backend" if entry.value().as_str() == Some("none") => {
                let help = "Nodes become Ready only when another network plugin is installed, and `p1 up` waits \
                            for that.";
                report.warning(entry.key_at, "k3s will have no pod network of its own", help);
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

/// Pods' and services' networks against each other and the nodes'. `layers` are a server's settings,
/// later above earlier.
pub(super) fn cluster_networks(
    net: Ipv4Net,
    net_at: Option<Span>,
    layers: &[Option<&Config>; 3],
    report: &mut Report<'_>,
) {
    let mut found: Vec<(&str, Ipv4Net, Option<Span>)> = Vec::new();
    // k3s-io/docs, docs/cli/server.md.
    for (key, default) in [("cluster-cidr", "10.42.0.0/16"), ("service-cidr", "10.43.0.0/16")] {
        let mut items = Vec::new();
        for entry in layers.iter().flatten().flat_map(|l| &l.0).filter(|e| k3s_keys::long(&e.key) == key) {
            if !entry.key.ends_with('+') {
                items.clear();
            }
            items.extend(&entry.items);
        }
        if items.is_empty() {
            found.extend(default.parse().map(|net| (key, net, None)));
        }
        for item in items {
            for text in item.value.as_str().unwrap_or("?").split(',').map(str::trim) {
                match text.parse() {
                    Ok(net) => found.push((key, net, Some(item.at))),
                    // IPv6 cannot overlap with the nodes' IPv4.
                    Err(_) if text.contains(':') => {}
                    Err(_) => {
                        let help = "Write address and prefix: `10.42.0.0/16`.";
                        report.error(item.at, format!("`{key}` is not a network"), help);
                    }
                }
            }
        }
    }
    let overlap = |a: Ipv4Net, b: Ipv4Net| a.contains(&b) || b.contains(&a);
    for (key, other, at) in &found {
        if overlap(net, *other) {
            let what = if *key == "cluster-cidr" { "pods" } else { "services" };
            let message = format!("the nodes' network {net} overlaps with {other}, the {what}' network");
            let help =
                format!("Change `network: cidr`, or give the {what} another one: `k3s: config: {key}`.");
            report.error(net_at.or(*at).unwrap_or_default(), message, help);
        }
    }
    if let [(_, pods, pods_at), (_, services, services_at)] = found[..]
        && overlap(pods, services)
    {
        let message = format!("the pods' network {pods} overlaps with {services}, the services' network");
        let help = "Give one of them another: `cluster-cidr` is the pods', `service-cidr` the services'.";
        report.error(services_at.or(pods_at).unwrap_or_default(), message, help);
    }
}

/// Settings that have to be the same on all servers (k3s-io/docs, docs/cli/server.md): k3s compares most
/// of them when a server joins, and one that differs does not start.
const ALIKE: &[&str] = &[
    "cluster-cidr",
    "cluster-dns",
    "cluster-domain",
    "datastore-endpoint",
    "disable-cloud-controller",
    "disable-helm-controller",
    "disable-kube-proxy",
    "disable-network-policy",
    "egress-selector-mode",
    "embedded-registry",
    "flannel-backend",
    "flannel-external-ip",
    "flannel-ipv6-masq",
    "secrets-encryption",
    "secrets-encryption-provider",
    "service-cidr",
];

/// How many servers there are, and what has to be alike on them. `servers` come with their settings as
/// they add up.
pub(super) fn servers(servers: &[(&Draft<'_>, Yaml)], report: &mut Report<'_>) {
    let given = |config: &Yaml, key: &str| config.get(key).is_some_and(|v| v.as_bool() != Some(false));
    let count = servers.len();
    let external = servers.iter().any(|(_, config)| given(config, "datastore-endpoint"));
    if count > 1 && count.is_multiple_of(2) && !external {
        let (last, _) = &servers[count - 1];
        let at = last.file.count.get().filter(|_| last.index > 0).map_or(last.role_at, |c| c.at);
        let (less, more) = (count - 1, count + 1);
        let help = format!(
            "etcd goes on as long as more than half of its servers run: {count} bear the loss of no more servers \
             than {less} do. Make it {less} or {more}; only a cluster with a `datastore-endpoint` may have any number."
        );
        report.error(at, format!("an even number of servers ({count})"), help);
    }
    if count < 2 {
        return;
    }
    if external && let Some((draft, _)) = servers.iter().find(|(_, c)| given(c, "cluster-init")) {
        let help = "The servers keep their state in the datastore they are given; leave `cluster-init` out.";
        report.error(draft.role_at, "`cluster-init` and `datastore-endpoint` exclude each other", help);
    }
    // Only what a server has of its own can differ.
    let own = |draft: &Draft<'_>, key: &str| -> Option<Span> {
        let entries = draft.file.config.value()?.0.iter();
        entries.filter(|e| k3s_keys::long(&e.key) == key).map(|e| e.key_at).next()
    };
    let help = |key: &str| {
        format!(
            "k3s compares it when a server joins, and one that differs does not start (`critical configuration value \
             mismatch`). Put `{key}` under `k3s: server_config`."
        )
    };
    for key in ALIKE {
        let first = servers[0].1.get(*key);
        if servers.iter().all(|(_, config)| config.get(*key) == first) {
            continue;
        }
        for at in servers.iter().filter_map(|(draft, _)| own(draft, key)) {
            report.error(at, format!("`{key}` has to be the same on all servers"), help(key));
        }
    }
    let balances = |config: &Yaml| {
        let list = ["disable", "disable+"].iter().filter_map(|k| config.get(*k));
        !list
            .flat_map(|v| v.as_sequence().cloned().unwrap_or_else(|| vec![v.clone()]))
            .any(|v| v.as_str().is_some_and(|text| text.split(',').any(|part| part.trim() == "servicelb")))
    };
    if servers.iter().any(|(_, config)| balances(config) != balances(&servers[0].1)) {
        for at in servers.iter().filter_map(|(draft, _)| own(draft, "disable")) {
            let message = "`disable: servicelb` has to be the same on all servers";
            report.error(at, message, help("disable"));
        }
    }
}

/// Bounds that depend on each other.
pub(super) fn limits(file: &File, report: &mut Report<'_>) {
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
