//! The cluster's kubeconfig is fetched from a server.

use crate::access::{SCRIPT_TIMEOUT, Via};
use crate::engine::StepError;
use crate::k3s;
use crate::os::files;
use crate::steps::Ctx;

/// Where k3s writes it (docs.k3s.io/cluster-access).
const PATH: &str = "/etc/rancher/k3s/k3s.yaml";

/// Into the state folder, with the address by which this host reaches the server.
pub fn fetch(ctx: &Ctx<'_>) -> Result<Option<String>, StepError> {
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
