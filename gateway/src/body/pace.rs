//! How slow a client may be with a body.
//!
//! Apart, as what is kept of a body and what streams on is measured alike. Only waiting for the
//! client counts: a backend that reads slowly costs it nothing.

use std::time::Duration;

/// How long a client may pause, and how long it may be slower than [`RATE`] in all.
const PAUSE: Duration = Duration::from_secs(30);

/// Bytes in a second. A client that sends less, pauses included, is left.
const RATE: u32 = 512;

/// What has come of a body, and how long that took.
#[derive(Debug, Default)]
pub(crate) struct Pace {
    waited: Duration,
    read: u64,
}

impl Pace {
    /// How long to wait for the next piece.
    pub(crate) fn patience(&self) -> Duration {
        let earned = Duration::from_secs(self.read / u64::from(RATE));
        (PAUSE + earned).saturating_sub(self.waited).min(PAUSE)
    }

    pub(crate) fn waited(&mut self, time: Duration) {
        self.waited += time;
    }

    pub(crate) fn read(&mut self, bytes: usize) {
        self.read += bytes as u64;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_sends_too_little_runs_out_of_time_and_who_sends_enough_does_not() {
        let after = |seconds: u64, each: usize| {
            let mut pace = Pace::default();
            for _ in 0..seconds {
                pace.waited(Duration::from_secs(1));
                pace.read(each);
            }
            pace.patience()
        };
        assert_eq!(after(0, 0), PAUSE);
        assert_eq!(after(30, 1), Duration::ZERO);
        assert!(after(40, RATE as usize / 2) > Duration::ZERO);
        assert_eq!(after(61, RATE as usize / 2), Duration::ZERO);
        assert_eq!(after(100_000, RATE as usize), PAUSE);
    }

    #[test]
    fn what_was_fast_may_pause_no_longer() {
        let mut pace = Pace::default();
        pace.read(1 << 30);
        assert_eq!(pace.patience(), PAUSE);
    }
}
