//! What `provider: auto` means on this host, and how QEMU is to run its guests.

use serde::Serialize;

use super::facts::Host;
use super::kvm::Kvm;
use super::libvirt::Link;
use super::vagrant::Plugin;
use crate::explain::{Explain, FailureKind};
use crate::machines::{Engine, Kind};
use crate::spec::{Cluster, EngineChoice, Libvirt, ProviderChoice};

/// Why no provider can be chosen.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("no provider works on this host: {}", list(reasons))]
pub struct NoProvider {
    /// Each provider with what keeps it from working.
    pub reasons: Vec<(Kind, String)>,
}

fn list(reasons: &[(Kind, String)]) -> String {
    reasons.iter().map(|(kind, why)| format!("{kind}: {why}")).collect::<Vec<_>>().join("; ")
}

impl Explain for NoProvider {
    fn kind(&self) -> FailureKind {
        FailureKind::Cannot
    }

    fn next(&self) -> Vec<String> {
        vec!["p1 doctor --fix".to_owned()]
    }

    fn hint(&self) -> Option<String> {
        Some(
            "`p1 doctor --fix` shows what to install and start for libvirt, and does it when you agree."
                .to_owned(),
        )
    }
}

/// What keeps a provider from working here, as a fragment.
type Obstacle = fn(EngineChoice, &Host) -> Option<String>;

/// Those that are chosen from where the spec names none, the first that works.
const AUTO: [(Kind, Obstacle); 2] = [(Kind::Libvirt, libvirt), (Kind::Virtualbox, virtualbox)];

/// The provider to use: the wished one without further questions, otherwise the first that works,
/// libvirt before VirtualBox as it brings machines up in parallel.
///
/// A cluster that exists keeps the provider it was made with; asking here is for new ones.
pub fn choose(wish: ProviderChoice, engine: EngineChoice, host: &Host) -> Result<Kind, NoProvider> {
    if let Some(kind) = Kind::wished(wish) {
        return Ok(kind);
    }
    let mut reasons = Vec::new();
    for (kind, obstacle) in AUTO {
        match obstacle(engine, host) {
            None => return Ok(kind),
            Some(why) => reasons.push((kind, why)),
        }
    }
    Err(NoProvider { reasons })
}

/// [`choose`], and libvirt where nothing works: the one that `doctor` asks about and sets up.
pub fn prefer(wish: ProviderChoice, engine: EngineChoice, host: &Host) -> Kind {
    choose(wish, engine, host).unwrap_or(Kind::Libvirt)
}

/// What makes a cluster's machines: what the spec says, else Vagrant where it is installed, or needed for one of the
/// provisioners that only it runs. Without a spec as for one that says nothing.
pub fn engine(cluster: Option<&Cluster>, kind: Kind, has_vagrant: bool) -> Engine {
    let for_it = cluster.is_some_and(|c| c.provision.iter().any(|p| p.by_vagrant));
    match cluster.and_then(|c| Engine::wished(c.engine)) {
        _ if kind == Kind::Ssh => Engine::Direct,
        Some(engine) => engine,
        None if kind == Kind::Libvirt && !has_vagrant && !for_it => Engine::Direct,
        None => Engine::Vagrant,
    }
}

fn libvirt(engine: EngineChoice, host: &Host) -> Option<String> {
    match &host.libvirt.link {
        Link::Absent => Some("virsh is not installed".to_owned()),
        Link::Down(why) => Some(format!("its daemon does not answer ({why})")),
        Link::Denied(why) => Some(format!("its daemon does not let this user in ({why})")),
        Link::Up if host.qemu().is_none() => Some("QEMU is not installed".to_owned()),
        Link::Up
            if Engine::wished(engine).is_none_or(|engine| engine == Engine::Vagrant)
                && host.vagrant.program.is_some()
                && host.vagrant.plugin == Plugin::Absent =>
        {
            Some("Vagrant's plugin vagrant-libvirt is not installed".to_owned())
        }
        Link::Up => None,
    }
}

fn virtualbox(_: EngineChoice, host: &Host) -> Option<String> {
    match &host.virtualbox {
        None => Some("it is not installed".to_owned()),
        Some(vbox) => vbox.fault.clone(),
    }
}

/// How QEMU runs its guests: values for vagrant-libvirt's `driver`, `cpu_mode` and `cpu_model`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Virtualization {
    /// `kvm`, or `qemu` for emulation.
    pub driver: &'static str,
    /// `host-passthrough`, which only KVM can do, or `custom`.
    pub cpu_mode: &'static str,
    /// With `custom`.
    pub cpu_model: Option<&'static str>,
}

impl Virtualization {
    /// What this host can do. Under emulation the processor is Nehalem: of the models that were tried
    /// it cost the host least, and it has x86-64-v2, which EL 9 and newer builds of containers want.
    pub fn of(host: &Host) -> Self {
        match host.kvm.verdict() {
            Kvm::Usable => Self { driver: "kvm", cpu_mode: "host-passthrough", cpu_model: None },
            _ => Self {
                driver: "qemu",
                cpu_mode: "custom",
                cpu_model: Some(if host.arch == "aarch64" { "cortex-a57" } else { "Nehalem" }),
            },
        }
    }

    /// [`Virtualization::of`] without looking at anything else of the host.
    pub fn of_env(env: &super::Env, libvirt: &Libvirt) -> Self {
        let arch = std::env::consts::ARCH.to_owned();
        let kvm = super::kvm::KvmFacts::look(env, &arch, libvirt.is_session());
        Self::of(&Host { kvm, arch, ..Host::default() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::doctor::testing::{bare, ready};
    use crate::host::facts::VirtualBox;

    #[test]
    fn auto_takes_what_works_and_says_why_nothing_does() {
        assert_eq!(choose(ProviderChoice::Auto, EngineChoice::Auto, &ready()), Ok(Kind::Libvirt));
        assert_eq!(choose(ProviderChoice::Virtualbox, EngineChoice::Auto, &ready()), Ok(Kind::Virtualbox));

        let mut host = ready();
        host.libvirt.link = Link::Down("No such file or directory".into());
        let error = choose(ProviderChoice::Auto, EngineChoice::Auto, &host).unwrap_err();
        assert_eq!(
            error.to_string(),
            "no provider works on this host: libvirt: its daemon does not answer (No such file or \
             directory); virtualbox: it is not installed"
        );
        assert_eq!(prefer(ProviderChoice::Auto, EngineChoice::Auto, &host), Kind::Libvirt);
        host.virtualbox = Some(VirtualBox::default());
        assert_eq!(choose(ProviderChoice::Auto, EngineChoice::Auto, &host), Ok(Kind::Virtualbox));
        assert!(choose(ProviderChoice::Auto, EngineChoice::Auto, &bare()).is_err());
    }

    #[test]
    fn the_driver_follows_what_kvm_can_really_do() {
        let mut host = ready();
        assert_eq!(Virtualization::of(&host).driver, "kvm");
        host.kvm.flags = false;
        let emulated = Virtualization::of(&host);
        assert_eq!((emulated.cpu_mode, emulated.cpu_model), ("custom", Some("Nehalem")));
    }

    #[test]
    fn vagrant_makes_the_machines_where_it_is_or_is_needed() {
        let mut cluster = crate::spec::fixture::cluster(1);
        let says = |cluster: &Cluster, kind, has| engine(Some(cluster), kind, has);
        assert_eq!(says(&cluster, Kind::Libvirt, true), Engine::Vagrant);
        assert_eq!(says(&cluster, Kind::Libvirt, false), Engine::Direct);
        assert_eq!(says(&cluster, Kind::Virtualbox, false), Engine::Vagrant);
        assert_eq!(
            (engine(None, Kind::Libvirt, true), engine(None, Kind::Libvirt, false)),
            (Engine::Vagrant, Engine::Direct)
        );
        assert_eq!(says(&cluster, Kind::Ssh, true), Engine::Direct);
        cluster.engine = EngineChoice::Vagrant;
        assert_eq!(says(&cluster, Kind::Libvirt, false), Engine::Vagrant);
        cluster.engine = EngineChoice::Direct;
        assert_eq!(says(&cluster, Kind::Libvirt, true), Engine::Direct);
    }
}
