//! What every room needs from the operating system: processes with bounds, cancellation, atomic
//! and private files, and locks that die with their owner.

pub mod apart;
pub mod cancel;
pub mod files;
pub mod hash;
pub mod lines;
pub mod lock;
pub mod many;
pub mod orphan;
pub mod process;
pub mod pty;
pub mod sync;
pub mod tree;

pub use cancel::Cancel;
