//! What several steps have in common. A file of a step knows these, and no other step.

pub mod apply;
pub mod archive;
pub mod back;
pub mod batch;
pub mod console;
pub mod found;
pub mod gone;
pub mod heartbeat;
pub mod hosts;
pub mod inputs;
pub mod kubeconfig;
pub mod labels;
pub mod power;
pub mod quorum;
pub mod reboot;
pub mod rollout;
pub mod stamp;
pub mod transfer;
pub mod unit;
pub mod wait;
