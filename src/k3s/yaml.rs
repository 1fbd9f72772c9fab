//! Scalars for k3s' config file.
//!
//! k3s reads it with an old YAML 1.1 reader into untyped values and makes command-line flags of
//! them (`pkg/configfilearg/parser.go`), so an unquoted `0644`, `yes` or `2020-01-01` would arrive
//! as another value. Every string is therefore quoted unless it is plainly a word.

use serde_yaml::Value;

/// Words that a YAML 1.1 reader takes for something else than text.
const RESERVED: [&str; 10] = ["y", "n", "yes", "no", "on", "off", "true", "false", "null", "nan"];

/// `text` as a YAML scalar that every reader takes for text.
pub(super) fn string(text: &str) -> String {
    let inner = |c: char| c.is_ascii_alphanumeric() || "_./-=:+".contains(c);
    let plain = text.starts_with(|c: char| c.is_ascii_alphabetic() || c == '/')
        && text.chars().all(inner)
        && !text.ends_with(':')
        && !RESERVED.contains(&text.to_ascii_lowercase().as_str());
    if plain { text.to_owned() } else { quoted(text) }
}

/// In double quotes. JSON's escapes are YAML's; the C1 controls and DEL, which JSON leaves alone, a
/// YAML reader refuses when bare.
fn quoted(text: &str) -> String {
    let json = serde_json::to_string(text).expect("text is JSON");
    json.chars().fold(String::with_capacity(json.len()), |mut all, c| {
        match c {
            '\u{7f}'..='\u{9f}' | '\u{2028}' | '\u{2029}' | '\u{feff}' => {
                all.push_str(&format!("\\u{:04x}", c as u32));
            }
            _ => all.push(c),
        }
        all
    })
}

/// One line `key: value`, or a key and a list below it.
pub(super) fn entry(key: &str, value: &Value) -> String {
    let key = string(key);
    match value {
        Value::Sequence(items) if items.is_empty() => format!("{key}: []\n"),
        Value::Sequence(items) => {
            let lines: String = items.iter().map(|i| format!("  - {}\n", scalar(i))).collect();
            format!("{key}:\n{lines}")
        }
        other => format!("{key}: {}\n", scalar(other)),
    }
}

/// A value on one line.
pub fn scalar(value: &Value) -> String {
    match value {
        Value::Null => "null".to_owned(),
        Value::Bool(b) => b.to_string(),
        Value::Number(n) => n.to_string(),
        Value::String(s) => string(s),
        Value::Tagged(t) => scalar(&t.value),
        Value::Sequence(items) => {
            format!("[{}]", items.iter().map(scalar).collect::<Vec<_>>().join(", "))
        }
        Value::Mapping(map) => {
            let pairs = map.iter().map(|(k, v)| format!("{}: {}", scalar(k), scalar(v)));
            format!("{{{}}}", pairs.collect::<Vec<_>>().join(", "))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn what_an_old_reader_mistakes_is_quoted() {
        for text in ["0644", "yes", "Off", "~", "2020-01-01", "1_000", "0x1f", "a: b", "", "-x", "*", "é"] {
            assert!(string(text).starts_with('"'), "{text} -> {}", string(text));
        }
        for text in ["vxlan", "/var/lib/x", "k=v", "https://10.0.0.1:6443", "key=value:NoSchedule"] {
            assert_eq!(string(text), text);
        }
    }

    proptest! {
        #[test]
        fn every_text_reads_back(text in any::<String>(), key in "[a-z+\\-\"' :#]{1,8}") {
            let yaml = entry(&key, &Value::from(text.as_str()));
            let back: Value = serde_yaml::from_str(&yaml).unwrap();
            prop_assert_eq!(back.get(&key).and_then(Value::as_str), Some(text.as_str()));
        }
    }
}
