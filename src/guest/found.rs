//! A k3s that somebody installed, read from the answer of `templates/found.sh`. Pure.

use std::collections::BTreeMap;
use std::sync::LazyLock;

use super::{GUESTS, NodeFacts};
use crate::explain::printable;
use crate::k3s::{CONFIG_PATH, Found, REGISTRIES_PATH};
use crate::spec::Role;

/// The script, to be run by root's `sh`.
pub fn script() -> &'static str {
    static SCRIPT: LazyLock<String> = LazyLock::new(|| {
        let template = include_str!("../../templates/found.sh");
        let parts = String::from_iter(GUESTS.iter().map(|guest| guest.service().found()));
        let (before, after) = template.split_once("# @services@").expect("the template has their place");
        format!("{before}{parts}{}", after.split_once('\n').map_or("", |(_, after)| after))
    });
    &SCRIPT
}

/// What an init system starts a service with.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Launch {
    pub argv: Vec<String>,
    /// The file that says so.
    pub place: String,
    /// Variables with the file of each, later ones above earlier ones.
    pub env: Vec<(String, String, String)>,
}

/// Of one answer, so much counts.
const MOST: usize = 4 << 20;

/// Reads what the script printed; none where that is not whole, or is of no k3s.
pub fn parse(text: &str, facts: &NodeFacts) -> Option<Found> {
    let mut files: Vec<(String, String)> = Vec::new();
    let mut units: BTreeMap<&str, Vec<String>> = BTreeMap::new();
    let (mut version, mut nodes, mut whole) = (None, Vec::new(), false);
    for line in text.get(..MOST.min(text.len()))?.lines() {
        if let (Some(line), Some((_, file))) = (line.strip_prefix('|'), files.last_mut()) {
            file.push_str(line);
            file.push('\n');
            continue;
        }
        let Some((key, value)) = line.split_once('=') else { continue };
        match key {
            "file" => files.push((printable(value).into_owned(), String::new())),
            "unit" => {
                if let Some((unit, file)) = value.split_once(' ') {
                    units.entry(unit).or_default().push(file.to_owned());
                }
            }
            "version" => version = Some(printable(value).into_owned()),
            "node" => {
                let (name, ip) = value.split_once(' ').unwrap_or((value, ""));
                nodes.push((printable(name).into_owned(), ip.parse().ok()));
            }
            "end" => whole = value == "ok",
            _ => {}
        }
    }
    let role = if facts.unit("k3s").loaded { Role::Server } else { Role::Worker };
    if !whole || !facts.unit(role.unit()).loaded {
        return None;
    }
    let mut found = Found::new(role);
    (found.version, found.nodes) = (version, nodes);
    if role == Role::Server && facts.unit("k3s-agent").loaded {
        found.strange.push("it has both units, k3s and k3s-agent".to_owned());
    }
    let within =
        |path: &str| files.iter().filter(|(file, _)| file == path).map(|(_, text)| text.as_str()).next();
    if let Some(text) = within(CONFIG_PATH) {
        found.file(CONFIG_PATH, text);
    }
    let folder = format!("{CONFIG_PATH}.d/");
    let mut more: Vec<&(String, String)> =
        files.iter().filter(|(path, _)| path.starts_with(&folder)).collect();
    more.sort();
    for (path, text) in more {
        found.file(path, text);
    }
    let of_unit: Vec<(&str, &str)> = units
        .get(role.unit())
        .into_iter()
        .flatten()
        .filter_map(|path| Some((path.as_str(), within(path)?)))
        .collect();
    let launch = super::of(Some(facts)).service().launch(role.unit(), &of_unit, &within);
    found.command(&launch.argv, &launch.place);
    for (name, value, place) in launch.env.iter().rev() {
        if !found.env.contains_key(name) {
            found.variable(name, value, place);
        }
    }
    if let Some(text) = within(REGISTRIES_PATH) {
        match serde_yaml::from_str(text) {
            Ok(serde_yaml::Value::Null) => {}
            Ok(value @ serde_yaml::Value::Mapping(_)) => found.registries = Some(value),
            _ => found.strange.push(format!("{REGISTRIES_PATH} is no map")),
        }
    }
    Some(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_servers_answer_becomes_what_it_is_configured_with() {
        let facts = crate::guest::parse(
            "init=systemd\nunit=k3s LoadState loaded\nunit=k3s ActiveState active\nend=ok\n",
        )
        .unwrap();
        let answer = "file=/etc/rancher/k3s/config.yaml\n|disable:\n|  - traefik\n\n\
            file=/etc/rancher/k3s/config.yaml.d/9.yaml\n|debug: true\n\nfile=/etc/rancher/k3s/config.yaml.d/10.yml\n|disable+: coredns\n\n\
            unit=k3s /etc/systemd/system/k3s.service\nfile=/etc/systemd/system/k3s.service\n|[Service]\n\
            |EnvironmentFile=-/etc/default/%N\n|EnvironmentFile=-/etc/systemd/system/k3s.service.env\n|Environment=A=1 \"B=b c\"\n\
            |ExecStart=/usr/local/bin/k3s \\\n|    server \\\n|\t'--disable' \\\n|\t'servicelb' --kubelet-arg=\"x=$${y}\" \\\n|\n\n\
            file=/etc/systemd/system/k3s.service.env\n|K3S_TOKEN=\"it's \\$ecret\"\n|A=2\n\n\
            version=v1.34.1+k3s1\nnode=alpha 10.0.0.5\nend=ok\n";
        let found = parse(answer, &facts).unwrap();
        assert_eq!((found.program.as_str(), found.strange.len()), ("/usr/local/bin/k3s", 0));
        let value = |key: &str| found.settings[key].values.join(" ");
        assert_eq!(value("disable"), "traefik coredns servicelb");
        assert_eq!((value("kubelet-arg").as_str(), value("token").as_str()), ("x=${y}", "it's $ecret"));
        assert_eq!((found.env["A"].0.as_str(), found.env["B"].0.as_str()), ("2", "b c"));
        assert_eq!(found.nodes, [("alpha".to_owned(), Some([10, 0, 0, 5].into()))]);
        assert!(parse(answer.trim_end().trim_end_matches("end=ok"), &facts).is_none());
    }
}
