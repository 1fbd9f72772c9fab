//! Addresses and networks.

use std::net::{IpAddr, Ipv4Addr};

use ipnet::Ipv4Net;
use serde_json::{Value as Json, json};

use super::is_label;
use crate::spec::Endpoint;
use crate::spec::node::Node;
use crate::spec::report::{Report, short};
use crate::spec::shape::{At, Shape, entries, text};

/// An IPv4 address.
#[derive(Clone, Copy, Debug)]
pub(in crate::spec) struct Address(pub Ipv4Addr);

impl Shape for Address {
    fn schema() -> Json {
        json!({ "type": "string", "pattern": "^([0-9]{1,3}\\.){3}[0-9]{1,3}$" })
    }

    fn read(node: &Node, report: &mut Report<'_>) -> Option<Self> {
        const HELP: &str = "Write four numbers from 0 to 255: `192.168.56.11`.";
        let text = text(node, report)?;
        match text.parse() {
            Ok(address) => Some(Self(address)),
            Err(_) => {
                let message = format!("`{}` is not an IPv4 address", node.shown(report));
                let help = match text.split_once('/') {
                    Some((ip, _)) if ip.parse::<Ipv4Addr>().is_ok() => {
                        format!("The prefix belongs into `network: cidr`; write `{ip}`.")
                    }
                    _ => HELP.to_owned(),
                };
                report.error(node.at, message, help);
                None
            }
        }
    }
}

/// A network interface's name, of characters that need no care where it is written.
#[derive(Clone, Debug)]
pub(in crate::spec) struct Bridge(pub String);

impl Shape for Bridge {
    fn schema() -> Json {
        json!({ "type": "string", "pattern": "^[A-Za-z0-9_][-A-Za-z0-9_.]{0,14}$" })
    }

    fn read(node: &Node, report: &mut Report<'_>) -> Option<Self> {
        let text = text(node, report)?;
        let plain = |c: u8| c.is_ascii_alphanumeric() || c == b'_';
        let good = text.bytes().next().is_some_and(plain)
            && text.len() <= 15
            && text.bytes().all(|c| plain(c) || c == b'-' || c == b'.');
        if good {
            return Some(Self(text.to_owned()));
        }
        let message = format!("`{}` is not the name of a bridge", node.shown(report));
        report.error(node.at, message, "Write it as `ip link` does, at most 15 characters: `br0`.");
        None
    }
}

/// Linux takes no longer one (`HOST_NAME_MAX`).
const LONGEST: usize = 64;
/// RFC 1123: labels of letters, digits and hyphens, in either case.
const HOST: &str =
    "^[A-Za-z0-9]([-A-Za-z0-9]{0,61}[A-Za-z0-9])?(\\.[A-Za-z0-9]([-A-Za-z0-9]{0,61}[A-Za-z0-9])?)*$";

/// Whether a name is one of a host; one that ends in a label of digits would be read as an address.
fn is_host(name: &str) -> bool {
    name.split('.').all(|label| is_label(&label.to_ascii_lowercase()))
        && name.rsplit('.').next().is_some_and(|last| !last.bytes().all(|b| b.is_ascii_digit()))
}

/// What a machine calls itself, fully qualified or not, its case kept.
#[derive(Clone, Debug)]
pub(in crate::spec) struct HostName(pub String);

impl Shape for HostName {
    fn schema() -> Json {
        json!({ "type": "string", "pattern": HOST, "maxLength": LONGEST })
    }

    fn read(node: &Node, report: &mut Report<'_>) -> Option<Self> {
        let text = text(node, report)?;
        if is_host(text) && text.len() <= LONGEST {
            return Some(Self(text.to_owned()));
        }
        let message = format!("`{}` is not a host name", node.shown(report));
        let help = format!(
            "Use at most {LONGEST} letters, digits and `-`, with a letter or digit at both ends, and `.` between the \
             parts of a fully qualified one: `wilS`, `db.lab.test`."
        );
        report.error(node.at, message, help);
        None
    }
}

/// Names of hosts that are no nodes, with their addresses.
#[derive(Clone, Debug, Default)]
pub(in crate::spec) struct Hosts(pub Vec<At<(String, IpAddr)>>);

impl Shape for Hosts {
    fn schema() -> Json {
        json!({
            "type": "object",
            "propertyNames": { "pattern": HOST, "maxLength": 253 },
            "additionalProperties": { "type": "string", "pattern": "^[0-9A-Fa-f]*[.:][0-9A-Fa-f:.]*$" },
        })
    }

    fn read(node: &Node, report: &mut Report<'_>) -> Option<Self> {
        let mut out = Vec::new();
        for (name, at, value) in entries(node, report)? {
            if !is_host(name) || name.len() > 253 {
                let message = format!("`{}` is not a host name", short(name));
                report.error(at, message, "Write a name and its address: `registry.test: 10.11.0.4`.");
                continue;
            }
            let Some(text) = text(value, report) else { continue };
            match text.parse::<IpAddr>() {
                Ok(ip) if !ip.is_unspecified() && !ip.is_multicast() => {
                    out.push(At { at, value: (name.to_owned(), ip) });
                }
                _ => {
                    let message = format!("`{}` is not the address of a host", value.shown(report));
                    report.error(value.at, message, "Write an IPv4 or IPv6 address: `10.11.0.4`.");
                }
            }
        }
        // What is good is still looked at with the names of nodes.
        Some(Self(out))
    }
}

impl Shape for Endpoint {
    fn schema() -> Json {
        json!({ "type": "string", "pattern": "^[A-Za-z0-9]([-A-Za-z0-9.]*[A-Za-z0-9])?(:[0-9]{1,5})?$" })
    }

    fn read(node: &Node, report: &mut Report<'_>) -> Option<Self> {
        const HELP: &str = "Write a name or an IPv4 address, with a port if it is not 6443: `k3s.lan`, \
                            `192.168.56.100:7443`.";
        let text = text(node, report)?;
        let (host, port) = text.split_once(':').unwrap_or((text, "6443"));
        let labels = |host: &str| {
            host.len() <= 253 && host.split('.').all(|label| is_label(&label.to_ascii_lowercase()))
        };
        // What is all digits and dots was meant to be an address.
        let digits = host.bytes().all(|b| b.is_ascii_digit() || b == b'.');
        let good = if digits { host.parse::<Ipv4Addr>().is_ok() } else { labels(host) };
        match port.parse() {
            Ok(port @ 1..) if good => Some(Self { host: host.to_owned(), port }),
            _ => {
                let message = format!("`{}` is not a name or address of the API", node.shown(report));
                report.error(node.at, message, HELP);
                None
            }
        }
    }
}

/// The nodes' network: IPv4, from /8 to /29, and of addresses that a private network can have.
#[derive(Clone, Copy, Debug)]
pub(in crate::spec) struct Cidr(pub Ipv4Net);

impl Shape for Cidr {
    fn schema() -> Json {
        json!({ "type": "string", "pattern": "^([0-9]{1,3}\\.){3}[0-9]{1,3}/(8|9|1[0-9]|2[0-9])$" })
    }

    fn read(node: &Node, report: &mut Report<'_>) -> Option<Self> {
        let text = text(node, report)?;
        let Ok(net) = text.parse::<Ipv4Net>() else {
            let message = format!("`{}` is not an IPv4 network", node.shown(report));
            report.error(node.at, message, "Write address and prefix: `192.168.56.0/24`.");
            return None;
        };
        let shown = node.shown(report);
        if !(8..=29).contains(&net.prefix_len()) {
            let message = format!("the prefix of `{shown}` is out of range");
            report.error(node.at, message, "Take one from /8 to /29; /24 has room for 253 nodes.");
            return None;
        }
        if net != net.trunc() {
            let message = format!("`{shown}` is an address in a network, not a network");
            report.error(node.at, message, format!("Its network is `{}`.", net.trunc()));
            return None;
        }
        let ip = net.network();
        let end = net.broadcast();
        if ip.is_loopback() || ip.octets()[0] == 0 || ip.is_link_local() || end.octets()[0] >= 224 {
            let message = format!("`{shown}` is reserved and cannot be a private network");
            report.error(
                node.at,
                message,
                "Take a network from 10.0.0.0/8, 172.16.0.0/12 or 192.168.0.0/16.",
            );
            return None;
        }
        Some(Self(net))
    }
}

/// Whether all of a network is set aside for private use (RFC 1918) or for carriers (RFC 6598).
pub(in crate::spec) fn is_private(net: Ipv4Net) -> bool {
    [(10, 0, 8), (172, 16, 12), (192, 168, 16), (100, 64, 10)]
        .iter()
        .filter_map(|&(a, b, prefix)| Ipv4Net::new(Ipv4Addr::new(a, b, 0, 0), prefix).ok())
        .any(|private| private.contains(&net))
}
