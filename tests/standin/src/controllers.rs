//! What the controllers would do: mark silent nodes, and give workloads pods that come up.
//!
//! Pods here are records. They are put on Ready nodes and turn Running, so that rollouts finish and
//! an unschedulable or unpullable one can be seen not to; nothing runs in them.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::config::Config;
use crate::etcd::Etcd;
use crate::server::ensure;
use crate::store::{self, Store, StoreState};
use crate::{faults, kubelet, log, paths, selector, util};

/// What every cluster has before anybody asks for anything.
pub fn seed(store: &Store, config: &Config) {
    store.update(|state| {
        let definitions = state.list("apis/apiextensions.k8s.io/v1", "customresourcedefinitions", None);
        for (prefix, plural, kind, namespaced) in definitions.flat_map(|(_, d)| crate::resources::defined(d))
        {
            crate::resources::learn(&prefix, &plural, &kind, namespaced);
        }
        for name in ["default", "kube-system", "kube-public", "kube-node-lease"] {
            ensure(
                state,
                "api/v1",
                "namespaces",
                json!({
                    "apiVersion": "v1", "kind": "Namespace", "spec": {"finalizers": ["kubernetes"]},
                    "metadata": {"name": name, "labels": {"kubernetes.io/metadata.name": name}},
                    "status": {"phase": "Active"},
                }),
            );
        }
        service(state, "default", "kubernetes", "10.43.0.1", 443);
        match config.disabled("coredns") {
            true => drop(state.remove(&store::key("api/v1", "services", Some("kube-system"), "kube-dns"))),
            false => service(state, "kube-system", "kube-dns", "10.43.0.10", 53),
        }
        packaged(state, config, "coredns", "coredns", "k8s-app", "kube-dns");
        packaged(state, config, "local-storage", "local-path-provisioner", "app", "local-path-provisioner");
        packaged(state, config, "metrics-server", "metrics-server", "k8s-app", "metrics-server");
        BALANCES.store(!config.disabled("servicelb"), Ordering::Relaxed);
        traefik(state, config);
    });
}

/// Something gives Services addresses outside.
static BALANCES: AtomicBool = AtomicBool::new(true);

/// Traefik, which the Helm controller brings: chart, class, Deployment, Service.
fn traefik(state: &mut StoreState, config: &Config) {
    let key = store::key("api/v1", "services", Some("kube-system"), "traefik");
    if !crate::ingress::there(config) {
        state.remove(&key);
        state.remove(&store::key("apis/apps/v1", "deployments", Some("kube-system"), "traefik"));
        state.remove(&store::key("apis/helm.cattle.io/v1", "helmcharts", Some("kube-system"), "traefik"));
        state.remove(&store::key("apis/networking.k8s.io/v1", "ingressclasses", None, "traefik"));
        return;
    }
    packaged(state, config, "traefik", "traefik", "app.kubernetes.io/name", "traefik");
    let chart = json!({"apiVersion": "helm.cattle.io/v1", "kind": "HelmChart", "metadata": {"name": "traefik", "namespace": "kube-system"},
        "spec": {"chart": "traefik"}});
    ensure(state, "apis/helm.cattle.io/v1", "helmcharts", chart);
    let usual = "ingressclass.kubernetes.io/is-default-class";
    let class = json!({"apiVersion": "networking.k8s.io/v1", "kind": "IngressClass", "metadata": {"name": "traefik", "annotations": {usual: "true"}},
        "spec": {"controller": "traefik.io/ingress-controller"}});
    ensure(state, "apis/networking.k8s.io/v1", "ingressclasses", class);
    service(state, "kube-system", "traefik", "10.43.0.80", 80);
    if let Some(mut traefik) = state.objects.get(&key).cloned() {
        traefik["spec"]["type"] = json!("LoadBalancer");
        traefik["spec"]["ports"] =
            json!([{"name": "web", "port": 80, "nodePort": crate::ingress::NODE_PORT, "protocol": "TCP"}]);
        if !BALANCES.load(Ordering::Relaxed) {
            traefik["status"] = json!({"loadBalancer": {}});
        }
        state.put(&key, traefik);
    }
}

fn service(state: &mut StoreState, namespace: &str, name: &str, address: &str, port: u16) {
    ensure(
        state,
        "api/v1",
        "services",
        json!({
            "apiVersion": "v1", "kind": "Service", "metadata": {"name": name, "namespace": namespace},
            "spec": {"clusterIP": address, "type": "ClusterIP", "ports": [{"port": port, "protocol": "TCP"}]},
        }),
    );
}

/// A packaged component as a Deployment; `--disable` uninstalls it.
fn packaged(state: &mut StoreState, config: &Config, component: &str, name: &str, label: &str, value: &str) {
    if config.disabled(component) {
        state.remove(&store::key("apis/apps/v1", "deployments", Some("kube-system"), name));
        return;
    }
    ensure(
        state,
        "apis/apps/v1",
        "deployments",
        json!({
            "apiVersion": "apps/v1", "kind": "Deployment",
            "metadata": {"name": name, "namespace": "kube-system", "generation": 1, "labels": {label: value}},
            "spec": {
                "replicas": 1, "selector": {"matchLabels": {label: value}},
                "template": {
                    "metadata": {"labels": {label: value}},
                    "spec": {"containers": [{"name": name, "image": format!("rancher/mirrored-{name}:standin")}]},
                },
            },
        }),
    );
}

/// With several servers only the one that leads does it.
pub fn start(store: Arc<Store>, etcd: Option<Arc<Etcd>>) {
    let grace = paths::seconds("grace", 40.0);
    let period = paths::seconds("controller_period", 1.0).max(Duration::from_millis(20));
    std::thread::spawn(move || {
        loop {
            if etcd.as_ref().is_some_and(|e| !e.leads()) {
                std::thread::sleep(period);
                continue;
            }
            store.update(|state| {
                nodes(state, grace);
                workloads(state);
                endpoints(state);
                doors(state);
            });
            std::thread::sleep(period);
        }
    });
}

fn condition<'a>(object: &'a Value, kind: &str) -> Option<&'a Value> {
    object["status"]["conditions"].as_array()?.iter().find(|c| c["type"] == kind)
}

pub fn is_ready(object: &Value) -> bool {
    condition(object, "Ready").is_some_and(|c| c["status"] == "True")
}

/// The node lifecycle controller: after the grace period all conditions turn Unknown.
fn nodes(state: &mut StoreState, grace: Duration) {
    let all: Vec<(String, Value)> =
        state.list("api/v1", "nodes", None).map(|(k, n)| (k.clone(), n.clone())).collect();
    for (key, old) in all {
        let name = old["metadata"]["name"].as_str().unwrap_or_default().to_owned();
        let heard = *state.heard.entry(name.clone()).or_insert_with(Instant::now);
        let mut node = old.clone();
        if heard.elapsed() > grace && condition(&old, "Ready").is_some_and(|c| c["status"] != "Unknown") {
            for c in node["status"]["conditions"].as_array_mut().into_iter().flatten() {
                c["status"] = json!("Unknown");
                c["reason"] = json!("NodeStatusUnknown");
                c["message"] = json!("Kubelet stopped posting node status.");
                c["lastTransitionTime"] = json!(util::now());
            }
            log::info(format!("node {name} hasn't been updated for {:?}, setting Unknown", heard.elapsed()));
            let event = kubelet::new_event(
                &name,
                "NodeNotReady",
                "Normal",
                &format!("Node {name} status is now: NodeNotReady"),
                "node-controller",
            );
            record(state, event);
        }
        let taint = match condition(&node, "Ready").and_then(|c| c["status"].as_str()) {
            Some("True") => None,
            Some("Unknown") => Some("node.kubernetes.io/unreachable"),
            _ => Some("node.kubernetes.io/not-ready"),
        };
        let mut taints: Vec<Value> = node["spec"]["taints"].as_array().cloned().unwrap_or_default();
        taints.retain(|t| {
            !matches!(
                t["key"].as_str(),
                Some("node.kubernetes.io/unreachable" | "node.kubernetes.io/not-ready")
            )
        });
        taints.extend(taint.map(|key| json!({"key": key, "effect": "NoSchedule"})));
        if taints.is_empty() {
            node["spec"].as_object_mut().map(|s| s.remove("taints"));
        } else {
            node["spec"]["taints"] = json!(taints);
        }
        if node != old {
            state.put(&key, node);
        }
    }
}

fn record(state: &mut StoreState, mut event: Value) {
    StoreState::stamp(&mut event);
    let namespace = event["metadata"]["namespace"].as_str().unwrap_or("default").to_owned();
    let key = store::key(
        "api/v1",
        "events",
        Some(&namespace),
        event["metadata"]["name"].as_str().unwrap_or_default(),
    );
    state.put(&key, event);
    let mut all: Vec<(String, String)> = state
        .list("api/v1", "events", None)
        .map(|(k, e)| (e["lastTimestamp"].as_str().unwrap_or_default().to_owned(), k.clone()))
        .collect();
    if all.len() > 200 {
        all.sort();
        for (_, key) in &all[..all.len() - 200] {
            state.remove(key);
        }
    }
}

const WORKLOADS: &[(&str, &str)] = &[
    ("apis/apps/v1", "deployments"),
    ("apis/apps/v1", "daemonsets"),
    ("apis/apps/v1", "statefulsets"),
    ("apis/batch/v1", "jobs"),
];

fn workloads(state: &mut StoreState) {
    let nodes: Vec<Value> = state.list("api/v1", "nodes", None).map(|(_, n)| n.clone()).collect();
    let mut owners = vec![];
    for (prefix, resource) in WORKLOADS {
        let all: Vec<(String, Value)> =
            state.list(prefix, resource, None).map(|(k, o)| (k.clone(), o.clone())).collect();
        for (key, owner) in all {
            owners.push(owner["metadata"]["uid"].clone());
            reconcile(state, resource, &key, &owner, &nodes);
        }
    }
    let pods: Vec<(String, Value)> =
        state.list("api/v1", "pods", None).map(|(k, p)| (k.clone(), p.clone())).collect();
    for (key, pod) in pods {
        let owner = &pod["metadata"]["ownerReferences"][0]["uid"];
        let node = &pod["spec"]["nodeName"];
        let gone = node.is_string() && !nodes.iter().any(|n| n["metadata"]["name"] == *node);
        if gone || owner.is_string() && !owners.contains(owner) {
            state.remove(&key);
            continue;
        }
        advance(state, &key, &pod, &nodes);
    }
}

/// Makes and removes the pods of one workload, then writes its status.
fn reconcile(state: &mut StoreState, resource: &str, key: &str, owner: &Value, nodes: &[Value]) {
    let meta = &owner["metadata"];
    let (name, namespace) =
        (meta["name"].as_str().unwrap_or_default(), meta["namespace"].as_str().unwrap_or_default());
    let template = &owner["spec"]["template"];
    let hash = util::sha256(template.to_string().as_bytes())[..10].to_owned();
    let mine = |state: &StoreState| -> Vec<(String, Value)> {
        state
            .list("api/v1", "pods", Some(namespace))
            .filter(|(_, p)| p["metadata"]["ownerReferences"][0]["uid"] == meta["uid"])
            .map(|(k, p)| (k.clone(), p.clone()))
            .collect()
    };
    let fits = |node: &&Value| {
        let wanted = &template["spec"]["nodeSelector"];
        wanted.is_null() || selector::matches_all(node, wanted)
    };
    let daemon = resource == "daemonsets";
    let places: Vec<Option<String>> = if daemon {
        nodes.iter().filter(fits).map(|n| n["metadata"]["name"].as_str().map(str::to_owned)).collect()
    } else {
        let count = owner["spec"]["replicas"].as_u64().or(owner["spec"]["completions"].as_u64()).unwrap_or(1);
        vec![None; count.min(100) as usize]
    };

    let mut kept: Vec<Value> = vec![];
    for (key, pod) in mine(state) {
        let node = pod["spec"]["nodeName"].as_str();
        let current = pod["metadata"]["labels"]["pod-template-hash"] == hash.as_str();
        let wanted =
            if daemon { places.iter().any(|p| p.as_deref() == node) } else { kept.len() < places.len() };
        if current && wanted {
            kept.push(pod);
        } else {
            state.remove(&key);
        }
    }
    for (index, place) in places.iter().enumerate() {
        let exists = if daemon {
            kept.iter().any(|p| p["spec"]["nodeName"].as_str() == place.as_deref())
        } else {
            index < kept.len()
        };
        if exists {
            continue;
        }
        let suffix = match resource {
            "deployments" => format!("{hash}-{}", util::random_suffix(5)),
            "statefulsets" => index.to_string(),
            _ => util::random_suffix(5),
        };
        let mut pod = json!({
            "apiVersion": "v1", "kind": "Pod", "spec": template["spec"],
            "metadata": {
                "name": format!("{name}-{suffix}"), "namespace": namespace, "labels": template["metadata"]["labels"],
                "ownerReferences": [{"apiVersion": owner["apiVersion"], "kind": owner["kind"], "name": name, "uid": meta["uid"], "controller": true}],
            },
            "status": {"phase": "Pending"},
        });
        pod["metadata"]["labels"]["pod-template-hash"] = json!(hash);
        if let Some(node) = place {
            pod["spec"]["nodeName"] = json!(node);
        }
        StoreState::stamp(&mut pod);
        let key = store::key(
            "api/v1",
            "pods",
            Some(namespace),
            pod["metadata"]["name"].as_str().unwrap_or_default(),
        );
        state.put(&key, pod);
    }

    let pods = mine(state);
    let (total, ready) = (pods.len(), pods.iter().filter(|(_, p)| is_ready(p)).count());
    let done = pods.iter().filter(|(_, p)| p["status"]["phase"] == "Succeeded").count();
    let observed = meta["generation"].as_u64().unwrap_or(1);
    let available = json!([{"type": "Available", "status": if ready >= places.len() { "True" } else { "False" },
        "reason": if ready >= places.len() { "MinimumReplicasAvailable" } else { "MinimumReplicasUnavailable" }}]);
    let status = match resource {
        "daemonsets" => json!({
            "observedGeneration": observed, "desiredNumberScheduled": total, "currentNumberScheduled": total,
            "updatedNumberScheduled": total, "numberReady": ready, "numberAvailable": ready, "numberMisscheduled": 0,
        }),
        "jobs" if done >= places.len() => json!({
            "succeeded": done, "conditions": [{"type": "Complete", "status": "True"}],
        }),
        "jobs" => json!({"active": total - done, "ready": ready, "succeeded": done}),
        _ => json!({
            "observedGeneration": observed, "replicas": total, "updatedReplicas": total, "readyReplicas": ready,
            "availableReplicas": ready, "unavailableReplicas": places.len().saturating_sub(ready), "conditions": available,
        }),
    };
    if owner["status"] != status
        && let Some(mut new) = state.objects.get(key).cloned()
    {
        new["status"] = status;
        state.put(key, new);
    }
}

/// A warning about a pod, once for each reason.
fn warn(state: &mut StoreState, pod: &Value, reason: &str, message: &str) {
    tell(state, pod, (reason, "Warning"), message);
}

fn tell(state: &mut StoreState, pod: &Value, (reason, kind): (&str, &str), message: &str) {
    let meta = &pod["metadata"];
    let (name, namespace) =
        (meta["name"].as_str().unwrap_or_default(), meta["namespace"].as_str().unwrap_or("default"));
    let told = state.list("api/v1", "events", Some(namespace)).any(|(_, e)| {
        e["involvedObject"]["uid"] == meta["uid"] && e["reason"] == reason && e["message"] == message
    });
    if told {
        return;
    }
    let mut event = kubelet::new_event(name, reason, kind, message, "kubelet");
    event["metadata"]["namespace"] = json!(namespace);
    event["involvedObject"] =
        json!({"kind": "Pod", "name": name, "namespace": namespace, "uid": meta["uid"]});
    record(state, event);
}

/// What a container said: the stand-in runs none, so it says that, and how a fault ended it.
pub fn log_of(pod: &Value, previous: bool) -> Result<String, String> {
    let name = pod["metadata"]["name"].as_str().unwrap_or_default();
    let container = &pod["status"]["containerStatuses"][0];
    if let Some(said) = container["state"]["terminated"]["message"].as_str() {
        return Ok(said.to_owned());
    }
    if container["lastState"]["terminated"].is_object() || container["state"]["terminated"]["exitCode"] == 1 {
        return Ok("k3s stand-in: no container runs here\nstand-in fault crash: exiting with 1\n".into());
    }
    match (previous, &container["state"]) {
        (false, state) if state["running"].is_object() || state["terminated"].is_object() => {
            Ok(format!("k3s stand-in: no container runs here; {name} is a record\n"))
        }
        (true, _) => Err(format!("previous terminated container of pod {name} not found")),
        _ => Err(format!("container in pod {name} is waiting to start")),
    }
}

/// The addresses of a service that is offered outside: every Ready node's, as k3s' ServiceLB has it.
fn doors(state: &mut StoreState) {
    if !BALANCES.load(Ordering::Relaxed) {
        return;
    }
    let ready: Vec<Value> = state
        .list("api/v1", "nodes", None)
        .filter(|(_, n)| is_ready(n))
        .map(|(_, n)| json!({"ip": n["status"]["addresses"][0]["address"]}))
        .collect();
    let status = json!({"loadBalancer": {"ingress": ready}});
    let open: Vec<(String, Value)> = state
        .list("api/v1", "services", None)
        .filter(|(_, s)| s["spec"]["type"] == "LoadBalancer" && s["status"] != status)
        .map(|(k, s)| (k.clone(), s.clone()))
        .collect();
    for (key, mut service) in open {
        service["status"] = status.clone();
        state.put(&key, service);
    }
}

/// The addresses behind each service: its ready pods'.
fn endpoints(state: &mut StoreState) {
    let services: Vec<Value> = state.list("api/v1", "services", None).map(|(_, s)| s.clone()).collect();
    for service in services.iter().filter(|s| s["spec"]["selector"].is_object()) {
        let (name, namespace) = (
            service["metadata"]["name"].as_str().unwrap_or_default(),
            service["metadata"]["namespace"].as_str().unwrap_or_default(),
        );
        let addresses: Vec<Value> = state
            .list("api/v1", "pods", Some(namespace))
            .filter(|(_, p)| selector::matches_all(p, &service["spec"]["selector"]) && is_ready(p))
            .map(|(_, p)| {
                json!({"ip": p["status"]["podIP"], "nodeName": p["spec"]["nodeName"],
                "targetRef": {"kind": "Pod", "name": p["metadata"]["name"], "namespace": namespace}})
            })
            .collect();
        let subsets = match addresses.is_empty() {
            true => json!([]),
            false => json!([{"addresses": addresses, "ports": service["spec"]["ports"]}]),
        };
        let key = store::key("api/v1", "endpoints", Some(namespace), name);
        let old = state.objects.get(&key).cloned();
        if old.as_ref().is_some_and(|o| o["subsets"] == subsets) {
            continue;
        }
        let mut object = old.unwrap_or_else(|| {
            let mut new = json!({"apiVersion": "v1", "kind": "Endpoints", "metadata": {"name": name, "namespace": namespace}});
            StoreState::stamp(&mut new);
            new
        });
        object["subsets"] = subsets;
        state.put(&key, object);
    }
    let orphans: Vec<String> = state
        .list("api/v1", "endpoints", None)
        .filter(|(_, e)| {
            !services.iter().any(|s| {
                s["metadata"]["name"] == e["metadata"]["name"]
                    && s["metadata"]["namespace"] == e["metadata"]["namespace"]
            })
        })
        .map(|(k, _)| k.clone())
        .collect();
    for key in orphans {
        state.remove(&key);
    }
}

/// One step in a pod's life: schedule, pull, run, finish; or stop being ready with its node.
fn advance(state: &mut StoreState, key: &str, old: &Value, nodes: &[Value]) {
    let mut pod = old.clone();
    let containers: Vec<Value> = old["spec"]["containers"].as_array().cloned().unwrap_or_default();
    let Some(name) = old["spec"]["nodeName"].as_str() else {
        let wanted = &old["spec"]["nodeSelector"];
        let mut fitting: Vec<((usize, usize), &str)> = nodes
            .iter()
            .filter(|n| is_ready(n) && n["spec"]["unschedulable"] != true && tolerated(old, n))
            .filter(|n| wanted.is_null() || selector::matches_all(n, wanted))
            .filter_map(|n| n["metadata"]["name"].as_str())
            .map(|n| {
                let there = |p: &&Value| p["spec"]["nodeName"] == n;
                let pods = || state.list("api/v1", "pods", None).map(|(_, p)| p).filter(there);
                // A wish to be spread over nodes is one over all else here.
                let wish = &old["spec"]["topologySpreadConstraints"][0]["labelSelector"]["matchLabels"];
                let alike = pods().filter(|p| selector::matches_all(p, wish)).count();
                ((alike, pods().count()), n)
            })
            .collect();
        fitting.sort_unstable();
        match fitting.first() {
            Some((_, node)) => pod["spec"]["nodeName"] = json!(node),
            None => {
                let message = format!("0/{} nodes are available", nodes.len());
                warn(state, old, "FailedScheduling", &message);
                pod["status"]["conditions"] = json!([{"type": "PodScheduled", "status": "False", "reason": "Unschedulable",
                "message": message}])
            }
        }
        if pod != *old {
            state.put(key, pod);
        }
        return;
    };
    let Some(node) = nodes.iter().find(|n| n["metadata"]["name"] == name) else {
        return;
    };
    // Nothing was pulled: a digest of its own for each name.
    let image_id = |image: &Value| {
        let name = image.as_str().unwrap_or_default();
        format!("{name}@sha256:{}", crate::util::sha256(name.as_bytes()))
    };
    let phase = old["status"]["phase"].as_str().unwrap_or("Pending");
    let up = is_ready(node);
    let states = |ready: bool, state: &Value| -> Value {
        containers.iter().map(|c| json!({
            "name": c["name"], "image": c["image"], "imageID": image_id(&c["image"]), "ready": ready, "started": ready, "restartCount": 0, "state": state,
        })).collect()
    };
    let struck = |fault: &str| {
        faults::get(fault).filter(|t| !t.is_empty()).and_then(|t| {
            containers.iter().find_map(|c| c["image"].as_str().filter(|i| i.contains(&t)).map(str::to_owned))
        })
    };
    let unpullable = struck("image-pull");
    let once = old["spec"]["restartPolicy"].as_str().is_some_and(|p| p != "Always");
    match phase {
        "Pending" if up => {
            if let Some(image) = unpullable {
                let waiting = json!({"waiting": {"reason": "ImagePullBackOff", "message": format!("Back-off pulling image \"{image}\"")}});
                warn(state, old, "Failed", &format!("Failed to pull image \"{image}\": not found"));
                pod["status"]["containerStatuses"] = states(false, &waiting);
            } else if struck("crash").is_some() {
                // Once, so that a record does not change with every look.
                if old["status"]["containerStatuses"][0]["lastState"]["terminated"].is_null() {
                    warn(state, old, "BackOff", "Back-off restarting failed container");
                    let waiting = json!({"waiting": {"reason": "CrashLoopBackOff", "message": "back-off 10s restarting failed container"}});
                    let mut all = states(false, &waiting);
                    for c in all.as_array_mut().into_iter().flatten() {
                        c["restartCount"] = json!(3);
                        c["lastState"] = json!({"terminated": {"exitCode": 1, "reason": "Error"}});
                    }
                    pod["status"]["containerStatuses"] = all;
                }
            } else {
                // Others are taken for there, as those of an archive.
                for container in containers.iter().filter(|c| c["imagePullPolicy"] == "Always") {
                    let image = container["image"].as_str().unwrap_or_default();
                    tell(state, old, ("Pulling", "Normal"), &format!("Pulling image \"{image}\""));
                }
                let address = node["status"]["addresses"][0]["address"].clone();
                let cidr =
                    node["spec"]["podCIDR"].as_str().unwrap_or("10.42.0.0/24").trim_end_matches("0/24");
                let ip = if old["spec"]["hostNetwork"] == true {
                    address.clone()
                } else {
                    json!(format!("{cidr}{}", free_host(state, cidr)))
                };
                pod["status"] = json!({
                    "phase": "Running", "podIP": ip, "podIPs": [{"ip": ip}], "hostIP": address, "startTime": util::now(),
                    "conditions": [{"type": "PodScheduled", "status": "True"}, {"type": "Initialized", "status": "True"},
                        {"type": "ContainersReady", "status": "True"}, {"type": "Ready", "status": "True"}],
                    "containerStatuses": states(true, &json!({"running": {"startedAt": util::now()}})),
                });
            }
        }
        "Running" if once => {
            pod["status"]["phase"] = json!("Succeeded");
            pod["status"]["conditions"] =
                json!([{"type": "Ready", "status": "False", "reason": "PodCompleted"}]);
            pod["status"]["containerStatuses"] = states(
                false,
                &json!({"terminated": {"exitCode": 0, "reason": "Completed", "message": crate::ingress::asked(state, old)}}),
            );
        }
        "Running" if is_ready(old) != up => {
            for c in pod["status"]["conditions"]
                .as_array_mut()
                .into_iter()
                .flatten()
                .filter(|c| c["type"] == "Ready")
            {
                c["status"] = json!(if up { "True" } else { "False" });
            }
        }
        _ => {}
    }
    if pod != *old {
        state.put(key, pod);
    }
}

fn tolerated(pod: &Value, node: &Value) -> bool {
    let tolerates = |taint: &Value| {
        pod["spec"]["tolerations"]
            .as_array()
            .into_iter()
            .flatten()
            .any(|t| (t["key"].is_null() && t["operator"] == "Exists") || t["key"] == taint["key"])
    };
    node["spec"]["taints"]
        .as_array()
        .into_iter()
        .flatten()
        .filter(|t| t["effect"] != "PreferNoSchedule")
        .all(tolerates)
}

fn free_host(state: &StoreState, network: &str) -> u8 {
    let used = |host: u8| {
        state.list("api/v1", "pods", None).any(|(_, p)| p["status"]["podIP"] == format!("{network}{host}"))
    };
    (2..=254).find(|h| !used(*h)).unwrap_or(255)
}
