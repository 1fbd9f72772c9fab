//! What a backup and a restore share: the file that was named, what is in it, and work on the node that holds the data.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use crate::access::World;
use crate::backup::Backup;
use crate::engine::StepError;
use crate::explain::FailureKind;
use crate::os::process;
use crate::spec::Node;
use crate::ssh::Job;
use crate::steps::Ctx;

/// A node's password (docs.k3s.io/architecture).
pub const PASSWORD: &str = "/etc/rancher/node/password";

/// On the node, while it is on its way.
pub const PACKED: &str = "/var/lib/p1/backup/server.tar.gz";

/// Sending it; silence is the earlier sign of a fault.
pub const SEND: Duration = Duration::from_secs(1800);

pub const SILENCE: Duration = Duration::from_secs(120);

/// The file that the verb was given.
pub fn file(world: &World) -> Result<PathBuf, StepError> {
    world
        .seen()
        .request
        .subject
        .as_ref()
        .map(PathBuf::from)
        .ok_or_else(|| StepError::new("no file was named", ""))
}

/// Runs a script of root's that goes on when the connection is lost; what it printed.
pub fn job(ctx: &Ctx<'_>, node: &Node, name: &str, script: &str) -> Result<String, StepError> {
    job_heard(ctx, node, name, script, &mut |_| {})
}

/// The same, each line heard as it comes.
pub fn job_heard(
    ctx: &Ctx<'_>,
    node: &Node,
    name: &str,
    script: &str,
    hear: &mut dyn FnMut(&str),
) -> Result<String, StepError> {
    let world = ctx.world;
    let job = Job { name, id: &world.run, script, env: &[] };
    let bound = world.cluster.timeouts.server_ready;
    let done = world.on(node, |r| {
        r.detached(&job, bound, &mut |line| {
            hear(line);
            ctx.control.log(line);
            ctx.control.says(line);
        })
    })?;
    let text = done.text();
    if done.status == 0 {
        return Ok(text);
    }
    let last = process::tail(&text, 1).pop().unwrap_or_else(|| format!("it exited with {}", done.status));
    Err(StepError::new(format!("the data could not be handled on {}: {last}", node.name), "")
        .kind(FailureKind::Exit { code: done.status })
        .evidence(process::tail(&text, 12)))
}

/// The backup that the run puts back, read and checked once.
pub fn read(world: &World) -> Result<Arc<Backup>, StepError> {
    let _one = world.getting();
    if let Some(backup) = &world.seen().run.backup {
        return Ok(Arc::clone(backup));
    }
    let backup = Arc::new(Backup::read(&file(world)?)?);
    // The secrets of then are this cluster's from now on.
    world.learn_tokens(&backup.tokens.to_text());
    world.redactor.learn(backup.passwords.values());
    let runs = world.state.facts()?.k3s.and_then(|k| k.version);
    backup.manifest.fits(&world.cluster, runs.as_deref())?;
    world.may_have(&backup.tokens)?;
    world.note(|seen| seen.run.backup = Some(Arc::clone(&backup)));
    Ok(backup)
}

/// True for the server that begins with the backup's data where that may know its machine by a password of which
/// the backup has no copy.
pub fn begins_unknown(world: &World, node: &Node) -> bool {
    world.seen().run.placed
        && world.cluster.first_server().name == node.name
        && read(world).is_ok_and(|backup| !backup.passwords.contains_key(&node.name))
}
