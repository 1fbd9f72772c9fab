//! What p1 does with manifests: apply, define kinds, compare, build, remove; and what pods say.

mod support;

use serde_json::Value;
use support::*;

const CLAIM: &str = "apiVersion: apiextensions.k8s.io/v1\nkind: CustomResourceDefinition\nmetadata: {name: toys.example.org}\n\
    spec: {group: example.org, scope: Namespaced, names: {plural: toys, kind: Toy}, versions: [{name: v1, served: true, storage: true}]}\n";
const TOY: &str =
    "apiVersion: example.org/v1\nkind: Toy\nmetadata: {name: bear}\nspec: {fur: brown, eyes: 2}\n";
const WEB: &str = "apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: web}\nspec: {replicas: 2, selector: {matchLabels: {app: web}}, \
    template: {metadata: {labels: {app: web}}, spec: {containers: [{name: web, image: nginx}]}}}\n---\n\
    apiVersion: v1\nkind: Service\nmetadata: {name: web}\nspec: {selector: {app: web}, ports: [{port: 80}]}\n";

#[test]
fn manifests_are_applied_on_the_servers_side() {
    let (machine, port) = (Machine::new(), free_port());
    let _server = machine.server(port, "secret");
    machine.until_ready("server", "True");
    let apply = |name: &str, text: &str, more: &[&str]| {
        machine.write(name, text);
        let file = machine.path(name).display().to_string();
        let mut line = vec!["apply", "--server-side", "--force-conflicts", "--field-manager=p1", "-f", &file];
        line.extend(more);
        machine.kubectl(&line)
    };
    let said = |out: std::process::Output| {
        assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
        String::from_utf8(out.stdout).unwrap()
    };
    let early = apply("/toy.yaml", TOY, &[]);
    assert!(String::from_utf8_lossy(&early.stderr).contains("no matches for kind \"Toy\""));
    said(apply("/crd.yaml", CLAIM, &[]));
    machine.ask(&["wait", "--for=condition=Established", "crd/toys.example.org", "--timeout=20s"]);
    assert_eq!(said(apply("/toy.yaml", TOY, &[])), "toy.example.org/bear serverside-applied\n");

    // A field that is applied no more goes, another's stays.
    said(apply("/toy.yaml", &TOY.replace(", eyes: 2", ""), &[]));
    let get = |path: &str| -> Value { serde_json::from_str(&machine.ask(&["get", "--raw", path])).unwrap() };
    let toys = "/apis/example.org/v1/namespaces/default/toys";
    assert_eq!(get(&format!("{toys}/bear"))["spec"], serde_json::json!({"fur": "brown"}));
    let diff = machine.kubectl(&[
        "diff",
        "--server-side",
        "--field-manager=p1",
        "-f",
        &machine.path("/toy.yaml").display().to_string(),
    ]);
    assert_eq!((diff.status.code(), diff.stdout.len()), (Some(0), 0));
    machine.write("/toy.yaml", &TOY.replace("brown", "white"));
    let diff = machine.kubectl(&[
        "diff",
        "--server-side",
        "--field-manager=p1",
        "-f",
        &machine.path("/toy.yaml").display().to_string(),
    ]);
    assert_eq!(diff.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&diff.stdout).contains("example.org.v1.Toy.default.bear"));

    // A namespace that is missing, one that is not the object's, one of its own.
    let missing = apply("/web.yaml", WEB, &["-n", "shop"]);
    assert!(String::from_utf8_lossy(&missing.stderr).contains("namespaces \"shop\" not found"));
    machine.ask(&["create", "namespace", "shop"]);
    let other =
        apply("/toy2.yaml", &TOY.replace("name: bear", "name: bear, namespace: default"), &["-n", "shop"]);
    assert!(String::from_utf8_lossy(&other.stderr).contains("does not match the namespace"));
    said(apply("/web.yaml", WEB, &["-n", "shop"]));
    machine.ask(&["-n", "shop", "rollout", "status", "deployment/web", "--timeout=20s"]);
    until("both pods behind the service", || {
        let found = get("/api/v1/namespaces/shop/endpoints/web");
        (found["subsets"][0]["addresses"].as_array()?.len() == 2).then_some(())
    });
    assert!(
        get("/api/v1/namespaces/shop/services/web")["spec"]["clusterIP"]
            .as_str()
            .unwrap()
            .starts_with("10.43.")
    );

    // The kind goes with its definition, and its objects with it.
    machine.ask(&["delete", "crd", "toys.example.org"]);
    assert_eq!(machine.kubectl(&["get", "--raw", toys]).status.code(), Some(1));
}

#[test]
fn a_kustomization_is_built() {
    let machine = Machine::new();
    machine.write("/base/web.yaml", WEB);
    machine.write("/base/kustomization.yaml", "resources: [web.yaml]\n");
    machine.write(
        "/top/kustomization.yaml",
        "namespace: live\nnamePrefix: a-\nimages: [{name: nginx, newTag: \"1.28\"}]\nresources: [../base]\n",
    );
    let text = machine.ask(&["kustomize", &machine.path("/top").display().to_string()]);
    for word in ["name: a-web", "namespace: live", "image: nginx:1.28"] {
        assert!(text.contains(word), "{text}");
    }
    machine.write("/top/kustomization.yaml", "patches: []\n");
    let out = machine.kubectl(&["kustomize", &machine.path("/top").display().to_string()]);
    assert!(String::from_utf8_lossy(&out.stderr).contains("does not know `patches`"));
}

#[test]
fn a_container_that_ends_says_how() {
    let (machine, port) = (Machine::new(), free_port());
    machine.write("/etc/p1-standin/faults/crash", "nginx");
    let _server = machine.server(port, "secret");
    machine.until_ready("server", "True");
    machine.write("/web.yaml", WEB);
    machine.ask(&["apply", "-f", &machine.path("/web.yaml").display().to_string()]);
    let name = until("a pod that crashes", || {
        let pods: Value =
            serde_json::from_str(&machine.ask(&["get", "pods", "-l", "app=web", "-o", "json"])).unwrap();
        let pod = &pods["items"][0];
        let waiting = &pod["status"]["containerStatuses"][0];
        (waiting["state"]["waiting"]["reason"] == "CrashLoopBackOff"
            && waiting["lastState"]["terminated"]["exitCode"] == 1)
            .then(|| pod["metadata"]["name"].as_str().unwrap().to_owned())
    });
    let log =
        machine.ask(&["get", "--raw", &format!("/api/v1/namespaces/default/pods/{name}/log?previous=true")]);
    assert!(log.contains("exiting with 1"), "{log}");
    assert!(machine.ask(&["get", "events"]).contains("BackOff"));
    machine.remove("/etc/p1-standin/faults/crash");
    machine.ask(&["rollout", "status", "deployment/web", "--timeout=20s"]);
}
