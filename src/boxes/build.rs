//! From a definition to a `.box` file.

use std::fs::{self, Permissions};
use std::io::Write;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::definition::{Cpu, Definition, digest};
use super::error::Error;
use super::{image, library, prepare};
use crate::os::Cancel;
use crate::os::files::{self, At};
use crate::os::process::{self, Cmd, Finished};

pub(super) const INSTALLING: &str = "installing the packages";

/// Half a minute where the mirror is near; a slow line has 300 MB to fetch.
const INSTALL_BOUND: Duration = Duration::from_secs(45 * 60);
const STEP_BOUND: Duration = Duration::from_secs(10 * 60);

const DEFAULT_MIRROR: &str = "http://deb.debian.org/debian";
const DEFAULT_SECURITY_MIRROR: &str = "http://deb.debian.org/debian-security";

const CUSTOMIZE: &str = include_str!("customize.sh");

/// A program that [`build()`] runs, and the Debian package it is in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tool {
    /// Its name on PATH, or an absolute path of a file that must be there.
    pub program: &'static str,
    /// Debian package.
    pub package: &'static str,
}

const TOOLS: &[Tool] = &[
    Tool { program: "mmdebstrap", package: "mmdebstrap" },
    Tool { program: "apt-get", package: "apt" },
    Tool { program: "unshare", package: "util-linux" },
    Tool { program: "mke2fs", package: "e2fsprogs" },
    Tool { program: "grub-mkimage", package: "grub-common" },
    Tool { program: image::BOOT_IMG, package: "grub-pc-bin" },
    Tool { program: "qemu-img", package: "qemu-utils" },
    Tool { program: "tar", package: "tar" },
    Tool { program: "/usr/share/keyrings/debian-archive-keyring.gpg", package: "debian-archive-keyring" },
];

/// The same where a vendor's image is prepared.
const IMAGE_TOOLS: &[Tool] = &[
    Tool { program: "qemu-system-x86_64", package: "qemu-system-x86" },
    Tool { program: "qemu-img", package: "qemu-utils" },
    Tool { program: "xz", package: "xz-utils" },
    Tool { program: "tar", package: "tar" },
];

/// What building a box needs on the host: of packages, where it needs root too, or from an image.
pub fn requirements(image: bool) -> &'static [Tool] {
    if image { IMAGE_TOOLS } else { TOOLS }
}

fn find(program: &str) -> Option<PathBuf> {
    if program.starts_with('/') {
        return Some(PathBuf::from(program)).filter(|p| p.exists());
    }
    // Administrators' programs are not on every user's PATH.
    which::which(program)
        .ok()
        .or_else(|| ["/usr/sbin", "/sbin"].iter().map(|d| Path::new(d).join(program)).find(|p| p.is_file()))
}

/// A box that was built.
#[derive(Clone, Debug)]
pub struct Built {
    /// The file, `<out_dir>/<name>.box`.
    pub path: PathBuf,
    /// SHA-256 of the box file, hexadecimal.
    pub sha256: String,
    /// `package=version`, sorted; also beside the box as `<name>.packages.txt`, and in it.
    pub packages: Vec<String>,
}

/// Builds `def` into `<out_dir>/<name>.box`, replacing an older one only when the new one is whole.
/// Needs the programs of [`requirements()`], and root where it has no image. `image` is the file of the one that it
/// has, whose checksum is right. `progress` is told what is being done.
pub fn build(
    def: &Definition,
    image: Option<&Path>,
    out_dir: &Path,
    progress: &mut dyn FnMut(&str),
    cancel: &Cancel,
) -> Result<Built, Error> {
    let needs = requirements(image.is_some()).iter().copied();
    let missing: Vec<Tool> = needs.filter(|tool| find(tool.program).is_none()).collect();
    if !missing.is_empty() {
        return Err(Error::Tools { missing });
    }
    if image.is_none() && !nix::unistd::geteuid().is_root() {
        return Err(Error::NotRoot);
    }
    files::dir(out_dir)?;
    // Beside the result: on the same file system (the last step is a rename) and not in a small /tmp.
    let work = tempfile::Builder::new()
        .prefix(".p1-box-")
        .permissions(Permissions::from_mode(0o755))
        .tempdir_in(out_dir)
        .at("create", out_dir)?;
    let mut build = Build { def, work: work.path(), digest: digest(def), progress, cancel };
    let gib = match image {
        Some(image) => build.prepared(image)?,
        None => build.made()?,
    };
    let built = build.packed(gib, out_dir)?;
    // Said, not swallowed: a root file system left behind is hundreds of megabytes.
    let path = work.path().to_owned();
    work.close().at("remove", &path)?;
    Ok(built)
}

struct Build<'a> {
    def: &'a Definition,
    work: &'a Path,
    digest: String,
    progress: &'a mut dyn FnMut(&str),
    cancel: &'a Cancel,
}

impl Build<'_> {
    /// The disk, made of packages; its size in GiB.
    fn made(&mut self) -> Result<u64, Error> {
        self.write_recipe()?;
        self.install()?;
        self.boot_menu()?;
        self.disk()?;
        Ok(self.def.disk.size_gib.into())
    }

    /// The disk, prepared from an image.
    fn prepared(&mut self, image: &Path) -> Result<u64, Error> {
        let path = vagrant_key().ok_or(Error::NoKey)?;
        let key = fs::read_to_string(&path).at("read", &path)?;
        let prepared = prepare::prepare(self.def, image, key.trim(), self.work, self.progress, self.cancel)?;
        let packages: String = prepared.packages.iter().map(|p| format!("{p}\n")).collect();
        files::write(&self.at("packages.txt"), packages.as_bytes(), 0o644)?;
        Ok(prepared.gib)
    }

    fn packed(&mut self, gib: u64, out_dir: &Path) -> Result<Built, Error> {
        let packages = fs::read_to_string(self.at("packages.txt")).at("read", &self.at("packages.txt"))?;
        let file = self.pack(gib)?;

        let path = out_dir.join(format!("{}.box", self.def.name));
        let beside = out_dir.join(format!("{}.packages.txt", self.def.name));
        let sha256 = library::sha256(&file)?;
        fs::File::open(&file).and_then(|f| f.sync_all()).at("write", &file)?;
        files::write(&beside, packages.as_bytes(), 0o644)?;
        fs::rename(&file, &path).at("create", &path)?;
        Ok(Built { path, sha256, packages: packages.lines().map(str::to_owned).collect() })
    }

    fn at(&self, name: &str) -> PathBuf {
        self.work.join(name)
    }

    fn step(&mut self, doing: &'static str, cmd: &Cmd) -> Result<Finished, Error> {
        (self.progress)(doing);
        process::run(cmd, STEP_BOUND, self.cancel)
            .and_then(Finished::ok)
            .map_err(|source| Error::Step { doing, source })
    }

    /// The folder `overlay`, copied into the root before packages are installed, and what
    /// `customize.sh` reads.
    fn write_recipe(&mut self) -> Result<(), Error> {
        let def = self.def;
        let overlay = self.at("overlay");
        let put = |path: &str, mode: u32, content: &str| -> Result<(), Error> {
            let path = overlay.join(path.trim_start_matches('/'));
            files::dir(path.parent().expect("inside the overlay"))?;
            fs::write(&path, content).at("write", &path)?;
            fs::set_permissions(&path, Permissions::from_mode(mode)).at("write", &path)?;
            Ok(())
        };
        let mask = |path: String| -> Result<(), Error> {
            let path = overlay.join(path);
            files::dir(path.parent().expect("inside the overlay"))?;
            symlink("/dev/null", &path).at("create", &path)?;
            Ok(())
        };

        put("etc/fstab", 0o644, &format!("UUID={} / ext4 defaults,noatime 0 0\n", self.uuid()))?;
        // /vmlinuz and /initrd.img follow kernel updates (linux-base), so the boot menu needs none.
        put("etc/kernel-img.conf", 0o644, "do_symlinks = yes\n")?;
        put(
            "etc/tiny-initramfs/tiny-initramfs.conf",
            0o644,
            &format!(
                "MICROCODE=no\nAUTO_MODULES=no\nINCLUDE_MODULES=\"{}\"\n",
                def.kernel.initramfs_modules.join(",")
            ),
        )?;
        let blacklist: String = def.kernel.blacklist.iter().map(|m| format!("blacklist {m}\n")).collect();
        put("etc/modprobe.d/box.conf", 0o644, &blacklist)?;
        let mut sshd: String = def.sshd.iter().map(|(k, v)| format!("{k} {v}\n")).collect();
        for kind in ["ed25519", "ecdsa"] {
            sshd.push_str(&format!("HostKey /etc/ssh/ssh_host_{kind}_key\n"));
        }
        put("etc/ssh/sshd_config.d/50-box.conf", 0o644, &sshd)?;
        for unit in &def.systemd.after_ssh {
            let name = format!("etc/systemd/system/{unit}.service.d/box.conf");
            put(&name, 0o644, "[Unit]\nAfter=ssh.service\n")?;
        }
        for unit in &def.systemd.masked {
            mask(format!("etc/systemd/system/{unit}"))?;
        }
        for generator in &def.systemd.masked_generators {
            mask(format!("etc/systemd/system-generators/{generator}"))?;
        }
        let about = format!("{} {} {}\n", def.name, def.version, self.digest);
        put("etc/p1-box", 0o644, &about)?;
        for file in &def.files {
            put(&file.path, file.mode(), &file.content)?;
        }

        let own =
            |name: &str, content: &str, mode: u32| files::write(&self.at(name), content.as_bytes(), mode);
        own("customize.sh", CUSTOMIZE, 0o755)?;
        own("user", &format!("{}\n", def.user), 0o644)?;
        own("hostname", &format!("{}\n", def.name), 0o644)?;
        own("enabled", &def.systemd.enabled.iter().map(|u| format!("{u}\n")).collect::<String>(), 0o644)?;
        let key = vagrant_key().ok_or(Error::NoKey)?;
        fs::copy(&key, self.at("key.pub")).at("read", &key)?;
        Ok(())
    }

    fn install(&mut self) -> Result<(), Error> {
        let def = self.def;
        let sources = self.sources()?;
        let mut packages = vec![def.kernel.package.as_str(), "tiny-initramfs"];
        packages.extend(def.packages.iter().map(String::as_str));
        let overlay = process::quote(&self.at("overlay").display().to_string());
        // In a mount namespace of its own: whatever happens, no mount of the new root stays behind
        // for the clean-up to run into.
        let mut cmd = Cmd::new("unshare")
            .args(["--mount", "--propagation", "private", "mmdebstrap"])
            .args(["--variant=minbase", "--mode=root", "--format=directory"])
            .arg(format!("--include={}", packages.join(",")))
            .args(["--aptopt=Acquire::Languages \"none\"", "--aptopt=APT::Install-Recommends \"false\""])
            .args(["--dpkgopt=force-confold", "--dpkgopt=path-exclude=/usr/share/doc/*"])
            .arg("--dpkgopt=path-include=/usr/share/doc/*/copyright")
            .args(["--dpkgopt=path-exclude=/usr/share/man/*", "--dpkgopt=path-exclude=/usr/share/locale/*"])
            // Not `cp -a`: that would give existing directories the modes of the overlay's.
            .arg(format!(
                "--essential-hook=tar -C {overlay} -cf - . | tar -C \"$1\" --no-overwrite-dir --no-same-owner -xpf -"
            ))
            .arg(format!("--customize-hook={}", self.at("customize.sh").display()))
            .arg(&def.suite)
            .arg(self.at("root"))
            .env("LC_ALL", "C.UTF-8")
            .env("TMPDIR", self.work)
            // mmdebstrap cleans up on INT, which takes a moment.
            .grace(Duration::from_secs(20));
        for source in &sources {
            cmd = cmd.arg(source);
        }
        (self.progress)(INSTALLING);
        let progress = &mut *self.progress;
        process::watch(&cmd, INSTALL_BOUND, self.cancel, &mut |_, line| {
            // "I: " is mmdebstrap's own news; which hook it runs is nobody's.
            if let Some(news) = line.strip_prefix("I: ").filter(|n| n.ends_with("...") && !n.contains("--")) {
                progress(news.trim_end_matches('.'));
            }
        })
        .and_then(Finished::ok)
        .map_err(|source| Error::Step { doing: INSTALLING, source })?;
        Ok(())
    }

    /// Lines for the guest's sources.list: the definition's mirror, else what the host's apt uses
    /// for this suite, else Debian's own.
    fn sources(&self) -> Result<Vec<String>, Error> {
        let def = self.def;
        let components = def.components.join(" ");
        if let Some(mirror) = &def.mirror {
            return Ok(vec![format!("deb {mirror} {} {components}", def.suite)]);
        }
        let cmd = Cmd::new("apt-get").args([
            "indextargets",
            "--no-release-info",
            "--format",
            "$(RELEASE) $(REPO_URI)",
            "Created-By: Packages",
        ]);
        // A host without Debian's apt sources is no error.
        let known = process::run(&cmd, STEP_BOUND, self.cancel).map(|f| f.stdout).unwrap_or_default();
        Ok(source_lines(&def.suite, &components, &known))
    }

    fn boot_menu(&mut self) -> Result<(), Error> {
        let dir = self.at("root").join("boot/grub");
        files::dir(&dir)?;
        let menu = dir.join("grub.cfg");
        let text = format!(
            "# One kernel, no menu, no waiting. The links follow kernel updates.\n\
             linux /vmlinuz root=UUID={} rootfstype=ext4 rw {}\ninitrd /initrd.img\nboot\n",
            self.uuid(),
            self.def.kernel.arguments.join(" ")
        );
        fs::write(&menu, text).at("write", &menu)?;
        Ok(())
    }

    fn disk(&mut self) -> Result<(), Error> {
        let (disk, core, root) = (self.at("disk.raw"), self.at("core.img"), self.at("root"));
        let size = u64::from(self.def.disk.size_gib) << 30;
        let signature: [u8; 4] = self.digest.as_bytes()[..4].try_into().expect("four of 64 digits");
        image::create(&disk, size, signature)?;
        let kib = (size - image::START) / 1024;
        let mke2fs = find("mke2fs").unwrap_or_else(|| PathBuf::from("mke2fs"));
        self.step(
            "writing the file system",
            &Cmd::new(mke2fs)
                .args(["-q", "-F", "-t", "ext4", "-L", "root", "-m", "1", "-U", &self.uuid()])
                // Plain features: checksums of metadata cost CPU time under emulation.
                .args(["-O", "^64bit,^metadata_csum", "-J", "size=32"])
                .arg("-E")
                // Not lazy: the guest would write the tables in the background at first boot.
                .arg(format!(
                    "offset={},hash_seed={},lazy_itable_init=0,lazy_journal_init=0,nodiscard",
                    image::START,
                    self.uuid()
                ))
                .arg("-d")
                .arg(&root)
                .arg(&disk)
                .arg(format!("{kib}k")),
        )?;
        self.step(
            "making the boot loader",
            &Cmd::new("grub-mkimage")
                .args(["-O", "i386-pc", "-p", "(hd0,msdos1)/boot/grub", "-o"])
                .arg(&core)
                .args(["biosdisk", "part_msdos", "ext2", "normal", "linux"]),
        )?;
        image::install_grub(&disk, Path::new(image::BOOT_IMG), &core)?;
        self.step(
            "compressing the disk",
            &Cmd::new("qemu-img")
                // zstd: half the time of the default to write and a fifth to read, and no larger.
                .args(["convert", "-O", "qcow2", "-c", "-W", "-o", "compression_type=zstd"])
                .arg(&disk)
                .arg(self.at("box.img")),
        )?;
        fs::remove_file(&disk).at("remove", &disk)?;
        Ok(())
    }

    /// Format v1 of vagrant-libvirt: `metadata.json`, `Vagrantfile`, `box.img`
    /// (vagrant-libvirt `lib/vagrant-libvirt/action/handle_box_image.rb`). Not compressed again.
    fn pack(&mut self, gib: u64) -> Result<PathBuf, Error> {
        let metadata = serde_json::json!({
            "provider": "libvirt",
            "format": "qcow2",
            "virtual_size": gib,
            "p1": {"definition": self.def.name, "version": self.def.version, "digest": self.digest},
        });
        files::write(&self.at("metadata.json"), format!("{metadata}\n").as_bytes(), 0o644)?;
        files::write(&self.at("Vagrantfile"), vagrantfile(self.def).as_bytes(), 0o644)?;
        let file = self.at("new.box");
        self.step(
            "packing the box",
            &Cmd::new("tar")
                .args(["--sort=name", "--owner=0", "--group=0", "--numeric-owner", "--mtime=@0", "-C"])
                .arg(self.work)
                .arg("-cf")
                .arg(&file)
                .args(["metadata.json", "Vagrantfile", "packages.txt", "box.img"]),
        )?;
        Ok(file)
    }

    /// The file system's, made from the digest: the same definition gives the same.
    fn uuid(&self) -> String {
        uuid(&self.digest)
    }
}

fn uuid(digest: &str) -> String {
    let d = digest;
    // Version 8 is "custom", variant 10xx (RFC 9562).
    format!("{}-{}-8{}-8{}-{}", &d[..8], &d[8..12], &d[13..16], &d[17..20], &d[20..32])
}

/// `known`: lines of a suite and an address, from apt.
fn source_lines(suite: &str, components: &str, known: &str) -> Vec<String> {
    let security = format!("{suite}-security");
    let updates = format!("{suite}-updates");
    let mut found: Vec<(&str, &str)> = Vec::new();
    for line in known.lines() {
        if let Some((release, uri)) = line.split_once(' ')
            && [suite, &security, &updates].contains(&release)
            // Other vendors name their suites after Debian's, too.
            && uri.trim_end_matches('/').ends_with(if release == security { "debian-security" } else { "debian" })
            && !found.iter().any(|(r, _)| *r == release)
        {
            found.push((release, uri.trim_end_matches('/')));
        }
    }
    let has = |release: &str| found.iter().find(|(r, _)| *r == release).map(|(_, uri)| *uri);
    let main = has(suite).unwrap_or(DEFAULT_MIRROR);
    [
        (suite, main),
        (updates.as_str(), has(&updates).unwrap_or(main)),
        (security.as_str(), has(&security).unwrap_or(DEFAULT_SECURITY_MIRROR)),
    ]
    .iter()
    .map(|(release, uri)| format!("deb {uri} {release} {components}"))
    .collect()
}

/// What the box asks of Vagrant. p1's own file says the same and more; this is for people who use
/// the box without p1.
fn vagrantfile(def: &Definition) -> String {
    let mut text = Vec::new();
    // Writing to memory cannot fail.
    let _ = writeln!(
        text,
        "# {} {}\nVagrant.configure(\"2\") do |config|\n{}  config.ssh.username = \"{}\"\n  config.vm.synced_folder \".\", \"/vagrant\", disabled: true\n  \
         config.vm.provider :libvirt do |libvirt|\n    libvirt.disk_bus = \"virtio\"{}\n  end\nend",
        def.name,
        def.version,
        // Vagrant finds out what else it is.
        if def.image.is_some() { "" } else { "  config.vm.guest = :debian\n" },
        def.user,
        match def.cpu {
            Cpu::V1 => "",
            Cpu::V2 => "\n    # needs a CPU of level x86-64-v2",
            Cpu::V3 => "\n    # needs a CPU of level x86-64-v3",
        }
    );
    String::from_utf8(text).expect("made of text")
}

/// The public half of Vagrant's well-known key, among the files of the installed Vagrant: Debian's
/// package keeps the gem under /usr/share, HashiCorp's under /opt/vagrant.
fn vagrant_key() -> Option<PathBuf> {
    let gems = [
        "/usr/share/rubygems-integration/all/gems",
        "/opt/vagrant/embedded/gems/gems",
        "/usr/share/gems/gems",
        "/usr/lib/ruby/gems",
    ];
    gems.iter().find_map(|dir| {
        let versions = fs::read_dir(dir).ok()?.flatten();
        let mut found: Vec<PathBuf> = versions
            .filter(|e| e.file_name().to_string_lossy().starts_with("vagrant-"))
            .map(|e| e.path().join("keys/vagrant.pub"))
            .filter(|p| p.is_file())
            .collect();
        found.sort();
        found.pop()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sources_are_the_hosts_where_it_has_debians() {
        let known = "bookworm http://mirror.example/debian/\nbookworm http://second.example/debian/\n\
                     bookworm-security http://mirror.example/debian-security/\n\
                     bookworm http://vendor.example/tools/\nstable http://other.example/debian\n";
        assert_eq!(
            source_lines("bookworm", "main", known),
            [
                "deb http://mirror.example/debian bookworm main",
                "deb http://mirror.example/debian bookworm-updates main",
                "deb http://mirror.example/debian-security bookworm-security main",
            ]
        );
        assert_eq!(
            source_lines("trixie", "main contrib", known),
            [
                "deb http://deb.debian.org/debian trixie main contrib",
                "deb http://deb.debian.org/debian trixie-updates main contrib",
                "deb http://deb.debian.org/debian-security trixie-security main contrib",
            ]
        );
    }

    #[test]
    fn the_uuid_has_the_form_of_one() {
        let text = uuid("0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef");
        assert_eq!(text, "01234567-89ab-8def-8123-456789abcdef");
    }

    #[test]
    fn every_tool_names_its_package() {
        for tool in requirements(false).iter().chain(requirements(true)) {
            assert!(!tool.package.is_empty() && !tool.package.contains('/'), "{tool:?}");
        }
    }
}
