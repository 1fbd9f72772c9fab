//! The spec that `p1 init` writes: complete, small, and explained where one would want to change it.

use super::defaults::{self, RETRY, TIMEOUTS, written};
use super::schema::SCHEMA_FILE;
use super::value::to_label;
use super::{ProviderChoice, Role};

/// What goes into a new spec. Everything has to be valid on its own; [`name_for`] makes a name.
#[derive(Clone, Debug)]
pub struct Init {
    /// The cluster's name, a DNS label.
    pub name: String,
    /// How many servers: an odd number.
    pub servers: u32,
    /// How many workers.
    pub workers: u32,
    /// What makes the machines.
    pub provider: ProviderChoice,
    /// The nodes' network, e.g. `192.168.56.0/24`.
    pub cidr: String,
}

impl Default for Init {
    fn default() -> Self {
        Self {
            name: "demo".to_owned(),
            servers: 1,
            workers: 2,
            provider: ProviderChoice::Auto,
            cidr: defaults::CIDR.to_owned(),
        }
    }
}

/// A cluster's name from any text, such as the name of a folder.
pub fn name_for(any: &str) -> String {
    let label = to_label(any);
    if label.is_empty() { "demo".to_owned() } else { label }
}

/// A commented spec. It begins with the line by which editors find the schema.
pub fn init(options: &Init) -> String {
    let Init { name, servers, workers, cidr, .. } = options;
    // What begins with a digit may be a number (`12`, `0e0`, `0x1f`), and a few words are values of their own.
    let word = ["true", "false", "null", "yes", "no", "on", "off", "y", "n"].contains(&name.as_str());
    let name = match name.starts_with(|c: char| c.is_ascii_digit()) || word {
        true => format!("\"{name}\""),
        false => name.clone(),
    };
    let machines = match options.provider {
        ProviderChoice::Ssh => existing(cidr, *servers, *workers),
        _ => made(options),
    };
    let t = TIMEOUTS;
    let timeouts = [
        ("boot", t.boot),
        ("ssh", t.ssh),
        ("install", t.install),
        ("server_ready", t.server_ready),
        ("node_ready", t.node_ready),
        ("download", t.download),
        ("rollout", t.rollout),
    ];
    let timeouts = timeouts.map(|(key, time)| format!("{key}: {}", written(time))).join(", ");
    let (first, most) = (written(RETRY.backoff), written(RETRY.max_backoff));
    let retry = format!("attempts: {}, backoff: {first}, max_backoff: {most}", RETRY.attempts);
    format!(
        "# yaml-language-server: $schema=./{SCHEMA_FILE}
#
# A k3s cluster. `p1 validate` checks this file, `p1 plan` shows what would
# be done, `p1 up` does it. Lines that are commented out show what else there is.

name: {name}

{machines}
k3s:
  # stable, latest, testing, or a minor version such as v1.34.
  channel: {channel}
  # Or one release:
  # version: v1.34.1+k3s1

  # Any setting of k3s' config.yaml. Those that only servers know go to the servers.
  # config:
  #   write-kubeconfig-mode: \"0644\"
  #   disable: [traefik]
  # server_config: {{}}
  # worker_config: {{}}

  # /etc/rancher/k3s/registries.yaml as it is.
  # registries:
  #   mirrors:
  #     docker.io: {{endpoint: [\"https://registry.example.org\"]}}

  # Files to take instead of downloading the release.
  # artifacts:
  #   binary: {{path: ./k3s}}
  #   installer: {{path: ./install.sh}}
  #   images: [{{path: ./k3s-airgap-images-amd64.tar.zst}}]

# What runs on the cluster, applied when the nodes are Ready: files, directories, kustomizations.
# namespaces: [shop]
# manifests: [apps/]

# How long to wait for what, and how often a step is tried when its error may pass.
# timeouts: {{{timeouts}}}
# retry: {{{retry}}}
",
        channel = defaults::CHANNEL,
    )
}

/// How a spec begins that was written from machines.
pub const FROM: &str = "\
# yaml-language-server: $schema=./p1.schema.json
#
# A k3s cluster that was there before p1, as its machines are configured. `p1 plan` shows what
# taking it over adds, `p1 up` does it; k3s is not restarted.
";

/// The part of machines that p1 makes.
fn made(options: &Init) -> String {
    let (servers, workers) = (nodes(Role::Server, options.servers), nodes(Role::Worker, options.workers));
    format!(
        "# What makes the machines: libvirt, virtualbox, or auto for whichever works on this host.
provider: {provider}

# What they start from: a definition in boxes/, {{path: my.box}}, or {{url: .., sha256: ..}}.
box: {image}

network:
  # The nodes' private network. Its first address is this host's.
  cidr: {cidr}

nodes:
{servers}{workers}  # An address is chosen unless it is given. A node can also have labels, taints and settings.
  # - name: storage
  #   ip: {ip}
  #   cpus: 2
  #   memory: 4GiB
  #   labels: {{example.org/tier: storage}}
  #   taints: [\"example.org/tier=storage:NoSchedule\"]
",
        provider = options.provider.word(),
        image = defaults::BOX,
        cidr = options.cidr,
        ip = example_address(&options.cidr),
    )
}

/// The part of machines that exist already.
fn existing(cidr: &str, servers: u32, workers: u32) -> String {
    let net: Option<ipnet::Ipv4Net> = cidr.parse().ok();
    let mut addresses = net.into_iter().flat_map(|net| net.hosts()).skip(10);
    let mut nodes = |role: Role, count: u32| -> String {
        let name = |i: u32| if count == 1 { role.to_string() } else { format!("{role}-{i}") };
        let line = |i: u32| {
            let ip = addresses.next().unwrap_or(std::net::Ipv4Addr::new(192, 168, 1, 21));
            format!("  - {{name: {}, role: {role}, ip: {ip}}}\n", name(i))
        };
        (1..=count).map(line).collect()
    };
    let (servers, workers) = (nodes(Role::Server, servers), nodes(Role::Worker, workers));
    format!(
        "# The machines exist already and are reached over SSH; what is left out is as ~/.ssh/config says.
provider: ssh
# ssh: {{user: pi, key: ~/.ssh/id_ed25519}}

nodes:
  # Their own addresses, at which they reach each other. How one is reached from here may differ:
  # {{name: far, ip: {ip}, ssh: {{host: far.example.org, jump: bastion}}}}
{servers}{workers}",
        ip = example_address(cidr),
    )
}

fn nodes(role: Role, count: u32) -> String {
    let (cpus, memory) = defaults::size(role);
    match count {
        0 => String::new(),
        1 => format!("  - {{name: {role}, role: {role}, cpus: {cpus}, memory: {memory}}}\n"),
        n => format!(
            "  - {{name: {role}, role: {role}, count: {n}, cpus: {cpus}, memory: {memory}}}  # {role}-1 to {role}-{n}\n"
        ),
    }
}

/// An address of the network for the example, near its end.
fn example_address(cidr: &str) -> String {
    let net: Option<ipnet::Ipv4Net> = cidr.parse().ok();
    let last = net.map(|n| u32::from(n.broadcast()).saturating_sub(1));
    last.map_or("192.168.56.254".to_owned(), |ip| std::net::Ipv4Addr::from(ip).to_string())
}
