//! A bootable disk image from a folder, without mounting anything.
//!
//! Loop devices need privileges that containers lack, and partition nodes need udev. mke2fs fills a
//! file system from a folder by itself, and GRUB's two parts can be written where they belong: the
//! boot sector into the first 440 bytes, the core image behind it. That is all that
//! `grub-bios-setup` does on an MBR disk whose core image lies right after the boot sector: the
//! sector's default for "where is the core" is 1, and grub-mkimage has put the core's length into
//! its first sector (GRUB `grub-core/boot/i386/pc/{boot,diskboot}.S`, `util/mkimage.c`).

use std::fs::{self, OpenOptions};
use std::io::{Seek, SeekFrom, Write};
use std::path::Path;

use super::error::Error;
use crate::os::files::At;

/// Where the only partition begins. The gap before it holds the boot loader.
pub(super) const START: u64 = 1024 * 1024;
const SECTOR: u64 = 512;
/// Bytes of the boot sector before the disk signature and the partition table.
const CODE: usize = 440;

/// The boot sector's code; Debian package grub-pc-bin.
pub(super) const BOOT_IMG: &str = "/usr/lib/grub/i386-pc/boot.img";

/// Makes an empty disk of `size` bytes with one active Linux partition from [`START`] to the end.
pub(super) fn create(path: &Path, size: u64, signature: [u8; 4]) -> Result<(), Error> {
    let mut file =
        OpenOptions::new().write(true).create(true).truncate(true).open(path).at("create", path)?;
    file.set_len(size).at("create", path)?;
    file.write_all(&boot_record(size, signature)).at("write", path)?;
    Ok(())
}

/// A master boot record without code.
fn boot_record(size: u64, signature: [u8; 4]) -> [u8; 512] {
    let mut sector = [0; 512];
    sector[440..444].copy_from_slice(&signature);
    let sectors = u32::try_from((size - START) / SECTOR).unwrap_or(u32::MAX);
    let entry = &mut sector[446..462];
    entry[0] = 0x80; // active
    entry[1..4].copy_from_slice(&[0xfe, 0xff, 0xff]); // cylinders, heads, sectors: not in use
    entry[4] = 0x83; // Linux
    entry[5..8].copy_from_slice(&[0xfe, 0xff, 0xff]);
    entry[8..12].copy_from_slice(&((START / SECTOR) as u32).to_le_bytes());
    entry[12..16].copy_from_slice(&sectors.to_le_bytes());
    sector[510..].copy_from_slice(&[0x55, 0xaa]);
    sector
}

/// Writes GRUB into the gap before the partition.
pub(super) fn install_grub(disk: &Path, boot_img: &Path, core_img: &Path) -> Result<(), Error> {
    let boot = fs::read(boot_img).at("read", boot_img)?;
    let core = fs::read(core_img).at("read", core_img)?;
    if boot.len() < CODE || core.len() as u64 > START - SECTOR {
        return Err(Error::Bootloader { bytes: core.len() });
    }
    let mut file = OpenOptions::new().write(true).open(disk).at("write", disk)?;
    file.write_all(&boot[..CODE]).at("write", disk)?;
    file.seek(SeekFrom::Start(SECTOR)).at("write", disk)?;
    file.write_all(&core).at("write", disk)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_partition_table_is_one_active_partition_to_the_end() {
        let record = boot_record(10u64 << 30, *b"p1p1");
        assert_eq!(&record[510..], [0x55, 0xaa]);
        assert_eq!(&record[440..444], b"p1p1");
        assert_eq!(record[446], 0x80);
        assert_eq!(u32::from_le_bytes(record[454..458].try_into().unwrap()), 2048);
        assert_eq!(u32::from_le_bytes(record[458..462].try_into().unwrap()), (10 * 1024 - 1) * 2048);
        assert!(record[462..510].iter().all(|b| *b == 0), "no second partition");
    }

    #[test]
    fn grub_goes_around_the_partition_table_and_must_fit() {
        let dir = tempfile::tempdir().unwrap();
        let (disk, boot, core) = (dir.path().join("d"), dir.path().join("b"), dir.path().join("c"));
        create(&disk, 2 * START, *b"p1p1").unwrap();
        fs::write(&boot, [1; 512]).unwrap();
        fs::write(&core, [2; 1000]).unwrap();
        install_grub(&disk, &boot, &core).unwrap();
        let bytes = fs::read(&disk).unwrap();
        assert_eq!(bytes.len() as u64, 2 * START);
        assert!(bytes[..440].iter().all(|b| *b == 1));
        assert_eq!(&bytes[440..444], b"p1p1");
        assert_eq!(bytes[510..512], [0x55, 0xaa]);
        assert!(bytes[512..1512].iter().all(|b| *b == 2) && bytes[1512] == 0);

        fs::write(&core, vec![2; START as usize]).unwrap();
        assert!(matches!(install_grub(&disk, &boot, &core), Err(Error::Bootloader { .. })));
    }
}
