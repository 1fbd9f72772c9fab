//! The machine exists and runs.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use serde_json::json;

use super::wait::{Patience, wait_for};
use super::{Item, NodeCtx, NodeDef, Step, console};
use crate::access::World;
use crate::engine::Trouble;
use crate::explain::{Again, Explain, FailureKind};
use crate::machines::{self, Leftovers, Machine, State, Whose};
use crate::observed::View;
use crate::os::cancel::Level;
use crate::os::files;
use crate::plan::{After, Check, ClusterStep, NodeStep, Per};
use crate::spec::{Cluster, Node};
use crate::ssh::{Knock, KnownHosts};

pub const STEP: Step = Step::Node(NodeDef {
    name: NodeStep::Vm,
    title: "boot the machine",
    per: Per::Node,
    after: &[
        After::Cluster(ClusterStep::Network),
        After::Cluster(ClusterStep::Box),
        After::Kept(NodeStep::Resize),
        After::Leaving(NodeStep::Machine),
    ],
    retry: true,
    check,
    inputs,
    apply,
});

fn check(view: &View<'_>, node: &Node, _: Item<'_>) -> Check {
    if view.is_made_anew(node) {
        return Check::Needed("it is made anew".into());
    }
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

fn inputs(cluster: &Cluster, node: &Node) -> serde_json::Value {
    json!([cluster.image, cluster.network, (&node.name, node.ip, node.cpus, node.memory)])
}

fn apply(ctx: &NodeCtx<'_>) -> Result<Option<String>, Trouble> {
    let (world, node) = (ctx.world, ctx.node);
    // Vagrant may be at work on it already, for another node's step.
    if !ctx.batch.has(&node.name) {
        let machine = world.look_at_machine(node)?.filter(|m| !m.foreign);
        match machine.and_then(|m| Some((m.state, m.id?))) {
            Some((State::Paused, id)) => return go_on(ctx, id),
            Some((State::Running, id)) => return Ok(Some(format!("machine {id}"))),
            _ => {}
        }
        ctx.batch.join(world, &node.name, ctx.control);
    }
    let up = wait(ctx);
    let (id, making) = (world.vagrant.id(&node.name), world.state.making(&node.name));
    if let Some(id) = id.as_ref().filter(|_| making.exists()) {
        world.remember_made(node)?;
        let (owner, cancel) = (world.owner()?, ctx.control.cancel());
        match world.provider.own_machine(&world.cluster, &node.name, id, &owner, cancel) {
            // What is not noted is noted by the next run, which knows the machine's id.
            Err(error) if error.cancelled() => {}
            noted => noted?,
        }
        files::remove_if_there(&making)?;
    }
    up?;
    world.note(|seen| {
        let machine = seen.machines.entry(node.name.clone()).or_insert_with(Machine::absent);
        (machine.id, machine.state, machine.foreign) = (id.clone(), State::Running, false);
    });
    Ok(id.map(|id| format!("machine {id}")))
}

/// Before Vagrant begins: what an interrupted run left is taken away, and what is about to be made is
/// noted. False if Vagrant is not to be asked.
pub fn prepare(
    world: &World,
    node: &Node,
    machine: Option<&Machine>,
    tell: Tell<'_>,
) -> Result<bool, Trouble> {
    if machine.is_some_and(|m| m.state == State::Paused && !m.foreign) {
        return Ok(false);
    }
    if machine.is_some_and(|m| m.foreign && m.state != State::Absent) {
        clear_half_made(world, node, tell)?;
    }
    if machine.is_none_or(|m| m.state == State::Absent) {
        clear_left_disk(world, node, tell)?;
    } else if let Err(error) = world.provider.keep_disk(&world.cluster, &node.name, &world.cancel) {
        tell(format!("Its disk stays as it was made: {error}."));
    }
    if machine.is_none_or(|m| m.state == State::Absent || m.foreign) {
        let making = world.state.making(&node.name);
        files::dir(making.parent().unwrap_or(world.state.dir()))?;
        files::write(&making, b"", 0o600)?;
        // A new machine has a new host key, and nobody's old one may vouch for it.
        KnownHosts::pinned(world.state.known_hosts()).forget(&node.name)?;
        world.forget_node(&node.name);
        world.forget_memory(&node.name)?;
        // Now as well, for a run that is cut off before the machine has an id.
        world.remember_made(node)?;
    }
    Ok(true)
}

/// Is told what the user should know.
pub type Tell<'a> = &'a (dyn Fn(String) + Sync);

/// A paused machine, such as a snapshot that was killed leaves: it needs no Vagrant.
fn go_on(ctx: &NodeCtx<'_>, id: String) -> Result<Option<String>, Trouble> {
    let (world, node) = (ctx.world, ctx.node);
    let ids = [(node.name.clone(), id)].into();
    world.provider.resume(&world.cluster, &ids, ctx.control.cancel())?;
    world.look_at_machine(node)?;
    Ok(Some("it was paused and goes on".into()))
}

/// Until the SSH port of a machine that runs answers, at most as long as one may take to boot.
pub fn wait_for_sshd(ctx: &NodeCtx<'_>) -> Result<(), Trouble> {
    let (world, node) = (ctx.world, ctx.node);
    let address = || {
        let endpoint = world.login(node).ok()?.endpoint;
        Some(SocketAddr::new(endpoint.host.parse().ok()?, endpoint.port))
    };
    let patience = Patience::stubborn(world.cluster.timeouts.boot);
    let mut knock = Knock::default();
    let answer = wait_for(ctx, patience, || {
        let answers = address().is_some_and(|a| knock.answers(a, Duration::from_millis(500)));
        Ok(if answers { Ok(()) } else { Err("waiting for its SSH server".to_owned()) })
    })?;
    answer.map_err(|_| no_address(ctx))
}

/// Whether the node's SSH server greets within that time.
pub fn answers(ctx: &NodeCtx<'_>, bound: Duration) -> bool {
    let (world, node) = (ctx.world, ctx.node);
    let mut knock = Knock::default();
    let looked = wait_for(ctx, Patience::stubborn(bound), || {
        let endpoint = world.login(node).ok().map(|login| login.endpoint);
        let address = endpoint.and_then(|e| Some(SocketAddr::new(e.host.parse().ok()?, e.port)));
        let answers = address.is_some_and(|a| knock.answers(a, Duration::from_millis(500)));
        Ok(if answers { Ok(()) } else { Err("waiting for its SSH server".to_owned()) })
    });
    matches!(looked, Ok(Ok(())))
}

/// A machine of our name without an id in our folder: what is left when p1 or Vagrant is killed
/// between making it and writing its id down. It is taken away only if it says that it was made
/// from this folder's Vagrantfile, and p1 noted that it was making it; anybody else's stays, and so does
/// one of ours of which p1 knows nothing any more, because somebody removed its state.
fn clear_half_made(world: &World, node: &Node, tell: Tell<'_>) -> Result<(), Trouble> {
    must_be_ours(world, node)?;
    let name = machines::machine_name(&world.cluster.name, &node.name);
    if !world.state.making(&node.name).exists() {
        return Err(Trouble::new(
            format!("the machine `{name}` was made from this folder, but p1's state of it is gone"),
            format!(
                "It was in {}, with the key that opens the machine: put it back from a copy if you have one. Else \
                 `p1 destroy{}` removes the machine with all that is on it, and `p1 up` makes it anew.",
                world.state.dir().display(),
                alone(world, node)
            ),
        )
        .next(anew(world, node)));
    }
    tell(format!("{name} was left half-made by an interrupted run; it is made anew."));
    let (nodes, ids) = ([node.name.clone()], Default::default());
    let what = Leftovers {
        nodes: &nodes,
        ids: &ids,
        spared: &Default::default(),
        owner: None,
        whole: false,
        image: None,
    };
    world.provider.clean(&world.cluster, &what, &mut |_| {}, &world.cancel)?;
    world.vagrant.forget(&node.name)?;
    Ok(())
}

/// What `p1 destroy` needs to be told to remove this node, where that leaves a cluster: ` NODE`.
fn alone(world: &World, node: &Node) -> String {
    let known = world.vagrant.ids();
    let others = world.cluster.servers().any(|s| s.name != node.name && known.contains_key(&s.name));
    if others { format!(" {}", node.name) } else { String::new() }
}

/// The commands that take a node's machine away and make another.
fn anew(world: &World, node: &Node) -> [String; 2] {
    [format!("p1 destroy{}", alone(world, node)), "p1 up".to_owned()]
}

/// A disk without its machine. If p1 was making the machine, an interrupted run made the disk and
/// nothing was ever on it. Otherwise somebody removed the machine, and the disk holds what it held.
fn clear_left_disk(world: &World, node: &Node, tell: Tell<'_>) -> Result<(), Trouble> {
    if !world.provider.disk_left(&world.cluster, &node.name, &world.cancel)? {
        return Ok(());
    }
    let known = world.vagrant.id(&node.name).is_some();
    if known || !world.state.making(&node.name).exists() {
        return Err(Trouble::new(
            "the machine was removed outside p1, and its disk was left behind",
            format!(
                "`p1 destroy{}` removes the disk with all that is on it; then `p1 up` makes the machine anew.",
                alone(world, node)
            ),
        )
        .next(anew(world, node)));
    }
    tell("A disk was left by an interrupted run, before the machine was made; it is made anew.".into());
    let (nodes, ids) = ([node.name.clone()], Default::default());
    let what = Leftovers {
        nodes: &nodes,
        ids: &ids,
        spared: &Default::default(),
        owner: None,
        whole: false,
        image: None,
    };
    world.provider.clean(&world.cluster, &what, &mut |_| {}, &world.cancel)?;
    Ok(())
}

/// Of a machine that has the node's name and is not known here: an error, unless it is noted as this folder's,
/// or says that it was made from this folder's Vagrantfile.
pub fn must_be_ours(world: &World, node: &Node) -> Result<(), Trouble> {
    let Some(whose) = theirs(world, node)? else { return Ok(()) };
    let name = machines::machine_name(&world.cluster.name, &node.name);
    let hint = match &whose {
        // Their names are put together from the cluster's and the node's: `a-b` and `c`, `a` and `b-c`.
        Whose::Other(_) => format!("Give {} or the cluster another name in the spec.", node.name),
        _ => {
            "Give the cluster another name in the spec, or remove that machine where it was made.".to_owned()
        }
    };
    let what = match &whose {
        Whose::Stranger => format!("a machine `{name}` exists that was not made from this folder"),
        whose => format!("the machine `{name}` belongs to {}", whose.name()),
    };
    Err(Trouble::new(what, hint))
}

/// Whose the machine of the node's name is, if it is not this folder's.
pub fn theirs(world: &World, node: &Node) -> Result<Option<Whose>, Trouble> {
    let whose = world.whose(&[node.name.clone()].into())?.remove(&node.name);
    Ok(whose.filter(|whose| !whose.is_ours()))
}

/// Until Vagrant says that the machine is up or, where its address is known beforehand, until its
/// SSH port answers: Vagrant polls for leases every 2 s and then logs in several times.
fn wait(ctx: &NodeCtx<'_>) -> Result<(), Trouble> {
    let (world, node) = (ctx.world, ctx.node);
    let known = world.provider.known_address(&world.cluster, &node.name);
    let mut booting: Option<Instant> = None;
    let mut knock = Knock::default();
    let mut kept = None;
    loop {
        let heard = ctx.batch.heard(&node.name, Duration::from_millis(200));
        // vagrant-libvirt's locales/en.yml `starting_domain`.
        let starts = heard.says.as_deref().is_some_and(|text| text.starts_with("Starting domain"));
        if kept.is_none() && (starts || heard.booting) {
            kept = Some(console::keep(world, node, true));
        }
        if let Some(text) = heard.says {
            ctx.control.says(text);
        }
        heard.warnings.into_iter().for_each(|text| ctx.control.warn(text));
        if let Some(result) = heard.result {
            return result;
        }
        if heard.booting {
            let since = *booting.get_or_insert_with(Instant::now);
            if known.is_some_and(|a| knock.answers(a, Duration::from_millis(300))) {
                return Ok(());
            }
            if since.elapsed() > world.cluster.timeouts.boot {
                ctx.batch.give_up(&node.name);
                // Its last words are on their way.
                drop(kept);
                return Err(no_address(ctx));
            }
        }
        if ctx.control.cancel().level() >= Level::Abort {
            return Err(Trouble::interrupted());
        }
    }
}

/// What to think of a trouble that may pass, of a node whose machine was up before. If the machine no
/// longer does, somebody or the host's lack of memory has ended it: waiting does not mend that, `p1 retry`
/// starts it first.
pub fn lost(world: &World, node: &Node, mut trouble: Trouble) -> Trouble {
    let Ok(machine) = world.look_at_machine(node) else { return trouble };
    let Some(machine) = machine.filter(|m| m.state != State::Running) else { return trouble };
    let what = match machine.state {
        State::Absent => "the machine is gone: it was removed outside p1".to_owned(),
        _ => format!("the machine is {}: it was not p1 that did it", machine.state),
    };
    trouble.failure.cause = format!("{what} ({})", trouble.failure.cause);
    trouble.failure.hint = Some("`p1 retry` brings it back and goes on.".to_owned());
    trouble.failure.kind = FailureKind::Lost;
    trouble.again = Again::No;
    trouble
}

fn no_address(ctx: &NodeCtx<'_>) -> Trouble {
    let (world, node) = (ctx.world, ctx.node);
    let bound = crate::explain::seconds(world.cluster.timeouts.boot);
    console::note_unreached(world, node);
    let cause = format!("the machine did not answer at {} within {bound}", node.ip);
    let trouble = Trouble::new(cause, "").kind(FailureKind::bound(world.cluster.timeouts.boot));
    console::told(world, node, trouble)
}
