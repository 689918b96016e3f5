//! What keeps requests from a backend, in two words that are read for each request.
//!
//! Apart, since those who set it (probes, the outcomes of requests) know nothing of each other.

use std::sync::atomic::{AtomicU8, AtomicU32, Ordering};

/// It is not known to be up.
const DOWN: u8 = 1;
/// Requests found it failing.
const EJECTED: u8 = 2;
/// It is ejected, and the next request may try whether it still fails.
const TRIAL: u8 = 4;
/// It said that it has enough for now.
const COOLING: u8 = 8;
/// It failed requests lately, which weighs.
const PENALIZED: u8 = 16;
/// It has not been looked at yet.
const UNSEEN: u8 = 32;

/// A failure weighs twice what the one before it did, in requests in flight, up to this.
pub(super) const HEAVIEST: u32 = 1 << 10;

#[derive(Debug)]
pub(crate) struct Bars {
    bits: AtomicU8,
    penalty: AtomicU32,
}

impl Default for Bars {
    fn default() -> Self {
        Self {
            bits: AtomicU8::new(DOWN | UNSEEN),
            penalty: AtomicU32::new(0),
        }
    }
}

impl Bars {
    /// Whether there are none, which is what nearly every request finds.
    pub(crate) fn none(&self) -> bool {
        self.bits() == 0
    }

    pub(crate) fn is_down(&self) -> bool {
        self.bits() & DOWN != 0
    }

    pub(crate) fn is_unseen(&self) -> bool {
        self.bits() & UNSEEN != 0
    }

    pub(crate) fn is_ejected(&self) -> bool {
        self.bits() & EJECTED != 0
    }

    pub(crate) fn trial_is_due(&self) -> bool {
        self.bits() & TRIAL != 0
    }

    pub(crate) fn is_cooling(&self) -> bool {
        self.bits() & COOLING != 0
    }

    pub(crate) fn set_down(&self, down: bool) {
        self.set(DOWN, down);
        self.set(UNSEEN, false);
    }

    /// Without a trial, until one is due. That is penalty enough.
    pub(crate) fn eject(&self) {
        self.set(EJECTED, true);
        self.set(TRIAL, false);
        self.lift_penalty();
    }

    pub(crate) fn restore(&self) {
        self.set(EJECTED | TRIAL, false);
        self.lift_penalty();
    }

    pub(crate) fn allow_trial(&self) {
        self.set(TRIAL, true);
    }

    /// Whether this one is the trial: only one is told so.
    pub(crate) fn take_trial(&self) -> bool {
        self.trial_is_due() && self.bits.fetch_and(!TRIAL, Ordering::Relaxed) & TRIAL != 0
    }

    /// Returns whether that is news.
    pub(crate) fn cool(&self) -> bool {
        self.bits.fetch_or(COOLING, Ordering::SeqCst) & COOLING == 0
    }

    pub(crate) fn warm_up(&self) {
        self.set(COOLING, false);
    }

    /// Requests that it seems to have in flight besides, so that failing at once gains it nothing.
    pub(crate) fn penalty(&self) -> usize {
        self.penalty.load(Ordering::Relaxed) as usize
    }

    pub(crate) fn penalize(&self) {
        let penalty = self.penalty.load(Ordering::Relaxed).max(1);
        self.set_penalty((penalty * 2).min(HEAVIEST));
    }

    /// It goes in time, so that one that got nothing for it is tried again.
    pub(crate) fn ease_penalty(&self) {
        let penalty = self.penalty.load(Ordering::Relaxed);
        if penalty > 0 {
            self.set_penalty(penalty / 2);
        }
    }

    pub(crate) fn lift_penalty(&self) {
        self.set_penalty(0);
    }

    fn set_penalty(&self, penalty: u32) {
        self.penalty.store(penalty, Ordering::Relaxed);
        self.set(PENALIZED, penalty > 0);
    }

    fn bits(&self) -> u8 {
        self.bits.load(Ordering::Relaxed)
    }

    /// Before it is asked whether anybody waits for it: who begins to wait looks again after that.
    fn set(&self, bits: u8, on: bool) {
        if on {
            self.bits.fetch_or(bits, Ordering::SeqCst);
        } else {
            self.bits.fetch_and(!bits, Ordering::SeqCst);
        }
    }
}
