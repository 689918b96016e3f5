//! Which backend has made what, so that who follows up on it is sent there.
//!
//! Apart from choosing, which only wants to know a backend. What is known ends with the process.

use std::collections::hash_map::RandomState;
use std::hash::BuildHasher;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use lru::LruCache;

use crate::backend::Backend;

/// How many are known; of more, those that were not asked for the longest are forgotten. Each
/// takes about 80 bytes.
const MOST: usize = 65_536;

/// The makers of things, by the hash of their IDs: clients choose neither.
pub(crate) struct Made {
    hasher: RandomState,
    makers: Mutex<LruCache<u64, Weak<Backend>>>,
}

impl Made {
    pub(crate) fn new() -> Self {
        Self {
            hasher: RandomState::new(),
            // One with a bound takes the room for all of them at once.
            makers: Mutex::new(LruCache::unbounded()),
        }
    }

    pub(crate) fn note(&self, id: &str, maker: &Arc<Backend>) {
        let key = self.hasher.hash_one(id);
        let mut makers = self.makers();
        makers.put(key, Arc::downgrade(maker));
        if makers.len() > MOST {
            makers.pop_lru();
        }
    }

    /// Who made it, if that is known and still a backend.
    pub(crate) fn maker(&self, id: &str) -> Option<Arc<Backend>> {
        let key = self.hasher.hash_one(id);
        let maker = self.makers().get(&key)?.upgrade()?;
        (!maker.is_retired()).then_some(maker)
    }

    fn makers(&self) -> MutexGuard<'_, LruCache<u64, Weak<Backend>>> {
        self.makers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use axum::http::HeaderValue;

    use super::*;
    use crate::backend::{Care, Slot};
    use crate::options::Options;
    use crate::set::BackendSpec;

    #[test]
    fn the_ones_used_last_are_known_and_no_more_than_there_is_room_for() {
        let care = Care::of(&Options::new(), 1, HeaderValue::from_static("1.1 test"));
        let spec = BackendSpec::new("http://b".parse().unwrap());
        let backend = Arc::new(Backend::new(spec, &care, Slot::default()));
        let made = Made::new();
        made.note("first", &backend);
        made.note("second", &backend);
        for number in 0..MOST - 1 {
            assert!(made.maker("first").is_some());
            made.note(&number.to_string(), &backend);
        }
        assert!(made.maker("first").is_some());
        assert!(made.maker("second").is_none());
        assert_eq!(made.makers().len(), MOST);
        backend.retire();
        assert!(made.maker("first").is_none());
        drop(backend);
        assert!(made.maker("first").is_none());
    }
}
