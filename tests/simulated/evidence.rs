//! What p1 shows when something is wrong, and what it never shows; who may work on a cluster, and how long
//! anything is waited for. With a scripted vagrant and virsh, and peers that never answer. It takes root.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use super::fake::Fake;
use super::run::{Done, until};
use super::sim::{K3S, Sim, spec};
use nix::sys::signal::Signal;
use p1::internals::event::{Kind, Outcome};
use p1::internals::journal::Record;

// ---------------------------------------------------------------------------------------------
// Evidence and secrets

/// The texts of a bundle by their path in it; its own mode and those within are looked at.
fn bundle(fake: &Fake, args: &[&str], name: &str) -> (Done, BTreeMap<String, String>) {
    use std::os::unix::fs::PermissionsExt;
    let mut line = vec!["logs", "--bundle", name];
    line.extend(args);
    let done = fake.run(&line).exits(0);
    let file = fake.at(name);
    assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
    let dir = fake.at(&format!("{name}.dir"));
    fs::create_dir(&dir).unwrap();
    let tar = Command::new("tar").arg("-xzpf").arg(&file).arg("-C").arg(&dir).status().unwrap();
    assert!(tar.success());
    let mut texts = BTreeMap::new();
    let mut folders = vec![dir.clone()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap().flatten() {
            let (path, mode) = (entry.path(), entry.metadata().unwrap().permissions().mode() & 0o77);
            assert_eq!(mode, 0, "{}", path.display());
            if path.is_dir() {
                folders.push(path);
                continue;
            }
            let part: PathBuf = path.strip_prefix(&dir).unwrap().components().skip(1).collect();
            texts.insert(part.display().to_string(), fs::read_to_string(&path).unwrap());
        }
    }
    fs::remove_dir_all(dir).unwrap();
    let left: Vec<_> = fs::read_dir(fake.dir.path()).unwrap().flatten().map(|e| e.file_name()).collect();
    assert!(!left.iter().any(|n| n.to_string_lossy().starts_with(".p1-bundle")), "{left:?}");
    (done, texts)
}

#[test]
fn evidence_of_a_cluster_that_was_never_made() {
    let fake = Fake::new("");
    let (done, texts) = bundle(&fake, &[], "b.tar.gz");
    assert_eq!(done.stdout(), "b.tar.gz\n");
    done.says(&["the cluster has not been made"]);
    for part in
        ["SUMMARY.txt", "spec/cluster.yaml", "rendered/Vagrantfile", "host/doctor.txt", "host/ip-addr.txt"]
    {
        assert!(texts.get(part).is_some_and(|t| t.len() > 20), "{part}: {:?}", texts.keys());
    }
    assert!(texts["SUMMARY.txt"].contains("nothing has been run yet"));
    assert!(!fake.at(".p1").exists(), "looking makes nothing");
    fake.run(&["logs", "--bundle", "b.tar.gz"]).exits(2).says(&["exists already"]);
    // Its own name has the time.
    let name = fake.run(&["logs", "--bundle"]).exits(0).stdout();
    assert!(name.starts_with("p1-fake-20") && name.ends_with("Z.tar.gz\n"), "{name}");
    let json = fake.run(&["-o", "json", "logs", "--bundle", "c.tar.gz"]).exits(0);
    let line: serde_json::Value = serde_json::from_str(json.stdout().lines().next().unwrap()).unwrap();
    assert!(line["v"] == 1 && line["bundle"] == "c.tar.gz" && line["bytes"].as_u64() > Some(500), "{line}");
    assert_eq!(line["lacks"][0]["part"], "nodes");
    assert_eq!(json.stderr(), "");
}

/// Nodes that do not answer, a p1 that is at work, and secrets in everything that can have one.
#[test]
fn evidence_has_no_secret_and_waits_for_nobody() {
    let secrets = ["registry-pa55word", "s3-secret-k3y", "db-pa55", "url-pa55", "flag-pa55word"];
    let fake = Fake::new(
        "begin server; begin worker; cat \"$VAGRANT_CWD/token\"; cat \"$VAGRANT_CWD/id_ed25519\"; hang",
    );
    fake.spec(
        "  server_config:\n    etcd-s3-secret-key: s3-secret-k3y\n    datastore-endpoint: 'mysql://k3s:db-pa55@tcp(db)/k3s'\n    \
         kube-apiserver-arg: [oidc-client-secret=flag-pa55word]\n  \
         registries:\n    mirrors: {docker.io: {endpoint: ['https://u:url-pa55@mirror.test']}}\n    \
         configs: {mirror.test: {auth: {username: u, password: registry-pa55word}}}\n\
         timeouts: {ssh: 60s}\nretry: {attempts: 1}\n",
    );
    let running = fake.start(&["-v", "up"]);
    fake.hanging();
    let tokens = fs::read_to_string(fake.at(".p1/fake/token")).unwrap();
    let tokens = tokens.lines().map(|l| l.split_once('=').unwrap().1.to_owned());
    let key = fs::read_to_string(fake.at(".p1/fake/id_ed25519")).unwrap();
    let key = key.lines().filter(|l| !l.starts_with("-----")).map(str::to_owned);
    let secrets: Vec<String> = secrets.map(str::to_owned).into_iter().chain(tokens).chain(key).collect();
    assert!(secrets.len() > 9);
    let log = fake.at(".p1/fake/logs");
    until("vagrant said them", || files_below(&log).values().any(|t| t.contains("server=***")));

    let begun = Instant::now();
    let (done, texts) = bundle(&fake, &[], "b.tar.gz");
    assert!(begun.elapsed() < Duration::from_secs(60), "{:?}", begun.elapsed());
    // Neither node can be reached from here.
    done.says(&["nodes/server", "nodes/worker"]);
    assert!(texts["SUMMARY.txt"].contains("p1 up works on it (pid"), "{}", texts["SUMMARY.txt"]);
    for part in ["state/Vagrantfile", "state/lock", "rendered/server/config.yaml", "host/machines.txt"] {
        assert!(texts.contains_key(part), "{part}: {:?}", texts.keys());
    }
    assert!(texts.keys().any(|k| k.starts_with("runs/")) && texts.keys().any(|k| k.ends_with("vagrant.log")));
    assert!(texts["spec/cluster.yaml"].contains("username: u"));
    running.signal(Signal::SIGINT);
    running.until_said("press Ctrl-C again");
    running.signal(Signal::SIGINT);
    let said = running.end().exits(130);

    // What a failing run leaves and says.
    fake.spec(&format!("{}timeouts: {{ssh: 500ms}}\nretry: {{attempts: 1}}\n", "  config: {}\n"));
    fake.up("echo \"failed with $(cat \"$VAGRANT_CWD/token\") --token x-flag\" >&2; exit 1");
    let failed = fake.run(&["-o", "json", "up"]).exits(1);
    let closing = fake.run(&["up"]).exits(1).says(&["p1 retry", "p1 logs --bundle"]);
    fake.run(&["render"]).exits(0);
    let (_, after) = bundle(&fake, &["-o", "json"], "c.tar.gz");
    assert!(after["SUMMARY.txt"].contains("server/vm failed"), "{}", after["SUMMARY.txt"]);

    let mut all: BTreeMap<String, String> = files_below(&fake.at(".p1"));
    for kept in ["token", "id_ed25519"] {
        assert!(all.remove(&fake.at(".p1/fake").join(kept).display().to_string()).is_some());
    }
    assert!(all.len() > 12, "{:?}", all.keys());
    for (bundle, texts) in [("b", texts), ("c", after)] {
        all.extend(texts.into_iter().map(|(part, text)| (format!("{bundle}: {part}"), text)));
    }
    for (name, done) in [("up -v", said), ("up -o json", failed), ("up", closing)] {
        all.insert(name.to_owned(), done.stdout() + &done.stderr());
    }
    for (name, text) in &all {
        for secret in &secrets {
            assert!(!text.contains(secret.as_str()), "{name} has {secret}:\n{text}");
        }
    }
}

fn files_below(dir: &Path) -> BTreeMap<String, String> {
    let mut all = BTreeMap::new();
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        match entry.file_type().unwrap() {
            t if t.is_dir() => all.extend(files_below(&entry.path())),
            t if t.is_file() => {
                let text = String::from_utf8_lossy(&fs::read(entry.path()).unwrap()).into_owned();
                all.insert(entry.path().display().to_string(), text);
            }
            _ => {}
        }
    }
    all
}

// ---------------------------------------------------------------------------------------------
// Locks

#[test]
fn a_lock_is_waited_for_and_looking_is_free() {
    let fake = Fake::new("begin server; begin worker; hang");
    let running = fake.start(&["up"]);
    fake.hanging();
    let waiting = fake.start(&["--wait", "2m", "--yes", "destroy"]);
    let pid = format!("p1 up (pid {}", running.child.id());
    waiting.until_said("another p1 works on this cluster");
    assert!(
        waiting.stderr().contains(&pid) && waiting.stderr().contains("waiting up to 2m00s"),
        "{}",
        waiting.stderr()
    );
    // A wait that runs out says who it was, and is over in time.
    let begun = Instant::now();
    fake.run(&["--wait", "1s", "stop"]).exits(4).says(&["locked by another p1", "`up`"]);
    note("the lock of a cluster (--wait)", begun.elapsed(), Duration::from_secs(1), Duration::from_secs(10));
    // Whoever only looks, or works by hand, is not kept from it.
    for (verb, code) in [
        (&["status"][..], 1),
        (&["plan"], 10),
        (&["logs"], 0),
        (&["logs", "--step", "server/vm"], 0),
        (&["kubeconfig"], 1),
        (&["ssh", "server", "--", "true"], 255),
        (&["exec", "--timeout", "1s", "--", "true"], 1),
        (&["render"], 0),
        (&["validate"], 0),
        (&["logs", "--bundle", "while.tar.gz"], 0),
    ] {
        let done = fake.run(verb);
        assert!(!done.stderr().contains("locked by another"), "{verb:?}: {}", done.stderr());
        done.exits(code);
    }
    running.signal(Signal::SIGINT);
    running.until_said("press Ctrl-C again");
    running.signal(Signal::SIGINT);
    running.end().exits(130);
    waiting.end().exits(0);
    assert!(!fake.at(".p1").exists());
}

/// Killed outright, with a vagrant of its that lives on.
#[test]
fn a_lock_dies_with_its_owner() {
    let fake = Fake::new("begin server; made server; begin worker; hang");
    let running = fake.start(&["up"]);
    let orphans = fake.hanging();
    let waiting = fake.start(&["--wait", "2m", "plan"]);
    waiting.end().exits(10);
    let waiting = fake.start(&["--wait", "2m", "--yes", "destroy"]);
    waiting.until_said("another p1 works on this cluster");
    running.signal(Signal::SIGKILL);
    running.end();
    waiting.end().exits(0);
    assert!(!fake.at(".p1").exists());
    for pid in orphans {
        let _ = nix::sys::signal::kill(pid, Signal::SIGKILL);
    }
}

/// The one that waits for `destroy` gets a lock of what is there afterwards, not of what was removed.
#[test]
fn who_waits_for_destroy_finds_a_place_of_its_own() {
    let fake = Fake::new("begin server; made server; done_with server; begin worker; hang");
    let first = fake.start(&["up"]);
    fake.hanging();
    let destroy = fake.start(&["--wait", "2m", "--yes", "destroy"]);
    destroy.until_said("another p1 works on this cluster");
    let next = fake.start(&["--wait", "2m", "up"]);
    next.until_said("another p1 works on this cluster");
    fake.up("begin server; begin worker; exit 7");
    first.signal(Signal::SIGKILL);
    first.end();
    // In whatever order they get it: `destroy` succeeds, `up` fails with what vagrant says.
    destroy.end().exits(0);
    next.end().exits(1).says(&["exited with 7"]);
    for pid in fake.hanging() {
        let _ = nix::sys::signal::kill(pid, Signal::SIGKILL);
    }
    fake.run(&["--yes", "destroy"]).exits(0);
    assert!(!fake.at(".p1").exists());
}

// ---------------------------------------------------------------------------------------------
// Waits

/// Notes how long a wait of `bound` took, and that it was over within `slack` of it.
#[track_caller]
fn note(what: &str, took: Duration, bound: Duration, slack: Duration) {
    let over = took.saturating_sub(bound);
    println!("{what:60} bound {:>6.2} s, over by {:>6.3} s", bound.as_secs_f64(), over.as_secs_f64());
    // It waited at all, and not for ever. A busy machine is given its due.
    assert!(took + Duration::from_millis(50) >= bound, "{what}: {took:?} of {bound:?}");
    assert!(over <= slack, "{what}: {took:?} of {bound:?}");
}

/// What docs/waits.md promises beyond a bound, on a machine that is not overloaded; tests have more.
const SLACK: Duration = Duration::from_secs(10);

/// A peer that accepts and never says a word.
fn silent() -> (std::net::TcpListener, u16) {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    (listener, port)
}

#[test]
fn waits_on_peers_that_never_answer_end_at_their_bounds() {
    use p1::internals::os::cancel::Level;
    use p1::internals::os::process::{self, Cmd};
    use p1::internals::os::{Cancel, lock::Lock};
    use p1::internals::ssh::{Bound, Endpoint, KnownHosts, Login, Options, connect, wait_for};

    let cancel = Cancel::new();
    let ms = Duration::from_millis;
    let timed = |what: &str, bound: Duration, work: &mut dyn FnMut()| {
        let begun = Instant::now();
        work();
        note(what, begun.elapsed(), bound, SLACK);
    };

    // Programs: one that ignores every wish, one that never stops talking, one whose child holds the pipe.
    let sh = |script: &str| Cmd::new("sh").args(["-c", script]).grace(ms(200));
    for (what, script) in [
        ("a program that ignores signals", "trap '' INT TERM; while :; do sleep 1; done"),
        ("a program that never stops talking", "yes"),
        ("a program with a child in the background", "sleep 300 & wait"),
    ] {
        timed(what, ms(500), &mut || {
            process::run(&sh(script), ms(500), &cancel).unwrap_err();
        });
    }
    timed("a pause", ms(300), &mut || assert!(!cancel.sleep(ms(300), Level::Stop)));

    // A lock that somebody has.
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("lock");
    let _held = Lock::take(&path, "up", Duration::ZERO, &cancel).unwrap();
    timed("a lock", ms(500), &mut || {
        Lock::take(&path, "stop", ms(500), &cancel).unwrap_err();
    });

    // The network: a peer that accepts and is silent.
    let (_listener, port) = silent();
    let login = |options: Options| Login {
        endpoint: Endpoint { node: "n".into(), host: "127.0.0.1".into(), port, user: "vagrant".into() },
        keys: vec![dir.path().join("none")],
        known_hosts: KnownHosts::learning(dir.path().join("known_hosts")),
        options,
        jump: None,
        proxy: None,
    };
    // Long enough for a busy machine to have come so far.
    timed("SSH: one attempt, no greeting", ms(2000), &mut || {
        let error =
            connect(&login(Options { login: ms(2000), ..Options::default() }), &cancel).err().unwrap();
        assert!(error.to_string().contains("within 2s while waiting for its SSH greeting"), "{error}");
    });
    timed("SSH: until it works", ms(900), &mut || {
        let quick = login(Options { login: ms(250), ..Options::default() });
        wait_for(&quick, ms(900), &cancel, &mut |_| {}).err().unwrap();
    });
    let url = format!("https://127.0.0.1:{port}");
    timed("the API: no answer", ms(700), &mut || {
        p1::internals::api::cacerts(&url, None, ms(700), &cancel).unwrap_err();
    });

    // A node that is there and hangs.
    let sshd = super::sshd::Sshd::start();
    let hang = sshd.hang();
    let mut line = |_: &str| {};
    timed("SSH: a script, in all", ms(1000), &mut || {
        sshd.session().script("hanging", &hang, false, ms(1000), &mut line).unwrap_err();
    });
    timed("SSH: a script, in silence", ms(700), &mut || {
        let bound = Bound::new(Duration::from_secs(300), ms(700));
        sshd.session().script("hanging", &hang, false, bound, &mut line).unwrap_err();
    });
    timed("SSH: a command", ms(800), &mut || {
        sshd.session().exec(&hang, b"", ms(800), &mut |_| {}).unwrap_err();
    });
    timed("SSH: a command that never stops talking", ms(800), &mut || {
        // A fast machine sends what a command may say in all before that.
        let bound = Bound::new(ms(800), ms(800)).at_most(u64::MAX);
        sshd.session().exec("yes", b"", bound, &mut |_| {}).unwrap_err();
    });
}

/// How long a step took that failed, in the last run, for the reason that it is to name.
#[track_caller]
fn ended(record: &Record, step: &str, bound: Duration, word: &str) {
    let event = record.events.iter().rev().find_map(|e| match &e.kind {
        Kind::StepFinished { step: s, outcome: Outcome::Failed(f), took_ms, .. } if s == step => {
            Some((f.cause.clone(), Duration::from_millis(*took_ms)))
        }
        _ => None,
    });
    let (cause, took) = event.unwrap_or_else(|| panic!("{step} did not fail: {:?}", record.outcomes));
    assert!(cause.contains(word), "{step}: `{word}` is not in\n{cause}");
    note(&format!("{step}: {word}"), took, bound, SLACK);
}

/// The settings of the spec, against machines that do not do their part; times by the journal.
#[test]
fn waits_of_steps_end_at_the_specs_bounds() {
    let sim = Sim::new(&spec(1, 1, ""));
    let bounds = |timeouts: &str| {
        sim.spec(&spec(1, 1, &format!("timeouts: {{{timeouts}}}\nretry: {{attempts: 1}}\n")));
    };
    let fails = |args: &[&str], step: &str, seconds: u64, word: &str| {
        sim.p1(args).exits(1);
        ended(&sim.last(), step, Duration::from_secs(seconds), word);
    };
    // Switched on, and no address: it gets one when it is switched on again.
    sim.node("worker").vm_fault("no-address");
    bounds("boot: 4s");
    fails(&["up"], "worker/vm", 4, "the machine did not answer at 192.168.56.111 within 4s");
    sim.node("worker").vm_fault("");
    sim.node("worker").power_off();
    sim.p1(&["up"]).exits(0);

    // It runs, and its card is dead.
    sim.node("worker").sh("ip link set eth0 down");
    bounds("ssh: 4s");
    fails(&["up", "--deep"], "worker/ssh", 4, "not reachable over SSH within 4");
    sim.node("worker").sh("ip link set eth0 up; ip route add default via 192.168.56.1");

    // The installer hangs; then the machine that it hangs on is frozen.
    sim.p1(&["--yes", "uninstall"]).exits(0);
    sim.node("server").fault("install-hang", "unit");
    bounds("install: 3s");
    fails(&["up"], "server/install", 3, "install did not end within 3s");
    bounds("install: 8s");
    let before = sim.runs().len();
    let running = sim.start(&["up"]);
    until("the installer hangs", || {
        let runs = sim.runs();
        let run = runs.last().filter(|_| runs.len() > before).and_then(|r| r.file_stem());
        let log = run.map(|run| sim.state().join("logs").join(run).join("server-install.log"));
        log.and_then(|l| fs::read_to_string(l).ok()).is_some_and(|text| text.contains("install-hang"))
    });
    sim.node("server").pause();
    running.end().exits(1);
    ended(&sim.last(), "server/install", Duration::from_secs(8), "the machine is paused: it was not p1");
    sim.node("server").heal();
    sim.node("server").resume();

    // k3s of the server and of the worker each hang at their start; then the node is never Ready.
    sim.node("server").fault("never-notify", "");
    bounds("server_ready: 3s");
    fails(&["up"], "server/start", 3, "k3s did not become active within 3s");
    sim.node("server").heal();
    sim.node("worker").fault("never-notify", "");
    bounds("node_ready: 4s");
    // What hung is not asked again how it began.
    sim.node("server").sh("systemctl restart --no-block k3s");
    fails(&["up"], "worker/start", 4, "k3s-agent did not become active within 4s");
    sim.node("worker").heal();
    sim.node("worker").fault("never-ready", "");
    sim.node("worker").sh("systemctl restart --no-block k3s-agent");
    fails(&["up"], "worker/ready", 4, "was not Ready within 4s");
    sim.node("worker").heal();

    // A provisioner sleeps, and so does k3s' own script.
    let slow = "timeouts: {provision: 3s}\nretry: {attempts: 1}\n\
                provision: [{name: slow, type: shell, inline: sleep 600, nodes: [worker]}]\n";
    sim.spec(&spec(1, 1, slow));
    fails(&["up"], "worker/provision-slow", 3, "provision-slow did not end within 3s");
    let script = "/usr/local/bin/k3s-killall.sh";
    sim.node("worker")
        .sh(&format!("mv {script} /root; printf '#!/bin/sh\\nsleep 600\\n' >{script}; chmod +x {script}"));
    bounds("install: 3s");
    fails(&["killall", "worker"], "worker/killall", 3, "killall did not end within 3s");
    sim.node("worker").sh(&format!("mv /root/k3s-killall.sh {script}"));

    // Of another size, it does not become Ready again; a server's data is packed for ever.
    sim.p1(&["up"]).exits(0);
    sim.node("worker").fault("never-ready", "");
    let text = spec(1, 1, "timeouts: {node_ready: 4s}\nretry: {attempts: 1}\n");
    sim.spec(&text.replace("memory: 512", "memory: 600"));
    fails(&["up"], "worker/resize", 4, "the node was not Ready again within 4s");
    sim.node("worker").heal();
    sim.node("worker").sh("systemctl restart --no-block k3s-agent");
    sim.p1(&["up"]).exits(0);
    let tar = "/usr/local/sbin/tar";
    sim.node("server").sh(&format!("printf '#!/bin/sh\\nsleep 600\\n' >{tar}; chmod +x {tar}"));
    sim.spec(
        &spec(1, 1, "timeouts: {server_ready: 3s}\nretry: {attempts: 1}\n")
            .replace("memory: 512", "memory: 600"),
    );
    fails(&["backup"], "cluster/copy", 3, "pack did not end within 3s");
    sim.node("server").sh(&format!("rm {tar}"));

    // Frozen: whoever looks is told in time.
    bounds("ssh: 2s");
    sim.p1(&["up"]).exits(0);
    sim.node("worker").pause();
    let begun = Instant::now();
    sim.p1(&["exec", "--timeout", "2s", "worker", "--", "true"]).exits(1);
    note("exec on a paused machine: TCP, login", begun.elapsed(), Duration::ZERO, Duration::from_secs(60));
    let begun = Instant::now();
    sim.p1(&["logs", "--bundle", "paused.tar.gz"]).exits(0).says(&["not in it: nodes/worker"]);
    note("logs --bundle with a paused machine", begun.elapsed(), Duration::ZERO, Duration::from_secs(90));
}

/// A server that takes the connection and never answers.
#[test]
fn a_download_ends_at_the_specs_bound() {
    let mut fake = Fake::new("begin server; made server; begin worker; made worker");
    let server = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fakes/server.rb");
    fake.before = format!(
        "ip link set lo up; rm -f {0}/listening; ruby {server} {0} >/dev/null 2>&1 & \
         until [ -e {0}/listening ]; do sleep 0.02; done",
        fake.dir.path().display()
    );
    fake.spec("timeouts: {ssh: 300ms, download: 3s}\nretry: {attempts: 1}\n");
    let url = format!("binary: {{url: 'http://127.0.0.1:8080/silent', sha256: {}}}", "a".repeat(64));
    let text = fs::read_to_string(fake.at("cluster.yaml")).unwrap();
    fs::write(fake.at("cluster.yaml"), text.replace("binary: {path: k3s}", &url)).unwrap();
    fake.run(&["up"]).exits(1);
    ended(&fake.last(), "cluster/artifacts", Duration::from_secs(3), "did not come within 3s");
}

// ---------------------------------------------------------------------------------------------
// Secrets, in a whole cluster

/// Everything that any process of this machine is called by, looked at again and again: those of simulated
/// nodes are among them.
struct ArgvWatch {
    stop: std::sync::Arc<std::sync::atomic::AtomicBool>,
    thread: std::thread::JoinHandle<(usize, Vec<String>)>,
}

impl ArgvWatch {
    fn start(state: PathBuf) -> Self {
        use std::sync::atomic::{AtomicBool, Ordering};
        let stop = std::sync::Arc::new(AtomicBool::new(false));
        let end = std::sync::Arc::clone(&stop);
        let thread = std::thread::spawn(move || {
            let (mut looked, mut found) = (0, Vec::new());
            while !end.load(Ordering::Relaxed) {
                let secrets = secrets_of(&state);
                for process in fs::read_dir("/proc").unwrap().flatten() {
                    for file in ["cmdline", "environ"] {
                        let line = fs::read(process.path().join(file)).unwrap_or_default();
                        let line = String::from_utf8_lossy(&line).replace('\0', " ");
                        if secrets.iter().any(|s| line.contains(s.as_str())) {
                            found.push(format!("{}: {line}", process.path().display()));
                        }
                    }
                }
                looked += usize::from(!secrets.is_empty());
                std::thread::park_timeout(Duration::from_millis(20));
            }
            (looked, found)
        });
        Self { stop, thread }
    }

    fn end(self) -> (usize, Vec<String>) {
        self.stop.store(true, std::sync::atomic::Ordering::Relaxed);
        self.thread.thread().unpark();
        self.thread.join().unwrap()
    }
}

/// The tokens and the lines of the private key.
fn secrets_of(state: &Path) -> Vec<String> {
    let read = |name: &str| fs::read_to_string(state.join(name)).unwrap_or_default();
    let tokens =
        read("token").lines().filter_map(|l| Some(l.split_once('=')?.1.to_owned())).collect::<Vec<_>>();
    let key = read("id_ed25519");
    let key = key.lines().filter(|l| !l.starts_with("-----") && l.len() > 40).map(str::to_owned);
    tokens.into_iter().chain(key).filter(|s| s.len() > 20).collect()
}

const PASSWORDS: [&str; 4] = ["registry-pa55word", "s3-secret-k3y", "provision-pa55", "path-w0rd"];

#[test]
fn a_whole_cluster_keeps_its_secrets() {
    use std::os::unix::fs::PermissionsExt;
    let k3s = format!(
        "k3s: {{{K3S}, server_config: {{etcd-s3-secret-key: s3-secret-k3y}}, registries: {{mirrors: {{docker.io: {{endpoint: \
         ['https://mirror.test/${{secret:PATH_WORD}}']}}}}, configs: {{mirror.test: {{auth: {{username: u, password: \
         '${{REGISTRY}}'}}}}}}}}}}\n\
         provision: [{{name: db, type: shell, inline: 'echo $DB_PASSWORD ${{DB_PASSWORD}}; cat /etc/rancher/k3s/*.yaml || true', \
         env: {{DB_PASSWORD: '${{DB}}'}}}}]\n"
    );
    let sim = Sim::new(&spec(1, 1, &k3s));
    sim.p1(&["plan"]).exits(2).says(&["the variable `REGISTRY` is not set", "cluster.yaml:"]);
    let variables = "REGISTRY=registry-pa55word\nDB=provision-pa55\nexport PATH_WORD='path-w0rd'\n";
    fs::write(sim.at(".env"), variables).unwrap();
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o7777;
    let mut said: BTreeMap<String, String> = BTreeMap::new();
    let mut hear = |name: &str, done: Done| {
        said.insert(name.to_owned(), done.stdout() + &done.stderr());
    };
    let watch = ArgvWatch::start(sim.state());
    hear("plan", sim.p1(&["-v", "plan"]).exits(10));
    // One that fails, then one that does not, each in another output.
    sim.node("worker").fault("install-fail", "enable");
    hear("up", sim.p1(&["-v", "up"]).exits(1));
    sim.node("worker").heal();
    hear("retry", sim.p1(&["-o", "json", "retry"]).exits(0));
    hear("status", sim.p1(&["-o", "json", "status"]).exits(0));
    hear("plan -o json", sim.p1(&["-o", "json", "plan", "--deep"]).exits(0));
    hear("render", sim.p1(&["render"]).exits(0));
    hear("kubeconfig", sim.p1(&["kubeconfig"]).exits(0));
    // A node that says them where nobody expects any: in its name, which is a reason for a step, and in its journal.
    let of_config = "sed -n 's/^token: */the token is /p' /etc/rancher/k3s/config.yaml";
    let name = format!("{of_config} | sed 's/.* is //' | tr -d '\"\\n' >/proc/sys/kernel/hostname");
    sim.node("worker").sh(&name);
    hear("plan of a name", sim.p1(&["plan", "--deep"]).exits(10));
    hear("status of a name", sim.p1(&["-o", "json", "status", "--deep"]).exits(1));
    hear("up for a name", sim.p1(&["-o", "json", "up", "--deep"]).exits(0));
    let run = fs::read_to_string(sim.runs().last().unwrap()).unwrap();
    assert!(run.lines().next().unwrap().contains("its hostname is ***"), "{run}");
    let journal = "/usr/local/sbin/journalctl";
    let lie = format!("printf '#!/bin/sh\\n%s\\n' \"{of_config}\" >{journal}; chmod +x {journal}");
    sim.node("worker").sh(&lie);
    let logs = sim.p1(&["logs", "worker"]).exits(0);
    assert!(logs.stdout().starts_with("the token is"), "{}", logs.stdout());
    hear("logs", logs);
    hear("logs --step", sim.p1(&["logs", "--step", "worker/provision-db"]));
    hear("bundle", sim.p1(&["logs", "--bundle", "b.tar.gz"]).exits(0));
    sim.node("worker").sh("rm /usr/local/sbin/journalctl");
    let (looked, found) = watch.end();
    assert!(looked > 20, "the processes were looked at {looked} times only");
    let secrets = secrets_of(&sim.state());
    assert!(secrets.len() >= 2 + 4, "{}", secrets.len());
    assert_eq!(found, [""; 0], "on a command line or in an environment");

    // Here: in nothing but their own files, which are private.
    assert_eq!(mode(&sim.at(".p1")), 0o700);
    assert_eq!(mode(&sim.state()), 0o700);
    let mut all = files_below(&sim.at(".p1"));
    for kept in ["token", "id_ed25519", "kubeconfig"] {
        let path = sim.state().join(kept);
        assert_eq!(mode(&path), 0o600, "{kept}");
        assert!(all.remove(&path.display().to_string()).is_some());
    }
    // A provisioner's settings are for Vagrant to read.
    let vagrantfile = sim.state().join("Vagrantfile");
    assert_eq!(mode(&vagrantfile), 0o600);
    let vagrantfile = all.remove(&vagrantfile.display().to_string()).unwrap();
    assert!(!secrets.iter().any(|s| vagrantfile.contains(s.as_str())));
    assert!(all.len() > 20, "{:?}", all.keys());

    // The bundle, from nodes that answer.
    let tar = Command::new("tar")
        .arg("-xzf")
        .arg(sim.at("b.tar.gz"))
        .arg("-C")
        .arg(sim.at("home"))
        .status()
        .unwrap();
    assert!(tar.success());
    let mut parts = fs::read_dir(sim.at("home")).unwrap().flatten().map(|e| e.path());
    let bundle = parts.find(|p| p.file_name().unwrap().to_string_lossy().starts_with("p1-sim-")).unwrap();
    let parts = files_below(&bundle);
    for part in [
        "server/k3s-journal",
        "server/ip-addr",
        "server/config.yaml",
        "worker/k3s-agent-unit",
        "worker/check-config",
    ] {
        let path = bundle.join(format!("nodes/{part}.txt"));
        assert!(parts.contains_key(&path.display().to_string()), "{part}: {:?}", parts.keys());
    }
    let nodes = &parts[&bundle.join("nodes/server/kubectl-nodes.txt").display().to_string()];
    assert!(nodes.contains("worker"), "{nodes}");
    let summary = &parts[&bundle.join("SUMMARY.txt").display().to_string()];
    assert!(!summary.contains("nodes/"), "{summary}");
    all.extend(parts);
    all.extend(said);

    // There: in k3s' own files, which are root's.
    for (node, files) in
        [("server", "config.yaml registries.yaml"), ("worker", "config.yaml registries.yaml")]
    {
        let modes = sim.node(node).sh(&format!("cd /etc/rancher/k3s; stat -c '%a %U' {files}"));
        assert!(modes.lines().all(|l| l == "600 root"), "{node}: {modes}");
        let text = sim
            .node(node)
            // What the machine was called before, which was a secret here, is noted to be given back.
            .sh("cat /etc/systemd/system/k3s*; find /var/lib/p1 /run/p1 /tmp /var/log -type f -size -2000k \
             ! -path /var/lib/p1/changed -exec cat {} + 2>/dev/null || true; journalctl --no-pager -o cat 2>/dev/null || true");
        assert!(text.contains("ExecStart"), "{node}: {text}");
        all.insert(format!("on {node}"), text);
    }
    // The variables of the spec arrived, and a change of one is seen.
    let registries = sim.node("worker").sh("cat /etc/rancher/k3s/registries.yaml");
    assert!(
        registries.contains("registry-pa55word") && registries.contains("mirror.test/path-w0rd"),
        "{registries}"
    );
    fs::write(sim.at(".env"), variables.replace("registry-pa55word", "registry-0ther")).unwrap();
    let changed = sim.p1(&["plan", "--deep"]).exits(10);
    assert!(changed.stdout().contains("registries.yaml"), "{}", changed.stdout());
    assert!(!(changed.stdout() + &changed.stderr()).contains("registry-0ther"));
    for (name, text) in &all {
        for secret in secrets.iter().map(String::as_str).chain(PASSWORDS) {
            assert!(!text.contains(secret), "{name} has {secret}:\n{text}");
        }
    }

    // Vagrant's key, which everybody has, opens nothing any more; the cluster's own does.
    let insecure = sim.at("home/.local/share/p1/vagrant/insecure_private_key");
    let ssh = |key: &Path, ip: &str| {
        let mut command = sim.command("ssh");
        let options = "-F /dev/null -o IdentitiesOnly=yes -o IdentityAgent=none -o BatchMode=yes -o ConnectTimeout=30 \
                       -o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null -o LogLevel=ERROR";
        command.args(options.split_whitespace()).arg("-i").arg(key).arg(format!("vagrant@{ip}")).arg("true");
        let out = command.output().unwrap();
        (out.status.code(), String::from_utf8_lossy(&out.stderr).into_owned())
    };
    for ip in ["192.168.56.110", "192.168.56.111"] {
        assert_eq!(ssh(&sim.state().join("id_ed25519"), ip).0, Some(0));
        if insecure.is_file() {
            let (code, text) = ssh(&insecure, ip);
            assert!(code == Some(255) && text.contains("Permission denied"), "{text}");
        }
        let keys = sim.node(if ip.ends_with("110") { "server" } else { "worker" });
        let keys = keys.sh("cat /home/vagrant/.ssh/authorized_keys /root/.ssh/authorized_keys");
        assert!(!keys.contains("insecure"), "{keys}");
    }
}
