//! What Debian's and Ubuntu's package manager has and offers.

use std::collections::BTreeMap;
use std::fs;
use std::time::Duration;

use serde::Serialize;

use super::dirs::Env;
use crate::os::Cancel;
use crate::os::process::{self, Cmd};

/// Packages that the remedies may name.
pub const KNOWN: [&str; 13] = [
    "vagrant",
    "vagrant-libvirt",
    "libvirt-daemon-system",
    "libvirt-clients",
    "dnsmasq-base",
    "iptables",
    "openssh-client",
    "qemu-system-x86",
    "qemu-system-arm",
    "qemu-utils",
    "virtualbox",
    "iproute2",
    "mmdebstrap",
];

/// What apt knows.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct AptFacts {
    /// By name, those it knows at all. Empty where its lists were never fetched.
    pub packages: BTreeMap<String, Package>,
    /// Suites of the configured sources, such as `bookworm-backports`.
    pub suites: Vec<String>,
}

/// What apt knows of a package here.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Package {
    /// The version that is installed.
    pub installed: Option<String>,
    /// The version that a plain `apt-get install` would take.
    pub candidate: Option<String>,
    /// Versions that the configured sources offer, each with its suites.
    pub offered: Vec<(String, Vec<String>)>,
}

impl AptFacts {
    /// The installed version of a package.
    pub fn installed(&self, package: &str) -> Option<&str> {
        self.packages.get(package)?.installed.as_deref()
    }

    /// The version that would be installed.
    pub fn candidate(&self, package: &str) -> Option<&str> {
        self.packages.get(package)?.candidate.as_deref()
    }
}

pub(super) fn look(env: &Env, cancel: &Cancel) -> AptFacts {
    let mut facts = AptFacts { suites: suites(env), ..AptFacts::default() };
    if let Some(apt) = env.find("apt-cache") {
        let cmd = Cmd::new(apt).arg("policy").args(KNOWN).env("LC_ALL", "C");
        if let Ok(done) = process::run(&cmd, Duration::from_secs(30), cancel) {
            facts.packages = policy(&done.stdout);
        }
    }
    facts
}

/// From `apt-cache policy NAME...`.
pub fn policy(text: &str) -> BTreeMap<String, Package> {
    let mut packages: BTreeMap<String, Package> = BTreeMap::new();
    let mut current: Option<&mut Package> = None;
    let some = |v: &str| (v != "(none)").then(|| v.to_owned());
    for line in text.lines() {
        let words: Vec<&str> = line.split_whitespace().collect();
        if !line.starts_with(' ') {
            let name = line.trim_end_matches(':');
            current = Some(packages.entry(name.to_owned()).or_default());
            continue;
        }
        let Some(package) = current.as_deref_mut() else { continue };
        match words.as_slice() {
            ["Installed:", version] => package.installed = some(version),
            ["Candidate:", version] => package.candidate = some(version),
            ["***", version, _] => package.offered.push(((*version).to_owned(), Vec::new())),
            // `  1:7.2 500` opens a version, `    500 http://host suite/main amd64 Packages` is a
            // source of the version above it.
            [version, _] if version.starts_with(|c: char| c.is_ascii_digit()) && !line.contains('/') => {
                package.offered.push(((*version).to_owned(), Vec::new()));
            }
            [_, source, place, ..] if source.contains("://") => {
                if let Some((_, suites)) = package.offered.last_mut() {
                    suites.push(place.split('/').next().unwrap_or(place).to_owned());
                }
            }
            _ => {}
        }
    }
    packages
}

/// The suites of `/etc/apt/sources.list` and its folder, in both formats (sources.list(5)).
fn suites(env: &Env) -> Vec<String> {
    let dir = fs::read_dir(env.under("/etc/apt/sources.list.d"));
    let files = dir.into_iter().flatten().flatten().map(|e| e.path());
    let mut suites = Vec::new();
    for file in files.chain([env.under("/etc/apt/sources.list")]) {
        // Files of other names are not read by apt either.
        let deb822 = file.extension().is_some_and(|e| e == "sources");
        if !deb822 && file.extension().is_none_or(|e| e != "list") {
            continue;
        }
        let text = fs::read_to_string(&file).unwrap_or_default();
        for line in text.lines() {
            if deb822 {
                if let Some(names) = line.strip_prefix("Suites:") {
                    suites.extend(names.split_whitespace().map(str::to_owned));
                }
            } else if let Some(rest) = line.trim().strip_prefix("deb ") {
                let rest = match rest.trim_start().strip_prefix('[') {
                    Some(options) => options.split_once(']').map_or("", |(_, r)| r),
                    None => rest,
                };
                suites.extend(rest.split_whitespace().nth(1).map(str::to_owned));
            }
        }
    }
    suites.sort();
    suites.dedup();
    suites
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn policy_of_a_package_from_backports() {
        let text = "\
qemu-utils:
  Installed: 1:10.0.2+ds-2+deb13u1~bpo12+1
  Candidate: 1:10.0.2+ds-2+deb13u1~bpo12+1
  Version table:
 *** 1:10.0.2+ds-2+deb13u1~bpo12+1 100
        100 http://deb.debian.org/debian bookworm-backports/main amd64 Packages
        100 /var/lib/dpkg/status
     1:7.2+dfsg-7+deb12u18+b3 500
        500 http://deb.debian.org/debian bookworm/main amd64 Packages
vagrant:
  Installed: (none)
  Candidate: 2.3.4+dfsg-1+deb12u1
  Version table:
     2.3.4+dfsg-1+deb12u1 500
        500 http://deb.debian.org/debian bookworm/main amd64 Packages
";
        let packages = policy(text);
        let qemu = &packages["qemu-utils"];
        assert_eq!(qemu.installed, qemu.candidate);
        assert_eq!(qemu.offered[0].1, ["bookworm-backports"]);
        assert_eq!(qemu.offered[1], ("1:7.2+dfsg-7+deb12u18+b3".into(), vec!["bookworm".into()]));
        assert_eq!(packages["vagrant"].installed, None);
        assert_eq!(packages["vagrant"].offered.len(), 1);
    }

    #[test]
    fn suites_of_both_formats() {
        let dir = tempfile::tempdir().unwrap();
        let apt = dir.path().join("etc/apt/sources.list.d");
        fs::create_dir_all(&apt).unwrap();
        fs::write(apt.join("debian.sources"), "Types: deb\nSuites: bookworm bookworm-updates\n").unwrap();
        fs::write(
            apt.join("b.list"),
            "# deb x y\ndeb [signed-by=/k] http://deb.debian.org/debian bookworm-backports main\n",
        )
        .unwrap();
        fs::write(apt.join("c.list.disabled"), "deb http://example.org/ other main\n").unwrap();
        let env = Env { root: dir.path().into(), ..Env::of_process() };
        assert_eq!(suites(&env), ["bookworm", "bookworm-backports", "bookworm-updates"]);
    }
}
