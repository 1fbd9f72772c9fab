//! Files onto a node: whole, verified and in their place, or not there at all.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

use super::session::Task;
use super::{Bound, Error, Output, Session};
use crate::os::hash;
use crate::os::process::quote;

/// Runs on the node. The parameters come in the first line of standard input and the file after
/// it, so that nothing shows in a list of processes. The statuses are [`Session::upload`]'s.
///
/// The file grows beside its place under a name of this upload's own, and the trap takes it away
/// whatever happens, a lost connection included: `cat` sees an end, and the sum is wrong. Only a node that dies
/// leaves a part behind, which the next upload removes.
const RECEIVE: &str = r#"export LC_ALL=C PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
read -r mode sum size nonce dest || exit 90
part=$dest.p1-$nonce
dir=${dest%/*}
mkdir -p "${dir:-/}" || exit 90
umask 077
rm -f "$dest".p1-*
trap 'rm -f "$part"' EXIT
trap 'exit 90' HUP INT TERM PIPE
free=$(df -Pk "${dir:-/}" | { read -r _; read -r _ _ _ free _; echo "$free"; })
case $free in ''|*[!0-9]*) ;; *) [ "$free" -ge "$((size / 1024))" ] || { echo "free $free"; exit 91; } ;; esac
cat >"$part" || exit 92
real=$(sha256sum <"$part") && real=${real%% *} || exit 90
[ "$real" = "$sum" ] || { echo "sum $real"; exit 93; }
chmod "$mode" "$part" && chown 0:0 "$part" && mv -f "$part" "$dest" || exit 90
"#;

static COUNT: AtomicU64 = AtomicU64::new(0);

/// What is sent.
#[derive(Clone, Copy, Debug)]
pub enum Source<'a> {
    /// A file of this host.
    File(&'a Path),
    /// Bytes.
    Bytes(&'a [u8]),
}

impl Source<'_> {
    /// Opens it from its start; its size in bytes.
    fn open(&self) -> io::Result<(Box<dyn Read + '_>, u64)> {
        match self {
            Self::Bytes(bytes) => Ok((Box::new(*bytes), bytes.len() as u64)),
            Self::File(path) => {
                let file = File::open(path)?;
                let size = file.metadata()?.len();
                Ok((Box::new(file), size))
            }
        }
    }

    fn sha256(&self) -> io::Result<String> {
        hash::sha256_of(self.open()?.0)
    }
}

/// A file to be put on a node, owned by root.
#[derive(Clone, Copy, Debug)]
pub struct Upload<'a> {
    pub source: Source<'a>,
    /// Its absolute path there; missing directories are made.
    pub dest: &'a str,
    /// Its permissions, e.g. `0o600`.
    pub mode: u32,
    /// The SHA-256 it must have, in lower-case hex; computed here if it is not known.
    pub sha256: Option<&'a str>,
}

impl Session {
    /// Puts a file on the node: written beside its place, its SHA-256 checked there, given its mode
    /// and owner, then moved into place. `progress` is told the bytes sent so far.
    ///
    /// # Errors
    /// As [`Session::exec`], [`Error::NoSudo`], [`Error::DiskFull`] (checked before, and recognised
    /// when it happens), [`Error::Corrupt`], [`Error::Source`]. After each of them the old file, if
    /// any, is still in place.
    pub fn upload(
        &mut self,
        upload: &Upload<'_>,
        bound: impl Into<Bound>,
        progress: &mut dyn FnMut(u64),
    ) -> Result<Output, Error> {
        let node = self.endpoint.node.clone();
        let dest = upload.dest.to_owned();
        if !dest.starts_with('/')
            || dest.ends_with('/')
            || dest.contains(['\n', '\0', '\\'])
            || dest.trim() != dest
        {
            return Err(Error::Invalid { what: "the path", value: dest });
        }
        let source = |source| Error::Source { node: node.clone(), source };
        let sum = match upload.sha256 {
            Some(sum) => sum.to_owned(),
            None => upload.source.sha256().map_err(source)?,
        };
        let (data, size) = upload.source.open().map_err(source)?;
        let nonce = nonce();
        let header = format!("{:o} {sum} {size} {nonce} {dest}\n", upload.mode);
        let skip = header.len() as u64;
        let output = self.run(Task {
            what: &format!("the upload of {dest}"),
            command: &format!("sh -c {}", quote(RECEIVE)),
            root: true,
            input: &mut header.as_bytes().chain(data),
            bound: bound.into(),
            on_output: &mut |_| {},
            on_sent: &mut |sent| progress(sent.saturating_sub(skip)),
        })?;
        let output = self.check_sudo(true, output)?;
        let text = output.text();
        let word = |name: &str| text.lines().find_map(|l| l.strip_prefix(name)).map(str::trim);
        match output.status {
            91 => {
                let free = word("free ").and_then(|kib| kib.parse::<u64>().ok()).map(|kib| kib * 1024);
                Err(Error::DiskFull { node, path: dest, needed: size, free })
            }
            92 if ["No space left", "quota exceeded"].iter().any(|words| text.contains(words)) => {
                Err(Error::DiskFull { node, path: dest, needed: size, free: None })
            }
            93 => {
                let actual = word("sum ").unwrap_or_default().to_owned();
                Err(Error::Corrupt { node, path: dest, expected: sum, actual })
            }
            _ => output.ok(),
        }
    }
}

/// A name that nothing else of ours has.
pub(super) fn nonce() -> String {
    let time = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    let seed = format!("{} {} {count}", std::process::id(), time.as_nanos());
    hash::short(seed)
}
