//! How slow a client may be with a body.
//!
//! Apart, as what is kept of a body and what streams on is measured alike. Only waiting for the
//! client counts: a backend that reads slowly costs it nothing.

use std::time::Duration;

/// What is asked of a client.
#[derive(Debug)]
struct Least {
    /// How long it may pause, and how long it may be slower than the rate in all.
    pause: Duration,
    /// Bytes in a second. A client that sends less, pauses included, is left.
    rate: u32,
}

/// While it keeps nobody from anything.
const FREE: Least = Least {
    pause: Duration::from_secs(30),
    rate: 512,
};

/// While what it sends streams on to a backend, where it has the place of another.
const HELD: Least = Least {
    pause: Duration::from_secs(5),
    rate: 64 << 10,
};

/// What has come of a body, and how long that took.
#[derive(Debug)]
pub(crate) struct Pace {
    least: &'static Least,
    waited: Duration,
    read: u64,
}

impl Pace {
    /// Of what is kept before anything is done with it.
    pub(crate) fn free() -> Self {
        Self::of(&FREE)
    }

    /// Of what streams on.
    pub(crate) fn held() -> Self {
        Self::of(&HELD)
    }

    fn of(least: &'static Least) -> Self {
        Self {
            least,
            waited: Duration::ZERO,
            read: 0,
        }
    }

    /// How long to wait for the next piece.
    pub(crate) fn patience(&self) -> Duration {
        let Least { pause, rate } = *self.least;
        let earned = Duration::from_secs(self.read / u64::from(rate));
        (pause + earned).saturating_sub(self.waited).min(pause)
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
        for least in [&FREE, &HELD] {
            let (pause, rate) = (least.pause.as_secs(), least.rate as usize);
            let after = |seconds: u64, each: usize| {
                let mut pace = Pace::of(least);
                for _ in 0..seconds {
                    pace.waited(Duration::from_secs(1));
                    pace.read(each);
                }
                pace.patience()
            };
            assert_eq!(after(0, 0), least.pause);
            assert_eq!(after(pause, 1), Duration::ZERO);
            assert!(after(pause * 3 / 2, rate / 2) > Duration::ZERO);
            assert_eq!(after(pause * 2 + 1, rate / 2), Duration::ZERO);
            assert_eq!(after(100_000, rate), least.pause);
        }
    }

    #[test]
    fn what_was_fast_may_pause_no_longer() {
        for mut pace in [Pace::free(), Pace::held()] {
            let before = pace.patience();
            pace.read(1 << 30);
            assert_eq!(pace.patience(), before);
        }
    }
}
