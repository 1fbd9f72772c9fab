//! What runs on a machine beside k3s and has to get along with it: the real programs, in simulated machines.

use std::path::PathBuf;
use std::process::Command;

use super::existing::{ALPHA, Metal, state_of};
use super::run::until;
use super::sim::Node;

/// An archive with these packages.
fn packages(names: &[&str]) -> PathBuf {
    let script = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/sim/packages");
    let out = Command::new(script).args(names).output().unwrap();
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    String::from_utf8(out.stdout).unwrap().trim().into()
}

/// All that the node's firewalls have been told, in no order.
fn told(node: &Node<'_>) -> String {
    node.sh(
        "{ grep -h tuple /etc/ufw/user.rules /etc/ufw/user6.rules || :\n! firewall-cmd --state >/dev/null 2>&1 || {\n\
         firewall-cmd --list-all-zones; firewall-cmd --permanent --list-all-zones; }; } | sort",
    )
}

/// Whether packets of one machine come through to a port of another: be it to a refusal.
fn reaches(node: &Node<'_>, ip: &str, port: u16) -> bool {
    let try_it = format!("timeout 2 bash -c ': </dev/tcp/{ip}/{port}' 2>/dev/null || echo $?");
    !node.sh(&try_it).contains("124")
}

const BETA: &str = "  - {name: beta, ip: 192.168.56.111}\n";
const GAMMA: &str = "  - {name: gamma, ip: 192.168.56.112}\n";

#[test]
fn firewalls_and_networkmanager_let_k3s_be_for_as_long_as_it_is_there() {
    let metal = Metal::new();
    let archive = packages(&["ufw", "firewalld", "network-manager"]);
    let [server, first, second] = ["server", "worker-1", "worker-2"].map(|name| metal.sim.node(name));
    for node in [&server, &first] {
        node.unpack(&archive);
    }
    // One rule of the user's is what k3s needs, and one keeps something out.
    server.sh(
        "ufw allow 22/tcp; ufw deny 9/tcp; ufw allow proto tcp from 192.168.56.111 to any port 10250 comment mine\n\
         ufw --force enable",
    );
    first.sh("mkdir -p /run/dbus; dbus-daemon --system --nopidfile --fork\n\
         setsid firewalld --nofork --nopid </dev/null >/var/log/firewalld 2>&1 &");
    until("firewalld runs", || first.sh("firewall-cmd --state 2>/dev/null || :").contains("running"));
    first.sh(
        "for how in '' --permanent; do firewall-cmd $how --zone=trusted --add-source=10.43.0.0/16; done\n\
         firewall-cmd --permanent --zone=public --add-port=9/tcp",
    );
    // It minds its own business with one card already; /sys that cannot be written says that there is no udev.
    first.sh(
        "mount -o remount,ro /sys\n\
         printf '%s\\n' '[keyfile]' 'unmanaged-devices=interface-name:eth0' >/etc/NetworkManager/conf.d/mine.conf\n\
         ip link add veth0p1 type veth peer name veth1p1\n\
         setsid NetworkManager --no-daemon </dev/null >/var/log/NetworkManager 2>&1 &",
    );
    let cards = || first.sh("nmcli -t -f DEVICE,STATE device 2>/dev/null || :");
    let alone = |card: &str| cards().contains(&format!("{card}:unmanaged\n"));
    until("NetworkManager takes the card for its own", || cards().contains("veth0p1:con"));
    assert!(alone("eth0"));
    let before = [&server, &first].map(told);
    let states = ["server", "worker-1"].map(|name| state_of(&metal.sim, name));
    assert!(!reaches(&first, "192.168.56.110", 6443));

    metal.spec(&[ALPHA, BETA].concat());
    let plan = metal.p1(&["plan"]).exits(10).stdout();
    assert!(plan.contains("its firewall ufw does not let in 6443/tcp"), "{plan}");
    assert!(plan.contains("its NetworkManager takes k3s' network cards for its own"), "{plan}");
    assert_eq!([&server, &first].map(told), before);
    let up = metal.p1(&["up"]).exits(0);
    up.says(&["had ufw let k3s' traffic in", "had firewalld let k3s' traffic in"]);
    metal.p1(&["plan", "--deep"]).exits(0).says(&["nothing to do"]);
    until("NetworkManager leaves k3s' cards alone", || alone("veth0p1") && alone("eth0"));
    // The API is everybody's, the kubelet the nodes'; the user's own rule stays the user's.
    assert!(reaches(&second, "192.168.56.110", 6443) && reaches(&first, "192.168.56.110", 10250));
    assert!(!reaches(&second, "192.168.56.110", 10250));
    let now = told(&server);
    assert!(now.contains("10250 0.0.0.0/0 any 192.168.56.111 in comment=6d696e65"), "{now}");
    assert!(now.contains("any any 0.0.0.0/0 any 10.42.0.0/16 in"), "{now}");

    // Taken away by somebody: of firewalld what holds now, and not what holds from its next start on.
    server.sh("ufw delete allow from 10.42.0.0/16");
    first.sh("firewall-cmd --zone=trusted --remove-source=10.42.0.0/16");
    let plan = metal.p1(&["-o", "json", "plan", "--deep"]).exits(10).stdout();
    for what in ["ufw does not let in 10.42.0.0/16", "firewalld does not let in 10.42.0.0/16"] {
        assert!(plan.contains(what) && plan.contains("\"kind\":\"firewall\""), "{plan}");
    }
    metal.p1(&["up", "--deep"]).exits(0);
    metal.p1(&["plan", "--deep"]).exits(0);
    assert_eq!(told(&server), now);

    // A node that comes is let in by the others, and no longer when it goes.
    metal.spec(&[ALPHA, BETA, GAMMA].concat());
    metal.p1(&["up"]).exits(0);
    assert!(told(&server).contains("192.168.56.112") && told(&first).contains("192.168.56.112"));
    assert!(reaches(&second, "192.168.56.110", 10250));
    metal.spec(&[ALPHA, BETA].concat());
    metal.p1(&["--yes", "up"]).exits(0);
    assert_eq!(told(&server), now);
    assert!(!told(&first).contains("192.168.56.112"));
    metal.p1(&["plan", "--deep"]).exits(0);

    metal.p1(&["--yes", "destroy"]).exits(0);
    assert_eq!([&server, &first].map(told), before);
    assert_eq!(["server", "worker-1"].map(|name| state_of(&metal.sim, name)), states);

    until("NetworkManager has the card back", || cards().contains("veth0p1:con") && alone("eth0"));

    // So do machines that p1 made.
    metal.sim.p1(&["up"]).exits(0);
    let rules = told(&server);
    assert!(rules.contains("192.168.56.112"), "{rules}");
    metal.sim.p1(&["--yes", "uninstall"]).exits(0);
    assert_eq!([&server, &first].map(told), before);
}

/// Takes a machine's systemd away, and gives it what OpenRC has after its boot. Its cgroups are those that it has.
const BECOME_OPENRC: &str = "rm -rf /run/systemd /etc/systemd; rm -f /usr/bin/systemctl /usr/bin/journalctl /usr/bin/systemd-run
mkdir -p /etc/conf.d /etc/runlevels/default /run/openrc; cd /run/openrc
mkdir starting started stopping inactive wasinactive failed hotplugged daemons options exclusive scheduled init.d tmp
touch softlevel
printf '%s\\n' '#!/sbin/openrc-run' 'start() { :; }' >/etc/init.d/cgroups";

#[test]
fn k3s_is_started_watched_and_removed_by_openrc() {
    let metal = Metal::new();
    let archive = packages(&["openrc"]);
    let nodes = ["server", "worker-1"];
    let [server, first] = nodes.map(|name| metal.sim.node(name));
    for node in [&server, &first] {
        node.unpack(&archive);
        node.sh(BECOME_OPENRC);
    }
    let state = |name: &str| {
        let more = "ls /etc/init.d /etc/conf.d /etc/runlevels/default /etc/rancher /var/log 2>/dev/null || :";
        state_of(&metal.sim, name) + &metal.sim.node(name).sh(more)
    };
    let before = nodes.map(state);
    metal.spec(&[ALPHA, BETA].concat());
    let plan = metal.p1(&["plan"]).exits(10).stdout();
    assert!(plan.contains("its service cgroups does not run"), "{plan}");

    // What k3s said in its log is told where it does not start.
    first.fault("unit-crash", "");
    metal.p1(&["up"]).exits(1).says(&["k3s-agent crashes every time it starts", "unit-crash"]);
    first.heal();
    metal.p1(&["retry"]).exits(0);
    metal.p1(&["plan", "--deep"]).exits(0).says(&["nothing to do"]);
    assert!(server.sh("rc-update show default; rc-service cgroups status").contains("k3s"));
    let log = metal.p1(&["logs", "alpha"]).exits(0).stdout();
    assert!(log.contains("k3s is up and running"), "{log}");
    metal.p1(&["verify"]).exits(0);

    // A process that dies is started again by its supervisor, and p1 hears of it; a service that was stopped is not, and p1 starts it.
    let pid = "cat /run/openrc/options/k3s-agent/child_pid";
    let was = first.sh(pid);
    first.sh(&format!("kill -9 $({pid})"));
    until("it is started again", || first.sh(&format!("{pid} || :")) != was);
    server.sh("rc-service k3s stop");
    metal.p1(&["plan", "--deep"]).exits(10);
    metal.p1(&["up", "--deep"]).exits(0);
    metal.p1(&["plan", "--deep"]).exits(0).says(&["nothing to do"]);

    metal.p1(&["--yes", "destroy"]).exits(0);
    assert_eq!(nodes.map(state), before);
}
