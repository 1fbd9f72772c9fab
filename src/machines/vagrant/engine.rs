//! Vagrant as the engine that makes a cluster's machines.

use std::path::Path;
use std::time::Duration;

use super::{Progress, Up};
use crate::explain::Explain;
use crate::machines::local::{Local, Maker};
use crate::machines::{Base, BoxInfo, Error, Hear, Heard, Results};
use crate::os::Cancel;
use crate::spec::Cluster;

/// See the module.
pub struct ByVagrant;

impl Maker for ByVagrant {
    fn provisions(&self) -> bool {
        true
    }

    fn take_image(&self, local: &Local, image: &BoxInfo, file: &Path, stop: &Cancel) -> Result<(), Error> {
        local.vagrant.prepare_home(local.users_home.as_deref())?;
        Ok(local.vagrant.add_box(image, file, stop)?)
    }

    fn create(
        &self,
        local: &Local,
        cluster: &Cluster,
        nodes: &[String],
        _: &Base,
        hear: Hear<'_>,
        stop: &Cancel,
    ) -> Result<Results, Error> {
        let count = u32::try_from(nodes.len()).unwrap_or(u32::MAX);
        let turns = if local.hypervisor.parallel() { 1 } else { count };
        // Making a machine comes before booting it.
        let bound = cluster.timeouts.boot.saturating_mul(turns.saturating_add(1)) + Duration::from_secs(60);
        let _ = hear(Heard::Begun(bound));
        if nodes.is_empty() {
            return Ok(Results::new());
        }
        let up = Up { vagrant: &local.vagrant, nodes, bound };
        let heard = &mut |node: &str, progress: Progress| {
            let heard = match progress {
                Progress::Says(text) => {
                    // vagrant-libvirt's locales/en.yml `starting_domain`.
                    if text.starts_with("Starting domain") {
                        let _ = hear(Heard::Starts(node));
                    }
                    Heard::Says(node, text)
                }
                Progress::Booting => Heard::Booting(node, local.hypervisor.known_address(cluster, node)),
                Progress::Up => Heard::Up(node),
                Progress::Failed => Heard::Failed(node),
            };
            let _ = hear(heard);
        };
        let log = &mut |line: &str| {
            let _ = hear(Heard::Log(line));
        };
        let results = up.run(stop, heard, log);
        Ok(results.into_iter().map(|(node, result)| (node, result.map_err(Error::from))).collect())
    }

    /// One Ruby for all that go, one after the other within: Vagrant's own lock is per machine.
    fn destroy(
        &self,
        local: &Local,
        nodes: &[String],
        say: &mut dyn FnMut(&str),
        log: &mut dyn FnMut(&str),
        stop: &Cancel,
    ) -> Result<(), Error> {
        if !local.vagrant.dir.join("Vagrantfile").is_file() {
            return Ok(());
        }
        say("asking Vagrant");
        if let Err(error) = local.vagrant.destroy(nodes, stop) {
            if error.cancelled() {
                return Err(error.into());
            }
            // What Vagrant cannot do (its lock is held, its plugin is gone) the hypervisor can.
            log(&format!("vagrant destroy: {error}"));
        }
        Ok(())
    }
}
