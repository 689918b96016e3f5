//! Processes whose memory can't be read, as they wait for a network mount that hangs with their
//! address space locked. Apart from reading, because that is a matter of one look, and this is
//! remembered as long as a thread of ours waits for one: it is not asked again by another.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use tracing::warn;

use super::holders::is_owned_by;
use super::process::stat;

/// How many threads wait at most for processes of this user, and how many for those of all others:
/// where so many wait, no other one is asked. A stranger's are none of that user's business.
const MOST: usize = 32;

/// Who is waited for, 0 where nobody is: strangers first, then those of this user. Not behind a lock:
/// a child that was forked meanwhile would wait for it.
static WAITED_FOR: [AtomicU64; 2 * MOST] = [const { AtomicU64::new(0) }; 2 * MOST];

fn slots(pid: u32) -> Range<usize> {
    let own = rustix::process::geteuid().as_raw();
    match is_owned_by(pid, own) {
        Ok(true) => MOST..2 * MOST,
        _ => 0..MOST,
    }
}

/// Whether a process is waited for, or nobody else can be. Costs no system call where nothing hangs.
pub(super) fn is_out_of_reach(pid: u32) -> bool {
    let waited_for = |slot: &AtomicU64| slot.load(Ordering::Acquire);
    if WAITED_FOR.iter().all(|slot| waited_for(slot) == 0) {
        return false;
    }
    let slots = &WAITED_FOR[slots(pid)];
    let key = key_of(pid);
    let mut found = slots.iter().map(waited_for);
    found.any(|found| Some(found) == key) || slots.iter().all(|slot| waited_for(slot) != 0)
}

/// By what it is told from others that get its PID: 22 bits are all that a PID has, and the ticks
/// since boot that the others hold are those of a thousand years.
fn key_of(pid: u32) -> Option<u64> {
    let start = stat(pid).ok()??.start;
    Some(u64::from(pid) << START_BITS | start & ((1 << START_BITS) - 1))
}

const START_BITS: u32 = 42;

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
        let mut slots = slots(pid);
        let Some(index) = slots.find(|&index| free(&WAITED_FOR[index])) else {
            return;
        };
        if index + 1 == WAITED_FOR.len() {
            warn!(
                "{MOST} processes of this user can't be looked into (one is PID {pid}), as they wait \
                 for a network mount that hangs, perhaps: what a killed server has left is missed"
            );
        }
        let (order, failed) = (Ordering::AcqRel, Ordering::Acquire);
        let left = self.0.compare_exchange(READS, index + 1, order, failed);
        if left.is_err() {
            WAITED_FOR[index].store(0, Ordering::Release);
        }
    }

    /// By the thread itself, at its end.
    pub(super) fn end(&self) {
        if let index @ 1..ENDED = self.0.swap(ENDED, Ordering::AcqRel) {
            WAITED_FOR[index - 1].store(0, Ordering::Release);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::CommandExt;
    use std::process::{Child, Command};

    use super::*;

    /// A process of another user, if this one is root's.
    fn stranger() -> Child {
        let mut sleep = Command::new("sleep");
        sleep.arg("1000");
        sleep.uid(65534).spawn().expect("there is such a program")
    }

    // One test, as there is one list.
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

        // Others may keep whom they like waiting, and are no reason not to look at our own.
        if rustix::process::geteuid().is_root() {
            let mut strangers = [stranger(), stranger()];
            let [hung, other] = strangers.each_ref().map(Child::id);
            let waits: Vec<_> = (0..MOST + 1).map(|_| Wait::default()).collect();
            for wait in &waits {
                assert!(!is_out_of_reach(own));
                wait.give_up(hung);
            }
            assert!(is_out_of_reach(other));
            assert!(!is_out_of_reach(own));
            waits.iter().for_each(Wait::end);
            assert!(!is_out_of_reach(other));
            for stranger in &mut strangers {
                let _ = stranger.kill();
                let _ = stranger.wait();
            }
        }
    }
}
