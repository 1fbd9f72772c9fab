//! What p1 refuses to begin, told from what was seen.

use super::View;
use crate::event::VerbName;
use crate::explain::{Explain, FailureKind};
use crate::k3s::{self, Barrier, Join, Version};
use crate::os::process::quote;
use crate::spec::{self, Node};
use crate::state::Unfinished;

/// Since this version k3s makes etcd's data of SQLite's (docs.k3s.io/datastore/ha-embedded).
const MIGRATES: &str = "v1.22.2";

/// Why something is not begun.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{cause}")]
pub struct Refusal {
    /// A lower-case fragment.
    pub cause: String,
    /// What to do, as full sentences.
    pub hint: String,
    /// What else is in the way.
    pub evidence: Vec<String>,
}

impl Refusal {
    /// For this cause, with this remedy.
    pub fn new(cause: impl Into<String>, hint: impl Into<String>) -> Self {
        Self { cause: cause.into(), hint: hint.into(), evidence: Vec::new() }
    }
}

impl Explain for Refusal {
    fn kind(&self) -> FailureKind {
        FailureKind::Cannot
    }

    fn hint(&self) -> Option<String> {
        Some(self.hint.clone())
    }

    fn evidence(&self) -> Vec<String> {
        self.evidence.clone()
    }
}

/// Why the plan must not be run; none if it may.
pub fn refusal(view: &View<'_>) -> Option<Refusal> {
    unfinished(view)
        .or_else(|| fixed(view))
        .or_else(|| growth(view))
        .or_else(|| upgrade(view))
        .or_else(|| autostart(view))
}

/// A disk does not become smaller, nor does VirtualBox' become another one.
pub fn disks(view: &View<'_>) -> Option<Refusal> {
    let wants = |n: &&Node| n.disk.is_some() || !n.disks.is_empty();
    let never = view.seen.here.provider.is_some_and(|kind| !kind.gives_disks());
    if never && view.cluster.nodes.iter().any(|n| wants(&n)) {
        let text = "`disk` and `disks` are for libvirt only, and this cluster's machines are VirtualBox'";
        return Some(Refusal::new(text, spec::DISKS));
    }
    let chosen =
        |n: &&Node| view.seen.request.targets.is_empty() || view.seen.request.targets.contains(&n.name);
    view.cluster.nodes.iter().filter(chosen).filter(|n| !view.is_recreated(n)).find_map(|node| {
        let made = view.seen.made.get(&node.name)?;
        let own = made.disk.zip(node.disk).map(|(has, wants)| (String::new(), has, wants));
        let others = node.disks.iter().filter_map(|disk| {
            let has = made.disks.iter().find(|has| has.serial == disk.serial)?;
            Some((format!(" {}", has.serial), has.size, disk.size))
        });
        let (what, has, wants) = own.into_iter().chain(others).find(|(_, has, wants)| has > wants)?;
        Some(Refusal::new(
            format!("the disk{what} of `{}` has {has} GiB and cannot become {wants} GiB", node.name),
            format!(
                "What is at its end would be cut off. Write {has}GiB or more, or have the machine recreated: `p1 up --replace {}`.",
                node.name
            ),
        ))
    })
}

/// Its machines were made by a provider that starts none by itself.
fn autostart(view: &View<'_>) -> Option<Refusal> {
    let never = view.seen.here.provider.is_some_and(|kind| !kind.starts_with_host());
    let text = "`autostart` is for libvirt only, and this cluster's machines are VirtualBox'";
    (view.cluster.autostart && never).then(|| Refusal::new(text, spec::AUTOSTART))
}

/// A restore that has not come to its end: the data of before is set aside, and what is in its place is
/// nobody's yet. The nodes tell, should the state folder not.
pub fn unfinished(view: &View<'_>) -> Option<Refusal> {
    if let Some(what) = &view.seen.here.unfinished {
        return (!what.settled).then(|| not_finished(what));
    }
    let set_aside = |n: &&Node| view.seen.nodes.get(&n.name).is_some_and(|f| f.former.is_some());
    let node = view.cluster.nodes.iter().find(set_aside)?;
    let what = format!("a restore was not finished: the former data of {} is set aside", node.name);
    Some(Refusal::new(
        what,
        "It is in /var/lib/rancher/k3s/p1-former-* on the nodes, and p1's note of it is gone. Where it is not wanted \
         any more, remove it there.",
    ))
}

/// Why nothing else is begun meanwhile, and what ends it.
pub fn not_finished(what: &Unfinished) -> Refusal {
    let subject = what.subject.clone().map(|s| quote(&s)).unwrap_or_default();
    let hint = match VerbName::parse(&what.verb) {
        Some(VerbName::Restore) => format!(
            "The cluster's former data is set aside. `p1 restore --undo` puts it back, `p1 restore {subject}` continues."
        ),
        Some(VerbName::Reset) => {
            "Until then machines may be of different moments: `p1 up` puts all of them back.".to_owned()
        }
        Some(VerbName::MakeFork) => {
            "Until then the fork is not whole: `p1 up` goes on, `p1 destroy` removes it.".to_owned()
        }
        _ => format!(
            "Until then machines may be of different moments: `p1 snapshot restore {subject}` puts all of them back."
        ),
    };
    Refusal::new(format!("{} was not finished", what.what()), hint)
}

/// Settings that cannot change once there is data ([`k3s::fixed`]).
pub fn fixed(view: &View<'_>) -> Option<Refusal> {
    let with_data: Vec<_> = view.cluster.servers().filter_map(|s| Some((s, view.fixed(s)?))).collect();
    // The only one with data goes, and its data with it: what comes is a new cluster.
    if let [(only, _)] = with_data[..]
        && view.is_recreated(only)
    {
        return None;
    }
    // The procedure that prepares one server prepares the cluster.
    let prepared = with_data.iter().any(|(_, was)| was.contains_key(k3s::fixed::PREPARED));
    let all = with_data.iter().find_map(|(server, was)| {
        let mut was = (*was).clone();
        if prepared {
            was.insert(k3s::fixed::PREPARED.to_owned(), vec!["yes".to_owned()]);
        }
        let version = view.version(server).and_then(|v| v.parse().ok());
        Some(k3s::fixed::changes(&was, server, version.as_ref())).filter(|all| !all.is_empty())
    })?;
    let told = |c: &k3s::fixed::Change| {
        format!("`{}` cannot change from {} to {} once the cluster has data: {}", c.key, c.was, c.is, c.why)
    };
    Some(Refusal {
        evidence: all[1..].iter().map(told).collect(),
        ..Refusal::new(told(&all[0]), all[0].way.clone())
    })
}

/// k3s' rules for another version (docs.k3s.io/upgrades, docs.k3s.io/reference/skew policies of Kubernetes):
/// servers go forward by one minor version at most, and no worker is newer than a server.
fn upgrade(view: &View<'_>) -> Option<Refusal> {
    let to: Version = view.seen.here.version.as_ref()?.parse().ok()?;
    let version = |n: &Node| view.version(n).and_then(|v| v.parse::<Version>().ok());
    let servers: Vec<(&Node, Version)> =
        view.cluster.servers().filter_map(|s| Some((s, version(s)?))).collect();
    for (server, from) in &servers {
        match from.barrier(&to) {
            None => {}
            Some(Barrier::Back) => {
                return Some(Refusal::new(
                    format!("`{}` runs {from}, and k3s' servers do not go back to {to}", server.name),
                    format!(
                        "Its data may be in the newer form already. Let the spec say {from} or a newer one; to go back, \
                         restore a backup into a new cluster."
                    ),
                ));
            }
            Some(Barrier::Skips(next)) => {
                return Some(Refusal::new(
                    format!("`{}` runs {from}, and {to} skips a minor version", server.name),
                    format!("Upgrade to the newest of {next} first: `p1 upgrade --to {next}`."),
                ));
            }
        }
    }
    let chosen =
        |n: &Node| view.seen.request.targets.is_empty() || view.seen.request.targets.contains(&n.name);
    let (left, from) = servers.iter().find(|(s, from)| !chosen(s) && *from < to)?;
    let worker = view.cluster.workers().find(|w| chosen(w) && version(w).as_ref() != Some(&to))?;
    Some(Refusal::new(
        format!("`{}` would run {to} while `{}` runs {from}", worker.name, left.name),
        "No worker may be newer than a server: leave the names out, or name the servers too.",
    ))
}

/// One server with SQLite becomes the first of several.
fn growth(view: &View<'_>) -> Option<Refusal> {
    let grows = view.cluster.servers().find(|s| {
        let sqlite = view.seen.nodes.get(&s.name).is_some_and(|f| f.datastore.as_deref() == Some("sqlite"));
        sqlite && view.join(s) == Join::Init
    })?;
    let version: Version = view.status(grows)?.version.parse().ok()?;
    (version < MIGRATES.parse().expect("a version")).then(|| {
        Refusal::new(
            format!("`{}` runs {version}, which cannot move its data from SQLite to etcd", grows.name),
            format!(
                "k3s does since {MIGRATES}: upgrade with one server first, one minor version at a time, and add the \
                 others then. Or make a new cluster."
            ),
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::machines::Kind;

    #[test]
    fn machines_that_do_not_start_by_themselves_are_not_said_to() {
        let mut cluster = sized(1, 0);
        let told = |cluster: &crate::spec::Cluster, kind: Kind| {
            let mut seen = Observed::default();
            seen.here.provider = Some(kind);
            refusal(&View::new(cluster, &seen)).map(|t| t.cause)
        };
        assert_eq!(told(&cluster, Kind::Virtualbox), None);
        cluster.autostart = true;
        assert_eq!(told(&cluster, Kind::Libvirt), None);
        assert!(told(&cluster, Kind::Virtualbox).is_some_and(|t| t.contains("for libvirt only")));
    }

    use crate::api::NodeStatus;
    use crate::observed::{Observed, Request};
    use crate::spec::fixture::sized;

    /// What is said of a cluster of one server and one worker at these versions.
    fn said(server: &str, worker: &str, to: &str, targets: &[&str]) -> Option<String> {
        let cluster = sized(1, 1);
        let status = |v: &str| NodeStatus { version: v.into(), ..NodeStatus::default() };
        let api = [("server".to_owned(), status(server)), ("worker-1".to_owned(), status(worker))];
        let seen = Observed {
            api: Some(api.into()),
            here: crate::observed::Here { version: Some(to.into()), ..Default::default() },
            request: Request {
                targets: targets.iter().map(|t| (*t).to_owned()).collect(),
                ..Request::default()
            },
            ..Observed::default()
        };
        refusal(&View::new(&cluster, &seen)).map(|t| t.cause)
    }

    #[test]
    fn versions_go_forward_without_a_gap_and_servers_first() {
        let (old, new) = ("v1.33.4+k3s1", "v1.34.1+k3s1");
        assert_eq!(said(old, old, new, &[]), None);
        assert_eq!(said(new, old, new, &["worker-1"]), None);
        assert_eq!(said(old, old, old, &["worker-1"]), None);
        assert!(said(old, old, "v1.35.0+k3s1", &[]).unwrap().contains("skips a minor version"));
        assert!(said(new, old, old, &[]).unwrap().contains("do not go back"));
        assert!(said(old, old, new, &["worker-1"]).unwrap().contains("`worker-1` would run v1.34.1+k3s1"));
    }

    #[test]
    fn an_old_server_cannot_become_the_first_of_several() {
        let cluster = sized(3, 0);
        let status = |v: &str| NodeStatus { version: v.into(), ..NodeStatus::default() };
        let facts = crate::guest::NodeFacts { datastore: Some("sqlite".into()), ..Default::default() };
        let said = |v: &str| {
            let seen = Observed {
                api: Some([("server".to_owned(), status(v))].into()),
                nodes: [("server".to_owned(), facts.clone().into())].into(),
                ..Observed::default()
            };
            refusal(&View::new(&cluster, &seen))
        };
        assert!(said("v1.21.2+k3s1").unwrap().cause.contains("SQLite"));
        assert_eq!(said("v1.22.2+k3s1"), None);
    }
}
