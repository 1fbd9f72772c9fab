//! Settings that are fixed once a cluster has data: what k3s does when they change all the same, and what
//! the way is.
//!
//! Sources, per key, are in [`TABLE`]. What only has to agree on all servers is not in it: k3s compares such
//! settings when a server joins, never later (k3s-io/k3s, `pkg/cluster/bootstrap.go`, `compareConfig` is
//! called for a server without data), so that they can be rolled out server by server.

use std::collections::BTreeMap;

use serde_yaml::Value;

use super::version::Version;
use crate::spec::Node;

/// By key: what a server's config.yaml said, as it is written.
pub type Written = BTreeMap<String, Vec<String>>;

/// What a server's config.yaml said of the settings in [`TABLE`], key by key; what it did not say is not in it.
/// Of a datastore there is the kind alone, since the rest holds a password.
type Settings = BTreeMap<String, Vec<String>>;

/// In [`Settings`]: `k3s secrets-encrypt enable` was called, so that the setting may be added.
pub const PREPARED: &str = "secrets-encryption-prepared";

/// What the kube-controller-manager is told of the size of a node's network.
const MASK: &str = "node-cidr-mask-size";
const ARGUMENTS: &str = "kube-controller-manager-arg";

/// A setting that is fixed.
struct Fixed {
    key: &'static str,
    /// What k3s takes where it is not given.
    default: &'static str,
    /// What happens when it changes all the same.
    why: &'static str,
    /// What the way is.
    way: Way,
}

enum Way {
    /// A new cluster.
    Anew,
    /// A procedure of k3s' own; since which version, and which.
    Procedure,
}

/// Which they are. There is no version from which the first ones can change.
const TABLE: &[Fixed] = &[
    // k3s-io/docs, docs/networking/basic-network-options.md ("Dual-stack networking must be configured when the
    // cluster is first created"); kubernetes/kubernetes, pkg/apis/core/validation: `spec.podCIDR` of a Node
    // does not change once it is set.
    Fixed {
        key: "cluster-cidr",
        default: "10.42.0.0/16",
        why: "nodes keep the networks that they were given, and pods lose theirs",
        way: Way::Anew,
    },
    // kubernetes/kubernetes, pkg/registry/core/service: the addresses of services that are there are not given
    // anew; KEP-1880 extends a range by objects, and does not change the first one.
    Fixed {
        key: "service-cidr",
        default: "10.43.0.0/16",
        why: "services keep the addresses that they were given, the API's own among them",
        way: Way::Anew,
    },
    // The same, cmd/kube-controller-manager: the mask of what is given out is that of the first start.
    Fixed {
        key: MASK,
        default: "24",
        why: "nodes keep the networks that they were given, and new ones are cut over them",
        way: Way::Anew,
    },
    // k3s-io/k3s, manifests/coredns.yaml: it becomes the `clusterIP` of a Service, which is immutable.
    Fixed {
        key: "cluster-dns",
        default: "",
        why: "the DNS keeps the address that it was given, and pods ask at the new one",
        way: Way::Anew,
    },
    // k3s-io/docs, docs/cli/server.md; it is in every pod's search list, in certificates and in what
    // applications have written down.
    Fixed {
        key: "cluster-domain",
        default: "cluster.local",
        why: "pods, certificates and applications go on with the old name",
        way: Way::Anew,
    },
    // k3s-io/docs, docs/datastore/ha-embedded.md: with etcd on its disk a server passes over the setting;
    // without it begins in an empty datastore (k3s-io/k3s, pkg/etcd and pkg/cluster/managed.go).
    Fixed {
        key: "datastore-endpoint",
        default: "",
        why: "k3s moves no data into another datastore, or out of one: it starts with an empty one, or passes over the \
              setting",
        way: Way::Anew,
    },
    // k3s-io/k3s #7195: each server made a key of its own; #13370 (backports #13403 to #13406, issues #13407 to
    // #13410) lets `k3s secrets-encrypt enable` prepare it. k3s-io/docs, docs/cli/secrets-encrypt.md.
    Fixed {
        key: "secrets-encryption",
        default: "false",
        why: "each server would make a key of its own, or could no longer read what is encrypted",
        way: Way::Procedure,
    },
];

/// Since these k3s can be told to encrypt later on, by minor version; before v1.32 it cannot.
const ENCRYPTS_LATER: [(u64, &str); 4] =
    [(32, "v1.32.12+k3s1"), (33, "v1.33.8+k3s1"), (34, "v1.34.4+k3s1"), (35, "v1.35.1+k3s1")];

/// A setting that cannot change and does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// Which.
    pub key: &'static str,
    /// What the server has.
    pub was: String,
    /// What the spec says.
    pub is: String,
    /// What k3s would make of it, a fragment.
    pub why: &'static str,
    /// What to do, full sentences.
    pub way: String,
}

/// What of a server's settings cannot change as the spec wants it to. `was` is what the servers with data
/// were told, `server` one of them as the spec has it, and `version` what it runs.
pub fn changes(was: &Written, server: &Node, version: Option<&Version>) -> Vec<Change> {
    let mut known = Settings::new();
    for (key, values) in was {
        values.iter().for_each(|value| note(&mut known, key, value));
    }
    let was = &known;
    let is = of_spec(server);
    let own_dns = !words(server.config.get("disable")).iter().any(|w| w == "coredns");
    let differs = |fixed: &&Fixed| {
        let (was, is) = (told(was, fixed), told(&is, fixed));
        was != is && (fixed.key != "cluster-dns" || own_dns)
    };
    let mut all: Vec<Change> = Vec::new();
    for fixed in TABLE.iter().filter(differs) {
        let (old, new) = (told(was, fixed).join(","), told(&is, fixed).join(","));
        let encrypts = new == "true";
        if matches!(fixed.way, Way::Procedure) && encrypts && was.contains_key(PREPARED) {
            continue;
        }
        let way = match fixed.way {
            Way::Anew => format!(
                "Put `{}` back as it was. With another one the cluster has to be recreated, and everything in it is lost: \
                 `p1 destroy`, then `p1 up`.",
                name(fixed)
            ),
            Way::Procedure if encrypts => later(server, version),
            Way::Procedure => format!(
                "Put `secrets-encryption: true` back and leave it. To stop encrypting: `p1 exec --root {0} -- /usr/local/bin/k3s \
                 secrets-encrypt disable`, then `p1 exec --root {0} -- /usr/local/bin/k3s secrets-encrypt reencrypt --force --skip`.",
                server.name
            ),
        };
        all.push(Change { key: name(fixed), was: shown(old), is: shown(new), why: fixed.why, way });
    }
    all
}

fn name(fixed: &Fixed) -> &'static str {
    if fixed.key == MASK { "kube-controller-manager-arg: node-cidr-mask-size" } else { fixed.key }
}

fn shown(value: String) -> String {
    if value.is_empty() { "none".to_owned() } else { value }
}

/// How secrets are encrypted later on.
fn later(server: &Node, version: Option<&Version>) -> String {
    let minor = version.map(|v| v.minor().1);
    let since = ENCRYPTS_LATER.iter().find(|(of, _)| minor == Some(*of)).map(|(_, since)| *since);
    let can = match (version, since) {
        (Some(version), Some(since)) => since.parse::<Version>().is_ok_and(|since| *version >= since),
        (Some(_), None) => minor.is_some_and(|m| m > 35),
        (None, _) => true,
    };
    if can {
        return format!(
            "k3s has a procedure for it. Prepare it: `p1 exec --root {0} -- /usr/local/bin/k3s secrets-encrypt enable`, then `p1 up`, then \
             `p1 exec --root {0} -- /usr/local/bin/k3s secrets-encrypt rotate-keys`.",
            server.name
        );
    }
    let has = since.unwrap_or("v1.32.12+k3s1");
    format!("k3s can do it since {has}: take `secrets-encryption` out, and upgrade first (`p1 upgrade`).")
}

/// The value of a setting, so that two ways to write the same are the same.
fn told(settings: &Settings, fixed: &Fixed) -> Vec<String> {
    let mut all = settings.get(fixed.key).cloned().unwrap_or_default();
    if fixed.key == "secrets-encryption" {
        let on = all.last().is_some_and(|v| matches!(v.as_str(), "1" | "t" | "T" | "TRUE" | "true" | "True"));
        return vec![on.to_string()];
    }
    if matches!(fixed.key, "cluster-domain" | MASK) {
        all = all.pop().into_iter().collect();
    }
    if all.is_empty() && !fixed.default.is_empty() {
        return vec![fixed.default.to_owned()];
    }
    if fixed.key == "cluster-dns" && all.is_empty() {
        let services = told(settings, TABLE.iter().find(|f| f.key == "service-cidr").expect("it is there"));
        let net = services.first().and_then(|n| n.parse::<ipnet::Ipv4Net>().ok());
        // k3s gives the tenth address to the DNS.
        let tenth = net.map(|n| std::net::Ipv4Addr::from(u32::from(n.network()).saturating_add(10)));
        return tenth.map(|ip| ip.to_string()).into_iter().collect();
    }
    all.iter()
        .map(|v| v.parse::<ipnet::IpNet>().map_or_else(|_| v.clone(), |n| n.trunc().to_string()))
        .collect()
}

/// The same of the spec.
fn of_spec(server: &Node) -> Settings {
    let mut all = Settings::new();
    for fixed in TABLE {
        let both = [fixed.key.to_owned(), format!("{}+", fixed.key)];
        let mut values: Vec<String> =
            both.iter().flat_map(|k| words(server.config.get(k.as_str()))).collect();
        if fixed.key == "datastore-endpoint" {
            values = values.iter().map(|v| kind_of(v)).collect();
        }
        if fixed.key == MASK {
            let of = ["kube-controller-manager-arg", "kube-controller-manager-arg+"];
            values =
                of.iter().flat_map(|k| words(server.config.get(*k))).filter_map(|arg| mask(&arg)).collect();
        }
        if !values.is_empty() {
            all.insert(fixed.key.to_owned(), values);
        }
    }
    all
}

/// What an argument of the kube-controller-manager says of the mask.
fn mask(argument: &str) -> Option<String> {
    let (key, value) = argument.trim_start_matches('-').split_once('=')?;
    [MASK, "node-cidr-mask-size-ipv4"].contains(&key).then(|| value.to_owned())
}

/// Of a datastore only what it is: `postgres`, `mysql`, `https` for an etcd.
fn kind_of(endpoint: &str) -> String {
    let kind = endpoint.split(':').next().unwrap_or_default();
    if kind == "postgresql" { "postgres".to_owned() } else { kind.to_owned() }
}

fn words(value: Option<&Value>) -> Vec<String> {
    let one = |value: &Value| match value {
        Value::String(text) => text.clone(),
        Value::Bool(value) => value.to_string(),
        Value::Number(number) => number.to_string(),
        _ => String::new(),
    };
    let all = match value {
        Some(Value::Sequence(items)) => items.iter().map(one).collect(),
        Some(other) => vec![one(other)],
        None => Vec::new(),
    };
    all.iter().flat_map(|v| v.split(',')).map(|v| v.trim().to_owned()).filter(|v| !v.is_empty()).collect()
}

/// What of a server's settings is remembered: those that are fixed, and of a datastore its kind alone.
pub fn written<'s>(settings: impl Iterator<Item = (&'s str, &'s [String])>) -> Written {
    let mut all = Written::new();
    for (key, values) in settings.filter(|(key, _)| TABLE.iter().any(|f| f.key == *key) || *key == ARGUMENTS)
    {
        let told = values.iter().filter(|value| !value.is_empty()).filter_map(|value| match key {
            "datastore-endpoint" => Some(kind_of(value)),
            ARGUMENTS => value.contains(MASK).then(|| value.clone()),
            _ => Some(value.clone()),
        });
        let told: Vec<String> = told.collect();
        if !told.is_empty() {
            all.insert(key.to_owned(), told);
        }
    }
    all
}

/// Takes a line of a node's answer: `KEY VALUE`, as config.yaml has it.
fn note(settings: &mut Settings, key: &str, value: &str) {
    let value = value.trim().trim_matches(['"', '\'']);
    let values: Vec<String> = match key {
        ARGUMENTS => {
            return settings.entry(MASK.to_owned()).or_default().extend(mask(value));
        }
        "datastore-endpoint" => vec![kind_of(value)],
        _ => words(Some(&Value::from(value))),
    };
    let known = key == PREPARED || TABLE.iter().any(|f| f.key == key);
    if known && (!values.is_empty() || key == PREPARED) {
        settings.entry(key.to_owned()).or_default().extend(values);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::parse;
    use std::path::Path;

    fn server(config: &str) -> Node {
        let text = format!("name: x\nnodes: [{{name: server, role: server, config: {config}}}]\n");
        let parsed =
            parse(&text, Path::new("/x/cluster.yaml")).unwrap_or_else(|e| panic!("{}", e.render(false)));
        parsed.cluster.nodes[0].clone()
    }

    /// Of a server that was told `was`, as its answer says it, and is to be told `is`.
    fn said(was: &[(&str, &str)], is: &str, version: &str) -> Vec<String> {
        let mut settings = Written::new();
        for (key, value) in was {
            settings.entry((*key).to_owned()).or_default().push((*value).to_owned());
        }
        let all = changes(&settings, &server(is), version.parse().ok().as_ref());
        all.iter().map(|c| format!("{} {} -> {}: {}", c.key, c.was, c.is, c.way)).collect()
    }

    #[test]
    fn what_is_fixed_is_refused_and_what_is_the_same_is_not() {
        let fixed = |was: &[(&str, &str)], is: &str| said(was, is, "v1.34.1+k3s1");
        for (was, is) in [
            (&[][..], "{}"),
            (&[], "{cluster-cidr: 10.42.0.0/16, cluster-dns: 10.43.0.10, secrets-encryption: false}"),
            (&[("cluster-cidr", "\"10.50.0.0/16\"")], "{cluster-cidr: [10.50.0.0/16]}"),
            (
                &[("datastore-endpoint", "\"mysql://a:b@tcp(h:3306)/k\"")],
                "{datastore-endpoint: 'mysql://a:c@tcp(i:3306)/k'}",
            ),
            (
                &[("kube-controller-manager-arg", "v=2")],
                "{kube-controller-manager-arg: [v=3], disable: [traefik]}",
            ),
            (&[("cluster-dns", "\"10.43.0.11\"")], "{cluster-dns: 10.43.0.12, disable: coredns}"),
        ] {
            assert_eq!(fixed(was, is), Vec::<String>::new(), "{was:?} {is}");
        }
        for (was, is, word) in [
            (&[][..], "{cluster-cidr: 10.50.0.0/16}", "cluster-cidr 10.42.0.0/16 -> 10.50.0.0/16"),
            (&[], "{service-cidr: 10.96.0.0/16}", "service-cidr 10.43.0.0/16 -> 10.96.0.0/16"),
            (&[("cluster-domain", "a.lan")], "{}", "cluster-domain a.lan -> cluster.local"),
            (&[], "{cluster-dns: 10.43.0.53}", "cluster-dns 10.43.0.10 -> 10.43.0.53"),
            (&[], "{datastore-endpoint: 'postgres://a:b@h/k'}", "datastore-endpoint none -> postgres: "),
            (&[("datastore-endpoint", "mysql://secret@x")], "{}", "datastore-endpoint mysql -> none: "),
            (&[], "{kube-controller-manager-arg: node-cidr-mask-size=25}", "node-cidr-mask-size 24 -> 25"),
        ] {
            let all = fixed(was, is);
            assert!(all[0].contains(word) && all[0].contains("`p1 destroy`, then `p1 up`"), "{all:?}");
        }
    }

    #[test]
    fn what_k3s_can_do_later_is_done_by_its_procedure() {
        let on = "{secrets-encryption: true}";
        let way = |version: &str| said(&[], on, version).concat();
        assert!(
            way("v1.34.4+k3s1")
                .contains("`p1 exec --root server -- /usr/local/bin/k3s secrets-encrypt enable`")
        );
        assert!(way("v1.36.3+k3s1").contains("secrets-encrypt enable"));
        assert!(way("v1.34.3+k3s1").contains("since v1.34.4+k3s1"));
        assert!(way("v1.31.9+k3s1").contains("since v1.32.12+k3s1"));
        assert_eq!(said(&[(PREPARED, "yes")], on, "v1.34.4+k3s1"), Vec::<String>::new());
        let off = said(&[("secrets-encryption", "true")], "{}", "v1.34.4+k3s1").concat();
        assert!(off.contains("true -> false") && off.contains("secrets-encrypt disable"), "{off}");
    }
}
