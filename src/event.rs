//! What happens in a run, as data: the one contract between engine, journal and user interface.
//!
//! Events are written as JSON, one object a line, in the journal and by `-o json`. A reader of an
//! older version must survive a newer writer, so an unknown kind reads as [`Kind::Unknown`] and
//! unknown fields are ignored.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::explain::FailureKind;

/// The version of this format; a reader refuses to *write* into a journal of a newer one.
pub const VERSION: u32 = 1;

/// One thing that happened.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Event {
    /// [`VERSION`] of the writer.
    pub v: u32,
    /// The number of this event in its run, from 0, each given once; the journal, which has no progress,
    /// passes some over.
    pub seq: u64,
    /// When.
    pub at: jiff::Timestamp,
    /// Milliseconds since the run began.
    pub elapsed_ms: u64,
    /// What.
    #[serde(flatten)]
    pub kind: Kind,
}

macro_rules! verbs {
    ($(#[$about:meta])* $name:ident { $($verb:ident = $text:literal,)+ }) => {
        $(#[$about])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
        pub enum $name {
            $(#[doc = concat!("`p1 ", $text, "`.")] $verb,)+
        }

        impl $name {
            /// All of them.
            pub const ALL: [Self; [$($text),+].len()] = [$(Self::$verb),+];

            /// As it stands on the command line and in journals.
            pub const fn as_str(self) -> &'static str {
                match self {
                    $(Self::$verb => $text,)+
                }
            }
        }
    };
}

verbs! {
    /// The verbs that run steps, by the names that journals have: one that was given stays.
    VerbName {
        Up = "up",
        Machines = "up --only machines",
        Replace = "replace",
        Upgrade = "upgrade",
        Start = "start",
        Verify = "verify",
        Stop = "stop",
        Killall = "killall",
        Uninstall = "uninstall",
        Destroy = "destroy",
        Backup = "backup",
        Restore = "restore",
        UndoRestore = "restore --undo",
        Keep = "up --keep",
        Reset = "reset",
        Fork = "fork",
        MakeFork = "fork --make",
        Suspend = "suspend",
        Resume = "resume",
        SaveSnapshot = "snapshot save",
        RestoreSnapshot = "snapshot restore",
        DeleteSnapshot = "snapshot delete",
        Fault = "fault",
        HealFault = "fault heal",
        Bake = "box bake",
        LoadImage = "image load",
    }
}

impl VerbName {
    /// The verb of that name; none for one of a newer p1.
    pub fn parse(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|verb| verb.as_str() == name)
    }
}

impl std::fmt::Display for VerbName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}

/// What happened.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum Kind {
    /// The first event of every run: the whole plan, so that a reader knows what is to come.
    RunStarted {
        /// The run's id, which sorts by time.
        run: String,
        cluster: String,
        /// The name of the verb ([`VerbName`], or that of a newer p1); a retry has the verb of the run it goes on
        /// with.
        verb: String,
        /// The id of the run that is gone on with.
        retry_of: Option<String>,
        /// The nodes named on the command line; empty for all.
        targets: Vec<String>,
        /// What it is about beside nodes, in the words of the command line: a snapshot's name, a file.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        subject: Option<String>,
        /// The digest of the spec.
        spec_digest: String,
        /// A line to be said before anything else, such as that a stand-in is in use.
        banner: Option<String>,
        /// Every step, in an order in which they could run one after the other.
        steps: Vec<StepInfo>,
    },
    /// A step begins, or begins again.
    StepStarted {
        /// Which.
        step: String,
        /// From 1.
        attempt: u32,
        /// At most so many.
        attempts: u32,
    },
    /// How a running step gets on. Never in the journal; may be dropped.
    StepProgress {
        /// Which.
        step: String,
        /// What it does just now, e.g. `waiting for an address`.
        message: String,
        /// Bytes moved, where it moves bytes.
        done: Option<u64>,
        /// Of how many, where that is known.
        total: Option<u64>,
    },
    /// Something to know that does not fail the step.
    StepWarning {
        /// Which.
        step: String,
        /// What, as a sentence.
        message: String,
    },
    /// An attempt failed and another will follow.
    StepRetrying {
        /// Which.
        step: String,
        /// The attempt that failed, from 1.
        attempt: u32,
        /// At most so many.
        attempts: u32,
        /// Milliseconds until the next.
        wait_ms: u64,
        /// Why it failed, in one sentence.
        cause: String,
        /// What kind of failure it was; the fields `kind`, `exit_code`, `signal` and `bound_ms`.
        #[serde(flatten)]
        kind: FailureKind,
    },
    /// The step is over, whatever came of it. Synced to disk before the next step may begin.
    StepFinished {
        /// Which.
        step: String,
        /// What came of it.
        outcome: Outcome,
        /// Attempts made; 0 if it was skipped or blocked.
        attempt: u32,
        /// Milliseconds from its first start.
        took_ms: u64,
    },
    /// The last event of a run that ended in order.
    RunFinished {
        /// True if nothing is outstanding.
        success: bool,
        /// True if the user ended it.
        interrupted: bool,
    },
    /// Written by a newer p1.
    #[serde(other)]
    Unknown,
}

impl Kind {
    /// With every text that may have come from elsewhere (a node, a program, a file, the command line)
    /// replaced by what `change` makes of it.
    ///
    /// Every field of every event is named here, so that a new one has to be put on one side or the other:
    /// names and ids, by which a journal is read again, stay as they are.
    #[must_use]
    pub fn map_texts(self, change: &dyn Fn(String) -> String) -> Self {
        match self {
            Self::RunStarted {
                run,
                cluster,
                verb,
                retry_of,
                targets,
                subject,
                spec_digest,
                banner,
                steps,
            } => Self::RunStarted {
                run,
                cluster,
                verb,
                retry_of,
                targets,
                subject: subject.map(change),
                spec_digest,
                banner: banner.map(change),
                steps: steps.into_iter().map(|step| step.map_texts(change)).collect(),
            },
            Self::StepStarted { step, attempt, attempts } => Self::StepStarted { step, attempt, attempts },
            Self::StepProgress { step, message, done, total } => {
                Self::StepProgress { step, message: change(message), done, total }
            }
            Self::StepWarning { step, message } => Self::StepWarning { step, message: change(message) },
            Self::StepRetrying { step, attempt, attempts, wait_ms, cause, kind } => Self::StepRetrying {
                step,
                attempt,
                attempts,
                wait_ms,
                cause: change(cause),
                kind: kind.map_texts(change),
            },
            Self::StepFinished { step, outcome, attempt, took_ms } => {
                Self::StepFinished { step, outcome: outcome.map_texts(change), attempt, took_ms }
            }
            Self::RunFinished { success, interrupted } => Self::RunFinished { success, interrupted },
            Self::Unknown => Self::Unknown,
        }
    }
}

/// A step as the plan has it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct StepInfo {
    /// Stable, e.g. `worker-1/start` or `cluster/network`.
    pub id: String,
    /// The node it works on; none for the cluster's own.
    pub node: Option<String>,
    /// What it does, for people, e.g. `start k3s`.
    pub title: String,
    /// The digest of its inputs.
    pub digest: String,
    /// Ids of the steps that must be done before.
    pub after: Vec<String>,
    /// Why it has to run, or why not.
    pub reason: String,
    /// False if it is known to be done already.
    pub needed: bool,
}

impl StepInfo {
    /// [`Kind::map_texts`].
    #[must_use]
    pub fn map_texts(self, change: &dyn Fn(String) -> String) -> Self {
        let Self { id, node, title, digest, after, reason, needed } = self;
        Self { id, node, title: change(title), digest, after, reason: change(reason), needed }
    }
}

/// What came of a step.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "outcome", rename_all = "snake_case")]
pub enum Outcome {
    /// It did its work.
    Done {
        /// What to remember or to show, e.g. a VM's id or `pushed 73 MB`.
        detail: Option<String>,
    },
    /// There was nothing to do.
    Skipped {
        /// Why not.
        reason: String,
    },
    /// It failed, after all attempts.
    Failed(Failure),
    /// The user ended it; it has to run again.
    Interrupted,
    /// A step before it failed or was interrupted.
    Blocked {
        /// The id of that step.
        by: String,
    },
}

impl Outcome {
    /// [`Kind::map_texts`].
    #[must_use]
    pub fn map_texts(self, change: &dyn Fn(String) -> String) -> Self {
        match self {
            Self::Done { detail } => Self::Done { detail: detail.map(change) },
            Self::Skipped { reason } => Self::Skipped { reason: change(reason) },
            Self::Failed(Failure { kind, cause, hint, evidence, log, next }) => Self::Failed(Failure {
                kind: kind.map_texts(change),
                cause: change(cause),
                hint: hint.map(change),
                evidence: evidence.into_iter().map(change).collect(),
                log,
                next: next.into_iter().map(change).collect(),
            }),
            Self::Interrupted => Self::Interrupted,
            Self::Blocked { by } => Self::Blocked { by },
        }
    }

    /// True if steps behind it may run, and if it need not run again.
    pub fn passed(&self) -> bool {
        matches!(self, Self::Done { .. } | Self::Skipped { .. })
    }
}

/// A failure, told so that it can be acted on.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Failure {
    /// What kind of failure it was; the fields `kind`, `exit_code`, `signal` and `bound_ms`.
    #[serde(flatten)]
    pub kind: FailureKind,
    /// The cause in one sentence (a lower-case fragment).
    pub cause: String,
    /// What to do about it, as full sentences.
    pub hint: Option<String>,
    /// The last lines that show it.
    pub evidence: Vec<String>,
    /// Where everything was written down.
    pub log: Option<PathBuf>,
    /// Commands that lead on, in this order, where `p1 retry` alone does not.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub next: Vec<String>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_is_one_flat_object_and_reads_back() {
        let event = Event {
            v: VERSION,
            seq: 3,
            at: "2026-11-22T06:00:00Z".parse().unwrap(),
            elapsed_ms: 1500,
            kind: Kind::StepFinished {
                step: "worker/start".into(),
                outcome: Outcome::Failed(Failure { cause: "wrong token".into(), ..Failure::default() }),
                attempt: 2,
                took_ms: 900,
            },
        };
        let line = serde_json::to_string(&event).unwrap();
        assert!(line.starts_with(r#"{"v":1,"seq":3,"at":"2026-11-22T06:00:00Z","#), "{line}");
        assert_eq!(serde_json::from_str::<Event>(&line).unwrap(), event);
    }

    /// Texts are told by what they hold: whatever else there is comes out as it went in.
    #[test]
    fn every_text_of_an_event_can_be_changed() {
        let text = || "TEXT".to_owned();
        let info = StepInfo {
            id: "id".into(),
            node: Some("node".into()),
            title: text(),
            digest: "digest".into(),
            after: vec!["after".into()],
            reason: text(),
            needed: true,
        };
        let failure = Failure {
            kind: FailureKind::Signal { name: text() },
            cause: text(),
            hint: Some(text()),
            evidence: vec![text(), text()],
            log: None,
            next: vec![text()],
        };
        let finished = |outcome| Kind::StepFinished { step: "s".into(), outcome, attempt: 1, took_ms: 1 };
        let all = [
            Kind::RunStarted {
                run: "run".into(),
                cluster: "cluster".into(),
                verb: "verb".into(),
                retry_of: Some("retry".into()),
                targets: vec!["target".into()],
                subject: Some(text()),
                spec_digest: "digest".into(),
                banner: Some(text()),
                steps: vec![info.clone(), info],
            },
            Kind::StepProgress { step: "s".into(), message: text(), done: None, total: None },
            Kind::StepWarning { step: "s".into(), message: text() },
            Kind::StepRetrying {
                step: "s".into(),
                attempt: 1,
                attempts: 2,
                wait_ms: 1,
                cause: text(),
                kind: FailureKind::Refused,
            },
            finished(Outcome::Done { detail: Some(text()) }),
            finished(Outcome::Skipped { reason: text() }),
            finished(Outcome::Failed(failure)),
        ];
        for kind in all {
            let before = serde_json::to_string(&kind).unwrap();
            let after = kind.map_texts(&|text| text.replace("TEXT", "changed"));
            let after = serde_json::to_string(&after).unwrap();
            assert_eq!(after, before.replace("TEXT", "changed"));
            assert!(after.contains("changed"), "{after}");
        }
    }

    #[test]
    fn a_newer_kind_and_newer_fields_are_survived() {
        let line = r#"{"v":9,"seq":1,"at":"2026-11-22T06:00:00Z","elapsed_ms":1,"event":"sang","song":"x"}"#;
        assert_eq!(serde_json::from_str::<Event>(line).unwrap().kind, Kind::Unknown);
    }
}
