//! Whether an SSH server answers, asked by one connection that stays open.
//!
//! sshd forks for each connection, and a guest that is emulated on a busy host needs many seconds for
//! that. Whoever gives up early and asks again leaves it a process each time, until its `MaxStartups`
//! (sshd_config(5); 10 by default) turns away the logins that matter, Vagrant's and ours.

use std::io;
use std::net::{SocketAddr, TcpStream};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

/// For TCP. The guest's kernel answers, not its sshd, but a guest that boots under emulation on a busy host
/// may take seconds even for that, and works through what was given up meanwhile all the same. About as long
/// as this host asks for an address that is not there yet.
const CONNECT: Duration = Duration::from_secs(3);

/// A connection that is silent for so long may be to a machine that has been restarted since.
const STALE: Duration = Duration::from_secs(60);

/// One who waits at the door.
#[derive(Debug, Default)]
pub struct Knock {
    open: Option<(TcpStream, Instant)>,
    /// On its way.
    coming: Option<(SocketAddr, Receiver<io::Result<TcpStream>>)>,
}

impl Knock {
    /// Whether a server there has greeted; waits for it for `patience`. sshd greets first; a port that only
    /// accepts may be a forwarder's.
    pub fn answers(&mut self, address: SocketAddr, patience: Duration) -> bool {
        let kept = self.open.take().filter(|(tcp, since)| {
            since.elapsed() < STALE && tcp.peer_addr().is_ok_and(|there| there == address)
        });
        let Some((tcp, since)) = kept.or_else(|| self.connected(address, patience)) else { return false };
        let mut greeting = [0; 4];
        let _ = tcp.set_read_timeout(Some(patience.max(Duration::from_millis(1))));
        match tcp.peek(&mut greeting) {
            Ok(4) => return &greeting == b"SSH-",
            // It was closed, or refuses.
            Ok(0) => {}
            Ok(_) => self.open = Some((tcp, since)),
            Err(e)
                if matches!(
                    e.kind(),
                    io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut | io::ErrorKind::Interrupted
                ) =>
            {
                self.open = Some((tcp, since));
            }
            Err(_) => {}
        }
        false
    }

    /// The connection that is on its way, or a new one, if it is there within `patience`.
    fn connected(&mut self, address: SocketAddr, patience: Duration) -> Option<(TcpStream, Instant)> {
        let coming = self.coming.take().filter(|(there, _)| *there == address);
        let coming = match coming {
            Some((_, coming)) => coming,
            None => {
                let (tell, coming) = mpsc::channel();
                let connect = move || drop(tell.send(TcpStream::connect_timeout(&address, CONNECT)));
                thread::Builder::new().name("knock".to_owned()).spawn(connect).ok()?;
                coming
            }
        };
        match coming.recv_timeout(patience) {
            Ok(connected) => Some((connected.ok()?, Instant::now())),
            Err(RecvTimeoutError::Timeout) => {
                self.coming = Some((address, coming));
                None
            }
            Err(RecvTimeoutError::Disconnected) => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::net::TcpListener;

    use super::*;

    const ATTEMPT: Duration = Duration::from_millis(20);
    const LONG: Duration = Duration::from_secs(20);

    #[test]
    fn one_connection_waits_for_a_slow_greeting() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let mut knock = Knock::default();
        for _ in 0..5 {
            assert!(!knock.answers(address, ATTEMPT));
        }
        let (mut first, _) = listener.accept().unwrap();
        listener.set_nonblocking(true).unwrap();
        assert!(listener.accept().is_err(), "there is no second one");
        first.write_all(b"SSH-2.0-x\r\n").unwrap();
        assert!(knock.answers(address, LONG));
    }

    #[test]
    fn a_connection_that_nobody_takes_yet_stays_on_its_way() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        // As long as its queue is full, its kernel answers nobody.
        let mut waiting = Vec::new();
        while let Ok(tcp) = TcpStream::connect_timeout(&address, Duration::from_millis(200)) {
            waiting.push(tcp);
            assert!(waiting.len() < 20_000, "the queue has no end");
        }
        let mut knock = Knock::default();
        assert!(!knock.answers(address, Duration::from_millis(400)));
        let mut seen: Vec<_> = (0..waiting.len()).map(|_| listener.accept().unwrap()).collect();
        // Nobody asks again, and it comes all the same.
        listener.set_nonblocking(true).unwrap();
        let begun = Instant::now();
        let mut mine = loop {
            match listener.accept() {
                Ok((tcp, from)) if waiting.iter().all(|w| w.local_addr().unwrap() != from) => break tcp,
                Ok(other) => seen.push(other),
                Err(_) => assert!(begun.elapsed() < LONG, "it was given up"),
            }
            thread::park_timeout(Duration::from_millis(10));
        };
        mine.write_all(b"SSH-2.0-x\r\n").unwrap();
        assert!(knock.answers(address, LONG));
    }

    #[test]
    fn who_is_turned_away_or_finds_somebody_else_knocks_anew() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let mut knock = Knock::default();
        assert!(!knock.answers(address, ATTEMPT));
        drop(listener.accept().unwrap());
        assert!(!knock.answers(address, LONG), "closed");
        assert!(!knock.answers(address, ATTEMPT));
        listener.accept().unwrap().0.write_all(b"Exceeded MaxStartups\r\n").unwrap();
        assert!(!knock.answers(address, LONG));
        assert!(!knock.answers(address, ATTEMPT));
        listener.accept().unwrap().0.write_all(b"SSH-2.0-x\r\n").unwrap();
        // What was accepted and closed may still be read.
        assert!(knock.answers(address, LONG));
        drop(listener);
        assert!(!knock.answers(address, ATTEMPT));
    }
}
