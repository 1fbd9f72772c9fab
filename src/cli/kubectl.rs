//! `p1 kubectl`: this host's kubectl if there is one, else the server's own through SSH.

use std::io::IsTerminal;

use std::time::Duration;

use super::context::Context;
use super::error::{CliError, code};
use super::out::print;
use super::{out, ssh as ssh_verb};
use crate::access::listens;
use crate::k3s;
use crate::os::process::{Cmd, quote};
use crate::spec::{Cluster, Node};
use crate::ssh::{self, Bound, Remote};
use crate::state::StateDir;

/// What goes through p1's own session: `logs -f` of a pod too.
const BOUND: Duration = Duration::from_secs(24 * 3600);

/// Where sudo asks for a password p1 gives it, and the system's ssh cannot: what kubectl reads is read here before, and what
/// it says comes as one stream.
fn with_password(context: &Context, cluster: Cluster, server: &str, line: &str) -> Result<(), CliError> {
    use std::io::Read;
    let state = StateDir::of(cluster.home(), &cluster.name);
    let world = context.world(cluster.clone(), context.kind(&cluster, &state)?);
    let mut input = Vec::new();
    if !std::io::stdin().is_terminal() {
        std::io::stdin().read_to_end(&mut input).map_err(|e| {
            CliError::new(code::FAILED, format!("what kubectl is to read cannot be read: {e}"), "")
        })?;
    }
    let node = world.cluster.node(server).expect("one of its servers");
    let mut remote = Remote::new(world.login(node)?, world.cancel.clone());
    let bound = Bound::from(BOUND).at_most(u64::MAX);
    let mut tell = |bytes: &[u8]| print(String::from_utf8_lossy(bytes).into_owned());
    let done =
        remote.exec_as_root(line, &input, bound, &mut tell).map_err(|e| CliError::of(code::FAILED, &e))?;
    match done.status {
        0 => Ok(()),
        status => {
            let what = format!("kubectl ended with exit code {status}");
            Err(CliError::told(u8::try_from(status).unwrap_or(code::FAILED), what))
        }
    }
}

/// Runs kubectl; its exit code is p1's.
pub fn kubectl(context: &Context, args: &[String]) -> Result<(), CliError> {
    let cluster = context.spec()?;
    let state = StateDir::of(cluster.home(), &cluster.name);
    let kubeconfig = state.kubeconfig();
    if !kubeconfig.is_file() {
        let what = format!("the cluster `{}` has no kubeconfig yet", cluster.name);
        return Err(CliError::new(code::FAILED, what, "`p1 up` makes it.").next(["p1 up"]));
    }
    context.front(&cluster).ensure()?;
    let machines = context.machines_of(&cluster, &state);
    super::kubeconfig::choose(&cluster, &state, &machines)?;
    let reaches = cluster.k3s.endpoint.is_some()
        || cluster.servers().any(|s| machines.door(s, k3s::config::api_port(s)).is_some());
    if let Some(program) = context.env.find("kubectl").filter(|_| reaches) {
        let cmd = Cmd::new(program).args(args).env("KUBECONFIG", &kubeconfig);
        // Otherwise it would ask the host's proxy for the cluster.
        let direct = context.no_proxy(&cluster);
        let cmd = cmd.env("NO_PROXY", &direct).env("no_proxy", &direct);
        return ssh_verb::exit("kubectl", out::hand_over(&cmd)?);
    }
    // `-f FILE` means a file of this host, which the server does not have; standard input passes.
    let local = args.windows(2).find(|w| {
        matches!(w[0].as_str(), "-f" | "--filename" | "-k") && w[1] != "-" && !w[1].contains("://")
    });
    if let Some(pair) = local {
        let what = format!("`{}` is a file of this host, and kubectl runs on the server", pair[1]);
        // The first of them is what standard input can be.
        let at = args.windows(2).position(|w| w == pair).map_or(0, |at| at + 1);
        let line: Vec<String> =
            args.iter().enumerate().map(|(i, arg)| if i == at { "-".into() } else { quote(arg) }).collect();
        let hint = match pair[0].as_str() {
            "-k" => {
                "Name the folder in the spec's `manifests`, and `p1 up` applies it; or install kubectl here."
                    .to_owned()
            }
            _ => format!(
                "Give it by standard input: {} kubectl {} < {}",
                context.called(),
                line.join(" "),
                quote(&pair[1])
            ),
        };
        return Err(CliError::new(code::USAGE, what, hint));
    }
    let servers: Vec<&Node> = cluster.servers().collect();
    let bound = std::time::Duration::from_secs(2);
    let answers = |s: &&&Node| servers.len() == 1 || listens(&machines, s, bound);
    let server = servers.iter().find(answers).unwrap_or(&servers[0]).name.clone();
    let mut line = "k3s kubectl".to_owned();
    for arg in args {
        line.push(' ');
        line.push_str(&quote(arg));
    }
    if cluster.node(&server).is_some_and(|node| node.ssh.as_ref().is_some_and(|ssh| ssh.password.is_some())) {
        return with_password(context, cluster, &server, &line);
    }
    let host = ssh_verb::host(context, cluster, &server)?;
    let line = format!("{}{line}", host.root.prefix());
    let terminal = std::io::stdin().is_terminal() && std::io::stdout().is_terminal();
    ssh_verb::exit("kubectl", out::hand_over(&ssh::interactive(&host, &[line], terminal))?)
}
