//! `p1 artifacts`: a folder with all that nodes need, for hosts without internet.

use std::path::{Path, PathBuf};

use serde_json::json;

use super::args::ArtifactsVerb;
use super::context::Context;
use super::error::{CliError, code};
use super::{out, print};
use crate::artifacts::folder::{self, Manifest, Set};
use crate::artifacts::{self, Bounds, Cache, Doing, Progress};
use crate::explain::Explain;
use crate::k3s::Arch;
use crate::spec::Cluster;
use crate::state::StateDir;
use crate::ui::{Cell, Format, Layout, Tone, bytes, table};

/// Runs one of them.
pub fn run(context: &Context, verb: ArtifactsVerb) -> Result<(), CliError> {
    let cluster = context.spec()?;
    match verb {
        ArtifactsVerb::Fetch { dir, arch } => fetch(context, &cluster, dir.as_deref(), &arch),
        ArtifactsVerb::Verify { dir } => verify(context, &cluster, dir.as_deref()),
    }
}

/// The folder that was named, else the spec's, else the usual one beside the spec.
fn folder(cluster: &Cluster, named: Option<&Path>) -> Result<PathBuf, CliError> {
    match named {
        Some(dir) => std::path::absolute(dir)
            .map_err(|e| CliError::new(code::USAGE, format!("{}: {e}", dir.display()), "")),
        None => Ok(cluster.k3s.artifacts.dir.clone().unwrap_or_else(|| cluster.base.join("artifacts"))),
    }
}

fn fetch(context: &Context, cluster: &Cluster, dir: Option<&Path>, archs: &[String]) -> Result<(), CliError> {
    let dir = folder(cluster, dir)?;
    let here = [std::env::consts::ARCH.to_owned()];
    let archs = if archs.is_empty() { &here } else { archs };
    let archs = archs.iter().map(|a| artifacts::arch(a)).collect::<Result<Vec<Arch>, _>>();
    let archs = archs.map_err(|e| CliError::of(code::USAGE, &e))?;
    let state = StateDir::of(cluster.home(), &cluster.name);
    let release = crate::access::release(cluster, &state)?;
    let cache = Cache { dir: context.dirs().cache.join("artifacts") };
    let bounds = Bounds::new(&cluster.timeouts, &cluster.retry);
    let _signals = super::signals::watch_plain(context.cancel.clone())?;
    let manifest = folder::gather(
        &dir,
        &release,
        &cluster.k3s.artifacts,
        &archs,
        (&cache, &context.net(), &bounds),
        &mut told(context),
        &mut |text| eprintln!("note: {text}"),
        &context.cancel,
    )
    // What does not answer is told apart from what is wrong: a script may take another way then.
    .map_err(|e| if e.transient() { CliError::of(code::HOST, &e) } else { e.into() })?;
    show(context, &dir, &manifest, &[]);
    if context.ui.format != Format::Json {
        if manifest.archs.values().any(|set| set.images.is_empty()) {
            eprintln!("note: there are no image archives in it; nodes will pull from registries");
        }
        eprintln!(
            "{} has all of it; on the other host, name it in the spec as `k3s.artifacts.dir`",
            dir.display()
        );
    }
    Ok(())
}

/// Says what is done with each file, once.
fn told(context: &Context) -> impl FnMut(Progress<'_>) + use<> {
    let quiet = context.ui.format == Format::Json;
    let mut last = (String::new(), Doing::Waiting);
    move |p: Progress<'_>| {
        if quiet || (last.0 == p.name && last.1 == p.doing) {
            return;
        }
        last = (p.name.to_owned(), p.doing);
        match p.doing {
            Doing::Waiting => eprintln!("another p1 fetches {}", p.name),
            Doing::Downloading => eprintln!("fetching {}{}", p.name, size(p.total)),
            Doing::Checking => eprintln!("checking {}", p.name),
        }
    }
}

fn size(total: Option<u64>) -> String {
    total.map_or(String::new(), |total| format!(" ({})", bytes(total)))
}

fn verify(context: &Context, cluster: &Cluster, dir: Option<&Path>) -> Result<(), CliError> {
    let dir = folder(cluster, dir)?;
    let _signals = super::signals::watch_plain(context.cancel.clone())?;
    let (manifest, bad) = folder::verify(&dir, &mut |_| {}, &context.cancel)?;
    show(context, &dir, &manifest, &bad);
    match bad.first() {
        None => Ok(()),
        Some((path, why)) => Err(CliError::new(
            code::FAILED,
            format!("{}: {why}", dir.join(path).display()),
            "`p1 artifacts fetch` puts it right, on a host with a connection.",
        )),
    }
}

fn show(context: &Context, dir: &Path, manifest: &Manifest, bad: &[(PathBuf, String)]) {
    if context.ui.format == Format::Json {
        let bad: Vec<_> =
            bad.iter().map(|(path, why)| json!({"path": out::lossy(path), "why": why})).collect();
        out::object(&json!({"v": 1, "artifacts": out::lossy(dir), "manifest": manifest, "bad": bad}));
        return;
    }
    let mut rows = Vec::new();
    for (arch, set) in &manifest.archs {
        for file in Set::files(set) {
            let why = bad.iter().find(|(path, _)| *path == file.path).map(|(_, why)| why.as_str());
            rows.push(vec![
                Cell::from(file.path.display().to_string()),
                Cell::from(arch.clone()),
                Cell::from(bytes(file.len)),
                Cell::from(file.sha256[..12].to_owned()),
                why.map_or(Cell::new(Tone::Good, "good"), |why| Cell::new(Tone::Bad, why)),
            ]);
        }
    }
    let layout = Layout { paint: context.paint(), right: false, indent: 0 };
    print(format!("k3s {}\n", manifest.k3s.as_deref().unwrap_or("of unknown version")));
    print(table(&["file", "for", "size", "sha256", "is"], &rows, layout));
}
