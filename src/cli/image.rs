//! `p1 image`: what this user's clusters pulled, and images that are brought along.

use std::collections::BTreeSet;
use std::io::Read;
use std::path::Path;
use std::time::Duration;

use serde_json::json;

use super::args::ImageVerb;
use super::context::Context;
use super::error::{CliError, code};
use super::run::{self, Job};
use super::{out, print};
use crate::event::VerbName;
use crate::images::{Digest, Images, MOST_BYTES, MOST_DAYS, full};
use crate::k3s::Arch;
use crate::os::files::{self, At};
use crate::os::process::{self, Cmd};
use crate::spec::Cluster;
use crate::state::StateDir;
use crate::ui::{Cell, Format, Layout, bytes, table};
use crate::verbs::Verb;

/// What writes or unpacks an archive of some GB.
const ARCHIVE: Duration = Duration::from_secs(1800);

/// Runs one of them.
pub fn run(context: &Context, verb: ImageVerb) -> Result<(), CliError> {
    let images = Images::new(context.dirs().images());
    match verb {
        ImageVerb::List => list(context, &images),
        ImageVerb::Prune { all } => prune(context, &images, all),
        ImageVerb::Load { images: wanted } => load(context, &images, &wanted),
    }
}

fn list(context: &Context, images: &Images) -> Result<(), CliError> {
    let index = images.index()?;
    let mut rows = Vec::new();
    for image in &index.images {
        let of = || index.clusters.iter().filter(|(_, of)| of.names.contains(&image.name));
        let clusters: Vec<&String> = of().map(|(name, _)| name).collect();
        let always = index.clusters.values().any(|of| of.always.contains(&image.name));
        if context.ui.format == Format::Json {
            out::object(&json!({
                "v": 1, "image": image.name, "digest": image.digest, "arch": image.arch, "bytes": image.bytes, "at": image.at,
                "used": image.used, "loaded": image.loaded, "clusters": clusters, "always": always,
            }));
            continue;
        }
        let clusters: Vec<&str> = clusters.into_iter().map(String::as_str).collect();
        rows.push(vec![
            Cell::from(context.shown(&image.name)),
            Cell::from(image.digest.hex()[..12].to_owned()),
            Cell::from(image.arch.clone()),
            Cell::from(bytes(image.bytes)),
            Cell::from(image.used.strftime("%Y-%m-%d").to_string()),
            Cell::from(clusters.join(", ")),
            Cell::from(if always { "asked for at every start all the same" } else { "" }.to_owned()),
        ]);
    }
    if context.ui.format == Format::Json {
        return Ok(());
    }
    if rows.is_empty() {
        eprintln!("no image is kept; what nodes pull is, when `p1 up` has succeeded");
        return Ok(());
    }
    let layout = Layout { paint: context.paint(), right: false, indent: 0 };
    print(table(&["image", "digest", "arch", "size", "used", "clusters", "note"], &rows, layout));
    Ok(())
}

fn prune(context: &Context, images: &Images, all: bool) -> Result<(), CliError> {
    let _signals = super::signals::watch_plain(context.cancel.clone())?;
    let (gone, freed) = images.prune(all, jiff::Timestamp::now(), &context.cancel)?;
    let names: Vec<String> = gone.into_iter().map(|image| image.name).collect();
    match context.ui.format {
        Format::Json => out::object(&json!({"v": 1, "pruned": names, "bytes": freed})),
        _ if all => eprintln!("removed all {} images ({})", names.len(), bytes(freed)),
        _ => eprintln!(
            "removed {} images ({}): what was not used for {MOST_DAYS} days, and what was beyond {}; `--all` removes all",
            names.len(),
            bytes(freed),
            bytes(MOST_BYTES)
        ),
    }
    Ok(())
}

fn load(context: &Context, images: &Images, wanted: &[String]) -> Result<(), CliError> {
    let cluster = context.spec()?;
    let state = StateDir::of(&cluster.base, &cluster.name);
    let made = state.key().is_file();
    let archs = match made {
        true => context.world(cluster.clone(), context.kind(&cluster, &state)?).archs(),
        false => [crate::artifacts::arch(std::env::consts::ARCH)?].into(),
    };
    let names = {
        let _signals = super::signals::watch_plain(context.cancel.clone())?;
        let mut came = Vec::new();
        for one in wanted {
            came.extend(take(context, images, one)?);
        }
        remember(context, images, &cluster, &came, &archs)?
    };
    if !cluster.keep_images {
        eprintln!("note: the spec says `keep_images: false`, so new nodes are not given them");
    }
    if !made {
        eprintln!("`p1 up` gives them to the nodes");
        return Ok(());
    }
    let job = Job {
        verb: Verb::of(VerbName::LoadImage),
        replace: Vec::new(),
        targets: Vec::new(),
        subject: Some(names.into_iter().collect::<Vec<_>>().join(" ")),
        retry_of: None,
        deep: false,
    };
    let report = run::run(context, cluster, job, &|_, _| Ok(()))?;
    run::verdict(&report)
}

/// The images of an archive, or of docker or podman, as far as they are here.
fn take(context: &Context, images: &Images, one: &str) -> Result<Vec<(String, Digest)>, CliError> {
    let mut told = 0;
    let mut moved = |done: u64| {
        // Once for every GB: it is no run, and has no screen.
        if done >> 30 > told {
            told = done >> 30;
            eprintln!("read {} of {one}", bytes(done));
        }
    };
    let path = Path::new(one);
    if path.exists() {
        return Ok(match packed_by(path)? {
            None => images.unpack(path, &context.cancel, &mut moved)?,
            Some(program) => {
                let part = images.part()?;
                let script = "exec \"$0\" -dc <\"$1\" >\"$2\"";
                let cmd = Cmd::new("sh").arg("-c").arg(script).arg(program).arg(path).arg(part.path());
                process::run(&cmd, ARCHIVE, &context.cancel)?.ok()?;
                images.unpack(part.path(), &context.cancel, &mut moved)?
            }
        });
    }
    if one.contains("/../") || one.starts_with(['.', '/']) || full(one).is_none() {
        let hint = "Name a file, or an image as `docker images` or `podman images` has it.";
        return Err(CliError::new(
            code::USAGE,
            format!("`{one}` is neither a file nor the name of an image"),
            hint,
        ));
    }
    let mut evidence = Vec::new();
    for program in ["docker", "podman"] {
        let Some(found) = context.env.find(program) else { continue };
        let part = images.part()?;
        let cmd = Cmd::new(found).arg("save").arg("-o").arg(part.path()).arg(one);
        let done = process::run(&cmd, ARCHIVE, &context.cancel)?;
        if done.success() {
            return Ok(images.unpack(part.path(), &context.cancel, &mut moved)?);
        }
        evidence.push(format!("{program}: {}", process::tail(&done.stderr, 1).join("")));
    }
    let (what, hint) = match evidence.is_empty() {
        true => (
            format!("there is no file `{one}`, and neither docker nor podman on this host"),
            "Name an archive that `docker save` or `podman save` wrote.",
        ),
        false => (
            format!("there is no file `{one}`, and no such image in docker or podman"),
            "Pull or build it there first; p1 asks no registry.",
        ),
    };
    Err(CliError { evidence, ..CliError::new(code::USAGE, what, hint) })
}

/// What unpacks it; none for what is not packed. Told by its first bytes, whatever it is called.
fn packed_by(path: &Path) -> Result<Option<&'static str>, CliError> {
    let mut magic = Vec::new();
    files::open(path)?.take(4).read_to_end(&mut magic).at("read", path)?;
    Ok(match magic[..] {
        [0x1f, 0x8b, ..] => Some("gzip"),
        [0x28, 0xb5, 0x2f, 0xfd] => Some("zstd"),
        _ => None,
    })
}

/// They are the cluster's from now on. Their names.
fn remember(
    context: &Context,
    images: &Images,
    cluster: &Cluster,
    came: &[(String, Digest)],
    archs: &BTreeSet<Arch>,
) -> Result<BTreeSet<String>, CliError> {
    let with =
        |arch: &'static str| came.iter().map(move |(name, d)| (name.clone(), d.clone(), arch.to_owned()));
    let all: Vec<_> = archs.iter().flat_map(|arch| with(arch.name())).collect();
    let names: BTreeSet<String> = came.iter().map(|(name, _)| name.clone()).collect();
    let note = |index: &mut crate::images::Index| {
        index.clusters.entry(cluster.name.clone()).or_default().names.extend(names.clone());
    };
    let lacking = images.keep(&all, true, jiff::Timestamp::now(), note, &context.cancel)?;
    let index = images.index()?;
    let archs: Vec<&str> = archs.iter().map(|arch| arch.name()).collect();
    if let Some(none) = names.iter().find(|n| archs.iter().all(|arch| index.image(n, arch).is_none())) {
        let what = format!("`{none}` is not whole for {}", archs.join(" or "));
        return Err(CliError::new(
            code::USAGE,
            what,
            "Save it for the nodes' machines, with all its layers.",
        ));
    }
    if let Some(some) = lacking.first() {
        eprintln!("note: `{some}` is not for all of {}", archs.join(", "));
    }
    for (name, digest) in came {
        match context.ui.format {
            Format::Json => out::object(&json!({"v": 1, "loaded": name, "digest": digest})),
            _ => eprintln!("{} is here", context.shown(name)),
        }
    }
    Ok(names)
}
