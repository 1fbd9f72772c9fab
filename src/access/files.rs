//! k3s' files and the box, on this host.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::UNIX_EPOCH;

use super::World;
use crate::artifacts::{self, Bounds, Cache, Net, Progress};
use crate::boxes::{self, Origin};
use crate::engine::StepError;
use crate::k3s;
use crate::machines::{Base, BoxInfo};
use crate::observed::files::INSTALLER;
use crate::observed::refusal;
use crate::observed::{Baked, View, Wanted};
use crate::os::files::{self, At};
use crate::os::hash::Sum;
use crate::os::sync::lock;
use crate::spec::{BoxRef, Cluster, Node, Release, Source};
use crate::state::{Pinned, StateDir};

/// The files that were found.
#[derive(Default)]
pub(super) struct Held {
    found: Mutex<BTreeMap<k3s::Arch, Arc<artifacts::Files>>>,
    /// The version that an upgrade goes to.
    aim: Mutex<Option<String>>,
}

impl World {
    /// The run goes to this version, whatever the cluster is held to.
    pub fn aim_at(&self, version: &str) {
        *lock(&self.held.files.aim) = Some(version.to_owned());
    }

    fn aim(&self) -> Option<String> {
        lock(&self.held.files.aim).clone()
    }

    /// The architectures of the nodes with k3s: as they say or are remembered to have said, else this host's.
    pub fn archs(&self) -> BTreeSet<k3s::Arch> {
        self.cluster.members().filter_map(|node| self.arch(node).ok()).collect()
    }

    fn arch(&self, node: &Node) -> Result<k3s::Arch, artifacts::Error> {
        let seen = self.seen();
        let remembered = || self.memory(&node.name)?.facts.map(|facts| facts.arch);
        let said = seen.nodes.get(&node.name).map(|facts| facts.arch.clone()).or_else(remembered);
        match said.filter(|arch| !arch.is_empty()) {
            Some(arch) => artifacts::arch(&arch),
            None => artifacts::arch(std::env::consts::ARCH),
        }
    }

    /// The files that belong on a node, each with its place there.
    pub fn wanted(&self, node: &Node) -> Result<Vec<Wanted>, StepError> {
        Ok(wanted(&*self.files(self.arch(node)?, &mut |_| {}, &mut |_| {})?))
    }

    /// The files that belong on nodes of an architecture: resolved, downloaded where they are not in the cache, and
    /// verified.
    pub fn files(
        &self,
        arch: k3s::Arch,
        progress: &mut dyn FnMut(artifacts::Progress<'_>),
        warn: &mut dyn FnMut(String),
    ) -> Result<Arc<artifacts::Files>, StepError> {
        // Held while downloading: whoever comes second waits and finds them.
        let mut held = lock(&self.held.files.found);
        if let Some(files) = held.get(&arch) {
            return Ok(Arc::clone(files));
        }
        let files = Arc::new(self.fetched(arch, progress, warn)?);
        // Only now it may be known which version it is.
        let seen = self.seen();
        if let Some(refusal) = refusal::refusal(&View::new(&self.cluster, &seen)) {
            return Err(refusal.into());
        }
        self.keep_version(&files)?;
        held.insert(arch, Arc::clone(&files));
        Ok(files)
    }

    /// The same without holding the cluster to their version.
    pub fn fetched(
        &self,
        arch: k3s::Arch,
        progress: &mut dyn FnMut(artifacts::Progress<'_>),
        warn: &mut dyn FnMut(String),
    ) -> Result<artifacts::Files, StepError> {
        let files = self.fetch(arch, progress, warn)?;
        self.note(|seen| {
            seen.here.wanted.insert(arch, wanted(&files));
            seen.here.version.clone_from(&files.version);
        });
        Ok(files)
    }

    /// A line to be said before anything else, if what is used is not what it is called.
    pub fn banner(&self) -> Option<String> {
        let artifacts = &self.cluster.k3s.artifacts;
        let crate::spec::Source::Path(installer) = artifacts.installer.as_ref()? else { return None };
        banner_of(&files::read_if_there(installer).ok()??)
    }

    /// The box the machines are made from, if it is known and machines can be made from it.
    pub fn box_info(&self) -> Result<Option<BoxInfo>, StepError> {
        let Some(fact) = self.state.facts()?.image else { return Ok(None) };
        if fact.wanted != image_wanted(self)? {
            return Ok(None);
        }
        let Some(make) = self.machines.makers().next() else { return Ok(None) };
        let info = make.image(&fact.label, &fact.sha256);
        Ok(make.has_image(&info).then_some(info))
    }

    /// What machines are made from; the key that opens them is there as well.
    pub fn base(&self) -> Result<Base, StepError> {
        self.public_key()?;
        let info = self.box_info()?;
        Ok(Base::Box(info.ok_or_else(|| StepError::new("the box is not there", "`p1 up` gets it."))?))
    }
}

impl World {
    /// Bounds of a download within a step: the step is what is tried again.
    pub fn bounds(&self) -> Bounds {
        Bounds::new(&self.cluster.timeouts, &self.cluster.retry.once())
    }

    fn resolved(
        &self,
        release: &Release,
        arch: k3s::Arch,
        net: &Net,
        bounds: &Bounds,
    ) -> Result<artifacts::Resolved, StepError> {
        let given = &self.cluster.k3s.artifacts;
        Ok(artifacts::resolve(release, given, arch, &self.cache, net, bounds, &self.cancel)?)
    }

    /// The files that are here; else why they cannot be used, if it is more than that they are not.
    pub fn without_connection(
        &self,
        release: &Release,
        arch: k3s::Arch,
    ) -> Result<artifacts::Files, Option<StepError>> {
        let unless_absent = |error: artifacts::Error| match error {
            artifacts::Error::Offline { .. } => None,
            error => Some(StepError::from(error)),
        };
        let net = Net { offline: true, ..self.net.clone() };
        let (given, bounds) = (&self.cluster.k3s.artifacts, self.bounds());
        let resolved = artifacts::resolve(release, given, arch, &self.cache, &net, &bounds, &self.cancel)
            .map_err(unless_absent)?;
        artifacts::fetch(&resolved, &self.cache, &net, &bounds, &mut |_| {}, &self.cancel)
            .map_err(unless_absent)
    }

    fn fetch(
        &self,
        arch: k3s::Arch,
        progress: &mut dyn FnMut(Progress<'_>),
        warn: &mut dyn FnMut(String),
    ) -> Result<artifacts::Files, StepError> {
        let bounds = self.bounds();
        let resolved = self.resolved(&self.release()?, arch, &self.net, &bounds)?;
        resolved.warnings.iter().cloned().for_each(&mut *warn);
        Ok(artifacts::fetch(&resolved, &self.cache, &self.net, &bounds, progress, &self.cancel)?)
    }

    /// The version that a release is now, asking the network where that takes it.
    pub fn resolve(&self, release: &Release) -> Result<(Option<String>, Vec<String>), StepError> {
        // Not within a step, so that it is tried again here.
        let bounds = Bounds::new(&self.cluster.timeouts, &self.cluster.retry);
        let arch = self.arch(self.cluster.first_server())?;
        let found = self.resolved(release, arch, &self.net, &bounds)?;
        Ok((found.version, found.warnings))
    }

    /// The release to look for: where an upgrade goes, else see [`release`].
    pub fn release(&self) -> Result<Release, StepError> {
        match self.aim() {
            Some(version) => Ok(Release::Version(version)),
            None => release(&self.cluster, &self.state),
        }
    }

    fn keep_version(&self, files: &artifacts::Files) -> Result<(), StepError> {
        let mut facts = self.state.facts()?;
        facts.k3s = Some(Pinned { wanted: wanted_release(&self.cluster), version: files.version.clone() });
        self.state.keep(&facts)?;
        Ok(())
    }

    /// Holds the cluster to a version.
    pub fn pin(&self, version: &str) -> Result<(), StepError> {
        let mut facts = self.state.facts()?;
        facts.k3s = Some(Pinned { wanted: wanted_release(&self.cluster), version: Some(version.to_owned()) });
        self.state.keep(&facts)?;
        Ok(())
    }
}

impl World {
    /// The boxes that the machines were made from, even if Vagrant no longer has them.
    pub fn known_boxes(&self) -> Result<Vec<BoxInfo>, StepError> {
        let Some(make) = self.machines.makers().next() else { return Ok(Vec::new()) };
        let facts = self.state.facts()?;
        let all = facts.image.into_iter().chain(facts.former);
        Ok(all.map(|f| make.image(&f.label, &f.sha256)).collect())
    }
}

/// What the spec's channel or version is called.
fn wanted_release(cluster: &Cluster) -> String {
    match &cluster.k3s.release {
        Release::Channel(name) | Release::Version(name) => name.clone(),
    }
}

/// The release to look for: a channel that was resolved for this cluster stays what it was.
pub fn release(cluster: &Cluster, state: &StateDir) -> Result<Release, StepError> {
    let pinned = state.facts()?.k3s;
    Ok(match pinned {
        Some(Pinned { wanted, version: Some(version) }) if wanted == wanted_release(cluster) => {
            Release::Version(version)
        }
        _ => cluster.k3s.release.clone(),
    })
}

/// Everything that a run without a connection would miss on this host: of the box, of k3s' files. What
/// cannot even be named, such as a channel's version, is told by what could not be asked for.
pub fn missing(world: &World, of_box: bool, of_k3s: bool) -> Vec<String> {
    let mut all = Vec::new();
    if of_box {
        all.extend(box_missing(world));
    }
    if !of_k3s {
        return all;
    }
    let net = Net { offline: true, ..world.net.clone() };
    let found = world.release().and_then(|release| {
        let archs = world.archs().into_iter();
        archs.map(|arch| world.resolved(&release, arch, &net, &world.bounds())).collect::<Result<Vec<_>, _>>()
    });
    match found {
        Ok(resolved) => all.extend(resolved.iter().flat_map(artifacts::missing)),
        Err(error) => {
            all.push(error.failure.cause);
            let given = &world.cluster.k3s.artifacts;
            let sources = given.binary.iter().chain(&given.installer).chain(&given.images);
            all.extend(sources.filter_map(|source| artifacts::lacks(source, &world.cache)));
        }
    }
    all
}

/// What the spec's box stands for just now: another text, another box.
pub fn image_wanted(world: &World) -> Result<String, StepError> {
    Ok(match &world.cluster.image {
        BoxRef::Definition(name) => match given(world, name)? {
            Some(manifest) => format!("{name} {}", manifest.sha256),
            None => format!("{name} {}", boxes::digest(&definition(world, name)?)),
        },
        BoxRef::Path(path) => file_stands_for(path, &fs::metadata(path).at("read", path)?),
        BoxRef::Url { url, sha256 } => format!("{url} {sha256}"),
    })
}

/// The same of a file: what tells it from another of its name.
pub fn file_stands_for(path: &Path, meta: &fs::Metadata) -> String {
    let time = meta.modified().ok().and_then(|t| t.duration_since(UNIX_EPOCH).ok());
    format!("{} {} {}", path.display(), meta.len(), time.map_or(0, |t| t.as_nanos()))
}

/// A box that the user put into the library under a name; it comes before a definition.
pub fn given(world: &World, name: &str) -> Result<Option<boxes::Manifest>, StepError> {
    let manifest = world.library.get(name)?;
    Ok(manifest.filter(|m| !matches!(m.origin, Origin::Built { .. })))
}

/// The definition of that name: the spec's own beside it, or one that comes with p1.
pub fn definition(world: &World, name: &str) -> Result<boxes::Definition, StepError> {
    Ok(boxes::load(name, Some(&world.cluster.base.join("boxes")))?)
}

/// The box that was built of exactly this definition, if the library has it.
pub fn of_definition(
    world: &World,
    name: &str,
    definition: &boxes::Definition,
) -> Result<Option<boxes::Manifest>, StepError> {
    let digest = boxes::digest(definition);
    let there = world.library.get(name)?;
    Ok(there.filter(|m| matches!(&m.origin, Origin::Built { digest: d, .. } if *d == digest)))
}

/// What a run without a connection would miss of the image that a box is prepared from.
pub fn image_lacks(image: &boxes::Image, cache: &Cache) -> Vec<String> {
    let file = match (&image.url, Sum::read(&image.checksums)) {
        (Some(url), Some(sum)) => artifacts::lacks_sum(url, &sum, cache),
        (url, _) => url.clone(),
    };
    // A list of checksums is not kept: those of today are for the image of today.
    let list = Some(&image.checksums).filter(|sums| sums.starts_with("http"));
    file.into_iter().chain(list.cloned()).collect()
}

/// What a box is called before the file is there.
pub fn box_label(image: &BoxRef) -> String {
    match image {
        BoxRef::Definition(name) => name.clone(),
        BoxRef::Path(path) => stem(path),
        BoxRef::Url { url, .. } => stem(Path::new(url)),
    }
}

/// A name for people, of characters that Vagrant takes.
fn stem(path: &Path) -> String {
    let stem = path.file_stem().map(|s| s.to_string_lossy().to_lowercase()).unwrap_or_default();
    let kept: String = stem.chars().filter(|c| c.is_ascii_alphanumeric() || "-._".contains(*c)).collect();
    if kept.is_empty() { "box".to_owned() } else { kept }
}

/// What a run without a connection would miss of the box.
fn box_missing(world: &World) -> Option<String> {
    if matches!(world.seen().here.baked, Baked::Fits(_)) {
        return None;
    }
    match &world.cluster.image {
        BoxRef::Path(_) => None,
        BoxRef::Url { url, sha256 } => {
            let source = Source::Url { url: url.clone(), sha256: sha256.clone() };
            artifacts::lacks(&source, &world.cache).map(|url| format!("the box ({url})"))
        }
        BoxRef::Definition(name) => {
            let definition = definition(world, name).ok();
            let built = |d: &boxes::Definition| of_definition(world, name, d).is_ok_and(|m| m.is_some());
            if given(world, name).ok().flatten().is_some() || definition.as_ref().is_some_and(built) {
                return None;
            }
            match definition.and_then(|d| d.image) {
                Some(image) => {
                    let lacks = image_lacks(&image, &world.cache);
                    (!lacks.is_empty())
                        .then(|| format!("the image of the box `{name}` ({})", lacks.join(", ")))
                }
                None => Some(format!("the box `{name}`, which would have to be built from packages")),
            }
        }
    }
}

/// What an installer says of itself within its first lines: `# p1-banner: TEXT`.
fn banner_of(installer: &str) -> Option<String> {
    let mark = installer.lines().take(5).find_map(|l| l.strip_prefix("# p1-banner:"))?;
    Some(mark.trim().to_owned())
}

/// Where each file goes on a node.
pub fn wanted(files: &artifacts::Files) -> Vec<Wanted> {
    let one = |file: &artifacts::File, path: String, mode| Wanted {
        source: file.path.clone(),
        path,
        sha256: file.sha256.clone(),
        len: file.len,
        mode,
    };
    let mut all = vec![
        one(&files.binary, format!("{}/k3s", k3s::BIN_DIR), 0o755),
        one(&files.installer, INSTALLER.to_owned(), 0o700),
    ];
    for image in &files.images {
        all.push(one(image, format!("{}/{}", k3s::IMAGES_DIR, image.name), 0o600));
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Nobody may take a cluster of the stand-in for one of k3s.
    #[test]
    fn the_stand_in_says_what_it_is() {
        let banner = banner_of(include_str!("../../tests/standin/install.sh")).unwrap();
        assert!(banner.contains("stand-in"), "{banner}");
        assert_eq!(banner_of("#!/bin/sh\n# Installs k3s.\n"), None);
    }
}
