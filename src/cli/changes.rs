//! What a run changes, as people read it: a line for what becomes of each node, those alike together.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use super::context::Context;
use crate::access::World;
use crate::observe::look_at_configuration;
use crate::observed::View;
use crate::observed::changes::{Api, Away, Change, Changes, Fate, FileDiff, What, changes};
use crate::observed::drift::Interrupts;
use crate::ui::{Options, Tone, count, text};
use crate::verbs::Decision;

/// More nodes than these with the same change share a line.
const ALIKE: usize = 3;
/// Of a file so many lines are shown without `-v`.
const LINES: usize = 12;
/// Names that are longer do not move what stands behind them.
const NAMES: usize = 24;
/// Longer lines are hard to read.
const WIDEST: usize = 100;

/// What comes of a decision, as it may be shown. k3s' configuration is read on the nodes on which it changes.
pub fn of(context: &Context, world: &World, decision: &Decision) -> Changes {
    let mut seen = (*world.seen()).clone();
    decision.note(&mut seen);
    let files = look_at_configuration(world, &seen, &decision.plan);
    let view = View::new(&world.cluster, &seen);
    let all = changes(&view, &decision.plan, &decision.drift, &decision.leaving, &files);
    all.map_texts(&|text| context.shown(text))
}

/// For programs: an object for each change, and one that sums them up.
pub fn objects(changes: &Changes) -> impl Iterator<Item = Value> + '_ {
    let [add, change, destroy] = changes.counts();
    let summary = json!({"add": add, "change": change, "destroy": destroy, "away": changes.away, "every_time": changes.every_time});
    let each = changes.all.iter().map(|change| json!({"v": 1, "change": change}));
    each.chain([json!({"v": 1, "summary": summary})])
}

/// For people, with what is away and the counts at the end; empty where nothing changes.
pub fn shown(changes: &Changes, options: &Options) -> String {
    if changes.all.is_empty() {
        return every_time(changes, options);
    }
    // What goes into a file or a pipe is searched, line by line.
    let columns = if options.terminal { options.columns().min(WIDEST) } else { usize::MAX };
    let paint = options.paint();
    let rows = rows(&changes.all);
    let signs = rows.iter().map(|row| sign(row.change).0.len()).max().unwrap_or(1);
    let names = rows.iter().map(|row| text::width(&row.name)).filter(|w| *w <= NAMES).max().unwrap_or(0);
    let indent = signs + names + 3;
    let mut out = String::new();
    for row in &rows {
        let (sign, tone) = sign(row.change);
        let mut lines = text::wrap(&body(row), columns.saturating_sub(indent).max(20)).into_iter();
        let head = format!("{} {}", text::pad(sign, signs), text::pad(&row.name, names));
        let first = match text::width(&row.name) <= names {
            true => lines.next().unwrap_or_default(),
            false => String::new(),
        };
        out.push_str(format!("{}  {first}", paint.tone(tone, &head)).trim_end());
        out.push('\n');
        lines.for_each(|line| out.push_str(&format!("{}{line}\n", " ".repeat(indent))));
        if let Some(lost) = &row.change.lost {
            for line in text::wrap(&format!("lost: {lost}"), columns.saturating_sub(indent).max(20)) {
                out.push_str(&format!("{}{}\n", " ".repeat(indent), paint.tone(Tone::Bad, &line)));
            }
        }
        for file in &row.change.files {
            file_lines(file, indent, options, &mut out);
        }
    }
    out.push('\n');
    let (tone, said) = away(&changes.away);
    if !said.is_empty() {
        text::wrap(&said, columns).iter().for_each(|l| out.push_str(&(paint.tone(tone, l) + "\n")));
    }
    out.push_str(&every_time(changes, options));
    let [add, change, destroy] = changes.counts();
    let tally = format!("{add} to add, {change} to change, {destroy} to destroy");
    out.push_str(&paint.tone(Tone::Bold, &tally));
    out.push('\n');
    if options.unicode { out } else { out.replace('→', "->") }
}

/// What is run in every run, which is no difference.
fn every_time(changes: &Changes, options: &Options) -> String {
    if changes.every_time.is_empty() {
        return String::new();
    }
    let text = format!("runs every time: {}", changes.every_time.join(", "));
    text::wrap(&text, options.columns()).iter().map(|l| options.paint().tone(Tone::Dim, l) + "\n").collect()
}

/// Changes that are alike.
struct Row<'a> {
    name: String,
    /// How many.
    nodes: usize,
    addresses: String,
    change: &'a Change,
}

fn rows(all: &[Change]) -> Vec<Row<'_>> {
    let alike = |a: &Change, b: &Change| {
        let same = |c: &Change| (c.fate, c.what.clone(), c.files.clone(), c.lost.clone(), c.interrupts);
        a.node.is_some() && b.node.is_some() && same(a) == same(b)
    };
    let (mut rows, mut done) = (Vec::new(), BTreeSet::new());
    for (at, change) in all.iter().enumerate() {
        if done.contains(&at) {
            continue;
        }
        let mut group: Vec<usize> = (at..all.len()).filter(|i| *i == at || alike(change, &all[*i])).collect();
        if group.len() <= ALIKE {
            group.truncate(1);
        }
        done.extend(group.iter().copied());
        let names: Vec<&str> = group.iter().map(|i| all[*i].node.as_deref().unwrap_or("cluster")).collect();
        let addresses: Vec<String> =
            group.iter().filter_map(|i| Some(all[*i].address?.to_string())).collect();
        let addresses = addresses.iter().map(String::as_str).collect::<Vec<_>>();
        rows.push(Row { name: ranges(&names), nodes: group.len(), addresses: ranges(&addresses), change });
    }
    rows
}

/// Names that differ by a number at their end, in short: `worker-[1-97]`.
fn ranges(names: &[&str]) -> String {
    let number = |name: &str| {
        let stem = name.trim_end_matches(|c: char| c.is_ascii_digit()).len();
        // One with zeros before it is a name of its own.
        name[stem..].parse::<u64>().ok().filter(|n| n.to_string() == name[stem..]).map(|n| (stem, n))
    };
    let mut stems: Vec<(&str, Vec<(u64, u64)>)> = Vec::new();
    for name in names {
        let Some((stem, n)) = number(name) else {
            stems.push((name, Vec::new()));
            continue;
        };
        let stem = &name[..stem];
        match stems.iter_mut().find(|(same, numbers)| *same == stem && !numbers.is_empty()) {
            Some((_, numbers)) => match numbers.last_mut() {
                Some((_, last)) if *last + 1 == n => *last = n,
                _ => numbers.push((n, n)),
            },
            None => stems.push((stem, vec![(n, n)])),
        }
    }
    let one = |(first, last): &(u64, u64)| match last - first {
        0 => first.to_string(),
        _ => format!("{first}-{last}"),
    };
    let short = |(stem, numbers): &(&str, Vec<(u64, u64)>)| match &numbers[..] {
        [] => (*stem).to_owned(),
        [(first, last)] if first == last => format!("{stem}{first}"),
        all => format!("{stem}[{}]", all.iter().map(one).collect::<Vec<_>>().join(",")),
    };
    stems.iter().map(short).collect::<Vec<_>>().join(", ")
}

fn sign(change: &Change) -> (&'static str, Tone) {
    match change.fate {
        Fate::Add => ("+", Tone::Good),
        Fate::Change => ("~", Tone::Warn),
        Fate::Recreate => ("-/+", Tone::Bad),
        Fate::Destroy => ("-", Tone::Bad),
        Fate::Unknown => ("?", Tone::Dim),
    }
}

fn body(row: &Row<'_>) -> String {
    let change = row.change;
    let part = |what: &What| match (&what.before, &what.after) {
        (Some(before), Some(after)) => format!("{} {before} → {after}", what.what),
        (None, Some(after)) => format!("{} → {after}", what.what),
        _ => what.what.clone(),
    };
    let mut parts: Vec<String> = change.what.iter().map(part).collect();
    match (change.fate, change.interrupts) {
        (Fate::Change | Fate::Add, Interrupts::K3s) => parts.push("k3s restarts".to_owned()),
        (Fate::Change, Interrupts::Machine) => parts.push("its machine restarts".to_owned()),
        _ => {}
    }
    let join = if change.fate == Fate::Add { ", " } else { "; " };
    let mut text = parts.join(join);
    if !row.addresses.is_empty() && change.fate == Fate::Add {
        text.push_str(&format!(" at {}", row.addresses));
    }
    if row.nodes > 1 { format!("{}: {text}", count(row.nodes, "node")) } else { text }
}

fn file_lines(file: &FileDiff, indent: usize, options: &Options, out: &mut String) {
    let (paint, margin) = (options.paint(), " ".repeat(indent));
    out.push_str(&format!("{margin}{}\n", paint.tone(Tone::Dim, &file.path)));
    let most = if options.verbose > 0 { usize::MAX } else { LINES };
    for line in file.lines.iter().take(most) {
        let tone = match line.chars().next() {
            Some('+') => Tone::Good,
            Some('-') => Tone::Bad,
            _ => Tone::Dim,
        };
        let (mark, rest) = line.split_at_checked(1).unwrap_or((line, ""));
        out.push_str(format!("{margin}{}", paint.tone(tone, &format!("{mark} {rest}"))).trim_end());
        out.push('\n');
    }
    if let Some(more) = file.lines.len().checked_sub(most).filter(|more| *more > 0) {
        let said = format!("and {} (`-v` shows all)", count(more, "line"));
        out.push_str(&format!("{margin}{}\n", paint.tone(Tone::Dim, &said)));
    }
}

/// What cannot be used meanwhile, in sentences.
fn away(away: &Away) -> (Tone, String) {
    let names = |all: &[String]| ranges(&all.iter().map(String::as_str).collect::<Vec<_>>());
    let servers = names(&away.servers);
    let (mut tone, api) = match away.api {
        Api::None => (Tone::Plain, None),
        Api::Stays => (Tone::Plain, Some("The API stays.".to_owned())),
        Api::InTurn => {
            let text =
                format!("The API is away on one server after the other ({servers}); the others answer.");
            (Tone::Plain, Some(text))
        }
        Api::Away => (Tone::Warn, Some(format!("The API is away while {servers} restarts."))),
        Api::Ends => (Tone::Bad, Some("The cluster ends with its data, and starts over.".to_owned())),
    };
    let mut said: Vec<String> = api.into_iter().collect();
    if !away.pods.is_empty() {
        tone = if tone == Tone::Plain { Tone::Warn } else { tone };
        said.push(format!("Pods on {} stop while their machines restart.", names(&away.pods)));
    }
    if !away.leave.is_empty() && away.api != Api::Ends {
        tone = if tone == Tone::Plain { Tone::Warn } else { tone };
        said.push(format!("Pods on {} are moved to other nodes.", names(&away.leave)));
    }
    if away.pods.is_empty() && away.leave.is_empty() && !matches!(away.api, Api::None | Api::Ends) {
        said.push("Pods go on.".to_owned());
    }
    (tone, said.join(" "))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::observed::drift::Loss;
    use crate::ui::Format;

    fn change(node: &str, fate: Fate, what: &[(&str, Option<&str>, Option<&str>)]) -> Change {
        let text = |t: Option<&str>| t.map(str::to_owned);
        let what = what.iter().map(|(w, b, a)| What { what: (*w).into(), before: text(*b), after: text(*a) });
        Change {
            node: (node != "cluster").then(|| node.to_owned()),
            fate,
            address: None,
            what: what.collect(),
            files: Vec::new(),
            lost: None,
            loss: Loss::Nothing,
            interrupts: Interrupts::Nothing,
        }
    }

    fn options(width: u16) -> Options {
        Options {
            format: Format::Human,
            color: false,
            unicode: true,
            width: Some(width),
            verbose: 0,
            terminal: true,
        }
    }

    fn some() -> Changes {
        let file = FileDiff {
            path: "/etc/rancher/k3s/config.yaml".into(),
            lines: vec!["+debug: true".into(), " disable:".into(), "-  - traefik".into()],
        };
        let (memory, address) = (("memory", Some("1024 MiB"), Some("2048 MiB")), "192.168.56.120");
        let gone = Some("what is on its disk, volumes of pods included".to_owned());
        let manifests =
            [("its manifests: they changed since they were applied", None, Some("they are applied"))];
        let all = vec![
            change("cluster", Fate::Change, &manifests),
            Change { interrupts: Interrupts::K3s, files: vec![file], ..change("server", Fate::Change, &[]) },
            Change { interrupts: Interrupts::Machine, ..change("worker-1", Fate::Change, &[memory]) },
            Change {
                lost: gone.clone(),
                interrupts: Interrupts::Machine,
                ..change("worker-2", Fate::Recreate, &[("address", Some("192.168.56.112"), Some(address))])
            },
            Change {
                address: Some([192, 168, 56, 113].into()),
                ..change("worker-3", Fate::Add, &[("worker", None, None), ("1 CPU, 1024 MiB", None, None)])
            },
            change("worker-4", Fate::Unknown, &[("checked when the machine answers", None, None)]),
            Change {
                lost: gone,
                ..change("old", Fate::Destroy, &[("its machine is destroyed", None, None)])
            },
        ];
        let names = |all: &[&str]| all.iter().map(|n| (*n).to_owned()).collect();
        let away = Away {
            api: Api::Away,
            servers: names(&["server"]),
            pods: names(&["worker-1"]),
            leave: names(&["worker-2"]),
        };
        Changes { all, away, every_time: vec!["worker-1/provision-motd".into()] }
    }

    #[test]
    fn what_becomes_of_each_node_is_a_line() {
        insta::assert_snapshot!("changes", shown(&some(), &options(80)));
        insta::assert_snapshot!("changes_colour", shown(&some(), &Options { color: true, ..options(80) }));
        let ascii = shown(&some(), &Options { unicode: false, ..options(80) });
        assert!(ascii.is_ascii() && ascii.lines().all(|l| l.len() <= 80), "{ascii}");
    }

    #[test]
    fn a_hundred_nodes_fit_on_a_screen() {
        let made = |n: u8| Change {
            address: Some([10, 0, 0, n].into()),
            ..change(&format!("worker-{n}"), Fate::Add, &[("worker", None, None)])
        };
        let mut all: Vec<Change> = (1..=97).map(made).collect();
        all[40].what[0].what = "worker, runs motd".into();
        let text = shown(&Changes { all, ..Changes::default() }, &options(80));
        insta::assert_snapshot!(text, @r"
        + worker-[1-40,42-97]  96 nodes: worker at 10.0.0.[1-40,42-97]
        + worker-41            worker, runs motd at 10.0.0.41

        97 to add, 0 to change, 0 to destroy
        ");
        assert_eq!(ranges(&["a", "b2", "b3", "c07", "b5"]), "a, b[2-3,5], c07");
    }

    #[test]
    fn programs_have_each_change_and_the_sum() {
        let all: Vec<Value> = objects(&some()).collect();
        assert_eq!(all.len(), 8);
        assert_eq!(all[2]["change"]["what"][0]["after"], "2048 MiB");
        let sum = &all[7]["summary"];
        assert_eq!((&sum["add"], &sum["change"], &sum["destroy"]), (&json!(2), &json!(3), &json!(2)));
        assert_eq!(sum["away"]["api"], "away");
    }
}
