//! The live screen as a pure function: a board, a time and a size in, rows of text out.

use std::time::Duration;

use super::board::{Board, Counts, Doing, Lane, Step, StepStatus};
use super::style::{Line, Paint, Tone};
use super::transfer::Transfer;
use super::{text, wording};
use crate::event::Outcome;

/// More nodes than this share one row.
const NODES: usize = 8;
/// More steps of the cluster than this at once share the last one's row.
const CLUSTER: usize = 3;
/// Eyes lose the line where its two ends are further apart.
const WIDEST: usize = 100;
/// Shorter bars say nothing.
const BAR: usize = 8;
/// Without so many columns there is no rate.
const RATE: usize = 72;

/// How to draw.
#[derive(Clone, Copy, Debug)]
pub struct Look {
    /// Columns; no row is wider.
    pub width: usize,
    /// Lines; there are no more rows.
    pub height: usize,
    /// Colours and signs.
    pub paint: Paint,
}

/// The rows at a moment since the run began: a heading, the cluster's own steps, a row per node.
pub fn rows(board: &Board, now: Duration, look: Look) -> Vec<String> {
    let look = Look { width: look.width.min(WIDEST), ..look };
    let mut rows = vec![heading(board, now, look)];
    let names = board.lanes.iter().map(|lane| text::width(&text::clean(name(lane)))).max().unwrap_or(0);
    let row = Row { look, now, board, names: names.min((look.width / 4).max(8)) };
    for lane in board.lanes.iter().filter(|lane| lane.node.is_none()) {
        rows.extend(row.cluster(lane));
    }
    let room = look.height.saturating_sub(rows.len());
    let nodes: Vec<_> = board.nodes().map(|lane| (lane, board.doing(lane))).collect();
    let shown = if nodes.len() <= NODES.min(room) { nodes.len() } else { NODES.min(room.saturating_sub(1)) };
    let (shown, hidden) = choose(nodes, shown);
    rows.extend(shown.iter().map(|(lane, doing)| row.node(lane, doing)));
    if !hidden.is_empty() {
        rows.push(row.hidden(&hidden));
    }
    rows.truncate(look.height.max(1));
    rows.iter().map(|line| line.paint(look.paint)).collect()
}

type Seen<'a> = (&'a Lane, Doing<'a>);

/// The nodes with a row, in the order of the plan, and those without: what is at work goes before what
/// failed, that before what waits, and what is through comes last.
fn choose(nodes: Vec<Seen<'_>>, rows: usize) -> (Vec<Seen<'_>>, Vec<Seen<'_>>) {
    let mut order: Vec<usize> = (0..nodes.len()).collect();
    order.sort_by_key(|at| rank(&nodes[*at].1));
    let chosen = &order[..rows.min(order.len())];
    let (mut shown, mut hidden) = (Vec::new(), Vec::new());
    for (at, node) in nodes.into_iter().enumerate() {
        if chosen.contains(&at) { shown.push(node) } else { hidden.push(node) }
    }
    (shown, hidden)
}

fn rank(doing: &Doing<'_>) -> usize {
    match doing {
        Doing::Running(_) => 0,
        Doing::Failed(_) | Doing::Stopped(_) | Doing::Blocked(..) => 1,
        Doing::Waiting(..) => 2,
        Doing::Finished | Doing::Unneeded => 3,
    }
}

fn name(lane: &Lane) -> &str {
    lane.node.as_deref().unwrap_or(wording::CLUSTER)
}

fn heading(board: &Board, now: Duration, look: Look) -> Line {
    let signs = look.paint.signs();
    let counts = board.counts();
    let title = board.head.as_ref().map(wording::heading).unwrap_or_default();
    let left = Line::new().with(Tone::Bold, &title);
    let right = Line::new()
        .with(Tone::Plain, &wording::steps_of(&counts))
        .with(Tone::Plain, &text::pad_left(&text::clock(now), 7));
    let room = look.width.saturating_sub(left.width() + right.width() + 4);
    let middle = if room >= BAR { bar(share(&counts), room, look.paint) } else { Line::new() };
    let left = left.with(Tone::Plain, "  ").join(middle);
    Line::between(left, right, look.width, signs.ellipsis)
}

fn share(counts: &Counts) -> f64 {
    counts.passed() as f64 / counts.total.max(1) as f64
}

/// A bar of so many columns, filled to a share between 0 and 1.
fn bar(share: f64, columns: usize, paint: Paint) -> Line {
    let signs = paint.signs();
    let full = ((share * columns as f64).floor() as usize).min(columns);
    let head = usize::from(full < columns && full > 0);
    let tone = if full == columns { Tone::Good } else { Tone::Hint };
    Line::new()
        .with(tone, &signs.full.repeat(full))
        .with(tone, &signs.head.repeat(head))
        .with(Tone::Dim, &signs.rest.repeat(columns - full - head))
}

/// What all rows of a frame share.
struct Row<'a> {
    board: &'a Board,
    now: Duration,
    look: Look,
    names: usize,
}

impl Row<'_> {
    /// A row for each of the cluster's steps that runs, or one that says how it stands.
    fn cluster(&self, lane: &Lane) -> Vec<Line> {
        match self.board.doing(lane) {
            Doing::Running(steps) if steps.len() > 1 => {
                let last = CLUSTER.min(steps.len()) - 1;
                let rows = steps.iter().take(CLUSTER).enumerate().map(|(at, step)| {
                    let more = if at == last { steps.len() - 1 - last } else { 0 };
                    self.running(if at == 0 { name(lane) } else { "" }, step, more)
                });
                rows.collect()
            }
            doing => vec![self.node(lane, &doing)],
        }
    }

    fn node(&self, lane: &Lane, doing: &Doing<'_>) -> Line {
        let signs = self.look.paint.signs();
        let name = name(lane);
        let took = || self.time(self.board.span(lane));
        let verb = self.board.head.as_ref().map_or("", |head| head.verb.as_str());
        match doing {
            Doing::Running(steps) => self.running(name, steps[0], steps.len() - 1),
            Doing::Failed(step) => {
                let cause = match &step.state {
                    StepStatus::Over(Outcome::Failed(failure)) => failure.cause.as_str(),
                    _ => "",
                };
                let left = self.left(name, Tone::Bad, signs.bad);
                self.row(left.with(Tone::Bad, &wording::failed(step, cause)), took())
            }
            Doing::Stopped(step) => {
                let left = self.left(name, Tone::Warn, signs.stopped);
                let text = format!("{} {} {}", step.info.title, signs.dot, wording::STOPPED_CELL);
                self.row(left.with(Tone::Warn, &text), took())
            }
            Doing::Blocked(by) => {
                let left = self.left(name, Tone::Bad, signs.blocked);
                self.row(left.with(Tone::Dim, &wording::blocked_by(by)), Line::new())
            }
            Doing::Waiting(next, before) => {
                let left = self.left(name, Tone::Dim, signs.idle);
                self.row(left.with(Tone::Dim, &wording::waits(next, *before)), Line::new())
            }
            Doing::Finished => {
                let word = match &lane.node {
                    // A node that left, whatever the verb made of the others.
                    Some(_) if self.board.goes(lane) => wording::node_done("destroy"),
                    Some(_) => wording::node_done(verb),
                    None => wording::status::DONE,
                };
                self.row(self.left(name, Tone::Good, signs.good).with(Tone::Plain, word), took())
            }
            Doing::Unneeded => {
                let left = self.left(name, Tone::Good, signs.good);
                self.row(left.with(Tone::Dim, wording::NODE_UNNEEDED), Line::new())
            }
        }
    }

    fn running(&self, name: &str, step: &Step, more: usize) -> Line {
        let signs = self.look.paint.signs();
        let time = self.time(step.started.map(|then| self.now.saturating_sub(then)));
        let more = if more > 0 { format!(" {}", wording::and_more(more)) } else { String::new() };
        if let StepStatus::Retrying { cause, until } = &step.state {
            let wait = until.saturating_sub(self.now);
            let text = wording::retrying(step.attempt, step.attempts, wait, cause);
            let left = self.left(name, Tone::Warn, signs.retry);
            let left = left.with(Tone::Plain, &format!("{}{more} {} ", step.info.title, signs.dot));
            return self.row(left.with(Tone::Warn, &text), time);
        }
        let frame = (self.now.as_millis() / 100) as usize % signs.spinner.len();
        let left = self.left(name, Tone::Hint, signs.spinner[frame]);
        let mut left = left.with(Tone::Plain, &format!("{}{more}", step.info.title));
        if step.attempt > 1 {
            let text = format!(" {} {}", signs.dot, wording::attempt(step.attempt, step.attempts));
            left = left.with(Tone::Warn, &text);
        }
        if let Some(message) = step.message.as_deref().filter(|message| !message.is_empty()) {
            left = left.with(Tone::Dim, &format!(" {} {message}", signs.dot));
        }
        let right = match &step.transfer {
            Some(transfer) => self.transfer(transfer).join(time),
            None => time,
        };
        self.row(left, right)
    }

    /// As much of a transfer as there is room for, alike in all rows: a bar, sizes, a rate, the time.
    fn transfer(&self, transfer: &Transfer) -> Line {
        let sizes = match transfer.total {
            Some(total) => text::bytes_of(transfer.done, total),
            None => text::bytes(transfer.done),
        };
        let columns = self.look.width.saturating_sub(60) * 2 / 5;
        let share = transfer.done as f64 / transfer.total.unwrap_or(1).max(1) as f64;
        let line = match transfer.total {
            Some(_) if columns >= BAR => bar(share, columns, self.look.paint).with(Tone::Plain, "  "),
            _ => Line::new(),
        };
        let line = line.with(Tone::Plain, &sizes);
        if self.look.width < RATE {
            return line;
        }
        let rate = transfer.rate(self.now).map(|rate| format!("{}/s", text::bytes(rate))).unwrap_or_default();
        line.with(Tone::Dim, &text::pad_left(&rate, 13))
    }

    fn left(&self, name: &str, tone: Tone, sign: &str) -> Line {
        let name = text::cut(&text::clean(name), self.names, self.look.paint.signs().ellipsis);
        Line::new()
            .with(Tone::Plain, &text::pad(&name, self.names + 2))
            .with(tone, sign)
            .with(Tone::Plain, " ")
    }

    fn row(&self, left: Line, right: Line) -> Line {
        Line::between(left, right, self.look.width, self.look.paint.signs().ellipsis)
    }

    /// A time at the right edge, in a column of its own.
    fn time(&self, time: Option<Duration>) -> Line {
        let text = time.map(text::clock).unwrap_or_default();
        Line::new().with(Tone::Dim, &text::pad_left(&text, 7))
    }

    fn hidden(&self, hidden: &[Seen<'_>]) -> Line {
        let of = |wanted: usize| hidden.iter().filter(|(_, doing)| rank(doing) == wanted).count();
        let parts =
            [wording::kind::RUNNING, wording::kind::FAILED, wording::kind::WAITING, wording::kind::DONE];
        let parts: Vec<_> = parts.into_iter().enumerate().map(|(at, word)| (of(at), word)).collect();
        let text = wording::more_nodes(hidden.len(), &parts);
        let left = Line::new().with(Tone::Dim, &text);
        left.cut(self.look.width, self.look.paint.signs().ellipsis)
    }
}
