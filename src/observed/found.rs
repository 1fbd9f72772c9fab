//! A k3s that somebody installed and p1 takes over: whether it is as the spec says. As long as it is, nothing of it is
//! rewritten, and it is not restarted. Pure.

use std::collections::BTreeSet;

use super::{View, files};
use crate::guest::NodeFacts;
use crate::k3s::found::{Ground, differences};
use crate::k3s::{self, Found};
use crate::plan::Check;
use crate::redact;
use crate::spec::{Node, Release, Role};

/// p1's note on a machine that its k3s was there before: it stays when p1 goes.
pub const BEFORE: &str = "before";
/// And that nothing of it was rewritten since.
pub const AS_FOUND: &str = "as-found";

/// Whether a machine may have a k3s that p1 did not install, or does not run yet as p1 installs it.
pub fn may_be(facts: &NodeFacts) -> bool {
    let installed = |role: Role| facts.unit(role.unit()).loaded;
    (installed(Role::Server) || installed(Role::Worker))
        && !facts.stamps.contains_key("install")
        && (!facts.stamps.contains_key("cluster") || facts.stamps.contains_key(AS_FOUND))
}

/// What nobody is to see of it.
pub fn secrets(found: &Found) -> Vec<String> {
    let settings = found.settings.iter().filter(|(key, _)| redact::is_secret(key));
    let values = settings.flat_map(|(_, setting)| setting.values.clone());
    let variables = found.env.iter().filter(|(name, _)| redact::is_secret_variable(name));
    values.chain(variables.map(|(_, (value, _))| value.clone())).collect()
}

/// What its flags and variables say counts as what config.yaml says.
pub fn tell(found: &Found, facts: &mut NodeFacts) {
    if found.role == Role::Server {
        let told = found.settings.iter().map(|(key, setting)| (key.as_str(), &setting.values[..]));
        let mut told = k3s::fixed::written(told);
        let prepared = facts.settings.take().and_then(|mut all| all.remove_entry(k3s::fixed::PREPARED));
        told.extend(prepared);
        facts.settings = Some(told);
        if found.value("datastore-endpoint").is_some() {
            facts.datastore = Some("external".to_owned());
        }
    }
    let server = found.value("server").map(str::to_owned);
    facts.joins = found.is_on("cluster-init").then(|| "init".to_owned()).or(server);
}

/// In what a node's k3s, which somebody installed, is not as the spec says, a fragment each; none where it has no such k3s.
pub fn lacks(view: &View<'_>, node: &Node) -> Option<Vec<String>> {
    let facts = view.facts(node).ok()?;
    let found = view.seen.found.get(&node.name)?;
    if found.role != node.role {
        let other = if found.role == Role::Server { "server" } else { "worker" };
        return Some(vec![format!("it is a {other}, and the spec has it as a {}", node.role)]);
    }
    let tokens = view.seen.here.tokens.as_ref();
    let wanted = wanted(view, node, facts);
    let servers: BTreeSet<String> = view
        .cluster
        .servers()
        .flat_map(|s| [Some(s.ip.to_string()), k3s::config::external_ip(s).map(str::to_owned)])
        .flatten()
        .collect();
    let ground = Ground {
        hostname: &facts.hostname,
        addresses: &facts.addresses,
        default_route: facts.default_routes.first().map(String::as_str),
        servers: &servers,
        tokens,
    };
    let mut all = differences(found, &wanted, &ground);
    if node.role == Role::Server && view.cluster.has_etcd() && facts.datastore.as_deref() == Some("sqlite") {
        all.push("its data is in SQLite, and the spec wants etcd".to_owned());
    }
    if node.role == Role::Server && !view.cluster.has_etcd() && facts.datastore.as_deref() == Some("etcd") {
        all.push(
            "its data is in etcd, and the spec does not want that (`cluster-init: true` in its `config`)"
                .to_owned(),
        );
    }
    let version = match &view.cluster.k3s.release {
        Release::Version(version) => Some(version.as_str()),
        Release::Channel(_) => view.seen.here.version.as_deref(),
    };
    if let (Some(wants), Some(has)) = (version, found.version.as_deref())
        && !k3s::runs(wants, has)
    {
        all.push(format!("it runs {has}, and the spec says {wants}"));
    }
    Some(all)
}

/// What p1 would write there.
fn wanted(view: &View<'_>, node: &Node, facts: &NodeFacts) -> Found {
    let tokens = view.seen.here.tokens.clone().unwrap_or_else(k3s::Tokens::placeholder);
    let mut wanted = Found::new(node.role);
    let command = if node.role == Role::Server { "server" } else { "agent" };
    wanted.command(&[format!("{}/k3s", k3s::BIN_DIR), command.to_owned()], "");
    let [(path, config), ..] = files::files(view, node, facts, &tokens);
    wanted.file(&path, &config.unwrap_or_default());
    for (name, value) in &view.cluster.k3s.env {
        wanted.variable(name, value, "");
    }
    let registries = &view.cluster.k3s.registries;
    wanted.registries = (!registries.is_empty()).then(|| serde_yaml::Value::Mapping(registries.clone()));
    wanted
}

/// The k3s that somebody installed on this node is as the spec says: nothing has to be done to it.
pub fn holds(view: &View<'_>, node: &Node) -> Option<Check> {
    lacks(view, node)
        .filter(Vec::is_empty)
        .map(|_| Check::Done("its k3s is as it was found, and as the spec says".into()))
}

/// Its k3s was there before p1 came, and stays when the whole cluster goes.
pub fn stays(view: &View<'_>, node: &Node) -> bool {
    view.seen.request.whole_goes && view.seen.before.contains(&node.name)
}
