//! The cluster's kubeconfig is in the state folder, with the server's address in it.

use serde_json::json;

use super::shared::kubeconfig::fetch;
use super::{ClusterDef, Step};
use crate::k3s;
use crate::observed::quorum::cluster_stays;
use crate::observed::{View, holds};
use crate::plan::{After, Check, ClusterStep, K3sState, NodeStep};
use crate::spec::{Cluster, Role};

pub const STEP: Step = Step::Cluster(ClusterDef {
    name: ClusterStep::Kubeconfig,
    title: "fetch the kubeconfig",
    after: &[After::LeadServer(NodeStep::Start)],
    on_demand: false,
    needs: None,
    retry: true,
    check,
    inputs,
    apply: fetch,
});

fn check(view: &View<'_>) -> Check {
    let wrong = if !view.seen.here.kubeconfig {
        Some("it is not there".to_owned())
    } else if view.seen.leaving().any(|n| n.role == Role::Server) && !cluster_stays(view) {
        Some("it is of the cluster that goes".to_owned())
    } else if view.seen.api.is_none() {
        match view.cluster.servers().any(|s| view.k3s_state(s) == K3sState::Running) {
            true => Some(view.minority().unwrap_or_else(|| {
                view.seen.deaf.clone().unwrap_or_else(|| "the API does not take it".to_owned())
            })),
            false => return Check::Unknown("checked when a server runs".into()),
        }
    } else {
        None
    };
    holds("the API takes it", wrong)
}

fn inputs(cluster: &Cluster) -> serde_json::Value {
    json!([cluster.name, k3s::api_url(cluster, cluster.first_server())])
}
