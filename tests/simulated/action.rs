//! The steps of action.yml as a runner runs them, with its files played: GITHUB_ENV, GITHUB_OUTPUT and GITHUB_PATH.
//! What a step `uses` is GitHub's own and is left out.

use std::collections::BTreeMap;
use std::fs;

use serde_yaml::Value;

use super::sim::{Sim, spec};

/// One job: what its steps left to each other.
struct Job<'a> {
    sim: &'a Sim,
    action: Value,
    env: BTreeMap<String, String>,
    path: String,
    outputs: String,
}

impl<'a> Job<'a> {
    fn new(sim: &'a Sim) -> Self {
        let text = fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/action.yml")).unwrap();
        Self {
            sim,
            action: serde_yaml::from_str(&text).unwrap(),
            env: BTreeMap::new(),
            path: String::new(),
            outputs: String::new(),
        }
    }

    /// Runs the action once with these inputs: whether it succeeded, and all that was printed.
    fn uses(&mut self, with: &[(&str, &str)]) -> (bool, String) {
        let mut inputs: BTreeMap<String, String> = BTreeMap::new();
        for (name, input) in self.action["inputs"].as_mapping().unwrap() {
            inputs.insert(name.as_str().unwrap().into(), input["default"].as_str().unwrap().into());
        }
        for (name, value) in with {
            assert!(inputs.insert((*name).into(), (*value).into()).is_some(), "no input {name}");
        }
        let value = |expression: &str| match expression.trim().split_once('.').unwrap() {
            ("inputs", name) => inputs[name].clone(),
            ("github", "action_path") => env!("CARGO_MANIFEST_DIR").to_owned(),
            (other, name) => panic!("{other}.{name}"),
        };
        let (mut failed, mut said) = (false, String::new());
        for step in self.action["runs"]["steps"].as_sequence().unwrap().clone() {
            let condition = step["if"].as_str().unwrap_or("");
            let holds = |part: &str, failed: bool| -> bool {
                let part = part.trim().trim_matches(['(', ')']);
                match (part, part.split_once(" == "), part.split_once(" != ")) {
                    ("failure", ..) => failed,
                    ("always", ..) => true,
                    (_, Some((name, word)), _) => value(name) == word.trim_matches('\''),
                    (_, _, Some((name, word))) => value(name) != word.trim_matches('\''),
                    _ => panic!("{part}"),
                }
            };
            // `&&` of `||`s in brackets is all there is.
            let any = |part: &str| part.split(" || ").any(|one| holds(one, failed));
            let usual = !condition.contains("failure()") && !condition.contains("always()");
            if !condition.is_empty() && !condition.split(" && ").all(any) || usual && failed {
                continue;
            }
            let Some(run) = step["run"].as_str() else { continue };
            let mut command = self.sim.command("bash");
            command.args(["--noprofile", "--norc", "-eo", "pipefail", "-c", run]);
            let path =
                format!("{}{}:{}", self.path, self.sim.at("bin").display(), std::env::var("PATH").unwrap());
            command.env("PATH", path).env("RUNNER_TEMP", self.sim.at("temp")).envs(&self.env);
            for (name, expression) in step["env"].as_mapping().into_iter().flatten() {
                let expression = expression.as_str().unwrap();
                let inner = expression.strip_prefix("${{").and_then(|e| e.strip_suffix("}}")).unwrap();
                command.env(name.as_str().unwrap(), value(inner));
            }
            let file = |name: &str| self.sim.at(&format!("temp-{name}"));
            for name in ["GITHUB_ENV", "GITHUB_OUTPUT", "GITHUB_PATH"] {
                fs::write(file(name), "").unwrap();
                command.env(name, file(name));
            }
            let out = command.output().unwrap();
            said +=
                &format!("{}{}", String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr));
            failed |= !out.status.success();
            let read = |name: &str| fs::read_to_string(file(name)).unwrap();
            let pairs = read("GITHUB_ENV");
            let pairs = pairs.lines().filter_map(|l| l.split_once('='));
            let pairs: Vec<(String, String)> = pairs.map(|(k, v)| (k.into(), v.into())).collect();
            let (outputs, paths) = (read("GITHUB_OUTPUT"), read("GITHUB_PATH"));
            self.env.extend(pairs);
            self.outputs += &outputs;
            paths.lines().for_each(|line| self.path = format!("{line}:{}", self.path));
        }
        (!failed, said)
    }
}

/// What is an input's reaches a script by its environment, and docs/action.md has each with its default.
#[test]
fn the_action_has_no_input_in_a_script_and_each_in_its_document() {
    let text = fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/action.yml")).unwrap();
    let action: Value = serde_yaml::from_str(&text).unwrap();
    let steps = action["runs"]["steps"].as_sequence().unwrap();
    let scripts: Vec<&str> = steps.iter().filter_map(|step| step["run"].as_str()).collect();
    assert!(scripts.len() > 6);
    scripts.iter().for_each(|run| assert!(!run.contains("${{"), "an input within a script: {run}"));
    let told = fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/action.md")).unwrap();
    for (name, input) in action["inputs"].as_mapping().unwrap() {
        let default = match input["default"].as_str().unwrap() {
            "" => "none".to_owned(),
            word => format!("`{word}`"),
        };
        let row = format!("| `{}` | {default} |", name.as_str().unwrap());
        assert!(told.contains(&row), "docs/action.md lacks {row}");
    }
}

#[test]
fn the_action_makes_a_cluster_runs_what_it_is_given_and_destroys_it() {
    let sim = Sim::new(&spec(1, 1, "engine: direct\n"));
    let mut job = Job::new(&sim);
    let binary = ("binary", env!("CARGO_BIN_EXE_p1"));
    let gone = || sim.node("server").state().is_empty() && !sim.state().exists();

    // A cluster for the steps that follow, and its end.
    let (ok, said) = job.uses(&[binary]);
    assert!(ok, "{said}");
    assert!(
        job.outputs.contains(r#"nodes={"server": "192.168.56.110", "worker": "192.168.56.111"}"#),
        "{}",
        job.outputs
    );
    assert_eq!(job.env["KUBECONFIG"], sim.state().join("kubeconfig").display().to_string());
    assert_eq!(sim.node("worker").state(), "running");
    let (ok, said) = job.uses(&[("do", "destroy")]);
    assert!(ok && gone(), "{said}");

    // A test for each of two copies; what is no word of a shell's stays what it is.
    let tests =
        "\necho one in $P1_FORK >one-'$(id)'\n\n  p1 exec server -- true && test -s \"$KUBECONFIG\"; false\n";
    let (ok, said) = job.uses(&[binary, ("tests", tests)]);
    assert!(!ok && gone(), "{said}");
    assert!(fs::read_to_string(sim.at("one-$(id)")).unwrap().ends_with("sim-f1\n"));
    assert_eq!(fs::read_dir(sim.at("temp/p1")).unwrap().count(), 1, "{said}");
    assert!(said.contains("sim-f2 |"), "{said}");

    // The same one after the other; then a script.
    let tests = "p1 exec worker --root -- touch /root/trace\np1 exec worker --root -- test ! -e /root/trace";
    let (ok, said) = job.uses(&[binary, ("tests", tests), ("isolation", "reset")]);
    assert!(ok && gone(), "{said}");
    let (ok, said) = job.uses(&[binary, ("run", "p1 status\ntest -s \"$KUBECONFIG\"")]);
    assert!(ok && gone(), "{said}");
}
