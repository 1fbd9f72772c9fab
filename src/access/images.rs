//! The images of a cluster: which its pods have, what a node has of them, and archives of what this host keeps.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use serde_json::Value;

use super::World;
use crate::engine::StepError;
use crate::images::{Digest, Image, Packed, full};
use crate::k3s::{self, images::Listed};
use crate::observed::Wanted;
use crate::os::sync::lock;
use crate::spec::Node;

/// A server's API port opens within so long, or its pods are not asked for.
const KNOCK: Duration = Duration::from_secs(1);
/// What happened within so long is in the API's events, and clocks may differ.
const REPORTED: SignedDuration = SignedDuration::from_mins(50);

/// What was found of them in this run.
#[derive(Default)]
pub(super) struct Held {
    pods: Mutex<Option<Option<Arc<Pods>>>>,
    packed: Mutex<BTreeMap<String, Option<Arc<Packed>>>>,
    fetching: Mutex<()>,
}

/// The images of the pods that there are.
#[derive(Debug, Default, PartialEq)]
pub struct Pods {
    /// By node: the images that its pods run, as far as they do.
    pub runs: BTreeMap<String, BTreeSet<Digest>>,
    /// Those that are asked for at every start of a pod.
    pub always: BTreeSet<String>,
    /// When the oldest of them was made.
    pub since: Option<Timestamp>,
}

impl Pods {
    fn of(items: &[Value]) -> Self {
        // Of one whose age is not told nothing follows.
        let made = |pod: &Value| {
            let at = pod["metadata"]["creationTimestamp"].as_str();
            at.and_then(|at| at.parse().ok()).unwrap_or(Timestamp::UNIX_EPOCH)
        };
        let mut pods = Self { since: items.iter().map(made).min(), ..Self::default() };
        for pod in items {
            let runs =
                pods.runs.entry(pod["spec"]["nodeName"].as_str().unwrap_or_default().to_owned()).or_default();
            for kind in ["containerStatuses", "initContainerStatuses", "ephemeralContainerStatuses"] {
                let ids = pod["status"][kind].as_array().into_iter().flatten();
                let ids = ids.filter_map(|status| status["imageID"].as_str());
                runs.extend(ids.filter_map(|id| Digest::parse(id.rsplit('@').next().unwrap_or_default())));
            }
            for kind in ["containers", "initContainers"] {
                let all = pod["spec"][kind].as_array().into_iter().flatten();
                let always = all.filter(|c| c["imagePullPolicy"] == "Always");
                pods.always.extend(always.filter_map(|c| full(c["image"].as_str()?)));
            }
        }
        pods
    }

    /// Whether pods of any node run it.
    pub fn run(&self, digest: &Digest) -> bool {
        self.runs.values().any(|all| all.contains(digest))
    }
}

impl World {
    /// The images of the pods of now; asked for once in a run. None where the API does not answer.
    pub fn pods(&self) -> Option<Arc<Pods>> {
        let mut held = lock(&self.held.images.pods);
        if let Some(pods) = &*held {
            return pods.clone();
        }
        let up = self.state.kubeconfig().is_file() && self.cluster.servers().any(|s| self.listens(s, KNOCK));
        let items = up.then(|| self.ask(|api| api.items("/api/v1/pods", &self.cancel)).ok()).flatten();
        held.insert(items.map(|items| Pods::of(&items).into())).clone()
    }

    /// Whether no node has pulled anything since these pods were made, by what their kubelets report of it, which the API keeps
    /// for an hour (`--event-ttl`). A pull that was not reported is one that is not kept.
    pub fn pulled_nothing(&self, pods: &Pods) -> bool {
        let young = |at: Timestamp| self.now().duration_since(at) < REPORTED;
        if !pods.since.is_some_and(young) {
            return false;
        }
        let path = "/api/v1/events?fieldSelector=reason%3DPulling";
        let pulls = self.ask(|api| api.items(path, &self.cancel));
        pulls.is_ok_and(|pulls| pulls.iter().all(|event| event["reason"] != "Pulling"))
    }

    /// The images that a node has; none where no containerd of k3s' runs there.
    pub fn images_on(&self, node: &Node) -> Result<Option<Vec<Listed>>, StepError> {
        let text = self.script(node, "looking at its images", &k3s::images::list_script())?;
        Ok(k3s::images::listed(&text))
    }

    /// What this host has for the architecture's new nodes, as one archive; packed once in a run. None where there is nothing.
    pub fn kept_images(&self, arch: k3s::Arch) -> Result<Option<Arc<Packed>>, StepError> {
        let index = self.images.index()?;
        let images: Vec<Image> = index.given(&self.cluster.name, arch.name()).into_iter().cloned().collect();
        let packed = self.packed(&images, arch)?;
        Ok(packed.filter(|packed| !packed.images.is_empty()))
    }

    /// Images as one archive of this host.
    pub fn packed(&self, images: &[Image], arch: k3s::Arch) -> Result<Option<Arc<Packed>>, StepError> {
        if images.is_empty() {
            return Ok(None);
        }
        let names: Vec<&str> = images.iter().map(|i| i.name.as_str()).collect();
        let key = format!("{}-{}", arch.name(), crate::os::hash::short(names.join(" ")));
        // Held while it is written: whoever comes second waits and finds it.
        let mut held = lock(&self.held.images.packed);
        if let Some(packed) = held.get(&key) {
            return Ok(packed.clone());
        }
        let packed = self.images.pack(images, &self.images.scratch(&self.run, &key)?, &self.cancel)?;
        self.images.use_now(&packed.images, self.now(), &self.cancel)?;
        let packed = Some(Arc::new(packed));
        held.insert(key, packed.clone());
        Ok(packed)
    }

    /// One node at a time sends blobs: the next one need not send what came from the one before.
    pub fn fetching_images(&self) -> MutexGuard<'_, ()> {
        lock(&self.held.images.fetching)
    }

    /// The archives of this run are of no more use.
    pub fn forget_packed(&self) {
        for packed in std::mem::take(&mut *lock(&self.held.images.packed)).into_values().flatten() {
            let _ = fs::remove_file(&packed.path);
        }
    }
}

/// An archive as a file that goes onto a node.
pub fn as_file(packed: &Packed, path: String) -> Wanted {
    Wanted { source: packed.path.clone(), path, sha256: packed.sha256.clone(), len: packed.len, mode: 0o600 }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn pods_say_what_runs_and_what_is_always_asked_for() {
        let (a, b) = ("a".repeat(64), "b".repeat(64));
        let items = [
            json!({"spec": {"nodeName": "worker-1", "containers": [{"image": "nginx", "imagePullPolicy": "Always"}]},
                "status": {"containerStatuses": [{"imageID": format!("docker.io/library/nginx@sha256:{a}")}, {"imageID": ""}]}}),
            json!({"spec": {"nodeName": "server", "containers": [{"image": "x:1", "imagePullPolicy": "IfNotPresent"}]},
                "status": {"initContainerStatuses": [{"imageID": format!("sha256:{b}")}, {"imageID": "strange"}]}}),
            json!({"spec": {}}),
        ];
        let pods = Pods::of(&items);
        let digest = |d: &str| Digest::parse(&format!("sha256:{d}")).unwrap();
        assert_eq!(pods.runs["worker-1"], [digest(&a)].into());
        assert!(pods.run(&digest(&b)) && !pods.run(&digest(&"c".repeat(64))));
        assert_eq!(pods.always, ["docker.io/library/nginx:latest".to_owned()].into());
    }
}
