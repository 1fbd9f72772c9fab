//! Crash anywhere: p1 is struck right after each event of its journal, by SIGKILL, SIGTERM, one and two
//! Ctrl-C, and by the loss of its terminal. After every one `retry` converges, no step that was done
//! is begun again, and the journal reads back. SIGKILL strikes after every event, the other four take turns at every second;
//! `P1_CRASH_ALL=1` takes every signal at every event, `P1_CRASH_EVERY=5` only every fifth event.

#[path = "support/run.rs"]
mod run;
#[path = "support/sim.rs"]
mod sim;

use std::collections::VecDeque;
use std::fs;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, OnceLock};
use std::thread;
use std::time::Instant;

use p1::event::Outcome;
use p1::journal;

use run::{Running, began};
use sim::{Sim, spec};

/// Clusters at a time.
const AT_ONCE: usize = 4;

#[derive(Clone, Copy, Debug, PartialEq)]
enum How {
    Kill,
    Term,
    Int,
    Twice,
    Hup,
}

impl How {
    fn word(self) -> String {
        format!("{self:?}").to_uppercase()
    }
}

/// The library that strikes (tests/sim/crash.c).
fn striker() -> &'static Path {
    static BUILT: OnceLock<PathBuf> = OnceLock::new();
    BUILT.get_or_init(|| {
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/sim/crash.c");
        let to = Path::new(env!("CARGO_TARGET_TMPDIR")).join("crash.so");
        let mut command = Command::new("cc");
        command.args(["-shared", "-fPIC", "-O1", "-Wall", "-Werror", "-pthread", "-o"]).arg(&to).arg(source);
        assert!(command.status().expect("cc (package gcc)").success());
        to
    })
}

#[derive(Default)]
struct Figures {
    tried: usize,
    converged: usize,
    repeated: Vec<String>,
    failed: Vec<String>,
}

static FIGURES: Mutex<Figures> =
    Mutex::new(Figures { tried: 0, converged: 0, repeated: Vec::new(), failed: Vec::new() });

fn figures() -> std::sync::MutexGuard<'static, Figures> {
    FIGURES.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}

/// Runs a verb with a strike after its event `k`, and a retry. False if it was over before.
fn point(sim: &Sim, args: &[&str], how: How, k: usize) -> bool {
    let mark = sim.at("struck");
    let _ = fs::remove_file(&mark);
    let before = sim.runs().len();
    let mut command = sim.command(env!("CARGO_BIN_EXE_p1"));
    command.args(args).env("LD_PRELOAD", striker());
    command.env("P1_CRASH", format!("{} {k} {}", how.word(), mark.display()));
    let done = Running::start(command, sim.dir.path()).end();
    if !mark.exists() {
        done.exits(0);
        return false;
    }
    let what = format!("{} {how:?} after event {k}", args.last().unwrap());
    figures().tried += 1;
    eprintln!("{what}");
    let fail = |why: &str| {
        eprintln!("{what}: {why}");
        figures().failed.push(format!("{what}: {why}"));
    };
    let status = done.0.status;
    match how {
        How::Kill if status.signal() != Some(9) => fail(&format!("p1 ended by itself: {status}")),
        How::Kill => {}
        // At its end there is nothing left to interrupt.
        _ if matches!(status.code(), Some(0 | 130)) => {}
        _ => fail(&format!("it {status}\n{}", done.stderr())),
    }
    let gone = !sim.state().exists();
    if gone && args.contains(&"destroy") {
        // Nothing is left that could be gone on with.
        figures().converged += 1;
        return true;
    }
    let runs = sim.runs();
    assert_eq!(runs.len(), before + 1, "{what}");
    let struck = match journal::read(runs.last().unwrap()) {
        Ok(Some(record)) => record,
        other => {
            fail(&format!("the journal does not read back: {other:?}"));
            return true;
        }
    };
    if how == How::Kill && struck.events.len() != k {
        fail(&format!("{} events are in the journal", struck.events.len()));
    }
    let retry = sim.p1(&["--yes", "retry"]);
    if retry.0.status.code() == Some(0) {
        figures().converged += 1;
    } else {
        fail(&format!("retry: {}\n{}{}", retry.0.status, done.stderr(), retry.stderr()));
    }
    let runs = sim.runs();
    if runs.len() == before + 2 {
        let again = journal::read(runs.last().unwrap()).unwrap().expect("a plan");
        let done = |step: &String| matches!(struck.outcomes.get(step), Some(Outcome::Done { .. }));
        let repeated = began(&again).into_iter().filter(done).map(|s| format!("{what}: {s}"));
        figures().repeated.extend(repeated);
    }
    true
}

fn every() -> usize {
    std::env::var("P1_CRASH_EVERY").map_or(1, |n| n.parse().expect("a number"))
}

fn up_and_retry(how: How, k: usize) -> bool {
    let sim = Sim::new(&spec(1, 1, ""));
    let struck = point(&sim, &["up"], how, k);
    sim.p1(&["status"]).exits(0);
    struck
}

/// Verbs on a cluster that is there, each at every event, with what brings it back in between.
fn there_and_back(hows: &[How]) {
    let sim = Sim::new(&spec(1, 1, ""));
    sim.p1(&["up"]).exits(0);
    for &how in hows {
        // Each of the two makes the other's ground.
        let (mut stop, mut start, mut k) = (true, true, 0);
        while stop || start {
            k += every();
            stop = point(&sim, &["stop"], how, k);
            assert_eq!(
                (sim.node("server").state(), sim.node("worker").state()),
                ("shut off".into(), "shut off".into())
            );
            start = point(&sim, &["start"], how, k);
            sim.p1(&["status"]).exits(0);
        }
        for verb in ["killall", "uninstall", "destroy"] {
            for k in (1..).step_by(every()) {
                let struck = point(&sim, &["--yes", verb], how, k);
                if verb == "destroy" {
                    assert!(!sim.state().exists(), "{verb} {how:?} {k}");
                    let left = sim.sh("virsh list --all --uuid; virsh net-list --all --name; virsh vol-list default; ls disks");
                    assert!(!left.contains("sim"), "{verb} {how:?} {k}: {left}");
                }
                if !struck {
                    break;
                }
                sim.p1(&["up"]).exits(0);
            }
            sim.p1(&["up"]).exits(0);
        }
    }
}

#[test]
fn p1_may_be_struck_after_any_event() {
    let begun = Instant::now();
    let all = std::env::var_os("P1_CRASH_ALL").is_some();
    let events = {
        let sim = Sim::new(&spec(1, 1, ""));
        sim.p1(&["up"]).exits(0);
        sim.last().events.len()
    };
    let mut work = VecDeque::new();
    for k in (1..=events).step_by(every()) {
        let others = [How::Term, How::Int, How::Twice, How::Hup];
        let turn = |(i, _): &(usize, &How)| all || k % 2 == 1 && (i + k / 2) % others.len() == 0;
        work.push_back((How::Kill, k));
        work.extend(others.iter().enumerate().filter(turn).map(|(_, how)| (*how, k)));
    }
    let work = Mutex::new(work);
    let next = || work.lock().unwrap_or_else(|p| p.into_inner()).pop_front();
    let there =
        if all { vec![How::Kill, How::Term, How::Int, How::Twice, How::Hup] } else { vec![How::Kill] };
    thread::scope(|scope| {
        let (next, there) = (&next, &there);
        scope.spawn(move || there_and_back(there));
        for _ in 1..AT_ONCE {
            scope.spawn(move || {
                while let Some((how, k)) = next() {
                    up_and_retry(how, k);
                }
            });
        }
    });
    let figures = figures();
    println!(
        "crash anywhere: {} points tried, {} converged, {} steps repeated; up has {events} events; {} s",
        figures.tried,
        figures.converged,
        figures.repeated.len(),
        begun.elapsed().as_secs()
    );
    assert!(figures.failed.is_empty(), "{}", figures.failed.join("\n"));
    assert!(figures.repeated.is_empty(), "{}", figures.repeated.join("\n"));
    assert_eq!(figures.tried, figures.converged);
    assert!(figures.tried > events / every());
}
