//! The spec in a folder above, where none is named and this folder has none: as cargo and git find theirs.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::context::variable;

/// What a spec is called that is not named.
pub const SPEC: &str = "cluster.yaml";

/// The spec of the nearest folder above `here` that has one. Another user's is told and not taken, since a spec may name
/// programs to run: root's is, and under sudo that of whoever called it.
pub fn find(here: &Path) -> Option<PathBuf> {
    let sudo = variable("SUDO_UID").and_then(|uid| uid.to_str()?.parse().ok());
    let ours = [Some(nix::unistd::Uid::effective().as_raw()), Some(0), sudo];
    let (file, owner) = nearest(here)?;
    if ours.contains(&Some(owner)) {
        return Some(file);
    }
    let shown = file.display();
    eprintln!("note: {shown} belongs to another user and is not taken; `-f` with its name takes it");
    None
}

fn nearest(here: &Path) -> Option<(PathBuf, u32)> {
    if here.join(SPEC).symlink_metadata().is_ok() {
        return None;
    }
    here.ancestors().skip(1).find_map(|dir| {
        let file = dir.join(SPEC);
        let meta = file.metadata().ok().filter(std::fs::Metadata::is_file)?;
        Some((file, meta.uid()))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn the_nearest_above_is_found_and_none_where_there_is_one_here() {
        let dir = tempfile::tempdir().unwrap();
        let (top, mid) = (dir.path().join("a"), dir.path().join("a/b"));
        let low = mid.join("c/d");
        fs::create_dir_all(&low).unwrap();
        fs::write(top.join(SPEC), "").unwrap();
        let found = |here: &Path| nearest(here).map(|(file, _)| file);
        assert_eq!(found(&low), Some(top.join(SPEC)));
        assert_eq!(found(&top), None);
        // A folder of that name is none.
        fs::create_dir(mid.join(SPEC)).unwrap();
        assert_eq!(found(&low), Some(top.join(SPEC)));
        fs::remove_dir(mid.join(SPEC)).unwrap();
        fs::write(mid.join(SPEC), "").unwrap();
        assert_eq!(found(&low), Some(mid.join(SPEC)));
        // What is here is what counts, also where it cannot be read.
        std::os::unix::fs::symlink("nowhere", low.join(SPEC)).unwrap();
        assert_eq!(found(&low), None);
    }
}
