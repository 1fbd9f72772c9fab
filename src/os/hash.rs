//! Bytes and their SHA-256 as text.

use std::io::{self, Read};

use sha2::{Digest, Sha256};

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
pub fn sha256_of(mut reader: impl Read) -> io::Result<String> {
    let (mut hash, mut buffer) = (Sha256::new(), vec![0; 1 << 18]);
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
}
