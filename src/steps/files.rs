//! k3s' files are on a disk that machines of this host can be given: one copy of them for all nodes, which each copies
//! for itself, is much faster than a stream through SSH to each.

use std::path::PathBuf;

use serde_json::json;

use super::{ClusterDef, Ctx, Step};
use crate::access::{self, World};
use crate::engine::StepError;
use crate::machines::{Cap, MachineState};
use crate::observed::files::{OnDisk, staged};
use crate::observed::{Baked, View, Wanted, images};
use crate::plan::{After, Check, ClusterStep};
use crate::spec::{Cluster, Node};

pub const STEP: Step = Step::Cluster(ClusterDef {
    name: ClusterStep::Files,
    title: "put k3s on a disk",
    after: &[After::Cluster(ClusterStep::Artifacts), After::Cluster(ClusterStep::Network)],
    on_demand: true,
    needs: Some(Cap::Make),
    retry: false,
    check,
    inputs,
    apply,
});

/// Machines that start from a baked box have them.
fn check(view: &View<'_>) -> Check {
    let has = |node: &Node| match view.facts(node) {
        Ok(_) => matches!(staged(view, node), Check::Done(_)),
        Err(_) => view.machine(node).state == MachineState::Absent,
    };
    let mut nodes = view.cluster.members().filter(|n| view.seen.request.targets.contains(&n.name));
    match &view.seen.here.baked {
        Baked::No => Check::Needed("for the nodes to copy k3s from".into()),
        _ if !nodes.all(has) => Check::Needed("for the nodes to copy k3s from".into()),
        Baked::Fits(name) => Check::Done(format!("the box {name} has k3s")),
        Baked::Due | Baked::Unknown => Check::Unknown("checked when the box is there".into()),
    }
}

fn inputs(_: &Cluster) -> serde_json::Value {
    json!(null)
}

/// What cannot be copied is sent: no failure of this is one of the run.
fn apply(ctx: &Ctx<'_>) -> Result<Option<String>, StepError> {
    let (world, cancel) = (ctx.world, ctx.control.cancel());
    let (seen, mut wanted) = (world.seen(), Vec::new());
    for arch in View::new(&world.cluster, &seen).archs() {
        let files = access::wanted(&*world.files(arch, &mut |_| {}, &mut |_| {})?);
        // The installer is the same for all.
        wanted.extend(
            files
                .into_iter()
                .filter(|f| !wanted.iter().any(|w: &Wanted| w.sha256 == f.sha256))
                .collect::<Vec<_>>(),
        );
    }
    let new = world.cluster.members().any(|n| images::given(&View::new(&world.cluster, &seen), n).may_run());
    for arch in View::new(&world.cluster, &seen).archs().into_iter().filter(|_| new) {
        match world.kept_images(arch) {
            Ok(Some(packed)) => wanted.push(access::as_file(&packed, String::new())),
            Ok(None) => {}
            // Who gives them says so.
            Err(error) => ctx.control.log(&error.failure.cause),
        }
    }
    let paths: Vec<PathBuf> = wanted.iter().map(|w| w.source.clone()).collect();
    let Some(make) = world.machines.makers().next() else { return Ok(None) };
    match make.write_files(&world.cluster, &paths, &mut |m| ctx.control.says(m), cancel) {
        Ok(Some(disk)) => {
            let sums = wanted.into_iter().map(|w| w.sha256).collect();
            world.note(|seen| seen.run.on_disk = Some(OnDisk { disk, sums }.into()));
            Ok(None)
        }
        Ok(None) => Ok(Some("they go over SSH".to_owned())),
        Err(error) => {
            let error = StepError::from(error);
            for line in &error.failure.evidence {
                ctx.control.log(line);
            }
            ctx.control.warn(format!("{}; k3s is sent over SSH, which is slower.", error.failure.cause));
            Ok(Some("they go over SSH".to_owned()))
        }
    }
}

/// The disk is of no more use.
pub fn end(world: &World) -> Result<(), StepError> {
    let had = world.seen().run.on_disk.is_some();
    if had {
        world.note(|seen| seen.run.on_disk = None);
        for make in world.machines.makers() {
            make.remove_files(&world.cluster, &world.cancel)?;
        }
    }
    Ok(())
}
