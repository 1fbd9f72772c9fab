//! k3s' versions: `v1.34.1+k3s1` is Kubernetes 1.34.1 in k3s' first packaging of it.

use std::cmp::Ordering;
use std::fmt;
use std::str::FromStr;

/// A version. The order is Kubernetes' first, then the packaging's: `+k3s2` comes before `+k3s10`,
/// and a pre-release before its release.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Version {
    core: semver::Version,
    /// The N of `+k3sN`; 0 for a build between releases, such as `+k3s-7ce96aa0`.
    revision: u64,
    build: String,
}

/// What is in the way of an upgrade.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Barrier {
    /// The version is older.
    Back,
    /// It skips a minor version; this channel's comes next.
    Skips(String),
}

/// Not a version.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a k3s version such as v1.34.1+k3s1")]
pub struct NotAVersion(pub String);

impl Version {
    /// `(1, 34)` of `v1.34.1+k3s1`: what skew and upgrade rules look at.
    pub fn minor(&self) -> (u64, u64) {
        (self.core.major, self.core.minor)
    }

    /// Why a server that runs this version must not become that one; none if it may
    /// (docs.k3s.io/upgrades: no minor version is skipped, and servers do not go back).
    pub fn barrier(&self, to: &Self) -> Option<Barrier> {
        let ((major, minor), (to_major, to_minor)) = (self.minor(), to.minor());
        if to < self {
            return Some(Barrier::Back);
        }
        (to_major != major || to_minor > minor + 1).then(|| Barrier::Skips(format!("v{major}.{}", minor + 1)))
    }

    /// From what `k3s --version` says: `k3s version v1.21.2+k3s1 (5a67e8dc)` and a line about Go.
    pub fn from_output(output: &str) -> Option<Self> {
        let line = output.lines().find_map(|l| l.trim().strip_prefix("k3s version "))?;
        line.split_whitespace().next()?.parse().ok()
    }
}

impl FromStr for Version {
    type Err = NotAVersion;

    /// Takes `v1.34.1+k3s1`, also without the `v` and without the packaging.
    fn from_str(text: &str) -> Result<Self, NotAVersion> {
        let bad = || NotAVersion(text.to_owned());
        let mut core = semver::Version::parse(text.trim().trim_start_matches('v')).map_err(|_| bad())?;
        let build = std::mem::take(&mut core.build).to_string();
        let revision = build.strip_prefix("k3s").and_then(|n| n.parse().ok()).unwrap_or(0);
        Ok(Self { core, revision, build })
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "v{}", self.core)?;
        if self.build.is_empty() { Ok(()) } else { write!(f, "+{}", self.build) }
    }
}

impl Ord for Version {
    fn cmp(&self, other: &Self) -> Ordering {
        let key = |v: &Self| (v.revision, v.build.clone());
        self.core.cmp(&other.core).then_with(|| key(self).cmp(&key(other)))
    }
}

impl PartialOrd for Version {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

/// Whether a node runs the wanted version. `running` is its kubelet's (`status.nodeInfo`), which
/// k3s sets to its own, packaging included. What cannot be read counts as another version.
pub fn runs(wanted: &str, running: &str) -> bool {
    match (wanted.parse::<Version>(), running.parse::<Version>()) {
        (Ok(wanted), Ok(running)) => wanted == running,
        _ => wanted == running,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn v(text: &str) -> Version {
        text.parse().unwrap()
    }

    #[test]
    fn the_packaging_counts_as_a_number() {
        let sorted = [
            "v1.9.9+k3s1",
            "v1.34.1-rc1+k3s1",
            "v1.34.1",
            "v1.34.1+k3s-7ce96aa0",
            "v1.34.1+k3s2",
            "v1.34.1+k3s10",
            "v1.34.2+k3s1",
        ];
        for pair in sorted.windows(2) {
            assert!(v(pair[0]) < v(pair[1]), "{pair:?}");
        }
        for text in sorted {
            assert_eq!(v(text).to_string(), text);
        }
        assert_eq!(v("v1.34.1+k3s1").minor(), (1, 34));
    }

    #[test]
    fn an_upgrade_goes_forward_one_minor_version_at_a_time() {
        let way = |from: &str, to: &str| v(from).barrier(&v(to));
        for to in ["v1.33.4+k3s1", "v1.33.4+k3s2", "v1.33.9+k3s1", "v1.34.0+k3s1"] {
            assert_eq!(way("v1.33.4+k3s1", to), None, "{to}");
        }
        for to in ["v1.33.4", "v1.33.3+k3s9", "v1.32.9+k3s1"] {
            assert_eq!(way("v1.33.4+k3s1", to), Some(Barrier::Back), "{to}");
        }
        assert_eq!(way("v1.33.4+k3s1", "v1.35.0+k3s1"), Some(Barrier::Skips("v1.34".into())));
        assert_eq!(way("v1.33.4+k3s1", "v2.0.0+k3s1"), Some(Barrier::Skips("v1.34".into())));
    }

    #[test]
    fn what_is_no_version_is_said_to_be_none() {
        for text in ["", "stable", "v1.34", "v1.34.1.2", "v1.x.1"] {
            let error = text.parse::<Version>().unwrap_err();
            assert!(error.to_string().contains("v1.34.1+k3s1"));
        }
    }

    #[test]
    fn the_program_and_the_kubelet_are_understood() {
        let output = "k3s version v1.21.2+k3s1 (5a67e8dc)\ngo version go1.19.8\n";
        assert_eq!(Version::from_output(output), Some(v("v1.21.2+k3s1")));
        assert_eq!(Version::from_output("bash: k3s: not found"), None);
        assert!(runs("1.21.2+k3s1", "v1.21.2+k3s1"));
        assert!(!runs("v1.21.2+k3s1", "v1.21.2+k3s2"));
        assert!(!runs("v1.21.2+k3s1", ""));
    }
}
