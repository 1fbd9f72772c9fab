//! What an image is made of: an index of manifests by platform, a manifest, its configuration and its layers
//! (opencontainers/image-spec). All of it is as others wrote it.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use super::{DOCUMENT, Digest, Error, MOST_BYTES};

/// Of an index, or of one within one.
const DEEP: usize = 3;
/// Images have some dozen layers and some dozen platforms.
const MOST_PARTS: usize = 1000;

/// What there is of an image, and what it lacks.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Tree {
    /// What is here, with its bytes; of whole manifests, and of the index that names them.
    pub blobs: BTreeMap<Digest, u64>,
    /// What is not here, with the most bytes that it may have.
    pub lacks: BTreeMap<Digest, u64>,
    /// All of a manifest for the architecture is here.
    pub whole: bool,
}

impl Tree {
    /// Of all that is here.
    pub fn bytes(&self) -> u64 {
        self.blobs.values().sum()
    }
}

/// A part of an image as another part names it.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Descriptor {
    #[serde(default)]
    pub media_type: String,
    pub digest: Digest,
    pub size: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub platform: Option<Platform>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Platform {
    #[serde(default)]
    pub os: String,
    #[serde(default)]
    pub architecture: String,
}

/// An index or a manifest: told apart by what they have, as their media types are of two families.
#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(super) struct Document {
    pub media_type: String,
    pub manifests: Vec<Descriptor>,
    pub config: Option<Descriptor>,
    pub layers: Vec<Descriptor>,
}

impl Document {
    /// None if it is neither.
    pub(super) fn parse(bytes: &[u8]) -> Option<Self> {
        let document: Self = serde_json::from_slice(bytes).ok()?;
        let parts = document.manifests.len() + document.layers.len();
        let one = document.config.is_some() == document.manifests.is_empty();
        (one && parts <= MOST_PARTS).then_some(document)
    }

    /// Its media type, for who names it.
    pub(super) fn kind(&self) -> &str {
        match (self.media_type.as_str(), self.config.is_some()) {
            ("", true) => "application/vnd.oci.image.manifest.v1+json",
            ("", false) => "application/vnd.oci.image.index.v1+json",
            (kind, _) => kind,
        }
    }
}

type Get<'a> = &'a dyn Fn(&Digest) -> Result<Option<Vec<u8>>, Error>;
type Len<'a> = &'a dyn Fn(&Digest) -> Option<u64>;

pub(super) fn tree(
    root: &Digest,
    arch: &str,
    absent: &BTreeSet<Digest>,
    get: Get<'_>,
    len: Len<'_>,
) -> Result<Tree, Error> {
    let mut tree = Tree::default();
    tree.whole = Walk { arch, absent, get, len }.of(root, DOCUMENT, DEEP, &mut tree)?;
    Ok(tree)
}

struct Walk<'a> {
    arch: &'a str,
    absent: &'a BTreeSet<Digest>,
    get: Get<'a>,
    len: Len<'a>,
}

impl Walk<'_> {
    /// Whether all of it is here.
    fn of(&self, digest: &Digest, most: u64, deep: usize, tree: &mut Tree) -> Result<bool, Error> {
        let Some(bytes) = (self.get)(digest)? else { return Ok(self.lack(digest, most, tree)) };
        let Some(document) = Document::parse(&bytes).filter(|_| deep > 0) else { return Ok(false) };
        let mut here = Tree::default();
        let whole = match &document.config {
            Some(config) => {
                let mut whole = true;
                for part in std::iter::once(config).chain(&document.layers) {
                    whole &= self.part(part, &mut here);
                }
                whole
            }
            None => {
                let mut any = false;
                for part in document.manifests.iter().filter(|m| self.is_ours(m)) {
                    any |= self.of(&part.digest, part.size.min(DOCUMENT), deep - 1, &mut here)?;
                }
                any
            }
        };
        tree.lacks.append(&mut here.lacks);
        if whole {
            tree.blobs.append(&mut here.blobs);
            tree.blobs.insert(digest.clone(), bytes.len() as u64);
        }
        Ok(whole)
    }

    fn part(&self, part: &Descriptor, tree: &mut Tree) -> bool {
        match (self.len)(&part.digest) {
            Some(len) if len == part.size => {
                tree.blobs.insert(part.digest.clone(), len);
                true
            }
            _ => self.lack(&part.digest, part.size, tree),
        }
    }

    fn lack(&self, digest: &Digest, most: u64, tree: &mut Tree) -> bool {
        if !self.absent.contains(digest) && most <= MOST_BYTES {
            tree.lacks.insert(digest.clone(), most);
        }
        false
    }

    fn is_ours(&self, manifest: &Descriptor) -> bool {
        manifest.platform.as_ref().is_none_or(|p| p.os == "linux" && p.architecture == self.arch)
    }
}
