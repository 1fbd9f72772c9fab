//! Why a verb ends, with the exit code and what to do about it.

use crate::engine::StepError;
use crate::explain::{Explain, FailureKind, chain, clipped, printable};
use crate::ui::{Paint, Tone, wording};

/// Exit codes, as `p1 --help` lists them.
pub mod code {
    /// Steps failed; `p1 retry` continues.
    pub const FAILED: u8 = 1;
    /// Bad usage or spec.
    pub const USAGE: u8 = 2;
    /// The host is not ready.
    pub const HOST: u8 = 3;
    /// Another p1 has the cluster.
    pub const LOCKED: u8 = 4;
    /// `plan`: something would change.
    pub const CHANGES: u8 = 10;
    /// The user ended it; the state is kept.
    pub const INTERRUPTED: u8 = 130;
}

/// Of a line of evidence, so many characters are shown.
const LONGEST: usize = 2 << 10;

/// The end of a verb that did not go as asked.
#[derive(Debug)]
pub struct CliError {
    pub code: u8,
    /// What kind of failure it was.
    pub kind: FailureKind,
    /// What went wrong, a lower-case fragment.
    pub message: String,
    /// Lines that show it.
    pub evidence: Vec<String>,
    /// What to do, full sentences.
    pub hint: Option<String>,
    /// Commands that lead on, in this order.
    pub next: Vec<String>,
    /// It was said already; a program hears it with the last object.
    pub told: bool,
}

impl CliError {
    /// With a message and a hint.
    pub fn new(code: u8, message: impl Into<String>, hint: impl Into<String>) -> Self {
        let hint = Some(hint.into()).filter(|h| !h.is_empty());
        let kind = match code {
            code::USAGE | code::HOST => FailureKind::Cannot,
            code::LOCKED => FailureKind::Conflict,
            _ => FailureKind::Other,
        };
        Self {
            code,
            kind,
            message: message.into(),
            evidence: Vec::new(),
            hint,
            next: Vec::new(),
            told: false,
        }
    }

    /// People were told already, by what the verb printed.
    pub fn told(code: u8, message: impl Into<String>) -> Self {
        Self { told: true, ..Self::new(code, message, "") }
    }

    /// With these commands, which lead on.
    #[must_use]
    pub fn next<S: Into<String>>(self, commands: impl IntoIterator<Item = S>) -> Self {
        Self { next: commands.into_iter().map(Into::into).collect(), ..self }
    }

    /// With a hint.
    #[must_use]
    pub fn hint(self, hint: impl Into<String>) -> Self {
        Self { hint: Some(hint.into()), ..self }
    }

    /// From an error that knows its hint.
    pub fn of(code: u8, error: &dyn Explain) -> Self {
        let code = match (error.cancelled(), error.unready()) {
            (true, _) => code::INTERRUPTED,
            (_, true) => code::HOST,
            _ => code,
        };
        Self {
            code,
            kind: error.kind(),
            message: chain(&error),
            evidence: error.evidence(),
            hint: error.hint(),
            next: error.next(),
            told: false,
        }
    }

    /// With every text replaced by what `change` makes of it: a node's words may be among them.
    #[must_use]
    pub fn map_texts(self, change: &dyn Fn(String) -> String) -> Self {
        let Self { code, kind, message, evidence, hint, next, told } = self;
        let all = |texts: Vec<String>| texts.into_iter().map(change).collect();
        Self {
            code,
            kind: kind.map_texts(change),
            message: change(message),
            evidence: all(evidence),
            hint: hint.map(change),
            next: all(next),
            told,
        }
    }

    /// True if something broke, on this host or in a cluster that was begun, and all was not said already.
    pub fn wants_evidence(&self, begun: bool) -> bool {
        (self.code == code::HOST || self.code == code::FAILED && begun) && !self.told
    }

    /// As it is shown on standard error.
    pub fn show(&self, paint: Paint, p1: &str) -> String {
        if self.told {
            return String::new();
        }
        // A node's words may be among them.
        let mut text = format!("{} {}\n", paint.tone(Tone::Bad, "error:"), printable(&self.message));
        for line in &self.evidence {
            text.push_str(&format!("  | {}\n", clipped(&printable(line), LONGEST)));
        }
        if let Some(hint) = &self.hint {
            let hint = wording::called(hint, p1);
            text.push_str(&format!("\n{} {}\n", paint.tone(Tone::Hint, "hint:"), printable(&hint)));
        }
        if !self.next.is_empty() {
            let label = paint.tone(Tone::Hint, &format!("{}:", wording::label::NEXT));
            text.push_str(&format!("{label} {}\n", wording::next(&self.next, p1)));
        }
        text
    }
}

/// The last object of `-o json`: how a verb ended, and why.
pub fn end(verb: &str, p1: &str, result: &Result<(), CliError>) -> serde_json::Value {
    let fail = result.as_ref().err();
    let mut end = serde_json::json!({
        "v": crate::event::VERSION,
        "event": "end",
        "verb": verb,
        "code": fail.map_or(0, |f| f.code),
        "cause": fail.map(|f| &f.message),
        "hint": fail.and_then(|f| f.hint.as_ref()).map(|h| wording::called(h, p1)),
        "next": fail.map_or(&[][..], |f| &f.next).iter().map(|c| wording::command(c, p1)).collect::<Vec<_>>(),
        "evidence": fail.map_or(&[][..], |f| &f.evidence),
    });
    // That there is something to do is an answer, not a failure.
    if let Some(fail) = fail.filter(|f| f.code != code::CHANGES) {
        with_kind(&mut end, &fail.kind);
    }
    end
}

/// Puts the fields of a kind of failure into an object.
pub fn with_kind(object: &mut serde_json::Value, kind: &FailureKind) {
    if let (Some(object), Ok(serde_json::Value::Object(fields))) =
        (object.as_object_mut(), serde_json::to_value(kind))
    {
        object.extend(fields);
    }
}

impl From<StepError> for CliError {
    fn from(error: StepError) -> Self {
        Self {
            code: match (error.cancelled(), error.unready) {
                (true, _) => code::INTERRUPTED,
                (_, true) => code::HOST,
                _ => code::FAILED,
            },
            kind: error.failure.kind,
            message: error.failure.cause,
            evidence: error.failure.evidence,
            hint: error.failure.hint,
            next: error.failure.next,
            told: false,
        }
    }
}

impl From<anyhow::Error> for CliError {
    /// Errors that have no room of their own, with what was being done.
    fn from(error: anyhow::Error) -> Self {
        Self::new(code::FAILED, format!("{error:#}"), "")
    }
}

impl<E: Explain> From<E> for CliError {
    fn from(error: E) -> Self {
        Self::of(code::FAILED, &error)
    }
}
