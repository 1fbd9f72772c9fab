//! What can be known of a spec from this host alone: whether its box can be had, whether its files fit.

use super::context::{Context, variable};
use super::error::{CliError, code};
use super::out;
use crate::artifacts::{self, Bounds, Cache, Error as Artifacts, Net};
use crate::boxes::{self, Origin};
use crate::event::VERSION;
use crate::explain::{Explain, chain};
use crate::machines::Kind;
use crate::plan::{ClusterStep, Plan};
use crate::spec::{self, BoxRef, Cluster, Parsed, Part, Remark};
use crate::state::StateDir;
use crate::ui::Format;

/// Reads the spec, and looks at this host for what it names.
pub fn load(context: &Context) -> Result<Parsed, spec::Error> {
    spec::load_here(&context.global.file, &variable, &|cluster| remarks(context, cluster))
}

/// The same, with the errors told.
pub fn told(context: &Context) -> Result<Parsed, CliError> {
    load(context).map_err(|error| context.told(error))
}

/// A plan that needs the box or k3s' files is not begun where the spec's cannot be had.
pub fn must_fit(context: &Context, plan: &Plan) -> Result<(), CliError> {
    let needs = |part| plan.is_due(if part == Part::Box { ClusterStep::Box } else { ClusterStep::Artifacts });
    let look = |cluster: &Cluster| {
        // A file is read when its step comes, and then Vagrant says more about it.
        let file = matches!(cluster.image, BoxRef::Path(_));
        let mut all = remarks(context, cluster);
        all.retain(|remark| needs(remark.part) && !(file && remark.part == Part::Box));
        all
    };
    match spec::load_here(&context.global.file, &variable, &look) {
        Ok(_) => Ok(()),
        Err(error) => Err(context.told(error)),
    }
}

fn remarks(context: &Context, cluster: &Cluster) -> Vec<Remark> {
    // Whether there is a provider at all is not a matter of the spec.
    let state = StateDir::of(cluster.home(), &cluster.name);
    let kind = context.provider(cluster, &state).ok();
    let mut all: Vec<Remark> = of_box(context, cluster, kind).into_iter().collect();
    all.extend(of_artifacts(context, cluster));
    all
}

fn of_box(context: &Context, cluster: &Cluster, kind: Option<Kind>) -> Option<Remark> {
    let remark =
        |message: String, help: &str| Some(Remark { part: Part::Box, message, help: help.to_owned() });
    let other = |has: &Option<String>| {
        let (has, kind) = (has.as_deref()?, kind?);
        (has != kind.name()).then(|| format!("this box is for {has}, and the machines are to be of {kind}"))
    };
    const FITS: &str = "Give a box for that provider, or set `provider`.";
    if kind == Some(Kind::Ssh) {
        return None;
    }
    let name = match &cluster.image {
        BoxRef::Definition(name) => name,
        BoxRef::Path(path) => {
            return match boxes::inspect(path, &context.cancel) {
                Ok(has) => other(&has).and_then(|message| remark(message, FITS)),
                Err(error) => remark(chain(&error), &error.hint().unwrap_or_default()),
            };
        }
        BoxRef::Url { .. } => return None,
    };
    let library = context.library();
    if let Ok(Some(manifest)) = library.get(name)
        && !matches!(manifest.origin, Origin::Built { .. })
    {
        return other(&manifest.provider).and_then(|message| remark(message, FITS));
    }
    if let Err(error) = boxes::load(name, Some(&cluster.base.join("boxes"))) {
        return remark(chain(&error), &error.hint().unwrap_or_default());
    }
    if kind.is_some_and(|kind| !kind.takes_built_boxes()) {
        return remark(
            format!("the box `{name}` can be built for libvirt only"),
            "Give `box: {path: ...}` or `box: {url: ..., sha256: ...}` with a box for VirtualBox, or add one under \
             this name (`p1 box add --help`).",
        );
    }
    None
}

fn of_artifacts(context: &Context, cluster: &Cluster) -> Option<Remark> {
    let given = &cluster.k3s.artifacts;
    let part = if given.dir.is_some() { Part::ArtifactsDir } else { Part::Binary };
    if given.dir.is_none() && given.binary.is_none() {
        return None;
    }
    if let Some(dir) = given.dir.as_ref().filter(|dir| !dir.is_dir()) {
        let help = "`p1 artifacts fetch` fills it, on a host with a connection; relative paths start at the spec's folder.";
        return Some(Remark {
            part,
            message: format!("the folder {} is not there", dir.display()),
            help: help.into(),
        });
    }
    let arch = artifacts::arch(std::env::consts::ARCH).ok()?;
    let cache = Cache { dir: context.dirs().cache.join("artifacts") };
    let net = Net { offline: true, ..context.net() };
    let bounds = Bounds::new(&cluster.timeouts, &cluster.retry);
    let found = artifacts::resolve(&cluster.k3s.release, given, arch, &cache, &net, &bounds, &context.cancel);
    match found {
        Err(error @ (Artifacts::Folder { .. } | Artifacts::OtherVersion { .. } | Artifacts::File(_))) => {
            let help = error.hint().unwrap_or_default();
            Some(Remark { part, message: chain(&error), help })
        }
        _ => None,
    }
}

/// `p1 validate -o json`: whether the spec is good, and what is said of it.
pub fn json(context: &Context) -> Result<(), CliError> {
    let (valid, problems) = match load(context) {
        Ok(parsed) => (true, parsed.warnings),
        Err(spec::Error::Invalid(invalid)) => (false, invalid.problems),
        Err(error) => return Err(CliError::of(code::USAGE, &error)),
    };
    out::object(&serde_json::json!({"v": 1, "valid": valid, "problems": problems}));
    match valid {
        true => Ok(()),
        false => Err(CliError::told(
            code::USAGE,
            format!("{} is not a spec of a cluster", context.global.file.display()),
        )),
    }
}

impl Context {
    /// A spec's errors, shown as a compiler would.
    pub(super) fn told(&self, error: spec::Error) -> CliError {
        match error {
            spec::Error::Invalid(invalid) if self.ui.format != Format::Json => {
                eprintln!("{}", invalid.render(self.ui.color));
                CliError::new(code::USAGE, invalid.to_string(), "")
            }
            error => CliError::of(code::USAGE, &error),
        }
    }

    /// A spec that can be used, with its warnings said.
    pub(super) fn warned(&self, parsed: Parsed) -> Result<Cluster, CliError> {
        let Parsed { cluster, warnings } = parsed;
        self.redactor.learn(&cluster.secrets);
        for warning in &warnings {
            match self.ui.format {
                Format::Json => {
                    // Without the line of the spec, which may have a password in it.
                    let mut warning = serde_json::json!(warning);
                    warning["snippet"].take();
                    out::object(&serde_json::json!({"v": VERSION, "warning": warning}));
                }
                _ => eprintln!("{}", warning.render(&self.global.file, self.ui.color)),
            }
        }
        self.usable(cluster)
    }

    /// A cluster whose folder can be named in the files that are made for it.
    pub(super) fn usable(&self, cluster: Cluster) -> Result<Cluster, CliError> {
        if cluster.base.to_str().is_none() {
            let what = format!("the name of the folder {} is not UTF-8", cluster.base.display());
            let hint = "Vagrant's files and p1's journal cannot name it: use another folder.";
            return Err(CliError::new(code::USAGE, what, hint));
        }
        Ok(cluster)
    }
}
