//! A file or a folder as an archive, and out of one into its place: whole, or not at all.
//!
//! An archive has what is copied as [`NEW`], and [`WHOLE`] as its last entry: one that was cut off, also between two
//! entries, where tar sees an ordinary end, lacks it.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Component, Path, PathBuf};

use tar::{Archive, Builder, EntryType, Header, HeaderMode};

use super::files::{self, At};

/// What is copied, in an archive and in the folder that it is taken out into.
pub const NEW: &str = "new";
/// An empty file behind all else.
pub const WHOLE: &str = "whole";

/// Why something could not be copied.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file of this host.
    #[error(transparent)]
    File(#[from] files::Error),
    /// Another kind of file is where it is to be.
    #[error("{} is a {is}, and what is copied is a {new}", path.display())]
    Other {
        /// Where.
        path: PathBuf,
        /// What is there.
        is: &'static str,
        /// What was to be there.
        new: &'static str,
    },
    /// What leads to the place is not a folder but a link to one, which whoever sent it may have made.
    #[error("{} is a link, and what is copied into a folder does not go through links in it", path.display())]
    Link {
        /// Which.
        path: PathBuf,
    },
    /// What came is no archive, or only the beginning of one.
    #[error("what came is not a whole archive: {0}")]
    Archive(#[source] io::Error),
}

/// How much there is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Size {
    /// Files, links among them.
    pub files: u64,
    /// Bytes in files.
    pub bytes: u64,
}

/// What is below a path, of which a link at the top is followed.
pub fn size(path: &Path) -> Result<Size, Error> {
    let mut size = Size::default();
    walk(path, Path::new(""), &mut |path, meta, _| {
        if !meta.is_dir() {
            size.files += 1;
        }
        if meta.is_file() {
            size.bytes += meta.len();
        }
        let _ = path;
        Ok(())
    })?;
    Ok(size)
}

/// Each file below `path` with its place below it, folders before what is in them, by name.
fn walk(
    path: &Path,
    place: &Path,
    each: &mut dyn FnMut(&Path, &fs::Metadata, &Path) -> Result<(), Error>,
) -> Result<(), Error> {
    let top = place.as_os_str().is_empty();
    let meta = if top { fs::metadata(path) } else { fs::symlink_metadata(path) }.at("read", path)?;
    each(path, &meta, place)?;
    if meta.is_dir() {
        let entries =
            fs::read_dir(path).and_then(Iterator::collect::<io::Result<Vec<_>>>).at("read", path)?;
        let mut names: Vec<_> = entries.into_iter().map(|entry| entry.file_name()).collect();
        names.sort();
        for name in names {
            walk(&path.join(&name), &place.join(&name), each)?;
        }
    }
    Ok(())
}

/// Writes what is at `path`. Links stay links, except for `path` itself; what is neither file, folder nor link is left
/// out, and `left_out` hears of it.
pub fn write(path: &Path, to: impl Write, left_out: &mut dyn FnMut(&Path)) -> Result<(), Error> {
    let mut archive = Builder::new(to);
    walk(path, Path::new(""), &mut |path, meta, place| {
        let name = match place.as_os_str().is_empty() {
            true => PathBuf::from(NEW),
            false => Path::new(NEW).join(place),
        };
        let mut header = Header::new_gnu();
        header.set_metadata_in_mode(meta, HeaderMode::Deterministic);
        header.set_mode(meta.permissions().mode() & 0o777);
        let kind = meta.file_type();
        let done = if kind.is_dir() {
            header.set_size(0);
            archive.append_data(&mut header, &name, io::empty())
        } else if kind.is_symlink() {
            header.set_size(0);
            fs::read_link(path).and_then(|target| archive.append_link(&mut header, &name, target))
        } else if kind.is_file() {
            let file = files::open(path)?;
            archive.append_data(&mut header, &name, Exactly { file, left: meta.len() })
        } else {
            left_out(path);
            Ok(())
        };
        Ok(done.at("copy", path)?)
    })?;
    let mut header = Header::new_gnu();
    header.set_size(0);
    header.set_mode(0o600);
    header.set_entry_type(EntryType::Regular);
    archive.append_data(&mut header, WHOLE, io::empty()).at("copy", path)?;
    archive.into_inner().and_then(|mut to| to.flush()).at("copy", path)?;
    Ok(())
}

/// So many bytes of a file, which may grow meanwhile; an error if it shrank.
struct Exactly {
    file: File,
    left: u64,
}

impl Read for Exactly {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let most = usize::try_from(self.left).unwrap_or(usize::MAX).min(buffer.len());
        let n = self.file.read(&mut buffer[..most])?;
        self.left -= n as u64;
        if n == 0 && most > 0 {
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "it became shorter while it was read"));
        }
        Ok(n)
    }
}

/// Takes what a stranger's tar wrote out into the folder `part`, as [`NEW`]: one file where `single`, else a folder.
/// Nothing is written outside of `part`; links that lead out of the folder, and what is neither file, folder nor
/// link, are left out, and `left_out` hears of them.
pub fn read(
    from: impl Read,
    part: &Path,
    single: bool,
    left_out: &mut dyn FnMut(&Path),
) -> Result<Size, Error> {
    let mut archive = Archive::new(from);
    archive.set_preserve_mtime(false);
    let mut size = Size::default();
    let new = part.join(NEW);
    if !single {
        fs::create_dir(&new).at("create", &new)?;
    }
    for entry in archive.entries().map_err(Error::Archive)? {
        let mut entry = entry.map_err(Error::Archive)?;
        let path = entry.path().map_err(Error::Archive)?.into_owned();
        let kind = entry.header().entry_type();
        let mode = entry.header().mode().map_err(Error::Archive)? & 0o777;
        if single {
            if !kind.is_file() {
                left_out(&path);
                continue;
            }
            let mut file = File::create(&new).at("create", &new)?;
            size.bytes += io::copy(&mut entry, &mut file).map_err(Error::Archive)?;
            file.set_permissions(fs::Permissions::from_mode(mode)).at("protect", &new)?;
            size.files += 1;
            continue;
        }
        let leads_out = || match entry.link_name() {
            Ok(Some(target)) => {
                !target.components().all(|c| matches!(c, Component::Normal(_) | Component::CurDir))
            }
            _ => true,
        };
        if !(kind.is_file() || kind.is_dir() || kind.is_symlink() && !leads_out()) {
            left_out(&path);
            continue;
        }
        // Neither above the folder nor through a link in it.
        if !entry.unpack_in(&new).map_err(Error::Archive)? {
            left_out(&path);
            continue;
        }
        if !kind.is_dir() {
            size.files += 1;
        }
        size.bytes += if kind.is_file() { entry.size() } else { 0 };
    }
    Ok(size)
}

/// Where something of that name goes that is copied to `to`: into a folder that is there, else to where it says.
pub fn target(to: &Path, name: &str) -> PathBuf {
    if to.is_dir() { to.join(name) } else { to.to_owned() }
}

/// Puts [`NEW`] of the folder `part`, which lies beside `target`, into its place. A folder goes into one that is there
/// file by file; each of them is the old one or the new one at every moment.
pub fn place(part: &Path, target: &Path) -> Result<(), Error> {
    let new = part.join(NEW);
    let kind = |meta: &fs::Metadata| if meta.is_dir() { "folder" } else { "file" };
    let is_dir = fs::symlink_metadata(&new).at("read", &new)?.is_dir();
    match (is_dir, fs::metadata(target)) {
        (true, Ok(there)) if there.is_dir() => merge(&new, target),
        (false, Ok(there)) if !there.is_dir() => Ok(fs::rename(&new, target).at("write", target)?),
        (_, Ok(there)) => Err(Error::Other {
            path: target.to_owned(),
            is: kind(&there),
            new: if is_dir { "folder" } else { "file" },
        }),
        (_, Err(_)) => Ok(fs::rename(&new, target).at("write", target)?),
    }
}

fn merge(new: &Path, into: &Path) -> Result<(), Error> {
    for entry in fs::read_dir(new).and_then(Iterator::collect::<io::Result<Vec<_>>>).at("read", new)? {
        let (from, to) = (entry.path(), into.join(entry.file_name()));
        let is_dir = entry.file_type().at("read", &from)?.is_dir();
        match fs::symlink_metadata(&to) {
            Ok(there) if is_dir && there.is_dir() => merge(&from, &to)?,
            Ok(there) if is_dir && there.is_symlink() => return Err(Error::Link { path: to }),
            Ok(there) if is_dir || there.is_dir() => {
                let (is, new) = if is_dir { ("file", "folder") } else { ("folder", "file") };
                return Err(Error::Other { path: to, is, new });
            }
            _ => fs::rename(&from, &to).at("write", &to)?,
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    fn tree(dir: &Path) {
        fs::create_dir_all(dir.join("sub/empty")).unwrap();
        fs::write(dir.join("a"), "one").unwrap();
        fs::write(dir.join("sub/b c"), vec![7; 5000]).unwrap();
        fs::set_permissions(dir.join("a"), fs::Permissions::from_mode(0o4750)).unwrap();
        symlink("a", dir.join("link")).unwrap();
    }

    /// As a node's own tar has it.
    fn archived(dir: &Path) -> Vec<u8> {
        let mut bytes = Vec::new();
        write(dir, &mut bytes, &mut |_| {}).unwrap();
        bytes
    }

    #[test]
    fn what_comes_out_is_what_went_in() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        tree(&at("from"));
        assert_eq!(size(&at("from")).unwrap(), Size { files: 3, bytes: 5003 });
        nix::unistd::mkfifo(&at("from/fifo"), nix::sys::stat::Mode::S_IRWXU).unwrap();
        let (mut bytes, mut left) = (Vec::new(), Vec::new());
        write(&at("from"), &mut bytes, &mut |path| left.push(path.to_owned())).unwrap();
        assert_eq!(left, [at("from/fifo")]);
        fs::create_dir(at("part")).unwrap();
        let got = read(&bytes[..], &at("part"), false, &mut |path| panic!("{}", path.display())).unwrap();
        assert_eq!(got, Size { files: 4, bytes: 5003 });
        assert!(at("part/new/whole").exists());
        let new = at("part/new/new");
        assert_eq!(fs::read(new.join("sub/b c")).unwrap(), vec![7; 5000]);
        assert!(new.join("sub/empty").is_dir() && !new.join("fifo").exists());
        assert_eq!(fs::read_link(new.join("link")).unwrap(), Path::new("a"));
        assert_eq!(fs::metadata(new.join("a")).unwrap().permissions().mode() & 0o7777, 0o750);
    }

    /// Wherever it is cut, the last entry is missing or the archive is no archive.
    #[test]
    fn a_cut_archive_is_never_whole() {
        let dir = tempfile::tempdir().unwrap();
        tree(&dir.path().join("from"));
        let bytes = archived(&dir.path().join("from"));
        let end = bytes.len() - 1024;
        for cut in (0..end).step_by(256) {
            let part = dir.path().join(format!("part{cut}"));
            fs::create_dir(&part).unwrap();
            let _ = read(&bytes[..cut], &part, false, &mut |_| {});
            assert!(!part.join("new/whole").exists() || cut > end - 512, "cut at {cut}");
        }
    }

    #[test]
    fn a_stranger_writes_nowhere_but_into_the_folder() {
        let dir = tempfile::tempdir().unwrap();
        let mut archive = Builder::new(Vec::new());
        let mut header = Header::new_gnu();
        header.set_mode(0o644);
        for (name, target) in [("out", "/etc"), ("up", "../.."), ("fine", "x")] {
            header.set_size(0);
            header.set_entry_type(EntryType::Symlink);
            archive.append_link(&mut header, name, target).unwrap();
        }
        header.set_entry_type(EntryType::Regular);
        header.set_size(2);
        for name in ["out/hostname", "x"] {
            archive.append_data(&mut header, name, &b"no"[..]).unwrap();
        }
        // A name that leads up, which the library does not write.
        header.as_old_mut().name[..10].copy_from_slice(b"../../bad\0");
        header.set_cksum();
        archive.append(&header, &b"no"[..]).unwrap();
        let bytes = archive.into_inner().unwrap();
        let part = dir.path().join("a/b");
        fs::create_dir_all(&part).unwrap();
        let mut left = Vec::new();
        read(&bytes[..], &part, false, &mut |path| left.push(path.display().to_string())).unwrap();
        assert_eq!(left, ["out", "up", "../../bad"]);
        assert!(!dir.path().join("bad").exists() && !dir.path().join("a/bad").exists());
        // The link was left out, so that its name is a folder like any other.
        assert_eq!(fs::read_to_string(part.join("new/out/hostname")).unwrap(), "no");
        assert_eq!(fs::read_link(part.join("new/fine")).unwrap(), Path::new("x"));
    }

    #[test]
    fn what_is_there_is_gone_into_and_never_through_a_link() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        let part = |build: &dyn Fn(&Path)| {
            fs::create_dir_all(at("part")).unwrap();
            let _ = fs::remove_dir_all(at("part/new"));
            build(&at("part/new"));
        };
        tree(&at("there"));
        fs::write(at("there/mine"), "mine").unwrap();
        part(&|new| {
            fs::create_dir_all(new.join("sub")).unwrap();
            fs::write(new.join("a"), "two").unwrap();
            fs::write(new.join("sub/d"), "four").unwrap();
        });
        place(&at("part"), &at("there")).unwrap();
        let text = |name: &str| fs::read_to_string(at(name)).unwrap();
        assert_eq!([text("there/a"), text("there/mine"), text("there/sub/d")], ["two", "mine", "four"]);

        fs::create_dir(at("home")).unwrap();
        symlink(at("home"), at("there/way")).unwrap();
        part(&|new| {
            fs::create_dir_all(new.join("way")).unwrap();
            fs::write(new.join("way/key"), "no").unwrap();
        });
        let error = place(&at("part"), &at("there")).unwrap_err();
        assert!(matches!(error, Error::Link { .. }) && !at("home/key").exists(), "{error}");

        part(&|new| fs::write(new, "a file").unwrap());
        let error = place(&at("part"), &at("there")).unwrap_err();
        assert!(error.to_string().ends_with("is a folder, and what is copied is a file"), "{error}");
        place(&at("part"), &at("there/a")).unwrap();
        assert_eq!(text("there/a"), "a file");
    }
}
