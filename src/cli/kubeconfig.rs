//! `p1 kubeconfig`: where it is, and into the user's own and out again.

use std::path::{Path, PathBuf};

use super::args::Kubeconfig;
use super::context::Context;
use super::error::{CliError, code};
use super::out;
use crate::access::{listens, url_from_here};
use crate::k3s;
use crate::k3s::kubeconfig::Ours;
use crate::machines::Fleet;
use crate::os::lock::Lock;
use crate::os::{files, process};
use crate::spec::{Cluster, Node};
use crate::state::StateDir;
use crate::ui::Format;

/// Prints its path, or merges it.
pub fn kubeconfig(context: &Context, args: &Kubeconfig) -> Result<(), CliError> {
    let cluster = context.spec()?;
    let state = StateDir::of(cluster.home(), &cluster.name);
    let path = state.kubeconfig();
    if !args.unmerge && !path.is_file() {
        let what = format!("the cluster `{}` has no kubeconfig yet", cluster.name);
        return Err(CliError::new(code::FAILED, what, "`p1 up` makes it.").next(["p1 up"]));
    }
    if !args.unmerge {
        context.front(&cluster).ensure()?;
        choose(&cluster, &state, &context.machines_of(&cluster, &state))?;
    }
    if !args.merge && !args.unmerge {
        out::path(context, "kubeconfig", &path);
        if context.can_ask() {
            eprintln!("for this shell: export KUBECONFIG={}", process::quote(&path.to_string_lossy()));
        }
        return Ok(());
    }
    change(context, args, &cluster, &state)
}

/// Puts it into the user's own, or takes it out.
fn change(context: &Context, args: &Kubeconfig, cluster: &Cluster, state: &StateDir) -> Result<(), CliError> {
    let name = args.called.as_deref().unwrap_or(&cluster.name);
    if name.trim().is_empty() || name.chars().any(char::is_control) {
        let what = format!("{name:?} cannot be the name of a context");
        return Err(CliError::new(code::USAGE, what, "Give `--as` a name that can be typed."));
    }
    // What is written is the file, not a link to it.
    let theirs = files::behind_links(&args.into.clone().unwrap_or_else(|| users_own(context)))?;
    if let Some(dir) = theirs.parent() {
        files::dir(dir)?;
    }
    not_a_file(context, &theirs)?;
    let _lock =
        Lock::take(&context.dirs().kubeconfig_lock(), "kubeconfig", context.global.wait, &context.cancel)
            .map_err(|e| CliError::of(code::LOCKED, &e))?;
    let old = files::read_if_there(&theirs)?;
    let mine = files::read_if_there(&state.kubeconfig())?;
    let access = mine.as_deref().and_then(|text| k3s::kubeconfig::access(text).ok());
    let servers = addresses(cluster, &context.machines_of(cluster, state));
    let ours = Ours { name, servers: &servers, access: access.as_ref() };
    let foreign = k3s::foreign(old.as_deref().unwrap_or_default(), &ours)?;
    let done = if args.unmerge {
        remove(name, old.as_deref())?
    } else {
        add(args, cluster, name, mine.as_deref().unwrap_or_default(), old.as_deref(), !foreign.is_empty())?
    };
    let Some((text, said)) = done else {
        eprintln!("{} does not have `{name}`", theirs.display());
        return Ok(());
    };
    if !foreign.is_empty() {
        agree(context, args, name, &theirs, old.as_deref().unwrap_or_default(), &foreign)?;
    }
    if let Some(old) = old.filter(|o| *o != text) {
        let kept = files::keep_beside(&theirs, old.as_bytes())?;
        eprintln!("kept the former one as {}", kept.display());
        files::write_users(&theirs, text.as_bytes(), 0o600)?;
    } else if !theirs.exists() {
        files::write_users(&theirs, text.as_bytes(), 0o600)?;
    }
    match context.ui.format {
        Format::Json => {
            out::path(context, if args.unmerge { "unmerged" } else { "merged" }, &theirs);
        }
        _ => eprintln!("{said} {}", theirs.display()),
    }
    Ok(())
}

/// Where this cluster is said to be in kubeconfigs that p1 wrote.
fn addresses(cluster: &Cluster, machines: &Fleet) -> Vec<String> {
    let of_all = k3s::api_url(cluster, cluster.first_server());
    let from_here = cluster.servers().map(|s| url_from_here(machines, s));
    cluster.servers().map(k3s::server_url).chain(from_here).chain([of_all]).collect()
}

/// A device, a FIFO or a folder is nothing to read from or to replace.
fn not_a_file(context: &Context, path: &Path) -> Result<(), CliError> {
    let called = context.called();
    files::regular(path).map(drop).map_err(|error| {
        let hint = format!(
            "Nothing was written. Name a file: {called} kubeconfig --merge --into {}",
            process::quote(&context.env.home.join(".kube/config").to_string_lossy())
        );
        CliError { code: code::USAGE, hint: Some(hint), ..CliError::from(error) }
    })
}

/// What is not this cluster's is only touched by somebody who knows whose it is.
fn agree(
    context: &Context,
    args: &Kubeconfig,
    name: &str,
    file: &Path,
    old: &str,
    foreign: &[String],
) -> Result<(), CliError> {
    if context.global.yes {
        return Ok(());
    }
    let what = format!("`{name}` in {} is not this cluster's: {}", file.display(), foreign.join("; "));
    if context.can_ask() {
        let question = if args.unmerge { "Remove it all the same?" } else { "Replace it?" };
        return context.agree(&format!("{what}. {question}"));
    }
    let called = context.called();
    let hint = match args.unmerge {
        true => "Nothing was written. `--yes` removes it all the same.".to_owned(),
        false => {
            let free = |n: &String| k3s::unmerge(old, n).is_ok_and(|found| found.is_none());
            let names = std::iter::once(format!("{name}-p1")).chain((2..).map(|n| format!("{name}-p1-{n}")));
            let other = names.take(1000).find(free).unwrap_or_else(|| format!("{name}-of-p1"));
            format!(
                "Nothing was written. Under another name: {called} kubeconfig --merge --as {}. `--yes` replaces what \
                 is there.",
                process::quote(&other)
            )
        }
    };
    Err(CliError::new(code::USAGE, what, hint))
}

/// What lies in the state folder is what p1 makes of a server's, whichever p1 wrote it and whoever changed it since:
/// kubectl obeys a kubeconfig. And it names one server, unless the spec has an endpoint for all of them: when that one
/// does not answer, it is made to name one that does, and this is said.
pub fn choose(cluster: &Cluster, state: &StateDir, machines: &Fleet) -> Result<(), CliError> {
    let servers: Vec<&Node> = cluster.servers().collect();
    let text = files::read_if_there(&state.kubeconfig())?.unwrap_or_default();
    let now = k3s::kubeconfig::access(&text)?.server;
    let write = |url: &str| -> Result<(), CliError> {
        let ours = k3s::rewrite(&text, url, &cluster.name)?;
        files::write_if_changed(&state.kubeconfig(), ours.as_bytes(), 0o600)?;
        Ok(())
    };
    let url = |server: &Node| url_from_here(machines, server);
    let known = addresses(cluster, machines).contains(&now);
    if cluster.k3s.endpoint.is_some() {
        return write(&if known { now } else { k3s::api_url(cluster, cluster.first_server()) });
    }
    if servers.len() == 1 {
        return write(&if known { now } else { url(servers[0]) });
    }
    let bound = std::time::Duration::from_secs(2);
    let named = servers.iter().find(|s| url(s) == now || k3s::server_url(s) == now);
    if named.is_some_and(|s| listens(machines, s, bound)) {
        return write(&now);
    }
    let others = servers.iter().filter(|s| named.is_none_or(|n| n.name != s.name));
    let Some(other) = others.into_iter().find(|s| listens(machines, s, bound)) else {
        // Without a way to any of them it names the one that it named.
        return write(&if known { now } else { url(servers[0]) });
    };
    write(&url(other))?;
    let who = named.map_or("another server", |n| n.name.as_str());
    eprintln!("`{who}` does not answer: the kubeconfig names `{}` now", other.name);
    Ok(())
}

type Change = Option<(String, String)>;

fn add(
    args: &Kubeconfig,
    cluster: &Cluster,
    name: &str,
    mine: &str,
    old: Option<&str>,
    anew: bool,
) -> Result<Change, CliError> {
    let server = k3s::kubeconfig::access(mine)?.server;
    let ours = k3s::rewrite(mine, &server, name)?;
    let merged = k3s::merge(old, &ours, name, args.switch, anew)?;
    let of = if name == cluster.name { String::new() } else { format!("`{}` as ", cluster.name) };
    let now = match (&merged.previous_context, args.switch) {
        (Some(previous), true) => format!("made {of}`{name}` the current context (before: `{previous}`) in"),
        (Some(previous), false) => {
            format!("merged {of}`{name}`, with `{previous}` still the current context, into")
        }
        (None, _) => format!("merged {of}`{name}` as the current context into"),
    };
    Ok(Some((merged.text, now)))
}

fn remove(name: &str, old: Option<&str>) -> Result<Change, CliError> {
    let Some(old) = old else { return Ok(None) };
    Ok(k3s::unmerge(old, name)?.map(|text| (text, format!("took `{name}` out of"))))
}

/// The first of `$KUBECONFIG`, else `~/.kube/config`.
fn users_own(context: &Context) -> PathBuf {
    let list = std::env::var_os("KUBECONFIG").filter(|v| !v.is_empty());
    let first = list.and_then(|l| std::env::split_paths(&l).find(|p| !p.as_os_str().is_empty()));
    first.unwrap_or_else(|| context.env.home.join(".kube/config"))
}
