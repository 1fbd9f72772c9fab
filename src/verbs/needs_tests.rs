//! Machines that are only reached have the steps that need no more than that.

use super::{Lack, Verb};
use crate::event::VerbName;
use crate::machines::tests::SshOnly;
use crate::machines::{Cap, Fleet};
use crate::observed::{Observed, View};
use crate::os::Cancel;
use crate::plan::{ClusterStep, NodeStep, Plan};
use crate::spec::{Cluster, fixture};

/// What is seen of machines of which all, or those of these nodes, are only reached.
fn seen(cluster: &Cluster, reached: &[&str]) -> Observed {
    let fleet = Fleet::new(Box::new(SshOnly), vec![]);
    let mut machines = fleet.look(cluster, &Cancel::new()).unwrap();
    machines.retain(|node, _| reached.contains(&node.as_str()));
    Observed { machines, ..Observed::default() }
}

fn ids(plan: &Plan) -> Vec<&str> {
    plan.steps.iter().map(|s| s.info.id.as_str()).collect()
}

#[test]
fn what_a_machine_lacks_is_left_out_of_the_plan() {
    let cluster = fixture::cluster(1);
    let all = seen(&cluster, &["server", "worker-1"]);
    let view = View::new(&cluster, &all);
    let plan = Verb::of(VerbName::Up).plan(&view, &[]);
    let has = |id: &str| ids(&plan).contains(&id);
    for cluster in [ClusterStep::Box, ClusterStep::Network, ClusterStep::Link] {
        assert!(!has(&cluster.id()), "{cluster:?}");
    }
    for node in ["server", "worker-1"] {
        for step in [NodeStep::Vm, NodeStep::Resize, NodeStep::Autostart] {
            assert!(!has(&step.id(node)), "{node} {step:?}");
        }
        for step in [NodeStep::Ssh, NodeStep::System, NodeStep::Start, NodeStep::Ready] {
            assert!(has(&step.id(node)), "{node} {step:?}");
        }
    }
    let ssh = plan.steps.iter().find(|s| s.info.id == "worker-1/ssh").unwrap();
    assert_eq!((ssh.info.after.len(), ssh.check.may_run()), (0, true));
    assert_eq!(ids(&Verb::of(VerbName::Stop).plan(&view, &[])), [""; 0]);
    assert_eq!(ids(&Verb::of(VerbName::SaveSnapshot).plan(&view, &[])), [""; 0]);
}

#[test]
fn of_a_cluster_with_both_each_node_has_the_steps_of_its_machine() {
    let cluster = fixture::cluster(1);
    let seen = seen(&cluster, &["worker-1"]);
    let plan = Verb::of(VerbName::Up).plan(&View::new(&cluster, &seen), &[]);
    let has = |id: &str| ids(&plan).contains(&id);
    assert!(has("cluster/network") && has("server/vm") && !has("worker-1/vm"));
    let ssh = plan.steps.iter().find(|s| s.info.id == "server/ssh").unwrap();
    assert!(ssh.info.after.contains(&"server/vm".to_owned()), "{:?}", ssh.info.after);
    // It comes after what the machine would have come after.
    let ssh = plan.steps.iter().find(|s| s.info.id == "worker-1/ssh").unwrap();
    assert!(ssh.info.after.contains(&"cluster/network".to_owned()), "{:?}", ssh.info.after);
}

#[test]
fn a_verb_that_has_nothing_to_do_for_a_machine_says_what_that_lacks() {
    let cluster = fixture::cluster(1);
    let seen = seen(&cluster, &["worker-1"]);
    let view = View::new(&cluster, &seen);
    let lacks = |verb: VerbName, node: usize| Verb::of(verb).lacks(&view, &cluster.nodes[node]);
    assert_eq!(lacks(VerbName::Stop, 1), Some(Lack::Machine(Cap::Power)));
    assert_eq!(lacks(VerbName::SaveSnapshot, 1), Some(Lack::Machine(Cap::Snapshot)));
    for verb in [VerbName::Up, VerbName::Start, VerbName::Verify, VerbName::Uninstall, VerbName::Destroy] {
        assert_eq!(lacks(verb, 1), None, "{verb}");
    }
    for verb in VerbName::ALL {
        assert_eq!(lacks(verb, 0), None, "{verb}");
    }
}
