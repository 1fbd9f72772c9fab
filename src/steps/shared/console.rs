//! A machine's serial console while it boots, kept in the state folder: of a machine that never gets its address,
//! it is all that is heard.

use std::collections::VecDeque;
use std::fs::{self, OpenOptions};
use std::io::Write;
use std::net::SocketAddr;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::wait::{Patience, wait_for};
use crate::access::World;
use crate::engine::StepError;
use crate::explain::{Again, FailureKind};
use crate::machines;
use crate::os::pty::Follower;
use crate::os::{files, process};
use crate::spec::Node;
use crate::ssh::Knock;
use crate::steps::NodeCtx;

/// What virsh says first; the machine's own words come after it.
const OPENING: &str = "Escape character is";
/// A console that cannot be had yet is asked for again.
const PAUSE: Duration = Duration::from_millis(500);
/// So much is kept, and at most twice as much is on disk: a machine may write without end.
const KEEP: usize = 128 << 10;
/// Lines of it in a message, and what of a line.
const LINES: usize = 10;
const COLUMNS: usize = 200;

/// Keeps the console of a node's machine until it is dropped; from its start on where the machine is `new`ly
/// switched on, else after what was kept before. Where the provider has none to be followed, nothing is kept.
pub fn keep(world: &World, node: &Node, new: bool) -> Option<Follower> {
    let line = world.machines.of(&node.name).power()?.console(&world.cluster, &node.name)?;
    let mut log = Log::open(world.state.console(&node.name), new).ok()?;
    Some(Follower::start(line, PAUSE, move |part| log.take(part)))
}

struct Log {
    path: PathBuf,
    /// Whether virsh has said what it says itself, which is not kept.
    opened: bool,
    head: Vec<u8>,
    /// Whether the machine has said anything since virsh was started last.
    heard: bool,
    last: VecDeque<u8>,
    written: usize,
}

impl Log {
    fn open(path: PathBuf, new: bool) -> Result<Self, files::Error> {
        files::dir(path.parent().unwrap_or(Path::new(".")))?;
        let before = if new { Vec::new() } else { fs::read(&path).unwrap_or_default() };
        files::write(&path, &before, 0o600)?;
        Ok(Self {
            path,
            opened: false,
            head: Vec::new(),
            heard: false,
            written: before.len(),
            last: before.into(),
        })
    }

    /// Whether the machine is heard. An empty part: virsh was restarted. On a machine that is only just starting it
    /// says its own words and then that it has no console yet (`PTY device is not yet assigned`).
    fn take(&mut self, part: &[u8]) -> bool {
        if part.is_empty() {
            (self.opened, self.heard) = (false, false);
            self.head.clear();
            return false;
        }
        let mut part = part.to_vec();
        if !self.opened {
            self.head.extend_from_slice(&part);
            let text = String::from_utf8_lossy(&self.head);
            let own = text.find(OPENING).and_then(|at| Some(at + text[at..].find('\n')? + 1));
            let Some(own) = own else {
                self.head.truncate(KEEP);
                return false;
            };
            part = text[own..].as_bytes().to_vec();
            self.opened = true;
        }
        if !self.heard && part.trim_ascii().is_empty() {
            return false;
        }
        self.heard = true;
        self.last.extend(&part);
        let over = self.last.len().saturating_sub(KEEP);
        self.last.drain(..over);
        // What cannot be kept is not worth a failure.
        if self.written + part.len() > 2 * KEEP {
            let kept: Vec<u8> = self.last.iter().copied().collect();
            self.written = kept.len();
            let _ = files::write(&self.path, &kept, 0o600);
        } else {
            self.written += part.len();
            let file = OpenOptions::new().append(true).create(true).mode(0o600).open(&self.path);
            let _ = file.and_then(|mut f| f.write_all(&part));
        }
        true
    }
}

/// The last lines that a machine wrote to its console, as plain text.
fn last_lines(path: &Path) -> Vec<String> {
    let text = plain(&fs::read(path).unwrap_or_default());
    process::tail(&text, LINES)
}

/// Without what a terminal would do: a machine is not trusted.
fn plain(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(bytes);
    let (mut out, mut column, mut chars) = (String::new(), 0, text.chars().peekable());
    while let Some(c) = chars.next() {
        match c {
            '\n' => {
                out.push('\n');
                column = 0;
            }
            // To the line's begin: what follows is a line of its own.
            '\r' if column > 0 => {
                out.push('\n');
                column = 0;
            }
            '\u{1b}' => match chars.next() {
                // CSI and its end; OSC up to its bell; others have one more character.
                Some('[') => while chars.next().is_some_and(|c| !('\u{40}'..='\u{7e}').contains(&c)) {},
                Some(']') => while chars.next().is_some_and(|c| c != '\u{7}') {},
                _ => {}
            },
            c if c.is_control() => {}
            c => {
                if column < COLUMNS {
                    out.push(c);
                }
                column += 1;
            }
        }
    }
    out
}

/// An error with a machine that does not answer: with what its console said last, and how to look further.
pub fn told(world: &World, node: &Node, mut error: StepError) -> StepError {
    let path = world.state.console(&node.name);
    let lines = last_lines(&path);
    let name = machines::machine_name(&world.cluster.name, &node.name);
    let look = world.machines.of(&node.name).power().map(|p| p.look_further(&world.cluster, &node.name));
    let look = look.map(|line| {
        format!("To look further at the machine {name}: `{line}`. `p1 retry` power-cycles it and continues. ")
    });
    let kept = match lines.is_empty() {
        true => "Its serial console has said nothing.".to_owned(),
        false => format!("The last lines of its serial console are above, more are in {}.", path.display()),
    };
    let address = match world.cluster.libvirt.is_session() {
        true => {
            "p1's own boxes are given their address at the first boot, as is any other with systemd 252 and \
             systemd-networkd; for the rest the bridge needs a DHCP server that gives it. "
        }
        false => "",
    };
    error.failure.hint = Some(format!(
        "{kept} {}{address}If it is only slow (no hardware virtualisation?), give it more time with `timeouts: {{boot: ...}}` in \
         the spec.",
        look.unwrap_or_default()
    ));
    if !lines.is_empty() {
        error.failure.evidence = lines;
    }
    error.again = Again::No;
    error
}

/// Notes that a machine did not answer for as long as it may take: [`switch_off_and_on`] is for it then.
pub fn note_unreached(world: &World, node: &Node) {
    // What cannot be noted costs another wait, no more.
    let _ = world.remember(&node.name, |memory| memory.unreached = true);
}

/// A machine that p1 waited for in vain before and that still does not answer is switched off and on, unless
/// the cluster receives its heartbeats: a machine that works is not unplugged for its SSH server.
pub fn switch_off_and_on(ctx: &NodeCtx<'_>) -> Result<(), StepError> {
    let (world, node) = (ctx.world, ctx.node);
    let Some(power) = world.machines.of(&node.name).power() else { return Ok(()) };
    if !world.memory(&node.name).is_some_and(|m| m.unreached) {
        return Ok(());
    }
    ctx.control.says("looking whether it answers by now");
    if answers(ctx, LOOK.min(world.cluster.timeouts.ssh)) {
        return Ok(());
    }
    if heard_of(ctx)? {
        ctx.control.warn("It does not answer over SSH, but the cluster still receives its heartbeats: it is not switched off.");
        return Ok(());
    }
    ctx.control.warn("It was waited for before and does not answer: it is power-cycled.");
    power.off(&world.cluster, &node.name, ctx.control.cancel())?;
    world.forget_node(&node.name);
    let _console = keep(world, node, true);
    power.on(&world.cluster, &node.name, ctx.control.cancel())?;
    wait_for_sshd(ctx)
}

/// Until the SSH port of a machine that runs answers, at most as long as one may take to boot.
pub fn wait_for_sshd(ctx: &NodeCtx<'_>) -> Result<(), StepError> {
    let (world, node) = (ctx.world, ctx.node);
    let address = || {
        let endpoint = world.login(node).ok()?.endpoint;
        Some(SocketAddr::new(endpoint.host.parse().ok()?, endpoint.port))
    };
    let patience = Patience::stubborn(world.cluster.timeouts.boot);
    let mut knock = Knock::default();
    let answer = wait_for(ctx, patience, || {
        let answers = address().is_some_and(|a| knock.answers(a, Duration::from_millis(500)));
        Ok(if answers { Ok(()) } else { Err("waiting for its SSH server".to_owned()) })
    })?;
    answer.map_err(|_| no_address(ctx))
}

/// Whether the node's SSH server greets within that time.
pub fn answers(ctx: &NodeCtx<'_>, bound: Duration) -> bool {
    let (world, node) = (ctx.world, ctx.node);
    let mut knock = Knock::default();
    let looked = wait_for(ctx, Patience::stubborn(bound), || {
        let endpoint = world.login(node).ok().map(|login| login.endpoint);
        let address = endpoint.and_then(|e| Some(SocketAddr::new(e.host.parse().ok()?, e.port)));
        let answers = address.is_some_and(|a| knock.answers(a, Duration::from_millis(500)));
        Ok(if answers { Ok(()) } else { Err("waiting for its SSH server".to_owned()) })
    });
    matches!(looked, Ok(Ok(())))
}

/// What to think of a machine that did not answer at its address in time.
pub fn no_address(ctx: &NodeCtx<'_>) -> StepError {
    let (world, node) = (ctx.world, ctx.node);
    let bound = crate::explain::seconds(world.cluster.timeouts.boot);
    note_unreached(world, node);
    let cause = format!("the machine did not answer at {} within {bound}", node.ip);
    let error = StepError::new(cause, "").kind(FailureKind::bound(world.cluster.timeouts.boot));
    told(world, node, error)
}

/// For a machine that was given up to show that it answers by now.
const LOOK: Duration = Duration::from_secs(10);
/// A node that no longer reports is taken for Ready for 40 s (kube-controller-manager,
/// `--node-monitor-grace-period`), or 50 s in newer versions.
const GRACE: Duration = Duration::from_secs(60);

/// Whether the cluster says that the node is Ready, and goes on saying so.
fn heard_of(ctx: &NodeCtx<'_>) -> Result<bool, StepError> {
    let (world, node) = (ctx.world, ctx.node);
    if !world.seen().here.kubeconfig {
        return Ok(false);
    }
    let gone = wait_for(ctx, Patience::stubborn(GRACE), || {
        let ready = world.nodes().is_ok_and(|all| all.iter().any(|n| n.name == node.name && n.ready));
        Ok(if ready { Err("asking the cluster for its heartbeats".to_owned()) } else { Ok(()) })
    })?;
    Ok(gone.is_err())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_machine_writes_is_kept_within_bounds_and_without_virshs_own_words() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("console/worker.log");
        let mut log = Log::open(path.clone(), true).unwrap();
        log.take(b"");
        assert!(!log.take(b"Connected to domain 'p1-x-worker'\r\nEscape character is ^] (Ctrl + ])\r\n"));
        assert!(!log.take(b"\r\n"), "virsh ends: the machine has no console yet");
        log.take(b"");
        assert!(!log.take(b"Connected to domain 'p1-x-worker'\r\nEscape character"));
        assert!(log.take(b" is ^] (Ctrl + ])\r\nbooting\r\n"));
        assert_eq!(fs::read(&path).unwrap(), b"booting\r\n");
        let line = [b"x".repeat(1023), b"\n".to_vec()].concat();
        for _ in 0..1000 {
            log.take(&line);
            assert!(fs::metadata(&path).unwrap().len() <= 2 * KEEP as u64);
        }
        log.take(b"the end");
        assert!(fs::read(&path).unwrap().ends_with(b"x\nthe end"));
        drop(log);
        // A later look goes on behind it.
        let mut log = Log::open(path.clone(), false).unwrap();
        assert!(log.take(b"Escape character is ^]\nlater"));
        assert!(fs::read(&path).unwrap().ends_with(b"x\nthe endlater"));
    }

    #[test]
    fn nothing_that_a_machine_writes_reaches_a_terminal_as_it_is() {
        let said =
            b"\x1b[2J\x1b[1;31mred\x1b[0m\x1b]0;title\x07 \x07plain\r\nprogress 1\rprogress 2\r\n\xff\x1b";
        assert_eq!(plain(said), "red plain\n\nprogress 1\nprogress 2\n\n\u{fffd}");
        assert_eq!(plain(&b"y".repeat(100_000)).len(), COLUMNS);
    }
}
