//! One making of machines that several nodes' steps wait for.
//!
//! Vagrant must not be asked twice at once about one machine (its locks fail either process), and one
//! process for all machines is much faster than one each. So the first step that wants its machine
//! has all made that the plan has, and every step hears of its own. What has to be looked at or
//! taken away beforehand is so for all of them then: a step whose turn comes later, with more nodes than
//! may be worked on at a time, finds its machine in the making.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::thread;
use std::time::{Duration, Instant};

use super::Heard;
use crate::os::cancel::Level;
use crate::os::{Cancel, sync};

/// Past its bound, the signals that end it, and then some: nothing of it can be left.
const ENDING: Duration = Duration::from_secs(90);

/// The machines that are being made, each with a failure of the kind `T` if it comes to that.
pub struct Batch<T> {
    state: Mutex<Inner<T>>,
    news: Condvar,
}

struct Inner<T> {
    /// Nodes that the plan wants up.
    planned: Vec<String>,
    running: bool,
    nodes: BTreeMap<String, News<T>>,
    /// What has to be done before it begins is done.
    prepared: bool,
    /// Nodes that are being worked on.
    current: Vec<String>,
    /// Those of them that nobody waits for any more.
    given_up: BTreeSet<String>,
    /// Ends the work.
    end: Option<Cancel>,
    /// When it has ended for sure.
    until: Option<Instant>,
}

/// What is known of a node's machine.
#[derive(Clone)]
pub struct News<T> {
    /// What was said last of it and not heard yet.
    pub says: Option<String>,
    /// What the user should know of it, and was not told yet.
    pub warnings: Vec<String>,
    /// It is being switched on, or was.
    pub starts: bool,
    /// It was switched on.
    pub booting: bool,
    /// Where it will answer, if that is known.
    pub address: Option<SocketAddr>,
    /// What came of it.
    pub result: Option<Result<(), T>>,
    /// Its step has heard of that.
    told: bool,
}

impl<T> Default for News<T> {
    fn default() -> Self {
        Self {
            says: None,
            warnings: Vec::new(),
            starts: false,
            booting: false,
            address: None,
            result: None,
            told: false,
        }
    }
}

impl<T> Default for Batch<T> {
    fn default() -> Self {
        let state = Inner {
            planned: Vec::new(),
            running: false,
            nodes: BTreeMap::new(),
            prepared: false,
            current: Vec::new(),
            given_up: BTreeSet::new(),
            end: None,
            until: None,
        };
        Self { state: Mutex::new(state), news: Condvar::new() }
    }
}

impl<T> Inner<T> {
    /// Changes what is known of a node's machine, if it is one of those that are made.
    fn of(&mut self, node: &str, change: impl FnOnce(&mut News<T>)) {
        if let Some(news) = self.nodes.get_mut(node) {
            change(news);
        }
    }
}

impl<T: Clone + Send + 'static> Batch<T> {
    fn lock(&self) -> MutexGuard<'_, Inner<T>> {
        sync::lock(&self.state)
    }

    /// What the first making of this run is for.
    pub fn plan(&self, nodes: Vec<String>) {
        self.lock().planned = nodes;
    }

    /// True if the node's machine is being worked on, or there is a word on it that nobody heard.
    pub fn has(&self, node: &str) -> bool {
        let mut inner = self.lock();
        while inner.running && !inner.prepared {
            inner = sync::wait(&self.news, inner, Duration::from_millis(500));
        }
        let at_work = inner.running && inner.current.iter().any(|n| n == node);
        inner.nodes.get(node).is_some_and(|h| !h.told && (at_work || h.result.is_some()))
    }

    /// Has the node's machine made: by the work that goes on if it is in there, else by the next, which is `make`, told
    /// the nodes and what ends it. `waits` is called again and again while another has to end first, and says whether
    /// to wait on.
    pub fn join(
        self: &Arc<Self>,
        node: &str,
        waits: &mut dyn FnMut() -> bool,
        make: impl FnOnce(&[String], &Cancel) -> BTreeMap<String, Result<(), T>> + Send + 'static,
    ) {
        let mut inner = self.lock();
        if inner.running && inner.current.iter().any(|n| n == node) && inner.nodes[node].result.is_none() {
            return;
        }
        while inner.running {
            if !waits() {
                return;
            }
            inner = sync::wait(&self.news, inner, Duration::from_millis(500));
        }
        let mut nodes = std::mem::take(&mut inner.planned);
        if !nodes.iter().any(|n| n == node) {
            nodes.push(node.to_owned());
        }
        for node in &nodes {
            inner.nodes.insert(node.clone(), News::default());
        }
        (inner.running, inner.prepared) = (true, false);
        inner.until = None;
        inner.current.clone_from(&nodes);
        inner.given_up.clear();
        let end = Cancel::new();
        inner.end = Some(end.clone());
        drop(inner);
        let batch = Arc::clone(self);
        thread::spawn(move || {
            let results = make(&nodes, &end);
            let mut inner = batch.lock();
            for (node, result) in results {
                inner.nodes.entry(node).or_default().result = Some(result);
            }
            (inner.running, inner.prepared) = (false, true);
            batch.news.notify_all();
        });
    }

    /// Tells it what was heard of the work.
    pub fn hear(&self, heard: Heard<'_>) {
        let mut inner = self.lock();
        match heard {
            Heard::Begun(bound) => {
                inner.prepared = true;
                inner.until = Some(Instant::now() + bound + ENDING);
            }
            Heard::Passed(node) => inner.current.retain(|n| n != node),
            Heard::Warning(node, text) => {
                inner.nodes.entry(node.to_owned()).or_default().warnings.push(text);
            }
            Heard::Says(node, text) => inner.of(node, |n| n.says = Some(text)),
            Heard::Starts(node) => inner.of(node, |n| n.starts = true),
            Heard::Booting(node, address) => {
                inner.of(node, |n| (n.starts, n.booting, n.address) = (true, true, address));
            }
            Heard::Up(node) => inner.of(node, |n| n.result = Some(Ok(()))),
            // Its cause comes with the end of the work.
            Heard::Failed(node) => inner.of(node, |n| n.booting = false),
            Heard::Making(_) | Heard::Cannot(..) | Heard::Log(_) => return,
        }
        self.news.notify_all();
    }

    /// The node's machine cannot be made.
    pub fn fail(&self, node: &str, failure: T) {
        self.lock().nodes.entry(node.to_owned()).or_default().result = Some(Err(failure));
        self.news.notify_all();
    }

    /// The node's step waits no longer. When nobody does, the work is ended: its own bounds are longer.
    pub fn give_up(&self, node: &str) {
        let mut inner = self.lock();
        inner.given_up.insert(node.to_owned());
        let wanted = |n: &&String| !inner.given_up.contains(*n) && inner.nodes[*n].result.is_none();
        if !inner.current.iter().any(|n| wanted(&n))
            && let Some(end) = &inner.end
        {
            end.raise(Level::Abort);
        }
    }

    /// What became known of the node, waiting up to `patience` for news.
    pub fn heard(&self, node: &str, patience: Duration) -> News<T> {
        let mut inner = self.lock();
        let news = |h: &News<T>| h.says.is_some() || h.result.is_some() || !h.warnings.is_empty();
        if !inner.nodes.get(node).is_some_and(news) {
            inner = sync::wait(&self.news, inner, patience);
        }
        let Some(entry) = inner.nodes.get_mut(node) else { return News::default() };
        let heard = entry.clone();
        entry.says = None;
        entry.warnings.clear();
        entry.told = heard.result.is_some();
        heard
    }

    /// Waits until no machine is being made any more: p1 went ahead of it where it could. Failures after
    /// that point are answered, by node; they matter to nobody but should be known. `late` is the failure of work that
    /// does not end.
    pub fn finish(&self, tell: &mut dyn FnMut(), late: impl FnOnce() -> T) -> Vec<(String, T)> {
        let mut inner = self.lock();
        if inner.running {
            tell();
        }
        while inner.running {
            inner = sync::wait(&self.news, inner, Duration::from_millis(500));
            if inner.until.is_some_and(|until| Instant::now() > until) {
                let late = late();
                return inner.current.iter().map(|n| (n.clone(), late.clone())).collect();
            }
        }
        let failed = |(n, h): (&String, &News<T>)| Some((n.clone(), h.result.clone()?.err()?));
        inner.nodes.iter().filter_map(failed).collect()
    }
}
