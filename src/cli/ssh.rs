//! `p1 ssh`: the system's ssh, with the cluster's key and the pinned host keys.

use std::io::IsTerminal;

use super::args::Ssh;
use super::context::Context;
use super::error::{CliError, code};
use super::out;
use crate::os::process;
use crate::ssh;
use crate::state::StateDir;

/// Opens a shell on a node, or runs a command there; its exit code is p1's.
pub fn ssh(context: &Context, args: &Ssh) -> Result<(), CliError> {
    let cluster = context.spec()?;
    let name = match &args.node {
        Some(word) => context.target(&cluster, word)?,
        None => cluster.first_server().name.clone(),
    };
    let host = host(context, cluster, &name)?;
    let terminal = std::io::stdin().is_terminal() && std::io::stdout().is_terminal();
    // As one word: ssh joins several by spaces, and what a person quoted would fall apart.
    let command = (!args.command.is_empty()).then(|| process::shell_line(&args.command));
    let status = out::hand_over(&ssh::interactive(&host, command.as_slice(), terminal))?;
    exit("ssh", status)
}

/// How a node is reached.
pub fn host(context: &Context, cluster: crate::spec::Cluster, name: &str) -> Result<ssh::Host, CliError> {
    let state = StateDir::of(cluster.home(), &cluster.name);
    context.must_be_made(&cluster, &state)?;
    let kind = context.kind(&cluster, &state)?;
    let world = context.world(cluster, kind);
    let node = world.cluster.node(name).expect("looked up before");
    Ok(world.ssh_host(node)?)
}

/// Another program's exit code as p1's.
pub fn exit(program: &str, status: std::process::ExitStatus) -> Result<(), CliError> {
    match status.code() {
        _ if out::left_alone() => Ok(()),
        Some(0) => Ok(()),
        Some(code) => {
            let what = format!("{program} ended with exit code {code}");
            Err(CliError::told(u8::try_from(code).unwrap_or(code::FAILED), what))
        }
        // Its output could not be passed on, which ends it; that is told as what it is.
        None if out::ended() => Ok(()),
        None => Err(CliError::told(code::INTERRUPTED, format!("{program} was ended by a signal"))),
    }
}
