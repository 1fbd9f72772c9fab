//! Snapshots of machines, and the note by which p1 knows its own.
//!
//! A cluster's snapshot is a set: one of each machine, all of one moment. Nothing about it is kept in
//! the state folder; each machine's snapshot carries a note that names the whole set. So what was lost
//! or never finished shows by itself.

use std::collections::BTreeMap;
use std::fmt;

use jiff::Timestamp;

/// A snapshot of one machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Snapshot {
    /// What people call it.
    pub name: String,
    pub note: Note,
    /// Bytes of memory in it, where that can be told.
    pub bytes: Option<u64>,
}

/// What p1 writes to a snapshot: words without blanks, which survive every provider's quoting.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Note {
    /// The run that took the set.
    pub set: String,
    pub at: Timestamp,
    /// The nodes of the set.
    pub nodes: Vec<String>,
    /// Those of them that were Ready.
    pub ready: Vec<String>,
}

impl fmt::Display for Note {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (nodes, ready) = (self.nodes.join(","), self.ready.join(","));
        write!(f, "p1 set={} at={} nodes={nodes} ready={ready}", self.set, self.at)
    }
}

impl Note {
    /// From a snapshot's description; `None` if p1 did not write it. Unknown words are passed over.
    pub fn read(text: &str) -> Option<Self> {
        let words = text.trim().strip_prefix("p1 ")?;
        let words: BTreeMap<&str, &str> =
            words.split_whitespace().filter_map(|word| word.split_once('=')).collect();
        let list = |key: &str| {
            let all = words.get(key).copied().unwrap_or_default();
            all.split(',').filter(|w| !w.is_empty()).map(str::to_owned).collect::<Vec<_>>()
        };
        let nodes = list("nodes");
        Some(Self {
            set: (*words.get("set")?).to_owned(),
            at: words.get("at")?.parse().ok()?,
            ready: list("ready"),
            nodes: Some(nodes).filter(|n| !n.is_empty())?,
        })
    }
}

/// What a snapshot may be called: it becomes a word in virsh's and VBoxManage's commands.
pub fn is_name(name: &str) -> bool {
    let plain = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
    name.len() <= 60 && name.starts_with(|c: char| c.is_ascii_alphanumeric()) && name.chars().all(plain)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_note_is_read_back_and_nobody_elses_is_taken_for_one() {
        let note = Note {
            set: "20261125T220000000Z-00001".into(),
            at: "2026-11-25T22:00:00.5Z".parse().unwrap(),
            nodes: vec!["server".into(), "worker-1".into()],
            ready: vec![],
        };
        let text = note.to_string();
        assert_eq!(Note::read(&text), Some(note.clone()));
        assert_eq!(Note::read(&format!("{text} later=words")), Some(note));
        for other in ["", "before the upgrade", "p1 set=x nodes=a", "p1 set=x at=then nodes=a"] {
            assert_eq!(Note::read(other), None, "{other}");
        }
    }

    #[test]
    fn names_are_words() {
        for name in ["a", "before-upgrade_1.2", "2026"] {
            assert!(is_name(name), "{name}");
        }
        for name in ["", "a b", "-a", "a;b", "a'b", "a/b", &"x".repeat(61)] {
            assert!(!is_name(name), "{name}");
        }
    }
}
