//! `p1 plan`: what `up` would do and why. Touches nothing.

use serde_json::json;

use super::args::Looks;
use super::change;
use super::context::Context;
use super::error::{CliError, code};
use super::{here, kept, print};
use crate::access::Claims;
use crate::event::VerbName;
use crate::observe::{Depth, observe_claimed};
use crate::observed::drift::Drift;
use crate::plan::{Check, Step};
use crate::state::StateDir;
use crate::ui::{Format, Tone, count};
use crate::verbs::{self, Decision, Intent, Verb, decide};

/// Shows the plan of an `up` that is to replace these nodes, and to restore nothing that is kept if it is `fresh`; exit
/// code 10 if something would be done.
pub fn plan(context: &Context, args: &Looks, replace: &[String], fresh: bool) -> Result<(), CliError> {
    let cluster = context.spec_with_warnings()?;
    let targets = context.targets(&cluster, &args.nodes.nodes)?;
    let replace = context.targets(&cluster, replace)?;
    let state = StateDir::of(cluster.home(), &cluster.name);
    let kind = context.kind(&cluster, &state)?;
    let whole = targets.is_empty() && replace.is_empty() && !fresh;
    let restored = if whole { kept::to_restore(context, &cluster)? } else { None };
    if let Some(moment) = &restored {
        let when = kept::when(moment);
        eprintln!(
            "note: this cluster is kept as of {when}: `up` restores it, `up --fresh` makes it the long way"
        );
    }
    let world = context.world(cluster, kind);
    let verb = Verb::of(if restored.is_some() { VerbName::Reset } else { VerbName::Up });
    let claims = Claims::look(&world)?;
    if claims.contested().is_some() {
        return Err(verbs::Error::Contested(verbs::contested(&world, &claims, verb.name, &targets)).into());
    }
    let seen = observe_claimed(&world, if args.deep { Depth::Inside } else { verb.depth }, &claims)?;
    let intent = Intent { verb, targets: &targets, replace: &replace };
    let Decision { plan, drift, refused, .. } = decide(&world.cluster, &seen, &intent);
    let drift = change::told(&world, drift);
    let plan = plan.map_texts(&|text| context.shown(&text));
    here::must_fit(context, &plan)?;
    let due = change::is_due(&plan, &drift);
    if context.ui.format == Format::Json {
        for step in &plan.steps {
            print(format!("{}\n", json!({"v": 1, "step": step.info, "check": step.check})));
        }
        // A cluster that is to be made differs in everything.
        for drift in drift.iter().filter(|_| world.state.exists()) {
            print(format!("{}\n", json!({"v": 1, "drift": drift})));
        }
    } else {
        let paint = context.paint();
        let told = |s: &&Step| context.global.verbose > 0 || !matches!(s.check, Check::Done(_));
        let width = plan.steps.iter().filter(told).map(|s| s.info.id.len()).max().unwrap_or(0);
        for step in plan.steps.iter().filter(told) {
            let (mark, tone) = match step.check {
                Check::Done(_) => ("=", Tone::Dim),
                Check::Needed(_) => ("+", Tone::Good),
                Check::Unknown(_) => ("?", Tone::Warn),
            };
            let line =
                format!("{mark} {:width$}  {}: {}", step.info.id, step.info.title, step.check.reason());
            print(format!("{}\n", paint.tone(tone, &line)));
        }
        let needed = plan.steps.iter().filter(|s| matches!(s.check, Check::Needed(_))).count();
        let unknown = plan.steps.iter().filter(|s| matches!(s.check, Check::Unknown(_))).count();
        for drift in change::worth_saying(&drift) {
            let (mark, tone) = if drift.destroys() { ("!", Tone::Bad) } else { ("-", Tone::Warn) };
            print(format!("{}\n", paint.tone(tone, &format!("{mark} {drift}"))));
        }
        for note in change::neighbours(&world).into_iter().chain(change::not_replaced(&world)) {
            eprintln!("note: {note}");
        }
        if !due && drift.iter().any(Drift::is_elsewhere) {
            eprintln!("nothing that p1 would do: what is named above configures k3s in addition to the spec");
        } else if !due {
            eprintln!("nothing to do: cluster `{}` is as the spec says", world.cluster.name);
        } else {
            eprintln!("\n{} to do (+), {} decided during the run (?)", count(needed, "step"), unknown);
        }
    }
    if let Some(refused) = refused {
        return Err(refused.into());
    }
    match due {
        false => Ok(()),
        true => Err(CliError::told(code::CHANGES, "there is something to do")
            .hint("`p1 up` does it.")
            .next(["p1 up"])),
    }
}
