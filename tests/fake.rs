//! p1 with a scripted vagrant and virsh: what real machines cannot show cheaply. It takes root.

#[path = "support/fake.rs"]
mod fake;
#[path = "support/run.rs"]
mod run;

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use fake::{Fake, executable};
use nix::sys::signal::{Signal, kill};
use p1::internals::event::Outcome;
use p1::internals::explain::Explain;
use p1::internals::machines::vagrant::{Progress, Up, Vagrant};
use p1::internals::os::Cancel;
use run::{Done, began, gone, until};

// ---------------------------------------------------------------------------------------------
// Vagrant's words

/// What p1 makes of streams that a real Vagrant wrote.
#[test]
fn recorded_streams_are_understood() {
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/vagrant");
    let mut names: Vec<PathBuf> = fs::read_dir(&fixtures).unwrap().map(|e| e.unwrap().path()).collect();
    names.retain(|p| p.extension().is_some_and(|e| e == "csv"));
    names.sort();
    assert!(names.len() >= 6, "{names:?}");
    let mut text = String::new();
    for path in names {
        let name = path.file_stem().unwrap().to_str().unwrap();
        let failed = fs::read_to_string(&path).unwrap().contains(",error-exit,") || name.contains("error");
        text += &format!("== {name}, exit code {}\n", i32::from(failed));
        text += &replay(&path, i32::from(failed), &["server", "worker"]);
    }
    insta::assert_snapshot!(text);
}

fn replay(stream: &Path, code: i32, nodes: &[&str]) -> String {
    let dir = tempfile::tempdir().unwrap();
    let program = dir.path().join("vagrant");
    let stderr = stream.with_extension("stderr");
    let stderr = if stderr.exists() { stderr } else { "/dev/null".into() };
    let script =
        format!("#!/bin/sh\ncat '{}'\ncat '{}' >&2\nexit {code}\n", stream.display(), stderr.display());
    executable(&program, &script);
    let vagrant = Vagrant {
        program,
        home: dir.path().into(),
        dir: dir.path().into(),
        provider: "libvirt",
        no_proxy: String::new(),
    };
    let nodes: Vec<String> = nodes.iter().map(|n| (*n).to_owned()).collect();
    let up = Up { vagrant: &vagrant, nodes: &nodes, bound: Duration::from_secs(30) };
    let mut heard: BTreeMap<String, Vec<String>> = BTreeMap::new();
    let mut hear = |node: &str, progress: Progress| {
        let word = match progress {
            Progress::Says(text) => text,
            other => format!("[{other:?}]"),
        };
        heard.entry(node.to_owned()).or_default().push(word);
    };
    let results = up.run(&Cancel::new(), &mut hear, &mut |_| {});
    let mut text = String::new();
    for (node, result) in results {
        for line in heard.remove(&node).unwrap_or_default() {
            text += &format!("{node}: {line}\n");
        }
        match result {
            Ok(()) => text += &format!("{node} is up\n"),
            Err(e) => text += &format!("{node} failed: {e}\n  transient: {}\n", e.transient()),
        }
    }
    assert!(heard.is_empty(), "about nobody: {heard:?}");
    text
}

// ---------------------------------------------------------------------------------------------
// Failures of vagrant

/// The recorded stream of an `up` in which one of two machines fails.
#[test]
fn one_machine_fails_and_the_other_goes_on() {
    let stream =
        Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/vagrant/up-one-fails-domain-exists.csv");
    let fake = Fake::new(&format!("made server\ncat '{}'\nexit 1\n", stream.display()));
    let done = fake.run(&["up"]).exits(1);
    done.says(&[
        "worker",
        "Name `p1-demo-worker` of domain about to create is already taken",
        "vagrant.log",
        "p1 retry",
    ]);
    let record = fake.last();
    assert!(record.passed("server/vm"), "{:?}", record.outcomes);
    let Outcome::Failed(failure) = &record.outcomes["worker/vm"] else { panic!("{:?}", record.outcomes) };
    assert!(failure.cause.starts_with("vagrant: Name `p1-demo-worker`"), "{}", failure.cause);
    // As far as it can: nothing answers at its address here.
    assert!(began(&record).contains(&"server/ssh".to_owned()));
    assert!(matches!(record.outcomes["server/ssh"], Outcome::Failed(_)));
    assert!(matches!(&record.outcomes["worker/ssh"], Outcome::Blocked { by } if by == "worker/vm"));
    assert!(record.passed("cluster/artifacts"));

    // The retry asks vagrant for the one that is missing, and for nothing else.
    fake.up("begin worker; made worker; done_with worker");
    fake.run(&["retry"]).exits(1);
    let ups: Vec<String> = fake.calls().lines().filter(|l| l.starts_with("up ")).map(str::to_owned).collect();
    assert_eq!(ups.len(), 2);
    assert!(ups[0].ends_with(" server worker") && ups[1].ends_with("--machine-readable worker"), "{ups:?}");
    assert_eq!(fake.calls().lines().filter(|l| l.starts_with("box ")).count(), 1);
}

#[test]
fn a_vagrant_that_hangs_is_ended_with_its_group() {
    let fake = Fake::new("begin server; begin worker; hang");
    // The bound is one for making and one for booting, and a minute for Ruby.
    fake.spec("timeouts: {boot: 500ms, ssh: 500ms}\nretry: {attempts: 1}\n");
    let running = fake.start(&["up"]);
    let pids = fake.hanging();
    running.end().exits(1).says(&["`vagrant` did not end within", "server", "worker", "p1 retry"]);
    for pid in pids {
        until("the group is gone", || gone(pid));
    }
    assert!(matches!(fake.last().outcomes["server/vm"], Outcome::Failed(_)));
}

#[test]
fn without_vagrant_the_host_is_not_ready() {
    let mut fake = Fake::new("");
    // Else p1 would make the machines itself.
    fake.spec("engine: vagrant\n");
    fs::remove_file(fake.at("bin/vagrant")).unwrap();
    // Only what p1 runs itself, from wherever it is here.
    for name in [
        "ssh-keygen",
        "ssh",
        "ip",
        "sh",
        "cat",
        "mount",
        "mkdir",
        "unshare",
        "dirname",
        "touch",
        "grep",
        "cut",
    ] {
        let Ok(program) = which::which(name) else { continue };
        let _ = symlink(program, fake.at("bin").join(name));
    }
    fake.path = fake.at("bin").display().to_string();
    let done = fake.run(&["up"]).exits(3).says(&["this host is not ready", "p1 doctor --fix"]);
    let line = done
        .stdout()
        .lines()
        .find(|l| l.contains("Vagrant ") || l.ends_with("not installed"))
        .map(str::to_owned);
    assert!(
        line.is_some_and(|l| l.starts_with("problem") && l.contains("not installed")),
        "{}",
        done.stdout()
    );
    assert!(!fake.at(".p1").exists(), "nothing was begun");
}

/// What can be known from the file and this host is said with its place, before anything is begun.
#[test]
fn what_this_host_does_not_have_is_told_with_its_place() {
    let fake = Fake::new("");
    fake.box_file("theirs.box", "virtualbox");
    const K3S: &str = "artifacts: {binary: {path: k3s}, installer: {path: install.sh}}";
    fake.run(&["box", "add", "--name", "theirs", "theirs.box"]).exits(0);
    let good = fs::read_to_string(fake.at("cluster.yaml")).unwrap();
    let cases = [
        (
            "box: {path: fake.box}",
            "box: ubuntu-24",
            "there is no box definition \"ubuntu-24\"",
            "cluster.yaml:3:6",
        ),
        ("box: {path: fake.box}", "box: theirs", "this box is for virtualbox", "cluster.yaml:3:6"),
        (
            "libvirt\nbox: {path: fake.box}",
            "virtualbox\nbox: debian-12",
            "the box `debian-12` can be built for libvirt only",
            "cluster.yaml:3:6",
        ),
        (
            "libvirt\nbox: {path: fake.box}",
            "virtualbox",
            "`debian-12` can be built for libvirt only",
            "cluster.yaml:2:11",
        ),
        (K3S, "artifacts: {dir: gone}", "gone is not there", "cluster.yaml:10:20"),
        (
            "version: v1.34.1+k3s1",
            "version: v1.33.4+k3s1",
            "is k3s v1.34.1+k3s1, not v1.33.4+k3s1",
            "cluster.yaml:10:23",
        ),
    ];
    for (from, to, message, place) in cases {
        fs::write(fake.at("cluster.yaml"), good.replace(from, to)).unwrap();
        // Without VirtualBox there is more to say than that.
        let verbs: &[&str] =
            if to.starts_with("virtualbox") { &["validate"] } else { &["validate", "plan", "up"] };
        for verb in verbs {
            fake.run(&[verb]).exits(2).says(&[message, place]);
        }
        assert!(!fake.at(".p1").exists(), "{to}");
    }
    assert_eq!(fake.calls(), "", "Vagrant was asked for nothing");
}

#[test]
fn a_libvirt_that_does_not_answer_is_told_before_anything_is_begun() {
    let fake = Fake::new("");
    fs::remove_file(fake.at("bin/virsh")).unwrap();
    executable(
        &fake.at("bin/virsh"),
        "#!/bin/sh\necho \"error: Failed to connect socket to '/var/run/libvirt/libvirt-sock'\" >&2\nexit 1\n",
    );
    fake.run(&["up"]).exits(3).says(&["Failed to connect socket", "libvirt does not answer"]);
    assert_eq!(fake.calls(), "");
    assert!(!fake.at(".p1").exists());
}

/// Whatever is asked, and whether libvirt is stopped, closed to this user or not installed: the host is not
/// ready, which is another thing than a step that failed or a cluster that differs.
#[test]
fn a_host_without_libvirt_is_told_from_everything_else_by_the_exit_code() {
    let fake = two_machines();
    let runs = fake.runs().len();
    let verbs: &[&[&str]] = &[
        &["plan"],
        &["status"],
        &["up"],
        &["retry"],
        &["stop"],
        &["start"],
        &["verify"],
        &["--yes", "replace", "worker"],
        &["--yes", "killall"],
        &["--yes", "uninstall"],
        &["--yes", "destroy"],
        &["--yes", "destroy", "worker"],
        &["backup"],
        &["snapshot", "list"],
        &["snapshot", "save", "a"],
        &["--yes", "snapshot", "restore", "a"],
        &["--yes", "snapshot", "delete", "a"],
        &["doctor"],
    ];
    let says = |text: &str| {
        format!("#!/bin/sh\necho \"error: failed to connect to the hypervisor\nerror: {text}\" >&2\nexit 1\n")
    };
    for (text, word) in [
        (
            "Failed to connect socket to '/var/run/libvirt/libvirt-sock': Connection refused",
            "does not answer",
        ),
        ("Failed to connect socket to '/var/run/libvirt/libvirt-sock': Permission denied", "let"),
        ("", "not installed"),
    ] {
        let _ = fs::remove_file(fake.at("bin/virsh"));
        if text.is_empty() {
            // On a host that has one of its own, that one would be found.
            if which::which("virsh").is_ok() {
                break;
            }
        } else {
            executable(&fake.at("bin/virsh"), &says(text));
        }
        for verb in verbs {
            let done = fake.run(verb).exits(3);
            let said = done.stderr() + &done.stdout();
            assert!(said.contains(word) && !said.contains("p1 up` makes"), "{verb:?}\n{said}");
        }
        // What needs no provider goes on.
        fake.run(&["logs"]).exits(0);
    }
    assert_eq!(fake.runs().len(), runs, "nothing was begun");
}

/// What was asked for did not reach its reader.
#[test]
fn output_that_cannot_be_written_is_no_success() {
    let fake = two_machines();
    let full = |line: &str| {
        let mut command = fake.command(&[]);
        let p1: Vec<_> = command.get_args().map(std::ffi::OsStr::to_owned).collect();
        let script = format!("exec unshare \"$@\" {line}");
        command = Command::new("/bin/sh");
        command.args(["-c", &script, "sh"]).args(p1).current_dir(fake.dir.path());
        command.env_clear().env("PATH", &fake.path).env("HOME", fake.at("home")).env("LC_ALL", "C.UTF-8");
        run::Running::start(command, fake.dir.path()).end()
    };
    // Whatever else its exit code would say.
    for verb in ["status", "-o json status", "plan", "-o json plan", "snapshot list -o json", "logs"] {
        full(&format!("{verb} >/dev/full")).exits(1).says(&["standard output could not be written"]);
    }
    // A reader that has all it wants is none of our business.
    full("plan -v | head -1").exits(0);
    full("plan >/dev/null").exits(10);
}

// ---------------------------------------------------------------------------------------------
// Interruption

#[test]
fn one_interrupt_lets_the_running_step_end() {
    let fake = Fake::new(
        "begin server; begin worker; : >\"$here/runs\"; while [ ! -e \"$here/go\" ]; do sleep 0.05; done\n\
         made server; done_with server; made worker; done_with worker",
    );
    let running = fake.start(&["up"]);
    until("vagrant runs", || fake.at("bin/runs").exists());
    running.signal(Signal::SIGINT);
    running.until_said("press Ctrl-C again");
    fs::write(fake.at("bin/go"), "").unwrap();
    running.end().exits(130);
    let record = fake.last();
    assert!(record.passed("server/vm") && record.passed("worker/vm"), "{:?}", record.outcomes);
    assert!(!began(&record).iter().any(|s| s.ends_with("/ssh")));
    assert_eq!(record.success, Some(false));

    let outstanding: Vec<_> = record.outstanding().map(|s| s.id.clone()).collect();
    assert_eq!(outstanding.first().map(String::as_str), Some("server/ssh"), "{outstanding:?}");
    fake.run(&["retry"]).exits(1);
    assert_eq!(fake.calls().lines().filter(|l| l.starts_with("up ")).count(), 1, "the machines run");
    let again: Vec<_> = began(&fake.last()).into_iter().filter(|s| record.passed(s)).collect();
    assert_eq!(again, [""; 0]);
}

#[test]
fn two_interrupts_end_vagrant_and_keep_the_state() {
    for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP] {
        let fake = Fake::new("begin server; made server; done_with server; begin worker; hang");
        fake.spec("timeouts: {ssh: 60s}\nretry: {attempts: 1}\n");
        let running = fake.start(&["up"]);
        let pids = fake.hanging();
        running.signal(signal);
        running.until_said("press Ctrl-C again");
        running.signal(signal);
        let done = running.end().exits(130);
        for pid in pids {
            until("the group is gone", || gone(pid));
        }
        let record = fake.last();
        assert_eq!(record.success, Some(false));
        assert!(record.passed("server/vm"));
        assert!(matches!(record.outcomes["worker/vm"], Outcome::Interrupted), "{}", done.stderr());
        let outstanding: Vec<_> = record.outstanding().map(|s| s.id.as_str()).collect();
        assert!(outstanding.contains(&"worker/vm") && !outstanding.contains(&"server/vm"), "{outstanding:?}");

        fake.spec("timeouts: {boot: 3s, ssh: 500ms}\nretry: {attempts: 1}\n");
        fake.up("begin worker; made worker; done_with worker");
        fake.run(&["retry"]).exits(1);
        let ups = fake.calls();
        assert!(ups.lines().last().unwrap().ends_with("--machine-readable worker"), "{ups}");
    }
}

#[test]
fn a_killed_p1_leaves_a_journal_that_reads_back() {
    let fake = Fake::new("begin server; made server; done_with server; begin worker; hang");
    fake.spec("timeouts: {ssh: 60s}\nretry: {attempts: 1}\n");
    let running = fake.start(&["up"]);
    let pids = fake.hanging();
    until("the server's machine is noted", || fake.last().passed("server/vm"));
    running.signal(Signal::SIGKILL);
    let status = running.end().0.status;
    assert!(!status.success());
    let record = fake.last();
    assert_eq!(record.success, None);
    assert!(record.passed("server/vm") && !record.passed("worker/vm"));
    // Nobody is left to end them but us: they are ours.
    for pid in pids {
        let _ = kill(pid, Signal::SIGKILL);
    }
    fake.spec("timeouts: {boot: 3s, ssh: 500ms}\nretry: {attempts: 1}\n");
    fake.up("begin worker; made worker; done_with worker");
    fake.run(&["retry"]).exits(1);
    assert!(!began(&fake.last()).contains(&"server/vm".to_owned()));
    assert!(fake.last().passed("worker/vm"));
}

/// Data in a datastore of the user's outlives the cluster, and its token has to.
#[test]
fn the_token_of_a_datastore_of_ones_own_outlives_the_cluster() {
    let fake = two_machines();
    let outside = "  server_config: {datastore-endpoint: \"mysql://u:p@tcp(db:3306)/k3s\"}\n\
                   timeouts: {ssh: 500ms}\nretry: {attempts: 1}\n";
    fake.spec(outside);
    let state = fake.at(".p1/fake");
    let token = fs::read_to_string(state.join("token")).unwrap();
    for args in [&["backup", "b"][..], &["restore", "b"]] {
        fake.run(args).exits(2).says(&["not on its servers", "mysqldump", ".p1/fake/token"]);
    }
    fake.run(&["--yes", "destroy"]).exits(0).says(&["stays as it is", ".p1/fake.token"]);
    assert!(!state.exists());
    fake.run(&["up"]).says(&[".p1/fake.token"]);
    assert_eq!(fs::read_to_string(state.join("token")).unwrap(), token);
}

// ---------------------------------------------------------------------------------------------
// Snapshots. Nothing answers over SSH here, so the steps after the machines' own fail.

fn two_machines() -> Fake {
    // Vagrant may be asked twice, when it is through before the second machine's step comes to it.
    let made =
        "[ -s \"$here/domains\" ] || { made server; made worker; }; done_with server; done_with worker";
    let fake = Fake::new(made);
    fake.run(&["up"]).exits(1);
    assert_eq!(states(&fake), ["running", "running"]);
    fake
}

fn states(fake: &Fake) -> Vec<String> {
    let text = fs::read_to_string(fake.at("bin/domains")).unwrap();
    text.lines().map(|l| l.split(' ').nth(2).unwrap().to_owned()).collect()
}

/// What virsh was told of machines' memory since the last time.
fn moments(fake: &Fake) -> Vec<String> {
    let file = fake.at("bin/moments");
    let text = fs::read_to_string(&file).unwrap_or_default();
    let _ = fs::remove_file(file);
    let short = |l: &str| l.split(" --").next().unwrap().replace("p1-fake-", "");
    text.lines().map(short).filter(|l| !l.contains("-list") && !l.contains("-dumpxml")).collect()
}

fn listed(fake: &Fake) -> Vec<serde_json::Value> {
    let out = fake.run(&["-o", "json", "snapshot", "list"]).exits(0).stdout();
    let lines = out.lines().map(|l| serde_json::from_str::<serde_json::Value>(l).unwrap());
    lines.filter(|l| l["snapshot"].is_string()).collect()
}

#[test]
fn a_snapshot_is_of_one_moment_and_so_is_the_way_back() {
    let fake = two_machines();
    fake.run(&["snapshot", "list"]).exits(0).says(&["there is no snapshot", "p1 snapshot save first"]);
    fake.run(&["snapshot", "save", "a b"]).exits(2).says(&["`a b` is no name"]);
    fake.run(&["snapshot", "restore", "a"]).exits(2).says(&["there is no snapshot `a`"]);
    assert_eq!(moments(&fake), [""; 0]);

    fake.run(&["snapshot", "save", "a"]).exits(1);
    let record = fake.last();
    assert!(record.passed("server/take") && record.passed("worker/take"), "{:?}", record.outcomes);
    assert_eq!((record.verb.as_str(), record.subject.as_deref()), ("snapshot save", Some("a")));
    let did = moments(&fake);
    let at =
        |what: &str| did.iter().position(|l| l == what).unwrap_or_else(|| panic!("no {what} in {did:?}"));
    assert_eq!(at("suspend server; suspend worker"), 0);
    for node in ["server", "worker"] {
        assert!(at(&format!("snapshot-create-as {node} a")) < at(&format!("resume {node}")), "{did:?}");
    }
    assert_eq!(states(&fake), ["running", "running"]);

    let list = listed(&fake);
    assert_eq!((list.len(), &list[0]["snapshot"], &list[0]["usable"]), (1, &"a".into(), &true.into()));
    assert_eq!(list[0]["nodes"], serde_json::json!(["server", "worker"]));
    let table = fake.run(&["snapshot", "list"]).exits(0).stdout();
    assert!(table.contains("server, worker") && table.contains("whole"), "{table}");
    fake.run(&["snapshot", "save", "a"]).exits(2).says(&["there is a snapshot `a` already"]);

    moments(&fake);
    fake.run(&["snapshot", "restore", "a"]).exits(2).says(&["there is no terminal to confirm on"]);
    assert_eq!(moments(&fake), [""; 0]);
    fake.run(&["--yes", "snapshot", "restore", "a"]).exits(1);
    let record = fake.last();
    assert!(record.passed("server/restore") && record.passed("cluster/resume"), "{:?}", record.outcomes);
    let did = moments(&fake);
    assert_eq!(did.len(), 5, "{did:?}");
    assert_eq!(did[4], "resume server; resume worker");
    // Suspended memory would be put onto another disk at the next start.
    let at = |what: String| did.iter().position(|l| l.starts_with(&what)).expect("it was done");
    for node in ["server", "worker"] {
        assert!(
            at(format!("managedsave-remove {node}")) < at(format!("snapshot-revert {node} a")),
            "{did:?}"
        );
    }
    assert_eq!(states(&fake), ["running", "running"]);

    fake.run(&["snapshot", "delete", "a"]).exits(2);
    fake.run(&["--yes", "snapshot", "delete", "a"]).exits(0).says(&["one snapshot less"]);
    assert!(listed(&fake).is_empty());
}

/// Until all machines are of one moment no other verb lets them meet.
#[test]
fn a_snapshot_that_was_put_back_on_some_machines_only_is_not_gone_over() {
    let fake = two_machines();
    fake.run(&["snapshot", "save", "a"]).exits(1);
    fs::write(fake.at("bin/virsh-fails"), "snapshot-revert*p1-fake-worker* no such state\n").unwrap();
    fake.run(&["--yes", "snapshot", "restore", "a"]).exits(1).says(&["no such state"]);
    for args in [&["up"][..], &["start"], &["plan"], &["status"], &["snapshot", "save", "b"]] {
        fake.run(args).exits(1).says(&["was not finished", "p1 snapshot restore a"]);
    }
    fs::remove_file(fake.at("bin/virsh-fails")).unwrap();
    fake.run(&["--yes", "snapshot", "restore", "a"]).exits(1);
    assert!(!fake.run(&["plan"]).stderr().contains("was not finished"));
}

#[test]
fn a_snapshot_that_fails_on_one_machine_is_not_whole_and_a_retry_takes_all_of_it_anew() {
    let fake = two_machines();
    fs::create_dir(fake.at("bin/fail")).unwrap();
    fs::write(fake.at("bin/fail/p1-fake-worker"), "").unwrap();
    fake.run(&["snapshot", "save", "a"]).exits(1).says(&["no room for p1-fake-worker", "p1 retry"]);
    assert_eq!(states(&fake), ["running", "running"], "none stays paused");
    let list = listed(&fake);
    assert_eq!((&list[0]["usable"], &list[0]["lacks"]), (&false.into(), &serde_json::json!(["worker"])));
    let why = ["the machine of worker does not have it", "p1 snapshot delete a"];
    fake.run(&["--yes", "snapshot", "restore", "a"]).exits(1).says(&why);
    let first = fs::read_to_string(fake.at("bin/snapshots/p1-fake-server/a")).unwrap();

    fs::remove_file(fake.at("bin/fail/p1-fake-worker")).unwrap();
    moments(&fake);
    fake.run(&["retry"]).exits(1);
    let did = moments(&fake);
    assert_eq!(did[..2], ["snapshot-delete server a", "suspend server; suspend worker"], "{did:?}");
    let read = |node: &str| fs::read_to_string(fake.at(&format!("bin/snapshots/p1-fake-{node}/a"))).unwrap();
    assert_eq!(read("server"), read("worker"), "one moment");
    assert_ne!(read("server"), first);
    assert_eq!(listed(&fake)[0]["usable"], true);
}

#[test]
fn machines_go_on_after_interrupts_and_after_a_kill() {
    let fake = two_machines();
    fs::write(fake.at("bin/hang"), "").unwrap();
    let running = fake.start(&["snapshot", "save", "a"]);
    until("snapshots are being taken", || fake.at("bin/snapshots/p1-fake-worker").exists());
    running.signal(Signal::SIGINT);
    running.until_said("press Ctrl-C again");
    running.signal(Signal::SIGINT);
    running.end().exits(130);
    assert_eq!(states(&fake), ["running", "running"]);

    fs::remove_dir_all(fake.at("bin/snapshots")).unwrap();
    let running = fake.start(&["snapshot", "save", "b"]);
    until("snapshots are being taken", || fake.at("bin/snapshots/p1-fake-worker").exists());
    running.signal(Signal::SIGKILL);
    running.end();
    assert_eq!(states(&fake), ["paused", "paused"], "nobody was left to let them go on");
    fs::remove_file(fake.at("bin/hang")).unwrap();
    fake.run(&["status"]).exits(1).says(&["p1 snapshot save", "p1 retry"]);
    let before = fake.calls();
    fake.run(&["up"]).exits(1);
    assert_eq!(states(&fake), ["running", "running"]);
    assert!(fake.last().passed("server/vm"));
    assert_eq!(fake.calls(), before, "that takes no vagrant");
}

// ---------------------------------------------------------------------------------------------
// Locks

#[test]
fn a_second_p1_learns_who_works_here() {
    let fake = Fake::new("begin server; begin worker; hang");
    let running = fake.start(&["up"]);
    fake.hanging();
    let pid = format!("pid {}", running.child.id());
    let since = format!("since {}", &jiff::Timestamp::now().to_string()[..10]);
    for verb in ["up", "retry", "stop"] {
        let next = format!("next: p1 --wait 5m {verb}");
        fake.run(&[verb]).exits(4).says(&["locked by another p1", &pid, "`up`", &since, &next]);
    }
    fake.run(&["--yes", "destroy"]).exits(4).says(&[&pid]);
    // Looking is free.
    fake.run(&["status"]).exits(1).says(&[&format!("p1 up works on it ({pid}")]);
    fake.run(&["plan"]).exits(10);
    assert_eq!(fake.runs().len(), 1, "the others left no run");

    running.signal(Signal::SIGINT);
    running.until_said("press Ctrl-C again");
    running.signal(Signal::SIGINT);
    running.end().exits(130);
    fake.run(&["--yes", "destroy"]).exits(0);
    assert!(!fake.at(".p1").exists());
}

// ---------------------------------------------------------------------------------------------
// Output for people and programs

#[test]
fn a_plan_touches_nothing_and_json_is_one_object_a_line() {
    let fake = Fake::new("");
    let plan = fake.run(&["plan"]).exits(10);
    insta::assert_snapshot!(format!("{}{}", plan.stdout(), plan.stderr()));
    let json = fake.run(&["-o", "json", "plan"]).exits(10);
    let lines: Vec<serde_json::Value> =
        json.stdout().lines().map(|l| serde_json::from_str(l).unwrap()).collect();
    let (end, steps) = lines.split_last().unwrap();
    let (warnings, steps) = steps.split_at(steps.iter().take_while(|l| l["warning"].is_object()).count());
    assert!(warnings.iter().all(|w| w["warning"]["message"].is_string()));
    let (changes, steps): (Vec<_>, Vec<_>) = steps.iter().partition(|l| l["step"].is_null());
    assert!(steps.len() > 15 && steps.iter().all(|l| l["v"] == 1 && l["step"]["id"].is_string()));
    // What becomes of the cluster and of each node, and the sum.
    assert_eq!((changes.len(), &changes[3]["summary"]["add"]), (4, &2.into()), "{changes:?}");
    assert!(changes[..3].iter().all(|l| l["change"]["fate"] == "add"), "{changes:?}");
    assert_eq!((&end["event"], &end["verb"], &end["code"]), (&"end".into(), &"plan".into(), &10.into()));
    assert!(!fake.at(".p1").exists());
    assert_eq!(fake.calls(), "");

    fake.up("echo 'warning: not for machines'; exit 7");
    let run = fake.run(&["-o", "json", "up"]).exits(1);
    let events: Vec<serde_json::Value> =
        run.stdout().lines().map(|l| serde_json::from_str(l).unwrap()).collect();
    assert_eq!(events.iter().find(|e| e["event"].is_string()).unwrap()["event"], "run_started");
    // The run's own end, and after it the verb's, with a cause. No number comes twice, progress included.
    let end = &events[events.len() - 2..];
    assert_eq!((&end[0]["event"], &end[1]["event"]), (&"run_finished".into(), &"end".into()));
    assert!(end[1]["code"] == 1 && end[1]["cause"].as_str().unwrap().contains("exited with 7"), "{}", end[1]);
    assert!(end[1]["kind"] == "exit" && end[1]["exit_code"] == 7, "{}", end[1]);
    let numbers: Vec<u64> = events.iter().filter_map(|e| e["seq"].as_u64()).collect();
    assert!(numbers.windows(2).all(|w| w[0] < w[1]), "{numbers:?}");
    assert!(events.iter().any(|e| e["event"] == "step_progress"));
    let failed = events.iter().find(|e| e["event"] == "step_finished" && e["step"] == "server/vm").unwrap();
    let outcome = &failed["outcome"];
    assert!(outcome.to_string().contains("exited with 7"), "{failed}");
    assert!(outcome["kind"] == "exit" && outcome["exit_code"] == 7, "{failed}");
}

/// Which steps there are, in which order, what each comes after and why it is due: the whole of it, so that nothing of
/// it changes unseen. Only digests of inputs that have paths of this test in them are left out.
#[test]
fn the_plan_of_a_new_cluster_is_the_same_down_to_its_last_field() {
    for (name, servers) in [("plan-1-2", 1), ("plan-3-2", 3)] {
        let fake = Fake::new("");
        let nodes = (1..=servers).map(|n| ("server", n, 1024)).chain((1..=2).map(|n| ("worker", n, 512)));
        let node = |(role, n, memory): (&str, u32, u32)| {
            let ip = 109 + n + if role == "worker" { 10 } else { 0 };
            format!(
                "  - {{name: {role}-{n}, role: {role}, ip: 192.168.56.{ip}, cpus: 1, memory: {memory}}}\n"
            )
        };
        let nodes: String = nodes.map(node).collect();
        let text = format!(
            "name: fake\nprovider: libvirt\nbox: {{path: fake.box}}\nnetwork: {{cidr: 192.168.56.0/24}}\nnodes:\n{nodes}\
             provision:\n  - {{name: motd, type: shell, inline: 'true', when: before-k3s}}\n\
             k3s:\n  version: v1.34.1+k3s1\n  artifacts: {{binary: {{path: k3s}}, installer: {{path: install.sh}}}}\n"
        );
        fs::write(fake.at("cluster.yaml"), text).unwrap();
        let json = fake.run(&["-o", "json", "plan"]).exits(10).stdout();
        let mut lines = String::new();
        for line in json.lines() {
            let mut value: serde_json::Value = serde_json::from_str(line).unwrap();
            let step = value["step"]["id"].as_str().and_then(|id| id.split('/').nth(1)).unwrap_or_default();
            if ["box", "network", "vm"].contains(&step)
                || ["artifacts", "save", "push", "stage", "install", "launch", "start", "ready"]
                    .contains(&step)
            {
                value["step"]["digest"] = "of paths".into();
            }
            lines += &format!("{value}\n");
        }
        insta::assert_snapshot!(name, lines.replace(&fake.dir.path().display().to_string(), "HERE"));
    }
}

/// What asks the cluster from this host must not ask the host's proxy for it.
#[test]
fn a_proxy_of_the_host_is_not_asked_for_the_cluster() {
    let mut fake = Fake::new(BOTH);
    fake.vars.push(("HTTPS_PROXY", "http://proxy.test:3128".into()));
    fake.vars.push(("no_proxy", "intern.test, 10.0.0.1".into()));
    let tell = "env | sed -n 's/^no_proxy=/no /p; s/^NO_PROXY=/NO /p; s/^HTTPS_PROXY=/via /p'";
    fake.up(&format!("{BOTH}; {tell} >$here/told"));
    fake.run(&["up"]).exits(1);
    fs::write(fake.at(".p1/fake/kubeconfig"), include_str!("fixtures/k3s.yaml")).unwrap();
    executable(&fake.at("bin/kubectl"), &format!("#!/bin/sh\n{tell}\nexit 7\n"));
    let kubectl = fake.run(&["kubectl", "get", "nodes"]).exits(7).stdout();
    let vagrant = fs::read_to_string(fake.at("bin/told")).unwrap();
    let direct = "intern.test,10.0.0.1,localhost,127.0.0.1,192.168.56.0/24,192.168.56.110,192.168.56.111";
    for told in [kubectl, vagrant] {
        for line in [format!("NO {direct}"), format!("no {direct}"), "via http://proxy.test:3128".into()] {
            assert!(told.lines().any(|l| l == line), "{line}\n{told}");
        }
    }
}

// ---------------------------------------------------------------------------------------------
// Changes of the spec, and of reality

const BOTH: &str = "begin server; made server; done_with server; begin worker; made worker; done_with worker";

impl Fake {
    /// Two machines that run and that nobody answers in.
    fn made() -> Self {
        let fake = Self::new(BOTH);
        fake.run(&["up"]).exits(1);
        fake.size("server", 1, 1024);
        fake.size("worker", 1, 512);
        fake
    }

    fn size(&self, node: &str, cpus: u32, mib: u32) {
        fs::create_dir_all(self.at("bin/sizes")).unwrap();
        fs::write(self.at(&format!("bin/sizes/p1-fake-{node}")), format!("{cpus} {}\n", mib * 1024)).unwrap();
    }

    fn domains(&self) -> String {
        fs::read_to_string(self.at("bin/domains")).unwrap()
    }

    /// The spec with something of it replaced.
    fn edit(&self, from: &str, to: &str) {
        let text = fs::read_to_string(self.at("cluster.yaml")).unwrap();
        assert!(text.contains(from), "{text}");
        fs::write(self.at("cluster.yaml"), text.replacen(from, to, 1)).unwrap();
    }

    /// Kinds of drift by node, as programs see them.
    fn drift(&self) -> BTreeMap<String, Vec<String>> {
        let out = self.run(&["-o", "json", "status"]).stdout();
        let lines = out.lines().map(|l| serde_json::from_str::<serde_json::Value>(l).unwrap());
        let lines = lines.filter(|l| l["drift"].is_array());
        let kinds = |line: &serde_json::Value| {
            let drift = line["drift"].as_array().unwrap();
            drift.iter().map(|d| d["kind"].as_str().unwrap().to_owned()).collect()
        };
        lines.map(|l| (l["node"].as_str().unwrap_or("cluster").to_owned(), kinds(&l))).collect()
    }
}

#[test]
fn a_node_that_left_the_spec_goes_after_a_yes_and_not_before() {
    let fake = Fake::made();
    let worker = "  - {name: worker, role: worker, ip: 192.168.56.111, cpus: 1, memory: 512}\n";
    fake.edit(worker, "");
    assert_eq!(fake.drift()["worker"], ["vm_extra"]);
    let plan = fake.run(&["plan"]).exits(10).stdout();
    assert!(plan.contains("- worker") && plan.contains("lost: what is on its disk"), "{plan}");
    let before = (fake.domains(), fake.runs().len(), fake.calls());
    fake.run(&["up"]).exits(2).says(&[
        "worker",
        "there is no terminal to confirm on",
        "p1 destroy worker",
        "--yes",
    ]);
    assert_eq!((fake.domains(), fake.runs().len(), fake.calls()), before, "something was begun");
    // Nodes by name concern nobody else.
    fake.run(&["up", "server"]).exits(1);
    assert!(fake.domains().contains("p1-fake-worker"));

    fake.run(&["--yes", "up"]).exits(1);
    assert!(fake.last().passed("worker/machine"), "{:?}", fake.last().outcomes);
    assert!(!fake.domains().contains("p1-fake-worker") && fake.domains().contains("p1-fake-server"));
    assert!(!fake.drift().contains_key("worker"));
    assert!(!fs::read_to_string(fake.at(".p1/fake/nodes.json")).unwrap().contains("worker"));
}

#[test]
fn a_former_node_is_destroyed_by_its_name() {
    let fake = Fake::made();
    fake.edit("name: worker,", "name: other,");
    fake.run(&["destroy", "nonsense"]).exits(2).says(&["no node `nonsense`"]);
    fake.run(&["--yes", "destroy", "worker"]).exits(0);
    assert!(!fake.domains().contains("p1-fake-worker") && fake.domains().contains("p1-fake-server"));
    fake.run(&["--yes", "destroy", "server"]).exits(2).says(&["only server", "p1 replace"]);
    fake.run(&["--yes", "destroy"]).exits(0);
    assert_eq!(fake.domains(), "");
}

#[test]
fn a_machine_is_made_anew_only_when_it_was_named_or_agreed_to() {
    let fake = Fake::made();
    fake.edit("192.168.56.111", "192.168.56.112");
    assert_eq!(fake.drift()["worker"], ["address"]);
    let calls = fake.calls();
    fake.run(&["up"]).exits(2).says(&[
        "its address is 192.168.56.111, not 192.168.56.112",
        "lost: what is on its disk",
        "p1 up --replace worker",
    ]);
    assert_eq!(fake.calls(), calls);
    fake.run(&["up", "server", "--replace", "worker"]).exits(2).says(&["is to be replaced"]);
    fake.up("begin worker; made worker; done_with worker");
    fake.run(&["up", "--replace", "worker"]).exits(1);
    let record = fake.last();
    assert!(record.passed("worker/machine") && record.passed("worker/vm"), "{:?}", record.outcomes);
    let order: Vec<_> = began(&record).into_iter().filter(|s| s.starts_with("worker/")).take(2).collect();
    assert_eq!(order, ["worker/machine", "worker/vm"]);
    assert!(!fake.drift().get("worker").is_some_and(|kinds| kinds.contains(&"address".to_owned())));
    // The only server takes the cluster with it.
    fake.edit("192.168.56.110", "192.168.56.113");
    fake.run(&["up", "--replace", "server"]).exits(2).says(&["all data of the cluster `fake`"]);
    fake.run(&["replace", "server"]).exits(2).says(&["all data of the cluster `fake`"]);
}

/// A replacement that was cut off is finished by `retry`: what is gone does not go again.
#[test]
fn a_cut_off_replacement_is_finished() {
    let fake = Fake::made();
    fake.up("begin worker; hang");
    let running = fake.start(&["--yes", "replace", "worker"]);
    let pids = fake.hanging();
    assert!(fake.last().passed("worker/machine"));
    running.signal(Signal::SIGKILL);
    running.end();
    for pid in pids {
        let _ = kill(pid, Signal::SIGKILL);
    }
    fake.up("begin worker; made worker; done_with worker");
    fake.run(&["retry"]).exits(1);
    let record = fake.last();
    assert!(record.passed("worker/vm"), "{:?}", record.outcomes);
    assert!(!began(&record).contains(&"worker/machine".to_owned()), "{:?}", began(&record));
    assert_eq!(fake.domains().matches("p1-fake-worker").count(), 1);
}

#[test]
fn what_needs_the_whole_cluster_anew_is_refused() {
    let fake = Fake::made();
    fake.edit("192.168.56.0/24", "192.168.0.0/16");
    let why = ["made for the network 192.168.56.0/24", "p1 destroy"];
    fake.run(&["--yes", "up"]).exits(2).says(&why);
    fake.run(&["plan"]).exits(2).says(&why);
    fake.edit("192.168.0.0/16", "192.168.56.0/24");
    fake.edit("provider: libvirt", "provider: virtualbox");
    fake.run(&["--yes", "up"]).exits(2).says(&["its machines are of libvirt, not of virtualbox"]);
    fake.edit("provider: virtualbox", "libvirt: {uri: qemu:///session, bridge: p1-none0}");
    let elsewhere =
        "it was made with qemu:///system, and the spec says qemu:///session on the bridge p1-none0";
    fake.run(&["--yes", "up"]).exits(2).says(&[elsewhere, "p1 destroy"]);
    // What is there is seen where it is.
    fake.run(&["status"]).exits(1).says(&[elsewhere]);
    fake.edit("libvirt: {uri: qemu:///session, bridge: p1-none0}", "provider: libvirt");
    fake.edit("name: fake", "name: other");
    fake.run(&["plan"]).exits(10).says(&["`other` is a new cluster", "fake"]);
}

#[test]
fn a_cluster_is_destroyed_where_it_was_made_and_then_made_where_the_spec_says() {
    let mut fake = Fake::made();
    fake.edit("provider: libvirt", "libvirt: {uri: qemu:///session, bridge: p1-br0}");
    assert!(fake.at("bin/net-p1-fake.xml").exists());
    fake.run(&["--yes", "destroy"]).exits(0);
    assert!(!fake.at("bin/net-p1-fake.xml").exists() && fake.domains().is_empty());
    // Of root's bridge nothing is made: it is said what it lacks, before anything is begun.
    let make = " type bridge && ip address add 192.168.56.1/24 dev p1-br0 && ip link set p1-br0 up";
    let cases = [
        ("true", "there is no bridge p1-br0", make),
        ("ip link add p1-br0 type veth peer name p1-br1", "and no bridge", "Name a bridge"),
        ("ip link add p1-br0 type bridge", "p1-br0 has no address of 192.168.56.0/24", "ip address add"),
        (
            "ip link add p1-br0 type bridge && ip address add 192.168.56.1/24 dev p1-br0",
            "p1-br0 is not up",
            "As root: ip link set p1-br0 up",
        ),
    ];
    for (before, what, remedy) in cases {
        fake.before = before.into();
        let done = fake.run(&["up"]).exits(3).says(&["this host is not ready"]);
        let text = done.stdout();
        assert!(text.contains(what) && text.contains(remedy), "{text}");
    }
    assert!(!fake.at(".p1").exists(), "nothing was begun");
}

#[test]
fn differences_have_names_and_what_is_paused_goes_on() {
    let fake = Fake::made();
    fake.size("worker", 1, 1024);
    fake.size("server", 2, 1024);
    assert_eq!(fake.drift()["server"][0], "cpus");
    assert_eq!(fake.drift()["worker"][0], "memory");
    fake.size("worker", 1, 512);
    fake.size("server", 1, 1024);
    let domains = fake.domains().replace("p1-fake-worker running", "p1-fake-worker paused");
    fs::write(fake.at("bin/domains"), domains).unwrap();
    assert_eq!(fake.drift()["worker"], ["vm_paused"]);
    let calls = fake.calls();
    fake.run(&["up"]).exits(1);
    assert!(fake.domains().contains("p1-fake-worker running"), "{}", fake.domains());
    assert_eq!(fake.calls(), calls, "Vagrant was asked");
}

// ---------------------------------------------------------------------------------------------
// What is rendered, as those see it who have to read it: real Vagrant, Ruby, a shell

/// Legal values that mean something to Ruby, YAML and shells.
const HOSTILE: &str = "'\"`#{raise 1}$(touch pwned);\\\\ %s: -- {{ x }} <%= y %>";

#[test]
fn rendered_files_are_read_by_vagrant_ruby_and_shell() {
    let dir = tempfile::Builder::new().prefix("it's #{a} $(b) \"c\" ").tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    fs::create_dir(at("home")).unwrap();
    fs::write(at(HOSTILE), "a box").unwrap();
    for folder in ["it's #{a}", "cookbooks", "roles"] {
        fs::create_dir(at(folder)).unwrap();
    }
    fs::write(at("it's #{a}/default.pp"), "").unwrap();
    fs::write(at("site.yml"), "- hosts: all\n").unwrap();
    for (provider, nics) in [("libvirt", 1), ("libvirt", 2), ("virtualbox", 2)] {
        let hostile = serde_json::to_string(HOSTILE).unwrap();
        let spec = format!(
            "name: hostile\nprovider: {provider}\nbox: {{path: {hostile}}}\n\
             network: {{cidr: 192.168.56.0/24, nics: {nics}}}\nnodes:\n  \
             - {{name: server, role: server, ip: 192.168.56.110}}\n  \
             - {{name: end, role: worker, count: 2}}\n\
             k3s:\n  version: v1.34.1+k3s1\n  config: {{kubelet-arg: [{hostile}]}}\n  registries: {{x: {hostile}}}\n{}",
            provisioners(&hostile)
        );
        fs::write(at("cluster.yaml"), spec).unwrap();
        let out = format!("{provider}-{nics}");
        let p1 = Command::new(env!("CARGO_BIN_EXE_p1"))
            .args(["render", "--dir", &out])
            .current_dir(dir.path())
            .env("HOME", at("home"))
            .output()
            .unwrap();
        Done(p1).exits(0);

        let out = at(&out);
        let vagrantfile = out.join("Vagrantfile");
        let ruby =
            |file: &Path| Command::new("ruby").arg("-c").arg(file).output().expect("ruby").status.success();
        assert!(ruby(&vagrantfile));
        // As it is in its own folder: nothing of the cluster is there.
        let good = vagrant_validate(&out, &at("vagrant"), provider);
        assert!(good.0.status.success(), "{}{}", good.stdout(), good.stderr());

        let text = fs::read_to_string(&vagrantfile).unwrap();
        fs::write(&vagrantfile, text.replace("config.vm.boot_timeout", "config.vm.no_such_thing")).unwrap();
        assert!(ruby(&vagrantfile));
        assert!(
            !vagrant_validate(&out, &at("vagrant"), provider).0.status.success(),
            "vagrant takes anything"
        );

        for node in ["server", "end-1", "end-2"] {
            for script in ["system.sh", "install.sh"] {
                let file = out.join(node).join(script);
                assert!(
                    Command::new("sh").arg("-n").arg(&file).status().unwrap().success(),
                    "{}",
                    file.display()
                );
            }
            let config = fs::read_to_string(out.join(node).join("config.yaml")).unwrap();
            let config: serde_json::Value = serde_yaml::from_str(&config).unwrap();
            assert_eq!(config["kubelet-arg"][0], HOSTILE);
            assert!(config["flannel-iface"].as_str().unwrap().starts_with("the card that has 192.168.56."));
            let registries = fs::read_to_string(out.join(node).join("registries.yaml")).unwrap();
            assert_eq!(serde_yaml::from_str::<serde_json::Value>(&registries).unwrap()["x"], HOSTILE);
        }
    }
    assert!(!at("pwned").exists() && !Path::new("pwned").exists());
}

/// One of each type.
fn provisioners(hostile: &str) -> String {
    format!(
        "provision:\n  \
         - {{name: script, type: shell, path: {hostile}, args: [{hostile}], env: {{A_TOKEN: {hostile}}}, \
            privileged: false}}\n  \
         - {{name: inline, type: shell, inline: {hostile}, options: {{reboot: false}}}}\n  \
         - {{name: conf, type: file, source: {hostile}, destination: {hostile}}}\n  \
         - {{name: site, type: ansible, playbook: site.yml, limit: {hostile}, groups: {{web: [end-1]}}, \
            extra_vars: {{deep: [{{{hostile}: {hostile}}}, 1, null, true]}}, options: {{tags: [{hostile}]}}}}\n  \
         - {{name: local, type: ansible_local, playbook: site.yml, provisioning_path: /srv}}\n  \
         - {{name: pup, type: puppet, manifests_path: \"it's #{{a}}\", module_path: roles, facter: {{f: {hostile}}}}}\n  \
         - {{name: pupserver, type: puppet_server, options: {{puppet_server: {hostile}}}}}\n  \
         - {{name: solo, type: chef_solo, cookbooks_path: cookbooks, roles_path: roles, recipes: [apt], \
            json: {{a: {hostile}}}}}\n  \
         - {{name: zero, type: chef_zero, cookbooks_path: cookbooks, run_list: [{hostile}], \
            options: {{nodes_path: roles}}}}\n  \
         - {{name: client, type: chef_client, \
            options: {{chef_server_url: {hostile}, validation_key_path: site.yml}}}}\n  \
         - {{name: apply, type: chef_apply, recipe: {hostile}}}\n  \
         - {{name: salt, type: salt, minion_config: site.yml, run_highstate: true, masterless: true}}\n"
    )
}

/// Without a provider's own checks where the provider is not on this machine.
fn vagrant_validate(dir: &Path, home: &Path, provider: &str) -> Done {
    let mut command = Command::new("vagrant");
    command.arg("validate").current_dir(dir);
    if provider == "virtualbox" {
        command.arg("--ignore-provider");
    }
    command.env("VAGRANT_HOME", home).env("VAGRANT_CHECKPOINT_DISABLE", "1").env("VAGRANT_NO_COLOR", "1");
    command.env("VAGRANT_DEFAULT_PROVIDER", provider);
    Done(command.output().expect("vagrant"))
}
