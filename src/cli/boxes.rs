//! `p1 box`: the boxes of this host.

use std::path::{Path, PathBuf};

use serde_json::json;

use super::args::BoxVerb;
use super::context::{Context, variable};
use super::error::{CliError, code};
use super::{bake, out, print};
use crate::access::file_stands_for;
use crate::artifacts;
use crate::boxes::unpacked::{self, Unpacked};
use crate::boxes::{self, Library, Manifest, Origin};
use crate::machines::Kind;
use crate::observe::look_at_files;
use crate::observed::Baked;
use crate::os::files::{self, At};
use crate::os::process::quote;
use crate::spec::{Retry, Source, Timeouts};
use crate::state::StateDir;
use crate::steps;
use crate::ui::{Cell, Format, Layout, bytes, table};

/// Runs one of them.
pub fn run(context: &Context, verb: BoxVerb) -> Result<(), CliError> {
    let library = context.library();
    match verb {
        BoxVerb::Build { name, force } => build(context, &library, &name, force),
        BoxVerb::Bake { clean: true, .. } => bake::clean(context),
        BoxVerb::Bake { force, .. } => bake::run(context, &library, force),
        BoxVerb::List => list(context, &library),
        BoxVerb::Add { source: Some(source), sha256, name, .. } => {
            add(context, &library, &source, sha256, name)
        }
        BoxVerb::Add { from_vagrant, provider, name, .. } => {
            let wanted = from_vagrant.unwrap_or_default();
            let dir = of_vagrant(context, &wanted, provider.as_deref())?;
            let name = name.unwrap_or_else(|| wanted.replace('/', "-").to_lowercase());
            add(context, &library, &dir.to_string_lossy(), None, Some(name))
        }
        BoxVerb::Remove { name } => {
            let gone = library.remove(&name).map_err(|e| CliError::of(code::USAGE, &e))?;
            match context.ui.format {
                Format::Json => out::object(&json!({"v": 1, "removed": gone.name})),
                _ => eprintln!("removed {} ({})", gone.name, bytes(gone.size)),
            }
            Ok(())
        }
    }
}

/// The user's own definitions lie beside the spec.
fn definitions(context: &Context) -> PathBuf {
    context.global.file.parent().unwrap_or(Path::new(".")).join("boxes")
}

fn build(context: &Context, library: &Library, name: &str, force: bool) -> Result<(), CliError> {
    let definition =
        boxes::load(name, Some(&definitions(context))).map_err(|e| CliError::of(code::USAGE, &e))?;
    let digest = boxes::digest(&definition);
    let there =
        library.get(name)?.filter(|m| matches!(&m.origin, Origin::Built { digest: d, .. } if *d == digest));
    if let Some(manifest) = there.filter(|_| !force) {
        eprintln!("{name} is there already ({}); `--force` builds it again", bytes(manifest.size));
        out::path(context, "box", &library.path(name));
        return Ok(());
    }
    let _signals = super::signals::watch_plain(context.cancel.clone())?;
    let start = std::time::Instant::now();
    let cache = artifacts::Cache { dir: context.dirs().cache.join("artifacts") };
    let bounds = artifacts::Bounds::new(&Timeouts::default(), &Retry::default());
    let from = steps::image::Downloads { cache: &cache, net: &context.net(), bounds: &bounds };
    let manifest = steps::image::build(
        library,
        &definition,
        &from,
        &mut |text| eprintln!("[{:>6.1}s] {text}", start.elapsed().as_secs_f64()),
        &context.cancel,
    )?;
    eprintln!("built {name}: {}, {} packages", bytes(manifest.size), manifest.packages.len());
    out::path(context, "box", &library.path(name));
    Ok(())
}

fn list(context: &Context, library: &Library) -> Result<(), CliError> {
    let there = library.list()?;
    let fits = fits_this(context);
    let known = boxes::embedded().iter().map(|(name, _)| *name);
    let unbuilt: Vec<&str> = known.filter(|n| !there.iter().any(|m| m.name == *n)).collect();
    if context.ui.format == Format::Json {
        for manifest in &there {
            let mut object =
                json!({"v": 1, "box": manifest, "path": out::lossy(&library.path(&manifest.name))});
            if let Origin::Baked(baked) = &manifest.origin {
                object["fits"] = json!(fits.as_deref() == Some(&manifest.name));
                object["stale"] = json!(stale(context, &there, baked));
            }
            out::object(&object);
        }
        for name in unbuilt {
            out::object(&json!({"v": 1, "definition": name}));
        }
        return Ok(());
    }
    let mut rows = Vec::new();
    for manifest in &there {
        let origin = match &manifest.origin {
            Origin::Built { version, .. } => format!("built from its definition {version}"),
            Origin::Path(path) => path.display().to_string(),
            Origin::Url(url) => url.clone(),
            Origin::Baked(baked) => {
                let version = baked.k3s.as_deref().unwrap_or("of files of the spec's");
                let fits = match stale(context, &there, baked) {
                    Some(why) => format!("; fits nothing any more: {why}"),
                    None if fits.as_deref() == Some(&manifest.name) => "; fits this spec".to_owned(),
                    None => String::new(),
                };
                format!("baked from {} with k3s {version}, {}{fits}", baked.from, baked.arch)
            }
        };
        rows.push([manifest.name.clone(), bytes(manifest.size), manifest.sha256[..12].to_owned(), origin]);
    }
    for name in unbuilt {
        rows.push([name.to_owned(), "-".into(), "-".into(), "a definition, not built yet".into()]);
    }
    let rows: Vec<Vec<Cell>> = rows.into_iter().map(|r| r.into_iter().map(Cell::from).collect()).collect();
    let layout = Layout { paint: context.paint(), right: false, indent: 0 };
    print(table(&["box", "size", "sha256", "from"], &rows, layout));
    bake::tell_of_left(context);
    Ok(())
}

/// The name of the baked box that the spec of this folder would be made from, if there is such a spec.
fn fits_this(context: &Context) -> Option<String> {
    let cluster = crate::spec::load(&context.global.file, &variable).ok()?.cluster;
    let state = StateDir::of(&cluster.base, &cluster.name);
    let kind = state.facts().ok()?.provider.or_else(|| Kind::wished(cluster.provider)).unwrap_or_default();
    let world = context.world(cluster, kind);
    look_at_files(&world);
    match world.look_for_baked(true).ok()? {
        Baked::Fits(name) => Some(name),
        Baked::No | Baked::Due | Baked::Unknown => None,
    }
}

/// Why a box can fit nothing any more, as a fragment: the box that it was baked from has changed.
fn stale(context: &Context, there: &[Manifest], baked: &boxes::Baked) -> Option<String> {
    let changed = || format!("{} has changed since", baked.from);
    if baked.image.starts_with('/') {
        let (path, then) = baked.image.rsplit_once(' ').and_then(|(rest, _)| rest.rsplit_once(' '))?;
        let Ok(meta) = std::fs::metadata(path) else { return Some(format!("{path} is gone")) };
        return match file_stands_for(Path::new(path), &meta) == baked.image {
            true => None,
            false => Some(format!("{path} has changed since (it had {then} bytes)")),
        };
    }
    let (name, sum) = baked.image.split_once(' ')?;
    let given = |m: &&Manifest| m.name == name && !matches!(m.origin, Origin::Built { .. });
    if let Some(given) = there.iter().find(given) {
        return (given.sha256 != sum).then(changed);
    }
    // One beside another spec is not known here; neither is a file of the network.
    let definition = boxes::load(name, Some(&definitions(context))).ok()?;
    (boxes::digest(&definition) != sum).then(changed)
}

/// Where Vagrant has unpacked the newest version of that box.
fn of_vagrant(context: &Context, name: &str, provider: Option<&str>) -> Result<PathBuf, CliError> {
    let home = context.users_vagrant_home();
    let all = unpacked::in_home(&home, name)?;
    let Some(version) = all.first().map(|b| &b.version) else {
        let known = unpacked::names(&home)?;
        let hint = match known.is_empty() {
            true => "It has no boxes.".to_owned(),
            false => format!("It has: {}.", known.join(", ")),
        };
        let what = format!("Vagrant has no box `{name}` in {}", home.display());
        return Err(CliError::new(code::USAGE, what, hint));
    };
    let fits = |b: &&Unpacked| b.version == *version && provider.is_none_or(|p| b.provider == p);
    match &all.iter().filter(fits).collect::<Vec<_>>()[..] {
        [one] => Ok(one.dir.clone()),
        [] => {
            let has: Vec<&str> = all.iter().map(|b| b.provider.as_str()).collect();
            let what =
                format!("Vagrant's box `{name}` {version} is not for {}", provider.unwrap_or_default());
            Err(CliError::new(code::USAGE, what, format!("It is for: {}.", has.join(", "))))
        }
        several => {
            let one = &several[0].provider;
            let next = format!("p1 box add --from-vagrant {} --provider {one}", quote(name));
            let what = format!("Vagrant's box `{name}` {version} is there for several providers");
            Err(CliError::new(code::USAGE, what, format!("Say for which one: `{next}`.")).next([next]))
        }
    }
}

fn add(
    context: &Context,
    library: &Library,
    source: &str,
    sha256: Option<String>,
    name: Option<String>,
) -> Result<(), CliError> {
    let url = source.starts_with("http://") || source.starts_with("https://");
    let usual = Path::new(source).file_stem().map(|s| s.to_string_lossy().into_owned()).unwrap_or_default();
    let name = name.unwrap_or(usual);
    let (file, origin) = if url {
        let sha256 = sha256.clone().ok_or_else(|| {
            let hint = "Nothing else vouches for a file from the network: add `--sha256`.";
            CliError::new(code::USAGE, "the checksum is missing", hint)
        })?;
        let cache = artifacts::Cache { dir: context.dirs().cache.join("artifacts") };
        let bounds = artifacts::Bounds::new(&Timeouts::default(), &Retry::default());
        let wanted = Source::Url { url: source.to_owned(), sha256 };
        let _signals = super::signals::watch_plain(context.cancel.clone())?;
        let file =
            artifacts::fetch_one(&wanted, &cache, &context.net(), &bounds, &mut |_| {}, &context.cancel)?;
        (file.path, Origin::Url(source.to_owned()))
    } else {
        let path = std::path::absolute(source).unwrap_or_else(|_| source.into());
        (path.clone(), Origin::Path(path))
    };
    let mut packed = None;
    let file = if file.is_dir() {
        let _signals = super::signals::watch_plain(context.cancel.clone())?;
        files::dir(library.dir())?;
        let made = tempfile::Builder::new().prefix(".packed-").tempdir_in(library.dir());
        let dir = packed.insert(made.at("create a folder in", library.dir())?);
        let into = dir.path().join("packed.box");
        eprintln!("packing {}", file.display());
        unpacked::pack(&file, &into, &context.cancel).map_err(|e| CliError::of(code::USAGE, &e))?;
        into
    } else {
        file
    };
    let provider = boxes::inspect(&file, &context.cancel).map_err(|e| CliError::of(code::USAGE, &e))?;
    let manifest = library
        .add(&name, &file, sha256.as_deref(), origin, provider, Vec::new())
        .map_err(|e| CliError::of(code::USAGE, &e))?;
    match context.ui.format {
        Format::Json => {
            out::object(&json!({"v": 1, "box": manifest, "path": out::lossy(&library.path(&manifest.name))}))
        }
        _ => eprintln!("added {0} ({1}); in the spec: `box: {0}`", manifest.name, bytes(manifest.size)),
    }
    Ok(())
}
