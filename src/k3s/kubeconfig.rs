//! Kubeconfigs: rewriting k3s' own, merging it into the user's, taking it out again.
//!
//! All over untyped YAML, so that fields p1 does not know survive. Comments do not: kubectl itself
//! loses them whenever it writes the file.

use base64::Engine;
use serde_yaml::{Mapping, Value};

use crate::explain::Explain;
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
    fn hint(&self) -> Option<String> {
        let (Self::Yaml { which, .. } | Self::Shape { which, .. }) = self;
        Some(match *which {
            THEIRS => "Nothing was written. Mend the file, or merge into another one with `p1 kubeconfig --merge --into kubeconfig`."
                .to_owned(),
            _ => "`p1 up` fetches it from the server again.".to_owned(),
        })
    }
}

/// A certificate or a key as it stands in a kubeconfig.
pub fn encode(pem: &[u8]) -> String {
    base64::engine::general_purpose::STANDARD.encode(pem)
}

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

/// `text`, a server's `/etc/rancher/k3s/k3s.yaml`, for use from elsewhere: it points to 127.0.0.1 and
/// calls cluster, user and context `default`; this points it to `server_url` and calls them `name`.
pub fn rewrite(text: &str, server_url: &str, name: &str) -> Result<String, Error> {
    let mut config = parse(text, OURS)?;
    let (context, cluster, user) = current(&config)?;
    for ((list, inner), old) in LISTS.iter().zip([&cluster, &context, &user]) {
        let entries = entries(&mut config, list, OURS)?;
        let entry = entries.iter_mut().find(|e| name_of(e) == Some(old)).ok_or_else(|| missing(list, old))?;
        entry["name"] = name.into();
        let body = entry.get_mut(*inner).and_then(Value::as_mapping_mut).ok_or_else(|| missing(list, old))?;
        match *inner {
            "cluster" => drop(body.insert("server".into(), server_url.into())),
            "context" => {
                body.insert("cluster".into(), name.into());
                body.insert("user".into(), name.into());
            }
            _ => {}
        }
    }
    config.insert("current-context".into(), name.into());
    Ok(write(config))
}

/// Puts `ours`, as [`rewrite`] gave it, into `existing` under `name`. The current context stays
/// unless `switch` is set or there is none. An `existing` that cannot be read is an error: it is
/// never lost.
pub fn merge(existing: Option<&str>, ours: &str, name: &str, switch: bool) -> Result<Merged, Error> {
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
    for (list, _) in LISTS {
        let mine = entries(&mut ours, list, OURS)?;
        let mine =
            mine.iter().find(|e| name_of(e) == Some(name)).cloned().ok_or_else(|| missing(list, name))?;
        let theirs = entries(&mut all, list, THEIRS)?;
        // The first of two of a name counts (client-go); the others would come back by the next edit.
        match theirs.iter().position(|e| name_of(e) == Some(name)) {
            Some(at) => {
                replaced = true;
                theirs[at] = mine;
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
