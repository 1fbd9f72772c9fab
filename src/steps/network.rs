//! What the machines share is there: their network and the image that their disks are cloned from.

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
    name: ClusterStep::Network,
    title: "prepare the network",
    after: &[After::Cluster(ClusterStep::Box)],
    on_demand: true,
    needs: Some(Cap::Make),
    retry: true,
    check,
    inputs,
    apply,
});

/// Another p1 may be sending a base image of its own.
const LOCK_TIMEOUT: Duration = Duration::from_secs(600);

fn check(view: &View<'_>) -> Check {
    match &view.seen.here.prepared {
        Some(Ok(())) => Check::Done("network and base image are there".into()),
        Some(Err(lack)) => Check::Needed(lack.clone()),
        None => Check::Unknown("checked before machines are made".into()),
    }
}

fn inputs(cluster: &Cluster) -> serde_json::Value {
    let nodes: Vec<_> = cluster.nodes.iter().map(|n| (&n.name, n.ip)).collect();
    json!([cluster.network, cluster.image, nodes])
}

fn apply(ctx: &Ctx<'_>) -> Result<Option<String>, StepError> {
    let world = ctx.world;
    let cancel = ctx.control.cancel();
    let info = world.box_info()?.ok_or_else(|| StepError::new("the box is not there", "`p1 up` gets it."))?;
    // Two that do this at once take the same bridge, or clone from half an image.
    let owner = world.owner()?;
    let _lock = Lock::take(&world.host_lock, "network", LOCK_TIMEOUT, cancel)?;
    let did = world.machines.for_makers(&world.cluster, &mut |make, cluster| {
        make.prepare(cluster, &info, &owner, &mut |m| ctx.control.says(m), cancel)
    })?;
    for line in &did {
        ctx.control.log(line);
    }
    Ok((!did.is_empty()).then(|| did.join(", ")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::observed::Observed;

    #[test]
    fn nothing_is_taken_for_prepared_that_was_not_looked_at() {
        let cluster = crate::spec::fixture::cluster(1);
        let says = |prepared| {
            // As it is after the box step has run in the same run.
            let seen = Observed {
                here: crate::observed::Here { box_ready: true, prepared, ..Default::default() },
                ..Observed::default()
            };
            check(&View::new(&cluster, &seen))
        };
        assert!(says(None).may_run());
        assert!(says(Some(Err("no network".into()))).may_run());
        assert!(!says(Some(Ok(()))).may_run());
    }
}
