//! The datastore: objects by path, kept in memory and written to one file in one step.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard};

use serde_json::{Value, json};

use crate::{log, util};

pub struct Store {
    file: PathBuf,
    state: Mutex<StoreState>,
}

/// Objects under `<api prefix>/<resource>/<namespace or ->/<name>`.
#[derive(Default)]
pub struct StoreState {
    pub objects: BTreeMap<String, Value>,
    version: u64,
    dirty: bool,
    /// When each node was last heard of, in seconds of this process' clock; not persisted, so a
    /// restarted server grants every node its full grace period, as the real controller does.
    pub heard: BTreeMap<String, std::time::Instant>,
}

pub fn key(prefix: &str, resource: &str, namespace: Option<&str>, name: &str) -> String {
    format!("{prefix}/{resource}/{}/{name}", namespace.unwrap_or("-"))
}

impl Store {
    pub fn open(file: PathBuf) -> Result<Self, String> {
        let mut state = StoreState::default();
        if let Some(text) = util::read(&file) {
            let saved: Value = serde_json::from_str(&text)
                .map_err(|e| format!("stand-in datastore {}: {e}", file.display()))?;
            state.version = saved["version"].as_u64().unwrap_or(0);
            for (key, object) in saved["objects"].as_object().into_iter().flatten() {
                state.objects.insert(key.clone(), object.clone());
            }
        }
        Ok(Store { file, state: Mutex::new(state) })
    }

    pub fn lock(&self) -> MutexGuard<'_, StoreState> {
        self.state.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// Changes the state under the lock and writes it when something lasting changed.
    pub fn update<T>(&self, change: impl FnOnce(&mut StoreState) -> T) -> T {
        let mut state = self.lock();
        let result = change(&mut state);
        if std::mem::take(&mut state.dirty) {
            self.write(&state);
        }
        result
    }

    pub fn save(&self) {
        self.write(&self.lock());
    }

    /// All of it, as it lies on the disk.
    pub fn text(&self, state: &StoreState) -> String {
        json!({"version": state.version, "objects": state.objects}).to_string()
    }

    /// Takes over a newer state, of another server's.
    pub fn replace(&self, newer: &Value) {
        let mut state = self.lock();
        let version = newer["version"].as_u64().unwrap_or(0);
        if version <= state.version {
            return;
        }
        state.version = version;
        state.objects =
            newer["objects"].as_object().into_iter().flatten().map(|(k, o)| (k.clone(), o.clone())).collect();
        self.write(&state);
    }

    fn write(&self, state: &StoreState) {
        let text = self.text(state);
        if let Err(e) = util::write_durably(&self.file, text.as_bytes(), 0o600) {
            log::error(format!("stand-in datastore {}: {e}", self.file.display()));
        }
    }
}

impl StoreState {
    /// Stores an object with a new resource version.
    pub fn put(&mut self, key: &str, mut object: Value) -> Value {
        self.version += 1;
        object["metadata"]["resourceVersion"] = json!(self.version.to_string());
        self.objects.insert(key.to_owned(), object.clone());
        self.dirty = true;
        object
    }

    /// As [`put`](Self::put), without a write to disk: for heartbeats.
    pub fn put_lightly(&mut self, key: &str, object: Value) -> Value {
        let dirty = self.dirty;
        let object = self.put(key, object);
        self.dirty = dirty;
        object
    }

    pub fn remove(&mut self, key: &str) -> Option<Value> {
        let removed = self.objects.remove(key)?;
        self.version += 1;
        self.dirty = true;
        Some(removed)
    }

    pub fn version(&self) -> u64 {
        self.version
    }

    /// Objects of one kind, in one namespace or in all.
    pub fn list<'a>(
        &'a self,
        prefix: &str,
        resource: &str,
        namespace: Option<&'a str>,
    ) -> impl Iterator<Item = (&'a String, &'a Value)> + use<'a> {
        let start = format!("{prefix}/{resource}/");
        let end = format!("{prefix}/{resource}0"); // '0' follows '/'
        self.objects
            .range(start..end)
            .filter(move |(_, o)| namespace.is_none_or(|n| o["metadata"]["namespace"] == n))
    }

    /// A new object's metadata: what the API server fills in.
    pub fn stamp(object: &mut Value) {
        object["metadata"]["uid"] = json!(util::uid());
        object["metadata"]["creationTimestamp"] = json!(util::now());
    }
}
