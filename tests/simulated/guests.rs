//! What runs on a machine beside k3s and has to get along with it: the real programs, in simulated machines.

use std::path::PathBuf;
use std::process::Command;

use super::existing::{ALPHA, Metal, state_of};
use super::run::until;
use super::sim::Node;

/// An archive with ufw and firewalld.
fn firewalls() -> PathBuf {
    let script = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/sim/firewalls");
    let out = Command::new(script).output().unwrap();
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
fn firewalls_let_k3s_in_for_as_long_as_it_is_there() {
    let metal = Metal::new();
    let archive = firewalls();
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
    let before = [&server, &first].map(told);
    let states = ["server", "worker-1"].map(|name| state_of(&metal.sim, name));
    assert!(!reaches(&first, "192.168.56.110", 6443));

    metal.spec(&[ALPHA, BETA].concat());
    let plan = metal.p1(&["plan"]).exits(10).stdout();
    assert!(plan.contains("its firewall ufw does not let in 6443/tcp"), "{plan}");
    assert_eq!([&server, &first].map(told), before);
    let up = metal.p1(&["up"]).exits(0);
    up.says(&["had ufw let k3s' traffic in", "had firewalld let k3s' traffic in"]);
    metal.p1(&["plan", "--deep"]).exits(0).says(&["nothing to do"]);
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

    // So do machines that p1 made.
    metal.sim.p1(&["up"]).exits(0);
    let rules = told(&server);
    assert!(rules.contains("192.168.56.112"), "{rules}");
    metal.sim.p1(&["--yes", "uninstall"]).exits(0);
    assert_eq!([&server, &first].map(told), before);
}
