//! A disk for cloud-init's data source NoCloud (cloudinit.readthedocs.io, "NoCloud"): a FAT file system with the label
//! CIDATA, and in it `meta-data` and `user-data`.
//!
//! Written here and not by a program of the host's: it is 1 MiB with two files, and mkfs.fat with mtools, or one of the
//! programs that make an ISO, would be needed for nothing else.

const SECTOR: usize = 512;
const SECTORS: usize = 2048;
/// Of one FAT: 12 bits for each cluster, which is one sector.
const FAT: usize = 6;
const ROOT_ENTRIES: usize = 64;
const DATA: usize = 1 + 2 * FAT + ROOT_ENTRIES * 32 / SECTOR;
/// The most that fits, with room for the rest of a sector at each file's end.
const MOST: usize = (SECTORS - DATA - 2) * SECTOR;

/// The disk's bytes; none if there is more than fits.
pub(super) fn disk(files: &[(&str, &str)]) -> Option<Vec<u8>> {
    if files.iter().map(|(_, text)| text.len()).sum::<usize>() > MOST {
        return None;
    }
    let mut disk = vec![0; SECTORS * SECTOR];
    disk[..3].copy_from_slice(&[0xeb, 0x3c, 0x90]);
    disk[3..11].copy_from_slice(b"MSWIN4.1");
    let word = |disk: &mut Vec<u8>, at: usize, value: usize| {
        disk[at..at + 2].copy_from_slice(&(value as u16).to_le_bytes());
    };
    word(&mut disk, 11, SECTOR);
    disk[13] = 1; // sectors of a cluster
    word(&mut disk, 14, 1); // sectors before the first FAT
    disk[16] = 2; // FATs
    word(&mut disk, 17, ROOT_ENTRIES);
    word(&mut disk, 19, SECTORS);
    disk[21] = 0xf8; // a fixed disk
    word(&mut disk, 22, FAT);
    word(&mut disk, 24, 32); // sectors of a track, and heads: not in use
    word(&mut disk, 26, 64);
    disk[36] = 0x80;
    disk[38] = 0x29; // what follows is there: serial number, label, type
    disk[39..43].copy_from_slice(b"p1p1");
    disk[43..54].copy_from_slice(LABEL);
    disk[54..62].copy_from_slice(b"FAT12   ");
    word(&mut disk, 510, 0xaa55);

    let mut fat = vec![0xff8, 0xfff];
    let mut root = vec![entry(LABEL, 0x08, 0, 0)];
    for (at, (name, text)) in files.iter().enumerate() {
        let first = fat.len();
        let clusters = text.len().div_ceil(SECTOR);
        fat.extend((1..clusters).map(|n| first + n));
        fat.extend((clusters > 0).then_some(0xfff));
        // What a system without long names would see: told apart by a digit, as no such system reads this.
        let short: [u8; 11] = *b"CIDATA~0   ";
        let short = short.map(|b| if b == b'0' { b'1' + at as u8 } else { b });
        root.push(long(name, &short));
        let start = if clusters > 0 { first } else { 0 };
        root.push(entry(&short, 0x20, start, text.len()));
        let from = (DATA + first - 2) * SECTOR;
        disk[from..from + text.len()].copy_from_slice(text.as_bytes());
    }
    for copy in 0..2 {
        let table = &mut disk[(1 + copy * FAT) * SECTOR..][..FAT * SECTOR];
        for (cluster, value) in fat.iter().enumerate() {
            let (at, odd) = (cluster * 3 / 2, cluster % 2 == 1);
            let bits = (if odd { value << 4 } else { *value }) as u16;
            table[at] |= bits as u8;
            table[at + 1] |= (bits >> 8) as u8;
        }
    }
    let at = (1 + 2 * FAT) * SECTOR;
    let root = root.concat();
    disk[at..at + root.len()].copy_from_slice(&root);
    Some(disk)
}

const LABEL: &[u8; 11] = b"CIDATA     ";

fn entry(name: &[u8; 11], kind: u8, cluster: usize, size: usize) -> [u8; 32] {
    let mut entry = [0; 32];
    entry[..11].copy_from_slice(name);
    entry[11] = kind;
    // 1980-01-01: the same files give the same disk.
    entry[24] = 0x21;
    entry[26..28].copy_from_slice(&(cluster as u16).to_le_bytes());
    entry[28..].copy_from_slice(&(size as u32).to_le_bytes());
    entry
}

/// The one entry before a file's own that has its name, of 13 characters at most.
fn long(name: &str, short: &[u8; 11]) -> [u8; 32] {
    let sum = short.iter().fold(0u8, |sum, byte| sum.rotate_right(1).wrapping_add(*byte));
    let mut letters = [0xffff_u16; 13];
    for (place, letter) in letters.iter_mut().zip(name.encode_utf16().chain([0])) {
        *place = letter;
    }
    let bytes: Vec<u8> = letters.iter().flat_map(|l| l.to_le_bytes()).collect();
    let mut entry = [0; 32];
    entry[0] = 0x41; // the last one, and the first
    entry[1..11].copy_from_slice(&bytes[..10]);
    entry[11] = 0x0f;
    entry[13] = sum;
    entry[14..26].copy_from_slice(&bytes[10..22]);
    entry[28..].copy_from_slice(&bytes[22..]);
    entry
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::os::hash;

    #[test]
    fn the_disk_is_the_one_that_was_checked() {
        let long = "0123456789abcdef\n".repeat(1000);
        let made = disk(&[("meta-data", "instance-id: one\n"), ("user-data", &long)]).unwrap();
        // As fsck.fat, blkid and mtools took it, and as cloud-init reads it in tests/box_build.rs.
        insta::assert_snapshot!(hash::sha256(&made), @"400a3615391f825f6555b2347f45120a9642d9869fdb0a1ce82eeb3a9f762dbc");
        assert_eq!(made.len(), 1 << 20);
        assert!(disk(&[("user-data", &"x".repeat(1 << 20))]).is_none());
    }
}
