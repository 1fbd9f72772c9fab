//! The ways in: to nodes, to the API, to what this host and this folder keep of a cluster; and what was seen of it.

mod api;
mod files;
pub mod kubectl;
mod memory;
mod nodes;
mod owner;
mod secrets;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::atomic::AtomicUsize;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Instant;

use crate::api::{Client, NodeStatus};
use crate::artifacts::{self, Cache};
use crate::boxes::Library;
use crate::machines::{Fleet, Owner};
use crate::observed::Seen;
use crate::os::Cancel;
use crate::os::sync::lock;
use crate::redact::Redactor;
use crate::spec::Cluster;
use crate::ssh::{Remote, Tunnel};
use crate::state::{NodeMemory, State};

pub use api::{Via, listens, url_from_here};
pub use files::{definition, given, image_wanted, missing, of_definition, release, wanted};
pub use nodes::SHORT;
pub use owner::Claims;

/// What a [`World`] is made of.
pub struct Parts {
    pub cluster: Cluster,
    pub state: State,
    /// Who has its machines.
    pub machines: Fleet,
    /// This host's downloads.
    pub cache: Cache,
    /// How to get at what is elsewhere.
    pub net: artifacts::Net,
    /// This host's boxes.
    pub library: Library,
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
}

/// Everything shared.
pub struct World {
    parts: Parts,
    seen: Mutex<Arc<Seen>>,
    remotes: Mutex<BTreeMap<String, Arc<Mutex<Remote>>>>,
    files: Mutex<Option<Arc<artifacts::Files>>>,
    api: Mutex<Option<Arc<Client>>>,
    answer: Mutex<Option<(Instant, Arc<Vec<NodeStatus>>)>>,
    tunnel: Mutex<Option<Tunnel>>,
    /// Which server is asked first.
    turn: AtomicUsize,
    /// The version that an upgrade goes to.
    aim: Mutex<Option<String>>,
    provisioning: Mutex<()>,
    leaving: Mutex<()>,
    getting: Mutex<()>,
    making_key: Mutex<()>,
    making_tokens: Mutex<()>,
    memory: Mutex<BTreeMap<String, NodeMemory>>,
    owner: Mutex<Option<Owner>>,
}

impl std::ops::Deref for World {
    type Target = Parts;

    fn deref(&self) -> &Parts {
        &self.parts
    }
}

impl World {
    /// Nothing is looked at yet.
    pub fn new(parts: Parts) -> Arc<Self> {
        let memory = Mutex::new(parts.state.memory());
        Arc::new(Self {
            parts,
            memory,
            seen: Mutex::default(),
            remotes: Mutex::default(),
            files: Mutex::default(),
            api: Mutex::default(),
            answer: Mutex::default(),
            tunnel: Mutex::default(),
            turn: AtomicUsize::new(0),
            aim: Mutex::default(),
            provisioning: Mutex::default(),
            leaving: Mutex::default(),
            getting: Mutex::default(),
            making_key: Mutex::default(),
            owner: Mutex::default(),
            making_tokens: Mutex::default(),
        })
    }

    /// What was seen so far.
    pub fn seen(&self) -> Arc<Seen> {
        Arc::clone(&lock(&self.seen))
    }

    /// Keeps something that was seen.
    pub fn note(&self, change: impl FnOnce(&mut Seen)) {
        change(Arc::make_mut(&mut lock(&self.seen)));
    }

    /// The log of something that is no single step.
    pub fn run_log(&self, name: &str) -> PathBuf {
        self.state.log(&self.run, name)
    }

    /// One run of Vagrant's provisioners at a time.
    pub fn provisioning(&self) -> MutexGuard<'_, ()> {
        lock(&self.provisioning)
    }

    /// One server at a time leaves a cluster.
    pub fn leaving(&self) -> MutexGuard<'_, ()> {
        lock(&self.leaving)
    }

    /// What several steps of a run need is got by the first of them; the others wait and find it.
    pub fn getting(&self) -> MutexGuard<'_, ()> {
        lock(&self.getting)
    }
}
