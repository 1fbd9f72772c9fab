//! The command line as people type it; the doc comments here are the help texts.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};

use crate::spec::ProviderChoice;

/// One YAML spec to a running k3s cluster of real virtual machines.
#[derive(Debug, Parser)]
#[command(
    name = "p1",
    version,
    max_term_width = 100,
    subcommand_required = true,
    arg_required_else_help = true,
    after_help = "Exit codes: 0 done, 1 steps failed (`p1 retry` continues), 2 bad usage or spec, 3 host not ready \
                  (see `p1 doctor`), 4 locked by another p1 or had by another folder, 10 `plan` has changes, 130 interrupted"
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
pub struct Global {
    /// The spec
    #[arg(short, long, global = true, value_name = "FILE", default_value = "cluster.yaml", env = "P1_FILE")]
    pub file: PathBuf,
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
    /// Only these nodes; all without any
    #[arg(value_name = "NODE")]
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

/// The verbs.
#[derive(Debug, Subcommand)]
pub enum Verb {
    /// Write a commented spec to start from
    Init(Init),
    /// Check the spec
    Validate,
    /// Print the spec's JSON Schema, for editors
    Schema,
    /// Write the Vagrantfile and everything else made from the spec, to look at; secrets are left out
    Render(Render),
    /// Say what `up` would do and why; touches nothing; exit code 10 if there is something
    Plan(Looks),
    /// Make the cluster as the spec says: do what is missing
    Up(Up),
    /// Bring k3s to another version: its state is saved, servers one by one, then workers in batches
    Upgrade(Upgrade),
    /// Do what the last run left outstanding: same verb, same nodes
    Retry,
    /// Show machines, k3s and nodes, and where they differ from the spec; exit code 1 if they do
    Status(Looks),
    /// Prove that the cluster works, by using it: nodes, pods, network, Services, names, ingress; cleans up
    Verify(Verify),
    /// Open a shell on a node, or run a command there
    Ssh(Ssh),
    /// Run a command on nodes, all of them at once
    Exec(Exec),
    /// Show a node's k3s log, or the log of a step
    Logs(Logs),
    /// Print where the cluster's kubeconfig is, or merge it into yours
    Kubeconfig(Kubeconfig),
    /// Run kubectl against the cluster: this host's, or the server's own over SSH
    Kubectl(Kubectl),
    /// Shut the machines down, workers first
    Stop(Nodes),
    /// Start machines that exist, and k3s in them
    Start(Nodes),
    /// Keep all machines as they are at one moment, memory included, and go back to it
    #[command(subcommand)]
    Snapshot(SnapshotVerb),
    /// Write the memory of all machines to disk at one moment and give it back to this host
    Suspend,
    /// Go on where `suspend` stopped, all machines at one moment
    Resume,
    /// Write the cluster's data and secrets into a file; without sqlite3 on the server k3s stops for the copy
    Backup {
        /// Where to [default: NAME-TIME.backup in this folder]
        // Not `file`: that is the spec's, of every verb.
        #[arg(value_name = "FILE")]
        archive: Option<PathBuf>,
    },
    /// Replace the cluster's data by a backup's, on the same machines or on new ones that `up` made
    Restore {
        /// What `backup` wrote
        #[arg(value_name = "FILE", required_unless_present = "undo")]
        archive: Option<PathBuf>,
        /// End a restore that was cut off: the former data is put back
        #[arg(long, conflicts_with = "archive")]
        undo: bool,
    },
    /// Stop k3s and everything it runs at once, with k3s' own script; data stays
    Killall(Nodes),
    /// Remove k3s with its own script; the machines stay
    Uninstall(Nodes),
    /// Recreate nodes, one server at a time: leave the cluster, new machine, join again
    Replace {
        /// Which
        #[arg(value_name = "NODE", required = true)]
        nodes: Vec<String>,
    },
    /// Remove the machines and all that belongs to them; a node by name leaves its cluster first
    Destroy(Nodes),
    /// Fill and check a folder with all that nodes need, for a host without internet
    #[command(subcommand)]
    Artifacts(ArtifactsVerb),
    /// Build, list, add and remove boxes
    #[command(subcommand)]
    Box(BoxVerb),
    /// Say what this host lacks, and mend it with --fix
    Doctor(Doctor),
    /// Print a completion script for a shell
    Completions {
        /// Which shell
        shell: clap_complete::Shell,
    },
    /// Print the manual page, or write all of them into a folder
    Man {
        /// Where to write one page for each verb
        #[arg(long, value_name = "DIR")]
        dir: Option<PathBuf>,
    },
}

impl Verb {
    /// True if it is about a cluster, of which there is evidence to be collected when it fails.
    pub fn of_cluster(&self) -> bool {
        !matches!(
            self,
            Self::Init(_)
                | Self::Validate
                | Self::Schema
                | Self::Render(_)
                | Self::Logs(_)
                | Self::Box(_)
                | Self::Doctor(_)
                | Self::Completions { .. }
                | Self::Man { .. }
        )
    }
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
    /// Install and start first what this host lacks; shows the commands and asks
    #[arg(long)]
    pub setup: bool,
    /// Recreate this node's machine, with the loss of what is on it; may be given several times
    #[arg(long, value_name = "NODE")]
    pub replace: Vec<String>,
}

/// Options of `verify`.
#[derive(Args, Debug)]
pub struct Verify {
    /// Which nodes.
    #[command(flatten)]
    pub nodes: Nodes,
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
}

/// Options of `ssh`.
#[derive(Args, Debug)]
pub struct Ssh {
    /// The node [default: the first server]
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

/// Options of `logs`.
#[derive(Args, Debug)]
pub struct Logs {
    /// A node: the log of its k3s. Without one: what the last run's failed steps wrote
    pub node: Option<String>,
    /// The log of a step of the last run, e.g. `worker-1/install`
    #[arg(long, conflicts_with_all = ["node", "follow"])]
    pub step: Option<String>,
    /// The last lines
    #[arg(short = 'n', long, default_value_t = 100)]
    pub lines: u32,
    /// Go on as it is written
    #[arg(long, requires = "node")]
    pub follow: bool,
    /// Write one archive with everything that shows how the cluster, its nodes and this host are, without secrets
    /// [default: p1-NAME-TIME.tar.gz]
    #[arg(long, value_name = "FILE", num_args = 0..=1, conflicts_with_all = ["node", "step", "follow"])]
    pub bundle: Option<Option<PathBuf>>,
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
    /// Build a box for libvirt from its definition, with Debian's packages; needs root
    Build {
        /// The definition, e.g. `debian-12`
        #[arg(default_value = "debian-12")]
        name: String,
        /// Build it even if it is there
        #[arg(long)]
        force: bool,
    },
    /// List the boxes of this host and the definitions
    List,
    /// Add a box file, or download one
    Add {
        /// A file or an URL
        source: String,
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
        name: String,
    },
    /// Remove a snapshot
    Delete {
        /// Which, as `list` shows it
        name: String,
    },
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
