//! p1: one YAML spec to a running k3s cluster of real virtual machines.
//!
//! Rooms, lowest first; each knows only rooms above it in this list. ARCHITECTURE.md has the map.

pub mod api;
pub mod artifacts;
pub mod event;
pub mod explain;
pub mod k3s;
pub mod os;
pub mod spec;
