//! What runs on the cluster by the spec's `manifests`: what was applied, how far it has come, and
//! what keeps it. Pure: the API is asked by others.

mod inventory;
mod rollout;
mod secrets;

pub use inventory::{Inventory, Item, NAME, Owned, digest, foundations, segment};
pub use rollout::{
    CHART, Progress, Why, chart_job, chart_lists, is_of_chart, pod_problem, progress, refused, rolls_out,
    selector,
};
pub use secrets::Secrets;
