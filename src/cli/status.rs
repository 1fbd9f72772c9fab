//! `p1 status`: machines, k3s, nodes, and where they differ from the spec.

use std::io::IsTerminal;
use std::time::Duration;

use serde_json::json;

use super::args::{Looks, Status};
use super::change;
use super::context::Context;
use super::error::{CliError, code};
use super::{out, print};
use crate::access::Claims;
use crate::event::VerbName;
use crate::explain::{chain, seconds};
use crate::guest::Activity;
use crate::journal;
use crate::machines::{Cap, MachineState};
use crate::observe::{Depth, observe_claimed};
use crate::observed::drift::Drift;
use crate::observed::refusal::unfinished;
use crate::observed::{View, faults};
use crate::os::cancel::Level;
use crate::plan::Check;
use crate::state::StateDir;
use crate::ui::{self, Cell, Format, Layout, Tone, count, table};
use crate::verbs::Verb;

/// Shows how it is; exit code 1 if it is not as the spec says, 3 if that cannot be told.
pub fn status(context: &Context, args: &Status) -> Result<(), CliError> {
    if let Some(every) = args.watch {
        return watch(context, &args.looks, every);
    }
    let Shown { before, data, after, end } = look(context, &args.looks)?;
    eprint!("{before}");
    print(data);
    eprint!("{after}");
    end
}

/// Shows it again and again, until the user has seen enough.
fn watch(context: &Context, args: &Looks, every: Duration) -> Result<(), CliError> {
    let _signals = super::signals::watch_plain(context.cancel.clone())?;
    let screen = context.ui.live() && std::io::stdout().is_terminal();
    let mut first = true;
    while !context.cancel.stopping() && !out::ended() {
        let shown = match look(context, args) {
            _ if context.cancel.stopping() => break,
            // What does not answer now may answer the next time.
            Err(fail) if !first && fail.code != code::USAGE => {
                let text = context.shown(&fail.message) + "\n";
                Shown { before: String::new(), data: String::new(), after: text, end: Ok(()) }
            }
            shown => shown?,
        };
        first = false;
        if screen {
            let now = jiff::Timestamp::now().strftime("%H:%M:%S UTC");
            let head =
                format!("{} status at {now}, every {}; Ctrl-C ends it", context.called(), seconds(every));
            let text = format!("{head}\n\n{}{}{}", shown.before, shown.data, shown.after);
            print(ui::screenful(&text));
        } else {
            eprint!("{}", shown.before);
            print(shown.data);
            eprint!("{}", shown.after);
        }
        context.cancel.sleep(every, Level::Stop);
    }
    Ok(())
}

/// What is said, for people before and after the data itself.
struct Shown {
    before: String,
    data: String,
    after: String,
    /// What the exit code says.
    end: Result<(), CliError>,
}

/// Looks once.
fn look(context: &Context, args: &Looks) -> Result<Shown, CliError> {
    let (mut before, mut data, mut after) = (String::new(), String::new(), String::new());
    let mut say = |line: String| {
        after.push_str(&line);
        after.push('\n');
    };
    let cluster = context.spec()?;
    let targets = context.targets(&cluster, &args.nodes.nodes)?;
    let state = StateDir::of(cluster.home(), &cluster.name);
    // Whoever cannot look does not know of any difference.
    let blind = |fail: CliError| CliError {
        code: if fail.code == code::FAILED { code::HOST } else { fail.code },
        ..fail
    };
    let kind = context.kind(&cluster, &state).map_err(blind)?;
    let world = context.world(cluster, kind);
    let depth = if args.deep { Depth::Inside } else { Depth::Nodes };
    let claims = Claims::look(&world).map_err(|error| blind(error.into()))?;
    let seen = observe_claimed(&world, depth, &claims).map_err(|error| blind(error.into()))?;
    let view = View::new(&world.cluster, &seen);
    let plan = Verb::of(VerbName::Up).plan(&view, &targets);
    let drift = change::look(&world, &plan, &targets);
    let faults = &seen.here.faults;
    let drift = faults::excuse(&view, drift);
    let refused = unfinished(&view);
    let chosen = |name: &String| targets.is_empty() || targets.contains(name);
    let holder = crate::os::lock::holder(&state.lock());
    let last = journal::latest(&state.runs());
    let outstanding = last.as_ref().ok().and_then(|r| r.as_ref()).map(|r| (r.outstanding().count(), &r.verb));

    // The API goes on to say what it heard last.
    let reported = |node: &str| seen.reported.get(node).copied();
    let age = |node: &str| {
        let past = jiff::Timestamp::now().duration_since(reported(node)?);
        Some(std::time::Duration::try_from(past).unwrap_or_default())
    };
    let mut believed: Vec<(String, Option<std::time::Duration>)> = Vec::new();
    let mut rows = Vec::new();
    let nodes = world.cluster.nodes.iter().chain(&seen.former);
    for node in nodes.filter(|n| chosen(&n.name)) {
        let machine = view.machine(node);
        let facts = seen.nodes.get(&node.name);
        let status = view.status(node);
        let unit = facts.filter(|_| node.role.has_k3s()).map(|f| f.unit(node.role.unit()));
        let drift: Vec<&Drift> = drift.iter().filter(|d| d.node.as_deref() == Some(&node.name)).collect();
        let former = world.cluster.node(&node.name).is_none();
        // The API takes a while to see that a node is gone; a former one was not asked itself.
        let ready = status.map(|s| s.ready && (former || facts.is_some()));
        if context.ui.format == Format::Json {
            let line = json!({
                "v": 1, "node": node.name, "role": node.role, "ip": node.ip,
                "machine": machine.told(), "machine_id": machine.id,
                "unit": unit.as_ref().map(|u| &u.active), "restarts": unit.as_ref().map(|u| u.restarts),
                "ready": ready, "version": status.map(|s| &s.version), "address": status.and_then(|s| s.internal_ip),
                "ssh": seen.silent.get(&node.name).map(|why| context.shown(why)), "drift": drift, "size": machine.size,
                "former": former, "reported": reported(&node.name).map(|at| at.to_string()),
                "remembered": seen.remembered.contains(&node.name),
                "faults": faults.iter().filter(|a| a.node == node.name).collect::<Vec<_>>(),
            });
            data.push_str(&format!("{line}\n"));
            continue;
        }
        // It is told with the fault.
        let hidden = faults::hidden(faults).contains(node.name.as_str());
        let silent = seen.silent.get(&node.name).filter(|_| !hidden);
        let (running, unit) = (
            machine.state == MachineState::Running,
            unit.map(|u| u.active).filter(|a| *a != Activity::Unknown),
        );
        if status.is_some() {
            believed.push((node.name.clone(), age(&node.name)));
        }
        let cell = |text: String, good: bool| Cell::new(if good { Tone::Good } else { Tone::Bad }, text);
        rows.push(vec![
            Cell::from(node.name.clone()),
            Cell::from(node.role.to_string()),
            Cell::from(node.ip.to_string()),
            cell(machine.told(), running),
            match unit {
                Some(active) => cell(active.to_string(), active == Activity::Active),
                None => Cell::new(Tone::Dim, "-"),
            },
            match ready {
                Some(true) => cell("Ready".into(), true),
                Some(false) => cell("NotReady".into(), false),
                None => Cell::new(Tone::Dim, "-"),
            },
            Cell::from(status.map_or("-".to_owned(), |s| s.version.clone())),
            Cell::new(Tone::Warn, differs(&drift, silent)),
        ]);
    }
    if context.ui.format == Format::Json {
        for drift in drift.iter().filter(|d| d.node.is_none()) {
            data.push_str(&format!("{}\n", json!({"v": 1, "cluster": world.cluster.name, "drift": [drift]})));
        }
        if let Some(why) = &refused {
            let name = &world.cluster.name;
            let line = json!({"v": 1, "cluster": name, "unfinished": why.cause, "hint": why.hint});
            data.push_str(&format!("{line}\n"));
        }
    } else {
        let layout = Layout { paint: context.paint(), right: false, indent: 0 };
        for drift in drift.iter().filter(|d| d.node.is_none()) {
            before.push_str(&format!("{drift}\n"));
        }
        data = table(
            &["node", "role", "address", "machine", "k3s", "Ready", "version", "differs"],
            &rows,
            layout,
        );
        for active in faults {
            let node = &active.node;
            let told = active.told(jiff::Timestamp::now());
            say(format!("{node} is under {told}; `p1 fault heal {node}` ends it before"));
        }
        for line in freshness(&believed, &seen.remembered) {
            say(line);
        }
        let saved = seen.machines.values().any(|m| m.state == MachineState::Saved && m.can.has(Cap::Suspend));
        if let Some(how) = world.state.suspended().filter(|_| saved && holder.is_none()) {
            let since = how.since.strftime("%Y-%m-%d %H:%M:%S UTC");
            say(format!("suspended since {since}: `p1 resume` continues"));
        }
        if let Some(why) = refused.as_ref().filter(|_| holder.is_none()) {
            say(format!("{}. {}", why.cause, why.hint));
        }
        if let Some(owner) = holder {
            say(format!("p1 {} works on it (pid {}, since {})", owner.verb, owner.pid, owner.since));
        } else if let Some((n, verb)) = outstanding.filter(|(n, _)| *n > 0) {
            say(format!("{} of `p1 {verb}` outstanding: `p1 retry` continues", count(n, "step")));
        } else if let Err(error) = &last {
            say(format!("what the last run left is not known: {}", chain(error)));
        }
    }
    let shown = |end| Ok(Shown { before, data, after, end });
    if let Some(why) = refused {
        return shown(Err(CliError::told(code::FAILED, why.cause).hint(why.hint)));
    }
    let due = match faults.is_empty() {
        true => change::is_due(&plan, &drift),
        // What cannot be told meanwhile is so because of them.
        false => drift.iter().any(Drift::counts),
    };
    if !due {
        return shown(Ok(()));
    }
    let differs = drift.iter().any(Drift::counts)
        || plan.steps.iter().any(|s| matches!(s.check, Check::Needed(_)) && !s.every_time);
    shown(Err(match differs {
        true => CliError::told(code::FAILED, "the cluster differs from the spec")
            .hint("`p1 plan` says what `p1 up` would do.")
            .next(["p1 up"]),
        false => {
            CliError::told(code::HOST, "parts of the cluster cannot be checked").next(["p1 status --deep"])
        }
    }))
}

/// What differs on a node, and why more is not known of it.
fn differs(drift: &[&Drift], silent: Option<&String>) -> String {
    let mut all: Vec<String> = drift.iter().map(|d| d.what.clone()).collect();
    all.extend(silent.filter(|why| !all.contains(why)).map(|why| format!("it cannot be checked: {why}")));
    all.join("; ")
}

/// A kubelet renews its lease every ten seconds; the API takes a node for dead after 40.
const STALE: std::time::Duration = std::time::Duration::from_secs(40);

/// How old the words are that the table repeats: of the API about its nodes, and what p1 remembers of nodes that
/// the API vouches for.
fn freshness(
    believed: &[(String, Option<std::time::Duration>)],
    remembered: &std::collections::BTreeSet<String>,
) -> Vec<String> {
    let mut lines = Vec::new();
    let fresh: Vec<_> = believed.iter().filter_map(|(_, age)| age.filter(|age| *age < STALE)).collect();
    if let Some(oldest) = fresh.iter().max() {
        let all = if fresh.len() == believed.len() { "its nodes" } else { "of them" };
        let count = if fresh.len() == believed.len() { String::new() } else { format!("{} ", fresh.len()) };
        lines.push(format!(
            "`Ready` and `version` are reported by the API; {count}{all} reported within the last {}",
            seconds(*oldest)
        ));
    }
    for (name, age) in believed.iter().filter(|(_, age)| age.is_none_or(|age| age >= STALE)) {
        lines.push(match age {
            Some(age) => format!("{name}: the API last received a heartbeat {} ago", seconds(*age)),
            None => format!("{name}: the API does not say when it last received a heartbeat"),
        });
    }
    if !remembered.is_empty() {
        let names: Vec<&str> = remembered.iter().map(String::as_str).collect();
        lines.push(format!(
            "`k3s` of {} is from an earlier look: the API says that they have been Ready since their boot; `p1 status \
             --deep` asks them",
            match names.len() {
                1..5 => names.join(", "),
                n => count(n, "node"),
            }
        ));
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn how_fresh_the_apis_word_is_is_said() {
        let secs = |s| Some(std::time::Duration::from_secs(s));
        let believed = [("server".to_owned(), secs(3)), ("worker".to_owned(), secs(9))];
        let none = std::collections::BTreeSet::new();
        assert_eq!(
            freshness(&believed, &none),
            ["`Ready` and `version` are reported by the API; its nodes reported within the last 9s"]
        );
        let late = [believed[0].clone(), ("worker".to_owned(), secs(185)), ("new".to_owned(), None)];
        let told = freshness(&late, &["server".to_owned()].into());
        assert!(told[0].contains("1 of them reported within the last 3s"), "{told:?}");
        assert_eq!(told[1], "worker: the API last received a heartbeat 3m05s ago");
        assert!(told[2].starts_with("new: ") && told[3].contains("`k3s` of server"), "{told:?}");
        assert_eq!(freshness(&[], &none), [""; 0]);
    }
}
