//! Whether a backend is up: what probes and requests found, and how often in a row it takes to be
//! believed.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use tracing::{info, warn};

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

#[derive(Debug)]
struct Found {
    state: State,
    /// How many times in a row it was found otherwise.
    streak: u32,
    problem: Option<String>,
}

#[derive(Debug)]
pub(crate) struct Condition {
    thresholds: Thresholds,
    /// Says the same as `found`, to those in a hurry.
    up: AtomicBool,
    found: Mutex<Found>,
}

impl Condition {
    pub(crate) fn new(thresholds: Thresholds) -> Self {
        Self {
            thresholds,
            up: AtomicBool::new(false),
            found: Mutex::new(Found {
                state: State::Unknown,
                streak: 0,
                problem: None,
            }),
        }
    }

    pub(crate) fn is_up(&self) -> bool {
        self.up.load(Ordering::Relaxed)
    }

    pub(crate) fn state(&self) -> (State, Option<String>) {
        let found = self.found();
        (found.state, found.problem.clone())
    }

    /// It was found in order.
    pub(crate) fn succeeded(&self, name: &str) {
        let mut found = self.found();
        found.streak = match found.state {
            State::Up => 0,
            State::Unknown => self.thresholds.rise,
            State::Down => found.streak + 1,
        };
        if found.state != State::Up && found.streak >= self.thresholds.rise {
            info!("Backend {} is up", name);
            found.state = State::Up;
            found.streak = 0;
            found.problem = None;
            self.up.store(true, Ordering::Relaxed);
        }
    }

    /// It was found out of order.
    pub(crate) fn failed(&self, name: &str, problem: String) {
        let mut found = self.found();
        found.streak = match found.state {
            State::Down => 0,
            State::Unknown => self.thresholds.fall,
            State::Up => found.streak + 1,
        };
        if found.state != State::Down && found.streak >= self.thresholds.fall {
            warn!("Backend {} is down: {problem}", name);
            found.state = State::Down;
            found.streak = 0;
            self.up.store(false, Ordering::Relaxed);
        }
        found.problem = Some(problem);
    }

    fn found(&self) -> MutexGuard<'_, Found> {
        self.found.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn new() -> Condition {
        Condition::new(Thresholds { rise: 2, fall: 3 })
    }

    fn failed(condition: &Condition, problem: &str) {
        condition.failed("http://b", problem.to_owned());
    }

    #[test]
    fn it_takes_some_times_in_a_row_to_fall_and_to_rise() {
        let backend = new();
        backend.succeeded("http://b");
        for _ in 0..5 {
            failed(&backend, "1");
            failed(&backend, "2");
            assert!(backend.is_up());
            backend.succeeded("http://b");
        }
        for _ in 0..3 {
            failed(&backend, "3");
        }
        assert!(!backend.is_up());
        assert_eq!(backend.state(), (State::Down, Some("3".to_owned())));
        backend.succeeded("http://b");
        failed(&backend, "4");
        backend.succeeded("http://b");
        assert!(!backend.is_up());
        backend.succeeded("http://b");
        assert_eq!(backend.state(), (State::Up, None));
    }

    #[test]
    fn the_first_look_decides() {
        let (good, bad) = (new(), new());
        assert!(!good.is_up());
        good.succeeded("http://b");
        failed(&bad, "refused");
        assert_eq!((good.state().0, bad.state().0), (State::Up, State::Down));
    }
}
