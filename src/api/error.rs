//! What can go wrong when a cluster is asked.

use std::time::Duration;

use crate::explain::{Again, Explain, FailureKind, seconds};
use crate::k3s::kubeconfig;

/// Why the API gave no answer, or a bad one.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The kubeconfig cannot be read.
    #[error(transparent)]
    Kubeconfig(#[from] kubeconfig::Error),
    /// Its certificates or its key cannot be used.
    #[error("the cluster's kubeconfig cannot be used: {0}")]
    Credentials(String),
    /// Nothing listens there.
    #[error("nothing listens at {url}")]
    Refused { url: String },
    /// It did not answer in time.
    #[error("{url} did not answer within {}", seconds(*bound))]
    TimedOut {
        url: String,
        /// The bound of one request.
        bound: Duration,
    },
    /// No way there, or the connection broke.
    #[error("cannot reach {url}: {cause}")]
    Unreachable {
        url: String,
        /// Why not.
        cause: String,
    },
    /// Its certificate is not to be trusted, or it speaks no TLS.
    #[error("the server at {url} is not trusted: {cause}")]
    Tls {
        url: String,
        /// Why not.
        cause: String,
        /// True if it is a matter of time: a certificate that is not valid yet, or no more.
        clock: bool,
    },
    /// It does not know us: another cluster's certificate, or an expired one. k3s also says so for a
    /// moment while it starts.
    #[error("the API does not accept the kubeconfig's certificate: {message}")]
    Unauthorized { message: String },
    /// It knows us and says no.
    #[error("the API forbids it: {message}")]
    Forbidden { message: String },
    /// It is up but not ready.
    #[error("the API is not ready: {message}")]
    NotReady {
        /// Its word: the checks that fail.
        message: String,
    },
    /// Another error status.
    #[error("the API answered {code}: {message}")]
    Status {
        /// The HTTP status.
        code: u16,
        message: String,
    },
    /// What was asked cannot be sent.
    #[error("`{path}` cannot be asked for: {cause}")]
    Question {
        /// Path and query.
        path: String,
        /// Why not.
        cause: String,
    },
    /// An answer that is none.
    #[error("the API's answer is not understood: {0}")]
    Answer(String),
    /// The user asked to abort.
    #[error("asking the API was interrupted")]
    Cancelled,
}

impl Explain for Error {
    fn hint(&self) -> Option<String> {
        Some(match self {
            Self::Kubeconfig(e) => return e.hint(),
            Self::Credentials(_) | Self::Unauthorized { .. } => {
                "The server was recreated, or its certificates have expired: they are renewed when k3s restarts on the server. The \
                 kubeconfig is fetched again by each run for all nodes."
                    .to_owned()
            }
            Self::Refused { .. } => {
                "The VM is up, but k3s does not listen: `p1 logs` shows why, `p1 status` its unit.".to_owned()
            }
            Self::TimedOut { .. } | Self::Unreachable { .. } => {
                "See with `p1 status` whether the VM runs, and whether a firewall on it or on this host is in the way."
                    .to_owned()
            }
            Self::Tls { clock: true, .. } => {
                "Compare the clocks: `date -u` here and `p1 exec -- date -u` on the nodes.".to_owned()
            }
            Self::Tls { .. } => {
                "Something else answers at that address, or the server was recreated; the kubeconfig is fetched by each run for all nodes."
                    .to_owned()
            }
            Self::NotReady { .. } => "Wait a moment; `p1 logs` shows what the server does.".to_owned(),
            Self::Forbidden { .. }
            | Self::Status { .. }
            | Self::Question { .. }
            | Self::Answer(_)
            | Self::Cancelled => return None,
        })
    }

    fn kind(&self) -> FailureKind {
        match self {
            Self::Kubeconfig(e) => e.kind(),
            Self::Credentials(_) | Self::Tls { .. } | Self::Answer(_) => FailureKind::Damaged,
            Self::Refused { .. } | Self::NotReady { .. } | Self::Status { .. } => FailureKind::Refused,
            Self::TimedOut { bound, .. } => FailureKind::bound(*bound),
            Self::Unreachable { .. } => FailureKind::Unreachable,
            Self::Unauthorized { .. } | Self::Forbidden { .. } => FailureKind::Denied,
            Self::Question { .. } => FailureKind::Cannot,
            Self::Cancelled => FailureKind::Other,
        }
    }

    fn again(&self) -> Again {
        match self {
            Self::Cancelled => Again::Cancelled,
            Self::Refused { .. }
            | Self::TimedOut { .. }
            | Self::Unreachable { .. }
            | Self::NotReady { .. }
            | Self::Unauthorized { .. } => Again::Soon,
            Self::Status { code, .. } if *code == 429 || *code >= 500 => Again::Soon,
            _ => Again::No,
        }
    }
}
