//! What was said last, so that of one change that shows more than once it is said once.

use std::time::{Duration, Instant};

/// In the log, of one thing that changes.
pub(crate) struct Said<T> {
    last: Option<(T, Instant)>,
    /// For how long the same is no news.
    lasts: Duration,
}

impl<T: PartialEq> Said<T> {
    pub(crate) fn new(lasts: Duration) -> Self {
        Self { last: None, lasts }
    }

    /// Whether that was not said just now. It is then to be.
    pub(crate) fn is_news(&mut self, what: T) -> bool {
        self.is_news_at(what, Instant::now())
    }

    fn is_news_at(&mut self, what: T, now: Instant) -> bool {
        let known = self.last.as_ref().is_some_and(|(said, at)| {
            *said == what && now.saturating_duration_since(*at) < self.lasts
        });
        if !known {
            self.last = Some((what, now));
        }
        !known
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_just_said_is_not_said_again() {
        let lasts = Duration::from_secs(1);
        let (mut said, now) = (Said::new(lasts), Instant::now());
        // By a look, and by the signal that comes right behind it.
        assert!(said.is_news_at("names 1 backend", now));
        assert!(!said.is_news_at("names 1 backend", now));
        assert!(said.is_news_at("names 2 backends", now));
        assert!(!said.is_news_at("names 2 backends", now + lasts / 2));
        assert!(said.is_news_at("names 2 backends", now + lasts));
    }
}
