//! Crash anywhere: p1 is struck right after each event of its journal, by SIGKILL, SIGTERM, one and two
//! Ctrl-C, and by the loss of its terminal. After every one `retry` converges, no step that was done
//! is begun again, and the journal reads back. Vagrant and p1 itself make the machines in turns. SIGKILL strikes after every event, the other four take turns at every second;
//! `P1_CRASH_ALL=1` takes every signal at every event, `P1_CRASH_EVERY=5` only every fifth event.

use std::fs;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use p1::internals::event::Outcome;
use p1::internals::journal;

use super::bake;
use super::disturb;
use super::run::{Running, began, until};
use super::sim::{Sim, spec};

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

impl Figures {
    /// All have converged, and nothing that was done was begun again.
    fn judge(&self, what: &str, at_least: usize) {
        let Self { tried, converged, repeated, failed } = self;
        println!(
            "crash anywhere: {what}: {tried} points tried, {converged} converged, {} steps repeated",
            repeated.len()
        );
        assert!(failed.is_empty(), "{}", failed.join("\n"));
        assert!(repeated.is_empty(), "{}", repeated.join("\n"));
        assert_eq!(tried, converged);
        assert!(*tried >= at_least, "{tried} of {at_least}");
    }
}

/// Runs a verb with a strike after its event `k`, and a retry. False if it was over before.
fn point(figures: &mut Figures, sim: &Sim, args: &[&str], how: How, k: usize) -> bool {
    point_of(figures, sim, args, how, k, 1, k)
}

/// The same of the last of so many runs that a verb has: the strike comes after its event `k` of all, `own` of that run.
fn point_of(
    figures: &mut Figures,
    sim: &Sim,
    args: &[&str],
    how: How,
    k: usize,
    runs_of: usize,
    own: usize,
) -> bool {
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
    figures.tried += 1;
    eprintln!("{what}");
    let failed = &mut figures.failed;
    let mut fail = |why: &str| {
        eprintln!("{what}: {why}");
        failed.push(format!("{what}: {why}"));
    };
    let status = done.0.status;
    match how {
        How::Kill if status.signal() != Some(9) => fail(&format!("p1 ended by itself: {status}")),
        // Told from its journal, below.
        _ => {}
    }
    let gone = !sim.state().exists();
    if gone && args.contains(&"destroy") {
        if how != How::Kill && status.code() != Some(0) {
            fail(&format!("all is gone, and it {status}"));
        }
        // Nothing is left that could be gone on with.
        figures.converged += 1;
        return true;
    }
    let runs = sim.runs();
    assert_eq!(runs.len(), before + runs_of, "{what}");
    let struck = match journal::read(runs.last().unwrap()) {
        Ok(Some(record)) => record,
        other => {
            fail(&format!("the journal does not read back: {other:?}"));
            return true;
        }
    };
    // An interrupt that comes when all is done changes nothing; every other one ends the run by its own code.
    let expected = if struck.success == Some(true) { 0 } else { 130 };
    if how != How::Kill && status.code() != Some(expected) {
        fail(&format!("it {status}, and its run's success is {:?}", struck.success));
    }
    if how == How::Kill && struck.events.len() != own {
        fail(&format!("{} events are in the journal", struck.events.len()));
    }
    let retry = sim.p1(&["--yes", "retry"]);
    if retry.0.status.code() == Some(0) {
        figures.converged += 1;
    } else {
        fail(&format!("retry: {}\n{}{}", retry.0.status, done.stderr(), retry.stderr()));
    }
    let runs = sim.runs();
    if runs.len() == before + runs_of + 1 {
        let again = journal::read(runs.last().unwrap()).unwrap().expect("a plan");
        let done = |step: &String| matches!(struck.outcomes.get(step), Some(Outcome::Done { .. }));
        let repeated = began(&again).into_iter().filter(done).map(|s| format!("{what}: {s}"));
        figures.repeated.extend(repeated);
    }
    true
}

fn every() -> usize {
    std::env::var("P1_CRASH_EVERY").map_or(1, |n| n.parse().expect("a number"))
}

/// The signals of a run: SIGKILL, or all of them with `P1_CRASH_ALL=1`.
fn signals() -> &'static [How] {
    const ALL: &[How] = &[How::Kill, How::Term, How::Int, How::Twice, How::Hup];
    if std::env::var_os("P1_CRASH_ALL").is_some() { ALL } else { &ALL[..1] }
}

/// A cluster whose machines are made by Vagrant and by p1 itself in turns.
fn cluster(turn: usize) -> String {
    spec(1, 1, if turn.is_multiple_of(2) { "engine: vagrant\n" } else { "engine: direct\n" })
}

/// Up to which event `up` is struck, at every `SHARDS`-th one from `shard` on: in a new lab each.
fn up_in_shards(shard: usize) {
    let all = signals().len() > 1;
    let mut figures = Figures::default();
    let mut k = 1 + shard * every();
    for round in 0.. {
        let others = [How::Term, How::Int, How::Twice, How::Hup];
        // As many in each shard.
        let turn = |(i, _): &(usize, &How)| {
            all || (round + shard).is_multiple_of(2) && (i + shard + round / 2).is_multiple_of(others.len())
        };
        let more = others.iter().enumerate().filter(turn).map(|(_, how)| *how);
        let mut over = false;
        for how in std::iter::once(How::Kill).chain(more) {
            let sim = Sim::new(&cluster(round + shard));
            over = !point(&mut figures, &sim, &["up"], how, k);
            sim.p1(&["status"]).exits(0);
            if over {
                break;
            }
        }
        if over {
            break;
        }
        k += SHARDS * every();
    }
    figures.judge(&format!("up, shard {shard}"), 40 / SHARDS / every());
}

/// How many tests share the events of `up`.
const SHARDS: usize = 4;

#[test]
fn up_may_be_struck_after_any_event_1() {
    up_in_shards(0);
}

#[test]
fn up_may_be_struck_after_any_event_2() {
    up_in_shards(1);
}

#[test]
fn up_may_be_struck_after_any_event_3() {
    up_in_shards(2);
}

#[test]
fn up_may_be_struck_after_any_event_4() {
    up_in_shards(3);
}

#[test]
fn stop_and_start_may_be_struck_after_any_event() {
    let sim = Sim::new(&spec(1, 1, ""));
    sim.p1(&["up"]).exits(0);
    let mut figures = Figures::default();
    for &how in signals() {
        // Each of the two makes the other's ground.
        let (mut stop, mut start, mut k) = (true, true, 0);
        while stop || start {
            k += every();
            sim.spec(&cluster(k));
            stop = point(&mut figures, &sim, &["stop"], how, k);
            assert_eq!(
                (sim.node("server").state(), sim.node("worker").state()),
                ("shut off".into(), "shut off".into())
            );
            start = point(&mut figures, &sim, &["start"], how, k);
            sim.p1(&["status"]).exits(0);
        }
    }
    figures.judge("stop and start", 20 / every());
}

#[test]
fn suspend_and_resume_may_be_struck_after_any_event() {
    let sim = Sim::new(&cluster(0));
    sim.p1(&["up"]).exits(0);
    for node in ["server", "worker"] {
        sim.node(node).sh("echo then >/run/mark");
    }
    let mut figures = Figures::default();
    for &how in signals() {
        let (mut suspend, mut resume, mut k) = (true, true, 0);
        while suspend || resume {
            k += every();
            sim.spec(&cluster(k));
            suspend = point(&mut figures, &sim, &["suspend"], how, k);
            assert_eq!([sim.node("server").state(), sim.node("worker").state()], ["shut off", "shut off"]);
            resume = point(&mut figures, &sim, &["resume"], how, k);
            for node in ["server", "worker"] {
                assert_eq!(sim.node(node).sh("cat /run/mark"), "then\n", "{how:?} {k}");
            }
            sim.p1(&["status"]).exits(0);
        }
    }
    figures.judge("suspend and resume", 10 / every());
}

#[test]
fn keeping_may_be_struck_after_any_event() {
    let sim = Sim::new(&cluster(1));
    sim.p1(&["up"]).exits(0);
    // The first run of two has nothing to do, and its events are passed over.
    sim.p1(&["up"]).exits(0);
    let converged = sim.last().events.len();
    let mut figures = Figures::default();
    for &how in signals() {
        for k in (1..).step_by(every()) {
            let struck = point_of(&mut figures, &sim, &["up", "--keep"], how, k + converged, 2, k);
            assert_eq!([sim.node("server").state(), sim.node("worker").state()], ["running", "running"]);
            let list = sim.p1(&["-o", "json", "kept", "list"]).exits(0).stdout();
            let key = list
                .split("\"kept\":\"")
                .nth(1)
                .and_then(|l| l.split('"').next())
                .expect("it is kept")
                .to_owned();
            assert_eq!(sim.sh("virsh vol-list default").matches(" p1-kept-").count(), 4, "{how:?} {k}");
            sim.p1(&["kept", "remove", &key]).exits(0);
            assert_eq!(sim.sh("virsh vol-list default").matches(" p1-kept-").count(), 0, "{how:?} {k}");
            if !struck {
                break;
            }
        }
    }
    figures.judge("up --keep", 6 / every());
}

#[test]
fn a_kept_cluster_may_be_struck_after_any_event_of_its_return() {
    let sim = Sim::new(&cluster(1));
    sim.p1(&["up", "--keep"]).exits(0);
    let mut figures = Figures::default();
    for &how in signals() {
        for k in (1..).step_by(every()) {
            sim.p1(&["--yes", "destroy"]).exits(0);
            let struck = point(&mut figures, &sim, &["up"], how, k);
            // What ran is booted here: k3s starts again.
            until("all nodes are Ready", || sim.p1(&["status"]).0.status.success());
            if !struck {
                break;
            }
        }
    }
    figures.judge("up of a kept cluster", 8 / every());
    let mut figures = Figures::default();
    for &how in signals() {
        for k in (1..).step_by(every()) {
            let struck = point(&mut figures, &sim, &["--yes", "reset"], how, k);
            // What ran is booted here: k3s starts again.
            until("all nodes are Ready", || sim.p1(&["status"]).0.status.success());
            if !struck {
                break;
            }
        }
    }
    figures.judge("reset", 8 / every());
}

/// Two runs: the moment is written down in the original's folder, and the machines are made in the fork's. A retry of the first
/// makes what was not made, one of the second ends what was begun.
#[test]
fn fork_may_be_struck_after_any_event() {
    let sim = Sim::new(&spec(1, 1, "engine: direct\n"));
    sim.p1(&["up"]).exits(0);
    let (clean, home) = (sim.sh("virsh vol-list default"), sim.at("home/.local/share/p1/forks/f"));
    let folder = home.display().to_string();
    let there = |args: &[&str]| sim.p1(&[&["-C", folder.as_str()], args].concat());
    let mut figures = Figures::default();
    for (turn, k) in (1..).step_by(every()).enumerate() {
        let how = if turn.is_multiple_of(3) { How::Int } else { How::Kill };
        let mark = sim.at("struck");
        let _ = fs::remove_file(&mark);
        let mut command = sim.command(env!("CARGO_BIN_EXE_p1"));
        command.args(["fork", "--name", "f"]).env("LD_PRELOAD", striker());
        command.env("P1_CRASH", format!("{} {k} {}", how.word(), mark.display()));
        let done = Running::start(command, sim.dir.path()).end();
        let struck = mark.exists();
        if struck {
            eprintln!("fork {how:?} after event {k}");
            figures.tried += 1;
            sim.p1(&["--yes", "retry"]).exits(0);
            there(&["--yes", "retry"]).exits(0);
            figures.converged += 1;
        } else {
            done.exits(0);
        }
        there(&["up"]).exits(0).says(&["nothing to do"]);
        there(&["exec", "--", "true"]).exits(0);
        sim.p1(&["status"]).exits(0);
        // Nothing of the moment is left but what the fork's disks lie over.
        let kept = sim.sh("virsh vol-list default");
        assert!(!kept.contains(".mem") && kept.matches(" p1-kept-").count() == 2, "{how:?} {k}: {kept}");
        there(&["--yes", "destroy"]).exits(0);
        assert_eq!((sim.sh("virsh vol-list default"), home.exists()), (clean.clone(), false), "{how:?} {k}");
        if !struck {
            break;
        }
    }
    figures.judge("fork", 12 / every());
}

/// A verb that takes down what `up` brings back, struck at each event.
fn taken_down(verb: &str, at_least: usize) {
    let sim = Sim::new(&spec(1, 1, ""));
    sim.p1(&["up"]).exits(0);
    let mut figures = Figures::default();
    for &how in signals() {
        for k in (1..).step_by(every()) {
            sim.spec(&cluster(k));
            let struck = point(&mut figures, &sim, &["--yes", verb], how, k);
            if verb == "destroy" {
                assert!(!sim.state().exists(), "{verb} {how:?} {k}");
                let left = sim.sh(
                    "virsh list --all --uuid; virsh net-list --all --name; virsh vol-list default; ls disks",
                );
                assert!(!left.contains("sim"), "{verb} {how:?} {k}: {left}");
            }
            if !struck {
                break;
            }
            sim.p1(&["up"]).exits(0);
        }
        sim.p1(&["up"]).exits(0);
    }
    figures.judge(verb, at_least / every());
}

#[test]
fn killall_may_be_struck_after_any_event() {
    taken_down("killall", 5);
}

#[test]
fn uninstall_may_be_struck_after_any_event() {
    taken_down("uninstall", 5);
}

#[test]
fn destroy_may_be_struck_after_any_event() {
    taken_down("destroy", 5);
}

/// A bake has no run to be gone on with: the next one begins again, and takes away what was left.
#[test]
fn baking_may_be_struck_after_any_event() {
    let sim = Sim::new(&spec(1, 1, "engine: direct\n"));
    let mut figures = Figures::default();
    for &how in signals() {
        for k in (1..).step_by(every()) {
            let mark = sim.at("struck");
            let _ = fs::remove_file(&mark);
            let mut command = sim.command(env!("CARGO_BIN_EXE_p1"));
            command.args(["box", "bake"]).env("LD_PRELOAD", striker());
            command.env("P1_CRASH", format!("{} {k} {}", how.word(), mark.display()));
            Running::start(command, sim.dir.path()).end();
            let struck = mark.exists();
            figures.tried += usize::from(struck);
            // Whole or not there.
            for (name, _) in bake::baked(&sim) {
                sim.p1(&["box", "remove", &name]).exits(0);
                figures.repeated.extend((how != How::Kill && k < 20).then(|| format!("{how:?} {k}: a box")));
            }
            sim.p1(&["box", "bake"]).exits(0);
            bake::nothing_is_left(&sim);
            let all = bake::baked(&sim);
            match &all[..] {
                [(_, true)] => figures.converged += usize::from(struck),
                _ => figures.failed.push(format!("{how:?} {k}: {all:?}")),
            }
            sim.p1(&["box", "remove", &all[0].0]).exits(0);
            if !struck {
                break;
            }
        }
    }
    figures.judge("box bake", 20 / every());
}

#[test]
fn up_that_bakes_may_be_struck_after_any_event() {
    let mut figures = Figures::default();
    for &how in signals() {
        let sim = Sim::new(&spec(1, 1, "engine: direct\nbake: auto\n"));
        for k in (1..).step_by(3 * every()) {
            let mark = sim.at("struck");
            let _ = fs::remove_file(&mark);
            let mut command = sim.command(env!("CARGO_BIN_EXE_p1"));
            command.args(["up"]).env("LD_PRELOAD", striker());
            command.env("P1_CRASH", format!("{} {k} {}", how.word(), mark.display()));
            Running::start(command, sim.dir.path()).end();
            let struck = mark.exists();
            figures.tried += usize::from(struck);
            let done = sim.p1(&["up"]);
            if done.0.status.success() && sim.p1(&["status"]).0.status.success() {
                figures.converged += usize::from(struck);
            } else {
                panic!("{how:?} {k}: {}", done.stderr());
            }
            bake::nothing_is_left(&sim);
            sim.p1(&["--yes", "destroy"]).exits(0);
            let all = bake::baked(&sim);
            assert!(matches!(&all[..], [(_, true)]), "{how:?} {k}: {all:?}");
            sim.p1(&["box", "remove", &all[0].0]).exits(0);
            if !struck {
                break;
            }
        }
    }
    figures.judge("up that bakes", 15 / every());
}

#[test]
fn image_load_may_be_struck_after_any_event() {
    let sim = Sim::new(&spec(1, 1, ""));
    sim.p1(&["up"]).exits(0);
    super::images::saved(&sim.at("a.tar"), "a:1", b"layer of a");
    let mut figures = Figures::default();
    for &how in signals() {
        for k in (1..).step_by(every()) {
            let struck = point(&mut figures, &sim, &["image", "load", "a.tar"], how, k);
            for node in ["server", "worker"] {
                let list = "k3s ctr images ls; rm /var/lib/rancher/k3s/agent/containerd/standin-images; \
                            ls /var/lib/p1/next 2>/dev/null";
                let text = sim.node(node).sh(&format!("{list}; true"));
                assert!(text.contains("library/a:1") && !text.contains("p1-load"), "{how:?} {k}: {text}");
            }
            if !struck {
                break;
            }
        }
    }
    figures.judge("image load", 4 / every());
}

#[test]
fn fault_and_its_end_may_be_struck_after_any_event() {
    let sim = Sim::new(&spec(1, 1, ""));
    sim.p1(&["up"]).exits(0);
    let (mut begun, mut ended) = (Figures::default(), Figures::default());
    let healed = || disturb::faults(&sim).is_empty() && sim.node("worker").state() == "running";
    for &how in signals() {
        // Its end comes by itself, whatever became of its p1.
        for k in (1..).step_by(every()) {
            let struck = point(&mut begun, &sim, &["fault", "pause", "--for", "1s", "worker"], how, k);
            until("it heals", healed);
            if !struck {
                break;
            }
        }
        // And by the next p1, where what would bring it was killed too.
        for k in (1..).step_by(every()) {
            sim.p1(&["fault", "pause", "--for", "1h", "worker"]).exits(0);
            disturb::kill_healer(&sim);
            let struck = point(&mut ended, &sim, &["fault", "heal"], how, k);
            assert!(healed(), "fault heal {how:?} {k}");
            if !struck {
                break;
            }
        }
        sim.p1(&["up"]).exits(0);
        sim.p1(&["status"]).exits(0);
    }
    begun.judge("fault", 3 / every());
    ended.judge("fault heal", 3 / every());
}
