//! The node lets p1 in: by the cluster's own key, and by that alone.

use std::time::{Duration, Instant};

use serde_json::json;

use super::shared::console;
use super::shared::stamp::stamp;
use super::{Item, NodeCtx, NodeDef, Step};
use crate::access::{SCRIPT_TIMEOUT, World};
use crate::engine::StepError;
use crate::explain::without_name;
use crate::machines::{Machine, MachineState};
use crate::observed::{View, found};
use crate::plan::{After, Check, ClusterStep, NodeStep, Per};
use crate::spec::{Cluster, Node};
use crate::ssh;

pub const STEP: Step = Step::Node(NodeDef {
    name: NodeStep::Ssh,
    title: "log in",
    per: Per::Node,
    after: &[After::Node(NodeStep::Vm), After::Cluster(ClusterStep::Link), After::Leaving(NodeStep::Release)],
    needs: None,
    retry: true,
    check,
    inputs,
    apply,
});

/// Whoever answers later than this is listened to on the console too.
const SLOW: Duration = Duration::from_secs(5);

fn check(view: &View<'_>, node: &Node, _: Item<'_>) -> Check {
    // How it is reached is noted when the cluster's key has been added.
    let noted = || view.seen.made.get(&node.name).is_some_and(|made| made.ssh == node.ssh);
    match view.facts(node) {
        Ok(_) if node.ssh.is_some() && !noted() => Check::Needed("the cluster's key is not there yet".into()),
        Ok(_) => Check::Done("it lets p1 in".into()),
        Err(check) => match view.seen.silent.get(&node.name) {
            Some(why) => Check::Needed(why.clone()),
            None => check,
        },
    }
}

/// That the cluster's key is not there.
pub fn key_is_gone(state: &crate::state::StateDir) -> String {
    format!("{} is not there, the only key that opens the cluster's machines", state.key().display())
}

/// What to do about it.
pub const KEY_GONE: &str = "Put a copy of it back. Without one, `p1 destroy` removes the cluster with its data, and \
                            `p1 up` recreates it.";

/// A node that does not let p1 in. One that takes none of our keys any more does not come back with the next boot.
fn unreached(world: &World, node: &Node, error: ssh::Error) -> StepError {
    let (shut_out, silent) = (error.shut_out(), silent(&error));
    let mut error = StepError::from(error);
    let runs = |machine: Option<Machine>| machine.is_some_and(|m| m.state == MachineState::Running);
    if silent && world.look_at_machine(node).is_ok_and(runs) {
        // It was waited for as long as it may take.
        console::note_unreached(world, node);
        return console::told(world, node, error);
    }
    let (name, said) = (&node.name, error.failure.hint.take().map(|h| h + " ").unwrap_or_default());
    let others = world.cluster.servers().any(|s| s.name != *name);
    error.failure.hint = match shut_out {
        // With the only server its data would go: that is not for p1 to propose.
        true if others => {
            error.failure.next = vec![format!("p1 destroy {name}"), "p1 up".to_owned()];
            Some(format!("{said}Otherwise `p1 destroy {name}` and `p1 up` recreate the machine."))
        }
        _ => Some(said.trim_end().to_owned()).filter(|s| !s.is_empty()),
    };
    error
}

/// Nobody speaks SSH there: a card that lost its address and an sshd that hangs come back with the next boot.
fn silent(error: &ssh::Error) -> bool {
    use ssh::Error::{Banner, NoRoute, Refused, Timeout, Unreachable};
    match error {
        Unreachable { last, .. } => {
            matches!(**last, Refused { .. } | NoRoute { .. } | Timeout { .. } | Banner { .. })
        }
        _ => false,
    }
}

fn inputs(cluster: &Cluster, node: &Node) -> serde_json::Value {
    match &node.ssh {
        Some(access) => json!([cluster.name, (&node.name, node.ip), access]),
        None => json!([cluster.name, (&node.name, node.ip)]),
    }
}

fn apply(ctx: &NodeCtx<'_>) -> Result<Option<String>, StepError> {
    let (world, node) = (ctx.world, ctx.node);
    let key = world.state.key();
    // A machine that has been logged in to knows this key alone: another one does not open it.
    if !key.exists() && node.ssh.is_none() && world.memory(&node.name).is_some_and(|m| m.root || m.joined) {
        return Err(StepError::new(key_is_gone(&world.state), KEY_GONE));
    }
    let public = world.public_key()?;
    console::switch_off_and_on(ctx)?;
    let mut kept = None;
    let begun = Instant::now();
    let reached = world.on(node, |remote| -> Result<(bool, bool), StepError> {
        let (mut last, mut told) = (String::new(), Instant::now());
        let session = remote.wait_for(world.cluster.timeouts.ssh, &mut |error| {
            if kept.is_none() && begun.elapsed() > SLOW {
                kept = Some(console::keep(world, node, false));
            }
            let text = without_name(&node.name, &error.to_string()).to_owned();
            // Two reasons may take turns for minutes.
            if text != last && (last.is_empty() || told.elapsed() > Duration::from_secs(5)) {
                ctx.control.log(&text);
                ctx.control.says(text.clone());
                (last, told) = (text, Instant::now());
            }
        });
        // What it said last is on its way.
        drop(kept.take());
        let session = session.map_err(|error| unreached(world, node, error))?;
        let replaced = session.key() != key;
        let by = session.key().display().to_string();
        ctx.control.log(&format!("logged in as {} by {by}", remote.endpoint().user));
        if !replaced && remote.endpoint().user == "root" {
            return Ok((false, true));
        }
        let insecure = world.way(node)?.insecure;
        if replaced {
            ctx.control.says(match insecure.is_empty() {
                true => "adding the cluster's key",
                false => "replacing Vagrant's insecure key",
            });
        }
        Ok((replaced, remote.take_over(key.clone(), &public, &insecure, SCRIPT_TIMEOUT)?))
    });
    let (replaced, root) = reached?;
    ctx.control.log(if root {
        "root logs in by the cluster's key"
    } else {
        "root does not log in; sudo is used"
    });
    if node.ssh.is_some() {
        // Nothing else does, as nothing makes it; and whoever comes upon it later has to know whose it is.
        let mut mark = stamp("cluster", &world.owner()?.mark());
        world.look_at_node(node)?;
        let seen = world.seen();
        let taken = found::holds(&View::new(&world.cluster, &seen), node).is_some();
        if taken {
            mark.push_str(&stamp(found::BEFORE, "its k3s was there before p1"));
            mark.push_str(&stamp(found::AS_FOUND, "nothing of it was rewritten since"));
        }
        world.script(node, "noting whose it is", &mark)?;
        world.remember_made(node)?;
        if taken {
            world.remember(&node.name, |m| (m.before, m.joined) = (true, true))?;
            world.note(|seen| _ = seen.before.insert(node.name.clone()));
        }
    }
    world.remember(&node.name, |m| (m.root, m.unreached) = (root, false))?;
    ctx.control.says("asking the node about itself");
    world.look_at_node(node)?;
    world.write_ssh_config()?;
    let what = match node.ssh {
        Some(_) => "the cluster's own key opens it from now on",
        None => "replaced Vagrant's insecure key by the cluster's own",
    };
    Ok(replaced.then(|| what.to_owned()))
}
