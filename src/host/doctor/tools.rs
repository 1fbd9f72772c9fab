//! Distribution, Vagrant, and other programs.

use semver::Version;

use super::{Finding, Question, Status, Tool};
use crate::host::facts::Host;
use crate::host::fix::Step;
use crate::host::vagrant::version;
use crate::machines::Kind;

/// The oldest Vagrant that p1 was seen to work with has this version or a later one of its series.
const OLDEST: Version = Version::new(2, 3, 0);

/// Where the key of HashiCorp's apt repository is put.
const KEYRING: &str = "/usr/share/keyrings/hashicorp-archive-keyring.gpg";

/// Which distribution it is, as only some can be set up by `--fix`.
pub(super) fn system(host: &Host) -> Finding {
    let name = if host.distro.pretty.is_empty() { "an unknown distribution" } else { &host.distro.pretty };
    let init = if host.systemd { "systemd" } else { "no systemd" };
    let detail = format!("{name}, {}, {init}", host.arch);
    if host.distro.is_debian_like() {
        return Finding::new("system", "operating system", Status::Ok, detail);
    }
    let text = if host.distro.is_fedora_like() {
        "`p1 doctor --fix` runs the package manager on Debian and Ubuntu only; what to install here is listed below."
    } else {
        "`p1 doctor --fix` knows Debian and Ubuntu only; install what is missing by hand."
    };
    Finding::new("system", "operating system", Status::Note, detail).remedy(text, [])
}

/// Vagrant itself.
pub(super) fn vagrant(host: &Host) -> Finding {
    let finding = |status, detail: String| Finding::new("vagrant", "Vagrant", status, detail);
    let facts = &host.vagrant;
    let Some(program) = &facts.program else {
        return lacking(host, finding(Status::Problem, "not installed".to_owned()));
    };
    match &facts.version {
        Some(v) if *v < OLDEST => {
            lacking(host, finding(Status::Problem, format!("{v} is too old; p1 needs {OLDEST} or later")))
        }
        Some(v) => finding(Status::Ok, format!("{v} ({})", program.display())),
        None => finding(Status::Note, format!("{}, of an unknown version", program.display())),
    }
}

/// Whether the distribution's own Vagrant will do.
pub(super) fn has_vagrant_package(host: &Host) -> bool {
    match host.apt.candidate("vagrant") {
        Some(candidate) => version(candidate).is_some_and(|v| v >= OLDEST),
        // Ubuntu's is too old until 22.04, and there is none since 24.04.
        None => host.distro.id == "debian" || host.distro.is_fedora_like(),
    }
}

/// Says where a good Vagrant comes from.
fn lacking(host: &Host, finding: Finding) -> Finding {
    if has_vagrant_package(host) {
        return finding.remedy("Install the package vagrant.", [Step::install("vagrant")]);
    }
    let system = if host.distro.pretty.is_empty() { "this system" } else { &host.distro.pretty };
    let missing = format!("{system} has no package of Vagrant {OLDEST} or later.");
    if host.distro.is_debian_like() && !host.distro.codename.is_empty() {
        // developer.hashicorp.com/vagrant/install
        return finding.remedy(
            format!(
                "{missing} HashiCorp's apt repository has one. Run:\n\
                 wget -qO- https://apt.releases.hashicorp.com/gpg | sudo gpg --dearmor --yes -o {KEYRING}\n\
                 echo 'deb [signed-by={KEYRING}] https://apt.releases.hashicorp.com {} main' | \
                 sudo tee /etc/apt/sources.list.d/hashicorp.list\n\
                 sudo apt-get update\n\
                 sudo apt-get install -y vagrant",
                host.distro.codename
            ),
            [],
        );
    }
    finding.remedy(
        format!("{missing} https://developer.hashicorp.com/vagrant/install says how to install HashiCorp's."),
        [],
    )
}

/// Programs that p1 and its user run themselves.
pub(super) fn programs(host: &Host, question: &Question<'_>) -> Vec<Finding> {
    let mut wanted = vec![
        Tool { program: "ssh", package: "openssh-client", purpose: "log into nodes" },
        Tool { program: "ssh-keygen", package: "openssh-client", purpose: "make the cluster's key" },
    ];
    if question.kind == Kind::Libvirt {
        wanted.push(Tool { program: "qemu-img", package: "qemu-utils", purpose: "read disk images" });
    }
    wanted.extend(question.needs);
    let missing: Vec<&Tool<'_>> = wanted.iter().filter(|t| host.program(t.program).is_none()).collect();
    if missing.is_empty() {
        let names: Vec<&str> = wanted.iter().map(|t| t.program).collect();
        return vec![Finding::new("tools", "programs", Status::Ok, names.join(", "))];
    }
    let finding = |tool: &&Tool<'_>| {
        let detail = format!("{} is missing, which is needed to {}", tool.program, tool.purpose);
        Finding::new("tools", "programs", Status::Problem, detail)
            .remedy(format!("Install the package {}.", tool.package), [Step::install(tool.package)])
    };
    missing.iter().map(finding).collect()
}
