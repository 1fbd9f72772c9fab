//! p1: one YAML spec to a running k3s cluster of real virtual machines.
//!
//! ARCHITECTURE.md has the map: what each room owns, and which may know which. From outside there is [`main`] alone, so
//! that the compiler sees what nobody uses.

mod access;
mod api;
mod apps;
mod artifacts;
mod backup;
mod boxes;
mod cli;
mod engine;
mod event;
mod explain;
mod fault;
mod guest;
mod host;
mod images;
mod index;
mod journal;
mod k3s;
mod kept;
mod machines;
mod observe;
mod observed;
mod os;
mod plan;
mod redact;
mod render;
mod spec;
mod ssh;
mod state;
mod steps;
mod ui;
mod verbs;

pub use cli::main;

/// The rooms, for the tests in `tests/` and for the fuzzer. The feature `internals`, which is on in p1's own tests only,
/// opens them.
#[cfg(feature = "internals")]
#[doc(hidden)]
pub mod internals {
    macro_rules! open {
        ($($room:ident)*) => {
            $(
                pub mod $room {
                    pub use crate::$room::*;
                }
            )*
        };
    }

    open!(access api apps artifacts backup boxes cli engine event explain fault guest host journal k3s machines observe observed os plan redact render spec ssh state steps ui verbs);
}
