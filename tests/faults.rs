//! The faults of docs/faults.md that need no node: each is injected, told, and recovered from.

#[path = "support/fake.rs"]
mod fake;
#[path = "support/run.rs"]
mod run;

use std::fs;
use std::time::Instant;

use fake::{Fake, executable};
use nix::sys::signal::{Signal, kill};
use p1::internals::event::Outcome;
use p1::internals::journal::Record;
use run::{began, gone, until};

/// Both machines come up; nothing answers at their addresses here, so that every run ends at `ssh`.
const BOTH: &str = "begin server; begin worker; made server; made worker; done_with server; done_with worker";

/// What a step failed of.
#[track_caller]
fn cause(record: &Record, step: &str) -> String {
    match record.outcomes.get(step) {
        Some(Outcome::Failed(failure)) => failure.cause.clone(),
        other => panic!("{step}: {other:?}"),
    }
}

/// How often vagrant was asked for `up`, and for which machines.
fn ups(fake: &Fake) -> Vec<String> {
    let of = |line: &str| line.split_once("--machine-readable ").map(|(_, nodes)| nodes.to_owned());
    fake.calls().lines().filter(|l| l.starts_with("up ")).filter_map(of).collect()
}

// ---------------------------------------------------------------------------------------------
// Vagrant and libvirt

#[test]
fn a_vagrant_that_is_killed_in_the_middle() {
    let fake = Fake::new("begin server; begin worker; made server; done_with server; kill -9 $$");
    let said = fake.run(&["up"]).exits(1).says(&[
        "`vagrant` was killed by signal 9",
        "worker",
        "vagrant.log",
        "p1 retry",
    ]);
    let record = fake.last();
    assert!(record.passed("server/vm"), "the other machine is there: {:?}", record.outcomes);
    assert!(began(&record).contains(&"server/ssh".to_owned()), "and goes on");
    assert!(cause(&record, "worker/vm").contains("killed by signal 9"));

    fake.up("begin worker; made worker; done_with worker");
    fake.follow(&said).exits(1);
    assert!(fake.last().passed("worker/vm"));
    assert_eq!(ups(&fake), ["server worker", "worker"]);
}

/// Between the making of a domain and the writing of its id.
#[test]
fn a_vagrant_that_is_killed_before_it_notes_a_machine() {
    let fake = Fake::new(
        "begin server; made server; done_with server; begin worker; made worker\n\
         rm \"$VAGRANT_DOTFILE_PATH/machines/worker/libvirt/id\"; kill -9 $$",
    );
    let said = fake.run(&["up"]).exits(1);
    fake.up("begin worker; made worker; done_with worker");
    fake.follow(&said).exits(1).says(&["p1-fake-worker was left half-made by an interrupted run"]);
    assert!(fake.last().passed("worker/vm"));
    assert_eq!(ups(&fake), ["server worker", "worker"]);
}

/// One machine needs nothing but Vagrant, of the other an earlier run left half: Vagrant begins for both when
/// that is out of its way, however long it takes.
#[test]
fn vagrant_begins_when_no_machine_is_left_half_made() {
    let fake = Fake::new(
        "begin worker; made worker\nrm \"$VAGRANT_DOTFILE_PATH/machines/worker/libvirt/id\"; kill -9 $$",
    );
    let said = fake.run(&["up"]).exits(1);
    let script = "#!/bin/sh\nhere=$(dirname \"$0\")\ncase \"$*\" in *undefine*) sleep 1 ;; esac\n\
        exec \"$here/virsh.real\" \"$@\"\n";
    fs::rename(fake.at("bin/virsh"), fake.at("bin/virsh.real")).unwrap();
    executable(&fake.at("bin/virsh"), script);
    fake.up(&format!("grep -q p1-fake-worker \"$here/domains\" && exit 9; {BOTH}"));
    fake.follow(&said).exits(1);
    let record = fake.last();
    assert!(record.passed("server/vm") && record.passed("worker/vm"), "{:?}", record.outcomes);
}

#[test]
fn libvirtd_restarts_while_p1_works() {
    let fake = Fake::new(BOTH);
    fake.spec("timeouts: {boot: 3s, ssh: 300ms}\nretry: {attempts: 3, backoff: 50ms}\n");
    // It is gone once, when the network is to be made, and is back for the next try.
    let script = "#!/bin/sh\nhere=$(dirname \"$0\")\ncase \"$*\" in *net-define*)\n\
        [ -e \"$here/restarted\" ] || { : >\"$here/restarted\"\n\
        echo 'error: End of file while reading data: Input/output error' >&2; exit 1; } ;; esac\n\
        exec \"$here/virsh.real\" \"$@\"\n";
    fs::rename(fake.at("bin/virsh"), fake.at("bin/virsh.real")).unwrap();
    executable(&fake.at("bin/virsh"), script);
    fake.run(&["up"]).exits(1);
    let record = fake.last();
    assert!(record.passed("cluster/network") && record.passed("server/vm"), "{:?}", record.outcomes);
    let network = |e: &&p1::internals::event::Event| matches!(&e.kind, p1::internals::event::Kind::StepRetrying { step, cause, .. } if step == "cluster/network" && cause.contains("libvirt does not answer"));
    assert_eq!(record.events.iter().filter(network).count(), 1);
}

/// Its virsh goes on without it, and would write to the volume that the next p1 makes.
#[test]
fn p1_is_killed_while_it_sends_the_base_image() {
    let fake = Fake::new(BOTH);
    let script = "#!/bin/sh\nhere=$(dirname \"$0\")\ncase \"$*\" in *vol-upload*)\n\
        [ -e \"$here/sending\" ] || { echo $$ >\"$here/sending\"; sleep 600; } ;; esac\n\
        exec \"$here/virsh.real\" \"$@\"\n";
    fs::rename(fake.at("bin/virsh"), fake.at("bin/virsh.real")).unwrap();
    executable(&fake.at("bin/virsh"), script);
    let sending = || fs::read_to_string(fake.at("bin/sending")).unwrap_or_default().trim().parse().ok();
    let running = fake.start(&["up"]);
    until("the image is being sent", || sending().is_some());
    running.signal(Signal::SIGKILL);
    running.end();
    let virsh = nix::unistd::Pid::from_raw(sending().unwrap());
    assert!(!gone(virsh), "it goes on");
    fake.run(&["up"]).exits(1);
    let record = fake.last();
    assert!(record.passed("cluster/network") && record.passed("server/vm"), "{:?}", record.outcomes);
    assert!(gone(virsh), "it was ended");
}

#[test]
fn libvirtd_stays_away() {
    let fake = Fake::new(BOTH);
    let fails = fake.at("bin/virsh-fails");
    fs::write(&fails, "net-define* End of file while reading data: Input/output error\n").unwrap();
    let said = fake.run(&["up"]).exits(1).says(&[
        "libvirt does not answer",
        "End of file while reading data",
        "next: p1 doctor --fix && p1 retry",
    ]);
    let record = fake.last();
    assert!(record.passed("cluster/artifacts") && record.passed("cluster/box"), "{:?}", record.outcomes);
    assert!(matches!(&record.outcomes["server/vm"], Outcome::Blocked { by } if by == "cluster/network"));
    // While it is away nothing is begun; once it is back, the rest is done.
    fs::write(&fails, "* Failed to connect socket to '/var/run/libvirt/libvirt-sock'\n").unwrap();
    fake.run(&["retry"]).exits(3).says(&["libvirt does not answer", "Failed to connect socket"]);
    assert_eq!(fake.runs().len(), 1);
    fs::remove_file(fails).unwrap();
    fake.follow(&said).exits(1);
    assert!(fake.last().passed("server/vm") && fake.last().passed("worker/vm"));
}

#[test]
fn a_machine_that_never_gets_its_address() {
    let fake = Fake::new(
        "begin server; begin worker; made server; made worker; done_with server; waits worker; hang",
    );
    fake.spec("timeouts: {boot: 1s, ssh: 300ms}\nretry: {attempts: 1}\n");
    let begun = Instant::now();
    let running = fake.start(&["up"]);
    let pids = fake.hanging();
    let said = running.end().exits(1).says(&[
        "the machine did not answer at 192.168.56.111 within 1s",
        "No link on eth0",
        "virsh -c qemu:///system console p1-fake-worker",
        "p1 retry",
    ]);
    println!("bound 1 s, over after {:?}", begun.elapsed());
    for pid in pids {
        until("nobody waits for vagrant, so it is ended", || gone(pid));
    }
    assert!(fake.last().passed("server/vm"));
    assert!(began(&fake.last()).contains(&"server/ssh".to_owned()));
    // It runs and does not answer: it is power-cycled, once, and waited for once.
    fake.spec("timeouts: {boot: 1s, ssh: 300ms}\nretry: {attempts: 3, backoff: 50ms}\n");
    fake.follow(&said).exits(1).says(&["it is power-cycled"]);
    assert!(cause(&fake.last(), "worker/ssh").contains("did not answer at 192.168.56.111 within 1s"));
    let on = fs::read_to_string(fake.at("started")).unwrap();
    assert_eq!(on.lines().filter(|l| l.ends_with("worker")).count(), 1, "{on}");
    assert_eq!(ups(&fake).len(), 1);
}

#[test]
fn vagrants_own_machine_lock_is_held() {
    let locked = "say ',error-exit,Vagrant::Errors::MachineActionLockedError,An action \\'up\\' was attempted on the \
                  machine \\'worker\\'%!(VAGRANT_COMMA)\\nbut another process is already executing an action on the \
                  machine.'";
    let locked = locked.replace("\\'", "");
    let first = "begin server; begin worker; made server; done_with server";
    let fake = Fake::new(&format!("{first}\n{locked}\nexit 1"));
    let said = fake
        .run(&["up"])
        .exits(1)
        .says(&["another process is already executing", "Another vagrant works on this machine"]);
    assert!(fake.last().passed("server/vm"));
    // It passes, so it is tried again without being asked.
    fake.spec("timeouts: {boot: 3s, ssh: 300ms}\nretry: {attempts: 3, backoff: 50ms}\n");
    fake.up(&format!(
        "if [ ! -e $here/tried ]; then : >$here/tried; {locked}; exit 1; fi\nbegin worker; made worker; done_with worker"
    ));
    fake.follow(&said).exits(1);
    assert!(fake.last().passed("worker/vm"), "{:?}", fake.last().outcomes);
}

#[test]
fn a_machine_changed_outside_p1_before_a_run() {
    let fake = Fake::new(BOTH);
    fake.run(&["up"]).exits(1);
    // Off and paused: started again, the second without Vagrant, and nobody else is touched.
    for state in ["shut off", "paused"] {
        let text = format!("uuid-server p1-fake-server running\nuuid-worker p1-fake-worker {state}\n");
        fs::write(fake.at("bin/domains"), text).unwrap();
        fake.up("begin worker; made worker; done_with worker");
        let before = ups(&fake).len();
        fake.run(&["up"]).exits(1);
        // What is only paused goes on without Vagrant.
        let asked: &[&str] = if state == "paused" { &[] } else { &["worker"] };
        assert_eq!(ups(&fake)[before..], *asked, "{state}");
        assert!(fake.last().passed("worker/vm"));
        assert!(!fs::read_to_string(fake.at("bin/domains")).unwrap().contains("paused"));
    }

    // Its domain is gone and its disk is there: what is on it is not thrown away unasked.
    fs::write(fake.at("bin/domains"), "uuid-server p1-fake-server running\n").unwrap();
    let before = ups(&fake).len();
    let said = fake
        .run(&["up"])
        .exits(1)
        .says(&["removed outside p1, and its disk was left behind", "`p1 destroy worker`"]);
    assert!(fake.at("bin/volumes/p1-fake-worker.img").exists());
    assert_eq!(ups(&fake).len(), before);
    assert!(began(&fake.last()).contains(&"server/ssh".to_owned()), "the others go on");
    assert_eq!(said.next(), ["p1 destroy worker", "p1 up"]);
    fs::write(fake.at("bin/volumes/p1-fake-worker.img"), "former").unwrap();
    fake.follow(&said).exits(1);
    let image = fs::read_to_string(fake.at("bin/volumes/p1-fake-worker.img")).unwrap_or_default();
    assert_ne!(image, "former");
    assert!(fake.last().passed("worker/vm"));

    // Gone as a whole: recreated.
    fs::write(fake.at("bin/domains"), "uuid-server p1-fake-server running\n").unwrap();
    fs::remove_file(fake.at("bin/volumes/p1-fake-worker.img")).unwrap();
    fake.run(&["up"]).exits(1);
    assert!(fake.last().passed("worker/vm"));
}

#[test]
fn a_machine_is_stopped_outside_p1_during_a_run() {
    for (state, word) in [("shut off", "off"), ("paused", "paused"), ("", "gone")] {
        // As soon as Vagrant is through with it.
        let domains = format!("uuid-server p1-fake-server running\\nuuid-worker p1-fake-worker {state}\\n");
        let change = match state {
            "" => {
                "sed -i '/ p1-fake-worker /d' $here/domains; rm $here/volumes/p1-fake-worker.img".to_owned()
            }
            _ => format!("printf '{domains}' >$here/domains"),
        };
        let fake = Fake::new(&format!("{BOTH}\n{change}\n"));
        let said = fake
            .run(&["up"])
            .exits(1)
            .says(&[&format!("the machine is {word}"), "`p1 retry` brings it back"]);
        let record = fake.last();
        let told = cause(&record, "worker/ssh");
        assert!(told.starts_with(&format!("the machine is {word}")) && told.contains("SSH"), "{told}");
        assert!(cause(&record, "server/ssh").starts_with("not reachable"), "that one runs");
        fake.up("begin worker; made worker; done_with worker");
        fake.follow(&said).exits(1);
        let asked: &[&str] =
            if state == "paused" { &["server worker"] } else { &["server worker", "worker"] };
        assert_eq!(ups(&fake), *asked);
        assert!(fake.last().passed("worker/vm"));
    }
}

#[test]
fn a_libvirt_network_of_that_name_or_subnet_is_there() {
    let network = |name: &str, address: &str| {
        format!(
            "<network>\n  <name>{name}</name>\n  <bridge name='virbr9'/>\n  <ip address='{address}' netmask='255.255.255.0'>\n  </ip>\n</network>\n"
        )
    };
    let fake = Fake::new(BOTH);
    let put = |name: &str, address: &str| {
        fs::write(fake.at(&format!("bin/net-{name}.xml")), network(name, address)).unwrap();
    };
    put("theirs", "192.168.56.1");
    let done = fake.run(&["up"]).exits(3).says(&["this host is not ready"]);
    assert!(
        done.stdout().contains("libvirt's network theirs (not started) has 192.168.56.0/24, which overlaps")
    );
    assert!(done.stdout().contains("Choose another `network.cidr`"));
    assert!(!fake.at(".p1").exists() && ups(&fake).is_empty());
    fs::remove_file(fake.at("bin/net-theirs.xml")).unwrap();

    put("p1-fake", "192.168.77.1");
    let done = fake.run(&["up"]).exits(3);
    assert!(done.stdout().contains("libvirt's network p1-fake has 192.168.77.0/24"), "{}", done.stdout());
    assert!(done.stdout().contains("net-undefine p1-fake"));
    // As the message says.
    fs::remove_file(fake.at("bin/net-p1-fake.xml")).unwrap();
    fake.run(&["up"]).exits(1);
    assert!(fake.last().passed("worker/vm"));
}

// ---------------------------------------------------------------------------------------------
// Boxes

#[test]
fn a_box_file_is_damaged() {
    let fake = Fake::new(BOTH);
    let says = "say ',error-exit,Vagrant::Errors::BoxUnpackageFailure,The box failed to unpackage properly. Please \
                verify that the box\\nfile you are trying to add is not corrupted.'; exit 1";
    fs::write(fake.at("bin/box"), format!("case $(cat \"$file\") in 'a box') ;; *) {says} ;; esac\n"))
        .unwrap();
    fs::write(fake.at("fake.box"), "half a b").unwrap();
    let said = fake.run(&["up"]).exits(1).says(&[
        "The box failed to unpackage properly",
        "The box file is damaged",
        "p1 retry",
    ]);
    assert!(fake.last().passed("cluster/artifacts"), "what needs no box goes on");
    assert!(matches!(&fake.last().outcomes["server/vm"], Outcome::Blocked { by } if by == "cluster/box"));
    fs::write(fake.at("fake.box"), "a box").unwrap();
    fake.follow(&said).exits(1);
    assert!(fake.last().passed("cluster/box") && fake.last().passed("server/vm"));

    // One of the library: its checksum is known, so p1 need not ask Vagrant.
    let fake = Fake::new(BOTH);
    fs::write(fake.at("fake.box"), "half a b").unwrap();
    fake.run(&["box", "add", "--name", "mine", "fake.box"])
        .exits(2)
        .says(&["fake.box is not a Vagrant box: it is no archive"]);
    fake.run(&["validate"]).exits(2).says(&["is not a Vagrant box", "cluster.yaml:3:6"]);
    fake.box_file("mine.box", "libvirt");
    fake.run(&["box", "add", "--name", "mine", "mine.box"]).exits(0);
    let spec = fs::read_to_string(fake.at("cluster.yaml")).unwrap();
    fs::write(fake.at("cluster.yaml"), spec.replace("{path: fake.box}", "mine")).unwrap();
    let file = fake.at("home/.local/share/p1/boxes/mine/box.box");
    fs::write(&file, "half a b").unwrap();
    let said = fake.run(&["up"]).exits(1).says(&["its checksum has changed since it was added"]);
    let add = format!("p1 box add --name mine {}", fake.at("mine.box").display());
    assert_eq!(said.next(), [&add, "p1 retry"]);
    assert_eq!(fake.calls(), "", "Vagrant was not given it");
    fake.follow(&said).exits(1);
    assert!(fake.last().passed("server/vm"));
}

// ---------------------------------------------------------------------------------------------
// Downloads

/// A p1 beside tests/fakes/server.rb, with a binary at the address of that path.
fn downloading(path: &str, sha256: &str, more: &str) -> Fake {
    let mut fake = Fake::new(BOTH);
    let server = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fakes/server.rb");
    fake.before = format!(
        "ip link set lo up; rm -f {0}/listening; ruby {server} {0} >/dev/null 2>&1 & \
         until [ -e {0}/listening ]; do sleep 0.02; done",
        fake.dir.path().display()
    );
    from(&mut fake, path, sha256, more);
    fake
}

fn from(fake: &mut Fake, path: &str, sha256: &str, more: &str) {
    fake.spec(more);
    let spec = fs::read_to_string(fake.at("cluster.yaml")).unwrap();
    let binary = format!("binary: {{url: 'http://127.0.0.1:8080{path}', sha256: {sha256}}}");
    fs::write(fake.at("cluster.yaml"), spec.replace("binary: {path: k3s}", &binary)).unwrap();
}

fn sum(bytes: &[u8]) -> String {
    use sha2::{Digest, Sha256};
    Sha256::digest(bytes).iter().map(|b| format!("{b:02x}")).collect()
}

#[test]
fn downloads_break() {
    let good = "timeouts: {boot: 3s, ssh: 300ms, download: 5s}\nretry: {attempts: 2, backoff: 50ms}\n";
    let hurry = "timeouts: {boot: 3s, ssh: 300ms, download: 1s}\nretry: {attempts: 2, backoff: 50ms}\n";
    let mut fake = downloading("/404", &sum(b""), good);
    let right = sum(&fs::read(fake.at("k3s")).unwrap());
    let asked = |fake: &Fake, path: &str| {
        let all = fs::read_to_string(fake.at("asked")).unwrap();
        all.lines().filter(|l| l.starts_with(path)).map(str::to_owned).collect::<Vec<_>>()
    };
    let cases = [
        // As often as the spec says, and no more: the step is what is tried again.
        ("/404", &right, good, "answered 404 (not found)", 1),
        ("/503", &right, good, "answered 503 (the server has a problem)", 2),
        ("/slow", &right, hurry, "did not come within 1s", 1),
        ("/silent", &right, hurry, "did not come within 1s", 1),
        ("/wrong", &sum(b"other"), good, "has the wrong checksum", 1),
    ];
    let mut said = None;
    for (path, sha256, more, word, times) in cases {
        from(&mut fake, path, sha256, more);
        let begun = Instant::now();
        let done = fake.run(&["up"]).exits(1).says(&[word, path, "p1 retry"]);
        println!("{path}: {:?}", begun.elapsed());
        let told = cause(&fake.last(), "cluster/artifacts");
        assert!(told.contains(word), "{told}\n{}", done.stderr());
        assert!(
            fake.last().passed("server/vm") && fake.last().passed("worker/vm"),
            "the machines do not wait"
        );
        assert_eq!(asked(&fake, path).len(), times, "{path}");
        said = Some(done);
    }
    // What is mended is fetched by the retry, and only once.
    from(&mut fake, "/good", &right, good);
    fake.follow(&said.unwrap()).exits(1);
    assert!(fake.last().passed("cluster/artifacts"), "{:?}", fake.last().outcomes);
    fake.run(&["up"]).exits(1);
    assert_eq!(asked(&fake, "/good").len(), 1);

    // A cut is gone on with by itself.
    fs::remove_dir_all(fake.at("home/.cache")).unwrap();
    from(&mut fake, "/cut", &right, good);
    fake.run(&["up"]).exits(1);
    assert!(fake.last().passed("cluster/artifacts"));
    assert_eq!(asked(&fake, "/cut"), ["/cut 0", "/cut 20"]);

    // A damaged file of the cache is fetched again.
    let cached = fake.at("home/.cache/p1/artifacts/sha256").join(&right).join("cut");
    fs::write(&cached, "damaged").unwrap();
    fake.run(&["up"]).exits(1);
    assert!(fake.last().passed("cluster/artifacts"));
    assert_eq!(sum(&fs::read(cached).unwrap()), right);
}

// ---------------------------------------------------------------------------------------------
// The state directory

#[test]
fn the_state_directory_is_read_only() {
    let mut fake = Fake::new(BOTH);
    let read_only = "mount --bind .p1 .p1 && mount -o remount,bind,ro .p1 || exit 97".to_owned();
    // Before there is anything.
    fs::create_dir(fake.at(".p1")).unwrap();
    fake.before.clone_from(&read_only);
    fake.run(&["up"]).exits(1).says(&["Read-only file system", ".p1", "writable"]);
    assert_eq!(fake.calls(), "");
    fs::remove_dir(fake.at(".p1")).unwrap();

    fake.before.clear();
    fake.run(&["up"]).exits(1);
    let calls = fake.calls();
    fake.before = read_only;
    for verb in ["up", "retry", "stop"] {
        fake.run(&[verb]).exits(1).says(&["Read-only file system", ".p1", "writable"]);
    }
    // Looking is possible all the same.
    fake.run(&["plan"]).exits(10);
    fake.run(&["status"]).exits(1).says(&["`p1 retry` continues"]);
    fake.run(&["logs"]).exits(0);
    assert_eq!(fake.calls(), calls);
    fake.before.clear();
    fake.run(&["retry"]).exits(1);
    assert_eq!(fake.runs().len(), 2);
}

#[test]
fn the_state_directory_is_full() {
    // Full from the beginning.
    let mut fake = Fake::new(BOTH);
    fs::create_dir(fake.at(".p1")).unwrap();
    fake.before =
        "mount -t tmpfs -o size=64k none .p1 && head -c 1m /dev/zero >.p1/ballast 2>/dev/null".into();
    fake.run(&["up"]).exits(1).says(&["No space left on device", ".p1", "Free some space"]);
    assert_eq!(ups(&fake), [""; 0]);

    // While machines are made: those are waited for, nothing else is begun, and it is said why. The
    // tmpfs ends with p1's namespace, so the state is carried over.
    let fake = {
        // Before p1 hears of them, so that nothing that it goes on to can be quicker.
        let full = "head -c 9m /dev/zero >\"$VAGRANT_CWD/ballast\"\ndone_with server; done_with worker";
        let mut fake = Fake::new(&format!("begin server; begin worker; made server; made worker\n{full}"));
        fs::create_dir_all(fake.at(".p1")).unwrap();
        fs::create_dir_all(fake.at("kept")).unwrap();
        fake.before = "mount -t tmpfs -o size=1m none .p1 && \"$@\"; code=$?\n\
                       rm -f .p1/fake/ballast; cp -a .p1/. kept/; exit $code"
            .into();
        fake
    };
    let done = fake.run(&["up"]).exits(1);
    let said = done.says(&["No space left on device", "/runs/", "Free some space", "p1 retry"]);
    let mut fake = fake;
    fake.before.clear();
    fs::remove_dir(fake.at(".p1")).unwrap();
    fs::rename(fake.at("kept"), fake.at(".p1")).unwrap();
    let record = fake.last();
    assert_eq!(record.success, None, "the journal ends where the disk was full");
    assert!(record.passed("cluster/box") && !record.passed("worker/ssh"), "{:?}", record.outcomes);
    fake.follow(&said).exits(1);
    assert_eq!(ups(&fake), ["server worker"], "the machines were there");
    assert!(cause(&fake.last(), "worker/ssh").contains("answer"));
}

#[test]
fn the_state_directory_is_deleted() {
    let fake = Fake::new(BOTH);
    fake.run(&["up"]).exits(1);
    fs::remove_dir_all(fake.at(".p1")).unwrap();
    let domains = fs::read_to_string(fake.at("bin/domains")).unwrap();
    fake.run(&["status"]).exits(1);
    fake.run(&["retry"]).exits(2).says(&["nothing has been run yet"]);
    // The machines hold data, and nobody asked for their end.
    let mut said = None;
    for verb in ["up", "retry"] {
        let done = fake.run(&[verb]).exits(1);
        let done = done.says(&[
            "the machine `p1-fake-server` was made from this folder",
            "state of it is gone",
            "`p1 destroy`",
        ]);
        assert_eq!(fs::read_to_string(fake.at("bin/domains")).unwrap(), domains);
        assert!(fake.at("bin/volumes/p1-fake-server.img").exists());
        said = Some(done);
    }
    let said = said.unwrap();
    assert_eq!(said.next(), ["p1 destroy", "p1 up"]);
    fake.follow(&said).exits(1);
    assert!(fake.last().passed("server/vm"));

    // Only the disks are left: not thrown away either.
    fs::remove_dir_all(fake.at(".p1")).unwrap();
    fs::write(fake.at("bin/domains"), "").unwrap();
    fake.run(&["up"]).exits(1).says(&["its disk was left behind", "`p1 destroy`"]);
    assert!(fake.at("bin/volumes/p1-fake-server.img").exists());

    // Somebody else's machines of the same name stay, whatever is asked.
    fs::write(fake.at("bin/domains"), &domains).unwrap();
    for node in ["server", "worker"] {
        fs::write(fake.at(&format!("bin/desc/p1-fake-{node}")), "Source: /elsewhere/Vagrantfile\n").unwrap();
        let _ = fs::remove_file(fake.at(&format!("bin/owner/p1-fake-{node}")));
    }
    fake.run(&["up"]).exits(1).says(&["was not made from this folder"]);
    fake.run(&["--yes", "destroy"]).exits(0).says(&["stays", "was not made from this folder"]);
    assert_eq!(fs::read_to_string(fake.at("bin/domains")).unwrap(), domains);
}

#[test]
fn the_state_directory_is_deleted_during_a_run() {
    let fake = Fake::new(&format!("{BOTH}\nrm -rf \"$VAGRANT_CWD\""));
    let done = fake.run(&["up"]).exits(1);
    assert_eq!(done.next(), ["p1 up"], "nothing knows what was outstanding");
    fake.up(BOTH);
    let said = fake.follow(&done).exits(1).says(&["state of it is gone", "`p1 destroy`"]);
    fake.follow(&said).exits(1);
    assert!(fake.last().passed("server/vm") && fake.last().passed("worker/vm"));
}

#[test]
fn the_state_was_written_by_a_newer_p1() {
    let fake = Fake::new(BOTH);
    fake.run(&["up"]).exits(1);
    let file = fake.at(".p1/fake/cluster.json");
    let good = fs::read_to_string(&file).unwrap();
    let (calls, runs) = (fake.calls(), fake.runs().len());
    fs::write(&file, good.replace("\"v\": 1", "\"v\": 99")).unwrap();
    for args in [&["up"][..], &["retry"], &["status"], &["plan"], &["--yes", "destroy"]] {
        let code = if args == ["status"] { 3 } else { 1 };
        fake.run(args).exits(code).says(&["written by a newer p1 (format 99", "a newer one"]);
    }
    assert_eq!((fake.calls(), fake.runs().len()), (calls, runs));
    // And one that nobody can read.
    fs::write(&file, &good[..good.len() / 2]).unwrap();
    let said = fake.run(&["up"]).exits(1).says(&["cluster.json is damaged", "Remove"]);
    fake.follow(&said).exits(1);
    assert_eq!(ups(&fake), ["server worker"]);
}

// ---------------------------------------------------------------------------------------------
// A machine with two cards

/// On VirtualBox logins go through the first card, so that one is heard of whose second has no address.
/// The script that `system` runs there, in namespaces that have such cards.
#[test]
fn a_private_card_has_no_address() {
    let fake = Fake::new("");
    fake.run(&["render", "--dir", "out"]).exits(0);
    let inside = r#"set -eu
        cards() {
            for name; do
                ip link add "$name" type bridge
                mkdir -p "cards/$name/device"
                ip -o link show "$name" | sed 's/.*ether \([^ ]*\).*/\1/' >"cards/$name/address"
            done
            mount --bind cards /sys/class/net
        }
        mkdir -p cards etc/network
        cp /etc/hosts etc
        mount --bind etc /etc
        cards eth0 eth1 eth2
        ip addr add 10.0.2.15/24 dev eth0
        ip addr add 172.16.0.2/24 dev eth2
        sh out/worker/system.sh >said
        ip -o -4 addr show dev eth1
        cat etc/network/interfaces.d/60-p1
        ip addr flush dev eth1
        ip addr add 172.16.1.2/24 dev eth1
        sh out/worker/system.sh 2>&1 || echo "code $?"
        "#;
    let mut command = std::process::Command::new("unshare");
    command.args(["--net", "--mount", "--uts", "--propagation", "private", "/bin/sh", "-c", inside]);
    let out = command.current_dir(fake.dir.path()).output().unwrap();
    let text = String::from_utf8_lossy(&out.stdout).into_owned() + &String::from_utf8_lossy(&out.stderr);
    assert!(text.contains("192.168.56.111/24"), "{text}");
    assert!(text.contains("iface eth1 inet static\n  address 192.168.56.111/24"), "{text}");
    let said = fs::read_to_string(fake.at("said")).unwrap();
    assert!(said.contains("gave eth1 the address 192.168.56.111"), "{said}");
    // Where each card has one of its own, none is taken away.
    assert!(text.contains("no network card is left for the address 192.168.56.111\ncode 20"), "{text}");
}

// ---------------------------------------------------------------------------------------------
// The journal

#[test]
fn a_damaged_journal_stops_nobody() {
    let fake = Fake::new(BOTH);
    fake.run(&["up"]).exits(1);
    let path = fake.runs().remove(0);
    let text = fs::read_to_string(&path).unwrap();
    let lines: Vec<&str> = text.lines().collect();
    let again = |damaged: &str, verb: &str| {
        for run in fake.runs() {
            fs::remove_file(run).unwrap();
        }
        fs::write(&path, damaged).unwrap();
        let status = fake.run(&["status"]).exits(1);
        let logs = fake.run(&["logs"]);
        (status, logs, fake.run(&[verb]))
    };

    // Torn off in the middle of its last line, and somewhere before.
    for cut in [text.len() - 9, text.len() / 2] {
        let (status, logs, retry) = again(&text[..cut], "retry");
        status.says(&["`p1 retry` continues"]);
        logs.exits(0);
        retry.exits(1);
        assert!(cause(&fake.last(), "worker/ssh").contains("answer"));
    }
    // Cut before the plan was whole: that run has done nothing, and is passed over.
    let (_, _, retry) = again(&lines[0][..lines[0].len() / 2], "retry");
    retry.exits(2).says(&["nothing has been run yet", "`p1 up`"]);

    // Garbage in the middle: passed over, named, and what was lost is looked at again.
    let done = lines.iter().position(|l| l.contains("step_finished") && l.contains("\"worker/vm\"")).unwrap();
    let mut damaged = lines.clone();
    damaged[done] = "\0\0garbage\u{fffd}";
    let (status, logs, retry) = again(&(damaged.join("\n") + "\n"), "retry");
    status.says(&["`p1 retry` continues"]);
    assert!(logs.exits(0).stdout().contains("not reachable over SSH"));
    retry.exits(1).says(&[&format!("1 line is no event (line {})", done + 1)]);
    assert!(fake.last().passed("worker/vm") && ups(&fake).len() == 1, "it runs, says libvirt");

    // Garbage where the plan was: `up` knows by itself what to do.
    let mut damaged = lines.clone();
    damaged[0] = "garbage";
    let (status, logs, retry) = again(&(damaged.join("\n") + "\n"), "retry");
    status.says(&["what the last run left is not known", ":1 is not an event"]);
    let logs = logs.exits(0).says(&[":1 is not an event", "worker-ssh.log"]);
    // The newest run's, which has switched the machines off and on and waited for them.
    let waited = "the machine did not answer at 192.168.56.111";
    assert!(logs.stdout().contains(waited), "{}", logs.stdout());
    let said = retry.exits(1).says(&[":1 is not an event", "Run `p1 up`"]);
    fake.follow(&said).exits(1);
    fake.run(&["retry"]).exits(1);
    assert_eq!(ups(&fake).len(), 1);
}

// ---------------------------------------------------------------------------------------------
// Two p1 at once

/// Two clusters on one host at the same moment: what is the host's is prepared by one after the other.
#[test]
fn two_clusters_at_the_same_moment() {
    let fake = Fake::new(BOTH);
    let spec = fs::read_to_string(fake.at("cluster.yaml")).unwrap();
    let other = spec.replace("name: fake", "name: other").replace("192.168.56.", "192.168.57.");
    fs::write(fake.at("other.yaml"), other).unwrap();
    // Each preparation leaves its beginning and its end, and the first waits until the other p1 stands at the door.
    fs::rename(fake.at("bin/virsh"), fake.at("bin/virsh.real")).unwrap();
    let script = "#!/bin/sh\nhere=$(dirname \"$0\")\ncase \"$*\" in\n\
        *net-define*) echo begin >>\"$here/order\"; sleep 0.5 ;;\n\
        *net-start*) echo end >>\"$here/order\" ;;\nesac\nexec \"$here/virsh.real\" \"$@\"\n";
    executable(&fake.at("bin/virsh"), script);
    let (one, two) = (fake.start(&["up"]), fake.start(&["-f", "other.yaml", "up"]));
    one.end().exits(1);
    two.end().exits(1);
    assert_eq!(fs::read_to_string(fake.at("bin/order")).unwrap(), "begin\nend\nbegin\nend\n");
    let other = p1::internals::journal::latest(&fake.at(".p1/other/runs")).unwrap().unwrap();
    for record in [fake.last(), other] {
        for step in ["cluster/network", "cluster/box", "server/vm", "worker/vm"] {
            assert!(record.passed(step), "{step}: {:?}", record.outcomes);
        }
    }
    assert_eq!(fs::read_to_string(fake.at("bin/domains")).unwrap().lines().count(), 4);
    // And each is removed alone.
    fake.run(&["-f", "other.yaml", "--yes", "destroy"]).exits(0);
    assert_eq!(fs::read_to_string(fake.at("bin/domains")).unwrap().lines().count(), 2);
}

/// A folder beside the first one's, with a spec and all that it names; `state` takes `.p1` along.
fn folder(fake: &Fake, name: &str, state: bool) -> String {
    let dir = fake.at(name);
    fs::create_dir(&dir).unwrap();
    for file in ["cluster.yaml", "fake.box", "install.sh", "k3s"] {
        fs::copy(fake.at(file), dir.join(file)).unwrap();
    }
    if state {
        let copied = std::process::Command::new("cp").arg("-a").arg(fake.at(".p1")).arg(&dir).status();
        assert!(copied.unwrap().success());
    }
    format!("{name}/cluster.yaml")
}

/// What the provider has, byte for byte, with all that is noted about it.
fn provided(fake: &Fake) -> Vec<(String, Vec<u8>)> {
    let mut all = Vec::new();
    for dir in ["bin", "bin/owner", "bin/volumes", "bin/desc"] {
        let entries = fs::read_dir(fake.at(dir)).into_iter().flatten().flatten();
        let files = entries.filter(|e| e.file_type().unwrap().is_file());
        let ours = files.filter(|e| !e.file_name().to_string_lossy().contains(".lock"));
        all.extend(
            ours.map(|e| (format!("{dir}/{}", e.file_name().to_string_lossy()), fs::read(e.path()).unwrap())),
        );
    }
    all.sort();
    all
}

/// Every verb that changes something.
const CHANGES: &[&[&str]] = &[
    &["up"],
    &["--yes", "up", "--replace", "worker"],
    &["--yes", "destroy"],
    &["--yes", "destroy", "worker"],
    &["--yes", "replace", "worker"],
    &["stop"],
    &["start"],
    &["--yes", "killall"],
    &["--yes", "uninstall"],
];

#[test]
fn another_folder_has_the_cluster() {
    let fake = Fake::new(BOTH);
    fake.run(&["up"]).exits(1);
    let (before, place) = (provided(&fake), fake.dir.path().canonicalize().unwrap().display().to_string());
    assert!(before.iter().any(|(n, text)| n == "bin/net-p1-fake.xml" && String::from_utf8_lossy(text).contains("p1:owner")));
    assert_eq!(before.iter().filter(|(n, _)| n.starts_with("bin/owner/p1-fake-")).count(), 2);

    // A second one of that name, with and without the same nodes.
    let other = folder(&fake, "b", false);
    let renamed = fs::read_to_string(fake.at(&other))
        .unwrap()
        .replace("name: server", "name: other")
        .replace("192.168.56.1", "192.168.56.2");
    fs::write(fake.at("b/renamed.yaml"), renamed).unwrap();
    for spec in [&*other, "b/renamed.yaml"] {
        for verb in CHANGES.iter().filter(|v| spec == other || v.len() == 1 || *v == &["--yes", "destroy"]) {
            let args: Vec<&str> = ["-f", spec].iter().chain(*verb).copied().collect();
            fake.run(&args).exits(4).says(&[
                "a cluster `fake` of this host belongs to",
                &place,
                "another `name`",
            ]);
        }
        fake.run(&["-f", spec, "plan"]).exits(4).says(&["belongs to", "--take-over"]);
        fake.run(&["-f", spec, "status"]).exits(1).says(&["belongs to", &place]);
    }
    assert!(!fake.at("b/.p1").exists(), "nothing was begun");
    assert_eq!(provided(&fake), before);

    // A copy is a second master of the same machines; they are still the first one's.
    let copy = folder(&fake, "copy", true);
    for verb in CHANGES {
        let args: Vec<&str> = ["-f", &*copy].iter().chain(*verb).copied().collect();
        fake.run(&args).exits(4).says(&["belongs to", &place, "has a copy of its state", "--take-over"]);
    }
    for verb in [&["retry"][..], &["verify"], &["backup"], &["snapshot", "save", "a"]] {
        let args: Vec<&str> = ["-f", &*copy].iter().chain(verb).copied().collect();
        fake.run(&args).exits(4).says(&["has a copy of its state"]);
    }
    assert_eq!(provided(&fake), before);
    fake.run(&["up"]).exits(1);
    assert_eq!((provided(&fake), ups(&fake).len()), (before, 1));
    // For those who mean it, once nobody is at work there.
    let took = |from: &str, to: &str| {
        fake.run(&["-f", to, "up", "--take-over"]).exits(1).says(&["it belongs to this folder now"]);
        fake.run(&["-f", from, "up"]).exits(4).says(&["has a copy of its state"]);
        fake.run(&["-f", to, "stop", "worker"]).exits(0);
        fake.up("begin worker; made worker; done_with worker");
        fake.run(&["-f", to, "up"]).exits(1);
    };
    took("cluster.yaml", &copy);

    // The copy becomes the only one: it takes over by itself. The first `up` below says so, and no other.
    fs::rename(fake.at("copy"), fake.at("elsewhere")).unwrap();
    fs::remove_dir_all(fake.at(".p1")).unwrap();
    fake.run(&["-f", "elsewhere/cluster.yaml", "plan"]).exits(10).says(&["nothing"; 0]);
    fake.run(&["-f", "elsewhere/cluster.yaml", "up"])
        .exits(1)
        .says(&["/copy, which is gone", "it belongs to this folder now"]);
    let again = fake.run(&["-f", "elsewhere/cluster.yaml", "up"]).exits(1);
    assert!(!again.stderr().contains("belong"), "{}", again.stderr());
    // The state is lost, not the machines: another folder may have them, to remove them.
    fs::remove_dir_all(fake.at("elsewhere")).unwrap();
    fake.run(&["--yes", "destroy"]).exits(4).says(&["elsewhere, which is gone", "p1 destroy --take-over"]);
    fake.run(&["--yes", "destroy", "--take-over"]).exits(0);
    assert_eq!(fs::read_to_string(fake.at("bin/domains")).unwrap(), "");
    assert!(!fake.at("bin/net-p1-fake.xml").exists() && !fake.at(".p1").exists());
}

/// As a p1 that noted no owners left it.
#[test]
fn a_cluster_of_before_belongs_to_the_folder_that_knows_it() {
    let fake = Fake::new(BOTH);
    fake.run(&["up"]).exits(1);
    let forget = || {
        let xml = fs::read_to_string(fake.at("bin/net-p1-fake.xml")).unwrap();
        let kept = xml.lines().filter(|l| !l.contains("p1:owner") && !l.contains("metadata"));
        fs::write(fake.at("bin/net-p1-fake.xml"), kept.map(|l| format!("{l}\n")).collect::<String>())
            .unwrap();
        fs::remove_dir_all(fake.at("bin/owner")).unwrap();
        let _ = fs::remove_file(fake.at(".p1/fake/owner"));
    };
    forget();
    let (before, other) = (provided(&fake), folder(&fake, "b", false));
    for verb in CHANGES {
        let args: Vec<&str> = ["-f", &*other].iter().chain(*verb).copied().collect();
        fake.run(&args).exits(4).says(&["a cluster `fake` of this host belongs to"]);
    }
    assert_eq!(provided(&fake), before);
    // Noted by the first run that changes anything, and nothing is recreated.
    fake.run(&["up"]).exits(1);
    assert_eq!(ups(&fake).len(), 1);
    let now = provided(&fake);
    assert_eq!(now.iter().filter(|(n, _)| n.starts_with("bin/owner/p1-fake-")).count(), 2);
    assert!(fs::read_to_string(fake.at("bin/net-p1-fake.xml")).unwrap().contains("p1:owner"));
    // A folder that was moved before that has them too.
    forget();
    let moved = folder(&fake, "c", true);
    fs::remove_dir_all(fake.at(".p1")).unwrap();
    fake.run(&["-f", &moved, "up"]).exits(1);
    assert_eq!(ups(&fake).len(), 1);
    fake.run(&["-f", &moved, "--yes", "destroy"]).exits(0);
    assert_eq!(fs::read_to_string(fake.at("bin/domains")).unwrap(), "");
}

/// `x-y` and `server`, `x` and `y-server`.
#[test]
fn a_machine_of_another_cluster_has_the_name() {
    for noted in [true, false] {
        let fake = Fake::new("begin server; made server; done_with server");
        let spec = fs::read_to_string(fake.at("cluster.yaml")).unwrap();
        let worker = spec.lines().find(|l| l.contains("name: worker")).unwrap().to_owned() + "\n";
        let first = spec.replace("name: fake", "name: fake-x").replace(&worker, "").replace("56.", "57.");
        fs::write(fake.at("first.yaml"), first).unwrap();
        fs::write(fake.at("cluster.yaml"), spec.replace("name: worker", "name: x-server")).unwrap();
        fake.run(&["-f", "first.yaml", "up"]).exits(1);
        if !noted {
            fs::remove_dir_all(fake.at("bin/owner")).unwrap();
        }
        let theirs = || {
            let all = fs::read_to_string(fake.at("bin/domains")).unwrap();
            let disk = fake.at("bin/volumes/p1-fake-x-server.img").exists();
            (all.lines().find(|l| l.contains(" p1-fake-x-server ")).map(str::to_owned), disk)
        };
        let before = theirs();
        assert_eq!(before, (Some("uuid-server p1-fake-x-server running".to_owned()), true));
        fake.run(&["up"]).exits(1).says(&[
            "the machine `p1-fake-x-server` belongs to the cluster `fake-x`",
            "Give x-server or the cluster another name",
        ]);
        assert!(fake.last().passed("server/vm"));
        for verb in [&["stop"][..], &["--yes", "destroy", "x-server"], &["--yes", "destroy"]] {
            let done = fake.run(verb).exits(0);
            if verb.contains(&"destroy") {
                done.says(&["`p1-fake-x-server` stays: it belongs to the cluster `fake-x`"]);
            }
            assert_eq!(theirs(), before, "{verb:?}");
        }
        assert!(!fake.at("bin/net-p1-fake.xml").exists() && !fake.at(".p1/fake").exists());
        // The other way round: the second one begins, and goes, beside the first one's machine.
        fake.run(&["-f", "first.yaml", "--yes", "destroy"]).exits(0);
        fake.up(
            "begin x-server; made x-server; done_with x-server; begin server; made server; done_with server",
        );
        fake.run(&["up"]).exits(1);
        fake.run(&["-f", "first.yaml", "up"]).exits(1).says(&["belongs to the cluster `fake`"]);
        fake.run(&["-f", "first.yaml", "--yes", "destroy"]).exits(0);
        assert!(theirs().0.is_some() && theirs().1);
    }
}

/// Of the same user, wherever the folder lies.
#[test]
fn a_lock_is_the_clusters_not_the_folders() {
    let fake = Fake::new("begin server; begin worker; hang");
    let other = folder(&fake, "b", false);
    let running = fake.start(&["up"]);
    let pids = fake.hanging();
    for verb in [&["up"][..], &["--yes", "destroy"]] {
        let args: Vec<&str> = ["-f", &*other].iter().chain(verb).copied().collect();
        fake.run(&args).exits(4).says(&["another p1", "`up`", &running.pid().to_string()]);
    }
    running.signal(Signal::SIGKILL);
    running.end();
    for pid in pids {
        let _ = kill(pid, Signal::SIGKILL);
    }
}

#[test]
fn a_lock_ends_with_its_holder() {
    let fake = Fake::new("begin server; begin worker; hang");
    for verb in [&["up"][..], &["retry"], &["--yes", "destroy"]] {
        let running = fake.start(&["up"]);
        let pids = fake.hanging();
        running.signal(Signal::SIGKILL);
        running.end();
        assert!(fake.at(".p1/fake/lock").exists(), "its file stays, with the name of the dead");
        // Nobody waits for the dead, and for its vagrant no longer than a machine may take to boot.
        fake.spec("timeouts: {boot: 500ms, ssh: 300ms}\nretry: {attempts: 1}\n");
        if verb[0] != "--yes" {
            fake.up("exit 1");
        }
        let begun = Instant::now();
        let code = if verb[0] == "--yes" { 0 } else { 1 };
        let done = fake.run(verb).exits(code);
        assert!(!done.stderr().contains("another p1"), "{}", done.stderr());
        println!("p1 {verb:?} after a killed one: {:?}", begun.elapsed());
        for pid in pids {
            let _ = kill(pid, Signal::SIGKILL);
        }
        fs::remove_file(fake.at("bin/hanging")).unwrap();
        fake.up("begin server; begin worker; hang");
    }
    assert!(!fake.at(".p1").exists());
}
