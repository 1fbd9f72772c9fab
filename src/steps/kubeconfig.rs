//! The cluster's kubeconfig is in the state folder, with the server's address in it.

use serde_json::json;

use super::{ClusterDef, Ctx, Step};
use crate::access::{SCRIPT_TIMEOUT, Via};
use crate::engine::StepError;
use crate::k3s;
use crate::observed::quorum::cluster_stays;
use crate::observed::{View, holds};
use crate::os::files;
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
    apply,
});

/// Where k3s writes it (docs.k3s.io/cluster-access).
const PATH: &str = "/etc/rancher/k3s/k3s.yaml";

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

pub(super) fn apply(ctx: &Ctx<'_>) -> Result<Option<String>, StepError> {
    let world = ctx.world;
    let server = world.server(Via::Any)?;
    let bytes = world.on(server, |r| r.read_file(PATH, 1 << 20, SCRIPT_TIMEOUT))?;
    let text = String::from_utf8_lossy(&bytes);
    world.learn_access(&text);
    let url = world.api_url(server);
    let ours = k3s::rewrite(&text, &url, &world.cluster.name).map_err(|error| {
        StepError::new(
            format!("{PATH} of {} cannot be used: {error}", server.name),
            format!(
                "k3s rewrites it when it starts. Somebody changed it on {}; if it was not you, do not trust that \
                 node any more.",
                server.name
            ),
        )
        .next([format!("p1 exec --root {} -- {}", server.name, world.guest(server).service().restart(server.role.unit())), "p1 retry".to_owned()])
    })?;
    files::write_if_changed(&world.state.kubeconfig(), ours.as_bytes(), 0o600)?;
    world.forget_api();
    world.note(|seen| seen.here.kubeconfig = true);
    Ok(None)
}
