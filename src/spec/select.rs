//! Which nodes a word of the command line means: a node's name, the name of several that a `count` makes, or a role.

use super::report::nearest;
use super::{Cluster, Node};

/// What roles are written with.
const ROLE: &str = "role:";
/// So many names are told of those that there are.
const TOLD: usize = 12;

impl Cluster {
    /// The nodes that a word means, in the order of the cluster; none if it means nothing. A node's own name wins over a
    /// group's.
    pub fn select(&self, word: &str) -> Option<Vec<&Node>> {
        if let Some(node) = self.node(word) {
            return Some(vec![node]);
        }
        let role = word.strip_prefix(ROLE).map(|role| if role == "agent" { "worker" } else { role });
        let group = self.groups.get(word);
        let meant = |n: &&Node| match role {
            Some(role) => n.role.to_string() == role,
            None => group.is_some_and(|names| names.contains(&n.name)),
        };
        // Nobody is not everybody.
        Some(self.nodes.iter().filter(meant).collect::<Vec<_>>()).filter(|all| !all.is_empty())
    }

    /// What a word that means nothing may have been, and what there is.
    pub fn selectable(&self, word: &str) -> String {
        let mut roles: Vec<String> = self.nodes.iter().map(|n| format!("{ROLE}{}", n.role)).collect();
        roles.dedup();
        let nodes = || self.nodes.iter().map(|n| n.name.as_str());
        let groups = || self.groups.keys().map(String::as_str);
        let all = nodes().chain(groups()).chain(roles.iter().map(String::as_str));
        let meant = nearest(word, all).map(|name| format!("Did you mean `{name}`? ")).unwrap_or_default();
        let more = self.nodes.len().saturating_sub(TOLD);
        let more = if more > 0 { format!(" and {more} more") } else { String::new() };
        let others: Vec<&str> = groups().filter(|g| self.node(g).is_none()).collect();
        let others = match others.is_empty() {
            true => String::new(),
            false => format!("; groups: {}", others.join(", ")),
        };
        let listed = nodes().take(TOLD).collect::<Vec<_>>().join(", ");
        format!("{meant}Its nodes are: {listed}{more}{others}; roles: {}.", roles.join(", "))
    }
}

#[cfg(test)]
mod tests {
    use super::super::parse;
    use std::path::Path;

    #[test]
    fn a_nodes_name_wins_then_a_group_and_roles_say_so() {
        let text = "name: iot\nprovider: libvirt\nnodes:\n  - {name: server, role: server}\n  - {name: disk, count: 2}\n  \
                    - {name: w, count: 3}\n  - {name: w-9}\n  - {name: edge, count: 1}\n";
        let cluster = parse(text, Path::new("/base/cluster.yaml")).unwrap().cluster;
        let names = |word: &str| {
            cluster
                .select(word)
                .map(|all| all.into_iter().map(|n| n.name.as_str()).collect::<Vec<_>>().join(" "))
        };
        let some = |text: &str| Some(text.to_owned());
        assert_eq!(names("disk"), some("disk-1 disk-2"));
        assert_eq!(names("disk-2"), some("disk-2"));
        assert_eq!(names("w"), some("w-1 w-2 w-3"), "and not another node that is called alike");
        assert_eq!(names("edge"), some("edge-1"));
        assert_eq!(names("role:server"), some("server"));
        assert_eq!(names("role:agent"), names("role:worker"));
        for none in ["worker", "role:boss", "role:", "dis", ""] {
            assert_eq!(names(none), None, "{none}");
        }
        assert_eq!(
            cluster.selectable("disk-3"),
            "Did you mean `disk-1`? Its nodes are: server, disk-1, disk-2, w-1, w-2, w-3, w-9, edge-1; groups: disk, edge, w; \
             roles: role:server, role:worker."
        );
        // Nobody is not everybody.
        let alone = "name: iot\nprovider: libvirt\nnodes: [{name: server, role: server}]\n";
        let alone = parse(alone, Path::new("/base/cluster.yaml")).unwrap().cluster;
        assert_eq!(alone.select("role:worker"), None);
        assert!(cluster.selectable("role:servers").starts_with("Did you mean `role:server`?"));
        assert!(cluster.selectable("elsewhere").starts_with("Its nodes are: "));
    }
}
