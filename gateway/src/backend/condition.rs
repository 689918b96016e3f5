//! Whether a backend is up: what probes and requests found, and how often in a row it takes to be
//! believed.

use std::sync::{Mutex, MutexGuard, PoisonError};

use tracing::{info, warn};

use super::bars::Bars;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum State {
    /// Not looked at yet.
    Unknown,
    Up,
    Down,
}

/// How many times in a row it takes to be believed.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Thresholds {
    pub(crate) rise: u32,
    pub(crate) fall: u32,
}

/// What is wrong with a backend.
#[derive(Debug)]
pub(crate) struct Trouble {
    pub(crate) problem: String,
    /// It is as with one that does not run, or has yet to get ready: asking costs nothing, and the
    /// first good answer is to be believed.
    pub(crate) starting: bool,
    /// How many failures it counts as.
    pub(crate) weight: u32,
}

impl Trouble {
    pub(crate) fn new(problem: impl Into<String>) -> Self {
        Self {
            problem: problem.into(),
            starting: false,
            weight: 1,
        }
    }

    /// No connection could be made. A name that leads nowhere may be that of one to come.
    pub(crate) fn connecting(e: &std::io::Error) -> Self {
        use std::io::ErrorKind::{ConnectionRefused, NotFound};
        Self {
            starting: matches!(e.kind(), ConnectionRefused | NotFound),
            ..Self::new(e.to_string())
        }
    }
}

#[derive(Debug)]
struct Found {
    state: State,
    /// How many times in a row it was found otherwise.
    streak: u32,
    problem: Option<String>,
    /// Since it was last in order, it has failed in a way that none does that only starts.
    failed: bool,
    /// What was found last is as with one that starts.
    starting: bool,
}

#[derive(Debug)]
pub(crate) struct Condition {
    thresholds: Thresholds,
    found: Mutex<Found>,
}

impl Condition {
    pub(crate) fn new(thresholds: Thresholds) -> Self {
        Self {
            thresholds,
            found: Mutex::new(Found {
                state: State::Unknown,
                streak: 0,
                problem: None,
                failed: false,
                starting: false,
            }),
        }
    }

    pub(crate) fn state(&self) -> (State, Option<String>) {
        let found = self.found();
        (found.state, found.problem.clone())
    }

    /// Whether it is down as one that may start at any moment is.
    pub(crate) fn may_start_soon(&self) -> bool {
        let found = self.found();
        found.state == State::Down && found.starting
    }

    /// It was found in order. Returns whether that brought it up.
    pub(crate) fn succeeded(&self, name: &str, bars: &Bars) -> bool {
        let mut found = self.found();
        let needed = if found.failed {
            self.thresholds.rise
        } else {
            1
        };
        if found.state == State::Up {
            (found.streak, found.failed) = (0, false);
            return false;
        }
        found.streak = if found.state == State::Down {
            found.streak + 1
        } else {
            needed
        };
        if found.streak < needed {
            return false;
        }
        info!("Backend {name} is up");
        *found = Found {
            state: State::Up,
            streak: 0,
            problem: None,
            failed: false,
            starting: false,
        };
        bars.set_down(false);
        true
    }

    /// It was found out of order. Returns whether that brought it down.
    pub(crate) fn failed(&self, name: &str, trouble: Trouble, bars: &Bars) -> bool {
        let mut found = self.found();
        found.streak = match found.state {
            State::Down => 0,
            State::Unknown => self.thresholds.fall,
            State::Up => found.streak.saturating_add(trouble.weight),
        };
        found.failed |= !trouble.starting;
        found.starting = trouble.starting;
        let falls = found.state != State::Down && found.streak >= self.thresholds.fall;
        if falls {
            warn!("Backend {name} is down: {}", trouble.problem);
            found.state = State::Down;
            found.streak = 0;
            bars.set_down(true);
        }
        found.problem = Some(trouble.problem);
        falls
    }

    fn found(&self) -> MutexGuard<'_, Found> {
        self.found.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Tested(Condition, Bars);

    impl Tested {
        fn new() -> Self {
            let thresholds = Thresholds { rise: 2, fall: 3 };
            Self(Condition::new(thresholds), Bars::default())
        }

        fn succeeds(&self) {
            self.0.succeeded("http://b", &self.1);
        }

        fn fails(&self, problem: &str) {
            self.0.failed("http://b", Trouble::new(problem), &self.1);
        }

        fn refuses(&self) {
            let refused = std::io::ErrorKind::ConnectionRefused.into();
            self.0
                .failed("http://b", Trouble::connecting(&refused), &self.1);
        }

        fn is_up(&self) -> bool {
            !self.1.is_down()
        }
    }

    #[test]
    fn it_takes_some_times_in_a_row_to_fall_and_to_rise() {
        let backend = Tested::new();
        backend.succeeds();
        for _ in 0..5 {
            backend.fails("1");
            backend.fails("2");
            assert!(backend.is_up());
            backend.succeeds();
        }
        for _ in 0..3 {
            backend.fails("3");
        }
        assert!(!backend.is_up());
        assert_eq!(backend.0.state(), (State::Down, Some("3".to_owned())));
        backend.succeeds();
        backend.fails("4");
        backend.succeeds();
        assert!(!backend.is_up());
        backend.succeeds();
        assert_eq!(backend.0.state(), (State::Up, None));
    }

    #[test]
    fn the_first_look_decides() {
        let (good, bad) = (Tested::new(), Tested::new());
        assert!(!good.is_up());
        good.succeeds();
        bad.fails("broken");
        assert_eq!(
            (good.0.state().0, bad.0.state().0),
            (State::Up, State::Down)
        );
    }

    #[test]
    fn one_that_was_only_not_there_is_believed_at_once() {
        let backend = Tested::new();
        backend.refuses();
        assert!(backend.0.may_start_soon());
        backend.succeeds();
        assert!(backend.is_up(), "it has started");
        for _ in 0..3 {
            backend.refuses();
        }
        assert!(!backend.is_up());
        backend.succeeds();
        assert!(backend.is_up(), "it was started again");
        backend.fails("reset");
        for _ in 0..2 {
            backend.refuses();
        }
        backend.succeeds();
        assert!(!backend.is_up(), "it failed first");
        backend.succeeds();
        assert!(backend.is_up());
    }

    #[test]
    fn what_weighs_more_brings_it_down_sooner() {
        let backend = Tested::new();
        backend.succeeds();
        let silent = Trouble {
            weight: 3,
            ..Trouble::new("silent")
        };
        assert!(backend.0.failed("http://b", silent, &backend.1));
        assert!(!backend.is_up());
    }
}
