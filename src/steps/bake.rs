//! A box is made of a machine that has k3s' files, what its installer makes, and its images; and nothing of its own.

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use serde_json::json;

use super::shared::power::until_off;
use super::shared::stamp::STAMPS;
use super::{ClusterDef, Ctx, Item, NodeCtx, NodeDef, Step};
use crate::access::World;
use crate::boxes::{self, Origin};
use crate::engine::StepError;
use crate::explain::FailureKind;
use crate::k3s;
use crate::machines::{Cap, KEYS_OF_BOX};
use crate::observed::View;
use crate::observed::files::{INSTALLER, installation};
use crate::os::files::At;
use crate::os::{files, process};
use crate::plan::{After, Check, ClusterStep, NodeStep, Per};
use crate::spec::{Cluster, Node, Role};
use crate::ssh::{Bound, Job};

/// Runs k3s' installer for each role, and sets aside what it makes.
pub const ASIDE: Step = Step::Node(NodeDef {
    name: NodeStep::Aside,
    title: "install k3s for both roles",
    per: Per::Node,
    after: &[After::Node(NodeStep::Stage)],
    needs: None,
    retry: false,
    check: asked_of,
    inputs: named,
    apply: aside,
});

/// Has k3s unpack itself, and its images imported.
pub const IMPORT: Step = Step::Node(NodeDef {
    name: NodeStep::Import,
    title: "unpack k3s and import images",
    per: Per::Node,
    after: &[After::Node(NodeStep::Aside)],
    needs: None,
    retry: false,
    check: asked_of,
    inputs: named,
    apply: import,
});

/// Takes away what makes the machine one of its own, and ends it.
pub const WIPE: Step = Step::Node(NodeDef {
    name: NodeStep::Wipe,
    title: "remove the machine's identity",
    per: Per::Node,
    after: &[After::Node(NodeStep::Import)],
    needs: Some(Cap::Power),
    retry: false,
    check: asked_of,
    inputs: named,
    apply: wipe,
});

/// Makes a box of its disk, in this host's library.
pub const PACK: Step = Step::Cluster(ClusterDef {
    name: ClusterStep::Pack,
    title: "make the box",
    after: &[After::Node(NodeStep::Wipe)],
    on_demand: false,
    needs: Some(Cap::Make),
    retry: false,
    check: super::asked,
    inputs: |cluster| json!(cluster.name),
    apply: pack,
});

/// Some 200 MB come out of the binary, and archives of some hundred MB are read; under emulation it is minutes.
const IMPORTING: Duration = Duration::from_secs(900);
const WIPING: Duration = Duration::from_secs(180);
/// The machine ends without stopping services.
const END: Duration = Duration::from_secs(60);

fn asked_of(_: &View<'_>, _: &Node, _: Item<'_>) -> Check {
    Check::Needed("a box is baked".into())
}

fn named(cluster: &Cluster, node: &Node) -> serde_json::Value {
    json!([cluster.name, node.name])
}

fn aside(ctx: &NodeCtx<'_>) -> Result<Option<String>, StepError> {
    let (world, node) = (ctx.world, ctx.node);
    let facts = world.facts(node)?;
    let user = world.way(node)?.user;
    let kept = format!("test -e \"$(getent passwd {user} | cut -d: -f6)/.ssh/authorized_keys{KEYS_OF_BOX}\"");
    if world.run_script(node, "looking at the box' own keys", &kept)?.status != 0 {
        return Err(StepError::new(
            "the box takes no key at its first boot, so that its own could not be kept",
            "Boxes with systemd 252 or later can be baked, such as p1's `debian-12`.",
        )
        .kind(FailureKind::Cannot));
    }
    for role in [Role::Server, Role::Worker] {
        let of = Node { role, ..node.clone() };
        let line = k3s::install(role, INSTALLER, true).line();
        let script = k3s::aside_script(role, &line, &installation(&facts, &of), STAMPS);
        let job = Job { name: "aside", id: &format!("{}-{role}", world.run), script: &script, env: &[] };
        ctx.control.says(format!("as a {role}"));
        let done = world.on(node, |r| {
            r.detached(&job, world.cluster.timeouts.install, &mut |line| ctx.control.log(line))
        })?;
        let text = done.text();
        if done.status != 0 {
            let why = k3s::complaint(&text).unwrap_or_else(|| format!("it exited with {}", done.status));
            return Err(StepError::new(format!("k3s' installer failed for a {role}: {why}"), "")
                .kind(FailureKind::Exit { code: done.status })
                .evidence(process::tail(&text, 12)));
        }
    }
    Ok(None)
}

fn import(ctx: &NodeCtx<'_>) -> Result<Option<String>, StepError> {
    let (world, node) = (ctx.world, ctx.node);
    let mut said = String::new();
    let done = world.on(node, |r| {
        let mut hear = |line: &str| {
            ctx.control.log(line);
            line.clone_into(&mut said);
        };
        let bound = Bound::new(IMPORTING, IMPORTING);
        r.script("importing images", &k3s::import_script(), true, bound, &mut hear)
    })?;
    if done.status != 0 {
        return Err(StepError::new(format!("the images could not be imported: {said}"), "")
            .kind(FailureKind::Exit { code: done.status })
            .evidence(process::tail(&done.text(), 4)));
    }
    Ok(Some(said).filter(|said| !said.is_empty()))
}

fn wipe(ctx: &NodeCtx<'_>) -> Result<Option<String>, StepError> {
    let (world, node) = (ctx.world, ctx.node);
    let guest = world.guest(node);
    let (what, script) =
        ("removing what is the machine's own", guest.wipe(&world.public_key()?, KEYS_OF_BOX));
    let mut log = |line: &str| ctx.control.log(line);
    let done = world.on(node, |r| r.script(what, &script, true, WIPING, &mut log))?;
    if done.status != 0 {
        return Err(StepError::new("what is the machine's own could not be removed", "")
            .kind(FailureKind::Exit { code: done.status })
            .evidence(process::tail(&done.text(), 4)));
    }
    // Its answer goes with the machine; whether it was told is seen in its state.
    if let Err(error) = world.run_script(node, "ending the machine", &guest.end_wiped()) {
        ctx.control.log(&error.failure.cause);
    }
    until_off(ctx, END)?;
    Ok(None)
}

fn pack(ctx: &Ctx<'_>) -> Result<Option<String>, StepError> {
    let (world, control) = (ctx.world, ctx.control);
    let node = world.cluster.first_server();
    let image = world.box_info()?.ok_or_else(|| StepError::new("the box is not there", ""))?;
    let (_, baked) = world.to_bake()?.ok_or_else(|| StepError::new("k3s' files are not there", ""))?;
    let work = work(&world.library);
    clear(&world.library)?;
    files::private_dir(&work)?;
    let made = || -> Result<(), StepError> {
        let (disk, make, cancel) =
            (work.join("disk.img"), world.machines.make(&node.name)?, control.cancel());
        let bytes =
            make.flatten(&world.cluster, &node.name, &image, &disk, &mut |m| control.says(m), cancel)?;
        control.says("packing the box");
        let from = image.image.parent().unwrap_or(&image.image);
        boxes::pack(from, &disk, bytes, &baked.key, &work.join(PACKED), cancel)?;
        Ok(files::write(&work.join(KEY), baked.key.as_bytes(), 0o600)?)
    };
    let made = made();
    if made.is_err() {
        // A full disk is not kept full.
        clear(&world.library)?;
    }
    made.map(|()| None)
}

/// Where a box is packed: on the library's file system, and no box for it.
fn work(library: &boxes::Library) -> PathBuf {
    library.dir().join(".baking")
}

const PACKED: &str = "new.box";
/// Of what the box is that was packed.
const KEY: &str = "key";

/// Whether anything is left of a box that was packed.
pub fn is_left(library: &boxes::Library) -> bool {
    work(library).exists()
}

/// Takes that away.
pub fn clear(library: &boxes::Library) -> Result<(), files::Error> {
    match fs::remove_dir_all(work(library)) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(e).at("remove", &work(library)),
        _ => Ok(()),
    }
}

/// The box that was packed goes into the library, when the machine is gone that it was made of: whole, or not at all.
pub fn keep(world: &World) -> Result<(), StepError> {
    let changed = || {
        let what = "what the box was baked of has changed meanwhile";
        StepError::new(what, "`p1 box bake` bakes another one.").kind(FailureKind::Conflict)
    };
    let (name, baked) = world.to_bake()?.ok_or_else(changed)?;
    let work = work(&world.library);
    if files::read_if_there(&work.join(KEY))?.as_deref() != Some(&baked.key) {
        return Err(changed());
    }
    let provider = Some(world.machines.kind().name().to_owned());
    world.library.take(&name, &work.join(PACKED), Origin::Baked(baked), provider)?;
    Ok(clear(&world.library)?)
}
