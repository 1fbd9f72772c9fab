//! What people see of p1 without a cluster, and the files that it renders.
//!
//! `TRYCMD=overwrite INSTA_UPDATE=always cargo test --test cli` writes what there is now; look at the
//! difference before you keep it.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// The texts of `tests/cmd`, each a page of commands with what they print.
#[test]
fn pages() {
    let home = tempfile::tempdir().unwrap();
    trycmd::TestCases::new()
        .env("HOME", home.path().to_str().unwrap())
        .env("NO_COLOR", "1")
        .env("COLUMNS", "100")
        .case("tests/cmd/*.md");
}

fn p1(dir: &Path, args: &[&str]) -> (i32, String, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_p1"));
    command.args(args).current_dir(dir).env("HOME", dir.join("home")).stdin(Stdio::null());
    for name in ["XDG_DATA_HOME", "XDG_CACHE_HOME", "P1_FILE"] {
        command.env_remove(name);
    }
    let out = command.output().unwrap();
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
    (out.status.code().unwrap(), text(&out.stdout), text(&out.stderr))
}

fn spec(provider: &str, nics: u8) -> String {
    format!(
        "name: iot\nprovider: {provider}\nnetwork: {{cidr: 192.168.56.0/24, nics: {nics}}}\nnodes:\n  \
         - {{name: server, role: server, ip: 192.168.56.110, cpus: 2, memory: 2048}}\n  \
         - {{name: worker, role: worker, cpus: 1, memory: 1024, labels: {{tier: \"front\"}}}}\n\
         k3s:\n  version: v1.34.1+k3s1\n  config: {{write-kubeconfig-mode: \"0644\"}}\n  \
         registries: {{mirrors: {{docker.io: {{endpoint: [\"https://mirror.test\"]}}}}}}\n"
    )
}

/// Everything that is rendered, as one text.
fn rendered(spec: &str) -> String {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("cluster.yaml"), spec).unwrap();
    let (code, out, err) = p1(dir.path(), &["render", "--dir", "out"]);
    assert_eq!(code, 0, "{err}");
    let mut text = String::new();
    for path in out.lines() {
        let path = PathBuf::from(path);
        text += &format!("==> {} <==\n", path.strip_prefix("out").unwrap_or(&path).display());
        text += &fs::read_to_string(dir.path().join(&path)).unwrap();
    }
    text
}

#[test]
fn rendered_files() {
    let mut settings = insta::Settings::clone_current();
    // Whether this host has hardware virtualisation.
    settings.add_filter(r"libvirt\.driver = '(kvm|qemu)'", "libvirt.driver = [driver]");
    settings.add_filter(
        r"libvirt\.cpu_mode = '[a-z-]+'(\n *libvirt\.cpu_model = '\w+')?",
        "libvirt.cpu_mode = [mode]",
    );
    settings.bind(|| {
        for (name, provider, nics) in
            [("libvirt", "libvirt", 1), ("libvirt_two_cards", "libvirt", 2), ("virtualbox", "virtualbox", 2)]
        {
            let text = rendered(&spec(provider, nics));
            assert_eq!(text, rendered(&spec(provider, nics)), "the same spec, the same bytes");
            insta::assert_snapshot!(name, text);
        }
    });
}

#[test]
fn the_schema_in_the_examples_is_the_programs() {
    let (code, out, _) = p1(Path::new("."), &["schema"]);
    assert_eq!(code, 0);
    assert_eq!(out, fs::read_to_string("examples/p1.schema.json").unwrap());
}

#[test]
fn verbs_that_need_a_cluster_leave_nothing_behind() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("cluster.yaml"), spec("libvirt", 1)).unwrap();
    let verbs: [&[&str]; 7] = [
        &["validate"],
        &["ssh"],
        &["exec", "server", "--", "true"],
        &["kubectl", "get", "nodes"],
        &["kubeconfig"],
        &["logs"],
        &["retry"],
    ];
    for args in verbs {
        p1(dir.path(), args);
        let names: Vec<_> = fs::read_dir(dir.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
        assert_eq!(names, ["cluster.yaml"], "{args:?}");
    }
    // That it would have been seen:
    p1(dir.path(), &["render"]);
    assert!(dir.path().join(".p1").exists());
}

const VERBS: [&str; 12] = [
    "init",
    "validate",
    "render",
    "plan",
    "up",
    "retry",
    "status",
    "exec",
    "killall",
    "uninstall",
    "destroy",
    "doctor",
];

#[test]
fn completions_name_every_verb_and_are_a_shells_text() {
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let (code, text, _) = p1(Path::new("."), &["completions", shell]);
        assert_eq!(code, 0);
        for verb in VERBS {
            assert!(text.contains(verb), "{shell} lacks {verb}");
        }
        if shell == "bash" {
            assert!(reads(&mut Command::new("bash"), &text), "bash does not read it");
            assert!(!reads(&mut Command::new("bash"), &format!("{text}\n}}")), "bash reads anything");
        }
    }
}

/// Whether a shell takes the text as a script.
fn reads(shell: &mut Command, text: &str) -> bool {
    let mut child = shell.arg("-n").stdin(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
    child.wait().unwrap().success()
}

#[test]
fn manual_pages_are_one_for_each_verb() {
    let dir = tempfile::tempdir().unwrap();
    let (code, out, _) = p1(dir.path(), &["man", "--dir", "man"]);
    assert_eq!(code, 0);
    for verb in VERBS {
        let page = fs::read_to_string(dir.path().join(format!("man/p1-{verb}.1"))).unwrap();
        assert!(page.contains(".TH") && page.contains(&format!("p1\\-{verb}")), "{page}");
    }
    let (_, one, _) = p1(dir.path(), &["man"]);
    assert_eq!(one, fs::read_to_string(dir.path().join(out.lines().next().unwrap())).unwrap());
}
