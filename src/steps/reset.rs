//! The cluster as it was kept: from nothing, or in the place of what runs.

use std::thread;

use serde_json::json;

use super::shared::back;
use super::{ClusterDef, Ctx, NodeCtx, NodeDef, Step, asked, asked_of, named_of};
use crate::engine::StepError;
use crate::event::VerbName;
use crate::kept::Moment;
use crate::machines::{Cap, Kept, Machine, MachineState};
use crate::os::lock::Lock;
use crate::os::{files, many};
use crate::plan::{After, ClusterStep, NodeStep, Per};
use crate::state::Unfinished;

/// All machines are made from what is kept, and go on at one moment. Until then nothing else may take them for the cluster.
pub const RESET: Step = Step::Cluster(ClusterDef {
    name: ClusterStep::Reset,
    title: "restore the machines",
    after: &[],
    on_demand: false,
    needs: Some(Cap::Keep),
    retry: true,
    check: asked,
    inputs: |cluster| json!([cluster.name, cluster.nodes.len()]),
    apply: reset,
});

/// Their clocks are those of then, and so is what was random. A login takes as long as it takes the node to be Ready, and each
/// would slow down the other.
pub const CLOCK: Step = Step::Node(NodeDef {
    name: NodeStep::Clock,
    title: "set the clock",
    per: Per::Node,
    after: &[After::Node(NodeStep::Ready)],
    needs: Some(Cap::Keep),
    retry: true,
    check: asked_of,
    inputs: named_of,
    apply: |ctx| back::set_clock(ctx, true),
});

/// Nodes that were Ready then are so again.
pub const READY: Step = Step::Node(NodeDef {
    name: NodeStep::Ready,
    title: "be Ready again",
    per: Per::Node,
    after: &[After::Cluster(ClusterStep::Reset)],
    needs: Some(Cap::Keep),
    retry: false,
    check: asked_of,
    inputs: named_of,
    apply: be_ready,
});

/// Another p1 may be sending a base image.
const LOCK_TIMEOUT: std::time::Duration = std::time::Duration::from_secs(600);

fn chosen(ctx: &Ctx<'_>) -> Result<Moment, StepError> {
    let world = ctx.world;
    let key = back::subject(world)?;
    world.kept.find(&key)?.ok_or_else(|| {
        StepError::new(
            format!("nothing is kept as {key} any more"),
            "`p1 destroy`, then `p1 up` makes the cluster the long way.",
        )
        .next(["p1 destroy".to_owned(), "p1 up".to_owned()])
    })
}

fn reset(ctx: &Ctx<'_>) -> Result<Option<String>, StepError> {
    let (world, cancel) = (ctx.world, ctx.control.cancel());
    let owner = world.owner()?;
    // Held until the machines are there: nobody removes what is kept from under them, or restores of it too.
    let _kept = world.kept.lock(cancel)?;
    let moment = chosen(ctx)?;
    let keeper = world.machines.keep(&world.cluster.first_server().name)?;
    if let Some(lack) = keeper.lacks(&moment.machines, cancel)? {
        let what = format!("what is kept as {} is not whole: {lack}", moment.key);
        let first = format!("p1 kept remove {}", moment.key);
        return Err(StepError::new(
            what,
            format!("`{first}` removes what there is of it; `p1 up` makes the cluster the long way."),
        )
        .next([first, "p1 up".to_owned()]));
    }
    world.state.begin(&Unfinished {
        verb: VerbName::Reset.to_string(),
        id: world.run.clone(),
        subject: Some(moment.key.clone()),
        since: world.now(),
        settled: false,
    })?;
    let folder = world.kept.files(&moment.key);
    for file in world.state.keepsakes() {
        let name = file.file_name().unwrap_or_default();
        match files::read_if_there(&folder.join(name))? {
            Some(text) => files::write(&file, text.as_bytes(), 0o600)?,
            None => files::remove_if_there(&file)?,
        }
    }
    world.kept.use_now(&moment.key, world.now())?;
    let source = world.state.place().join("Vagrantfile");
    let nodes = moment.machines.iter().map(|m| m.node.clone()).collect();
    let connect = || {
        let _lock = Lock::take(&world.host_lock, "network", LOCK_TIMEOUT, cancel)?;
        world.machines.for_makers(&world.cluster, &mut |make, cluster| {
            make.connect(cluster, &owner, &Default::default(), &mut |m| ctx.control.says(m), cancel)
        })?;
        Ok::<_, StepError>(())
    };
    let lay = |kept: &Kept| {
        world.machines.make(&kept.node)?.note(&kept.node, &kept.id)?;
        world.machines.keep(&kept.node)?.lay(&world.cluster, kept, &source, &owner, cancel)?;
        Ok::<_, StepError>(())
    };
    // A network takes as long as all the disks.
    let (network, laid) = thread::scope(|scope| {
        let network = scope.spawn(connect);
        let laid = many::each(world.jobs, &moment.machines, lay);
        (network.join(), laid)
    });
    network.unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
    laid.into_iter().collect::<Result<(), _>>()?;
    ctx.control.says("restoring disks and memory");
    world.note(|seen| seen.run.paused.clone_from(&nodes));
    let results = many::each(world.jobs, &moment.machines, |kept| {
        world.machines.keep(&kept.node)?.restore(kept, (&source, &folder), cancel)?;
        Ok::<_, StepError>(())
    });
    if let Some(error) = results.into_iter().find_map(Result::err) {
        // Those that are there stand still: none of them runs without the others.
        world.note(|seen| seen.run.paused.clear());
        return Err(error);
    }
    world.machines.resume(&world.cluster, &nodes, cancel)?;
    world.note(|seen| seen.run.paused.clear());
    world.state.end()?;
    nodes.iter().for_each(|node| world.forget_node(node));
    world.reload()?;
    // As libvirt said when they went on.
    world.note(|seen| {
        for kept in &moment.machines {
            let machine = seen.machines.entry(kept.node.clone()).or_insert_with(Machine::absent);
            (machine.id, machine.state, machine.foreign) =
                (Some(kept.id.clone()), MachineState::Running, false);
        }
    });
    if world.cluster.autostart {
        for node in &nodes {
            world.machines.power(node)?.keep_up(&world.cluster, node, cancel)?;
        }
    }
    Ok(Some(format!("as of {}", moment.at.strftime("%Y-%m-%d %H:%M:%S UTC"))))
}

fn be_ready(ctx: &NodeCtx<'_>) -> Result<Option<String>, StepError> {
    if !chosen(ctx)?.ready.contains(&ctx.node.name) {
        return Ok(Some("it was not Ready then".into()));
    }
    back::be_ready(ctx)
}
