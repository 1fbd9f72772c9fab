//! The steps of a verb, as the engine runs them.

use std::sync::Arc;

use super::Verb;
use crate::access::World;
use crate::engine::{Control, StepError, Work};
use crate::machines::Batch;
use crate::observed::View;
use crate::plan::{self, At, Check, NodeStep, Of, Per, StepName};
use crate::spec::Node;
use crate::steps::{Ctx, NodeCtx, NodeDef, Step, vm};

/// The steps of a verb, for the engine.
pub struct Steps {
    /// Which.
    pub verb: &'static Verb,
    /// What they share.
    pub world: Arc<World>,
    /// The `vagrant up` of this run.
    pub batch: Arc<Batch<StepError>>,
    /// The machines that go, as the plan has them.
    pub leaving: Vec<Node>,
}

impl Work for Steps {
    fn check(&self, step: &plan::Step) -> Check {
        let seen = self.world.seen();
        self.verb.condition(self.at(step), &View::new(&self.world.cluster, &seen))
    }

    fn apply(&self, step: &plan::Step, control: &Control) -> Result<Option<String>, StepError> {
        let at = self.at(step);
        let ctx = Ctx { world: &self.world, batch: &self.batch, control, needs: at.of() };
        match (self.verb.step(step.name), at) {
            (Step::Cluster(def), At::Cluster(_)) => (def.apply)(&ctx),
            (Step::Node(def), At::Node { node, item, .. }) => {
                self.on_node(def, &NodeCtx { shared: ctx, node, item })
            }
            _ => unreachable!("the step of that name is of the same kind"),
        }
    }

    fn retries(&self, step: &plan::Step) -> bool {
        self.verb.step(step.name).retry()
    }
}

impl Steps {
    fn on_node(&self, def: &NodeDef, ctx: &NodeCtx<'_>) -> Result<Option<String>, StepError> {
        let node = ctx.node;
        // Before anything is done there: what is remembered may no longer be so.
        self.world.remember(&node.name, |m| m.facts = None)?;
        (def.apply)(ctx).map_err(|mut error| {
            // The step says whose it is.
            let cause = &mut error.failure.cause;
            *cause = crate::explain::without_name(&node.name, cause).to_owned();
            // The machine ran when the step before passed.
            match self.verb.boots() && def.name != NodeStep::Vm && error.may_pass() {
                true => vm::lost(&self.world, node, error),
                false => error,
            }
        })
    }

    /// Where a step of the plan is taken.
    fn at<'a>(&'a self, step: &'a plan::Step) -> At<'a> {
        let name = match step.name {
            StepName::ClusterStep(step) => return At::Cluster(step),
            StepName::NodeStep(step) => step,
        };
        let of = step.info.node.as_deref().unwrap_or_default();
        let node = match self.verb.step(step.name).of() {
            Of::Node(_, Per::Leaving) => self.leaving.iter().find(|n| n.name == of),
            _ => self.world.cluster.node(of),
        };
        At::Node { step: name, node: node.expect("a node of the plan"), item: step.item.as_deref() }
    }
}
