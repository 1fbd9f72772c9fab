//! What a person or a program sees of a run: three renderers of one event stream, and what is said at
//! its end.
//!
//! ```text
//! Sender ─▶ screen (one thread) ─▶ board: what is known ─┬▶ live   rows on a terminal, by indicatif
//!                                                        ├▶ plain  lines for pipes and logs
//!                                                        └▶ json   the events themselves
//! ```
//!
//! Data goes to one stream (standard output), what is said to people to another (standard error). Whether
//! there is a terminal, colour or UTF-8 is decided by the caller; nothing here reads the environment.
//! All words are in [`wording`].

pub mod ask;
pub mod board;
mod frame;
mod json;
mod live;
mod plain;
mod report;
pub mod rows;
mod screen;
pub mod style;
mod summary;
pub mod table;
pub mod text;
pub mod transfer;
pub mod wording;

#[cfg(test)]
mod tests;

use std::io::Write;
use std::time::Duration;

pub use ask::{confirm, secret};
pub use board::Board;
pub use report::failures;
pub use screen::{Sender, start};
pub use style::{Paint, Tone};
pub use summary::summary;
pub use table::{Cell, Layout, table};
pub use text::{bytes, count};

use crate::event::Event;

/// What kind of output was asked for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Format {
    /// Live on a terminal, plain lines elsewhere.
    #[default]
    Human,
    /// Plain lines.
    Plain,
    /// Events as JSON lines.
    Json,
}

/// How to talk; decided once, by the caller.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// What was asked for.
    pub format: Format,
    /// False for `NO_COLOR`, `--no-color`, and where standard error is no terminal.
    pub color: bool,
    /// False where the locale is not UTF-8.
    pub unicode: bool,
    /// Columns; none for those of the terminal, which may change, or 100 where there is none.
    pub width: Option<u16>,
    /// How often `-v` was given; with it there are lines rather than a live screen.
    pub verbose: u8,
    /// Standard error is a terminal that can move its cursor (not `TERM=dumb`).
    pub terminal: bool,
}

impl Options {
    /// Colours and signs.
    pub fn paint(&self) -> Paint {
        Paint { color: self.color, unicode: self.unicode }
    }

    /// True if the screen is live.
    pub fn live(&self) -> bool {
        self.format == Format::Human && self.terminal && self.verbose == 0
    }

    /// The columns there are.
    pub fn columns(&self) -> usize {
        let of_terminal = || console::Term::stderr().size_checked().map(|(_, columns)| columns);
        let width = self.width.or_else(|| self.terminal.then(of_terminal).flatten());
        width.unwrap_or(100).max(20).into()
    }
}

/// A text in place of what is on the terminal; no longer than that.
pub fn screenful(text: &str) -> String {
    let (rows, columns) = console::Term::stdout().size_checked().unwrap_or((24, 80));
    let room = usize::from(rows).saturating_sub(1);
    let mut shown = String::from("\x1b[H\x1b[2J");
    let mut used = 0;
    for line in text.lines() {
        used += console::measure_text_width(line).div_ceil(columns.max(1).into()).max(1);
        if used > room {
            break;
        }
        shown.push_str(line);
        shown.push('\n');
    }
    shown
}

/// Shows a run. `board` has taken in the event already.
pub trait Renderer: Send {
    /// Something happened.
    fn event(&mut self, event: &Event, board: &Board);

    /// Something is to be said that is no event.
    fn note(&mut self, text: &str);

    /// Time goes by; `now` is since the run began.
    fn tick(&mut self, _board: &Board, _now: Duration) {}

    /// Nothing more will come.
    fn finish(&mut self) {}

    /// How often [`Renderer::tick`] is wanted.
    fn interval(&self) -> Duration {
        Duration::from_secs(1)
    }
}

/// The renderer for these options. `data` is for programs (standard output), `talk` for people (standard
/// error); either may go away without harm.
pub fn renderer(
    options: &Options,
    data: Box<dyn Write + Send>,
    talk: Box<dyn Write + Send>,
) -> Box<dyn Renderer> {
    let (data, talk) = (Out::new(data), Out::new(talk));
    match options.format {
        Format::Json => Box::new(json::Json::new(data, talk)),
        Format::Human if options.live() => Box::new(live::Live::new(talk, options.paint(), options.width)),
        Format::Human | Format::Plain => {
            Box::new(plain::Plain::new(talk, options.paint(), options.verbose > 0))
        }
    }
}

/// What is said when a run is over: the summary, and after it every failure and the next commands, with `p1`
/// as p1 is called. Empty for JSON, where the events say it all.
pub fn closing(board: &Board, options: &Options, p1: &str) -> String {
    if options.format == Format::Json {
        return String::new();
    }
    let mut text = format!("\n{}", summary(board, options));
    let failures = failures(board, options, p1);
    if !failures.is_empty() {
        text.push('\n');
        text.push_str(&failures);
    }
    // A run without work is told in a line.
    if board.counts().done > 0 {
        let now: Vec<_> = board.now.iter().flat_map(|line| text::wrap(line, options.columns())).collect();
        let next = board.next.iter().map(|command| {
            let label = options.paint().tone(Tone::Hint, &format!("{}: ", wording::label::NEXT));
            label + &options.paint().tone(Tone::Bold, &wording::command(command, p1))
        });
        let lines: Vec<String> = now.into_iter().chain(next).collect();
        if !lines.is_empty() {
            text.push_str(&format!("\n{}\n", lines.join("\n")));
        }
    }
    text
}

/// A writer that falls silent when its reader is gone: a run must not end because somebody wrote
/// `p1 up -o json | head -1`.
struct Out(Option<Box<dyn Write + Send>>);

impl Out {
    fn new(out: Box<dyn Write + Send>) -> Self {
        Self(Some(out))
    }

    /// Writes and flushes, until that fails for the first time.
    fn write(&mut self, bytes: &[u8]) {
        if let Some(out) = &mut self.0
            && !bytes.is_empty()
            && out.write_all(bytes).and_then(|()| out.flush()).is_err()
        {
            self.0 = None;
        }
    }
}
