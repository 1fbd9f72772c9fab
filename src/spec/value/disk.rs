//! The disks of machines: how large they are, and what guests find them by.

use serde_json::{Value as Json, json};

use crate::spec::Disk;
use crate::spec::node::{Node, Value};
use crate::spec::report::Report;
use crate::spec::shape::{Shape, object, text};

/// virtio's longest serial number (virtio spec, 5.2.6).
const SERIAL: usize = 20;
/// The disk with k3s' files, which machines have while these are copied.
const OWN: &str = "p1-files";

/// The size of a disk, in GiB.
#[derive(Clone, Copy, Debug)]
pub(in crate::spec) struct Room(pub u32);

impl Room {
    /// 16 TiB, ext4's largest with its usual blocks.
    const MAX: u32 = 16 << 10;
}

impl Shape for Room {
    fn schema() -> Json {
        json!({ "type": "string", "pattern": "^[0-9]+ ?(G|Gi|GiB|T|Ti|TiB)$" })
    }

    fn read(node: &Node, report: &mut Report<'_>) -> Option<Self> {
        const HELP: &str = "Write whole GiB or TiB, from 1GiB to 16TiB: `40GiB`.";
        if let Value::Int(_) = *node.scalar() {
            report.error(node.at, format!("`{}` has no unit", node.shown(report)), HELP);
            return None;
        }
        let gib = parse(text(node, report)?).filter(|gib| (1..=Self::MAX).contains(gib));
        if gib.is_none() {
            report.error(node.at, format!("`{}` is not the size of a disk", node.shown(report)), HELP);
        }
        gib.map(Self)
    }
}

fn parse(text: &str) -> Option<u32> {
    let unit = text.trim_start_matches(|c: char| c.is_ascii_digit());
    let number: u32 = text[..text.len() - unit.len()].parse().ok()?;
    match unit.strip_prefix(' ').unwrap_or(unit) {
        "G" | "Gi" | "GiB" => Some(number),
        "T" | "Ti" | "TiB" => number.checked_mul(1024),
        _ => None,
    }
}

/// What a guest finds a disk by.
#[derive(Clone, Debug)]
pub(in crate::spec) struct Serial(pub String);

impl Shape for Serial {
    fn schema() -> Json {
        json!({ "type": "string", "pattern": "^[A-Za-z0-9][-_A-Za-z0-9]*$", "maxLength": SERIAL })
    }

    fn read(node: &Node, report: &mut Report<'_>) -> Option<Self> {
        let serial = text(node, report)?;
        let rest = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
        let good = serial.len() <= SERIAL
            && serial.starts_with(|c: char| c.is_ascii_alphanumeric())
            && serial.chars().all(rest);
        if !good || serial == OWN {
            let help = format!(
                "Use 1 to {SERIAL} letters, digits, `-` and `_`, a letter or digit first; `{OWN}` is p1's own."
            );
            report.error(node.at, format!("`{}` cannot be a disk's serial", node.shown(report)), help);
            return None;
        }
        Some(Self(serial.to_owned()))
    }
}

object! {
    /// A disk beside a machine's own.
    DiskFile {
        /// Its size, with a unit: 10GiB.
        required size: Room,
        /// What the guest finds it by: /dev/disk/by-id/virtio-SERIAL. Default: disk-1, disk-2, ... by its place.
        optional serial: Serial,
    }
}

/// An entry of `disks`: its size, or both.
#[derive(Clone, Debug)]
pub(in crate::spec) struct DiskEntry {
    size: u32,
    serial: Option<String>,
}

impl DiskEntry {
    /// With the serial that it has by its place, from 1.
    pub fn at(&self, place: usize) -> Disk {
        Disk { serial: self.serial.clone().unwrap_or_else(|| format!("disk-{place}")), size: self.size }
    }
}

impl Shape for DiskEntry {
    fn schema() -> Json {
        json!({ "anyOf": [Room::schema(), DiskFile::schema()] })
    }

    fn read(node: &Node, report: &mut Report<'_>) -> Option<Self> {
        if !matches!(node.value, Value::Map(_)) {
            return Room::read(node, report).map(|size| Self { size: size.0, serial: None });
        }
        let file = DiskFile::read(node, report)?;
        if file.serial.is_bad() {
            return None;
        }
        Some(Self { size: file.size.value()?.0, serial: file.serial.value().map(|s| s.0.clone()) })
    }
}
