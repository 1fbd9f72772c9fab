//! Whom downloads trust.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::TcpListener;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use rustls::pki_types::PrivateKeyDer;
use rustls::{ServerConfig, ServerConnection, StreamOwned};

use super::http::Http;
use super::*;
use crate::explain::Explain;
use crate::os::Cancel;
use crate::spec::{Retry, Timeouts};

/// A server whose certificate is by an authority of its own: its address, and that authority's PEM.
fn server() -> (String, String) {
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let ca = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
    let key = KeyPair::generate().unwrap();
    let cert = CertificateParams::new(vec!["127.0.0.1".to_owned()]).unwrap().signed_by(&key, &ca).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![cert.der().clone()], PrivateKeyDer::Pkcs8(key.serialize_der().into()))
        .unwrap();
    let config = Arc::new(config);
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("https://{}/f", listener.local_addr().unwrap());
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let tls = StreamOwned::new(ServerConnection::new(config.clone()).unwrap(), stream);
            let mut tls = BufReader::new(tls);
            let mut line = String::new();
            while tls.read_line(&mut line).is_ok_and(|n| n > 2) {
                line.clear();
            }
            let _ = tls.get_mut().write_all(b"HTTP/1.1 200 X\r\nContent-Length: 2\r\n\r\nok");
        }
    });
    (url, ca.pem())
}

#[test]
fn an_authority_of_the_users_is_trusted_when_it_is_named() {
    let (url, pem) = server();
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("ca.pem");
    fs::write(&file, pem).unwrap();
    let bounds = Bounds {
        silence: Duration::from_secs(10),
        ..Bounds::new(&Timeouts::default(), &Retry { attempts: 5, ..Retry::default() })
    };
    let cancel = Cancel::new();
    let net = Net { ca_file: Some(file), ..Net::default() };
    assert_eq!(Http::new(&net, &bounds, &cancel).text(&url).unwrap(), "ok");

    let error = Http::new(&Net::default(), &bounds, &cancel).text(&url).unwrap_err();
    assert!(matches!(&error, Error::Tls { cause, .. } if cause.contains("UnknownIssuer")), "{error}");
    assert!(!error.transient() && error.hint().unwrap().contains("SSL_CERT_FILE"));
}
