//! The one way in which a step waits for what can only be seen by looking again.

use std::time::{Duration, Instant};

use super::Ctx;
use crate::engine::Trouble;
use crate::os::Cancel;
use crate::os::cancel::Level;

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
/// answer when the bound has passed.
pub fn wait_for<T>(
    ctx: &Ctx<'_>,
    patience: Patience,
    look: impl FnMut() -> Result<Look<T>, Trouble>,
) -> Result<Look<T>, Trouble> {
    let say = |why: &str| {
        ctx.control.log(why);
        ctx.control.says(why.to_owned());
    };
    looking(ctx.control.cancel(), patience, look, say)
}

fn looking<T>(
    cancel: &Cancel,
    patience: Patience,
    mut look: impl FnMut() -> Result<Look<T>, Trouble>,
    say: impl Fn(&str),
) -> Result<Look<T>, Trouble> {
    let start = Instant::now();
    let mut last = String::new();
    loop {
        let why = match look()? {
            Ok(found) => return Ok(Ok(found)),
            Err(why) => why,
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
            return Err(Trouble::interrupted());
        }
    }
}

#[cfg(test)]
mod tests {
    use std::cell::{Cell, RefCell};

    use super::*;

    const SHORT: Patience = Patience {
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
        let answer = looking(&Cancel::new(), SHORT, look, say).unwrap();
        assert_eq!(answer, Err("little".to_owned()));
        assert!(start.elapsed() >= SHORT.bound && start.elapsed() < SHORT.bound + Duration::from_secs(5));
        assert!(looks.get() <= 5, "no look begins after the bound: {looks:?}");
        assert_eq!(*said.borrow(), ["nothing", "little"], "what does not change is said once");
    }

    #[test]
    fn what_is_found_a_trouble_and_the_users_wish_end_it_at_once() {
        let (cancel, long) = (Cancel::new(), Patience::of(Duration::from_secs(600)));
        assert_eq!(looking(&cancel, long, || Ok(Ok(7)), |_| {}).unwrap(), Ok(7));
        let trouble = looking(&cancel, long, || Err::<Look<()>, _>(Trouble::new("no", "")), |_| {});
        assert_eq!(trouble.unwrap_err().failure.cause, "no");
        cancel.raise(Level::Stop);
        let missing = || Ok(Err::<(), _>("it".to_owned()));
        looking(&cancel, long, missing, |_| {}).unwrap_err();
        let brief = Patience { until: Level::Abort, ..SHORT };
        assert_eq!(looking(&cancel, brief, missing, |_| {}).unwrap(), Err("it".to_owned()));
    }
}
