//! `p1 doctor`, and the same questions before machines are made.

use serde_json::json;

use super::context::Context;
use super::error::{CliError, code};
use super::print;
use crate::access::World;
use crate::boxes;
use crate::host::{self, Finding, Host, Question, Status, Tool, fix};
use crate::machines::{Kind, MachineState};
use crate::spec::{BoxRef, Cluster};
use crate::state::StateDir;
use crate::ui::{Format, Tone, count, wording};

/// `p1 doctor`: with a spec in reach it is asked for that cluster, without one in general.
pub fn doctor(context: &Context, fix: bool) -> Result<(), CliError> {
    let cluster = match context.global.file.exists() {
        true => Some(context.spec()?),
        false => None,
    };
    if fix {
        set_up_for(context, cluster.as_ref())?;
    }
    let (host, findings) = ask(context, cluster.as_ref(), true);
    show(context, &findings);
    if host::worst(&findings) == Status::Problem {
        let first = findings.iter().find(|f| f.status == Status::Problem);
        let what = first.map(|f| format!("{}: {}", f.title, f.detail)).unwrap_or_default();
        let fail = advised(&host, &findings, CliError::told(code::HOST, what));
        if let (false, Some(hint)) = (fail.next.is_empty(), &fail.hint) {
            eprintln!("{}", wording::called(hint, &context.called()));
        }
        return Err(fail);
    }
    Ok(())
}

/// What mends a host that is not ready: p1 where it can, else what stands with each problem.
fn advised(host: &Host, findings: &[Finding], fail: CliError) -> CliError {
    if fix::plan(host, findings).actions.is_empty() {
        let problems = findings.iter().filter(|f| f.status == Status::Problem);
        let remedies: Vec<&str> = problems.filter_map(|f| Some(f.remedy.as_ref()?.text.as_str())).collect();
        return fail.hint(remedies.join(" "));
    }
    fail.hint("`p1 doctor --fix` shows the commands that fix it and runs them when you agree.")
        .next(["p1 doctor --fix"])
}

/// `p1 up --setup`.
pub fn set_up(context: &Context, cluster: &Cluster) -> Result<(), CliError> {
    set_up_for(context, Some(cluster))
}

fn set_up_for(context: &Context, cluster: Option<&Cluster>) -> Result<(), CliError> {
    // A second look after the first round: what a package brought may have to be started.
    for round in 0..3 {
        let (host, findings) = ask(context, cluster, true);
        let plan = fix::plan(&host, &findings);
        if plan.actions.is_empty() {
            if round == 0 && plan.by_hand.is_empty() {
                eprintln!("this host has all it needs");
            }
            for text in &plan.by_hand {
                eprintln!("to be done by you: {text}");
            }
            return Ok(());
        }
        let paint = context.paint();
        eprintln!("{}", paint.tone(Tone::Bold, "Some requirements are missing on this host. p1 would run:"));
        for action in &plan.actions {
            eprintln!("  {}  {}", action.line, paint.tone(Tone::Dim, &format!("# {}", action.what)));
        }
        context.agree("Run these commands on this host?")?;
        let _signals = super::signals::watch_plain(context.cancel.clone())?;
        if plan.wants_sudo() && context.can_ask() {
            crate::os::process::hand_over(&crate::os::process::Cmd::new("sudo").arg("-v"))?;
        }
        for action in &plan.actions {
            eprintln!("{} {}", paint.tone(Tone::Hint, "$"), action.line);
            let mut last = Vec::new();
            action.run(
                &mut |_, line| {
                    last.push(line.to_owned());
                    if context.global.verbose > 0 {
                        eprintln!("  {line}");
                    }
                },
                &context.cancel,
            )?;
        }
        for note in &plan.notes {
            eprintln!("{note}");
        }
    }
    Ok(())
}

/// Before machines are made: problems end it with exit code 3, warnings are said.
pub fn must_be_ready(context: &Context, world: &World, new: &[String]) -> Result<(), CliError> {
    let host = context.host(Some(&world.cluster), false);
    let seen = world.seen();
    let running: Vec<String> = seen
        .machines
        .iter()
        .filter(|(name, m)| m.state == MachineState::Running || !new.contains(name))
        .map(|(name, _)| name.clone())
        .collect();
    let needs = needs(world.machines.kind(), Some(&world.cluster), seen.here.box_ready || !must_build(world));
    let engine = host::engine(Some(&world.cluster), world.machines.kind(), host.vagrant.program.is_some());
    let question = Question {
        kind: world.machines.kind(),
        engine,
        cluster: Some(&world.cluster),
        running: &running,
        needs: &needs,
    };
    let findings = host::checks(&host, &question);
    if host::worst(&findings) == Status::Problem {
        show(context, &findings);
        return Err(advised(&host, &findings, CliError::new(code::HOST, "this host is not ready", "")));
    }
    if context.ui.format != Format::Json {
        for finding in &findings {
            let word = match finding.status {
                Status::Warning => context.paint().tone(Tone::Warn, "warning:"),
                // What is made beside the cluster is said before.
                Status::Note if finding.id == "pool" => "note:".to_owned(),
                _ => continue,
            };
            eprintln!("{word} {}: {}", finding.title, finding.detail);
        }
    }
    Ok(())
}

fn must_build(world: &World) -> bool {
    if matches!(world.seen().here.baked, crate::observed::Baked::Fits(_)) {
        return false;
    }
    let BoxRef::Definition(name) = &world.cluster.image else { return false };
    let there = world.library.get(name).ok().flatten();
    if there.as_ref().is_some_and(|m| !matches!(m.origin, boxes::Origin::Built { .. })) {
        return false;
    }
    let dir = world.cluster.base.join("boxes");
    let digest = boxes::load(name, Some(&dir)).map(|d| boxes::digest(&d)).ok();
    !matches!(there.map(|m| m.origin), Some(boxes::Origin::Built { digest: d, .. }) if Some(&d) == digest.as_ref())
}

fn needs(kind: Kind, cluster: Option<&Cluster>, have_box: bool) -> Vec<Tool<'static>> {
    let built = cluster.is_none_or(|c| matches!(c.image, BoxRef::Definition(_)));
    if have_box || !built || !kind.takes_built_boxes() {
        return Vec::new();
    }
    let image = cluster.is_some_and(|c| {
        let BoxRef::Definition(name) = &c.image else { return false };
        boxes::load(name, Some(&c.base.join("boxes"))).is_ok_and(|d| d.image.is_some())
    });
    boxes::requirements(image)
        .iter()
        .map(|t| Tool { program: t.program, package: t.package, purpose: "build a box" })
        .collect()
}

/// What this host has, and what p1 makes of it for a cluster.
pub fn ask(context: &Context, cluster: Option<&Cluster>, thorough: bool) -> (Host, Vec<Finding>) {
    let host = context.host(cluster, thorough);
    let state = cluster.map(|c| StateDir::of(c.home(), &c.name));
    let made = state.as_ref().and_then(|s| s.facts().ok()?.provider);
    let (wish, choice) = cluster.map(|c| (c.provider, c.engine)).unwrap_or_default();
    let kind = made.unwrap_or_else(|| host::prefer(wish, choice, &host));
    let has_vagrant = host.vagrant.program.is_some();
    let engine = host::engine(cluster, kind, has_vagrant);
    let running = cluster.filter(|_| made.is_some()).map(|c| running(context, c, kind)).unwrap_or_default();
    let needs = needs(kind, cluster, false);
    let question = Question { kind, engine, cluster, running: &running, needs: &needs };
    let findings = host::checks(&host, &question);
    (host, findings)
}

fn running(context: &Context, cluster: &Cluster, kind: Kind) -> Vec<String> {
    let world = context.world(cluster.clone(), kind);
    let machines = world.look_at_machines().unwrap_or_default();
    machines.into_iter().filter(|(_, m)| m.state == MachineState::Running).map(|(n, _)| n).collect()
}

/// Findings as plain lines.
pub fn plain(findings: &[Finding]) -> String {
    let one = |f: &Finding| {
        let remedy = f.remedy.as_ref().filter(|_| f.status >= Status::Warning);
        let remedy = remedy.map(|r| format!("  {}\n", r.text)).unwrap_or_default();
        format!("{}  {}  {}\n{remedy}", word(f.status), f.title, f.detail)
    };
    findings.iter().map(one).collect()
}

fn word(status: Status) -> &'static str {
    match status {
        Status::Ok => "ok",
        Status::Note => "note",
        Status::Warning => "warning",
        Status::Problem => "problem",
    }
}

fn show(context: &Context, findings: &[Finding]) {
    if context.ui.format == Format::Json {
        for finding in findings {
            print(format!("{}\n", json!({"v": 1, "finding": finding})));
        }
        return;
    }
    let paint = context.paint();
    let width = findings.iter().map(|f| f.title.chars().count()).max().unwrap_or(0);
    for finding in findings {
        let tone = match finding.status {
            Status::Ok => Tone::Good,
            Status::Note => Tone::Hint,
            Status::Warning => Tone::Warn,
            Status::Problem => Tone::Bad,
        };
        let word = paint.tone(tone, &format!("{:7}", word(finding.status)));
        print(format!("{word}  {:width$}  {}\n", finding.title, finding.detail));
        if let Some(remedy) = finding.remedy.as_ref().filter(|_| finding.status >= Status::Warning) {
            print(format!("{:9}{:width$}  {}\n", "", "", paint.tone(Tone::Dim, &remedy.text)));
        }
    }
    let problems = findings.iter().filter(|f| f.status == Status::Problem).count();
    if problems > 0 {
        eprintln!("\n{}", count(problems, "problem"));
    }
}
