//! QEMU, libvirt and Vagrant's plugin for it.

use semver::Version;

use super::tools::has_vagrant_package;
use super::{Finding, Question, Status};
use crate::host::facts::Host;
use crate::host::fix::{Stage, Step};
use crate::host::kvm::Kvm;
use crate::host::libvirt::{Link, POOL, POOL_PATH};
use crate::host::vagrant::Plugin;
use crate::machines::Engine;
use crate::spec::LibvirtUri;

/// What p1 was measured with.
const PLUGIN: Version = Version::new(0, 11, 2);
const URI: &str = LibvirtUri::System.word();

pub(super) fn checks(host: &Host, question: &Question<'_>) -> Vec<Finding> {
    let mut findings = Vec::new();
    if question.engine == Engine::Vagrant {
        findings.push(plugin(host));
    }
    findings.extend([qemu(host), kvm(host)]);
    if host.libvirt.uri == LibvirtUri::Session {
        // Daemons start by themselves when they are asked.
        findings.push(own_daemon(host));
        findings.extend((host.libvirt.link == Link::Up).then(|| pool(host)));
        findings.extend(super::bridge::checks(host, question.cluster));
        return findings;
    }
    findings.extend(slow_probe(host));
    findings.push(daemon(host));
    if host.libvirt.link == Link::Up {
        findings.extend(virtlogd(host));
        findings.push(pool(host));
        findings.extend(helpers(host));
    }
    findings
}

fn plugin(host: &Host) -> Finding {
    let finding = |status, detail: String| Finding::new("plugin", "vagrant-libvirt", status, detail);
    match &host.vagrant.plugin {
        Plugin::Installed(Some(v)) if *v < PLUGIN => {
            finding(Status::Warning, format!("{v} is older than what p1 is tested with, {PLUGIN}"))
        }
        Plugin::Installed(Some(v)) => finding(Status::Ok, v.to_string()),
        Plugin::Installed(None) => finding(Status::Ok, "installed".to_owned()),
        Plugin::Absent if !apt_plugin_will_do(host) => {
            let mut detail = "not installed".to_owned();
            if host.vagrant.plugin_elsewhere {
                detail += " for p1, which keeps a Vagrant home of its own (it is in ~/.vagrant.d)";
            }
            finding(Status::Problem, detail).remedy(
                format!(
                    "It is built against libvirt. Run:\n{}VAGRANT_HOME={} vagrant plugin install vagrant-libvirt\n\
                     Where it does not build with the newest Vagrant, 2.4.1 is a version that others use it with.",
                    build_packages(host),
                    crate::os::process::quote(&host.vagrant_home.to_string_lossy())
                ),
                [],
            )
        }
        Plugin::Absent => finding(Status::Problem, "not installed".to_owned())
            .remedy("Install the package vagrant-libvirt.", [Step::install("vagrant-libvirt")]),
    }
}

/// The command, with its line's end, that installs what the plugin is built with.
fn build_packages(host: &Host) -> &'static str {
    if host.distro.is_debian_like() {
        "sudo apt-get install -y build-essential libvirt-dev\n"
    } else if host.distro.is_fedora_like() {
        "sudo dnf install -y gcc make libvirt-devel\n"
    } else {
        ""
    }
}

/// Debian's package of the plugin serves Debian's Vagrant only.
fn apt_plugin_will_do(host: &Host) -> bool {
    match host.vagrant.program {
        Some(_) => (host.distro.is_debian_like() || host.distro.is_fedora_like()) && !host.vagrant.vendor,
        None => has_vagrant_package(host),
    }
}

fn qemu_package(host: &Host) -> &'static str {
    if host.arch == "aarch64" { "qemu-system-arm" } else { "qemu-system-x86" }
}

fn qemu(host: &Host) -> Finding {
    match host.qemu() {
        Some(path) => Finding::new("qemu", "QEMU", Status::Ok, path.display().to_string()),
        None => Finding::new("qemu", "QEMU", Status::Problem, "not installed").remedy(
            format!("Install the package {}.", qemu_package(host)),
            [Step::install(qemu_package(host)), Step::install("qemu-utils")],
        ),
    }
}

fn kvm(host: &Host) -> Finding {
    let finding = |status, detail: String| Finding::new("kvm", "hardware virtualisation", status, detail);
    let emulated = |why: &str| {
        finding(
            Status::Warning,
            format!("{why}. The VMs will be emulated: they work, about ten times slower"),
        )
    };
    match host.kvm.verdict() {
        Kvm::Usable => finding(Status::Ok, "/dev/kvm works".to_owned()),
        Kvm::Closed { why } if host.libvirt.uri == LibvirtUri::Session => emulated(&why).remedy(
            "Join the group kvm, and log in again.",
            [Step::root(
                Stage::Account,
                "let you use KVM",
                format!("usermod -aG kvm {}", crate::os::process::quote(&host.user.name)),
            )],
        ),
        Kvm::Closed { why } => emulated(&why).remedy("Let the group kvm open /dev/kvm.", open_device(host)),
        Kvm::Decoy { why } => emulated(&why).remedy(
            "Run p1 on a machine with hardware virtualisation, or in a VM with nested virtualisation.",
            [],
        ),
        Kvm::Missing { why } if host.kvm.flags => emulated(&why).remedy(
            "Run `modprobe kvm_intel` or `modprobe kvm_amd` as root; give a container the device.",
            [],
        ),
        Kvm::Missing { why } => emulated(&why).remedy(
            "Switch virtualisation on in the firmware (VT-x, AMD-V), or nested virtualisation for this VM.",
            [],
        ),
    }
}

/// A device that QEMU's user cannot open makes libvirt slow even where it is of no use.
fn slow_probe(host: &Host) -> Option<Finding> {
    let closed = matches!(host.kvm.verdict(), Kvm::Closed { .. });
    (host.kvm.slows_libvirt() && !closed).then(|| {
        Finding::new(
            "kvm-access",
            "access to /dev/kvm",
            Status::Warning,
            "root may open it and QEMU's user may not, so libvirt examines QEMU again at every call: a \
             `vagrant up` of one minute takes five",
        )
        .remedy("Let the group kvm open /dev/kvm, or remove the device.", open_device(host))
    })
}

fn open_device(host: &Host) -> Vec<Step> {
    let mut steps = vec![Step::root(
        Stage::Device,
        "let QEMU's user open /dev/kvm",
        "chown root:kvm /dev/kvm && chmod 0660 /dev/kvm",
    )];
    if host.systemd {
        // udev recreates the device at every boot.
        steps.push(Step::root(
            Stage::Device,
            "keep it so after a reboot",
            r#"echo 'KERNEL=="kvm", GROUP="kvm", MODE="0660", OPTIONS+="static_node=kvm"' >/etc/udev/rules.d/65-kvm.rules"#,
        ));
    }
    steps
}

fn daemon(host: &Host) -> Finding {
    let finding = |status, detail: String| Finding::new("libvirt", "libvirt", status, detail);
    match &host.libvirt.link {
        Link::Up => {
            let version = host.libvirt.version.as_deref().unwrap_or("of an unknown version");
            finding(Status::Ok, format!("{version} answers at {URI}"))
        }
        Link::Absent => {
            let packages = ["libvirt-daemon-system", "libvirt-clients", "dnsmasq-base", "iptables"];
            let mut steps: Vec<Step> = packages.into_iter().map(Step::install).collect();
            steps.extend(admit(host));
            steps.extend(start(host));
            steps.extend(make_pool());
            // Where udev does not do it, the device comes as root's alone.
            if host.kvm.device.as_ref().is_some_and(|d| d.mode & 0o006 != 0o006) && !host.systemd {
                steps.extend(open_device(host));
            }
            finding(Status::Problem, "not installed".to_owned()).remedy(
                "Install the package libvirt-daemon-system and what goes with it, and start it.",
                steps,
            )
        }
        Link::Down(why) => {
            let mut steps = start(host);
            steps.extend(make_pool());
            finding(Status::Problem, format!("its daemon does not answer: {why}"))
                .remedy("Start libvirtd.", steps)
        }
        Link::Denied(why) => {
            let denied = finding(Status::Problem, format!("it does not let {} in: {why}", host.user.name));
            let has = |groups: &[String]| groups.iter().any(|g| g == "libvirt");
            if has(&host.user.groups) {
                denied.remedy(
                    "Where no polkit runs, set auth_unix_rw = \"none\" in /etc/libvirt/libvirtd.conf and restart \
                     libvirtd; its socket stays closed to all but the group libvirt.",
                    [],
                )
            } else if has(&host.user.granted) {
                denied.remedy("You are in the group libvirt, but not in this session: log in again.", [])
            } else {
                denied.remedy("Join the group libvirt, and log in again.", admit(host))
            }
        }
    }
}

/// The user's own, which virsh starts.
fn own_daemon(host: &Host) -> Finding {
    let finding = |status, detail: String| Finding::new("libvirt", "libvirt", status, detail);
    let packages = ["libvirt-daemon", "libvirt-clients"].map(Step::install);
    let install = "Install the packages libvirt-daemon and libvirt-clients.";
    match &host.libvirt.link {
        Link::Up => {
            let version = host.libvirt.version.as_deref().unwrap_or("of an unknown version");
            finding(Status::Ok, format!("{version} answers at {}", host.libvirt.uri.word()))
        }
        Link::Absent => finding(Status::Problem, "not installed".to_owned()).remedy(install, packages),
        Link::Down(why) | Link::Denied(why) => {
            let detail = format!("the daemon that virsh starts for this user does not answer: {why}");
            finding(Status::Problem, detail).remedy(install, packages)
        }
    }
}

/// Puts an ordinary user into the groups that may use libvirt and KVM.
fn admit(host: &Host) -> Vec<Step> {
    let has = |group: &str| host.user.granted.iter().any(|g| g == group);
    if host.user.is_root() || (has("libvirt") && has("kvm")) {
        return Vec::new();
    }
    let line = format!("usermod -aG libvirt,kvm {}", crate::os::process::quote(&host.user.name));
    vec![
        Step::root(Stage::Account, "let you use libvirt and KVM", line)
            .note("A new login is needed before the new groups count: log out and in, then run p1 again."),
    ]
}

fn start(host: &Host) -> Vec<Step> {
    if host.systemd {
        // Its unit pulls in the sockets of virtlogd and virtlockd. Fedora has a daemon for each part since 35
        // (libvirt.org/daemons.html).
        let line = match host.distro.is_fedora_like() {
            true => {
                "systemctl enable --now virtqemud.socket virtnetworkd.socket virtstoraged.socket virtlogd.socket"
            }
            false => "systemctl enable --now libvirtd.service",
        };
        return vec![Step::root(Stage::Start, "start libvirt, now and at boot", line)];
    }
    let mut steps = Vec::new();
    if !host.libvirt.virtlogd {
        steps.push(start_virtlogd());
    }
    let line = format!("virsh -c {URI} version >/dev/null 2>&1 || libvirtd -d");
    steps.push(
        Step::root(Stage::Start, "start libvirt", line)
            .note("Without systemd nothing starts libvirt at boot: `p1 doctor --fix` starts it again."),
    );
    steps
}

fn start_virtlogd() -> Step {
    // The package may have started it when it was installed.
    let line = "grep -qs virtlogd-sock /proc/net/unix || virtlogd -d";
    Step::root(Stage::Start, "start libvirt's log daemon", line)
}

fn virtlogd(host: &Host) -> Option<Finding> {
    (!host.libvirt.virtlogd).then(|| {
        let step = match host.systemd {
            true => Step::root(
                Stage::Start,
                "start libvirt's log daemon",
                "systemctl enable --now virtlogd.socket",
            ),
            false => start_virtlogd(),
        };
        Finding::new(
            "virtlogd",
            "libvirt's log daemon",
            Status::Problem,
            "it does not run, and no VM starts without it",
        )
        .remedy("Start virtlogd.", [step])
    })
}

fn make_pool() -> Vec<Step> {
    let virsh = format!("virsh -c {URI}");
    let quiet = ">/dev/null 2>&1";
    vec![
        Step::root(
            Stage::Storage,
            "define the storage pool",
            format!(
                "{virsh} pool-info {POOL} {quiet} || {virsh} pool-define-as {POOL} dir --target {POOL_PATH}"
            ),
        ),
        Step::root(
            Stage::Storage,
            "start the storage pool, now and at boot",
            format!(
                "mkdir -p {POOL_PATH} && {virsh} pool-autostart {POOL} && \
                 {{ {virsh} pool-list --name | grep -qx '{POOL} *' || {virsh} pool-start {POOL}; }}"
            ),
        ),
    ]
}

fn pool(host: &Host) -> Finding {
    let finding = |status, detail: String| Finding::new("pool", "storage pool", status, detail);
    if host.libvirt.uri == LibvirtUri::Session && host.libvirt.pool.as_ref().is_none_or(|pool| !pool.active) {
        let how = if host.libvirt.pool.is_some() {
            "is not started; it is"
        } else {
            "is not there yet; it is made"
        };
        let detail = format!("{POOL} {how} with the first VM, in {}", host.libvirt.images.display());
        return finding(Status::Note, detail);
    }
    match &host.libvirt.pool {
        Some(pool) if pool.active => finding(Status::Ok, format!("{POOL} is started")),
        Some(_) => finding(Status::Problem, format!("{POOL} is not started"))
            .remedy(format!("Run `virsh -c {URI} pool-start {POOL}`."), make_pool()),
        // vagrant-libvirt makes the pool of this name itself, at the same place.
        None => finding(Status::Note, format!("there is no pool {POOL} yet; it is made with the first VM"))
            .remedy(format!("It can be made now, in {POOL_PATH}."), make_pool()),
    }
}

/// What libvirt's networks run: a DHCP server, and a firewall for their NAT.
fn helpers(host: &Host) -> Vec<Finding> {
    let mut findings = Vec::new();
    let mut lacks = |program: &str, package: &str| {
        findings.push(
            Finding::new(
                "network-tools",
                "libvirt's networks",
                Status::Problem,
                format!("{program} is missing, which they need"),
            )
            .remedy(format!("Install the package {package}."), [Step::install(package)]),
        );
    };
    if host.program("dnsmasq").is_none() {
        lacks("dnsmasq", "dnsmasq-base");
    }
    // libvirt 10.4 learnt to use nft.
    if host.program("iptables").is_none() && !(host.program("nft").is_some() && nft_will_do(host)) {
        lacks("iptables", "iptables");
    }
    findings
}

fn nft_will_do(host: &Host) -> bool {
    let version = host.libvirt.version.as_deref().and_then(crate::host::vagrant::version);
    version.is_some_and(|v| v >= Version::new(10, 4, 0))
}
