//! Plain lines for pipes, logs and CI: time, place, phase, status, text, in columns that do not move.

use std::collections::HashMap;
use std::time::Duration;

use super::board::{Board, StepStatus};
use super::style::{Line, Paint, Tone};
use super::wording::{self, status};
use super::{Out, Renderer, text};
use crate::event::{Event, Kind, Outcome};
use crate::explain::seconds;

/// Progress of one step is said at most this often.
const APART: Duration = Duration::from_secs(5);

/// See the module.
pub struct Plain {
    out: Out,
    paint: Paint,
    verbose: bool,
    places: usize,
    phases: usize,
    said: HashMap<String, (String, Duration)>,
    now: Duration,
}

impl Plain {
    /// `verbose` says also what was planned to be skipped, and progress as often as it comes.
    pub fn new(out: Out, paint: Paint, verbose: bool) -> Self {
        let now = Duration::ZERO;
        Self { out, paint, verbose, places: 7, phases: 9, said: HashMap::new(), now }
    }

    fn line(&mut self, place: &str, phase: &str, tone: Tone, status: &str, text: &str) {
        let line = Line::new()
            .with(Tone::Dim, &format!("[{:>7.1}s] ", self.now.as_secs_f64()))
            .with(Tone::Plain, &text::pad(place, self.places + 2))
            .with(Tone::Plain, &text::pad(phase, self.phases + 2))
            .with(tone, &text::pad(status, 13))
            .with(Tone::Plain, text);
        let line = line.paint(self.paint);
        self.out.write(format!("{}\n", line.trim_end()).as_bytes());
    }

    fn of_run(&mut self, board: &Board, tone: Tone, status: &str, text: &str) {
        let verb = board.head.as_ref().map_or("", |head| &head.verb).to_owned();
        self.line(wording::RUN, &verb, tone, status, text);
    }

    fn of_step(&mut self, board: &Board, id: &str, tone: Tone, status: &str, text: &str) {
        if let Some(step) = board.step(id) {
            self.line(step.place(), step.phase(), tone, status, text);
        }
    }

    /// Says what a running step does, if that is new and the last word is long enough ago.
    fn progress(&mut self, board: &Board, id: &str) {
        let Some(step) = board.step(id).filter(|step| step.state == StepStatus::Running) else { return };
        let Some(message) = step.message.clone() else { return };
        let apart = if self.verbose { Duration::from_secs(1) } else { APART };
        let new = match self.said.get(id) {
            Some((said, then)) => {
                self.now.saturating_sub(*then) >= apart && (*said != message || step.transfer.is_some())
            }
            // The start was said just now.
            None => step.started.is_none_or(|then| self.verbose || self.now.saturating_sub(then) >= apart),
        };
        if !new || message.is_empty() && step.transfer.is_none() {
            return;
        }
        let mut text = message.clone();
        if let Some(transfer) = &step.transfer {
            let sizes = match transfer.total {
                Some(total) => text::bytes_of(transfer.done, total).trim_start().to_owned(),
                None => text::bytes(transfer.done),
            };
            let rate = transfer.rate(self.now).map(|rate| format!(", {}/s", text::bytes(rate)));
            let dot = if text.is_empty() { "" } else { ": " };
            text = format!("{text}{dot}{sizes}{}", rate.unwrap_or_default());
        }
        self.said.insert(id.to_owned(), (message, self.now));
        self.of_step(board, id, Tone::Dim, status::RUNNING, &text);
    }

    fn finished(&mut self, board: &Board, id: &str, outcome: &Outcome, took: Duration) {
        let took = seconds(took);
        match outcome {
            Outcome::Done { detail } => {
                let detail = detail.as_ref().map(|detail| format!(", {detail}")).unwrap_or_default();
                self.of_step(board, id, Tone::Good, status::DONE, &format!("{took}{detail}"));
            }
            Outcome::Skipped { reason } => {
                if self.verbose || board.step(id).is_some_and(|step| step.info.needed) {
                    self.of_step(board, id, Tone::Dim, status::SKIPPED, reason);
                }
            }
            Outcome::Failed(failure) => {
                let text = format!("{took}, {}", failure.cause);
                self.of_step(board, id, Tone::Bad, status::FAILED, &text);
            }
            Outcome::Interrupted => self.of_step(board, id, Tone::Warn, status::INTERRUPTED, &took),
            Outcome::Blocked { by } => self.of_step(board, id, Tone::Dim, status::BLOCKED, by),
        }
    }
}

impl Renderer for Plain {
    fn event(&mut self, event: &Event, board: &Board) {
        self.now = Duration::from_millis(event.elapsed_ms);
        match &event.kind {
            Kind::RunStarted { verb, .. } => {
                let Some(head) = &board.head else { return };
                let longest = |of: fn(&super::board::Step) -> &str, least: usize| {
                    board.steps.iter().map(|step| text::width(of(step))).max().unwrap_or(0).max(least)
                };
                self.places = longest(|step| step.place(), self.places);
                self.phases = longest(|step| step.phase(), text::width(verb));
                if let Some(banner) = &head.banner {
                    self.of_run(board, Tone::Warn, status::NOTE, banner);
                }
                self.of_run(board, Tone::Plain, status::STARTED, &wording::begun(head, board));
            }
            Kind::StepStarted { step, attempt, attempts } => {
                let title = board.step(step).map(|step| step.info.title.clone()).unwrap_or_default();
                let again = match attempt {
                    0 | 1 => String::new(),
                    _ => format!(", {}", wording::attempt(*attempt, *attempts)),
                };
                self.said.remove(step);
                self.of_step(board, step, Tone::Hint, status::STARTED, &format!("{title}{again}"));
            }
            Kind::StepProgress { step, .. } => self.progress(board, step),
            Kind::StepWarning { step, message } => {
                self.of_step(board, step, Tone::Warn, status::WARNING, message);
            }
            Kind::StepRetrying { step, attempt, attempts, wait_ms, cause, .. } => {
                let text = wording::retrying(*attempt, *attempts, Duration::from_millis(*wait_ms), cause);
                self.of_step(board, step, Tone::Warn, status::RETRYING, &text);
            }
            Kind::StepFinished { step, outcome, took_ms, .. } => {
                self.finished(board, step, outcome, Duration::from_millis(*took_ms));
            }
            Kind::RunFinished { success: true, .. } => {
                self.of_run(board, Tone::Good, status::DONE, &wording::succeeded(board, self.now));
            }
            Kind::RunFinished { interrupted, .. } => {
                let status = if *interrupted { status::INTERRUPTED } else { status::FAILED };
                self.of_run(board, Tone::Bad, status, &wording::unfinished(board, self.now));
            }
            Kind::Unknown => {}
        }
    }

    fn note(&mut self, text: &str) {
        self.line(wording::RUN, "", Tone::Warn, status::NOTE, text);
    }

    fn tick(&mut self, board: &Board, now: Duration) {
        self.now = self.now.max(now);
        for lane in &board.lanes {
            for step in board.of_lane(lane).filter(|step| step.message.is_some()) {
                self.progress(board, &step.info.id);
            }
        }
    }
}
