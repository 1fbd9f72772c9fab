//! Which files are needed.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::http::{Http, local_path};
use super::{Bounds, Cache, Error, Item, Net, Place, Resolved, folder, store};
use crate::explain::{chain, seconds};
use crate::k3s::release::{ChannelError, channel_version, checksum, checksums_name};
use crate::k3s::{Arch, Origins, Version};
use crate::os::Cancel;
use crate::os::files::{self, At, read_if_there};
use crate::os::hash::Sum;
use crate::os::process::{self, Cmd};
use crate::spec::{Artifacts, Release, Source};

/// How long an answer about channels is good. A release appears every few weeks.
const CHANNELS_KEPT: Duration = Duration::from_secs(3600);
/// How long a binary may take to say its version.
const ASK: Duration = Duration::from_secs(10);

/// Finds out which files a spec asks for. Asks the network for a channel's version (at most once an
/// hour) and for a release's checksums (once), and for neither where the spec gives the files.
///
/// Offline, or when the channel server cannot be reached, an older answer counts, with a warning.
pub fn resolve(
    release: &Release,
    artifacts: &Artifacts,
    arch: Arch,
    cache: &Cache,
    net: &Net,
    bounds: &Bounds,
    cancel: &Cancel,
) -> Result<Resolved, Error> {
    let want = Want { arch, all_images: false };
    resolve_as(release, artifacts, want, cache, net, bounds, cancel)
}

/// What is wanted beyond the spec's own words.
#[derive(Clone, Copy, Debug)]
pub(super) struct Want {
    pub arch: Arch,
    /// The release's own images, where the spec names none.
    pub all_images: bool,
}

/// What to call a spec's file that would have to be downloaded; `None` if it is here.
pub fn lacks(source: &Source, cache: &Cache) -> Option<String> {
    lacking(single(source, cache).ok()?)
}

/// The same of a file that [`super::fetch_sum()`] gets.
pub fn lacks_sum(url: &str, sum: &Sum, cache: &Cache) -> Option<String> {
    lacking(summed(url, sum, cache).ok()?)
}

fn lacking(item: Item) -> Option<String> {
    match item.place {
        Place::Remote { url, cached } if !cached.is_file() => Some(url),
        _ => None,
    }
}

/// What of it is not on this host, each with the address it would come from. Asks no network.
pub fn missing(resolved: &Resolved) -> Vec<String> {
    let all = [&resolved.binary, &resolved.installer].into_iter().chain(&resolved.images);
    let lacks = |item: &&Item| match &item.place {
        Place::Local(path) => !path.is_file(),
        Place::Remote { cached, .. } => !cached.is_file(),
    };
    let name = |item: &Item| match &item.place {
        Place::Local(path) => format!("{} ({})", item.name, path.display()),
        Place::Remote { url, .. } => format!("{} ({url})", item.name),
    };
    all.filter(lacks).map(name).collect()
}

pub(super) fn resolve_as(
    release: &Release,
    artifacts: &Artifacts,
    Want { arch, all_images }: Want,
    cache: &Cache,
    net: &Net,
    bounds: &Bounds,
    cancel: &Cancel,
) -> Result<Resolved, Error> {
    if let Some(dir) = &artifacts.dir {
        return folder::resolved(dir, release, arch);
    }
    let mut run = Run { cache, net, http: Http::new(net, bounds, cancel), cancel, warnings: Vec::new() };
    let says = match artifacts.binary.as_ref().map(|source| run.given("k3s", source)).transpose()? {
        Some(Item { place: Place::Local(path), .. }) => {
            ask_version(&path, &store::local(cache, &path), cancel)?
        }
        _ => None,
    };
    // After it was asked, its checksum is known, too.
    let given = artifacts.binary.as_ref().map(|source| run.given("k3s", source)).transpose()?;
    let version = match (release, says) {
        (Release::Version(text), says) => {
            let wanted: Version = text.parse()?;
            if let (Some(says), Some(Item { place: Place::Local(path), .. })) = (says, &given)
                && says != wanted
            {
                let (says, wanted) = (says.to_string(), wanted.to_string());
                return Err(Error::OtherVersion { path: path.clone(), says, wanted });
            }
            Some(wanted)
        }
        (Release::Channel(_), Some(says)) => Some(says),
        (Release::Channel(name), None) if given.is_none() => Some(run.channel(name)?),
        (Release::Channel(_), None) => None,
    };
    let binary = match (given, &version) {
        (Some(item), _) => item,
        (None, Some(version)) => run.released(version, arch)?,
        (None, None) => unreachable!("without a given binary, there is a version"),
    };
    let installer = match (&artifacts.installer, &version, release) {
        (Some(source), ..) => run.given("install.sh", source)?,
        (None, Some(version), _) => run.installer(version)?,
        (None, None, Release::Channel(name)) => {
            let version = run.channel(name)?;
            run.installer(&version)?
        }
        (None, None, Release::Version(_)) => unreachable!("a given version is a version"),
    };
    let mut images =
        artifacts.images.iter().map(|s| run.given(&file_name(s), s)).collect::<Result<Vec<_>, _>>()?;
    if let (true, true, Some(version)) = (all_images, images.is_empty(), &version) {
        images.push(run.released_images(version, arch)?);
    }
    let warnings = run.warnings;
    Ok(Resolved { version: version.map(|v| v.to_string()), binary, installer, images, warnings })
}

struct Run<'a> {
    cache: &'a Cache,
    net: &'a Net,
    http: Http<'a>,
    cancel: &'a Cancel,
    warnings: Vec<String>,
}

impl Run<'_> {
    /// A file of the spec's. One on this host must be there: better said now than after a download.
    fn given(&self, name: &str, source: &Source) -> Result<Item, Error> {
        let item = self.given_item(name, source)?;
        if let Place::Local(path) = &item.place {
            fs::metadata(path).at("read", path)?;
        }
        Ok(item)
    }

    fn given_item(&self, name: &str, source: &Source) -> Result<Item, Error> {
        given(name, source, self.cache)
    }

    fn at(&self, name: &str, place: Place, promise: Option<String>) -> Item {
        at(self.cache, name, place, promise)
    }

    /// A version's folder in the cache. A mirror's files are kept apart from k3s' own.
    fn folder(&self, version: &Version) -> PathBuf {
        let origins = &self.net.origins;
        let mut name = version.to_string();
        if *origins != Origins::default() {
            let key = format!("{} {}", origins.releases, origins.source);
            name = format!("{name}@{}", &store::short_hash(&key)[..8]);
        }
        self.cache.dir.join("releases").join(name)
    }

    fn place(&self, version: &Version, name: &str, url: String) -> Result<Place, Error> {
        Ok(match local_path(&url)? {
            Some(path) => Place::Local(path),
            None => Place::Remote { url, cached: self.folder(version).join(name) },
        })
    }

    fn released(&self, version: &Version, arch: Arch) -> Result<Item, Error> {
        let sum = self.checksum(version, arch)?;
        let cached_as = if arch == Arch::Amd64 { "k3s" } else { arch.binary() };
        let place = self.place(version, cached_as, self.net.origins.binary(version, arch))?;
        Ok(self.at("k3s", place, Some(sum)))
    }

    /// The archive of the images that k3s itself needs; older releases have it in other packings.
    fn released_images(&self, version: &Version, arch: Arch) -> Result<Item, Error> {
        self.checksum(version, arch)?;
        let list = read_if_there(&self.folder(version).join(checksums_name(arch)))?.unwrap_or_default();
        let url = self.net.origins.images(version, arch);
        let base = url.strip_suffix(".zst").unwrap_or(&url);
        let found = ["tar.zst", "tar.gz", "tar"].iter().find_map(|end| {
            let name = format!("k3s-airgap-images-{arch}.{end}");
            Some((checksum(&list, &name)?, format!("{base}{}", &end[3..]), name))
        });
        let (sum, url, name) = found.ok_or_else(|| Error::Answer {
            url: self.net.origins.checksums(version, arch),
            what: format!("it has no checksum of an archive of images for {arch}"),
        })?;
        let place = self.place(version, &name, url)?;
        Ok(self.at(&name, place, Some(sum)))
    }

    fn installer(&self, version: &Version) -> Result<Item, Error> {
        let place = self.place(version, "install.sh", self.net.origins.installer(version))?;
        Ok(self.at("install.sh", place, None))
    }

    fn checksum(&self, version: &Version, arch: Arch) -> Result<String, Error> {
        let kept = self.folder(version).join(checksums_name(arch));
        let find = |list: &str| checksum(list, arch.binary());
        if let Some(sum) = read_if_there(&kept)?.as_deref().and_then(find) {
            return Ok(sum);
        }
        let url = self.net.origins.checksums(version, arch);
        self.online(&format!("the checksums of k3s {version} ({url})"), &url)?;
        let list = self.http.text(&url)?;
        let sum = find(&list).ok_or_else(|| Error::Answer {
            url: url.clone(),
            what: format!("it has no checksum of {}", arch.binary()),
        })?;
        files::dir(&self.folder(version))?;
        files::write(&kept, list.as_bytes(), 0o644)?;
        Ok(sum)
    }

    fn online(&self, what: &str, url: &str) -> Result<(), Error> {
        if self.cancel.stopping() {
            return Err(Error::Cancelled);
        }
        if self.net.offline && local_path(url)?.is_none() {
            return Err(Error::Offline { what: what.to_owned() });
        }
        Ok(())
    }

    fn channel(&mut self, name: &str) -> Result<Version, Error> {
        let url = &self.net.origins.channels;
        let kept = self.cache.dir.join(format!("channels-{}.json", &store::short_hash(url)[..8]));
        let old: Option<Channels> = read_if_there(&kept)?
            .and_then(|text| serde_json::from_str(&text).ok())
            .filter(|c: &Channels| c.url == *url);
        if let Some(old) = old.as_ref().filter(|c| c.age().is_some_and(|age| age < CHANNELS_KEPT))
            && let Ok(version) = channel_version(&old.answer, name)
        {
            return Ok(version);
        }
        let asked = self.online(&format!("the release channel `{name}` ({url})"), url);
        let error = match asked.and_then(|()| self.http.text(url)) {
            Ok(answer) => {
                let version = channel_version(&answer, name).map_err(|error| match error {
                    ChannelError::Unreadable(what) => Error::Answer { url: url.clone(), what },
                    unknown => unknown.into(),
                })?;
                files::dir(&self.cache.dir)?;
                let keep = Channels { at: jiff::Timestamp::now(), url: url.clone(), answer };
                files::write(&kept, &serde_json::to_vec(&keep).expect("plain data"), 0o644)?;
                return Ok(version);
            }
            Err(error) => error,
        };
        let Some(old) = old.filter(|_| !matches!(error, Error::Cancelled)) else { return Err(error) };
        let version = channel_version(&old.answer, name).map_err(|_| error_again(&error, url))?;
        let age = old.age().map_or_else(|| "unknown age".to_owned(), |age| format!("{} ago", seconds(age)));
        self.warnings.push(format!(
            "The channel `{name}` stands for {version} by an answer of {age}: {}.",
            chain(&error)
        ));
        Ok(version)
    }
}

fn error_again(error: &Error, url: &str) -> Error {
    match error {
        Error::Offline { what } => Error::Offline { what: what.clone() },
        other => Error::Connection { url: url.to_owned(), cause: other.to_string() },
    }
}

#[derive(Serialize, Deserialize)]
struct Channels {
    at: jiff::Timestamp,
    url: String,
    answer: String,
}

impl Channels {
    /// `None` when it comes from the future: a clock was set.
    fn age(&self) -> Option<Duration> {
        jiff::Timestamp::now().duration_since(self.at).try_into().ok()
    }
}

/// A file that a spec names.
fn given(name: &str, source: &Source, cache: &Cache) -> Result<Item, Error> {
    match source {
        Source::Path(path) => Ok(at(cache, name, Place::Local(path.clone()), None)),
        Source::Url { url, sha256 } => {
            let sha256 = sha256.to_ascii_lowercase();
            let place = match local_path(url)? {
                Some(path) => Place::Local(path),
                None => {
                    let cached = cache.dir.join("sha256").join(&sha256).join(file_name(source));
                    Place::Remote { url: url.clone(), cached }
                }
            };
            Ok(at(cache, name, place, Some(sha256)))
        }
    }
}

/// See [`given`], under the file's own name.
pub(super) fn single(source: &Source, cache: &Cache) -> Result<Item, Error> {
    given(&file_name(source), source, cache)
}

/// The same of an address whose file has a sum of either kind.
pub(super) fn summed(url: &str, sum: &Sum, cache: &Cache) -> Result<Item, Error> {
    let source = Source::Url { url: url.to_owned(), sha256: sum.digits().to_owned() };
    let Sum::Sha512(digits) = sum else { return single(&source, cache) };
    let name = file_name(&source);
    let place = match local_path(url)? {
        Some(path) => Place::Local(path),
        None => {
            let cached = cache.dir.join("sha512").join(digits).join(&name);
            Place::Remote { url: url.to_owned(), cached }
        }
    };
    Ok(Item { sha512: Some(sum.clone()), ..at(cache, &name, place, None) })
}

fn at(cache: &Cache, name: &str, place: Place, promise: Option<String>) -> Item {
    let promised = promise.is_some();
    let known = || match &place {
        Place::Local(path) => store::recall(path, &store::local(cache, path)),
        Place::Remote { cached, .. } => store::recall(cached, &store::beside(cached, ".json")),
    };
    let sha256 = promise.or_else(|| known().map(|k| k.sha256));
    Item { name: name.to_owned(), place, sha256, promised, sha512: None }
}

/// The last part of the name of a source's file, of harmless characters only.
fn file_name(source: &Source) -> String {
    let name = match source {
        Source::Path(path) => path.file_name().map(|n| n.to_string_lossy().into_owned()),
        Source::Url { url, .. } => {
            let path = url.split(['?', '#']).next().unwrap_or_default();
            path.rsplit('/').next().map(|n| n.replace("%2B", "+").replace("%2b", "+"))
        }
    };
    let name: String = name
        .unwrap_or_default()
        .chars()
        .filter(|c| c.is_ascii_alphanumeric() || "._+-".contains(*c))
        .collect();
    if name.trim_matches('.').is_empty() { "file".to_owned() } else { name }
}

/// What a k3s binary says of its version, if it runs on this host; asked once for a file and kept in
/// its `note`, which says what is known of it. A failure is no error: it may be for another machine.
pub(super) fn ask_version(path: &Path, note: &Path, cancel: &Cancel) -> Result<Option<Version>, Error> {
    let known = store::recall(path, note);
    if let Some(said) = known.as_ref().and_then(|k| k.version.as_ref()) {
        return Ok(said.as_deref().and_then(|v| v.parse().ok()));
    }
    let runnable = fs::metadata(path).is_ok_and(|m| m.is_file() && m.permissions().mode() & 0o111 != 0);
    if !runnable {
        return Ok(None);
    }
    let answer = process::run(&Cmd::new(path).arg("--version"), ASK, cancel);
    if cancel.aborted() {
        return Err(Error::Cancelled);
    }
    let said = match answer {
        Ok(done) if done.success() => Version::from_output(&done.stdout),
        // Of another architecture (`ENOEXEC`), or something else altogether.
        Ok(_) | Err(process::Error::Start { .. }) => None,
        // A busy host: worth asking again the next time.
        Err(_) => return Ok(None),
    };
    let known = match known {
        Some(known) => Some(known),
        None => store::look("k3s", path, &mut |_| {}, cancel)?,
    };
    if let Some(known) = known {
        let version = Some(said.as_ref().map(ToString::to_string));
        store::write_down(note, &store::Known { version, ..known })?;
    }
    Ok(said)
}
