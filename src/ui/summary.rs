//! What is said of a run when it is over: how it ended, the time of each phase per node, and counts.

use super::board::{Board, Lane, Step, StepStatus};
use super::style::{Line, Tone};
use super::table::{Cell, Layout, table, width};
use super::{Options, text, wording};
use crate::event::Outcome;

/// The summary: the banner, the outcome in one line, a table with a row per node and a column per phase,
/// the cluster's own steps, and the counts. Where the table is too wide there is a list per node.
pub fn summary(board: &Board, options: &Options) -> String {
    let paint = options.paint();
    let signs = paint.signs();
    let mut out = String::new();
    let mut say = |tone: Tone, sign: &str, text_tone: Tone, said: &str| {
        let mut sign = paint.tone(tone, sign);
        for part in text::wrap(said, options.columns() - 2) {
            out.push_str(&format!("{sign} {}\n", paint.tone(text_tone, &part)));
            sign = " ".to_owned();
        }
    };
    if let Some(banner) = board.head.as_ref().and_then(|head| head.banner.as_ref()) {
        say(Tone::Warn, signs.warn, Tone::Warn, &text::clean(banner));
    }
    let took = board.latest;
    let counts = board.counts();
    let success = board.end.is_some_and(|end| end.success);
    let (tone, sign, said) = match success {
        true => (Tone::Good, signs.good, wording::succeeded(board, took)),
        false if counts.failed == 0 => (Tone::Warn, signs.stopped, wording::unfinished(board, took)),
        false => (Tone::Bad, signs.bad, wording::unfinished(board, took)),
    };
    say(tone, sign, Tone::Bold, &text::clean(&said));
    if counts.done + counts.failed + counts.interrupted + counts.blocked == 0 {
        return out;
    }
    out.push('\n');
    out.push_str(&phases(board, options));
    let untouched = board.untouched();
    let left = (!untouched.is_empty()).then(|| wording::untouched(&untouched));
    let said = left.into_iter().chain([wording::tally(board)]);
    for part in said.flat_map(|line| text::wrap(&line, options.columns())) {
        out.push_str(&paint.tone(Tone::Dim, &part));
        out.push('\n');
    }
    out
}

/// The times of the phases: a table where it fits, else a list.
fn phases(board: &Board, options: &Options) -> String {
    let layout = Layout { paint: options.paint(), right: true, indent: 0 };
    let columns = phase_names(board);
    let mut headers = vec![""];
    headers.extend(columns.iter().copied());
    headers.push(wording::TOTAL);
    let rows: Vec<_> =
        board.nodes().filter(|lane| acted(board, lane)).map(|lane| row(board, lane, &columns)).collect();
    let mut out = String::new();
    if width(&headers, &rows, layout) <= options.columns() {
        if !rows.is_empty() {
            out.push_str(&table(&headers, &rows, layout));
        }
    } else {
        board
            .nodes()
            .filter(|lane| acted(board, lane))
            .for_each(|lane| out.push_str(&list(board, lane, options)));
    }
    board.lanes.iter().filter(|lane| lane.node.is_none() && acted(board, lane)).for_each(|lane| {
        out.push_str(&list(board, lane, options));
    });
    out
}

/// Whether there is anything to tell of a lane.
fn acted(board: &Board, lane: &Lane) -> bool {
    board.of_lane(lane).any(|step| step.counts())
}

/// The phases of all nodes that did or should have done something, in the order of the plan.
fn phase_names(board: &Board) -> Vec<&str> {
    let mut names = Vec::new();
    for step in board.steps.iter().filter(|step| step.info.node.is_some() && step.counts()) {
        if !names.contains(&step.phase()) {
            names.push(step.phase());
        }
    }
    names
}

fn row(board: &Board, lane: &Lane, columns: &[&str]) -> Vec<Cell> {
    let name = lane.node.as_deref().unwrap_or(wording::CLUSTER);
    let mut cells = vec![Cell::new(Tone::Plain, name)];
    for column in columns {
        let step = board.of_lane(lane).find(|step| step.phase() == *column);
        cells.push(step.map_or_else(|| Cell::new(Tone::Plain, ""), cell));
    }
    let total = board.span(lane).map(text::took).unwrap_or_default();
    cells.push(Cell::new(Tone::Bold, total));
    cells
}

fn cell(step: &Step) -> Cell {
    match &step.state {
        StepStatus::Over(Outcome::Done { .. }) => Cell::new(Tone::Plain, text::took(step.took)),
        StepStatus::Over(Outcome::Skipped { .. }) => Cell::new(Tone::Dim, wording::SKIPPED_CELL),
        StepStatus::Over(Outcome::Failed(_)) => Cell::new(Tone::Bad, wording::FAILED_CELL),
        StepStatus::Over(Outcome::Interrupted) => Cell::new(Tone::Warn, wording::STOPPED_CELL),
        StepStatus::Over(Outcome::Blocked { .. }) => Cell::new(Tone::Dim, wording::BLOCKED_CELL),
        _ if !step.counts() => Cell::new(Tone::Dim, wording::SKIPPED_CELL),
        _ => Cell::new(Tone::Dim, wording::OPEN_CELL),
    }
}

/// A lane as a list: `cluster  network 0.4s · box 0.2s`, broken where it gets too long.
fn list(board: &Board, lane: &Lane, options: &Options) -> String {
    let paint = options.paint();
    let dot = format!(" {} ", paint.signs().dot);
    let names = board.lanes.iter().map(|lane| text::width(lane.node.as_deref().unwrap_or(wording::CLUSTER)));
    let indent = names.max().unwrap_or(0).min(options.columns() / 3) + 2;
    let name = lane.node.as_deref().unwrap_or(wording::CLUSTER);
    let mut line = Line::new().with(Tone::Plain, &text::pad(name, indent));
    let mut out = String::new();
    let mut first = true;
    for step in board.of_lane(lane).filter(|step| step.counts()) {
        let cell = cell(step);
        let piece = Line::new().with(Tone::Dim, &format!("{} ", step.phase())).with(cell.tone, &cell.text);
        if !first && line.width() + text::width(&dot) + piece.width() > options.columns() {
            out.push_str(line.paint(paint).trim_end());
            out.push('\n');
            line = Line::new().with(Tone::Plain, &" ".repeat(indent));
            first = true;
        }
        if !first {
            line = line.with(Tone::Dim, &dot);
        }
        line = line.join(piece);
        first = false;
    }
    out.push_str(line.paint(paint).trim_end());
    out.push('\n');
    out
}
