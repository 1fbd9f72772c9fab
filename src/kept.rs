//! The kept clusters of this user: which there are, whole or not at all, and how much of them is kept for how long.
//!
//! A moment is a folder named after the digest of all that made the cluster, with `moment.json` and the cluster's own files
//! (key, token, kubeconfig). It is written beside and renamed when all of it is there, and set aside before any of it goes, so that
//! what is found under its name is whole. Its volumes are the keeper's; those that no folder names were left by a p1 that was
//! killed.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};

use crate::explain::{Explain, FailureKind};
use crate::machines::{self, KEPT_PREFIX, Keep, Kept};
use crate::os::Cancel;
use crate::os::files::{self, At};
use crate::os::hash;
use crate::os::lock::{self, Lock};

/// The version of `moment.json`.
const VERSION: u32 = 1;
/// All of it together.
pub const MOST_BYTES: u64 = 20 << 30;
/// k3s' certificates are renewed at a start when they have less than so long of their year; a moment is not started.
pub const MOST_DAYS: i64 = 90;

/// A cluster as it was when its `up` had succeeded.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Moment {
    pub v: u32,
    /// The digest of all that made it.
    pub key: String,
    pub cluster: String,
    /// Where its spec lay.
    pub folder: PathBuf,
    pub at: Timestamp,
    /// The nodes that were Ready.
    pub ready: Vec<String>,
    pub machines: Vec<Kept>,
    /// Every node is reached by what follows from its MAC address, and goes on where nobody gives it addresses.
    #[serde(default)]
    pub reachable: bool,
    /// It is for forks alone, and goes when they are made.
    #[serde(default)]
    pub fork: bool,
}

impl Moment {
    /// Bytes of its volumes.
    pub fn bytes(&self) -> u64 {
        self.machines.iter().flat_map(Kept::parts).map(|part| part.bytes).sum()
    }

    fn volumes(&self) -> Vec<String> {
        self.machines.iter().flat_map(Kept::parts).map(|part| part.volume.clone()).collect()
    }
}

/// Why what is kept cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    File(#[from] files::Error),
    #[error(transparent)]
    Lock(#[from] lock::Error),
    #[error(transparent)]
    Machines(#[from] machines::Error),
    /// Somebody changed it.
    #[error("{} is damaged: {reason}", path.display())]
    Damaged { path: PathBuf, reason: String },
}

impl Explain for Error {
    fn kind(&self) -> FailureKind {
        match self {
            Self::File(e) => e.kind(),
            Self::Lock(e) => e.kind(),
            Self::Machines(e) => e.kind(),
            Self::Damaged { .. } => FailureKind::Damaged,
        }
    }

    fn hint(&self) -> Option<String> {
        match self {
            Self::File(e) => e.hint(),
            Self::Lock(e) => e.hint(),
            Self::Machines(e) => e.hint(),
            Self::Damaged { .. } => {
                Some("Remove its folder: the cluster is made the long way then.".to_owned())
            }
        }
    }

    fn evidence(&self) -> Vec<String> {
        match self {
            Self::Machines(e) => e.evidence(),
            _ => Vec::new(),
        }
    }
}

/// Bytes that nobody can guess.
fn random<const N: usize>() -> Result<[u8; N], Error> {
    let (source, mut bytes) = (Path::new("/dev/urandom"), [0; N]);
    fs::File::open(source)
        .and_then(|mut f| std::io::Read::read_exact(&mut f, &mut bytes))
        .at("read", source)?;
    Ok(bytes)
}

/// The folder of all of them, in the user's data folder.
#[derive(Clone, Debug)]
pub struct Moments {
    dir: PathBuf,
}

impl Moments {
    /// In this folder.
    pub fn new(dir: PathBuf) -> Self {
        Self { dir }
    }

    /// For who changes what is kept.
    pub fn lock(&self, cancel: &Cancel) -> Result<Lock, Error> {
        files::private_dir(&self.dir)?;
        Ok(Lock::take(&self.dir.join("lock"), "kept", Duration::from_secs(600), cancel)?)
    }

    /// What the names of this user's volumes begin with.
    fn prefix(&self) -> Result<String, Error> {
        files::private_dir(&self.dir)?;
        let path = self.dir.join("id");
        let known = files::read_if_there(&path)?.map(|t| t.trim().to_owned());
        if let Some(id) = known.filter(|id| id.len() == 8 && id.bytes().all(|b| b.is_ascii_hexdigit())) {
            return Ok(format!("{KEPT_PREFIX}{id}-"));
        }
        let id = hash::hex(&random::<4>()?);
        files::write(&path, format!("{id}\n").as_bytes(), 0o600)?;
        Ok(format!("{KEPT_PREFIX}{id}-"))
    }

    /// What nobody else knows, made when it is first asked for.
    pub fn salt(&self) -> Result<String, Error> {
        files::private_dir(&self.dir)?;
        let path = self.dir.join("salt");
        if let Some(salt) = files::read_if_there(&path)?.filter(|salt| salt.len() == 64) {
            return Ok(salt);
        }
        let salt = hash::hex(&random::<32>()?);
        files::write(&path, salt.as_bytes(), 0o600)?;
        Ok(salt)
    }

    /// What a node's volumes are called that a run writes.
    pub fn volume(&self, run: &str, node: &str) -> Result<String, Error> {
        Ok(format!("{}{run}-{node}", self.prefix()?))
    }

    fn folders(&self, of: impl Fn(&str) -> bool) -> Vec<PathBuf> {
        let all = fs::read_dir(&self.dir).into_iter().flatten().flatten();
        all.filter(|e| of(&e.file_name().to_string_lossy()))
            .map(|e| e.path())
            .filter(|p| p.is_dir())
            .collect()
    }

    fn read(path: &Path) -> Result<Option<Moment>, Error> {
        let file = path.join("moment.json");
        let Some(text) = files::read_if_there(&file)? else { return Ok(None) };
        let damaged = |reason: String| Error::Damaged { path: path.to_owned(), reason };
        let moment: Moment = serde_json::from_str(&text).map_err(|e| damaged(e.to_string()))?;
        match moment.v {
            VERSION => Ok(Some(moment)),
            v => Err(damaged(format!("it is of format {v}, this p1 knows {VERSION}"))),
        }
    }

    /// All of them, the one that was used last first; those for forks left out.
    pub fn all(&self) -> Result<Vec<Moment>, Error> {
        Ok(self.every()?.into_iter().filter(|m| !m.fork).collect())
    }

    /// Those that are for forks alone.
    pub fn of_forks(&self) -> Result<Vec<Moment>, Error> {
        Ok(self.every()?.into_iter().filter(|m| m.fork).collect())
    }

    fn every(&self) -> Result<Vec<Moment>, Error> {
        let folders = self.folders(|name| !name.starts_with('.'));
        let mut all = Vec::new();
        for folder in folders {
            all.extend(Self::read(&folder)?);
        }
        all.sort_by_key(|m| std::cmp::Reverse(self.used(m)));
        Ok(all)
    }

    /// The one of that digest.
    pub fn find(&self, key: &str) -> Result<Option<Moment>, Error> {
        Self::read(&self.files(key))
    }

    /// Where the cluster's own files of it are.
    pub fn files(&self, key: &str) -> PathBuf {
        self.dir.join(key)
    }

    /// When it was kept or made again last.
    pub fn used(&self, moment: &Moment) -> Timestamp {
        let text = files::read_if_there(&self.files(&moment.key).join("used")).ok().flatten();
        text.and_then(|t| t.trim().parse().ok()).unwrap_or(moment.at)
    }

    /// It is made again now.
    pub fn use_now(&self, key: &str, now: Timestamp) -> Result<(), Error> {
        Ok(files::write(&self.files(key).join("used"), format!("{now}\n").as_bytes(), 0o600)?)
    }

    /// Where a run puts the files of what it keeps.
    pub fn begin(&self, run: &str) -> Result<PathBuf, Error> {
        let part = self.dir.join(format!(".part-{run}"));
        files::private_dir(&part)?;
        Ok(part)
    }

    /// All of it is there.
    pub fn commit(&self, run: &str, moment: &Moment) -> Result<(), Error> {
        let (part, dir) = (self.begin(run)?, self.files(&moment.key));
        let text = serde_json::to_vec_pretty(moment).expect("plain data");
        files::write(&part.join("moment.json"), &text, 0o600)?;
        fs::rename(&part, &dir).at("move into place", &dir)?;
        Ok(fs::File::open(&self.dir).and_then(|d| d.sync_all()).at("write", &self.dir)?)
    }

    /// It is no longer to be used; its volumes go with their last user.
    pub fn set_aside(&self, key: &str) -> Result<(), Error> {
        let (from, to) = (self.files(key), self.dir.join(format!(".gone-{key}-{}", std::process::id())));
        Ok(fs::rename(&from, &to).at("set aside", &from)?)
    }

    /// Which go, so that the others are within the bounds: what is too old, then what was not used for longest. `but` stays.
    pub fn outlived(&self, now: Timestamp, but: Option<&str>) -> Result<Vec<Moment>, Error> {
        Ok(outlived(self.all()?, now, but))
    }

    /// Removes what was set aside and what killed runs left, as far as no machine's disk lies over it. The caller has the lock.
    pub fn sweep(&self, keeper: &dyn Keep, cancel: &Cancel) -> Result<(), Error> {
        let (gone, parts) =
            (self.folders(|n| n.starts_with(".gone-")), self.folders(|n| n.starts_with(".part-")));
        let known: Vec<String> = self.every()?.iter().flat_map(Moment::volumes).collect();
        let mut left = Vec::new();
        if !gone.is_empty() || !parts.is_empty() {
            let lost = keeper.named(&self.prefix()?, cancel)?.into_iter().filter(|v| !known.contains(v));
            left = keeper.discard(&lost.collect::<Vec<_>>(), cancel)?;
        }
        for folder in gone {
            let moment = Self::read(&folder).ok().flatten();
            let volumes = moment.as_ref().map(Moment::volumes).unwrap_or_default();
            if volumes.iter().any(|v| left.contains(v)) {
                continue;
            }
            let bases: std::collections::BTreeSet<String> = moment
                .into_iter()
                .flat_map(|m| m.machines)
                .flat_map(|m| m.bases().cloned().collect::<Vec<_>>())
                .collect();
            // The box's image too, if nobody's disk lies over it any more.
            let bases = bases.into_iter().filter(|base| !known.contains(base));
            keeper.discard(&bases.collect::<Vec<_>>(), cancel)?;
            fs::remove_dir_all(&folder).at("remove", &folder)?;
        }
        for part in parts {
            fs::remove_dir_all(&part).at("remove", &part)?;
        }
        Ok(())
    }
}

fn outlived(all: Vec<Moment>, now: Timestamp, but: Option<&str>) -> Vec<Moment> {
    let old = |m: &Moment| now.duration_since(m.at) > SignedDuration::from_hours(24 * MOST_DAYS);
    let mut bytes: u64 = all.iter().filter(|m| Some(m.key.as_str()) == but).map(Moment::bytes).sum();
    let mut go = Vec::new();
    // The one that was used last comes first.
    for moment in all.into_iter().filter(|m| Some(m.key.as_str()) != but) {
        if old(&moment) || bytes + moment.bytes() > MOST_BYTES {
            go.push(moment);
        } else {
            bytes += moment.bytes();
        }
    }
    go
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::machines::Part;

    fn moment(key: &str, at: &str, gib: u64) -> Moment {
        let part = |volume: &str, bytes| Part { volume: volume.into(), bytes };
        let machine = Kept {
            node: "server".into(),
            id: "1".into(),
            disk: part("d", gib << 30),
            memory: part("m", 0),
            path: "/m".into(),
            capacity: 1,
            base: None,
            disks: Vec::new(),
            described: String::new(),
            ran: String::new(),
        };
        let (cluster, folder) = ("iot".into(), "/x".into());
        Moment {
            v: 1,
            key: key.into(),
            cluster,
            folder,
            at: at.parse().unwrap(),
            ready: vec![],
            machines: vec![machine],
            reachable: true,
            fork: false,
        }
    }

    #[test]
    fn what_is_too_old_or_too_much_goes_and_the_one_that_was_used_last_stays() {
        let now = "2026-11-29T00:00:00Z".parse().unwrap();
        let all = vec![
            moment("new", "2026-11-28T00:00:00Z", 9),
            moment("old", "2026-08-28T00:00:00Z", 1),
            moment("large", "2026-11-20T00:00:00Z", 12),
            moment("small", "2026-11-10T00:00:00Z", 2),
        ];
        let go = |but| outlived(all.clone(), now, but).into_iter().map(|m| m.key).collect::<Vec<_>>();
        assert_eq!(go(None), ["old", "large"]);
        assert_eq!(go(Some("large")), ["new", "old"]);
    }

    #[test]
    fn a_moment_is_there_when_it_is_whole_and_not_before() {
        let base = tempfile::tempdir().unwrap();
        let moments = Moments::new(base.path().join("kept"));
        let one = moment("k", "2026-11-28T00:00:00Z", 1);
        let part = moments.begin("run").unwrap();
        fs::write(part.join("token"), "x").unwrap();
        assert_eq!((moments.all().unwrap(), moments.find("k").unwrap()), (vec![], None));
        moments.commit("run", &one).unwrap();
        assert_eq!(moments.find("k").unwrap(), Some(one.clone()));
        assert_eq!(moments.used(&one), one.at);
        moments.use_now("k", "2026-11-29T00:00:00Z".parse().unwrap()).unwrap();
        assert!(moments.used(&one) > one.at && moments.files("k").join("token").exists());
        moments.set_aside("k").unwrap();
        assert_eq!(moments.find("k").unwrap(), None);
        fs::create_dir(base.path().join("kept/bad")).unwrap();
        fs::write(base.path().join("kept/bad/moment.json"), "{").unwrap();
        assert!(matches!(moments.all(), Err(Error::Damaged { .. })));
        assert_eq!(moments.volume("r", "n").unwrap(), moments.volume("r", "n").unwrap());
    }
}
