//! All that is known about this machine.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use ipnet::Ipv4Net;
use semver::Version;
use serde::Serialize;

use super::dirs::Env;
use super::net::{Address, Route};
use super::system::{Distro, Memory, User};
use super::{apt, bridge, kvm, libvirt, net, system, vagrant};
use crate::machines::Tools;
use crate::machines::virtualbox::{NETWORKS_CONF, allowed_ranges};
use crate::os::Cancel;
use crate::os::process::{self, Cmd};
use crate::spec::Libvirt;

/// Programs that are looked for on every host.
const PROGRAMS: [&str; 13] = [
    "VBoxManage",
    "apt-get",
    "dnsmasq",
    "ip",
    "iptables",
    "nft",
    "qemu-img",
    "ssh",
    "ssh-keygen",
    "sudo",
    "vagrant",
    "virsh",
    "virtlogd",
];

/// How closely to look.
#[derive(Clone, Copy, Debug)]
pub struct Look<'a> {
    /// True for `doctor` and `--setup`: asks apt too, and starts Vagrant where its version cannot
    /// be told otherwise. False before every `up`: no Ruby, well below half a second.
    pub thorough: bool,
    /// More programs to look for, such as those a box is built with.
    pub programs: &'a [&'a str],
    /// Where the cluster's state will lie.
    pub state: &'a Path,
    /// Which libvirt.
    pub libvirt: &'a Libvirt,
}

/// What this machine has. Plain data: every judgement about it is a function of it.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Host {
    /// Which Linux.
    pub distro: Distro,
    /// `x86_64`, `aarch64`.
    pub arch: String,
    /// Processors that may be used.
    pub cpus: u32,
    /// Memory.
    pub memory: Memory,
    /// Whether systemd is the init system (sd_booted(3)).
    pub systemd: bool,
    /// Who asks.
    pub user: User,
    /// Hardware virtualisation.
    pub kvm: kvm::KvmFacts,
    /// Programs that were looked for and found.
    pub programs: BTreeMap<String, PathBuf>,
    /// Vagrant and its plugin.
    pub vagrant: vagrant::VagrantFacts,
    /// libvirt.
    pub libvirt: libvirt::LibvirtFacts,
    /// The bridge that machines of the user's own libvirt are to be on.
    pub bridge: Option<bridge::BridgeFacts>,
    /// VirtualBox.
    pub virtualbox: Option<VirtualBox>,
    /// Routes, without the default one.
    pub routes: Vec<Route>,
    /// Addresses.
    pub addresses: Vec<Address>,
    /// apt; empty unless looked at thoroughly.
    pub apt: apt::AptFacts,
    /// Free MiB where the cluster's state will lie.
    pub free_state: Option<u64>,
    /// Free MiB where the images of libvirt's default pool lie.
    pub free_images: Option<u64>,
    /// VAGRANT_HOME of p1's Vagrant.
    pub vagrant_home: PathBuf,
}

/// An installed VirtualBox.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct VirtualBox {
    pub version: Option<Version>,
    /// What it complains about when asked for its version, such as a missing kernel module.
    pub fault: Option<String>,
    /// The ranges it allows for host-only networks.
    pub ranges: Vec<Ipv4Net>,
}

impl Host {
    /// Looks at this machine. What cannot be found out is left empty; nothing here fails.
    pub fn look(env: &Env, how: &Look<'_>, cancel: &Cancel) -> Self {
        let arch = std::env::consts::ARCH.to_owned();
        let qemu = qemu_program(&arch);
        let names = PROGRAMS.iter().chain(how.programs).copied().chain([qemu.as_str()]);
        let programs: BTreeMap<_, _> =
            names.filter_map(|name| Some((name.to_owned(), env.find(name)?))).collect();
        let (routes, addresses) = net::look(env, cancel);
        let mut host = Self {
            distro: Distro::parse(&fs::read_to_string(env.under("/etc/os-release")).unwrap_or_default()),
            cpus: std::thread::available_parallelism()
                .map_or(1, |n| u32::try_from(n.get()).unwrap_or(u32::MAX)),
            memory: Memory::look(env),
            systemd: env.under("/run/systemd/system").is_dir(),
            user: User::look(env),
            kvm: kvm::KvmFacts::look(env, &arch, how.libvirt.is_session()),
            vagrant: vagrant::look(env, how.thorough, cancel),
            routes,
            addresses,
            free_state: system::free_at(how.state),
            free_images: system::free_at(&env.under(libvirt::images(env, how.libvirt))),
            vagrant_home: env.dirs().vagrant_home(),
            arch,
            programs,
            ..Self::default()
        };
        let tools = Tools { libvirt_uri: how.libvirt.uri.word().to_owned(), ..host.tools() };
        host.libvirt = libvirt::look(env, &tools, cancel);
        host.libvirt.uri = how.libvirt.uri;
        host.libvirt.images = libvirt::images(env, how.libvirt);
        host.bridge = how.libvirt.bridge.as_ref().map(|name| bridge::look(env, name, cancel));
        host.virtualbox = host.program("VBoxManage").map(|p| look_at_virtualbox(env, p, cancel));
        if how.thorough && host.program("apt-get").is_some() {
            host.apt = apt::look(env, cancel);
        }
        host
    }

    /// Where a program is, if it is and was looked for.
    pub fn program(&self, name: &str) -> Option<&Path> {
        self.programs.get(name).map(PathBuf::as_path)
    }

    /// QEMU for guests of this host's architecture.
    pub fn qemu(&self) -> Option<&Path> {
        self.program(&qemu_program(&self.arch))
    }

    /// What providers work with.
    pub fn tools(&self) -> Tools {
        let usual = Tools::default();
        let found = |name: &str, usual: PathBuf| self.programs.get(name).cloned().unwrap_or(usual);
        Tools {
            virsh: found("virsh", usual.virsh),
            qemu_img: found("qemu-img", usual.qemu_img),
            ip: found("ip", usual.ip),
            vboxmanage: found("VBoxManage", usual.vboxmanage),
            ..Tools::default()
        }
    }
}

/// Its name on this architecture.
pub(super) fn qemu_program(arch: &str) -> String {
    format!("qemu-system-{arch}")
}

fn look_at_virtualbox(env: &Env, program: &Path, cancel: &Cancel) -> VirtualBox {
    let conf = fs::read_to_string(env.under(NETWORKS_CONF)).ok();
    let mut facts = VirtualBox { ranges: allowed_ranges(conf.as_deref()), ..VirtualBox::default() };
    let cmd = Cmd::new(program).arg("--version").env("LC_ALL", "C");
    match process::run(&cmd, Duration::from_secs(20), cancel) {
        Ok(done) => {
            // Warnings, on either pipe, come before the version.
            facts.version =
                done.stdout.lines().rev().find_map(|l| match l.starts_with(|c: char| c.is_ascii_digit()) {
                    true => vagrant::version(l),
                    false => None,
                });
            let words: Vec<&str> = done.stdout.lines().chain(done.stderr.lines()).collect();
            facts.fault = words.iter().find(|l| l.contains("WARNING")).map(|l| (*l).to_owned());
        }
        Err(error) => facts.fault = Some(error.to_string()),
    }
    facts
}
