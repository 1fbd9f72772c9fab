//! The disks of machines as the spec has them: libvirt's.
//!
//! A machine has its first disk from whoever makes it, over the box's image. p1 itself enlarges that, and makes and attaches the
//! others, whoever has made the machine: so both engines have them in the same way, and a machine that is there gets them while
//! it runs. They are qcow2 as the first is, so that snapshots are of all of them at once.

use super::libvirt::{Libvirt, POOL, VIRSH_TIMEOUT, cache, disk, failed};
use super::{Error, machine_name};
use crate::explain::Explain as _;
use crate::os::Cancel;
use crate::os::process::{self, Finished};
use crate::render;
use crate::spec::{Cluster, Node};

const GIB: u64 = 1 << 30;

/// What the name of a disk's volume has behind its machine's, before its serial. No node has a dot in its name.
const MARK: &str = ".disk.";

/// The volume of a machine's disk.
pub(super) fn volume(domain: &str, serial: &str) -> String {
    format!("{domain}{MARK}{serial}.img")
}

/// The serial of a machine's disk, by its volume's name; none where the volume is no such disk of this machine.
pub(super) fn serial<'v>(domain: &str, volume: &'v str) -> Option<&'v str> {
    volume.strip_prefix(domain)?.strip_prefix(MARK)?.strip_suffix(".img")
}

/// By target: where its disk is, from `virsh domblklist`.
pub(super) fn attached(list: &str) -> Vec<(&str, &str)> {
    let lines = list.lines().skip(2).filter_map(|line| line.trim().split_once(char::is_whitespace));
    lines.map(|(target, source)| (target, source.trim())).collect()
}

impl Libvirt {
    pub(super) fn give_disks(
        &self,
        cluster: &Cluster,
        node: &Node,
        cancel: &Cancel,
    ) -> Result<Vec<String>, Error> {
        let (domain, doing) = (machine_name(&cluster.name, &node.name), "look at the machine's disks");
        let runs = self.ask(doing, &["domstate", &domain], cancel)?.stdout.trim() != "shut off";
        let list = self.ask(doing, &["domblklist", &domain], cancel)?.stdout;
        let has = attached(&list);
        let there = |volume: &str| {
            let ends = |path: &str| path.rsplit('/').next() == Some(volume);
            has.iter().find(|(_, path)| ends(path)).map(|(_, path)| *path)
        };
        let mut did = Vec::new();
        let mut wanted: Vec<(String, u32, Option<&str>)> = Vec::new();
        wanted.extend(node.disk.map(|size| (disk(&cluster.name, &node.name), size, None)));
        for one in &node.disks {
            wanted.push((volume(&domain, &one.serial), one.size, Some(&one.serial)));
        }
        let mut free = ('b'..='y').map(|c| format!("vd{c}")).filter(|t| has.iter().all(|(has, _)| has != t));
        for (volume, size, serial) in wanted {
            let told = serial.map_or_else(|| "its disk".to_owned(), |serial| format!("the disk {serial}"));
            match (there(&volume), serial) {
                (Some(path), _) => {
                    if let Some(was) =
                        self.enlarge(&domain, (&volume, path), u64::from(size) * GIB, runs, cancel)?
                    {
                        did.push(format!("{told} has {size} GiB now, it had {was}"));
                    }
                }
                (None, Some(serial)) => {
                    let target = free.next().unwrap_or_default();
                    self.add(cluster, &domain, (&volume, size, serial, &target), runs, cancel)?;
                    did.push(format!("added the disk {serial} of {size} GiB"));
                }
                (None, None) => {
                    return Err(Error::Answer {
                        program: "virsh",
                        what: format!("disk of {domain}"),
                        lines: process::tail(&list, 5),
                    });
                }
            }
        }
        Ok(did)
    }

    /// Answers what size it had, if it had another one.
    fn enlarge(
        &self,
        domain: &str,
        (volume, path): (&str, &str),
        bytes: u64,
        runs: bool,
        cancel: &Cancel,
    ) -> Result<Option<String>, Error> {
        let doing = "enlarge the disk";
        let told = self.ask(doing, &["domblkinfo", domain, path], cancel)?.stdout;
        let has: Option<u64> = told
            .lines()
            .find_map(|l| l.strip_prefix("Capacity:"))
            .and_then(|l| l.split_whitespace().next()?.parse().ok());
        let has = has.ok_or_else(|| Error::Answer {
            program: "virsh",
            what: format!("size of the disk {volume}"),
            lines: process::tail(&told, 5),
        })?;
        if has > bytes {
            return Err(Error::Conflict {
                what: format!(
                    "the disk {volume} has {} and cannot become {}: what is at its end would be cut off",
                    gib(has),
                    gib(bytes)
                ),
                remedy: format!(
                    "Write {} or more in the spec; a smaller one comes with a new machine only.",
                    gib(has).replace(' ', "")
                ),
                next: Vec::new(),
            });
        }
        if has == bytes {
            return Ok(None);
        }
        let size = format!("{bytes}B");
        let done = match runs {
            true => self.ask(doing, &["blockresize", domain, path, &size], cancel),
            false => self.ask(doing, &["vol-resize", "--pool", POOL, volume, &size], cancel),
        };
        match done {
            Ok(_) => Ok(Some(gib(has))),
            // QEMU does so with disks of its older format, which libvirt makes by itself.
            Err(Error::Program { source, .. })
                if source.evidence().iter().any(|l| l.contains("snapshot")) =>
            {
                Err(Error::Conflict {
                    what: format!("the disk {volume} cannot be enlarged while its machine has snapshots"),
                    remedy: "Delete them, which `p1 snapshot list` shows; then `p1 up` enlarges it.".into(),
                    next: vec!["p1 snapshot list".into()],
                })
            }
            Err(error) => Err(error),
        }
    }

    fn add(
        &self,
        cluster: &Cluster,
        domain: &str,
        (volume, size, serial, target): (&str, u32, &str, &str),
        runs: bool,
        cancel: &Cancel,
    ) -> Result<(), Error> {
        let doing = "make a disk for the machine";
        // One that is there and not attached is of a p1 that was killed between the two, or somebody has detached it.
        if !self.volumes(cancel)?.contains(volume) {
            let bytes = format!("{}b", u64::from(size) * GIB);
            self.ask(doing, &["vol-create-as", POOL, volume, &bytes, "--format", "qcow2"], cancel)?;
        }
        let path = self.ask(doing, &["vol-path", "--pool", POOL, volume], cancel)?.stdout;
        let values = serde_json::json!({
            "source": path.trim(), "target": target, "serial": serial, "format": "qcow2",
            "cache": cache(cluster.disposable), "read_only": false,
        });
        let xml = render::render("disk.xml", &values).map_err(Error::Render)?;
        let mut args = vec!["attach-device", domain, "/dev/stdin", "--config"];
        args.extend(runs.then_some("--live"));
        let doing = "attach a disk to the machine";
        let cmd = self.virsh(args).stdin(xml);
        process::run(&cmd, VIRSH_TIMEOUT, cancel).and_then(Finished::ok).map(|_| ()).map_err(failed(doing))
    }
}

/// A size for people: whole GiB, or MiB where it is none.
fn gib(bytes: u64) -> String {
    if bytes.is_multiple_of(GIB) { format!("{} GiB", bytes / GIB) } else { format!("{} MiB", bytes >> 20) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_volume_is_of_one_disk_of_one_machine() {
        assert_eq!(serial("p1-iot-a", &volume("p1-iot-a", "data")), Some("data"));
        // Those of a machine whose name begins alike, the first disk, and the disk with files of a cluster.
        for other in [&*volume("p1-iot-a-b", "data"), "p1-iot-a.img", "p1-iot-a.files.img"] {
            assert_eq!(serial("p1-iot-a", other), None, "{other}");
        }
    }

    #[test]
    fn disks_are_read_from_what_libvirt_says() {
        let list =
            " Target   Source\n-----------------\n vda      /pool/p1-iot-a.img\n vdb      /my pool/x.img\n\n";
        assert_eq!(attached(list), [("vda", "/pool/p1-iot-a.img"), ("vdb", "/my pool/x.img")]);
        assert_eq!((gib(40 * GIB), gib(GIB / 2)), ("40 GiB".to_owned(), "512 MiB".to_owned()));
    }
}
