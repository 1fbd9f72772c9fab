//! Whether hardware virtualisation can be used.
//!
//! `/dev/kvm` alone proves nothing: in some containers and VMs it exists although the processor
//! shows neither `vmx` nor `svm`, and no ordinary guest runs on it. And where root can open it but
//! QEMU's own user cannot, libvirt asks QEMU for its abilities again at every call, which makes a
//! `vagrant up` of one minute take five (measured with libvirt 9.0; its debug log says `KVM was
//! enabled when probing, but it is not available now`).

use std::fs;
use std::os::unix::fs::MetadataExt;

use serde::Serialize;

use super::dirs::Env;
use super::system::{Account, Group};

/// What was found out.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct KvmFacts {
    /// The processor shows `vmx` or `svm`; on other processors than x86 always true.
    pub flags: bool,
    /// `/dev/kvm`.
    pub device: Option<Device>,
    /// The account that QEMU runs as and whether it may open the device; none if there is no such
    /// account yet.
    pub qemu_user: Option<(String, bool)>,
}

/// `/dev/kvm`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Device {
    /// Permission bits.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
}

/// Whether guests can run with hardware virtualisation, and why not.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "kvm", rename_all = "lowercase")]
pub enum Kvm {
    /// VMs run on the hardware.
    Usable,
    /// VMs could run on the hardware if QEMU's user might open the device.
    Closed {
        /// Why it may not.
        why: String,
    },
    /// There is no device.
    Missing {
        /// What that may mean.
        why: String,
    },
    /// There is a device that cannot do it.
    Decoy {
        /// How one can tell.
        why: String,
    },
}

impl KvmFacts {
    /// What follows from them.
    pub fn verdict(&self) -> Kvm {
        match (&self.device, self.flags) {
            (None, true) => Kvm::Missing {
                why: "there is no /dev/kvm, although the processor can do it: its kernel module is not loaded, or this is a container that was not given it".to_owned(),
            },
            (None, false) => Kvm::Missing {
                why: "the processor shows neither vmx nor svm and there is no /dev/kvm: it is switched off in the firmware, or this is a VM without nested virtualisation".to_owned(),
            },
            (Some(_), false) => Kvm::Decoy {
                why: "/dev/kvm exists, but the processor shows neither vmx nor svm, so guests cannot run on it".to_owned(),
            },
            (Some(_), true) => match &self.qemu_user {
                Some((user, false)) => Kvm::Closed { why: format!("the user {user}, as which QEMU runs, may not open /dev/kvm") },
                _ => Kvm::Usable,
            },
        }
    }

    /// True if libvirt (root) can open the device and QEMU's user cannot: see the module's text.
    /// It matters for a decoy as well.
    pub fn slows_libvirt(&self) -> bool {
        self.device.is_some() && matches!(self.qemu_user, Some((_, false)))
    }

    /// `own`: QEMU is to run as who asks.
    pub(super) fn look(env: &Env, arch: &str, own: bool) -> Self {
        let file = |path: &str| fs::read_to_string(env.under(path)).unwrap_or_default();
        let x86 = matches!(arch, "x86_64" | "x86");
        let device = fs::metadata(env.under("/dev/kvm")).ok().map(|m| Device {
            mode: m.mode() & 0o777,
            uid: m.uid(),
            gid: m.gid(),
        });
        let accounts = Account::all(&file("/etc/passwd"));
        // Debian's and Ubuntu's name of it, and everybody else's.
        let account = ["libvirt-qemu", "qemu"].iter().find_map(|n| accounts.iter().find(|a| a.name == *n));
        let qemu_user = account.map(|a| {
            let opens = device.as_ref().is_some_and(|d| may_open(d, a, &a.groups(&file("/etc/group"))));
            (a.name.clone(), opens)
        });
        let flags = !x86 || has_flags(&file("/proc/cpuinfo"));
        if own && device.is_some() {
            let opens = fs::OpenOptions::new().read(true).write(true).open(env.under("/dev/kvm")).is_ok();
            let name =
                accounts.into_iter().find(|a| a.uid == env.uid).map_or(env.uid.to_string(), |a| a.name);
            return Self { flags, device, qemu_user: Some((name, opens)) };
        }
        Self { flags, device, qemu_user }
    }
}

fn has_flags(cpuinfo: &str) -> bool {
    let flags = cpuinfo.lines().find_map(|l| l.strip_prefix("flags")).unwrap_or_default();
    flags.split_whitespace().any(|f| f == "vmx" || f == "svm")
}

/// By the usual three classes; access control lists are not looked at.
fn may_open(device: &Device, account: &Account, groups: &[Group]) -> bool {
    let class = if device.uid == account.uid {
        device.mode >> 6
    } else if device.gid == account.gid || groups.iter().any(|g| g.gid == device.gid) {
        device.mode >> 3
    } else {
        device.mode
    };
    class & 0o6 == 0o6
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_device_and_the_flags_decide_together() {
        let dir = tempfile::tempdir().unwrap();
        let put = |path: &str, text: &str| {
            let path = dir.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        };
        let mut env = Env::of_process();
        env.root = dir.path().to_owned();
        let verdict = || KvmFacts::look(&env, "x86_64", false).verdict();
        put("proc/cpuinfo", "flags\t\t: fpu vme svm_lock\n");
        assert!(matches!(verdict(), Kvm::Missing { .. }));
        put("dev/kvm", "");
        assert!(matches!(verdict(), Kvm::Decoy { .. }));
        put("proc/cpuinfo", "processor\t: 0\nflags\t\t: fpu vmx sse\n");
        assert_eq!(verdict(), Kvm::Usable);
        fs::remove_file(dir.path().join("dev/kvm")).unwrap();
        assert!(matches!(verdict(), Kvm::Missing { .. }));
    }

    #[test]
    fn qemus_user_needs_both_reading_and_writing() {
        let account = Account { name: "libvirt-qemu".into(), uid: 64055, gid: 107 };
        let opens = |mode, gid| may_open(&Device { mode, uid: 0, gid }, &account, &[]);
        assert!(opens(0o660, 107) && opens(0o666, 0));
        assert!(!opens(0o600, 0) && !opens(0o660, 0) && !opens(0o640, 107));
        let facts = KvmFacts {
            flags: true,
            device: Some(Device { mode: 0o600, uid: 0, gid: 0 }),
            qemu_user: Some(("libvirt-qemu".into(), false)),
        };
        assert!(matches!(facts.verdict(), Kvm::Closed { .. }) && facts.slows_libvirt());
    }
}
