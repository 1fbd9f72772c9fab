//! Certificates: one CA for servers and one for clients, made once, ECDSA P-256 as k3s makes them.

use std::fs;
use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rcgen::string::Ia5String;
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, SanType,
};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};

use crate::util;

pub type Error = Box<dyn std::error::Error + Send + Sync>;

/// A CA on disk: `<name>.crt` and `<name>.key` below `server/tls`.
pub struct Authority {
    pub pem: String,
    issuer: Issuer<'static, KeyPair>,
}

/// A certificate followed by its key, both PEM: what the supervisor hands to joining nodes.
#[derive(Clone)]
pub struct Pair {
    pub cert: String,
    pub key: String,
}

fn days_from_now(params: &mut CertificateParams, days: i64) {
    let today = (util::unix_seconds() / 86_400) as i64;
    // From yesterday, so that a guest whose clock is behind the server's can still join.
    let at = |day: i64| {
        let (y, m, d) = util::civil(day);
        rcgen::date_time_ymd(y as i32, m, d)
    };
    params.not_before = at(today - 1);
    params.not_after = at(today + days);
}

fn authority_params(name: &str) -> Result<CertificateParams, Error> {
    let mut params = CertificateParams::new(Vec::<String>::new())?;
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages =
        vec![KeyUsagePurpose::DigitalSignature, KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    days_from_now(&mut params, 3650);
    Ok(params)
}

impl Authority {
    /// Reads the CA, or makes it when its key is not there yet.
    pub fn open(directory: &Path, name: &str) -> Result<Self, Error> {
        let (crt, key) = (directory.join(format!("{name}.crt")), directory.join(format!("{name}.key")));
        if !key.exists() {
            let pair = KeyPair::generate()?;
            let common_name = format!("k3s-{name}@{}", util::unix_seconds());
            let cert = authority_params(&common_name)?.self_signed(&pair)?;
            util::write_atomically(&crt, cert.pem().as_bytes(), 0o644)?;
            util::write_atomically(&key, pair.serialize_pem().as_bytes(), 0o600)?;
        }
        let pem = fs::read_to_string(&crt)?;
        let pair = KeyPair::from_pem(&fs::read_to_string(&key)?)?;
        let der = CertificateDer::from_pem_slice(pem.as_bytes())?;
        let name = names(&der, COMMON_NAME).pop().ok_or("a CA without a common name")?;
        Ok(Authority { pem, issuer: Issuer::new(authority_params(&name)?, pair) })
    }

    fn sign(&self, mut params: CertificateParams, name: &str, group: Option<&str>) -> Result<Pair, Error> {
        let pair = KeyPair::generate()?;
        params.distinguished_name = rcgen::DistinguishedName::new();
        if let Some(group) = group {
            params.distinguished_name.push(DnType::OrganizationName, group);
        }
        params.distinguished_name.push(DnType::CommonName, name);
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature, KeyUsagePurpose::KeyEncipherment];
        days_from_now(&mut params, 365);
        let cert = params.signed_by(&pair, &self.issuer)?;
        Ok(Pair { cert: format!("{}{}", cert.pem(), self.pem), key: pair.serialize_pem() })
    }

    /// A serving certificate for names and addresses alike.
    pub fn serving(&self, name: &str, names: &[String]) -> Result<Pair, Error> {
        let mut params = CertificateParams::new(Vec::<String>::new())?;
        for san in names {
            params.subject_alt_names.push(match san.parse::<IpAddr>() {
                Ok(address) => SanType::IpAddress(address),
                Err(_) => SanType::DnsName(Ia5String::try_from(san.as_str())?),
            });
        }
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        self.sign(params, name, None)
    }

    /// A client certificate; the API reads user and group from its subject.
    pub fn client(&self, user: &str, group: &str) -> Result<Pair, Error> {
        let mut params = CertificateParams::new(Vec::<String>::new())?;
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        self.sign(params, user, Some(group))
    }
}

impl Pair {
    /// The pair kept in `<name>.crt` and `<name>.key`, made by `make` when it is not there.
    pub fn kept(
        directory: &Path,
        name: &str,
        make: impl FnOnce() -> Result<Pair, Error>,
    ) -> Result<Pair, Error> {
        let (crt, key) = paths(directory, name);
        if let (Ok(cert), Ok(key)) = (fs::read_to_string(&crt), fs::read_to_string(&key)) {
            return Ok(Pair { cert, key });
        }
        let pair = make()?;
        pair.write(directory, name)?;
        Ok(pair)
    }

    pub fn write(&self, directory: &Path, name: &str) -> io::Result<()> {
        let (crt, key) = paths(directory, name);
        util::write_atomically(&crt, self.cert.as_bytes(), 0o600)?;
        util::write_atomically(&key, self.key.as_bytes(), 0o600)
    }

    /// Splits what [`Pair`]'s two halves look like when sent one after the other.
    pub fn split(text: &str) -> Option<Pair> {
        let key_at = text.find("-----BEGIN PRIVATE KEY")?;
        Some(Pair { cert: text[..key_at].to_owned(), key: text[key_at..].to_owned() })
    }

    pub fn chain(&self) -> Result<Vec<CertificateDer<'static>>, Error> {
        Ok(CertificateDer::pem_slice_iter(self.cert.as_bytes()).collect::<Result<_, _>>()?)
    }

    pub fn private_key(&self) -> Result<PrivateKeyDer<'static>, Error> {
        Ok(PrivateKeyDer::from_pem_slice(self.key.as_bytes())?)
    }
}

fn paths(directory: &Path, name: &str) -> (PathBuf, PathBuf) {
    (directory.join(format!("{name}.crt")), directory.join(format!("{name}.key")))
}

pub fn roots(pem: &str) -> Result<Arc<rustls::RootCertStore>, Error> {
    let mut store = rustls::RootCertStore::empty();
    for cert in CertificateDer::pem_slice_iter(pem.as_bytes()) {
        store.add(cert?)?;
    }
    Ok(Arc::new(store))
}

pub const COMMON_NAME: u8 = 3;
pub const ORGANIZATION: u8 = 10;

/// Every value of one attribute (2.5.4.`attribute`) in a certificate, the issuer's before the
/// subject's. Scanning for the encoded OID is enough here, because rustls has already checked that
/// our own CA signed these bytes, and it saves an X.509 parser.
pub fn names(der: &[u8], attribute: u8) -> Vec<String> {
    let oid = [0x06, 0x03, 0x55, 0x04, attribute];
    der.windows(oid.len())
        .enumerate()
        .filter(|(_, w)| *w == oid)
        .filter_map(|(i, _)| {
            let length = *der.get(i + 6)? as usize;
            String::from_utf8(der.get(i + 7..i + 7 + length)?.to_vec()).ok()
        })
        .collect()
}
