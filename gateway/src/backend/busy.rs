//! What a backend's silence means while it has requests in hand.
//!
//! Some servers do one thing at a time, and say nothing while they do it. Whether this is one of
//! them is learned from probes: who has answered one in the midst of requests has no such excuse.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// What a backend has in hand at one moment.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Work {
    pub(crate) in_flight: usize,
    /// How many requests have ended there so far, in whichever way.
    pub(crate) finished: u64,
}

#[derive(Debug)]
struct Learned {
    /// How many probes it has answered in the midst of requests.
    answers: u32,
    /// How many it takes to believe that it always does.
    needed: u32,
    /// When it was taken for hung, on the backend's clock.
    accused: Option<Duration>,
    /// How many probes more are worth it to find out soon.
    tries: u32,
}

/// One that works at one thing at a time lets none of them tell anything.
const TRIES: u32 = 8;

#[derive(Debug)]
pub(crate) struct Busy(Mutex<Learned>);

impl Default for Busy {
    fn default() -> Self {
        Self(Mutex::new(Learned {
            answers: 0,
            needed: 1,
            accused: None,
            tries: TRIES,
        }))
    }
}

impl Busy {
    /// It has answered a probe, having had this in hand before and after; and a piece of a request's
    /// answer at that time, last.
    pub(crate) fn answered(&self, before: Work, after: Work, last_piece: Duration) {
        let mut learned = self.learned();
        if learned.accused.take().is_some_and(|at| last_piece > at) {
            // It was at work all along: to be believed otherwise, it takes more from now on.
            learned.needed = learned.needed.saturating_mul(2);
            learned.answers = 0;
        }
        // Some that were there before have not ended since: the probe did not wait for its turn.
        let ended = after.finished.saturating_sub(before.finished);
        if before.in_flight as u64 > ended {
            learned.answers = learned.answers.saturating_add(1);
        }
    }

    /// Whether silence is failure, though it has requests in hand.
    pub(crate) fn has_no_excuse(&self) -> bool {
        let learned = self.learned();
        learned.answers >= learned.needed
    }

    /// Whether a probe more, while it has requests in hand, may tell what is not known yet.
    pub(crate) fn is_worth_a_try(&self) -> bool {
        let mut learned = self.learned();
        let worth = learned.answers < learned.needed && learned.tries > 0;
        learned.tries -= u32::from(worth);
        worth
    }

    /// It is taken for hung.
    pub(crate) fn accuse(&self, now: Duration) {
        self.learned().accused.get_or_insert(now);
    }

    fn learned(&self) -> MutexGuard<'_, Learned> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn work(in_flight: usize, finished: u64) -> Work {
        Work {
            in_flight,
            finished,
        }
    }

    const NEVER: Duration = Duration::ZERO;

    #[test]
    fn a_probe_that_waited_for_its_turn_shows_nothing() {
        let busy = Busy::default();
        busy.answered(work(0, 0), work(1, 0), NEVER);
        busy.answered(work(3, 10), work(1, 13), NEVER);
        assert!(!busy.has_no_excuse());
        busy.answered(work(3, 13), work(4, 15), NEVER);
        assert!(busy.has_no_excuse());
    }

    #[test]
    fn who_was_accused_wrongly_is_believed_for_longer() {
        let busy = Busy::default();
        let at = Duration::from_secs;
        busy.answered(work(1, 0), work(1, 0), NEVER);
        busy.accuse(at(10));
        busy.answered(work(0, 1), work(0, 1), at(9));
        assert!(busy.has_no_excuse(), "nothing came after it");
        busy.accuse(at(20));
        busy.answered(work(0, 2), work(0, 2), at(21));
        assert!(!busy.has_no_excuse());
        busy.answered(work(1, 2), work(1, 2), at(21));
        assert!(!busy.has_no_excuse());
        busy.answered(work(1, 2), work(1, 2), at(21));
        assert!(busy.has_no_excuse());
    }
}
