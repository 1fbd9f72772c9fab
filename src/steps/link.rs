//! Machines that run can be reached: their network is there and their cards are on it.
//!
//! [`super::network`] serves machines that are to be started. Those that run lose their network when somebody
//! stops it or changes it, and nothing that is asked over it would say why.

use std::time::Duration;

use serde_json::json;

use super::{ClusterDef, Ctx, Step};
use crate::engine::StepError;
use crate::machines::Cap;
use crate::observed::View;
use crate::os::lock::Lock;
use crate::plan::{After, Check, ClusterStep};
use crate::spec::Cluster;

pub const STEP: Step = Step::Cluster(ClusterDef {
    name: ClusterStep::Link,
    title: "connect the machines",
    after: &[After::Cluster(ClusterStep::Network)],
    on_demand: false,
    needs: Some(Cap::Make),
    retry: true,
    check,
    inputs,
    apply,
});

/// Another p1 may be sending a base image of its own.
const LOCK_TIMEOUT: Duration = Duration::from_secs(600);

fn check(view: &View<'_>) -> Check {
    match &view.seen.link {
        Some(lack) => Check::Needed(lack.clone()),
        None => Check::Done("the machines that run have their network".into()),
    }
}

fn inputs(cluster: &Cluster) -> serde_json::Value {
    json!(cluster.network)
}

fn apply(ctx: &Ctx<'_>) -> Result<Option<String>, StepError> {
    let world = ctx.world;
    let cancel = ctx.control.cancel();
    let owner = world.owner()?;
    let _lock = Lock::take(&world.host_lock, "network", LOCK_TIMEOUT, cancel)?;
    let running = crate::observe::running(world);
    let did = world.machines.for_makers(&world.cluster, &mut |make, cluster| {
        make.connect(cluster, &owner, &running, &mut |m| ctx.control.says(m), cancel)
    })?;
    for line in &did {
        ctx.control.log(line);
    }
    world.note(|seen| seen.link = None);
    // What was not reached before is looked at now.
    world.note(|seen| seen.silent.clear());
    Ok((!did.is_empty()).then(|| did.join(", ")))
}
