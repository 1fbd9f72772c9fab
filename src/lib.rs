//! p1: one YAML spec to a running k3s cluster of real virtual machines.
//!
//! ARCHITECTURE.md has the map: what each room owns, and which may know which.

pub mod api;
pub mod apps;
pub mod artifacts;
pub mod backup;
pub mod boxes;
pub mod cli;
pub mod engine;
pub mod event;
pub mod explain;
pub mod facts;
pub mod host;
pub mod journal;
pub mod k3s;
mod observed;
pub mod os;
pub mod plan;
pub mod providers;
pub mod redact;
pub mod render;
pub mod spec;
pub mod ssh;
pub mod state;
pub mod steps;
pub mod ui;
pub mod vagrant;
