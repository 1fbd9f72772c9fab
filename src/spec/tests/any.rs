//! Whatever the text is: no panic, every refusal has a place, and what is accepted keeps its promises.

use std::collections::HashSet;

use proptest::prelude::*;

use super::super::{Init, ProviderChoice, Role, Severity, init, name_for, schema};
use super::read;
use super::schema::{as_json, valid};

/// Words of a spec, so that random files get beyond the first line.
const WORDS: &[&str] = &[
    "name",
    "provider",
    "box",
    "network",
    "cidr",
    "nics",
    "nodes",
    "role",
    "server",
    "worker",
    "agent",
    "count",
    "ip",
    "cpus",
    "memory",
    "labels",
    "taints",
    "config",
    "k3s",
    "channel",
    "version",
    "registries",
    "artifacts",
    "binary",
    "images",
    "path",
    "url",
    "sha256",
    "manifests",
    "namespaces",
    "timeouts",
    "boot",
    "retry",
    "backoff",
    "demo",
    "192.168.56.0/24",
    "192.168.56.12",
    "10.42.0.0/16",
    "0",
    "1",
    "2",
    "3",
    "250",
    "-1",
    "2GiB",
    "5m",
    "stable",
    "v1.34.1+k3s1",
    "token",
    "${A}",
    "${A:-1}",
    "${secret:",
    "$$",
    "tls-san+",
    "cluster-cidr",
    "true",
    "yes",
    "~",
    "a=b",
    "x:NoSchedule",
    "\"",
    "'",
    "\n",
    "\n  ",
    "\n    ",
    "\n- ",
    "\n  - ",
    ": ",
    ": ",
    ": ",
    ", ",
    "{",
    "}",
    "[",
    "]",
    "&a ",
    "*a",
    "<<",
    "|\n",
    "#",
    "---",
    "\t",
    "é",
    "\u{1f600}",
    "!x ",
    "? ",
    "\r\n",
    "\u{feff}",
    "\u{2028}",
];

fn soup() -> impl Strategy<Value = String> {
    prop::collection::vec(prop::sample::select(WORDS), 0..60).prop_map(|words| words.concat())
}

/// A good spec with a few pieces cut out, doubled or put in.
fn broken() -> impl Strategy<Value = String> {
    let good = init(&Init::default()).replace("# ", "");
    let edit = (any::<prop::sample::Index>(), 0..30_usize, prop::sample::select(WORDS));
    prop::collection::vec(edit, 1..6).prop_map(move |edits| {
        let mut chars: Vec<char> = good.chars().collect();
        for (at, len, word) in edits {
            let start = at.index(chars.len().max(1)).min(chars.len());
            let end = (start + len).min(chars.len());
            chars.splice(start..end, word.chars());
        }
        chars.into_iter().collect()
    })
}

/// Specs whose parts are good each, and that may or may not go together.
fn likely() -> impl Strategy<Value = String> {
    let name = prop::sample::select(vec!["a", "face", "w", "w-1", "node", "s-2"]);
    let ip = prop::option::of(1..255_u8);
    let node = (name, 0..8_u8, prop::option::of(0..4_u8), ip, prop::option::of(100..4000_u32));
    let nodes = prop::collection::vec(node, 1..6);
    let cidr =
        prop::sample::select(vec!["192.168.56.0/24", "192.168.56.0/28", "192.168.56.0/29", "10.0.0.0/8"]);
    (nodes, cidr).prop_map(|(nodes, cidr)| {
        let mut out = format!("name: demo\nnetwork: {{cidr: {cidr}}}\nnodes:\n");
        for (i, (name, kind, count, ip, memory)) in nodes.iter().enumerate() {
            out.push_str(&format!(
                "  - name: {name}{}\n",
                if kind % 2 == 0 { format!("x{i}") } else { "".into() }
            ));
            if i == 0 && *kind < 6 {
                out.push_str("    role: server\n");
            } else if let Some(count) = count {
                out.push_str(&format!("    count: {count}\n"));
            }
            if let Some(ip) = ip {
                out.push_str(&format!("    ip: 192.168.56.{ip}\n"));
            }
            if let Some(memory) = memory {
                out.push_str(&format!("    memory: {memory}\n"));
            }
        }
        out
    })
}

/// True if it was accepted.
fn holds(given: &str) -> Result<bool, TestCaseError> {
    let text = given.trim_start_matches('\u{feff}').replace("\r\n", "\n").replace('\r', "\n");
    let lines = text.matches('\n').count() + 1;
    let problems = match read(given) {
        Ok(parsed) => {
            let c = &parsed.cluster;
            prop_assert_eq!(c.servers().count(), 1);
            prop_assert_eq!(c.nodes[0].role, Role::Server);
            let names: HashSet<_> = c.nodes.iter().map(|n| &n.name).collect();
            let ips: HashSet<_> = c.nodes.iter().map(|n| n.ip).collect();
            prop_assert_eq!(names.len(), c.nodes.len());
            prop_assert_eq!(ips.len(), c.nodes.len());
            for node in &c.nodes {
                prop_assert!(c.network.cidr.hosts().any(|h| h == node.ip));
                prop_assert!(node.ip != c.network.gateway());
                prop_assert!(node.name.len() <= 63 && !node.name.bytes().all(|b| b.is_ascii_hexdigit()));
            }
            prop_assert!(parsed.warnings.iter().all(|p| p.severity == Severity::Warning));
            parsed.warnings
        }
        Err(invalid) => {
            prop_assert!(invalid.problems.iter().any(|p| p.severity == Severity::Error));
            prop_assert!(!invalid.render(true).is_empty());
            invalid.problems
        }
    };
    for p in &problems {
        prop_assert!((1..=lines).contains(&p.line) && p.column >= 1 && p.length >= 1, "{p:?}");
        prop_assert!(!p.message.is_empty() && !p.help.is_empty());
        prop_assert!(p.snippet.chars().all(|c| !c.is_control()));
        prop_assert!(p.mark <= p.snippet.chars().count());
        // The place is in its line, or just behind it.
        let width = text.split('\n').nth(p.line - 1).unwrap_or("").chars().count();
        prop_assert!(p.column <= width + 1, "{p:?}");
    }
    Ok(!problems.iter().any(|p| p.severity == Severity::Error))
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_text(text in "\\PC{0,80}|(?s).{0,200}") {
        holds(&text)?;
    }

    #[test]
    fn words_in_any_order(text in soup()) {
        holds(&text)?;
    }

    #[test]
    fn broken_specs(text in broken()) {
        holds(&text)?;
    }

    #[test]
    fn likely_specs(text in likely()) {
        if holds(&text)? {
            prop_assert!(valid(&schema(), &as_json(&text)));
        }
    }

    #[test]
    fn new_specs_are_good(
        name in ".{0,80}", workers in 0..50_u32, provider in 0..ProviderChoice::WORDS.len(), net in 0..256_u32, prefix in 24..26_u8,
    ) {
        let provider = ProviderChoice::WORDS[provider].1;
        let cidr = format!("192.168.{net}.0/{prefix}");
        let options = Init { name: name_for(&name), workers, provider, cidr: cidr.clone(), ..Init::default() };
        let text = init(&options);
        prop_assert!(text.starts_with("# yaml-language-server: $schema=./p1.schema.json\n"));
        let parsed = read(&text).map_err(|e| TestCaseError::fail(e.render(false)))?;
        prop_assert!(parsed.warnings.is_empty());
        prop_assert_eq!(parsed.cluster.name, options.name);
        prop_assert_eq!(parsed.cluster.provider, provider);
        if provider != ProviderChoice::Ssh {
            prop_assert_eq!(parsed.cluster.network.cidr.to_string(), cidr);
        }
        prop_assert_eq!(parsed.cluster.nodes.len(), workers as usize + 1);
    }
}

/// Names that YAML takes for numbers and for values of its own.
#[test]
fn a_new_spec_has_its_name_as_text() {
    for name in
        ["12", "0e0", "1e5", "0x1f", "0b1", "1-2", "2026-11-29", "true", "null", "no", "y", "demo", "e1"]
    {
        let text = init(&Init { name: name_for(name), ..Init::default() });
        let parsed = read(&text).map_err(|e| e.render(false)).unwrap_or_else(|e| panic!("{name}: {e}"));
        assert_eq!(parsed.cluster.name, name);
    }
}

/// With its comments taken off, the whole of a new spec is good too, but for the files it names and
/// a version beside the channel.
#[test]
fn what_a_new_spec_shows_in_comments_is_good() {
    let text = init(&Init::default())
        .lines()
        .filter(|l| !l.contains("path:"))
        .map(|l| match l.trim_start().strip_prefix("# ") {
            Some(rest) if rest.contains(':') && !rest.contains('`') && !rest.ends_with('.') => {
                format!("{}{rest}\n", &l[..l.len() - l.trim_start().len()])
            }
            _ => format!("{l}\n"),
        })
        .collect::<String>()
        .replace("yaml-language-server: $schema=./p1.schema.json\n", "")
        .replace("  version: v1.34.1+k3s1\n", "")
        .replace("  artifacts:\n", "")
        .replace("manifests: [apps/]\n", "")
        .replace("Or one release:\n", "\n");
    let parsed = read(&text).unwrap_or_else(|e| panic!("{}", e.render(false)));
    assert!(parsed.warnings.is_empty());
    assert_eq!(parsed.cluster.node("storage").unwrap().size.unwrap().memory, 4096, "{text}");
}
