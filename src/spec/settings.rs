//! k3s' settings by their values: what a flag takes, and what k3s' own code makes of it. Sources are
//! k3s-io/k3s, `pkg/cli/server/server.go`, `pkg/agent/config/config.go` and what they call.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr};

use ipnet::{IpNet, Ipv4Net};
use serde_yaml::Value as Yaml;

use super::k3s_keys::{self, Taker, Takes};
use super::report::{Report, Span, listed, nearest, short};
use super::resolve::Draft;
use super::shape::At;
use super::value::{Config, Entry, is_label};
use super::{Network, Role};

/// Pods' and services' networks where the spec names none (k3s-io/docs, docs/cli/server.md).
pub(super) const PODS: &str = "10.42.0.0/16";
pub(super) const SERVICES: &str = "10.43.0.0/16";
/// Of the pods' network a node gets this much, unless kube-controller-manager is told otherwise
/// (kubernetes/kubernetes, cmd/kube-controller-manager/app/core.go), and at most this many times.
const NODE_MASK: u8 = 24;
const MOST_CUTS: u8 = 16;

/// What a machine is told in the end: settings layer by layer, later above earlier, each with its place.
pub(super) struct Layers<'c> {
    pub layers: [Option<&'c Config>; 3],
    pub role: Role,
}

impl<'c> Layers<'c> {
    /// The values of a setting, as k3s adds them up, each with its place and that of its key.
    pub fn items(&self, key: &str) -> Vec<(&'c At<Yaml>, Span)> {
        let mut items = Vec::new();
        for (depth, layer) in self.layers.iter().enumerate() {
            for entry in layer.iter().flat_map(|l| &l.0).filter(|e| k3s_keys::long(&e.key) == key) {
                let of_servers = k3s_keys::taker(key) == Taker::Server;
                if depth == 0 && self.role == Role::Worker && of_servers {
                    continue;
                }
                if !entry.key.ends_with('+') {
                    items.clear();
                }
                items.extend(entry.items.iter().map(|item| (item, entry.key_at)));
            }
        }
        items
    }

    /// The words of a setting whose values k3s cuts at commas.
    pub fn words(&self, key: &str) -> Vec<(String, Span)> {
        let cut = |(item, _): (&At<Yaml>, Span)| {
            let words = plain(&item.value);
            words.split(',').map(|w| (w.trim().to_owned(), item.at)).collect::<Vec<_>>()
        };
        self.items(key).into_iter().flat_map(cut).filter(|(word, _)| !word.is_empty()).collect()
    }

    /// The last value of a setting as text.
    pub fn text(&self, key: &str) -> Option<(String, Span)> {
        let items = self.items(key);
        items.last().map(|(item, _)| (plain(&item.value), item.at)).filter(|(text, _)| !text.is_empty())
    }

    /// Where a truth value is true.
    pub fn on(&self, key: &str) -> Option<Span> {
        let items = self.items(key);
        items.last().filter(|(item, _)| is_true(&item.value)).map(|(_, at)| *at)
    }

    /// An argument of one of Kubernetes' programs: `node-cidr-mask-size=25` among `kube-controller-manager-arg`.
    fn argument(&self, of: &str, name: &str) -> Option<(String, Span)> {
        let found = |(item, _): &(&At<Yaml>, Span)| {
            let text = plain(&item.value);
            let (key, value) = text.trim_start_matches('-').split_once('=')?;
            (key == name).then(|| (value.to_owned(), item.at))
        };
        self.items(of).iter().rev().find_map(found)
    }
}

/// A scalar as k3s reads it: everything becomes text of a command line.
pub(super) fn plain(value: &Yaml) -> String {
    match value {
        Yaml::String(text) => text.clone(),
        Yaml::Bool(value) => value.to_string(),
        Yaml::Number(number) => number.to_string(),
        _ => String::new(),
    }
}

/// The words of a setting of a node whose values k3s cuts at commas, or those that k3s takes without it.
pub(super) fn words_of(node: Option<&super::Node>, key: &str, default: &str) -> Vec<String> {
    let words = node.and_then(|node| node.config.get(key)).map(|value| match value {
        Yaml::Sequence(items) => items.iter().map(plain).collect::<Vec<_>>().join(","),
        one => plain(one),
    });
    let words = words.filter(|words| !words.is_empty()).unwrap_or_else(|| default.to_owned());
    words.split(',').map(|word| word.trim().to_owned()).collect()
}

/// A truth value as Go reads it (`strconv.ParseBool`); none if it is none.
fn truth(value: &Yaml) -> Option<bool> {
    match plain(value).as_str() {
        "1" | "t" | "T" | "TRUE" | "true" | "True" => Some(true),
        "0" | "f" | "F" | "FALSE" | "false" | "False" => Some(false),
        _ => None,
    }
}

pub(super) fn is_true(value: &Yaml) -> bool {
    truth(value) == Some(true)
}

/// What is wrong with the value of one setting by itself. `old` is a minor version of k3s that the spec
/// names.
pub(super) fn value(entry: &Entry, key: &str, minor: Option<u32>, report: &mut Report<'_>) {
    let Some(takes) = k3s_keys::takes(key) else { return };
    if !matches!(takes, Takes::List | Takes::Each(_)) {
        match entry.items[..] {
            [] if entry.is_list => return report.error(entry.key_at, format!("`{key}` has no value"), ONE),
            [] | [_] => {}
            [.., ref last] => {
                let help = "k3s takes the last one; keep only that.";
                report.warning(last.at, format!("`{key}` takes one value"), help);
            }
        }
    }
    for item in &entry.items {
        let text = plain(&item.value);
        let wrong = |what: &str| format!("`{}` is not {what}", short(&text));
        match takes {
            Takes::Flag if truth(&item.value).is_none() => {
                let help = format!("`{key}` is switched on or off: write `true` or `false`.");
                report.error(item.at, wrong("a truth value"), help);
            }
            Takes::Number if !is_number(&text) => {
                report.error(item.at, wrong("a whole number"), format!("`{key}` takes a whole number."));
            }
            Takes::Time if !is_time(&text) => {
                let help = format!("`{key}` takes a time: `10m0s`, `1h30m`.");
                report.error(item.at, wrong("a time"), help);
            }
            Takes::One(words) => one(key, &text, words, item.at, minor, report),
            Takes::Each(words) => {
                for word in text.split(',').map(str::trim).filter(|w| !w.is_empty()) {
                    component(word, words, item.at, report);
                }
            }
            Takes::List | Takes::Text if text.is_empty() && key.ends_with("-arg") => {
                report.error(item.at, format!("an argument of `{key}` is empty"), "Write `name=value`.");
            }
            _ => {}
        }
        special(key, &text, item.at, report);
    }
}

const ONE: &str = "Write one value, or leave the key out.";

fn is_number(text: &str) -> bool {
    let digits = text.strip_prefix(['-', '+']).unwrap_or(text);
    match digits.strip_prefix("0x").or_else(|| digits.strip_prefix("0X")) {
        Some(hex) => !hex.is_empty() && hex.bytes().all(|b| b.is_ascii_hexdigit()),
        None => !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit()),
    }
}

/// A time as Go reads it (`time.ParseDuration`).
fn is_time(text: &str) -> bool {
    let mut rest = text.strip_prefix(['-', '+']).unwrap_or(text);
    if rest == "0" {
        return true;
    }
    while !rest.is_empty() {
        let after = rest.trim_start_matches(|c: char| c.is_ascii_digit() || c == '.');
        let number = &rest[..rest.len() - after.len()];
        let Some(unit) = ["ns", "us", "µs", "ms", "s", "m", "h"].iter().find(|unit| {
            let tail = after.strip_prefix(**unit);
            tail.is_some_and(|t| t.is_empty() || t.starts_with(|c: char| c.is_ascii_digit() || c == '.'))
        }) else {
            return false;
        };
        if !number.bytes().any(|b| b.is_ascii_digit()) || number.matches('.').count() > 1 {
            return false;
        }
        rest = &after[unit.len()..];
    }
    !text.is_empty()
}

fn one(key: &str, text: &str, words: &[&str], at: Span, minor: Option<u32>, report: &mut Report<'_>) {
    // Options behind the name are those of k3s before v1.27.
    let (name, options) = text.split_once('=').unwrap_or((text, ""));
    // k3s-io/docs, docs/networking/basic-network-options.md: the old ones went in v1.26 and v1.27.
    let old = [("wireguard", 26), ("ipsec", 27)].iter().find(|(word, _)| *word == name);
    if let (Some((_, until)), "flannel-backend") = (old, key) {
        if minor.is_none_or(|m| m >= *until) {
            let help = "Use `wireguard-native`.";
            report.error(at, format!("k3s has no flannel backend `{name}` since v1.{until}"), help);
        }
        return;
    }
    if words.contains(&text) || (words.contains(&name) && !options.is_empty() && key == "flannel-backend") {
        return;
    }
    let shown: Vec<&str> = words.iter().copied().filter(|w| *w != "tailscale").collect();
    let help = match nearest(text, shown.iter().copied()) {
        Some(near) => format!("Did you mean `{near}`?"),
        None if key == "flannel-backend" => format!(
            "Possible: {}. With another network plugin write `none`, and apply the plugin by `manifests`.",
            listed(shown)
        ),
        None => format!("Possible: {}.", listed(shown)),
    };
    report.error(at, format!("unknown value `{}` of `{key}`", short(text)), help);
}

/// Packaged components, by the names of their manifests (k3s-io/k3s, `manifests/`). k3s passes over
/// others without a word.
fn component(word: &str, known: &[&str], at: Span, report: &mut Report<'_>) {
    // What is switched off by a setting of its own.
    const OTHERWISE: [(&str, &str); 9] = [
        ("cloud-controller", "disable-cloud-controller"),
        ("helm", "disable-helm-controller"),
        ("helm-controller", "disable-helm-controller"),
        ("kube-proxy", "disable-kube-proxy"),
        ("network-policy", "disable-network-policy"),
        ("scheduler", "disable-scheduler"),
        ("flannel", "flannel-backend: none"),
        ("agent", "disable-agent"),
        ("etcd-snapshots", "etcd-disable-snapshots"),
    ];
    if known.contains(&word) {
        return;
    }
    let shown: Vec<&str> = known.iter().copied().filter(|w| !matches!(*w, "rolebindings" | "ccm")).collect();
    let begins = || shown.iter().copied().find(|w| word.len() > 3 && w.starts_with(word));
    let help = match OTHERWISE.iter().find(|(name, _)| *name == word) {
        Some((_, setting)) if setting.contains(':') => format!("That is `{setting}`."),
        Some((_, setting)) => format!("That is a setting of its own: `{setting}: true`."),
        None => match nearest(word, shown.iter().copied()).or_else(begins) {
            Some(near) => format!("Did you mean `{near}`?"),
            None => format!("There are {}.", listed(shown)),
        },
    };
    report.error(at, format!("k3s has no component `{}` to disable", short(word)), help);
}

/// Arguments that k3s, or p1, gives to Kubernetes' programs itself.
const GIVEN: [(&str, &[&str], &str); 8] = [
    ("kubelet-arg", &["hostname-override", "node-ip"], "p1 sets the node's name and address."),
    ("kubelet-arg", &["cluster-dns", "cluster-domain"], "Set it for k3s: `cluster-dns`, `cluster-domain`."),
    ("kube-proxy-arg", &["hostname-override"], "p1 sets the node's name."),
    ("kube-proxy-arg", &["cluster-cidr"], "Set it for k3s: `cluster-cidr`."),
    ("kube-apiserver-arg", &["service-cluster-ip-range"], "Set it for k3s: `service-cidr`."),
    ("kube-apiserver-arg", &["advertise-address", "secure-port"], "p1 sets the API's address and port."),
    ("kube-apiserver-arg", &["etcd-servers"], "Set it for k3s: `datastore-endpoint`."),
    (
        "kube-controller-manager-arg",
        &["cluster-cidr", "service-cluster-ip-range"],
        "Set it for k3s: `cluster-cidr`, `service-cidr`.",
    ),
];

/// Values with a form of their own.
fn special(key: &str, text: &str, at: Span, report: &mut Report<'_>) {
    let name = text.trim_start_matches('-').split('=').next().unwrap_or_default();
    let given = |(of, names, _): &&(&str, &[&str], &str)| *of == key && names.contains(&name);
    if let Some((_, _, help)) = GIVEN.iter().find(given) {
        report.error(at, format!("`{key}: {name}` cannot be set in the spec"), *help);
    }
    match key {
        "node-external-ip" => {
            for word in text.split(',').map(str::trim).filter(|w| w.parse::<IpAddr>().is_err()) {
                let help = "Write the address at which the node is reached from outside: `203.0.113.7`.";
                report.error(at, format!("`{}` is not an address", short(word)), help);
            }
        }
        "cluster-domain" if text.is_empty() || !text.split('.').all(is_label) => {
            let help = "Write a DNS name in lower case: `cluster.local`.";
            report.error(at, format!("`{}` is not a domain", short(text)), help);
        }
        "service-node-port-range" if !is_port_range(text) => {
            let help = "Write the first and the last port: `30000-32767`.";
            report.error(at, format!("`{}` is not a range of ports", short(text)), help);
        }
        "write-kubeconfig-mode"
            if text.is_empty() || text.len() > 5 || !text.bytes().all(|b| (b'0'..=b'7').contains(&b)) =>
        {
            let help = "Write it in octal digits, in quotes: `\"0644\"`.";
            report.error(at, format!("`{}` is not a file's mode", short(text)), help);
        }
        "advertise-port" | "lb-server-port" if is_number(text) && !is_port(text) => {
            report.error(at, format!("`{}` is not a port", short(text)), "Ports are 1 to 65535.");
        }
        "etcd-snapshot-reconcile-interval" | "etcd-s3-timeout"
            if is_time(text) && !longer_than_nothing(text) =>
        {
            report.error(at, format!("`{key}` has to be longer than nothing"), "Write a time: `10m0s`.");
        }
        _ => {}
    }
}

fn longer_than_nothing(text: &str) -> bool {
    !text.starts_with('-') && text.bytes().any(|b| (b'1'..=b'9').contains(&b))
}

fn is_port(text: &str) -> bool {
    text.parse::<u16>().is_ok_and(|port| port > 0)
}

/// As Kubernetes reads it (apimachinery, `pkg/util/net/port_range.go`).
fn is_port_range(text: &str) -> bool {
    let number = |text: &str| text.trim().parse::<u16>().ok();
    if let Some((first, last)) = text.split_once('-') {
        return matches!((number(first), number(last)), (Some(a @ 1..), Some(b)) if a <= b);
    }
    if let Some((first, more)) = text.split_once('+') {
        return matches!((number(first), number(more)), (Some(a @ 1..), Some(b)) if a.checked_add(b).is_some());
    }
    is_port(text)
}

/// Settings that are about one machine, given to several; and addresses that are not the machine's.
pub(super) fn of_one_machine(machines: &[(&Draft<'_>, Layers<'_>)], report: &mut Report<'_>) {
    for key in ["node-external-ip", "bind-address"] {
        let mut by_place: Vec<(Span, String, Vec<&Draft<'_>>)> = Vec::new();
        for (draft, layers) in machines {
            for (word, at) in layers.words(key) {
                match by_place.iter_mut().find(|(a, w, _)| *a == at && *w == word) {
                    Some((.., all)) => all.push(draft),
                    None => by_place.push((at, word, vec![draft])),
                }
            }
        }
        for (at, word, drafts) in &by_place {
            let Ok(ip) = word.parse::<IpAddr>() else {
                if key == "bind-address" {
                    let help = "Write the node's own address, or leave it out: k3s listens at all of them.";
                    report.error(*at, format!("`{}` is not an address", short(word)), help);
                }
                continue;
            };
            if key == "bind-address" && ip.is_unspecified() {
                continue;
            }
            if key == "bind-address" && ip.is_loopback() {
                let help = "Nobody but the node itself would reach k3s there; leave it out, and k3s listens at all \
                            of its addresses.";
                report.error(*at, format!("`{key}` {ip} is the node's own loopback"), help);
                continue;
            }
            if drafts.len() > 1 {
                let help = match key {
                    "bind-address" => {
                        "k3s on the others cannot listen there and does not start; leave it out, or put \
                                       it under the `config` of one node."
                    }
                    _ => {
                        "Write one entry under `nodes` for each machine, without `count`, with its own address."
                    }
                };
                report.error(*at, format!("`{key}` {ip} would be that of {} machines", drafts.len()), help);
                continue;
            }
            let node = drafts[0];
            if let (true, Some(own)) = (key == "bind-address", node.ip)
                && ip != IpAddr::V4(own)
            {
                let help = "k3s cannot listen at an address that the machine does not have; leave it out.";
                report.error(*at, format!("`{key}` {ip} is not the node's address, {own}"), help);
            }
        }
        // One address, two machines, in two places.
        let mut seen: Vec<(&str, Span)> = Vec::new();
        for (at, word, _) in
            by_place.iter().filter(|(_, w, all)| all.len() == 1 && w.parse::<IpAddr>().is_ok())
        {
            match seen.iter().find(|(w, _)| w == word) {
                Some((_, first)) if key == "node-external-ip" => {
                    let help = format!("Line {} has it too; every machine has its own.", report.line(*first));
                    report.error(*at, format!("`{key}` {word} is another machine's"), help);
                }
                _ => seen.push((word, *at)),
            }
        }
    }
}

/// The networks of one kind: those that are IPv4 and good, with their places; the default without any.
fn networks(
    layers: &Layers<'_>,
    key: &str,
    default: &str,
    report: &mut Report<'_>,
) -> Vec<(Ipv4Net, Option<Span>)> {
    let mut found: Vec<(Ipv4Net, Option<Span>)> = Vec::new();
    let words = layers.words(key);
    if words.is_empty() {
        return default.parse().map(|net| (net, None)).into_iter().collect();
    }
    for (word, at) in words {
        match word.parse::<IpNet>() {
            Ok(IpNet::V4(net)) if !found.is_empty() => {
                let help = "Kubernetes takes one network of IPv4; keep one of them.";
                report.error(at, format!("`{key}` has a second network, {net}"), help);
            }
            Ok(IpNet::V4(net)) => {
                let (first, last) = (net.network(), net.broadcast());
                if first.is_loopback()
                    || first.octets()[0] == 0
                    || first.is_link_local()
                    || last.octets()[0] >= 224
                {
                    let help = "Take a network from 10.0.0.0/8, 172.16.0.0/12 or 192.168.0.0/16.";
                    report.error(at, format!("`{key}` {net} is reserved"), help);
                }
                found.push((net.trunc(), Some(at)));
            }
            Ok(IpNet::V6(net)) => {
                let help = "p1's machines have IPv4 addresses only, and k3s does not start where the families of \
                            nodes, pods and services differ; leave it out.";
                report.error(at, format!("`{key}` has a network of IPv6, {net}"), help);
            }
            Err(_) => {
                let help = "Write address and prefix: `10.42.0.0/16`.";
                report.error(at, format!("`{key}` is not a network"), help);
            }
        }
    }
    found
}

/// Where the nodes are: p1's own in its network, which the spec may give, others each at its address.
pub(super) struct NodeAddresses<'c> {
    pub network: &'c Network,
    pub cidr_at: Option<Span>,
    pub drafts: &'c [Draft<'c>],
}

/// Pods' and services' networks: whether they are large enough, and whether they overlap with each other
/// or with the nodes'. `layers` are a server's.
pub(super) fn cluster_networks(nodes: &NodeAddresses<'_>, layers: &Layers<'_>, report: &mut Report<'_>) {
    let pods = networks(layers, "cluster-cidr", PODS, report);
    let services = networks(layers, "service-cidr", SERVICES, report);
    for (pods, at) in &pods {
        let members = nodes.drafts.iter().filter(|draft| draft.role.is_none_or(|role| role.has_k3s()));
        room_for_nodes(*pods, at.unwrap_or_default(), members.count(), layers, report);
    }
    for (services, at) in &services {
        room_for_services(*services, at.unwrap_or_default(), layers, report);
    }
    dns(&services, layers, report);
    let overlap = |a: &Ipv4Net, b: &Ipv4Net| a.contains(b) || b.contains(a);
    for (key, what, all) in [("cluster-cidr", "pods", &pods), ("service-cidr", "services", &services)] {
        for (other, at) in all {
            let net = nodes.network.cidr;
            if overlap(&net, other) {
                let message = format!("the nodes' network {net} overlaps with {other}, the {what}' network");
                let help =
                    format!("Change `network: cidr`, or give the {what} another one: `k3s: config: {key}`.");
                report.error(nodes.cidr_at.or(*at).unwrap_or_default(), message, help);
            }
            for draft in nodes.drafts.iter().filter(|draft| draft.ssh.is_some()) {
                let (Some(ip), Some(ip_at)) = (draft.ip.filter(|ip| other.contains(ip)), draft.ip_at) else {
                    continue;
                };
                let help = format!("Give the {what} another one: `k3s: config: {key}`.");
                report.error(ip_at, format!("{ip} is in {other}, the {what}' network"), help);
            }
        }
    }
    for (pods, pods_at) in &pods {
        for (services, services_at) in services.iter().filter(|(s, _)| overlap(pods, s)) {
            let message = format!("the pods' network {pods} overlaps with {services}, the services' network");
            let help = "Give one of them another: `cluster-cidr` is the pods', `service-cidr` the services'.";
            report.error(services_at.or(*pods_at).unwrap_or_default(), message, help);
        }
    }
}

/// kube-controller-manager cuts the pods' network into one for each node.
fn room_for_nodes(pods: Ipv4Net, at: Span, machines: usize, layers: &Layers<'_>, report: &mut Report<'_>) {
    const OF: &str = "kube-controller-manager-arg";
    if layers.argument(OF, "allocate-node-cidrs").is_some_and(|(value, _)| value == "false") {
        return;
    }
    let given =
        ["node-cidr-mask-size-ipv4", "node-cidr-mask-size"].iter().find_map(|name| layers.argument(OF, name));
    let (mask, mask_at) = match &given {
        None => (NODE_MASK, None),
        Some((text, at)) => match text.parse::<u8>() {
            Ok(mask @ 1..=30) => (mask, Some(*at)),
            _ => {
                let help = "Write the prefix of each node's part of the pods' network: 24 has 254 addresses.";
                return report.error(*at, format!("`{}` is no prefix for a node", short(text)), help);
            }
        },
    };
    let at = if at == Span::default() { mask_at.unwrap_or(at) } else { at };
    let prefix = pods.prefix_len();
    if prefix > mask {
        let help = format!("Each node gets a /{mask} of it: take a larger network, e.g. `{PODS}`.");
        return report.error(at, format!("`cluster-cidr` {pods} is too small for a single node"), help);
    }
    if mask - prefix > MOST_CUTS {
        let help = format!(
            "Kubernetes cuts it into at most 65536 parts of /{mask}: take one from /{}.",
            mask - MOST_CUTS
        );
        return report.error(at, format!("`cluster-cidr` {pods} is too large"), help);
    }
    let room = 1_usize << (mask - prefix);
    if room < machines {
        let bits = machines.next_power_of_two().trailing_zeros();
        let wanted = u32::from(mask).saturating_sub(bits);
        let help = format!(
            "Each node gets a /{mask} of it, and there are {room}: take a /{wanted} or a larger one, e.g. `{PODS}`."
        );
        report.error(at, format!("`cluster-cidr` {pods} is too small for {machines} nodes"), help);
    }
}

fn room_for_services(services: Ipv4Net, at: Span, layers: &Layers<'_>, report: &mut Report<'_>) {
    let prefix = services.prefix_len();
    // kube-apiserver wants eight addresses; k3s gives the tenth to the DNS unless it is told another one.
    let most = if layers.items("cluster-dns").is_empty() { 28 } else { 29 };
    if prefix > most {
        let help = format!("Take one from /12 to /{most}, e.g. `{SERVICES}`.");
        report.error(at, format!("`service-cidr` {services} is too small"), help);
    } else if prefix < 12 {
        let help = format!("Kubernetes' API server before v1.33 takes at most a /12, e.g. `{SERVICES}`.");
        report.warning(at, format!("`service-cidr` {services} may be too large"), help);
    }
}

/// The address of the cluster's DNS is that of a service.
fn dns(services: &[(Ipv4Net, Option<Span>)], layers: &Layers<'_>, report: &mut Report<'_>) {
    // With another DNS than k3s' own it may be anywhere.
    let own = !layers.words("disable").iter().any(|(word, _)| word == "coredns");
    for (word, at) in layers.words("cluster-dns") {
        let Ok(IpAddr::V4(ip)) = word.parse::<IpAddr>() else {
            let help = "Write an IPv4 address of the services' network: `10.43.0.10`.";
            report.error(at, format!("`cluster-dns` is not an IPv4 address: `{}`", short(&word)), help);
            continue;
        };
        let Some((net, _)) = services.first().filter(|_| own) else { continue };
        let first = Ipv4Addr::from(u32::from(net.network()).saturating_add(1));
        let help = format!("k3s makes it a service; `service-cidr` is {net}.");
        if !net.contains(&ip) {
            report.error(at, format!("`cluster-dns` {ip} is outside of the services' network"), help);
        } else if ip == first {
            let message = format!("`cluster-dns` {ip} is the API's own address in the services' network");
            report.error(at, message, help);
        } else if ip == net.network() || ip == net.broadcast() {
            let message = format!("`cluster-dns` {ip} is the first or the last address of {net}");
            report.error(at, message, help);
        }
    }
}

/// What a server is told and what does nothing, or less than it seems.
pub(super) fn without_effect(etcd: bool, external: bool, layers: &Layers<'_>, report: &mut Report<'_>) {
    let mut said: BTreeSet<String> = BTreeSet::new();
    for entry in layers.layers.iter().flatten().flat_map(|l| &l.0) {
        let key = k3s_keys::long(&entry.key);
        let (what, help) = if key.starts_with("etcd-") && !etcd {
            let where_ = if external { "in the datastore that it is given" } else { "in SQLite" };
            (
                format!("`{key}` has no effect: the cluster keeps its state {where_}"),
                "Several servers have an etcd, and one with `cluster-init: true`.",
            )
        } else if matches!(key, "datastore-cafile" | "datastore-certfile" | "datastore-keyfile") && !external
        {
            (
                format!("`{key}` has no effect without `datastore-endpoint`"),
                "Name the datastore, or leave it out.",
            )
        } else if key == "secrets-encryption-provider" && layers.on("secrets-encryption").is_none() {
            (
                format!("`{key}` has no effect without `secrets-encryption: true`"),
                "Switch it on before the cluster is made: that is easier than later.",
            )
        } else {
            continue;
        };
        if said.insert(key.to_owned()) {
            report.warning(entry.key_at, what, help);
        }
    }
    if let Some(at) = layers.on("embedded-registry")
        && let Some(other) =
            ["docker", "container-runtime-endpoint"].iter().find(|k| !layers.items(k).is_empty())
    {
        let help = format!("It needs k3s' own containerd; leave `{other}` or this out.");
        report.error(at, format!("`embedded-registry` and `{other}` exclude each other"), help);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_read_as_go_reads_them() {
        for good in ["10m0s", "1h30m", "1.5h", "0", "300ms", "-2s", "1h1us"] {
            assert!(is_time(good), "{good}");
        }
        for bad in ["", "5", "5 m", "m", "1h2", "5mm", "1..5h", ".s"] {
            assert!(!is_time(bad), "{bad}");
        }
        assert!(is_port_range("30000-32767") && is_port_range("30000+100") && is_port_range("30000"));
        assert!(!is_port_range("32767-30000") && !is_port_range("30000-99999") && !is_port_range("a-b"));
    }
}
