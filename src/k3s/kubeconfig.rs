//! Kubeconfigs: making one of what k3s' own holds, merging it into the user's, taking it out again.
//!
//! What comes from a server is not copied but rebuilt from its checked parts. The user's own file is untyped YAML,
//! so that fields p1 does not know survive. Comments do not: kubectl itself loses them whenever it writes the file.

use base64::Engine;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use serde_yaml::{Mapping, Value};

use crate::explain::{Explain, FailureKind, clipped, printable};
use crate::spec;

/// Why a kubeconfig cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// It is not YAML.
    #[error("{which} is not valid YAML: {message}")]
    Yaml {
        /// Whose: `the existing kubeconfig` or `the cluster's kubeconfig`.
        which: &'static str,
        /// What is wrong, with line and column.
        message: String,
    },
    /// It is YAML, but not a kubeconfig.
    #[error("{which} is not a kubeconfig: {message}")]
    Shape {
        /// Whose.
        which: &'static str,
        /// What is wrong.
        message: String,
    },
}

impl Explain for Error {
    fn kind(&self) -> FailureKind {
        FailureKind::Damaged
    }

    fn hint(&self) -> Option<String> {
        let (Self::Yaml { which, .. } | Self::Shape { which, .. }) = self;
        Some(match *which {
            THEIRS => "Nothing was written. Fix the file, or merge into another one with `p1 kubeconfig --merge --into kubeconfig`."
                .to_owned(),
            _ => "`p1 up` fetches it from the server again.".to_owned(),
        })
    }
}

/// A certificate or a key as it stands in a kubeconfig.
pub fn encode(pem: &[u8]) -> String {
    base64::engine::general_purpose::STANDARD.encode(pem)
}

/// More than any authority of k3s' has.
const CHAIN: usize = 16;
const OURS: &str = "the cluster's kubeconfig";
const THEIRS: &str = "the existing kubeconfig";
const LISTS: [(&str, &str); 3] = [("clusters", "cluster"), ("contexts", "context"), ("users", "user")];

/// What merging gave.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Merged {
    /// The whole new file; to be written 0600, whole, beside a backup.
    pub text: String,
    /// True if there was something of that name, which is now ours.
    pub replaced: bool,
    /// The context that was current before, if any.
    pub previous_context: Option<String>,
    /// True if ours is current now.
    pub switched: bool,
}

/// How to speak to a cluster.
#[derive(Clone, PartialEq, Eq)]
pub struct Access {
    /// `https://IP:PORT`.
    pub server: String,
    /// The certificate authority, PEM.
    pub ca: Vec<u8>,
    /// The client's certificates, PEM.
    pub cert: Vec<u8>,
    /// The client's key, PEM; secret.
    pub key: Vec<u8>,
}

impl std::fmt::Debug for Access {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Access").field("server", &self.server).finish_non_exhaustive()
    }
}

/// `text`, a server's `/etc/rancher/k3s/k3s.yaml` or what was made of one, for use from elsewhere: a kubeconfig that
/// points to `server_url` and calls cluster, user and context `name`.
///
/// Nothing of `text` is copied. kubectl runs what a kubeconfig tells it to (`exec`, `auth-provider`), reads files and
/// goes through proxies by it, and a node says whatever it likes; so authority, certificate and key are taken out,
/// checked, and written into a file of p1's own.
///
/// # Errors
/// [`Error::Shape`] where one of the three is missing or is none, or key and certificate are not a pair.
pub fn rewrite(text: &str, server_url: &str, name: &str) -> Result<String, Error> {
    let access = access(text)?.checked()?;
    let entry = |pairs: Vec<(&str, Value)>| -> Value {
        pairs.into_iter().map(|(key, value)| (key.into(), value)).collect::<Mapping>().into()
    };
    let list =
        |inner: &str, body: Value| Value::Sequence(vec![entry(vec![(inner, body), ("name", name.into())])]);
    let cluster =
        entry(vec![("certificate-authority-data", encode(&access.ca).into()), ("server", server_url.into())]);
    let user = entry(vec![
        ("client-certificate-data", encode(&access.cert).into()),
        ("client-key-data", encode(&access.key).into()),
    ]);
    let config = entry(vec![
        ("apiVersion", "v1".into()),
        ("clusters", list("cluster", cluster)),
        ("contexts", list("context", entry(vec![("cluster", name.into()), ("user", name.into())]))),
        ("current-context", name.into()),
        ("kind", "Config".into()),
        ("preferences", Mapping::new().into()),
        ("users", Value::Sequence(vec![entry(vec![("name", name.into()), ("user", user)])])),
    ]);
    let Value::Mapping(config) = config else { unreachable!("it was made as one") };
    Ok(write(config))
}

impl Access {
    /// The same, in PEM of our own, if it is what it is said to be.
    fn checked(self) -> Result<Self, Error> {
        let bad = |key: &str, what: String| Error::Shape { which: OURS, message: format!("`{key}` {what}") };
        let read = |bytes: &[u8], key: &str| -> Result<Vec<CertificateDer<'static>>, Error> {
            let all: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(bytes).collect();
            match all {
                Ok(all) if all.is_empty() => Err(bad(key, "holds no certificate".to_owned())),
                Ok(all) if all.len() > CHAIN => Err(bad(key, "holds too many certificates".to_owned())),
                Ok(all) => Ok(all),
                Err(error) => Err(bad(key, format!("is not PEM: {error}"))),
            }
        };
        let ca = read(&self.ca, "certificate-authority-data")?;
        let mut roots = rustls::RootCertStore::empty();
        for one in &ca {
            roots
                .add(one.clone())
                .map_err(|e| bad("certificate-authority-data", format!("is no authority: {e}")))?;
        }
        let chain = read(&self.cert, "client-certificate-data")?;
        let key = PrivateKeyDer::from_pem_slice(&self.key)
            .map_err(|e| bad("client-key-data", format!("is no private key: {e}")))?;
        let kind = match &key {
            PrivateKeyDer::Pkcs1(_) => "RSA PRIVATE KEY",
            PrivateKeyDer::Sec1(_) => "EC PRIVATE KEY",
            _ => "PRIVATE KEY",
        };
        let secret = pem(kind, key.secret_der());
        let provider = rustls::crypto::ring::default_provider();
        rustls::sign::CertifiedKey::from_der(chain.clone(), key, &provider)
            .map_err(|e| bad("client-key-data", format!("does not fit the certificate: {e}")))?;
        let text = |all: &[CertificateDer<'_>]| all.iter().map(|c| pem("CERTIFICATE", c)).collect::<String>();
        Ok(Self { server: self.server, ca: text(&ca).into(), cert: text(&chain).into(), key: secret.into() })
    }

    /// Whether `other` is the same cluster: the same authority, wherever its server is.
    pub fn same_authority(&self, other: &[u8]) -> bool {
        let ours = certificates(&self.ca);
        !ours.is_empty() && ours == certificates(other)
    }
}

/// All certificates of a PEM text that can be read.
fn certificates(pem: &[u8]) -> Vec<CertificateDer<'static>> {
    CertificateDer::pem_slice_iter(pem).flatten().collect()
}

/// RFC 7468, "Lax": lines of 64 characters, as Go writes them.
fn pem(kind: &str, der: &[u8]) -> String {
    let mut text = format!("-----BEGIN {kind}-----\n");
    for line in encode(der).as_bytes().chunks(64) {
        text.push_str(std::str::from_utf8(line).expect("base64"));
        text.push('\n');
    }
    text + &format!("-----END {kind}-----\n")
}

/// What an entry of the user's kubeconfig has to be to be this cluster's.
#[derive(Clone, Copy, Debug)]
pub struct Ours<'a> {
    /// What its cluster, context and user are called in that file.
    pub name: &'a str,
    /// Where its servers are, `https://IP:PORT` each.
    pub servers: &'a [String],
    /// Its authority and certificate; none if the cluster has no kubeconfig any more, and then the address alone tells.
    pub access: Option<&'a Access>,
}

/// What of that name is in `existing` and not this cluster's: a sentence each, without anything secret. An entry is
/// this cluster's if server and authority are, if its context leads to it, and if its user has certificate and key
/// as k3s makes them.
pub fn foreign(existing: &str, ours: &Ours<'_>) -> Result<Vec<String>, Error> {
    if existing.trim().is_empty() {
        return Ok(Vec::new());
    }
    let mut all = parse(existing, THEIRS)?;
    let mut of = |list: &str| -> Result<Vec<Value>, Error> {
        if all.get(list).is_none() {
            return Ok(Vec::new());
        }
        Ok(entries(&mut all, list, THEIRS)?.clone())
    };
    let (clusters, contexts, users) = (of("clusters")?, of("contexts")?, of("users")?);
    let named = |list: &[Value], inner: &str| -> Vec<Value> {
        let of_name = list.iter().filter(|e| name_of(e) == Some(ours.name));
        of_name.map(|e| e.get(inner).cloned().unwrap_or(Value::Null)).collect()
    };
    let text = |body: &Value, key: &str| body.get(key).and_then(Value::as_str).unwrap_or_default().to_owned();
    let shown = |text: String| clipped(&printable(&text), 200);
    let name = ours.name;
    let mut said = Vec::new();
    for body in named(&clusters, "cluster") {
        let server = text(&body, "server");
        let here = ours.servers.iter().any(|s| s.trim_end_matches('/') == server.trim_end_matches('/'));
        let ca = data(&body, "certificate-authority-data").unwrap_or_default();
        let same = ours.access.is_none_or(|access| access.same_authority(&ca));
        if !here || !same {
            let also = if here { ", of another authority" } else { "" };
            said.push(format!("its cluster `{name}` is at {}{also}", shown(server)));
        }
    }
    for body in named(&contexts, "context") {
        let (cluster, user) = (text(&body, "cluster"), text(&body, "user"));
        if (cluster.as_str(), user.as_str()) != (name, name) {
            let (cluster, user) = (shown(cluster), shown(user));
            said.push(format!("its context `{name}` is of the cluster `{cluster}` with the user `{user}`"));
        }
    }
    let elsewhere = contexts.iter().filter_map(|c| c.get("context")).find_map(|body| {
        let cluster = text(body, "cluster");
        (text(body, "user") == name && cluster != name).then_some(cluster)
    });
    let led_to = !named(&contexts, "context").is_empty() && !named(&clusters, "cluster").is_empty();
    for body in named(&users, "user") {
        let own = ["client-certificate-data", "client-key-data"];
        let other =
            body.as_mapping().and_then(|m| m.keys().find(|k| !k.as_str().is_some_and(|k| own.contains(&k))));
        let known = ours.access.is_some_and(|access| {
            data(&body, "client-certificate-data")
                .is_ok_and(|pem| certificates(&pem) == certificates(&access.cert))
        });
        match (other, &elsewhere) {
            (Some(key), _) => {
                let key = shown(key.as_str().unwrap_or("another way").to_owned());
                said.push(format!("its user `{name}` logs in by `{key}`"));
            }
            (None, Some(cluster)) => {
                said.push(format!(
                    "its user `{name}` is also used with the cluster `{}`",
                    shown(cluster.clone())
                ));
            }
            // A certificate is renewed now and then: what goes with our cluster and our context is ours.
            (None, None) if known || led_to && said.is_empty() => {}
            (None, None) if !led_to => said.push(format!("its user `{name}` has another certificate")),
            (None, None) => {}
        }
    }
    Ok(said)
}

/// Puts `ours`, as [`rewrite`] gave it, into `existing` under `name`. The current context stays
/// unless `switch` is set or there is none. An `existing` that cannot be read is an error: it is
/// never lost. `anew`: what is there under that name is not this cluster's ([`foreign`]), and nothing of it stays;
/// else what the user added to it does.
pub fn merge(
    existing: Option<&str>,
    ours: &str,
    name: &str,
    switch: bool,
    anew: bool,
) -> Result<Merged, Error> {
    let mut ours = parse(ours, OURS)?;
    let existing = existing.filter(|text| !text.trim().is_empty());
    let mut all = match existing {
        Some(text) => parse(text, THEIRS)?,
        None => [("apiVersion", "v1"), ("kind", "Config")]
            .map(|(k, v)| (k.into(), v.into()))
            .into_iter()
            .collect(),
    };
    let mut replaced = false;
    for (list, inner) in LISTS {
        let mine = entries(&mut ours, list, OURS)?;
        let mine =
            mine.iter().find(|e| name_of(e) == Some(name)).cloned().ok_or_else(|| missing(list, name))?;
        let theirs = entries(&mut all, list, THEIRS)?;
        // The first of two of a name counts (client-go); the others would come back by the next edit.
        match theirs.iter().position(|e| name_of(e) == Some(name)) {
            Some(at) => {
                replaced = true;
                let body = theirs[at].get_mut(inner).and_then(Value::as_mapping_mut).filter(|_| !anew);
                match (body, mine.get(inner).and_then(Value::as_mapping)) {
                    (Some(body), Some(new)) => {
                        new.iter().for_each(|(key, value)| drop(body.insert(key.clone(), value.clone())));
                    }
                    _ => theirs[at] = mine,
                }
            }
            None => theirs.push(mine),
        }
    }
    let previous_context = context_of(&all);
    let switched = switch || previous_context.is_none();
    if switched {
        all.insert("current-context".into(), name.into());
    }
    Ok(Merged { text: write(all), replaced, previous_context, switched })
}

/// Takes `name` out of `existing`: its cluster, context and user, and the choice of it as current.
/// `None` when there is nothing of that name.
pub fn unmerge(existing: &str, name: &str) -> Result<Option<String>, Error> {
    if existing.trim().is_empty() {
        return Ok(None);
    }
    let mut all = parse(existing, THEIRS)?;
    let mut found = false;
    for (list, _) in LISTS {
        if all.get(list).is_some() {
            let entries = entries(&mut all, list, THEIRS)?;
            let before = entries.len();
            entries.retain(|e| name_of(e) != Some(name));
            found |= entries.len() < before;
        }
    }
    if context_of(&all).as_deref() == Some(name) {
        found = true;
        all.insert("current-context".into(), "".into());
    }
    Ok(found.then(|| write(all)))
}

/// What the current context of a kubeconfig needs to speak to its cluster. Only what k3s writes is
/// understood: certificates and key inside the file.
pub fn access(text: &str) -> Result<Access, Error> {
    let mut config = parse(text, OURS)?;
    let (_, cluster, user) = current(&config)?;
    let mut body = |list: &'static str, inner: &str, name: &str| -> Result<Value, Error> {
        let entry = entries(&mut config, list, OURS)?.iter().find(|e| name_of(e) == Some(name)).cloned();
        entry.and_then(|e| e.get(inner).cloned()).ok_or_else(|| missing(list, name))
    };
    let cluster = body("clusters", "cluster", &cluster)?;
    let user = body("users", "user", &user)?;
    let server = cluster.get("server").and_then(Value::as_str).ok_or_else(|| lacks("server"))?;
    Ok(Access {
        server: server.to_owned(),
        ca: data(&cluster, "certificate-authority-data")?,
        cert: data(&user, "client-certificate-data")?,
        key: data(&user, "client-key-data")?,
    })
}

fn data(body: &Value, key: &str) -> Result<Vec<u8>, Error> {
    let text = body.get(key).and_then(Value::as_str).ok_or_else(|| lacks(key))?;
    let text: String = text.split_whitespace().collect();
    base64::engine::general_purpose::STANDARD
        .decode(text)
        .map_err(|e| Error::Shape { which: OURS, message: format!("`{key}` is not base64: {e}") })
}

fn lacks(key: &str) -> Error {
    Error::Shape { which: OURS, message: format!("it has no `{key}`") }
}

fn missing(list: &str, name: &str) -> Error {
    Error::Shape { which: OURS, message: format!("it has no `{name}` under `{list}`") }
}

fn parse(text: &str, which: &'static str) -> Result<Mapping, Error> {
    match spec::plain(text).map_err(|e| Error::Yaml { which, message: e.to_string() })? {
        Value::Mapping(map) => Ok(map),
        _ => Err(Error::Shape { which, message: "it is not a map".to_owned() }),
    }
}

fn write(config: Mapping) -> String {
    serde_yaml::to_string(&config).expect("what was read as YAML can be written as YAML")
}

/// The names of the current context (or the only one), of its cluster and of its user.
fn current(config: &Mapping) -> Result<(String, String, String), Error> {
    let contexts = config.get("contexts").and_then(Value::as_sequence).ok_or_else(|| lacks("contexts"))?;
    let wanted = context_of(config);
    let chosen = match &wanted {
        Some(name) => contexts.iter().find(|c| name_of(c) == Some(name)),
        None => contexts.first(),
    };
    let chosen = chosen.ok_or_else(|| missing("contexts", wanted.as_deref().unwrap_or("default")))?;
    let field = |key: &str| chosen.get("context").and_then(|c| c.get(key)).and_then(Value::as_str);
    match (name_of(chosen), field("cluster"), field("user")) {
        (Some(name), Some(cluster), Some(user)) => Ok((name.to_owned(), cluster.to_owned(), user.to_owned())),
        _ => Err(lacks("contexts[].context")),
    }
}

fn context_of(config: &Mapping) -> Option<String> {
    config.get("current-context").and_then(Value::as_str).filter(|s| !s.is_empty()).map(str::to_owned)
}

fn name_of(entry: &Value) -> Option<&str> {
    entry.get("name").and_then(Value::as_str)
}

/// One of the lists, made if it is absent; kubectl writes an emptied one as `null`.
fn entries<'a>(
    config: &'a mut Mapping,
    list: &str,
    which: &'static str,
) -> Result<&'a mut Vec<Value>, Error> {
    let value = config.entry(list.into()).or_insert(Value::Null);
    if value.is_null() {
        *value = Value::Sequence(Vec::new());
    }
    value.as_sequence_mut().ok_or_else(|| Error::Shape { which, message: format!("`{list}` is not a list") })
}

#[cfg(test)]
#[path = "kubeconfig_tests.rs"]
mod tests;
