//! The small subcommands.

use std::process::ExitCode;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::json;

use crate::kubectl::Connection;
use crate::{faults, paths, util};

pub fn version_line() -> String {
    let version = faults::get("wrong-version").filter(|v| !v.is_empty()).unwrap_or_else(paths::version);
    format!("{version} (standin)")
}

pub fn version() -> ExitCode {
    println!("k3s version {}", version_line());
    println!("go version none: p1's stand-in for k3s, written in Rust, runs no containers");
    ExitCode::SUCCESS
}

pub fn help() -> ExitCode {
    println!(
        "NAME:\n   k3s - stand-in for k3s, for p1's tests and offline demo; runs no containers\n\n\
         USAGE:\n   k3s [global options] command [command options]\n\nVERSION:\n   {}\n\n\
         COMMANDS:\n   server, agent, kubectl, crictl, ctr, check-config, token, etcd-snapshot, secrets-encrypt",
        version_line()
    );
    ExitCode::SUCCESS
}

pub fn check_config() -> ExitCode {
    println!("\nVerifying binaries in the stand-in: nothing to verify\n\nSTATUS: pass");
    ExitCode::SUCCESS
}

pub fn containers(tool: &str, arguments: &[String]) -> ExitCode {
    let words: Vec<&str> = arguments.iter().map(String::as_str).filter(|a| !a.starts_with('-')).collect();
    match (tool, words.as_slice()) {
        ("crictl", ["ps", ..]) => {
            println!("CONTAINER  IMAGE  CREATED  STATE  NAME  ATTEMPT  POD ID  POD")
        }
        ("crictl", ["images" | "img", ..]) => println!("IMAGE  TAG  IMAGE ID  SIZE"),
        ("crictl", ["pods", ..]) => {
            println!("POD ID  CREATED  STATE  NAME  NAMESPACE  ATTEMPT  RUNTIME")
        }
        ("ctr", ["images" | "image" | "i", "ls" | "list", ..]) => {
            print!("{}", crate::images::list())
        }
        ("ctr", ["images" | "image" | "i", "import", archive]) => {
            if let Err(why) = crate::images::import(archive.as_ref(), false) {
                eprintln!("ctr: {why}");
                return ExitCode::FAILURE;
            }
        }
        ("ctr", ["containers" | "c", "ls" | "list", ..]) => {
            println!("CONTAINER    IMAGE    RUNTIME")
        }
        (tool, _) => {
            eprintln!("{tool}: the k3s stand-in does not know {:?}", words.join(" "));
            return ExitCode::FAILURE;
        }
    }
    ExitCode::SUCCESS
}

pub fn token(arguments: &[String]) -> ExitCode {
    let connection = match Connection::open(None) {
        Ok(connection) => connection,
        Err(e) => {
            eprintln!("{e}");
            return ExitCode::FAILURE;
        }
    };
    let secrets = "/api/v1/namespaces/kube-system/secrets";
    let done = match arguments.first().map(String::as_str) {
        Some("create") => {
            let (id, secret) = (util::random_hex(3), util::random_hex(8));
            let ttl = arguments.iter().enumerate().find_map(|(i, a)| {
                a.strip_prefix("--ttl=")
                    .map(str::to_owned)
                    .or_else(|| (a == "--ttl").then(|| arguments.get(i + 1).cloned())?)
            });
            let seconds = ttl.as_deref().map_or(Some(86_400), crate::kubectl::duration).unwrap_or(86_400);
            let mut data = json!({
                "token-id": STANDARD.encode(&id), "token-secret": STANDARD.encode(&secret),
                "usage-bootstrap-authentication": STANDARD.encode("true"),
            });
            if seconds > 0 {
                data["expiration"] = json!(STANDARD.encode(util::rfc3339(util::unix_seconds() + seconds)));
            }
            let body = json!({
                "apiVersion": "v1", "kind": "Secret", "type": "bootstrap.kubernetes.io/token", "data": data,
                "metadata": {"name": format!("bootstrap-token-{id}"), "namespace": "kube-system"},
            });
            let hash = util::sha256(connection.ca.as_bytes());
            connection.write("POST", secrets, &body).map(|_| println!("K10{hash}::{id}.{secret}"))
        }
        Some("list") => connection.read(secrets).map(|list| {
            println!("TOKEN     TTL");
            for item in list["items"].as_array().into_iter().flatten() {
                let text = |name: &str| {
                    item["data"][name]
                        .as_str()
                        .and_then(|v| STANDARD.decode(v).ok())
                        .and_then(|b| String::from_utf8(b).ok())
                        .unwrap_or_default()
                };
                if item["type"] == "bootstrap.kubernetes.io/token" {
                    println!("{}    {}", text("token-id"), text("expiration"));
                }
            }
        }),
        Some("delete") => {
            let id = arguments.get(1).cloned().unwrap_or_default();
            connection
                .write("DELETE", &format!("{secrets}/bootstrap-token-{id}"), &json!({}))
                .map(|_| println!("bootstrap token \"{id}\" deleted"))
        }
        other => Err(format!("the k3s stand-in does not know `token {}`", other.unwrap_or_default())),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("{e}");
            ExitCode::FAILURE
        }
    }
}

pub fn secrets_encrypt(arguments: &[String]) -> ExitCode {
    if arguments.first().map(String::as_str) == Some("status") {
        println!("Encryption Status: Disabled, no configuration file found (k3s stand-in)");
        return ExitCode::SUCCESS;
    }
    eprintln!("the k3s stand-in does not know this secrets-encrypt command");
    ExitCode::FAILURE
}
