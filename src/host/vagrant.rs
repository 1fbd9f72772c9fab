//! Which Vagrant and which plugin, found out without starting Ruby where their packages tell it.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use semver::Version;
use serde::Serialize;

use super::dirs::Env;
use crate::os::Cancel;
use crate::os::process::{self, Cmd};

/// Ruby on a cold, slow disk.
const BOUND: Duration = Duration::from_secs(60);
/// Debian's and Ubuntu's packages put the specification of each gem here.
const DEBIAN_GEMS: &str = "/usr/share/rubygems-integration/all/specifications";
/// HashiCorp's packages put everything here.
const VENDOR: &str = "/opt/vagrant";

/// The Vagrant of this host.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct VagrantFacts {
    pub program: Option<PathBuf>,
    /// Its version; none if it could not be told without starting it, and it was not to be.
    pub version: Option<Version>,
    /// True for HashiCorp's package, which does not see plugins from Debian's packages.
    pub vendor: bool,
    pub plugin: Plugin,
    /// True if the plugin is in the user's own `~/.vagrant.d` and not where p1's Vagrant looks.
    pub plugin_elsewhere: bool,
}

/// Whether Vagrant has vagrant-libvirt, in the home that p1 uses.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Plugin {
    /// It is not installed.
    #[default]
    Absent,
    /// It is installed.
    Installed(Option<Version>),
}

pub(super) fn look(env: &Env, thorough: bool, cancel: &Cancel) -> VagrantFacts {
    let Some(program) = env.find("vagrant") else {
        return VagrantFacts::default();
    };
    let real = fs::canonicalize(&program).unwrap_or_else(|_| program.clone());
    let vendor = real.starts_with(VENDOR);
    // A package tells the version of its own program only, not of another that comes first on PATH.
    let packaged = real.starts_with(env.under("/usr/bin"));
    let mut version = match (vendor, packaged) {
        (true, _) => vendor_version(env),
        (_, true) => gem_version(env, "vagrant"),
        _ => None,
    };
    if version.is_none() && thorough {
        version = ask(&program, cancel);
    }
    let home = env.dirs().vagrant_home();
    let packaged = if vendor { None } else { gem_version(env, "vagrant-libvirt") };
    let plugin = match packaged {
        Some(version) => Plugin::Installed(Some(version)),
        None => plugin_in(&home),
    };
    let plugin_elsewhere =
        plugin == Plugin::Absent && plugin_in(&env.home.join(".vagrant.d")) != Plugin::Absent;
    VagrantFacts { program: Some(program), version, vendor, plugin, plugin_elsewhere }
}

/// `2.3.4`, `2.3.4+dfsg-1`, `2.4.10.dev`: the leading three numbers.
pub(super) fn version(text: &str) -> Option<Version> {
    let mut numbers = text.split(|c: char| !c.is_ascii_digit()).map(|n| n.parse::<u64>().ok());
    let mut next = || numbers.next().flatten();
    Some(Version::new(next()?, next()?, next().unwrap_or(0)))
}

/// The version in the name of `NAME-VERSION.gemspec` or of a gem's folder.
fn named(dir: &Path, name: &str) -> Option<Version> {
    let entries = fs::read_dir(dir).ok()?;
    let one = |file: String| version(file.strip_prefix(name)?.strip_prefix('-')?);
    entries.flatten().filter_map(|e| one(e.file_name().into_string().ok()?)).max()
}

fn gem_version(env: &Env, gem: &str) -> Option<Version> {
    named(&env.under(DEBIAN_GEMS), gem)
}

/// Since 2.3.7 in `embedded/gems/VERSION/gems/`, before that in `embedded/gems/gems/`.
fn vendor_version(env: &Env) -> Option<Version> {
    let gems = env.under(VENDOR).join("embedded/gems");
    let inner = fs::read_dir(&gems).ok()?.flatten().map(|e| e.path().join("gems"));
    inner.chain([gems.join("gems")]).filter_map(|dir| named(&dir, "vagrant")).max()
}

/// `Vagrant 2.3.4`.
fn ask(program: &Path, cancel: &Cancel) -> Option<Version> {
    let cmd = Cmd::new(program).arg("--version").env("VAGRANT_CHECKPOINT_DISABLE", "1");
    let done = process::run(&cmd, BOUND, cancel).ok()?;
    version(done.stdout.lines().find_map(|l| l.strip_prefix("Vagrant "))?)
}

/// From `plugins.json` in a VAGRANT_HOME (vagrant, `lib/vagrant/plugin/state_file.rb`).
fn plugin_in(home: &Path) -> Plugin {
    let text = fs::read_to_string(home.join("plugins.json")).unwrap_or_default();
    let state: serde_json::Value = serde_json::from_str(&text).unwrap_or_default();
    match &state["installed"]["vagrant-libvirt"] {
        serde_json::Value::Null => Plugin::Absent,
        plugin => {
            let number = |key: &str| version(plugin[key].as_str()?);
            Plugin::Installed(number("installed_gem_version").or_else(|| number("gem_version")))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Made(tempfile::TempDir);

    impl Made {
        fn new() -> Self {
            Self(tempfile::tempdir().unwrap())
        }

        fn put(&self, path: &str, text: &str) {
            let path = self.0.path().join(path.trim_start_matches('/'));
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }

        fn env(&self) -> Env {
            let home = self.0.path().join("home");
            Env { root: self.0.path().into(), home, data_home: None, ..Env::of_process() }
        }
    }

    #[test]
    fn debians_packages_tell_both_versions() {
        let made = Made::new();
        made.put(&format!("{DEBIAN_GEMS}/vagrant-2.3.4.gemspec"), "");
        made.put(&format!("{DEBIAN_GEMS}/vagrant_cloud-3.0.5.gemspec"), "");
        made.put(&format!("{DEBIAN_GEMS}/vagrant-libvirt-0.11.2.gemspec"), "");
        assert_eq!(gem_version(&made.env(), "vagrant"), Some(Version::new(2, 3, 4)));
        assert_eq!(gem_version(&made.env(), "vagrant-libvirt"), Some(Version::new(0, 11, 2)));
    }

    #[test]
    fn hashicorps_package_and_a_plugin_installed_by_vagrant() {
        let made = Made::new();
        made.put("/opt/vagrant/embedded/gems/2.4.1/gems/vagrant-2.4.1/LICENSE", "");
        assert_eq!(vendor_version(&made.env()), Some(Version::new(2, 4, 1)));
        let home = made.env().dirs().vagrant_home();
        assert_eq!(plugin_in(&home), Plugin::Absent);
        let json = r#"{"version":"1","installed":{"vagrant-libvirt":{"gem_version":"","installed_gem_version":"0.12.2"}}}"#;
        made.put("/home/.local/share/p1/vagrant/plugins.json", json);
        assert_eq!(plugin_in(&home), Plugin::Installed(Some(Version::new(0, 12, 2))));
    }

    #[test]
    fn versions_as_packages_write_them() {
        assert_eq!(version("2.3.4+dfsg-1+deb12u1"), Some(Version::new(2, 3, 4)));
        assert_eq!(version("7.0r158379"), Some(Version::new(7, 0, 158_379)));
        assert_eq!(version("unknown"), None);
    }
}
