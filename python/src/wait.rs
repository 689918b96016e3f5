//! Long calls: without the interpreter's lock, ended by signal handlers that raise and by [`Cancel`].

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use pyo3::prelude::*;

use crate::logging;

/// How often signal handlers get their turn: a wait calls back more often than that.
pub(crate) const SIGNALS_STEP: Duration = Duration::from_millis(50);

/// Runs `f` without the interpreter's lock. What a logging handler raises meanwhile is raised,
/// and the value dropped.
pub(crate) fn detached<T: Send>(py: Python<'_>, f: impl FnOnce() -> T + Send) -> PyResult<T> {
    logging::connect(py)?;
    let value = py.detach(|| as_python(f));
    match PyErr::take(py) {
        Some(raised) => Err(raised),
        None => Ok(value),
    }
}

/// Runs `f` as a part of a Python thread, which may go back there to log.
pub(crate) fn as_python<T>(f: impl FnOnce() -> T) -> T {
    #[cfg(target_os = "linux")]
    return crate::log_queue::in_python_thread(f);
    #[cfg(not(target_os = "linux"))]
    f()
}

/// Ends a wait in another thread.
#[pyclass(frozen, module = "llmlb_lock._native")]
pub(crate) struct Cancel(AtomicBool);

#[pymethods]
impl Cancel {
    #[new]
    fn new() -> Self {
        Self(AtomicBool::new(false))
    }

    fn set(&self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// What may end a wait, to be asked every few milliseconds.
pub(crate) struct Interruption<'a> {
    cancel: Option<&'a Cancel>,
    looked: Instant,
    raised: Option<PyErr>,
}

impl<'a> Interruption<'a> {
    pub(crate) fn new(cancel: Option<&'a Cancel>) -> Self {
        Self {
            cancel,
            looked: Instant::now(),
            raised: None,
        }
    }

    pub(crate) fn happened(&mut self) -> bool {
        if self
            .cancel
            .is_some_and(|cancel| cancel.0.load(Ordering::Relaxed))
        {
            return true;
        }
        if self.looked.elapsed() < SIGNALS_STEP {
            return false;
        }
        self.raised = Python::attach(|py| py.check_signals()).err();
        self.looked = Instant::now();
        self.raised.is_some()
    }

    /// What a signal handler raised, such as `KeyboardInterrupt`.
    pub(crate) fn error(&mut self) -> Option<PyErr> {
        self.raised.take()
    }
}
