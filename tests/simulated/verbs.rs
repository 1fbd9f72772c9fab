//! Whole verbs among simulated machines: see tests/support/sim.rs and tests/sim.

use std::fs;

use p1::internals::event::Outcome;
use serde_json::Value;

use super::run::{began, until};
use super::sim::{Sim, spec};

/// The same names, ids and disks: p1 makes machines that Vagrant then starts and destroys, and the other way round.
#[test]
fn machines_are_made_without_vagrant_and_either_takes_over_the_others() {
    let sim = Sim::new(&spec(1, 1, "engine: direct\n"));
    let by = |engine: &str| {
        let text = fs::read_to_string(sim.at("cluster.yaml")).unwrap();
        let other = if engine == "direct" { "vagrant" } else { "direct" };
        fs::write(
            sim.at("cluster.yaml"),
            text.replace(&format!("engine: {other}"), &format!("engine: {engine}")),
        )
        .unwrap();
    };
    // What a machine is given for its first boot stays until it has booted.
    sim.node("worker").vm_fault("fail-start=no memory");
    sim.p1(&["up"]).exits(1).says(&["no memory"]);
    sim.p1(&["start", "worker"]).exits(1).says(&["no memory"]);
    sim.node("worker").vm_fault("");
    sim.p1(&["start", "worker"]);
    sim.p1(&["up"]).exits(0);
    sim.p1(&["up"]).exits(0).says(&["nothing to do"]);
    let asked =
        || sim.calls().into_iter().filter(|c| c.starts_with("up ") || c.starts_with("destroy ")).count();
    assert_eq!(asked(), 0, "{:?}", sim.calls());
    // Nothing is left of what was for the first boot: another one would write it over what users have changed.
    for node in ["server", "worker"] {
        let xml = sim.sh(&format!("virsh dumpxml p1-sim-{node} --inactive"));
        assert!(
            xml.contains("<uuid>") && !xml.contains("tmpfiles.extra") && !xml.contains("smbios"),
            "{xml}"
        );
        // What was for it lets root in, so that no second login is needed.
        let log = sim.sh(&format!("cat .p1/sim/logs/*/{node}-ssh.log"));
        assert!(log.contains("logged in as root by") && !log.contains("as vagrant"), "{log}");
    }
    // As a p1 leaves it that is killed when the machine is defined and its id is not noted.
    let noted = sim.state().join(".vagrant/machines/worker/libvirt/id");
    let id = fs::read_to_string(&noted).unwrap();
    fs::remove_file(&noted).unwrap();
    fs::write(sim.state().join("making/worker"), "").unwrap();
    sim.p1(&["up"]).exits(0).says(&["p1-sim-worker was left half-made by an interrupted run"]);
    assert_ne!(fs::read_to_string(&noted).unwrap(), id);
    sim.p1(&["--yes", "destroy"]).exits(0);
    assert!(!sim.state().exists());
    sim.p1(&["up"]).exits(0);
    let id = fs::read_to_string(&noted).unwrap();

    by("vagrant");
    sim.p1(&["up"]).exits(0).says(&["nothing to do"]);
    sim.p1(&["stop", "worker"]).exits(0);
    sim.p1(&["start", "worker"]).exits(0);
    assert_eq!(asked(), 1, "{:?}", sim.calls());
    sim.p1(&["--yes", "replace", "worker"]).exits(0);
    let other = fs::read_to_string(sim.state().join(".vagrant/machines/worker/libvirt/id")).unwrap();
    assert_ne!(other, id);

    by("direct");
    let before = asked();
    sim.p1(&["up"]).exits(0).says(&["nothing to do"]);
    sim.p1(&["stop"]).exits(0);
    // A p1 that is ended before it has taken the first key out leaves that to the next start.
    let seed = "<sysinfo type='smbios'><entry>io.systemd.credential.binary:tmpfiles.extra=</entry></sysinfo>";
    sim.sh(&format!(
        "virsh dumpxml p1-sim-server >xml; sed -i \"s|<os>|{seed}<os>|\" xml; virsh define /dev/stdin <xml"
    ));
    assert!(sim.sh("virsh dumpxml p1-sim-server").contains("tmpfiles.extra"));
    sim.p1(&["start"]).exits(0);
    assert!(!sim.sh("virsh dumpxml p1-sim-server").contains("tmpfiles.extra"));
    sim.p1(&["--yes", "destroy"]).exits(0);
    assert_eq!(asked(), before);
    let left =
        sim.sh("virsh list --all --name; virsh net-list --all --name; virsh vol-list default; ls disks");
    assert!(!left.contains("sim"), "{left}");
}

#[test]
fn a_cluster_comes_stays_and_goes() {
    let sim = Sim::new(&spec(1, 1, ""));
    sim.p1(&["plan"]).exits(10);
    sim.p1(&["up"]).exits(0);
    assert_eq!(sim.node("server").sh("systemctl is-active k3s").trim(), "active");
    assert_eq!(sim.node("worker").sh("cat /proc/sys/kernel/hostname").trim(), "worker");
    // Its files came from a disk, which is gone.
    let staged = |node: &str| match &sim.last().outcomes[&format!("{node}/stage")] {
        Outcome::Done { detail } => detail.clone().unwrap(),
        other => panic!("{other:?}"),
    };
    for node in ["server", "worker"] {
        assert!(staged(node).starts_with("copied "), "{}", staged(node));
        assert_eq!(sim.node(node).sh("ls /dev/disk/by-id").trim(), "");
    }
    let volumes = sim.sh("virsh vol-list default");
    assert!(!volumes.contains("files"), "{volumes}");
    let keys = sim.node("worker").sh("cat /home/vagrant/.ssh/authorized_keys");
    assert!(!keys.contains("insecure"), "{keys}");
    sim.p1(&["status"]).exits(0);
    what_is_run_on_nodes(&sim);
    // What is done is not done again, and Vagrant is not asked.
    let calls = sim.calls();
    sim.p1(&["up"]).exits(0).says(&["nothing to do"]);
    sim.p1(&["up", "--deep"]).exits(0).says(&["nothing to do"]);
    assert_eq!(sim.calls(), calls);
    assert!(calls.iter().filter(|c| c.starts_with("up ")).count() == 1, "{calls:?}");

    sim.p1(&["killall"]).exits(0);
    let left = sim.node("worker").sh("pgrep -f containerd-shim || true; ip -br link");
    assert!(
        !left.contains("cni0") && left.lines().filter(|l| l.parse::<u32>().is_ok()).count() <= 1,
        "{left}"
    );
    sim.p1(&["status"]).exits(1);
    sim.p1(&["up"]).exits(0);

    sim.p1(&["--yes", "uninstall"]).exits(0);
    assert_eq!(
        sim.node("server").sh("ls /usr/local/bin /etc/rancher/k3s 2>/dev/null || true").trim(),
        "/usr/local/bin:"
    );
    // And its name is what it was.
    let names =
        sim.node("worker").sh("cat /etc/hostname /proc/sys/kernel/hostname; grep -c worker /etc/hosts || :");
    assert_eq!(names.split_whitespace().collect::<Vec<_>>(), ["debian", "debian", "0"]);
    // A machine that takes no disk while it runs gets them over SSH.
    sim.node("worker").vm_fault("no-hotplug");
    sim.p1(&["up"]).exits(0);
    assert!(staged("worker").starts_with("pushed ") && staged("server").starts_with("copied "));

    sim.p1(&["--yes", "destroy"]).exits(0);
    assert!(!sim.state().exists());
    let left = sim.sh(
        "virsh list --all --uuid; virsh net-list --all --name; virsh vol-list default; ls disks; ip -br link",
    );
    assert!(!left.contains("sim") && !left.contains("veth"), "{left}");
}

/// Words arrive as they were written, and what they end with is p1's end.
fn what_is_run_on_nodes(sim: &Sim) {
    for verb in [&["ssh", "worker"][..], &["exec", "worker"], &["exec", "worker", "--root"]] {
        let run = |command: &[&str]| sim.p1(&[verb, &["--"], command].concat());
        run(&["sh", "-c", "exit 7"]).exits(7);
        run(&["exit 7"]).exits(7);
        let words = run(&["printf", "[%s]", "a  b", "$HOME", "", "it's", "*"]).exits(0).stdout();
        assert!(words.ends_with("[a  b][$HOME][][it's][*]") || words.ends_with("[*]\n"), "{verb:?}: {words}");
    }
    sim.p1(&["exec", "worker", "--", "kill -9 $$"]).exits(137);
    // Also what another program prints has to reach its reader.
    for line in ["ssh server -- seq 3", "logs server", "kubectl get nodes", "exec -- seq 3", "status"] {
        let p1 = env!("CARGO_BIN_EXE_p1");
        let full = sim.sh(&format!("{p1} {line} 2>&1 >/dev/full || echo code $?"));
        assert!(full.contains("could not be written") && full.ends_with("code 1\n"), "{line}: {full}");
        let whole = sim.sh(&format!("{p1} {line} 2>/dev/null | cat"));
        assert!(whole.lines().count() > 2, "{line}: {whole}");
    }
    // Without the sign that divides them it is said how it is written.
    sim.p1(&["ssh", "worker", "uptime", "-p"]).exits(2).says(&["p1 ssh worker -- uptime -p"]);
    sim.p1(&["exec", "worker", "server", "uptime"]).exits(2).says(&["p1 exec worker server -- uptime"]);
    sim.p1(&["exec", "--timeout", "0s", "--", "true"]).exits(2);

    // For programs: one object a line, and the last says how it ended.
    let objects = |args: &[&str], code: i32| -> Vec<Value> {
        let out = sim.p1(&[&["-o", "json"], args].concat()).exits(code).stdout();
        let all = out.lines().map(|l| serde_json::from_str(l).unwrap_or_else(|e| panic!("{e}: {l}")));
        all.filter(|o: &Value| o["warning"].is_null()).collect()
    };
    let log = objects(&["logs", "worker", "-n", "3"], 0);
    assert!(log[0]["node"] == "worker" && log[0]["line"].is_string() && log.len() == 4, "{log:?}");
    let path = &objects(&["kubeconfig"], 0)[0]["kubeconfig"];
    assert!(path.as_str().unwrap().ends_with("/kubeconfig"), "{path}");
    let done = objects(&["exec", "--", "exit 3"], 3);
    assert!(done.iter().filter(|o| o["status"] == 3 && o["cause"].is_null()).count() == 2, "{done:?}");
    assert_eq!(done.last().unwrap()["code"], 3);
    sim.node("worker").sh("systemctl stop ssh");
    let done = objects(&["exec", "worker", "--", "true"], 1);
    sim.node("worker").sh("systemctl start ssh");
    assert!(
        done[0]["node"] == "worker" && done[0]["cause"].as_str().unwrap().contains("nothing listens"),
        "{done:?}"
    );
    assert_eq!(done[0]["cause"], done.last().unwrap()["cause"]);
}

#[test]
fn machines_that_are_off_are_started() {
    let sim = Sim::new(&spec(1, 1, ""));
    sim.p1(&["up"]).exits(0);
    let boot = sim.node("worker").sh("cat /proc/sys/kernel/random/boot_id");
    sim.p1(&["stop"]).exits(0);
    assert_eq!(
        (sim.node("server").state(), sim.node("worker").state()),
        ("shut off".into(), "shut off".into())
    );
    sim.p1(&["start"]).exits(0);
    assert_ne!(sim.node("worker").sh("cat /proc/sys/kernel/random/boot_id"), boot);
    // Behind p1's back.
    sim.node("worker").power_off();
    sim.p1(&["status"]).exits(1);
    sim.p1(&["up"]).exits(0);
    sim.p1(&["status"]).exits(0);
    sim.node("worker").pause();
    assert_eq!(sim.node("worker").state(), "paused");
    sim.p1(&["up"]).exits(0);
    sim.p1(&["status"]).exits(0);
}

/// One `vagrant up` makes all machines, and with few steps at a time the turn of a node's own comes when
/// its machine is half there.
#[test]
fn a_step_whose_turn_comes_late_finds_its_machine_in_the_making() {
    let sim = Sim::new(&spec(1, 3, ""));
    sim.node("worker-1").vm_fault("slow-disk=4");
    sim.node("worker-2").vm_fault("slow-domain=4");
    let said = sim.p1(&["--jobs", "1", "up"]).exits(0).stderr();
    assert!(!said.contains("interrupted run"), "{said}");
    assert_eq!(sim.calls().iter().filter(|c| c.starts_with("up ")).count(), 1, "{:?}", sim.calls());
}

#[test]
fn a_failed_install_leaves_the_others_alone_and_is_made_up_for() {
    let sim = Sim::new(&spec(1, 2, ""));
    sim.node("worker-1").fault("install-fail", "enable");
    sim.p1(&["up"]).exits(1).says(&["stand-in fault install-fail=enable", "p1 retry"]);
    let record = sim.last();
    assert!(record.passed("worker-2/ready") && record.passed("server/ready"), "{:?}", record.outcomes);
    assert!(matches!(record.outcomes["worker-1/install"], Outcome::Failed(_)));
    assert!(matches!(record.outcomes["worker-1/ready"], Outcome::Blocked { .. }));
    sim.node("worker-1").heal();
    sim.p1(&["retry"]).exits(0);
    let again: Vec<_> = began(&sim.last()).into_iter().filter(|s| record.passed(s)).collect();
    assert_eq!(again, [""; 0]);
}

/// The units behave as systemd's do where p1 relies on it.
#[test]
fn a_unit_that_crashes_is_restarted_and_says_so() {
    let sim = Sim::new(&spec(1, 1, "timeouts: {node_ready: 20s}\n"));
    sim.node("worker").fault("unit-crash", "");
    sim.p1(&["up"]).exits(1).says(&["k3s-agent crashes every time it starts", "stand-in fault unit-crash"]);
    let shown =
        sim.node("worker").sh("systemctl show -p NRestarts,ActiveState,SubState,UnitFileState k3s-agent");
    assert!(shown.contains("UnitFileState=enabled") && !shown.contains("NRestarts=0\n"), "{shown}");
    let journal = sim.node("worker").sh("journalctl -u k3s-agent -o cat -n 50 --no-pager");
    assert!(journal.contains("Main process exited, code=exited, status=1/FAILURE"), "{journal}");
    assert!(journal.contains("Scheduled restart job, restart counter is at 2."), "{journal}");
    sim.node("worker").heal();
    sim.p1(&["retry"]).exits(0);
    let job = "systemd-run --quiet --collect --unit=x sh -c 'echo said; sleep 60'; systemctl is-active x; \
               ! systemd-run --quiet --unit=x true 2>&1; systemctl stop x; ! systemctl is-active x; journalctl -u x -o cat";
    let said = sim.node("worker").sh(job);
    assert!(
        said.starts_with("active\nFailed to start transient")
            && said.contains("inactive")
            && said.contains("\nsaid\n"),
        "{said}"
    );
}

#[test]
fn a_lab_leaves_nothing_behind() {
    let sim = Sim::new(&spec(1, 0, ""));
    sim.p1(&["up"]).exits(0);
    let marker = sim.dir.path().display().to_string();
    let running = || {
        let processes = fs::read_dir("/proc").unwrap().flatten();
        let lines = processes.filter_map(|e| fs::read(e.path().join("cmdline")).ok());
        lines.filter(|l| String::from_utf8_lossy(l).contains(&marker)).count()
    };
    assert!(running() >= 2);
    drop(sim);
    until("all its processes are gone", || running() == 0);
    assert!(!fs::read_to_string("/proc/mounts").unwrap().contains(&marker));
}

/// What p1 wrote of its work, but for the files that are there to hold secrets.
fn written(sim: &Sim) -> String {
    let mut text = String::new();
    let mut dirs = vec![sim.state().join("runs"), sim.state().join("logs")];
    while let Some(dir) = dirs.pop() {
        for entry in fs::read_dir(dir).unwrap().flatten() {
            match entry.file_type().unwrap().is_dir() {
                true => dirs.push(entry.path()),
                false => text += &fs::read_to_string(entry.path()).unwrap(),
            }
        }
    }
    text
}

#[test]
fn a_backup_is_put_back_onto_the_same_machines_and_onto_new_ones() {
    use std::os::unix::fs::PermissionsExt;
    let sim = Sim::new(&spec(1, 1, ""));
    sim.p1(&["backup", "b"]).exits(1).says(&["has not been made yet"]);
    sim.p1(&["up"]).exits(0);
    // The stand-in's: this host may have one of its own, which speaks more than the stand-in knows.
    let kubectl = |line: &str| sim.node("server").sh(&format!("k3s kubectl {line}"));
    let password = || sim.node("worker").sh("cat /etc/rancher/node/password");
    kubectl("create namespace kept");
    kubectl("label node worker disk=fast");
    sim.p1(&["backup", "b"]).exits(0).says(&["k3s was stopped for the copy", "the API was away for"]);
    // Whatever comes next finds its server Ready.
    sim.p1(&["status"]).exits(0);
    // SQLite's own way, of Python here, needs no stop.
    let started = || sim.node("server").sh("systemctl show -p InvocationID k3s");
    let before = started();
    sim.node("server").sh(
        "printf '#!/bin/sh\\ngrep -q backup && cp \"$2\" \"$3\"\\n' >/usr/local/bin/python3; chmod +x /usr/local/bin/python3",
    );
    let out = sim.p1(&["backup", "online"]).exits(0).stderr();
    assert!(!out.contains("stopped") && started() == before, "{out}");
    sim.node("server").sh("rm /usr/local/bin/python3");
    let mode = fs::metadata(sim.at("b")).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let (token, then) = (fs::read_to_string(sim.state().join("token")).unwrap(), password());
    kubectl("create namespace lost");
    sim.p1(&["backup", "b"]).exits(2).says(&["exists already"]);

    let whole = fs::read(sim.at("b")).unwrap();
    fs::write(sim.at("cut"), &whole[..whole.len() / 2]).unwrap();
    sim.p1(&["--yes", "restore", "cut"]).exits(2).says(&["is damaged", "Nothing was changed"]);
    sim.p1(&["restore", "b"]).exits(2).says(&["there is no terminal to confirm on"]);
    assert!(kubectl("get namespaces").contains("lost"));

    sim.p1(&["--yes", "restore", "b"]).exits(0);
    let names = kubectl("get namespaces");
    assert!(names.contains("kept") && !names.contains("lost"), "{names}");
    sim.p1(&["plan", "--deep"]).exits(0);

    sim.p1(&["--yes", "destroy"]).exits(0);
    sim.p1(&["up"]).exits(0);
    assert_ne!(fs::read_to_string(sim.state().join("token")).unwrap(), token);
    assert_ne!(password(), then);
    sim.p1(&["--yes", "restore", "b"]).exits(0);
    assert!(kubectl("get namespaces").contains("kept"));
    assert!(
        kubectl("get node worker -o json").replace(": ", ":").contains("\"disk\":\"fast\""),
        "it is the same node to the cluster"
    );
    assert_eq!(fs::read_to_string(sim.state().join("token")).unwrap(), token);
    assert_eq!(password(), then);
    sim.p1(&["plan", "--deep"]).exits(0);
    let text = written(&sim);
    let secrets = token.lines().map(|l| l.split_once('=').unwrap().1).chain([then.trim()]);
    for secret in secrets {
        assert!(secret.len() > 8 && !text.contains(secret), "a secret is in the journal or in a log");
    }
}

#[test]
fn a_backup_and_a_restore_that_were_killed_are_gone_on_with() {
    let sim = Sim::new(&spec(1, 1, ""));
    sim.p1(&["up"]).exits(0);
    let server = sim.node("server");
    let killed_when = |args: &[&str], what: &str, come: &dyn Fn() -> bool| {
        let before = sim.runs().len();
        let running = sim.start(args);
        until(what, || sim.runs().len() > before && come());
        running.signal(nix::sys::signal::Signal::SIGKILL);
        running.end();
    };
    let active = || server.sh("systemctl is-active k3s || :").trim() == "active";
    let begun = |step: &str| began(&sim.last()).iter().any(|s| s == step);
    killed_when(&["backup", "b"], "the copy begins", &|| begun("cluster/copy"));
    assert!(!sim.at("b").exists());
    sim.p1(&["retry"]).exits(0);
    assert!(active());

    // In the middle of the copy, with k3s stopped for it; it is noted what k3s does while its files are copied.
    server.sh(
        "cat >/usr/local/bin/cp <<'X'\n#!/bin/sh\n[ \"$2\" != db ] || systemctl is-active k3s >>/run/k3s-was\n\
         if [ ! -e /run/held ]; then : >/run/held; until [ -e /run/go ]; do sleep 0.05; done; fi\n\
         exec /bin/cp \"$@\"\nX\nchmod +x /usr/local/bin/cp",
    );
    let held = || server.sh("ls /run").contains("held");
    killed_when(&["backup", "c"], "it copies", &held);
    assert!(!active() && !sim.at("c").exists());
    sim.p1(&["retry"]).exits(0);
    assert!(active() && sim.at("c").exists());
    assert_eq!(
        server.sh("cat /run/k3s-was; ls -A /var/lib/p1/backup /run/p1 2>/dev/null || :"),
        "inactive\ninactive\n/run/p1:\n"
    );
    // The copy is killed too, as for lack of memory: the next one knows that k3s was stopped for it.
    server.sh("rm /run/held");
    killed_when(&["backup", "e"], "it copies", &held);
    server.sh("r=$(cat /run/p1/pack/pid); t=$(pgrep -P $r); kill -9 $r; kill -9 -$t");
    assert!(!active());
    sim.p1(&["retry"]).exits(0);
    assert!(active() && sim.at("e").exists());
    // Nobody comes back: the copy goes on without p1, and k3s is started again.
    server.sh("rm /run/held");
    killed_when(&["backup", "d"], "it copies", &held);
    assert!(!active());
    server.sh(": >/run/go");
    until("k3s runs again", active);
    sim.p1(&["--yes", "retry"]).exits(0);
    assert!(active() && sim.at("d").exists());

    killed_when(&["--yes", "restore", "d"], "the data is put back", &|| begun("cluster/data"));
    sim.p1(&["retry"]).exits(0);
    sim.p1(&["plan", "--deep"]).exits(0);
}

#[test]
fn a_restore_that_does_not_succeed_never_costs_the_data_that_was_there() {
    let sim = Sim::new(&spec(1, 1, ""));
    sim.p1(&["up"]).exits(0);
    let server = sim.node("server");
    let kubectl = |line: &str| server.sh(&format!("k3s kubectl {line}"));
    let token = || fs::read_to_string(sim.state().join("token")).unwrap();
    let set_aside = |node: &str| sim.node(node).sh("ls /var/lib/rancher/k3s").contains("p1-former-");
    sim.p1(&["backup", "b"]).exits(0);
    kubectl("create namespace later");
    let as_before = || {
        sim.p1(&["up"]).exits(0);
        assert!(kubectl("get namespaces").contains("later"));
        assert!(!set_aside("server") && !set_aside("worker"));
        assert!(!sim.state().join("token.former").exists() && !sim.state().join("unfinished.json").exists());
        // A worker whose server came back again may register once more.
        until("nothing is to be done", || sim.p1(&["plan", "--deep"]).0.status.code() == Some(0));
    };

    // It fails: k3s does not come up with the data.
    let then = token();
    server.fault("unit-crash", "");
    sim.p1(&["--yes", "restore", "b"]).exits(1).says(&["the former data is back in its place"]);
    server.heal();
    assert_eq!(token(), then);
    as_before();

    // It is killed, in each of the steps between which there is no data or another's.
    let killed_in = |step: &str| {
        let before = sim.runs().len();
        let running = sim.start(&["--yes", "restore", "b"]);
        until(step, || sim.runs().len() > before && began(&sim.last()).iter().any(|s| s == step));
        running.signal(nix::sys::signal::Signal::SIGKILL);
        running.end();
    };
    for step in ["server/halt", "server/start"] {
        killed_in(step);
        let not_finished = ["was not finished", "p1 restore --undo"];
        for args in [
            &["up"][..],
            &["start"],
            &["plan"],
            &["status"],
            &["backup", "c"],
            &["--yes", "replace", "worker"],
        ] {
            sim.p1(args).exits(1).says(&not_finished);
        }
        let line = sim.p1(&["-o", "json", "status"]).exits(1).stdout();
        assert!(line.contains("\"unfinished\""), "{line}");
        if step == "server/start" {
            // Nothing but the way back starts the machine.
            server.power_off();
            sim.p1(&["--yes", "restore", "b"]).exits(1).says(&["p1 restore --undo"]);
        }
        sim.p1(&["restore", "--undo"]).exits(0);
        as_before();
    }
    sim.p1(&["restore", "--undo"]).exits(2).says(&["no restore is unfinished"]);

    // The return is cut off as well, and the restore gone on with: what comes back is still the data of before.
    killed_in("server/start");
    let undo = sim.start(&["restore", "--undo"]);
    until("the return begins", || began(&sim.last()).iter().any(|s| s == "cluster/undo"));
    undo.signal(nix::sys::signal::Signal::SIGKILL);
    undo.end();
    killed_in("cluster/data");
    sim.p1(&["restore", "--undo"]).exits(0);
    as_before();

    // The user ends it.
    let running = sim.start(&["--yes", "restore", "b"]);
    until("the data is put back", || began(&sim.last()).iter().any(|s| s == "cluster/data"));
    running.signal(nix::sys::signal::Signal::SIGINT);
    running.end().exits(130);
    as_before();

    // In the end it succeeds.
    killed_in("cluster/data");
    sim.p1(&["--yes", "restore", "b"]).exits(0);
    assert!(!kubectl("get namespaces").contains("later"));
    assert!(!set_aside("server") && !set_aside("worker"));
    sim.p1(&["plan", "--deep"]).exits(0);
}

#[test]
fn a_file_of_the_state_folder_that_is_lost_or_no_file_is_read_back_or_told() {
    let sim = Sim::new(&spec(1, 1, ""));
    sim.p1(&["up"]).exits(0);
    let at = |name: &str| sim.state().join(name);
    let started = || {
        ["server", "worker"].map(|n| sim.node(n).sh("systemctl show -p InvocationID,NRestarts k3s k3s-agent"))
    };
    let (token, then) = (fs::read_to_string(at("token")).unwrap(), started());
    let whole = || {
        assert_eq!(fs::read_to_string(at("token")).unwrap(), token);
        assert_eq!(started(), then, "nothing was restarted");
    };
    for text in [None, Some(""), Some("server=\n"), Some("\u{0}\u{1}")] {
        fs::remove_file(at("token")).unwrap();
        if let Some(text) = text {
            fs::write(at("token"), text).unwrap();
        }
        sim.p1(&["plan", "--deep"]).exits(0).says(&["nothing to do"]);
        assert!(
            !at("token").exists() || fs::read_to_string(at("token")).unwrap() != token,
            "plan touches nothing"
        );
        sim.p1(&["up", "--deep"]).exits(0).says(&["read back from server"]);
        whole();
    }
    // The server has to boot first; none is made meanwhile.
    fs::remove_file(at("token")).unwrap();
    sim.node("server").power_off();
    sim.p1(&["up"]).exits(0);
    assert_eq!(fs::read_to_string(at("token")).unwrap(), token);
    let then = started();

    // What keeps a reader for ever.
    let no_file = |path: &std::path::Path, of: &str| {
        let _ = fs::remove_file(path);
        match of {
            "a FIFO" => nix::unistd::mkfifo(path, nix::sys::stat::Mode::S_IRWXU).unwrap(),
            _ => std::os::unix::fs::symlink("/dev/zero", path).unwrap(),
        }
    };
    for of in ["a FIFO", "a device"] {
        let what = format!("it is {of}, not a file");
        for name in ["token", "cluster.json", "lock", "nodes.json"] {
            let kept = fs::read(at(name)).unwrap();
            no_file(&at(name), of);
            sim.p1(&["up"]).exits(1).says(&[&what]);
            fs::remove_file(at(name)).unwrap();
            fs::write(at(name), kept).unwrap();
        }
        no_file(&sim.at("odd"), of);
        sim.p1(&["restore", "odd"]).exits(2).says(&[&what]);
        sim.p1(&["box", "add", "odd", "--name", "odd"]).says(&["not a regular file"]);
    }
    // Without the key nobody gets in, and a new one opens nothing.
    let key = fs::read(at("id_ed25519")).unwrap();
    fs::remove_file(at("id_ed25519")).unwrap();
    for args in [&["exec", "--", "true"][..], &["verify"]] {
        sim.p1(args).exits(1).says(&["the only key that opens the cluster's machines"]);
    }
    sim.node("worker").sh("systemctl stop k3s-agent");
    sim.p1(&["up", "--deep"]).exits(1).says(&["the only key that opens the cluster's machines"]);
    assert!(!at("id_ed25519").exists());
    fs::write(at("id_ed25519"), key).unwrap();
    fs::set_permissions(at("id_ed25519"), std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
    sim.p1(&["up", "--deep"]).exits(0);
    assert_eq!(started()[0], then[0]);

    // A token of the user's own.
    sim.p1(&["--yes", "destroy"]).exits(0);
    fs::write(sim.at("secret"), "of-my-own.1\n").unwrap();
    sim.spec(&spec(1, 1, &format!("k3s: {{{}, token: {{file: secret}}}}\n", super::sim::K3S)));
    sim.p1(&["up"]).exits(0);
    let config = |node: &str| sim.node(node).sh("cat /etc/rancher/k3s/config.yaml");
    assert!(config("server").contains("token: of-my-own.1\n") && !config("worker").contains("of-my-own"));
    fs::write(sim.at("secret"), "another\n").unwrap();
    sim.p1(&["up"]).exits(1).says(&["has another token than the spec's `k3s.token` gives"]);
    assert!(!written(&sim).contains("of-my-own.1"));

    // A cause that the user mends on the host: the file in the spec is another one now.
    sim.p1(&["--yes", "destroy"]).exits(0);
    sim.spec(&spec(1, 0, ""));
    let good = fs::read_link(sim.at("k3s")).unwrap();
    fs::remove_file(sim.at("k3s")).unwrap();
    fs::write(sim.at("k3s"), "#!/bin/sh\nexit 1\n").unwrap();
    sim.p1(&["up"]).exits(1);
    fs::remove_file(sim.at("k3s")).unwrap();
    std::os::unix::fs::symlink(good, sim.at("k3s")).unwrap();
    sim.p1(&["retry"]).exits(0);
    sim.p1(&["plan", "--deep"]).exits(0);
}

/// Packets of this lab's host that had nowhere to go: to any place but the cluster's network there is
/// no way out of it.
fn strays(sim: &Sim) -> u64 {
    let text = sim.sh("grep ^Ip: /proc/net/snmp");
    let mut lines = text.lines().map(|l| l.split_whitespace());
    let at = lines.next().unwrap().position(|word| word == "OutNoRoutes").unwrap();
    lines.next().unwrap().nth(at).unwrap().parse().unwrap()
}

#[test]
fn offline_asks_nobody_but_the_cluster_and_tells_all_that_is_missing_at_once() {
    let bare = spec(1, 1, "k3s: {version: v1.34.1+k3s1}\n");
    let no_box = format!("box: {{url: \"https://192.0.2.1/b.box\", sha256: \"{}\"}}", "a".repeat(64));
    let sim = Sim::new(&bare.replace("box: {path: fake.box}", &no_box));
    let before = strays(&sim);
    let missing = ["p1 is offline", "the box (https://192.0.2.1/b.box)", "the checksums of k3s v1.34.1+k3s1"];
    sim.p1(&["--offline", "up"]).exits(3).says(&missing);
    assert_eq!(strays(&sim), before);
    assert!(!sim.state().exists(), "nothing was begun");
    // That it would have been seen:
    sim.p1(&["up"]).exits(1);
    assert!(strays(&sim) > before);
    sim.p1(&["--yes", "destroy"]);

    // From the files that the spec gives; on the other host there are none of them.
    sim.spec(&spec(1, 1, ""));
    let out = sim.p1(&["artifacts", "fetch", "folder"]).exits(0).stdout();
    assert!(out.contains("k3s v1.34.1+k3s1") && out.contains("/images.tar"), "{out}");
    sim.p1(&["artifacts", "verify", "folder"]).exits(0);
    sim.spec(&spec(1, 1, "k3s: {version: v1.34.1+k3s1, artifacts: {dir: folder}}\n"));
    let before = strays(&sim);
    sim.p1(&["--offline", "up"]).exits(0);
    sim.p1(&["status"]).exits(0);
    assert_eq!(strays(&sim), before);
    let images = sim.node("worker").sh("ls /var/lib/rancher/k3s/agent/images");
    assert_eq!(images.trim(), "images.tar");

    fs::write(
        sim.at(&format!("folder/{}/k3s", if cfg!(target_arch = "x86_64") { "amd64" } else { "arm64" })),
        "x",
    )
    .unwrap();
    sim.p1(&["artifacts", "verify", "folder"]).exits(1).says(&["another checksum"]);
}

#[test]
fn provisioners_run_once_in_their_order_and_again_when_what_they_are_made_from_changes() {
    let more = "provision:
  - {name: early, type: shell, path: early.sh, args: [a, b c], env: {API_TOKEN: 'very $(secret)'}}
  - {name: user, type: shell, inline: 'touch ~/mine; id -un', privileged: false, nodes: [worker]}
  - {name: conf, type: file, source: conf.d, destination: /opt/conf d, nodes: [worker]}
  - {name: one, type: file, source: conf.d/a, destination: '~/deep/er/', nodes: [worker]}
  - {name: site, type: ansible, playbook: site.yml, when: after-k3s, nodes: [worker]}
";
    let sim = Sim::new(&spec(1, 1, more));
    // k3s is not there yet; the secret is in the environment, and not shown.
    let script = "set -eu\n[ ! -e /etc/systemd/system/k3s.service ] || [ -s /root/early ]\n\
                  echo \"$1 $2 $API_TOKEN\" | tee -a /root/early\npwd\n";
    fs::write(sim.at("early.sh"), script.replace('\n', "\r\n")).unwrap();
    fs::create_dir_all(sim.at("conf.d/sub dir")).unwrap();
    fs::write(sim.at("conf.d/a"), "one\n").unwrap();
    fs::write(sim.at("conf.d/sub dir/b"), "two\n").unwrap();
    fs::write(sim.at("site.yml"), "- hosts: all\n").unwrap();
    sim.node("worker").vm_fault("fail-provision=Ansible failed to complete successfully.\n");

    let up = sim.p1(&["up"]).exits(1);
    up.says(&["ansible: fatal: [worker]: FAILED!"]);
    let record = sim.last();
    for step in ["server/provision-early", "worker/provision-one", "worker/ready", "server/ready"] {
        assert!(record.passed(step), "{step}: {:?}", record.outcomes);
    }
    assert!(matches!(record.outcomes["worker/provision-site"], Outcome::Failed(_)));
    let worker = sim.node("worker");
    assert_eq!(worker.sh("cat /root/early"), "a b c very $(secret)\n");
    let placed = "cat '/opt/conf d/sub dir/b' /home/vagrant/deep/er/a; stat -c %U /opt/conf\\ d/a /home/vagrant/mine \
                  /home/vagrant/deep /home/vagrant/deep/er/a; ls /var/lib/p1/provision";
    assert_eq!(worker.sh(placed), "two\none\nroot\nvagrant\nvagrant\nvagrant\n");

    worker.vm_fault("");
    sim.p1(&["retry"]).exits(0);
    assert_eq!(began(&sim.last()), ["worker/provision-site"]);
    assert_eq!(sim.calls().last().unwrap(), "provision worker --provision-with site --machine-readable");
    for verb in [&["up"][..], &["up", "--deep"]] {
        sim.p1(verb).exits(0).says(&["nothing to do"]);
    }

    fs::write(sim.at("conf.d/a"), "other\n").unwrap();
    sim.p1(&["up"]).exits(0);
    assert_eq!(began(&sim.last()), ["worker/provision-conf", "worker/provision-one"]);
    assert_eq!(worker.sh("cat '/opt/conf d/a' /home/vagrant/deep/er/a"), "other\nother\n");
    // Another secret is another input.
    sim.spec(&spec(1, 1, &more.replace("very", "quite")));
    sim.p1(&["up"]).exits(0);
    let mut again = began(&sim.last());
    again.sort();
    assert_eq!(again, ["server/provision-early", "worker/provision-early"]);
    assert_eq!(worker.sh("cat /root/early"), "a b c very $(secret)\na b c quite $(secret)\n");
    let told = sim.sh("grep -rlE '(very|quite) .\\(secret' .p1; stat -c %a .p1/sim/Vagrantfile; grep -rh 'a b c' .p1/sim/logs");
    assert!(told.starts_with(".p1/sim/Vagrantfile\n600\n") && told.contains(" a b c ***"), "{told}");

    // A machine that is recreated has none of it.
    sim.p1(&["--yes", "destroy", "worker"]).exits(0);
    sim.p1(&["up"]).exits(0);
    assert_eq!(worker.sh("cat /root/early; ls '/opt/conf d'"), "a b c quite $(secret)\na\nsub dir\n");
}

/// What is run for the whole cluster, on a node and on this host; what is run every time is no difference; a machine is
/// restarted where that is asked for, and its node is back.
#[test]
fn commands_run_around_a_run_when_the_cluster_is_up_and_every_time() {
    let more = "provision:
  - {name: first, type: local, when: before-up, inline: 'test ! -e .p1/sim/kubeconfig && echo new >>log; echo before >>log'}
  - {name: kernel, type: shell, inline: 'echo x >>/root/kernel', nodes: [worker], when: after-k3s, reboot: true}
  - {name: seed, type: shell, when: after-cluster, inline: 'k3s kubectl get nodes >/root/seed; echo x >>/root/seeds'}
  - {name: here, type: local, when: after-cluster, inline: 'echo \"$P1_CLUSTER $P1_NODES $P1_SERVER $1 $WORD\" >>log; test -s \"$KUBECONFIG\"', args: [arg], env: {WORD: s3cret-w0rd}}
  - {name: each, type: shell, run: always, inline: 'echo x >>/root/each', nodes: [worker]}
  - {name: last, type: local, path: last.sh}
  - {name: gone, type: local, when: after-destroy, inline: 'echo gone >>log'}
";
    let sim = Sim::new(&spec(1, 1, more));
    fs::write(sim.at("last.sh"), "#!/bin/bash\n[[ -e fail ]] && exit 3\necho after >>log\n").unwrap();
    let boot = || sim.node("worker").sh("cat /proc/sys/kernel/random/boot_id");
    sim.p1(&["up"]).exits(0);
    let log = || fs::read_to_string(sim.at("log")).unwrap();
    assert_eq!(log(), "new\nbefore\nsim server worker 192.168.56.110 arg s3cret-w0rd\nafter\n");
    let record = sim.last();
    let at = |step: &str| began(&record).iter().position(|s| s == step).unwrap_or_else(|| panic!("{step}"));
    assert_eq!((at("cluster/before-up"), at("cluster/after-up")), (0, began(&record).len() - 1));
    assert!(
        at("worker/ready") < at("server/provision-seed") && at("server/ready") < at("cluster/after-cluster")
    );
    let said = fs::read_to_string(sim.runs().last().unwrap()).unwrap() + &sim.sh("cat .p1/sim/cluster.json");
    assert!(!said.contains("s3cret-w0rd"), "{said}");
    // Its pods came back, and k3s is the one of that boot.
    assert!(!sim.node("server").sh("k3s kubectl get nodes -o json").contains("\"unschedulable\": true"));
    let then = boot();

    // Every time, and no difference.
    let plan = sim.p1(&["plan"]).exits(0).says(&["nothing to do"]).stdout();
    assert!(
        plan.contains("runs every time: cluster/before-up, worker/provision-each, cluster/after-up"),
        "{plan}"
    );
    sim.p1(&["status"]).exits(0);
    sim.p1(&["up"]).exits(0);
    assert_eq!(began(&sim.last()), ["cluster/before-up", "worker/provision-each", "cluster/after-up"]);
    let ran = "cat /root/kernel /root/each /root/seeds 2>/dev/null | wc -l; true";
    assert_eq!((sim.node("server").sh(ran).trim(), sim.node("worker").sh(ran).trim()), ("1", "3"));
    assert_eq!(boot(), then);

    // One that fails is a step that failed; another command is due once more.
    fs::write(sim.at("fail"), "").unwrap();
    sim.p1(&["up"]).exits(1).says(&["last exited with 3", "p1 retry"]);
    fs::remove_file(sim.at("fail")).unwrap();
    sim.p1(&["retry"]).exits(0);
    sim.spec(&spec(1, 1, &more.replace("WORD: s3cret-w0rd", "WORD: other")));
    sim.p1(&["plan"]).exits(10).says(&[]);
    sim.p1(&["up"]).exits(0);
    assert!(log().contains("arg other"), "{}", log());
    sim.p1(&["--yes", "destroy"]).exits(0);
    assert!(log().ends_with("gone\n"), "{}", log());
}

/// Where nobody could log in, a lab is not ready: machines would boot and be waited for.
#[test]
fn a_lab_says_what_its_host_lacks() {
    let dir = tempfile::tempdir().unwrap();
    let lab = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/sim/lab");
    let begin =
        format!("mount -t tmpfs none /usr/sbin && exec {lab} up {}", dir.path().join("lab").display());
    let mut command = std::process::Command::new("unshare");
    command.args(["--mount", "--propagation", "private", "/bin/sh", "-c", &begin]);
    let out = command.env("P1", env!("CARGO_BIN_EXE_p1")).output().unwrap();
    let said = String::from_utf8_lossy(&out.stderr);
    assert!(!out.status.success(), "{said}");
    assert!(said.contains("/usr/sbin/sshd is missing: apt-get install openssh-server"), "{said}");
}

/// What the demo makes is the real k3s wherever its download answers (here a web server that plays channels, releases and
/// source), and the stand-in, under another name, only where it does not, or where it is asked for.
#[test]
fn the_demo_says_first_and_last_who_plays_k3s() {
    let mut sim = Sim::new(&spec(1, 1, ""));
    let dir = sim.dir.path().to_owned();
    let repo = env!("CARGO_MANIFEST_DIR");
    sim.sh(&format!(
        "mkdir -p repo/examples repo/target/standin served/v1.34.1+k3s1\n\
         cp -r {repo}/examples/demo repo/examples/; cd repo/examples/demo; rm -rf .p1 k3s\n\
         sed -i 's,^box: .*,box: {{path: {0}/fake.box}},' cluster.yaml stand-in.yaml\n\
         cp -L {0}/k3s {0}/install.sh {0}/repo/target/standin/\n\
         cd {0}/served/v1.34.1+k3s1; cp -L {0}/k3s {0}/install.sh .; cp -L {0}/images.tar k3s-airgap-images-amd64.tar\n\
         sha256sum k3s k3s-airgap-images-amd64.tar >sha256sum-amd64.txt",
        dir.display()
    ));
    fs::write(
        sim.at("served/channels"),
        r#"{"data":[{"id":"stable","name":"stable","latest":"v1.34.1+k3s1"}]}"#,
    )
    .unwrap();
    for (name, path) in [("RELEASES", ""), ("SOURCE", ""), ("CHANNELS", "/channels")] {
        sim.env.push((format!("P1_K3S_{name}"), format!("http://127.0.0.1:8099{path}")));
    }
    sim.env.push(("P1".to_owned(), env!("CARGO_BIN_EXE_p1").to_owned()));
    let demo = |args: &[&str]| {
        let mut command = sim.command(dir.join("repo/examples/demo/run"));
        command.arg("--yes").args(args);
        super::run::Running::start(command, &dir).end()
    };
    let made = |name: &str| sim.at("repo/examples/demo/.p1").join(name).is_dir();

    let said = demo(&[]).exits(0).stderr();
    let told = "THE DOWNLOAD OF K3S DOES NOT ANSWER: k3s is played by a stand-in";
    let lines: Vec<&str> = said.lines().filter(|l| l.starts_with("demo: ")).collect();
    assert!(lines.len() == 2 && lines.iter().all(|l| l.contains(told)), "{said}");
    assert!(said.lines().last().unwrap().contains(told), "{said}");
    assert!(made("demo") && !made("demo-k3s"));
    demo(&["down"]).exits(0);

    let mut serving = sim.command("python3");
    serving
        .args(["-m", "http.server", "--bind", "127.0.0.1", "--directory"])
        .arg(sim.at("served"))
        .arg("8099");
    let mut server =
        serving.stderr(std::process::Stdio::null()).stdout(std::process::Stdio::null()).spawn().unwrap();
    until("the web server answers", || {
        let mut ask = sim.command("bash");
        ask.args(["-c", ": </dev/tcp/127.0.0.1/8099"])
            .stderr(std::process::Stdio::null())
            .status()
            .unwrap()
            .success()
    });
    // No container runs here: the page of the pods is played, as soon as its machine is there.
    let page = "until ip -br addr show eth0 2>/dev/null | grep -q 192.168; do sleep 0.1; done; mkdir -p /tmp/page; \
                echo hello >/tmp/page/index.html; python3 -m http.server --directory /tmp/page 30080 >/dev/null 2>&1 &";
    let running = {
        let mut command = sim.command(dir.join("repo/examples/demo/run"));
        command.arg("--yes");
        super::run::Running::start(command, &dir)
    };
    until("the server runs", || sim.virsh(&["list", "--all", "--name"]).contains("p1-demo-k3s-server"));
    until("its name is set", || running.stderr().contains("cluster `demo-k3s` is up"));
    sim.node("server").sh(page);
    let done = running.end().exits(0);
    assert!(!done.stderr().contains("DOES NOT ANSWER"), "{}", done.stderr());
    assert!(done.stdout().contains("http://192.168.57.110:30080 says: hello"), "{}", done.stdout());
    assert!(made("demo-k3s") && !made("demo"));

    // What was fetched once does without the download, and a cluster that is there is not turned into another.
    server.kill().unwrap();
    server.wait().unwrap();
    let done = demo(&["--offline"]).exits(0).says(&["nothing to do"]);
    assert!(done.stdout().contains("says: hello"), "{}", done.stdout());
    demo(&[]).exits(0).says(&["nothing to do"]);
    demo(&["down"]).exits(0);
    assert!(!made("demo-k3s"));
}

/// A user's own libvirt on a bridge of root's: p1 makes no network, a machine brings its address along and has it at later boots too, and
/// what the bridge lacks is said before anything is begun.
#[test]
fn machines_on_a_bridge_of_roots_bring_their_address_and_p1_changes_nothing_of_it() {
    let sim = Sim::new(&spec(1, 1, "libvirt: {uri: qemu:///session, bridge: br7}\n"));
    sim.sh("for dir in /usr/lib/qemu /usr/libexec; do
             [ -d $dir ] || continue
             mount -t tmpfs none $dir; install -m 4755 /bin/true $dir/qemu-bridge-helper; break
         done
         mount -t tmpfs none /mnt; mkdir /mnt/upper /mnt/work
         mount -t overlay none -o lowerdir=/etc,upperdir=/mnt/upper,workdir=/mnt/work /etc
         mkdir -p /etc/qemu; echo 'allow br7' >/etc/qemu/bridge.conf
         ip link add br7 type bridge; ip address add 192.168.56.1/24 dev br7; ip link set br7 up");
    sim.p1(&["doctor"]).exits(0);
    sim.sh("echo 'deny br7' >>/etc/qemu/bridge.conf");
    let done = sim.p1(&["up"]).exits(3);
    assert!(done.stdout().contains("does not allow br7"), "{}", done.stdout());
    assert!(!sim.state().exists());
    sim.sh("echo 'allow br7' >/etc/qemu/bridge.conf");

    sim.p1(&["up"]).exits(0);
    sim.p1(&["up"]).exits(0).says(&["nothing to do"]);
    assert_eq!(sim.sh("virsh net-list --all --name"), "");
    let xml = sim.sh("virsh dumpxml p1-sim-worker --inactive");
    assert!(xml.contains("<source bridge='br7'/>") && !xml.contains("tmpfiles.extra"), "{xml}");
    sim.p1(&["stop"]).exits(0);
    sim.p1(&["start"]).exits(0);
    sim.p1(&["fault", "link-down", "worker", "--for", "1m"]).exits(0);
    sim.p1(&["fault", "heal"]).exits(0);
    sim.p1(&["up", "--keep"]).exits(0);
    sim.p1(&["fork"]).exits(2).says(&["it is of qemu:///session on the bridge br7", "makes none"]);
    sim.p1(&["box", "bake"]).exits(2).says(&["no box is baked with qemu:///session"]);

    // Whatever the spec says by now, it is where it was made.
    let text = fs::read_to_string(sim.at("cluster.yaml")).unwrap();
    fs::write(sim.at("cluster.yaml"), text.replace("qemu:///session, bridge: br7", "qemu:///system"))
        .unwrap();
    let elsewhere = "made with qemu:///session on the bridge br7, and the spec says qemu:///system";
    sim.p1(&["--yes", "up"]).exits(2).says(&[elsewhere, "p1 destroy"]);
    sim.p1(&["--yes", "destroy"]).exits(0).says(&["it is kept"]);
    assert_eq!(sim.sh("virsh list --all --name").trim(), "");
    fs::write(sim.at("cluster.yaml"), text).unwrap();
    sim.p1(&["up"]).exits(0).says(&["is kept as of"]);
    sim.p1(&["--yes", "destroy"]).exits(0);
    assert!(sim.sh("ip -br link show br7").contains("br7"), "root's bridge stays");
}
