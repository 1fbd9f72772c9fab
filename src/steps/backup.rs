//! A cluster's data in a file of this host; `restore.rs` is the way back.
//!
//! What is kept is what makes a cluster the one it is: the datastore, the certificates and secrets of
//! its server, and each node's password, by which the server knows it again. All else p1 makes again.

use std::time::{Duration, Instant};

use super::shared::archive::{PACKED, PASSWORD, SEND, SILENCE, file, job_heard};
use super::shared::heartbeat::pulse;
use super::shared::wait::{Patience, wait_for};
use super::{ClusterDef, Ctx, NodeCtx, NodeDef, Step, asked, asked_of, named, named_of};
use crate::access::{SCRIPT_TIMEOUT, World};
use crate::backup::{Backup, Datastore, Manifest};
use crate::engine::StepError;
use crate::explain::{FailureKind, seconds};
use crate::guest::{Activity, Service};
use crate::machines::MachineState;
use crate::plan::{After, ClusterStep, NodeStep, Per};
use crate::spec::Node;
use crate::ssh::Bound;

/// A node's password is asked for.
pub const ASK: Step = Step::Node(NodeDef {
    name: NodeStep::Password,
    title: "ask for the node's password",
    per: Per::Node,
    after: &[],
    needs: None,
    retry: false,
    check: asked_of,
    inputs: named_of,
    apply: ask,
});

/// The data is copied and written to the file.
pub const COPY: Step = Step::Cluster(ClusterDef {
    name: ClusterStep::Copy,
    title: "copy the cluster's data",
    after: &[After::Node(NodeStep::Password)],
    on_demand: false,
    needs: None,
    retry: false,
    check: asked,
    inputs: named,
    apply: copy,
});

/// k3s' own has 32 characters (`pkg/agent/config`, `ensureNodePassword`).
const PASSWORD_LEN: usize = 256;
/// A cluster's data is held in memory while it is on its way.
const MAX_BYTES: u64 = 2 << 30;

/// What the script says when k3s is about to be stopped.
const STOPPING: &str = "stopping k3s";
/// How long a server's API port may take to open.
const KNOCK: Duration = Duration::from_secs(2);

fn ask(ctx: &NodeCtx<'_>) -> Result<Option<String>, StepError> {
    let (world, node) = (ctx.world, ctx.node);
    let runs = world.seen().machines.get(&node.name).is_some_and(|m| m.state == MachineState::Running);
    let asked = match runs {
        true => world.script(
            node,
            "asking for the node's password",
            &format!("cat {PASSWORD} 2>/dev/null || :\n"),
        ),
        false => Err(StepError::new("its machine does not run", "")),
    };
    match asked {
        Err(error) if error.cancelled() => Err(error),
        // A node's password only saves the cluster from taking it for another one.
        Err(error) => {
            let why = error.failure.cause;
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
                return Err(StepError::new(
                    format!("{} is not a node's password", PASSWORD),
                    format!("k3s writes one line into it; look at it with `p1 ssh {}`.", node.name),
                ));
            }
            world.note(|seen| {
                seen.run.passwords.insert(node.name.clone(), password.to_owned());
            });
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
active=$(service_state k3s || :)
# Also the next one of these knows of it, should this one be killed.
stopped=/run/p1/stopped-for-copy
again() { [ ! -e "$stopped" ] || { service_start k3s && rm -f "$stopped"; }; }
trap again EXIT
trap 'exit 143' HUP INT TERM
# By SQLite's own way, which takes what others write meanwhile into account: its shell, or Python's module.
online() {
  mkdir -p "$work/own/db"
  copy=$work/own/db/state.db
  if command -v sqlite3 >/dev/null 2>&1; then
    if sqlite3 db/state.db ".backup '$copy'"; then return 0; fi
    rm -f "$copy"*
  fi
  command -v python3 >/dev/null 2>&1 || return 1
  python3 - db/state.db "$copy" <<'PYTHON'
@PYTHON@PYTHON
}
if [ -d db/etcd ]; then
  [ "$active" = active ] || { echo "k3s is $active, and etcd can only be copied while it runs" >&2; exit 3; }
  k3s etcd-snapshot save --name p1-backup
  mv "$(ls -t db/snapshots/p1-backup* | head -n 1)" "$work/own/snapshot"
  kind=etcd how=snapshot
elif [ -f db/state.db ] && online; then
  kind=sqlite how=online
else
  # What its own way cannot copy, such as with an sqlite3 that is too old, is copied at rest.
  rm -rf "$work/own/db"
  [ -d db ] || { echo "there is no datastore in $PWD/db" >&2; exit 3; }
  if [ "$active" != inactive ] && [ "$active" != failed ]; then
    : >"$stopped"
    echo "stopping k3s"
    service_stop k3s
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

/// Copies one SQLite database to another, with what is in its write-ahead log.
const PYTHON: &str = r#"import sqlite3, sys
source = sqlite3.connect("file:" + sys.argv[1] + "?mode=rw", uri=True, timeout=60)
copy = sqlite3.connect(sys.argv[2])
source.backup(copy)
copy.close()
source.close()
"#;

fn pack(service: &dyn Service) -> String {
    service.functions().to_owned() + &PACK.replace("@PYTHON@", PYTHON)
}

/// Servers whose machines run, those whose API answers first: any of several has etcd's data.
fn sources(world: &World) -> Result<Vec<&Node>, StepError> {
    let seen = world.seen();
    let runs = |s: &&Node| seen.machines.get(&s.name).is_some_and(|m| m.state == MachineState::Running);
    let mut all: Vec<&Node> = world.cluster.servers().filter(runs).collect();
    if all.len() > 1 {
        all.sort_by_key(|s| !world.listens(s, KNOCK));
    }
    match all.is_empty() {
        true => Err(StepError::new("no server's machine runs", "`p1 start` starts them.")),
        false => Ok(all),
    }
}

/// Packs the data on the first server that can. Which it was, what its script printed, and since when k3s is
/// stopped there, if it was for the copy.
fn packed<'w>(ctx: &Ctx<'w>) -> Result<(&'w Node, String, Option<Instant>), StepError> {
    let mut first = None;
    for server in sources(ctx.world)? {
        let mut stopped = None;
        let mut hear = |line: &str| {
            if line == STOPPING {
                stopped.get_or_insert_with(Instant::now);
            }
        };
        match job_heard(ctx, server, "pack", &pack(ctx.world.guest(server).service()), &mut hear) {
            Ok(text) => return Ok((server, text, stopped)),
            Err(error) if error.cancelled() => return Err(error),
            Err(error) => {
                ctx.control.log(&error.failure.cause);
                first.get_or_insert(error);
            }
        }
    }
    Err(first.expect("a server was tried"))
}

fn copy(ctx: &Ctx<'_>) -> Result<Option<String>, StepError> {
    let world = ctx.world;
    let tokens = world.tokens_of_now(&mut |amiss| ctx.control.warn(format!("{amiss}.")))?;
    let (server, text, stopped) = packed(ctx)?;
    let result = text.lines().find_map(|l| l.strip_prefix("result ")).unwrap_or_default();
    let datastore = match result.split(' ').next() {
        Some("etcd") => Datastore::Etcd,
        _ => Datastore::Sqlite,
    };
    // The cluster is without its API until then; fetching the copy would only keep the server from starting.
    let back = result.ends_with("stopped").then(|| until_active(ctx, server));
    let away = stopped.map(|since| seconds(since.elapsed()));
    let manifest = Manifest::of(&world.cluster, datastore, world.state.facts()?.k3s.and_then(|k| k.version));
    ctx.control.says("fetching it");
    let data = world.on(server, |r| r.read_file(PACKED, MAX_BYTES, Bound::new(SEND, SILENCE)))?;
    let sum = world.on(server, |r| r.sha256(PACKED, SCRIPT_TIMEOUT))?;
    let passwords = world.seen().run.passwords.clone();
    let backup = Backup { manifest, tokens, passwords, data };
    if sum != Some(backup.checksum()) {
        return Err(StepError::new("the data did not come whole", "`p1 retry` fetches it again.").transient());
    }
    let path = file(world)?;
    let size = backup.write(&path)?;
    world.script(server, "removing what was packed", "rm -rf /var/lib/p1/backup\n")?;
    let how = match (back, away) {
        (None, _) => String::new(),
        (Some(active), away) => {
            active?;
            until_ready(ctx, server);
            format!(
                "; k3s was stopped for the copy, since {} has neither sqlite3 nor python3 that can copy its data: the API \
                 was away for {}",
                server.name,
                away.unwrap_or_else(|| "a moment".to_owned())
            )
        }
    };
    Ok(Some(format!("wrote {} ({:.1} MB){how}", path.display(), size as f64 / 1e6)))
}

/// What else works on the cluster asks whether its server is Ready, which takes a while after a start.
fn until_ready(ctx: &Ctx<'_>, server: &Node) {
    let world = ctx.world;
    if !world.state.kubeconfig().is_file() {
        return;
    }
    let bound = world.cluster.timeouts.node_ready;
    let mut first: Option<String> = None;
    let back = wait_for(ctx, Patience::of(bound), || {
        let (beat, wrong) = match pulse(world, server) {
            Ok(pulse) => pulse,
            Err(error) => return Ok(Err(error.failure.cause)),
        };
        let before = first.get_or_insert_with(|| beat.clone());
        Ok(match wrong {
            None if *before != beat => Ok(()),
            wrong => Err(wrong.unwrap_or_else(|| "it has not reported since k3s was started again".into())),
        })
    });
    if let Ok(Err(why)) = back {
        let bound = seconds(bound);
        let name = &server.name;
        ctx.control.warn(format!(
            "The backup is whole, and {name} was not Ready again within {bound}: {why}. Its journal: p1 logs {name}"
        ));
    }
}

fn until_active(ctx: &Ctx<'_>, node: &Node) -> Result<(), StepError> {
    let bound = ctx.world.cluster.timeouts.server_ready;
    let active = wait_for(ctx, Patience::of(bound), || {
        let service = ctx.world.guest(node).service();
        let text = ctx.world.script(node, "looking at k3s' unit", &service.state(node.role.unit()))?;
        Ok(match service.read(&text).active {
            Activity::Active => Ok(()),
            other => Err(format!("waiting for k3s, which was stopped for the copy (it is {other})")),
        })
    })?;
    active.map_err(|_| {
        StepError::new(
            format!("k3s did not become active again within {}", seconds(bound)),
            format!("The backup is whole. `p1 logs {}` shows its journal.", node.name),
        )
        .kind(FailureKind::bound(bound))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::os::Cancel;
    use crate::os::process::Cmd;

    /// While another program writes: what was committed is in the copy, be it in the write-ahead log still.
    #[test]
    fn python_copies_a_database_that_is_written_to() {
        let dir = tempfile::tempdir().unwrap();
        let copier = dir.path().join("copy.py");
        std::fs::write(&copier, PYTHON).unwrap();
        let program = format!(
            "import sqlite3, subprocess, sys\n\
             db = sqlite3.connect('state.db', isolation_level=None)\n\
             db.execute('pragma journal_mode=wal')\n\
             db.execute('create table kine (id integer)')\n\
             for i in range(500): db.execute('insert into kine values (?)', (i,))\n\
             db.execute('begin immediate')\n\
             db.execute('insert into kine values (1000)')\n\
             subprocess.run([sys.executable, {:?}, 'state.db', 'copy.db'], check=True, timeout=50)\n\
             db.execute('rollback')\n\
             print(sqlite3.connect('copy.db').execute('select count(*), max(id) from kine').fetchone())\n",
            copier
        );
        let cmd = Cmd::new("python3").arg("-c").arg(program).cwd(dir.path());
        let done = crate::os::process::run(&cmd, Duration::from_secs(60), &Cancel::new()).unwrap();
        assert_eq!(done.stdout.trim(), "(500, 499)", "{}", done.stderr);
    }
}
