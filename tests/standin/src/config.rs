//! Flags and `config.yaml`, merged the way `pkg/configfilearg/parser.go` does it.
//!
//! The file becomes flags put before those of the command line, so single values on the command line
//! win and repeatable ones add up. `config.yaml.d/*.yaml` follow in alphabetical order; `key+`
//! appends. A key that is no flag is skipped with a warning by a **server** and is fatal to an
//! **agent** (`DefaultParser.ValidFlags` knows servers only), which is why a server's
//! `write-kubeconfig-mode` in an agent's file keeps that agent from starting.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use serde_yaml::Value;

use crate::{log, paths, util};

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Role {
    Server,
    Agent,
}

/// Flags of `k3s server` and `k3s agent` that take a value (docs/cli/agent.md, docs/cli/server.md).
const AGENT_VALUES: &str = "config c v vmodule log l token t token-file server s data-dir d node-name \
    node-label node-taint image-credential-provider-bin-dir image-credential-provider-config \
    lb-server-port container-runtime-endpoint image-service-endpoint default-runtime pause-image \
    snapshotter private-registry airgap-extra-registry node-ip i node-external-ip node-internal-dns \
    node-external-dns resolv-conf flannel-iface flannel-conf flannel-cni-conf vpn-auth vpn-auth-file \
    kubelet-arg kube-proxy-arg nonroot-devices cluster-secret bind-address";
const AGENT_SWITCHES: &str = "debug alsologtostderr with-node-id selinux protect-kernel-defaults \
    docker rootless prefer-bundled-bin disable-default-registry-endpoint disable-apiserver-lb \
    disable-selinux no-flannel enable-pprof";
const SERVER_VALUES: &str = "https-listen-port advertise-address advertise-port tls-san \
    cluster-cidr service-cidr service-node-port-range cluster-dns cluster-domain flannel-backend \
    egress-selector-mode servicelb-namespace write-kubeconfig o write-kubeconfig-mode \
    write-kubeconfig-group helm-job-image agent-token agent-token-file cluster-reset-restore-path \
    kube-apiserver-arg etcd-arg kube-controller-manager-arg kube-scheduler-arg \
    kube-cloud-controller-manager-arg kube-controller-arg kube-cloud-controller-arg kine-tls \
    datastore-endpoint datastore-cafile datastore-certfile datastore-keyfile \
    datastore-max-open-connections datastore-max-idle-connections datastore-connection-lifetime \
    etcd-snapshot-name etcd-snapshot-schedule-cron etcd-snapshot-retention etcd-snapshot-dir \
    etcd-s3-endpoint etcd-s3-endpoint-ca etcd-s3-access-key etcd-s3-secret-key etcd-s3-session-token \
    etcd-s3-bucket etcd-s3-bucket-lookup-type etcd-s3-region etcd-s3-folder etcd-s3-proxy \
    etcd-s3-config-secret etcd-s3-timeout etcd-s3-retention default-local-storage-path disable \
    no-deploy system-default-registry secrets-encryption-provider supervisor-port apiserver-port \
    apiserver-bind-address";
const SERVER_SWITCHES: &str = "cluster-init cluster-reset flannel-ipv6-masq flannel-external-ip \
    multi-cluster-cidr tls-san-security etcd-expose-metrics etcd-disable-snapshots \
    etcd-snapshot-compress etcd-snapshot-reconcile-interval etcd-s3 etcd-s3-skip-ssl-verify \
    etcd-s3-insecure disable-scheduler disable-cloud-controller disable-kube-proxy \
    disable-network-policy disable-helm-controller disable-apiserver disable-controller-manager \
    disable-etcd disable-agent embedded-registry supervisor-metrics secrets-encryption";

fn has(list: &str, flag: &str) -> bool {
    list.split_whitespace().any(|f| f == flag)
}

/// `Some(takes a value)` for a flag the role has.
fn known(role: Role, flag: &str) -> Option<bool> {
    let server = role == Role::Server;
    if has(AGENT_VALUES, flag) || server && has(SERVER_VALUES, flag) {
        Some(true)
    } else if has(AGENT_SWITCHES, flag) || server && has(SERVER_SWITCHES, flag) {
        Some(false)
    } else {
        None
    }
}

fn long(flag: &str) -> &str {
    match flag {
        "c" => "config",
        "t" => "token",
        "s" => "server",
        "d" => "data-dir",
        "i" => "node-ip",
        "o" => "write-kubeconfig",
        "l" => "log",
        other => other,
    }
}

/// What the flags, the files and the environment add up to.
pub struct Config {
    pub role: Role,
    values: BTreeMap<String, Vec<String>>,
}

impl Config {
    /// Reads everything; what the real program would refuse ends the process.
    pub fn load(role: Role, arguments: &[String]) -> Self {
        match Self::try_load(role, arguments) {
            Ok(config) => config,
            Err(message) => {
                if message.starts_with("flag ") {
                    eprintln!("Incorrect Usage: {message}\n");
                }
                log::fatal(message)
            }
        }
    }

    fn try_load(role: Role, arguments: &[String]) -> Result<Self, String> {
        let mut config = Config { role, values: BTreeMap::new() };
        for (key, value) in file_flags(&config_file(arguments))? {
            if known(role, &key).is_none() && role == Role::Server {
                log::warn(format!("Unknown flag --{key} found in config.yaml, skipping\n"));
                continue;
            }
            config.set(&key, value)?;
        }
        let mut rest = arguments.iter();
        while let Some(argument) = rest.next() {
            let Some(flag) = argument.strip_prefix("--").or_else(|| argument.strip_prefix('-')) else {
                // urfave/cli takes it for an argument, and k3s ignores those.
                continue;
            };
            match flag.split_once('=') {
                Some((key, value)) => config.set(key, value.to_owned())?,
                None if known(role, flag) == Some(true) => match rest.next() {
                    Some(value) => config.set(flag, value.clone())?,
                    None => return Err(format!("flag needs an argument: -{flag}")),
                },
                None => config.set(flag, "true".to_owned())?,
            }
        }
        Ok(config)
    }

    fn set(&mut self, key: &str, value: String) -> Result<(), String> {
        match known(self.role, key) {
            None => return Err(format!("flag provided but not defined: -{key}")),
            Some(false) if !matches!(value.as_str(), "true" | "false" | "1" | "0") => {
                return Err(format!(
                    "invalid boolean value \"{value}\" for -{key}: strconv.ParseBool: parsing \"{value}\": invalid syntax"
                ));
            }
            Some(_) => {}
        }
        self.values.entry(long(key).to_owned()).or_default().push(value);
        Ok(())
    }

    /// The last value given, else that of the environment variable.
    fn value(&self, key: &str, variable: Option<&str>) -> Option<String> {
        self.values
            .get(key)
            .and_then(|v| v.last().cloned())
            .filter(|v| !v.is_empty())
            .or_else(|| std::env::var(variable?).ok().filter(|v| !v.is_empty()))
    }

    pub fn get(&self, key: &str) -> Option<String> {
        self.value(key, None)
    }

    /// A repeatable flag, each value of which may hold several separated by commas.
    pub fn list(&self, key: &str) -> Vec<String> {
        self.values
            .get(key)
            .into_iter()
            .flatten()
            .flat_map(|v| v.split(','))
            .map(|v| v.trim().to_owned())
            .filter(|v| !v.is_empty())
            .collect()
    }

    pub fn is_on(&self, key: &str) -> bool {
        matches!(self.get(key).as_deref(), Some("true" | "1"))
    }

    pub fn disabled(&self, component: &str) -> bool {
        self.list("disable").iter().chain(&self.list("no-deploy")).any(|c| c == component)
    }

    /// A secret given as itself or as the name of a file.
    fn secret(&self, key: &str, variable: &str) -> Option<String> {
        self.value(key, Some(variable)).or_else(|| {
            let file = self.value(&format!("{key}-file"), Some(&format!("{variable}_FILE")))?;
            match fs::read_to_string(paths::at(&file)) {
                Ok(text) => Some(text.trim().to_owned()),
                Err(e) => log::fatal(format!("open {file}: {e}")),
            }
        })
    }

    pub fn token(&self) -> Option<String> {
        self.secret("token", "K3S_TOKEN")
    }

    pub fn agent_token(&self) -> Option<String> {
        self.secret("agent-token", "K3S_AGENT_TOKEN")
    }

    pub fn server_url(&self) -> Option<String> {
        self.value("server", Some("K3S_URL"))
    }

    pub fn data_dir(&self) -> PathBuf {
        let default = || "/var/lib/rancher/k3s".to_owned();
        paths::at(&self.value("data-dir", Some("K3S_DATA_DIR")).unwrap_or_else(default))
    }

    pub fn port(&self) -> u16 {
        self.get("https-listen-port").and_then(|p| p.parse().ok()).unwrap_or(6443)
    }

    pub fn kubeconfig(&self) -> (PathBuf, u32) {
        let path = self.value("write-kubeconfig", Some("K3S_KUBECONFIG_OUTPUT"));
        let mode = self.value("write-kubeconfig-mode", Some("K3S_KUBECONFIG_MODE"));
        (
            paths::at(&path.unwrap_or_else(|| "/etc/rancher/k3s/k3s.yaml".into())),
            mode.and_then(|m| u32::from_str_radix(&m, 8).ok()).unwrap_or(0o600),
        )
    }

    /// Lower-cased like `util.GetHostnameAndIPs` does.
    pub fn node_name(&self) -> String {
        let name = self
            .value("node-name", Some("K3S_NODE_NAME"))
            .or_else(|| util::read("/proc/sys/kernel/hostname"))
            .unwrap_or_else(|| "localhost".into())
            .to_lowercase();
        if !self.is_on("with-node-id") {
            return name;
        }
        let file = paths::at("/etc/rancher/node/id");
        let id = util::read(&file).unwrap_or_else(|| {
            let id = util::random_hex(4);
            let _ = util::write_atomically(&file, format!("{id}\n").as_bytes(), 0o644);
            id
        });
        format!("{name}-{id}")
    }
}

fn config_file(arguments: &[String]) -> PathBuf {
    let named = arguments.iter().enumerate().find_map(|(i, a)| {
        if matches!(a.as_str(), "--config" | "-c") {
            return arguments.get(i + 1).cloned();
        }
        a.strip_prefix("--config=").or_else(|| a.strip_prefix("-c=")).map(str::to_owned)
    });
    let file = std::env::var("K3S_CONFIG_FILE").ok().filter(|f| !f.is_empty()).or(named);
    paths::at(&file.unwrap_or_else(|| "/etc/rancher/k3s/config.yaml".into()))
}

/// The file and its drop-ins, flattened to flags. No file at all is no error.
fn file_flags(file: &Path) -> Result<Vec<(String, String)>, String> {
    let mut files = vec![];
    if file.exists() {
        files.push(file.to_owned());
    }
    let mut dropins: Vec<PathBuf> = fs::read_dir(format!("{}.d", file.display()))
        .into_iter()
        .flatten()
        .flatten()
        .map(|e| e.path())
        .filter(|p| p.is_file() && p.extension().is_some_and(|e| e == "yaml" || e == "yml"))
        .collect();
    dropins.sort();
    files.extend(dropins);

    let mut order: Vec<String> = vec![];
    let mut values: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for file in files {
        let text = fs::read_to_string(&file).map_err(|e| format!("open {}: {e}", file.display()))?;
        let data: Value = serde_yaml::from_str(&text).map_err(|e| format!("yaml: {e}"))?;
        let map = match data {
            Value::Null => continue,
            Value::Mapping(map) => map,
            _ => return Err("yaml: unmarshal errors: cannot unmarshal into yaml.MapSlice".into()),
        };
        for (key, value) in map {
            let key = scalar(&key);
            let (key, append) = match key.strip_suffix('+') {
                Some(key) => (key.to_owned(), true),
                None => (key, false),
            };
            let new = match &value {
                Value::Sequence(items) => items.iter().map(scalar).collect(),
                other => vec![scalar(other)],
            };
            if !order.contains(&key) {
                order.push(key.clone());
            }
            let slot = values.entry(key).or_default();
            if !append {
                slot.clear();
            }
            slot.extend(new);
        }
    }
    Ok(order
        .into_iter()
        .flat_map(|k| values.remove(&k).unwrap_or_default().into_iter().map(move |v| (k.clone(), v)))
        .collect())
}

fn scalar(value: &Value) -> String {
    match value {
        Value::String(s) => s.clone(),
        Value::Bool(b) => b.to_string(),
        Value::Number(n) => n.to_string(),
        _ => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(files: &[(&str, &str)]) -> (tempdir::Dir, Vec<String>) {
        let dir = tempdir::Dir::new();
        for (name, text) in files {
            let path = dir.0.join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        let config = dir.0.join("config.yaml").display().to_string();
        (dir, vec!["--config".into(), config])
    }

    mod tempdir {
        pub struct Dir(pub std::path::PathBuf);
        impl Dir {
            pub fn new() -> Self {
                Dir(tempfile::tempdir().unwrap().keep())
            }
        }
        impl Drop for Dir {
            fn drop(&mut self) {
                let _ = std::fs::remove_dir_all(&self.0);
            }
        }
    }

    #[test]
    fn dropins_replace_or_append_and_the_command_line_wins() {
        let (_dir, mut arguments) = written(&[
            ("config.yaml", "node-ip: 10.0.0.1\ntls-san: [a, b]\nnode-label: [x=1]\n"),
            ("config.yaml.d/10.yaml", "tls-san+: c\nnode-label: y=2\n"),
        ]);
        arguments.push("--node-ip=10.0.0.9".into());
        let config = Config::try_load(Role::Server, &arguments).unwrap();
        assert_eq!(config.list("tls-san"), ["a", "b", "c"]);
        assert_eq!(config.list("node-label"), ["y=2"]);
        assert_eq!(config.get("node-ip").unwrap(), "10.0.0.9");
    }

    #[test]
    fn unknown_keys_are_skipped_by_servers_and_fatal_to_agents() {
        let (_dir, arguments) = written(&[("config.yaml", "frobnicate: 1\n")]);
        assert!(Config::try_load(Role::Server, &arguments).is_ok());
        assert_eq!(
            Config::try_load(Role::Agent, &arguments).err().unwrap(),
            "flag provided but not defined: -frobnicate"
        );
        let (_dir, arguments) = written(&[("config.yaml", "write-kubeconfig-mode: \"0644\"\n")]);
        assert_eq!(
            Config::try_load(Role::Agent, &arguments).err().unwrap(),
            "flag provided but not defined: -write-kubeconfig-mode"
        );
        let unknown = Config::try_load(Role::Server, &["--frobnicate".into()]);
        assert_eq!(unknown.err().unwrap(), "flag provided but not defined: -frobnicate");
    }
}
