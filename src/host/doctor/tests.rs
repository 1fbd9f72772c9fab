use insta::assert_snapshot;

use super::testing::*;
use super::*;
use crate::host::fix;
use crate::host::libvirt::{Link, Network};
use crate::host::net::{Address, Route};
use crate::host::vagrant::Plugin;
use crate::spec::Cluster;
use crate::spec::fixture::named as cluster;
use semver::Version;

fn ask(host: &Host, kind: Kind, cluster: Option<&Cluster>) -> Vec<Finding> {
    checks(host, &Question { kind, engine: Engine::Vagrant, cluster, running: &[], needs: &[] })
}

/// Everything that is not well: id, status and detail.
fn said(findings: &[Finding]) -> String {
    let bad = findings.iter().filter(|f| f.status > Status::Ok);
    bad.map(|f| format!("{} {:?}: {}\n", f.id, f.status, f.detail)).collect()
}

fn iot() -> Cluster {
    cluster("iot", "192.168.56.0/24", &["server", "worker-1"])
}

/// The plan as `doctor --fix` shows it.
fn shown(host: &Host, kind: Kind, cluster: Option<&Cluster>) -> String {
    let plan = fix::plan(host, &ask(host, kind, cluster));
    let actions = plan.actions.iter().map(|a| format!("# {}\n{}\n", a.what, a.line));
    let hand = plan.by_hand.iter().map(|t| format!("by hand: {t}\n"));
    actions.chain(hand).chain(plan.notes.iter().map(|t| format!("note: {t}\n"))).collect()
}

fn without_systemd(mut host: Host) -> Host {
    host.systemd = false;
    host
}

#[test]
fn a_ready_host_has_no_findings_and_an_empty_plan() {
    for host in [ready(), without_systemd(ready())] {
        let findings = ask(&host, Kind::Libvirt, Some(&iot()));
        assert_eq!(said(&findings), "");
        assert_eq!(worst(&findings), Status::Ok);
        let plan = fix::plan(&host, &findings);
        assert!(plan.actions.is_empty() && plan.by_hand.is_empty());
    }
}

#[test]
fn a_users_own_libvirt_wants_a_bridge_of_roots_and_no_network() {
    use crate::host::bridge::{Allowed, BridgeFacts};
    use crate::spec::LibvirtUri;

    let mut host = ready();
    host.user = crate::host::system::User { name: "ada".into(), uid: 1000, ..Default::default() };
    (host.libvirt.uri, host.libvirt.virtlogd, host.libvirt.networks) = (LibvirtUri::Session, false, vec![]);
    for name in ["dnsmasq", "iptables", "vagrant"] {
        host.programs.remove(name);
    }
    let good = BridgeFacts {
        name: "br0".into(),
        there: Some(true),
        up: true,
        helper: Some("/usr/lib/qemu/qemu-bridge-helper".into()),
        helper_may: true,
        allowed: Allowed::Yes,
    };
    host.bridge = Some(good.clone());
    host.addresses.push(Address { address: net("192.168.56.1/24"), device: "br0".into() });
    host.routes.push(Route { net: net("192.168.56.0/24"), device: "br0".into() });
    let asked = |host: &Host| {
        let (cluster, engine) = (iot(), Engine::Direct);
        let question =
            Question { kind: Kind::Libvirt, engine, cluster: Some(&cluster), running: &[], needs: &[] };
        let findings = checks(host, &question);
        let bad = findings.iter().filter(|f| f.status > Status::Ok);
        let one = |f: &Finding| {
            assert!(f.id == "pool" || f.remedy.as_ref().is_none_or(|r| r.steps.is_empty()), "root's");
            let remedy = f.remedy.as_ref().map(|r| format!("\n  {}", r.text)).unwrap_or_default();
            format!("{} {:?}: {}{remedy}\n", f.id, f.status, f.detail)
        };
        bad.map(one).collect::<String>()
    };
    assert_eq!(asked(&host), "");

    let mut bad = host.clone();
    bad.bridge = Some(BridgeFacts { name: "br0".into(), there: Some(false), ..BridgeFacts::default() });
    bad.addresses.pop();
    bad.routes.pop();
    bad.libvirt.pool = None;
    bad.libvirt.images = "/home/ada/.local/share/libvirt/images".into();
    assert_snapshot!(asked(&bad), @r"
    pool Note: default is not there yet; it is made with the first VM, in /home/ada/.local/share/libvirt/images
    bridge Problem: there is no bridge br0
      As root: ip link add br0 address 52:54:00:4d:f3:73 type bridge && ip address add 192.168.56.1/24 dev br0 && ip link set br0 up
    bridge-helper Problem: not installed
      Install the package qemu-system-common.
    bridge-allowed Problem: /etc/qemu/bridge.conf does not allow br0
      As root, for all users of this host: mkdir -p /etc/qemu && echo 'allow br0' >>/etc/qemu/bridge.conf && chmod 0644 /etc/qemu/bridge.conf
    ");
    bad.bridge = Some(BridgeFacts { helper_may: false, allowed: Allowed::Unknown, ..good.clone() });
    bad.libvirt.pool = host.libvirt.pool.clone();
    assert_snapshot!(asked(&bad), @r"
    bridge Problem: br0 has no address of 192.168.56.0/24
      As root: ip address add 192.168.56.1/24 dev br0 && ip link set br0 up
    bridge-helper Problem: /usr/lib/qemu/qemu-bridge-helper is not setuid, and no user gets a card on a bridge from it
      As root: dpkg-statoverride --update --add root root 4755 /usr/lib/qemu/qemu-bridge-helper
    bridge-allowed Warning: ada may not read /etc/qemu/bridge.conf
      See as root that it, or what it includes, has `allow br0`, and that this user may read that file: the helper reads it as this user.
    ");
    let mut other = host.clone();
    other.addresses.last_mut().unwrap().address = net("192.168.56.110/24");
    other.bridge = Some(BridgeFacts { up: false, ..good.clone() });
    assert_snapshot!(asked(&other), @r"
    bridge Problem: br0 is not up
      As root: ip link set br0 up
    ");
    other.bridge = Some(good);
    assert_snapshot!(asked(&other), @r"
    bridge Problem: this host has 192.168.56.110 at br0, which is the address of `server`
      Give the node another `ip` in the spec.
    ");
    other.addresses.last_mut().unwrap().address = net("192.168.56.7/24");
    assert_snapshot!(asked(&other), @r"
    bridge Note: br0 is up, this host is 192.168.56.7 there; the nodes' gateway is 192.168.56.1, the first of 192.168.56.0/24
    ");
}

/// Neither Vagrant nor libvirt, nor room for machines.
#[test]
fn machines_that_exist_already_ask_little_of_this_host() {
    let mut cluster = iot();
    cluster.network = crate::spec::Network::none();
    let mut host = bare();
    (host.memory.total, host.memory.available, host.free_images) = (200, 100, Some(10));
    let question = |needs| Question {
        kind: Kind::Ssh,
        engine: Engine::Direct,
        cluster: Some(&cluster),
        running: &[],
        needs,
    };
    assert_eq!(said(&checks(&host, &question(&[]))), "");
    host.programs.remove("ssh");
    assert_snapshot!(said(&checks(&host, &question(&[]))), @"tools Problem: ssh is missing, which is needed to log into nodes");
}

#[test]
fn a_bare_debian_with_systemd() {
    assert_snapshot!(said(&ask(&bare(), Kind::Libvirt, Some(&iot()))), @r"
    vagrant Problem: not installed
    plugin Problem: not installed
    qemu Problem: not installed
    libvirt Problem: not installed
    tools Problem: qemu-img is missing, which is needed to read disk images
    ");
    assert_snapshot!(shown(&bare(), Kind::Libvirt, None), @r"
    # fetch the package lists
    env DEBIAN_FRONTEND=noninteractive apt-get -o DPkg::Lock::Timeout=120 update
    # install packages
    env DEBIAN_FRONTEND=noninteractive apt-get -o DPkg::Lock::Timeout=120 install -y --no-install-recommends dnsmasq-base iptables libvirt-clients libvirt-daemon-system qemu-system-x86 qemu-utils vagrant vagrant-libvirt
    # start libvirt, now and at boot
    systemctl enable --now libvirtd.service
    # define the storage pool
    virsh -c qemu:///system pool-info default >/dev/null 2>&1 || virsh -c qemu:///system pool-define-as default dir --target /var/lib/libvirt/images
    # start the storage pool, now and at boot
    mkdir -p /var/lib/libvirt/images && virsh -c qemu:///system pool-autostart default && { virsh -c qemu:///system pool-list --name | grep -qx 'default *' || virsh -c qemu:///system pool-start default; }
    ");
}

#[test]
fn a_bare_debian_in_a_container_with_a_decoy() {
    let mut host = without_systemd(bare());
    host.kvm.flags = false;
    host.kvm.device = Some(device(0o600, 0));
    assert_snapshot!(shown(&host, Kind::Libvirt, None), @r"
    # fetch the package lists
    env DEBIAN_FRONTEND=noninteractive apt-get -o DPkg::Lock::Timeout=120 update
    # install packages
    env DEBIAN_FRONTEND=noninteractive apt-get -o DPkg::Lock::Timeout=120 install -y --no-install-recommends dnsmasq-base iptables libvirt-clients libvirt-daemon-system qemu-system-x86 qemu-utils vagrant vagrant-libvirt
    # let QEMU's user open /dev/kvm
    chown root:kvm /dev/kvm && chmod 0660 /dev/kvm
    # start libvirt's log daemon
    grep -qs virtlogd-sock /proc/net/unix || virtlogd -d
    # start libvirt
    virsh -c qemu:///system version >/dev/null 2>&1 || libvirtd -d
    # define the storage pool
    virsh -c qemu:///system pool-info default >/dev/null 2>&1 || virsh -c qemu:///system pool-define-as default dir --target /var/lib/libvirt/images
    # start the storage pool, now and at boot
    mkdir -p /var/lib/libvirt/images && virsh -c qemu:///system pool-autostart default && { virsh -c qemu:///system pool-list --name | grep -qx 'default *' || virsh -c qemu:///system pool-start default; }
    note: Without systemd nothing starts libvirt at boot: `p1 doctor --fix` starts it again.
    ");
}

#[test]
fn an_ordinary_user_on_ubuntu_2404() {
    let mut host = bare();
    host.distro = ubuntu();
    host.user.name = "ada".into();
    host.user.uid = 1000;
    host.programs.insert("sudo".into(), "/usr/bin/sudo".into());
    assert_snapshot!(shown(&host, Kind::Libvirt, None), @r#"
    # fetch the package lists
    sudo env DEBIAN_FRONTEND=noninteractive apt-get -o DPkg::Lock::Timeout=120 update
    # install packages
    sudo env DEBIAN_FRONTEND=noninteractive apt-get -o DPkg::Lock::Timeout=120 install -y --no-install-recommends dnsmasq-base iptables libvirt-clients libvirt-daemon-system qemu-system-x86 qemu-utils
    # let you use libvirt and KVM
    sudo usermod -aG libvirt,kvm ada
    # start libvirt, now and at boot
    sudo systemctl enable --now libvirtd.service
    # define the storage pool
    sudo sh -c 'virsh -c qemu:///system pool-info default >/dev/null 2>&1 || virsh -c qemu:///system pool-define-as default dir --target /var/lib/libvirt/images'
    # start the storage pool, now and at boot
    sudo sh -c "mkdir -p /var/lib/libvirt/images && virsh -c qemu:///system pool-autostart default && { virsh -c qemu:///system pool-list --name | grep -qx 'default *' || virsh -c qemu:///system pool-start default; }"
    by hand: Ubuntu 24.04.3 LTS has no package of Vagrant 2.3.0 or later. HashiCorp's apt repository has one. Run:
    wget -qO- https://apt.releases.hashicorp.com/gpg | sudo gpg --dearmor --yes -o /usr/share/keyrings/hashicorp-archive-keyring.gpg
    echo 'deb [signed-by=/usr/share/keyrings/hashicorp-archive-keyring.gpg] https://apt.releases.hashicorp.com noble main' | sudo tee /etc/apt/sources.list.d/hashicorp.list
    sudo apt-get update
    sudo apt-get install -y vagrant
    by hand: It is built against libvirt. Run:
    sudo apt-get install -y build-essential libvirt-dev
    VAGRANT_HOME=/root/.local/share/p1/vagrant vagrant plugin install vagrant-libvirt
    Where it does not build with the newest Vagrant, 2.4.1 is a version that others use it with.
    note: A new login is needed before the new groups count: log out and in, then run p1 again.
    "#);
    host.programs.remove("sudo");
    assert_snapshot!(shown(&host, Kind::Libvirt, None).lines().last().unwrap(), @"note: A new login is needed before the new groups count: log out and in, then run p1 again.");
}

#[test]
fn fedora_is_told_its_own_names_of_packages() {
    let mut host = bare();
    host.distro = fedora();
    host.programs.remove("apt-get");
    assert_snapshot!(shown(&host, Kind::Libvirt, None), @r"
    by hand: Run: sudo dnf install -y dnsmasq iptables-nft libvirt-client libvirt-daemon-kvm qemu-img qemu-kvm vagrant vagrant-libvirt
    by hand: Run as root: systemctl enable --now virtqemud.socket virtnetworkd.socket virtstoraged.socket virtlogd.socket
    by hand: Run as root: virsh -c qemu:///system pool-info default >/dev/null 2>&1 || virsh -c qemu:///system pool-define-as default dir --target /var/lib/libvirt/images
    by hand: Run as root: mkdir -p /var/lib/libvirt/images && virsh -c qemu:///system pool-autostart default && { virsh -c qemu:///system pool-list --name | grep -qx 'default *' || virsh -c qemu:///system pool-start default; }
    ");
    host.vagrant.program = Some("/usr/bin/vagrant".into());
    host.vagrant.version = Some(Version::new(2, 4, 9));
    host.vagrant.vendor = true;
    let shown = shown(&host, Kind::Libvirt, None);
    assert!(shown.contains("sudo dnf install -y gcc make libvirt-devel\n"), "{shown}");
}

#[test]
fn vagrant_of_hashicorp_does_not_see_debians_plugin() {
    let mut host = ready();
    host.vagrant.vendor = true;
    host.vagrant.plugin = Plugin::Absent;
    host.vagrant.plugin_elsewhere = true;
    assert_snapshot!(said(&ask(&host, Kind::Libvirt, None)), @"plugin Problem: not installed for p1, which keeps a Vagrant home of its own (it is in ~/.vagrant.d)");
    assert_snapshot!(shown(&host, Kind::Libvirt, None), @"
    by hand: It is built against libvirt. Run:
    sudo apt-get install -y build-essential libvirt-dev
    VAGRANT_HOME=/root/.local/share/p1/vagrant vagrant plugin install vagrant-libvirt
    Where it does not build with the newest Vagrant, 2.4.1 is a version that others use it with.
    ");
}

#[test]
fn installed_but_not_started() {
    let mut host = ready();
    host.libvirt.link = Link::Down("No such file or directory".into());
    host.libvirt.virtlogd = false;
    assert_snapshot!(shown(&host, Kind::Libvirt, None), @r"
    # start libvirt, now and at boot
    systemctl enable --now libvirtd.service
    # define the storage pool
    virsh -c qemu:///system pool-info default >/dev/null 2>&1 || virsh -c qemu:///system pool-define-as default dir --target /var/lib/libvirt/images
    # start the storage pool, now and at boot
    mkdir -p /var/lib/libvirt/images && virsh -c qemu:///system pool-autostart default && { virsh -c qemu:///system pool-list --name | grep -qx 'default *' || virsh -c qemu:///system pool-start default; }
    ");
    assert_snapshot!(shown(&without_systemd(host), Kind::Libvirt, None), @r"
    # start libvirt's log daemon
    grep -qs virtlogd-sock /proc/net/unix || virtlogd -d
    # start libvirt
    virsh -c qemu:///system version >/dev/null 2>&1 || libvirtd -d
    # define the storage pool
    virsh -c qemu:///system pool-info default >/dev/null 2>&1 || virsh -c qemu:///system pool-define-as default dir --target /var/lib/libvirt/images
    # start the storage pool, now and at boot
    mkdir -p /var/lib/libvirt/images && virsh -c qemu:///system pool-autostart default && { virsh -c qemu:///system pool-list --name | grep -qx 'default *' || virsh -c qemu:///system pool-start default; }
    note: Without systemd nothing starts libvirt at boot: `p1 doctor --fix` starts it again.
    ");
}

#[test]
fn not_let_in() {
    let mut host = ready();
    host.user.name = "ada".into();
    host.user.uid = 1000;
    host.libvirt.link = Link::Denied("Permission denied".into());
    host.programs.insert("sudo".into(), "/usr/bin/sudo".into());
    assert_snapshot!(shown(&host, Kind::Libvirt, None), @r"
    # let you use libvirt and KVM
    sudo usermod -aG libvirt,kvm ada
    note: A new login is needed before the new groups count: log out and in, then run p1 again.
    ");
    host.user.granted = vec!["libvirt".into()];
    assert_snapshot!(shown(&host, Kind::Libvirt, None), @"by hand: You are in the group libvirt, but not in this session: log in again.");
    host.user.groups = vec!["libvirt".into()];
    assert_snapshot!(shown(&host, Kind::Libvirt, None), @r#"by hand: Where no polkit runs, set auth_unix_rw = "none" in /etc/libvirt/libvirtd.conf and restart libvirtd; its socket stays closed to all but the group libvirt."#);
}

#[test]
fn a_device_that_only_root_can_open() {
    let mut host = without_systemd(ready());
    host.kvm.device = Some(device(0o600, 0));
    host.kvm.qemu_user = Some(("libvirt-qemu".into(), false));
    assert_snapshot!(said(&ask(&host, Kind::Libvirt, None)), @"kvm Warning: the user libvirt-qemu, as which QEMU runs, may not open /dev/kvm. The VMs will be emulated: they work, about ten times slower");
    host.kvm.flags = false;
    assert_snapshot!(said(&ask(&host, Kind::Libvirt, None)), @r"
    kvm Warning: /dev/kvm exists, but the processor shows neither vmx nor svm, so guests cannot run on it. The VMs will be emulated: they work, about ten times slower
    kvm-access Warning: root may open it and QEMU's user may not, so libvirt examines QEMU again at every call: a `vagrant up` of one minute takes five
    ");
    assert_snapshot!(shown(&host, Kind::Libvirt, None), @r"
    # let QEMU's user open /dev/kvm
    chown root:kvm /dev/kvm && chmod 0660 /dev/kvm
    ");
}

/// The three ways out where an installed package of QEMU is newer than what a plain install takes.
#[test]
fn qemu_packages_stay_of_one_version() {
    let policy = |there: &str, offers: &str| {
        format!(
            "qemu-utils:\n  Installed: {there}\n  Candidate: {there}\n  Version table:\n *** {there} 100\n        100 /var/lib/dpkg/status\n\
             qemu-system-x86:\n  Installed: (none)\n  Candidate: 1:7.2\n  Version table:\n{offers}     1:7.2 500\n        500 http://deb.debian.org/debian bookworm/main amd64 Packages\n"
        )
    };
    let from = |there: &str, offers: &str| {
        let mut host = ready();
        host.programs.remove("qemu-system-x86_64");
        host.apt.packages = crate::host::apt::policy(&policy(there, offers));
        shown(&host, Kind::Libvirt, None)
    };
    let offered = "     1:10.0~bpo12+1 100\n        100 http://deb.debian.org/debian bookworm-backports/main amd64 Packages\n";
    assert_snapshot!(from("1:10.0~bpo12+1", offered), @r"
    # fetch the package lists
    env DEBIAN_FRONTEND=noninteractive apt-get -o DPkg::Lock::Timeout=120 update
    # install QEMU, from the same suite as its installed packages (bookworm-backports)
    env DEBIAN_FRONTEND=noninteractive apt-get -o DPkg::Lock::Timeout=120 install -y --no-install-recommends -t bookworm-backports qemu-system-x86 qemu-utils
    ");
    assert_snapshot!(from("1:10.0~bpo12+1", ""), @r"
    # use bookworm-backports, where the installed QEMU packages come from
    echo 'deb http://deb.debian.org/debian bookworm-backports main' >/etc/apt/sources.list.d/bookworm-backports.list
    # fetch the package lists
    env DEBIAN_FRONTEND=noninteractive apt-get -o DPkg::Lock::Timeout=120 update
    # install QEMU, from the same suite as its installed packages (bookworm-backports)
    env DEBIAN_FRONTEND=noninteractive apt-get -o DPkg::Lock::Timeout=120 install -y --no-install-recommends -t bookworm-backports qemu-system-x86 qemu-utils
    ");
    assert_snapshot!(from("1:9.9+mine", ""), @r"
    # fetch the package lists
    env DEBIAN_FRONTEND=noninteractive apt-get -o DPkg::Lock::Timeout=120 update
    # install QEMU, taking its newer installed packages back to the same version
    env DEBIAN_FRONTEND=noninteractive apt-get -o DPkg::Lock::Timeout=120 install -y --no-install-recommends --allow-downgrades qemu-utils=1:7.2 qemu-system-x86
    ");
    assert_snapshot!(from("1:7.2", ""), @r"
    # fetch the package lists
    env DEBIAN_FRONTEND=noninteractive apt-get -o DPkg::Lock::Timeout=120 update
    # install packages
    env DEBIAN_FRONTEND=noninteractive apt-get -o DPkg::Lock::Timeout=120 install -y --no-install-recommends qemu-system-x86 qemu-utils
    ");
}

#[test]
fn room_is_counted_for_nodes_that_do_not_run_yet() {
    let mut host = ready();
    let mut cluster = iot();
    let look = |host: &Host, cluster: &Cluster, running: &[String]| {
        said(&checks(
            host,
            &Question {
                kind: Kind::Libvirt,
                engine: Engine::Vagrant,
                cluster: Some(cluster),
                running,
                needs: &[],
            },
        ))
    };
    host.memory.available = 1500;
    cluster.nodes[1].size.as_mut().unwrap().cpus = 8;
    assert_snapshot!(look(&host, &cluster, &[]), @r"
    memory Warning: 2 VMs to be started need 2.2 GiB, 1.5 GiB are free; the host will swap or VMs will be killed
    cpus Warning: a node has 8 and the host has 4; it works, slowly
    ");
    assert_snapshot!(look(&host, &cluster, &["server".into()]), @r"
    cpus Warning: a node has 8 and the host has 4; it works, slowly
    network Warning: libvirt's network p1-iot is not there, and server cannot be reached
    ");
    cluster.nodes[0].size.as_mut().unwrap().memory = 16_384;
    host.libvirt.pool.as_mut().unwrap().free = Some(500);
    assert_snapshot!(look(&host, &cluster, &[]), @r"
    memory Problem: 2 VMs to be started need 17.2 GiB, 1.5 GiB are free, and the host has 8.0 GiB in all
    cpus Warning: a node has 8 and the host has 4; it works, slowly
    disk Problem: only 500 MiB are free, 7.0 GiB are needed
    ");
    assert!(!look(&host, &cluster, &["server".into(), "worker-1".into()]).contains("memory"));
}

#[test]
fn addresses_that_are_taken() {
    let look = |change: &dyn Fn(&mut Host), kind| {
        let mut host = ready();
        change(&mut host);
        said(&ask(&host, kind, Some(&iot())).into_iter().filter(|f| f.id == "addresses").collect::<Vec<_>>())
    };
    let route = |to: &str, device: &str| Route { net: net(to), device: device.into() };
    let network = |name: &str, cidr: &str| Network {
        name: name.into(),
        cidr: Some(net(cidr)),
        bridge: Some("virbr7".into()),
        active: true,
    };
    let libvirt = |change: &dyn Fn(&mut Host)| look(change, Kind::Libvirt);
    assert_snapshot!(libvirt(&|h| h.routes.push(route("192.168.56.0/25", "eth1"))), @"addresses Problem: the host has a route to 192.168.56.0/25 through eth1, which overlaps 192.168.56.0/24");
    assert_snapshot!(libvirt(&|h| h.routes.push(route("192.168.0.0/16", "tun0"))), @"addresses Warning: the host reaches 192.168.0.0/16 through tun0; the part 192.168.56.0/24 of it would be hidden by the cluster");
    assert_snapshot!(libvirt(&|h| h.addresses.push(Address { address: net("192.168.56.9/32"), device: "lo".into() })), @"addresses Problem: the host has the address 192.168.56.9 at lo, which lies in 192.168.56.0/24");
    assert_snapshot!(libvirt(&|h| {
        h.libvirt.networks.push(network("lab", "192.168.56.0/23"));
        h.routes.push(route("192.168.56.0/23", "virbr7"));
    }), @"addresses Problem: libvirt's network lab has 192.168.56.0/23, which overlaps 192.168.56.0/24");
    assert_snapshot!(libvirt(&|h| h.libvirt.networks.push(network("p1-iot", "192.168.99.0/24"))), @"addresses Problem: libvirt's network p1-iot has 192.168.99.0/24, the spec says 192.168.56.0/24");
    // Our own network, and VirtualBox' adapter for it.
    assert_eq!(
        libvirt(&|h| {
            h.libvirt.networks.push(network("p1-iot", "192.168.56.0/24"));
            h.routes.push(route("192.168.56.0/24", "virbr7"));
            h.addresses.push(Address { address: net("192.168.56.1/24"), device: "virbr7".into() });
        }),
        ""
    );
    let adapter = |h: &mut Host| {
        h.routes.push(route("192.168.56.0/24", "vboxnet0"));
        h.addresses.push(Address { address: net("192.168.56.1/24"), device: "vboxnet0".into() });
    };
    assert_eq!(look(&adapter, Kind::Virtualbox), "");
    assert_ne!(look(&adapter, Kind::Libvirt), "");
}

#[test]
fn virtualbox_names_the_file_and_the_line() {
    let mut host = ready();
    assert_snapshot!(said(&ask(&host, Kind::Virtualbox, None)), @"virtualbox Problem: not installed");
    host.virtualbox = Some(crate::host::facts::VirtualBox {
        version: Some(semver::Version::new(7, 0, 20)),
        fault: None,
        ranges: vec![net("192.168.56.0/21")],
    });
    let p1 = cluster("p1", "192.168.42.0/24", &["server"]);
    assert_snapshot!(said(&ask(&host, Kind::Virtualbox, Some(&p1))), @"ranges Problem: 192.168.42.0/24 is not allowed for host-only networks; allowed: 192.168.56.0/21");
    assert_snapshot!(shown(&host, Kind::Virtualbox, Some(&p1)), @r"
    # allow the network in VirtualBox
    { mkdir -p /etc/vbox && { [ -e /etc/vbox/networks.conf ] || echo '* 192.168.56.0/21' >/etc/vbox/networks.conf; } && echo '* 192.168.42.0/24' >>/etc/vbox/networks.conf; }
    ");
    assert_eq!(said(&ask(&host, Kind::Virtualbox, Some(&iot()))), "");
}

#[test]
fn tools_for_a_box_are_asked_for_only_when_one_is_built() {
    let needs = [Tool { program: "mmdebstrap", package: "mmdebstrap", purpose: "build a box" }];
    let findings = checks(
        &ready(),
        &Question {
            kind: Kind::Libvirt,
            engine: Engine::Vagrant,
            cluster: None,
            running: &[],
            needs: &needs,
        },
    );
    assert_snapshot!(said(&findings), @"tools Problem: mmdebstrap is missing, which is needed to build a box");
}
