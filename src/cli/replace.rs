//! `p1 replace`: nodes leave, and come back as new machines, in one run.

use super::context::Context;
use super::error::CliError;
use super::run::{self, Job};
use super::up::preflight;
use crate::event::VerbName;
use crate::verbs::Verb;

/// Recreates nodes.
pub fn replace(context: &Context, nodes: &[String]) -> Result<(), CliError> {
    let cluster = context.spec()?;
    let replace = context.targets(&cluster, nodes)?;
    // Without its only server the cluster is a new one, and everybody has to join it again.
    let ends = cluster.servers().all(|s| replace.contains(&s.name)) && cluster.servers().count() == 1;
    let targets = if ends { Vec::new() } else { replace.clone() };
    let verb = Verb::of(VerbName::Replace);
    let job = Job { verb, replace, targets, retry_of: None, subject: None, deep: false };
    let report = run::run(context, cluster, job, &|world, plan| preflight(context, world, plan))?;
    run::verdict(&report)
}
