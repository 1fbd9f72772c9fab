//! A k3s that somebody installed: what it is configured with, wherever that stands, and the same of what a spec wants, so that
//! both can be compared.
//!
//! k3s puts the files before the flags of its command line (`pkg/configfilearg/parser.go`): single values on the command line win,
//! lists add up, and a variable counts only where neither says anything (urfave/cli).

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::Ipv4Addr;

use serde_yaml::Value;

use super::config::CONFIG_PATH;
use super::token::Tokens;
use crate::spec::{self, Role};

/// A setting and the place where it was made last.
#[derive(Clone, PartialEq)]
pub struct Setting {
    /// As the flag has them.
    pub values: Vec<String>,
    pub place: String,
}

/// What a k3s is configured with.
#[derive(Clone, PartialEq)]
pub struct Found {
    pub role: Role,
    /// What its unit starts.
    pub program: String,
    /// What it says of itself.
    pub version: Option<String>,
    /// By the flag's long name.
    pub settings: BTreeMap<String, Setting>,
    /// Its other variables, with their places.
    pub env: BTreeMap<String, (String, String)>,
    /// registries.yaml, where there is any content.
    pub registries: Option<Value>,
    /// What was not understood, or is not for k3s' configuration to say: fragments with their places.
    pub strange: Vec<String>,
    /// The nodes of its cluster, by a server's word.
    pub nodes: Vec<(String, Option<Ipv4Addr>)>,
}

/// Values may be secrets.
impl fmt::Debug for Found {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<&String> = self.settings.keys().chain(self.env.keys()).collect();
        write!(f, "Found({}, {names:?})", self.role)
    }
}

/// Variables that stand for a flag (k3s-io/k3s, `pkg/cli/cmds/{root,server,agent}.go`).
const VARIABLES: &[(&str, &str)] = &[
    ("K3S_AGENT_TOKEN", "agent-token"),
    ("K3S_AGENT_TOKEN_FILE", "agent-token-file"),
    ("K3S_CLUSTER_INIT", "cluster-init"),
    ("K3S_CONFIG_FILE", "config"),
    ("K3S_DATASTORE_CAFILE", "datastore-cafile"),
    ("K3S_DATASTORE_CERTFILE", "datastore-certfile"),
    ("K3S_DATASTORE_ENDPOINT", "datastore-endpoint"),
    ("K3S_DATASTORE_KEYFILE", "datastore-keyfile"),
    ("K3S_DATA_DIR", "data-dir"),
    ("K3S_DEBUG", "debug"),
    ("K3S_KUBECONFIG_GROUP", "write-kubeconfig-group"),
    ("K3S_KUBECONFIG_MODE", "write-kubeconfig-mode"),
    ("K3S_KUBECONFIG_OUTPUT", "write-kubeconfig"),
    ("K3S_LB_SERVER_PORT", "lb-server-port"),
    ("K3S_NODE_NAME", "node-name"),
    ("K3S_RESOLV_CONF", "resolv-conf"),
    ("K3S_ROOTLESS", "rootless"),
    ("K3S_SELINUX", "selinux"),
    ("K3S_TOKEN", "token"),
    ("K3S_TOKEN_FILE", "token-file"),
    ("K3S_URL", "server"),
    ("K3S_VPN_AUTH", "vpn-auth"),
    ("K3S_VPN_AUTH_FILE", "vpn-auth-file"),
];

impl Found {
    /// Of which nothing is known yet.
    pub fn new(role: Role) -> Self {
        Self {
            role,
            program: String::new(),
            version: None,
            settings: BTreeMap::new(),
            env: BTreeMap::new(),
            registries: None,
            strange: Vec::new(),
            nodes: Vec::new(),
        }
    }

    /// Takes a file of settings, those of `config.yaml.d` after config.yaml and in their order: `key` takes the place of what was
    /// there, `key+` adds to it.
    pub fn file(&mut self, path: &str, text: &str) {
        let map = match serde_yaml::from_str::<Value>(text) {
            Ok(Value::Mapping(map)) => map,
            Ok(Value::Null) => return,
            _ => return self.strange.push(format!("{path} is no map of settings")),
        };
        for (key, value) in &map {
            let Some(key) = key.as_str() else { continue };
            let items = match value {
                Value::Sequence(items) => items.iter().map(plain).collect::<Option<Vec<_>>>(),
                Value::Null => Some(Vec::new()),
                one => plain(one).map(|one| vec![one]),
            };
            let Some(values) = items else {
                self.strange.push(format!("`{key}` is neither a value nor a list of values ({path})"));
                continue;
            };
            let entry = self.settings.entry(spec::long(key).to_owned()).or_insert_with(|| Setting::at(path));
            if !key.ends_with('+') {
                entry.values.clear();
            }
            entry.values.extend(values);
            path.clone_into(&mut entry.place);
        }
    }

    /// Takes a command line, after all files.
    pub fn command(&mut self, argv: &[String], place: &str) {
        let mut words = argv.iter();
        self.program = words.next().cloned().unwrap_or_default();
        let wanted = if self.role == Role::Server { "server" } else { "agent" };
        match words.next() {
            Some(word) if word == wanted => {}
            other => {
                let other = other.map_or("nothing", String::as_str);
                self.strange.push(format!("its unit starts `k3s {other}`, not `k3s {wanted}` ({place})"));
            }
        }
        let mut words = words.peekable();
        while let Some(word) = words.next() {
            let Some(flag) = word.strip_prefix("--").or_else(|| word.strip_prefix('-')) else {
                self.strange.push(format!("a word of its command line belongs to no flag ({place})"));
                continue;
            };
            let (key, value) = match flag.split_once('=') {
                Some((key, value)) => (key, value.to_owned()),
                None => {
                    let takes = !spec::is_switch(flag)
                        .unwrap_or_else(|| words.peek().is_none_or(|next| next.starts_with('-')));
                    let value = takes.then(|| words.next().cloned()).flatten();
                    (flag, value.unwrap_or_else(|| "true".to_owned()))
                }
            };
            let entry = self.settings.entry(spec::long(key).to_owned()).or_insert_with(|| Setting::at(place));
            entry.values.push(value);
            place.clone_into(&mut entry.place);
        }
    }

    /// Takes a variable, after all flags.
    pub fn variable(&mut self, name: &str, value: &str, place: &str) {
        if let Some((_, key)) = VARIABLES.iter().find(|(variable, _)| *variable == name) {
            if !self.settings.contains_key(*key) && !value.is_empty() {
                let values = vec![value.to_owned()];
                self.settings.insert((*key).to_owned(), Setting { values, place: place.to_owned() });
            }
        } else if name.starts_with("K3S_") {
            self.strange.push(format!("p1 does not know the variable `{name}` ({place})"));
        } else {
            self.env.insert(name.to_owned(), (value.to_owned(), place.to_owned()));
        }
    }

    /// The last value of a setting.
    pub fn value(&self, key: &str) -> Option<&str> {
        self.settings.get(key)?.values.last().map(String::as_str).filter(|value| !value.is_empty())
    }

    /// Whether a setting is switched on.
    pub fn is_on(&self, key: &str) -> bool {
        self.value(key).is_some_and(is_true)
    }

    /// Where a setting was made.
    fn place(&self, key: &str) -> Option<&str> {
        self.settings.get(key).map(|setting| setting.place.as_str())
    }
}

impl Setting {
    fn at(place: &str) -> Self {
        Self { values: Vec::new(), place: place.to_owned() }
    }
}

/// As `strconv.ParseBool` reads it.
pub fn is_true(text: &str) -> bool {
    matches!(text, "1" | "t" | "T" | "TRUE" | "true" | "True")
}

/// A scalar as text of a command line.
fn plain(value: &Value) -> Option<String> {
    match value {
        Value::String(text) => Some(text.clone()),
        Value::Bool(value) => Some(value.to_string()),
        Value::Number(number) => Some(number.to_string()),
        _ => None,
    }
}

/// What a machine and its cluster have where a setting says nothing.
#[derive(Clone, Copy, Debug)]
pub struct Ground<'a> {
    pub hostname: &'a str,
    /// Interfaces with their addresses, and the one with the default route.
    pub addresses: &'a [(String, Ipv4Addr)],
    pub default_route: Option<&'a str>,
    /// The addresses of servers, which are in their certificates anyway.
    pub servers: &'a BTreeSet<String>,
    /// The cluster's secrets, as far as they are known.
    pub tokens: Option<&'a Tokens>,
}

impl Ground<'_> {
    fn address_of(&self, iface: Option<&str>) -> Option<Ipv4Addr> {
        self.addresses.iter().find(|(name, _)| Some(name.as_str()) == iface).map(|(_, ip)| *ip)
    }

    /// The node's name, as k3s has it.
    pub fn name(&self, found: &Found) -> String {
        found.value("node-name").map_or_else(|| self.hostname.to_lowercase(), str::to_owned)
    }

    /// The node's address, as k3s has it (`pkg/util/net.go`: that of the card with the default route).
    pub fn ip(&self, found: &Found) -> Option<String> {
        let own =
            found.settings.get("node-ip").map(|setting| setting.values.join(",")).filter(|ip| !ip.is_empty());
        own.or_else(|| Some(self.address_of(self.default_route)?.to_string()))
    }
}

/// The part of a token that is the secret.
fn secret(token: &str) -> &str {
    token.rsplit(':').next().unwrap_or(token)
}

/// What a setting is where it is not made, as far as p1 writes it or somebody writes it for clarity.
pub const DEFAULTS: &[(&str, &str)] = &[
    ("config", CONFIG_PATH),
    ("data-dir", "/var/lib/rancher/k3s"),
    ("https-listen-port", "6443"),
    ("write-kubeconfig", "/etc/rancher/k3s/k3s.yaml"),
    ("private-registry", super::config::REGISTRIES_PATH),
    ("flannel-backend", "vxlan"),
    ("cluster-cidr", "10.42.0.0/16"),
    ("service-cidr", "10.43.0.0/16"),
    ("cluster-domain", "cluster.local"),
];

/// What matters only when a node joins, or is the API's matter: how it began, its labels and taints.
pub const ONCE: [&str; 8] = [
    "node-label",
    "node-taint",
    "server",
    "cluster-init",
    "token",
    "token-file",
    "agent-token",
    "agent-token-file",
];

/// The same for the same: what k3s makes of it, by key.
fn meaning(found: &Found, ground: &Ground<'_>) -> BTreeMap<String, String> {
    let mut all = BTreeMap::new();
    for (key, setting) in &found.settings {
        let values: Vec<&str> = match spec::is_list(key) {
            true => setting
                .values
                .iter()
                .flat_map(|v| v.split(','))
                .map(str::trim)
                .filter(|v| !v.is_empty())
                .collect(),
            false => found.value(key).into_iter().collect(),
        };
        let text = match key.as_str() {
            key if ONCE.contains(&key) => continue,
            "tls-san" => {
                let names: BTreeSet<&str> =
                    values.into_iter().filter(|v| !ground.servers.contains(*v)).collect();
                names.into_iter().collect::<Vec<_>>().join(",")
            }
            // Values with commas of their own are cut alike on both sides.
            _ => values.join(","),
        };
        let text = match spec::is_switch(key) {
            Some(true) if is_true(&text) => "true".to_owned(),
            Some(true) => continue,
            _ => text,
        };
        let usual = DEFAULTS.iter().any(|(known, usual)| known == key && *usual == text);
        if !text.is_empty() && !usual {
            all.insert(key.clone(), text);
        }
    }
    let ip = ground.ip(found);
    all.insert("node-name".to_owned(), ground.name(found));
    all.extend(ip.clone().map(|ip| ("node-ip".to_owned(), ip)));
    if found.value("flannel-backend") != Some("none") {
        let iface = found.value("flannel-iface").or(ground.default_route);
        all.extend(iface.map(|iface| ("flannel-iface".to_owned(), iface.to_owned())));
    } else {
        all.remove("flannel-iface");
    }
    if found.role == Role::Server {
        // k3s-io/k3s, pkg/cli/server/server.go.
        let own = found.value("advertise-address").or_else(|| found.value("node-external-ip"));
        all.extend(own.map(str::to_owned).or(ip).map(|ip| ("advertise-address".to_owned(), ip)));
    } else {
        all.remove("advertise-address");
    }
    for (name, (value, _)) in &found.env {
        all.insert(format!("variable {name}"), value.clone());
    }
    let registries = found.registries.as_ref().and_then(|value| serde_json::to_value(value).ok());
    all.extend(registries.map(|value| ("registries.yaml".to_owned(), sorted(&value).to_string())));
    all
}

/// With the keys of maps in one order.
fn sorted(value: &serde_json::Value) -> serde_json::Value {
    use serde_json::Value as Json;
    match value {
        Json::Object(map) => {
            let all: BTreeMap<&String, Json> = map.iter().map(|(key, value)| (key, sorted(value))).collect();
            Json::Object(all.into_iter().map(|(key, value)| (key.clone(), value)).collect())
        }
        Json::Array(items) => Json::Array(items.iter().map(sorted).collect()),
        other => other.clone(),
    }
}

/// Whether its tokens are the cluster's: what it was given has to be known there. A worker may have either.
fn strange_token(found: &Found, tokens: &Tokens) -> Option<&'static str> {
    let is = |key: &str, known: &[&str]| found.value(key).is_none_or(|text| known.contains(&secret(text)));
    let (server, agent) = (secret(tokens.server.reveal()), secret(tokens.agent.reveal()));
    match found.role {
        Role::Server if !is("token", &[server]) => Some("token"),
        Role::Server if !is("agent-token", &[agent]) => Some("agent-token"),
        Role::Worker if !is("token", &[server, agent]) => Some("token"),
        _ => None,
    }
}

/// What a k3s is configured with and is not as wanted, a fragment each with its place. Secrets are not shown.
pub fn differences(found: &Found, wanted: &Found, ground: &Ground<'_>) -> Vec<String> {
    let (has, wants) = (meaning(found, ground), meaning(wanted, ground));
    let keys: BTreeSet<&String> = has.keys().chain(wants.keys()).collect();
    let mut all = found.strange.clone();
    if found.program != wanted.program {
        all.push(format!("its unit starts {}, and p1 has k3s at {}", found.program, wanted.program));
    }
    for key in keys.into_iter().filter(|key| has.get(*key) != wants.get(*key)) {
        let variable = key.strip_prefix("variable ");
        let hidden = key == "registries.yaml"
            || crate::redact::is_secret(key)
            || variable.is_some_and(crate::redact::is_secret_variable);
        let show = |value: Option<&String>| match value {
            None => "not set".to_owned(),
            Some(_) if hidden => "another".to_owned(),
            Some(value) => format!("`{}`", crate::redact::covered(value)),
        };
        let place = match variable {
            Some(name) => found.env.get(name).map(|(_, place)| place.as_str()),
            None => found.place(key),
        };
        let place = place.map(|place| format!(" ({place})")).unwrap_or_default();
        let name = variable.unwrap_or(key);
        let (is, wants) = (show(has.get(key)), show(wants.get(key)));
        all.push(match hidden && is == wants {
            true => format!("`{name}` differs{place}"),
            false => format!("`{name}` is {is}{place}, and {wants} by the spec"),
        });
    }
    let strange = ground.tokens.and_then(|tokens| strange_token(found, tokens));
    all.extend(strange.map(|key| {
        let place = found.place(key).unwrap_or_default();
        format!("its `{key}` is not the cluster's ({place})")
    }));
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(text: &str) -> Vec<String> {
        text.split(' ').map(str::to_owned).collect()
    }

    fn found(role: Role, config: &str, command: &str, env: &[(&str, &str)]) -> Found {
        let mut found = Found::new(role);
        found.file(CONFIG_PATH, config);
        found.command(&words(command), "ExecStart of k3s.service");
        env.iter().for_each(|(name, value)| found.variable(name, value, "k3s.service.env"));
        found
    }

    const WANTED: &str = "node-name: alpha\nnode-ip: 10.0.0.5\nflannel-iface: eth0\nadvertise-address: 10.0.0.5\n\
        tls-san: [10.0.0.5]\ntoken: abc\nagent-token: abc\n";

    fn told(has: &Found, more: &str) -> Vec<String> {
        let wanted = found(
            has.role,
            &format!("{WANTED}{more}"),
            if has.role == Role::Server { "k3s server" } else { "k3s agent" },
            &[],
        );
        let servers = ["10.0.0.5".to_owned()].into();
        let tokens = Tokens::parse("server=abc\nagent=abc\n");
        let addresses =
            [("eth0".to_owned(), [10, 0, 0, 5].into()), ("eth1".to_owned(), [10, 1, 0, 5].into())];
        let ground = Ground {
            hostname: "Alpha",
            addresses: &addresses,
            default_route: Some("eth0"),
            servers: &servers,
            tokens: tokens.as_ref(),
        };
        differences(has, &wanted, &ground)
    }

    /// What is said by a file, a flag or a variable is the same, and so is what k3s does by itself.
    #[test]
    fn the_same_is_the_same_wherever_it_stands() {
        let nothing = found(Role::Server, "", "k3s server", &[]);
        assert_eq!(told(&nothing, ""), [""; 0]);
        let everything = found(
            Role::Server,
            "disable: [traefik]\nwrite-kubeconfig-mode: 644\n",
            "k3s server --disable servicelb --token K10ff::server:abc --data-dir=/var/lib/rancher/k3s --cluster-init \
             --write-kubeconfig-mode 600 --secrets-encryption=false",
            &[("K3S_KUBECONFIG_MODE", "0644"), ("K3S_NODE_NAME", "alpha")],
        );
        assert_eq!(
            told(&everything, "disable: [traefik, servicelb]\nwrite-kubeconfig-mode: '600'\n"),
            [""; 0]
        );
        let mut worker =
            found(Role::Worker, "", "k3s agent", &[("K3S_URL", "https://x:6443"), ("K3S_TOKEN", "abc")]);
        assert_eq!(told(&worker, ""), [""; 0]);
        worker.settings.get_mut("token").unwrap().values = vec!["other".into()];
        assert_eq!(told(&worker, ""), ["its `token` is not the cluster's (k3s.service.env)"]);
    }

    #[test]
    fn what_differs_is_told_with_its_place_and_without_secrets() {
        let has =
            |config, command, env: &[(&str, &str)]| told(&found(Role::Server, config, command, env), "");
        let cases: [(Vec<String>, &str); 8] = [
            (
                has("", "k3s server --disable traefik", &[]),
                "`disable` is `traefik` (ExecStart of k3s.service), and not set by the spec",
            ),
            (has("https-listen-port: 7443", "k3s server", &[]), "`https-listen-port` is `7443`"),
            (has("flannel-iface: eth1", "k3s server", &[]), "`flannel-iface` is `eth1`"),
            (
                has("", "k3s server", &[("DB_PASSWORD", "hush")]),
                "`DB_PASSWORD` is another (k3s.service.env), and not set",
            ),
            (has("", "k3s server", &[("K3S_ODD", "x")]), "p1 does not know the variable `K3S_ODD`"),
            (has("", "/opt/bin/k3s server", &[]), "its unit starts /opt/bin/k3s"),
            (has("", "k3s server --token hush", &[]), "its `token` is not the cluster's"),
            (has("datastore-endpoint: mysql://u:hush@db/k3s", "k3s server", &[]), "`datastore-endpoint` is"),
        ];
        for (all, words) in cases {
            assert!(all.len() == 1 && all[0].contains(words) && !all[0].contains("hush"), "{words}: {all:?}");
        }
    }

    /// A later file takes the place of an earlier one's setting, and adds to it where it says so.
    #[test]
    fn files_lie_above_each_other_as_k3s_has_them() {
        let mut found = Found::new(Role::Server);
        found.file("a", "disable: [traefik]\nkubelet-arg: [x=1]\ndebug: true\n");
        found.file("b", "disable+: servicelb\nkubelet-arg: [y=2]\nd: /x\n");
        let values = |key: &str| found.settings[key].values.join(" ");
        assert_eq!((values("disable"), values("kubelet-arg")), ("traefik servicelb".into(), "y=2".into()));
        assert_eq!((values("debug"), found.settings["data-dir"].place.as_str()), ("true".into(), "b"));
    }
}
