//! How fast a transfer goes, from what it reports.

use std::collections::VecDeque;
use std::time::Duration;

/// The rate is that of about the last so many seconds.
const WINDOW: Duration = Duration::from_secs(4);
/// Samples nearer than this to each other say nothing new.
const APART: Duration = Duration::from_millis(250);

/// Bytes on their way.
#[derive(Clone, Debug, Default)]
pub struct Transfer {
    /// Moved so far.
    pub done: u64,
    /// Of how many, where that is known.
    pub total: Option<u64>,
    samples: VecDeque<(Duration, u64)>,
}

impl Transfer {
    /// Takes in a report made at `now`, a time since the run began.
    pub fn update(&mut self, now: Duration, done: u64, total: Option<u64>) {
        if done < self.done || total != self.total {
            self.samples.clear();
        }
        (self.done, self.total) = (done, total);
        if self.samples.back().is_none_or(|(then, _)| now.saturating_sub(*then) >= APART) {
            self.samples.push_back((now, done));
        }
        while self.samples.len() > 2 && now.saturating_sub(self.samples[1].0) >= WINDOW {
            self.samples.pop_front();
        }
    }

    /// Bytes a second; none until there is enough to tell. It falls when nothing is reported any more.
    pub fn rate(&self, now: Duration) -> Option<u64> {
        let (then, before) = *self.samples.front()?;
        let took = now.saturating_sub(then);
        (took >= Duration::from_millis(500))
            .then(|| (self.done.saturating_sub(before) as f64 / took.as_secs_f64()) as u64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rate_is_that_of_the_last_seconds_and_falls_when_nothing_comes() {
        let at = Duration::from_millis;
        let mut transfer = Transfer::default();
        transfer.update(at(0), 0, Some(9000));
        assert_eq!(transfer.rate(at(100)), None);
        for i in 1..=100 {
            transfer.update(at(i * 100), i * 10, Some(9000));
        }
        assert_eq!(transfer.rate(at(10_000)), Some(100));
        assert!(transfer.rate(at(60_000)).unwrap() < 10);
        transfer.update(at(60_100), 0, Some(9000));
        assert_eq!(transfer.rate(at(60_100)), None, "begun again");
    }
}
