//! The node lets p1 in: by the cluster's own key, and by that alone.

use serde_json::json;

use super::world::{INSECURE, SHORT};
use super::{Ctx, Definition, View, World};
use crate::engine::Trouble;
use crate::explain::without_name;
use crate::plan::{After, Check, Scope, Shape};
use crate::spec::{Cluster, Node};
use crate::ssh;

pub const STEP: Definition = Definition {
    shape: Shape {
        name: "ssh",
        title: "log in",
        scope: Scope::Nodes,
        after: &[After::Node("vm"), After::Cluster("link")],
        serves: false,
    },
    retry: true,
    check,
    inputs,
    apply,
};

fn check(view: &View<'_>, node: Option<&Node>) -> Check {
    let Some(node) = node else { return Check::Done(String::new()) };
    match view.facts(node) {
        Ok(_) => Check::Done("it lets p1 in".into()),
        Err(check) => match view.seen.silent.get(&node.name) {
            Some(why) => Check::Needed(why.clone()),
            None => check,
        },
    }
}

/// A machine that runs and cannot be reached: a card that lost its address and an sshd that hangs come back
/// with the next boot; one that takes none of our keys any more does not.
fn unreached(world: &World, node: &Node, error: ssh::Error) -> Trouble {
    let shut_out = error.shut_out();
    let mut trouble = Trouble::from(error);
    let (name, said) = (&node.name, trouble.failure.hint.take().map(|h| h + " ").unwrap_or_default());
    let others = world.cluster.servers().any(|s| s.name != *name);
    trouble.failure.hint = match (shut_out, trouble.transient) {
        // With the only server its data would go: that is not for p1 to propose.
        (true, _) if others => {
            trouble.failure.next = vec![format!("p1 destroy {name}"), "p1 up".to_owned()];
            Some(format!("{said}Otherwise `p1 destroy {name}` and `p1 up` make the machine anew."))
        }
        (false, true) if trouble.failure.next.is_empty() && world.memory(name).is_some_and(|m| m.joined) => {
            trouble.failure.next = vec![format!("p1 stop {name}"), "p1 up".to_owned()];
            Some(format!("{said}If it stays so, `p1 stop {name}` and `p1 up` start the machine anew."))
        }
        _ => Some(said.trim_end().to_owned()).filter(|s| !s.is_empty()),
    };
    trouble
}

fn inputs(cluster: &Cluster, node: Option<&Node>) -> serde_json::Value {
    json!([cluster.name, node.map(|n| (&n.name, n.ip))])
}

fn apply(ctx: &Ctx<'_>) -> Result<Option<String>, Trouble> {
    let (world, node) = (ctx.world, ctx.node());
    let key = world.state.key();
    let public = world.public_key()?;
    let reached = world.on(node, |remote| -> Result<(bool, bool), Trouble> {
        let (mut last, mut told) = (String::new(), std::time::Instant::now());
        let session = remote.wait_for(world.cluster.timeouts.ssh, &mut |error| {
            let text = without_name(&node.name, &error.to_string()).to_owned();
            // Two reasons may take turns for minutes.
            if text != last && (last.is_empty() || told.elapsed() > std::time::Duration::from_secs(5)) {
                ctx.control.log(&text);
                ctx.control.says(text.clone());
                (last, told) = (text, std::time::Instant::now());
            }
        });
        let session = session.map_err(|error| unreached(world, node, error))?;
        let replaced = session.key() != key;
        ctx.control.log(&format!("logged in by {}", session.key().display()));
        if !replaced && remote.endpoint().user == "root" {
            return Ok((false, true));
        }
        if replaced {
            ctx.control.says("replacing Vagrant's insecure key");
        }
        Ok((replaced, remote.take_over(key.clone(), &public, &[INSECURE], SHORT)?))
    });
    let (replaced, root) = reached?;
    ctx.control.log(if root {
        "root logs in by the cluster's key"
    } else {
        "root does not log in; sudo is used"
    });
    world.remember(&node.name, |m| m.root = root)?;
    ctx.control.says("asking the node about itself");
    world.look_at_node(node)?;
    world.write_ssh_config()?;
    Ok(replaced.then(|| "replaced Vagrant's insecure key by the cluster's own".to_owned()))
}
