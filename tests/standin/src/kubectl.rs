//! Enough of `kubectl`: what p1 and a curious person type, with the real one's words and exit codes.

use std::io::Read;
use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::client::Client;
use crate::controllers::is_ready;
use crate::resources::{self, Resource};
use crate::{kubeconfig, paths, util};

/// A cluster reached through a kubeconfig.
pub struct Connection {
    client: Client,
    pub ca: String,
    server: String,
}

impl Connection {
    pub fn open(flag: Option<&str>) -> Result<Self, String> {
        let path = kubeconfig::locate(flag);
        let access = kubeconfig::read(&path).map_err(|e| {
            if path.exists() {
                format!("error: error loading config file \"{}\": {e}", path.display())
            } else if flag.is_some() || std::env::var("KUBECONFIG").is_ok() {
                format!("error: stat {}: no such file or directory", path.display())
            } else {
                // k3s' kubectl falls back to the defaults of an empty configuration.
                refused("localhost:8080")
            }
        })?;
        let client = Client::new(&access.server, Some(&access.ca), Some(&access.pair))
            .map_err(|e| format!("error: {e}"))?;
        Ok(Connection { client, ca: access.ca, server: access.server })
    }

    fn call(&self, method: &str, path: &str, body: Option<&Value>) -> Result<(u16, Vec<u8>), String> {
        let kind = match method {
            "PATCH" if path.contains("fieldManager=") => "application/apply-patch+yaml",
            "PATCH" => "application/strategic-merge-patch+json",
            _ => "application/json",
        };
        let answer =
            self.client.send(method, path, body.map(|b| (kind, b.to_string()))).map_err(|e| {
                match e.kind() {
                    std::io::ErrorKind::ConnectionRefused => refused(&self.client.authority()),
                    _ => format!("Unable to connect to the server: {e}"),
                }
            })?;
        if answer.ok() {
            return Ok((answer.status, answer.body));
        }
        let status = answer.json();
        let reason = status["reason"].as_str().unwrap_or("InternalError");
        let message = status["message"].as_str().map_or_else(|| answer.text(), str::to_owned);
        Err(match answer.status {
            401 => "error: You must be logged in to the server (Unauthorized)".into(),
            _ => format!("Error from server ({reason}): {message}"),
        })
    }

    /// Makes the cluster's own kinds known, as the real one finds them by discovery.
    fn learn(&self) {
        let path = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions";
        let list = self.read(path).unwrap_or_default();
        for definition in list["items"].as_array().into_iter().flatten() {
            for (prefix, plural, kind, namespaced) in resources::defined(definition) {
                resources::learn(&prefix, &plural, &kind, namespaced);
            }
        }
    }

    pub fn read(&self, path: &str) -> Result<Value, String> {
        let (_, body) = self.call("GET", path, None)?;
        serde_json::from_slice(&body).map_err(|e| format!("error: {e}"))
    }

    pub fn write(&self, method: &str, path: &str, body: &Value) -> Result<Value, String> {
        let (_, body) = self.call(method, path, Some(body))?;
        Ok(serde_json::from_slice(&body).unwrap_or_default())
    }
}

fn refused(authority: &str) -> String {
    format!("The connection to the server {authority} was refused - did you specify the right host or port?")
}

/// The command line, taken apart once. Flags may stand anywhere.
struct Line {
    words: Vec<String>,
    flags: Vec<(String, String)>,
}

/// Flags without a value. Any other one is unknown, and that is an error, as it is for the real one: what is
/// passed over would seem to be done.
const SWITCHES: &[&str] = &[
    "-A",
    "--all-namespaces",
    "--all",
    "--cascade",
    "--client",
    "--delete-emptydir-data",
    "--force",
    "--force-conflicts",
    "-h",
    "--help",
    "--ignore-daemonsets",
    "--ignore-not-found",
    "--no-headers",
    "--now",
    "--overwrite",
    "--previous",
    "--recursive",
    "-R",
    "--server-side",
    "--show-labels",
    "--wait",
];

/// Flags that take a value.
const VALUED: &[&str] = &[
    "-n",
    "--namespace",
    "-o",
    "--output",
    "--kubeconfig",
    "--raw",
    "-l",
    "--selector",
    "--field-selector",
    "--timeout",
    "--for",
    "-f",
    "--filename",
    "--grace-period",
    "--request-timeout",
    "--sort-by",
    "--context",
    "--image",
    "--port",
    "--restart",
    "-s",
    "--server",
    "--pod-selector",
    "--field-manager",
    "--for-condition",
    "-p",
    "--patch",
    "--type",
    "--replicas",
    "-c",
    "--container",
    "--tail",
];

impl Line {
    fn parse(arguments: &[String]) -> Result<Self, String> {
        let mut line = Line { words: vec![], flags: vec![] };
        let mut rest = arguments.iter();
        while let Some(argument) = rest.next() {
            if argument == "--" {
                line.words.extend(rest.cloned());
                break;
            }
            if argument == "--raw" && line.word(0) == "config" {
                line.flags.push((argument.clone(), "true".into()));
            } else if argument == "-" || !argument.starts_with('-') {
                line.words.push(argument.clone());
            } else if let Some((name, value)) = argument.split_once('=').filter(|(n, _)| n.starts_with('-')) {
                if !VALUED.contains(&name) && !SWITCHES.contains(&name) {
                    return Err(format!("error: unknown flag: {name}"));
                }
                line.flags.push((name.into(), value.into()));
            } else if VALUED.contains(&argument.as_str()) {
                let value =
                    rest.next().ok_or_else(|| format!("error: flag needs an argument: {argument}"))?;
                line.flags.push((argument.clone(), value.clone()));
            } else if let Some(name) = VALUED
                .iter()
                .find(|v| v.len() == 2 && argument.starts_with(**v) && !argument.starts_with("--"))
            {
                line.flags.push(((*name).into(), argument[2..].into()));
            } else if !SWITCHES.contains(&argument.as_str()) {
                return Err(match argument.starts_with("--") {
                    true => format!("error: unknown flag: {argument}"),
                    false => format!("error: unknown shorthand flag: {argument}"),
                });
            } else {
                line.flags.push((argument.clone(), "true".into()));
            }
        }
        Ok(line)
    }

    fn get(&self, names: &[&str]) -> Option<&str> {
        self.flags.iter().rev().find(|(n, _)| names.contains(&n.as_str())).map(|(_, v)| v.as_str())
    }

    fn on(&self, names: &[&str]) -> bool {
        self.get(names).is_some_and(|v| v != "false")
    }

    fn namespace(&self) -> &str {
        self.get(&["-n", "--namespace"]).unwrap_or("default")
    }

    fn output(&self) -> &str {
        self.get(&["-o", "--output"]).unwrap_or_default()
    }

    fn timeout(&self, default: u64) -> Duration {
        Duration::from_secs(self.get(&["--timeout"]).and_then(duration).unwrap_or(default))
    }

    fn word(&self, index: usize) -> &str {
        self.words.get(index).map_or("", String::as_str)
    }
}

/// Go's durations as far as people write them: `90s`, `5m`, `1h30m`; a bare `0`.
pub fn duration(text: &str) -> Option<u64> {
    let (mut total, mut digits) = (0, String::new());
    for c in text.chars() {
        match c {
            '0'..='9' => digits.push(c),
            'h' | 'm' | 's' => {
                let unit = match c {
                    'h' => 3600,
                    'm' => 60,
                    _ => 1,
                };
                total += digits.parse::<u64>().ok()? * unit;
                digits.clear();
            }
            _ => return None,
        }
    }
    match digits.as_str() {
        "" => Some(total),
        "0" => Some(total),
        _ => None,
    }
}

pub fn main(arguments: &[String]) -> ExitCode {
    match run(arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            eprintln!("{message}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &[String]) -> Result<(), String> {
    let line = Line::parse(arguments)?;
    let open = || {
        let connection = Connection::open(line.get(&["--kubeconfig"]))?;
        if matches!(line.word(0), "get" | "delete" | "label" | "annotate" | "wait") {
            connection.learn();
        }
        Ok(connection)
    };
    match line.word(0) {
        "get" => get(&line, &open()?),
        "delete" => delete(&line, &open()?),
        "create" if matches!(line.word(1), "namespace" | "ns") => {
            let name = line.word(2);
            let body = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}});
            open()?.write("POST", "/api/v1/namespaces", &body)?;
            println!("namespace/{name} created");
            Ok(())
        }
        "run" => launch(&line, &open()?),
        "apply" | "create" => apply(&line, &open()?, line.word(0) == "create"),
        "diff" => diff(&line, &open()?),
        "kustomize" => crate::kustomize::main(line.word(1)),
        "cordon" => cordon(&open()?, line.word(1), true),
        "uncordon" => cordon(&open()?, line.word(1), false),
        "drain" => drain(&line, &open()?),
        "label" | "annotate" | "taint" => mark(&line, &open()?),
        "wait" => wait(&line, &open()?),
        "logs" => logs(&line, &open()?),
        "describe" => describe(&line, &open()?),
        "rollout" => rollout(&line, &open()?),
        "version" => version(&line, open()),
        "cluster-info" => {
            let connection = open()?;
            connection.read("/version")?;
            println!("Kubernetes control plane (k3s stand-in) is running at {}", connection.server);
            Ok(())
        }
        "auth" if line.word(1) == "can-i" => {
            open()?.read("/version")?;
            println!("yes");
            Ok(())
        }
        "config" if line.word(1) == "view" => config_view(&line),
        "config" if line.word(1) == "current-context" => {
            println!("default");
            Ok(())
        }
        "" | "help" => {
            println!(
                "kubectl of the k3s stand-in: get, delete, run, apply, create, diff, kustomize, cordon, uncordon, drain, label, annotate, taint, wait, logs, describe, rollout status, version, cluster-info, auth can-i, config view"
            );
            Ok(())
        }
        other => Err(format!(
            "error: unknown command \"{other}\" for \"kubectl\": the k3s stand-in does not know it"
        )),
    }
}

fn resource(word: &str) -> Result<&'static Resource, String> {
    resources::by_word(word).ok_or_else(|| {
        format!("error: the server doesn't have a resource type \"{word}\" (k3s stand-in does not know it)")
    })
}

fn url(resource: &Resource, namespace: Option<&str>, name: Option<&str>) -> String {
    let mut path = format!("/{}", resource.prefix);
    if let Some(namespace) = namespace.filter(|_| resource.namespaced) {
        path += &format!("/namespaces/{namespace}");
    }
    path += &format!("/{}", resource.plural);
    if let Some(name) = name {
        path += &format!("/{}", encode(name));
    }
    path
}

/// `TYPE NAME...`, `TYPE/NAME...` or `TYPE`, from the given word on.
fn targets(line: &Line, from: usize) -> Result<Vec<(&'static Resource, Option<String>)>, String> {
    let words = &line.words[from.min(line.words.len())..];
    let Some(first) = words.first() else {
        return Err("error: You must specify the type of resource.".into());
    };
    if first.contains('/') {
        return words.iter().map(|w| {
            let (kind, name) = w.split_once('/').ok_or("error: there is no need to specify a resource type as a separate argument when passing arguments in resource/name form")?;
            Ok((resource(kind)?, Some(name.to_owned())))
        }).collect();
    }
    let mut found = vec![];
    for kind in first.split(',') {
        let resource = resource(kind)?;
        match &words[1..] {
            [] => found.push((resource, None)),
            names => found.extend(names.iter().map(|n| (resource, Some(n.clone())))),
        }
    }
    Ok(found)
}

fn encode(text: &str) -> String {
    text.bytes()
        .map(|b| match b {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' => (b as char).to_string(),
            b => format!("%{b:02X}"),
        })
        .collect()
}

fn logs(line: &Line, connection: &Connection) -> Result<(), String> {
    let path = format!(
        "/api/v1/namespaces/{}/pods/{}/log?previous={}",
        line.namespace(),
        encode(line.word(1)),
        line.on(&["--previous"])
    );
    let (_, body) = connection.call("GET", &path, None)?;
    print!("{}", String::from_utf8_lossy(&body));
    Ok(())
}

/// Not in the real one's form, and with all that is in it.
fn describe(line: &Line, connection: &Connection) -> Result<(), String> {
    for (resource, name) in targets(line, 1)? {
        let object = connection.read(&url(resource, Some(line.namespace()), name.as_deref()))?;
        println!("{}", serde_yaml::to_string(&object).unwrap_or_default());
    }
    Ok(())
}

fn get(line: &Line, connection: &Connection) -> Result<(), String> {
    if let Some(path) = line.get(&["--raw"]) {
        let (_, body) = connection.call("GET", path, None)?;
        print!("{}", String::from_utf8_lossy(&body));
        return Ok(());
    }
    let everywhere = line.on(&["-A", "--all-namespaces"]);
    let namespace = (!everywhere).then(|| line.namespace());
    let mut items: Vec<(&Resource, Value)> = vec![];
    let (mut single, mut errors) = (false, vec![]);
    for (resource, name) in targets(line, 1)? {
        let mut path = url(resource, namespace, name.as_deref());
        let filters: Vec<String> = [
            ("labelSelector", line.get(&["-l", "--selector"])),
            ("fieldSelector", line.get(&["--field-selector"])),
        ]
        .into_iter()
        .filter_map(|(k, v)| Some(format!("{k}={}", encode(v?))))
        .collect();
        if !filters.is_empty() {
            path += &format!("?{}", filters.join("&"));
        }
        match connection.read(&path) {
            Ok(object) if name.is_some() => {
                single = true;
                items.push((resource, object));
            }
            Ok(mut list) => {
                let (kind, version) = (resource.kind, resource.api_version());
                for item in list["items"].as_array_mut().map(std::mem::take).unwrap_or_default() {
                    let mut item = item;
                    item["kind"] = json!(kind);
                    item["apiVersion"] = json!(version);
                    items.push((resource, item));
                }
            }
            Err(_) if name.is_some() && line.on(&["--ignore-not-found"]) => single = true,
            Err(error) => errors.push(error),
        }
    }
    if items.len() != 1 {
        single = false;
    }
    let whole = || -> Value {
        if single {
            items[0].1.clone()
        } else {
            json!({"apiVersion": "v1", "kind": "List", "metadata": {"resourceVersion": ""}, "items": items.iter().map(|(_, o)| o).collect::<Vec<_>>()})
        }
    };
    match line.output() {
        "json" => println!("{}", serde_json::to_string_pretty(&whole()).unwrap_or_default()),
        "yaml" => print!("{}", serde_yaml::to_string(&whole()).unwrap_or_default()),
        "name" => {
            for (resource, object) in &items {
                println!(
                    "{}/{}",
                    resource.qualified(&resource.singular()),
                    object["metadata"]["name"].as_str().unwrap_or_default()
                );
            }
        }
        format if format.starts_with("jsonpath=") => {
            let template = format.trim_start_matches("jsonpath=");
            print!("{}", jsonpath(&whole(), template)?);
        }
        "" | "wide" => table(line, &items, everywhere),
        other => {
            return Err(format!(
                "error: unable to match a printer suitable for the output format \"{other}\", the k3s stand-in knows json, yaml, name, wide and simple jsonpath"
            ));
        }
    }
    if items.is_empty() && errors.is_empty() && matches!(line.output(), "" | "wide") {
        match namespace {
            Some(namespace) if targets(line, 1)?.iter().any(|(r, _)| r.namespaced) => {
                eprintln!("No resources found in {namespace} namespace.");
            }
            _ => eprintln!("No resources found"),
        }
    }
    if errors.is_empty() { Ok(()) } else { Err(errors.join("\n")) }
}

/// `{.a.b[0].c}`, `[*]` and `[?(@.type=="Ready")]`, with text around; no `range`.
fn jsonpath(root: &Value, template: &str) -> Result<String, String> {
    let mut out = String::new();
    let mut rest = template;
    while let Some(start) = rest.find('{') {
        out += &rest[..start];
        let end = rest[start..].find('}').ok_or("error: error parsing jsonpath: unclosed action")? + start;
        let expression = &rest[start + 1..end];
        rest = &rest[end + 1..];
        if let Some(text) = expression.strip_prefix('"').and_then(|e| e.strip_suffix('"')) {
            out += &text.replace("\\n", "\n").replace("\\t", "\t");
            continue;
        }
        let mut found = vec![root];
        for step in steps(expression)? {
            found = found
                .into_iter()
                .flat_map(|value| match step.as_str() {
                    "*" => value.as_array().map(|a| a.iter().collect()).unwrap_or_default(),
                    s if s.starts_with("?(@.") => {
                        let (field, wanted) =
                            s[4..].trim_end_matches(')').split_once("==").unwrap_or_default();
                        let wanted = wanted.trim_matches(['"', '\'', ' ']);
                        value
                            .as_array()
                            .map(|a| a.iter().filter(|e| e[field.trim()] == wanted).collect())
                            .unwrap_or_default()
                    }
                    s => match s.parse::<usize>() {
                        Ok(index) if value.is_array() => value.get(index).into_iter().collect(),
                        _ => value.get(s).into_iter().collect::<Vec<_>>(),
                    },
                })
                .collect();
        }
        let texts: Vec<String> =
            found.into_iter().map(|v| v.as_str().map_or_else(|| v.to_string(), str::to_owned)).collect();
        out += &texts.join(" ");
    }
    Ok(out + rest)
}

fn steps(expression: &str) -> Result<Vec<String>, String> {
    let (mut steps, mut current, mut depth, mut chars) =
        (vec![], String::new(), 0, expression.chars().peekable());
    if expression.starts_with("range") || expression == "end" {
        return Err("error: the k3s stand-in does not know range in jsonpath".into());
    }
    while let Some(c) = chars.next() {
        match c {
            '\\' => current.extend(chars.next()),
            '.' if depth == 0 => steps.push(std::mem::take(&mut current)),
            '[' if depth == 0 => {
                steps.push(std::mem::take(&mut current));
                depth = 1;
            }
            ']' if depth == 1 => {
                steps.push(std::mem::take(&mut current));
                depth = 0;
            }
            c => current.push(c),
        }
    }
    steps.push(current);
    steps.retain(|s| !s.is_empty() && s != "$");
    Ok(steps)
}

fn table(line: &Line, items: &[(&Resource, Value)], everywhere: bool) {
    let wide = line.output() == "wide";
    let mut kinds: Vec<&Resource> = vec![];
    for (resource, _) in items {
        if !kinds.iter().any(|k| k.kind == resource.kind) {
            kinds.push(resource);
        }
    }
    for (index, kind) in kinds.iter().enumerate() {
        if index > 0 {
            println!();
        }
        let mut rows: Vec<Vec<String>> = vec![];
        for (_, object) in items.iter().filter(|(r, _)| r.kind == kind.kind) {
            let (header, mut row) = columns(kind, object, wide);
            let mut header: Vec<String> = header.into_iter().map(str::to_owned).collect();
            if everywhere && kind.namespaced {
                header.insert(0, "NAMESPACE".into());
                row.insert(0, text(&object["metadata"]["namespace"]));
            }
            if rows.is_empty() && !line.on(&["--no-headers"]) {
                rows.push(header);
            }
            if kinds.len() > 1
                && let Some(name) = row.iter_mut().find(|c| **c == text(&object["metadata"]["name"]))
            {
                *name = format!("{}/{name}", kind.qualified(&kind.singular()));
            }
            rows.push(row);
        }
        let width =
            |column: usize| rows.iter().filter_map(|r| r.get(column)).map(String::len).max().unwrap_or(0);
        for row in &rows {
            let cells: Vec<String> =
                row.iter().enumerate().map(|(i, c)| format!("{c:<w$}", w = width(i))).collect();
            println!("{}", cells.join("   ").trim_end());
        }
    }
}

fn text(value: &Value) -> String {
    value.as_str().map_or_else(
        || {
            if value.is_null() { String::new() } else { value.to_string() }
        },
        str::to_owned,
    )
}

fn address(node: &Value, kind: &str) -> String {
    node["status"]["addresses"]
        .as_array()
        .into_iter()
        .flatten()
        .find(|a| a["type"] == kind)
        .map_or_else(|| "<none>".into(), |a| text(&a["address"]))
}

fn node_status(node: &Value) -> String {
    let ready = node["status"]["conditions"].as_array().into_iter().flatten().find(|c| c["type"] == "Ready");
    let mut status = match ready.and_then(|c| c["status"].as_str()) {
        Some("True") => "Ready",
        Some(_) => "NotReady",
        None => "Unknown",
    }
    .to_owned();
    if node["spec"]["unschedulable"] == true {
        status += ",SchedulingDisabled";
    }
    status
}

fn columns(kind: &Resource, object: &Value, wide: bool) -> (Vec<&'static str>, Vec<String>) {
    let meta = &object["metadata"];
    let status = &object["status"];
    let (name, age) =
        (text(&meta["name"]), util::age(meta["creationTimestamp"].as_str().unwrap_or_default()));
    match kind.kind {
        "Node" => {
            let mut roles: Vec<String> = meta["labels"]
                .as_object()
                .into_iter()
                .flatten()
                .filter_map(|(k, _)| k.strip_prefix("node-role.kubernetes.io/").map(str::to_owned))
                .collect();
            roles.sort();
            let roles = if roles.is_empty() { "<none>".into() } else { roles.join(",") };
            let info = &status["nodeInfo"];
            let mut header = vec!["NAME", "STATUS", "ROLES", "AGE", "VERSION"];
            let mut row = vec![name, node_status(object), roles, age, text(&info["kubeletVersion"])];
            if wide {
                header.extend([
                    "INTERNAL-IP",
                    "EXTERNAL-IP",
                    "OS-IMAGE",
                    "KERNEL-VERSION",
                    "CONTAINER-RUNTIME",
                ]);
                row.extend([
                    address(object, "InternalIP"),
                    address(object, "ExternalIP"),
                    text(&info["osImage"]),
                    text(&info["kernelVersion"]),
                    text(&info["containerRuntimeVersion"]),
                ]);
            }
            (header, row)
        }
        "Pod" => {
            let containers = status["containerStatuses"].as_array().cloned().unwrap_or_default();
            let total = object["spec"]["containers"].as_array().map_or(0, Vec::len);
            let ready = containers.iter().filter(|c| c["ready"] == true).count();
            let reason = containers.iter().find_map(|c| {
                c["state"]["waiting"]["reason"].as_str().or(c["state"]["terminated"]["reason"].as_str())
            });
            let shown = reason.map_or_else(|| text(&status["phase"]), str::to_owned);
            let mut header = vec!["NAME", "READY", "STATUS", "RESTARTS", "AGE"];
            let mut row = vec![name, format!("{ready}/{total}"), shown, "0".into(), age];
            if wide {
                let or_none = |v: &Value| {
                    if v.is_string() { text(v) } else { "<none>".into() }
                };
                header.extend(["IP", "NODE", "NOMINATED NODE", "READINESS GATES"]);
                row.extend([
                    or_none(&status["podIP"]),
                    or_none(&object["spec"]["nodeName"]),
                    "<none>".into(),
                    "<none>".into(),
                ]);
            }
            (header, row)
        }
        "Event" => {
            let involved = &object["involvedObject"];
            (
                vec!["LAST SEEN", "TYPE", "REASON", "OBJECT", "MESSAGE"],
                vec![
                    util::age(object["lastTimestamp"].as_str().unwrap_or_default()),
                    text(&object["type"]),
                    text(&object["reason"]),
                    format!("{}/{}", text(&involved["kind"]).to_lowercase(), text(&involved["name"])),
                    text(&object["message"]),
                ],
            )
        }
        "Namespace" => (vec!["NAME", "STATUS", "AGE"], vec![name, text(&status["phase"]), age]),
        "Secret" => {
            let count = object["data"].as_object().map_or(0, serde_json::Map::len);
            (vec!["NAME", "TYPE", "DATA", "AGE"], vec![name, text(&object["type"]), count.to_string(), age])
        }
        "ConfigMap" => {
            let count = object["data"].as_object().map_or(0, serde_json::Map::len);
            (vec!["NAME", "DATA", "AGE"], vec![name, count.to_string(), age])
        }
        "Deployment" => {
            let n = |field: &str| status[field].as_u64().unwrap_or(0);
            (
                vec!["NAME", "READY", "UP-TO-DATE", "AVAILABLE", "AGE"],
                vec![
                    name,
                    format!("{}/{}", n("readyReplicas"), object["spec"]["replicas"].as_u64().unwrap_or(1)),
                    n("updatedReplicas").to_string(),
                    n("availableReplicas").to_string(),
                    age,
                ],
            )
        }
        "Service" => {
            let ports: Vec<String> = object["spec"]["ports"]
                .as_array()
                .into_iter()
                .flatten()
                .map(|p| format!("{}/{}", p["port"], p["protocol"].as_str().unwrap_or("TCP")))
                .collect();
            let kind = object["spec"]["type"].as_str().unwrap_or("ClusterIP").to_owned();
            (
                vec!["NAME", "TYPE", "CLUSTER-IP", "EXTERNAL-IP", "PORT(S)", "AGE"],
                vec![name, kind, text(&object["spec"]["clusterIP"]), "<none>".into(), ports.join(","), age],
            )
        }
        _ => (vec!["NAME", "AGE"], vec![name, age]),
    }
}

fn delete(line: &Line, connection: &Connection) -> Result<(), String> {
    let mut errors = vec![];
    let mut wanted: Vec<(&Resource, String, String)> = vec![];
    if line.get(&["-f", "--filename"]).is_some() {
        for object in documents(line)? {
            let resource = kind_of(connection, &object)?;
            wanted.push((resource, namespace_of(line, &object), text(&object["metadata"]["name"])));
        }
    } else {
        for (resource, name) in targets(line, 1)? {
            let Some(name) = name else {
                return Err("error: resource(s) were provided, but no name was specified".into());
            };
            wanted.push((resource, line.namespace().to_owned(), name));
        }
    }
    for (resource, namespace, name) in wanted {
        match connection.write("DELETE", &url(resource, Some(&namespace), Some(&name)), &json!({})) {
            Ok(_) => {
                let place =
                    if resource.namespaced { format!(" from {namespace} namespace") } else { String::new() };
                println!("{} \"{name}\" deleted{place}", resource.qualified(&resource.singular()));
            }
            Err(e) if line.on(&["--ignore-not-found"]) && e.contains("(NotFound)") => {}
            Err(e) => errors.push(e),
        }
    }
    if errors.is_empty() { Ok(()) } else { Err(errors.join("\n")) }
}

fn namespace_of(line: &Line, object: &Value) -> String {
    object["metadata"]["namespace"].as_str().map_or_else(|| line.namespace().to_owned(), str::to_owned)
}

fn kind_of(connection: &Connection, object: &Value) -> Result<&'static Resource, String> {
    let (version, kind) = (text(&object["apiVersion"]), text(&object["kind"]));
    if resources::by_kind(&version, &kind).is_none() {
        // A kind that was defined in the cluster.
        let prefix = if version.contains('/') { format!("apis/{version}") } else { format!("api/{version}") };
        let found = connection.read(&format!("/{prefix}")).unwrap_or_default();
        for one in found["resources"].as_array().into_iter().flatten().filter(|r| r["kind"] == *kind) {
            resources::learn(&prefix, &text(&one["name"]), &kind, one["namespaced"] == true);
        }
    }
    resources::by_kind(&version, &kind).ok_or_else(|| format!(
        "error: resource mapping not found for name: \"{}\" namespace: \"{}\": no matches for kind \"{kind}\" in version \"{version}\"\nensure CRDs are installed first (k3s stand-in)",
        text(&object["metadata"]["name"]), text(&object["metadata"]["namespace"])
    ))
}

/// The YAML documents of every `-f`, directories in alphabetical order, `-` for standard input.
fn documents(line: &Line) -> Result<Vec<Value>, String> {
    let mut texts = vec![];
    for (_, file) in line.flags.iter().filter(|(n, _)| n == "-f" || n == "--filename") {
        if file == "-" {
            let mut text = String::new();
            std::io::stdin().read_to_string(&mut text).map_err(|e| format!("error: {e}"))?;
            texts.push(text);
            continue;
        }
        let path = Path::new(file);
        let mut files = vec![path.to_owned()];
        if path.is_dir() {
            files = std::fs::read_dir(path)
                .map_err(|e| format!("error: {e}"))?
                .flatten()
                .map(|e| e.path())
                .filter(|p| p.extension().is_some_and(|e| e == "yaml" || e == "yml" || e == "json"))
                .collect();
            files.sort();
        }
        for file in files {
            texts.push(
                std::fs::read_to_string(&file)
                    .map_err(|_| format!("error: the path \"{}\" does not exist", file.display()))?,
            );
        }
    }
    if texts.is_empty() {
        return Err("error: must specify one of -f and -k".into());
    }
    let mut objects = vec![];
    for text in texts {
        for value in values(&text)? {
            match (value["kind"].as_str(), value["items"].as_array()) {
                (Some("List"), Some(items)) => objects.extend(items.iter().cloned()),
                (Some(_), _) => objects.push(value),
                (None, _) if value.is_null() => {}
                (None, _) => {
                    return Err("error: error validating data: [apiVersion not set, kind not set]".into());
                }
            }
        }
    }
    Ok(objects)
}

/// As kubectl takes a text: one that begins with a brace is JSON to its end (apimachinery, pkg/util/yaml,
/// `GuessJSONStream`), any other is YAML.
fn values(text: &str) -> Result<Vec<Value>, String> {
    use serde::de::Deserialize as _;
    if text.trim_start().starts_with('{') {
        let all = serde_json::Deserializer::from_str(text).into_iter();
        return all
            .map(|value| value.map_err(|e| format!("error: error parsing STDIN: json: {e}")))
            .collect();
    }
    serde_yaml::Deserializer::from_str(text)
        .map(|document| {
            Value::deserialize(document).map_err(|e| {
                format!("error: error parsing the input: error converting YAML to JSON: yaml: {e}")
            })
        })
        .collect()
}

fn apply(line: &Line, connection: &Connection, create_only: bool) -> Result<(), String> {
    if create_only && matches!(line.word(1), "namespace" | "ns") {
        let body = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": line.word(2)}});
        connection.write("POST", "/api/v1/namespaces", &body)?;
        println!("namespace/{} created", line.word(2));
        return Ok(());
    }
    let mut errors = vec![];
    for mut object in documents(line)? {
        let resource = match kind_of(connection, &object) {
            Ok(resource) => resource,
            Err(e) => {
                errors.push(e);
                continue;
            }
        };
        let namespace = namespace_of(line, &object);
        if let Some(asked) =
            line.get(&["-n", "--namespace"]).filter(|n| resource.namespaced && *n != namespace)
        {
            errors.push(format!(
                "error: the namespace from the provided object \"{namespace}\" does not match the namespace \"{asked}\". You must pass '--namespace={namespace}' to perform this operation."
            ));
            continue;
        }
        if resource.namespaced {
            object["metadata"]["namespace"] = json!(namespace);
        }
        let name = text(&object["metadata"]["name"]);
        let shown = format!("{}/{name}", resource.qualified(&resource.singular()));
        if line.on(&["--server-side"]) {
            let manager = line.get(&["--field-manager"]).unwrap_or("kubectl");
            let path = format!(
                "{}?fieldManager={}&force=true",
                url(resource, Some(&namespace), Some(&name)),
                encode(manager)
            );
            match connection.write("PATCH", &path, &object) {
                Ok(_) => println!("{shown} serverside-applied"),
                Err(e) => errors.push(e),
            }
            continue;
        }
        let result = match connection.read(&url(resource, Some(&namespace), Some(&name))) {
            Ok(old) if !create_only => {
                connection.write("PATCH", &url(resource, Some(&namespace), Some(&name)), &object).map(|new| {
                    if new["metadata"]["resourceVersion"] == old["metadata"]["resourceVersion"] {
                        "unchanged"
                    } else {
                        "configured"
                    }
                })
            }
            Err(e) if !e.contains("(NotFound)") => Err(e),
            _ => connection.write("POST", &url(resource, Some(&namespace), None), &object).map(|_| "created"),
        };
        match result {
            Ok(what) => println!("{shown} {what}"),
            Err(e) => errors.push(e),
        }
    }
    if errors.is_empty() { Ok(()) } else { Err(errors.join("\n")) }
}

/// A bare pod: `run NAME --image=IMAGE [-- COMMAND...]`.
fn launch(line: &Line, connection: &Connection) -> Result<(), String> {
    let (name, image) = (line.word(1), line.get(&["--image"]).ok_or("error: --image is required")?);
    let mut container = json!({"name": name, "image": image});
    if let Some(port) = line.get(&["--port"]).and_then(|p| p.parse::<u16>().ok()) {
        container["ports"] = json!([{"containerPort": port}]);
    }
    if let Some(args) = line.words.get(2..).filter(|args| !args.is_empty()) {
        container["args"] = json!(args);
    }
    let body = json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "labels": {"run": name}},
        "spec": {"containers": [container], "restartPolicy": line.get(&["--restart"]).unwrap_or("Always")},
    });
    connection.write("POST", &format!("/api/v1/namespaces/{}/pods", line.namespace()), &body)?;
    println!("pod/{name} created");
    Ok(())
}

/// As `kubectl diff --server-side`: a header for each object that applying would change; exit code 1.
fn diff(line: &Line, connection: &Connection) -> Result<(), String> {
    let mut differs = false;
    for mut object in documents(line)? {
        let resource = kind_of(connection, &object)?;
        let (namespace, name) = (namespace_of(line, &object), text(&object["metadata"]["name"]));
        if resource.namespaced {
            object["metadata"]["namespace"] = json!(namespace);
        }
        let path = url(resource, Some(&namespace), Some(&name));
        let live = connection.read(&path).unwrap_or_default();
        let manager = line.get(&["--field-manager"]).unwrap_or("kubectl");
        let dry = format!("{path}?fieldManager={}&force=true&dryRun=All", encode(manager));
        let merged =
            if live.is_null() { object.clone() } else { connection.write("PATCH", &dry, &object)? };
        if merged != live {
            differs = true;
            let place = if resource.namespaced { namespace.as_str() } else { "" };
            let file =
                format!("{}.{}.{place}.{name}", resource.api_version().replace('/', "."), resource.kind);
            println!("diff -u -N /tmp/LIVE-1/{file} /tmp/MERGED-1/{file}");
        }
    }
    if differs {
        std::process::exit(1)
    }
    Ok(())
}

fn cordon(connection: &Connection, name: &str, on: bool) -> Result<(), String> {
    let name = name.trim_start_matches("node/");
    let path = format!("/api/v1/nodes/{name}");
    let node = connection.read(&path)?;
    let word = if on { "cordoned" } else { "uncordoned" };
    if (node["spec"]["unschedulable"] == true) == on {
        println!("node/{name} already {word}");
        return Ok(());
    }
    let value = if on { json!(true) } else { Value::Null };
    connection.write("PATCH", &path, &json!({"spec": {"unschedulable": value}}))?;
    println!("node/{name} {word}");
    Ok(())
}

fn drain(line: &Line, connection: &Connection) -> Result<(), String> {
    let name = line.word(1).trim_start_matches("node/");
    cordon(connection, name, true)?;
    let list = connection.read(&format!("/api/v1/pods?fieldSelector=spec.nodeName%3D{name}"))?;
    let pods: Vec<Value> = list["items"].as_array().cloned().unwrap_or_default();
    let daemon = |p: &Value| p["metadata"]["ownerReferences"][0]["kind"] == "DaemonSet";
    let full = |p: &Value| format!("{}/{}", text(&p["metadata"]["namespace"]), text(&p["metadata"]["name"]));
    let daemons: Vec<String> = pods.iter().filter(|p| daemon(p)).map(full).collect();
    let bare: Vec<String> =
        pods.iter().filter(|p| p["metadata"]["ownerReferences"].is_null()).map(full).collect();
    if !daemons.is_empty() && !line.on(&["--ignore-daemonsets"]) {
        return Err(format!(
            "error: unable to drain node \"{name}\" due to error: cannot delete DaemonSet-managed Pods (use --ignore-daemonsets to ignore): {}, continuing command...",
            daemons.join(", ")
        ));
    }
    if !bare.is_empty() && !line.on(&["--force"]) {
        return Err(format!(
            "error: unable to drain node \"{name}\" due to error: cannot delete Pods that declare no controller (use --force to override): {}, continuing command...",
            bare.join(", ")
        ));
    }
    for pod in pods.iter().filter(|p| !daemon(p)) {
        println!("evicting pod {}", full(pod));
        let (namespace, pod) = (text(&pod["metadata"]["namespace"]), text(&pod["metadata"]["name"]));
        connection.write(
            "POST",
            &format!("/api/v1/namespaces/{namespace}/pods/{pod}/eviction"),
            &json!({"kind": "Eviction"}),
        )?;
        println!("pod/{pod} evicted");
    }
    println!("node/{name} drained");
    Ok(())
}

/// `label`, `annotate` and `taint`: `key=value` sets, `key-` removes.
fn mark(line: &Line, connection: &Connection) -> Result<(), String> {
    let verb = line.word(0);
    let (kind, name, from) = match line.word(1).split_once('/') {
        Some((kind, name)) => (kind, name, 2),
        None => (line.word(1), line.word(2), 3),
    };
    let resource = resource(kind)?;
    let path = url(resource, Some(line.namespace()), Some(name));
    let object = connection.read(&path)?;
    let mut taints: Vec<Value> = object["spec"]["taints"].as_array().cloned().unwrap_or_default();
    let mut fields = json!({});
    for change in &line.words[from.min(line.words.len())..] {
        if let Some(key) = change.strip_suffix('-') {
            let key = key.split([':', '=']).next().unwrap_or_default();
            fields[key] = Value::Null;
            taints.retain(|t| t["key"] != key);
        } else if verb == "taint" {
            let (head, effect) = change.rsplit_once(':').ok_or("error: unknown taint spec")?;
            let (key, value) = head.split_once('=').unwrap_or((head, ""));
            taints.retain(|t| t["key"] != key);
            taints.push(json!({"key": key, "value": value, "effect": effect}));
        } else {
            let (key, value) = change
                .split_once('=')
                .ok_or_else(|| format!("error: at least one {verb} update is required"))?;
            fields[key] = json!(value);
        }
    }
    let patch = match verb {
        "label" => json!({"metadata": {"labels": fields}}),
        "annotate" => json!({"metadata": {"annotations": fields}}),
        _ => json!({"spec": {"taints": taints}}),
    };
    connection.write("PATCH", &path, &patch)?;
    let past = match verb {
        "label" => "labeled",
        "annotate" => "annotated",
        _ => "tainted",
    };
    println!("{}/{name} {past}", resource.qualified(&resource.singular()));
    Ok(())
}

fn poll<T>(
    limit: Duration,
    mut look: impl FnMut() -> Result<Option<T>, String>,
) -> Result<Option<T>, String> {
    let end = Instant::now() + limit;
    loop {
        if let Some(found) = look()? {
            return Ok(Some(found));
        }
        if Instant::now() >= end {
            return Ok(None);
        }
        std::thread::sleep(Duration::from_millis(500).min(limit));
    }
}

fn wait(line: &Line, connection: &Connection) -> Result<(), String> {
    let condition = line.get(&["--for"]).ok_or("error: --for must be set")?;
    let (wanted, value) = match condition.split_once('=') {
        Some(("condition", rest)) => rest.split_once('=').unwrap_or((rest, "True")),
        None if condition == "delete" => ("delete", ""),
        _ => {
            return Err(format!("error: unrecognized condition: {condition:?} (k3s stand-in)"));
        }
    };
    let mut waiting: Vec<(&Resource, String)> = vec![];
    for (resource, name) in targets(line, 1)? {
        match name {
            Some(name) => waiting.push((resource, name)),
            None => {
                let mut path = url(resource, Some(line.namespace()), None);
                if let Some(selector) = line.get(&["-l", "--selector"]) {
                    path += &format!("?labelSelector={}", encode(selector));
                }
                let list = connection.read(&path)?;
                waiting.extend(
                    list["items"]
                        .as_array()
                        .into_iter()
                        .flatten()
                        .map(|o| (resource, text(&o["metadata"]["name"]))),
                );
            }
        }
    }
    if waiting.is_empty() {
        return Err("error: no matching resources found".into());
    }
    let end = Instant::now() + line.timeout(30);
    let mut late = vec![];
    for (resource, name) in waiting {
        let shown = format!("{}/{name}", resource.qualified(&resource.singular()));
        let path = url(resource, Some(line.namespace()), Some(&name));
        let met = poll(end.saturating_duration_since(Instant::now()), || match connection.read(&path) {
            Err(e) if wanted == "delete" && e.contains("(NotFound)") => Ok(Some(())),
            Err(e) => Err(e),
            Ok(_) if wanted == "delete" => Ok(None),
            Ok(o) if wanted == "Ready" && value == "True" => Ok(is_ready(&o).then_some(())),
            Ok(o) => Ok(o["status"]["conditions"]
                .as_array()
                .into_iter()
                .flatten()
                .any(|c| {
                    c["type"] == wanted && c["status"].as_str().is_some_and(|s| s.eq_ignore_ascii_case(value))
                })
                .then_some(())),
        })?;
        match met {
            Some(()) if wanted == "delete" => {}
            Some(()) => println!("{shown} condition met"),
            None => late.push(format!(
                "error: timed out waiting for the condition on {}/{name}",
                resource.qualified(resource.plural)
            )),
        }
    }
    if late.is_empty() { Ok(()) } else { Err(late.join("\n")) }
}

fn rollout(line: &Line, connection: &Connection) -> Result<(), String> {
    if line.word(1) != "status" {
        return Err("error: the k3s stand-in knows `rollout status` only".into());
    }
    for (resource, name) in targets(line, 2)? {
        let name = name.ok_or("error: required resource not specified")?;
        let path = url(resource, Some(line.namespace()), Some(&name));
        let (mut shown, limit) = (String::new(), line.timeout(600));
        let done = poll(limit, || {
            let object = connection.read(&path)?;
            let n = |field: &str| object["status"][field].as_u64().unwrap_or(0);
            let (ready, wanted) = match resource.kind {
                "DaemonSet" => (n("numberAvailable"), n("desiredNumberScheduled")),
                _ => (n("availableReplicas"), object["spec"]["replicas"].as_u64().unwrap_or(1)),
            };
            let seen = n("observedGeneration") >= object["metadata"]["generation"].as_u64().unwrap_or(1);
            if seen && ready >= wanted {
                return Ok(Some(()));
            }
            let line = format!(
                "Waiting for {} \"{name}\" rollout to finish: {ready} of {wanted} updated replicas are available...",
                resource.singular()
            );
            if line != shown {
                println!("{line}");
                shown = line;
            }
            Ok(None)
        })?;
        match done {
            Some(()) => println!("{} \"{name}\" successfully rolled out", resource.singular()),
            None => return Err("error: timed out waiting for the condition".into()),
        }
    }
    Ok(())
}

fn version(line: &Line, connection: Result<Connection, String>) -> Result<(), String> {
    let client = paths::version();
    let server = connection.and_then(|c| c.read("/version"));
    if line.output() == "json" {
        let mut both = json!({"clientVersion": {"gitVersion": client, "platform": "k3s stand-in"}});
        if let Ok(server) = &server {
            both["serverVersion"] = server.clone();
        }
        println!("{}", serde_json::to_string_pretty(&both).unwrap_or_default());
    } else {
        println!("Client Version: {client} (k3s stand-in)");
        if let Ok(server) = &server {
            println!("Server Version: {} (k3s stand-in)", text(&server["gitVersion"]));
        }
    }
    if line.on(&["--client"]) { Ok(()) } else { server.map(|_| ()) }
}

/// The configuration with its secrets taken out, as the real one shows it without `--raw`.
fn config_view(line: &Line) -> Result<(), String> {
    let path = kubeconfig::locate(line.get(&["--kubeconfig"]));
    let text = std::fs::read_to_string(&path).map_err(|e| format!("error: {e}"))?;
    if line.flags.iter().any(|(n, _)| n == "--raw") {
        print!("{text}");
        return Ok(());
    }
    for row in text.lines() {
        match row.split_once("-data: ") {
            Some((key, _)) => println!("{key}-data: DATA+OMITTED"),
            None => println!("{row}"),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn jsonpath_finds_fields_lists_and_conditions() {
        let list = json!({"items": [
            {"metadata": {"name": "a", "labels": {"x.y/z": "1"}}, "status": {"conditions": [{"type": "Ready", "status": "True"}]}},
            {"metadata": {"name": "b"}, "status": {"conditions": [{"type": "Ready", "status": "False"}]}},
        ]});
        assert_eq!(jsonpath(&list, "{.items[*].metadata.name}").unwrap(), "a b");
        assert_eq!(jsonpath(&list, "{.items[1].metadata.name}{\"\\n\"}").unwrap(), "b\n");
        assert_eq!(jsonpath(&list, "{.items[0].metadata.labels.x\\.y/z}").unwrap(), "1");
        assert_eq!(
            jsonpath(&list, "{.items[*].status.conditions[?(@.type==\"Ready\")].status}").unwrap(),
            "True False"
        );
        assert!(jsonpath(&list, "{range .items[*]}").is_err());
    }

    #[test]
    fn durations_are_gos() {
        assert_eq!(duration("1h1m5s"), Some(3665));
        assert_eq!(duration("0"), Some(0));
        assert_eq!(duration("5"), None);
    }
}
