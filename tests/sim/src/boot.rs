//! A machine begins: its file system is put together, its card gets its address, and init takes over.
//! Runs as the first process of the machine's namespaces.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use serde_json::Value;

use crate::init;

/// `config` is what the lab made up, as JSON: `disk`, `base`, `faults`, `name`, `memory` (MiB), and
/// of the network `ip`, `prefix`, `gateway`; `ip` is missing if nobody reserved one.
pub fn main(config: &str) -> ! {
    let config: Value = serde_json::from_str(config).expect("the lab's own JSON");
    if let Err(error) = put_together(&config) {
        eprintln!("the machine does not boot: {error}");
        std::process::exit(1);
    }
    network(&config);
    // As systemd does where it is empty.
    if fs::metadata("/etc/machine-id").is_ok_and(|m| m.len() == 0) {
        let id = fs::read_to_string("/proc/sys/kernel/random/uuid").unwrap_or_default().replace('-', "");
        fs::write("/etc/machine-id", id).expect("the machine's id");
    }
    let _ = nix::unistd::sethostname(fs::read_to_string("/etc/hostname").unwrap_or_default().trim());
    for kind in ["ed25519", "ecdsa"] {
        let key = format!("/etc/ssh/ssh_host_{kind}_key");
        if fs::metadata(&key).is_ok_and(|m| m.len() > 0) {
            continue;
        }
        let mut command = Command::new("/usr/bin/ssh-keygen");
        let made =
            command.args(["-q", "-t", kind, "-N", "", "-C", "", "-f", &key]).stdin(Stdio::null()).status();
        assert!(made.is_ok_and(|s| s.success()), "no host key");
    }
    init::main()
}

fn put_together(config: &Value) -> Result<(), Box<dyn std::error::Error>> {
    let text = |key: &str| config[key].as_str().unwrap_or_default().to_owned();
    let disk = PathBuf::from(text("disk"));
    let (root, base) = (disk.join("root"), PathBuf::from(text("base")));
    let none: Option<&str> = None;
    let bind = |from: &Path, to: &Path| mount(Some(from), to, none, MsFlags::MS_BIND, none);
    let kind =
        |what: &str, to: &Path, data: Option<&str>| mount(Some(what), to, Some(what), MsFlags::empty(), data);
    bind(&root, &root)?;
    let usr = root.join("usr");
    let layers = format!(
        "lowerdir={}:/usr,upperdir={},workdir={}",
        base.join("usr").display(),
        disk.join("usr").display(),
        disk.join("usr.work").display()
    );
    kind("overlay", &usr, Some(&layers))?;
    bind(&disk.join("local"), &usr.join("local"))?;
    kind("proc", &root.join("proc"), None)?;
    kind("sysfs", &root.join("sys"), None)?;
    kind("tmpfs", &root.join("sys/fs/cgroup"), Some("mode=755"))?;
    fs::write(root.join("sys/fs/cgroup/cgroup.controllers"), "cpuset cpu io memory pids\n")?;
    kind("tmpfs", &root.join("run"), Some("mode=755"))?;
    fs::create_dir(root.join("run/lock"))?;
    kind("tmpfs", &root.join("dev"), Some("mode=755"))?;
    for device in ["null", "zero", "full", "random", "urandom", "tty"] {
        let to = root.join("dev").join(device);
        fs::write(&to, "")?;
        bind(&Path::new("/dev").join(device), &to)?;
    }
    for dir in ["pts", "shm"] {
        fs::create_dir(root.join("dev").join(dir))?;
    }
    kind("devpts", &root.join("dev/pts"), Some("newinstance,ptmxmode=0666,mode=620,gid=5"))?;
    kind("tmpfs", &root.join("dev/shm"), Some("mode=1777"))?;
    for (name, to) in [
        ("ptmx", "pts/ptmx"),
        ("fd", "/proc/self/fd"),
        ("stdin", "fd/0"),
        ("stdout", "fd/1"),
        ("stderr", "fd/2"),
    ] {
        symlink(to, root.join("dev").join(name))?;
    }
    // Other machines have other values here.
    let own = |name: &str, text: &str, over: &str| -> Result<(), Box<dyn std::error::Error>> {
        let file = root.join("run").join(name);
        fs::write(&file, text)?;
        Ok(bind(&file, &root.join(over))?)
    };
    let boot = fs::read_to_string("/proc/sys/kernel/random/uuid")?;
    own(".boot_id", &boot, "proc/sys/kernel/random/boot_id")?;
    let memory = config["memory"].as_u64().unwrap_or(512) * 1024 * 95 / 100;
    let meminfo = fs::read_to_string("/proc/meminfo")?;
    let rest: String =
        meminfo.lines().skip(1).filter(|l| !l.starts_with("SwapTotal")).map(|l| format!("{l}\n")).collect();
    own(
        ".meminfo",
        &format!("MemTotal:       {memory} kB\nSwapTotal:             0 kB\n{rest}"),
        "proc/meminfo",
    )?;
    bind(Path::new(&text("faults")), &root.join("etc/p1-standin/faults"))?;

    let tmp = root.join("tmp");
    let _ = fs::remove_dir_all(&tmp);
    fs::create_dir(&tmp)?;
    fs::set_permissions(&tmp, fs::Permissions::from_mode(0o1777))?;
    nix::unistd::chdir(&root)?;
    nix::unistd::pivot_root(".", ".")?;
    umount2(".", MntFlags::MNT_DETACH)?;
    nix::unistd::chdir("/")?;
    Ok(())
}

fn network(config: &Value) {
    let text = |key: &str| config[key].as_str().unwrap_or_default().to_owned();
    let mut lines = "link set lo up\nlink set eth0 up\n".to_owned();
    if !text("ip").is_empty() {
        lines += &format!("addr add {}/{} brd + dev eth0\n", text("ip"), text("prefix"));
        lines += &format!("route add default via {}\n", text("gateway"));
    }
    crate::lab::ip(&lines);
}
