//! Ctrl-C and its kin: the first asks to stop, the second ends what runs.

use std::thread::{self, JoinHandle};

use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::{Handle, Signals};

use crate::os::Cancel;
use crate::os::cancel::Level;
use crate::ui::Sender;

/// Listens until dropped.
pub struct Watch {
    handle: Option<Handle>,
    thread: Option<JoinHandle<()>>,
}

/// Starts to listen. Signals reach p1 alone: every program it runs is in a group of its own.
pub fn watch(cancel: Cancel, screen: Sender) -> Watch {
    let Ok(mut signals) = Signals::new([SIGINT, SIGTERM, SIGHUP]) else {
        return Watch { handle: None, thread: None };
    };
    let handle = signals.handle();
    let thread = thread::spawn(move || {
        for _ in signals.forever() {
            match cancel.level() {
                Level::Go => {
                    screen.note("stopping after the running steps; press Ctrl-C again to end them now");
                    cancel.raise(Level::Stop);
                }
                _ => {
                    screen.note("ending what runs");
                    cancel.raise(Level::Abort);
                }
            }
        }
    });
    Watch { handle: Some(handle), thread: Some(thread) }
}

impl Drop for Watch {
    fn drop(&mut self) {
        if let Some(handle) = self.handle.take() {
            handle.close();
        }
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
