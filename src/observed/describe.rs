//! The spec of a cluster that somebody installed, from what its machines are configured with. Pure.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::net::Ipv4Addr;

use serde_yaml::{Mapping, Value};

use crate::guest::NodeFacts;
use crate::k3s::found::{DEFAULTS, Ground, ONCE, Setting, is_true};
use crate::k3s::{Found, yaml};
use crate::redact::{self, Redactor};
use crate::spec::{self, Role};

/// A machine, as it was named and as it was found.
#[derive(Clone, Debug)]
pub struct Host {
    pub host: String,
    pub user: Option<String>,
    pub port: Option<u16>,
    pub facts: NodeFacts,
    pub found: Found,
}

/// What is written.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Written {
    /// The spec.
    pub text: String,
    /// The variables of its secrets.
    pub secrets: Vec<(String, String)>,
    /// The name of each machine's node, in the order of the machines.
    pub names: Vec<String>,
}

/// A node's settings, by key.
type Settings<'f> = BTreeMap<&'f str, &'f Setting>;

/// The secrets of a spec in the making.
#[derive(Default)]
struct Secrets(Vec<(String, String)>);

impl Secrets {
    /// A text as a spec has it: a secret by a variable, and everything else as it is.
    fn text(&mut self, name: &str, secret: bool, text: &str) -> Value {
        if !secret && Redactor::default().text(text) == text {
            return text.replace('$', "$$").into();
        }
        let known = self.0.iter().find(|(_, value)| value == text).map(|(known, _)| known.clone());
        let name = known.unwrap_or_else(|| {
            let plain = |c: char| if c.is_ascii_alphanumeric() { c.to_ascii_uppercase() } else { '_' };
            let base: String = name.chars().map(plain).collect();
            let base = base.trim_matches('_').to_owned();
            let base =
                if base.starts_with(|c: char| c.is_ascii_digit()) { format!("K3S_{base}") } else { base };
            let taken = |name: &str| self.0.iter().any(|(known, _)| known == name);
            let name = (1..)
                .map(|n| if n == 1 { base.clone() } else { format!("{base}_{n}") })
                .find(|name| !taken(name))
                .expect("one of them is free");
            self.0.push((name.clone(), text.to_owned()));
            name
        });
        format!("${{secret:{name}}}").into()
    }

    /// The same of everything within a value; `name` is what it is called.
    fn value(&mut self, name: &str, secret: bool, value: &Value) -> Value {
        match value {
            Value::String(text) => self.text(name, secret, text),
            Value::Number(number) if secret => self.text(name, true, &number.to_string()),
            Value::Sequence(items) => items.iter().map(|item| self.value(name, secret, item)).collect(),
            Value::Mapping(map) => {
                let within = map.iter().map(|(key, value)| {
                    let word = key.as_str().unwrap_or_default();
                    (key.clone(), self.value(&format!("{name} {word}"), redact::is_secret(word), value))
                });
                Value::Mapping(within.collect())
            }
            other => other.clone(),
        }
    }
}

/// What a setting is as a value of the spec.
fn value(key: &str, setting: &Setting, secrets: &mut Secrets) -> Value {
    if spec::is_list(key) {
        let items = setting.values.iter().filter(|v| !v.is_empty());
        return items.map(|item| secrets.text(key, redact::is_secret(key), item)).collect();
    }
    let last = setting.values.last().map(String::as_str).unwrap_or_default();
    match spec::is_switch(key) {
        Some(true) => is_true(last).into(),
        _ => secrets.text(key, redact::is_secret(key), last),
    }
}

/// The settings of a node that the spec has to say; what it cannot say is told.
fn settings<'f>(host: &'f Host, name: &str, told: &mut Vec<String>) -> Settings<'f> {
    let mut all = Settings::new();
    for (key, setting) in &host.found.settings {
        let last = setting.values.last().map(String::as_str).unwrap_or_default();
        let usual = DEFAULTS.iter().any(|(known, usual)| known == key && *usual == last);
        let off = spec::is_switch(key) == Some(true) && !is_true(last);
        let own = ["node-name", "node-ip", "flannel-iface", "advertise-address"].contains(&key.as_str());
        if last.is_empty() || usual || off || own || ONCE.contains(&key.as_str()) {
            continue;
        }
        if let Some(why) = spec::owned(key) {
            told.push(format!("{name}: `{key}` cannot be set in the spec ({}): {why}", setting.place));
            continue;
        }
        all.insert(key, setting);
    }
    all
}

/// Labels and taints, which k3s is told by settings and the spec has as keys of their own.
fn marks(found: &Found, key: &str) -> Vec<Value> {
    let values = found.settings.get(key).map(|setting| setting.values.clone()).unwrap_or_default();
    let words = values.iter().flat_map(|v| v.split(',')).map(str::trim).filter(|v| !v.is_empty());
    words.map(|word| word.replace('$', "$$").into()).collect()
}

/// A line of a map. An address needs no quotes.
fn entry(key: &str, value: &Value) -> String {
    let plain = value.as_str().filter(|text| text.parse::<Ipv4Addr>().is_ok());
    format!("{key}: {}", plain.map_or_else(|| yaml::scalar(value), str::to_owned))
}

fn block(out: &mut String, indent: usize, key: &str, map: &Mapping) {
    if map.is_empty() {
        return;
    }
    let _ = writeln!(out, "{:indent$}{key}:", "");
    for (key, value) in map {
        let key = yaml::scalar(key);
        match value {
            Value::Mapping(map) if !map.is_empty() => block(out, indent + 2, &key, map),
            value => _ = writeln!(out, "{:indent$}  {}", "", entry(&key, value)),
        }
    }
}

/// The spec of a cluster of that name; `sudo` is what its `sudo_password` is `from`. What it cannot say is told of all machines,
/// a line each.
pub fn describe(cluster: &str, hosts: &[Host], sudo: Option<&str>) -> Result<Written, Vec<String>> {
    let (mut told, mut secrets) = (Vec::new(), Secrets::default());
    let none = std::collections::BTreeSet::new();
    let ground = |facts: &'_ NodeFacts| -> (String, Option<String>, Vec<(String, Ipv4Addr)>) {
        (facts.hostname.clone(), facts.default_routes.first().cloned(), facts.addresses.clone())
    };
    let places: Vec<(String, Option<Ipv4Addr>)> = hosts
        .iter()
        .map(|host| {
            let (hostname, route, addresses) = ground(&host.facts);
            let ground = Ground {
                hostname: &hostname,
                addresses: &addresses,
                default_route: route.as_deref(),
                servers: &none,
                tokens: None,
            };
            let name = ground.name(&host.found);
            let ip = ground.ip(&host.found);
            let parsed = ip.as_deref().and_then(|ip| ip.parse().ok());
            if parsed.is_none() {
                let ip = ip.unwrap_or_else(|| "none".to_owned());
                told.push(format!(
                    "{name}: its node address is {ip}, and a node of the spec has one address of IPv4"
                ));
            }
            (name, parsed)
        })
        .collect();
    for (host, (name, _)) in hosts.iter().zip(&places) {
        told.extend(host.found.strange.iter().map(|what| format!("{name}: {what}")));
    }
    let listed = |name: &str| places.iter().any(|(known, _)| known == name);
    for (name, ip) in hosts.iter().flat_map(|host| &host.found.nodes).filter(|(name, _)| !listed(name)) {
        let at = ip.map(|ip| format!(" ({ip})")).unwrap_or_default();
        let line =
            format!("{name}{at} is a node of the cluster too, and was not named: name all of its machines");
        if !told.contains(&line) {
            told.push(line);
        }
    }
    let versions: std::collections::BTreeSet<&str> =
        hosts.iter().filter_map(|host| host.found.version.as_deref()).collect();
    if versions.len() > 1 {
        let each = hosts.iter().zip(&places).map(|(host, (name, _))| {
            format!("{name} {}", host.found.version.as_deref().unwrap_or("an unknown one"))
        });
        let each: Vec<String> = each.collect();
        told.push(format!("a spec has one version of k3s, and they run several: {}", each.join(", ")));
    }
    let all: Vec<Settings<'_>> =
        hosts.iter().zip(&places).map(|(host, (name, _))| settings(host, name, &mut told)).collect();
    same(hosts, &places, "variables", &mut told, |host| {
        host.found.env.iter().map(|(name, (value, _))| (name.clone(), value.clone())).collect::<Vec<_>>()
    });
    same(hosts, &places, "registries.yaml", &mut told, |host| host.found.registries.clone());
    if !told.is_empty() {
        return Err(told);
    }
    let mut k3s = Mapping::new();
    let version = versions.first().map(|version| Value::from(*version));
    k3s.extend(version.map(|version| ("version".into(), version)));
    let mut common: BTreeMap<Role, Vec<&str>> = BTreeMap::new();
    for (role, key) in [(Role::Server, "server_config"), (Role::Worker, "worker_config")] {
        let of: Vec<&Settings<'_>> =
            hosts.iter().zip(&all).filter(|(host, _)| host.found.role == role).map(|(_, all)| all).collect();
        let Some(first) = of.first() else { continue };
        let mut map = Mapping::new();
        for (name, setting) in first.iter() {
            let everywhere = of.iter().all(|all| all.get(name).is_some_and(|s| s.values == setting.values));
            // Of one machine it is as well: what comes later of that role is to be the same.
            if everywhere && *name != "node-external-ip" {
                map.insert((*name).into(), value(name, setting, &mut secrets));
                common.entry(role).or_default().push(name);
            }
        }
        if !map.is_empty() {
            k3s.insert(key.into(), map.into());
        }
    }
    if let Some(host) = hosts.first() {
        let env: Mapping = host
            .found
            .env
            .iter()
            .map(|(name, (value, _))| {
                (Value::from(name.as_str()), secrets.text(name, redact::is_secret_variable(name), value))
            })
            .collect();
        if !env.is_empty() {
            k3s.insert("env".into(), env.into());
        }
        let registries =
            host.found.registries.as_ref().map(|value| secrets.value("registries", false, value));
        k3s.extend(registries.map(|value| ("registries".into(), value)));
    }
    let user = hosts
        .first()
        .and_then(|host| host.user.clone())
        .filter(|user| hosts.iter().all(|h| h.user.as_ref() == Some(user)));
    let mut ssh = Mapping::new();
    ssh.extend(user.clone().map(|user| ("user".into(), user.into())));
    let from = |from: &str| Value::Mapping([("from".into(), from.into())].into_iter().collect());
    ssh.extend(sudo.map(|sudo| ("sudo_password".into(), from(sudo))));
    let servers = hosts.iter().filter(|host| host.found.role == Role::Server).count();
    let mut nodes = String::new();
    for ((host, (name, ip)), settings) in hosts.iter().zip(&places).zip(&all) {
        let mut node = Mapping::new();
        node.insert("name".into(), name.as_str().into());
        if host.found.role == Role::Server {
            node.insert("role".into(), "server".into());
        }
        let ip = ip.map(|ip| ip.to_string()).unwrap_or_default();
        node.insert("ip".into(), ip.as_str().into());
        let mut access = Mapping::new();
        if host.host != ip {
            access.insert("host".into(), host.host.as_str().into());
        }
        access.extend(host.user.clone().filter(|_| user.is_none()).map(|user| ("user".into(), user.into())));
        access.extend(host.port.map(|port| ("port".into(), port.into())));
        if !access.is_empty() {
            node.insert("ssh".into(), access.into());
        }
        for (key, of) in [("labels", "node-label"), ("taints", "node-taint")] {
            let marks = marks(&host.found, of);
            if !marks.is_empty() {
                node.insert(key.into(), marks.into());
            }
        }
        let mut config = Mapping::new();
        if host.facts.datastore.as_deref() == Some("etcd") && servers == 1 {
            config.insert("cluster-init".into(), true.into());
        }
        for (key, setting) in settings {
            let external = (*key == "node-external-ip").then(|| setting.values.join(","));
            match external.filter(|ip| ip.parse::<Ipv4Addr>().is_ok()) {
                Some(ip) => _ = node.insert("external_ip".into(), ip.into()),
                None if common.get(&host.found.role).is_some_and(|keys| keys.contains(key)) => {}
                None => _ = config.insert((*key).into(), value(key, setting, &mut secrets)),
            }
        }
        if !config.is_empty() {
            node.insert("config".into(), config.into());
        }
        let parts: Vec<String> =
            node.iter().map(|(key, value)| entry(key.as_str().unwrap_or_default(), value)).collect();
        let line = format!("  - {{{}}}", parts.join(", "));
        match line.len() <= 120 {
            true => _ = writeln!(nodes, "{line}"),
            false => _ = writeln!(nodes, "  - {}", parts.join("\n    ")),
        }
    }
    let mut text = format!("{}\nname: {}\n\nprovider: ssh\n", spec::FROM, yaml::scalar(&cluster.into()));
    if !ssh.is_empty() {
        let _ = writeln!(text, "ssh: {}", yaml::scalar(&ssh.into()));
    }
    // What its nodes pulled, they keep: to copy it here is more than taking the cluster over.
    let _ = write!(text, "\nnodes:\n{nodes}\nkeep_images: false\n\n");
    block(&mut text, 0, "k3s", &k3s);
    let names = places.into_iter().map(|(name, _)| name).collect();
    Ok(Written { text, secrets: secrets.0, names })
}

/// What a spec says once has to be the same on all machines.
fn same<T: PartialEq>(
    hosts: &[Host],
    places: &[(String, Option<Ipv4Addr>)],
    what: &str,
    told: &mut Vec<String>,
    of: impl Fn(&Host) -> T,
) {
    let Some(first) = hosts.first() else { return };
    let other = hosts.iter().zip(places).find(|(host, _)| of(host) != of(first));
    told.extend(other.map(|(_, (name, _))| {
        format!("{name}: its {what} are not those of {}, and a spec has the same on all nodes", places[0].0)
    }));
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host(role: Role, name: &str, last: u8, config: &str, command: &str, env: &[(&str, &str)]) -> Host {
        let mut found = Found::new(role);
        found.file("/etc/rancher/k3s/config.yaml", config);
        let argv: Vec<String> = command.split(' ').map(str::to_owned).collect();
        found.command(&argv, "/etc/systemd/system/k3s.service");
        env.iter().for_each(|(name, value)| found.variable(name, value, "k3s.service.env"));
        found.version = Some("v1.34.1+k3s1".into());
        let facts = NodeFacts {
            hostname: name.into(),
            addresses: vec![("eth0".into(), [10, 0, 0, last].into())],
            default_routes: vec!["eth0".into()],
            datastore: (role == Role::Server).then(|| "etcd".into()),
            ..NodeFacts::default()
        };
        Host { host: format!("10.0.0.{last}"), user: Some("pi".into()), port: None, facts, found }
    }

    #[test]
    fn a_cluster_is_written_as_a_spec_without_its_secrets() {
        let server = host(
            Role::Server,
            "alpha",
            5,
            "disable: [traefik]\nnode-label: [tier=a]\n",
            "/usr/local/bin/k3s server --cluster-init --token hush --tls-san k3s.lan --etcd-s3-secret-key sesame",
            &[("HTTP_PROXY", "http://u:sesame2@proxy:3128"), ("NO_PROXY", "10.0.0.0/8")],
        );
        let mut worker = host(
            Role::Worker,
            "beta",
            6,
            "kubelet-arg: [max-pods=50]\n",
            "/usr/local/bin/k3s agent",
            &[
                ("K3S_URL", "https://10.0.0.5:6443"),
                ("K3S_TOKEN", "hush"),
                ("HTTP_PROXY", "http://u:sesame2@proxy:3128"),
                ("NO_PROXY", "10.0.0.0/8"),
            ],
        );
        (worker.host, worker.port) = ("beta.example.org".into(), Some(2222));
        let registries = "{configs: {r.test: {auth: {username: u, password: sesame3}}}}";
        let mut hosts = [server, worker];
        for host in &mut hosts {
            host.found.registries = serde_yaml::from_str(registries).unwrap();
        }
        let written = describe("closet", &hosts, Some("prompt")).unwrap();
        insta::assert_snapshot!(written.text);
        assert!(!written.text.contains("sesame") && !written.text.contains("hush"), "{}", written.text);
        let cluster = spec::parse(&written.text, std::path::Path::new("/x/cluster.yaml"));
        let problems = cluster.unwrap_err().problems;
        // Nothing but the secrets, which are read from the file beside it.
        assert!(problems.iter().all(|p| p.message.contains("is not set")), "{problems:?}");
        assert_eq!(written.secrets.len(), 3);
    }

    #[test]
    fn what_a_spec_cannot_say_is_told_with_its_place() {
        let cases = [
            (
                "",
                "/usr/local/bin/k3s server --data-dir /srv/k3s",
                "alpha: `data-dir` cannot be set in the spec (/etc/systemd",
            ),
            (
                "node-ip: [10.0.0.5, 'fd00::5']",
                "/usr/local/bin/k3s server",
                "alpha: its node address is 10.0.0.5,fd00::5",
            ),
            ("", "/usr/local/bin/k3s agent", "alpha: its unit starts `k3s agent`"),
        ];
        for (config, command, words) in cases {
            let told =
                describe("x", &[host(Role::Server, "alpha", 5, config, command, &[])], None).unwrap_err();
            assert!(told.len() == 1 && told[0].starts_with(words), "{words}: {told:?}");
        }
        let mut one = host(Role::Server, "alpha", 5, "", "/usr/local/bin/k3s server", &[]);
        one.found.nodes = vec![("alpha".into(), None), ("beta".into(), Some([10, 0, 0, 6].into()))];
        let told = describe("x", &[one.clone()], None).unwrap_err();
        assert_eq!(
            told,
            ["beta (10.0.0.6) is a node of the cluster too, and was not named: name all of its machines"]
        );
        let mut two =
            host(Role::Worker, "beta", 6, "", "/usr/local/bin/k3s agent", &[("HTTP_PROXY", "http://p:1")]);
        two.found.version = Some("v1.33.4+k3s1".into());
        let told = describe("x", &[one, two], None).unwrap_err();
        assert!(told[0].contains("they run several: alpha v1.34.1+k3s1, beta v1.33.4+k3s1"), "{told:?}");
        assert!(told[1].contains("beta: its variables are not those of alpha"), "{told:?}");
    }
}
