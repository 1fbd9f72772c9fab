//! Files on this host and what is known of them.
//!
//! Hashing a k3s binary takes a good part of a second, so the sum is kept beside the file together
//! with its length and time of change, and counts as long as those are the same.

use std::fs;
use std::io::{ErrorKind, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::{Cache, Doing, Error, File, Progress};
use crate::os::Cancel;
use crate::os::files::{self, At};
use crate::os::hash::{hex, short};

/// What is known of a file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Known {
    pub path: PathBuf,
    pub sha256: String,
    pub len: u64,
    /// Nanoseconds since 1970; several changes in one tick of the clock are not told apart.
    pub mtime: i128,
    /// What the binary said to `--version`; the inner `None`: it was asked and said nothing.
    #[serde(default)]
    pub version: Option<Option<String>>,
}

/// Where it is written down.
pub(super) fn beside(path: &Path, end: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(end);
    name.into()
}

/// Where it is written down for a file that is not in the cache.
pub(super) fn local(cache: &Cache, path: &Path) -> PathBuf {
    cache.dir.join("local").join(format!("{}.json", short_hash(&path.to_string_lossy())))
}

/// 16 hex digits that stand for `text` in a file's name.
pub(super) fn short_hash(text: &str) -> String {
    short(text)
}

/// What `note` says of `path`, if it still holds. No file is hashed.
pub(super) fn recall(path: &Path, note: &Path) -> Option<Known> {
    let known: Known = serde_json::from_str(&fs::read_to_string(note).ok()?).ok()?;
    let meta = fs::metadata(path).ok()?;
    let same = known.path == path && known.len == meta.len() && known.mtime == mtime(&meta);
    same.then_some(known)
}

/// What `note` said last, whether it still holds or not.
pub(super) fn last_sum(note: &Path) -> Option<String> {
    let known: Known = serde_json::from_str(&fs::read_to_string(note).ok()?).ok()?;
    Some(known.sha256)
}

/// Hashes `path`. `None` when there is no such file.
pub(super) fn look(
    name: &str,
    path: &Path,
    progress: &mut dyn FnMut(Progress),
    cancel: &Cancel,
) -> Result<Option<Known>, Error> {
    let meta = match fs::metadata(path) {
        Err(e) if matches!(e.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => return Ok(None),
        other => other.at("read", path)?,
    };
    let mut report = |done| {
        progress(Progress { name, doing: Doing::Checking, done, total: Some(meta.len()) });
    };
    let (hasher, len) = hash(path, &mut report, cancel)?;
    let sha256 = hex(&hasher.finalize());
    Ok(Some(Known { path: path.to_owned(), sha256, len, mtime: mtime(&meta), version: None }))
}

/// Reads all of `path` into a hash; also says how many bytes that were.
pub(super) fn hash(
    path: &Path,
    report: &mut dyn FnMut(u64),
    cancel: &Cancel,
) -> Result<(Sha256, u64), Error> {
    let mut file = files::open(path)?;
    let mut hasher = Sha256::new();
    let mut buffer = vec![0; 1 << 18];
    let mut len = 0;
    loop {
        if cancel.aborted() {
            return Err(Error::Cancelled);
        }
        let n = file.read(&mut buffer).at("read", path)?;
        if n == 0 {
            return Ok((hasher, len));
        }
        hasher.update(&buffer[..n]);
        len += n as u64;
        report(len);
    }
}

/// Keeps `known` for the next time.
pub(super) fn write_down(note: &Path, known: &Known) -> Result<(), Error> {
    if let Some(dir) = note.parent() {
        files::dir(dir)?;
    }
    let text = serde_json::to_vec(known).expect("plain data");
    Ok(files::write(note, &text, 0o644)?)
}

pub(super) fn mtime(meta: &fs::Metadata) -> i128 {
    i128::from(meta.mtime()) * 1_000_000_000 + i128::from(meta.mtime_nsec())
}

impl Known {
    pub(super) fn file(self, name: &str) -> File {
        File { name: name.to_owned(), path: self.path, sha256: self.sha256, len: self.len }
    }
}
