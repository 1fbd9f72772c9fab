//! The few fields that p1 reads of the API's objects (core/v1). All optional when read, as a node
//! that has just registered has hardly any. Pure: the client asks.

use std::collections::BTreeMap;
use std::net::IpAddr;

use jiff::Timestamp;
use serde::Deserialize;

use super::Error;

/// A Node object, as far as p1 looks.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NodeStatus {
    /// `metadata.name`.
    pub name: String,
    /// The condition `Ready` is `True`.
    pub ready: bool,
    /// That condition's reason, e.g. `KubeletNotReady`; `NodeStatusNeverUpdated` stands for none yet.
    pub reason: String,
    /// That condition's message, e.g. `container runtime network not ready: …`.
    pub message: String,
    /// The kubelet's last word. A Ready node reports at least every five minutes
    /// (`nodeStatusReportFrequency`); its heart beats in leases in between.
    pub heartbeat: Option<Timestamp>,
    /// The first address of type InternalIP.
    pub internal_ip: Option<IpAddr>,
    /// The kubelet's version, which k3s sets to its own: `v1.34.1+k3s1`.
    pub version: String,
    /// Cordoned.
    pub unschedulable: bool,
    /// From the labels `node-role.kubernetes.io/…`; workers of k3s have none.
    pub roles: Vec<String>,
    /// All labels.
    pub labels: BTreeMap<String, String>,
    /// All taints: `key=value:Effect`, or `key:Effect`.
    pub taints: Vec<String>,
    /// `/etc/machine-id` of the machine that registered.
    pub machine_id: String,
    /// The kernel's boot id of then: another one after a restart.
    pub boot_id: String,
}

/// An event of type Warning.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Warning {
    /// When it was seen last.
    pub at: Option<Timestamp>,
    /// Where the object is; empty for nodes.
    pub namespace: String,
    /// `Pod/coredns-5d78c9869d-abcde`.
    pub object: String,
    /// E.g. `FailedScheduling`.
    pub reason: String,
    /// In words, on one line.
    pub message: String,
    /// How often.
    pub count: u64,
}

#[derive(Deserialize)]
struct List<T> {
    // `null` in place of an empty list is allowed.
    items: Option<Vec<T>>,
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Meta {
    name: String,
    namespace: String,
    labels: Option<serde_json::Map<String, serde_json::Value>>,
    creation_timestamp: Option<Timestamp>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Node {
    metadata: Meta,
    spec: Spec,
    status: Status,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Spec {
    unschedulable: bool,
    taints: Option<Vec<Taint>>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Taint {
    key: String,
    value: String,
    effect: String,
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Status {
    conditions: Option<Vec<Condition>>,
    addresses: Option<Vec<Address>>,
    node_info: Info,
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Condition {
    #[serde(rename = "type")]
    kind: String,
    status: String,
    reason: String,
    message: String,
    last_heartbeat_time: Option<Timestamp>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Address {
    #[serde(rename = "type")]
    kind: String,
    address: String,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Info {
    #[serde(rename = "kubeletVersion")]
    kubelet_version: String,
    #[serde(rename = "machineID")]
    machine_id: String,
    #[serde(rename = "bootID")]
    boot_id: String,
}

impl Taint {
    fn text(self) -> String {
        let value = if self.value.is_empty() { String::new() } else { format!("={}", self.value) };
        format!("{}{value}:{}", self.key, self.effect)
    }
}

fn parse<'a, T: Deserialize<'a>>(json: &'a str) -> Result<T, Error> {
    serde_json::from_str(json).map_err(|e| Error::Answer(e.to_string()))
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Lease {
    metadata: Meta,
    spec: LeaseSpec,
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct LeaseSpec {
    renew_time: Option<String>,
}

/// From the leases of `kube-node-lease`, which are named after their nodes.
pub(super) fn leases(json: &str) -> Result<BTreeMap<String, String>, Error> {
    let list: List<Lease> = parse(json)?;
    let leases = list.items.unwrap_or_default().into_iter();
    Ok(leases.filter_map(|l| Some((l.metadata.name, l.spec.renew_time?))).collect())
}

/// From `GET /api/v1/nodes`.
pub fn nodes(json: &str) -> Result<Vec<NodeStatus>, Error> {
    let list: List<Node> = parse(json)?;
    Ok(list.items.unwrap_or_default().into_iter().map(node).collect())
}

fn node(node: Node) -> NodeStatus {
    let conditions = node.status.conditions.unwrap_or_default();
    let ready = conditions.into_iter().find(|c| c.kind == "Ready").unwrap_or_else(|| Condition {
        reason: "NodeStatusNeverUpdated".to_owned(),
        message: "the kubelet has not reported yet".to_owned(),
        ..Condition::default()
    });
    let addresses = node.status.addresses.unwrap_or_default();
    let ip = addresses.iter().find(|a| a.kind == "InternalIP").and_then(|a| a.address.parse().ok());
    let labels = node.metadata.labels.unwrap_or_default();
    let taints = node.spec.taints.unwrap_or_default();
    let roles = labels.keys().filter_map(|k| k.strip_prefix("node-role.kubernetes.io/"));
    NodeStatus {
        name: node.metadata.name,
        ready: ready.status == "True",
        reason: ready.reason,
        message: ready.message,
        heartbeat: ready.last_heartbeat_time,
        internal_ip: ip,
        version: node.status.node_info.kubelet_version,
        unschedulable: node.spec.unschedulable,
        roles: roles.map(str::to_owned).collect(),
        labels: labels.iter().filter_map(|(k, v)| Some((k.clone(), v.as_str()?.to_owned()))).collect(),
        taints: taints.into_iter().map(Taint::text).collect(),
        machine_id: node.status.node_info.machine_id,
        boot_id: node.status.node_info.boot_id,
    }
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct RawEvent {
    metadata: Meta,
    involved_object: Object,
    reason: String,
    message: String,
    #[serde(rename = "type")]
    kind: String,
    count: Option<u64>,
    last_timestamp: Option<Timestamp>,
    event_time: Option<Timestamp>,
    series: Option<Series>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Object {
    kind: String,
    name: String,
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Series {
    count: u64,
    last_observed_time: Option<Timestamp>,
}

/// From `GET /api/v1/events`: the warnings, newest last, at most `limit` of the newest.
pub fn warnings(json: &str, limit: usize) -> Result<Vec<Warning>, Error> {
    let list: List<RawEvent> = parse(json)?;
    let events = list.items.unwrap_or_default().into_iter().filter(|e| e.kind == "Warning");
    let mut all: Vec<Warning> = events.map(warning).collect();
    all.sort_by_key(|w| w.at);
    Ok(all.split_off(all.len().saturating_sub(limit)))
}

fn warning(event: RawEvent) -> Warning {
    // Two generations of events fill different fields (core/v1 and events.k8s.io/v1).
    let series = event.series.unwrap_or_default();
    let at = event.last_timestamp.or(series.last_observed_time).or(event.event_time);
    Warning {
        at: at.or(event.metadata.creation_timestamp),
        namespace: event.metadata.namespace,
        object: format!("{}/{}", event.involved_object.kind, event.involved_object.name),
        reason: event.reason,
        message: event.message.split_whitespace().collect::<Vec<_>>().join(" "),
        count: event.count.unwrap_or(0).max(series.count).max(1),
    }
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Refusal {
    kind: String,
    message: String,
}

/// What an error answer says: a `Status` object's message, the failing checks of `/readyz`, or the
/// first line.
pub fn refusal(body: &str) -> String {
    if let Ok(status) = serde_json::from_str::<Refusal>(body)
        && status.kind == "Status"
        && !status.message.is_empty()
    {
        return status.message;
    }
    let failing = body.lines().filter_map(|l| l.strip_prefix("[-]"));
    let failing: Vec<_> = failing.map(|l| l.split(" failed").next().unwrap_or(l)).collect();
    match failing.len() {
        0 => {}
        // A server that has just come up fails twenty of them.
        n @ 5.. => return format!("failing checks: {} and {} more", failing[..3].join(", "), n - 3),
        _ => return format!("failing checks: {}", failing.join(", ")),
    }
    let words: Vec<_> = body.split_whitespace().collect();
    if words.is_empty() {
        "it gives no reason".to_owned()
    } else {
        words.join(" ").chars().take(200).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_is_read_from_its_object() {
        let json = r#"{"kind":"NodeList","apiVersion":"v1","metadata":{"resourceVersion":"5"},"items":[
          {"metadata":{"name":"server","uid":"u1","labels":{"node-role.kubernetes.io/control-plane":"true",
            "kubernetes.io/os":"linux"},"creationTimestamp":"2026-11-22T06:00:00Z"},
           "spec":{"podCIDR":"10.42.0.0/24","unschedulable":true,
             "taints":[{"key":"a","value":"b","effect":"NoSchedule"},{"key":"c","effect":"NoExecute"}]},
           "status":{"capacity":{"cpu":"2"},
            "conditions":[
             {"type":"MemoryPressure","status":"False","reason":"KubeletHasSufficientMemory"},
             {"type":"DiskPressure","status":"True"},
             {"type":"Ready","status":"True","lastHeartbeatTime":"2026-11-22T06:05:00Z",
              "lastTransitionTime":"2026-11-22T06:01:00Z","reason":"KubeletReady","message":"ready"}],
            "addresses":[{"type":"Hostname","address":"server"},{"type":"InternalIP","address":"192.168.56.110"},
             {"type":"InternalIP","address":"fd00::1"}],
            "nodeInfo":{"machineID":"abc","kubeletVersion":"v1.34.1+k3s1"},"images":[{"names":["x"]}]}},
          {"metadata":{"name":"new","labels":null},"spec":{},"status":{"nodeInfo":{}}}]}"#;
        let nodes = nodes(json).unwrap();
        let first = &nodes[0];
        assert!(first.ready && first.unschedulable);
        assert_eq!(first.internal_ip, Some("192.168.56.110".parse().unwrap()));
        assert_eq!((first.version.as_str(), first.machine_id.as_str()), ("v1.34.1+k3s1", "abc"));
        assert_eq!(first.taints, ["a=b:NoSchedule", "c:NoExecute"]);
        assert_eq!(first.labels["kubernetes.io/os"], "linux");
        assert_eq!(first.roles, ["control-plane"]);
        assert_eq!(first.heartbeat, Some("2026-11-22T06:05:00Z".parse().unwrap()));
        assert!(!nodes[1].ready && nodes[1].reason == "NodeStatusNeverUpdated");
        assert!(super::nodes(r#"{"items":null}"#).unwrap().is_empty());
        assert!(matches!(super::nodes("<html>"), Err(Error::Answer(_))));
    }

    #[test]
    fn the_newest_warnings_come_last() {
        let event = |at: &str, name: &str, kind: &str| {
            format!(
                r#"{{"metadata":{{"namespace":"kube-system","creationTimestamp":"2026-11-22T05:00:00Z"}},
                "involvedObject":{{"kind":"Pod","name":"{name}"}},"type":"{kind}","reason":"Failed",
                "message":"a\nb","count":null,"lastTimestamp":{at},"eventTime":null}}"#
            )
        };
        let all = [
            event(r#""2026-11-22T06:02:00Z""#, "late", "Warning"),
            event(r#""2026-11-22T06:01:00Z""#, "early", "Warning"),
            event("null", "first", "Warning"),
            event(r#""2026-11-22T06:03:00Z""#, "fine", "Normal"),
        ];
        let warnings = warnings(&format!(r#"{{"items":[{}]}}"#, all.join(",")), 2).unwrap();
        let names: Vec<_> = warnings.iter().map(|w| w.object.as_str()).collect();
        assert_eq!(names, ["Pod/early", "Pod/late"]);
        assert_eq!((warnings[1].message.as_str(), warnings[1].count), ("a b", 1));
    }

    #[test]
    fn refusals_are_said_shortly() {
        let status =
            r#"{"kind":"Status","apiVersion":"v1","status":"Failure","message":"Unauthorized","code":401}"#;
        assert_eq!(refusal(status), "Unauthorized");
        let readyz = "[+]ping ok\n[-]etcd failed: reason withheld\n[-]poststarthook/rbac/bootstrap-roles failed: x\nreadyz check failed\n";
        assert_eq!(refusal(readyz), "failing checks: etcd, poststarthook/rbac/bootstrap-roles");
        let many = (0..20).map(|n| format!("[-]check{n} failed: x\n")).collect::<String>();
        assert_eq!(refusal(&many), "failing checks: check0, check1, check2 and 17 more");
        assert_eq!(refusal("\n starting\nmore"), "starting more");
        assert_eq!(refusal(""), "it gives no reason");
    }
}
