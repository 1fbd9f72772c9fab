//! k3s' files are on the node: binary, installer, images. Pushed only when the node's copy differs.

use std::sync::Arc;
use std::time::Duration;

use serde_json::json;

use super::{Item, NodeCtx, NodeDef, Step, push};
use crate::access::SHORT;
use crate::engine::Trouble;
use crate::k3s;
use crate::observed::{View, Wanted, holds};
use crate::os::process::quote;
use crate::plan::{After, Check, ClusterStep, NodeStep, Per};
use crate::spec::{Cluster, Node};
use crate::ssh::{Bound, Source, Upload};

pub const STEP: Step = Step::Node(NodeDef {
    name: NodeStep::Stage,
    title: "push k3s",
    per: Per::Node,
    after: &[
        After::Node(NodeStep::System),
        After::Kept(NodeStep::Push),
        After::Everywhere(NodeStep::Push),
        After::Cluster(ClusterStep::Artifacts),
        After::Cluster(ClusterStep::Save),
        After::Touch(NodeStep::Ready),
    ],
    retry: true,
    check,
    inputs,
    apply,
});

/// A file of some hundred MB to an emulated guest; silence is the sooner sign of trouble.
const PUSH: Duration = Duration::from_secs(1800);
const SILENCE: Duration = Duration::from_secs(120);

pub(super) fn check(view: &View<'_>, node: &Node, _: Item<'_>) -> Check {
    let facts = match view.facts(node) {
        Ok(facts) => facts,
        Err(check) => return check,
    };
    let Some(wanted) = &view.seen.wanted else {
        if let (Some(to), Some(from)) = (&view.seen.version, view.version(node))
            && !k3s::runs(to, from)
        {
            return Check::Needed(format!("it runs {from}, not {to}"));
        }
        return Check::Unknown("looked at when it is known which k3s is wanted".into());
    };
    let differs = wanted.iter().find(|w| facts.staged.get(&w.path) != Some(&w.sha256));
    holds("its files are the wanted ones", differs.map(|w| format!("{} is not there or another one", w.path)))
}

pub(super) fn inputs(cluster: &Cluster, _: &Node) -> serde_json::Value {
    json!([cluster.k3s.release, cluster.k3s.artifacts])
}

fn apply(ctx: &NodeCtx<'_>) -> Result<Option<String>, Trouble> {
    let (world, node) = (ctx.world, ctx.node);
    let files = world.files(&mut |_| {}, &mut |_| {})?;
    let wanted = crate::access::wanted(&files);
    let facts = world.facts(node)?;
    let noted = &facts.staged;
    let binary = format!("{}/k3s", k3s::BIN_DIR);
    let bare = !facts.scripts.contains(&binary);
    let mut pushed = 0;
    for file in &wanted {
        if noted.get(&file.path) == Some(&file.sha256) {
            continue;
        }
        // A box may bring k3s along, without p1's note of it.
        if !bare && world.on(node, |r| r.sha256(&file.path, SHORT))?.as_ref() == Some(&file.sha256) {
            continue;
        }
        let next = push::place(&file.path);
        if !bare && world.on(node, |r| r.sha256(&next, SHORT))?.as_ref() == Some(&file.sha256) {
            world.script(node, "putting k3s in its place", &moving(&next, &file.path))?;
            continue;
        }
        transfer(ctx, file, &file.path)?;
        pushed += file.len;
    }
    world.script(node, "noting what was pushed", &note(&wanted))?;
    world.note(|seen| {
        if let Some(facts) = seen.nodes.get_mut(&node.name).map(Arc::make_mut) {
            facts.staged = wanted.iter().map(|w| (w.path.clone(), w.sha256.clone())).collect();
        }
    });
    Ok(Some(told(pushed)))
}

/// How much went over.
pub fn told(pushed: u64) -> String {
    match pushed {
        0 => "all there".to_owned(),
        bytes => format!("pushed {:.1} MB", bytes as f64 / 1e6),
    }
}

/// One file onto the node, to this path.
pub fn transfer(ctx: &NodeCtx<'_>, file: &Wanted, dest: &str) -> Result<(), Trouble> {
    let name = file.path.rsplit('/').next().unwrap_or_default();
    let source = Source::File(&file.source);
    let upload = Upload { source, dest, mode: file.mode, sha256: Some(&file.sha256) };
    let mut progress = |done| ctx.control.moved(&format!("pushing {name}"), done, Some(file.len));
    ctx.world.on(ctx.node, |r| r.upload(&upload, Bound::new(PUSH, SILENCE), &mut progress))?;
    Ok(())
}

/// Into its place at once and whole, also from another file system.
fn moving(from: &str, to: &str) -> String {
    let (from, to, part) = (quote(from), quote(to), quote(&format!("{to}.p1-next")));
    format!("set -e\nmkdir -p \"$(dirname {to})\"\nmv -f {from} {part}\nmv -f {part} {to}\n")
}

/// Notes the files with size and time, so that the next look need not hash them, makes them what
/// they have to be, and takes away image archives that are no longer wanted.
fn note(wanted: &[Wanted]) -> String {
    let mut script = String::from("set -e\nmkdir -p /var/lib/p1\n: > /var/lib/p1/files.new\n");
    for file in wanted {
        let path = quote(&file.path);
        script.push_str(&format!("chmod {:o} {path}\n", file.mode));
        let stat = format!("$(stat -c '%s %Y %n' {path})");
        script.push_str(&format!("echo \"{} {stat}\" >> /var/lib/p1/files.new\n", file.sha256));
    }
    script.push_str(
        "if [ -f /var/lib/p1/files ]; then\n  while read -r _ _ _ path; do\n    case $path in\n      \
         /var/lib/rancher/k3s/agent/images/*) grep -qF \" $path\" /var/lib/p1/files.new || rm -f \"$path\" ;;\n    \
         esac\n  done < /var/lib/p1/files\nfi\nmv /var/lib/p1/files.new /var/lib/p1/files\n\
         rm -rf /var/lib/p1/next\n",
    );
    script
}
