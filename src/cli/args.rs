//! The options of the command line as people type them; the doc comments here are the help texts.

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};
use clap_complete::engine::ArgValueCompleter;

use super::complete;
use super::verb::Verb;
use crate::spec::ProviderChoice;

/// One YAML spec to a running k3s cluster of real virtual machines.
#[derive(Debug, Parser)]
#[command(
    name = "p1",
    version,
    max_term_width = 100,
    subcommand_required = true,
    arg_required_else_help = true
)]
pub struct Cli {
    /// What applies to every verb.
    #[command(flatten)]
    pub global: Global,
    /// What to do.
    #[command(subcommand)]
    pub verb: Verb,
}

/// Options of every verb.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Options of every verb")]
pub struct Global {
    /// Work as if p1 was started in this folder; several are entered one after the other
    #[arg(short = 'C', global = true, value_name = "DIR", action = clap::ArgAction::Append)]
    pub folder: Vec<PathBuf>,
    /// The spec; without this it is looked for in the folders above as well
    #[arg(short, long, global = true, value_name = "FILE", default_value = "cluster.yaml", env = "P1_FILE")]
    pub file: PathBuf,
    /// It was named, here or in the environment.
    #[arg(skip)]
    pub named: bool,
    /// It was found in a folder above.
    #[arg(skip)]
    pub found: bool,
    /// How to print: `human` is live on a terminal and plain elsewhere
    #[arg(short, long, global = true, value_enum, default_value_t = Output::Human, value_name = "FORMAT")]
    pub output: Output,
    /// Say more, in plain lines
    #[arg(short, long, global = true, action = clap::ArgAction::Count)]
    pub verbose: u8,
    /// At most so many steps, or nodes, at a time
    #[arg(short, long, global = true, default_value_t = 16, value_name = "N", value_parser = jobs)]
    pub jobs: usize,
    /// Answer every question with yes
    #[arg(short, long, global = true)]
    pub yes: bool,
    /// Make no connection but to the cluster itself; what is missing on this host is said before anything is begun
    #[arg(long, global = true)]
    pub offline: bool,
    /// No colours (NO_COLOR does the same)
    #[arg(long, global = true)]
    pub no_color: bool,
    /// Make this folder the owner of a cluster that belongs to another folder, which then works on it no more
    #[arg(long, global = true)]
    pub take_over: bool,
    /// Wait so long for another p1 that works on this cluster, e.g. `5m`
    #[arg(long, global = true, value_name = "TIME", value_parser = duration, default_value = "0s")]
    pub wait: Duration,
}

/// See [`Global::output`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Output {
    /// For people
    Human,
    /// Plain lines
    Plain,
    /// One JSON object a line
    Json,
}

/// Which nodes.
#[derive(Args, Clone, Debug, Default)]
pub struct Nodes {
    /// Only these nodes, also by the name of a group with `count` or as `role:worker`; all without any
    #[arg(value_name = "NODE", add = ArgValueCompleter::new(complete::nodes))]
    pub nodes: Vec<String>,
}

/// Which nodes, and how closely to look.
#[derive(Args, Clone, Debug, Default)]
pub struct Looks {
    /// Which nodes.
    #[command(flatten)]
    pub nodes: Nodes,
    /// Look inside every node, even if the API vouches for it
    #[arg(long)]
    pub deep: bool,
}

/// Options of `destroy`.
#[derive(Args, Debug)]
pub struct Destroy {
    /// Which nodes.
    #[command(flatten)]
    pub nodes: Nodes,
    /// Of machines that exist already: those that do not answer are gone for good. They are forgotten, and nothing is
    /// uninstalled there
    #[arg(long)]
    pub gone: bool,
}

/// Options of `init`.
#[derive(Args, Debug)]
pub struct Init {
    /// The cluster's name [default: the folder's]
    #[arg(long)]
    pub name: Option<String>,
    /// How many servers: an odd number; with three or more the cluster survives the loss of one
    #[arg(long, default_value_t = 1)]
    pub servers: u32,
    /// How many workers
    #[arg(long, default_value_t = 1)]
    pub workers: u32,
    #[arg(long, default_value = "auto", help = format!("What makes the machines: {}", providers()))]
    pub provider: String,
    /// The nodes' network
    #[arg(long, default_value = "192.168.56.0/24")]
    pub cidr: String,
    /// A cluster that runs already, installed by k3s' installer, k3sup or k3s-ansible: name all of its machines. Nothing is
    /// changed there
    #[arg(long, num_args = 1.., value_name = "[USER@]HOST[:PORT]",
        conflicts_with_all = ["servers", "workers", "provider", "cidr"])]
    pub from: Vec<String>,
    /// With `--from`: what sudo asks for on them, `prompt` or the name of a variable
    #[arg(long, value_name = "FROM", requires = "from")]
    pub sudo_password: Option<String>,
    /// Overwrite the file
    #[arg(long)]
    pub force: bool,
}

/// Options of `render`.
#[derive(Args, Debug)]
pub struct Render {
    /// Where to [default: .p1/NAME/rendered]
    #[arg(long, value_name = "DIR")]
    pub dir: Option<PathBuf>,
    /// Overwrite files there that `p1 render` did not write
    #[arg(long)]
    pub force: bool,
}

/// Options of `up`.
#[derive(Args, Debug)]
pub struct Up {
    /// Which nodes, and how closely to look.
    #[command(flatten)]
    pub looks: Looks,
    /// Only say what would be done, as `p1 plan` does
    #[arg(long, conflicts_with_all = ["setup", "keep"])]
    pub dry_run: bool,
    /// Make and start machines with their names, addresses and keys, and leave all else to a later `up`, or to you
    #[arg(long, value_enum, value_name = "PART", conflicts_with_all = ["dry_run", "replace", "keep"])]
    pub only: Option<Only>,
    /// Install and start first what this host lacks; shows the commands and asks
    #[arg(long)]
    pub setup: bool,
    /// Begin although machines that exist already have problems; see docs/existing.md
    #[arg(long)]
    pub skip_preflight: bool,
    /// Recreate this node's machine, with the loss of what is on it; may be given several times
    #[arg(long, value_name = "NODE", add = ArgValueCompleter::new(complete::nodes))]
    pub replace: Vec<String>,
    /// Keep the cluster, memory and disks, when it is up, as `keep: true` in the spec does
    #[arg(long)]
    pub keep: bool,
    /// Make the cluster the long way, also where it is kept
    #[arg(long)]
    pub fresh: bool,
}

/// A part of what `up` does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Only {
    /// The machines, without k3s
    Machines,
}

/// Options of `status`.
#[derive(Args, Clone, Debug)]
pub struct Status {
    /// Which nodes, and how closely to look.
    #[command(flatten)]
    pub looks: Looks,
    /// Look again and again until Ctrl-C, so long after each look [default: 2s]
    #[arg(short, long, value_name = "TIME", value_parser = bound, num_args = 0..=1, require_equals = true, default_missing_value = "2s")]
    pub watch: Option<Duration>,
}

/// Options of `verify`.
#[derive(Args, Debug)]
pub struct Verify {
    /// Which nodes.
    #[command(flatten)]
    pub nodes: Nodes,
    /// Prove it while nodes are under a fault, as `p1 fault` has it: `--under 'pause worker-1'`; it is healed afterwards
    #[arg(long, value_name = "FAULT")]
    pub under: Option<String>,
    /// The image of its pods, with busybox in it [default: the spec's, else one that k3s brings along]
    #[arg(long, value_name = "IMAGE")]
    pub image: Option<String>,
}

/// Options of `upgrade`.
#[derive(Args, Debug)]
pub struct Upgrade {
    /// A version or a channel, e.g. `v1.34.2+k3s1`, `v1.35` or `stable` [default: the spec's]
    #[arg(long, value_name = "VERSION|CHANNEL")]
    pub to: Option<String>,
    /// Only say what would be done: versions, order, what is away meanwhile and how long it was the last time
    #[arg(long)]
    pub dry_run: bool,
}

/// Options of `ssh`.
#[derive(Args, Debug)]
pub struct Ssh {
    /// The node [default: the first server]
    #[arg(add = ArgValueCompleter::new(complete::node))]
    pub node: Option<String>,
    /// What to run instead of a shell: one word is a line for the node's shell, several are a command with
    /// its arguments
    #[arg(last = true, value_name = "COMMAND")]
    pub command: Vec<String>,
}

/// Options of `exec`.
#[derive(Args, Debug)]
pub struct Exec {
    /// Which nodes.
    #[command(flatten)]
    pub nodes: Nodes,
    /// Run it as root
    #[arg(long)]
    pub root: bool,
    /// At most so long
    #[arg(long, value_name = "TIME", value_parser = bound, default_value = "1h")]
    pub timeout: Duration,
    /// What to run: one word is a line for the node's shell, several are a command with its arguments
    #[arg(last = true, required = true, value_name = "COMMAND")]
    pub command: Vec<String>,
}

/// Options of `cp`.
#[derive(Args, Debug)]
pub struct Cp {
    /// What: a file or a folder, here or on a node as `NODE:PATH`; a path on a node starts at the user's home
    #[arg(value_name = "FROM", add = ArgValueCompleter::new(complete::place))]
    pub from: OsString,
    /// Where to, the same way: into a folder that is there, else under that name
    #[arg(value_name = "TO", add = ArgValueCompleter::new(complete::place))]
    pub to: OsString,
    /// Read and write on nodes as root
    #[arg(long)]
    pub root: bool,
}

/// Options of `forward`.
#[derive(Args, Debug)]
pub struct Forward {
    /// A node, a Service or a pod; `node/`, `service/` and `pod/` say which, where names are alike
    #[arg(value_name = "SERVICE|POD|NODE", add = ArgValueCompleter::new(complete::node))]
    pub target: String,
    /// Its port, by number or name, with this host's before it: `8080:80`; `:80` takes a free one
    #[arg(value_name = "[LOCAL:]PORT")]
    pub port: String,
    /// The namespace of the Service or the pod
    #[arg(short, long, default_value = "default")]
    pub namespace: String,
}

/// Options of `logs`.
#[derive(Args, Debug)]
pub struct Logs {
    /// A node: the log of its k3s. Without one: what the last run's failed steps wrote
    #[arg(add = ArgValueCompleter::new(complete::node))]
    pub node: Option<String>,
    /// Of this run instead of the last one, as `p1 history` lists it; as much of its name as no other has is enough
    #[arg(long, conflicts_with_all = ["node", "follow"], add = ArgValueCompleter::new(complete::runs))]
    pub run: Option<String>,
    /// The log of a step of the run, e.g. `worker-1/install`
    #[arg(long, conflicts_with_all = ["node", "follow"], add = ArgValueCompleter::new(complete::steps))]
    pub step: Option<String>,
    /// The last lines
    #[arg(short = 'n', long, default_value_t = 100)]
    pub lines: u32,
    /// Go on as it is written
    #[arg(long, requires = "node")]
    pub follow: bool,
    /// Write one archive with everything that shows how the cluster, its nodes and this host are, without secrets
    /// [default: p1-NAME-TIME.tar.gz]
    #[arg(long, value_name = "FILE", num_args = 0..=1, conflicts_with_all = ["node", "run", "step", "follow"])]
    pub bundle: Option<Option<PathBuf>>,
}

/// Options of `history`.
#[derive(Args, Debug)]
pub struct History {
    /// The last runs
    #[arg(short = 'n', long, default_value_t = 20, value_name = "N")]
    pub lines: u32,
}

/// Options of `kubeconfig`.
#[derive(Args, Debug)]
pub struct Kubeconfig {
    /// Merge it into your kubeconfig, keeping all else that is in there and a backup of it
    #[arg(long, group = "change")]
    pub merge: bool,
    /// Which file to merge into or to take it out of [default: $KUBECONFIG, else ~/.kube/config]
    #[arg(long, value_name = "FILE", requires = "change")]
    pub into: Option<PathBuf>,
    /// What cluster, context and user are called there [default: the cluster's name]
    #[arg(long = "as", value_name = "NAME", requires = "change")]
    pub called: Option<String>,
    /// Make it the current context as well
    #[arg(long, requires = "merge")]
    pub switch: bool,
    /// Take the cluster out of your kubeconfig again
    #[arg(long, group = "change")]
    pub unmerge: bool,
}

/// Options of `kubectl`.
#[derive(Args, Debug)]
pub struct Kubectl {
    /// What kubectl gets
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, value_name = "ARGS")]
    pub args: Vec<String>,
}

/// The verbs of `box`.
#[derive(Debug, Subcommand)]
pub enum BoxVerb {
    /// Build a box for libvirt from its definition: of Debian's packages, as root, or from a cloud image
    Build {
        /// The definition, e.g. `debian-12` or `ubuntu-24.04`; `list` shows all
        #[arg(default_value = "debian-12")]
        name: String,
        /// Build it even if it is there
        #[arg(long)]
        force: bool,
    },
    /// Bake the spec's box with k3s' files, so that machines start without copying, unpacking and importing them
    Bake {
        /// Bake it even if one that fits is there
        #[arg(long)]
        force: bool,
        /// Only take away what a bake left that was killed
        #[arg(long, conflicts_with = "force")]
        clean: bool,
    },
    /// List the boxes of this host and the definitions
    List,
    /// Add a box file, a folder that Vagrant has unpacked one into, or download one
    Add {
        /// A file, a folder or an URL
        #[arg(required_unless_present = "from_vagrant")]
        source: Option<String>,
        /// A box that Vagrant has in its home (`~/.vagrant.d`), e.g. `bento/debian-12`; its newest version
        #[arg(long, value_name = "BOX", conflicts_with_all = ["source", "sha256"])]
        from_vagrant: Option<String>,
        /// Of which provider, where it has a box for several
        #[arg(long, requires = "from_vagrant")]
        provider: Option<String>,
        /// The checksum; needed for an URL
        #[arg(long)]
        sha256: Option<String>,
        /// What to call it [default: the file's name]
        #[arg(long)]
        name: Option<String>,
    },
    /// Remove a box from this host's library
    Remove {
        /// Which, as `list` shows it
        name: String,
    },
}

/// The verbs of `artifacts`.
#[derive(Debug, Subcommand)]
pub enum ArtifactsVerb {
    /// Fill a folder with k3s' binary, its installer and its images, or the spec's own ones
    Fetch {
        /// Which folder [default: the spec's `k3s.artifacts.dir`, else artifacts beside the spec]
        dir: Option<PathBuf>,
        /// For which machines, e.g. `amd64,arm64` [default: those of this host's kind]
        #[arg(long, value_name = "ARCH", value_delimiter = ',')]
        arch: Vec<String>,
    },
    /// Say what is in a folder, and whether each file is whole; exit code 1 if one is not
    Verify {
        /// Which folder [default: as for `fetch`]
        dir: Option<PathBuf>,
    },
}

/// Options of `fork`.
#[derive(Args, Debug)]
pub struct Fork {
    /// What to call it, or what the names of several begin with [default: the cluster's name and `-f1`, ...]
    #[arg(long)]
    pub name: Option<String>,
    /// How many
    #[arg(short = 'n', long, default_value_t = 1, value_name = "N", value_parser = clap::value_parser!(u8).range(1..=64))]
    pub count: u8,
    /// From the moment at which the cluster was kept, also where it runs
    #[arg(long)]
    pub kept: bool,
    /// Make this fork's machines (p1 starts this by itself)
    #[arg(long, hide = true)]
    pub make: bool,
    /// Listen on this host for this fork's API (p1 starts this by itself)
    #[arg(long, hide = true)]
    pub forward: bool,
    /// Run this command for each, with KUBECONFIG, P1_FILE and P1_FORK (its folder) set, and remove the forks afterwards; the exit
    /// code is the highest
    #[arg(last = true, value_name = "COMMAND")]
    pub command: Vec<String>,
}

/// The verbs of `kept`.
#[derive(Debug, Subcommand)]
pub enum KeptVerb {
    /// List the kept clusters
    List,
    /// Remove a kept cluster
    Remove {
        /// Which, as `list` shows it
        key: String,
    },
}

/// The verbs of `image`.
#[derive(Debug, Subcommand)]
pub enum ImageVerb {
    /// List the images that this host keeps for new nodes
    List,
    /// Remove what is beyond the bounds: images that were not used for 90 days, and what is more than 10 GiB
    Prune {
        /// Remove all of them
        #[arg(long)]
        all: bool,
    },
    /// Give images of docker, of podman or of an archive to the nodes that lack them, and to those that come later
    Load {
        /// What `docker save` or `podman save` wrote, or an image that docker or podman has
        #[arg(value_name = "IMAGE|FILE", required = true)]
        images: Vec<String>,
    },
}

/// The verbs of `snapshot`.
#[derive(Debug, Subcommand)]
pub enum SnapshotVerb {
    /// Write down disk and memory of every machine, all of the same moment; they pause meanwhile
    Save {
        /// What to call it
        name: String,
    },
    /// List the snapshots
    List,
    /// Put every machine back to that moment; what happened since is lost
    Restore {
        /// Which, as `list` shows it
        #[arg(add = ArgValueCompleter::new(complete::snapshots))]
        name: String,
    },
    /// Remove a snapshot
    Delete {
        /// Which, as `list` shows it
        #[arg(add = ArgValueCompleter::new(complete::snapshots))]
        name: String,
    },
}

/// The verbs of `fault`.
#[derive(Debug, Subcommand)]
pub enum FaultVerb {
    /// Cut nodes off from the others: nothing passes between their addresses. This host still reaches them
    Partition {
        /// Which nodes, and for how long.
        #[command(flatten)]
        on: FaultNodes,
        /// Between which.
        #[command(flatten)]
        between: Peers,
    },
    /// Delay what nodes send to other nodes
    Latency {
        /// Which nodes, and for how long.
        #[command(flatten)]
        on: FaultNodes,
        /// Between which.
        #[command(flatten)]
        between: Peers,
        /// By how much
        #[arg(long, value_name = "TIME", value_parser = duration, default_value = "200ms")]
        delay: Duration,
        /// By how much that varies
        #[arg(long, value_name = "TIME", value_parser = duration, default_value = "0s")]
        jitter: Duration,
    },
    /// Lose a part of what nodes send to other nodes
    Loss {
        /// Which nodes, and for how long.
        #[command(flatten)]
        on: FaultNodes,
        /// Between which.
        #[command(flatten)]
        between: Peers,
        /// How much
        #[arg(long, value_name = "PERCENT", default_value_t = 10)]
        percent: u8,
    },
    /// Pull the network cable of machines
    LinkDown {
        /// Which nodes, and for how long.
        #[command(flatten)]
        on: FaultNodes,
    },
    /// Pull the plug of machines; when the time is over they are started
    PowerCut {
        /// Which nodes, and for how long.
        #[command(flatten)]
        on: FaultNodes,
    },
    /// Halt machines as they are
    Pause {
        /// Which nodes, and for how long.
        #[command(flatten)]
        on: FaultNodes,
    },
    /// Fill the disk below /var/lib
    DiskFull {
        /// Which nodes, and for how long.
        #[command(flatten)]
        on: FaultNodes,
        /// So much is left free
        #[arg(long, value_name = "MIB", default_value_t = 0)]
        leave: u64,
    },
    /// Slow the machines' disks down
    SlowDisk {
        /// Which nodes, and for how long.
        #[command(flatten)]
        on: FaultNodes,
        /// Reads and writes a second, together
        #[arg(long, value_name = "N", default_value_t = 50)]
        iops: u32,
        /// So much a second, read and written
        #[arg(long, value_name = "KIB", default_value_t = 1024)]
        rate: u64,
    },
    /// Set the clock wrong
    Clock {
        /// Which nodes, and for how long.
        #[command(flatten)]
        on: FaultNodes,
        /// How far ahead; `--by=-1h` for behind
        #[arg(long, value_name = "TIME", value_parser = crate::fault::offset, default_value = "1h", allow_hyphen_values = true)]
        by: i64,
    },
    /// Kill k3s, as often as it comes back; what it runs goes on
    KillK3s {
        /// Which nodes, and for how long.
        #[command(flatten)]
        on: FaultNodes,
    },
    /// End faults before their time
    Heal(Nodes),
    /// Heal what is due, until nothing is left (p1 starts this by itself)
    #[command(hide = true)]
    Watch,
}

/// Which nodes are disturbed, and for how long.
#[derive(Args, Debug)]
pub struct FaultNodes {
    /// Which
    #[arg(value_name = "NODE", required = true, add = ArgValueCompleter::new(complete::nodes))]
    pub nodes: Vec<String>,
    /// For how long
    #[arg(long = "for", value_name = "TIME", value_parser = bound, default_value = "60s")]
    pub time: Duration,
}

/// The other side of a fault between nodes.
#[derive(Args, Debug)]
pub struct Peers {
    /// Only towards this node; may be given several times [default: all others]
    #[arg(long = "peer", value_name = "NODE", add = ArgValueCompleter::new(complete::nodes))]
    pub peers: Vec<String>,
}

/// Options of `doctor`.
#[derive(Args, Debug)]
pub struct Doctor {
    /// Install and start what is missing; shows the commands and asks
    #[arg(long)]
    pub fix: bool,
}

/// The values of `provider`, for people.
pub fn providers() -> String {
    ProviderChoice::WORDS.iter().map(|(word, _)| *word).collect::<Vec<_>>().join(", ")
}

/// `90s`, `5m`, `1h30m`, `500ms`.
fn duration(text: &str) -> Result<Duration, String> {
    crate::explain::parse_seconds(text).ok_or_else(|| "a time such as 90s, 5m or 1h30m".to_owned())
}

/// A time in which something can be done.
fn bound(text: &str) -> Result<Duration, String> {
    match duration(text)? {
        Duration::ZERO => Err("nothing can be done in no time".to_owned()),
        time => Ok(time),
    }
}

/// How many at a time.
fn jobs(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(0) | Err(_) => Err("a number from 1 on".to_owned()),
        Ok(jobs) => Ok(jobs),
    }
}
