//! Verbs that run steps: look, plan, run, tell.

use std::sync::Arc;

use super::change;
use super::changes;
use super::closing::{self, Before};
use super::context::Context;
use super::error::{CliError, code};
use super::front;
use crate::access::World;
use crate::engine::Report;
use crate::event::{Event, Outcome};
use crate::journal;
use crate::os::files::At;
use crate::plan::Plan;
use crate::redact::Redactor;
use crate::spec::Cluster;
use crate::state::StateDir;
use crate::ui;
use crate::verbs::{self, Audience};

pub use crate::verbs::Job;

/// Asks whether a run may go ahead with its plan; answers with the namespaces that the user agreed to delete with all that
/// is in them.
type Ready<'a> = &'a dyn Fn(&World, &Plan) -> Result<Vec<String>, CliError>;

/// Runs steps from the lock to the last line on the screen. `ready` is asked, with the plan, whether
/// it may go ahead; it may ask the user, or look at the host.
pub fn run(
    context: &Context,
    cluster: Cluster,
    job: Job,
    ready: &dyn Fn(&World, &Plan) -> Result<(), CliError>,
) -> Result<Report, CliError> {
    let ready = |world: &World, plan: &Plan| ready(world, plan).map(|()| Vec::new());
    run_to(context, cluster, job, &|_| Ok(()), &ready)
}

/// The same, with something to be done under the lock before anything is looked at.
pub fn run_to(
    context: &Context,
    cluster: Cluster,
    job: Job,
    before: &dyn Fn(&World) -> Result<(), CliError>,
    ready: Ready<'_>,
) -> Result<Report, CliError> {
    whole(context, cluster, job, before, ready, &|_| ())
}

/// The same, with a last look at what was seen when all steps have passed.
pub fn run_then(
    context: &Context,
    cluster: Cluster,
    job: Job,
    after: &dyn Fn(&World),
    ready: Ready<'_>,
) -> Result<Report, CliError> {
    whole(context, cluster, job, &|_| Ok(()), ready, after)
}

fn whole(
    context: &Context,
    cluster: Cluster,
    job: Job,
    before: &dyn Fn(&World) -> Result<(), CliError>,
    ready: Ready<'_>,
    after: &dyn Fn(&World),
) -> Result<Report, CliError> {
    let state = StateDir::of(cluster.home(), &cluster.name);
    let kind = context.kind(&cluster, &state)?;
    let existed = state.exists();
    let lock = context.lock(&state, kind, job.verb.name.as_str())?;
    // Before anything is made, so that what a killed p1 leaves is listed too.
    context.index().keep(&context.note(&cluster, kind))?;
    let world = context.world(cluster.clone(), kind);
    let result = locked(context, &world, &job, before, ready);
    if result.as_ref().is_ok_and(|r| r.success) {
        after(&world);
        if job.verb.boots() {
            // It ended with this host, where that was restarted.
            world.front.ensure()?;
        }
    }
    if job.verb.takes_all(&job.targets) && result.as_ref().is_ok_and(|r| r.success) {
        // Before the lock is freed: the next owner would lose its folder.
        gone(context, &cluster)?;
    }
    if !existed && journal::runs(&state.runs()).is_empty() {
        // Nothing was begun: leave no folder behind that would look like a cluster.
        let _ = gone(context, &cluster);
    }
    drop(lock);
    result
}

/// Nothing is there of a cluster any more: its folder goes, and the note of it.
pub fn gone(context: &Context, cluster: &Cluster) -> Result<(), CliError> {
    let state = StateDir::of(cluster.home(), &cluster.name);
    if cluster.fork.is_some() {
        front::end(&state);
    }
    state.remove()?;
    context.index().drop(state.dir())?;
    if let Some(fork) = cluster.fork.as_ref().filter(|f| f.home.starts_with(context.dirs().forks())) {
        std::fs::remove_dir_all(&fork.home).at("remove", &fork.home)?;
    }
    Ok(())
}

fn locked(
    context: &Context,
    world: &Arc<World>,
    job: &Job,
    before: &dyn Fn(&World) -> Result<(), CliError>,
    ready: Ready<'_>,
) -> Result<Report, CliError> {
    let tell = &|line: &str| eprintln!("{line}");
    let over = context.global.take_over.then_some(context.global.wait);
    verbs::open(world, job, over, tell)?;
    before(world)?;
    let decision = verbs::look(world, job)?;
    if !decision.losses.is_empty() && context.ui.format != ui::Format::Json {
        eprint!("{}", changes::shown(&changes::of(context, world, &decision), &context.ui));
    }
    change::must_be_agreed(context, world, &decision, &job.replace)?;
    let agreed = ready(world, &decision.plan)?;
    let was = Before::of(world);
    let (mut shown, mut watch) = (None, None);
    let start = |redactor: &Redactor| {
        let screen = ui::start(context.ui, Box::new(super::out::Data), Box::new(std::io::stderr()));
        let sender = screen.sender();
        watch = Some(super::signals::watch(context.cancel.clone(), screen.sender())?);
        tell_of_panics(redactor.clone(), Some(screen.sender()));
        shown = Some((screen, redactor.clone()));
        Ok::<_, CliError>(Box::new(Shown(sender)) as Box<dyn Audience>)
    };
    let report = verbs::run(world, job, &decision.plan, agreed, tell, start);
    if let Some((screen, redactor)) = shown {
        let mut board = screen.finish();
        board.forgotten = !world.state.runs().join(format!("{}.jsonl", world.run)).exists();
        tell_of_panics(redactor, None);
        if report.as_ref().is_ok_and(|r| r.success) {
            (board.now, board.next) = closing::now(world, job, &was);
        }
        // Also where the journal could not be written: what failed is worth knowing.
        eprint!("{}", ui::closing(&board, &context.ui, &context.called()));
    }
    report
}

/// Hears of a run for the screen.
struct Shown(ui::Sender);

impl Audience for Shown {
    fn event(&self, event: Event) {
        self.0.event(event);
    }

    fn note(&self, text: &str) {
        self.0.note(text);
    }
}

/// A panic is told where it does not break the screen, and without secrets. The step that it ends says
/// so too.
fn tell_of_panics(redactor: Redactor, screen: Option<ui::Sender>) {
    std::panic::set_hook(Box::new(move |panic| {
        let text = format!("p1 itself failed: {}", redactor.text(&panic.to_string()));
        match &screen {
            Some(screen) => screen.note(&text),
            None => eprintln!("{text}"),
        }
    }));
}

/// The exit code of a run.
pub fn verdict(report: &Report) -> Result<(), CliError> {
    match report {
        Report { success: true, .. } => Ok(()),
        Report { interrupted: true, .. } => Err(CliError::told(code::INTERRUPTED, "interrupted")
            .hint("`p1 retry` continues.")
            .next(["p1 retry"])),
        _ => {
            let failed = report.outcomes.iter().filter_map(|(step, outcome)| match outcome {
                Outcome::Failed(failure) => Some((step, failure)),
                _ => None,
            });
            let failed: Vec<_> = failed.collect();
            let next = ui::wording::leads_on(failed.iter().map(|(_, failure)| &failure.next[..]), false);
            let Some((step, failure)) = failed.first() else {
                return Err(CliError::told(code::FAILED, "not all steps were run").next(next));
            };
            let more = match failed.len() - 1 {
                0 => String::new(),
                n => format!(" ({} failed beside it)", ui::count(n, "step")),
            };
            Err(CliError {
                kind: failure.kind.clone(),
                hint: failure.hint.clone(),
                evidence: failure.evidence.clone(),
                next,
                ..CliError::told(code::FAILED, format!("{step} failed: {}{more}", failure.cause))
            })
        }
    }
}
