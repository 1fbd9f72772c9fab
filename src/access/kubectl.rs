//! kubectl, which runs on a server, where its version fits: a script of root's.

use std::time::Duration;

use super::{SCRIPT_TIMEOUT, Via, World};
use crate::apps::Secrets;
use crate::engine::StepError;
use crate::explain::FailureKind;
use crate::k3s;
use crate::os::hash;
use crate::os::process::{self, quote};
use crate::spec::{Node, Role};
use crate::ssh::Output;

/// One `kubectl` with many objects; each start of it takes six seconds under emulation.
pub const WRITE: Duration = Duration::from_secs(300);
/// The name under which the cluster keeps which fields are p1's.
pub const MANAGER: &str = "p1";
/// How long the API may take to let go of a node; of a server etcd has to do so as well. A minute less is
/// what kubectl is asked again for.
const FORGET: Duration = Duration::from_secs(180);

/// Runs root's script with kubectl in it on a server; what it said. An API that comes and goes is worth another
/// try.
pub fn kubectl(world: &World, via: Via<'_>, what: &str, script: &str) -> Result<String, StepError> {
    let done = world.on(world.server(via)?, |r| r.script(what, script, true, SCRIPT_TIMEOUT, &mut |_| {}))?;
    let passes = k3s::kubectl::passes(&done.text());
    let done = done.ok().map(|done| done.text()).map_err(StepError::from);
    done.map_err(|error| if passes { error.transient() } else { error })
}

/// Runs root's script with kubectl in it on a server. What it says is told and written down without
/// the values of Secrets.
pub fn apply(
    world: &World,
    what: &str,
    script: &str,
    secrets: &Secrets,
    log: &mut dyn FnMut(&str),
) -> Result<String, StepError> {
    let done = world.on(world.server(Via::Any)?, |r| r.script(what, script, true, WRITE, &mut |_| {}))?;
    let text = secrets.hide(&done.text());
    for line in text.lines() {
        log(line);
    }
    if done.status == 0 {
        return Ok(text);
    }
    let wrong: Vec<&str> = text.lines().filter(|l| !l.ends_with("serverside-applied")).collect();
    let lines = process::tail(&wrong.join("\n"), 8);
    let cause = lines.iter().rev().find(|l| l.contains("rror")).or(lines.last());
    let cause = cause.map_or(String::new(), |line| format!(": {}", line.trim()));
    let has = |words: &[&str]| words.iter().any(|w| text.contains(w));
    let hint = if has(&["immutable"]) {
        "What cannot be changed has to be recreated: delete the object with `p1 kubectl delete`, then `p1 retry`."
    } else if has(&["no matches for kind"]) {
        "The cluster does not know that kind: its definition (CRD) has to be applied as well, or k3s is too old for it."
    } else if has(&["is being terminated", "because it is being"]) {
        "The namespace is being deleted; `p1 retry` continues when it is gone."
    } else {
        ""
    };
    let kind = FailureKind::Exit { code: done.status };
    let error = StepError::new(format!("{what} failed{cause}"), hint).kind(kind).evidence(lines);
    Err(if k3s::kubectl::passes(&text) { error.transient() } else { error })
}

/// Shell text that gives `text` to a command's standard input.
pub fn fed(command: &str, text: &str) -> String {
    // A text cannot hold its own digest.
    let mark = format!("P1_{}", hash::hex(&hash::parts([text])[..8]));
    format!("{command} <<'{mark}'\n{}\n{mark}\n", text.trim_end_matches('\n'))
}

/// Documents as one stream, each behind its mark. kubectl takes a stream whose first character is `{` for
/// JSON to its end, and stumbles over the first mark in it (apimachinery, pkg/util/yaml,
/// `YAMLOrJSONDecoder`); behind a mark JSON is YAML.
pub fn stream(documents: impl IntoIterator<Item = impl AsRef<str>>) -> String {
    let text = |d: &str| format!("---\n{}\n", d.trim_start_matches('\n').trim_end());
    documents.into_iter().map(|d| text(d.as_ref())).collect()
}

/// The command that applies what comes in.
pub fn applying(namespace: Option<&str>) -> String {
    let place = namespace.map_or(String::new(), |n| format!(" -n {}", quote(n)));
    format!("k3s kubectl apply --server-side --force-conflicts --field-manager={MANAGER}{place} -f -")
}

/// Takes the pods off a node, through another server where there are several; what kubectl said. `force`: those without a
/// controller too.
pub fn drain(
    world: &World,
    node: &Node,
    bound: Duration,
    force: bool,
    log: &mut dyn FnMut(&str),
) -> Result<Output, StepError> {
    let alone = node.role == Role::Server && world.cluster.servers().count() == 1;
    let via = if alone { Via::On(node) } else { Via::Not(node) };
    let script = format!(
        "k3s kubectl drain {} --ignore-daemonsets --delete-emptydir-data{} --timeout={}s\n",
        node.name,
        if force { " --force" } else { "" },
        bound.as_secs()
    );
    world
        .on(world.server(via)?, |r| r.script("draining the node", &script, true, bound + SCRIPT_TIMEOUT, log))
}

/// Takes a node's object and its password out of the cluster, through a server. While etcd gives a member up
/// it is without a leader for a moment, and servers whose leases run out meanwhile end and are started again
/// (seen on k3s v1.21): what the API cannot do just now is asked for again.
pub fn remove_node(world: &World, node: &Node) -> Result<(), StepError> {
    let script = taking_out(&node.name, FORGET - SCRIPT_TIMEOUT);
    world.on(world.server(Via::Not(node))?, |r| {
        r.script("taking the node out of the cluster", &script, true, FORGET, &mut |_| {})?.ok()
    })?;
    Ok(())
}

fn taking_out(name: &str, bound: Duration) -> String {
    format!(
        "end=$(($(date +%s) + {}))\n\
         again() {{\n\
         until said=$(\"$@\" 2>&1); do\n\
         echo \"$said\"\n\
         case $said in {passing}) ;; *) return 1 ;; esac\n\
         [ \"$(date +%s)\" -lt $end ] || return 1\n\
         sleep 2\n\
         done\n\
         echo \"$said\"\n\
         }}\n\
         again k3s kubectl delete node {name} --ignore-not-found --timeout=10s || exit 1\n\
         again k3s kubectl -n kube-system delete secret {name}.node-password.k3s --ignore-not-found --timeout=10s || exit 1\n",
        bound.as_secs(),
        passing = k3s::kubectl::passing_pattern()
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::os::Cancel;

    /// The script, with a k3s that says each of `words` once, failing, before it does as it is told.
    fn taken_out(words: &[&str]) -> Result<process::Finished, process::Error> {
        let dir = tempfile::tempdir().unwrap();
        let said = dir.path().join("words");
        std::fs::write(&said, words.iter().map(|w| format!("{w}\n")).collect::<String>()).unwrap();
        let script = format!(
            "sleep() {{ :; }}\n\
             k3s() {{\n\
             if read -r word <{0}; then sed -i 1d {0}; echo \"$word\" >&2; return 1; fi\n\
             echo \"$*\"\n\
             }}\n{1}",
            said.display(),
            taking_out("server-1", Duration::from_secs(20))
        );
        let cmd = process::Cmd::new("sh").stdin(script);
        process::run(&cmd, Duration::from_secs(20), &Cancel::new())
    }

    #[test]
    fn a_node_is_taken_out_while_the_api_comes_and_goes() {
        // What a real one said when etcd's leader was taken out, and what client-go says of others.
        let done = taken_out(&[
            "Error from server: etcdserver: leader changed",
            "Unable to connect to the server: EOF",
            "The connection to the server 127.0.0.1:6443 was refused - did you specify the right host or port?",
            "Error from server (ServiceUnavailable): the server is currently unable to handle the request",
            "Unable to connect to the server: net/http: TLS handshake timeout",
            "error: timed out waiting for the condition on nodes/server-1",
            "error: read tcp 127.0.0.1:6443: read: connection reset by peer",
        ])
        .unwrap();
        let out = done.ok().unwrap().stdout;
        assert!(
            out.contains("kubectl delete node server-1") && out.contains("server-1.node-password.k3s"),
            "{out}"
        );
    }

    #[test]
    fn what_asking_again_does_not_mend_is_said_at_once() {
        let done = taken_out(&["Error from server (Forbidden): nodes \"server-1\" is forbidden"]).unwrap();
        assert!(done.ok().is_err());
    }
}
