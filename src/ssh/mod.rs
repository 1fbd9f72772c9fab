//! SSH to the nodes: the only room that names the crate ssh2.
//!
//! [`Remote`] is what the rest of p1 uses: it owns where a node is and how to get in, connects when
//! it is first needed, and reconnects when a connection was lost. One [`Session`] is one
//! connection, used by one thread at a time.
//!
//! Rules that were each learned by measuring libssh2, and where they are kept:
//!
//! 1. Nothing blocks without a bound: sockets are polled, never left to block in the library, and
//!    the library has a time limit of its own from before the handshake (`connect`).
//! 2. One session per node and thread; a tunnel has a session of its own (`tunnel`).
//! 3. Standard error is merged into standard output: a full pipe of the one would block the other
//!    (`session`).
//! 4. An exit status counts only after a clean end of file, the closing of the channel, and no
//!    signal; libssh2 says 0 after a lost connection and after SIGKILL too (`session`).
//! 5. An abort shuts the socket down, which frees a waiting thread at once (`connect`).
//! 6. A keepalive tells nothing about a dead peer; bounds on silence do (`session`).
//! 7. Files go through `cat` into a file beside the place, in 32 KiB packets (`upload`).
//! 8. Long work runs detached from the connection and leaves its result in a file (`detached`).
//! 9. A node's host key is pinned at first contact (`hostkey`).

mod client;
mod connect;
mod copy;
mod detached;
mod error;
mod hostkey;
mod keys;
mod knock;
mod output;
mod remote;
mod script;
mod session;
mod tunnel;
mod upload;

pub use client::{Host, config, interactive};
pub use connect::{Endpoint, Login, Options, Password, Root, connect, wait_for};
pub use copy::{Given, Place};
pub use detached::Job;
pub use error::Error;
pub use hostkey::{HostKey, Known, KnownHosts};
pub use keys::generate_key;
pub use knock::Knock;
pub use output::{Bound, Output};
pub use remote::Remote;
pub use session::Session;
pub use tunnel::Tunnel;
pub use upload::{Source, Upload};
