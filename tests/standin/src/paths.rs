//! Where things are, and the numbers a test may tune.
//!
//! `K3S_STANDIN_ROOT` is put before every absolute path, so tests need neither root nor a machine of
//! their own. The numbers come from `K3S_STANDIN_<NAME>` or from `<name>=<value>` lines in
//! `/etc/p1-standin/tune`. Names beginning with `K3S_` pass through the installer's environment file.

use std::io::{Read, Seek, SeekFrom};
use std::path::PathBuf;
use std::sync::OnceLock;
use std::time::Duration;

use crate::util;

pub const DEFAULT_VERSION: &str = "v1.34.1+k3s1";

pub fn root() -> Option<String> {
    std::env::var("K3S_STANDIN_ROOT").ok().filter(|r| !r.is_empty() && r != "/")
}

/// `path` (absolute) below the root prefix; a path that already is below it stays as it is.
pub fn at(path: &str) -> PathBuf {
    match root() {
        Some(root) if !path.starts_with(&root) => PathBuf::from(format!("{root}{path}")),
        _ => PathBuf::from(path),
    }
}

/// A number from the environment or the tune file. `name` is in lower case.
fn tuned(name: &str) -> Option<String> {
    let variable = format!("K3S_STANDIN_{}", name.to_uppercase());
    std::env::var(variable).ok().or_else(|| {
        let text = util::read(at("/etc/p1-standin/tune"))?;
        text.lines()
            .find_map(|l| Some(l.split_once('=')?).filter(|(k, _)| k.trim() == name))
            .map(|(_, v)| v.trim().to_owned())
    })
}

/// Seconds, fractions allowed.
pub fn seconds(name: &str, default: f64) -> Duration {
    let value = tuned(name).and_then(|v| v.parse().ok()).unwrap_or(default);
    Duration::from_secs_f64(if value >= 0.0 { value } else { default })
}

pub fn number(name: &str, default: u16) -> u16 {
    tuned(name).and_then(|v| v.parse().ok()).unwrap_or(default)
}

/// The version this binary claims: environment, then file, then what was put behind its end
/// (`tests/standin/package DIRECTORY VERSION`).
pub fn version() -> String {
    std::env::var("K3S_STANDIN_VERSION")
        .ok()
        .filter(|v| !v.is_empty())
        .or_else(|| util::read(at("/etc/p1-standin/version")))
        .unwrap_or_else(|| {
            STAMP.get_or_init(|| stamped().unwrap_or_else(|| DEFAULT_VERSION.to_owned())).clone()
        })
}

static STAMP: OnceLock<String> = OnceLock::new();

/// The last line of this program's file. The running one's, also when another was put in its place.
fn stamped() -> Option<String> {
    const MARK: &str = "\nK3S-STANDIN-VERSION=";
    let mut file = std::fs::File::open("/proc/self/exe").ok()?;
    let end = file.metadata().ok()?.len();
    file.seek(SeekFrom::Start(end.saturating_sub(200))).ok()?;
    let mut tail = Vec::new();
    file.read_to_end(&mut tail).ok()?;
    let tail = String::from_utf8_lossy(&tail).into_owned();
    let (_, version) = tail.rsplit_once(MARK)?;
    Some(version.trim().to_owned()).filter(|v| !v.is_empty())
}
