//! Boxes: definitions, the builder, and the library of box files on this host.
//!
//! A definition is a YAML file; `boxes/debian-12.yaml` explains every key. [`build()`] turns one into
//! a `.box` file for Vagrant's libvirt provider out of Debian packages. [`library`] keeps box files.

mod bake;
mod build;
mod definition;
mod error;
mod image;
pub mod library;
pub mod unpacked;

pub use bake::pack;
pub use build::{Tool, build, requirements};
pub use definition::{Definition, digest, embedded, load};
pub use library::{Baked, Library, Manifest, Origin, inspect, sha256};
