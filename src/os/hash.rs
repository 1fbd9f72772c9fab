//! Bytes and their SHA-256 as text, and the checksums that others publish.

use std::io::{self, Read};

use sha2::{Digest, Sha256, Sha512};

/// Bytes as lower-case hex digits, two each.
pub fn hex(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let digits = bytes.iter().flat_map(|byte| [byte >> 4, byte & 15]);
    digits.map(|digit| char::from(DIGITS[usize::from(digit)])).collect()
}

/// The SHA-256 of bytes, in 64 hex digits.
pub fn sha256(bytes: impl AsRef<[u8]>) -> String {
    hex(&Sha256::digest(bytes))
}

/// The SHA-256 of everything that a reader gives, in 64 hex digits.
///
/// # Errors
/// Those of the reader.
pub fn sha256_of(reader: impl Read) -> io::Result<String> {
    digest_of::<Sha256>(reader)
}

fn digest_of<D: Digest>(mut reader: impl Read) -> io::Result<String> {
    let (mut hash, mut buffer) = (D::new(), vec![0; 1 << 18]);
    loop {
        match reader.read(&mut buffer) {
            Ok(0) => return Ok(hex(&hash.finalize())),
            Ok(n) => hash.update(&buffer[..n]),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

/// The first 16 digits of a SHA-256: enough to tell one set of inputs from another, too few to vouch for a file.
pub fn short(bytes: impl AsRef<[u8]>) -> String {
    hex(&Sha256::digest(bytes)[..8])
}

/// The SHA-256 of several parts. Each is hashed with its length before it, so that bytes that move from one part to
/// the next make another sum.
pub fn parts<P: AsRef<[u8]>>(parts: impl IntoIterator<Item = P>) -> [u8; 32] {
    let mut hash = Sha256::new();
    for part in parts {
        hash.update(part.as_ref().len().to_le_bytes());
        hash.update(part);
    }
    hash.finalize().into()
}

/// What a file's checksum is to be, in lower-case hex digits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Sum {
    Sha256(String),
    Sha512(String),
}

impl Sum {
    /// Which of them it is shows in the number of digits.
    pub fn read(digits: &str) -> Option<Self> {
        let lower = || digits.to_ascii_lowercase();
        match digits.len() {
            _ if !digits.bytes().all(|b| b.is_ascii_hexdigit()) => None,
            64 => Some(Self::Sha256(lower())),
            128 => Some(Self::Sha512(lower())),
            _ => None,
        }
    }

    /// That of a file in a list as `sha256sum` and `sha512sum` write it, plainly or with `--tag`.
    pub fn listed(list: &str, file: &str) -> Option<Self> {
        list.lines().find_map(|line| {
            let line = line.trim();
            let tagged = || {
                let (name, sum) = line.split_once(" (")?.1.rsplit_once(") = ")?;
                Some((sum, name))
            };
            let (sum, name) = tagged().or_else(|| line.split_once(char::is_whitespace))?;
            let same = name.trim_start().trim_start_matches('*').trim_start_matches("./") == file;
            if same { Self::read(sum) } else { None }
        })
    }

    /// Without saying of which kind they are.
    pub fn digits(&self) -> &str {
        match self {
            Self::Sha256(digits) | Self::Sha512(digits) => digits,
        }
    }

    /// The sum of this kind that a reader's bytes have.
    ///
    /// # Errors
    /// Those of the reader.
    pub fn of(&self, reader: impl Read) -> io::Result<String> {
        match self {
            Self::Sha256(_) => digest_of::<Sha256>(reader),
            Self::Sha512(_) => digest_of::<Sha512>(reader),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sums_are_those_that_sha256sum_prints() {
        const ABC: &str = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        assert_eq!(hex(&[0, 9, 10, 0xff]), "00090aff");
        assert_eq!(sha256("abc"), ABC);
        assert_eq!(sha256_of(&b"abc"[..]).unwrap(), ABC);
        assert_eq!(short("abc"), ABC[..16]);
        assert_ne!(parts(["ab", "c"]), parts(["a", "bc"]));
        assert_eq!(hex(&parts([""; 0])), sha256(""));
    }

    #[test]
    fn a_files_sum_is_found_in_the_lists_that_vendors_publish() {
        let (a, b, c) = ("a".repeat(64), "b".repeat(128), "C".repeat(64));
        let list = format!(
            "-----BEGIN PGP SIGNED MESSAGE-----\n# x.qcow2: 645988352 bytes\n{a} *noble.img\n{b}  debian.qcow2\n\
             SHA256 (Rocky (9).qcow2) = {c}\nMD5 (md5.img) = 900150983cd24fb0d6963f7d28e17f72\n{a}  ./here.raw\n"
        );
        assert_eq!(Sum::listed(&list, "noble.img"), Some(Sum::Sha256(a.clone())));
        assert_eq!(Sum::listed(&list, "debian.qcow2"), Some(Sum::Sha512(b)));
        assert_eq!(Sum::listed(&list, "Rocky (9).qcow2"), Some(Sum::Sha256("c".repeat(64))));
        assert_eq!(Sum::listed(&list, "here.raw"), Some(Sum::Sha256(a)));
        for other in ["md5.img", "oble.img", "x.qcow2", ""] {
            assert_eq!(Sum::listed(&list, other), None, "{other}");
        }
        let abc = "ddaf35a193617abacc417349ae20413112e6fa4e89a97ea20a9eeee64b55d39a2192992a274fc1a836ba3c23a3feebbd\
                   454d4423643ce80e2a9ac94fa54ca49f";
        assert_eq!(Sum::read(abc).unwrap().of(&b"abc"[..]).unwrap(), abc);
    }
}
