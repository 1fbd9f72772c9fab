//! Whose a cluster's network and machines are: the folder that keeps the cluster, written down where the
//! provider keeps them. Two folders of one name on a host would otherwise work on the same machines.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fmt;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// A folder that keeps a cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Owner {
    pub cluster: String,
    /// What the folder was given when the cluster began; a copy of the folder has it too.
    pub id: String,
    /// The cluster's state folder, as it is called from the root.
    pub folder: PathBuf,
}

/// `v=1 cluster=NAME id=ID folder=PATH`, the path with all but plain characters as `%` and two hex digits, so
/// that no format that it is kept in writes any of it in another way.
impl fmt::Display for Owner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "v=1 cluster={} id={} folder=", self.cluster, self.id)?;
        for byte in self.folder.as_os_str().as_bytes() {
            match byte {
                b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'/' | b'.' | b'_' | b'-' => {
                    write!(f, "{}", char::from(*byte))?
                }
                byte => write!(f, "%{byte:02x}")?,
            }
        }
        Ok(())
    }
}

impl Owner {
    /// Reads what [`Owner`]'s `Display` writes; `None` for anything else. What a later p1 adds is passed over.
    pub fn read(text: &str) -> Option<Self> {
        let value =
            |key: &str| text.split_whitespace().find_map(|word| word.strip_prefix(key)?.strip_prefix('='));
        let plain = |text: &&str| {
            !text.is_empty() && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"-._".contains(&b))
        };
        let folder = PathBuf::from(OsString::from_vec(decoded(value("folder")?)?));
        Some(Self {
            cluster: value("cluster").filter(plain)?.to_owned(),
            id: value("id").filter(plain)?.to_owned(),
            folder: Some(folder).filter(|f| f.is_absolute())?,
        })
    }

    /// Whether both are one folder, under whatever path.
    pub fn is_at(&self, folder: &Path) -> bool {
        let id = |path: &Path| path.metadata().map(|m| (m.dev(), m.ino())).ok();
        self.folder == folder || id(folder).is_some_and(|here| id(&self.folder) == Some(here))
    }

    /// Whether both are one folder's cluster.
    pub fn is(&self, other: &Self) -> bool {
        self.cluster == other.cluster && self.is_at(&other.folder)
    }

    /// The folder in which the spec lies.
    pub fn place(&self) -> &Path {
        self.folder.parent().and_then(Path::parent).unwrap_or(&self.folder)
    }
}

fn decoded(text: &str) -> Option<Vec<u8>> {
    let (mut bytes, mut rest) = (Vec::new(), text.bytes());
    while let Some(byte) = rest.next() {
        bytes.push(match byte {
            b'%' => {
                let digits = [rest.next()?, rest.next()?];
                u8::from_str_radix(std::str::from_utf8(&digits).ok()?, 16).ok()?
            }
            byte => byte,
        });
    }
    Some(bytes)
}

/// Something that the provider has, and what it says of its owner.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Held {
    /// The provider's id of it.
    pub id: String,
    /// Its owner, if one was written down.
    pub owner: Option<Owner>,
    /// The Vagrantfile that it was made from, where the provider says so.
    pub source: Option<PathBuf>,
}

/// What a cluster's names stand for at the provider.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Holdings {
    /// The network of the cluster's name, if there is one.
    pub network: Option<Held>,
    /// By node: the machines that there are.
    pub machines: BTreeMap<String, Held>,
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn an_owner_is_read_back_whatever_its_folder_is_called(bytes in proptest::collection::vec(1u8.., 0..40)) {
            let mut folder = b"/".to_vec();
            folder.extend(bytes);
            let owner = Owner {
                cluster: "x-y".into(),
                id: "0f0e".into(),
                folder: OsString::from_vec(folder).into(),
            };
            let text = owner.to_string();
            prop_assert!(text.bytes().all(|b| b.is_ascii_graphic() || b == b' '));
            prop_assert!(!text.contains(['<', '>', '&', '\'', '"', ';']));
            prop_assert_eq!(Owner::read(&text), Some(owner));
        }
    }

    #[test]
    fn what_is_no_owner_is_none() {
        for text in [
            "",
            "v=1",
            "v=1 cluster=x id=1 folder=a",
            "v=1 cluster=x id=1 folder=/%4",
            "v=1 cluster= id=1 folder=/a",
        ] {
            assert_eq!(Owner::read(text), None, "{text}");
        }
        assert!(Owner::read("v=2 cluster=x id=1 folder=/a more=z").is_some());
    }
}
