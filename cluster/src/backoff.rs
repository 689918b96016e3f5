//! How long to wait before the next try, and when to speak of it. Apart, as everything that goes
//! on through an outage does both the same way: thousands of servers come back at the same moment,
//! and a minute without etcd is two lines in a log.

use std::fmt::Display;
use std::time::Duration;

use tracing::{info, warn};

const FIRST: Duration = Duration::from_millis(100);

#[derive(Debug)]
pub(crate) struct Backoff {
    next: Duration,
    longest: Duration,
    failing: bool,
}

impl Backoff {
    pub(crate) fn new(longest: Duration) -> Self {
        Self {
            next: FIRST.min(longest),
            longest,
            failing: false,
        }
    }

    /// After a failure: how long to wait, between half of it and all.
    pub(crate) fn failed(&mut self, what: impl Display, error: &dyn Display) -> Duration {
        if !self.failing {
            self.failing = true;
            warn!("{what}: {error}; trying on");
        }
        let wait = self.next.mul_f64(fastrand::f64().mul_add(0.5, 0.5));
        self.next = (self.next * 2).min(self.longest);
        wait
    }

    pub(crate) fn succeeded(&mut self, what: impl Display) {
        if self.failing {
            info!("{what}: etcd answers again");
        }
        *self = Self::new(self.longest);
    }

    pub(crate) fn is_failing(&self) -> bool {
        self.failing
    }
}
