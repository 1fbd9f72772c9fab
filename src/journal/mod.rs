//! The journal: one file of JSON lines per run, only ever appended to.
//!
//! A finished step is on disk before the next may begin, so what a crash or `kill -9` loses is at
//! most the end of what was running, and that reads as outstanding.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use crate::event::{Event, Kind, Outcome, StepInfo, VERSION};
use crate::explain::{Explain, FailureKind};
use crate::os::files::{self, At};

/// Why a journal cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// It cannot be read or written.
    #[error(transparent)]
    File(#[from] files::Error),
    /// It holds something else than events, and no plan to make sense of the others.
    #[error("{}:{line} is not an event, and nothing in the file says what was to be done: {reason}", path.display())]
    Damaged {
        /// Which file.
        path: PathBuf,
        /// Which line, from 1.
        line: usize,
        /// Why.
        reason: String,
    },
}

impl Explain for Error {
    fn kind(&self) -> FailureKind {
        match self {
            Self::File(e) => e.kind(),
            Self::Damaged { .. } => FailureKind::Damaged,
        }
    }

    fn next(&self) -> Vec<String> {
        match self {
            Self::File(e) => e.next(),
            Self::Damaged { .. } => vec!["p1 up".to_owned()],
        }
    }

    fn hint(&self) -> Option<String> {
        match self {
            Self::File(e) => e.hint(),
            Self::Damaged { .. } => {
                Some("Run `p1 up`: it looks at what is there and does what is missing.".to_owned())
            }
        }
    }
}

/// A journal of a hundred nodes has a few megabytes.
const MAX_BYTES: u64 = 1 << 30;

/// A journal being written.
#[derive(Debug)]
pub struct Writer {
    file: File,
    path: PathBuf,
}

impl Writer {
    /// Begins the journal of a run in `dir`.
    pub fn create(dir: &Path, run: &str) -> Result<Self, Error> {
        files::private_dir(dir)?;
        let path = dir.join(format!("{run}.jsonl"));
        let file =
            OpenOptions::new().append(true).create_new(true).mode(0o600).open(&path).at("create", &path)?;
        Ok(Self { file, path })
    }

    /// Appends an event: one write, so that two lines never mix; synced where something was done, which a
    /// step that is passed over does not: `up` on a cluster that is as it should be ends a dozen for each node.
    /// Progress is not kept.
    pub fn append(&mut self, event: &Event) -> Result<(), Error> {
        if matches!(event.kind, Kind::StepProgress { .. }) {
            return Ok(());
        }
        let mut line = serde_json::to_vec(event).expect("an event is plain data");
        line.push(b'\n');
        self.file.write_all(&line).at("write", &self.path)?;
        let ends = match &event.kind {
            Kind::StepFinished { outcome, .. } => {
                !matches!(outcome, Outcome::Skipped { .. } | Outcome::Blocked { .. })
            }
            kind => matches!(kind, Kind::RunStarted { .. } | Kind::RunFinished { .. }),
        };
        if ends {
            self.file.sync_data().at("write", &self.path)?;
        }
        Ok(())
    }
}

/// A run as its journal tells it.
#[derive(Clone, Debug, PartialEq)]
pub struct Record {
    pub run: String,
    pub verb: String,
    /// The nodes it was for; empty for all.
    pub targets: Vec<String>,
    /// What it was about beside nodes.
    pub subject: Option<String>,
    /// The digest of its spec.
    pub spec_digest: String,
    /// When it began.
    pub started: jiff::Timestamp,
    pub steps: Vec<StepInfo>,
    /// What came of each step that finished; the last word counts.
    pub outcomes: BTreeMap<String, Outcome>,
    /// `success` of its end; none if it was cut off.
    pub success: Option<bool>,
    /// Every event, in order.
    pub events: Vec<Event>,
    /// Lines (from 1) that are no events. What they told is lost, so it is outstanding.
    pub damaged: Vec<usize>,
}

impl Record {
    /// The steps that have to run again: failed, interrupted, blocked, or planned and never seen
    /// to finish.
    pub fn outstanding(&self) -> impl Iterator<Item = &StepInfo> {
        self.steps.iter().filter(|s| !self.passed(&s.id))
    }

    /// True if the step did its work or had nothing to do.
    pub fn passed(&self, step: &str) -> bool {
        self.outcomes.get(step).is_some_and(Outcome::passed)
    }
}

/// Reads a journal. `None` if the run never got as far as its plan. What is no event is passed over: a
/// last line that was torn off in the middle without a word, others are noted in [`Record::damaged`].
/// It is an error if the plan is among what was lost.
pub fn read(path: &Path) -> Result<Option<Record>, Error> {
    let bytes = files::read(path, MAX_BYTES)?;
    parse(&String::from_utf8_lossy(&bytes), path)
}

/// [`read`], of the text of the journal at `path`.
pub fn parse(text: &str, path: &Path) -> Result<Option<Record>, Error> {
    let whole = text.ends_with('\n');
    let count = text.lines().count();
    let mut record: Option<Record> = None;
    let mut damaged = Vec::new();
    let mut first = None;
    for (i, line) in text.lines().enumerate() {
        let event: Event = match serde_json::from_str(line) {
            Ok(event) => event,
            Err(_) if i + 1 == count && !whole => break,
            Err(e) => {
                first.get_or_insert_with(|| e.to_string());
                damaged.push(i + 1);
                continue;
            }
        };
        let Some(record) = &mut record else {
            record = begin(&event);
            continue;
        };
        match &event.kind {
            Kind::StepFinished { step, outcome, .. } => {
                record.outcomes.insert(step.clone(), outcome.clone());
            }
            Kind::RunFinished { success, .. } => record.success = Some(*success),
            _ => {}
        }
        record.events.push(event);
    }
    match (&mut record, first) {
        (None, Some(reason)) => Err(Error::Damaged { path: path.into(), line: damaged[0], reason }),
        (None, None) => Ok(None),
        (Some(found), _) => {
            found.damaged = damaged;
            Ok(record)
        }
    }
}

fn begin(event: &Event) -> Option<Record> {
    let Kind::RunStarted { run, verb, targets, subject, spec_digest, steps, .. } = &event.kind else {
        return None;
    };
    Some(Record {
        run: run.clone(),
        verb: verb.clone(),
        targets: targets.clone(),
        subject: subject.clone(),
        spec_digest: spec_digest.clone(),
        started: event.at,
        steps: steps.clone(),
        outcomes: BTreeMap::new(),
        success: None,
        events: vec![event.clone()],
        damaged: Vec::new(),
    })
}

/// The journals in `dir`, oldest first: run ids begin with their time.
pub fn runs(dir: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten().map(|e| e.path());
    let mut paths: Vec<_> = entries.filter(|p| p.extension().is_some_and(|e| e == "jsonl")).collect();
    paths.sort();
    paths
}

/// The newest run that has a plan.
pub fn latest(dir: &Path) -> Result<Option<Record>, Error> {
    for path in runs(dir).iter().rev() {
        if let Some(record) = read(path)? {
            return Ok(Some(record));
        }
    }
    Ok(None)
}

/// An id for a run that begins now: sorts by time, is unique on this host.
pub fn new_run_id() -> String {
    let now = jiff::Timestamp::now();
    format!("{}-{:05}", now.strftime("%Y%m%dT%H%M%S%3fZ"), std::process::id())
}

/// An event of this version; `seq` and times are the caller's.
pub fn stamp(seq: u64, elapsed_ms: u64, kind: Kind) -> Event {
    Event { v: VERSION, seq, at: jiff::Timestamp::now(), elapsed_ms, kind }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn info(id: &str) -> StepInfo {
        StepInfo {
            id: id.into(),
            node: None,
            title: id.into(),
            digest: "d".into(),
            after: vec![],
            reason: String::new(),
            needed: true,
        }
    }

    fn finished(step: &str, outcome: Outcome) -> Kind {
        Kind::StepFinished { step: step.into(), outcome, attempt: 1, took_ms: 1 }
    }

    fn journal(dir: &Path) -> PathBuf {
        let mut writer = Writer::create(dir, "r1").unwrap();
        let kinds = [
            Kind::RunStarted {
                run: "r1".into(),
                cluster: "c".into(),
                verb: "up".into(),
                retry_of: None,
                targets: vec![],
                subject: None,
                spec_digest: "s".into(),
                banner: None,
                steps: ["a", "b", "c", "d"].map(info).to_vec(),
            },
            finished("a", Outcome::Done { detail: None }),
            finished("b", Outcome::Failed(Default::default())),
            finished("c", Outcome::Blocked { by: "b".into() }),
        ];
        for (seq, kind) in kinds.into_iter().enumerate() {
            writer.append(&stamp(seq as u64, 0, kind)).unwrap();
        }
        dir.join("r1.jsonl")
    }

    #[test]
    fn failed_blocked_and_never_seen_steps_are_outstanding() {
        let dir = tempfile::tempdir().unwrap();
        let record = read(&journal(dir.path())).unwrap().unwrap();
        let ids: Vec<_> = record.outstanding().map(|s| s.id.as_str()).collect();
        assert_eq!(ids, ["b", "c", "d"]);
        assert_eq!(record.success, None);
    }

    #[test]
    fn garbage_in_the_middle_is_passed_over_and_noted() {
        let dir = tempfile::tempdir().unwrap();
        let path = journal(dir.path());
        let text = fs::read_to_string(&path).unwrap();
        let lines: Vec<_> = text.lines().collect();
        let with = |at: usize, instead: &[u8]| {
            let mut bytes = Vec::new();
            for (i, line) in lines.iter().enumerate() {
                bytes.extend(if i == at { instead } else { line.as_bytes() });
                bytes.push(b'\n');
            }
            fs::write(&path, bytes).unwrap();
            read(&path)
        };
        // `a` was done, and the line that said so is lost: it is outstanding.
        for garbage in [b"garbage".as_slice(), b"", b"\0\0\0", b"\xff{", b"{}", b"[1]", b"{\"v\":1}"] {
            let record = with(1, garbage).unwrap().unwrap();
            assert_eq!(record.damaged, [2], "{garbage:?}");
            let ids: Vec<_> = record.outstanding().map(|s| s.id.as_str()).collect();
            assert_eq!(ids, ["a", "b", "c", "d"]);
        }
        // Without the plan nothing makes sense.
        let error = with(0, b"garbage").unwrap_err();
        assert!(matches!(error, Error::Damaged { line: 1, .. }), "{error}");
        assert!(error.hint().unwrap().contains("p1 up"));
        // Something before it does no harm.
        fs::write(&path, format!("garbage\n{text}")).unwrap();
        let record = read(&path).unwrap().unwrap();
        assert_eq!((record.damaged.as_slice(), record.outstanding().count()), ([1].as_slice(), 3));
    }

    proptest! {
        /// Wherever a crash cuts the file, it reads back, and no step counts as done that was not
        /// written as done.
        #[test]
        fn a_journal_cut_anywhere_reads_back(cut in 0usize..2000) {
            let dir = tempfile::tempdir().unwrap();
            let path = journal(dir.path());
            let bytes = fs::read(&path).unwrap();
            let cut = cut.min(bytes.len());
            fs::write(&path, &bytes[..cut]).unwrap();
            if let Some(record) = read(&path).unwrap() {
                prop_assert!(record.outstanding().count() >= 3);
            }
        }
    }
}
