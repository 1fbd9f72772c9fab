//! The images that this user's clusters pulled: blobs by their SHA-256, and an index of names to digests.
//!
//! A node is not trusted: what it says an image is counts as far as the digests hold. A blob is written beside and renamed when its
//! SHA-256 is the one that was asked for, and checked again when it is given on. An image is in the index when all of it is there.
//!
//! The folder, its owner's alone: `index.json`, `blobs/SHA256`, `lock`; `part-*` of who writes just now.

mod archive;
mod arriving;
mod document;
mod name;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::fs;
use std::io::Write;
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};
use sha2::Sha256;

use crate::explain::{Explain, FailureKind};
use crate::os::Cancel;
use crate::os::files::{self, At};
use crate::os::hash::{self, hex};
use crate::os::lock::{self, Lock};

pub use archive::Packed;
pub use arriving::Arriving;
pub use document::Tree;
pub use name::{by_digest, full, repository};

/// The version of `index.json`.
const VERSION: u32 = 1;
/// All of it together.
pub const MOST_BYTES: u64 = 10 << 30;
/// How long an image stays that no cluster was given and none used.
pub const MOST_DAYS: i64 = 90;
/// What an index, a manifest or a configuration may have; registries allow 4 MiB.
pub const DOCUMENT: u64 = 4 << 20;
/// What somebody writes just now is younger.
const BEING_WRITTEN: Duration = Duration::from_secs(3600);

/// The SHA-256 of a blob, as `sha256:` and 64 lower-case digits; of another algorithm there is none.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Digest(String);

impl Digest {
    /// None where it is no such.
    pub fn parse(text: &str) -> Option<Self> {
        let digits = text.strip_prefix("sha256:")?;
        let hex = |b: u8| b.is_ascii_digit() || (b'a'..=b'f').contains(&b);
        (digits.len() == 64 && digits.bytes().all(hex)).then(|| Self(digits.to_owned()))
    }

    /// Its digits.
    pub fn hex(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "sha256:{}", self.0)
    }
}

impl TryFrom<String> for Digest {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        Self::parse(&text).ok_or_else(|| format!("`{text}` is no SHA-256 digest"))
    }
}

impl From<Digest> for String {
    fn from(digest: Digest) -> Self {
        digest.to_string()
    }
}

/// An image of an architecture.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Image {
    /// In full: `docker.io/library/nginx:1.27`.
    pub name: String,
    pub digest: Digest,
    /// As images have it: `amd64`.
    pub arch: String,
    /// Of all its blobs.
    pub bytes: u64,
    /// When it came.
    pub at: Timestamp,
    /// When a cluster had it, or was given it, last.
    pub used: Timestamp,
    /// It came by `p1 image load`.
    #[serde(default)]
    pub loaded: bool,
}

/// What is known of a cluster's images.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct OfCluster {
    /// Those that its new nodes are given, by name.
    pub names: BTreeSet<String>,
    /// Those that its nodes had from archives, which new nodes have from there too.
    pub passed: BTreeSet<Digest>,
    /// Those that Kubernetes asks a registry for at every start of a pod.
    pub always: BTreeSet<String>,
}

/// What there is.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Index {
    pub v: u32,
    pub images: Vec<Image>,
    pub clusters: BTreeMap<String, OfCluster>,
}

impl Index {
    /// The image of that name for that architecture.
    pub fn image(&self, name: &str, arch: &str) -> Option<&Image> {
        self.images.iter().find(|i| i.name == name && i.arch == arch)
    }

    /// What new nodes of a cluster are given.
    pub fn given(&self, cluster: &str, arch: &str) -> Vec<&Image> {
        let names = self.clusters.get(cluster).map(|of| &of.names);
        names.into_iter().flatten().filter_map(|name| self.image(name, arch)).collect()
    }

    /// Whether the image of that digest is here.
    pub fn has(&self, digest: &Digest) -> bool {
        self.images.iter().any(|i| i.digest == *digest)
    }

    /// Whether the image of that digest needs no look: it is here, or it came from an archive.
    pub fn knows(&self, cluster: &str, digest: &Digest) -> bool {
        self.has(digest) || self.clusters.get(cluster).is_some_and(|of| of.passed.contains(digest))
    }
}

/// Why something of it cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    File(#[from] files::Error),
    #[error(transparent)]
    Lock(#[from] lock::Error),
    /// Somebody changed it.
    #[error("{} is damaged: {reason}", path.display())]
    Damaged { path: PathBuf, reason: String },
    /// What came is not what was asked for.
    #[error("what came is not {digest}")]
    Other { digest: Digest },
    /// What came is no answer.
    #[error("the node's answer is not understood")]
    Nonsense,
    /// It has more bytes than it may.
    #[error("it has more than {most} bytes")]
    TooLarge { most: u64 },
    /// An archive that is none of images.
    #[error("{} {what}", path.display())]
    Archive { path: PathBuf, what: String },
    /// The user wants it to end.
    #[error("interrupted")]
    Cancelled,
}

impl Explain for Error {
    fn kind(&self) -> FailureKind {
        match self {
            Self::File(e) => e.kind(),
            Self::Lock(e) => e.kind(),
            Self::Damaged { .. } | Self::Other { .. } | Self::Nonsense => FailureKind::Damaged,
            Self::TooLarge { .. } | Self::Archive { .. } => FailureKind::Cannot,
            Self::Cancelled => FailureKind::Other,
        }
    }

    fn hint(&self) -> Option<String> {
        match self {
            Self::File(e) => e.hint(),
            Self::Lock(e) => e.hint(),
            Self::Damaged { .. } => Some("`p1 image prune --all` removes it with all images, which nodes pull again.".to_owned()),
            Self::Archive { .. } => Some(
                "It takes what `docker save` or `podman save` writes, or a tar archive of an OCI layout, also as .gz or .zst."
                    .to_owned(),
            ),
            Self::Other { .. } | Self::Nonsense | Self::TooLarge { .. } | Self::Cancelled => None,
        }
    }
}

/// The folder of all of them, in the user's data folder.
#[derive(Clone, Debug)]
pub struct Images {
    dir: PathBuf,
}

impl Images {
    /// In this folder.
    pub fn new(dir: PathBuf) -> Self {
        Self { dir }
    }

    /// For who changes the index.
    pub fn lock(&self, cancel: &Cancel) -> Result<Lock, Error> {
        files::private_dir(&self.dir)?;
        Ok(Lock::take(&self.dir.join("lock"), "image", Duration::from_secs(600), cancel)?)
    }

    /// What there is; nothing where there is no folder.
    pub fn index(&self) -> Result<Index, Error> {
        let path = self.dir.join("index.json");
        let Some(text) = files::read_if_there(&path)? else { return Ok(Index::default()) };
        let damaged = |reason: String| Error::Damaged { path: path.clone(), reason };
        let index: Index = serde_json::from_str(&text).map_err(|e| damaged(e.to_string()))?;
        if index.v != VERSION {
            return Err(damaged(format!("it is of format {}, this p1 knows {VERSION}", index.v)));
        }
        if let Some(wrong) = index.images.iter().find(|i| full(&i.name).as_ref() != Some(&i.name)) {
            return Err(damaged(format!("`{}` is no image's name", wrong.name)));
        }
        Ok(index)
    }

    fn write(&self, index: &mut Index) -> Result<(), Error> {
        index.v = VERSION;
        let text = serde_json::to_vec_pretty(&index).expect("plain data");
        files::write_if_changed(&self.dir.join("index.json"), &text, 0o600)?;
        Ok(())
    }

    fn blob(&self, digest: &Digest) -> PathBuf {
        self.dir.join("blobs").join(digest.hex())
    }

    /// The bytes of a blob that is here.
    pub fn len(&self, digest: &Digest) -> Option<u64> {
        fs::metadata(self.blob(digest)).ok().filter(fs::Metadata::is_file).map(|m| m.len())
    }

    /// A document, if it is here and whole; one that is damaged is as good as none.
    fn document(&self, digest: &Digest) -> Result<Option<Vec<u8>>, Error> {
        let path = self.blob(digest);
        if self.len(digest).is_none_or(|len| len > DOCUMENT) {
            return Ok(None);
        }
        let bytes = files::read(&path, DOCUMENT)?;
        if hash::sha256(&bytes) == digest.hex() {
            return Ok(Some(bytes));
        }
        files::remove_if_there(&path)?;
        Ok(None)
    }

    /// What there is of an image, and what it lacks. `absent` are blobs that are not to be had.
    pub fn tree(&self, root: &Digest, arch: &str, absent: &BTreeSet<Digest>) -> Result<Tree, Error> {
        document::tree(root, arch, absent, &|d| self.document(d), &|d| self.len(d))
    }

    /// A blob that comes; of at most so many bytes. Without a digest it becomes whatever it is.
    pub fn receive(&self, digest: Option<Digest>, most: u64) -> Result<Incoming, Error> {
        let dir = self.dir.join("blobs");
        files::private_dir(&self.dir)?;
        files::private_dir(&dir)?;
        let file = tempfile::Builder::new().prefix("part-").tempfile_in(&dir).at("create", &dir)?;
        Ok(Incoming { dir, file, hash: Sha256::default(), len: 0, most, digest })
    }

    /// A file that is written beside the blobs and is gone with its owner.
    pub fn part(&self) -> Result<tempfile::NamedTempFile, Error> {
        files::private_dir(&self.dir)?;
        Ok(tempfile::Builder::new().prefix("part-").tempfile_in(&self.dir).at("create", &self.dir)?)
    }

    /// Where a run puts an archive that nodes are given; its end removes it.
    pub fn scratch(&self, run: &str, arch: &str) -> Result<PathBuf, Error> {
        files::private_dir(&self.dir)?;
        Ok(self.dir.join(format!("part-{run}-{arch}.tar")))
    }

    /// Takes images that are whole into the index; those that were not, for one reason or another, are the answer. `note` changes
    /// what is known of the cluster. What is beyond the bounds goes, `but` never what came now.
    pub fn keep(
        &self,
        came: &[(String, Digest, String)],
        loaded: bool,
        now: Timestamp,
        note: impl FnOnce(&mut Index),
        cancel: &Cancel,
    ) -> Result<Vec<String>, Error> {
        let _lock = self.lock(cancel)?;
        let (mut index, mut lacking) = (self.index()?, Vec::new());
        for (name, digest, arch) in came {
            let tree = self.tree(digest, arch, &BTreeSet::new())?;
            if !tree.whole || full(name).as_ref() != Some(name) || tree.bytes() > MOST_BYTES {
                lacking.push(name.clone());
                continue;
            }
            let before = index.images.iter().position(|i| i.name == *name && i.arch == *arch);
            let before = before.map(|at| index.images.remove(at)).filter(|i| i.digest == *digest);
            index.images.push(Image {
                name: name.clone(),
                digest: digest.clone(),
                arch: arch.clone(),
                bytes: tree.bytes(),
                at: before.as_ref().map_or(now, |b| b.at),
                used: now,
                loaded: loaded || before.is_some_and(|b| b.loaded),
            });
        }
        note(&mut index);
        self.bound(&mut index, now)?;
        self.write(&mut index)?;
        self.sweep(&index)?;
        Ok(lacking)
    }

    /// Notes that images were given to nodes.
    pub fn use_now(&self, given: &[Image], now: Timestamp, cancel: &Cancel) -> Result<(), Error> {
        let _lock = self.lock(cancel)?;
        let mut index = self.index()?;
        let is_given = |i: &Image| given.iter().any(|g| (&g.name, &g.arch) == (&i.name, &i.arch));
        index.images.iter_mut().filter(|i| is_given(i)).for_each(|i| i.used = now);
        self.write(&mut index)
    }

    /// Removes what is beyond the bounds, or all of it. What went, and how many bytes that were.
    pub fn prune(&self, all: bool, now: Timestamp, cancel: &Cancel) -> Result<(Vec<Image>, u64), Error> {
        if !self.dir.is_dir() {
            return Ok((Vec::new(), 0));
        }
        let _lock = self.lock(cancel)?;
        let mut index = match self.index() {
            // That is the way out of a damaged one.
            Err(Error::Damaged { .. }) if all => Index::default(),
            index => index?,
        };
        let before = std::mem::take(&mut index.images);
        if !all {
            index.images.clone_from(&before);
            self.bound(&mut index, now)?;
        } else {
            index.clusters.clear();
        }
        self.write(&mut index)?;
        let bytes = self.sweep(&index)?;
        let stays = |i: &Image| index.images.iter().any(|s| (&s.name, &s.arch) == (&i.name, &i.arch));
        Ok((before.into_iter().filter(|i| !stays(i)).collect(), bytes))
    }

    /// All blobs that images are made of, each once.
    fn blobs(&self, image: &Image) -> Result<BTreeMap<Digest, u64>, Error> {
        Ok(self.tree(&image.digest, &image.arch, &BTreeSet::new())?.blobs)
    }

    /// Takes out what is too old, then what was not used for longest, until the rest is within the bound; and what is no longer
    /// whole.
    fn bound(&self, index: &mut Index, now: Timestamp) -> Result<(), Error> {
        let mut all = std::mem::take(&mut index.images);
        all.sort_by_key(|i| std::cmp::Reverse(i.used));
        let (mut counted, mut bytes) = (BTreeSet::new(), 0);
        for image in all {
            let tree = self.tree(&image.digest, &image.arch, &BTreeSet::new())?;
            let more: u64 =
                tree.blobs.iter().filter(|(d, _)| !counted.contains(*d)).map(|(_, len)| len).sum();
            let old = now.duration_since(image.used) > SignedDuration::from_hours(24 * MOST_DAYS);
            if tree.whole && !old && bytes + more <= MOST_BYTES {
                bytes += more;
                counted.extend(tree.blobs.into_keys());
                index.images.push(image);
            }
        }
        index.images.sort_by(|a, b| (&a.name, &a.arch).cmp(&(&b.name, &b.arch)));
        let there: BTreeSet<&String> = index.images.iter().map(|i| &i.name).collect();
        for of in index.clusters.values_mut() {
            of.names.retain(|name| there.contains(name));
        }
        Ok(())
    }

    /// Removes blobs that no image has, and what killed runs left; not what may be being written. How many bytes that were.
    fn sweep(&self, index: &Index) -> Result<u64, Error> {
        let mut known = BTreeSet::new();
        for image in &index.images {
            known.extend(self.blobs(image)?.into_keys().map(|d| d.hex().to_owned()));
        }
        let (mut bytes, now) = (0, SystemTime::now());
        let young = |m: &fs::Metadata| {
            m.modified().ok().and_then(|t| now.duration_since(t).ok()).is_none_or(|age| age < BEING_WRITTEN)
        };
        for dir in [self.dir.clone(), self.dir.join("blobs")] {
            for entry in fs::read_dir(&dir).into_iter().flatten().flatten() {
                let name = entry.file_name().to_string_lossy().into_owned();
                let part = name.starts_with("part-");
                let Ok(meta) = entry.metadata() else { continue };
                let lost = part || (dir.ends_with("blobs") && !known.contains(&name));
                // Nothing is left of the index: whoever writes for it starts over as well.
                let begins = index.images.is_empty() && !part;
                if lost && meta.is_file() && (begins || !young(&meta)) {
                    files::remove_if_there(&entry.path())?;
                    bytes += meta.len();
                }
            }
        }
        Ok(bytes)
    }
}

/// A blob on its way; nothing of it stays unless it is finished.
#[derive(Debug)]
pub struct Incoming {
    dir: PathBuf,
    file: tempfile::NamedTempFile,
    hash: Sha256,
    len: u64,
    most: u64,
    digest: Option<Digest>,
}

impl Incoming {
    /// More of it.
    pub fn push(&mut self, bytes: &[u8]) -> Result<(), Error> {
        self.len += bytes.len() as u64;
        if self.len > self.most {
            return Err(Error::TooLarge { most: self.most });
        }
        sha2::Digest::update(&mut self.hash, bytes);
        Ok(self.file.write_all(bytes).at("write", self.file.path())?)
    }

    /// That was all of it: it is there from now on if it is what it had to be.
    pub fn finish(self) -> Result<(Digest, u64), Error> {
        let is = Digest(hex(&sha2::Digest::finalize(self.hash)));
        if let Some(digest) = self.digest.filter(|d| *d != is) {
            return Err(Error::Other { digest });
        }
        let path = self.dir.join(is.hex());
        self.file.persist(&path).map_err(|e| e.error).at("write", &path)?;
        Ok((is, self.len))
    }
}

/// Bytes that are hashed on their way.
struct Hashing<W> {
    to: W,
    hash: Sha256,
    len: u64,
}

impl<W: Write> Hashing<W> {
    fn new(to: W) -> Self {
        Self { to, hash: Sha256::default(), len: 0 }
    }
}

impl<W: Write> Write for Hashing<W> {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        let n = self.to.write(bytes)?;
        sha2::Digest::update(&mut self.hash, &bytes[..n]);
        self.len += n as u64;
        Ok(n)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.to.flush()
    }
}

#[cfg(test)]
mod tests;
