//! A box of another one's files around a new disk.

use std::fs;
use std::path::Path;

use super::error::Error;
use super::unpacked;
use crate::os::Cancel;
use crate::os::files::{self, At};

const DISK: &str = "box.img";
const ABOUT: &str = "metadata.json";

/// Packs the box that was unpacked at `from` with another disk, of so many bytes as a machine sees it, into the file `to`,
/// beside which the parts lie meanwhile. The disk is moved.
pub fn pack(from: &Path, disk: &Path, bytes: u64, key: &str, to: &Path, stop: &Cancel) -> Result<(), Error> {
    let parts = to.with_extension("parts");
    files::dir(&parts)?;
    for entry in fs::read_dir(from).at("read", from)? {
        let entry = entry.at("read", from)?;
        let plain = entry.metadata().is_ok_and(|m| m.is_file());
        if plain && entry.file_name() != DISK {
            let to = parts.join(entry.file_name());
            fs::copy(entry.path(), &to).at("write", &to)?;
        }
    }
    let about = parts.join(ABOUT);
    let text = files::read_if_there(&about)?.unwrap_or_default();
    let mut json: serde_json::Value = serde_json::from_str(&text).unwrap_or_default();
    if !json.is_object() {
        let (path, what) = (from.to_owned(), "its metadata.json is not JSON".to_owned());
        return Err(Error::NotABox { path, what });
    }
    json["virtual_size"] = bytes.div_ceil(1 << 30).into();
    json["format"] = "qcow2".into();
    json["p1"] = serde_json::json!({"baked": key});
    files::write(&about, format!("{json}\n").as_bytes(), 0o644)?;
    let image = parts.join(DISK);
    fs::rename(disk, &image).at("move into place", &image)?;
    unpacked::pack(&parts, to, stop)?;
    fs::remove_dir_all(&parts).at("remove", &parts)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::os::process::{self, Cmd};

    #[test]
    fn a_box_is_packed_around_another_disk_with_all_else_that_it_had() {
        let dir = tempfile::tempdir().unwrap();
        let (from, work) = (dir.path().join("from"), dir.path().join("work"));
        fs::create_dir_all(&from).unwrap();
        fs::create_dir_all(&work).unwrap();
        fs::write(from.join(ABOUT), r#"{"provider":"libvirt","format":"qcow2","virtual_size":10}"#).unwrap();
        fs::write(from.join("Vagrantfile"), "one").unwrap();
        fs::write(from.join(DISK), "old").unwrap();
        fs::write(work.join("disk"), "new").unwrap();
        let bytes = (20 << 30) + 1;
        let file = work.join("new.box");
        pack(&from, &work.join("disk"), bytes, "k", &file, &Cancel::new()).unwrap();
        assert_eq!(super::super::inspect(&file, &Cancel::new()).unwrap().as_deref(), Some("libvirt"));
        let unpack = Cmd::new("tar").arg("-xf").arg(&file).arg("-C").arg(&work);
        process::run(&unpack, Duration::from_secs(60), &Cancel::new()).unwrap().ok().unwrap();
        let read = |name: &str| fs::read_to_string(work.join(name)).unwrap();
        assert_eq!((read(DISK), read("Vagrantfile")), ("new".to_owned(), "one".to_owned()));
        let about: serde_json::Value = serde_json::from_str(&read(ABOUT)).unwrap();
        assert_eq!((&about["virtual_size"], &about["p1"]["baked"]), (&21.into(), &"k".into()));
    }
}
