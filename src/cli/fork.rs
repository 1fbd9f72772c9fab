//! `p1 fork`: copies of a cluster that run beside it.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use serde_json::json;

use super::args::Fork as Args;
use super::context::Context;
use super::error::{CliError, code};
use super::run::{self, Job};
use super::{kept, out, print};
use crate::access::random;
use crate::event::VerbName;
use crate::explain::printable;
use crate::kept::Moments;
use crate::machines::{Cap, MachineState};
use crate::os::cancel::Level;
use crate::os::files::{self, At};
use crate::os::lock::{self, Lock};
use crate::os::process::{self, Cmd, Stream};
use crate::os::{Cancel, hash, many};
use crate::spec::{self, Cluster, Fork, LibvirtUri};
use crate::state::StateDir;
use crate::ui::{Format, Tone};
use crate::verbs::Verb;

/// For a command of the user's, and for a p1 that makes or removes a fork: they have bounds of their own.
const LONGEST: Duration = Duration::from_secs(7 * 24 * 3600);

/// Makes them, and what p1 starts for them by itself.
pub fn run(context: &Context, args: &Args) -> Result<(), CliError> {
    if args.forward {
        return super::front::run(context);
    }
    let cluster = context.spec()?;
    if args.make {
        return make(context, cluster);
    }
    let forks = Forks::of(context)?;
    let lock = forks.lock(context)?;
    forks.tidy(context);
    let (key, taken) = moment(context, &cluster, args.kept)?;
    let names = names(context, &forks, &cluster, args)?;
    let all: Vec<PathBuf> =
        names.iter().map(|name| forks.begin(context, &cluster, name, &key)).collect::<Result<_, _>>()?;
    let held: Vec<Lock> = match args.command.is_empty() {
        true => Vec::new(),
        // Should this p1 be killed, the next one knows that nobody uses them any more.
        false => {
            let hold = |f: &PathBuf| Lock::take(&held_file(f), "fork", Duration::ZERO, &context.cancel);
            all.iter().map(hold).collect::<Result<_, _>>()?
        }
    };
    if taken && let Err(error) = take(context, cluster, &key, &names) {
        return Err(error);
    }
    let made = make_all(context, &all, args.command.is_empty());
    if made.is_ok() || !args.command.is_empty() {
        forks.tidy_moments(context);
    }
    drop(lock);
    if args.command.is_empty() {
        return made;
    }
    let ran = made.and_then(|()| each(context, &all, &args.command));
    let removed = remove_all(context, &all);
    drop(held);
    ran.and(removed)
}

/// Goes on where a p1 was killed that had written down the moment for forks: `subject` is its key and their names.
pub fn go_on(context: &Context, subject: &str) -> Result<(), CliError> {
    let forks = Forks::of(context)?;
    let _lock = forks.lock(context)?;
    let mut words = subject.split(' ');
    let key = words.next().unwrap_or_default();
    let begun = |folder: &PathBuf| {
        Fork::of(folder).ok().flatten().is_some_and(|f| !f.made && f.moment == key)
            && !held_file(folder).exists()
    };
    let all: Vec<PathBuf> = words.map(|name| forks.dir.join(name)).filter(begun).collect();
    let (whole, due): (Vec<PathBuf>, Vec<PathBuf>) = all.into_iter().partition(|folder| is_whole(folder));
    for fork in whole.iter().filter_map(|folder| Fork::of(folder).ok().flatten()) {
        Fork { made: true, ..fork }.keep()?;
    }
    if !due.is_empty() {
        make_all(context, &due, true)?;
    }
    forks.tidy_moments(context);
    Ok(())
}

/// Held while a command runs on a fork that goes with it.
fn held_file(folder: &Path) -> PathBuf {
    folder.join("held")
}

/// All forks of this user.
struct Forks {
    dir: PathBuf,
    kept: Moments,
}

impl Forks {
    fn of(context: &Context) -> Result<Self, CliError> {
        let (dir, kept) = (context.dirs().forks(), context.kept(LibvirtUri::System));
        files::private_dir(&dir)?;
        Ok(Self { dir, kept })
    }

    /// One p1 at a time makes forks: what is half there is nobody's then.
    fn lock(&self, context: &Context) -> Result<Lock, CliError> {
        let tell = &mut |_: Option<&lock::Owner>| eprintln!("another p1 makes forks; waiting for it");
        let bound = Duration::from_secs(600);
        Lock::take_telling(&self.dir.join("lock"), "fork", bound, &context.cancel, tell)
            .map_err(|e| CliError::of(code::LOCKED, &e))
    }

    fn folders(&self) -> Vec<PathBuf> {
        let all = fs::read_dir(&self.dir).into_iter().flatten().flatten().map(|e| e.path());
        let mut all: Vec<PathBuf> = all.filter(|p| p.is_dir()).collect();
        all.sort();
        all
    }

    /// Removes what killed p1s left: forks that were for a command, those of which nothing was begun, moments that nobody needs.
    fn tidy(&self, context: &Context) {
        for folder in self.folders() {
            let begun = folder.join(".p1").is_dir();
            let fork = Fork::of(&folder).ok().flatten();
            let held = held_file(&folder);
            let abandoned = held.exists() && lock::holder(&held).is_none();
            let lost =
                fork.as_ref().is_none_or(|f| !f.made && self.kept.find(&f.moment).ok().flatten().is_none());
            if !begun && (abandoned || lost) {
                let _ = fs::remove_dir_all(&folder);
            } else if begun && abandoned {
                let name = folder.file_name().unwrap_or_default().to_string_lossy().into_owned();
                eprintln!("removing the fork `{name}`, which a killed p1 left");
                if let Err(error) = remove(context, &folder) {
                    eprint!("{name}: {}", error.show(context.paint(), &context.called()));
                }
            }
        }
        self.tidy_moments(context);
    }

    /// Moments for forks go when no fork is to be made from them any more; their disks with the last fork.
    fn tidy_moments(&self, context: &Context) {
        let wanted: BTreeSet<String> = self
            .folders()
            .iter()
            .filter_map(|f| Fork::of(f).ok().flatten())
            .filter(|f| !f.made)
            .map(|f| f.moment)
            .collect();
        let Ok(_kept) = self.kept.lock(&context.cancel) else { return };
        let mut any = false;
        for moment in self.kept.of_forks().unwrap_or_default() {
            if !wanted.contains(&moment.key) {
                any |= self.kept.set_aside(&moment.key).is_ok();
            }
        }
        if any {
            let _ = self
                .kept
                .sweep(&*crate::machines::keeper(&context.tools(&Default::default())), &Cancel::new());
        }
    }

    /// The folder of a fork to be.
    fn begin(
        &self,
        context: &Context,
        cluster: &Cluster,
        name: &str,
        key: &str,
    ) -> Result<PathBuf, CliError> {
        let file = &context.global.file;
        let text = fs::read_to_string(file).at("read", file)?;
        let home = self.dir.join(name);
        files::private_dir(&home)?;
        files::write(&home.join("cluster.yaml"), spec::renamed(&text, name).as_bytes(), 0o600)?;
        let fork = Fork {
            v: 1,
            name: name.to_owned(),
            of: cluster.name.clone(),
            macs: cluster.macs().to_owned(),
            base: cluster.base.clone(),
            moment: key.to_owned(),
            made: false,
            home: home.clone(),
        };
        fork.keep()?;
        Ok(home)
    }
}

/// What the forks are to be called.
fn names(context: &Context, forks: &Forks, cluster: &Cluster, args: &Args) -> Result<Vec<String>, CliError> {
    let listed = context.index().all();
    let taken = |name: &str| {
        forks.dir.join(name).exists() || listed.iter().any(|n| n.cluster == name && !n.is_stale())
    };
    let label = |name: &str| spec::name_for(name) == name && name.len() <= 40;
    let hint = "A name has lower-case letters, digits and `-`, 40 at most.";
    let stem = match &args.name {
        Some(name) if !label(name) => {
            return Err(CliError::new(code::USAGE, format!("{name:?} cannot be a fork's name"), hint));
        }
        Some(name) if args.count == 1 => {
            if taken(name) {
                let what = format!("a cluster `{name}` is there already");
                return Err(CliError::new(code::USAGE, what, "`p1 list` shows it; give another `--name`."));
            }
            return Ok(vec![name.clone()]);
        }
        Some(name) => format!("{name}-"),
        None => format!("{}-f", cluster.name),
    };
    let free = (1..10_000).map(|i| format!("{stem}{i}")).filter(|name| !taken(name));
    let names: Vec<String> = free.take(args.count as usize).collect();
    match names.iter().find(|name| !label(name)) {
        Some(name) => Err(CliError::new(code::USAGE, format!("{name:?} cannot be a fork's name"), hint)),
        None => Ok(names),
    }
}

/// From which moment: that of now where the cluster runs, which has to be taken first, else the kept one.
fn moment(context: &Context, cluster: &Cluster, of_kept: bool) -> Result<(String, bool), CliError> {
    let state = StateDir::of(cluster.home(), &cluster.name);
    let kind = context.kind(cluster, &state)?;
    let libvirt = context.libvirt(cluster);
    if libvirt.is_session() {
        let what = format!("this cluster cannot be forked: it is of {libvirt}");
        let hint = "A fork has a network of its own, and a user's own libvirt makes none: take `uri: qemu:///system`.";
        return Err(CliError::new(code::USAGE, what, hint));
    }
    let world = context.world(cluster.clone(), kind);
    let machines = world.look_at_machines()?;
    if cluster.nodes.iter().any(|n| world.machines.keep(&n.name).is_err()) {
        let what = format!("this cluster cannot be forked: {}", Cap::Keep.lacking());
        return Err(CliError::new(code::USAGE, what, "`provider: libvirt` makes machines that can."));
    }
    if cluster.has_own_datastore() {
        let what = "this cluster cannot be forked: its data is in the datastore of `datastore-endpoint`";
        return Err(CliError::new(code::USAGE, what, "A fork would write into the original's."));
    }
    let state_of = |node: &str| machines.get(node).map_or(MachineState::Absent, |m| m.state.clone());
    let of_nodes = cluster.nodes.iter().map(|n| (&n.name, state_of(&n.name)));
    let (absent, other): (Vec<_>, Vec<_>) = of_nodes.partition(|(_, s)| *s == MachineState::Absent);
    if !of_kept && !other.is_empty() {
        let still = other.iter().find(|(_, s)| *s != MachineState::Running).or(absent.first());
        return match still {
            None => Ok((hash::hex(&random()?[..8]), true)),
            Some((node, state)) => {
                let what = format!("the machine of `{node}` is {state}, and a cluster is forked as a whole");
                let hint = "`p1 up` makes and starts what is missing. `p1 fork --kept` makes a fork of the kept cluster.";
                Err(CliError::new(code::FAILED, what, hint).next(["p1 up"]))
            }
        };
    }
    let found = kept::key(&world)?.map(|key| world.kept.find(&key)).transpose()?.flatten();
    let Some(found) = found else {
        let what = match other.is_empty() {
            true => format!("the cluster `{}` neither runs nor is kept", cluster.name),
            false => "this cluster is not kept".to_owned(),
        };
        return Err(
            CliError::new(code::FAILED, what, "`p1 up --keep` makes it and keeps it.").next(["p1 up --keep"])
        );
    };
    if !found.reachable {
        let what = "the kept cluster cannot be forked: its nodes lack what a fork is reached by";
        return Err(CliError::new(code::FAILED, what, crate::steps::keep::REACH).next([
            format!("p1 kept remove {}", found.key),
            "p1 box build".into(),
            "p1 up --keep".into(),
        ]));
    }
    Ok((found.key, false))
}

/// Writes down the moment of now.
fn take(context: &Context, cluster: Cluster, key: &str, names: &[String]) -> Result<(), CliError> {
    let subject = Some(format!("{key} {}", names.join(" ")));
    let verb = Verb::of(VerbName::Fork);
    let job = Job { verb, replace: Vec::new(), targets: Vec::new(), subject, retry_of: None, deep: false };
    let report = run::run(context, cluster, job, &|_, _| Ok(()))?;
    run::verdict(&report)
}

/// Makes the machines of the fork whose folder this is.
fn make(context: &Context, cluster: Cluster) -> Result<(), CliError> {
    let Some(fork) = cluster.fork.clone() else {
        return Err(CliError::new(code::USAGE, "this folder is not a fork's", "`p1 fork` makes one."));
    };
    let job = Job {
        verb: Verb::of(VerbName::MakeFork),
        replace: Vec::new(),
        targets: Vec::new(),
        subject: Some(fork.moment.clone()),
        retry_of: None,
        deep: false,
    };
    let report = run::run(context, cluster, job, &|_, _| Ok(()))?;
    run::verdict(&report)
}

/// Goes on with a fork whose machines were not all made, if this is one.
pub fn unfinished(context: &Context, cluster: &Cluster) -> Option<Result<(), CliError>> {
    let fork = cluster.fork.as_ref()?;
    (!is_whole(&fork.home)).then(|| make(context, cluster.clone()))
}

/// Whether all machines of a fork were made; from then on what is written in them is not to be lost.
fn is_whole(folder: &Path) -> bool {
    let state = state_of(folder);
    crate::machines::has_machines(state.dir()) && state.unfinished().is_ok_and(|u| u.is_none())
}

/// Makes all of them, at the same time.
fn make_all(context: &Context, folders: &[PathBuf], stay: bool) -> Result<(), CliError> {
    if let ([folder], true) = (folders, stay) {
        std::env::set_current_dir(folder).at("go to", folder)?;
        let mut global = context.global.clone();
        (global.folder, global.file) = (vec![folder.clone()], "cluster.yaml".into());
        let inside = Context::new(global, context.cancel.clone());
        let made = inside.spec().and_then(|cluster| make(&inside, cluster));
        if made.is_ok() {
            told(&inside, folder);
        }
        return made.map_err(|fail| CliError {
            next: fail.next.iter().map(|n| n.replacen("p1", &inside.called(), 1)).collect(),
            ..fail
        });
    }
    let _signals = super::signals::watch_plain(context.cancel.clone())?;
    let args: [OsString; 4] = ["-o".into(), "plain".into(), "fork".into(), "--make".into()];
    let done = many::each(folders.len(), folders, |folder| {
        let made = itself(context, folder, &args);
        if made.is_ok() && stay {
            told(context, folder);
        }
        made
    });
    worst(done)
}

/// Says where a fork is.
fn told(context: &Context, folder: &Path) {
    let (name, state) = (name_of(folder), state_of(folder));
    let kubeconfig = state.kubeconfig();
    match context.ui.format {
        Format::Json => {
            out::object(&json!({"v": 1, "fork": name, "folder": folder, "kubeconfig": kubeconfig}))
        }
        _ => eprintln!(
            "the fork `{name}` is worked on from its folder: p1 -C {}",
            process::quote_os(folder.as_os_str())
        ),
    }
}

fn name_of(folder: &Path) -> String {
    folder.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

fn state_of(folder: &Path) -> StateDir {
    StateDir::of(folder, &name_of(folder))
}

fn worst(all: Vec<Result<(), CliError>>) -> Result<(), CliError> {
    let code = |r: &Result<(), CliError>| r.as_ref().map_or_else(|e| e.code, |()| 0);
    all.into_iter().max_by_key(code).unwrap_or(Ok(()))
}

/// This p1 once more, in the folder of a fork; what it says is told with the fork's name.
fn itself(context: &Context, folder: &Path, args: &[OsString]) -> Result<(), CliError> {
    let program = std::env::current_exe().at("find", Path::new("/proc/self/exe"))?;
    let jobs = context.global.jobs.to_string();
    let cmd =
        Cmd::new(program).arg("-C").arg(folder).args(["--jobs", &jobs]).args(args).env_remove("P1_FILE");
    let cmd = cmd.grace(Duration::from_secs(60));
    let (name, quiet) = (name_of(folder), context.ui.format == Format::Json);
    let say = &mut |_: Stream, line: &str| {
        if !quiet {
            eprintln!("{} {}", context.paint().tone(Tone::Hint, &format!("{name} |")), printable(line));
        }
    };
    let done = process::watch(&cmd, LONGEST, &context.cancel, say);
    let done = done.map_err(|e| match context.cancel.stopping() {
        true => CliError::told(code::INTERRUPTED, "interrupted"),
        false => CliError::of(code::FAILED, &e),
    })?;
    match done.status.code() {
        Some(0) => Ok(()),
        ended => {
            let code = ended.and_then(|c| u8::try_from(c).ok()).unwrap_or(code::FAILED);
            Err(CliError::new(code, format!("the fork `{name}` failed"), "")
                .next([format!("p1 -C {} retry", process::quote_os(folder.as_os_str()))]))
        }
    }
}

/// Removes a fork with all that belongs to it.
fn remove(context: &Context, folder: &Path) -> Result<(), CliError> {
    let args: [OsString; 4] = ["-o".into(), "plain".into(), "--yes".into(), "destroy".into()];
    itself(context, folder, &args)?;
    match fs::remove_dir_all(folder) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(e).at("remove", folder)?,
        _ => {}
    }
    Ok(())
}

fn remove_all(context: &Context, folders: &[PathBuf]) -> Result<(), CliError> {
    // A wish to stop ended the commands, and not this.
    let after =
        Context { redactor: context.redactor.clone(), ..Context::new(context.global.clone(), Cancel::new()) };
    worst(many::each(folders.len(), folders, |folder| remove(&after, folder)))
}

/// Runs a command for each fork, all at the same time; each line is told with its fork. The exit code is the highest of all.
fn each(context: &Context, folders: &[PathBuf], command: &[String]) -> Result<(), CliError> {
    let _signals = super::signals::watch_plain(context.cancel.clone())?;
    let width = folders.iter().map(|f| name_of(f).len()).max().unwrap_or(0);
    let json_out = context.ui.format == Format::Json;
    let context = Arc::new(context);
    let one = |folder: &PathBuf| -> Result<(), CliError> {
        let name = name_of(folder);
        let cmd = Cmd::new(&command[0]).args(&command[1..]);
        let cmd = cmd.env("KUBECONFIG", state_of(folder).kubeconfig()).env("P1_FORK", folder);
        let cmd = cmd.env("P1_FILE", folder.join("cluster.yaml"));
        let say = &mut |stream: Stream, line: &str| {
            if json_out {
                return out::object(&json!({"v": 1, "fork": name, "line": line}));
            }
            let text = format!(
                "{} {}\n",
                context.paint().tone(Tone::Hint, &format!("{name:width$} |")),
                printable(line)
            );
            match stream {
                Stream::Out => print(text),
                Stream::Err => eprint!("{text}"),
            }
        };
        let done = process::watch(&cmd, LONGEST, &context.cancel, say);
        let done = done.map_err(|e| match context.cancel.level() {
            Level::Go => CliError::of(code::FAILED, &e),
            _ => CliError::told(code::INTERRUPTED, "interrupted"),
        })?;
        use std::os::unix::process::ExitStatusExt;
        let ended = done.status.code().or(done.status.signal().map(|s| 128 + s)).unwrap_or(1);
        let code = u8::try_from(ended).unwrap_or(code::FAILED);
        if json_out {
            out::object(&json!({"v": 1, "fork": name, "status": code}));
        } else if code != 0 {
            eprintln!("{name}: exit code {code}");
        }
        if code == 0 { Ok(()) } else { Err(CliError::told(code, format!("{name}: exit code {code}"))) }
    };
    worst(many::each(folders.len(), folders, one))
}
