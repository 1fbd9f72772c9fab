//! Images as records: a containerd that has names, digests and blobs, and runs nothing. What a test says was pulled is a line in
//! [`LIST`] with its blobs beside it; archives are imported as k3s and `ctr` do it.

use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

use crate::{log, paths, util};

const LIST: &str = "/var/lib/rancher/k3s/agent/containerd/standin-images";
const CONTENT: &str = "/var/lib/rancher/k3s/agent/containerd/io.containerd.content.v1.content";
const SOCKET: &str = "/run/k3s/containerd/containerd.sock";

/// Takes in the archives that lie there, and is there from then on.
pub fn start() {
    let archives = std::fs::read_dir(paths::at("/var/lib/rancher/k3s/agent/images"));
    let mut archives: Vec<PathBuf> = archives.into_iter().flatten().flatten().map(|e| e.path()).collect();
    archives.retain(|path| path.extension().is_some_and(|e| e == "tar"));
    archives.sort();
    for path in archives {
        if let Err(why) = import(&path, true) {
            log::error(format!("failed to import {}: {why}", path.display()));
        }
    }
    let socket = paths::at(SOCKET);
    if let Some(dir) = socket.parent() {
        let _ = std::fs::create_dir_all(dir);
    }
    let _ = std::fs::remove_file(&socket);
    // Nobody speaks to it: that it is there says that images can be asked for.
    std::mem::forget(UnixListener::bind(&socket));
}

/// As `ctr images ls` prints them.
pub fn list() -> String {
    format!("REF TYPE DIGEST SIZE PLATFORMS LABELS\n{}\n", util::read(paths::at(LIST)).unwrap_or_default())
}

/// The images of an OCI layout; of another archive none. `pinned` as k3s marks what it imports itself.
pub fn import(archive: &Path, pinned: bool) -> Result<(), String> {
    let tar = |args: &[&str]| {
        Command::new("tar").args(args).arg("-f").arg(archive).output().map_err(|e| e.to_string())
    };
    let index = tar(&["-x", "-O", "index.json"])?.stdout;
    let Ok(index) = serde_json::from_slice::<Value>(&index) else { return Ok(()) };
    let (content, list) = (paths::at(CONTENT), paths::at(LIST));
    std::fs::create_dir_all(&content).map_err(|e| e.to_string())?;
    let done = Command::new("tar").arg("-xf").arg(archive).arg("-C").arg(&content).arg("blobs").status();
    if !done.is_ok_and(|s| s.success()) {
        return Err("tar failed".to_owned());
    }
    let mut lines: Vec<String> = util::read(&list).unwrap_or_default().lines().map(str::to_owned).collect();
    for manifest in index["manifests"].as_array().into_iter().flatten() {
        let name = manifest["annotations"]["io.containerd.image.name"].as_str().unwrap_or_default();
        let label = if pinned { "io.cattle.k3s.pinned=pinned" } else { "-" };
        let digest = manifest["digest"].as_str().unwrap_or_default();
        lines.retain(|line| line.split(' ').next() != Some(name));
        lines.push(format!("{name} oci {digest} 1 MiB linux/amd64 {label}"));
    }
    util::write_atomically(&list, lines.join("\n").as_bytes(), 0o600).map_err(|e| e.to_string())
}
