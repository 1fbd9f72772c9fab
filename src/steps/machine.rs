//! The machine exists and runs.

use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use serde_json::json;

use super::{Ctx, Definition, View};
use crate::engine::Trouble;
use crate::os::cancel::Level;
use crate::plan::{After, Check, Scope, Shape};
use crate::providers::{self, Leftovers, State};
use crate::spec::{Cluster, Node, Role};
use crate::ssh::KnownHosts;

pub const STEP: Definition = Definition {
    shape: Shape {
        name: "vm",
        title: "boot the machine",
        scope: Scope::Nodes,
        after: &[After::Cluster("network"), After::Cluster("box")],
        serves: false,
    },
    retry: true,
    check,
    inputs,
    apply,
};

fn check(view: &View<'_>, node: Option<&Node>) -> Check {
    let Some(node) = node else { return Check::Done(String::new()) };
    let machine = view.machine(node);
    match machine.state {
        State::Absent => Check::Needed("it does not exist".into()),
        _ if machine.foreign => {
            Check::Needed("a machine of its name exists that this folder does not know".into())
        }
        State::Running => Check::Done("it runs".into()),
        state => Check::Needed(format!("it is {state}")),
    }
}

fn inputs(cluster: &Cluster, node: Option<&Node>) -> serde_json::Value {
    json!([cluster.image, cluster.network, node.map(|n| (&n.name, n.ip, n.cpus, n.memory))])
}

fn apply(ctx: &Ctx<'_>) -> Result<Option<String>, Trouble> {
    let (world, node) = (ctx.world, ctx.node());
    let before = world.look_at_machines()?;
    let machine = before.get(&node.name);
    if machine.is_some_and(|m| m.foreign && m.state != State::Absent) {
        clear_half_made(ctx)?;
    }
    if machine.is_none_or(|m| m.state == State::Absent) {
        clear_left_disk(ctx)?;
    }
    if machine.is_none_or(|m| m.state == State::Absent || m.foreign) {
        // A new machine has a new host key, and nobody's old one may vouch for it.
        KnownHosts::pinned(world.state.known_hosts()).forget(&node.name)?;
        world.forget_node(&node.name);
    }
    world.batch.join(world, &node.name, ctx.control);
    wait(ctx)?;
    let id = world.vagrant.ids().remove(&node.name);
    Ok(id.map(|id| format!("machine {id}")))
}

/// A machine of our name without an id in our folder: what is left when p1 or Vagrant is killed
/// between making it and writing its id down. It is taken away only if it says that it was made
/// from this folder's Vagrantfile; anybody else's stays.
fn clear_half_made(ctx: &Ctx<'_>) -> Result<(), Trouble> {
    let (world, node) = (ctx.world, ctx.node());
    let cancel = ctx.control.cancel();
    must_be_ours(ctx)?;
    let name = providers::machine_name(&world.cluster.name, &node.name);
    ctx.control.warn(format!("{name} was left half-made by an interrupted run; it is made anew."));
    let (nodes, ids) = ([node.name.clone()], Default::default());
    let what = Leftovers { nodes: &nodes, ids: &ids, whole: false, image: None };
    world.provider.clean(&world.cluster, &what, &mut |m| ctx.control.says(m), cancel)?;
    world.vagrant.forget(&node.name)?;
    Ok(())
}

/// A disk without its machine. If Vagrant never knew the machine, an interrupted run made the disk and
/// nothing was ever on it. Otherwise somebody removed the machine, and the disk holds what it held.
fn clear_left_disk(ctx: &Ctx<'_>) -> Result<(), Trouble> {
    let (world, node) = (ctx.world, ctx.node());
    let cancel = ctx.control.cancel();
    if !world.provider.disk_left(&world.cluster, &node.name, cancel)? {
        return Ok(());
    }
    if world.vagrant.ids().contains_key(&node.name) {
        let names = if node.role == Role::Server { String::new() } else { format!(" {}", node.name) };
        return Err(Trouble::new(
            "the machine was removed outside p1, and its disk was left behind",
            format!(
                "`p1 destroy{names}` removes the disk with all that is on it; then `p1 up` makes the machine anew."
            ),
        ));
    }
    ctx.control.warn("A disk was left by an interrupted run, before the machine was made; it is made anew.");
    let (nodes, ids) = ([node.name.clone()], Default::default());
    let what = Leftovers { nodes: &nodes, ids: &ids, whole: false, image: None };
    world.provider.clean(&world.cluster, &what, &mut |m| ctx.control.says(m), cancel)?;
    Ok(())
}

/// Of a machine that has the node's name and is not known here: an error, unless it says that it was
/// made from this folder's Vagrantfile.
pub fn must_be_ours(ctx: &Ctx<'_>) -> Result<(), Trouble> {
    let (world, node) = (ctx.world, ctx.node());
    let file = world.state.vagrantfile();
    if world.provider.made_from(&world.cluster, &node.name, &file, ctx.control.cancel())? {
        return Ok(());
    }
    let name = providers::machine_name(&world.cluster.name, &node.name);
    Err(Trouble::new(
        format!("a machine `{name}` exists that was not made from this folder"),
        "Give the cluster another name in the spec, or remove that machine where it was made.",
    ))
}

/// Until Vagrant says that the machine is up or, where its address is known beforehand, until its
/// SSH port answers: Vagrant polls for leases every 2 s and then logs in several times.
fn wait(ctx: &Ctx<'_>) -> Result<(), Trouble> {
    let (world, node) = (ctx.world, ctx.node());
    let known = world.provider.known_address(&world.cluster, &node.name);
    let mut booting: Option<Instant> = None;
    loop {
        let heard = world.batch.heard(&node.name, Duration::from_millis(200));
        if let Some(text) = heard.says {
            ctx.control.says(text);
        }
        if let Some(result) = heard.result {
            return result;
        }
        if heard.booting {
            let since = *booting.get_or_insert_with(Instant::now);
            if known.is_some_and(answers) {
                return Ok(());
            }
            if since.elapsed() > world.cluster.timeouts.boot {
                world.batch.give_up(&node.name);
                return Err(no_address(ctx));
            }
        }
        if ctx.control.cancel().level() >= Level::Abort {
            return Err(Trouble::interrupted());
        }
    }
}

/// sshd greets first; a port that only accepts may be a forwarder's.
fn answers(address: SocketAddr) -> bool {
    use std::io::Read;
    let Ok(mut stream) = TcpStream::connect_timeout(&address, Duration::from_millis(300)) else {
        return false;
    };
    let mut greeting = [0; 4];
    let patient = stream.set_read_timeout(Some(Duration::from_secs(2)));
    patient.is_ok() && stream.read_exact(&mut greeting).is_ok() && &greeting == b"SSH-"
}

fn no_address(ctx: &Ctx<'_>) -> Trouble {
    let (world, node) = (ctx.world, ctx.node());
    let bound = crate::explain::seconds(world.cluster.timeouts.boot);
    Trouble::new(
        format!("the machine did not answer at {} within {bound}", node.ip),
        format!(
            "Look at its screen or its console log. If it is only slow (no hardware virtualisation?), give it \
             more time with `timeouts: {{boot: ...}}` in the spec. Machine: {}.",
            providers::machine_name(&world.cluster.name, &node.name)
        ),
    )
}
