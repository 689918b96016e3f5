//! Where a conversation is at home: the backend that has its beginning in memory, so that only what
//! is new has to be read again.
//!
//! Apart from choosing, which weighs that against the load.

mod conversation;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use lru::LruCache;

pub(crate) use conversation::Conversation;

use crate::backend::Backend;

/// How many beginnings are known; of more, those that were not asked for the longest are forgotten.
/// Each takes about 80 bytes.
const MOST: usize = 65_536;

/// How many beginnings are looked for, from the longest on: a turn adds few messages.
const LOOKS: usize = 16;

/// The homes of conversations, by the hashes of their beginnings.
pub(crate) struct Homes {
    known: Mutex<LruCache<u64, Weak<Backend>>>,
}

impl Homes {
    pub(crate) fn new() -> Self {
        Self {
            // One with a bound takes the room for all of them at once.
            known: Mutex::new(LruCache::unbounded()),
        }
    }

    /// The backend that had most of it, if that is a backend yet.
    pub(crate) fn find(&self, conversation: &Conversation) -> Option<Arc<Backend>> {
        let mut known = self.known();
        let mut beginnings = conversation.beginnings().take(LOOKS);
        beginnings.find_map(|beginning| {
            let home = known.get(&beginning)?.upgrade()?;
            (!home.is_retired()).then_some(home)
        })
    }

    pub(crate) fn note(&self, conversation: &Conversation, home: &Arc<Backend>) {
        let mut known = self.known();
        for &beginning in conversation.to_be_known() {
            known.put(beginning, Arc::downgrade(home));
        }
        while known.len() > MOST {
            known.pop_lru();
        }
    }

    fn known(&self) -> MutexGuard<'_, LruCache<u64, Weak<Backend>>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// How well a backend, by the hash of its name, suits a conversation that has no home yet: the
/// highest is taken (rendezvous hashing), so that one that leaves moves only its own.
pub(crate) fn suits(anchor: u64, seed: u64) -> u64 {
    // The finalizer of SplitMix64.
    let mut mixed = anchor ^ seed;
    mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ (mixed >> 31)
}
