//! `p1 box bake`, and what `bake: auto` does within `up`: a machine of p1's own, in a cluster of p1's own, becomes a box.
//!
//! There is one such cluster for each user, whose name no spec can have. A bake begins by destroying what is left of the one
//! before, and ends by destroying its own, so that one that was killed leaves nothing for longer than until the next.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::os::unix::ffi::OsStrExt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use ipnet::Ipv4Net;
use serde_json::json;

use super::context::Context;
use super::error::{CliError, code};
use super::{doctor, out};
use crate::access::{Baker, World};
use crate::artifacts::{self, Doing, Progress};
use crate::boxes::Library;
use crate::engine::{Report, StepError};
use crate::event::{Event, Failure, Kind as What, Outcome, VerbName};
use crate::explain::Again;
use crate::machines::Kind;
use crate::os::lock::{self, Lock};
use crate::os::{Cancel, files, hash};
use crate::spec::{
    self, BakeChoice, BoxRef, Cluster, EngineChoice, Network, Node, ProviderChoice, Release, Role, Size,
};
use crate::state::StateDir;
use crate::steps;
use crate::ui::{Format, bytes};
use crate::verbs::{self, Audience, Job, Verb};

/// The machine that becomes a box.
const NODE: &str = "box";
/// What is enough to destroy it.
const LEAST: &str = "name: box\nnodes: [{name: box, role: server}]\n";
/// What it gets: it copies, unpacks and imports, and no k3s runs on it.
const SIZE: Size = Size { cpus: 2, memory: 1024 };
/// Another p1 may be baking; then there may be nothing left to do.
const OTHERS: Duration = Duration::from_secs(3600);

/// What bakes boxes for a cluster while it is made.
pub fn baker(context: &Context) -> Baker {
    let own = context.clone();
    Box::new(move |outer, say| {
        let mut say = |text: &str| say(text);
        bake(&own, outer, OTHERS, false, &mut say).map_err(|error| StepError {
            again: if error.code == code::INTERRUPTED { Again::Cancelled } else { Again::No },
            unready: error.code == code::HOST,
            failure: Failure {
                cause: error.message,
                hint: error.hint,
                kind: error.kind,
                evidence: error.evidence,
                ..Failure::default()
            },
            pause: None,
        })
    })
}

/// `p1 box bake`.
pub fn run(context: &Context, library: &Library, force: bool) -> Result<(), CliError> {
    let cluster = context.spec()?;
    let state = StateDir::of(&cluster.base, &cluster.name);
    let kind = context.kind(&cluster, &state)?;
    if !kind.takes_built_boxes() {
        return Err(CliError::new(code::USAGE, "boxes are baked for libvirt only", spec::BAKE));
    }
    if cluster.libvirt.is_session() {
        let what = format!("no box is baked with {}", cluster.libvirt.uri.word());
        return Err(CliError::new(code::USAGE, what, spec::BAKE_ELSEWHERE));
    }
    let _signals = super::signals::watch_plain(context.cancel.clone())?;
    let world = context.world(cluster, kind);
    let start = Instant::now();
    let mut say = |text: &str| eprintln!("[{:>6.1}s] {text}", start.elapsed().as_secs_f64());
    let arch = artifacts::arch(std::env::consts::ARCH).map_err(|e| CliError::of(code::HOST, &e))?;
    let mut last = String::new();
    let mut progress = |p: Progress<'_>| {
        if p.doing == Doing::Downloading && last != p.name {
            p.name.clone_into(&mut last);
            eprintln!("fetching {}", p.name);
        }
    };
    world.fetched(arch, &mut progress, &mut |text| eprintln!("note: {text}"))?;
    let there = world.fitting()?.filter(|_| !force);
    let manifest = match there {
        Some(manifest) => {
            if let Some(cluster) = left(context) {
                let _lock = take_turn(context, context.global.wait, &mut |text| eprintln!("{text}"))?;
                clear(context, cluster)?;
            }
            eprintln!(
                "{} is there already ({}); `--force` bakes it again",
                manifest.name,
                bytes(manifest.size)
            );
            manifest
        }
        None => {
            bake(context, &world, context.global.wait, true, &mut say)?;
            let fits = world.fitting()?.ok_or_else(|| {
                let what = "the box that was baked does not fit: what it is made of has changed meanwhile";
                CliError::new(code::FAILED, what, "").next(["p1 box bake"])
            })?;
            eprintln!("baked {}: {}; `p1 up` makes machines from it", fits.name, bytes(fits.size));
            fits
        }
    };
    let path = library.path(&manifest.name);
    match context.ui.format {
        Format::Json => out::object(&json!({"v": 1, "box": manifest, "path": out::lossy(&path)})),
        _ => out::path(context, "box", &path),
    }
    Ok(())
}

/// `p1 box bake --clean`: what a bake that was killed has left goes.
pub fn clean(context: &Context) -> Result<(), CliError> {
    let _signals = super::signals::watch_plain(context.cancel.clone())?;
    let Some(cluster) = left(context) else {
        eprintln!("no bake has left anything");
        return Ok(());
    };
    let _lock = take_turn(context, context.global.wait, &mut |text| eprintln!("{text}"))?;
    clear(context, cluster)?;
    match context.ui.format {
        Format::Json => out::object(&json!({"v": 1, "cleaned": true})),
        _ => eprintln!("what a bake had left is removed"),
    }
    Ok(())
}

/// What people are told where a bake was killed that nobody has gone on with.
pub fn tell_of_left(context: &Context) {
    if left(context).is_some() && lock::holder(&turn(context)).is_none() {
        eprintln!(
            "note: a bake was killed and has left its machine; the next one removes it, and so does `p1 box bake --clean`"
        );
    }
}

/// The cluster of a bake that has not come to its end.
fn left(context: &Context) -> Option<Cluster> {
    let cluster = cluster(context, None);
    let begun =
        StateDir::of(&cluster.base, &cluster.name).exists() || steps::bake::is_left(&context.library());
    begun.then_some(cluster)
}

/// Whose machines become boxes.
fn kind() -> Kind {
    Kind::wished(ProviderChoice::Libvirt).unwrap_or_default()
}

fn turn(context: &Context) -> std::path::PathBuf {
    context.dirs().baking().join("lock")
}

/// One bake at a time.
fn take_turn(context: &Context, wait: Duration, say: &mut dyn FnMut(&str)) -> Result<Lock, CliError> {
    files::private_dir(&context.dirs().baking())?;
    let tell = &mut |_: Option<&lock::Owner>| say("waiting for another p1, which bakes a box");
    Lock::take_telling(&turn(context), "box bake", wait, &context.cancel, tell).map_err(|e| {
        let code = if matches!(e, lock::Error::Held { .. }) { code::LOCKED } else { code::FAILED };
        CliError::of(code, &e)
    })
}

/// Bakes what fits `outer`, whose files are here. `told`: this host was not looked at yet.
fn bake(
    context: &Context,
    outer: &World,
    wait: Duration,
    look: bool,
    say: &mut dyn FnMut(&str),
) -> Result<(), CliError> {
    let _lock = take_turn(context, wait, say)?;
    if !look && outer.fitting()?.is_some() {
        // Whoever was waited for has baked it.
        return Ok(());
    }
    let mut cluster = cluster(context, Some(outer));
    own_definition(&cluster, outer)?;
    clear(context, cluster.clone())?;
    cluster.network = free_network(context, outer)?;
    cluster.nodes[0].ip = address(&cluster.network);
    let done = once(context, cluster.clone(), VerbName::Bake, look, say);
    // Also where the user has ended it: it takes a moment, and nobody would use what is left.
    let own = Context { cancel: Cancel::new(), ..context.clone() };
    let cleared = destroy(&own, cluster);
    done?;
    cleared?;
    Ok(steps::bake::keep(outer)?)
}

/// A cluster of one machine with the same box and the same k3s.
fn cluster(context: &Context, outer: Option<&World>) -> Cluster {
    let base = context.dirs().baking();
    let id = hash::hex(&hash::parts([base.as_os_str().as_bytes()])[..4]);
    let plain = || spec::parse(LEAST, std::path::Path::new("baking")).expect("a whole spec").cluster;
    let mut cluster = outer.map_or_else(plain, |world| world.cluster.clone());
    if let Some(version) = outer.and_then(|world| world.seen().here.version.clone()) {
        cluster.k3s.release = Release::Version(version);
    }
    let network = Network { cidr: Ipv4Net::default(), nics: 1 };
    let node = Node { size: Some(SIZE), ..Node::former(NODE.into(), Role::Server, address(&network)) };
    (cluster.k3s.endpoint, cluster.k3s.token) = (None, None);
    cluster.k3s.registries.clear();
    cluster.k3s.env.clear();
    Cluster {
        name: Cluster::baking(&id),
        provider: ProviderChoice::Libvirt,
        engine: EngineChoice::Direct,
        libvirt: Default::default(),
        network,
        // Nothing is lost by it: a bake that a power cut ends begins again.
        disposable: true,
        autostart: false,
        keep: false,
        bake: BakeChoice::Never,
        nodes: vec![node],
        provision: Vec::new(),
        namespaces: Vec::new(),
        manifests: Vec::new(),
        base,
        ..cluster
    }
}

fn address(network: &Network) -> std::net::Ipv4Addr {
    network.cidr.hosts().nth(9).unwrap_or(network.cidr.addr())
}

/// A definition that lies beside the spec lies beside the bake as well.
fn own_definition(cluster: &Cluster, outer: &World) -> Result<(), CliError> {
    let BoxRef::Definition(name) = &cluster.image else { return Ok(()) };
    let of = |base: &std::path::Path| base.join("boxes").join(format!("{name}.yaml"));
    let (from, to) = (of(&outer.cluster.base), of(&cluster.base));
    match files::read_if_there(&from)? {
        Some(text) => {
            files::dir(to.parent().expect("in a folder"))?;
            files::write(&to, text.as_bytes(), 0o644)?;
        }
        None => files::remove_if_there(&to)?,
    }
    Ok(())
}

/// One that nothing of this host has, nor the cluster that the box is for.
fn free_network(context: &Context, outer: &World) -> Result<Network, CliError> {
    let host = context.host(None, false);
    let mut taken: Vec<Ipv4Net> = host.libvirt.networks.iter().filter_map(|n| n.cidr).collect();
    taken.extend(host.routes.iter().map(|r| r.net));
    taken.extend(host.addresses.iter().map(|a| a.address));
    taken.push(outer.cluster.network.cidr);
    let free =
        |cidr: &Ipv4Net| taken.iter().all(|t| !t.contains(&cidr.network()) && !cidr.contains(&t.network()));
    let all = (200..=250).rev().map(|n| [192, 168, n, 0]).chain((16..=31).map(|n| [172, n, 213, 0]));
    let all = all.chain((1..=250).map(|n| [10, 213, n, 0]));
    let mut all = all.filter_map(|net| Ipv4Net::new(net.into(), 24).ok());
    let cidr = all.find(free).ok_or_else(|| {
        let what = "no network is left on this host for the machine that a box is baked of";
        CliError::new(
            code::HOST,
            what,
            "It takes a free /24 in 192.168.0.0/16, 172.16.0.0/12 or 10.213.0.0/16.",
        )
    })?;
    Ok(Network { cidr, nics: 1 })
}

/// Whatever an earlier bake has left goes.
fn clear(context: &Context, cluster: Cluster) -> Result<(), CliError> {
    steps::bake::clear(&context.library())?;
    destroy(context, cluster)
}

/// What is there of the cluster goes.
fn destroy(context: &Context, cluster: Cluster) -> Result<(), CliError> {
    if !StateDir::of(&cluster.base, &cluster.name).exists() {
        return Ok(());
    }
    once(context, cluster, VerbName::Destroy, false, &mut |_| {})
}

/// Runs a verb of the cluster without a screen.
fn once(
    context: &Context,
    cluster: Cluster,
    verb: VerbName,
    look: bool,
    say: &mut dyn FnMut(&str),
) -> Result<(), CliError> {
    let state = StateDir::of(&cluster.base, &cluster.name);
    let _locks = context.lock(&state, kind(), verb.as_str())?;
    let world = context.world(cluster, kind());
    let job = Job {
        verb: Verb::of(verb),
        replace: Vec::new(),
        targets: Vec::new(),
        subject: None,
        retry_of: None,
        deep: false,
    };
    let report = begin(context, &world, &job, look, say)?;
    if !report.success {
        return Err(failed(&report));
    }
    if job.verb.takes_all(&job.targets) {
        state.remove()?;
    }
    Ok(())
}

fn begin(
    context: &Context,
    world: &Arc<World>,
    job: &Job,
    look: bool,
    say: &mut dyn FnMut(&str),
) -> Result<Report, CliError> {
    let silent = &|_: &str| ();
    verbs::open(world, job, None, silent)?;
    let decision = verbs::look(world, job)?;
    if look {
        doctor::must_be_ready(context, world, &[NODE.to_owned()])?;
    }
    let titles = decision.plan.steps.iter().map(|s| (s.info.id.clone(), s.info.title.clone())).collect();
    let heard = Saying { titles, said: RefCell::default(), say: RefCell::new(say) };
    verbs::run(world, job, &decision.plan, Vec::new(), silent, |_| {
        Ok::<_, CliError>(Box::new(heard) as Box<dyn Audience + '_>)
    })
}

/// Passes on what steps do.
struct Saying<'a> {
    titles: BTreeMap<String, String>,
    /// What was said last.
    said: RefCell<String>,
    say: RefCell<Say<'a>>,
}

/// What a bake says it to.
type Say<'a> = &'a mut dyn FnMut(&str);

impl Saying<'_> {
    fn say(&self, text: &str) {
        if *self.said.borrow() != text {
            text.clone_into(&mut self.said.borrow_mut());
            (self.say.borrow_mut())(text);
        }
    }
}

impl Audience for Saying<'_> {
    fn event(&self, event: Event) {
        match event.kind {
            What::StepStarted { step, .. } => self.say(self.titles.get(&step).map_or(&step, |title| title)),
            What::StepProgress { message, .. } | What::StepWarning { message, .. } => self.say(&message),
            _ => {}
        }
    }

    fn note(&self, text: &str) {
        self.say(text);
    }
}

/// The step that failed, told as the bake's.
fn failed(report: &Report) -> CliError {
    if report.interrupted {
        return CliError::new(code::INTERRUPTED, "interrupted", "");
    }
    let failure = report.outcomes.iter().find_map(|(step, outcome)| match outcome {
        Outcome::Failed(failure) => Some((step, failure)),
        _ => None,
    });
    let Some((step, failure)) = failure else {
        return CliError::new(code::FAILED, "not all steps of the bake were run", "");
    };
    let step = step.rsplit('/').next().unwrap_or(step);
    CliError {
        kind: failure.kind.clone(),
        hint: failure.hint.clone(),
        evidence: failure.evidence.clone(),
        ..CliError::new(code::FAILED, format!("no box was baked: {step} failed: {}", failure.cause), "")
    }
}
