//! What nodes pulled from registries is kept on this host, and new nodes are given it before their k3s starts.
//!
//! p1 asks no registry. What a node has is taken from it blob by blob, each checked by its digest, and only what is missing here
//! travels. What came from the spec's archives is not kept: new nodes have it from there. None of it fails a run: a node that is
//! not given an image pulls it.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use serde_json::json;

use super::shared::transfer::Transfer;
use super::{ClusterDef, Ctx, NodeCtx, NodeDef, Step, asked_of, named_of};
use crate::access::{Pods, World, as_file};
use crate::engine::StepError;
use crate::explain::FailureKind;
use crate::images::{Arriving, Digest, Image, Index, by_digest, full, repository};
use crate::k3s::images::Listed;
use crate::k3s::{self, Arch, IMAGES_DIR, KEPT_ARCHIVE};
use crate::machines::MachineState;
use crate::observe;
use crate::observed::{View, images};
use crate::os::many;
use crate::plan::{After, Check, ClusterStep, NodeStep, Per};
use crate::spec::Node;
use crate::ssh::Bound;

/// A new node has what this host keeps for its cluster.
pub const GIVE: Step = Step::Node(NodeDef {
    name: NodeStep::Images,
    title: "give it the images that are kept",
    per: Per::Node,
    after: &[After::Node(NodeStep::Stage)],
    needs: None,
    retry: false,
    check: |view, node, _| images::given(view, node),
    inputs: |cluster, node| json!([cluster.keep_images, node.name]),
    apply: give,
});

/// When all runs, nodes have pulled what they need.
pub const COLLECT: Step = Step::Cluster(ClusterDef {
    name: ClusterStep::Collect,
    title: "keep the images that were pulled",
    after: &[After::Node(NodeStep::Ready), After::Cluster(ClusterStep::Rollouts)],
    on_demand: false,
    needs: None,
    retry: false,
    check: images::collected,
    inputs: |cluster| json!([cluster.keep_images, crate::apps::digest(cluster)]),
    apply: collect,
});

/// What nodes pulled since goes with their machines otherwise. All that go are asked before the first does: an engine may take
/// them away together.
pub const LEAVING: Step = Step::Cluster(ClusterDef {
    name: ClusterStep::Images,
    title: "keep the images of machines that go",
    after: &[],
    on_demand: false,
    needs: None,
    retry: false,
    check: images::collected_of_leaving,
    inputs: |cluster| json!(cluster.keep_images),
    apply: collect_of_leaving,
});

/// Images that were loaded by name, on the nodes that lack them.
pub const LOAD: Step = Step::Node(NodeDef {
    name: NodeStep::Load,
    title: "give it the images",
    per: Per::Node,
    after: &[],
    needs: None,
    retry: true,
    check: |view, node, item| match view.machine(node).state {
        MachineState::Running => asked_of(view, node, item),
        state => Check::Done(format!("the machine is {state}")),
    },
    inputs: named_of,
    apply: load,
});

/// Blobs come in pieces of so many bytes, so that what is wrong shows before all has come.
const PIECE: u64 = 32 << 20;
/// A blob of some GB from an emulated node; silence is the earlier sign of a fault.
const FETCH: Duration = Duration::from_secs(1800);
const SILENCE: Duration = Duration::from_secs(60);
/// What comes beside a blob's bytes is a line.
const LINE: u64 = 128;
/// An index, its manifests, what they name: after so many rounds there is nothing more to ask for.
const ROUNDS: usize = 5;
/// containerd takes in some hundred MB a second; emulated far less.
const IMPORT: Duration = Duration::from_secs(600);
/// A dozen names say what it is about.
const NAMED: usize = 12;

fn give(ctx: &NodeCtx<'_>) -> Result<Option<String>, StepError> {
    let (world, node) = (ctx.world, ctx.node);
    let given = || {
        let Some(packed) = world.kept_images(arch(world, node)?)? else { return Ok(None) };
        let mut transfer = Transfer::new(ctx);
        let file = as_file(&packed, format!("{IMAGES_DIR}/{KEPT_ARCHIVE}"));
        if world.on(node, |r| r.sha256(&file.path, IMPORT))?.as_ref() != Some(&file.sha256) {
            transfer.file(&file, &file.path)?;
        }
        let names = packed.images.iter().map(|i| i.name.as_str());
        world.script(node, "noting its images", &k3s::images::note_given_script(names))?;
        let count = packed.images.len();
        Ok::<_, StepError>(Some(format!(
            "{count} {}, {}",
            if count == 1 { "image" } else { "images" },
            transfer.end()
        )))
    };
    match given() {
        Err(error) if error.cancelled() => Err(error),
        Err(error) => {
            ctx.control.warn(format!(
                "It is not given the images that are kept, and pulls them: {}.",
                error.failure.cause
            ));
            let _ = world.script(node, "removing what came of it", &k3s::images::remove_kept_script());
            Ok(None)
        }
        done => done,
    }
}

fn arch(world: &World, node: &Node) -> Result<Arch, StepError> {
    let seen = world.seen();
    View::new(&world.cluster, &seen)
        .arch(node)
        .map_or_else(|| Ok(crate::artifacts::arch(&world.facts(node)?.arch)?), Ok)
}

fn collect(ctx: &Ctx<'_>) -> Result<Option<String>, StepError> {
    let world = ctx.world;
    let pods = world.pods();
    // All that runs is known, or came with archives: to list a node's images costs it a second or more, several with a real k3s
    // under emulation, and there would be nothing new.
    let known = pods.as_ref().map_or(Ok(false), |pods| Ok(known(world, pods)? || world.pulled_nothing(pods)));
    unless_in_vain(
        ctx,
        known.and_then(|known| {
            let all: Vec<&Node> = world.cluster.members().filter(|_| !known).collect();
            Collecting { ctx, nodes: &all, pods, whole: true }.run()
        }),
    )
}

/// Whether no pod runs an image of which nothing is known here.
fn known(world: &World, pods: &Pods) -> Result<bool, StepError> {
    let (index, cluster) = (world.images.index()?, &world.cluster.name);
    let mut runs = pods.runs.values().flatten();
    Ok(index.clusters.contains_key(cluster) && runs.all(|digest| index.knows(cluster, digest)))
}

fn collect_of_leaving(ctx: &Ctx<'_>) -> Result<Option<String>, StepError> {
    let (world, seen) = (ctx.world, ctx.world.seen());
    let view = View::new(&world.cluster, &seen);
    let nodes: Vec<&Node> = seen.leaving().filter(|n| images::collected_of(&view, n).may_run()).collect();
    // The API knows what runs, and costs nothing beside a login. Where nothing is new, nodes are not asked.
    let Some(pods) = world.pods() else {
        return Ok(Some("the API does not answer, so none is asked".into()));
    };
    unless_in_vain(
        ctx,
        known(world, &pods).and_then(|known| match known {
            true => Ok(Some("none that is not here".into())),
            false => Collecting { ctx, nodes: &nodes, pods: Some(pods), whole: false }.run(),
        }),
    )
}

fn unless_in_vain(
    ctx: &Ctx<'_>,
    done: Result<Option<String>, StepError>,
) -> Result<Option<String>, StepError> {
    match done {
        Err(error) if !error.cancelled() => {
            ctx.control.warn(format!(
                "Images are not kept, and are pulled again by new nodes: {}.",
                error.failure.cause
            ));
            Ok(None)
        }
        done => done,
    }
}

struct Collecting<'c, 'a> {
    ctx: &'c Ctx<'a>,
    nodes: &'c [&'c Node],
    pods: Option<Arc<Pods>>,
    /// All nodes of the cluster are asked, or none since nothing is new.
    whole: bool,
}

impl Collecting<'_, '_> {
    fn run(&self) -> Result<Option<String>, StepError> {
        let (world, cluster) = (self.ctx.world, &self.ctx.world.cluster.name);
        if !self.nodes.is_empty() {
            self.ctx.control.says("asking which images there are");
        }
        let lists = many::each(world.jobs, self.nodes, |node| (*node, world.images_on(node)));
        let index = world.images.index().unwrap_or_default();
        let (mut came, mut passed, mut bytes, mut all_asked) = (Vec::new(), BTreeSet::new(), 0, true);
        for (node, list) in lists {
            let all = list.and_then(|list| {
                let list = list.unwrap_or_default();
                let (wanted, archived) = sorted(&list, self.pods.as_deref(), &index);
                let arch = arch(world, node)?;
                let new = self.fetch(node, arch, &wanted)?;
                let wanted = wanted.into_iter().map(|(name, digest)| (name, digest, arch.name().to_owned()));
                Ok((wanted.collect::<Vec<_>>(), archived, new))
            });
            match all {
                Ok((wanted, archived, new)) => {
                    came.extend(wanted);
                    passed.extend(archived);
                    bytes += new;
                }
                // Another node would not have more of it.
                Err(error) if error.cancelled() || error.failure.kind == FailureKind::NoSpace => {
                    return Err(error);
                }
                Err(error) => {
                    self.ctx
                        .control
                        .warn(format!("The images of {} are not kept: {}.", node.name, error.failure.cause));
                    all_asked = false;
                }
            }
        }
        came.sort();
        came.dedup();
        if self.nodes.is_empty() {
            let run = self.pods.iter().flat_map(|pods| pods.runs.values().flatten());
            passed.extend(run.filter(|digest| !index.has(digest)).cloned());
        }
        if came.is_empty() && passed.is_empty() && !self.whole {
            return Ok(None);
        }
        let always = self.pods.as_ref().map(|pods| pods.always.clone());
        let names: BTreeSet<String> = came.iter().map(|(name, ..)| name.clone()).collect();
        let whole = self.whole && all_asked && self.pods.is_some() && !self.nodes.is_empty();
        let lacking = world.images.keep(
            &came,
            false,
            world.now(),
            |index| {
                let loaded: BTreeSet<String> =
                    index.images.iter().filter(|i| i.loaded).map(|i| i.name.clone()).collect();
                let of = index.clusters.entry(cluster.clone()).or_default();
                if whole {
                    of.names.retain(|name| loaded.contains(name));
                    of.passed = BTreeSet::new();
                }
                of.names.extend(names);
                of.passed.extend(passed);
                of.always = always.unwrap_or_else(|| std::mem::take(&mut of.always));
            },
            &world.cancel,
        )?;
        let count = observe::look_at_images(world);
        world.note(|seen| seen.here.images = count);
        if !lacking.is_empty() {
            self.ctx.control.log(&format!("no node has all of {}", lacking.join(", ")));
        }
        Ok(match self.nodes.is_empty() {
            true => Some("none that is not here".to_owned()),
            false => self.told(came.len() - lacking.len(), bytes),
        })
    }

    fn told(&self, kept: usize, bytes: u64) -> Option<String> {
        let mut told = match kept {
            0 => "none was pulled".to_owned(),
            _ => format!("{kept} kept, {:.1} MB of them new", bytes as f64 / 1e6),
        };
        let always: Vec<&str> =
            self.pods.iter().flat_map(|p| &p.always).map(String::as_str).take(NAMED).collect();
        if !always.is_empty() && kept > 0 {
            told += &format!("; a registry is asked all the same for {}", always.join(", "));
        }
        Some(told)
    }

    /// What the node has of these images and this host does not. How many bytes that were.
    fn fetch(&self, node: &Node, arch: Arch, images: &[(String, Digest)]) -> Result<u64, StepError> {
        let world = self.ctx.world;
        let _one = world.fetching_images();
        let (mut absent, mut bytes) = (BTreeSet::new(), 0);
        for _ in 0..ROUNDS {
            let mut lacks = std::collections::BTreeMap::new();
            for (_, digest) in images {
                lacks.append(&mut world.images.tree(digest, arch.name(), &absent)?.lacks);
            }
            if lacks.is_empty() {
                break;
            }
            let all: u64 = lacks.values().sum();
            let (mut lacks, mut done) = (lacks.into_iter().peekable(), 0);
            while lacks.peek().is_some() {
                let (mut piece, mut size) = (Vec::new(), 0);
                while let Some((digest, most)) = lacks.next_if(|(_, most)| size == 0 || size + most <= PIECE)
                {
                    size += most;
                    piece.push((digest, most));
                }
                let (none, came) = self.piece(node, piece, size)?;
                absent.extend(none);
                (bytes, done) = (bytes + came, done + size);
                self.ctx.control.moved(&format!("fetching images from {}", node.name), done, Some(all));
            }
        }
        Ok(bytes)
    }

    fn piece(
        &self,
        node: &Node,
        piece: Vec<(Digest, u64)>,
        size: u64,
    ) -> Result<(BTreeSet<Digest>, u64), StepError> {
        let world = self.ctx.world;
        let script = k3s::images::send_script(piece.iter().map(|(digest, _)| digest.hex()));
        let most = size + LINE * piece.len() as u64;
        let mut arriving = Arriving::new(&world.images, piece);
        let mut wrong = None;
        let mut take = |bytes: &[u8]| {
            if wrong.is_none() {
                wrong = arriving.push(bytes).err();
            }
        };
        let bound = Bound::new(FETCH, SILENCE).at_most(most);
        let sent = world.on(node, |r| r.stream("fetching images", &script, bound, &mut take));
        if let Some(error) = wrong {
            return Err(error.into());
        }
        sent?.ok()?;
        Ok(arriving.finish()?)
    }
}

/// What of a node's images is kept, and the digests of those that it has from archives. What another image of the same repository
/// has taken the place of in all pods is not.
fn sorted(list: &[Listed], pods: Option<&Pods>, index: &Index) -> (Vec<(String, Digest)>, BTreeSet<Digest>) {
    let (mut wanted, mut passed) = (Vec::new(), BTreeSet::new());
    for image in list {
        let (Some(digest), Some(name)) = (Digest::parse(&image.digest), full(&image.name)) else { continue };
        if name != image.name || by_digest(&name).is_some_and(|named| named != digest) {
            continue;
        }
        match image.from_archive && !index.has(&digest) {
            true => drop(passed.insert(digest)),
            false => wanted.push((name, digest)),
        }
    }
    let tagged: BTreeSet<Digest> =
        wanted.iter().filter(|(name, _)| by_digest(name).is_none()).map(|(_, d)| d.clone()).collect();
    wanted.retain(|(name, digest)| {
        !passed.contains(digest) && (by_digest(name).is_none() || !tagged.contains(digest))
    });
    if let Some(pods) = pods {
        let in_use: BTreeSet<String> =
            wanted.iter().filter(|(_, d)| pods.run(d)).map(|(name, _)| repository(name).to_owned()).collect();
        wanted.retain(|(name, digest)| pods.run(digest) || !in_use.contains(repository(name)));
    }
    (wanted, passed)
}

/// The images that a run of `p1 image load` is about.
pub fn named(world: &World, arch: Arch) -> Result<Vec<Image>, StepError> {
    let (seen, index) = (world.seen(), world.images.index()?);
    let names = seen.request.subject.as_deref().unwrap_or_default().split_whitespace();
    Ok(names.filter_map(|name| index.image(name, arch.name()).cloned()).collect())
}

fn load(ctx: &NodeCtx<'_>) -> Result<Option<String>, StepError> {
    let (world, node) = (ctx.world, ctx.node);
    let arch = crate::artifacts::arch(&world.facts(node)?.arch)?;
    let images = named(world, arch)?;
    if images.is_empty() {
        let what = format!("none of the images is for {}", arch.name());
        return Err(StepError::new(what, "Load one that is.").kind(FailureKind::Cannot));
    }
    let Some(there) = world.images_on(node)? else {
        if !world.facts(node)?.node_password {
            return Ok(Some("it is given them before its k3s starts".into()));
        }
        return Err(StepError::new("its k3s does not run", "`p1 up` starts it.").next(["p1 up".to_owned()]));
    };
    let has = |i: &Image| there.iter().any(|l| l.name == i.name && l.digest == i.digest.to_string());
    let missing: Vec<Image> = images.into_iter().filter(|i| !has(i)).collect();
    let Some(packed) = world.packed(&missing, arch)? else { return Ok(Some("it has them".into())) };
    let mut transfer = Transfer::new(ctx);
    let archive = "/var/lib/p1/next/p1-load.tar";
    transfer.file(&as_file(&packed, archive.to_owned()), archive)?;
    let moved = transfer.end();
    ctx.control.says("importing them");
    let script = k3s::images::import_running_script(archive);
    let bound = Bound::new(IMPORT, IMPORT);
    let mut log = |line: &str| ctx.control.log(line);
    world.on(node, |r| r.script("importing images", &script, true, bound, &mut log)?.ok())?;
    Ok(Some(format!("{} of them, {moved}", packed.images.len())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_pulled_is_kept_unless_pods_run_another_of_its_repository() {
        let sum = |c: char| format!("sha256:{}", c.to_string().repeat(64));
        let digest = |c| Digest::parse(&sum(c)).unwrap();
        let one =
            |name: &str, c: char, from_archive| Listed { name: name.into(), digest: sum(c), from_archive };
        let list = [
            one("10.0.0.1:5000/web:1", 'a', false),
            one(&format!("10.0.0.1:5000/web@{}", sum('a')), 'a', false),
            one("10.0.0.1:5000/web:2", 'b', false),
            one(&format!("ghcr.io/x/y@{}", sum('c')), 'c', false),
            one(&format!("ghcr.io/x/y@{}", sum('d')), 'c', false),
            one("docker.io/rancher/mirrored-pause:3.6", 'e', true),
            one("docker.io/given/before:1", 'f', true),
            one(&sum('1'), 'a', false),
            one("../etc:1", 'a', false),
            Listed { name: "docker.io/a/b:1".into(), digest: "sha256:../../x".into(), from_archive: false },
        ];
        let here = Image {
            name: "docker.io/given/before:1".into(),
            digest: digest('f'),
            arch: "amd64".into(),
            bytes: 1,
            at: Default::default(),
            used: Default::default(),
            loaded: false,
        };
        let mut index = Index { images: vec![here], ..Index::default() };
        // As after the look before this one.
        index.clusters.entry("iot".into()).or_default().passed.insert(digest('e'));
        let names = |pods: Option<&Pods>| {
            let (wanted, passed) = sorted(&list, pods, &index);
            assert_eq!(passed, [digest('e')].into());
            wanted.into_iter().map(|(name, _)| name).collect::<Vec<_>>()
        };
        let by_digest = format!("ghcr.io/x/y@{}", sum('c'));
        let all = ["10.0.0.1:5000/web:1", "10.0.0.1:5000/web:2", &by_digest, "docker.io/given/before:1"];
        assert_eq!(names(None), all);
        let pods = Pods { runs: [("n".to_owned(), [digest('b')].into())].into(), ..Pods::default() };
        assert_eq!(names(Some(&pods)), all[1..]);
    }
}
