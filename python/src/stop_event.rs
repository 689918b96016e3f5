//! Being asked to stop, on Windows: an event of the system's in place of SIGTERM, for which Python
//! has a module of its own.

use std::os::windows::io::{AsHandle, AsRawHandle};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::sync::MutexExt;

use crate::arguments::Seconds;
use crate::wait::{Cancel, Interruption, SIGNALS_STEP, detached};

/// Requests to end that `stop_server` makes of this process, until it is closed.
///
/// A server that listens is asked to end, and has the time that the caller gives it; one that does
/// not is terminated at once. Make it before acquiring. Raises FileExistsError if this process
/// listens already.
#[pyclass(frozen, module = "llmlb_lock")]
pub(crate) struct StopEvent(Mutex<Option<Arc<llmlb_lock_core::StopEvent>>>);

impl StopEvent {
    fn lock(&self, py: Python<'_>) -> MutexGuard<'_, Option<Arc<llmlb_lock_core::StopEvent>>> {
        self.0
            .lock_py_attached(py)
            .unwrap_or_else(PoisonError::into_inner)
    }

    fn get(&self, py: Python<'_>) -> PyResult<Arc<llmlb_lock_core::StopEvent>> {
        let event = self.lock(py).clone();
        event.ok_or_else(|| PyValueError::new_err("the stop event is closed"))
    }
}

#[pymethods]
impl StopEvent {
    #[new]
    fn new() -> PyResult<Self> {
        let event = llmlb_lock_core::StopEvent::listen()?;
        Ok(Self(Mutex::new(Some(Arc::new(event)))))
    }

    /// Waits for the next request; False when `timeout` seconds have run out first. Each request
    /// ends one wait, and one that comes while nobody waits ends the next. Ctrl-C ends it, too.
    #[pyo3(signature = (timeout = None))]
    fn wait(&self, py: Python<'_>, timeout: Option<Seconds>) -> PyResult<bool> {
        let event = self.get(py)?;
        let mut left = timeout.map_or(Duration::MAX, |timeout| timeout.0);
        let mut interruption = Interruption::new(None::<&Cancel>);
        detached(py, || {
            loop {
                let step = left.min(SIGNALS_STEP);
                if event.wait(Some(step))? {
                    return Ok(true);
                }
                left -= step;
                if left.is_zero() {
                    return Ok(false);
                }
                if interruption.happened()
                    && let Some(raised) = interruption.error()
                {
                    return Err(raised);
                }
            }
        })?
    }

    /// The event's HANDLE, to wait for it beside other things; it stays this object's.
    #[getter]
    fn handle(&self, py: Python<'_>) -> PyResult<usize> {
        Ok(self.get(py)?.as_handle().as_raw_handle() as usize)
    }

    /// Listens no longer, once no wait does.
    fn close(&self, py: Python<'_>) {
        self.lock(py).take();
    }

    fn __enter__(slf: Py<Self>) -> Py<Self> {
        slf
    }

    fn __exit__(
        &self,
        py: Python<'_>,
        _kind: &Bound<'_, PyAny>,
        _error: &Bound<'_, PyAny>,
        _traceback: &Bound<'_, PyAny>,
    ) {
        self.close(py);
    }
}
