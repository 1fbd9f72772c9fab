//! The host's own routes and addresses.

use std::fs;
use std::net::Ipv4Addr;
use std::time::Duration;

use ipnet::Ipv4Net;
use serde::Serialize;

use super::dirs::Env;
use crate::os::Cancel;
use crate::os::process::{self, Cmd};

/// An IPv4 route other than the default one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Route {
    /// Where to.
    pub net: Ipv4Net,
    /// Through which interface.
    pub device: String,
}

/// An IPv4 address of the host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Address {
    /// With the prefix length of its network.
    pub address: Ipv4Net,
    /// Of which interface.
    pub device: String,
}

/// From `/proc/net/route`, the kernel's main table: hexadecimal numbers in the byte order of the
/// host, a line per route.
pub fn routes(text: &str) -> Vec<Route> {
    let address = |hex: &str| u32::from_str_radix(hex, 16).ok().map(|n| Ipv4Addr::from(n.to_ne_bytes()));
    let route = |line: &str| {
        let f: Vec<&str> = line.split_whitespace().collect();
        let net = Ipv4Net::with_netmask(address(f.get(1)?)?, address(f.get(7)?)?).ok()?;
        (net.prefix_len() > 0).then(|| Route { net, device: f[0].to_owned() })
    };
    text.lines().skip(1).filter_map(route).collect()
}

/// From `ip -j -4 addr`.
pub fn addresses(json: &str) -> Vec<Address> {
    let links: Vec<serde_json::Value> = serde_json::from_str(json).unwrap_or_default();
    let mut found = Vec::new();
    for link in links {
        let device = link["ifname"].as_str().unwrap_or_default();
        for info in link["addr_info"].as_array().into_iter().flatten() {
            let local = info["local"].as_str().and_then(|a| a.parse().ok());
            let prefix = info["prefixlen"].as_u64().and_then(|p| u8::try_from(p).ok());
            if let (Some(local), Some(prefix)) = (local, prefix)
                && let Ok(address) = Ipv4Net::new(local, prefix)
            {
                found.push(Address { address, device: device.to_owned() });
            }
        }
    }
    found
}

pub(super) fn look(env: &Env, cancel: &Cancel) -> (Vec<Route>, Vec<Address>) {
    let table = fs::read_to_string(env.under("/proc/net/route")).unwrap_or_default();
    let listed = env.find("ip").and_then(|ip| {
        process::run(&Cmd::new(ip).args(["-j", "-4", "addr"]), Duration::from_secs(5), cancel).ok()
    });
    (routes(&table), listed.map(|l| addresses(&l.stdout)).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[cfg(target_endian = "little")]
    fn routes_of_the_kernel() {
        let text = "\
Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\t\tMTU\tWindow\tIRTT
eth0\t00000000\t010200C0\t0003\t0\t0\t0\t00000000\t0\t0\t0
eth0\t000200C0\t00000000\t0001\t0\t0\t0\t00FFFFFF\t0\t0\t0
tun0\t0000A8C0\t00000000\t0001\t0\t0\t0\t0000FFFF\t0\t0\t0
";
        let found: Vec<_> = routes(text).into_iter().map(|r| format!("{} {}", r.net, r.device)).collect();
        assert_eq!(found, ["192.0.2.0/24 eth0", "192.168.0.0/16 tun0"]);
    }

    #[test]
    fn addresses_of_iproute2() {
        let json = r#"[{"ifname":"lo","addr_info":[{"family":"inet","local":"127.0.0.1","prefixlen":8}]},
            {},{"ifname":"eth0","addr_info":[{"family":"inet","local":"192.0.2.2","prefixlen":24}]}]"#;
        let found: Vec<_> =
            addresses(json).into_iter().map(|a| format!("{} {}", a.address, a.device)).collect();
        assert_eq!(found, ["127.0.0.1/8 lo", "192.0.2.2/24 eth0"]);
        assert!(addresses("ip: unknown option").is_empty());
    }
}
