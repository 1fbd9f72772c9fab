//! The box is in Vagrant's home: taken from this host's library, a file or a download, or built.

use std::fs;
use std::time::Duration;

use serde_json::json;

use super::{ClusterDef, Ctx, Step};
use crate::access::{World, box_label, definition, given, image_wanted, of_definition};
use crate::artifacts::{self, Progress};
use crate::boxes::{self, Origin};
use crate::engine::{Control, StepError};
use crate::machines::{Cap, Make};
use crate::observed::{Baked, View};
use crate::os::lock::Lock;
use crate::os::process::{quote, quote_os};
use crate::plan::{Check, ClusterStep};
use crate::spec::{BoxRef, Cluster, Source};
use crate::state::ImageFact;

pub const STEP: Step = Step::Cluster(ClusterDef {
    name: ClusterStep::Box,
    title: "get the box",
    after: &[],
    on_demand: true,
    needs: Some(Cap::Make),
    retry: true,
    check,
    inputs,
    apply,
});

/// Another p1 may be building the same box.
const LOCK_TIMEOUT: Duration = Duration::from_secs(1800);

fn check(view: &View<'_>) -> Check {
    match (view.seen.here.box_ready, &view.seen.here.baked) {
        (true, Baked::No | Baked::Fits(_)) => Check::Done("it is unpacked".into()),
        (_, Baked::Due) => Check::Needed("no baked box fits, and one is baked (`bake: auto`)".into()),
        (_, Baked::Unknown) => {
            Check::Unknown("whether a baked box fits shows when k3s' files are here".into())
        }
        (false, Baked::Fits(name)) => Check::Needed(format!("the baked box {name} is not unpacked yet")),
        (false, Baked::No) => Check::Needed("it is not unpacked yet".into()),
    }
}

fn inputs(cluster: &Cluster) -> serde_json::Value {
    json!(cluster.image)
}

fn apply(ctx: &Ctx<'_>) -> Result<Option<String>, StepError> {
    let (world, control) = (ctx.world, ctx.control);
    let cancel = control.cancel();
    let wanted = image_wanted(world)?;
    let Some(make) = world.machines.makers().next() else { return Ok(None) };
    // Before the lock, which who bakes takes as well.
    let (baked, just) = baked(world, control)?;
    let _lock = Lock::take(&world.host_lock, "box", LOCK_TIMEOUT, cancel)?;
    let baked = match baked {
        Some(manifest) => whole(world, make, manifest, control)?,
        None => None,
    };
    world.note(|seen| {
        seen.here.baked = baked.as_ref().map_or(Baked::No, |manifest| Baked::Fits(manifest.name.clone()));
    });
    let (label, sha256, file) = match &world.cluster.image {
        _ if let Some(manifest) = &baked => {
            (manifest.name.clone(), manifest.sha256.clone(), world.library.path(&manifest.name))
        }
        BoxRef::Definition(name) => {
            let mut manifest = built(world, name, &mut |m| control.says(m))?;
            let file = world.library.path(name);
            // Read once, when Vagrant gets it: a damaged file would become machines that do not boot.
            if !make.has_image(&make.image(name, &manifest.sha256)) {
                control.says("checking the box file");
                if boxes::sha256(&file)? != manifest.sha256 {
                    manifest = again(world, name, &manifest, control)?;
                }
            }
            (name.clone(), manifest.sha256, file)
        }
        BoxRef::Path(path) => {
            control.says("reading the box file");
            (box_label(&world.cluster.image), boxes::sha256(path)?, path.clone())
        }
        BoxRef::Url { url, sha256 } => {
            let mut progress = |p: Progress<'_>| control.moved("fetching the box", p.done, p.total);
            let source = Source::Url { url: url.clone(), sha256: sha256.clone() };
            let bounds = world.bounds();
            let file =
                artifacts::fetch_one(&source, &world.cache, &world.net, &bounds, &mut progress, cancel)?;
            (box_label(&world.cluster.image), sha256.clone(), file.path)
        }
    };
    let info = make.image(&label, &sha256);
    if !make.has_image(&info) {
        control.says("unpacking it");
        make.take_image(&info, &file, cancel)?;
    }
    let mut facts = world.state.facts()?;
    let fact = ImageFact { wanted, label, sha256, baked: baked.map(|manifest| manifest.name) };
    // What machines of before lie over goes with the last of them.
    let before = facts
        .image
        .take()
        .filter(|f| f.sha256 != fact.sha256 && !world.machines.ids(&world.cluster).is_empty());
    facts.former.retain(|f| f.sha256 != fact.sha256);
    facts.former.extend(before);
    facts.image = Some(fact);
    facts.provider = Some(world.machines.kind());
    let libvirt = &world.cluster.libvirt;
    facts.libvirt = libvirt.is_session().then(|| libvirt.clone());
    world.state.keep(&facts)?;
    world.note(|seen| seen.here.box_ready = true);
    Ok(Some(if just { format!("no baked box fitted, so one was baked: {}", info.name) } else { info.name }))
}

/// The baked box that machines start from, and whether it was just baked: where the spec asks for that and none fits.
fn baked(world: &World, control: &Control) -> Result<(Option<boxes::Manifest>, bool), StepError> {
    let makes = world.makes_machines();
    if world.look_for_baked(makes)? == Baked::Unknown {
        // The step that gets them may be at it, and is waited for.
        let arch = artifacts::arch(std::env::consts::ARCH)?;
        control.says("waiting for k3s' files");
        world.files(arch, &mut |_| {}, &mut |_| {})?;
    }
    Ok(match world.look_for_baked(makes)? {
        Baked::Fits(name) => (world.library.get(&name)?, false),
        Baked::Due => (Some(world.bake(&mut |text| control.says(format!("baking a box: {text}")))?), true),
        Baked::No | Baked::Unknown => (None, false),
    })
}

/// The same, unless its file is damaged: then it goes, and machines start from the spec's own box.
fn whole(
    world: &World,
    make: &dyn Make,
    manifest: boxes::Manifest,
    control: &Control,
) -> Result<Option<boxes::Manifest>, StepError> {
    let file = world.library.path(&manifest.name);
    if make.has_image(&make.image(&manifest.name, &manifest.sha256)) {
        return Ok(Some(manifest));
    }
    control.says("checking the baked box");
    if boxes::sha256(&file)? == manifest.sha256 {
        return Ok(Some(manifest));
    }
    world.library.remove(&manifest.name)?;
    control.warn(format!("The baked box {} was damaged and is removed; it is not used.", manifest.name));
    Ok(None)
}

/// A box of the library whose file is damaged: one that p1 built is built again.
fn again(
    world: &World,
    name: &str,
    manifest: &boxes::Manifest,
    control: &Control,
) -> Result<boxes::Manifest, StepError> {
    let file = world.library.path(name);
    if let Origin::Built { .. } = manifest.origin {
        control.warn(format!("{} is damaged; the box is rebuilt.", file.display()));
        return build(&world.library, &definition(world, name)?, &mut |m| control.says(m), &world.cancel);
    }
    let from = match &manifest.origin {
        Origin::Url(url) => format!("--sha256 {} {}", manifest.sha256, quote(url)),
        Origin::Path(path) => quote_os(path.as_os_str()),
        Origin::Baked(_) => {
            return Err(StepError::new(
                format!(
                    "the box file {} is damaged: its checksum has changed since it was baked",
                    file.display()
                ),
                format!("`p1 box remove {name}` removes it, and `p1 box bake` bakes another one."),
            )
            .next([format!("p1 box remove {name}")]));
        }
        Origin::Built { .. } => unreachable!("handled above"),
    };
    let add = format!("p1 box add --name {name} {from}");
    Err(StepError::new(
        format!("the box file {} is damaged: its checksum has changed since it was added", file.display()),
        format!("Add it again under that name: `{add}`."),
    )
    .next([add, "p1 retry".to_owned()]))
}

/// The box of a definition, as the library has it; built now if it has none of this definition.
pub fn built(world: &World, name: &str, report: &mut dyn FnMut(&str)) -> Result<boxes::Manifest, StepError> {
    if let Some(manifest) = given(world, name)? {
        return Ok(manifest);
    }
    if !world.machines.kind().takes_built_boxes() {
        return Err(StepError::new(
            format!("the box `{name}` can be built for libvirt only"),
            "Give `box: {path: ...}` or `box: {url: ..., sha256: ...}` with a box for VirtualBox, or add one \
             under this name: `p1 box add --help` says how.",
        ));
    }
    let definition = definition(world, name)?;
    if let Some(manifest) = of_definition(world, name, &definition)? {
        return Ok(manifest);
    }
    if world.net.offline {
        return Err(StepError::new(
            format!("the box `{name}` would have to be built from packages, and p1 is offline"),
            "`p1 box add --help` says how to take the file of one that was built elsewhere.",
        ));
    }
    build(&world.library, &definition, report, &world.cancel)
}

/// Builds a box into the library.
pub fn build(
    library: &boxes::Library,
    definition: &boxes::Definition,
    report: &mut dyn FnMut(&str),
    cancel: &crate::os::Cancel,
) -> Result<boxes::Manifest, StepError> {
    let work = library.dir().join(".building");
    crate::os::files::dir(&work)?;
    let built = boxes::build(definition, &work, report, cancel)?;
    report("keeping it");
    let origin = Origin::Built { digest: boxes::digest(definition), version: definition.version.clone() };
    let (sum, provider) = (Some(built.sha256.as_str()), Some("libvirt".to_owned()));
    let manifest = library.add(&definition.name, &built.path, sum, origin, provider, built.packages)?;
    let _ = fs::remove_dir_all(&work);
    Ok(manifest)
}
