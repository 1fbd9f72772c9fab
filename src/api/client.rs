//! The connection.

use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use ureq::tls::{Certificate, ClientCert, PrivateKey, RootCerts, TlsConfig};
use ureq::unversioned::resolver::{DefaultResolver, ResolvedSocketAddrs, Resolver};
use ureq::unversioned::transport::{DefaultConnector, NextTimeout};
use ureq::{Agent, http::Uri};

use super::Error;
use super::objects::{self, NodeStatus, Warning};
use crate::k3s::kubeconfig::{self, Access};
use crate::os::Cancel;

/// Where kubelets' leases are.
const LEASES: &str = "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease";
/// More than the nodes of any cluster that p1 makes.
const MAX_BODY: u64 = 64 << 20;

/// A cluster's API. Cheap to clone; clones share connections. The first request makes one TLS
/// handshake, those after it none, as long as they follow within a minute.
#[derive(Clone, Debug)]
pub struct Client {
    agent: Agent,
    url: String,
    bound: Duration,
}

impl Client {
    /// From a kubeconfig's text, its certificates and key inside. `address`: connect there instead of
    /// to the server's own address, such as to a tunnel's end on loopback; the server's certificate
    /// still has to be for its own address. `bound` is for one request, connecting included.
    pub fn new(kubeconfig: &str, address: Option<SocketAddr>, bound: Duration) -> Result<Self, Error> {
        let access = kubeconfig::access(kubeconfig)?;
        let tls = tls(&access)?;
        let url = access.server.trim_end_matches('/').to_owned();
        Ok(Self { agent: agent(&url, address, bound, tls)?, url, bound })
    }

    /// The same, with another bound for one request.
    #[must_use]
    pub fn within(&self, bound: Duration) -> Self {
        Self { bound, ..self.clone() }
    }

    /// Every node that the cluster knows, by name.
    pub fn nodes(&self, cancel: &Cancel) -> Result<Vec<NodeStatus>, Error> {
        objects::nodes(&self.get("/api/v1/nodes", cancel)?)
    }

    /// By node: when its kubelet renewed its lease last, in the API's words. It does so every ten
    /// seconds (`nodeLeaseDurationSeconds` / 4), while a Node object may stay as it is for minutes.
    pub fn leases(&self, cancel: &Cancel) -> Result<BTreeMap<String, String>, Error> {
        objects::leases(&self.get(&format!("{LEASES}/leases"), cancel)?)
    }

    /// Whether a node's kubelet answers a question that the API hands on to it (`nodes/proxy`); false where the API has
    /// no such path or does not allow it.
    pub fn kubelet_answers(&self, node: &str, cancel: &Cancel) -> Result<bool, Error> {
        match self.get(&format!("/api/v1/nodes/{node}/proxy/healthz"), cancel) {
            Ok(body) => Ok(body.trim() == "ok"),
            Err(Error::Status { .. } | Error::Forbidden { .. } | Error::NotReady { .. }) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// The newest warnings of the whole cluster, the newest last.
    pub fn events(&self, limit: usize, cancel: &Cancel) -> Result<Vec<Warning>, Error> {
        // The API's own limit cuts by name, not by age.
        let body = self.get("/api/v1/events?fieldSelector=type%3DWarning", cancel)?;
        objects::warnings(&body, limit)
    }

    fn get(&self, path: &str, cancel: &Cancel) -> Result<String, Error> {
        self.get_as(path, Want::Whole, cancel)
    }

    pub(super) fn get_as(&self, path: &str, want: Want, cancel: &Cancel) -> Result<String, Error> {
        let (status, body) = get(&self.agent, &self.url, path, want, self.bound, cancel)?;
        if status == 200 {
            return Ok(body);
        }
        let message = objects::refusal(&body);
        Err(match status {
            401 => Error::Unauthorized { message },
            403 => Error::Forbidden { message },
            503 => Error::NotReady { message },
            code => Error::Status { code, message },
        })
    }
}

/// Whether a k3s server answers at `url` (`https://IP:6443`), and with which authorities: its
/// `/cacerts`, which needs no login. Any certificate is accepted, so this proves nothing but that
/// somebody answers; it is what an agent asks first, too (`pkg/clientaccess`, `getCACerts`).
pub fn cacerts(
    url: &str,
    address: Option<SocketAddr>,
    bound: Duration,
    cancel: &Cancel,
) -> Result<String, Error> {
    let tls = TlsConfig::builder().disable_verification(true).build();
    let agent = agent(url, address, bound, tls)?;
    let (status, body) = get(&agent, url, "/cacerts", Want::Whole, bound, cancel)?;
    match status {
        200 if body.contains("-----BEGIN CERTIFICATE-----") => Ok(body),
        200 => Err(Error::Answer("what answers is not a k3s server".to_owned())),
        503 => Err(Error::NotReady { message: objects::refusal(&body) }),
        code => Err(Error::Status { code, message: objects::refusal(&body) }),
    }
}

/// How much of an object is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Want {
    /// All of it.
    Whole,
    /// What an answer has of an object: `metadata` alone.
    Name,
    /// The metadata of a list's objects.
    Names,
}

impl Want {
    /// kubernetes.io/docs/reference/using-api/api-concepts, "Metadata-only fetches"; a server that knows
    /// no such form may answer with the whole.
    fn accept(self) -> &'static str {
        match self {
            Self::Whole => "application/json, */*",
            Self::Name => "application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1, application/json",
            Self::Names => {
                "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1, application/json"
            }
        }
    }
}

/// One request, on a thread so that an abort does not have to wait for the network.
fn get(
    agent: &Agent,
    url: &str,
    path: &str,
    want: Want,
    bound: Duration,
    cancel: &Cancel,
) -> Result<(u16, String), Error> {
    let (send, receive) = mpsc::channel();
    let _guard = cancel.on_abort({
        let send = send.clone();
        move || drop(send.send(None))
    });
    let (agent, address) = (agent.clone(), format!("{url}{path}"));
    let ask = move || {
        let asked = agent.get(&address).header("Accept", want.accept());
        let mut answer = asked.config().timeout_global(Some(bound)).build().call()?;
        let body = answer.body_mut().with_config().limit(MAX_BODY).lossy_utf8(true).read_to_string()?;
        Ok((answer.status().as_u16(), body))
    };
    let unreachable = |cause: String| Error::Unreachable { url: url.to_owned(), cause };
    thread::Builder::new()
        .name("api".to_owned())
        .spawn(move || drop(send.send(Some(ask()))))
        .map_err(|e| unreachable(e.to_string()))?;
    // ureq keeps the bound itself; a little longer here is for what it does not look at.
    match receive.recv_timeout(bound + Duration::from_secs(1)) {
        Ok(Some(answer)) => answer.map_err(|e| explain(url, path, bound, e)),
        Ok(None) => Err(Error::Cancelled),
        Err(_) => Err(Error::TimedOut { url: url.to_owned(), bound }),
    }
}

fn explain(url: &str, path: &str, bound: Duration, error: ureq::Error) -> Error {
    let url = url.to_owned();
    let error = match error {
        ureq::Error::Timeout(_) => return Error::TimedOut { url, bound },
        ureq::Error::Rustls(e) => return tls_error(url, &e),
        ureq::Error::Io(e) => e,
        ureq::Error::Tls(what) => return Error::Tls { url, cause: what.to_owned(), clock: false },
        // Not of the kubeconfig: its address was checked when the client was made.
        e @ (ureq::Error::BadUri(_) | ureq::Error::Http(_)) => {
            return Error::Question { path: path.to_owned(), cause: e.to_string() };
        }
        // Such as an answer that ends in its middle, because its server does.
        e @ ureq::Error::Protocol(_) => {
            return Error::Unreachable { url, cause: format!("its answer is cut, or no HTTP ({e})") };
        }
        e => return Error::Unreachable { url, cause: e.to_string() },
    };
    if let Some(e) = error.get_ref().and_then(|e| e.downcast_ref::<rustls::Error>()) {
        return tls_error(url, e);
    }
    match error.kind() {
        ErrorKind::ConnectionRefused => Error::Refused { url },
        ErrorKind::TimedOut => Error::TimedOut { url, bound },
        ErrorKind::UnexpectedEof => Error::Unreachable { url, cause: "it closed the connection".to_owned() },
        _ => Error::Unreachable { url, cause: error.to_string() },
    }
}

fn tls_error(url: String, error: &rustls::Error) -> Error {
    use rustls::CertificateError as C;
    let mut clock = false;
    let cause = match error {
        rustls::Error::InvalidCertificate(C::Expired | C::ExpiredContext { .. }) => {
            clock = true;
            "its certificate has expired"
        }
        rustls::Error::InvalidCertificate(C::NotValidYet | C::NotValidYetContext { .. }) => {
            clock = true;
            "its certificate is not valid yet"
        }
        rustls::Error::InvalidCertificate(C::UnknownIssuer | C::BadSignature) => {
            "its certificate is not by this cluster's authority"
        }
        rustls::Error::InvalidCertificate(C::NotValidForName | C::NotValidForNameContext { .. }) => {
            "its certificate is not for this address"
        }
        // A peer that speaks no TLS; it may also be a server that is just coming up.
        rustls::Error::InvalidMessage(_) => "it does not speak TLS",
        // The server ended the handshake: with TLS 1.2 that is how it refuses a client's certificate.
        rustls::Error::AlertReceived(alert) => {
            return Error::Unauthorized { message: format!("it ended the connection ({alert:?})") };
        }
        other => return Error::Tls { url, cause: other.to_string(), clock: false },
    };
    Error::Tls { url, cause: cause.to_owned(), clock }
}

/// Trust in the cluster's authority alone, and our certificate.
fn tls(access: &Access) -> Result<TlsConfig, Error> {
    let bad = |what: String| Error::Credentials(what);
    let read = |pem: &[u8], what: &str| -> Result<Vec<CertificateDer<'static>>, Error> {
        let all: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
        match all {
            Ok(all) if !all.is_empty() => Ok(all),
            Ok(_) => Err(bad(format!("{what} holds no certificate"))),
            Err(e) => Err(bad(format!("{what} is not PEM: {e}"))),
        }
    };
    let roots = read(&access.ca, "certificate-authority-data")?;
    let chain = read(&access.cert, "client-certificate-data")?;
    let key = PrivateKeyDer::from_pem_slice(&access.key).map_err(|e| bad(format!("client-key-data: {e}")))?;
    // ureq panics on a key that does not fit, so it is tried here first.
    let provider = rustls::crypto::ring::default_provider();
    rustls::sign::CertifiedKey::from_der(chain.clone(), key, &provider)
        .map_err(|e| bad(format!("the client's key does not fit its certificate: {e}")))?;

    let owned =
        |all: &[CertificateDer]| all.iter().map(|c| Certificate::from_der(c).to_owned()).collect::<Vec<_>>();
    let key = PrivateKey::from_pem(&access.key).map_err(|e| bad(format!("client-key-data: {e}")))?;
    Ok(TlsConfig::builder()
        .root_certs(RootCerts::new_with_certs(&owned(&roots)))
        .client_cert(Some(ClientCert::new_with_certs(&owned(&chain), key)))
        .build())
}

fn agent(url: &str, address: Option<SocketAddr>, bound: Duration, tls: TlsConfig) -> Result<Agent, Error> {
    let bad = |what: &str| Error::Credentials(format!("`{url}`: {what}"));
    let uri: Uri = url.parse().map_err(|_| bad("not an address"))?;
    if uri.scheme_str() != Some("https") {
        return Err(bad("not https"));
    }
    let host = uri.host().ok_or_else(|| bad("no host"))?.trim_matches(['[', ']']);
    let port = uri.port_u16().unwrap_or(443);
    let own = host.parse::<IpAddr>().ok().map(|ip| SocketAddr::new(ip, port));
    let config = Agent::config_builder()
        .http_status_as_error(false)
        .https_only(true)
        .max_redirects(0)
        // A cluster on this host's own network is never behind a proxy.
        .proxy(None)
        .user_agent(concat!("p1/", env!("CARGO_PKG_VERSION")))
        .timeout_global(Some(bound))
        .max_idle_age(Duration::from_secs(60))
        .tls_config(tls)
        .build();
    Ok(match address.or(own) {
        Some(address) => Agent::with_parts(config, DefaultConnector::default(), Fixed(address)),
        None => Agent::with_parts(config, DefaultConnector::default(), DefaultResolver::default()),
    })
}

/// Whatever the name, this address. It also saves the thread on which names are looked up.
#[derive(Debug)]
struct Fixed(SocketAddr);

impl Resolver for Fixed {
    fn resolve(
        &self,
        _: &Uri,
        _: &ureq::config::Config,
        _: NextTimeout,
    ) -> Result<ResolvedSocketAddrs, ureq::Error> {
        let mut all = self.empty();
        all.push(self.0);
        Ok(all)
    }
}
