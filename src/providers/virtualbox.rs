//! VirtualBox, through `VBoxManage`.

/// VirtualBox' list of allowed host-only ranges.
pub const NETWORKS_CONF: &str = "/etc/vbox/networks.conf";
