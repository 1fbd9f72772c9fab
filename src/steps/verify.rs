//! `p1 verify`: the cluster works, proven by using it.
//!
//! A pod on every node answers on its own address and behind a Service; a second one on every node asks
//! all of them, the Service by address and by name. What the second ones found is read from their
//! logs, over the API. All of it lies in one namespace, which goes at the end, whatever came of it; what a
//! verify that was killed left is taken away by the next one.
//!
//! A proof is of its moment: every step is due again at every run, a retry included.

use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::time::Duration;

use serde_json::{Value, json};

use super::manifests::{applying, fed, kubectl, stream};
use super::ready::wrong;
use super::rollouts::look_at_pods;
use super::wait::{Patience, wait_for};
use super::world::SHORT;
use super::{Ctx, Definition, View, World};
use crate::api::Client;
use crate::apps::{self, Secrets};
use crate::engine::Trouble;
use crate::explain::{seconds, times};
use crate::facts::Unit;
use crate::os::Cancel;
use crate::os::process::tail;
use crate::plan::{After, Check, Scope, Shape};
use crate::providers::State;
use crate::spec::{Cluster, Node};
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
/// For a namespace to be gone.
const GONE: Duration = Duration::from_secs(120);

const fn step(
    name: &'static str,
    title: &'static str,
    scope: Scope,
    after: &'static [After],
    apply: fn(&Ctx<'_>) -> Result<Option<String>, Trouble>,
) -> Definition {
    Definition {
        shape: Shape { name, title, scope, after, serves: false },
        retry: false,
        check: asked,
        inputs,
        apply,
    }
}

/// Every node is as it should be.
pub const HEALTHY: Definition = step("healthy", "be Ready and active", Scope::Nodes, &[], healthy);
/// A pod on every node.
pub const PODS_RUN: Definition =
    step("pods", "run a pod on every node", Scope::Cluster, &[After::Node("healthy")], pods);
/// Pods reach each other.
pub const PEERS_ANSWER: Definition =
    step("network", "reach the other nodes' pods", Scope::Nodes, &[After::Cluster("pods")], network);
/// And a Service by its address.
pub const SERVICE: Definition =
    step("service", "reach a Service by its address", Scope::Nodes, &[After::Cluster("pods")], service);
/// And by its name.
pub const NAME: Definition =
    step("dns", "reach a Service by its name", Scope::Nodes, &[After::Cluster("pods")], dns);
/// From outside.
pub const OUTSIDE: Definition = Definition {
    check: ingress_wanted,
    ..step("ingress", "reach it through the ingress", Scope::Cluster, &[After::Cluster("pods")], ingress)
};
/// Nothing was restarted meanwhile.
pub const STEADY: Definition = step(
    "steady",
    "be steady meanwhile",
    Scope::Nodes,
    &[After::Node("network"), After::Node("service"), After::Node("dns"), After::Cluster("ingress")],
    steady,
);
/// Nothing is left.
pub const CLEAN: Definition = step(
    "clean",
    "remove what this made",
    Scope::Cluster,
    &[
        After::Ended("healthy"),
        After::Cluster("pods"),
        After::Ended("network"),
        After::Ended("service"),
        After::Ended("dns"),
        After::Cluster("ingress"),
        After::Ended("steady"),
    ],
    clean,
);

fn asked(_: &View<'_>, _: Option<&Node>) -> Check {
    Check::Needed("asked for".into())
}

/// Whether k3s brings Traefik, and what gives it addresses outside.
fn ingress_wanted(view: &View<'_>, _: Option<&Node>) -> Check {
    let config = &view.cluster.first_server().config;
    let values = ["disable", "disable+"].iter().filter_map(|key| config.get(*key));
    let words = values.flat_map(|v| v.as_sequence().map_or_else(|| vec![v.clone()], Clone::clone));
    let off: Vec<String> = words
        .filter_map(|w| w.as_str().map(str::to_owned))
        .flat_map(|w| w.split(',').map(|w| w.trim().to_owned()).collect::<Vec<_>>())
        .collect();
    match ["traefik", "servicelb"].iter().find(|name| off.iter().any(|o| o == *name)) {
        Some(name) => Check::Done(format!("the spec disables {name}")),
        None => Check::Needed("asked for".into()),
    }
}

/// Another one at every run.
fn inputs(_: &Cluster, _: Option<&Node>) -> Value {
    json!(jiff::Timestamp::now().as_nanosecond().to_string())
}

/// The nodes that are looked at.
fn targets(world: &World) -> Vec<&Node> {
    let chosen = &world.seen().doomed;
    world.cluster.nodes.iter().filter(|n| chosen.contains(&n.name)).collect()
}

fn healthy(ctx: &Ctx<'_>) -> Result<Option<String>, Trouble> {
    let (world, node) = (ctx.world, ctx.node());
    let state = world.seen().machines.get(&node.name).map_or(State::Absent, |m| m.state.clone());
    if state != State::Running {
        return Err(Trouble::new(format!("the machine is {state}"), "`p1 up` brings it up."));
    }
    let facts = world.look_at_node(node)?;
    let unit = facts.unit(node.role.unit());
    if unit.active != "active" {
        let state = if unit.active.is_empty() { "not there" } else { &unit.active };
        return Err(Trouble::new(
            format!("its unit {} is {state}", node.role.unit()),
            format!("`p1 logs {}` shows why; `p1 up` starts it.", node.name),
        ));
    }
    let nodes = world.api()?.nodes(&world.cancel)?;
    let status = nodes.iter().find(|n| n.name == node.name);
    if let Some(why) = wrong(node, world.seen().version.as_deref(), status) {
        return Err(Trouble::new(why, "`p1 up` mends what it can, and says why if it cannot."));
    }
    if unit.restarts > 0 {
        ctx.control
            .warn(format!("k3s was started again by systemd {} since it was started.", times(unit.restarts)));
    }
    world.note(|seen| {
        seen.proven.insert(node.name.clone(), unit);
    });
    let status = status.expect("it is not wrong");
    if status.unschedulable {
        ctx.control.warn("It is cordoned: nothing new is put on it.");
    }
    Ok(Some(format!("{} at {}", status.version, node.ip)))
}

/// The image of the pods: what the user wants, or what all nodes have, or what is to be pulled.
fn image(world: &World, api: &Client, nodes: &[&Node]) -> Result<(String, bool), Trouble> {
    let seen = world.seen();
    if let Some(image) = seen.subject.clone().or_else(|| world.cluster.verify.image.clone()) {
        return Ok((image, false));
    }
    let all = api.items("/api/v1/nodes", &world.cancel)?;
    let on = |node: &&Node| -> Vec<String> {
        let object = all.iter().find(|o| o["metadata"]["name"] == node.name.as_str());
        let images = object.into_iter().flat_map(|o| o["status"]["images"].as_array().into_iter().flatten());
        let names = images.flat_map(|i| i["names"].as_array().into_iter().flatten());
        names
            .filter_map(Value::as_str)
            .filter(|n| n.contains("busybox") && !n.contains('@'))
            .map(str::to_owned)
            .collect()
    };
    let has: Vec<Vec<String>> = nodes.iter().map(on).collect();
    let mut names: Vec<&String> = has.iter().flatten().collect();
    names.sort();
    names.dedup();
    if let Some(name) = names.iter().find(|name| has.iter().all(|h| h.contains(name))) {
        return Ok(((*name).clone(), true));
    }
    let name = names.first().map_or(IMAGE.to_owned(), |n| (*n).clone());
    let registry =
        world.cluster.first_server().config.get("system-default-registry").and_then(|v| v.as_str());
    Ok((
        match registry.filter(|_| names.is_empty()) {
            Some(registry) => format!("{registry}/{name}"),
            None => name,
        },
        false,
    ))
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

/// Asks one after the other; a line for each: `WHAT ok ANSWER` or `WHAT failed WHY`.
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
try dns "$P1_NAME"
echo end"#;

fn responders(image: &str) -> String {
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

fn place(kind: &str, name: &str) -> String {
    format!("/api/v1/namespaces/{SPACE}/{kind}/{name}")
}

fn pods(ctx: &Ctx<'_>) -> Result<Option<String>, Trouble> {
    let world = ctx.world;
    let api = world.api()?;
    let nodes = targets(world);
    let space = format!("/api/v1/namespaces/{SPACE}");
    if api.metadata(&space, &world.cancel)?.is_some() {
        ctx.control.says("removing what an earlier verify left");
        kubectl(ctx, "removing what an earlier verify left", &removal(), &Secrets::default())?;
        let gone = wait_for(ctx, Patience::of(GONE), || {
            let left = api.metadata(&space, &world.cancel)?;
            Ok(left.map_or(Ok(()), |_| Err("waiting for an earlier verify's namespace to go".to_owned())))
        })?;
        if let Err(why) = gone {
            let hint = format!("Something holds the namespace: p1 kubectl get namespace {SPACE} -o yaml");
            return Err(Trouble::new(format!("not gone within {}: {why}", seconds(GONE)), hint));
        }
    }
    let (image, there) = image(world, &api, &nodes)?;
    ctx.control.log(&format!(
        "image {image}, {}",
        if there { "which every node has" } else { "to be pulled where it is not" }
    ));
    ctx.control.says(format!("starting pods of {image}"));
    kubectl(ctx, "starting pods", &fed(&applying(None), &responders(&image)), &Secrets::default())?;

    let list = format!("/api/v1/namespaces/{SPACE}/pods?labelSelector=app%3D{WORD}");
    let mut addresses: Vec<(String, String)> = Vec::new();
    let run = wait_for(ctx, Patience::of(PODS), || {
        let all = api.items(&list, &world.cancel)?;
        addresses.clear();
        let mut lacking: Vec<String> = Vec::new();
        for pod in &all {
            let node = pod["spec"]["nodeName"].as_str().unwrap_or_default();
            match (apps::trouble(pod), pod["status"]["podIP"].as_str()) {
                // One that is not asked about may still be asked.
                (None, Some(ip)) => addresses.push((node.to_owned(), ip.to_owned())),
                (trouble, _) if nodes.iter().any(|n| n.name == node) => {
                    lacking.push(trouble.map_or("it has no address".to_owned(), |t| t.text));
                }
                _ => {}
            }
        }
        let bare = nodes.iter().filter(|n| !all.iter().any(|p| p["spec"]["nodeName"] == n.name.as_str()));
        lacking.extend(bare.map(|n| format!("no pod is on {}", n.name)));
        Ok(lacking.into_iter().next().map_or(Ok(()), Err))
    })?;
    if let Err(why) = run {
        let set =
            api.object(&format!("/apis/apps/v1/namespaces/{SPACE}/daemonsets/answer"), &world.cancel)?;
        let found = set.map(|set| look_at_pods(world, &api, &set)).unwrap_or_default();
        let hint = if why.contains("Image") || why.contains("ImagePull") {
            format!(
                "The pods' image is {image}; `--image` or the spec's `verify: {{image: ..}}` names another with busybox in it."
            )
        } else {
            String::new()
        };
        let cause = format!("not every node ran a pod within {}: {why}", seconds(PODS));
        return Err(Trouble::new(cause, hint).evidence(tail(&found.lines.join("\n"), 12)));
    }

    let service = api.object(&place("services", "answer"), &world.cancel)?.unwrap_or_default();
    let address = service["spec"]["clusterIP"].as_str().unwrap_or_default().to_owned();
    let domain = world.cluster.first_server().config.get("cluster-domain").and_then(|v| v.as_str());
    let name = format!("answer.{SPACE}.svc.{}", domain.unwrap_or("cluster.local"));
    let mut all = Vec::new();
    for node in &nodes {
        let at = addresses.iter().position(|(name, _)| *name == node.name).unwrap_or(0);
        let others = addresses.iter().cycle().skip(at + 1).take(addresses.len().saturating_sub(1).min(PEERS));
        let peers: Vec<String> = others.map(|(node, ip)| format!("{node}={ip}")).collect();
        let env = [("P1_PEERS", peers.join(" ")), ("P1_SERVICE", address.clone()), ("P1_NAME", name.clone())];
        all.push(probe(node, &image, &env).to_string());
    }
    ctx.control.says("letting them ask each other");
    kubectl(ctx, "starting pods", &fed(&applying(None), &stream(&all)), &Secrets::default())?;
    Ok(Some(format!(
        "{} of {image}{}",
        addresses.len(),
        if there { "" } else { ", pulled where it was not" }
    )))
}

/// What a node's pod found; waits until it has asked everybody.
fn found(ctx: &Ctx<'_>) -> Result<Vec<String>, Trouble> {
    let (world, node) = (ctx.world, ctx.node());
    let api = world.api()?;
    let path = place("pods", &format!("ask-{}", node.name));
    let ended = wait_for(ctx, Patience::of(ASKING), || {
        let pod = api.object(&path, &world.cancel)?;
        let Some(pod) = pod else { return Ok(Err("its pod is not there".to_owned())) };
        Ok(match pod["status"]["phase"].as_str() {
            Some("Succeeded" | "Failed") => Ok(()),
            _ => Err(match apps::trouble(&pod) {
                Some(trouble) if !trouble.text.contains("runs and is not ready") => trouble.text,
                _ => "its pod is asking".to_owned(),
            }),
        })
    })?;
    if let Err(why) = ended {
        let pod = api.object(&path, &world.cancel)?.unwrap_or_default();
        let cause = format!("its pod did not end within {}: {why}", seconds(ASKING));
        return Err(
            Trouble::new(cause, "").evidence(tail(&look_at_pods(world, &api, &pod).lines.join("\n"), 12))
        );
    }
    let log = api.log(SPACE, &format!("ask-{}", node.name), "ask", false, 100, &world.cancel)?;
    Ok(log.lines().map(str::to_owned).collect())
}

/// The answers to questions whose name begins so, or why one was not answered.
fn answers(ctx: &Ctx<'_>, what: &str, hint: &str) -> Result<Vec<String>, Trouble> {
    let lines = found(ctx)?;
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
        return Err(Trouble::new(format!("{asked} does not answer to it{more}: {why}"), hint).evidence(lines));
    }
    // A cluster of one node has nobody else.
    if good.is_empty() && what != "pod" {
        return Err(Trouble::new("its pod asked nobody", "").evidence(lines));
    }
    Ok(good)
}

fn network(ctx: &Ctx<'_>) -> Result<Option<String>, Trouble> {
    let hint = "Between nodes 8472/udp has to be open for the pods' network (flannel), and the address that each node \
                sends from has to be its own in the spec's network: `p1 exec --root -- ip -d link show flannel.1`.";
    let all = answers(ctx, "pod", hint)?;
    Ok(Some(match all.len() {
        0 => "there is no other node".to_owned(),
        n => format!("{n} answered"),
    }))
}

fn service(ctx: &Ctx<'_>) -> Result<Option<String>, Trouble> {
    let hint = "Services are made by kube-proxy, which is a part of k3s: `p1 exec --root -- iptables-save` has to name \
                p1-verify, and a firewall must let 10.43.0.0/16 through.";
    Ok(Some(format!("answered by {}", answers(ctx, "service", hint)?.join(", "))))
}

fn dns(ctx: &Ctx<'_>) -> Result<Option<String>, Trouble> {
    let hint =
        "Names are CoreDNS' business: `p1 kubectl -n kube-system get pods -l k8s-app=kube-dns`, and its log.";
    Ok(Some(format!("answered by {}", answers(ctx, "dns", hint)?.join(", "))))
}

/// Through the addresses at which the ingress controller's Service is offered to the outside.
fn ingress(ctx: &Ctx<'_>) -> Result<Option<String>, Trouble> {
    let world = ctx.world;
    let api = world.api()?;
    let path = "/api/v1/namespaces/kube-system/services/traefik";
    let mut doors: Vec<IpAddr> = Vec::new();
    let outcome = wait_for(ctx, Patience::of(INGRESS), || {
        let Some(service) = api.object(path, &world.cancel)? else {
            return Ok(Err("traefik's Service is not there".to_owned()));
        };
        let all = service["status"]["loadBalancer"]["ingress"].as_array().into_iter().flatten();
        doors = all.filter_map(|d| d["ip"].as_str()?.parse().ok()).collect();
        if doors.is_empty() {
            return Ok(Err("traefik's Service has no address outside".to_owned()));
        }
        let mut by = Vec::new();
        for door in &doors {
            match ask(world, *door, &world.cancel) {
                Ok(text) => match text.trim().strip_prefix(WORD) {
                    Some(node) => by.push(node.trim().to_owned()),
                    None => return Ok(Err(format!("{door} answers something else: {}", first_line(&text)))),
                },
                Err(why) => return Ok(Err(format!("{door} does not answer: {why}"))),
            }
        }
        Ok(Ok(by))
    })?;
    match outcome {
        Ok(by) => {
            let doors: Vec<String> = doors.iter().map(ToString::to_string).collect();
            Ok(Some(format!("{} answered by {}", doors.join(", "), by.join(", "))))
        }
        Err(why) => {
            let hint = "`p1 kubectl -n kube-system get pods,jobs,services` shows how far Traefik is. Without it, say \
                        `k3s: {config: {disable: [traefik]}}`, and this is left out.";
            let set =
                api.object("/apis/apps/v1/namespaces/kube-system/deployments/traefik", &world.cancel)?;
            let found = set.map(|set| look_at_pods(world, &api, &set)).unwrap_or_default();
            let cause = format!("not reached through the ingress within {}: {why}", seconds(INGRESS));
            Err(Trouble::new(cause, hint).evidence(tail(&found.lines.join("\n"), 12)))
        }
    }
}

fn first_line(text: &str) -> String {
    text.lines().next().unwrap_or_default().chars().take(80).collect()
}

/// One request by HTTP for the Ingress' name; through SSH where this host has no way there.
fn ask(world: &World, door: IpAddr, cancel: &Cancel) -> Result<String, String> {
    let bound = Duration::from_secs(5);
    let server = world.cluster.first_server();
    let direct = TcpStream::connect_timeout(&SocketAddr::new(door, 80), Duration::from_secs(2));
    let tunnel;
    let mut stream = match direct {
        Ok(stream) => stream,
        Err(_) => {
            tunnel = world.on(server, |r| r.tunnel(&door.to_string(), 80)).map_err(|t| t.failure.cause)?;
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
    if status == "200" { Ok(body.to_owned()) } else { Err(format!("it says {}", first_line(head))) }
}

fn steady(ctx: &Ctx<'_>) -> Result<Option<String>, Trouble> {
    let (world, node) = (ctx.world, ctx.node());
    let before = world.seen().proven.get(&node.name).cloned().unwrap_or_default();
    let now = world.look_at_node(node)?.unit(node.role.unit());
    match unsteady(&before, &now) {
        None => Ok(Some("not restarted".into())),
        Some(why) => Err(Trouble::new(why, format!("`p1 logs {}` shows what happened.", node.name))),
    }
}

fn unsteady(before: &Unit, now: &Unit) -> Option<String> {
    if now.active != "active" {
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
fn clean(ctx: &Ctx<'_>) -> Result<Option<String>, Trouble> {
    let world = ctx.world;
    let server = world.writer();
    let space = format!("/api/v1/namespaces/{SPACE}");
    let apart = Cancel::new();
    if let Ok(api) = world.api()
        && let Ok(None) = api.metadata(&space, &apart)
    {
        return Ok(Some("nothing was made".into()));
    }
    let login: Login = world.login(server)?;
    let mut remote = Remote::new(login, apart);
    remote
        .script("removing what this made", &removal(), true, SHORT, &mut |line| ctx.control.log(line))?
        .ok()?;
    Ok(Some(format!("the namespace {SPACE}")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::tests::cluster;
    use crate::steps::{Seen, Verb};

    #[test]
    fn a_proof_is_due_every_time_and_cleans_up_in_any_case() {
        let cluster = cluster(1);
        let verb = Verb::find("verify").unwrap();
        let plan = || verb.plan(&View::new(&cluster, &Seen::default()), &[]);
        let (one, two) = (plan(), plan());
        assert!(one.steps.iter().zip(&two.steps).all(|(a, b)| a.info.digest != b.info.digest));
        let last = one.steps.last().unwrap();
        assert!(
            last.info.id == "cluster/clean" && last.anyway && last.info.after.len() == one.steps.len() - 1
        );
        assert!(one.steps.iter().filter(|s| s.anyway).count() == 1);
    }

    #[test]
    fn a_disabled_ingress_is_left_out() {
        let mut cluster = cluster(0);
        let look = |cluster: &Cluster| ingress_wanted(&View::new(cluster, &Seen::default()), None).may_run();
        assert!(look(&cluster));
        for (value, wanted) in [
            ("[traefik]", false),
            ("traefik", false),
            ("metrics-server,servicelb", false),
            ("[metrics-server]", true),
        ] {
            cluster.nodes[0].config.insert("disable".into(), serde_yaml::from_str(value).unwrap());
            assert_eq!(look(&cluster), wanted, "{value}");
        }
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
        let script = format!(
            "wget() {{ for last; do :; done; case $last in *10.42.0.2*) echo p1-verify server ;; *name*) echo p1-verify worker ;; \
             *) echo 'wget: timed out' >&2; return 1 ;; esac; }}\nsleep() {{ :; }}\n\
             P1_PEERS='server=10.42.0.2 other=10.42.9.9' P1_SERVICE=10.43.1.1 P1_NAME=name\n{ASK}\n"
        );
        let cmd = crate::os::process::Cmd::new("sh").stdin(script);
        let done = crate::os::process::run(&cmd, Duration::from_secs(20), &Cancel::new()).unwrap();
        assert_eq!(
            done.stdout,
            "pod/server ok server\npod/other failed wget: timed out\nservice failed wget: timed out\ndns ok worker\nend\n"
        );
    }

    #[test]
    fn what_is_applied_is_json_of_kubernetes() {
        for document in responders("busybox").split("---\n").skip(1) {
            let value: Value = serde_json::from_str(document).unwrap();
            assert!(value["kind"].is_string() && value["metadata"]["name"].is_string());
        }
        let node = &cluster(0).nodes[0];
        assert_eq!(probe(node, "busybox", &[])["spec"]["nodeName"], "server");
    }
}
