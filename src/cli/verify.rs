//! `p1 verify`: the cluster works, proven by using it.

use super::args::Verify;
use super::context::Context;
use super::error::{CliError, code};
use super::fault;
use super::run::{self, Job};
use crate::event::VerbName;
use crate::state::StateDir;
use crate::verbs::Verb;

/// Proves it; exit code 1 if something does not work.
pub fn verify(context: &Context, args: &Verify) -> Result<(), CliError> {
    let cluster = context.spec()?;
    let targets = context.targets(&cluster, &args.nodes.nodes)?;
    let state = StateDir::of(cluster.home(), &cluster.name);
    if let Some(image) = args.image.as_ref().filter(|i| i.is_empty() || i.contains(char::is_whitespace)) {
        let what = format!("`{image}` is not the name of an image");
        return Err(CliError::new(code::USAGE, what, "Write it as in a pod: `--image busybox:1.36.1`."));
    }
    context.must_be_made(&cluster, &state)?;
    let job = Job {
        verb: Verb::of(VerbName::Verify),
        replace: Vec::new(),
        targets,
        subject: args.image.clone(),
        retry_of: None,
        deep: false,
    };
    let proof = || run::verdict(&run::run(context, cluster, job, &|_, _| Ok(()))?);
    match &args.under {
        Some(text) => fault::under(context, text, proof),
        None => proof(),
    }
}
