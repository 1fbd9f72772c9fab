//! Machines that go on from a kept moment beside those that were kept: libvirt's.
//!
//! A fork's machine has the memory of its original, and with it name, addresses and MAC address inside; on this host it has another
//! name, another id, a disk of its own over the kept one, and a network of its own on which no IPv4 address of this host is, so that
//! equal addresses do not meet. This host reaches it by the IPv6 link-local address that follows from its MAC address, with the
//! bridge as scope. That needs no rights, as a namespace of its own would.
//!
//! libvirt restores a memory image as the machine that is described in it, and refuses a description with another id beside it.
//! So the description in the image's own head is rewritten, in place, by libvirt's calls for volumes: a user who may use libvirt
//! may not write there. The head as it was is written down beside the moment before, and from then on whoever restores of that
//! image writes the head that he needs first, whatever a p1 that was killed left there. To copy the image instead takes as long
//! as several restores of it.

use std::fs;
use std::net::{Ipv6Addr, SocketAddr, ToSocketAddrs};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use sha2::{Digest, Sha256};

use super::keep::sourced;
use super::libvirt::{self, Libvirt, POOL};
use super::{Error, Kept, Owner, disks, machine_name, network_name, node_mac};
use crate::os::Cancel;
use crate::os::cancel::Level;
use crate::os::files::At;
use crate::spec::{Cluster, Node};

/// The bridge of a fork's network. Names of interfaces have 15 characters at most.
pub fn bridge(cluster: &str) -> String {
    let hash = Sha256::digest(format!("fork/{cluster}"));
    format!("p1f{:02x}{:02x}{:02x}{:02x}", hash[0], hash[1], hash[2], hash[3])
}

/// This host's address on it: libvirt switches IPv6 off on a bridge that has none. Nobody uses it (RFC 4193, a random prefix).
pub fn host_address(cluster: &str) -> Ipv6Addr {
    let hash = Sha256::digest(format!("fork/{cluster}"));
    let part = |i: usize| u16::from_be_bytes([hash[i], hash[i + 1]]);
    Ipv6Addr::new(0xfd00 | u16::from(hash[4]), part(5), part(7), part(9), 0, 0, 0, 1)
}

/// The link-local address that follows from a MAC address (RFC 4291, appendix A).
pub fn link_local(mac: &str) -> Ipv6Addr {
    let bytes: Vec<u16> = mac.split(':').filter_map(|b| u16::from_str_radix(b, 16).ok()).collect();
    let [a, b, c, d, e, f] = bytes[..] else { return Ipv6Addr::UNSPECIFIED };
    Ipv6Addr::new(0xfe80, 0, 0, 0, (a ^ 2) << 8 | b, c << 8 | 0xff, 0xfe00 | d, e << 8 | f)
}

/// The link-local address of a node's card on the nodes' network.
pub fn address_of(cluster: &Cluster, node: &Node) -> Ipv6Addr {
    link_local(&node_mac(cluster.macs(), &node.name, node.ip))
}

/// How long this host may take to be sure of an address (RFC 4862, 5.4): a second, and another one at random before it.
const SETTLING: Duration = Duration::from_secs(3);

/// Waits until this host has an address on a fork's bridge that is its own for sure, which begins with the first machine there.
/// Who connects before does so from the bridge's other address, and has no answer for as long as he may wait for one.
pub fn settle(cluster: &Cluster, stop: &Cancel) {
    let bridge = bridge(&cluster.name);
    let settled = |line: &str| {
        let words: Vec<&str> = line.split_whitespace().collect();
        let [address, _, _, "20", flags, name] = words[..] else { return false };
        let tentative = u32::from_str_radix(flags, 16).is_ok_and(|flags| flags & 0x40 != 0);
        name == bridge && address.starts_with("fe80") && !tentative
    };
    let end = Instant::now() + SETTLING;
    while !fs::read_to_string("/proc/net/if_inet6").unwrap_or_default().lines().any(settled) {
        if Instant::now() >= end || stop.sleep(Duration::from_millis(20), Level::Stop) {
            return;
        }
    }
}

/// How the machines of a fork are reached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reach {
    bridge: String,
    macs: String,
    /// Where its state is.
    dir: PathBuf,
}

/// What a fork's forwarder writes its port into, in the state folder.
const PORT: &str = "forwarder.port";

impl Reach {
    /// Those of a cluster, if it is a fork.
    pub fn of(cluster: &Cluster, dir: &Path) -> Option<Self> {
        cluster.fork.as_ref().map(|fork| Self {
            bridge: bridge(&cluster.name),
            macs: fork.macs.clone(),
            dir: dir.to_owned(),
        })
    }

    fn address(&self, node: &Node) -> Ipv6Addr {
        link_local(&node_mac(&self.macs, &node.name, node.ip))
    }

    /// As it is written.
    pub fn host(&self, node: &Node) -> String {
        format!("{}%{}", self.address(node), self.bridge)
    }

    /// A port of a node, while its network is there.
    pub fn door(&self, node: &Node, port: u16) -> Option<SocketAddr> {
        (self.host(node).as_str(), port).to_socket_addrs().ok()?.next()
    }

    /// Where its forwarder listens, or listened last.
    pub fn front(&self) -> Option<SocketAddr> {
        let port = fs::read_to_string(self.dir.join(PORT)).ok()?;
        Some(([127, 0, 0, 1], port.trim().parse().ok()?).into())
    }
}

/// Where a fork's forwarder writes down its port.
pub fn port_file(dir: &Path) -> PathBuf {
    dir.join(PORT)
}

/// libvirt's head of a memory image (`src/qemu/qemu_saveimage.h`), all of it little-endian.
const MAGIC: &[u8; 16] = b"LibvirtQemudSave";
const HEAD: usize = 92;
/// More than any description of a machine of p1's; libvirt itself leaves 64 KiB beside it.
const LARGEST: usize = 1 << 20;

/// What is read of an image to have its description.
const READ: usize = 256 << 10;

/// The head of an image and the description in it.
fn described(image: &[u8]) -> Result<(usize, usize, String), String> {
    let number = |at: usize| -> Option<usize> {
        let bytes = image.get(at..at + 4)?.try_into().ok()?;
        usize::try_from(u32::from_le_bytes(bytes)).ok()
    };
    if image.get(..16) != Some(MAGIC) {
        return Err("it is no memory image of libvirt's".to_owned());
    }
    let (Some(version), Some(len), Some(cookie)) = (number(16), number(20), number(32)) else {
        return Err("its head is cut off".to_owned());
    };
    if version != 2 {
        return Err(format!("its format is {version}, not 2"));
    }
    if len > LARGEST || cookie > len {
        return Err("its head is damaged".to_owned());
    }
    let data = image.get(HEAD..HEAD + len).ok_or("its description is cut off")?;
    let end = data.iter().position(|b| *b == 0).ok_or("its description has no end")?;
    let text = String::from_utf8(data[..end].to_vec()).map_err(|_| "its description is no text")?;
    Ok((len, cookie, text))
}

/// The head of an image with another description. What follows it, QEMU's own, begins where it began.
fn with_description(image: &[u8], xml: &str) -> Result<Vec<u8>, String> {
    let (len, cookie, _) = described(image)?;
    let data = &image[HEAD..HEAD + len];
    let rest: &[u8] = match cookie {
        0 => &[],
        // Beside it libvirt keeps what it must know of the running machine.
        at => data[at..].split(|b| *b == 0).next().unwrap_or_default(),
    };
    let mut out = image[..HEAD].to_vec();
    out.extend(xml.as_bytes());
    out.push(0);
    if cookie != 0 {
        let at = u32::try_from(out.len() - HEAD).expect("it is small");
        out[32..36].copy_from_slice(&at.to_le_bytes());
        out.extend(rest);
        out.push(0);
    }
    if out.len() > HEAD + len {
        return Err("there is no room for the description of the fork".to_owned());
    }
    out.resize(HEAD + len, 0);
    Ok(out)
}

/// What a machine is in a fork.
struct As<'a> {
    domain: &'a str,
    id: &'a str,
    disk: &'a str,
    network: &'a str,
}

impl As<'_> {
    /// Where the disk is whose source was this one, of the machine that was called so.
    fn place_of(&self, source: &str, was: &str) -> String {
        let file =
            source.split_once("file='").and_then(|(_, rest)| rest.split('\'').next()).unwrap_or_default();
        let volume = file.rsplit('/').next().unwrap_or_default();
        match disks::serial(was, volume) {
            None => self.disk.to_owned(),
            Some(serial) => {
                let other = disks::volume(self.domain, serial);
                Path::new(self.disk).with_file_name(other).to_string_lossy().into_owned()
            }
        }
    }
}

/// A machine's description, as libvirt writes it (an element a line, attributes in single quotes), as a fork's: its name, id, disk
/// and network are others, what it had on this host while it ran goes, and its MAC addresses stay.
fn forked(xml: &str, new: &As<'_>) -> String {
    let mut out = String::with_capacity(xml.len());
    let (mut disk, mut card, mut backing, mut named) = (false, false, 0_usize, false);
    let mut was = String::new();
    for line in xml.lines() {
        let text = line.trim_start();
        let indent = &line[..line.len() - text.len()];
        match text {
            _ if text.starts_with("<disk ") => disk = text.contains(" device='disk'"),
            _ if text.starts_with("</disk>") => disk = false,
            _ if text.starts_with("<interface ") => card = true,
            _ if text.starts_with("</interface>") => card = false,
            _ => {}
        }
        if text.starts_with("<backingStore") {
            backing += usize::from(!text.ends_with("/>"));
            continue;
        }
        if backing > 0 {
            backing -= usize::from(text.starts_with("</backingStore>"));
            continue;
        }
        let line = match text {
            _ if text.starts_with("<name>") && !named => {
                named = true;
                was = text.trim_start_matches("<name>").trim_end_matches("</name>").to_owned();
                format!("{indent}<name>{}</name>", new.domain)
            }
            _ if text.starts_with("<uuid>") => format!("{indent}<uuid>{}</uuid>", new.id),
            _ if disk && text.starts_with("<source ") => {
                format!("{indent}<source file='{}'/>", new.place_of(text, &was))
            }
            _ if card && text.starts_with("<source ") => {
                format!("{indent}<source network='{}'/>", new.network)
            }
            _ if card && text.starts_with("<target ") => continue,
            _ => line.to_owned(),
        };
        out.push_str(&line);
        out.push('\n');
    }
    out
}

impl Libvirt {
    /// See [`super::Keep::lay_fork`].
    pub(super) fn lay_fork(
        &self,
        cluster: &Cluster,
        kept: &Kept,
        source: &Path,
        owner: &Owner,
        stop: &Cancel,
    ) -> Result<String, Error> {
        let domain = machine_name(&cluster.name, &kept.node);
        let disk = libvirt::disk(&cluster.name, &kept.node);
        let id = fs::read_to_string("/proc/sys/kernel/random/uuid").at("read", Path::new("/proc"))?;
        let describe = self.as_fork(cluster, (kept, id.trim()), &kept.described, source, owner);
        self.lay_disks(&domain, describe, &disk, kept, stop)?;
        Ok(id.trim().to_owned())
    }

    /// See [`super::Keep::restore_fork`].
    pub(super) fn restore_fork(
        &self,
        cluster: &Cluster,
        (kept, id): (&Kept, &str),
        (source, files): (&Path, &Path),
        owner: &Owner,
        stop: &Cancel,
    ) -> Result<(), Error> {
        let file = head_file(files, kept);
        if !file.exists() {
            let head = self.head(kept, &file, stop)?;
            crate::os::files::write(&file, &head, 0o600)?;
        }
        let head = fs::read(&file).at("read", &file)?;
        let usable = |why| unusable(kept, why);
        let (_, _, xml) = described(&head).map_err(usable)?;
        let head = with_description(&head, &self.as_fork(cluster, (kept, id), &xml, source, owner));
        let mine = file.with_extension("fork");
        crate::os::files::write(&mine, &head.map_err(usable)?, 0o600)?;
        let put = self.put_head(kept, &mine, stop);
        crate::os::files::remove_if_there(&mine)?;
        put?;
        self.at_length("restore the machine", &["restore", &kept.path, "--paused"], stop)
    }

    /// Describes the machine in its memory image as it was, where a fork of it was made.
    pub(super) fn as_it_was(&self, kept: &Kept, files: &Path, stop: &Cancel) -> Result<(), Error> {
        let file = head_file(files, kept);
        if file.exists() { self.put_head(kept, &file, stop) } else { Ok(()) }
    }

    fn as_fork(
        &self,
        cluster: &Cluster,
        (kept, id): (&Kept, &str),
        xml: &str,
        source: &Path,
        owner: &Owner,
    ) -> String {
        let (domain, network) = (machine_name(&cluster.name, &kept.node), network_name(&cluster.name));
        let disk = libvirt::disk(&cluster.name, &kept.node);
        let disk = Path::new(&kept.path).with_file_name(disk).to_string_lossy().into_owned();
        let new = As { domain: &domain, id, disk: &disk, network: &network };
        libvirt::owned(&sourced(&forked(xml, &new), source), owner)
    }

    /// The head of a memory image that nobody has written to.
    fn head(&self, kept: &Kept, beside: &Path, stop: &Cancel) -> Result<Vec<u8>, Error> {
        let file = beside.with_extension("part");
        // virsh writes into what is there, and so not with a mode of its own.
        crate::os::files::write(&file, b"", 0o600)?;
        let (path, len) = (file.to_string_lossy(), READ.to_string());
        let args =
            ["vol-download", "--pool", POOL, &kept.memory.volume, &*path, "--offset", "0", "--length", &len];
        let done = self.ask("read how the machine is described in its memory", &args, stop);
        let image = done.and_then(|_| Ok(fs::read(&file).at("read", &file)?));
        crate::os::files::remove_if_there(&file)?;
        let mut image = image?;
        let (len, _, _) = described(&image).map_err(|why| unusable(kept, why))?;
        image.truncate(HEAD + len);
        Ok(image)
    }

    fn put_head(&self, kept: &Kept, file: &Path, stop: &Cancel) -> Result<(), Error> {
        let path = file.to_string_lossy();
        let args = ["vol-upload", "--pool", POOL, &kept.memory.volume, &*path, "--offset", "0"];
        self.ask("describe the machine in its memory", &args, stop).map(|_| ())
    }
}

/// Where the head of a memory image is as it was when it was kept.
fn head_file(files: &Path, kept: &Kept) -> PathBuf {
    files.join(format!("{}.head", kept.node))
}

fn unusable(kept: &Kept, why: String) -> Error {
    Error::Answer {
        program: "virsh",
        what: format!("memory image {} that can be used", kept.memory.volume),
        lines: vec![why],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_machine_is_reached_by_what_follows_from_its_mac() {
        assert_eq!(link_local("52:54:00:cc:bf:54").to_string(), "fe80::5054:ff:fecc:bf54");
        assert_eq!(bridge("demo-f1").len(), 11);
        assert_ne!(bridge("demo-f1"), bridge("demo-f2"));
        assert!(host_address("demo-f1").to_string().starts_with("fd"));
    }

    #[test]
    fn an_image_is_described_in_place() {
        let image = |xml: &str, cookie: &str| {
            let mut all = MAGIC.to_vec();
            let len = xml.len() + cookie.len() + 2 + 100;
            for n in [2, len, 1, 0, xml.len() + 1] {
                all.extend(u32::try_from(n).unwrap().to_le_bytes());
            }
            all.resize(HEAD, 0);
            all.extend([xml.as_bytes(), b"\0", cookie.as_bytes(), b"\0", &[0; 100]].concat());
            all.extend(b"QEVM");
            all
        };
        let one = image("<domain/>", "<cookie/>");
        let new = with_description(&one, "<domain type='qemu'/>").unwrap();
        assert_eq!(described(&new).unwrap().2, "<domain type='qemu'/>");
        let (_, at, _) = described(&new).unwrap();
        assert!(new[HEAD + at..].starts_with(b"<cookie/>\0"));
        // QEMU's part begins where it began.
        assert_eq!(new.len(), one.len() - 4);
        assert!(with_description(&one, &"x".repeat(200)).is_err());
        for (bad, why) in [(&one[..100], "cut off"), (b"qcow".as_slice(), "no memory image")] {
            assert!(described(bad).unwrap_err().contains(why), "{why}");
        }
        let mut newer = one.clone();
        newer[16] = 3;
        assert!(described(&newer).unwrap_err().contains("format is 3"));
    }

    #[test]
    fn a_fork_s_description_differs_in_what_this_host_knows_it_by() {
        let xml = "<domain type='qemu' id='2'>\n  <name>p1-iot-server</name>\n  <uuid>1</uuid>\n  <devices>\n    \
                   <disk type='file' device='disk'>\n      <source file='/pool/p1-iot-server.img' index='1'/>\n      \
                   <backingStore type='file' index='3'>\n        <format type='qcow2'/>\n        <source file='/pool/box.img'/>\n        \
                   <backingStore/>\n      </backingStore>\n      <target dev='vda' bus='virtio'/>\n    </disk>\n    \
                   <disk type='file' device='disk'>\n      <source file='/pool/p1-iot-server.disk.data.img' index='4'/>\n    </disk>\n    \
                   <interface type='network'>\n      <mac address='52:54:00:00:00:01'/>\n      \
                   <source network='p1-iot' portid='2' bridge='virbr1'/>\n      <target dev='vnet1'/>\n    </interface>\n    \
                   <serial type='pty'>\n      <source path='/dev/pts/1'/>\n      <target port='0'/>\n    </serial>\n  </devices>\n</domain>\n";
        let new = As { domain: "p1-f-server", id: "9", disk: "/pool/p1-f-server.img", network: "p1-f" };
        let now = forked(xml, &new);
        for wanted in [
            "<name>p1-f-server<",
            "<uuid>9<",
            "file='/pool/p1-f-server.img'/>",
            "<source network='p1-f'/>",
            "file='/pool/p1-f-server.disk.data.img'/>",
        ] {
            assert!(now.contains(wanted), "{wanted} is not in {now}");
        }
        for gone in ["iot", "backingStore", "vnet1", "box.img", "bridge"] {
            assert!(!now.contains(gone), "{gone} is in {now}");
        }
        for kept in ["52:54:00:00:00:01", "<target dev='vda'", "/dev/pts/1", "<target port='0'/>"] {
            assert!(now.contains(kept), "{kept} is not in {now}");
        }
    }
}
