//! Vagrant: the only place that runs it.
//!
//! Vagrant is asked to create, boot and destroy machines, and to run one provisioner by its name on one
//! machine. It is never asked to provision as a part of `up`: it notes a machine as provisioned
//! *before* it provisions it (`lib/vagrant/action/builtin/provision.rb`), so a failure there is lost.

mod engine;
mod error;
mod file;
mod machine_readable;
mod provision;
mod up;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::machines::{BoxInfo, Orphan};
use crate::os::files::{self, At};
use crate::os::process::{self, Cmd, Finished};
use crate::os::{Cancel, files::Error as FileError, orphan};

pub use engine::ByVagrant;
pub use error::Error;
pub use file::{Libvirt, readable, vagrantfile};
pub use machine_readable::{Line, parse};
#[cfg(feature = "internals")]
pub use up::read;
pub use up::{Progress, Up};

/// Loading Ruby, the plugins and a Vagrantfile takes 1 to 6 s (reference: hashicorp/vagrant #11351).
const COMMAND_TIMEOUT: Duration = Duration::from_secs(120);

/// What a Vagrant gets to finish what it is in the middle of when it is told to end.
const GRACE: Duration = Duration::from_secs(20);

/// The login that every Vagrant box has (developer.hashicorp.com/vagrant/docs/boxes/base).
pub const USER: &str = "vagrant";

/// One cluster's Vagrant: its program, its home and the folder with the Vagrantfile.
#[derive(Clone, Debug)]
pub struct Vagrant {
    pub program: PathBuf,
    /// VAGRANT_HOME: p1's own, so that a machine index damaged elsewhere does not matter here.
    pub home: PathBuf,
    /// The cluster's state folder: holds `Vagrantfile` and `.vagrant/`.
    pub dir: PathBuf,
    /// Vagrant's name of the provider.
    pub provider: &'static str,
    /// What its provisioners, which may ask the cluster from this host, must not ask a proxy for.
    pub no_proxy: String,
}

impl Vagrant {
    /// A vagrant command line with everything set that could make it act differently elsewhere.
    pub fn command<S: AsRef<str>>(&self, args: impl IntoIterator<Item = S>) -> Cmd {
        let mut cmd = Cmd::new(&self.program).cwd(&self.dir).held_by(self.input());
        for arg in args {
            cmd = cmd.arg(arg.as_ref());
        }
        // A set VAGRANT_NO_PARALLEL means "no" whatever its value; the others change what is
        // loaded, where, and what is printed.
        for name in [
            "VAGRANT_NO_PARALLEL",
            "VAGRANT_NO_PLUGINS",
            "VAGRANT_INSTALL_LOCAL_PLUGINS",
            "VAGRANT_LOG",
            "VAGRANT_LOG_TIMESTAMP",
            "VAGRANT_EXPERIMENTAL",
            "VAGRANT_PREFERRED_PROVIDERS",
            "VAGRANT_SERVER_URL",
            "VAGRANT_DEFAULT_LIBVIRT_URI",
            "LIBVIRT_DEFAULT_URI",
            "RUBYOPT",
            "RUBYLIB",
            "BUNDLE_GEMFILE",
            "GEM_HOME",
            "GEM_PATH",
        ] {
            cmd = cmd.env_remove(name);
        }
        cmd.env("VAGRANT_CWD", &self.dir)
            .env("VAGRANT_VAGRANTFILE", "Vagrantfile")
            .env("VAGRANT_DOTFILE_PATH", self.dir.join(".vagrant"))
            .env("VAGRANT_HOME", &self.home)
            .env("VAGRANT_DEFAULT_PROVIDER", self.provider)
            .env("VAGRANT_NO_COLOR", "1")
            // Otherwise it waits up to 10 s for an answer from the internet.
            .env("VAGRANT_CHECKPOINT_DISABLE", "1")
            .env("VAGRANT_BOX_UPDATE_CHECK_DISABLE", "1")
            .env("LC_ALL", "C.UTF-8")
            .env("NO_PROXY", &self.no_proxy)
            .env("no_proxy", &self.no_proxy)
    }

    fn input(&self) -> PathBuf {
        self.dir.join("vagrant.input")
    }

    /// The Vagrant of this cluster that a killed p1 left running.
    pub fn left_behind(&self) -> Option<Orphan> {
        let (input, program) = (self.input(), "vagrant");
        let pid = orphan::left(&input, program)?.as_raw();
        Some(Orphan { name: "Vagrant", pid, input, program, grace: GRACE })
    }

    /// Makes the home. Plugins that the user installed with `vagrant plugin install` live in the
    /// user's own home (`plugins.json`, `gems/`), so these are linked in.
    pub fn prepare_home(&self, users_home: Option<&Path>) -> Result<(), FileError> {
        files::dir(&self.home)?;
        let Some(theirs) = users_home else { return Ok(()) };
        for name in ["plugins.json", "gems"] {
            let (from, to) = (theirs.join(name), self.home.join(name));
            if from.exists() && to.symlink_metadata().is_err() {
                std::os::unix::fs::symlink(&from, &to).at("link", &to)?;
            }
        }
        Ok(())
    }

    /// The well-known private keys that open a fresh box. Vagrant puts them into its home
    /// (`lib/vagrant/environment.rb`, `copy_insecure_private_keys`); since 2.4 there are several.
    pub fn insecure_keys(&self) -> Vec<PathBuf> {
        let entries = fs::read_dir(self.home.join("insecure_private_keys")).into_iter().flatten().flatten();
        let mut keys: Vec<PathBuf> = entries.map(|e| e.path()).collect();
        keys.sort();
        keys.insert(0, self.home.join("insecure_private_key"));
        keys
    }

    /// The ids Vagrant knows its machines by, from its own files: no Ruby. A machine without an id
    /// was never created; the folder alone means nothing (any `vagrant status` makes it).
    pub fn ids(&self) -> BTreeMap<String, String> {
        let mut ids = BTreeMap::new();
        let machines = self.dir.join(".vagrant/machines");
        for entry in fs::read_dir(machines).into_iter().flatten().flatten() {
            let id = entry.path().join(self.provider).join("id");
            if let (Ok(name), Ok(Some(id))) = (entry.file_name().into_string(), files::read_if_there(&id)) {
                ids.insert(name, id.trim().to_owned());
            }
        }
        ids
    }

    /// The id of one of them.
    pub fn id(&self, node: &str) -> Option<String> {
        let path = self.dir.join(".vagrant/machines").join(node).join(self.provider).join("id");
        Some(files::read_if_there(&path).ok()??.trim().to_owned())
    }

    /// Runs a short command and reads its lines.
    pub fn run(&self, args: &[&str], bound: Duration, cancel: &Cancel) -> Result<Vec<Line>, Error> {
        let cmd = self.command(args.iter().chain(&["--machine-readable"]));
        let done = process::run(&cmd, bound, cancel)?;
        let lines: Vec<Line> = done.stdout.lines().filter_map(parse).collect();
        Self::verdict(&done, &lines).map(|()| lines)
    }

    fn verdict(done: &Finished, lines: &[Line]) -> Result<(), Error> {
        if done.success() {
            return Ok(());
        }
        Err(Error::from_output(done, lines))
    }

    /// True if this box is in the home already, told from its folder: no Ruby.
    /// Layout: `boxes/<name, / as -VAGRANTSLASH->/<version>/[<arch>/]<provider>/metadata.json`
    /// (`lib/vagrant/box_collection.rb`).
    pub fn has_box(&self, info: &BoxInfo) -> bool {
        self.box_dir(info).is_some()
    }

    fn box_dir(&self, info: &BoxInfo) -> Option<PathBuf> {
        let dir = self.home.join("boxes").join(info.folder()).join(&info.version);
        let plain = dir.join(self.provider);
        if plain.join("metadata.json").is_file() {
            return Some(plain);
        }
        let arches = fs::read_dir(&dir).ok()?;
        arches.flatten().map(|e| e.path().join(self.provider)).find(|p| p.join("metadata.json").is_file())
    }

    /// The box made of the file with this checksum. Its name carries the checksum, so another file is
    /// another box and nothing is replaced under running machines; so one version is enough.
    /// `label` is for people.
    pub fn box_info(&self, label: &str, sha256: &str) -> BoxInfo {
        let name = format!("p1/{label}-{}", &sha256[..sha256.len().min(12)]);
        let mut info = BoxInfo { name, version: "1.0.0".to_owned(), image: PathBuf::new() };
        if let Some(dir) = self.box_dir(&info) {
            info.image = dir.join("box.img");
        }
        info
    }

    /// Adds a box file under a name and a version. A box given as a plain file always has version
    /// 0, so the file is wrapped in a catalogue of one.
    pub fn add_box(&self, info: &BoxInfo, file: &Path, cancel: &Cancel) -> Result<(), Error> {
        let url = format!("file://{}", file.display());
        let catalogue = serde_json::json!({
            "name": info.name,
            "versions": [{"version": info.version, "providers": [{"name": self.provider, "url": url}]}],
        });
        let path = self.home.join(format!("catalogue-{}.json", info.folder()));
        files::write(&path, catalogue.to_string().as_bytes(), 0o644)?;
        let args = ["box", "add", "--force", "--provider", self.provider];
        let cmd = self.command(args).arg(format!("file://{}", path.display())).arg("--machine-readable");
        // `box add` needs no Vagrantfile and must not trip over a broken one.
        let done =
            process::run(&cmd.cwd(&self.home).env("VAGRANT_CWD", &self.home), 5 * COMMAND_TIMEOUT, cancel)?;
        let lines: Vec<Line> = done.stdout.lines().filter_map(parse).collect();
        let result = Self::verdict(&done, &lines);
        files::remove_if_there(&path)?;
        result
    }

    /// Destroys the machines of these names that Vagrant knows of.
    pub fn destroy(&self, nodes: &[String], cancel: &Cancel) -> Result<(), Error> {
        let mut args = vec!["destroy", "--force", "--parallel"];
        args.extend(nodes.iter().map(String::as_str));
        self.run(&args, 5 * COMMAND_TIMEOUT, cancel).map(|_| ())
    }

    /// Forgets machines, for when they vanished under Vagrant: its files of them are removed.
    pub fn forget(&self, node: &str) -> Result<(), FileError> {
        let dir = self.dir.join(".vagrant/machines").join(node);
        match fs::remove_dir_all(&dir) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(e).at("remove", &dir),
            _ => Ok(()),
        }
    }
}
