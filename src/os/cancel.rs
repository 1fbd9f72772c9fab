//! One token that says how far the user wants to go on.
//!
//! The first Ctrl-C asks to *stop*: running work finishes, nothing new starts, pure waits end.
//! The second asks to *abort*: running processes are killed and sockets are shut down.

use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use super::sync;

/// How far work may still go.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// Nothing was asked.
    Go,
    /// Finish what runs, start nothing.
    Stop,
    /// End what runs.
    Abort,
}

type Hook = Box<dyn Fn() + Send>;

struct Waiters {
    level: Level,
    next_hook: u64,
    hooks: Vec<(u64, Hook)>,
}

/// A shared, cheaply cloned token. Every blocking call of the lower rooms takes one.
#[derive(Clone)]
pub struct Cancel(Arc<(Mutex<Waiters>, Condvar)>);

impl Default for Cancel {
    fn default() -> Self {
        Self::new()
    }
}

impl std::fmt::Debug for Cancel {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Cancel({:?})", self.level())
    }
}

impl Cancel {
    /// A token at [`Level::Go`].
    pub fn new() -> Self {
        let state = Waiters { level: Level::Go, next_hook: 0, hooks: Vec::new() };
        Self(Arc::new((Mutex::new(state), Condvar::new())))
    }

    fn state(&self) -> MutexGuard<'_, Waiters> {
        // A panic in a hook must not take cancellation away from everybody else.
        sync::lock(&self.0.0)
    }

    /// Today's level.
    pub fn level(&self) -> Level {
        self.state().level
    }

    /// True once the user asked to stop or to abort.
    pub fn stopping(&self) -> bool {
        self.level() >= Level::Stop
    }

    /// True once the user asked to abort.
    pub fn aborted(&self) -> bool {
        self.level() >= Level::Abort
    }

    /// Raises the level; it never falls. Hooks run when [`Level::Abort`] is reached.
    pub fn raise(&self, level: Level) {
        let hooks = {
            let mut state = self.state();
            if level <= state.level {
                return;
            }
            state.level = level;
            if level == Level::Abort { std::mem::take(&mut state.hooks) } else { Vec::new() }
        };
        self.0.1.notify_all();
        for (_, hook) in hooks {
            hook();
        }
    }

    /// Sleeps for `time`, or until the level reaches `until`. True if the level was reached.
    pub fn sleep(&self, time: Duration, until: Level) -> bool {
        let end = Instant::now() + time;
        let mut state = self.state();
        loop {
            if state.level >= until {
                return true;
            }
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return false;
            }
            state = sync::wait(&self.0.1, state, left);
        }
    }

    /// Runs `hook` on abort (at once if that has happened), until the guard is dropped.
    ///
    /// For what cannot poll: a thread blocked in a read is freed by shutting its socket down.
    #[must_use]
    pub fn on_abort(&self, hook: impl Fn() + Send + 'static) -> HookGuard {
        let mut state = self.state();
        let id = state.next_hook;
        state.next_hook += 1;
        if state.level == Level::Abort {
            drop(state);
            hook();
        } else {
            state.hooks.push((id, Box::new(hook)));
        }
        HookGuard { cancel: self.clone(), id }
    }
}

/// Takes its hook away when dropped.
pub struct HookGuard {
    cancel: Cancel,
    id: u64,
}

impl Drop for HookGuard {
    fn drop(&mut self) {
        self.cancel.state().hooks.retain(|(id, _)| *id != self.id);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering};

    #[test]
    fn hooks_run_once_on_abort_and_not_after_their_guard() {
        let cancel = Cancel::new();
        let count = Arc::new(AtomicUsize::new(0));
        let add = |n: usize| {
            let count = count.clone();
            move || {
                count.fetch_add(n, Ordering::SeqCst);
            }
        };
        let kept = cancel.on_abort(add(1));
        drop(cancel.on_abort(add(10)));
        cancel.raise(Level::Stop);
        assert_eq!(count.load(Ordering::SeqCst), 0);
        cancel.raise(Level::Abort);
        cancel.raise(Level::Abort);
        assert_eq!(count.load(Ordering::SeqCst), 1);
        drop(kept);
        let _late = cancel.on_abort(add(100));
        assert_eq!(count.load(Ordering::SeqCst), 101);
    }

    #[test]
    fn sleep_ends_early_only_at_the_level_asked_for() {
        let cancel = Cancel::new();
        cancel.raise(Level::Stop);
        assert!(cancel.sleep(Duration::from_secs(60), Level::Stop));
        assert!(!cancel.sleep(Duration::from_millis(1), Level::Abort));
    }
}
