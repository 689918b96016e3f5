//! One warning in a while, where each of many would fill the log.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Lets one warning through in a while, and counts the others.
#[derive(Default)]
pub(crate) struct Warnings(Mutex<(Option<Instant>, u64)>);

/// As often as one backend's failures are worth a line.
const PAUSE: Duration = Duration::from_secs(10);

impl Warnings {
    /// How many were held back since the last one that was not; `None`: this one is, too.
    pub(crate) fn take(&self) -> Option<u64> {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let (last, held) = &mut *state;
        if last.is_some_and(|last| last.elapsed() < PAUSE) {
            *held += 1;
            return None;
        }
        *last = Some(Instant::now());
        Some(std::mem::take(held))
    }
}
