//! Label and field selectors, equality and set membership by existence.

use serde_json::Value;

/// `a=b,c!=d,e,!f` against an object's labels.
pub fn labels_match(object: &Value, selector: &str) -> bool {
    let labels = &object["metadata"]["labels"];
    selector.split(',').map(str::trim).filter(|t| !t.is_empty()).all(|term| {
        if let Some((key, value)) = term.split_once("!=") {
            labels[key] != value
        } else if let Some((key, value)) = term.split_once('=') {
            labels[key] == value.trim_start_matches('=')
        } else if let Some(key) = term.strip_prefix('!') {
            labels.get(key).is_none()
        } else {
            labels.get(term).is_some()
        }
    })
}

/// `metadata.name=x,status.phase!=Running` against an object's fields.
pub fn fields_match(object: &Value, selector: &str) -> bool {
    selector.split(',').filter(|t| !t.is_empty()).all(|term| {
        let (path, wanted, equal) = match term.split_once("!=") {
            Some((path, value)) => (path, value, false),
            None => match term.split_once('=') {
                Some((path, value)) => (path, value.trim_start_matches('='), true),
                None => return false,
            },
        };
        let found = path.split('.').fold(object, |value, part| &value[part]);
        (found.as_str().unwrap_or_default() == wanted) == equal
    })
}

/// Whether every label of a workload's `matchLabels` is on the object.
pub fn matches_all(object: &Value, wanted: &Value) -> bool {
    wanted.as_object().is_some_and(|w| w.iter().all(|(k, v)| object["metadata"]["labels"][k] == *v))
}
