//! Vagrant's provisioners, each a step of its own on each of its nodes.
//!
//! shell and file are p1's own over SSH: their exit status and output are seen, and a lost connection
//! costs a reconnect. The others are Vagrant's, asked for by name (`vagrant provision
//! --provision-with`), so that neither its note that a machine was provisioned nor one that failed
//! keeps another from being run. What was brought to an end is noted on the node, with a digest of
//! what it was made from.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::Value;

use super::shared::batch::finish;
use super::shared::reboot::reboot;
use super::shared::stamp::stamp;
use super::{Ctx, Item, NodeCtx, NodeDef, Step};
use crate::access::{SCRIPT_TIMEOUT, World};
use crate::engine::StepError;
use crate::explain::FailureKind;
use crate::observed::{View, holds};
use crate::os::files::{self, At};
use crate::os::process::{self, Cmd, quote};
use crate::plan::{After, Check, ClusterStep, NodeStep, Per};
use crate::spec::{Node, ProvisionType, Provisioner, Slot};
use crate::ssh::{Bound, Job, Source, Upload};

/// Before k3s is installed.
pub const BEFORE: Step = Step::Node(NodeDef {
    name: NodeStep::Provision,
    title: "run the provisioner",
    per: Per::Provisioner(Slot::BeforeK3s),
    after: &[After::Node(NodeStep::System), After::NodeUnchanged(NodeStep::Hosts)],
    needs: None,
    retry: true,
    check,
    inputs: |_, _| Value::Null,
    apply,
});

/// When the node is Ready.
pub const AFTER: Step = Step::Node(NodeDef {
    name: NodeStep::Provision,
    title: "run the provisioner",
    per: Per::Provisioner(Slot::AfterK3s),
    after: &[
        After::Node(NodeStep::Ready),
        After::Cluster(ClusterStep::Kubeconfig),
        After::Provisioners(Slot::BeforeK3s),
    ],
    needs: None,
    retry: true,
    check,
    inputs: |_, _| Value::Null,
    apply,
});

/// When all nodes are Ready.
pub const AFTER_CLUSTER: Step = Step::Node(NodeDef {
    name: NodeStep::Provision,
    title: "run the provisioner",
    per: Per::Provisioner(Slot::AfterCluster),
    after: &[
        After::EveryNode(NodeStep::Ready),
        After::Cluster(ClusterStep::Kubeconfig),
        After::Provisioners(Slot::AfterK3s),
        After::Cluster(ClusterStep::Rollouts),
    ],
    needs: None,
    retry: true,
    check,
    inputs: |_, _| Value::Null,
    apply,
});

/// A file of some hundred MB to an emulated guest; silence is the earlier sign of a fault.
const PUSH: Duration = Duration::from_secs(1800);
const SILENCE: Duration = Duration::from_secs(120);
/// Where a script lies on the node while it runs.
const DIR: &str = "/var/lib/p1/provision";
const PACK: Duration = Duration::from_secs(600);

fn note(name: &str) -> String {
    format!("{}-{name}", NodeStep::Provision)
}

fn check(view: &View<'_>, node: &Node, item: Item<'_>) -> Check {
    let name = item.unwrap_or_default();
    let facts = match view.facts(node) {
        Ok(facts) => facts,
        Err(check) => return check,
    };
    let one = view.cluster.provision.iter().find(|one| one.name == name);
    if one.is_some_and(|one| one.when == Slot::AfterCluster) && !view.seen.request.whole {
        return Check::Done("it is for a run of all nodes".into());
    }
    let done = facts.stamps.get(&note(name));
    let wrong = match (done, view.seen.here.provision.get(name)) {
        (None, _) => Some("it was not run here".to_owned()),
        (_, Some(Err(why))) => Some(why.clone()),
        (Some(then), Some(Ok(now))) if *then == now.noted => None,
        _ => Some("what it is made from has changed".to_owned()),
    };
    if one.is_some_and(|one| one.always) {
        return Check::Needed(wrong.unwrap_or_else(|| "it runs every time".to_owned()));
    }
    holds("it was run as it is now", wrong)
}

fn apply(ctx: &NodeCtx<'_>) -> Result<Option<String>, StepError> {
    let (world, node) = (ctx.world, ctx.node);
    let one = world.cluster.provision.iter().find(|p| Some(p.name.as_str()) == ctx.item);
    let one = one.expect("a provisioner of the spec");
    let digest = crate::observe::made_from(world, one)?.noted;
    let name = note(&one.name);
    // It may have been cut off behind its note. The result of a run that nobody took: a success counts,
    // a failure is tried again.
    let before = format!(
        "d=/run/p1/{name}; if [ -e $d/rc ] && [ \"$(cat $d/rc)\" != 0 ]; then rm -rf $d; fi\n\
         cat /var/lib/p1/stamps/{name} 2>/dev/null\nexit 0"
    );
    let noted = world.script(node, "looking for an earlier run", &before)?;
    if noted.trim() == digest && !one.always {
        return Ok(Some("it was run before".into()));
    }
    let did = match one.kind {
        _ if one.by_vagrant => by_vagrant(ctx, one)?,
        ProvisionType::Shell => shell(ctx, one, &digest)?,
        _ => file(ctx, one)?,
    };
    if one.reboot {
        reboot(ctx)?;
    }
    let clean = format!("rm -f {}\n", quote(&format!("{DIR}/{}", one.name)));
    world.script(node, "noting the provisioner", &(stamp(&name, &digest) + &clean))?;
    Ok(did)
}

/// A script, as root or as the login user, in the login user's home as with Vagrant.
fn shell(ctx: &NodeCtx<'_>, one: &Provisioner, digest: &str) -> Result<Option<String>, StepError> {
    let (world, node) = (ctx.world, ctx.node);
    let text = match one.text("path") {
        Some(path) => files::read(Path::new(path), files::MAX_BYTES)?,
        None => one.text("inline").unwrap_or_default().as_bytes().to_vec(),
    };
    let text = unix(text);
    let name = note(&one.name);
    // The result of a run that nobody took: a success counts, a failure is tried again.
    let failed =
        format!("d=/run/p1/{name}; if [ -e $d/rc ] && [ \"$(cat $d/rc)\" != 0 ]; then rm -rf $d; fi");
    world.script(node, "looking for an earlier run", &failed)?;
    let place = format!("{DIR}/{}", one.name);
    let upload = Upload { source: Source::Bytes(&text), dest: &place, mode: 0o500, sha256: None };
    world.on(node, |r| r.upload(&upload, SCRIPT_TIMEOUT, &mut |_| {}))?;
    let env = one.env();
    let env: Vec<(&str, &str)> = env.iter().map(|(k, v)| (k.as_str(), v.as_str())).collect();
    let script = call(one, &place, text.starts_with(b"#!"), &world.way(node)?.user);
    let job = Job { name: &name, id: digest, script: &script, env: &env };
    let done = world.on(node, |r| {
        r.detached(&job, world.cluster.timeouts.provision, &mut |line| tell(ctx, line.trim_end()))
    })?;
    if done.status == 0 {
        return Ok(None);
    }
    let lines = process::tail(&done.text(), 12);
    Err(StepError::new(format!("the script exited with {}", done.status), "")
        .kind(FailureKind::Exit { code: done.status })
        .evidence(lines)
        .transient())
}

fn tell(ctx: &Ctx<'_>, line: &str) {
    ctx.control.log(line);
    if !line.trim().is_empty() {
        ctx.control.says(line);
    }
}

/// With line ends as Unix has them, unless it is no text.
fn unix(bytes: Vec<u8>) -> Vec<u8> {
    if bytes.contains(&0) {
        return bytes;
    }
    let mut out = Vec::with_capacity(bytes.len());
    for (i, byte) in bytes.iter().enumerate() {
        if *byte != b'\r' || bytes.get(i + 1) != Some(&b'\n') {
            out.push(*byte);
        }
    }
    out
}

/// How the script is called, by root's `sh`.
fn call(one: &Provisioner, place: &str, has_interpreter: bool, user: &str) -> String {
    let user = quote(user);
    let args = one.settings.get("args").and_then(Value::as_array).into_iter().flatten();
    let args: Vec<String> = args.filter_map(Value::as_str).map(quote).collect();
    let root = one.settings.get("privileged").and_then(Value::as_bool).unwrap_or(true);
    // As Vagrant does it: bash, which runs a script that names no interpreter itself.
    let with = if has_interpreter { "" } else { "$(command -v bash || echo /bin/sh) " };
    let place = quote(place);
    let call = format!("{with}{place} {}", args.join(" "));
    let become_user = if root {
        "export HOME=/root USER=root LOGNAME=root\nset --\n".to_owned()
    } else {
        format!(
            "chmod a+x /var/lib/p1 {DIR}\nchown {user} {place}\n\
             export HOME=\"$home\" USER={user} LOGNAME={user}\nset -- runuser -u {user} --\n"
        )
    };
    format!(
        "export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin\n\
         home=$(getent passwd {user} | cut -d: -f6)\ncd \"$home\" || exit 96\n{become_user}exec \"$@\" {call}\n"
    )
}

/// A file or a directory onto the node, as its own place belongs to whom it belongs.
fn file(ctx: &NodeCtx<'_>, one: &Provisioner) -> Result<Option<String>, StepError> {
    use std::os::unix::fs::PermissionsExt;
    let (world, node) = (ctx.world, ctx.node);
    let source = PathBuf::from(one.text("source").unwrap_or_default());
    let destination = one.text("destination").unwrap_or_default();
    let meta = fs::metadata(&source).at("read", &source)?;
    let name = source.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let place = place(destination, &name, meta.is_dir(), &world.way(node)?.user);
    let place = world.script(node, "looking at the destination", &place)?;
    let (owner, dest) = place.trim_end().split_once(' ').unwrap_or(("root", place.trim_end()));
    let packed;
    let (from, to, mode) = if meta.is_dir() {
        ctx.control.says("packing");
        packed = pack(&source, world)?;
        (packed.path(), format!("{DIR}/{}", one.name), 0o600)
    } else {
        (source.as_path(), dest.to_owned(), meta.permissions().mode() & 0o777)
    };
    let len = fs::metadata(from).at("read", from)?.len();
    let upload = Upload { source: Source::File(from), dest: &to, mode, sha256: None };
    let mut progress = |done| ctx.control.moved(&format!("pushing {name}"), done, Some(len));
    world.on(node, |r| r.upload(&upload, Bound::new(PUSH, SILENCE), &mut progress))?;
    let (owner, dest) = (quote(owner), quote(dest));
    let last = match meta.is_dir() {
        true => format!("runuser -u {owner} -- tar -C {dest} -xf - < {}", quote(&to)),
        false => format!("chown --reference={} {dest}", quote(&parent(&to))),
    };
    world.script(node, "putting it into its place", &last)?;
    Ok(Some(format!("pushed {:.1} MB", len as f64 / 1e6)))
}

fn parent(path: &str) -> String {
    Path::new(path).parent().unwrap_or(Path::new("/")).display().to_string()
}

/// A script that says who owns the destination, and where it is; the directory is made. What is
/// relative is so to the login user's home, as with Vagrant.
fn place(destination: &str, name: &str, directory: bool, user: &str) -> String {
    let (user, to) = (quote(user), quote(destination));
    let name = quote(name);
    let into = match directory {
        // The contents of a directory go into the destination; a last `/.` says the same.
        true => "dir=$to\n".to_owned(),
        false => format!(
            "case $to in */) to=$to\"\"{name} ;; *) [ ! -d \"$to\" ] || to=$to/{name} ;; esac\ndir=${{to%/*}}\n"
        ),
    };
    format!(
        "set -eu\nto={to}\nhome=$(getent passwd {user} | cut -d: -f6)\n\
         case $to in '~') to=$home ;; '~/'*) to=$home/${{to#??}} ;; /*) ;; *) to=$home/$to ;; esac\n\
         {into}[ -n \"$dir\" ] || dir=/\nup=$dir\nwhile [ ! -d \"$up\" ]; do up=$(dirname \"$up\"); done\n\
         owner=$(stat -c %U \"$up\")\n[ -d \"$dir\" ] || runuser -u \"$owner\" -- mkdir -p \"$dir\"\n\
         echo \"$owner $to\"\n"
    )
}

/// A directory's contents as one file.
fn pack(source: &Path, world: &World) -> Result<tempfile::NamedTempFile, StepError> {
    let dir = world.state.dir();
    let file = tempfile::NamedTempFile::new_in(dir).at("write", dir)?;
    let cmd =
        Cmd::new("tar").arg("-C").arg(source).args(["--owner=0", "--group=0", "--numeric-owner", "-cf"]);
    process::run(&cmd.arg(file.path()).arg("."), PACK, &world.cancel)?.ok()?;
    Ok(file)
}

/// One of the others, by Vagrant.
fn by_vagrant(ctx: &NodeCtx<'_>, one: &Provisioner) -> Result<Option<String>, StepError> {
    let (world, node) = (ctx.world, ctx.node);
    // A second vagrant beside one that brings machines up makes either fail.
    finish(ctx.batch, &mut || ctx.control.says("waiting for Vagrant"));
    ctx.control.says("waiting for another provisioner");
    let _one = world.provisioning();
    if ctx.control.cancel().stopping() {
        return Err(StepError::interrupted());
    }
    let (base, vagrant) = (world.base()?, world.machines.provision(&node.name)?);
    ctx.control.says("starting Vagrant");
    let mut heard = |line: &str| tell(ctx, line);
    let result = vagrant.run(&world.cluster, &node.name, &one.name, &base, &mut heard, &world.cancel);
    let Err((error, said)) = result else { return Ok(None) };
    let mut error = StepError::from(error).transient();
    // What Ansible says of a task that failed is better than Vagrant's word that it failed.
    if let Some(line) = said.iter().rev().find(|l| l.starts_with("fatal: ") || l.starts_with("ERROR! ")) {
        // Half a secret would not be known for one.
        let short: String = world.redactor().text(line).chars().take(300).collect();
        error.failure.cause = format!("{}: {short}", one.kind.name());
    }
    if !said.is_empty() {
        let last = said.len().saturating_sub(12);
        error.failure.evidence = said[last..].to_vec();
    }
    Err(error)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn line_ends_are_unix_ones_and_binaries_stay() {
        assert_eq!(unix(b"a\r\nb\rc\r\n".to_vec()), b"a\nb\rc\n");
        assert_eq!(unix(b"\0\r\n".to_vec()), b"\0\r\n");
    }
}
