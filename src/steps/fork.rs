//! The machines of a fork: those of a kept moment once more, beside the ones that were kept.

use std::thread;

use serde_json::json;

use super::shared::back;
use super::{ClusterDef, Ctx, NodeDef, Step, asked, asked_of, named_of};
use crate::access::url_from_here;
use crate::engine::StepError;
use crate::event::VerbName;
use crate::explain::FailureKind;
use crate::k3s;
use crate::kept::Moment;
use crate::machines::{self, Cap, Kept};
use crate::os::lock::Lock;
use crate::os::{files, many};
use crate::plan::{After, ClusterStep, NodeStep, Per};
use crate::state::Unfinished;

/// All machines are made from the moment, and go on at one moment. Until then nothing else may take them for the cluster.
pub const FORK: Step = Step::Cluster(ClusterDef {
    name: ClusterStep::Fork,
    title: "make the fork's machines",
    after: &[],
    on_demand: false,
    needs: Some(Cap::Keep),
    retry: true,
    check: asked,
    inputs: |cluster| json!([cluster.name, cluster.nodes.len()]),
    apply: fork,
});

/// Their clocks are those of then, and so is what was random; and nobody gives them addresses any more.
pub const CLOCK: Step = Step::Node(NodeDef {
    name: NodeStep::Clock,
    title: "set clock and addresses",
    per: Per::Node,
    after: &[After::Cluster(ClusterStep::Fork)],
    needs: Some(Cap::Keep),
    retry: true,
    check: asked_of,
    inputs: named_of,
    apply: back::stand_alone,
});

/// All nodes were Ready then.
pub const READY: Step = Step::Node(NodeDef {
    name: NodeStep::Ready,
    title: "be Ready again",
    per: Per::Node,
    after: &[After::Cluster(ClusterStep::Fork)],
    needs: Some(Cap::Keep),
    retry: false,
    check: asked_of,
    inputs: named_of,
    apply: back::be_ready,
});

/// Another p1 may be sending a base image.
const LOCK_TIMEOUT: std::time::Duration = std::time::Duration::from_secs(600);

fn chosen(ctx: &Ctx<'_>) -> Result<Moment, StepError> {
    let key = back::subject(ctx.world)?;
    ctx.world.kept.find(&key)?.ok_or_else(|| {
        let what = format!("the moment {key}, from which this fork was to be made, is gone");
        StepError::new(what, "`p1 destroy` removes what there is of the fork; then fork the original again.")
            .next(["p1 destroy".to_owned()])
    })
}

fn fork(ctx: &Ctx<'_>) -> Result<Option<String>, StepError> {
    let (world, cancel) = (ctx.world, ctx.control.cancel());
    let Some(fork) = world.cluster.fork.clone() else {
        return Err(StepError::new("this folder is not a fork's", "`p1 fork` makes one."));
    };
    let owner = world.owner()?;
    let source = world.state.place().join("Vagrantfile");
    // Held until the machines are there: nobody removes what is kept from under them, or restores of it too.
    let kept = world.kept.lock(cancel)?;
    let moment = chosen(ctx)?;
    let keeper = world.machines.keep(&world.cluster.first_server().name)?;
    if let Some(lack) = keeper.lacks(&moment.machines, cancel)? {
        let what = format!("the moment {} is not whole: {lack}", moment.key);
        let hint = "`p1 destroy` removes what there is of the fork; then fork the original again.";
        return Err(StepError::new(what, hint).kind(FailureKind::Damaged).next(["p1 destroy".to_owned()]));
    }
    world.state.begin(&Unfinished {
        verb: VerbName::MakeFork.to_string(),
        id: world.run.clone(),
        subject: None,
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
    if !moment.fork {
        world.kept.use_now(&moment.key, world.now())?;
    }
    ctx.control.says("making disks");
    let connect = || {
        let _lock = Lock::take(&world.host_lock, "network", LOCK_TIMEOUT, cancel)?;
        world.machines.for_makers(&world.cluster, &mut |make, cluster| {
            make.connect(cluster, &owner, &Default::default(), &mut |m| ctx.control.says(m), cancel)
        })?;
        Ok::<_, StepError>(())
    };
    let lay = |kept: &Kept| {
        let id = world.machines.keep(&kept.node)?.lay_fork(&world.cluster, kept, &source, &owner, cancel)?;
        world.machines.make(&kept.node)?.note(&kept.node, &id)?;
        Ok::<_, StepError>((kept.node.clone(), id))
    };
    // A network takes as long as all the disks.
    let (network, laid) = thread::scope(|scope| {
        let network = scope.spawn(connect);
        let laid = many::each(world.jobs, &moment.machines, lay);
        (network.join(), laid)
    });
    network.unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
    let ids = laid.into_iter().collect::<Result<std::collections::BTreeMap<_, _>, _>>()?;
    // What is remembered of nodes is of the same machines under other ids.
    let mut memory = world.state.memory();
    for (node, of) in &mut memory {
        (of.machine, of.facts) = (ids.get(node).cloned().unwrap_or_default(), None);
    }
    world.state.remember(&memory)?;
    ctx.control.says("restoring memory");
    let nodes = moment.machines.iter().map(|m| m.node.clone()).collect();
    world.note(|seen| seen.run.paused.clone_from(&nodes));
    let (front, results) = thread::scope(|scope| {
        let front = scope.spawn(|| world.front.ensure());
        let results = many::each(world.jobs, &moment.machines, |kept| {
            let (of, keeper) = ((kept, ids[&kept.node].as_str()), world.machines.keep(&kept.node)?);
            keeper.restore_fork(&world.cluster, of, (&source, &folder), &owner, cancel)
        });
        (front.join(), results)
    });
    drop(kept);
    if let Some(error) = results.into_iter().find_map(Result::err) {
        // Those that are there stand still: none of them runs without the others.
        world.note(|seen| seen.run.paused.clear());
        return Err(error.into());
    }
    world.machines.resume(&world.cluster, &nodes, cancel)?;
    world.note(|seen| seen.run.paused.clear());
    let rest = || {
        nodes.iter().for_each(|node| world.forget_node(node));
        world.reload()?;
        world.look_at_machines()?;
        front.unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
        if let Some(text) = files::read_if_there(&world.state.kubeconfig())? {
            let url = url_from_here(&world.machines, world.cluster.first_server());
            let ours = k3s::rewrite(&text, &url, &world.cluster.name)?;
            files::write_if_changed(&world.state.kubeconfig(), ours.as_bytes(), 0o600)?;
        }
        Ok::<_, StepError>(())
    };
    // This host waits for its address on the bridge, which none of that needs.
    thread::scope(|scope| {
        scope.spawn(|| machines::settle(&world.cluster, cancel));
        rest()
    })?;
    world.state.end()?;
    crate::spec::Fork { made: true, ..fork.clone() }.keep()?;
    Ok(Some(format!("{} as of {}", fork.of, moment.at.strftime("%Y-%m-%d %H:%M:%S UTC"))))
}
