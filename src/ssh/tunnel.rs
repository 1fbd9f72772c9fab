//! A port of this host that leads into a node's network, for what speaks HTTPS to the cluster.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use ssh2::{BlockDirections, Channel};

use super::{Error, Session};

/// Connections at once; one more waits in the listener's queue.
const MAX_CONNECTIONS: usize = 64;
/// Carried at once in each direction of each connection.
const CHUNK: usize = 64 << 10;
/// For the node to answer to a new connection.
const OPEN: Duration = Duration::from_secs(10);

/// Listens on 127.0.0.1 and carries each connection to a place as the node sees it. Its session is
/// used by its own thread alone. Dropping it ends all.
pub struct Tunnel {
    address: SocketAddr,
    stop: Arc<AtomicBool>,
    socket: TcpStream,
    thread: Option<JoinHandle<()>>,
}

impl Tunnel {
    /// To `host:port`, over `session`; from a free port unless there is a listener.
    pub(super) fn open(
        session: Session,
        listener: Option<&TcpListener>,
        host: &str,
        port: u16,
    ) -> Result<Self, Error> {
        let lost = |e: io::Error| Error::Lost {
            node: session.endpoint.node.clone(),
            what: "opening a tunnel".to_owned(),
            reason: e.to_string(),
            started: false,
        };
        let bind = || TcpListener::bind((Ipv4Addr::LOCALHOST, 0));
        let listener = listener.map_or_else(bind, TcpListener::try_clone).map_err(lost)?;
        listener.set_nonblocking(true).map_err(lost)?;
        let address = listener.local_addr().map_err(lost)?;
        let socket = session.tcp().try_clone().map_err(lost)?;
        let stop = Arc::new(AtomicBool::new(false));
        let mut carrier =
            Carrier { session, listener, host: host.to_owned(), port, stop: stop.clone(), lines: Vec::new() };
        let thread = std::thread::spawn(move || carrier.carry());
        Ok(Self { address, stop, socket, thread: Some(thread) })
    }

    /// True if its session has ended, and nothing is carried any more.
    pub fn ended(&self) -> bool {
        self.thread.as_ref().is_none_or(JoinHandle::is_finished)
    }

    /// Where to connect to.
    pub fn address(&self) -> SocketAddr {
        self.address
    }
}

impl Drop for Tunnel {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        // Wakes the thread, which waits for this socket among others.
        let _ = self.socket.shutdown(Shutdown::Both);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

struct Carrier {
    session: Session,
    listener: TcpListener,
    host: String,
    port: u16,
    stop: Arc<AtomicBool>,
    lines: Vec<Line>,
}

impl Carrier {
    /// Until it is stopped or the session ends; then new connections are refused.
    fn carry(&mut self) {
        while !self.stop.load(Ordering::SeqCst) && !self.session.broken() {
            let mut progress = self.accept();
            self.session.ssh().set_blocking(false);
            let mut lost = false;
            for line in &mut self.lines {
                match line.step() {
                    Ok(moved) => progress |= moved,
                    Err(Broken::Line) => line.over = true,
                    Err(Broken::Session) => lost = true,
                }
            }
            if lost {
                self.session.cut();
            }
            // A channel that is dropped says good-bye, for which the library may wait a little.
            self.session.ssh().set_blocking(true);
            self.lines.retain(|line| !line.over);
            // All that came before it was carried.
            if !progress && !lost && self.hung_up() {
                self.session.cut();
            }
        }
        self.session.cut();
        self.lines.clear();
    }

    fn accept(&mut self) -> bool {
        if self.lines.len() >= MAX_CONNECTIONS {
            return false;
        }
        let Ok((tcp, from)) = self.listener.accept() else { return false };
        if tcp.set_nonblocking(true).and_then(|()| tcp.set_nodelay(true)).is_err() {
            return false;
        }
        let (host, port, from) = (&self.host, self.port, from.ip().to_string());
        let end = Instant::now() + OPEN;
        let opened = self.session.drive(end, |ssh| ssh.channel_direct_tcpip(host, port, Some((&from, 0))));
        // If the far end refuses, the near end is closed, which is what a refusal looks like from here.
        if let Ok(channel) = opened {
            self.lines.push(Line::new(tcp, channel));
        }
        true
    }

    /// Waits until there is something to carry. True if the node has ended the session, of which nobody else hears where there
    /// is no connection.
    fn hung_up(&self) -> bool {
        let (mut library, out) = (PollFlags::from_bits_retain(nix::libc::POLLRDHUP), PollFlags::POLLOUT);
        // Without a connection nobody reads what comes, and it would be told again and again.
        if !self.lines.is_empty()
            && !matches!(self.session.ssh().block_directions(), BlockDirections::Outbound)
        {
            library |= PollFlags::POLLIN;
        }
        if matches!(self.session.ssh().block_directions(), BlockDirections::Outbound | BlockDirections::Both)
        {
            library |= out;
        }
        let mut fds = vec![PollFd::new(self.session.tcp().as_fd(), library)];
        if self.lines.len() < MAX_CONNECTIONS {
            fds.push(PollFd::new(self.listener.as_fd(), PollFlags::POLLIN));
        }
        for line in &self.lines {
            let mut flags = PollFlags::empty();
            flags.set(PollFlags::POLLIN, line.up.is_empty() && !line.near_eof);
            flags.set(PollFlags::POLLOUT, !line.down.is_empty());
            // With no flag at all it would still report a hang-up, again and again.
            if !flags.is_empty() {
                fds.push(PollFd::new(line.tcp.as_fd(), flags));
            }
        }
        let _ = poll(&mut fds, PollTimeout::from(500_u16));
        // POLLRDHUP, which nix does not know by name, is no answer of its own.
        fds[0].revents().is_none_or(|is| is.intersects(PollFlags::POLLHUP | PollFlags::POLLERR))
    }
}

enum Broken {
    Line,
    Session,
}

/// One connection: `up` goes to the node, `down` comes from it.
struct Line {
    tcp: TcpStream,
    channel: Channel,
    up: Vec<u8>,
    down: Vec<u8>,
    near_eof: bool,
    near_told: bool,
    over: bool,
}

impl Line {
    fn new(tcp: TcpStream, channel: Channel) -> Self {
        let (up, down) = (Vec::new(), Vec::new());
        Self { tcp, channel, up, down, near_eof: false, near_told: false, over: false }
    }

    /// Moves what can be moved. True if anything was.
    fn step(&mut self) -> Result<bool, Broken> {
        let mut moved = false;
        let mut far_eof = false;
        if self.down.is_empty() {
            self.down.resize(CHUNK, 0);
            let n = match self.channel.read(&mut self.down) {
                Ok(n) => n,
                Err(e) if e.kind() == ErrorKind::WouldBlock => 0,
                Err(_) => return Err(Broken::Session),
            };
            self.down.truncate(n);
            moved |= n > 0;
            far_eof = n == 0 && self.channel.eof();
        }
        if !self.down.is_empty() {
            let n = blocking(self.tcp.write(&self.down)).map_err(|_| Broken::Line)?;
            self.down.drain(..n);
            moved |= n > 0;
        }
        if far_eof {
            // A server that has ended its answer wants no more of the question.
            self.over = true;
            let _ = self.tcp.shutdown(Shutdown::Both);
            return Ok(true);
        }
        if self.up.is_empty() && !self.near_eof {
            self.up.resize(CHUNK, 0);
            let read = self.tcp.read(&mut self.up);
            self.near_eof = matches!(read, Ok(0));
            let n = blocking(read).map_err(|_| Broken::Line)?;
            self.up.truncate(n);
            moved |= n > 0 || self.near_eof;
        }
        if !self.up.is_empty() {
            let n = match self.channel.write(&self.up) {
                Ok(n) => n,
                Err(e) if e.kind() == ErrorKind::WouldBlock => 0,
                Err(_) => return Err(Broken::Line),
            };
            self.up.drain(..n);
            moved |= n > 0;
        }
        if self.near_eof && self.up.is_empty() && !self.near_told {
            self.near_told = self.channel.send_eof().is_ok();
            moved |= self.near_told;
        }
        Ok(moved)
    }
}

/// Nothing instead of an error where it would block.
fn blocking(result: io::Result<usize>) -> io::Result<usize> {
    match result {
        Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => Ok(0),
        other => other,
    }
}
