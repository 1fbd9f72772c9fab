//! A node that is somebody else's: every answer of it is a lie, and nothing of it is obeyed, believed without a look
//! or taken without end (docs/trust.md). It takes root.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::{Duration, Instant};

use super::sim::{Sim, spec};
use nix::sys::signal::Signal;

/// What a terminal would obey: a title, a clipboard, a cleared screen.
const ESCAPES: &str = "\\033]0;owned\\007\\033]52;c;b3duZWQ=\\007\\033[2J";

/// kubectl's stand-in on the host: obeys what a kubeconfig tells it to run, as kubectl does.
const KUBECTL: &str = "#!/bin/sh\n\
    sed -n 's/^ *command: *//p' \"$KUBECONFIG\" | while read -r line; do sh -c \"$line\"; done\n\
    cat \"$KUBECONFIG\"\n";

fn write(path: &Path, text: &str, mode: u32) {
    fs::write(path, text).unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}

/// Programs of the node by which everything that p1 asks is answered. `head` and `tail` flood in turn.
fn lies(name: &str) -> String {
    let says = format!("printf 'hostname={ESCAPES}lie\\nend=ok\\n{ESCAPES}\\n'");
    match name {
        "journalctl" | "dmesg" | "ps" => {
            format!("{says}; exec yes \"$(printf '{ESCAPES}')$$ is a lie\"")
        }
        _ => format!("{says}; exit 0"),
    }
}

#[test]
fn a_node_that_lies_in_every_answer_gets_nowhere() {
    let sim = Sim::new(&spec(1, 1, ""));
    sim.p1(&["up"]).exits(0);
    let owned = sim.at("owned");
    write(&sim.at("bin/kubectl"), KUBECTL, 0o755);
    let mine = fs::read_to_string(sim.state().join("kubeconfig")).unwrap();

    // The kubeconfig of a server that runs a command wherever it is used.
    let evil = format!(
        "    exec:\\n      apiVersion: client.authentication.k8s.io/v1\\n      command: touch {}\\n",
        owned.display()
    );
    sim.node("server").sh(&format!(
        "sed -i 's|^  user:$|  user:\\n{evil}    tokenFile: /etc/shadow|' /etc/rancher/k3s/k3s.yaml"
    ));
    let theirs = sim.node("server").sh("cat /etc/rancher/k3s/k3s.yaml");
    assert!(theirs.contains("command: touch"), "{theirs}");
    fs::remove_file(sim.state().join("kubeconfig")).unwrap();
    sim.p1(&["up"]).exits(0);
    assert_eq!(fs::read_to_string(sim.state().join("kubeconfig")).unwrap(), mine);
    // One that a p1 of before copied.
    fs::write(sim.state().join("kubeconfig"), theirs.replace("127.0.0.1", "192.168.56.110")).unwrap();
    let said = sim.p1(&["kubectl", "get", "nodes"]).exits(0).stdout();
    assert!(said.contains("client-key-data") && !said.contains("touch"), "{said}");
    fs::write(sim.state().join("kubeconfig"), theirs.replace("127.0.0.1", "192.168.56.110")).unwrap();
    sim.p1(&["kubeconfig", "--merge", "--into", "merged"]).exits(0);
    let merged = fs::read_to_string(sim.at("merged")).unwrap();
    assert!(
        merged.contains("client-key-data") && !merged.contains("touch") && !merged.contains("tokenFile"),
        "{merged}"
    );
    assert!(!owned.exists());
    // One with nothing in it that could be used is told by its node, and nothing is written.
    sim.node("server").sh("echo 'users: [{user: {exec: {command: x}}}]' >/etc/rancher/k3s/k3s.yaml");
    fs::remove_file(sim.state().join("kubeconfig")).unwrap();
    sim.p1(&["up"])
        .exits(1)
        .says(&["/etc/rancher/k3s/k3s.yaml of server cannot be used", "p1 exec --root server --"]);
    assert!(!sim.state().join("kubeconfig").exists());
    sim.p1(&["exec", "--root", "server", "--", "systemctl", "restart", "k3s"]).exits(0);
    sim.p1(&["retry"]).exits(0);
    assert_eq!(fs::read_to_string(sim.state().join("kubeconfig")).unwrap(), mine);

    // k3s' journal, with the cluster's secret in it and for a terminal.
    let token = fs::read_to_string(sim.state().join("token")).unwrap();
    let token = token.lines().next().unwrap().split_once('=').unwrap().1.to_owned();
    let say = format!("#!/bin/sh\nprintf '{ESCAPES}joined with {token}\\n'\n");
    let put = |node: &str, name: &str, text: &str| {
        let path = format!("/usr/local/sbin/{name}");
        sim.node(node).sh(&format!("cat >{path} <<'X'\n{text}\nX\nchmod +x {path}"));
    };
    put("worker", "journalctl", &say);
    let said = sim.p1(&["logs", "worker"]).exits(0).stdout();
    assert_eq!(said, "joined with ***\n");
    put("worker", "journalctl", "#!/bin/sh\nexec yes flood\n");
    let following = sim.start(&["logs", "--follow", "worker"]);
    following.until_printed();
    following.signal(Signal::SIGTERM);
    following.end().exits(130);

    // Everything else that it is asked.
    for name in ["journalctl", "dmesg", "ps", "ip", "uname", "df", "date", "systemctl", "ss", "sha256sum"] {
        put("worker", name, &format!("#!/bin/sh\n{}\n", lies(name)));
    }
    let clean = |what: &str, text: &str| {
        assert!(!text.contains('\u{1b}') && !text.contains('\u{7}'), "{what}: {text:?}")
    };
    for args in [
        &["status", "--deep"][..],
        &["plan", "--deep"],
        &["exec", "worker", "--", "uname"],
        &["-v", "up", "--deep"],
    ] {
        let begun = Instant::now();
        let done = sim.p1(args);
        clean(&args.join(" "), &(done.stdout() + &done.stderr()));
        assert!(begun.elapsed() < Duration::from_secs(180), "{args:?}: {:?}", begun.elapsed());
    }
    for file in files_below(&sim.at(".p1")) {
        let text = String::from_utf8_lossy(&fs::read(&file).unwrap()).into_owned();
        clean(&file.display().to_string(), &text);
    }

    // A bundle has an end, whatever the node says, and so has the wait for it.
    let begun = Instant::now();
    sim.p1(&["logs", "--bundle", "b.tar.gz"]).exits(0).says(&["nodes/worker", "said more than"]);
    assert!(begun.elapsed() < Duration::from_secs(120), "{:?}", begun.elapsed());
    assert!(fs::metadata(sim.at("b.tar.gz")).unwrap().len() < 64 << 20);
    let texts = sim.sh("mkdir -p unpacked && tar -xzf b.tar.gz -C unpacked && cat unpacked/*/nodes/worker/* | head -c 20000000");
    clean("the bundle", &texts);
    assert!(texts.contains("is a lie") && !texts.contains(&token));
    let bundle = sim.start(&["logs", "--bundle", "c.tar.gz"]);
    bundle.until_said("collecting");
    let begun = Instant::now();
    bundle.signal(Signal::SIGTERM);
    bundle.end().exits(130);
    assert!(begun.elapsed() < Duration::from_secs(30), "{:?}", begun.elapsed());
    assert!(!sim.at("c.tar.gz").exists());

    sim.p1(&["--yes", "destroy"]).exits(0);
    assert!(!owned.exists());
}

fn files_below(dir: &Path) -> Vec<std::path::PathBuf> {
    let mut all = Vec::new();
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        match entry.file_type().unwrap() {
            t if t.is_dir() => all.extend(files_below(&entry.path())),
            t if t.is_file() => all.push(entry.path()),
            _ => {}
        }
    }
    all
}

/// Another cluster of the same name in the user's own file.
#[test]
fn what_is_somebody_else_s_in_the_users_kubeconfig_stays() {
    let sim = Sim::new(&spec(1, 0, ""));
    sim.p1(&["up"]).exits(0);
    let other = include_str!("../fixtures/k3s.yaml")
        .replace("127.0.0.1:6443", "10.0.0.1:6443")
        .replace(": default", ": sim");
    let config = sim.at("config");
    write(&config, &other, 0o640);
    let read = |name: &str| fs::read_to_string(sim.at(name)).unwrap();
    let merge = ["kubeconfig", "--merge", "--switch", "--into", "config"];

    let why = "`sim` in config is not this cluster's: its cluster `sim` is at https://10.0.0.1:6443";
    sim.p1(&merge).exits(2).says(&[why, "--merge --as sim-p1", "--yes"]);
    sim.p1(&["kubeconfig", "--unmerge", "--into", "config"]).exits(2).says(&[why]);
    assert_eq!(read("config"), other);

    // Under a name of its own, and out again.
    sim.p1(&["kubeconfig", "--merge", "--as", "sim-p1", "--into", "config"])
        .exits(0)
        .says(&["`sim` as `sim-p1`"]);
    assert!(read("config").contains("10.0.0.1:6443") && read("config").contains("192.168.56.110:6443"));
    assert_eq!(fs::metadata(&config).unwrap().permissions().mode() & 0o777, 0o640);
    assert_eq!(read("config.p1-backup"), other);
    sim.p1(&["kubeconfig", "--unmerge", "--as", "sim-p1", "--into", "config"]).exits(0);
    assert!(read("config").contains("10.0.0.1:6443") && !read("config").contains("192.168.56.110:6443"));

    // Who agrees has the former file all the same, and the backup of before.
    let before = read("config");
    sim.p1(&["--yes", "kubeconfig", "--merge", "--switch", "--into", "config"]).exits(0);
    assert!(!read("config").contains("10.0.0.1:6443"));
    let kept: Vec<String> = fs::read_dir(sim.at(""))
        .unwrap()
        .flatten()
        .map(|e| e.path())
        .filter(|p| p.to_string_lossy().contains("config.p1-backup"))
        .map(|p| fs::read_to_string(p).unwrap())
        .collect();
    assert!(kept.contains(&other) && kept.contains(&before), "{}", kept.len());
    // It is ours by now.
    sim.p1(&merge).exits(0);
    sim.p1(&["kubeconfig", "--unmerge", "--into", "config"]).exits(0);

    // A link stays one; what is no file is left alone.
    fs::create_dir(sim.at("dotfiles")).unwrap();
    write(&sim.at("dotfiles/kube"), "", 0o600);
    std::os::unix::fs::symlink("dotfiles/kube", sim.at("link")).unwrap();
    sim.p1(&["kubeconfig", "--merge", "--into", "link"]).exits(0);
    assert!(sim.at("link").symlink_metadata().unwrap().is_symlink());
    assert!(read("dotfiles/kube").contains("192.168.56.110:6443"));
    sim.sh("mkfifo fifo; mknod null c 1 3");
    for name in ["fifo", "null", "dotfiles"] {
        sim.p1(&["kubeconfig", "--merge", "--into", name]).exits(2).says(&["Nothing was written"]);
        assert!(!sim.at(name).symlink_metadata().unwrap().is_file(), "{name}");
    }
}
