//! Machines that exist already, which p1 only reaches: those of another cluster of the lab, of which nothing but their users is
//! left.

use std::fs;
use std::path::PathBuf;

use super::run::Done;
use super::sim::{Sim, spec};

/// What sudo asks for where it asks.
const PASSWORD: &str = "c0rrect horse $battery";

/// What of a machine p1 may change, as one text.
pub fn state_of(sim: &Sim, node: &str) -> String {
    sim.node(node).sh(
        "for f in /root/.ssh/authorized_keys /home/vagrant/.ssh/authorized_keys /etc/hosts /etc/hostname; do\n\
         [ ! -e $f ] || echo \"$f $(stat -c '%a %U' $f) $(md5sum <$f)\"; done\nhostname\n\
         for d in /root/.ssh /var/lib/p1 /var/lib/rancher /etc/rancher /usr/local/bin /etc/systemd/system; do\n\
         [ ! -e $d ] || { echo $d; ls -A $d; }; done",
    )
}

pub struct Metal {
    pub sim: Sim,
    dir: PathBuf,
}

impl Metal {
    /// A server and two workers with users and nothing else: root of the second has no keys at all.
    pub fn new() -> Self {
        let sim = Sim::new(&spec(1, 2, ""));
        sim.p1(&["up"]).exits(0);
        sim.p1(&["--yes", "uninstall"]).exits(0);
        sim.node("worker-1").sh("rm -rf /root/.ssh");
        let dir = sim.at("metal");
        fs::create_dir_all(&dir).unwrap();
        fs::create_dir_all(sim.at("home/.ssh")).unwrap();
        Self { sim, dir }
    }

    fn key(&self) -> PathBuf {
        self.sim.state().join("id_ed25519")
    }

    pub fn spec(&self, nodes: &str) {
        let text = format!(
            "name: metal\nprovider: ssh\nssh: {{user: vagrant, key: {}}}\nnodes:\n{nodes}k3s:\n  version: v1.34.1+k3s1\n  \
             artifacts: {{binary: {{path: ../k3s}}, installer: {{path: ../install.sh}}, images: [{{path: ../images.tar}}]}}\n\
             retry: {{attempts: 2, backoff: 200ms}}\n",
            self.key().display()
        );
        fs::write(self.dir.join("cluster.yaml"), text).unwrap();
    }

    pub fn p1(&self, args: &[&str]) -> Done {
        let dir = self.dir.display().to_string();
        self.sim.p1(&[&["-C", &dir], args].concat())
    }
}

pub const ALPHA: &str = "  - {name: alpha, role: server, ip: 192.168.56.110}\n";
const BETA: &str = "  - {name: beta, ip: 192.168.56.111, ssh: {jump: vagrant@192.168.56.110, sudo_password: {from: BECOME}}}\n";
const GAMMA: &str = "  - {name: gamma, ip: 192.168.56.112, ssh: {host: third, become: doas}}\n";

#[test]
fn a_cluster_lives_on_machines_that_stay() {
    let mut metal = Metal::new();
    let config = format!(
        "Host third\n  HostName 192.168.56.112\n  ProxyCommand socat - TCP:%h:%p\nHost *\n  IdentityFile {}\n",
        metal.key().display()
    );
    fs::write(metal.sim.at("home/.ssh/config"), config).unwrap();
    metal
        .sim
        .node("worker-1")
        .sh(&format!("mkdir -p /etc/sim; printf '%s\\n' '{PASSWORD}' >/etc/sim/sudo-password"));
    let machines = ["server", "worker-1", "worker-2"];
    let before: Vec<String> = machines.iter().map(|m| state_of(&metal.sim, m)).collect();

    metal.spec(&[ALPHA, BETA, GAMMA].concat());
    metal.p1(&["plan"]).exits(2).says(&["BECOME", "beta"]);
    metal.sim.env.push(("BECOME".into(), "wrong".into()));
    metal
        .p1(&["up", "beta"])
        .exits(1)
        .says(&["vagrant cannot become root: 1 incorrect password attempt", "`sudo_password`"]);
    metal.sim.env.pop();
    metal.sim.env.push(("BECOME".into(), PASSWORD.into()));
    metal.p1(&["plan"]).exits(10);
    let up = metal.p1(&["up"]).exits(0);
    up.says(&["the cluster's own key opens it from now on"]);
    for quiet in ["up", "plan"] {
        metal.p1(&[quiet]).exits(0).says(&["nothing to do"]);
    }
    metal.p1(&["plan", "--deep"]).exits(0).says(&["nothing to do"]);
    let prints = |args: &[&str], wanted: &[&str]| {
        let out = metal.p1(args).exits(0).stdout();
        wanted.iter().for_each(|word| assert!(out.contains(word), "`{word}` is not in\n{out}"));
    };
    prints(&["kubectl", "get", "nodes"], &["alpha", "beta", "gamma"]);
    // The second is reached through the first, by p1's own SSH and by the system's.
    for by in [&["exec", "beta", "--"][..], &["ssh", "beta", "--"]] {
        prints(&[by, &["echo $SSH_CONNECTION"]].concat(), &["192.168.56.110"]);
    }
    prints(&["exec", "--root", "--", "id -u"], &["alpha | 0", "beta  | 0", "gamma | 0"]);
    metal.p1(&["verify"]).exits(0);
    // Where sudo asks for a password the key does not open root's door.
    assert!(metal.sim.node("worker-1").sh("ls -d /root/.ssh 2>&1 || :").contains("cannot access"));
    let told = metal.sim.sh("grep -rlF 'c0rrect horse' metal/.p1 || :");
    assert_eq!(told, "", "the password is written down");
    assert!(!metal.sim.node("worker-1").sh("cat /var/log/* 2>/dev/null || :").contains("c0rrect horse"));

    // What is not done to them.
    metal.p1(&["stop"]).exits(2).says(&["None of its machines is p1's own"]);
    metal.p1(&["stop", "beta"]).exits(2).says(&["beta"]);
    metal.p1(&["snapshot", "save", "x"]).exits(2);

    // One that leaves the spec is left as it was found.
    metal.spec(&[ALPHA, BETA].concat());
    metal.p1(&["up"]).exits(2).says(&["gamma", "k3s is uninstalled"]);
    metal.p1(&["--yes", "up"]).exits(0);
    assert_eq!(state_of(&metal.sim, "worker-2"), before[2]);
    metal.p1(&["up"]).exits(0).says(&["nothing to do"]);

    // So is one whose user needs a password, which the spec no longer names.
    metal.spec(ALPHA);
    metal.p1(&["--yes", "up"]).exits(0);
    assert_eq!(state_of(&metal.sim, "worker-1"), before[1]);

    // They come back, one under another name.
    metal.spec(&[ALPHA, BETA, &GAMMA.replace("gamma", "delta")].concat());
    metal.p1(&["up"]).exits(0);
    // What sudo says itself is no command's output.
    assert_eq!(metal.p1(&["exec", "beta", "--root", "--", "echo told"]).exits(0).stdout(), "beta | told\n");
    let status = metal.p1(&["status"]).exits(0).stdout();
    assert!(status.contains("exists") && !status.contains("running"), "{status}");
    // Its own key is taken away by somebody: the user's opens it all the same.
    metal
        .sim
        .node("worker-2")
        .sh("cd /home/vagrant/.ssh && grep -v metal authorized_keys >a; cat a >authorized_keys; rm a");
    metal.p1(&["--yes", "destroy"]).exits(0);
    for (machine, before) in machines.iter().zip(&before) {
        assert_eq!(state_of(&metal.sim, machine), *before, "{machine}");
    }
    assert!(!metal.dir.join(".p1/metal").exists());
}

#[test]
fn a_machine_is_only_what_it_was_known_as() {
    let metal = Metal::new();
    let node = |more: &str| ALPHA.replace("}", &format!(", ssh: {{{more}}}}}"));
    metal.spec(&node("host_key: known"));
    metal.p1(&["up"]).exits(1).says(&["host key", "known_hosts"]);
    // Of another machine.
    let other = metal.sim.node("worker-1").sh("cut -d' ' -f1,2 /etc/ssh/ssh_host_ed25519_key.pub");
    fs::write(metal.sim.at("home/.ssh/known_hosts"), format!("192.168.56.110 {other}")).unwrap();
    metal.p1(&["up"]).exits(1).says(&["the host key has changed", "ssh-keygen -R 192.168.56.110"]);
    let own = metal.sim.node("server").sh("cut -d' ' -f1,2 /etc/ssh/ssh_host_ed25519_key.pub");
    fs::write(metal.sim.at("home/.ssh/known_hosts"), format!("192.168.56.110 {own}")).unwrap();
    metal.p1(&["up"]).exits(0);
    // An address that it does not have: a NAT's.
    metal.spec(&format!(
        "{}  - {{name: beta, ip: 10.9.8.7, ssh: {{host: 192.168.56.111}}}}\n",
        node("host_key: known")
    ));
    metal
        .p1(&["up"])
        .exits(3)
        .says(&["beta: it does not have the address 10.9.8.7; it has 192.168.56.111", "external_ip"]);
    // One that is gone for good does not keep the rest from going, once that was said.
    metal.spec(&format!("{}  - {{name: beta, ip: 192.168.56.111}}\n", node("host_key: known")));
    metal.p1(&["up"]).exits(0);
    metal.sim.node("worker-1").power_off();
    metal
        .p1(&["--yes", "destroy", "beta"])
        .exits(1)
        .says(&["If its machine is gone", "destroy beta --gone` forgets it"]);
    metal.p1(&["destroy", "beta", "--gone"]).exits(2).says(&["is taken for gone: what is on it stays there"]);
    let done = metal.p1(&["--yes", "destroy", "beta", "--gone"]).exits(0);
    done.says(&["beta is taken for gone", "k3s, its data and p1's key are still on it"]);
    assert!(!metal.p1(&["kubectl", "get", "nodes"]).exits(0).stdout().contains("beta"));
    metal.sim.node("worker-1").power_on();
    metal.p1(&["--yes", "destroy"]).exits(0);
}

#[test]
fn what_keeps_k3s_from_running_is_told_of_all_machines_before_any_is_changed() {
    let metal = Metal::new();
    let machines = ["server", "worker-1", "worker-2"];
    metal.sim.node("server").sh("mkdir -p /var/lib/k0s");
    metal.sim.node("worker-1").sh(
        "(setsid socat TCP-LISTEN:10250,fork,reuseaddr /dev/null </dev/null >/dev/null 2>&1 & echo $! >/run/taken)\n\
         ip route add prohibit 192.168.56.112",
    );
    let before: Vec<String> = machines.iter().map(|m| state_of(&metal.sim, m)).collect();
    let beta = "  - {name: beta, ip: 192.168.56.111}\n";
    let twice = "  - {name: gamma, ip: 192.168.56.112}\n  - {name: delta, ip: 192.168.56.113, ssh: {host: 192.168.56.112}}\n";
    metal.spec(&[ALPHA, beta, twice].concat());
    metal.p1(&["up"]).exits(3).says(&[
        "alpha: k0s is there (/var/lib/k0s)",
        "beta: something listens at 10250/tcp",
        "beta: the way to 10250/tcp of gamma (192.168.56.112) is closed",
        "delta: it is the same machine as gamma",
        "--skip-preflight",
    ]);
    for (machine, before) in machines.iter().zip(&before) {
        assert_eq!(state_of(&metal.sim, machine), *before, "{machine}");
    }
    metal.sim.node("server").sh("rmdir /var/lib/k0s");
    metal.sim.node("worker-1").sh("kill $(cat /run/taken); ip route del prohibit 192.168.56.112");
    metal.spec(&[ALPHA, beta, "  - {name: gamma, ip: 192.168.56.112}\n"].concat());
    metal.p1(&["up"]).exits(0);
    // Another cluster's: not without a word.
    let text = fs::read_to_string(metal.dir.join("cluster.yaml")).unwrap();
    let other = metal.sim.at("other");
    fs::create_dir_all(&other).unwrap();
    fs::write(other.join("cluster.yaml"), text.replace("name: metal", "name: other")).unwrap();
    let dir = other.display().to_string();
    metal.sim.p1(&["-C", &dir, "up"]).exits(3).says(&["a k3s that is not this cluster's"]);
    // Nor one of the same name; where its folder is gone the machines still have what it takes.
    fs::write(other.join("cluster.yaml"), &text).unwrap();
    metal.sim.p1(&["-C", &dir, "up"]).exits(3).says(&["the k3s of a cluster `metal` of another folder"]);
    fs::remove_dir_all(metal.dir.join(".p1")).unwrap();
    metal.sim.p1(&["-C", &dir, "up", "--skip-preflight"]).exits(0);
    metal.sim.p1(&["-C", &dir, "up"]).exits(0).says(&["nothing to do"]);
}

/// A server that p1 makes, and a worker that was there.
#[test]
fn one_cluster_has_machines_of_both_kinds() {
    let metal = Metal::new();
    let before = state_of(&metal.sim, "worker-1");
    let text = fs::read_to_string(metal.sim.at("cluster.yaml")).unwrap();
    let line = |node: &str| {
        text.lines().find(|l| l.contains(&format!("{{name: {node},"))).unwrap().to_owned() + "\n"
    };
    let (gone, stays) = (line("worker-1"), line("worker-2"));
    // What was the first worker's machine is somebody's from here on: p1's own second one goes.
    let there = format!(
        "  - {{name: there, ip: 192.168.56.111, ssh: {{user: vagrant, key: {}}}}}\n",
        metal.dir.join("key").display()
    );
    fs::copy(metal.key(), metal.dir.join("key")).unwrap();
    let other = text.replace(&gone, &there).replace(&stays, "").replace("name: sim", "name: both");
    let dir = metal.sim.at("both");
    fs::create_dir_all(&dir).unwrap();
    // In another network of this host's, which leads from one to the other.
    let other =
        other.replace("192.168.56.0/21", "192.168.72.0/24").replace("192.168.56.110", "192.168.72.110");
    fs::write(dir.join("cluster.yaml"), other.replace("path: ", "path: ../")).unwrap();
    metal.sim.sh("echo 1 >/proc/sys/net/ipv4/ip_forward");
    let p1 = |args: &[&str]| metal.sim.p1(&[&["-C", &dir.display().to_string()], args].concat());
    p1(&["up"]).exits(0);
    p1(&["up"]).exits(0).says(&["nothing to do"]);
    p1(&["stop", "there"]).exits(2).says(&["there"]);
    p1(&["stop"]).exits(0).says(&["`p1 stop` does nothing for there"]);
    p1(&["start"]).exits(0);
    p1(&["status"]).exits(0);
    p1(&["--yes", "destroy"]).exits(0);
    assert_eq!(state_of(&metal.sim, "worker-1"), before);
    assert!(!metal.sim.virsh(&["list", "--all"]).contains("both"));
}

/// A token as people make them: `openssl rand -base64`.
const TOKEN: &str = "9cFf+0/aa3K1b2Zz==";

/// The machines with what an installation by hand needs, under names of their own.
fn bare(metal: &Metal) {
    let config = format!("Host *\n  User vagrant\n  IdentityFile {}\n", metal.key().display());
    fs::write(metal.sim.at("home/.ssh/config"), config).unwrap();
    let key = metal.key().display().to_string();
    for (machine, name, ip) in
        [("server", "alpha", "110"), ("worker-1", "beta", "111"), ("worker-2", "gamma", "112")]
    {
        metal.sim.node(machine).sh(&format!("echo {name} >/etc/hostname; hostname {name}"));
        for (from, to) in [("k3s", "/usr/local/bin/k3s"), ("install.sh", "/root/install.sh")] {
            metal.sim.sh(&format!(
                "ssh -i {key} -o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null -o LogLevel=ERROR \
                 vagrant@192.168.56.{ip} 'sudo sh -c \"cat >{to}; chmod 755 {to}\"' <{from}"
            ));
        }
    }
}

/// A server and two workers whose k3s was installed by hand: by k3s' installer with a file and flags, by the installer with
/// variables, and with a unit as k3s-ansible writes it.
fn by_hand(metal: &Metal) {
    bare(metal);
    metal.sim.node("server").sh(&format!(
        "mkdir -p /etc/rancher/k3s/config.yaml.d\n\
         echo 'write-kubeconfig-mode: \"0640\"' >/etc/rancher/k3s/config.yaml\n\
         echo 'disable+: servicelb' >/etc/rancher/k3s/config.yaml.d/10-more.yaml\n\
         INSTALL_K3S_SKIP_DOWNLOAD=true K3S_TOKEN='{TOKEN}' sh /root/install.sh server --disable traefik \
         --node-label tier=a >/dev/null"
    ));
    metal.sim.node("worker-1").sh(&format!(
        "INSTALL_K3S_SKIP_DOWNLOAD=true K3S_URL=https://192.168.56.110:6443 K3S_TOKEN='{TOKEN}' \
         sh /root/install.sh --kubelet-arg max-pods=50 >/dev/null"
    ));
    metal.sim.node("worker-2").sh(&format!(
        "cat >/etc/systemd/system/k3s-agent.service <<'X'\n[Unit]\nDescription=Lightweight Kubernetes\n[Install]\n\
         WantedBy=multi-user.target\n[Service]\nType=notify\nEnvironmentFile=-/etc/default/%N\n\
         EnvironmentFile=-/etc/sysconfig/%N\nEnvironmentFile=-/etc/systemd/system/k3s-agent.service.env\nKillMode=process\n\
         Delegate=yes\nTimeoutStartSec=0\nRestart=always\nRestartSec=5s\nExecStartPre=-/sbin/modprobe overlay\n\
         ExecStart=/usr/local/bin/k3s agent --data-dir /var/lib/rancher/k3s --server https://192.168.56.110:6443 \\\n\
         \x20   --kubelet-arg=\"max-pods=50\"\nX\n\
         echo 'K3S_TOKEN={TOKEN}' >/etc/systemd/system/k3s-agent.service.env\n\
         systemctl daemon-reload; systemctl enable --now k3s-agent >/dev/null 2>&1"
    ));
    let registries = "configs:\n  registry.test:\n    auth: {username: u, password: open-sesame}\n";
    for machine in ["server", "worker-1", "worker-2"] {
        metal.sim.node(machine).sh(&format!(
            "mkdir -p /etc/rancher/k3s; printf '%s' '{registries}' >/etc/rancher/k3s/registries.yaml"
        ));
    }
}

/// What changes when k3s is restarted.
fn starts(metal: &Metal) -> String {
    let of = |machine: &str, unit: &str| {
        metal.sim.node(machine).sh(&format!("systemctl show -p InvocationID -p ActiveState {unit}"))
    };
    [of("server", "k3s"), of("worker-1", "k3s-agent"), of("worker-2", "k3s-agent")].concat()
}

#[test]
fn a_cluster_that_was_installed_by_hand_is_taken_over_as_it_runs() {
    let metal = Metal::new();
    by_hand(&metal);
    let machines = ["server", "worker-1", "worker-2"];
    let state = || machines.iter().map(|m| state_of(&metal.sim, m)).collect::<Vec<_>>();
    let (before, started) = (state(), starts(&metal));
    assert!(started.matches("ActiveState=active").count() == 3, "{started}");

    metal.p1(&["init", "--from", "192.168.56.110", "192.168.56.111"]).exits(1).says(&[
        "gamma (192.168.56.112) is a node of the cluster too, and was not named",
        "nothing was changed there",
    ]);
    let all = ["192.168.56.110", "192.168.56.111", "192.168.56.112"];
    let init = metal.p1(&[&["init", "--from"], &all[..]].concat()).exits(0);
    init.says(&["nothing was changed on alpha, beta, gamma"]);
    let text = fs::read_to_string(metal.dir.join("cluster.yaml")).unwrap();
    insta::assert_snapshot!("taken_over", text);
    let secrets = fs::read_to_string(metal.dir.join(".env")).unwrap();
    assert!(secrets.contains("open-sesame") && !(secrets + &text).contains(TOKEN));
    assert!(!text.contains("open-sesame"));
    assert_eq!(metal.sim.sh("stat -c %a metal/.env").trim(), "600");
    assert_eq!((state(), starts(&metal)), (before.clone(), started.clone()));

    // Nothing is added but a key, names and notes.
    let told = metal.p1(&["plan"]).exits(10).stdout();
    assert!(told.contains("alpha: its k3s was installed before p1 → it is taken over as it runs"), "{told}");
    assert!(
        told.contains("The API stays. Pods go on.") && told.contains("0 to add, 4 to change, 0 to destroy"),
        "{told}"
    );
    for what in ["the cluster's key is not there yet", "its /etc/hosts does not have the nodes"] {
        assert_eq!(told.matches(what).count(), 3, "{told}");
    }
    metal.p1(&["up"]).exits(0);
    for quiet in [&["up"][..], &["plan"], &["plan", "--deep"]] {
        metal.p1(quiet).exits(0).says(&["nothing to do"]);
    }
    assert_eq!(starts(&metal), started);
    let nodes = metal.p1(&["kubectl", "get", "nodes"]).exits(0).stdout();
    assert!(["alpha", "beta", "gamma"].iter().all(|name| nodes.contains(name)), "{nodes}");
    metal.p1(&["verify"]).exits(0);
    let told = metal.sim.sh(&format!("grep -rlF '{TOKEN}' metal/.p1 || :"));
    assert_eq!(told.trim(), "metal/.p1/metal/token");

    // What was there before p1 is there after it.
    metal.p1(&["destroy"]).exits(2).says(&["was there before p1", "stays"]);
    metal.p1(&["--yes", "destroy"]).exits(0);
    assert_eq!((state(), starts(&metal)), (before, started.clone()));
    assert!(!metal.dir.join(".p1/metal").exists());

    // Another k3s than the spec says is not rewritten unasked.
    fs::write(metal.dir.join("cluster.yaml"), text.replace("traefik", "coredns")).unwrap();
    metal.p1(&["up"]).exits(3).says(&[
        "alpha: its k3s was installed before p1, and differs from the spec",
        "`disable` is `servicelb,traefik`",
    ]);
    assert_eq!(starts(&metal), started);

    // Once it is p1's, what changes in the spec changes there.
    fs::write(metal.dir.join("cluster.yaml"), &text).unwrap();
    metal.p1(&["up"]).exits(0);
    let artifacts = "  artifacts: {binary: {path: ../k3s}, installer: {path: ../install.sh}}\n  server_config:\n    debug: true\n";
    let changed = text.replace("  server_config:\n", artifacts);
    fs::write(metal.dir.join("cluster.yaml"), changed).unwrap();
    let told = metal.p1(&["plan", "alpha"]).exits(10).stdout();
    assert!(told.contains("~ alpha") && !told.contains("The API stays."), "{told}");
    metal.p1(&["up"]).exits(0);
    metal.p1(&["up"]).exits(0).says(&["nothing to do"]);
    let unit = metal.sim.node("server").sh(
        "cat /etc/systemd/system/k3s.service; ls /etc/rancher/k3s/config.yaml.d; grep -c servicelb /etc/rancher/k3s/config.yaml",
    );
    assert!(!unit.contains("traefik") && unit.contains("10-more.yaml.before-p1\n1\n"), "{unit}");
    assert_eq!(
        starts(&metal).lines().skip(2).collect::<Vec<_>>(),
        started.lines().skip(2).collect::<Vec<_>>()
    );

    // To take it off has to be said.
    metal.p1(&["--yes", "uninstall"]).exits(0);
    metal.p1(&["--yes", "destroy"]).exits(0);
    let left =
        metal.sim.node("worker-2").sh("ls /var/lib/rancher /usr/local/bin/k3s /var/lib/p1 2>/dev/null || :");
    assert_eq!(left, "");
}

/// Three servers with etcd, installed with flags alone.
#[test]
fn several_servers_are_taken_over_as_they_run() {
    let metal = Metal::new();
    bare(&metal);
    let install = |machine: &str, how: &str| {
        metal.sim.node(machine).sh(&format!(
            "INSTALL_K3S_SKIP_DOWNLOAD=true sh /root/install.sh server {how} --token {TOKEN} --agent-token for-agents \
             --disable=traefik >/dev/null"
        ));
    };
    install("server", "--cluster-init");
    install("worker-1", "--server https://192.168.56.110:6443");
    install("worker-2", "--server https://192.168.56.111:6443");
    let machines = ["server", "worker-1", "worker-2"];
    let starts = || {
        machines.map(|m| metal.sim.node(m).sh("systemctl show -p InvocationID -p ActiveState k3s")).concat()
    };
    let started = starts();
    assert_eq!(started.matches("ActiveState=active").count(), 3, "{started}");
    metal.p1(&["init", "--from", "192.168.56.110", "192.168.56.111", "192.168.56.112"]).exits(0);
    metal.p1(&["up"]).exits(0);
    metal.p1(&["plan", "--deep"]).exits(0).says(&["nothing to do"]);
    assert_eq!(starts(), started);
    // What changes is changed on one after the other.
    let text = fs::read_to_string(metal.dir.join("cluster.yaml")).unwrap();
    let more = "  artifacts: {binary: {path: ../k3s}, installer: {path: ../install.sh}}\n  server_config:\n    debug: true\n";
    fs::write(metal.dir.join("cluster.yaml"), text.replace("  server_config:\n", more)).unwrap();
    metal.p1(&["up"]).exits(0);
    metal.p1(&["plan", "--deep"]).exits(0).says(&["nothing to do"]);
    let told = metal
        .sim
        .node("worker-2")
        .sh("cat /etc/systemd/system/k3s.service; grep -c for-agents /etc/rancher/k3s/config.yaml");
    assert!(!told.contains("traefik") && told.ends_with("1\n"), "{told}");
}
