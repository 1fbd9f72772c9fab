//! Names of k3s releases.

use serde_json::{Value as Json, json};

use crate::spec::node::Node;
use crate::spec::report::Report;
use crate::spec::shape::{Shape, text};

/// A release as k3s tags it: `v1.34.1+k3s1`, `v1.35.0-rc1+k3s1`.
#[derive(Clone, Debug)]
pub(in crate::spec) struct Version(pub String);

impl Shape for Version {
    fn schema() -> Json {
        json!({ "type": "string", "pattern": "^v[0-9]+\\.[0-9]+\\.[0-9]+(-(alpha|beta|rc)[.]?[0-9]+)?\\+k3s[0-9]+$" })
    }

    fn read(node: &Node, report: &mut Report<'_>) -> Option<Self> {
        let text = text(node, report)?;
        if is_version(text) {
            return Some(Self(text.to_owned()));
        }
        let with_v = format!("v{}", text.trim_start_matches(['v', 'V']));
        let candidates = [with_v.clone(), with_v.replace("-k3s", "+k3s"), format!("{with_v}+k3s1")];
        let help = match candidates.iter().find(|c| is_version(c)) {
            Some(version) => format!("Did you mean `{version}`?"),
            None if is_channel(text) => format!("That is a channel: write `channel: {text}` instead."),
            None => "Write it as k3s' releases are named: `v1.34.1+k3s1`.".to_owned(),
        };
        report.error(node.at, format!("`{}` is not a version of k3s", node.shown(report)), help);
        None
    }
}

/// A channel of k3s' update server: `stable`, `latest`, `testing`, `v1.34`, `v1.34-testing`.
#[derive(Clone, Debug)]
pub(in crate::spec) struct Channel(pub String);

impl Shape for Channel {
    fn schema() -> Json {
        json!({ "type": "string", "pattern": "^(stable|latest|testing|v[0-9]+\\.[0-9]+(-testing)?)$" })
    }

    fn read(node: &Node, report: &mut Report<'_>) -> Option<Self> {
        let text = text(node, report)?;
        if is_channel(text) {
            return Some(Self(text.to_owned()));
        }
        let with_v = format!("v{text}");
        let help = if is_version(text) {
            format!("That is a version: write `version: {text}` instead.")
        } else if is_channel(&with_v) {
            format!("Did you mean `{with_v}`?")
        } else {
            match crate::spec::report::nearest(text, ["stable", "latest", "testing"]) {
                Some(near) => format!("Did you mean `{near}`?"),
                None => "Write `stable`, `latest`, `testing` or a minor version such as `v1.34`.".to_owned(),
            }
        };
        report.error(node.at, format!("`{}` is not a channel of k3s", node.shown(report)), help);
        None
    }
}

fn is_version(text: &str) -> bool {
    let Some((before, build)) = text.strip_prefix('v').and_then(|t| t.split_once("+k3s")) else {
        return false;
    };
    let (release, pre) = before.split_once('-').map_or((before, None), |(r, p)| (r, Some(p)));
    let candidate = |pre: &str| {
        let rest = ["alpha", "beta", "rc"].iter().find_map(|w| pre.strip_prefix(w));
        rest.is_some_and(|r| number(r.strip_prefix('.').unwrap_or(r)))
    };
    number(build)
        && release.split('.').count() == 3
        && release.split('.').all(number)
        && pre.is_none_or(candidate)
}

fn is_channel(text: &str) -> bool {
    if ["stable", "latest", "testing"].contains(&text) {
        return true;
    }
    let minor = text.strip_suffix("-testing").unwrap_or(text);
    minor
        .strip_prefix('v')
        .and_then(|m| m.split_once('.'))
        .is_some_and(|(major, minor)| number(major) && number(minor))
}

fn number(text: &str) -> bool {
    (1..=9).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_digit())
}
