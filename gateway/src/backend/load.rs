//! What is read of each backend for each request, apart from all else of it and side by side with the
//! others': choosing among many then reads memory from one end to the other.

use std::ops::Deref;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use tokio::time::Instant;

use super::bars::Bars;
use super::ramp::{Ramp, WHOLE};
use crate::choose::{Glance, Standing};

/// One line of the processor's cache.
#[derive(Debug)]
#[repr(align(64))]
pub(crate) struct Load {
    pub(super) bars: Bars,
    pub(super) in_flight: AtomicUsize,
    /// In parts, [`WHOLE`] for each unit.
    pub(super) weight: AtomicU64,
    pub(super) max: AtomicUsize,
    turn: AtomicU64,
    pub(super) ramp: Ramp,
    pub(super) since: Instant,
}

impl Default for Load {
    fn default() -> Self {
        Self {
            bars: Bars::default(),
            in_flight: AtomicUsize::new(0),
            weight: AtomicU64::new(WHOLE),
            max: AtomicUsize::new(usize::MAX),
            turn: AtomicU64::new(0),
            ramp: Ramp::default(),
            since: Instant::now(),
        }
    }
}

impl Load {
    /// Whether it may be given a request; and the requests that it has, with those that its failures
    /// weigh.
    pub(crate) fn standing(&self) -> (Standing, usize) {
        let bars = &self.bars;
        let in_flight = self.in_flight();
        let free = self.free(in_flight);
        if bars.none() {
            return (free, in_flight);
        }
        let standing = if bars.is_unseen() {
            Standing::Unseen
        } else if bars.is_down() {
            Standing::Out
        } else if bars.is_ejected() && !bars.trial_is_due() {
            free.max(Standing::Ejected)
        } else if bars.is_cooling() {
            free.max(Standing::Cooling)
        } else {
            free
        };
        (standing, in_flight + bars.penalty())
    }

    /// What there is to know of one that nothing keeps from being given requests and whose share is
    /// the whole, as nearly all are: a look at it is short.
    #[inline]
    pub(crate) fn glance(&self) -> Option<Glance> {
        let in_flight = self.in_flight();
        let is_full = in_flight >= self.max.load(Ordering::Relaxed);
        let is_plain = self.bars.none() && self.ramp.is_off() && !is_full;
        is_plain.then(|| Glance {
            in_flight: in_flight as u64,
            weight: self.weight.load(Ordering::Relaxed),
            turn: self.turn(),
        })
    }

    fn free(&self, in_flight: usize) -> Standing {
        if in_flight >= self.max.load(Ordering::Relaxed) {
            Standing::Full
        } else {
            Standing::Ready
        }
    }

    pub(crate) fn in_flight(&self) -> usize {
        self.in_flight.load(Ordering::Relaxed)
    }

    /// In parts, [`WHOLE`] for each unit, while its share grows less; and whether it does.
    pub(crate) fn weight(&self) -> (u64, bool) {
        let weight = self.weight.load(Ordering::Relaxed);
        match self.ramp.share(|| self.age()) {
            None => (weight, false),
            Some(share) => (weight / WHOLE * share, true),
        }
    }

    pub(crate) fn turn(&self) -> u64 {
        self.turn.load(Ordering::Relaxed)
    }

    pub(crate) fn set_turn(&self, turn: u64) {
        self.turn.store(turn, Ordering::Relaxed);
    }

    pub(super) fn age(&self) -> Duration {
        self.since.elapsed()
    }
}

/// One backend's load, among those that were made with it.
#[derive(Debug, Clone)]
pub(crate) struct Slot {
    row: Arc<[Load]>,
    index: usize,
}

impl Slot {
    /// So many, side by side.
    pub(crate) fn row(count: usize) -> impl Iterator<Item = Self> {
        let row: Arc<[Load]> = (0..count).map(|_| Load::default()).collect();
        (0..count).map(move |index| Self {
            row: Arc::clone(&row),
            index,
        })
    }
}

/// One that lies alone.
impl Default for Slot {
    fn default() -> Self {
        Self {
            row: Arc::new([Load::default()]),
            index: 0,
        }
    }
}

impl Deref for Slot {
    type Target = Load;

    fn deref(&self) -> &Load {
        &self.row[self.index]
    }
}
