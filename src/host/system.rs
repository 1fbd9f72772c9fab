//! Distribution, memory, processors, init system, user.

use std::fs;

use serde::Serialize;

use super::dirs::Env;

/// Which Linux.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Distro {
    /// `debian`, `ubuntu`; empty if there is no os-release.
    pub id: String,
    /// Others it is like, e.g. `debian`.
    pub like: Vec<String>,
    /// `12`, `24.04`.
    pub version: String,
    /// `bookworm`, `noble`.
    pub codename: String,
    /// For people.
    pub pretty: String,
}

impl Distro {
    /// From the text of `/etc/os-release` (os-release(5)).
    pub fn parse(text: &str) -> Self {
        let value = |key: &str| {
            let raw = text.lines().find_map(|l| l.strip_prefix(key)?.strip_prefix('='));
            raw.unwrap_or_default().trim().trim_matches(['"', '\'']).to_owned()
        };
        Self {
            id: value("ID"),
            like: value("ID_LIKE").split_whitespace().map(str::to_owned).collect(),
            version: value("VERSION_ID"),
            codename: value("VERSION_CODENAME"),
            pretty: value("PRETTY_NAME"),
        }
    }

    /// Whether its packages come through apt and have Debian's names.
    pub fn is_debian_like(&self) -> bool {
        self.is_like(&["debian", "ubuntu"])
    }

    /// Whether its packages come through dnf and have Fedora's names.
    pub fn is_fedora_like(&self) -> bool {
        self.is_like(&["fedora", "rhel"])
    }

    fn is_like(&self, ids: &[&str]) -> bool {
        [&self.id].into_iter().chain(&self.like).any(|id| ids.contains(&id.as_str()))
    }
}

/// Memory, in MiB.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Memory {
    /// All there is, or all that a container may use.
    pub total: u64,
    /// What can be had without swapping.
    pub available: u64,
}

impl Memory {
    /// From `/proc/meminfo` and a container's limit and use in bytes.
    pub fn parse(meminfo: &str, limit: Option<(u64, u64)>) -> Self {
        let kib = |key: &str| -> u64 {
            let words = meminfo.lines().find_map(|l| l.strip_prefix(key)?.strip_prefix(':'));
            words.and_then(|w| w.split_whitespace().next()?.parse().ok()).unwrap_or(0)
        };
        let (mut total, mut available) = (kib("MemTotal") / 1024, kib("MemAvailable") / 1024);
        if let Some((limit, used)) = limit {
            total = total.min(limit >> 20);
            available = available.min(limit.saturating_sub(used) >> 20);
        }
        Self { total, available }
    }

    pub(super) fn look(env: &Env) -> Self {
        let read = |path: &str| fs::read_to_string(env.under(path)).ok();
        let number = |path: &str| read(path)?.trim().parse::<u64>().ok();
        // Only the limit at the top of what we see, which binds the VMs as well: libvirt starts them
        // in groups of their own beside ours. On a host (not a container) there is no such file.
        let limit =
            number("/sys/fs/cgroup/memory.max").zip(number("/sys/fs/cgroup/memory.current")).or_else(|| {
                let v1 = "/sys/fs/cgroup/memory/memory";
                number(&format!("{v1}.limit_in_bytes")).zip(number(&format!("{v1}.usage_in_bytes")))
            });
        Self::parse(&read("/proc/meminfo").unwrap_or_default(), limit)
    }
}

/// Who runs p1.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct User {
    /// The login name; the number if there is none.
    pub name: String,
    /// The effective user id.
    pub uid: u32,
    /// Groups of this process, by name.
    pub groups: Vec<String>,
    /// Groups of the account, by name: those added since the login are not in force yet.
    pub granted: Vec<String>,
}

impl User {
    /// True for the superuser.
    pub fn is_root(&self) -> bool {
        self.uid == 0
    }

    pub(super) fn look(env: &Env) -> Self {
        let file = |path: &str| fs::read_to_string(env.under(path)).unwrap_or_default();
        let (passwd, group) = (file("/etc/passwd"), file("/etc/group"));
        let account = Account::all(&passwd).into_iter().find(|a| a.uid == env.uid);
        let name = account.as_ref().map_or_else(|| env.uid.to_string(), |a| a.name.clone());
        let ours: Vec<u32> =
            nix::unistd::getgroups().unwrap_or_default().into_iter().map(nix::unistd::Gid::as_raw).collect();
        let groups = Group::all(&group);
        Self {
            granted: account
                .map(|a| a.groups(&group))
                .unwrap_or_default()
                .into_iter()
                .map(|g| g.name)
                .collect(),
            groups: groups.into_iter().filter(|g| ours.contains(&g.gid)).map(|g| g.name).collect(),
            uid: env.uid,
            name,
        }
    }
}

/// A line of `/etc/passwd`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Account {
    pub(super) name: String,
    pub(super) uid: u32,
    pub(super) gid: u32,
}

impl Account {
    pub(super) fn all(passwd: &str) -> Vec<Self> {
        let line = |l: &str| {
            let f: Vec<&str> = l.split(':').collect();
            Some(Self {
                name: (*f.first()?).to_owned(),
                uid: f.get(2)?.parse().ok()?,
                gid: f.get(3)?.parse().ok()?,
            })
        };
        passwd.lines().filter_map(line).collect()
    }

    /// Its groups, the primary one included.
    pub(super) fn groups(&self, group: &str) -> Vec<Group> {
        let mine = |g: &Group| g.gid == self.gid || g.members.contains(&self.name);
        Group::all(group).into_iter().filter(mine).collect()
    }
}

/// A line of `/etc/group`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Group {
    pub(super) name: String,
    pub(super) gid: u32,
    members: Vec<String>,
}

impl Group {
    pub(super) fn all(group: &str) -> Vec<Self> {
        let line = |l: &str| {
            let f: Vec<&str> = l.split(':').collect();
            Some(Self {
                name: (*f.first()?).to_owned(),
                gid: f.get(2)?.parse().ok()?,
                members: f.get(3)?.split(',').map(str::to_owned).collect(),
            })
        };
        group.lines().filter_map(line).collect()
    }
}

/// Free MiB where `path` lies or will lie.
pub(super) fn free_at(path: &std::path::Path) -> Option<u64> {
    let there = path.ancestors().find(|p| p.exists())?;
    let stat = nix::sys::statvfs::statvfs(there).ok()?;
    // The field types differ between platforms.
    #[allow(clippy::unnecessary_cast)]
    Some((stat.blocks_available() as u64).saturating_mul(stat.fragment_size() as u64) >> 20)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn os_release_of_debian_and_ubuntu() {
        let debian = Distro::parse(
            "PRETTY_NAME=\"Debian GNU/Linux 12 (bookworm)\"\nVERSION_ID=\"12\"\nVERSION_CODENAME=bookworm\nID=debian\n",
        );
        assert_eq!((debian.id.as_str(), debian.codename.as_str()), ("debian", "bookworm"));
        let mint = Distro::parse("ID=linuxmint\nID_LIKE=\"ubuntu debian\"\nVERSION_ID=\"22\"\n");
        assert!(mint.is_debian_like() && !Distro::parse("ID=fedora\n").is_debian_like());
    }

    #[test]
    fn a_containers_limit_counts_where_it_is_lower() {
        let meminfo = "MemTotal:       24684084 kB\nMemFree:        1 kB\nMemAvailable:   23176928 kB\n";
        assert_eq!(Memory::parse(meminfo, None), Memory { total: 24105, available: 22633 });
        let limited = Memory::parse(meminfo, Some((4 << 30, 1 << 30)));
        assert_eq!(limited, Memory { total: 4096, available: 3072 });
        // As version 1 writes `unlimited`.
        assert_eq!(Memory::parse(meminfo, Some((9_223_372_036_854_771_712, 1))).total, 24105);
    }

    #[test]
    fn groups_are_the_primary_one_and_those_with_the_member() {
        let accounts =
            Account::all("root:x:0:0:root:/root:/bin/sh\nlibvirt-qemu:x:64055:107:,,,:/var/lib/libvirt:/x\n");
        let names = |g: &str| accounts[1].groups(g).into_iter().map(|g| g.name).collect::<Vec<_>>();
        assert_eq!(
            names("kvm:x:107:\nlibvirt:x:106:ada,bob\nlibvirt-qemu:x:64055:libvirt-qemu\n"),
            ["kvm", "libvirt-qemu"]
        );
    }
}
