//! `p1 init --from`: the spec of a cluster that somebody installed, from what its machines say. Nothing is changed there, and
//! the spec is written only if taking the cluster over by it restarts nothing.

use std::ffi::OsString;
use std::fmt::Write;
use std::path::Path;
use std::time::Duration;

use super::context::{Context, variable};
use super::error::{CliError, code};
use crate::access::World;
use crate::engine::StepError;
use crate::explain::without_name;
use crate::machines::Kind;
use crate::observed::describe::{Host, Written, describe};
use crate::observed::{View, found};
use crate::os::{files, many};
use crate::spec::{self, Cluster, Role};
use crate::state::StateDir;

/// How long a machine may take to answer.
const PATIENCE: Duration = Duration::from_secs(20);

/// `[USER@]HOST[:PORT]`.
fn parts(text: &str) -> Result<(Option<String>, String, Option<u16>), CliError> {
    let wrong = || {
        let what = format!("`{text}` is not a machine");
        CliError::new(code::USAGE, what, "Write it as `[USER@]HOST[:PORT]`: `pi@192.168.1.21`, `mini`.")
    };
    let (user, rest) = text.rsplit_once('@').map_or((None, text), |(user, rest)| (Some(user), rest));
    let (host, port) = match rest.split_once(':') {
        Some((host, port)) => (host, Some(port.parse().map_err(|_| wrong())?)),
        None => (rest, None),
    };
    if host.is_empty() || host.starts_with('-') || user.is_some_and(str::is_empty) {
        return Err(wrong());
    }
    Ok((user.map(str::to_owned), host.to_owned(), port))
}

/// The machines as a cluster, to look at them: each is called as it was named.
fn probe(
    named: &[(Option<String>, String, Option<u16>)],
    sudo: Option<&str>,
    dir: &Path,
) -> Result<Cluster, CliError> {
    let json = |text: &str| serde_json::Value::from(text).to_string();
    let mut text = "name: from\nprovider: ssh\n".to_owned();
    if let Some(sudo) = sudo {
        let _ = writeln!(text, "ssh: {{sudo_password: {{from: {}}}}}", json(sudo));
    }
    text.push_str("nodes:\n");
    let mut names: Vec<String> = Vec::new();
    for (i, (user, host, port)) in named.iter().enumerate() {
        let label = spec::name_for(host);
        let name = if names.contains(&label) { format!("machine-{}", i + 1) } else { label };
        let role = if i == 0 { "server" } else { "worker" };
        let user = user.as_deref().map(|user| format!(", user: {}", json(user))).unwrap_or_default();
        let port = port.map(|port| format!(", port: {port}")).unwrap_or_default();
        let (name_text, host) = (json(&name), json(&host.replace('$', "$$")));
        let ip = std::net::Ipv4Addr::from(
            u32::from(std::net::Ipv4Addr::new(192, 0, 2, 1)) + u32::try_from(i).unwrap_or(0),
        );
        let _ = writeln!(
            text,
            "  - {{name: {name_text}, role: {role}, ip: {ip}, ssh: {{host: {host}{user}{port}}}}}"
        );
        names.push(name);
    }
    let parsed = spec::parse(&text, &dir.join("cluster.yaml")).map_err(|invalid| {
        let said: Vec<String> = invalid.problems.iter().map(|p| p.message.clone()).collect();
        CliError::new(code::USAGE, said.join("; "), "Name each machine once, as `[USER@]HOST[:PORT]`.")
    })?;
    Ok(parsed.cluster)
}

/// The spec, and the variables that it needs.
pub fn from(
    context: &Context,
    cluster: &str,
    hosts: &[String],
    sudo: Option<&str>,
    path: &Path,
) -> Result<Written, CliError> {
    let named = hosts.iter().map(|host| parts(host)).collect::<Result<Vec<_>, _>>()?;
    let dir = tempfile::tempdir().map_err(|e| {
        CliError::new(code::HOST, format!("no temporary folder can be made: {e}"), "See to $TMPDIR.")
    })?;
    let mut probed = probe(&named, sudo, dir.path())?;
    let state = StateDir::of(probed.home(), &probed.name);
    context.kind(&probed, &state)?;
    state.create().map_err(|e| CliError::of(code::FAILED, &e))?;
    let world = context.world(probed.clone(), Kind::Ssh);
    world.look_at_machines()?;
    let looked = many::each(world.jobs, &world.cluster.nodes, |node| {
        world
            .on(node, |remote| remote.wait_for(PATIENCE, &mut |_| {}).map(|_| ()))
            .and_then(|()| world.look_at_node(node))
    });
    let failed =
        looked.iter().zip(&named).filter_map(|(looked, (_, host, _))| Some((host, looked.as_ref().err()?)));
    if let Some((host, error)) = failed.into_iter().next() {
        return Err(unreached(host, error, sudo.is_some()));
    }
    let seen = world.seen();
    let mut all = Vec::new();
    for (node, (user, host, port)) in probed.nodes.iter_mut().zip(&named) {
        let (Some(facts), Some(found)) = (seen.nodes.get(&node.name), seen.found.get(&node.name)) else {
            let facts = seen.nodes.get(&node.name);
            let ours = facts.is_some_and(|facts| facts.has_k3s() && facts.stamps.contains_key("cluster"));
            return Err(match ours {
                true => CliError::new(
                    code::FAILED,
                    format!("the k3s of {host} is one of p1's"),
                    "Work in the folder of its spec. Where that is gone, `p1 up --skip-preflight` with the same spec takes the \
                     cluster over.",
                ),
                false => CliError::new(
                    code::FAILED,
                    format!("{host} has no k3s that p1 knows: no unit k3s or k3s-agent is loaded there"),
                    "Name the machines of a cluster that k3s' installer, k3sup or k3s-ansible made.",
                ),
            });
        };
        node.role = found.role;
        all.push(Host {
            host: host.clone(),
            user: user.clone(),
            port: *port,
            facts: (**facts).clone(),
            found: (**found).clone(),
        });
    }
    if !all.iter().any(|host| host.found.role == Role::Server) {
        let hint = "Name its servers as well: they have what the spec needs to know.";
        return Err(CliError::new(code::USAGE, "none of these machines is a server of the cluster", hint));
    }
    let written = describe(cluster, &all, sudo).map_err(refused)?;
    let described = read(&written, path)?;
    // With the tokens that its servers have.
    let asking = context.world(probed.clone(), Kind::Ssh);
    asking.look_at_machines()?;
    asking.look_at_tokens();
    let lacks = would_change(&world, &asking, &described, &written, &probed);
    if lacks.is_empty() { Ok(written) } else { Err(refused(lacks)) }
}

/// Why a machine could not be looked at.
fn unreached(host: &str, error: &StepError, has_password: bool) -> CliError {
    let cause = without_name(host, &error.failure.cause).to_owned();
    let sudo = cause.contains("become root") && !has_password;
    let hint = error.failure.hint.clone().unwrap_or_default();
    let hint = if sudo { format!("`--sudo-password prompt` asks for its password. {hint}") } else { hint };
    let fail = CliError::new(code::FAILED, format!("{host}: {cause}"), hint.trim_end());
    CliError { evidence: error.failure.evidence.clone(), ..fail }
}

/// What keeps a cluster from being taken over as it runs.
fn refused(told: Vec<String>) -> CliError {
    let what = match told.len() {
        1 => "a spec cannot say how this cluster is configured".to_owned(),
        n => format!("a spec cannot say how this cluster is configured, for {n} reasons"),
    };
    let hint = "Nothing was written, and nothing was changed there: p1 would have to rewrite what is named above, and to restart k3s. \
                Change it on the machines first, or leave the cluster to whoever has it.";
    CliError { evidence: told, ..CliError::new(code::FAILED, what, hint) }
}

/// The spec as it will be read.
fn read(written: &Written, path: &Path) -> Result<Cluster, CliError> {
    let secret = |name: &str| written.secrets.iter().find(|(known, _)| known == name);
    let env = |name: &str| -> Option<OsString> { secret(name).map(|(_, value)| value.into()) };
    let read = spec::parse_with(&written.text, path, &env);
    read.map(|parsed| parsed.cluster).map_err(|invalid| {
        let errors = invalid.problems.iter().filter(|p| p.severity == spec::Severity::Error);
        refused(errors.map(|p| p.message.clone()).collect())
    })
}

/// In what the cluster would be changed by an `up` of the spec, a line each.
fn would_change(
    world: &World,
    asking: &World,
    described: &Cluster,
    written: &Written,
    probed: &Cluster,
) -> Vec<String> {
    let mut seen = (*world.seen()).clone();
    seen.here.tokens.clone_from(&asking.seen().here.tokens);
    for (name, node) in written.names.iter().zip(&probed.nodes) {
        let machine = seen.machines.remove(&node.name);
        seen.machines.extend(machine.map(|m| (name.clone(), m)));
        let facts = seen.nodes.remove(&node.name);
        seen.nodes.extend(facts.map(|f| (name.clone(), f)));
        let found = seen.found.remove(&node.name);
        seen.found.extend(found.map(|f| (name.clone(), f)));
    }
    let view = View::new(described, &seen);
    let of = |node: &spec::Node| {
        let lacks = found::lacks(&view, node).unwrap_or_else(|| vec!["it could not be compared".to_owned()]);
        lacks.into_iter().map(|lack| format!("{}: {lack}", node.name)).collect::<Vec<_>>()
    };
    described.nodes.iter().flat_map(of).collect()
}

/// Puts the variables of the spec's secrets into `.env` beside it, which others cannot read; what it has stays.
pub fn keep(secrets: &[(String, String)], path: &Path) -> Result<(), CliError> {
    if secrets.is_empty() {
        return Ok(());
    }
    let file = path.parent().unwrap_or(Path::new(".")).join(".env");
    let mut text =
        files::read_if_there(&file).map_err(|e| CliError::of(code::FAILED, &e))?.unwrap_or_default();
    if !text.is_empty() && !text.ends_with('\n') {
        text.push('\n');
    }
    for (name, value) in secrets {
        let there = text
            .lines()
            .any(|l| l.trim_start_matches("export ").split('=').next().map(str::trim) == Some(name));
        if there || variable(name).is_some() {
            let what =
                format!("the variable `{name}`, which the spec would have a secret by, is set already");
            return Err(CliError::new(
                code::USAGE,
                what,
                format!("Take it out of the environment and of {}.", file.display()),
            ));
        }
        let quoted: String = value
            .chars()
            .map(|c| match c {
                '"' | '\\' | '$' => format!("\\{c}"),
                '\n' => "\\n".to_owned(),
                c => c.to_string(),
            })
            .collect();
        let _ = writeln!(text, "{name}=\"{quoted}\"");
    }
    files::write(&file, text.as_bytes(), 0o600).map_err(|e| CliError::of(code::FAILED, &e))?;
    eprintln!("wrote its secrets to {}: keep it out of version control", file.display());
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_machine_is_named_as_ssh_names_it() {
        let part = |text: &str| parts(text).ok();
        assert_eq!(part("pi@10.0.0.5:2222"), Some((Some("pi".into()), "10.0.0.5".into(), Some(2222))));
        assert_eq!(part("mini"), Some((None, "mini".into(), None)));
        for wrong in ["", "@x", "x:y", "-oProxyCommand=x", "pi@"] {
            assert_eq!(part(wrong), None, "{wrong}");
        }
    }
}
