//! `p1 destroy`: works on half-made and vanished machines, and is not blocked by what nobody holds.

use super::context::Context;
use super::fail::{Fail, code};
use super::run::{self, Job};
use crate::steps::Verb;

/// Removes machines, and with all of them everything of the cluster.
pub fn destroy(context: &Context, nodes: &[String]) -> Result<(), Fail> {
    let cluster = context.spec()?;
    let targets = context.targets(&cluster, nodes)?;
    let all = cluster.servers().all(|s| targets.contains(&s.name));
    if let Some(server) = targets.iter().find(|t| cluster.servers().any(|s| s.name == **t))
        && all
        && targets.len() < cluster.nodes.len()
    {
        return Err(Fail::new(
            code::USAGE,
            match cluster.servers().count() {
                1 => format!("`{server}` is the cluster's only server: without it there is no cluster"),
                _ => "these are all servers: without them there is no cluster".to_owned(),
            },
            "`p1 destroy` without names removes the whole cluster.",
        ));
    }
    // Every node by name is the same as none by name.
    let targets = if targets.len() == cluster.nodes.len() { Vec::new() } else { targets };
    let whole = targets.is_empty();
    let names: Vec<&str> = match whole {
        true => cluster.nodes.iter().map(|n| n.name.as_str()).collect(),
        false => targets.iter().map(String::as_str).collect(),
    };
    let question = match whole {
        true => format!(
            "This destroys the cluster `{}` with its data: {}. Go on?",
            cluster.name,
            names.join(", ")
        ),
        false => format!("This destroys {} with their data. Go on?", names.join(", ")),
    };
    let job = Job {
        verb: Verb::find("destroy").expect("a verb"),
        targets,
        subject: None,
        retry_of: None,
        deep: false,
    };
    let report = run::run(context, cluster, job, &|_, _| context.agree(&question))?;
    run::verdict(&report)
}
