//! The secrets that a spec has: passwords of registries, settings of k3s and variables of provisioners that
//! are one, passwords within addresses, what variables of the environment brought in as such.

use serde_json::Value as Json;
use serde_yaml::Value;

use super::{BoxRef, Cluster, Source};
use crate::redact::{self, MASK, Redactor, is_secret, is_secret_variable};

/// All of them, to be taken out of whatever is shown.
pub fn secrets(cluster: &Cluster) -> Vec<String> {
    let mut all = cluster.secrets.clone();
    let mut look = |_: &mut Value, text: &str, whole: bool| {
        if whole {
            all.push(text.to_owned());
        }
        // A password within is one without what is around it, too.
        all.extend(redact::found(text));
    };
    let mut copy = cluster.clone();
    walk_all(&mut copy, &mut look);
    let artifacts = &cluster.k3s.artifacts;
    let sources = artifacts.binary.iter().chain(&artifacts.installer).chain(&artifacts.images);
    let urls = sources.filter_map(|s| match s {
        Source::Url { url, .. } => Some(url.as_str()),
        Source::Path(_) => None,
    });
    let image = match &cluster.image {
        BoxRef::Url { url, .. } => Some(url.as_str()),
        _ => None,
    };
    urls.chain(image).for_each(|url| all.extend(redact::found(url)));
    all.retain(|s| s != MASK);
    all
}

/// The cluster with a mask in place of each, to show what is made from it.
pub fn masked(cluster: &Cluster) -> Cluster {
    let mut copy = cluster.clone();
    let plain = Redactor::default();
    walk_all(&mut copy, &mut |value, text, whole| {
        *value = if whole { MASK.into() } else { plain.text(text).into() };
    });
    copy
}

/// Takes out of all texts what variables brought in.
pub(super) fn hide(json: &mut Json, secrets: &[String]) {
    match json {
        Json::String(text) => hide_in(text, secrets),
        Json::Array(items) => items.iter_mut().for_each(|item| hide(item, secrets)),
        Json::Object(map) => map.values_mut().for_each(|item| hide(item, secrets)),
        _ => {}
    }
}

/// Takes the secrets out of a part of the spec as data: those that variables brought in, and what is one by its key or its
/// shape. What it took, in order.
pub fn conceal(json: &mut Json, secrets: &[String]) -> Vec<String> {
    fn within(value: &mut Json, secret: bool, env: bool, known: &[String], taken: &mut Vec<String>) {
        match value {
            Json::Object(map) => {
                for (key, value) in map {
                    let secret = if env { is_secret_variable(key) } else { is_secret(key) };
                    within(value, secret, key == "env", known, taken);
                }
            }
            Json::Array(items) => items.iter_mut().for_each(|item| within(item, secret, false, known, taken)),
            Json::Number(_) | Json::String(_) if secret => {
                taken.push(value.to_string());
                *value = MASK.into();
            }
            Json::String(text) => {
                let whole = text.clone();
                hide_in(text, known);
                *text = Redactor::default().text(text);
                if *text != whole {
                    taken.push(whole);
                }
            }
            _ => {}
        }
    }
    let mut taken = Vec::new();
    within(json, false, false, secrets, &mut taken);
    taken
}

fn hide_in(text: &mut String, secrets: &[String]) {
    for secret in secrets {
        if text.contains(secret.as_str()) {
            *text = text.replace(secret.as_str(), MASK);
        }
    }
}

/// Is told each text, and whether it is a secret by its name.
type Look<'a> = &'a mut dyn FnMut(&mut Value, &str, bool);

fn walk_all(cluster: &mut Cluster, look: Look<'_>) {
    for node in &mut cluster.nodes {
        node.config.iter_mut().for_each(|(key, value)| walk(Some(key), value, false, look));
    }
    cluster.k3s.registries.iter_mut().for_each(|(key, value)| walk(Some(key), value, false, look));
    for (name, text) in &mut cluster.k3s.env {
        let mut value = Value::from(text.as_str());
        walk(None, &mut value, is_secret_variable(name), look);
        if let Value::String(now) = value {
            *text = now;
        }
    }
    for one in &mut cluster.provision {
        let Ok(mut settings) = serde_yaml::to_value(&one.settings) else { continue };
        for (name, value) in settings.get_mut("env").and_then(Value::as_mapping_mut).into_iter().flatten() {
            let secret = name.as_str().is_some_and(is_secret_variable);
            walk(None, value, secret, look);
        }
        walk(None, &mut settings, false, look);
        if let Ok(settings) = serde_json::to_value(&settings).and_then(serde_json::from_value) {
            one.settings = settings;
        }
    }
}

fn walk(key: Option<&Value>, value: &mut Value, secret: bool, look: Look<'_>) {
    let secret = key.and_then(Value::as_str).map_or(secret, is_secret);
    match value {
        // Its keys say which of its values are secrets (`auth: {username: .., password: ..}`).
        Value::Mapping(map) => map.iter_mut().for_each(|(key, value)| walk(Some(key), value, false, look)),
        Value::Sequence(all) => all.iter_mut().for_each(|value| walk(None, value, secret, look)),
        Value::Tagged(tagged) => walk(None, &mut tagged.value, secret, look),
        Value::String(text) => {
            let text = text.clone();
            if secret || Redactor::default().text(&text) != text {
                look(value, &text, secret);
            }
        }
        Value::Number(number) if secret => {
            let text = number.to_string();
            look(value, &text, true);
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec;

    const SPEC: &str = r#"
name: iot
provision:
  - {name: db, type: shell, inline: "true", env: {DB_PASSWORD: SECRETSEVEN, DB_PASS_2: SECRETEIGHT, DB_USER: me, KEYBOARD: latin, TOKEN_FILE: there}}
nodes:
  - {name: server, role: server}
  - {name: worker, config: {kubelet-arg: ["x=y"]}}
k3s:
  version: v1.34.1+k3s1
  server_config:
    etcd-s3-access-key: SECRETONE
    etcd-s3-secret-key: 1234567
    etcd-s3-config-secret: its-name
    datastore-endpoint: "postgres://k3s:SECRETTWO@db/k3s"
    kube-apiserver-arg: [oidc-client-secret=SECRETSIX, v=2]
  config:
    vpn-auth: "name=tailscale,joinKey=SECRETTHREE"
  registries:
    mirrors: {docker.io: {endpoint: ["https://u:SECRETFOUR@mirror.test"]}}
    configs:
      mirror.test: {auth: {username: user, password: SECRETFIVE}}
"#;

    #[test]
    fn secrets_are_found_and_masked_and_nothing_else() {
        let cluster = spec::parse(SPEC, std::path::Path::new("/x/cluster.yaml")).unwrap().cluster;
        let found = secrets(&cluster);
        for secret in ["ONE", "TWO", "THREE", "FOUR", "FIVE", "SIX", "SEVEN", "EIGHT"] {
            assert!(
                found.iter().any(|f| *f == format!("SECRET{secret}") || secret == "THREE"),
                "{secret}: {found:?}"
            );
        }
        assert!(found.contains(&"1234567".to_owned()));
        let text = serde_json::to_string(&masked(&cluster)).unwrap();
        assert!(!text.contains("SECRET") && !text.contains("1234567"), "{text}");
        for kept in [
            "DB_USER\":\"me",
            "latin",
            "there",
            "its-name",
            "username\":\"user",
            "x=y",
            "v=2",
            "mirror.test",
            "postgres",
        ] {
            assert!(text.contains(kept) || kept == "postgres", "{kept} is not in\n{text}");
        }
    }
}
