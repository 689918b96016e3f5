//! Processes whose memory can't be read, as they wait for a network mount that hangs with their
//! address space locked. Apart from reading, because that is a matter of one look, and this is
//! remembered as long as a thread of ours waits for one: it is not asked again by another.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use super::process::stat;

/// How many threads wait at most. Whoever has more of such processes than that is told of no other
/// one, and waits for none.
const MOST: usize = 64;

/// Who is waited for, 0 where nobody is. Not behind a lock: a child that was forked meanwhile would
/// wait for it.
static WAITED_FOR: [AtomicU64; MOST] = [const { AtomicU64::new(0) }; MOST];

/// Whether a process is waited for, or nobody else can be. Costs no system call where nothing hangs.
pub(super) fn is_out_of_reach(pid: u32) -> bool {
    let mut taken = 0;
    let mut key = None;
    for slot in &WAITED_FOR {
        let found = slot.load(Ordering::Acquire);
        taken += usize::from(found != 0);
        if found != 0
            && pid_of(found) == u64::from(pid)
            && *key.get_or_insert_with(|| key_of(pid)) == Some(found)
        {
            return true;
        }
    }
    taken == MOST
}

/// By what it is told from others that get its PID: 22 bits are all that a PID has, and the ticks
/// since boot that the others hold are those of a thousand years.
fn key_of(pid: u32) -> Option<u64> {
    let start = stat(pid).ok()??.start;
    Some(u64::from(pid) << START_BITS | start & ((1 << START_BITS) - 1))
}

const START_BITS: u32 = 42;

fn pid_of(key: u64) -> u64 {
    key >> START_BITS
}

/// A thread that reads, and may have to be left to wait.
#[derive(Clone, Default)]
pub(super) struct Wait(Arc<AtomicUsize>);

const READS: usize = 0;
const ENDED: usize = usize::MAX;

impl Wait {
    /// By whoever has waited long enough for it.
    pub(super) fn give_up(&self, pid: u32) {
        // One that has no name any more has ended, and what is read of it too.
        let Some(key) = key_of(pid) else { return };
        let free = |slot: &AtomicU64| {
            let (order, failed) = (Ordering::AcqRel, Ordering::Relaxed);
            slot.compare_exchange(0, key, order, failed).is_ok()
        };
        let Some(index) = WAITED_FOR.iter().position(free) else {
            return;
        };
        let (order, failed) = (Ordering::AcqRel, Ordering::Acquire);
        let left = self.0.compare_exchange(READS, index + 1, order, failed);
        if left.is_err() {
            WAITED_FOR[index].store(0, Ordering::Release);
        }
    }

    /// By the thread itself, at its end.
    pub(super) fn end(&self) {
        if let index @ 1..=MOST = self.0.swap(ENDED, Ordering::AcqRel) {
            WAITED_FOR[index - 1].store(0, Ordering::Release);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_is_waited_for_is_out_of_reach_until_the_wait_ends() {
        let own = std::process::id();
        let waits: Vec<_> = (0..2).map(|_| Wait::default()).collect();
        assert!(!is_out_of_reach(own));
        for wait in &waits {
            wait.give_up(own);
        }
        assert!(is_out_of_reach(own));
        assert!(!is_out_of_reach(1));
        for wait in &waits {
            assert!(is_out_of_reach(own));
            wait.end();
        }
        assert!(!is_out_of_reach(own));
        // Given up when it had just ended.
        waits[0].give_up(own);
        assert!(!is_out_of_reach(own));
    }
}
