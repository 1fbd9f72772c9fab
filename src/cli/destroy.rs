//! `p1 destroy`: works on half-made and vanished machines, and is not blocked by what nobody holds.

use super::change;
use super::context::Context;
use super::error::{CliError, code};
use super::run::{self, Job};
use super::{bake, kept};
use crate::access::World;
use crate::event::VerbName;
use crate::observed::View;
use crate::observed::drift::{Loss, worst};
use crate::state::StateDir;
use crate::steps::shared::gone::GONE;
use crate::verbs::Verb;

/// Removes machines, and with all of them everything of the cluster.
pub fn destroy(context: &Context, nodes: &[String], gone: bool) -> Result<(), CliError> {
    let cluster = context.spec()?;
    let targets = change::targets(context, &cluster, nodes)?;
    // Every node by name is the same as none by name.
    let all = cluster.nodes.iter().all(|n| targets.contains(&n.name));
    let targets = if all { Vec::new() } else { targets };
    if !targets.is_empty() && cluster.servers().all(|s| targets.contains(&s.name)) {
        let servers: Vec<String> = cluster.servers().map(|s| format!("`{}`", s.name)).collect();
        let what = match &servers[..] {
            [one] => format!("{one} is the cluster's only server: without it there is no cluster"),
            all => format!(
                "{} are all of the cluster's servers: without them there is no cluster",
                all.join(", ")
            ),
        };
        return Err(CliError::new(
            code::USAGE,
            what,
            format!(
                "`p1 destroy` without names removes the whole cluster; `p1 replace {}` recreates {}.",
                targets.join(" "),
                if targets.len() == 1 { "it" } else { "them" }
            ),
        ));
    }
    let whole = targets.is_empty();
    let names: Vec<&str> = match whole {
        true => cluster.nodes.iter().map(|n| n.name.as_str()).collect(),
        false => targets.iter().map(String::as_str).collect(),
    };
    let named = targets.clone();
    let external = cluster.has_own_datastore();
    // Where the whole cluster goes, a k3s that was there before p1 stays.
    let memory = StateDir::of(cluster.home(), &cluster.name).memory();
    let before = |name: &&str| whole && memory.get(*name).is_some_and(|m| m.before);
    let kept: Vec<&str> = names.iter().copied().filter(before).collect();
    let exist = cluster.nodes.iter().filter(|n| n.ssh.is_some() && names.contains(&n.name.as_str()));
    let exist: Vec<&str> = exist.map(|n| n.name.as_str()).filter(|name| !before(name)).collect();
    let stay = match exist.len() {
        0 => String::new(),
        n if n == names.len() => " The machines stay: k3s is uninstalled there.".to_owned(),
        _ => format!(" The machines of {} stay: k3s is uninstalled there.", exist.join(", ")),
    };
    let stay = match &kept[..] {
        [] => stay,
        kept => format!(
            "{stay} The k3s of {} was there before p1: it stays and goes on, with its data, and p1's key and notes are removed. \
             `p1 uninstall` takes it off as well.",
            kept.join(", ")
        ),
    };
    let stay = match gone {
        true => {
            format!("{stay} A machine that does not answer is taken for gone: what is on it stays there.")
        }
        false => stay,
    };
    let disks = cluster.nodes.iter().filter(|n| names.contains(&n.name.as_str()) && !n.disks.is_empty());
    let disks: Vec<&str> = disks.flat_map(|n| n.disks.iter().map(|disk| disk.serial.as_str())).collect();
    let stay = match disks.is_empty() {
        true => stay,
        false => format!(" Their disks go with them: {}.{stay}", disks.join(", ")),
    };
    let question = match whole {
        true if kept.len() == names.len() => {
            format!("This has p1 forget the cluster `{}`.{stay} Continue?", cluster.name)
        }
        true => format!(
            "This destroys the cluster `{}` with {}: {}.{stay} Continue?",
            cluster.name,
            if external { "all but what is in the datastore of `datastore-endpoint`" } else { "its data" },
            names.join(", ")
        ),
        false => {
            let whose = if names.len() == 1 { "its" } else { "their" };
            format!("This destroys {} with {whose} data.{stay} Continue?", names.join(", "))
        }
    };
    let ask = |world: &World| {
        let lost = worst(&View::new(&world.cluster, &world.seen()), &named);
        match lost {
            // Those that stay have none of it.
            Loss::Cluster if !whole => context.agree(&format!(
                "With {} goes all data of the cluster `{}`: no server that has it stays. {question}",
                named.join(", "),
                world.cluster.name
            )),
            _ => context.agree(&question),
        }
    };
    let job = Job {
        verb: Verb::of(VerbName::Destroy),
        replace: Vec::new(),
        targets,
        subject: gone.then(|| GONE.to_owned()),
        retry_of: None,
        deep: false,
    };
    let (name, libvirt) = (cluster.name.clone(), context.libvirt(&cluster));
    let report = run::run(context, cluster, job, &|world, _| ask(world))?;
    run::verdict(&report)?;
    if whole {
        kept::after_destroy(context, &name, libvirt.uri);
        bake::tell_of_left(context);
    }
    Ok(())
}
