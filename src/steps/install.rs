//! k3s is installed by its own installer, which is kept from starting it.

use serde_json::json;

use super::shared::stamp::stamp;
use super::{Item, NodeCtx, NodeDef, Step};
use crate::engine::StepError;
use crate::explain::FailureKind;
use crate::k3s;
use crate::observed::files::{INSTALLER, installation};
use crate::observed::preflight::policy;
use crate::observed::{View, found, holds};
use crate::os::process::{self};
use crate::plan::{After, Check, NodeStep, Per};
use crate::spec::{Cluster, Node, Slot};
use crate::ssh::Job;

pub const STEP: Step = Step::Node(NodeDef {
    name: NodeStep::Install,
    title: "install k3s",
    per: Per::Node,
    after: &[
        After::Node(NodeStep::Stage),
        After::Node(NodeStep::Config),
        After::Provisioners(Slot::BeforeK3s),
    ],
    needs: None,
    retry: true,
    check,
    inputs,
    apply,
});

fn check(view: &View<'_>, node: &Node, _: Item<'_>) -> Check {
    if let Some(done) = found::holds(view, node) {
        return done;
    }
    let facts = match view.facts_or_baked(node) {
        Ok(facts) => facts,
        Err(check) => return check,
    };
    // Not the binary: an installer that was interrupted has removed the unit and left the binary.
    let unit = node.role.unit();
    let uninstall = k3s::uninstall_script(node.role);
    let wrong = if !facts.unit(unit).loaded {
        Some(format!("there is no unit {unit}"))
    } else if !facts.scripts.contains(&uninstall) {
        Some(format!("{uninstall} is not there"))
    } else if facts.stamps.get("install") != Some(&installation(facts, node)) {
        Some("it was not installed from these files".to_owned())
    } else {
        None
    };
    holds("it is installed", wrong)
}

fn inputs(cluster: &Cluster, node: &Node) -> serde_json::Value {
    json!([cluster.k3s.release, cluster.k3s.artifacts, node.role])
}

fn apply(ctx: &NodeCtx<'_>) -> Result<Option<String>, StepError> {
    let (world, node) = (ctx.world, ctx.node);
    let mut facts = world.facts(node)?;
    if policy(&facts).is_some() {
        // A provisioner may have brought them since.
        facts = world.look_at_node(node)?;
    }
    if let Some((cause, hint)) = policy(&facts) {
        return Err(StepError::new(cause, hint).kind(FailureKind::Cannot));
    }
    let line = k3s::install(node.role, INSTALLER, true).line_without_enabling();
    let enable = world.guest(node).service().enable(node.role.unit());
    let digest = installation(&facts, node);
    // One job per run and inputs: a retry within the run after a failure must not be handed the
    // result of the attempt before, which is why the job's result is taken when it ends.
    let id = format!("{}-{digest}", world.run);
    // The note of it in the same job: a script of its own costs an emulated node most of a second.
    // Whose it is tells the next p1 that comes upon a machine which existed before.
    let stamp = stamp("install", &digest) + &stamp("cluster", &world.owner()?.mark());
    let script = format!("{line} && {enable} || exit $?\n{stamp}rm -f /var/lib/p1/stamps/start\n");
    let job = Job { name: "install", id: &id, script: &script, env: &[] };
    let done = world.on(node, |r| {
        r.detached(&job, world.cluster.timeouts.install, &mut |line| {
            let line = line.trim_end();
            ctx.control.log(line);
            ctx.control.says(line.trim_start_matches("[INFO]").trim());
        })
    })?;
    let text = done.text();
    if done.status != 0 {
        let why = k3s::complaint(&text).unwrap_or_else(|| format!("it exited with {}", done.status));
        return Err(StepError::new(format!("k3s' installer failed: {why}"), "")
            .kind(FailureKind::Exit { code: done.status })
            .evidence(process::tail(&text, 12))
            .transient());
    }
    Ok(None)
}
