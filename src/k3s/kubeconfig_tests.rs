use proptest::prelude::*;

use super::*;

const K3S: &str = "apiVersion: v1
clusters:
- cluster:
    certificate-authority-data: Q0E=
    server: https://127.0.0.1:6443
  name: default
contexts:
- context:
    cluster: default
    user: default
  name: default
current-context: default
kind: Config
preferences: {}
users:
- name: default
  user:
    client-certificate-data: Q0VSVA==
    client-key-data: S0VZ
";

const THEIR_FILE: &str = "apiVersion: v1
kind: Config
clusters:
- {name: work, cluster: {server: 'https://work:6443', tls-server-name: api.work}}
contexts:
- {name: work, context: {cluster: work, user: me, namespace: team, extensions: [{name: x, extension: 7}]}}
users:
- {name: me, user: {exec: {command: aws, args: [eks], env: null}}}
current-context: work
future-field: {kept: '0644'}
";

fn ours() -> String {
    rewrite(K3S, "https://192.168.56.110:6443", "iot").unwrap()
}

#[test]
fn k3s_own_file_is_renamed_and_pointed_elsewhere() {
    insta::assert_snapshot!(ours(), @r"
    apiVersion: v1
    clusters:
    - cluster:
        certificate-authority-data: Q0E=
        server: https://192.168.56.110:6443
      name: iot
    contexts:
    - context:
        cluster: iot
        user: iot
      name: iot
    current-context: iot
    kind: Config
    preferences: {}
    users:
    - name: iot
      user:
        client-certificate-data: Q0VSVA==
        client-key-data: S0VZ
    ");
    let access = access(&ours()).unwrap();
    assert_eq!((access.server.as_str(), &access.key[..]), ("https://192.168.56.110:6443", &b"KEY"[..]));
    assert!(!format!("{access:?}").contains("75"), "{access:?}");
}

#[test]
fn merging_adds_and_does_not_switch_unasked() {
    let merged = merge(Some(THEIR_FILE), &ours(), "iot", false).unwrap();
    assert_eq!((merged.replaced, merged.switched), (false, false));
    assert_eq!(merged.previous_context.as_deref(), Some("work"));
    insta::assert_snapshot!(merged.text, @r"
    apiVersion: v1
    kind: Config
    clusters:
    - name: work
      cluster:
        server: https://work:6443
        tls-server-name: api.work
    - cluster:
        certificate-authority-data: Q0E=
        server: https://192.168.56.110:6443
      name: iot
    contexts:
    - name: work
      context:
        cluster: work
        user: me
        namespace: team
        extensions:
        - name: x
          extension: 7
    - context:
        cluster: iot
        user: iot
      name: iot
    users:
    - name: me
      user:
        exec:
          command: aws
          args:
          - eks
          env: null
    - name: iot
      user:
        client-certificate-data: Q0VSVA==
        client-key-data: S0VZ
    current-context: work
    future-field:
      kept: '0644'
    ");

    let again = merge(Some(&merged.text), &ours(), "iot", true).unwrap();
    assert!(again.replaced && again.switched);
    assert!(again.text.contains("current-context: iot"));
    assert_eq!(unmerge(&merged.text, "iot").unwrap().unwrap(), write(parse(THEIR_FILE, THEIRS).unwrap()));
}

#[test]
fn an_absent_an_empty_and_an_emptied_file_are_begun() {
    let emptied =
        "apiVersion: v1\nclusters: null\ncontexts: null\ncurrent-context: ''\nkind: Config\nusers: null\n";
    for existing in [None, Some(""), Some(" \n"), Some(emptied)] {
        let merged = merge(existing, &ours(), "iot", false).unwrap();
        assert!(merged.switched && access(&merged.text).is_ok(), "{existing:?}");
    }
    assert_eq!(unmerge("", "iot").unwrap(), None);
    assert_eq!(unmerge(THEIR_FILE, "iot").unwrap(), None);
}

#[test]
fn a_broken_file_is_an_error_with_a_position() {
    let error = merge(Some("clusters:\n- name: [x\n"), &ours(), "iot", false).unwrap_err();
    assert!(error.to_string().contains("line 3"), "{error}");
    assert!(error.hint().unwrap().starts_with("Nothing was written."));
    for (text, part) in [("- a\n", "not a map"), ("clusters: {}\n", "`clusters` is not a list")] {
        let error = merge(Some(text), &ours(), "iot", false).unwrap_err();
        assert!(error.to_string().contains(part), "{error}");
    }
    for text in ["", "a: b", "contexts: []", "contexts: [{name: x}]\ncurrent-context: y"] {
        assert!(rewrite(text, "https://x", "iot").is_err(), "{text}");
    }
}

fn names() -> impl Strategy<Value = String> {
    prop_oneof![Just("iot".to_owned()), Just("default".to_owned()), "[ -~]{0,6}", any::<String>()]
}

fn file() -> impl Strategy<Value = Value> {
    let entry = |inner: &'static str| {
        (names(), any::<String>(), any::<i64>()).prop_map(move |(name, text, number)| {
            let body: Mapping =
                [("text".into(), text.into()), ("number".into(), number.into())].into_iter().collect();
            let entry: Mapping =
                [("name".into(), name.into()), (inner.into(), body.into())].into_iter().collect();
            Value::Mapping(entry)
        })
    };
    let lists = LISTS.map(|(_, inner)| prop::collection::vec(entry(inner), 0..4));
    (lists, prop::option::of(names()), names()).prop_map(|([clusters, contexts, users], current, other)| {
        let mut map = Mapping::new();
        map.insert("clusters".into(), clusters.into());
        map.insert("contexts".into(), contexts.into());
        map.insert("users".into(), users.into());
        if let Some(current) = current {
            map.insert("current-context".into(), current.into());
        }
        map.insert("x-extra".into(), other.into());
        map.into()
    })
}

fn foreign(config: &Value) -> Vec<Value> {
    let lists = LISTS.iter().flat_map(|(list, _)| config[*list].as_sequence().cloned().unwrap_or_default());
    lists.filter(|e| name_of(e) != Some("iot")).collect()
}

#[test]
fn what_is_nested_too_deeply_is_refused_at_once() {
    let begun = std::time::Instant::now();
    let error = unmerge(&"{\"items\":[".repeat(100_000), "x").unwrap_err();
    assert!(error.to_string().contains("nested too deeply"), "{error}");
    // The reader by itself takes many minutes for it.
    assert!(begun.elapsed() < std::time::Duration::from_secs(30), "{:?}", begun.elapsed());
    let fine = format!("x: {}{}\n", "[".repeat(60), "]".repeat(60));
    assert_eq!(unmerge(&fine, "x").unwrap(), None);
}

proptest! {
    #[test]
    fn foreign_entries_survive_and_merging_twice_is_merging_once(config in file(), switch: bool) {
        let text = serde_yaml::to_string(&config).unwrap();
        let once = merge(Some(&text), &ours(), "iot", switch).unwrap();
        let twice = merge(Some(&once.text), &ours(), "iot", switch).unwrap();
        prop_assert_eq!(&once.text, &twice.text);
        let back: Value = serde_yaml::from_str(&once.text).unwrap();
        prop_assert_eq!(foreign(&back), foreign(&config));
        prop_assert_eq!(&back["x-extra"], &config["x-extra"]);
        if !switch && once.previous_context.is_some() {
            prop_assert_eq!(&back["current-context"], &config["current-context"]);
        }
        let out: Value = serde_yaml::from_str(&unmerge(&once.text, "iot").unwrap().unwrap()).unwrap();
        prop_assert_eq!(foreign(&out), foreign(&config));
    }

    #[test]
    fn nothing_panics(existing in any::<String>(), name in any::<String>()) {
        let _ = merge(Some(&existing), &ours(), &name, true);
        let _ = unmerge(&existing, &name);
        let _ = rewrite(&existing, "https://x", &name);
        let _ = access(&existing);
    }
}
