//! What p1 knows about k3s: its files, its installer, its versions, its tokens and what its words
//! mean. Pure functions; nothing here reads, writes or runs anything.
//!
//! Checked against k3s v1.21 (source) and the documentation of current versions.

pub mod baked;
pub mod config;
pub mod diagnose;
pub mod fixed;
pub mod found;
pub mod images;
pub mod install;
pub mod kubeconfig;
pub mod kubectl;
pub mod release;
pub mod token;
pub mod version;
pub mod yaml;

pub use baked::{aside_script, place_script};
pub use config::{
    CONFIG_PATH, Join, REGISTRIES_PATH, api_url, config_yaml, environment_file, registries_yaml, server_url,
};
pub use diagnose::{Diagnosis, Fact, Said, diagnose, last_words, one_start, telling};
pub use found::Found;
pub use images::{IMAGES_DIR, KEPT_ARCHIVE, forget_import_script, import_script};
pub use install::{BIN_DIR, complaint, install, killall_script, uninstall_script};
pub use kubeconfig::{foreign, merge, rewrite, unmerge};
pub use release::{Arch, Origins};
pub use token::{Token, Tokens};
pub use version::{Barrier, Version, runs};
