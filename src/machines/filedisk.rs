//! A disk with files that machines of this host are given while they run: they copy from it what would otherwise be
//! sent to each of them through SSH.
//!
//! It is a raw volume without a file system: the files stand one after the other, each from a whole MiB on, so
//! neither this host nor a guest has to mount anything. It is attached read-only and for as long as the machine
//! runs at most: a machine that is switched off starts without it.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::libvirt::{Libvirt, POOL, failed};
use super::{Error, FileDisk, machine_name};
use crate::os::Cancel;
use crate::os::cancel::Level;
use crate::os::files::At;
use crate::os::process::{self, Finished};
use crate::render;

/// What a guest knows it by. virtio takes 20 characters (virtio spec, 5.2.6).
const SERIAL: &str = "p1-files";
/// The last name of a virtio disk with one letter; Vagrant and p1 give names from `vda` on.
const TARGET: &str = "vdz";
/// Sending some hundred MB to the pool.
const WRITE: Duration = Duration::from_secs(600);
const VIRSH_TIMEOUT: Duration = Duration::from_secs(60);
/// For a guest to let go of the disk: Linux does so in less than a second (seen under emulation).
const LET_GO: Duration = Duration::from_secs(10);
const POLL: Duration = Duration::from_millis(100);
const MIB: u64 = 1 << 20;

/// Where each file begins, and the size of all, in MiB.
fn layout(sizes: &[u64]) -> (Vec<u64>, u64) {
    let mut end = 0;
    let starts = sizes
        .iter()
        .map(|size| {
            let start = end;
            end += size.div_ceil(MIB);
            start
        })
        .collect();
    (starts, end.max(1))
}

/// The name of the volume. No node has a dot in its name, so it is no machine's disk.
fn volume(cluster: &str) -> String {
    format!("p1-{cluster}.files.img")
}

impl Libvirt {
    pub(super) fn write_files(
        &self,
        cluster: &str,
        files: &[PathBuf],
        report: &mut dyn FnMut(&str),
        cancel: &Cancel,
    ) -> Result<FileDisk, Error> {
        let volume = volume(cluster);
        let mut sizes = Vec::new();
        for file in files {
            sizes.push(fs::metadata(file).at("read", file)?.len());
        }
        let (starts, size) = layout(&sizes);
        self.remove_files(cluster, cancel)?;
        let size = format!("{}b", size * MIB);
        let doing = "make a disk for files";
        self.ask(
            doing,
            &["vol-create-as", POOL, &volume, &size, "--allocation", "0", "--format", "raw"],
            cancel,
        )?;
        for (file, start) in files.iter().zip(&starts) {
            report(&format!("writing {} to the disk", name(file)));
            let (path, offset) = (file.to_string_lossy(), (start * MIB).to_string());
            let cmd = self.virsh(["vol-upload", "--pool", POOL, &volume, &path, "--offset", &offset]);
            let doing = "write files to a disk for machines";
            process::run(&cmd, WRITE, cancel).and_then(Finished::ok).map_err(failed(doing))?;
        }
        let path = self.ask("look at a volume", &["vol-path", "--pool", POOL, &volume], cancel)?;
        Ok(FileDisk { serial: SERIAL, source: path.stdout.trim().to_owned(), starts })
    }

    pub(super) fn attach_files(
        &self,
        cluster: &str,
        node: &str,
        disk: &FileDisk,
        cancel: &Cancel,
    ) -> Result<(), Error> {
        let (domain, doing) = (machine_name(cluster, node), "attach the disk with files");
        let values = serde_json::json!({
            "source": disk.source, "target": TARGET, "serial": disk.serial, "format": "raw", "read_only": true,
        });
        let xml = render::render("disk.xml", &values).map_err(Error::Render)?;
        // One that a killed p1 left there may have other files.
        self.detach_files(cluster, node, cancel)?;
        let cmd = self.virsh(["attach-device", &domain, "/dev/stdin", "--live"]).stdin(xml);
        process::run(&cmd, VIRSH_TIMEOUT, cancel).and_then(Finished::ok).map(|_| ()).map_err(failed(doing))
    }

    /// Fine if the machine does not have it, or does not run.
    pub(super) fn detach_files(&self, cluster: &str, node: &str, cancel: &Cancel) -> Result<(), Error> {
        let (domain, doing) = (machine_name(cluster, node), "detach the disk with files");
        let has = || -> Result<bool, Error> {
            let list = self.look(doing, &["domblklist", &domain], cancel)?.unwrap_or_default();
            Ok(list.lines().any(|line| line.split_whitespace().next() == Some(TARGET)))
        };
        if !has()? {
            return Ok(());
        }
        let end = Instant::now() + LET_GO;
        let done =
            process::run(&self.virsh(["detach-disk", &domain, TARGET, "--live"]), VIRSH_TIMEOUT, cancel);
        let done = done.map_err(failed(doing))?;
        if !["not running", "No disk found"].iter().any(|words| done.stderr.contains(words)) {
            done.ok().map_err(failed(doing))?;
        }
        // Only a request: the guest has to let go of it.
        while has()? {
            if Instant::now() >= end || cancel.stopping() {
                return Err(Error::Answer {
                    program: "virsh",
                    what: format!("machine without the disk {TARGET} after detaching it"),
                    lines: Vec::new(),
                });
            }
            cancel.sleep(POLL, Level::Stop);
        }
        Ok(())
    }

    /// Fine if there is none.
    pub(super) fn remove_files(&self, cluster: &str, cancel: &Cancel) -> Result<bool, Error> {
        let (volume, doing) = (volume(cluster), "remove the disk with files");
        let there = self.look(doing, &["vol-info", "--pool", POOL, &volume], cancel)?.is_some();
        if there {
            self.ask(doing, &["vol-delete", "--pool", POOL, &volume], cancel)?;
        }
        Ok(there)
    }
}

fn name(file: &Path) -> String {
    file.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_stand_one_after_the_other_from_whole_mebibytes_on() {
        assert_eq!(layout(&[]), (vec![], 1));
        assert_eq!(layout(&[1, MIB, MIB + 1, 0, 5]), (vec![0, 1, 2, 4, 4], 5));
    }
}
