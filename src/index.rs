//! This user's clusters on this host: a note of each in p1's data folder, so that they are found wherever their folders lie.
//!
//! It is a hint: whatever is told of a cluster is looked at where it is. Each note is a file of its own, so that nobody waits.

use std::fs;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::machines::Kind;
use crate::os::{files, hash};

/// The version of a note.
const VERSION: u32 = 1;

/// Where a cluster is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Note {
    pub v: u32,
    pub cluster: String,
    /// The spec.
    pub file: PathBuf,
    /// The state folder.
    pub state: PathBuf,
    pub provider: Kind,
    /// The original's name, of a fork.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fork_of: Option<String>,
}

impl Note {
    /// Of a cluster; its paths become absolute.
    pub fn new(cluster: &str, file: &Path, state: &Path, provider: Kind, fork_of: Option<String>) -> Self {
        let absolute = |path: &Path| std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
        let (file, state) = (absolute(file), absolute(state));
        Self { v: VERSION, cluster: cluster.to_owned(), file, state, provider, fork_of }
    }

    /// Whether its cluster is gone without its note.
    pub fn is_stale(&self) -> bool {
        !self.state.is_dir()
    }
}

/// All notes.
#[derive(Clone, Debug)]
pub struct Index {
    dir: PathBuf,
}

impl Index {
    /// In this folder.
    pub fn new(dir: PathBuf) -> Self {
        Self { dir }
    }

    fn path(&self, state: &Path) -> PathBuf {
        let place = std::path::absolute(state).unwrap_or_else(|_| state.to_owned());
        let name = hash::hex(&hash::parts([place.as_os_str().as_encoded_bytes()])[..8]);
        self.dir.join(format!("{name}.json"))
    }

    /// Notes a cluster.
    pub fn keep(&self, note: &Note) -> Result<(), files::Error> {
        files::private_dir(&self.dir)?;
        let text = serde_json::to_vec(note).expect("plain data");
        files::write_if_changed(&self.path(&note.state), &text, 0o600).map(|_| ())
    }

    /// The cluster of that state folder is gone.
    pub fn drop(&self, state: &Path) -> Result<(), files::Error> {
        files::remove_if_there(&self.path(state))
    }

    /// All of them, by name and place; what cannot be read is none.
    pub fn all(&self) -> Vec<Note> {
        let found = fs::read_dir(&self.dir).into_iter().flatten().flatten();
        let read = |path: PathBuf| -> Option<Note> {
            serde_json::from_str(&files::read_if_there(&path).ok()??).ok()
        };
        let mut all: Vec<Note> = found.filter_map(|e| read(e.path())).filter(|n| n.v == VERSION).collect();
        all.sort_by(|a, b| (&a.cluster, &a.state).cmp(&(&b.cluster, &b.state)));
        all
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cluster_is_noted_once_and_known_to_be_gone() {
        let base = tempfile::tempdir().unwrap();
        let index = Index::new(base.path().join("clusters"));
        assert_eq!(index.all(), []);
        let state = base.path().join("a/.p1/iot");
        fs::create_dir_all(&state).unwrap();
        let note = |name: &str, state: &Path| Note::new(name, &state.join("s"), state, Kind::Libvirt, None);
        let (one, other) = (note("iot", &state), note("iot", &base.path().join("b/.p1/iot")));
        index.keep(&one).unwrap();
        index.keep(&one).unwrap();
        index.keep(&other).unwrap();
        assert_eq!(index.all(), [one.clone(), other.clone()]);
        assert!(!one.is_stale() && other.is_stale());
        index.drop(&other.state).unwrap();
        assert_eq!(index.all(), [one]);
    }
}
