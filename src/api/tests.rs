//! Against a real TLS server on loopback.

use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair, PKCS_RSA_SHA256};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig, ServerConnection, StreamOwned};

use super::*;
use crate::explain::Explain;
use crate::os::Cancel;
use crate::os::cancel::Level;

const BOUND: Duration = Duration::from_secs(10);
/// Worthless but for these tests: `openssl genpkey -algorithm RSA`.
const RSA: &str = include_str!("test-rsa.pem");

type Issuer = CertifiedIssuer<'static, KeyPair>;

fn authority() -> Issuer {
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap()
}

/// Name and content of one TLV of DER, and what comes after.
fn der(bytes: &[u8]) -> (u8, &[u8], &[u8]) {
    let (len, head) = match bytes[1] {
        n @ 0..0x80 => (usize::from(n), 2),
        n => {
            let n = usize::from(n & 0x7f);
            (bytes[2..2 + n].iter().fold(0, |all, b| all << 8 | usize::from(*b)), 2 + n)
        }
    };
    (bytes[0], &bytes[head..head + len], &bytes[head + len..])
}

/// The older form (SEC1, PKCS#1) inside a PKCS#8 key, as PEM.
fn older(key: &KeyPair, label: &str) -> String {
    let pkcs8 = key.serialize_der();
    let (_, version_and_more, _) = der(&pkcs8);
    let (_, _, algorithm_and_more) = der(version_and_more);
    let (_, _, rest) = der(algorithm_and_more);
    let (tag, inner, _) = der(rest);
    assert_eq!(tag, 4);
    pem(label, inner)
}

fn pem(label: &str, der: &[u8]) -> String {
    let lines = STANDARD
        .encode(der)
        .as_bytes()
        .chunks(64)
        .map(|l| String::from_utf8_lossy(l).into_owned() + "\n")
        .collect::<String>();
    format!("-----BEGIN {label}-----\n{lines}-----END {label}-----\n")
}

struct Server {
    address: SocketAddr,
    ca: Arc<Issuer>,
    handshakes: Arc<AtomicUsize>,
    answer: Arc<Mutex<(u16, String)>>,
}

impl Server {
    fn start(change: impl FnOnce(&mut CertificateParams)) -> Self {
        let ca = Arc::new(authority());
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(vec!["192.0.2.7".to_owned()]).unwrap();
        change(&mut params);
        let cert = params.signed_by(&key, &ca).unwrap();
        let mut roots = RootCertStore::empty();
        roots.add(ca.der().clone()).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let verifier = WebPkiClientVerifier::builder_with_provider(roots.into(), provider.clone());
        let config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_client_cert_verifier(verifier.allow_unauthenticated().build().unwrap())
            .with_single_cert(vec![cert.der().clone()], PrivateKeyDer::Pkcs8(key.serialize_der().into()))
            .unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let server = Self {
            address: listener.local_addr().unwrap(),
            ca,
            handshakes: Arc::default(),
            answer: Arc::new(Mutex::new((200, r#"{"items":[]}"#.to_owned()))),
        };
        let (config, handshakes, answer) =
            (Arc::new(config), server.handshakes.clone(), server.answer.clone());
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (config, handshakes, answer) = (config.clone(), handshakes.clone(), answer.clone());
                thread::spawn(move || drop(serve(stream, config, &handshakes, &answer)));
            }
        });
        server
    }

    /// A kubeconfig of this cluster with a certificate for that key, which is given as PEM.
    fn kubeconfig(&self, key: &KeyPair, key_pem: &str) -> String {
        let cert = CertificateParams::new(Vec::new()).unwrap().signed_by(key, &self.ca).unwrap();
        config(self.ca.der(), cert.der(), key_pem)
    }

    fn say(&self, status: u16, body: &str) {
        *self.answer.lock().unwrap() = (status, body.to_owned());
    }

    fn client(&self) -> Client {
        let key = KeyPair::generate().unwrap();
        let text = self.kubeconfig(&key, &key.serialize_pem());
        Client::new(&text, Some(self.address), BOUND).unwrap()
    }
}

/// The server's own address is one that nobody has: the tests come through the other one.
fn config(ca: &CertificateDer, cert: &CertificateDer, key: &str) -> String {
    let data = |pem: &str| STANDARD.encode(pem);
    let (ca, cert) = (data(&pem("CERTIFICATE", ca)), data(&pem("CERTIFICATE", cert)));
    let key = data(key);
    format!(
        "clusters: [{{name: x, cluster: {{server: 'https://192.0.2.7:6443', certificate-authority-data: {ca}}}}}]\n\
         contexts: [{{name: x, context: {{cluster: x, user: x}}}}]\ncurrent-context: x\n\
         users: [{{name: x, user: {{client-certificate-data: {cert}, client-key-data: {key}}}}}]\n"
    )
}

fn serve(
    stream: TcpStream,
    config: Arc<ServerConfig>,
    handshakes: &AtomicUsize,
    answer: &Mutex<(u16, String)>,
) -> std::io::Result<()> {
    let mut tls = ServerConnection::new(config).unwrap();
    let mut stream = stream;
    tls.complete_io(&mut stream)?;
    handshakes.fetch_add(1, Ordering::SeqCst);
    let known = tls.peer_certificates().is_some();
    let mut stream = BufReader::new(StreamOwned::new(tls, stream));
    loop {
        let mut line = String::new();
        if stream.read_line(&mut line)? == 0 {
            return Ok(());
        }
        let path = line.split(' ').nth(1).unwrap_or_default().to_owned();
        while line != "\r\n" {
            line.clear();
            stream.read_line(&mut line)?;
        }
        let (status, body) = match path.as_str() {
            "/cacerts" => (200, "-----BEGIN CERTIFICATE-----\n".to_owned()),
            _ if !known => (401, r#"{"kind":"Status","message":"Unauthorized","code":401}"#.to_owned()),
            _ => answer.lock().unwrap().clone(),
        };
        if status == 0 {
            // Says nothing until the other side goes.
            continue;
        }
        let out = format!("HTTP/1.1 {status} X\r\nContent-Length: {}\r\n\r\n{body}", body.len());
        stream.get_mut().write_all(out.as_bytes())?;
        stream.get_mut().flush()?;
    }
}

#[test]
fn every_form_of_key_works() {
    let server = Server::start(|_| {});
    let ec = KeyPair::generate().unwrap();
    let rsa = KeyPair::from_pem_and_sign_algo(RSA, &PKCS_RSA_SHA256).unwrap();
    let forms = [
        (&ec, ec.serialize_pem()),
        (&ec, older(&ec, "EC PRIVATE KEY")),
        (&rsa, RSA.to_owned()),
        (&rsa, older(&rsa, "RSA PRIVATE KEY")),
    ];
    for (key, pem) in forms {
        let client = Client::new(&server.kubeconfig(key, &pem), Some(server.address), BOUND).unwrap();
        assert_eq!(client.nodes(&Cancel::new()).unwrap(), []);
    }
    let other = KeyPair::generate().unwrap();
    let error = Client::new(&server.kubeconfig(&ec, &other.serialize_pem()), None, BOUND).unwrap_err();
    assert!(error.to_string().contains("does not fit its certificate"), "{error}");
    assert!(Client::new(&server.kubeconfig(&ec, "no key"), None, BOUND).is_err());
}

#[test]
fn one_handshake_serves_many_requests_from_many_clones() {
    let server = Server::start(|_| {});
    let (client, cancel) = (server.client(), Cancel::new());
    for _ in 0..20 {
        client.clone().nodes(&cancel).unwrap();
    }
    assert_eq!(server.handshakes.load(Ordering::SeqCst), 1);
}

#[test]
fn answers_become_values_or_typed_errors() {
    let server = Server::start(|_| {});
    let (client, cancel) = (server.client(), Cancel::new());
    server.say(503, "starting");
    assert!(matches!(client.nodes(&cancel), Err(Error::NotReady { .. })));
    server.say(403, "no");
    assert!(matches!(client.events(5, &cancel), Err(Error::Forbidden { .. })));
    server.say(200, "<html>");
    assert!(matches!(client.nodes(&cancel), Err(Error::Answer(_))));
}

#[test]
fn trust_is_in_the_clusters_authority_and_address_alone() {
    let cancel = Cancel::new();
    let fault = |server: &Server, by: &Server| {
        let key = KeyPair::generate().unwrap();
        let text = by.kubeconfig(&key, &key.serialize_pem());
        Client::new(&text, Some(server.address), BOUND).unwrap().nodes(&cancel).unwrap_err()
    };
    let (one, two) = (Server::start(|_| {}), Server::start(|_| {}));
    let error = fault(&one, &two);
    assert!(error.to_string().ends_with("its certificate is not by this cluster's authority"), "{error}");

    let old = Server::start(|p| p.not_after = rcgen::date_time_ymd(2020, 1, 1));
    assert!(matches!(fault(&old, &old), Error::Tls { clock: true, .. }));
    let young = Server::start(|p| p.not_before = rcgen::date_time_ymd(3000, 1, 1));
    assert!(matches!(fault(&young, &young), Error::Tls { clock: true, .. }));
    let elsewhere = Server::start(|p| p.subject_alt_names.clear());
    let error = fault(&elsewhere, &elsewhere);
    assert!(error.to_string().ends_with("its certificate is not for this address"), "{error}");

    // A client of another cluster, but with trust in this one's server.
    let (key, stranger) = (KeyPair::generate().unwrap(), authority());
    let cert = CertificateParams::new(Vec::new()).unwrap().signed_by(&key, &stranger).unwrap();
    let text = config(one.ca.der(), cert.der(), &key.serialize_pem());
    let client = Client::new(&text, Some(one.address), BOUND).unwrap();
    let error = client.nodes(&cancel).unwrap_err();
    assert!(matches!(error, Error::Unauthorized { .. }), "{error}");
}

#[test]
fn the_authorities_are_told_to_anybody() {
    let server = Server::start(|p| p.subject_alt_names.clear());
    let (cancel, url) = (Cancel::new(), format!("https://{}", server.address));
    assert!(cacerts(&url, None, BOUND, &cancel).unwrap().starts_with("-----BEGIN"));
    assert!(cacerts("https://192.0.2.7:6443", Some(server.address), BOUND, &cancel).is_ok());
}

#[test]
fn a_closed_port_a_silent_and_a_strange_server_are_told_apart() {
    let cancel = Cancel::new();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("https://{}", listener.local_addr().unwrap());
    let error = cacerts(&url, None, Duration::from_millis(100), &cancel).unwrap_err();
    assert!(matches!(error, Error::TimedOut { .. }) && error.transient(), "{error}");

    thread::scope(|scope| {
        scope.spawn(|| {
            // The first one waiting is the one above, which has gone.
            for _ in 0..2 {
                let _ = listener.accept().unwrap().0.write_all(b"SSH-2.0-OpenSSH\r\n");
            }
        });
        let error = cacerts(&url, None, BOUND, &cancel).unwrap_err();
        assert!(error.to_string().ends_with("it does not speak TLS"), "{error}");
    });
    drop(listener);
    let error = cacerts(&url, None, BOUND, &cancel).unwrap_err();
    assert!(matches!(error, Error::Refused { .. }), "{error}");
    assert_eq!(error.to_string(), format!("nothing listens at {url}"));
}

#[test]
fn an_abort_does_not_wait_for_the_server() {
    let server = Server::start(|_| {});
    let (client, cancel) = (server.client(), Cancel::new());
    client.nodes(&cancel).unwrap();
    server.say(0, "");
    let start = Instant::now();
    thread::scope(|scope| {
        let asking = scope.spawn(|| client.nodes(&cancel));
        cancel.raise(Level::Abort);
        assert!(asking.join().unwrap().unwrap_err().cancelled());
    });
    assert!(start.elapsed() < BOUND / 2);
}
