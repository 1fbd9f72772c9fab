//! Whose a cluster's network and machines are: the folder that keeps the cluster, written down where the
//! provider keeps them. Two folders of one name on a host would otherwise work on the same machines.
//!
//! What has no owner was made by a p1 of before, or by one that was cut off: it belongs to the folder whose `.p1`
//! knows its id.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fmt;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use crate::os::files;

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

    /// By which a machine that existed before tells whose k3s it has.
    pub fn mark(&self) -> String {
        format!("{} {}", self.cluster, self.id)
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

/// Whose something is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Whose {
    /// This folder's, noted as such.
    Ours,
    /// Nobody's yet by what is noted, and this folder's by what is known of it.
    Unclaimed,
    /// This folder's, which lay elsewhere: that one is gone.
    Moved(Owner),
    /// Another folder's that this one is a copy of, or that is a copy of this one.
    Copied(Owner),
    /// A cluster's of the same name, kept by another folder.
    Theirs(Owner),
    /// The same, made by a p1 that noted no owners; its id is not known.
    Before(Owner),
    /// Another cluster's of this host, whose machine happens to have the name.
    Other(Owner),
    /// Somebody's who is no p1, or not to be known.
    Stranger,
}

impl Whose {
    /// True for what this folder may work on.
    pub fn is_ours(&self) -> bool {
        matches!(self, Self::Ours | Self::Unclaimed)
    }

    /// True for what another folder of the same cluster has: none of it is touched, nor anything else.
    pub fn is_contested(&self) -> bool {
        matches!(self, Self::Copied(_) | Self::Theirs(_) | Self::Before(_))
    }

    /// Who it is, as a fragment after `belongs to`.
    pub fn name(&self) -> String {
        match self {
            Self::Ours | Self::Unclaimed => "this folder".to_owned(),
            Self::Moved(owner) | Self::Copied(owner) | Self::Theirs(owner) | Self::Before(owner) => {
                owner.place().display().to_string()
            }
            Self::Other(owner) => format!("the cluster `{}` in {}", owner.cluster, owner.place().display()),
            Self::Stranger => "somebody else: it was not made from this folder".to_owned(),
        }
    }
}

/// Who asks.
#[derive(Clone, Debug)]
pub struct Claimant {
    pub cluster: String,
    pub folder: PathBuf,
    /// Its id, if it ever was an owner.
    pub id: Option<String>,
    /// The machines that it knows, by node.
    pub machines: BTreeMap<String, String>,
}

impl Claimant {
    /// Whose something is that the provider has: a node's machine, or else the network.
    pub fn judge(&self, held: &Held, node: Option<&str>) -> Whose {
        let known = node.and_then(|n| self.machines.get(n)).is_some_and(|id| *id == held.id);
        let Some(owner) = held.owner.clone() else { return self.unnoted(held, node, known) };
        if owner.cluster != self.cluster {
            return Whose::Other(owner);
        }
        if owner.is_at(&self.folder) {
            return Whose::Ours;
        }
        match (known || self.id.as_ref() == Some(&owner.id), is_there(&owner)) {
            (true, false) => Whose::Moved(owner),
            (true, true) => Whose::Copied(owner),
            (false, _) => Whose::Theirs(owner),
        }
    }

    fn unnoted(&self, held: &Held, node: Option<&str>, known: bool) -> Whose {
        if known || node.is_none() {
            return Whose::Unclaimed;
        }
        // Vagrant's own note of a machine: FOLDER/.p1/CLUSTER/Vagrantfile.
        let Some(folder) = held.source.as_deref().and_then(Path::parent) else { return Whose::Stranger };
        let owner =
            |cluster: &str| Owner { cluster: cluster.to_owned(), id: String::new(), folder: folder.into() };
        let in_p1 = folder.parent().and_then(Path::file_name).is_some_and(|name| name == ".p1");
        match folder.file_name().and_then(|name| name.to_str()).filter(|_| in_p1) {
            Some(name) if name != self.cluster => Whose::Other(owner(name)),
            Some(name) if owner(name).is_at(&self.folder) => Whose::Unclaimed,
            Some(name) => Whose::Before(owner(name)),
            None => Whose::Stranger,
        }
    }
}

/// Whether the folder is still where it was, and still that cluster's; what cannot be checked is.
pub fn is_there(owner: &Owner) -> bool {
    match owner.folder.try_exists() {
        Ok(false) => false,
        Err(_) => true,
        Ok(true) => {
            // With another id it is another cluster's by now.
            id_of(&owner.folder).map_or(true, |id| id.is_none_or(|id| id == owner.id))
        }
    }
}

/// A folder as it is called from the root, whatever links lead to it.
pub fn place(folder: &Path) -> PathBuf {
    let absolute = || std::path::absolute(folder).unwrap_or_else(|_| folder.to_owned());
    folder.canonicalize().unwrap_or_else(|_| absolute())
}

/// Where a cluster's state folder keeps its id.
pub fn file(folder: &Path) -> PathBuf {
    folder.join("owner")
}

/// What a state folder was given when its cluster began; none before that.
pub fn id_of(folder: &Path) -> Result<Option<String>, files::Error> {
    let text = files::read_if_there(&file(folder))?.unwrap_or_default();
    let id = text.trim();
    let plain = !id.is_empty() && id.bytes().all(|b| b.is_ascii_hexdigit());
    Ok(plain.then(|| id.to_owned()))
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

    struct Folders {
        dir: tempfile::TempDir,
    }

    impl Folders {
        fn state(&self, place: &str) -> PathBuf {
            self.dir.path().canonicalize().unwrap().join(place).join(".p1/iot")
        }

        /// As it is called from the root.
        fn place(&self, place: &str) -> PathBuf {
            let state = self.state(place);
            state.canonicalize().unwrap_or(state)
        }

        fn made(&self, place: &str, id: &str) -> Owner {
            let state = self.state(place);
            std::fs::create_dir_all(&state).unwrap();
            std::fs::write(file(&state), format!("{id}\n")).unwrap();
            self.owner(place, id)
        }

        fn owner(&self, place: &str, id: &str) -> Owner {
            Owner { cluster: "iot".into(), id: id.into(), folder: self.place(place) }
        }

        fn asks(&self, place: &str, known: &[(&str, &str)]) -> Claimant {
            Claimant {
                cluster: "iot".into(),
                folder: self.place(place),
                id: id_of(&self.state(place)).unwrap(),
                machines: known.iter().map(|(n, id)| ((*n).to_owned(), (*id).to_owned())).collect(),
            }
        }
    }

    fn held(owner: Option<&Owner>) -> Held {
        Held { id: "u1".into(), owner: owner.cloned(), source: None }
    }

    #[test]
    fn what_is_noted_tells_a_folder_that_moved_from_a_copy_and_from_another_one() {
        let folders = Folders { dir: tempfile::tempdir().unwrap() };
        let a = folders.made("a", "a1");
        let whose =
            |place: &str, owner: &Owner| folders.asks(place, &[]).judge(&held(Some(owner)), Some("server"));
        assert_eq!(whose("a", &a), Whose::Ours);
        std::os::unix::fs::symlink(folders.dir.path().join("a"), folders.dir.path().join("link")).unwrap();
        assert_eq!(whose("link", &a), Whose::Ours);
        assert_eq!(whose("b", &a), Whose::Theirs(a.clone()));
        folders.made("copy", "a1");
        assert_eq!(whose("copy", &a), Whose::Copied(a.clone()));
        assert_eq!(folders.asks("copy", &[]).judge(&held(Some(&a)), None), Whose::Copied(a.clone()));
        // Its own id may be lost, or be older than the note: it knows the machine.
        std::fs::remove_file(file(&folders.state("copy"))).unwrap();
        assert_eq!(whose("copy", &a), Whose::Theirs(a.clone()));
        let knows = folders.asks("copy", &[("server", "u1")]).judge(&held(Some(&a)), Some("server"));
        assert_eq!(knows, Whose::Copied(a.clone()));

        folders.made("copy", "a1");
        std::fs::remove_dir_all(folders.state("a")).unwrap();
        assert_eq!(whose("copy", &a), Whose::Moved(a.clone()));
        assert_eq!(whose("b", &a), Whose::Theirs(a.clone()), "gone, and still not this one's");
        // Something new where it was.
        folders.made("a", "a2");
        assert_eq!(whose("copy", &a), Whose::Moved(a.clone()));

        let other = Owner { cluster: "iot-x".into(), ..a.clone() };
        assert_eq!(whose("a", &other), Whose::Other(other));
    }

    #[test]
    fn what_is_not_noted_belongs_to_whoever_knows_its_id() {
        let folders = Folders { dir: tempfile::tempdir().unwrap() };
        std::fs::create_dir_all(folders.state("a")).unwrap();
        let judge = |place: &str, known: &[(&str, &str)], source: Option<PathBuf>| {
            folders.asks(place, known).judge(&Held { source, ..held(None) }, Some("server"))
        };
        let of = |place: &str| Some(folders.place(place).join("Vagrantfile"));
        assert_eq!(judge("a", &[("server", "u1")], None), Whose::Unclaimed);
        assert_eq!(judge("a", &[("server", "u2")], None), Whose::Stranger);
        assert_eq!(judge("a", &[], of("a")), Whose::Unclaimed, "half-made, or its state is gone");
        assert_eq!(judge("b", &[], of("a")), Whose::Before(folders.owner("a", "")));
        let other = "/x/.p1/iot-x/Vagrantfile";
        assert!(matches!(judge("a", &[], Some(other.into())), Whose::Other(o) if o.cluster == "iot-x"));
        assert_eq!(judge("a", &[], Some("/x/iot/Vagrantfile".into())), Whose::Stranger);
        assert_eq!(folders.asks("a", &[]).judge(&held(None), None), Whose::Unclaimed);
    }
}
