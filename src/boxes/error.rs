//! What can go wrong with boxes.

use std::path::PathBuf;

use crate::explain::{Again, Explain, FailureKind};
use crate::os::{files, process};

/// Why there is no box.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No definition of that name.
    #[error("there is no box definition \"{name}\"")]
    Unknown {
        /// What was asked for.
        name: String,
        /// What there is.
        known: Vec<String>,
        /// Where user definitions were looked for.
        dir: Option<PathBuf>,
    },
    /// The definition cannot be read as one.
    #[error("{origin}:{line}:{column}: {message}")]
    Definition {
        /// The file, or `embedded debian-12.yaml`.
        origin: String,
        /// From 1.
        line: u64,
        /// From 1.
        column: u64,
        /// What is wrong there.
        message: String,
        /// The lines around it, with a mark.
        snippet: String,
    },
    /// The definition reads well but makes no sense.
    #[error("{origin}: `{key}`: {message}")]
    Value {
        origin: String,
        /// Which key.
        key: &'static str,
        /// What is wrong with it.
        message: String,
    },
    /// Programs are missing.
    #[error("building a box needs {}", missing.iter().map(|t| t.program).collect::<Vec<_>>().join(", "))]
    Tools {
        /// Which.
        missing: Vec<super::Tool>,
    },
    /// Not root.
    #[error("building a box needs root: its files belong to several users")]
    NotRoot,
    /// Vagrant's public key was not found.
    #[error("vagrant's public key `keys/vagrant.pub` was not found")]
    NoKey,
    /// A file has another checksum than it should have.
    #[error("{} has checksum {found}, expected {expected}", path.display())]
    Checksum {
        path: PathBuf,
        /// What it should be.
        expected: String,
        /// What it is.
        found: String,
    },
    /// The library has no such box.
    #[error("there is no box \"{name}\" in the library")]
    NotInLibrary {
        /// What was asked for.
        name: String,
    },
    /// Not a box name.
    #[error("\"{name}\" cannot be the name of a box")]
    Name {
        /// What was given.
        name: String,
    },
    /// A file that is no box.
    #[error("{} is not a Vagrant box: {what}", path.display())]
    NotABox {
        path: PathBuf,
        /// Why not.
        what: String,
    },
    /// A file that is no disk image to start from.
    #[error("{} cannot be made a box: {what}", path.display())]
    NotAnImage { path: PathBuf, what: String },
    /// An image that was booted to be prepared, and was not.
    #[error("the image was not prepared: {what}")]
    Prepare {
        what: String,
        /// The end of its serial console, or what QEMU said.
        lines: Vec<String>,
    },
    /// A manifest that cannot be read.
    #[error("cannot read {}: {message}", path.display())]
    Manifest {
        /// Which.
        path: PathBuf,
        /// Why.
        message: String,
    },
    /// The boot loader does not fit before the first partition.
    #[error("the boot loader has {bytes} bytes, more than fit before the first partition")]
    Bootloader { bytes: usize },
    /// A step of the build failed.
    #[error("{doing}")]
    Step {
        /// What was being done: `installing the packages`.
        doing: &'static str,
        /// Which program, and how.
        #[source]
        source: process::Error,
    },
    /// Reading or writing on this host failed.
    #[error(transparent)]
    File(#[from] files::Error),
}

impl Explain for Error {
    fn hint(&self) -> Option<String> {
        match self {
            Self::Unknown { known, dir, .. } => Some(match dir {
                Some(dir) => format!(
                    "Known are {}; your own go into {}, and `p1 box add --help` says how a finished one gets a name.",
                    known.join(", "),
                    dir.display()
                ),
                None => format!("Known are {}.", known.join(", ")),
            }),
            Self::Tools { missing } => {
                let mut packages: Vec<_> = missing.iter().map(|t| t.package).collect();
                packages.sort_unstable();
                packages.dedup();
                Some(format!("Install them with: apt-get install {}", packages.join(" ")))
            }
            Self::NotRoot => {
                Some(
                    "Build it as root into your own library: `sudo env HOME=\"$HOME\" p1 box build`, then `sudo chown \
                     -R \"$USER\" ~/.local/share/p1`. Boxes that start from a vendor's image need no root, such as \
                     `debian-12-cloud`. Or use a box file with `box: {path: ...}`."
                        .to_owned(),
                )
            }
            Self::NoKey => Some("Install vagrant: the key is one of its files.".to_owned()),
            Self::Checksum { .. } => {
                Some("Fetch the file again, or correct the checksum in the spec.".to_owned())
            }
            Self::NotAnImage { .. } => Some(
                "Give a disk image with cloud-init in it, qcow2 or raw, as it is or packed with xz.".to_owned(),
            ),
            Self::Prepare { .. } => Some(
                "The image needs a kernel with virtio, cloud-init with the data source NoCloud and a serial console; for \
                 packages that it lacks it needs a connection. The lines above are the end of its console."
                    .to_owned(),
            ),
            Self::NotABox { .. } => Some(
                "A box is an archive with a metadata.json in it (developer.hashicorp.com/vagrant/docs/boxes/format); \
                 download it again, or build one: `p1 box build debian-12`."
                    .to_owned(),
            ),
            Self::NotInLibrary { .. } => Some("`p1 box list` shows what there is.".to_owned()),
            Self::Name { .. } => Some(
                "Use lower-case letters, digits, `-`, `_` and `.`, beginning with a letter or digit."
                    .to_owned(),
            ),
            Self::Manifest { path, .. } => Some(format!("Remove {} and add the box again.", path.display())),
            Self::Definition { .. } | Self::Value { .. } => Some(
                "boxes/debian-12.yaml explains every key of a definition, boxes/debian-12-cloud.yaml those of one with \
                 an image."
                    .to_owned(),
            ),
            Self::Bootloader { .. } => None,
            Self::Step { source, .. } => source.hint(),
            Self::File(e) => e.hint(),
        }
    }

    fn evidence(&self) -> Vec<String> {
        match self {
            Self::Definition { snippet, .. } => snippet.lines().map(str::to_owned).collect(),
            Self::Step { source, .. } => source.evidence(),
            Self::Prepare { lines, .. } => lines.clone(),
            _ => Vec::new(),
        }
    }

    fn kind(&self) -> FailureKind {
        match self {
            Self::Checksum { .. }
            | Self::NotABox { .. }
            | Self::NotAnImage { .. }
            | Self::Manifest { .. } => FailureKind::Damaged,
            Self::Prepare { .. } => FailureKind::Other,
            Self::NotRoot => FailureKind::Denied,
            Self::Unknown { .. }
            | Self::Definition { .. }
            | Self::Value { .. }
            | Self::Tools { .. }
            | Self::NoKey
            | Self::NotInLibrary { .. }
            | Self::Name { .. }
            | Self::Bootloader { .. } => FailureKind::Cannot,
            Self::Step { source, .. } => source.kind(),
            Self::File(e) => e.kind(),
        }
    }

    fn again(&self) -> Again {
        match self {
            // A mirror that did not answer is the usual reason.
            Self::Step { doing: super::build::INSTALLING, source: process::Error::Failed { .. } } => {
                Again::Soon
            }
            Self::Step { source, .. } => source.again(),
            _ => Again::No,
        }
    }
}
