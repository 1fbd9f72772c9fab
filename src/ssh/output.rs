//! What a command may take, and what it gave.

use std::time::Duration;

use super::Error;
use crate::explain::clipped;
use crate::os::process;

/// What a command may say in all, unless its [`Bound`] says otherwise: a node is not trusted to end.
const MAX_BYTES: u64 = 64 << 20;

/// How long a command may take, how long it may say nothing, and how much it may say.
#[derive(Clone, Copy, Debug)]
pub struct Bound {
    /// From the request to the exit status.
    pub total: Duration,
    /// Without a byte in either direction.
    pub silence: Duration,
    /// Bytes of output.
    pub most: u64,
}

impl Bound {
    /// Both bounds of time, and as much output as is usual.
    pub const fn new(total: Duration, silence: Duration) -> Self {
        Self { total, silence, most: MAX_BYTES }
    }

    /// With so many bytes of output at most.
    #[must_use]
    pub const fn at_most(mut self, bytes: u64) -> Self {
        self.most = bytes;
        self
    }
}

impl From<Duration> for Bound {
    fn from(total: Duration) -> Self {
        Self::new(total, total)
    }
}

/// A command that ran to its end by itself, whatever its exit status.
#[derive(Clone, Debug)]
pub struct Output {
    pub node: String,
    /// What it was, for messages.
    pub what: String,
    pub status: i32,
    /// What it wrote, standard error included, in the order of arrival; of very much, the end.
    pub output: Vec<u8>,
}

impl Output {
    /// The output as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.output).into_owned()
    }

    /// Itself when it exited with 0, [`Error::Failed`] with its last words otherwise.
    pub fn ok(self) -> Result<Self, Error> {
        if self.status == 0 {
            return Ok(self);
        }
        let tail = tail(&self.output);
        Err(Error::Failed { node: self.node, what: self.what, status: self.status, tail })
    }
}

/// The last lines of what a command wrote.
pub(super) fn tail(output: &[u8]) -> Vec<String> {
    let end = &output[output.len().saturating_sub(16 << 10)..];
    process::tail(&String::from_utf8_lossy(end), 12)
}

/// The beginning of a command, for messages.
pub(super) fn shorten(command: &str) -> String {
    clipped(command.lines().next().unwrap_or_default(), 60)
}
