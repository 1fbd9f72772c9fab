//! Ctrl-C and its kin: the first asks to stop, the second ends what runs.

use std::thread::{self, JoinHandle};

use anyhow::Context as _;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::{Handle, Signals};

use crate::os::Cancel;
use crate::os::cancel::Level;
use crate::ui::{Sender, wording};

/// Listens until dropped.
pub struct Watch {
    handle: Option<Handle>,
    thread: Option<JoinHandle<()>>,
}

/// Starts to listen. Signals reach p1 alone: every program it runs is in a group of its own.
pub fn watch(cancel: Cancel, screen: Sender) -> anyhow::Result<Watch> {
    listen(cancel, move |text| screen.note(text))
}

/// The same for a verb without steps: there is nothing to finish, so the first ends it.
pub fn watch_plain(cancel: Cancel) -> anyhow::Result<Watch> {
    let inner = cancel.clone();
    listen(cancel, move |_| inner.raise(Level::Abort))
}

fn listen(cancel: Cancel, say: impl Fn(&str) + Send + 'static) -> anyhow::Result<Watch> {
    let mut signals = Signals::new([SIGINT, SIGTERM, SIGHUP]).context("cannot listen for signals")?;
    let handle = signals.handle();
    let thread = thread::spawn(move || {
        for _ in signals.forever() {
            match cancel.level() {
                Level::Go => {
                    say(wording::STOPPING);
                    cancel.raise(Level::Stop);
                }
                _ => {
                    say(wording::ABORTING);
                    cancel.raise(Level::Abort);
                }
            }
        }
    });
    Ok(Watch { handle: Some(handle), thread: Some(thread) })
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
