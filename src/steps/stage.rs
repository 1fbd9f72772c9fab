//! k3s' files are on the node: binary, installer, images. Pushed only when the node's copy differs.

use std::sync::Arc;
use std::thread;

use super::shared::found::rewrites;
use super::shared::inputs;
use super::shared::transfer::{Transfer, next};
use super::{NodeCtx, NodeDef, Step};
use crate::access::SCRIPT_TIMEOUT;
use crate::engine::StepError;
use crate::k3s;
use crate::observed::Wanted;
use crate::observed::files::staged;
use crate::os::process::quote;
use crate::plan::{After, ClusterStep, NodeStep, Per};

pub const STEP: Step = Step::Node(NodeDef {
    name: NodeStep::Stage,
    title: "push k3s",
    per: Per::Node,
    after: &[
        After::Node(NodeStep::System),
        After::NodeUnchanged(NodeStep::Push),
        After::RunningNodesEnded(NodeStep::Push),
        After::Cluster(ClusterStep::Artifacts),
        After::Cluster(ClusterStep::Files),
        After::Cluster(ClusterStep::Save),
        After::PreviousInOrderIfRunning(NodeStep::Ready),
    ],
    needs: None,
    retry: true,
    check: |view, node, _| staged(view, node),
    inputs: inputs::files,
    apply,
});

fn apply(ctx: &NodeCtx<'_>) -> Result<Option<String>, StepError> {
    let (world, node) = (ctx.world, ctx.node);
    let facts = world.facts(node)?;
    let wanted = world.wanted(node)?;
    rewrites(world, node, &facts)?;
    let noted = &facts.staged;
    let binary = format!("{}/k3s", k3s::BIN_DIR);
    let bare = !facts.scripts.contains(&binary);
    let mut transfer = Transfer::new(ctx);
    for file in &wanted {
        if noted.get(&file.path) == Some(&file.sha256) {
            continue;
        }
        // A box may bring k3s along, without p1's note of it.
        if !bare && world.on(node, |r| r.sha256(&file.path, SCRIPT_TIMEOUT))?.as_ref() == Some(&file.sha256) {
            continue;
        }
        let next = next(&file.path);
        if !bare && world.on(node, |r| r.sha256(&next, SCRIPT_TIMEOUT))?.as_ref() == Some(&file.sha256) {
            world.script(node, "putting k3s in its place", &moving(&next, &file.path))?;
            continue;
        }
        transfer.file(file, &file.path)?;
        if file.path == binary && bare {
            world.script(node, "having k3s unpack itself", &unpacking(&binary))?;
        }
    }
    // The machine lets go of the disk while the node notes what it has.
    let (told, noted) = thread::scope(|scope| {
        let told = scope.spawn(|| transfer.end());
        let noted = world.script(node, "noting what was pushed", &note(&wanted));
        (told.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)), noted)
    });
    noted?;
    world.note(|seen| {
        if let Some(facts) = seen.nodes.get_mut(&node.name).map(Arc::make_mut) {
            facts.staged = wanted.iter().map(|w| (w.path.clone(), w.sha256.clone())).collect();
        }
    });
    Ok(Some(told))
}

/// Before it does anything k3s unpacks itself into its data directory, under a lock of its own: 45 s on one emulated
/// CPU, which its first start is spared when that begins now.
fn unpacking(binary: &str) -> String {
    let binary = quote(binary);
    format!("nohup timeout 600 {binary} kubectl version --client </dev/null >/dev/null 2>&1 &\n")
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
