//! The faults of docs/faults.md that need nodes, on simulated ones (tests/sim). All tests share one cluster,
//! one after the other: a server, two workers that come to harm, and a third that shows that nobody else is
//! held up. Each leaves the cluster as well as it found it.

use std::fs;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Instant;

use super::run::{Done, began, until};
use super::sim::{Sim, spec};
use p1::internals::event::Outcome;
use p1::internals::explain::FailureKind;
use p1::internals::journal::Record;

/// There as long as a test is interested in it.
/// Two, as the tests mostly wait.
static LABS: [Mutex<Weak<Mutex<Sim>>>; 2] = [const { Mutex::new(Weak::new()) }; 2];

fn lab(which: usize) -> Arc<Mutex<Sim>> {
    let mut lab = LABS[which].lock().unwrap_or_else(PoisonError::into_inner);
    lab.upgrade().unwrap_or_else(|| {
        let sim = Sim::new(&spec(1, 3, ""));
        sim.p1(&["up"]).exits(0);
        let sim = Arc::new(Mutex::new(sim));
        *lab = Arc::downgrade(&sim);
        sim
    })
}

/// The cluster for one test, with these bounds; a test that failed may have left it in any state.
fn begin<'a>(lab: &'a Arc<Mutex<Sim>>, timeouts: &str) -> MutexGuard<'a, Sim> {
    let sim = lab.lock().expect("the test before left the cluster well");
    bounds(&sim, timeouts);
    sim
}

fn bounds(sim: &Sim, timeouts: &str) {
    sim.spec(&spec(1, 3, &format!("timeouts: {{{timeouts}}}\nretry: {{attempts: 1}}\n")));
}

/// What a step failed of.
#[track_caller]
fn cause(record: &Record, step: &str) -> String {
    match record.outcomes.get(step) {
        Some(Outcome::Failed(failure)) => {
            let log = failure.log.as_ref().unwrap_or_else(|| panic!("{step} kept no log"));
            assert!(fs::metadata(log).is_ok_and(|m| m.len() > 0), "{}", log.display());
            failure.cause.clone()
        }
        other => panic!("{step}: {other:?}"),
    }
}

/// Runs p1, which fails at these steps of the first workers for these reasons.
#[track_caller]
fn fails(sim: &Sim, args: &[&str], faults: &[(&str, &str)]) -> (Done, Record) {
    let begun = Instant::now();
    let done = sim.p1(args).exits(1);
    let record = sim.last();
    for (i, (step, word)) in faults.iter().enumerate() {
        let told = cause(&record, &format!("{}/{step}", worker(i)));
        println!("{:6.1} s: {told}", begun.elapsed().as_secs_f64());
        assert!(told.contains(word), "{}: `{word}` is not in\n{told}\n{}", worker(i), done.stderr());
        assert!(!record.passed(&format!("{}/ready", worker(i))));
    }
    for node in ["server", "worker-3"] {
        assert!(record.passed(&format!("{node}/ready")), "{node} goes on:\n{}", done.stderr());
    }
    (done, record)
}

/// What p1 says is next leads on; a retry does the rest, and nothing of what was done.
#[track_caller]
fn recovers(sim: &Sim, (said, before): &(Done, Record)) {
    let done = sim.follow(said).exits(0);
    if said.next() == ["p1 retry"] {
        let again: Vec<_> = began(&sim.last()).into_iter().filter(|s| before.passed(s)).collect();
        assert_eq!(again, [""; 0], "{}", done.stderr());
    }
    sim.p1(&["status", "--deep"]).exits(0);
}

fn worker(i: usize) -> String {
    format!("worker-{}", i + 1)
}

#[test]
fn an_installer_fails_at_any_stage_or_hangs() {
    let lab = lab(1);
    let sim = begin(&lab, "install: 20s");
    let rounds = [["env", "verify"], ["symlinks", "killall"], ["uninstall", "remove"], ["unit", "enable"]];
    for stages in rounds {
        sim.p1(&["--yes", "uninstall", "worker-1", "worker-2"]).exits(0);
        let words = stages.map(|s| format!("k3s' installer failed: stand-in fault install-fail={s}"));
        for (i, stage) in stages.iter().enumerate() {
            sim.node(&worker(i)).fault("install-fail", stage);
        }
        let record = fails(&sim, &["up"], &[("install", &words[0]), ("install", &words[1])]);
        let kind = |node: &str| match record.1.outcomes.get(&format!("{node}/install")) {
            Some(Outcome::Failed(failure)) => failure.kind.clone(),
            other => panic!("{other:?}"),
        };
        assert!(matches!(kind("worker-1"), FailureKind::Exit { code } if code > 0), "{:?}", kind("worker-1"));
        (0..2).for_each(|i| sim.node(&worker(i)).heal());
        recovers(&sim, &record);
    }
    sim.p1(&["--yes", "uninstall", "worker-1"]).exits(0);
    sim.node("worker-1").fault("install-hang", "unit");
    let record = fails(&sim, &["up"], &[("install", "install did not end within 20s")]);
    sim.node("worker-1").heal();
    recovers(&sim, &record);
}

#[test]
fn a_k3s_does_not_come_up() {
    let lab = lab(1);
    let sim = begin(&lab, "node_ready: 20s");
    type Fault = (&'static str, &'static str, &'static str, &'static str);
    let rounds: [&[Fault]; 3] = [
        &[
            ("unit-crash", "", "start", "k3s-agent crashes every time it starts"),
            ("oom", "", "start", "k3s-agent crashes every time it starts: the node ran out of memory"),
        ],
        &[
            ("never-notify", "", "start", "k3s-agent did not become active within 20s"),
            ("never-ready", "", "ready", "was not Ready within 20s: it is not Ready"),
        ],
        &[
            ("wrong-ip", "10.9.8.7", "ready", "its address in the cluster is 10.9.8.7, not 192.168.56.111"),
            // Active for a second each time, as far as systemd knows.
            (
                "two",
                "never-ready\noom=1\n",
                "ready",
                "k3s-agent crashes every time it starts: the node ran out",
            ),
        ],
    ];
    for faults in rounds {
        for (i, (name, value, ..)) in faults.iter().enumerate() {
            sim.node(&worker(i)).sh("systemctl stop k3s-agent");
            sim.node(&worker(i)).fault(name, value);
        }
        let words: Vec<_> = faults.iter().map(|(_, _, step, word)| (*step, *word)).collect();
        let record = fails(&sim, &["up", "--deep"], &words);
        for i in 0..faults.len() {
            sim.node(&worker(i)).heal();
            // As after a reboot: what was faulty at its start is not looked at again.
            sim.node(&worker(i)).sh("systemctl restart --no-block k3s-agent");
        }
        recovers(&sim, &record);
    }
}

/// Somebody did something to nodes of a cluster that was well.
#[test]
fn a_node_was_changed() {
    let lab = lab(0);
    let sim = begin(&lab, "node_ready: 15s");
    let drop_in = |key: &str, value: &str| {
        let dir = "/etc/rancher/k3s/config.yaml.d";
        (format!("mkdir -p {dir}; echo '{key}: {value}' >{dir}/x.yaml"), format!("rm -r {dir}"))
    };
    let mount = |at: &str, size: &str| {
        (format!("mount -t tmpfs -o size={size} none {at}; mkdir -p {at}/rancher"), format!("umount {at}"))
    };
    let rounds = [
        [
            (
                drop_in("token", "not-the-token"),
                "start",
                "the server rejects the token: /etc/rancher/k3s/config.yaml.d/x.yaml on the node sets `token`",
            ),
            (
                drop_in("server", "https://192.168.56.111:6443"),
                "start",
                "the node cannot reach the server's API: /etc/rancher/k3s/config.yaml.d/x.yaml on the node sets `server`",
            ),
        ],
        [
            (
                drop_in("node-name", "worker-3"),
                "start",
                "another machine by this node's name: /etc/rancher/k3s/config.yaml.d/x.yaml on the node sets `node-name`",
            ),
            (mount("/usr/local/bin", "64k"), "stage", "no space for /usr/local/bin/k3s"),
        ],
    ];
    for faults in rounds {
        for (i, ((script, _), ..)) in faults.iter().enumerate() {
            sim.node(&worker(i)).sh(&format!("systemctl stop k3s-agent; {script}"));
        }
        let words: Vec<_> = faults.iter().map(|(_, step, word)| (*step, *word)).collect();
        let record = fails(&sim, &["up", "--deep"], &words);
        for (i, ((_, back), ..)) in faults.iter().enumerate() {
            sim.node(&worker(i)).sh(back);
        }
        recovers(&sim, &record);
    }
    let (full, back) = mount("/var/lib", "50m");
    sim.node("worker-1").sh(&full);
    let record = fails(&sim, &["up", "--deep"], &[("system", "MiB free below /var/lib")]);
    sim.node("worker-1").sh(&back);
    recovers(&sim, &record);

    // An hour ahead, and another's name: put right without a word.
    sim.node("worker-1").sh(
        "cat >/usr/local/bin/date <<'X'\n#!/bin/sh\ncase $1 in -s) rm /usr/local/bin/date; echo \"$2\" >/run/set ;; \
         *) exec /usr/bin/date -d '+1 hour' \"$@\" ;; esac\nX\nchmod +x /usr/local/bin/date",
    );
    sim.node("worker-2").sh("hostname worker-1; echo worker-1 >/etc/hostname");
    let said = sim.p1(&["status", "--deep"]).exits(1).stdout();
    assert!(said.contains("its clock is 3") && said.contains("its hostname is worker-1"), "{said}");
    sim.p1(&["up", "--deep"]).exits(0);
    assert!(sim.node("worker-1").sh("cat /run/set").starts_with('@'));
    assert_eq!(sim.node("worker-2").sh("cat /etc/hostname").trim(), "worker-2");
    sim.p1(&["status", "--deep"]).exits(0);
}

#[test]
fn a_way_in_is_closed() {
    let lab = lab(0);
    let sim = begin(&lab, "ssh: 6s");
    let no_root = "echo 'AllowUsers vagrant' >>/etc/ssh/sshd_config; systemctl restart ssh";
    let no_sudo = "printf '#!/bin/sh\\necho sudo: a password is required >&2; exit 1\\n' >/usr/local/bin/sudo; \
                   chmod +x /usr/local/bin/sudo";
    let harm =
        |i: usize, script: &str| sim.node(&worker(i)).sh(&format!("systemctl stop k3s-agent; {script}"));

    harm(0, "systemctl stop ssh");
    harm(1, "rm /etc/ssh/ssh_host_*; ssh-keygen -q -A; systemctl restart ssh");
    let words = [("ssh", "nothing listens at 192.168.56.111:22"), ("ssh", "the host key has changed")];
    let record = fails(&sim, &["up", "--deep"], &words);
    let known = sim.state().join("known_hosts");
    let forget = format!("ssh-keygen -R worker-2 -f {}", known.display());
    assert_eq!(record.0.next(), [&forget, "p1 retry"]);
    recovers(&sim, &record);

    // Root's way in is closed, which matters to nobody where there is sudo.
    harm(0, no_root);
    sim.p1(&["up", "--deep"]).exits(0);
    harm(0, no_sudo);
    harm(1, "ip addr flush dev eth0");
    let words =
        [("ssh", "vagrant cannot become root: a password is required"), ("ssh", "not reachable over SSH")];
    let record = fails(&sim, &["up", "--deep"], &words);
    assert!(cause(&record.1, "worker-2/ssh").contains("192.168.56.112"));
    sim.node("worker-1")
        .sh("rm /usr/local/bin/sudo; sed -i /AllowUsers/d /etc/ssh/sshd_config; systemctl restart ssh");
    // Its card gets the address again with the next boot.
    assert_eq!(record.0.next(), ["p1 retry"]);
    recovers(&sim, &record);

    // Longer than a right key may be refused by a machine that boots.
    bounds(&sim, "ssh: 40s");
    harm(0, "rm /root/.ssh/authorized_keys /home/vagrant/.ssh/authorized_keys");
    let record = fails(&sim, &["up", "--deep"], &[("ssh", "refuses to let vagrant in")]);
    assert_eq!(record.0.next(), ["p1 destroy worker-1", "p1 up"]);
    recovers(&sim, &record);
}

#[test]
fn a_machine_is_lost() {
    let lab = lab(0);
    let sim = begin(&lab, "install: 20s, ssh: 6s");
    sim.p1(&["--yes", "uninstall", "worker-1", "worker-2"]).exits(0);
    for i in 0..2 {
        sim.node(&worker(i)).fault("install-hang", "unit");
    }
    let running = sim.start(&["up"]);
    for i in 0..2 {
        let log = sim.state().join("logs");
        until("the installer hangs", || {
            let runs = fs::read_dir(&log).into_iter().flatten().flatten().map(|e| e.path());
            let last = runs.max().map(|run| run.join(format!("{}-install.log", worker(i))));
            last.and_then(|l| fs::read_to_string(l).ok()).is_some_and(|l| l.contains("install-hang"))
        });
    }
    sim.node("worker-1").power_off();
    sim.node("worker-2").destroy();
    let done = running.end().exits(1).says(&["`p1 retry` brings it back"]);
    let record = sim.last();
    for (i, word) in ["off", "gone"].iter().enumerate() {
        let told = cause(&record, &format!("{}/install", worker(i)));
        assert!(told.starts_with(&format!("the machine is {word}")), "{told}\n{}", done.stderr());
    }
    (0..2).for_each(|i| sim.node(&worker(i)).heal());
    sim.follow(&done).exits(0);
    let again = began(&sim.last());
    assert!(!again.iter().any(|s| s.starts_with("worker-3/") || s.starts_with("server/")), "{again:?}");
    sim.p1(&["status", "--deep"]).exits(0);

    // Recreated, although the cluster knows a node and a password of that name.
    let password = sim.node("worker-1").sh("cat /etc/rancher/node/password");
    sim.node("worker-1").destroy();
    sim.p1(&["up"]).exits(0);
    assert_ne!(sim.node("worker-1").sh("cat /etc/rancher/node/password"), password);
    sim.p1(&["status", "--deep"]).exits(0);
}

/// Machines that run and cannot be reached, since somebody did something to their network.
#[test]
fn a_network_is_stopped_removed_or_changed() {
    let lab = lab(1);
    let sim = begin(&lab, "ssh: 6s");
    let (net, begun) = ("p1-sim", Instant::now());
    // Told by whoever looks, without asking nodes that nobody can reach.
    let told = |word: &str| {
        let begun = Instant::now();
        let status = sim.p1(&["status"]).exits(1).says(&[word]);
        assert!(!status.stdout().contains("no route"), "{}", status.stdout());
        let plan = sim.p1(&["-v", "plan"]).exits(10).stdout();
        assert!(plan.contains("cluster/link") && plan.contains(word), "{plan}");
        sim.p1(&["verify"]).exits(1).says(&[word, "`p1 up` fixes it"]);
        assert!(begun.elapsed().as_secs() < 30, "{:?}", begun.elapsed());
    };
    let mended = || {
        sim.p1(&["up"]).exits(0);
        sim.p1(&["status", "--deep"]).exits(0);
    };
    sim.virsh(&["net-destroy", net]);
    told("is not started");
    let doctor = sim.p1(&["doctor"]).stdout();
    assert!(doctor.contains("libvirt's network p1-sim is not started"), "{doctor}");
    mended();
    // By hand: it has another bridge, and nobody puts the cards of before onto it.
    sim.virsh(&["net-destroy", net]);
    sim.virsh(&["net-start", net]);
    sim.p1(&["status"]).exits(1).says(&["worker-1", "not connected to the network"]);
    mended();
    sim.virsh(&["net-destroy", net]);
    sim.virsh(&["net-undefine", net]);
    told("is not there");
    assert!(sim.p1(&["doctor"]).stdout().contains("libvirt's network p1-sim is not there"));
    mended();
    let mac = p1::internals::machines::node_mac("sim", "worker-1", [192, 168, 56, 111].into());
    let host = format!("<host mac='{mac}' name='worker-1' ip='192.168.56.111'/>");
    sim.virsh(&["net-update", net, "delete", "ip-dhcp-host", &host, "--live", "--config"]);
    told("has no address reserved for worker-1");
    mended();
    // What a network that runs cannot be changed to is told at once, with what leads on.
    let xml = sim.virsh(&["net-dumpxml", "--inactive", net]).replace("'192.168.56.1'", "'192.168.56.9'");
    fs::write(sim.at("net.xml"), xml).unwrap();
    sim.virsh(&["net-define", &sim.at("net.xml").to_string_lossy()]);
    let way = sim
        .p1(&["up"])
        .exits(1)
        .says(&["has the address 192.168.56.9, the machines expect 192.168.56.1", "net-undefine p1-sim"]);
    assert!(!way.stderr().contains("no route"), "{}", way.stderr());
    sim.follow(&way).exits(0);
    mended();
    // A run that was cut off goes on with it as well.
    sim.node("worker-1").sh("systemctl stop ssh");
    sim.p1(&["up", "--deep"]).exits(1);
    sim.node("worker-1").sh("systemctl start ssh");
    sim.virsh(&["net-destroy", net]);
    sim.p1(&["retry"]).exits(0);
    assert!(began(&sim.last()).contains(&"cluster/link".to_owned()));
    println!("a network that is stopped, removed and changed: {:?}", begun.elapsed());
}

#[test]
fn a_server_does_not_come_up() {
    let lab = lab(1);
    let sim = begin(&lab, "server_ready: 30s");
    // Another program that happens to be at hand.
    sim.node("server").sh("systemctl stop k3s; /usr/sbin/sshd -p 6443 -o PidFile=/run/other.pid");
    // And what the run before said to its end, up to the second in which this one begins.
    sim.node("server").sh("id=$(systemctl show -p InvocationID --value k3s); test -n \"$id\"\n\
         while [ \"$(systemctl show -p InvocationID --value k3s)\" = \"$id\" ]; do\n\
         echo \"$(date +%s.%N) $id k3s[9] level=fatal msg=\\\"flag provided but not defined: -before\\\"\" \
         >>/var/log/journal/k3s.service; sleep 0.05; done >/dev/null 2>&1 &");
    let done = sim.p1(&["up", "--deep"]).exits(1).says(&["an address that k3s listens on", "p1 retry"]);
    assert!(!(done.stdout() + &done.stderr()).contains("-before"), "{}", done.stderr());
    let record = (done, sim.last());
    // Who it is, which p1 finds out by itself.
    let pid = sim.node("server").sh("cat /run/other.pid");
    let told = cause(&record.1, "server/start");
    assert!(told.contains(&format!("(:6443) is in use by sshd (pid {})", pid.trim())), "{told}");
    let Some(Outcome::Failed(failure)) = record.1.outcomes.get("server/start") else { unreachable!() };
    let mut lines = failure.evidence.clone();
    lines.sort();
    lines.dedup();
    assert_eq!(lines.len(), failure.evidence.len(), "{:#?}", failure.evidence);
    sim.node("server").sh("kill $(cat /run/other.pid)");
    recovers(&sim, &record);
}
