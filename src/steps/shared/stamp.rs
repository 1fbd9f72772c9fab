//! Notes on a node of what a step has brought to an end.

use crate::os::process::quote;

/// A script that notes on the node what a step has brought to an end.
pub fn stamp(name: &str, value: &str) -> String {
    let (file, value) = (quote(&format!("/var/lib/p1/stamps/{name}")), quote(value));
    format!("mkdir -p /var/lib/p1/stamps && echo {value} > {file}.new && mv {file}.new {file} || exit 1\n")
}
