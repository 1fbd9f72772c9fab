//! Boxes that Vagrant has unpacked, in its home or elsewhere: found by their names, and packed again.

use std::cmp::Reverse;
use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::error::Error;
use crate::os::Cancel;
use crate::os::files::At;
use crate::os::process::{self, Cmd, Finished};

/// Some GiB from one disk to another.
const PACKING: Duration = Duration::from_secs(1800);

/// A box of a provider in Vagrant's home.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unpacked {
    pub version: String,
    pub provider: String,
    pub dir: PathBuf,
}

/// The versions of a box in a Vagrant's home, the newest first: `boxes/NAME/VERSION/PROVIDER`, since Vagrant 2.4 with the
/// architecture before the provider (`lib/vagrant/box_collection.rb`).
pub fn in_home(home: &Path, name: &str) -> Result<Vec<Unpacked>, Error> {
    let root = home.join("boxes").join(name.replace('/', "-VAGRANTSLASH-"));
    let mut found = Vec::new();
    for version in folders(&root)? {
        for one in folders(&version)? {
            let below = if is_box(&one) { vec![one] } else { folders(&one)? };
            for dir in below.into_iter().filter(|dir| is_box(dir)) {
                found.push(Unpacked { version: text(&version), provider: text(&dir), dir });
            }
        }
    }
    found.sort_by_key(|b| (Reverse(numbers(&b.version)), b.provider.clone()));
    Ok(found)
}

/// The names of all boxes in a Vagrant's home.
pub fn names(home: &Path) -> Result<Vec<String>, Error> {
    Ok(folders(&home.join("boxes"))?.iter().map(|dir| text(dir).replace("-VAGRANTSLASH-", "/")).collect())
}

/// Packs an unpacked box into a file. It is not compressed: its image is, or is not worth the time.
pub fn pack(dir: &Path, file: &Path, cancel: &Cancel) -> Result<(), Error> {
    if !is_box(dir) {
        return Err(Error::NotABox { path: dir.to_owned(), what: "it has no metadata.json".to_owned() });
    }
    let mut files: Vec<_> = fs::read_dir(dir)
        .at("read", dir)?
        .flatten()
        .filter(|e| e.path().is_file())
        .map(|e| e.file_name())
        .collect();
    files.retain(|name| name != "box_update_check");
    // First, where it is found at once.
    files.sort_by_key(|name| (name != "metadata.json", name.clone()));
    let owner = ["--owner=0", "--group=0", "--numeric-owner"];
    let cmd = Cmd::new("tar")
        .env("LC_ALL", "C")
        .args(["--force-local", "--sparse"])
        .args(owner)
        .arg("-cf")
        .arg(file);
    let cmd = files.iter().fold(cmd.arg("-C").arg(dir).arg("--"), Cmd::arg);
    let done = process::run(&cmd, PACKING, cancel).and_then(Finished::ok);
    done.map(drop).map_err(|source| Error::Step { doing: "packing the box", source })
}

fn is_box(dir: &Path) -> bool {
    dir.join("metadata.json").is_file()
}

fn text(path: &Path) -> String {
    path.file_name().unwrap_or(OsStr::new("")).to_string_lossy().into_owned()
}

fn folders(dir: &Path) -> Result<Vec<PathBuf>, Error> {
    let entries = match fs::read_dir(dir) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        other => other.at("read", dir)?,
    };
    let mut all: Vec<PathBuf> = entries.flatten().map(|e| e.path()).filter(|p| p.is_dir()).collect();
    all.sort();
    Ok(all)
}

/// A version's numbers: 10 is after 9.
fn numbers(version: &str) -> Vec<u64> {
    version.split(|c: char| !c.is_ascii_digit()).filter_map(|n| n.parse().ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::boxes::inspect;

    #[test]
    fn a_box_of_vagrants_is_found_in_its_newest_version_and_packed_again() {
        let home = tempfile::tempdir().unwrap();
        let make = |path: &str, provider: &str| {
            let dir = home.path().join("boxes").join(path);
            fs::create_dir_all(&dir).unwrap();
            fs::write(dir.join("metadata.json"), format!(r#"{{"provider": "{provider}"}}"#)).unwrap();
            fs::write(dir.join("box.img"), "image").unwrap();
            fs::write(dir.join("box_update_check"), "now").unwrap();
        };
        make("bento-VAGRANTSLASH-debian-12/9.1.0/libvirt", "libvirt");
        make("bento-VAGRANTSLASH-debian-12/202510.26.0/amd64/libvirt", "libvirt");
        make("bento-VAGRANTSLASH-debian-12/202510.26.0/amd64/virtualbox", "virtualbox");
        make("own/0/libvirt", "libvirt");
        let found = in_home(home.path(), "bento/debian-12").unwrap();
        let told: Vec<_> = found.iter().map(|b| (b.version.as_str(), b.provider.as_str())).collect();
        assert_eq!(told, [("202510.26.0", "libvirt"), ("202510.26.0", "virtualbox"), ("9.1.0", "libvirt")]);
        assert_eq!(names(home.path()).unwrap(), ["bento/debian-12", "own"]);
        assert_eq!(in_home(home.path(), "other").unwrap(), []);
        let (file, cancel) = (home.path().join("a:b.box"), Cancel::new());
        pack(&found[1].dir, &file, &cancel).unwrap();
        assert_eq!(inspect(&file, &cancel).unwrap(), Some("virtualbox".to_owned()));
        let list = process::run(&Cmd::new("tar").args(["--force-local", "-tf"]).arg(&file), PACKING, &cancel)
            .unwrap();
        assert_eq!(list.stdout, "metadata.json\nbox.img\n");
        assert!(
            pack(home.path(), &file, &cancel).unwrap_err().to_string().contains("it has no metadata.json")
        );
    }
}
