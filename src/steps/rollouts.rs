//! What was applied runs: Deployments, StatefulSets, DaemonSets, Jobs and pods, as they themselves say.

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::{Value, json};

use super::manifests::{and_more, unseen};
use super::view::holds;
use super::wait::{Patience, wait_for};
use super::{Ctx, Definition, View, World};
use crate::api::Client;
use crate::apps::{self, Inventory, Item, Progress, Secrets};
use crate::engine::Trouble;
use crate::explain::seconds;
use crate::plan::{After, Check, Scope, Shape};
use crate::spec::{Cluster, Node};

pub const STEP: Definition = Definition {
    shape: Shape {
        name: "rollouts",
        title: "await the rollouts",
        scope: Scope::Cluster,
        after: &[After::Cluster("manifests")],
        serves: false,
    },
    retry: false,
    check,
    inputs,
    apply,
};

/// Of so many pods the trouble is told, with so many lines of a container's log.
const SHOWN: usize = 3;
const LINES: u32 = 6;

fn check(view: &View<'_>, _: Option<&Node>) -> Check {
    let Some(apps) = &view.seen.apps else { return unseen(view) };
    if apps.inventory == Inventory::default() && view.cluster.manifests.is_empty() {
        return Check::Done("the spec has none".into());
    }
    if (super::manifests::STEP.check)(view, None).may_run() {
        return match view.cluster.manifests.is_empty() {
            true => Check::Done("the spec has none".into()),
            false => Check::Unknown("looked at when they are applied".into()),
        };
    }
    let first = apps.unfinished.first();
    let wrong = first.map(|(object, why)| and_more(format!("{object}: {why}"), apps.unfinished.len()));
    holds("all that was applied runs", wrong)
}

fn inputs(cluster: &Cluster, _: Option<&Node>) -> Value {
    json!(apps::digest(cluster))
}

fn apply(ctx: &Ctx<'_>) -> Result<Option<String>, Trouble> {
    let world = ctx.world;
    let bound = world.cluster.timeouts.rollout;
    let api = world.api()?;
    let inventory = world.inventory(&api)?;
    let mut open: Vec<Item> = inventory.objects.into_iter().filter(|i| apps::rolls_out(&i.kind)).collect();
    let all = open.len();
    let mut why = BTreeMap::new();
    let patience = Patience { every: Duration::from_secs(1), ..Patience::of(bound) };
    let run = wait_for(ctx, patience, || {
        why.clear();
        let mut failed = false;
        for item in std::mem::take(&mut open) {
            let (progress, object) = match api.object(&item.path(), &world.cancel) {
                Ok(Some(object)) => (apps::progress(&object), Some(object)),
                Ok(None) if item.fleeting => (Progress::Done, None),
                Ok(None) => (Progress::Failed("it was deleted".into()), None),
                // The API may be away for a while, such as when a server is restarted.
                Err(error) if !crate::explain::Explain::cancelled(&error) => {
                    (Progress::Waiting(error.to_string()), None)
                }
                Err(error) => return Err(error.into()),
            };
            failed |= matches!(progress, Progress::Failed(_));
            if let Progress::Waiting(text) | Progress::Failed(text) = progress {
                why.insert(item.to_string(), (text, object));
                open.push(item);
            }
        }
        if failed {
            return Err(explained(ctx, &api, &why, None));
        }
        let first = why.first_key_value().map(|(object, (text, _))| format!("{object}: {text}"));
        Ok(first.map_or(Ok(()), |first| Err(and_more(first, why.len()))))
    })?;
    if run.is_err() {
        return Err(explained(ctx, &api, &why, Some(bound)));
    }
    world.look_at_apps()?;
    Ok((all > 0).then(|| format!("{all} running")))
}

/// Why rollouts did not end: by the pods' own word, the events, and the last lines of a container
/// that crashed.
fn explained(
    ctx: &Ctx<'_>,
    api: &Client,
    why: &BTreeMap<String, (String, Option<Value>)>,
    late: Option<Duration>,
) -> Trouble {
    let world = ctx.world;
    let secrets = Secrets::of(
        &world.cluster.manifests.iter().filter_map(|m| m.documents().ok()).flatten().collect::<Vec<_>>(),
    );
    let mut evidence = Vec::new();
    let mut cause = None;
    let mut hint =
        "See `p1 kubectl get pods -A` and `p1 kubectl describe`; when it is mended, `p1 retry`.".to_owned();
    for (name, (text, object)) in why {
        evidence.push(format!("{name}: {text}"));
        let Some(object) = object else { continue };
        let found = look_at_pods(world, api, object);
        evidence.extend(found.lines);
        if cause.is_none()
            && let Some(first) = found.cause
        {
            if let Some(better) = remedy(&first) {
                hint = better.to_owned();
            }
            cause = Some(format!("{name}: {first}"));
        }
    }
    let first = why.first_key_value().map(|(name, (text, _))| format!("{name}: {text}")).unwrap_or_default();
    let cause = and_more(cause.unwrap_or(first), why.len());
    let cause = match late {
        Some(bound) => format!("not running within {}: {cause}", seconds(bound)),
        None => cause,
    };
    evidence.truncate(16);
    let hidden = evidence.iter().map(|line| secrets.hide(line)).collect();
    Trouble::new(secrets.hide(&cause), hint).evidence(hidden)
}

/// What to do about causes that everybody meets.
fn remedy(cause: &str) -> Option<&'static str> {
    let has = |words: &[&str]| words.iter().any(|w| cause.contains(w));
    Some(if has(&["ImagePullBackOff", "ErrImagePull", "InvalidImageName", "ErrImageNeverPull"]) {
        "Is the image's name right, and can the nodes reach its registry? Offline, give it under `k3s.artifacts.images`."
    } else if has(&["no node takes it"]) {
        "Give the nodes more room, take labels and taints away that keep it off, or ask for less in its `resources`."
    } else if has(&["CrashLoopBackOff", "exit code"]) {
        "The container ends by itself; its last lines are above, all of them with `p1 kubectl logs --previous`."
    } else if has(&["memory limit"]) {
        "Raise `resources.limits.memory` of the container."
    } else if has(&["exceeded quota"]) {
        "Raise the namespace's ResourceQuota, or ask for less."
    } else {
        return None;
    })
}

/// What keeps the pods of a workload.
#[derive(Default)]
pub(super) struct Found {
    pub cause: Option<String>,
    pub lines: Vec<String>,
}

/// Asks the API about the pods of a workload.
pub(super) fn look_at_pods(world: &World, api: &Client, object: &Value) -> Found {
    let mut found = Found::default();
    let meta = &object["metadata"];
    let (Some(namespace), Some(name)) = (meta["namespace"].as_str(), meta["name"].as_str()) else {
        return found;
    };
    let list = format!("/api/v1/namespaces/{namespace}/pods");
    let pods = match (object["kind"] == "Pod", apps::selector(object)) {
        (true, _) => vec![object.clone()],
        (_, Some(selector)) => {
            api.items(&format!("{list}?labelSelector={selector}"), &world.cancel).unwrap_or_default()
        }
        _ => Vec::new(),
    };
    let mut names = vec![name.to_owned()];
    for (pod, trouble) in pods.iter().filter_map(|p| Some((p, apps::trouble(p)?))).take(SHOWN) {
        let pod_name = pod["metadata"]["name"].as_str().unwrap_or_default();
        found.lines.push(trouble.text.clone());
        found.cause.get_or_insert_with(|| trouble.text.clone());
        if let Some(container) = &trouble.container {
            let log = api.log(namespace, pod_name, container, trouble.crashed, LINES, &world.cancel);
            found.lines.extend(log.iter().flat_map(|l| l.lines()).map(|l| format!("{container} | {l}")));
        }
    }
    names.extend(pods.iter().filter_map(|p| p["metadata"]["name"].as_str()).map(str::to_owned));
    // A ReplicaSet's name begins with its Deployment's; a quota's refusal is told of it alone.
    let ours = |object: &str| {
        let (kind, called) = object.split_once('/').unwrap_or_default();
        names.iter().any(|n| n == called) || kind == "ReplicaSet" && called.starts_with(&format!("{name}-"))
    };
    let events = api.warnings_in(namespace, 100, &world.cancel).unwrap_or_default();
    let mut told: Vec<String> = events
        .iter()
        .filter(|e| ours(&e.object))
        .map(|e| format!("event: {} {}: {}", e.object, e.reason, e.message))
        .collect();
    if found.cause.is_none() {
        found.cause =
            events.iter().rev().find(|e| ours(&e.object)).map(|e| format!("{}: {}", e.reason, e.message));
    }
    told.dedup();
    found.lines.extend(told.split_off(told.len().saturating_sub(SHOWN)));
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::tests::cluster;
    use crate::steps::Seen;
    use crate::steps::manifests::Apps;

    #[test]
    fn what_does_not_run_is_due_and_named() {
        let mut cluster = cluster(0);
        cluster.manifests.push(crate::spec::Manifest {
            shown: "web.yaml".into(),
            path: "/web.yaml".into(),
            namespace: None,
            kustomize: false,
            files: vec![],
            root: "/".into(),
            digest: "d".into(),
        });
        let inventory = Inventory {
            digest: apps::digest(&cluster),
            objects: vec![Item::default()],
            ..Default::default()
        };
        let look = |apps: Option<Apps>| check(&View::new(&cluster, &Seen { apps, ..Seen::default() }), None);
        let good = Apps { inventory: inventory.clone(), ..Apps::default() };
        assert_eq!(look(Some(good.clone())), Check::Done("all that was applied runs".into()));
        let unfinished = vec![("Deployment web".to_owned(), "2 of 3 pods are available".to_owned())];
        let late = Apps { unfinished, ..good.clone() };
        assert_eq!(look(Some(late)), Check::Needed("Deployment web: 2 of 3 pods are available".into()));
        let other = Apps { inventory: Inventory { digest: "other".into(), ..inventory }, ..Apps::default() };
        assert!(matches!(look(Some(other)), Check::Unknown(_)));
        assert!(matches!(look(None), Check::Needed(_)));
    }
}
