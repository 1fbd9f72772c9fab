//! What this host says to a spec: others look, the spec knows the place of each key.

use super::file::File;
use super::report::{Report, Span};

/// A part of the spec that depends on what this host has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// `box`.
    Box,
    /// `k3s.artifacts.dir`.
    ArtifactsDir,
    /// `k3s.artifacts.binary`.
    Binary,
}

/// An error that only this host knows of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Remark {
    /// Where.
    pub part: Part,
    /// What is wrong, as a lower-case fragment.
    pub message: String,
    /// What would be right, as full sentences.
    pub help: String,
}

/// Reports a remark at the place of what it is about.
pub(super) fn note(remark: Remark, file: &File, report: &mut Report<'_>) {
    let artifacts = file.k3s.value().and_then(|k| k.artifacts.value());
    let at = match remark.part {
        // A box that is not named is the default; that it cannot be had is the provider's doing.
        Part::Box => file.r#box.get().map(|b| b.at).or(file.provider.get().map(|p| p.at)),
        Part::ArtifactsDir => artifacts.and_then(|a| a.dir.get()).map(|d| d.at),
        Part::Binary => artifacts.and_then(|a| a.binary.get()).map(|b| b.at),
    };
    let start = Span { start: 0, end: 1 };
    report.error(at.or(file.name.get().map(|n| n.at)).unwrap_or(start), remark.message, remark.help);
}
