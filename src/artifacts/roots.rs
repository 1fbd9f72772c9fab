//! Which certificate authorities downloads trust.
//!
//! The system's, because a company's proxy is trusted there and nowhere else; read from its bundle
//! file, because that takes no further library and honours `SSL_CERT_FILE` without this module
//! looking into the environment. A host without a bundle (no `ca-certificates` installed) gets
//! Mozilla's list that is built in, so that a bare machine can download, too.

use std::path::Path;

use ureq::tls::{PemItem, RootCerts, parse_pem};

use super::Error;
use crate::os::files;

/// Where distributions keep their bundle: Debian, Ubuntu, Arch and Alpine; Fedora and its kin; SUSE.
const BUNDLES: [&str; 4] = [
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/ssl/cert.pem",
];

/// The authorities of `file`, or the system's.
pub(super) fn load(file: Option<&Path>) -> Result<RootCerts, Error> {
    if let Some(path) = file {
        let pem = files::read(path, files::MAX_BYTES)?;
        return certificates(&pem).ok_or_else(|| Error::NoRoots(path.to_owned()));
    }
    let system =
        BUNDLES.iter().find_map(|path| certificates(&files::read(Path::new(path), files::MAX_BYTES).ok()?));
    Ok(system.unwrap_or(RootCerts::WebPki))
}

fn certificates(pem: &[u8]) -> Option<RootCerts> {
    let all: Vec<_> = parse_pem(pem)
        .filter_map(|item| match item {
            Ok(PemItem::Certificate(certificate)) => Some(certificate),
            _ => None,
        })
        .collect();
    (!all.is_empty()).then(|| RootCerts::new_with_certs(&all))
}
