//! A vendor's cloud image made into a box's disk, without root and without mounting anything: it is booted once, with a
//! disk beside it from which its own cloud-init takes what is to be done (`prepare.sh`), and powers itself off.

use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use super::definition::{Definition, digest};
use super::error::Error;
use super::seed;
use crate::explain::Explain;
use crate::os::Cancel;
use crate::os::files::{self, At};
use crate::os::process::{self, Cmd, Finished, Stream, quote};

/// One boot and the packages that the image lacks: a minute with KVM, ten times that without.
const BOOT_BOUND: Duration = Duration::from_secs(45 * 60);
/// Unpacking and packing some GiB.
const COPY_BOUND: Duration = Duration::from_secs(30 * 60);
/// Lines of the serial console that are shown as evidence.
const SHOWN: usize = 15;

const SCRIPT: &str = include_str!("prepare.sh");

/// A prepared disk, `box.img` in the working folder.
pub(super) struct Prepared {
    /// As a machine sees it.
    pub gib: u64,
    /// `package=version`.
    pub packages: Vec<String>,
}

/// Prepares `image`, which is only read, in the folder `work`.
pub(super) fn prepare(
    def: &Definition,
    image: &Path,
    key: &str,
    work: &Path,
    progress: &mut dyn FnMut(&str),
    cancel: &Cancel,
) -> Result<Prepared, Error> {
    let mut step = |doing: &'static str, cmd: &Cmd| {
        progress(doing);
        process::run(cmd, COPY_BOUND, cancel)
            .and_then(Finished::ok)
            .map_err(|source| Error::Step { doing, source })
    };
    let image = std::path::absolute(image).at("read", image)?;
    let image = match kind(&image)? {
        Kind::Xz => {
            let plain = work.join("image");
            let script = "exec xz --decompress --stdout -- \"$1\" >\"$2\"";
            let unpack = Cmd::new("sh").args(["-c", script, "sh"]).arg(&image).arg(&plain);
            step("unpacking the image", &unpack)?;
            plain
        }
        Kind::Disk(_) => image,
    };
    let Kind::Disk(format) = kind(&image)? else {
        return Err(Error::NotAnImage { path: image, what: "it is packed twice".to_owned() });
    };
    let info = Cmd::new("qemu-img").args(["info", "--output=json", "-f", format]).arg(&image);
    let info = step("reading the image", &info)?.stdout;
    let size =
        size(&info).map_err(|what| Error::NotAnImage { path: image.clone(), what: what.to_owned() })?;
    let gib = size.div_ceil(1 << 30).max(u64::from(def.disk.size_gib));
    let disk = work.join("disk.qcow2");
    // Over the image, which stays as it was checked.
    let create = Cmd::new("qemu-img").args(["create", "-q", "-f", "qcow2", "-F", format, "-b"]);
    step("preparing the image", &create.arg(&image).arg(&disk).arg(format!("{gib}G")))?;

    let seed_disk = work.join("seed.img");
    let (meta, user) = (meta_data(def), user_data(def, key));
    let bytes = seed::disk(&[("meta-data", &meta), ("user-data", &user)]).ok_or_else(|| Error::Value {
        origin: def.name.clone(),
        key: "files",
        message: "they do not fit on the disk of 1 MiB that prepares an image".to_owned(),
    })?;
    fs::write(&seed_disk, bytes).at("write", &seed_disk)?;
    let console = work.join("console.log");
    let packages = boot(&disk, &seed_disk, &console, progress, cancel)?;

    let pack = Cmd::new("qemu-img")
        .args(["convert", "-f", "qcow2", "-O", "qcow2", "-c", "-W", "-o", "compression_type=zstd"])
        .arg(&disk)
        .arg(work.join("box.img"));
    progress("compressing the disk");
    let packed = process::run(&pack, COPY_BOUND, cancel).and_then(Finished::ok);
    packed.map_err(|source| Error::Step { doing: "compressing the disk", source })?;
    fs::remove_file(&disk).at("remove", &disk)?;
    Ok(Prepared { gib, packages })
}

/// Boots it and hears what `prepare.sh` tells: its packages.
fn boot(
    disk: &Path,
    seed: &Path,
    console: &Path,
    progress: &mut dyn FnMut(&str),
    cancel: &Cancel,
) -> Result<Vec<String>, Error> {
    let drive = |path: &Path, options: &str| {
        // QEMU takes a comma for the end of a value.
        format!("file={},if=virtio,{options}", path.display().to_string().replace(',', ",,"))
    };
    let own = |path: &Path| path.display().to_string().replace(',', ",,");
    let cpus = std::thread::available_parallelism().map_or(1, |n| n.get().min(2));
    let mut cmd = Cmd::new("qemu-system-x86_64")
        .args([
            "-nodefaults",
            "-no-user-config",
            "-display",
            "none",
            "-no-reboot",
            "-cpu",
            "max",
            "-m",
            "1024",
        ])
        .arg("-smp")
        .arg(cpus.to_string())
        .arg("-drive")
        .arg(drive(disk, "format=qcow2,cache=unsafe,discard=unmap,detect-zeroes=unmap"))
        .arg("-drive")
        .arg(drive(seed, "format=raw,readonly=on"))
        .args(["-netdev", "user,id=out", "-device", "virtio-net-pci,netdev=out,romfile="])
        .args(["-device", "virtio-rng-pci"])
        // The first serial port is the console, on the second the script tells how it gets on.
        .arg("-serial")
        .arg(format!("file:{}", own(console)))
        .args(["-serial", "stdio"]);
    for accelerator in accelerators() {
        cmd = cmd.args(["-accel", accelerator]);
    }
    progress("booting the image");
    let (mut packages, mut done, mut failed) = (Vec::new(), false, None);
    let ended = process::watch(&cmd, BOOT_BOUND, cancel, &mut |stream, line| {
        let Some(told) = line.trim().strip_prefix("p1: ").filter(|_| stream == Stream::Out) else { return };
        match told.split_once(' ') {
            Some(("says", text)) => progress(text),
            Some(("package", package)) => packages.push(package.to_owned()),
            Some(("failed", _)) => failed = Some(told.to_owned()),
            _ => done |= told == "done",
        }
    });
    let what = match ended.and_then(Finished::ok) {
        Ok(_) if done => return Ok(packages),
        Err(source) if source.again() == crate::explain::Again::Cancelled => {
            return Err(Error::Step { doing: "preparing the image", source });
        }
        Err(source @ (process::Error::Missing { .. } | process::Error::Start { .. })) => {
            return Err(Error::Step { doing: "preparing the image", source });
        }
        Ok(_) => match failed {
            Some(told) => format!("its preparation {told}"),
            None => "it switched itself off before its cloud-init had done anything".to_owned(),
        },
        Err(source @ process::Error::Deadline { .. }) => source.to_string(),
        Err(source) => {
            let lines = source.evidence();
            return Err(Error::Prepare { what: source.to_string(), lines });
        }
    };
    let shown = files::read(console, 1 << 20).unwrap_or_default();
    let lines = process::tail(&String::from_utf8_lossy(&shown), SHOWN);
    Err(Error::Prepare { what, lines })
}

/// What QEMU may run it with, the best first. A device alone proves nothing: without the processor's extension guests do
/// not run on it.
fn accelerators() -> &'static [&'static str] {
    let cpu = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    match cpu.split_whitespace().any(|flag| flag == "vmx" || flag == "svm") {
        true => &["kvm", "tcg"],
        false => &["tcg"],
    }
}

enum Kind {
    Xz,
    /// In QEMU's word for it.
    Disk(&'static str),
}

/// By its first bytes: names say `.img` of all of them.
fn kind(path: &Path) -> Result<Kind, Error> {
    let mut head = Vec::new();
    files::open(path)?.take(6).read_to_end(&mut head).at("read", path)?;
    Ok(match &head[..] {
        b"\xfd7zXZ\0" => Kind::Xz,
        [b'Q', b'F', b'I', 0xfb, ..] => Kind::Disk("qcow2"),
        _ => Kind::Disk("raw"),
    })
}

/// The bytes that a machine would see. An image that names other files would have them read with it.
fn size(info: &str) -> Result<u64, &'static str> {
    let info: Value = serde_json::from_str(info).map_err(|_| "qemu-img does not say what it is")?;
    let data = &info["format-specific"]["data"]["data-file"];
    if !info["backing-filename"].is_null() || !data.is_null() {
        return Err("it names another file that it needs");
    }
    match info["virtual-size"].as_u64() {
        Some(size) if size >= 64 << 20 => Ok(size),
        _ => Err("it is too small to be a disk"),
    }
}

fn meta_data(def: &Definition) -> String {
    format!("instance-id: p1-{}\nlocal-hostname: {}\n", &digest(def)[..16], def.name)
}

/// JSON is YAML. No account of the image's own is made, and no host keys: nobody logs in to this machine.
fn user_data(def: &Definition, key: &str) -> String {
    let path = "/run/p1-prepare.sh";
    let config = json!({
        "users": [],
        "ssh_genkeytypes": [],
        "locale": false,
        "package_update": false,
        "write_files": [{
            "path": path, "permissions": "0700", "encoding": "b64", "content": STANDARD.encode(script(def, key)),
        }],
        "runcmd": [["sh", path]],
    });
    format!("#cloud-config\n{config}\n")
}

fn script(def: &Definition, key: &str) -> String {
    let about = format!("{} {} {}", def.name, def.version, digest(def));
    let set = [
        ("user", &def.user),
        ("key", &key.to_owned()),
        ("about", &about),
        ("packages", &def.packages.join(" ")),
    ];
    let mut text = String::from("#!/bin/sh\n");
    for (name, value) in set {
        text += &format!("{name}={}\n", quote(value));
    }
    text += "files() {\n    :\n";
    for file in &def.files {
        let (path, folder) = (quote(&file.path), PathBuf::from(&file.path));
        let folder = quote(&folder.parent().unwrap_or(Path::new("/")).display().to_string());
        let content = STANDARD.encode(&file.content);
        text += &format!(
            "    mkdir -p {folder}\n    echo {content} | base64 -d >{path}\n    chmod {:04o} {path}\n",
            file.mode()
        );
    }
    text + "}\n" + SCRIPT
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::boxes::definition::{embedded, parse};

    fn of_image(more: &str) -> Definition {
        let text = format!(
            "name: mine\nversion: \"1\"\nimage: {{path: a.img, checksums: {}}}\n{more}",
            "0".repeat(64)
        );
        parse(&text, "mine.yaml").unwrap()
    }

    #[test]
    fn what_cloud_init_is_given_is_a_script_that_sh_takes_and_says_what_the_definition_says() {
        let more =
            "packages: [sqlite3]\nfiles: [{path: \"/etc/it's/a\", mode: \"0600\", content: \"a'b\\n\"}]\n";
        let def = of_image(more);
        let data = user_data(&def, "ssh-rsa AAA it's a key");
        let config: Value = serde_json::from_str(data.strip_prefix("#cloud-config\n").unwrap()).unwrap();
        let content = config["write_files"][0]["content"].as_str().unwrap();
        let text = String::from_utf8(STANDARD.decode(content).unwrap()).unwrap();
        assert!(text.contains("packages=sqlite3\n") && text.contains(&digest(&def)), "{text}");
        let dir = tempfile::tempdir().unwrap();
        // Up to where it does something, and then what it would do with its files.
        let (head, _) = text.split_once("set -eu\n").unwrap();
        let head = head.replace("/etc/", &format!("{}/", dir.path().display()));
        let check = format!("{head}\nfiles\nprintf '%s\\n' \"$key\" \"$about\"\n");
        let cmd = Cmd::new("sh").arg("-c").arg(&check);
        let done = process::run(&cmd, COPY_BOUND, &Cancel::new()).unwrap().ok().unwrap();
        assert_eq!(done.stdout, format!("ssh-rsa AAA it's a key\nmine 1 {}\n", digest(&def)));
        assert_eq!(fs::read_to_string(dir.path().join("it's/a")).unwrap(), "a'b\n");
        let syntax = Cmd::new("sh").args(["-n", "-c"]).arg(&text);
        process::run(&syntax, COPY_BOUND, &Cancel::new()).unwrap().ok().unwrap();
    }

    #[test]
    fn an_image_that_names_other_files_is_refused() {
        let says = |json: &str| size(json).unwrap_err();
        assert_eq!(size(r#"{"virtual-size": 3221225472, "format": "qcow2"}"#), Ok(3 << 30));
        assert!(
            says(r#"{"virtual-size": 3221225472, "backing-filename": "/etc/shadow"}"#)
                .contains("another file")
        );
        let data = r#"{"virtual-size": 3221225472, "format-specific": {"data": {"data-file": "/dev/sda"}}}"#;
        assert!(says(data).contains("another file"));
        assert!(says(r#"{"virtual-size": 512}"#).contains("too small"));
        assert!(says("").contains("qemu-img"));
    }

    #[test]
    fn what_comes_with_p1_names_images_by_https_with_a_list_of_their_sums() {
        let images = embedded().iter().filter_map(|(name, text)| {
            let def = parse(text, name).unwrap();
            def.image.clone().map(|image| (def, image))
        });
        let images: Vec<_> = images.collect();
        assert_eq!(images.len(), 7);
        for (def, image) in images {
            let url = image.url.as_deref().unwrap();
            let folder = url.strip_suffix(&image.file_name()).unwrap();
            assert!(url.starts_with("https://") && image.checksums.starts_with(folder), "{}", def.name);
            assert!(seed::disk(&[("user-data", &user_data(&def, "key"))]).is_some(), "{}", def.name);
        }
    }
}
