//! `p1 kubeconfig`: where it is, and into the user's own and out again.

use std::path::PathBuf;

use super::args::Kubeconfig;
use super::context::Context;
use super::fail::{Fail, code};
use super::print;
use crate::k3s;
use crate::os::files;
use crate::os::lock::Lock;
use crate::state::State;

/// Prints its path, or merges it.
pub fn kubeconfig(context: &Context, args: &Kubeconfig) -> Result<(), Fail> {
    let cluster = context.spec()?;
    let state = State::of(&cluster.base, &cluster.name);
    let path = state.kubeconfig();
    if !args.unmerge && !path.is_file() {
        let what = format!("the cluster `{}` has no kubeconfig yet", cluster.name);
        return Err(Fail::new(code::FAILED, what, "`p1 up` makes it."));
    }
    if !args.merge && !args.unmerge {
        print(&format!("{}\n", path.display()));
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
    eprintln!("{said} {}", theirs.display());
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
