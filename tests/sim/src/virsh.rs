//! `virsh`, as far as p1, its tests and the played vagrant use it, over what the lab knows.

use std::fmt::Write as _;
use std::fs;
use std::io::{self, Seek, Write as _};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::{Arc, MutexGuard};

use crate::lab::{Domain, Known, Lab, Network, Power, Saved, Seat, Volume, fault, ip};

/// Exit code, standard output, standard error.
type Said = (u8, String, String);

/// Several commands may come in one word, with `;` between.
pub fn run(lab: &Arc<Lab>, args: &[&str], stdin: &str) -> Said {
    if lab.known().deaf {
        let text = "error: failed to connect to the hypervisor\nerror: Failed to connect socket to \
                    '/var/run/libvirt/libvirt-sock': Connection refused\n";
        return (1, String::new(), text.into());
    }
    let (mut code, mut out, mut err) = (0, String::new(), String::new());
    let mut one = |args: &[&str]| match command(lab, args, stdin) {
        Ok(text) => {
            // Of several commands the last one's counts, and those before may fail.
            code = 0;
            out += &text;
        }
        Err(text) => {
            code = 1;
            for line in text.lines() {
                let _ = writeln!(err, "error: {line}");
            }
        }
    };
    match args {
        [script] => {
            for part in script.split(';') {
                let words: Vec<&str> = part.split_whitespace().map(|w| w.trim_matches('\'')).collect();
                one(&words);
            }
        }
        args => one(args),
    }
    (code, out, err)
}

/// The value of an attribute of the first element of a name.
pub fn attribute(xml: &str, element: &str, key: &str) -> Option<String> {
    let tag = xml.split('<').find(|t| t.split([' ', '/', '>']).next() == Some(element))?;
    let rest = tag.split(&format!(" {key}=")).nth(1)?;
    let quote = rest.chars().next()?;
    Some(rest[1..].split(quote).next()?.to_owned())
}

fn text(xml: &str, element: &str) -> Option<String> {
    let rest = xml.split_once(&format!("<{element}"))?.1.split_once('>')?.1;
    Some(rest.split_once(&format!("</{element}>"))?.0.to_owned())
}

/// What a domain's first card is on, its kind and its name: a network, or a bridge that is the host's.
pub fn ground_of(xml: &str) -> Option<(String, String)> {
    let card = xml.split_once("<interface")?.1;
    let kind = attribute(xml, "interface", "type")?;
    attribute(card, "source", &kind).map(|name| (kind, name))
}

/// What base64 stands for; empty where it is none.
pub fn base64(text: &str) -> String {
    let decode = || -> io::Result<Vec<u8>> {
        let mut child =
            Command::new("base64").arg("-d").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
        child.stdin.take().expect("piped").write_all(text.as_bytes())?;
        Ok(child.wait_with_output()?.stdout)
    };
    String::from_utf8(decode().unwrap_or_default()).unwrap_or_default()
}

/// The lines for systemd-tmpfiles that the firmware hands over.
pub fn credentials(xml: &str) -> Option<String> {
    let (_, rest) = xml.split_once("tmpfiles.extra=")?;
    Some(base64(rest.split('<').next()?))
}

/// MiB of a domain.
pub fn memory(xml: &str) -> u64 {
    let number = |element| text(xml, element).and_then(|t| t.trim().parse::<u64>().ok());
    number("currentMemory").or_else(|| number("memory")).unwrap_or(512 * 1024) / 1024
}

/// Name and address that a network keeps for a card.
pub fn reservation(xml: &str, mac: &str) -> Option<(String, String)> {
    let host = xml.lines().find(|l| {
        l.trim().starts_with("<host ")
            && attribute(l, "host", "mac").is_some_and(|m| m.eq_ignore_ascii_case(mac))
    })?;
    Some((attribute(host, "host", "name")?, attribute(host, "host", "ip")?))
}

/// What a network gives to a card.
pub fn seat(xml: &str, mac: &str) -> Option<Seat> {
    let (node, ip) = reservation(xml, mac)?;
    Some(Seat { node, ip, gateway: attribute(xml, "ip", "address").unwrap_or_default(), prefix: prefix(xml) })
}

/// The head of a memory image, which libvirt writes before QEMU's part: a description, and room for another one. However
/// long it is, QEMU's part begins at the same place.
fn image(xml: &str) -> Vec<u8> {
    let (mut out, cookie) = (b"LibvirtQemudSave".to_vec(), "<qemuStatus/>");
    let mut data = [xml, "\0", cookie, "\0"].concat();
    data += &"\0".repeat((128_usize << 10).saturating_sub(data.len()));
    for number in [2, data.len(), 0, 0, xml.len() + 1] {
        out.extend(u32::try_from(number).expect("it is small").to_le_bytes());
    }
    out.resize(92, 0);
    out.extend(data.bytes());
    out
}

/// The description in one.
fn description(image: &[u8]) -> Option<String> {
    let data = image.get(92..)?;
    String::from_utf8(data[..data.iter().position(|b| *b == 0)?].to_vec()).ok()
}

pub fn prefix(xml: &str) -> u32 {
    if let Some(prefix) = attribute(xml, "ip", "prefix").and_then(|p| p.parse().ok()) {
        return prefix;
    }
    let mask: Option<std::net::Ipv4Addr> = attribute(xml, "ip", "netmask").and_then(|m| m.parse().ok());
    mask.map_or(24, |m| m.to_bits().count_ones())
}

fn read(path: &str, stdin: &str) -> Result<String, String> {
    if path == "/dev/stdin" {
        return Ok(stdin.to_owned());
    }
    fs::read_to_string(path).map_err(|e| format!("Failed to open file '{path}': {e}"))
}

fn command(lab: &Arc<Lab>, args: &[&str], stdin: &str) -> Result<String, String> {
    let (Some(verb), rest) = (args.first(), args.get(1..).unwrap_or_default()) else {
        return Ok(String::new());
    };
    let plain: Vec<&str> = rest.iter().copied().filter(|w| !w.starts_with("--")).collect();
    let flag = |name: &str| rest.contains(&name);
    let name = plain.first().copied().unwrap_or_default();
    match *verb {
        "echo" => Ok(format!("{}\n", rest.join(" "))),
        "version" => {
            Ok("Using library: libvirt 9.0.0\nUsing API: QEMU 9.0.0\nRunning hypervisor: QEMU 7.2.0\n".into())
        }
        verb if verb.starts_with("net-") => network(lab, verb, name, &plain, rest, stdin),
        verb if verb.starts_with("vol-") => volume(lab, verb, &plain, rest),
        "pool-info" => {
            Ok("Name:           default\nState:          running\nAvailable:      999999999999\n".into())
        }
        verb if verb.starts_with("pool-") => Ok(String::new()),
        "list" if flag("--name") && !flag("--uuid") => {
            let known = lab.known();
            let all = known.domains.iter().filter(|(_, d)| flag("--all") || d.power != Power::Off);
            Ok(all.map(|(name, _)| format!("{name}\n")).collect::<String>() + "\n")
        }
        "list" => Ok(list(lab, flag("--all"), flag("--uuid"))),
        "define" => define(lab, &read(name, stdin)?),
        "save-image-dumpxml" => {
            let file = name.rsplit('/').next().unwrap_or_default();
            lab.known()
                .saved
                .get(file)
                .map(|saved| saved.xml.clone())
                .ok_or_else(|| format!("no such file {name}"))
        }
        // What ran is booted again.
        "restore" => {
            let file = name.rsplit('/').next().unwrap_or_default();
            let saved = lab.known().saved.get(file).cloned();
            let Saved { domain, xml, seat } = saved.ok_or_else(|| format!("Failed to open file '{name}'"))?;
            {
                let mut known = lab.known();
                let of = known.domains.get_mut(&domain).ok_or("it is not defined (a part of p1's tests)")?;
                if text(&of.xml, "uuid") != text(&xml, "uuid") {
                    return Err(format!(
                        "operation failed: domain '{domain}' is already defined with another uuid"
                    ));
                }
                of.seat = seat;
            }
            if let Some(text) = fault(&lab.dir, domain.rsplit('-').next().unwrap_or_default(), "fail-restore")
            {
                return Err(text);
            }
            lab.start(&domain)?;
            if flag("--paused") {
                lab.freeze(&domain, true);
            }
            Ok("Domain restored\n".into())
        }
        verb => domain(lab, verb, name, &plain, rest, stdin),
    }
}

fn network(
    lab: &Arc<Lab>,
    verb: &str,
    name: &str,
    plain: &[&str],
    rest: &[&str],
    stdin: &str,
) -> Result<String, String> {
    let mut known = lab.known();
    if verb == "net-list" {
        let all = rest.contains(&"--all");
        let lines = known
            .networks
            .iter()
            .filter(|(_, n)| all || n.live.is_some())
            .map(|(name, _)| format!("{name}\n"));
        return Ok(lines.collect());
    }
    if verb == "net-define" {
        let xml = read(name, stdin)?;
        let name = text(&xml, "name").ok_or("XML error: network has no name")?;
        known.count += 1;
        let bridge = attribute(&xml, "bridge", "name").unwrap_or(format!("br{}", known.count));
        // Of that name and without its uuid, or with another one, it is another network (virNetworkObjAssignDef).
        let uuid = text(&xml, "uuid");
        if let Some(has) = known.networks.get(&name).and_then(|n| text(&n.xml, "uuid"))
            && uuid.as_ref() != Some(&has)
        {
            return Err(format!(
                "Failed to define network from /dev/stdin\noperation failed: network '{name}' already exists with uuid {has}"
            ));
        }
        let before = known.networks.remove(&name);
        let (live, bridge) = before.map_or((None, bridge), |n| (n.live, n.bridge));
        // What libvirt adds by itself.
        let mut xml = xml;
        if uuid.is_none() {
            let uuid = fs::read_to_string("/proc/sys/kernel/random/uuid").unwrap_or_default();
            xml = xml.replacen("</name>", &format!("</name>\n  <uuid>{}</uuid>", uuid.trim()), 1);
        }
        if attribute(&xml, "bridge", "name").is_none() {
            xml = xml.replacen("<bridge ", &format!("<bridge name='{bridge}' "), 1);
        }
        known.networks.insert(name.clone(), Network { xml, live, bridge });
        return Ok(format!("Network {name} defined from /dev/stdin\n"));
    }
    let missing =
        format!("failed to get network '{name}'\nNetwork not found: no network with matching name '{name}'");
    let starts = format!("net/{name}");
    let autostart = if known.autostart.contains(&starts) { "yes" } else { "no" };
    if verb == "net-autostart" && known.networks.contains_key(name) {
        match rest.contains(&"--disable") {
            true => known.autostart.remove(&starts),
            false => known.autostart.insert(starts),
        };
        return Ok(String::new());
    }
    let net = known.networks.get_mut(name).ok_or(missing)?;
    match verb {
        "net-dumpxml" => {
            let live = net.live.as_ref().filter(|_| !rest.contains(&"--inactive"));
            return Ok(live.unwrap_or(&net.xml).clone());
        }
        "net-info" => {
            let active = if net.live.is_some() { "yes" } else { "no" };
            return Ok(format!(
                "Name:           {name}\nActive:         {active}\nPersistent:     yes\nAutostart:      {autostart}\nBridge:         {}\n",
                net.bridge
            ));
        }
        "net-start" if net.live.is_some() => {
            return Err("Requested operation is not valid: network is already active".into());
        }
        "net-start" => {
            let gateway = attribute(&net.xml, "ip", "address").unwrap_or_default();
            ip(&format!(
                "link add {bridge} type bridge\naddr add {gateway}/{} {} dev {bridge}\nlink set {bridge} up\n",
                prefix(&net.xml),
                if gateway.contains(':') { "nodad" } else { "brd +" },
                bridge = net.bridge
            ));
            net.live = Some(net.xml.clone());
        }
        "net-destroy" if net.live.is_none() => {
            return Err("Requested operation is not valid: network is not active".into());
        }
        // The cards of machines that run are on no bridge then, and on none when it is started again.
        "net-destroy" => {
            ip(&format!("link del {}\n", net.bridge));
            net.live = None;
        }
        "net-undefine" => drop(known.networks.remove(name)),
        "net-update" => {
            let (what, xml) =
                (plain.get(1).copied().unwrap_or_default(), plain.get(3).copied().unwrap_or_default());
            let mac = attribute(xml, "host", "mac").unwrap_or_default();
            let (config, live) = (rest.contains(&"--config"), rest.contains(&"--live"));
            let change = |of: &mut String| -> Result<(), String> {
                let known = reservation(of, &mac).is_some();
                match what {
                    "delete" if !known => {
                        return Err("Requested operation is not valid: couldn't locate a matching dhcp host entry in network".into());
                    }
                    "delete" => {
                        let kept = of.lines().filter(|l| !(l.contains("<host ") && l.contains(&mac)));
                        *of = kept.map(|l| format!("{l}\n")).collect();
                    }
                    _ if known => {
                        return Err("Requested operation is not valid: there is an existing dhcp host entry in network".into());
                    }
                    _ => *of = of.replacen("</dhcp>", &format!("{xml}\n    </dhcp>"), 1),
                }
                Ok(())
            };
            if live {
                change(net.live.as_mut().ok_or("Requested operation is not valid: network is not running")?)?;
            }
            if config || !live {
                change(&mut net.xml)?;
            }
        }
        _ => return Ok(String::new()),
    }
    Ok(String::new())
}

fn volume(lab: &Arc<Lab>, verb: &str, plain: &[&str], rest: &[&str]) -> Result<String, String> {
    let mut known = lab.known();
    let value = |flag: &str| {
        rest.iter().position(|w| *w == flag).and_then(|i| rest.get(i + 1)).map(|v| (*v).to_owned())
    };
    // `default` is the one pool, wherever it is said.
    let flags = [
        "--pool",
        "--format",
        "--backing-vol",
        "--backing-vol-format",
        "--offset",
        "--length",
        "--allocation",
    ];
    let values = flags.map(value);
    let words: Vec<&str> = plain
        .iter()
        .copied()
        .filter(|w| *w != "default" && !values.iter().flatten().any(|v| v == w))
        .collect();
    let name = words.first().copied().unwrap_or_default().to_owned();
    match verb {
        "vol-list" => {
            let lines = known.volumes.keys().map(|n| format!(" {n}   /var/lib/libvirt/images/{n}\n"));
            return Ok(format!(" Name   Path\n------------\n{}", lines.collect::<String>()));
        }
        "vol-create-as" => {
            if known.volumes.contains_key(&name) {
                return Err(format!(
                    "Failed to create vol {name}\noperation failed: storage volume '{name}' exists already"
                ));
            }
            let capacity = bytes(words.get(1).copied().unwrap_or_default()).unwrap_or(BOX);
            known.volumes.insert(
                name,
                Volume { physical: 200_704, capacity, backing: value("--backing-vol"), parts: Vec::new() },
            );
            return Ok(String::new());
        }
        _ => {}
    }
    if let (Some(saved), Some(file)) = (known.saved.get_mut(&name), words.get(1)) {
        if verb == "vol-download" {
            fs::write(file, image(&saved.xml)).map_err(|e| format!("cannot write {file}: {e}"))?;
            return Ok(String::new());
        }
        if verb == "vol-upload" {
            let bytes = fs::read(file).map_err(|e| format!("cannot read {file}: {e}"))?;
            if bytes.len() != image(&saved.xml).len() {
                return Err(
                    "what follows the description would be overwritten (this is a part of p1's tests)".into(),
                );
            }
            let xml = description(&bytes).ok_or("no description")?;
            (saved.domain, saved.xml) = (text(&xml, "name").unwrap_or_default(), xml);
            return Ok(String::new());
        }
    }
    let missing = format!(
        "failed to get vol '{name}'\nStorage volume not found: no storage vol with matching path '{name}'"
    );
    let volume = known.volumes.get_mut(&name).ok_or(missing)?;
    match verb {
        "vol-info" => Ok(format!(
            "Name:           {name}\nType:           file\nCapacity:       {} bytes\nPhysical:       {} bytes\n",
            volume.capacity, volume.physical
        )),
        "vol-resize" => {
            volume.capacity = bytes(words.get(1).copied().unwrap_or_default()).ok_or("malformed size")?;
            Ok(String::new())
        }
        "vol-upload" => {
            let file = words.get(1).copied().unwrap_or_default();
            volume.physical = fs::metadata(file).map_err(|e| format!("cannot read {file}: {e}"))?.len();
            if let Some(offset) = value("--offset").and_then(|o| o.parse().ok()) {
                volume.parts.push((offset, file.into()));
                return Ok(String::new());
            }
            drop(known);
            lab.take_disk(name.trim_end_matches(".img"), Path::new(file)).map_err(|e| e.to_string())?;
            Ok(String::new())
        }
        "vol-download" => {
            let file = words.get(1).copied().unwrap_or_default();
            drop(known);
            if let Some(text) = fault(
                &lab.dir,
                name.trim_end_matches(".img").rsplit('-').next().unwrap_or_default(),
                "fail-download",
            ) {
                return Err(text);
            }
            lab.give_disk(name.trim_end_matches(".img"), Path::new(file)).map_err(|e| e.to_string())?;
            Ok(String::new())
        }
        "vol-path" => Ok(format!("/var/lib/libvirt/images/{name}\n\n")),
        "vol-dumpxml" => {
            let behind = volume.backing.as_ref().map_or_else(String::new, |b| {
                format!("  <backingStore>\n    <path>/var/lib/libvirt/images/{b}</path>\n  </backingStore>\n")
            });
            Ok(format!("<volume type='file'>\n  <name>{name}</name>\n{behind}</volume>\n"))
        }
        "vol-delete" => {
            known.volumes.remove(&name);
            known.saved.remove(&name);
            drop(known);
            lab.drop_disk(name.trim_end_matches(".img"));
            Ok(String::new())
        }
        _ => Ok(String::new()),
    }
}

fn list(lab: &Arc<Lab>, all: bool, uuid: bool) -> String {
    let known = lab.known();
    let mut out =
        if uuid { String::new() } else { " Id   Name     State\n--------------------\n".to_owned() };
    for (name, domain) in known.domains.iter().filter(|(_, d)| all || d.power != Power::Off) {
        let _ = match uuid {
            true => writeln!(out, "{} {name}", text(&domain.xml, "uuid").unwrap_or_default()),
            false => writeln!(
                out,
                " {}    {name}   {}",
                if domain.power == Power::Off { "-" } else { "1" },
                word(domain.power)
            ),
        };
    }
    out + "\n"
}

fn word(power: Power) -> &'static str {
    match power {
        Power::Off => "shut off",
        Power::Running => "running",
        Power::Paused => "paused",
    }
}

fn define(lab: &Arc<Lab>, xml: &str) -> Result<String, String> {
    let name = text(xml, "name").ok_or("XML error: domain has no name")?;
    let mut known = lab.known();
    let uuid = text(xml, "uuid");
    if let Some(domain) = known.domains.get_mut(&name) {
        if uuid.is_some() && text(&domain.xml, "uuid") != uuid {
            return Err(format!(
                "operation failed: domain '{name}' already exists with uuid {}",
                text(&domain.xml, "uuid").unwrap_or_default()
            ));
        }
        domain.xml = xml.to_owned();
        return Ok(format!("Domain '{name}' defined\n"));
    }
    known.count += 1;
    let number = known.count;
    let mut xml = xml.to_owned();
    if uuid.is_none() {
        let made = fs::read_to_string("/proc/sys/kernel/random/uuid").map_err(|e| e.to_string())?;
        xml = xml.replacen("</name>", &format!("</name>\n  <uuid>{}</uuid>", made.trim()), 1);
    }
    known.domains.insert(name.clone(), Domain::new(xml, number));
    Ok(format!("Domain '{name}' defined\n"))
}

fn set(xml: &mut String, element: &str, value: &str) {
    if let Some(before) = text(xml, element) {
        *xml = xml.replacen(&format!(">{before}</{element}>"), &format!(">{value}</{element}>"), 1);
    }
}

/// What the box's disk has, as `tests/fakes/qemu-img` and this program say.
const BOX: u64 = 10 << 30;

/// `40b`, `40B`.
fn bytes(text: &str) -> Option<u64> {
    text.trim_end_matches(['b', 'B']).parse().ok()
}

/// A machine's disks that are in its description: target and path.
fn described_disks(xml: &str) -> Vec<(String, String)> {
    let one = |part: &str| Some((attribute(part, "target", "dev")?, attribute(part, "source", "file")?));
    xml.split("<disk ").skip(1).filter_map(one).filter(|(_, path)| path.contains(".disk.")).collect()
}

/// The volume at a target of a machine, where it is one that every machine has, or one of its description's.
fn volume_of(name: &str, target: &str) -> String {
    if target == "vda" { format!("{name}.img") } else { target.to_owned() }
}

/// One that a machine has from its description from now on.
fn attach_for_good(
    lab: &Arc<Lab>,
    mut known: MutexGuard<'_, Known>,
    name: &str,
    xml: &str,
    live: bool,
) -> Result<String, String> {
    let fail = |what: &str| format!("Failed to attach device from /dev/stdin\n{what}");
    let source = attribute(xml, "source", "file").ok_or_else(|| fail("no source"))?;
    let serial = text(xml, "serial").ok_or_else(|| fail("no serial"))?;
    let volume = source.rsplit('/').next().unwrap_or_default();
    if !known.volumes.contains_key(volume) {
        return Err(fail("No such file"));
    }
    let domain = known.domains.get_mut(name).expect("just found");
    let target = attribute(xml, "target", "dev").ok_or_else(|| fail("no target"))?;
    if described_disks(&domain.xml).iter().any(|(other, _)| *other == target) {
        return Err(fail(&format!("XML error: target '{target}' duplicated for disk sources")));
    }
    domain.xml = domain.xml.replacen("</devices>", &format!("{xml}</devices>"), 1);
    drop(known);
    if live && let Some(device) = lab.device(name, &serial) {
        let make = || {
            fs::create_dir_all(device.parent().expect("in a folder")).and_then(|()| fs::write(&device, ""))
        };
        make().map_err(|e| fail(&e.to_string()))?;
    }
    Ok("Device attached successfully\n".into())
}

/// The machine sees the volume as a file where udev links to a disk.
fn attach(lab: &Arc<Lab>, mut known: MutexGuard<'_, Known>, name: &str, xml: &str) -> Result<String, String> {
    let fail = |what: &str| format!("Failed to attach device from /dev/stdin\n{what}");
    let source = attribute(xml, "source", "file").ok_or_else(|| fail("no source"))?;
    let target = attribute(xml, "target", "dev").ok_or_else(|| fail("no target"))?;
    let serial = text(xml, "serial").ok_or_else(|| fail("no serial"))?;
    let volume = source.rsplit('/').next().unwrap_or_default().to_owned();
    let parts = known.volumes.get(&volume).ok_or_else(|| fail("No such file"))?.parts.clone();
    let domain = known.domains.get_mut(name).expect("just found");
    if fault(&lab.dir, name.rsplit('-').next().unwrap_or_default(), "no-hotplug").is_some() {
        return Err(fail("internal error: No more available PCI slots"));
    }
    if domain.extra.is_some() {
        return Err(fail(&format!("XML error: target '{target}' duplicated for disk sources")));
    }
    domain.extra = Some((target, volume, serial.clone()));
    drop(known);
    let device = lab.device(name, &serial).ok_or_else(|| fail("it does not run"))?;
    let write = || -> io::Result<()> {
        fs::create_dir_all(device.parent().expect("in a folder"))?;
        let mut disk = fs::File::create(&device)?;
        for (offset, part) in &parts {
            disk.seek(io::SeekFrom::Start(*offset))?;
            io::copy(&mut fs::File::open(part)?, &mut disk)?;
        }
        Ok(())
    };
    write().map_err(|e| fail(&e.to_string()))?;
    Ok("Device attached successfully\n".into())
}

fn domain(
    lab: &Arc<Lab>,
    verb: &str,
    name: &str,
    plain: &[&str],
    rest: &[&str],
    stdin: &str,
) -> Result<String, String> {
    let missing =
        format!("failed to get domain '{name}'\nDomain not found: no domain with matching name '{name}'");
    let mut known = lab.known();
    // By name or by UUID.
    let found =
        known.domains.iter().find(|(n, d)| *n == name || text(&d.xml, "uuid").as_deref() == Some(name));
    let name = found.map(|(n, _)| n.clone()).ok_or(missing)?;
    let domain = known.domains.get_mut(&name).expect("just found");
    let (power, saved) = (domain.power, domain.saved);
    let off = "Requested operation is not valid: domain is not running";
    match verb {
        "dumpxml" => return Ok(domain.xml.clone() + "\n"),
        "domuuid" => return Ok(text(&domain.xml, "uuid").unwrap_or_default() + "\n"),
        "domstate" => return Ok(format!("{}\n", word(power))),
        "desc" => return Ok(text(&domain.xml, "description").unwrap_or_default() + "\n"),
        "dominfo" => {
            let kib = memory(&domain.xml) * 1024;
            return Ok(format!(
                "Name:           {name}\nUUID:           {}\nState:          {}\nCPU(s):         {}\n\
                 Max memory:     {kib} KiB\nUsed memory:    {kib} KiB\nPersistent:     yes\nAutostart:      {}\n\
                 Managed save:   {}\n",
                text(&domain.xml, "uuid").unwrap_or_default(),
                word(power),
                text(&domain.xml, "vcpu").unwrap_or_default(),
                if known.autostart.contains(&name) { "enable" } else { "disable" },
                if saved { "yes" } else { "no" },
            ));
        }
        // The network of each card, and its name on this host while the machine runs.
        "domiflist" => {
            let card = if power == Power::Off { "-".to_owned() } else { format!("v{}", domain.number) };
            let (mac, (kind, name)) =
                (attribute(&domain.xml, "mac", "address"), ground_of(&domain.xml).unwrap_or_default());
            return Ok(format!(
                " Interface   Type      Source      Model    MAC\n-------------------------\n {card}   {kind}   {name}   virtio   {}\n\n",
                mac.unwrap_or_default()
            ));
        }
        "domblklist" => {
            let extra = domain.extra.as_ref().map(|(target, volume, _)| format!(" {target}   {volume}\n"));
            let described: String = described_disks(&domain.xml)
                .iter()
                .map(|(target, path)| format!(" {target}   {path}\n"))
                .collect();
            return Ok(format!(
                " Target   Source\n-------\n vda      /var/lib/libvirt/images/{name}.img\n{described}{}\n",
                extra.unwrap_or_default()
            ));
        }
        "domblkinfo" | "blockresize" => {
            let volume = plain.get(1).and_then(|path| path.rsplit('/').next()).unwrap_or_default();
            if verb == "blockresize" && power == Power::Off {
                return Err(off.into());
            }
            let volume = known.volumes.get_mut(volume).ok_or("no such disk")?;
            if verb == "blockresize" {
                volume.capacity = bytes(plain.get(2).copied().unwrap_or_default()).ok_or("malformed size")?;
                return Ok(format!("Block device '{name}' is resized\n"));
            }
            return Ok(format!(
                "Capacity:       {}\nAllocation:     0\nPhysical:       0\n",
                volume.capacity
            ));
        }
        "attach-device" if rest.contains(&"--config") => {
            return attach_for_good(lab, known, &name, stdin, rest.contains(&"--live"));
        }
        "attach-device" | "detach-disk" if power != Power::Running => {
            return Err(format!("Failed to change the devices of '{name}'\n{off}"));
        }
        "attach-device" => return attach(lab, known, &name, stdin),
        "detach-disk" => {
            let target = plain.get(1).copied().unwrap_or_default();
            let Some((_, _, serial)) = domain.extra.take_if(|e| e.0 == target) else {
                return Err(format!("No disk found whose source path or target is {target}"));
            };
            drop(known);
            if let Some(device) = lab.device(&name, &serial) {
                let _ = fs::remove_file(device);
            }
            return Ok("Disk detached successfully\n".into());
        }
        "domif-setlink" => return set_link(domain, power, rest),
        "blkdeviotune" => return tune(domain, power, &name, rest),
        "metadata" => return metadata(domain, power, plain, rest),
        "autostart" if rest.contains(&"--disable") => drop(known.autostart.remove(&name)),
        "autostart" => drop(known.autostart.insert(name)),
        "console" => {
            return Ok("Connected to domain\nEscape character is ^] (Ctrl + ])\nsimulated boot\n".into());
        }
        "setvcpus" => set(&mut domain.xml, "vcpu", plain.get(1).copied().unwrap_or("1")),
        "setmem" | "setmaxmem" => {
            let size = plain.get(1).copied().unwrap_or("0");
            let kib = match size.trim_end_matches(|c: char| c.is_ascii_alphabetic()).parse::<u64>() {
                Ok(n) if size.ends_with('M') || size.ends_with("MiB") => n * 1024,
                Ok(n) => n,
                Err(_) => {
                    return Err(format!("Scaled numeric value '{size}' for <--size> option is malformed"));
                }
            };
            for element in ["memory", "currentMemory"] {
                set(&mut domain.xml, element, &kib.to_string());
            }
        }
        "domifaddr" => {
            let (mac, network) = (attribute(&domain.xml, "mac", "address"), ground_of(&domain.xml));
            let (mac, (_, network)) = (mac.unwrap_or_default(), network.unwrap_or_default());
            let address = known
                .networks
                .get(&network)
                .and_then(|n| n.live.as_ref())
                .and_then(|xml| Some((reservation(xml, &mac)?.1, prefix(xml))));
            let line = match address {
                Some((address, prefix)) if power == Power::Running => {
                    format!(" vnet0      {mac}    ipv4         {address}/{prefix}\n")
                }
                _ => String::new(),
            };
            return Ok(format!(" Name       MAC address          Protocol     Address\n-------\n{line}"));
        }
        // Its memory goes back into it, and is no longer on disk.
        "start" if saved => {
            drop(known);
            lab.save(&name, false);
            if !rest.contains(&"--paused") {
                lab.freeze(&name, false);
            }
        }
        "snapshot-list" => {
            return Ok(domain.snapshots.keys().map(|name| format!("{name}\n")).collect::<String>() + "\n");
        }
        "snapshot-dumpxml" => {
            let name = plain.get(1).copied().unwrap_or_default();
            let note = domain.snapshots.get(name).ok_or("Domain snapshot not found")?;
            return Ok(format!(
                "<domainsnapshot>\n  <name>{name}</name>\n  <description>{note}</description>\n</domainsnapshot>\n"
            ));
        }
        "snapshot-delete" => drop(domain.snapshots.remove(plain.get(1).copied().unwrap_or_default())),
        // The disk as it is goes into a volume of its own, and so does the memory, of which nothing is played.
        "blockcopy" if power == Power::Off => return Err(off.into()),
        "blockcopy" => {
            let to = rest.iter().position(|w| *w == "--dest").and_then(|i| rest.get(i + 1)).copied();
            let to = to.and_then(|path| path.rsplit('/').next()).unwrap_or_default().to_owned();
            if let Some(text) = fault(&lab.dir, name.rsplit('-').next().unwrap_or_default(), "fail-copy") {
                return Err(text);
            }
            let backing = known.volumes.get(&format!("{name}.img")).and_then(|v| v.backing.clone());
            let target = plain.get(1).copied().unwrap_or_default();
            let own = target == "vda";
            let capacity = known.volumes.get(&volume_of(&name, target)).map_or(BOX, |v| v.capacity);
            let backing = backing.filter(|_| own);
            known.volumes.insert(to.clone(), Volume { physical: 4096, capacity, backing, parts: Vec::new() });
            drop(known);
            if !own {
                return Ok("Successfully copied\n".into());
            }
            lab.copy_disk(&name, to.trim_end_matches(".img")).map_err(|e| e.to_string())?;
            return Ok("Successfully copied\n".into());
        }
        "blockjob" => return Err("No current block job for vda".into()),
        "snapshot-create-as" if rest.contains(&"--memspec") => {
            if power != Power::Paused {
                return Err("the machine is not paused".into());
            }
            let to = rest.iter().position(|w| *w == "--memspec").and_then(|i| rest.get(i + 1)).copied();
            let to = to.and_then(|spec| spec.strip_prefix("file=")?.split(',').next()?.rsplit('/').next());
            let volume = Volume { physical: 8192, capacity: 8192, backing: None, parts: Vec::new() };
            let (xml, had) = (domain.xml.clone(), domain.seat.clone());
            let to = to.unwrap_or_default().to_owned();
            known.volumes.insert(to.clone(), volume);
            let (network, mac) = (ground_of(&xml).map(|(_, name)| name), attribute(&xml, "mac", "address"));
            let live = network.and_then(|n| known.networks.get(&n)?.live.clone()).unwrap_or_default();
            let seat = seat(&live, &mac.unwrap_or_default()).or(had);
            known.saved.insert(to, Saved { domain: name, xml, seat });
        }
        "snapshot-create-as" if power == Power::Off => {
            return Err(format!("Failed to take a snapshot\n{off}"));
        }
        "snapshot-create-as" => {
            let note = rest.iter().position(|w| *w == "--description").and_then(|i| rest.get(i + 1));
            let name = plain.get(1).copied().unwrap_or_default();
            domain.snapshots.insert(name.to_owned(), note.copied().unwrap_or_default().to_owned());
        }
        "managedsave" if power == Power::Off => {
            return Err(format!("Failed to save domain '{name}' state\n{off}"));
        }
        "managedsave" => {
            drop(known);
            if let Some(text) = fault(&lab.dir, name.rsplit('-').next().unwrap_or_default(), "fail-save") {
                return Err(format!("Failed to save domain '{name}' state\n{text}"));
            }
            lab.save(&name, true);
        }
        "managedsave-remove" if !saved => {
            return Ok(format!("Domain '{name}' has no manage save image; removal skipped\n"));
        }
        "managedsave-remove" => {
            drop(known);
            lab.pull(&name);
        }
        "start" => {
            drop(known);
            if let Some(text) = fault(&lab.dir, name.rsplit('-').next().unwrap_or_default(), "fail-start") {
                return Err(format!("Failed to start domain '{name}'\n{text}"));
            }
            return lab
                .start(&name)
                .map(|()| format!("Domain '{name}' started\n"))
                .map_err(|e| format!("Failed to start domain '{name}'\n{e}"));
        }
        "destroy" if power == Power::Off => return Err(format!("Failed to destroy domain '{name}'\n{off}")),
        "destroy" => {
            drop(known);
            lab.pull(&name);
        }
        "shutdown" | "reboot" if power != Power::Running => {
            return Err(format!("Failed to {verb} domain '{name}'\n{off}"));
        }
        "shutdown" | "reboot" => {
            drop(known);
            lab.order(&name, if verb == "reboot" { "reboot" } else { "poweroff" });
        }
        "suspend" if power != Power::Running => {
            return Err(format!("Failed to suspend domain '{name}'\n{off}"));
        }
        "suspend" => {
            drop(known);
            lab.freeze(&name, true);
        }
        "resume" if power == Power::Off => return Err(format!("Failed to resume domain '{name}'\n{off}")),
        "resume" => {
            drop(known);
            lab.freeze(&name, false);
        }
        "undefine" if saved && !rest.contains(&"--managed-save") => {
            return Err(format!(
                "Failed to undefine domain '{name}'\nRefusing to undefine while domain managed save image exists"
            ));
        }
        "undefine" if saved => {
            drop(known);
            lab.pull(&name);
            lab.known().domains.remove(&name);
        }
        "undefine" => {
            let disk = format!("{name}.img");
            known.domains.remove(&name);
            if rest.contains(&"--remove-all-storage") && known.volumes.remove(&disk).is_some() {
                drop(known);
                lab.drop_disk(&name);
            }
        }
        other => return Err(format!("unknown command: '{other}' (this is a part of p1's tests)")),
    }
    Ok(String::new())
}

/// `domif-setlink DOMAIN MAC|INTERFACE up|down`, of a machine that runs.
fn set_link(domain: &mut Domain, power: Power, rest: &[&str]) -> Result<String, String> {
    let [_, card, state @ ("up" | "down")] = rest[..] else {
        return Err(format!("command 'domif-setlink' doesn't support {rest:?} here"));
    };
    let own = attribute(&domain.xml, "mac", "address").unwrap_or_default();
    if !card.eq_ignore_ascii_case(&own) && card != format!("v{}", domain.number) {
        return Err(format!("interface (interface: {card}) not found"));
    }
    if power == Power::Off {
        return Err("a machine that is off is described with it (this is a part of p1's tests)".into());
    }
    domain.unplugged = state == "down";
    if power == Power::Running {
        ip(&format!("link set v{} {state}\n", domain.number));
    }
    Ok("Device updated successfully\n\n".into())
}

/// `blkdeviotune DOMAIN DEVICE [--OPTION N]... --live`; without any, it says what there is.
fn tune(domain: &mut Domain, power: Power, name: &str, rest: &[&str]) -> Result<String, String> {
    const OPTIONS: [&str; 2] = ["total-bytes-sec", "total-iops-sec"];
    if rest.get(1) != Some(&"vda") {
        return Err(format!(
            "invalid argument: disk '{}' was not found in the domain config",
            rest.get(1).unwrap_or(&"")
        ));
    }
    if power == Power::Off {
        return Err(format!("Requested operation is not valid: domain '{name}' is not running"));
    }
    let (mut words, mut new) = (rest[2..].iter(), Vec::new());
    while let Some(word) = words.next() {
        let option = word.strip_prefix("--").unwrap_or_default();
        match words.as_slice().first().and_then(|n| n.parse::<u64>().ok()) {
            _ if option == "live" => {}
            Some(n) if OPTIONS.contains(&option) => {
                new.push((option.replace('-', "_"), n));
                words.next();
            }
            _ => return Err(format!("command 'blkdeviotune' doesn't support option {word}")),
        }
    }
    if new.is_empty() {
        let value = |option: &str| domain.limits.get(&option.replace('-', "_")).copied().unwrap_or_default();
        return Ok(OPTIONS.map(|o| format!("{:15}: {}\n", o.replace('-', "_"), value(o))).concat());
    }
    domain.limits.extend(new);
    Ok(String::new())
}

/// `metadata DOMAIN URI [--live|--config] [--key KEY --set XML | --remove]`: what is kept under KEY's namespace,
/// of one element, told without its prefix (virDomainObjGetMetadata). There is one description here, so `--live`
/// only has to fit the machine's state.
fn metadata(domain: &mut Domain, power: Power, plain: &[&str], rest: &[&str]) -> Result<String, String> {
    if rest.contains(&"--live") && power == Power::Off {
        return Err("Requested operation is not valid: domain is not running".into());
    }
    let uri = plain.get(1).copied().unwrap_or_default();
    let value = |flag: &str| rest.iter().position(|w| *w == flag).and_then(|i| rest.get(i + 1)).copied();
    let mark = format!("='{uri}'>");
    let element = |xml: &str| -> Option<String> {
        let line = xml.lines().find(|l| l.contains(&mark))?;
        Some(line.trim().to_owned())
    };
    match (value("--key"), value("--set")) {
        (Some(key), Some(xml)) => {
            let (name, body) = xml.trim_start_matches('<').split_once('>').ok_or("XML error: no element")?;
            let body = body.rsplit_once("</").ok_or("XML error: no end of the element")?.0;
            let new = format!("    <{key}:{name} xmlns:{key}{mark}{body}</{key}:{name}>\n");
            let kept: String =
                domain.xml.lines().filter(|l| !l.contains(&mark)).map(|l| format!("{l}\n")).collect();
            domain.xml = match kept.contains("<metadata>") {
                true => kept.replacen("<metadata>\n", &format!("<metadata>\n{new}"), 1),
                false => {
                    kept.replacen("<devices>", &format!("<metadata>\n{new}  </metadata>\n  <devices>"), 1)
                }
            };
            Ok("Metadata modified\n".into())
        }
        (None, Some(_)) => Err("namespace key is required when modifying metadata".into()),
        _ if rest.contains(&"--remove") => {
            domain.xml =
                domain.xml.lines().filter(|l| !l.contains(&mark)).map(|l| format!("{l}\n")).collect();
            Ok("Metadata removed\n".into())
        }
        _ => {
            let found = element(&domain.xml)
                .ok_or("metadata not found: Requested metadata element is not present")?;
            let (open, rest) = found.split_once('>').unwrap_or_default();
            let (body, _) = rest.rsplit_once("</").unwrap_or_default();
            let name = open.split(' ').next().unwrap_or_default().rsplit(':').next().unwrap_or_default();
            Ok(format!("<{name}>{body}</{name}>\n\n"))
        }
    }
}

/// Where a program called by this path finds its lab.
pub fn lab_of(called: &str) -> std::path::PathBuf {
    let set = std::env::var_os("P1_SIM_DIR").map(Into::into);
    set.unwrap_or_else(|| {
        Path::new(called).parent().and_then(Path::parent).unwrap_or(Path::new("/")).to_owned()
    })
}
