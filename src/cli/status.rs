//! `p1 status`: machines, k3s, nodes, and where they differ from the spec.

use serde_json::json;

use super::args::Looks;
use super::change;
use super::context::Context;
use super::fail::{Fail, code};
use super::print;
use crate::explain::chain;
use crate::journal;
use crate::providers::State as Power;
use crate::state::State;
use crate::steps::{Depth, Drift, Verb, View, observe};
use crate::ui::{Cell, Format, Layout, Tone, count, table};

/// Shows how it is; exit code 1 if it is not as the spec says.
pub fn status(context: &Context, args: &Looks) -> Result<(), Fail> {
    let cluster = context.spec()?;
    let targets = context.targets(&cluster, &args.nodes.nodes)?;
    let state = State::of(&cluster.base, &cluster.name);
    let kind = context.kind(&cluster, &state)?;
    let world = context.world(cluster, kind);
    let seen = observe(&world, if args.deep { Depth::Inside } else { Depth::Nodes })?;
    let view = View::new(&world.cluster, &seen);
    let plan = Verb::find("up").expect("a verb").plan(&view, &targets);
    let (drift, _) = change::look(&world, &targets);
    let chosen = |name: &String| targets.is_empty() || targets.contains(name);
    let holder = crate::os::lock::holder(&state.lock());
    let last = journal::latest(&state.runs());
    let outstanding = last.as_ref().ok().and_then(|r| r.as_ref()).map(|r| (r.outstanding().count(), &r.verb));

    let mut rows = Vec::new();
    let nodes = world.cluster.nodes.iter().chain(&seen.former);
    for node in nodes.filter(|n| chosen(&n.name)) {
        let machine = view.machine(node);
        let facts = seen.nodes.get(&node.name);
        let status = view.status(node);
        let unit = facts.map(|f| f.unit(node.role.unit()));
        let drift: Vec<&Drift> = drift.iter().filter(|d| d.node.as_deref() == Some(&node.name)).collect();
        let former = world.cluster.node(&node.name).is_none();
        // The API takes a while to see that a node is gone; a former one was not asked itself.
        let ready = status.map(|s| s.ready && (former || facts.is_some()));
        if context.ui.format == Format::Json {
            let line = json!({
                "v": 1, "node": node.name, "role": node.role, "ip": node.ip,
                "machine": machine.state.to_string(), "machine_id": machine.id,
                "unit": unit.as_ref().map(|u| &u.active), "restarts": unit.as_ref().map(|u| u.restarts),
                "ready": ready, "version": status.map(|s| &s.version), "address": status.and_then(|s| s.internal_ip),
                "ssh": seen.silent.get(&node.name), "drift": drift, "size": machine.size,
                "former": former,
            });
            print(&format!("{line}\n"));
            continue;
        }
        let (running, unit) =
            (machine.state == Power::Running, unit.map(|u| u.active).filter(|a| !a.is_empty()));
        let cell = |text: String, good: bool| Cell::new(if good { Tone::Good } else { Tone::Bad }, text);
        rows.push(vec![
            Cell::from(node.name.clone()),
            Cell::from(node.role.to_string()),
            Cell::from(node.ip.to_string()),
            cell(machine.state.to_string(), running),
            match unit {
                Some(active) => cell(active.clone(), active == "active"),
                None => Cell::new(Tone::Dim, "-"),
            },
            match ready {
                Some(true) => cell("Ready".into(), true),
                Some(false) => cell("NotReady".into(), false),
                None => Cell::new(Tone::Dim, "-"),
            },
            Cell::from(status.map_or("-".to_owned(), |s| s.version.clone())),
            Cell::new(Tone::Warn, drift.iter().map(|d| d.what.clone()).collect::<Vec<_>>().join("; ")),
        ]);
    }
    if context.ui.format == Format::Json {
        for drift in drift.iter().filter(|d| d.node.is_none()) {
            print(&format!("{}\n", json!({"v": 1, "cluster": world.cluster.name, "drift": [drift]})));
        }
    } else {
        let layout = Layout { paint: context.paint(), right: false, indent: 0 };
        for drift in drift.iter().filter(|d| d.node.is_none()) {
            eprintln!("{drift}");
        }
        print(&table(
            &["node", "role", "address", "machine", "k3s", "node is", "version", "differs"],
            &rows,
            layout,
        ));
        if let Some(owner) = holder {
            eprintln!("p1 {} works on it (pid {}, since {})", owner.verb, owner.pid, owner.since);
        } else if let Some((n, verb)) = outstanding.filter(|(n, _)| *n > 0) {
            eprintln!("{} of `p1 {verb}` outstanding: `p1 retry` continues", count(n, "step"));
        } else if let Err(error) = &last {
            eprintln!("what the last run left is not known: {}", chain(error));
        }
    }
    if !change::is_due(&plan, &drift) {
        Ok(())
    } else {
        Err(Fail::told(code::FAILED, "the cluster differs from the spec")
            .hint("`p1 plan` says what `p1 up` would do.")
            .next(["p1 up"]))
    }
}
