//! `k3s agent`, and the way into the cluster that a server's own node takes too.
//!
//! Every failure to join is retried for ever, as in `pkg/agent/proxy` and `pkg/agent/config`: the unit
//! stays `activating` and only the journal says why. That includes an interface that does not
//! exist, which looks like a server that is not ready.

use std::process::ExitCode;
use std::time::Duration;

use serde_json::Value;

use crate::certs::Pair;
use crate::client::{Client, parse_url};
use crate::config::{Config, Role};
use crate::{faults, kubelet, log, notify, paths, server, tools, util};

/// k3s' client load-balancer: the address that the real agent's messages name instead of the server's.
const BALANCER: &str = "https://127.0.0.1:6444";

/// A node that has its certificates.
pub struct Joined {
    /// All servers that it knows, the one it joined through first.
    pub urls: Vec<String>,
    pub ca: String,
    pub client: Pair,
    pub serving: Pair,
    pub name: String,
    pub ips: Vec<String>,
    pub cluster: Value,
}

pub fn main(arguments: &[String]) -> ExitCode {
    let mut terminated = server::until_terminated();
    let config = Config::load(Role::Agent, arguments);
    log::info(format!("Starting k3s agent {}", tools::version_line()));
    faults::at_start();
    let Some(token) = config.token() else { log::fatal("Error: --token is required") };
    let Some(url) = config.server_url() else { log::fatal("Error: --server is required") };
    std::thread::spawn(move || {
        let joined = join(&config, &urls(&config, url), &token);
        log::info("k3s agent is up and running");
        notify::ready();
        kubelet::run(&config, &joined);
    });
    terminated.wait();
    log::info("Shutdown request received");
    ExitCode::SUCCESS
}

/// What the load balancer knew before the last stop.
const BALANCER_FILE: &str = "etc/k3s-agent-load-balancer.json";

/// Where to join: the server of the configuration, and those that the load balancer remembers.
fn urls(config: &Config, url: String) -> Vec<String> {
    let kept = util::read(config.data_dir().join("agent").join(BALANCER_FILE));
    let kept: Value = kept.and_then(|t| serde_json::from_str(&t).ok()).unwrap_or_default();
    let mut urls = vec![url];
    for known in kept["ServerAddresses"].as_array().into_iter().flatten().filter_map(|u| u.as_str()) {
        if !urls.iter().any(|u| u == known) {
            urls.push(known.to_owned());
        }
    }
    urls
}

/// Remembers the servers for the next start.
pub fn remember(config: &Config, urls: &[String]) {
    let text = serde_json::json!({"ServerURL": urls.first(), "ServerAddresses": urls}).to_string();
    let file = config.data_dir().join("agent").join(BALANCER_FILE);
    let _ = util::write_atomically(&file, text.as_bytes(), 0o600);
}

/// Blocks until the cluster has taken the node in, through one of these servers.
pub fn join(config: &Config, urls: &[String], token: &str) -> Joined {
    let ips = kubelet::node_ips(config);
    let mut turn = urls.iter().cycle();
    let (url, ca) = loop {
        let url = turn.next().expect("there is at least one server");
        match validate(url, token) {
            Ok(ca) => break (url.as_str(), ca),
            Err(why) => log::error(format!("Failed to validate connection to cluster at {url}: {why}")),
        }
        std::thread::sleep(paths::seconds("validate_retry", 2.0));
    };
    loop {
        match configure(config, url, token, &ca, &ips) {
            Ok(mut joined) => {
                joined.urls.extend(urls.iter().filter(|u| *u != url).cloned());
                return joined;
            }
            Err(why) => {
                log::info(format!("Waiting to retrieve agent configuration; server is not ready: {why}"))
            }
        }
        // wait.JitterUntilWithContext(5 s, factor 1.0): between one and two periods.
        let period = paths::seconds("config_retry", 5.0);
        let jitter = f64::from(util::random(1)[0]) / 256.0;
        std::thread::sleep(period + Duration::from_secs_f64(period.as_secs_f64() * jitter));
    }
}

/// `clientaccess.ParseAndValidateToken`: fetches the CA, and checks it when the token has its hash.
pub fn validate(url: &str, token: &str) -> Result<String, String> {
    let hash = match token.strip_prefix("K10") {
        Some(rest) => Some(rest.split_once("::").ok_or("invalid token format")?.0),
        None => None,
    };
    parse_url(url)?;
    let get = |client: Client| {
        let answer = client.get("/cacerts").map_err(|e| transport("/cacerts", &e))?;
        if answer.ok() { Ok(answer.text()) } else { Err(status("/cacerts", answer.status)) }
    };
    let insecure = Client::new(url, None, None).map_err(|e| e.to_string())?;
    let ca = get(insecure).map_err(|e| format!("failed to get CA certs: {e}"))?;
    let trusting =
        Client::new(url, Some(&ca), None).map_err(|e| format!("CA cert validation failed: {e}"))?;
    get(trusting).map_err(|e| format!("CA cert validation failed: {e}"))?;
    let found = util::sha256(ca.as_bytes());
    match hash {
        Some(hash) if hash != found => {
            Err(format!("token CA hash does not match the Cluster CA certificate hash: {hash} != {found}"))
        }
        Some(_) => Ok(ca),
        None => {
            log::warn(
                "Cluster CA certificate is not trusted by the host CA bundle, but the token does not include a CA hash. \
                       Use the full token from the server's node-token file to enable Cluster CA validation.",
            );
            Ok(ca)
        }
    }
}

/// `pkg/agent/config.get`, in its order.
fn configure(config: &Config, url: &str, token: &str, ca: &str, ips: &[String]) -> Result<Joined, String> {
    let credentials = token.split_once("::").map_or(token, |(_, c)| c);
    // WithUser("node"), except for the id of a token of `k3s token create`.
    let (user, password) = match (credentials.split_once(':'), credentials.split_once('.')) {
        (Some((_, password)), _) => ("node", password),
        (None, Some((id, secret))) if id.len() == 6 && secret.len() == 16 => (id, secret),
        _ => ("node", credentials),
    };
    let name = config.node_name();
    let client = || -> Result<Client, String> {
        Ok(Client::new(url, Some(ca), None).map_err(|e| e.to_string())?.basic(user, password))
    };
    let get = |client: Client, path: &str| {
        let answer = client.get(path).map_err(|e| transport(path, &e))?;
        if answer.ok() { Ok(answer) } else { Err(status(path, answer.status)) }
    };
    let cluster = get(client()?, "/v1-k3s/config")
        .map_err(|e| format!("failed to retrieve configuration from server: {e}"))?
        .json();

    if let Some(interface) = config.get("flannel-iface").filter(|_| cluster["FlannelBackend"] != "none")
        && !std::path::Path::new("/sys/class/net").join(&interface).exists()
    {
        return Err(format!("unable to find interface {interface}: route ip+net: no such network interface"));
    }

    let agent = config.data_dir().join("agent");
    for file in ["client-ca.crt", "server-ca.crt"] {
        let answer = get(client()?, &format!("/v1-k3s/{file}"))?;
        util::write_atomically(&agent.join(file), &answer.body, 0o600).map_err(|e| e.to_string())?;
    }

    let file = "/etc/rancher/node/password";
    let node_password = node_password(file)?;
    let named = |kind: &str| -> Result<Pair, String> {
        let path = format!("/v1-k3s/{kind}.crt");
        let client = client()?
            .header("k3s-Node-Name", &name)
            .header("k3s-Node-Password", &node_password)
            .header("k3s-Node-IP", &ips.join(","));
        let answer = client.get(&path).map_err(|e| transport(&path, &e))?;
        if answer.status == 403 {
            return Err(format!(
                "Node password rejected, duplicate hostname or contents of '{file}' may not match server node-passwd \
                 entry, try enabling a unique node name with the --with-node-id flag"
            ));
        }
        if !answer.ok() {
            return Err(status(&path, answer.status));
        }
        let pair = Pair::split(&answer.text()).ok_or("no key in the server's answer")?;
        pair.write(&agent, kind).map_err(|e| e.to_string())?;
        Ok(pair)
    };
    let serving = named("serving-kubelet")?;
    let client = named("client-kubelet")?;
    Ok(Joined {
        urls: vec![url.to_owned()],
        ca: ca.to_owned(),
        client,
        serving,
        name,
        ips: ips.to_vec(),
        cluster,
    })
}

/// Made once per machine and kept by the uninstall script, so a machine keeps its name across
/// installations and a re-created one does not get it back unasked.
fn node_password(file: &str) -> Result<String, String> {
    let path = paths::at(file);
    if let Some(password) = util::read(&path) {
        return Ok(password);
    }
    let password = util::random_hex(16);
    util::write_atomically(&path, format!("{password}\n").as_bytes(), 0o600)
        .map_err(|e| format!("open {file}: {e}"))?;
    Ok(password)
}

fn status(path: &str, code: u16) -> String {
    format!("{BALANCER}{path}: {code} {}", crate::http::phrase(code))
}

/// What the real agent sees through its load-balancer: the connection to 127.0.0.1:6444 works and is
/// then reset, whatever keeps it from the server.
fn transport(path: &str, error: &std::io::Error) -> String {
    use std::io::ErrorKind::{TimedOut, WouldBlock};
    let text = error.to_string();
    let why = match error.kind() {
        TimedOut | WouldBlock => {
            "context deadline exceeded (Client.Timeout exceeded while awaiting headers)".to_owned()
        }
        _ if text.contains("UnknownIssuer") || text.contains("BadSignature") => {
            "tls: failed to verify certificate: x509: certificate signed by unknown authority".to_owned()
        }
        _ if text.contains("NotValidForName") => {
            format!(
                "tls: failed to verify certificate: x509: certificate is not valid for the server's name: {text}"
            )
        }
        _ if text.contains("no such host") => text,
        _ => {
            let port = 32_768 + u16::from(util::random(1)[0]) * 100;
            format!("read tcp 127.0.0.1:{port}->127.0.0.1:6444: read: connection reset by peer")
        }
    };
    format!("Get \"{BALANCER}{path}\": {why}")
}
