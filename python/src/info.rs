//! What a lock file says, as a Python value that compares, hashes, prints and pickles.

use chrono::{DateTime, FixedOffset, SubsecRound, Utc};
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::types::{PyTuple, PyType};

use crate::arguments::Port;

/// Who guards a port: what a lock file says.
#[pyclass(frozen, eq, hash, get_all, module = "llmlb_lock")]
#[derive(Clone, PartialEq, Eq, Hash)]
pub(crate) struct LockInfo {
    /// The process id of the server.
    pid: u32,
    /// When the server took the lock, or was handed it: aware, in UTC, to the microsecond.
    started_at: DateTime<Utc>,
    /// The guarded port.
    port: u16,
}

impl From<llmlb_lock_core::LockInfo> for LockInfo {
    fn from(info: llmlb_lock_core::LockInfo) -> Self {
        Self {
            pid: info.pid,
            // Another writer's may be finer than what Python can hold.
            started_at: info.started_at.trunc_subsecs(6),
            port: info.port,
        }
    }
}

#[pymethods]
impl LockInfo {
    #[classattr]
    fn __match_args__(py: Python<'_>) -> PyResult<Bound<'_, PyTuple>> {
        PyTuple::new(py, ["pid", "started_at", "port"])
    }

    #[new]
    fn new(pid: i64, started_at: DateTime<FixedOffset>, port: Port) -> PyResult<Self> {
        let pid = u32::try_from(pid)
            .map_err(|_| PyValueError::new_err(format!("Invalid process id {pid}")))?;
        Ok(Self {
            pid,
            started_at: started_at.to_utc(),
            port: port.0,
        })
    }

    /// Reads the content of a lock file. Unknown fields are tolerated.
    #[classmethod]
    fn from_json(_class: &Bound<'_, PyType>, text: &str) -> PyResult<Self> {
        serde_json::from_str::<llmlb_lock_core::LockInfo>(text)
            .map(Self::from)
            .map_err(|e| PyValueError::new_err(e.to_string()))
    }

    /// The content of a lock file.
    fn to_json(&self) -> PyResult<String> {
        let info = llmlb_lock_core::LockInfo {
            pid: self.pid,
            started_at: self.started_at,
            port: self.port,
        };
        serde_json::to_string(&info).map_err(|e| PyValueError::new_err(e.to_string()))
    }

    fn __repr__(slf: &Bound<'_, Self>) -> PyResult<String> {
        let info = slf.get();
        let started_at = slf.getattr("started_at")?.repr()?;
        Ok(format!(
            "LockInfo(pid={}, started_at={started_at}, port={})",
            info.pid, info.port
        ))
    }

    /// For pickle and copy.
    fn __getnewargs__(&self) -> (u32, DateTime<Utc>, u16) {
        (self.pid, self.started_at, self.port)
    }
}
