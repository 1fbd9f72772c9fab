//! Machines that run can be reached: their network is there and their cards are on it.
//!
//! [`super::network`] serves machines that are to be started. Those that run lose their network when somebody
//! stops it or changes it, and nothing that is asked over it would say why.

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::json;

use super::{ClusterDef, Ctx, Step};
use crate::access::World;
use crate::engine::Trouble;
use crate::machines::State;
use crate::observed::View;
use crate::os::lock::Lock;
use crate::plan::{After, Check, ClusterStep};
use crate::spec::{Cluster, Node};

pub const STEP: Step = Step::Cluster(ClusterDef {
    name: ClusterStep::Link,
    title: "connect the machines",
    after: &[After::Cluster(ClusterStep::Network)],
    serves: false,
    retry: true,
    check,
    inputs,
    apply,
});

/// Another p1 may be sending a base image of its own.
const OTHERS: Duration = Duration::from_secs(600);

fn check(view: &View<'_>) -> Check {
    match &view.seen.link {
        Some(lack) => Check::Needed(lack.clone()),
        None => Check::Done("the machines that run have their network".into()),
    }
}

fn inputs(cluster: &Cluster) -> serde_json::Value {
    json!(cluster.network)
}

fn apply(ctx: &Ctx<'_>) -> Result<Option<String>, Trouble> {
    let world = ctx.world;
    let cancel = ctx.control.cancel();
    let owner = world.owner()?;
    let _lock = Lock::take(&world.host_lock, "network", OTHERS, cancel)?;
    let did = world.provider.connect(
        &world.cluster,
        &owner,
        &running(world),
        &mut |m| ctx.control.says(m),
        cancel,
    )?;
    for line in &did {
        ctx.control.log(line);
    }
    world.note(|seen| seen.link = None);
    // What was not reached before is looked at now.
    world.note(|seen| seen.silent.clear());
    Ok((!did.is_empty()).then(|| did.join(", ")))
}

/// The machines of ours that run, by node.
fn running(world: &World) -> BTreeMap<String, String> {
    let ids = world.vagrant.ids();
    let seen = world.seen();
    let runs =
        |node: &String| seen.machines.get(node).is_some_and(|m| m.state == State::Running && !m.foreign);
    ids.into_iter().filter(|(node, _)| runs(node)).collect()
}

/// Looks at the network of machines that run. What it lacks for machines that are to be made keeps nobody from
/// those that are there.
pub fn look(world: &World) {
    let runs = running(world);
    if runs.is_empty() {
        return;
    }
    let made_so = |n: &Node| world.memory(&n.name).and_then(|m| m.made).is_none_or(|made| made.ip == n.ip);
    let mut cluster = world.cluster.clone();
    cluster.nodes.retain(|n| runs.contains_key(&n.name) && made_so(n));
    // What cannot be mended is told when it is tried, with what to do about it.
    let lack = match world.provider.network(&cluster, &world.cancel) {
        Ok(lack) => lack,
        Err(error) => Some(error.to_string()),
    };
    world.note(|seen| seen.link = lack);
}

/// Looks whether those of them that did not answer are connected to it.
pub fn look_at_cards(world: &World) {
    let seen = world.seen();
    if seen.link.is_some() || seen.silent.is_empty() {
        return;
    }
    let mut machines = running(world);
    machines.retain(|node, _| seen.silent.contains_key(node));
    let loose = world.provider.unplugged(&world.cluster, &machines, &world.cancel).unwrap_or_default();
    if !loose.is_empty() {
        let are = if loose.len() == 1 { "is" } else { "are" };
        let lack = format!("{} {are} not connected to the network", loose.join(", "));
        world.note(|seen| seen.link = Some(lack));
    }
}
