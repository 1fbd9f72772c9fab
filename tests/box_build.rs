//! Box builds for real. tests/vm.rs looks at a box that was built of packages to its end.
//!
//! - One that is interrupted: needs root, the programs of `boxes::requirements()`, a Debian mirror and half a minute.
//! - One from a cloud image, with the real cloud-init in it, and a machine from that box (lane `image`, which runs only by
//!   name): needs the same, QEMU and some minutes.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Output};
use std::thread;
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use p1::internals::boxes;
use p1::internals::explain::Explain;
use p1::internals::os::Cancel;
use p1::internals::os::cancel::Level;

#[test]
#[ignore = "needs root, a Debian mirror and half a minute"]
fn an_interrupted_build_leaves_nothing() {
    let out = tempfile::tempdir().unwrap();
    let definition = boxes::load("debian-12", None).unwrap();
    let cancel = Cancel::new();
    let error = boxes::build(
        &definition,
        None,
        out.path(),
        &mut |news| {
            if news.starts_with("installing essential") {
                cancel.raise(Level::Abort);
            }
        },
        &cancel,
    )
    .unwrap_err();
    assert!(error.cancelled(), "{error}");
    assert_eq!(std::fs::read_dir(out.path()).unwrap().count(), 0);
    let mounts = std::fs::read_to_string("/proc/mounts").unwrap();
    assert!(!mounts.contains(&out.path().display().to_string()), "{mounts}");
}

/// What vendors publish, made of Debian's packages: nothing of p1's boxes is in it.
const CLOUD: &str = "
name: cloud
version: '1'
suite: bookworm
packages: [ca-certificates, cloud-guest-utils, cloud-init, dbus, iproute2, kmod, netplan.io, openssh-server, procps,
  sudo, systemd-resolved, systemd-sysv, udev]
disk: {size_gib: 2}
kernel:
  package: linux-image-cloud-amd64
  arguments: [console=tty0, console=ttyS0, quiet, systemd.show_status=1, mitigations=off]
  initramfs_modules: [virtio_pci, virtio_blk, virtio_rng]
user: debian
";

#[test]
#[ignore = "needs root, QEMU, a Debian mirror and some minutes: tests/run image"]
fn a_cloud_image_becomes_a_box_whose_machines_are_entered_by_their_own_key() {
    let begun = Instant::now();
    let phase = |what: &str| println!("[{:>4} s] {what}", begun.elapsed().as_secs());
    // Not under a folder that an ordinary user cannot enter.
    let dir = tempfile::Builder::new().prefix("p1-image-").tempdir_in("/var/tmp").unwrap();
    let dir = dir.path();
    fs::set_permissions(dir, fs::Permissions::from_mode(0o755)).unwrap();

    phase("a cloud image");
    let (site, desk) = (dir.join("site"), dir.join("desk"));
    for folder in [&site, &desk.join("boxes"), &desk.join("home")] {
        fs::create_dir_all(folder).unwrap();
    }
    fs::write(dir.join("cloud.yaml"), CLOUD).unwrap();
    let cloud = boxes::load("cloud", Some(dir)).unwrap();
    let built = boxes::build(&cloud, None, dir, &mut |_| {}, &Cancel::new()).unwrap();
    run(Command::new("tar").arg("-xf").arg(&built.path).arg("-C").arg(&site).arg("box.img"));
    fs::rename(site.join("box.img"), site.join("cloud.qcow2")).unwrap();
    let sums = run(Command::new("sha512sum").arg("cloud.qcow2").current_dir(&site));
    fs::write(site.join("SHA512SUMS"), &sums.stdout).unwrap();
    let base = serve(&site);

    phase("box build, as an ordinary user");
    let p1 = dir.join("p1");
    fs::copy(env!("CARGO_BIN_EXE_p1"), &p1).unwrap();
    run(Command::new("chown").args(["-R", "65534:65534"]).arg(&desk));
    let definition = format!(
        "name: mine\nversion: '1'\nimage: {{url: {base}/cloud.qcow2, checksums: {base}/SHA512SUMS}}\n\
         packages: [openssh-server, zstd]\ndisk: {{size_gib: 3}}\n\
         files: [{{path: /etc/motd, content: \"from its definition\\n\"}}]\n"
    );
    fs::write(desk.join("boxes/mine.yaml"), &definition).unwrap();
    let build = |args: &[&str]| {
        let mut cmd = Command::new("setpriv");
        cmd.args(["--reuid=65534", "--regid=65534", "--clear-groups", "env", "-u", "XDG_DATA_HOME"]);
        cmd.args(["-u", "XDG_CACHE_HOME"]).arg(format!("HOME={}", desk.join("home").display()));
        cmd.arg(&p1).args(["-f", "cluster.yaml"]).args(args).args(["box", "build", "mine"]);
        cmd.current_dir(&desk).output().unwrap()
    };
    let offline = build(&["--offline"]);
    let said = String::from_utf8_lossy(&offline.stderr).into_owned();
    let missing = format!("missing: {base}/cloud.qcow2, {base}/SHA512SUMS");
    assert!(!offline.status.success() && said.contains(&missing), "{said}");
    let done = build(&[]);
    let said = String::from_utf8_lossy(&done.stderr).into_owned();
    assert!(done.status.success() && said.contains("installing zstd"), "{said}");
    println!("{said}");
    // Neither downloaded nor booted again.
    assert!(String::from_utf8_lossy(&build(&["--offline"]).stderr).contains("is there already"));
    // Another sum is another image, and none.
    fs::write(site.join("SHA512SUMS"), format!("{}  cloud.qcow2\n", "0".repeat(128))).unwrap();
    fs::write(desk.join("boxes/mine.yaml"), definition.replace("version: '1'", "version: '2'")).unwrap();
    let other = String::from_utf8_lossy(&build(&[]).stderr).into_owned();
    assert!(other.contains("has the wrong checksum"), "{other}");

    phase("a machine from it");
    let packed = desk.join("home/.local/share/p1/boxes/mine/box.box");
    run(Command::new("tar").arg("-xf").arg(&packed).arg("-C").arg(dir));
    let about = fs::read_to_string(dir.join("metadata.json")).unwrap();
    assert!(about.contains(r#""virtual_size":3"#), "{about}");
    let listed = fs::read_to_string(dir.join("packages.txt")).unwrap();
    assert!(listed.lines().any(|l| l.starts_with("zstd=")), "{listed}");
    let key = dir.join("key");
    run(Command::new("ssh-keygen").args(["-q", "-t", "ed25519", "-N", "", "-f"]).arg(&key));
    let machine = Machine::boot(dir, &key);
    let asked = machine.ssh(
        "hostname; cat /etc/motd; stat -c %s /etc/machine-id; df --output=size -BG / | tail -n 1; \
         systemctl is-system-running --wait >/dev/null; systemctl --failed --no-legend; \
         ls /var/lib/cloud /etc/netplan /etc/ssh/*_key; sudo -n cat /root/.ssh/authorized_keys",
    );
    let public = fs::read_to_string(dir.join("key.pub")).unwrap();
    assert_eq!(
        asked.split_whitespace().collect::<Vec<_>>().join(" "),
        format!(
            "mine from its definition 33 3G /etc/ssh/ssh_host_ecdsa_key /etc/ssh/ssh_host_ed25519_key /etc/netplan: \
             /var/lib/cloud: {}",
            public.trim()
        )
    );
    phase("over");
}

/// One that has the disk of a box as it is, and the key that the direct engine gives.
struct Machine {
    qemu: std::process::Child,
    port: u16,
    key: String,
    console: String,
}

impl Machine {
    fn boot(dir: &Path, key: &Path) -> Self {
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let public = STANDARD.encode(fs::read(key.with_extension("pub")).unwrap());
        let line = |home: &str, user: &str| {
            format!("f+~ {home}/.ssh/authorized_keys 0600 {user} {user} - {public}\n")
        };
        let lines = format!(
            "d /root/.ssh 0700 root root -\n{}{}",
            line("/root", "root"),
            line("/home/vagrant", "vagrant")
        );
        let seed = format!("value=io.systemd.credential.binary:tmpfiles.extra={}", STANDARD.encode(lines));
        let console = dir.join("console.log").display().to_string();
        let qemu = Command::new("qemu-system-x86_64")
            .args(["-nodefaults", "-display", "none", "-cpu", "max", "-m", "1024", "-accel", "tcg"])
            .args(["-snapshot", "-drive", &format!("file={},if=virtio", dir.join("box.img").display())])
            .args(["-netdev", &format!("user,id=n,hostfwd=tcp:127.0.0.1:{port}-:22")])
            .args(["-device", "virtio-net-pci,netdev=n,romfile=", "-device", "virtio-rng-pci"])
            .args(["-smbios", &format!("type=11,{seed}"), "-serial", &format!("file:{console}")])
            .spawn()
            .unwrap();
        Self { qemu, port, key: key.display().to_string(), console }
    }

    /// What a command says, once it can be asked.
    fn ssh(&self, command: &str) -> String {
        let begun = Instant::now();
        loop {
            let done = Command::new("ssh")
                .args(["-F", "none", "-i", &self.key, "-p", &self.port.to_string(), "-o", "BatchMode=yes"])
                .args(["-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null"])
                .args(["-o", "ConnectTimeout=10", "-o", "LogLevel=ERROR", "vagrant@127.0.0.1", command])
                .output()
                .unwrap();
            if done.status.code() != Some(255) {
                return String::from_utf8_lossy(&done.stdout).into_owned();
            }
            if begun.elapsed() > Duration::from_secs(300) {
                panic!(
                    "{}\n{}",
                    String::from_utf8_lossy(&done.stderr),
                    String::from_utf8_lossy(&fs::read(&self.console).unwrap_or_default())
                );
            }
            thread::sleep(Duration::from_secs(1));
        }
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        let _ = self.qemu.kill();
        let _ = self.qemu.wait();
    }
}

fn run(cmd: &mut Command) -> Output {
    let done = cmd.output().unwrap();
    assert!(done.status.success(), "{cmd:?}: {}", String::from_utf8_lossy(&done.stderr));
    done
}

/// Files of a folder over HTTP on loopback, until the test's end.
fn serve(folder: &Path) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let base = format!("http://{}", listener.local_addr().unwrap());
    let folder = folder.to_owned();
    thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let mut reader = BufReader::new(stream.try_clone().unwrap());
            let (mut first, mut line) = (String::new(), String::new());
            let _ = reader.read_line(&mut first);
            while reader.read_line(&mut line).is_ok_and(|n| n > 2) {
                line.clear();
            }
            let name = first.split(['/', ' ']).nth(2).unwrap_or_default();
            let body = fs::read(folder.join(name)).unwrap_or_default();
            let head =
                format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\nConnection: close\r\n\r\n", body.len());
            let _ = stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(&body));
        }
    });
    base
}
