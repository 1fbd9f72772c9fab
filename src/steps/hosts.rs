//! A node knows the others by name, and what the spec names beside them: p1's part of its /etc/hosts.

use std::sync::Arc;

use serde_json::json;

use super::shared::hosts::{digest, lines};
use super::{Item, NodeCtx, NodeDef, Step};
use crate::engine::StepError;
use crate::observed::{View, holds};
use crate::plan::{After, Check, NodeStep, Per};
use crate::spec::Node;

pub const STEP: Step = Step::Node(NodeDef {
    name: NodeStep::Hosts,
    title: "name the nodes in /etc/hosts",
    per: Per::Node,
    after: &[After::Node(NodeStep::System)],
    needs: None,
    retry: true,
    check,
    inputs: |cluster, _| json!(lines(cluster)),
    apply,
});

fn check(view: &View<'_>, node: &Node, _: Item<'_>) -> Check {
    let facts = match view.facts(node) {
        Ok(facts) => facts,
        Err(check) => return check,
    };
    let wrong = match &facts.hosts {
        None => Some("its /etc/hosts does not have the nodes".to_owned()),
        Some(has) if *has != digest(view.cluster) => Some("its /etc/hosts differs from the spec".to_owned()),
        Some(_) => None,
    };
    holds("it knows the nodes by name", wrong)
}

fn apply(ctx: &NodeCtx<'_>) -> Result<Option<String>, StepError> {
    let (world, node) = (ctx.world, ctx.node);
    // A machine that was new when this was planned was given the names with the rest of its system, and looked at since.
    if world.facts(node)?.hosts == Some(digest(&world.cluster)) {
        return Ok(Some("written with its system".to_owned()));
    }
    world.script(node, "naming the nodes", &world.guest(node).hosts(&lines(&world.cluster)))?;
    // Asking the node about itself for that alone would cost an emulated one more than writing it.
    world.note(|seen| {
        if let Some(facts) = seen.nodes.get_mut(&node.name).map(Arc::make_mut) {
            facts.hosts = Some(digest(&world.cluster));
        }
    });
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::guest::NodeFacts;
    use crate::observed::Observed;

    #[test]
    fn a_node_s_names_are_its_own_and_another_s_address_is_seen() {
        let mut cluster = crate::spec::fixture::cluster(1);
        cluster.nodes[1].hostname = Some("wilS.lab.test".into());
        cluster.hosts.insert("registry.test".into(), [10, 11, 0, 4].into());
        let all = [
            "192.168.56.110 server",
            "192.168.56.111 wilS.lab.test wilS worker-1",
            "10.11.0.4 registry.test",
        ];
        assert_eq!(lines(&cluster), all);
        let found = |hosts: Option<String>| {
            let mut seen = Observed::default();
            seen.nodes.insert("server".into(), NodeFacts { hosts, ..NodeFacts::default() }.into());
            check(&View::new(&cluster, &seen), &cluster.nodes[0], None)
        };
        assert!(!found(Some(digest(&cluster))).may_run());
        let mut moved = cluster.clone();
        moved.nodes[1].ip = [192, 168, 56, 99].into();
        for hosts in [None, Some(digest(&moved))] {
            assert!(matches!(found(hosts), Check::Needed(_)));
        }
    }
}
