//! Shell scripts on a node, piped to `sh -s`, so that nothing of them shows in a list of processes.

use std::time::{Duration, Instant};

use super::output::tail;
use super::session::Task;
use super::upload::nonce;
use super::{Bound, Error, Output, Root, Session};
use crate::os::lines::Lines;
use crate::os::process::quote;

/// Messages that can be recognised, and all the places where programs are: sudo's `secure_path` on
/// Red Hat's systems leaves `/usr/local/bin` out, and Debian's users lack `/usr/sbin`.
const PRELUDE: &str = "export LC_ALL=C PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin\n";

/// What may come with a file beside its bytes, such as an error.
const SAID: u64 = 64 << 10;

/// `script` so that a shell runs all of it or, if the connection breaks while it is sent, nothing:
/// a compound command is read to its end first. Nor can a program within eat the rest of it. One
/// pipe for both streams keeps their order, which sshd's two would lose.
pub(super) fn whole(script: &str) -> String {
    format!("{PRELUDE}{{\n{script}\n}} </dev/null 2>&1\n")
}

impl Session {
    /// Runs `script` by `sh`, as root if `root`, otherwise as the login user, with an empty standard
    /// input. `what` says for messages what it does. Each complete line of output goes to `on_line`.
    /// When the total bound passes, `timeout` ends the script on the node, too.
    ///
    /// # Errors
    /// As [`Session::exec`], and [`Error::NoSudo`].
    pub fn script(
        &mut self,
        what: &str,
        script: &str,
        root: bool,
        bound: impl Into<Bound>,
        on_line: &mut dyn FnMut(&str),
    ) -> Result<Output, Error> {
        let bound = bound.into();
        let shell = format!("timeout -k 5 {} sh -s", whole_seconds(bound.total));
        let mut lines = Lines::default();
        let (text, begun) = (whole(script), Instant::now());
        let output = self.run(Task {
            what,
            command: &shell,
            root,
            input: &mut text.as_bytes(),
            bound,
            on_output: &mut |bytes| lines.push(bytes, on_line),
            on_sent: &mut |_| {},
        })?;
        lines.finish(on_line);
        self.check_sudo(root, in_time(output, begun.elapsed(), bound)?)
    }

    /// The contents of `path` on the node, read as root; at most `max` bytes.
    ///
    /// # Errors
    /// As [`Session::script`], [`Error::NoFile`], [`Error::TooLarge`].
    pub fn read_file(&mut self, path: &str, max: u64, bound: impl Into<Bound>) -> Result<Vec<u8>, Error> {
        let (what, quoted) = (format!("reading {path}"), quote(path));
        let script = format!("[ -e {quoted} ] || exit 44\nhead -c {} {quoted}", max + 1);
        // Of the output only the end is kept.
        let mut bytes = Vec::new();
        let (bound, begun) = (bound.into(), Instant::now());
        let shell = format!("timeout -k 5 {} sh -s", whole_seconds(bound.total));
        let output = self.run(Task {
            what: &what,
            command: &shell,
            root: true,
            input: &mut whole(&script).as_bytes(),
            bound: bound.at_most(max + SAID),
            on_output: &mut |part| bytes.extend_from_slice(part),
            on_sent: &mut |_| {},
        })?;
        let output = self.check_sudo(true, in_time(output, begun.elapsed(), bound)?)?;
        let (node, path) = (output.node.clone(), path.to_owned());
        if output.status == 44 {
            return Err(Error::NoFile { node, path });
        }
        output.ok()?;
        if bytes.len() as u64 > max {
            return Err(Error::TooLarge { node, path, max });
        }
        Ok(bytes)
    }

    /// What root's `script` writes, as it comes: bytes, not lines, and at most so many as the bound says. What it means to say of
    /// errors it must keep to itself.
    ///
    /// # Errors
    /// As [`Session::script`].
    pub fn stream(
        &mut self,
        what: &str,
        script: &str,
        bound: Bound,
        on_bytes: &mut dyn FnMut(&[u8]),
    ) -> Result<Output, Error> {
        let begun = Instant::now();
        let shell = format!("timeout -k 5 {} sh -s", whole_seconds(bound.total));
        let output = self.run(Task {
            what,
            command: &shell,
            root: true,
            input: &mut whole(script).as_bytes(),
            bound,
            on_output: on_bytes,
            on_sent: &mut |_| {},
        })?;
        self.check_sudo(true, in_time(output, begun.elapsed(), bound)?)
    }

    /// The SHA-256 in hex of a file on the node; none if there is no such file.
    pub fn sha256(&mut self, path: &str, bound: impl Into<Bound>) -> Result<Option<String>, Error> {
        let (what, quoted) = (format!("reading {path}"), quote(path));
        let script = format!("[ -f {quoted} ] || exit 44\nsha256sum <{quoted}");
        let output = self.script(&what, &script, true, bound, &mut |_| {})?;
        if output.status == 44 {
            return Ok(None);
        }
        let text = output.ok()?.text();
        Ok(text.split_whitespace().next().map(str::to_owned))
    }

    /// `command` as root's, and what has to be sent before its own input. With `-n` nobody is asked and it fails. A password
    /// goes by standard input, where no list of processes shows it; whether sudo reads it or needs none (it may have been
    /// told, or remember it), what is left up to the mark is passed over before the command begins.
    pub(super) fn elevated(&self, command: &str) -> (String, String) {
        match (self.root, &self.password) {
            (Root::Sudo, Some(password)) => {
                let mark = format!("p1-{}", nonce());
                let inner = format!(
                    "exec 2>&1; while IFS= read -r line && [ \"$line\" != {mark} ]; do :; done; exec {command}"
                );
                // What sudo says itself, its lecture, would be taken for the command's words: whether it takes the
                // password was asked before.
                let command = format!("sudo -S -p '' sh -c {} 2>/dev/null", quote(&inner));
                (command, format!("{}{mark}\n", password.line()))
            }
            (root, _) => (format!("{}{command}", root.prefix()), String::new()),
        }
    }

    /// Whether sudo takes the password, before anything is sent that it would take for another one: a wrong one is tried once
    /// only, as some systems shut a user out after three.
    pub(super) fn prove_password(&mut self) -> Result<(), Error> {
        let Some(password) = self.password.clone().filter(|_| self.root == Root::Sudo) else { return Ok(()) };
        let output = self.run(Task {
            what: "becoming root",
            command: "LC_ALL=C sudo -S -p '' true",
            root: false,
            input: &mut password.line().as_bytes(),
            bound: self.answer.into(),
            on_output: &mut |_| {},
            on_sent: &mut |_| {},
        })?;
        self.check_sudo(true, output)?.ok().map(drop)
    }

    /// Tells sudo's refusal from the failure of what it was to run.
    pub(super) fn check_sudo(&self, root: bool, output: Output) -> Result<Output, Error> {
        if root && self.root != Root::Already && matches!(output.status, 1 | 127) {
            let text = output.text();
            let name = if self.root == Root::Doas { "doas: " } else { "sudo: " };
            // The last one says most: `no password was provided` comes before `1 incorrect password attempt`.
            let refusal = text.lines().rev().find_map(|line| {
                // `sudo: a password is required`, and a shell's `sh: 1: sudo: not found`.
                let (_, words) = line.split_once(name)?;
                (line.starts_with(name) || line.ends_with("not found")).then(|| words.to_owned())
            });
            if let Some(reason) = refusal {
                let user = self.endpoint.user.clone();
                let asked = self.password.is_some();
                return Err(Error::NoSudo { node: output.node, user, reason, by: self.root, asked });
            }
        }
        Ok(output)
    }
}

/// At the bound it is `timeout` on the node or the wait here that ends a script, whichever is first: by 124, or by 137
/// where a SIGKILL was needed.
fn in_time(output: Output, took: Duration, bound: Bound) -> Result<Output, Error> {
    if matches!(output.status, 124 | 137) && took >= bound.total {
        let Output { node, what, output, .. } = output;
        return Err(Error::Deadline { node, what, bound: bound.total, tail: tail(&output) });
    }
    Ok(output)
}

/// For `timeout`, which takes whole seconds everywhere; at least one.
pub(super) fn whole_seconds(time: Duration) -> u64 {
    time.as_millis().div_ceil(1000).max(1).try_into().unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_node_ended_at_the_bound_was_not_over_in_time() {
        let bound = Bound::from(Duration::from_secs(3));
        let ended = |status, ms| {
            let (node, what) = ("n".to_owned(), "hanging".to_owned());
            let output = b"begun\n".to_vec();
            in_time(Output { node, what, status, output }, Duration::from_millis(ms), bound)
        };
        for status in [124, 137] {
            let late = ended(status, 3004).unwrap_err();
            assert!(matches!(&late, Error::Deadline { tail, .. } if tail == &["begun"]), "{late}");
            // Of its own accord.
            assert_eq!(ended(status, 200).unwrap().status, status);
        }
        assert_eq!(ended(1, 3004).unwrap().status, 1);
    }

    #[test]
    fn a_cut_script_does_nothing() {
        let script = whole("echo begun\ncat <<'X'\ntext\nX\necho done");
        let run = |text: &str| {
            let cmd = process_sh().stdin(text);
            crate::os::process::run(&cmd, Duration::from_secs(10), &crate::os::Cancel::new()).unwrap()
        };
        assert_eq!(run(&script).stdout, "begun\ntext\ndone\n");
        for cut in PRELUDE.len()..script.len() - "} </dev/null 2>&1\n".len() {
            assert_eq!(run(&script[..cut]).stdout, "", "cut at {cut}");
        }
    }

    fn process_sh() -> crate::os::process::Cmd {
        crate::os::process::Cmd::new("sh").arg("-s")
    }
}
