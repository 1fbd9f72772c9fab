//! `p1 stop`, `start`, `killall`, `uninstall`: a verb, its nodes, no questions beyond the plan.

use super::context::Context;
use super::error::{CliError, code};
use super::run::{self, Job};
use crate::event::VerbName;
use crate::machines::{Cap, MachineState};
use crate::observed::View;
use crate::observed::drift::{Loss, worst};
use crate::verbs::Verb;

/// Runs the verb.
pub fn run(context: &Context, verb: VerbName, nodes: &[String]) -> Result<(), CliError> {
    let cluster = context.spec()?;
    let targets = context.targets(&cluster, nodes)?;
    let job = Job {
        verb: Verb::of(verb),
        replace: Vec::new(),
        targets,
        subject: None,
        retry_of: None,
        deep: false,
    };
    let report = run::run(context, cluster, job, &|world, _| {
        let seen = world.seen();
        let chosen = |name: &String| seen.request.targets.contains(name);
        let absent = |(name, m): (&String, &crate::machines::Machine)| {
            (chosen(name) && m.state == MachineState::Absent).then(|| name.clone())
        };
        let missing: Vec<String> = seen.machines.iter().filter_map(absent).collect();
        // `start` starts what is there; making it is `up`'s business.
        if verb == VerbName::Start && !missing.is_empty() {
            let what = format!("there is no machine for {}", missing.join(", "));
            return Err(CliError::new(code::FAILED, what, "`p1 up` makes it.").next(["p1 up"]));
        }
        let able = |m: &crate::machines::Machine| m.can.has(Cap::Suspend);
        if matches!(verb, VerbName::Suspend | VerbName::Resume) && !seen.machines.values().any(able) {
            let what = format!("`p1 {verb}` does nothing here: {}", Cap::Suspend.lacking());
            return Err(CliError::new(code::USAGE, what, "`p1 stop` shuts the machines down."));
        }
        let some = |states: &[MachineState]| seen.machines.values().any(|m| states.contains(&m.state));
        let live = some(&[MachineState::Running, MachineState::Paused, MachineState::Saved]);
        if matches!(verb, VerbName::Suspend | VerbName::Resume) && !live {
            let (what, next) = match missing.len() == seen.machines.len() {
                true => ("no machine exists", "p1 up"),
                false => ("no machine runs and none is suspended", "p1 start"),
            };
            return Err(CliError::new(code::FAILED, what, "There is no memory to be kept.").next([next]));
        }
        if verb == VerbName::Uninstall {
            let data = match worst(&View::new(&world.cluster, &seen), &seen.request.targets) {
                Loss::Cluster => format!(" With it goes all data of the cluster `{}`.", world.cluster.name),
                _ => String::new(),
            };
            let nodes: Vec<&str> = seen.request.targets.iter().map(String::as_str).collect();
            context.agree(&format!(
                "This removes k3s from {}, with its data and all that runs on it; the machines stay.{data} Continue?",
                nodes.join(", ")
            ))?;
        }
        Ok(())
    })?;
    run::verdict(&report)
}
