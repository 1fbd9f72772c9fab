//! Files that are whole or absent, and private where they hold secrets.

use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

/// More links behind each other than this lead nowhere (path_resolution(7)).
const LINKS: usize = 40;

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

/// The user who owns what is at this path, if it is not p1's own.
pub fn owner(path: &Path) -> Option<String> {
    // What lies in a folder that cannot be entered is not seen; the folder is.
    let uid = path.ancestors().find_map(|p| fs::symlink_metadata(p).ok())?.uid();
    if uid == nix::unistd::Uid::effective().as_raw() {
        return None;
    }
    let user = nix::unistd::User::from_uid(uid.into()).ok().flatten();
    Some(user.map_or_else(|| format!("uid {uid}"), |user| user.name))
}

/// What a file of p1's own, or one that is named to it, may have at most if it is held in memory.
pub const MAX_BYTES: u64 = 64 << 20;

/// Opens a file for reading. What is none is refused: to open a FIFO may take for ever, and a device need
/// not end.
pub fn open(path: &Path) -> Result<File, Error> {
    let open = || {
        is_file(&fs::metadata(path)?)?;
        // It may have become another one since.
        let file = OpenOptions::new().read(true).custom_flags(nix::libc::O_NONBLOCK).open(path)?;
        is_file(&file.metadata()?)?;
        Ok(file)
    };
    open().at("read", path)
}

/// An error unless it is a regular file.
fn is_file(meta: &fs::Metadata) -> io::Result<()> {
    let kind = meta.file_type();
    let what = match () {
        () if kind.is_file() => return Ok(()),
        () if kind.is_dir() => return Err(nix::errno::Errno::EISDIR.into()),
        () if kind.is_fifo() => "a FIFO",
        () if kind.is_socket() => "a socket",
        () => "a device",
    };
    Err(io::Error::new(io::ErrorKind::InvalidInput, format!("it is {what}, not a file")))
}

/// Reads a file of at most `most` bytes.
pub fn read(path: &Path, most: u64) -> Result<Vec<u8>, Error> {
    let file = open(path)?;
    let mut bytes = Vec::new();
    file.take(most.saturating_add(1)).read_to_end(&mut bytes).at("read", path)?;
    if bytes.len() as u64 > most {
        let why = format!("it has more than {most} bytes");
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, why)).at("read", path);
    }
    Ok(bytes)
}

/// Reads a text file; `None` if there is none.
pub fn read_if_there(path: &Path) -> Result<Option<String>, Error> {
    match read(path, MAX_BYTES) {
        Ok(bytes) => {
            let text = String::from_utf8(bytes);
            Ok(Some(
                text.map_err(|_| io::Error::new(io::ErrorKind::InvalidData, "it is no text (UTF-8)"))
                    .at("read", path)?,
            ))
        }
        Err(e) if e.source.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(e),
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
    // A device, a FIFO or a folder of that name is somebody's, and no file is put in its place.
    if let Ok(meta) = fs::metadata(path) {
        is_file(&meta).at("write", path)?;
    }
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
    if read(path, bytes.len() as u64).is_ok_and(|old| old == bytes) {
        return Ok(false);
    }
    write(path, bytes, mode).map(|()| true)
}

/// Where a path leads if its last part is a link, and so on; the file itself need not be there. What is written
/// through a link is the file behind it, and the link stays.
pub fn behind_links(path: &Path) -> Result<PathBuf, Error> {
    let mut path = path.to_owned();
    for _ in 0..LINKS {
        match fs::read_link(&path) {
            Ok(to) => path = path.parent().unwrap_or(Path::new("")).join(to),
            Err(_) => return Ok(path),
        }
    }
    Err(io::Error::from_raw_os_error(nix::libc::ELOOP)).at("follow", &path)
}

/// A regular file's metadata; `None` if there is nothing.
///
/// # Errors
/// Where something else is: a folder, a device, a FIFO, which writing by renaming would replace and reading would
/// wait for without end.
pub fn regular(path: &Path) -> Result<Option<fs::Metadata>, Error> {
    let kind = |what: &str| Err(io::Error::other(format!("it is {what}, and no file"))).at("use", path);
    let meta = match fs::metadata(path) {
        Ok(meta) => meta,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(e).at("read", path),
    };
    let of = meta.file_type();
    match () {
        () if of.is_file() => Ok(Some(meta)),
        () if of.is_dir() => kind("a folder"),
        () if of.is_fifo() => kind("a FIFO"),
        () if of.is_socket() => kind("a socket"),
        () => kind("a device"),
    }
}

/// Writes into a file of the user's: its mode, its owner and the links that lead to it stay as they are. Whole, as
/// [`write()`] does it, unless that would part it from its other names or give it to somebody else: then in its
/// place. One that is not there gets `mode`.
///
/// # Errors
/// As [`regular`]; where the file may not be written; as [`write()`].
pub fn write_users(path: &Path, bytes: &[u8], mode: u32) -> Result<(), Error> {
    let path = &behind_links(path)?;
    let Some(meta) = regular(path)? else { return write(path, bytes, mode) };
    // By itself this changes nothing; a file that is read-only stays so.
    let mut file = fs::OpenOptions::new()
        .write(true)
        .custom_flags(nix::libc::O_NONBLOCK | nix::libc::O_NOFOLLOW)
        .open(path)
        .at("write", path)?;
    let parent = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let beside = tempfile::Builder::new().permissions(Permissions::from_mode(0o600)).tempfile_in(parent);
    if let Ok(mut new) = beside
        && meta.nlink() == 1
        && same_owner(new.as_file(), &meta)
    {
        new.write_all(bytes).at("write", path)?;
        // After the owner: changing that takes some bits away.
        let mode = Permissions::from_mode(meta.mode() & 0o7777);
        new.as_file().set_permissions(mode).at("write", path)?;
        new.as_file().sync_data().at("write", path)?;
        new.persist(path).map_err(|e| e.error).at("write", path)?;
        return File::open(parent).and_then(|d| d.sync_all()).at("write", path);
    }
    file.write_all(bytes).at("write", path)?;
    file.set_len(bytes.len() as u64).at("write", path)?;
    file.sync_all().at("write", path)
}

/// Makes a file the same user's and group's; false if it cannot.
fn same_owner(file: &File, meta: &fs::Metadata) -> bool {
    let same = file.metadata().is_ok_and(|m| (m.uid(), m.gid()) == (meta.uid(), meta.gid()));
    same || std::os::unix::fs::fchown(file, Some(meta.uid()), Some(meta.gid())).is_ok()
}

/// Keeps the bytes of a file of the user's beside it, as `FILE.p1-backup`, or with a number where that is taken: one
/// that is there is never written over. Nobody but the file's owner can read it. Where it lies; the same as before
/// if the newest already has these bytes.
pub fn keep_beside(path: &Path, bytes: &[u8]) -> Result<PathBuf, Error> {
    let name = |n: u32| {
        let mut name = path.as_os_str().to_owned();
        name.push(".p1-backup");
        if n > 0 {
            name.push(format!(".{n}"));
        }
        PathBuf::from(name)
    };
    for n in 0.. {
        let kept = name(n);
        match fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&kept) {
            Ok(mut file) => {
                if let Ok(meta) = fs::metadata(path) {
                    same_owner(&file, &meta);
                }
                file.write_all(bytes).and_then(|()| file.sync_all()).at("write", &kept)?;
                return Ok(kept);
            }
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {
                let newest = name(n + 1).symlink_metadata().is_err();
                let there = regular(&kept).ok().flatten().is_some_and(|m| m.len() == bytes.len() as u64);
                if newest && there && fs::read(&kept).is_ok_and(|old| old == bytes) {
                    return Ok(kept);
                }
            }
            Err(e) => return Err(e).at("write", &kept),
        }
    }
    unreachable!("some number is free")
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

    /// What the user made of it stays: the link, the mode, the other name.
    #[test]
    fn a_file_of_the_users_stays_what_it_is() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        fs::create_dir(at("dotfiles")).unwrap();
        fs::write(at("dotfiles/config"), "old").unwrap();
        fs::set_permissions(at("dotfiles/config"), Permissions::from_mode(0o640)).unwrap();
        std::os::unix::fs::symlink("dotfiles/config", at("link")).unwrap();
        write_users(&at("link"), b"new", 0o600).unwrap();
        assert!(at("link").symlink_metadata().unwrap().is_symlink());
        assert_eq!(fs::read(at("dotfiles/config")).unwrap(), b"new");
        assert_eq!(fs::metadata(at("link")).unwrap().mode() & 0o777, 0o640);

        fs::hard_link(at("dotfiles/config"), at("other")).unwrap();
        write_users(&at("link"), b"shorter".split_at(3).0, 0o600).unwrap();
        assert_eq!(fs::read(at("other")).unwrap(), b"sho");

        // A link to what is not there yet makes it there, private.
        std::os::unix::fs::symlink("dotfiles/later", at("dangling")).unwrap();
        write_users(&at("dangling"), b"x", 0o600).unwrap();
        assert_eq!(fs::metadata(at("dotfiles/later")).unwrap().mode() & 0o777, 0o600);
        if nix::unistd::geteuid().is_root() {
            std::os::unix::fs::chown(at("dotfiles/later"), Some(12345), Some(54321)).unwrap();
            write_users(&at("dangling"), b"y", 0o600).unwrap();
            let meta = fs::metadata(at("dotfiles/later")).unwrap();
            assert_eq!((meta.uid(), meta.gid(), meta.mode() & 0o777), (12345, 54321, 0o600));
            assert_eq!(fs::metadata(keep_beside(&at("dotfiles/later"), b"y").unwrap()).unwrap().uid(), 12345);
        }

        std::os::unix::fs::symlink("round", at("round")).unwrap();
        nix::unistd::mkfifo(&at("fifo"), nix::sys::stat::Mode::S_IRWXU).unwrap();
        for (bad, why) in
            [(at("fifo"), "FIFO"), (at("dotfiles"), "folder"), (PathBuf::from("/dev/null"), "device")]
        {
            let error = write_users(&bad, b"x", 0o600).unwrap_err();
            assert!(crate::explain::chain(&error).contains(why), "{error}");
        }
        assert!(write_users(&at("round"), b"x", 0o600).is_err());
        assert!(at("fifo").symlink_metadata().unwrap().file_type().is_fifo());
    }

    #[test]
    fn a_kept_file_is_never_written_over() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("config");
        let kept: Vec<_> =
            ["a", "a", "b", "a"].iter().map(|t| keep_beside(&path, t.as_bytes()).unwrap()).collect();
        assert_eq!(kept[0], kept[1]);
        let texts: Vec<_> = kept[1..].iter().map(|k| fs::read_to_string(k).unwrap()).collect();
        assert_eq!(texts, ["a", "b", "a"]);
        assert!(kept[3].to_string_lossy().ends_with("config.p1-backup.2"));
        assert_eq!(fs::metadata(&kept[0]).unwrap().mode() & 0o777, 0o600);
    }

    /// Neither read, which may take for ever, nor replaced.
    #[test]
    fn what_is_no_file_is_refused_at_once() {
        let dir = tempfile::tempdir().unwrap();
        let fifo = dir.path().join("fifo");
        nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).unwrap();
        let link = dir.path().join("link");
        std::os::unix::fs::symlink("/dev/zero", &link).unwrap();
        let socket = dir.path().join("socket");
        let _socket = std::os::unix::net::UnixListener::bind(&socket).unwrap();
        for (path, what) in [
            (&fifo, "a FIFO"),
            (&link, "a device"),
            (&PathBuf::from("/dev/zero"), "a device"),
            (&socket, "a socket"),
        ] {
            for error in [
                read(path, MAX_BYTES).unwrap_err(),
                read_if_there(path).unwrap_err(),
                write(path, b"x", 0o600).unwrap_err(),
                write_if_changed(path, b"x", 0o600).unwrap_err(),
            ] {
                assert_eq!(error.source.to_string(), format!("it is {what}, not a file"), "{error}");
            }
        }
        assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
        write(&dir.path().join("f"), b"12345", 0o600).unwrap();
        assert_eq!(
            read(&dir.path().join("f"), 4).unwrap_err().source.to_string(),
            "it has more than 4 bytes"
        );
        assert!(read(dir.path(), 9).unwrap_err().source.to_string().contains("Is a directory"));
    }

    #[test]
    fn errors_name_the_path() {
        let error = write(Path::new("/nonexistent/x"), b"", 0o600).unwrap_err();
        assert_eq!(error.to_string(), "cannot write /nonexistent/x");
    }
}
