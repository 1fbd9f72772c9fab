//! p1.

fn main() {}
