//! What is served on 6443: the supervisor's few paths and a Kubernetes API over the [`Store`].

use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use crate::certs::{self, Authority};
use crate::client::Client;
use crate::etcd::{self, Etcd, Leader};
use crate::http::{Request, Response};
use crate::resources::{self, Resource};
use crate::store::{self, Store, StoreState};
use crate::{controllers, log, paths, selector, util};

pub struct Api {
    pub store: Arc<Store>,
    pub server_ca: Authority,
    pub client_ca: Authority,
    pub server_password: String,
    pub agent_password: Option<String>,
    /// What joining nodes are told about the cluster.
    pub cluster: Value,
    pub version: String,
    /// With several servers, or one that can become several.
    pub etcd: Option<Arc<Etcd>>,
    /// Where the authorities' files are.
    pub tls: std::path::PathBuf,
    /// Where this server is reached.
    pub url: String,
}

/// Who is asking.
enum Who {
    Nobody,
    /// A client certificate's subject, or somebody the token makes a node.
    User {
        name: String,
        group: String,
    },
}

impl Api {
    pub fn handle(&self, request: &Request) -> Response {
        let path = request.path.trim_end_matches('/');
        match path {
            // The supervisor answers these to anybody; everything else on the port wants a name.
            "/cacerts" => return Response::text(200, self.server_ca.pem.clone()),
            "/ping" => return Response::text(200, "pong"),
            _ => {}
        }
        let who = self.who(request);
        let Who::User { name, group } = &who else {
            // k3s runs the apiserver with anonymous-auth=false.
            return Response::failure(401, "Unauthorized", "Unauthorized", json!({}));
        };
        if let Some(rest) = path.strip_prefix("/v1-k3s/") {
            return self.supervisor(rest, request, name, group);
        }
        let node = match group.as_str() {
            "system:masters" => None,
            "system:nodes" => name.strip_prefix("system:node:"),
            _ => Some(""),
        };
        if let Some(etcd) = &self.etcd {
            match (path, etcd.leader()) {
                ("/readyz" | "/livez" | "/healthz", None) => {
                    let failing = "[+]ping ok\n[-]etcd failed: reason withheld\nreadyz check failed\n";
                    return Response::text(500, failing);
                }
                ("/readyz" | "/livez" | "/healthz" | "/version", _) | (_, Some(Leader::Me)) => {}
                (_, Some(Leader::At(_)) | None) if request.header("standin-user").is_some() => {
                    return etcd::no_leader("etcdserver: leader changed");
                }
                (_, Some(Leader::At(url))) => return etcd.hand_on(&url, request, name, group),
                (_, None) => return etcd::no_leader("etcdserver: no leader"),
            }
        }
        let answer = self.answer(path, request, node, name);
        if let Some(etcd) = self.etcd.as_ref().filter(|_| request.method != "GET") {
            etcd.push();
        }
        answer
    }

    fn answer(&self, path: &str, request: &Request, node: Option<&str>, name: &str) -> Response {
        match path {
            "/readyz" | "/livez" | "/healthz" => Response::text(200, "ok"),
            "/version" => Response::json(200, &self.version_info()),
            "" => Response::json(
                200,
                &json!({"paths": ["/api", "/apis", "/healthz", "/livez", "/ping", "/readyz", "/version"]}),
            ),
            "/api" => Response::json(
                200,
                &json!({"kind": "APIVersions", "versions": ["v1"], "serverAddressByClientCIDRs": []}),
            ),
            "/apis" => Response::json(200, &groups()),
            path if path.ends_with("/proxy/healthz") && node.is_none() => self.kubelet(path),
            _ => self.object(path.trim_start_matches('/'), request, node, name),
        }
    }

    /// `/api/v1/nodes/NAME/proxy/healthz`, handed on to the node's kubelet.
    fn kubelet(&self, path: &str) -> Response {
        let name = path.split('/').nth(4).unwrap_or_default();
        let key = store::key("api/v1", "nodes", None, name);
        let node = self.store.lock().objects.get(&key).cloned().unwrap_or_default();
        let addresses = node["status"]["addresses"].as_array().cloned().unwrap_or_default();
        let Some(ip) =
            addresses.iter().find(|a| a["type"] == "InternalIP").and_then(|a| a["address"].as_str())
        else {
            return Response::failure(404, "NotFound", format!("nodes \"{name}\" not found"), json!({}));
        };
        let url = format!("https://{ip}:{}", paths::number("kubelet_port", 10_250));
        let asked = Client::new(&url, None, None).map_err(|e| e.to_string()).and_then(|client| {
            client.within(std::time::Duration::from_secs(3)).get("/healthz").map_err(|e| e.to_string())
        });
        match asked {
            Ok(answer) => Response::text(answer.status, answer.text()),
            Err(why) => Response::failure(
                503,
                "ServiceUnavailable",
                format!("error trying to reach service: {why}"),
                json!({}),
            ),
        }
    }

    fn who(&self, request: &Request) -> Who {
        if let Some(der) = &request.certificate {
            // The issuer's common name comes first; only the subject has an organization.
            let name = certs::names(der, certs::COMMON_NAME).pop().unwrap_or_default();
            let group = certs::names(der, certs::ORGANIZATION).pop().unwrap_or_default();
            return Who::User { name, group };
        }
        let Some((scheme, value)) = request.header("authorization").and_then(|h| h.split_once(' ')) else {
            return Who::Nobody;
        };
        let credentials = match scheme {
            "Basic" => STANDARD.decode(value).ok().and_then(|b| String::from_utf8(b).ok()),
            "Bearer" => Some(value.rsplit("::").next().unwrap_or_default().to_owned()),
            _ => None,
        };
        let credentials = credentials.unwrap_or_default();
        let (user, password) = credentials
            .split_once(':')
            .or_else(|| credentials.split_once('.'))
            .unwrap_or(("node", &credentials));
        // Servers' tokens join agents too (docs/cli/token.md); agents' tokens join agents only.
        let server = password == self.server_password;
        let agent = self.agent_password.as_deref() == Some(password);
        let named = |name: &str, group: &str| Who::User { name: name.into(), group: group.into() };
        match user {
            // Another server's word for somebody that it knows.
            "server" if server && request.header("standin-user").is_some() => named(
                request.header("standin-user").unwrap_or_default(),
                request.header("standin-group").unwrap_or_default(),
            ),
            "server" if server => named("server", "k3s:server"),
            "node" if server || agent => named("node", "k3s:agent"),
            id if self.bootstrap_token(id, password) => named("node", "k3s:agent"),
            _ => Who::Nobody,
        }
    }

    /// A token of `k3s token create`, kept as a secret of the kind kubeadm uses.
    fn bootstrap_token(&self, id: &str, secret: &str) -> bool {
        let key = store::key("api/v1", "secrets", Some("kube-system"), &format!("bootstrap-token-{id}"));
        self.store.lock().objects.get(&key).is_some_and(|s| {
            let data = |name: &str| {
                s["data"][name].as_str().and_then(|v| STANDARD.decode(v).ok()).unwrap_or_default()
            };
            let expires = util::parse_rfc3339(&String::from_utf8_lossy(&data("expiration")));
            data("token-secret") == secret.as_bytes() && expires.is_none_or(|e| e > util::unix_seconds())
        })
    }

    fn version_info(&self) -> Value {
        let mut parts = self.version.trim_start_matches('v').split('.');
        let (major, minor) = (parts.next().unwrap_or("1"), parts.next().unwrap_or("0"));
        json!({
            "major": major, "minor": minor, "gitVersion": self.version, "gitCommit": "k3s stand-in",
            "gitTreeState": "clean", "buildDate": "1970-01-01T00:00:00Z",
            "goVersion": "none (stand-in)", "compiler": "rustc", "platform": "linux/amd64",
        })
    }

    /// The paths joining nodes use (`pkg/server/handlers`).
    fn supervisor(&self, path: &str, request: &Request, name: &str, group: &str) -> Response {
        if !matches!(group, "k3s:agent" | "k3s:server" | "system:nodes" | "system:masters") {
            return Response::failure(403, "Forbidden", "forbidden", json!({}));
        }
        let server = matches!(group, "k3s:server" | "system:masters");
        let own = matches!(path, etcd::PEERS | etcd::STATE | etcd::MEMBERS | "server-bootstrap");
        if own && !server {
            return Response::failure(403, "Forbidden", "forbidden", json!({}));
        }
        if let Some(etcd) = &self.etcd {
            // What has to be written down is for the one that leads.
            let writes = matches!(path, "client-kubelet.crt" | "serving-kubelet.crt" | etcd::MEMBERS);
            match etcd.leader() {
                Some(Leader::At(url)) if writes && request.header("standin-user").is_none() => {
                    return etcd.hand_on(&url, request, name, group);
                }
                Some(Leader::Me) => {}
                _ if writes => return etcd::no_leader("etcdserver: no leader"),
                _ => {}
            }
            if matches!(path, etcd::PEERS | etcd::STATE | etcd::MEMBERS) {
                return etcd.answer(path, request);
            }
        } else if path == etcd::MEMBERS {
            let why = "the server keeps its state in SQLite; it has to be restarted with --cluster-init";
            return Response::failure(400, "BadRequest", why, json!({}));
        }
        match path {
            "server-bootstrap" => Response::json(200, &etcd::bootstrap(&self.tls)),
            // pkg/server/handlers: the addresses behind the Service `kubernetes`.
            "apiservers" => {
                let all = self.etcd.as_ref().map_or_else(|| vec![self.url.clone()], |e| e.addresses());
                Response::json(200, &json!(all))
            }
            "config" => Response::json(200, &self.cluster),
            "readyz" => Response::text(200, "ok"),
            "client-ca.crt" => Response::text(200, self.client_ca.pem.clone()),
            "server-ca.crt" => Response::text(200, self.server_ca.pem.clone()),
            "client-kubelet.crt" | "serving-kubelet.crt" => self.node_certificate(path, request),
            _ => Response::text(404, "404 page not found\n"),
        }
    }

    /// Certificates for a node, after the check of its node password.
    fn node_certificate(&self, path: &str, request: &Request) -> Response {
        let (Some(node), Some(password)) =
            (request.header("k3s-node-name"), request.header("k3s-node-password"))
        else {
            return Response::failure(400, "BadRequest", "node name or password not set", json!({}));
        };
        if let Err(message) = self.check_node_password(node, password) {
            log::error(format!("unable to verify password for node {node}: {message}"));
            return Response::failure(403, "Forbidden", message, json!({}));
        }
        let mut names: Vec<String> = request
            .header("k3s-node-ip")
            .unwrap_or_default()
            .split(',')
            .filter(|a| !a.is_empty())
            .map(str::to_owned)
            .collect();
        names.extend([node.to_owned(), "localhost".into(), "127.0.0.1".into()]);
        let made = if path == "client-kubelet.crt" {
            self.client_ca.client(&format!("system:node:{node}"), "system:nodes")
        } else {
            self.server_ca.serving(node, &names)
        };
        match made {
            Ok(pair) => Response::text(200, format!("{}{}", pair.cert, pair.key)),
            Err(e) => Response::failure(500, "InternalError", e.to_string(), json!({})),
        }
    }

    /// `pkg/nodepassword`: the first password a host name shows is kept as a salted hash in the secret
    /// `<host>.node-password.k3s`; later ones have to match it.
    fn check_node_password(&self, node: &str, password: &str) -> Result<(), String> {
        let name = format!("{node}.node-password.k3s");
        let key = store::key("api/v1", "secrets", Some("kube-system"), &name);
        self.store.update(|state| {
            if let Some(secret) = state.objects.get(&key) {
                let kept =
                    secret["data"]["hash"].as_str().and_then(|h| STANDARD.decode(h).ok()).unwrap_or_default();
                let kept = String::from_utf8_lossy(&kept).into_owned();
                let salt = kept.split(':').nth(1).unwrap_or_default();
                return if kept == hash_password(salt, password) {
                    Ok(())
                } else {
                    Err(format!("hash does not match for node {node}"))
                };
            }
            let mut secret = json!({
                "apiVersion": "v1", "kind": "Secret", "type": "Opaque", "immutable": true,
                "metadata": {"name": name, "namespace": "kube-system"},
                "data": {"hash": STANDARD.encode(hash_password(&util::random_hex(8), password))},
            });
            StoreState::stamp(&mut secret);
            state.put(&key, secret);
            Ok(())
        })
    }

    /// `<prefix>[/namespaces/<ns>]/<resource>[/<name>[/<subresource>]]`
    fn object(&self, path: &str, request: &Request, node: Option<&str>, user: &str) -> Response {
        let parts: Vec<&str> = path.split('/').collect();
        let (prefix, rest) = match parts.as_slice() {
            ["api", v, rest @ ..] => (format!("api/{v}"), rest),
            ["apis", group, v, rest @ ..] => (format!("apis/{group}/{v}"), rest),
            _ => return unknown_path(),
        };
        if rest.is_empty() {
            return discovery(&prefix);
        }
        let (namespace, rest) = match rest {
            ["namespaces", ns, rest @ ..] if !rest.is_empty() && !matches!(rest, ["finalize" | "status"]) => {
                (Some(*ns), rest)
            }
            rest => (None, rest),
        };
        let Some(resource) = resources::by_path(&prefix, rest[0]) else {
            return unknown_path();
        };
        let name = rest.get(1).copied();
        let sub = rest.get(2).copied();
        if resource.namespaced != namespace.is_some() && (name.is_some() || namespace.is_some()) {
            return unknown_path();
        }
        if let Some(node) = node {
            let own = resource.plural == "nodes"
                && (request.method == "GET" || request.method == "POST" || name == Some(node));
            let reports = resource.plural == "events" && request.method == "POST";
            // For the file that a network plugin puts on the node, which the real kubelet's containerd looks for.
            let network = resource.plural == "daemonsets" && request.method == "GET";
            if !own && !reports && !network {
                let verb = request.method.to_lowercase();
                return Response::failure(
                    403,
                    "Forbidden",
                    format!(
                        "{} is forbidden: User \"{user}\" cannot {verb} resource \"{}\" in API group \"{}\"",
                        resource.qualified(resource.plural),
                        resource.plural,
                        resource.group()
                    ),
                    json!({"kind": resource.plural}),
                );
            }
        }
        if request.parameter("watch").is_some_and(|w| w != "false" && w != "0") {
            return Response::failure(501, "NotImplemented", "the k3s stand-in does not watch", json!({}));
        }
        let at = Place { resource, namespace, name, sub };
        match (request.method.as_str(), name) {
            ("GET" | "HEAD", None) => self.list(&at, request),
            ("GET" | "HEAD", Some(_)) => self.get(&at, request),
            ("POST", None) => self.create(&at, request),
            ("PUT" | "PATCH", Some(_)) => self.change(&at, request),
            ("DELETE", Some(_)) => self.delete(&at),
            ("POST", Some(_)) if sub == Some("eviction") => self.delete(&Place { sub: None, ..at }),
            _ => Response::failure(
                405,
                "MethodNotAllowed",
                "the server does not allow this method on the requested resource",
                json!({}),
            ),
        }
    }

    fn list(&self, at: &Place, request: &Request) -> Response {
        let state = self.store.lock();
        let items: Vec<Value> = state
            .list(at.resource.prefix, at.resource.plural, at.namespace)
            .map(|(_, object)| object)
            .filter(|o| request.parameter("labelSelector").is_none_or(|s| selector::labels_match(o, s)))
            .filter(|o| request.parameter("fieldSelector").is_none_or(|s| selector::fields_match(o, s)))
            .map(|o| shown(o, request))
            .collect();
        Response::json(
            200,
            &json!({
                "kind": format!("{}List", at.resource.kind), "apiVersion": at.resource.api_version(),
                "metadata": {"resourceVersion": state.version().to_string()}, "items": items,
            }),
        )
    }

    fn get(&self, at: &Place, request: &Request) -> Response {
        match self.store.lock().objects.get(&at.key()) {
            Some(pod) if at.resource.plural == "pods" && at.sub == Some("log") => {
                match controllers::log_of(pod, request.parameter("previous") == Some("true")) {
                    Ok(text) => Response::text(200, text),
                    Err(why) => Response::failure(400, "BadRequest", why, json!({})),
                }
            }
            Some(object) => Response::json(200, &shown(object, request)),
            None => at.not_found(),
        }
    }

    fn create(&self, at: &Place, request: &Request) -> Response {
        let Ok(mut object) = parse(request) else {
            return bad_body();
        };
        if object["metadata"]["name"].as_str().is_none_or(str::is_empty)
            && let Some(prefix) = object["metadata"]["generateName"].as_str()
        {
            object["metadata"]["name"] = json!(format!("{prefix}{}", util::random_suffix(5)));
        }
        let Some(name) = object["metadata"]["name"].as_str().map(str::to_owned) else {
            return Response::failure(
                422,
                "Invalid",
                format!(
                    "{} \"\" is invalid: metadata.name: Required value: name or generateName is required",
                    at.resource.kind
                ),
                json!({}),
            );
        };
        let at = Place { name: Some(&name), ..*at };
        object["kind"] = json!(at.resource.kind);
        object["apiVersion"] = json!(at.resource.api_version());
        if let Some(namespace) = at.namespace {
            object["metadata"]["namespace"] = json!(namespace);
        }
        StoreState::stamp(&mut object);
        if object.get("spec").is_some() && at.resource.plural != "nodes" {
            object["metadata"]["generation"] = json!(1);
        }
        self.store.update(|state| {
            if let Some(ns) = at.namespace
                && !state.objects.contains_key(&store::key("api/v1", "namespaces", None, ns))
            {
                return namespaces_missing(ns);
            }
            if state.objects.contains_key(&at.key()) {
                return Response::failure(
                    409,
                    "AlreadyExists",
                    format!("{} \"{name}\" already exists", at.resource.qualified(at.resource.plural)),
                    at.details(),
                );
            }
            match at.resource.plural {
                "nodes" => {
                    state.heard.insert(name.clone(), std::time::Instant::now());
                    let used: Vec<String> = state
                        .list("api/v1", "nodes", None)
                        .filter_map(|(_, n)| n["spec"]["podCIDR"].as_str().map(str::to_owned))
                        .collect();
                    let pods = self.cluster["ClusterIPRange"].as_str().unwrap_or("10.42.0.0/16");
                    let base: Vec<&str> = pods.split('.').take(2).collect();
                    let free =
                        (0..256).map(|i| format!("{}.{i}.0/24", base.join("."))).find(|c| !used.contains(c));
                    object["spec"]["podCIDR"] = json!(free);
                    object["spec"]["podCIDRs"] = json!([free]);
                }
                "namespaces" => {
                    object["spec"] = json!({"finalizers": ["kubernetes"]});
                    object["status"] = json!({"phase": "Active"});
                    object["metadata"]["labels"]["kubernetes.io/metadata.name"] = json!(name);
                }
                "pods" => object["status"] = json!({"phase": "Pending"}),
                "services" if object["spec"]["clusterIP"].is_null() => {
                    object["spec"]["clusterIP"] = json!(self.free_service_address(state));
                    if object["spec"]["type"].is_null() {
                        object["spec"]["type"] = json!("ClusterIP");
                    }
                }
                "customresourcedefinitions" => {
                    for (prefix, plural, kind, namespaced) in resources::defined(&object) {
                        resources::learn(&prefix, &plural, &kind, namespaced);
                    }
                    object["status"] = json!({"conditions": [
                        {"type": "NamesAccepted", "status": "True"}, {"type": "Established", "status": "True"},
                    ]});
                }
                _ => {}
            }
            Response::json(201, &state.put(&at.key(), object))
        })
    }

    /// PUT replaces; PATCH merges. An apply patch of something absent creates it.
    fn change(&self, at: &Place, request: &Request) -> Response {
        let kind = request.header("content-type").unwrap_or_default();
        if request.method == "PATCH" && kind.starts_with("application/json-patch") {
            return Response::failure(
                415,
                "UnsupportedMediaType",
                "the k3s stand-in knows merge patches only",
                json!({}),
            );
        }
        let Ok(change) = parse(request) else {
            return bad_body();
        };
        if kind.starts_with("application/apply-patch") {
            return self.apply(at, request, &change);
        }
        self.store.update(|state| {
            let Some(old) = state.objects.get(&at.key()).cloned() else {
                return at.not_found();
            };
            let mut new = old.clone();
            if at.sub == Some("status") {
                // Only the status changes through this door; a kubelet's also shows that it lives.
                merge(&mut new["status"], &change["status"]);
                if at.resource.plural == "nodes" {
                    state.heard.insert(at.name.unwrap_or_default().to_owned(), std::time::Instant::now());
                    return Response::json(200, &state.put_lightly(&at.key(), new));
                }
            } else if request.method == "PUT" {
                new = change;
                for field in ["uid", "creationTimestamp", "generation", "namespace", "name"] {
                    if let Some(value) = old["metadata"].get(field) {
                        new["metadata"][field] = value.clone();
                    }
                }
                new["status"] = old["status"].clone();
            } else {
                merge(&mut new, &change);
            }
            if new == old {
                return Response::json(200, &old);
            }
            if new["spec"] != old["spec"] && old["metadata"].get("generation").is_some() {
                new["metadata"]["generation"] =
                    json!(old["metadata"]["generation"].as_u64().unwrap_or(1) + 1);
            }
            Response::json(200, &state.put(&at.key(), new))
        })
    }

    /// Server-side apply: what a manager applied before and does not any more goes, the rest is merged.
    /// Conflicts with others' fields are not looked for, as with `force=true`.
    fn apply(&self, at: &Place, request: &Request, change: &Value) -> Response {
        let manager = request.parameter("fieldManager").unwrap_or("kubectl");
        let note = format!("standin/applied/{manager}/{}", at.key());
        let keep = |state: &mut StoreState| {
            let mut kept = json!({"metadata": {}, "applied": change});
            kept["applied"]["metadata"].as_object_mut().map(|m| m.remove("namespace"));
            state.put(&note, kept);
        };
        if !self.store.lock().objects.contains_key(&at.key()) {
            let answer = self.create(&Place { name: None, ..*at }, request);
            if answer.status == 201 {
                self.store.update(keep);
            }
            return answer;
        }
        self.store.update(|state| {
            let Some(old) = state.objects.get(&at.key()).cloned() else { return at.not_found() };
            let mut new = old.clone();
            if let Some(before) = state.objects.get(&note) {
                without(&mut new, &before["applied"], change);
            }
            merge(&mut new, change);
            if new == old {
                return Response::json(200, &old);
            }
            if request.parameter("dryRun") == Some("All") {
                return Response::json(200, &new);
            }
            if new["spec"] != old["spec"] && old["metadata"].get("generation").is_some() {
                new["metadata"]["generation"] =
                    json!(old["metadata"]["generation"].as_u64().unwrap_or(1) + 1);
            }
            keep(state);
            Response::json(200, &state.put(&at.key(), new))
        })
    }

    /// An address of the services' network that no service has.
    fn free_service_address(&self, state: &StoreState) -> Option<String> {
        let range = self.cluster["ServiceIPRange"].as_str().unwrap_or("10.43.0.0/16");
        let base: Vec<&str> = range.split('.').take(2).collect();
        let used =
            |a: &String| state.list("api/v1", "services", None).any(|(_, s)| s["spec"]["clusterIP"] == **a);
        let mut all = (100..=65_000_u16).map(|n| format!("{}.{}.{}", base.join("."), n >> 8, n & 255));
        all.find(|a| !used(a))
    }

    fn delete(&self, at: &Place) -> Response {
        self.store.update(|state| {
            let Some(object) = state.remove(&at.key()) else { return at.not_found() };
            let name = at.name.unwrap_or_default();
            // A new object of that name was applied by nobody.
            let ending = format!("/{}", at.key());
            let notes: Vec<String> = state
                .objects
                .keys()
                .filter(|k| k.starts_with("standin/applied/") && k.ends_with(&ending))
                .cloned()
                .collect();
            for note in notes {
                state.remove(&note);
            }
            match at.resource.plural {
                "customresourcedefinitions" => {
                    for (prefix, plural, ..) in resources::defined(&object) {
                        resources::forget(&prefix, &plural);
                        let all: Vec<String> =
                            state.list(&prefix, &plural, None).map(|(k, _)| k.clone()).collect();
                        for key in all {
                            state.remove(&key);
                        }
                    }
                }
                // pkg/node/controller.go removes the node password together with its node.
                "nodes" => {
                    state.heard.remove(name);
                    let secret = format!("{name}.node-password.k3s");
                    state.remove(&store::key("api/v1", "secrets", Some("kube-system"), &secret));
                    Etcd::forget(state, name);
                }
                "namespaces" => {
                    let inside: Vec<String> = state
                        .objects
                        .iter()
                        .filter(|(_, o)| o["metadata"]["namespace"] == name)
                        .map(|(k, _)| k.clone())
                        .collect();
                    for key in inside {
                        state.remove(&key);
                        let ending = format!("/{key}");
                        state
                            .objects
                            .retain(|k, _| !(k.starts_with("standin/applied/") && k.ends_with(&ending)));
                    }
                }
                _ => {}
            }
            Response::json(
                200,
                &json!({
                    "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success",
                    "details": {"name": name, "kind": at.resource.plural, "uid": object["metadata"]["uid"]},
                }),
            )
        })
    }
}

#[derive(Clone, Copy)]
struct Place<'a> {
    resource: &'static Resource,
    namespace: Option<&'a str>,
    name: Option<&'a str>,
    sub: Option<&'a str>,
}

impl Place<'_> {
    fn key(&self) -> String {
        store::key(self.resource.prefix, self.resource.plural, self.namespace, self.name.unwrap_or_default())
    }

    fn details(&self) -> Value {
        json!({"name": self.name, "group": self.resource.group(), "kind": self.resource.plural})
    }

    fn not_found(&self) -> Response {
        let message = format!(
            "{} \"{}\" not found",
            self.resource.qualified(self.resource.plural),
            self.name.unwrap_or_default()
        );
        Response::failure(404, "NotFound", message, self.details())
    }
}

fn namespaces_missing(name: &str) -> Response {
    Response::failure(
        404,
        "NotFound",
        format!("namespaces \"{name}\" not found"),
        json!({"name": name, "kind": "namespaces"}),
    )
}

fn unknown_path() -> Response {
    Response::failure(404, "NotFound", "the server could not find the requested resource", json!({}))
}

fn bad_body() -> Response {
    Response::failure(400, "BadRequest", "the object provided is unrecognized", json!({}))
}

/// The body as JSON; apply patches come as YAML, of which JSON is a part.
fn parse(request: &Request) -> Result<Value, String> {
    let text = std::str::from_utf8(&request.body).map_err(|e| e.to_string())?;
    let value: Value = match serde_json::from_str(text) {
        Ok(value) => value,
        Err(_) => serde_yaml::from_str(text).map_err(|e| e.to_string())?,
    };
    if value.is_object() { Ok(value) } else { Err("not an object".into()) }
}

/// RFC 7396, and lists of conditions by their `type`, as the strategic merge patch does.
pub fn merge(target: &mut Value, patch: &Value) {
    let (Some(_), true) = (patch.as_object(), target.is_object() || target.is_null()) else {
        *target = patch.clone();
        return;
    };
    if target.is_null() {
        *target = json!({});
    }
    for (key, value) in patch.as_object().into_iter().flatten() {
        if value.is_null() {
            if let Some(map) = target.as_object_mut() {
                map.remove(key);
            }
        } else if key == "conditions" && target[key].is_array() && value.is_array() {
            let list = target[key].as_array_mut().map(std::mem::take).unwrap_or_default();
            let fresh = value.as_array().cloned().unwrap_or_default();
            let mut kept: Vec<Value> =
                list.into_iter().filter(|c| !fresh.iter().any(|f| f["type"] == c["type"])).collect();
            kept.extend(fresh);
            target[key] = Value::Array(kept);
        } else {
            merge(&mut target[key], value);
        }
    }
}

/// Takes out of `target` what is in `before` and not in `now`.
fn without(target: &mut Value, before: &Value, now: &Value) {
    let (Some(fields), Some(old)) = (target.as_object_mut(), before.as_object()) else { return };
    for (key, value) in old {
        match now.get(key) {
            None => _ = fields.remove(key),
            Some(kept) => {
                if let Some(inner) = fields.get_mut(key) {
                    without(inner, value, kept);
                }
            }
        }
    }
}

/// An object as it is asked for: whole, or its metadata alone.
fn shown(object: &Value, request: &Request) -> Value {
    if !request.header("accept").is_some_and(|a| a.contains("as=PartialObjectMetadata")) {
        return object.clone();
    }
    json!({
        "kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1", "metadata": object["metadata"],
    })
}

fn groups() -> Value {
    let mut seen: Vec<&str> = vec![];
    let mut list = vec![];
    for resource in resources::all().into_iter().filter(|r| !r.group().is_empty()) {
        if !seen.contains(&resource.prefix) {
            seen.push(resource.prefix);
            let version = json!({"groupVersion": resource.api_version(), "version": resource.prefix.rsplit('/').next()});
            list.push(json!({"name": resource.group(), "versions": [version], "preferredVersion": version}));
        }
    }
    json!({"kind": "APIGroupList", "apiVersion": "v1", "groups": list})
}

fn discovery(prefix: &str) -> Response {
    let list: Vec<Value> = resources::all()
        .into_iter()
        .filter(|r| r.prefix == prefix)
        .map(|r| {
            json!({
                "name": r.plural, "singularName": r.singular(), "namespaced": r.namespaced, "kind": r.kind,
                "shortNames": r.short, "verbs": ["create", "delete", "get", "list", "patch", "update"],
            })
        })
        .collect();
    if list.is_empty() {
        return unknown_path();
    }
    let version = prefix.trim_start_matches("apis/").trim_start_matches("api/");
    Response::json(
        200,
        &json!({"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": version, "resources": list}),
    )
}

fn hash_password(salt: &str, password: &str) -> String {
    format!("$standin:{salt}:{}", util::sha256(format!("{salt}{password}").as_bytes()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_applied_no_more_goes_and_others_fields_stay() {
        let mut target = json!({"spec": {"a": 1, "b": {"c": 1, "d": 1}, "theirs": 1}});
        without(
            &mut target,
            &json!({"spec": {"a": 1, "b": {"c": 1, "d": 1}}}),
            &json!({"spec": {"b": {"d": 2}}}),
        );
        assert_eq!(target, json!({"spec": {"b": {"d": 1}, "theirs": 1}}));
    }

    #[test]
    fn conditions_merge_by_type_and_null_removes() {
        let mut target = json!({"a": 1, "conditions": [{"type": "X", "s": 1}, {"type": "Y", "s": 1}]});
        merge(&mut target, &json!({"a": null, "conditions": [{"type": "X", "s": 2}]}));
        assert_eq!(target, json!({"conditions": [{"type": "Y", "s": 1}, {"type": "X", "s": 2}]}));
    }
}
