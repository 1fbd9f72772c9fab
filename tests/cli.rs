//! What people see of p1 without a cluster, and the files that it renders.
//!
//! `TRYCMD=overwrite INSTA_UPDATE=always cargo test --test cli` writes what there is now; look at the
//! difference before you keep it.

use std::collections::BTreeSet;
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

/// Another user's folder is told as such: it is not the same as none.
#[test]
fn a_state_folder_that_may_not_be_read_is_not_taken_for_none() {
    use std::os::unix::fs::PermissionsExt;
    use std::os::unix::process::CommandExt;
    let dir = tempfile::tempdir().unwrap();
    let mode = |path: &Path, mode: u32| fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    fs::write(dir.path().join("cluster.yaml"), spec("libvirt", 1)).unwrap();
    fs::copy(env!("CARGO_BIN_EXE_p1"), dir.path().join("p1")).unwrap();
    fs::create_dir_all(dir.path().join(".p1/iot")).unwrap();
    mode(dir.path(), 0o755);
    let root = nix::unistd::Uid::effective().is_root();
    mode(&dir.path().join(".p1"), if root { 0o700 } else { 0o000 });
    for args in [&["status"][..], &["plan"], &["exec", "--", "true"], &["backup", "b"], &["verify"]] {
        let mut command = Command::new(dir.path().join("p1"));
        command.args(args).current_dir(dir.path()).env("HOME", "/nonexistent").env_remove("P1_FILE");
        if root {
            command.uid(65534).gid(65534);
        }
        let out = command.stdin(Stdio::null()).output().unwrap();
        let text = String::from_utf8_lossy(&out.stderr).into_owned();
        let whose = if root { "is root's" } else { "readable for this user" };
        // `status` has a code of its own for what cannot be checked.
        let code = if args == ["status"] { 3 } else { 1 };
        assert!(
            out.status.code() == Some(code) && text.contains("Permission denied") && text.contains(whose),
            "{args:?}: {text}"
        );
        assert!(!text.contains("has not been made"), "{args:?}: {text}");
    }
    mode(&dir.path().join(".p1"), 0o700);
}

/// A secret stands elsewhere, and the datastore of a server is one thing.
#[test]
fn a_token_is_named_and_two_datastores_exclude_each_other() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("cluster.yaml");
    let validate = |more: &str| {
        fs::write(&file, format!("name: iot\nnodes: [{{name: server, role: server}}]\nk3s: {more}\n"))
            .unwrap();
        p1(dir.path(), &["validate"])
    };
    fs::write(dir.path().join("secret"), "x").unwrap();
    for good in ["{token: {file: secret}}", "{token: {env: K3S_TOKEN}}"] {
        assert_eq!(validate(good).0, 0, "{good}");
    }
    for (bad, why) in [
        ("{token: abc}", "a token does not stand in the spec itself"),
        ("{token: {}}", "either `file` or `env`"),
        ("{token: {file: secret, env: A}}", "either `file` or `env`"),
        ("{token: {env: 'A B'}}", "is not the name of a variable"),
        ("{token: {file: none}}", "none"),
        (
            "{server_config: {cluster-init: true, datastore-endpoint: 'mysql://x'}}",
            "`cluster-init` and `datastore-endpoint` exclude each other",
        ),
    ] {
        let (code, _, err) = validate(bad);
        assert!(code == 2 && err.contains(why), "{bad}: {err}");
    }
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

/// A machine that exists has its name, its address and its clock: no script gives it them, nothing makes it.
#[test]
fn an_existing_machine_is_rendered_neither_machine_nor_preparation() {
    let text = rendered(
        "name: iot\nprovider: ssh\nnodes:\n  \
         - {name: server, role: server, ip: 192.168.56.110, ssh: {user: admin}}\n",
    );
    let names: Vec<&str> =
        text.lines().filter_map(|l| l.strip_prefix("==> ")?.strip_suffix(" <==")).collect();
    assert!(names.contains(&"server/config.yaml") && names.contains(&"server/hosts"), "{names:?}");
    assert!(!names.iter().any(|n| n.contains("Vagrantfile") || n.ends_with("system.sh")), "{names:?}");
}

/// Who only works on a cluster has read them before.
#[test]
fn warnings_are_said_where_the_spec_is_checked_and_where_it_is_made_true() {
    let dir = tempfile::tempdir().unwrap();
    let unwise = spec("libvirt", 1).replace("memory: 2048", "memory: 512");
    fs::write(dir.path().join("cluster.yaml"), unwise).unwrap();
    for (args, told) in [
        (&["validate"][..], true),
        (&["plan"], true),
        (&["up"], true),
        (&["up", "--dry-run"], true),
        (&["render"], false),
        (&["status"], false),
        (&["stop"], false),
        (&["exec", "--", "true"], false),
    ] {
        let mut command = Command::new(env!("CARGO_BIN_EXE_p1"));
        // Without any program nothing is made, and nothing on this host is looked at.
        command
            .args(args)
            .current_dir(dir.path())
            .env("HOME", dir.path())
            .env("PATH", "")
            .env_remove("P1_FILE");
        let err = String::from_utf8(command.stdin(Stdio::null()).output().unwrap().stderr).unwrap();
        assert_eq!(err.contains("warning: "), told, "{args:?}: {err}");
    }
}

/// The corpus beside its files: name, patterns and text of each spec.
fn corpus() -> (tempfile::TempDir, Vec<(String, Vec<String>, String)>) {
    let dir = tempfile::tempdir().unwrap();
    let from = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/corpus/.");
    assert!(Command::new("cp").arg("-r").args([&from, dir.path()]).status().unwrap().success());
    fs::create_dir(dir.path().join("artifacts")).unwrap();
    fs::write(dir.path().join("artifacts/manifest.json"), "{}").unwrap();
    fs::write(dir.path().join("my.box"), "").unwrap();
    let text = fs::read_to_string(dir.path().join("specs.yaml")).unwrap();
    let line = |text: &str, start: &str| {
        text.lines()
            .find_map(|l| l.strip_prefix(start))
            .unwrap_or_else(|| panic!("{start}\n{text}"))
            .to_owned()
    };
    let specs = text.split("\n---\n").skip(1).map(|text| {
        let patterns = line(text, "# patterns: ").split(", ").map(str::to_owned).collect();
        (line(text, "name: "), patterns, format!("{text}\n"))
    });
    let specs = specs.collect();
    (dir, specs)
}

#[test]
fn what_vagrantfiles_set_up_is_said_in_specs_and_the_cookbook_has_a_line_for_each_pattern() {
    let (dir, specs) = corpus();
    assert_eq!(specs.len(), 32);
    let mut used = BTreeSet::new();
    for (name, patterns, text) in specs {
        let (file, out) = (format!("{name}.yaml"), format!("out/{name}"));
        fs::write(dir.path().join(&file), &text).unwrap();
        p1::internals::spec::load(&dir.path().join(&file), &|_| None)
            .unwrap_or_else(|e| panic!("{e}\n{text}"));
        let (code, _, said) = p1(dir.path(), &["-f", &file, "render", "--dir", &out]);
        assert_eq!(code, 0, "{said}\n{text}");
        assert!(dir.path().join(out).read_dir().unwrap().count() > 1, "{name}");
        used.extend(patterns);
    }
    let cookbook = fs::read_to_string("docs/cookbook.md").unwrap();
    let table = cookbook.split("## Coming from a Vagrantfile").nth(1).unwrap();
    let rows = table.lines().filter(|l| l.starts_with("| ") && !l.starts_with("| pattern"));
    let told: BTreeSet<String> = rows.map(|l| l[2..].split(" | ").next().unwrap().to_owned()).collect();
    assert_eq!(told, used, "the cookbook's rows, and the patterns of tests/corpus/specs.yaml");
}

#[test]
fn rendering_overwrites_what_was_rendered_and_nothing_else() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    fs::write(at("cluster.yaml"), spec("libvirt", 1)).unwrap();
    fs::create_dir(at("mine")).unwrap();
    for (name, file) in [("mine", "mine/Vagrantfile"), (".", "network.xml")] {
        fs::write(at(file), "by hand").unwrap();
        let (code, _, err) = p1(dir.path(), &["render", "--dir", name]);
        assert_eq!(code, 2, "{err}");
        assert!(err.contains("exists, and `p1 render` did not write it"), "{err}");
        assert_eq!(fs::read_to_string(at(file)).unwrap(), "by hand");
    }
    assert!(!at("Vagrantfile").exists(), "nothing was written beside it");
    assert_eq!(p1(dir.path(), &["render", "--dir", "mine", "--force"]).0, 0);
    assert_eq!(p1(dir.path(), &["render", "--dir", "mine"]).0, 0, "it was rendered");
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

/// Verbs that print something where there is no cluster.
const PRINT: [&[&str]; 12] = [
    &["--help"],
    &["--version"],
    &["help", "up"],
    &["schema"],
    &["man"],
    &["completions", "fish"],
    &["completions", "bash"],
    &["render", "--dir", "out"],
    &["box", "list"],
    &["doctor"],
    &["-o", "json", "validate"],
    &["-o", "json", "logs", "--bundle", "b.tar.gz"],
];

fn with_output(dir: &Path, args: &[impl AsRef<std::ffi::OsStr>], out: impl Into<Stdio>) -> (i32, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_p1"));
    command.args(args).current_dir(dir).env("HOME", dir.join("home")).stdin(Stdio::null());
    let done = command.env_remove("P1_FILE").stdout(out).output().unwrap();
    (done.status.code().unwrap(), String::from_utf8(done.stderr).unwrap())
}

#[test]
fn what_cannot_be_written_is_no_success_and_a_reader_that_goes_is() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("cluster.yaml"), spec("libvirt", 1)).unwrap();
    for args in PRINT {
        let usual = with_output(dir.path(), args, Stdio::null()).0;
        let full = fs::File::options().write(true).open("/dev/full").unwrap();
        let _ = fs::remove_file(dir.path().join("b.tar.gz"));
        let (code, err) = with_output(dir.path(), args, full);
        assert!(err.contains("standard output could not be written: no storage space"), "{args:?}: {err}");
        assert_eq!(code, if matches!(usual, 0 | 10) { 1 } else { usual }, "{args:?}: {err}");
        assert!(!err.contains("panicked"), "{args:?}: {err}");

        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let _ = fs::remove_file(dir.path().join("b.tar.gz"));
        let (code, err) = with_output(dir.path(), args, writer);
        assert_eq!(code, usual, "{args:?}: {err}");
        assert!(!err.contains("panicked") && !err.contains("could not be written"), "{args:?}: {err}");
    }
}

#[test]
fn words_that_are_not_utf8_are_survived() {
    use std::ffi::{OsStr, OsString};
    use std::os::unix::ffi::OsStrExt;
    let dir = tempfile::tempdir().unwrap();
    let word = OsStr::from_bytes(b"a\xff");
    let p1 = |dir: &Path, args: &[OsString]| {
        let (code, err) = with_output(dir, args, Stdio::null());
        assert!(code != 101 && !err.contains("panicked"), "{args:?}: {err}");
        (code, err)
    };
    let args = |words: &[&str]| -> Vec<OsString> {
        words.iter().map(|w| if *w == "@" { word.to_owned() } else { w.into() }).collect()
    };
    // A spec may have any name, and the advice names it as a shell reads it.
    fs::write(dir.path().join(word), spec("libvirt", 1)).unwrap();
    assert_eq!(p1(dir.path(), &args(&["-f", "@", "validate"])).0, 0);
    let (code, err) = p1(dir.path(), &args(&["-f", "@", "status"]));
    assert!(code != 2, "{err}");
    fs::rename(dir.path().join(word), dir.path().join("cluster.yaml")).unwrap();
    for words in [
        &["@"][..],
        &["ssh", "@"],
        &["exec", "--", "@"],
        &["kubectl", "@"],
        &["up", "@"],
        &["backup", "@"],
        &["restore", "@"],
        &["upgrade", "--to", "@"],
        &["snapshot", "save", "@"],
        &["box", "add", "@"],
        &["-o", "json", "artifacts", "verify", "@"],
        &["logs", "--step", "@"],
    ] {
        assert_ne!(p1(dir.path(), &args(words)).0, 0, "{words:?}");
    }
    for words in [&["-o", "json", "logs", "--bundle", "@"][..], &["-o", "json", "render", "--dir", "@"]] {
        let (code, err) = p1(dir.path(), &args(words));
        assert_eq!(code, 0, "{words:?}: {err}");
        let made = dir.path().join(word);
        fs::remove_file(&made).or_else(|_| fs::remove_dir_all(&made)).unwrap();
    }
    // A folder that the files of Vagrant and the journal could not name.
    let inside = dir.path().join(OsStr::from_bytes(b"b\xff"));
    fs::create_dir(&inside).unwrap();
    fs::copy(dir.path().join("cluster.yaml"), inside.join("cluster.yaml")).unwrap();
    for words in [&["up"][..], &["status"], &["render"], &["validate"]] {
        let (code, err) = p1(&inside, &args(words));
        assert!(code == 2 && err.contains("is not UTF-8"), "{words:?}: {err}");
    }
}

/// Whatever ends a verb, also before anything is begun, a program hears it as the last object.
#[test]
fn the_last_object_says_how_a_verb_ended() {
    let dir = tempfile::tempdir().unwrap();
    let end = |args: &[&str]| {
        let (code, out, err) = p1(dir.path(), args);
        let lines =
            out.lines().map(|l| serde_json::from_str(l).unwrap_or_else(|e| panic!("{args:?}: {e}: {l}")));
        let mut lines: Vec<serde_json::Value> = lines.collect();
        let end = lines.pop().unwrap_or_else(|| panic!("{args:?} prints nothing: {err}"));
        assert!(end["v"] == 1 && end["event"] == "end" && end["code"] == code, "{args:?}: {end}");
        let why = end["cause"].as_str().is_some_and(|c| !c.is_empty());
        assert_eq!(why, code != 0, "{args:?}: {end}");
        assert!(code != 2 || end["hint"].is_string() || args.contains(&"validate"), "{args:?}: {end}");
        (code, lines)
    };
    // Before there is a spec, and command lines that are none.
    for args in [
        &["-o", "json", "up"][..],
        &["-o", "json"],
        &["ssh", "-o", "json", "server", "uptime"],
        &["--output=json", "stauts"],
        &["-ojson", "exec", "--timeout", "0s", "--", "true"],
        &["-o", "json", "-j", "0", "plan"],
        &["-o", "json", "validate"],
    ] {
        assert_eq!(end(args).0, 2, "{args:?}");
    }
    assert!(end(&["-o", "json", "init"]).1[0]["spec"] == "cluster.yaml");
    fs::write(dir.path().join("cluster.yaml"), spec("libvirt", 1)).unwrap();
    for (args, code) in [
        (&["ssh", "nobody"][..], 2),
        (&["ssh"], 1),
        (&["exec", "--", "true"], 1),
        (&["kubectl", "get", "nodes"], 1),
        (&["kubeconfig"], 1),
        (&["logs"], 1),
        (&["retry"], 2),
        (&["restore", "none"], 1),
        (&["snapshot", "list"], 1),
        (&["upgrade", "--to", "x"], 2),
        (&["verify", "--image", " "], 2),
        (&["artifacts", "verify", "none"], 1),
        (&["box", "remove", "none"], 2),
        (&["validate"], 0),
        (&["render"], 0),
        (&["schema"], 0),
        (&["man"], 0),
        (&["man", "--dir", "man"], 0),
        (&["completions", "zsh"], 0),
        (&["box", "list"], 0),
    ] {
        let (is, lines) = end(&[&["-o", "json"], args].concat());
        assert_eq!(is, code, "{args:?}");
        assert_eq!(lines.is_empty(), code != 0, "{args:?}: {lines:?}");
    }
}

#[test]
fn odd_arguments_are_told_and_an_empty_variable_is_none() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("cluster.yaml"), spec("libvirt", 1)).unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_p1"));
    let done = command.arg("validate").current_dir(dir.path()).env("P1_FILE", "").output().unwrap();
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    for (args, word) in [
        (&["exec", "--timeout", "0s", "--", "true"][..], "no time"),
        (&["-j", "0", "plan"], "a number from 1 on"),
        (&["-f", "", "plan"], "a value is required"),
        (&["ssh", "worker", "uptime"], "p1 ssh worker -- uptime"),
        (&["kubectl", "-o", "wide", "get", "pods"], "p1 kubectl -- -o wide get pods"),
    ] {
        let (code, _, err) = p1(dir.path(), args);
        assert!(code == 2 && err.contains(word), "{args:?}: {err}");
    }
}

/// Every verb, as the help lists them.
fn verbs() -> Vec<String> {
    let (_, help, _) = p1(Path::new("."), &["--help"]);
    let list = help.split("Make a cluster:\n").nth(1).unwrap().split("Options:").next().unwrap();
    let name =
        |line: &str| line.strip_prefix("  ")?.split(' ').next().map(str::to_owned).filter(|n| !n.is_empty());
    let verbs: Vec<String> = list.lines().filter_map(name).filter(|name| name != "help").collect();
    assert!(verbs.len() > 20, "{verbs:?}");
    verbs
}

/// What bash offers behind a line, by p1's own script.
fn offered(dir: &Path, line: &[&str]) -> Vec<String> {
    let script = "source <(p1 completions bash); COMP_WORDS=(p1 \"$@\"); COMP_CWORD=$#; COMP_TYPE=9; \
                  _clap_complete_p1 p1 \"${!#}\" \"\"; printf '%s\\n' \"${COMPREPLY[@]}\"";
    let bin = Path::new(env!("CARGO_BIN_EXE_p1")).parent().unwrap();
    let path = format!("{}:{}", bin.display(), std::env::var("PATH").unwrap());
    let mut command = Command::new("bash");
    command.args(["-c", script, "bash"]).args(line).current_dir(dir).env("PATH", path);
    command.env("HOME", dir.join("home")).env_remove("P1_FILE").stdin(Stdio::null());
    let out = command.output().unwrap();
    assert_eq!(String::from_utf8_lossy(&out.stderr), "", "{line:?}");
    let text = String::from_utf8(out.stdout).unwrap();
    text.lines().map(|word| word.trim_end().to_owned()).filter(|word| !word.is_empty()).collect()
}

#[test]
fn names_complete_by_the_spec_and_by_what_was_done() {
    let dir = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| {
        let path = dir.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    };
    let offered = |line: &[&str]| offered(dir.path(), line);
    // Without a spec there are no names, and no words about it.
    assert_eq!(offered(&["up", "wor"]), [""; 0]);
    write(
        "cluster.yaml",
        "name: iot\nprovider: libvirt\nnodes:\n  - {name: server, role: server}\n  - {name: worker, count: 2}\n",
    );
    write("other/it.yaml", "name: b\nprovider: libvirt\nnodes:\n  - {name: elsewhere, role: server}\n");
    assert_eq!(offered(&["up", "wor"]), ["worker-1", "worker-2", "worker"]);
    assert_eq!(offered(&["exec", "role"]), ["role:server", "role:worker"]);
    assert_eq!(offered(&["ssh", "wor"]), ["worker-1", "worker-2"], "it is for one");
    assert_eq!(offered(&["up", "--replace", "worker-2"]), ["worker-2"]);
    assert_eq!(
        offered(&["-f", "other/it.yaml", "stop", ""])
            .iter()
            .filter(|w| !w.starts_with('-'))
            .collect::<Vec<_>>(),
        ["elsewhere", "role:server"]
    );
    assert_eq!(offered(&["-C", "other", "up", "serv"]), ["server"], "the spec is above");
    assert_eq!(offered(&["cp", "oth"]), ["other/"]);
    assert_eq!(offered(&["cp", "worker-1"]), ["worker-1:"]);
    assert_eq!(offered(&["-f", "other/i"]), ["other/it.yaml"]);
    assert_eq!(offered(&["verif"]), ["verify"]);
    let runs = Path::new("tests/cmd/history.in/.p1/iot/runs");
    for run in fs::read_dir(runs).unwrap().map(|e| e.unwrap().path()) {
        write(
            &format!(".p1/iot/runs/{}", run.file_name().unwrap().to_str().unwrap()),
            &fs::read_to_string(run).unwrap(),
        );
    }
    assert_eq!(offered(&["logs", "--run", "20261129T09"]).len(), 2);
    assert_eq!(offered(&["logs", "--run", "20261129T0900", "--step", "worker"]), ["worker/start"]);
    assert_eq!(offered(&["logs", "--step", "server"]), ["server/take"], "of the last run");
}

#[test]
fn completions_are_a_shells_text_for_each_shell() {
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let (code, text, _) = p1(Path::new("."), &["completions", shell]);
        assert_eq!(code, 0);
        assert!(text.contains("P1_COMPLETE"), "{shell}: {text}");
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
    for verb in verbs() {
        let page = fs::read_to_string(dir.path().join(format!("man/p1-{verb}.1"))).unwrap();
        assert!(page.contains(".TH") && page.contains(&format!("p1\\-{verb}")), "{page}");
    }
    let (_, one, _) = p1(dir.path(), &["man"]);
    assert_eq!(one, fs::read_to_string(dir.path().join(out.lines().next().unwrap())).unwrap());
}
