//! `p1 verify`: the cluster works, proven by using it.
//!
//! A pod on every node answers on its own address and behind a Service; a second one on every node asks
//! all of them, the Service by address and by name. What the second ones found is read from their
//! logs, over the API. All of it lies in one namespace, which goes at the end, whatever came of it; what a
//! verify that was killed left is taken away by the next one.
//!
//! What the cluster has, an ingress, names, a domain, a registry, is asked of it: many settings, k3s' versions and
//! their owner by hand decide it, and none of them alone.
//!
//! A proof is of its moment: every step is due again at every run, a retry included.

use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::time::Duration;

use serde_json::{Value, json};

use super::shared::rollout::look_at_pods;
use super::shared::wait::{Patience, again, wait_for};
use super::{ClusterDef, Ctx, NodeCtx, NodeDef, Step, asked, asked_of, named, named_of};
use crate::access::kubectl::{self, applying, fed, stream};
use crate::access::{SCRIPT_TIMEOUT, Via, World};
use crate::apps::{self, Secrets, Why};
use crate::engine::StepError;
use crate::explain::{FailureKind, seconds, times};
use crate::guest::{Activity, Unit};
use crate::machines::MachineState;
use crate::observed::ready::wrong;
use crate::os::Cancel;
use crate::os::process::tail;
use crate::plan::{After, ClusterStep, NodeStep, Per};
use crate::spec::Node;
use crate::ssh::{Login, Remote};

/// The namespace of it all.
const SPACE: &str = "p1-verify";
/// What the pods answer with.
const WORD: &str = "p1-verify";
/// The name that the Ingress goes by.
const HOST: &str = "verify.p1.internal";
/// What is pulled if no node has an image that would do: k3s' own releases name it (scripts/airgap/image-list.txt).
const IMAGE: &str = "rancher/mirrored-library-busybox:1.36.1";
/// Each pod asks so many others: those after it, in a circle.
const PEERS: usize = 20;

/// For pods to run, their image to be pulled if need be.
const PODS: Duration = Duration::from_secs(180);
/// For a pod to ask everybody.
const ASKING: Duration = Duration::from_secs(120);
/// For the ingress controller to know of the Ingress; after `up` it may itself still be on its way.
const INGRESS: Duration = Duration::from_secs(120);
/// For the API to say how a node is, where it comes and goes.
const ANSWERS: Duration = Duration::from_secs(60);
/// After `up` what brings the ingress may be a moment behind: so long nothing is taken for missing, in a cluster
/// that is younger than that.
const GRACE: Duration = Duration::from_secs(10);
const YOUNG: Duration = Duration::from_secs(300);
/// For a namespace to be gone.
const GONE: Duration = Duration::from_secs(120);

const fn cluster_step(
    name: ClusterStep,
    title: &'static str,
    after: &'static [After],
    apply: fn(&Ctx<'_>) -> Result<Option<String>, StepError>,
) -> Step {
    Step::Cluster(ClusterDef {
        name,
        title,
        after,
        on_demand: false,
        needs: None,
        retry: false,
        check: asked,
        inputs: named,
        apply,
    })
}

const fn node_step(
    name: NodeStep,
    title: &'static str,
    after: &'static [After],
    apply: fn(&NodeCtx<'_>) -> Result<Option<String>, StepError>,
) -> Step {
    let per = Per::Node;
    Step::Node(NodeDef {
        name,
        title,
        per,
        after,
        needs: None,
        retry: false,
        check: asked_of,
        inputs: named_of,
        apply,
    })
}

/// Every node is as it should be.
pub const HEALTHY: Step = node_step(NodeStep::Healthy, "check node health", &[], healthy);
/// A pod on every node.
pub const PODS_RUN: Step =
    cluster_step(ClusterStep::Pods, "run a pod on every node", &[After::Node(NodeStep::Healthy)], pods);
/// Pods reach each other.
pub const PEERS_ANSWER: Step = node_step(
    NodeStep::Network,
    "reach the other nodes' pods",
    &[After::Cluster(ClusterStep::Pods)],
    network,
);
/// And a Service by its address.
pub const SERVICE: Step = node_step(
    NodeStep::Service,
    "reach a Service by its address",
    &[After::Cluster(ClusterStep::Pods)],
    service,
);
/// And by its name.
pub const NAME: Step =
    node_step(NodeStep::Dns, "reach a Service by its name", &[After::Cluster(ClusterStep::Pods)], dns);
/// From outside.
pub const OUTSIDE: Step = cluster_step(
    ClusterStep::Ingress,
    "reach it through the ingress",
    &[After::Cluster(ClusterStep::Pods)],
    ingress,
);
/// Nothing was restarted meanwhile.
pub const STEADY: Step = node_step(
    NodeStep::Steady,
    "be steady meanwhile",
    &[
        After::Node(NodeStep::Network),
        After::Node(NodeStep::Service),
        After::Node(NodeStep::Dns),
        After::Cluster(ClusterStep::Ingress),
    ],
    steady,
);
/// Nothing is left.
pub const CLEAN: Step = cluster_step(
    ClusterStep::Clean,
    "remove what this made",
    &[
        After::Ended(NodeStep::Healthy),
        After::Cluster(ClusterStep::Pods),
        After::Ended(NodeStep::Network),
        After::Ended(NodeStep::Service),
        After::Ended(NodeStep::Dns),
        After::Cluster(ClusterStep::Ingress),
        After::Ended(NodeStep::Steady),
    ],
    clean,
);

/// The nodes that are looked at and run pods.
fn targets(world: &World) -> Vec<&Node> {
    let chosen = &world.seen().request.targets;
    world.cluster.members().filter(|n| chosen.contains(&n.name)).collect()
}

fn healthy(ctx: &NodeCtx<'_>) -> Result<Option<String>, StepError> {
    let (world, node) = (ctx.world, ctx.node);
    let state = world.seen().machines.get(&node.name).map_or(MachineState::Absent, |m| m.state.clone());
    if state != MachineState::Running {
        return Err(
            StepError::new(format!("the machine is {state}"), "`p1 up` brings it up.").next(["p1 up"])
        );
    }
    let facts = again(ctx, ANSWERS, || world.look_at_node(node))?;
    if !node.role.has_k3s() {
        return Ok(Some(format!("a machine without k3s at {}", node.ip)));
    }
    let unit = facts.unit(node.role.unit());
    if unit.active != Activity::Active {
        let state = &unit.active;
        return Err(StepError::new(
            format!("its unit {} is {state}", node.role.unit()),
            format!("`p1 logs {}` shows why; `p1 up` starts it.", node.name),
        )
        .next(["p1 up"]));
    }
    let nodes = again(ctx, ANSWERS, || world.nodes())?;
    let status = nodes.iter().find(|n| n.name == node.name);
    if let Some(why) = wrong(node, world.seen().here.version.as_deref(), status) {
        return Err(
            StepError::new(why, "`p1 up` fixes what it can, and says why if it cannot.").next(["p1 up"])
        );
    }
    if unit.restarts > 0 {
        let init = world.guest(node).service().name();
        ctx.control
            .warn(format!("k3s was started again by {init} {} since it was started.", times(unit.restarts)));
    }
    world.note(|seen| {
        seen.run.proven.insert(node.name.clone(), unit);
    });
    let status = status.expect("it is not wrong");
    if status.unschedulable {
        ctx.control.warn("It is cordoned: nothing new is put on it.");
    }
    Ok(Some(format!("{} at {}", status.version, node.ip)))
}

/// The image of the pods: what the user wants, or what all nodes have, or what is to be pulled.
fn image(world: &World, nodes: &[&Node]) -> Result<(String, bool), StepError> {
    let seen = world.seen();
    if let Some(image) = seen.request.subject.clone().or_else(|| world.cluster.verify.image.clone()) {
        return Ok((image, false));
    }
    let all = world.ask(|api| api.items("/api/v1/nodes", &world.cancel))?;
    Ok(image_of(&all, nodes))
}

/// From the Node objects, which name the images that each node has.
fn image_of(all: &[Value], nodes: &[&Node]) -> (String, bool) {
    let on = |node: &&Node| -> Vec<&str> {
        let object = all.iter().find(|o| o["metadata"]["name"] == node.name.as_str());
        let images = object.into_iter().flat_map(|o| o["status"]["images"].as_array().into_iter().flatten());
        let names = images.flat_map(|i| i["names"].as_array().into_iter().flatten());
        names.filter_map(Value::as_str).filter(|n| !n.contains('@')).collect()
    };
    let has: Vec<Vec<&str>> = nodes.iter().map(on).collect();
    // Not what is merely called after it, such as an exporter for it.
    let is_busybox = |name: &&&str| {
        let last = name.rsplit('/').next().unwrap_or_default();
        last.split(':').next().is_some_and(|n| n == "busybox" || n.ends_with("-busybox"))
    };
    let mut names: Vec<&str> = has.iter().flatten().filter(is_busybox).copied().collect();
    names.sort_unstable();
    names.dedup();
    if let Some(name) = names.iter().find(|name| has.iter().all(|h| h.contains(*name))) {
        return ((*name).to_owned(), true);
    }
    if let Some(name) = names.first() {
        return ((*name).to_owned(), false);
    }
    // From where k3s' own came, whichever setting or file says so.
    let from = has.iter().flatten().find_map(|name| name.split_once("rancher/mirrored-"));
    let registry = from.map_or("", |(registry, _)| registry).trim_start_matches("docker.io/");
    (format!("{registry}{IMAGE}"), false)
}

/// What every pod here is allowed: nothing. Also where the cluster enforces the strictest standard.
fn confined() -> (Value, Value) {
    (
        json!({"runAsNonRoot": true, "runAsUser": 65534, "seccompProfile": {"type": "RuntimeDefault"}}),
        json!({"allowPrivilegeEscalation": false, "capabilities": {"drop": ["ALL"]}}),
    )
}

const RESPOND: &str = "mkdir -p /tmp/www && echo \"p1-verify $NODE\" >/tmp/www/index.html && \
                       exec httpd -f -p 8080 -h /tmp/www";

/// Asks one after the other; a line for each: `WHAT ok ANSWER` or `WHAT failed WHY`. The cluster's domain is
/// what the kubelet has written down for the pod.
const ASK: &str = r#"try() {
  i=0
  while :; do
    said=$(wget -q -T 3 -O - "http://$2/" 2>&1)
    case $said in "p1-verify "*) echo "$1 ok ${said#p1-verify }"; return ;; esac
    i=$((i + 1))
    [ $i -lt 5 ] || { echo "$1 failed $(echo "$said" | tail -n 1)"; return; }
    sleep 1
  done
}
for peer in $P1_PEERS; do try "pod/${peer%%=*}" "${peer#*=}:8080"; done
try service "$P1_SERVICE"
for domain in $(sed -n 's/^search//p' "${P1_RESOLV:-/etc/resolv.conf}" 2>/dev/null); do
  case $domain in p1-verify.svc.*) [ -z "$P1_NAME" ] || P1_NAME=answer.$domain ;; esac
done
[ -z "$P1_NAME" ] || try dns "$P1_NAME"
echo end"#;

fn responders(image: &str, class: Option<&str>) -> String {
    let (pod, container) = confined();
    let labels = json!({"app": WORD});
    let all = [
        json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": SPACE, "labels": {"app.kubernetes.io/managed-by": "p1"}}}),
        json!({
            "apiVersion": "apps/v1", "kind": "DaemonSet", "metadata": {"name": "answer", "namespace": SPACE},
            "spec": {"selector": {"matchLabels": labels}, "template": {
                "metadata": {"labels": labels},
                "spec": {
                    // Every node is to be proven, whatever its taints keep away.
                    "tolerations": [{"operator": "Exists"}], "securityContext": pod,
                    "terminationGracePeriodSeconds": 0, "automountServiceAccountToken": false, "enableServiceLinks": false,
                    "containers": [{
                        "name": "answer", "image": image, "imagePullPolicy": "IfNotPresent", "securityContext": container,
                        "command": ["sh", "-c", RESPOND], "ports": [{"containerPort": 8080}],
                        "env": [{"name": "NODE", "valueFrom": {"fieldRef": {"fieldPath": "spec.nodeName"}}}],
                        "readinessProbe": {"tcpSocket": {"port": 8080}, "periodSeconds": 1},
                        "resources": {"requests": {"cpu": "10m", "memory": "8Mi"}},
                    }],
                },
            }},
        }),
        json!({
            "apiVersion": "v1", "kind": "Service", "metadata": {"name": "answer", "namespace": SPACE},
            "spec": {"selector": labels, "ports": [{"port": 80, "targetPort": 8080}]},
        }),
        json!({
            "apiVersion": "networking.k8s.io/v1", "kind": "Ingress", "metadata": {"name": "answer", "namespace": SPACE},
            "spec": {"rules": [{"host": HOST, "http": {"paths": [{"path": "/", "pathType": "Prefix",
                "backend": {"service": {"name": "answer", "port": {"number": 80}}}}]}}]},
        }),
    ];
    let mut all = all;
    if let Some(class) = class {
        all[3]["spec"]["ingressClassName"] = json!(class);
    }
    stream(all.map(|object| object.to_string()))
}

fn probe(node: &Node, image: &str, env: &[(&str, String)]) -> Value {
    let (pod, container) = confined();
    let env: Vec<Value> = env.iter().map(|(name, value)| json!({"name": name, "value": value})).collect();
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": format!("ask-{}", node.name), "namespace": SPACE, "labels": {"app": "p1-verify-ask"}},
        "spec": {
            "nodeName": node.name, "restartPolicy": "Never", "tolerations": [{"operator": "Exists"}],
            "securityContext": pod, "terminationGracePeriodSeconds": 0, "automountServiceAccountToken": false,
            "enableServiceLinks": false,
            "containers": [{
                "name": "ask", "image": image, "imagePullPolicy": "IfNotPresent", "securityContext": container,
                "command": ["sh", "-c", ASK], "env": env,
                "resources": {"requests": {"cpu": "10m", "memory": "8Mi"}},
            }],
        },
    })
}

/// Where a policy forbids all that is not allowed in each new namespace, this allows it in this one.
fn allowed() -> String {
    let all = json!({
        "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "metadata": {"name": "all", "namespace": SPACE},
        "spec": {"podSelector": {}, "policyTypes": ["Ingress", "Egress"], "ingress": [{}], "egress": [{}]},
    });
    stream([all.to_string()])
}

fn place(kind: &str, name: &str) -> String {
    format!("/api/v1/namespaces/{SPACE}/{kind}/{name}")
}

/// kubectl, again where what it needs comes and goes.
fn writes(ctx: &Ctx<'_>, what: &str, script: &str) -> Result<(), StepError> {
    again(ctx, ANSWERS, || {
        kubectl::apply(ctx.world, what, script, &Secrets::default(), &mut |line| ctx.control.log(line))
    })
    .map(drop)
}

fn pods(ctx: &Ctx<'_>) -> Result<Option<String>, StepError> {
    let world = ctx.world;
    let nodes = targets(world);
    if nodes.is_empty() {
        return Ok(Some("none of these machines runs pods".into()));
    }
    let space = format!("/api/v1/namespaces/{SPACE}");
    let there = || world.ask(|api| api.metadata(&space, &world.cancel));
    if again(ctx, PODS, there)?.is_some() {
        ctx.control.says("removing what an earlier verify left");
        writes(ctx, "removing what an earlier verify left", &removal())?;
        let gone = wait_for(ctx, Patience::of(GONE), || {
            let left = there()?;
            Ok(left.map_or(Ok(()), |_| Err("waiting for an earlier verify's namespace to go".to_owned())))
        })?;
        if let Err(why) = gone {
            let hint = format!("Something holds the namespace: p1 kubectl get namespace {SPACE} -o yaml");
            return Err(StepError::new(format!("not gone within {}: {why}", seconds(GONE)), hint)
                .kind(FailureKind::bound(GONE)));
        }
    }
    let (image, there) = again(ctx, PODS, || image(world, &nodes))?;
    let class = ingress_class(&again(ctx, PODS, || classes(world))?);
    ctx.control.log(&format!(
        "image {image}, {}",
        if there { "which every node has" } else { "to be pulled where it is not" }
    ));
    ctx.control.says(format!("starting pods of {image}"));
    writes(ctx, "starting pods", &fed(&applying(None), &responders(&image, class.as_deref())))?;

    let list = format!("/api/v1/namespaces/{SPACE}/pods?labelSelector=app%3D{WORD}");
    let set = format!("/apis/apps/v1/namespaces/{SPACE}/daemonsets/answer");
    let policies = format!("/apis/networking.k8s.io/v1/namespaces/{SPACE}/networkpolicies");
    let mut addresses: Vec<(String, String)> = Vec::new();
    let mut crashed = false;
    let run = wait_for(ctx, Patience::of(PODS), || {
        let all = world.ask(|api| api.items(&list, &world.cancel))?;
        addresses.clear();
        let mut lacking: Vec<String> = Vec::new();
        for pod in &all {
            let node = pod["spec"]["nodeName"].as_str().unwrap_or_default();
            match (apps::pod_problem(pod), pod["status"]["podIP"].as_str()) {
                // One that is not asked about may still be asked.
                (None, Some(ip)) => addresses.push((node.to_owned(), ip.to_owned())),
                (problem, _) if nodes.iter().any(|n| n.name == node) => {
                    crashed |= problem.as_ref().is_some_and(|t| t.why == Why::Crashes);
                    lacking.push(problem.map_or("it has no address".to_owned(), |t| t.text));
                }
                _ => {}
            }
        }
        if crashed {
            // It waits for nobody, so nothing but another image mends it.
            return Ok(Ok(()));
        }
        let bare = nodes.iter().filter(|n| !all.iter().any(|p| p["spec"]["nodeName"] == n.name.as_str()));
        lacking.extend(bare.map(|n| format!("no pod is on {}", n.name)));
        Ok(lacking.into_iter().next().map_or(Ok(()), Err))
    })?;
    if crashed || run.is_err() {
        let set = world.ask(|api| api.object(&set, &world.cancel)).ok().flatten();
        let found = set.map(|set| look_at_pods(world, &set)).unwrap_or_default();
        let another = "`p1 verify --image busybox:1.36.1` or the spec's `verify: {image: busybox:1.36.1}` takes another";
        let log = found.whole_log().map_or(String::new(), |log| format!(" {log} has all that it said."));
        let hint = match found.why {
            Why::Image => {
                format!(
                    "The pods' image is {image}, which has to be where the nodes pull from; {another}, with busybox in it."
                )
            }
            Why::Crashes | Why::Ended | Why::Memory => format!(
                "The pods' image is {image}. They run it as a user without rights (65534), with a /tmp to write to, and \
                 need busybox' sh, httpd and wget in it; {another}.{log}"
            ),
            _ => format!("`p1 kubectl -n {SPACE} get events` tells more while it is tried."),
        };
        let what = match run {
            Ok(()) => "its pods crash".to_owned(),
            Err(ref why) if found.cause.is_none() => {
                format!("not every node ran a pod within {}: {why}", seconds(PODS))
            }
            Err(_) => format!("not every node ran a pod within {}", seconds(PODS)),
        };
        let cause = found.cause.map_or(what.clone(), |cause| format!("{what}: {cause}"));
        let kind = if run.is_ok() { FailureKind::Refused } else { FailureKind::bound(PODS) };
        return Err(StepError::new(cause, hint).kind(kind).evidence(tail(&found.lines.join("\n"), 12)));
    }

    let place = place("services", "answer");
    let service =
        again(ctx, ANSWERS, || world.ask(|api| api.object(&place, &world.cancel)))?.unwrap_or_default();
    let address = service["spec"]["clusterIP"].as_str().unwrap_or_default().to_owned();
    let domain = world.cluster.first_server().config.get("cluster-domain").and_then(|v| v.as_str());
    let name = match again(ctx, ANSWERS, || serves_names(world))? {
        true => format!("answer.{SPACE}.svc.{}", domain.unwrap_or("cluster.local")),
        false => String::new(),
    };
    let mut all = Vec::new();
    if !again(ctx, ANSWERS, || world.ask(|api| api.names(&policies, &world.cancel)))?.is_empty() {
        ctx.control.log("the namespace was given network policies: one more allows all in it");
        all.push(allowed());
    }
    let mut probes = Vec::new();
    for node in &nodes {
        let at = addresses.iter().position(|(name, _)| *name == node.name).unwrap_or(0);
        let others = addresses.iter().cycle().skip(at + 1).take(addresses.len().saturating_sub(1).min(PEERS));
        let peers: Vec<String> = others.map(|(node, ip)| format!("{node}={ip}")).collect();
        let env = [("P1_PEERS", peers.join(" ")), ("P1_SERVICE", address.clone()), ("P1_NAME", name.clone())];
        probes.push(probe(node, &image, &env).to_string());
    }
    all.push(stream(&probes));
    ctx.control.says("letting them ask each other");
    writes(ctx, "starting pods", &fed(&applying(None), &all.concat()))?;
    Ok(Some(format!(
        "{} of {image}{}",
        addresses.len(),
        if there { "" } else { ", pulled where it was not" }
    )))
}

/// Whether the cluster has a Service for names, k3s' or another.
fn serves_names(world: &World) -> Result<bool, StepError> {
    let all = world.ask(|api| api.items("/api/v1/services", &world.cancel))?;
    Ok(all.iter().any(|s| s["spec"]["ports"].as_array().into_iter().flatten().any(|p| p["port"] == 53)))
}

/// The classes of ingress that the cluster has.
fn classes(world: &World) -> Result<Vec<Value>, StepError> {
    world.ask(|api| api.items("/apis/networking.k8s.io/v1/ingressclasses", &world.cancel))
}

/// The class that has to be named, where none is taken by itself.
fn ingress_class(classes: &[Value]) -> Option<String> {
    let usual =
        |c: &Value| c["metadata"]["annotations"]["ingressclass.kubernetes.io/is-default-class"] == "true";
    let name = |c: &Value| c["metadata"]["name"].as_str().map(str::to_owned);
    if classes.iter().any(usual) { None } else { classes.first().and_then(name) }
}

/// What a node's pod found; waits until it has asked everybody.
fn found(ctx: &NodeCtx<'_>) -> Result<Vec<String>, StepError> {
    let (world, node) = (ctx.world, ctx.node);
    let path = place("pods", &format!("ask-{}", node.name));
    let ended = wait_for(ctx, Patience::of(ASKING), || {
        let pod = world.ask(|api| api.object(&path, &world.cancel))?;
        let Some(pod) = pod else { return Ok(Err("its pod is not there".to_owned())) };
        Ok(match pod["status"]["phase"].as_str() {
            Some("Succeeded" | "Failed") => Ok(()),
            _ => Err(match apps::pod_problem(&pod) {
                Some(problem) if problem.why != Why::Runs => problem.text,
                _ => "its pod is asking".to_owned(),
            }),
        })
    })?;
    if let Err(why) = ended {
        let pod = world.ask(|api| api.object(&path, &world.cancel)).ok().flatten().unwrap_or_default();
        let cause = format!("its pod did not end within {}: {why}", seconds(ASKING));
        let lines = look_at_pods(world, &pod).lines;
        return Err(StepError::new(cause, "")
            .kind(FailureKind::bound(ASKING))
            .evidence(tail(&lines.join("\n"), 12)));
    }
    let name = format!("ask-{}", node.name);
    let log =
        again(ctx, ANSWERS, || world.ask(|api| api.log(SPACE, &name, "ask", false, 100, &world.cancel)))?;
    Ok(log.lines().map(str::to_owned).collect())
}

/// The answers to questions whose name begins so, or why one was not answered.
fn answers(ctx: &NodeCtx<'_>, what: &str, hint: &str) -> Result<Vec<String>, StepError> {
    let lines = found(ctx)?;
    if lines.last().map(String::as_str) != Some("end") {
        return Err(StepError::new("its pod ended before it had asked everybody", "").evidence(lines));
    }
    let mut good = Vec::new();
    let mut bad = Vec::new();
    for line in lines.iter().filter(|l| l.split([' ', '/']).next() == Some(what)) {
        match line.split_once(" ok ") {
            Some((_, by)) => good.push(by.to_owned()),
            None => bad.push(line.clone()),
        }
    }
    if let Some(first) = bad.first() {
        let (asked, why) = first.split_once(" failed").unwrap_or((first, ""));
        let asked = asked.strip_prefix("pod/").map_or(asked.to_owned(), |node| format!("the pod on {node}"));
        let more = if bad.len() > 1 { format!(" (and {} more)", bad.len() - 1) } else { String::new() };
        let why = if why.trim().is_empty() { "no answer" } else { why.trim() };
        return Err(
            StepError::new(format!("{asked} does not answer to it{more}: {why}"), hint).evidence(lines)
        );
    }
    // None where there is nobody else, and no names without a DNS.
    Ok(good)
}

/// The value of a setting of k3s as text.
fn setting<'a>(world: &'a World, key: &str) -> Option<&'a str> {
    world.cluster.first_server().config.get(key).and_then(|v| v.as_str())
}

/// Whether a setting of k3s is switched on.
fn switched(world: &World, key: &str) -> bool {
    let value = world.cluster.first_server().config.get(key);
    value.is_some_and(|v| v.as_bool() == Some(true) || v.as_str() == Some("true"))
}

fn network(ctx: &NodeCtx<'_>) -> Result<Option<String>, StepError> {
    // docs.k3s.io/installation/requirements, "Networking".
    let way = match setting(ctx.world, "flannel-backend").unwrap_or("vxlan") {
        "none" => {
            "The pods' network is your own plugin's: its pods have to run on every node, and what it sends between \
                   nodes must not be closed: `p1 kubectl -n kube-system get pods -o wide`"
        }
        "wireguard-native" => {
            "Between nodes 51820/udp has to be open for the pods' network (WireGuard), and the address that \
                               each node sends from has to be its own in the spec's network: `p1 exec --root -- ip -d link show`"
        }
        "host-gw" => {
            "The pods' network (host-gw) needs every node in one network, and nothing between them that drops what \
                      is not addressed to a node: `p1 exec --root -- ip route`"
        }
        _ => {
            "Between nodes 8472/udp has to be open for the pods' network (flannel), and the address that each node \
              sends from has to be its own in the spec's network: `p1 exec --root -- ip -d link show flannel.1`"
        }
    };
    let all = answers(ctx, "pod", &format!("{way}."))?;
    Ok(Some(match all.len() {
        0 => "there is no other node".to_owned(),
        n => format!("{n} answered"),
    }))
}

fn service(ctx: &NodeCtx<'_>) -> Result<Option<String>, StepError> {
    let range = setting(ctx.world, "service-cidr").unwrap_or("10.43.0.0/16");
    let hint = match switched(ctx.world, "disable-kube-proxy") {
        true => {
            format!("Without kube-proxy it is the network plugin that has to serve {range}: look at its log.")
        }
        false => format!(
            "Services are made by kube-proxy, which is a part of k3s: `p1 exec --root -- iptables-save` has to name \
             p1-verify, and a firewall must let {range} through."
        ),
    };
    Ok(Some(format!("answered by {}", answers(ctx, "service", &hint)?.join(", "))))
}

fn dns(ctx: &NodeCtx<'_>) -> Result<Option<String>, StepError> {
    let hint =
        "Names are CoreDNS' business: `p1 kubectl -n kube-system get pods -l k8s-app=kube-dns`, and its log.";
    Ok(Some(match answers(ctx, "dns", hint)? {
        none if none.is_empty() => "the cluster has no Service for names".to_owned(),
        by => format!("answered by {}", by.join(", ")),
    }))
}

/// What the cluster has of an ingress.
#[derive(Debug, PartialEq)]
enum Way {
    /// Nothing, and nothing brings one.
    None,
    /// Something that cannot be reached from outside.
    Inside(String),
    /// Not yet, and why.
    Soon(String),
    /// At these addresses.
    At(Vec<SocketAddr>),
}

/// What was seen of it in the cluster.
#[derive(Default)]
struct Outside {
    /// k3s' HelmChart for Traefik.
    chart: bool,
    classes: Vec<Value>,
    services: Vec<Value>,
    /// The DaemonSets that k3s' load balancer makes, by their Services' names.
    balanced: Vec<String>,
    /// This verify's own Ingress.
    ingress: Value,
    /// Where nodes are that are Ready.
    nodes: Vec<IpAddr>,
}

impl Outside {
    fn look(world: &World) -> Result<Self, StepError> {
        let object = |path: &str| world.ask(|api| api.object(path, &world.cancel));
        let items = |path: &str| world.ask(|api| api.items(path, &world.cancel));
        let sets = items("/apis/apps/v1/daemonsets")?;
        let of = |set: &Value| {
            set["metadata"]["labels"]["svccontroller.k3s.cattle.io/svcname"].as_str().map(str::to_owned)
        };
        Ok(Self {
            chart: object("/apis/helm.cattle.io/v1/namespaces/kube-system/helmcharts/traefik")?.is_some(),
            classes: classes(world)?,
            services: items("/api/v1/services")?,
            balanced: sets.iter().filter_map(of).collect(),
            ingress: object(&format!("/apis/networking.k8s.io/v1/namespaces/{SPACE}/ingresses/answer"))?
                .unwrap_or_default(),
            nodes: world.nodes()?.iter().filter(|n| n.ready).filter_map(|n| n.internal_ip).collect(),
        })
    }

    /// The way in; `early` as long as what is missing may still come.
    fn way(&self, early: bool) -> Way {
        let named = |name: &str| {
            let ours =
                |s: &&Value| s["metadata"]["namespace"] == "kube-system" && s["metadata"]["name"] == name;
            self.services.iter().find(ours)
        };
        let traefik = named("traefik");
        if self.classes.is_empty() && !self.chart && traefik.is_none() {
            return if early { Way::Soon("the cluster has no ingress controller".into()) } else { Way::None };
        }
        // Where the controller itself says that it offers this Ingress, else where Traefik's Service is.
        let own = offered(&self.ingress);
        if !own.is_empty() {
            let port = |ip: &IpAddr| {
                let at = |s: &&Value| offered(s).contains(ip) && web(s).is_some();
                self.services.iter().find(at).and_then(web).and_then(|p| number(&p["port"])).unwrap_or(80)
            };
            return Way::At(own.iter().map(|ip| SocketAddr::new(*ip, port(ip))).collect());
        }
        let Some(service) = traefik else {
            let class =
                self.classes.first().and_then(|c| c["metadata"]["name"].as_str()).unwrap_or("traefik");
            return match early || self.chart {
                true => Way::Soon(format!("{class} offers the Ingress nowhere yet")),
                false => Way::Inside(format!("{class} does not say where it offers an Ingress")),
            };
        };
        let port = web(service);
        let doors = offered(service);
        if !doors.is_empty() {
            let port = port.and_then(|p| number(&p["port"])).unwrap_or(80);
            return Way::At(doors.into_iter().map(|ip| SocketAddr::new(ip, port)).collect());
        }
        if early || self.balanced.iter().any(|name| name == "traefik") {
            return Way::Soon("traefik's Service has no address outside".into());
        }
        // Nothing gives it one: it is reached at the nodes.
        match (port.and_then(|p| number(&p["nodePort"])), self.nodes.is_empty()) {
            (Some(port), false) => Way::At(self.nodes.iter().map(|ip| SocketAddr::new(*ip, port)).collect()),
            _ => Way::Inside("traefik's Service has no address outside, and nothing gives it one".into()),
        }
    }
}

/// The addresses at which a Service or an Ingress is offered to the outside.
fn offered(object: &Value) -> Vec<IpAddr> {
    let all = object["status"]["loadBalancer"]["ingress"].as_array().into_iter().flatten();
    all.filter_map(|d| d["ip"].as_str()?.parse().ok()).collect()
}

/// The port of a Service for plain HTTP.
fn web(service: &Value) -> Option<&Value> {
    let ports = service["spec"]["ports"].as_array()?;
    let is = |p: &&Value| p["name"] == "web" || p["name"] == "http" || p["port"] == 80;
    ports.iter().find(is)
}

fn number(value: &Value) -> Option<u16> {
    value.as_u64().and_then(|n| u16::try_from(n).ok())
}

/// Through the addresses at which the cluster itself says that it is offered to the outside. Whether there is
/// an ingress at all is asked of it as well: many settings, and their owner by hand, decide it.
fn ingress(ctx: &Ctx<'_>) -> Result<Option<String>, StepError> {
    let world = ctx.world;
    if targets(world).is_empty() {
        return Ok(Some("none of these machines runs pods".into()));
    }
    let begun = std::time::Instant::now();
    let space = again(ctx, ANSWERS, || {
        world.ask(|api| api.metadata("/api/v1/namespaces/kube-system", &world.cancel))
    })?;
    let made = space.as_ref().and_then(|s| s["metadata"]["creationTimestamp"].as_str()?.parse().ok());
    let age = made.map(|made| world.now().duration_since(made).unsigned_abs());
    let young = age.is_none_or(|age| age < YOUNG);
    let outcome = wait_for(ctx, Patience::of(INGRESS), || {
        let doors = match Outside::look(world)?.way(young && begun.elapsed() < GRACE) {
            Way::None => return Ok(Ok("the cluster has no ingress controller".to_owned())),
            Way::Inside(why) => return Ok(Ok(format!("not tried: {why}"))),
            Way::Soon(why) => return Ok(Err(why)),
            Way::At(doors) => doors,
        };
        let mut by = Vec::new();
        for door in &doors {
            match ask(world, *door, &world.cancel) {
                Ok(Answer::Page(text)) => match text.trim().strip_prefix(WORD) {
                    Some(node) => by.push(node.trim().to_owned()),
                    None => return Ok(Err(format!("{door} answers something else: {}", first_line(&text)))),
                },
                Ok(Answer::Elsewhere(place)) => by.push(format!("a redirect to {place}")),
                Err(why) => return Ok(Err(format!("{door} does not answer: {why}"))),
            }
        }
        let doors: Vec<String> =
            doors.iter().map(|d| d.to_string().trim_end_matches(":80").to_owned()).collect();
        Ok(Ok(format!("{} answered by {}", doors.join(", "), by.join(", "))))
    })?;
    outcome.map(Some).map_err(|why| {
        let hint = "`p1 kubectl get ingressclasses` and `p1 kubectl -n kube-system get pods,jobs,services` show how far \
                    it is.";
        let set = "/apis/apps/v1/namespaces/kube-system/deployments/traefik";
        let set = world.ask(|api| api.object(set, &world.cancel)).ok().flatten();
        let found = set.map(|set| look_at_pods(world, &set)).unwrap_or_default();
        let cause = found.cause.filter(|_| found.why != Why::Begins).map_or(String::new(), |c| format!(" ({c})"));
        let cause = format!("not reached through the ingress within {}: {why}{cause}", seconds(INGRESS));
        let kind = FailureKind::bound(INGRESS);
        StepError::new(cause, hint).kind(kind).evidence(tail(&found.lines.join("\n"), 12))
    })
}

/// What an ingress says to one request.
enum Answer {
    Page(String),
    /// To HTTPS, which it is set to do for all.
    Elsewhere(String),
}

fn first_line(text: &str) -> String {
    text.lines().next().unwrap_or_default().chars().take(80).collect()
}

/// One request by HTTP for the Ingress' name; through SSH where this host has no way there.
fn ask(world: &World, door: SocketAddr, cancel: &Cancel) -> Result<Answer, String> {
    let bound = Duration::from_secs(5);
    let server = world.cluster.first_server();
    // At a fork's addresses this host reaches its original.
    let direct = match world.cluster.fork {
        Some(_) => Err(std::io::ErrorKind::HostUnreachable.into()),
        None => TcpStream::connect_timeout(&door, Duration::from_secs(2)),
    };
    let tunnel;
    let mut stream = match direct {
        Ok(stream) => stream,
        Err(_) => {
            tunnel = world
                .on(server, |r| r.tunnel(&door.ip().to_string(), door.port()))
                .map_err(|t| t.failure.cause)?;
            TcpStream::connect_timeout(&tunnel.address(), bound).map_err(|e| e.to_string())?
        }
    };
    let _end = stream.try_clone().map(|s| cancel.on_abort(move || _ = s.shutdown(std::net::Shutdown::Both)));
    let io = |e: std::io::Error| match e.kind() {
        std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut => "it was silent for 5s".to_owned(),
        _ => e.to_string(),
    };
    stream.set_read_timeout(Some(bound)).and_then(|()| stream.set_write_timeout(Some(bound))).map_err(io)?;
    write!(stream, "GET / HTTP/1.0\r\nHost: {HOST}\r\nConnection: close\r\n\r\n").map_err(io)?;
    let mut bytes = Vec::new();
    stream.take(64 << 10).read_to_end(&mut bytes).map_err(io)?;
    let text = String::from_utf8_lossy(&bytes);
    let (head, body) = text.split_once("\r\n\r\n").unwrap_or((&text, ""));
    let status = head.split_whitespace().nth(1).unwrap_or_default();
    let there =
        head.lines().find_map(|l| l.split_once(':').filter(|(k, _)| k.eq_ignore_ascii_case("location")));
    match (status, there.map(|(_, place)| place.trim())) {
        ("200", _) => Ok(Answer::Page(body.to_owned())),
        ("301" | "302" | "307" | "308", Some(place)) if place.starts_with(&format!("https://{HOST}")) => {
            Ok(Answer::Elsewhere(place.to_owned()))
        }
        _ => Err(format!("it says {}", first_line(head))),
    }
}

fn steady(ctx: &NodeCtx<'_>) -> Result<Option<String>, StepError> {
    let (world, node) = (ctx.world, ctx.node);
    let before = world.seen().run.proven.get(&node.name).cloned().unwrap_or_default();
    let now = again(ctx, ANSWERS, || world.look_at_node(node))?.unit(node.role.unit());
    match unsteady(&before, &now) {
        None => Ok(Some("not restarted".into())),
        Some(why) => Err(StepError::new(why, format!("`p1 logs {}` shows what happened.", node.name))),
    }
}

fn unsteady(before: &Unit, now: &Unit) -> Option<String> {
    if now.active != Activity::Active {
        return Some(format!("its unit is {} now", now.active));
    }
    (before.invocation != now.invocation || before.restarts != now.restarts)
        .then(|| "k3s was restarted while the cluster was being proven".to_owned())
}

fn removal() -> String {
    format!("k3s kubectl delete namespace {SPACE} --ignore-not-found --wait=false\n")
}

/// Runs after a failure and after a wish to stop as well, and by a connection of its own, which that
/// wish does not end.
fn clean(ctx: &Ctx<'_>) -> Result<Option<String>, StepError> {
    let world = ctx.world;
    let space = format!("/api/v1/namespaces/{SPACE}");
    let apart = Cancel::new();
    if let Ok(None) = world.ask(|api| api.metadata(&space, &apart)) {
        return Ok(Some("nothing was made".into()));
    }
    let login: Login = world.login(world.server(Via::Any)?)?;
    let mut remote = Remote::new(login, apart);
    remote
        .script("removing what this made", &removal(), true, SCRIPT_TIMEOUT, &mut |line| {
            ctx.control.log(line)
        })?
        .ok()?;
    Ok(Some(format!("the namespace {SPACE}")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::fixture::cluster;

    #[test]
    fn whether_there_is_an_ingress_is_told_by_the_cluster() {
        let service = |status: Value, node_port: Value| {
            json!({"metadata": {"namespace": "kube-system", "name": "traefik"}, "status": status,
                "spec": {"ports": [{"name": "web", "port": 80, "nodePort": node_port}, {"name": "websecure", "port": 443}]}})
        };
        let at = |ip: &str| json!({"loadBalancer": {"ingress": [{"ip": ip}]}});
        let class = |name: &str| json!({"metadata": {"name": name}});
        let doors = |all: &[&str]| Way::At(all.iter().map(|d| d.parse().unwrap()).collect());
        let nodes = vec!["10.0.0.1".parse().unwrap(), "10.0.0.2".parse().unwrap()];
        let seen = |change: &dyn Fn(&mut Outside)| {
            let mut seen = Outside { nodes: nodes.clone(), ..Outside::default() };
            change(&mut seen);
            seen
        };
        // Without the Helm controller nothing brings Traefik, whatever the settings say of it.
        let bare = seen(&|_| {});
        assert!(matches!(bare.way(true), Way::Soon(_)));
        assert_eq!(bare.way(false), Way::None);
        // Its chart is there: it is on its way, however long that takes.
        let chart = seen(&|s| s.chart = true);
        assert!(matches!(chart.way(false), Way::Soon(_)));
        let whole = seen(&|s| (s.chart, s.services) = (true, vec![service(at("10.0.0.9"), json!(30_080))]));
        assert_eq!(whole.way(true), doors(&["10.0.0.9:80"]));
        // Nothing gives it an address: at the nodes, unless k3s' load balancer is about to.
        let mut alone = seen(&|s| s.services = vec![service(json!({}), json!(30_080))]);
        assert!(matches!(alone.way(true), Way::Soon(_)));
        assert_eq!(alone.way(false), doors(&["10.0.0.1:30080", "10.0.0.2:30080"]));
        alone.balanced = vec!["traefik".into()];
        assert!(matches!(alone.way(false), Way::Soon(_)));
        assert!(matches!(
            seen(&|s| s.services = vec![service(json!({}), json!(null))]).way(false),
            Way::Inside(_)
        ));
        // Another's controller says itself where it is; one that does not cannot be tried.
        let mut other = seen(&|s| s.classes = vec![class("nginx")]);
        assert!(matches!(other.way(true), Way::Soon(_)) && matches!(other.way(false), Way::Inside(_)));
        other.ingress = json!({"status": at("10.0.0.7")});
        assert_eq!(other.way(false), doors(&["10.0.0.7:80"]));
        assert_eq!(ingress_class(&other.classes).as_deref(), Some("nginx"));
        let usual = json!({"metadata": {"name": "traefik", "annotations": {"ingressclass.kubernetes.io/is-default-class": "true"}}});
        assert_eq!(ingress_class(&[class("nginx"), usual]), None);
    }

    #[test]
    fn the_image_is_one_that_is_there_or_comes_from_where_k3s_own_came() {
        let cluster = cluster(1);
        let nodes: Vec<&Node> = cluster.nodes.iter().collect();
        let objects = |all: [&[&str]; 2]| -> Vec<Value> {
            let object = |(node, names): (&&Node, &&[&str])| json!({"metadata": {"name": node.name}, "status": {"images": [{"names": names}]}});
            nodes.iter().zip(all.iter()).map(object).collect()
        };
        let of = |all: [&[&str]; 2]| image_of(&objects(all), &nodes);
        let (mirrored, exporter) =
            ("docker.io/rancher/mirrored-library-busybox:1.36.1", "x.io/busybox-exporter:1");
        assert_eq!(of([&[mirrored], &[mirrored, exporter]]), (mirrored.to_owned(), true));
        assert_eq!(of([&[mirrored], &[exporter]]), (mirrored.to_owned(), false));
        assert_eq!(of([&[exporter], &[]]), (IMAGE.to_owned(), false));
        let own = "reg.local:5000/rancher/mirrored-pause:3.6";
        assert_eq!(of([&[own], &[]]), (format!("reg.local:5000/{IMAGE}"), false));
    }

    #[test]
    fn a_restart_in_between_is_seen() {
        let unit = |invocation: &str, active: &str| Unit {
            invocation: invocation.into(),
            active: active.into(),
            ..Unit::default()
        };
        assert_eq!(unsteady(&unit("a", "active"), &unit("a", "active")), None);
        assert!(unsteady(&unit("a", "active"), &unit("b", "active")).unwrap().contains("restarted"));
        assert!(unsteady(&unit("a", "active"), &unit("a", "failed")).unwrap().contains("failed"));
    }

    /// The script that pods run, with a `wget` that answers for some.
    #[test]
    fn a_pod_says_who_answered_and_who_did_not() {
        let mut resolv = tempfile::NamedTempFile::new().unwrap();
        let text = "search p1-verify.svc.name.example svc.name.example name.example\nnameserver 10.43.0.10\n";
        resolv.write_all(text.as_bytes()).unwrap();
        let script = format!(
            "wget() {{ for last; do :; done; case $last in *10.42.0.2*) echo p1-verify server ;; *//answer.p1-verify.svc.name.example/*) echo p1-verify worker ;; \
             *) echo 'wget: timed out' >&2; return 1 ;; esac; }}\nsleep() {{ :; }}\n\
             P1_RESOLV={} P1_PEERS='server=10.42.0.2 other=10.42.9.9' P1_SERVICE=10.43.1.1 P1_NAME=x\n{ASK}\n\
             P1_RESOLV=/nowhere P1_PEERS= P1_NAME=\n{ASK}\n",
            resolv.path().display()
        );
        let cmd = crate::os::process::Cmd::new("sh").stdin(script);
        let done = crate::os::process::run(&cmd, Duration::from_secs(20), &Cancel::new()).unwrap();
        assert_eq!(
            done.stdout,
            "pod/server ok server\npod/other failed wget: timed out\nservice failed wget: timed out\ndns ok worker\nend\n\
             service failed wget: timed out\nend\n"
        );
    }

    #[test]
    fn what_is_applied_is_json_of_kubernetes() {
        for document in responders("busybox", None).split("---\n").skip(1) {
            let value: Value = serde_json::from_str(document).unwrap();
            assert!(value["kind"].is_string() && value["metadata"]["name"].is_string());
        }
        let node = &cluster(0).nodes[0];
        assert_eq!(probe(node, "busybox", &[])["spec"]["nodeName"], "server");
    }
}
