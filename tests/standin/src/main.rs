//! A stand-in for k3s, used by p1's tests and its offline demo and by nothing else.
//!
//! It behaves like k3s at the surface p1 touches: command line and config file, systemd
//! notification, files under `/etc/rancher` and `/var/lib/rancher`, tokens and node passwords, the
//! API's objects, and enough of `kubectl`. It runs no containers. Everything it prints or serves
//! says that it is a stand-in. [`faults`] lists the ways in which it can be told to misbehave.
//!
//! Where a behaviour copies the real program's, the comment names the place it was read: paths like
//! `pkg/agent/config/config.go` are in the repository `k3s-io/k3s`.

mod agent;
mod api;
mod certs;
mod client;
mod config;
mod controllers;
mod etcd;
mod faults;
mod http;
mod images;
mod ingress;
mod kubeconfig;
mod kubectl;
mod kubelet;
mod kustomize;
mod log;
mod notify;
mod paths;
mod resources;
mod selector;
mod server;
mod store;
mod tools;
mod util;

use std::process::ExitCode;

fn main() -> ExitCode {
    let mut args: Vec<String> = std::env::args().collect();
    let name = args[0].rsplit('/').next().unwrap_or_default().to_owned();
    // The installer makes links called kubectl, crictl and ctr; the real binary looks at argv[0] too.
    match name.as_str() {
        "kubectl" | "crictl" | "ctr" => args.insert(1, name),
        kubelet::SHIM_NAME => kubelet::shim_main(),
        _ => {}
    }
    let command = args.get(1).cloned().unwrap_or_default();
    let rest = args.get(2..).unwrap_or_default().to_vec();
    match command.as_str() {
        "server" => server::main(&rest),
        "agent" => agent::main(&rest),
        "kubectl" => kubectl::main(&rest),
        "--version" | "-v" | "version" => tools::version(),
        "check-config" => tools::check_config(),
        "crictl" | "ctr" => tools::containers(&command, &rest),
        "token" => tools::token(&rest),
        "etcd-snapshot" => etcd::snapshot(&rest),
        "secrets-encrypt" => tools::secrets_encrypt(&rest),
        "" | "help" | "--help" | "-h" => tools::help(),
        other => {
            eprintln!("No help topic for '{other}' (k3s stand-in)");
            ExitCode::from(3)
        }
    }
}
