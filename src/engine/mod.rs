//! The engine: runs a plan. One dispatcher owns all state, writes the journal and speaks to the
//! user interface; every running step is a thread that only sends messages.
//!
//! A step runs when the steps before it have passed. A failed step blocks its dependents and nothing
//! else. The first wish to stop lets running steps end and starts nothing new.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{self, Receiver, Sender};
use std::thread::{self, Scope};
use std::time::{Duration, Instant};

use crate::event::{Event, Failure, Kind, Outcome};
use crate::explain::{Again, Explain, FailureKind, chain, clipped, printable};
use crate::journal::{self, Writer};
use crate::os::Cancel;
use crate::plan::{Check, Plan, Step};
use crate::redact::Redactor;
use crate::spec::Retry;

/// Of one text of an event, so many characters are kept.
const LONGEST: usize = 8 << 10;
/// Of one step's log.
const LOG: u64 = if cfg!(test) { 1 << 20 } else { 64 << 20 };
/// Words of one step that nobody has heard yet; more are not said.
const UNHEARD: usize = 256;

/// Why a step did not do its work.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct StepError {
    /// What to tell.
    pub failure: Failure,
    /// Whether another try may go better, or the user ended it.
    pub again: Again,
    /// But not before this time has passed: whoever refused has said so.
    pub pause: Option<Duration>,
    /// This host is not ready, see [`Explain::unready`].
    pub unready: bool,
}

impl StepError {
    /// With this cause, a lower-case fragment, and this remedy, full sentences.
    pub fn new(cause: impl Into<String>, hint: impl Into<String>) -> Self {
        let hint = Some(hint.into()).filter(|h| !h.is_empty());
        Self { failure: Failure { cause: cause.into(), hint, ..Failure::default() }, ..Self::default() }
    }

    /// The user ended it.
    pub fn interrupted() -> Self {
        Self { again: Again::Cancelled, ..Self::new("interrupted", "") }
    }

    /// The same may work when tried again soon.
    pub fn may_pass(&self) -> bool {
        self.again == Again::Soon
    }

    /// The user ended it.
    pub fn cancelled(&self) -> bool {
        self.again == Again::Cancelled
    }

    /// Of this kind.
    #[must_use]
    pub fn kind(mut self, kind: FailureKind) -> Self {
        self.failure.kind = kind;
        self
    }

    /// With these lines as evidence.
    #[must_use]
    pub fn evidence(mut self, lines: Vec<String>) -> Self {
        self.failure.evidence = lines;
        self
    }

    /// With these commands, which lead on.
    #[must_use]
    pub fn next<S: Into<String>>(mut self, commands: impl IntoIterator<Item = S>) -> Self {
        self.failure.next = commands.into_iter().map(Into::into).collect();
        self
    }

    /// Worth another try, unless the user ended it.
    #[must_use]
    pub fn transient(mut self) -> Self {
        if self.again == Again::No {
            self.again = Again::Soon;
        }
        self
    }
}

impl<E: Explain> From<E> for StepError {
    fn from(error: E) -> Self {
        Self {
            failure: Failure {
                kind: error.kind(),
                cause: chain(&error),
                hint: error.hint(),
                evidence: error.evidence(),
                log: None,
                next: error.next(),
            },
            again: error.again(),
            pause: error.pause(),
            unready: error.unready(),
        }
    }
}

/// What the engine runs: steps by name.
pub trait Work: Sync {
    /// Whether the step is needed, told just before it would run.
    fn check(&self, step: &Step) -> Check;

    /// Does the step's work; what it answers is kept and shown.
    fn apply(&self, step: &Step, control: &Control) -> Result<Option<String>, StepError>;

    /// Whether its errors may be tried again at all.
    fn retries(&self, step: &Step) -> bool;
}

/// A running step's way to be heard.
pub struct Control {
    step: String,
    sender: Sender<Message>,
    log: PathBuf,
    cancel: Cancel,
    redactor: Redactor,
    unheard: Arc<AtomicUsize>,
    full: AtomicBool,
}

impl Control {
    /// For work that runs outside an engine: nobody hears it.
    pub fn silent(log: PathBuf, cancel: Cancel, redactor: Redactor) -> Self {
        let (sender, _) = mpsc::channel();
        let (unheard, full) = (Arc::default(), AtomicBool::new(false));
        Self { step: String::new(), sender, log, cancel, redactor, unheard, full }
    }

    /// Says what it does just now.
    pub fn says(&self, message: impl Into<String>) {
        self.progress(message.into(), None, None);
    }

    /// Says how far a transfer is, in bytes.
    pub fn moved(&self, message: &str, done: u64, total: Option<u64>) {
        self.progress(message.to_owned(), Some(done), total);
    }

    /// Progress may be dropped: a node that says line upon line must not fill this host's memory.
    fn progress(&self, message: String, done: Option<u64>, total: Option<u64>) {
        if self.unheard.load(Ordering::Relaxed) >= UNHEARD {
            return;
        }
        let kind = Kind::StepProgress { step: self.step.clone(), message, done, total };
        self.unheard.fetch_add(1, Ordering::Relaxed);
        if self.sender.send(Message::Progress(kind, Arc::clone(&self.unheard))).is_err() {
            // Nobody hears a silent control.
            self.unheard.fetch_sub(1, Ordering::Relaxed);
        }
    }

    /// Says something to know that does not fail the step.
    pub fn warn(&self, message: impl Into<String>) {
        self.send(Kind::StepWarning { step: self.step.clone(), message: message.into() });
    }

    /// Writes a line into the step's log, with the time (UTC), without secrets and without what a terminal
    /// would obey. A log that is full stays as it is.
    pub fn log(&self, line: &str) {
        use std::io::Write;
        use std::os::unix::fs::OpenOptionsExt;
        if self.full.load(Ordering::Relaxed) {
            return;
        }
        if let Some(dir) = self.log.parent() {
            // A log that cannot be written must not fail the work.
            let _ = crate::os::files::private_dir(dir);
        }
        let now = jiff::Timestamp::now().strftime("%H:%M:%S%.3f");
        let file = std::fs::OpenOptions::new().append(true).create(true).mode(0o600).open(&self.log);
        let line = self.redactor.text(line);
        let line = format!("{now} {}\n", printable(&line));
        let _ = file.and_then(|mut f| {
            if f.metadata()?.len() + line.len() as u64 <= LOG {
                return f.write_all(line.as_bytes());
            }
            self.full.store(true, Ordering::Relaxed);
            f.write_all(format!("{now} (the rest is not kept: the log is full)\n").as_bytes())
        });
    }

    /// The token to hand to everything that blocks.
    pub fn cancel(&self) -> &Cancel {
        &self.cancel
    }

    fn send(&self, kind: Kind) {
        // The dispatcher outlives every step; a silent control has none.
        let _ = self.sender.send(Message::Event(kind));
    }
}

enum Message {
    Event(Kind),
    Progress(Kind, Arc<AtomicUsize>),
    Finished { step: usize, outcome: Outcome, attempt: u32, took: Duration },
}

/// What a run needs besides its plan.
pub struct Run<'a> {
    /// The first event but for its steps, which come from the plan.
    pub started: Kind,
    /// At most so many steps at a time, but for those that run beside others.
    pub jobs: usize,
    /// How often a step is tried.
    pub retry: &'a Retry,
    /// Where the steps' logs go.
    pub logs: &'a Path,
    pub cancel: &'a Cancel,
    /// What must neither be written down nor shown.
    pub redactor: &'a Redactor,
}

/// What came of a run.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Report {
    /// By step id; a step that never began is missing.
    pub outcomes: BTreeMap<String, Outcome>,
    /// True if nothing is outstanding.
    pub success: bool,
    /// True if the user ended it.
    pub interrupted: bool,
}

/// Runs the plan. Every event goes to the journal and to `show`; an error means that the journal
/// cannot be written, and then nothing new was started after that.
pub fn run(
    plan: &Plan,
    work: &dyn Work,
    run: Run<'_>,
    journal: &mut Writer,
    show: &mut dyn FnMut(&Event),
) -> Result<Report, journal::Error> {
    let (sender, receiver) = mpsc::channel();
    let mut dispatcher = Dispatcher {
        plan,
        places: plan.steps.iter().enumerate().map(|(i, s)| (s.info.id.as_str(), i)).collect(),
        states: vec![StepStatus::Waiting; plan.steps.len()],
        running: 0,
        placed: 0,
        report: Report::default(),
        start: Instant::now(),
        seq: 0,
        journal,
        show,
        redactor: run.redactor,
        broken: None,
    };
    let mut started = run.started.clone();
    if let Kind::RunStarted { steps, .. } = &mut started {
        *steps = plan.steps.iter().map(|s| s.info.clone()).collect();
    }
    dispatcher.emit(started);
    thread::scope(|scope| dispatcher.drive(scope, work, &run, &sender, &receiver));
    let passed = |s: &Step| dispatcher.report.outcomes.get(&s.info.id).is_some_and(Outcome::passed);
    let success = plan.steps.iter().all(passed);
    dispatcher.report.success = success;
    dispatcher.report.interrupted = !success && run.cancel.stopping();
    let interrupted = dispatcher.report.interrupted;
    dispatcher.emit(Kind::RunFinished { success, interrupted });
    match dispatcher.broken {
        Some(error) => Err(error),
        None => Ok(dispatcher.report),
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum StepStatus {
    Waiting,
    Running,
    Over,
}

struct Dispatcher<'a> {
    plan: &'a Plan,
    /// By id: where in the plan.
    places: BTreeMap<&'a str, usize>,
    states: Vec<StepStatus>,
    running: usize,
    /// Those that count among the ones that may run at a time.
    placed: usize,
    report: Report,
    start: Instant,
    seq: u64,
    journal: &'a mut Writer,
    show: &'a mut dyn FnMut(&Event),
    redactor: &'a Redactor,
    broken: Option<journal::Error>,
}

impl<'a> Dispatcher<'a> {
    fn emit(&mut self, kind: Kind) {
        let redactor = self.redactor;
        let kind = kind.map_texts(&|text| fit(text, redactor));
        let elapsed = u64::try_from(self.start.elapsed().as_millis()).unwrap_or(u64::MAX);
        let event = journal::stamp(self.seq, elapsed, kind);
        self.seq += 1;
        if self.broken.is_none()
            && let Err(error) = self.journal.append(&event)
        {
            self.broken = Some(error);
        }
        (self.show)(&event);
    }

    fn drive<'scope, 'env>(
        &mut self,
        scope: &'scope Scope<'scope, 'env>,
        work: &'env dyn Work,
        run: &'env Run<'_>,
        sender: &Sender<Message>,
        receiver: &Receiver<Message>,
    ) where
        'a: 'scope,
    {
        loop {
            self.settle();
            if self.broken.is_none() {
                self.launch(scope, work, run, sender);
            }
            if self.running == 0 {
                return;
            }
            // Words change nothing: most messages are some, and a look at all steps costs as much as there are.
            loop {
                match receiver.recv().expect("a sender is held here") {
                    Message::Event(kind) => self.emit(kind),
                    Message::Progress(kind, unheard) => {
                        unheard.fetch_sub(1, Ordering::Relaxed);
                        self.emit(kind);
                    }
                    Message::Finished { step, outcome, attempt, took } => {
                        self.running -= 1;
                        self.placed -= usize::from(!self.plan.steps[step].outside_jobs);
                        self.finish(step, outcome, attempt, took);
                        break;
                    }
                }
            }
        }
    }

    fn finish(&mut self, step: usize, outcome: Outcome, attempt: u32, took: Duration) {
        self.states[step] = StepStatus::Over;
        let id = self.plan.steps[step].info.id.clone();
        let redactor = self.redactor;
        let outcome = outcome.map_texts(&|text| fit(text, redactor));
        self.report.outcomes.insert(id.clone(), outcome.clone());
        let took_ms = u64::try_from(took.as_millis()).unwrap_or(u64::MAX);
        self.emit(Kind::StepFinished { step: id, outcome, attempt, took_ms });
    }

    /// Ends what need not or cannot run: done beforehand, or behind a step that did not pass.
    fn settle(&mut self) {
        // In the plan's order, so that one pass reaches the end of every chain.
        for i in 0..self.states.len() {
            if self.states[i] != StepStatus::Waiting {
                continue;
            }
            let step = &self.plan.steps[i];
            if let Check::Done(reason) = &step.check {
                let reason = reason.clone();
                self.finish(i, Outcome::Skipped { reason }, 0, Duration::ZERO);
                continue;
            }
            if step.always {
                continue;
            }
            let stuck = |a: &&String| self.report.outcomes.get(*a).is_some_and(|o| !o.passed());
            if let Some(by) = step.info.after.iter().find(stuck) {
                // The first cause, not the last link of the chain.
                let by = match self.report.outcomes.get(by) {
                    Some(Outcome::Blocked { by }) => by.clone(),
                    _ => by.clone(),
                };
                self.finish(i, Outcome::Blocked { by }, 0, Duration::ZERO);
            }
        }
    }

    fn launch<'scope, 'env>(
        &mut self,
        scope: &'scope Scope<'scope, 'env>,
        work: &'env dyn Work,
        run: &'env Run<'_>,
        sender: &Sender<Message>,
    ) where
        'a: 'scope,
    {
        let plan: &'a Plan = self.plan;
        let stopping = run.cancel.stopping();
        let places = &self.places;
        // What never begins is over too.
        let over = |states: &[StepStatus], a: &String| {
            let at = places.get(a.as_str());
            at.is_none_or(|at| {
                states[*at] == StepStatus::Over || stopping && states[*at] == StepStatus::Waiting
            })
        };
        for (i, step) in plan.steps.iter().enumerate() {
            if self.states[i] != StepStatus::Waiting || self.placed >= run.jobs.max(1) && !step.outside_jobs {
                continue;
            }
            let ready = |a: &String| self.report.outcomes.get(a).is_some_and(Outcome::passed);
            let behind = step.after_end.iter().all(|b| over(&self.states, b));
            let due = match step.always {
                true => step.info.after.iter().all(|a| over(&self.states, a)),
                false => !stopping && step.info.after.iter().all(ready) && behind,
            };
            if !due {
                continue;
            }
            self.states[i] = StepStatus::Running;
            self.running += 1;
            self.placed += usize::from(!step.outside_jobs);
            let sender = sender.clone();
            let log = run.logs.join(format!("{}.log", step.info.id.replace('/', "-")));
            let control = Control {
                step: step.info.id.clone(),
                sender: sender.clone(),
                log,
                cancel: run.cancel.clone(),
                redactor: run.redactor.clone(),
                unheard: Arc::default(),
                full: AtomicBool::new(false),
            };
            scope.spawn(move || {
                let begun = Instant::now();
                let (outcome, attempt) = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
                    attempts(step, work, run.retry, &control)
                }))
                .unwrap_or_else(|panic| (Outcome::Failed(crashed(&*panic)), 1));
                let message = Message::Finished { step: i, outcome, attempt, took: begun.elapsed() };
                let _ = sender.send(message);
            });
        }
    }
}

/// Every text that may have come from elsewhere passes here before anybody sees it: k3s' journal, which is
/// evidence, repeats what it was configured with, and what a node says may be long and may be meant for a terminal.
fn fit(text: String, redactor: &Redactor) -> String {
    let text = redactor.text(&text);
    clipped(&printable(&text), LONGEST)
}

/// A panic is a defect of p1; it ends its step and nobody else's.
fn crashed(panic: &(dyn std::any::Any + Send)) -> Failure {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    let text = text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("no message");
    Failure {
        kind: FailureKind::Defect,
        cause: format!("p1 itself failed: {text}"),
        hint: Some("This is a defect of p1; please report it.".into()),
        ..Failure::default()
    }
}

/// Advice of rooms that know no nodes says `{node}`; here it is known which.
fn named(failure: Failure, node: Option<&str>) -> Failure {
    let Some(node) = node else { return failure };
    let name = |text: String| text.replace("{node}", node);
    Failure { hint: failure.hint.map(name), next: failure.next.into_iter().map(name).collect(), ..failure }
}

fn attempts(step: &Step, work: &dyn Work, retry: &Retry, control: &Control) -> (Outcome, u32) {
    if matches!(step.check, Check::Unknown(_))
        && let Check::Done(reason) = work.check(step)
    {
        return (Outcome::Skipped { reason }, 0);
    }
    let attempts = if work.retries(step) { retry.attempts.max(1) } else { 1 };
    let id = || step.info.id.clone();
    for attempt in 1.. {
        control.send(Kind::StepStarted { step: id(), attempt, attempts });
        let error = match work.apply(step, control) {
            Ok(detail) => return (Outcome::Done { detail }, attempt),
            Err(error) => error,
        };
        control.log(&format!("attempt {attempt}: {}", error.failure.cause));
        for line in &error.failure.evidence {
            control.log(&format!("  {line}"));
        }
        if error.cancelled() {
            return (Outcome::Interrupted, attempt);
        }
        if !error.may_pass() || attempt >= attempts || control.cancel.stopping() {
            // A step that ran something for several at once knows a better one.
            let log = error.failure.log.clone().or_else(|| Some(control.log.clone()));
            let failure = named(Failure { log, ..error.failure }, step.info.node.as_deref());
            return (Outcome::Failed(failure), attempt);
        }
        let wait = retry.pause(attempt, &step.info.id, error.pause);
        let wait_ms = u64::try_from(wait.as_millis()).unwrap_or(u64::MAX);
        let Failure { cause, kind, .. } = error.failure;
        control.send(Kind::StepRetrying { step: id(), attempt, attempts, wait_ms, cause, kind });
        if control.cancel.sleep(wait, crate::os::cancel::Level::Stop) {
            return (Outcome::Interrupted, attempt);
        }
    }
    unreachable!("the last attempt returns")
}

#[cfg(test)]
mod tests;
