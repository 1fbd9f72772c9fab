//! The settings that k3s knows, and whose they are.
//!
//! Sources: k3s-io/docs, docs/cli/server.md and docs/cli/agent.md; hidden ones from k3s-io/k3s,
//! pkg/cli/cmds/{server,agent}.go. In /etc/rancher/k3s/config.yaml a key is a long option without
//! its dashes (a single letter stands for the short one), and `key+` appends to what `key` had
//! (pkg/configfilearg/parser.go). A server skips options it does not know with a line in its log;
//! an agent ends with an error.

/// What a setting takes, by the kind of its flag (urfave/cli) and by what k3s' code does with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Takes {
    /// A truth value.
    Flag,
    /// A whole number.
    Number,
    /// A time as Go writes it: `10m0s`.
    Time,
    /// One text.
    Text,
    /// One of these words.
    One(&'static [&'static str]),
    /// Any number of texts.
    List,
    /// Any number of these words.
    Each(&'static [&'static str]),
}

use Takes::{Each, Flag, List, Number, One, Text, Time};

/// Only a server knows these.
const SERVER: &[(&str, Takes)] = &[
    ("advertise-address", Text),
    ("advertise-port", Number),
    ("agent-token", Text),
    ("agent-token-file", Text),
    ("apiserver-bind-address", Text),
    ("apiserver-port", Number),
    ("cluster-cidr", List),
    ("cluster-dns", List),
    ("cluster-domain", Text),
    ("cluster-init", Flag),
    ("cluster-reset", Flag),
    ("cluster-reset-restore-path", Text),
    ("datastore-cafile", Text),
    ("datastore-certfile", Text),
    ("datastore-endpoint", Text),
    ("datastore-keyfile", Text),
    ("default-local-storage-path", Text),
    (
        "disable",
        Each(&[
            "coredns",
            "servicelb",
            "traefik",
            "local-storage",
            "metrics-server",
            "runtimes",
            "rolebindings",
            "ccm",
        ]),
    ),
    ("disable-agent", Flag),
    ("disable-apiserver", Flag),
    ("disable-cloud-controller", Flag),
    ("disable-controller-manager", Flag),
    ("disable-etcd", Flag),
    ("disable-helm-controller", Flag),
    ("disable-kube-proxy", Flag),
    ("disable-network-policy", Flag),
    ("disable-scheduler", Flag),
    ("egress-selector-mode", One(&["agent", "cluster", "pod", "disabled"])),
    ("embedded-registry", Flag),
    ("etcd-arg", List),
    ("etcd-disable-snapshots", Flag),
    ("etcd-expose-metrics", Flag),
    ("etcd-s3", Flag),
    ("etcd-s3-access-key", Text),
    ("etcd-s3-bucket", Text),
    ("etcd-s3-bucket-lookup-type", One(&["auto", "dns", "path"])),
    ("etcd-s3-config-secret", Text),
    ("etcd-s3-endpoint", Text),
    ("etcd-s3-endpoint-ca", Text),
    ("etcd-s3-folder", Text),
    ("etcd-s3-insecure", Flag),
    ("etcd-s3-proxy", Text),
    ("etcd-s3-region", Text),
    ("etcd-s3-retention", Number),
    ("etcd-s3-secret-key", Text),
    ("etcd-s3-session-token", Text),
    ("etcd-s3-skip-ssl-verify", Flag),
    ("etcd-s3-timeout", Time),
    ("etcd-snapshot-compress", Flag),
    ("etcd-snapshot-dir", Text),
    ("etcd-snapshot-name", Text),
    ("etcd-snapshot-reconcile-interval", Time),
    ("etcd-snapshot-retention", Number),
    ("etcd-snapshot-schedule-cron", Text),
    ("flannel-backend", One(&["none", "vxlan", "host-gw", "wireguard-native", "tailscale"])),
    ("flannel-external-ip", Flag),
    ("flannel-ipv6-masq", Flag),
    ("helm-controller-arg", List),
    ("helm-job-image", Text),
    ("https-listen-port", Number),
    ("kine-tls", Flag),
    ("kube-apiserver-arg", List),
    ("kube-cloud-controller-arg", List),
    ("kube-cloud-controller-manager-arg", List),
    ("kube-controller-arg", List),
    ("kube-controller-manager-arg", List),
    ("kube-scheduler-arg", List),
    ("secrets-encryption", Flag),
    ("secrets-encryption-provider", One(&["aescbc", "secretbox"])),
    ("service-cidr", List),
    ("service-node-port-range", Text),
    ("servicelb-namespace", Text),
    ("supervisor-metrics", Flag),
    ("supervisor-port", Number),
    ("system-default-registry", Text),
    ("tls-san", List),
    ("tls-san-security", Flag),
    ("write-kubeconfig", Text),
    ("write-kubeconfig-group", Text),
    ("write-kubeconfig-mode", Text),
    ("write-kubeconfig-name", Text),
];

/// Servers and agents know these.
const BOTH: &[(&str, Takes)] = &[
    ("airgap-extra-registry", List),
    ("alsologtostderr", Flag),
    ("bind-address", Text),
    ("config", Text),
    ("container-runtime-endpoint", Text),
    ("data-dir", Text),
    ("debug", Flag),
    ("default-runtime", Text),
    ("disable-apiserver-lb", Flag),
    ("disable-default-registry-endpoint", Flag),
    ("docker", Flag),
    ("enable-pprof", Flag),
    ("flannel-cni-conf", Text),
    ("flannel-conf", Text),
    ("flannel-iface", Text),
    ("image-credential-provider-bin-dir", Text),
    ("image-credential-provider-config", Text),
    ("image-service-endpoint", Text),
    ("kube-proxy-arg", List),
    ("kubelet-arg", List),
    ("lb-server-port", Number),
    ("log", Text),
    ("node-external-dns", List),
    ("node-external-ip", List),
    ("node-internal-dns", List),
    ("node-ip", List),
    ("node-label", List),
    ("node-name", Text),
    ("node-taint", List),
    ("nonroot-devices", Flag),
    ("pause-image", Text),
    ("prefer-bundled-bin", Flag),
    ("private-registry", Text),
    ("protect-kernel-defaults", Flag),
    ("resolv-conf", Text),
    ("rootless", Flag),
    ("selinux", Flag),
    ("server", Text),
    ("snapshotter", Text),
    ("token", Text),
    ("token-file", Text),
    ("v", Number),
    ("vmodule", Text),
    ("vpn-auth", Text),
    ("vpn-auth-file", Text),
    ("with-node-id", Flag),
];

/// Short options that have a long one.
const SHORT_NAMES: &[(&str, &str)] = &[
    ("c", "config"),
    ("d", "data-dir"),
    ("i", "node-ip"),
    ("l", "log"),
    ("o", "write-kubeconfig"),
    ("s", "server"),
    ("t", "token"),
];

/// Settings that are p1's own: why, and what to do instead.
const OWNED: &[(&str, &str)] = &[
    ("advertise-address", "p1 sets it to the server's `ip`."),
    ("agent-token", "p1 makes the tokens itself and keeps them in files that only root reads."),
    ("agent-token-file", "p1 makes the tokens itself and keeps them in files that only root reads."),
    ("apiserver-bind-address", "p1 and the workers find the API at port 6443 of the server's `ip`."),
    ("apiserver-port", "p1 and the workers find the API at port 6443 of the server's `ip`."),
    ("cluster-reset", "It is an action, not a setting."),
    ("cluster-reset-restore-path", "It is an action, not a setting."),
    ("config", "p1 writes /etc/rancher/k3s/config.yaml itself, from the `config` keys of the spec."),
    ("data-dir", "p1 relies on k3s' own place, /var/lib/rancher/k3s."),
    ("disable-agent", "p1 waits until every machine is a Ready node, and such a server is none."),
    ("disable-apiserver", "Every server has to run all of the control plane."),
    ("disable-controller-manager", "Every server has to run all of the control plane."),
    ("disable-etcd", "Every server has to run all of the control plane."),
    ("flannel-iface", "p1 sets it to the network card that has the node's `ip`."),
    ("https-listen-port", "p1 and the workers find the API at port 6443."),
    ("node-ip", "p1 sets it to the node's `ip`."),
    ("node-name", "p1 sets it to the node's `name`."),
    ("private-registry", "p1 writes registries.yaml itself; put its content under `k3s: registries:`."),
    ("rootless", "p1 installs k3s as a service of the system."),
    ("server", "p1 sets it to the address of a server that runs."),
    ("supervisor-port", "p1 and the workers find the API at port 6443 of the server's `ip`."),
    ("token", "p1 makes the token itself and keeps it in files that only root reads."),
    ("token-file", "p1 makes the token itself and keeps it in files that only root reads."),
    ("with-node-id", "p1 knows the nodes by the `name` that the spec gives them."),
    ("write-kubeconfig-name", "p1 names cluster, user and context after the spec's `name`."),
    ("write-kubeconfig", "p1 fetches the kubeconfig from where k3s puts it; see `p1 kubeconfig`."),
];

/// Who takes a setting.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Taker {
    Server,
    Both,
    /// Not in the lists; k3s may be newer than they are.
    Unknown,
}

/// Whether a setting is switched on or off by itself; none where it is not in the lists.
pub fn is_switch(key: &str) -> Option<bool> {
    takes(key).map(|takes| takes == Flag)
}

/// Whether a setting takes any number of values.
pub fn is_list(key: &str) -> bool {
    matches!(takes(key), Some(List | Each(_)))
}

/// The long name of a setting, without a `+` at its end.
pub fn long(key: &str) -> &str {
    let key = key.strip_suffix('+').unwrap_or(key);
    SHORT_NAMES.iter().find(|(short, _)| *short == key).map_or(key, |(_, long)| long)
}

/// Who takes a setting.
pub(super) fn taker(key: &str) -> Taker {
    let key = long(key);
    match (SERVER.iter().any(|(k, _)| *k == key), BOTH.iter().any(|(k, _)| *k == key)) {
        (true, _) => Taker::Server,
        (_, true) => Taker::Both,
        _ => Taker::Unknown,
    }
}

/// What a setting takes; `None` for one that is not in the lists.
pub(super) fn takes(key: &str) -> Option<Takes> {
    SERVER.iter().chain(BOTH).find(|(k, _)| *k == long(key)).map(|(_, takes)| *takes)
}

/// Why a setting is not the spec's to make; `None` if it is.
pub fn owned(key: &str) -> Option<&'static str> {
    OWNED.iter().find(|(owned, _)| *owned == long(key)).map(|(_, why)| *why)
}

/// All settings that the spec can make.
pub(super) fn all() -> impl Iterator<Item = &'static str> {
    SERVER.iter().chain(BOTH).map(|(key, _)| *key).filter(|k| owned(k).is_none())
}
