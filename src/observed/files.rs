//! k3s' files on a node as the spec wants them, and the digests by which the node notes what it has.

use super::{found, holds};
use crate::plan::Check;
use sha2::{Digest, Sha256};

use super::View;
use crate::guest::{self, NodeFacts};
use crate::k3s::{self, Tokens};
use crate::machines::FileDisk;
use crate::os::hash::{self, hex};
use crate::spec::Node;

/// k3s' files on a disk that machines can be given.
#[derive(Debug)]
pub struct OnDisk {
    pub disk: FileDisk,
    /// The SHA-256 of each file, in the order in which they are on it.
    pub sums: Vec<String>,
}

impl OnDisk {
    /// Where the file of that SHA-256 begins, MiB.
    pub fn start(&self, sha256: &str) -> Option<u64> {
        let at = self.sums.iter().position(|sum| sum == sha256)?;
        self.disk.starts.get(at).copied()
    }
}

/// The installer on a node.
pub const INSTALLER: &str = "/var/lib/p1/install.sh";

/// The node's files: path and text; no text means that there must be none.
pub fn files(
    view: &View<'_>,
    node: &Node,
    facts: &NodeFacts,
    tokens: &Tokens,
) -> [(String, Option<String>); 3] {
    let iface = facts.interface_of(node.ip).unwrap_or_default();
    let service = guest::of(Some(facts)).service();
    let config = k3s::config_yaml(view.cluster, node, iface, tokens, &view.join(node));
    [
        (k3s::CONFIG_PATH.to_owned(), Some(config)),
        (k3s::REGISTRIES_PATH.to_owned(), k3s::registries_yaml(view.cluster)),
        (environment(facts, node), k3s::environment_file(view.cluster).map(|text| service.variables(text))),
    ]
}

/// Where a node's k3s has its environment from.
pub fn environment(facts: &NodeFacts, node: &Node) -> String {
    guest::of(Some(facts)).service().environment(node.role.unit())
}

/// A configuration without labels and taints: k3s reads them when a node registers and never again, so
/// for their sake it need not be restarted.
fn without_marks(text: &str) -> String {
    let mut inside = false;
    let keep = |line: &&str| {
        inside = match inside && line.starts_with("  ") {
            true => true,
            false => line.starts_with("node-label:") || line.starts_with("node-taint:"),
        };
        !inside
    };
    text.split_inclusive('\n').filter(keep).collect()
}

/// What k3s runs with: another value, and it has to be restarted.
pub fn running(view: &View<'_>, node: &Node, facts: &NodeFacts, tokens: &Tokens) -> String {
    let mut hash = Sha256::new();
    for (path, text) in files(view, node, facts, tokens) {
        // Without variables as before there were any: no k3s is restarted for a newer p1.
        if text.is_none() && path == environment(facts, node) {
            continue;
        }
        hash.update(path);
        hash.update(without_marks(&text.unwrap_or_default()));
    }
    // The node's own note of the binary: what it will run, whatever the spec says by now.
    let binary = format!("{}/k3s", k3s::BIN_DIR);
    hash.update(facts.staged.get(&binary).map(String::as_str).unwrap_or_default());
    hex(&hash.finalize()[..8])
}

/// What the installation came from: the installer, the binary and the call. The installer compares
/// the same things to tell whether anything changed (install.sh, `get_installed_hashes`).
pub fn installation(facts: &NodeFacts, node: &Node) -> String {
    let sum = |path: &str| facts.staged.get(path).map_or("?", String::as_str).to_owned();
    let call = k3s::install(node.role, INSTALLER, true).line();
    let binary = sum(&format!("{}/k3s", k3s::BIN_DIR));
    hash::hex(&hash::parts([&sum(INSTALLER), &binary, &call])[..8])
}

/// Done where the files on the node are those that are wanted.
pub fn staged(view: &View<'_>, node: &Node) -> Check {
    if let Some(done) = found::holds(view, node) {
        return done;
    }
    let facts = match view.facts_or_baked(node) {
        Ok(facts) => facts,
        Err(check) => return check,
    };
    let Some(wanted) = view.wanted(node) else {
        if let (Some(to), Some(from)) = (&view.seen.here.version, view.version(node))
            && !k3s::runs(to, from)
        {
            return Check::Needed(format!("it runs {from}, not {to}"));
        }
        return Check::Unknown("checked when it is known which k3s is wanted".into());
    };
    let differs = wanted.iter().find(|w| facts.staged.get(&w.path) != Some(&w.sha256));
    holds("its files match the spec", differs.map(|w| format!("{} is missing or differs", w.path)))
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;
    use std::sync::Arc;

    use super::*;
    use crate::k3s::Arch;
    use crate::machines::{Machine, MachineState};
    use crate::observed::{Observed, Wanted};
    use crate::spec::fixture::cluster;

    /// Of each architecture its own binary: the same file is right on one node and wrong on another.
    #[test]
    fn a_node_is_held_to_the_files_of_its_own_architecture() {
        let cluster = cluster(1);
        let mut seen = Observed::default();
        let binary = |sum: &str| Wanted {
            source: PathBuf::new(),
            path: "/usr/local/bin/k3s".into(),
            sha256: sum.into(),
            len: 1,
            mode: 0o755,
        };
        seen.here.arch = Some(Arch::Amd64);
        seen.here.wanted = [(Arch::Amd64, vec![binary("a")]), (Arch::Arm64, vec![binary("b")])].into();
        for (node, arch) in cluster.nodes.iter().zip(["x86_64", "aarch64"]) {
            let staged = [("/usr/local/bin/k3s".to_owned(), "a".to_owned())].into();
            let facts = NodeFacts { arch: arch.into(), staged, ..NodeFacts::default() };
            seen.nodes.insert(node.name.clone(), Arc::new(facts));
            let runs = Machine { state: MachineState::Running, ..Machine::absent() };
            seen.machines.insert(node.name.clone(), runs);
        }
        let view = View::new(&cluster, &seen);
        let due: Vec<bool> = cluster.nodes.iter().map(|n| staged(&view, n).may_run()).collect();
        assert_eq!(due, [false, true]);
        assert_eq!(view.archs(), [Arch::Amd64, Arch::Arm64].into());
    }

    #[test]
    fn labels_and_taints_restart_nobody() {
        let text =
            "a: b\nnode-label:\n  - x=y\n  - z=\nnode-taint:\n  - k:NoSchedule\ndisable:\n  - traefik\n";
        assert_eq!(without_marks(text), "a: b\ndisable:\n  - traefik\n");
    }
}
