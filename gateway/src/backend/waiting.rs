//! Who waits for room at a backend, as far as backends have to know: whether anybody does, and whom
//! to tell that there may be some.
//!
//! Apart, so that a backend knows nothing of those who give its places away.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{OnceLock, Weak};

use super::Backend;

/// Gives places to those who wait.
pub(crate) trait Usher: Send + Sync {
    /// This one may have room.
    fn room_at(&self, backend: &Backend);

    /// Any may, or none may ever.
    fn changed(&self);
}

/// How many wait, to be seen without a lock, and who sees to them.
#[derive(Default)]
pub(crate) struct Waiting {
    count: AtomicUsize,
    usher: OnceLock<Weak<dyn Usher>>,
}

impl Waiting {
    pub(crate) fn count(&self) -> usize {
        self.count.load(Ordering::SeqCst)
    }

    pub(crate) fn set_count(&self, count: usize) {
        self.count.store(count, Ordering::SeqCst);
    }

    /// Once, when there is one.
    pub(crate) fn is_seen_to_by(&self, usher: Weak<dyn Usher>) {
        let _ = self.usher.set(usher);
    }

    pub(super) fn room_at(&self, backend: &Backend) {
        self.tell(|usher| usher.room_at(backend));
    }

    pub(super) fn changed(&self) {
        self.tell(|usher| usher.changed());
    }

    fn tell(&self, what: impl FnOnce(&dyn Usher)) {
        if self.count() == 0 {
            return;
        }
        if let Some(usher) = self.usher.get().and_then(Weak::upgrade) {
            what(&*usher);
        }
    }
}

impl std::fmt::Debug for Waiting {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Waiting").field(&self.count()).finish()
    }
}
