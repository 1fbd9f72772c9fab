//! Before k3s becomes another version, the cluster's state is saved on a server.

use std::time::Duration;

use serde_json::json;

use super::{ClusterDef, Ctx, Step};
use crate::access::Via;
use crate::engine::StepError;
use crate::guest::Service;
use crate::k3s;
use crate::observed::View;
use crate::os::process::{self, quote};
use crate::plan::{After, Check, ClusterStep, K3sState};
use crate::spec::Cluster;
use crate::ssh::Bound;

pub const STEP: Step = Step::Cluster(ClusterDef {
    name: ClusterStep::Save,
    title: "save the state before the upgrade",
    after: &[After::Cluster(ClusterStep::Artifacts)],
    on_demand: true,
    needs: None,
    retry: true,
    check,
    inputs,
    apply,
});

/// etcd's snapshot goes through its own tool, which starts slowly under emulation.
const SNAPSHOT: Duration = Duration::from_secs(300);
/// SQLite's copy: k3s stands still that long at most.
const COPY: u32 = 50;

fn check(view: &View<'_>) -> Check {
    let Some(to) = &view.seen.here.version else {
        let known = view.cluster.servers().any(|s| view.version(s).is_some());
        return match known {
            true => Check::Unknown("checked when it is known which k3s is wanted".into()),
            false => Check::Done("there is no state yet".into()),
        };
    };
    let mut servers = view.cluster.servers().filter(|s| view.k3s_state(s) == K3sState::Running);
    let other = servers.find_map(|s| view.version(s).filter(|from| !k3s::runs(to, from)));
    match other {
        Some(from) => Check::Needed(format!("k3s goes from {from} to {to}")),
        None => Check::Done("k3s keeps its version".into()),
    }
}

fn inputs(cluster: &Cluster) -> serde_json::Value {
    json!([cluster.k3s.release, cluster.k3s.artifacts])
}

fn apply(ctx: &Ctx<'_>) -> Result<Option<String>, StepError> {
    let world = ctx.world;
    let server = world.server(Via::Any)?;
    let facts = world.look_at_node(server)?;
    if facts.datastore.as_deref() == Some("external") {
        return Ok(Some(format!(
            "{} keeps the state in a datastore of its own: see to a copy there",
            server.name
        )));
    }
    let seen = world.seen();
    let to = seen.here.version.clone().unwrap_or_default();
    let name = format!("p1-before-{}", to.replace('+', "-"));
    if facts.datastore.as_deref() == Some("etcd") {
        let script = format!("k3s etcd-snapshot save --name {} 2>&1", quote(&name));
        let what = "saving etcd's state";
        let bound = Bound::new(SNAPSHOT, SNAPSHOT);
        let text = world
            .on(server, |r| r.script(what, &script, true, bound, &mut |_| {})?.ok().map(|o| o.text()))?;
        text.lines().for_each(|line| ctx.control.log(line));
        return Ok(Some(format!(
            "etcd snapshot `{}` on {}",
            snapshot_in(&text).unwrap_or(name),
            server.name
        )));
    }
    let dir = format!("/var/lib/p1/backups/{name}-{}", world.run);
    let text = world
        .script(server, "copying k3s' datastore", &copy(world.guest(server).service(), &dir))
        .map_err(|mut error| {
            error.failure.evidence = process::tail(&error.failure.evidence.join("\n"), 6);
            error
        })?;
    text.lines().for_each(|line| ctx.control.log(line));
    Ok(Some(format!("SQLite and token in {dir} on {}", server.name)))
}

/// The name that k3s gave the snapshot: `Snapshot NAME saved.`, or in older versions the file's path.
fn snapshot_in(text: &str) -> Option<String> {
    let word = |line: &str| {
        let (_, rest) = line.split_once("Snapshot ")?;
        let (name, _) = rest.split_once(" saved")?;
        Some(name.trim_matches(['"', '`', '\'']).to_owned())
    };
    text.lines().find_map(word).filter(|name| !name.is_empty() && !name.contains(' '))
}

/// Copies SQLite's files and the token while k3s stands still: nothing is written between the first
/// file and the last, so the copy is what a power cut would have left, which SQLite mends when it is
/// opened. It goes on in any case, also when this script is cut off.
fn copy(service: &dyn Service, dir: &str) -> String {
    let dir = quote(dir);
    format!(
        "{}umask 077
mkdir -p {dir} || exit 1
pid=$(service_pid k3s)
if [ \"${{pid:-0}}\" -gt 0 ]; then
  (sleep {COPY}; kill -CONT \"$pid\") >/dev/null 2>&1 </dev/null &
  guard=$!
  trap 'kill -CONT \"$pid\"; kill \"$guard\" 2>/dev/null' EXIT
  trap 'exit 1' HUP INT TERM
  kill -STOP \"$pid\" || exit 1
fi
cd /var/lib/rancher/k3s/server || exit 1
mkdir -p {dir}/db && cp -p db/state.db* {dir}/db/ && cp -p token {dir}/ || exit 1
du -sk {dir}
",
        service.functions()
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_snapshot_is_called_by_the_name_it_got() {
        let new = "time=\"2026-11-25T22:00:00Z\" level=info msg=\"Snapshot p1-before-v1.34.2-k3s1-server-1-1795600000 saved.\"";
        assert_eq!(snapshot_in(new).unwrap(), "p1-before-v1.34.2-k3s1-server-1-1795600000");
        assert_eq!(snapshot_in("Saving etcd snapshot to /var/x"), None);
    }
}
