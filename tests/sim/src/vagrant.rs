//! `vagrant` with vagrant-libvirt, as far as p1 uses it: the same order of doing things, the same
//! words, the same locks, and the same indifference to a reader that has gone.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Mutex;
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use serde_json::json;

use crate::client::ask;
use crate::lab::fault;

/// One machine as the Vagrantfile says it.
#[derive(Clone, Default)]
struct Machine {
    name: String,
    settings: BTreeMap<String, String>,
}

struct Vagrant {
    dir: PathBuf,
    dotfiles: PathBuf,
    home: PathBuf,
    vagrantfile: PathBuf,
    out: Mutex<std::io::Stdout>,
}

pub fn main(called: &str, args: &[String]) -> ExitCode {
    let dir = crate::virsh::lab_of(called);
    let calls = OpenOptions::new().append(true).create(true).open(dir.join("calls"));
    let _ = calls.and_then(|mut f| f.write_all(format!("{}\n", args.join(" ")).as_bytes()));
    let variable = |name: &str| std::env::var_os(name).map_or_else(PathBuf::new, PathBuf::from);
    let vagrant = Vagrant {
        dotfiles: variable("VAGRANT_DOTFILE_PATH"),
        home: variable("VAGRANT_HOME"),
        vagrantfile: variable("VAGRANT_CWD").join(variable("VAGRANT_VAGRANTFILE")),
        out: Mutex::new(std::io::stdout()),
        dir,
    };
    vagrant.insecure_key();
    let mut names = Vec::new();
    let mut rest = args.iter().skip(1);
    while let Some(word) = rest.next() {
        match word.as_str() {
            "--provider" => drop(rest.next()),
            flag if flag.starts_with('-') => {}
            name => names.push(name.to_owned()),
        }
    }
    let result = match args.first().map(String::as_str) {
        Some("--version") => {
            println!("Vagrant 2.3.4");
            Ok(())
        }
        Some("box") => vagrant.add_box(args),
        Some("up") => vagrant.each(&names, "up", |v, m| v.up(m)),
        Some("destroy") => vagrant.each(&names, "destroy", |v, m| v.destroy(m)),
        Some("halt") => vagrant.each(&names, "halt", |v, m| v.virsh(&["destroy", &m.domain()], "").map(drop)),
        Some("provision") => {
            let (machines, name) = names.split_at(names.len().min(1));
            vagrant.each(machines, "provision", |v, m| v.provision(m, name.first().map_or("", |n| n)))
        }
        Some("validate") => vagrant.machines().map(drop),
        _ => Err(format!("this is a part of p1's tests and does not know `{}`", args.join(" "))),
    };
    if let Err(text) = result {
        vagrant.say("", &["ui", "error", &text]);
        vagrant.say("", &["error-exit", "Vagrant::Errors::VagrantError", &text]);
        return ExitCode::FAILURE;
    }
    ExitCode::SUCCESS
}

impl Machine {
    fn get(&self, key: &str) -> String {
        self.settings.get(key).cloned().unwrap_or_default()
    }

    fn domain(&self) -> String {
        format!("{}{}", self.get("default_prefix"), self.name)
    }
}

impl Vagrant {
    fn say(&self, target: &str, words: &[&str]) {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs());
        let words: Vec<String> =
            words.iter().map(|w| w.replace(',', "%!(VAGRANT_COMMA)").replace('\n', "\\n")).collect();
        let mut out = self.out.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        // lib/vagrant/util/safe_puts.rb: a broken pipe is passed over.
        let _ = writeln!(out, "{now},{target},{}", words.join(",")).and_then(|()| out.flush());
    }

    fn ui(&self, machine: &Machine, text: &str) {
        self.say(&machine.name, &["ui", "info", &format!("==> {}: {text}", machine.name)]);
    }

    fn virsh(&self, args: &[&str], stdin: &str) -> Result<String, String> {
        let answer = ask(&self.dir, &json!({"virsh": args, "stdin": stdin}));
        let answer = answer.map_err(|e| format!("Error while connecting to Libvirt: {e}"))?;
        let text = |key: &str| answer[key].as_str().unwrap_or_default().to_owned();
        if answer["code"] == 0 { Ok(text("out")) } else { Err(text("err").trim().to_owned()) }
    }

    /// As `copy_insecure_private_keys` in lib/vagrant/environment.rb.
    fn insecure_key(&self) {
        let to = self.home.join("insecure_private_key");
        if !self.home.as_os_str().is_empty() && !to.exists() {
            let _ = fs::create_dir_all(&self.home);
            let new = to.with_extension(std::process::id().to_string());
            let _ = fs::copy(self.dir.join("insecure"), &new).and_then(|_| fs::rename(&new, &to));
        }
    }

    /// What the rendered Vagrantfile says, one setting a line; a machine inherits what comes before.
    fn machines(&self) -> Result<Vec<Machine>, String> {
        let text = fs::read_to_string(&self.vagrantfile)
            .map_err(|e| format!("{}: {e}", self.vagrantfile.display()))?;
        let unquoted = |v: &str| v.trim().trim_end_matches(',').trim_matches(['"', '\'']).to_owned();
        let (mut common, mut machines) = (BTreeMap::new(), Vec::<Machine>::new());
        for line in text.lines().map(str::trim) {
            if let Some(rest) = line.strip_prefix("config.vm.define ") {
                let name = unquoted(rest.split(" do").next().unwrap_or_default());
                machines.push(Machine { name, settings: common.clone() });
            } else if let Some((key, value)) = line.split_once(" = ") {
                let key = key.rsplit('.').next().unwrap_or(key).to_owned();
                match machines.last_mut() {
                    Some(machine) => machine.settings.insert(key, unquoted(value)),
                    None => common.insert(key, unquoted(value)),
                };
            }
        }
        Ok(machines)
    }

    fn add_box(&self, args: &[String]) -> Result<(), String> {
        let catalogue = args.iter().find_map(|a| a.strip_prefix("file://")).ok_or("no catalogue")?;
        let text = fs::read_to_string(catalogue).map_err(|e| e.to_string())?;
        let catalogue: serde_json::Value = serde_json::from_str(&text).map_err(|e| e.to_string())?;
        let (name, version) = (&catalogue["name"], &catalogue["versions"][0]["version"]);
        let folder = name.as_str().unwrap_or_default().replace('/', "-VAGRANTSLASH-");
        let dir = self.home.join("boxes").join(folder).join(version.as_str().unwrap_or("0")).join("libvirt");
        fs::create_dir_all(&dir).map_err(|e| e.to_string())?;
        let url = catalogue["versions"][0]["providers"][0]["url"].as_str().unwrap_or_default();
        let mut tar = std::process::Command::new("tar");
        tar.arg("-xf").arg(url.trim_start_matches("file://")).arg("-C").arg(&dir);
        match tar.status() {
            Ok(status) if status.success() => Ok(()),
            _ => Err(format!("The box {url} could not be unpacked.")),
        }
    }

    /// Does something with machines, all at once, under Vagrant's lock of each.
    fn each(
        &self,
        names: &[String],
        action: &str,
        work: impl Fn(&Self, &Machine) -> Result<(), String> + Sync,
    ) -> Result<(), String> {
        let all = self.machines()?;
        let chosen: Vec<Machine> = match names {
            [] => all,
            names => names
                .iter()
                .map(|n| {
                    let known = all.iter().find(|m| m.name == *n).cloned();
                    known.ok_or_else(|| format!("The machine with the name '{n}' was not found configured for this Vagrant environment."))
                })
                .collect::<Result<_, _>>()?,
        };
        let failed = Mutex::new(Vec::new());
        thread::scope(|scope| {
            for machine in &chosen {
                let (failed, work) = (&failed, &work);
                scope.spawn(move || {
                    self.say(&machine.name, &["action", action, "start"]);
                    match self.locked(machine, action, || work(self, machine)) {
                        Ok(()) => self.say(&machine.name, &["action", action, "end"]),
                        Err(text) => {
                            self.say(&machine.name, &["ui", "error", &text]);
                            failed
                                .lock()
                                .unwrap_or_else(|p| p.into_inner())
                                .push((machine.name.clone(), text));
                        }
                    }
                });
            }
        });
        let failed = failed.into_inner().unwrap_or_else(|p| p.into_inner());
        match failed.as_slice() {
            [] => Ok(()),
            [(_, text)] if chosen.len() == 1 => Err(text.clone()),
            failed => {
                let mut text = "An error occurred while executing multiple actions in parallel.\nAny errors that occurred are shown below.".to_owned();
                for (name, why) in failed {
                    text += &format!(
                        "\n\nAn error occurred while executing the action on the '{name}'\nmachine. Please handle this error then try again:\n\n{why}"
                    );
                }
                self.say("", &["ui", "error", &text]);
                self.say("", &["error-exit", "Vagrant::Errors::BatchMultiError", &text]);
                std::process::exit(1);
            }
        }
    }

    fn locked(
        &self,
        machine: &Machine,
        action: &str,
        work: impl FnOnce() -> Result<(), String>,
    ) -> Result<(), String> {
        let dir = self.home.join("data");
        let _ = fs::create_dir_all(&dir);
        let key = format!("{}{}", self.dotfiles.display(), machine.name).replace('/', "_");
        let file =
            File::create(dir.join(format!("lock.machine-action-{key}.lock"))).map_err(|e| e.to_string())?;
        if file.try_lock().is_err() {
            // templates/locales/en.yml, `machine_action_locked`.
            return Err(format!(
                "An action '{action}' was attempted on the machine '{}',\nbut another process is already executing an action on the machine.\n\
                 Vagrant locks each machine for access by only one process at a time.\nPlease wait until the other Vagrant process finishes \
                 modifying this\nmachine, then try again.\n\nIf you believe this message is in error, please check the process\nlisting for any \
                 \"ruby\" or \"vagrant\" processes and kill them. Then\ntry again.",
                machine.name
            ));
        }
        work()
    }

    fn id_file(&self, machine: &Machine) -> PathBuf {
        self.dotfiles.join("machines").join(&machine.name).join("libvirt/id")
    }

    fn strike(&self, machine: &Machine, at: &str) -> Result<(), String> {
        let fault = |name: &str| fault(&self.dir, &machine.name, &format!("{name}-{at}"));
        if let Some(seconds) = fault("slow") {
            thread::sleep(Duration::from_secs_f64(seconds.parse().unwrap_or(1.0)));
        }
        if fault("hang").is_some() {
            thread::sleep(Duration::from_secs(86_400));
        }
        if let Some(code) = fault("exit") {
            std::process::exit(code.parse().unwrap_or(1));
        }
        match fault("fail") {
            Some(text) => Err(if text.is_empty() { "the machine was told to fail".into() } else { text }),
            None => Ok(()),
        }
    }

    fn up(&self, machine: &Machine) -> Result<(), String> {
        let (domain, id_file) = (machine.domain(), self.id_file(machine));
        self.strike(machine, "begin")?;
        let id = fs::read_to_string(&id_file).unwrap_or_default();
        let state = if id.is_empty() { None } else { self.virsh(&["domstate", id.trim()], "").ok() };
        match state.as_deref().map(str::trim) {
            Some("running") => {
                self.ui(machine, "Machine is already running.");
                return Ok(());
            }
            Some("paused") => {
                self.ui(machine, "Resuming domain...");
                self.virsh(&["resume", &domain], "")?;
            }
            Some(_) => {
                self.ui(machine, "Starting domain.");
                self.virsh(&["start", &domain], "")?;
            }
            None => self.create(machine, &domain, &id_file)?,
        }
        self.ui(machine, "Waiting for domain to get an IP address...");
        self.strike(machine, "boot")?;
        self.wait(machine, &domain)?;
        self.ui(machine, "Machine booted and ready!");
        self.strike(machine, "end")
    }

    fn create(&self, machine: &Machine, domain: &str, id_file: &Path) -> Result<(), String> {
        self.ui(machine, "Creating image (snapshot of base box volume).");
        let image = format!(
            "{}_vagrant_box_image_{}_box.img",
            machine.get("box").replace('/', "-VAGRANTSLASH-"),
            machine.get("box_version")
        );
        let disk = format!("{domain}.img");
        let volume = ["vol-create-as", "default", &disk, "10G", "--format", "qcow2", "--backing-vol", &image];
        self.virsh(&volume, "").map_err(|e| match e.contains("exists already") {
            true => "Volume for domain is already created. Please run 'vagrant destroy' first.".to_owned(),
            false => e,
        })?;
        self.strike(machine, "disk")?;
        self.ui(machine, "Creating domain with the following settings...");
        let taken = self.virsh(&["domuuid", domain], "").is_ok();
        if taken {
            return Err(format!(
                "Name `{domain}` of domain about to create is already taken. Please try to run\n`vagrant up` command again."
            ));
        }
        let uuid =
            fs::read_to_string("/proc/sys/kernel/random/uuid").map_err(|e| e.to_string())?.trim().to_owned();
        let kib = machine.get("memory").parse::<u64>().unwrap_or(512) * 1024;
        let xml = format!(
            "<domain type='qemu'>\n  <name>{domain}</name>\n  <uuid>{uuid}</uuid>\n  <description>Source: {source}</description>\n  \
             <memory unit='KiB'>{kib}</memory>\n  <currentMemory unit='KiB'>{kib}</currentMemory>\n  <vcpu placement='static'>{cpus}</vcpu>\n  \
             <devices>\n    <disk type='file' device='disk'>\n      <source file='/var/lib/libvirt/images/{disk}'/>\n      \
             <target dev='vda' bus='virtio'/>\n    </disk>\n    <interface type='network'>\n      <mac address='{mac}'/>\n      \
             <source network='{network}'/>\n      <model type='virtio'/>\n    </interface>\n  </devices>\n</domain>\n",
            source = self.vagrantfile.display(),
            cpus = machine.get("cpus"),
            mac = machine.get("management_network_mac"),
            network = machine.get("management_network_name"),
        );
        self.virsh(&["define", "/dev/stdin"], &xml)?;
        self.strike(machine, "domain")?;
        let parent = id_file.parent().expect("a folder");
        let noted = fs::create_dir_all(parent).and_then(|()| fs::write(id_file, &uuid));
        noted.map_err(|e| e.to_string())?;
        self.ui(machine, "Starting domain.");
        self.virsh(&["start", domain], "").map(drop)
    }

    fn wait(&self, machine: &Machine, domain: &str) -> Result<(), String> {
        let bound = Duration::from_secs(machine.get("boot_timeout").parse().unwrap_or(300));
        let begun = Instant::now();
        while begun.elapsed() < bound {
            let table = self.virsh(&["domifaddr", domain], "")?;
            let address =
                table.lines().find_map(|l| l.split_whitespace().nth(3)?.split('/').next()?.parse().ok());
            if let Some(ip) = address {
                let socket = TcpStream::connect_timeout(&SocketAddr::new(ip, 22), Duration::from_millis(500));
                let greeted = socket.is_ok_and(|mut s| {
                    let mut bytes = [0; 4];
                    s.set_read_timeout(Some(Duration::from_secs(2))).is_ok()
                        && s.read_exact(&mut bytes).is_ok()
                });
                if greeted {
                    return Ok(());
                }
            }
            thread::sleep(Duration::from_millis(50));
        }
        Err("Timed out while waiting for the machine to boot.".into())
    }

    /// Says what it would run, and that it did or, by a fault, did not.
    fn provision(&self, machine: &Machine, name: &str) -> Result<(), String> {
        let text = fs::read_to_string(&self.vagrantfile).map_err(|e| e.to_string())?;
        let section = text.split(&format!("config.vm.define '{}'", machine.name)).nth(1).unwrap_or_default();
        let section = section.split("config.vm.define").next().unwrap_or_default();
        let begin = format!("node.vm.provision '{name}', type: '");
        // Vagrant says nothing of a name that it does not find.
        let Some(kind) = section.split(&begin).nth(1).and_then(|rest| rest.split('\'').next()) else {
            return Ok(());
        };
        self.ui(machine, &format!("Running provisioner: {name} ({kind})..."));
        let failed = self.strike(machine, "provision");
        if failed.is_err() {
            let line = format!("fatal: [{}]: FAILED! => {{\"msg\": \"told to\"}}", machine.name);
            self.say(&machine.name, &["ui", "detail", &format!("    {}: {line}", machine.name)]);
        }
        failed
    }

    fn destroy(&self, machine: &Machine) -> Result<(), String> {
        let (domain, id_file) = (machine.domain(), self.id_file(machine));
        self.strike(machine, "destroy")?;
        let id = fs::read_to_string(&id_file).unwrap_or_default();
        if !id.is_empty() && self.virsh(&["domstate", id.trim()], "").is_ok() {
            self.ui(machine, "Removing domain...");
            let _ = self.virsh(&["destroy", id.trim()], "");
            self.virsh(&["undefine", id.trim()], "")?;
            let _ = self.virsh(&["vol-delete", "--pool", "default", &format!("{domain}.img")], "");
        }
        let _ = fs::remove_file(id_file);
        Ok(())
    }
}
