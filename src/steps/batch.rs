//! One `vagrant up` that several nodes' steps wait for.
//!
//! Vagrant must not be asked twice at once about one machine (its locks fail either process), and one
//! process for all machines is much faster than one each. So the first step that wants its machine
//! starts Vagrant for all that the plan has, and every step hears of its own. What has to be looked at or
//! taken away beforehand is so for all of them then: a step whose turn comes later, with more nodes than
//! may be worked on at a time, finds its machine in the making.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::thread;
use std::time::{Duration, Instant};

use crate::access::World;
use crate::engine::{Control, Trouble};
use crate::machines::vagrant::{Progress, Up};
use crate::os::cancel::Level;
use crate::os::{Cancel, many, sync};

/// Past its bound, the signals that end it, and then some: nothing of it can be left.
const ENDING: Duration = Duration::from_secs(90);

/// The machines that are being brought up.
#[derive(Default)]
pub struct Batch {
    state: Mutex<Inner>,
    news: Condvar,
}

#[derive(Default)]
struct Inner {
    /// Nodes that the plan wants up.
    planned: Vec<String>,
    running: bool,
    nodes: BTreeMap<String, Heard>,
    /// What has to be done before it begins is done.
    prepared: bool,
    /// Nodes of the running process.
    current: Vec<String>,
    /// Those of them that nobody waits for any more.
    given_up: BTreeSet<String>,
    /// Ends the running process.
    end: Option<Cancel>,
    /// When it has ended for sure.
    until: Option<Instant>,
}

/// What is known of a node's machine.
#[derive(Clone, Default)]
pub struct Heard {
    /// Vagrant's last words that were not heard yet.
    pub says: Option<String>,
    /// What the user should know of it, and was not told yet.
    pub warnings: Vec<String>,
    /// It was switched on.
    pub booting: bool,
    /// Vagrant is through with it.
    pub result: Option<Result<(), Trouble>>,
    /// Its step has heard of that.
    told: bool,
}

impl Batch {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        sync::lock(&self.state)
    }

    /// What the first `vagrant up` of this run is for.
    pub fn plan(&self, nodes: Vec<String>) {
        self.lock().planned = nodes;
    }

    /// True if the running process is at work on the node's machine, or has a word on it that nobody heard.
    pub fn has(&self, node: &str) -> bool {
        let mut inner = self.lock();
        while inner.running && !inner.prepared {
            inner = sync::wait(&self.news, inner, Duration::from_millis(500));
        }
        let at_work = inner.running && inner.current.iter().any(|n| n == node);
        inner.nodes.get(node).is_some_and(|h| !h.told && (at_work || h.result.is_some()))
    }

    /// Has the node's machine brought up: by the running process if it is in there, else by the
    /// next one.
    pub fn join(self: &Arc<Self>, world: &Arc<World>, node: &str, control: &Control) {
        let mut inner = self.lock();
        if inner.running && inner.current.iter().any(|n| n == node) && inner.nodes[node].result.is_none() {
            return;
        }
        while inner.running {
            control.says("waiting for Vagrant");
            inner = sync::wait(&self.news, inner, Duration::from_millis(500));
            if control.cancel().aborted() {
                return;
            }
        }
        let mut nodes = std::mem::take(&mut inner.planned);
        if !nodes.iter().any(|n| n == node) {
            nodes.push(node.to_owned());
        }
        for node in &nodes {
            inner.nodes.insert(node.clone(), Heard::default());
        }
        (inner.running, inner.prepared) = (true, false);
        inner.until = None;
        inner.current.clone_from(&nodes);
        inner.given_up.clear();
        drop(inner);
        let (batch, world) = (Arc::clone(self), Arc::clone(world));
        thread::spawn(move || batch.run(&world, &nodes));
    }

    fn run(&self, world: &World, nodes: &[String]) {
        let all = |trouble: Trouble| nodes.iter().map(|n| (n.clone(), Err(trouble.clone()))).collect();
        let results = match world.write_vagrantfile().and_then(|()| self.prepare(world, nodes)) {
            Err(trouble) => all(trouble),
            Ok(nodes) if nodes.is_empty() => BTreeMap::new(),
            Ok(nodes) => self.vagrant(world, &nodes),
        };
        let mut inner = self.lock();
        for (node, result) in results {
            inner.nodes.entry(node).or_default().result = Some(result);
        }
        (inner.running, inner.prepared) = (false, true);
        self.news.notify_all();
    }

    /// Those that Vagrant is to be asked for; the others' steps hear why not.
    fn prepare(&self, world: &World, nodes: &[String]) -> Result<Vec<String>, Trouble> {
        let machines = world.provider.machines(&world.cluster, &world.vagrant.ids(), &world.cancel)?;
        let ready = many::each(world.jobs, nodes, |name| {
            let node = world.cluster.node(name)?;
            let warn = |text: String| {
                self.lock().nodes.entry(name.clone()).or_default().warnings.push(text);
                self.news.notify_all();
            };
            match super::machine::prepare(world, node, machines.get(name), &warn) {
                Ok(true) => return Some(name.clone()),
                Ok(false) => self.lock().current.retain(|n| n != name),
                Err(trouble) => {
                    self.lock().nodes.entry(name.clone()).or_default().result = Some(Err(trouble));
                }
            }
            None
        });
        self.lock().prepared = true;
        self.news.notify_all();
        Ok(ready.into_iter().flatten().collect())
    }

    fn vagrant(&self, world: &World, nodes: &[String]) -> BTreeMap<String, Result<(), Trouble>> {
        let count = u32::try_from(nodes.len()).unwrap_or(u32::MAX);
        let turns = if world.provider.parallel() { 1 } else { count };
        // Making a machine comes before booting it.
        let bound =
            world.cluster.timeouts.boot.saturating_mul(turns.saturating_add(1)) + Duration::from_secs(60);
        let log = Control::silent(world.run_log("vagrant"), world.cancel.clone(), world.redactor());
        let up = Up { vagrant: &world.vagrant, nodes, bound };
        let end = Cancel::new();
        let inner_end = end.clone();
        let _on_abort = world.cancel.on_abort(move || inner_end.raise(Level::Abort));
        {
            let mut inner = self.lock();
            inner.end = Some(end.clone());
            inner.until = Some(Instant::now() + bound + ENDING);
        }
        let heard = &mut |node: &str, progress: Progress| {
            let mut inner = self.lock();
            let Some(entry) = inner.nodes.get_mut(node) else { return };
            match progress {
                Progress::Says(text) => entry.says = Some(text),
                Progress::Booting => entry.booting = true,
                Progress::Up => entry.result = Some(Ok(())),
                // Its cause comes with the end of the process.
                Progress::Failed => entry.booting = false,
            }
            self.news.notify_all();
        };
        let results = up.run(&end, heard, &mut |line| log.log(line));
        let evidence = |trouble: Trouble| {
            let mut trouble = trouble;
            trouble.failure.log = Some(world.run_log("vagrant"));
            trouble
        };
        results.into_iter().map(|(n, r)| (n, r.map_err(|e| evidence(Trouble::from(e))))).collect()
    }

    /// The node's step waits no longer. When nobody does, Vagrant is ended: its own bounds are longer.
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
    pub fn heard(&self, node: &str, patience: Duration) -> Heard {
        let mut inner = self.lock();
        let news = |h: &Heard| h.says.is_some() || h.result.is_some() || !h.warnings.is_empty();
        if !inner.nodes.get(node).is_some_and(news) {
            inner = sync::wait(&self.news, inner, patience);
        }
        let Some(entry) = inner.nodes.get_mut(node) else { return Heard::default() };
        let heard = entry.clone();
        entry.says = None;
        entry.warnings.clear();
        entry.told = heard.result.is_some();
        heard
    }

    /// Waits until no vagrant runs any more: p1 went ahead of it where it could. Its failures after
    /// that point are answered, by node; they matter to nobody but should be known.
    pub fn finish(&self, tell: &mut dyn FnMut()) -> Vec<(String, Trouble)> {
        let mut inner = self.lock();
        if inner.running {
            tell();
        }
        while inner.running {
            inner = sync::wait(&self.news, inner, Duration::from_millis(500));
            if inner.until.is_some_and(|until| Instant::now() > until) {
                let trouble = Trouble::new("vagrant did not end when it was killed", "");
                return inner.current.iter().map(|n| (n.clone(), trouble.clone())).collect();
            }
        }
        let failed = |(n, h): (&String, &Heard)| Some((n.clone(), h.result.clone()?.err()?));
        inner.nodes.iter().filter_map(failed).collect()
    }
}
