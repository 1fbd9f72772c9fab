//! k3s' unit on a node: how the init system has it, and what its log says of the start that counts.

use crate::access::{SCRIPT_TIMEOUT, World};
use crate::engine::StepError;
use crate::explain::FailureKind;
use crate::guest::{Activity, Since};
use crate::k3s::{self, Diagnosis};
use crate::os::process;
use crate::spec::Node;
use crate::steps::NodeCtx;

/// Lines of the unit's journal to look for a cause in: while it starts, and when it was started again, for
/// which a server of Kubernetes 1.21 writes some 200 each time.
pub const LINES_WHILE_STARTING: u32 = 60;
pub const LINES_WITH_CRASHES: u32 = 600;
/// A unit that was restarted so often since its start does not get up by itself.
const CRASHES: u32 = 4;

/// What the init system says of the unit.
pub struct Unit {
    /// It is active.
    pub active: bool,
    failed: bool,
    /// How often it was started again since somebody started it.
    pub restarts: u32,
}

impl Unit {
    /// Asks the node.
    pub fn of(ctx: &NodeCtx<'_>) -> Result<Self, StepError> {
        let node = ctx.node;
        let service = ctx.world.guest(node).service();
        let text = ctx.world.script(node, "looking at k3s' unit", &service.state(node.role.unit()))?;
        let unit = service.read(&text);
        Ok(Self {
            active: unit.active == Activity::Active,
            failed: unit.active == Activity::Failed,
            restarts: unit.restarts,
        })
    }

    /// Whether it keeps crashing, or for good, having been started again `before` times when the
    /// wait began.
    pub fn gave_up(&self, before: u32) -> bool {
        self.failed || self.restarts >= before + CRASHES
    }
}

/// What one start of the unit said, of its last so many lines: the start that ended last, if it `ended`,
/// else the one that goes on. By the invocation that each line is of:
/// lines of other starts are no evidence of this one.
pub fn journal(ctx: &NodeCtx<'_>, since: &Since, most: u32, ended: bool) -> Result<Vec<String>, StepError> {
    let (world, node) = (ctx.world, ctx.node);
    let service = world.guest(node).service();
    let script = service.said(node.role.unit(), since, most);
    let read =
        world.on(node, |r| r.script("reading k3s' journal", &script, true, SCRIPT_TIMEOUT, &mut |_| {}));
    let text = match read {
        // A node that is out of reach for a moment has said nothing for a moment.
        Err(error) if error.may_pass() => {
            ctx.control.log(&error.failure.cause);
            return Ok(Vec::new());
        }
        read => read?.text(),
    };
    let tokens = world.tokens()?;
    Ok(k3s::one_start(&service.lines(&text), ended, &since.invocation)
        .iter()
        .map(|l| tokens.redact(l))
        .collect())
}

/// Why a unit does not come up, from what one start of it said.
pub fn k3s_failure(
    ctx: &NodeCtx<'_>,
    lines: &[String],
    late: Option<std::time::Duration>,
    restarts: u32,
) -> StepError {
    let node = ctx.node;
    let unit = node.role.unit();
    let what = match late {
        Some(bound) => format!("{unit} did not become active within {}", crate::explain::seconds(bound)),
        None if restarts > 0 => format!("{unit} crashes every time it starts"),
        None => format!("{unit} does not start"),
    };
    let mut evidence = k3s::telling(lines, restarts > 0);
    let (cause, hint, next) = match k3s::diagnose(lines) {
        Some(found) => {
            // What it says after that may be longer, such as a trace.
            if !evidence.iter().any(|line| line.starts_with(&found.line)) {
                evidence.insert(0, found.line.clone());
            }
            let found = with_facts(ctx.world, node, found, &mut evidence);
            (format!("{what}: {}", found.cause), found.hint, found.next)
        }
        None => {
            let words = k3s::last_words(lines).filter(|_| restarts > 0);
            let cause = words.map_or_else(|| what.clone(), |words| format!("{what}: {words}"));
            (cause, format!("`p1 logs {}` shows its journal.", node.name), &[][..])
        }
    };
    let kind = late.map_or(FailureKind::Refused, FailureKind::bound);
    StepError::new(cause, hint).kind(kind).evidence(evidence).next(next.iter().copied())
}

/// A cause with what p1 can find out about it by itself.
pub fn with_facts(world: &World, node: &Node, mut found: Diagnosis, evidence: &mut Vec<String>) -> Diagnosis {
    match &found.fact {
        Some(k3s::Fact::Port(port)) => {
            if let Some((who, line)) = holder(world, node, *port) {
                found.cause = found.cause.replace("another program", &who);
                evidence.push(line);
            }
        }
        Some(k3s::Fact::Settings(keys)) => {
            let all = other_settings(world, node);
            evidence.extend(all.iter().take(3).map(|o| format!("{} sets {} too", o.file, o.keys.join(", "))));
            let sets = |o: &&Other| keys.is_empty() || o.keys.iter().any(|k| keys.contains(k));
            if let Some(other) = all.iter().find(sets) {
                let key = other.keys.iter().find(|k| keys.contains(k)).unwrap_or(&other.keys[0]);
                found.cause = format!("{}: {} on the node sets `{key}`", found.cause, other.file);
                found.hint = format!(
                    "What p1 writes is overridden there: take it out of the file, which `p1 exec {} --root -- cat {}` shows.",
                    node.name,
                    process::quote(&other.file)
                );
                found.next = &[];
            }
        }
        Some(k3s::Fact::Members) => {
            if let Some((answer, all)) = world.members().filter(|(_, all)| *all > 1) {
                found.cause = format!("{} ({answer} of {all} servers' etcd answer)", found.cause);
            }
        }
        None => {}
    }
    found
}

/// A file on a node that configures k3s beside what p1 and the installer write.
#[derive(Debug, PartialEq)]
struct Other {
    file: String,
    /// What it sets; never the values, which may be secrets.
    keys: Vec<String>,
}

/// docs.k3s.io/installation/configuration, "Multiple config files".
fn other_settings(world: &World, node: &Node) -> Vec<Other> {
    let unit = node.role.unit();
    let script = format!(
        "for f in /etc/rancher/k3s/config.yaml.d/*.yaml /etc/rancher/k3s/config.yaml.d/*.yml; do [ -f \"$f\" ] &&\n\
         sed -n 's/^\\([A-Za-z0-9-]\\{{1,\\}}\\)+\\{{0,1\\}}[[:space:]]*:.*/\\1/p' \"$f\" | while read -r k; do echo \"$k $f\"; done\n\
         done\n\
         {}",
        world.guest(node).service().settings(unit)
    );
    let text = world.script(node, "looking for other settings of k3s", &script).unwrap_or_default();
    let mut all: Vec<Other> = Vec::new();
    for (key, file) in text.lines().filter_map(|l| l.split_once(' ')) {
        match all.iter_mut().find(|o| o.file == file) {
            Some(other) if other.keys.iter().any(|k| k == key) => {}
            Some(other) => other.keys.push(key.to_owned()),
            None => all.push(Other { file: file.to_owned(), keys: vec![key.to_owned()] }),
        }
    }
    all
}

/// Who listens at a port of a node: `sshd (pid 812)`, and the line of `ss` that says so.
fn holder(world: &World, node: &Node, port: u16) -> Option<(String, String)> {
    let script = format!("ss -Hltnp 'sport = :{port}'");
    let text = world.script(node, "asking who holds the port", &script).ok()?;
    let line = text.lines().find(|l| l.contains("users:"))?;
    // users:(("sshd",pid=812,fd=3),("sshd",pid=9,fd=4))
    let (_, rest) = line.split_once("((\"")?;
    let (name, rest) = rest.split_once("\",pid=")?;
    let pid: u32 = rest.split(',').next()?.parse().ok()?;
    Some((
        format!("{} (pid {pid})", process::quote(name)),
        line.split_whitespace().collect::<Vec<_>>().join(" "),
    ))
}

/// Has the init system start k3s, and does not wait for it. The moment, by the node's clock.
pub fn begin(ctx: &NodeCtx<'_>) -> Result<Since, StepError> {
    let (world, node) = (ctx.world, ctx.node);
    let unit = node.role.unit();
    let service = world.guest(node).service();
    let since = service.started(&world.script(node, "starting k3s", &service.start(unit))?);
    world.note(|seen| {
        seen.run.started.insert(node.name.clone(), since.at.parse().unwrap_or(0));
    });
    Ok(since)
}
