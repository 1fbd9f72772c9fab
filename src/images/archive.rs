//! Archives of images: one that nodes import, written as an OCI layout; and those of docker, podman and others, read.

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufWriter, Read, Write};
use std::path::{Component, Path, PathBuf};

use serde::Deserialize;
use serde_json::json;
use tar::{Builder, EntryType, Header};

use super::document::{Descriptor, Document};
use super::{DOCUMENT, Digest, Error, Hashing, Image, Images, MOST_BYTES, by_digest, full, repository};
use crate::os::Cancel;
use crate::os::files::{self, At};
use crate::os::hash::hex;

/// What tells containerd an image's name (`images.AnnotationImageName`).
const NAME: &str = "io.containerd.image.name";
/// What others call it there: a name, or its tag alone.
const REF: &str = "org.opencontainers.image.ref.name";
/// Entries of an archive: a dozen files for each of some hundred images.
const MOST_ENTRIES: usize = 20_000;

/// An archive for nodes.
#[derive(Clone, Debug, PartialEq)]
pub struct Packed {
    pub path: PathBuf,
    pub sha256: String,
    pub len: u64,
    /// What is in it.
    pub images: Vec<Image>,
}

/// What an archive of docker's says of an image.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Saved {
    config: String,
    #[serde(default)]
    repo_tags: Option<Vec<String>>,
    layers: Vec<String>,
}

#[derive(Deserialize)]
struct Layout {
    #[serde(default)]
    manifests: Vec<Descriptor>,
}

#[derive(Deserialize)]
struct Config {
    #[serde(default)]
    architecture: String,
}

impl Images {
    /// Writes images into one archive. Every blob is checked on its way; an image of which one is damaged is left out, and is
    /// pulled again.
    pub fn pack(&self, images: &[Image], path: &Path, cancel: &Cancel) -> Result<Packed, Error> {
        let mut images = images.to_vec();
        loop {
            match self.pack_all(&images, path, cancel) {
                Err(Error::Other { digest }) => {
                    files::remove_if_there(&self.blob(&digest))?;
                    let mut whole = Vec::new();
                    for image in images {
                        if self.tree(&image.digest, &image.arch, &Default::default())?.whole {
                            whole.push(image);
                        }
                    }
                    images = whole;
                }
                Err(error) => {
                    let _ = fs::remove_file(path);
                    return Err(error);
                }
                packed => return packed,
            }
        }
    }

    fn pack_all(&self, images: &[Image], path: &Path, cancel: &Cancel) -> Result<Packed, Error> {
        let file = self.part()?;
        let to = file.as_file().try_clone().at("write", path)?;
        let mut tar = Builder::new(Hashing::new(BufWriter::with_capacity(1 << 18, to)));
        let (mut named, mut blobs) = (Vec::new(), BTreeMap::new());
        for image in images {
            let bytes =
                self.document(&image.digest)?.ok_or_else(|| Error::Other { digest: image.digest.clone() })?;
            let kind = Document::parse(&bytes).map(|d| d.kind().to_owned()).unwrap_or_default();
            blobs.extend(self.blobs(image)?);
            named.push(json!({
                "mediaType": kind, "digest": image.digest, "size": bytes.len(), "annotations": {NAME: tagged(image)},
            }));
        }
        let index = json!({"schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json", "manifests": named});
        let texts = [("oci-layout", json!({"imageLayoutVersion": "1.0.0"})), ("index.json", index)];
        for (name, text) in texts {
            let text = text.to_string();
            append(&mut tar, name, text.len() as u64, &mut text.as_bytes()).at("write", path)?;
        }
        for (digest, len) in blobs {
            if cancel.aborted() {
                return Err(Error::Cancelled);
            }
            let source = self.blob(&digest);
            let mut checked = Checked { from: files::open(&source)?, hash: Default::default() };
            append(&mut tar, &format!("blobs/sha256/{}", digest.hex()), len, &mut checked)
                .at("write", path)?;
            if checked.digest() != digest.hex() {
                return Err(Error::Other { digest });
            }
        }
        let mut out = tar.into_inner().at("write", path)?;
        out.flush().at("write", path)?;
        let Hashing { hash, len, .. } = out;
        let sha256 = hex(&sha2::Digest::finalize(hash));
        file.persist(path).map_err(|e| e.error).at("write", path)?;
        Ok(Packed { path: path.to_owned(), sha256, len, images: images.to_vec() })
    }

    /// Takes the images of an archive in: their names and digests. They are in the index when somebody keeps them.
    pub fn unpack(
        &self,
        path: &Path,
        cancel: &Cancel,
        moved: &mut dyn FnMut(u64),
    ) -> Result<Vec<(String, Digest)>, Error> {
        let wrong = |what: &str| Error::Archive { path: path.to_owned(), what: what.to_owned() };
        let mut archive = tar::Archive::new(files::open(path)?);
        let mut parts = Parts::default();
        let mut bytes = 0;
        for (count, entry) in archive.entries().at("read", path)?.enumerate() {
            let mut entry = entry.map_err(|_| wrong("is no tar archive"))?;
            if cancel.stopping() {
                return Err(Error::Cancelled);
            }
            if count > MOST_ENTRIES {
                return Err(wrong("has too many files for an archive of images"));
            }
            let name = entry.path().ok().and_then(|p| inside(&p, Path::new("")));
            let Some(name) = name else { continue };
            match entry.header().entry_type() {
                EntryType::Regular | EntryType::Continuous => {
                    let mut incoming = self.receive(None, MOST_BYTES - bytes)?;
                    let mut buffer = vec![0; 1 << 18];
                    loop {
                        let n = entry.read(&mut buffer).at("read", path)?;
                        if n == 0 {
                            break;
                        }
                        incoming.push(&buffer[..n])?;
                        bytes += n as u64;
                        moved(bytes);
                        if cancel.stopping() {
                            return Err(Error::Cancelled);
                        }
                    }
                    parts.files.insert(name, incoming.finish()?);
                }
                // docker's older archives have a layer once, and links to it.
                EntryType::Symlink | EntryType::Link => {
                    let to = entry.link_name().ok().flatten();
                    let from = match entry.header().entry_type() {
                        EntryType::Symlink => Path::new(&name).parent().unwrap_or(Path::new("")).to_owned(),
                        _ => PathBuf::new(),
                    };
                    if let Some(to) = to.and_then(|to| inside(&to, &from)) {
                        parts.links.insert(name, to);
                    }
                }
                _ => {}
            }
        }
        let found = match parts.get("oci-layout").is_some() {
            true => self.of_layout(&parts, path)?,
            false => self.of_docker(&parts, path)?,
        };
        match found.is_empty() {
            true => Err(wrong("has no image with a name")),
            false => Ok(found),
        }
    }

    fn of_layout(&self, parts: &Parts, path: &Path) -> Result<Vec<(String, Digest)>, Error> {
        let wrong = |what: &str| Error::Archive { path: path.to_owned(), what: what.to_owned() };
        let index = parts.get("index.json").ok_or_else(|| wrong("is an OCI layout without index.json"))?;
        let index = self.document(&index.0)?.ok_or_else(|| wrong("has an index.json that is too large"))?;
        let layout: Layout =
            serde_json::from_slice(&index).map_err(|_| wrong("has an index.json that is not understood"))?;
        let mut found = Vec::new();
        for manifest in layout.manifests {
            let Some(name) = manifest.annotations.get(NAME).or(manifest.annotations.get(REF)) else {
                continue;
            };
            let name = full(name).ok_or_else(|| wrong("has an image whose name is none"))?;
            found.push((name, manifest.digest));
        }
        Ok(found)
    }

    /// docker's own form has no manifests: each is made, the same for the same image.
    fn of_docker(&self, parts: &Parts, path: &Path) -> Result<Vec<(String, Digest)>, Error> {
        let wrong = |what: &str| Error::Archive { path: path.to_owned(), what: what.to_owned() };
        let list = parts.get("manifest.json").ok_or_else(|| wrong("is no archive of images"))?;
        let list = self.document(&list.0)?.ok_or_else(|| wrong("has a manifest.json that is too large"))?;
        let saved: Vec<Saved> =
            serde_json::from_slice(&list).map_err(|_| wrong("has a manifest.json that is not understood"))?;
        let mut found = Vec::new();
        for image in saved {
            let part = |name: &str, kind: &str| {
                let (digest, size) =
                    parts.get(name).ok_or_else(|| wrong("lacks a file that its manifest.json names"))?;
                Ok::<_, Error>(json!({"mediaType": kind, "digest": digest, "size": size}))
            };
            let config = part(&image.config, "application/vnd.oci.image.config.v1+json")?;
            let mut layers = Vec::new();
            for layer in &image.layers {
                layers.push(part(layer, "application/vnd.oci.image.layer.v1.tar")?);
            }
            let platform = parts.get(&image.config).map(|p| self.document(&p.0)).transpose()?.flatten();
            let platform: Option<Config> = platform.and_then(|text| serde_json::from_slice(&text).ok());
            let platform =
                platform.ok_or_else(|| wrong("has an image whose configuration is not understood"))?;
            let manifest = json!({
                "schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json", "config": config, "layers": layers,
            });
            let manifest = self.receive_text(&manifest.to_string())?;
            // An index says for which machines it is.
            let index = json!({
                "schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json",
                "manifests": [{
                    "mediaType": "application/vnd.oci.image.manifest.v1+json", "digest": manifest.0, "size": manifest.1,
                    "platform": {"os": "linux", "architecture": platform.architecture},
                }],
            });
            let (root, _) = self.receive_text(&index.to_string())?;
            for name in image.repo_tags.unwrap_or_default() {
                let name = full(&name).ok_or_else(|| wrong("has an image whose name is none"))?;
                found.push((name, root.clone()));
            }
        }
        Ok(found)
    }

    fn receive_text(&self, text: &str) -> Result<(Digest, u64), Error> {
        let mut incoming = self.receive(None, DOCUMENT)?;
        incoming.push(text.as_bytes())?;
        incoming.finish()
    }
}

/// k3s wants a tag for each image that it imports, and adds the name by digest (`retagImages`).
fn tagged(image: &Image) -> String {
    match by_digest(&image.name) {
        Some(digest) => format!("{}:p1-{}", repository(&image.name), &digest.hex()[..12]),
        None => image.name.clone(),
    }
}

fn append(tar: &mut Builder<impl Write>, name: &str, len: u64, from: &mut dyn Read) -> std::io::Result<()> {
    let mut header = Header::new_gnu();
    header.set_entry_type(EntryType::Regular);
    header.set_size(len);
    header.set_mode(0o600);
    header.set_mtime(0);
    tar.append_data(&mut header, name, from.take(len))
}

/// The files of an archive by their paths in it.
#[derive(Default)]
struct Parts {
    files: BTreeMap<String, (Digest, u64)>,
    links: BTreeMap<String, String>,
}

impl Parts {
    fn get(&self, name: &str) -> Option<&(Digest, u64)> {
        let name = inside(Path::new(name), Path::new(""))?;
        self.files.get(&name).or_else(|| self.files.get(self.links.get(&name)?))
    }
}

/// A path within an archive, seen from a folder of it; none where it leads out.
fn inside(path: &Path, from: &Path) -> Option<String> {
    let mut all: Vec<String> = Vec::new();
    for part in from.components().chain(path.components()) {
        match part {
            Component::Normal(name) => all.push(name.to_str()?.to_owned()),
            Component::CurDir => {}
            Component::ParentDir => drop(all.pop()?),
            Component::RootDir | Component::Prefix(_) => return None,
        }
    }
    (!all.is_empty()).then(|| all.join("/"))
}

/// A file that is hashed as it is read.
struct Checked<R> {
    from: R,
    hash: sha2::Sha256,
}

impl<R> Checked<R> {
    fn digest(self) -> String {
        hex(&sha2::Digest::finalize(self.hash))
    }
}

impl<R: Read> Read for Checked<R> {
    fn read(&mut self, to: &mut [u8]) -> std::io::Result<usize> {
        let n = self.from.read(to)?;
        sha2::Digest::update(&mut self.hash, &to[..n]);
        Ok(n)
    }
}
