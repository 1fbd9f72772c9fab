//! Unit files, as far as k3s' installers, p1 and the box write them.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;
use std::time::Duration;

/// Where units are looked for, the first first.
const DIRS: [&str; 3] = ["/etc/systemd/system", "/run/systemd/transient", "/run/systemd/system"];

/// A unit as it is to be run.
#[derive(Clone, Default)]
pub struct Spec {
    pub path: PathBuf,
    values: Vec<(String, String)>,
}

/// `x` for `x.service`.
pub fn full(name: &str) -> String {
    let known = [".service", ".target", ".socket", ".timer"].iter().any(|end| name.ends_with(end));
    if known { name.to_owned() } else { format!("{name}.service") }
}

/// The file of a unit; none if there is none.
pub fn path(name: &str) -> Option<PathBuf> {
    DIRS.iter().map(|d| PathBuf::from(d).join(name)).find(|p| p.symlink_metadata().is_ok())
}

/// True if nobody may start it.
pub fn masked(name: &str) -> bool {
    path(name).is_some_and(|p| fs::read_link(p).is_ok_and(|to| to.as_os_str() == "/dev/null"))
}

impl Spec {
    pub fn load(name: &str) -> Option<Self> {
        let path = path(name)?;
        let text = fs::read_to_string(&path).ok()?;
        let stem = name.rsplit_once('.').map_or(name, |(stem, _)| stem);
        let instance = stem.split_once('@').map_or("", |(_, i)| i);
        let text = text.replace("\\\n", " ").replace("%N", stem).replace("%n", name).replace("%i", instance);
        let lines = text.lines().map(str::trim).filter(|l| !l.starts_with(['#', ';', '[']));
        let mut spec = Self { path, values: Vec::new() };
        for (key, value) in lines.filter_map(|l| l.split_once('=')) {
            let (key, value) = (key.trim().to_owned(), value.trim().to_owned());
            // An empty value takes back what was said before.
            if value.is_empty() {
                spec.values.retain(|(k, _)| *k != key);
            } else {
                spec.values.push((key, value));
            }
        }
        Some(spec)
    }

    pub fn all<'a>(&'a self, key: &'a str) -> impl Iterator<Item = &'a str> {
        self.values.iter().filter(move |(k, _)| k == key).map(|(_, v)| v.as_str())
    }

    pub fn get(&self, key: &str) -> Option<&str> {
        self.values.iter().rev().find(|(k, _)| k == key).map(|(_, v)| v.as_str())
    }

    pub fn kind(&self) -> &str {
        self.get("Type").unwrap_or("simple")
    }

    /// Seconds as systemd writes them; `0` and `infinity` are none.
    pub fn time(&self, key: &str) -> Option<Duration> {
        let text = self.get(key)?;
        let (number, unit) =
            text.split_at(text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len()));
        let number: f64 = number.parse().ok()?;
        let factor = match unit.trim() {
            "" | "s" | "sec" => 1.0,
            "ms" => 0.001,
            "min" | "m" => 60.0,
            _ => return None,
        };
        Some(Duration::from_secs_f64(number * factor)).filter(|d| !d.is_zero())
    }

    /// The environment, from lines and files, later ones winning.
    pub fn environment(&self) -> Result<BTreeMap<String, String>, String> {
        let mut env = BTreeMap::new();
        for (key, value) in &self.values {
            match key.as_str() {
                "Environment" => {
                    let words = split(value);
                    env.extend(words.iter().filter_map(|w| w.split_once('=')).map(owned));
                }
                "EnvironmentFile" => {
                    let path = value.trim_start_matches('-');
                    match fs::read_to_string(path) {
                        Ok(text) => {
                            let lines = text.lines().map(str::trim).filter(|l| !l.starts_with(['#', ';']));
                            for (key, value) in lines.filter_map(|l| l.split_once('=')) {
                                env.insert(key.trim().to_owned(), split(value).join(" "));
                            }
                        }
                        Err(_) if value.starts_with('-') => {}
                        Err(e) => return Err(format!("Failed to load environment files: {path}: {e}")),
                    }
                }
                _ => {}
            }
        }
        Ok(env)
    }
}

fn owned((key, value): (&str, &str)) -> (String, String) {
    (key.to_owned(), value.to_owned())
}

/// A command line with variables of `env` filled in.
pub fn command(line: &str, env: &BTreeMap<String, String>) -> Vec<String> {
    let value = |name: &str| env.get(name).cloned().unwrap_or_default();
    let mut words = Vec::new();
    for word in split(line) {
        if let Some(name) = word.strip_prefix("${").and_then(|w| w.strip_suffix('}')) {
            words.push(value(name));
        } else if let Some(name) = word.strip_prefix('$') {
            words.extend(value(name).split_whitespace().map(str::to_owned));
        } else {
            words.push(word);
        }
    }
    words
}

/// Words as systemd.syntax(7) and systemd.service(5) have them: quotes of both kinds, escapes.
fn split(text: &str) -> Vec<String> {
    let (mut words, mut word, mut quote, mut begun) = (Vec::new(), String::new(), None, false);
    let mut chars = text.chars().peekable();
    while let Some(c) = chars.next() {
        match (c, quote) {
            ('\\', _) => {
                begun = true;
                match chars.next() {
                    Some('n') => word.push('\n'),
                    Some('t') => word.push('\t'),
                    Some('s') => word.push(' '),
                    Some('x') => {
                        let digits: String = [chars.next(), chars.next()].into_iter().flatten().collect();
                        word.push(u8::from_str_radix(&digits, 16).map_or('?', char::from));
                    }
                    Some(other) => word.push(other),
                    None => {}
                }
            }
            (c, Some(q)) if c == q => quote = None,
            ('"' | '\'', None) => (quote, begun) = (Some(c), true),
            (c, None) if c.is_whitespace() => {
                if begun {
                    words.push(std::mem::take(&mut word));
                }
                begun = false;
            }
            (c, _) => {
                word.push(c);
                begun = true;
            }
        }
    }
    if begun {
        words.push(word);
    }
    words
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_taken_apart_as_systemd_does() {
        assert_eq!(
            split(r#"/bin/k3s   server 'it\x27s a' "b \"c\"" d\se"#),
            ["/bin/k3s", "server", "it's a", "b \"c\"", "d e"]
        );
        let env = [("A".to_owned(), "x y".to_owned())].into();
        assert_eq!(command("run ${A} $A $B", &env), ["run", "x y", "x", "y"]);
    }
}
