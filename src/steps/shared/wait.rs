//! The one way in which a step waits for what can only be seen by looking again.

use std::time::{Duration, Instant};

use crate::engine::StepError;
use crate::explain::seconds;
use crate::machines::MachineState;
use crate::os::Cancel;
use crate::os::cancel::Level;
use crate::steps::Ctx;

/// What a look found, or what is still missing.
pub type Look<T> = Result<T, String>;

/// How long, how often, and what ends it before.
#[derive(Clone, Copy, Debug)]
pub struct Patience {
    /// The last look begins when this much time has passed; it ends by its own bound.
    pub bound: Duration,
    /// Between two looks.
    pub every: Duration,
    /// The user's wish that ends it.
    pub until: Level,
}

impl Patience {
    /// Two looks a second, until the first Ctrl-C.
    pub const fn of(bound: Duration) -> Self {
        Self { bound, every: Duration::from_millis(500), until: Level::Stop }
    }

    /// The same, until the second Ctrl-C: for what is not left half done.
    pub const fn stubborn(bound: Duration) -> Self {
        Self { until: Level::Abort, ..Self::of(bound) }
    }
}

/// Looks until something is found. What is missing is shown and logged whenever it changes, and is the
/// answer when the bound has passed. A look that fails for what passes by itself, such as an API that
/// does not answer just now, is one that found nothing: it ends no wait that has time left, unless the
/// machine that the step is about no longer runs.
pub fn wait_for<T>(
    ctx: &Ctx<'_>,
    patience: Patience,
    look: impl FnMut() -> Result<Look<T>, StepError>,
) -> Result<Look<T>, StepError> {
    looking(ctx.control.cancel(), patience, look, |why| say(ctx, why), || gone(ctx))
}

/// Does what may fail for what passes by itself, again until it does not or the bound has passed; then the
/// last error is the answer, with how long it was tried.
pub fn again<T>(
    ctx: &Ctx<'_>,
    bound: Duration,
    work: impl FnMut() -> Result<T, StepError>,
) -> Result<T, StepError> {
    let patience = Patience { every: Duration::from_secs(1), ..Patience::of(bound) };
    trying(ctx.control.cancel(), patience, work, |why| say(ctx, why), || gone(ctx))
}

fn say(ctx: &Ctx<'_>, why: &str) {
    ctx.control.log(why);
    ctx.control.says(why.to_owned());
}

fn trying<T>(
    cancel: &Cancel,
    patience: Patience,
    mut work: impl FnMut() -> Result<T, StepError>,
    say: impl Fn(&str),
    gone: impl Fn() -> bool,
) -> Result<T, StepError> {
    let start = Instant::now();
    let mut last = None;
    let look = || work().map(Ok).inspect_err(|error| last = Some(error.clone()));
    let done = looking(cancel, patience, look, say, gone)?;
    done.map_err(|why| {
        let mut error = last.unwrap_or_else(|| StepError::new(why, ""));
        let cause = &mut error.failure.cause;
        *cause = format!("{cause} (asked again for {})", seconds(start.elapsed()));
        error
    })
}

/// The machine that the step is about does not run: waiting for it helps nobody.
pub fn gone(ctx: &Ctx<'_>) -> bool {
    let Some(node) = ctx.needs else { return false };
    let machine = ctx.world.look_at_machine(node);
    machine.is_ok_and(|machine| machine.is_none_or(|m| m.state != MachineState::Running))
}

fn looking<T>(
    cancel: &Cancel,
    patience: Patience,
    mut look: impl FnMut() -> Result<Look<T>, StepError>,
    say: impl Fn(&str),
    gone: impl Fn() -> bool,
) -> Result<Look<T>, StepError> {
    let start = Instant::now();
    let mut last = String::new();
    loop {
        let why = match look() {
            Ok(Ok(found)) => return Ok(Ok(found)),
            Ok(Err(why)) => why,
            Err(error) if error.may_pass() && !gone() => error.failure.cause,
            Err(error) => return Err(error),
        };
        if why != last {
            say(&why);
            last = why;
        }
        let left = patience.bound.saturating_sub(start.elapsed());
        if left.is_zero() {
            return Ok(Err(last));
        }
        if cancel.sleep(patience.every.min(left), patience.until) {
            return Err(StepError::interrupted());
        }
    }
}

#[cfg(test)]
mod tests {
    use std::cell::{Cell, RefCell};

    use super::*;

    const BRIEF: Patience = Patience {
        bound: Duration::from_millis(80),
        every: Duration::from_millis(20),
        ..Patience::of(Duration::ZERO)
    };

    #[test]
    fn a_look_that_finds_nothing_is_repeated_up_to_the_bound_and_its_last_word_is_the_answer() {
        let (looks, said, start) = (Cell::new(0), RefCell::new(Vec::new()), Instant::now());
        let look = || {
            looks.set(looks.get() + 1);
            Ok(Err::<(), _>(if looks.get() == 1 { "nothing" } else { "little" }.to_owned()))
        };
        let say = |why: &str| said.borrow_mut().push(why.to_owned());
        let answer = looking(&Cancel::new(), BRIEF, look, say, || false).unwrap();
        assert_eq!(answer, Err("little".to_owned()));
        assert!(start.elapsed() >= BRIEF.bound && start.elapsed() < BRIEF.bound + Duration::from_secs(5));
        assert!(looks.get() <= 5, "no look begins after the bound: {looks:?}");
        assert_eq!(*said.borrow(), ["nothing", "little"], "what does not change is said once");
    }

    #[test]
    fn a_look_that_fails_for_what_passes_is_repeated_and_the_last_state_is_named() {
        let (cancel, asked, long) =
            (Cancel::new(), Cell::new(0), Patience { bound: Duration::from_secs(60), ..BRIEF });
        let passing = |after: u32| {
            asked.set(asked.get() + 1);
            if asked.get() > after {
                Ok(asked.get())
            } else {
                Err(StepError::new("leader changed", "h").transient())
            }
        };
        let look = |patience, after| looking(&cancel, patience, || passing(after).map(Ok), |_| {}, || false);
        assert_eq!(look(long, 2).unwrap(), Ok(3));
        assert_eq!(look(BRIEF, u32::MAX).unwrap(), Err("leader changed".to_owned()));
        asked.set(0);
        let tried = |patience, after| trying(&cancel, patience, || passing(after), |_| {}, || false);
        assert_eq!(tried(long, 1).unwrap(), 2);
        let error = tried(BRIEF, u32::MAX).unwrap_err();
        assert!(error.failure.cause.starts_with("leader changed (asked again for "), "{error:?}");
        assert!(error.may_pass() && error.failure.hint.as_deref() == Some("h"));
        // What lasts ends it at once, and so does a machine that is gone.
        let lasting = || Err::<(), _>(StepError::new("forbidden", ""));
        assert_eq!(trying(&cancel, long, lasting, |_| {}, || false).unwrap_err().failure.cause, "forbidden");
        let lost = trying(&cancel, long, || passing(u32::MAX), |_| {}, || true).unwrap_err();
        assert_eq!(lost.failure.cause, "leader changed");
    }

    #[test]
    fn what_is_found_a_trouble_and_the_users_wish_end_it_at_once() {
        let (cancel, long) = (Cancel::new(), Patience::of(Duration::from_secs(600)));
        assert_eq!(looking(&cancel, long, || Ok(Ok(7)), |_| {}, || false).unwrap(), Ok(7));
        let error = looking(&cancel, long, || Err::<Look<()>, _>(StepError::new("no", "")), |_| {}, || false);
        assert_eq!(error.unwrap_err().failure.cause, "no");
        cancel.raise(Level::Stop);
        let missing = || Ok(Err::<(), _>("it".to_owned()));
        looking(&cancel, long, missing, |_| {}, || false).unwrap_err();
        let brief = Patience { until: Level::Abort, ..BRIEF };
        assert_eq!(looking(&cancel, brief, missing, |_| {}, || false).unwrap(), Err("it".to_owned()));
    }
}
