//! Reading a cluster over its API, from the host: who is in it, how it is, what it complains about.
//!
//! HTTPS with the client certificate of the cluster's kubeconfig, trusting the cluster's own
//! authority and no other. One [`Client`] keeps its connection, so that polling costs one request
//! each. Nothing is written here: that goes through `k3s kubectl` on a server.

mod client;
mod error;
pub mod objects;
mod reads;
#[cfg(test)]
mod tests;

pub use client::{Client, cacerts};
pub use error::Error;
pub use objects::{NodeStatus, Warning};
pub use reads::{Kind, prefix};
