//! What a backup is: one file with the datastore, the secrets that open it, and a manifest that says
//! what it is of and what its parts must add up to. A plain `tar` archive, so that it can be looked into by hand.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::explain::{Explain, FailureKind};
use crate::k3s::{Tokens, Version};
use crate::os::files;
use crate::os::hash::sha256;
use crate::spec::{Cluster, Role};

/// A backup is held in memory.
const MAX_BYTES: u64 = 3 << 30;

/// The version of this format.
pub const VERSION: u32 = 1;

const MANIFEST: &str = "manifest.json";
/// The manifest's own checksum, the last part.
const MANIFEST_SUM: &str = "manifest.sha256";
/// The cluster's secrets, as p1 keeps them.
const TOKEN: &str = "token";
/// By node: its password, by which the cluster knows it again.
const PASSWORDS: &str = "passwords.json";
/// What lies below `/var/lib/rancher/k3s/server` on the first server, as a compressed archive.
const DATA: &str = "server.tar.gz";

/// What a backup says of itself.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Manifest {
    /// [`VERSION`] of the writer.
    pub v: u32,
    pub cluster: String,
    /// When its data was copied.
    pub at: jiff::Timestamp,
    /// The version of k3s that wrote the data, if it was known.
    pub k3s: Option<String>,
    /// What holds the data.
    pub datastore: Datastore,
    /// The nodes of the spec then.
    pub nodes: Vec<Member>,
    /// By part: its checksum.
    pub sha256: BTreeMap<String, String>,
}

/// A node of the spec, as far as the data depends on it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Member {
    pub name: String,
    pub role: Role,
    pub ip: Ipv4Addr,
}

/// What holds a cluster's data.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Datastore {
    /// Files of the only server.
    Sqlite,
    /// A snapshot by k3s itself.
    Etcd,
}

/// What it takes to put a cluster's data onto other machines.
#[derive(Clone, Debug, PartialEq)]
pub struct Backup {
    /// What it says of itself.
    pub manifest: Manifest,
    pub tokens: Tokens,
    /// By node: its password.
    pub passwords: BTreeMap<String, String>,
    pub data: Vec<u8>,
}

/// Why a backup cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file cannot be read or written.
    #[error(transparent)]
    File(#[from] files::Error),
    /// It is something else.
    #[error("{} is no backup of p1: {reason}", path.display())]
    Foreign {
        /// Which.
        path: PathBuf,
        /// What shows it.
        reason: String,
    },
    /// It was one.
    #[error("{} is damaged: {reason}", path.display())]
    Damaged {
        /// Which.
        path: PathBuf,
        /// What shows it.
        reason: String,
    },
    /// A newer p1 wrote it.
    #[error("{} was written by a newer p1 (format {found}, this one knows {VERSION})", path.display())]
    Newer {
        /// Which.
        path: PathBuf,
        found: u32,
    },
    /// It is of something that this spec is not.
    #[error("{what}")]
    Unfit {
        /// How they differ.
        what: String,
        /// What to do.
        remedy: String,
    },
}

impl Explain for Error {
    fn kind(&self) -> FailureKind {
        match self {
            Self::File(e) => e.kind(),
            Self::Damaged { .. } => FailureKind::Damaged,
            Self::Foreign { .. } | Self::Newer { .. } | Self::Unfit { .. } => FailureKind::Cannot,
        }
    }

    fn hint(&self) -> Option<String> {
        match self {
            Self::File(e) => e.hint(),
            Self::Foreign { .. } => Some("`p1 backup` writes one.".to_owned()),
            Self::Damaged { .. } => {
                Some("Nothing was changed. Take another copy of it, or an older backup.".to_owned())
            }
            Self::Newer { .. } => Some("Use the p1 that wrote it, or a newer one.".to_owned()),
            Self::Unfit { remedy, .. } => Some(remedy.clone()),
        }
    }
}

impl Manifest {
    /// Of this cluster, now; the checksums come when it is written.
    pub fn of(cluster: &Cluster, datastore: Datastore, k3s: Option<String>) -> Self {
        let member = |n: &crate::spec::Node| Member { name: n.name.clone(), role: n.role, ip: n.ip };
        Self {
            v: VERSION,
            cluster: cluster.name.clone(),
            at: jiff::Timestamp::now(),
            k3s,
            datastore,
            nodes: cluster.members().map(member).collect(),
            sha256: BTreeMap::new(),
        }
    }

    /// Whether this cluster can go on with that data. `wanted` is the version of k3s that its nodes run.
    ///
    /// # Errors
    /// [`Error::Unfit`]: names and addresses are in the data and in its certificates, and k3s reads
    /// the data of an older k3s only as an upgrade would, one minor version at a time.
    pub fn fits(&self, cluster: &Cluster, wanted: Option<&str>) -> Result<(), Error> {
        let unfit = |what: String, remedy: &str| Err(Error::Unfit { what, remedy: remedy.to_owned() });
        if self.cluster != cluster.name {
            let what = format!("it is a backup of the cluster `{}`, not of `{}`", self.cluster, cluster.name);
            return unfit(what, "Name the spec's cluster like that, or take the other backup.");
        }
        for member in self.nodes.iter().filter(|m| m.role == Role::Server) {
            let here = cluster.servers().find(|s| s.name == member.name).map(|s| s.ip);
            if here != Some(member.ip) {
                let what = format!(
                    "its server `{}` has the address {}, the spec's {}",
                    member.name,
                    member.ip,
                    match here {
                        Some(ip) => format!("has {ip}"),
                        None => "differs".to_owned(),
                    }
                );
                return unfit(
                    what,
                    "A server's name and address are in the data: give the spec those of the backup.",
                );
            }
        }
        let version = |text: &str| text.parse::<Version>().ok();
        let (from, to) = (self.k3s.as_deref().and_then(version), wanted.and_then(version));
        let (Some(from), Some(to)) = (from, to) else { return Ok(()) };
        let (old, new) = (from.minor(), to.minor());
        if new < old || new.0 > old.0 || new.1 > old.1 + 1 {
            let what = format!("the data is of k3s {from}, and the nodes run {to}");
            return unfit(
                what,
                "Restore with the k3s of the backup (`k3s.version` in the spec), and upgrade then.",
            );
        }
        Ok(())
    }
}

impl Backup {
    /// The checksum of the data.
    pub fn checksum(&self) -> String {
        sha256(&self.data)
    }

    /// Writes it, whole or not at all, for its owner alone.
    pub fn write(&self, path: &Path) -> Result<u64, Error> {
        let passwords = serde_json::to_vec_pretty(&self.passwords).expect("plain data");
        let token = self.tokens.to_text().into_bytes();
        let parts: [(&str, &[u8]); 3] = [(TOKEN, &token), (PASSWORDS, &passwords), (DATA, &self.data)];
        let mut manifest = self.manifest.clone();
        manifest.sha256 = parts.iter().map(|(name, bytes)| ((*name).to_owned(), sha256(bytes))).collect();
        let manifest = serde_json::to_vec_pretty(&manifest).expect("plain data");
        let mut archive = Vec::with_capacity(self.data.len() + 16384);
        let at = self.manifest.at.as_second();
        let check = sha256(&manifest);
        let ends = [(MANIFEST_SUM, check.as_bytes())];
        for (name, bytes) in std::iter::once((MANIFEST, &manifest[..])).chain(parts).chain(ends) {
            add(&mut archive, name, bytes, at);
        }
        archive.resize(archive.len() + 2 * BLOCK, 0);
        files::write(path, &archive, 0o600)?;
        Ok(archive.len() as u64)
    }

    /// Reads one and checks all of it.
    pub fn read(path: &Path) -> Result<Self, Error> {
        let archive = files::read(path, MAX_BYTES)?;
        let foreign = |reason: &str| Error::Foreign { path: path.into(), reason: reason.to_owned() };
        let damaged = |reason: String| Error::Damaged { path: path.into(), reason };
        // The manifest comes first: without it nothing says that this was ever ours.
        let mut parts = parts(&archive);
        let manifest = match parts.next() {
            Some(Ok((name, bytes))) if name == MANIFEST => bytes,
            Some(Err(reason)) if archive.starts_with(MANIFEST.as_bytes()) => return Err(damaged(reason)),
            _ => return Err(foreign("it does not begin with a manifest")),
        };
        let head: serde_json::Value =
            serde_json::from_slice(manifest).map_err(|e| damaged(format!("its manifest: {e}")))?;
        match head["v"].as_u64() {
            Some(v) if v > u64::from(VERSION) => {
                return Err(Error::Newer { path: path.into(), found: u32::try_from(v).unwrap_or(u32::MAX) });
            }
            Some(_) if head["cluster"].is_string() => {}
            _ => return Err(foreign("its manifest is another program's")),
        }
        let mut found: BTreeMap<&str, &[u8]> = BTreeMap::new();
        for part in parts {
            let (name, bytes) = part.map_err(damaged)?;
            found.insert(name, bytes);
        }
        if found.get(MANIFEST_SUM) != Some(&sha256(manifest).as_bytes()) {
            return Err(damaged("its manifest has another checksum".to_owned()));
        }
        let manifest: Manifest =
            serde_json::from_value(head).map_err(|e| damaged(format!("its manifest: {e}")))?;
        for (name, wanted) in &manifest.sha256 {
            match found.get(name.as_str()) {
                None => return Err(damaged(format!("`{name}` is not in it"))),
                Some(bytes) if sha256(bytes) != *wanted => {
                    return Err(damaged(format!("`{name}` has another checksum than the manifest says")));
                }
                Some(_) => {}
            }
        }
        let part = |name: &str| {
            let listed = manifest.sha256.contains_key(name).then(|| found.get(name)).flatten();
            listed.copied().ok_or_else(|| damaged(format!("its manifest does not list `{name}`")))
        };
        let tokens = Tokens::parse(&String::from_utf8_lossy(part(TOKEN)?));
        Ok(Self {
            tokens: tokens.ok_or_else(|| damaged("its secrets cannot be read".to_owned()))?,
            passwords: serde_json::from_slice(part(PASSWORDS)?).map_err(|e| damaged(e.to_string()))?,
            data: part(DATA)?.to_vec(),
            manifest,
        })
    }
}

/// Everything in a tar archive comes in blocks of this.
const BLOCK: usize = 512;

/// Appends a file in the format of POSIX.1-1988 (`ustar`).
fn add(archive: &mut Vec<u8>, name: &str, bytes: &[u8], at: i64) {
    let mut head = [0u8; BLOCK];
    let mut put = |from: usize, text: &str| head[from..from + text.len()].copy_from_slice(text.as_bytes());
    put(0, name);
    put(100, "0000600\0");
    put(108, "0000000\0");
    put(116, "0000000\0");
    put(124, &format!("{:011o}\0", bytes.len()));
    put(136, &format!("{:011o}\0", at.max(0)));
    put(148, "        ");
    put(156, "0");
    put(257, "ustar\x0000");
    let check: u32 = head.iter().map(|b| u32::from(*b)).sum();
    head[148..156].copy_from_slice(format!("{check:06o}\0 ").as_bytes());
    archive.extend_from_slice(&head);
    archive.extend_from_slice(bytes);
    archive.resize(archive.len().next_multiple_of(BLOCK), 0);
}

/// The files of an archive; ends at what cannot be read, with the reason.
fn parts(archive: &[u8]) -> impl Iterator<Item = Result<(&str, &[u8]), String>> {
    let mut rest = Some(archive);
    std::iter::from_fn(move || {
        let bytes = rest.take()?;
        if bytes.is_empty() {
            return Some(Err("its end is missing".to_owned()));
        }
        let Some(head) = bytes.get(..BLOCK) else { return Some(Err("it was cut off".to_owned())) };
        if head.iter().all(|b| *b == 0) {
            return None;
        }
        let octal = |from: usize, to: usize| {
            let text = std::str::from_utf8(&head[from..to]).ok()?;
            u64::from_str_radix(text.trim_matches([' ', '\0']), 8).ok()
        };
        let check: u64 = head.iter().map(|b| u64::from(*b)).sum::<u64>()
            - head[148..156].iter().map(|b| u64::from(*b)).sum::<u64>()
            + 8 * u64::from(b' ');
        let name = std::str::from_utf8(&head[..100]).ok().map(|n| n.trim_end_matches('\0'));
        let (Some(name), Some(len), true) = (name, octal(124, 136), octal(148, 156) == Some(check)) else {
            return Some(Err("one of its headers is not whole".to_owned()));
        };
        let len = usize::try_from(len).unwrap_or(usize::MAX);
        let Some(content) = bytes[BLOCK..].get(..len) else {
            return Some(Err(format!("it was cut off in `{name}`")));
        };
        rest = Some(bytes.get(BLOCK + len.next_multiple_of(BLOCK)..).unwrap_or_default());
        Some(Ok((name, content)))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::fixture::cluster;
    use proptest::prelude::*;

    fn backup(len: usize) -> Backup {
        let k3s = Some("v1.34.1+k3s1".to_owned());
        Backup {
            manifest: Manifest::of(&cluster(1), Datastore::Sqlite, k3s),
            tokens: Tokens::from_random([1; 32], [2; 32]),
            passwords: BTreeMap::from([("server".to_owned(), "secret".to_owned())]),
            data: (0..len).map(|n| (n % 251) as u8).collect(),
        }
    }

    fn written(len: usize) -> (tempfile::TempDir, PathBuf, Backup) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("b");
        let backup = backup(len);
        backup.write(&path).unwrap();
        (dir, path, backup)
    }

    #[test]
    fn what_was_written_is_read_back_by_p1_and_by_tar() {
        use std::os::unix::fs::PermissionsExt;
        for len in [0, 1, 511, 512, 513, 100_000] {
            let (dir, path, before) = written(len);
            let mut after = Backup::read(&path).unwrap();
            assert_eq!(std::mem::take(&mut after.manifest.sha256).len(), 3);
            assert_eq!(after, before);
            assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
            let tar =
                std::process::Command::new("tar").arg("-xf").arg(&path).current_dir(dir.path()).status();
            assert!(tar.unwrap().success());
            assert_eq!(std::fs::read(dir.path().join(DATA)).unwrap(), before.data);
        }
    }

    #[test]
    fn another_file_and_a_newer_one_are_told_apart() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("b");
        let error = |bytes: &[u8]| {
            std::fs::write(&path, bytes).unwrap();
            Backup::read(&path).unwrap_err()
        };
        for bytes in [&b""[..], b"PK\x03\x04", &[0; 4096]] {
            assert!(matches!(error(bytes), Error::Foreign { .. }));
        }
        let archive = |json: &str| {
            let mut archive = Vec::new();
            add(&mut archive, MANIFEST, json.as_bytes(), 0);
            archive
        };
        assert!(matches!(error(&archive("{\"v\": 1}")), Error::Foreign { .. }));
        assert!(matches!(error(&archive("{\"v\": 9, \"x\": 1}")), Error::Newer { found: 9, .. }));
        assert!(matches!(Backup::read(&dir.path().join("none")), Err(Error::File(_))));
    }

    proptest! {
        /// Wherever it was cut, and whatever bit was turned: it is never taken for whole. (Bits
        /// of the padding mean nothing.)
        #[test]
        fn no_damage_is_passed_over(at in 0usize..20_000, bit in 0u8..8) {
            let (_dir, path, before) = written(10_000);
            let whole = std::fs::read(&path).unwrap();
            let at = at % whole.len();
            std::fs::write(&path, &whole[..at]).unwrap();
            prop_assert!(Backup::read(&path).is_err() || at + BLOCK >= whole.len());
            let mut turned = whole.clone();
            turned[at] ^= 1 << bit;
            std::fs::write(&path, &turned).unwrap();
            if let Ok(read) = Backup::read(&path) {
                let sha256 = read.manifest.sha256.clone();
                let manifest = Manifest { sha256, ..before.manifest.clone() };
                prop_assert_eq!(read, Backup { manifest, ..before });
            }
        }
    }

    #[test]
    fn only_the_same_servers_and_a_k3s_that_can_read_it_fit() {
        let mut manifest = backup(1).manifest;
        let here = cluster(1);
        let says = |manifest: &Manifest, wanted| manifest.fits(&here, wanted).unwrap_err().to_string();
        for wanted in [None, Some("v1.34.1+k3s1"), Some("v1.34.0+k3s1"), Some("v1.35.2+k3s1"), Some("mine")] {
            manifest.fits(&here, wanted).unwrap();
        }
        manifest.fits(&cluster(3), None).unwrap();
        for wanted in ["v1.33.9+k3s1", "v1.36.0+k3s1", "v2.34.1+k3s1"] {
            assert!(says(&manifest, Some(wanted)).contains(wanted), "{wanted}");
        }
        manifest.nodes[0].ip = [10, 0, 0, 1].into();
        assert!(says(&manifest, None).contains("`server` has the address 10.0.0.1"));
        manifest.cluster = "other".into();
        assert!(says(&manifest, None).contains("`other`"));
    }
}
