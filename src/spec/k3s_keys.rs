//! The settings that k3s knows, and whose they are.
//!
//! Sources: k3s-io/docs, docs/cli/server.md and docs/cli/agent.md; hidden ones from k3s-io/k3s,
//! pkg/cli/cmds/{server,agent}.go. In /etc/rancher/k3s/config.yaml a key is a long option without
//! its dashes (a single letter stands for the short one), and `key+` appends to what `key` had
//! (pkg/configfilearg/parser.go). A server skips options it does not know with a line in its log;
//! an agent ends with an error.

/// Only a server knows these.
const SERVER: &[&str] = &[
    "advertise-address",
    "advertise-port",
    "agent-token",
    "agent-token-file",
    "cluster-cidr",
    "cluster-dns",
    "cluster-domain",
    "cluster-init",
    "cluster-reset",
    "cluster-reset-restore-path",
    "datastore-cafile",
    "datastore-certfile",
    "datastore-endpoint",
    "datastore-keyfile",
    "default-local-storage-path",
    "disable",
    "disable-agent",
    "disable-apiserver",
    "disable-cloud-controller",
    "disable-controller-manager",
    "disable-etcd",
    "disable-helm-controller",
    "disable-kube-proxy",
    "disable-network-policy",
    "disable-scheduler",
    "egress-selector-mode",
    "embedded-registry",
    "etcd-arg",
    "etcd-disable-snapshots",
    "etcd-expose-metrics",
    "etcd-s3",
    "etcd-s3-access-key",
    "etcd-s3-bucket",
    "etcd-s3-bucket-lookup-type",
    "etcd-s3-config-secret",
    "etcd-s3-endpoint",
    "etcd-s3-endpoint-ca",
    "etcd-s3-folder",
    "etcd-s3-insecure",
    "etcd-s3-proxy",
    "etcd-s3-region",
    "etcd-s3-retention",
    "etcd-s3-secret-key",
    "etcd-s3-session-token",
    "etcd-s3-skip-ssl-verify",
    "etcd-s3-timeout",
    "etcd-snapshot-compress",
    "etcd-snapshot-dir",
    "etcd-snapshot-name",
    "etcd-snapshot-reconcile-interval",
    "etcd-snapshot-retention",
    "etcd-snapshot-schedule-cron",
    "flannel-backend",
    "flannel-external-ip",
    "flannel-ipv6-masq",
    "helm-job-image",
    "https-listen-port",
    "kube-apiserver-arg",
    "kube-cloud-controller-manager-arg",
    "kube-controller-manager-arg",
    "kube-scheduler-arg",
    "kine-tls",
    "secrets-encryption",
    "secrets-encryption-provider",
    "service-cidr",
    "service-node-port-range",
    "servicelb-namespace",
    "supervisor-metrics",
    "system-default-registry",
    "tls-san",
    "tls-san-security",
    "write-kubeconfig",
    "write-kubeconfig-group",
    "write-kubeconfig-mode",
];

/// Servers and agents know these.
const BOTH: &[&str] = &[
    "airgap-extra-registry",
    "alsologtostderr",
    "bind-address",
    "config",
    "container-runtime-endpoint",
    "data-dir",
    "debug",
    "default-runtime",
    "disable-apiserver-lb",
    "disable-default-registry-endpoint",
    "docker",
    "enable-pprof",
    "flannel-cni-conf",
    "flannel-conf",
    "flannel-iface",
    "image-credential-provider-bin-dir",
    "image-credential-provider-config",
    "image-service-endpoint",
    "kube-proxy-arg",
    "kubelet-arg",
    "lb-server-port",
    "log",
    "node-external-dns",
    "node-external-ip",
    "node-internal-dns",
    "node-ip",
    "node-label",
    "node-name",
    "node-taint",
    "nonroot-devices",
    "pause-image",
    "prefer-bundled-bin",
    "private-registry",
    "protect-kernel-defaults",
    "resolv-conf",
    "rootless",
    "selinux",
    "server",
    "snapshotter",
    "token",
    "token-file",
    "v",
    "vmodule",
    "vpn-auth",
    "vpn-auth-file",
    "with-node-id",
];

/// Short options that have a long one.
const SHORT: &[(&str, &str)] = &[
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
    ("token", "p1 makes the token itself and keeps it in files that only root reads."),
    ("token-file", "p1 makes the token itself and keeps it in files that only root reads."),
    ("with-node-id", "p1 knows the nodes by the `name` that the spec gives them."),
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

/// The long name of a setting, without a `+` at its end.
pub(super) fn long(key: &str) -> &str {
    let key = key.strip_suffix('+').unwrap_or(key);
    SHORT.iter().find(|(short, _)| *short == key).map_or(key, |(_, long)| long)
}

/// Who takes a setting.
pub(super) fn taker(key: &str) -> Taker {
    match long(key) {
        key if SERVER.contains(&key) => Taker::Server,
        key if BOTH.contains(&key) => Taker::Both,
        _ => Taker::Unknown,
    }
}

/// Why a setting is not the spec's to make; `None` if it is.
pub(super) fn owned(key: &str) -> Option<&'static str> {
    OWNED.iter().find(|(owned, _)| *owned == long(key)).map(|(_, why)| *why)
}

/// All settings that the spec can make.
pub(super) fn all() -> impl Iterator<Item = &'static str> {
    SERVER.iter().chain(BOTH).copied().filter(|k| owned(k).is_none())
}
