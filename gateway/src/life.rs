//! How far a gateway has come, from serving to its end, and how many requests are in flight.
//!
//! Apart, as everything looks at it and nothing else may decide it.

use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::sync::{Notify, watch};

/// Only ever moves on, but for the first step, which can be taken back.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Phase {
    Serving,
    /// No new connections: a successor takes them. Requests on those there are are served.
    Retiring,
    /// The same for good: the port is given up.
    Retired,
    /// No new connections, no new requests.
    Draining,
    /// Nothing is in flight any more: connections end.
    Closing,
    /// What is in flight ends now.
    Cut,
}

pub(crate) struct Life {
    phase: watch::Sender<Phase>,
    in_flight: AtomicUsize,
    /// Told when nothing is in flight.
    idle: Notify,
}

impl Life {
    pub(crate) fn new() -> Self {
        Self {
            phase: watch::Sender::new(Phase::Serving),
            in_flight: AtomicUsize::new(0),
            idle: Notify::new(),
        }
    }

    pub(crate) fn is_serving(&self) -> bool {
        *self.phase.borrow() < Phase::Draining
    }

    /// Takes connections again.
    pub(crate) fn resume(&self) {
        self.phase.send_if_modified(|phase| {
            let moves = *phase == Phase::Retiring;
            if moves {
                *phase = Phase::Serving;
            }
            moves
        });
    }

    pub(crate) fn phases(&self) -> watch::Receiver<Phase> {
        self.phase.subscribe()
    }

    pub(crate) fn advance(&self, to: Phase) {
        self.phase.send_if_modified(|phase| {
            let moves = *phase < to;
            if moves {
                *phase = to;
            }
            moves
        });
    }

    /// Counts a request in. Returns how many there are, itself included.
    pub(crate) fn enter(&self) -> usize {
        self.in_flight.fetch_add(1, Ordering::AcqRel) + 1
    }

    pub(crate) fn leave(&self) {
        if self.in_flight.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.idle.notify_waiters();
        }
    }

    pub(crate) async fn wait_until_idle(&self) {
        loop {
            let mut idle = std::pin::pin!(self.idle.notified());
            // From here on none is missed.
            idle.as_mut().enable();
            if self.in_flight.load(Ordering::Acquire) == 0 {
                return;
            }
            idle.await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_is_no_way_back() {
        let life = Life::new();
        life.advance(Phase::Cut);
        life.advance(Phase::Draining);
        assert_eq!(*life.phases().borrow(), Phase::Cut);
    }

    #[test]
    fn only_a_port_that_is_not_given_up_is_taken_back() {
        let life = Life::new();
        life.advance(Phase::Retiring);
        life.resume();
        assert_eq!(*life.phases().borrow(), Phase::Serving);
        life.advance(Phase::Retired);
        life.resume();
        assert_eq!(*life.phases().borrow(), Phase::Retired);
        assert!(life.is_serving(), "requests are served to the end");
    }
}
