//! k3s runs, with the configuration of now.
//!
//! The unit is of type `notify` without a limit on its start (install.sh, `create_systemd_service_file`):
//! `systemctl start` would wait for ever for a worker with a wrong token. So p1 starts it without
//! waiting, looks on with a bound, and reads the unit's journal for the cause.

use std::time::{Duration, Instant};

use super::shared::stamp::stamp;
use super::shared::unit::{LINES_WHILE_STARTING, LINES_WITH_CRASHES, Unit, begin, journal, k3s_failure};
use super::shared::wait::gone;
use super::shared::{archive, inputs, labels};
use super::{NodeCtx, NodeDef, Step};
use crate::access::{Via, kubectl};
use crate::engine::StepError;
use crate::guest::{Activity, Since};
use crate::k3s;
use crate::observed::start::started;
use crate::observed::{View, files};
use crate::os::cancel::Level;
use crate::plan::{After, ClusterStep, NodeStep, Per};
use crate::spec::Role;

pub const STEP: Step = Step::Node(NodeDef {
    name: NodeStep::Start,
    title: "start k3s",
    per: Per::Node,
    after: &[
        After::NodeUnchanged(NodeStep::Launch),
        After::Node(NodeStep::Install),
        After::Node(NodeStep::Config),
        After::Node(NodeStep::System),
        After::NodeUnchanged(NodeStep::Hosts),
        After::NodeUnchanged(NodeStep::Images),
        After::Cluster(ClusterStep::Data),
        After::LeadServer(NodeStep::Start),
        After::OtherServersEnded(NodeStep::Start),
        After::PreviousInOrder(NodeStep::Ready),
    ],
    needs: None,
    retry: false,
    check: |view, node, _| started(view, node),
    inputs: inputs::start,
    apply,
});

fn apply(ctx: &NodeCtx<'_>) -> Result<Option<String>, StepError> {
    let (world, node) = (ctx.world, ctx.node);
    let (facts, tokens) = (world.facts(node)?, world.tokens()?);
    let unit = node.role.unit();
    let seen = world.seen();
    let digest = files::running(&View::new(&world.cluster, &seen), node, &facts, &tokens);
    let launched = seen.run.launched.get(&node.name);
    let since = match launched {
        // It has been waiting for the server since; what the cluster knows of the node by now is this machine.
        Some(since) => since.clone(),
        None => {
            if !facts.node_password {
                forget_former_node(ctx)?;
            }
            if world.cluster.rollout.drain && facts.unit(unit).active == Activity::Active {
                drain(ctx)?;
            }
            begin(ctx)?
        }
    };
    let bound = match node.role {
        Role::Server => world.cluster.timeouts.server_ready,
        Role::Worker | Role::None => world.cluster.timeouts.node_ready,
    };
    follow(ctx, &since, bound, launched.is_some())?;
    if archive::begins_unknown(world, node) {
        // Its own API is the first one that could be asked; k3s tries to register until it is let in.
        let secret = format!("{}.node-password.k3s", node.name);
        let script =
            format!("k3s kubectl -n kube-system delete secret {secret} --ignore-not-found --timeout=10s");
        kubectl::kubectl(world, Via::On(node), "forgetting the former machine's password", &script)?;
    }
    let mut note = stamp("start", &digest);
    if launched.is_some() || !facts.node_password {
        note.push_str(&k3s::forget_import_script());
    }
    if !facts.node_password {
        // It has registered with them.
        note.extend(labels::first_note(node));
    }
    world.script(node, "noting the start", &note)?;
    world.remember(&node.name, |m| {
        m.joined = true;
        // One that was made without k3s has it now.
        m.made.iter_mut().for_each(|made| made.role = node.role);
    })?;
    // What the API said of the node was said of the k3s before this one.
    world.forget_nodes();
    world.note(|seen| {
        if let Some(api) = &mut seen.api {
            api.remove(&node.name);
        }
        seen.run.launched.remove(&node.name);
    });
    Ok(None)
}

/// How often the unit's state is asked for at most, and its journal, while it starts: every question takes
/// time from the start itself, most of all under emulation, where one costs a fifth of a second. So the longer
/// it takes, the longer the next question waits.
const STATE: Duration = Duration::from_secs(4);
const JOURNAL: Duration = Duration::from_secs(10);

/// Looks on until the unit is active. `launched`: it was started before there was a server, so that ends
/// from before this look are not held against it.
fn follow(ctx: &NodeCtx<'_>, since: &Since, bound: Duration, launched: bool) -> Result<(), StepError> {
    let node = ctx.node;
    let mut restarted = (!launched).then_some(0);
    let start = Instant::now();
    let (mut state_at, mut journal_at) = (Instant::now(), Instant::now());
    let mut before: Option<String> = None;
    let waits = match node.role {
        Role::Server => "waiting for the API",
        Role::Worker | Role::None => "waiting for the worker to join",
    };
    ctx.control.says(waits);
    let mut pause = Duration::from_millis(250);
    loop {
        // A server's port is looked at from here, which costs the node next to nothing; before it opens the
        // unit cannot be active.
        let open = node.role == Role::Worker || ctx.world.listens(node, Duration::from_millis(250));
        let late = start.elapsed() > bound;
        if open || late || state_at.elapsed() > STATE {
            state_at = Instant::now();
            let is = match Unit::of(ctx) {
                // Out of reach for a moment: asked again as long as there is time.
                Err(error) if error.may_pass() && !late && !gone(ctx) => {
                    ctx.control.says(error.failure.cause);
                    if ctx.control.cancel().sleep(STATE, Level::Stop) {
                        return Err(StepError::interrupted());
                    }
                    continue;
                }
                answer => answer?,
            };
            if is.active {
                return Ok(());
            }
            let gave_up = is.gave_up(*restarted.get_or_insert(is.restarts));
            if gave_up || late || journal_at.elapsed() > JOURNAL {
                journal_at = Instant::now();
                let lines = journal(
                    ctx,
                    since,
                    if is.restarts > 0 { LINES_WITH_CRASHES } else { LINES_WHILE_STARTING },
                    is.restarts > 0,
                )?;
                for line in lines.iter().rev().take(3).rev() {
                    ctx.control.log(line);
                }
                let found = k3s::diagnose(&lines);
                if let Some(found) = &found {
                    ctx.control.says(format!("{waits} ({})", found.cause));
                }
                // Twice the same, and nothing that a healthy start shows too: waiting does not help.
                let cause = found.as_ref().filter(|f| f.lasting).map(|f| f.cause.clone());
                let stuck = cause.is_some() && cause == before;
                before = cause;
                if gave_up || late || stuck {
                    return Err(k3s_failure(ctx, &lines, late.then_some(bound), is.restarts));
                }
            }
        }
        if ctx.control.cancel().sleep(pause, Level::Stop) {
            return Err(StepError::interrupted());
        }
        // The last look does not come later than the bound.
        pause = (pause * 3 / 2)
            .min(STATE)
            .min((bound.saturating_sub(start.elapsed())).max(Duration::from_millis(250)));
    }
}

/// Takes the pods off a node before its k3s is restarted; `ready` lets them back.
fn drain(ctx: &NodeCtx<'_>) -> Result<(), StepError> {
    let (world, node) = (ctx.world, ctx.node);
    let bound = world.cluster.timeouts.node_ready;
    ctx.control.says("moving its pods to other nodes");
    let drained = kubectl::drain(world, node, bound, false, &mut |line| ctx.control.log(line));
    let drained = drained.and_then(|output| Ok(output.ok()?));
    drained.map(drop).map_err(|mut error| {
        let hint = "It stays cordoned until it is Ready in a later run. Pods without a controller are not moved: \
                    delete them, or leave `rollout: drain` out.";
        error.failure.hint = Some(hint.to_owned());
        error
    })
}

/// A new machine with a known hostname: the server knows another password for that node and
/// would refuse it ("Node password rejected"; docs.k3s.io/architecture, agent node registration).
fn forget_former_node(ctx: &NodeCtx<'_>) -> Result<(), StepError> {
    let (world, node) = (ctx.world, ctx.node);
    if node.role == Role::Server && world.cluster.servers().count() == 1 {
        return Ok(());
    }
    let known = world.nodes().is_ok_and(|nodes| nodes.iter().any(|n| n.name == node.name));
    if !known {
        return Ok(());
    }
    ctx.control.says("taking the former node of this name out of the cluster");
    kubectl::remove_node(world, node)?;
    ctx.control.log("removed the Node object and the password of the machine that had this name before");
    Ok(())
}
