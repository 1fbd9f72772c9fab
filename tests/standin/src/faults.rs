//! Faults: how a test tells the stand-in to misbehave.
//!
//! Looked for in `/etc/p1-standin/faults` and in `K3S_STANDIN_FAULTS` (a directory when it holds a
//! slash, else a list separated by commas). In a directory, a file whose name is a fault sets it,
//! with the value after `=` in the name or else the file's text; any other file holds one
//! `name[=value]` per line.
//!
//! | fault | effect |
//! |---|---|
//! | `unit-crash` | exit 1 at once with a line in the log |
//! | `never-notify` | works, but never tells systemd: the unit stays `activating` |
//! | `never-ready` | the Node stays NotReady (`cni plugin not initialized`); heals when removed |
//! | `flap` | the Node alternates between Ready and NotReady; heals when removed |
//! | `wrong-ip=ADDR` | the Node reports this InternalIP |
//! | `wrong-version=V` | `--version` and the Node report this version |
//! | `api-dead` | a server reports itself up while nothing listens on its port |
//! | `slow-start=SECONDS` | sleeps before doing anything |
//! | `oom[=SECONDS]` | kills itself with SIGKILL, after so many seconds |
//! | `silent` | a running node sends no heartbeats, so the server marks it Unknown; heals |
//! | `crash=TEXT` | (server) containers whose image contains TEXT end with exit code 1 again and again; heals |
//! | `image-pull=TEXT` | (server) pods whose image contains TEXT stay in ImagePullBackOff; heals |
//!
//! `unit-crash`, `slow-start` and `oom` also exist as `NAME-once`: the marker is removed when it
//! strikes, so that the next attempt succeeds.

use std::fs;
use std::path::PathBuf;

use crate::{log, paths};

const NAMES: &[&str] = &[
    "unit-crash",
    "never-notify",
    "never-ready",
    "flap",
    "wrong-ip",
    "wrong-version",
    "api-dead",
    "slow-start",
    "oom",
    "silent",
    "image-pull",
    "crash",
    "unit-crash-once",
    "slow-start-once",
    "oom-once",
    // The installer's own; listed so that a file of that name is not read as a list.
    "install-fail",
    "install-fail-once",
    "install-hang",
];

struct Found {
    name: String,
    value: String,
    marker: Option<PathBuf>,
}

fn all() -> Vec<Found> {
    let mut directories = vec![paths::at("/etc/p1-standin/faults")];
    let mut found = Vec::new();
    match std::env::var("K3S_STANDIN_FAULTS") {
        Ok(value) if value.contains('/') => directories.push(PathBuf::from(value)),
        Ok(value) => found.extend(value.split(',').filter_map(|v| entry(v, None))),
        Err(_) => {}
    }
    for directory in directories {
        for file in fs::read_dir(directory).into_iter().flatten().flatten() {
            let Ok(text) = fs::read_to_string(file.path()) else {
                continue;
            };
            let name = file.file_name().to_string_lossy().into_owned();
            let bare = name.split('=').next().unwrap_or_default();
            if NAMES.contains(&bare) {
                let whole = if name.contains('=') { name } else { format!("{name}={}", text.trim()) };
                found.extend(entry(&whole, Some(file.path())));
            } else {
                found.extend(text.lines().filter_map(|l| entry(l, None)));
            }
        }
    }
    found
}

fn entry(text: &str, marker: Option<PathBuf>) -> Option<Found> {
    let text = text.trim();
    if text.is_empty() || text.starts_with('#') {
        return None;
    }
    let (name, value) = text.split_once('=').unwrap_or((text, ""));
    Some(Found { name: name.into(), value: value.into(), marker })
}

/// The fault's value (empty where it has none), read afresh at each call so that removal heals.
pub fn get(name: &str) -> Option<String> {
    all().into_iter().find(|f| f.name == name).map(|f| f.value)
}

pub fn is_set(name: &str) -> bool {
    get(name).is_some()
}

/// As [`get`], and the `-once` form of it, whose marker is removed by being read.
pub fn take(name: &str) -> Option<String> {
    if let Some(value) = get(name) {
        return Some(value);
    }
    let once = format!("{name}-once");
    let found = all().into_iter().find(|f| f.name == once)?;
    if let Some(marker) = found.marker {
        let _ = fs::remove_file(marker);
    }
    Some(found.value)
}

/// The faults that strike at start, server and agent alike.
pub fn at_start() {
    if let Some(value) = take("slow-start") {
        log::info(format!("stand-in fault slow-start: sleeping {value} s"));
        std::thread::sleep(std::time::Duration::from_secs_f64(value.parse().unwrap_or(10.0)));
    }
    if take("unit-crash").is_some() {
        log::fatal("stand-in fault unit-crash: exiting");
    }
    if let Some(value) = take("oom") {
        let delay = std::time::Duration::from_secs_f64(value.parse().unwrap_or(0.0));
        std::thread::spawn(move || {
            std::thread::sleep(delay);
            log::error("stand-in fault oom: killing itself");
            // systemd's words of a real one.
            eprintln!("A process of this unit has been killed by the OOM killer.");
            let _ = signal_hook::low_level::raise(signal_hook::consts::SIGKILL);
        });
    }
}
