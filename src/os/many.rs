//! The same work on many things, a bounded number at a time.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

/// Works on all of `items`, on at most `jobs` of them at a time; the results in their order. One whose
/// work panics has none.
pub fn each<T: Sync, R: Send>(jobs: usize, items: &[T], work: impl Fn(&T) -> R + Sync) -> Vec<R> {
    let next = AtomicUsize::new(0);
    let worker = || {
        let mut done = Vec::new();
        while let Some((at, item)) =
            Some(next.fetch_add(1, Ordering::Relaxed)).and_then(|i| Some((i, items.get(i)?)))
        {
            let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| work(item)));
            done.extend(result.ok().map(|result| (at, result)));
        }
        done
    };
    let mut all: Vec<(usize, R)> = thread::scope(|scope| {
        let count = jobs.max(1).min(items.len());
        let threads: Vec<_> = (0..count).map(|_| scope.spawn(worker)).collect();
        threads.into_iter().filter_map(|t| t.join().ok()).flatten().collect()
    });
    all.sort_by_key(|(at, _)| *at);
    all.into_iter().map(|(_, result)| result).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn no_more_than_asked_for_at_a_time_and_all_of_them() {
        let (now, most) = (AtomicUsize::new(0), AtomicUsize::new(0));
        let items: Vec<usize> = (0..40).collect();
        let doubled = each(3, &items, |i| {
            most.fetch_max(now.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
            thread::sleep(Duration::from_millis(1));
            now.fetch_sub(1, Ordering::SeqCst);
            assert_ne!(*i, 7, "one that fails takes nobody along");
            2 * i
        });
        let wanted: Vec<usize> = (0..40).filter(|i| *i != 7).map(|i| 2 * i).collect();
        assert_eq!(doubled, wanted);
        assert!(most.load(Ordering::SeqCst) <= 3);
        assert_eq!(each(0, &[1], |i| *i), [1]);
    }
}
