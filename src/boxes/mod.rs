//! Boxes: definitions, the builder, and the library of box files on this host.
//!
//! A definition is a YAML file; `boxes/debian-12.yaml` and `boxes/debian-12-cloud.yaml` explain every key. [`build()`]
//! turns one into a `.box` file for Vagrant's libvirt provider, out of Debian packages or of a vendor's cloud image.
//! [`library`] keeps box files.

mod bake;
mod build;
mod definition;
mod error;
mod image;
pub mod library;
mod prepare;
mod seed;
pub mod unpacked;

pub use bake::pack;
pub use build::{Tool, build, requirements};
pub use definition::{Definition, Image, digest, embedded, load};
pub use error::Error;
pub use library::{Baked, Library, Manifest, Origin, inspect, sha256};
