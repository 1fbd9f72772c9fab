//! A cluster's state folder, `.p1/<name>/` beside the spec: what lies where, and the few facts that
//! must outlive a run. Only this room knows the file names.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::explain::{Explain, FailureKind};
use crate::fault::Active;
use crate::guest::NodeFacts;
use crate::machines::{Kind, Made, owner};
use crate::os::files::{self, At};
use crate::spec::Libvirt;

/// The version of `cluster.json`.
const VERSION: u32 = 1;

/// The folder `.p1/NAME/`, which is 0700: what lies where in it.
#[derive(Clone, Debug)]
pub struct StateDir {
    dir: PathBuf,
}

/// What a cluster is held to once it exists, whatever the spec leaves open.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ClusterRecord {
    /// The version of this file.
    #[serde(default)]
    pub v: u32,
    /// What `provider: auto` became.
    pub provider: Option<Kind>,
    /// Which libvirt has the machines; none where an older p1 began the cluster: the host's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub libvirt: Option<Libvirt>,
    /// What the channel became: a cluster does not change its version because a channel moved on.
    pub k3s: Option<Pinned>,
    /// The box that machines are made from.
    pub image: Option<ImageFact>,
    /// Boxes that machines of this cluster were made from before that one.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub former: Vec<ImageFact>,
    /// The commands on this host that were run for the cluster, with the digest of each.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub ran: BTreeMap<String, String>,
}

impl ClusterRecord {
    /// Which libvirt the cluster was begun with, if it was begun; of others than libvirt's as if they were the host's.
    pub fn libvirt(&self) -> Option<Libvirt> {
        self.provider.map(|_| self.libvirt.clone().unwrap_or_default())
    }
}

/// What is remembered of a node, to be believed only of the same machine.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct NodeMemory {
    /// Vagrant's id of its machine.
    pub machine: String,
    /// Root can log in by the cluster's key.
    pub root: bool,
    /// p1 has started k3s on it.
    pub joined: bool,
    /// The version of k3s that it had when it was Ready last.
    pub version: Option<String>,
    /// What a server with data was told of the settings that are fixed then; none if it is not known.
    pub settings: Option<BTreeMap<String, Vec<String>>>,
    /// What its machine was made from and for; none if an older p1 made it.
    pub made: Option<Made>,
    /// What it said of itself when all was as the spec says, and nothing was done there since.
    pub facts: Option<NodeFacts>,
    /// p1 has made it start with this host.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub autostart: bool,
    /// Its k3s was there before p1 came, which took it over.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub before: bool,
    /// p1 waited for its SSH server as long as it may take, and it did not answer.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub unreached: bool,
}

/// A resolved channel.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Pinned {
    /// As the spec named it: `stable`, or a version.
    pub wanted: String,
    /// What it stood for.
    pub version: Option<String>,
}

/// A box file that was looked at.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ImageFact {
    /// As the spec named it.
    pub wanted: String,
    /// A name for people.
    pub label: String,
    /// The file's checksum.
    pub sha256: String,
    /// The name of the baked box that stands in for the spec's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub baked: Option<String>,
}

/// What was begun with the cluster's data and has not come to its end: until then no other verb may take
/// what is there for the cluster.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Unfinished {
    /// The verb, as journals have it.
    pub verb: String,
    /// The run that began it; what it set aside on nodes is named after it.
    pub id: String,
    /// What it is about: a backup's file, a snapshot's name.
    pub subject: Option<String>,
    /// When it was begun.
    pub since: jiff::Timestamp,
    /// The cluster's former data is given up: what is left to do is to remove it.
    #[serde(default)]
    pub settled: bool,
}

impl Unfinished {
    /// What it is, in words.
    pub fn what(&self) -> String {
        let subject = self.subject.as_deref().map(|s| format!(" {s}")).unwrap_or_default();
        format!("`p1 {}{subject}` of {}", self.verb, self.since.strftime("%Y-%m-%d %H:%M:%S UTC"))
    }
}

/// How a cluster was when it was suspended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Suspended {
    pub since: jiff::Timestamp,
    /// The nodes that were Ready.
    pub ready: Vec<String>,
}

/// Why the state cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file cannot be read or written.
    #[error(transparent)]
    File(#[from] files::Error),
    /// It holds something else.
    #[error("{} is damaged: {reason}", path.display())]
    Damaged {
        /// Which.
        path: PathBuf,
        /// How.
        reason: String,
    },
    /// It says that something was begun with the cluster's data, and no longer what.
    #[error("{} is damaged: {reason}; it tells of a restore that has not come to its end", path.display())]
    Forgotten {
        /// Which.
        path: PathBuf,
        /// How.
        reason: String,
    },
    /// It says that faults are on nodes, and no longer which.
    #[error("{} is damaged: {reason}; it tells of faults that p1 was to end", path.display())]
    Faults {
        /// Which.
        path: PathBuf,
        /// How.
        reason: String,
    },
    /// A newer p1 wrote it.
    #[error("{} was written by a newer p1 (format {found}, this one knows {VERSION})", path.display())]
    Newer {
        /// Which.
        path: PathBuf,
        found: u32,
    },
}

impl Explain for Error {
    fn kind(&self) -> FailureKind {
        match self {
            Self::File(e) => e.kind(),
            Self::Damaged { .. } | Self::Forgotten { .. } | Self::Faults { .. } => FailureKind::Damaged,
            Self::Newer { .. } => FailureKind::Cannot,
        }
    }

    fn next(&self) -> Vec<String> {
        match self {
            Self::Damaged { path, .. } | Self::Faults { path, .. } => {
                vec![format!("rm {}", crate::os::process::quote_os(path.as_os_str())), "p1 up".to_owned()]
            }
            _ => Vec::new(),
        }
    }

    fn hint(&self) -> Option<String> {
        match self {
            Self::File(e) => e.hint(),
            Self::Damaged { path, .. } => Some(format!(
                "Remove {}; p1 finds out again what it said, except which provider and version were chosen.",
                path.display()
            )),
            Self::Forgotten { path, .. } => Some(format!(
                "Remove {}, then restore again what was being restored: the backup's file, or the snapshot.",
                path.display()
            )),
            Self::Faults { path, .. } => Some(format!(
                "Remove {}. Faults inside machines end by themselves; `p1 up` resumes and starts the machines, and `p1 \
                 stop`, then `p1 up`, ends all others.",
                path.display()
            )),
            Self::Newer { .. } => Some("Use the p1 that made this cluster, or a newer one.".to_owned()),
        }
    }
}

impl StateDir {
    /// The state of the cluster `name` whose spec lies in `base`. Creates nothing.
    pub fn of(base: &Path, name: &str) -> Self {
        Self { dir: base.join(".p1").join(name) }
    }

    /// Makes the folder, private, with a note for version control that it is not theirs.
    pub fn create(&self) -> Result<(), Error> {
        let top = self.dir.parent().unwrap_or(&self.dir);
        files::private_dir(top)?;
        files::write_if_changed(&top.join(".gitignore"), b"*\n", 0o644)?;
        files::private_dir(&self.dir)?;
        Ok(())
    }

    /// True if there is anything of this cluster.
    pub fn exists(&self) -> bool {
        self.dir.is_dir()
    }

    /// An error if it is there and cannot be looked into, as another user's: that is not the same as absent.
    pub fn readable(&self) -> Result<(), Error> {
        match fs::read_dir(&self.dir) {
            Err(e) if e.kind() == std::io::ErrorKind::PermissionDenied => {
                Err(Err::<(), _>(e).at("read", &self.dir).unwrap_err().into())
            }
            _ => Ok(()),
        }
    }

    /// The folder itself; Vagrant's directory as well.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The Vagrantfile.
    pub fn vagrantfile(&self) -> PathBuf {
        self.dir.join("Vagrantfile")
    }

    /// Where `p1 render` writes what is not needed at this place.
    pub fn rendered(&self) -> PathBuf {
        self.dir.join("rendered")
    }

    /// The cluster's private SSH key; `.pub` beside it.
    pub fn key(&self) -> PathBuf {
        self.dir.join("id_ed25519")
    }

    /// The nodes' host keys.
    pub fn known_hosts(&self) -> PathBuf {
        self.dir.join("known_hosts")
    }

    /// For `ssh -F`.
    pub fn ssh_config(&self) -> PathBuf {
        self.dir.join("ssh_config")
    }

    /// The secrets of the cluster.
    pub fn token(&self) -> PathBuf {
        self.dir.join("token")
    }

    /// The secrets of a cluster whose datastore outlives it, beside its folder, which goes with it.
    pub fn kept_token(&self) -> PathBuf {
        self.dir.with_extension("token")
    }

    /// With the address by which this host reaches the API; 0600.
    pub fn kubeconfig(&self) -> PathBuf {
        self.dir.join("kubeconfig")
    }

    /// The cluster's lock.
    pub fn lock(&self) -> PathBuf {
        self.dir.join("lock")
    }

    /// What this folder was given when its cluster began; none before that.
    pub fn id(&self) -> Result<Option<String>, Error> {
        Ok(owner::id_of(&self.dir)?)
    }

    /// Keeps it.
    pub fn keep_id(&self, id: &str) -> Result<(), Error> {
        files::write(&owner::file(&self.dir), format!("{id}\n").as_bytes(), 0o600)?;
        Ok(())
    }

    /// The folder as it is called from the root, whatever links lead to it.
    pub fn place(&self) -> PathBuf {
        owner::place(&self.dir)
    }

    /// A journal for each run, `RUN.jsonl`, the newest last by name.
    pub fn runs(&self) -> PathBuf {
        self.dir.join("runs")
    }

    /// What the node's machine wrote to its serial console when it was waited for last.
    pub fn console(&self, node: &str) -> PathBuf {
        self.dir.join("console").join(format!("{node}.log"))
    }

    /// The log of one step of one run.
    pub fn log(&self, run: &str, step: &str) -> PathBuf {
        self.dir.join("logs").join(run).join(format!("{}.log", step.replace('/', "-")))
    }

    /// All logs.
    pub fn logs(&self) -> PathBuf {
        self.dir.join("logs")
    }

    fn memory_file(&self) -> PathBuf {
        self.dir.join("nodes.json")
    }

    /// What is remembered of nodes. It only saves time: what cannot be read is forgotten.
    pub fn memory(&self) -> BTreeMap<String, NodeMemory> {
        let text = files::read_if_there(&self.memory_file()).ok().flatten().unwrap_or_default();
        serde_json::from_str(&text).unwrap_or_default()
    }

    /// Keeps what is remembered of nodes.
    pub fn remember(&self, memory: &BTreeMap<String, NodeMemory>) -> Result<(), Error> {
        let text = serde_json::to_vec(memory).expect("memory is plain data");
        files::write_if_changed(&self.memory_file(), &text, 0o600)?;
        Ok(())
    }

    fn faults_file(&self) -> PathBuf {
        self.dir.join("faults.json")
    }

    /// For whoever changes what is written down of faults.
    pub fn faults_lock(&self) -> PathBuf {
        self.dir.join("faults.lock")
    }

    /// Held by what ends faults when their time is over.
    pub fn healer(&self) -> PathBuf {
        self.dir.join("healer")
    }

    /// Held by what listens on this host for a fork's API.
    pub fn forwarder(&self) -> PathBuf {
        self.dir.join("forwarder")
    }

    /// What that says.
    pub fn forwarder_log(&self) -> PathBuf {
        self.dir.join("forwarder.log")
    }

    /// What the healer says.
    pub fn healer_log(&self) -> PathBuf {
        self.dir.join("healer.log")
    }

    /// The faults that are on nodes.
    pub fn faults(&self) -> Result<Vec<Active>, Error> {
        let path = self.faults_file();
        let Some(text) = files::read_if_there(&path)? else { return Ok(Vec::new()) };
        serde_json::from_str(&text).map_err(|e| Error::Faults { path, reason: e.to_string() })
    }

    /// Keeps them; without any there is no file.
    pub fn keep_faults(&self, all: &[Active]) -> Result<(), Error> {
        if all.is_empty() {
            files::remove_if_there(&self.faults_file())?;
            return Ok(());
        }
        let text = serde_json::to_vec_pretty(all).expect("plain data");
        files::write(&self.faults_file(), &text, 0o600)?;
        Ok(())
    }

    fn unfinished_file(&self) -> PathBuf {
        self.dir.join("unfinished.json")
    }

    /// The cluster's secrets of before a restore that has not come to its end.
    pub fn former_token(&self) -> PathBuf {
        self.dir.join("token.former")
    }

    /// What was begun with the cluster's data and has not come to its end.
    pub fn unfinished(&self) -> Result<Option<Unfinished>, Error> {
        let path = self.unfinished_file();
        let Some(text) = files::read_if_there(&path)? else { return Ok(None) };
        match serde_json::from_str(&text) {
            Ok(found) => Ok(Some(found)),
            Err(e) => Err(Error::Forgotten { path, reason: e.to_string() }),
        }
    }

    /// Notes what is begun with the cluster's data.
    pub fn begin(&self, what: &Unfinished) -> Result<(), Error> {
        let text = serde_json::to_vec_pretty(what).expect("plain data");
        files::write(&self.unfinished_file(), &text, 0o600)?;
        Ok(())
    }

    /// It has come to its end.
    pub fn end(&self) -> Result<(), Error> {
        files::remove_if_there(&self.former_token())?;
        files::remove_if_there(&self.unfinished_file())?;
        Ok(())
    }

    /// What a machine that is made from a kept one needs of this folder.
    pub fn keepsakes(&self) -> [PathBuf; 7] {
        let here = |name: &str| self.dir.join(name);
        [
            self.key(),
            here("id_ed25519.pub"),
            self.known_hosts(),
            self.token(),
            self.kubeconfig(),
            self.memory_file(),
            self.facts_file(),
        ]
    }

    fn suspended_file(&self) -> PathBuf {
        self.dir.join("suspended.json")
    }

    /// How the cluster was when it was suspended last. It only saves a wait: what cannot be read is not known.
    pub fn suspended(&self) -> Option<Suspended> {
        serde_json::from_str(&files::read_if_there(&self.suspended_file()).ok()??).ok()
    }

    /// Keeps it.
    pub fn keep_suspended(&self, how: &Suspended) -> Result<(), Error> {
        let text = serde_json::to_vec(how).expect("plain data");
        files::write(&self.suspended_file(), &text, 0o600)?;
        Ok(())
    }

    /// What is known of the cluster, as a file.
    pub fn facts_file(&self) -> PathBuf {
        self.dir.join("cluster.json")
    }

    /// What is known of the cluster; empty if there is none.
    pub fn facts(&self) -> Result<ClusterRecord, Error> {
        let path = self.facts_file();
        let text = match files::read_if_there(&path) {
            Err(e) if e.source.kind() == std::io::ErrorKind::InvalidData => {
                return Err(Error::Damaged { path, reason: e.source.to_string() });
            }
            other => other?,
        };
        let Some(text) = text else { return Ok(ClusterRecord::default()) };
        #[derive(Deserialize)]
        struct Head {
            v: u32,
        }
        let damaged = |e: serde_json::Error| Error::Damaged { path: path.clone(), reason: e.to_string() };
        let head: Head = serde_json::from_str(&text).map_err(damaged)?;
        if head.v > VERSION {
            return Err(Error::Newer { path, found: head.v });
        }
        serde_json::from_str(&text).map_err(damaged)
    }

    /// Keeps what is known of the cluster.
    pub fn keep(&self, facts: &ClusterRecord) -> Result<(), Error> {
        let facts = ClusterRecord { v: VERSION, ..facts.clone() };
        let text = serde_json::to_vec_pretty(&facts).expect("facts are plain data");
        files::write_if_changed(&self.facts_file(), &text, 0o600)?;
        Ok(())
    }

    /// Removes everything of the cluster, and `.p1` with the last one.
    pub fn remove(&self) -> Result<(), Error> {
        match fs::remove_dir_all(&self.dir) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
                return Err(Err::<(), _>(e).at("remove", &self.dir).unwrap_err().into());
            }
            _ => {}
        }
        if let Some(top) = self.dir.parent() {
            let others = fs::read_dir(top).map(|all| all.flatten().any(|e| e.file_name() != ".gitignore"));
            if matches!(others, Ok(false)) {
                let _ = fs::remove_dir_all(top);
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn facts_are_kept_and_a_newer_format_is_refused() {
        let base = tempfile::tempdir().unwrap();
        let state = StateDir::of(base.path(), "iot");
        assert_eq!(state.facts().unwrap(), ClusterRecord::default());
        state.create().unwrap();
        let facts = ClusterRecord { v: VERSION, provider: Some(Kind::Libvirt), ..ClusterRecord::default() };
        state.keep(&facts).unwrap();
        assert_eq!(state.facts().unwrap(), facts);
        fs::write(state.facts_file(), r#"{"v": 99}"#).unwrap();
        assert!(matches!(state.facts(), Err(Error::Newer { found: 99, .. })));
        fs::write(state.facts_file(), "{").unwrap();
        assert!(matches!(state.facts(), Err(Error::Damaged { .. })));
        state.remove().unwrap();
        assert!(!base.path().join(".p1").exists());
    }
}
