//! Files and folders from and to a node, as an archive through one command's standard input and output.

use std::io::Read;

use super::session::Task;
use super::upload::nonce;
use super::{Bound, Error, Output, Session};
use crate::os::process::quote;

/// Where something is on a node.
#[derive(Clone, Copy, Debug)]
pub struct Place<'a> {
    /// From `/`, or from the user's home.
    pub path: &'a str,
    /// As root rather than as the login user.
    pub root: bool,
}

/// What both have in common: a relative path starts at the home of whoever works there.
const BEGIN: &str = r#"export LC_ALL=C
fail() { echo "p1: $*"; exit 90; }
if [ "$(id -u)" = 0 ]; then cd ~root; else cd; fi || fail "there is no home"
"#;

/// Runs on the node. Its parameters come first on its standard input, so that nothing of them shows in a list of
/// processes, and the archive (`os/tree.rs`) after them. It grows beside its place, under a name of its own that the trap takes
/// away whatever happens, a lost connection included.
const TAKE: &str = r#"IFS= read -r nonce && IFS= read -r name && IFS= read -r dest || exit 90
case $dest in '') dest=. ;; esac
if [ -d "$dest" ]; then target=${dest%/}/$name
else case $dest in */) fail "there is no folder $dest" ;; *) target=$dest ;; esac; fi
case $target in /*) ;; *) target=$PWD/$target ;; esac
parent=${target%/*}
[ -d "${parent:-/}" ] || fail "there is no folder $parent"
part=$parent/.${target##*/}.p1-$nonce
trap 'rm -rf "$part"' EXIT
trap 'exit 90' HUP INT TERM PIPE
[ -w "${parent:-/}" ] || fail "$parent cannot be written to: permission denied"
mkdir -m 700 "$part" || exit 90
said=$(tar -xomf - -C "$part" 2>&1) || fail "$said"
[ -e "$part/whole" ] || fail "the archive was cut off"
new=$part/new
if [ ! -e "$new" ] && [ ! -L "$new" ]; then fail "nothing was copied"; fi
if [ -d "$target" ] && [ -d "$new" ] && [ ! -L "$new" ]; then
    cd "$new" || exit 90
    find . -type d -exec sh -c 'for d do mkdir -p "$0/$d" || exit 1; done' "$target" {} + || exit 90
    find . ! -type d -exec sh -c 'for f do mv -fT "$f" "$0/$f" || exit 1; done' "$target" {} + || exit 90
elif [ -d "$target" ]; then fail "$target is a folder, and what is copied is a file"
elif [ -d "$new" ] && [ ! -L "$new" ] && [ -e "$target" ]; then fail "$target is a file, and what is copied is a folder"
else mv -fT "$new" "$target" || exit 90; fi
echo "p1: $target"
"#;

/// Runs on the node: a line that says what comes, then tar's archive. What tar has to say of errors comes after it.
const GIVE: &str = r#"IFS= read -r path || exit 90
[ -e "$path" ] || fail "there is no $path"
if [ -d "$path" ]; then
    cd "$path" || fail "$path cannot be entered"
    echo folder
    set -- .
else
    [ -r "$path" ] || fail "$path cannot be read: permission denied"
    echo "file $(wc -c <"$path")"
    case $path in */*) cd "${path%/*}/" || exit 90 ;; esac
    set -- "./${path##*/}"
fi
said=$(mktemp) || exit 90
trap 'rm -f "$said"' EXIT
tar -chf - --hard-dereference "$@" 2>"$said"
status=$?
echo
sed 's/^/p1: /' "$said"
# What grows while it is read is as it was when it began; what became shorter is nothing whole.
if [ $status = 1 ] && ! grep -q shrank "$said"; then exit 0; fi
exit $status
"#;

/// What a node begins to give.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Given {
    /// A file of so many bytes.
    File(u64),
    /// A folder.
    Folder,
}

impl Session {
    /// Puts what `archive` holds to where `to` says, or into it if that is a folder, and calls it `name` there. Where it
    /// is, is the answer. `on_sent` is told the bytes sent so far.
    ///
    /// # Errors
    /// As [`Session::exec`], [`Error::NoSudo`], [`Error::Source`], [`Error::Invalid`], [`Error::Copy`]. After each of
    /// them no file is there in part.
    pub fn give(
        &mut self,
        to: Place<'_>,
        name: &str,
        archive: &mut dyn Read,
        bound: Bound,
        on_sent: &mut dyn FnMut(u64),
    ) -> Result<String, Error> {
        let header = format!("{}\n{}\n{}\n", nonce(), line(name)?, line(to.path)?);
        let skip = header.len() as u64;
        let output = self.pipe(
            &format!("the copy to {}", to.path),
            (TAKE, to.root),
            &mut header.as_bytes().chain(archive),
            bound,
            &mut |_| {},
            &mut |sent| on_sent(sent.saturating_sub(skip)),
        )?;
        let place = said(&output.text()).pop();
        Ok(place.unwrap_or_else(|| to.path.to_owned()))
    }

    /// Hands over what is at `from`, as an archive of the node's own tar, in pieces. `on_begin` is told what it is. What the
    /// node has to say of it, such as that a file changed meanwhile, is the answer.
    ///
    /// # Errors
    /// As [`Session::give`]; then what was handed over is not whole.
    pub fn take(
        &mut self,
        from: Place<'_>,
        bound: Bound,
        on_begin: &mut dyn FnMut(Given),
        on_bytes: &mut dyn FnMut(&[u8]),
    ) -> Result<Vec<String>, Error> {
        let header = format!("{}\n", line(from.path)?);
        let mut first: Option<Vec<u8>> = Some(Vec::new());
        let mut on_output = |bytes: &[u8]| {
            let Some(begin) = &mut first else { return on_bytes(bytes) };
            begin.extend_from_slice(bytes);
            let Some(end) = begin.iter().position(|b| *b == b'\n') else { return };
            let text = String::from_utf8_lossy(&begin[..end]).into_owned();
            let given = match text.strip_prefix("file ").map(|n| n.trim().parse()) {
                Some(Ok(size)) => Given::File(size),
                _ if text == "folder" => Given::Folder,
                // Its last words: there is nothing to come.
                _ => return,
            };
            on_begin(given);
            let rest = first.take().unwrap_or_default();
            on_bytes(&rest[end + 1..]);
        };
        let what = format!("the copy of {}", from.path);
        let output =
            self.pipe(&what, (GIVE, from.root), &mut header.as_bytes(), bound, &mut on_output, &mut |_| {})?;
        Ok(said(&output.text()))
    }

    /// A script of ours with a stream on its standard input, and what it writes as it comes.
    fn pipe(
        &mut self,
        what: &str,
        (script, root): (&str, bool),
        input: &mut dyn Read,
        bound: Bound,
        on_output: &mut dyn FnMut(&[u8]),
        on_sent: &mut dyn FnMut(u64),
    ) -> Result<Output, Error> {
        let command = format!("sh -c {}", quote(&format!("{BEGIN}{script}")));
        let output = self.run(Task { what, command: &command, root, input, bound, on_output, on_sent })?;
        let output = self.check_sudo(root, output)?;
        if output.status == 0 {
            return Ok(output);
        }
        // Of an archive that came before them, nothing is told.
        match said(&output.text()) {
            lines if lines.is_empty() => output.ok(),
            lines => Err(Error::Copy { node: output.node, reason: lines.join("; ") }),
        }
    }
}

/// The last lines of what a script of ours wrote that are its own.
fn said(text: &str) -> Vec<String> {
    let own = |line: &str| line.strip_prefix("p1: ").map(str::to_owned);
    let mut lines: Vec<String> = text.lines().rev().map_while(own).collect();
    lines.reverse();
    lines
}

/// A parameter of a script, which has a line for each.
fn line(text: &str) -> Result<&str, Error> {
    match text.contains(['\n', '\0']) {
        true => Err(Error::Invalid { what: "the path", value: text.to_owned() }),
        false => Ok(text),
    }
}
