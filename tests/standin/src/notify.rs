//! `sd_notify`: the units are `Type=notify`, so systemd waits for `READY=1`.

use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};

use crate::{faults, log};

/// Tells systemd that the service is up. Without `NOTIFY_SOCKET` there is nobody to tell.
pub fn ready() {
    if faults::is_set("never-notify") {
        log::warn("stand-in fault never-notify: not telling systemd");
        return;
    }
    let Ok(path) = std::env::var("NOTIFY_SOCKET") else {
        return;
    };
    let sent = UnixDatagram::unbound().and_then(|socket| {
        let address = match path.strip_prefix('@') {
            Some(name) => SocketAddr::from_abstract_name(name)?,
            None => SocketAddr::from_pathname(&path)?,
        };
        socket.send_to_addr(b"READY=1\nSTATUS=k3s stand-in is up\n", &address)
    });
    if let Err(e) = sent {
        log::warn(format!("failed to notify systemd at {path}: {e}"));
    }
}
