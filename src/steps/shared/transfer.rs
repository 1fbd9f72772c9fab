//! Files onto a node: copied from a disk that its machine is given for that long, or sent to it over SSH.

use std::time::Duration;

use crate::engine::StepError;
use crate::guest::Piece;
use crate::observed::Wanted;
use crate::os::process;
use crate::ssh::{Bound, Source, Upload};
use crate::steps::NodeCtx;

/// A file of some hundred MB to an emulated guest; silence is the earlier sign of a fault.
const PUSH: Duration = Duration::from_secs(1800);
const SILENCE: Duration = Duration::from_secs(120);
/// The same from a disk: it takes seconds.
const COPY: Duration = Duration::from_secs(300);

/// Where the files lie until the node's turn.
const DIR: &str = "/var/lib/p1/next";

/// A file's place until then.
pub fn next(path: &str) -> String {
    format!("{DIR}/{}", path.rsplit('/').next().unwrap_or_default())
}

/// What goes onto one node within one step.
pub struct Transfer<'c, 'a> {
    ctx: &'c NodeCtx<'a>,
    /// Whether the machine has the disk; none before the first file.
    attached: Option<bool>,
    bytes: u64,
}

impl<'c, 'a> Transfer<'c, 'a> {
    /// Nothing is transferred yet.
    pub fn new(ctx: &'c NodeCtx<'a>) -> Self {
        Self { ctx, attached: None, bytes: 0 }
    }

    /// One file onto the node, to this path: whole, or not at all.
    pub fn file(&mut self, file: &Wanted, dest: &str) -> Result<(), StepError> {
        self.bytes += file.len;
        match self.copy_from_disk(file, dest) {
            Ok(true) => return Ok(()),
            Ok(false) => {}
            // SSH is slower, and works wherever it does at all.
            Err(why) => {
                self.ctx.control.log(&format!("{}; it is sent over SSH", why.failure.cause));
                for line in &why.failure.evidence {
                    self.ctx.control.log(line);
                }
                self.detach();
            }
        }
        let name = name(file);
        let source = Source::File(&file.source);
        let upload = Upload { source, dest, mode: file.mode, sha256: Some(&file.sha256) };
        let mut progress = |done| self.ctx.control.moved(&format!("pushing {name}"), done, Some(file.len));
        self.ctx.world.on(self.ctx.node, |r| r.upload(&upload, Bound::new(PUSH, SILENCE), &mut progress))?;
        Ok(())
    }

    /// The node has all: how much that was.
    pub fn end(mut self) -> String {
        let from_disk = self.attached == Some(true);
        self.detach();
        match self.bytes {
            0 => "all there".to_owned(),
            bytes if from_disk => format!("copied {:.1} MB", bytes as f64 / 1e6),
            bytes => format!("pushed {:.1} MB", bytes as f64 / 1e6),
        }
    }

    /// Whether it was copied from the disk: false where there is none, or not for this machine.
    fn copy_from_disk(&mut self, file: &Wanted, dest: &str) -> Result<bool, StepError> {
        let (world, node) = (self.ctx.world, self.ctx.node);
        let Some(disk) = world.seen().run.on_disk.clone().filter(|_| self.attached != Some(false)) else {
            return Ok(false);
        };
        let Some(start) = disk.start(&file.sha256) else { return Ok(false) };
        if self.attached.is_none() {
            let Some(make) = world.machines.of(&node.name).make() else {
                self.attached = Some(false);
                return Ok(false);
            };
            self.attached = Some(true);
            make.attach_files(&world.cluster, &node.name, &disk.disk, self.ctx.control.cancel())?;
        }
        let piece = Piece {
            serial: disk.disk.serial,
            start,
            len: file.len,
            sha256: &file.sha256,
            dest,
            mode: file.mode,
        };
        self.ctx.control.says(format!("copying {}", name(file)));
        let (what, script) = (format!("copying {} from a disk", name(file)), world.guest(node).copy(&piece));
        let done = world.on(node, |r| r.script(&what, &script, true, COPY, &mut |_| {}))?;
        if done.status != 0 {
            let text = done.text();
            let cause = format!("copying {} from a disk failed with {}", name(file), done.status);
            return Err(StepError::new(cause, "").evidence(process::tail(&text, 4)));
        }
        Ok(true)
    }

    fn detach(&mut self) {
        if self.attached.replace(false) != Some(true) {
            return;
        }
        let (world, node) = (self.ctx.world, self.ctx.node);
        let cancel = self.ctx.control.cancel();
        let Some(make) = world.machines.of(&node.name).make() else { return };
        if let Err(error) = make.detach_files(&world.cluster, &node.name, cancel) {
            self.ctx.control.warn(format!(
                "The disk with k3s' files could not be taken from the machine ({error}); it is gone when the \
                 machine is switched off."
            ));
        }
    }
}

impl Drop for Transfer<'_, '_> {
    fn drop(&mut self) {
        self.detach();
    }
}

fn name(file: &Wanted) -> &str {
    file.path.rsplit('/').next().unwrap_or_default()
}
