//! The files that nodes need: found, downloaded once per host, verified, kept.
//!
//! [`resolve()`] says which files, and what is known of them; [`fetch()`] gets what is missing. What
//! was fetched once is not asked for again: a converged `up` makes no connection and hashes nothing.
//!
//! The cache's layout, all below [`Cache::dir`]:
//! - `releases/VERSION/{k3s,install.sh,sha256sum-ARCH.txt}`, with `@HASH` behind the version for
//!   other origins than k3s' own;
//! - `sha256/SUM/NAME` for addresses that the spec gives, `sha512/SUM/NAME` where that is what is promised;
//! - `local/HASH.json`, what is known of files elsewhere on this host;
//! - `channels-HASH.json`, the last answer about channels;
//! - beside a file: `NAME.json` what is known of it, `NAME.part` what came so far, `NAME.lock`.

mod error;
mod fetch;
pub mod folder;
mod http;
mod resolve;
mod roots;
mod store;
#[cfg(test)]
mod tests;
#[cfg(test)]
mod testserver;
#[cfg(test)]
mod tls_tests;

use std::path::PathBuf;
use std::time::Duration;

pub use error::Error;
pub use fetch::{fetch, fetch_one, fetch_sum, text};
pub use resolve::{lacks, lacks_sum, missing, resolve};

use crate::k3s::{Arch, Origins};
use crate::os::hash::Sum;
use crate::spec;

/// Where downloads are kept; one for all clusters of a user.
#[derive(Clone, Debug)]
pub struct Cache {
    /// Made when it is needed.
    pub dir: PathBuf,
}

/// How to get at what is elsewhere.
#[derive(Clone, Debug, Default)]
pub struct Net {
    /// k3s' own places or a mirror's.
    pub origins: Origins,
    /// Make no connection: what is not in the cache is an error.
    pub offline: bool,
    /// Proxy for `https` addresses, as in `https_proxy`. Nothing is read from the environment.
    pub https_proxy: Option<String>,
    /// Proxy for `http` addresses, as in `http_proxy`.
    pub http_proxy: Option<String>,
    /// Hosts that are asked directly, as in `no_proxy`: names (with all below them), addresses,
    /// networks, or `*`; separated by commas.
    pub no_proxy: Option<String>,
    /// PEM file of the authorities to trust instead of the system's, as in `SSL_CERT_FILE`.
    pub ca_file: Option<PathBuf>,
}

/// Bounds of one download.
#[derive(Clone, Debug)]
pub struct Bounds {
    /// How long a server may send nothing at all, connecting included.
    pub silence: Duration,
    /// How long one file may take in all, with every attempt, and waiting for another p1 that
    /// fetches the same file.
    pub total: Duration,
    /// How often, and how far apart.
    pub retry: spec::Retry,
}

impl Bounds {
    /// From a spec's settings, with 30 s of silence.
    pub fn new(timeouts: &spec::Timeouts, retry: &spec::Retry) -> Self {
        let silence = Duration::from_secs(30).min(timeouts.download);
        Self { silence, total: timeouts.download, retry: retry.clone() }
    }
}

/// Where an item is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// On this host; used where it is.
    Local(PathBuf),
    /// Elsewhere, kept in the cache.
    Remote {
        /// `http` or `https`.
        url: String,
        /// Its place in the cache.
        cached: PathBuf,
    },
}

/// One file that is needed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Item {
    /// What it is called on a node: `k3s`, `install.sh`, an archive's own name.
    pub name: String,
    /// Where it is.
    pub place: Place,
    /// What it must be, where somebody vouches for it; otherwise what it was when it was last looked
    /// at and has not changed since, or `None`. 64 lower-case hex digits.
    pub sha256: Option<String>,
    /// True if [`Item::sha256`] is a promise to be kept, not a memory.
    pub promised: bool,
    /// The same promise, made by a sum of another kind; then there is none of the first.
    pub sha512: Option<Sum>,
}

/// Which files are needed, and from where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Resolved {
    /// The k3s version; `None` for a given binary that cannot be asked here.
    pub version: Option<String>,
    pub binary: Item,
    pub installer: Item,
    /// Image archives, as the spec lists them. Empty: nodes pull from registries.
    pub images: Vec<Item>,
    /// What the user should know, as sentences.
    pub warnings: Vec<String>,
}

/// A file that is here and verified.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct File {
    /// What it is called on a node.
    pub name: String,
    /// Where it is on this host.
    pub path: PathBuf,
    /// 64 lower-case hex digits.
    pub sha256: String,
    /// Bytes.
    pub len: u64,
}

/// All the files, verified.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Files {
    /// The k3s version, where it is known.
    pub version: Option<String>,
    pub binary: File,
    pub installer: File,
    /// Image archives.
    pub images: Vec<File>,
}

/// What is being done with a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Doing {
    /// Another p1 downloads it just now.
    Waiting,
    /// It comes.
    Downloading,
    /// It is hashed.
    Checking,
}

/// How it gets on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress<'a> {
    /// [`Item::name`].
    pub name: &'a str,
    /// What is done.
    pub doing: Doing,
    /// Bytes so far.
    pub done: u64,
    /// Of how many, where that is known.
    pub total: Option<u64>,
}

/// The architecture of the given `uname -m`, or the error that there is no k3s for it.
pub fn arch(uname_m: &str) -> Result<Arch, Error> {
    Arch::from_uname(uname_m).ok_or_else(|| Error::NoArch(uname_m.trim().to_owned()))
}
