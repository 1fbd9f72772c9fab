//! The kinds the stand-in knows, as the API and `kubectl` name them.

use std::sync::Mutex;

use serde_json::Value;

pub struct Resource {
    /// `api/v1` or `apis/<group>/<version>`.
    pub prefix: &'static str,
    pub plural: &'static str,
    pub kind: &'static str,
    pub namespaced: bool,
    pub short: &'static [&'static str],
}

const fn r(
    prefix: &'static str,
    plural: &'static str,
    kind: &'static str,
    namespaced: bool,
    short: &'static [&'static str],
) -> Resource {
    Resource { prefix, plural, kind, namespaced, short }
}

pub const ALL: &[Resource] = &[
    r("api/v1", "nodes", "Node", false, &["no"]),
    r("api/v1", "namespaces", "Namespace", false, &["ns"]),
    r("api/v1", "pods", "Pod", true, &["po"]),
    r("api/v1", "events", "Event", true, &["ev"]),
    r("api/v1", "secrets", "Secret", true, &[]),
    r("api/v1", "configmaps", "ConfigMap", true, &["cm"]),
    r("api/v1", "services", "Service", true, &["svc"]),
    r("api/v1", "serviceaccounts", "ServiceAccount", true, &["sa"]),
    r("api/v1", "endpoints", "Endpoints", true, &["ep"]),
    r("api/v1", "persistentvolumeclaims", "PersistentVolumeClaim", true, &["pvc"]),
    r("api/v1", "persistentvolumes", "PersistentVolume", false, &["pv"]),
    r("apis/apps/v1", "deployments", "Deployment", true, &["deploy"]),
    r("apis/apps/v1", "daemonsets", "DaemonSet", true, &["ds"]),
    r("apis/apps/v1", "statefulsets", "StatefulSet", true, &["sts"]),
    r("apis/apps/v1", "replicasets", "ReplicaSet", true, &["rs"]),
    r("apis/batch/v1", "jobs", "Job", true, &[]),
    r("apis/batch/v1", "cronjobs", "CronJob", true, &["cj"]),
    r("apis/networking.k8s.io/v1", "ingresses", "Ingress", true, &["ing"]),
    r("apis/networking.k8s.io/v1", "networkpolicies", "NetworkPolicy", true, &["netpol"]),
    r("apis/networking.k8s.io/v1", "ingressclasses", "IngressClass", false, &[]),
    r("apis/storage.k8s.io/v1", "storageclasses", "StorageClass", false, &["sc"]),
    r("apis/rbac.authorization.k8s.io/v1", "roles", "Role", true, &[]),
    r("apis/rbac.authorization.k8s.io/v1", "rolebindings", "RoleBinding", true, &[]),
    r("apis/rbac.authorization.k8s.io/v1", "clusterroles", "ClusterRole", false, &[]),
    r("apis/rbac.authorization.k8s.io/v1", "clusterrolebindings", "ClusterRoleBinding", false, &[]),
    r("apis/policy/v1", "poddisruptionbudgets", "PodDisruptionBudget", true, &["pdb"]),
    r("apis/coordination.k8s.io/v1", "leases", "Lease", true, &[]),
    r("apis/autoscaling/v2", "horizontalpodautoscalers", "HorizontalPodAutoscaler", true, &["hpa"]),
    r("apis/discovery.k8s.io/v1", "endpointslices", "EndpointSlice", true, &[]),
    r(
        "apis/apiextensions.k8s.io/v1",
        "customresourcedefinitions",
        "CustomResourceDefinition",
        false,
        &["crd"],
    ),
    r("api/v1", "resourcequotas", "ResourceQuota", true, &["quota"]),
    r("apis/helm.cattle.io/v1", "helmcharts", "HelmChart", true, &[]),
    r("apis/helm.cattle.io/v1", "helmchartconfigs", "HelmChartConfig", true, &[]),
];

impl Resource {
    pub fn group(&self) -> &'static str {
        self.prefix.strip_prefix("apis/").and_then(|p| p.split('/').next()).unwrap_or_default()
    }

    pub fn api_version(&self) -> &'static str {
        self.prefix.trim_start_matches("apis/").trim_start_matches("api/")
    }

    /// `deployments.apps`, as error messages and `kubectl`'s replies have it.
    pub fn qualified(&self, word: &str) -> String {
        if self.group().is_empty() { word.to_owned() } else { format!("{word}.{}", self.group()) }
    }

    pub fn singular(&self) -> String {
        self.kind.to_lowercase()
    }
}

/// Kinds that a CustomResourceDefinition made known to this process. They stay for its life, as the
/// kinds above do.
static CUSTOM: Mutex<Vec<&'static Resource>> = Mutex::new(Vec::new());

/// Every kind there is.
pub fn all() -> Vec<&'static Resource> {
    let custom = CUSTOM.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    ALL.iter().chain(custom.iter().copied()).collect()
}

/// Makes a kind known.
pub fn learn(prefix: &str, plural: &str, kind: &str, namespaced: bool) {
    if by_path(prefix, plural).is_some() {
        return;
    }
    let kept = |text: &str| -> &'static str { String::leak(text.to_owned()) };
    let resource = r(kept(prefix), kept(plural), kept(kind), namespaced, &[]);
    let mut custom = CUSTOM.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    custom.push(Box::leak(Box::new(resource)));
}

/// Takes a kind away whose definition was deleted.
pub fn forget(prefix: &str, plural: &str) {
    let mut custom = CUSTOM.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    custom.retain(|r| r.prefix != prefix || r.plural != plural);
}

/// Prefix, plural, kind and scope of each version of a definition.
pub fn defined(definition: &Value) -> Vec<(String, String, String, bool)> {
    let spec = &definition["spec"];
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let (group, names) = (text(&spec["group"]), &spec["names"]);
    let versions = spec["versions"].as_array().into_iter().flatten();
    versions
        .map(|v| {
            let prefix = format!("apis/{group}/{}", text(&v["name"]));
            (prefix, text(&names["plural"]), text(&names["kind"]), spec["scope"] != "Cluster")
        })
        .collect()
}

pub fn by_path(prefix: &str, plural: &str) -> Option<&'static Resource> {
    all().into_iter().find(|r| r.prefix == prefix && r.plural == plural)
}

pub fn by_kind(api_version: &str, kind: &str) -> Option<&'static Resource> {
    all().into_iter().find(|r| r.kind == kind && r.api_version() == api_version)
}

/// What a user types: plural, singular, short name, with or without the group.
pub fn by_word(word: &str) -> Option<&'static Resource> {
    let word = word.to_lowercase();
    let bare = word.split('.').next().unwrap_or_default();
    all().into_iter().find(|r| {
        (r.plural == bare || r.singular() == bare || r.short.contains(&bare))
            && (word == bare || word[bare.len() + 1..].starts_with(r.group()))
    })
}
