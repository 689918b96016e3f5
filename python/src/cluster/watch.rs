//! Servers as they come and go, as Python's object.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use llmlb_lock_cluster::{Change, ClusterError, Interrupt as Stop};
use pyo3::prelude::*;
use pyo3::types::PyTuple;

use crate::arguments::Seconds;
use crate::cluster::call::{Ends, Interrupt, bounded};
use crate::cluster::handle::Handle;
use crate::cluster::records::given;

/// Waiting and taking are two: a wait that is cancelled in the moment in which something comes
/// must not lose it.
pub(crate) struct Inbox<S, T> {
    source: Mutex<S>,
    came: Mutex<VecDeque<T>>,
}

impl<S, T> Inbox<S, T> {
    pub(crate) fn new(source: S) -> Self {
        Self {
            source: Mutex::new(source),
            came: Mutex::default(),
        }
    }

    fn came(&self) -> MutexGuard<'_, VecDeque<T>> {
        self.came.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether there is something to take.
    pub(crate) fn wait(
        &self,
        next: impl FnOnce(&S) -> Result<Option<T>, ClusterError>,
    ) -> Result<bool, ClusterError> {
        let source = self.source.lock().unwrap_or_else(PoisonError::into_inner);
        if !self.came().is_empty() {
            return Ok(true);
        }
        let Some(next) = next(&source)? else {
            return Ok(false);
        };
        self.came().push_back(next);
        Ok(true)
    }

    pub(crate) fn take(&self) -> Option<T> {
        self.came().pop_front()
    }
}

impl<S: Send + 'static, T: Send + 'static> Handle<Inbox<S, T>> {
    /// Waits for something to take, which `next` has from the source.
    pub(crate) fn listen(
        &self,
        py: Python<'_>,
        timeout: Option<Seconds>,
        interrupt: Option<&Bound<'_, Interrupt>>,
        next: impl FnOnce(&S, Option<Duration>, &Stop) -> Result<Option<T>, ClusterError>
        + Send
        + 'static,
    ) -> PyResult<bool> {
        self.wait(py, &Ends::new(interrupt), move |inbox, stop| {
            inbox.wait(|source| next(source, timeout.map(bounded), stop))
        })
    }
}

/// Follows the servers of one service, or of all, until it is closed.
#[pyclass(frozen, module = "llmlb_lock._native")]
pub(crate) struct Watch(Handle<Inbox<llmlb_lock_cluster::Watch, Change>>);

impl Watch {
    pub(crate) fn new(watch: llmlb_lock_cluster::Watch) -> Self {
        Self(Handle::new("watch", Inbox::new(watch), drop))
    }
}

#[pymethods]
impl Watch {
    #[getter]
    fn open(&self) -> bool {
        self.0.is_open()
    }

    fn wait(
        &self,
        py: Python<'_>,
        timeout: Option<Seconds>,
        interrupt: Option<&Bound<'_, Interrupt>>,
    ) -> PyResult<bool> {
        let next = llmlb_lock_cluster::Watch::next;
        self.0.listen(py, timeout, interrupt, next)
    }

    /// What kind it is of, and what it says.
    fn take<'py>(&self, py: Python<'py>) -> PyResult<Option<(&'static str, Bound<'py, PyTuple>)>> {
        let Some(change) = self.0.get()?.take() else {
            return Ok(None);
        };
        let (kind, told) = match change {
            Change::Snapshot(records) => {
                let records = records
                    .iter()
                    .map(|record| given(py, record))
                    .collect::<PyResult<Vec<_>>>()?;
                ("Snapshot", (PyTuple::new(py, records)?,).into_pyobject(py)?)
            }
            Change::Up(record) => ("Up", (given(py, &record)?,).into_pyobject(py)?),
            Change::Down { service, instance } => ("Down", (service, instance).into_pyobject(py)?),
            Change::Outage(reason) => ("Outage", (reason,).into_pyobject(py)?),
            Change::Back => ("Back", PyTuple::empty(py)),
            // What a newer library tells beside.
            _ => return Ok(None),
        };
        Ok(Some((kind, told)))
    }

    fn close(&self, py: Python<'_>) {
        self.0.close(py);
    }
}
