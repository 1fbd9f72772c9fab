//! The JSON Schema of the spec, for editors.

use serde_json::{Value as Json, json};

use super::file::File;
use super::shape::{Shape, with};

/// The name under which `p1 init` and the examples refer to the schema.
pub const SCHEMA_FILE: &str = "p1.schema.json";

/// The schema of `cluster.yaml` (JSON Schema 2020-12). It is made from the same definitions that the
/// reader uses; what goes beyond single values (names that are taken, addresses outside of the
/// network) only [`super::parse`] knows.
pub fn schema() -> Json {
    let variable = "A value with a variable of the environment, or of the file .env beside the spec, in it.";
    let head = json!({
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "p1 cluster",
        "$defs": { "variable": { "description": variable, "type": "string", "pattern": "\\$\\{" } },
    });
    let mut file = File::schema();
    variables(&mut file);
    with(head, file)
}

/// Lets a variable stand where a value is no text, or has a form.
fn variables(schema: &mut Json) {
    let Json::Object(rules) = schema else { return };
    for list in ["anyOf", "oneOf"] {
        // Of a choice between keys, nothing; of one between values, one more.
        let values = |all: &Json| all.as_array().is_some_and(|a| a.iter().any(is_value));
        if rules.get(list).is_some_and(values) {
            let mut all = rules[list].as_array().cloned().unwrap_or_default();
            all.iter_mut().filter(|one| !is_value(one)).for_each(variables);
            all.push(variable());
            rules.insert(list.to_owned(), all.into());
            return;
        }
    }
    if is_value(&Json::Object(rules.clone())) {
        let about = ["description", "default"].map(|key| (key, rules.remove(key)));
        let value = Json::Object(std::mem::take(rules));
        rules.insert("anyOf".to_owned(), json!([value, variable()]));
        for (key, text) in about {
            text.map(|text| rules.insert(key.to_owned(), text));
        }
        return;
    }
    if let Some(Json::Object(all)) = rules.get_mut("properties") {
        all.values_mut().for_each(variables);
    }
    for key in ["items", "additionalProperties"] {
        rules.get_mut(key).map(variables);
    }
}

fn variable() -> Json {
    json!({ "$ref": "#/$defs/variable" })
}

/// Whether it is of a single value that a text with a variable in it may not fit.
fn is_value(schema: &Json) -> bool {
    let has = |key: &str| schema.get(key).is_some();
    match schema.get("type") {
        Some(Json::String(kind)) => match kind.as_str() {
            "string" => has("pattern") || has("maxLength"),
            "object" | "array" => false,
            _ => true,
        },
        _ => has("enum"),
    }
}
