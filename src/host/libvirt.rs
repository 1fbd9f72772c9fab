//! The libvirt daemon, its networks and its storage pool, through two calls of `virsh`.

use std::io::ErrorKind;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use ipnet::Ipv4Net;
use serde::Serialize;

use super::dirs::Env;
use crate::explain::Explain;
use crate::machines::Tools;
use crate::os::Cancel;
use crate::os::process::{self, Cmd};
use crate::spec::{self, LibvirtUri};

/// The daemon may have to start first (socket activation).
const BOUND: Duration = Duration::from_secs(20);
/// The pool that vagrant-libvirt uses unless told otherwise, and that it makes itself.
pub const POOL: &str = "default";
/// Where that pool lies.
pub const POOL_PATH: &str = "/var/lib/libvirt/images";
/// Written between the answers to several commands of one `virsh`.
const MARK: &str = "=p1=";

/// What was found out.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct LibvirtFacts {
    /// Which it is.
    pub uri: LibvirtUri,
    /// Where its pool is made if it has none.
    pub images: PathBuf,
    /// What became of the connection.
    pub link: Link,
    /// The daemon's version, e.g. `9.0.0`.
    pub version: Option<String>,
    /// All networks that are defined.
    pub networks: Vec<Network>,
    /// The pool [`POOL`]; none if it is not defined.
    pub pool: Option<Pool>,
    /// Whether `virtlogd` listens. QEMU's output goes through it by default, and no machine starts
    /// without it; systemd starts it when it is asked for, nobody does without systemd.
    pub virtlogd: bool,
}

/// Whether the daemon answers.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Link {
    /// `virsh` is not installed.
    #[default]
    Absent,
    /// It answers.
    Up,
    /// Nothing listens.
    Down(String),
    /// It does not let this user in.
    Denied(String),
}

/// A libvirt network.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Network {
    pub name: String,
    /// Its addresses, if it has IPv4 ones.
    pub cidr: Option<Ipv4Net>,
    /// Its bridge on the host.
    pub bridge: Option<String>,
    /// Whether it is started.
    pub active: bool,
}

/// A storage pool.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Pool {
    /// Whether it is started.
    pub active: bool,
    /// MiB that are free; known of started pools.
    pub free: Option<u64>,
}

/// Where the pool is made if there is none.
pub fn images(env: &Env, of: &spec::Libvirt) -> PathBuf {
    if of.is_session() { env.session_images() } else { POOL_PATH.into() }
}

pub(super) fn look(env: &Env, tools: &Tools, cancel: &Cancel) -> LibvirtFacts {
    let mut facts = LibvirtFacts {
        virtlogd: listens(&env.under("/run/libvirt/virtlogd-sock")),
        ..LibvirtFacts::default()
    };
    if env.find("virsh").is_none() {
        return facts;
    }
    let virsh = |script: &str| {
        let cmd = Cmd::new(&tools.virsh).env("LC_ALL", "C").args(["-c", &tools.libvirt_uri, script]);
        process::run(&cmd, BOUND, cancel)
    };
    // virsh goes on after a command that fails, so the one that may fail needs no care.
    let asked = [
        "version".to_owned(),
        "net-list --name".to_owned(),
        "net-list --all --name".to_owned(),
        format!("pool-info --bytes {POOL}"),
        "version".to_owned(),
    ];
    let done = match virsh(&asked.join(&format!("; echo {MARK}; "))).and_then(process::Finished::ok) {
        Ok(done) => done,
        Err(error) => {
            facts.link = refusal(&error);
            return facts;
        }
    };
    facts.link = Link::Up;
    let parts: Vec<&str> = done.stdout.split(MARK).collect();
    let part = |n: usize| parts.get(n).copied().unwrap_or_default();
    facts.version = running_version(part(0));
    facts.pool = pool(part(3));
    let names = |text: &str| -> Vec<String> {
        // Names that virsh' own command line would take apart are nobody's.
        let plain = |l: &&str| !l.is_empty() && !l.contains(['\'', '"', ';', '\\']);
        text.lines().map(str::trim).filter(plain).map(str::to_owned).collect()
    };
    let (active, all) = (names(part(1)), names(part(2)));
    if !all.is_empty() {
        let dumps: Vec<String> = all.iter().map(|n| format!("net-dumpxml --inactive '{n}'")).collect();
        if let Ok(done) = virsh(&dumps.join(&format!("; echo {MARK}; "))) {
            for (name, xml) in all.into_iter().zip(done.stdout.split(MARK)) {
                let (cidr, bridge) = network(xml);
                facts.networks.push(Network { active: active.contains(&name), name, cidr, bridge });
            }
        }
    }
    facts
}

/// True if something accepts connections there, or might and does not let us near.
fn listens(socket: &Path) -> bool {
    match UnixStream::connect(socket) {
        Ok(_) => true,
        Err(e) => e.kind() == ErrorKind::PermissionDenied,
    }
}

fn refusal(error: &process::Error) -> Link {
    let mut words = error.evidence();
    let why = words.pop().map_or_else(|| error.to_string(), |w| w.trim_start_matches("error: ").to_owned());
    let lower = why.to_lowercase();
    if ["permission denied", "authentication", "polkit", "access denied"].iter().any(|w| lower.contains(w)) {
        Link::Denied(why)
    } else {
        Link::Down(why)
    }
}

/// The library on the daemon's side is the one that counts, and `version` names both alike.
fn running_version(text: &str) -> Option<String> {
    let line = text.lines().find(|l| l.starts_with("Using library"))?;
    Some(line.split_whitespace().last()?.to_owned())
}

fn pool(text: &str) -> Option<Pool> {
    let value = |key: &str| text.lines().find_map(|l| Some(l.strip_prefix(key)?.trim()));
    Some(Pool {
        active: value("State:")? == "running",
        free: value("Available:").and_then(|v| v.parse::<u64>().ok()).map(|b| b >> 20),
    })
}

/// Addresses and bridge, from a network's XML as virsh prints it: an element a line, attributes in
/// single quotes.
fn network(xml: &str) -> (Option<Ipv4Net>, Option<String>) {
    let attribute = |element: &str, key: &str| {
        let line = xml.lines().map(str::trim).find(|l| l.starts_with(&format!("<{element} ")))?;
        let rest = line.split_once(&format!(" {key}='"))?.1;
        Some(rest.split('\'').next()?.to_owned())
    };
    let address = attribute("ip", "address").and_then(|a| a.parse().ok());
    let mask = attribute("ip", "netmask").and_then(|m| m.parse().ok());
    let prefix = attribute("ip", "prefix").and_then(|p| p.parse().ok());
    let cidr = match (address, mask, prefix) {
        (Some(a), Some(m), _) => Ipv4Net::with_netmask(a, m).ok(),
        (Some(a), None, Some(p)) => Ipv4Net::new(a, p).ok(),
        _ => None,
    };
    (cidr.map(|c| c.trunc()), attribute("bridge", "name"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn networks_and_pools_as_virsh_prints_them() {
        let xml = "<network>\n  <name>default</name>\n  <forward mode='nat'/>\n  <bridge name='virbr0' stp='on' delay='0'/>\n  <ip address='192.168.122.1' netmask='255.255.255.0'>\n    <dhcp>\n";
        assert_eq!(network(xml), (Some("192.168.122.0/24".parse().unwrap()), Some("virbr0".into())));
        assert_eq!(
            network("<network>\n  <ip address='10.1.2.1' prefix='23'>\n").0.unwrap().to_string(),
            "10.1.2.0/23"
        );
        assert_eq!(network("<network/>"), (None, None));
        let info = "Name:           default\nState:          running\nAvailable:      1073741824\n";
        assert_eq!(pool(info), Some(Pool { active: true, free: Some(1024) }));
        assert_eq!(pool("State:          inactive\n"), Some(Pool { active: false, free: None }));
        assert_eq!(pool("\n"), None);
    }

    #[test]
    fn a_refusal_tells_down_from_denied() {
        let failed = |text: &str| process::Error::Failed {
            program: "virsh".into(),
            how: process::How::Exited(1),
            line: String::new(),
            tail: vec!["error: failed to connect to the hypervisor".into(), format!("error: {text}")],
        };
        let down = "Failed to connect socket to '/var/run/libvirt/libvirt-sock': No such file or directory";
        assert_eq!(refusal(&failed(down)), Link::Down(down.into()));
        let denied = "Failed to connect socket to '/var/run/libvirt/libvirt-sock': Permission denied";
        assert_eq!(refusal(&failed(denied)), Link::Denied(denied.into()));
        let polkit = "authentication unavailable: no polkit agent available";
        assert_eq!(refusal(&failed(polkit)), Link::Denied(polkit.into()));
    }
}
