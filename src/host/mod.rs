//! What this machine has and lacks.
//!
//! [`Host::look`] gathers facts, [`doctor::checks`] judges them, [`fix::plan`] makes actions of the
//! remedies, [`choose`] settles what `auto` leaves open, and [`Dirs`] says where p1 keeps things.
//! Only [`Host::look`] and [`fix::Action::run`] touch the machine; the rest is pure, so that every
//! kind of host can be tested on any.
//!
//! Beside `cli/` this is the only room that reads the environment, in [`Env::of_process`].

pub mod apt;
pub mod bridge;
pub mod choose;
pub mod dirs;
pub mod doctor;
pub mod facts;
pub mod fix;
pub mod kvm;
pub mod libvirt;
pub mod net;
pub mod system;
pub mod vagrant;

pub use bridge::resolvers;
pub use choose::{Virtualization, choose, engine, prefer};
pub use dirs::{Dirs, Env};
pub use doctor::{Finding, Question, Status, Tool, checks, worst};
pub use facts::{Host, Look};
pub use libvirt::images;
