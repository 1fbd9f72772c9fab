//! What can go wrong with Vagrant, and what it means.

use crate::explain::{Again, Explain, FailureKind};
use crate::os::{files, process};

use super::Line;

/// Why Vagrant did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// It could not be run to its end.
    #[error(transparent)]
    Process(#[from] process::Error),
    /// A file of ours for it could not be written.
    #[error(transparent)]
    File(#[from] files::Error),
    /// It said no.
    #[error("vagrant: {message}")]
    Refused {
        /// The Ruby class, e.g. `Vagrant::Errors::MachineLocked`; empty when it gave none.
        class: String,
        /// The first paragraph of what it said.
        message: String,
        /// Everything it said about it.
        lines: Vec<String>,
    },
    /// It ended in order without a word about this machine.
    #[error("vagrant ended without bringing up `{0}`")]
    Silent(String),
}

impl Error {
    /// From what vagrant printed before it exited with another status than 0.
    pub(super) fn from_output(done: &process::Finished, lines: &[Line]) -> Self {
        if let Some(line) = lines.iter().rev().find(|l| l.kind == "error-exit") {
            let class = line.data.first().cloned().unwrap_or_default();
            return Self::refused(class, &line.data[1.min(line.data.len())..].join(","));
        }
        let said = |l: &&Line| l.is("ui", &["error"]);
        if let Some(line) = lines.iter().rev().find(said) {
            return Self::refused(String::new(), &line.data[1..].join(","));
        }
        if let Some((class, message)) = crash(&done.stderr) {
            return Self::refused(class, &message);
        }
        match done.clone().ok() {
            Err(e) => Self::Process(e),
            Ok(_) => Self::refused(String::new(), "it gave no reason"),
        }
    }

    pub(super) fn refused(class: String, text: &str) -> Self {
        // A paragraph break separates the cause from advice that is for Vagrant's own users.
        let first = text.split("\n\n").find(|p| !p.trim().is_empty()).unwrap_or("it gave no reason");
        let message = first.split_whitespace().collect::<Vec<_>>().join(" ");
        Self::Refused { class, message, lines: process::tail(text, 12) }
    }

    fn class_is(&self, names: &[&str]) -> bool {
        matches!(self, Self::Refused { class, .. } if names.iter().any(|n| class.ends_with(n)))
    }

    fn says(&self, words: &[&str]) -> bool {
        matches!(self, Self::Refused { lines, .. } if {
            let text = lines.join(" ").to_lowercase();
            words.iter().any(|w| text.contains(w))
        })
    }

    fn locked(&self) -> bool {
        self.class_is(&["MachineActionLockedError", "MachineLocked"]) || self.says(&["machine is locked"])
    }
}

/// Class and message of an exception that nothing in Vagrant expected, from the first line of Ruby's
/// trace: `FILE.rb:LINE:in `METHOD': MESSAGE (CLASS)`; the method is in `'` on both sides since Ruby 3.4.
fn crash(stderr: &str) -> Option<(String, String)> {
    let line = stderr.lines().find(|l| !l.starts_with(char::is_whitespace) && l.contains(".rb:"))?;
    let (message, class) = line.split_once("': ")?.1.strip_suffix(')')?.rsplit_once(" (")?;
    let name = |c: char| c.is_ascii_alphanumeric() || c == ':' || c == '_';
    class.chars().all(name).then(|| (class.to_owned(), message.to_owned()))
}

impl Explain for Error {
    fn hint(&self) -> Option<String> {
        if self.locked() {
            return Some("Another vagrant works on this machine; let it end, or end it.".to_owned());
        }
        if self.class_is(&["BoxUnpackageFailure", "BoxMetadataFileNotFound", "BoxMetadataCorrupted"]) {
            return Some("The box file is damaged, or is none: get it again.".to_owned());
        }
        if self.class_is(&["CorruptMachineIndex"]) {
            return Some("Remove `data/machine-index` in p1's VAGRANT_HOME; it is a cache.".to_owned());
        }
        if self.says(&[
            "failed to connect socket",
            "error while connecting to libvirt",
            "call to virconnectopen",
        ]) {
            return Some(
                "libvirt does not answer. `p1 doctor --fix` starts it, and says what it would run before."
                    .to_owned(),
            );
        }
        if self.says(&["cannot allocate memory"]) {
            return Some("The host has too little free memory for these machines.".to_owned());
        }
        match self {
            Self::Process(e) => e.hint(),
            Self::File(e) => e.hint(),
            _ => None,
        }
    }

    fn evidence(&self) -> Vec<String> {
        match self {
            Self::Process(e) => e.evidence(),
            Self::Refused { lines, .. } => lines.clone(),
            _ => Vec::new(),
        }
    }

    fn kind(&self) -> FailureKind {
        match self {
            Self::Process(e) => e.kind(),
            Self::File(e) => e.kind(),
            _ if self.locked() => FailureKind::Conflict,
            _ if self.class_is(&[
                "BoxUnpackageFailure",
                "BoxMetadataFileNotFound",
                "BoxMetadataCorrupted",
            ]) =>
            {
                FailureKind::Damaged
            }
            Self::Refused { .. } => FailureKind::Refused,
            Self::Silent(_) => FailureKind::Other,
        }
    }

    fn again(&self) -> Again {
        let passes = self.locked()
            || self.says(&[
                "already in use",
                "failed to connect socket",
                "timed out",
                "connection reset",
                // libvirtd ended while Vagrant spoke with it.
                "end of file while reading data",
                "cannot recv data",
            ]);
        match self {
            Self::Process(e) => e.again(),
            _ if passes => Again::Soon,
            _ => Again::No,
        }
    }

    fn unready(&self) -> bool {
        matches!(self, Self::Process(e) if e.unready())
    }
}
