//! Everything that p1 reads and did not write itself, or not alone: whatever it is, it is read or
//! refused. For the fuzzer (`tests/fuzz/run`) and for the test of the unit lane (`tests/inputs.rs`).

use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::ExitStatus;

use p1::internals::api::objects;
use p1::internals::os::process::Finished;
use p1::internals::redact::Redactor;
use p1::internals::spec::Severity;
use p1::internals::{guest as facts, journal, k3s, machines::vagrant, spec};

/// Reads an input, and panics where a promise is broken.
type Read = fn(&str);

/// What can be read, with what is done to it.
pub const INPUTS: &[(&str, Read)] = &[
    ("spec", read_spec),
    ("vagrant", read_vagrant),
    ("api", read_api),
    ("journal", read_journal),
    ("kubeconfig", read_kubeconfig),
    ("manifest", read_manifest),
    ("facts", read_facts),
    ("redact", redact),
];

/// Reads `data` as `input`.
pub fn check(input: &str, data: &[u8]) {
    let (_, read) = INPUTS.iter().find(|(name, _)| *name == input).expect("an input");
    read(&String::from_utf8_lossy(data));
}

/// Every refusal has a place within the file, and what is accepted can be rendered.
fn read_spec(given: &str) {
    let text = given.trim_start_matches('\u{feff}').replace("\r\n", "\n").replace('\r', "\n");
    let (problems, cluster) = match spec::parse(given, Path::new("/nowhere/cluster.yaml")) {
        Ok(parsed) => (parsed.warnings, Some(parsed.cluster)),
        Err(invalid) => {
            assert!(
                invalid.problems.iter().any(|p| p.severity == Severity::Error),
                "refused without a reason"
            );
            assert!(!invalid.render(true).is_empty());
            (invalid.problems, None)
        }
    };
    for p in &problems {
        let line =
            text.split('\n').nth(p.line.wrapping_sub(1)).unwrap_or_else(|| panic!("no such line: {p:?}"));
        assert!(p.column >= 1 && p.column <= line.chars().count() + 1, "no such column: {p:?}");
        assert!(p.length >= 1, "{p:?}");
        assert!(p.snippet.chars().all(|c| !c.is_control()), "{p:?}");
        assert!(!p.message.is_empty() && !p.help.is_empty(), "{p:?}");
    }
    let Some(cluster) = cluster else { return };
    let tokens = k3s::Tokens::placeholder();
    spec::digest(&cluster);
    for node in &cluster.nodes {
        let text = k3s::config_yaml(&cluster, node, "eth0", &tokens, &k3s::Join::Alone);
        let back: serde_json::Value = p1_yaml(&text);
        assert_eq!(back["node-name"], node.name.as_str(), "{text}");
    }
    if let Some(text) = k3s::registries_yaml(&cluster) {
        let _: serde_json::Value = p1_yaml(&text);
    }
}

/// Reads YAML that p1 wrote.
fn p1_yaml(text: &str) -> serde_json::Value {
    serde_yaml::from_str(text).unwrap_or_else(|e| panic!("{e}:\n{text}"))
}

/// Every node gets a verdict, and a node counts as up only when Vagrant said so.
fn read_vagrant(text: &str) {
    let nodes = ["server".to_owned(), "worker".to_owned()];
    let (stdout, stderr) = text.split_once("\n\u{c}\n").unwrap_or((text, text));
    for code in [0, 1] {
        let done = Finished {
            program: "vagrant".to_owned(),
            line: "vagrant up".to_owned(),
            status: ExitStatus::from_raw(code << 8),
            stdout: stdout.to_owned(),
            stderr: stderr.to_owned(),
        };
        let mut up = Vec::new();
        let results = vagrant::read(&nodes, done, &mut |node, progress| {
            if progress == vagrant::Progress::Up {
                up.push(node.to_owned());
            }
        });
        assert_eq!(results.len(), nodes.len());
        for (node, result) in results {
            assert_eq!(result.is_ok(), up.contains(&node));
            if let Err(error) = result {
                use p1::internals::explain::Explain;
                assert!(!error.to_string().is_empty());
                let _ = (error.hint(), error.evidence(), error.transient());
            }
        }
    }
}

/// The API's answers, and what kubectl prints of them.
fn read_api(text: &str) {
    let _ = objects::nodes(text);
    if let Ok(warnings) = objects::warnings(text, 3) {
        assert!(warnings.len() <= 3 && warnings.iter().all(|w| !w.message.contains('\n') && w.count > 0));
    }
    assert!(!objects::refusal(text).is_empty());
    k3s::diagnose(&text.lines().map(str::to_owned).collect::<Vec<_>>());
    k3s::complaint(text);
}

/// It reads back, and no step counts as done of which nothing is said.
fn read_journal(text: &str) {
    match journal::parse(text, Path::new("/nowhere/run.jsonl")) {
        Ok(Some(record)) => {
            assert!(record.outstanding().count() <= record.steps.len());
            let done = record.steps.iter().filter(|s| record.passed(&s.id));
            assert!(done.into_iter().all(|s| record.outcomes.contains_key(&s.id)));
        }
        Ok(None) => {}
        Err(journal::Error::Damaged { line, .. }) => assert!(line >= 1 && line <= text.lines().count()),
        Err(error) => panic!("{error}"),
    }
}

/// Every flaw says what is wrong and what to do, at a line that there is.
fn read_manifest(text: &str) {
    let (documents, flaws) = spec::manifest::documents(text);
    let lines = text.lines().count().max(1);
    assert!(documents.iter().all(|d| d.line >= 1 && d.line <= lines));
    for flaw in flaws {
        assert!(flaw.line.is_none_or(|line| line >= 1 && line <= lines), "{:?} of {lines}", flaw.line);
        assert!(!flaw.message.is_empty() && !flaw.help.is_empty());
    }
}

/// Ours, as a server writes it.
const OURS: &str = include_str!("../fixtures/k3s.yaml");

/// What is merged can be taken out again, and everything else is as it was.
fn read_kubeconfig(text: &str) {
    let _ = k3s::kubeconfig::access(text);
    let _ = k3s::rewrite(text, "https://192.168.56.110:6443", "iot");
    let ours = k3s::rewrite(OURS, "https://192.168.56.110:6443", "iot").expect("ours is good");
    for switch in [false, true] {
        let Ok(merged) = k3s::merge(Some(text), &ours, "iot", switch, false) else { continue };
        let again =
            k3s::merge(Some(&merged.text), &ours, "iot", switch, false).expect("what was merged is good");
        assert!(again.replaced);
        assert_eq!(again.text, merged.text, "merging twice is merging once");
        let without = k3s::unmerge(&merged.text, "iot").expect("it is good").expect("it is in there");
        assert_eq!(k3s::unmerge(&without, "iot").expect("it is good"), None, "{without}");
    }
    let _ = k3s::unmerge(text, "iot");
}

/// Whole answers are read, others are refused with their end.
fn read_facts(text: &str) {
    match facts::parse(text) {
        Ok(facts) => {
            let _ = (facts.interface_of([192, 168, 56, 110].into()), facts.unit("k3s"));
            let kept = serde_json::to_string(&facts).expect("plain data");
            assert_eq!(serde_json::from_str::<facts::NodeFacts>(&kept).expect("its own words"), facts);
        }
        Err(incomplete) => assert!(incomplete.tail.len() <= 6),
    }
}

/// What is known is gone, whatever stands around it, and nothing grows without measure.
fn redact(text: &str) {
    let redactor = Redactor::new(["hunter2hunter2"]);
    let clean = redactor.text(text);
    assert!(!clean.contains("hunter2hunter2"));
    assert!(clean.len() <= 32 * text.len() + 64, "{} of {}", clean.len(), text.len());
}
