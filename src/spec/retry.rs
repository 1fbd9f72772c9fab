//! What the spec says of trying again: the one policy that p1 has. The engine keeps to it for steps, and
//! what is done outside of a step, such as the downloads of `p1 artifacts fetch`, does so by itself.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::time::Duration;

use super::Retry;

impl Retry {
    /// The policy of what is done within a step, which is tried again as a whole.
    pub fn once(&self) -> Self {
        Self { attempts: 1, ..self.clone() }
    }

    /// The pause after the attempt of that number (from 1): doubled each time up to the maximum, less up
    /// to a quarter, so that what failed together does not come back together. The same work and
    /// attempt always wait the same time. What was `asked` for is granted up to the maximum.
    pub fn pause(&self, attempt: u32, work: &str, asked: Option<Duration>) -> Duration {
        if let Some(asked) = asked {
            return asked.min(self.max_backoff);
        }
        let doubled = self.backoff.saturating_mul(2u32.saturating_pow(attempt.saturating_sub(1)));
        let full = doubled.min(self.max_backoff);
        let mut hasher = DefaultHasher::new();
        (work, attempt).hash(&mut hasher);
        let quarter = full / 4;
        let share = u32::try_from(hasher.finish() % 1000).expect("below 1000");
        full - quarter * share / 1000
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_grow_to_the_maximum_and_differ_between_steps() {
        let retry = Retry::default();
        for (attempt, full) in [(1, 2.0), (2, 4.0), (3, 8.0), (9, 30.0), (4_000_000, 30.0)] {
            let wait = retry.pause(attempt, "a/vm", None).as_secs_f64();
            assert!((full * 0.75..=full).contains(&wait), "{attempt}: {wait}");
        }
        assert_ne!(retry.pause(1, "a/vm", None), retry.pause(1, "b/vm", None));
        assert_eq!(retry.pause(1, "a/vm", Some(Duration::from_secs(7))), Duration::from_secs(7));
        assert_eq!(retry.pause(1, "a/vm", Some(Duration::from_secs(3600))), Duration::from_secs(30));
    }
}
