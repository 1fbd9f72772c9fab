//! Waiting until workloads run, and what keeps them.

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::Value;

use super::wait::{Patience, wait_for};
use crate::access::World;
use crate::api::Client;
use crate::apps::{self, Item, Progress, Secrets, Why};
use crate::engine::StepError;
use crate::explain::{FailureKind, seconds};
use crate::observe::apps::how_far;
use crate::observed::applied::and_more;
use crate::steps::Ctx;

/// Of so many pods the problem is told, with so many lines of a container's log.
const SHOWN: usize = 3;

const LINES: u32 = 6;

/// Waits until these run; how many of them there are.
pub fn await_all(ctx: &Ctx<'_>, items: &[Item], bound: Duration) -> Result<usize, StepError> {
    let world = ctx.world;
    let mut open: Vec<Item> = items.iter().filter(|i| apps::rolls_out(&i.kind)).cloned().collect();
    let all = open.len();
    let mut why = BTreeMap::new();
    let patience = Patience { every: Duration::from_secs(1), ..Patience::of(bound) };
    let run = wait_for(ctx, patience, || {
        why.clear();
        let mut failed = false;
        for item in std::mem::take(&mut open) {
            let path = item.path();
            let (progress, object) = match world.ask(|api| api.object(&path, &world.cancel)) {
                Ok(Some(object)) => how_far(world, object)?,
                Ok(None) if item.fleeting => (Progress::Done, None),
                Ok(None) => (Progress::Failed("it was deleted".into()), None),
                // The API may be away for a while, such as when a server is restarted.
                Err(error) if !error.cancelled() => (Progress::Waiting(error.failure.cause), None),
                Err(error) => return Err(error),
            };
            failed |= matches!(progress, Progress::Failed(_));
            if let Progress::Waiting(text) | Progress::Failed(text) = progress {
                why.insert(item.to_string(), (text, object));
                open.push(item);
            }
        }
        if failed {
            return Err(explained(ctx, &why, None));
        }
        let first = why.first_key_value().map(|(object, (text, _))| format!("{object}: {text}"));
        Ok(first.map_or(Ok(()), |first| Err(and_more(first, why.len()))))
    })?;
    if run.is_err() {
        return Err(explained(ctx, &why, Some(bound)));
    }
    Ok(all)
}

/// Why rollouts did not end: by the pods' own word, the events, and the last lines of a container
/// that crashed.
fn explained(
    ctx: &Ctx<'_>,
    why: &BTreeMap<String, (String, Option<Value>)>,
    late: Option<Duration>,
) -> StepError {
    let world = ctx.world;
    let secrets = Secrets::of(
        &world.cluster.manifests.iter().filter_map(|m| m.documents().ok()).flatten().collect::<Vec<_>>(),
    );
    let mut evidence = Vec::new();
    let mut cause = None;
    let mut hint = None;
    for (name, (text, object)) in why {
        evidence.push(format!("{name}: {text}"));
        let Some(object) = object else { continue };
        let found = look_at_pods(world, object);
        let remedy = found.remedy();
        evidence.extend(found.lines);
        if cause.is_none()
            && let Some(first) = found.cause
        {
            hint = remedy;
            cause = Some(format!("{name}: {first}"));
        }
    }
    let first = why.first_key_value().map(|(name, (text, _))| format!("{name}: {text}")).unwrap_or_default();
    let cause = and_more(cause.unwrap_or(first), why.len());
    let cause = match late {
        Some(bound) => format!("not running within {}: {cause}", seconds(bound)),
        None => cause,
    };
    let hint = hint.unwrap_or_else(|| {
        let named = why.first_key_value().and_then(|(_, (_, object))| {
            let object = object.as_ref()?;
            let meta = &object["metadata"];
            let (space, name) = (meta["namespace"].as_str()?, meta["name"].as_str()?);
            let kind = object["kind"].as_str()?.to_lowercase();
            Some(format!("`p1 kubectl -n {space} describe {kind} {name}` tells more"))
        });
        let named = named.unwrap_or_else(|| "`p1 kubectl get pods -A` tells more".to_owned());
        format!("{named}; when it is fixed, `p1 retry`.")
    });
    evidence.truncate(16);
    let hidden = evidence.iter().map(|line| secrets.hide(line)).collect();
    let kind = late.map_or(FailureKind::Refused, FailureKind::bound);
    StepError::new(secrets.hide(&cause), hint).kind(kind).evidence(hidden)
}

/// What keeps the pods of a workload.
#[derive(Default)]
pub struct Found {
    pub cause: Option<String>,
    /// Of which kind the cause is.
    pub why: Why,
    /// Where the pod is that it is told of: namespace, name, container, and whether the log before is meant.
    log: Option<(String, String, String, bool)>,
    /// The image of that pod's container.
    image: Option<String>,
    pub lines: Vec<String>,
}

impl Found {
    /// The command that shows all that the container said.
    pub fn whole_log(&self) -> Option<String> {
        let (space, pod, container, before) = self.log.as_ref()?;
        let before = if *before { " --previous" } else { "" };
        Some(format!("`p1 kubectl -n {space} logs {pod} -c {container}{before}`"))
    }

    /// What to do about causes that everybody meets.
    fn remedy(&self) -> Option<String> {
        let image = self.image.as_deref().unwrap_or("the image");
        let log = || self.whole_log().map_or(String::new(), |log| format!(" {log} has all that it said."));
        Some(match self.why {
            Why::Image => {
                "Is the image's name right, and can the nodes reach its registry? Offline, give it under \
                           `k3s.artifacts.images`."
                    .to_owned()
            }
            Why::Room => {
                "Give the nodes more room, take labels and taints away that keep it off, or ask for less in \
                          its `resources`."
                    .to_owned()
            }
            Why::Crashes => format!(
                "The container ends by itself: waiting does not help. Look at what {image} wants of its user, \
                 command, volumes and environment in the manifest, or take another image.{}",
                log()
            ),
            Why::Ended => format!("The container ended by itself.{}", log()),
            Why::Memory => "Raise `resources.limits.memory` of the container.".to_owned(),
            Why::Quota => "Raise the namespace's ResourceQuota, or ask for less.".to_owned(),
            Why::Begins | Why::Runs | Why::Other => return None,
        })
    }
}

/// Asks the API about the pods of a workload.
pub fn look_at_pods(world: &World, object: &Value) -> Found {
    let mut found = Found::default();
    let meta = &object["metadata"];
    let (Some(namespace), Some(name)) = (meta["namespace"].as_str(), meta["name"].as_str()) else {
        return found;
    };
    let list = format!("/api/v1/namespaces/{namespace}/pods");
    let pods = match (object["kind"] == "Pod", apps::selector(object)) {
        (true, _) => vec![object.clone()],
        (_, Some(selector)) => {
            let list = format!("{list}?labelSelector={selector}");
            world.ask(|api| api.items(&list, &world.cancel)).unwrap_or_default()
        }
        _ => Vec::new(),
    };
    let mut names = vec![name.to_owned()];
    for (pod, problem) in pods.iter().filter_map(|p| Some((p, apps::pod_problem(p)?))).take(SHOWN) {
        let pod_name = pod["metadata"]["name"].as_str().unwrap_or_default();
        let first = found.cause.is_none();
        let mut cause = problem.text.clone();
        found.lines.push(problem.text.clone());
        if let Some(container) = &problem.container {
            let ask = |before| {
                let log =
                    |api: &Client| api.log(namespace, pod_name, container, before, LINES, &world.cancel);
                world.ask(log).unwrap_or_default()
            };
            let log = ask(problem.crashed);
            found.lines.extend(log.lines().map(|l| format!("{namespace}/{pod_name} {container} | {l}")));
            let last = log.lines().rev().map(str::trim).find(|l| !l.is_empty());
            if problem.why == Why::Crashes {
                let place = &problem.place;
                cause = match last {
                    Some(last) => format!("{place}: container {container} keeps crashing: {last}"),
                    None => format!("{cause}, again and again, and says nothing"),
                };
            }
            if first {
                found.log =
                    Some((namespace.to_owned(), pod_name.to_owned(), container.clone(), problem.crashed));
                let of = |c: &&Value| c["name"] == container.as_str();
                let all = ["containers", "initContainers"];
                let mut all = all.iter().flat_map(|key| pod["spec"][*key].as_array().into_iter().flatten());
                found.image = all.find(of).and_then(|c| c["image"].as_str()).map(str::to_owned);
            }
        }
        if first {
            (found.cause, found.why) = (Some(cause), problem.why);
        }
    }
    names.extend(pods.iter().filter_map(|p| p["metadata"]["name"].as_str()).map(str::to_owned));
    // A ReplicaSet's name begins with its Deployment's; a quota's refusal is told of it alone.
    let ours = |object: &str| {
        let (kind, called) = object.split_once('/').unwrap_or_default();
        names.iter().any(|n| n == called) || kind == "ReplicaSet" && called.starts_with(&format!("{name}-"))
    };
    let events = world.ask(|api| api.warnings_in(namespace, 100, &world.cancel)).unwrap_or_default();
    let mut told: Vec<String> = events
        .iter()
        .filter(|e| ours(&e.object))
        .map(|e| format!("event: {} {}: {}", e.object, e.reason, e.message))
        .collect();
    if found.cause.is_none() {
        let last = events.iter().rev().find(|e| ours(&e.object));
        found.why = last.map_or(Why::Other, |e| apps::refused(&e.message));
        found.cause = last.map(|e| format!("{}: {}", e.reason, e.message));
    }
    told.dedup();
    found.lines.extend(told.split_off(told.len().saturating_sub(SHOWN)));
    found
}
