//! What users see, what comes of a spec, and that no text whatever makes the reader fall over.

use std::path::Path;

use super::{Cluster, Parsed, parse};

mod any;
mod environment;
mod messages;
mod resolved;
mod schema;
mod variables;

/// Reads a spec as if it lay in a folder that does not exist.
fn read(text: &str) -> Result<Parsed, super::problem::Invalid> {
    parse(text, Path::new("/demo/cluster.yaml"))
}

/// The cluster of a spec that has no error.
fn cluster(text: &str) -> Cluster {
    read(text).unwrap_or_else(|e| panic!("{}", e.render(false))).cluster
}

/// What is said of a spec: its errors, or its warnings.
fn said(text: &str) -> String {
    match read(text) {
        Ok(parsed) => super::problem::render(&parsed.warnings, Path::new("/demo/cluster.yaml"), false),
        Err(invalid) => invalid.render(false),
    }
}

/// What is said, one line each: `line:column message / help`.
fn brief(text: &str) -> String {
    let problems = match read(text) {
        Ok(parsed) => parsed.warnings,
        Err(invalid) => invalid.problems,
    };
    let line = |p: &super::problem::Problem| {
        format!("{}:{}+{} {}: {} / {}", p.line, p.column, p.length, p.severity, p.message, p.help)
    };
    problems.iter().map(line).collect::<Vec<_>>().join("\n")
}
