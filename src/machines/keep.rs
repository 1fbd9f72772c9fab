//! Machines that are kept as they are at one moment and made again from that: libvirt's.
//!
//! Disk and memory go into volumes of their own in libvirt's pool, by libvirt's own calls, since a user who may use libvirt may
//! not write there. The machine itself goes on as it was, its snapshots included: its disk is copied (what is written over the
//! box's image alone), as a volume cannot be renamed and the disk's name is Vagrant's. What is made again has a disk over the copy.

use std::collections::BTreeMap;
use std::path::Path;
use std::thread;

use serde::{Deserialize, Serialize};

use super::libvirt::{self, Libvirt, POOL};
use super::{Error, Owner, Tools, disks, machine_name};
use crate::os::Cancel;
use crate::os::process::{self, Finished};
use crate::spec::Cluster;

/// A volume, and how large it has to be to be whole.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Part {
    pub volume: String,
    pub bytes: u64,
}

/// A machine as it was.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Kept {
    pub node: String,
    /// Its id, which it has again when it is made from this.
    pub id: String,
    pub disk: Part,
    pub memory: Part,
    /// Where the memory is.
    pub path: String,
    /// Bytes of the disk as the machine sees it.
    pub capacity: u64,
    /// The volume behind the disk, if there is one.
    pub base: Option<String>,
    /// Its other disks.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub disks: Vec<KeptDisk>,
    /// How it is described for its next start.
    pub described: String,
    /// How it was described while it ran.
    pub ran: String,
}

/// A disk of a machine beside the one with its system, as it was.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeptDisk {
    pub serial: String,
    pub part: Part,
    /// As for the machine's own.
    pub capacity: u64,
    pub base: Option<String>,
}

impl Kept {
    /// All that is kept of it.
    pub fn parts(&self) -> impl Iterator<Item = &Part> {
        [&self.memory, &self.disk].into_iter().chain(self.disks.iter().map(|disk| &disk.part))
    }

    /// The volumes behind its disks.
    pub fn bases(&self) -> impl Iterator<Item = &String> {
        self.base.iter().chain(self.disks.iter().filter_map(|disk| disk.base.as_ref()))
    }
}

/// Machines that can be kept. Names begin with [`PREFIX`].
pub trait Keep: Send + Sync {
    /// Copies disk and memory of a machine that is paused into volumes of that name; it stays so. What it answers is not
    /// measured yet.
    fn keep(&self, cluster: &Cluster, node: &str, name: &str, stop: &Cancel) -> Result<Kept, Error>;

    /// Fills in how large the parts are.
    fn measure(&self, kept: &mut [Kept], stop: &Cancel) -> Result<(), Error>;

    /// What of it is missing or not whole, as a fragment.
    fn lacks(&self, kept: &[Kept], stop: &Cancel) -> Result<Option<String>, Error>;

    /// Makes the node's machine again without its memory, whatever there is of it, which goes. `source` is the Vagrantfile that
    /// would make it. It needs no network.
    fn lay(
        &self,
        cluster: &Cluster,
        kept: &Kept,
        source: &Path,
        owner: &Owner,
        stop: &Cancel,
    ) -> Result<(), Error>;

    /// Puts back the memory of a machine that was made so. It does not run before [`super::PowerSwitch::resume`]. `place` is the
    /// Vagrantfile that would make it, and the folder with the files of the moment. One at a time restores of a moment.
    fn restore(&self, kept: &Kept, place: (&Path, &Path), stop: &Cancel) -> Result<(), Error>;

    /// Makes a fork's machine without its memory from what is kept of the original's, whatever there is of it, which goes.
    /// `source` is the Vagrantfile that would make it. Answers its id.
    fn lay_fork(
        &self,
        cluster: &Cluster,
        kept: &Kept,
        source: &Path,
        owner: &Owner,
        stop: &Cancel,
    ) -> Result<String, Error>;

    /// Puts the memory of the original into a fork's machine of that id. It does not run before
    /// [`super::PowerSwitch::resume`]. `place` is as for [`Keep::restore`], and one at a time as there.
    fn restore_fork(
        &self,
        cluster: &Cluster,
        of: (&Kept, &str),
        place: (&Path, &Path),
        owner: &Owner,
        stop: &Cancel,
    ) -> Result<(), Error>;

    /// Removes volumes, but those that are behind a machine's disk: these are answered.
    fn discard(&self, volumes: &[String], stop: &Cancel) -> Result<Vec<String>, Error>;

    /// The volumes whose names begin so.
    fn named(&self, prefix: &str, stop: &Cancel) -> Result<Vec<String>, Error>;
}

/// What the names of kept volumes begin with.
pub const PREFIX: &str = "p1-kept-";

/// Who keeps machines on this host.
pub fn keeper(tools: &Tools) -> Box<dyn Keep> {
    Box::new(Libvirt::new(tools.clone()))
}

impl Libvirt {
    /// By volume: its size on disk and as a machine sees it; those that are not there are left out.
    fn sizes_of(&self, volumes: &[&str], stop: &Cancel) -> Result<BTreeMap<String, (u64, u64)>, Error> {
        let doing = "look at what is kept";
        let mut asked: Vec<Vec<&str>> =
            volumes.iter().map(|v| vec!["vol-info", "--pool", POOL, "--bytes", "--physical", v]).collect();
        // The exit code is that of the last one, and what is not there has no answer.
        asked.push(vec!["version"]);
        let told = self.several(doing, &asked, stop)?;
        let number = |text: &str, key: &str| -> Option<u64> {
            let line = text.lines().find_map(|l| l.strip_prefix(key))?;
            line.split_whitespace().next()?.parse().ok()
        };
        let one = |(volume, text): (&&str, &String)| {
            let physical = number(text, "Physical:")?;
            Some(((*volume).to_owned(), (physical, number(text, "Capacity:").unwrap_or(physical))))
        };
        Ok(volumes.iter().zip(&told).filter_map(one).collect())
    }
}

/// A disk that is made over a volume, as large as that.
pub(super) struct Laid<'a> {
    disk: &'a str,
    over: &'a str,
    capacity: u64,
}

impl Libvirt {
    /// Describes a machine and makes its disks over what is kept of one.
    pub(super) fn lay_disks(
        &self,
        domain: &str,
        describe: String,
        disk: &str,
        kept: &Kept,
        stop: &Cancel,
    ) -> Result<(), Error> {
        let names: Vec<String> = kept.disks.iter().map(|one| disks::volume(domain, &one.serial)).collect();
        let mut laid = vec![Laid { disk, over: &kept.disk.volume, capacity: kept.capacity }];
        let others = names.iter().zip(&kept.disks);
        laid.extend(others.map(|(disk, one)| Laid { disk, over: &one.part.volume, capacity: one.capacity }));
        self.remake(domain, describe, &laid, stop)
    }

    /// Describes a machine and makes its disks over volumes of so many bytes. Whatever there is of both goes: the machine
    /// and its disk at once, since libvirt looks five times a second only whether a machine has ended, and a disk is
    /// removed from under it as any file.
    pub(super) fn remake(
        &self,
        domain: &str,
        describe: String,
        laid: &[Laid<'_>],
        stop: &Cancel,
    ) -> Result<(), Error> {
        // Of what is not there each says so and the next one goes on; what is left of it the last one stops at.
        let machine = format!(
            "destroy {domain}; undefine {domain} --managed-save --snapshots-metadata --checkpoints-metadata --nvram; \
             define /dev/stdin"
        );
        let lay = |Laid { disk, over, capacity }: &Laid<'_>| {
            let lay = format!(
                "vol-delete --pool {POOL} {disk}; vol-create-as {POOL} {disk} {capacity}b --format qcow2 --backing-vol {over} \
                 --backing-vol-format qcow2"
            );
            self.ask("make the machine's disk", &[&lay], stop).map(|_| ())
        };
        thread::scope(|scope| {
            let laid = scope.spawn(|| laid.iter().try_for_each(lay));
            let define = self.virsh([machine]).stdin(describe);
            let doing = "define the machine";
            let defined = process::run(&define, libvirt::VIRSH_TIMEOUT, stop)
                .and_then(Finished::ok)
                .map_err(libvirt::failed(doing));
            laid.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
            defined.map(|_| ())
        })
    }
}

impl Keep for Libvirt {
    fn keep(&self, cluster: &Cluster, node: &str, name: &str, stop: &Cancel) -> Result<Kept, Error> {
        let (domain, disk) = (machine_name(&cluster.name, node), libvirt::disk(&cluster.name, node));
        let doing = "copy the machine's disk";
        let path = self.ask(doing, &["vol-path", "--pool", POOL, &disk], stop)?.stdout;
        let path = path.trim();
        let list = self.ask(doing, &["domblklist", &domain], stop)?.stdout;
        let has = disks::attached(&list);
        let Some((target, _)) = has.iter().find(|(_, source)| *source == path) else {
            return Err(Error::Answer {
                program: "virsh",
                what: format!("machine {domain} with the disk {path}"),
                lines: process::tail(&list, 5),
            });
        };
        let pool = Path::new(path).parent().unwrap_or(Path::new("/"));
        let (disk_volume, memory_volume) = (format!("{name}.img"), format!("{name}.mem"));
        let at = |volume: &str| pool.join(volume).to_string_lossy().into_owned();
        let memory = at(&memory_volume);
        let mut copies = vec![(*target, disk_volume.clone())];
        let mut others = Vec::new();
        for (target, source) in &has {
            let file = source.rsplit('/').next().unwrap_or_default();
            let Some(serial) = disks::serial(&domain, file) else { continue };
            let volume = format!("{name}.{serial}.img");
            copies.push((target, volume.clone()));
            let (serial, part) = (serial.to_owned(), Part { volume, bytes: 0 });
            others.push(KeptDisk { serial, part, capacity: 0, base: None });
        }
        for (target, volume) in &copies {
            // What a killed p1 began: it goes nowhere.
            let end = self.virsh(["blockjob", &domain, target, "--abort"]);
            let _ = process::run(&end, libvirt::VIRSH_TIMEOUT, stop);
            let what = ["--format", "qcow2", "--shallow", "--transient-job", "--wait", "--finish"];
            let copy = at(volume);
            let args =
                [&["blockcopy", domain.as_str(), target, "--dest", copy.as_str()][..], &what[..]].concat();
            if let Err(error) = self.at_length(doing, &args, stop) {
                let _ = process::run(&end, libvirt::VIRSH_TIMEOUT, &Cancel::new());
                return Err(error);
            }
        }
        // A snapshot of nothing but memory: the machine is not touched, and the file is that of `virsh save`.
        let file = format!("file={memory},snapshot=external");
        let none: Vec<String> = copies.iter().map(|(target, _)| format!("{target},snapshot=no")).collect();
        let mut args = vec!["snapshot-create-as", &domain, "kept", "--no-metadata", "--memspec", &file];
        args.extend(none.iter().flat_map(|none| ["--diskspec", none]));
        self.at_length("write down the machine's memory", &args, stop)?;
        let doing = "note how the machine is described";
        let id = self.ask(doing, &["domuuid", &domain], stop)?.stdout.trim().to_owned();
        let described = self.ask(doing, &["dumpxml", &domain, "--inactive", "--security-info"], stop)?.stdout;
        let ran = self.ask(doing, &["save-image-dumpxml", &memory, "--security-info"], stop)?.stdout;
        let part = |volume: String| Part { volume, bytes: 0 };
        let (disk, memory_part) = (part(disk_volume), part(memory_volume));
        let node = node.to_owned();
        Ok(Kept {
            node,
            id,
            disk,
            memory: memory_part,
            path: memory,
            capacity: 0,
            base: None,
            disks: others,
            described,
            ran,
        })
    }

    fn measure(&self, kept: &mut [Kept], stop: &Cancel) -> Result<(), Error> {
        // What was not made by the pool's own calls is not known to it yet.
        self.ask("read the pool again", &["pool-refresh", POOL], stop)?;
        let volumes: Vec<String> =
            kept.iter().flat_map(Kept::parts).map(|part| part.volume.clone()).collect();
        let volumes: Vec<&str> = volumes.iter().map(String::as_str).collect();
        let sizes = self.sizes_of(&volumes, stop)?;
        let asked: Vec<Vec<&str>> = volumes.iter().map(|v| vec!["vol-dumpxml", "--pool", POOL, v]).collect();
        let told = self.several("look at what is kept", &asked, stop)?;
        let bases: BTreeMap<&str, Option<String>> =
            volumes.iter().copied().zip(told.iter().map(|xml| behind(xml))).collect();
        let base = |part: &Part| bases.get(part.volume.as_str()).cloned().flatten();
        for one in kept.iter_mut() {
            let of = |part: &Part| {
                sizes.get(&part.volume).copied().filter(|(bytes, _)| *bytes > 0).ok_or_else(|| {
                    Error::Answer {
                        program: "virsh",
                        what: format!("volume {} after writing it", part.volume),
                        lines: Vec::new(),
                    }
                })
            };
            let (disk, memory) = (of(&one.disk)?, of(&one.memory)?);
            (one.disk.bytes, one.capacity, one.memory.bytes) = (disk.0, disk.1, memory.0);
            one.base = base(&one.disk);
            for disk in &mut one.disks {
                (disk.part.bytes, disk.capacity) = of(&disk.part)?;
                disk.base = base(&disk.part);
            }
        }
        Ok(())
    }

    fn lacks(&self, kept: &[Kept], stop: &Cancel) -> Result<Option<String>, Error> {
        let parts: Vec<&Part> = kept.iter().flat_map(Kept::parts).collect();
        let volumes: Vec<&str> = parts.iter().map(|p| p.volume.as_str()).collect();
        let sizes = self.sizes_of(&volumes, stop)?;
        Ok(parts.iter().find_map(|part| match sizes.get(&part.volume) {
            None => Some(format!("the volume {} is not there", part.volume)),
            Some((bytes, _)) if *bytes != part.bytes => {
                Some(format!("the volume {} has {bytes} bytes, not {}", part.volume, part.bytes))
            }
            Some(_) => None,
        }))
    }

    fn lay(
        &self,
        cluster: &Cluster,
        kept: &Kept,
        source: &Path,
        owner: &Owner,
        stop: &Cancel,
    ) -> Result<(), Error> {
        let (domain, disk) =
            (machine_name(&cluster.name, &kept.node), libvirt::disk(&cluster.name, &kept.node));
        let describe = libvirt::owned(&sourced(&kept.described, source), owner);
        self.lay_disks(&domain, describe, &disk, kept, stop)
    }

    fn restore(&self, kept: &Kept, (source, files): (&Path, &Path), stop: &Cancel) -> Result<(), Error> {
        self.as_it_was(kept, files, stop)?;
        let args = ["restore", &kept.path, "--xml", "/dev/stdin", "--paused"];
        let restore = self.virsh(args).stdin(sourced(&kept.ran, source));
        let doing = "restore the machine";
        let done = process::run(&restore, libvirt::MEMORY, stop).and_then(Finished::ok);
        done.map(|_| ()).map_err(libvirt::failed(doing))
    }

    fn lay_fork(
        &self,
        cluster: &Cluster,
        kept: &Kept,
        source: &Path,
        owner: &Owner,
        stop: &Cancel,
    ) -> Result<String, Error> {
        Libvirt::lay_fork(self, cluster, kept, source, owner, stop)
    }

    fn restore_fork(
        &self,
        cluster: &Cluster,
        of: (&Kept, &str),
        place: (&Path, &Path),
        owner: &Owner,
        stop: &Cancel,
    ) -> Result<(), Error> {
        Libvirt::restore_fork(self, cluster, of, place, owner, stop)
    }

    fn discard(&self, volumes: &[String], stop: &Cancel) -> Result<Vec<String>, Error> {
        let doing = "remove what was kept";
        let all: Vec<String> = self.volumes(stop)?.into_iter().collect();
        let asked: Vec<Vec<&str>> =
            all.iter().map(|v| vec!["vol-dumpxml", "--pool", POOL, v.as_str()]).collect();
        let told = self.several(doing, &asked, stop)?;
        let mut behind: BTreeMap<&String, Option<String>> =
            all.iter().zip(told.iter().map(|xml| behind(xml))).collect();
        let mut left: Vec<String> = volumes.iter().filter(|v| behind.contains_key(v)).cloned().collect();
        // What was behind one that went may go then.
        loop {
            let used = |v: &String| behind.values().flatten().any(|base| base == v);
            let (stay, go): (Vec<String>, Vec<String>) = left.into_iter().partition(used);
            left = stay;
            if go.is_empty() {
                return Ok(left);
            }
            for volume in &go {
                self.look(doing, &["vol-delete", "--pool", POOL, volume], stop)?;
                behind.remove(volume);
            }
        }
    }

    fn named(&self, prefix: &str, stop: &Cancel) -> Result<Vec<String>, Error> {
        self.ask("read the pool again", &["pool-refresh", POOL], stop)?;
        Ok(self.volumes(stop)?.into_iter().filter(|v| v.starts_with(prefix)).collect())
    }
}

/// The volume behind one, by `virsh vol-dumpxml`.
fn behind(xml: &str) -> Option<String> {
    let path = xml.split_once("<backingStore>")?.1.split_once("<path>")?.1.split_once("</path>")?.0;
    Some(Path::new(path).file_name()?.to_string_lossy().into_owned())
}

/// A machine's description that names that Vagrantfile as what it was made from.
pub(super) fn sourced(xml: &str, source: &Path) -> String {
    let Some((before, rest)) = xml.split_once("<description>") else { return xml.to_owned() };
    let Some((_, after)) = rest.split_once("</description>") else { return xml.to_owned() };
    let path = source.to_string_lossy().replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;");
    format!("{before}<description>Source: {path}</description>{after}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_description_names_the_folder_that_it_is_made_in() {
        let xml = "<domain>\n  <description>Source: /a/Vagrantfile</description>\n  <devices/>\n</domain>";
        let now = sourced(xml, Path::new("/b & c/Vagrantfile"));
        assert_eq!(now, xml.replace("/a/", "/b &amp; c/"));
        assert_eq!(sourced("<domain/>", Path::new("/b")), "<domain/>");
    }
}
