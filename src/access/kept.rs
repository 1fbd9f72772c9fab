//! The kept moment of a cluster: which one it would be by all that makes it.

use super::World;
use crate::observed::View;
use crate::os::hash;
use crate::spec::{self, Node};

impl World {
    /// The digest of all that makes the cluster: spec, box, k3s' files, provisioners' inputs, manifests. None where some of
    /// it is not known, and where machines cannot be kept.
    pub fn kept_key(&self) -> Option<String> {
        let seen = self.seen();
        let view = View::new(&self.cluster, &seen);
        let keeps = |n: &Node| self.machines.keep(&n.name).is_ok();
        if !self.cluster.nodes.iter().all(keeps) || self.cluster.has_own_datastore() {
            return None;
        }
        let mut parts = vec!["1".to_owned(), std::env::consts::ARCH.to_owned(), spec::made_of(&self.cluster)];
        parts.push(seen.here.image.clone()?);
        if seen.here.wanted.is_empty() {
            return None;
        }
        for file in seen.here.wanted.values().flatten() {
            parts.push(format!("{} {} {:o}", file.path, file.sha256, file.mode));
        }
        for provisioner in self.cluster.provision.iter().filter(|p| !p.when.is_trigger()) {
            parts.push(view.provisioner(&provisioner.name)?);
        }
        // Salted: others may see the key, and the digest has none of them.
        let secrets = spec::secrets(&self.cluster);
        if !secrets.is_empty() {
            let salt = self.kept.salt().ok()?;
            parts.push(hash::hex(&hash::parts(secrets.iter().map(String::as_str).chain([salt.as_str()]))));
        }
        let parts: Vec<&str> = parts.iter().map(String::as_str).collect();
        Some(hash::hex(&hash::parts(&parts)[..8]))
    }
}
