//! The faults that are on nodes, as they are written down. The lock is held for that alone.

use std::time::Duration;

use super::World;
use crate::engine::StepError;
use crate::fault::Active;
use crate::os::lock::Lock;

/// Somebody else reads and writes a small file.
const TURN: Duration = Duration::from_secs(30);

impl World {
    /// The faults that are written down.
    pub fn faults(&self) -> Result<Vec<Active>, StepError> {
        Ok(self.state.faults()?)
    }

    /// Writes a fault down, in the place of one of its kind on the same node.
    pub fn note_fault(&self, active: &Active) -> Result<(), StepError> {
        self.change_faults(|all| {
            all.retain(|a| !a.is(active));
            all.push(active.clone());
        })
    }

    /// It is no longer on its node. One that a later run brought in its place stays.
    pub fn forget_fault(&self, active: &Active) -> Result<(), StepError> {
        self.change_faults(|all| all.retain(|a| !(a.is(active) && a.run == active.run)))
    }

    fn change_faults(&self, change: impl FnOnce(&mut Vec<Active>)) -> Result<(), StepError> {
        let _turn = self.faults_turn()?;
        let mut all = self.state.faults()?;
        change(&mut all);
        self.state.keep_faults(&all)?;
        self.note(|seen| seen.here.faults = all);
        Ok(())
    }

    /// Nobody else changes what is written down meanwhile.
    pub fn faults_turn(&self) -> Result<Lock, StepError> {
        Ok(Lock::take(&self.state.faults_lock(), "fault", TURN, &self.cancel)?)
    }
}
