//! The last ten minutes, as totals that grow: whoever looks takes the differences.

use std::collections::VecDeque;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use serde::Serialize;

/// Between two samples.
pub(crate) const STEP: Duration = Duration::from_secs(2);
/// Ten minutes of them, and one before.
const KEPT: usize = 301;

/// Everything since the start, at one moment.
#[derive(Debug, Clone, Copy, Default, Serialize)]
pub(crate) struct Sample {
    /// Seconds since the start.
    pub(crate) at: f64,
    pub(crate) in_flight: usize,
    pub(crate) requests: u64,
    pub(crate) failures: u64,
    pub(crate) tokens_in: u64,
    pub(crate) tokens_out: u64,
    /// Of all times to a first token: their sum in seconds, and how many there were.
    pub(crate) first_token_sum: f64,
    pub(crate) first_token_count: u64,
}

#[derive(Default)]
pub(crate) struct History(Mutex<VecDeque<Sample>>);

impl History {
    pub(crate) fn push(&self, sample: Sample) {
        let mut samples = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if samples.len() == KEPT {
            samples.pop_front();
        }
        samples.push_back(sample);
    }

    pub(crate) fn samples(&self) -> Vec<Sample> {
        let samples = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        samples.iter().copied().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ten_minutes_are_kept() {
        let history = History::default();
        for second in 0..1000 {
            let at = f64::from(second) * STEP.as_secs_f64();
            history.push(Sample {
                at,
                ..Sample::default()
            });
        }
        let samples = history.samples();
        let span = samples.last().map(|last| last.at - samples[0].at);
        assert_eq!(span, Some(600.0));
    }
}
