//! What a spec means that leaves something out: one value each, from which the schema's `default` and the resolved
//! [`Cluster`](super::Cluster) are made.

use std::time::Duration;

use super::{Retry, Role, Rollout, Timeouts};
use crate::explain::seconds;

/// The box's definition.
pub const BOX: &str = "debian-12";
/// The network. VirtualBox allows it without being configured (192.168.56.0/21 since 6.1.28).
pub const CIDR: &str = "192.168.56.0/24";
/// Network cards of a machine on libvirt.
pub const NICS: u8 = 1;
/// k3s' release channel.
pub const CHANNEL: &str = "stable";

/// Processors and MiB of a machine: what k3s asks for.
pub const fn size(role: Role) -> (u32, u32) {
    match role {
        Role::Server => (2, 2048),
        Role::Worker | Role::None => (1, 1024),
    }
}

const fn minutes(n: u64) -> Duration {
    Duration::from_secs(60 * n)
}

/// How long is waited for what.
pub const TIMEOUTS: Timeouts = Timeouts {
    boot: minutes(5),
    ssh: minutes(2),
    install: minutes(5),
    server_ready: minutes(5),
    node_ready: minutes(3),
    download: minutes(10),
    provision: minutes(30),
    rollout: minutes(5),
};

/// How often a step is tried.
pub const RETRY: Retry =
    Retry { attempts: 3, backoff: Duration::from_secs(2), max_backoff: Duration::from_secs(30) };

/// How nodes that run are restarted.
pub const ROLLOUT: Rollout = Rollout { workers: 3, drain: false };

/// A time as a spec writes it, for the schema: `5m`, not `5m00s`.
pub fn written(time: Duration) -> String {
    let text = seconds(time);
    text.strip_suffix("00s").or(text.strip_suffix("00m")).map_or(text.clone(), str::to_owned)
}

impl Default for Timeouts {
    fn default() -> Self {
        TIMEOUTS
    }
}

impl Default for Retry {
    fn default() -> Self {
        RETRY
    }
}

impl Default for Rollout {
    fn default() -> Self {
        ROLLOUT
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_schema_says_is_what_is_meant() {
        let texts = [2000, 30_000, 300_000, 330_000, 3_600_000].map(|ms| written(Duration::from_millis(ms)));
        assert_eq!(texts, ["2s", "30s", "5m", "5m30s", "1h"]);
        let texts = super::super::schema().to_string();
        let each = |of: fn((u32, u32)) -> u32| {
            format!(
                "Default: {} for a server, {} for a worker.",
                of(size(Role::Server)),
                of(size(Role::Worker))
            )
        };
        assert!(texts.contains(&each(|s| s.0)) && texts.contains(&each(|s| s.1)), "the sizes in file.rs");
        assert_eq!(crate::explain::parse_seconds(&written(TIMEOUTS.provision)), Some(TIMEOUTS.provision));
    }
}
