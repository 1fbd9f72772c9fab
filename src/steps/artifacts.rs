//! The files of k3s are on this host, verified.

use std::collections::BTreeMap;

use serde_json::json;

use super::{Ctx, Definition, View, World};
use crate::artifacts;
use crate::engine::Trouble;
use crate::plan::{Check, Scope, Shape};
use crate::spec::{Cluster, Node, Release};
use crate::state::Pinned;

pub const STEP: Definition = Definition {
    shape: Shape { name: "artifacts", title: "get k3s", scope: Scope::Cluster, after: &[], serves: true },
    retry: true,
    check,
    inputs,
    apply,
};

fn check(view: &View<'_>, _: Option<&Node>) -> Check {
    match &view.seen.wanted {
        Some(_) => Check::Done("in the cache".into()),
        None => Check::Needed("not in the cache".into()),
    }
}

fn inputs(cluster: &Cluster, _: Option<&Node>) -> serde_json::Value {
    json!([cluster.k3s.release, cluster.k3s.artifacts])
}

fn apply(ctx: &Ctx<'_>) -> Result<Option<String>, Trouble> {
    let mut done = BTreeMap::new();
    let files = ctx.world.files(&mut |name, now, total| {
        done.insert(name.to_owned(), now);
        ctx.control.moved(name, now, total);
    })?;
    Ok(files.version.clone())
}

impl World {
    /// What the spec's channel or version is called.
    fn wanted_release(&self) -> String {
        match &self.cluster.k3s.release {
            Release::Channel(name) | Release::Version(name) => name.clone(),
        }
    }

    /// The release to look for: a channel that was resolved for this cluster stays what it was.
    pub fn release(&self) -> Result<Release, Trouble> {
        let pinned = self.state.facts()?.k3s;
        Ok(match pinned {
            Some(Pinned { wanted, version: Some(version) }) if wanted == self.wanted_release() => {
                Release::Version(version)
            }
            _ => self.cluster.k3s.release.clone(),
        })
    }

    pub(super) fn keep_version(&self, files: &artifacts::Files) -> Result<(), Trouble> {
        let mut facts = self.state.facts()?;
        facts.k3s = Some(Pinned { wanted: self.wanted_release(), version: files.version.clone() });
        self.state.keep(&facts)?;
        Ok(())
    }
}
