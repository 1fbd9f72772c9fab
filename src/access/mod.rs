//! The ways in: to nodes, to the API, to what this host and this folder keep of a cluster; and what was seen of it.

mod api;
mod bake;
mod faults;
mod files;
mod images;
mod kept;
pub mod kubectl;
mod memory;
mod nodes;
mod owner;
mod secrets;
mod suspended;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard};

use jiff::Timestamp;

use crate::artifacts::{self, Cache};
use crate::boxes::Library;
use crate::images::Images;
use crate::kept::Moments;
use crate::machines::{Fleet, Owner};
use crate::observed::Observed;
use crate::os::Cancel;
use crate::os::apart::Apart;
use crate::os::sync::lock;
use crate::redact::Redactor;
use crate::spec::Cluster;
use crate::state::{NodeMemory, StateDir};

pub use api::{Via, listens, url_from_here};
pub use bake::Baker;
pub use files::{
    box_label, definition, file_stands_for, given, image_lacks, image_wanted, missing, of_definition,
    release, wanted,
};
pub use images::{Pods, as_file};
pub use nodes::SCRIPT_TIMEOUT;
pub use owner::Claims;
pub use secrets::random;

/// The ways into a cluster, and what was seen of it.
pub struct World {
    pub cluster: Cluster,
    pub state: StateDir,
    /// Who has its machines.
    pub machines: Fleet,
    /// This host's downloads.
    pub cache: Cache,
    /// How to get at what is elsewhere.
    pub net: artifacts::Net,
    /// This host's boxes.
    pub library: Library,
    /// This user's kept clusters.
    pub kept: Moments,
    /// The images that this user's clusters pulled.
    pub images: Images,
    /// A lock for what all clusters of this host share.
    pub host_lock: PathBuf,
    pub run: String,
    /// The cluster's token, where the spec has it in the environment.
    pub token: Option<String>,
    pub cancel: Cancel,
    /// At most so many nodes at a time.
    pub jobs: usize,
    /// Learns the secrets that this cluster has.
    pub redactor: Redactor,
    /// Ends faults when their time is over, whether this p1 lives or not.
    pub healer: Apart,
    /// Bakes boxes, each in a cluster of its own.
    pub baker: Baker,
    /// What listens on this host for a fork's API, whether this p1 lives or not; nothing for what is no fork.
    pub front: Apart,
    /// What was found on the ways so far.
    pub held: Held,
}

/// What was found on the ways so far, so that nobody has to look for it again; and whose turn it is.
#[derive(Default)]
pub struct Held {
    seen: Mutex<Arc<Observed>>,
    nodes: nodes::Held,
    files: files::Held,
    images: images::Held,
    api: api::Held,
    memory: Mutex<BTreeMap<String, NodeMemory>>,
    owner: Mutex<Option<Owner>>,
    making_tokens: Mutex<()>,
    provisioning: Mutex<()>,
    leaving: Mutex<()>,
    getting: Mutex<()>,
}

impl Held {
    /// What a run begins with: what is remembered of nodes. Nothing is looked at.
    pub fn of(state: &StateDir) -> Self {
        Self { memory: Mutex::new(state.memory()), ..Self::default() }
    }
}

impl World {
    /// What was seen so far.
    pub fn seen(&self) -> Arc<Observed> {
        Arc::clone(&lock(&self.held.seen))
    }

    /// Keeps something that was seen.
    pub fn note(&self, change: impl FnOnce(&mut Observed)) {
        change(Arc::make_mut(&mut lock(&self.held.seen)));
    }

    /// What this host's clock says: actions ask for it here, and conditions cannot.
    pub fn now(&self) -> Timestamp {
        Timestamp::now()
    }

    /// The state folder has other files: what was read of them before no longer counts.
    pub fn reload(&self) -> Result<(), crate::engine::StepError> {
        *lock(&self.held.memory) = self.state.memory();
        self.redactor();
        self.read_tokens()?;
        self.forget_api();
        self.forget_nodes();
        let kubeconfig = self.state.kubeconfig().is_file();
        self.note(|seen| (seen.here.kubeconfig, seen.api) = (kubeconfig, None));
        Ok(())
    }

    /// The log of something that is no single step.
    pub fn run_log(&self, name: &str) -> PathBuf {
        self.state.log(&self.run, name)
    }

    /// One run of Vagrant's provisioners at a time.
    pub fn provisioning(&self) -> MutexGuard<'_, ()> {
        lock(&self.held.provisioning)
    }

    /// One server at a time leaves a cluster.
    pub fn leaving(&self) -> MutexGuard<'_, ()> {
        lock(&self.held.leaving)
    }

    /// What several steps of a run need is got by the first of them; the others wait and find it.
    pub fn getting(&self) -> MutexGuard<'_, ()> {
        lock(&self.held.getting)
    }
}
