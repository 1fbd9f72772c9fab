//! What is known of a run: the state of every step and node, made from its events alone.
//!
//! The live screen, the plain lines and the summary read it, and so can anything that reads a journal.
//! Times are since the run began, as the events have them. Any sequence of events is survived, also one
//! with its beginning missing or in a wrong order.

use std::collections::HashMap;
use std::time::Duration;

use super::transfer::Transfer;
use crate::event::{Event, Kind, Outcome, StepInfo};

/// A run, as far as its events tell.
#[derive(Clone, Debug, Default)]
pub struct Board {
    /// What the first event said; none if it was not seen.
    pub head: Option<Head>,
    /// Every step of the plan, in its order, and steps that turned up beside it.
    pub steps: Vec<Step>,
    /// The cluster's own steps first, then a lane for every node, in the order of the plan.
    pub lanes: Vec<Lane>,
    /// Attempts that failed and were followed by another.
    pub retries: usize,
    /// How it ended; none while it runs, or if it was cut off.
    pub end: Option<End>,
    /// The time of the latest event.
    pub latest: Duration,
    /// Its journal is gone, so that nothing can go on with it.
    pub forgotten: bool,
    /// What is so now, a line each, after a run that succeeded.
    pub now: Vec<String>,
    /// The command that leads on from there.
    pub next: Option<String>,
    index: HashMap<String, usize>,
}

/// The run as its first event has it.
#[derive(Clone, Debug)]
pub struct Head {
    pub cluster: String,
    /// The verb, e.g. `up`.
    pub verb: String,
    /// True if it goes on with an earlier run.
    pub retry: bool,
    /// The nodes named; empty for all.
    pub targets: Vec<String>,
    /// A line to be said before anything else.
    pub banner: Option<String>,
}

/// How a run ended.
#[derive(Clone, Copy, Debug)]
pub struct End {
    /// Nothing is outstanding.
    pub success: bool,
    /// The user ended it.
    pub interrupted: bool,
}

/// A node, or the cluster itself.
#[derive(Clone, Debug)]
pub struct Lane {
    /// The node; none for the cluster's own steps.
    pub node: Option<String>,
    /// Its steps, as indices into [`Board::steps`].
    pub steps: Vec<usize>,
}

/// A step and how it gets on.
#[derive(Clone, Debug)]
pub struct Step {
    /// As the plan has it.
    pub info: StepInfo,
    /// Where it is.
    pub state: StepStatus,
    /// The attempt it is at or ended with, from 1; 0 before the first.
    pub attempt: u32,
    /// At most so many.
    pub attempts: u32,
    /// When it first started.
    pub started: Option<Duration>,
    /// When it was over.
    pub ended: Option<Duration>,
    /// How long it took in all, once it is over.
    pub took: Duration,
    /// What it does, or did last.
    pub message: Option<String>,
    /// What it moves, or moved last.
    pub transfer: Option<Transfer>,
    /// What it warned of.
    pub warnings: Vec<String>,
}

/// Where a step is.
#[derive(Clone, Debug, PartialEq)]
pub enum StepStatus {
    /// Not begun.
    Waiting,
    /// At work.
    Running,
    /// Between two attempts.
    Retrying {
        /// Why the last one failed.
        cause: String,
        /// When the next begins.
        until: Duration,
    },
    /// Over.
    Over(Outcome),
}

/// What a lane does just now.
#[derive(Clone, Debug)]
pub enum Doing<'a> {
    /// These steps run or are between two attempts; at least one.
    Running(Vec<&'a Step>),
    /// This step failed, and nothing else runs.
    Failed(&'a Step),
    /// This step was ended by the user.
    Stopped(&'a Step),
    /// This step cannot run, because of the one named.
    Blocked(&'a str),
    /// This step is the next; the other one, if any, must be over before.
    Waiting(&'a Step, Option<&'a Step>),
    /// All its steps are over; some did work.
    Finished,
    /// There was nothing to do.
    Unneeded,
}

/// How many steps came to what, of those that the run was about.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Planned as needed, or begun although they were not.
    pub total: usize,
    /// Did their work.
    pub done: usize,
    /// Had nothing to do after all.
    pub skipped: usize,
    /// Failed.
    pub failed: usize,
    /// Could not run because of another's failure.
    pub blocked: usize,
    /// Ended by the user.
    pub interrupted: usize,
    /// Never begun, or begun and never ended.
    pub open: usize,
}

impl Counts {
    /// Need not run again.
    pub fn passed(&self) -> usize {
        self.done + self.skipped
    }
}

impl Step {
    fn new(info: StepInfo) -> Self {
        Self {
            info,
            state: StepStatus::Waiting,
            attempt: 0,
            attempts: 0,
            started: None,
            ended: None,
            took: Duration::ZERO,
            message: None,
            transfer: None,
            warnings: Vec::new(),
        }
    }

    /// What kind of step it is: its id without the node, e.g. `start` of `worker-1/start`.
    pub fn phase(&self) -> &str {
        self.info.id.split_once('/').map_or(self.info.id.as_str(), |(_, phase)| phase)
    }

    /// The node's name, or `cluster`.
    pub fn place(&self) -> &str {
        self.info.node.as_deref().unwrap_or(super::wording::CLUSTER)
    }

    /// True if the run is about it: planned as needed, or begun although it was not.
    pub fn counts(&self) -> bool {
        self.info.needed
            || !matches!(self.state, StepStatus::Waiting | StepStatus::Over(Outcome::Skipped { .. }))
    }

    /// True while it runs or is between two attempts.
    pub fn active(&self) -> bool {
        matches!(self.state, StepStatus::Running | StepStatus::Retrying { .. })
    }

    /// True if steps behind it need not wait for it.
    fn passed(&self) -> bool {
        match &self.state {
            StepStatus::Over(outcome) => outcome.passed(),
            StepStatus::Waiting => !self.info.needed,
            _ => false,
        }
    }
}

impl Board {
    /// The board of events read back.
    #[cfg(test)]
    pub fn of<'a>(events: impl IntoIterator<Item = &'a Event>) -> Self {
        let mut board = Self::default();
        events.into_iter().for_each(|event| board.apply(event));
        board
    }

    /// Takes in one event.
    pub fn apply(&mut self, event: &Event) {
        let now = Duration::from_millis(event.elapsed_ms);
        self.latest = self.latest.max(now);
        match &event.kind {
            Kind::RunStarted { cluster, verb, retry_of, targets, banner, steps, .. } => {
                *self = Self { latest: now, ..Self::default() };
                self.head = Some(Head {
                    cluster: cluster.clone(),
                    verb: verb.clone(),
                    retry: retry_of.is_some(),
                    targets: targets.clone(),
                    banner: banner.clone(),
                });
                steps.iter().for_each(|info| _ = self.add(info.clone()));
                self.lanes.sort_by_key(|lane| lane.node.is_some());
            }
            Kind::StepStarted { step, attempt, attempts } => {
                let step = self.step_mut(step);
                step.state = StepStatus::Running;
                (step.attempt, step.attempts) = (*attempt, *attempts);
                step.started.get_or_insert(now);
                (step.message, step.transfer) = (None, None);
            }
            Kind::StepProgress { step, message, done, total } => {
                let step = self.step_mut(step);
                if matches!(step.state, StepStatus::Over(_)) {
                    return; // Progress may come late: it goes another way.
                }
                step.message = Some(message.clone());
                match done {
                    Some(done) => step.transfer.get_or_insert_default().update(now, *done, *total),
                    None => step.transfer = None,
                }
            }
            Kind::StepWarning { step, message } => self.step_mut(step).warnings.push(message.clone()),
            Kind::StepRetrying { step, attempt, attempts, wait_ms, cause, .. } => {
                self.retries += 1;
                let step = self.step_mut(step);
                (step.attempt, step.attempts) = (*attempt, *attempts);
                let until = now.saturating_add(Duration::from_millis(*wait_ms));
                step.state = StepStatus::Retrying { cause: cause.clone(), until };
            }
            Kind::StepFinished { step, outcome, attempt, took_ms } => {
                let step = self.step_mut(step);
                step.state = StepStatus::Over(outcome.clone());
                step.attempt = *attempt;
                step.took = Duration::from_millis(*took_ms);
                step.ended = Some(now);
            }
            Kind::RunFinished { success, interrupted } => {
                self.end = Some(End { success: *success, interrupted: *interrupted });
            }
            Kind::Unknown => {}
        }
    }

    fn add(&mut self, info: StepInfo) -> usize {
        if let Some(at) = self.index.get(&info.id) {
            return *at;
        }
        let at = self.steps.len();
        self.index.insert(info.id.clone(), at);
        match self.lanes.iter_mut().find(|lane| lane.node == info.node) {
            Some(lane) => lane.steps.push(at),
            None => self.lanes.push(Lane { node: info.node.clone(), steps: vec![at] }),
        }
        self.steps.push(Step::new(info));
        at
    }

    /// The step of that id; one that the plan did not have is added.
    fn step_mut(&mut self, id: &str) -> &mut Step {
        let at = self.index.get(id).copied().unwrap_or_else(|| {
            let (place, phase) = id.split_once('/').unwrap_or((super::wording::CLUSTER, id));
            self.add(StepInfo {
                id: id.to_owned(),
                node: (place != super::wording::CLUSTER).then(|| place.to_owned()),
                title: phase.to_owned(),
                digest: String::new(),
                after: Vec::new(),
                reason: String::new(),
                needed: false,
            })
        });
        &mut self.steps[at]
    }

    /// The step of that id.
    pub fn step(&self, id: &str) -> Option<&Step> {
        self.index.get(id).map(|at| &self.steps[*at])
    }

    /// The steps of a lane, in the order of the plan.
    pub fn of_lane<'a>(&'a self, lane: &'a Lane) -> impl Iterator<Item = &'a Step> + Clone {
        lane.steps.iter().map(|at| &self.steps[*at])
    }

    /// The lanes that are nodes.
    pub fn nodes(&self) -> impl Iterator<Item = &Lane> {
        self.lanes.iter().filter(|lane| lane.node.is_some())
    }

    /// The nodes that are there now: not those that went, and did not come back.
    pub fn remaining(&self) -> usize {
        self.nodes().filter(|lane| !self.goes(lane)).count()
    }

    /// True of a node that goes for good: nothing is done there after its machine is gone.
    pub fn goes(&self, lane: &Lane) -> bool {
        lane.steps.last().is_some_and(|at| self.steps[*at].info.id.ends_with("/machine"))
    }

    /// Nodes that were to be worked on, and on which nothing was done because of another's failure.
    pub fn untouched(&self) -> Vec<&str> {
        let blocked = |step: &Step| matches!(step.state, StepStatus::Over(Outcome::Blocked { .. }));
        let idle =
            |step: &Step| blocked(step) || matches!(step.state, StepStatus::Over(Outcome::Skipped { .. }));
        let left = |lane: &&Lane| {
            let steps = self.of_lane(lane);
            steps.clone().any(blocked) && steps.clone().all(idle)
        };
        self.nodes().filter(left).filter_map(|lane| lane.node.as_deref()).collect()
    }

    /// What a lane does just now.
    pub fn doing<'a>(&'a self, lane: &'a Lane) -> Doing<'a> {
        let steps = self.of_lane(lane);
        let running: Vec<_> = steps.clone().filter(|step| step.active()).collect();
        if !running.is_empty() {
            return Doing::Running(running);
        }
        let is = |wanted: fn(&Outcome) -> bool| {
            steps.clone().find(|step| matches!(&step.state, StepStatus::Over(outcome) if wanted(outcome)))
        };
        if let Some(step) = is(|outcome| matches!(outcome, Outcome::Failed(_))) {
            return Doing::Failed(step);
        }
        if let Some(step) = is(|outcome| matches!(outcome, Outcome::Interrupted)) {
            return Doing::Stopped(step);
        }
        for step in steps.clone() {
            if let StepStatus::Over(Outcome::Blocked { by }) = &step.state {
                return Doing::Blocked(by);
            }
        }
        if let Some(next) = steps.clone().find(|step| step.info.needed && step.state == StepStatus::Waiting) {
            let before = next.info.after.iter().filter_map(|id| self.step(id));
            return Doing::Waiting(next, before.into_iter().find(|step| !step.passed()));
        }
        match is(|outcome| matches!(outcome, Outcome::Done { .. })) {
            Some(_) => Doing::Finished,
            None => Doing::Unneeded,
        }
    }

    /// From a lane's first start to its last end, as far as it has got.
    pub fn span(&self, lane: &Lane) -> Option<Duration> {
        let started = self.of_lane(lane).filter_map(|step| step.started).min()?;
        let ended = self.of_lane(lane).filter_map(|step| step.ended).max().unwrap_or(self.latest);
        Some(ended.saturating_sub(started))
    }

    /// How many steps came to what.
    pub fn counts(&self) -> Counts {
        let mut counts = Counts::default();
        for step in self.steps.iter().filter(|step| step.counts()) {
            counts.total += 1;
            match &step.state {
                StepStatus::Over(Outcome::Done { .. }) => counts.done += 1,
                StepStatus::Over(Outcome::Skipped { .. }) => counts.skipped += 1,
                StepStatus::Over(Outcome::Failed(_)) => counts.failed += 1,
                StepStatus::Over(Outcome::Blocked { .. }) => counts.blocked += 1,
                StepStatus::Over(Outcome::Interrupted) => counts.interrupted += 1,
                _ => counts.open += 1,
            }
        }
        counts
    }
}
