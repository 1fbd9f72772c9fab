//! `p1 kubeconfig`: where it is, and into the user's own and out again.

use std::path::PathBuf;

use super::args::Kubeconfig;
use super::context::Context;
use super::fail::{Fail, code};
use super::out;
use crate::k3s;
use crate::os::files;
use crate::os::lock::Lock;
use crate::spec::{Cluster, Node};
use crate::state::State;
use crate::steps;
use crate::ui::Format;

/// Prints its path, or merges it.
pub fn kubeconfig(context: &Context, args: &Kubeconfig) -> Result<(), Fail> {
    let cluster = context.spec()?;
    let state = State::of(&cluster.base, &cluster.name);
    let path = state.kubeconfig();
    if !args.unmerge && !path.is_file() {
        let what = format!("the cluster `{}` has no kubeconfig yet", cluster.name);
        return Err(Fail::new(code::FAILED, what, "`p1 up` makes it.").next(["p1 up"]));
    }
    if !args.unmerge {
        choose(&cluster, &state)?;
    }
    if !args.merge && !args.unmerge {
        out::path(context, "kubeconfig", &path);
        if context.can_ask() {
            eprintln!(
                "for this shell: export KUBECONFIG={}",
                crate::os::process::quote(&path.to_string_lossy())
            );
        }
        return Ok(());
    }
    let theirs = args.into.clone().unwrap_or_else(|| users_own(context));
    if let Some(dir) = theirs.parent() {
        files::dir(dir)?;
    }
    // kubectl locks the same way: a file beside it (client-go `clientcmd/loader.go`, lockFile).
    let beside = |ending: &str| PathBuf::from(format!("{}{ending}", theirs.display()));
    let _lock = Lock::take(&beside(".p1-lock"), "kubeconfig", context.global.wait, &context.cancel)
        .map_err(|e| Fail::of(code::LOCKED, &e))?;
    let old = files::read_if_there(&theirs)?;
    let done = if args.unmerge {
        remove(&cluster.name, old.as_deref())?
    } else {
        add(args, &cluster.name, &path, old.as_deref())?
    };
    let Some((text, said)) = done else {
        eprintln!("{} does not have `{}`", theirs.display(), cluster.name);
        return Ok(());
    };
    if let Some(old) = old.filter(|o| *o != text) {
        files::write(&beside(".p1-backup"), old.as_bytes(), 0o600)?;
        eprintln!("kept the former one as {}", beside(".p1-backup").display());
    }
    files::write_if_changed(&theirs, text.as_bytes(), 0o600)?;
    match context.ui.format {
        Format::Json => {
            out::path(context, if args.unmerge { "unmerged" } else { "merged" }, &theirs);
        }
        _ => eprintln!("{said} {}", theirs.display()),
    }
    Ok(())
}

/// The kubeconfig names one server, unless the spec has an endpoint for all of them. When that one does
/// not answer, it is made to name one that does, and this is said.
pub fn choose(cluster: &Cluster, state: &State) -> Result<(), Fail> {
    let servers: Vec<&Node> = cluster.servers().collect();
    if servers.len() == 1 || cluster.k3s.endpoint.is_some() {
        return Ok(());
    }
    let text = files::read_if_there(&state.kubeconfig())?.unwrap_or_default();
    let now = k3s::kubeconfig::access(&text)?.server;
    let bound = std::time::Duration::from_secs(2);
    let named = servers.iter().find(|s| k3s::server_url(s) == now);
    if named.is_some_and(|s| steps::listens(s, bound)) {
        return Ok(());
    }
    let others = servers.iter().filter(|s| named.is_none_or(|n| n.name != s.name));
    // Without a way to any of them the file is left as it is.
    let Some(other) = others.into_iter().find(|s| steps::listens(s, bound)) else { return Ok(()) };
    let ours = k3s::rewrite(&text, &k3s::server_url(other), &cluster.name)?;
    files::write_if_changed(&state.kubeconfig(), ours.as_bytes(), 0o600)?;
    let who = named.map_or(now.as_str(), |n| n.name.as_str());
    eprintln!("`{who}` does not answer: the kubeconfig names `{}` now", other.name);
    Ok(())
}

type Change = Option<(String, String)>;

fn add(args: &Kubeconfig, name: &str, path: &std::path::Path, old: Option<&str>) -> Result<Change, Fail> {
    let ours = files::read_if_there(path)?.unwrap_or_default();
    let merged = k3s::merge(old, &ours, name, args.switch)?;
    let now = match (&merged.previous_context, args.switch) {
        (Some(previous), true) => format!("made `{name}` the current context (before: `{previous}`) in"),
        (Some(previous), false) => {
            format!("merged `{name}`, with `{previous}` still the current context, into")
        }
        (None, _) => format!("merged `{name}` as the current context into"),
    };
    Ok(Some((merged.text, now)))
}

fn remove(name: &str, old: Option<&str>) -> Result<Change, Fail> {
    let Some(old) = old else { return Ok(None) };
    Ok(k3s::unmerge(old, name)?.map(|text| (text, format!("took `{name}` out of"))))
}

/// The first of `$KUBECONFIG`, else `~/.kube/config`.
fn users_own(context: &Context) -> PathBuf {
    let list = std::env::var_os("KUBECONFIG").filter(|v| !v.is_empty());
    let first = list.and_then(|l| std::env::split_paths(&l).find(|p| !p.as_os_str().is_empty()));
    first.unwrap_or_else(|| context.env.home.join(".kube/config"))
}
