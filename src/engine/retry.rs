//! How long to wait before another attempt.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::time::Duration;

use crate::spec::Retry;

/// The pause after the attempt of that number (from 1): doubled each time up to the maximum, less up
/// to a quarter, so that nodes which failed together do not come back together. The same step and
/// attempt always wait the same time.
pub fn delay(retry: &Retry, attempt: u32, step: &str) -> Duration {
    let doubled = retry.backoff.saturating_mul(2u32.saturating_pow(attempt.saturating_sub(1)));
    let full = doubled.min(retry.max_backoff);
    let mut hasher = DefaultHasher::new();
    (step, attempt).hash(&mut hasher);
    let quarter = full / 4;
    let share = u32::try_from(hasher.finish() % 1000).expect("below 1000");
    full - quarter * share / 1000
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_grow_to_the_maximum_and_differ_between_steps() {
        let retry = Retry::default();
        for (attempt, full) in [(1, 2.0), (2, 4.0), (3, 8.0), (9, 30.0), (4_000_000, 30.0)] {
            let wait = delay(&retry, attempt, "a/vm").as_secs_f64();
            assert!((full * 0.75..=full).contains(&wait), "{attempt}: {wait}");
        }
        assert_ne!(delay(&retry, 1, "a/vm"), delay(&retry, 1, "b/vm"));
    }
}
