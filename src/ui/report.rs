//! What is said of every step that failed, so that it can be acted on.

use super::board::{Board, Step, StepStatus};
use super::style::{Line, Tone};
use super::{Options, text, wording};
use crate::event::{Failure, Outcome};

/// The column at which what a label names begins.
const LABELS: usize = 12;
/// Longer lines are hard to read.
const WIDEST: usize = 100;

/// Every failed step with node, title, cause, what was being done, evidence, log and hint, what to run
/// next, and how to collect everything. `p1` is how p1 is called. Empty where nothing failed and nothing was
/// interrupted.
pub fn failures(board: &Board, options: &Options, p1: &str) -> String {
    let columns = options.columns().min(WIDEST);
    let paint = options.paint();
    let signs = paint.signs();
    let mut lines: Vec<Line> = Vec::new();
    for step in &board.steps {
        if let StepStatus::Over(Outcome::Failed(failure)) = &step.state {
            lines.push(Line::new().with(Tone::Dim, &signs.rule.repeat(columns)));
            failure_lines(&mut lines, board, step, failure, options, columns, p1);
        }
    }
    let failed_steps = board.steps.iter().filter_map(|step| match &step.state {
        StepStatus::Over(Outcome::Failed(failure)) => Some(&failure.next[..]),
        _ => None,
    });
    let next = wording::leads_on(failed_steps, board.forgotten);
    let ended = board.end.is_none_or(|end| !end.success);
    let failed = !lines.is_empty();
    if failed {
        lines.push(Line::new().with(Tone::Dim, &signs.rule.repeat(columns)));
    }
    if ended {
        lines.push(
            Line::new()
                .with(Tone::Hint, &format!("{}: ", wording::label::NEXT))
                .with(Tone::Bold, &wording::next(&next, p1)),
        );
    }
    if failed {
        lines.push(
            Line::new()
                .with(Tone::Hint, &format!("{}: ", wording::label::ALL))
                .with(Tone::Bold, &format!("{p1} {}", wording::BUNDLE))
                .with(Tone::Dim, &format!("  ({})", wording::BUNDLE_IS)),
        );
    }
    lines.iter().map(|line| line.paint(paint).trim_end().to_owned() + "\n").collect()
}

fn failure_lines(
    lines: &mut Vec<Line>,
    board: &Board,
    step: &Step,
    failure: &Failure,
    options: &Options,
    columns: usize,
    p1: &str,
) {
    let signs = options.paint().signs();
    let title = format!("{}: {}", step.place(), step.info.title);
    let title = Line::new().with(Tone::Bad, signs.bad).with(Tone::Plain, " ").with(Tone::Bold, &title);
    let which = Line::new().with(Tone::Dim, &format!("  ({})", wording::failed_where(step)));
    if title.width() + which.width() <= columns {
        lines.push(title.join(which));
    } else {
        lines.extend([title, which]);
    }
    let room = columns.saturating_sub(LABELS).max(20);
    let mut part = |label: &str, tone: Tone, text: Vec<String>| lines.extend(labelled(label, tone, &text));
    part(wording::label::CAUSE, Tone::Bad, text::wrap(&failure.cause, room));
    if let Some(message) = step.message.as_deref().filter(|message| !message.is_empty()) {
        part(wording::label::DOING, Tone::Plain, text::wrap(message, room));
    }
    part(wording::label::EVIDENCE, Tone::Plain, quote(&failure.evidence, options.terminal.then_some(room)));
    if let Some(log) = &failure.log {
        part(wording::label::LOG, Tone::Hint, vec![log.display().to_string()]);
    }
    let blocked: Vec<_> = board
        .steps
        .iter()
        .filter(
            |other| matches!(&other.state, StepStatus::Over(Outcome::Blocked { by }) if *by == step.info.id),
        )
        .map(|other| other.info.id.as_str())
        .collect();
    if !blocked.is_empty() {
        part(wording::label::BLOCKED, Tone::Plain, text::wrap(&blocked.join(", "), room));
    }
    if let Some(hint) = &failure.hint {
        lines.push(Line::new());
        lines.extend(labelled(
            wording::label::HINT,
            Tone::Hint,
            &text::wrap(&wording::called(hint, p1), room),
        ));
    }
}

/// Evidence as it is, so that it can be searched for; on a terminal, which would break long lines
/// anywhere, broken between words.
fn quote(evidence: &[String], room: Option<usize>) -> Vec<String> {
    let mut lines = Vec::new();
    for line in evidence {
        match room {
            Some(room) if text::width(line) > room => {
                let mut parts = text::wrap(line, room.saturating_sub(2)).into_iter();
                lines.extend(parts.next());
                lines.extend(parts.map(|part| format!("  {part}")));
            }
            _ => lines.push(line.clone()),
        }
    }
    lines
}

/// Lines of text behind a label that is said once.
fn labelled(label: &str, tone: Tone, text: &[String]) -> Vec<Line> {
    let line = |(at, text): (usize, &String)| {
        let label = if at == 0 { label } else { "" };
        Line::new().with(Tone::Dim, &text::pad(&format!("  {label}"), LABELS)).with(tone, text)
    };
    text.iter().enumerate().map(line).collect()
}
