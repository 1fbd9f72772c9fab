//! The JSON Schema and the reader say the same.

use std::path::Path;

use serde_json::{Value as Json, json};

use super::super::{Init, digest, init, schema};
use super::{cluster, read};

/// As much of JSON Schema as the schema uses; anything else in it fails the test.
pub(super) fn valid(schema: &Json, value: &Json) -> bool {
    let Json::Object(rules) = schema else { panic!("{schema}") };
    rules.iter().all(|(rule, arg)| match rule.as_str() {
        "$schema" | "$defs" | "title" | "description" | "default" => true,
        // The one definition that there is.
        "$ref" => value.as_str().is_some_and(|s| s.contains("${")),
        "type" => match arg {
            Json::Array(types) => types.iter().any(|t| is(value, t)),
            one => is(value, one),
        },
        "enum" => arg.as_array().unwrap().contains(value),
        "minimum" => value.as_f64().is_none_or(|n| n >= arg.as_f64().unwrap()),
        "maximum" => value.as_f64().is_none_or(|n| n <= arg.as_f64().unwrap()),
        "minLength" => value.as_str().is_none_or(|s| s.chars().count() as u64 >= arg.as_u64().unwrap()),
        "maxLength" => value.as_str().is_none_or(|s| s.chars().count() as u64 <= arg.as_u64().unwrap()),
        "pattern" => {
            value.as_str().is_none_or(|s| regex::Regex::new(arg.as_str().unwrap()).unwrap().is_match(s))
        }
        "maxItems" => value.as_array().is_none_or(|a| a.len() as u64 <= arg.as_u64().unwrap()),
        "maxProperties" => value.as_object().is_none_or(|o| o.len() as u64 <= arg.as_u64().unwrap()),
        "items" => value.as_array().is_none_or(|a| a.iter().all(|v| valid(arg, v))),
        "required" => value
            .as_object()
            .is_none_or(|o| arg.as_array().unwrap().iter().all(|k| o.contains_key(k.as_str().unwrap()))),
        "properties" => value
            .as_object()
            .is_none_or(|o| o.iter().all(|(k, v)| arg.get(k).is_none_or(|schema| valid(schema, v)))),
        "additionalProperties" => value.as_object().is_none_or(|o| {
            let known = rules.get("properties");
            o.iter().filter(|(k, _)| known.is_none_or(|p| p.get(k).is_none())).all(|(_, v)| match arg {
                Json::Bool(allowed) => *allowed,
                schema => valid(schema, v),
            })
        }),
        "propertyNames" => value.as_object().is_none_or(|o| o.keys().all(|k| valid(arg, &json!(k)))),
        "dependentRequired" => value.as_object().is_none_or(|o| {
            arg.as_object().unwrap().iter().filter(|(k, _)| o.contains_key(*k)).all(|(_, needs)| {
                needs.as_array().unwrap().iter().all(|n| o.contains_key(n.as_str().unwrap()))
            })
        }),
        "anyOf" => arg.as_array().unwrap().iter().any(|s| valid(s, value)),
        "oneOf" => arg.as_array().unwrap().iter().filter(|s| valid(s, value)).count() == 1,
        unknown => panic!("the test does not know the rule {unknown}"),
    })
}

fn is(value: &Json, kind: &Json) -> bool {
    match kind.as_str().unwrap() {
        "object" => value.is_object(),
        "array" => value.is_array(),
        "string" => value.is_string(),
        "boolean" => value.is_boolean(),
        "integer" => value.is_u64() || value.is_i64(),
        "number" => value.is_number(),
        other => panic!("{other}"),
    }
}

/// A spec as an editor's YAML 1.2 parser would hand it to the schema.
pub(super) fn as_json(text: &str) -> Json {
    serde_json::to_value(serde_yaml::from_str::<serde_yaml::Value>(text).unwrap()).unwrap()
}

/// Every key there is, with a value that is not its default.
const FULL: &str = r#"
name: iot
provider: libvirt
box: debian-13
network: {cidr: 192.168.42.0/24, nics: 2}
nodes:
  - name: server
    role: server
    ip: 192.168.42.110
    cpus: 4
    memory: 4GiB
    disk: 40GiB
    disks: [50GiB, {size: 1TiB, serial: data}]
    hostname: wilS.lab.test
    labels: {a: b, example.org/tier: ""}
    taints: ["a=b:NoSchedule"]
    config: {debug: true}
  - {name: worker, role: agent, count: 2, memory: 2048, labels: [a=b]}
  - {name: far, ip: 10.1.2.3, provider: ssh, external_ip: 192.0.2.1, ssh: {host: far.lan, user: a, port: 2222, key: /etc/passwd, jump: "b@c", become: doas, host_key: known}}
  - {name: registry, role: none, memory: 256}
ssh: {user: b, sudo_password: {from: BECOME}, jump: d}
k3s:
  version: v1.34.1+k3s1
  endpoint: k3s.lan:7443
  token: {env: K3S_TOKEN}
  cni: none
  env: {CONTAINERD_HTTP_PROXY: "http://u:p@x:1", GOGC: 50}
  config: {write-kubeconfig-mode: "0644", v: 2, tls-san+: [a, 1]}
  server_config: {disable: [traefik]}
  worker_config: {kubelet-arg: x}
  registries: {mirrors: {"*": {endpoint: [https://example.org]}}}
  artifacts:
    binary: {url: https://example.org/k3s, sha256: SUM}
    installer: {url: file:///install.sh, sha256: SUM}
    images: [{url: http://example.org/i, sha256: SUM}]
provision:
  - {name: a, type: shell, path: /etc/passwd, args: [a], env: {A: b}, privileged: false, nodes: [worker], watch: [/]}
  - {name: b, type: shell, inline: x, when: after-k3s, options: {reboot: true}}
  - {name: c, type: file, source: /, destination: /}
  - {name: d, type: ansible, playbook: /etc/passwd, inventory_path: /, extra_vars: {a: b}, limit: a, become: true}
  - {name: e, type: ansible_local, playbook: a, provisioning_path: /a, groups: {a: [b]}}
  - {name: f, type: puppet, manifests_path: /, manifest_file: a, module_path: /, facter: {a: b}}
  - {name: g, type: chef_solo, cookbooks_path: /, roles_path: /, run_list: [a], recipes: [a], json: {a: b}}
  - {name: h, type: chef_apply, recipe: a}
  - {name: j, type: local, when: before-destroy, inline: x}
  - {name: k, type: shell, inline: x, when: after-cluster, run: always, reboot: true}
  - {name: i, type: salt, minion_config: /etc/passwd, run_highstate: true, masterless: true}
timeouts: {boot: 1h30m, ssh: 90s, install: 500ms, server_ready: 1m1s, node_ready: 2h, download: 24h, provision: 1h, rollout: 1s}
verify: {image: "example.org:5000/busybox:1.36"}
namespaces: [a, {name: b, labels: {pod-security.kubernetes.io/enforce: baseline}}]
manifests: [EXAMPLES/ingress/apps, {path: EXAMPLES/nginx/web.yaml, namespace: a, when: api}]
retry: {attempts: 1, backoff: 1s, max_backoff: 1s}
rollout: {workers: 2, drain: true}
disposable: true
proxy: {http: "http://proxy.lan:3128", https: "socks5://proxy.lan", no_proxy: [.lan]}
hosts: {registry.test: 10.11.0.4}
autostart: true
keep: true
bake: auto
keep_images: false
engine: vagrant
"#;

fn full() -> String {
    let examples = concat!(env!("CARGO_MANIFEST_DIR"), "/examples");
    FULL.replace("SUM", &"0f".repeat(32)).replace("EXAMPLES", examples)
}

#[test]
fn the_checked_in_schema_is_the_one_that_is_made() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/p1.schema.json");
    let made = format!("{}\n", serde_json::to_string_pretty(&schema()).unwrap());
    if std::env::var_os("P1_UPDATE_SCHEMA").is_some() {
        std::fs::write(&path, &made).unwrap();
    }
    let found = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(found == made, "out of date; run: p1 schema > examples/p1.schema.json (or P1_UPDATE_SCHEMA=1)");
}

#[test]
fn every_key_is_described_and_known_to_both() {
    /// All objects with keys of their own, with a name for messages.
    fn objects<'s>(schema: &'s Json, name: &str, out: &mut Vec<(String, &'s Json)>) {
        match schema {
            Json::Object(map) => {
                if map.contains_key("properties") {
                    out.push((name.to_owned(), schema));
                }
                for (key, value) in map {
                    objects(value, &format!("{name}.{key}"), out);
                }
            }
            Json::Array(items) => items.iter().for_each(|i| objects(i, name, out)),
            _ => {}
        }
    }
    let schema = schema();
    let mut found = Vec::new();
    objects(&schema, "", &mut found);
    assert_eq!(found.len(), 24, "{:?}", found.iter().map(|f| &f.0).collect::<Vec<_>>());
    for (name, object) in &found {
        assert_eq!(object["additionalProperties"], false, "{name}");
        for (key, about) in object["properties"].as_object().unwrap() {
            assert!(!about["description"].as_str().unwrap().is_empty(), "{name}.{key}");
        }
    }

    // The full spec has every key, both take it, and without its defaults it is another cluster.
    let full = full();
    let mut json = as_json(&full);
    assert!(valid(&schema, &json));
    let parsed = cluster(&full);
    assert!(read(&full).unwrap().warnings.is_empty());
    for section in [
        "/network",
        "/k3s",
        "/timeouts",
        "/retry",
        "/verify",
        "/nodes/0",
        "/nodes/2/ssh",
        "/k3s/artifacts",
        "",
    ] {
        let known = match section {
            "/nodes/0" => schema["properties"]["nodes"]["items"]["properties"].clone(),
            "/nodes/2/ssh" => schema["properties"]["ssh"]["properties"].clone(),
            "/k3s/artifacts" => schema["properties"]["k3s"]["properties"]["artifacts"]["properties"].clone(),
            "" => schema["properties"].clone(),
            s => schema["properties"][&s[1..]]["properties"].clone(),
        };
        for key in known.as_object().unwrap().keys() {
            let object = json.pointer_mut(section).unwrap().as_object_mut().unwrap();
            let Some(value) = object.remove(key) else {
                // Excluded by `version`, by the first node being alone and p1's own, by the files that are named, by
                // `autostart`, and by doas.
                assert!(
                    ["channel", "count", "dir", "libvirt", "provider", "ssh", "external_ip", "sudo_password"]
                        .contains(&key.as_str()),
                    "{section}/{key}"
                );
                continue;
            };
            // Without it: something else, or nothing at all. A key that is read and then forgotten fails here.
            if let Ok(less) = read(&json.to_string()) {
                assert_ne!(digest(&less.cluster), digest(&parsed), "{section}/{key}");
            }
            json.pointer_mut(section).unwrap()[key] = value;
        }
    }
    let own =
        "name: a\nlibvirt: {uri: qemu:///session, bridge: br0}\nnodes: [{name: server, role: server}]\n";
    assert!(valid(&schema, &as_json(own)));
    assert_ne!(digest(&cluster(own)), digest(&cluster(&own.replace("br0", "br1"))));
}

#[test]
fn written_out_defaults_change_nothing() {
    fn defaults(schema: &Json) -> Json {
        let mut out = serde_json::Map::new();
        for (key, about) in schema["properties"].as_object().unwrap() {
            if let Some(default) = about.get("default") {
                out.insert(key.clone(), default.clone());
            } else if about.get("properties").is_some() && about.get("oneOf").is_none() {
                out.insert(key.clone(), defaults(about));
            }
        }
        out.into()
    }
    let mut spec = json!({"name": "demo", "nodes": [{"name": "s", "role": "server"}, {"name": "w"}]});
    let small = cluster(&spec.to_string());
    for (key, value) in defaults(&schema()).as_object().unwrap() {
        // For machines that exist already.
        if key == "ssh" {
            continue;
        }
        spec[key] = value.clone();
    }
    assert_eq!(spec["timeouts"].as_object().unwrap().len(), 8);
    spec["nodes"][1]["role"] =
        schema()["properties"]["nodes"]["items"]["properties"]["role"]["default"].clone();
    assert_eq!(digest(&cluster(&spec.to_string())), digest(&small));
}

#[test]
fn both_refuse_the_same_values() {
    let schema = schema();
    let json = as_json(&full());
    for (place, values) in [
        ("/name", json!(["", "A", "a_b", "-a", "a-", 3, null, ["a"], "x".repeat(64)])),
        ("/provider", json!(["", "Auto", 1, "vmware"])),
        (
            "/box",
            json!(["", "a/b", "-x", "x-", "A", 1, {}, {"path": "/x", "url": "https://x"}, {"url": "https://x"}]),
        ),
        (
            "/network",
            json!([[], "x", {"cidr": "x"}, {"cidr": "10.0.0.0/7"}, {"cidr": "10.0.0.0"}, {"nics": 3}]),
        ),
        ("/nodes", json!([{}, "x", [[]], [{}], [{"name": "a", "rolle": "server"}]])),
        ("/nodes/0/role", json!(["master", "Server", true])),
        ("/nodes/0/ip", json!(["1.2.3", "x", 1, "1.2.3.4/8", "::1"])),
        ("/nodes/0/hostname", json!(["", "a_b", "-a", "a.", "x".repeat(64), 1, "a..b"])),
        ("/hosts", json!([[], "x", {"a_b": "1.2.3.4"}, {"a": 1}, {"a": "b"}, {"a": ["1.2.3.4"]}])),
        ("/nodes/0/cpus", json!([0, 257, -1, 1.5, "2", true])),
        ("/nodes/0/memory", json!([0, 127, "2TB", "x", "GiB", 1.5, true, 5_000_000])),
        ("/nodes/0/labels", json!(["a=b", ["a"], {"a": 1}, {"a": {}}])),
        ("/nodes/0/taints", json!(["a:NoSchedule", ["a"], ["a:x"], [1], vec!["a:NoSchedule"; 101]])),
        ("/nodes/1/count", json!([-1, 251, "2", 1.5])),
        ("/k3s/version", json!(["1.34.1+k3s1", "v1.34", "v1.34.1", "v1.34.1+k3s", "v1.34.1-x+k3s1", 1.34])),
        (
            "/k3s/config",
            json!([[], "x", {"a": {}}, {"a": [[]]}, {"a": null}, {"--a": 1}, {"a_b": 1}, {"A": 1}]),
        ),
        ("/k3s/env", json!([[], "x", {"a b": "x"}, {"1": "x"}, {"A": []}, {"A": null}])),
        (
            "/proxy",
            json!(["http://x", {"http": "proxy:3128"}, {"https": "ftp://x"}, {"no_proxy": "x"}, {"no_proxy": ["a,b"]}]),
        ),
        ("/k3s/registries", json!([[], "x"])),
        ("/k3s/artifacts", json!([[], {"binary": "k3s"}, {"images": {}}, {"binary": {"sha256": "x"}}])),
        (
            "/k3s/artifacts/binary",
            json!([{"url": "ftp://x", "sha256": "0f".repeat(32)}, {"url": "https://x", "sha256": "0"}]),
        ),
        (
            "/timeouts",
            json!([{"boot": 5}, {"boot": "5"}, {"boot": ""}, {"boot": "5x"}, {"boot": "5s1h"}, {"x": "5s"}]),
        ),
        ("/verify", json!([[], "x", {"image": ""}, {"image": 1}, {"image": "a b"}, {"image": "-x"}])),
        (
            "/namespaces",
            json!(["a", {}, ["A"], ["a_b"], [1], [{"name": "a", "x": 1}], [{"labels": {}}], [{"name": "a", "labels": ["a=b"]}]]),
        ),
        (
            "/manifests",
            json!(["a", {}, [""], [1], [{}], [{"path": ""}], [{"path": "x", "namespace": "A"}], [{"namespace": "a"}]]),
        ),
        ("/retry", json!([{"attempts": 0}, {"attempts": 21}, {"backoff": 1}, {"attempts": "3"}])),
    ] {
        for value in values.as_array().unwrap() {
            let mut json = json.clone();
            *json.pointer_mut(place).unwrap() = value.clone();
            assert!(!valid(&schema, &json), "the schema takes {value} at {place}");
            assert!(read(&json.to_string()).is_err(), "the reader takes {value} at {place}");
        }
    }
}

#[test]
fn channels_too() {
    let channel = &schema()["properties"]["k3s"]["properties"]["channel"];
    for (value, good) in
        [("stable", true), ("v1.34", true), ("v1.34-testing", true), ("v1", false), ("x", false)]
    {
        assert_eq!(valid(channel, &json!(value)), good, "{value}");
        let spec = format!("name: d\nnodes: [{{name: s, role: server}}]\nk3s: {{channel: {value}}}\n");
        assert_eq!(read(&spec).is_ok(), good, "{value}");
    }
}

#[test]
fn a_new_spec_fits_its_schema() {
    assert!(valid(&schema(), &as_json(&init(&Init::default()))));
    insta::assert_snapshot!(init(&Init::default()));
}
