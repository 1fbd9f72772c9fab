//! The one making of machines that several steps wait for.

use crate::engine::StepError;
use crate::machines::Batch;

/// Waits until no machine is being made any more: see [`Batch::finish`].
pub fn finish(batch: &Batch<StepError>, tell: &mut dyn FnMut()) -> Vec<(String, StepError)> {
    batch.finish(tell, || StepError::new("vagrant did not end when it was killed", ""))
}
