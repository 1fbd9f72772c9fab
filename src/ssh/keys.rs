//! Keys: the cluster's own pair, and who may log in to a node.

use std::fs;
use std::path::Path;
use std::time::Duration;

use super::{Error, Session};
use crate::os::Cancel;
use crate::os::files::{self, At};
use crate::os::process::{self, Cmd, quote};

/// Making a key is a matter of milliseconds; a machine without entropy may take longer.
const KEYGEN: Duration = Duration::from_secs(30);

/// An ed25519 key pair at `path` (0600) and `path.pub`, made by ssh-keygen unless it is there.
/// Returns the public key's line, without its end.
///
/// # Errors
/// [`Error::Process`] if there is no ssh-keygen, or if `path` holds no usable private key.
pub fn generate_key(path: &Path, comment: &str, cancel: &Cancel) -> Result<String, Error> {
    let mut public = path.as_os_str().to_owned();
    public.push(".pub");
    let public = std::path::PathBuf::from(public);
    let keygen = Cmd::new("ssh-keygen");
    if path.exists() {
        if let Some(line) = files::read_if_there(&public)? {
            return Ok(line.trim().to_owned());
        }
        // A crash between the two files; the one follows from the other.
        let derived = process::run(&keygen.arg("-y").arg("-f").arg(path), KEYGEN, cancel)?.ok()?.stdout;
        files::write(&public, derived.as_bytes(), 0o644)?;
        return Ok(derived.trim().to_owned());
    }
    // In a directory of its own, then moved: the private key never is there by half.
    let parent = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let dir = tempfile::tempdir_in(parent).at("create a directory in", parent)?;
    let new = dir.path().join("key");
    let keygen = keygen.args(["-q", "-t", "ed25519", "-N", "", "-C", comment]).arg("-f").arg(&new);
    process::run(&keygen, KEYGEN, cancel)?.ok()?;
    let line = fs::read_to_string(new.with_extension("pub")).at("read", &public)?;
    fs::rename(new.with_extension("pub"), &public).at("write", &public)?;
    fs::rename(&new, path).at("write", path)?;
    Ok(line.trim().to_owned())
}

/// What is wrong with a private key file, if it is damaged; for after it was refused, since libssh2 takes a key
/// that it cannot read for one that the node refuses.
pub(super) fn damage(path: &Path) -> Option<&'static str> {
    use base64::Engine as _;
    let text = fs::read_to_string(path).ok()?;
    let mut lines = text.trim().lines();
    let kind = lines.next().and_then(|l| l.strip_prefix("-----BEGIN "));
    let Some(kind) = kind.and_then(|k| k.strip_suffix(" PRIVATE KEY-----")) else {
        return Some("it is not a private key");
    };
    let body: Vec<&str> = lines.filter(|l| !l.contains(": ")).collect();
    let Some((end, body)) = body.split_last() else { return Some("it is cut off") };
    if *end != format!("-----END {kind} PRIVATE KEY-----") {
        return Some("it is cut off");
    }
    let Ok(bytes) = base64::engine::general_purpose::STANDARD.decode(body.concat().replace(' ', "")) else {
        return Some("it is damaged");
    };
    let whole = kind != "OPENSSH" || is_openssh(&bytes).is_some();
    (!whole).then_some("it is damaged")
}

/// OpenSSH's own form (openssh, `PROTOCOL.key`): the public half is in it twice, and so is a number by which
/// damage shows.
fn is_openssh(bytes: &[u8]) -> Option<()> {
    fn field<'b>(rest: &mut &'b [u8]) -> Option<&'b [u8]> {
        let (length, tail) = rest.split_first_chunk::<4>()?;
        let (field, tail) = tail.split_at_checked(u32::from_be_bytes(*length) as usize)?;
        *rest = tail;
        Some(field)
    }
    let mut rest = bytes.strip_prefix(b"openssh-key-v1\0")?;
    let cipher = field(&mut rest)?;
    let (_, _) = (field(&mut rest)?, field(&mut rest)?);
    let (count, mut rest) = rest.split_first_chunk::<4>()?;
    let (public, mut private) = (field(&mut rest)?, field(&mut rest)?);
    if cipher != b"none" {
        return Some(());
    }
    let checked = *count == [0, 0, 0, 1] && private.len() >= 8 && private[..4] == private[4..8];
    private = private.get(8..).filter(|_| checked)?;
    let mut public = public;
    let (kind, also) = (field(&mut private)?, field(&mut public)?);
    if kind != also {
        return None;
    }
    // For others than ed25519 that has to do.
    if kind != b"ssh-ed25519" {
        return Some(());
    }
    let (mine, theirs, pair) = (field(&mut private)?, field(&mut public)?, field(&mut private)?);
    (mine == theirs && pair.len() == 64 && pair.ends_with(mine)).then_some(())
}

/// Writes what comes on standard input to authorized_keys so that it is whole at every instant.
const REPLACE: &str =
    "cat >authorized_keys.p1 && chmod 600 authorized_keys.p1 && mv authorized_keys.p1 authorized_keys";
const HOME: &str = "umask 077\nhome=~\n";
/// In the folder of the keys of `home`. What was not there before is noted in the file that was made for the key, so that it
/// can be taken away with it: a comment goes where the keys go.
const ENTER: &str = "made=; [ -e \"$home/.ssh/authorized_keys\" ] || made='# p1 made this file'\n\
    [ -d \"$home/.ssh\" ] || made='# p1 made this file and its folder'\n\
    mkdir -p \"$home/.ssh\" && cd \"$home/.ssh\" && touch authorized_keys || exit 1\n\
    [ -z \"$made\" ] || printf '%s\\n' \"$made\" >authorized_keys || exit 1\n";

impl Session {
    /// Lets the holder of `public` (a line of authorized_keys) log in, too.
    pub(super) fn add_key(&mut self, public: &str, bound: Duration) -> Result<(), Error> {
        let line = quote(line(public)?);
        let script = format!(
            "{HOME}{ENTER}grep -qxF -e {line} authorized_keys && exit\n\
             {{ cat authorized_keys; echo; printf '%s\\n' {line}; }} | grep . | {{ {REPLACE}; }}"
        );
        self.script("adding a login key", &script, false, bound, &mut |_| {})?.ok().map(drop)
    }

    /// Lets the holder of `public` log in as `user` and as root, by one command of root's.
    pub(super) fn add_keys_of(&mut self, user: &str, public: &str, bound: Duration) -> Result<(), Error> {
        let line = quote(line(public)?);
        let user = quote(user);
        let script = format!(
            "umask 077\nfor home in \"$(getent passwd {user} | cut -d: -f6)\" ~root; do\n\
             {ENTER}grep -qxF -e {line} authorized_keys && continue\n\
             {{ cat authorized_keys; echo; printf '%s\\n' {line}; }} | grep . | {{ {REPLACE}; }} &&\n\
             chown --reference=\"$home\" . authorized_keys || exit 1\ndone"
        );
        self.script("adding login keys", &script, true, bound, &mut |_| {})?.ok().map(drop)
    }

    /// [`Session::remove_keys`] by root, from the keys of `user`.
    pub(super) fn remove_keys_of(
        &mut self,
        user: &str,
        public: &str,
        remove: &[&str],
        bound: Duration,
    ) -> Result<(), Error> {
        let mine = quote(line(public)?);
        let patterns: Vec<String> =
            remove.iter().map(|p| Ok(quote(line(p)?))).collect::<Result<_, Error>>()?;
        if patterns.is_empty() {
            return Ok(());
        }
        let script = format!(
            "home=$(getent passwd {user} | cut -d: -f6) && cd \"$home/.ssh\" || exit 1\numask 077\n\
             {{ grep -vF -e {patterns} authorized_keys | grep -vxF -e {mine}; printf '%s\\n' {mine}; }} >authorized_keys.p1\n\
             chown --reference=authorized_keys authorized_keys.p1 && chmod 600 authorized_keys.p1 && \
             mv authorized_keys.p1 authorized_keys",
            user = quote(user),
            patterns = patterns.join(" -e "),
        );
        self.script("removing login keys", &script, true, bound, &mut |_| {})?.ok().map(drop)
    }

    /// Takes the key of `public` away from `user` and from root, and file and folder where they were made for it and hold
    /// nothing else.
    pub(super) fn remove_key(&mut self, user: &str, public: &str, bound: Duration) -> Result<(), Error> {
        let script = format!(
            "line={line} user={user}\numask 077\n\
             for home in \"$(getent passwd \"$user\" | cut -d: -f6)\" ~root; do\n\
             file=$home/.ssh/authorized_keys\n\
             [ -f \"$file\" ] || continue\n\
             rest=$(grep -vxF -e \"$line\" \"$file\" | grep -v '^# p1 made this file' | grep . | head -n 1)\n\
             if [ -n \"$rest\" ] || ! grep -q '^# p1 made this file' \"$file\"; then\n\
             grep -vxF -e \"$line\" \"$file\" >\"$file.p1\"\n\
             # Another cluster's key is still to go: then the note serves that one.\n\
             grep -q ' p1 [^ ]*$' \"$file.p1\" || sed -i '/^# p1 made this file/d' \"$file.p1\" || exit 1\n\
             chown --reference=\"$file\" \"$file.p1\" 2>/dev/null || chown \"$(stat -c %u:%g \"$file\")\" \"$file.p1\" || exit 1\n\
             chmod \"$(stat -c %a \"$file\")\" \"$file.p1\" && mv -f \"$file.p1\" \"$file\" || exit 1\n\
             else\n\
             whole=$(grep -c '^# p1 made this file and its folder' \"$file\")\n\
             rm -f \"$file\" || exit 1\n\
             [ \"$whole\" = 0 ] || rmdir \"$home/.ssh\" 2>/dev/null\n\
             fi\ndone\n:",
            line = quote(line(public)?),
            user = quote(user),
        );
        self.script("removing the cluster's key", &script, true, bound, &mut |_| {})?.ok().map(drop)
    }

    /// Takes the lines that hold one of `remove` away; `public` stays in any case.
    pub(super) fn remove_keys(
        &mut self,
        public: &str,
        remove: &[&str],
        bound: Duration,
    ) -> Result<(), Error> {
        let mine = quote(line(public)?);
        let mut patterns = String::new();
        for piece in remove {
            patterns.push_str(" -e ");
            patterns.push_str(&quote(line(piece)?));
        }
        if patterns.is_empty() {
            return Ok(());
        }
        let script = format!(
            "{HOME}{ENTER}{{ grep -vF {patterns} authorized_keys | grep -vxF -e {mine}; printf '%s\\n' {mine}; }} | {{ {REPLACE}; }}"
        );
        self.script("removing login keys", &script, false, bound, &mut |_| {})?.ok().map(drop)
    }
}

fn line(text: &str) -> Result<&str, Error> {
    let text = text.trim();
    if text.is_empty() || text.contains(['\n', '\r', '\0']) {
        return Err(Error::Invalid { what: "the key", value: text.to_owned() });
    }
    Ok(text)
}
