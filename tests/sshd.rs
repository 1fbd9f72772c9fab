//! The SSH lane: p1's SSH room against a real OpenSSH server on loopback.

#[path = "support/sshd.rs"]
mod sshd;

use std::fs;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use p1::internals::explain::Explain;
use p1::internals::os::Cancel;
use p1::internals::os::cancel::Level;
use p1::internals::os::{process, tree};
use p1::internals::ssh::{
    Bound, Error, Host, Job, KnownHosts, Login, Place, Remote, Root, Source, Upload, config, interactive,
    wait_for,
};
use sshd::{LONG, Sshd};

fn ignore(_: &[u8]) {}

#[test]
fn commands_give_status_and_both_streams() {
    let sshd = Sshd::start();
    let mut session = sshd.session();
    assert_eq!(session.key(), sshd.path("own"));
    let output = session.exec("cat; exec 2>&1; echo err >&2; exit 7", b"in\n", LONG, &mut ignore).unwrap();
    assert_eq!((output.status, output.text().as_str()), (7, "in\nerr\n"));
    let error = output.ok().unwrap_err();
    assert_eq!(error.to_string(), "worker: `cat; exec 2>&1; echo err >&2; exit 7` exited with 7");
    assert_eq!(error.evidence(), ["in", "err"]);

    // Both directions full at once, all of it on standard error: libssh2 read naively blocks here.
    let many = vec![b'x'; 4 << 20];
    let mut seen = 0;
    let output = session.exec("tee /dev/stderr", &many, LONG, &mut |b| seen += b.len()).unwrap();
    assert_eq!((output.status, output.output.len(), seen), (0, 8 << 20, 8 << 20));

    // A command that does not read its input is not an error.
    assert_eq!(session.exec("exit 3", &many, LONG, &mut ignore).unwrap().status, 3);
    assert_eq!(session.exec("true", b"", LONG, &mut ignore).unwrap().status, 0);
}

/// A file comes whole, of whatever size was allowed; what has no end is cut off at its bound.
#[test]
fn a_node_may_say_so_much_and_no_more() {
    let sshd = Sshd::start();
    let mut session = sshd.session();
    let large: Vec<u8> = (0..(20_u32 << 20) / 4).flat_map(u32::to_le_bytes).collect();
    fs::write(sshd.path("large"), &large).unwrap();
    let path = sshd.path("large").display().to_string();
    assert!(session.read_file(&path, 64 << 20, LONG).unwrap() == large);
    assert!(matches!(session.read_file(&path, 1 << 20, LONG), Err(Error::TooLarge { .. })));
    assert!(matches!(session.read_file("/dev/zero", 1 << 20, LONG), Err(Error::TooLarge { .. })));

    let bound = Bound::from(LONG).at_most(1 << 20);
    let mut seen = 0;
    let error = session.exec("yes is it", b"", bound, &mut |b| seen += b.len()).unwrap_err();
    assert!(matches!(&error, Error::TooMuch { most: 0x10_0000, .. }), "{error}");
    assert!(seen <= 1 << 20 && session.broken() && !error.connection(), "{seen}");
    let words = error.evidence();
    assert!(words.iter().any(|l| l.starts_with("is it")), "{words:?}");
    let error = sshd.remote().script("asking", "yes x", false, LONG, &mut |_| {}).unwrap_err();
    assert_eq!(error.to_string(), "worker: asking said more than 68 MB");
}

#[test]
fn a_command_killed_by_a_signal_has_not_succeeded() {
    let sshd = Sshd::start();
    let mut session = sshd.session();
    let error = session.exec("echo last words; kill -9 $$", b"", LONG, &mut ignore).unwrap_err();
    assert!(matches!(&error, Error::Killed { signal, .. } if signal == "KILL"), "{error}");
    assert_eq!(error.evidence(), ["last words"]);
}

#[test]
fn scripts_run_whole_and_out_of_sight() {
    let sshd = Sshd::start();
    let mut session = sshd.session();
    let mut lines = Vec::new();
    // `cat` would eat the rest of the script if it came through its standard input.
    let script = "secret=hunter2\ncat\ntr '\\0' ' ' </proc/$$/cmdline\necho\nset -e\nfalse\necho not reached";
    let output = session.script("a test", script, true, LONG, &mut |l| lines.push(l.to_owned())).unwrap();
    assert_eq!((output.status, lines.concat().trim()), (1, "sh -s"));

    let late = session.script("a hang", &sshd.hang(), true, Duration::from_millis(300), &mut |_| {});
    let error = late.unwrap_err();
    assert!(matches!(error, Error::Deadline { .. }), "{error}");
    assert_eq!(error.to_string(), "worker: a hang did not end within 0.3s");
    assert!(session.broken());
}

#[test]
fn sudo_is_used_and_its_refusal_is_understood() {
    let mut sshd = Sshd::stopped();
    let (bin, sudo) = (sshd.path("bin"), sshd.path("bin/sudo"));
    fs::create_dir(&bin).unwrap();
    let write = |text: &str| {
        fs::write(&sudo, format!("#!/bin/sh\n{text}\n")).unwrap();
        fs::set_permissions(&sudo, fs::Permissions::from_mode(0o755)).unwrap();
    };
    sshd.more = format!("SetEnv PATH={}:/usr/bin:/bin", bin.display());
    sshd.run();
    let mut login = sshd.login();
    login.options.root = Some(Root::Sudo);
    let mut session = wait_for(&login, LONG, &Cancel::new(), &mut |_| {}).unwrap();

    write("[ \"$1\" = -n ] && shift && exec env AS_ROOT=yes \"$@\"");
    let output = session.script("a test", "echo $AS_ROOT", true, LONG, &mut |_| {}).unwrap();
    assert_eq!(output.text(), "yes\n");
    let output = session.script("a test", "echo $AS_ROOT", false, LONG, &mut |_| {}).unwrap();
    assert_eq!(output.text(), "\n");

    write("echo 'sudo: a password is required' >&2; exit 1");
    let refused = |error: Error| {
        assert!(matches!(&error, Error::NoSudo { .. }), "{error}");
        assert_eq!(error.to_string(), "worker: root cannot become root: a password is required");
    };
    refused(session.script("a test", "true", true, LONG, &mut |_| {}).unwrap_err());
    let upload = Upload { source: Source::Bytes(b"x"), dest: "/nowhere/x", mode: 0o600, sha256: None };
    refused(session.upload(&upload, LONG, &mut |_| {}).unwrap_err());
}

#[test]
fn a_cut_connection_is_an_error() {
    let sshd = Sshd::start();
    let mut session = sshd.session();
    let start = Instant::now();
    let error = session.exec(&sshd.hang(), b"", LONG, &mut |_| sshd.signal(Signal::SIGKILL));
    let error = error.unwrap_err();
    assert!(matches!(&error, Error::Lost { started: true, .. }), "{error}");
    assert!(start.elapsed() < Duration::from_secs(5));
    let again = session.exec("true", b"", LONG, &mut ignore).unwrap_err();
    assert!(matches!(&again, Error::Lost { started: false, .. }), "{again}");
}

#[test]
fn a_frozen_peer_is_noticed_within_the_bound() {
    let sshd = Sshd::start();
    let mut session = sshd.session();
    let bound = Bound::new(LONG, Duration::from_millis(300));
    let mut start = Instant::now();
    let result = session.exec(&sshd.hang(), b"", bound, &mut |_| {
        sshd.signal(Signal::SIGSTOP);
        start = Instant::now();
    });
    drop(session);
    assert!(matches!(result, Err(Error::Silent { .. })), "{result:?}");
    let took = start.elapsed();
    println!("frozen peer, bound 300 ms: noticed, and everything freed, after {took:?}");
    assert!(took < Duration::from_secs(2), "{took:?}");
}

#[test]
fn an_abort_frees_a_waiting_thread_at_once() {
    let sshd = Sshd::start();
    let cancel = Cancel::new();
    let mut session = sshd.session_of(&cancel);
    let (begun, wait) = mpsc::channel();
    let result = thread::scope(|scope| {
        let cancel = &cancel;
        let aborter = scope.spawn(move || {
            let thread: Pid = wait.recv().unwrap();
            // Until it sleeps, which it does in poll.
            let stat = format!("/proc/self/task/{thread}/stat");
            while !fs::read_to_string(&stat).unwrap().contains(") S ") {
                thread::yield_now();
            }
            let now = Instant::now();
            cancel.raise(Level::Abort);
            now
        });
        let result =
            session.exec(&sshd.hang(), b"", LONG, &mut |_| begun.send(nix::unistd::gettid()).unwrap());
        let took = aborter.join().unwrap().elapsed();
        println!("abort: freed after {took:?}");
        assert!(took < Duration::from_millis(500), "{took:?}");
        result
    });
    assert!(result.unwrap_err().cancelled());
    let error = p1::internals::ssh::connect(&sshd.login(), &cancel).err().unwrap();
    assert!(error.cancelled());
}

#[test]
fn a_host_key_is_pinned_and_a_change_is_refused() {
    let mut sshd = Sshd::start();
    sshd.session();
    let old = fs::read_to_string(sshd.path("known_hosts")).unwrap();
    assert!(old.starts_with("worker ssh-ed25519 AAAA"), "{old}");
    let mode = fs::metadata(sshd.path("known_hosts")).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);

    sshd.new_host_key("ed25519");
    sshd.run();
    let start = Instant::now();
    let result = wait_for(&sshd.login(), LONG, &Cancel::new(), &mut |_| {});
    let error = result.err().unwrap();
    assert!(start.elapsed() < LONG / 2, "it was not worth waiting");
    assert!(matches!(&error, Error::HostKeyChanged { .. }), "{error}");
    let told = process::run(
        &process::Cmd::new("ssh-keygen").arg("-lf").arg(sshd.path("host_ed25519.pub")),
        LONG,
        &Cancel::new(),
    );
    let fingerprint = told.unwrap().stdout.split_whitespace().nth(1).unwrap().to_owned();
    assert!(error.to_string().contains(&format!("changed: {fingerprint} instead of SHA256:")), "{error}");
    assert!(error.hint().unwrap().contains("forget its former key: ssh-keygen -R worker -f"));
    assert_eq!(fs::read_to_string(sshd.path("known_hosts")).unwrap(), old);

    sshd.login().known_hosts.forget("worker").unwrap();
    sshd.session();
}

#[test]
fn a_machine_must_show_the_kind_of_key_that_is_pinned() {
    let mut sshd = Sshd::stopped();
    let path = sshd.new_host_key("ecdsa").with_extension("pub");
    sshd.run();
    let line = fs::read_to_string(path).unwrap();
    fs::write(sshd.path("known_hosts"), format!("worker {line}")).unwrap();
    let mut login = sshd.login();
    login.known_hosts = KnownHosts::pinned(sshd.path("known_hosts"));
    wait_for(&login, LONG, &Cancel::new(), &mut |_| {}).unwrap();
    login.endpoint.node = "stranger".into();
    let error = p1::internals::ssh::connect(&login, &Cancel::new()).err().unwrap();
    assert!(matches!(error, Error::HostKeyUnknown { .. }), "{error}");
}

#[test]
fn refused_keys_and_missing_keys_are_told_apart() {
    let sshd = Sshd::start();
    sshd.new_key("stranger");
    sshd.session();
    let error = sshd.try_login("stranger").err().unwrap();
    assert!(matches!(&error, Error::AuthRefused { tried, .. } if tried.len() == 1), "{error}");
    let error = sshd.try_login("absent").err().unwrap();
    assert!(matches!(&error, Error::Key { .. }), "{error}");

    let mut login = sshd.login();
    login.keys = ["absent", "stranger", "own"].map(|k| sshd.path(k)).to_vec();
    let session = p1::internals::ssh::connect(&login, &Cancel::new()).unwrap();
    assert_eq!(session.key(), sshd.path("own"));

    // A damaged key is not one that the node refuses, whatever else was tried.
    let good = std::fs::read_to_string(sshd.path("own")).unwrap();
    let middle = good.len() / 2;
    for damaged in [
        "x".to_owned(),
        String::new(),
        good[..middle].to_owned(),
        good.replace(&good[middle..middle + 4], "AAAA"),
    ] {
        std::fs::write(sshd.path("damaged"), damaged).unwrap();
        let mut login = sshd.login();
        login.keys = ["damaged", "stranger"].map(|k| sshd.path(k)).to_vec();
        let error = p1::internals::ssh::connect(&login, &Cancel::new()).err().unwrap();
        assert!(matches!(&error, Error::Key { path, .. } if path.ends_with("damaged")), "{error}");
    }

    // A booting node refuses the right key for a while; a wrong one must not use up the whole bound.
    login.keys.pop();
    login.options.refused = Duration::from_millis(300);
    let mut refusals = 0;
    let result = wait_for(&login, LONG, &Cancel::new(), &mut |_| refusals += 1);
    assert!(matches!(result, Err(Error::AuthRefused { .. })));
    assert!(refusals > 0);
}

#[test]
fn waiting_names_each_cause_and_ends_when_the_node_answers() {
    let mut sshd = Sshd::stopped();
    let login = sshd.login();
    let mut causes = Vec::new();
    let session = wait_for(&login, LONG, &Cancel::new(), &mut |error| {
        causes.push(error.to_string());
        assert!(matches!(error, Error::Refused { .. }), "{error}");
        if causes.len() == 1 {
            sshd.run();
        }
    });
    session.unwrap();
    assert_eq!(causes[0], format!("worker: nothing listens at 127.0.0.1:{}", login.endpoint.port));

    sshd.end();
    let start = Instant::now();
    let error = wait_for(&login, Duration::from_millis(400), &Cancel::new(), &mut |_| {}).err().unwrap();
    assert!(matches!(&error, Error::Unreachable { .. }), "{error}");
    assert!(error.transient() && error.hint().is_some());
    assert!(start.elapsed() < Duration::from_secs(3));

    let cancel = Cancel::new();
    let error = wait_for(&login, LONG, &cancel, &mut |_| cancel.raise(Level::Stop)).err().unwrap();
    assert!(error.cancelled());
}

#[test]
fn a_peer_that_never_speaks_and_one_with_too_many_logins() {
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let mut sshd = Sshd::stopped();
    let mut login = sshd.login();
    login.endpoint.port = silent.local_addr().unwrap().port();
    login.options.login = Duration::from_millis(300);
    let start = Instant::now();
    let error = p1::internals::ssh::connect(&login, &Cancel::new()).err().unwrap();
    let doing = "waiting for its SSH greeting";
    assert!(matches!(&error, Error::Timeout { doing: d, .. } if *d == doing), "{error}");
    assert!(start.elapsed() < Duration::from_secs(2));

    // One that has not logged in fills the server; then it goes away.
    sshd.more = "MaxStartups 1".into();
    sshd.run();
    sshd.session();
    let greeted = || {
        let mut other = TcpStream::connect(("127.0.0.1", sshd.port)).unwrap();
        let mut begin = [0; 4];
        // The login before may still count, so that this one is the one too many.
        other.read_exact(&mut begin).is_ok_and(|()| begin == *b"SSH-").then_some(other)
    };
    let start = Instant::now();
    let other = loop {
        if let Some(other) = greeted() {
            break other;
        }
        assert!(start.elapsed() < LONG);
    };
    let mut other = Some(other);
    let mut seen = false;
    wait_for(&sshd.login(), LONG, &Cancel::new(), &mut |error| {
        assert!(matches!(error, Error::Banner { .. }), "{error}");
        assert!(error.to_string().ends_with("before its SSH greeting (Exceeded MaxStartups)"), "{error}");
        seen = true;
        other = None;
    })
    .unwrap();
    assert!(seen);
}

#[test]
fn an_upload_is_whole_or_absent() {
    let sshd = Sshd::start();
    let mut session = sshd.session();
    let dest = sshd.path("new dir/it's");
    let dest = dest.to_str().unwrap();
    let mut upload = Upload { source: Source::Bytes(b"token"), dest, mode: 0o640, sha256: None };
    session.upload(&upload, LONG, &mut |_| {}).unwrap().ok().unwrap();
    assert_eq!(fs::read(dest).unwrap(), b"token");
    assert_eq!(fs::metadata(dest).unwrap().permissions().mode() & 0o777, 0o640);
    assert_eq!(fs::metadata(sshd.path("new dir")).unwrap().permissions().mode() & 0o777, 0o755);
    let sum = session.sha256(dest, LONG).unwrap().unwrap();
    assert_eq!(session.sha256("/nowhere", LONG).unwrap(), None);
    assert_eq!(session.read_file(dest, 5, LONG).unwrap(), b"token");
    assert!(matches!(session.read_file(dest, 4, LONG), Err(Error::TooLarge { .. })));
    assert!(matches!(session.read_file("/nowhere", 4, LONG), Err(Error::NoFile { .. })));

    // A part that a dead node left is removed; what arrives damaged is not put in place.
    fs::write(format!("{dest}.p1-0123"), "left").unwrap();
    upload.source = Source::Bytes(b"nekot");
    upload.sha256 = Some(&sum);
    let error = session.upload(&upload, LONG, &mut |_| {}).unwrap_err();
    assert!(matches!(&error, Error::Corrupt { expected, .. } if *expected == sum), "{error}");
    assert_eq!(fs::read(dest).unwrap(), b"token");
    assert_eq!(fs::read_dir(sshd.path("new dir")).unwrap().count(), 1);

    upload.dest = "relative";
    assert!(matches!(session.upload(&upload, LONG, &mut |_| {}), Err(Error::Invalid { .. })));
}

#[test]
fn a_large_upload_survives_a_lost_connection() {
    let sshd = Sshd::start();
    let mut remote = sshd.remote();
    let (file, dest) = (sshd.path("large"), sshd.path("copy"));
    let data: Vec<u8> = (0..16_u32 << 18).flat_map(u32::to_le_bytes).collect();
    fs::write(&file, &data).unwrap();
    let dest = dest.to_str().unwrap();
    let upload = Upload { source: Source::File(&file), dest, mode: 0o755, sha256: None };
    let (mut cuts, mut last) = (0, 0);
    let start = Instant::now();
    let sent = remote.upload(&upload, LONG, &mut |sent| {
        last = sent;
        if sent > 8 << 20 && cuts == 0 {
            cuts += 1;
            sshd.signal(Signal::SIGKILL);
        }
    });
    sent.unwrap();
    println!("16 MiB, cut once in the middle: {:?}", start.elapsed());
    assert_eq!((cuts, last), (1, data.len() as u64));
    assert!(fs::read(dest).unwrap() == data);

    for ciphers in ["aes128-gcm@openssh.com", "aes128-ctr,no-such-cipher"] {
        let mut login = sshd.login();
        login.options.ciphers = ciphers.into();
        let mut session = p1::internals::ssh::connect(&login, &Cancel::new()).unwrap();
        assert!(ciphers.starts_with(&session.cipher()), "{}", session.cipher());
        let start = Instant::now();
        session.upload(&upload, LONG, &mut |_| {}).unwrap();
        println!("16 MiB by {ciphers}: {:.0} MiB/s", 16.0 / start.elapsed().as_secs_f64());
    }
}

#[test]
fn a_full_disk_is_recognised_before_and_while_it_happens() {
    let mut sshd = Sshd::stopped();
    sshd.small = Some(1 << 20);
    sshd.run();
    let mut session = sshd.session();
    let dest = sshd.small().join("file");
    let data = vec![7; 2 << 20];
    let upload =
        Upload { source: Source::Bytes(&data), dest: dest.to_str().unwrap(), mode: 0o600, sha256: None };
    let error = session.upload(&upload, LONG, &mut |_| {}).unwrap_err();
    assert!(matches!(&error, Error::DiskFull { free: Some(1_048_576), .. }), "{error}");

    // A file system that does not tell its space: `df` is replaced by one that fails.
    let bin = sshd.path("small/bin");
    let script = format!(
        "mkdir {0} && printf '#!/bin/sh\\nexit 1\\n' >{0}/df && chmod +x {0}/df && mount --bind {0}/df /usr/bin/df",
        bin.display()
    );
    session.script("a trick", &script, true, LONG, &mut |_| {}).unwrap().ok().unwrap();
    let error = session.upload(&upload, LONG, &mut |_| {}).unwrap_err();
    assert!(matches!(&error, Error::DiskFull { free: None, .. }), "{error}");
    let left = session.exec(&format!("ls {}", sshd.small().display()), b"", LONG, &mut ignore);
    assert_eq!(left.unwrap().text(), "bin\n");
}

#[test]
fn a_detached_job_survives_its_connection_and_runs_once() {
    let sshd = Sshd::start();
    let mut remote = sshd.remote();
    let name = format!("test-{}-once", std::process::id());
    let (count, go) = (sshd.path("count"), sshd.path("go"));
    let script = format!(
        "echo begun $SECRET; printf 'half a line, '; echo x >>{}; while [ ! -e {} ]; do sleep 0.05; done; echo done; exit 3",
        count.display(),
        go.display()
    );
    let job = Job { name: &name, id: "a", script: &script, env: &[("SECRET", "it's $HOME")] };
    let mut seen = String::new();
    let output = remote.detached(&job, LONG, &mut |line| {
        seen += &format!("{line}\n");
        if !go.exists() {
            sshd.signal(Signal::SIGKILL);
            fs::write(&go, "").unwrap();
        }
    });
    let output = output.unwrap();
    assert_eq!((output.status, seen.as_str()), (3, "begun it's $HOME\nhalf a line, done\n"));
    assert_eq!(output.text(), seen);
    assert_eq!(fs::read_to_string(&count).unwrap(), "x\n");
    let dir = std::path::PathBuf::from(format!("/run/p1/{name}"));
    assert!(!dir.exists(), "its result was taken");

    // A p1 that dies leaves it running; the next one follows it. Another id ends it.
    fs::remove_file(&go).unwrap();
    let abandon = |remote: &mut Remote, cancel: &Cancel| {
        let error = remote.detached(&job, LONG, &mut |_| cancel.raise(Level::Abort)).unwrap_err();
        assert!(error.cancelled(), "{error}");
    };
    let cancel = Cancel::new();
    abandon(&mut Remote::new(sshd.login(), cancel.clone()), &cancel);
    assert_eq!(fs::metadata(&dir).unwrap().permissions().mode() & 0o777, 0o700);
    assert!(!dir.join("env").exists(), "secrets go when they are read");
    fs::write(&go, "").unwrap();
    let output = remote.detached(&job, LONG, &mut |_| {}).unwrap();
    assert_eq!((output.status, output.text().as_str()), (3, "begun it's $HOME\nhalf a line, done\n"));
    assert_eq!(fs::read_to_string(&count).unwrap(), "x\nx\n");

    fs::remove_file(&go).unwrap();
    let cancel = Cancel::new();
    abandon(&mut Remote::new(sshd.login(), cancel.clone()), &cancel);
    let other = Job { id: "b", script: "echo other", ..job };
    assert_eq!(remote.detached(&other, LONG, &mut |_| {}).unwrap().text(), "other\n");
    assert_eq!(fs::read_to_string(&count).unwrap(), "x\nx\nx\n");
}

#[test]
fn a_detached_job_that_is_killed_or_too_slow_is_told_so() {
    let sshd = Sshd::start();
    let mut remote = sshd.remote();
    let name = format!("test-{}-bad", std::process::id());
    // `run` is the parent of `timeout`, which is the parent of the script.
    let script = format!("kill -9 $(cat /run/p1/{name}/pid); {}", sshd.hang());
    let job = Job { name: &name, id: "a", script: &script, env: &[] };
    let error = remote.detached(&job, LONG, &mut |_| {}).unwrap_err();
    assert!(matches!(&error, Error::JobLost { .. }), "{error}");
    assert_eq!(error.evidence(), ["begun"]);

    let job = Job { script: &sshd.hang(), ..job };
    let error = remote.detached(&job, Duration::from_secs(1), &mut |_| {}).unwrap_err();
    assert!(matches!(&error, Error::Deadline { .. }), "{error}");
    assert_eq!(error.evidence(), ["begun"]);

    // The node was restarted: what it had under /run is gone, and the job is not begun again unasked.
    let (count, dir) = (sshd.path("count"), format!("/run/p1/{name}"));
    let script = format!("echo x >>{}; {}", count.display(), sshd.hang());
    let job = Job { script: &script, ..job };
    let error = remote.detached(&job, LONG, &mut |_| {
        let pid = fs::read_to_string(format!("{dir}/pid")).unwrap().trim().parse().unwrap();
        kill(Pid::from_raw(pid), Signal::SIGKILL).unwrap();
        fs::remove_dir_all(&dir).unwrap();
        sshd.signal(Signal::SIGKILL);
    });
    assert!(matches!(error, Err(Error::JobLost { .. })), "{error:?}");
    assert_eq!(fs::read_to_string(count).unwrap(), "x\n");

    let job = Job { name: "../x", ..job };
    assert!(matches!(remote.detached(&job, LONG, &mut |_| {}), Err(Error::Invalid { .. })));
}

#[test]
fn a_detached_job_is_a_unit_where_systemd_runs() {
    let mut sshd = Sshd::stopped();
    sshd.small = Some(1 << 20);
    sshd.run();
    let mut remote = sshd.remote();
    // A stand-in for systemd-run, seen by this server only; the unit's last life is not over at first.
    let script = "mount -t tmpfs none /run && mkdir -p /run/sshd /run/systemd/system || exit\n\
        mount -t tmpfs none /usr/local/sbin && cd /usr/local/sbin || exit\n\
        cat >systemd-run <<'X'\n#!/bin/sh\n\
        [ -e /run/tried ] || { : >/run/tried; echo 'Unit p1-job.service was already loaded.'; exit 1; }\n\
        [ \"$1 $2 $3\" = '--quiet --collect --unit=p1-job' ] || exit 1\n\
        shift 3; setsid \"$@\" </dev/null >/dev/null 2>&1 &\nX\n\
        chmod +x systemd-run";
    remote.script("a trick", script, true, LONG, &mut |_| {}).unwrap().ok().unwrap();
    let job = Job { name: "job", id: "a", script: "echo out; exit 4", env: &[] };
    let output = remote.detached(&job, LONG, &mut |_| {}).unwrap();
    assert_eq!((output.status, output.text().as_str()), (4, "out\n"));
    let tried = remote.script("a look", "ls -d /run/tried /run/p1/*", true, LONG, &mut |_| {}).unwrap();
    assert!(tried.text().ends_with("/run/tried\n"), "{}", tried.text());
}

/// What looks like an ordinary end to tar is none: the last entry is missing.
#[test]
fn a_copy_is_whole_or_not_there() {
    let sshd = Sshd::start();
    let mut remote = sshd.remote();
    let from = tempfile::tempdir().unwrap();
    fs::write(from.path().join("a"), "one").unwrap();
    fs::write(from.path().join("b"), "two").unwrap();
    let mut archive = Vec::new();
    tree::write(from.path(), &mut archive, &mut |_| {}).unwrap();
    let to = tempfile::tempdir().unwrap();
    let path = to.path().join("copy");
    let place = Place { path: path.to_str().unwrap(), root: true };
    let mut give = |bytes: &[u8]| remote.give(place, "name", &mut &bytes[..], LONG.into(), &mut |_| {});
    // Without its last entry and the two blocks that end an archive; and within `b`.
    for cut in [archive.len() - 1536, archive.len() - 2048 - 100] {
        let error = give(&archive[..cut]).unwrap_err();
        assert!(matches!(error, Error::Copy { .. }), "{error}");
        assert_eq!(fs::read_dir(to.path()).unwrap().count(), 0, "cut at {cut}");
    }
    assert_eq!(give(&archive).unwrap(), path.to_str().unwrap());
    assert_eq!(fs::read_to_string(path.join("b")).unwrap(), "two");
    // Into what is there.
    assert_eq!(give(&archive).unwrap(), path.join("name").to_str().unwrap());
    assert_eq!(fs::read_dir(to.path()).unwrap().count(), 1);
}

#[test]
fn a_tunnel_carries_several_connections_and_closes_with_its_owner() {
    let sshd = Sshd::start();
    let remote = sshd.remote();
    let far = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = far.local_addr().unwrap().port();
    thread::spawn(move || {
        // Echoes each connection to its end, in capitals.
        for tcp in far.incoming().flatten() {
            thread::spawn(move || {
                let (mut from, mut to) = (tcp.try_clone().unwrap(), tcp);
                let mut buffer = [0; 10_000];
                while let Ok(n @ 1..) = from.read(&mut buffer) {
                    to.write_all(&buffer[..n].to_ascii_uppercase()).unwrap();
                }
            });
        }
    });
    let tunnel = remote.tunnel("127.0.0.1", port).unwrap();
    let address = tunnel.address();
    let mut first = TcpStream::connect(address).unwrap();
    let mut second = TcpStream::connect(address).unwrap();
    let mut answer = [0; 3];
    for (tcp, text) in [(&mut second, b"two"), (&mut first, b"one")] {
        tcp.write_all(text).unwrap();
        tcp.read_exact(&mut answer).unwrap();
        assert_eq!(answer, text.to_ascii_uppercase()[..]);
    }
    // Much more than fits in between, both ways at once; then the end is passed on.
    let many = vec![b'm'; 3 << 20];
    let mut back = Vec::new();
    let mut reader = first.try_clone().unwrap();
    thread::scope(|scope| {
        scope.spawn(|| {
            first.write_all(&many).unwrap();
            first.shutdown(std::net::Shutdown::Write).unwrap();
        });
        reader.read_to_end(&mut back).unwrap();
    });
    assert!(back.len() == many.len() && back.iter().all(|b| *b == b'M'));

    drop(tunnel);
    assert_eq!(second.read(&mut answer).unwrap_or(0), 0);
    assert!(TcpStream::connect(address).is_err());
}

#[test]
fn replacing_the_keys_closes_the_door_for_the_old_one() {
    let sshd = Sshd::start();
    let mut remote = sshd.remote();
    let old = fs::read_to_string(sshd.path("own.pub")).unwrap();
    let friend = sshd.new_key("friend");
    fs::write(sshd.authorized_keys(), format!("# people\n{old}{friend}")).unwrap();
    let new = sshd.new_key("cluster");
    sshd.new_key("stranger");

    // A private key that does not fit the public one: the old one must stay.
    let remove = [old.split(' ').nth(1).unwrap()];
    let error = remote.replace_keys(sshd.path("stranger"), &new, &remove, LONG).unwrap_err();
    assert!(matches!(error, Error::AuthRefused { .. }), "{error}");
    sshd.try_login("own").unwrap();

    for _ in 0..2 {
        remote.replace_keys(sshd.path("cluster"), &new, &remove, LONG).unwrap();
    }
    assert_eq!(remote.session().unwrap().key(), sshd.path("cluster"));
    assert!(matches!(sshd.try_login("own"), Err(Error::AuthRefused { .. })));
    sshd.try_login("friend").unwrap();
    let kept = fs::read_to_string(sshd.authorized_keys()).unwrap();
    assert_eq!(kept, format!("# people\n{friend}\n{new}\n"));
    assert_eq!(fs::metadata(sshd.authorized_keys()).unwrap().permissions().mode() & 0o777, 0o600);
}

#[test]
fn the_system_ssh_gets_in_by_our_files() {
    let sshd = Sshd::start();
    sshd.session();
    let (endpoint, key) = (sshd.login().endpoint, sshd.path("own"));
    let host = Host {
        endpoint,
        root: Root::Already,
        key,
        known_hosts: sshd.path("known_hosts"),
        jump: None,
        proxy: None,
        agent: false,
    };
    let cancel = Cancel::new();
    let command = ["echo".to_owned(), "$HOME;".to_owned(), "exit 5".to_owned()];
    let done = process::run(&interactive(&host, &command, false), LONG, &cancel).unwrap();
    assert_eq!((done.status.code(), done.stdout.trim()), (Some(5), sshd.home().to_str().unwrap()));

    let file = sshd.path("a dir of 100% \"quotes\"");
    fs::create_dir(&file).unwrap();
    let (file, key, known) = (file.join("config"), file.join("key"), file.join("known_hosts"));
    fs::copy(sshd.path("own"), &key).unwrap();
    fs::copy(sshd.path("known_hosts"), &known).unwrap();
    let other = Host { key, known_hosts: known, ..host };
    fs::write(&file, config(&[other])).unwrap();
    let cmd = process::Cmd::new("ssh").arg("-F").arg(&file).args(["worker", "echo in"]);
    let done = process::run(&cmd, LONG, &cancel).unwrap();
    assert_eq!(done.stdout, "in\n", "{}", done.stderr);
}

/// One sshd plays both: the jump host is known under a name of its own.
#[test]
fn a_node_is_reached_through_another_host() {
    let sshd = Sshd::start();
    drop(sshd.session());
    let mut jump = sshd.login();
    jump.endpoint.node = "gate".into();
    drop(wait_for(&jump, LONG, &Cancel::new(), &mut |_| {}).unwrap());
    let mut login = sshd.login();
    login.jump = Some(Box::new(jump.clone()));
    let mut remote = Remote::new(login.clone(), Cancel::new());
    let output = remote.script("a test", "echo $SSH_CONNECTION", true, LONG, &mut |_| {}).unwrap();
    assert!(output.text().contains(&sshd.port.to_string()), "{}", output.text());
    // Both are checked, each under its own name.
    let known = fs::read_to_string(sshd.path("known_hosts")).unwrap();
    assert!(known.contains("gate") && known.contains("worker"), "{known}");

    let host = |login: &Login, jump| Host {
        endpoint: login.endpoint.clone(),
        root: login.root(),
        key: login.keys[0].clone(),
        known_hosts: sshd.path("known_hosts"),
        jump,
        proxy: None,
        agent: false,
    };
    let through = host(&login, Some(Box::new(host(&jump, None))));
    let done =
        process::run(&interactive(&through, &["echo in".to_owned()], false), LONG, &Cancel::new()).unwrap();
    assert_eq!(done.stdout, "in\n", "{}", done.stderr);

    // What does not answer is said of whom.
    login.jump.as_mut().unwrap().endpoint.port = 1;
    let error = p1::internals::ssh::connect(&login, &Cancel::new()).map(drop).unwrap_err();
    assert!(error.to_string().starts_with("gate"), "{error}");
}

/// A key that is in an agent alone, over a connection that a command carries.
#[test]
fn an_agent_opens_a_node_and_a_command_carries_the_way_there() {
    let sshd = Sshd::start();
    let socket = sshd.path("agent.sock");
    let mut agent =
        Command::new("ssh-agent").arg("-D").arg("-a").arg(&socket).stdout(Stdio::null()).spawn().unwrap();
    let end = Instant::now() + LONG;
    while !socket.exists() {
        assert!(Instant::now() < end, "there is no agent");
        thread::sleep(Duration::from_millis(20));
    }
    let add = |key: &str| {
        let done =
            Command::new("ssh-add").env("SSH_AUTH_SOCK", &socket).arg("-q").arg(sshd.path(key)).status();
        assert!(done.unwrap().success(), "{key}");
    };
    sshd.new_key("stranger");
    add("stranger");
    let ssh = format!(
        "ssh -F /dev/null -i {0} -o IdentitiesOnly=yes -o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null -o LogLevel=ERROR",
        sshd.path("own").display()
    );
    let mut login = sshd.login();
    login.keys = vec![sshd.path("none")];
    login.options.agent = Some(socket.clone());
    login.proxy = Some(format!("{ssh} -p {0} -W 127.0.0.1:{0} root@127.0.0.1", sshd.port));
    let error = p1::internals::ssh::connect(&login, &Cancel::new()).map(drop).unwrap_err();
    assert!(error.to_string().contains("none"), "a stranger's key does not open it: {error}");
    add("own");
    let mut session = p1::internals::ssh::connect(&login, &Cancel::new()).unwrap();
    assert!(session.key().starts_with("agent: p1 test own"), "{}", session.key().display());
    let output = session.script("a test", "echo $SSH_CONNECTION", true, LONG, &mut |_| {}).unwrap();
    assert!(output.text().contains(&sshd.port.to_string()), "{}", output.text());
    drop(session);
    login.proxy = Some("exit 3".to_owned());
    let error = p1::internals::ssh::connect(&login, &Cancel::new()).map(drop).unwrap_err();
    assert!(error.to_string().contains("ProxyCommand `exit 3`"), "{error}");
    agent.kill().unwrap();
    agent.wait().unwrap();
}
