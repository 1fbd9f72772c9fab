//! One connection to a node, and commands on it.
//!
//! The library is used without blocking: this file waits, by poll(2), so that every wait has a
//! bound of ours, is freed by an abort, and can wait for both directions at once.

use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use libssh2_sys::{LIBSSH2_ERROR_CHANNEL_CLOSED, LIBSSH2_ERROR_CHANNEL_EOF_SENT, LIBSSH2_ERROR_EAGAIN};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use ssh2::{BlockDirections, Channel, ErrorCode, ExtendedData};

use super::connect::{Carrier, Login};
use super::output::{shorten, tail};
use super::{Bound, Endpoint, Error, Output, Password, Root, Tunnel};
use crate::os::Cancel;
use crate::os::cancel::HookGuard;
use crate::os::process::quote;

/// Of a command's output, at least so many of the last bytes are kept.
const KEEP: usize = 8 << 20;
/// Read from a file, or from the node, at once.
const CHUNK: usize = 128 << 10;

/// Why a call into the library did not succeed.
#[derive(Debug)]
pub(super) enum Stuck {
    /// The bound has passed.
    Late,
    /// The user asked to abort.
    Cancelled,
    /// The library's own error.
    Ssh(ssh2::Error),
}

/// A logged-in connection to one node. Commands run one after the other; after an error that has
/// to do with the connection, or a bound that passed, it is [`broken`](Session::broken).
pub struct Session {
    ssh: ssh2::Session,
    tcp: TcpStream,
    pub(super) endpoint: Endpoint,
    pub(super) answer: Duration,
    /// How root's work is done.
    pub(super) root: Root,
    pub(super) password: Option<Password>,
    pub(super) key: PathBuf,
    pub(super) cancel: Cancel,
    broken: bool,
    _on_abort: HookGuard,
    /// What carries it, where it goes through another host.
    through: Option<Tunnel>,
    /// The program that carries it, if one does.
    carrier: Option<Carrier>,
}

/// One command to run.
pub(super) struct Task<'a> {
    pub what: &'a str,
    pub command: &'a str,
    /// It is root's: it goes through sudo where that is needed.
    pub root: bool,
    pub input: &'a mut dyn Read,
    pub bound: Bound,
    pub on_output: &'a mut dyn FnMut(&[u8]),
    /// Is told the number of bytes of input that were sent so far.
    pub on_sent: &'a mut dyn FnMut(u64),
}

impl Session {
    pub(super) fn new(
        ssh: ssh2::Session,
        tcp: TcpStream,
        login: &Login,
        cancel: &Cancel,
    ) -> io::Result<Self> {
        let socket = tcp.try_clone()?;
        let on_abort = cancel.on_abort(move || {
            let _ = socket.shutdown(Shutdown::Both);
        });
        Ok(Self {
            ssh,
            tcp,
            endpoint: login.endpoint.clone(),
            answer: login.options.answer,
            root: login.root(),
            password: login.options.password.clone(),
            key: PathBuf::new(),
            cancel: cancel.clone(),
            broken: false,
            _on_abort: on_abort,
            through: None,
            carrier: None,
        })
    }

    /// The same, which needs this to be carried by.
    pub(super) fn through(mut self, tunnel: Option<Tunnel>, carrier: Option<Carrier>) -> Self {
        (self.through, self.carrier) = (tunnel, carrier);
        self
    }

    /// The private key that let us in.
    pub fn key(&self) -> &Path {
        &self.key
    }

    /// The cipher in use, as `ssh -Q cipher` names it: a test holds it to the wish.
    #[cfg(feature = "internals")]
    pub fn cipher(&self) -> String {
        self.ssh.methods(ssh2::MethodType::CryptCs).unwrap_or_default().to_owned()
    }

    /// True if nothing more can be done with it.
    pub fn broken(&self) -> bool {
        self.broken
    }

    pub(super) fn ssh(&self) -> &ssh2::Session {
        &self.ssh
    }

    pub(super) fn tcp(&self) -> &TcpStream {
        &self.tcp
    }

    /// Ends the connection. What is freed afterwards then need not wait for the peer.
    pub(super) fn cut(&mut self) {
        self.broken = true;
        let _ = self.tcp.shutdown(Shutdown::Both);
    }

    /// Calls `op` until it does not ask to be called again, at most until `end`.
    pub(super) fn drive<T>(
        &mut self,
        end: Instant,
        mut op: impl FnMut(&mut ssh2::Session) -> Result<T, ssh2::Error>,
    ) -> Result<T, Stuck> {
        self.ssh.set_blocking(false);
        let result = loop {
            match op(&mut self.ssh) {
                Err(error) if error.code() == ErrorCode::Session(LIBSSH2_ERROR_EAGAIN) => {
                    if let Err(stuck) = self.wait(end) {
                        break Err(stuck);
                    }
                }
                Err(_) if self.cancel.aborted() => break Err(Stuck::Cancelled),
                Err(error) => break Err(Stuck::Ssh(error)),
                Ok(value) => break Ok(value),
            }
        };
        if result.is_err() && !matches!(&result, Err(Stuck::Ssh(_))) {
            self.cut();
        }
        self.ssh.set_blocking(true);
        result
    }

    /// Waits until the library can go on.
    fn wait(&self, end: Instant) -> Result<(), Stuck> {
        if self.cancel.aborted() {
            return Err(Stuck::Cancelled);
        }
        let left = end.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(Stuck::Late);
        }
        let flags = match self.ssh.block_directions() {
            BlockDirections::Outbound => PollFlags::POLLOUT,
            BlockDirections::Both => PollFlags::POLLIN | PollFlags::POLLOUT,
            BlockDirections::Inbound | BlockDirections::None => PollFlags::POLLIN,
        };
        // In slices, so that a packet that the library took in by the way is not waited for.
        let slice = left.min(Duration::from_secs(1)).max(Duration::from_millis(1));
        let timeout = PollTimeout::try_from(slice).unwrap_or(PollTimeout::MAX);
        // An interrupted call is as good as one that timed out.
        let _ = poll(&mut [PollFd::new(self.tcp.as_fd(), flags)], timeout);
        Ok(())
    }

    /// Runs `command` by the login user's shell, gives it `stdin`, and hands over what it writes
    /// (both streams, merged as they arrive) as it comes.
    ///
    /// # Errors
    /// [`Error::Lost`], [`Error::Deadline`], [`Error::Silent`], [`Error::Killed`],
    /// [`Error::Cancelled`]. A status other than 0 is not an error here: see [`Output::ok`].
    pub fn exec(
        &mut self,
        command: &str,
        stdin: &[u8],
        bound: impl Into<Bound>,
        on_output: &mut dyn FnMut(&[u8]),
    ) -> Result<Output, Error> {
        self.exec_as(false, command, stdin, bound.into(), on_output)
    }

    /// The same, by root's `sh` if `root`.
    ///
    /// # Errors
    /// And [`Error::NoSudo`].
    pub fn exec_as(
        &mut self,
        root: bool,
        command: &str,
        mut stdin: &[u8],
        bound: Bound,
        on_output: &mut dyn FnMut(&[u8]),
    ) -> Result<Output, Error> {
        let line = match root && self.root != Root::Already {
            true => format!("sh -c {}", quote(command)),
            false => command.to_owned(),
        };
        let what = format!("`{}`", shorten(command));
        self.run(Task {
            what: &what,
            command: &line,
            root,
            input: &mut stdin,
            bound,
            on_output,
            on_sent: &mut |_| {},
        })
    }

    pub(super) fn run(&mut self, task: Task<'_>) -> Result<Output, Error> {
        let start = Instant::now();
        let mut run = Run { start, heard: start, started: false, taken: 0, output: Vec::new() };
        let (what, bound) = (task.what, task.bound);
        let mut channel = None;
        let result = if self.broken {
            Err(Why::Lost("it is closed".to_owned()))
        } else {
            self.converse(task, &mut run, &mut channel)
        };
        if result.is_err() {
            self.cut();
        }
        // Frees the channel, for which the library must be allowed to wait (a little).
        drop(channel);
        let node = self.endpoint.node.clone();
        let (what, tail) = (what.to_owned(), tail(&run.output));
        match result {
            _ if self.cancel.aborted() => Err(Error::Cancelled { node }),
            Ok(Ended { signal: Some(signal), .. }) => Err(Error::Killed { node, what, signal, tail }),
            Ok(Ended { status, signal: None }) => Ok(Output { node, what, status, output: run.output }),
            Err(Why::Cancelled) => Err(Error::Cancelled { node }),
            Err(Why::Source(source)) => Err(Error::Source { node, source }),
            Err(Why::TooMuch) => Err(Error::TooMuch { node, what, most: bound.most, tail }),
            Err(Why::Lost(reason)) => Err(Error::Lost { node, what, reason, started: run.started }),
            // The node did not even begin.
            Err(Why::Late) if !run.started => {
                let reason = format!("no answer within {}", crate::explain::seconds(self.answer));
                Err(Error::Lost { node, what, reason, started: false })
            }
            Err(Why::Late) if start.elapsed() >= bound.total => {
                Err(Error::Deadline { node, what, bound: bound.total, tail })
            }
            Err(Why::Late) => Err(Error::Silent { node, what, bound: run.heard.elapsed(), tail }),
        }
    }

    fn converse(&mut self, task: Task<'_>, run: &mut Run, slot: &mut Option<Channel>) -> Result<Ended, Why> {
        let Task { command, input, bound, on_output, on_sent, root, .. } = task;
        let (command, first) =
            if root { self.elevated(command) } else { (command.to_owned(), String::new()) };
        let mut input = first.as_bytes().chain(input);
        let skip = first.len() as u64;
        let mut on_sent = |sent: u64| on_sent(sent.saturating_sub(skip));
        let end = run.start + bound.total;
        let begin = end.min(run.start + self.answer);
        let channel = slot.insert(self.drive(begin, |ssh| ssh.channel_session())?);
        self.drive(begin, |_| channel.handle_extended_data(ExtendedData::Merge))?;
        run.started = true;
        // From here on it may be running, answered or not.
        self.drive(begin, |_| channel.exec(&command))?;
        run.heard = Instant::now();

        self.ssh.set_blocking(false);
        let result = self.pump(channel, &mut input, bound, run, on_output, &mut on_sent);
        self.ssh.set_blocking(true);
        result?;

        let close = run.start + bound.total + Duration::from_secs(1);
        self.drive(close, |_| channel.wait_close())?;
        let signal = channel.exit_signal().map_err(|e| Why::Lost(e.to_string()))?.exit_signal;
        let status = channel.exit_status().map_err(|e| Why::Lost(e.to_string()))?;
        Ok(Ended { status, signal })
    }

    /// Sends all of `input` and takes all output in, until the command has closed its output.
    fn pump(
        &mut self,
        channel: &mut Channel,
        input: &mut dyn Read,
        bound: Bound,
        run: &mut Run,
        on_output: &mut dyn FnMut(&[u8]),
        on_sent: &mut dyn FnMut(u64),
    ) -> Result<(), Why> {
        let end = run.start + bound.total;
        let mut incoming = vec![0; CHUNK];
        let mut outgoing = Outgoing { buffer: vec![0; CHUNK], from: 0, to: 0, sent: 0, open: true };
        loop {
            // One that never stops talking is never waited for.
            if self.cancel.aborted() {
                return Err(Why::Cancelled);
            }
            let mut progress = false;
            match channel.read(&mut incoming) {
                Ok(0) if channel.eof() => return Ok(()),
                Ok(n) => {
                    progress |= n > 0;
                    run.keep(&incoming[..n]);
                    if run.taken > bound.most {
                        return Err(Why::TooMuch);
                    }
                    on_output(&incoming[..n]);
                }
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
                Err(e) => return Err(Why::Lost(e.to_string())),
            }
            if outgoing.open {
                let n = outgoing.step(channel, input, &self.ssh)?;
                if n > 0 {
                    progress = true;
                    on_sent(outgoing.sent);
                }
            }
            let now = Instant::now();
            if progress {
                run.heard = now;
            }
            let end = end.min(run.heard + bound.silence);
            if now >= end {
                return Err(Why::Late);
            }
            // Sending may have taken output in, for which poll would wait in vain.
            if !progress && channel.read_window().available == 0 && !channel.eof() {
                self.wait(end)?;
            }
        }
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        // Or freeing it would wait for a peer that may be gone.
        self.cut();
        self.ssh.set_blocking(true);
    }
}

/// What is known of a running command.
struct Run {
    start: Instant,
    heard: Instant,
    started: bool,
    /// Bytes of output.
    taken: u64,
    /// The end of it.
    output: Vec<u8>,
}

impl Run {
    fn keep(&mut self, bytes: &[u8]) {
        self.taken += bytes.len() as u64;
        self.output.extend_from_slice(bytes);
        if self.output.len() > 2 * KEEP {
            self.output.drain(..self.output.len() - KEEP);
        }
    }
}

struct Ended {
    status: i32,
    signal: Option<String>,
}

enum Why {
    Late,
    Cancelled,
    TooMuch,
    Lost(String),
    Source(io::Error),
}

impl From<Stuck> for Why {
    fn from(stuck: Stuck) -> Self {
        match stuck {
            Stuck::Late => Self::Late,
            Stuck::Cancelled => Self::Cancelled,
            Stuck::Ssh(e) => Self::Lost(e.message().to_owned()),
        }
    }
}

/// The input on its way to the command.
struct Outgoing {
    buffer: Vec<u8>,
    from: usize,
    to: usize,
    sent: u64,
    open: bool,
}

impl Outgoing {
    /// Sends a packet, or the end of the input. The number of bytes that went.
    fn step(
        &mut self,
        channel: &mut Channel,
        input: &mut dyn Read,
        ssh: &ssh2::Session,
    ) -> Result<usize, Why> {
        if self.from == self.to {
            (self.from, self.to) = (0, input.read(&mut self.buffer).map_err(Why::Source)?);
        }
        let result = if self.from == self.to {
            channel.send_eof().map(|()| {
                self.open = false;
                0
            })
        } else {
            // The io::Error of a write has lost the code; the session still has it.
            let bytes = &self.buffer[self.from..self.to];
            channel.write(bytes).map_err(|e| {
                if e.kind() == io::ErrorKind::WouldBlock {
                    return ssh2::Error::from_errno(ErrorCode::Session(LIBSSH2_ERROR_EAGAIN));
                }
                ssh2::Error::last_session_error(ssh).unwrap_or_else(ssh2::Error::unknown)
            })
        };
        match result {
            Ok(n) => {
                self.from += n;
                self.sent += n as u64;
                Ok(n)
            }
            Err(e) => match e.code() {
                ErrorCode::Session(LIBSSH2_ERROR_EAGAIN) => Ok(0),
                // It does not read on: whether that is well, its exit status tells.
                ErrorCode::Session(LIBSSH2_ERROR_CHANNEL_CLOSED | LIBSSH2_ERROR_CHANNEL_EOF_SENT) => {
                    self.open = false;
                    Ok(0)
                }
                _ => Err(Why::Lost(e.message().to_owned())),
            },
        }
    }
}
