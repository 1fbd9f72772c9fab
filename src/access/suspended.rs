//! Machines whose memory is on disk: those that go on together do so at one moment.

use std::collections::BTreeSet;

use super::World;
use crate::engine::StepError;
use crate::machines::{Cap, MachineState};
use crate::os::{Cancel, many};

impl World {
    /// Lets those of these nodes go on whose machines are suspended or paused, all at one moment; what is asked of the others
    /// comes to nothing. Whoever comes second finds it done. Answers whether there was anything to do.
    pub fn wake(&self, nodes: &BTreeSet<String>, cancel: &Cancel) -> Result<bool, StepError> {
        let _one = self.getting();
        let machines = self.look_at_machines()?;
        let ours = || machines.iter().filter(|(node, m)| !m.foreign && nodes.contains(*node));
        let saved = ours().filter(|(_, m)| m.state == MachineState::Saved && m.can.has(Cap::Suspend));
        let saved: Vec<String> = saved.map(|(node, _)| node.clone()).collect();
        let paused = ours().filter(|(_, m)| m.state == MachineState::Paused).map(|(node, _)| node.clone());
        let all: BTreeSet<String> = paused.chain(saved.iter().cloned()).collect();
        if all.is_empty() {
            return Ok(false);
        }
        let results = many::each(self.jobs, &saved, |node| {
            self.machines.suspend(node)?.wake(&self.cluster, node, cancel)?;
            Ok::<_, StepError>(node.clone())
        });
        let (done, mut failed): (Vec<_>, Vec<_>) = results.into_iter().partition(Result::is_ok);
        if let Some(Err(error)) = failed.pop() {
            // Such as for this host's lack of memory: none of them goes on without the others.
            let done: Vec<String> = done.into_iter().flatten().collect();
            many::each(self.jobs, &done, |node| {
                self.machines.suspend(node)?.suspend(&self.cluster, node, &Cancel::new())
            });
            return Err(error);
        }
        self.machines.resume(&self.cluster, &all, cancel)?;
        // What the API said was said before.
        self.forget_api();
        self.note(|seen| {
            seen.api = None;
            seen.run.paused.retain(|node| !all.contains(node));
            seen.run.woken.extend(all);
        });
        self.look_at_machines()?;
        Ok(true)
    }
}
