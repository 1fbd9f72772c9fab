//! How far a workload has come, and what keeps its pods, told from the API's objects.

use serde_json::Value;

/// How far it has come.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Progress {
    /// It runs as its object says.
    Done,
    /// Not yet: what it lacks.
    Waiting(String),
    /// It will not: why.
    Failed(String),
}

/// What keeps a pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodProblem {
    /// In words: `worker-1: container web: CrashLoopBackOff (it ended with exit code 1)`.
    pub text: String,
    /// The pod, and where it is: `web-1 on worker-1`.
    pub place: String,
    /// Its container, if one of them is the cause and has something to say in its log.
    pub container: Option<String>,
    /// That container was restarted: what it said is in the log before.
    pub crashed: bool,
    /// Of which kind it is.
    pub why: Why,
}

/// What is to be done about a problem depends on this.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Why {
    /// It has only begun.
    #[default]
    Begins,
    /// It runs, and is not ready yet.
    Runs,
    /// Its image is not there.
    Image,
    /// No node takes it.
    Room,
    /// A container ended, and is given another try.
    Ended,
    /// A container has ended more than once: it does so by itself, and says why in its log.
    Crashes,
    /// A container was killed for its memory limit.
    Memory,
    /// The namespace's quota does not allow it.
    Quota,
    /// In the cluster's words alone.
    Other,
}

/// What k3s' own controller installs with Helm, by a Job.
pub const CHART: &str = "HelmChart";

/// The path of the Job that installs a chart, as k3s-io/helm-controller names it.
pub fn chart_job(chart: &Value) -> String {
    let meta = &chart["metadata"];
    let of = |field: &str| super::segment(meta[field].as_str().unwrap_or_default());
    let named = chart["status"]["jobName"].as_str().map(super::segment);
    let job = named.unwrap_or_else(|| format!("helm-install-{}", of("name")));
    format!("/apis/batch/v1/namespaces/{}/jobs/{job}", of("namespace"))
}

/// The lists in which a chart's workloads are.
pub fn chart_lists(chart: &Value) -> [String; 3] {
    let target = chart["spec"]["targetNamespace"].as_str().filter(|t| !t.is_empty());
    let space = target.or(chart["metadata"]["namespace"].as_str()).unwrap_or_default();
    ["deployments", "statefulsets", "daemonsets"]
        .map(|kind| format!("/apis/apps/v1/namespaces/{}/{kind}", super::segment(space)))
}

/// Whether Helm has made the object for that chart.
pub fn is_of_chart(object: &Value, chart: &Value) -> bool {
    object["metadata"]["annotations"]["meta.helm.sh/release-name"] == chart["metadata"]["name"]
}

/// Whether objects of that kind roll out.
pub fn rolls_out(kind: &str) -> bool {
    matches!(kind, "Deployment" | "StatefulSet" | "DaemonSet" | "Job" | "Pod" | CHART)
}

/// How far an object has come, by its own word; objects of kinds that do not roll out are done.
/// As `kubectl rollout status` tells it (kubernetes, staging/src/k8s.io/kubectl/pkg/polymorphichelpers/rollout_status.go).
pub fn progress(object: &Value) -> Progress {
    let (spec, status) = (&object["spec"], &object["status"]);
    let n = |field: &str| status[field].as_u64().unwrap_or(0);
    let wanted = spec["replicas"].as_u64().unwrap_or(1);
    let seen = n("observedGeneration") >= object["metadata"]["generation"].as_u64().unwrap_or(0);
    let of = |have: u64, all: u64, what: &str| Progress::Waiting(format!("{have} of {all} pods {what}"));
    match object["kind"].as_str().unwrap_or_default() {
        "Deployment" | "StatefulSet" | "DaemonSet" if !seen => {
            Progress::Waiting("the cluster has not looked at it yet".into())
        }
        "Deployment" => {
            let given_up =
                condition(object, "Progressing").filter(|c| c["reason"] == "ProgressDeadlineExceeded");
            let available = n("availableReplicas");
            if n("updatedReplicas") < wanted {
                if given_up.is_some() {
                    return Progress::Failed(format!(
                        "{} of {wanted} pods are up to date",
                        n("updatedReplicas")
                    ));
                }
                of(n("updatedReplicas"), wanted, "are up to date")
            } else if n("replicas") > n("updatedReplicas") {
                of(n("updatedReplicas"), n("replicas"), "are up to date; the others are to go")
            } else if available < wanted {
                match given_up {
                    Some(_) => Progress::Failed(format!("{available} of {wanted} pods are available")),
                    None => of(available, wanted, "are available"),
                }
            } else {
                Progress::Done
            }
        }
        "StatefulSet" => {
            let partition = spec["updateStrategy"]["rollingUpdate"]["partition"].as_u64().unwrap_or(0);
            let rolling = spec["updateStrategy"]["type"] != "OnDelete";
            if n("readyReplicas") < wanted {
                of(n("readyReplicas"), wanted, "are ready")
            } else if rolling && n("updatedReplicas") < wanted.saturating_sub(partition) {
                of(n("updatedReplicas"), wanted - partition, "are up to date")
            } else {
                Progress::Done
            }
        }
        "DaemonSet" => {
            let wanted = n("desiredNumberScheduled");
            if spec["updateStrategy"]["type"] != "OnDelete" && n("updatedNumberScheduled") < wanted {
                of(n("updatedNumberScheduled"), wanted, "are up to date")
            } else if n("numberAvailable") < wanted {
                of(n("numberAvailable"), wanted, "are available")
            } else {
                Progress::Done
            }
        }
        "Job" => {
            let says = |kind: &str| condition(object, kind).filter(|c| c["status"] == "True");
            if says("Complete").is_some() || spec["suspend"] == true {
                Progress::Done
            } else if let Some(failed) = says("Failed") {
                Progress::Failed(words(failed, "it failed"))
            } else {
                Progress::Waiting(format!(
                    "{} of {} pods have succeeded",
                    n("succeeded"),
                    spec["completions"].as_u64().unwrap_or(1)
                ))
            }
        }
        // Its job and its workloads say more.
        CHART => match condition(object, "Failed").filter(|c| c["status"] == "True") {
            Some(failed) => Progress::Failed(words(failed, "it failed")),
            None => Progress::Done,
        },
        "Pod" => match status["phase"].as_str().unwrap_or("Pending") {
            "Succeeded" => Progress::Done,
            "Failed" => Progress::Failed(words(status, "it failed")),
            _ if condition(object, "Ready").is_some_and(|c| c["status"] == "True") => Progress::Done,
            phase => Progress::Waiting(format!("it is {phase}")),
        },
        _ => Progress::Done,
    }
}

/// The selector of a workload's pods, as a request takes it; none where the object has no such thing.
pub fn selector(object: &Value) -> Option<String> {
    let selector = &object["spec"]["selector"];
    let mut terms: Vec<String> = Vec::new();
    for (key, value) in selector["matchLabels"].as_object().into_iter().flatten() {
        terms.push(format!("{key}={}", value.as_str().unwrap_or_default()));
    }
    for rule in selector["matchExpressions"].as_array().into_iter().flatten() {
        let key = rule["key"].as_str().unwrap_or_default();
        let values: Vec<_> =
            rule["values"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
        terms.push(match rule["operator"].as_str().unwrap_or_default() {
            "In" => format!("{key} in ({})", values.join(",")),
            "NotIn" => format!("{key} notin ({})", values.join(",")),
            "DoesNotExist" => format!("!{key}"),
            _ => key.to_owned(),
        });
    }
    (!terms.is_empty()).then(|| super::segment(&terms.join(",")))
}

/// What keeps a pod from being ready; none if nothing does.
pub fn pod_problem(pod: &Value) -> Option<PodProblem> {
    let status = &pod["status"];
    let place = pod["spec"]["nodeName"].as_str().map_or(String::new(), |node| format!(" on {node}"));
    let name = pod["metadata"]["name"].as_str().unwrap_or_default();
    let told = |text: String, container: Option<&Value>, crashed: bool, why: Why| {
        let container = container.and_then(|c| c["name"].as_str()).map(str::to_owned);
        let place = format!("{name}{place}");
        Some(PodProblem { text: format!("{place}: {text}"), place, container, crashed, why })
    };
    if condition(pod, "Ready").is_some_and(|c| c["status"] == "True") || status["phase"] == "Succeeded" {
        return None;
    }
    if let Some(c) = condition(pod, "PodScheduled").filter(|c| c["status"] == "False") {
        return told(format!("no node takes it: {}", words(c, "no reason is given")), None, false, Why::Room);
    }
    let all = ["initContainerStatuses", "containerStatuses"];
    let containers = || all.iter().flat_map(|key| status[*key].as_array().into_iter().flatten());
    for c in containers() {
        let name = c["name"].as_str().unwrap_or_default();
        let last = &c["lastState"]["terminated"];
        if let Some(reason) = c["state"]["waiting"]["reason"].as_str() {
            if matches!(reason, "ContainerCreating" | "PodInitializing") {
                continue;
            }
            let crashed = last.is_object();
            let said = c["state"]["waiting"]["message"].as_str().map(one_line).filter(|m| !m.is_empty());
            // The back-off's own message has nothing but the pod's name.
            let said = if crashed { Some(ended(last)) } else { said };
            let said = said.map_or(String::new(), |s| format!(" ({s})"));
            let why = match reason {
                "ImagePullBackOff"
                | "ErrImagePull"
                | "InvalidImageName"
                | "ErrImageNeverPull"
                | "ImageInspectError"
                | "RegistryUnavailable" => Why::Image,
                _ if crashed => crash(c, last),
                _ => Why::Other,
            };
            return told(format!("container {name}: {reason}{said}"), Some(c), crashed, why);
        }
        let now = &c["state"]["terminated"];
        if now.is_object() && now["exitCode"] != 0 {
            return told(format!("container {name} {}", ended(now)), Some(c), false, crash(c, now));
        }
    }
    if let Some(c) = containers().find(|c| c["state"]["running"].is_object() && c["ready"] != true) {
        let name = c["name"].as_str().unwrap_or_default();
        let last = &c["lastState"]["terminated"];
        // Between two ends: it runs again, and what it said is in the log before.
        if last.is_object() && crash(c, last) != Why::Ended {
            let text = format!("container {name} runs again and is not ready ({})", ended(last));
            return told(text, Some(c), true, crash(c, last));
        }
        return told(format!("container {name} runs and is not ready"), Some(c), false, Why::Runs);
    }
    match status["phase"].as_str().unwrap_or("Pending") {
        "Failed" => told(words(status, "it failed"), None, false, Why::Other),
        "Pending" if status["containerStatuses"].is_null() => {
            told("not scheduled on the node yet".into(), None, false, Why::Begins)
        }
        "Pending" => told("creating containers".into(), None, false, Why::Begins),
        _ => told("it is not ready".into(), None, false, Why::Other),
    }
}

/// Why the cluster does not make a pod, by the words of its event (kubernetes, plugin/pkg/admission/resourcequota).
pub fn refused(message: &str) -> Why {
    if message.contains("exceeded quota") { Why::Quota } else { Why::Other }
}

/// What to think of a container that ended: the first end may be for something that was not there yet.
fn crash(container: &Value, end: &Value) -> Why {
    let restarts = container["restartCount"].as_u64().unwrap_or(0);
    let down = !container["state"]["running"].is_object();
    match end["reason"].as_str() {
        Some("OOMKilled") => Why::Memory,
        _ if restarts + u64::from(down) >= 2 => Why::Crashes,
        _ => Why::Ended,
    }
}

/// How a container ended.
fn ended(state: &Value) -> String {
    let code = state["exitCode"].as_i64().unwrap_or(0);
    match state["reason"].as_str() {
        Some("OOMKilled") => "it was killed for its memory limit".to_owned(),
        Some(reason) if !matches!(reason, "Error" | "Completed") => {
            format!("it ended with exit code {code}: {reason}")
        }
        _ => format!("it ended with exit code {code}"),
    }
}

/// The condition of that type.
fn condition<'a>(object: &'a Value, kind: &str) -> Option<&'a Value> {
    object["status"]["conditions"].as_array()?.iter().find(|c| c["type"] == kind)
}

/// What a condition says: its message, else its reason.
fn words(condition: &Value, otherwise: &str) -> String {
    let said = ["message", "reason"].iter().filter_map(|key| condition[*key].as_str()).map(one_line);
    said.into_iter().find(|text| !text.is_empty()).unwrap_or_else(|| otherwise.to_owned())
}

fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_chart_is_its_job_and_what_helm_made_for_it() {
        let mut chart =
            json!({"kind": "HelmChart", "metadata": {"name": "web", "namespace": "kube-system"}, "spec": {}});
        assert_eq!(chart_job(&chart), "/apis/batch/v1/namespaces/kube-system/jobs/helm-install-web");
        assert_eq!(chart_lists(&chart)[1], "/apis/apps/v1/namespaces/kube-system/statefulsets");
        chart["spec"]["targetNamespace"] = "shop".into();
        chart["status"] = json!({"jobName": "helm-delete-web"});
        assert!(chart_job(&chart).ends_with("/jobs/helm-delete-web"));
        assert!(chart_lists(&chart)[0].contains("/shop/"));
        let made = |name: &str| json!({"metadata": {"annotations": {"meta.helm.sh/release-name": name}}});
        assert!(is_of_chart(&made("web"), &chart) && !is_of_chart(&made("other"), &chart));
        assert!(!is_of_chart(&json!({}), &chart));
        assert_eq!(progress(&chart), Progress::Done);
        chart["status"]["conditions"] =
            json!([{"type": "Failed", "status": "True", "reason": "x", "message": "no chart"}]);
        assert!(matches!(progress(&chart), Progress::Failed(why) if why.contains("no chart")));
    }

    #[test]
    fn a_deployment_is_done_when_new_pods_serve_and_old_ones_are_gone() {
        let of = |status: Value| {
            progress(
                &json!({"kind": "Deployment", "metadata": {"generation": 2}, "spec": {"replicas": 3}, "status": status}),
            )
        };
        let waits = |text: &str| Progress::Waiting(text.into());
        assert_eq!(of(json!({"observedGeneration": 1})), waits("the cluster has not looked at it yet"));
        assert_eq!(
            of(json!({"observedGeneration": 2, "updatedReplicas": 1})),
            waits("1 of 3 pods are up to date")
        );
        let old =
            json!({"observedGeneration": 2, "updatedReplicas": 3, "replicas": 4, "availableReplicas": 4});
        assert_eq!(of(old), waits("3 of 4 pods are up to date; the others are to go"));
        let mut status =
            json!({"observedGeneration": 2, "updatedReplicas": 3, "replicas": 3, "availableReplicas": 2});
        assert_eq!(of(status.clone()), waits("2 of 3 pods are available"));
        status["conditions"] =
            json!([{"type": "Progressing", "status": "False", "reason": "ProgressDeadlineExceeded"}]);
        assert_eq!(of(status.clone()), Progress::Failed("2 of 3 pods are available".into()));
        status["availableReplicas"] = json!(3);
        assert_eq!(of(status), Progress::Done);
    }

    #[test]
    fn a_quota_that_is_used_up_is_told_from_other_refusals() {
        let used = r#"pods "web-1" is forbidden: exceeded quota: small, requested: pods=1, used: pods=1, limited: pods=1"#;
        assert_eq!(refused(used), Why::Quota);
        assert_eq!(
            refused(r#"pods "web-1" is forbidden: violates PodSecurity "restricted:latest""#),
            Why::Other
        );
    }

    #[test]
    fn other_kinds_by_their_own_rules() {
        let set = |status: Value, spec: Value| {
            progress(&json!({"kind": "StatefulSet", "spec": spec, "status": status}))
        };
        assert_eq!(
            set(json!({"readyReplicas": 2, "updatedReplicas": 2}), json!({"replicas": 2})),
            Progress::Done
        );
        let partition = json!({"replicas": 2, "updateStrategy": {"rollingUpdate": {"partition": 1}}});
        assert_eq!(set(json!({"readyReplicas": 2, "updatedReplicas": 1}), partition), Progress::Done);
        assert!(matches!(set(json!({"readyReplicas": 1}), json!({"replicas": 2})), Progress::Waiting(_)));
        let daemon = json!({"kind": "DaemonSet", "status": {"desiredNumberScheduled": 2, "updatedNumberScheduled": 2, "numberAvailable": 1}});
        assert_eq!(progress(&daemon), Progress::Waiting("1 of 2 pods are available".into()));
        let job = |kind: &str| json!({"kind": "Job", "status": {"conditions": [{"type": kind, "status": "True", "message": "too often"}]}});
        assert_eq!(progress(&job("Complete")), Progress::Done);
        assert_eq!(progress(&job("Failed")), Progress::Failed("too often".into()));
        assert_eq!(progress(&json!({"kind": "ConfigMap"})), Progress::Done);
    }

    #[test]
    fn a_pods_problem_is_told_with_its_cause() {
        let of = |status: Value| {
            pod_problem(
                &json!({"metadata": {"name": "web-1"}, "spec": {"nodeName": "worker"}, "status": status}),
            )
        };
        let waiting = |reason: &str, message: &str, last: Value| {
            json!({"phase": "Pending", "containerStatuses": [{"name": "web", "lastState": last,
                "state": {"waiting": {"reason": reason, "message": message}}}]})
        };
        let text = |status: Value| of(status).unwrap().text;
        assert_eq!(
            text(waiting("ImagePullBackOff", "Back-off pulling\nimage \"x\"", json!({}))),
            "web-1 on worker: container web: ImagePullBackOff (Back-off pulling image \"x\")"
        );
        let last = json!({"terminated": {"exitCode": 3, "reason": "Error"}});
        let crash = of(waiting("CrashLoopBackOff", "back-off 10s", last)).unwrap();
        assert!(crash.crashed && crash.container.as_deref() == Some("web"));
        assert!(crash.text.ends_with("CrashLoopBackOff (it ended with exit code 3)"), "{}", crash.text);
        let oom = json!({"terminated": {"exitCode": 137, "reason": "OOMKilled"}});
        assert!(text(waiting("CrashLoopBackOff", "", oom)).contains("memory limit"));
        let unschedulable = json!({"phase": "Pending", "conditions": [{"type": "PodScheduled", "status": "False",
            "reason": "Unschedulable", "message": "0/2 nodes are available"}]});
        assert!(text(unschedulable).ends_with("no node takes it: 0/2 nodes are available"));
        assert_eq!(of(waiting("InvalidImageName", "x", json!({}))).unwrap().why, Why::Image);
        // Only from its second end on a container ends by itself.
        let ends = |restarts: u64, state: Value| {
            let last = json!({"terminated": {"exitCode": 1, "reason": "Error"}});
            let all = json!([{"name": "web", "restartCount": restarts, "ready": false, "state": state, "lastState": last}]);
            of(json!({"phase": "Running", "containerStatuses": all})).unwrap().why
        };
        let back_off = || json!({"waiting": {"reason": "CrashLoopBackOff"}});
        assert_eq!([ends(0, back_off()), ends(1, back_off())], [Why::Ended, Why::Crashes]);
        let runs = || json!({"running": {}});
        assert_eq!([ends(1, runs()), ends(2, runs())], [Why::Runs, Why::Crashes]);
        let probe = json!({"phase": "Running", "containerStatuses": [{"name": "web", "ready": false, "state": {"running": {}}}]});
        assert!(text(probe).ends_with("runs and is not ready"));
        assert_eq!(
            of(json!({"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}]})),
            None
        );
    }

    #[test]
    fn selectors_are_written_as_requests_take_them() {
        let object = json!({"spec": {"selector": {"matchLabels": {"app": "web"},
            "matchExpressions": [{"key": "tier", "operator": "In", "values": ["a", "b"]}, {"key": "x", "operator": "DoesNotExist"}]}}});
        assert_eq!(selector(&object).unwrap(), "app%3Dweb%2Ctier%20in%20%28a%2Cb%29%2C%21x");
        assert_eq!(selector(&json!({"spec": {}})), None);
    }
}
