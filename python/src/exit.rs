//! The interpreter's end: a thread that comes back to it after that is ended in the midst of Rust,
//! which may take the process with it.

use std::sync::Mutex;
use std::sync::PoisonError;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::{self, ThreadId};
use std::time::{Duration, Instant};

use pyo3::prelude::*;

/// A handler of the user's may take its time; the end of a process may not.
const PATIENCE: Duration = Duration::from_secs(1);

static BEGUN: AtomicBool = AtomicBool::new(false);
/// How many threads are on their way into the interpreter.
static INSIDE: AtomicUsize = AtomicUsize::new(0);
/// Who ends it, and may go on.
static ENDING: Mutex<Option<ThreadId>> = Mutex::new(None);

/// Whether the interpreter is shutting down: handlers of logs may be gone.
pub(crate) fn has_begun() -> bool {
    BEGUN.load(Ordering::SeqCst)
}

/// The right to enter the interpreter; it does not end meanwhile.
#[cfg_attr(not(target_os = "linux"), allow(dead_code, reason = "for the cluster"))]
pub(crate) struct Entry(());

#[cfg_attr(not(target_os = "linux"), allow(dead_code, reason = "for the cluster"))]
impl Entry {
    /// `None` when it is too late.
    pub(crate) fn new() -> Option<Self> {
        INSIDE.fetch_add(1, Ordering::SeqCst);
        let entry = Self(());
        let ending = || *ENDING.lock().unwrap_or_else(PoisonError::into_inner);
        if has_begun() && ending() != Some(thread::current().id()) {
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
#[cfg(unix)]
pub(crate) fn forget_others() {
    INSIDE.store(0, Ordering::SeqCst);
}

#[pyfunction]
fn at_exit(py: Python<'_>) {
    *ENDING.lock().unwrap_or_else(PoisonError::into_inner) = Some(thread::current().id());
    BEGUN.store(true, Ordering::SeqCst);
    py.detach(|| {
        let until = Instant::now() + PATIENCE;
        while INSIDE.load(Ordering::SeqCst) > 0 && Instant::now() < until {
            thread::sleep(Duration::from_millis(1));
        }
    });
}

pub(crate) fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    let py = module.py();
    let at_exit = wrap_pyfunction!(at_exit, module)?;
    py.import("atexit")?.call_method1("register", (at_exit,))?;
    Ok(())
}
