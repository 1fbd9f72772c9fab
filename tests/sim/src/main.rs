//! Simulated machines for p1's tests, and the programs around them. One program that plays several,
//! told apart by the name it is called by:
//!
//! | name | plays | where |
//! |---|---|---|
//! | `p1-sim lab DIR` | libvirtd and the host's side of every machine ([`lab`], [`virsh`]) | the lab's namespaces |
//! | `virsh`, `vagrant`, `qemu-img` | themselves, as far as p1 uses them ([`client`], [`vagrant`]) | on p1's PATH |
//! | `p1-sim pid DIR NODE` | prints the pid of a machine's init | the host |
//! | `p1-sim node` | a machine: its kernel's mounts ([`boot`]), then its init ([`init`]) | a machine's namespaces |
//! | `systemctl`, `systemd-run`, `journalctl`, `sudo` | themselves ([`tools`], [`journal`]) | in machines |
//!
//! A machine is a network, a mount, a pid and a uts namespace; its disk is a tmpfs. The sshd in it is
//! this host's own, and so are all other programs, but for those above.

mod boot;
mod client;
mod init;
mod journal;
mod lab;
mod tools;
mod unit;
mod vagrant;
mod virsh;

use std::process::ExitCode;

fn main() -> ExitCode {
    let mut args: Vec<String> = std::env::args().collect();
    let called = args.remove(0);
    match called.rsplit('/').next().unwrap_or_default() {
        "virsh" => client::virsh(&called, &args),
        "vagrant" => vagrant::main(&called, &args),
        "qemu-img" => client::qemu_img(&args),
        "systemctl" => tools::systemctl(&args),
        "systemd-run" => tools::systemd_run(&args),
        "journalctl" => journal::main(&args),
        "sudo" | "doas" => tools::sudo(&args),
        _ => match args.first().map(String::as_str) {
            Some("lab") if args.len() == 2 => lab::main(&args[1]),
            Some("pid") if args.len() == 3 => client::pid(&args[1], &args[2]),
            Some("node") if args.len() == 2 => boot::main(&args[1]),
            _ => {
                eprintln!("this is a part of p1's tests; tests/sim/lab is the way in");
                ExitCode::from(2)
            }
        },
    }
}
