//! `p1 exec`: a command on several nodes at once.

use nix::sys::signal::Signal;
use serde_json::json;

use super::args::Exec;
use super::context::Context;
use super::error::{CliError, with_kind};
use super::{out, print};
use crate::engine::StepError;
use crate::explain::{printable, without_name};
use crate::os::lines::Lines;
use crate::os::many;
use crate::os::process::shell_line;
use crate::spec::Node;
use crate::ssh::{self, Bound, Output, Remote};
use crate::state::StateDir;
use crate::ui::{Format, Tone};

/// Runs the command; each line is told with its node. The exit code is the highest of all, or 1.
pub fn exec(context: &Context, args: &Exec) -> Result<(), CliError> {
    let cluster = context.spec()?;
    let targets = context.targets(&cluster, &args.nodes.nodes)?;
    let state = StateDir::of(cluster.home(), &cluster.name);
    context.must_be_made(&cluster, &state)?;
    let kind = context.kind(&cluster, &state)?;
    let world = context.world(cluster, kind);
    let nodes: Vec<_> =
        world.cluster.nodes.iter().filter(|n| targets.is_empty() || targets.contains(&n.name)).collect();
    let line = shell_line(&args.command);
    let width = nodes.iter().map(|n| n.name.len()).max().unwrap_or(0);
    let paint = context.paint();
    let json_out = context.ui.format == Format::Json;
    let say = |text: String| print(format!("{text}\n"));
    let one = |node: &Node| -> Result<i32, StepError> {
        let mut tell = |text: &str| match json_out {
            true => say(json!({"v": 1, "node": node.name, "line": text}).to_string()),
            false => say(format!(
                "{} {}",
                paint.tone(Tone::Hint, &format!("{:width$} |", node.name)),
                printable(text)
            )),
        };
        let mut lines = Lines::default();
        // As much as the user's own command says.
        let bound = Bound::from(args.timeout).at_most(u64::MAX);
        let mut heard = |bytes: &[u8]| lines.push(bytes, &mut tell);
        let output = match args.root {
            true => Remote::new(world.login(node)?, world.cancel.clone())
                .exec_as_root(&line, b"", bound, &mut heard),
            false => world.users_remote(node)?.exec(&line, b"", bound, &mut heard),
        };
        // Also what came before it was cut off.
        lines.finish(&mut tell);
        ended(output)
    };
    let results = many::each(context.global.jobs, &nodes, |n| (n.name.clone(), one(n)));
    let mut worst = Ok(());
    for (node, result) in results {
        let (code, fail) = match result {
            Ok(status) => (u8::try_from(status).unwrap_or(1), None),
            Err(error) => {
                let mut fail = CliError::from(error);
                fail.message = without_name(&node, &fail.message).to_owned();
                eprint!("{node}: {}", fail.show(paint, &context.called()));
                (
                    fail.code,
                    Some(CliError { message: format!("{node}: {}", fail.message), told: true, ..fail }),
                )
            }
        };
        if json_out {
            let (cause, hint) =
                (fail.as_ref().map(|f| &f.message), fail.as_ref().and_then(|f| f.hint.as_ref()));
            let mut object = json!({"v": 1, "node": node, "status": code, "cause": cause, "hint": hint});
            if let Some(fail) = &fail {
                with_kind(&mut object, &fail.kind);
            }
            out::object(&object);
        } else if fail.is_none() && code != 0 {
            eprintln!("{node}: exit code {code}");
        }
        if code > worst.as_ref().map_or_else(|w: &CliError| w.code, |()| 0) {
            worst = Err(fail.unwrap_or_else(|| CliError::told(code, format!("{node}: exit code {code}"))));
        }
    }
    worst
}

/// What a command ended with; one that a signal ended counts as in a shell.
fn ended(done: Result<Output, ssh::Error>) -> Result<i32, StepError> {
    match done {
        Ok(output) => Ok(output.status),
        Err(error) => {
            let signal = match &error {
                ssh::Error::Killed { signal, .. } => format!("SIG{signal}").parse::<Signal>().ok(),
                _ => None,
            };
            signal.map(|signal| 128 + signal as i32).ok_or_else(|| error.into())
        }
    }
}
