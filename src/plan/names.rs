//! The names of steps, the only place where one is spelled: a step that comes after one that does not exist does not
//! compile. Names are part of the journal's format, so one that was given stays.

use std::fmt;

use crate::spec::Node;

macro_rules! steps {
    ($(#[$doc:meta])* $name:ident { $($step:ident = $text:literal,)+ }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
        pub enum $name {
            $(#[doc = concat!("`", $text, "`.")] $step,)+
        }

        impl $name {
            /// As ids have it.
            pub const fn as_str(self) -> &'static str {
                match self {
                    $(Self::$step => $text,)+
                }
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(self.as_str())
            }
        }

        impl From<$name> for StepName {
            fn from(step: $name) -> Self {
                Self::$name(step)
            }
        }
    };
}

steps! {
    /// A step that is taken once for the cluster.
    ClusterStep {
        AfterCluster = "after-cluster",
        AfterDestroy = "after-destroy",
        AfterUp = "after-up",
        Artifacts = "artifacts",
        BeforeDestroy = "before-destroy",
        BeforeUp = "before-up",
        Box = "box",
        Clean = "clean",
        Collect = "collect",
        Copy = "copy",
        Data = "data",
        Files = "files",
        Forget = "forget",
        Fork = "fork",
        Foundations = "foundations",
        Images = "images",
        Ingress = "ingress",
        Keep = "keep",
        Kubeconfig = "kubeconfig",
        Link = "link",
        Manifests = "manifests",
        Network = "network",
        Pack = "pack",
        Pause = "pause",
        Pods = "pods",
        Reset = "reset",
        Resume = "resume",
        Rollouts = "rollouts",
        Save = "save",
        Secrets = "secrets",
        Settle = "settle",
        Suspend = "suspend",
        Undo = "undo",
        Wake = "wake",
    }
}

steps! {
    /// A step that is taken for a node.
    NodeStep {
        Aside = "aside",
        Autostart = "autostart",
        Clock = "clock",
        Config = "config",
        Disks = "disks",
        Dns = "dns",
        Forget = "forget",
        Halt = "halt",
        Heal = "heal",
        Healthy = "healthy",
        Hosts = "hosts",
        Images = "images",
        Import = "import",
        Install = "install",
        Killall = "killall",
        Labels = "labels",
        Launch = "launch",
        Leave = "leave",
        Load = "load",
        Machine = "machine",
        Network = "network",
        Password = "password",
        Provision = "provision",
        Push = "push",
        Ready = "ready",
        Release = "release",
        Resize = "resize",
        Restore = "restore",
        Service = "service",
        Ssh = "ssh",
        Stage = "stage",
        Start = "start",
        Steady = "steady",
        Stop = "stop",
        Strike = "strike",
        System = "system",
        Take = "take",
        Uninstall = "uninstall",
        Vm = "vm",
        Wipe = "wipe",
    }
}

/// A step of either kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum StepName {
    /// Of the cluster.
    ClusterStep(ClusterStep),
    /// Of a node.
    NodeStep(NodeStep),
}

impl StepName {
    /// As ids have it.
    #[allow(dead_code, reason = "a test holds the verbs' lists to it")]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::ClusterStep(step) => step.as_str(),
            Self::NodeStep(step) => step.as_str(),
        }
    }
}

impl ClusterStep {
    /// The step's id.
    pub fn id(self) -> String {
        At::Cluster(self).id()
    }
}

impl NodeStep {
    /// The id of the step of the node of that name.
    pub fn id(self, node: &str) -> String {
        format!("{node}/{self}")
    }

    /// Whether it does something with k3s alone, so that a machine without it has no part in it.
    pub const fn is_of_k3s(self) -> bool {
        matches!(
            self,
            Self::Config
                | Self::Dns
                | Self::Halt
                | Self::Images
                | Self::Import
                | Self::Install
                | Self::Killall
                | Self::Labels
                | Self::Launch
                | Self::Leave
                | Self::Load
                | Self::Network
                | Self::Password
                | Self::Push
                | Self::Ready
                | Self::Service
                | Self::Stage
                | Self::Start
                | Self::Steady
        )
    }

    /// Whether an id is of this step, of whatever node.
    pub fn is(self, id: &str) -> bool {
        id.rsplit_once('/').is_some_and(|(_, step)| step == self.as_str())
    }
}

/// One step of a plan: which, and where it is taken.
#[derive(Clone, Copy, Debug)]
pub enum At<'a> {
    /// Of the cluster.
    Cluster(ClusterStep),
    /// Of a node.
    Node {
        /// Which step.
        step: NodeStep,
        /// Of which node.
        node: &'a Node,
        /// Which of several of that step: a provisioner's name.
        item: Option<&'a str>,
    },
}

impl<'a> At<'a> {
    /// The step of that node.
    pub const fn node(step: NodeStep, node: &'a Node) -> Self {
        Self::Node { step, node, item: None }
    }

    /// Which step it is.
    pub const fn name(self) -> StepName {
        match self {
            Self::Cluster(step) => StepName::ClusterStep(step),
            Self::Node { step, .. } => StepName::NodeStep(step),
        }
    }

    /// The node it is taken for.
    pub const fn of(self) -> Option<&'a Node> {
        match self {
            Self::Cluster(_) => None,
            Self::Node { node, .. } => Some(node),
        }
    }

    /// Which of several of that step.
    pub const fn item(self) -> Option<&'a str> {
        match self {
            Self::Cluster(_) => None,
            Self::Node { item, .. } => item,
        }
    }

    /// The step's id.
    pub fn id(self) -> String {
        match self {
            Self::Cluster(step) => format!("cluster/{step}"),
            Self::Node { step, node, item: None } => step.id(&node.name),
            Self::Node { step, node, item: Some(item) } => format!("{}-{item}", step.id(&node.name)),
        }
    }
}
