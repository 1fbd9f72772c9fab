//! The verbs of the command line: what each is for, and who does it.

use std::path::PathBuf;

use clap::Subcommand;
use clap_complete::engine::ArgValueCompleter;

use super::args::{
    ArtifactsVerb, BoxVerb, Cp, Destroy, Doctor, Exec, FaultVerb, Fork, Forward, History, ImageVerb, Init,
    KeptVerb, Kubeconfig, Kubectl, Logs, Looks, Nodes, Render, SnapshotVerb, Ssh, Status, Up, Upgrade,
    Verify,
};
use super::complete;
use super::context::Context;
use super::error::CliError;
use super::{
    artifacts, backup, boxes, cp, destroy, doctor, exec, fault, files, fork, forward, history, image, kept,
    kubeconfig, kubectl, list, logs, plan, power, replace, retry, snapshot, ssh, status, up, upgrade, verify,
};
use crate::event::VerbName;

/// The verbs: their comments are the help texts.
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
    /// Say what `up` would change; touches nothing; exit code 10 if there is something; `-v` names the steps
    Plan(Looks),
    /// Make the cluster as the spec says: do what is missing
    Up(Up),
    /// Bring k3s to another version: its state is saved, servers one by one, then workers in batches
    Upgrade(Upgrade),
    /// Do what the last run left outstanding: same verb, same nodes
    Retry,
    /// Show machines, k3s and nodes, and where they differ from the spec; exit code 1 if they do
    Status(Status),
    /// Prove that the cluster works, by using it: nodes, pods, network, Services, names, ingress; cleans up
    Verify(Verify),
    /// List this user's clusters on this host, with their folders and machines
    List,
    /// Open a shell on a node, or run a command there
    Ssh(Ssh),
    /// Run a command on nodes, all of them at once
    Exec(Exec),
    /// Copy a file or a folder from this host to nodes, or from a node to this host
    Cp(Cp),
    /// Lead a port of this host to a Service, a pod or a node, until Ctrl-C
    Forward(Forward),
    /// Show a node's k3s log, or the log of a step
    Logs(Logs),
    /// List what was done to the cluster: when, by which verb, how long it took, and what failed
    History(History),
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
    /// Put the cluster back to the moment at which it was kept; what happened since is lost
    Reset,
    /// List and remove the kept clusters of this user
    #[command(subcommand)]
    Kept(KeptVerb),
    /// Make copies of a running or a kept cluster that run beside it, each with the same names and addresses inside
    Fork(Fork),
    /// Keep what nodes pull from registries, and bring images along
    #[command(subcommand)]
    Image(ImageVerb),
    /// Write the memory of all machines to disk at one moment and give it back to this host
    Suspend,
    /// Go on where `suspend` stopped, all machines at one moment
    Resume,
    /// Disturb nodes on purpose, for a while: it is healed by itself, also when p1 is killed
    #[command(subcommand)]
    Fault(FaultVerb),
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
        #[arg(value_name = "NODE", required = true, add = ArgValueCompleter::new(complete::nodes))]
        nodes: Vec<String>,
    },
    /// Remove the machines and all that belongs to them; a node by name leaves its cluster first
    Destroy(Destroy),
    /// Fill and check a folder with all that nodes need, for a host without internet
    #[command(subcommand)]
    Artifacts(ArtifactsVerb),
    /// Build, bake, list, add and remove boxes
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
                | Self::Cp(_)
                | Self::Forward(_)
                | Self::Logs(_)
                | Self::History(_)
                | Self::Box(_)
                | Self::Kept(_)
                | Self::List
                | Self::Image(ImageVerb::List | ImageVerb::Prune { .. })
                | Self::Doctor(_)
                | Self::Completions { .. }
                | Self::Man { .. }
        )
    }

    /// Does it.
    pub fn run(self, context: &Context) -> Result<(), CliError> {
        match self {
            Self::Init(args) => files::init(context, &args),
            Self::Validate => files::validate(context),
            Self::Schema => files::schema(context),
            Self::Render(args) => files::render(context, &args),
            Self::Plan(args) => plan::plan(context, &args, &[], false),
            Self::Up(args) => up::up(context, &args),
            Self::Upgrade(args) => upgrade::upgrade(context, &args),
            Self::Retry => retry::retry(context),
            Self::Status(args) => status::status(context, &args),
            Self::Verify(args) => verify::verify(context, &args),
            Self::List => list::list(context),
            Self::Ssh(args) => ssh::ssh(context, &args),
            Self::Exec(args) => exec::exec(context, &args),
            Self::Cp(args) => cp::cp(context, &args),
            Self::Forward(args) => forward::forward(context, &args),
            Self::Logs(args) => logs::logs(context, &args),
            Self::History(args) => history::history(context, &args),
            Self::Kubeconfig(args) => kubeconfig::kubeconfig(context, &args),
            Self::Kubectl(args) => kubectl::kubectl(context, &args.args),
            Self::Stop(args) => power::run(context, VerbName::Stop, &args.nodes),
            Self::Start(args) => power::run(context, VerbName::Start, &args.nodes),
            Self::Reset => kept::reset(context),
            Self::Fork(args) => fork::run(context, &args),
            Self::Kept(verb) => kept::run(context, verb),
            Self::Image(verb) => image::run(context, verb),
            Self::Suspend => power::run(context, VerbName::Suspend, &[]),
            Self::Resume => power::run(context, VerbName::Resume, &[]),
            Self::Snapshot(verb) => snapshot::run(context, verb),
            Self::Fault(verb) => fault::run(context, verb),
            Self::Backup { archive } => backup::save(context, archive.as_deref()),
            Self::Restore { archive: Some(archive), .. } => backup::restore(context, &archive),
            Self::Restore { archive: None, .. } => backup::undo(context),
            Self::Killall(args) => power::run(context, VerbName::Killall, &args.nodes),
            Self::Uninstall(args) => power::run(context, VerbName::Uninstall, &args.nodes),
            Self::Replace { nodes } => replace::replace(context, &nodes),
            Self::Destroy(args) => destroy::destroy(context, &args.nodes.nodes, args.gone),
            Self::Artifacts(verb) => artifacts::run(context, verb),
            Self::Box(verb) => boxes::run(context, verb),
            Self::Doctor(args) => doctor::doctor(context, args.fix),
            Self::Completions { shell } => files::completions(context, shell),
            Self::Man { dir } => files::man(context, dir.as_deref()),
        }
    }
}
