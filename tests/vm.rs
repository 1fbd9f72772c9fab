//! The life of a cluster on real machines: real Vagrant, vagrant-libvirt, libvirt and QEMU, in a lab
//! of its own (tests/lab), with a box that p1 built. k3s is played by the stand-in.
//!
//! `tests/run vm` makes what it needs and runs it; by hand, as root:
//! `tests/standin/package && cargo test --test vm -- --ignored --nocapture`. Without what it needs it
//! fails. Boxes and Vagrant's home are kept in `target/vm`, so that a second run is quicker.
//!
//! Vagrant makes the machines, the direct engine takes them over, and Vagrant takes them back for a provisioner of its own.
//! With `P1_TEST_ENGINE=direct` all of it is the direct engine's, but for that provisioner.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use p1::internals::event::Kind;
use p1::internals::journal::{self, Record};
use serde_json::Value;

const SERVER: &str = "192.168.56.110";
const WORKER: &str = "192.168.56.111";
const VERSION: &str = "v1.34.1+k3s1";
/// Another one at each boot.
const BOOT: &str = "cat /proc/sys/kernel/random/boot_id";

#[test]
#[ignore = "needs root, libvirt, QEMU and Vagrant, and some minutes: tests/run vm"]
fn a_cluster_lives_and_leaves_nothing() {
    let mut life = Life::new(&[("server", 1024), ("worker", 512)]);
    life.releases(&[VERSION], VERSION);

    life.phase("build the box (or find it)", |life| {
        life.host(600, &["box", "build"]).ok();
        life.box_is_whole();
    });
    life.phase("start the lab", |life| life.lab = Some(Lab::up()));

    life.phase("up", |life| {
        let watch = ArgvWatch::start(life.state().join("token"));
        life.p1(900, &["up"]).ok();
        assert!(watch.looked() > 0, "nobody looked at the processes");
        assert_eq!(watch.end(), Vec::<String>::new(), "the token is on a command line");
        life.is_ready_at(VERSION);
        let names = life.on_nodes("cat /proc/sys/kernel/hostname");
        assert_eq!(names, both("server", "worker"));
    });
    life.phase("look for secrets", Life::secrets_are_kept);
    life.phase("up again", |life| {
        let calls = life.tripwire();
        let out = life.p1(60, &["up"]).ok();
        assert!(!calls.exists(), "vagrant was started: {}", fs::read_to_string(&calls).unwrap());
        let begun = started(&life.last());
        assert!(begun.is_empty(), "{begun:?} ran on a cluster that was as it should be\n{}", out.text());
        life.p1(60, &["plan"]).ok();
        // That the wire would have been seen:
        let done = life.inside(60, &["vagrant", "--version"]);
        assert!(calls.exists() && done.code() == 97, "the tripwire is no good: {}", done.text());
        life.path = std::env::var("PATH").unwrap();
    });

    life.phase("snapshot save", |life| {
        life.on_nodes("echo then >/run/mark; echo then >/root/mark");
        life.p1(120, &["snapshot", "save", "then"]).ok();
        // Memory and disk.
        life.on_nodes("echo now >/run/mark; echo now >/root/mark; sync");
    });
    life.phase("snapshot restore", |life| {
        let begun = Instant::now();
        life.p1(120, &["--yes", "snapshot", "restore", "then"]).ok();
        println!("   all nodes Ready again after {:.1} s", begun.elapsed().as_secs_f64());
        life.is_as_kept();
        life.p1(60, &["--yes", "snapshot", "delete", "then"]).ok();
        assert!(life.p1(30, &["snapshot", "list"]).ok().stdout().is_empty());
    });

    life.phase("suspend, resume", |life| {
        life.on_nodes("echo then >/run/mark; echo then >/root/mark; sync");
        life.p1(120, &["suspend"]).ok();
        assert_eq!(life.virsh(&["list", "--name", "--state-shutoff"]).len(), 2);
        life.p1(120, &["resume"]).ok();
        assert_eq!(life.on_nodes("cat /run/mark /root/mark"), both("then\nthen", "then\nthen"));
        life.is_ready_at(VERSION);
    });
    life.phase("keep, destroy, and up restores it", |life| {
        life.p1(120, &["up", "--keep"]).says(0, "is kept");
        life.on_nodes("echo now >/run/mark; echo now >/root/mark; sync");
        life.p1(120, &["--yes", "destroy"]).says(0, "p1 kept remove");
        assert_eq!(life.virsh(&["list", "--all", "--name"]), [""; 0]);
        let volumes = life.virsh(&["vol-list", "default"]);
        assert!(
            !volumes.iter().any(|l| l.contains(".img") && !l.contains("p1-kept-") && !l.contains("_box_")),
            "{volumes:?}"
        );
        let begun = Instant::now();
        life.p1(120, &["up"]).says(0, "is as it was kept");
        println!("   restored from nothing in {:.1} s", begun.elapsed().as_secs_f64());
        life.is_as_kept();
    });
    life.phase("reset", |life| {
        life.on_nodes("echo now >/run/mark; echo now >/root/mark; sync");
        life.p1(120, &["--yes", "reset"]).ok();
        life.is_as_kept();
        life.p1(60, &["up"]).ok();
        assert_eq!(started(&life.last()), [""; 0]);
    });

    life.phase("a worker is cut off, and it heals by itself", |life| {
        let rules = "iptables -t raw -S | grep -c DROP; true";
        life.p1(60, &["fault", "partition", "worker", "--for", "25s"]).ok();
        assert_eq!(life.on_nodes(rules), both("0", "2"));
        life.p1(60, &["status"]).says(0, "worker is under `partition`");
        let begun = Instant::now();
        while life.state().join("faults.json").exists() {
            assert!(begun.elapsed() < Duration::from_secs(60), "it does not heal");
            thread::sleep(Duration::from_millis(200));
        }
        assert_eq!(life.on_nodes(rules), both("0", "0"));
        life.is_ready_at(VERSION);
    });

    life.phase("fork twice", |life| {
        life.on_nodes("echo then >/root/mark");
        let begun = Instant::now();
        life.p1(600, &["fork", "-n", "2"]).ok();
        println!("   two forks of two nodes Ready after {:.1} s", begun.elapsed().as_secs_f64());
        let folder =
            |n: u8| life.home.join(format!(".local/share/p1/forks/{NAME}-f{n}")).display().to_string();
        let (one, two) = (folder(1), folder(2));
        let there = |folder: &str, args: &[&str]| {
            life.inside(300, &[&[env!("CARGO_BIN_EXE_p1"), "-C", folder], args].concat()).ok()
        };
        let read = |folder: &str| {
            there(folder, &["exec", "--root", "--", "cat /root/mark"]).stdout().matches("| then").count()
        };
        there(&one, &["exec", "--root", "--", "echo one >/root/mark; sync"]);
        assert_eq!((read(&one), read(&two)), (0, 2));
        assert_eq!(life.on_nodes("cat /root/mark"), both("then", "then"));
        for folder in [&one, &two] {
            // By what it says of its API, from this host.
            let path = there(folder, &["kubeconfig"]).stdout();
            let text = fs::read_to_string(path.trim()).unwrap();
            let url = text.lines().find_map(|l| l.trim().strip_prefix("server: ")).unwrap();
            assert!(url.starts_with("https://127.0.0.1:"), "{url}");
            let answer =
                life.inside(30, &["curl", "-sk", "--max-time", "20", &format!("{url}/cacerts")]).ok();
            assert!(answer.stdout().contains("BEGIN CERTIFICATE"));
            there(folder, &["status"]);
            there(folder, &["--yes", "destroy"]);
        }
        assert_eq!(life.virsh(&["list", "--all", "--name"]).len(), 2);
        // What the cluster was kept as, and nothing of theirs.
        let volumes = life.virsh(&["vol-list", "default"]);
        let kept = volumes.iter().filter(|l| l.contains(" p1-kept-")).count();
        assert!(kept == 4 && !volumes.iter().any(|l| l.contains("-f1-")), "{volumes:?}");
        life.is_ready_at(VERSION);
    });

    life.phase("the disks are no longer disposable", |life| {
        assert_eq!(life.caches(), both("unsafe", "unsafe"));
        life.edit("disposable: true\n", "");
        // Named, and nothing is done about it while the machines run.
        let status = life.p1(120, &["-o", "json", "status"]).ok();
        assert_eq!(status.stdout().matches(r#""kind":"disk""#).count(), 2, "{}", status.text());
        life.p1(60, &["plan"]).ok();
        life.p1(180, &["stop"]).ok();
        assert_eq!(life.virsh(&["list", "--name", "--state-shutoff"]).len(), 2);
    });
    life.phase("start by the other engine is killed, and retry goes on", |life| {
        life.engine("direct");
        life.killed_at("worker/vm", &["start"]);
        life.goes_on(&["retry"]);
        life.is_ready_at(VERSION);
        assert_eq!(life.caches(), both("writeback", "writeback"));
    });

    life.phase("killall, uninstall", |life| {
        let units = "systemctl is-active k3s k3s-agent; true";
        let before = life.on_nodes(units);
        assert_eq!(before, both("active\ninactive", "inactive\nactive"));
        life.p1(300, &["killall"]).ok();
        assert_eq!(life.on_nodes(units), both("inactive\ninactive", "inactive\ninactive"));
        let left = "for f in /usr/local/bin/k3s* /etc/systemd/system/k3s* /etc/rancher /var/lib/rancher \
                    /run/k3s; do [ ! -e \"$f\" ] || echo \"$f\"; done; command -v k3s; true";
        assert!(life.on_nodes(left).values().all(|text| text.contains("/var/lib/rancher")));
        life.p1(180, &["--yes", "uninstall"]).ok();
        assert_eq!(life.on_nodes(left), both("", ""));
        assert_eq!(life.virsh(&["list", "--name", "--state-running"]).len(), 2, "the machines stay");
        assert!(!life.state().join("kubeconfig").exists());
    });
    life.phase("up, with a provisioner, an application and autostart", |life| {
        life.engine("vagrant");
        let examples = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples");
        fs::copy(examples.join("nginx/web.yaml"), life.dir.join("web.yaml")).unwrap();
        let playbook =
            "- hosts: all\n  gather_facts: false\n  tasks:\n    - raw: echo provisioned >/root/site\n";
        fs::write(life.dir.join("site.yml"), playbook).unwrap();
        let provisioners = if all_direct() { SHELL } else { ANSIBLE };
        let more = format!("k3s: {{channel: stable}}\nautostart: true\n{provisioners}{APPLICATION}");
        life.edit("k3s: {channel: stable}\n", &more);
        life.p1(60, &["-v", "plan"]).says(10, "start with this host");
        // What Vagrant asks for Ansible's version need not be of the Ansible that runs the playbook.
        life.shadows(&["ansible", "python3"]);
        life.p1(900, &["up"]).ok();
        life.is_ready_at(VERSION);
        assert_eq!(life.on_nodes("cat /root/site 2>/dev/null; true"), both("", "provisioned"));
        let pods = life.kubectl("server", "get pods -n shop");
        assert_eq!(pods.matches("1/1     Running").count(), 3, "{pods}");
        life.p1(60, &["up"]).ok();
        assert_eq!(started(&life.last()), [""; 0]);
    });
    life.phase("the host loses its power, and comes back without p1", |life| {
        let boots = life.on_nodes(BOOT);
        // Each is acknowledged when it is on the disk, by the node's word. (With `disposable: true` the file is gone.)
        let write = "for i in 1 2 3 4 5 6 7 8; do echo $i >>/root/acked; sync /root/acked && echo $i; done";
        let acked = life.on_nodes(write);
        assert_eq!(acked["server"], "1\n2\n3\n4\n5\n6\n7\n8");
        life.kubectl("server", "create namespace acked");
        life.lab.as_ref().unwrap().power_cut();
        life.come_back(&boots.into_values().collect::<Vec<_>>());
        assert_eq!(life.on_nodes("cat /root/acked"), acked);
        assert!(life.kubectl("server", "get namespaces").contains("acked"));
        life.is_ready_at(VERSION);
        life.p1(300, &["up"]).ok();
    });

    life.phase("a worker never gets its address, and retry switches it off and on", |life| {
        let card = life.virsh(&["domiflist", "p1-life-worker"]);
        let mac = card.iter().find_map(|l| l.split_whitespace().find(|w| w.contains(':'))).unwrap();
        life.p1(180, &["stop", "worker"]).ok();
        life.virsh(&["domif-setlink", "p1-life-worker", mac, "down", "--config"]);
        life.edit("boot: 15m", "boot: 40s");
        let out = life.p1(240, &["up", "worker"]);
        out.says(1, "did not answer at");
        out.says(1, "virsh -c qemu:///system console p1-life-worker");
        out.says(1, "Reached target");
        assert_eq!(mode(&life.state().join("console/worker.log")), 0o600);
        // From its next start on.
        life.virsh(&["domif-setlink", "p1-life-worker", mac, "up", "--config"]);
        life.edit("boot: 40s", "boot: 15m");
        life.p1(600, &["retry"]).says(0, "it is power-cycled");
        life.is_ready_at(VERSION);
    });
    life.phase("destroy is killed, and retry goes on, though the storage pool was stopped", |life| {
        assert!(life.virsh(&["vol-list", "default"]).iter().any(|l| l.contains("p1-life-worker")));
        life.virsh(&["pool-destroy", "default"]);
        life.killed_at("worker/machine", &["--yes", "destroy"]);
        life.p1(300, &["--yes", "retry"]).ok();
        assert_eq!(life.virsh(&["list", "--all", "--name"]), [""; 0]);
        assert_eq!(life.virsh(&["net-list", "--all", "--name"]), [""; 0]);
        let volumes = || life.virsh(&["vol-list", "default"]).into_iter().filter(|l| l.contains(".img"));
        let other = |line: &String| !line.contains(" p1-kept-") && !line.contains("_box_");
        assert_eq!(volumes().filter(other).collect::<Vec<_>>(), [""; 0]);
        assert!(!life.dir.join(".p1").exists());
        let list = life.p1(30, &["-o", "json", "kept", "list"]).ok().stdout();
        let kept: Value = serde_json::from_str(list.lines().next().unwrap()).unwrap();
        life.p1(60, &["kept", "remove", kept["kept"].as_str().unwrap()]).ok();
        assert_eq!(volumes().collect::<Vec<_>>(), [""; 0]);
    });
    life.phase("a box is baked, and nothing in it is of its machine", |life| {
        life.p1(900, &["box", "bake"]).ok();
        assert_eq!(life.virsh(&["list", "--all", "--name"]), [""; 0]);
        life.baked_is_nobody();
    });
    life.phase("up from the baked box, and destroy", |life| {
        life.p1(900, &["up"]).ok();
        life.is_ready_at(VERSION);
        let begun = started(&life.last());
        let copied = |step: &&String| step.ends_with("/stage") || step.ends_with("/install");
        assert_eq!(begun.iter().filter(copied).count(), 0, "{begun:?}");
        let ids = life.on_nodes("cat /etc/machine-id /etc/ssh/ssh_host_ed25519_key.pub");
        assert!(ids["server"] != ids["worker"] && ids["server"].len() > 60, "{ids:?}");
        life.p1(60, &["up"]).ok();
        assert_eq!(started(&life.last()), [""; 0]);
        life.p1(300, &["--yes", "destroy"]).ok();
    });
    life.print_times();
}

fn both(server: &str, worker: &str) -> BTreeMap<String, String> {
    BTreeMap::from([("server".into(), server.into()), ("worker".into(), worker.into())])
}

/// Whether Vagrant has no part in it.
fn all_direct() -> bool {
    std::env::var_os("P1_TEST_ENGINE").is_some_and(|engine| engine == "direct")
}

/// The steps that a run really ran.
fn started(record: &Record) -> Vec<String> {
    let step = |e: &p1::internals::event::Event| match &e.kind {
        Kind::StepStarted { step, .. } => Some(step.clone()),
        _ => None,
    };
    record.events.iter().filter_map(step).collect()
}

const SHELL: &str = "provision: [{name: site, type: shell, inline: \"echo provisioned >/root/site\", when: after-k3s, nodes: [worker]}]\n";
const ANSIBLE: &str = "provision: [{name: site, type: ansible, playbook: site.yml, when: after-k3s, nodes: [worker], become: true}]\n";
const APPLICATION: &str = "namespaces: [shop]\nmanifests: [{path: web.yaml, namespace: shop}]\n";

/// The cluster's name.
const NAME: &str = "life";

/// Where things are, and what was seen of the run so far.
struct Life {
    /// Nodes and their addresses.
    nodes: Vec<(String, String)>,
    /// Where p1 finds releases of k3s, if not where the spec says.
    env: Vec<String>,
    dir: PathBuf,
    home: PathBuf,
    path: String,
    lab: Option<Lab>,
    times: Vec<(&'static str, Duration)>,
    /// All that p1 printed.
    said: Mutex<String>,
}

impl Life {
    /// A cluster of these nodes and their memory, the servers first, of k3s' stable release.
    fn new(nodes: &[(&str, u32)]) -> Self {
        assert!(nix::unistd::Uid::effective().is_root(), "labs and boxes need root");
        let target = Path::new(env!("CARGO_TARGET_TMPDIR")).parent().unwrap();
        let standin = target.join("standin");
        for file in ["k3s", "install.sh"] {
            assert!(standin.join(file).is_file(), "there is no {file}: run tests/standin/package");
        }
        let home = target.join("vm/home");
        let dir = target.join("vm").join(NAME);
        // What a killed run left is of no use: its lab is gone.
        let _ = fs::remove_dir_all(&dir);
        fs::create_dir_all(&dir).unwrap();
        fs::create_dir_all(&home).unwrap();
        let engine = if all_direct() { "direct" } else { "vagrant" };
        let spec = format!(
            "name: {NAME}\nprovider: libvirt\nengine: {engine}\ndisposable: true\nbox: debian-12\nnetwork: {{cidr: 192.168.56.0/24}}\n\
             retry: {{attempts: 2, backoff: 500ms}}\ntimeouts: {{boot: 15m, ssh: 5m}}\nk3s: {{channel: stable}}\nnodes:\n"
        );
        fs::write(dir.join("cluster.yaml"), spec).unwrap();
        let path = std::env::var("PATH").unwrap();
        let (times, said) = (Vec::new(), Mutex::default());
        let mut life = Self { nodes: Vec::new(), env: Vec::new(), dir, home, path, lab: None, times, said };
        life.add(nodes);
        life
    }

    /// More nodes in the spec.
    fn add(&mut self, nodes: &[(&str, u32)]) {
        let path = self.dir.join("cluster.yaml");
        let mut spec = fs::read_to_string(&path).unwrap();
        for (node, memory) in nodes {
            let role = if node.starts_with("server") { "server" } else { "worker" };
            let ip = format!("192.168.56.{}", 110 + self.nodes.len());
            spec += &format!("  - {{name: {node}, role: {role}, ip: {ip}, cpus: 1, memory: {memory}}}\n");
            self.nodes.push(((*node).to_owned(), ip));
        }
        fs::write(path, spec).unwrap();
    }

    /// Places of k3s' releases with the stand-in in these versions, of which one is the stable one.
    fn releases(&mut self, versions: &[&str], stable: &str) {
        // A release never changes, so p1 keeps what it knows of one; the stand-in does.
        let _ = fs::remove_dir_all(self.home.join(".cache/p1/artifacts/releases"));
        let package = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/standin/package");
        let standin = self.home.parent().unwrap().parent().unwrap().join("standin");
        let out = bounded(300).arg(package).arg(&standin).args(versions).output().unwrap();
        Done(out).ok();
        let channels = self.dir.join("channels.json");
        let text = format!(r#"{{"data":[{{"id":"stable","name":"stable","latest":"{stable}"}}]}}"#);
        fs::write(&channels, text).unwrap();
        let releases = standin.join("releases");
        for (name, place) in
            [("P1_K3S_RELEASES", &releases), ("P1_K3S_SOURCE", &releases), ("P1_K3S_CHANNELS", &channels)]
        {
            self.env.push(format!("{name}=file://{}", place.display()));
        }
    }

    /// The spec with something of it replaced.
    #[track_caller]
    fn edit(&self, from: &str, to: &str) {
        let path = self.dir.join("cluster.yaml");
        let text = fs::read_to_string(&path).unwrap();
        assert!(text.contains(from), "`{from}` is not in\n{text}");
        fs::write(path, text.replacen(from, to, 1)).unwrap();
    }

    /// The machines are that engine's from now on.
    fn engine(&self, engine: &str) {
        if !all_direct() {
            let other = if engine == "direct" { "vagrant" } else { "direct" };
            self.edit(&format!("engine: {other}\n"), &format!("engine: {engine}\n"));
        }
    }

    fn phase(&mut self, name: &'static str, work: impl FnOnce(&mut Self)) {
        println!("-- {name}");
        let begun = Instant::now();
        work(self);
        let took = begun.elapsed();
        println!("-- {name}: {:.1} s", took.as_secs_f64());
        self.times.push((name, took));
    }

    fn print_times(&self) {
        println!("\nphase                              seconds");
        for (name, took) in &self.times {
            println!("{name:32} {:9.1}", took.as_secs_f64());
        }
    }

    fn state(&self) -> PathBuf {
        self.dir.join(".p1").join(NAME)
    }

    /// The journal of the newest run.
    fn last(&self) -> Record {
        journal::latest(&self.state().join("runs")).unwrap().expect("a run")
    }

    /// p1 outside the lab.
    fn host(&self, seconds: u32, args: &[&str]) -> Done {
        let mut command = bounded(seconds);
        command.arg(env!("CARGO_BIN_EXE_p1")).arg("-f").arg(self.dir.join("cluster.yaml")).args(args);
        self.finish(command.env("HOME", &self.home))
    }

    /// The box is what its definition says, in the form that Vagrant reads.
    fn box_is_whole(&self) {
        let boxes = p1::internals::boxes::library::Library::new(self.home.join(".local/share/p1/boxes"));
        let built = boxes.get("debian-12").unwrap().unwrap();
        assert!(built.packages.is_sorted() && built.packages.len() > 100);
        for wanted in &p1::internals::boxes::load("debian-12", None).unwrap().packages {
            assert!(built.packages.iter().any(|p| p.split('=').next() == Some(wanted)), "{wanted}");
        }
        let list = Command::new("tar").arg("-tf").arg(boxes.path("debian-12")).output().unwrap();
        let list = String::from_utf8(list.stdout).unwrap();
        let mut names: Vec<&str> = list.lines().collect();
        names.sort_unstable();
        assert_eq!(names, ["Vagrantfile", "box.img", "metadata.json", "packages.txt"]);
        // Nothing of the work is left, wherever it was done.
        let find = Command::new("find").arg(&self.home).args(["-name", ".p1-box-*"]).output().unwrap();
        assert_eq!(String::from_utf8_lossy(&find.stdout), "");
    }

    /// What a machine is known by is in no file of the baked box, and its init begins no k3s. The box goes with it.
    fn baked_is_nobody(&self) {
        let library = p1::internals::boxes::library::Library::new(self.home.join(".local/share/p1/boxes"));
        let all = library.list().unwrap();
        let baked = |m: &&p1::internals::boxes::Manifest| m.name.starts_with("debian-12-v");
        let name = all.iter().find(baked).expect("a baked box").name.clone();
        let work = self.dir.join("baked");
        fs::create_dir_all(&work).unwrap();
        let sh = |line: &str| {
            let out = bounded(120).args(["sh", "-ec", line]).current_dir(&work).output().unwrap();
            Done(out).ok().stdout()
        };
        sh(&format!("tar -xf '{}' box.img", library.path(&name).display()));
        sh("qemu-img convert -O raw box.img disk.raw");
        let ask =
            |what: &str| sh(&format!("/sbin/debugfs -R '{what}' 'disk.raw?offset=1048576' 2>/dev/null"));
        let names = |dir: &str| -> Vec<String> {
            let lines = ask(&format!("ls -p {dir}"));
            let all = lines.lines().filter_map(|l| l.split('/').nth(5).map(str::to_owned));
            all.filter(|name| ![".", "..", ""].contains(&name.as_str())).collect()
        };
        let none: [&str; 0] = [];
        assert_eq!((ask("cat /etc/machine-id").as_str(), ask("cat /etc/hostname").trim()), ("", "debian-12"));
        assert!(!names("/etc/ssh").iter().any(|n| n.starts_with("ssh_host_")), "{:?}", names("/etc/ssh"));
        let keys = ask("cat /home/vagrant/.ssh/authorized_keys");
        assert!(keys.lines().count() == 1 && keys.contains("vagrant insecure public key"), "{keys}");
        assert_eq!(names("/home/vagrant/.ssh"), ["authorized_keys"]);
        assert_eq!(names("/root"), [".bashrc", ".profile"]);
        for gone in ["/etc/rancher", "/var/lib/rancher/k3s/server", "/var/lib/kubelet", "/var/log/journal"] {
            assert_eq!(names(gone), none, "{gone}");
        }
        for gone in ["/var/lib/dhcp", "/var/lib/systemd/network", "/tmp", "/var/tmp"] {
            assert_eq!(names(gone), none, "{gone}");
        }
        let kept = names("/var/lib/systemd");
        assert!(!kept.iter().any(|n| n.contains("seed") || n.contains("secret")), "{kept:?}");
        let mut noted = names("/var/lib/p1");
        noted.sort();
        assert_eq!(noted, ["baked", "files", "install.sh"]);
        assert!(!names("/etc/systemd/system/multi-user.target.wants").iter().any(|n| n.contains("k3s")));
        assert_eq!(names("/usr/local/bin"), ["k3s"]);
        assert!(ask("stats").contains("Filesystem state:         clean"));
        fs::remove_dir_all(&work).unwrap();
    }

    /// p1 in the lab.
    fn p1(&self, seconds: u32, args: &[&str]) -> Done {
        let file = self.dir.join("cluster.yaml");
        let mut line = vec![env!("CARGO_BIN_EXE_p1"), "-f", file.to_str().unwrap()];
        line.extend(args);
        self.inside(seconds, &line)
    }

    /// p1 in the lab, not waited for.
    fn start(&self, args: &[&str]) -> Child {
        let file = self.dir.join("cluster.yaml");
        let mut command = Command::new(lab_script());
        self.enter(&mut command).arg(env!("CARGO_BIN_EXE_p1")).arg("-f").arg(file).args(args);
        command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()
    }

    /// p1 in the lab, killed when that step has begun.
    #[track_caller]
    fn killed_at(&self, step: &str, args: &[&str]) {
        let runs = || journal::runs(&self.state().join("runs"));
        let (before, begun) = (runs().len(), format!(r#""step_started","step":"{step}""#));
        let mut running = self.start(args);
        let bound = Instant::now() + Duration::from_secs(900);
        loop {
            let text = runs().get(before).map(|run| fs::read_to_string(run).unwrap()).unwrap_or_default();
            if text.contains(&begun) {
                break;
            }
            assert!(running.try_wait().unwrap().is_none(), "it ended:\n{text}");
            assert!(Instant::now() < bound, "it never came to {step}:\n{text}");
            thread::sleep(Duration::from_millis(50));
        }
        // Of the lab's processes alone, as it has its own.
        self.inside(30, &["pkill", "-KILL", "-x", "p1"]).ok();
        assert!(!running.wait().unwrap().success());
    }

    /// p1 in the lab; what had passed in the run before is not begun again.
    #[track_caller]
    fn goes_on(&self, args: &[&str]) {
        let before = self.last();
        self.p1(900, args).ok();
        let again: Vec<_> = started(&self.last()).into_iter().filter(|step| before.passed(step)).collect();
        assert!(again.is_empty(), "{again:?} had passed and ran again");
    }

    /// Any command in the lab.
    fn inside(&self, seconds: u32, line: &[&str]) -> Done {
        let mut command = bounded(seconds);
        command.arg(lab_script());
        self.finish(self.enter(&mut command).args(line))
    }

    fn enter<'c>(&self, command: &'c mut Command) -> &'c mut Command {
        let lab = self.lab.as_ref().expect("the lab is up");
        command.args(["enter", &lab.0, "env"]).args(&self.env);
        // The programs that a lab needs itself are found by its own PATH.
        command.arg(format!("HOME={}", self.home.display())).arg(format!("PATH={}", self.path))
    }

    /// What the server's own kubectl says, for root.
    #[track_caller]
    fn kubectl(&self, server: &str, args: &str) -> String {
        let line = format!("k3s kubectl {args}");
        self.p1(120, &["exec", server, "--root", "--", &line]).ok().stdout()
    }

    fn finish(&self, command: &mut Command) -> Done {
        for name in ["XDG_DATA_HOME", "XDG_CACHE_HOME", "P1_FILE"] {
            command.env_remove(name);
        }
        let done = Done(command.output().unwrap());
        self.said.lock().unwrap().push_str(&done.text());
        done
    }

    /// What a script of root's prints on each node.
    fn on_nodes(&self, script: &str) -> BTreeMap<String, String> {
        let out = self.p1(120, &["-o", "json", "exec", "--root", "--", script]).ok();
        let mut all: BTreeMap<String, Vec<String>> =
            self.nodes.iter().map(|(name, _)| (name.clone(), Vec::new())).collect();
        for line in out.stdout().lines() {
            let line: Value = serde_json::from_str(line).unwrap();
            if let Some(text) = line["line"].as_str() {
                all.get_mut(line["node"].as_str().unwrap()).unwrap().push(text.to_owned());
            }
        }
        all.into_iter().map(|(node, lines)| (node, lines.join("\n"))).collect()
    }

    /// The lines that virsh prints, but for empty ones.
    fn virsh(&self, args: &[&str]) -> Vec<String> {
        let mut line = vec!["virsh", "-q", "-c", "qemu:///system"];
        line.extend(args);
        let out = self.inside(30, &line).ok().stdout();
        out.lines().filter(|l| !l.trim().is_empty()).map(str::to_owned).collect()
    }

    /// By node: the cache of its machine's disk.
    fn caches(&self) -> BTreeMap<String, String> {
        let of = |node: &str| {
            let xml = self.virsh(&["dumpxml", &format!("p1-{NAME}-{node}")]);
            let driver = xml.iter().find(|l| l.trim().starts_with("<driver name='qemu'")).expect("a disk");
            driver.split("cache='").nth(1).unwrap().split('\'').next().unwrap().to_owned()
        };
        self.nodes.iter().map(|(node, _)| (node.clone(), of(node))).collect()
    }

    /// Waits until all machines have booted, none of these boots is still on, and all nodes are Ready.
    fn come_back(&self, boots: &[String]) {
        let bound = Instant::now() + Duration::from_secs(900);
        let back = || {
            let out = self.p1(60, &["-o", "json", "exec", "--root", "--", BOOT]);
            let nodes = self.p1(60, &["kubectl", "get", "nodes", "-o", "json"]);
            let list: Value = serde_json::from_str(&nodes.stdout()).unwrap_or_default();
            // The API goes on to say what it heard last: a Ready counts with the boot that is on now.
            let ready = |node: &&Value| {
                let status = &node["status"];
                let boot = status["nodeInfo"]["bootID"].as_str().unwrap_or_default();
                let says = |c: &Value| c["type"] == "Ready" && c["status"] == "True";
                !boot.is_empty()
                    && out.stdout().contains(boot)
                    && status["conditions"].as_array().is_some_and(|all| all.iter().any(says))
            };
            let new = out.code() == 0 && !boots.iter().any(|boot| out.stdout().contains(boot));
            let back = list["items"].as_array().map_or(0, |all| all.iter().filter(ready).count());
            (new && back == 2).then_some(()).ok_or_else(|| format!("{}{}", out.text(), nodes.text()))
        };
        while let Err(why) = back() {
            assert!(Instant::now() < bound, "it did not come back:\n{why}");
            thread::sleep(Duration::from_millis(500));
        }
    }

    /// Disks and memory are those of before, and the clocks are not.
    fn is_as_kept(&mut self) {
        assert_eq!(self.on_nodes("cat /run/mark /root/mark"), both("then\nthen", "then\nthen"));
        let host = jiff::Timestamp::now().as_second();
        for (node, text) in self.on_nodes("date +%s") {
            let off = text.parse::<i64>().unwrap() - host;
            assert!(off.abs() < 10, "the clock of {node} is {off} s off");
        }
        self.is_ready_at(VERSION);
    }

    /// All nodes are Ready, at the spec's addresses and this version, by kubectl's word.
    #[track_caller]
    fn is_ready_at(&mut self, version: &str) {
        let out = self.p1(120, &["kubectl", "get", "nodes", "-o", "json"]).ok();
        let list: Value = serde_json::from_str(&out.stdout()).unwrap();
        let mut seen = BTreeMap::new();
        for node in list["items"].as_array().unwrap() {
            let find = |list: &Value, kind: &str, what: &str| {
                let one = list.as_array().unwrap().iter().find(|i| i["type"] == kind).cloned();
                one.map_or(String::new(), |i| i[what].as_str().unwrap().to_owned())
            };
            let status = &node["status"];
            let facts = [
                find(&status["conditions"], "Ready", "status"),
                find(&status["addresses"], "InternalIP", "address"),
                status["nodeInfo"]["kubeletVersion"].as_str().unwrap().to_owned(),
            ];
            seen.insert(node["metadata"]["name"].as_str().unwrap().to_owned(), facts);
        }
        let node = |ip: &String| ["True".to_owned(), ip.clone(), version.to_owned()];
        assert_eq!(seen, self.nodes.iter().map(|(name, ip)| (name.clone(), node(ip))).collect());
    }

    /// Programs that are first on PATH and know nothing.
    fn shadows(&mut self, names: &[&str]) {
        let dir = self.dir.join("shadows");
        fs::create_dir_all(&dir).unwrap();
        for name in names {
            fs::write(dir.join(name), "#!/bin/sh\nexit 1\n").unwrap();
            fs::set_permissions(dir.join(name), fs::Permissions::from_mode(0o755)).unwrap();
        }
        self.path = format!("{}:{}", dir.display(), self.path);
    }

    /// A `vagrant` that is first on PATH and only leaves a mark; answers where.
    fn tripwire(&mut self) -> PathBuf {
        let dir = self.dir.join("tripwire");
        fs::create_dir_all(&dir).unwrap();
        let calls = dir.join("calls");
        let script = dir.join("vagrant");
        fs::write(&script, format!("#!/bin/sh\necho \"$*\" >>'{}'\nexit 97\n", calls.display())).unwrap();
        fs::set_permissions(&script, fs::Permissions::from_mode(0o755)).unwrap();
        self.path = format!("{}:{}", dir.display(), self.path);
        calls
    }

    fn secrets_are_kept(&mut self) {
        let state = self.state();
        let tokens = tokens(&state.join("token"));
        assert_eq!(tokens.len(), 2);
        let leaks = |place: &str, text: &str| {
            assert!(!tokens.iter().any(|t| text.contains(t)), "a token is in {place}");
            assert!(!text.contains("PRIVATE KEY"), "a private key is in {place}");
        };

        // Here: in nothing but its own file.
        assert_eq!(mode(&state), 0o700);
        for secret in ["token", "id_ed25519", "kubeconfig"] {
            assert_eq!(mode(&state.join(secret)), 0o600, "{secret}");
        }
        let mut files = 0;
        for path in walk(&self.dir) {
            let name = path.file_name().unwrap().to_str().unwrap();
            if !["token", "id_ed25519", "kubeconfig"].contains(&name) {
                leaks(&path.display().to_string(), &String::from_utf8_lossy(&fs::read(&path).unwrap()));
                files += 1;
            }
        }
        assert!(files > 10, "only {files} files were looked at");
        leaks("what p1 printed", &self.said.lock().unwrap());

        // There: in k3s' configuration, which is root's.
        let modes = self.on_nodes("stat -c '%a %U' /etc/rancher/k3s/config.yaml");
        assert_eq!(modes, both("600 root", "600 root"));
        let seen = self.on_nodes(
            "cat /proc/[0-9]*/cmdline | tr '\\0' ' '; echo; cat /etc/systemd/system/k3s*; cat /var/lib/p1/*; \
             find /run /tmp /var/log -type f -size -2000k -user root -exec cat {} + | strings 2>/dev/null; \
             journalctl --no-pager -o cat; true",
        );
        for (node, text) in &seen {
            assert!(text.contains("ExecStart"), "{node}: {text}");
            leaks(node, text);
        }

        // Vagrant's key, which everybody has, opens nothing any more; the cluster's own does.
        let insecure = self.dir.join("insecure");
        // Vagrant copies it into its home; where Vagrant was never run it is in Debian's package alone.
        let copies = "ls \"$HOME\"/.local/share/p1/vagrant/insecure_private_key \
                      /usr/share/rubygems-integration/all/gems/vagrant-*/keys/vagrant 2>/dev/null | head -n 1";
        let copy = self.inside(10, &["sh", "-c", copies]).ok().stdout();
        fs::copy(copy.trim(), &insecure).unwrap();
        fs::set_permissions(&insecure, fs::Permissions::from_mode(0o600)).unwrap();
        for ip in [SERVER, WORKER] {
            self.ssh(&state.join("id_ed25519"), ip).ok();
            let refused = self.ssh(&insecure, ip);
            assert_eq!(refused.code(), 255);
            assert!(refused.text().contains("Permission denied"), "{}", refused.text());
        }
        fs::remove_file(insecure).unwrap();
    }

    fn ssh(&self, key: &Path, ip: &str) -> Done {
        let options = "-F /dev/null -o IdentitiesOnly=yes -o IdentityAgent=none -o BatchMode=yes -o ConnectTimeout=30 \
                       -o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null -o LogLevel=ERROR -i";
        let login = format!("vagrant@{ip}");
        let mut line = vec!["ssh"];
        line.extend(options.split_whitespace());
        line.extend([key.to_str().unwrap(), login.as_str(), "true"]);
        self.inside(60, &line)
    }
}

impl Drop for Life {
    fn drop(&mut self) {
        if thread::panicking() {
            println!("what is left of the cluster's state: {}", self.dir.display());
            if let Some(lab) = &self.lab {
                // Its logs stay until the next run.
                println!("the lab's logs are lost with it unless P1_LAB_KEEP is set: {}", lab.0);
            }
        } else {
            let _ = fs::remove_dir_all(&self.dir);
        }
    }
}

/// A lab of this test's own.
struct Lab(String);

impl Lab {
    fn up() -> Self {
        let given = std::env::var("P1_TEST_LAB").ok().filter(|n| !n.is_empty());
        let lab = Self(given.unwrap_or_else(|| format!("life-{}", std::process::id())));
        Done(bounded(120).arg(lab_script()).args(["up", &lab.0]).output().unwrap()).ok();
        lab
    }

    /// All that runs in it is gone at once, with what was not flushed to its disk, and it comes up again as a host does.
    fn power_cut(&self) {
        for verb in ["crash", "boot"] {
            Done(bounded(120).arg(lab_script()).args([verb, &self.0]).output().unwrap()).ok();
        }
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        if !(thread::panicking() && std::env::var_os("P1_LAB_KEEP").is_some()) {
            let _ = bounded(60).arg(lab_script()).args(["down", &self.0]).status();
        }
    }
}

fn lab_script() -> &'static str {
    concat!(env!("CARGO_MANIFEST_DIR"), "/tests/lab")
}

/// A command that ends, whatever happens.
fn bounded(seconds: u32) -> Command {
    let mut command = Command::new("timeout");
    command.args(["--kill-after=20", &seconds.to_string()]);
    command
}

struct Done(Output);

impl Done {
    fn code(&self) -> i32 {
        self.0.status.code().unwrap_or(-1)
    }

    fn stdout(&self) -> String {
        String::from_utf8_lossy(&self.0.stdout).into_owned()
    }

    fn text(&self) -> String {
        format!("{}{}", self.stdout(), String::from_utf8_lossy(&self.0.stderr))
    }

    #[track_caller]
    fn says(&self, code: i32, word: &str) {
        let says = self.code() == code && self.text().contains(word);
        assert!(says, "exit code {}:\n{}", self.code(), self.text());
    }

    /// Itself, if the exit code was 0.
    #[track_caller]
    fn ok(self) -> Self {
        assert_eq!(self.code(), 0, "exit code {}:\n{}", self.code(), self.text());
        self
    }
}

/// Looks at the command lines of all processes of this machine, the lab's included, for the tokens.
struct ArgvWatch {
    stop: Arc<AtomicBool>,
    looked: Arc<Mutex<usize>>,
    thread: thread::JoinHandle<Vec<String>>,
}

impl ArgvWatch {
    fn start(token: PathBuf) -> Self {
        let (stop, looked) = (Arc::new(AtomicBool::new(false)), Arc::new(Mutex::new(0)));
        let (end, count) = (Arc::clone(&stop), Arc::clone(&looked));
        let thread = thread::spawn(move || {
            let mut found = Vec::new();
            while !end.load(Ordering::Relaxed) {
                let secrets = tokens(&token);
                for process in fs::read_dir("/proc").unwrap().flatten() {
                    let line = fs::read(process.path().join("cmdline")).unwrap_or_default();
                    let line = String::from_utf8_lossy(&line).replace('\0', " ");
                    if secrets.iter().any(|t| line.contains(t)) {
                        found.push(line);
                    }
                }
                *count.lock().unwrap() += usize::from(!secrets.is_empty());
                thread::park_timeout(Duration::from_millis(100));
            }
            found
        });
        Self { stop, looked, thread }
    }

    fn looked(&self) -> usize {
        *self.looked.lock().unwrap()
    }

    fn end(self) -> Vec<String> {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.thread().unpark();
        self.thread.join().unwrap()
    }
}

fn tokens(path: &Path) -> Vec<String> {
    let text = fs::read_to_string(path).unwrap_or_default();
    text.lines().filter_map(|l| Some(l.split_once('=')?.1.to_owned())).filter(|t| t.len() > 20).collect()
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o7777
}

fn walk(dir: &Path) -> Vec<PathBuf> {
    let mut all = Vec::new();
    for entry in fs::read_dir(dir).unwrap().flatten() {
        match entry.file_type().unwrap() {
            t if t.is_dir() => all.extend(walk(&entry.path())),
            t if t.is_file() => all.push(entry.path()),
            _ => {}
        }
    }
    all
}
