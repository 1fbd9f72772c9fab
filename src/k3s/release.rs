//! Where k3s' releases and channels are, and how their lists read.

use std::fmt;

use serde::Deserialize;

use super::version::Version;
use crate::os::hash::Sum;

/// A processor architecture as k3s names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Arch {
    /// x86-64.
    Amd64,
    /// AArch64.
    Arm64,
    /// 32-bit ARM, hard float.
    Arm,
    /// IBM Z.
    S390x,
}

impl Arch {
    /// From `uname -m`, as install.sh does it (`setup_verify_arch`). `None`: there is no k3s for it.
    pub fn from_uname(machine: &str) -> Option<Self> {
        match machine.trim() {
            "x86_64" | "amd64" => Some(Self::Amd64),
            "aarch64" | "arm64" => Some(Self::Arm64),
            "s390x" => Some(Self::S390x),
            other => other.starts_with("arm").then_some(Self::Arm),
        }
    }

    /// As in the names of checksum lists and image archives.
    pub fn name(self) -> &'static str {
        match self {
            Self::Amd64 => "amd64",
            Self::Arm64 => "arm64",
            Self::Arm => "arm",
            Self::S390x => "s390x",
        }
    }

    /// The binary's name in a release.
    pub fn binary(self) -> &'static str {
        match self {
            Self::Amd64 => "k3s",
            Self::Arm64 => "k3s-arm64",
            Self::Arm => "k3s-armhf",
            Self::S390x => "k3s-s390x",
        }
    }
}

impl fmt::Display for Arch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Where things come from: k3s' own places, or a mirror that is laid out alike. `file://` is fine.
/// No trailing slash.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Origins {
    /// The list of channels, the address itself.
    pub channels: String,
    /// Releases: `<here>/<version>/<file>`.
    pub releases: String,
    /// Source files: `<here>/<version>/install.sh`.
    pub source: String,
}

impl Default for Origins {
    fn default() -> Self {
        Self {
            channels: "https://update.k3s.io/v1-release/channels".to_owned(),
            releases: "https://github.com/k3s-io/k3s/releases/download".to_owned(),
            source: "https://raw.githubusercontent.com/k3s-io/k3s".to_owned(),
        }
    }
}

impl Origins {
    /// The k3s binary.
    pub fn binary(&self, version: &Version, arch: Arch) -> String {
        self.release_file(version, arch.binary())
    }

    /// The list of a release's checksums; [`checksum`] reads it.
    pub fn checksums(&self, version: &Version, arch: Arch) -> String {
        self.release_file(version, &checksums_name(arch))
    }

    /// The archive of the images that k3s itself needs (docs.k3s.io/installation/airgap).
    pub fn images(&self, version: &Version, arch: Arch) -> String {
        self.release_file(version, &format!("k3s-airgap-images-{arch}.tar.zst"))
    }

    /// The installer of that very version: the one on get.k3s.io changes under its users.
    pub fn installer(&self, version: &Version) -> String {
        format!("{}/{}/install.sh", self.source, encode(version))
    }

    fn release_file(&self, version: &Version, file: &str) -> String {
        format!("{}/{}/{file}", self.releases, encode(version))
    }
}

/// The name of a release's checksum list.
pub fn checksums_name(arch: Arch) -> String {
    format!("sha256sum-{arch}.txt")
}

/// Some servers take a bare `+` in a path for a space.
fn encode(version: &Version) -> String {
    version.to_string().replace('+', "%2B")
}

/// The checksum of `file` in a list as sha256sum writes it; 64 lower-case hex digits.
pub fn checksum(list: &str, file: &str) -> Option<String> {
    match Sum::listed(list, file) {
        Some(Sum::Sha256(digits)) => Some(digits),
        _ => None,
    }
}

/// Why a list of channels gives no version.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ChannelError {
    /// It is not such a list.
    #[error("the answer is not a list of channels: {0}")]
    Unreadable(String),
    /// It has no such channel, or that one has no release.
    #[error("there is no release channel `{name}`")]
    Unknown {
        /// What was asked for.
        name: String,
        /// What there is.
        known: Vec<String>,
    },
}

#[derive(Deserialize)]
struct List {
    data: Vec<Channel>,
}

#[derive(Deserialize)]
struct Channel {
    name: String,
    #[serde(default)]
    latest: String,
}

/// The version that a channel stands for just now, from the channel server's answer: an object with
/// `data`, a list of objects with `name` and `latest` (k3s-io/channelserver, `pkg/model`). Channels
/// without a release have no or an empty `latest`.
pub fn channel_version(answer: &str, name: &str) -> Result<Version, ChannelError> {
    let list: List = serde_json::from_str(answer).map_err(|e| ChannelError::Unreadable(e.to_string()))?;
    let found = list.data.iter().find(|c| c.name == name && !c.latest.is_empty());
    match found {
        Some(channel) => channel.latest.parse().map_err(|e| ChannelError::Unreadable(format!("{e}"))),
        None => Err(ChannelError::Unknown {
            name: name.to_owned(),
            known: list.data.into_iter().filter(|c| !c.latest.is_empty()).map(|c| c.name).collect(),
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_encoded_and_named_by_architecture() {
        let origins = Origins::default();
        let version: Version = "v1.34.1+k3s1".parse().unwrap();
        let base = "https://github.com/k3s-io/k3s/releases/download/v1.34.1%2Bk3s1";
        assert_eq!(origins.binary(&version, Arch::Arm), format!("{base}/k3s-armhf"));
        assert_eq!(origins.checksums(&version, Arch::Amd64), format!("{base}/sha256sum-amd64.txt"));
        assert_eq!(origins.images(&version, Arch::Arm64), format!("{base}/k3s-airgap-images-arm64.tar.zst"));
        let script = "https://raw.githubusercontent.com/k3s-io/k3s/v1.34.1%2Bk3s1/install.sh";
        assert_eq!(origins.installer(&version), script);
        let archs = ["x86_64\n", "aarch64", "armv7l", "riscv64"].map(Arch::from_uname);
        assert_eq!(archs, [Some(Arch::Amd64), Some(Arch::Arm64), Some(Arch::Arm), None]);
    }

    #[test]
    fn a_checksum_is_found_by_its_whole_name() {
        let (a, b) = ("a".repeat(64), "B".repeat(64));
        let list = format!("{a}  k3s-airgap-images-amd64.tar\n{b} *k3s\nshort  k3s-arm64\n");
        assert_eq!(checksum(&list, "k3s"), Some("b".repeat(64)));
        assert_eq!(checksum(&list, "k3s-airgap-images-amd64.tar"), Some(a));
        assert_eq!(checksum(&list, "k3s-arm64"), None);
        assert_eq!(checksum("<html>", "k3s"), None);
    }

    #[test]
    fn a_channel_gives_its_latest_or_says_what_there_is() {
        let answer = r#"{"type":"collection","links":{"self":"…/v1-release/channels"},"data":[
            {"id":"stable","type":"channel","name":"stable","latest":"v1.33.5+k3s1"},
            {"id":"testing","type":"channel","name":"testing"},
            {"id":"v1.34","type":"channel","name":"v1.34","latest":"v1.34.1+k3s1","latestRegexp":"v1\\.34\\..*"}]}"#;
        assert_eq!(channel_version(answer, "stable").unwrap().to_string(), "v1.33.5+k3s1");
        let error = channel_version(answer, "testing").unwrap_err();
        let ChannelError::Unknown { known, .. } = error else { panic!("{error}") };
        assert_eq!(known, ["stable", "v1.34"]);
        assert!(matches!(channel_version("<html>", "stable"), Err(ChannelError::Unreadable(_))));
    }
}
