//! The live screen: the rows of [`rows`](super::rows::rows) drawn by indicatif, ten times a second.
//!
//! All rows are the message of one bar. A bar per node would be drawn one after the other, and every
//! change of one would draw all the others again (indicatif issues 226 and 708).

use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::board::Board;
use super::frame::Frame;
use super::rows::{Look, rows};
use super::style::{Line, Paint, Tone};
use super::{Out, Renderer, text};
use crate::event::{Event, Kind, Outcome};

/// See the module.
pub struct Live {
    out: Out,
    frame: Frame,
    bar: ProgressBar,
    paint: Paint,
    fixed: Option<u16>,
    /// What is to be printed above the rows, for good.
    above: Vec<(Tone, &'static str, String, String)>,
    /// The widths of the rows as they were drawn last, and of the screen they were drawn on.
    drawn: (Vec<usize>, usize),
}

impl Live {
    /// Draws on `out`, which is a terminal; the size is that of standard error's, unless a width is given.
    pub fn new(out: Out, paint: Paint, width: Option<u16>) -> Self {
        let frame = Frame::default();
        let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::term_like(Box::new(frame.clone())));
        // The template has no placeholder that could fail to parse.
        if let Ok(style) = ProgressStyle::with_template("{msg}") {
            bar.set_style(style);
        }
        Self { out, frame, bar, paint, fixed: width, above: Vec::new(), drawn: (Vec::new(), 0) }
    }

    fn say(&mut self, tone: Tone, sign: &'static str, place: &str, text: &str) {
        let place = if place.is_empty() { String::new() } else { format!("{place}  ") };
        self.above.push((tone, sign, place, text.to_owned()));
    }

    /// What is to be printed above the rows, as lines of the screen.
    fn take_above(&mut self, width: usize) -> Vec<String> {
        let mut lines = Vec::new();
        for (tone, sign, place, text) in std::mem::take(&mut self.above) {
            let mut start = Line::new().with(tone, sign).with(Tone::Plain, " ").with(Tone::Plain, &place);
            let indent = " ".repeat(start.width());
            for part in text::wrap(&text, width.saturating_sub(indent.len() + 1)) {
                lines.push(start.with(tone, &part).paint(self.paint));
                start = Line::new().with(Tone::Plain, &indent);
            }
        }
        lines
    }

    fn of_step(&mut self, board: &Board, id: &str, tone: Tone, sign: &'static str, text: &str) {
        if let Some(step) = board.step(id) {
            let text = format!("{}: {text}", step.info.title);
            self.say(tone, sign, step.place(), &text);
        }
    }

    fn size(&self) -> (usize, usize) {
        let (height, width) = console::Term::stderr().size_checked().unwrap_or((24, 80));
        (self.fixed.unwrap_or(width).into(), height.into())
    }

    /// Where the terminal became narrower it has broken the rows, and indicatif, which does not know,
    /// would leave their tops behind. The cursor is where it was in the text: at the end of the last row.
    fn after_resize(&self, width: usize) {
        let (widths, before) = &self.drawn;
        if width < *before && !widths.is_empty() {
            let lines: usize = widths.iter().map(|row| row.div_ceil(width.max(1)).max(1)).sum();
            self.frame.wipe(lines, widths.len());
        }
    }

    fn draw(&mut self, rows: &[String], width: usize) {
        self.after_resize(width);
        let above = self.take_above(width);
        if !above.is_empty() {
            self.bar.suspend(|| above.iter().for_each(|line| self.frame.line(line)));
        }
        if !rows.is_empty() {
            self.bar.set_message(rows.join("\n"));
        }
        self.drawn = (rows.iter().map(|row| console::measure_text_width(row)).collect(), width);
        self.out.write(&self.frame.take());
    }
}

impl Renderer for Live {
    fn event(&mut self, event: &Event, board: &Board) {
        let signs = self.paint.signs();
        match &event.kind {
            Kind::RunStarted { banner: Some(banner), .. } => self.say(Tone::Warn, signs.warn, "", banner),
            Kind::StepWarning { step, message } => self.of_step(board, step, Tone::Warn, signs.warn, message),
            Kind::StepFinished { step, outcome: Outcome::Failed(failure), .. } => {
                self.of_step(board, step, Tone::Bad, signs.bad, &failure.cause);
            }
            _ => {}
        }
    }

    fn note(&mut self, text: &str) {
        self.say(Tone::Warn, self.paint.signs().stopped, "", text);
    }

    fn tick(&mut self, board: &Board, now: Duration) {
        if board.head.is_none() && self.above.is_empty() {
            return;
        }
        let (width, height) = self.size();
        // The last column stays free: some terminals break the line when it is used.
        let look =
            Look { width: width.saturating_sub(1), height: height.saturating_sub(1), paint: self.paint };
        let rows = if board.head.is_some() { rows(board, now, look) } else { Vec::new() };
        self.draw(&rows, width);
    }

    fn finish(&mut self) {
        let (width, _) = self.size();
        self.draw(&[], width);
        self.bar.finish_and_clear();
        self.out.write(&self.frame.take());
    }

    fn interval(&self) -> Duration {
        Duration::from_millis(100)
    }
}
