//! Secrets taken out of any text: those that are known, and what looks like one.
//!
//! Known are the cluster's own (tokens, keys, passwords of the spec), wherever and in whatever notation
//! they stand. What looks like one is found by its shape (private keys, k3s' and bearer tokens, passwords in
//! addresses) or by its name (`password: ...`, `--token ...`, `K3S_TOKEN=...`). It rather takes too much:
//! a text that goes to somebody else can be asked for again, a secret cannot be taken back.

use std::borrow::Cow;
use std::sync::{Arc, RwLock};

use base64::Engine;
use base64::engine::general_purpose::{STANDARD, STANDARD_NO_PAD};

use crate::os::sync;

/// What stands in a secret's place.
pub const MASK: &str = "***";
/// A known secret that is shorter is taken out only by its name: it would be found in any text.
const SHORTEST: usize = 4;
/// Of what looks like a token, at least so much follows its beginning.
const TOKEN: usize = 16;

/// Knows the secrets. Cheap to clone, and what one learns all its clones know. It shows none of them itself.
#[derive(Clone, Default)]
pub struct Redactor(Arc<RwLock<Vec<String>>>);

impl std::fmt::Debug for Redactor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Redactor({} secrets)", self.known().len())
    }
}

impl Redactor {
    /// With these secrets; of one with several lines, every line is one.
    #[cfg(any(test, feature = "internals"))]
    pub fn new(secrets: impl IntoIterator<Item = impl AsRef<str>>) -> Self {
        let redactor = Self::default();
        redactor.learn(secrets);
        redactor
    }

    fn known(&self) -> impl std::ops::Deref<Target = Vec<String>> + '_ {
        sync::read(&self.0)
    }

    /// These as well, from now on: a run makes secrets, and others come with a backup or a kubeconfig.
    pub fn learn(&self, secrets: impl IntoIterator<Item = impl AsRef<str>>) {
        let mut all: Vec<String> = Vec::new();
        for secret in secrets {
            let secret = secret.as_ref().trim();
            for line in
                secret.lines().map(str::trim).filter(|l| l.len() >= SHORTEST && !l.starts_with("-----"))
            {
                all.extend(notations(line));
            }
        }
        let known = self.known();
        all.retain(|secret| !known.contains(secret));
        drop(known);
        if all.is_empty() {
            return;
        }
        let mut known = sync::write(&self.0);
        known.append(&mut all);
        // The longest first: one may be within another.
        known.sort_by(|a, b| b.len().cmp(&a.len()).then_with(|| a.cmp(b)));
        known.dedup();
    }

    /// `text` without the secrets that are known; what only looks like one stays.
    pub fn known_in(&self, text: &str) -> String {
        let mut text = Cow::Borrowed(text);
        for secret in self.known().iter() {
            if text.contains(secret.as_str()) {
                text = Cow::Owned(text.replace(secret.as_str(), MASK));
            }
        }
        text.into_owned()
    }

    /// `text` without secrets.
    pub fn text(&self, text: &str) -> String {
        let text = self.known_in(text);
        let text = private_keys(&text);
        let mut out = String::with_capacity(text.len());
        // Lines of a block (`password: |`) that belong to a key of this indent.
        let mut block: Option<usize> = None;
        for line in text.split_inclusive('\n') {
            let indent = line.len() - line.trim_start().len();
            if let Some(outer) = block {
                if line.trim().is_empty() || indent > outer {
                    out.push_str(if line.trim().is_empty() { line } else { "***\n" });
                    continue;
                }
                block = None;
            }
            match of_line(line) {
                Some((masked, true)) => {
                    block = Some(indent);
                    out.push_str(&masked);
                }
                Some((masked, false)) => out.push_str(&masked),
                None => within(line, &mut out, &mut |_, _| {}),
            }
        }
        out
    }
}

/// A secret as it is, and as JSON, addresses and base64 have it.
fn notations(secret: &str) -> Vec<String> {
    let json = serde_json::to_string(secret).unwrap_or_default();
    let percent: String = secret
        .bytes()
        .map(|b| match b {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => char::from(b).to_string(),
            _ => format!("%{b:02X}"),
        })
        .collect();
    vec![
        secret.to_owned(),
        json.trim_matches('"').to_owned(),
        percent,
        STANDARD_NO_PAD.encode(secret),
        STANDARD.encode(format!("{secret}\n")),
    ]
}

/// True if what a file, a flag or a variable calls so is a secret: `password`, `agent-token`,
/// `etcd-s3-secret-key`, `K3S_TOKEN`. The name of a file with one is none.
pub fn is_secret(name: &str) -> bool {
    let name = name.trim_end_matches('+').to_ascii_lowercase().replace(['_', '.'], "-");
    // The last is the name of a Secret in the cluster.
    if ["-file", "-path", "-name", "-ttl", "-url", "s3-config-secret"].iter().any(|e| name.ends_with(e)) {
        return false;
    }
    let is = |words: &[&str]| words.contains(&name.as_str());
    let ends = |words: &[&str]| words.iter().any(|w| name.ends_with(w));
    is(&["auth", "vpn-auth", "key-data"])
        || ends(&[
            "token",
            "secret",
            "secret-key",
            "access-key",
            "api-key",
            "apikey",
            "joinkey",
            "private-key",
        ])
        || ends(&["datastore-endpoint", "client-key-data", "client-certificate-data"])
        || ["password", "passwd", "passphrase"].iter().any(|w| name.contains(w))
}

/// The same of a variable that the user gives to a script of his own: any word of its name counts
/// (`DB_PASS`, `API_KEY_2`), since nobody else has said what such names mean.
pub fn is_secret_variable(name: &str) -> bool {
    let lower = name.to_ascii_lowercase();
    let ends = ["token", "pass", "secret", "key", "credential", "credentials", "auth", "pwd"];
    let mut words = lower.split(|c: char| !c.is_ascii_alphanumeric());
    let of_file = ["_file", "_path", "_name", "_ttl", "_url"].iter().any(|e| lower.ends_with(e));
    is_secret(name) || !of_file && words.any(|word| ends.iter().any(|end| word.ends_with(end)))
}

/// Everything from the head of a private key to its foot, or to the end where that was cut off.
fn private_keys(text: &str) -> Cow<'_, str> {
    const END: &str = "PRIVATE KEY-----";
    let head = |text: &str| -> Option<(usize, usize)> {
        let mut from = 0;
        while let Some(at) = text[from..].find("-----BEGIN ").map(|at| from + at) {
            let rest = &text[at..];
            let stop = rest[11..].find("-----").map_or(rest.len(), |e| 11 + e + 5);
            if rest[..stop].ends_with(END) {
                return Some((at, at + stop));
            }
            from = at + 11;
        }
        None
    };
    let mut rest = text;
    let mut out = String::new();
    while let Some((from, to)) = head(rest) {
        out.push_str(&rest[..from]);
        out.push_str("*** (a private key)");
        let foot = rest[to..].find("-----END ").and_then(|e| {
            let end = to + e;
            rest[end..].find(END).map(|n| end + n + END.len())
        });
        rest = &rest[foot.unwrap_or(rest.len())..];
    }
    if out.is_empty() {
        return Cow::Borrowed(text);
    }
    out.push_str(rest);
    Cow::Owned(out)
}

fn is_word(c: char) -> bool {
    c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.' | '+')
}

/// A line that is `key: value` from its start, with a secret's name: its value is gone. True if the
/// value is a block that the next lines have.
fn of_line(line: &str) -> Option<(String, bool)> {
    let body = line.trim_start_matches(|c: char| c.is_whitespace() || c == '-' || c == '?');
    let quote = body.chars().next().filter(|c| matches!(c, '"' | '\''));
    let name = &body[quote.map_or(0, char::len_utf8)..];
    let end = name.find(|c| !is_word(c))?;
    let (name, mut rest) = name.split_at(end);
    if let Some(quote) = quote {
        rest = rest.strip_prefix(quote)?;
    }
    let value = rest.trim_start_matches(' ').strip_prefix(':')?;
    if !is_secret(name) || !value.starts_with(char::is_whitespace) || value.trim().is_empty() {
        return None;
    }
    let trimmed = value.trim();
    // A map under such a name (`auth: {username: ..}`) has names of its own.
    if trimmed.starts_with('{') {
        return None;
    }
    let head = &line[..line.len() - value.len()];
    let block = trimmed.starts_with('|') || trimmed.starts_with('>');
    let masked = match trimmed {
        _ if block => trimmed.split_whitespace().next().unwrap_or("|").to_owned(),
        t if t.starts_with('"') && t.ends_with(',') => format!("\"{MASK}\","),
        t if t.starts_with('"') => format!("\"{MASK}\""),
        _ => MASK.to_owned(),
    };
    Some((format!("{head} {masked}{}", if line.ends_with('\n') { "\n" } else { "" }), block))
}

/// The secrets that are found within a line by their shape or their name.
pub fn found(line: &str) -> Vec<String> {
    let mut all = Vec::new();
    within(line, &mut String::new(), &mut |_, secret| all.push(secret.to_owned()));
    all
}

/// `line` with an asterisk for every character of a secret in it: places in it stay where they are.
pub fn covered(line: &str) -> String {
    let mut spots: Vec<(usize, usize)> = Vec::new();
    match of_line(line) {
        Some((masked, _)) => {
            let same = line.char_indices().zip(masked.chars()).take_while(|((_, a), b)| a == b);
            spots.push((
                same.map(|((at, c), _)| at + c.len_utf8()).last().unwrap_or(0),
                line.trim_end().len(),
            ));
        }
        None => within(line, &mut String::new(), &mut |at, secret| spots.push((at, at + secret.len()))),
    }
    // In the order of the line and apart, so that each is passed once however many there are.
    let mut spots = spots.into_iter().peekable();
    let mut hidden = |at: usize| {
        while spots.next_if(|(_, to)| *to <= at).is_some() {}
        spots.peek().is_some_and(|(from, _)| *from <= at)
    };
    line.char_indices().map(|(at, c)| if hidden(at) { '*' } else { c }).collect()
}

/// Appends a line to `out` without the secrets within it, each of which is told with its place.
fn within(line: &str, out: &mut String, tell: &mut dyn FnMut(usize, &str)) {
    let mut rest = line;
    while !rest.is_empty() {
        if let Some((keep, skip)) = flag(rest, out)
            .or_else(|| pair(rest, out))
            .or_else(|| variable(rest, out))
            .or_else(|| address(rest, out))
            .or_else(|| scheme(rest, out))
            .or_else(|| token(rest, out))
        {
            tell(line.len() - rest.len() + keep, &rest[keep..keep + skip]);
            out.push_str(&rest[..keep]);
            out.push_str(MASK);
            rest = &rest[keep + skip..];
            continue;
        }
        // To the next place where a word begins: nothing else can be one.
        let mut chars = rest.char_indices();
        let (_, first) = chars.next().expect("it is not empty");
        let next = match is_word(first) {
            true => chars.find(|(_, c)| !is_word(*c)).map_or(rest.len(), |(at, _)| at),
            false => first.len_utf8(),
        };
        out.push_str(&rest[..next]);
        rest = &rest[next..];
    }
}

/// The length of a value: to its closing quote, or of the word. Without the quotes, and how long the
/// opening one is.
fn value(text: &str, ends: &[char]) -> Option<(usize, usize)> {
    let quote = text.chars().next().filter(|c| matches!(c, '"' | '\''));
    let Some(quote) = quote else {
        // In a text that is quoted itself, quotes have a backslash before them.
        if let Some(inner) = text.strip_prefix("\\\"") {
            return Some((2, inner.find("\\\"").unwrap_or(inner.trim_end().len())));
        }
        let len = text.find(|c: char| c.is_whitespace() || ends.contains(&c)).unwrap_or(text.len());
        return (len > 0).then_some((0, len));
    };
    let inner = &text[1..];
    let mut escaped = false;
    let end = inner.char_indices().find(|(_, c)| {
        let end = *c == quote && !escaped;
        escaped = *c == '\\' && !escaped;
        end
    });
    let len = end.map_or(inner.trim_end().len(), |(at, _)| at);
    (len > 0).then_some((1, len))
}

/// `--token X`, `--token=X`, `"--token","X"`.
fn flag(rest: &str, before: &str) -> Option<(usize, usize)> {
    let name = rest.strip_prefix("--")?;
    if before.ends_with(is_word) {
        return None;
    }
    let name = &name[..name.find(|c| !is_word(c)).unwrap_or(name.len())];
    if !is_secret(name) {
        return None;
    }
    let after = &rest[2 + name.len()..];
    let gap = after.find(|c: char| !matches!(c, '=' | ' ' | '"' | '\'' | ',' | '\\'))?;
    let (_, len) = value(&after[gap..], &['"', '\'', ',', '\\', ']'])?;
    (gap > 0).then_some((2 + name.len() + gap, len))
}

/// `"password":"X"`, and `password: X` within `{..}`.
fn pair(rest: &str, before: &str) -> Option<(usize, usize)> {
    if !rest.starts_with(|c: char| c.is_ascii_alphabetic()) || before.ends_with(is_word) {
        return None;
    }
    let name = &rest[..rest.find(|c| !is_word(c)).unwrap_or(rest.len())];
    if !is_secret(name) {
        return None;
    }
    let mut after = &rest[name.len()..];
    let quoted = before.ends_with(['"', '\'']);
    if quoted {
        after = after.trim_start_matches(['\\']).strip_prefix(['"', '\''])?;
    } else if !before.trim_end().ends_with(['{', ',']) {
        return None;
    }
    let after = after.trim_start_matches(' ').strip_prefix(':')?.trim_start_matches(' ');
    if after.starts_with(['{', '[']) {
        return None;
    }
    let (open, len) = value(after, &[',', '}', ']'])?;
    Some((rest.len() - after.len() + open, len))
}

/// `K3S_TOKEN=X`, `password=X`.
fn variable(rest: &str, before: &str) -> Option<(usize, usize)> {
    if !rest.starts_with(|c: char| c.is_ascii_alphabetic()) || before.ends_with(is_word) {
        return None;
    }
    let name = &rest[..rest.find(|c| !is_word(c)).unwrap_or(rest.len())];
    let after = rest[name.len()..].strip_prefix('=')?;
    if !is_secret(name) {
        return None;
    }
    let (open, len) = value(after, &['"', '\'', ',', ';', '&'])?;
    Some((name.len() + 1 + open, len))
}

/// `https://user:X@host`, and `https://X@host`.
fn address(rest: &str, before: &str) -> Option<(usize, usize)> {
    let inner = rest.strip_prefix("://")?;
    let end = inner
        .find(|c: char| c.is_whitespace() || matches!(c, '/' | '?' | '#' | '"' | '\'' | '`' | '<' | '>'));
    let authority = &inner[..end.unwrap_or(inner.len())];
    let user = &authority[..authority.rfind('@')?];
    match user.find(':') {
        Some(colon) => (user.len() > colon + 1).then(|| (3 + colon + 1, user.len() - colon - 1)),
        None => (before.ends_with("http") || before.ends_with("https")).then_some((3, user.len())),
    }
    .filter(|(_, len)| *len > 0)
}

/// `Bearer X`, `Basic X`.
fn scheme(rest: &str, before: &str) -> Option<(usize, usize)> {
    if before.ends_with(is_word) {
        return None;
    }
    let head = rest.get(..7)?.to_ascii_lowercase();
    let head = ["bearer ", "basic "].into_iter().find(|s| head.starts_with(s))?;
    let after = &rest[head.len()..];
    let gap = after.len() - after.trim_start_matches(' ').len();
    let (open, len) = value(&after[gap..], &['"', '\'', ',', ';', '\\'])?;
    (len >= 8).then_some((head.len() + gap + open, len))
}

/// What k3s' tokens, service accounts' tokens and bootstrap tokens look like.
fn token(rest: &str, before: &str) -> Option<(usize, usize)> {
    if before.ends_with(|c: char| c.is_ascii_alphanumeric()) {
        return None;
    }
    let run = |good: fn(char) -> bool| rest.find(|c: char| !good(c)).unwrap_or(rest.len());
    if rest.starts_with("K10") {
        let len = run(|c| c.is_ascii_alphanumeric() || matches!(c, ':' | '.' | '_' | '-' | '~' | '+'));
        return (len >= 3 + TOKEN).then_some((0, len));
    }
    if rest.starts_with("eyJ") {
        let len = run(|c| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-'));
        return (len >= 3 + TOKEN).then_some((0, len));
    }
    let len = run(|c| c.is_ascii_alphanumeric() || c == '.');
    let (id, secret) = rest[..len].split_once('.')?;
    let small = |t: &str| t.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
    (id.len() == 6 && secret.len() == 16 && small(id) && small(secret)).then_some((0, len))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn known_secrets_are_found_in_every_notation() {
        let redactor = Redactor::new(["hunter2 \"x\"", "abc", "KEYLINEONE\nKEYLINETWO"]);
        let base64 = STANDARD.encode("hunter2 \"x\"");
        for text in
            ["<hunter2 \"x\">", r#"{"a":"hunter2 \"x\""}"#, "hunter2%20%22x%22", &base64, "KEYLINETWO and"]
        {
            let clean = redactor.text(text);
            assert!(
                clean.contains(MASK) && !clean.contains("hunter2") && !clean.contains("LINETWO"),
                "{clean}"
            );
        }
        // What is too short to be looked for everywhere.
        assert_eq!(redactor.text("abc"), "abc");
        assert_eq!(format!("{redactor:?}").matches("hunter").count(), 0);
    }

    #[test]
    fn covered_secrets_leave_places_as_they_are() {
        for (line, is) in [
            ("  token: SECRET", "  token: ******"),
            ("k3s: {token: SECRET, x: 1}", "k3s: {token: ******, x: 1}"),
            ("  password: 'SÄCRET'", "  password: ********"),
            ("url: https://u:SECRET@host/", "url: https://u:******@host/"),
            ("  - {name: server, role: server}", "  - {name: server, role: server}"),
            ("  token:", "  token:"),
        ] {
            assert_eq!(covered(line), is);
        }
    }

    /// Each has SECRET where the secret is.
    const SHAPES: &[&str] = &[
        "password: SECRET\n",
        "  - token: SECRET\n",
        "    etcd-s3-secret-key: \"SECRET\"\n",
        "datastore-endpoint: mysql://u:SECRET@tcp(db:3306)/k3s\n",
        "auth: {username: u, password: SECRET}\n",
        "a: {auth: {username: u, password: 'SECRET with, more'}}\n",
        "password: |\n  SECRET\n  SECRET\nnext: line\n",
        "{\"username\":\"u\",\"password\":\"SECRET\\\"SECRET\",\"x\":1}",
        "{\\\"password\\\":\\\"SECRET\\\"}",
        "k3s server --token SECRET --x",
        "k3s server --token=SECRET --x",
        "[\"agent\",\"--token\",\"SECRET\",\"--x\"]",
        "exec K3S_TOKEN=SECRET k3s",
        "K3S_DATASTORE_ENDPOINT='SECRET SECRET' k3s",
        "Authorization: Bearer SECRETSECRET",
        "authorization: basic SECRETSECRET, x",
        "get https://user:SECRET@mirror.lan:5000/v2 failed",
        "get https://SECRET@mirror.lan/v2",
        "K10SECRETSECRETSECRETSECRET::server:SECRET",
        "is eyJSECRETSECRETSECRET.SECRET.SECRET not",
        "-----BEGIN OPENSSH PRIVATE KEY-----\nSECRET\nSECRET\n-----END OPENSSH PRIVATE KEY-----\nrest",
        "x: \"-----BEGIN RSA PRIVATE KEY-----\\nSECRET\\n-----END RSA PRIVATE KEY-----\\n\"",
        "-----BEGIN PRIVATE KEY-----\nSECRET cut",
        "client-key-data: SECRET\n",
        "client-certificate-data: SECRET",
        "--kube-apiserver-arg=oidc-client-secret=SECRET",
        "kube-apiserver-arg: [oidc-client-secret=SECRET]",
    ];

    #[test]
    fn what_looks_like_a_secret_is_taken_out() {
        let redactor = Redactor::default();
        for shape in SHAPES {
            let clean = redactor.text(shape);
            assert!(clean.contains(MASK) && !clean.contains("SECRET"), "{shape}\n{clean}");
            assert_eq!(redactor.text(&clean), clean, "again");
        }
        assert_eq!(redactor.text("join with abcdef.0123456789abcdef"), "join with ***");
        assert!(redactor.text(SHAPES[6]).ends_with("next: line\n"));
        assert!(redactor.text(SHAPES[20]).ends_with("\nrest"));
    }

    /// Evidence has to stay evidence.
    #[test]
    fn what_is_none_stays() {
        let redactor = Redactor::new(["hunter2"]);
        for text in [
            "level=fatal msg=\"starting kubernetes: preparing server: token CA hash does not match\"",
            "failed to validate token: Node password rejected, duplicate hostname",
            "token-file: /var/lib/rancher/k3s/server/token\n",
            "the server rejects the token",
            "https://192.168.56.110:6443/cacerts",
            "docker.io/rancher/mirrored-pause:3.6@sha256:0123456789abcdef",
            "vagrant@worker:~$ ssh://vagrant@worker",
            "uses Basic auth; Bearer of news",
            "auth:\n  username: u\n",
            "certificate-authority-data: abc\n",
            "K10 and eyJ",
            "worker.node-password.k3s   Opaque   1   3m\n",
            "secretName: web-tls\n",
            "192.168.56.110 dev eth0 proto dhcp src 192.168.56.110",
        ] {
            assert_eq!(redactor.text(text), text);
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        /// No text ends it, and a known secret is gone whatever stands around it.
        #[test]
        fn any_text_is_taken(before in "(?s).{0,60}", secret in "[!-~]{4,20}", after in "(?s).{0,60}") {
            let clean = Redactor::new([&secret]).text(&format!("{before}{secret}{after}"));
            prop_assert!(secret == MASK || MASK.contains(&secret) || !clean.contains(&secret), "{clean}");
        }

        #[test]
        fn words_of_secrets_in_any_order(words in prop::collection::vec(prop::sample::select(vec![
            "password", "token", ": ", ":", "=", "--", "\"", "'", "\\", "{", "}", ",", " ", "\n", "  ", "|", "://", "@",
            "x", "é", "Bearer ", "K10", "eyJ", "-----BEGIN ", "PRIVATE KEY-----", "-----END ", "0123456789abcdef",
        ]), 0..40)) {
            let text = words.concat();
            let redactor = Redactor::default();
            let clean = redactor.text(&text);
            prop_assert!(clean.len() <= text.len() * 4 + 64);
        }
    }
}
