//! How the spec's namespaces and manifests are applied, and what left the spec is taken away.
//!
//! p1 applies by `k3s kubectl apply --server-side` on a server, where the version always fits; texts
//! go through standard input. What it applied is noted in the cluster ([`Inventory`]) before it is,
//! so that a run that is cut off forgets nothing.

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::{Value, json};

use super::rollout;
use super::wait::{Patience, again, wait_for};
use crate::access::kubectl::{self, WRITE, applying, fed, stream};
use crate::access::{Via, World};
use crate::api;
use crate::apps::{self, Inventory, Item, Owned, Secrets};
use crate::engine::StepError;
use crate::explain::{FailureKind, seconds};
use crate::k3s;
use crate::observe::apps::{about, apps_now, changed, foreign, has_namespace};
use crate::observed::applied::{and_more, none_wanted};
use crate::os::process::{self, quote};
use crate::spec::{Cluster, Document, Manifest, Object, When};
use crate::steps::Ctx;

/// For the API to answer one question, where it comes and goes.
pub const ANSWERS: Duration = Duration::from_secs(60);
/// For a webhook of the cluster's own: what was applied just before may have brought its pods.
const WEBHOOKS: Duration = Duration::from_secs(180);
/// From a definition of a new kind to the kind.
const ESTABLISHED: Duration = Duration::from_secs(60);

/// A document of an entry.
struct Piece {
    namespace: Option<String>,
    document: Document,
    /// Its entry is applied as soon as the API answers.
    foundation: bool,
    /// It is waited for.
    wait: bool,
    /// Pieces of a later one are applied when those of the earlier ones run.
    group: usize,
}

/// What is to be applied: the documents of one entry after the other.
struct Wanted {
    documents: Vec<Piece>,
    secrets: Secrets,
}

fn wanted(ctx: &Ctx<'_>, part: Part) -> Result<Wanted, StepError> {
    let mut documents = Vec::new();
    let mut group = 0;
    for manifest in part.of(&ctx.world.cluster) {
        let found = match manifest.kustomize {
            true => kustomized(ctx, manifest)?,
            false => manifest.documents().map_err(|flaw| changed(manifest, &flaw.message))?,
        };
        let foundation = manifest.when == When::Api;
        // What came before is not waited for once more.
        let wait = manifest.wait && (part == Part::Foundations || !foundation);
        documents.extend(found.into_iter().map(|document| Piece {
            namespace: manifest.namespace.clone(),
            document,
            foundation,
            wait,
            group,
        }));
        group += usize::from(wait);
    }
    let secrets = Secrets::of(documents.iter().map(|p| &p.document));
    Ok(Wanted { documents, secrets })
}

/// Has kustomize on the server build what an entry stands for; the files lie there only meanwhile.
fn kustomized(ctx: &Ctx<'_>, manifest: &Manifest) -> Result<Vec<Document>, StepError> {
    use base64::Engine;
    let texts = manifest.texts().map_err(|flaw| changed(manifest, &flaw.message))?;
    let mut script = String::from(
        "umask 077\nmkdir -p /run/p1 && d=$(mktemp -d /run/p1/kustomize.XXXXXX) || exit 90\n\
         trap 'rm -rf \"$d\"' EXIT\n",
    );
    for (name, text) in &texts {
        let name = name.to_string_lossy();
        let dir = name.rsplit_once('/').map_or("", |(dir, _)| dir);
        let write = format!("mkdir -p \"$d\"/in/{} && base64 -d >\"$d\"/in/{}", quote(dir), quote(&name));
        // In base64: whatever the file is, no line of it is taken for something else.
        script.push_str(&fed(&write, &base64::engine::general_purpose::STANDARD.encode(text)));
    }
    let inner = manifest.path.strip_prefix(&manifest.root).unwrap_or(&manifest.path);
    script.push_str(&format!(
        "k3s kubectl kustomize \"$d\"/in/{} >\"$d\"/out 2>\"$d\"/err || {{ cat \"$d\"/err; exit 1; }}\ncat \"$d\"/out\n",
        quote(&inner.to_string_lossy())
    ));
    let world = ctx.world;
    ctx.control.says(format!("building {}", manifest.shown));
    // What comes back may hold secrets: it is neither logged nor shown.
    let what = format!("building the kustomization {}", manifest.shown);
    let done = world.on(world.server(Via::Any)?, |r| r.script(&what, &script, true, WRITE, &mut |_| {}))?;
    if done.status != 0 {
        let text = done.text();
        let lines = process::tail(&text, 6);
        let cause = lines.last().cloned().unwrap_or_default();
        return Err(StepError::new(
            format!("the kustomization `{}` does not build: {cause}", manifest.shown),
            "",
        )
        .evidence(lines));
    }
    let (documents, flaws) = crate::spec::manifest::documents(&done.text());
    match flaws.into_iter().next() {
        None => Ok(documents),
        Some(flaw) => {
            let cause = format!(
                "the kustomization `{}` builds what cannot be applied: {}",
                manifest.shown, flaw.message
            );
            Err(StepError::new(cause, flaw.help))
        }
    }
}

/// The kinds of the cluster, asked for once each.
struct Kinds<'a> {
    world: &'a World,
    known: BTreeMap<String, Vec<api::Kind>>,
}

impl Kinds<'_> {
    /// Whether the cluster has the kind of an object that was applied once.
    fn serves(&mut self, item: &Item) -> Result<bool, StepError> {
        let object = Object {
            api_version: item.api_version.clone(),
            kind: item.kind.clone(),
            namespace: None,
            name: item.name.clone(),
        };
        Ok(self.item(&object, None, false)?.is_some())
    }

    /// The object with its place in the API; none as long as its kind is not known.
    fn item(
        &mut self,
        object: &Object,
        namespace: Option<&str>,
        fleeting: bool,
    ) -> Result<Option<Item>, StepError> {
        let version = &object.api_version;
        if !self.known.contains_key(version) {
            let kinds = self.world.ask(|api| api.kinds(version, &self.world.cancel))?;
            self.known.insert(version.clone(), kinds);
        }
        let found = self.known[version].iter().find(|k| k.kind == object.kind);
        if found.is_none() {
            // Its definition may be about to be applied.
            self.known.remove(version);
        }
        Ok(self.known.get(version).and_then(|all| all.iter().find(|k| k.kind == object.kind)).map(|kind| {
            let said = object.namespace.as_deref().or(namespace).unwrap_or("default");
            Item {
                api_version: version.clone(),
                kind: object.kind.clone(),
                plural: kind.plural.clone(),
                namespace: kind.namespaced.then(|| said.to_owned()),
                name: object.name.clone(),
                fleeting,
                foundation: false,
            }
        }))
    }
}

fn is_definition(document: &Document) -> bool {
    document.objects.iter().any(|o| o.kind == "CustomResourceDefinition")
}

fn is_namespace(document: &Document) -> bool {
    !document.objects.is_empty()
        && document.objects.iter().all(|o| o.kind == "Namespace" && o.api_version == "v1")
}

/// Which of the spec's manifests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// Those that are applied as soon as the API answers. Nothing is taken away.
    Foundations,
    /// All of them; what left the spec is taken away.
    All,
}

impl Part {
    fn of(self, cluster: &Cluster) -> impl Iterator<Item = &Manifest> {
        cluster.manifests.iter().filter(move |m| self == Self::All || m.when == When::Api)
    }
}

/// Applies; where a webhook has to be asked whose pods do not answer yet, again until they do.
fn apply(ctx: &Ctx<'_>, what: &str, script: &str, secrets: &Secrets) -> Result<(), StepError> {
    let mut last = None;
    let patience = Patience { every: Duration::from_secs(2), ..Patience::of(WEBHOOKS) };
    let done = wait_for(ctx, patience, || {
        let log = &mut |line: &str| ctx.control.log(line);
        match kubectl::apply(ctx.world, what, script, secrets, log) {
            Ok(_) => Ok(Ok(Ok(()))),
            Err(error) if error.failure.evidence.iter().any(|line| k3s::kubectl::lacks_webhook(line)) => {
                let why = "a webhook of the cluster does not answer yet".to_owned();
                last = Some(error);
                Ok(Err(why))
            }
            // Whether that is worth another try, the step decides.
            Err(error) => Ok(Ok(Err(error))),
        }
    })?;
    match (done, last) {
        (Ok(result), _) => result,
        (Err(why), None) => Err(StepError::new(why, "")),
        (Err(_), Some(mut error)) => {
            error.failure.cause = format!("{} (asked again for {})", error.failure.cause, seconds(WEBHOOKS));
            let hint = "Its pods do not run, or its Service leads nowhere: `p1 kubectl get pods -A` shows which, and \
                        `p1 kubectl get validatingwebhookconfigurations,mutatingwebhookconfigurations` whose it is.";
            error.failure.hint = Some(hint.to_owned());
            Err(error)
        }
    }
}

/// Applies a part, with what `then` has to wait for before it is noted as whole.
pub fn put(
    ctx: &Ctx<'_>,
    part: Part,
    old: &Inventory,
    then: &mut dyn FnMut(&[Item]) -> Result<(), StepError>,
) -> Result<Option<String>, StepError> {
    let world = ctx.world;
    for manifest in part.of(&world.cluster) {
        let now = crate::spec::manifest::look(&manifest.shown, &manifest.path, manifest.namespace.as_deref());
        match now {
            Ok((now, _)) if now.digest == manifest.digest => {}
            Ok(_) => return Err(changed(manifest, "it was replaced")),
            Err(flaws) => return Err(changed(manifest, &flaws[0].message)),
        }
    }
    let wanted = wanted(ctx, part)?;
    let mut new = Inventory {
        digest: apps::digest(&world.cluster),
        foundations: old.foundations.clone(),
        ..Inventory::default()
    };

    // Namespaces first: those of the spec, and those that are in manifests.
    let mut first = String::new();
    let spec = world.cluster.namespaces.iter().map(|n| (n.name.clone(), Some(n)));
    let namespaces = wanted.documents.iter().map(|p| &p.document).filter(|d| is_namespace(d));
    let inner = namespaces.flat_map(|d| &d.objects);
    for (name, own) in spec.chain(inner.map(|o| (o.name.clone(), None))) {
        if new.namespaces.iter().any(|n| n.name == name) {
            continue;
        }
        let made = match old.namespaces.iter().find(|n| n.name == name) {
            Some(known) => known.made,
            None => !again(ctx, ANSWERS, || has_namespace(world, &name))?,
        };
        if let Some(own) = own {
            let labels: BTreeMap<&str, &str> = own.labels.iter().filter_map(|l| l.split_once('=')).collect();
            let object = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}});
            first.push_str(&stream([object.to_string()]));
        }
        new.namespaces.push(Owned { name, made });
    }

    // Then the definitions of kinds, and when the cluster knows these, the rest.
    let early = |p: &Piece| is_namespace(&p.document) || is_definition(&p.document);
    let definitions: Vec<String> = wanted
        .documents
        .iter()
        .flat_map(|p| &p.document.objects)
        .filter(|o| o.kind == "CustomResourceDefinition")
        .map(|o| o.name.clone())
        .collect();
    let mut kinds = Kinds { world, known: BTreeMap::new() };
    // Objects of the pieces so far, with their places; those of later ones as far as their kinds are known by now.
    let place = |kinds: &mut Kinds<'_>, new: &mut Inventory, group: usize| -> Result<(), StepError> {
        new.objects.clear();
        let mut unknown = Vec::new();
        for piece in &wanted.documents {
            let objects = piece.document.objects.iter();
            for object in objects.filter(|o| !(o.kind == "Namespace" && o.api_version == "v1")) {
                let found = again(ctx, ANSWERS, || {
                    kinds.item(object, piece.namespace.as_deref(), piece.document.fleeting)
                })?;
                match found {
                    Some(item) => new.objects.push(Item { foundation: piece.foundation, ..item }),
                    None if piece.group <= group => unknown.push(object.clone()),
                    // What is waited for before may bring its kind.
                    None => {}
                }
            }
        }
        known(&unknown)
    };
    if definitions.is_empty() {
        place(&mut kinds, &mut new, 0)?;
    } else {
        // Theirs are known when they are.
        let _ = place(&mut kinds, &mut new, 0);
    }
    let note = |new: &Inventory| fed(&applying(None), &new.manifest());
    let mut begun = false;
    let early_pieces: Vec<_> = wanted.documents.iter().filter(|p| early(p)).collect();
    let mut script = format!("set -e\n{}", note(&new.with(old)));
    if !first.is_empty() {
        script.push_str(&fed(&applying(None), &first));
    }
    script.push_str(&texts(&early_pieces));
    if !definitions.is_empty() {
        ctx.control.says("applying definitions");
        apply(ctx, "applying the definitions", &script, &wanted.secrets)?;
        begun = true;
        established(ctx, &definitions)?;
        place(&mut kinds, &mut new, 0)?;
        script = format!("set -e\n{}", note(&new.with(old)));
    }
    let groups = wanted.documents.last().map_or(1, |p| p.group + 1);
    for group in 0..groups {
        if group > 0 {
            place(&mut kinds, &mut new, group)?;
            script = format!("set -e\n{}", note(&new.with(old)));
        }
        let rest: Vec<_> = wanted.documents.iter().filter(|p| p.group == group && !early(p)).collect();
        if rest.is_empty() && begun {
            continue;
        }
        let count = rest.iter().map(|p| p.document.objects.len()).sum::<usize>();
        ctx.control.says(match count {
            0 => "applying namespaces".to_owned(),
            n => format!("applying {n} objects"),
        });
        script.push_str(&texts(&rest));
        apply(ctx, "applying the manifests", &script, &wanted.secrets)?;
        begun = true;
        let mut awaited = Vec::new();
        for piece in rest.iter().filter(|p| p.wait) {
            for object in &piece.document.objects {
                let item = || kinds.item(object, piece.namespace.as_deref(), false);
                awaited.extend(again(ctx, ANSWERS, item)?);
            }
        }
        if !awaited.is_empty() {
            rollout::await_all(ctx, &awaited, world.cluster.timeouts.rollout)?;
        }
    }
    then(&new.objects)?;
    if let Some(digest) = apps::foundations(&world.cluster) {
        new.foundations = digest;
    }
    let count = |n: usize, what: &str| format!("{n} {what}{}", if n == 1 { "" } else { "s" });
    if part == Part::Foundations {
        let all = Inventory { foundations: new.foundations.clone(), ..new.with(old) };
        kubectl::apply(ctx.world, "noting what was applied", &note(&all), &wanted.secrets, &mut |line| {
            ctx.control.log(line)
        })?;
        again(ctx, ANSWERS, || apps_now(world))?;
        return Ok(Some(count(new.objects.len(), "object")));
    }

    // At last, what left the spec, and the note that all is done.
    if apps::foundations(&world.cluster).is_none() {
        new.foundations = String::new();
    }
    let gone = leaving(ctx, &mut kinds, old, &new)?;
    let mut script = String::from("set -e\n");
    if !gone.is_empty() {
        ctx.control.says(format!("removing {} objects", gone.len()));
        let list = json!({"apiVersion": "v1", "kind": "List", "items": gone.iter().map(Item::reference).collect::<Vec<_>>()});
        script.push_str(&fed("k3s kubectl delete --ignore-not-found --wait=false -f -", &list.to_string()));
    }
    script.push_str(&match none_wanted(&world.cluster) {
        true => format!("k3s kubectl -n kube-system delete --ignore-not-found configmap {}\n", apps::NAME),
        false => note(&new),
    });
    kubectl::apply(ctx.world, "noting what was applied", &script, &wanted.secrets, &mut |line| {
        ctx.control.log(line)
    })?;
    // What was seen before no longer holds.
    again(ctx, ANSWERS, || apps_now(world))?;
    let mut said = vec![count(new.objects.len(), "object")];
    if !new.namespaces.is_empty() {
        said.push(count(new.namespaces.len(), "namespace"));
    }
    if !gone.is_empty() {
        said.push(format!("{} removed", gone.len()));
    }
    Ok(Some(said.join(", ")))
}

/// Commands that apply documents in their order, those of one namespace together.
fn texts(pieces: &[&Piece]) -> String {
    let mut out = String::new();
    for run in pieces.chunk_by(|a, b| a.namespace == b.namespace) {
        let all = stream(run.iter().map(|p| &p.document.text));
        out.push_str(&fed(&applying(run[0].namespace.as_deref()), &all));
    }
    out
}

fn known(unknown: &[Object]) -> Result<(), StepError> {
    let Some(first) = unknown.first() else { return Ok(()) };
    let cause = format!("the cluster knows no {} of {} ({})", first.kind, first.api_version, first.name);
    Err(StepError::new(cause, "Apply its definition (CRD) as well, or write the version that this k3s has."))
}

/// Waits until the cluster serves new kinds.
fn established(ctx: &Ctx<'_>, names: &[String]) -> Result<(), StepError> {
    // All of them together have that long.
    let mut open = names.iter().peekable();
    let mut why = String::new();
    let served = wait_for(ctx, Patience::of(ESTABLISHED), || {
        while let Some(name) = open.peek() {
            let path =
                format!("/apis/apiextensions.k8s.io/v1/customresourcedefinitions/{}", apps::segment(name));
            let object = ctx.world.ask(|api| api.object(&path, &ctx.world.cancel))?.unwrap_or_default();
            let says = |kind: &str| {
                let all = object["status"]["conditions"].as_array().into_iter().flatten();
                all.into_iter().find(|c| c["type"] == kind).cloned().unwrap_or_default()
            };
            if says("Established")["status"] != "True" {
                why = says("NamesAccepted")["message"].as_str().unwrap_or("no reason is given").to_owned();
                return Ok(Err(format!("waiting for the kind {name}")));
            }
            open.next();
        }
        Ok(Ok(()))
    })?;
    served.map_err(|_| {
        let name = open.peek().map_or("", |name| name.as_str());
        let cause = format!("the kind {name} was not established within {}: {why}", seconds(ESTABLISHED));
        StepError::new(cause, "").kind(FailureKind::bound(ESTABLISHED)).transient()
    })
}

/// What is to be deleted of what was applied before: never what holds others' objects, unless the
/// user agreed to it.
fn leaving(
    ctx: &Ctx<'_>,
    kinds: &mut Kinds<'_>,
    old: &Inventory,
    new: &Inventory,
) -> Result<Vec<Item>, StepError> {
    let world = ctx.world;
    let mut gone = Vec::new();
    for item in old.leaving(new) {
        if !again(ctx, ANSWERS, || kinds.serves(&item))? {
            // Its kind was removed, by a newer k3s or by hand, and its objects with it: kubectl would fail.
            ctx.control.log(&format!("{item} is gone: the cluster knows no {} any more", item.api_version));
            continue;
        }
        if item.kind == "CustomResourceDefinition" {
            let path = item.path();
            let object = world.ask(|api| api.object(&path, &world.cancel));
            let object = object.map_err(|error| about(&item.to_string(), error))?.unwrap_or_default();
            let spec = &object["spec"];
            let version = spec["versions"].as_array().into_iter().flatten().find(|v| v["served"] == true);
            if let (Some(group), Some(version), Some(plural)) = (
                spec["group"].as_str(),
                version.and_then(|v| v["name"].as_str()),
                spec["names"]["plural"].as_str(),
            ) {
                let list = format!("/apis/{group}/{version}/{plural}");
                let all = world.ask(|api| api.names(&list, &world.cancel))?;
                let ours = |o: &&Value| {
                    let name = o["metadata"]["name"].as_str();
                    old.objects.iter().any(|i| i.plural == plural && Some(i.name.as_str()) == name)
                };
                let others = all.iter().filter(|o| !ours(o)).count();
                if others > 0 {
                    ctx.control.warn(format!(
                        "{item} left the spec and stays: {others} objects of its kind are not p1's, and would go with it."
                    ));
                    continue;
                }
            }
        }
        gone.push(item);
    }
    for owned in old.namespaces.iter().filter(|o| !new.namespaces.iter().any(|n| n.name == o.name)) {
        if !owned.made {
            continue;
        }
        let others = foreign(world, &owned.name, old)?;
        if !others.is_empty() && !world.seen().request.agreed.contains(&owned.name) {
            ctx.control.warn(format!(
                "The namespace {} left the spec and stays: p1 did not apply {}. `p1 kubectl delete namespace {}` \
                 deletes all of it.",
                owned.name,
                and_more(others[0].clone(), others.len()),
                owned.name
            ));
            continue;
        }
        gone.push(Item {
            api_version: "v1".into(),
            kind: "Namespace".into(),
            plural: "namespaces".into(),
            name: owned.name.clone(),
            ..Item::default()
        });
    }
    Ok(gone)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_reach_kubectl_whole_and_by_namespace() {
        let documents = |text: &str| crate::spec::manifest::documents(text).0;
        let piece = |namespace: Option<&str>, document| Piece {
            namespace: namespace.map(str::to_owned),
            document,
            foundation: false,
            wait: false,
            group: 0,
        };
        let all: Vec<Piece> = documents(
            "apiVersion: v1\nkind: A\nmetadata: {name: a}\nx: '$(touch /nowhere) `id`'\n---\napiVersion: v1\nkind: B\nmetadata: {name: b}\n",
        )
        .into_iter()
        .map(|d| piece(None, d))
        .chain(documents("apiVersion: v1\nkind: C\nmetadata: {name: c}\n").into_iter().map(|d| piece(Some("web"), d)))
        .collect();
        let script = texts(&all.iter().collect::<Vec<_>>());
        // With a k3s that shows what it gets.
        let script = format!("k3s() {{ echo \"$@\"; cat; }}\n{script}");
        let cmd = crate::os::process::Cmd::new("sh").stdin(script.as_str());
        let done = process::run(&cmd, Duration::from_secs(10), &crate::os::Cancel::new()).unwrap();
        assert_eq!(
            done.stdout,
            "kubectl apply --server-side --force-conflicts --field-manager=p1 -f -\n---\napiVersion: v1\nkind: A\n\
             metadata: {name: a}\nx: '$(touch /nowhere) `id`'\n---\napiVersion: v1\nkind: B\nmetadata: {name: b}\n\
             kubectl apply --server-side --force-conflicts --field-manager=p1 -n web -f -\n---\napiVersion: v1\nkind: C\n\
             metadata: {name: c}\n"
        );
    }
}
