//! `p1 fault`: nodes are disturbed on purpose, and it is healed by itself.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use super::args::{FaultNodes, FaultVerb, Peers};
use super::context::Context;
use super::error::{CliError, code};
use super::run::{self, Job};
use crate::event::VerbName;
use crate::fault::{Active, Fault, Wish};
use crate::os::Cancel;
use crate::os::apart;
use crate::os::cancel::Level;
use crate::os::lock::Lock;
use crate::spec::Cluster;
use crate::state::StateDir;
use crate::steps::fault::{GIVES_UP, PATIENCE, heal_due};
use crate::verbs::Verb;

/// Runs one of them.
pub fn run(context: &Context, verb: FaultVerb) -> Result<(), CliError> {
    let wish = match verb {
        FaultVerb::Heal(args) => return heal(context, &args.nodes),
        FaultVerb::Watch => return watch(context),
        FaultVerb::Partition { on, between } => of(on, Fault::Partition { peers: peers(between) }),
        FaultVerb::Latency { on, between, delay, jitter } => {
            let millis = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
            let (delay, jitter) = (millis(delay), millis(jitter));
            of(on, Fault::Latency { peers: peers(between), delay, jitter })
        }
        FaultVerb::Loss { on, between, percent } => of(on, Fault::Loss { peers: peers(between), percent }),
        FaultVerb::LinkDown { on } => of(on, Fault::LinkDown),
        FaultVerb::PowerCut { on } => of(on, Fault::PowerCut),
        FaultVerb::Pause { on } => of(on, Fault::Pause),
        FaultVerb::DiskFull { on, leave } => of(on, Fault::DiskFull { leave }),
        FaultVerb::SlowDisk { on, iops, rate } => of(on, Fault::SlowDisk { iops, rate }),
        FaultVerb::Clock { on, by } => of(on, Fault::Clock { by }),
        FaultVerb::KillK3s { on } => of(on, Fault::KillK3s),
    };
    strike(context, context.spec()?, wish)
}

fn of(on: FaultNodes, fault: Fault) -> Wish {
    Wish { fault, nodes: on.nodes, time: Some(on.time) }
}

fn peers(between: Peers) -> Vec<String> {
    between.peers
}

/// Brings the fault.
fn strike(context: &Context, cluster: Cluster, wish: Wish) -> Result<(), CliError> {
    let nodes = context.targets(&cluster, &wish.nodes)?;
    let mut wish = Wish { nodes, ..wish };
    if let Some(peers) = wish.fault.peers_mut() {
        *peers = context.targets(&cluster, peers)?;
    }
    if let Some(why) = wish.nonsense() {
        let hint = "`p1 fault --help` lists the faults, and each has its own `--help`.";
        return Err(CliError::new(code::USAGE, why, hint));
    }
    let subject = Some(wish.subject());
    change(context, cluster, VerbName::Fault, wish.nodes, subject)
}

/// A proof takes so long at most, whatever it finds; the fault lasts for it.
const PROOF: Duration = Duration::from_secs(30 * 60);

/// Does something while nodes are under a fault, and heals it afterwards, whatever came of it.
pub fn under(
    context: &Context,
    text: &str,
    work: impl FnOnce() -> Result<(), CliError>,
) -> Result<(), CliError> {
    let hint = "Write a fault with its nodes: `--under 'latency worker-1 --delay 100ms'`; `p1 fault --help` lists them.";
    let wish = Wish::read(text).map_err(|why| CliError::new(code::USAGE, why, hint))?;
    if wish.nodes.is_empty() {
        return Err(CliError::new(code::USAGE, format!("`{text}` names no node"), hint));
    }
    let time = wish.time.unwrap_or(PROOF);
    let nodes = wish.nodes.clone();
    let struck = strike(context, context.spec()?, Wish { time: Some(time), ..wish });
    if struck.as_ref().is_err_and(|error| error.code == code::USAGE || error.code == code::LOCKED) {
        // Nothing was begun.
        return struck;
    }
    let result = struck.and_then(|()| work());
    // A wish to stop ended the proof, and not this.
    let after =
        Context { redactor: context.redactor.clone(), ..Context::new(context.global.clone(), Cancel::new()) };
    let healed = heal(&after, &nodes);
    result.and(healed)
}

/// Ends faults before their time.
fn heal(context: &Context, nodes: &[String]) -> Result<(), CliError> {
    let cluster = context.spec()?;
    let targets = context.targets(&cluster, nodes)?;
    change(context, cluster, VerbName::HealFault, targets, None)
}

fn change(
    context: &Context,
    cluster: Cluster,
    verb: VerbName,
    targets: Vec<String>,
    subject: Option<String>,
) -> Result<(), CliError> {
    context.must_be_made(&cluster, &StateDir::of(cluster.home(), &cluster.name))?;
    let verb = Verb::of(verb);
    let job = Job { verb, replace: Vec::new(), targets, subject, retry_of: None, deep: false };
    let report = run::run(context, cluster, job, &|_, _| Ok(()))?;
    run::verdict(&report)
}

/// How often it is looked whether a fault's time is over.
const EVERY: Duration = Duration::from_millis(300);
/// After a try to heal that failed.
const PAUSE: Duration = Duration::from_secs(5);

/// Heals faults whose time is over, until there is none: a process of its own, which p1 starts. One of a cluster at a time.
fn watch(context: &Context) -> Result<(), CliError> {
    apart::leave();
    let cluster = context.spec()?;
    let state = StateDir::of(cluster.home(), &cluster.name);
    let kind = context.kind(&cluster, &state)?;
    let Ok(own) = Lock::take(&state.healer(), "fault heal", Duration::ZERO, &context.cancel) else {
        return Ok(());
    };
    apart::ready();
    // By node and run of a fault that could not be healed: since when, when it is tried again, and the pause after that.
    let mut failing: BTreeMap<(String, String), (Instant, Instant, Duration)> = BTreeMap::new();
    let key = |active: &Active| (active.node.clone(), active.run.clone());
    loop {
        // Destroyed: its lock would bring the folder back.
        if !state.exists() {
            return Ok(());
        }
        let now = jiff::Timestamp::now();
        let all = state.faults()?;
        if all.is_empty() {
            let world = context.world(cluster.clone(), kind);
            // Whoever writes one down from here on finds nobody at work, and starts somebody.
            let turn = world.faults_turn();
            if state.faults()?.is_empty() {
                drop(own);
                drop(turn);
                return Ok(());
            }
            continue;
        }
        let tried =
            |active: &&Active| failing.get(&key(active)).is_none_or(|(_, next, _)| *next <= Instant::now());
        let due: Vec<Active> = all.iter().filter(|a| a.is_due(now)).filter(tried).cloned().collect();
        if !due.is_empty() {
            // A new one each time: what was known of machines may be long past.
            let world = context.world(cluster.clone(), kind);
            for (active, result) in heal_due(&world, due) {
                let (node, name) = (&active.node, active.fault.name());
                let Err(error) = result else {
                    eprintln!("{now} ended {name} of {node}");
                    failing.remove(&key(&active));
                    continue;
                };
                let cause = &error.failure.cause;
                eprintln!("{now} {name} of {node} cannot be ended: {}", context.shown(cause));
                let (since, _, pause) =
                    failing.remove(&key(&active)).unwrap_or((Instant::now(), Instant::now(), PAUSE));
                if since.elapsed() > GIVES_UP {
                    return Err(error.into());
                }
                failing.insert(key(&active), (since, Instant::now() + pause, PATIENCE.min(pause * 2)));
            }
        }
        if context.cancel.sleep(EVERY, Level::Stop) {
            return Ok(());
        }
    }
}
