//! Whether this host can do what `up` needs: facts in, findings out, each with its remedy.

use serde::Serialize;

use super::facts::Host;
use super::fix::Step;
use crate::machines::{Engine, Kind};
use crate::spec::Cluster;

mod bridge;
mod libvirt;
mod network;
mod room;
mod tools;
mod virtualbox;

/// How much a finding matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// All is well.
    Ok,
    /// Worth knowing.
    Note,
    /// It works, but badly or not for long.
    Warning,
    /// `up` would fail.
    Problem,
}

/// One thing that was checked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// Stable, for programs: `kvm`, `memory`.
    pub id: &'static str,
    /// For people: `hardware virtualisation`.
    pub title: String,
    /// How it is.
    pub status: Status,
    /// What was seen, as a fragment.
    pub detail: String,
    /// What to do about it.
    pub remedy: Option<Remedy>,
}

/// What to do about a finding.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Remedy {
    /// As full sentences; enough for somebody who does it by hand.
    pub text: String,
    /// What `--fix` can do about it; empty if it takes a person.
    pub steps: Vec<Step>,
}

impl Finding {
    fn new(id: &'static str, title: &str, status: Status, detail: impl Into<String>) -> Self {
        Self { id, title: title.to_owned(), status, detail: detail.into(), remedy: None }
    }

    fn remedy(mut self, text: impl Into<String>, steps: impl IntoIterator<Item = Step>) -> Self {
        self.remedy = Some(Remedy { text: text.into(), steps: steps.into_iter().collect() });
        self
    }
}

/// A program that is needed beside the usual ones, and the Debian package that has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tool<'a> {
    /// The program; it must have been among [`super::Look::programs`].
    pub program: &'a str,
    pub package: &'a str,
    /// What it is needed for, after "to": `build a box`.
    pub purpose: &'a str,
}

/// What the host is to be good for.
#[derive(Clone, Copy, Debug)]
pub struct Question<'a> {
    /// The provider that is used, or would be.
    pub kind: Kind,
    /// What makes the machines with it.
    pub engine: Engine,
    /// The cluster, if there is a spec.
    pub cluster: Option<&'a Cluster>,
    /// Its nodes that run already, and so have their memory.
    pub running: &'a [String],
    /// More programs that are needed.
    pub needs: &'a [Tool<'a>],
}

/// What is asked of a host about what has the machines there.
type OfKind = fn(&Host, &Question<'_>) -> Vec<Finding>;

/// By kind; machines that are elsewhere need nothing of the host.
const BY_KIND: [(Kind, OfKind); 2] = [
    (Kind::Libvirt, |host, question| libvirt::checks(host, question)),
    (Kind::Virtualbox, |host, question| virtualbox::checks(host, question.cluster)),
];

/// Everything that `up` needs, checked in the order in which it is needed.
pub fn checks(host: &Host, question: &Question<'_>) -> Vec<Finding> {
    let mut findings = vec![tools::system(host)];
    if question.engine == Engine::Vagrant {
        findings.push(tools::vagrant(host));
    }
    let of_kind = BY_KIND.iter().filter(|(kind, _)| *kind == question.kind);
    findings.extend(of_kind.flat_map(|(_, checks)| checks(host, question)));
    findings.extend(tools::programs(host, question));
    findings.extend(room::checks(host, question));
    if let Some(cluster) = question.cluster.filter(|cluster| !cluster.network.is_none()) {
        findings.extend(network::checks(host, cluster, question.kind));
        findings.extend(network::link(host, cluster, question.kind, question.running));
    }
    findings
}

/// The worst status among them.
pub fn worst(findings: &[Finding]) -> Status {
    findings.iter().map(|f| f.status).max().unwrap_or(Status::Ok)
}

#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;
