//! Which backend has made what, so that who follows up on it is sent there.
//!
//! Apart from choosing, which only wants to know a backend.

use std::collections::hash_map::RandomState;
use std::hash::BuildHasher;
use std::sync::Arc;

use crate::backend::Backend;
use crate::remembered::Remembered;

/// The makers of things, by the hash of their IDs: clients choose neither.
pub(crate) struct Made {
    hasher: RandomState,
    makers: Remembered,
}

impl Made {
    pub(crate) fn new() -> Self {
        Self {
            hasher: RandomState::new(),
            makers: Remembered::new(),
        }
    }

    pub(crate) fn note(&self, id: &str, maker: &Arc<Backend>) {
        self.makers.note([self.hasher.hash_one(id)], maker);
    }

    /// Who made it, if that is known and still a backend.
    pub(crate) fn maker(&self, id: &str) -> Option<Arc<Backend>> {
        self.makers.find([self.hasher.hash_one(id)])
    }
}

#[cfg(test)]
mod tests {
    use axum::http::HeaderValue;

    use super::*;
    use crate::backend::{Care, Slot};
    use crate::options::Options;
    use crate::remembered::MOST;
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
        assert_eq!(made.makers.len(), MOST);
        backend.retire();
        assert!(made.maker("first").is_none());
        drop(backend);
        assert!(made.maker("first").is_none());
    }
}
