//! Host keys, pinned at first contact.
//!
//! The store is an OpenSSH known_hosts file (sshd(8), "SSH_KNOWN_HOSTS FILE FORMAT"), so that `ssh`
//! and p1 trust the same machines. Its entries bear node names, for which `ssh` is told to look by
//! `HostKeyAlias`: an address or a forwarded port may change, the node stays the same.

use std::path::PathBuf;
use std::sync::Mutex;

use base64::Engine;
use base64::engine::general_purpose::{STANDARD, STANDARD_NO_PAD};
use sha2::{Digest, Sha256};

use super::Error;
use crate::os::{files, sync};

/// A machine's public key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostKey {
    blob: Vec<u8>,
}

impl HostKey {
    /// From the bytes of RFC 4253, section 6.6, as the machine sends them.
    pub fn new(blob: &[u8]) -> Self {
        Self { blob: blob.to_vec() }
    }

    /// Its type, e.g. `ssh-ed25519`: the first string within the bytes.
    pub fn kind(&self) -> &str {
        let length = self.blob.first_chunk::<4>().map_or(0, |b| u32::from_be_bytes(*b) as usize);
        let name = self.blob.get(4..4_usize.saturating_add(length)).unwrap_or_default();
        std::str::from_utf8(name).unwrap_or("unknown")
    }

    /// As `ssh` shows it: `SHA256:` and base64 without padding.
    pub fn fingerprint(&self) -> String {
        format!("SHA256:{}", STANDARD_NO_PAD.encode(Sha256::digest(&self.blob)))
    }

    /// Those in the lines of a known_hosts file, whomever they are for.
    pub fn of_lines(text: &str) -> Vec<Self> {
        let plain = text.lines().filter(|line| !line.starts_with(['#', '@']));
        let blob = |line: &str| STANDARD.decode(line.split_whitespace().nth(2)?).ok();
        plain.filter_map(blob).map(|blob| Self { blob }).collect()
    }

    fn line(&self, node: &str) -> String {
        format!("{node} {} {}\n", self.kind(), STANDARD.encode(&self.blob))
    }
}

/// What a file of host keys has for a machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Known {
    /// None where the machine has to be in there and is not.
    pub keys: Vec<HostKey>,
    pub file: PathBuf,
    /// What it is called there.
    pub entry: String,
}

/// The known_hosts file of a cluster, and whether a node without an entry gets one.
#[derive(Clone, Debug)]
pub struct KnownHosts {
    path: PathBuf,
    learn: bool,
    /// What a node has to have that has no entry yet.
    expected: Option<Known>,
}

/// Threads of several nodes pin at the same time, into one file. (Another p1 is kept out by the
/// cluster's lock.)
static WRITING: Mutex<()> = Mutex::new(());

impl KnownHosts {
    /// A node's key is pinned at first contact.
    pub fn learning(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into(), learn: true, expected: None }
    }

    /// A node without a pinned key is refused.
    pub fn pinned(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into(), learn: false, expected: None }
    }

    /// A node's key is pinned at first contact, where it is one of these.
    #[must_use]
    pub fn expecting(mut self, known: Known) -> Self {
        self.expected = Some(known);
        self
    }

    /// The keys pinned for `node`.
    pub fn keys(&self, node: &str) -> Result<Vec<HostKey>, Error> {
        let text = files::read_if_there(&self.path)?.unwrap_or_default();
        Ok(text.lines().filter_map(|line| entry(line, node)).collect())
    }

    /// The keys of which `node` has to have one, if it has to have any.
    pub fn wanted(&self, node: &str) -> Result<Vec<HostKey>, Error> {
        let pinned = self.keys(node)?;
        Ok(match &self.expected {
            Some(known) if pinned.is_empty() => known.keys.clone(),
            _ => pinned,
        })
    }

    /// Lets the machine pass, pins it, or says that it differs.
    pub fn check(&self, node: &str, offered: &HostKey) -> Result<(), Error> {
        let pinned = self.keys(node)?;
        if pinned.contains(offered) {
            return Ok(());
        }
        let (node, file) = (node.to_owned(), self.path.clone());
        if let (true, Some(Known { keys, file, entry })) = (pinned.is_empty(), &self.expected) {
            let (file, offered_as, entry) = (file.clone(), offered.fingerprint(), entry.clone());
            if keys.is_empty() {
                return Err(Error::HostKeyUnknown { node, file, offered: offered_as });
            }
            if !keys.contains(offered) {
                let pinned = keys.iter().map(HostKey::fingerprint).collect::<Vec<_>>().join(" or ");
                return Err(Error::HostKeyChanged { node, file, pinned, offered: offered_as, entry });
            }
        }
        if !pinned.is_empty() {
            let pinned: Vec<_> = pinned.iter().map(HostKey::fingerprint).collect();
            let (offered, entry) = (offered.fingerprint(), node.clone());
            return Err(Error::HostKeyChanged { node, file, pinned: pinned.join(" or "), offered, entry });
        }
        // Who only looks leaves nothing behind where nothing was made yet.
        if self.learn && self.path.parent().is_some_and(|folder| !folder.exists()) {
            return Ok(());
        }
        if !self.learn {
            return Err(Error::HostKeyUnknown { node, file, offered: offered.fingerprint() });
        }
        self.rewrite(&node, Some(offered))
    }

    /// Unpins `node`: p1 is about to recreate its machine, or has destroyed it.
    pub fn forget(&self, node: &str) -> Result<(), Error> {
        self.rewrite(node, None)
    }

    fn rewrite(&self, node: &str, key: Option<&HostKey>) -> Result<(), Error> {
        let _writing = sync::lock(&WRITING);
        let old = files::read_if_there(&self.path)?;
        if old.is_none() && key.is_none() {
            return Ok(());
        }
        let old = old.unwrap_or_default();
        let kept = old.lines().filter(|line| entry(line, node).is_none());
        let mut text: String = kept.flat_map(|line| [line, "\n"]).collect();
        if let Some(key) = key {
            text.push_str(&key.line(node));
        }
        files::write_if_changed(&self.path, text.as_bytes(), 0o600)?;
        Ok(())
    }
}

/// The key in `line`, if it is for `node`. Comments, markers (`@revoked`) and hashed names are not ours.
fn entry(line: &str, node: &str) -> Option<HostKey> {
    let mut fields = line.split_whitespace();
    let names = fields.next().filter(|n| !n.starts_with(['#', '@', '|']))?;
    let (_kind, key) = (fields.next()?, fields.next()?);
    let ours = names.split(',').any(|name| name == node);
    ours.then(|| STANDARD.decode(key).ok().map(|blob| HostKey { blob })).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The key and fingerprint that `ssh-keygen -l` gives for it.
    const KEY: &str = "AAAAC3NzaC1lZDI1NTE5AAAAIJdD7y3aLq454yWBdwLWbieU1ebz9/cu7/QEXn9OIeZJ";

    fn key(text: &str) -> HostKey {
        HostKey::new(&STANDARD.decode(text).unwrap())
    }

    #[test]
    fn a_key_is_pinned_once_then_defended_until_it_is_forgotten() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("known_hosts");
        std::fs::write(&path, "# mine\nworker,x ssh-ed25519 AAAA\n").unwrap();
        let store = KnownHosts::learning(&path);
        let (one, other) = (key(KEY), HostKey::new(b"\0\0\0\x0bssh-ed25519another"));
        assert_eq!(one.kind(), "ssh-ed25519");

        store.check("server", &one).unwrap();
        store.check("server", &one).unwrap();
        let text = std::fs::read_to_string(&path).unwrap();
        assert_eq!(text, format!("# mine\nworker,x ssh-ed25519 AAAA\nserver ssh-ed25519 {KEY}\n"));

        let error = store.check("server", &other).unwrap_err();
        assert!(matches!(&error, Error::HostKeyChanged { pinned, .. } if pinned == &one.fingerprint()));
        store.forget("server").unwrap();
        let strict = KnownHosts::pinned(&path);
        assert!(matches!(strict.check("server", &other), Err(Error::HostKeyUnknown { .. })));
        store.check("server", &other).unwrap();
        strict.check("server", &other).unwrap();
    }

    #[test]
    fn damaged_keys_do_not_panic() {
        assert_eq!(HostKey::new(b"\xff\xff\xff\xffx").kind(), "");
        assert_eq!(HostKey::new(b"").kind(), "");
        assert!(entry("server ssh-ed25519", "server").is_none());
    }
}
