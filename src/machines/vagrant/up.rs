//! One `vagrant up` for several machines, watched line by line.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use crate::os::Cancel;
use crate::os::process::{self, Finished, Stream};

use super::{Error, Line, Vagrant, parse};

/// What is heard of a machine while `vagrant up` runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Progress {
    /// Vagrant says what it does.
    Says(String),
    /// The machine was switched on and Vagrant waits for it: from here on it can be tried.
    Booting,
    /// Vagrant is through with it: it is up.
    Up,
    /// Vagrant gave this machine up; the cause is in [`Up::run`]'s result.
    Failed,
}

/// What came of each machine.
pub type Results = BTreeMap<String, Result<(), Error>>;

/// A `vagrant up` to be.
pub struct Up<'a> {
    /// Whose.
    pub vagrant: &'a Vagrant,
    /// Which machines.
    pub nodes: &'a [String],
    /// For all of them together.
    pub bound: Duration,
}

impl Up<'_> {
    /// Runs it. `heard` gets a node and what became known of it; `log` gets every raw line.
    ///
    /// The result has an entry for every node: a machine counts as up when its `action,up,end`
    /// was seen, which Vagrant prints only when the action returned normally
    /// (`lib/vagrant/machine.rb`). The failure of one machine does not end the others.
    ///
    /// Flags: `--no-destroy-on-error` keeps the evidence (and keeps an interrupt from destroying a
    /// half-made machine); `--machine-readable` must not be combined with `--no-tty`, which
    /// overrides it (`bin/vagrant`).
    pub fn run(
        &self,
        cancel: &Cancel,
        heard: &mut dyn FnMut(&str, Progress),
        log: &mut dyn FnMut(&str),
    ) -> Results {
        let mut args =
            vec!["up", "--provider", self.vagrant.provider, "--no-provision", "--no-destroy-on-error"];
        args.extend(["--no-install-provider", "--parallel", "--machine-readable"]);
        args.extend(self.nodes.iter().map(String::as_str));
        // An interrupt makes it finish what it is in the middle of; that needs time.
        let cmd = self.vagrant.command(&args).grace(super::GRACE);
        let mut seen = Seen::default();
        let done = process::watch(&cmd, self.bound, cancel, &mut |stream, text| {
            log(text);
            if stream == Stream::Out
                && let Some(line) = parse(text)
            {
                seen.take(line, heard);
            }
        });
        seen.results(self.nodes, &done)
    }
}

/// What [`Up::run`] would have made of a `vagrant up` that has ended.
#[cfg(feature = "internals")]
pub fn read(nodes: &[String], done: Finished, heard: &mut dyn FnMut(&str, Progress)) -> Results {
    let mut seen = Seen::default();
    done.stdout.lines().filter_map(parse).for_each(|line| seen.take(line, heard));
    seen.results(nodes, &Ok(done))
}

/// Lines that are kept for a cause: it is among the last.
const LINES: usize = 1000;

#[derive(Default)]
struct Seen {
    up: BTreeSet<String>,
    said: BTreeMap<String, String>,
    exit: Option<(String, String)>,
    lines: Vec<Line>,
}

impl Seen {
    fn take(&mut self, line: Line, heard: &mut dyn FnMut(&str, Progress)) {
        let node = line.target.clone();
        if line.is("action", &["up", "end"]) {
            self.up.insert(node.clone());
            heard(&node, Progress::Up);
        } else if line.kind == "error-exit" {
            let class = line.data.first().cloned().unwrap_or_default();
            self.exit = Some((class, line.data.get(1..).unwrap_or_default().join(",")));
        } else if line.kind == "ui" && !node.is_empty() && line.data.len() > 1 {
            let text = line.data[1..].join(",");
            if line.data[0] == "error" {
                self.said.insert(node.clone(), text);
                heard(&node, Progress::Failed);
            } else {
                // Each line opens with `==> NODE: ` or `    NODE: ` (`lib/vagrant/ui.rb`, Prefixed).
                let text = text.trim_start_matches("==>").trim();
                let text = text.strip_prefix(&format!("{node}:")).unwrap_or(text).trim();
                // vagrant-libvirt locales/en.yml `waiting_for_ip`; VirtualBox: core's `vagrant.boot_waiting`.
                if text.starts_with("Waiting for domain") || text.starts_with("Waiting for machine") {
                    heard(&node, Progress::Booting);
                }
                let first = text.lines().next().unwrap_or_default().to_owned();
                if !first.is_empty() && !first.starts_with("-- ") {
                    heard(&node, Progress::Says(first));
                }
            }
        }
        if self.lines.len() == 2 * LINES {
            self.lines.drain(..LINES);
        }
        self.lines.push(line);
    }

    fn results(&self, nodes: &[String], done: &Result<Finished, process::Error>) -> Results {
        nodes.iter().map(|node| (node.clone(), self.verdict(node, nodes, done))).collect()
    }

    fn verdict(
        &self,
        node: &String,
        nodes: &[String],
        done: &Result<Finished, process::Error>,
    ) -> Result<(), Error> {
        if self.up.contains(node) {
            return Ok(());
        }
        let finished = match done {
            Ok(finished) => finished,
            Err(e) => return Err(Error::Process(again(e))),
        };
        if finished.success() {
            return Err(Error::Silent(node.clone()));
        }
        if let Some((class, text)) = &self.exit {
            if let Some(section) = section(text, node) {
                return Err(Error::refused(class.clone(), &section));
            }
            // With several machines and no section of its own, the text is about another one.
            if nodes.len() == 1 || !class.ends_with("BatchMultiError") {
                return Err(Error::refused(class.clone(), text));
            }
        }
        match self.said.get(node) {
            Some(text) => Err(Error::refused(String::new(), text)),
            None => Err(Error::from_output(finished, &self.lines)),
        }
    }
}

/// The part about one machine in the text of `BatchMultiError`. A section opens with a sentence
/// that names its machine in single quotes and is followed by a blank line and the message
/// (`templates/locales/en.yml`, `batch_multi_error`, `batch_unexpected_error`, `batch_vagrant_error`).
fn section(text: &str, node: &str) -> Option<String> {
    let opens =
        |p: &str| p.starts_with("An error occurred while executing") || p.starts_with("An unexpected error");
    let mut paragraphs = text.split("\n\n").map(str::trim);
    let name = format!("'{node}'");
    paragraphs.find(|p| opens(p) && p.contains(&name))?;
    let message: Vec<&str> = paragraphs.take_while(|p| !opens(p)).collect();
    (!message.is_empty()).then(|| message.join("\n\n"))
}

/// One process, several machines: each gets the error of its own.
fn again(error: &process::Error) -> process::Error {
    use process::Error as E;
    match error {
        E::Missing { program } => E::Missing { program: program.clone() },
        E::Start { program, source } => {
            E::Start { program: program.clone(), source: std::io::Error::other(source.to_string()) }
        }
        E::Failed { program, how, line, tail } => {
            E::Failed { program: program.clone(), how: *how, line: line.clone(), tail: tail.clone() }
        }
        E::Deadline { program, bound, tail } => {
            E::Deadline { program: program.clone(), bound: *bound, tail: tail.clone() }
        }
        E::Cancelled { program } => E::Cancelled { program: program.clone() },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_batch_error_is_taken_apart_by_machine() {
        let text = "An error occurred while executing multiple actions in parallel.\nAny errors that occurred are \
            shown below.\n\nAn error occurred while executing the action on the 'a'\nmachine. Please handle this \
            error then try again:\n\nName `x_a` of domain about to create is already taken.\n\nSecond paragraph.\n\n\
            An unexpected error occurred when executing the action on the\n'b' machine. Please report this as a \
            bug:\n\nboom";
        assert_eq!(section(text, "b").unwrap(), "boom");
        assert!(section(text, "a").unwrap().ends_with("already taken.\n\nSecond paragraph."));
        assert_eq!(section(text, "c"), None);
    }
}
