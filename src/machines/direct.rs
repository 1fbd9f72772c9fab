//! Machines that p1 makes itself, with libvirt alone: the same names, disks, cards and ids as Vagrant's, noted where Vagrant
//! notes them, so that either takes over what the other has made.

use std::fs;
use std::path::Path;
use std::time::Duration;

use super::local::{Local, Maker};
use super::vagrant::Vagrant;
use super::{Base, BoxInfo, Error, Hear, Heard, MachineState, Make, Results};
use crate::os::files::{self, At};
use crate::os::process::{self, Cmd, Finished};
use crate::os::{Cancel, many};
use crate::spec::Cluster;

/// Unpacking a box of some GiB.
const UNPACK: Duration = Duration::from_secs(600);

/// See the module.
pub struct Direct;

impl Maker for Direct {
    fn take_image(&self, local: &Local, image: &BoxInfo, file: &Path, stop: &Cancel) -> Result<(), Error> {
        unpack(&local.vagrant, image, file, stop)
    }

    fn create(
        &self,
        local: &Local,
        cluster: &Cluster,
        nodes: &[String],
        base: &Base,
        hear: Hear<'_>,
        stop: &Cancel,
    ) -> Result<Results, Error> {
        create(local, cluster, nodes, base, hear, stop)
    }

    fn opens(&self) -> bool {
        true
    }

    fn booted(&self, local: &Local, cluster: &Cluster, node: &str, stop: &Cancel) -> Result<(), Error> {
        local.hypervisor.unseed(cluster, node, stop)
    }
}

/// Makes and boots machines, all at once.
fn create(
    local: &Local,
    cluster: &Cluster,
    nodes: &[String],
    Base::Box(image): &Base,
    hear: Hear<'_>,
    stop: &Cancel,
) -> Result<Results, Error> {
    let _ = hear(Heard::Begun(cluster.timeouts.boot.saturating_mul(2) + Duration::from_secs(60)));
    let key = files::read_if_there(&local.vagrant.dir.join("id_ed25519.pub"))?.unwrap_or_default();
    let machines = local.hypervisor.machines(cluster, &local.vagrant.ids(), stop)?;
    let one = |node: &String| -> Result<(), Error> {
        if machines.get(node).is_none_or(|m| m.state == MachineState::Absent) {
            let _ = hear(Heard::Says(node, "making the machine".to_owned()));
            let source = local.vagrant.dir.join("Vagrantfile");
            let id = local.hypervisor.define(
                cluster,
                node,
                image,
                local.libvirt.as_ref(),
                (&source, &key),
                stop,
            )?;
            note(&local.vagrant, node, &id)?;
        } else if !local.is_making(node) {
            // What it was given for its first boot was left by a run that was ended just then.
            local.hypervisor.unseed(cluster, node, stop)?;
        }
        let _ = hear(Heard::Starts(node));
        local.hypervisor.boot(cluster, node, &local.vagrant.id(node).unwrap_or_default(), stop)?;
        let _ = hear(Heard::Booting(node, local.hypervisor.known_address(cluster, node)));
        let _ = hear(Heard::Up(node));
        Ok(())
    };
    let results = many::each(local.jobs, nodes, |node| {
        let result = one(node);
        if result.is_err() {
            let _ = hear(Heard::Failed(node));
        }
        (node.clone(), result)
    });
    Ok(results.into_iter().collect())
}

/// Writes a machine's id where Vagrant has it (`lib/vagrant/machine.rb`, `id=`).
pub fn note(vagrant: &Vagrant, node: &str, id: &str) -> Result<(), Error> {
    let dir = vagrant.dir.join(".vagrant/machines").join(node).join(vagrant.provider);
    files::dir(&dir)?;
    files::write(&dir.join("id"), id.as_bytes(), 0o600)?;
    Ok(())
}

/// Unpacks a box file to where Vagrant keeps its boxes (`lib/vagrant/box_collection.rb`).
fn unpack(vagrant: &Vagrant, image: &BoxInfo, file: &Path, stop: &Cancel) -> Result<(), Error> {
    let parent = vagrant.home.join("boxes").join(image.folder()).join(&image.version);
    let (dir, part) = (parent.join(vagrant.provider), parent.join(".p1-part"));
    remove(&part)?;
    files::dir(&part)?;
    let cmd = Cmd::new("tar").env("LC_ALL", "C").arg("-xf").arg(file).arg("-C").arg(&part);
    let doing = "unpack the box";
    process::run(&cmd, UNPACK, stop).and_then(Finished::ok).map_err(Error::doing(doing))?;
    let plain = |name: &str| part.join(name).symlink_metadata().is_ok_and(|m| m.is_file());
    if !plain("metadata.json") || !plain("box.img") {
        remove(&part)?;
        return Err(Error::Conflict {
            what: format!("the box {} has no `box.img` for libvirt", image.name),
            remedy: "`engine: direct` takes boxes with one disk; for others set `engine: vagrant`."
                .to_owned(),
            next: Vec::new(),
        });
    }
    remove(&dir)?;
    fs::rename(&part, &dir).at("move into place", &dir)?;
    Ok(())
}

fn remove(dir: &Path) -> Result<(), files::Error> {
    match fs::remove_dir_all(dir) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(e).at("remove", dir),
        _ => Ok(()),
    }
}
