//! The machine has the disks that the spec gives it, and its file system fills the first.

use serde_json::json;

use super::{Item, NodeCtx, NodeDef, Step};
use crate::access::SCRIPT_TIMEOUT;
use crate::engine::StepError;
use crate::machines::Cap;
use crate::observed::View;
use crate::plan::{After, Check, NodeStep, Per};
use crate::spec::{Cluster, Node};

pub const STEP: Step = Step::Node(NodeDef {
    name: NodeStep::Disks,
    title: "give the machine its disks",
    per: Per::Node,
    after: &[After::Node(NodeStep::Ssh)],
    needs: Some(Cap::Resize),
    retry: true,
    check,
    inputs,
    apply,
});

/// Less than so many MiB that a file system does not fill are between partitions.
const LITTLE: u64 = 64;

fn check(view: &View<'_>, node: &Node, _: Item<'_>) -> Check {
    if node.disk.is_none() && node.disks.is_empty() {
        return Check::Done("it has what the box has".into());
    }
    let facts = match view.facts(node) {
        Ok(facts) => facts,
        Err(check) => return check,
    };
    let made = view.seen.made.get(&node.name);
    let (disk, disks) = made.map(|made| (made.disk, made.disks.as_slice())).unwrap_or_default();
    if let Some(size) = node.disk.filter(|size| disk != Some(*size)) {
        return Check::Needed(match disk {
            Some(has) => format!("its disk has {has} GiB, not {size}"),
            None => format!("its disk is as large as the box has it, not {size} GiB"),
        });
    }
    for one in &node.disks {
        match disks.iter().find(|has| has.serial == one.serial) {
            None => return Check::Needed(format!("it has no disk {}", one.serial)),
            Some(has) if has.size != one.size => {
                return Check::Needed(format!(
                    "its disk {} has {} GiB, not {}",
                    one.serial, has.size, one.size
                ));
            }
            Some(_) => {}
        }
    }
    match node.disk.is_some() && facts.unfilled_mib > LITTLE {
        true => Check::Needed("its file system does not fill its disk".into()),
        false => Check::Done("it has them".into()),
    }
}

fn inputs(_: &Cluster, node: &Node) -> serde_json::Value {
    json!((&node.name, node.disk, &node.disks))
}

fn apply(ctx: &NodeCtx<'_>) -> Result<Option<String>, StepError> {
    let (world, node) = (ctx.world, ctx.node);
    let cancel = ctx.control.cancel();
    let mut did = world.machines.resize(&node.name)?.disks(&world.cluster, node, cancel)?;
    world.remember_disks(node)?;
    if node.disk.is_some() {
        let script = world.guest(node).fill();
        let what = "filling the disk";
        let done = world.on(node, |r| {
            r.script(what, script, true, SCRIPT_TIMEOUT, &mut |line| did.push(line.to_owned()))
        })?;
        if done.status == 21 {
            return Err(StepError::new(
                "the partition of its root file system cannot be enlarged",
                "Install `cloud-guest-utils` or `fdisk` in the box, or on the node; then `p1 retry`.",
            )
            .evidence(crate::os::process::tail(&done.text(), 4))
            .next(["p1 retry"]));
        }
        done.ok()?;
        world.look_at_node(node)?;
    }
    for line in &did {
        ctx.control.log(line);
    }
    Ok((!did.is_empty()).then(|| did.join(", ")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::guest::NodeFacts;
    use crate::machines::Made;
    use crate::observed::Observed;
    use crate::spec::Disk;

    #[test]
    fn what_a_machine_lacks_of_its_disks_is_due_and_what_it_has_more_is_not() {
        let mut cluster = crate::spec::fixture::cluster(0);
        let disk = |serial: &str, size| Disk { serial: serial.to_owned(), size };
        let due = |cluster: &Cluster, has: Option<u32>, disks: Vec<Disk>, unfilled_mib| {
            let node = &cluster.nodes[0];
            let made = Made {
                role: node.role,
                ip: node.ip,
                cidr: cluster.network.cidr,
                nics: 1,
                image: String::new(),
                ssh: None,
                disk: has,
                disks,
            };
            let mut seen = Observed::default();
            seen.made.insert(node.name.clone(), made);
            seen.nodes.insert(node.name.clone(), NodeFacts { unfilled_mib, ..NodeFacts::default() }.into());
            check(&View::new(cluster, &seen), node, None)
        };
        assert!(!due(&cluster, None, vec![], 900).may_run(), "the box's matter");
        cluster.nodes[0].disk = Some(40);
        cluster.nodes[0].disks = vec![disk("data", 5)];
        let whole = || vec![disk("data", 5), disk("old", 1)];
        assert!(!due(&cluster, Some(40), whole(), 3).may_run());
        let cases = [
            (None, whole(), 3, "the box"),
            (Some(20), whole(), 3, "20 GiB, not 40"),
            (Some(40), vec![disk("old", 1)], 3, "no disk data"),
            (Some(40), vec![disk("data", 4)], 3, "4 GiB, not 5"),
            (Some(40), whole(), 900, "does not fill"),
        ];
        for (has, disks, unfilled, word) in cases {
            let Check::Needed(why) = due(&cluster, has, disks, unfilled) else { panic!("{word}") };
            assert!(why.contains(word), "{why}");
        }
    }
}
