//! Keeps the values of Secrets out of what is shown and written down.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use crate::spec::Document;

/// Shorter texts than this are words of every log.
const SHORTEST: usize = 4;

/// The texts that must not be seen.
#[derive(Clone, Default)]
pub struct Secrets(Vec<String>);

impl Secrets {
    /// Of manifests: each value as it is written, and as it is in base64 and out of it.
    pub fn of<'d>(documents: impl IntoIterator<Item = &'d Document>) -> Self {
        let mut all = Vec::new();
        for value in documents.into_iter().flat_map(|d| &d.secrets) {
            all.push(STANDARD.encode(value));
            if let Ok(bytes) = STANDARD.decode(value.split_whitespace().collect::<String>())
                && let Ok(text) = String::from_utf8(bytes)
            {
                all.extend(text.lines().map(str::to_owned));
                all.push(text);
            }
            all.extend(value.lines().map(str::to_owned));
            all.push(value.clone());
        }
        for value in &mut all {
            *value = value.trim().to_owned();
        }
        all.retain(|v| v.len() >= SHORTEST);
        // The longest first, so that none is cut by a part of it.
        all.sort_by(|a, b| b.len().cmp(&a.len()).then(a.cmp(b)));
        all.dedup();
        Self(all)
    }

    /// The text with stars in their place.
    pub fn hide(&self, text: &str) -> String {
        self.0.iter().fold(text.to_owned(), |text, secret| text.replace(secret.as_str(), "***"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::manifest::documents;

    #[test]
    fn values_are_hidden_in_every_form() {
        let text = "apiVersion: v1\nkind: Secret\nmetadata: {name: s}\nstringData: {p: hunter2, key: \"line one\\nline two\", s: abc}\n\
                    data: {q: c3dvcmRmaXNo}\n";
        let secrets = Secrets::of(&documents(text).0);
        let shown = secrets.hide("hunter2 swordfish c3dvcmRmaXNo aHVudGVyMg== line two abc");
        assert_eq!(shown, "*** *** *** *** *** abc");
    }
}
