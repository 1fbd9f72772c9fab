use std::collections::BTreeSet;
use std::sync::Mutex;

use proptest::prelude::*;

use super::*;
use crate::event::StepInfo;
use crate::os::cancel::Level;
use crate::plan::NodeStep;

type Act = Box<dyn Fn(&Step, u32, &Control) -> Result<Option<String>, StepError> + Sync>;

struct Fake {
    act: Act,
    calls: Mutex<Vec<String>>,
    now: Check,
}

impl Fake {
    fn new(act: impl Fn(&Step, u32, &Control) -> Result<Option<String>, StepError> + Sync + 'static) -> Self {
        Self { act: Box::new(act), calls: Mutex::default(), now: Check::Needed("x".into()) }
    }

    fn calls(&self) -> Vec<String> {
        self.calls.lock().unwrap().clone()
    }
}

impl Work for Fake {
    fn check(&self, _: &Step) -> Check {
        self.now.clone()
    }

    fn apply(&self, step: &Step, control: &Control) -> Result<Option<String>, StepError> {
        let attempt = {
            let mut calls = self.calls.lock().unwrap();
            calls.push(step.info.id.clone());
            calls.iter().filter(|c| **c == step.info.id).count()
        };
        (self.act)(step, u32::try_from(attempt).unwrap(), control)
    }

    fn retries(&self, _: &Step) -> bool {
        true
    }
}

fn plan(edges: &[(&str, &[&str])]) -> Plan {
    let step = |(id, after): &(&str, &[&str])| Step {
        info: StepInfo {
            id: (*id).into(),
            node: None,
            title: "t".into(),
            digest: "d".into(),
            after: after.iter().map(|a| (*a).to_owned()).collect(),
            reason: "r".into(),
            needed: true,
        },
        name: NodeStep::Vm.into(),
        item: None,
        after_end: vec![],
        check: Check::Needed("r".into()),
        always: id.starts_with("clean"),
        outside_jobs: id.starts_with("beside"),
        every_time: false,
    };
    Plan { steps: edges.iter().map(step).collect() }
}

fn go(plan: &Plan, work: &Fake, cancel: &Cancel) -> (Report, Vec<Event>) {
    let dir = tempfile::tempdir().unwrap();
    go_in(dir.path(), plan, work, cancel, &Redactor::default())
}

fn go_in(dir: &Path, plan: &Plan, work: &Fake, cancel: &Cancel, redactor: &Redactor) -> (Report, Vec<Event>) {
    let mut writer = Writer::create(dir, "r").unwrap();
    let retry =
        Retry { attempts: 3, backoff: Duration::from_millis(1), max_backoff: Duration::from_millis(2) };
    let started = Kind::RunStarted {
        run: "r".into(),
        cluster: "c".into(),
        verb: "up".into(),
        retry_of: None,
        targets: vec![],
        subject: Some("about s3cr3t-one".into()),
        spec_digest: "s".into(),
        banner: Some("a stand-in with --token s3cr3t-two".into()),
        steps: vec![],
    };
    let mut events = Vec::new();
    let run = Run { started, jobs: 4, retry: &retry, logs: dir, cancel, redactor };
    let report = super::run(plan, work, run, &mut writer, &mut |e| events.push(e.clone())).unwrap();
    let record = journal::read(&dir.join("r.jsonl")).unwrap().unwrap();
    assert_eq!(record.outcomes, report.outcomes, "the journal tells what the engine tells");
    assert_eq!(record.success, Some(report.success));
    (report, events)
}

/// Whatever a step says, logs, fails or crashes with, whatever it was planned for, and from the moment on at which
/// it is known.
#[test]
fn secrets_are_neither_written_nor_shown() {
    let mut plan = plan(&[("a", &[]), ("b", &[]), ("c", &[]), ("d", &[])]);
    plan.steps[0].info.reason = "the unit says s3cr3t-one".into();
    plan.steps[0].info.title = "use s3cr3t-one".into();
    let redactor = Redactor::new(["s3cr3t-one"]);
    let learns = redactor.clone();
    let work = Fake::new(move |step, attempt, control| {
        learns.learn(["s3cr3t-new"]);
        control.says("says s3cr3t-new");
        control.log("logs s3cr3t-new");
        control.says("says s3cr3t-one");
        control.warn("warns of s3cr3t-one");
        control.log("logs s3cr3t-one, --token s3cr3t-two");
        let error =
            StepError::new("failed by s3cr3t-one", "Use s3cr3t-one.").evidence(vec!["s3cr3t-one".into()]);
        match step.info.id.as_str() {
            "a" => Ok(Some("did s3cr3t-one".into())),
            "b" if attempt < 2 => Err(error.transient()),
            "b" => Err(error),
            "c" => panic!("crashed at s3cr3t-one"),
            _ => Err(StepError::new("https://u:s3cr3t-two@x", "")),
        }
    });
    let dir = tempfile::tempdir().unwrap();
    let (_, events) = go_in(dir.path(), &plan, &work, &Cancel::new(), &redactor);
    let mut text = format!("{events:?}");
    for entry in std::fs::read_dir(dir.path()).unwrap() {
        text += &std::fs::read_to_string(entry.unwrap().path()).unwrap();
    }
    assert!(text.matches("***").count() > 20 && !text.contains("s3cr3t"), "{text}");
}

/// What comes from a node is neither obeyed by a terminal nor kept without end.
#[test]
fn a_node_s_words_are_cleaned_and_only_so_many() {
    let plan = plan(&[("a", &[])]);
    let flood = "x".repeat(100 << 10);
    let work = Fake::new(move |_, _, control| {
        control.warn("w\u{1b}]0;owned\u{7}arned\u{1b}[2J");
        control.log("l\u{1b}]52;c;b3duZWQ=\u{7}ogged");
        for _ in 0..12 {
            control.log(&flood);
        }
        Err(StepError::new(format!("c\u{1b}[1maused {flood}"), "").evidence(vec![flood.clone()]))
    });
    let dir = tempfile::tempdir().unwrap();
    let (report, events) = go_in(dir.path(), &plan, &work, &Cancel::new(), &Redactor::default());
    let Outcome::Failed(failure) = &report.outcomes["a"] else { panic!("{report:?}") };
    assert!(failure.cause.starts_with("caused xxx") && failure.cause.len() < 10_000);
    assert!(failure.evidence[0].len() < 10_000);
    assert!(
        events.iter().any(|e| matches!(&e.kind, Kind::StepWarning { message, .. } if message == "warned"))
    );
    let log = std::fs::read(dir.path().join("a.log")).unwrap();
    let text = String::from_utf8_lossy(&log[..2000]);
    assert!(text.contains("logged") && !log.contains(&0x1b), "{text}");
    assert!((900 << 10..1025 << 10).contains(&log.len()), "{}", log.len());
    assert!(log.ends_with(b"(the rest is not kept: the log is full)\n"));

    // Nobody listens for a while, and what is said meanwhile must not fill any memory.
    let (sender, receiver) = mpsc::channel();
    let silent = Control::silent(dir.path().join("b.log"), Cancel::new(), Redactor::default());
    let control = Control { sender, ..silent };
    (0..10_000).for_each(|_| control.says("x"));
    control.warn("heard");
    let heard: Vec<Message> = receiver.try_iter().collect();
    assert_eq!(heard.len(), UNHEARD + 1);
}

#[test]
fn a_failed_step_blocks_its_dependents_and_nobody_else() {
    let plan = plan(&[("a", &[]), ("b", &["a"]), ("c", &["b"]), ("x", &[]), ("y", &["x"])]);
    let work = Fake::new(|step, _, _| match step.info.id.as_str() {
        "a" => Err(StepError::new("broken", "Mend it.")),
        _ => Ok(None),
    });
    let (report, _) = go(&plan, &work, &Cancel::new());
    assert!(!report.success && !report.interrupted);
    assert!(matches!(&report.outcomes["a"], Outcome::Failed(f) if f.cause == "broken" && f.log.is_some()));
    for id in ["b", "c"] {
        assert_eq!(report.outcomes[id], Outcome::Blocked { by: "a".into() });
    }
    assert!(report.outcomes["y"].passed());
}

/// Each of them ends when all of them run: with too few places that would be never.
#[test]
fn what_waits_for_its_like_takes_no_place() {
    let count = 4 + 3;
    let names: Vec<String> = (0..count).map(|i| format!("beside-{i}")).collect();
    let before: Vec<String> = (0..count).map(|i| format!("a-{i}")).collect();
    let edges: Vec<(&str, [&str; 1])> =
        names.iter().zip(&before).map(|(n, b)| (n.as_str(), [b.as_str()])).collect();
    let mut all: Vec<(&str, &[&str])> = before.iter().map(|b| (b.as_str(), &[][..])).collect();
    all.extend(edges.iter().map(|(n, b)| (*n, &b[..])));
    let there = std::sync::Barrier::new(count);
    let (now, most) = (std::sync::atomic::AtomicUsize::new(0), std::sync::atomic::AtomicUsize::new(0));
    let work = Fake::new(move |step, _, _| {
        use std::sync::atomic::Ordering::SeqCst;
        if step.outside_jobs {
            there.wait();
        } else {
            most.fetch_max(now.fetch_add(1, SeqCst) + 1, SeqCst);
            assert!(most.load(SeqCst) <= 4);
            now.fetch_sub(1, SeqCst);
        }
        Ok(None)
    });
    let (report, _) = go(&plan(&all), &work, &Cancel::new());
    assert!(report.success, "{report:?}");
}

#[test]
fn transient_errors_are_tried_again_and_others_are_not() {
    let plan = plan(&[("soft", &[]), ("hard", &[])]);
    let work = Fake::new(|step, attempt, _| match step.info.id.as_str() {
        "soft" if attempt < 3 => Err(StepError::new("busy", "").kind(FailureKind::Refused).transient()),
        "soft" => Ok(Some("third time".into())),
        _ => Err(StepError::new("no", "").kind(FailureKind::Exit { code: 7 })),
    });
    let (report, events) = go(&plan, &work, &Cancel::new());
    assert!(
        matches!(&report.outcomes["hard"], Outcome::Failed(f) if f.kind == FailureKind::Exit { code: 7 })
    );
    assert_eq!(report.outcomes["soft"], Outcome::Done { detail: Some("third time".into()) });
    assert_eq!(work.calls().iter().filter(|c| *c == "hard").count(), 1);
    let retries = events.iter().filter_map(|e| match &e.kind {
        Kind::StepRetrying { kind, .. } => Some(kind),
        _ => None,
    });
    assert_eq!(retries.collect::<Vec<_>>(), [&FailureKind::Refused; 2]);
    assert_eq!(
        StepError::interrupted().transient().again,
        Again::Cancelled,
        "what was ended is not tried again"
    );
}

#[test]
fn a_wish_to_stop_lets_running_steps_end_and_starts_nothing() {
    let plan = plan(&[("a", &[]), ("b", &["a"])]);
    let cancel = Cancel::new();
    let work = Fake::new(|_, _, control| {
        control.cancel().raise(Level::Stop);
        Ok(None)
    });
    let (report, _) = go(&plan, &work, &cancel);
    assert!(report.interrupted && report.outcomes["a"].passed());
    assert_eq!(work.calls(), ["a"]);
}

#[test]
fn a_step_that_cleans_up_runs_whatever_came_before_it() {
    let plan = plan(&[("a", &[]), ("b", &["a"]), ("c", &["b"]), ("clean", &["b", "c"])]);
    let work = Fake::new(|step, _, _| match step.info.id.as_str() {
        "a" => Err(StepError::new("broken", "")),
        _ => Ok(None),
    });
    let (report, _) = go(&plan, &work, &Cancel::new());
    assert_eq!(work.calls(), ["a", "clean"]);
    assert!(!report.success && report.outcomes["clean"].passed());

    // After a wish to stop too, when what runs has ended.
    let cancel = Cancel::new();
    let work = Fake::new(|step, _, control| {
        if step.info.id == "b" {
            control.cancel().raise(Level::Stop);
        }
        Ok(None)
    });
    let (report, _) = go(&plan, &work, &cancel);
    assert_eq!(work.calls(), ["a", "b", "clean"]);
    assert!(report.interrupted && !report.outcomes.contains_key("c"));
}

#[test]
fn a_panic_ends_its_step_only() {
    let plan = plan(&[("a", &[]), ("b", &[])]);
    let work = Fake::new(|step, _, _| if step.info.id == "a" { panic!("oh") } else { Ok(None) });
    let (report, _) = go(&plan, &work, &Cancel::new());
    assert!(matches!(&report.outcomes["a"], Outcome::Failed(f) if f.cause.ends_with("oh")));
    assert!(report.outcomes["b"].passed());
}

#[test]
fn what_was_unknown_is_looked_at_when_its_turn_comes() {
    let mut plan = plan(&[("a", &[])]);
    plan.steps[0].check = Check::Unknown("off".into());
    let mut work = Fake::new(|_, _, _| Ok(None));
    work.now = Check::Done("was there".into());
    let (report, _) = go(&plan, &work, &Cancel::new());
    assert_eq!(report.outcomes["a"], Outcome::Skipped { reason: "was there".into() });
    assert!(work.calls().is_empty());
}

proptest! {
    /// Over any plan and any set of failing steps: a step ran if and only if everything before it
    /// passed, each at most once, and never before what it waits for.
    #[test]
    fn steps_run_exactly_when_all_before_them_passed(
        edges in proptest::collection::vec(proptest::collection::vec(0usize..12, 0..3), 1..12),
        bad in proptest::collection::btree_set(0usize..12, 0..4),
    ) {
        let names: Vec<String> = (0..edges.len()).map(|i| format!("s{i}")).collect();
        let after: Vec<Vec<&str>> = edges
            .iter()
            .enumerate()
            .map(|(i, e)| e.iter().filter(|j| **j < i).map(|j| names[*j].as_str()).collect())
            .collect();
        let list: Vec<(&str, &[&str])> = names.iter().map(String::as_str).zip(after.iter().map(Vec::as_slice)).collect();
        let bad: BTreeSet<String> = bad.iter().map(|i| format!("s{i}")).collect();
        let failing = bad.clone();
        let work = Fake::new(move |step, _, _| {
            if failing.contains(&step.info.id) { Err(StepError::new("bad", "")) } else { Ok(None) }
        });
        let plan = plan(&list);
        let (report, _) = go(&plan, &work, &Cancel::new());
        let calls = work.calls();
        for step in &plan.steps {
            let id = &step.info.id;
            let may = step.info.after.iter().all(|a| report.outcomes[a].passed());
            prop_assert_eq!(calls.iter().filter(|c| *c == id).count(), usize::from(may));
            prop_assert_eq!(report.outcomes[id].passed(), may && !bad.contains(id));
            if let Some(at) = calls.iter().position(|c| c == id) {
                for a in &step.info.after {
                    prop_assert!(calls.iter().position(|c| c == a).unwrap() < at);
                }
            }
        }
    }
}
