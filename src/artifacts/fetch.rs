//! Getting what is missing.

use std::fs::{self, OpenOptions};
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::Duration;

use sha2::{Digest, Sha256};

use super::http::{Head, Http, Sink, local_path};
use super::{Bounds, Cache, Doing, Error, File, Files, Item, Net, Place, Progress, Resolved, resolve, store};
use crate::os::files::{self, At};
use crate::os::hash::{self, Sum};
use crate::os::lock::{self, Lock};
use crate::os::{Cancel, cancel::Level};
use crate::spec::Source;

/// Gets a single file that a spec names, such as a box; otherwise as [`fetch()`].
pub fn fetch_one(
    source: &Source,
    cache: &Cache,
    net: &Net,
    bounds: &Bounds,
    progress: &mut dyn FnMut(Progress),
    cancel: &Cancel,
) -> Result<File, Error> {
    let item = resolve::single(source, cache)?;
    one(&item, cache, &Http::new(net, bounds, cancel), net, bounds, progress, cancel)
}

/// The same of an address whose file has a sum of either kind.
pub fn fetch_sum(
    url: &str,
    sum: &Sum,
    cache: &Cache,
    net: &Net,
    bounds: &Bounds,
    progress: &mut dyn FnMut(Progress),
    cancel: &Cancel,
) -> Result<File, Error> {
    let item = resolve::summed(url, sum, cache)?;
    one(&item, cache, &Http::new(net, bounds, cancel), net, bounds, progress, cancel)
}

/// A small text, such as a list of checksums. It is not kept.
pub fn text(url: &str, net: &Net, bounds: &Bounds, cancel: &Cancel) -> Result<String, Error> {
    if net.offline && local_path(url)?.is_none() {
        return Err(Error::Offline { what: url.to_owned() });
    }
    Http::new(net, bounds, cancel).text(url)
}

fn one(
    item: &Item,
    cache: &Cache,
    http: &Http,
    net: &Net,
    bounds: &Bounds,
    progress: &mut dyn FnMut(Progress),
    cancel: &Cancel,
) -> Result<File, Error> {
    match &item.place {
        Place::Local(path) => local(item, path, cache, progress, cancel),
        Place::Remote { url, cached } => remote(item, url, cached, http, net, bounds, progress, cancel),
    }
}

/// Gets every file of `resolved` onto this host, verified. A file that is there and has not changed
/// since it was verified costs a `stat`; one that has changed is hashed; a damaged one of the cache
/// is fetched again. Two p1 that need the same file: one downloads, the other waits.
///
/// Blocks for [`Bounds::total`] a file at most. The first Ctrl-C lets the present file finish, the
/// second ends it; what came so far of it is kept and gone on with.
pub fn fetch(
    resolved: &Resolved,
    cache: &Cache,
    net: &Net,
    bounds: &Bounds,
    progress: &mut dyn FnMut(Progress),
    cancel: &Cancel,
) -> Result<Files, Error> {
    let http = Http::new(net, bounds, cancel);
    let mut get = |item: &Item| one(item, cache, &http, net, bounds, progress, cancel);
    let binary = get(&resolved.binary)?;
    let installer = get(&resolved.installer)?;
    let images = resolved.images.iter().map(&mut get).collect::<Result<_, _>>()?;
    let version = match (&resolved.version, &resolved.binary.place) {
        (None, Place::Remote { cached, .. }) => {
            let note = store::beside(cached, ".json");
            resolve::ask_version(cached, &note, cancel)?.map(|v| v.to_string())
        }
        (version, _) => version.clone(),
    };
    Ok(Files { version, binary, installer, images })
}

fn local(
    item: &Item,
    path: &Path,
    cache: &Cache,
    progress: &mut dyn FnMut(Progress),
    cancel: &Cancel,
) -> Result<File, Error> {
    if cancel.stopping() {
        return Err(Error::Cancelled);
    }
    let note = store::local(cache, path);
    let known = match store::recall(path, &note) {
        Some(known) => known,
        None => {
            let Some(known) = store::look(&item.name, path, progress, cancel)? else {
                let absent = std::io::Error::from(nix::errno::Errno::ENOENT);
                return Err(files::Error { action: "read", path: path.to_owned(), source: absent }.into());
            };
            store::write_down(&note, &known)?;
            known
        }
    };
    promise(item, &path.display().to_string(), &known.sha256, path)?;
    Ok(known.file(&item.name))
}

/// `got` is the SHA-256 of the file at `path`.
fn promise(item: &Item, url: &str, got: &str, path: &Path) -> Result<(), Error> {
    let (wanted, got) = match (&item.sha256, &item.sha512) {
        (_, Some(sum)) => (sum.digits().to_owned(), sum.of(files::open(path)?).at("read", path)?),
        (Some(wanted), None) if item.promised => (wanted.clone(), got.to_owned()),
        _ => return Ok(()),
    };
    if wanted == got { Ok(()) } else { Err(Error::Checksum { url: url.to_owned(), wanted, got }) }
}

#[allow(clippy::too_many_arguments)]
fn remote(
    item: &Item,
    url: &str,
    cached: &Path,
    http: &Http,
    net: &Net,
    bounds: &Bounds,
    progress: &mut dyn FnMut(Progress),
    cancel: &Cancel,
) -> Result<File, Error> {
    let note = store::beside(cached, ".json");
    let wanted = item.sha256.as_ref().filter(|_| item.promised);
    let recalled = || store::recall(cached, &note).filter(|k| wanted.is_none_or(|w| *w == k.sha256));
    if let Some(known) = recalled() {
        return Ok(known.file(&item.name));
    }
    if cancel.stopping() {
        return Err(Error::Cancelled);
    }
    files::dir(cached.parent().expect("a file in the cache has a folder"))?;
    let _lock = take_lock(item, cached, bounds, progress, cancel)?;
    if let Some(known) = recalled() {
        return Ok(known.file(&item.name));
    }
    // It has changed since it was verified, or was never: only its sum can tell whether it is good.
    if let Some(sum) = wanted.cloned().or_else(|| store::last_sum(&note))
        && let Some(known) = store::look(&item.name, cached, progress, cancel)?
        && known.sha256 == sum
    {
        store::write_down(&note, &known)?;
        return Ok(known.file(&item.name));
    }
    if net.offline {
        return Err(Error::Offline { what: format!("{} ({url})", item.name) });
    }
    let mode = if item.name == "k3s" { 0o755 } else { 0o644 };
    let known = download(item, url, cached, mode, http, progress, cancel)?;
    store::write_down(&note, &known)?;
    Ok(known.file(&item.name))
}

/// The lock on one file of the cache, waited for as long as a download may take.
fn take_lock(
    item: &Item,
    cached: &Path,
    bounds: &Bounds,
    progress: &mut dyn FnMut(Progress),
    cancel: &Cancel,
) -> Result<Lock, Error> {
    let path = store::beside(cached, ".lock");
    // Tried, not asked for: between a question and the taking another one may come first.
    match Lock::take(&path, "download", Duration::ZERO, cancel) {
        Err(lock::Error::Held { .. }) => {
            progress(Progress { name: &item.name, doing: Doing::Waiting, done: 0, total: None });
        }
        taken => return taken.map_err(Error::Lock),
    }
    Lock::take(&path, "download", bounds.total, cancel).map_err(|error| match error {
        lock::Error::Held { .. } if cancel.level() >= Level::Stop => Error::Cancelled,
        lock::Error::Held { .. } => Error::Busy { name: item.name.clone(), bound: bounds.total },
        other => Error::Lock(other),
    })
}

fn download(
    item: &Item,
    url: &str,
    cached: &Path,
    mode: u32,
    http: &Http,
    progress: &mut dyn FnMut(Progress),
    cancel: &Cancel,
) -> Result<store::Known, Error> {
    let part = store::beside(cached, ".part");
    let promised = item.sha512.is_some() || item.promised && item.sha256.is_some();
    let mut resumed_once = false;
    loop {
        let mut sink = Part {
            name: &item.name,
            path: &part,
            // Without a sum to prove it, two halves might be of two files.
            resume: promised && !resumed_once,
            resumed: false,
            file: None,
            hasher: Sha256::new(),
            done: 0,
            total: None,
            progress,
            cancel,
        };
        http.get(url, &mut sink)?;
        let (resumed, done) = (sink.resumed, sink.done);
        let sum = hash::hex(&sink.hasher.finalize());
        if let Some(file) = sink.file {
            file.sync_data().at("write", &part)?;
        }
        match promise(item, url, &sum, &part) {
            // What was there before was of another file; once more, from the beginning.
            Err(_) if resumed && !resumed_once => resumed_once = true,
            Err(error) => {
                files::remove_if_there(&part)?;
                return Err(error);
            }
            Ok(()) => {
                if let Err(error) = plausible(item, url, &part) {
                    files::remove_if_there(&part)?;
                    return Err(error);
                }
                fs::set_permissions(&part, fs::Permissions::from_mode(mode)).at("protect", &part)?;
                fs::rename(&part, cached).at("write", cached)?;
                let meta = fs::metadata(cached).at("read", cached)?;
                return Ok(store::Known {
                    path: cached.to_owned(),
                    sha256: sum,
                    len: done,
                    mtime: store::mtime(&meta),
                    version: None,
                });
            }
        }
    }
}

/// Nothing vouches for an installer but its looks: a proxy's login page must not be run on a node.
fn plausible(item: &Item, url: &str, path: &Path) -> Result<(), Error> {
    if item.promised || item.name != "install.sh" {
        return Ok(());
    }
    let text = fs::read(path).at("read", path)?;
    if text.starts_with(b"#!") {
        return Ok(());
    }
    Err(Error::Answer { url: url.to_owned(), what: "it is not a shell script".to_owned() })
}

/// A file that is coming, hashed on its way.
struct Part<'a> {
    name: &'a str,
    path: &'a Path,
    resume: bool,
    resumed: bool,
    file: Option<fs::File>,
    hasher: Sha256,
    done: u64,
    total: Option<u64>,
    progress: &'a mut dyn FnMut(Progress),
    cancel: &'a Cancel,
}

impl Part<'_> {
    fn report(&mut self) {
        let (done, total) = (self.done, self.total);
        (self.progress)(Progress { name: self.name, doing: Doing::Downloading, done, total });
    }

    fn start_over(&mut self) -> Result<(), Error> {
        let open = OpenOptions::new().write(true).create(true).truncate(true).open(self.path);
        self.file = Some(open.at("write", self.path)?);
        (self.hasher, self.done, self.resumed) = (Sha256::new(), 0, false);
        Ok(())
    }
}

impl Sink for Part<'_> {
    fn resume_at(&mut self) -> Result<u64, Error> {
        self.file = None;
        let there = fs::metadata(self.path).map_or(0, |meta| meta.len());
        if !self.resume || there == 0 {
            self.start_over()?;
            return Ok(0);
        }
        // A crash may have left holes that were never written: what counts is what is read back.
        (self.hasher, self.done) = store::hash(self.path, &mut |_| {}, self.cancel)?;
        self.file = Some(OpenOptions::new().append(true).open(self.path).at("write", self.path)?);
        self.resumed = true;
        Ok(self.done)
    }

    fn head(&mut self, head: &Head) -> Result<(), Error> {
        // The server gives everything, or a range that is not the one asked for.
        if self.done > 0 && head.status == 200 {
            self.start_over()?;
        }
        if head.status == 206 && head.range_start != Some(self.done) {
            self.resume = false;
            return Err(Error::Connection {
                url: self.name.to_owned(),
                cause: "the server sent another part than the one asked for".to_owned(),
            });
        }
        if head.status == 416 {
            // Nothing is behind what is there: it is complete, or another file. The sum will tell.
            self.file = None;
            return Ok(());
        }
        self.total = head.length.map(|n| n + self.done);
        self.report();
        Ok(())
    }

    fn chunk(&mut self, bytes: &[u8]) -> Result<(), Error> {
        let Some(file) = &mut self.file else { return Ok(()) };
        file.write_all(bytes).at("write", self.path)?;
        self.hasher.update(bytes);
        self.done += bytes.len() as u64;
        self.report();
        Ok(())
    }
}
