//! A cluster's data in a file of this host, and back from there onto the same machines or new ones.
//!
//! What is kept is what makes a cluster the one it is: the datastore, the certificates and secrets of
//! its server, and each node's password, by which the server knows it again. All else p1 makes anew.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde_json::json;

use super::wait::{Patience, wait_for};
use super::world::SHORT;
use super::{Ctx, Definition, World, config, login};
use crate::backup::{Backup, Datastore, Manifest};
use crate::engine::Trouble;
use crate::explain::seconds;
use crate::k3s;
use crate::os::{files, process};
use crate::plan::{After, Check, Scope, Shape};
use crate::providers::State;
use crate::spec::{Cluster, Node, Role};
use crate::ssh::{Bound, Job, Source, Upload};

/// A node's password is asked for.
pub const ASK: Definition = Definition {
    shape: shape("password", "ask for the node's password", Scope::Nodes, &[]),
    retry: false,
    check: asked,
    inputs,
    apply: ask,
};

/// The data is copied and written to the file.
pub const COPY: Definition = Definition {
    shape: shape("copy", "copy the cluster's data", Scope::Cluster, &[After::Node("password")]),
    retry: false,
    check: asked,
    inputs,
    apply: copy,
};

/// The node lets p1 in.
pub const LOGIN: Definition = Definition { shape: shape("ssh", "log in", Scope::Nodes, &[]), ..login::STEP };

/// k3s ends on a node, with all that it runs, and the node gets its password of then.
pub const HALT: Definition = Definition {
    // Workers first: their containers end while somebody still hears of it.
    shape: shape(
        "halt",
        "stop k3s and its containers",
        Scope::Nodes,
        &[After::Node("ssh"), After::Workers("halt")],
    ),
    retry: true,
    check: asked,
    inputs,
    apply: halt,
};

/// The secrets of then are this host's again.
pub const SECRETS: Definition = Definition {
    shape: shape("secrets", "put the cluster's secrets back", Scope::Cluster, &[After::Node("halt")]),
    retry: true,
    check: asked,
    inputs,
    apply: secrets,
};

/// The configuration has them, before k3s itself puts an etcd snapshot back.
pub const CONFIG: Definition = Definition {
    shape: shape("config", "configure k3s", Scope::Nodes, &[After::Cluster("secrets")]),
    ..config::STEP
};

/// The data is in its place on the first server.
pub const DATA: Definition = Definition {
    shape: shape("data", "put the cluster's data back", Scope::Cluster, &[After::Node("config")]),
    retry: true,
    check: asked,
    inputs,
    apply: data,
};

const fn shape(name: &'static str, title: &'static str, scope: Scope, after: &'static [After]) -> Shape {
    Shape { name, title, scope, after, serves: false }
}

fn asked(_: &super::View<'_>, _: Option<&Node>) -> Check {
    Check::Needed("asked for".into())
}

fn inputs(cluster: &Cluster, node: Option<&Node>) -> serde_json::Value {
    json!([cluster.name, node.map(|n| &n.name)])
}

/// A node's password (docs.k3s.io/architecture).
const PASSWORD: &str = "/etc/rancher/node/password";
/// k3s' own has 32 characters (`pkg/agent/config`, `ensureNodePassword`).
const PASSWORD_LEN: usize = 256;
/// On the node, while it is on its way.
const PACKED: &str = "/var/lib/p1/backup/server.tar.gz";
/// A cluster's data is held in memory while it is on its way.
const MOST: u64 = 2 << 30;
/// Sending it; silence is the sooner sign of trouble.
const SEND: Duration = Duration::from_secs(1800);
const SILENCE: Duration = Duration::from_secs(120);

/// What a run has of a backup so far.
#[derive(Default)]
pub struct Progress {
    passwords: Mutex<BTreeMap<String, String>>,
    read: Mutex<Option<Arc<Backup>>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn file(world: &World) -> Result<PathBuf, Trouble> {
    world.seen().subject.as_ref().map(PathBuf::from).ok_or_else(|| Trouble::new("no file was named", ""))
}

/// The backup that the run puts back, read and checked once.
pub fn read(world: &World) -> Result<Arc<Backup>, Trouble> {
    let mut held = lock(&world.backup.read);
    if let Some(backup) = &*held {
        return Ok(Arc::clone(backup));
    }
    let backup = Backup::read(&file(world)?)?;
    // The secrets of then are this cluster's from now on.
    world.learn_tokens(&backup.tokens.to_text());
    world.redactor.learn(backup.passwords.values());
    let runs = world.state.facts()?.k3s.and_then(|k| k.version);
    backup.manifest.fits(&world.cluster, runs.as_deref())?;
    Ok(Arc::clone(held.insert(Arc::new(backup))))
}

fn ask(ctx: &Ctx<'_>) -> Result<Option<String>, Trouble> {
    let (world, node) = (ctx.world, ctx.node());
    let runs = world.seen().machines.get(&node.name).is_some_and(|m| m.state == State::Running);
    let asked = match runs {
        true => world.script(
            node,
            "asking for the node's password",
            &format!("cat {PASSWORD} 2>/dev/null || :\n"),
        ),
        false => Err(Trouble::new("its machine does not run", "")),
    };
    match asked {
        Err(trouble) if trouble.cancelled || node.name == world.cluster.first_server().name => Err(trouble),
        // A node's password only saves the cluster from taking it for another one.
        Err(trouble) => {
            let why = trouble.failure.cause;
            ctx.control.warn(format!(
                "It joins as a new node after a restore: its password could not be asked for ({why})."
            ));
            Ok(None)
        }
        Ok(text) if text.trim().is_empty() => Ok(Some("it has none yet".into())),
        Ok(text) => {
            let password = text.trim();
            world.redactor.learn([password]);
            if password.len() > PASSWORD_LEN || password.chars().any(char::is_control) {
                return Err(Trouble::new(
                    format!("{} is not a node's password", PASSWORD),
                    format!("k3s writes one line into it; look at it with `p1 ssh {}`.", node.name),
                ));
            }
            lock(&world.backup.passwords).insert(node.name.clone(), password.to_owned());
            Ok(None)
        }
    }
}

/// Packs the server's data. What cannot be copied while k3s writes is copied while it is stopped,
/// and whatever ends the copying, k3s is started again.
const PACK: &str = r#"set -eu
export LC_ALL=C PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
umask 077
work=/var/lib/p1/backup
rm -rf "$work"
mkdir -p "$work/own"
cd /var/lib/rancher/k3s/server
active=$(systemctl is-active k3s || :)
# Also the next one of these knows of it, should this one be killed.
stopped=/run/p1/stopped-for-copy
again() { [ ! -e "$stopped" ] || { systemctl start --no-block k3s && rm -f "$stopped"; }; }
trap again EXIT
trap 'exit 143' HUP INT TERM
if [ -d db/etcd ]; then
  [ "$active" = active ] || { echo "k3s is $active, and etcd can only be copied while it runs" >&2; exit 3; }
  k3s etcd-snapshot save --name p1-backup
  mv "$(ls -t db/snapshots/p1-backup* | head -n 1)" "$work/own/snapshot"
  kind=etcd how=snapshot
elif [ -f db/state.db ] && command -v sqlite3 >/dev/null 2>&1 && mkdir "$work/own/db" &&
  sqlite3 db/state.db ".backup '$work/own/db/state.db'"; then
  kind=sqlite how=online
else
  # What its own way cannot copy, such as with an sqlite3 that is too old, is copied at rest.
  rm -rf "$work/own/db"
  [ -d db ] || { echo "there is no datastore in $PWD/db" >&2; exit 3; }
  if [ "$active" != inactive ] && [ "$active" != failed ]; then
    : >"$stopped"
    echo "stopping k3s"
    systemctl stop k3s
  fi
  cp -a db "$work/own/db"
  kind=sqlite how=stopped
  again
fi
for name in tls cred token agent-token node-token; do
  # Links stay links; a copy of what they mean would outlive a change of it.
  [ ! -e "$name" ] || cp -a "$name" "$work/own/"
done
tar -C "$work/own" -I 'gzip -1' -cf "$work/server.tar.gz" .
rm -rf "$work/own"
echo "result $kind $how"
"#;

fn copy(ctx: &Ctx<'_>) -> Result<Option<String>, Trouble> {
    let (world, server) = (ctx.world, ctx.world.cluster.first_server());
    let tokens = world.read_tokens()?;
    let tokens =
        tokens.ok_or_else(|| Trouble::new("the cluster's secrets are not there", "`p1 up` makes them."))?;
    let text = job(ctx, server, "pack", PACK)?;
    let result = text.lines().find_map(|l| l.strip_prefix("result ")).unwrap_or_default();
    let datastore = match result.split(' ').next() {
        Some("etcd") => Datastore::Etcd,
        _ => Datastore::Sqlite,
    };
    let manifest = Manifest::of(&world.cluster, datastore, world.state.facts()?.k3s.and_then(|k| k.version));
    ctx.control.says("fetching it");
    let data = world.on(server, |r| r.read_file(PACKED, MOST, Bound::new(SEND, SILENCE)))?;
    let sum = world.on(server, |r| r.sha256(PACKED, SHORT))?;
    let passwords = lock(&world.backup.passwords).clone();
    let backup = Backup { manifest, tokens, passwords, data };
    if sum != Some(backup.checksum()) {
        return Err(Trouble::new("the data did not come whole", "`p1 retry` fetches it again.").transient());
    }
    let path = file(world)?;
    let size = backup.write(&path)?;
    world.script(server, "removing what was packed", "rm -rf /var/lib/p1/backup\n")?;
    if result.ends_with("stopped") {
        until_active(ctx, server)?;
    }
    let how = match result {
        r if r.ends_with("stopped") => "; k3s was stopped for the copy, since the server has no sqlite3",
        _ => "",
    };
    Ok(Some(format!("wrote {} ({:.1} MB){how}", path.display(), size as f64 / 1e6)))
}

/// Runs a script of root's that goes on when the connection is lost; what it printed.
fn job(ctx: &Ctx<'_>, node: &Node, name: &str, script: &str) -> Result<String, Trouble> {
    let world = ctx.world;
    let job = Job { name, id: &world.run, script, env: &[] };
    let bound = world.cluster.timeouts.server_ready;
    let done = world.on(node, |r| {
        r.detached(&job, bound, &mut |line| {
            ctx.control.log(line);
            ctx.control.says(line);
        })
    })?;
    let text = done.text();
    if done.status == 0 {
        return Ok(text);
    }
    let last = process::tail(&text, 1).pop().unwrap_or_else(|| format!("it exited with {}", done.status));
    Err(Trouble::new(format!("the data could not be handled on {}: {last}", node.name), "")
        .evidence(process::tail(&text, 12)))
}

fn until_active(ctx: &Ctx<'_>, node: &Node) -> Result<(), Trouble> {
    let bound = ctx.world.cluster.timeouts.server_ready;
    let active = wait_for(ctx, Patience::of(bound), || {
        let state = ctx.world.script(node, "looking at k3s' unit", "systemctl is-active k3s || :\n")?;
        Ok(match state.trim() {
            "active" => Ok(()),
            other => Err(format!("waiting for k3s, which was stopped for the copy (it is {other})")),
        })
    })?;
    active.map_err(|_| {
        Trouble::new(
            format!("k3s did not become active again within {}", seconds(bound)),
            format!("The backup is whole. `p1 logs {}` shows its journal.", node.name),
        )
    })
}

fn halt(ctx: &Ctx<'_>) -> Result<Option<String>, Trouble> {
    let (world, node) = (ctx.world, ctx.node());
    let backup = read(world)?;
    if !world.facts(node)?.has_k3s() {
        return Err(Trouble::new("k3s is not installed there", "`p1 up` installs it; then restore again."));
    }
    let killall = k3s::killall_script();
    let (unit, config) = (node.role.unit(), k3s::CONFIG_PATH);
    // A worker makes its certificates anew from the server's; those of another authority are in its way. How
    // it joined before says nothing of how it has to now: the one with the data begins.
    let script = format!(
        "set -eu\nsystemctl stop {unit} 2>/dev/null || :\nif [ -x {killall} ]; then {killall}; fi\n\
         rm -f /var/lib/p1/stamps/start {config}\n\
         rm -f /var/lib/rancher/k3s/agent/*.crt /var/lib/rancher/k3s/agent/*.key /var/lib/rancher/k3s/agent/*.kubeconfig\n"
    );
    job(ctx, node, "halt", &script)?;
    if node.role == Role::Server && node.name != world.cluster.first_server().name {
        // It joins the first one anew and gets all of it from there.
        let script = "cd /var/lib/rancher/k3s/server && rm -rf db tls cred\n";
        world.script(node, "removing the data of now", script)?;
    }
    match backup.passwords.get(&node.name) {
        Some(password) => {
            let text = format!("{password}\n");
            let upload =
                Upload { source: Source::Bytes(text.as_bytes()), dest: PASSWORD, mode: 0o600, sha256: None };
            world.on(node, |r| r.upload(&upload, SHORT, &mut |_| {}))?;
        }
        // The cluster of then knows another machine by this name, or none: it joins as a new one.
        None => drop(world.script(node, "removing the node's password", &format!("rm -f {PASSWORD}\n"))?),
    }
    // What was seen at the login is no longer so.
    world.look_at_node(node)?;
    Ok(None)
}

fn secrets(ctx: &Ctx<'_>) -> Result<Option<String>, Trouble> {
    let world = ctx.world;
    files::write(&world.state.token(), read(world)?.tokens.to_text().as_bytes(), 0o600)?;
    world.read_tokens()?;
    Ok(None)
}

/// Puts the data in its place. Each part replaces its former self by one rename; run again, it does
/// the same again.
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

fn data(ctx: &Ctx<'_>) -> Result<Option<String>, Trouble> {
    let (world, server) = (ctx.world, ctx.world.cluster.first_server());
    let backup = read(world)?;
    let len = backup.data.len() as u64;
    let upload = Upload { source: Source::Bytes(&backup.data), dest: PACKED, mode: 0o600, sha256: None };
    let mut progress = |done| ctx.control.moved("sending the data", done, Some(len));
    world.on(server, |r| r.upload(&upload, Bound::new(SEND, SILENCE), &mut progress))?;
    job(ctx, server, "unpack", UNPACK)?;
    world.forget_api();
    world.note(|seen| seen.api = None);
    Ok(Some(format!("of {}", backup.manifest.at.strftime("%Y-%m-%d %H:%M:%S UTC"))))
}
