//! `vagrant provision` for one provisioner on one machine, watched line by line.

use std::time::Duration;

use crate::explain::clipped;
use crate::os::Cancel;
use crate::os::process::{self, Stream};

use super::{Error, Line, Vagrant, parse};

/// What is kept of the output for whoever asks why it failed.
const KEEP: usize = 400;
/// And of each so many characters.
const LONGEST: usize = 4 << 10;

impl Vagrant {
    /// Runs the provisioner of that name on a machine that runs. `heard` gets what it prints, a line each.
    ///
    /// One at a time: Ansible's provisioner writes one inventory for all machines and asks for the
    /// state of each (`plugins/provisioners/ansible/provisioner/host.rb`), and a machine's lock in the
    /// index does not wait (`lib/vagrant/machine_index.rb`).
    ///
    /// # Errors
    /// With the last lines that it printed.
    pub fn provision(
        &self,
        node: &str,
        name: &str,
        bound: Duration,
        cancel: &Cancel,
        heard: &mut dyn FnMut(&str),
    ) -> Result<(), (Error, Vec<String>)> {
        let args = ["provision", node, "--provision-with", name, "--machine-readable"];
        // Ansible and the like are in the middle of something when they are asked to end.
        let cmd = self.command(args).grace(Duration::from_secs(20));
        let mut lines: Vec<Line> = Vec::new();
        let mut said: Vec<String> = Vec::new();
        // What runs on the machine may say any number of lines of any length.
        let keep = |said: &mut Vec<String>, text: &str| {
            said.push(clipped(text, LONGEST));
            if said.len() > 2 * KEEP {
                said.drain(..said.len() - KEEP);
            }
        };
        let done = process::watch(&cmd, bound, cancel, &mut |stream, text| {
            let line = if stream == Stream::Out { parse(text) } else { None };
            let Some(line) = line else {
                heard(text);
                keep(&mut said, text);
                return;
            };
            if line.kind == "ui" && line.data.len() > 1 {
                for text in line.data[1..].join(",").lines() {
                    // Each line opens with `==> NODE: ` or `    NODE: ` (`lib/vagrant/ui.rb`, Prefixed).
                    let text = text.trim_start_matches("==>").trim_start();
                    let text = text.strip_prefix(&format!("{node}:")).unwrap_or(text).trim();
                    if !text.is_empty() {
                        heard(text);
                        keep(&mut said, text);
                    }
                }
            }
            if line.kind != "ui" || line.is("ui", &["error"]) {
                if lines.len() == 2 * KEEP {
                    lines.drain(..KEEP);
                }
                lines.push(line);
            }
        });
        match done {
            Ok(done) if done.success() => Ok(()),
            Ok(done) => Err((Error::from_output(&done, &lines), said)),
            Err(error) => Err((error.into(), said)),
        }
    }
}
