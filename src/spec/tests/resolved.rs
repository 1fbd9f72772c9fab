//! What comes of a spec: defaults, shorthand, settings, digest; and files on disk.

use std::fs;
use std::net::Ipv4Addr;
use std::path::Path;

use super::super::load::MOST_BYTES;
use super::super::{BoxRef, Error, Node, Release, Source, digest, load, parse};
use super::{cluster, read};
use crate::explain::Explain;

fn ips(text: &str) -> Vec<String> {
    cluster(text).nodes.iter().map(|n| format!("{} {}", n.name, n.ip)).collect()
}

fn config(node: &Node) -> String {
    serde_yaml::to_string(&node.config).unwrap()
}

#[test]
fn the_smallest_spec_has_every_default() {
    let c = cluster("name: demo\nnodes:\n  - {name: server, role: server}\n  - {name: worker}\n");
    insta::assert_snapshot!(serde_json::to_string_pretty(&c).unwrap());
}

#[test]
fn addresses_are_the_next_free_ones_and_the_server_comes_first() {
    assert_eq!(
        ips("name: demo
nodes:
  - {name: worker, count: 3}
  - {name: fixed, ip: 192.168.56.12}
  - {name: server, role: server}
  - {name: pair, count: 2, ip: 192.168.56.100}
"),
        [
            "server 192.168.56.15",
            "worker-1 192.168.56.11",
            "worker-2 192.168.56.13",
            "worker-3 192.168.56.14",
            "fixed 192.168.56.12",
            "pair-1 192.168.56.100",
            "pair-2 192.168.56.101",
        ]
    );
    let full =
        "name: demo\nnetwork: {cidr: 10.9.0.8/29}\nnodes: [{name: s, role: server}, {name: w, count: 4}]\n";
    assert_eq!(
        ips(full),
        ["s 10.9.0.10", "w-1 10.9.0.11", "w-2 10.9.0.12", "w-3 10.9.0.13", "w-4 10.9.0.14"]
    );
    let none = "name: demo\nnodes: [{name: s, role: server}, {name: w, count: 0}]\n";
    assert_eq!(ips(none), ["s 192.168.56.11"]);
}

#[test]
fn a_provisioner_is_for_nodes_groups_and_roles_and_has_vagrants_settings() {
    let dir = tempfile::tempdir().unwrap();
    for name in ["site.yml", "vault"] {
        fs::write(dir.path().join(name), "x").unwrap();
    }
    fs::create_dir_all(dir.path().join("roles/web")).unwrap();
    let text = "name: demo
nodes: [{name: pair, count: 2}, {name: one}, {name: s, role: server}]
provision:
  - {name: everywhere, type: shell, inline: echo, args: [a, b c], env: {A: b, N: 1}}
  - {name: some, type: shell, inline: echo, nodes: [pair, s], options: {reboot: true}}
  - name: site
    type: ansible
    playbook: ./site.yml
    nodes: [agent]
    when: after-k3s
    extra_vars: {deep: [{x: it's}, 1.5, null]}
    options: {vault_password_file: vault, galaxy_role_file: not-there, verbose: v}
    watch: [vault]
";
    let parsed =
        parse(text, &dir.path().join("cluster.yaml")).unwrap_or_else(|e| panic!("{}", e.render(false)));
    let of = |i: usize| &parsed.cluster.provision[i];
    assert_eq!(of(0).nodes, ["s", "pair-1", "pair-2", "one"]);
    assert_eq!(of(0).env(), [("A".to_owned(), "b".to_owned()), ("N".to_owned(), "1".to_owned())]);
    assert!(!of(0).by_vagrant && of(1).by_vagrant && of(2).by_vagrant);
    assert_eq!(of(1).nodes, ["s", "pair-1", "pair-2"]);
    assert_eq!(of(2).nodes, ["pair-1", "pair-2", "one"]);
    let at = |name: &str| dir.path().join(name);
    assert_eq!(of(2).inputs, [at("./site.yml"), at("roles"), at("vault"), at("vault")]);
    let settings = serde_json::json!({
        "extra_vars": {"deep": [{"x": "it's"}, 1.5, null]},
        "playbook": at("./site.yml"),
        "vault_password_file": at("vault"),
        "galaxy_role_file": "not-there",
        "verbose": "v",
    });
    assert_eq!(serde_json::Value::Object(of(2).settings.clone()), settings);

    // The place of the checkout is not part of it.
    let other = tempfile::tempdir().unwrap();
    for name in ["site.yml", "vault", "roles"] {
        fs::write(other.path().join(name), "").unwrap();
    }
    fs::remove_file(other.path().join("roles")).unwrap();
    fs::create_dir(other.path().join("roles")).unwrap();
    let moved = parse(text, &other.path().join("cluster.yaml")).unwrap();
    assert_eq!(digest(&parsed.cluster), digest(&moved.cluster));
    let changed =
        parse(&text.replace("verbose: v", "verbose: vv"), &dir.path().join("cluster.yaml")).unwrap();
    assert_ne!(digest(&parsed.cluster), digest(&changed.cluster));
}

#[test]
fn settings_are_layered_and_reach_only_those_who_know_them() {
    let c = cluster(
        "name: demo
nodes:
  - {name: s, role: server, labels: {tier: front}, config: {tls-san+: [c]}}
  - {name: w, memory: 2GiB, labels: [zone=b], taints: ['gpu=yes:NoSchedule'], config: {kubelet-arg: [x], node-label+: [own=1]}}
k3s:
  config:
    write-kubeconfig-mode: 0644
    tls-san: [a]
    debug: true
    node-label: [zone=a, tier=back]
    node-taint: 'old:NoExecute'
    kubelet-arg+: max-pods=50
  server_config: {tls-san+: b, disable: [traefik]}
  worker_config: {debug: false, kubelet-arg+: [v=2]}
",
    );
    insta::assert_snapshot!(format!("# s\n{}\n# w\n{}", config(&c.nodes[0]), config(&c.nodes[1])), @r"
    # s
    write-kubeconfig-mode: '0644'
    tls-san:
    - a
    - b
    - c
    debug: true
    kubelet-arg+: max-pods=50
    disable:
    - traefik

    # w
    debug: false
    kubelet-arg:
    - x
    ");
    assert_eq!(c.nodes[0].labels, ["zone=a", "tier=front"]);
    assert_eq!(c.nodes[1].labels, ["zone=b", "tier=back", "own=1"]);
    assert_eq!(c.nodes[1].taints, ["old:NoExecute", "gpu=yes:NoSchedule"]);
    assert_eq!(c.nodes[1].size.unwrap().memory, 2048);
}

#[test]
fn free_texts_arrive_unharmed() {
    for text in ["#{`reboot`}", "$(reboot)", "a'b\"c", "--flag", "line\nbreak", "ü€\u{1f600}", "a: b", "yes"]
    {
        let yaml = serde_json::to_string(text).unwrap();
        let c = cluster(&format!(
            "name: demo\nnodes: [{{name: s, role: server, config: {{kubelet-arg: [{yaml}]}}}}]\n\
             k3s: {{registries: {{mirrors: {{{yaml}: {{rewrite: {{{yaml}: {yaml}}}}}}}}}}}\n"
        ));
        assert_eq!(c.nodes[0].config["kubelet-arg"][0].as_str(), Some(text));
        assert_eq!(c.k3s.registries["mirrors"][text]["rewrite"][text].as_str(), Some(text));
    }
}

#[test]
fn aliases_and_merges_work() {
    let c = cluster(
        "name: demo
nodes:
  - &small {name: w-1, cpus: 3, memory: 700}
  - {<<: *small, name: w-2}
  - {name: s-1, role: server}
",
    );
    assert_eq!(
        (c.nodes[2].name.as_str(), c.nodes[2].size),
        ("w-2", Some(crate::spec::Size { cpus: 3, memory: 700 }))
    );
}

#[test]
fn files_are_found_beside_the_spec_and_the_digest_does_not_know_where_that_is() {
    let sum = "A".repeat(64);
    let text = format!(
        "name: demo
box: {{path: ./my.box}}
nodes: [{{name: s, role: server}}]
k3s:
  version: v1.35.0-rc1+k3s1
  artifacts:
    binary: {{path: sub/../k3s}}
    installer: {{url: 'https://example.org/install.sh', sha256: {sum}}}
    images: [{{path: images.tar}}]
"
    );
    let place = || {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("sub")).unwrap();
        for name in ["my.box", "k3s", "images.tar"] {
            fs::write(dir.path().join(name), name).unwrap();
        }
        fs::write(dir.path().join("cluster.yaml"), &text).unwrap();
        dir
    };
    let (one, two) = (place(), place());
    let [a, b] = [&one, &two].map(|d| load(&d.path().join("cluster.yaml"), &|_| None).unwrap().cluster);
    assert_eq!(a.image, BoxRef::Path(one.path().join("my.box")));
    assert_eq!(a.k3s.release, Release::Version("v1.35.0-rc1+k3s1".into()));
    let Some(Source::Url { sha256, .. }) = &a.k3s.artifacts.installer else { panic!() };
    assert_eq!(*sha256, "a".repeat(64));
    assert_ne!(a, b);
    assert_eq!(digest(&a), digest(&b));
}

#[test]
fn the_digest_sees_meaning_and_nothing_else() {
    let base = "name: demo\nnodes:\n  - {name: s, role: server}\nk3s: {config: {debug: true, v: 2}}\n";
    let same = "# a comment\nk3s:\n  config:\n    v: 2 # two\n    \"debug\": true\n  channel: stable\n\
                nodes: [{role: server, memory: 2GiB, ip: 192.168.56.11, name: 's'}]\nname: \"demo\"\n";
    assert_eq!(digest(&cluster(base)), digest(&cluster(same)));
    // Known once, so that an accidental change of the format is seen: it would make every run look outdated.
    insta::assert_snapshot!(digest(&cluster(base)), @"6ca697299f00d721fdf5b0d77f5c5ffef94da3f6e064a79424bf524ad994ddf1");
    for (from, to) in [("v: 2", "v: 3"), ("debug: true", "debug: 'true'"), ("name: s,", "name: t,")] {
        assert_ne!(digest(&cluster(base)), digest(&cluster(&base.replace(from, to))), "{to}");
    }
}

#[test]
fn what_is_no_spec_at_all() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("cluster.yaml");
    let missing = load(&path, &|_| None).unwrap_err();
    assert!(matches!(missing, Error::Missing(_)));
    assert!(missing.hint().unwrap().contains("p1 init"));
    assert!(matches!(load(dir.path(), &|_| None), Err(Error::NotAFile(_))));
    assert!(matches!(load(Path::new("/dev/zero"), &|_| None), Err(Error::NotAFile(_))));

    let problem = |bytes: &[u8]| {
        fs::write(&path, bytes).unwrap();
        let Err(Error::Invalid(mut invalid)) = load(&path, &|_| None) else { panic!() };
        assert_eq!(invalid.problems.len(), 1);
        invalid.problems.remove(0)
    };
    let latin = problem(b"name: demo\n# gr\xfc\xdfe\n");
    assert_eq!((latin.line, latin.column, latin.message.as_str()), (2, 5, "this is not UTF-8"));
    let large = problem(&b"# ...\n".repeat(MOST_BYTES));
    assert_eq!((large.line, large.message.as_str()), (1, "the file is larger than 1 MiB"));
    assert!(matches!(load(&path.join("x"), &|_| None), Err(Error::Read(_))));
    // An editor's byte order mark does not shift places.
    assert_eq!(problem("\u{feff}name: demo\nnodes: 3\n".as_bytes()).column, 8);
}

#[test]
fn windows_line_ends_are_line_ends() {
    let c = cluster("name: demo\r\nnodes:\r\n  - {name: s, role: server}\r\n");
    assert_eq!(c.nodes[0].ip, Ipv4Addr::new(192, 168, 56, 11));
    let invalid = read("name: demo\r\nnodes:\r\n  - {name: s, role: srv}\r\n").unwrap_err();
    assert!(!invalid.render(true).contains('\r'));
}

#[test]
fn huge_specs_are_read_in_bounded_time_and_space() {
    let nodes = "name: demo\nnodes: [{name: s, role: server}, {name: w, count: 249}]\n";
    let big = "x".repeat(900_000);
    let list = "x=y, ".repeat(20_000);
    let cases: [(String, &str); 8] = [
        ((0..20_000).map(|i| format!("key{i}: x\n")).collect(), "unknown key"),
        ("name: x\n".repeat(20_000), "here twice"),
        ("- ".repeat(500_000), "nested"),
        (format!("{nodes}k3s: {{config: {{kubelet-arg: {big}}}}}\n"), "64 KiB"),
        (format!("{nodes}k3s: {{config: {{kubelet-arg: [{list}]}}}}\n"), "64 KiB"),
        (format!("{nodes}k3s: {{registries: {{a: &a {big}, b: [{}]}}}}\n", "*a, ".repeat(10_000)), "aliases"),
        (
            format!("name: demo\nnodes: [{{name: s, role: server, labels: [{list}]}}]\n"),
            "more than 100 labels",
        ),
        (
            format!("name: demo\nnodes: [{}]\n", "{name: w, count: 250}, ".repeat(8_000)),
            "more than 250 machines",
        ),
    ];
    // Without optimisation the reader's frames for what is nested are large: on a stack as the program has it.
    let reads = move || cases.iter().for_each(|(text, said)| refused_in_time(text, said));
    std::thread::Builder::new().stack_size(8 << 20).spawn(reads).unwrap().join().unwrap();
}

fn refused_in_time(text: &str, said: &str) {
    // Of this thread alone, in nanoseconds: the host may be busy with something else (proc(5)).
    let worked = || -> u64 {
        let told = fs::read_to_string("/proc/thread-self/schedstat").unwrap();
        told.split_whitespace().next().unwrap().parse().unwrap()
    };
    let began = worked();
    let invalid = parse(text, Path::new("/demo/x.yaml")).unwrap_err();
    assert!(invalid.problems.len() <= 102);
    assert!(invalid.problems.iter().any(|p| p.message.contains(said)), "{}", invalid.render(false));
    // Seconds even without optimisation; what is quadratic takes minutes.
    let took = std::time::Duration::from_nanos(worked() - began);
    assert!(took.as_secs() < 20, "{said}: {took:?}");
}

#[test]
fn a_machine_without_k3s_comes_last_and_has_none_of_its_settings() {
    let c = cluster(
        "name: demo\nnodes: [{name: disk, role: none}, {name: s, role: server}, {name: w}]\nk3s: {config: {debug: true}}\n\
         provision: [{name: a, type: shell, inline: x, nodes: [none]}]\n",
    );
    let told: Vec<_> = c.nodes.iter().map(|n| (n.name.as_str(), n.config.len())).collect();
    assert_eq!(told, [("s", 1), ("w", 1), ("disk", 0)]);
    assert_eq!(c.members().count(), 2);
    assert_eq!(c.provision[0].nodes, ["disk"]);
    assert_eq!(c.select("role:none").unwrap()[0].name, "disk");
}

#[test]
fn disks_are_called_by_their_place_and_leave_the_digest_of_others_as_it_is() {
    let with = |keys: &str| cluster(&format!("name: demo\nnodes: [{{name: s, role: server{keys}}}]\n"));
    let node = with(", disk: 2TiB, disks: [50GiB, {size: 10 GiB, serial: data}, 1G]").nodes.remove(0);
    let told: Vec<_> = node.disks.iter().map(|d| (d.serial.as_str(), d.size)).collect();
    assert_eq!((node.disk, told), (Some(2048), vec![("disk-1", 50), ("data", 10), ("disk-3", 1)]));
    assert_ne!(digest(&with("")), digest(&with(", disk: 20GiB")));
    assert_ne!(digest(&with("")), digest(&with(", disks: [1GiB]")));
}
