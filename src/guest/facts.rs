//! What was observed on nodes, read from the answer of `templates/facts.sh`.
//!
//! Pure: the script is run by others. Facts are cheap enough (one command over SSH) to be asked for
//! at every `up`; what would be dear, such as hashing a binary of 70 MB under emulation, is told by
//! size and time against what p1 noted when it wrote the file.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::sync::LazyLock;

use serde::{Deserialize, Serialize};

use super::firewall::Firewalls;
use crate::explain::printable;
use crate::os::hash::sha256;

/// The script, to be run by root's `sh` on a node: which init system it has shows only then, so each has its part in it.
pub fn script() -> &'static str {
    static SCRIPT: LazyLock<String> = LazyLock::new(|| {
        let parts: BTreeSet<&str> = super::GUESTS.iter().map(|guest| guest.service().facts()).collect();
        let parts = String::from_iter(parts);
        let (before, after) = TEMPLATE.split_once("# @services@").expect("the template has their place");
        format!("{before}{parts}{}", after.split_once('\n').map_or("", |(_, after)| after))
    });
    &SCRIPT
}

const TEMPLATE: &str = include_str!("../../templates/facts.sh");

/// One node.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct NodeFacts {
    /// Changes with every boot.
    pub boot: String,
    pub hostname: String,
    /// `/etc/machine-id`.
    pub machine_id: String,
    /// The node's clock, seconds since 1970.
    pub epoch: i64,
    /// Seconds by which it was ahead when it was asked, by as much as the time of the answer leaves no doubt.
    #[serde(default)]
    pub ahead: i64,
    /// `uname -m`.
    pub arch: String,
    pub kernel: String,
    /// The distribution, as it names itself.
    pub os: String,
    /// MiB.
    pub memory_mib: u64,
    /// MiB free below `/var/lib`.
    pub disk_free_mib: u64,
    /// MiB of its disk that its root file system does not fill, as far as that can be told.
    pub unfilled_mib: u64,
    /// Interface and address, in the kernel's order.
    pub addresses: Vec<(String, Ipv4Addr)>,
    /// Interfaces with a default route.
    pub default_routes: Vec<String>,
    /// The kernel has AppArmor on.
    pub apparmor: bool,
    /// `apparmor_parser` is there.
    pub apparmor_parser: bool,
    /// SELinux enforces.
    pub selinux: bool,
    /// The memory controller is there.
    pub cgroup_memory: bool,
    /// The firewalls that are on.
    #[serde(skip_serializing_if = "Firewalls::is_none")]
    pub firewalls: Firewalls,
    /// SELinux has the rules for k3s (`k3s-selinux`).
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub selinux_policy: bool,
    /// What gets in k3s' way and is to be told not to, by name.
    #[serde(skip_serializing_if = "BTreeSet::is_empty")]
    pub untuned: BTreeSet<String>,
    /// The init system that runs, of those that p1 knows.
    #[serde(alias = "systemd", deserialize_with = "init")]
    pub init: Option<String>,
    /// k3s' units, by name without `.service`.
    pub units: BTreeMap<String, Unit>,
    /// k3s' binary and scripts, full paths.
    pub scripts: Vec<String>,
    /// It starts from a baked box, and what k3s' installer made for its role is not in its place yet.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub baked: bool,
    /// The node has a node password from an earlier join.
    pub node_password: bool,
    /// Where a server keeps the cluster's state: `sqlite` or `etcd` on its own disk, or `external`.
    pub datastore: Option<String>,
    /// The restore whose former data is set aside here: it has not come to its end. Never remembered.
    #[serde(skip)]
    pub former: Option<String>,
    /// How its config.yaml says that it begins: `init` for a new etcd, else the URL of a server.
    pub joins: Option<String>,
    /// What its config.yaml says of the settings that are fixed once there is data, as it is written, by key; none
    /// if there is none, or if an older p1 asked.
    pub settings: Option<BTreeMap<String, Vec<String>>>,
    /// Files that configure k3s beside config.yaml, with the names of what they set.
    pub elsewhere: BTreeMap<String, Vec<String>>,
    /// p1's own notes of what it brought to an end, by step.
    pub stamps: BTreeMap<String, String>,
    /// Checksums of files p1 pushed whose size and time are still those noted, by path.
    pub staged: BTreeMap<String, String>,
    /// Checksums of k3s' configuration files, by path.
    pub written: BTreeMap<String, String>,
    /// The checksum of p1's part of /etc/hosts, where it has one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hosts: Option<String>,
}

/// Before there were others, it was noted whether it is systemd.
fn init<'de, D: serde::Deserializer<'de>>(from: D) -> Result<Option<String>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Noted {
        Systemd(bool),
        Name(Option<String>),
    }
    Ok(match Noted::deserialize(from)? {
        Noted::Systemd(systemd) => systemd.then(|| "systemd".to_owned()),
        Noted::Name(name) => name,
    })
}

/// How a service is, in the init system's own word, which is also how it is remembered and shown.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "String", into = "String")]
pub enum Activity {
    /// The init system knows no such service, or nobody has asked.
    #[default]
    Unknown,
    Active,
    /// It is being started, or started again.
    Activating,
    Inactive,
    /// The init system gave up starting it.
    Failed,
    /// Anything else, such as `deactivating`.
    Other(String),
}

impl Activity {
    /// The word; empty where there is none.
    pub fn as_str(&self) -> &str {
        match self {
            Self::Unknown => "",
            Self::Active => "active",
            Self::Activating => "activating",
            Self::Inactive => "inactive",
            Self::Failed => "failed",
            Self::Other(word) => word,
        }
    }
}

impl From<&str> for Activity {
    fn from(word: &str) -> Self {
        match word {
            "" => Self::Unknown,
            "active" => Self::Active,
            "activating" => Self::Activating,
            "inactive" => Self::Inactive,
            "failed" => Self::Failed,
            other => Self::Other(other.to_owned()),
        }
    }
}

impl From<String> for Activity {
    fn from(word: String) -> Self {
        Self::from(word.as_str())
    }
}

impl From<Activity> for String {
    fn from(activity: Activity) -> Self {
        activity.as_str().to_owned()
    }
}

impl std::fmt::Display for Activity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Unknown => "not there",
            known => known.as_str(),
        })
    }
}

/// k3s' service on a node.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Unit {
    /// The init system knows it.
    pub loaded: bool,
    /// How it is; remembered under the name of systemd's property.
    pub active: Activity,
    /// How often the init system restarted it.
    pub restarts: u32,
    /// Changes with every start.
    pub invocation: String,
}

/// The answer was not whole.
#[derive(Debug, thiserror::Error)]
#[error("the node's answer about itself is not whole")]
pub struct Incomplete {
    /// What it said at last.
    pub tail: Vec<String>,
}

impl crate::explain::Explain for Incomplete {
    fn evidence(&self) -> Vec<String> {
        self.tail.clone()
    }

    fn kind(&self) -> crate::explain::FailureKind {
        crate::explain::FailureKind::Damaged
    }

    fn again(&self) -> crate::explain::Again {
        crate::explain::Again::Soon
    }
}

/// Of one answer, so many lines count: a node's own are some hundred at most.
const LINES: usize = 10_000;
/// And of one line so many characters.
const LINE: usize = 1024;

/// Reads what the script printed. Unknown lines are passed over (a login shell may greet).
///
/// A node may say anything: what it says is shown and remembered, so it is cleaned of what a terminal would obey,
/// and of what is too long or too much nothing is taken.
pub fn parse(text: &str) -> Result<NodeFacts, Incomplete> {
    let mut facts = NodeFacts::default();
    let mut noted: BTreeMap<String, (String, String)> = BTreeMap::new();
    let mut whole = false;
    let mut hosts: Vec<String> = Vec::new();
    for line in text.lines().filter(|l| l.len() <= LINE).take(LINES) {
        let line = printable(line);
        let Some((key, value)) = line.split_once('=') else { continue };
        let number = || value.trim().parse::<u64>().unwrap_or(0);
        let words = |n| -> Vec<&str> { value.splitn(n, ' ').collect() };
        match key {
            "boot" => facts.boot = value.into(),
            "hostname" => facts.hostname = value.into(),
            "machine_id" => facts.machine_id = value.into(),
            "epoch" => facts.epoch = value.parse().unwrap_or(0),
            "hosts" => hosts.push(value.into()),
            "arch" => facts.arch = value.into(),
            "kernel" => facts.kernel = value.into(),
            "os" => facts.os = value.into(),
            "memory_kib" => facts.memory_mib = number() / 1024,
            "disk_free_kib" => facts.disk_free_mib = number() / 1024,
            "unfilled_mib" => facts.unfilled_mib = number(),
            "address" => {
                if let [iface, address] = words(2)[..]
                    && is_interface(iface)
                    && let Ok(ip) = address.split('/').next().unwrap_or_default().parse()
                {
                    facts.addresses.push((iface.into(), ip));
                }
            }
            "default_route" if is_interface(value) => facts.default_routes.push(value.into()),
            "apparmor" => facts.apparmor = value == "Y",
            "apparmor_parser" => facts.apparmor_parser = true,
            "selinux_enforcing" => facts.selinux = value == "1",
            "selinux_policy" => facts.selinux_policy = true,
            "untuned" => _ = facts.untuned.insert(value.into()),
            "cgroup" => facts.cgroup_memory = value.split(' ').any(|w| w == "memory"),
            key if key.starts_with("firewall") => facts.firewalls.read(key, value),
            "init" => facts.init = Some(value.into()),
            "unit" => {
                if let [name, key, value] = words(3)[..] {
                    facts.units.entry(name.into()).or_default().set(key, value);
                }
            }
            "script" => facts.scripts.push(value.into()),
            "baked" => facts.baked = true,
            "node_password" => facts.node_password = true,
            "datastore" => facts.datastore = Some(value.into()),
            "former" => facts.former = Some(value.into()),
            "joins" => facts.joins = Some(value.trim_matches(['"', '\'']).into()),
            "settings" => _ = facts.settings.get_or_insert_default(),
            "setting" => {
                if let [key, value] = words(2)[..] {
                    let value = value.trim().trim_matches(['"', '\'']).to_owned();
                    facts.settings.get_or_insert_default().entry(key.into()).or_default().push(value);
                }
            }
            "elsewhere" => {
                if let [names, path] = words(2)[..] {
                    let name = |c: char| c.is_ascii_alphanumeric() || "_-+".contains(c);
                    let names = names.split(',').filter(|n| !n.is_empty() && n.chars().all(name));
                    let names = names.take(100).map(str::to_owned).collect();
                    facts.elsewhere.insert(path.into(), names);
                }
            }
            "stamp" => {
                if let [name, text] = words(2)[..] {
                    facts.stamps.insert(name.into(), text.into());
                }
            }
            "staged" => {
                if let [sum, size, time, path] = words(4)[..] {
                    noted.insert(path.into(), (format!("{size} {time}"), sum.into()));
                }
            }
            "stat" => {
                if let [size, time, path] = words(3)[..]
                    && let Some((stat, sum)) = noted.get(path)
                    && *stat == format!("{size} {time}")
                {
                    facts.staged.insert(path.into(), sum.clone());
                }
            }
            "sha256" => {
                if let [sum, path] = words(2)[..] {
                    facts.written.insert(path.into(), sum.into());
                }
            }
            "end" => whole = value == "ok",
            _ => {}
        }
    }
    facts.hosts = (!hosts.is_empty()).then(|| sha256(hosts.join("\n")));
    if whole { Ok(facts) } else { Err(Incomplete { tail: crate::os::process::tail(text, 6) }) }
}

/// As Linux takes one (`dev_valid_name`), without what YAML and shells would read as more than a word: it goes into
/// the node's configuration.
fn is_interface(name: &str) -> bool {
    let fine = |c: char| c.is_ascii_alphanumeric() || "._-@".contains(c);
    (1..=15).contains(&name.len())
        && name.starts_with(|c: char| c.is_ascii_alphanumeric())
        && name.chars().all(fine)
}

impl Unit {
    /// Takes one property as `systemctl show` names it.
    pub(super) fn set(&mut self, key: &str, value: &str) {
        match key {
            "NRestarts" => self.restarts = value.parse().unwrap_or(0),
            "InvocationID" => self.invocation = value.into(),
            "LoadState" => self.loaded = value == "loaded",
            "ActiveState" => self.active = value.into(),
            _ => {}
        }
    }
}

impl NodeFacts {
    /// The interface that holds this address.
    pub fn interface_of(&self, ip: Ipv4Addr) -> Option<&str> {
        self.addresses.iter().find(|(_, a)| *a == ip).map(|(iface, _)| iface.as_str())
    }

    /// A unit of k3s; one that is not there reads as not loaded.
    pub fn unit(&self, name: &str) -> Unit {
        self.units.get(name).cloned().unwrap_or_default()
    }

    /// Whether a k3s runs, of either kind.
    pub fn runs(&self) -> bool {
        self.units.values().any(|u| u.active == Activity::Active)
    }

    /// Whether any k3s is installed: a unit, or its scripts.
    pub fn has_k3s(&self) -> bool {
        self.units.values().any(|u| u.loaded) || self.scripts.iter().any(|s| s.ends_with(".sh"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ANSWER: &str = "Welcome!\nboot=b1\nepoch=1795000000\nmemory_kib=1048576\naddress=lo 127.0.0.1/8\n\
        address=eth0 192.168.56.110/24\ndefault_route=eth0\ncgroup=v2 cpu memory pids\n\
        unit=k3s LoadState loaded\nunit=k3s ActiveState active\nunit=k3s NRestarts 2\n\
        unit=k3s-agent LoadState not-found\nstamp=install abc\n\
        staged=aa 10 100 /usr/local/bin/k3s\nstaged=bb 20 100 /x\nstat=10 100 /usr/local/bin/k3s\n\
        stat=21 100 /x\nsha256=cc /etc/rancher/k3s/config.yaml\n";

    #[test]
    fn an_answer_becomes_facts() {
        let facts = parse(&format!("{ANSWER}end=ok\n")).unwrap();
        assert_eq!(facts.memory_mib, 1024);
        assert_eq!(facts.interface_of("192.168.56.110".parse().unwrap()), Some("eth0"));
        assert!(
            facts.unit("k3s").loaded && facts.unit("k3s").restarts == 2 && !facts.unit("k3s-agent").loaded
        );
        assert_eq!(facts.stamps["install"], "abc");
        // A file that changed since p1 wrote it does not count as what p1 wrote.
        assert_eq!(facts.staged.keys().collect::<Vec<_>>(), ["/usr/local/bin/k3s"]);
        assert!(facts.cgroup_memory);
    }

    /// Whatever a node says of itself is data, and only so much of it.
    #[test]
    fn a_node_that_lies_is_neither_obeyed_nor_believed_without_end() {
        let long = "x".repeat(5000);
        let text = format!(
            "hostname=a\u{1b}]0;owned\u{7}b\u{1b}[2J\nkernel={long}\naddress=eth0: 192.168.56.110/24\n\
             address=$(id) 192.168.56.110/24\naddress=eth0#x 192.168.56.110/24\ndefault_route=e;id\n\
             epoch=99999999999999999999\nmemory_kib=-1\nunit=k3s NRestarts x\n"
        );
        let facts = parse(&format!("{text}end=ok\n")).unwrap();
        assert_eq!((facts.hostname.as_str(), facts.kernel.as_str()), ("ab", ""));
        assert!(facts.addresses.is_empty() && facts.default_routes.is_empty());
        assert_eq!((facts.epoch, facts.memory_mib), (0, 0));
        let stamps: String = (0..20_000).map(|n| format!("stamp=s{n} x\n")).collect();
        assert!(parse(&format!("{stamps}end=ok\n")).is_err(), "its end is too far away");
    }

    #[test]
    fn what_configures_k3s_beside_its_file_is_named_without_values() {
        let text = "settings=known\nsetting=cluster-cidr \"10.50.0.0/16\"\nsetting=cluster-cidr a\n\
                    elsewhere=,token,node-ip /etc/rancher/k3s/config.yaml.d/my file.yaml\n\
                    elsewhere=, /etc/systemd/system/k3s.service.d/x.conf\nend=ok\n";
        let facts = parse(text).unwrap();
        assert_eq!(facts.settings.unwrap()["cluster-cidr"], ["10.50.0.0/16", "a"]);
        assert_eq!(facts.elsewhere["/etc/rancher/k3s/config.yaml.d/my file.yaml"], ["token", "node-ip"]);
        assert!(facts.elsewhere["/etc/systemd/system/k3s.service.d/x.conf"].is_empty());
        assert_eq!(parse("end=ok\n").unwrap().settings, None);
    }

    #[test]
    fn the_init_system_is_remembered_and_what_an_older_p1_noted_of_it_counts() {
        let read = |text: &str| serde_json::from_str::<NodeFacts>(text).unwrap().init;
        assert_eq!(read(r#"{"systemd":true}"#).as_deref(), Some("systemd"));
        assert_eq!((read(r#"{"systemd":false}"#), read("{}")), (None, None));
        let facts = parse("init=openrc\nend=ok\n").unwrap();
        assert_eq!(read(&serde_json::to_string(&facts).unwrap()).as_deref(), Some("openrc"));
    }

    #[test]
    fn an_answer_cut_off_is_not_taken_for_facts() {
        assert!(parse(ANSWER).is_err());
    }

    #[test]
    fn the_script_answers_here_as_well() {
        let cmd = crate::os::process::Cmd::new("sh").stdin(script());
        let bound = std::time::Duration::from_secs(20);
        let done = crate::os::process::run(&cmd, bound, &crate::os::Cancel::new()).unwrap();
        assert_eq!(done.stderr, "");
        let facts = parse(&done.stdout).unwrap();
        assert!(facts.memory_mib > 0 && !facts.arch.is_empty(), "{facts:?}");
    }
}
