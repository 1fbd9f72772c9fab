//! What is wrong with a spec, told so that it can be mended: where, what, and what would be right.

use std::fmt::{self, Write as _};
use std::path::{Path, PathBuf};

use anstyle::{AnsiColor, Style};
use serde::Serialize;

use crate::explain::{Explain, FailureKind};

/// How bad it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// The spec cannot be used.
    Error,
    /// Unwise, but it works.
    Warning,
}

impl fmt::Display for Severity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Error => "error",
            Self::Warning => "warning",
        })
    }
}

/// One error, or one thing that is unwise.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Problem {
    /// How bad it is.
    pub severity: Severity,
    /// From 1.
    pub line: usize,
    /// From 1, in characters.
    pub column: usize,
    /// The length of the offending text in characters, within its line; at least 1.
    pub length: usize,
    /// What is wrong, as a lower-case fragment.
    pub message: String,
    /// What would be right, as full sentences.
    pub help: String,
    /// The line of the file, without control characters, cut if it is long.
    pub snippet: String,
    /// Where in `snippet` the offending text starts, in characters from 0.
    #[serde(skip)]
    pub(super) mark: usize,
}

impl Problem {
    /// The problem as a compiler would show it: message, place, the line with the offending text
    /// underlined, help. Ends with a line break.
    pub fn render(&self, file: &Path, color: bool) -> String {
        let paint = |style: Style, text: &str| {
            if color { format!("{style}{text}{style:#}") } else { text.to_owned() }
        };
        let loud = match self.severity {
            Severity::Error => AnsiColor::Red.on_default().bold(),
            Severity::Warning => AnsiColor::Yellow.on_default().bold(),
        };
        let dim = AnsiColor::Blue.on_default().bold();
        let number = self.line.to_string();
        let gutter = " ".repeat(number.len());
        let bar = paint(dim, "|");
        let underline = format!("{}{}", " ".repeat(self.mark), paint(loud, &"^".repeat(self.length)));

        let mut out = format!("{}: {}\n", paint(loud, &self.severity.to_string()), self.message);
        let arrow = paint(dim, "-->");
        // Writing to a string cannot fail.
        let _ = writeln!(out, "{gutter}{arrow} {}:{}:{}", file.display(), self.line, self.column);
        let _ = writeln!(out, "{gutter} {bar}");
        let _ = writeln!(out, "{} {bar} {}", paint(dim, &number), self.snippet);
        let _ = writeln!(out, "{gutter} {bar} {underline}");
        for (i, line) in self.help.lines().enumerate() {
            let lead = if i == 0 { "= help:" } else { "       " };
            let _ = writeln!(out, "{gutter} {} {line}", paint(dim, lead));
        }
        out
    }
}

/// One line, for where nothing can be underlined; [`Problem::render`] shows more.
impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { severity, line, column, message, help, .. } = self;
        write!(f, "{severity}: line {line}, column {column}: {message}. {}", help.replace('\n', " "))
    }
}

/// A spec that cannot be used, with every error in it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Invalid {
    /// The file, as it was named.
    pub file: PathBuf,
    /// Errors and warnings in the order of the file; at least one error.
    pub problems: Vec<Problem>,
}

impl Invalid {
    /// All problems, with an empty line between two.
    pub fn render(&self, color: bool) -> String {
        render(&self.problems, &self.file, color)
    }
}

/// Several problems of one file, with an empty line between two.
pub fn render(problems: &[Problem], file: &Path, color: bool) -> String {
    problems.iter().map(|p| p.render(file, color)).collect::<Vec<_>>().join("\n")
}

impl fmt::Display for Invalid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let errors = self.problems.iter().filter(|p| p.severity == Severity::Error).count();
        let s = if errors == 1 { "" } else { "s" };
        write!(f, "{} has {errors} error{s}", self.file.display())
    }
}

impl std::error::Error for Invalid {}

impl Explain for Invalid {
    fn kind(&self) -> FailureKind {
        FailureKind::Cannot
    }

    fn hint(&self) -> Option<String> {
        Some("Mend the lines shown above; `p1 validate` checks the file again.".to_owned())
    }

    fn evidence(&self) -> Vec<String> {
        self.render(false).lines().map(str::to_owned).collect()
    }
}
