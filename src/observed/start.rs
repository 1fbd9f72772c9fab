//! Whether k3s runs on a node with the configuration of now.

use super::{View, files, found, holds};
use crate::guest::{Activity, NodeFacts};
use crate::machines::MachineState;
use crate::plan::Check;
use crate::spec::{Node, Role};

/// Done where the unit is active, was started with what the spec says, and the cluster knows the node.
pub fn started(view: &View<'_>, node: &Node) -> Check {
    let facts = match view.facts(node) {
        Ok(facts) => facts,
        Err(check) => return check,
    };
    let Some(tokens) = &view.seen.here.tokens else {
        return Check::Needed("the token is not made yet".into());
    };
    if node.role == Role::Worker
        && view.cluster.servers().all(|s| view.machine(s).state == MachineState::Absent)
    {
        return Check::Unknown("checked when there is a server".into());
    }
    let unit = facts.unit(node.role.unit());
    let found = found::holds(view, node).is_some();
    let wrong = if unit.active != Activity::Active {
        Some(format!("its unit is {}", unit.active))
    } else if !found && facts.stamps.get("start") != Some(&files::running(view, node, facts, tokens)) {
        Some("it runs with another configuration".to_owned())
    } else if node.role == Role::Worker && is_orphan(view, node, facts) {
        Some("its server was recreated".to_owned())
    } else if view.seen.api.is_some() && view.status(node).is_none() {
        // Its Node object was deleted, and a kubelet registers when it starts.
        Some("not registered yet".to_owned())
    } else {
        None
    };
    holds("it runs with this configuration", wrong)
}

/// A worker that trusts another server than there is, and that the cluster does not know as Ready: its
/// server was recreated. A k3s that runs never learns of it; one that starts asks for everything again.
fn is_orphan(view: &View<'_>, node: &Node, facts: &NodeFacts) -> bool {
    const SERVER: &str = "/var/lib/rancher/k3s/server/tls/server-ca.crt";
    const AGENT: &str = "/var/lib/rancher/k3s/agent/server-ca.crt";
    let Some(trusts) = facts.written.get(AGENT) else { return false };
    let mut servers = view.cluster.servers().filter_map(|s| view.facts(s).ok()).peekable();
    servers.peek().is_some()
        && servers.all(|s| s.written.get(SERVER) != Some(trusts))
        && !view.status(node).is_some_and(|s| s.ready)
}
