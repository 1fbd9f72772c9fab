//! Commands of the spec on this host: before and after an `up` or a `destroy`, every time, and once when the cluster is up.

use std::path::Path;

use serde_json::{Value, json};

use super::{ClusterDef, Ctx, Step};
use crate::access::World;
use crate::engine::StepError;
use crate::explain::FailureKind;
use crate::observe::made_from;
use crate::observed::{View, holds};
use crate::os::files::{self, At};
use crate::os::process::{self, Cmd};
use crate::plan::{After, Check, ClusterStep, NodeStep};
use crate::spec::{Cluster, Provisioner, Slot, hide};

pub const BEFORE_UP: Step = Step::Cluster(ClusterDef {
    name: ClusterStep::BeforeUp,
    title: "run this host's commands before up",
    after: &[],
    on_demand: false,
    needs: None,
    retry: true,
    check: every_time,
    inputs: |cluster| inputs(cluster, Slot::BeforeUp),
    apply: |ctx| run(ctx, Slot::BeforeUp),
});

/// When all nodes are Ready; once for each cluster.
pub const AFTER_CLUSTER: Step = Step::Cluster(ClusterDef {
    name: ClusterStep::AfterCluster,
    title: "run this host's commands for the cluster",
    after: &[
        After::Cluster(ClusterStep::Kubeconfig),
        After::Node(NodeStep::Ready),
        After::Provisioners(Slot::AfterK3s),
        After::Provisioners(Slot::AfterCluster),
        After::Cluster(ClusterStep::Rollouts),
    ],
    on_demand: false,
    needs: None,
    retry: true,
    check: once,
    inputs: |cluster| inputs(cluster, Slot::AfterCluster),
    apply: |ctx| run(ctx, Slot::AfterCluster),
});

pub const AFTER_UP: Step = Step::Cluster(ClusterDef {
    name: ClusterStep::AfterUp,
    title: "run this host's commands after up",
    after: &[],
    on_demand: false,
    needs: None,
    retry: true,
    check: every_time,
    inputs: |cluster| inputs(cluster, Slot::AfterUp),
    apply: |ctx| run(ctx, Slot::AfterUp),
});

pub const BEFORE_DESTROY: Step = Step::Cluster(ClusterDef {
    name: ClusterStep::BeforeDestroy,
    title: "run this host's commands before destroy",
    after: &[],
    on_demand: false,
    needs: None,
    retry: true,
    check: every_time,
    inputs: |cluster| inputs(cluster, Slot::BeforeDestroy),
    apply: |ctx| run(ctx, Slot::BeforeDestroy),
});

pub const AFTER_DESTROY: Step = Step::Cluster(ClusterDef {
    name: ClusterStep::AfterDestroy,
    title: "run this host's commands after destroy",
    after: &[],
    on_demand: false,
    needs: None,
    retry: true,
    check: every_time,
    inputs: |cluster| inputs(cluster, Slot::AfterDestroy),
    apply: |ctx| run(ctx, Slot::AfterDestroy),
});

fn every_time(_: &View<'_>) -> Check {
    Check::Needed("it runs every time".into())
}

fn once(view: &View<'_>) -> Check {
    if !view.seen.request.whole {
        return Check::Done("it is for a run of all nodes".into());
    }
    let noted = |one: &&Provisioner| match view.seen.here.provision.get(&one.name) {
        Some(Ok(made)) => view.seen.here.ran.get(&one.name) == Some(&made.noted),
        _ => false,
    };
    let due: Vec<&str> = view
        .cluster
        .on_this_host(Slot::AfterCluster)
        .filter(|one| !noted(one))
        .map(|one| one.name.as_str())
        .collect();
    let wrong = (!due.is_empty()).then(|| format!("not run yet as it is now: {}", due.join(", ")));
    holds("it was run as it is now", wrong)
}

fn inputs(cluster: &Cluster, slot: Slot) -> Value {
    let one = |one: &Provisioner| {
        let mut bare = one.clone();
        hide(&mut bare, &cluster.secrets);
        json!([bare.name, bare.portable(&cluster.base)])
    };
    cluster.on_this_host(slot).map(one).collect()
}

/// One after the other, in the order of the spec; the first that fails ends it.
fn run(ctx: &Ctx<'_>, slot: Slot) -> Result<Option<String>, StepError> {
    let world = ctx.world;
    let mut ran = Vec::new();
    for one in world.cluster.on_this_host(slot) {
        let made = made_from(world, one)?.noted;
        if slot == Slot::AfterCluster && world.state.facts()?.ran.get(&one.name) == Some(&made) {
            continue;
        }
        ctx.control.says(&one.name);
        ctx.control.log(&format!("{}:", one.name));
        command(ctx, one)?;
        if slot == Slot::AfterCluster {
            let mut facts = world.state.facts()?;
            facts.ran.insert(one.name.clone(), made.clone());
            world.state.keep(&facts)?;
            world.note(|seen| _ = seen.here.ran.insert(one.name.clone(), made));
        }
        ran.push(one.name.as_str());
    }
    Ok(Some(ran.join(", ")).filter(|text| !text.is_empty()))
}

fn command(ctx: &Ctx<'_>, one: &Provisioner) -> Result<(), StepError> {
    let world = ctx.world;
    let bound = world.cluster.timeouts.provision;
    let (_kept, cmd) = called(world, one)?;
    let heard = &mut |_, line: &str| {
        ctx.control.log(line);
        if !line.trim().is_empty() {
            ctx.control.says(line);
        }
    };
    let done = process::watch(&with_surroundings(world, cmd, one)?, bound, ctx.control.cancel(), heard)?;
    match done.status.code() {
        Some(0) => Ok(()),
        code => {
            let (kind, how) = match code {
                Some(code) => (FailureKind::Exit { code }, format!("exited with {code}")),
                None => (FailureKind::Other, "was ended by a signal".to_owned()),
            };
            let lines = process::tail(&format!("{}{}", done.stdout, done.stderr), 12);
            Err(StepError::new(format!("{} {how}", one.name), "").kind(kind).evidence(lines).transient())
        }
    }
}

/// The call, and the file of a script that the spec itself has: in no list of processes.
fn called(world: &World, one: &Provisioner) -> Result<(Option<tempfile::TempPath>, Cmd), StepError> {
    let args = one.settings.get("args").and_then(Value::as_array).into_iter().flatten();
    let args: Vec<&str> = args.filter_map(Value::as_str).collect();
    let (kept, script) = match one.text("path") {
        Some(path) => (None, Path::new(path).to_owned()),
        None => {
            let dir = world.state.dir();
            let file = tempfile::NamedTempFile::new_in(dir).at("write", dir)?.into_temp_path();
            files::write(&file, one.text("inline").unwrap_or_default().as_bytes(), 0o700)?;
            let path = file.to_path_buf();
            (Some(file), path)
        }
    };
    let script = std::path::absolute(&script).at("read", &script)?;
    // One that names its interpreter is run by it, whether it may be executed or not.
    let text = files::read(&script, files::MAX_BYTES)?;
    let first = String::from_utf8_lossy(text.split(|b| *b == b'\n').next().unwrap_or_default()).into_owned();
    let mut words = first.strip_prefix("#!").unwrap_or("/bin/sh").split_whitespace();
    let interpreter = words.next().unwrap_or("/bin/sh").to_owned();
    Ok((kept, Cmd::new(interpreter).args(words).arg(&script).args(args)))
}

/// Where it runs, and what it finds in its environment.
fn with_surroundings(world: &World, cmd: Cmd, one: &Provisioner) -> Result<Cmd, StepError> {
    let absolute = |path: &Path| std::path::absolute(path).at("read", path);
    let cluster = &world.cluster;
    let names: Vec<&str> = cluster.nodes.iter().map(|n| n.name.as_str()).collect();
    let mut cmd = cmd
        .cwd(absolute(&cluster.base)?)
        .env("KUBECONFIG", absolute(&world.state.kubeconfig())?)
        .env("P1_CLUSTER", &cluster.name)
        .env("P1_STATE", absolute(world.state.dir())?)
        .env("P1_NODES", names.join(" "))
        .env("P1_SERVER", cluster.first_server().ip.to_string())
        .env("P1_API", world.api_url(cluster.first_server()));
    for (name, value) in one.env() {
        cmd = cmd.env(name, value);
    }
    Ok(cmd)
}
