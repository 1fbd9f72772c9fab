//! Files that are whole or absent, and private where they hold secrets.

use std::fs::{self, File, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};

/// An I/O error with the path it happened at.
#[derive(Debug, thiserror::Error)]
#[error("cannot {action} {}", path.display())]
pub struct Error {
    /// What was tried, as a verb: `read`, `write`, `create`.
    pub action: &'static str,
    /// Where.
    pub path: PathBuf,
    /// Why not.
    #[source]
    pub source: io::Error,
}

/// Adds the path to an I/O result.
pub trait At<T> {
    /// `action` is a verb such as `read`.
    fn at(self, action: &'static str, path: &Path) -> Result<T, Error>;
}

impl<T> At<T> for io::Result<T> {
    fn at(self, action: &'static str, path: &Path) -> Result<T, Error> {
        self.map_err(|source| Error { action, path: path.to_owned(), source })
    }
}

/// Creates `dir` and its parents; the last one gets mode 0700, also when it exists already.
pub fn private_dir(dir: &Path) -> Result<(), Error> {
    fs::DirBuilder::new().recursive(true).mode(0o700).create(dir).at("create", dir)?;
    fs::set_permissions(dir, Permissions::from_mode(0o700)).at("protect", dir)
}

/// Creates `dir` and its parents with the usual mode.
pub fn dir(dir: &Path) -> Result<(), Error> {
    fs::create_dir_all(dir).at("create", dir)
}

/// Reads a text file; `None` if there is none.
pub fn read_if_there(path: &Path) -> Result<Option<String>, Error> {
    match fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(e).at("read", path),
    }
}

/// Removes a file; it is fine if there is none.
pub fn remove_if_there(path: &Path) -> Result<(), Error> {
    match fs::remove_file(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e).at("remove", path),
        _ => Ok(()),
    }
}

/// Writes `bytes` to `path` with `mode`, so that a reader (and a crash at any instant) sees the
/// old file or the new one: a temporary file beside it, synced, renamed, the directory synced.
pub fn write(path: &Path, bytes: &[u8], mode: u32) -> Result<(), Error> {
    let parent = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let mut file = tempfile::Builder::new()
        .permissions(Permissions::from_mode(mode))
        .tempfile_in(parent)
        .at("write", path)?;
    file.write_all(bytes).at("write", path)?;
    // The process' umask has narrowed what tempfile asked for.
    file.as_file().set_permissions(Permissions::from_mode(mode)).at("write", path)?;
    file.as_file().sync_data().at("write", path)?;
    file.persist(path).map_err(|e| e.error).at("write", path)?;
    File::open(parent).and_then(|d| d.sync_all()).at("write", path)
}

/// [`write()`], unless the file holds these bytes already. True if it was written.
pub fn write_if_changed(path: &Path, bytes: &[u8], mode: u32) -> Result<bool, Error> {
    if fs::read(path).is_ok_and(|old| old == bytes) {
        return Ok(false);
    }
    write(path, bytes, mode).map(|()| true)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn write_replaces_whole_files_and_sets_the_mode() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("secret");
        write(&path, b"one", 0o644).unwrap();
        assert!(write_if_changed(&path, b"two", 0o600).unwrap());
        assert!(!write_if_changed(&path, b"two", 0o600).unwrap());
        assert_eq!(fs::read(&path).unwrap(), b"two");
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn errors_name_the_path() {
        let error = write(Path::new("/nonexistent/x"), b"", 0o600).unwrap_err();
        assert_eq!(error.to_string(), "cannot write /nonexistent/x");
    }
}
