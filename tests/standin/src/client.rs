//! The HTTPS client of the agent and of `kubectl`. Addresses only: a static binary resolves no names.

use std::fmt;
use std::io::{self, BufReader, Write};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, ring, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{ClientConfig, ClientConnection, DigitallySignedStruct, SignatureScheme, StreamOwned};

use crate::certs::{self, Error, Pair};
use crate::http;

pub struct Client {
    host: String,
    port: u16,
    tls: Arc<ClientConfig>,
    authorization: Option<String>,
    headers: Vec<(String, String)>,
    bound: Duration,
    /// A connection that the last request left open: under emulation a TLS handshake takes a tenth of a second
    /// from both ends, and servers ask each other several times a second.
    idle: Mutex<Option<Open>>,
}

/// A connection, with what was read ahead on it.
type Open = BufReader<StreamOwned<ClientConnection, TcpStream>>;

#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    pub body: Vec<u8>,
}

impl Answer {
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    pub fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.body).unwrap_or_default()
    }

    pub fn ok(&self) -> bool {
        (200..300).contains(&self.status)
    }
}

/// Host and port of `https://host[:port][/]`.
pub fn parse_url(url: &str) -> Result<(String, u16), String> {
    let rest = url
        .strip_prefix("https://")
        .ok_or_else(|| format!("only https:// URLs are supported, invalid scheme: {url}"))?;
    let authority = rest.split('/').next().unwrap_or_default();
    if let Some(v6) = authority.strip_prefix('[') {
        let (host, port) = v6.split_once(']').ok_or("missing ']' in host")?;
        let port: Result<u16, _> = port.strip_prefix(':').map_or(Ok(443), str::parse);
        return Ok((host.to_owned(), port.map_err(|_| "invalid port")?));
    }
    match authority.split_once(':') {
        Some((host, port)) => {
            Ok((host.to_owned(), port.parse().map_err(|_| format!("invalid port {port:?}"))?))
        }
        None => Ok((authority.to_owned(), 443)),
    }
}

impl Client {
    /// Trusts the given CA only, or anybody where it is `None` (the first request for `/cacerts`).
    pub fn new(url: &str, ca: Option<&str>, pair: Option<&Pair>) -> Result<Self, Error> {
        let (host, port) = parse_url(url)?;
        let provider = Arc::new(ring::default_provider());
        let builder =
            ClientConfig::builder_with_provider(provider.clone()).with_safe_default_protocol_versions()?;
        let builder = match ca {
            Some(pem) => builder.with_root_certificates(certs::roots(pem)?),
            None => builder.dangerous().with_custom_certificate_verifier(Arc::new(Anybody(provider))),
        };
        let tls = match pair {
            Some(pair) => builder.with_client_auth_cert(pair.chain()?, pair.private_key()?)?,
            None => builder.with_no_client_auth(),
        };
        Ok(Client {
            host,
            port,
            tls: Arc::new(tls),
            authorization: None,
            headers: vec![],
            bound: Duration::from_secs(30),
            idle: Mutex::default(),
        })
    }

    pub fn basic(mut self, user: &str, password: &str) -> Self {
        self.authorization = Some(format!("Basic {}", STANDARD.encode(format!("{user}:{password}"))));
        self
    }

    pub fn header(mut self, name: &str, value: &str) -> Self {
        self.headers.push((name.to_owned(), value.to_owned()));
        self
    }

    /// No part of a request takes longer.
    pub fn within(mut self, bound: Duration) -> Self {
        self.bound = bound;
        self
    }

    pub fn get(&self, path: &str) -> io::Result<Answer> {
        self.send("GET", path, None)
    }

    pub fn send(&self, method: &str, path: &str, body: Option<(&str, String)>) -> io::Result<Answer> {
        use io::ErrorKind::{BrokenPipe, ConnectionAborted, ConnectionReset, UnexpectedEof};
        let kept = self.kept().take();
        if let Some(open) = kept {
            match self.ask(open, method, path, body.clone()) {
                // The server has closed it, or is another one by now.
                Err(e)
                    if matches!(
                        e.kind(),
                        BrokenPipe | ConnectionAborted | ConnectionReset | UnexpectedEof
                    ) => {}
                answer => return answer,
            }
        }
        self.ask(self.open()?, method, path, body)
    }

    fn kept(&self) -> std::sync::MutexGuard<'_, Option<Open>> {
        self.idle.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    fn open(&self) -> io::Result<Open> {
        let address = SocketAddr::new(self.address()?, self.port);
        let socket = TcpStream::connect_timeout(&address, self.bound.min(Duration::from_secs(10)))?;
        socket.set_read_timeout(Some(self.bound))?;
        socket.set_write_timeout(Some(self.bound))?;
        socket.set_nodelay(true)?;
        let name = ServerName::try_from(self.host.clone()).map_err(io::Error::other)?;
        let connection = ClientConnection::new(self.tls.clone(), name).map_err(io::Error::other)?;
        Ok(BufReader::new(StreamOwned::new(connection, socket)))
    }

    /// One request over a connection, which is kept for the next one.
    fn ask(
        &self,
        mut stream: Open,
        method: &str,
        path: &str,
        body: Option<(&str, String)>,
    ) -> io::Result<Answer> {
        let mut head = format!(
            "{method} {path} HTTP/1.1\r\nHost: {}:{}\r\nUser-Agent: k3s-standin\r\n",
            self.host, self.port
        );
        if let Some(value) = &self.authorization {
            head += &format!("Authorization: {value}\r\n");
        }
        for (name, value) in &self.headers {
            head += &format!("{name}: {value}\r\n");
        }
        let (kind, body) = body.unwrap_or(("application/json", String::new()));
        head += &format!("Content-Type: {kind}\r\nContent-Length: {}\r\n\r\n", body.len());
        let out = stream.get_mut();
        out.write_all(head.as_bytes())?;
        out.write_all(body.as_bytes())?;
        out.flush()?;

        let line = http::read_line(&mut stream)?.ok_or(io::ErrorKind::UnexpectedEof)?;
        let status = line.split(' ').nth(1).and_then(|s| s.parse().ok()).ok_or(io::ErrorKind::InvalidData)?;
        let headers = http::read_headers(&mut stream)?;
        let body = http::read_body(&mut stream, &headers)?;
        if !headers.iter().any(|(name, value)| name == "connection" && value.eq_ignore_ascii_case("close")) {
            *self.kept() = Some(stream);
        }
        Ok(Answer { status, body })
    }

    fn address(&self) -> io::Result<IpAddr> {
        match self.host.as_str() {
            "localhost" => Ok(IpAddr::from([127, 0, 0, 1])),
            host => host.parse().map_err(|_| {
                io::Error::other(format!(
                    "dial tcp: lookup {host}: no such host (the stand-in resolves no names)"
                ))
            }),
        }
    }

    pub fn authority(&self) -> String {
        format!("{}:{}", self.host, self.port)
    }
}

/// Makes a client for a server's URL.
type Make = Box<dyn Fn(&str) -> Result<Client, Error> + Send + Sync>;

/// The client load balancer of k3s' agents: one server after the other, beginning with the one that
/// answered last.
pub struct Balancer {
    clients: Mutex<Vec<(String, Arc<Client>)>>,
    make: Make,
}

impl Balancer {
    pub fn new(
        urls: &[String],
        make: impl Fn(&str) -> Result<Client, Error> + Send + Sync + 'static,
    ) -> Result<Self, Error> {
        let this = Balancer { clients: Mutex::default(), make: Box::new(make) };
        this.set(urls)?;
        Ok(this)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Vec<(String, Arc<Client>)>> {
        self.clients.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// Other servers; the one in use stays the first as long as it is one of them.
    pub fn set(&self, urls: &[String]) -> Result<(), Error> {
        let mut all = self.lock();
        let first = all.first().map(|(url, _)| url.clone());
        let mut new = Vec::new();
        for url in urls {
            let old = all.iter().find(|(known, _)| known == url).map(|(_, client)| client.clone());
            new.push((url.clone(), old.map_or_else(|| (self.make)(url).map(Arc::new), Ok)?));
        }
        new.sort_by_key(|(url, _)| Some(url) != first.as_ref());
        *all = new;
        Ok(())
    }

    pub fn send(&self, method: &str, path: &str, body: Option<(&str, String)>) -> io::Result<Answer> {
        let all = self.lock().clone();
        let mut last = io::Error::other("no servers");
        for (i, (url, client)) in all.iter().enumerate() {
            match client.send(method, path, body.clone()) {
                Ok(answer) => {
                    if i > 0 {
                        crate::log::info(format!("Updated load balancer k3s-agent-load-balancer: now {url}"));
                        self.lock().sort_by_key(|(known, _)| known != url);
                    }
                    return Ok(answer);
                }
                Err(e) => last = e,
            }
        }
        Err(last)
    }
}

/// Accepts any certificate; used once, to fetch the CA that is checked against the token's hash.
#[derive(Debug)]
struct Anybody(Arc<CryptoProvider>);

impl ServerCertVerifier for Anybody {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, cert, dss, &self.0.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, cert, dss, &self.0.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Client({})", self.authority())
    }
}
