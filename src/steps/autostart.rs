//! The machine and its networks start with this host, so that the cluster comes back without p1: k3s' unit is
//! enabled by its installer.

use serde_json::json;

use super::{Item, NodeCtx, NodeDef, Step};
use crate::engine::StepError;
use crate::machines::{Cap, MachineState};
use crate::observed::View;
use crate::plan::{After, Check, NodeStep, Per};
use crate::spec::{Cluster, Node};

pub const STEP: Step = Step::Node(NodeDef {
    name: NodeStep::Autostart,
    title: "start with the host",
    per: Per::Node,
    after: &[After::Node(NodeStep::Vm)],
    needs: Some(Cap::Power),
    retry: true,
    check,
    inputs,
    apply,
});

fn check(view: &View<'_>, node: &Node, _: Item<'_>) -> Check {
    let wanted = view.cluster.autostart;
    let hosting = view.seen.hosting.get(&node.name).filter(|_| !view.is_recreated(node));
    match hosting {
        // What somebody else switched on stays.
        _ if !wanted && !view.seen.autostarts.contains(&node.name) => {
            Check::Done("it is not asked for".into())
        }
        _ if view.machine(node).state == MachineState::Absent && wanted => {
            Check::Needed("the machine is new".into())
        }
        _ if view.machine(node).state == MachineState::Absent => Check::Done("there is no machine".into()),
        None => Check::Unknown("checked when its turn comes".into()),
        Some(h) if wanted && !(h.autostart && h.network) => {
            Check::Needed("it does not start with this host".into())
        }
        Some(h) if wanted && h.unsafe_next && !view.cluster.disposable => {
            Check::Needed("its disk would not be safe at that start".into())
        }
        Some(h) if !wanted && h.autostart => Check::Needed("it starts with this host".into()),
        Some(_) => Check::Done("it is as the spec says".into()),
    }
}

fn inputs(cluster: &Cluster, node: &Node) -> serde_json::Value {
    json!([cluster.autostart, cluster.disposable, &node.name])
}

fn apply(ctx: &NodeCtx<'_>) -> Result<Option<String>, StepError> {
    let (world, node) = (ctx.world, ctx.node);
    let (cluster, cancel) = (&world.cluster, ctx.control.cancel());
    let power = world.machines.power(&node.name)?;
    if cluster.autostart {
        // Nobody of p1's is there at that start.
        if let Some(did) = power.keep_disk(cluster, &node.name, cancel)? {
            ctx.control.log(&did);
        }
    }
    power.keep_up(cluster, &node.name, cancel)?;
    world.remember(&node.name, |memory| memory.autostart = cluster.autostart)?;
    crate::observe::look_at_hosting(world);
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::machines::{Hosting, Machine};
    use crate::observed::Observed;

    #[test]
    fn it_is_asked_for_or_was_p1s_or_is_left_alone() {
        let told = |wanted: bool, ours: bool, hosting: Option<Hosting>, exists: bool| {
            let mut cluster = crate::spec::fixture::cluster(1);
            cluster.autostart = wanted;
            let node = cluster.nodes[0].clone();
            let mut seen = Observed::default();
            if exists {
                let machine = Machine { state: MachineState::Running, ..Machine::absent() };
                seen.machines.insert(node.name.clone(), machine);
            }
            seen.hosting.extend(hosting.map(|h| (node.name.clone(), h)));
            seen.autostarts.extend(ours.then(|| node.name.clone()));
            match check(&View::new(&cluster, &seen), &node, None) {
                Check::Done(_) => "done".to_owned(),
                Check::Needed(why) => why,
                Check::Unknown(_) => "unknown".to_owned(),
            }
        };
        let on = Hosting { unsafe_now: false, unsafe_next: false, autostart: true, network: true };
        let off = Hosting { autostart: false, ..on };
        assert_eq!(told(true, false, Some(off), true), "it does not start with this host");
        assert_eq!(
            told(true, false, Some(Hosting { network: false, ..on }), true),
            "it does not start with this host"
        );
        assert_eq!(
            told(true, true, Some(Hosting { unsafe_next: true, ..on }), true),
            "its disk would not be safe at that start"
        );
        assert_eq!(told(true, false, Some(on), true), "done");
        assert_eq!(told(true, false, None, false), "the machine is new");
        assert_eq!(told(true, false, None, true), "unknown");
        // Not asked for: p1's own goes, another's stays.
        assert_eq!(told(false, true, Some(on), true), "it starts with this host");
        assert_eq!(told(false, false, Some(on), true), "done");
        assert_eq!(told(false, false, None, true), "done");
        assert_eq!(told(false, true, Some(off), true), "done");
    }
}
