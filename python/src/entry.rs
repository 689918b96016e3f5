//! The way into the interpreter, for threads that Python does not wait for: one that comes back when
//! the interpreter ends is ended in the midst of Rust, which may take the process with it.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread::{self, ThreadId};
use std::time::{Duration, Instant};

use crate::exit;

/// A handler of the user's may take its time; the end of a process may not.
const PATIENCE: Duration = Duration::from_secs(1);

/// How many threads are on their way.
static INSIDE: AtomicUsize = AtomicUsize::new(0);
/// Who ends the interpreter, and may go on.
static ENDING: Mutex<Option<ThreadId>> = Mutex::new(None);

/// The right to enter; the interpreter does not end meanwhile.
pub(crate) struct Entry(());

impl Entry {
    /// `None` when it is too late.
    pub(crate) fn new() -> Option<Self> {
        INSIDE.fetch_add(1, Ordering::SeqCst);
        let entry = Self(());
        let ending = || *ENDING.lock().unwrap_or_else(PoisonError::into_inner);
        if exit::has_begun() && ending() != Some(thread::current().id()) {
            return None;
        }
        Some(entry)
    }

    /// For threads that would have to go back into Python code: there is none any more.
    pub(crate) fn or_stay() -> Self {
        Self::new().unwrap_or_else(|| {
            loop {
                thread::park();
            }
        })
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        // A child that was forked in here starts with none.
        let _ = INSIDE.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |n| n.checked_sub(1));
    }
}

/// In a forked child, which has no other threads.
pub(crate) fn forget_others() {
    INSIDE.store(0, Ordering::SeqCst);
}

pub(crate) fn let_in_this_thread_alone() {
    *ENDING.lock().unwrap_or_else(PoisonError::into_inner) = Some(thread::current().id());
}

pub(crate) fn wait_for_others() {
    let until = Instant::now() + PATIENCE;
    while INSIDE.load(Ordering::SeqCst) > 0 && Instant::now() < until {
        thread::sleep(Duration::from_millis(1));
    }
}
