//! Locks between processes. The kernel frees them when their owner dies, so none is ever stale;
//! the file's text only says whose it is.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{Read, Seek, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use super::cancel::{Cancel, Level};
use super::files::{self, At};

/// Who holds a lock.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Owner {
    /// Process id.
    pub pid: u32,
    /// The verb it runs.
    pub verb: String,
    /// Since when, RFC 3339.
    pub since: jiff::Timestamp,
}

/// Why there is no lock.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Another process has it.
    #[error("{} is locked by another p1{}", path.display(), describe(owner))]
    Held {
        path: PathBuf,
        /// As its holder wrote it; unreadable for an instant while it writes.
        owner: Option<Owner>,
    },
    /// The file cannot be used.
    #[error(transparent)]
    File(#[from] files::Error),
}

fn describe(owner: &Option<Owner>) -> String {
    match owner {
        Some(o) => format!(" (pid {}, `{}`, since {})", o.pid, o.verb, o.since),
        None => String::new(),
    }
}

/// Held until dropped.
#[derive(Debug)]
pub struct Lock {
    _file: File,
}

impl Lock {
    /// Takes the lock at `path`, waiting up to `wait` for another holder; the wait ends when the
    /// user asks to stop. The file stays when the lock is freed; should its whole folder have been
    /// removed by the former owner, the lock is one of the new file of that name.
    pub fn take(path: &Path, verb: &str, wait: Duration, cancel: &Cancel) -> Result<Self, Error> {
        Self::take_telling(path, verb, wait, cancel, &mut |_| {})
    }

    /// [`Lock::take`]; `tell` hears once for whom it has to wait.
    pub fn take_telling(
        path: &Path,
        verb: &str,
        wait: Duration,
        cancel: &Cancel,
        tell: &mut dyn FnMut(Option<&Owner>),
    ) -> Result<Self, Error> {
        let end = Instant::now() + wait;
        let mut told = false;
        let mut file = open(path)?;
        loop {
            match file.try_lock() {
                Ok(()) if is_at(&file, path) => break,
                // Its owner removed it while we waited: nobody else would see a lock of it.
                Ok(()) => {
                    file = open(path)?;
                    continue;
                }
                Err(TryLockError::Error(e)) => {
                    return Err(Err::<(), _>(e).at("lock", path).unwrap_err().into());
                }
                Err(TryLockError::WouldBlock) => {}
            }
            let done = Instant::now() >= end;
            if !done && !told {
                tell(read_owner(&mut file).as_ref());
                told = true;
            }
            if done || cancel.sleep(Duration::from_millis(100), Level::Stop) {
                return Err(Error::Held { path: path.to_owned(), owner: read_owner(&mut file) });
            }
        }
        let owner = Owner { pid: std::process::id(), verb: verb.to_owned(), since: now_seconds() };
        let text = serde_json::to_vec(&owner).expect("an owner is plain data");
        file.set_len(0).and_then(|()| file.rewind()).at("write", path)?;
        file.write_all(&text).at("write", path)?;
        Ok(Self { _file: file })
    }
}

fn open(path: &Path) -> Result<File, Error> {
    if let Some(dir) = path.parent().filter(|d| !d.is_dir()) {
        files::private_dir(dir)?;
    }
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true).truncate(false).mode(0o600);
    if path.exists() {
        files::open(path)?;
    }
    Ok(options.open(path).at("open", path)?)
}

/// True if `file` is still the one at `path`.
fn is_at(file: &File, path: &Path) -> bool {
    let id = |meta: std::fs::Metadata| (meta.dev(), meta.ino());
    matches!((file.metadata().map(id), path.metadata().map(id)), (Ok(mine), Ok(there)) if mine == there)
}

/// Who holds the lock at `path` now; `None` when it is free or absent.
pub fn holder(path: &Path) -> Option<Owner> {
    let mut file = files::open(path).ok()?;
    match file.try_lock_shared() {
        Err(TryLockError::WouldBlock) => read_owner(&mut file),
        _ => None,
    }
}

fn read_owner(file: &mut File) -> Option<Owner> {
    let mut text = String::new();
    file.rewind().ok()?;
    file.read_to_string(&mut text).ok()?;
    serde_json::from_str(&text).ok()
}

fn now_seconds() -> jiff::Timestamp {
    jiff::Timestamp::from_second(jiff::Timestamp::now().as_second()).expect("now is in range")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_taker_learns_who_has_it_and_gets_it_when_freed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("lock");
        let cancel = Cancel::new();
        let first = Lock::take(&path, "up", Duration::ZERO, &cancel).unwrap();
        let error = Lock::take(&path, "destroy", Duration::ZERO, &cancel).unwrap_err();
        let Error::Held { owner: Some(owner), .. } = &error else { panic!("{error}") };
        assert_eq!((owner.pid, owner.verb.as_str()), (std::process::id(), "up"));
        assert_eq!(holder(&path).unwrap().verb, "up");
        drop(first);
        assert_eq!(holder(&path), None);
        Lock::take(&path, "destroy", Duration::ZERO, &cancel).unwrap();
    }

    /// As `destroy` does with the whole folder.
    #[test]
    fn a_lock_whose_file_was_removed_meanwhile_is_none() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("cluster/lock");
        let cancel = Cancel::new();
        let first = Lock::take(&path, "destroy", Duration::ZERO, &cancel).unwrap();
        let mut waits = Vec::new();
        let second = std::thread::scope(|scope| {
            let (tell, told) = std::sync::mpsc::channel();
            let (path, cancel) = (&path, &cancel);
            let second = scope.spawn(move || {
                let wait = Duration::from_secs(30);
                Lock::take_telling(path, "up", wait, cancel, &mut |owner| tell.send(owner.cloned()).unwrap())
            });
            waits.push(told.recv().unwrap().unwrap().verb);
            std::fs::remove_dir_all(path.parent().unwrap()).unwrap();
            drop(first);
            second.join().unwrap().unwrap()
        });
        assert_eq!(waits, ["destroy"]);
        assert_eq!(holder(&path).unwrap().verb, "up");
        assert!(Lock::take(&path, "stop", Duration::ZERO, &cancel).is_err());
        drop(second);
    }
}
