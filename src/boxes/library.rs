//! The box files on this host: `<dir>/<name>/box.box` and `<dir>/<name>/manifest.json`.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::error::Error;
use crate::os::Cancel;
use crate::os::files::{self, At};
use crate::os::hash;
use crate::os::process::{self, Cmd};

/// A box of several GiB is read as a whole where its metadata comes last.
const LOOKING: Duration = Duration::from_secs(300);

const FILE: &str = "box.box";
const MANIFEST: &str = "manifest.json";

/// What is known of a box in the library.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    /// The version of this file's format.
    pub v: u32,
    /// Name in the library.
    pub name: String,
    /// Checksum of the file.
    pub sha256: String,
    /// Bytes of the file.
    pub size: u64,
    /// Where it came from.
    pub origin: Origin,
    /// Vagrant's name of the provider that it is for, as it says itself; none if it was not asked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub provider: Option<String>,
    /// `package=version`, if it was built here.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub packages: Vec<String>,
}

/// Where a box came from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Origin {
    /// Built from a definition.
    Built {
        /// [`super::digest()`] of the definition.
        digest: String,
        version: String,
    },
    /// A file on this host.
    Path(PathBuf),
    /// Downloaded.
    Url(String),
    /// Made of a machine that had k3s' files.
    Baked(Baked),
}

/// What a box was baked of.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Baked {
    /// The digest of all of it: another one is another box.
    pub key: String,
    /// What the spec's box is called, and what it stood for.
    #[serde(rename = "box")]
    pub from: String,
    pub image: String,
    pub arch: String,
    /// The version of k3s, where it is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub k3s: Option<String>,
    /// The SHA-256 of k3s' files, by their places on a node.
    pub files: BTreeMap<String, String>,
}

/// A folder of boxes.
#[derive(Clone, Debug)]
pub struct Library {
    dir: PathBuf,
}

impl Library {
    /// `dir` need not exist yet.
    pub fn new(dir: impl Into<PathBuf>) -> Self {
        Self { dir: dir.into() }
    }

    /// Where its boxes lie, a folder each.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The file of the box `name`, whether it is there or not.
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name).join(FILE)
    }

    /// All boxes, by name.
    pub fn list(&self) -> Result<Vec<Manifest>, Error> {
        let entries = match fs::read_dir(&self.dir) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            other => other.at("read", &self.dir)?,
        };
        let mut all = Vec::new();
        for entry in entries {
            let name = entry.at("read", &self.dir)?.file_name();
            if let Some(name) = name.to_str().filter(|n| check(n).is_ok())
                && let Some(manifest) = self.get(name)?
            {
                all.push(manifest);
            }
        }
        all.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(all)
    }

    /// The box `name`; `None` if there is none. A manifest whose file is gone counts as none.
    pub fn get(&self, name: &str) -> Result<Option<Manifest>, Error> {
        check(name)?;
        let path = self.dir.join(name).join(MANIFEST);
        let Some(text) = files::read_if_there(&path)? else { return Ok(None) };
        let manifest: Manifest = serde_json::from_str(&text)
            .map_err(|e| Error::Manifest { path: path.clone(), message: e.to_string() })?;
        Ok(self.path(name).is_file().then_some(manifest))
    }

    /// Puts a copy of `file` into the library as `name`, replacing an older one. With `expected`
    /// (64 hex digits) a file with another checksum is refused. The copy shares its blocks with the
    /// original where the file system can.
    pub fn add(
        &self,
        name: &str,
        file: &Path,
        expected: Option<&str>,
        origin: Origin,
        provider: Option<String>,
        packages: Vec<String>,
    ) -> Result<Manifest, Error> {
        check(name)?;
        files::open(file)?;
        let dir = self.dir.join(name);
        files::dir(&dir)?;
        let copy = tempfile::Builder::new().prefix(".new-").tempfile_in(&dir).at("create", &dir)?;
        fs::copy(file, copy.path()).at("read", file)?;
        // Of the copy: what was checked is what is kept.
        let found = sha256(copy.path())?;
        if let Some(expected) = expected.filter(|e| !e.eq_ignore_ascii_case(&found)) {
            return Err(Error::Checksum { path: file.to_owned(), expected: expected.to_owned(), found });
        }
        let size = copy.as_file().metadata().at("read", file)?.len();
        let manifest =
            Manifest { v: 1, name: name.to_owned(), sha256: found, size, origin, provider, packages };
        copy.as_file().sync_all().at("write", &dir)?;
        self.put(manifest, || copy.persist(dir.join(FILE)).map(drop).map_err(|e| e.error))
    }

    /// The same of a file of p1's own on the library's file system, which is moved there.
    pub fn take(
        &self,
        name: &str,
        file: &Path,
        origin: Origin,
        provider: Option<String>,
    ) -> Result<Manifest, Error> {
        check(name)?;
        let dir = self.dir.join(name);
        files::dir(&dir)?;
        let (found, whole) = (sha256(file)?, files::open(file)?);
        whole.sync_all().at("write", file)?;
        let size = whole.metadata().at("read", file)?.len();
        let packages = Vec::new();
        let manifest =
            Manifest { v: 1, name: name.to_owned(), sha256: found, size, origin, provider, packages };
        self.put(manifest, || fs::rename(file, dir.join(FILE)))
    }

    fn put(&self, manifest: Manifest, place: impl FnOnce() -> io::Result<()>) -> Result<Manifest, Error> {
        let dir = self.dir.join(&manifest.name);
        let json = serde_json::to_string_pretty(&manifest).expect("a manifest is plain data");
        // The old manifest goes first: between the two there is no box, never a wrong one.
        files::remove_if_there(&dir.join(MANIFEST))?;
        place().at("write", &dir)?;
        files::write(&dir.join(MANIFEST), format!("{json}\n").as_bytes(), 0o644)?;
        Ok(manifest)
    }

    /// Removes the box `name`.
    pub fn remove(&self, name: &str) -> Result<Manifest, Error> {
        let manifest = self.get(name)?.ok_or_else(|| Error::NotInLibrary { name: name.to_owned() })?;
        let dir = self.dir.join(name);
        fs::remove_dir_all(&dir).at("remove", &dir)?;
        Ok(manifest)
    }
}

/// A name is one folder: nothing hidden, nothing that leads elsewhere.
fn check(name: &str) -> Result<(), Error> {
    let first = name.chars().next().is_some_and(|c| c.is_ascii_lowercase() || c.is_ascii_digit());
    let rest = name.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || "-_.".contains(c));
    if first && rest && name.len() <= 100 { Ok(()) } else { Err(Error::Name { name: name.to_owned() }) }
}

/// Looks into a box file: Vagrant's name of the provider that it is for. None where this host has no tar
/// to look with.
pub fn inspect(path: &Path, cancel: &Cancel) -> Result<Option<String>, Error> {
    const KINDS: [&[u8]; 5] = [b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"\x28\xb5\x2f\xfd", b"\x1f\x9d"];
    let bad = |what: &str| Error::NotABox { path: path.to_owned(), what: what.to_owned() };
    let meta = fs::metadata(path).at("read", path)?;
    if !meta.is_file() {
        return Err(bad("it is not a regular file"));
    }
    let mut head = Vec::new();
    files::open(path)?.take(512).read_to_end(&mut head).at("read", path)?;
    if !KINDS.iter().any(|kind| head.starts_with(kind)) && head.get(257..262) != Some(b"ustar") {
        return Err(bad("it is no archive"));
    }
    let tar = Cmd::new("tar")
        .args(["--extract", "--to-stdout", "--occurrence=1", "--wildcards", "--no-wildcards-match-slash"])
        .arg(format!("--file={}", path.display()))
        .args(["--force-local", "metadata.json", "./metadata.json"])
        .env("LC_ALL", "C");
    let done = match process::run(&tar, LOOKING, cancel) {
        // One of the two names is not in there, so that its exit code says nothing.
        Ok(done) => done.stdout,
        Err(process::Error::Missing { .. }) => return Ok(None),
        Err(source) => return Err(Error::Step { doing: "looking into the box file", source }),
    };
    let json: serde_json::Value = serde_json::from_str(&done).map_err(|_| match done.trim().is_empty() {
        true => bad("it has no metadata.json, or it is damaged"),
        false => bad("its metadata.json is not JSON"),
    })?;
    Ok(json["provider"].as_str().map(str::to_owned))
}

/// The checksum of a file, as 64 hex digits.
pub fn sha256(path: &Path) -> Result<String, Error> {
    Ok(hash::sha256_of(files::open(path)?).at("read", path)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn library() -> (tempfile::TempDir, Library, PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("x.box");
        fs::write(&file, "box").unwrap();
        let library = Library::new(dir.path().join("boxes"));
        (dir, library, file)
    }

    #[test]
    fn add_list_replace_remove() {
        let (_dir, library, file) = library();
        assert!(library.list().unwrap().is_empty());
        let origin = || Origin::Path(file.clone());
        let added = library.add("debian-12", &file, None, origin(), None, vec!["a=1".to_owned()]).unwrap();
        assert_eq!(added.size, 3);
        assert_eq!(library.list().unwrap(), [added]);
        fs::write(&file, "newer").unwrap();
        let newer = library.add("debian-12", &file, None, origin(), None, Vec::new()).unwrap();
        assert_eq!(library.get("debian-12").unwrap(), Some(newer));
        assert_eq!(fs::read(library.path("debian-12")).unwrap(), b"newer");
        library.remove("debian-12").unwrap();
        assert!(library.list().unwrap().is_empty());
        assert!(matches!(library.remove("debian-12"), Err(Error::NotInLibrary { .. })));
    }

    #[test]
    fn a_wrong_checksum_changes_nothing() {
        let (_dir, library, file) = library();
        let origin = || Origin::Url("https://example.org/x.box".to_owned());
        let sum = sha256(&file).unwrap();
        library.add("x", &file, Some(&sum.to_uppercase()), origin(), None, Vec::new()).unwrap();
        fs::write(&file, "evil").unwrap();
        let error = library.add("x", &file, Some(&sum), origin(), None, Vec::new()).unwrap_err();
        assert!(matches!(error, Error::Checksum { .. }));
        assert_eq!(sha256(&library.path("x")).unwrap(), sum);
        assert_eq!(fs::read_dir(library.path("x").parent().unwrap()).unwrap().count(), 2);
    }

    #[test]
    fn a_box_whose_file_is_gone_is_none() {
        let (_dir, library, file) = library();
        library.add("x", &file, None, Origin::Path(file.clone()), None, Vec::new()).unwrap();
        fs::remove_file(library.path("x")).unwrap();
        assert_eq!(library.get("x").unwrap(), None);
    }

    #[test]
    fn what_is_no_box_is_told_from_one() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        let says = |name: &str| inspect(&at(name), &Cancel::new()).map_err(|e| e.to_string());
        fs::write(at("metadata.json"), r#"{"provider": "libvirt", "format": "qcow2"}"#).unwrap();
        fs::write(at("box.img"), "image").unwrap();
        let pack = |args: &[&str]| {
            let cmd = Cmd::new("tar").arg("-C").arg(dir.path()).args(args);
            assert!(process::run(&cmd, LOOKING, &Cancel::new()).unwrap().success());
        };
        for (name, args) in [
            ("plain:1.box", ["-cf", "plain:1.box", "metadata.json", "box.img"]),
            ("dots.box", ["-czf", "dots.box", "./box.img", "./metadata.json"]),
        ] {
            pack(&["--force-local", args[0], &at(args[1]).display().to_string(), args[2], args[3]]);
            assert_eq!(says(name), Ok(Some("libvirt".to_owned())), "{name}");
        }
        pack(&["-czf", &at("none.box").display().to_string(), "box.img"]);
        assert!(says("none.box").unwrap_err().ends_with("it has no metadata.json, or it is damaged"));
        let whole = fs::read(at("dots.box")).unwrap();
        fs::write(at("cut.box"), &whole[..20]).unwrap();
        fs::write(at("random.box"), [0x5a; 100]).unwrap();
        fs::write(at("empty.box"), "").unwrap();
        assert!(says("cut.box").unwrap_err().contains("is not a Vagrant box"));
        assert!(says("random.box").unwrap_err().ends_with("it is no archive"));
        assert!(says("empty.box").unwrap_err().ends_with("it is no archive"));
        assert!(says(".").unwrap_err().ends_with("it is not a regular file"));
    }

    #[test]
    fn names_stay_in_the_folder() {
        let (_dir, library, file) = library();
        for name in ["", ".", "..", "a/b", "A", ".x"] {
            let added = library.add(name, &file, None, Origin::Path(file.clone()), None, Vec::new());
            assert!(matches!(added, Err(Error::Name { .. })), "{name}");
        }
    }
}
