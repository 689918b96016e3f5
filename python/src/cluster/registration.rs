//! A server that is found, as Python's object.

use pyo3::prelude::*;

use crate::arguments::Seconds;
use crate::cluster::call::{Ends, Interrupt, bounded, run};
use crate::cluster::errors::to_python;
use crate::cluster::handle::Handle;
use crate::cluster::records::Given;

/// A server that is found, until it is withdrawn.
#[pyclass(frozen, module = "llmlb_lock._native")]
pub(crate) struct Registration(Handle<llmlb_lock_cluster::Registration>);

impl Registration {
    pub(crate) fn new(registration: llmlb_lock_cluster::Registration) -> Self {
        Self(Handle::new("registration", registration, drop))
    }
}

#[pymethods]
impl Registration {
    #[getter]
    fn open(&self) -> bool {
        self.0.is_open()
    }

    fn is_registered(&self, py: Python<'_>) -> PyResult<bool> {
        if !self.0.is_open() {
            return Ok(false);
        }
        self.0.look(py, |it| it.is_registered())
    }

    fn wait_registered(
        &self,
        py: Python<'_>,
        timeout: Seconds,
        interrupt: Option<&Bound<'_, Interrupt>>,
    ) -> PyResult<bool> {
        self.0.wait(py, &Ends::new(interrupt), move |it, stop| {
            it.wait_registered(bounded(timeout), stop)
        })
    }

    fn update(&self, py: Python<'_>, record: Given) -> PyResult<()> {
        self.0
            .look(py, |it| it.update(record.0))?
            .map_err(|error| to_python(py, &error, false))
    }

    fn leave(&self, py: Python<'_>) -> PyResult<()> {
        self.0.look(py, |it| it.leave())
    }

    /// Whether there was something to withdraw.
    fn withdraw(&self, py: Python<'_>) -> PyResult<bool> {
        let Some(taken) = self.0.take() else {
            return Ok(false);
        };
        run(py, &Ends::new(None), false, move || {
            taken.owned().withdraw();
            Ok(true)
        })
    }
}
