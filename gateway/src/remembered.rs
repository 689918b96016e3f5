//! Backends by what they are asked for again: the ones used last, and no more than there is room for.
//!
//! Apart from what they are remembered for. What is known ends with the process.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use lru::LruCache;

use crate::backend::Backend;

/// How many keys are known; of more, those that were not asked for the longest are forgotten. Each
/// takes about 80 bytes.
pub(crate) const MOST: usize = 65_536;

pub(crate) struct Remembered {
    known: Mutex<LruCache<u64, Weak<Backend>>>,
}

impl Remembered {
    pub(crate) fn new() -> Self {
        Self {
            // One with a bound takes the room for all of them at once.
            known: Mutex::new(LruCache::unbounded()),
        }
    }

    pub(crate) fn note(&self, keys: impl IntoIterator<Item = u64>, backend: &Arc<Backend>) {
        let mut known = self.known();
        for key in keys {
            known.put(key, Arc::downgrade(backend));
        }
        while known.len() > MOST {
            known.pop_lru();
        }
    }

    /// The one that the first of these keys leads to, if it is a backend yet.
    pub(crate) fn find(&self, keys: impl IntoIterator<Item = u64>) -> Option<Arc<Backend>> {
        let mut known = self.known();
        keys.into_iter().find_map(|key| {
            let backend = known.get(&key)?.upgrade()?;
            (!backend.is_retired()).then_some(backend)
        })
    }

    #[cfg(test)]
    pub(crate) fn len(&self) -> usize {
        self.known().len()
    }

    fn known(&self) -> MutexGuard<'_, LruCache<u64, Weak<Backend>>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
