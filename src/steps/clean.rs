//! What is left when the machines are gone: leftovers, network, base image.

use std::collections::BTreeSet;
use std::time::Duration;

use serde_json::json;

use super::{ClusterDef, Ctx, Step, asked};
use crate::access::Claims;
use crate::engine::StepError;
use crate::machines::Cap;
use crate::os::lock::Lock;
use crate::plan::{After, ClusterStep, NodeStep};

/// The rest: leftovers, network, base image.
pub const STEP: Step = Step::Cluster(ClusterDef {
    name: ClusterStep::Clean,
    title: "remove what is left",
    after: &[After::Node(NodeStep::Machine)],
    on_demand: false,
    needs: Some(Cap::Make),
    retry: true,
    check: asked,
    inputs: |cluster| json!(cluster.name),
    apply: clean,
});

fn clean(ctx: &Ctx<'_>) -> Result<Option<String>, StepError> {
    let world = ctx.world;
    let cancel = ctx.control.cancel();
    if !world.seen().request.whole {
        return Ok(None);
    }
    let _lock = Lock::take(&world.host_lock, "clean", Duration::from_secs(600), cancel)?;
    let images = world.known_boxes()?;
    let claims = Claims::look(world)?;
    if claims.contested().is_some() || claims.moved().is_some() {
        // Somebody took the cluster since this run began.
        return Err(StepError::new("the cluster belongs to another folder", "`p1 status` says to which.")
            .evidence(claims.evidence(&world.cluster.name)));
    }
    let spared: BTreeSet<String> = claims.spared.into_keys().collect();
    let owner = world.owner()?;
    let did = world.machines.for_makers(&world.cluster, &mut |make, part| {
        make.clear(part, &spared, &owner, &images, &mut |m| ctx.control.says(m), cancel)
    })?;
    for line in &did {
        ctx.control.log(line);
    }
    Ok((!did.is_empty()).then(|| did.join(", ")))
}
