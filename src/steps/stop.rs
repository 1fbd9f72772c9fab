//! The machine is shut down: in order, and by its plug if it does not go.

use serde_json::json;

use super::shared::power::shut_down;
use super::{Item, NodeDef, Step};
use crate::machines::{Cap, MachineState};
use crate::observed::View;
use crate::plan::{After, Check, NodeStep, Per};
use crate::spec::{Cluster, Node};

pub const STEP: Step = Step::Node(NodeDef {
    name: NodeStep::Stop,
    title: "shut the machine down",
    per: Per::Node,
    // Workers first: they leave while somebody hears of it.
    after: &[After::Workers(NodeStep::Stop)],
    needs: Some(Cap::Power),
    retry: false,
    check,
    inputs,
    apply: shut_down,
});

fn check(view: &View<'_>, node: &Node, _: Item<'_>) -> Check {
    match view.machine(node) {
        machine if machine.foreign => Check::Done("no machine of its name is this folder's".into()),
        machine => of(&machine.state),
    }
}

fn of(state: &MachineState) -> Check {
    match state {
        MachineState::Absent => Check::Done("it does not exist".into()),
        MachineState::Off => Check::Done("it is off".into()),
        MachineState::Saved => Check::Done("it is suspended".into()),
        state => Check::Needed(format!("it is {state}")),
    }
}

fn inputs(_: &Cluster, node: &Node) -> serde_json::Value {
    json!(&node.name)
}
