//! `p1 plan`: what `up` would do and why. Touches nothing.

use serde_json::json;

use super::args::Looks;
use super::change;
use super::changes;
use super::context::Context;
use super::error::{CliError, code};
use super::{here, kept, out, print};
use crate::access::Claims;
use crate::event::VerbName;
use crate::observe::{Depth, observe_claimed};
use crate::observed::drift::{Drift, Mend};
use crate::plan::{Check, Plan, Step};
use crate::state::StateDir;
use crate::ui::{Format, Tone};
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
    let mut decision = decide(&world.cluster, &seen, &intent);
    decision.drift = change::told(&world, decision.drift);
    decision.plan = decision.plan.map_texts(&|text| context.shown(&text));
    let changes = changes::of(context, &world, &decision);
    let Decision { plan, drift, refused, .. } = decision;
    here::must_fit(context, &plan)?;
    let due = change::is_due(&plan, &drift);
    if context.ui.format == Format::Json {
        for step in &plan.steps {
            out::object(&json!({"v": 1, "step": step.info, "check": step.check}));
        }
        // A cluster that is to be made differs in everything.
        for drift in drift.iter().filter(|_| world.state.exists()) {
            out::object(&json!({"v": 1, "drift": drift}));
        }
        changes::objects(&changes).for_each(|object| out::object(&object));
    } else {
        print(changes::shown(&changes, &context.ui));
        let paint = context.paint();
        for drift in drift.iter().filter(|d| d.mend == Mend::Note) {
            print(format!("{}\n", paint.tone(Tone::Warn, &format!("! {drift}"))));
        }
        if context.global.verbose > 0 {
            print(format!("\n{}", steps(context, &plan)));
        }
        for note in change::neighbours(&world).into_iter().chain(change::not_replaced(&world)) {
            eprintln!("note: {note}");
        }
        if !due && drift.iter().any(Drift::is_elsewhere) {
            eprintln!("nothing that p1 would do: what is named above configures k3s in addition to the spec");
        } else if !due {
            eprintln!("nothing to do: cluster `{}` is as the spec says", world.cluster.name);
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

/// The plan's steps, a line each: what is due, what is decided during the run, and what is done.
fn steps(context: &Context, plan: &Plan) -> String {
    let width = plan.steps.iter().map(|s| s.info.id.len()).max().unwrap_or(0);
    let line = |step: &Step| {
        let (mark, tone) = match step.check {
            Check::Done(_) => ("=", Tone::Dim),
            Check::Needed(_) => ("+", Tone::Good),
            Check::Unknown(_) => ("?", Tone::Warn),
        };
        let text = format!("{mark} {:width$}  {}: {}", step.info.id, step.info.title, step.check.reason());
        format!("{}\n", context.paint().tone(tone, &text))
    };
    plan.steps.iter().map(line).collect()
}
