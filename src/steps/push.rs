//! Before k3s becomes another one where it runs, its files are on every node, beside those that are in use: then
//! a turn is a rename and a restart, and a node that cannot be reached shows before the first is touched.

use super::shared::inputs;
use super::shared::transfer::{Transfer, next};
use super::{Item, NodeCtx, NodeDef, Step};
use crate::access::SCRIPT_TIMEOUT;
use crate::engine::StepError;
use crate::observed::View;
use crate::observed::files::staged;
use crate::plan::{After, Check, ClusterStep, K3sState, NodeStep, Per};
use crate::spec::Node;

pub const STEP: Step = Step::Node(NodeDef {
    name: NodeStep::Push,
    title: "push the next k3s",
    per: Per::Node,
    after: &[
        After::Node(NodeStep::System),
        After::Cluster(ClusterStep::Artifacts),
        After::Cluster(ClusterStep::Files),
    ],
    needs: None,
    retry: true,
    check,
    inputs: inputs::files,
    apply,
});

fn check(view: &View<'_>, node: &Node, _: Item<'_>) -> Check {
    if view.k3s_state(node) != K3sState::Running {
        return Check::Done("its files go to their places at once".into());
    }
    staged(view, node)
}

fn apply(ctx: &NodeCtx<'_>) -> Result<Option<String>, StepError> {
    let (world, node) = (ctx.world, ctx.node);
    let facts = world.facts(node)?;
    let mut transfer = Transfer::new(ctx);
    for file in world.wanted(node)? {
        if facts.staged.get(&file.path) == Some(&file.sha256) {
            continue;
        }
        let next = next(&file.path);
        // In its place without p1's note, or pushed by a run that ended before the node's turn.
        let is = |path: &str| {
            world.on(node, |r| r.sha256(path, SCRIPT_TIMEOUT)).map(|s| s.as_ref() == Some(&file.sha256))
        };
        if is(&file.path)? || is(&next)? {
            continue;
        }
        transfer.file(&file, &next)?;
    }
    Ok(Some(transfer.end()))
}
