//! What can go wrong with artifacts.

use std::path::PathBuf;
use std::time::Duration;

use crate::explain::{Again, Explain, FailureKind, seconds};
use crate::k3s::release::ChannelError;
use crate::k3s::version::NotAVersion;
use crate::os::{files, lock};

/// Why a file is not there.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The server answered with an error.
    #[error("{url} answered {status}{}", meaning(*status))]
    Status {
        /// What was asked for.
        url: String,
        /// The HTTP status.
        status: u16,
        /// How long it asks to be left alone.
        retry_after: Option<Duration>,
    },
    /// No connection, or one that broke.
    #[error("cannot download {url}: {cause}")]
    Connection {
        /// What was asked for.
        url: String,
        /// Why not.
        cause: String,
    },
    /// The connection is not trusted.
    #[error("cannot download {url}: {cause}")]
    Tls {
        /// What was asked for.
        url: String,
        /// Why not.
        cause: String,
    },
    /// The server sent nothing for too long.
    #[error("{url} sent nothing for {}", seconds(*bound))]
    Silence {
        /// What was asked for.
        url: String,
        bound: Duration,
    },
    /// It took too long in all.
    #[error("{url} did not come within {}", seconds(*bound))]
    TooSlow {
        /// What was asked for.
        url: String,
        bound: Duration,
    },
    /// What came is not what should have come.
    #[error("{url} has the wrong checksum: {got} instead of {wanted}")]
    Checksum {
        /// What was asked for, or a file's path.
        url: String,
        /// As promised.
        wanted: String,
        /// As found.
        got: String,
    },
    /// What came makes no sense.
    #[error("the answer of {url} is not understood: {what}")]
    Answer {
        /// What was asked for.
        url: String,
        /// What is wrong with it.
        what: String,
    },
    /// It cannot be asked for.
    #[error("`{url}` is not an address that can be downloaded: {what}")]
    BadUrl {
        /// As given.
        url: String,
        /// What is wrong with it.
        what: String,
    },
    /// It is not in the cache, and connections are forbidden.
    #[error("{what} is not in the cache, and p1 is offline")]
    Offline {
        /// Which file, and where it would come from.
        what: String,
    },
    /// A channel gives no version.
    #[error(transparent)]
    Channel(#[from] ChannelError),
    /// A version is none.
    #[error(transparent)]
    Version(#[from] NotAVersion),
    /// A given binary is another version than the spec says.
    #[error("{} is k3s {says}, not {wanted} as the spec says", path.display())]
    OtherVersion { path: PathBuf, says: String, wanted: String },
    /// A folder of artifacts cannot be used.
    #[error("the folder {} {what}", dir.display())]
    Folder {
        /// Which.
        dir: PathBuf,
        /// What it has or lacks.
        what: String,
    },
    /// Files that are the spec's own are of one architecture.
    #[error("the spec gives its own k3s binary, which is of one architecture")]
    OneArch,
    /// There is no k3s for this machine.
    #[error("there is no k3s for the architecture `{0}`")]
    NoArch(String),
    /// Trusted authorities cannot be read.
    #[error("{} has no certificates", .0.display())]
    NoRoots(PathBuf),
    /// Another p1 has been fetching the same file for too long.
    #[error("another p1 has been downloading {name} for {}", seconds(*bound))]
    Busy {
        /// Which.
        name: String,
        bound: Duration,
    },
    /// A file cannot be read or written.
    #[error("{}", crate::explain::chain(.0))]
    File(#[from] files::Error),
    /// A lock cannot be used.
    #[error(transparent)]
    Lock(lock::Error),
    /// The user asked to stop.
    #[error("the download was interrupted")]
    Cancelled,
}

fn meaning(status: u16) -> &'static str {
    match status {
        401 => " (login required)",
        403 => " (forbidden)",
        404 => " (not found)",
        429 => " (too many requests)",
        500..=599 => " (the server has a problem)",
        _ => "",
    }
}

impl Explain for Error {
    fn hint(&self) -> Option<String> {
        Some(match self {
            Self::Status { status: 404, .. } => {
                "Look at `k3s.version` and at the addresses under `k3s.artifacts`; a release may also lack files for \
                 this architecture."
                    .to_owned()
            }
            Self::Status { status: 401 | 403, .. } => {
                "The server does not let this host in; a proxy may want a login, or the address may have moved."
                    .to_owned()
            }
            Self::Status { .. } => "Try again later with `p1 retry`, or name a mirror in P1_K3S_RELEASES.".to_owned(),
            Self::Connection { .. } | Self::Silence { .. } | Self::TooSlow { .. } => {
                "Look at this host's connection and proxy settings (https_proxy, no_proxy), then run `p1 retry`: what \
                 came so far is kept. Without a connection, give the files under `k3s.artifacts`."
                    .to_owned()
            }
            Self::Tls { .. } => {
                "If a proxy of yours signs connections, add its authority to the system's, or name its PEM file in \
                 SSL_CERT_FILE. Look at this host's clock, too."
                    .to_owned()
            }
            Self::Checksum { .. } => {
                "The file is not the one that was promised: look at the checksum in the spec, or at the mirror."
                    .to_owned()
            }
            Self::Answer { .. } => "A proxy or a login page may have answered instead of the server.".to_owned(),
            Self::BadUrl { .. } => "Use http://, https:// or file://.".to_owned(),
            Self::Offline { .. } => {
                "`p1 up` downloads it; without a connection, fill a folder by `p1 artifacts fetch` elsewhere and name \
                 it as `k3s.artifacts.dir`, or give the file under `k3s.artifacts`."
                    .to_owned()
            }
            Self::Channel(ChannelError::Unknown { known, .. }) if !known.is_empty() => {
                format!("There are: {}.", known.join(", "))
            }
            Self::Channel(_) => "Give a `k3s.version` instead of a channel.".to_owned(),
            Self::Version(_) => "Give `k3s.version` as in v1.34.1+k3s1.".to_owned(),
            Self::OtherVersion { says, .. } => format!("Set `k3s.version: {says}`, or give another binary."),
            Self::Folder { .. } => {
                "`p1 artifacts fetch` fills it, on a host with a connection; `--arch` says for which machines.".to_owned()
            }
            Self::OneArch => "Fetch for that one alone, or leave `k3s.artifacts.binary` out.".to_owned(),
            Self::NoArch(_) => "k3s runs on x86-64, ARM and s390x.".to_owned(),
            Self::NoRoots(_) => "Point SSL_CERT_FILE to a PEM file, or unset it.".to_owned(),
            Self::Busy { .. } => "Look for a p1 that hangs, end it, and run `p1 retry`.".to_owned(),
            Self::File(e) => return e.hint(),
            Self::Lock(e) => return e.hint(),
            Self::Cancelled => return None,
        })
    }

    fn kind(&self) -> FailureKind {
        match self {
            Self::Status { status: 401 | 403, .. } => FailureKind::Denied,
            Self::Status { .. } => FailureKind::Refused,
            Self::Connection { .. } => FailureKind::Unreachable,
            Self::Silence { bound, .. } | Self::TooSlow { bound, .. } => FailureKind::bound(*bound),
            Self::Tls { .. } | Self::Checksum { .. } | Self::Answer { .. } => FailureKind::Damaged,
            Self::Busy { .. } => FailureKind::Conflict,
            Self::BadUrl { .. }
            | Self::Offline { .. }
            | Self::Channel(_)
            | Self::Version(_)
            | Self::OtherVersion { .. }
            | Self::Folder { .. }
            | Self::OneArch
            | Self::NoArch(_)
            | Self::NoRoots(_) => FailureKind::Cannot,
            Self::File(e) => e.kind(),
            Self::Lock(e) => e.kind(),
            Self::Cancelled => FailureKind::Other,
        }
    }

    fn again(&self) -> Again {
        match self {
            Self::Cancelled => Again::Cancelled,
            Self::Status { status: 408 | 425 | 429 | 500..=599, .. } => Again::Soon,
            Self::Connection { .. } | Self::Silence { .. } => Again::Soon,
            _ => Again::No,
        }
    }

    fn pause(&self) -> Option<Duration> {
        match self {
            Self::Status { retry_after, .. } => *retry_after,
            _ => None,
        }
    }
}
