//! A request's place at a backend, and what its outcome says of the backend.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::Backend;

/// It is in flight there until this is dropped, or given back.
pub(crate) struct Place {
    backend: Arc<Backend>,
    /// Since when the backend was last ejected, as it were.
    era: u32,
    /// It is to show whether the backend serves again.
    trial: bool,
    /// What it shows has been noted.
    settled: bool,
    /// It is given back, and only remembers whose it was.
    over: bool,
}

impl Place {
    pub(crate) fn take(backend: Arc<Backend>) -> Self {
        let load = &backend.load;
        load.in_flight.fetch_add(1, Ordering::Relaxed);
        let trial = load.bars.take_trial();
        if trial {
            backend.ejection.trial_begins();
        }
        Self {
            era: backend.ejection.era(),
            trial,
            settled: false,
            over: false,
            backend,
        }
    }

    /// Of a request that counts for nothing: it is as good as given back, and shows nothing.
    pub(crate) fn aside(backend: Arc<Backend>) -> Self {
        Self {
            era: backend.ejection.era(),
            trial: false,
            settled: true,
            over: true,
            backend,
        }
    }

    /// It was answered well, to the end. Only the first outcome counts.
    pub(crate) fn succeeded(&mut self) {
        if !std::mem::replace(&mut self.settled, true) {
            let load = &self.backend.load;
            let name = &self.backend.name;
            let ejection = &self.backend.ejection;
            if ejection.succeeded(name, self.era, &load.bars) {
                self.backend.returned();
            }
        }
    }

    /// The backend failed it. Returns, if that is the first that is known of its outcome, whether it
    /// was a trial.
    pub(crate) fn failed(&mut self, problem: &str) -> Option<bool> {
        if std::mem::replace(&mut self.settled, true) {
            return None;
        }
        let (ejection, name) = (&self.backend.ejection, &self.backend.name);
        Some(ejection.failed_trial(name, self.era, problem, &self.backend.load.bars))
    }

    /// Gives it back before the flight is over.
    pub(crate) fn give_back(&mut self) {
        if std::mem::replace(&mut self.over, true) {
            return;
        }
        let load = &self.backend.load;
        self.backend.finished.fetch_add(1, Ordering::Relaxed);
        load.in_flight.fetch_sub(1, Ordering::SeqCst);
        if self.trial && !self.settled {
            self.backend.ejection.trial_ends(self.era, &load.bars);
        }
        self.backend.care.waiting.room_at(&self.backend);
    }
}

impl std::ops::Deref for Place {
    type Target = Arc<Backend>;

    fn deref(&self) -> &Arc<Backend> {
        &self.backend
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.give_back();
    }
}
