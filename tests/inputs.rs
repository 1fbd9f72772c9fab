//! Everything that p1 reads and did not write itself: whatever it is, p1 reads it or refuses it, and what it
//! accepts arrives in Ruby, in a shell, in YAML and in XML as it was given.
//!
//! `tests/fuzz/run` does the first with coverage as its guide, for as long as one likes; here are its seeds, with
//! pieces cut out, doubled and put in.

#[path = "fuzz/inputs.rs"]
mod inputs;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use serde_json::{Value, json};

fn seeds(input: &str) -> Vec<Vec<u8>> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fuzz/seeds").join(input);
    let mut paths: Vec<PathBuf> = fs::read_dir(&dir).unwrap().map(|e| e.unwrap().path()).collect();
    paths.sort();
    assert!(!paths.is_empty(), "{}", dir.display());
    paths.iter().map(|p| fs::read(p).unwrap()).collect()
}

/// The fuzzer's words, as it reads them.
fn words() -> Vec<Vec<u8>> {
    let text = include_str!("fuzz/words.dict");
    let word = |line: &str| {
        let inner = line.strip_prefix('"')?.strip_suffix('"')?;
        Some(
            inner
                .replace("\\x0a", "\n")
                .replace("\\x00", "\0")
                .replace("\\\"", "\"")
                .replace("\\\\", "\\")
                .into_bytes(),
        )
    };
    let all: Vec<_> = text.lines().filter_map(word).collect();
    assert!(all.len() > 30);
    all
}

/// MiB of this process' memory at their most.
fn peak() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|l| l.starts_with("VmHWM")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() / 1024
}

#[test]
fn every_input_is_read_or_refused() {
    let words = words();
    for (input, _) in inputs::INPUTS {
        let seeds = seeds(input);
        for seed in &seeds {
            inputs::check(input, seed);
        }
        let edit =
            (any::<prop::sample::Index>(), 0..40_usize, 0..40_usize, any::<prop::sample::Index>(), 0..6_u8);
        let strategy = (any::<prop::sample::Index>(), prop::collection::vec(edit, 0..8));
        let config = Config { cases: 400, failure_persistence: None, ..Config::default() };
        let (begun, before) = (Instant::now(), peak());
        let mut runner = TestRunner::new(config);
        let result = runner.run(&strategy, |(seed, edits)| {
            let mut data = seeds[seed.index(seeds.len())].clone();
            for (at, cut, len, word, what) in edits {
                let at = at.index(data.len() + 1);
                let cut = (at + cut).min(data.len());
                let piece = match what {
                    0 => data[at..(at + len).min(data.len())].repeat(3),
                    1 => vec![b'\xff', b'\0', b'\n'],
                    2 => "\u{202e}\u{feff}é\u{1f600}".as_bytes().to_vec(),
                    _ => words[word.index(words.len())].clone(),
                };
                data.splice(at..if what == 0 { at } else { cut }, piece);
            }
            let begun = Instant::now();
            inputs::check(input, &data);
            prop_assert!(begun.elapsed() < Duration::from_secs(20), "{:?}", String::from_utf8_lossy(&data));
            Ok(())
        });
        if let Err(error) = result {
            panic!("{input}: {error}");
        }
        // The kernel counts by thread, so that a peak may look a little lower later.
        let grown = peak().saturating_sub(before);
        println!(
            "{input}: {} seeds, 400 others in {:.1} s, {grown} MiB",
            seeds.len(),
            begun.elapsed().as_secs_f64()
        );
        assert!(grown < 400, "{input}: grew by {grown} MiB");
    }
}

/// Nesting, repetition and length of what a reader may follow for ever.
#[test]
fn what_is_deep_long_or_endless_is_refused_in_time() {
    let laughs = {
        let mut text = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n".to_owned();
        for i in 1..12 {
            text += &format!("a{i}: &a{i} [{}]\n", vec![format!("*a{}", i - 1); 10].join(", "));
        }
        text
    };
    let deep = |open: &str, close: &str| open.repeat(20_000) + &close.repeat(20_000);
    let before = peak();
    for text in [
        laughs.clone(),
        format!("{laughs}clusters: *a11\nusers: *a11\ncontexts: *a11\n"),
        deep("[", "]"),
        deep("{a: ", "}"),
        deep("{\"items\":[", "]}"),
        "- ".repeat(20_000),
        "x".repeat(2_000_000),
        format!("{}\n", "a=b".repeat(500_000)),
        "&a *a\n".repeat(50_000),
        "password: |\n".repeat(50_000),
        "-----BEGIN ".repeat(100_000),
        "://".repeat(100_000),
        "--token ".repeat(100_000),
        "1795000000,server,ui,error,x\n".repeat(50_000),
        "An error occurred while executing the action on the 'server'\n\n".repeat(20_000),
    ] {
        for (input, _) in inputs::INPUTS {
            let begun = Instant::now();
            inputs::check(input, text.as_bytes());
            // Seconds even without optimisation and beside other work.
            assert!(begun.elapsed() < Duration::from_secs(60), "{input}: {:?}: {text:.40}", begun.elapsed());
        }
    }
    assert!(peak() - before < 700, "grew by {} MiB", peak() - before);
}

// ---------------------------------------------------------------------------------------------
// Values that mean something to the languages they land in

fn hostile() -> impl Strategy<Value = String> {
    let piece = prop::sample::select(vec![
        "'",
        "\"",
        "`",
        "\\",
        "#{raise 1}",
        "#$0",
        "$(touch pwned)",
        "`touch pwned`",
        "${HOME}",
        "; touch pwned #",
        "|",
        "&",
        "\n",
        "\r",
        "\t",
        "-",
        "--",
        "-e",
        "../",
        "/../..",
        "{{ x }}",
        "{% raw %}",
        "<%= y %>",
        "<!--",
        "]]>",
        "&amp;",
        "%s",
        "%{x}",
        "*a",
        "&a",
        "!x ",
        ": ",
        "- ",
        "? ",
        "|\n",
        ">\n",
        "~",
        "null",
        "yes",
        "0x1",
        "1e3",
        "é",
        "\u{202e}",
        "\u{feff}",
        "\u{2028}",
        "\u{85}",
        "\u{1f600}",
        " ",
        "  ",
        "x",
        "end",
        "EOF",
        "\\'",
        "\\\\'",
        "__END__",
        "=begin",
        "@",
    ]);
    prop::collection::vec(piece, 0..14).prop_map(|pieces| pieces.concat())
}

fn several(count: usize) -> Vec<String> {
    let mut runner = TestRunner::deterministic();
    let tree = prop::collection::vec(hostile(), count).new_tree(&mut runner).unwrap();
    let mut all = proptest::strategy::ValueTree::current(&tree);
    all.push("x".repeat(100_000));
    all.push("'".repeat(5_000));
    all
}

fn run(dir: &Path, program: &str, args: &[&str], script: &str) -> Output {
    fs::write(dir.join("script"), script).unwrap();
    let mut command = Command::new(program);
    command.args(args).arg("script").current_dir(dir).env("LC_ALL", "C.UTF-8").env("RUBYOPT", "");
    let out = command.output().unwrap_or_else(|e| panic!("{program}: {e}"));
    assert!(out.status.success(), "{program}: {}", String::from_utf8_lossy(&out.stderr));
    out
}

/// Through the filters that every value of a template passes, and through the languages themselves.
#[test]
fn hostile_values_are_read_back_by_ruby_and_a_shell() {
    let dir = tempfile::tempdir().unwrap();
    let values = several(400);
    let list: Vec<Value> = values.iter().map(|v| json!(v)).collect();

    let ruby = format!(
        "# encoding: utf-8\nrequire 'json'\nall = [\n{}\n]\nprint JSON.generate(all)\nprint \"\\n\"\nprint JSON.generate({})\n",
        list.iter().map(|v| p1::internals::render::ruby(v) + ",\n").collect::<String>(),
        p1::internals::render::ruby(&json!({ "key's": list[..20], "n": [null, true, 1.5] })),
    );
    let checked = {
        fs::write(dir.path().join("script"), &ruby).unwrap();
        Command::new("ruby").args(["-c", "script"]).current_dir(&dir).output().unwrap()
    };
    assert!(checked.status.success(), "{}", String::from_utf8_lossy(&checked.stderr));
    let out = run(dir.path(), "ruby", &[], &ruby);
    let text = String::from_utf8(out.stdout).unwrap();
    let (all, map) = text.split_once('\n').unwrap();
    assert_eq!(serde_json::from_str::<Vec<String>>(all).unwrap(), values);
    assert_eq!(serde_json::from_str::<Value>(map).unwrap()["key's"], json!(list[..20]));

    let shell = list
        .iter()
        .map(|v| format!("printf '%s\\0' {}\n", p1::internals::render::shell(v)))
        .collect::<String>();
    let checked = {
        fs::write(dir.path().join("script"), &shell).unwrap();
        Command::new("sh").args(["-n", "script"]).current_dir(&dir).output().unwrap()
    };
    assert!(checked.status.success(), "{}", String::from_utf8_lossy(&checked.stderr));
    let text = String::from_utf8(run(dir.path(), "sh", &[], &shell).stdout).unwrap();
    let back: Vec<&str> = text.split('\0').collect();
    assert_eq!(back[..back.len() - 1], values);
    // What p1 itself quotes by.
    let quoted = values
        .iter()
        .map(|v| format!("printf '%s\\0' {}\n", p1::internals::os::process::quote(v)))
        .collect::<String>();
    let text = String::from_utf8(run(dir.path(), "sh", &[], &quoted).stdout).unwrap();
    assert_eq!(
        text.split('\0').filter(|t| !t.is_empty()).count(),
        values.iter().filter(|v| !v.is_empty()).count()
    );
    assert!(text.split('\0').zip(&values).all(|(a, b)| a == b));
    assert!(!dir.path().join("pwned").exists() && !Path::new("pwned").exists());
}

/// A whole Vagrantfile, run by Ruby with a Vagrant that notes what it is told.
const STUB: &str = r#"
require 'json'
require 'pathname'
NOTED = []
class Note
  def initialize(path) = @path = path
  def method_missing(name, *args, **named, &block)
    NOTED << [@path + [name.to_s], args, named.transform_keys(&:to_s)] unless args.empty? && named.empty?
    inner = Note.new(@path + [name.to_s])
    # `node.vm.provider :libvirt do |libvirt, override|`
    block.call(inner, Note.new(@path + ['override'])) if block
    inner
  end
  def respond_to_missing?(*) = true
end
module Vagrant
  def self.configure(_version) = yield(Note.new([]))
  def self.require_version(*) = nil
  def self.user_data_path = Pathname.new('/nowhere')
  def self.has_plugin?(*) = true
end
"#;

#[test]
fn hostile_values_go_through_a_whole_vagrantfile() {
    let dir = tempfile::tempdir().unwrap();
    let home = dir.path().join("home");
    fs::create_dir(&home).unwrap();
    for (round, value) in several(6).into_iter().filter(|v| v.len() < 2000).enumerate() {
        let given = serde_json::to_string(&value).unwrap();
        let spec = format!(
            "name: hostile\nprovider: libvirt\nbox: {{url: \"https://boxes.test/x.box\", sha256: {}}}\nnodes:\n  \
             - {{name: server, role: server}}\n  - {{name: w, count: 2}}\n\
             k3s:\n  version: v1.34.1+k3s1\n  config: {{kubelet-arg: [{given}]}}\n  registries: {{x: {given}}}\n\
             provision: [{{name: one, type: shell, inline: {given}, env: {{X: {given}}}, args: [{given}]}}]\n",
            "0".repeat(64)
        );
        let file = dir.path().join(format!("{round}.yaml"));
        fs::write(&file, &spec).unwrap();
        let out_dir = dir.path().join(format!("out-{round}"));
        let p1 = Command::new(env!("CARGO_BIN_EXE_p1"))
            .arg("-f")
            .arg(&file)
            .arg("render")
            .arg("--dir")
            .arg(&out_dir)
            .current_dir(dir.path())
            .env("HOME", &home)
            .env_remove("P1_FILE")
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&p1.stderr).into_owned();
        if !p1.status.success() {
            // Refused, with the place.
            assert!(p1.status.code() == Some(2) && said.contains(".yaml:"), "{value:?}: {said}");
            continue;
        }
        let vagrantfile = fs::read_to_string(out_dir.join("Vagrantfile")).unwrap();
        let script = format!("{STUB}\n{vagrantfile}\nprint JSON.generate(NOTED)\n");
        let out = run(&out_dir, "ruby", &[], &script);
        let noted: Vec<Value> = serde_json::from_slice(&out.stdout).unwrap();
        assert!(noted.len() > 10, "{noted:?}");
        let told = |wanted: &Value| {
            fn has(value: &Value, wanted: &Value) -> bool {
                value == wanted
                    || value.as_array().is_some_and(|a| a.iter().any(|v| has(v, wanted)))
                    || value.as_object().is_some_and(|o| o.values().any(|v| has(v, wanted)))
            }
            noted.iter().any(|n| has(n, wanted))
        };
        assert!(told(&json!(value)), "{value:?} did not arrive:\n{vagrantfile}");
        for node in ["server", "w-1", "w-2"] {
            for script in ["system.sh", "install.sh"] {
                assert!(
                    Command::new("sh")
                        .arg("-n")
                        .arg(out_dir.join(node).join(script))
                        .status()
                        .unwrap()
                        .success()
                );
            }
            let yaml = |name: &str| -> Value {
                serde_yaml::from_str(&fs::read_to_string(out_dir.join(node).join(name)).unwrap()).unwrap()
            };
            assert_eq!(yaml("config.yaml")["kubelet-arg"][0], json!(value));
            assert_eq!(yaml("registries.yaml")["x"], json!(value));
        }
    }
    assert!(!dir.path().join("pwned").exists() && !Path::new("pwned").exists());
}

/// Names and addresses of files are either refused, with their place, or used as they are.
#[test]
fn hostile_names_are_refused_with_their_place() {
    for name in [
        "a'b",
        "a\"b",
        "a b",
        "#{x}",
        "$(x)",
        "`x`",
        "-a",
        "--help",
        "../a",
        "a/b",
        "a\nb",
        "a\0b",
        ".",
        "..",
        "",
        "A",
        "a_b",
        "a\u{202e}b",
        "é",
        &"a".repeat(64),
        "face",
        "1234",
        "a.b",
        "a-",
    ] {
        let quoted = serde_json::to_string(name).unwrap();
        for (spec, line) in [
            (format!("name: {quoted}\nnodes: [{{name: server, role: server}}]\n"), 1),
            (format!("name: x1\nnodes:\n- {{name: server, role: server}}\n- {{name: {quoted}}}\n"), 4),
        ] {
            // A cluster may be called by hex digits, as no machine is.
            if line == 1 && ["face", "1234"].contains(&name) {
                continue;
            }
            let invalid =
                p1::internals::spec::parse(&spec, Path::new("/x/cluster.yaml")).map(|_| ()).unwrap_err();
            let error =
                invalid.problems.iter().find(|p| p.severity == p1::internals::spec::Severity::Error).unwrap();
            assert!(error.line >= line && error.column > 1, "{name:?}: {error:?}");
        }
    }
}
