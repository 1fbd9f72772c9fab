//! The lab: holds the namespaces in which p1 and its machines live, and plays libvirtd there.
//!
//! Started in a network and a mount namespace of its own. Standard input is its life line: at its end
//! all machines and everything that runs in its mount namespace are ended, and the namespaces go.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::os::unix::net::{UnixListener, UnixStream};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{ChildStdin, Command, ExitCode, Stdio};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::thread;
use std::time::Duration;

use nix::mount::{MsFlags, mount};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};

use crate::{init, virsh};

/// What `ip -batch` is to do.
pub fn ip(lines: &str) {
    let mut command = Command::new("ip");
    let child = command.args(["-force", "-batch", "-"]).stdin(Stdio::piped()).stdout(Stdio::null()).spawn();
    let Ok(mut child) = child else { return eprintln!("`ip` does not start") };
    let _ = child.stdin.take().expect("piped").write_all(lines.as_bytes());
    if !child.wait().is_ok_and(|s| s.success()) {
        eprintln!("ip: one of these failed:\n{lines}");
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Power {
    Off,
    Running,
    Paused,
}

/// What a machine has of its network where that gives it nothing: what was in its memory when that was written down.
#[derive(Clone)]
pub struct Seat {
    pub node: String,
    pub ip: String,
    pub gateway: String,
    pub prefix: u32,
}

/// A machine's memory in a volume: whose it is, how that was described, and what it had of its network.
#[derive(Clone)]
pub struct Saved {
    pub domain: String,
    pub xml: String,
    pub seat: Option<Seat>,
}

pub struct Domain {
    pub xml: String,
    pub seat: Option<Seat>,
    pub power: Power,
    /// A disk that it was given while it runs: its target, its volume, its serial number.
    pub extra: Option<(String, String, String)>,
    /// Its cable is pulled.
    pub unplugged: bool,
    /// What its disk is held to, by option.
    pub limits: BTreeMap<String, u64>,
    /// It is being switched on or off.
    pub busy: bool,
    /// It is off, and its memory is on disk: all that runs in it is stopped, and is let go on when it is started.
    pub saved: bool,
    /// Names and descriptions of its snapshots, of which nothing else is played.
    pub snapshots: BTreeMap<String, String>,
    pub number: usize,
    /// The process whose child is the machine's init.
    process: Option<Pid>,
    wire: Option<ChildStdin>,
}

impl Domain {
    pub fn new(xml: String, number: usize) -> Self {
        Self {
            xml,
            seat: None,
            power: Power::Off,
            extra: None,
            unplugged: false,
            limits: BTreeMap::new(),
            busy: false,
            saved: false,
            snapshots: BTreeMap::new(),
            number,
            process: None,
            wire: None,
        }
    }
}

pub struct Network {
    /// As it is written down.
    pub xml: String,
    /// As it runs, if it does: a new definition counts from the next start on.
    pub live: Option<String>,
    pub bridge: String,
}

#[derive(Clone, Default)]
pub struct Volume {
    pub physical: u64,
    /// Bytes, as a machine sees it.
    pub capacity: u64,
    pub backing: Option<String>,
    /// What was written to it beside an image: where, and from which file.
    pub parts: Vec<(u64, PathBuf)>,
}

/// What libvirt knows.
#[derive(Default)]
pub struct Known {
    /// By domain: what it was given for its next boot.
    pub credentials: BTreeMap<String, String>,
    pub networks: BTreeMap<String, Network>,
    pub volumes: BTreeMap<String, Volume>,
    pub domains: BTreeMap<String, Domain>,
    /// By volume with a machine's memory.
    pub saved: BTreeMap<String, Saved>,
    /// Networks (`net/NAME`) and domains that start with the host.
    pub autostart: std::collections::BTreeSet<String>,
    /// The daemon does not answer.
    pub deaf: bool,
    pub count: usize,
}

pub struct Lab {
    pub dir: PathBuf,
    known: Mutex<Known>,
    news: Condvar,
}

pub fn main(dir: &str) -> ExitCode {
    let lab = Arc::new(Lab { dir: dir.into(), known: Mutex::default(), news: Condvar::new() });
    let _virtlogd = match lab.prepare() {
        Ok(listener) => listener,
        Err(error) => {
            eprintln!("the lab does not begin: {error}");
            return ExitCode::FAILURE;
        }
    };
    let listener = UnixListener::bind(lab.dir.join("sim.sock")).expect("the lab's socket");
    let serving = Arc::clone(&lab);
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let lab = Arc::clone(&serving);
            thread::spawn(move || serve(&lab, &stream));
        }
    });
    println!("ready");
    let mut bytes = [0; 64];
    while std::io::stdin().read(&mut bytes).is_ok_and(|n| n > 0) {}
    lab.end();
    ExitCode::SUCCESS
}

fn serve(lab: &Arc<Lab>, stream: &UnixStream) {
    let mut line = String::new();
    if BufReader::new(stream).read_line(&mut line).is_err() {
        return;
    }
    let request: Value = serde_json::from_str(&line).unwrap_or_default();
    let answer = if let Some(args) = request["virsh"].as_array() {
        let args: Vec<&str> = args.iter().filter_map(Value::as_str).collect();
        let (code, out, err) = virsh::run(lab, &args, request["stdin"].as_str().unwrap_or_default());
        json!({"code": code, "out": out, "err": err})
    } else if let Some(node) = request["init"].as_str() {
        json!({"pid": lab.init_of(node).map(Pid::as_raw)})
    } else if let Some(deaf) = request["deaf"].as_bool() {
        lab.known().deaf = deaf;
        json!({})
    } else {
        json!({"err": "no such request"})
    };
    let mut stream = stream;
    let _ = writeln!(stream, "{answer}");
}

impl Lab {
    pub fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    fn prepare(&self) -> Result<UnixListener, Box<dyn std::error::Error>> {
        // Without them machines would boot, and wait for a login that cannot come.
        let wanted = [
            ("/usr/sbin/sshd", "openssh-server"),
            ("/usr/bin/ssh-keygen", "openssh-client"),
            ("/usr/bin/nsenter", "util-linux"),
        ];
        if let Some((program, package)) = wanted.iter().find(|(program, _)| !Path::new(program).exists()) {
            return Err(format!("{program} is missing: apt-get install {package}").into());
        }
        let tmpfs = |at: &Path| mount(Some("none"), at, Some("tmpfs"), MsFlags::empty(), Some("mode=755"));
        tmpfs(Path::new("/run"))?;
        for dir in ["/run/libvirt", "/run/netns", "/run/sshd"] {
            fs::create_dir(dir)?;
        }
        for dir in ["disks", "console", "faults", "vm-faults"] {
            fs::create_dir_all(self.dir.join(dir))?;
        }
        tmpfs(&self.dir.join("disks"))?;
        self.base()?;
        ip("link set lo up\n");
        Ok(UnixListener::bind("/run/libvirt/virtlogd-sock")?)
    }

    fn base_dir(&self) -> PathBuf {
        self.dir.join("disks/base")
    }

    /// What every machine's disk starts as.
    fn base(&self) -> Result<(), Box<dyn std::error::Error>> {
        let base = self.base_dir();
        let (usr, root) = (base.join("usr/bin"), base.join("root"));
        fs::create_dir_all(&usr)?;
        for dir in [
            "dev",
            "etc/p1-standin/faults",
            "etc/sim",
            "etc/ssh",
            "etc/default",
            "etc/systemd/system/multi-user.target.wants",
            "home/vagrant/.ssh",
            "mnt",
            "opt",
            "proc",
            "root",
            "run",
            "srv",
            "sys",
            "tmp",
            "usr",
            "var/lib",
            "var/log",
            "var/cache",
            "var/tmp",
            "etc/profile.d",
        ] {
            fs::create_dir_all(root.join(dir))?;
        }
        for dir in ["bin", "sbin", "lib", "share", "etc", "src"] {
            fs::create_dir_all(base.join("local").join(dir))?;
        }
        for link in ["bin", "sbin", "lib", "lib64"] {
            symlink(format!("usr/{link}"), root.join(link))?;
        }
        symlink("/run", root.join("var/run"))?;
        // What programs look up in /etc, from this host.
        for name in [
            "ld.so.cache",
            "ld.so.conf",
            "ld.so.conf.d",
            "nsswitch.conf",
            "protocols",
            "services",
            "os-release",
            "alternatives",
            "ssl",
            "ca-certificates.conf",
            "localtime",
            "timezone",
            "login.defs",
            "shells",
            "profile",
            "bash.bashrc",
            "debian_version",
            "gai.conf",
            "host.conf",
            "python3",
            "python3.11",
            "perl",
            "environment",
            "terminfo",
            "selinux",
            "pam.d",
            "security",
            "ssh/moduli",
        ] {
            let from = Path::new("/etc").join(name);
            if from.symlink_metadata().is_ok() {
                Command::new("cp").arg("-a").arg(from).arg(root.join("etc").join(name)).status()?;
            }
        }
        let kept = |file: &str| -> std::io::Result<String> {
            let text = fs::read_to_string(Path::new("/etc").join(file))?;
            let system = |line: &&str| {
                let id = line.split(':').nth(2).and_then(|id| id.parse::<u32>().ok());
                id.is_some_and(|id| id < 1000 || id == 65534)
            };
            Ok(text.lines().filter(system).map(|l| format!("{l}\n")).collect())
        };
        let passwd = kept("passwd")? + "vagrant:x:1000:1000::/home/vagrant:/bin/bash\n";
        let shadow: String = passwd
            .lines()
            .map(|l| format!("{}:*:19000:0:99999:7:::\n", l.split(':').next().unwrap_or("")))
            .collect();
        let insecure = fs::read_to_string(self.dir.join("insecure.pub"))?;
        let tune = fs::read_to_string(self.dir.join("tune")).unwrap_or_default();
        let files = [
            ("etc/passwd", passwd.as_str(), 0o644),
            ("etc/group", &(kept("group")? + "vagrant:x:1000:\n"), 0o644),
            ("etc/shadow", &shadow, 0o600),
            ("etc/hostname", "debian\n", 0o644),
            ("etc/hosts", "127.0.0.1 localhost\n", 0o644),
            ("etc/resolv.conf", "", 0o644),
            ("etc/fstab", "", 0o644),
            ("etc/ssh/sshd_config", SSHD, 0o600),
            ("etc/systemd/system/ssh.service", SSH_UNIT, 0o644),
            ("etc/p1-standin/tune", &tune, 0o644),
            ("etc/sim/restart-sec", "0.3\n", 0o644),
            ("home/vagrant/.ssh/authorized_keys", &insecure, 0o600),
            ("var/log/wtmp", "", 0o664),
        ];
        for (name, text, mode) in files {
            fs::write(root.join(name), text)?;
            fs::set_permissions(root.join(name), fs::Permissions::from_mode(mode))?;
        }
        symlink("../ssh.service", root.join("etc/systemd/system/multi-user.target.wants/ssh.service"))?;
        for (dir, mode, owner) in [
            ("root", 0o700, 0),
            ("home/vagrant", 0o755, 1000),
            ("home/vagrant/.ssh", 0o700, 1000),
            ("home/vagrant/.ssh/authorized_keys", 0o600, 1000),
            ("tmp", 0o1777, 0),
            ("var/tmp", 0o1777, 0),
        ] {
            std::os::unix::fs::chown(root.join(dir), Some(owner), Some(owner))?;
            fs::set_permissions(root.join(dir), fs::Permissions::from_mode(mode))?;
        }
        let own = std::env::current_exe()?;
        fs::copy(&own, usr.join("p1-sim"))?;
        for name in ["systemctl", "systemd-run", "journalctl"] {
            symlink("p1-sim", usr.join(name))?;
        }
        for name in ["sudo", "doas"] {
            fs::copy(&own, usr.join(name))?;
            fs::set_permissions(usr.join(name), fs::Permissions::from_mode(0o4755))?;
        }
        Ok(())
    }

    fn disk(&self, domain: &str) -> PathBuf {
        self.dir.join("disks").join(domain)
    }

    /// A disk's copy, of that name.
    pub fn copy_disk(&self, domain: &str, to: &str) -> std::io::Result<()> {
        let (from, to) = (self.disk(domain), self.disk(to));
        fs::create_dir_all(&to)?;
        mount(Some("none"), &to, Some("tmpfs"), MsFlags::empty(), Some("mode=755,size=6g"))?;
        let copied = Command::new("cp").arg("-a").arg(from.join(".")).arg(&to).status()?;
        if copied.success() { Ok(()) } else { Err(std::io::Error::other("the disk cannot be copied")) }
    }

    /// A disk as a file of this host, which is an archive of what is on it.
    pub fn give_disk(&self, domain: &str, to: &Path) -> std::io::Result<()> {
        let tar = Command::new("tar")
            .args(["--xattrs", "--xattrs-include=*", "--numeric-owner", "--exclude=./usr.work/*", "-C"])
            .arg(self.disk(domain))
            .arg("-cf")
            .arg(to)
            .arg(".")
            .status()?;
        if tar.success() { Ok(()) } else { Err(std::io::Error::other("the disk cannot be written")) }
    }

    /// An image that is one; any other stands for the disk that every machine starts as.
    pub fn take_disk(&self, to: &str, from: &Path) -> std::io::Result<()> {
        let mut head = Vec::new();
        File::open(from)?.take(512).read_to_end(&mut head)?;
        if head.get(257..262) != Some(b"ustar") {
            return Ok(());
        }
        self.drop_disk(to);
        let to = self.disk(to);
        fs::create_dir_all(&to)?;
        mount(Some("none"), &to, Some("tmpfs"), MsFlags::empty(), Some("mode=755,size=6g"))?;
        let tar = Command::new("tar")
            .args(["--xattrs", "--xattrs-include=*", "--numeric-owner", "-C"])
            .arg(&to)
            .arg("-xpf")
            .arg(from)
            .status()?;
        if tar.success() { Ok(()) } else { Err(std::io::Error::other("the image cannot be read")) }
    }

    /// A fresh disk, unless it is there.
    fn make_disk(&self, domain: &str) -> std::io::Result<()> {
        let disk = self.disk(domain);
        if disk.exists() {
            return Ok(());
        }
        fs::create_dir_all(&disk)?;
        mount(Some("none"), &disk, Some("tmpfs"), MsFlags::empty(), Some("mode=755,size=6g"))?;
        let behind = self.known().volumes.get(&format!("{domain}.img")).and_then(|v| v.backing.clone());
        let behind = behind.map(|b| self.disk(b.trim_end_matches(".img"))).filter(|dir| dir.exists());
        if let Some(behind) = behind {
            let copied = Command::new("cp").arg("-a").arg(behind.join(".")).arg(&disk).status()?;
            return if copied.success() {
                Ok(())
            } else {
                Err(std::io::Error::other("the disk cannot be filled"))
            };
        }
        let base = self.base_dir();
        let copied =
            Command::new("cp").arg("-a").args([base.join("root"), base.join("local")]).arg(&disk).status()?;
        if !copied.success() {
            return Err(std::io::Error::other("the disk cannot be filled"));
        }
        for dir in ["usr", "usr.work"] {
            fs::create_dir(disk.join(dir))?;
        }
        let id = fs::read_to_string("/proc/sys/kernel/random/uuid")?.replace('-', "");
        fs::write(disk.join("root/etc/machine-id"), id)
    }

    pub fn drop_disk(&self, domain: &str) {
        let disk = self.disk(domain);
        if disk.exists() {
            let _ = nix::mount::umount2(&disk, nix::mount::MntFlags::MNT_DETACH);
            let _ = fs::remove_dir(disk);
        }
    }

    /// A fault that a test set for a machine; one that ends in `-once` is gone after that.
    pub fn fault(&self, node: &str, name: &str) -> Option<String> {
        fault(&self.dir, node, name)
    }

    /// Switches a machine on.
    pub fn start(self: &Arc<Self>, name: &str) -> Result<(), String> {
        let own = self.own_seat(name).map_err(|e| e.to_string())?;
        let (config, number, bridge, node, mac) = {
            let mut known = self.known();
            let Some(domain) = known.domains.get(name) else {
                return Err(format!("Domain not found: no domain with matching name '{name}'"));
            };
            if domain.power != Power::Off || domain.busy {
                return Err("Requested operation is not valid: domain is already running".into());
            }
            let xml = domain.xml.clone();
            let mac = virsh::attribute(&xml, "mac", "address").unwrap_or_default();
            let (kind, ground) = virsh::ground_of(&xml).unwrap_or_default();
            let net = known.networks.get(&ground).and_then(|n| Some((n, n.live.as_ref()?)));
            let (seat, bridge) = match (&*kind, net) {
                ("bridge", _) => (own, ground),
                (_, Some((net, live))) => (virsh::seat(live, &mac), net.bridge.clone()),
                _ => {
                    return Err(format!(
                        "Requested operation is not valid: network '{ground}' is not active"
                    ));
                }
            };
            let seat = seat.or_else(|| domain.seat.clone());
            let node = seat.as_ref().map_or_else(|| name.to_owned(), |s| s.node.clone());
            let mut config = json!({"name": node, "memory": virsh::memory(&xml)});
            if let Some(seat) = seat
                && self.fault(&node, "no-address").is_none()
            {
                config["ip"] = json!(seat.ip);
                (config["gateway"], config["prefix"]) = (json!(seat.gateway), json!(seat.prefix.to_string()));
            }
            if let Some(lines) = virsh::credentials(&xml) {
                known.credentials.insert(name.to_owned(), lines);
            }
            let domain = known.domains.get_mut(name).expect("just seen");
            domain.busy = true;
            (config, domain.number, bridge, node, mac)
        };
        let started = self.switch_on(name, config, number, &bridge, &node, &mac);
        let mut known = self.known();
        if let Some(domain) = known.domains.get_mut(name) {
            domain.busy = false;
            if let Ok((pid, wire)) = started {
                (domain.power, domain.process, domain.wire) = (Power::Running, Some(pid), Some(wire));
                self.news.notify_all();
                return Ok(());
            }
        }
        started.map(drop).map_err(|e| e.to_string())
    }

    /// What a machine has of its network on its disk, or is given for it now.
    fn own_seat(&self, name: &str) -> std::io::Result<Option<Seat>> {
        let xml = self.known().domains.get(name).map(|d| d.xml.clone()).unwrap_or_default();
        if virsh::ground_of(&xml).is_none_or(|(kind, _)| kind != "bridge") {
            return Ok(None);
        }
        self.make_disk(name)?;
        if let Some(lines) = virsh::credentials(&xml) {
            self.take_credentials(name, &lines)?;
        }
        let file = self.disk(name).join("root/etc/systemd/network/05-p1.network");
        let text = fs::read_to_string(file).unwrap_or_default();
        let value = |key: &str| text.lines().find_map(|l| l.strip_prefix(key)?.strip_prefix('='));
        let address = value("Address").and_then(|a| a.split_once('/'));
        let node = name.rsplit('-').next().unwrap_or(name).to_owned();
        Ok(address.zip(value("Gateway")).and_then(|((ip, prefix), gateway)| {
            Some(Seat { node, ip: ip.into(), gateway: gateway.into(), prefix: prefix.parse().ok()? })
        }))
    }

    /// As systemd-tmpfiles does with `tmpfiles.extra`, as far as p1 uses it: `f+~ PATH MODE USER GROUP - BASE64`, and
    /// `C PATH MODE USER GROUP - FROM`.
    fn take_credentials(&self, name: &str, lines: &str) -> std::io::Result<()> {
        for line in lines.lines().filter(|l| l.starts_with("f+~ ") || l.starts_with("C ")) {
            let words: Vec<&str> = line.split_whitespace().collect();
            let [kind, path, _, user, _, _, text] = words[..] else { continue };
            let at = |path: &str| self.disk(name).join("root").join(&path[1..]);
            let (to, owner) = (at(path), if user == "root" { 0 } else { 1000 });
            fs::create_dir_all(to.parent().expect("in a folder"))?;
            match kind {
                // What is not there is not copied, nor what is there overwritten.
                "C" if !at(text).exists() || to.exists() => continue,
                "C" => drop(fs::copy(at(text), &to)?),
                _ => fs::write(&to, virsh::base64(text))?,
            }
            std::os::unix::fs::chown(&to, Some(owner), Some(owner))?;
            fs::set_permissions(&to, fs::Permissions::from_mode(0o600))?;
        }
        Ok(())
    }

    fn switch_on(
        self: &Arc<Self>,
        name: &str,
        mut config: Value,
        number: usize,
        bridge: &str,
        node: &str,
        mac: &str,
    ) -> std::io::Result<(Pid, ChildStdin)> {
        self.make_disk(name)?;
        let lines = self.known().credentials.remove(name);
        if let Some(lines) = lines {
            self.take_credentials(name, &lines)?;
        }
        if self.fault(node, "no-ssh").is_some() {
            let _ = fs::remove_file(
                self.disk(name).join("root/etc/systemd/system/multi-user.target.wants/ssh.service"),
            );
        }
        let faults = self.dir.join("faults").join(node);
        fs::create_dir_all(&faults)?;
        for (key, path) in [("disk", self.disk(name)), ("base", self.base_dir()), ("faults", faults)] {
            config[key] = json!(path);
        }
        ip(&format!(
            "netns add m{number}\nlink add v{number} type veth peer name eth0 address {mac} netns m{number}\n\
             link set v{number} master {bridge} up\n"
        ));
        let console =
            OpenOptions::new().append(true).create(true).open(self.dir.join("console").join(node))?;
        let mut command = Command::new("nsenter");
        command.arg(format!("--net=/run/netns/m{number}"));
        // A machine has no clock of its own here, and must not set this host's.
        command.args(["setpriv", "--bounding-set", "-sys_time,-sys_module,-sys_rawio,-sys_boot", "--"]);
        command.args(["unshare", "--mount", "--uts", "--ipc", "--pid", "--fork", "--kill-child"]);
        command.arg(std::env::current_exe()?).arg("node").arg(config.to_string());
        command.env_clear().env("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin");
        command.stdin(Stdio::piped()).stdout(console.try_clone()?).stderr(console);
        let mut child = command.spawn()?;
        let (pid, wire) = (
            Pid::from_raw(i32::try_from(child.id()).expect("a pid fits")),
            child.stdin.take().expect("piped"),
        );
        let (lab, name) = (Arc::clone(self), name.to_owned());
        thread::spawn(move || {
            let status = child.wait();
            ip(&format!("link del v{number}\nnetns del m{number}\n"));
            let mut known = lab.known();
            if let Some(domain) = known.domains.get_mut(&name) {
                (domain.power, domain.process, domain.wire, domain.extra) = (Power::Off, None, None, None);
                domain.saved = false;
                (domain.unplugged, domain.limits) = (false, BTreeMap::new());
            }
            drop(known);
            lab.news.notify_all();
            if status.is_ok_and(|s| s.code() == Some(init::REBOOT) && s.signal().is_none()) {
                let _ = lab.start(&name);
            }
        });
        Ok((pid, wire))
    }

    /// Pulls the plug and waits until it is off.
    pub fn pull(&self, name: &str) {
        let mut known = self.known();
        if let Some(pid) = known.domains.get(name).and_then(|d| d.process) {
            let _ = kill(pid, Signal::SIGKILL);
        }
        while known.domains.get(name).is_some_and(|d| d.power != Power::Off || d.process.is_some()) {
            let waited = self.news.wait_timeout(known, Duration::from_millis(200));
            known = waited.unwrap_or_else(|poisoned| poisoned.into_inner()).0;
        }
    }

    /// Presses the button, or orders otherwise.
    pub fn order(&self, name: &str, word: &str) {
        if let Some(wire) = self.known().domains.get_mut(name).and_then(|d| d.wire.as_mut()) {
            let _ = writeln!(wire, "{word}");
        }
    }

    /// Stops all that runs in a machine, or lets it go on; its card is dead meanwhile.
    pub fn freeze(&self, name: &str, frozen: bool) {
        let (process, number, unplugged) = {
            let mut known = self.known();
            let Some(domain) = known.domains.get_mut(name) else { return };
            domain.power = if frozen { Power::Paused } else { Power::Running };
            (domain.process, domain.number, domain.unplugged)
        };
        let Some(process) = process else { return };
        ip(&format!("link set v{number} {}\n", if frozen || unplugged { "down" } else { "up" }));
        let signal = if frozen { Signal::SIGSTOP } else { Signal::SIGCONT };
        // Until `unshare` has done what it is called for, its children would be this host's: all there is would stop.
        let own = fs::read_link("/proc/self/ns/pid").ok();
        let apart = || fs::read_link(format!("/proc/{process}/ns/pid_for_children")).ok() != own;
        let mut tries = 0;
        while !apart() {
            if tries == 200 {
                return;
            }
            tries += 1;
            thread::sleep(Duration::from_millis(5));
        }
        // Twice: one may have started another while we looked.
        for _ in 0..2 {
            for pid in inside(process, "pid", "pid_for_children") {
                let _ = kill(pid, signal);
            }
        }
    }

    /// Puts a machine's memory on disk, as it is played here, and gives it back; it is paused then.
    pub fn save(&self, name: &str, saved: bool) {
        if saved {
            self.freeze(name, true);
        }
        if let Some(domain) = self.known().domains.get_mut(name) {
            domain.saved = saved;
            domain.power = if saved { Power::Off } else { Power::Paused };
        }
    }

    /// Where a running machine shows a disk of that serial number.
    pub fn device(&self, domain: &str, serial: &str) -> Option<PathBuf> {
        let init = self.init_of(domain)?;
        Some(PathBuf::from(format!("/proc/{init}/root/dev/disk/by-id/virtio-{serial}")))
    }

    /// The init of a running machine, by the name of its node.
    fn init_of(&self, node: &str) -> Option<Pid> {
        let known = self.known();
        // A fork's machine has a longer name than its original's.
        let named =
            known.domains.iter().filter(|(name, _)| *name == node || name.ends_with(&format!("-{node}")));
        let domain = named.min_by_key(|(name, _)| name.len())?;
        let process = domain.1.process?;
        drop(known);
        let children = || fs::read_to_string(format!("/proc/{process}/task/{process}/children")).ok();
        // `unshare` has just begun.
        for _ in 0..200 {
            if let Some(pid) = children().and_then(|c| c.split_whitespace().next()?.parse().ok()) {
                return Some(Pid::from_raw(pid));
            }
            thread::sleep(Duration::from_millis(5));
        }
        None
    }

    fn end(&self) {
        let processes: Vec<Pid> = self.known().domains.values().filter_map(|d| d.process).collect();
        for pid in processes {
            let _ = kill(pid, Signal::SIGKILL);
        }
        let own = nix::unistd::getpid();
        for pid in inside(own, "mnt", "mnt").into_iter().filter(|pid| *pid != own) {
            let _ = kill(pid, Signal::SIGKILL);
        }
    }
}

/// Every process in the same namespace as another, or as its children.
fn inside(of: Pid, kind: &str, link: &str) -> Vec<Pid> {
    let Ok(wanted) = fs::read_link(format!("/proc/{of}/ns/{link}")) else { return Vec::new() };
    if kind == "pid" && fs::read_link("/proc/self/ns/pid").map_or(true, |own| own == wanted) {
        // Never this host's own.
        return Vec::new();
    }
    let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = processes.filter_map(|e| e.file_name().to_str()?.parse::<i32>().ok());
    pids.filter(|pid| fs::read_link(format!("/proc/{pid}/ns/{kind}")).is_ok_and(|l| l == wanted))
        .map(Pid::from_raw)
        .collect()
}

/// See [`Lab::fault`]; in the folder `vm-faults`, a file per machine with a line `name[=value]` each.
pub fn fault(dir: &Path, node: &str, name: &str) -> Option<String> {
    let path = dir.join("vm-faults").join(node);
    let text = fs::read_to_string(&path).ok()?;
    for line in text.lines() {
        let (key, value) = line.split_once('=').unwrap_or((line, ""));
        if key == name {
            return Some(value.to_owned());
        }
        if key.strip_suffix("-once") == Some(name) {
            let rest: String = text.lines().filter(|l| *l != line).map(|l| format!("{l}\n")).collect();
            let _ = File::create(&path).and_then(|mut f| f.write_all(rest.as_bytes()));
            return Some(value.to_owned());
        }
    }
    None
}

const SSHD: &str = "HostKey /etc/ssh/ssh_host_ed25519_key\nHostKey /etc/ssh/ssh_host_ecdsa_key\nUseDNS no\nUsePAM no\n\
    PasswordAuthentication no\nKbdInteractiveAuthentication no\nPrintMotd no\nPrintLastLog no\nX11Forwarding no\n\
    Subsystem sftp internal-sftp\nMaxStartups 100:30:200\n";

const SSH_UNIT: &str = "[Unit]\nDescription=OpenSSH server\n\n[Service]\nRuntimeDirectory=sshd\n\
    ExecStart=/usr/sbin/sshd -D -e\nExecReload=/bin/kill -HUP $MAINPID\nKillMode=process\nRestart=on-failure\n\n\
    [Install]\nWantedBy=multi-user.target\n";
