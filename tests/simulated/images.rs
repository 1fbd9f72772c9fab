//! Images that outlive their cluster, among simulated machines: containerd is the stand-in's records of names, digests and blobs.

use std::fs;
use std::path::Path;

use p1::internals::event::Outcome;
use serde_json::{Value, json};

use super::run::began;
use super::sim::{Sim, spec};

const WEB: &str = "apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: web}\nspec: {replicas: 2, selector: {matchLabels: {app: web}}, \
    template: {metadata: {labels: {app: web}}, spec: {containers: [{name: web, image: 'reg.lab/web:1', imagePullPolicy: Always}]}}}\n";
const AGENT: &str = "/var/lib/rancher/k3s/agent";

/// A tar archive as docker wrote it before it knew OCI layouts.
pub fn saved(path: &Path, name: &str, layer: &[u8]) {
    let config = json!({"architecture": "amd64", "os": "linux", "rootfs": {"type": "layers"}}).to_string();
    let list = json!([{"Config": "c.json", "RepoTags": [name], "Layers": ["l.tar"]}]).to_string();
    let mut tar = tar::Builder::new(fs::File::create(path).unwrap());
    for (name, bytes) in [("l.tar", layer), ("c.json", config.as_bytes()), ("manifest.json", list.as_bytes())]
    {
        let mut header = tar::Header::new_gnu();
        header.set_size(bytes.len() as u64);
        header.set_mode(0o644);
        tar.append_data(&mut header, name, bytes).unwrap();
    }
    tar.finish().unwrap();
}

/// As if a node had pulled it: its blobs and its name. Its digest.
fn pulled(sim: &Sim, node: &str, name: &str, layer: &str) -> String {
    let put = |text: &str| {
        let script = format!(
            "dir={AGENT}/containerd/io.containerd.content.v1.content/blobs/sha256; mkdir -p $dir; printf %s '{text}' >$dir/new; \
             sum=$(sha256sum <$dir/new | cut -d' ' -f1); mv $dir/new $dir/$sum; printf %s $sum"
        );
        let sum = sim.node(node).sh(&script);
        json!({"digest": format!("sha256:{sum}"), "size": text.len()})
    };
    let (config, layer) = (put(r#"{"architecture":"amd64"}"#), put(layer));
    let manifest = put(&json!({"schemaVersion": 2, "config": config, "layers": [layer]}).to_string());
    let digest = manifest["digest"].as_str().unwrap().to_owned();
    sim.node(node)
        .sh(&format!("echo '{name} oci {digest} 1 MiB linux/amd64 -' >>{AGENT}/containerd/standin-images"));
    digest
}

fn list(sim: &Sim) -> Vec<Value> {
    let out = sim.p1(&["-o", "json", "image", "list"]).exits(0).stdout();
    out.lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .filter(|v: &Value| v.get("image").is_some())
        .collect()
}

fn has(sim: &Sim, node: &str) -> String {
    sim.node(node).sh("k3s ctr images ls | tail -n +2 | sed '/^$/d' | cut -d' ' -f1,3,7")
}

#[track_caller]
fn detail(sim: &Sim, step: &str) -> String {
    match &sim.last().outcomes[step] {
        Outcome::Done { detail } => detail.clone().unwrap_or_default(),
        other => panic!("{step}: {other:?}"),
    }
}

#[test]
fn what_nodes_pulled_is_given_to_the_next_ones() {
    let sim = Sim::new(&spec(1, 1, "manifests: [web.yaml]\n"));
    fs::write(sim.at("web.yaml"), WEB).unwrap();
    sim.p1(&["up"]).exits(0);
    assert_eq!(detail(&sim, "cluster/collect"), "none was pulled");
    sim.p1(&["up"]).exits(0);
    assert_eq!(began(&sim.last()), [""; 0]);

    let web = pulled(&sim, "worker", "reg.lab/web:1", "layer of the web");
    let job = pulled(&sim, "server", "reg.lab/job:1", "layer of the job");
    // One whose blob is another: the node lies.
    pulled(&sim, "worker", "reg.lab/bad:1", "good");
    let blobs = format!("{AGENT}/containerd/io.containerd.content.v1.content/blobs/sha256");
    sim.node("worker")
        .sh(&format!("for f in {blobs}/*; do [ \"$(cat $f)\" != good ] || printf evil >$f; done"));
    sim.p1(&["--yes", "destroy"]).exits(0);
    let all = list(&sim);
    let names: Vec<&str> = all.iter().map(|i| i["image"].as_str().unwrap()).collect();
    assert_eq!(names, ["reg.lab/job:1", "reg.lab/web:1"], "{all:?}");
    assert_eq!([&all[0]["digest"], &all[1]["digest"]], [&job, &web]);
    assert_eq!([&all[0]["always"], &all[1]["always"]], [false, true]);
    let left = sim
        .sh("find home/.local/share/p1/images -perm /077; grep -rl evil home/.local/share/p1/images || true");
    assert_eq!(left, "");

    let up = sim.p1(&["--offline", "up"]).exits(0);
    assert!(up.stderr().contains("reg.lab/web:1"), "{}", up.stderr());
    assert_eq!(detail(&sim, "worker/images").split(',').next().unwrap(), "2 images");
    assert!(
        detail(&sim, "cluster/collect").ends_with("; a registry is asked all the same for reg.lab/web:1")
    );
    for node in ["server", "worker"] {
        assert_eq!(
            has(&sim, node),
            format!(
                "reg.lab/job:1 {job} io.cattle.k3s.pinned=pinned\nreg.lab/web:1 {web} io.cattle.k3s.pinned=pinned\n"
            )
        );
        assert!(
            !sim.node(node).sh(&format!("ls {AGENT}/images")).contains("p1-"),
            "the archive is left on {node}"
        );
    }
    assert_eq!(sim.sh("ls home/.local/share/p1/images"), "blobs\nindex.json\nlock\n");
    // What it was given is what it has: of use also to a library that was emptied.
    sim.p1(&["image", "prune", "--all"]).exits(0);
    sim.p1(&["status"]).exits(0);
    // A node that comes later.
    sim.p1(&["--yes", "replace", "worker"]).exits(0);
    assert_eq!(list(&sim).len(), 2);
    assert_eq!(has(&sim, "worker").lines().count(), 2);

    // Switched off, and gone.
    let off = format!("{}keep_images: false\n", spec(1, 1, "manifests: [web.yaml]\n"));
    sim.spec(&off);
    sim.p1(&["--yes", "replace", "worker"]).exits(0);
    assert_eq!(has(&sim, "worker"), "");
    sim.p1(&["image", "prune"]).exits(0);
    assert_eq!(list(&sim).len(), 2);
    let said = sim.p1(&["-o", "json", "image", "prune", "--all"]).exits(0).stdout();
    assert!(said.contains(r#""pruned":["reg.lab/job:1","reg.lab/web:1"]"#), "{said}");
    assert_eq!((list(&sim).len(), sim.sh("ls home/.local/share/p1/images/blobs")), (0, String::new()));
}

/// By what the kubelets report; what pods run is known from then on, also when machines go.
#[test]
fn nodes_are_not_asked_for_images_where_none_was_pulled() {
    let sim = Sim::new(&spec(1, 0, "manifests: [web.yaml]\n"));
    fs::write(sim.at("web.yaml"), WEB.replace(", imagePullPolicy: Always", "")).unwrap();
    sim.p1(&["up"]).exits(0);
    assert_eq!(detail(&sim, "cluster/collect"), "none that is not here");
    let index = fs::read_to_string(sim.at("home/.local/share/p1/images/index.json")).unwrap();
    let index: Value = serde_json::from_str(&index).unwrap();
    assert_ne!(index["clusters"]["sim"]["passed"].as_array().map(Vec::len), Some(0), "{index}");
}

#[test]
fn images_are_brought_along_and_go_where_they_are_missing() {
    let sim = Sim::new(&spec(1, 1, ""));
    saved(&sim.at("a.tar"), "reg.lab/a:1", b"layer of a");
    sim.sh("gzip -c a.tar >a.bin");
    saved(&sim.at("b.tar"), "b:2", b"layer of b");
    // Before there is a cluster.
    let said = sim.p1(&["image", "load", "a.bin"]).exits(0).stderr();
    assert!(said.contains("`p1 up` gives them to the nodes"), "{said}");
    sim.p1(&["up"]).exits(0);
    let given = |node: &str| {
        has(&sim, node).lines().map(|l| l.split(' ').next().unwrap().to_owned()).collect::<Vec<_>>()
    };
    assert_eq!([given("server"), given("worker")], [["reg.lab/a:1"], ["reg.lab/a:1"]]);

    sim.p1(&["image", "load", "b.tar", "a.tar"]).exits(0);
    assert!(detail(&sim, "worker/load").starts_with("1 of them"), "{}", detail(&sim, "worker/load"));
    assert_eq!(given("worker"), ["reg.lab/a:1", "docker.io/library/b:2"]);
    assert_eq!(sim.node("worker").sh("ls /var/lib/p1/next 2>/dev/null; true"), "");
    sim.p1(&["image", "load", "b.tar"]).exits(0);
    assert_eq!(detail(&sim, "worker/load"), "it has them");
    // What was loaded stays the cluster's, also when nodes are asked what they pulled.
    sim.p1(&["--yes", "replace", "worker"]).exits(0);
    assert_eq!(given("worker").len(), 2);

    // Out of docker, or podman where docker has none.
    for (program, text) in
        [("docker", "echo 'No such image' >&2; exit 1"), ("podman", "cp \"$SIM/c.tar\" \"$3\"")]
    {
        let text = format!("#!/bin/sh\nSIM={}\n{text}\n", sim.dir.path().display());
        fs::write(sim.at("bin").join(program), text).unwrap();
        sim.sh(&format!("chmod +x bin/{program}"));
    }
    saved(&sim.at("c.tar"), "localhost/c:latest", b"layer of c");
    sim.p1(&["-o", "json", "image", "load", "localhost/c"]).exits(0);
    assert_eq!(given("server").len(), 3);

    for (arg, code, words) in [
        ("cluster.yaml", 1, "cluster.yaml is no tar archive"),
        ("./none", 2, "neither a file nor the name of an image"),
    ] {
        let said = sim.p1(&["image", "load", arg]).exits(code).stderr();
        assert!(said.contains(words), "{said}");
    }
    saved(&sim.at("arm.tar"), "x:1", b"x");
    sim.sh("mkdir x; tar -C x -xf arm.tar; sed -i s/amd64/arm64/ x/c.json; tar -C x -cf arm.tar l.tar c.json manifest.json");
    let said = sim.p1(&["image", "load", "arm.tar"]).exits(2).stderr();
    assert!(said.contains("`docker.io/library/x:1` is not whole for amd64"), "{said}");
    sim.node("worker").power_off();
    sim.p1(&["image", "load", "c.tar"]).exits(0);
    sim.p1(&["up"]).exits(0);
    sim.p1(&["status"]).exits(0);
}
