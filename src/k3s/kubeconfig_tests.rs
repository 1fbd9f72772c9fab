use proptest::prelude::*;

use super::*;

/// As a server writes it.
const K3S: &str = include_str!("../../tests/fixtures/k3s.yaml");
/// The certificate of another authority, as it stands in a kubeconfig.
const OTHER: &str = include_str!("../../tests/fixtures/other-authority.txt");
const SERVER: &str = "https://192.168.56.110:6443";

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
    rewrite(K3S, SERVER, "iot").unwrap()
}

/// Long values as their names.
fn short(text: &str) -> String {
    let (mut text, all) = (text.to_owned(), access(K3S).unwrap());
    for (bytes, name) in [(&all.ca, "CA"), (&all.cert, "CERT"), (&all.key, "KEY")] {
        text = text.replace(&encode(bytes), name);
    }
    text
}

#[test]
fn k3s_own_file_is_renamed_and_pointed_elsewhere() {
    // But for names and address it is the same, byte by byte.
    let expected = K3S.replace("https://127.0.0.1:6443", SERVER).replace(": default", ": iot");
    assert_eq!(ours(), expected);
    let access = access(&ours()).unwrap();
    assert!(access.server == SERVER && access.key.starts_with(b"-----BEGIN EC PRIVATE KEY-----"));
    assert!(!format!("{access:?}").contains("45"), "{access:?}");
}

/// kubectl obeys a kubeconfig, and a node says whatever it likes.
#[test]
fn nothing_of_a_node_s_file_is_taken_but_its_certificates_and_key() {
    let evil = K3S
        .replace(
            "  user:\n",
            "  user:\n    exec: {apiVersion: v1, command: /bin/sh, args: [-c, evil]}\n    \
                 tokenFile: /etc/shadow\n    auth-provider: {name: gcp, config: {cmd-path: evil}}\n    \
                 as: somebody\n    username: evil\n",
        )
        .replace(
            "- cluster:\n",
            "- cluster:\n    proxy-url: http://evil:1\n    insecure-skip-tls-verify: true\n    \
                 tls-server-name: evil\n    extensions: [{name: evil}]\n",
        )
        .replace("- context:\n", "- context:\n    namespace: evil\n")
        .replace(
            "preferences: {}",
            "preferences: {evil: true}\nextensions: [{name: evil}]\n\"evil\": &a [evil]\nx: *a",
        );
    assert!(evil.matches("evil").count() > 10);
    assert_eq!(rewrite(&evil, SERVER, "iot").unwrap(), ours());
    // Text around the certificates is not theirs.
    let wrapped = |key: &str, text: &str| {
        let access = access(K3S).unwrap();
        let old = if key == "key" { access.key } else { access.ca };
        let new = format!("{text}\n{}\n{text}", String::from_utf8(old.clone()).unwrap());
        K3S.replace(&encode(&old), &encode(new.as_bytes()))
    };
    assert_eq!(rewrite(&wrapped("ca", "evil"), SERVER, "iot").unwrap(), ours());

    let all = access(K3S).unwrap();
    let instead = |old: &[u8], new: &[u8]| K3S.replace(&encode(old), &encode(new));
    for (text, part) in [
        (instead(&all.key, b"evil"), "`client-key-data` is no private key"),
        (instead(&all.cert, &all.ca), "does not fit the certificate"),
        (instead(&all.ca, &all.key), "`certificate-authority-data` holds no certificate"),
        (instead(&all.ca, &all.ca.repeat(17)), "too many"),
        (K3S.replace("    client-key-data", "    x"), "it has no `client-key-data`"),
        (K3S.replace("client-certificate-data", "client-certificate"), "it has no `client-certificate-data`"),
    ] {
        let error = rewrite(&text, SERVER, "iot").unwrap_err().to_string();
        assert!(error.contains(part) && !error.contains("evil"), "{error}");
    }
}

/// Whose an entry is, by its server and its authority.
#[test]
fn an_entry_of_somebody_else_is_told_from_ours() {
    let (access, servers) = (access(K3S).unwrap(), [SERVER.to_owned()]);
    let ours_is = Ours { name: "iot", servers: &servers, access: Some(&access) };
    let said = |text: &str| super::foreign(text, &ours_is).unwrap();
    let own = merge(Some(THEIR_FILE), &ours(), "iot", false, false).unwrap().text;
    assert_eq!(said(&own), [""; 0]);
    assert_eq!(said(THEIR_FILE), [""; 0]);
    assert_eq!(said(""), [""; 0]);
    // A renewed certificate is still ours, and so is what the user added.
    let renewed = own.replace(&encode(&access.cert), &encode(&access.ca));
    assert_eq!(said(&renewed), [""; 0]);
    assert_eq!(said(&own.replace("    user: iot", "    user: iot\n    namespace: team")), [""; 0]);

    let moved = said(&own.replace(SERVER, "https://10.0.0.1:6443"));
    assert_eq!(moved, ["its cluster `iot` is at https://10.0.0.1:6443"]);
    let other = said(&own.replace(&encode(&access.ca), OTHER));
    assert_eq!(other, ["its cluster `iot` is at https://192.168.56.110:6443, of another authority"]);
    let login = said(&own.replace("client-key-data: ", "token: secret\n    client-key-data: "));
    assert_eq!(login, ["its user `iot` logs in by `token`"]);
    let context = said(&own.replace("    cluster: iot\n    user: iot", "    cluster: work\n    user: me"));
    assert_eq!(context[0], "its context `iot` is of the cluster `work` with the user `me`");
    // Only the name of a user is the same.
    let user = said(&THEIR_FILE.replace("name: me,", "name: iot,"));
    assert_eq!(user, ["its user `iot` logs in by `exec`"]);
    // Without its own kubeconfig a cluster knows itself by its address.
    let gone = Ours { access: None, ..ours_is };
    assert_eq!(super::foreign(&own, &gone).unwrap(), [""; 0]);
    assert_eq!(super::foreign(&own.replace(SERVER, "https://10.0.0.1:6443"), &gone).unwrap().len(), 1);
}

#[test]
fn what_the_user_added_to_our_entry_stays_and_of_another_s_nothing() {
    let own = merge(None, &ours(), "iot", false, false).unwrap().text;
    let theirs = own
        .replace("    user: iot", "    user: iot\n    namespace: team")
        .replace("    server: ", "    tls-server-name: mine\n    server: ");
    let again = merge(Some(&theirs), &ours(), "iot", false, false).unwrap().text;
    assert!(again.contains("namespace: team") && again.contains("tls-server-name: mine"), "{again}");
    let anew = merge(Some(&theirs), &ours(), "iot", false, true).unwrap().text;
    assert!(!anew.contains("namespace: team") && !anew.contains("tls-server-name"), "{anew}");
}

#[test]
fn merging_adds_and_does_not_switch_unasked() {
    let merged = merge(Some(THEIR_FILE), &ours(), "iot", false, false).unwrap();
    assert_eq!((merged.replaced, merged.switched), (false, false));
    assert_eq!(merged.previous_context.as_deref(), Some("work"));
    insta::assert_snapshot!(short(&merged.text), @r"
    apiVersion: v1
    kind: Config
    clusters:
    - name: work
      cluster:
        server: https://work:6443
        tls-server-name: api.work
    - cluster:
        certificate-authority-data: CA
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
        client-certificate-data: CERT
        client-key-data: KEY
    current-context: work
    future-field:
      kept: '0644'
    ");

    let again = merge(Some(&merged.text), &ours(), "iot", true, false).unwrap();
    assert!(again.replaced && again.switched);
    assert!(again.text.contains("current-context: iot"));
    assert_eq!(unmerge(&merged.text, "iot").unwrap().unwrap(), write(parse(THEIR_FILE, THEIRS).unwrap()));
}

#[test]
fn an_absent_an_empty_and_an_emptied_file_are_begun() {
    let emptied =
        "apiVersion: v1\nclusters: null\ncontexts: null\ncurrent-context: ''\nkind: Config\nusers: null\n";
    for existing in [None, Some(""), Some(" \n"), Some(emptied)] {
        let merged = merge(existing, &ours(), "iot", false, false).unwrap();
        assert!(merged.switched && access(&merged.text).is_ok(), "{existing:?}");
    }
    assert_eq!(unmerge("", "iot").unwrap(), None);
    assert_eq!(unmerge(THEIR_FILE, "iot").unwrap(), None);
}

#[test]
fn a_broken_file_is_an_error_with_a_position() {
    let error = merge(Some("clusters:\n- name: [x\n"), &ours(), "iot", false, false).unwrap_err();
    assert!(error.to_string().contains("line 3"), "{error}");
    assert!(error.hint().unwrap().starts_with("Nothing was written."));
    for (text, part) in [("- a\n", "not a map"), ("clusters: {}\n", "`clusters` is not a list")] {
        let error = merge(Some(text), &ours(), "iot", false, false).unwrap_err();
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

fn others(config: &Value) -> Vec<Value> {
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
        let once = merge(Some(&text), &ours(), "iot", switch, false).unwrap();
        let twice = merge(Some(&once.text), &ours(), "iot", switch, false).unwrap();
        prop_assert_eq!(&once.text, &twice.text);
        let back: Value = serde_yaml::from_str(&once.text).unwrap();
        prop_assert_eq!(others(&back), others(&config));
        prop_assert_eq!(&back["x-extra"], &config["x-extra"]);
        if !switch && once.previous_context.is_some() {
            prop_assert_eq!(&back["current-context"], &config["current-context"]);
        }
        let out: Value = serde_yaml::from_str(&unmerge(&once.text, "iot").unwrap().unwrap()).unwrap();
        prop_assert_eq!(others(&out), others(&config));
    }

    #[test]
    fn nothing_panics(existing in any::<String>(), name in any::<String>()) {
        let _ = merge(Some(&existing), &ours(), &name, true, false);
        let _ = unmerge(&existing, &name);
        let _ = rewrite(&existing, "https://x", &name);
        let _ = access(&existing);
        let known = access(K3S).unwrap();
        let _ = super::foreign(&existing, &Ours { name: &name, servers: &[], access: Some(&known) });
    }
}
