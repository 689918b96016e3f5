//! Core's errors as the exceptions of `llmlb_lock/_errors.py`.

use llmlb_lock_core::LockError;
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::types::PyDict;

/// The exception for `error`, with its details as attributes.
pub(crate) fn to_python(py: Python<'_>, error: &LockError) -> PyErr {
    raise(py, error, false).unwrap_or_else(|e| e)
}

/// The same for an acquire that `waited`: running out of time is a `LockTimeout`.
pub(crate) fn after_wait(py: Python<'_>, error: &LockError, waited: bool) -> PyErr {
    raise(py, error, waited).unwrap_or_else(|e| e)
}

fn raise(py: Python<'_>, error: &LockError, waited: bool) -> PyResult<PyErr> {
    let details = PyDict::new(py);
    let class = match error {
        LockError::AlreadyRunning {
            port,
            pid,
            started_at,
        } => {
            details.set_item("port", port)?;
            details.set_item("pid", pid)?;
            details.set_item("started_at", started_at)?;
            if waited {
                "LockTimeout"
            } else {
                "AlreadyRunning"
            }
        }
        LockError::HeldByUnknown { port, path } => {
            details.set_item("port", port)?;
            details.set_item("path", path.as_path())?;
            "HeldByUnknown"
        }
        LockError::Lost { port, path } => {
            details.set_item("port", port)?;
            details.set_item("path", path.as_path())?;
            "Lost"
        }
        LockError::NoSuchProcess { port, pid } => {
            details.set_item("port", port)?;
            details.set_item("pid", pid)?;
            "NoSuchProcess"
        }
        LockError::NotOwner { port, owner } => {
            details.set_item("port", port)?;
            details.set_item("owner", owner)?;
            "NotOwner"
        }
        LockError::NotHolder {
            port,
            pid,
            path,
            reason,
        } => {
            details.set_item("port", port)?;
            details.set_item("pid", pid)?;
            details.set_item("path", path.as_path())?;
            details.set_item("reason", reason)?;
            "NotHolder"
        }
        LockError::InvalidPort { .. } => return Ok(PyValueError::new_err(error.to_string())),
        LockError::Corrupted(_) => "Corrupted",
        LockError::AcquireFailed(_) => "AcquireFailed",
        LockError::ReleaseFailed(_) => "ReleaseFailed",
        LockError::DirectoryCreationFailed(_) => "DirectoryCreationFailed",
        LockError::HandOverFailed(_) => "HandOverFailed",
        LockError::ReadFailed(_) => "ReadFailed",
        LockError::StopFailed(_) => "StopFailed",
        _ => "LockError",
    };
    if let Some(errno) = error.raw_os_error() {
        details.set_item("errno", errno)?;
    }
    let class = py.import("llmlb_lock._errors")?.getattr(class)?;
    let advice = py.import("llmlb_lock._advice")?;
    let message = advice.call_method1("of_package", (error.to_string(),))?;
    let exception = class.call((message,), Some(&details))?;
    Ok(PyErr::from_value(exception))
}
