//! What listens on this host for a fork's API: a p1 of its own, which ends with the fork.

use std::fs;
use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::context::Context;
use super::error::{CliError, code};
use crate::access::{World, url_from_here};
use crate::k3s;
use crate::machines::port_file;
use crate::os::apart;
use crate::os::files::{self, At};
use crate::os::lock::{self as locks, Lock};
use crate::state::StateDir;

/// Connections at once; the next one is closed.
const MOST: usize = 256;
/// How often it is looked whether the fork is still there.
const EVERY: Duration = Duration::from_millis(300);
/// For a server to take a connection.
const CONNECT: Duration = Duration::from_secs(3);
/// For it to end when it is told to.
const END: Duration = Duration::from_secs(5);

/// Carries connections to a server of the fork, until its state folder is gone.
pub fn run(context: &Context) -> Result<(), CliError> {
    apart::leave();
    let cluster = context.spec()?;
    let state = StateDir::of(cluster.home(), &cluster.name);
    let kind = context.kind(&cluster, &state)?;
    if cluster.fork.is_none() || !state.exists() {
        return Err(CliError::new(code::USAGE, "this folder is not a fork's", "`p1 fork` makes one."));
    }
    let Ok(_own) = Lock::take(&state.forwarder(), "fork", Duration::ZERO, &context.cancel) else {
        return Ok(());
    };
    let world = context.world(cluster.clone(), kind);
    let file = port_file(state.dir());
    let before = files::read_if_there(&file)?.and_then(|text| text.trim().parse::<u16>().ok());
    let listen = |port: u16| TcpListener::bind((Ipv4Addr::LOCALHOST, port));
    let listener = before.map_or_else(|| listen(0), |port| listen(port).or_else(|_| listen(0)));
    let listener =
        listener.and_then(|l| l.set_nonblocking(true).map(|()| l)).at("listen for", state.dir())?;
    let port = listener.local_addr().at("listen for", state.dir())?.port();
    files::write(&file, format!("{port}\n").as_bytes(), 0o600)?;
    if let Some(text) = files::read_if_there(&state.kubeconfig())? {
        let url = url_from_here(&world.machines, cluster.first_server());
        let ours = k3s::rewrite(&text, &url, &cluster.name)?;
        files::write_if_changed(&state.kubeconfig(), ours.as_bytes(), 0o600)?;
    }
    apart::ready();
    let open = Arc::new(AtomicUsize::new(0));
    while state.exists() && !context.cancel.stopping() {
        let mut fds = [PollFd::new(listener.as_fd(), PollFlags::POLLIN)];
        let _ = poll(&mut fds, PollTimeout::try_from(EVERY).unwrap_or(PollTimeout::ZERO));
        let Ok((near, _)) = listener.accept() else { continue };
        if open.fetch_add(1, Ordering::SeqCst) >= MOST {
            open.fetch_sub(1, Ordering::SeqCst);
            continue;
        }
        let (world, open) = (Arc::clone(&world), Arc::clone(&open));
        thread::spawn(move || {
            let _ = carry(&near, &world);
            open.fetch_sub(1, Ordering::SeqCst);
        });
    }
    Ok(())
}

/// Between one connection and the first server that takes it; through SSH where k3s listens at other addresses only.
fn carry(near: &TcpStream, world: &World) -> io::Result<()> {
    near.set_nonblocking(false)?;
    let servers = || world.cluster.servers().map(|s| (s, k3s::config::api_port(s)));
    let doors: Vec<SocketAddr> = servers().filter_map(|(s, port)| world.machines.door(s, port)).collect();
    let direct = doors.iter().find_map(|door| TcpStream::connect_timeout(door, CONNECT).ok());
    // Its own: one that was open while its machine was restarted would not tell.
    let mut tunnel = None;
    let far = direct.or_else(|| {
        let open = |(server, port)| world.on(server, |remote| remote.tunnel("127.0.0.1", port)).ok();
        tunnel = servers().find_map(open);
        TcpStream::connect_timeout(&tunnel.as_ref()?.address(), CONNECT).ok()
    });
    let far = far.ok_or(io::ErrorKind::NotConnected)?;
    for end in [near, &far] {
        end.set_nodelay(true)?;
    }
    thread::scope(|scope| {
        scope.spawn(|| pass(near, &far));
        pass(&far, near);
    });
    Ok(())
}

/// What one end says, to the other, until it ends.
fn pass(mut from: &TcpStream, mut to: &TcpStream) {
    let mut bytes = vec![0; 64 << 10];
    while let Ok(n) = from.read(&mut bytes) {
        if n == 0 || to.write_all(&bytes[..n]).is_err() {
            break;
        }
    }
    let _ = to.shutdown(Shutdown::Write);
    let _ = from.shutdown(Shutdown::Read);
}

/// Ends a fork's forwarder: who holds its lock. It would end by itself too, when its folder is gone.
pub fn end(state: &StateDir) {
    let path = state.forwarder();
    let Some(owner) = locks::holder(&path) else { return };
    let Ok(pid) = i32::try_from(owner.pid) else { return };
    // The kernel frees the lock with its holder: as long as it is held, that number is its own.
    let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    if line.split(|b| *b == 0).any(|word| word == b"--forward") {
        let _ = kill(Pid::from_raw(pid), Signal::SIGTERM);
    }
    let begun = Instant::now();
    while locks::holder(&path).is_some() && begun.elapsed() < END {
        thread::sleep(Duration::from_millis(20));
    }
}
