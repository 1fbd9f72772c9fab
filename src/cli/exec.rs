//! `p1 exec`: a command on several nodes at once.

use std::io::Write;
use std::sync::Mutex;

use serde_json::json;

use super::args::Exec;
use super::context::Context;
use super::fail::Fail;
use crate::engine::Trouble;
use crate::explain::without_name;
use crate::os::many;
use crate::os::process::quote;
use crate::spec::Node;
use crate::ssh::{Output, Remote};
use crate::state::State;
use crate::steps::World;
use crate::ui::{Format, Tone};

/// Runs the command; each line is told with its node. The exit code is the highest of all, or 1.
pub fn exec(context: &Context, args: &Exec) -> Result<(), Fail> {
    let cluster = context.spec()?;
    let targets = context.targets(&cluster, &args.nodes.nodes)?;
    let state = State::of(&cluster.base, &cluster.name);
    context.must_be_made(&cluster, &state)?;
    let kind = context.kind(&cluster, &state)?;
    let world = context.world(cluster, kind);
    let nodes: Vec<_> =
        world.cluster.nodes.iter().filter(|n| targets.is_empty() || targets.contains(&n.name)).collect();
    // One word is a shell's line, several are words, as with ssh and docker exec.
    let line = match &args.command[..] {
        [one] => one.clone(),
        words => words.iter().map(|w| quote(w)).collect::<Vec<_>>().join(" "),
    };
    let width = nodes.iter().map(|n| n.name.len()).max().unwrap_or(0);
    let (paint, out) = (context.paint(), Mutex::new(std::io::stdout()));
    let json_out = context.ui.format == Format::Json;
    let say = |text: String| {
        let mut out = out.lock().unwrap_or_else(|p| p.into_inner());
        let _ = writeln!(out, "{text}");
    };
    let one = |node: &Node| -> Result<Output, Trouble> {
        let tell = |line: &[u8]| {
            let text = String::from_utf8_lossy(line);
            match json_out {
                true => say(json!({"v": 1, "node": node.name, "line": text}).to_string()),
                false => {
                    say(format!("{} {text}", paint.tone(Tone::Hint, &format!("{:width$} |", node.name))))
                }
            }
        };
        let mut part = Vec::new();
        let mut take = |bytes: &[u8]| {
            part.extend_from_slice(bytes);
            while let Some(end) = part.iter().position(|b| *b == b'\n') {
                let line: Vec<u8> = part.drain(..=end).collect();
                tell(&line[..end]);
            }
        };
        let output = {
            let (mut remote, line) = remote_for(&world, node, args.root, &line)?;
            remote.exec(&line, b"", args.timeout, &mut take)?
        };
        if !part.is_empty() {
            tell(&part);
        }
        Ok(output)
    };
    let results = many::each(context.global.jobs, &nodes, |n| (n.name.clone(), one(n)));
    let mut worst = 0;
    for (node, result) in results {
        let status = match result {
            Ok(output) => output.status,
            Err(trouble) => {
                let mut fail = Fail::from(trouble);
                fail.message = without_name(&node, &fail.message).to_owned();
                eprint!("{node}: {}", fail.show(paint));
                1
            }
        };
        if json_out {
            say(json!({"v": 1, "node": node, "status": status}).to_string());
        } else if status != 0 {
            eprintln!("{node}: exit code {status}");
        }
        worst = worst.max(status.clamp(0, 255));
    }
    match u8::try_from(worst).unwrap_or(1) {
        0 => Ok(()),
        code => Err(Fail::quiet(code)),
    }
}

/// The way to a node for the command, and the command as it is to be run there.
fn remote_for(world: &World, node: &Node, root: bool, line: &str) -> Result<(Remote, String), Trouble> {
    if !root {
        return Ok((world.users_remote(node)?, line.to_owned()));
    }
    let remote = Remote::new(world.login(node)?, world.cancel.clone());
    let line = match remote.endpoint().user.as_str() {
        "root" => line.to_owned(),
        _ => format!("sudo -n sh -c {}", quote(line)),
    };
    Ok((remote, line))
}
