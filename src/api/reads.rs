//! Reading objects of any kind: what is applied to a cluster is of kinds that p1 does not know.

use serde::Deserialize;
use serde_json::Value;

use super::client::{Client, Want};
use super::{Error, Warning, objects};
use crate::os::Cancel;

/// A kind of object that the cluster knows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Kind {
    /// E.g. `Deployment`.
    pub kind: String,
    /// Its word in paths: `deployments`.
    pub plural: String,
    /// Its objects lie in namespaces.
    pub namespaced: bool,
    /// They can be listed.
    pub listed: bool,
}

#[derive(Deserialize)]
struct Resources {
    resources: Option<Vec<Resource>>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Resource {
    name: String,
    kind: String,
    namespaced: bool,
    verbs: Option<Vec<String>>,
}

#[derive(Deserialize)]
struct Groups {
    groups: Option<Vec<Group>>,
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Group {
    preferred_version: Version,
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Version {
    group_version: String,
}

/// Where the API has a version of a group: `apis/apps/v1`, `api/v1`.
pub fn prefix(api_version: &str) -> String {
    let root = if api_version.contains('/') { "apis" } else { "api" };
    format!("{root}/{api_version}")
}

fn items(list: Option<Value>) -> Vec<Value> {
    list.and_then(|mut l| l["items"].as_array_mut().map(std::mem::take)).unwrap_or_default()
}

impl Client {
    /// An object or a list of objects, by its path; none where there is no such thing.
    pub fn object(&self, path: &str, cancel: &Cancel) -> Result<Option<Value>, Error> {
        self.value(path, Want::Whole, cancel)
    }

    /// An object without its contents, such as those of a Secret: its names, labels, owners.
    pub fn metadata(&self, path: &str, cancel: &Cancel) -> Result<Option<Value>, Error> {
        self.value(path, Want::Name, cancel)
    }

    /// The objects of a list without their contents.
    pub fn names(&self, path: &str, cancel: &Cancel) -> Result<Vec<Value>, Error> {
        Ok(items(self.value(path, Want::Names, cancel)?))
    }

    fn value(&self, path: &str, want: Want, cancel: &Cancel) -> Result<Option<Value>, Error> {
        match self.get_as(path, want, cancel) {
            Ok(body) => serde_json::from_str(&body).map(Some).map_err(|e| Error::Answer(e.to_string())),
            Err(Error::Status { code: 404, .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// The items of a list.
    pub fn items(&self, path: &str, cancel: &Cancel) -> Result<Vec<Value>, Error> {
        Ok(items(self.object(path, cancel)?))
    }

    /// The kinds of a version of a group, e.g. `apps/v1`; none if there is no such version.
    pub fn kinds(&self, api_version: &str, cancel: &Cancel) -> Result<Vec<Kind>, Error> {
        let Some(answer) = self.object(&format!("/{}", prefix(api_version)), cancel)? else {
            return Ok(Vec::new());
        };
        let all: Resources = serde_json::from_value(answer).map_err(|e| Error::Answer(e.to_string()))?;
        let all = all.resources.unwrap_or_default().into_iter();
        // `deployments/scale` is a part of another one.
        let own = all.filter(|r| !r.name.contains('/'));
        let kind = |r: Resource| Kind {
            listed: r.verbs.unwrap_or_default().iter().any(|v| v == "list"),
            kind: r.kind,
            plural: r.name,
            namespaced: r.namespaced,
        };
        Ok(own.map(kind).collect())
    }

    /// Every group in its preferred version, `v1` first.
    pub fn versions(&self, cancel: &Cancel) -> Result<Vec<String>, Error> {
        let answer = self.object("/apis", cancel)?.unwrap_or_default();
        let all: Groups = serde_json::from_value(answer).map_err(|e| Error::Answer(e.to_string()))?;
        let groups = all.groups.unwrap_or_default().into_iter().map(|g| g.preferred_version.group_version);
        Ok(std::iter::once("v1".to_owned()).chain(groups).collect())
    }

    /// The newest warnings of a namespace, the newest last.
    pub fn warnings_in(&self, namespace: &str, limit: usize, cancel: &Cancel) -> Result<Vec<Warning>, Error> {
        let path = format!("/api/v1/namespaces/{namespace}/events?fieldSelector=type%3DWarning");
        objects::warnings(&self.get_as(&path, Want::Whole, cancel)?, limit)
    }

    /// The last lines of a container's log, or of the one before its last restart.
    pub fn log(
        &self,
        namespace: &str,
        pod: &str,
        container: &str,
        previous: bool,
        lines: u32,
        cancel: &Cancel,
    ) -> Result<String, Error> {
        let path = format!(
            "/api/v1/namespaces/{namespace}/pods/{pod}/log?container={container}&tailLines={lines}&previous={previous}"
        );
        self.get_as(&path, Want::Whole, cancel)
    }
}
