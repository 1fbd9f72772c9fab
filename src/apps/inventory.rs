//! p1's note in the cluster of what it applied there, so that it knows what to take away, whichever
//! host it runs on.

use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::os::hash;
use crate::spec::{Cluster, When};

/// The ConfigMap in `kube-system`.
pub const NAME: &str = "p1-inventory";
/// Its only key.
const KEY: &str = "inventory.json";

/// What was applied.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Inventory {
    /// The version of this format, 1.
    pub v: u32,
    /// [`digest`] of the spec that was applied whole; empty while one is being applied.
    pub digest: String,
    /// [`foundations`] of the spec of which those were applied whole.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub foundations: String,
    /// Objects, in the order in which they were applied.
    pub objects: Vec<Item>,
    /// Namespaces, in this order.
    pub namespaces: Vec<Owned>,
}

/// An object that p1 applied.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(default)]
pub struct Item {
    /// E.g. `apps/v1`.
    pub api_version: String,
    /// E.g. `Deployment`.
    pub kind: String,
    /// Its kind's word in paths.
    pub plural: String,
    /// Where it is.
    pub namespace: Option<String>,
    pub name: String,
    /// It removes itself when it is done (`ttlSecondsAfterFinished`).
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub fleeting: bool,
    /// It is applied as soon as the API answers.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub foundation: bool,
}

/// A namespace that p1 applied.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Owned {
    pub name: String,
    /// It was not there before.
    pub made: bool,
}

impl Item {
    /// Its path in the API.
    pub fn path(&self) -> String {
        format!("{}/{}", self.list(), segment(&self.name))
    }

    /// The path of the list that it is in.
    pub fn list(&self) -> String {
        let root = if self.api_version.contains('/') { "apis" } else { "api" };
        match &self.namespace {
            Some(namespace) => {
                format!("/{root}/{}/namespaces/{}/{}", self.api_version, segment(namespace), self.plural)
            }
            None => format!("/{root}/{}/{}", self.api_version, self.plural),
        }
    }

    /// Without the version: the same object may be written in another one.
    pub fn is(&self, other: &Self) -> bool {
        let group = |item: &Self| item.api_version.rsplit_once('/').map(|(group, _)| group.to_owned());
        (group(self), &self.kind, &self.namespace, &self.name)
            == (group(other), &other.kind, &other.namespace, &other.name)
    }

    /// As kubectl takes it where only names count.
    pub fn reference(&self) -> serde_json::Value {
        let mut meta = json!({ "name": self.name });
        if let Some(namespace) = &self.namespace {
            meta["namespace"] = json!(namespace);
        }
        json!({ "apiVersion": self.api_version, "kind": self.kind, "metadata": meta })
    }
}

impl std::fmt::Display for Item {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.namespace {
            Some(namespace) => write!(f, "{} {namespace}/{}", self.kind, self.name),
            None => write!(f, "{} {}", self.kind, self.name),
        }
    }
}

impl Inventory {
    /// Where it is in the API.
    pub fn path() -> String {
        format!("/api/v1/namespaces/kube-system/configmaps/{NAME}")
    }

    /// From its ConfigMap; why not, as a fragment.
    pub fn read(map: &serde_json::Value) -> Result<Self, String> {
        let text = map["data"][KEY].as_str().ok_or_else(|| format!("it has no `{KEY}`"))?;
        let found: Self = serde_json::from_str(text).map_err(|e| e.to_string())?;
        match found.v {
            0 | 1 => Ok(found),
            newer => Err(format!("a newer p1 wrote it (format {newer})")),
        }
    }

    /// Its ConfigMap, as one line of JSON, which is YAML.
    pub fn manifest(&self) -> String {
        let text = serde_json::to_string(&Self { v: 1, ..self.clone() }).expect("an inventory is plain data");
        json!({
            "apiVersion": "v1", "kind": "ConfigMap",
            "metadata": {
                "name": NAME, "namespace": "kube-system",
                "labels": { "app.kubernetes.io/managed-by": "p1" },
                "annotations": { "p1/note": "What p1 applied by the spec's manifests; p1 prunes by it." },
            },
            "data": { KEY: text },
        })
        .to_string()
    }

    /// All of both, with no digest: what may be there while the other is being applied.
    #[must_use]
    pub fn with(&self, other: &Self) -> Self {
        let mut all = Self { digest: String::new(), ..self.clone() };
        for item in &other.objects {
            if !all.objects.iter().any(|i| i.is(item)) {
                all.objects.push(item.clone());
            }
        }
        for owned in &other.namespaces {
            if !all.namespaces.iter().any(|n| n.name == owned.name) {
                all.namespaces.push(owned.clone());
            }
        }
        all
    }

    /// What is in here and no more in `wanted`, in the order in which to take it away.
    pub fn leaving(&self, wanted: &Self) -> Vec<Item> {
        let gone = |i: &&Item| !wanted.objects.iter().any(|w| w.is(i));
        self.objects.iter().rev().filter(gone).cloned().collect()
    }
}

/// A name as a part of a path: the names of roles may be any text without `/` and `%` (apimachinery,
/// pkg/api/validation/path, `IsValidPathSegmentName`).
pub fn segment(name: &str) -> String {
    name.bytes().fold(String::with_capacity(name.len()), |mut out, byte| {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => out.push(char::from(byte)),
            byte => out.push_str(&format!("%{byte:02X}")),
        }
        out
    })
}

/// What a spec wants applied, in 16 hex digits.
pub fn digest(cluster: &Cluster) -> String {
    let manifests: Vec<_> =
        cluster.manifests.iter().map(|m| (&m.namespace, m.kustomize, &m.digest)).collect();
    let text = json!([cluster.namespaces, manifests]).to_string();
    hash::short(text)
}

/// The same of what is applied as soon as the API answers; none if nothing is.
pub fn foundations(cluster: &Cluster) -> Option<String> {
    let early = cluster.manifests.iter().filter(|m| m.when == When::Api);
    let all: Vec<_> = early.map(|m| (&m.namespace, m.kustomize, &m.digest)).collect();
    let text = json!([cluster.namespaces, all]).to_string();
    (!all.is_empty()).then(|| hash::short(text))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn item(kind: &str, name: &str) -> Item {
        Item {
            api_version: "apps/v1".into(),
            kind: kind.into(),
            plural: format!("{}s", kind.to_lowercase()),
            namespace: Some("web".into()),
            name: name.into(),
            ..Item::default()
        }
    }

    #[test]
    fn an_inventory_reads_back_and_knows_what_leaves() {
        let old = Inventory {
            digest: "d".into(),
            foundations: String::new(),
            objects: vec![item("Deployment", "a"), item("Deployment", "b"), item("Service", "a")],
            namespaces: vec![Owned { name: "web".into(), made: true }],
            v: 1,
        };
        let map: serde_json::Value = serde_json::from_str(&old.manifest()).unwrap();
        assert_eq!(Inventory::read(&map), Ok(old.clone()));
        assert!(Inventory::read(&json!({"data": {KEY: "{\"v\": 9}"}})).unwrap_err().contains("newer"));
        let mut moved = item("Deployment", "b");
        moved.api_version = "apps/v2".into();
        let new = Inventory { objects: vec![moved, item("Deployment", "c")], ..Inventory::default() };
        let names: Vec<_> = old.leaving(&new).iter().map(ToString::to_string).collect();
        assert_eq!(names, ["Service web/a", "Deployment web/a"]);
        let both = new.with(&old);
        assert_eq!((both.objects.len(), both.namespaces.len(), both.digest.as_str()), (4, 1, ""));
        assert_eq!(item("Deployment", "a").path(), "/apis/apps/v1/namespaces/web/deployments/a");
        let role = Item { namespace: None, ..item("ClusterRole", "my rôle?#+:") };
        assert_eq!(role.path(), "/apis/apps/v1/clusterroles/my%20r%C3%B4le%3F%23%2B%3A");
    }
}
