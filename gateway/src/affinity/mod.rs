//! Where a conversation is at home: the backend that has its beginning in memory, so that only what
//! is new has to be read again.
//!
//! Apart from choosing, which weighs that against the load.

mod conversation;

use std::sync::Arc;

pub(crate) use conversation::Conversation;

use crate::backend::Backend;
use crate::remembered::Remembered;

/// The homes of conversations, by the hashes of their beginnings.
pub(crate) struct Homes(Remembered);

impl Homes {
    pub(crate) fn new() -> Self {
        Self(Remembered::new())
    }

    /// The backend that had most of it, if that is a backend yet.
    pub(crate) fn find(&self, conversation: &Conversation) -> Option<Arc<Backend>> {
        self.0.find(conversation.beginnings())
    }

    pub(crate) fn note(&self, conversation: &Conversation, home: &Arc<Backend>) {
        self.0.note(conversation.to_be_known(), home);
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
