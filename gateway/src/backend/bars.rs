//! What keeps requests from a backend, as one word that is read for each request.
//!
//! Apart, since those who set it (probes, the outcomes of requests) know nothing of each other.

use std::sync::atomic::{AtomicU8, Ordering};

/// It is not known to be up.
const DOWN: u8 = 1;
/// Requests found it failing.
const EJECTED: u8 = 2;
/// It is ejected, and the next request may try whether it still fails.
const TRIAL: u8 = 4;
/// It said that it has enough for now.
const COOLING: u8 = 8;

#[derive(Debug)]
pub(crate) struct Bars(AtomicU8);

impl Default for Bars {
    fn default() -> Self {
        Self(AtomicU8::new(DOWN))
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
    }

    /// Without a trial, until one is due.
    pub(crate) fn eject(&self) {
        self.set(EJECTED, true);
        self.set(TRIAL, false);
    }

    pub(crate) fn restore(&self) {
        self.set(EJECTED | TRIAL, false);
    }

    pub(crate) fn allow_trial(&self) {
        self.set(TRIAL, true);
    }

    /// Whether this one is the trial: only one is told so.
    pub(crate) fn take_trial(&self) -> bool {
        self.trial_is_due() && self.0.fetch_and(!TRIAL, Ordering::Relaxed) & TRIAL != 0
    }

    /// Returns whether that is news.
    pub(crate) fn cool(&self) -> bool {
        self.0.fetch_or(COOLING, Ordering::Relaxed) & COOLING == 0
    }

    pub(crate) fn warm_up(&self) {
        self.set(COOLING, false);
    }

    fn bits(&self) -> u8 {
        self.0.load(Ordering::Relaxed)
    }

    fn set(&self, bits: u8, on: bool) {
        if on {
            self.0.fetch_or(bits, Ordering::Relaxed);
        } else {
            self.0.fetch_and(!bits, Ordering::Relaxed);
        }
    }
}
