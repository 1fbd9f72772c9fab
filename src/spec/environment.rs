//! What k3s and its containerd have in their environment: `k3s.env`, and `proxy`, which fills it.

use std::collections::BTreeMap;

use serde_json::{Value as Json, json};

use super::file::{File, ProxyFile};
use super::node::{Node as Written, Value};
use super::report::{Report, short};
use super::settings::{self, PODS, SERVICES};
use super::shape::{At, Field, Shape, entries, text, wrong_kind};
use super::value::is_variable;
use super::{Endpoint, Network, Node};

/// Variables and their values.
#[derive(Clone, Debug, Default)]
pub(super) struct Environment(pub Vec<At<(String, String)>>);

/// What programs written in Go ask for proxies.
const PROXIES: [&str; 3] = ["HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY"];

impl Shape for Environment {
    fn schema() -> Json {
        json!({
            "type": "object",
            "propertyNames": { "pattern": "^[A-Za-z_][A-Za-z0-9_]*$" },
            "additionalProperties": { "type": ["string", "number", "boolean"] },
        })
    }

    fn read(node: &Written, report: &mut Report<'_>) -> Option<Self> {
        let mut out = Vec::new();
        for (name, at, value) in entries(node, report)? {
            if !is_variable(name) {
                let message = format!("`{}` is not a variable", short(name));
                report.error(at, message, "Names are letters, digits and `_`, with no digit in front.");
                continue;
            }
            if name.starts_with("K3S_") || name.starts_with("INSTALL_K3S_") {
                let message = format!("`{name}` cannot be set in the spec");
                let help = "k3s takes its settings from there too, over what p1 writes: set it under `k3s.config`, or under \
                            `k3s.token` and `k3s.endpoint`.";
                report.error(at, message, help);
                continue;
            }
            let text = match &value.value {
                Value::Text(text) => text.clone(),
                Value::Bool(value) => value.to_string(),
                Value::Int(value) => value.to_string(),
                Value::Large(value) => value.to_string(),
                Value::Float(value) => value.to_string(),
                _ => {
                    wrong_kind(value, "a value", "Write text, a number, `true` or `false`.", report);
                    continue;
                }
            };
            if text.chars().any(char::is_control) {
                let message = format!("the variable `{name}` has a control character");
                report.error(value.at, message, "Write it on one line.");
                continue;
            }
            out.push(At { at, value: (name.to_owned(), text) });
        }
        Some(Self(out))
    }
}

/// `http://user:password@host:port`, as Go's programs take it.
#[derive(Clone, Debug)]
pub(super) struct ProxyUrl(pub String);

impl Shape for ProxyUrl {
    fn schema() -> Json {
        json!({ "type": "string", "pattern": "^(https?|socks5)://[!-~]+$" })
    }

    fn read(node: &Written, report: &mut Report<'_>) -> Option<Self> {
        let text = text(node, report)?;
        let rest = ["https://", "http://", "socks5://"].iter().find_map(|scheme| text.strip_prefix(scheme));
        let host = rest.map(|rest| rest.rsplit('@').next().unwrap_or_default());
        let good = host.is_some_and(|host| !host.is_empty() && !host.starts_with([':', '/']));
        if good && text.chars().all(|c| c.is_ascii_graphic()) {
            return Some(Self(text.to_owned()));
        }
        let help = "Write it with its scheme and port: `http://proxy.lan:3128`.";
        report.error(node.at, "this is not the address of a proxy", help);
        None
    }
}

/// A host, a domain or a network that is reached without a proxy.
#[derive(Clone, Debug)]
pub(super) struct Direct(pub String);

impl Shape for Direct {
    fn schema() -> Json {
        json!({ "type": "string", "pattern": "^[^\\s,]+$" })
    }

    fn read(node: &Written, report: &mut Report<'_>) -> Option<Self> {
        let text = text(node, report)?;
        if !text.is_empty() && text.chars().all(|c| c.is_ascii_graphic() && c != ',') {
            return Some(Self(text.to_owned()));
        }
        let message = format!("`{}` is not a host, a domain or a network", node.shown(report));
        report.error(node.at, message, "Write one per item: `registry.lan`, `.lan`, `10.0.0.0/8`.");
        None
    }
}

/// What does not go together.
pub(super) fn check(file: &File, report: &mut Report<'_>) {
    let env = file.k3s.value().and_then(|k3s| k3s.env.value());
    let is = |name: &str| PROXIES.iter().any(|proxy| name.eq_ignore_ascii_case(proxy));
    let given: Vec<_> = env.into_iter().flat_map(|env| &env.0).filter(|one| is(&one.value.0)).collect();
    if let Some(proxy) = file.proxy.get() {
        for one in &given {
            let help = "Keep one of the two: `proxy` has `http`, `https` and `no_proxy`.";
            report.error(one.at, format!("`{}` is filled by `proxy`", one.value.0), help);
        }
        let none = |field: &Field<ProxyUrl>| matches!(field, Field::Missing);
        if none(&proxy.value.http) && none(&proxy.value.https) && proxy.value.no_proxy.get().is_some() {
            let help = "Write its address: `proxy: {http: \"http://proxy.lan:3128\"}`.";
            report.error(proxy.at, "`proxy` names no proxy", help);
        }
    } else if let Some(first) = given.first()
        && !given.iter().any(|one| one.value.0.eq_ignore_ascii_case("NO_PROXY"))
    {
        let help = "What nodes, pods and services say to each other would go there too. `proxy` in its place keeps that out.";
        report.warning(first.at, format!("`{}` without `NO_PROXY`", first.value.0), help);
    }
}

/// The variables of every node. `server` is the first one, whose settings say which networks the cluster has.
pub(super) fn of(file: &File, network: &Network, nodes: &[Node]) -> BTreeMap<String, String> {
    let k3s = file.k3s.value();
    let given = k3s.and_then(|k3s| k3s.env.value()).into_iter().flat_map(|env| &env.0);
    let mut env: BTreeMap<String, String> = given.map(|one| one.value.clone()).collect();
    let Some(proxy) = file.proxy.value() else { return env };
    let url = |field: &Field<ProxyUrl>| field.value().map(|url| url.0.clone());
    let (http, https) = (url(&proxy.http), url(&proxy.https));
    if http.is_none() && https.is_none() {
        return env;
    }
    for (name, url) in [("HTTP_PROXY", http.clone().or(https.clone())), ("HTTPS_PROXY", https.or(http))] {
        env.extend(url.map(|url| (name.to_owned(), url)));
    }
    let endpoint = k3s.and_then(|k3s| k3s.endpoint.value());
    env.insert("NO_PROXY".to_owned(), direct(proxy, network, nodes, endpoint).join(","));
    env
}

/// Everything of the cluster's own, and what the spec adds. The nodes by their network: where each was named, a node that
/// comes would restart all others.
fn direct(proxy: &ProxyFile, network: &Network, nodes: &[Node], endpoint: Option<&Endpoint>) -> Vec<String> {
    let server = nodes.iter().find(|node| node.role == super::Role::Server);
    let setting = |key: &str, default: &str| settings::words_of(server, key, default);
    let local = ["localhost", "127.0.0.0/8"].map(str::to_owned);
    let own = local.into_iter().chain((!network.is_none()).then(|| network.cidr.to_string()));
    let outside =
        nodes.iter().filter(|node| !network.cidr.contains(&node.ip)).map(|node| node.ip.to_string());
    let domains = setting("cluster-domain", "cluster.local").into_iter().map(|domain| format!(".{domain}"));
    let given = proxy.no_proxy.value().into_iter().flatten().flatten().map(|one| one.value.0.clone());
    let all = own
        .chain(outside)
        .chain(setting("cluster-cidr", PODS))
        .chain(setting("service-cidr", SERVICES))
        .chain([".svc".to_owned()])
        .chain(domains)
        .chain(endpoint.map(|endpoint| endpoint.host.clone()))
        .chain(given);
    let mut out: Vec<String> = Vec::new();
    for one in all {
        if !out.contains(&one) {
            out.push(one);
        }
    }
    out
}
