//! The steps: one file each, with its condition (`check`, pure), its inputs and its action.
//!
//! A new step is a file here and a line in the lists of the verbs that have it (`verbs/`).

pub mod artifacts;
pub mod autostart;
pub mod backup;
pub mod bake;
pub mod clean;
pub mod config;
pub mod disks;
pub mod fault;
pub mod files;
pub mod fork;
pub mod foundations;
pub mod hosts;
pub mod image;
pub mod images;
pub mod install;
pub mod keep;
pub mod kubeconfig;
pub mod labels;
pub mod launch;
pub mod leave;
pub mod link;
pub mod local;
pub mod machine;
pub mod manifests;
pub mod network;
pub mod provision;
pub mod push;
pub mod ready;
pub mod release;
pub mod reset;
pub mod resize;
pub mod restore;
pub mod rollouts;
pub mod save;
pub mod shared;
pub mod snapshot;
pub mod ssh;
pub mod stage;
pub mod start;
pub mod stop;
pub mod suspend;
pub mod system;
pub mod uninstall;
pub mod verify;
pub mod vm;

use std::sync::Arc;

use serde_json::{Value, json};

use crate::access::World;
use crate::engine::{Control, StepError};
use crate::machines::{Batch, Cap};
use crate::observed::View;
use crate::plan::{After, At, Check, ClusterStep, NodeStep, Of, Per, StepSpec};
use crate::spec::{Cluster, Node};

/// A step: what planning knows of it, and what it does.
pub enum Step {
    /// One that is taken once for the cluster.
    Cluster(ClusterDef),
    /// One that is taken for nodes.
    Node(NodeDef),
}

/// A step of the cluster.
pub struct ClusterDef {
    /// Which.
    pub name: ClusterStep,
    /// For people: what it does, e.g. `fetch the kubeconfig`.
    pub title: &'static str,
    /// What has to be done before, unless a verb says otherwise (`Use::after` in `verbs/`).
    pub after: &'static [After],
    /// True if it serves others only: it is needed when one that comes after it is.
    pub on_demand: bool,
    /// What machines have to be able to: it is left out where none of the cluster is.
    pub needs: Option<Cap>,
    /// Whether errors that may pass are worth another try.
    pub retry: bool,
    /// Whether it is needed, told from what was seen.
    pub check: fn(&View<'_>) -> Check,
    /// What it is made from: other inputs, another digest, and it is due again.
    pub inputs: fn(&Cluster) -> Value,
    /// Does it. What it answers is kept in the journal and shown.
    pub apply: fn(&Ctx<'_>) -> Result<Option<String>, StepError>,
}

/// A step of nodes; the fields that [`ClusterDef`] has as well mean the same.
pub struct NodeDef {
    /// Which.
    pub name: NodeStep,
    /// As in [`ClusterDef`].
    pub title: &'static str,
    /// How often it is taken.
    pub per: Per,
    /// As in [`ClusterDef`].
    pub after: &'static [After],
    /// What the node's machine has to be able to: it is left out where that one is not.
    pub needs: Option<Cap>,
    /// As in [`ClusterDef`].
    pub retry: bool,
    /// As in [`ClusterDef`], for this node.
    pub check: fn(&View<'_>, &Node, Item<'_>) -> Check,
    /// As in [`ClusterDef`], for this node.
    pub inputs: fn(&Cluster, &Node) -> Value,
    /// As in [`ClusterDef`], on this node.
    pub apply: fn(&NodeCtx<'_>) -> Result<Option<String>, StepError>,
}

/// Which of several of a step: a provisioner's name.
pub type Item<'a> = Option<&'a str>;

impl Step {
    /// Which it is, and how often it is taken.
    pub const fn of(&self) -> Of {
        match self {
            Self::Cluster(def) => Of::Cluster(def.name),
            Self::Node(def) => Of::Node(def.name, def.per),
        }
    }

    /// What it comes after wherever no verb says otherwise.
    pub const fn after(&self) -> &'static [After] {
        match self {
            Self::Cluster(ClusterDef { after, .. }) | Self::Node(NodeDef { after, .. }) => after,
        }
    }

    /// Whether errors of it that may pass are worth another try.
    pub const fn retry(&self) -> bool {
        match self {
            Self::Cluster(ClusterDef { retry, .. }) | Self::Node(NodeDef { retry, .. }) => *retry,
        }
    }

    /// What machines have to be able to for it.
    pub const fn needs(&self) -> Option<Cap> {
        match self {
            Self::Cluster(ClusterDef { needs, .. }) | Self::Node(NodeDef { needs, .. }) => *needs,
        }
    }

    /// What planning knows of it, where it comes after these.
    pub fn spec(&self, after: &'static [After]) -> StepSpec {
        let (title, on_demand) = match self {
            Self::Cluster(def) => (def.title, def.on_demand),
            Self::Node(def) => (def.title, false),
        };
        StepSpec { of: self.of(), title, after, on_demand }
    }

    /// Whether it is needed there.
    pub fn check(&self, view: &View<'_>, at: At<'_>) -> Check {
        match (self, at) {
            (Self::Cluster(def), At::Cluster(_)) => (def.check)(view),
            (Self::Node(def), At::Node { node, item, .. }) => (def.check)(view, node, item),
            _ => unreachable!("the step of that name is of the same kind"),
        }
    }

    /// What it is made from.
    pub fn inputs(&self, cluster: &Cluster, at: At<'_>) -> Value {
        match (self, at) {
            (Self::Cluster(def), At::Cluster(_)) => (def.inputs)(cluster),
            (Self::Node(def), At::Node { node, .. }) => (def.inputs)(cluster, node),
            _ => unreachable!("the step of that name is of the same kind"),
        }
    }
}

/// The condition of a step that is due whenever its verb is called.
fn asked(_: &View<'_>) -> Check {
    Check::Needed("asked for".into())
}

/// The same for a step of nodes.
fn asked_of(view: &View<'_>, _: &Node, _: Item<'_>) -> Check {
    asked(view)
}

/// The inputs of a step that is made from nothing but the cluster's name.
fn named(cluster: &Cluster) -> Value {
    json!([cluster.name, Value::Null])
}

/// The inputs of a step that is made from nothing but the cluster's and the node's name.
fn named_of(cluster: &Cluster, node: &Node) -> Value {
    json!([cluster.name, node.name])
}

/// What a step has at hand.
pub struct Ctx<'a> {
    /// Everything shared.
    pub world: &'a Arc<World>,
    /// The `vagrant up` of this run.
    pub batch: &'a Arc<Batch<StepError>>,
    /// To be heard by.
    pub control: &'a Control,
    /// The node whose machine it needs: no wait goes on where that is gone.
    pub needs: Option<&'a Node>,
}

/// What a step of a node has at hand.
pub struct NodeCtx<'a> {
    /// What every step has.
    pub shared: Ctx<'a>,
    /// The node that it works on.
    pub node: &'a Node,
    /// Which of several of its kind.
    pub item: Item<'a>,
}

impl<'a> std::ops::Deref for NodeCtx<'a> {
    type Target = Ctx<'a>;

    fn deref(&self) -> &Ctx<'a> {
        &self.shared
    }
}
