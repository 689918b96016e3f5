//! The arithmetic of an exclusive server's time: what has to fit into one lease, checked before
//! anything starts. Apart, as the options of a program are refused by the same rule.

use std::time::Duration;

use crate::clock::BootTime;
use crate::error::ClusterError;

/// What etcd grants at least is one second, or two by default; what anyone wants to wait for a
/// take-over at most.
const TTL: std::ops::RangeInclusive<Duration> = Duration::from_secs(1)..=Duration::from_secs(300);

/// How long an exclusive server may go on without a sign from etcd, and how that time is spent.
///
/// ```text
/// renewal sent                                                        others may start
/// |-- renew --|-- request --| . . . |-- drain --|-- kill --|-- margin --|
/// 0                                 drain_at    kill_at    deadline    ttl
/// ```
///
/// The sum of the five must be less than the TTL, so that one failed request does no harm.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Timing {
    ttl: Duration,
    renew: Duration,
    request: Duration,
    drain: Duration,
    kill: Duration,
    margin: Duration,
}

impl Timing {
    /// A lease of `ttl`, and a server that gets `drain` to end in good order. The rest follows:
    /// renewals at a third of the TTL, a quarter of it (at most 3 s) for a request, a twelfth (at
    /// most 1 s) each for the kill and for clocks that differ.
    ///
    /// # Errors
    ///
    /// [`ClusterError::InvalidTiming`], with the arithmetic, if that doesn't fit, or for a TTL
    /// below 1 s or above 300 s.
    pub fn new(ttl: Duration, drain: Duration) -> Result<Self, ClusterError> {
        if !TTL.contains(&ttl) {
            return Err(ClusterError::InvalidTiming {
                reason: format!(
                    "a TTL of {} s is not between {} s and {} s",
                    ttl.as_secs_f64(),
                    TTL.start().as_secs(),
                    TTL.end().as_secs()
                ),
            });
        }
        let timing = Self {
            ttl,
            renew: ttl / 3,
            request: (ttl / 4).min(Duration::from_secs(3)),
            drain,
            kill: (ttl / 12).min(Duration::from_secs(1)),
            margin: (ttl / 12).min(Duration::from_secs(1)),
        };
        if timing.needed() >= ttl {
            return Err(ClusterError::InvalidTiming {
                reason: timing.arithmetic(),
            });
        }
        Ok(timing)
    }

    /// How long the lease lasts after its last renewal.
    pub fn ttl(&self) -> Duration {
        self.ttl
    }

    /// How long the server may take to end in good order.
    pub fn drain(&self) -> Duration {
        self.drain
    }

    /// How often the lease is renewed.
    pub fn renew(&self) -> Duration {
        self.renew
    }

    /// How long one request may take before another member of etcd is asked.
    pub fn request(&self) -> Duration {
        self.request
    }

    /// How long a killed server may take to be gone.
    pub fn kill(&self) -> Duration {
        self.kill
    }

    /// The longest drain that fits into this TTL.
    fn longest_drain(&self) -> Duration {
        let rest = self.needed() - self.drain;
        self.ttl.saturating_sub(rest + Duration::from_millis(1))
    }

    fn needed(&self) -> Duration {
        self.renew + self.request + self.drain + self.kill + self.margin
    }

    fn arithmetic(&self) -> String {
        let s = |time: Duration| (time.as_secs_f64() * 100.0).round() / 100.0;
        format!(
            "{} s (renewal) + {} s (request) + {} s (drain) + {} s (kill) + {} s (margin) = {} s, \
             which is not less than the TTL of {} s: lower the drain to {} s, or raise the TTL",
            s(self.renew),
            s(self.request),
            s(self.drain),
            s(self.kill),
            s(self.margin),
            s(self.needed()),
            s(self.ttl),
            (self.longest_drain().as_secs_f64() * 10.0).floor() / 10.0,
        )
    }

    /// When the server has to be dead, if the last renewal that succeeded was sent at `sent`.
    pub(crate) fn deadline(&self, sent: BootTime) -> BootTime {
        sent + self.ttl - self.margin
    }

    /// When it is killed, to be dead by `deadline`.
    pub(crate) fn kill_at(&self, deadline: BootTime) -> BootTime {
        deadline - self.kill
    }

    /// When it is asked to end, to have all its drain.
    pub(crate) fn drain_at(&self, deadline: BootTime) -> BootTime {
        deadline - self.kill - self.drain
    }

    /// What to ask etcd for: whole seconds.
    pub(crate) fn lease_seconds(&self) -> u64 {
        self.ttl.as_secs() + u64::from(self.ttl.subsec_nanos() > 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn secs(s: f64) -> Duration {
        Duration::from_secs_f64(s)
    }

    #[test]
    fn the_usual_ones_fit() {
        for (ttl, drain) in [(15.0, 4.0), (3.0, 0.5), (1.0, 0.2), (300.0, 180.0)] {
            Timing::new(secs(ttl), secs(drain)).unwrap();
        }
    }

    #[test]
    fn what_does_not_fit_is_refused_with_the_arithmetic_and_a_drain_that_fits() {
        let error = Timing::new(secs(3.0), secs(4.0)).unwrap_err().to_string();
        let sum = "1 s (renewal) + 0.75 s (request) + 4 s (drain) + 0.25 s (kill) + 0.25 s (margin) \
                   = 6.25 s, which is not less than the TTL of 3 s: lower the drain to 0.7 s";
        assert!(error.contains(sum), "{error}");
        Timing::new(secs(3.0), secs(0.7)).unwrap();
        assert!(
            Timing::new(secs(3.0), secs(0.75)).is_err(),
            "the bound is strict"
        );
    }

    #[test]
    fn a_ttl_has_bounds() {
        for ttl in [0.0, 0.999, 300.5, 1e9] {
            assert!(Timing::new(secs(ttl), secs(0.1)).is_err(), "{ttl}");
        }
    }

    proptest! {
        #[test]
        fn a_request_may_fail_before_the_server_has_to_be_asked_to_end(
            ttl in 1.0..300.0f64, drain in 0.0..300.0f64,
        ) {
            if let Ok(timing) = Timing::new(secs(ttl), secs(drain)) {
                let sent = BootTime::from_nanos(1_000_000_000);
                let deadline = timing.deadline(sent);
                prop_assert!(deadline < sent + timing.ttl());
                prop_assert!(timing.kill_at(deadline) < deadline);
                prop_assert!(timing.drain_at(deadline) > sent + timing.renew() + timing.request());
            }
        }
    }
}
