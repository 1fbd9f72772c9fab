//! Colours and signs. Nothing is said by colour alone: every colour goes with a sign or a word.

use anstyle::{AnsiColor, Style};

use super::text;

/// What a piece of text means; how that looks is decided when it is painted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tone {
    /// As any text.
    Plain,
    /// It went well: green.
    Good,
    /// It failed: red.
    Bad,
    /// To be looked at: yellow.
    Warn,
    /// Hints, paths, commands and what runs: cyan.
    Hint,
    /// Less important than what is around it.
    Dim,
    /// For headings of tables and parts.
    Bold,
}

/// Whether and how to colour, and whether signs beyond ASCII may be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Paint {
    /// False for `NO_COLOR`, pipes and dumb terminals.
    pub color: bool,
    /// False where the locale is not UTF-8.
    pub unicode: bool,
}

impl Paint {
    /// The text in a tone, or as it is where colours are off.
    pub fn tone(self, tone: Tone, text: &str) -> String {
        let style = match tone {
            Tone::Plain => Style::new(),
            Tone::Good => AnsiColor::Green.on_default(),
            Tone::Bad => AnsiColor::Red.on_default(),
            Tone::Warn => AnsiColor::Yellow.on_default(),
            Tone::Hint => AnsiColor::Cyan.on_default(),
            Tone::Dim => Style::new().dimmed(),
            Tone::Bold => Style::new().bold(),
        };
        if !self.color || text.is_empty() || style.is_plain() {
            return text.to_owned();
        }
        format!("{style}{text}{style:#}")
    }

    /// The signs to use.
    pub fn signs(self) -> &'static Signs {
        if self.unicode { &UNICODE } else { &ASCII }
    }
}

/// The signs of the screen; all but `ellipsis` and `dot` are one column wide.
#[derive(Debug)]
pub struct Signs {
    /// Went well.
    pub good: &'static str,
    /// Failed.
    pub bad: &'static str,
    pub warn: &'static str,
    /// Waits before another attempt.
    pub retry: &'static str,
    /// Has not begun.
    pub idle: &'static str,
    /// Cannot begin because of another's failure.
    pub blocked: &'static str,
    /// Ended by the user.
    pub stopped: &'static str,
    /// Between two parts of a line.
    pub dot: &'static str,
    /// For what was cut off.
    pub ellipsis: &'static str,
    /// A rule across the page.
    pub rule: &'static str,
    /// The filled part of a bar.
    pub full: &'static str,
    /// The end of the filled part.
    pub head: &'static str,
    /// The rest of a bar.
    pub rest: &'static str,
    /// The frames of a spinner, ten a second.
    pub spinner: &'static [&'static str],
}

const UNICODE: Signs = Signs {
    good: "✓",
    bad: "✗",
    warn: "!",
    retry: "↻",
    idle: "·",
    blocked: "–",
    stopped: "■",
    dot: "·",
    ellipsis: "…",
    rule: "─",
    full: "━",
    head: "╸",
    rest: "─",
    spinner: &["⠋", "⠙", "⠹", "⠸", "⠼", "⠴", "⠦", "⠧", "⠇", "⠏"],
};

const ASCII: Signs = Signs {
    good: "+",
    bad: "x",
    warn: "!",
    retry: "~",
    idle: ".",
    blocked: "-",
    stopped: "=",
    dot: "-",
    ellipsis: "..",
    rule: "-",
    full: "=",
    head: ">",
    rest: "-",
    spinner: &["|", "|", "/", "/", "-", "-", "\\", "\\"],
};

/// One line of several tones, whose width is known before it is painted.
#[derive(Clone, Debug, Default)]
pub struct Line(Vec<(Tone, String)>);

impl Line {
    /// An empty line.
    pub fn new() -> Self {
        Self::default()
    }

    /// The line with more text at its end, [cleaned](text::clean) of what would disturb the screen.
    #[must_use]
    pub fn with(mut self, tone: Tone, text: &str) -> Self {
        // `clean` trims the end, and a separator's last space is wanted.
        let clean = text::clean(text);
        let spaces = text.len() - text.trim_end_matches(' ').len();
        self.0.push((tone, clean + &" ".repeat(spaces)));
        self
    }

    /// The line with another one at its end.
    #[must_use]
    pub fn join(mut self, other: Line) -> Self {
        self.0.extend(other.0);
        self
    }

    /// Columns.
    pub fn width(&self) -> usize {
        self.0.iter().map(|(_, text)| text::width(text)).sum()
    }

    /// The line cut to so many columns.
    #[must_use]
    pub fn cut(self, columns: usize, ellipsis: &str) -> Self {
        if self.width() <= columns {
            return self;
        }
        let mut room = columns;
        let mut out = Vec::new();
        for (tone, text) in self.0 {
            let wide = text::width(&text);
            if wide < room {
                room -= wide;
                out.push((tone, text));
                continue;
            }
            // Forces a cut also where this piece fits exactly, as more would follow.
            let text = text::cut(&(text + "   "), room, ellipsis);
            out.push((tone, text));
            break;
        }
        Self(out)
    }

    /// `left` at the left and `right` at the right edge of so many columns; `left` gives way.
    pub fn between(left: Line, right: Line, columns: usize, ellipsis: &str) -> Self {
        let room = columns.saturating_sub(right.width() + 2);
        if right.width() == 0 || room < 12 {
            return left.cut(columns, ellipsis);
        }
        let left = left.cut(room, ellipsis);
        let gap = columns - left.width() - right.width();
        left.with(Tone::Plain, &" ".repeat(gap)).join(right)
    }

    /// The text to print.
    pub fn paint(&self, paint: Paint) -> String {
        self.0.iter().map(|(tone, text)| paint.tone(*tone, text)).collect()
    }
}
