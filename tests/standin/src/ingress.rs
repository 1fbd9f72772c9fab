//! Plays Traefik and the load-balancer before it: answers HTTP on every node by the Ingresses, as if the
//! pods behind them did. What answers are the stand-in's records of pods; a request that falls to a
//! pod of a dead node is lost, as it would be, until the cluster takes the node for dead.

use std::io::{self, BufReader, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use serde_json::Value;

use crate::config::Config;
use crate::http::{self, phrase};
use crate::store::{Store, StoreState};
use crate::{client, log, paths};

/// What pods of `p1 verify` are known by, and answer with.
const VERIFY: &str = "p1-verify";
const PATIENCE: Duration = Duration::from_secs(1);

fn port() -> u16 {
    // Below a root prefix the port is the test's own host's.
    paths::number("ingress_port", if paths::root().is_some() { 0 } else { 80 })
}

/// Where every node offers Traefik's Service.
pub const NODE_PORT: u16 = 30_080;

/// Traefik is there: k3s' Helm controller brings it.
pub fn there(config: &Config) -> bool {
    !config.disabled("traefik") && !config.is_on("disable-helm-controller")
}

/// Every node answers at port 80.
pub fn is_on(config: &Config) -> bool {
    there(config) && !config.disabled("servicelb")
}

fn listen(port: u16, answer: impl Fn(TcpStream) -> io::Result<()> + Send + Sync + 'static) {
    if port == 0 {
        return;
    }
    let listener = match TcpListener::bind(("0.0.0.0", port)) {
        Ok(listener) => listener,
        Err(e) => return log::warn(format!("stand-in: cannot play the ingress on port {port}: {e}")),
    };
    let answer = Arc::new(answer);
    std::thread::spawn(move || {
        for socket in listener.incoming().flatten() {
            let answer = answer.clone();
            let spawned = std::thread::Builder::new().stack_size(256 << 10).spawn(move || {
                let bounds = socket.set_read_timeout(Some(Duration::from_secs(10)));
                // A peer that goes away is its own problem.
                let _ = bounds.and_then(|()| answer(socket));
            });
            drop(spawned);
        }
    });
}

/// A server's: it has the records.
pub fn serve(store: &Arc<Store>, config: &Config) {
    if there(config) {
        let store = store.clone();
        let port = if is_on(config) || port() == 0 { port() } else { NODE_PORT };
        listen(port, move |socket| respond(&store, socket));
    }
}

/// A worker's: it asks a server, the first that answers.
pub fn forward(urls: &[String]) {
    let hosts: Vec<String> =
        urls.iter().filter_map(|url| client::parse_url(url).ok()).map(|(host, _)| host).collect();
    listen(port(), move |socket| {
        let reached = hosts.iter().find_map(|host| {
            let address: SocketAddr = format!("{host}:{}", port()).parse().ok()?;
            TcpStream::connect_timeout(&address, PATIENCE).ok()
        });
        let server = reached.ok_or_else(|| io::Error::other("no server answers"))?;
        let (mut from, mut to) = (socket.try_clone()?, server.try_clone()?);
        std::thread::spawn(move || {
            let _ = io::copy(&mut from, &mut to);
            let _ = to.shutdown(std::net::Shutdown::Write);
        });
        let (mut from, mut to) = (server, socket);
        io::copy(&mut from, &mut to)?;
        to.shutdown(std::net::Shutdown::Both)
    });
}

fn respond(store: &Store, socket: TcpStream) -> io::Result<()> {
    let mut stream = BufReader::new(socket);
    let line = http::read_line(&mut stream)?.unwrap_or_default();
    let path = line.split(' ').nth(1).unwrap_or("/").to_owned();
    let headers = http::read_headers(&mut stream)?;
    let host = headers.iter().find(|(n, _)| n == "host").map_or("", |(_, v)| v.as_str());
    let host = host.split(':').next().unwrap_or_default();
    let found = backend(&store.lock(), host, &path);
    let (status, body) = match found {
        Err((status, text)) => (status, text),
        Ok(pod) if !alive(&pod.node) => (504, "Gateway Timeout".to_owned()),
        Ok(pod) => (200, pod.says),
    };
    let word = if status == 504 { "Gateway Timeout" } else { phrase(status) };
    let head = format!(
        "HTTP/1.1 {status} {word}\r\nServer: k3s-standin\r\nContent-Type: text/plain\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
        body.len()
    );
    let out = stream.get_mut();
    out.write_all(head.as_bytes())?;
    out.write_all(body.as_bytes())?;
    out.shutdown(std::net::Shutdown::Both)
}

struct Pod {
    node: String,
    says: String,
}

/// Whether anything of k3s answers on the pod's node.
fn alive(address: &str) -> bool {
    let port = paths::number("kubelet_port", 10_250);
    let Ok(ip) = address.parse() else { return false };
    port == 0 || TcpStream::connect_timeout(&SocketAddr::new(ip, port), PATIENCE).is_ok()
}

/// The pod whose turn it is behind the Ingress that takes the name and the path.
fn backend(state: &StoreState, host: &str, path: &str) -> Result<Pod, (u16, String)> {
    static TURN: AtomicUsize = AtomicUsize::new(0);
    let service = route(state, host, path).ok_or((404, "404 page not found\n".to_owned()))?;
    let endpoints = state
        .list("api/v1", "endpoints", Some(&service.0))
        .find(|(_, e)| e["metadata"]["name"] == service.1.as_str())
        .map(|(_, e)| e["subsets"][0]["addresses"].as_array().cloned().unwrap_or_default())
        .unwrap_or_default();
    if endpoints.is_empty() {
        return Err((503, "no available server\n".to_owned()));
    }
    let turn = TURN.fetch_add(1, Ordering::Relaxed) % endpoints.len();
    let name = &endpoints[turn]["targetRef"]["name"];
    let pod = state.list("api/v1", "pods", Some(&service.0)).find(|(_, p)| p["metadata"]["name"] == *name);
    let Some((_, pod)) = pod else { return Err((503, "no available server\n".to_owned())) };
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let node = text(&pod["spec"]["nodeName"]);
    let says = if pod["metadata"]["labels"]["app"] == VERIFY {
        format!("{VERIFY} {node}\n")
    } else {
        page(state, pod).unwrap_or_else(|| format!("k3s stand-in: pod {} on {node}\n", text(name)))
    };
    Ok(Pod { node: text(&pod["status"]["hostIP"]), says })
}

/// What a web server in the pod would find in a mounted ConfigMap.
fn page(state: &StoreState, pod: &Value) -> Option<String> {
    let volumes = pod["spec"]["volumes"].as_array()?;
    let maps = volumes.iter().filter_map(|v| v["configMap"]["name"].as_str());
    let mut pages = maps.filter_map(|name| {
        let namespace = pod["metadata"]["namespace"].as_str();
        let (_, map) =
            state.list("api/v1", "configmaps", namespace).find(|(_, m)| m["metadata"]["name"] == name)?;
        map["data"]["index.html"].as_str().map(str::to_owned)
    });
    pages.next()
}

/// Namespace and name of the service that the longest fitting path of an Ingress leads to.
fn route(state: &StoreState, host: &str, path: &str) -> Option<(String, String)> {
    let mut best: Option<(usize, (String, String))> = None;
    for (_, ingress) in state.list("apis/networking.k8s.io/v1", "ingresses", None) {
        let namespace = ingress["metadata"]["namespace"].as_str().unwrap_or_default();
        let mut offer = |weight: usize, backend: &Value| {
            let Some(name) = backend["service"]["name"].as_str() else { return };
            if best.as_ref().is_none_or(|(w, _)| *w < weight) {
                best = Some((weight, (namespace.to_owned(), name.to_owned())));
            }
        };
        offer(1, &ingress["spec"]["defaultBackend"]);
        for rule in ingress["spec"]["rules"].as_array().into_iter().flatten() {
            let named = match rule["host"].as_str() {
                Some(name) if name == host => 10_000,
                Some(_) => continue,
                None => 100,
            };
            for way in rule["http"]["paths"].as_array().into_iter().flatten() {
                let prefix = way["path"].as_str().unwrap_or("/");
                if path.starts_with(prefix) {
                    offer(named + prefix.len(), &way["backend"]);
                }
            }
        }
    }
    best.map(|(_, service)| service)
}

/// What `p1 verify`'s asking pod would find: the script in it asks every peer, the Service and its name.
/// Here the records are asked: a peer answers if there is a running pod at its address.
pub fn asked(state: &StoreState, pod: &Value) -> Option<String> {
    let env = pod["spec"]["containers"][0]["env"].as_array()?;
    let value = |name: &str| env.iter().find(|e| e["name"] == name).and_then(|e| e["value"].as_str());
    let (peers, service) = (value("P1_PEERS")?, value("P1_SERVICE")?);
    let ready = |p: &Value| crate::controllers::is_ready(p);
    let mut out = String::new();
    let mut tell = |what: &str, answer: Option<String>| {
        out += &match answer {
            Some(node) => format!("{what} ok {node}\n"),
            None => format!("{what} failed wget: download timed out\n"),
        };
    };
    for peer in peers.split_whitespace() {
        let (node, ip) = peer.split_once('=').unwrap_or_default();
        let found = state.list("api/v1", "pods", None).find(|(_, p)| p["status"]["podIP"] == ip && ready(p));
        tell(
            &format!("pod/{node}"),
            found.map(|(_, p)| p["spec"]["nodeName"].as_str().unwrap_or_default().to_owned()),
        );
    }
    let namespace = pod["metadata"]["namespace"].as_str();
    let behind = |address: &str| {
        let (_, service) =
            state.list("api/v1", "services", namespace).find(|(_, s)| s["spec"]["clusterIP"] == address)?;
        let name = &service["metadata"]["name"];
        let (_, endpoints) =
            state.list("api/v1", "endpoints", namespace).find(|(_, e)| e["metadata"]["name"] == *name)?;
        endpoints["subsets"][0]["addresses"][0]["nodeName"].as_str().map(str::to_owned)
    };
    tell("service", behind(service));
    let dns = state.list("api/v1", "pods", Some("kube-system"));
    let resolved = dns.into_iter().any(|(_, p)| p["metadata"]["labels"]["k8s-app"] == "kube-dns" && ready(p));
    if value("P1_NAME").is_some_and(|name| !name.is_empty()) {
        tell("dns", behind(service).filter(|_| resolved));
    }
    Some(out + "end\n")
}
