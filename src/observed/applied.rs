//! Whether what the spec applies is applied, by the cluster's note of it.

use super::{View, holds};
use crate::apps::{self, Inventory};
use crate::machines::MachineState;
use crate::plan::Check;
use crate::spec::Cluster;

/// The spec applies nothing.
pub fn none_wanted(cluster: &Cluster) -> bool {
    cluster.manifests.is_empty() && cluster.namespaces.is_empty()
}

/// What to think of applications that were not looked at.
pub fn unseen(view: &View<'_>) -> Check {
    let absent = view.machine(view.cluster.first_server()).state == MachineState::Absent;
    match (none_wanted(view.cluster), absent) {
        (true, true) => Check::Done("the spec has none".into()),
        (false, true) => Check::Needed("the cluster is new".into()),
        _ => Check::Unknown("checked when the nodes are Ready".into()),
    }
}

/// Whether all that the spec has is applied, and nothing else.
pub fn applied(view: &View<'_>) -> Check {
    let Some(apps) = &view.seen.apps else { return unseen(view) };
    let none = none_wanted(view.cluster);
    if none && apps.inventory == Inventory::default() {
        return Check::Done("the spec has none".into());
    }
    let wrong = if apps.inventory.digest != apps::digest(view.cluster) {
        Some(match (apps.inventory.digest.is_empty(), none) {
            (_, true) => "the spec has none any more".to_owned(),
            (true, _) if apps.inventory.objects.is_empty() => "not applied yet".to_owned(),
            (true, _) => "not applied to the end".to_owned(),
            _ => "they changed since they were applied".to_owned(),
        })
    } else if let Some(first) = apps.missing.first() {
        Some(and_more(format!("{first} is not there"), apps.missing.len()))
    } else {
        apps.differing
            .first()
            .map(|d| and_more(format!("{d} was changed in the cluster"), apps.differing.len()))
    };
    holds("they are applied", wrong)
}

/// The first of several, with how many there are beside it.
pub fn and_more(first: String, count: usize) -> String {
    if count > 1 { format!("{first} (and {} more)", count - 1) } else { first }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::apps::Owned;
    use crate::machines::Machine;
    use crate::observed::{Apps, Observed};
    use crate::spec::Namespace;
    use crate::spec::fixture::cluster;

    fn checked(cluster: &Cluster, apps: Option<Apps>, runs: bool) -> Check {
        let mut seen = Observed { apps, ..Observed::default() };
        if runs {
            seen.machines
                .insert("server".into(), Machine { state: MachineState::Running, ..Machine::absent() });
        }
        applied(&View::new(cluster, &seen))
    }

    #[test]
    fn nothing_wanted_and_nothing_applied_is_done() {
        let mut cluster = cluster(0);
        assert_eq!(checked(&cluster, None, false), Check::Done("the spec has none".into()));
        assert!(matches!(checked(&cluster, None, true), Check::Unknown(_)));
        assert_eq!(checked(&cluster, Some(Apps::default()), true), Check::Done("the spec has none".into()));
        cluster.namespaces.push(Namespace { name: "web".into(), labels: vec![] });
        assert!(matches!(checked(&cluster, None, false), Check::Needed(_)));
        assert_eq!(checked(&cluster, Some(Apps::default()), true), Check::Needed("not applied yet".into()));
    }

    #[test]
    fn a_change_here_or_there_makes_it_due() {
        let mut cluster = cluster(0);
        cluster.namespaces.push(Namespace { name: "web".into(), labels: vec![] });
        let inventory = Inventory {
            digest: apps::digest(&cluster),
            namespaces: vec![Owned { name: "web".into(), made: true }],
            ..Inventory::default()
        };
        let good = Apps { inventory, ..Apps::default() };
        assert_eq!(checked(&cluster, Some(good.clone()), true), Check::Done("they are applied".into()));
        let lost = Apps { missing: vec!["Service web/a".into(), "x".into()], ..good.clone() };
        let said = checked(&cluster, Some(lost), true);
        assert_eq!(said, Check::Needed("Service web/a is not there (and 1 more)".into()));
        cluster.namespaces.clear();
        assert_eq!(
            checked(&cluster, Some(good.clone()), true),
            Check::Needed("the spec has none any more".into())
        );
        cluster.namespaces.push(Namespace { name: "web".into(), labels: vec!["a=b".into()] });
        assert!(checked(&cluster, Some(good), true).reason().contains("changed"));
    }
}
