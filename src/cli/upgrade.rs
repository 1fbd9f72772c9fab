//! `p1 upgrade`: another version of k3s.

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::json;

use super::args::Upgrade;
use super::context::Context;
use super::error::{CliError, code};
use super::run::{self, Job};
use super::{change, changes, closing, out, print};
use crate::access::{Claims, World};
use crate::event::VerbName;
use crate::explain::seconds;
use crate::journal;
use crate::k3s::Version;
use crate::observe::observe_claimed;
use crate::observed::View;
use crate::observed::drift::Interrupts;
use crate::plan::{self, NodeStep, Plan};
use crate::spec::{Cluster, Node, Release};
use crate::state::StateDir;
use crate::ui::Format;
use crate::verbs::{self, Decision, Intent, Verb, decide};

/// Brings every node to a version: the one given, or the one that the spec's channel is by now.
pub fn upgrade(context: &Context, args: &Upgrade) -> Result<(), CliError> {
    let cluster = context.spec()?;
    let state = StateDir::of(cluster.home(), &cluster.name);
    let release = wanted(&cluster, args.to.as_deref())?;
    context.must_be_made(&cluster, &state)?;
    if args.dry_run {
        return foretell(context, cluster, &state, &release);
    }
    let job = Job {
        verb: Verb::of(VerbName::Upgrade),
        replace: Vec::new(),
        targets: Vec::new(),
        retry_of: None,
        deep: false,
        subject: None,
    };
    let before = |world: &World| aim(world, &release);
    let report =
        run::run_to(context, cluster, job, &before, &|world, plan| begin(world, plan).map(|()| Vec::new()))?;
    run::verdict(&report)
}

fn wanted(cluster: &Cluster, to: Option<&str>) -> Result<Release, CliError> {
    if cluster.k3s.artifacts.binary.is_some() {
        return Err(CliError::new(
            code::USAGE,
            "the spec gives the k3s binary itself, under `k3s: artifacts:`",
            "Let it name the new one; `p1 up` then does the same as an upgrade, by the same rules.",
        ));
    }
    let Some(to) = to else { return Ok(cluster.k3s.release.clone()) };
    if let Ok(version) = to.parse::<Version>() {
        return Ok(Release::Version(version.to_string()));
    }
    let minor = |text: &str| {
        let mut parts = text.strip_prefix('v')?.split('.');
        let number = |part: Option<&str>| part?.parse::<u32>().ok();
        (number(parts.next()).is_some() && number(parts.next()).is_some() && parts.next().is_none())
            .then_some(())
    };
    match ["stable", "latest", "testing"].contains(&to) || minor(to).is_some() {
        true => Ok(Release::Channel(to.to_owned())),
        false => Err(CliError::new(
            code::USAGE,
            format!("`{to}` is neither a version nor a channel of k3s"),
            "Write `v1.34.2+k3s1`, a minor version such as `v1.34`, `stable`, `latest` or `testing`.",
        )),
    }
}

/// Finds out which version it is, and makes the run go there.
fn aim(world: &World, release: &Release) -> Result<(), CliError> {
    let (version, warnings) = world.resolve(release)?;
    for warning in warnings {
        eprintln!("{warning}");
    }
    let Some(version) = version else {
        return Err(CliError::new(code::FAILED, "it is not known which version that is", ""));
    };
    if let Release::Version(spec) = &world.cluster.k3s.release
        && !crate::k3s::runs(spec, &version)
    {
        return Err(CliError::new(
            code::USAGE,
            format!("the spec says `version: {spec}`, and the upgrade goes to {version}"),
            format!("Let the spec say `version: {version}`; then `p1 upgrade` or `p1 up` brings it about."),
        ));
    }
    world.aim_at(&version);
    Ok(())
}

/// Says where it goes, and holds the cluster to the new version, so that `retry` goes there too.
fn begin(world: &World, plan: &Plan) -> Result<(), CliError> {
    let seen = world.seen();
    let view = View::new(&world.cluster, &seen);
    let to = seen.here.version.clone().unwrap_or_default();
    if !plan.is_done() {
        let mut from: Vec<&str> = world.cluster.nodes.iter().filter_map(|n| view.version(n)).collect();
        from.sort_unstable();
        from.dedup();
        let from = if from.is_empty() { "an unknown version".to_owned() } else { from.join(" and ") };
        let batch = world.cluster.rollout.workers;
        eprintln!(
            "k3s of cluster `{}`: from {from} to {to}; servers one by one, then workers, {batch} at a time",
            world.cluster.name
        );
    }
    Ok(world.pin(&to)?)
}

/// Says what an upgrade would do: from where to where, in which order, what is away meanwhile, and how long the one before took.
fn foretell(
    context: &Context,
    cluster: Cluster,
    state: &StateDir,
    release: &Release,
) -> Result<(), CliError> {
    let kind = context.kind(&cluster, state)?;
    let world = context.world(cluster, kind);
    let verb = Verb::of(VerbName::Upgrade);
    let claims = Claims::look(&world)?;
    if claims.contested().is_some() {
        return Err(verbs::Error::Contested(verbs::contested(&world, &claims, verb.name, &[])).into());
    }
    aim(&world, release)?;
    let seen = observe_claimed(&world, verb.depth, &claims)?;
    let mut decision = decide(&world.cluster, &seen, &Intent { verb, targets: &[], replace: &[] });
    // What an upgrade mends of what differs.
    decision.drift = change::look(&world, &decision.plan, &[]);
    decision.drift.retain(|d| d.interrupts == Interrupts::K3s);
    decision.plan = decision.plan.map_texts(&|text| context.shown(&text));
    let changes = changes::of(context, &world, &decision);
    let Decision { plan, refused, .. } = decision;
    let (turns, past) = (turns(&plan), Past::latest(&world));
    let due = !plan.is_done();
    let view = View::new(&world.cluster, &seen);
    let to = seen.here.version.clone().unwrap_or_default();
    if context.ui.format == Format::Json {
        changes::objects(&changes).for_each(|object| out::object(&object));
        let past = past.as_ref().map(|p| {
            let away: BTreeMap<_, _> = p.away.iter().map(|(n, time)| (n, millis(*time))).collect();
            json!({"run": p.run, "took_ms": millis(p.took), "away_ms": away})
        });
        let from: BTreeMap<_, _> =
            world.cluster.members().map(|n| (&n.name, view.version(n).map(|v| context.shown(v)))).collect();
        let told = json!({"from": from, "to": to, "turns": turns, "before": past});
        out::object(&json!({"v": 1, "upgrade": told}));
    } else if due {
        print(changes::shown(&changes, &context.ui));
        let turn = |nodes: &Vec<String>| nodes.join(" and ");
        print(format!("order: {}\n", turns.iter().map(turn).collect::<Vec<_>>().join(", then ")));
        print(past.map_or_else(
            || "how long: not known yet, as this cluster had no upgrade\n".to_owned(),
            |past| past.to_string(),
        ));
    } else {
        eprintln!("nothing to do: k3s of cluster `{}` is {to} everywhere", world.cluster.name);
    }
    if let Some(refused) = refused {
        return Err(refused.into());
    }
    match due {
        false => Ok(()),
        true => Err(CliError::told(code::CHANGES, "there is something to do").hint("`p1 upgrade` does it.")),
    }
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

/// The nodes whose k3s is restarted, in the order of the plan: those of one turn at the same time.
fn turns(plan: &Plan) -> Vec<Vec<String>> {
    let touches = [NodeStep::Stage, NodeStep::Config, NodeStep::Install, NodeStep::Start];
    let of = |step: &plan::Step| touches.iter().any(|t| step.name == (*t).into()) && step.check.may_run();
    let due: Vec<&plan::Step> = plan.steps.iter().filter(|s| of(s)).collect();
    let mut turn: BTreeMap<&str, usize> =
        due.iter().filter_map(|s| Some((s.info.node.as_deref()?, 0))).collect();
    let node_of = |id: &str| plan.steps.iter().find(|s| s.info.id == id)?.info.node.as_deref();
    // Each comes after those that its steps wait for; no chain is longer than there are nodes.
    for _ in 0..turn.len() {
        for step in &due {
            let Some(own) = step.info.node.as_deref() else { continue };
            let others = step.info.after.iter().filter_map(|id| node_of(id)).filter(|other| *other != own);
            let before = others.filter_map(|other| turn.get(other)).max().map_or(0, |at| at + 1);
            turn.entry(own).and_modify(|at| *at = before.max(*at));
        }
    }
    let last = turn.values().max().copied().unwrap_or_default();
    let nodes = |at: usize| {
        let mut names: Vec<String> = Vec::new();
        for name in due.iter().filter_map(|s| s.info.node.clone()) {
            if turn[name.as_str()] == at && !names.contains(&name) {
                names.push(name);
            }
        }
        names
    };
    (0..=last).map(nodes).filter(|names| !names.is_empty()).collect()
}

/// An upgrade that was done, as its journal tells it.
struct Past {
    run: String,
    at: jiff::Timestamp,
    took: Duration,
    /// By server: for how long its API was away at most.
    away: BTreeMap<String, Duration>,
}

/// So many journals are looked into: a megabyte each where there are many nodes.
const JOURNALS: usize = 30;

impl Past {
    /// The latest that came to its end.
    fn latest(world: &World) -> Option<Self> {
        let paths = journal::runs(&world.state.runs());
        let records = paths.iter().rev().take(JOURNALS).filter_map(|path| journal::read(path).ok().flatten());
        let mut upgrades =
            records.filter(|r| r.verb == VerbName::Upgrade.as_str() && r.success == Some(true));
        upgrades.find_map(|record| {
            let away = |n: &Node| Some((n.name.clone(), closing::api_away(&record, &n.name)?));
            let away: BTreeMap<_, _> = world.cluster.servers().filter_map(away).collect();
            // One that had nothing to do says nothing of one that has.
            let took = Duration::from_millis(record.events.last()?.elapsed_ms);
            (!away.is_empty()).then(|| Self { run: record.run.clone(), at: record.started, took, away })
        })
    }
}

impl std::fmt::Display for Past {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let away: Vec<String> =
            self.away.iter().map(|(node, time)| format!("{node} at most {}", seconds(*time))).collect();
        let when = self.at.strftime("%Y-%m-%d %H:%M UTC");
        let took = seconds(self.took);
        writeln!(f, "how long: the upgrade of {when} took {took}; the API was away on {}", away.join(", "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::observed::Observed;
    use crate::spec::fixture;

    /// The order that is shown is the plan's own.
    #[test]
    fn an_upgrade_says_whose_turn_comes_when() {
        let mut cluster = fixture::sized(3, 3);
        cluster.rollout.workers = 2;
        let mut seen = Observed::default();
        for node in &cluster.nodes {
            let unit = crate::guest::Unit { loaded: true, active: "active".into(), ..Default::default() };
            let mut facts = crate::guest::NodeFacts { node_password: true, ..Default::default() };
            facts.datastore = Some("etcd".into());
            facts.units.insert(node.role.unit().to_owned(), unit);
            seen.nodes.insert(node.name.clone(), facts.into());
        }
        let plan = Verb::of(VerbName::Upgrade).plan(&View::new(&cluster, &seen), &[]);
        let told: Vec<String> = turns(&plan).iter().map(|t| t.join(" ")).collect();
        assert_eq!(told, ["server", "server-2", "server-3", "worker-1 worker-2", "worker-3"]);
    }
}
