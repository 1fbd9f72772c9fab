//! What a verb works with: the command line, the environment, the spec, and the world made of them.
//! Only here (and in `host`) is the environment read.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io::IsTerminal;
use std::os::fd::AsFd;
use std::sync::{Arc, Mutex};

use super::above;
use super::args::{Global, Output};
use super::error::{CliError, code};
use crate::access::{Held, World};
use crate::artifacts::{Cache, Net};
use crate::boxes::Library;
use crate::explain::printable;
use crate::host::{self, Dirs, Env, Host, Look, Virtualization};
use crate::images::Images;
use crate::index::{Index, Note};
use crate::kept::Moments;
use crate::machines::{self, Bridge, Cpu, Fleet, Here, Kind, Users};
use crate::os::Cancel;
use crate::os::apart::Apart;
use crate::os::files::At;
use crate::os::lock::{self, Lock};
use crate::os::sync::lock as lock_of;
use crate::redact::Redactor;
use crate::spec::{self, Cluster, LibvirtUri, Parsed};
use crate::ssh::Password;
use crate::state::StateDir;
use crate::ui::{Format, Options, Paint, count};
use crate::{journal, k3s};

/// Everything a verb needs to begin.
#[derive(Clone)]
pub struct Context {
    /// Options of every verb.
    pub global: Global,
    pub env: Env,
    /// How to talk.
    pub ui: Options,
    pub cancel: Cancel,
    /// Knows the secrets of the cluster that the verb is about, as soon as there is a world of it.
    pub redactor: Redactor,
    /// What sudo asks for on machines that exist already, by node, as far as it was asked for.
    pub passwords: Arc<Mutex<BTreeMap<String, Password>>>,
}

/// How the machines are reached that exist already, those of nodes that left the spec included.
fn accesses(cluster: &Cluster) -> BTreeMap<String, spec::SshAccess> {
    let memory = StateDir::of(cluster.home(), &cluster.name).memory();
    machines::accesses(
        cluster,
        memory.iter().filter_map(|(name, memory)| Some((name, memory.made.as_ref()?))),
    )
}

/// A variable of the environment, for those that a spec names.
pub fn variable(name: &str) -> Option<OsString> {
    std::env::var_os(name)
}

impl Context {
    /// Decides how to talk.
    pub fn new(global: Global, cancel: Cancel) -> Self {
        let set = |name: &str| std::env::var_os(name).is_some_and(|v| !v.is_empty());
        let term = std::env::var("TERM").unwrap_or_default();
        let terminal = std::io::stderr().is_terminal() && term != "dumb";
        let format = match global.output {
            Output::Human => Format::Human,
            Output::Plain => Format::Plain,
            Output::Json => Format::Json,
        };
        let locale = ["LC_ALL", "LC_CTYPE", "LANG"]
            .iter()
            .find_map(|v| std::env::var(v).ok().filter(|s| !s.is_empty()));
        let ui = Options {
            format,
            color: terminal && !global.no_color && !set("NO_COLOR"),
            unicode: locale.is_some_and(|l| l.to_lowercase().replace('-', "").contains("utf8")),
            width: None,
            verbose: global.verbose,
            terminal,
        };
        Self {
            global,
            env: Env::of_process(),
            ui,
            cancel,
            redactor: Redactor::default(),
            passwords: Arc::default(),
        }
    }

    /// How p1 is called for this spec: `p1`, with ` -C DIR` if it was told so, and ` -f FILE` if it is not the usual one.
    pub fn called(&self) -> String {
        let quote = |path: &std::path::Path| crate::os::process::quote_os(path.as_os_str());
        let mut p1 = "p1".to_owned();
        for folder in &self.global.folder {
            p1 += &format!(" -C {}", quote(folder));
        }
        if self.global.file.as_os_str() != above::SPEC && !self.global.found {
            p1 += &format!(" -f {}", quote(&self.global.file));
        }
        p1
    }

    /// True if any cluster was begun beside the spec.
    pub fn has_state(&self) -> bool {
        self.global.file.parent().is_some_and(|dir| dir.join(".p1").is_dir())
    }

    /// A text with words from elsewhere in it, as it may be shown: without the cluster's secrets and without what a
    /// terminal would obey.
    pub fn shown(&self, text: &str) -> String {
        printable(&self.redactor.text(text)).into_owned()
    }

    /// Colours and signs.
    pub fn paint(&self) -> Paint {
        self.ui.paint()
    }

    /// True if a question can be asked.
    pub fn can_ask(&self) -> bool {
        std::io::stdin().is_terminal() && std::io::stderr().is_terminal()
    }

    /// Where p1 keeps things on this host.
    pub fn dirs(&self) -> Dirs {
        self.env.dirs()
    }

    /// This host's boxes.
    pub fn library(&self) -> Library {
        Library::new(self.dirs().data.join("boxes"))
    }

    /// The spec. Its warnings are for who checks it or makes the cluster of it: [`Context::spec_with_warnings`].
    pub fn spec(&self) -> Result<Cluster, CliError> {
        self.usable(self.parse()?.cluster)
    }

    /// The spec, with its warnings said.
    pub fn spec_with_warnings(&self) -> Result<Cluster, CliError> {
        self.warned(self.parse()?)
    }

    /// The spec with its warnings. Which one it is, is said once where nobody named it and it is not in this folder.
    pub fn parse(&self) -> Result<Parsed, CliError> {
        static SAID: std::sync::Once = std::sync::Once::new();
        if self.global.found {
            SAID.call_once(|| eprintln!("note: the spec is {}", self.global.file.display()));
        }
        spec::load(&self.global.file, &variable).map_err(|error| self.told(error))
    }

    /// Looks at this host.
    pub fn host(&self, cluster: Option<&Cluster>, thorough: bool) -> Host {
        let here = std::env::current_dir().unwrap_or_default();
        let state = cluster.map_or(here.as_path(), |c| c.base.as_path());
        let tools = [false, true].into_iter().flat_map(crate::boxes::requirements);
        let tools: Vec<&str> = tools.map(|t| t.program).collect();
        let libvirt = cluster.map(|c| self.libvirt(c)).unwrap_or_default();
        Host::look(&self.env, &Look { thorough, programs: &tools, state, libvirt: &libvirt }, &self.cancel)
    }

    /// Which provider a cluster has, or gets.
    pub fn provider(&self, cluster: &Cluster, state: &StateDir) -> Result<Kind, CliError> {
        state.readable().map_err(|e| CliError::of(code::FAILED, &e))?;
        if let Some(kind) = state.facts().map_err(|e| CliError::of(code::FAILED, &e))?.provider {
            return Ok(kind);
        }
        if let Some(kind) = Kind::wished(cluster.provider) {
            return Ok(kind);
        }
        let host = self.host(Some(cluster), false);
        let kind = host::choose(cluster.provider, cluster.engine, &host)
            .map_err(|e| CliError::of(code::HOST, &e))?;
        if cluster.autostart && !kind.starts_with_host() {
            let message = "`autostart` is for libvirt only, and this host has VirtualBox";
            return Err(CliError::new(code::USAGE, message, spec::AUTOSTART));
        }
        let disks = |n: &spec::Node| n.disk.is_some() || !n.disks.is_empty();
        if !kind.gives_disks() && cluster.nodes.iter().any(disks) {
            let message = "`disk` and `disks` are for libvirt only, and this host has VirtualBox";
            return Err(CliError::new(code::USAGE, message, spec::DISKS));
        }
        if cluster.bake == spec::BakeChoice::Auto && kind != Kind::Libvirt {
            let message = "`bake: auto` is for libvirt only, and this host has VirtualBox";
            return Err(CliError::new(code::USAGE, message, spec::BAKE));
        }
        Ok(kind)
    }

    /// The same, where its machines are to be worked on: what it takes to get into them is asked for.
    pub fn kind(&self, cluster: &Cluster, state: &StateDir) -> Result<Kind, CliError> {
        let kind = self.provider(cluster, state)?;
        self.passwords_of(cluster)?;
        Ok(kind)
    }

    /// Where the user's own Vagrant has its boxes.
    pub fn users_vagrant_home(&self) -> std::path::PathBuf {
        let set = std::env::var_os("VAGRANT_HOME").filter(|home| !home.is_empty());
        set.map_or_else(|| self.env.home.join(".vagrant.d"), Into::into)
    }

    /// Which libvirt a cluster has, or gets.
    pub fn libvirt(&self, cluster: &Cluster) -> spec::Libvirt {
        let known =
            StateDir::of(cluster.home(), &cluster.name).facts().ok().and_then(|facts| facts.libvirt());
        known.unwrap_or_else(|| cluster.libvirt.clone())
    }

    /// The kept clusters of a libvirt.
    pub fn kept(&self, of: LibvirtUri) -> Moments {
        Moments::new(self.dirs().kept(of))
    }

    /// The programs that machines are made with, and which libvirt.
    pub fn tools(&self, libvirt: &spec::Libvirt) -> machines::Tools {
        let find = |name: &str| self.env.find(name).unwrap_or_else(|| name.into());
        machines::Tools {
            virsh: find("virsh"),
            qemu_img: find("qemu-img"),
            ip: find("ip"),
            vboxmanage: find("VBoxManage"),
            libvirt_uri: libvirt.uri.word().to_owned(),
            bridge: libvirt.bridge.clone().map(|name| Bridge { name, dns: host::resolvers(&self.env) }),
            images: host::images(&self.env, libvirt),
            ..machines::Tools::default()
        }
    }

    /// What makes a cluster's machines.
    pub fn engine(&self, cluster: &Cluster, kind: Kind) -> machines::Engine {
        // Also where the spec says something else by now.
        if self.libvirt(cluster).is_session() {
            return machines::Engine::Direct;
        }
        host::engine(Some(cluster), kind, self.env.find("vagrant").is_some())
    }

    /// This user's clusters on this host.
    pub fn index(&self) -> Index {
        Index::new(self.dirs().clusters())
    }

    /// Where a cluster is.
    pub fn note(&self, cluster: &Cluster, kind: Kind) -> Note {
        let state = StateDir::of(cluster.home(), &cluster.name);
        Note::new(
            &cluster.name,
            &self.global.file,
            state.dir(),
            kind,
            cluster.fork.as_ref().map(|f| f.of.clone()),
        )
    }

    /// Who has the machines of a cluster. Cheap: nothing is looked at yet.
    pub fn machines(&self, cluster: &Cluster, kind: Kind) -> Fleet {
        let find = |name: &str| self.env.find(name).unwrap_or_else(|| name.into());
        let libvirt = self.libvirt(cluster);
        let tools = self.tools(&libvirt);
        let cpu = (kind == Kind::Libvirt).then(|| {
            let how = Virtualization::of_env(&self.env, &libvirt);
            Cpu {
                driver: how.driver.to_owned(),
                mode: how.cpu_mode.to_owned(),
                model: how.cpu_model.map(str::to_owned),
            }
        });
        let engine = self.engine(cluster, kind);
        let dir = StateDir::of(cluster.home(), &cluster.name).dir().to_owned();
        let here = Here {
            reach: machines::Reach::of(cluster, &dir),
            tools,
            engine,
            cpu,
            vagrant: find("vagrant"),
            homes: (self.dirs().vagrant_home(), Some(self.env.home.join(".vagrant.d"))),
            dir,
            no_proxy: self.no_proxy(cluster),
            users: self.users(),
            jobs: self.global.jobs,
        };
        Fleet::open(kind, here, accesses(cluster).into_keys().collect())
    }

    /// What the user has for getting into machines that exist already.
    fn users(&self) -> Users {
        let home = self.env.home.clone();
        let account = nix::unistd::User::from_uid(nix::unistd::getuid()).ok().flatten().map(|user| user.dir);
        let account = account.filter(|account| *account != home);
        let agent = variable("SSH_AUTH_SOCK").filter(|socket| !socket.is_empty()).map(Into::into);
        Users { home, account, agent, passwords: lock_of(&self.passwords).clone() }
    }

    /// Has what sudo asks for on machines that exist already, from where the spec says: from the environment, or from the
    /// user, once for each run.
    fn passwords_of(&self, cluster: &Cluster) -> Result<(), CliError> {
        let mut held = lock_of(&self.passwords);
        let mut last: Option<Password> = None;
        for (node, access) in accesses(cluster) {
            let Some(from) = access.password.as_ref().filter(|_| !held.contains_key(&node)) else { continue };
            let text = match from {
                spec::Ask::Env(name) => std::env::var(name).map_err(|_| {
                    let what = format!("the variable `{name}`, sudo's password on {node}, is not set");
                    CliError::new(code::USAGE, what, format!("Set it: `read -rs {name} && export {name}`."))
                })?,
                spec::Ask::Prompt => {
                    if !self.can_ask() {
                        let what = format!("there is no terminal to ask for sudo's password on {node}");
                        let hint = "Name a variable that has it, as `from: NAME`.";
                        return Err(CliError::new(code::USAGE, what, hint));
                    }
                    let who = access.user.as_ref().map(|user| format!("{user} on ")).unwrap_or_default();
                    let same = if last.is_some() { " (Enter: the one before)" } else { "" };
                    let question = format!("sudo's password of {who}{node}{same}: ");
                    let stop = Cancel::new();
                    let _signals = super::signals::watch_plain(stop.clone())?;
                    let text = crate::ui::secret(&question, &stop).map_err(|e| match e.kind() {
                        std::io::ErrorKind::Interrupted => {
                            CliError::new(code::INTERRUPTED, "interrupted", "")
                        }
                        _ => CliError::new(code::FAILED, format!("no password could be read: {e}"), ""),
                    })?;
                    match (&last, text.is_empty()) {
                        (Some(last), true) => {
                            held.insert(node, last.clone());
                            continue;
                        }
                        _ => text,
                    }
                }
            };
            self.redactor.learn([&text]);
            let password = Password::new(&text);
            last = Some(password.clone());
            held.insert(node, password);
        }
        Ok(())
    }

    /// Who has the machines of a cluster that was made; of the usual kind where that is not known any more.
    pub fn machines_of(&self, cluster: &Cluster, state: &StateDir) -> Fleet {
        let known = state.facts().ok().and_then(|facts| facts.provider);
        self.machines(cluster, known.or_else(|| Kind::wished(cluster.provider)).unwrap_or_default())
    }

    /// The world of a cluster. Cheap: nothing is looked at yet.
    pub fn world(&self, cluster: Cluster, kind: Kind) -> Arc<World> {
        let dirs = self.dirs();
        let state = StateDir::of(cluster.home(), &cluster.name);
        let world = Arc::new(World {
            held: Held::of(&state),
            state,
            machines: self.machines(&cluster, kind),
            cache: Cache { dir: dirs.cache.join("artifacts") },
            net: self.net(),
            library: self.library(),
            kept: self.kept(self.libvirt(&cluster).uri),
            images: Images::new(dirs.images()),
            host_lock: dirs.host_lock(),
            token: match &cluster.k3s.token {
                Some(spec::TokenSource::Env(name)) => std::env::var(name).ok(),
                _ => None,
            },
            run: journal::new_run_id(),
            cancel: self.cancel.clone(),
            jobs: self.global.jobs,
            redactor: self.redactor.clone(),
            healer: self.healer(&cluster),
            baker: super::bake::baker(self),
            front: self.front(&cluster),
            cluster,
        });
        world.redactor();
        // After a start of this host, or where it was killed, nobody else would end them.
        if world.state.faults().is_ok_and(|faults| !faults.is_empty()) {
            let _ = world.healer.ensure();
        }
        world
    }

    /// What ends the faults of a cluster: this p1, once more.
    fn healer(&self, cluster: &Cluster) -> Apart {
        let state = StateDir::of(cluster.home(), &cluster.name);
        let file = std::path::absolute(&self.global.file).unwrap_or_else(|_| self.global.file.clone());
        let args = ["-f".into(), file.into(), "-o".into(), "plain".into(), "fault".into(), "watch".into()];
        Apart { args: args.into(), lock: state.healer(), log: state.healer_log() }
    }

    /// What listens on this host for a fork's API: this p1, once more.
    pub fn front(&self, cluster: &Cluster) -> Apart {
        let Some(fork) = &cluster.fork else { return Apart::default() };
        let state = StateDir::of(cluster.home(), &cluster.name);
        let file = fork.home.join("cluster.yaml");
        let args = ["-f".into(), file.into(), "-o".into(), "plain".into(), "fork".into(), "--forward".into()];
        Apart { args: args.into(), lock: state.forwarder(), log: state.forwarder_log() }
    }

    /// How to get at what is elsewhere: mirrors and proxies are named in the environment.
    pub fn net(&self) -> Net {
        let get = |name: &str| std::env::var(name).ok().filter(|v| !v.is_empty());
        let either = |name: &str| get(name).or_else(|| get(&name.to_uppercase()));
        let mut origins = k3s::Origins::default();
        let from = |name: &str, to: &mut String| {
            if let Some(value) = get(name) {
                value.trim_end_matches('/').clone_into(to);
            }
        };
        from("P1_K3S_RELEASES", &mut origins.releases);
        from("P1_K3S_SOURCE", &mut origins.source);
        from("P1_K3S_CHANNELS", &mut origins.channels);
        Net {
            origins,
            offline: self.global.offline,
            https_proxy: either("https_proxy"),
            http_proxy: get("http_proxy"),
            no_proxy: either("no_proxy"),
            ca_file: get("SSL_CERT_FILE").map(Into::into),
        }
    }

    /// `NO_PROXY` for programs that talk to the cluster: the user's, and all addresses of the cluster, which
    /// no proxy can reach. Single addresses too, as not everybody reads networks in it.
    pub fn no_proxy(&self, cluster: &Cluster) -> String {
        let users = ["NO_PROXY", "no_proxy"].map(|name| std::env::var(name).unwrap_or_default());
        let users = users.iter().flat_map(|list| list.split(',')).map(|entry| entry.trim().to_owned());
        let nodes = cluster.nodes.iter().map(|n| n.ip.to_string());
        let local = ["localhost", "127.0.0.1"].map(str::to_owned);
        let network = (!cluster.network.is_none()).then(|| cluster.network.cidr.to_string());
        let endpoint = cluster.k3s.endpoint.as_ref().map(|e| e.host.clone());
        let mut all: Vec<String> = Vec::new();
        for entry in users.chain(local).chain(network).chain(nodes).chain(endpoint) {
            if !entry.is_empty() && !all.contains(&entry) {
                all.push(entry);
            }
        }
        all.join(",")
    }

    /// The locks of a cluster: on this host, for this user's p1 wherever its folder lies, and of its folder,
    /// which is made for it.
    pub fn lock(&self, state: &StateDir, kind: Kind, verb: &str) -> Result<[Lock; 2], CliError> {
        state.create().map_err(|e| CliError::of(code::FAILED, &e))?;
        let tell = &mut |owner: Option<&lock::Owner>| {
            let whom = owner.map(|o| format!(": p1 {} (pid {}, since {})", o.verb, o.pid, o.since));
            let bound = crate::explain::seconds(self.global.wait);
            eprintln!("another p1 works on this cluster{}; waiting up to {bound}", whom.unwrap_or_default());
        };
        let name = state.dir().file_name().unwrap_or_default().to_string_lossy();
        let of_host = self.dirs().cluster_lock(&format!("{kind}-{name}"));
        let mut take = |path: &std::path::Path| {
            Lock::take_telling(path, verb, self.global.wait, &self.cancel, tell).map_err(|e| {
                let code = if matches!(e, lock::Error::Held { .. }) { code::LOCKED } else { code::FAILED };
                CliError::of(code, &e)
            })
        };
        let locks = [take(&of_host)?, take(&state.lock())?];
        // Should the former owner have removed the folder, it was recreated without what else is in it.
        state.create().map_err(|e| CliError::of(code::FAILED, &e))?;
        Ok(locks)
    }

    /// For verbs that work on machines: they have to have been made.
    pub fn must_be_made(&self, cluster: &Cluster, state: &StateDir) -> Result<(), CliError> {
        state.readable().map_err(|e| CliError::of(code::FAILED, &e))?;
        if state.key().is_file() {
            return Ok(());
        }
        if machines::has_machines(state.dir()) {
            return Err(CliError::new(
                code::FAILED,
                crate::steps::ssh::key_is_gone(state),
                crate::steps::ssh::KEY_GONE,
            ));
        }
        let what = format!("the cluster `{}` has not been made yet", cluster.name);
        Err(CliError::new(code::FAILED, what, "`p1 up` makes it.").next(["p1 up"]))
    }

    /// The nodes of the spec that words of the command line mean ([`Cluster::select`]), each once; none for no words.
    pub fn targets(&self, cluster: &Cluster, words: &[String]) -> Result<Vec<String>, CliError> {
        let mut all: Vec<String> = Vec::new();
        for word in words {
            let meant = cluster.select(word).ok_or_else(|| no_node(cluster, word))?;
            for node in meant {
                if !all.contains(&node.name) {
                    all.push(node.name.clone());
                }
            }
        }
        Ok(all)
    }

    /// The one node that a word means.
    pub fn target(&self, cluster: &Cluster, word: &str) -> Result<String, CliError> {
        let mut all = self.targets(cluster, &[word.to_owned()])?;
        if all.len() > 1 {
            let what = format!("`{word}` is {}, and this is for one", count(all.len(), "node"));
            return Err(CliError::new(code::USAGE, what, format!("Name one of them: {}.", all.join(", "))));
        }
        Ok(all.remove(0))
    }

    /// Goes on after a yes alone.
    pub fn agree(&self, question: &str) -> Result<(), CliError> {
        if self.ask(question)? {
            return Ok(());
        }
        // It is what was asked for, and no error.
        eprintln!("nothing was done");
        Err(CliError::told(code::USAGE, "nothing was done"))
    }

    /// Asks, unless `--yes`. Without a terminal and without `--yes` it is an error, with what would have been asked and the
    /// word that it takes.
    pub fn ask(&self, question: &str) -> Result<bool, CliError> {
        if self.global.yes {
            return Ok(true);
        }
        if !self.can_ask() {
            let fail = CliError::new(
                code::USAGE,
                "there is no terminal to confirm on",
                "Pass `--yes` to confirm beforehand.",
            );
            return Err(CliError { evidence: question.lines().map(str::to_owned).collect(), ..fail });
        }
        let input = std::io::stdin();
        // What was typed before was no answer to this, nor is what an earlier answer had behind it.
        let _ = nix::sys::termios::tcflush(&input, nix::sys::termios::FlushArg::TCIFLUSH);
        let own = input.as_fd().try_clone_to_owned().at("read", std::path::Path::new("the terminal"))?;
        let mut input = std::io::BufReader::new(std::fs::File::from(own));
        Ok(crate::ui::confirm(question, &mut input, &mut std::io::stderr()).unwrap_or(false))
    }
}

/// A word that means no node.
fn no_node(cluster: &Cluster, word: &str) -> CliError {
    CliError::new(code::USAGE, format!("the spec has no node `{word}`"), cluster.selectable(word))
}
