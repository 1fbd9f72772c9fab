//! The node's side: registers its Node, sends heartbeats, and leaves the traces on the machine that
//! the killall and uninstall scripts have to clear away.

use std::net::{IpAddr, TcpListener, UdpSocket};
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustls::{ServerConfig, crypto::ring};
use serde_json::{Value, json};

use crate::agent::{self, Joined};
use crate::client::{Balancer, Client};
use crate::config::{Config, Role};
use crate::etcd::Place;
use crate::http::{self, Request, Response};
use crate::{faults, images, ingress, log, paths, util};

pub const SHIM_NAME: &str = "containerd-shim-standin";

/// The addresses given, or the default route's. k3s does not start where it finds neither, and
/// dies of an address that no interface has.
pub fn node_ips(config: &Config) -> Vec<String> {
    let given = config.list("node-ip");
    if given.is_empty() {
        if !has_default_route() {
            log::fatal("Error: no default routes found in \"/proc/net/route\" or \"/proc/net/ipv6_route\"");
        }
        return vec![default_address().unwrap_or_else(|| log::fatal("Error: no default routes found"))];
    }
    for ip in &given {
        let address: IpAddr = ip
            .parse()
            .unwrap_or_else(|_| log::fatal(format!("Error: invalid node-ip: invalid ip format '{ip}'")));
        if UdpSocket::bind((address, 0)).is_err() {
            log::fatal(format!(
                "Error: failed to start networking: failed to find interface with specified node ip {ip}"
            ));
        }
    }
    given
}

fn has_default_route() -> bool {
    let routes = std::fs::read_to_string("/proc/net/route").unwrap_or_default();
    routes.lines().skip(1).any(|l| l.split_whitespace().nth(1) == Some("00000000"))
}

/// The kernel's choice of source address; connecting a UDP socket sends nothing.
fn default_address() -> Option<String> {
    let socket = UdpSocket::bind("0.0.0.0:0").ok()?;
    socket.connect("192.0.2.1:9").ok()?;
    Some(socket.local_addr().ok()?.ip().to_string())
}

/// Runs until the process ends.
pub fn run(config: &Config, joined: &Joined) {
    if let Err(e) = listen(joined) {
        log::error(format!("\"Failed to listen and serve\" err=\"{e}\""));
    }
    let (ca, pair) = (joined.ca.clone(), joined.client.clone());
    let client = match Balancer::new(&joined.urls, move |url| Client::new(url, Some(&ca), Some(&pair))) {
        Ok(client) => client,
        Err(e) => log::fatal(format!("kubelet: {e}")),
    };
    prepare_directories(config);
    images::start();
    if config.role == Role::Agent && joined.cluster["StandInIngress"] == true {
        ingress::forward(&joined.urls);
    }
    let node = loop {
        match register(&client, config, joined) {
            Ok(node) => break node,
            Err(why) => log::error(format!(
                "\"Unable to register node with API server\" err=\"{why}\" node=\"{}\"",
                joined.name
            )),
        }
        std::thread::sleep(Duration::from_secs(1));
    };
    log::info(format!("\"Successfully registered node\" node=\"{}\"", joined.name));
    event(&client, joined, "Starting", "Normal", "Starting kubelet.");
    leave_traces(config, joined, node["spec"]["podCIDR"].as_str().unwrap_or("10.42.0.0/24"));
    heartbeats(&client, config, joined);
}

fn listen(joined: &Joined) -> Result<(), crate::certs::Error> {
    let port = paths::number("kubelet_port", 10_250);
    if port == 0 {
        return Ok(());
    }
    let listener = TcpListener::bind(("0.0.0.0", port))?;
    let tls = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()?
        .with_no_client_auth()
        .with_single_cert(joined.serving.chain()?, joined.serving.private_key()?)?;
    let handler: Arc<http::Handler> = Arc::new(|request: &Request| match request.path.as_str() {
        // The real one wants the API's certificate for it.
        "/healthz" => Response::text(200, "ok"),
        _ => Response::text(401, "Unauthorized"),
    });
    std::thread::spawn(move || http::serve(&listener, &Arc::new(tls), &handler));
    Ok(())
}

fn path(name: &str) -> String {
    format!("/api/v1/nodes/{name}")
}

/// Creates the Node, or takes over the one that is there, as a restarted kubelet does.
fn register(client: &Balancer, config: &Config, joined: &Joined) -> Result<Value, String> {
    let body = node(config, joined);
    let created = client
        .send("POST", "/api/v1/nodes", Some(("application/json", body.to_string())))
        .map_err(|e| e.to_string())?;
    let answer = match created.status {
        409 => {
            // The labels and taints of the configuration are for a new Node only.
            let mut labels = body["metadata"]["labels"].clone();
            for label in config.list("node-label") {
                let key = label.split_once('=').map_or(label.as_str(), |(key, _)| key);
                labels.as_object_mut().map(|l| l.remove(key));
            }
            let change =
                json!({"metadata": {"labels": labels, "annotations": body["metadata"]["annotations"]}});
            client
                .send(
                    "PATCH",
                    &path(&joined.name),
                    Some(("application/strategic-merge-patch+json", change.to_string())),
                )
                .map_err(|e| e.to_string())?
        }
        _ => created,
    };
    if !answer.ok() {
        return Err(answer.json()["message"].as_str().unwrap_or("unknown").to_owned());
    }
    let node = answer.json();
    send_status(client, config, joined, &Health::starting())?;
    Ok(node)
}

fn node(config: &Config, joined: &Joined) -> Value {
    let os = "linux";
    let arch = architecture();
    let name = &joined.name;
    let mut labels = json!({
        "beta.kubernetes.io/arch": arch, "beta.kubernetes.io/os": os, "beta.kubernetes.io/instance-type": "k3s",
        "kubernetes.io/arch": arch, "kubernetes.io/os": os, "kubernetes.io/hostname": name,
        "node.kubernetes.io/instance-type": "k3s", "p1.standin": "true",
    });
    if config.role == Role::Server {
        labels["node-role.kubernetes.io/control-plane"] = json!("true");
        if Place::of(config).etcd.exists() {
            labels["node-role.kubernetes.io/etcd"] = json!("true");
        }
        if minor(&paths::version()) < 34 {
            // Servers carried both roles for years; `kubectl get nodes` showed `control-plane,master`.
            labels["node-role.kubernetes.io/master"] = json!("true");
        }
    }
    for label in config.list("node-label") {
        let (key, value) = label.split_once('=').unwrap_or((&label, ""));
        labels[key] = json!(value);
    }
    let taints: Vec<Value> = config
        .list("node-taint")
        .iter()
        .filter_map(|t| {
            let (head, effect) = t.rsplit_once(':')?;
            let (key, value) = head.split_once('=').unwrap_or((head, ""));
            Some(json!({"key": key, "value": value, "effect": effect}))
        })
        .collect();
    let mut annotations = json!({
        "alpha.kubernetes.io/provided-node-ip": joined.ips.join(","),
        "flannel.alpha.coreos.com/backend-type": joined.cluster["FlannelBackend"],
        "flannel.alpha.coreos.com/kube-subnet-manager": "true",
        "flannel.alpha.coreos.com/public-ip": joined.ips.first(),
        "k3s.io/hostname": name, "k3s.io/internal-ip": joined.ips.join(","),
        "node.alpha.kubernetes.io/ttl": "0", "p1.standin": "true",
    });
    let external = config.list("node-external-ip");
    if !external.is_empty() {
        annotations["k3s.io/external-ip"] = json!(external.join(","));
    }
    let mut spec = json!({"providerID": format!("k3s://{name}")});
    if !taints.is_empty() {
        spec["taints"] = json!(taints);
    }
    json!({
        "apiVersion": "v1", "kind": "Node", "spec": spec,
        "metadata": {"name": name, "labels": labels, "annotations": annotations, "finalizers": ["wrangler.cattle.io/node"]},
    })
}

fn minor(version: &str) -> u32 {
    version.split('.').nth(1).and_then(|m| m.parse().ok()).unwrap_or(0)
}

fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

#[derive(PartialEq, Clone)]
struct Health {
    ready: bool,
    why: &'static str,
    since: u64,
}

impl Health {
    fn starting() -> Self {
        Health {
            ready: false,
            why: "container runtime network not ready: NetworkReady=false reason:NetworkPluginNotReady \
                  message:Network plugin returns error: cni plugin not initialized",
            since: util::unix_seconds(),
        }
    }
}

fn send_status(client: &Balancer, config: &Config, joined: &Joined, health: &Health) -> Result<(), String> {
    let now = util::now();
    let since = util::rfc3339(health.since);
    let pressure = |kind: &str, reason: &str, message: &str| {
        json!({
            "type": kind, "status": "False", "reason": reason, "message": message,
            "lastHeartbeatTime": now, "lastTransitionTime": since,
        })
    };
    let ready = json!({
        "type": "Ready", "status": if health.ready { "True" } else { "False" },
        "reason": if health.ready { "KubeletReady" } else { "KubeletNotReady" },
        "message": if health.ready { "kubelet is posting ready status" } else { health.why },
        "lastHeartbeatTime": now, "lastTransitionTime": since,
    });
    let internal =
        faults::get("wrong-ip").filter(|a| !a.is_empty()).map_or_else(|| joined.ips.clone(), |a| vec![a]);
    let mut addresses: Vec<Value> =
        internal.iter().map(|a| json!({"type": "InternalIP", "address": a})).collect();
    addresses
        .extend(config.list("node-external-ip").iter().map(|a| json!({"type": "ExternalIP", "address": a})));
    addresses.push(json!({"type": "Hostname", "address": joined.name}));
    let capacity = capacity();
    let version = faults::get("wrong-version").filter(|v| !v.is_empty()).unwrap_or_else(paths::version);
    let file = |path: &str| util::read(path).unwrap_or_default();
    let status = json!({"status": {
        "addresses": addresses, "capacity": capacity, "allocatable": capacity,
        "conditions": [
            pressure("MemoryPressure", "KubeletHasSufficientMemory", "kubelet has sufficient memory available"),
            pressure("DiskPressure", "KubeletHasNoDiskPressure", "kubelet has no disk pressure"),
            pressure("PIDPressure", "KubeletHasSufficientPID", "kubelet has sufficient PID available"),
            ready,
        ],
        // Named as k3s' own, so that whoever looks for one finds it; nothing is behind them.
        "images": [
            {"names": ["docker.io/rancher/mirrored-library-busybox:standin"], "sizeBytes": 0},
            {"names": ["docker.io/rancher/mirrored-pause:standin"], "sizeBytes": 0},
        ],
        "daemonEndpoints": {"kubeletEndpoint": {"Port": paths::number("kubelet_port", 10_250)}},
        "nodeInfo": {
            "machineID": file("/etc/machine-id"), "systemUUID": file("/sys/class/dmi/id/product_uuid").to_lowercase(),
            "bootID": file("/proc/sys/kernel/random/boot_id"), "kernelVersion": file("/proc/sys/kernel/osrelease"),
            "osImage": os_image(), "containerRuntimeVersion": "containerd://0.0.0-standin",
            "kubeletVersion": version, "kubeProxyVersion": "", "operatingSystem": "linux", "architecture": architecture(),
        },
    }});
    let target = format!("{}/status", path(&joined.name));
    let answer = client
        .send("PATCH", &target, Some(("application/strategic-merge-patch+json", status.to_string())))
        .map_err(|e| e.to_string())?;
    if answer.ok() { Ok(()) } else { Err(answer.json()["message"].as_str().unwrap_or("unknown").to_owned()) }
}

fn os_image() -> String {
    let release = util::read("/etc/os-release").unwrap_or_default();
    release
        .lines()
        .find_map(|l| l.strip_prefix("PRETTY_NAME="))
        .map_or_else(|| "Linux".into(), |v| v.trim_matches('"').to_owned())
}

fn capacity() -> Value {
    let cpus = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let memory = util::read("/proc/meminfo").unwrap_or_default();
    let memory = memory.lines().next().and_then(|l| l.split_whitespace().nth(1)).unwrap_or("0").to_owned();
    json!({"cpu": cpus.to_string(), "memory": format!("{memory}Ki"), "pods": "110", "ephemeral-storage": "4000000Ki"})
}

fn has_network(client: &Balancer) -> bool {
    let list = "/apis/apps/v1/namespaces/kube-system/daemonsets";
    let all = client.send("GET", list, None).ok().filter(|a| a.ok()).map(|a| a.json());
    all.is_some_and(|all| all["items"].as_array().is_some_and(|items| !items.is_empty()))
}

/// Looks at the faults every second, and speaks when something changed or a heartbeat is due. A Node
/// that was deleted is not made again before a restart, as with the real kubelet.
fn heartbeats(client: &Balancer, config: &Config, joined: &Joined) {
    let start = Instant::now();
    let delay = paths::seconds("ready_delay", 2.0);
    let period = paths::seconds("heartbeat", 10.0);
    let tick = period.min(Duration::from_secs(1)).max(Duration::from_millis(20));
    let mut health = Health::starting();
    let mut sent = Instant::now();
    let mut announced = false;
    let mut asked: Option<Instant> = None;
    // Without flannel the network is somebody else's to bring: any DaemonSet in kube-system stands for it.
    let mut network = joined.cluster["FlannelBackend"] != "none";
    loop {
        std::thread::sleep(tick);
        if config.role == Role::Agent && asked.is_none_or(|at| at.elapsed() > 3 * period) {
            asked = Some(Instant::now());
            know_servers(client, config, joined);
        }
        if faults::is_set("silent") {
            announced = false;
            continue;
        }
        let flapping = faults::is_set("flap")
            && (start.elapsed().as_secs_f64() / (period.as_secs_f64())) as u64 % 2 == 1;
        network = network || has_network(client);
        let ready = start.elapsed() >= delay && network && !faults::is_set("never-ready") && !flapping;
        let changed = ready != health.ready;
        if changed {
            health = Health { ready, since: util::unix_seconds(), ..Health::starting() };
        }
        if !changed && announced && sent.elapsed() < period {
            continue;
        }
        sent = Instant::now();
        match send_status(client, config, joined, &health) {
            Ok(()) => announced = true,
            Err(why) => {
                announced = true; // Until the next period.
                log::error(format!(
                    "\"Error updating node status, will retry\" err=\"error getting node \\\"{}\\\": {why}\"",
                    joined.name
                ));
            }
        }
        if changed {
            let (reason, kind) = if ready { ("NodeReady", "Normal") } else { ("NodeNotReady", "Warning") };
            event(client, joined, reason, kind, &format!("Node {} status is now: {reason}", joined.name));
        }
    }
}

/// The real agent watches the endpoints of the Service `kubernetes`; this one asks now and then.
fn know_servers(client: &Balancer, config: &Config, joined: &Joined) {
    let Ok(answer) = client.send("GET", "/v1-k3s/apiservers", None) else { return };
    let said = answer.json();
    let urls: Vec<String> =
        said.as_array().into_iter().flatten().filter_map(|u| u.as_str().map(Into::into)).collect();
    // A server on loopback, in tests, does not know by which port it is reached; then nothing changes.
    if answer.ok() && urls.len() > 1 && urls != joined.urls && client.set(&urls).is_ok() {
        agent::remember(config, &urls);
    }
}

fn event(client: &Balancer, joined: &Joined, reason: &str, kind: &str, message: &str) {
    let body = new_event(&joined.name, reason, kind, message, "kubelet");
    // An event nobody recorded is no reason to stop.
    let _ = client.send(
        "POST",
        "/api/v1/namespaces/default/events",
        Some(("application/json", body.to_string())),
    );
}

pub fn new_event(node: &str, reason: &str, kind: &str, message: &str, component: &str) -> Value {
    let now = util::now();
    json!({
        "apiVersion": "v1", "kind": "Event", "reason": reason, "type": kind, "message": message, "count": 1,
        "metadata": {"name": format!("{node}.{}", util::random_hex(8)), "namespace": "default"},
        "involvedObject": {"kind": "Node", "name": node, "uid": node},
        "source": {"component": component, "host": node},
        "firstTimestamp": now, "lastTimestamp": now,
    })
}

fn prepare_directories(config: &Config) {
    let data = config.data_dir();
    for directory in ["agent/containerd", "agent/etc/cni/net.d", "data/current/bin"] {
        let _ = std::fs::create_dir_all(data.join(directory));
    }
    for directory in ["/run/k3s/containerd", "/run/flannel", "/var/lib/kubelet/pods"] {
        let _ = std::fs::create_dir_all(paths::at(directory));
    }
    let log = format!("time=\"{}\" level=info msg=\"starting containerd (stand-in)\"\n", util::now());
    let _ = std::fs::write(data.join("agent/containerd/containerd.log"), log);
}

/// Interfaces and a process that outlive `systemctl stop` (KillMode=process), which is why k3s has a
/// killall script. Left out below a root prefix: tests on the host must leave no such things behind.
fn leave_traces(config: &Config, joined: &Joined, pods: &str) {
    let network = pods.trim_end_matches(".0/24");
    let cluster = joined.cluster["ClusterIPRange"].as_str().unwrap_or_default();
    let subnet = format!(
        "FLANNEL_NETWORK={cluster}\nFLANNEL_SUBNET={network}.1/24\nFLANNEL_MTU=1450\nFLANNEL_IPMASQ=true\n"
    );
    let _ = std::fs::write(paths::at("/run/flannel/subnet.env"), subnet);
    if paths::root().is_some() && std::env::var("K3S_STANDIN_TRACES").is_err() {
        return;
    }
    let shim = config.data_dir().join("data/current/bin").join(SHIM_NAME);
    let pid_file = paths::at("/run/k3s/containerd/standin-shim.pid");
    let running = util::read(&pid_file)
        .and_then(|pid| std::fs::read(format!("/proc/{pid}/cmdline")).ok())
        .is_some_and(|line| line.starts_with(shim.as_os_str().as_encoded_bytes()));
    if !running {
        let spawned = Command::new("/proc/self/exe")
            .arg0(&shim)
            .env_remove("NOTIFY_SOCKET")
            .process_group(0)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn();
        match spawned {
            Ok(child) => drop(std::fs::write(&pid_file, child.id().to_string())),
            Err(e) => log::warn(format!("stand-in shim: {e}")),
        }
    }
    if paths::root().is_some() || joined.cluster["FlannelBackend"] == "none" {
        return;
    }
    let vxlan = "link add flannel.1 type vxlan id 1 dstport 8472 nolearning";
    for (name, first, otherwise, address) in [
        ("flannel.1", vxlan, "link add flannel.1 type dummy", format!("{network}.0/32")),
        ("cni0", "link add cni0 type bridge", "link add cni0 type dummy", format!("{network}.1/24")),
    ] {
        if std::path::Path::new("/sys/class/net").join(name).exists() {
            continue;
        }
        if !ip(first) && !ip(otherwise) {
            log::warn(format!("stand-in: cannot make the interface {name}"));
            continue;
        }
        ip(&format!("addr add {address} dev {name}"));
        ip(&format!("link set {name} up"));
    }
}

fn ip(arguments: &str) -> bool {
    Command::new("ip")
        .args(arguments.split(' '))
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .is_ok_and(|s| s.success())
}

/// What the process of that name does: nothing, until it is killed.
pub fn shim_main() -> ! {
    loop {
        std::thread::park();
    }
}
