//! Notes on a node of what a step has brought to an end.

use crate::os::process::quote;

/// Where they lie.
pub const STAMPS: &str = "/var/lib/p1/stamps";

/// A script that notes on the node what a step has brought to an end.
pub fn stamp(name: &str, value: &str) -> String {
    let (file, value) = (quote(&format!("{STAMPS}/{name}")), quote(value));
    format!("mkdir -p {STAMPS} && echo {value} > {file}.new && mv {file}.new {file} || exit 1\n")
}
