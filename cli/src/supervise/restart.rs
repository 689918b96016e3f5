//! Whether, and when, a server that has failed is started again: a rule over times, apart from the
//! supervision that follows it.

use std::time::Duration;

use tokio::time::Instant;

/// More failures than are allowed within this are no accident.
const WINDOW: Duration = Duration::from_secs(600);
/// The first pause; each next one within the window is twice as long.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(60);

/// The restarts of one server.
#[derive(Debug)]
pub(super) struct Restarts {
    max: u32,
    within_window: Vec<Instant>,
}

/// What is to be done.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Next {
    /// Start it again after this pause; the how manieth restart within the window it is.
    Pause(Duration, usize),
    GiveUp,
}

impl Restarts {
    pub(super) fn new(max: u32) -> Self {
        Self {
            max,
            within_window: Vec::new(),
        }
    }

    /// It has failed now.
    pub(super) fn failed(&mut self, now: Instant) -> Next {
        self.within_window
            .retain(|&restart| now.saturating_duration_since(restart) < WINDOW);
        let before = self.within_window.len();
        if before >= usize::try_from(self.max).unwrap_or(usize::MAX) {
            return Next::GiveUp;
        }
        self.within_window.push(now);
        let doublings = u32::try_from(before).unwrap_or(u32::MAX).min(16);
        Next::Pause(
            (FIRST_PAUSE * (1 << doublings)).min(LONGEST_PAUSE),
            before + 1,
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_until_it_is_given_up_and_begin_anew_later() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let pause = |seconds, number| Next::Pause(Duration::from_secs(seconds), number);
        let mut restarts = Restarts::new(3);
        assert_eq!(restarts.failed(at(0)), pause(1, 1));
        assert_eq!(restarts.failed(at(5)), pause(2, 2));
        assert_eq!(restarts.failed(at(9)), pause(4, 3));
        assert_eq!(restarts.failed(at(599)), Next::GiveUp);
        // The first two are forgotten.
        assert_eq!(restarts.failed(at(606)), pause(2, 2));
        assert_eq!(restarts.failed(at(2000)), pause(1, 1));
        assert_eq!(Restarts::new(0).failed(at(0)), Next::GiveUp);
        let mut many = Restarts::new(100);
        let last = (0..50).map(|_| many.failed(at(0))).last();
        assert_eq!(last, Some(pause(60, 50)));
    }
}
