//! The slow start of a backend that has just come: its share of the requests grows to the whole, as
//! its caches are cold and it may yet turn out to fail.
//!
//! Apart from its weight, which its owner sets. Nobody looks at a clock but while it grows.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// The whole share. Weights are counted in this, too.
pub(crate) const WHOLE: u64 = 1 << 10;

/// What it begins with.
const FIRST: u64 = WHOLE / 10;

/// How long it takes.
const TIME: Duration = Duration::from_secs(10);

const OFF: u64 = 0;
/// It is to begin when the backend comes up.
const DUE: u64 = u64::MAX;

/// One of the two, or when it began, in milliseconds on the backend's clock and one more.
#[derive(Debug, Default)]
pub(crate) struct Ramp(AtomicU64);

impl Ramp {
    /// Begins as soon as the backend is up.
    pub(crate) fn prepare(&self) {
        self.0.store(DUE, Ordering::Relaxed);
    }

    /// The backend is up.
    pub(crate) fn rose(&self, now: Duration) {
        if self.0.load(Ordering::Relaxed) == DUE {
            self.begin(now);
        }
    }

    pub(crate) fn begin(&self, now: Duration) {
        let now = u64::try_from(now.as_millis()).unwrap_or(u64::MAX);
        let begun = now.saturating_add(1).min(DUE - 1);
        self.0.store(begun, Ordering::Relaxed);
    }

    /// Whether its share is the whole, and nothing is due.
    #[inline]
    pub(crate) fn is_off(&self) -> bool {
        self.0.load(Ordering::Relaxed) == OFF
    }

    /// Its share out of [`WHOLE`], while that grows.
    #[inline]
    pub(crate) fn share(&self, now: impl FnOnce() -> Duration) -> Option<u64> {
        match self.0.load(Ordering::Relaxed) {
            OFF => None,
            begun => self.growing(begun, now),
        }
    }

    /// Apart, as hardly any request comes here.
    #[cold]
    fn growing(&self, begun: u64, now: impl FnOnce() -> Duration) -> Option<u64> {
        if begun == DUE {
            return None;
        }
        let gone = now().saturating_sub(Duration::from_millis(begun - 1));
        if gone >= TIME {
            // Unless it has just begun again.
            let (word, order) = (&self.0, Ordering::Relaxed);
            let _ = word.compare_exchange(begun, OFF, order, order);
            return None;
        }
        let grown = (WHOLE - FIRST) as f64 * gone.as_secs_f64() / TIME.as_secs_f64();
        Some(FIRST + grown as u64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(ramp: &Ramp, seconds: u64) -> Option<u64> {
        ramp.share(|| Duration::from_secs(seconds))
    }

    #[test]
    fn it_grows_from_a_tenth_to_the_whole_and_is_over() {
        let ramp = Ramp::default();
        ramp.begin(Duration::from_secs(5));
        let shares = [5, 10, 14].map(|seconds| at(&ramp, seconds));
        assert_eq!(shares, [Some(102), Some(563), Some(931)]);
        assert_eq!(at(&ramp, 15), None);
        assert_eq!(at(&ramp, 5), None, "for good");
    }

    #[test]
    fn it_begins_when_the_backend_is_up_if_it_is_due() {
        let ramp = Ramp::default();
        let unasked = || unreachable!("nobody looks at the clock");
        ramp.rose(Duration::ZERO);
        assert_eq!(ramp.share(unasked), None, "not due");
        ramp.prepare();
        assert_eq!(ramp.share(unasked), None, "not up");
        ramp.rose(Duration::ZERO);
        assert_eq!(at(&ramp, 0), Some(FIRST));
        // It does not begin anew with each good look.
        ramp.rose(Duration::from_secs(5));
        assert_eq!(at(&ramp, 5), Some(563));
    }
}
