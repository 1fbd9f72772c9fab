//! A cluster's data out of a file of this host, back onto the same machines or new ones.
//!
//! What the nodes have is set aside before anything is put in its place, and comes back unless the servers
//! run with the backup's data in the end. What is set aside lies beside k3s' own data on each node, in a
//! folder named after the restore; `.p1/NAME/unfinished.json` names the restore while it lasts.

use super::shared::archive::{PACKED, PASSWORD, SEND, SILENCE, job, read};
use super::{ClusterDef, Ctx, NodeCtx, NodeDef, Step, asked, asked_of, named, named_of};
use crate::access::{SCRIPT_TIMEOUT, World};
use crate::engine::StepError;
use crate::event::VerbName;
use crate::guest::Service;
use crate::k3s;
use crate::machines::MachineState;
use crate::os::{files, many};
use crate::plan::{After, ClusterStep, NodeStep, Per};
use crate::spec::{Node, Role};
use crate::ssh::{Bound, Source, Upload};
use crate::state::Unfinished;

/// k3s ends on a node, with all that it runs; what the node has of the cluster is set aside, and it gets its
/// password of then.
pub const HALT: Step = Step::Node(NodeDef {
    name: NodeStep::Halt,
    title: "stop k3s and its containers",
    per: Per::Node,
    // Workers first: their containers end while somebody still hears of it.
    after: &[After::Node(NodeStep::Ssh), After::Workers(NodeStep::Halt)],
    needs: None,
    retry: true,
    check: asked_of,
    inputs: named_of,
    apply: halt,
});

/// The secrets of then are this host's again.
pub const SECRETS: Step = Step::Cluster(ClusterDef {
    name: ClusterStep::Secrets,
    title: "put the cluster's secrets back",
    after: &[After::Node(NodeStep::Halt)],
    on_demand: false,
    needs: None,
    retry: true,
    check: asked,
    inputs: named,
    apply: secrets,
});

/// The data is in its place on the first server.
pub const DATA: Step = Step::Cluster(ClusterDef {
    name: ClusterStep::Data,
    title: "put the cluster's data back",
    after: &[After::Node(NodeStep::Config)],
    on_demand: false,
    needs: None,
    retry: true,
    check: asked,
    inputs: named,
    apply: data,
});

/// The restore has succeeded, and the former data goes; or it has not, and comes back.
pub const SETTLE: Step = Step::Cluster(ClusterDef {
    name: ClusterStep::Settle,
    title: "delete the former data",
    after: &[
        After::Ended(NodeStep::Ssh),
        After::Ended(NodeStep::Halt),
        After::Cluster(ClusterStep::Secrets),
        After::Ended(NodeStep::Config),
        After::Cluster(ClusterStep::Data),
        After::Ended(NodeStep::Start),
        After::Cluster(ClusterStep::Kubeconfig),
        After::Ended(NodeStep::Ready),
    ],
    on_demand: false,
    needs: None,
    retry: false,
    check: asked,
    inputs: named,
    apply: settle,
});

/// What a restore set aside is the cluster's data again.
pub const UNDO: Step = Step::Cluster(ClusterDef {
    name: ClusterStep::Undo,
    title: "put the former data back",
    after: &[],
    on_demand: false,
    needs: None,
    retry: true,
    check: asked,
    inputs: named,
    apply: |ctx| put_back(ctx).map(Some),
});

/// Notes that a restore begins, before anything is touched. One that has not come to its end is gone on
/// with, be it of another file: what it set aside is the former data still.
pub fn begin(world: &World) -> Result<(), StepError> {
    let state = &world.state;
    let subject = world.seen().request.subject.clone();
    let before = state.unfinished()?.filter(|u| u.verb == VerbName::Restore.as_str() && !u.settled);
    let id = before.map_or_else(|| world.run.clone(), |u| u.id);
    let since = world.now();
    state.begin(&Unfinished { verb: VerbName::Restore.to_string(), id, subject, since, settled: false })?;
    if !state.former_token().exists()
        && let Ok(tokens) = world.tokens_of_now(&mut |_| {})
    {
        files::write(&state.former_token(), tokens.to_text().as_bytes(), 0o600)?;
    }
    Ok(())
}

fn unfinished(world: &World) -> Result<Unfinished, StepError> {
    let found = world.state.unfinished()?.filter(|u| u.verb == VerbName::Restore.as_str());
    found.ok_or_else(|| StepError::new("no restore is unfinished", "`p1 status` shows how the cluster is."))
}

/// What setting aside and putting back have in common: where everything is, and the way back. Each may be
/// cut off anywhere and run again: a part is in one place or the other.
fn places(service: &dyn Service, role: Role, id: &str) -> String {
    format!(
        r#"{functions}set -eu
export LC_ALL=C PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
umask 077
unit={unit} config={config} password={PASSWORD} killall={killall}
stamp=/var/lib/p1/stamps/start
k3s=/var/lib/rancher/k3s
former=$k3s/p1-former-{id}
there() {{ [ -e "$1" ] || [ -L "$1" ]; }}
# A file or folder from its place to another, unless it has gone there already.
to() {{ if there "$1" && ! there "$2"; then mv "$1" "$2"; fi; }}
halt() {{
  service_stop "$unit" 2>/dev/null || :
  if [ -x "$killall" ]; then "$killall"; fi
}}
# What lies where the cluster's data belongs, of whichever cluster.
clear() {{
  for part in db tls cred token agent-token node-token; do rm -rf "$k3s/server/$part"; done
  rm -f "$stamp" "$config" "$k3s"/agent/*.crt "$k3s"/agent/*.key "$k3s"/agent/*.kubeconfig
}}
back() {{
  if [ ! -e "$former/back" ]; then
    if [ -e "$former/whole" ]; then clear; rm -f "$password"; fi
    : >"$former/back"
  fi
  for dir in server agent; do
    for part in "$former/$dir"/*; do
      if there "$part"; then to "$part" "$k3s/$dir/${{part##*/}}"; fi
    done
  done
  to "$former/config" "$config"
  to "$former/password" "$password"
  to "$former/stamp" "$stamp"
}}
"#,
        functions = service.functions(),
        unit = role.unit(),
        config = k3s::CONFIG_PATH,
        killall = k3s::killall_script(),
    )
}

/// Stops k3s and sets everything aside that the restore replaces.
const ASIDE: &str = r#"
if [ -e "$former/back" ]; then halt; back; rm -rf "$former"; fi
for other in "$k3s"/p1-former-*; do
  [ "$other" = "$former" ] || rm -rf "$other"
done
mkdir -p "$former/server" "$former/agent"
if [ ! -e "$former/was" ]; then
  service_state "$unit" >"$former/was.new" 2>/dev/null || :
  mv "$former/was.new" "$former/was"
fi
halt
if [ ! -e "$former/whole" ]; then
  for part in db tls cred token agent-token node-token; do
    to "$k3s/server/$part" "$former/server/$part"
  done
  # A worker recreates its certificates from the server's; those of another authority are in its way.
  for part in "$k3s"/agent/*.crt "$k3s"/agent/*.key "$k3s"/agent/*.kubeconfig; do
    to "$part" "$former/agent/${part##*/}"
  done
  # How it joined before says nothing of how it has to now: the one with the data begins.
  to "$config" "$former/config"
  to "$password" "$former/password"
  to "$stamp" "$former/stamp"
  : >"$former/whole"
fi
clear
rm -f "$password"
"#;

/// Puts it all back, and k3s runs again where it ran.
const BACK: &str = r#"
[ -d "$former" ] || exit 0
halt
was=$(cat "$former/was" 2>/dev/null || :)
back
rm -rf "$former" /var/lib/p1/backup
case $was in active | activating | reloading) service_start "$unit" ;; esac
"#;

fn halt(ctx: &NodeCtx<'_>) -> Result<Option<String>, StepError> {
    let (world, node) = (ctx.world, ctx.node);
    let backup = read(world)?;
    if !world.facts(node)?.has_k3s() {
        return Err(StepError::new("k3s is not installed there", "`p1 up` installs it; then restore again."));
    }
    let id = unfinished(world)?.id;
    job(ctx, node, "halt", &format!("{}{ASIDE}", places(world.guest(node).service(), node.role, &id)))?;
    // The cluster of then knows the node by this; one without joins as a new one.
    if let Some(password) = backup.passwords.get(&node.name) {
        let text = format!("{password}\n");
        let upload =
            Upload { source: Source::Bytes(text.as_bytes()), dest: PASSWORD, mode: 0o600, sha256: None };
        world.on(node, |r| r.upload(&upload, SCRIPT_TIMEOUT, &mut |_| {}))?;
    }
    // What was seen at the login is no longer so.
    world.look_at_node(node)?;
    Ok(None)
}

fn secrets(ctx: &Ctx<'_>) -> Result<Option<String>, StepError> {
    let world = ctx.world;
    files::write(&world.state.token(), read(world)?.tokens.to_text().as_bytes(), 0o600)?;
    world.read_tokens()?;
    Ok(None)
}

/// Puts the data in its place. Run again, it does the same again.
const UNPACK: &str = r#"set -eu
export LC_ALL=C PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
umask 077
work=/var/lib/p1/backup
rm -rf "$work/own"
mkdir -p "$work/own" /var/lib/rancher/k3s/server
tar -C "$work/own" --numeric-owner -xzf "$work/server.tar.gz"
cd /var/lib/rancher/k3s/server
rm -rf db tls cred token agent-token node-token
for part in "$work"/own/*; do
  name=${part##*/}
  [ "$name" = snapshot ] || mv "$part" "$name"
done
if [ -f "$work/own/snapshot" ]; then
  # The snapshot has the certificates too; those of here would be taken for newer ones.
  rm -rf tls cred
  k3s server --cluster-reset --cluster-reset-restore-path="$work/own/snapshot"
fi
rm -rf "$work"
"#;

fn data(ctx: &Ctx<'_>) -> Result<Option<String>, StepError> {
    let (world, server) = (ctx.world, ctx.world.cluster.first_server());
    let backup = read(world)?;
    let len = backup.data.len() as u64;
    let upload = Upload { source: Source::Bytes(&backup.data), dest: PACKED, mode: 0o600, sha256: None };
    let mut progress = |done| ctx.control.moved("sending the data", done, Some(len));
    world.on(server, |r| r.upload(&upload, Bound::new(SEND, SILENCE), &mut progress))?;
    job(ctx, server, "unpack", UNPACK)?;
    world.forget_api();
    world.note(|seen| (seen.api, seen.run.placed) = (None, true));
    Ok(Some(format!("of {}", backup.manifest.at.strftime("%Y-%m-%d %H:%M:%S UTC"))))
}

fn settle(ctx: &Ctx<'_>) -> Result<Option<String>, StepError> {
    let world = ctx.world;
    let runs = |s: &Node| world.is_active(s);
    if world.seen().run.placed && world.cluster.servers().all(runs) {
        return remove_former(ctx);
    }
    let done = put_back(ctx)?;
    Err(StepError::new(
        format!("the restore did not succeed: {done}"),
        "The cluster is as it was before. `p1 retry` restores again.",
    ))
}

/// The former data goes from the nodes.
fn remove_former(ctx: &Ctx<'_>) -> Result<Option<String>, StepError> {
    let world = ctx.world;
    // From here on nothing leads back, whatever becomes of the rest.
    world.state.begin(&Unfinished { settled: true, ..unfinished(world)? })?;
    let nodes: Vec<&Node> = world.cluster.members().collect();
    let gone = many::each(world.jobs, &nodes, |node| {
        world.script(node, "removing the former data", "rm -rf /var/lib/rancher/k3s/p1-former-*\n")
    });
    let left: Vec<_> = nodes.iter().zip(gone).filter_map(|(n, r)| Some((n, r.err()?))).collect();
    for (node, error) in &left {
        ctx.control.warn(format!(
            "The former data is still on {}, in /var/lib/rancher/k3s/p1-former-* ({}); the next restore removes it.",
            node.name, error.failure.cause
        ));
    }
    // Otherwise the note stays: it says that what lies there is nobody's any more.
    if left.is_empty() {
        world.state.end()?;
    }
    Ok(None)
}

/// What was set aside is the cluster's again, on every node that has some of it, and so are the secrets.
fn put_back(ctx: &Ctx<'_>) -> Result<String, StepError> {
    let world = ctx.world;
    let what = unfinished(world)?;
    if what.settled {
        world.state.end()?;
        return Ok("nothing is left to be put back".into());
    }
    match files::read_if_there(&world.state.former_token())? {
        Some(text) => files::write(&world.state.token(), text.as_bytes(), 0o600)?,
        // There was none to be kept; the servers have them.
        None => files::remove_if_there(&world.state.token())?,
    }
    let machines = world.look_at_machines()?;
    let there =
        |n: &&Node| machines.get(&n.name).is_some_and(|m| m.state != MachineState::Absent && !m.foreign);
    let nodes: Vec<&Node> = world.cluster.members().filter(there).collect();
    ctx.control.says("putting the former data back");
    let done = many::each(world.jobs, &nodes, |node| {
        // Nothing else starts it meanwhile: k3s would find no data.
        if machines.get(&node.name).is_some_and(|m| m.state != MachineState::Running)
            && let Some(power) = world.machines.of(&node.name).power()
        {
            power.on(&world.cluster, &node.name, &world.cancel)?;
        }
        let bound = world.cluster.timeouts.boot + world.cluster.timeouts.ssh;
        world.on(node, |r| r.wait_for(bound, &mut |_| {}).map(|_| ()))?;
        job(ctx, node, "back", &format!("{}{BACK}", places(world.guest(node).service(), node.role, &what.id)))
    });
    world.forget_api();
    world.note(|seen| (seen.api, seen.nodes) = (None, Default::default()));
    world.remember_all(nodes.iter().map(|n| n.name.as_str()), |_, memory| memory.facts = None)?;
    let failed = nodes.iter().zip(done).filter_map(|(n, r)| Some((n.name.clone(), r.err()?)));
    let failed: Vec<(String, StepError)> = failed.collect();
    if let Some((_, first)) = failed.first() {
        let names: Vec<&str> = failed.iter().map(|(n, _)| n.as_str()).collect();
        return Err(StepError {
            failure: crate::event::Failure {
                cause: format!(
                    "the former data could not be put back on {}: {}",
                    names.join(", "),
                    first.failure.cause
                ),
                hint: Some(
                    "It is still there: `p1 restore --undo` puts it back when the machine answers."
                        .to_owned(),
                ),
                ..first.failure.clone()
            },
            ..first.clone()
        });
    }
    world.state.end()?;
    Ok("the former data is back in its place, and k3s starts with it".into())
}
