//! From a file to a cluster.

use std::borrow::Cow;
use std::collections::HashMap;
use std::fs::File as FsFile;
use std::io::Read;
use std::path::{Path, PathBuf};

use super::file::File;
use super::here::{self, Remark};
use super::node::{self, Value};
use super::problem::{Invalid, Problem, Severity};
use super::report::{Report, Span, locate};
use super::shape::Shape;
use super::variables::{self, Environment, Variables};
use super::{Cluster, EngineChoice, Fork, ProviderChoice, resolve};
use crate::explain::{Explain, FailureKind};
use crate::os::files::{self, At as _};

/// The largest spec that is read, in bytes.
pub const MOST_BYTES: usize = 1 << 20;

/// A spec that can be used.
#[derive(Clone, Debug, PartialEq)]
pub struct Parsed {
    /// What it describes.
    pub cluster: Cluster,
    /// What is unwise about it, in the order of the file.
    pub warnings: Vec<Problem>,
}

/// Why a file gives no cluster.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// There is no such file.
    #[error("there is no {}", .0.display())]
    Missing(PathBuf),
    /// It is a directory, a pipe or a device.
    #[error("{} is not a regular file", .0.display())]
    NotAFile(PathBuf),
    /// It cannot be read.
    #[error(transparent)]
    Read(#[from] files::Error),
    /// It has errors.
    #[error(transparent)]
    Invalid(#[from] Invalid),
}

impl Explain for Error {
    fn kind(&self) -> FailureKind {
        match self {
            Self::Missing(_) | Self::NotAFile(_) => FailureKind::Cannot,
            Self::Read(e) => e.kind(),
            Self::Invalid(e) => e.kind(),
        }
    }

    fn hint(&self) -> Option<String> {
        match self {
            Self::Missing(_) => Some("`p1 init` writes one to start from; `-f` names another.".to_owned()),
            Self::NotAFile(_) => {
                Some("State is kept beside the spec, so it has to be a file in a folder.".to_owned())
            }
            Self::Read(e) => {
                Some(format!("Make {} readable for this user, or name another with `-f`.", e.path.display()))
            }
            Self::Invalid(e) => e.hint(),
        }
    }

    fn evidence(&self) -> Vec<String> {
        match self {
            Self::Invalid(e) => e.evidence(),
            _ => Vec::new(),
        }
    }
}

/// Reads a spec, with the variables of `env`. At most [`MOST_BYTES`] are read, and nothing that could block.
pub fn load(path: &Path, env: Environment<'_>) -> Result<Parsed, Error> {
    load_here(path, env, &|_| Vec::new())
}

/// The same; `look` says what this host knows to be wrong with a spec that is good by itself.
pub fn load_here(
    path: &Path,
    env: Environment<'_>,
    look: &dyn Fn(&Cluster) -> Vec<Remark>,
) -> Result<Parsed, Error> {
    let bytes = bytes_of(path)?;
    let text = match String::from_utf8(bytes) {
        Ok(text) => text,
        // The last character may have been cut in two.
        Err(e) if e.as_bytes().len() > MOST_BYTES => String::from_utf8_lossy(e.as_bytes()).into_owned(),
        Err(e) => {
            let start = e.utf8_error().valid_up_to();
            let text = String::from_utf8_lossy(e.as_bytes());
            let help = "Save the file as UTF-8.";
            return Err(single(&text, path, start, "this is not UTF-8", help).into());
        }
    };
    let fork = Fork::of(&resolve::base(path))?;
    Ok(read(&text, path, fork, Some(env), look)?)
}

/// What a file holds, or its beginning where that is too much.
fn bytes_of(path: &Path) -> Result<Vec<u8>, Error> {
    let meta = match std::fs::metadata(path) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Err(Error::Missing(path.to_owned())),
        meta => meta.at("read", path)?,
    };
    if !meta.is_file() {
        return Err(Error::NotAFile(path.to_owned()));
    }
    let mut bytes = Vec::new();
    let file = FsFile::open(path).at("read", path)?;
    file.take(MOST_BYTES as u64 + 1).read_to_end(&mut bytes).at("read", path)?;
    Ok(bytes)
}

/// The variables of the file beside the spec; none where there is no such file.
fn of_file(path: &Path) -> Result<HashMap<String, String>, String> {
    let bytes = match bytes_of(path) {
        Ok(bytes) => bytes,
        Err(Error::Missing(_)) => return Ok(HashMap::new()),
        Err(error) => return Err(error.to_string()),
    };
    if bytes.len() > MOST_BYTES {
        return Err(format!("{} is larger than 1 MiB", path.display()));
    }
    let text = String::from_utf8(bytes).map_err(|_| format!("{} is not UTF-8", path.display()))?;
    let wrong = |line| format!("line {line} of {} is not `NAME=VALUE`", path.display());
    variables::of_file(&text).map_err(wrong)
}

/// Reads the text of a spec. `file` is for messages, and its folder is where relative paths start;
/// files that the spec names are looked for, nothing else is touched: no variable is set.
pub fn parse(text: &str, file: &Path) -> Result<Parsed, Invalid> {
    read(text, file, None, None, &|_| Vec::new())
}

/// The same, with the variables of `env`.
pub fn parse_with(text: &str, file: &Path, env: Environment<'_>) -> Result<Parsed, Invalid> {
    read(text, file, None, Some(env), &|_| Vec::new())
}

fn read(
    text: &str,
    file: &Path,
    fork: Option<Fork>,
    env: Option<Environment<'_>>,
    look: &dyn Fn(&Cluster) -> Vec<Remark>,
) -> Result<Parsed, Invalid> {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    if text.len() > MOST_BYTES {
        let help = "A spec is a few kilobytes; this is probably another file.";
        return Err(single(text, file, 0, "the file is larger than 1 MiB", help));
    }
    let text = &one_line_break(text);
    let mut root = node::read(text).map_err(|(at, message, help)| Invalid {
        file: file.to_owned(),
        problems: vec![locate(text, Severity::Error, at, message, help)],
    })?;

    let base = fork.as_ref().map_or_else(|| resolve::base(file), |fork| fork.base.clone());
    let mut report = Report::new(text, &base);
    let of_file = || if env.is_some() { of_file(&base.join(variables::FILE)) } else { Ok(HashMap::new()) };
    variables::fill(&mut root, &mut Variables::new(env.unwrap_or(&|_| None), &of_file), &mut report);
    let cluster = match root.value {
        Value::Null => {
            let help = "`p1 init` writes a spec to start from. The smallest one is:\nname: demo\nnodes:\n  \
                        - {name: server, role: server}";
            report.error(Span::default(), "the file is empty", help);
            None
        }
        _ => File::read(&root, &mut report).and_then(|spec| {
            let cluster = resolve::cluster(&spec, &mut report).map(|cluster| as_fork(cluster, fork));
            // Of a spec that is wrong anyway the host is not asked.
            for remark in cluster.iter().filter(|_| report.errors() == 0).flat_map(look).collect::<Vec<_>>() {
                here::note(remark, &spec, &mut report);
            }
            cluster
        }),
    };
    let errors = report.errors();
    let problems = report.finish();
    match cluster {
        Some(cluster) if errors == 0 => Ok(Parsed { cluster, warnings: problems }),
        _ => Err(Invalid { file: file.to_owned(), problems }),
    }
}

/// What the spec means for a fork: its machines are p1's own, which nothing outside leads to.
fn as_fork(cluster: Cluster, fork: Option<Fork>) -> Cluster {
    let Some(fork) = fork else { return cluster };
    Cluster {
        name: fork.name.clone(),
        provider: ProviderChoice::Libvirt,
        engine: EngineChoice::Direct,
        keep: false,
        autostart: false,
        fork: Some(fork),
        ..cluster
    }
}

/// The text with every carriage return that stands alone, a line break in YAML, made a line feed,
/// so that lines are counted as the parser and editors count them.
fn one_line_break(text: &str) -> Cow<'_, str> {
    let bytes = text.as_bytes();
    let alone = |(i, c): (usize, char)| if c == '\r' && bytes.get(i + 1) != Some(&b'\n') { '\n' } else { c };
    if text.contains('\r') { text.char_indices().map(alone).collect() } else { text.into() }
}

fn single(text: &str, file: &Path, start: usize, message: &str, help: &str) -> Invalid {
    let at = Span { start, end: start + 1 };
    let problem = locate(text, Severity::Error, at, message.to_owned(), help.to_owned());
    Invalid { file: file.to_owned(), problems: vec![problem] }
}
