//! `${NAME}` in values: what it becomes, what is said where it cannot, and that a secret of it is nowhere.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::path::Path;

use super::super::load::load;
use super::super::{Cluster, digest, made_of, schema, secrets};
use super::schema::{as_json, valid};

const SECRET: &str = "hunter2-hunter2-hunter2-hunter2-hunter2-hunter2-hunter2-hunter2-hunter2";

fn env(name: &str) -> Option<OsString> {
    let value = match name {
        "NAME" => "lab",
        "THREE" => "3",
        "ON" => "true",
        "VERSION" => "1.10",
        "EMPTY" => "",
        "PASSWORD" => SECRET,
        "FROM" => "environment",
        "BYTES" => return Some(OsString::from_vec(vec![0xff])),
        _ => return None,
    };
    Some(value.into())
}

/// Reads a spec that lies beside a file of variables.
fn read(text: &str, file: Option<&str>) -> Result<Cluster, String> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("cluster.yaml");
    std::fs::write(&path, text).unwrap();
    if let Some(file) = file {
        std::fs::write(dir.path().join(".env"), file).unwrap();
    }
    load(&path, &env).map(|parsed| parsed.cluster).map_err(|error| match error {
        super::super::Error::Invalid(invalid) => invalid
            .render(false)
            .replace(&dir.path().canonicalize().unwrap().display().to_string(), "DIR")
            .replace(&dir.path().display().to_string(), "DIR"),
        error => error.to_string(),
    })
}

const SPEC: &str = r#"
name: ${NAME}-1
keep_images: ${ON}
nodes:
  - {name: server, role: server, memory: "${MEMORY:-2}GiB", labels: {tier: "${THREE}"}}
  - name: worker
    count: ${THREE}
    cpus: ${CPUS:-2}
timeouts: {boot: "${BOOT}"}
k3s:
  version: v1.34.1+k3s1
  server_config:
    datastore-endpoint: postgres://k3s:${PASSWORD}@db/k3s
    kubelet-arg: ["literal=$HOME$$x$${y}"]
  registries:
    mirrors: {docker.io: {endpoint: ["https://mirror.test"], rewrite: {"^(.*)": "x/$1"}}}
    configs: {mirror.test: {auth: {username: "${NAME}", password: "${PASSWORD}"}}}
provision:
  - name: a
    type: shell
    inline: echo ${HOME} $$
    args: ["${secret:PASSWORD}", "${FROM}"]
    env: {MODE: "${OTHER}"}
  - name: b
    type: ansible
    playbook: ${PLAYBOOK:-/etc/passwd}
    extra_vars:
      port: ${THREE}
      flag: ${ON}
      text: "${THREE}"
      version: ${VERSION}
"#;
const FILE: &str = "# said\nBOOT=7m\nFROM=file\nexport OTHER='production'\n";

#[test]
fn variables_stand_for_any_value_and_the_environment_wins() {
    let cluster = read(SPEC, Some(FILE)).unwrap_or_else(|e| panic!("{e}"));
    assert_eq!(cluster.name, "lab-1");
    assert_eq!((cluster.nodes.len(), cluster.nodes[3].size.unwrap().cpus), (4, 2));
    assert_eq!(cluster.nodes[0].size.unwrap().memory, 2048);
    assert_eq!(cluster.nodes[0].labels, ["tier=3"]);
    assert_eq!(cluster.timeouts.boot.as_secs(), 420);
    let config = serde_json::to_string(&cluster.nodes[0].config).unwrap();
    assert!(
        config.contains("literal=$HOME$x${y}") && config.contains(&format!("k3s:{SECRET}@db")),
        "{config}"
    );
    let registries = serde_json::to_string(&cluster.k3s.registries).unwrap();
    assert!(registries.contains("x/$1") && registries.contains(SECRET), "{registries}");
    let one = &cluster.provision[0].settings;
    assert_eq!(one["inline"], "echo ${HOME} $$");
    assert_eq!(one["args"], serde_json::json!([SECRET, "environment"]));
    assert_eq!(one["env"]["MODE"], "production");
    let vars = &cluster.provision[1].settings["extra_vars"];
    assert_eq!(*vars, serde_json::json!({"port": 3, "flag": true, "text": "3", "version": "1.10"}));
    let known = secrets(&cluster);
    assert!(known.iter().any(|s| s == SECRET) && known.iter().any(|s| s == "production"), "{known:?}");
    assert!(!known.iter().any(|s| s == "lab" || s == "environment"), "{known:?}");
    // Editors take it too.
    assert!(valid(&schema(), &as_json(SPEC)));
    assert!(!valid(&schema(), &as_json(&SPEC.replace("count: ${THREE}", "count: three"))));
}

#[test]
fn a_digest_that_others_read_has_no_secret_in_it() {
    let one = read(SPEC, Some(FILE)).unwrap();
    let other = read(&SPEC.replace("PASSWORD}", "OTHER}"), Some(FILE)).unwrap();
    let literal = read(&SPEC.replace("\"${PASSWORD}\"", "written-here"), Some(FILE)).unwrap();
    assert_ne!(one.nodes, other.nodes);
    for cluster in [other, literal] {
        assert_eq!(digest(&one), digest(&cluster));
        assert_eq!(made_of(&one), made_of(&cluster));
    }
    let third = read(&SPEC.replace("${FROM}", "x"), Some(FILE)).unwrap();
    assert_ne!(digest(&one), digest(&third));
}

#[test]
fn what_is_wrong_with_a_variable_has_its_place_and_shows_no_secret() {
    let said = |values: &str, file: Option<&str>| {
        let text = format!("name: a\nnodes:\n  - name: server\n    role: server\n{values}\n");
        read(&text, file).err().unwrap_or_default()
    };
    insta::assert_snapshot!(said(
        "    cpus: ${CPUS}
    memory: 1${GiB
    labels: {a: \"x ${} ${1}\", b: \"${A:-${B}}\", c: \"${BYTES}\"}
    taints: [\"${secret:PASSWORD}\"]
k3s: {version: \"${secret:PASSWORD}\"}
manifests: [\"${secret:PASSWORD}\", \"/nowhere/at/all/${PASSWORD}\"]
box: \"${NAME}/${NAME}\"
rollout: {workers: \"${THREE}x\"}
verify: {image: \"${EMPTY}\"}",
        None
    ));
    let flow = said("    labels: {a: ${NAME}}", None);
    assert!(flow.contains("a variable needs quotes"), "{flow}");
    let file = said("    cpus: ${CPUS}\n    memory: ${MEMORY}", Some("A=1\nnonsense\n"));
    assert!(
        file.contains("line 2 of DIR/.env is not `NAME=VALUE`") && file.contains("cluster.yaml:5:11"),
        "{file}"
    );
    // A file that nobody needs is nobody's business.
    assert_eq!(said("    cpus: ${THREE}", Some("nonsense\n")), "");
    for part in [SECRET, &SECRET[..20]] {
        for text in [
            "labels: [\"${secret:PASSWORD}\"]",
            "labels: [\"1234567890123456789012345678901234567890${secret:PASSWORD}=\"]",
        ] {
            let said = said(&format!("    {text}"), None);
            assert!(said.contains("is not a label") && !said.contains(part), "{said}");
        }
    }
}

#[test]
fn a_text_alone_has_no_variables() {
    let said = super::brief("name: ${NAME}\nnodes: [{name: server, role: server}]\n");
    assert!(said.starts_with("1:7+7 error: the variable `NAME` is not set"), "{said}");
    assert!(super::super::parse("", Path::new("x")).is_err());
}
