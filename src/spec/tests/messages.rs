//! What users see. Kept in a snapshot each, so that a change of wording is looked at.

use insta::assert_snapshot;

use super::{brief, said};

/// Two good nodes, to be put around what is tried.
const NODES: &str = "name: demo\nnodes: [{name: server, role: server}, {name: worker}]\n";

#[test]
fn every_mistake_of_a_file_is_told_at_once() {
    let text = r#"name: My Cluster
provider: libvrt
boxx: debian-12
network:
  cidr: 192.168.56.0/24
  cidr: 10.0.0.0/8
nodes:
  - {name: server, role: server, ip: 192.168.57.10, memroy: 2048}
  - name: worker
    count: "three"
    cpus: 0
  - {name: face, ip: 192.168.56.1}
  - {name: db, role: sever, memory: 2TB}
  - {name: db, ip: 192.168.56.999}
k3s:
  version: 1.34.1
  channel: stable
  config:
    token: secret
    "tls_san": x
    disable-helm-controller: yes
  worker_config:
    write-kubeconfig-mode: "0644"
  artifacts:
    binary: {path: ./nothing-here}
    images: [{url: https://example.org/i.tar}]
timeouts: {boot: 5, ssh: 2 minutes}
retry:
manifests: [apps/]
"#;
    assert_snapshot!(said(text));
}

#[test]
fn what_is_unwise_is_a_warning() {
    assert_snapshot!(said(
        "name: demo
network: {cidr: 8.8.8.0/24}
nodes:
  - {name: server, role: server, cpus: 1, memory: 1GiB}
  - {name: worker, count: 60, memory: 256}
k3s: {config: {tls-sam: x, flannel-backend: none}}
"
    ));
}

#[test]
fn without_vagrant_there_is_no_virtualbox_and_no_provisioner_of_its() {
    let spec = |provider: &str, provision: &str| {
        let text = format!(
            "name: a\nprovider: {provider}\nengine: direct\nnodes: [{{name: server, role: server}}]\nprovision: [{provision}]\n"
        );
        if super::read(&text).is_ok() { String::new() } else { said(&text) }
    };
    let text = spec("virtualbox", "");
    assert!(
        text.contains("`engine: direct` is for libvirt only") && text.contains("cluster.yaml:3:"),
        "{text}"
    );
    let text = spec("libvirt", "{name: a, type: salt}");
    assert!(text.contains("`type: salt` needs Vagrant") && text.contains("cluster.yaml:5:"), "{text}");
    let text = spec("libvirt", "{name: a, type: shell, inline: x, options: {reboot: true}}");
    assert!(text.contains("`options` needs Vagrant"), "{text}");
    assert_eq!(spec("libvirt", "{name: a, type: shell, inline: x}"), "");
}

#[test]
fn a_users_own_libvirt_has_a_bridge_and_no_more_than_it_can() {
    let spec = |libvirt: &str, more: &str| {
        let text = format!("name: a\nlibvirt: {libvirt}\n{more}nodes: [{{name: server, role: server}}]\n");
        match super::read(&text) {
            Ok(read) => {
                let c = read.cluster;
                format!("{:?} {:?} {}\n", c.provider, c.engine, c.libvirt)
            }
            Err(_) => said(&text),
        }
    };
    let own = "{uri: qemu:///session, bridge: br0}";
    let all = [
        spec(own, ""),
        spec(own, "engine: direct\nautostart: false\nprovision: [{name: a, type: shell, inline: x}]\n"),
        spec("{uri: qemu:///system}", ""),
        spec("{uri: qemu:///session}", ""),
        spec("{bridge: br0}", ""),
        spec("{uri: qemu:///session, bridge: br/0}", ""),
        spec("{uri: qemu+ssh://host/system}", ""),
        spec(own, "provider: virtualbox\nengine: vagrant\nautostart: true\nbake: auto\nnetwork: {nics: 2}\n"),
        spec(own, "provision: [{name: a, type: salt}]\n"),
    ];
    assert_snapshot!(all.join("\n"));
}

#[test]
fn autostart_is_for_libvirt() {
    let spec = |provider: &str, autostart: bool| {
        format!(
            "name: a\nprovider: {provider}\nautostart: {autostart}\ndisposable: true\nnodes: [{{name: server, role: server}}]\n"
        )
    };
    let text = said(&spec("virtualbox", true));
    assert!(text.contains("`autostart` is for libvirt only") && text.contains("cluster.yaml:3:"), "{text}");
    for good in [spec("libvirt", true), spec("auto", true), spec("virtualbox", false)] {
        assert!(super::read(&good).is_ok(), "{good}");
    }
}

#[test]
fn provisioners_that_do_not_fit() {
    let text = r#"provision:
  - {name: a, type: shel, inline: x}
  - {name: a, type: shell, nodes: [worker, wroker, 7]}
  - {name: a, type: shell, path: gone.sh, inline: x, args: "a b", env: {1x: a, B: [c]}, playbook: site.yml}
  - {name: b, type: file, source: /dev/null, options: {x: 1}}
  - {name: c, type: ansible, playbook: gone.yml, when: later, become: "yes"}
  - {name: d, type: ansible_local, playbook: site.yml, inventory: x}
  - {name: e, type: puppet, options: {manifest_file: x, run: always, "a b": 1}}
  - {name: f, type: chef_client}
  - {name: g, type: chef_solo, recipes: apt}
  - {name: Has Space, type: salt, run_highstate: true}
  - {type: salt}
  - {name: h, type: local, inline: x, when: before-k3s, run: always, nodes: [server], options: {a: b}}
  - {name: i, type: shell, inline: x, when: after-up, run: often}
"#;
    assert_snapshot!(said(&format!("{NODES}{text}")));
}

#[test]
fn applications() {
    let dir = tempfile::tempdir().unwrap();
    let put = |name: &str, text: &str| {
        let path = dir.path().join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    };
    let object =
        |kind: &str, name: &str| format!("apiVersion: v1\nkind: {kind}\nmetadata: {{name: {name}}}\n");
    put("good.yaml", &object("Service", "web"));
    put("again/web.yml", &object("Service", "web"));
    put("broken.yaml", "apiVersion: v1\nkind: Pod\nmetadata: {name: a}\n---\nkind: [\n");
    put("values.yaml", "image: nginx\n");
    put("chart/t.yaml", "{{- if .Values.x }}\nkind: Pod\n");
    put("other.yaml", "apiVersion: v1\nkind: Service\nmetadata: {name: x, namespace: theirs}\n");
    std::fs::create_dir(dir.path().join("empty")).unwrap();
    let spec = format!(
        "{NODES}namespaces: [shop, Shop, shop, {{name: x, labels: {{\"a b\": c}}}}]
manifests:
  - good.yaml
  - again
  - missing.yaml
  - broken.yaml
  - values.yaml
  - chart
  - empty
  - {{path: other.yaml, namespace: ours}}
  - https://example.org/x.yaml
  - {{path: good.yaml, namespac: x}}
"
    );
    let said = match crate::spec::parse(&spec, &dir.path().join("cluster.yaml")) {
        Ok(_) => panic!("it was taken"),
        Err(invalid) => invalid.render(false),
    };
    assert_snapshot!(said.replace(&dir.path().display().to_string(), "DIR"));
}

#[test]
fn yaml_itself() {
    let cases = [
        ("empty", String::new()),
        ("only a comment", "# nothing\n".to_owned()),
        ("a list", "- a\n- b\n".to_owned()),
        ("text", "hello\n".to_owned()),
        ("tab", "name: demo\nnodes:\n\t- {name: server}\n".to_owned()),
        ("indentation", "name: demo\n provider: auto\n".to_owned()),
        ("bracket", "name: demo\nnodes: [{name: server\n".to_owned()),
        ("two documents", format!("{NODES}---\n{NODES}")),
        ("unknown alias", "name: *demo\n".to_owned()),
        ("tag", "name: !ruby/object:Kernel demo\n".to_owned()),
        ("recursion", "name: &a [*a]\n".to_owned()),
        ("deep", "[".repeat(100_000)),
        ("bomb", bomb()),
        ("not text", "name: demo\n3: x\n[a]: b\nnodes: {a: b}\n".to_owned()),
        ("null", "name: ~\nnodes:\n".to_owned()),
        ("control characters", "name: \"a\\e[31mb\\u202e\"\nnodes: [x\u{7f}]\n".to_owned()),
        (
            "long line",
            format!("name: demo # {}\nnodes: [{}{{name: x, rol: 1}}]\n", "x".repeat(200), " ".repeat(300)),
        ),
    ];
    assert_snapshot!(cases.map(|(name, text)| format!("## {name}\n{}", said(&text))).join("\n"));
}

fn bomb() -> String {
    let mut text = "a0: &a0 [x,x,x,x,x,x,x,x,x,x]\n".to_owned();
    for i in 1..10 {
        let refs = vec![format!("*a{}", i - 1); 10].join(",");
        text.push_str(&format!("a{i}: &a{i} [{refs}]\n"));
    }
    text
}

#[test]
fn nodes_and_addresses() {
    let nodes = |name: &str, nodes: &str| (name.to_owned(), format!("name: demo\nnodes:\n{nodes}"));
    let mut cases = vec![
        nodes("no server", "  - {name: worker}\n"),
        nodes("no nodes", "  []\n"),
        nodes("two servers", "  - {name: a-1, role: server}\n  - {name: b-1, role: server}\n"),
        nodes("many servers", "  - {name: server, role: server, count: 3}\n"),
        nodes(
            "taken",
            "  - {name: w, count: 2, ip: 192.168.56.20}\n  - {name: w-2, ip: 192.168.56.21}\n  - {name: s, role: server}\n",
        ),
        nodes(
            "outside",
            "  - {name: s, role: server, ip: 192.168.56.0}\n  - {name: w, count: 3, ip: 192.168.56.254}\n  - {name: x, ip: 10.0.0.1/8}\n",
        ),
        nodes("too many", "  - {name: s, role: server}\n  - {name: w, count: 250}\n  - {name: x, count: 251}\n"),
        nodes("long name", &format!("  - {{name: s, role: server}}\n  - {{name: {}, count: 2}}\n", "x".repeat(62))),
        (
            "too small".to_owned(),
            "name: demo\nnetwork: {cidr: 10.9.0.0/29}\nnodes: [{name: s, role: server}, {name: w, count: 5}]\n"
                .to_owned(),
        ),
    ];
    for cidr in
        ["10.43.5.0/24", "10.0.0.0/8", "192.168.56.7/24", "10.0.0.0/30", "127.0.0.0/8", "x", "fd00::/64"]
    {
        cases.push((cidr.to_owned(), format!("{NODES}network: {{cidr: '{cidr}'}}\n")));
    }
    assert_snapshot!(all(cases));
}

#[test]
fn k3s_settings() {
    let k3s = |name: &str, k3s: &str| (name.to_owned(), format!("{NODES}k3s:\n{k3s}"));
    let labels = "name: demo
nodes:
  - {name: s, role: server, labels: {a: b, gpu: true, node-role.kubernetes.io/x: y}, config: {node-label: [z]}}
  - {name: w, labels: [a, b=c, b=d, -x=y, node.kubernetes.io/x=y], taints: [a, 'a:noschedule', 'a=b:NoExecute', 'a b:NoSchedule']}
  - {name: v, role: agent, config: {disable: traefik}}
";
    assert_snapshot!(all(vec![
        k3s(
            "owned",
            "  config: {node-ip: 1.2.3.4, s: x, data-dir: /x, server+: y}\n  server_config: {t: a}\n"
        ),
        k3s("values", "  config: {disable: {a: b}, tls-san: [[x]], --debug: on, selinux: }\n"),
        k3s("overlap", "  config: {cluster-cidr: 192.168.0.0/16, service-cidr: [nonsense, 'fd00::/112']}\n"),
        k3s("pods and services", "  config: {cluster-cidr: 10.43.128.0/17}\n"),
        k3s("release", "  version: v1.34.1-k3s1\n  channel: v1.34.1+k3s1\n"),
        k3s("channel", "  version: v1.34\n  channel: stabel\n"),
        ("retry".to_owned(), format!("{NODES}retry: {{backoff: 1m}}\n")),
        ("labels".to_owned(), labels.to_owned()),
    ]));
}

/// What k3s does not bear, or does nothing with, and what can be told from the file.
#[test]
fn contradictions() {
    let three = "name: demo\nnodes:\n  - {name: a-1, role: server}\n  - {name: b-1, role: server, config: CONFIG}\n  \
                 - {name: c-1, role: server}\n  - {name: w, count: 2}\n";
    let one = |config: &str| (config.to_owned(), format!("{NODES}k3s: {{config: {config}}}\n"));
    let second = |config: &str| (format!("b-1 {config}"), three.replace("CONFIG", config));
    let k3s = |k3s: &str| (k3s.to_owned(), format!("{NODES}k3s: {{{k3s}}}\n"));
    let name =
        |name: &str| (name.to_owned(), format!("name: demo\nnodes:\n  - {{name: {name}, role: server}}\n"));
    assert_snapshot!(all(vec![
        one("{cluster-cidr: 10.42.0.0/24}"),
        one("{cluster-cidr: 10.42.0.0/25}"),
        one("{cluster-cidr: 10.42.0.0/24, kube-controller-manager-arg: [node-cidr-mask-size=25]}"),
        one("{cluster-cidr: 10.42.0.0/25, kube-controller-manager-arg: --allocate-node-cidrs=false}"),
        one("{kube-controller-manager-arg: [node-cidr-mask-size=8]}"),
        one("{cluster-cidr: 64.0.0.0/3}"),
        one("{cluster-cidr: ['10.42.0.0/16,fd00:42::/56'], service-cidr: '10.43.0.0/16,10.44.0.0/16'}"),
        one("{cluster-cidr: 'no:network', cluster-cidr+: 127.0.0.0/8}"),
        one("{service-cidr: 10.43.0.0/29}"),
        one("{cluster-dns: 10.96.0.10}"),
        one("{cluster-dns: 10.96.0.10, disable: [coredns]}"),
        one("{service-cidr: 10.96.0.0/16, cluster-dns: [10.96.0.1, dns]}"),
        one(
            "{cluster-domain: Cluster_Local, service-node-port-range: 32767-30000, write-kubeconfig-mode: '0888'}"
        ),
        one("{disable: [traefic, 'servicelb, helm-controller'], disable+: [metrics, x]}"),
        one("{flannel-backend: calico, egress-selector-mode: agents}"),
        one("{flannel-backend: ipsec}"),
        k3s("version: v1.24.3+k3s1, config: {flannel-backend: wireguard}"),
        one(
            "{secrets-encryption: \"on\", etcd-snapshot-retention: many, cluster-domain: [a.b, c.d], cluster-init: []}"
        ),
        one("{etcd-snapshot-retention: 3, secrets-encryption-provider: secretbox, datastore-cafile: /ca}"),
        one("{etcd-s3-timeout: 0s, cluster-init: true, etcd-snapshot-reconcile-interval: 10}"),
        one("{cluster-init: true, datastore-endpoint: 'mysql://x'}"),
        one("{cluster-init: \"false\", datastore-endpoint: ''}"),
        one("{embedded-registry: true, docker: true}"),
        one("{bind-address: 192.168.56.11}"),
        one("{bind-address: 0.0.0.0}"),
        one("{bind-address: 127.0.0.1, node-external-ip: [203.0.113.7, x]}"),
        one("{kubelet-arg: [hostname-override=x, max-pods=50, ''], apiserver-port: 6444}"),
        (
            "count".to_owned(),
            "name: demo\nnodes:\n  - {name: s, role: server, config: {bind-address: 192.168.56.99}}\n  \
            - {name: w, count: 2, config: {node-external-ip: 203.0.113.7}}\n"
                .to_owned()
        ),
        second("{disable: traefik}"),
        second("{disable: servicelb}"),
        second("{flannel-backend: vxlan, disable-kube-proxy: false, cluster-cidr: 10.42.0.0/16}"),
        second("{supervisor-metrics: true, service-cidr: 10.96.0.0/16}"),
        k3s("registries: {mirror: {docker.io: {endpoint: [https://x]}}}"),
        k3s(
            "registries: {mirrors: {docker.io: {endpoints: [https://x], rewrite: [a]}, '*': , quay.io: {endpoint: https://x}}}"
        ),
        k3s(
            "registries: {mirrors: {a: {endpoint: ['ftp://x', 'https://a b', 'x:0', 7, 'registry.lan:5000/v2']}}}"
        ),
        k3s(
            "registries: {configs: {a: {auth: {user: x, password: [y]}, tls: {insecure_skip_verify: 'yes', ca: /x}}}, x: y}"
        ),
        k3s("server_config: {embedded-registry: true}"),
        k3s("server_config: {embedded-registry: true}, registries: {mirrors: {docker.io: }}"),
        k3s(
            "registries: {configs: {a: {auth: {username: 7, password: 8}, tls: {insecure_skip_verify: true}}}}"
        ),
        k3s("artifacts: {dir: x, images: []}"),
        name("cluster"),
        name("localhost"),
    ]));
}

fn all(cases: Vec<(String, String)>) -> String {
    cases.iter().map(|(name, text)| format!("## {name}\n{}\n", brief(text))).collect::<Vec<_>>().join("\n")
}

#[test]
fn values_that_try_to_break_out_are_refused_where_they_are_names() {
    for hostile in ["a'b", "a\"b", "#{x}", "$(reboot)", "a\\nb", "-rf", "../x", "a b", "`x`", ""] {
        let yaml = serde_json::to_string(&hostile.replace("\\n", "\n")).unwrap();
        for spec in [
            format!("name: {yaml}\nnodes: [{{name: s, role: server}}]\n"),
            format!("name: demo\nnodes: [{{name: {yaml}, role: server}}]\n"),
            format!("{NODES}box: {yaml}\n"),
            format!("{NODES}k3s: {{version: {yaml}}}\n"),
            format!("{NODES}k3s: {{channel: {yaml}}}\n"),
            format!("{NODES}k3s: {{config: {{{yaml}: x}}}}\n"),
            format!("{NODES}box: {{url: {yaml}, sha256: {yaml}}}\n"),
        ] {
            assert!(super::read(&spec).is_err(), "{spec}");
        }
    }
}

#[test]
fn places_of_files() {
    let hex = "a".repeat(64);
    let cases = [
        ("registry", "generic/debian12".to_owned()),
        ("registry, ubuntu", "bento/ubuntu-22.04".to_owned()),
        ("registry, el", "RockyLinux/10".to_owned()),
        ("file", "./my.box".to_owned()),
        ("url", "https://example.org/my.box".to_owned()),
        ("nothing", "{}".to_owned()),
        ("both", format!("{{path: x, url: 'https://x', sha256: {hex}}}")),
        ("no sum", "{url: 'https://x'}".to_owned()),
        ("bad sum", "{url: 'https://x', sha256: abc}".to_owned()),
        ("bad url", format!("{{url: 'ftp://x', sha256: {hex}}}")),
        ("home", "{path: ~/my.box}".to_owned()),
        ("absent", "{path: my.box}".to_owned()),
        ("folder", "{path: /}".to_owned()),
    ];
    let cases = cases.map(|(name, b)| (name.to_owned(), format!("{NODES}box: {b}\n"))).to_vec();
    assert_snapshot!(all(cases));
}

#[test]
fn names_of_hosts_are_one_host_s_each() {
    let text = |engine: &str, more: &str| format!("name: demo\nengine: {engine}\nnodes:\n{more}\n");
    let good = text(
        "direct",
        "  - {name: a1, role: server, hostname: wilS}\n  - {name: fe, hostname: W.lab.test, count: 2}\nhosts: {registry.test: 10.11.0.4, v6.test: \"fd00::1\"}",
    );
    let cluster = super::cluster(&good);
    let names: Vec<Vec<&str>> = cluster.nodes.iter().map(|node| node.names()).collect();
    assert_eq!(
        names,
        [vec!["wilS", "a1"], vec!["W-1.lab.test", "W-1", "fe-1"], vec!["W-2.lab.test", "W-2", "fe-2"]]
    );
    assert_eq!(cluster.hosts.len(), 2);
    let hex = brief(&text("auto", "  - {name: a1, role: server}"));
    assert!(hex.contains("`a1` consists of hex digits only") && hex.contains("`engine: direct`"), "{hex}");
    assert_snapshot!(brief(&text(
        "vagrant",
        "  - {name: server, role: server, hostname: Worker}
  - {name: worker, hostname: db.one}
  - {name: db, hostname: localhost.test}
  - {name: other, hostname: under_score}
  - {name: group, count: 2, hostname: xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx.xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx}
hosts: {SERVER: 10.0.0.1, x.test: 10.0.0.1, X.test: 10.0.0.2, y: 0.0.0.0, z: nine, 1.2.3.4: 10.0.0.1}"
    )));
}

/// What is p1's and Vagrant's alone is asked of none of them.
#[test]
fn machines_that_exist_already() {
    let spec = |name: &str, more: &str, nodes: &str| {
        (name.to_owned(), format!("name: lan\nprovider: ssh\n{more}\nnodes:\n{nodes}\n"))
    };
    let server = "  - {name: s, role: server, ip: 192.168.1.20}";
    assert_snapshot!(all(vec![
        spec(
            "good names, hex or not",
            "",
            "  - {name: face, role: server, ip: 192.168.1.20}\n  - {name: b, ip: 8.8.4.4}"
        ),
        spec("sixty of them", "", &format!("{server}\n  - {{name: w, count: 60, ip: 192.168.1.21}}")),
        spec("what p1 makes", "network: {cidr: 8.8.8.0/24}\nbox: debian-12\nkeep: true", server),
        spec(
            "a size",
            "",
            "  - {name: s, role: server, ip: 192.168.1.20, cpus: 1, memory: 512, hostname: x}"
        ),
        spec(
            "no address",
            "",
            "  - {name: s, role: server}\n  - {name: t, ip: 224.0.0.1}\n  - {name: u, ip: 127.0.0.1}"
        ),
        spec("one address", "", &format!("{server}\n  - {{name: w, ip: 192.168.1.20}}")),
        spec(
            "among the pods",
            "",
            "  - {name: s, role: server, ip: 10.42.3.5}\n  - {name: w, count: 2, ip: 10.43.0.255}"
        ),
        spec("among pods of their own", "k3s: {config: {cluster-cidr: 192.168.0.0/16}}", server),
        (
            "beside others, among the pods".to_owned(),
            "name: lan\nnodes:\n  - {name: s, role: server}\n  - {name: far, provider: ssh, ip: 10.42.3.5}\n"
                .to_owned()
        ),
    ]));
}

#[test]
fn whose_the_pods_network_is_is_said_once() {
    let spec = |k3s: &str| format!("{NODES}k3s: {{{k3s}}}\nmanifests: []\n");
    let server = |k3s: &str| super::cluster(&spec(k3s)).nodes[0].config.clone();
    let bare = server("cni: none");
    assert_eq!(bare, server("server_config: {flannel-backend: none, disable-network-policy: true}"));
    assert_eq!(server("cni: none, config: {disable-network-policy: false}")["disable-network-policy"], false);
    assert_eq!(
        server("cni: flannel, config: {flannel-backend: host-gw}"),
        server("config: {flannel-backend: host-gw}")
    );
    assert!(super::cluster(&spec("cni: none")).nodes[1].config.is_empty());
    for (k3s, said) in [
        ("cni: none", "warning: k3s will have no pod network of its own"),
        (
            "cni: none, config: {flannel-backend: vxlan}",
            "error: `flannel-backend` and `cni: none` exclude each other",
        ),
        ("cni: flannel, server_config: {flannel-backend: none}", "`cni: flannel` exclude each other"),
        ("cni: calico", "unknown value `calico` / Possible: `flannel`, `none`"),
    ] {
        let found = brief(&spec(k3s));
        assert!(found.contains(said), "{k3s}: {found}");
    }
}

#[test]
fn what_only_k3s_makes_anything_of_is_not_for_a_machine_without_it() {
    let with = |keys: &str| {
        brief(&format!(
            "name: demo\nnodes: [{{name: server, role: server}}, {{name: disk, role: none, {keys}}}]\n"
        ))
    };
    for keys in
        ["labels: {a: b}", "taints: ['a=b:NoSchedule']", "config: {debug: true}", "external_ip: 192.0.2.1"]
    {
        let key = keys.split(':').next().unwrap();
        assert!(
            with(keys).contains(&format!("`{key}` is k3s', and this machine has none")),
            "{}",
            with(keys)
        );
    }
    let alone = brief("name: demo\nnodes: [{name: disk, role: none}]\n");
    assert!(alone.contains("no node is the server"), "{alone}");
}

#[test]
fn disks_have_units_and_serials_of_their_own_and_are_libvirts() {
    let with = |more: &str, keys: &str| {
        brief(&format!("name: demo\n{more}nodes: [{{name: server, role: server, {keys}}}]\n"))
    };
    for (keys, words) in [
        ("disk: 40", "`40` has no unit"),
        ("disk: 0GiB", "`0GiB` is not the size of a disk"),
        ("disk: 500MiB", "`500MiB` is not the size of a disk"),
        ("disks: [1GiB, {size: 2GiB, serial: disk-1}]", "the serial `disk-1` is taken"),
        ("disks: [{size: 2GiB, serial: p1-files}]", "`p1-files` cannot be a disk's serial"),
        ("disks: [{size: 2GiB, serial: a.b}]", "`a.b` cannot be a disk's serial"),
        ("disks: [{serial: a}]", "`size` is missing"),
    ] {
        assert!(with("", keys).contains(words), "{words} is not in {}", with("", keys));
    }
    let elsewhere = with("provider: virtualbox\n", "disk: 20GiB, disks: [1TiB]");
    for key in ["`disk` is for libvirt only", "`disks` is for libvirt only"] {
        assert!(elsewhere.contains(key), "{elsewhere}");
    }
    let exists = brief(
        "name: demo\nnodes: [{name: server, role: server}, {name: w, ip: 10.0.0.2, provider: ssh, disk: 20GiB}]\n",
    );
    assert!(exists.contains("`disk` is for machines that p1 makes"), "{exists}");
}
