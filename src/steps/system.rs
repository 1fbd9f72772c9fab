//! The node's system is ready for k3s: name, address, clock; and nothing is in k3s' way.

use std::fmt::Write as _;

use serde_json::json;

use super::shared::hosts::lines;
use super::shared::stamp::STAMPS;
use super::{Item, NodeCtx, NodeDef, Step};
use crate::access::SCRIPT_TIMEOUT;
use crate::engine::StepError;
use crate::explain::FailureKind;
use crate::guest::{self, Guest, NodeFacts, Prepare, firewall};
use crate::k3s;
use crate::machines::{Cap, node_mac};
use crate::observed::preflight::{self, SKEW};
use crate::observed::ways::{self, closed, openings};
use crate::observed::{View, holds};
use crate::os::process;
use crate::plan::{After, Check, NodeStep, Per};
use crate::render;
use crate::spec::{Cluster, Node};

pub const STEP: Step = Step::Node(NodeDef {
    name: NodeStep::System,
    title: "prepare the system",
    per: Per::Node,
    after: &[After::Node(NodeStep::Ssh), After::NodeUnchanged(NodeStep::Disks)],
    needs: None,
    retry: true,
    check,
    inputs,
    apply,
});

fn check(view: &View<'_>, node: &Node, _: Item<'_>) -> Check {
    let facts = match view.facts(node) {
        Ok(facts) => facts,
        Err(check) => return check,
    };
    let made = view.can(node).has(Cap::Make);
    let wrong = if !made {
        existing(facts, node).map(|error| error.failure.cause)
    } else if facts.baked && node.role.has_k3s() {
        Some("what the baked box has for its role is not in its place".to_owned())
    } else if facts.hostname != node.hostname() {
        Some(format!("its hostname is {}", facts.hostname))
    } else if facts.interface_of(node.ip).is_none() {
        Some(format!("it does not have the address {}", node.ip))
    } else if facts.ahead.abs() > SKEW {
        Some(format!("its clock is {} s off", facts.ahead))
    } else {
        obstacles(facts, node).into_iter().next().map(|o| o.failure.cause)
    };
    let wrong = match node.role.has_k3s() {
        true => wrong
            .or_else(|| guest::of(Some(facts)).untuned(facts).map(str::to_owned))
            .or_else(|| ways::closed(view, node)?.why()),
        false => wrong,
    };
    holds("name, address and clock are right", wrong)
}

fn inputs(cluster: &Cluster, node: &Node) -> serde_json::Value {
    let openings: Vec<String> = openings(cluster, node).iter().map(ToString::to_string).collect();
    match &node.hostname {
        None => json!([cluster.network, (&node.name, node.ip), openings]),
        Some(hostname) => json!([cluster.network, (&node.name, node.ip), openings, hostname]),
    }
}

/// What has to be mended by whoever has the machine: p1 gives it neither name nor address, and sets no clock.
fn existing(facts: &NodeFacts, node: &Node) -> Option<StepError> {
    let unfit = preflight::unfit(facts, node).into_iter().next();
    unfit
        .map(|(cause, hint)| StepError::new(cause, hint))
        .or_else(|| obstacles(facts, node).into_iter().next())
}

fn apply(ctx: &NodeCtx<'_>) -> Result<Option<String>, StepError> {
    let (world, node) = (ctx.world, ctx.node);
    if world.machines.make(&node.name).is_err() {
        let facts = world.look_at_node(node)?;
        if let Some(error) = existing(&facts, node) {
            return Err(error);
        }
        warnings(&facts, node).into_iter().for_each(|text| ctx.control.warn(text));
        let did = [tune(ctx, &facts)?, open(ctx)?].into_iter().flatten().collect::<Vec<_>>();
        return Ok((!did.is_empty()).then(|| did.join(", ")));
    }
    let now = u64::try_from(world.now().as_second()).unwrap_or(0);
    let mut script = script(world.guest(node), &world.cluster, node, now)?;
    // A script of its own would cost an emulated node more than a second: the step for it finds it done.
    let _ = write!(script, "(\n{}\n)\n", world.guest(node).hosts(&lines(&world.cluster)));
    if node.role.has_k3s() && world.facts(node)?.baked {
        script.push_str(&k3s::place_script(node.role, STAMPS));
    }
    let mut did = Vec::new();
    let what = "preparing the system";
    let done = world
        .on(node, |r| r.script(what, &script, true, SCRIPT_TIMEOUT, &mut |line| did.push(line.to_owned())))?;
    for line in &did {
        ctx.control.log(line);
    }
    if done.status == 20 {
        return Err(StepError::new(
            format!("the machine has no network card for {}", node.ip),
            "The machine was made with another Vagrantfile. `p1 replace {node}` recreates it.",
        )
        .next(["p1 replace {node}", "p1 up"]));
    }
    done.ok()?;
    let facts = world.look_at_node(node)?;
    if facts.interface_of(node.ip).is_none() {
        return Err(StepError::new(
            format!("the machine does not keep the address {}", node.ip),
            "Something on the node takes it away again; see `ip addr` and its network configuration there.",
        )
        .transient());
    }
    if let Some(error) = obstacles(&facts, node).into_iter().next() {
        return Err(error);
    }
    warnings(&facts, node).into_iter().for_each(|text| ctx.control.warn(text));
    did.extend(tune(ctx, &facts)?);
    did.extend(open(ctx)?);
    Ok((!did.is_empty()).then(|| did.join(", ")))
}

/// Has what gets in k3s' way out of it.
fn tune(ctx: &NodeCtx<'_>, facts: &NodeFacts) -> Result<Option<String>, StepError> {
    let (world, node, guest) = (ctx.world, ctx.node, guest::of(Some(facts)));
    if !node.role.has_k3s() || guest.untuned(facts).is_none() {
        return Ok(None);
    }
    let did = world.script(node, "preparing the system", &guest.tune(facts))?;
    world.look_at_node(node)?;
    Ok(Some(did.lines().collect::<Vec<_>>().join(", ")))
}

/// Has the firewalls that are on let k3s' traffic in.
fn open(ctx: &NodeCtx<'_>) -> Result<Option<String>, StepError> {
    let (world, node) = (ctx.world, ctx.node);
    let closed = || closed(&View::new(&world.cluster, &world.seen()), node);
    let Some(gap) = closed() else { return Ok(None) };
    let what = "opening the firewall";
    let done = world.run_script(node, what, &firewall::mend(&gap))?;
    let refused = |cause: &str, text: &str| {
        StepError::new(
            cause,
            "Let it in by hand, as docs.k3s.io/installation/requirements says, or switch the firewall off.",
        )
        .evidence(process::tail(text, 12))
    };
    if done.status != 0 {
        let cause = format!("the node's firewall did not take rules (exit status {})", done.status);
        return Err(refused(&cause, &done.text()).kind(FailureKind::Exit { code: done.status }));
    }
    world.look_at_node(node)?;
    match closed().and_then(|gap| gap.why()) {
        Some(why) => Err(refused(&format!("{why}, after it was told to"), &done.text())),
        None => {
            let names: Vec<&str> = gap.closed.keys().copied().collect();
            Ok(Some(match names.is_empty() {
                true => "closed what nothing needs any more in the firewall".to_owned(),
                false => format!("had {} let k3s' traffic in", names.join(" and ")),
            }))
        }
    }
}

/// What is run on the node; `now` is the time, in seconds since 1970; 0 leaves the clock alone.
pub fn script(guest: &dyn Guest, cluster: &Cluster, node: &Node, now: u64) -> Result<String, render::Error> {
    guest.prepare(&Prepare {
        name: node.hostname(),
        ip: node.ip,
        prefix: cluster.network.cidr.prefix_len(),
        mac: &node_mac(cluster.macs(), &node.name, node.ip),
        now,
    })
}

/// What k3s cannot run with, where there is to be one.
fn obstacles(facts: &NodeFacts, node: &Node) -> Vec<StepError> {
    let all = guest::of(Some(facts)).obstacles(facts).into_iter().filter(|_| node.role.has_k3s());
    all.map(|obstacle| StepError::new(obstacle.cause, obstacle.hint)).collect()
}

/// What k3s may fail by later.
fn warnings(facts: &NodeFacts, node: &Node) -> Vec<String> {
    let all = guest::of(Some(facts)).warnings(facts, node.role).into_iter();
    all.filter(|_| node.role.has_k3s()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::observed::Observed;
    use crate::spec::fixture::cluster;

    fn good(node: &Node) -> NodeFacts {
        NodeFacts {
            hostname: node.name.clone(),
            addresses: vec![("eth0".into(), node.ip)],
            default_routes: vec!["eth0".into()],
            init: Some("systemd".into()),
            cgroup_memory: true,
            disk_free_mib: 8000,
            memory_mib: 2000,
            ..NodeFacts::default()
        }
    }

    #[test]
    fn each_obstacle_makes_the_step_due_and_says_why() {
        let cluster = cluster(0);
        let node = &cluster.nodes[0];
        let reason = |change: fn(&mut NodeFacts)| {
            let mut facts = good(node);
            change(&mut facts);
            let mut seen = Observed::default();
            seen.nodes.insert(node.name.clone(), facts.into());
            check(&View::new(&cluster, &seen), node, None)
        };
        assert!(matches!(reason(|_| {}), Check::Done(_)));
        // Others took their time to answer meanwhile.
        assert!(matches!(reason(|f| f.epoch -= 60), Check::Done(_)));
        type Change = fn(&mut NodeFacts);
        let cases: [(Change, &str); 7] = [
            (|f| f.baked = true, "its place"),
            (|f| f.hostname = "debian".into(), "hostname"),
            (|f| f.addresses.clear(), "address"),
            (|f| f.ahead = 3600, "clock"),
            (|f| f.default_routes.clear(), "default route"),
            (|f| f.cgroup_memory = false, "memory cgroup"),
            (|f| f.disk_free_mib = 100, "MiB free"),
        ];
        for (change, word) in cases {
            let Check::Needed(why) = reason(change) else { panic!("{word}") };
            assert!(why.contains(word), "{why}");
        }
    }
}
