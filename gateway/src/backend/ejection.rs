//! What requests found out about a backend: how often it failed them, and how long it is left out
//! for that.
//!
//! Apart from [`Condition`](super::Condition), which knows whether the process answers probes: one
//! that does can fail every request. A good probe makes a trial due, and a request decides it.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;
use tracing::{info, warn};

use super::bars::Bars;
use crate::outlier::Record;

/// The longest time that a backend is left out at once.
const LONGEST: Duration = Duration::from_secs(300);

/// Who served for as long as this, and for as long as it was left out, begins anew.
const FORGIVEN: Duration = Duration::from_secs(60);

/// All failed.
const WHOLE: u32 = 1 << 16;

/// Of the share of failures, what one outcome makes up.
const ONE_IN: u32 = 16;

pub(crate) struct Ejection {
    /// How long it is left out at first.
    first: Duration,
    /// Failures in a row.
    streak: AtomicU32,
    good: AtomicU64,
    /// Of its requests lately, out of [`WHOLE`].
    failures: AtomicU32,
    /// Counts the ejections, so that what began before one says nothing after it.
    era: AtomicU32,
    history: Mutex<History>,
}

#[derive(Default)]
struct History {
    /// How often it was ejected, one soon after the other.
    times: u32,
    /// Until when it is, and why.
    ejected: Option<(Instant, String)>,
    /// When the trial began that is under way.
    trial: Option<Instant>,
    returned: Option<(Instant, Duration)>,
    /// Good answers of the others when the streak began.
    others_good: u64,
}

impl Ejection {
    pub(crate) fn new(first: Duration) -> Self {
        Self {
            first,
            streak: AtomicU32::new(0),
            good: AtomicU64::new(0),
            failures: AtomicU32::new(0),
            era: AtomicU32::new(0),
            history: Mutex::default(),
        }
    }

    pub(crate) fn good_answers(&self) -> u64 {
        self.good.load(Ordering::Relaxed)
    }

    /// From 0 to 1.
    pub(crate) fn failure_share(&self) -> f64 {
        f64::from(self.failures.load(Ordering::Relaxed)) / f64::from(WHOLE)
    }

    pub(crate) fn era(&self) -> u32 {
        self.era.load(Ordering::Relaxed)
    }

    /// Why it is left out, if it is.
    pub(crate) fn problem(&self) -> Option<String> {
        let history = self.history();
        history.ejected.as_ref().map(|(_, why)| why.clone())
    }

    /// A request that was given to it in this era was answered well. Returns whether that brought it
    /// back.
    pub(crate) fn succeeded(&self, name: &str, era: u32, bars: &Bars) -> bool {
        self.good.fetch_add(1, Ordering::Relaxed);
        if self.failures.load(Ordering::Relaxed) > 0 {
            self.weigh(0);
        }
        if self.streak.load(Ordering::Relaxed) > 0 {
            self.streak.store(0, Ordering::Relaxed);
            bars.lift_penalty();
        }
        bars.is_ejected() && era == self.era() && self.restore(name, bars)
    }

    /// A request failed there; the others had this many good answers by then.
    pub(crate) fn failed(&self, others_good: u64, bars: &Bars) -> Record {
        self.weigh(WHOLE);
        let streak = self.streak.fetch_add(1, Ordering::Relaxed) + 1;
        bars.penalize();
        let mut history = self.history();
        // Fewer than there were, if one of the others has gone.
        if streak == 1 || others_good < history.others_good {
            history.others_good = others_good;
        }
        Record {
            streak,
            others_good: others_good.saturating_sub(history.others_good),
        }
    }

    /// Leaves it out, for longer each time. Returns whether that is news.
    pub(crate) fn eject(&self, name: &str, problem: &str, bars: &Bars) -> bool {
        let mut history = self.history();
        if history.ejected.is_some() {
            return false;
        }
        let forgiven = |(at, out): (Instant, Duration)| at.elapsed() > out.max(FORGIVEN);
        if history.returned.is_some_and(forgiven) {
            history.times = 0;
        }
        let streak = self.streak.load(Ordering::Relaxed);
        let what = match streak {
            1 => "1 request failed".to_owned(),
            streak => format!("{streak} requests in a row failed"),
        };
        self.leave_out(&mut history, name, &what, problem);
        bars.eject();
        true
    }

    /// A request that was given to it in this era has failed: if that was to show whether it serves
    /// again, it does not. Returns whether that was so.
    pub(crate) fn failed_trial(&self, name: &str, era: u32, problem: &str, bars: &Bars) -> bool {
        let mut history = self.history();
        let on_trial = history.ejected.is_some() && era == self.era();
        if on_trial {
            self.leave_out(&mut history, name, "a request on trial failed", problem);
            bars.eject();
        }
        on_trial
    }

    fn leave_out(&self, history: &mut History, name: &str, what: &str, problem: &str) {
        history.times = history.times.saturating_add(1);
        let time = for_how_long(self.first, history.times);
        warn!(
            "Backend {name} is ejected for {time:?}, though it answers health checks: {what}: {problem}"
        );
        history.ejected = Some((Instant::now() + time, problem.to_owned()));
        history.trial = None;
        self.era.fetch_add(1, Ordering::Relaxed);
    }

    fn restore(&self, name: &str, bars: &Bars) -> bool {
        let mut history = self.history();
        if history.ejected.take().is_none() {
            return false;
        }
        info!("Backend {name} serves again: a request on trial was answered");
        self.streak.store(0, Ordering::Relaxed);
        history.trial = None;
        history.returned = Some((Instant::now(), for_how_long(self.first, history.times)));
        bars.restore();
        true
    }

    /// A request is under way as the trial.
    pub(crate) fn trial_begins(&self) {
        self.history().trial = Some(Instant::now());
    }

    /// It ended without showing anything: another is due.
    pub(crate) fn trial_ends(&self, era: u32, bars: &Bars) {
        let mut history = self.history();
        if history.ejected.is_some() && era == self.era() {
            history.trial = None;
            bars.allow_trial();
        }
    }

    /// A probe found the process well, and a piece of an answer came last at this time. Returns
    /// whether that brought it back.
    pub(crate) fn probed(&self, name: &str, last_piece: Instant, bars: &Bars) -> bool {
        bars.ease_penalty();
        let history = self.history();
        let Some((until, _)) = history.ejected else {
            return false;
        };
        match history.trial {
            // A stream that flows is an answer, though it has not ended.
            Some(begun) if last_piece > begun => {
                drop(history);
                return self.restore(name, bars);
            }
            None if Instant::now() >= until => bars.allow_trial(),
            _ => {}
        }
        false
    }

    /// It was down meanwhile: what answers now may be another process.
    pub(crate) fn rose(&self, bars: &Bars) {
        if let Some((until, _)) = &mut self.history().ejected {
            *until = Instant::now();
            bars.allow_trial();
        }
    }

    /// Counts an outcome into the share of failures.
    fn weigh(&self, outcome: u32) {
        let share = self.failures.load(Ordering::Relaxed);
        let moved = (share * (ONE_IN - 1) + outcome) / ONE_IN;
        self.failures.store(moved, Ordering::Relaxed);
    }

    fn history(&self) -> MutexGuard<'_, History> {
        self.history.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Doubled each time.
fn for_how_long(first: Duration, times: u32) -> Duration {
    let doubled = 1u32 << times.saturating_sub(1).min(16);
    first.saturating_mul(doubled).min(LONGEST.max(first))
}

#[cfg(test)]
mod tests {
    use tokio::time::advance;

    use super::super::bars::HEAVIEST;
    use super::*;

    const FIRST: Duration = Duration::from_secs(10);

    struct Tested(Ejection, Bars);

    impl Tested {
        fn new() -> Self {
            let bars = Bars::default();
            bars.set_down(false);
            Self(Ejection::new(FIRST), bars)
        }

        fn eject(&self) {
            self.0.failed(0, &self.1);
            self.0.eject("b", "broken", &self.1);
        }

        fn succeed(&self, era: u32) {
            self.0.succeeded("b", era, &self.1);
        }

        fn probe(&self, last_piece: Instant) {
            self.0.probed("b", last_piece, &self.1);
        }

        /// Whether a trial is due, which then begins.
        fn begins_trial(&self) -> bool {
            let due = self.1.take_trial();
            if due {
                self.0.trial_begins();
            }
            due
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_probe_makes_a_trial_due_when_time_is_up_and_a_request_decides_it() {
        let long_ago = Instant::now();
        let tested = Tested::new();
        tested.eject();
        let mut expected = FIRST;
        for _ in 0..8 {
            advance(expected - Duration::from_millis(1)).await;
            tested.probe(long_ago);
            assert!(tested.1.is_ejected() && !tested.begins_trial());
            advance(Duration::from_millis(2)).await;
            assert!(!tested.begins_trial(), "time alone does not do");
            tested.probe(long_ago);
            assert!(tested.begins_trial());
            tested.probe(long_ago);
            assert!(!tested.begins_trial(), "one at a time");
            tested
                .0
                .failed_trial("b", tested.0.era(), "broken", &tested.1);
            expected = (expected * 2).min(LONGEST);
        }
        assert_eq!(expected, LONGEST);
        advance(LONGEST).await;
        tested.probe(long_ago);
        assert!(tested.begins_trial());
        tested.succeed(tested.0.era());
        assert!(tested.1.none());
        assert_eq!(tested.0.problem(), None);
    }

    #[tokio::test(start_paused = true)]
    async fn what_began_before_says_nothing_after() {
        let tested = Tested::new();
        let before = tested.0.era();
        tested.eject();
        tested.succeed(before);
        tested.0.failed_trial("b", before, "broken", &tested.1);
        assert!(tested.1.is_ejected());
        assert_eq!(tested.0.era(), before + 1);
    }

    #[tokio::test(start_paused = true)]
    async fn a_trial_that_shows_nothing_is_due_again_and_a_stream_that_flows_is_enough() {
        let tested = Tested::new();
        tested.eject();
        tested.0.rose(&tested.1);
        assert!(tested.begins_trial(), "it was down, and is up");
        let era = tested.0.era();
        tested.0.trial_ends(era, &tested.1);
        assert!(tested.begins_trial());
        advance(Duration::from_secs(1)).await;
        tested.probe(Instant::now());
        assert!(tested.1.none());
    }

    #[tokio::test(start_paused = true)]
    async fn who_served_for_long_is_forgiven_and_who_comes_back_to_fail_is_not() {
        for (served, expected) in [(FORGIVEN / 2, FIRST * 2), (FORGIVEN * 2, FIRST)] {
            let tested = Tested::new();
            tested.eject();
            tested.0.rose(&tested.1);
            tested.succeed(tested.0.era());
            advance(served).await;
            tested.eject();
            let (until, _) = tested.0.history().ejected.clone().unwrap();
            assert_eq!(until - Instant::now(), expected);
        }
    }

    #[test]
    fn a_failure_weighs_until_a_success_or_some_good_probes() {
        let tested = Tested::new();
        for expected in [2, 4, 8] {
            tested.0.failed(0, &tested.1);
            assert_eq!(tested.1.penalty(), expected);
        }
        tested.probe(Instant::now());
        assert_eq!(tested.1.penalty(), 4);
        tested.succeed(0);
        assert_eq!(tested.1.penalty(), 0);
        for _ in 0..99 {
            tested.0.failed(0, &tested.1);
        }
        assert_eq!(tested.1.penalty(), HEAVIEST as usize);
        assert!(tested.0.failure_share() > 0.9);
        for _ in 0..99 {
            tested.succeed(0);
        }
        assert!(tested.0.failure_share() < 0.1);
    }
}
