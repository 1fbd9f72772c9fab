//! The box is in Vagrant's home: taken from this host's library, a file or a download, or built.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::json;

use super::{ClusterDef, Ctx, Step};
use crate::access::{World, box_label, definition, given, image_lacks, image_wanted, of_definition};
use crate::artifacts::{self, Progress};
use crate::boxes::{self, Origin};
use crate::engine::{Control, StepError};
use crate::machines::{Cap, Make};
use crate::observed::{Baked, View};
use crate::os::Cancel;
use crate::os::files::{self, At};
use crate::os::hash::Sum;
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

/// A vendor's image has some hundred MB, which `timeouts.download` is not made for.
const IMAGE: Duration = Duration::from_secs(3600);

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
        return with(world, &definition(world, name)?, &mut |m| control.says(m));
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
    if world.net.offline && definition.image.is_none() {
        return Err(StepError::new(
            format!("the box `{name}` would have to be built from packages, and p1 is offline"),
            BUILT_ELSEWHERE,
        ));
    }
    with(world, &definition, report)
}

const BUILT_ELSEWHERE: &str =
    "`p1 box add --help` says how to take the file of one that was built elsewhere.";

fn with(
    world: &World,
    definition: &boxes::Definition,
    report: &mut dyn FnMut(&str),
) -> Result<boxes::Manifest, StepError> {
    let from = Downloads { cache: &world.cache, net: &world.net, bounds: &world.bounds() };
    build(&world.library, definition, &from, report, &world.cancel)
}

/// Where a vendor's image comes from.
pub struct Downloads<'a> {
    pub cache: &'a artifacts::Cache,
    pub net: &'a artifacts::Net,
    pub bounds: &'a artifacts::Bounds,
}

/// Builds a box into the library.
pub fn build(
    library: &boxes::Library,
    definition: &boxes::Definition,
    from: &Downloads<'_>,
    report: &mut dyn FnMut(&str),
    cancel: &Cancel,
) -> Result<boxes::Manifest, StepError> {
    let image = match &definition.image {
        Some(image) => Some(image_of(definition, image, from, report, cancel)?),
        None => None,
    };
    let work = library.dir().join(".building");
    crate::os::files::dir(&work)?;
    let built = boxes::build(definition, image.as_deref(), &work, report, cancel)?;
    report("keeping it");
    let origin = Origin::Built { digest: boxes::digest(definition), version: definition.version.clone() };
    let (sum, provider) = (Some(built.sha256.as_str()), Some("libvirt".to_owned()));
    let manifest = library.add(&definition.name, &built.path, sum, origin, provider, built.packages)?;
    let _ = fs::remove_dir_all(&work);
    Ok(manifest)
}

/// The file of a definition's image, which has the checksum that was promised.
fn image_of(
    definition: &boxes::Definition,
    image: &boxes::Image,
    from: &Downloads<'_>,
    report: &mut dyn FnMut(&str),
    cancel: &Cancel,
) -> Result<PathBuf, StepError> {
    let name = image.file_name();
    let lacks = image_lacks(image, from.cache);
    if from.net.offline && !lacks.is_empty() {
        let what = format!(
            "the box `{}` would have to be prepared from an image, and p1 is offline; missing: {}",
            definition.name,
            lacks.join(", ")
        );
        return Err(StepError::new(what, BUILT_ELSEWHERE));
    }
    let help = |error: artifacts::Error| {
        let mut error = StepError::from(error);
        error.failure.hint = Some(format!(
            "Look at `image` in the definition of `{}`, and at this host's connection and proxy settings (https_proxy, \
             no_proxy), then try again: what came so far is kept.",
            definition.name
        ));
        error
    };
    let bounds = artifacts::Bounds { total: from.bounds.total.max(IMAGE), ..from.bounds.clone() };
    let sum = match Sum::read(&image.checksums) {
        Some(sum) => sum,
        None => {
            report(&format!("looking up the checksum of {name}"));
            let list = artifacts::text(&image.checksums, from.net, &bounds, cancel).map_err(help)?;
            Sum::listed(&list, &name).ok_or_else(|| {
                StepError::new(
                    format!("{} has no SHA-256 and no SHA-512 of {name}", image.checksums),
                    "Correct `image` in the definition; nothing else vouches for the file.",
                )
            })?
        }
    };
    if let Some(url) = &image.url {
        let mut tenths = 0;
        let mut progress = |p: Progress<'_>| {
            if let Some(total) = p.total.filter(|total| *total > 0 && p.done * 10 / total > tenths) {
                tenths = p.done * 10 / total;
                report(&format!("fetching {name}: {}0% of {} MB", tenths, total / 1_000_000));
            }
        };
        return artifacts::fetch_sum(url, &sum, from.cache, from.net, &bounds, &mut progress, cancel)
            .map(|file| file.path)
            .map_err(help);
    }
    let path = definition.base.join(image.path.as_deref().unwrap_or(Path::new("")));
    report(&format!("checking {name}"));
    let found = sum.of(files::open(&path)?).at("read", &path)?;
    if found != sum.digits() {
        return Err(boxes::Error::Checksum { path, expected: sum.digits().to_owned(), found }.into());
    }
    Ok(path)
}
