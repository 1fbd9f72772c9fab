//! What runs by the spec's manifests, by the cluster's own note of it.

use serde_json::Value;

use crate::access::kubectl::{MANAGER, WRITE, fed, stream};
use crate::access::{Via, World};
use crate::api;
use crate::apps::{self, Inventory, Item, Progress};
use crate::engine::StepError;
use crate::explain::Again;
use crate::observed::Apps;
use crate::os::process::quote;
use crate::spec::Manifest;

/// The note of what was applied.
pub fn inventory(world: &World) -> Result<Inventory, StepError> {
    let Some(map) = world.ask(|api| api.object(&Inventory::path(), &world.cancel))? else {
        return Ok(Inventory::default());
    };
    Inventory::read(&map).map_err(|why| {
        let cause = format!("p1's note in the cluster of what it applied cannot be used: {why}");
        let hint = format!(
            "Without it p1 applies everything again and prunes nothing that left the spec before: \
             p1 kubectl -n kube-system delete configmap {}",
            apps::NAME
        );
        StepError::new(cause, hint)
    })
}

/// Looks at what was applied, by what the cluster notes of it.
pub fn apps_now(world: &World) -> Result<Apps, StepError> {
    let inventory = inventory(world)?;
    let mut apps = Apps::default();
    for item in &inventory.objects {
        let rolls = apps::rolls_out(&item.kind);
        let path = item.path();
        let found = match world.ask(|api| match rolls {
            true => api.object(&path, &world.cancel),
            false => api.metadata(&path, &world.cancel),
        }) {
            // One object that cannot be checked is no reason to do nothing about the others.
            Err(error) if error.again == Again::No => {
                let why = format!("it cannot be checked: {}", error.failure.cause);
                apps.unfinished.push((item.to_string(), why));
                continue;
            }
            found => found.map_err(|error| about(&item.to_string(), error))?,
        };
        match found {
            None if !item.fleeting => {
                apps.missing.push(item.to_string());
                apps.shaken.extend(item.foundation.then(|| item.to_string()));
            }
            Some(object) if rolls => match how_far(world, object)?.0 {
                Progress::Done => {}
                Progress::Waiting(why) | Progress::Failed(why) => {
                    apps.unfinished.push((item.to_string(), why));
                }
            },
            _ => {}
        }
    }
    for owned in &inventory.namespaces {
        let wanted = world.cluster.namespaces.iter().any(|n| n.name == owned.name);
        if wanted {
            if !has_namespace(world, &owned.name)? {
                apps.missing.push(format!("Namespace {}", owned.name));
            }
        } else if owned.made && inventory.digest != apps::digest(&world.cluster) {
            let others = foreign(world, &owned.name, &inventory)?;
            if !others.is_empty() {
                apps.held.insert(owned.name.clone(), others);
            }
        }
    }
    apps.inventory = inventory;
    world.note(|seen| seen.apps = Some(apps.clone()));
    Ok(apps)
}

/// How far an object has come, with the object that says so. Of a chart that is the job that installs it, and then its
/// workloads.
pub fn how_far(world: &World, chart: Value) -> Result<(Progress, Option<Value>), StepError> {
    if chart["kind"] != apps::CHART {
        return Ok((apps::progress(&chart), Some(chart)));
    }
    if let failed @ Progress::Failed(_) = apps::progress(&chart) {
        return Ok((failed, Some(chart)));
    }
    let asked = |path: &str| world.ask(|api| api.object(path, &world.cancel));
    match asked(&apps::chart_job(&chart)) {
        Ok(Some(job)) => match apps::progress(&job) {
            Progress::Done => {}
            Progress::Waiting(why) => return Ok((Progress::Waiting(format!("its job: {why}")), Some(job))),
            Progress::Failed(why) => return Ok((Progress::Failed(format!("its job: {why}")), Some(job))),
        },
        // Somebody has taken the job away since.
        Ok(None) if chart["status"]["jobName"].is_string() => {}
        Ok(None) => return Ok((Progress::Waiting("its job has not begun".to_owned()), Some(chart))),
        Err(error) if !error.cancelled() => return Ok((Progress::Waiting(error.failure.cause), Some(chart))),
        Err(error) => return Err(error),
    }
    for list in apps::chart_lists(&chart) {
        let all = match world.ask(|api| api.items(&list, &world.cancel)) {
            Ok(all) => all,
            Err(error) if !error.cancelled() => {
                return Ok((Progress::Waiting(error.failure.cause), Some(chart)));
            }
            Err(error) => return Err(error),
        };
        for object in all.into_iter().filter(|o| apps::is_of_chart(o, &chart)) {
            // Of a list the API leaves out what its objects are.
            let mut object = object;
            if object["kind"].is_null() {
                object["kind"] = kind_of(&list).into();
            }
            let name = object["metadata"]["name"].as_str().unwrap_or_default().to_owned();
            let told = |why: String| format!("{} {name}: {why}", kind_of(&list));
            match apps::progress(&object) {
                Progress::Done => {}
                Progress::Waiting(why) => return Ok((Progress::Waiting(told(why)), Some(object))),
                Progress::Failed(why) => return Ok((Progress::Failed(told(why)), Some(object))),
            }
        }
    }
    Ok((Progress::Done, Some(chart)))
}

fn kind_of(list: &str) -> &'static str {
    match list.rsplit('/').next() {
        Some("deployments") => "Deployment",
        Some("statefulsets") => "StatefulSet",
        _ => "DaemonSet",
    }
}

/// Which of the applied objects are not as the manifests say: `kubectl diff` on a server. Only names
/// come out of it. What cannot be compared, such as an object of a kind that is gone, counts as
/// the same: applying tells more of it.
pub fn differing(world: &World) -> Result<Vec<String>, StepError> {
    let mut found = Vec::new();
    for manifest in world.cluster.manifests.iter().filter(|m| !m.kustomize) {
        let documents = manifest.documents().map_err(|flaw| changed(manifest, &flaw.message))?;
        let place = manifest.namespace.as_ref().map_or(String::new(), |n| format!(" -n {}", quote(n)));
        let diff = format!(
            "k3s kubectl diff --server-side --force-conflicts --field-manager={MANAGER}{place} -f - 2>/dev/null"
        );
        // 1 means that there are differences (kubernetes.io/docs/reference/kubectl/generated/kubectl_diff).
        let script = fed(&diff, &stream(documents.iter().map(|d| &d.text)));
        let done = world.on(world.server(Via::Any)?, |r| {
            r.script("comparing the manifests", &script, true, WRITE, &mut |_| {})
        })?;
        found.extend(done.text().lines().filter_map(diffed));
    }
    Ok(found)
}

/// What is in a namespace that p1 did not apply, without what the cluster puts into each and what
/// belongs to other objects.
pub fn foreign(world: &World, namespace: &str, inventory: &Inventory) -> Result<Vec<String>, StepError> {
    let mut found = Vec::new();
    for version in world.ask(|api| api.versions(&world.cancel))? {
        if version.starts_with("metrics.k8s.io/") {
            continue;
        }
        let kinds = match world.ask(|api| api.kinds(&version, &world.cancel)) {
            Ok(kinds) => kinds,
            // Another program serves these, and it is down: what it has there is not known.
            Err(error) if !error.cancelled() && version.contains('.') => {
                found.push(format!("what {version} has there ({})", error.failure.cause));
                continue;
            }
            Err(error) => return Err(error),
        };
        for kind in kinds.into_iter().filter(|k| k.namespaced && k.listed) {
            if matches!(kind.kind.as_str(), "Event" | "Endpoints" | "EndpointSlice" | "Lease") {
                continue;
            }
            let place = apps::segment(namespace);
            let list = format!("/{}/namespaces/{place}/{}", api::prefix(&version), kind.plural);
            for object in world.ask(|api| api.names(&list, &world.cancel))? {
                let meta = &object["metadata"];
                let item = Item {
                    api_version: version.clone(),
                    kind: kind.kind.clone(),
                    namespace: Some(namespace.to_owned()),
                    name: meta["name"].as_str().unwrap_or_default().to_owned(),
                    ..Item::default()
                };
                let account = !meta["annotations"]["kubernetes.io/service-account.name"].is_null();
                let usual = match item.kind.as_str() {
                    "ServiceAccount" => item.name == "default",
                    "ConfigMap" => item.name == "kube-root-ca.crt",
                    "Secret" => account,
                    _ => false,
                };
                let owned = meta["ownerReferences"].as_array().is_some_and(|o| !o.is_empty());
                if !usual && !owned && !inventory.objects.iter().any(|i| i.is(&item)) {
                    found.push(item.to_string());
                }
            }
        }
    }
    Ok(found)
}

/// Whether the cluster has a namespace of that name.
pub fn has_namespace(world: &World, name: &str) -> Result<bool, StepError> {
    let path = format!("/api/v1/namespaces/{}", apps::segment(name));
    let found = world.ask(|api| api.metadata(&path, &world.cancel));
    Ok(found.map_err(|error| about(&format!("Namespace {name}"), error))?.is_some())
}

/// An error with which object it is about.
pub fn about(object: &str, mut error: StepError) -> StepError {
    error.failure.cause = format!("asking for {object}: {}", error.failure.cause);
    error
}

/// The object of a line `diff -u -N /tmp/LIVE-1/apps.v1.Deployment.web.nginx /tmp/MERGED-2/...`.
fn diffed(line: &str) -> Option<String> {
    // A name may have spaces; no part of it has a slash.
    let file = line.strip_prefix("diff ")?.rsplit_once('/')?.1;
    // GROUP.VERSION.KIND.NAMESPACE.NAME: the group may have dots, and so may the name; a kind begins
    // with a capital letter, and no other part has one.
    let start = file.split('.').position(|part| part.starts_with(|c: char| c.is_ascii_uppercase()))?;
    let parts: Vec<&str> = file.split('.').skip(start).collect();
    match parts.as_slice() {
        [kind, "", name @ ..] => Some(format!("{kind} {}", name.join("."))),
        [kind, namespace, name @ ..] => Some(format!("{kind} {namespace}/{}", name.join("."))),
        _ => None,
    }
}

/// Of a manifest that is no longer what it was when the spec was read.
pub fn changed(manifest: &Manifest, how: &str) -> StepError {
    let cause = format!("`{}` changed while p1 was at work: {how}", manifest.shown);
    StepError::new(cause, "`p1 validate` looks at it again.")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_difference_is_known_by_its_object() {
        let line = |name: &str| diffed(&format!("diff -u -N /tmp/LIVE-12/{name} /tmp/MERGED-34/{name}"));
        assert_eq!(line("apps.v1.Deployment.web.nginx").unwrap(), "Deployment web/nginx");
        assert_eq!(line("v1.Namespace..web").unwrap(), "Namespace web");
        assert_eq!(line("helm.cattle.io.v1.HelmChart.kube-system.a.b").unwrap(), "HelmChart kube-system/a.b");
        assert_eq!(line("rbac.authorization.k8s.io.v1.ClusterRole..my role").unwrap(), "ClusterRole my role");
        assert_eq!(diffed("+  password: x"), None);
    }
}
