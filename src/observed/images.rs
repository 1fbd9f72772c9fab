//! Which images are kept and given, as far as it can be told without asking.

use super::View;
use super::applied::applied;
use crate::machines::MachineState;
use crate::plan::{Check, K3sState};
use crate::spec::Node;

const OFF: &str = "the spec says `keep_images: false`";

/// Due with what makes nodes pull: a node that is made, manifests that are applied. What is pulled beside that is looked for before
/// machines go.
pub fn collected(view: &View<'_>) -> Check {
    if !view.cluster.keep_images {
        return Check::Done(OFF.into());
    }
    let made = view.cluster.members().any(|n| view.k3s_state(n) == K3sState::New);
    match made || applied(view).may_run() {
        true => Check::Needed("nodes pull what they are to run".into()),
        false => Check::Done("nothing is made or applied".into()),
    }
}

/// Done where a node that goes has pulled nothing, or cannot be asked.
pub fn collected_of(view: &View<'_>, node: &Node) -> Check {
    let machine = view.seen.machines.get(&node.name);
    let runs = machine.is_some_and(|m| m.state == MachineState::Running && !m.foreign);
    Check::Done(match () {
        () if !view.cluster.keep_images => OFF.into(),
        () if !runs => "its machine does not run".into(),
        () if !view.seen.here.kubeconfig || !view.seen.joined.contains(&node.name) => {
            "its k3s has not been part of the cluster".into()
        }
        () => return Check::Needed("it may have pulled some since".into()),
    })
}

/// Done where no machine goes whose node may have pulled some.
pub fn collected_of_leaving(view: &View<'_>) -> Check {
    let mut all = view.seen.leaving().map(|node| collected_of(view, node)).collect::<Vec<_>>();
    let due = all.iter().position(Check::may_run).unwrap_or_default();
    match all.is_empty() {
        true => Check::Done("no machine goes".into()),
        false => all.swap_remove(due),
    }
}

/// Done where a node has its own, or none are kept for it.
pub fn given(view: &View<'_>, node: &Node) -> Check {
    if !view.cluster.keep_images {
        return Check::Done(OFF.into());
    }
    let count = match view.seen.here.images {
        0 if collected_of_leaving(view).may_run() => {
            return Check::Unknown("checked when those of machines that go are kept".into());
        }
        0 => return Check::Done("none are kept for this cluster".into()),
        1 => "one is kept for this cluster".to_owned(),
        count => format!("{count} are kept for this cluster"),
    };
    match view.facts(node) {
        Err(Check::Needed(_)) => Check::Needed(count),
        Err(check) => check,
        Ok(facts) if facts.node_password => Check::Done("it has its own".into()),
        Ok(_) => Check::Needed(count),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::guest::NodeFacts;
    use crate::machines::Machine;
    use crate::observed::Observed;
    use crate::spec::fixture::cluster;

    #[test]
    fn new_nodes_are_given_what_is_kept_and_nodes_are_asked_when_they_pull() {
        let mut cluster = cluster(1);
        let mut seen = Observed::default();
        let due = |cluster: &_, seen: &Observed| {
            let view = View::new(cluster, seen);
            let worker = &view.cluster.nodes[1];
            [collected(&view), collected_of(&view, worker), given(&view, worker)].map(|c| c.may_run())
        };
        assert_eq!(due(&cluster, &seen), [true, false, false]);
        seen.here.images = 2;
        assert_eq!(due(&cluster, &seen), [true, false, true]);
        for node in &cluster.nodes {
            let mut facts =
                NodeFacts { node_password: true, datastore: Some("etcd".into()), ..NodeFacts::default() };
            let unit = crate::guest::Unit { loaded: true, active: "active".into(), ..Default::default() };
            facts.units.extend([("k3s".to_owned(), unit.clone()), ("k3s-agent".to_owned(), unit)]);
            seen.nodes.insert(node.name.clone(), facts.into());
            seen.joined.insert(node.name.clone());
            let runs = Machine { state: MachineState::Running, ..Machine::absent() };
            seen.machines.insert(node.name.clone(), runs);
        }
        seen.here.kubeconfig = true;
        seen.apps = Some(crate::observed::Apps::default());
        seen.apps.as_mut().unwrap().inventory.digest = crate::apps::digest(&cluster);
        assert_eq!(due(&cluster, &seen), [false, true, false]);
        seen.apps.as_mut().unwrap().inventory.digest = "other".into();
        assert_eq!(due(&cluster, &seen)[1..], [true, false]);
        // What goes may have what the next one is given.
        seen.here.images = 0;
        seen.request.leaving = vec![cluster.nodes[1].clone()];
        assert!(due(&cluster, &seen)[2]);
        cluster.keep_images = false;
        assert_eq!(due(&cluster, &seen), [false; 3]);
    }
}
