//! From findings to commands: what `doctor --fix` and `up --setup` show, ask about, and run.
//!
//! A plan is pure, so it can be shown without anything being done; each action is a line for a
//! shell, run exactly as shown. A host on which everything is well has an empty plan.

use std::collections::BTreeSet;
use std::time::Duration;

use serde::Serialize;

use super::doctor::{Finding, Status};
use super::facts::Host;
use crate::os::Cancel;
use crate::os::process::{self, Cmd, Stream};

/// When an action's turn comes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Stage {
    /// Packages.
    Packages,
    /// Groups of the user.
    Account,
    /// Files below `/etc`.
    Configure,
    /// Device nodes.
    Device,
    /// Daemons.
    Start,
    /// What needs a running daemon.
    Storage,
}

/// A part of a remedy that needs no person.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Step {
    stage: Stage,
    what: String,
    work: Work,
    note: Option<String>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Work {
    Package(String),
    Line(String),
}

impl Step {
    /// Installs a Debian package; all of a plan are installed by one command.
    pub fn install(package: &str) -> Self {
        let work = Work::Package(package.to_owned());
        Self { stage: Stage::Packages, what: format!("install {package}"), work, note: None }
    }

    /// Runs a shell line as root. It must be fine to run it twice.
    pub fn root(stage: Stage, what: &str, line: impl Into<String>) -> Self {
        Self { stage, what: what.to_owned(), work: Work::Line(line.into()), note: None }
    }

    /// Something to be said afterwards.
    #[must_use]
    pub fn note(mut self, text: &str) -> Self {
        self.note = Some(text.to_owned());
        self
    }
}

/// What to do, in order.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Plan {
    /// What p1 can do.
    pub actions: Vec<Action>,
    /// What takes a person, as full sentences.
    pub by_hand: Vec<String>,
    /// What to know afterwards, as full sentences.
    pub notes: Vec<String>,
}

/// One command.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Action {
    /// What it does, e.g. `start libvirt`.
    pub what: String,
    /// The command line, as a shell takes it.
    pub line: String,
    /// How long it may take.
    #[serde(skip)]
    pub bound: Duration,
    sudo: bool,
}

impl Action {
    /// Runs it, handing over each line that it writes. With `sudo` it does not ask for a password,
    /// as the program has no terminal: where [`Plan::wants_sudo`], run `sudo -v` before.
    pub fn run(&self, on_line: &mut dyn FnMut(Stream, &str), cancel: &Cancel) -> Result<(), process::Error> {
        let line = match self.line.strip_prefix("sudo ") {
            Some(rest) if self.sudo => format!("sudo -n {rest}"),
            _ => self.line.clone(),
        };
        // A package manager that is stopped half-way leaves work for a person, so it gets time.
        let cmd = Cmd::new("sh").args(["-c", &line]).grace(Duration::from_secs(30));
        process::watch(&cmd, self.bound, cancel, on_line)?.ok().map(|_| ())
    }
}

impl Plan {
    /// True if an action runs through `sudo`.
    pub fn wants_sudo(&self) -> bool {
        self.actions.iter().any(|a| a.sudo)
    }
}

/// The plan that mends these findings on this host.
pub fn plan(host: &Host, findings: &[Finding]) -> Plan {
    let mut plan = Plan::default();
    let mut packages = BTreeSet::new();
    let mut lines: Vec<(Stage, String, String)> = Vec::new();
    for finding in findings.iter().filter(|f| f.status != Status::Ok) {
        let Some(remedy) = &finding.remedy else { continue };
        if remedy.steps.is_empty() && finding.status == Status::Problem {
            plan.by_hand.push(remedy.text.clone());
        }
        for step in &remedy.steps {
            match &step.work {
                Work::Package(name) => {
                    packages.insert(name.clone());
                }
                Work::Line(line) => {
                    if !lines.iter().any(|(_, _, l)| l == line) {
                        lines.push((step.stage, step.what.clone(), line.clone()));
                    }
                }
            }
            plan.notes.extend(step.note.clone().filter(|n| !plan.notes.contains(n)));
        }
    }
    let mut rows = Vec::new();
    let packages_by_p1 = packages.is_empty() || host.distro.is_debian_like();
    if !packages.is_empty() {
        if host.distro.is_debian_like() {
            rows = apt(host, packages);
        } else if host.distro.is_fedora_like() {
            // Not run by p1, which was not yet seen on such a host.
            let names: BTreeSet<&str> = packages.iter().map(|p| on_fedora(p)).collect();
            let names: Vec<&str> = names.into_iter().collect();
            plan.by_hand.push(format!("Run: sudo dnf install -y {}", names.join(" ")));
        } else {
            let names: Vec<String> = packages.into_iter().collect();
            plan.by_hand.push(format!(
                "Install what this distribution calls these packages of Debian: {}.",
                names.join(", ")
            ));
        }
    }
    lines.sort_by_key(|(stage, ..)| *stage);
    rows.extend(lines.into_iter().map(|(_, what, line)| (what, line, Duration::from_secs(120))));

    let sudo = !host.user.is_root();
    // What has to be installed by hand comes before the rest, so that is done by hand as well.
    if !packages_by_p1 || sudo && host.program("sudo").is_none() {
        plan.by_hand.extend(rows.into_iter().map(|(_, line, _)| format!("Run as root: {line}")));
        return plan;
    }
    plan.actions = rows
        .into_iter()
        .map(|(what, line, bound)| Action {
            what,
            line: if sudo { as_root(&line) } else { line },
            bound,
            sudo,
        })
        .collect();
    plan
}

fn as_root(line: &str) -> String {
    let plain = !line.contains(['|', '&', ';', '<', '>', '{', '$', '(']);
    if plain { format!("sudo {line}") } else { format!("sudo sh -c {}", process::quote(line)) }
}

/// What Fedora calls a package of Debian (packages.fedoraproject.org).
fn on_fedora(package: &str) -> &str {
    match package {
        "libvirt-daemon-system" => "libvirt-daemon-kvm",
        "libvirt-clients" => "libvirt-client",
        "dnsmasq-base" => "dnsmasq",
        "iptables" => "iptables-nft",
        "openssh-client" => "openssh-clients",
        "qemu-system-x86" => "qemu-kvm",
        "qemu-system-arm" => "qemu-system-aarch64",
        "qemu-utils" => "qemu-img",
        "virtualbox" => "VirtualBox",
        "iproute2" => "iproute",
        other => other,
    }
}

type Row = (String, String, Duration);

/// One update and as few installs as will do.
fn apt(host: &Host, mut packages: BTreeSet<String>) -> Vec<Row> {
    // Somebody else may be installing at this moment: wait for dpkg's lock.
    let apt_get = "env DEBIAN_FRONTEND=noninteractive apt-get -o DPkg::Lock::Timeout=120";
    let install = format!("{apt_get} install -y --no-install-recommends");
    let minutes = |n: u64| Duration::from_secs(60 * n);
    let list = |names: &BTreeSet<String>| names.iter().map(String::as_str).collect::<Vec<_>>().join(" ");

    let mut rows = Vec::new();
    let mut qemu = None;
    let (of_qemu, rest): (BTreeSet<String>, _) = packages.into_iter().partition(|p| p.starts_with("qemu-"));
    packages = rest;
    match origin(host, &of_qemu) {
        Origin::Usual => packages.extend(of_qemu),
        Origin::Suite { suite, configured } => {
            if !configured {
                let file = format!("/etc/apt/sources.list.d/{suite}.list");
                rows.push((
                    format!("use {suite}, where the installed QEMU packages come from"),
                    format!("echo 'deb http://deb.debian.org/debian {suite} main' >{file}"),
                    minutes(1),
                ));
            }
            let line = format!("{install} -t {suite} {}", list(&of_qemu));
            qemu = Some((
                format!("install QEMU, from the same suite as its installed packages ({suite})"),
                line,
            ));
        }
        Origin::Downgrade { package, version } => {
            let others = of_qemu.into_iter().filter(|p| p != package).collect();
            let line = format!("{install} --allow-downgrades {package}={version} {}", list(&others));
            qemu = Some((
                "install QEMU, taking its newer installed packages back to the same version".to_owned(),
                line,
            ));
        }
    }
    rows.push(("fetch the package lists".to_owned(), format!("{apt_get} update"), minutes(5)));
    rows.extend(qemu.map(|(what, line)| (what, line, minutes(20))));
    if !packages.is_empty() {
        rows.push(("install packages".to_owned(), format!("{install} {}", list(&packages)), minutes(20)));
    }
    rows
}

enum Origin {
    /// What apt would take anyway.
    Usual,
    /// A suite that must be named.
    Suite { suite: String, configured: bool },
    /// No suite has the installed version: this package must go back to that one.
    Downgrade { package: &'static str, version: String },
}

/// All packages of QEMU must be of one version. Where one of them was installed from backports (as
/// on some machine images), a plain install of the others ends at "unable to correct problems".
fn origin(host: &Host, wanted: &BTreeSet<String>) -> Origin {
    const ALL: [&str; 3] = ["qemu-utils", "qemu-system-x86", "qemu-system-arm"];
    let Some(new) = wanted.iter().find(|p| host.apt.installed(p).is_none()) else {
        return Origin::Usual;
    };
    let Some((there, version)) = ALL.iter().find_map(|p| Some((*p, host.apt.installed(p)?))) else {
        return Origin::Usual;
    };
    let candidate = host.apt.candidate(new);
    if candidate == Some(version) {
        return Origin::Usual;
    }
    let offered = host.apt.packages.get(new).map(|p| p.offered.as_slice()).unwrap_or_default();
    if let Some(suite) = offered.iter().find(|(v, _)| v == version).and_then(|(_, suites)| suites.first()) {
        return Origin::Suite { suite: suite.clone(), configured: true };
    }
    if version.contains("~bpo") && !host.distro.codename.is_empty() {
        let suite = format!("{}-backports", host.distro.codename);
        return Origin::Suite { configured: host.apt.suites.contains(&suite), suite };
    }
    match candidate {
        Some(candidate) => Origin::Downgrade { package: there, version: candidate.to_owned() },
        // Its lists were never fetched; most likely the installed one is what they offer.
        None => Origin::Usual,
    }
}
