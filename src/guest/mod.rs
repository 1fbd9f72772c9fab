//! What a machine's system is, and how it is spoken to: what was seen of it, and scripts as text with the readers of
//! their answers. Pure: the scripts are run by others.

mod facts;

pub use facts::{Incomplete, NodeFacts, SCRIPT, Unit, parse};
