//! A fork: a cluster that goes on from a moment of another one, by the same spec under another name.
//!
//! Its folder has a copy of the spec, and `fork.json` beside it, which says of what it is one.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::os::files;

/// The version of the file.
const VERSION: u32 = 1;
/// What it is called.
const NAME: &str = "fork.json";

/// What a cluster is that is a fork.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fork {
    pub v: u32,
    /// What it is called: machines, disks and network are named after it.
    pub name: String,
    /// The original's name.
    pub of: String,
    /// The name from which the MAC addresses follow, which are in the machines' memory: that of the first original.
    pub macs: String,
    /// The folder of the first original's spec, where relative paths of the spec start.
    pub base: PathBuf,
    /// The moment from which its machines are made.
    pub moment: String,
    /// They were made from it.
    pub made: bool,
    /// Its own folder.
    #[serde(skip)]
    pub home: PathBuf,
}

impl Fork {
    /// The one whose folder this is; none where it is no fork's. What cannot be read is an error, as the spec alone is
    /// another cluster's.
    pub fn of(folder: &Path) -> Result<Option<Self>, files::Error> {
        let path = folder.join(NAME);
        let Some(text) = files::read_if_there(&path)? else { return Ok(None) };
        let damaged = |reason: String| {
            let source = std::io::Error::new(std::io::ErrorKind::InvalidData, reason);
            files::At::at(Err::<(), _>(source), "read", &path).expect_err("an error")
        };
        let fork: Self = serde_json::from_str(&text).map_err(|e| damaged(e.to_string()))?;
        match fork.v {
            VERSION => Ok(Some(Self { home: folder.to_owned(), ..fork })),
            v => Err(damaged(format!("it is of format {v}, this p1 knows {VERSION}"))),
        }
    }

    /// Writes it down in its folder.
    pub fn keep(&self) -> Result<(), files::Error> {
        let text = serde_json::to_vec_pretty(&Self { v: VERSION, ..self.clone() }).expect("plain data");
        files::write(&self.home.join(NAME), &text, 0o600)
    }
}

/// The text of a spec under another name: of the line that has the cluster's, where there is one.
pub fn renamed(text: &str, name: &str) -> String {
    let mut text: String = text
        .split_inclusive('\n')
        .map(|line| match line.strip_prefix("name:") {
            Some(rest) if rest.starts_with([' ', '\t']) => format!("name: {name}\n"),
            _ => line.to_owned(),
        })
        .collect();
    if !text.ends_with('\n') {
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fork_has_the_original_s_spec_under_its_own_name_and_no_other_folder() {
        let dir = tempfile::tempdir().unwrap();
        let (base, home) = (dir.path().join("base"), dir.path().join("home"));
        for dir in [&base, &home] {
            std::fs::create_dir_all(dir).unwrap();
        }
        std::fs::write(base.join("x.box"), "").unwrap();
        let text = "# a\nname: iot # old\nbox: {path: x.box}\nengine: vagrant\nkeep: true\nautostart: true\n\
                    nodes:\n  - {name: server, role: server}";
        let text = renamed(text, "iot-1");
        assert!(text.contains("\nname: iot-1\nbox") && text.contains("{name: server,"), "{text}");
        std::fs::write(home.join("cluster.yaml"), &text).unwrap();
        assert_eq!(Fork::of(&home).unwrap(), None);
        let fork = Fork {
            v: VERSION,
            name: "iot-1".into(),
            of: "iot".into(),
            macs: "iot".into(),
            base: base.clone(),
            moment: "0".into(),
            made: false,
            home: home.clone(),
        };
        fork.keep().unwrap();
        assert_eq!(Fork::of(&home).unwrap(), Some(fork.clone()));
        let cluster = crate::spec::load(&home.join("cluster.yaml"), &|_| None).unwrap().cluster;
        assert_eq!((cluster.name.as_str(), cluster.macs()), ("iot-1", "iot"));
        assert_eq!((cluster.base.as_path(), cluster.home()), (base.as_path(), home.as_path()));
        assert_eq!(cluster.image, crate::spec::BoxRef::Path(base.join("x.box")));
        assert!(cluster.engine == crate::spec::EngineChoice::Direct && !cluster.keep && !cluster.autostart);
        std::fs::write(home.join(NAME), "{").unwrap();
        assert!(crate::spec::load(&home.join("cluster.yaml"), &|_| None).is_err());
    }
}
