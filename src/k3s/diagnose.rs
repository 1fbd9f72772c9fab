//! What the journal of a k3s unit means.
//!
//! A table of causes, the surest first. A line that also appears while a healthy node starts (a
//! server that does not answer yet) stands last, so that it counts only when nothing else does.

use std::collections::BTreeMap;

use crate::explain::{clipped, times};

/// Why a unit does not come up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Diagnosis {
    /// In one sentence, a lower-case fragment.
    pub cause: String,
    /// What to do, as full sentences.
    pub hint: String,
    /// The line that says so, as it was in the journal.
    pub line: String,
    /// False for what is also seen for a while when a healthy node starts.
    pub lasting: bool,
    /// Commands that lead on, in this order, where trying again alone does not.
    pub next: &'static [&'static str],
    /// What else would tell more, which whoever can ask the node finds out.
    pub fact: Option<Fact>,
}

/// Something about a cause that is not in the journal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fact {
    /// Who listens at this port of the node.
    Port(u16),
    /// Which other file on the node sets one of these keys; none of them stands for any.
    Settings(Vec<String>),
    /// How many of etcd's members answer.
    Members,
}

/// A line of a unit's journal.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Said {
    /// The start of the unit that it is of; empty where that is not known.
    pub invocation: String,
    pub text: String,
}

/// Any of `signs` in a line, and every one of `with` too.
struct Rule {
    signs: &'static [&'static str],
    with: &'static [&'static str],
    /// `{}` stands for the word after `word_after`.
    cause: &'static str,
    hint: &'static str,
    word_after: &'static str,
    lasting: bool,
    /// What would tell more.
    wants: Wants,
    next: &'static [&'static str],
}

/// A node that has to start over in its cluster.
const REINSTALL: &[&str] = &["p1 uninstall {node}", "p1 up"];

#[derive(Clone, Copy)]
enum Wants {
    Nothing,
    /// The port at the end of the word.
    Port,
    /// Another file that sets one of these; none of them stands for any.
    Settings(&'static [&'static str]),
    /// Another file that sets the flag that the line names after this.
    Flag(&'static str),
    Members,
}

const fn rule(signs: &'static [&'static str], cause: &'static str, hint: &'static str) -> Rule {
    Rule { signs, with: &[], cause, hint, word_after: "", lasting: true, wants: Wants::Nothing, next: &[] }
}

impl Rule {
    const fn with(mut self, with: &'static [&'static str]) -> Self {
        self.with = with;
        self
    }

    const fn passing(mut self) -> Self {
        self.lasting = false;
        self
    }

    const fn word_after(mut self, sign: &'static str) -> Self {
        self.word_after = sign;
        self
    }

    const fn next(mut self, commands: &'static [&'static str]) -> Self {
        self.next = commands;
        self
    }

    const fn wants(mut self, wants: Wants) -> Self {
        self.wants = wants;
        self
    }

    fn matches(&self, line: &str) -> bool {
        self.signs.iter().any(|s| line.contains(s)) && self.with.iter().all(|s| line.contains(s))
    }

    fn word<'a>(&self, line: &'a str) -> &'a str {
        let rest = line.split_once(self.word_after).map_or("", |(_, rest)| rest);
        let end = rest.find(|c: char| c.is_whitespace() || "\"'\\,;".contains(c)).unwrap_or(rest.len());
        let word = rest[..end].trim_end_matches(':');
        if word.is_empty() { "?" } else { word }
    }
}

/// The most likely cause that the lines of a unit's journal show, oldest line first; `None` when
/// they show none that p1 knows. `systemd`'s and the kernel's own lines help where they are included.
pub fn diagnose(lines: &[String]) -> Option<Diagnosis> {
    RULES.iter().find_map(|rule| {
        let line = lines.iter().rev().find(|l| rule.matches(l))?;
        Some(Diagnosis {
            cause: rule.cause.replace("{}", rule.word(line)),
            hint: rule.hint.to_owned(),
            line: line.clone(),
            lasting: rule.lasting,
            next: rule.next,
            fact: match rule.wants {
                Wants::Nothing => None,
                Wants::Port => {
                    rule.word(line).rsplit(':').next().and_then(|p| p.parse().ok()).map(Fact::Port)
                }
                Wants::Members => Some(Fact::Members),
                Wants::Settings(keys) => Some(Fact::Settings(keys.iter().map(|k| (*k).to_owned()).collect())),
                Wants::Flag(sign) => {
                    let flag = line.split_once(sign).map_or("", |(_, rest)| rest);
                    let end = flag.find(|c: char| !(c.is_ascii_alphanumeric() || c == '-'));
                    Some(Fact::Settings(vec![flag[..end.unwrap_or(flag.len())].to_owned()]))
                }
            },
        })
    })
}

/// systemd's words of the end of a unit's process. k3s of 1.36 ends itself without an exit code where its kubelet failed.
const EXITS: [&str; 2] = ["Main process exited", ".service: Deactivated successfully"];
/// As much as is shown of a journal.
const SHOWN: usize = 12;
/// A line of etcd's or of the API server's may fill a screen.
const LONGEST: usize = 300;

/// What one start of a unit said, oldest line first: the start that ended last, if the unit ended, else the
/// newest one. `before` is the invocation of a start that counts no more.
pub fn one_start(lines: &[Said], ended: bool, before: &str) -> Vec<String> {
    // What has no invocation, such as the kernel's words, stands among the lines of one.
    let mut of: Vec<(&str, &str)> = Vec::new();
    for line in lines {
        let last = of.last().map_or("", |(invocation, _)| invocation);
        let own = if line.invocation.is_empty() { last } else { &line.invocation };
        of.push((own, &line.text));
    }
    of.retain(|(own, _)| before.is_empty() || *own != before);
    let end = of.iter().rposition(|(_, text)| is_exit(text)).filter(|_| ended);
    let Some((start, _)) = end.map(|at| of[at]).or(of.last().copied()) else { return Vec::new() };
    let mut lines: Vec<String> =
        of.iter().filter(|(own, _)| *own == start).map(|(_, text)| (*text).to_owned()).collect();
    // That a process ended is systemd's word, which may come before what the process said last.
    if !start.is_empty()
        && let Some(exit) = lines.iter().rposition(|l| is_exit(l))
        && let Some(last) = lines.iter().rposition(|l| !is_systemds(l)).filter(|last| *last > exit)
    {
        lines[exit..=last].rotate_left(1);
    }
    lines
}

/// The lines up to the last end of a unit's process, without those up to the end before.
fn last_attempt(lines: &[String]) -> &[String] {
    let Some(end) = lines.iter().rposition(|l| is_exit(l)) else { return lines };
    let begin = lines[..end].iter().rposition(|l| is_exit(l)).map_or(0, |at| at + 1);
    &lines[begin..=end]
}

/// The lines of a journal that are worth showing, oldest first: what was called an error, and the last
/// ones, each that is said again and again once, with how often. Those of a unit that keeps crashing
/// (`ended`) count only up to its last end: what comes after is the next attempt, which has not failed yet.
pub fn telling(lines: &[String], ended: bool) -> Vec<String> {
    let lines = if ended { last_attempt(lines) } else { lines };
    // By what they say: how often, and where last.
    let mut known: BTreeMap<String, (u32, usize)> = BTreeMap::new();
    for (at, line) in lines.iter().enumerate().filter(|(_, line)| !line.trim().is_empty()) {
        let (count, last) = known.entry(saying(line)).or_default();
        (*count, *last) = (*count + 1, at);
    }
    let mut all: Vec<(usize, u32)> = known.into_values().map(|(count, last)| (last, count)).collect();
    all.sort_unstable();
    let newest = all.split_off(all.len().saturating_sub(SHOWN / 2));
    let mut shown: Vec<_> = all.into_iter().filter(|(at, _)| is_error(&lines[*at])).collect();
    shown.drain(..shown.len().saturating_sub(SHOWN / 2));
    shown.extend(newest);
    let told = |(at, count): (usize, u32)| {
        let line = clipped(&lines[at], LONGEST);
        if count > 1 { format!("{line} ({})", times(count)) } else { line }
    };
    shown.into_iter().map(told).collect()
}

/// What a line says, for comparing: without the port that a connection happened to come from.
fn saying(line: &str) -> String {
    let text = message(line);
    let mut parts = text.split("->");
    let mut out = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let kept = out.trim_end_matches(|c: char| c.is_ascii_digit()).len();
        if out[..kept].ends_with(':') {
            out.truncate(kept);
        }
        out = format!("{out}->{part}");
    }
    out
}

/// The error with which a unit's process last ended, in its own words; `None` if it named none. What ends a
/// process is the last thing that it says: a fatal line, an error, or words without any level.
pub fn last_words(lines: &[String]) -> Option<String> {
    let attempt = last_attempt(lines);
    let own: Vec<&String> = attempt.iter().rev().filter(|l| !is_systemds(l)).take(SHOWN).collect();
    let fatal = || own.iter().find(|l| is_fatal(l));
    let error = || own.iter().find(|l| is_error(l));
    let plain = || own.first().filter(|l| ends(attempt) && is_plain(l));
    let words = fatal().or_else(error).or_else(plain)?;
    Some(clipped(message(words), LONGEST)).filter(|words| !words.is_empty())
}

fn is_exit(line: &str) -> bool {
    EXITS.iter().any(|sign| line.contains(sign))
}

fn ends(lines: &[String]) -> bool {
    lines.last().is_some_and(|l| is_exit(l))
}

/// systemd's lines of a unit begin with its name, or with what is done to it.
fn is_systemds(line: &str) -> bool {
    let begins = ["Starting ", "Started ", "Stopping ", "Stopped ", "Failed to start "];
    line.split_once(": ").is_some_and(|(unit, _)| unit.ends_with(".service") && !unit.contains(' '))
        || begins.iter().any(|word| line.starts_with(word))
}

/// Without any program's mark of how much it matters: a shell's words, a usage.
fn is_plain(line: &str) -> bool {
    let klog = line.strip_prefix(['I', 'W']).and_then(|r| r.get(..4));
    !line.contains("level=")
        && !line.trim_start().starts_with('{')
        && !klog.is_some_and(|digits| digits.bytes().all(|b| b.is_ascii_digit()))
        && !line.trim().is_empty()
}

/// What ends a process by itself.
fn is_fatal(line: &str) -> bool {
    ["level=fatal", "\"level\":\"fatal\"", "level=error msg=\"Shutdown request received: "]
        .iter()
        .any(|s| line.contains(s))
        || ["panic: ", "fatal error: "].iter().any(|s| line.starts_with(s))
        || line
            .strip_prefix('F')
            .and_then(|r| r.get(..4))
            .is_some_and(|d| d.bytes().all(|b| b.is_ascii_digit()))
}

/// Errors in the words of k3s and containerd (logrus), of Kubernetes (klog: a letter and the date), of etcd
/// (zap) and of Go's runtime.
fn is_error(line: &str) -> bool {
    let klog = |line: &str| {
        let rest = line.strip_prefix(['E', 'F'])?.get(..4)?;
        Some(rest.bytes().all(|b| b.is_ascii_digit()))
    };
    is_fatal(line)
        || ["level=error", "\"level\":\"error\""].iter().any(|s| line.contains(s))
        || klog(line).unwrap_or(false)
}

/// What a line says, without when and where: logrus' `msg`, klog's `err` or what follows its place.
fn message(line: &str) -> &str {
    let quoted = |key: &str| {
        let rest = line.split_once(key)?.1.strip_prefix('"')?;
        let end = rest.char_indices().find(|&(at, c)| c == '"' && !rest[..at].ends_with('\\'))?.0;
        Some(&rest[..end])
    };
    let place = || line.split_once("] ").map(|(_, rest)| rest);
    quoted(" err=").or_else(|| quoted(" msg=")).or_else(place).unwrap_or(line).trim()
}

const CLOCK: &str = "Set the clocks of host and nodes right (`p1 exec -- date -u` shows them), for instance \
                     with systemd-timesyncd or chrony.";

/// Keys of k3s and variables of its environment that say the same.
const TOKENS: &[&str] =
    &["token", "agent-token", "token-file", "agent-token-file", "K3S_TOKEN", "K3S_TOKEN_FILE"];
const SERVERS: &[&str] = &["server", "K3S_URL", "token", "K3S_TOKEN"];
const NAMES: &[&str] = &["node-name", "with-node-id", "K3S_NODE_NAME"];
const CARDS: &[&str] = &["flannel-iface", "node-ip", "node-external-ip", "advertise-address", "bind-address"];

const RULES: &[Rule] = &[
    // The binary does not run at all. systemd.exec(5), "Process Exit Codes": 203 is EXIT_EXEC.
    rule(
        &["Exec format error", "cannot execute binary file"],
        "the k3s binary is for another processor architecture",
        "Give `k3s.artifacts.binary` a binary for the nodes' architecture, or leave it out.",
    ),
    // k3s-io/k3s#4643.
    rule(
        &["status=4/ILL", "Illegal instruction", "SIGILL: illegal instruction"],
        "the k3s binary uses instructions that this processor lacks",
        "Use another k3s version. With KVM the machines have this host's processor, under emulation an older one; \
         `p1 doctor` says which it is.",
    ),
    rule(
        &["status=203/EXEC", "Failed at step EXEC spawning"],
        "systemd cannot execute the k3s binary",
        "Look at its mode and at SELinux: `p1 exec {node} -- ls -lZ /usr/local/bin/k3s`.",
    ),
    // Go's runtime; the trace behind it is longer than the evidence. Seen on a real k3s that a newer Go
    // had built than its libraries knew.
    rule(
        &["panic: runtime error: ", "fatal error: concurrent map "],
        "k3s crashed by a defect of its own",
        "Its journal has the whole trace. Another version may not have the defect (`k3s.version`), or another build \
         (`k3s.artifacts.binary`).",
    ),
    // The configuration. urfave/cli, `flag.ErrHelp` and friends; k3s-io/k3s#9598.
    rule(
        &["flag provided but not defined: "],
        "k3s does not know the configuration key `{}`",
        "Look at the spelling under `k3s.config`, `server_config` and `worker_config`: workers know fewer keys \
         than servers, and some keys need a newer k3s.",
    )
    .word_after("flag provided but not defined: -").wants(Wants::Flag("flag provided but not defined: -")),
    rule(
        &["invalid value \""],
        "k3s does not accept a value in its configuration",
        "The line says which flag; the key of the same name in the spec's config has to be changed.",
    )
    .with(&["for flag"]).wants(Wants::Flag("for flag -")),
    // k3s-io/k3s#7932.
    rule(
        &["yaml: line ", "yaml: unmarshal errors", "yaml: did not find"],
        "a YAML file of k3s on the node cannot be read",
        "`p1 exec {node} --root -- 'tail -n +1 /etc/rancher/k3s/*.yaml /etc/rancher/k3s/config.yaml.d/*'` shows them.",
    ).wants(Wants::Settings(&[])),
    rule(
        &["critical configuration value mismatch"],
        "this server's configuration differs from the first server's where it must not",
        "Keep cluster-wide keys under `k3s.config` or `server_config`, not on single nodes.",
    ).wants(Wants::Settings(&[])),
    // Several servers. pkg/etcd/etcd.go: `Join`, `clientURLs`, `manageLearners`; etcd's
    // api/v3rpc/rpctypes/error.go.
    rule(
        &["this server is a not a member of the etcd cluster", "the member has been permanently removed"],
        "this server was taken out of the etcd cluster",
        "What it has of the cluster is no longer good: `p1 uninstall {node}` removes it, then `p1 up` lets it join again.",
    )
    .next(REINSTALL),
    rule(
        &["duplicate node name found", "Peer URLs already exists", "member already exists"],
        "etcd still has a member from a machine that had this server's name or address before",
        "It goes with its Node object, some seconds later: `p1 kubectl -- delete node {node}`.",
    ).passing(),
    rule(
        &["it has to be restarted with --cluster-init", "cluster join failed: invalid URL"],
        "the server to join keeps its state in SQLite",
        "It has to be restarted with etcd first, which a run for all nodes does.",
    ),
    rule(
        &["membership was already reset to this node"],
        "an etcd reset was begun on this server and not followed by an ordinary start",
        "If another reset is meant: `p1 exec {node} --root -- rm /var/lib/rancher/k3s/server/db/reset-flag`.",
    ),
    rule(
        &["database space exceeded"],
        "etcd's database has reached its quota and accepts no writes",
        "Compact and defragment it, or give etcd a larger one: `etcd-arg: [quota-backend-bytes=8589934592]`.",
    ),
    rule(
        &["too many learner members", "Waiting for other members to finish joining etcd cluster"],
        "another server is still joining etcd",
        "Servers join one after the other; see with `p1 status` which one does not get on.",
    ).passing(),
    // The machine.
    rule(
        &["no space left on device", "No space left on device", "database or disk is full"],
        "the node's disk is full",
        "Free some space (`p1 exec {node} -- df -h` shows where it went), or use a box with a larger disk.",
    ),
    // systemd's and the kernel's words, kernel/mm/oom_kill.c.
    rule(
        &["oom-kill", "OOM killer", "Out of memory: Killed process", "invoked oom-killer"],
        "the node ran out of memory",
        "Give it more `memory`: k3s wants 2048 MiB on a server and 512 MiB on a worker.",
    ),
    // pkg/agent/run.go, `validateCgroupsV1` and `V2`; k3s-io/k3s#10755.
    rule(
        &["ailed to find memory cgroup", "ailed to find cpu cgroup", "ailed to find cpuset cgroup (v2)"],
        "the kernel's memory or CPU control groups are off",
        "Boot the node with `cgroup_memory=1 cgroup_enable=memory` on the kernel's command line.",
    ),
    // kubelet with protect-kernel-defaults, kubernetes pkg/kubelet/cm.
    rule(
        &["invalid kernel flag"],
        "kernel settings are not what `protect-kernel-defaults` asks for",
        "Set vm.panic_on_oom=0, vm.overcommit_memory=1, kernel.panic=10 and kernel.panic_on_oops=1 by a file in \
         /etc/sysctl.d, or leave the key out.",
    ),
    // pkg/containerd checks before it starts; k3s-io/k3s#5986.
    rule(
        &["snapshotter cannot be enabled"],
        "the node's filesystem cannot hold containers' layers",
        "Use a box with ext4, or xfs made with ftype=1; or set `snapshotter: native` in the config.",
    ),
    // Network cards and addresses. apimachinery `pkg/util/net`, k3s-io/k3s#1103 and #1144.
    rule(
        &[
            "no default routes found",
            "failed to get default interface",
            "nable to find default route",
            "unable to select an IP from default routes",
        ],
        "the node has no default route, which k3s needs even without internet",
        "Give the network a gateway, or the node a dummy interface with a default route \
         (docs.k3s.io/installation/airgap).",
    ),
    // pkg/agent/config/config.go; k3s-io/k3s#8345 for the newer words.
    rule(
        &["no such network interface", "does not have a correct global unicast ip", "can't find ip for interface"],
        "the network interface that flannel is to use does not exist, or has no address",
        "`p1 exec {node} -- ip -br addr` shows its interfaces. Without `flannel-iface` in the spec p1 takes the one with the \
         node's address.",
    ).wants(Wants::Settings(CARDS)),
    rule(
        &["failed to find IPv4 address for interface"],
        "the network interface {} has no IPv4 address",
        "`p1 exec {node} -- ip -br addr` shows its interfaces; `p1 stop {node}`, then `p1 up`, restarts the machine.",
    )
    .word_after("address for interface "),
    // k3s-io/k3s#5973.
    rule(
        &["bind: address already in use"],
        "an address that k3s listens on ({}) is in use by another program",
        "Stop it, or give it another port (`p1 exec {node} --root -- ss -ltnp` shows all that listen); a k3s that was started \
         by hand is stopped by `p1 killall {node}`.",
    )
    .with(&["listen tcp "])
    .word_after("listen tcp ")
    .wants(Wants::Port),
    // What was there before. pkg/cluster/storage.go; k3s-io/k3s#4640.
    rule(
        &["encrypted with different token", "cipher: message authentication failed"],
        "the server's datastore belongs to a cluster with another token",
        "Its data is of an earlier cluster. To keep it, give that cluster's token: `k3s.token` in the spec. To start over: what is on the servers goes with `p1 uninstall`; a datastore of your own (`datastore-endpoint`) is not \
         touched by that, and has to be emptied by its own tools.",
    ),
    // pkg/clientaccess/token.go, `validateCAHash`.
    rule(
        &["token CA hash does not match"],
        "the node's token belongs to a server with another certificate authority",
        "The server was recreated since, or another file on the node names another token: `p1 exec {node} --root -- grep -r token \
         /etc/rancher/k3s /etc/default` shows which do.",
    ).wants(Wants::Settings(TOKENS)),
    // pkg/agent/config/config.go, `getNodeNamedCrt` (HTTP 403) and pkg/nodepassword.
    rule(
        &["Node password rejected", "ode password validation failed", "unable to verify password for node"],
        "the server knows another machine by this node's name",
        "If the VM was recreated, forget the old one: `p1 kubectl -- delete node {node}` and `p1 kubectl -- -n \
         kube-system delete secret {node}.node-password.k3s`. Otherwise two machines have one name.",
    ).wants(Wants::Settings(NAMES)),
    // Go's crypto/x509; k3s-io/k3s#6152 (before) and #5163 (after).
    rule(&["ertificate has expired or is not yet valid"], "the node's clock is behind: a certificate is not valid yet", CLOCK)
        .with(&[" is before "]),
    rule(
        &["ertificate has expired or is not yet valid"],
        "a certificate has expired, or the node's clock is ahead",
        "If `p1 exec {node} -- date -u` shows the right time, restart k3s on the servers: it renews what expires within \
         90 days.",
    ),
    // pkg/cli/cmds/log.go, `checkUnixTimestamp`.
    rule(&["server time isn't set properly"], "the node's clock is not set", CLOCK),
    // Containers. k3s-io/k3s#3406; `github.com/containerd/containerd/contrib/apparmor`.
    rule(
        &["apparmor_parser"],
        "the kernel has AppArmor enabled but the node lacks apparmor_parser, so no container starts",
        "Install the package `apparmor` (openSUSE: `apparmor-parser`) on the node.",
    )
    .with(&["not found"]),
    // Who may join. pkg/clientaccess, pkg/server/auth.go.
    rule(
        &["/cacerts: 4", "/cacerts: 5"],
        "what answers at the server's address is not a k3s server, or not one that is ready",
        "Look for a proxy or another program at that address and port.",
    ).passing(),
    rule(
        &["not authorized", "401 Unauthorized", "/config: 403 Forbidden", "failed to validate token", "invalid token"],
        "the server rejects the token",
        "The node's token is not this cluster's, which another file on it may have brought: `p1 exec {node} --root -- grep -r token \
         /etc/rancher/k3s /etc/default` shows which.",
    ).wants(Wants::Settings(TOKENS)),
    rule(
        &["certificate signed by unknown authority"],
        "the node trusts the certificate authority of another cluster",
        "It was part of an earlier cluster: `p1 uninstall {node}`, then `p1 up`.",
    )
    .wants(Wants::Settings(SERVERS))
    .next(REINSTALL),
    // github.com/k3s-io/kine; transient under load, see k3s-io/k3s#8234.
    rule(
        &["database is locked"],
        "the server's SQLite datastore is locked, by another process or by a disk too slow",
        "Make sure that one k3s only runs on the server; `p1 killall {node}` ends them all.",
    ).passing(),
    // Seen for a while at every start of a worker, hence last. k3s-io/k3s#9343.
    rule(
        &["connection refused", "no route to host", "i/o timeout", "deadline exceeded", "connection reset by peer", "EOF"],
        "the node cannot reach the server's API",
        "See whether the server is up (`p1 status`) and whether a firewall on it closes port 6443/tcp.",
    )
    .with(&["/cacerts"]).passing().wants(Wants::Settings(SERVERS)),
    // Seen while the servers of a cluster start together.
    rule(
        &["etcdserver: no leader", "etcdserver: request timed out", "etcd alarm list failed"],
        "too few servers run for etcd: it needs more than half of them",
        "`p1 status` shows which are down; `p1 start` starts them.",
    ).passing().wants(Wants::Members),
    rule(
        &["network is unreachable", "no route to host"],
        "the node has no way to another node's address",
        "See whether its card on the private network has its address: `p1 exec {node} -- ip -br addr`.",
    ).passing(),
    // The unit runs modprobe and goes on without it, where the module is built in too: it keeps no k3s from starting by itself,
    // and whatever else is said is surer; k3s-io/k3s#5986.
    rule(
        &["Module br_netfilter not found", "Module overlay not found"],
        "the kernel lacks a module that k3s needs (br_netfilter, overlay)",
        "Install the kernel's modules package for the running kernel (kernel-modules-extra, linux-modules-extra), \
         or reboot after a kernel update.",
    )
    .with(&["FATAL"]).passing(),
];

#[cfg(test)]
mod tests {
    use super::*;

    /// One line each, as the sources above have them.
    const SEEN: &[&str] = &[
        "k3s.service: Failed to execute /usr/local/bin/k3s: Exec format error",
        "k3s.service: Main process exited, code=dumped, status=4/ILL",
        "k3s.service: Main process exited, code=exited, status=203/EXEC",
        "Incorrect Usage: flag provided but not defined: -system-default-registry",
        r#"level=fatal msg="flag provided but not defined: -colour""#,
        r#"level=fatal msg="yaml: line 9: could not find expected ':'""#,
        r#"level=error msg="write /var/lib/rancher/k3s/x: no space left on device""#,
        "k3s.service: A process of this unit has been killed by the OOM killer.",
        r#"level=fatal msg="failed to find memory cgroup (v2)""#,
        r#"level=fatal msg="no default routes found in \"/proc/net/route\" or \"/proc/net/ipv6_route\"""#,
        r#"level=info msg="Waiting to retrieve agent configuration; server is not ready: unable to find interface: route ip+net: no such network interface""#,
        r#"level=fatal msg="flannel exited: failed to find IPv4 address for interface eth1""#,
        r#"level=fatal msg="starting kubernetes: preparing server: listen tcp :6443: bind: address already in use""#,
        r#"level=fatal msg="starting kubernetes: preparing server: bootstrap data already found and encrypted with different token""#,
        r#"level=error msg="token CA hash does not match the Cluster CA certificate hash: f0 != 8e""#,
        r#"level=error msg="Failed to configure agent: Node password rejected, duplicate hostname or contents of '/etc/rancher/node/password' may not match server node-passwd entry""#,
        r#"level=error msg="CA cert validation failed: Get \"https://127.0.0.1:6443/cacerts\": x509: certificate has expired or is not yet valid: current time 2022-10-30T00:11:50Z is before 2022-10-31T22:37:33Z""#,
        r#"x509: certificate has expired or is not yet valid: current time 2024-10-30T00:11:50Z is after 2023-10-31T22:37:33Z"#,
        r#"err="failed to create containerd container: get apparmor_parser version: exec: \"apparmor_parser\": executable file not found in $PATH""#,
        "modprobe: FATAL: Module br_netfilter not found in directory /lib/modules/6.1.0",
        r#"level=info msg="Waiting to retrieve agent configuration; server is not ready: failed to retrieve configuration from server: not authorized""#,
        r#"level=error msg="Failed to configure agent: failed to retrieve configuration from server: https://127.0.0.1:6444/v1-k3s/config: 401 Unauthorized""#,
        r#"level=error msg="failed to get CA certs: https://127.0.0.1:6444/cacerts: 401 Unauthorized""#,
        r#"err="[invalid kernel flag: vm/overcommit_memory, expected value: 1, actual value: 0]""#,
        r#"level=error msg="tls: failed to verify certificate: x509: certificate signed by unknown authority""#,
        r#"level=error msg="error in txn: database is locked""#,
        r#"level=fatal msg="failed to get CA certs: Get \"https://10.0.0.1:6443/cacerts\": dial tcp 10.0.0.1:6443: connect: connection refused""#,
        r#"level=fatal msg="this server is a not a member of the etcd cluster. Found [server-1-3e], expect: server-2-9f""#,
        r#"level=fatal msg="starting kubernetes: preparing server: start managed database: etcd cluster join failed: duplicate node name found, please use a unique name for this node""#,
        r#"level=info msg="Waiting for other members to finish joining etcd cluster: etcdserver: too many learner members in cluster""#,
        r#"level=info msg="Failed to test data store connection: failed to get etcd status: rpc error: code = Unavailable desc = etcdserver: no leader""#,
        r#"level=fatal msg="starting kubernetes: preparing server: failed to validate server configuration: critical configuration value mismatch between servers: ClusterDNS""#,
        "panic: runtime error: invalid memory address or nil pointer dereference",
    ];

    #[test]
    fn each_known_line_has_its_cause() {
        let mut out = String::new();
        for line in SEEN {
            let found = diagnose(&[(*line).to_owned()]).unwrap_or_else(|| panic!("{line}"));
            out.push_str(&format!("{line}\n  => {}\n", found.cause));
        }
        insta::assert_snapshot!(out);
    }

    /// A kubelet's end, as a server of v1.21 wrote it.
    fn kubelet() -> Vec<String> {
        let mut lines: Vec<String> =
            (0..40).map(|n| format!("I1126 10:11:20.30{n:04}     714 x.go:{n}] \"Well\"")).collect();
        lines.extend(
            [
                r#"E1126 10:11:20.300100     714 a.go:1] "Cannot" err="a \"b\" c""#,
                r#"E1126 10:11:20.300200     714 a.go:1] "Cannot" err="a \"b\" c""#,
                r#"I1126 10:11:20.374400     714 kubelet.go:404] "Attempting to sync node with API server""#,
                r#"I1126 10:11:20.374400     714 kubelet.go:405] "b""#,
                r#"I1126 10:11:20.374400     714 kubelet.go:406] "c""#,
                r#"I1126 10:11:20.374400     714 kubelet.go:407] "d""#,
                r#"E1126 10:11:20.374460     714 server.go:288] "Failed to run kubelet" err="failed to run Kubelet: failed to create kubelet: open /dev/kmsg: no such file or directory""#,
                "k3s.service: Main process exited, code=exited, status=1/FAILURE",
            ]
            .map(str::to_owned),
        );
        lines.extend(
            (0..60).map(|n| format!("{{\"level\":\"info\",\"n\":{n},\"long\":\"{}\"}}", "x".repeat(900))),
        );
        lines
    }

    #[test]
    fn the_last_end_is_told_in_its_own_words() {
        let lines = kubelet();
        let why =
            "failed to run Kubelet: failed to create kubelet: open /dev/kmsg: no such file or directory";
        assert_eq!(last_words(&lines).as_deref(), Some(why));
        assert_eq!(last_words(&["all is well".to_owned()]), None);
        let fatal = r#"time="2026-11-26T10:11:20Z" level=fatal msg="starting \"x\": no""#.to_owned();
        assert_eq!(last_words(&[fatal]).as_deref(), Some(r#"starting \"x\": no"#));
        // As a server of v1.36 went, which systemd holds for an end like any other; twice.
        let gone = [
            r#"level=info msg="Starting k3s v1.36.3+k3s1 (66a14f0e)""#,
            r#"level=error msg="Shutdown request received: \"kubelet exited: open /dev/kmsg: no such file or directory\"""#,
            r#"level=error msg="Failed to migrate node-password secrets: context canceled""#,
            "k3s.service: Deactivated successfully.",
            r#"level=info msg="Starting k3s v1.36.3+k3s1 (66a14f0e)""#,
            r#"level=error msg="Sending HTTP/1.1 503 response to 10.0.0.2:34788: runtime core not ready""#,
        ];
        let said = |(at, text): (usize, &&str)| Said {
            invocation: if at < 4 { "one" } else { "two" }.into(),
            text: (*text).into(),
        };
        let ended = one_start(&gone.iter().enumerate().map(said).collect::<Vec<_>>(), true, "");
        assert_eq!(ended, gone[..4]);
        let why =
            r#"Shutdown request received: \"kubelet exited: open /dev/kmsg: no such file or directory\""#;
        assert_eq!(last_words(&ended).as_deref(), Some(why));
    }

    #[test]
    fn only_what_one_start_said_counts_and_what_ended_it_is_the_cause() {
        let said = |invocation: &str, text: &str| Said { invocation: invocation.into(), text: text.into() };
        let exit = "k3s.service: Main process exited, code=exited, status=1/FAILURE";
        let lines = [
            said("before", r#"level=fatal msg="flag provided but not defined: -old""#),
            said("before", exit),
            said("one", "Starting k3s.service - Lightweight Kubernetes..."),
            said("one", r#"level=fatal msg="no default routes found""#),
            said("one", exit),
            said("two", r#"level=info msg="Starting k3s v1.34.1+k3s1""#),
            // The kernel's word.
            said("", "oom-kill: no, only a word between"),
            said(
                "two",
                r#"E1126 10:11:20.374460     714 server.go:288] "Failed to run kubelet" err="open /dev/kmsg: no""#,
            ),
            said("two", exit),
            said("three", r#"level=info msg="Starting k3s v1.34.1+k3s1""#),
        ];
        let ended = one_start(&lines, true, "before");
        assert_eq!(ended.len(), 4, "{ended:#?}");
        assert_eq!(last_words(&ended).unwrap(), "open /dev/kmsg: no");
        assert_eq!(one_start(&lines, false, "before"), [lines[9].text.clone()]);
        // What the process said last may come after systemd's word of its end.
        let at = lines.iter().position(|l| l.text.contains("kmsg: no")).unwrap();
        let mut late = lines.clone();
        late.swap(at, at + 1);
        assert_eq!(one_start(&late, true, "before"), ended);
        // Nothing of the run before, also where this one has said nothing yet.
        assert_eq!(one_start(&lines[..2], true, "before"), [""; 0]);
        assert_eq!(one_start(&lines[..2], false, "before"), [""; 0]);
        // Where no line says which start it is of, those between two ends are one.
        let bare: Vec<String> = lines.iter().map(|l| l.text.clone()).collect();
        assert_eq!(last_words(&bare).unwrap(), "open /dev/kmsg: no");
        assert!(
            !telling(&bare, true).iter().any(|l| l.contains("default routes")),
            "{:#?}",
            telling(&bare, true)
        );
        // A shell's last word has no level.
        let shell = ["level=info msg=a", "/usr/local/bin/k3s: 3: exec: not found", exit].map(str::to_owned);
        assert_eq!(last_words(&shell).unwrap(), "/usr/local/bin/k3s: 3: exec: not found");
        let informed = [r#"level=info msg="all is well""#, exit].map(str::to_owned);
        assert_eq!(last_words(&informed), None);
    }

    #[test]
    fn what_is_said_again_and_again_is_shown_once_with_its_count() {
        let line = |n: u32| {
            format!(
                r#"time="2026-11-26T10:11:{n}Z" level=error msg="read tcp 10.0.0.2:{}->10.0.0.1:6443: reset""#,
                40_000 + n
            )
        };
        let mut lines: Vec<String> = (10..40).map(line).collect();
        lines.push("other".into());
        let shown = telling(&lines, false);
        assert_eq!(shown.len(), 2, "{shown:#?}");
        assert!(shown[0].contains("10:11:39Z") && shown[0].ends_with("(30 times)"), "{shown:#?}");
        // Another peer is another line.
        let other = line(50).replace("10.0.0.1:", "10.0.0.3:");
        assert_eq!(telling(&[lines, vec![other]].concat(), false).len(), 3);
    }

    #[test]
    fn what_is_shown_of_a_journal_has_the_error_and_an_end() {
        let lines = kubelet();
        let shown = telling(&lines, true);
        assert!(
            shown.last().unwrap().contains(EXITS[0]) && shown.iter().any(|l| l.contains("/dev/kmsg")),
            "{shown:#?}"
        );
        let cannot: Vec<_> = shown.iter().filter(|l| l.contains("Cannot")).collect();
        assert!(cannot.len() == 1 && cannot[0].ends_with("(twice)"), "{shown:#?}");
        // Also where the last lines say it again.
        let twice = [lines.clone(), lines[40..48].to_vec()].concat();
        let shown = telling(&twice, true);
        assert_eq!(shown.iter().filter(|l| l.contains("/dev/kmsg")).count(), 1, "{shown:#?}");
        // Of one that still runs the newest lines count, the errors before them too.
        let shown = telling(&lines, false);
        assert!(
            shown.iter().any(|l| l.contains("/dev/kmsg")) && shown.last().unwrap().contains("\"n\":59"),
            "{shown:#?}"
        );
        assert!(shown.len() <= SHOWN && shown.iter().all(|l| l.chars().count() <= LONGEST + 1));
    }

    #[test]
    fn what_a_healthy_start_says_too_ends_no_wait() {
        let lasting = |line: &str| diagnose(&[line.to_owned()]).unwrap().lasting;
        // modprobe's word of a module that is built in is the same as of one that is missing.
        assert!(!lasting("modprobe: FATAL: Module overlay not found in directory /lib/modules/6.1.0"));
        assert!(lasting("k3s.service: Failed to execute /usr/local/bin/k3s: Exec format error"));
    }

    #[test]
    fn every_hint_is_sentences_and_every_cause_a_fragment() {
        for rule in RULES {
            assert!(rule.hint.ends_with('.') && !rule.hint.contains("  "), "{}", rule.hint);
            assert!(rule.cause.starts_with(|c: char| c.is_lowercase()), "{}", rule.cause);
            assert_eq!(rule.cause.contains("{}"), !rule.word_after.is_empty(), "{}", rule.cause);
        }
    }

    #[test]
    fn what_would_tell_more_is_named_with_the_cause() {
        let fact = |line: &str| diagnose(&[line.to_owned()]).unwrap().fact;
        let settings = |keys: &[&str]| Some(Fact::Settings(keys.iter().map(|k| (*k).to_owned()).collect()));
        assert_eq!(fact(SEEN[4]), settings(&["colour"]));
        assert_eq!(fact(r#"invalid value "x" for flag -node-ip: bad"#), settings(&["node-ip"]));
        assert_eq!(fact(SEEN[12]), Some(Fact::Port(6443)));
        assert_eq!(fact(SEEN[20]), settings(TOKENS));
        assert_eq!(fact(SEEN[30]), Some(Fact::Members));
        assert_eq!(fact(SEEN[6]), None);
    }

    #[test]
    fn a_sure_sign_beats_a_later_passing_one_and_health_has_none() {
        let lines: Vec<String> = [SEEN[20], SEEN[26], "anything"].map(str::to_owned).into();
        assert_eq!(diagnose(&lines).unwrap().line, SEEN[20]);
        let healthy = [
            "sh[24464]: + /usr/bin/systemctl is-enabled --quiet nm-cloud-setup.service",
            r#"level=info msg="Starting k3s v1.28.6+k3s1 (39a00015)""#,
            r#"level=warning msg="Failed to load kernel module nft-expr-counter with modprobe""#,
            r#"level=info msg="Waiting for cloud-controller-manager privileges to become available""#,
        ];
        assert_eq!(diagnose(&healthy.map(str::to_owned)), None);
    }
}
