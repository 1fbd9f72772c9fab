//! Hosts to test with.

use std::path::PathBuf;

use semver::Version;

use crate::host::facts::Host;
use crate::host::kvm::Device;
use crate::host::libvirt::{Link, Network, Pool};
use crate::host::net::{Address, Route};
use crate::host::system::{Distro, Memory, User};
use crate::host::vagrant::Plugin;

/// A fresh Debian 12 with systemd, seen by root.
pub(crate) fn bare() -> Host {
    Host {
        distro: debian(),
        arch: "x86_64".into(),
        cpus: 4,
        memory: Memory { total: 8192, available: 6000 },
        systemd: true,
        user: User { name: "root".into(), ..User::default() },
        kvm: crate::host::kvm::KvmFacts { flags: true, device: Some(device(0o660, 107)), qemu_user: None },
        programs: ["ip", "apt-get", "ssh", "ssh-keygen"]
            .map(|n| (n.to_owned(), PathBuf::from("/usr/bin").join(n)))
            .into(),
        routes: vec![Route { net: net("192.0.2.0/24"), device: "eth0".into() }],
        addresses: vec![Address { address: net("192.0.2.2/24"), device: "eth0".into() }],
        free_state: Some(50_000),
        free_images: Some(50_000),
        vagrant_home: "/root/.local/share/p1/vagrant".into(),
        ..Host::default()
    }
}

/// The same with everything that libvirt needs.
pub(crate) fn ready() -> Host {
    let mut host = bare();
    for name in ["vagrant", "virsh", "qemu-system-x86_64", "qemu-img", "dnsmasq", "iptables"] {
        host.programs.insert(name.to_owned(), PathBuf::from("/usr/bin").join(name));
    }
    host.vagrant.program = Some("/usr/bin/vagrant".into());
    host.vagrant.version = Some(Version::new(2, 3, 4));
    host.vagrant.plugin = Plugin::Installed(Some(Version::new(0, 11, 2)));
    host.kvm.qemu_user = Some(("libvirt-qemu".into(), true));
    host.libvirt.link = Link::Up;
    host.libvirt.version = Some("9.0.0".into());
    host.libvirt.virtlogd = true;
    host.libvirt.pool = Some(Pool { active: true, free: Some(50_000) });
    host.libvirt.networks = vec![Network {
        name: "default".into(),
        cidr: Some(net("192.168.122.0/24")),
        bridge: Some("virbr0".into()),
        active: false,
    }];
    host
}

pub(crate) fn net(text: &str) -> ipnet::Ipv4Net {
    text.parse().unwrap()
}

pub(crate) fn device(mode: u32, gid: u32) -> Device {
    Device { mode, uid: 0, gid }
}

fn debian() -> Distro {
    Distro {
        id: "debian".into(),
        like: Vec::new(),
        version: "12".into(),
        codename: "bookworm".into(),
        pretty: "Debian GNU/Linux 12 (bookworm)".into(),
    }
}

/// Fedora 43.
pub(crate) fn fedora() -> Distro {
    Distro {
        id: "fedora".into(),
        like: Vec::new(),
        version: "43".into(),
        codename: String::new(),
        pretty: "Fedora Linux 43 (Server Edition)".into(),
    }
}

/// Ubuntu 24.04.
pub(crate) fn ubuntu() -> Distro {
    Distro {
        id: "ubuntu".into(),
        like: vec!["debian".into()],
        version: "24.04".into(),
        codename: "noble".into(),
        pretty: "Ubuntu 24.04.3 LTS".into(),
    }
}
