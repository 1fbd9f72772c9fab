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
    let head = json!({
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "p1 cluster",
    });
    with(head, File::schema())
}
