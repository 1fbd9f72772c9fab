//! `p1 logs --bundle`: all that shows how a cluster is, in one file that can be given to somebody else.
//!
//! Nodes are asked `--jobs` at a time and none is waited for long: what could not be had is a line of the
//! file's summary. Nothing is written down before the secrets are out of it. No lock is needed.

use std::collections::BTreeMap;
use std::fs;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::thread;
use std::time::Duration;

use serde_json::json;

use super::context::Context;
use super::error::{CliError, code};
use super::{doctor, files as rendering, out};
use crate::access::World;
use crate::engine::StepError;
use crate::event::Outcome;
use crate::explain::printable;
use crate::os::files::{self, At};
use crate::os::process::{self, Cmd};
use crate::os::sync;
use crate::redact::Redactor;
use crate::spec::{Cluster, Node};
use crate::ssh::{Bound, Remote};
use crate::state::StateDir;
use crate::ui::{Format, bytes};
use crate::{journal, os};

/// For a node to let us in.
const LOGIN: Duration = Duration::from_secs(15);
/// For all that a node is asked; each part has 20 s, and something is said at least that often.
const NODE: Bound = Bound::new(Duration::from_secs(180), Duration::from_secs(30)).at_most(NODE_MOST);
/// For one program of this host.
const PROGRAM: Duration = Duration::from_secs(20);
/// For packing it all.
const PACK: Duration = Duration::from_secs(120);
/// Runs whose journals and logs are kept: the newest.
const RUNS: usize = 20;
/// Of one file, and of one part of what a node says, at most its end.
const MAX_BYTES: u64 = 4 << 20;
/// What a node may say in all. It has a few MiB to say, and is not trusted to end.
const NODE_MOST: u64 = 32 << 20;
/// And in so many parts.
const NODE_PARTS: usize = 100;

/// Writes the file, and says where it is and what is not in it.
pub fn bundle(context: &Context, file: Option<&Path>) -> Result<(), CliError> {
    let parsed = context.parse()?;
    let cluster = parsed.cluster;
    let name = format!("p1-{}-{}", cluster.name, jiff::Timestamp::now().strftime("%Y%m%dT%H%M%SZ"));
    let file = file.map_or_else(|| PathBuf::from(format!("{name}.tar.gz")), Path::to_owned);
    if file.symlink_metadata().is_ok() {
        let what = format!("{} exists already", file.display());
        return Err(CliError::new(
            code::USAGE,
            what,
            "Name another file, or none: then its name has the time.",
        ));
    }
    let beside = file.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let staging = tempfile::Builder::new().prefix(".p1-bundle-").tempdir_in(beside).at("write", &file)?;

    let state = StateDir::of(cluster.home(), &cluster.name);
    let kind = context.kind(&cluster, &state);
    let why = kind.as_ref().err().map(|fail| fail.message.clone());
    let world = context.world(cluster, kind.unwrap_or_default());
    let parts = Parts::new(staging.path().join(&name), world.redactor());
    if let Some(why) = why {
        parts.lack("provider", &why);
    }
    let _signals = super::signals::watch_plain(context.cancel.clone())?;
    if context.ui.format != Format::Json {
        eprintln!(
            "collecting what this host and the nodes say; a node that does not answer takes up to 15 s"
        );
    }
    for warning in &parsed.warnings {
        parts.put("spec/warnings.txt", &warning.render(&context.global.file, false));
    }
    collect(context, &world, &parts);
    if context.cancel.stopping() {
        return Err(CliError::new(code::INTERRUPTED, "interrupted: nothing was written", ""));
    }
    parts.put("SUMMARY.txt", &summary(context, &world, &parts));
    pack(&staging, &name, &file, &context.cancel)?;
    tell(context, &file, &parts)
}

fn tell(context: &Context, file: &Path, parts: &Parts) -> Result<(), CliError> {
    let size = fs::metadata(file).at("read", file)?.len();
    let lacks = parts.lacks();
    if context.ui.format == Format::Json {
        let lacks: Vec<_> = lacks.iter().map(|(part, why)| json!({"part": part, "why": why})).collect();
        out::object(&json!({"v": 1, "bundle": out::lossy(file), "bytes": size, "lacks": lacks}));
        return Ok(());
    }
    for (part, why) in &lacks {
        eprintln!("not in it: {part}: {why}");
    }
    eprintln!("{}, tokens, keys and passwords taken out; its SUMMARY.txt says what is in it:", bytes(size));
    out::path(context, "bundle", file);
    Ok(())
}

/// A folder that fills with texts.
struct Parts {
    dir: PathBuf,
    redactor: Redactor,
    lacks: Mutex<BTreeMap<String, String>>,
}

impl Parts {
    fn new(dir: PathBuf, redactor: Redactor) -> Self {
        Self { dir, redactor, lacks: Mutex::default() }
    }

    /// Writes a part, without secrets; one that is there already goes on.
    fn put(&self, part: &str, text: &str) {
        let path = self.dir.join(part);
        let write = || -> Result<(), files::Error> {
            files::private_dir(path.parent().unwrap_or(&self.dir))?;
            let before = files::read_if_there(&path)?.unwrap_or_default();
            let text = self.redactor.text(text);
            // Colours of `k3s check-config`, and whatever else a terminal would obey.
            files::write(&path, format!("{before}{}", printable(&text)).as_bytes(), 0o600)
        };
        if let Err(error) = write() {
            self.lack(part, &crate::explain::chain(&error));
        }
    }

    /// Notes what could not be had.
    fn lack(&self, part: &str, why: &str) {
        let why = printable(&self.redactor.text(why)).into_owned();
        sync::lock(&self.lacks).insert(part.to_owned(), why);
    }

    fn lacks(&self) -> BTreeMap<String, String> {
        sync::lock(&self.lacks).clone()
    }

    /// Puts a file of this host in, or its end.
    fn file(&self, part: &str, path: &Path) {
        self.file_as(part, path, &str::to_owned);
    }

    /// The same, of which something is made first.
    fn file_as(&self, part: &str, path: &Path, change: &dyn Fn(&str) -> String) {
        let read = || -> std::io::Result<String> {
            // A FIFO would be waited for.
            if !fs::metadata(path)?.is_file() {
                return Err(std::io::Error::other("it is no file"));
            }
            let mut file = fs::File::open(path)?;
            let size = file.metadata()?.len();
            let mut text = String::new();
            if size > MAX_BYTES {
                file.seek(SeekFrom::Start(size - MAX_BYTES))?;
                text = format!("(the last {} of {})\n", bytes(MAX_BYTES), bytes(size));
            }
            let mut rest = Vec::new();
            file.take(MAX_BYTES).read_to_end(&mut rest)?;
            text.push_str(&String::from_utf8_lossy(&rest));
            Ok(text)
        };
        match read() {
            Ok(text) => self.put(part, &change(&text)),
            Err(error) => self.lack(part, &error.to_string()),
        }
    }
}

/// Everything at once.
fn collect(context: &Context, world: &World, parts: &Parts) {
    thread::scope(|scope| {
        scope.spawn(|| of_folder(context, world, parts));
        scope.spawn(|| of_host(context, world, parts));
        scope.spawn(|| findings(context, &world.cluster, parts));
        if !world.state.key().is_file() {
            parts.lack("nodes", "the cluster has not been made: there are no nodes to query");
            return;
        }
        os::many::each(world.jobs, &world.cluster.nodes, |node| {
            if let Err(error) = of_node(world, node, parts) {
                parts.lack(&format!("nodes/{}", node.name), &error.failure.cause);
            }
        });
    });
}

/// What lies beside the spec.
fn of_folder(context: &Context, world: &World, parts: &Parts) {
    parts.file("spec/cluster.yaml", &context.global.file);
    match rendering::rendered(world) {
        Ok(all) => all.iter().for_each(|(name, text)| parts.put(&format!("rendered/{name}"), text)),
        Err(fail) => parts.lack("rendered", &fail.message),
    }
    let state = &world.state;
    if !state.exists() {
        return;
    }
    let there =
        [state.vagrantfile(), state.known_hosts(), state.ssh_config(), state.lock(), state.facts_file()];
    for path in there.iter().filter(|p| p.exists()) {
        parts.file(&format!("state/{}", path.file_name().unwrap_or_default().to_string_lossy()), path);
    }
    parts.put("state/files.txt", &listing(state.dir(), 3));
    let runs = journal::runs(&state.runs());
    for path in &runs[runs.len().saturating_sub(RUNS)..] {
        let run = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        parts.file_as(&format!("runs/{run}.jsonl"), path, &without_digests);
        for entry in fs::read_dir(state.logs().join(&run)).into_iter().flatten().flatten() {
            parts.file(&format!("logs/{run}/{}", entry.file_name().to_string_lossy()), &entry.path());
        }
    }
}

/// A journal without the digests of steps' inputs: a short password could be guessed from one.
fn without_digests(journal: &str) -> String {
    let mut out = String::with_capacity(journal.len());
    let mut rest = journal;
    while let Some(at) = rest.find("digest\":\"").map(|at| at + "digest\":\"".len()) {
        out.push_str(&rest[..at]);
        rest = rest[at..].trim_start_matches(|c: char| c.is_ascii_hexdigit());
    }
    out + rest
}

/// Names, kinds, modes and sizes below a folder.
fn listing(dir: &Path, depth: u32) -> String {
    use std::os::unix::fs::MetadataExt;
    let mut lines = String::new();
    let mut entries: Vec<_> = fs::read_dir(dir).into_iter().flatten().flatten().collect();
    entries.sort_by_key(fs::DirEntry::file_name);
    for entry in entries {
        let Ok(meta) = entry.metadata() else { continue };
        let folder = if meta.is_dir() { "/" } else { "" };
        lines += &format!("{:06o} {:>10} {}{folder}\n", meta.mode(), meta.len(), entry.path().display());
        if meta.is_dir() && depth > 1 {
            lines += &listing(&entry.path(), depth - 1);
        }
    }
    lines
}

/// What the programs of this host say.
fn of_host(context: &Context, world: &World, parts: &Parts) {
    let tools = &world.cluster;
    let mut all: Vec<(String, Cmd)> = Vec::new();
    let mut add = |part: &str, cmd: Cmd| all.push((format!("host/{part}.txt"), cmd.env("LC_ALL", "C.UTF-8")));
    for (part, line) in [
        ("system", "uname -a"),
        ("ip-addr", "ip addr"),
        ("ip-route", "ip route"),
        ("disk", "df -h"),
        ("memory", "free -m"),
        ("versions", "ssh -V"),
        ("versions", "vagrant --version"),
    ] {
        let mut words = line.split(' ');
        let program = words.next().unwrap_or_default();
        if let Some(path) = context.env.find(program) {
            add(part, Cmd::new(path).args(words));
        }
    }
    let nodes: Vec<String> = tools.nodes.iter().map(|n| n.name.clone()).collect();
    for (part, cmd) in world.machines.evidence(&tools.name, &nodes) {
        add(&part, cmd);
    }
    // One that does not answer would not answer the next question either.
    let mut silent: Option<(String, String)> = None;
    for (part, cmd) in all {
        let line = cmd.line();
        let program = line.split(' ').find(|w| !w.contains('=')).unwrap_or_default().to_owned();
        if let Some((_, why)) = silent.as_ref().filter(|(name, _)| *name == program) {
            parts.lack(&part, why);
            continue;
        }
        match process::run(&cmd, PROGRAM, &world.cancel) {
            Ok(done) => {
                let mut text = format!("$ {}\n{}{}", done.line, done.stdout, done.stderr);
                if !done.success() {
                    text += &format!("({})\n", done.status);
                }
                parts.put(&part, &text);
            }
            Err(error) => {
                let why = error.to_string();
                parts.lack(&part, &why);
                silent = Some((program, why));
            }
        }
    }
}

/// What p1 itself makes of this host.
fn findings(context: &Context, cluster: &Cluster, parts: &Parts) {
    let (host, findings) = doctor::ask(context, Some(cluster), true);
    let text = serde_json::to_string_pretty(&host).unwrap_or_default();
    parts.put("host/facts.json", &text);
    parts.put("host/doctor.txt", &doctor::plain(&findings));
}

/// What a node says, as far as it gets.
fn of_node(world: &World, node: &Node, parts: &Parts) -> Result<(), StepError> {
    let mut remote = Remote::new(world.login(node)?, world.cancel.clone());
    let session = remote.wait_for(LOGIN, &mut |_| {})?;
    let (mut part, mut text) = (String::new(), String::new());
    let (mut whole, mut count) = (false, 0);
    let done = session.script("collecting evidence", world.guest(node).evidence(), true, NODE, &mut |line| {
        let name =
            |n: &&str| !n.is_empty() && n.bytes().all(|b| b.is_ascii_alphanumeric() || b"-.".contains(&b));
        match line.strip_prefix("=p1= ").filter(name) {
            Some(next) => {
                count += 1;
                if count > NODE_PARTS {
                    return;
                }
                if !part.is_empty() {
                    parts.put(&format!("nodes/{}/{part}.txt", node.name), &text);
                }
                text.clear();
                next.clone_into(&mut part);
                whole = next == "end";
            }
            None => {
                text.push_str(line);
                text.push('\n');
                shorten(&mut text);
            }
        }
    });
    // A node that fell silent was in the middle of something.
    if !whole && !part.is_empty() {
        parts.put(&format!("nodes/{}/{part}.txt", node.name), &text);
    }
    done?.ok()?;
    if count > NODE_PARTS {
        return Err(StepError::new(
            format!("it said more than {NODE_PARTS} things, of which the first are here"),
            "",
        ));
    }
    Ok(())
}

/// The end of what one part says, as soon as it is too much.
fn shorten(text: &mut String) {
    const CUT: &str = "(what came before is too much to be kept)\n";
    let most = usize::try_from(MAX_BYTES).unwrap_or(usize::MAX);
    if text.len() > 2 * most {
        let from = (text.len() - most..).find(|at| text.is_char_boundary(*at)).unwrap_or(text.len());
        text.replace_range(..from, CUT);
    }
}

/// What is in the file, what is not, and what failed last.
fn summary(context: &Context, world: &World, parts: &Parts) -> String {
    let cluster = &world.cluster;
    let mut text = format!(
        "p1 {} of cluster `{}`, {}\n",
        env!("CARGO_PKG_VERSION"),
        cluster.name,
        jiff::Timestamp::now().strftime("%Y-%m-%d %H:%M:%S UTC")
    );
    text += &format!("provider {}, spec {}\n", world.machines.kind(), context.global.file.display());
    if let Some(banner) = world.banner() {
        text += &format!("{banner}\n");
    }
    if let Some(owner) = os::lock::holder(&world.state.lock()) {
        text += &format!("p1 {} works on it (pid {}, since {})\n", owner.verb, owner.pid, owner.since);
    }
    match journal::latest(&world.state.runs()) {
        Ok(Some(record)) => {
            let open = record.outstanding().count();
            text += &format!("\nlast run: {} (`p1 {}`), {open} steps outstanding\n", record.run, record.verb);
            for (step, outcome) in &record.outcomes {
                if let Outcome::Failed(failure) = outcome {
                    text += &format!("  {step} failed: {}\n", failure.cause);
                }
            }
        }
        Ok(None) => text += "\nnothing has been run yet\n",
        Err(error) => text += &format!("\nthe last journal cannot be read: {error}\n"),
    }
    let lacks = parts.lacks();
    text += if lacks.is_empty() { "\nnothing is missing\n" } else { "\nwhat could not be had:\n" };
    for (part, why) in &lacks {
        text += &format!("  {part}: {why}\n");
    }
    text += "\nspec: as written. rendered: what is made from it. state, runs, logs: what lies beside it.\n\
             host: this host. nodes: each as it is now. *** stands for a secret.\n";
    text
}

/// One file, 0600 from its first byte on.
fn pack(
    staging: &tempfile::TempDir,
    name: &str,
    file: &Path,
    cancel: &crate::os::Cancel,
) -> Result<(), CliError> {
    let archive = tempfile::NamedTempFile::new_in(staging.path()).at("write", file)?;
    let cmd = Cmd::new("tar").arg("-czf").arg(archive.path()).arg("-C").arg(staging.path()).arg(name);
    process::run(&cmd, PACK, cancel)?.ok()?;
    archive.as_file().sync_all().at("write", file)?;
    archive.persist_noclobber(file).map_err(|e| e.error).at("write", file)?;
    Ok(())
}
