//! Being the active server, as Python's object.

use std::time::Duration;

use llmlb_lock_cluster::{BootTime, Record};
use pyo3::prelude::*;

use crate::arguments::Seconds;
use crate::cluster::call::{Ends, Interrupt, bounded, run};
use crate::cluster::handle::Handle;
use crate::cluster::records::given;

/// This server is the active one, until it is released.
#[pyclass(frozen, module = "llmlb_lock._native")]
pub(crate) struct Exclusive {
    handle: Handle<llmlb_lock_cluster::Exclusive>,
    token: u64,
    record: Record,
}

impl Exclusive {
    pub(crate) fn new(exclusive: llmlb_lock_cluster::Exclusive) -> Self {
        Self {
            token: exclusive.token(),
            record: exclusive.record().clone(),
            // Whoever has lost sight of it may still serve.
            handle: Handle::new("lease", exclusive, |it| it.abandon()),
        }
    }
}

/// Seconds on the boot clock, as `time.clock_gettime` gives them.
fn seconds(time: BootTime) -> f64 {
    Duration::from_nanos(time.as_nanos()).as_secs_f64()
}

#[pymethods]
impl Exclusive {
    #[getter]
    fn open(&self) -> bool {
        self.handle.is_open()
    }

    #[getter]
    fn token(&self) -> u64 {
        self.token
    }

    #[getter]
    fn record<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        given(py, &self.record)
    }

    #[getter]
    fn deadline(&self, py: Python<'_>) -> PyResult<f64> {
        self.handle.look(py, |it| seconds(it.deadline()))
    }

    #[getter]
    fn kill_at(&self, py: Python<'_>) -> PyResult<f64> {
        self.handle.look(py, |it| seconds(it.kill_at()))
    }

    #[getter]
    fn remaining(&self, py: Python<'_>) -> PyResult<f64> {
        self.handle.look(py, |it| it.remaining().as_secs_f64())
    }

    /// Reason and deadline.
    fn wait_lost(
        &self,
        py: Python<'_>,
        timeout: Option<Seconds>,
        interrupt: Option<&Bound<'_, Interrupt>>,
    ) -> PyResult<Option<(String, f64)>> {
        let lost = self
            .handle
            .wait(py, &Ends::new(interrupt), move |it, stop| {
                it.wait_lost_or(timeout.map(bounded), stop)
            })?;
        Ok(lost.map(|lost| (lost.reason, seconds(lost.deadline))))
    }

    /// Whether there was something to release.
    fn release(&self, py: Python<'_>) -> PyResult<bool> {
        let Some(taken) = self.handle.take() else {
            return Ok(false);
        };
        run(py, &Ends::new(None), false, move || {
            taken.owned().release().map(|()| true)
        })
    }

    /// Whether there was something to abandon.
    fn abandon(&self) -> bool {
        let Some(taken) = self.handle.take() else {
            return false;
        };
        crate::cluster::call::in_background(move || taken.owned().abandon());
        true
    }
}
