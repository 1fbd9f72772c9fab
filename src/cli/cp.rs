//! `p1 cp`: files and folders from and to nodes, over p1's own SSH.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::io::{BufWriter, Write};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::json;

use super::args::Cp;
use super::context::Context;
use super::error::{CliError, code, with_kind};
use super::out;
use crate::access::World;
use crate::engine::StepError;
use crate::explain::{chain, without_name};
use crate::os::cancel::Level;
use crate::os::files::At;
use crate::os::many;
use crate::os::sync::lock;
use crate::os::tree::{self, Size};
use crate::spec::{Cluster, Node};
use crate::ssh::{Bound, Given, Place, Remote};
use crate::state::StateDir;
use crate::ui::transfer::Transfer;
use crate::ui::{Format, bytes, count, text};

/// For all of a copy, and without a byte of it.
const BOUND: Bound = Bound::new(Duration::from_secs(24 * 3600), Duration::from_secs(60)).at_most(u64::MAX);
/// The line that shows how much was copied is drawn at most so often.
const DRAW: Duration = Duration::from_millis(100);

/// One of the two places.
enum Side {
    /// On this host.
    Here(PathBuf),
    /// On nodes, as they are named, and where there.
    There(String, String),
}

/// Copies; exit code 1 if a node has not got it.
pub fn cp(context: &Context, args: &Cp) -> Result<(), CliError> {
    match (side(&args.from)?, side(&args.to)?) {
        (Side::Here(from), Side::There(nodes, to)) => give(context, args, &from, &nodes, &to),
        (Side::There(nodes, from), Side::Here(to)) => take(context, args, &nodes, &from, &to),
        (Side::There(..), Side::There(..)) => {
            let hint = format!("Copy it to this host first: `p1 cp {} .`", args.from.to_string_lossy());
            Err(CliError::new(code::USAGE, "both places are on nodes", hint))
        }
        (Side::Here(..), Side::Here(..)) => {
            let hint = "One of them is written `NODE:PATH`, as in `p1 cp page.html worker-1:/tmp/`.";
            Err(CliError::new(code::USAGE, "neither of the two places is on a node", hint))
        }
    }
}

/// `NODE:PATH`, or a path of this host: one with a colon in it is written with a `/` before.
fn side(word: &OsStr) -> Result<Side, CliError> {
    let bytes = word.as_bytes();
    let skip = if bytes.starts_with(b"role:") { b"role:".len() } else { 0 };
    let colon = bytes[skip..].iter().position(|b| matches!(b, b':' | b'/')).map(|at| at + skip);
    let Some(at) = colon.filter(|at| *at > 0 && bytes[*at] == b':') else {
        return Ok(Side::Here(word.into()));
    };
    let Ok(text) = std::str::from_utf8(bytes) else {
        let what = format!("{} is not UTF-8, as paths on nodes have to be", word.to_string_lossy());
        return Err(CliError::new(code::USAGE, what, ""));
    };
    let path = text[at + 1..].strip_prefix("~/").unwrap_or(&text[at + 1..]);
    Ok(Side::There(text[..at].to_owned(), if path == "~" { "" } else { path }.to_owned()))
}

/// What a path ends with; none for `/`, `.` and their like.
fn name(path: &str) -> Option<&str> {
    let last = path.trim_end_matches('/').rsplit('/').next().unwrap_or_default();
    (!matches!(last, "" | "." | "..")).then_some(last)
}

fn world(context: &Context, cluster: Cluster) -> Result<std::sync::Arc<World>, CliError> {
    let state = StateDir::of(cluster.home(), &cluster.name);
    context.must_be_made(&cluster, &state)?;
    let kind = context.kind(&cluster, &state)?;
    Ok(context.world(cluster, kind))
}

/// The way to a node, as the login user or as root.
fn remote(world: &World, node: &Node, root: bool) -> Result<Remote, StepError> {
    match root {
        true => Ok(Remote::new(world.login(node)?, world.cancel.clone())),
        false => world.users_remote(node),
    }
}

fn give(context: &Context, args: &Cp, from: &Path, nodes: &str, to: &str) -> Result<(), CliError> {
    let cluster = context.spec()?;
    let targets = context.targets(&cluster, &[nodes.to_owned()])?;
    let absolute = std::path::absolute(from).at("read", from)?;
    let Some(name) = absolute.file_name().and_then(OsStr::to_str).map(str::to_owned) else {
        let what = format!("{} has no name that a node could give it", from.display());
        return Err(CliError::new(code::USAGE, what, ""));
    };
    let size = tree::size(from).map_err(|e| CliError::new(code::USAGE, chain(&e), ""))?;
    let world = world(context, cluster)?;
    let _signals = super::signals::watch_plain(context.cancel.clone())?;
    let nodes: Vec<&Node> = targets.iter().filter_map(|name| world.cluster.node(name)).collect();
    let progress = Progress::new(context, Some(size.bytes * nodes.len() as u64));
    let one = |node: &Node| -> Result<String, StepError> {
        let mut remote = remote(&world, node, args.root)?;
        let (mut reader, writer) = std::io::pipe().at("make", Path::new("a pipe"))?;
        let (written, sent) = thread::scope(|scope| {
            let written = scope.spawn(move || {
                let mut left_out = |path: &Path| told_left_out(path);
                tree::write(from, BufWriter::with_capacity(128 << 10, writer), &mut left_out)
            });
            let place = Place { path: to, root: args.root };
            let sent = remote.give(place, &name, &mut reader, BOUND, &mut |n| progress.moved(&node.name, n));
            drop(reader);
            (written.join(), sent)
        });
        match (written, sent) {
            (_, Ok(place)) => Ok(place),
            // What cannot be read is why the node got less; what the node does not take is why nobody reads.
            (Ok(Err(tree::Error::File(error))), Err(_))
                if error.source.kind() != std::io::ErrorKind::BrokenPipe =>
            {
                Err(error.into())
            }
            (_, Err(error)) => Err(error.into()),
        }
    };
    let results = many::each(context.global.jobs, &nodes, |node| (node.name.clone(), one(node)));
    progress.end();
    let mut worst = Ok(());
    for (node, result) in results {
        match result {
            Ok(place) => tell(context, &node, &from.to_string_lossy(), &context.shown(&place), size),
            Err(error) => worst = Err(failed(context, &node, args.root, error.into())),
        }
    }
    worst
}

/// Neither file, folder nor link.
fn told_left_out(path: &Path) {
    eprintln!("note: {} is left out: it is neither a file, a folder nor a link", path.display());
}

fn take(context: &Context, args: &Cp, nodes: &str, from: &str, to: &Path) -> Result<(), CliError> {
    let cluster = context.spec()?;
    let node = context.target(&cluster, nodes)?;
    let called = name(from);
    if called.is_none() && to.is_dir() {
        let what = format!("what `{nodes}:{from}` is to be called here is not said");
        let hint = "Name a folder that does not exist yet, and it becomes that.";
        return Err(CliError::new(code::USAGE, what, hint));
    }
    let target = tree::target(to, called.unwrap_or_default());
    let shown = target.display().to_string();
    let target = std::path::absolute(&target).at("write", &target)?;
    let (Some(parent), Some(last)) = (target.parent().filter(|p| p.is_dir()), target.file_name()) else {
        let parent = target.parent().unwrap_or(&target).display().to_string();
        return Err(CliError::new(code::USAGE, format!("there is no folder {parent}"), ""));
    };
    let world = world(context, cluster)?;
    let node = world.cluster.node(&node).expect("looked up before");
    let _signals = super::signals::watch_plain(context.cancel.clone())?;
    let prefix = format!(".{}.p1-", last.to_string_lossy());
    let part = tempfile::Builder::new().prefix(&prefix).tempdir_in(parent).at("write in", parent)?;
    let progress = Progress::new(context, None);
    let result = taken(context, &world, node, args.root, from, part.path(), &progress);
    progress.end();
    match result {
        Ok((size, notes)) => {
            tree::place(part.path(), &target).map_err(|e| CliError::new(code::FAILED, chain(&e), ""))?;
            for note in notes {
                eprintln!("note: {}: {}", node.name, context.shown(&note));
            }
            tell(context, &node.name, from, &shown, size);
            Ok(())
        }
        Err(error) => Err(failed(context, &node.name, args.root, error)),
    }
}

/// What a node gives, in the folder `part`; how much it is, and what is to be said of it.
fn taken(
    context: &Context,
    world: &World,
    node: &Node,
    root: bool,
    from: &str,
    part: &Path,
    progress: &Progress,
) -> Result<(Size, Vec<String>), CliError> {
    let mut remote = remote(world, node, root)?;
    let (reader, mut writer) = std::io::pipe().at("make", Path::new("a pipe"))?;
    let (begun, begins) = mpsc::channel();
    thread::scope(|scope| {
        let cancel = context.cancel.clone();
        let reading = scope.spawn(move || {
            let Ok(given) = begins.recv() else { return Ok((Size::default(), Vec::new())) };
            let mut left_out = Vec::new();
            let single = matches!(given, Given::File(_));
            let size =
                tree::read(reader, part, single, &mut |path| left_out.push(path.display().to_string()));
            if size.is_err() {
                // There is no place for what is still to come.
                cancel.raise(Level::Abort);
            }
            size.map(|size| (size, left_out))
        });
        let mut on_begin = |given| {
            if let Given::File(size) = given {
                progress.of(size);
            }
            let _ = begun.send(given);
        };
        let mut got = 0;
        // Behind the end of its archive nobody reads.
        let mut on_bytes = |bytes: &[u8]| {
            got += bytes.len() as u64;
            progress.moved(&node.name, got);
            let _ = writer.write_all(bytes);
        };
        let place = Place { path: from, root };
        let notes = remote.take(place, BOUND, &mut on_begin, &mut on_bytes);
        drop((begun, writer));
        let read = reading.join().unwrap_or_else(|_| Ok((Size::default(), Vec::new())));
        let (size, left_out) = match (read, &notes) {
            (Err(error @ tree::Error::File(_)), _) => {
                return Err(CliError::new(code::FAILED, chain(&error), ""));
            }
            // The node knows best why it is not whole.
            (Err(_), Err(_)) => Default::default(),
            (Err(error), Ok(_)) => return Err(CliError::new(code::FAILED, chain(&error), "")),
            (Ok(read), _) => read,
        };
        let mut notes = notes.map_err(StepError::from)?;
        notes.extend(
            left_out.into_iter().map(|path| format!("{path} is left out: it leads elsewhere, or is no file")),
        );
        Ok((size, notes))
    })
}

fn tell(context: &Context, node: &str, from: &str, to: &str, size: Size) {
    match context.ui.format {
        Format::Json => out::object(&json!({
            "v": 1, "node": node, "from": from, "to": to, "files": size.files, "bytes": size.bytes,
        })),
        _ => {
            let files = usize::try_from(size.files).unwrap_or(usize::MAX);
            eprintln!("{node}: copied {}, {}, to {to}", count(files, "file"), bytes(size.bytes));
        }
    }
}

/// A node's failure, told with its name.
fn failed(context: &Context, node: &str, root: bool, mut fail: CliError) -> CliError {
    fail.message = context.shown(without_name(node, &fail.message));
    if !root && fail.message.to_lowercase().contains("permission denied") {
        fail.hint = Some("`--root` copies as root.".to_owned());
    }
    if context.ui.format == Format::Json {
        let mut object = json!({"v": 1, "node": node, "cause": fail.message, "hint": fail.hint});
        with_kind(&mut object, &fail.kind);
        out::object(&object);
    } else {
        eprint!("{node}: {}", fail.show(context.paint(), &context.called()));
    }
    CliError { message: format!("{node}: {}", fail.message), told: true, ..fail }
}

/// A line on a terminal that says how much was copied so far.
struct Progress {
    on: bool,
    columns: usize,
    begun: Instant,
    moved: Mutex<Moved>,
}

#[derive(Default)]
struct Moved {
    nodes: BTreeMap<String, u64>,
    transfer: Transfer,
    total: Option<u64>,
    drawn: Option<Instant>,
}

impl Progress {
    fn new(context: &Context, total: Option<u64>) -> Self {
        Self {
            on: context.ui.live(),
            columns: context.ui.columns(),
            begun: Instant::now(),
            moved: Mutex::new(Moved { total, ..Moved::default() }),
        }
    }

    /// It is so much in all.
    fn of(&self, total: u64) {
        lock(&self.moved).total = Some(total);
    }

    fn moved(&self, node: &str, done: u64) {
        if !self.on {
            return;
        }
        let mut moved = lock(&self.moved);
        moved.nodes.insert(node.to_owned(), done);
        let all = moved.nodes.values().sum();
        let (now, total) = (self.begun.elapsed(), moved.total);
        moved.transfer.update(now, all, total);
        if moved.drawn.is_some_and(|at| at.elapsed() < DRAW) {
            return;
        }
        moved.drawn = Some(Instant::now());
        let sizes = match total {
            // An archive is a little more than what is in it.
            Some(total) => text::bytes_of(all.min(total), total),
            None => bytes(all),
        };
        let rate = moved.transfer.rate(now).map(|rate| format!(", {}/s", bytes(rate))).unwrap_or_default();
        let line = text::cut(&format!("copied {sizes}{rate}"), self.columns.saturating_sub(1), "");
        eprint!("\r{line}\x1b[K");
    }

    /// Takes the line away.
    fn end(&self) {
        if lock(&self.moved).drawn.is_some() {
            eprint!("\r\x1b[K");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_is_on_a_node_where_a_colon_comes_before_any_slash() {
        let place = |word: &str| match side(OsStr::new(word)).unwrap_or_else(|_| panic!("{word}")) {
            Side::Here(path) => (None, path.display().to_string()),
            Side::There(node, path) => (Some(node), path),
        };
        let there = |node: &str, path: &str| (Some(node.to_owned()), path.to_owned());
        assert_eq!(place("worker-1:/etc/hosts"), there("worker-1", "/etc/hosts"));
        assert_eq!(place("worker-1:a:b"), there("worker-1", "a:b"));
        assert_eq!(place("worker-1:~/a"), there("worker-1", "a"));
        assert_eq!([place("worker-1:"), place("worker-1:~")], [there("worker-1", ""), there("worker-1", "")]);
        assert_eq!(place("role:worker:/tmp/"), there("role:worker", "/tmp/"));
        for word in ["./a:b", "/a:b", "a", "dir/a:b", ":a", "../x"] {
            assert_eq!(place(word), (None, word.to_owned()));
        }
        assert_eq!(
            ["/etc/hosts", "a/", "/", "a/..", ""].map(name),
            [Some("hosts"), Some("a"), None, None, None]
        );
    }
}
