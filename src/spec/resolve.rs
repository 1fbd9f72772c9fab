//! From the spec as written to the [`Cluster`] that everybody else uses: defaults, shorthand, and
//! k3s' settings of each node.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::path::Path;

use serde_yaml::Value as YamlValue;

use super::defaults;
use super::environment;
use super::file::{File, K3sFile, LibvirtFile, NetworkFile, NodeFile, RetryFile, RolloutFile, TimeoutsFile};
use super::k3s_keys::{self, Taker};
use super::report::{Report, Span};
use super::settings::{self, Layers};
use super::shape::{At, Field};
use super::value::{Config, Time};
use super::{
    Artifacts, BakeChoice, BoxRef, Cluster, Cni, Disk, EngineChoice, K3s, Libvirt, Network, Node,
    ProviderChoice, Release, Retry, Role, Rollout, SshAccess, Timeouts, Verify, Yaml, provision, validate,
};

/// More machines than this are a slip of the finger.
pub(super) const MOST_NODES: usize = 250;

/// One machine while it is worked out.
pub(super) struct Draft<'f> {
    pub file: &'f NodeFile,
    /// `None` if the entry's name is bad.
    pub name: Option<String>,
    pub name_at: Span,
    /// Where it is given.
    pub hostname: Option<String>,
    /// `None` if the entry's role is bad.
    pub role: Option<Role>,
    pub role_at: Span,
    pub ip: Option<Ipv4Addr>,
    /// Where the address was given; `None` if it is chosen here.
    pub ip_at: Option<Span>,
    /// The number in a group made by `count`, from 0.
    pub index: u32,
    /// How its machine is reached, if it exists already.
    pub ssh: Option<Box<SshAccess>>,
}

/// Works everything out and reports what does not go together. `None` if there is any error.
pub(super) fn cluster(file: &File, report: &mut Report<'_>) -> Option<Cluster> {
    let (mut drafts, whole) = drafts(file, report);
    validate::nodes(file, &drafts, whole, report);
    validate::hosts(file, &drafts, report);
    let made = drafts.is_empty() || drafts.iter().any(|d| d.ssh.is_none());
    let network = if made { network(&file.network) } else { Some(Network::none()) };
    validate::k3s(file, &drafts, report);
    validate::limits(file, report);
    validate::existing(file, &drafts, report);
    let provision = provision::all(file, &drafts, report);
    validate::apps(file, report);
    environment::check(file, report);
    if let Some(network) = &network {
        validate::addresses(&drafts, network, report);
        if !network.is_none() {
            let at = file.network.value().and_then(|n| n.cidr.get()).map(|c| c.at);
            validate::network(network, at, report);
            choose_addresses(&mut drafts, network, report);
        }
    }
    let config = |of: fn(&K3sFile) -> &Field<Config>| file.k3s.value().and_then(|k| of(k).value());
    let common = config(|k| &k.config);
    let role = |role| match role {
        Role::Server => config(|k| &k.server_config),
        Role::Worker => config(|k| &k.worker_config),
        Role::None => None,
    };
    if whole {
        let mut machines = Vec::with_capacity(drafts.len());
        for draft in &drafts {
            let Some(of) = draft.role.filter(|role| role.has_k3s()) else { continue };
            let layers = [common, role(of), draft.file.config.value()];
            machines.push((draft, Layers { layers, role: of }));
        }
        let of = |role| machines.iter().filter(move |(_, l)| l.role == role).map(|(d, l)| (*d, l));
        let servers: Vec<_> = of(Role::Server).collect();
        let cidr_at = file.network.value().and_then(|n| n.cidr.get()).map(|c| c.at);
        if let Some(network) = &network {
            for (_, layers) in &servers {
                let nodes = settings::NodeAddresses { network, cidr_at, drafts: &drafts };
                settings::cluster_networks(&nodes, layers, report);
            }
        }
        settings::of_one_machine(&machines, report);
        validate::servers(&servers, report);
    }
    if report.errors() > 0 {
        return None;
    }

    let cni = file.k3s.value().and_then(|k| k.cni.value()).copied().unwrap_or_default();
    let mut nodes = Vec::with_capacity(drafts.len());
    for draft in &drafts {
        let node_role = draft.role?;
        let layers = [common.filter(|_| node_role.has_k3s()), role(node_role), draft.file.config.value()];
        let mut config = layered(&layers, node_role);
        if let Some(external) = draft.file.external_ip.value() {
            config.insert(EXTERNAL_IP.into(), external.0.to_string().into());
        }
        if node_role == Role::Server && cni == Cni::None {
            without_network(&mut config);
        }
        let (cpus, memory) = defaults::size(node_role);
        let mut labels = taken(&mut config, "node-label");
        labels.extend(draft.file.labels.value().map(|l| l.0.clone()).unwrap_or_default());
        let mut taints = taken(&mut config, "node-taint");
        taints.extend(draft.file.taints.value().map(|t| t.0.clone()).unwrap_or_default());
        nodes.push(Node {
            name: draft.name.clone()?,
            hostname: draft.hostname.clone().filter(|hostname| Some(hostname) != draft.name.as_ref()),
            role: node_role,
            ip: draft.ip?,
            size: draft.ssh.is_none().then(|| super::Size {
                cpus: draft.file.cpus.value().map_or(cpus, |c| c.0),
                memory: draft.file.memory.value().map_or(memory, |m| m.0),
            }),
            ssh: draft.ssh.clone(),
            disk: draft.file.disk.value().map(|disk| disk.0),
            disks: disks(draft.file).into_iter().map(|(disk, _)| disk).collect(),
            labels: last_of_each(labels, |label| label.split('=').next().unwrap_or_default()),
            taints: last_of_each(taints, |taint| taint),
            config,
        });
    }
    nodes.sort_by_key(|node| node.role);
    let mut groups = std::collections::BTreeMap::<String, Vec<String>>::new();
    for draft in drafts.iter().filter(|d| d.file.count.value().is_some()) {
        if let (Some(group), Some(name)) = (draft.file.name.value(), &draft.name) {
            groups.entry(group.0.clone()).or_default().push(name.clone());
        }
    }
    let network = network?;
    let env = environment::of(file, &network, &nodes);
    let libvirt = libvirt(file.libvirt.value());
    // Nobody else makes machines there.
    let (provider, engine) = match libvirt.is_session() {
        true => (ProviderChoice::Libvirt, EngineChoice::Direct),
        false => (maker(file, &drafts), file.engine.value().copied().unwrap_or_default()),
    };
    Some(Cluster {
        name: file.name.value()?.0.clone(),
        provider,
        engine,
        libvirt,
        image: file.r#box.value().cloned().unwrap_or_else(|| BoxRef::Definition(defaults::BOX.to_owned())),
        network,
        disposable: file.disposable.value().is_some_and(|f| f.0),
        autostart: file.autostart.value().is_some_and(|f| f.0),
        keep: file.keep.value().is_some_and(|f| f.0),
        bake: match file.bake.value().copied().unwrap_or_default() {
            BakeChoice::Off => BakeChoice::Never,
            choice => choice,
        },
        keep_images: file.keep_images.value().is_none_or(|f| f.0),
        hosts: file.hosts.value().into_iter().flat_map(|h| &h.0).map(|host| host.value.clone()).collect(),
        nodes,
        groups,
        k3s: K3s { env, ..k3s(&file.k3s) },
        provision,
        namespaces: listed(&file.namespaces).map(|n| n.0.clone()).collect(),
        manifests: listed(&file.manifests).map(|m| m.manifest.clone()).collect(),
        verify: Verify { image: file.verify.value().and_then(|v| v.image.value()).map(|i| i.0.clone()) },
        timeouts: timeouts(file.timeouts.value()),
        retry: retry(file.retry.value()),
        rollout: rollout(file.rollout.value()),
        base: report.base.to_owned(),
        fork: None,
        secrets: report.hidden().to_vec(),
    })
}

/// The good items of a list.
fn listed<T>(field: &Field<Vec<Option<At<T>>>>) -> impl Iterator<Item = &T> {
    field.value().into_iter().flatten().flatten().map(|at| &at.value)
}

fn libvirt(file: Option<&LibvirtFile>) -> Libvirt {
    let Some(file) = file else { return Libvirt::default() };
    let bridge = file.bridge.value().map(|bridge| bridge.0.clone());
    Libvirt { uri: file.uri.value().copied().unwrap_or_default(), bridge }
}

/// `None` if a part of it is bad.
fn network(field: &Field<NetworkFile>) -> Option<Network> {
    let default = Network { cidr: defaults::CIDR.parse().expect("a network"), nics: defaults::NICS };
    match field {
        Field::Missing => Some(default),
        Field::Bad => None,
        Field::Good(At { value, .. }) if value.cidr.is_bad() => None,
        Field::Good(At { value, .. }) => Some(Network {
            cidr: value.cidr.value().map_or(default.cidr, |c| c.0),
            nics: if value.nics.value().is_some_and(|n| n.0 == 2) { 2 } else { 1 },
        }),
    }
}

/// The machines, with `count` spelled out; false if some entry could not be read.
fn drafts<'f>(file: &'f File, report: &mut Report<'_>) -> (Vec<Draft<'f>>, bool) {
    let Some(entries) = file.nodes.get() else { return (Vec::new(), false) };
    let mut whole = true;
    let mut out = Vec::new();
    for entry in &entries.value {
        let Some(At { at, value: node }) = entry else {
            whole = false;
            continue;
        };
        whole &= !node.count.is_bad() && !node.role.is_bad();
        let name_at = node.name.get().map_or(*at, |n| n.at);
        let role = match &node.role {
            Field::Missing => Some(Role::Worker),
            role => role.value().copied(),
        };
        let count = node.count.value().map(|c| c.0);
        for index in 0..count.unwrap_or(1) {
            if out.len() == MOST_NODES {
                let help = "Split them into several clusters.";
                report.error(name_at, format!("more than {MOST_NODES} machines"), help);
                return (out, false);
            }
            let given = node.ip.get();
            let host = node.ssh.value().and_then(|ssh| ssh.host.get());
            // A machine that exists has the address by which it is reached, if it is reached by one.
            let by_host = || Some((host?.value.0.parse::<Ipv4Addr>().ok()?, host?.at));
            let given = given.map(|ip| (ip.value.0, ip.at)).or_else(by_host);
            let ip = given.and_then(|(ip, _)| u32::from(ip).checked_add(index)).map(Ipv4Addr::from);
            out.push(Draft {
                ssh: access(file, node, ip),
                file: node,
                name: node.name.value().map(|n| numbered(&n.0, count.map(|_| index + 1))),
                name_at,
                hostname: node.hostname.value().map(|h| numbered(&h.0, count.map(|_| index + 1))),
                role,
                role_at: node.role.get().map_or(name_at, |r| r.at),
                ip,
                ip_at: given.map(|(_, at)| at),
                index,
            });
        }
    }
    (out, whole)
}

/// A machine's disks beside its own, with their places.
pub(super) fn disks(file: &NodeFile) -> Vec<(Disk, Span)> {
    let entries = file.disks.value().into_iter().flatten().enumerate();
    entries.filter_map(|(i, entry)| Some((entry.as_ref()?.value.at(i + 1), entry.as_ref()?.at))).collect()
}

/// A name with its number in a group, which belongs to the first label of one that is fully qualified.
fn numbered(name: &str, number: Option<u32>) -> String {
    match (number, name.split_once('.')) {
        (None, _) => name.to_owned(),
        (Some(number), None) => format!("{name}-{number}"),
        (Some(number), Some((first, domain))) => format!("{first}-{number}.{domain}"),
    }
}

/// How k3s is told of an address for others.
pub(super) const EXTERNAL_IP: &str = "node-external-ip";

/// What makes the machines that are made; nothing where none is.
fn maker(file: &File, drafts: &[Draft<'_>]) -> ProviderChoice {
    let own = |draft: &Draft<'_>| draft.file.provider.value().copied();
    let made: Vec<&Draft<'_>> = drafts.iter().filter(|d| d.ssh.is_none()).collect();
    match (made.is_empty(), file.provider.value().copied().unwrap_or_default()) {
        (true, _) => ProviderChoice::Ssh,
        (false, ProviderChoice::Ssh) => made.iter().find_map(|d| own(d)).unwrap_or_default(),
        (false, choice) => choice,
    }
}

/// How a node's machine is reached, if it exists already: by its own word, else by the cluster's.
fn access(file: &File, node: &NodeFile, ip: Option<Ipv4Addr>) -> Option<Box<SshAccess>> {
    let exists = match node.provider.value().copied() {
        Some(choice) => choice == ProviderChoice::Ssh,
        None => file.provider.value() == Some(&ProviderChoice::Ssh) || !matches!(node.ssh, Field::Missing),
    };
    if !exists {
        return None;
    }
    let (own, common) = (node.ssh.value(), file.ssh.value());
    macro_rules! of {
        ($key:ident) => {
            own.and_then(|s| s.$key.value()).or(common.and_then(|s| s.$key.value()))
        };
    }
    let address = ip.map(|ip| ip.to_string()).unwrap_or_default();
    Some(Box::new(SshAccess {
        host: own.and_then(|s| s.host.value()).map_or(address, |host| host.0.clone()),
        user: of!(user).map(|user| user.0.clone()),
        port: of!(port).and_then(|port| u16::try_from(port.0).ok()),
        key: of!(key).map(|key| key.0.clone()),
        jump: of!(jump).map(|jump| jump.0.clone()),
        r#become: of!(r#become).copied().unwrap_or_default(),
        password: of!(sudo_password).cloned(),
        host_key: of!(host_key).copied().unwrap_or_default(),
    }))
}

/// Gives the machines without an address the next free one, in the order of the file.
fn choose_addresses(drafts: &mut [Draft<'_>], network: &Network, report: &mut Report<'_>) {
    let mut used: std::collections::HashSet<u32> =
        drafts.iter().filter_map(|d| d.ip).map(u32::from).collect();
    used.insert(network.gateway().into());
    let first = u32::from(network.cidr.network()) + 1;
    let last = u32::from(network.cidr.broadcast()) - 1;
    // People expect the low addresses to be somebody else's: .11 comes first where there is room.
    let start = if network.cidr.prefix_len() <= 27 { first + 10 } else { first };
    let mut free = (start..=last).chain(first..start).filter(|ip| !used.contains(ip));
    for draft in drafts.iter_mut().filter(|d| d.ip_at.is_none() && d.ssh.is_none()) {
        // A bad address was reported and keeps its place free.
        if draft.file.ip.is_bad() {
            continue;
        }
        let Some(ip) = free.next() else {
            let name = draft.name.as_deref().unwrap_or("a node");
            let message = format!("no address is left for `{name}` in {}", network.cidr);
            let room = last - first;
            let help = format!(
                "Beside the host's own address it has room for {room} nodes; take a larger `network: cidr`, \
                 e.g. one that ends in /24."
            );
            report.error(draft.name_at, message, help);
            return;
        };
        draft.ip = Some(ip.into());
    }
}

/// The settings of one node, each layer above the one before, as k3s itself would layer files:
/// `key` replaces, `key+` appends. What only servers know does not reach workers from the common layer.
fn layered(layers: &[Option<&Config>; 3], role: Role) -> Yaml {
    let mut out = Yaml::new();
    for (depth, layer) in layers.iter().enumerate() {
        for entry in layer.iter().flat_map(|l| &l.0) {
            let common = depth == 0;
            if common && role == Role::Worker && k3s_keys::taker(&entry.key) == Taker::Server {
                continue;
            }
            put(&mut out, &entry.key, entry.value());
        }
    }
    out
}

/// k3s brings no network for pods, and what it has for their policies would not know another's (k3s-io/docs,
/// docs/networking/basic-network-options.md), unless the spec says that it does.
fn without_network(config: &mut Yaml) {
    config.insert("flannel-backend".into(), "none".into());
    if !config.contains_key("disable-network-policy") {
        config.insert("disable-network-policy".into(), true.into());
    }
}

fn put(out: &mut Yaml, key: &str, value: YamlValue) {
    let Some(plain) = key.strip_suffix('+') else {
        out.shift_remove(format!("{key}+"));
        out.insert(key.into(), value);
        return;
    };
    // Kept as `key+` where nothing is below, so that it also appends to what p1 sets.
    let target = if out.contains_key(plain) { plain } else { key };
    let value = match out.get(target) {
        Some(below) => YamlValue::Sequence([list(below.clone()), list(value)].concat()),
        None => value,
    };
    out.insert(target.into(), value);
}

fn list(value: YamlValue) -> Vec<YamlValue> {
    match value {
        YamlValue::Sequence(items) => items,
        one => vec![one],
    }
}

/// Takes a setting, and what is to be appended to it, out of a node's settings.
fn taken(config: &mut Yaml, key: &str) -> Vec<String> {
    [key.to_owned(), format!("{key}+")]
        .iter()
        .filter_map(|k| config.shift_remove(k.as_str()))
        .flat_map(list)
        .filter_map(|v| v.as_str().map(str::to_owned))
        .collect()
}

/// The last item of each key, in the order in which the keys first appear.
fn last_of_each(items: Vec<String>, key: impl Fn(&str) -> &str) -> Vec<String> {
    let mut out: Vec<String> = Vec::new();
    for item in items {
        match out.iter_mut().find(|o| key(o) == key(&item)) {
            Some(old) => *old = item,
            None => out.push(item),
        }
    }
    out
}

fn k3s(field: &Field<K3sFile>) -> K3s {
    let Some(file) = field.value() else {
        return K3s {
            release: Release::Channel(defaults::CHANNEL.to_owned()),
            endpoint: None,
            token: None,
            env: BTreeMap::new(),
            registries: Yaml::new(),
            artifacts: Artifacts::default(),
        };
    };
    let release = match (file.version.value(), file.channel.value()) {
        (Some(version), _) => Release::Version(version.0.clone()),
        (None, channel) => Release::Channel(channel.map_or(defaults::CHANNEL.to_owned(), |c| c.0.clone())),
    };
    let artifacts = file.artifacts.value().map_or_else(Artifacts::default, |a| Artifacts {
        binary: a.binary.value().cloned(),
        installer: a.installer.value().cloned(),
        dir: a.dir.value().map(|dir| dir.0.clone()),
        images: a.images.value().into_iter().flatten().flatten().map(|i| i.value.clone()).collect(),
    });
    K3s {
        release,
        endpoint: file.endpoint.value().cloned(),
        token: file.token.value().cloned(),
        env: BTreeMap::new(),
        registries: file.registries.value().map(|m| m.0.clone()).unwrap_or_default(),
        artifacts,
    }
}

fn timeouts(file: Option<&TimeoutsFile>) -> Timeouts {
    let default = Timeouts::default();
    let Some(file) = file else { return default };
    let or = |field: &Field<Time>, default| field.value().map_or(default, |t| t.0);
    Timeouts {
        boot: or(&file.boot, default.boot),
        ssh: or(&file.ssh, default.ssh),
        install: or(&file.install, default.install),
        server_ready: or(&file.server_ready, default.server_ready),
        node_ready: or(&file.node_ready, default.node_ready),
        download: or(&file.download, default.download),
        provision: or(&file.provision, default.provision),
        rollout: or(&file.rollout, default.rollout),
    }
}

pub(super) fn retry(file: Option<&RetryFile>) -> Retry {
    let default = Retry::default();
    let Some(file) = file else { return default };
    Retry {
        attempts: file.attempts.value().map_or(default.attempts, |a| a.0),
        backoff: file.backoff.value().map_or(default.backoff, |t| t.0),
        max_backoff: file.max_backoff.value().map_or(default.max_backoff, |t| t.0),
    }
}

fn rollout(file: Option<&RolloutFile>) -> Rollout {
    let default = Rollout::default();
    let Some(file) = file else { return default };
    Rollout {
        workers: file.workers.value().map_or(default.workers, |w| w.0),
        drain: file.drain.value().map_or(default.drain, |d| d.0),
    }
}

/// The spec's folder, absolute, so that its paths mean the same wherever p1 is started.
pub(super) fn base(file: &Path) -> std::path::PathBuf {
    let absolute = std::path::absolute(file).unwrap_or_else(|_| file.to_owned());
    absolute.parent().map(Path::to_owned).unwrap_or(absolute)
}
