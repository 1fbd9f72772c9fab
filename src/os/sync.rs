//! Locks between threads. A thread that panicked while it held one does not take what it guards away from the others:
//! what p1 keeps behind a lock is whole between any two statements.

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::Duration;

/// What a mutex guards.
pub fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What a lock guards, to be read beside other readers.
pub fn read<T>(lock: &RwLock<T>) -> RwLockReadGuard<'_, T> {
    lock.read().unwrap_or_else(PoisonError::into_inner)
}

/// What a lock guards, to be changed.
pub fn write<T>(lock: &RwLock<T>) -> RwLockWriteGuard<'_, T> {
    lock.write().unwrap_or_else(PoisonError::into_inner)
}

/// Lets go of the lock until somebody tells the news, or the time has passed. Wakes for nothing as well, so callers
/// look again.
pub fn wait<'a, T>(news: &Condvar, held: MutexGuard<'a, T>, most: Duration) -> MutexGuard<'a, T> {
    news.wait_timeout(held, most).unwrap_or_else(PoisonError::into_inner).0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_thread_held_that_panicked_is_there_for_the_others() {
        let (mutex, both) = (Mutex::new(1), RwLock::new(2));
        std::thread::scope(|s| {
            let panics = s.spawn(|| {
                let _held = (lock(&mutex), write(&both));
                panic!("of the test");
            });
            panics.join().unwrap_err();
        });
        assert!(mutex.is_poisoned() && both.is_poisoned());
        assert_eq!(*lock(&mutex), 1);
        assert_eq!(*read(&both), 2);
        *write(&both) = 3;
        assert_eq!(*wait(&Condvar::new(), lock(&mutex), Duration::from_millis(1)), 1);
    }
}
