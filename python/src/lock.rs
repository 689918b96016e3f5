//! A lock that is held, as Python's object: what `llmlb_lock.ServerLock` stands on.

use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard, PoisonError};

use llmlb_lock_core::{LockError, ServerLock};
use pyo3::exceptions::PyRuntimeError;
use pyo3::prelude::*;
use pyo3::sync::MutexExt;

use crate::arguments::{Pid, Port, Seconds};
use crate::errors::{after_wait, to_python};
use crate::info::LockInfo;
use crate::locks_in;
use crate::wait::{Cancel, Interruption, as_python, detached};

/// A lock that is held, until it is released.
#[pyclass(frozen, module = "llmlb_lock._native")]
pub(crate) struct Lock {
    /// Never kept locked while Python code may run, as a logging handler does.
    lock: Mutex<Option<ServerLock>>,
    port: u16,
}

#[pyfunction]
pub(crate) fn acquire(
    py: Python<'_>,
    directory: Option<PathBuf>,
    port: Port,
    timeout: Option<Seconds>,
    cancel: Option<&Bound<'_, Cancel>>,
) -> PyResult<Lock> {
    let timeout = timeout.map_or_else(Default::default, |timeout| timeout.0);
    let mut interruption = Interruption::new(cancel.map(Bound::get));
    let acquired = detached(py, || {
        locks_in(directory).acquire_interruptible(port.0, timeout, || interruption.happened())
    })?;
    match acquired {
        Ok(lock) => Ok(Lock {
            lock: Mutex::new(Some(lock)),
            port: port.0,
        }),
        Err(e) => Err(interruption
            .error()
            .unwrap_or_else(|| after_wait(py, &e, !timeout.is_zero()))),
    }
}

impl Lock {
    fn get(&self, py: Python<'_>) -> MutexGuard<'_, Option<ServerLock>> {
        // A panic inside leaves the lock as whole as it was.
        self.lock
            .lock_py_attached(py)
            .unwrap_or_else(PoisonError::into_inner)
    }

    fn with<T>(
        &self,
        py: Python<'_>,
        f: impl FnOnce(&mut ServerLock) -> Result<T, LockError>,
    ) -> PyResult<T> {
        match self.get(py).as_mut() {
            Some(lock) => as_python(|| f(lock)).map_err(|e| to_python(py, &e)),
            None => Err(PyRuntimeError::new_err(format!(
                "the lock for port {} is not held",
                self.port
            ))),
        }
    }
}

#[pymethods]
impl Lock {
    #[getter]
    fn held(&self, py: Python<'_>) -> bool {
        self.get(py).is_some()
    }

    #[getter]
    fn info(&self, py: Python<'_>) -> PyResult<LockInfo> {
        self.with(py, |lock| Ok(lock.info().clone().into()))
    }

    #[getter]
    fn path(&self, py: Python<'_>) -> PyResult<PathBuf> {
        self.with(py, |lock| Ok(lock.path().to_path_buf()))
    }

    /// The descriptor with the kernel lock, and the directory's.
    #[cfg(unix)]
    fn filenos(&self, py: Python<'_>) -> PyResult<(i32, i32)> {
        use std::os::fd::{AsFd, AsRawFd};
        self.with(py, |lock| {
            let directory = lock.directory_fd().as_raw_fd();
            Ok((lock.as_fd().as_raw_fd(), directory))
        })
    }

    #[cfg(unix)]
    fn server_id(&self, py: Python<'_>) -> PyResult<String> {
        self.with(py, |lock| Ok(lock.server_id()?.as_str().to_owned()))
    }

    fn verify(&self, py: Python<'_>) -> PyResult<()> {
        self.with(py, |lock| lock.verify())
    }

    fn hand_over(&self, py: Python<'_>, pid: Pid) -> PyResult<()> {
        // 0 is no process, and core says so.
        self.with(py, |lock| lock.hand_over(pid.0.unwrap_or(0)))
    }

    fn adopt(&self, py: Python<'_>) -> PyResult<()> {
        self.with(py, ServerLock::adopt)
    }

    /// Whether there was something to release.
    fn release(&self, py: Python<'_>) -> PyResult<bool> {
        let Some(lock) = self.get(py).take() else {
            return Ok(false);
        };
        detached(py, || lock.release())?.map_err(|e| to_python(py, &e))?;
        Ok(true)
    }
}
