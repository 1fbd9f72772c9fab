//! Templates: the only place that knows tera.
//!
//! Every value in a template passes through a filter that quotes it for the language it lands in
//! (`rb`, `sh`, `xml`); a test holds the templates to that.

use serde::Serialize;
use tera::{Context, Kwargs, State, Tera, Value};

use crate::explain::{Explain, FailureKind, chain};

/// The templates, compiled in: the binary needs no files beside it.
pub const TEMPLATES: &[(&str, &str)] = &[
    ("Vagrantfile", include_str!("../../templates/Vagrantfile.tera")),
    ("disk.xml", include_str!("../../templates/disk.xml.tera")),
    ("domain.xml", include_str!("../../templates/domain.xml.tera")),
    ("network.xml", include_str!("../../templates/network.xml.tera")),
    ("system.sh", include_str!("../../templates/system.sh.tera")),
];

/// A template or its values are wrong; both are ours, so this is a defect of p1.
#[derive(Debug, thiserror::Error)]
#[error("cannot render {template}: {message}")]
pub struct Error {
    template: &'static str,
    message: String,
}

impl Explain for Error {
    fn kind(&self) -> FailureKind {
        FailureKind::Defect
    }

    fn hint(&self) -> Option<String> {
        Some("This is a defect of p1; please report it with the spec that leads to it.".to_owned())
    }
}

/// Renders the template of that name with `values`, an object.
pub fn render(template: &'static str, values: &impl Serialize) -> Result<String, Error> {
    let fail = |e: tera::Error| Error { template, message: chain(&e) };
    let mut tera = Tera::new();
    tera.autoescape_on(Vec::<&str>::new());
    tera.register_filter("rb", |v: &Value, _: Kwargs, _: &State| json(v).map(|v| ruby(&v)));
    tera.register_filter("sh", |v: &Value, _: Kwargs, _: &State| json(v).map(|v| shell(&v)));
    tera.register_filter("xml", |v: &Value, _: Kwargs, _: &State| json(v).map(|v| xml(&v)));
    let source = TEMPLATES.iter().find(|(name, _)| *name == template).map_or("", |(_, text)| text);
    tera.add_raw_template(template, source).map_err(fail)?;
    let context = Context::from_serialize(values).map_err(fail)?;
    tera.render(template, &context).map_err(fail)
}

fn json(value: &Value) -> Result<serde_json::Value, tera::Error> {
    serde_json::to_value(value).map_err(|e| tera::Error::message(e.to_string()))
}

/// A Ruby literal. Single quotes: inside them Ruby reads only `\\` and `\'`.
pub fn ruby(value: &serde_json::Value) -> String {
    use serde_json::Value as V;
    match value {
        V::Null => "nil".to_owned(),
        V::Bool(_) | V::Number(_) => value.to_string(),
        V::String(s) => format!("'{}'", s.replace('\\', "\\\\").replace('\'', "\\'")),
        V::Array(all) => format!("[{}]", all.iter().map(ruby).collect::<Vec<_>>().join(", ")),
        V::Object(map) => {
            let pair = |(k, v): (&String, _)| format!("{} => {}", ruby(&V::String(k.clone())), ruby(v));
            // Tera keeps a mapping in no order: without one of its own each rendering would be another.
            let mut pairs: Vec<_> = map.iter().collect();
            pairs.sort_by_key(|(key, _)| *key);
            format!("{{{}}}", pairs.into_iter().map(pair).collect::<Vec<_>>().join(", "))
        }
    }
}

/// One word for a POSIX shell; a list becomes several.
pub fn shell(value: &serde_json::Value) -> String {
    use serde_json::Value as V;
    match value {
        V::Null => "''".to_owned(),
        V::String(s) => format!("'{}'", s.replace('\'', "'\\''")),
        V::Array(all) => all.iter().map(shell).collect::<Vec<_>>().join(" "),
        other => other.to_string(),
    }
}

/// Text for an XML element or attribute.
fn xml(value: &serde_json::Value) -> String {
    let text = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
    let mut out = String::new();
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '\'' => out.push_str("&apos;"),
            '"' => out.push_str("&quot;"),
            c => out.push(c),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::os::{Cancel, process};
    use std::time::Duration;

    proptest::proptest! {
        #![proptest_config(proptest::prelude::ProptestConfig::with_cases(32))]
        /// The same values, the same bytes, whatever mappings are in them.
        #[test]
        fn renderings_are_alike(groups in proptest::collection::btree_map("[a-z]{1,6}", "[ -~]{0,8}", 0..12)) {
            let setting = serde_json::json!({"key": "groups", "value": {"all": groups, "b": [groups]}});
            let one = serde_json::json!({"name": "p", "type": "ansible", "shares": false, "settings": [setting]});
            let values = serde_json::json!({
                "cluster": "x", "provider": "virtualbox", "prefix": "x_", "box": {"name": "b", "version": "1"},
                "boot_timeout": 1, "ssh_user": "vagrant", "libvirt": null, "asks_guest": false, "nics": 2,
                "rendered": false, "disposable": false, "autostart": false, "owner": "o", "playbooks": [],
                "network": {"name": "n", "cidr": "10.0.0.0/24", "gateway": "10.0.0.1", "netmask": "255.255.255.0"},
                "nodes": [{"name": "s", "ip": "10.0.0.2", "cpus": 1, "memory": 1, "mac": "m", "domain": "d",
                           "provision": [one]}],
            });
            let first = render("Vagrantfile", &values).unwrap();
            for _ in 0..4 {
                proptest::prop_assert_eq!(&render("Vagrantfile", &values).unwrap(), &first);
            }
        }
    }

    #[test]
    fn every_value_in_a_template_passes_a_quoting_filter() {
        for (name, text) in TEMPLATES {
            for part in text.split("{{").skip(1) {
                let value = part.split("}}").next().unwrap().trim().trim_matches('-').trim();
                let filter = value.rsplit('|').next().unwrap().trim();
                assert!(["rb", "sh", "xml"].contains(&filter), "{name}: {{{{ {value} }}}} is not quoted");
            }
        }
    }

    /// Runs the words through the real languages: what comes out must be what went in.
    #[test]
    fn hostile_values_arrive_unharmed() {
        let evil = "a'b\"c `id` $(id) #{1+1} \\ \\' \n-x %q{} <&> ../";
        let value = serde_json::Value::String(evil.to_owned());
        for (cmd, script) in [
            (vec!["sh", "-c"], format!("printf %s {}", shell(&value))),
            (vec!["ruby", "-e"], format!("print {}", ruby(&value))),
        ] {
            let run = process::Cmd::new(cmd[0]).args(&cmd[1..]).arg(&script);
            let done = process::run(&run, Duration::from_secs(20), &Cancel::new()).unwrap();
            assert_eq!(done.stdout.trim_end_matches('\n'), evil, "{script}");
        }
    }
}
