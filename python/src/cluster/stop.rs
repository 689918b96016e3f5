//! Requests to stop a server, on both of their sides, as Python's objects.

use chrono::{DateTime, SubsecRound, Utc};
use llmlb_lock_cluster::{StopAnswer, StopRequest};
use pyo3::prelude::*;

use crate::arguments::Seconds;
use crate::cluster::call::{Ends, Interrupt, bounded, run};
use crate::cluster::handle::Handle;
use crate::cluster::records::given;
use crate::cluster::watch::Inbox;

/// Requests to stop this server, until it is closed.
#[pyclass(frozen, module = "llmlb_lock._native")]
pub(crate) struct StopRequests(Handle<Inbox<llmlb_lock_cluster::StopRequests, StopRequest>>);

impl StopRequests {
    pub(crate) fn new(requests: llmlb_lock_cluster::StopRequests) -> Self {
        Self(Handle::new("stop requests", Inbox::new(requests), drop))
    }
}

#[pymethods]
impl StopRequests {
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
        let next = llmlb_lock_cluster::StopRequests::next;
        self.0.listen(py, timeout, interrupt, next)
    }

    /// Who asks, and when it was asked.
    fn take(&self) -> PyResult<Option<(String, DateTime<Utc>)>> {
        let request = self.0.get()?.take();
        Ok(request.map(|request| (request.from, request.at.trunc_subsecs(6))))
    }

    fn close(&self, py: Python<'_>) {
        self.0.close(py);
    }
}

/// A request that was written, until it is taken back.
#[pyclass(frozen, module = "llmlb_lock._native")]
pub(crate) struct StopTicket(Handle<llmlb_lock_cluster::StopTicket>);

impl StopTicket {
    pub(crate) fn new(ticket: llmlb_lock_cluster::StopTicket) -> Self {
        Self(Handle::new("request", ticket, drop))
    }
}

#[pymethods]
impl StopTicket {
    #[getter]
    fn open(&self) -> bool {
        self.0.is_open()
    }

    #[getter]
    fn server<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        given(py, self.0.get()?.server())
    }

    fn wait(
        &self,
        py: Python<'_>,
        timeout: Seconds,
        interrupt: Option<&Bound<'_, Interrupt>>,
    ) -> PyResult<&'static str> {
        let answer = self.0.wait(py, &Ends::new(interrupt), move |it, stop| {
            it.wait(bounded(timeout), stop)
        })?;
        Ok(match answer {
            StopAnswer::Stopped => "stopped",
            StopAnswer::Accepted => "accepted",
            _ => "unanswered",
        })
    }

    /// Whether there was something to take back.
    fn close(&self, py: Python<'_>) -> PyResult<bool> {
        let Some(taken) = self.0.take() else {
            return Ok(false);
        };
        run(py, &Ends::new(None), false, move || {
            drop(taken.owned());
            Ok(true)
        })
    }
}
