//! A fingerprint of a cluster, by which a run knows whether the spec changed since the last one.

use serde_json::Value as Json;
use sha2::{Digest, Sha256};

use super::secret::conceal;
use super::{BoxRef, Cluster, Source};
use crate::os::hash::hex;

/// SHA-256, in hex, of the resolved cluster as JSON with sorted keys. Comments, the order of keys,
/// defaults written out and the place of the checkout do not change it, nor do secrets: it is read by others, who could
/// try which one gives it.
pub fn digest(cluster: &Cluster) -> String {
    let mut moved = cluster.clone();
    let base = cluster.base.clone();
    let relative = |path: &mut std::path::PathBuf| {
        if let Ok(inside) = path.strip_prefix(&base) {
            *path = inside.to_owned();
        }
    };
    if let BoxRef::Path(path) = &mut moved.image {
        relative(path);
    }
    for access in moved.nodes.iter_mut().filter_map(|node| node.ssh.as_mut()) {
        access.key.as_mut().map(relative);
    }
    let artifacts = &mut moved.k3s.artifacts;
    artifacts.dir.as_mut().map(relative);
    for source in artifacts.binary.iter_mut().chain(&mut artifacts.installer).chain(&mut artifacts.images) {
        if let Source::Path(path) = source {
            relative(path);
        }
    }
    let mut json = serde_json::to_value(&moved).expect("a resolved cluster has text keys only");
    for (to, one) in
        json.get_mut("provision").and_then(Json::as_array_mut).into_iter().flatten().zip(&moved.provision)
    {
        *to = serde_json::json!([one.name, one.when, one.nodes, one.portable(&base)]);
    }
    let mut hash = Sha256::new();
    conceal(&mut json, &cluster.secrets);
    canonical(&json, &mut hash);
    hex(&hash.finalize())
}

/// The same of what a cluster is made of alone: not by what it is made, nor how long is waited for what.
pub fn made_of(cluster: &Cluster) -> String {
    digest(&Cluster {
        provider: Default::default(),
        engine: Default::default(),
        keep: false,
        bake: Default::default(),
        keep_images: true,
        verify: Default::default(),
        timeouts: Default::default(),
        retry: Default::default(),
        rollout: Default::default(),
        ..cluster.clone()
    })
}

/// Feeds JSON with sorted keys and no spaces.
fn canonical(json: &Json, hash: &mut Sha256) {
    match json {
        Json::Object(map) => {
            let mut keys: Vec<_> = map.keys().collect();
            keys.sort();
            hash.update("{");
            for key in keys {
                hash.update(Json::from(key.as_str()).to_string());
                hash.update(":");
                canonical(&map[key], hash);
                hash.update(",");
            }
            hash.update("}");
        }
        Json::Array(items) => {
            hash.update("[");
            for item in items {
                canonical(item, hash);
                hash.update(",");
            }
            hash.update("]");
        }
        leaf => hash.update(leaf.to_string()),
    }
}
