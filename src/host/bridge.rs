//! The bridge on which machines of a user's own libvirt are: root's, as is who may put them there.
//!
//! QEMU asks qemu-bridge-helper(8), which is root's and setuid, for a card on it. The helper gives one to everybody whom
//! its list of bridges allows it; what is denied there is denied whoever allows it.

use std::fs;
use std::io::ErrorKind;
use std::net::Ipv4Addr;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Serialize;

use super::dirs::Env;
use crate::os::Cancel;
use crate::os::process::{self, Cmd};

/// Where distributions have the helper: Debian, Fedora, openSUSE.
const HELPERS: [&str; 3] = [
    "/usr/lib/qemu/qemu-bridge-helper",
    "/usr/libexec/qemu-bridge-helper",
    "/usr/libexec/qemu/qemu-bridge-helper",
];
/// Its list.
pub const LIST: &str = "/etc/qemu/bridge.conf";
/// Files that name files that name files.
const DEPTH: u8 = 8;

/// What was found out.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct BridgeFacts {
    pub name: String,
    /// There is a bridge of that name; none if something else has it.
    pub there: Option<bool>,
    /// It is up.
    pub up: bool,
    /// Where the helper is.
    pub helper: Option<PathBuf>,
    /// It may do as root does.
    pub helper_may: bool,
    /// It gives cards on the bridge.
    pub allowed: Allowed,
}

/// What the helper's list says of a bridge.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Allowed {
    Yes,
    /// It is denied, or not named.
    #[default]
    No,
    /// The list is not for this user's eyes.
    Unknown,
}

pub(super) fn look(env: &Env, name: &str, cancel: &Cancel) -> BridgeFacts {
    // Not from /sys, which may be that of another network namespace.
    let link = env.find("ip").and_then(|ip| {
        let cmd = Cmd::new(ip).args(["-j", "-d", "link", "show", "dev", name]);
        process::run(&cmd, Duration::from_secs(5), cancel).ok()
    });
    let (there, up) = device(&link.map(|said| said.stdout).unwrap_or_default());
    let helper = HELPERS.iter().map(|path| env.under(path)).find(|path| path.exists());
    BridgeFacts {
        name: name.to_owned(),
        there,
        up,
        helper_may: helper.as_ref().is_some_and(|path| is_privileged(env, path, cancel)),
        helper,
        allowed: allowed(env, name),
    }
}

/// Whether there is a bridge, none if it is something else, and whether it is up: from `ip -j -d link show dev`.
fn device(json: &str) -> (Option<bool>, bool) {
    let links: Vec<serde_json::Value> = serde_json::from_str(json).unwrap_or_default();
    let Some(link) = links.iter().find(|link| link["ifname"].is_string()) else {
        return (Some(false), false);
    };
    let up = link["flags"].as_array().is_some_and(|flags| flags.iter().any(|flag| flag == "UP"));
    ((link["linkinfo"]["info_kind"] == "bridge").then_some(true), up)
}

/// Setuid and root's, or with the capability that it takes.
fn is_privileged(env: &Env, helper: &Path, cancel: &Cancel) -> bool {
    let Ok(meta) = fs::metadata(helper) else { return false };
    if meta.mode() & 0o4000 != 0 && meta.uid() == 0 {
        return true;
    }
    let asked = env
        .find("getcap")
        .and_then(|getcap| process::run(&Cmd::new(getcap).arg(helper), Duration::from_secs(5), cancel).ok());
    asked.is_some_and(|said| said.stdout.contains("cap_net_admin"))
}

fn allowed(env: &Env, bridge: &str) -> Allowed {
    let mut said = Vec::new();
    match read(env, Path::new(LIST), bridge, DEPTH, &mut said) {
        _ if said.contains(&false) => Allowed::No,
        _ if said.contains(&true) => Allowed::Yes,
        Err(ErrorKind::PermissionDenied) => Allowed::Unknown,
        _ => Allowed::No,
    }
}

/// What a list and those that it includes say of the bridge, in any order: `allow NAME`, `deny all`.
fn read(env: &Env, list: &Path, bridge: &str, depth: u8, said: &mut Vec<bool>) -> Result<(), ErrorKind> {
    let text = fs::read_to_string(env.under(list)).map_err(|e| e.kind())?;
    let mut hidden = Ok(());
    for line in text.lines() {
        let words: Vec<&str> = line.split('#').next().unwrap_or_default().split_whitespace().collect();
        match words[..] {
            ["allow", name] if name == bridge || name == "all" => said.push(true),
            ["deny", name] if name == bridge || name == "all" => said.push(false),
            // What cannot be read is passed over, by the helper too.
            ["include", path] if depth > 0 => {
                let included = read(env, Path::new(path), bridge, depth - 1, said);
                hidden = hidden.and(included.or_else(|kind| match kind {
                    ErrorKind::PermissionDenied => Err(kind),
                    _ => Ok(()),
                }));
            }
            _ => {}
        }
    }
    hidden
}

/// The DNS servers that this host asks, as far as others can ask them too: not those on loopback.
pub fn resolvers(env: &Env) -> Vec<Ipv4Addr> {
    let of = |path: &str| -> Vec<Ipv4Addr> {
        let text = fs::read_to_string(env.under(path)).unwrap_or_default();
        let servers = text.lines().filter_map(|l| l.trim().strip_prefix("nameserver")?.trim().parse().ok());
        servers.filter(|ip: &Ipv4Addr| !ip.is_loopback()).collect()
    };
    let asked = of("/etc/resolv.conf");
    // systemd-resolved stands between: it notes there whom it asks itself.
    if asked.is_empty() { of("/run/systemd/resolve/resolv.conf") } else { asked }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bridge_and_who_may_use_it() {
        let dir = tempfile::tempdir().unwrap();
        let put = |path: &str, text: &str| {
            let path = dir.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        };
        let env = Env { root: dir.path().to_owned(), path: "/nowhere".into(), ..Env::of_process() };
        let seen = || look(&env, "br0", &Cancel::new());
        let none = BridgeFacts { name: "br0".into(), there: Some(false), ..BridgeFacts::default() };
        assert_eq!(seen(), none);
        let link = |flags: &str, kind: &str| {
            device(&format!(
                "[{{\"ifname\":\"br0\",\"flags\":[{flags}],\"linkinfo\":{{\"info_kind\":\"{kind}\"}}}}]"
            ))
        };
        assert_eq!(link("\"BROADCAST\",\"UP\"", "bridge"), (Some(true), true));
        assert_eq!(link("\"BROADCAST\"", "bridge"), (Some(true), false));
        assert_eq!(link("\"UP\"", "dummy").0, None, "no bridge");

        let lists = [
            ("allow br0", Allowed::Yes),
            ("# allow br0\nallow br01", Allowed::No),
            ("allow all\ndeny br0", Allowed::No),
            ("include /etc/qemu/more.conf\n", Allowed::Yes),
            ("include /etc/qemu/bridge.conf\n", Allowed::No),
        ];
        put("etc/qemu/more.conf", "  allow\tbr0 # for us\n");
        for (text, wanted) in lists {
            put("etc/qemu/bridge.conf", text);
            assert_eq!(seen().allowed, wanted, "{text}");
        }

        put("usr/libexec/qemu-bridge-helper", "");
        assert_eq!((seen().helper.is_some(), seen().helper_may), (true, false));
    }

    #[test]
    fn nobody_else_asks_this_hosts_loopback() {
        let dir = tempfile::tempdir().unwrap();
        let env = Env { root: dir.path().to_owned(), ..Env::of_process() };
        assert!(resolvers(&env).is_empty());
        fs::create_dir_all(dir.path().join("run/systemd/resolve")).unwrap();
        fs::create_dir_all(dir.path().join("etc")).unwrap();
        fs::write(dir.path().join("etc/resolv.conf"), "nameserver 127.0.0.53\nnameserver fe80::1\n").unwrap();
        fs::write(dir.path().join("run/systemd/resolve/resolv.conf"), "nameserver 192.0.2.1\n").unwrap();
        assert_eq!(resolvers(&env), [Ipv4Addr::new(192, 0, 2, 1)]);
    }
}
