//! `k3s.yaml`: written by the server, read by `kubectl`. Cluster, user and context are all `default`.

use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_yaml::Value;

use crate::certs::{Error, Pair};
use crate::{paths, util};

pub fn write(path: &Path, mode: u32, at: &str, ca: &str, admin: &Pair) -> std::io::Result<()> {
    let b = |text: &str| STANDARD.encode(text);
    let text = format!(
        "apiVersion: v1\nclusters:\n- cluster:\n    certificate-authority-data: {}\n    \
         server: https://{at}\n  name: default\ncontexts:\n- context:\n    \
         cluster: default\n    user: default\n  name: default\ncurrent-context: default\n\
         kind: Config\nusers:\n- name: default\n  user:\n    client-certificate-data: {}\n    \
         client-key-data: {}\n",
        b(ca),
        b(&admin.cert),
        b(&admin.key),
    );
    util::write_atomically(path, text.as_bytes(), mode)
}

/// The current context's server, CA and client certificate.
pub struct Access {
    pub server: String,
    pub ca: String,
    pub pair: Pair,
}

pub fn locate(flag: Option<&str>) -> PathBuf {
    if let Some(path) = flag {
        return PathBuf::from(path);
    }
    match std::env::var("KUBECONFIG") {
        Ok(list) if !list.is_empty() => PathBuf::from(list.split(':').next().unwrap_or_default()),
        _ => paths::at("/etc/rancher/k3s/k3s.yaml"),
    }
}

pub fn read(path: &Path) -> Result<Access, Error> {
    let config: Value = serde_yaml::from_str(&std::fs::read_to_string(path)?)?;
    let named = |list: &str, name: &Value| -> Value {
        config[list]
            .as_sequence()
            .into_iter()
            .flatten()
            .find(|e| &e["name"] == name)
            .cloned()
            .unwrap_or(Value::Null)
    };
    let context = named("contexts", &config["current-context"])["context"].clone();
    let cluster = named("clusters", &context["cluster"])["cluster"].clone();
    let user = named("users", &context["user"])["user"].clone();
    let data = |value: &Value| -> Result<String, Error> {
        Ok(String::from_utf8(STANDARD.decode(value.as_str().ok_or("missing certificate data")?)?)?)
    };
    Ok(Access {
        server: cluster["server"].as_str().ok_or("no server in the current context")?.to_owned(),
        ca: data(&cluster["certificate-authority-data"])?,
        pair: Pair { cert: data(&user["client-certificate-data"])?, key: data(&user["client-key-data"])? },
    })
}
