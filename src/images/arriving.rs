//! Blobs as a node sends them: a line with the digits and the length, then the bytes (`k3s::images::send_script`).

use std::collections::{BTreeSet, VecDeque};

use super::{Digest, Error, Images, Incoming};

/// The longest line.
const LINE: usize = 100;

/// What comes of what was asked for, in that order.
#[derive(Debug)]
pub struct Arriving<'a> {
    images: &'a Images,
    asked: VecDeque<(Digest, u64)>,
    line: Vec<u8>,
    /// The one whose bytes come now, and how many are still to come.
    now: Option<(Incoming, u64)>,
    /// What the node does not have, or what is not what it has to be.
    pub absent: BTreeSet<Digest>,
    /// Of all that came.
    pub bytes: u64,
}

impl<'a> Arriving<'a> {
    /// Each with the most bytes that it may have.
    pub fn new(images: &'a Images, asked: impl IntoIterator<Item = (Digest, u64)>) -> Self {
        let asked = asked.into_iter().collect();
        Self { images, asked, line: Vec::new(), now: None, absent: BTreeSet::new(), bytes: 0 }
    }

    /// More of what the node says.
    pub fn push(&mut self, mut bytes: &[u8]) -> Result<(), Error> {
        while !bytes.is_empty() {
            if let Some((incoming, left)) = &mut self.now {
                let n = bytes.len().min(usize::try_from(*left).unwrap_or(usize::MAX));
                incoming.push(&bytes[..n])?;
                (*left, self.bytes, bytes) = (*left - n as u64, self.bytes + n as u64, &bytes[n..]);
                self.end_of_blob()?;
                continue;
            }
            let end = bytes.iter().position(|b| *b == b'\n');
            self.line.extend_from_slice(&bytes[..end.unwrap_or(bytes.len())]);
            if self.line.len() > LINE {
                return Err(Error::Nonsense);
            }
            let Some(end) = end else { return Ok(()) };
            bytes = &bytes[end + 1..];
            self.begin()?;
        }
        Ok(())
    }

    /// That was all. What of it did not come is an error.
    pub fn finish(self) -> Result<(BTreeSet<Digest>, u64), Error> {
        match self.now.is_none() && self.line.is_empty() && self.asked.is_empty() {
            true => Ok((self.absent, self.bytes)),
            false => Err(Error::Nonsense),
        }
    }

    fn begin(&mut self) -> Result<(), Error> {
        let line = String::from_utf8(std::mem::take(&mut self.line)).map_err(|_| Error::Nonsense)?;
        let Some((digits, len)) = line.split_once(' ') else { return Err(Error::Nonsense) };
        let Some((digest, most)) = self.asked.pop_front() else { return Err(Error::Nonsense) };
        if digits != digest.hex() {
            return Err(Error::Other { digest });
        }
        if len == "-" {
            self.absent.insert(digest);
            return Ok(());
        }
        let len: u64 = len.parse().map_err(|_| Error::Other { digest: digest.clone() })?;
        if len > most {
            return Err(Error::TooLarge { most });
        }
        self.now = Some((self.images.receive(Some(digest), len)?, len));
        self.end_of_blob()
    }

    fn end_of_blob(&mut self) -> Result<(), Error> {
        let Some((incoming, _)) = self.now.take_if(|(_, left)| *left == 0) else { return Ok(()) };
        match incoming.finish() {
            Err(Error::Other { digest }) => {
                self.absent.insert(digest);
                Ok(())
            }
            other => other.map(drop),
        }
    }
}
