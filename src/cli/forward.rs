//! `p1 forward`: a port of this host that leads to a Service, a pod or a node, until the user ends it.

use std::io::ErrorKind;
use std::net::{Ipv4Addr, TcpListener};
use std::time::Duration;

use serde_json::{Value, json};

use super::args::Forward;
use super::context::Context;
use super::error::{CliError, code};
use super::{out, print};
use crate::access::World;
use crate::engine::StepError;
use crate::os::cancel::Level;
use crate::os::sync::lock;
use crate::ssh::Tunnel;
use crate::state::StateDir;
use crate::ui::Format;

/// How often it is looked whether the connection still is.
const LOOK: Duration = Duration::from_millis(200);
/// Between two tries to have one again.
const AGAIN: Duration = Duration::from_secs(1);

/// What is to be reached.
#[derive(Clone, Debug, PartialEq)]
enum Target {
    Node(String),
    Service(String),
    Pod(String),
    /// Whichever of these has the name, in this order.
    Any(String),
}

/// Through which nodes something is reached, the first that answers, and what it is called there.
struct Way {
    /// In words: `the Service web`.
    what: String,
    through: Vec<String>,
    host: String,
    port: u16,
}

/// Carries connections until Ctrl-C.
pub fn forward(context: &Context, args: &Forward) -> Result<(), CliError> {
    let (local, far) = ports(&args.port)?;
    let target = target(&args.target)?;
    let cluster = context.spec()?;
    let state = StateDir::of(cluster.home(), &cluster.name);
    context.must_be_made(&cluster, &state)?;
    let kind = context.kind(&cluster, &state)?;
    let world = context.world(cluster, kind);
    let _signals = super::signals::watch_plain(context.cancel.clone())?;
    let find = || way(&world, &target, &args.namespace, far);
    let way = find()?;
    let listener = listen(local, way.port)?;
    let (mut tunnel, mut through) = open(&world, &way, &listener)?;
    let address = tunnel.address();
    let Way { what, port, .. } = &way;
    match context.ui.format {
        Format::Json => out::object(&json!({
            "v": 1, "address": address.to_string(), "to": what, "port": port, "through": through,
        })),
        _ => {
            print(format!("{address}\n"));
            eprintln!("leads to port {port} of {what} through {through}, until Ctrl-C");
        }
    }
    loop {
        while !tunnel.ended() {
            if context.cancel.sleep(LOOK, Level::Stop) {
                return Ok(());
            }
        }
        eprintln!("note: the connection to {through} was lost; connecting again");
        (tunnel, through) = loop {
            if context.cancel.sleep(AGAIN, Level::Stop) {
                return Ok(());
            }
            match find().and_then(|way| open(&world, &way, &listener)) {
                Ok(found) => break found,
                // Meanwhile it is gone.
                Err(fail) if fail.code == code::USAGE => return Err(fail),
                Err(_) => {}
            }
        };
    }
}

/// `PORT`, `LOCAL:PORT`, or `:PORT` for any free port of this host.
fn ports(text: &str) -> Result<(Option<u16>, &str), CliError> {
    let wrong = || {
        let hint = "Write `8080:80` for this host's port 8080, `80` for the same on both sides, or `:80` for a free one.";
        CliError::new(code::USAGE, format!("`{text}` is no port"), hint)
    };
    let number = |text: &str| text.parse::<u16>().ok().filter(|port| *port > 0);
    let (local, far) = match text.split_once(':') {
        Some(("", far)) => (Some(0), far),
        Some((local, far)) => (Some(number(local).ok_or_else(wrong)?), far),
        None => (number(text), text),
    };
    let named = !far.is_empty() && far.chars().all(|c| c.is_ascii_alphanumeric() || c == '-');
    if !named || far.chars().all(|c| c.is_ascii_digit()) && number(far).is_none() {
        return Err(wrong());
    }
    Ok((local, far))
}

fn target(text: &str) -> Result<Target, CliError> {
    let Some((kind, name)) = text.split_once('/') else { return Ok(Target::Any(text.to_owned())) };
    match kind {
        "node" | "nodes" | "no" => Ok(Target::Node(name.to_owned())),
        "service" | "services" | "svc" => Ok(Target::Service(name.to_owned())),
        "pod" | "pods" | "po" => Ok(Target::Pod(name.to_owned())),
        _ => {
            let what = format!("`{kind}` is nothing that has ports");
            Err(CliError::new(code::USAGE, what, "Write `service/web`, `pod/web-0` or `node/worker-1`."))
        }
    }
}

/// A number, or the name of one of these ports.
fn port<'a>(
    text: &str,
    ports: impl Iterator<Item = &'a Value>,
    of: &str,
    key: &str,
) -> Result<u16, CliError> {
    let all: Vec<(String, u16)> = ports
        .filter(|p| p["protocol"].as_str().unwrap_or("TCP") == "TCP")
        .filter_map(|p| {
            let number = p[key].as_u64().and_then(|n| u16::try_from(n).ok())?;
            Some((p["name"].as_str().unwrap_or_default().to_owned(), number))
        })
        .collect();
    let found = all.iter().find(|(name, number)| name == text || number.to_string() == text);
    // A pod listens at more than it says.
    let free = (key == "containerPort").then(|| text.parse().ok()).flatten();
    found.map(|(_, number)| *number).or(free).ok_or_else(|| {
        let known: Vec<String> = all
            .iter()
            .map(
                |(name, number)| {
                    if name.is_empty() { number.to_string() } else { format!("{number} ({name})") }
                },
            )
            .collect();
        let hint = match known.is_empty() {
            true => "It has no TCP port.".to_owned(),
            false => format!("It has {}.", known.join(", ")),
        };
        CliError::new(code::USAGE, format!("{of} has no port {text}"), hint)
    })
}

/// Looks for what is to be reached.
fn way(world: &World, target: &Target, namespace: &str, far: &str) -> Result<Way, CliError> {
    let read = |kind: &str, name: &str| {
        let path = format!("/api/v1/namespaces/{namespace}/{kind}/{name}");
        world.ask(|api| api.object(&path, &world.cancel))
    };
    let missing = |what: &str, name: &str| -> Result<Way, CliError> {
        let names = |kind: &str| -> Vec<String> {
            let path = format!("/api/v1/namespaces/{namespace}/{kind}");
            let all = world.ask(|api| api.items(&path, &world.cancel)).unwrap_or_default();
            all.iter().filter_map(|o| o["metadata"]["name"].as_str().map(str::to_owned)).collect()
        };
        let hint = match names("services") {
            all if all.is_empty() => "There is no Service in it; `-n` names another namespace.".to_owned(),
            all => format!("Its Services are: {}. `-n` names another namespace.", all.join(", ")),
        };
        let what = format!("there is no {what} `{name}` in the namespace {namespace}");
        Err(CliError::new(code::USAGE, what, hint))
    };
    match target {
        Target::Node(name) => node(world, name, far),
        Target::Any(name) if world.cluster.node(name).is_some() => node(world, name, far),
        Target::Service(name) => match read("services", name)? {
            Some(found) => service(world, name, &found, far),
            None => missing("Service", name),
        },
        Target::Pod(name) => match read("pods", name)? {
            Some(found) => pod(world, name, &found, far),
            None => missing("pod", name),
        },
        Target::Any(name) => {
            // What cannot be a name is not asked for: it would be another path.
            if !name.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || ".-".contains(c)) {
                return missing("node, Service or pod", name);
            }
            if let Some(found) = read("services", name)? {
                return service(world, name, &found, far);
            }
            match read("pods", name)? {
                Some(found) => pod(world, name, &found, far),
                None => missing("node, Service or pod", name),
            }
        }
    }
}

fn node(world: &World, name: &str, far: &str) -> Result<Way, CliError> {
    if world.cluster.node(name).is_none() {
        let hint = world.cluster.selectable(name);
        return Err(CliError::new(code::USAGE, format!("the spec has no node `{name}`"), hint));
    }
    let what = format!("the node {name}");
    let Ok(port) = far.parse() else {
        return Err(CliError::new(
            code::USAGE,
            format!("{what} has no port {far}"),
            "Ports of nodes are numbers.",
        ));
    };
    Ok(Way { what, through: vec![name.to_owned()], host: "127.0.0.1".to_owned(), port })
}

fn service(world: &World, name: &str, found: &Value, far: &str) -> Result<Way, CliError> {
    let what = format!("the Service {name}");
    let port = port(far, found["spec"]["ports"].as_array().into_iter().flatten(), &what, "port")?;
    let host = found["spec"]["clusterIP"].as_str().unwrap_or_default();
    if host.is_empty() || host == "None" {
        let what = format!("{what} has no address of its own");
        return Err(CliError::new(
            code::USAGE,
            what,
            "Name one of its pods, as in `p1 forward pod/web-0 :80`.",
        ));
    }
    // Every node leads to it; one that the API calls Ready surely does.
    let ready = world.nodes()?;
    let ready = |name: &str| ready.iter().any(|n| n.name == name && n.ready);
    let mut through: Vec<String> = world.cluster.nodes.iter().map(|n| n.name.clone()).collect();
    through.sort_by_key(|name| !ready(name));
    Ok(Way { what, through, host: host.to_owned(), port })
}

fn pod(world: &World, name: &str, found: &Value, far: &str) -> Result<Way, CliError> {
    let what = format!("the pod {name}");
    let containers = found["spec"]["containers"].as_array().into_iter().flatten();
    let ports = containers.flat_map(|c| c["ports"].as_array().into_iter().flatten());
    let port = port(far, ports, &what, "containerPort")?;
    let on = found["spec"]["nodeName"].as_str().filter(|node| world.cluster.node(node).is_some());
    let (Some(on), Some(host)) = (on, found["status"]["podIP"].as_str()) else {
        let phase = found["status"]["phase"].as_str().unwrap_or("Pending");
        let error = StepError::new(format!("{what} runs on no node of the spec yet (it is {phase})"), "");
        return Err(error.into());
    };
    Ok(Way { what, through: vec![on.to_owned()], host: host.to_owned(), port })
}

/// The port of this host: the one that was named, or the same as there.
fn listen(local: Option<u16>, far: u16) -> Result<TcpListener, CliError> {
    let port = local.unwrap_or(far);
    TcpListener::bind((Ipv4Addr::LOCALHOST, port)).map_err(|error| {
        let what = match error.kind() {
            ErrorKind::AddrInUse => format!("port {port} of this host is in use"),
            ErrorKind::PermissionDenied => format!("port {port} of this host is for root only"),
            _ => format!("port {port} of this host cannot be listened at: {error}"),
        };
        let hint = format!("Name another one, or `:{far}` for a free one.");
        CliError::new(code::USAGE, what, hint)
    })
}

/// Over the first node that lets p1 in; its name.
fn open(world: &World, way: &Way, listener: &TcpListener) -> Result<(Tunnel, String), CliError> {
    let mut first = None;
    for node in way.through.iter().filter_map(|name| world.cluster.node(name)) {
        let remote = match world.remote(node) {
            Ok(remote) => remote,
            Err(error) => {
                first.get_or_insert(error);
                continue;
            }
        };
        let opened = lock(&remote).tunnel_from(listener, &way.host, way.port);
        match opened {
            Ok(tunnel) => return Ok((tunnel, node.name.clone())),
            Err(error) => drop(first.get_or_insert(error.into())),
        }
    }
    Err(first.unwrap_or_else(|| StepError::new("no node leads there", "")).into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_are_written_as_for_kubectl() {
        let read = |text| ports(text).map_err(|fail| fail.message);
        assert_eq!(read("80"), Ok((Some(80), "80")));
        assert_eq!(read("8080:80"), Ok((Some(8080), "80")));
        assert_eq!(read(":80"), Ok((Some(0), "80")));
        assert_eq!(read("8080:http"), Ok((Some(8080), "http")));
        // This host's is then that of the name.
        assert_eq!(read("http"), Ok((None, "http")));
        for bad in ["", ":", "x:80", "0", "80:", "8080:0", "70000", "1:2:3", "80:ht tp"] {
            assert_eq!(read(bad), Err(format!("`{bad}` is no port")), "{bad}");
        }
    }

    #[test]
    fn a_port_is_found_by_its_number_or_its_name() {
        let all = json!([
            {"name": "http", "port": 80, "protocol": "TCP"}, {"port": 443}, {"name": "dns", "port": 53, "protocol": "UDP"},
        ]);
        let find = |text| {
            let found = port(text, all.as_array().unwrap().iter(), "the Service web", "port");
            found.map_err(|fail| format!("{}. {}", fail.message, fail.hint.unwrap_or_default()))
        };
        assert_eq!([find("80"), find("http"), find("443")], [Ok(80), Ok(80), Ok(443)]);
        let known = "It has 80 (http), 443.";
        assert_eq!(find("8080"), Err(format!("the Service web has no port 8080. {known}")));
        assert_eq!(find("dns"), Err(format!("the Service web has no port dns. {known}")));
        // A container need not name its ports.
        assert_eq!(port("9", [].iter(), "the pod a", "containerPort").map_err(|f| f.message), Ok(9));
    }
}
