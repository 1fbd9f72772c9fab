//! A folder with everything that nodes need, for hosts without internet: what `p1 artifacts fetch`
//! writes and `k3s.artifacts.dir` names.
//!
//! `manifest.json` lists the files by architecture, each with its checksum and its path in there. It is
//! written last, so that a folder whose filling was cut off is the old one or none.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::resolve::{self, Want};
use super::{Bounds, Cache, Error, Files, Item, Net, Place, Progress, Resolved, fetch, store};
use crate::k3s::{Arch, Version};
use crate::os::Cancel;
use crate::os::files::{self, At, read_if_there};
use crate::spec::{Artifacts, Release};

/// The version of the manifest.
const VERSION: u32 = 1;
/// What lists the files of a folder.
pub const MANIFEST: &str = "manifest.json";

/// What a folder has.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Manifest {
    /// [`VERSION`] of the writer.
    pub v: u32,
    /// What the spec asked for: a channel or a version.
    pub wanted: String,
    /// The k3s version, where it is known.
    pub k3s: Option<String>,
    /// When it was filled.
    pub at: jiff::Timestamp,
    /// By architecture.
    pub archs: BTreeMap<String, Set>,
}

/// The files of one architecture.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Set {
    pub binary: Listed,
    pub installer: Listed,
    /// Image archives.
    pub images: Vec<Listed>,
}

/// A file of the folder.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Listed {
    /// What it is called on a node.
    pub name: String,
    /// Where it is, relative to the folder.
    pub path: PathBuf,
    /// SHA-256, hexadecimal.
    pub sha256: String,
    /// Bytes.
    pub len: u64,
}

impl Set {
    /// All of them.
    pub fn files(&self) -> impl Iterator<Item = &Listed> {
        [&self.binary, &self.installer].into_iter().chain(&self.images)
    }
}

/// Text of a file that others wrote, as it may be shown.
fn shown(text: &str) -> String {
    let plain = |c: char| if c.is_control() { '\u{fffd}' } else { c };
    text.chars().take(60).map(plain).collect()
}

impl Manifest {
    /// Of a folder.
    ///
    /// # Errors
    /// [`Error::Folder`] if there is none, or none that this p1 can read.
    pub fn read(dir: &Path) -> Result<Self, Error> {
        let bad = |what: &str| Error::Folder { dir: dir.to_owned(), what: what.to_owned() };
        let text = read_if_there(&dir.join(MANIFEST))?.ok_or_else(|| bad("has no manifest.json"))?;
        let text = text.strip_prefix('\u{feff}').unwrap_or(&text);
        let value: serde_json::Value =
            serde_json::from_str(text).map_err(|e| bad(&format!("has a damaged manifest: {e}")))?;
        if value["v"].as_u64().is_none_or(|v| v > u64::from(VERSION)) {
            return Err(bad("has a manifest that this p1 does not know"));
        }
        let manifest: Self =
            serde_json::from_value(value).map_err(|e| bad(&format!("has a damaged manifest: {e}")))?;
        let version = manifest.k3s.as_deref().is_none_or(|v| v.parse::<Version>().is_ok());
        let word = |text: &str| {
            !text.is_empty() && text.chars().all(|c| c.is_ascii_alphanumeric() || "._+-".contains(c))
        };
        if let Some(wrong) = manifest.k3s.as_ref().filter(|_| !version) {
            return Err(bad(&format!("has a manifest with `{}`, which is no version of k3s", shown(wrong))));
        }
        if !word(&manifest.wanted) {
            let wanted = shown(&manifest.wanted);
            return Err(bad(&format!(
                "has a manifest with `{wanted}`, which is neither a version nor a channel"
            )));
        }
        if let Some(arch) =
            manifest.archs.keys().find(|name| Arch::from_uname(name).is_none_or(|a| a.name() != **name))
        {
            return Err(bad(&format!("has a manifest with `{}`, which k3s does not run on", shown(arch))));
        }
        for file in manifest.archs.values().flat_map(Set::files) {
            // It becomes a path on the nodes, and is looked for with other words before it.
            if !word(&file.name) || file.name.starts_with(['.', '-']) {
                return Err(bad(&format!("lists `{}`, which is no name of a file", shown(&file.name))));
            }
            if file.sha256.len() != 64 || !file.sha256.bytes().all(|b| b.is_ascii_hexdigit()) {
                return Err(bad(&format!("lists `{}` without a SHA-256 sum", file.name)));
            }
        }
        let inside = |path: &Path| path.components().all(|c| matches!(c, std::path::Component::Normal(_)));
        let strange = manifest.archs.values().flat_map(Set::files).find(|f| !inside(&f.path));
        if let Some(file) = strange {
            let path = file.path.display().to_string();
            return Err(bad(&format!("lists `{}`, which is not in there", shown(&path))));
        }
        Ok(manifest)
    }
}

/// Which files of the folder are needed. Looks at no network.
pub(super) fn resolved(dir: &Path, release: &Release, arch: Arch) -> Result<Resolved, Error> {
    let manifest = Manifest::read(dir)?;
    let bad = |what: String| Error::Folder { dir: dir.to_owned(), what };
    let (Release::Version(wanted) | Release::Channel(wanted)) = release;
    let mut warnings = Vec::new();
    match (release, &manifest.k3s) {
        (Release::Version(wanted), Some(has)) if wanted.parse::<Version>()? != has.parse()? => {
            return Err(bad(format!("has k3s {has}, and {wanted} is wanted")));
        }
        (Release::Channel(_), _) if manifest.wanted != *wanted => {
            warnings.push(format!(
                "{} was filled for `{}`, and the spec says `{wanted}`.",
                dir.display(),
                manifest.wanted
            ));
        }
        _ => {}
    }
    let set = manifest.archs.get(arch.name()).ok_or_else(|| {
        let has: Vec<&str> = manifest.archs.keys().map(String::as_str).collect();
        bad(format!("has nothing for {arch}, only for {}", has.join(" and ")))
    })?;
    let item = |file: &Listed| {
        let path = dir.join(&file.path);
        fs::metadata(&path).at("read", &path)?;
        let sha256 = Some(file.sha256.clone());
        Ok::<_, Error>(Item {
            name: file.name.clone(),
            place: Place::Local(path),
            sha256,
            promised: true,
            sha512: None,
        })
    };
    Ok(Resolved {
        version: manifest.k3s.clone(),
        binary: item(&set.binary)?,
        installer: item(&set.installer)?,
        images: set.images.iter().map(item).collect::<Result<_, _>>()?,
        warnings,
    })
}

/// Fills a folder with all that a spec needs on those architectures, the images of k3s' release included
/// where the spec names none. What is in the cache is taken from there; what is in the folder already
/// and good stays.
#[allow(clippy::too_many_arguments)]
pub fn gather(
    dir: &Path,
    release: &Release,
    artifacts: &Artifacts,
    archs: &[Arch],
    (cache, net, bounds): (&Cache, &Net, &Bounds),
    progress: &mut dyn FnMut(Progress<'_>),
    warn: &mut dyn FnMut(String),
    cancel: &Cancel,
) -> Result<Manifest, Error> {
    let (Release::Version(wanted) | Release::Channel(wanted)) = release;
    if artifacts.binary.is_some() && archs.len() > 1 {
        return Err(Error::OneArch);
    }
    // One channel, one version, whatever the hour between two architectures.
    let mut release = release.clone();
    let given = Artifacts { dir: None, ..artifacts.clone() };
    let mut manifest = Manifest {
        v: VERSION,
        wanted: wanted.clone(),
        k3s: None,
        at: jiff::Timestamp::now(),
        archs: BTreeMap::new(),
    };
    for arch in archs {
        let want = Want { arch: *arch, all_images: true };
        let resolved = resolve::resolve_as(&release, &given, want, cache, net, bounds, cancel)?;
        resolved.warnings.iter().cloned().for_each(&mut *warn);
        let files = fetch(&resolved, cache, net, bounds, progress, cancel)?;
        if let Some(version) = &files.version {
            release = Release::Version(version.clone());
        }
        manifest.k3s.clone_from(&files.version);
        manifest.archs.insert(arch.name().to_owned(), copy(dir, *arch, &files, progress, cancel)?);
    }
    let text = serde_json::to_vec_pretty(&manifest).expect("plain data");
    files::write(&dir.join(MANIFEST), &text, 0o644)?;
    Ok(manifest)
}

fn copy(
    dir: &Path,
    arch: Arch,
    from: &Files,
    progress: &mut dyn FnMut(Progress<'_>),
    cancel: &Cancel,
) -> Result<Set, Error> {
    let mut one = |file: &super::File, mode: u32| {
        let path = Path::new(arch.name()).join(&file.name);
        let to = dir.join(&path);
        if cancel.stopping() {
            return Err(Error::Cancelled);
        }
        let there = store::look(&file.name, &to, progress, cancel)?;
        if there.is_none_or(|there| there.sha256 != file.sha256) {
            files::dir(to.parent().expect("a file in a folder"))?;
            let part = store::beside(&to, ".part");
            fs::copy(&file.path, &part).at("write", &part)?;
            fs::set_permissions(&part, fs::Permissions::from_mode(mode)).at("write", &part)?;
            fs::rename(&part, &to).at("write", &to)?;
        }
        let listed = Listed { name: file.name.clone(), path, sha256: file.sha256.clone(), len: file.len };
        Ok::<_, Error>(listed)
    };
    Ok(Set {
        binary: one(&from.binary, 0o755)?,
        installer: one(&from.installer, 0o755)?,
        images: from.images.iter().map(|image| one(image, 0o644)).collect::<Result<_, _>>()?,
    })
}

/// Hashes every file of a folder: those that are not what the manifest says, and why.
pub fn verify(
    dir: &Path,
    progress: &mut dyn FnMut(Progress<'_>),
    cancel: &Cancel,
) -> Result<(Manifest, Vec<(PathBuf, String)>), Error> {
    let manifest = Manifest::read(dir)?;
    let mut bad = Vec::new();
    for file in manifest.archs.values().flat_map(Set::files) {
        match store::look(&file.name, &dir.join(&file.path), progress, cancel)? {
            None => bad.push((file.path.clone(), "it is not there".to_owned())),
            Some(found) if found.sha256 != file.sha256 => {
                bad.push((file.path.clone(), "it has another checksum".to_owned()));
            }
            Some(_) => {}
        }
    }
    Ok((manifest, bad))
}
