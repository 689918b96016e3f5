//! Calls that wait for etcd. Each runs in a thread of its own, so that signal handlers have their
//! turn whatever it waits for, be it a host that does not even refuse a connection.

use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::thread;
use std::time::Duration;

use llmlb_lock_cluster::ClusterError;
use pyo3::exceptions::PyRuntimeError;
use pyo3::prelude::*;

use crate::arguments::Seconds;
use crate::cluster::errors::to_python;
use crate::entry::Entry;
use crate::logging;
use crate::wait::SIGNALS_STEP;

/// So long a call that was interrupted may take to end by itself. Then it is left to.
const GRACE: Duration = Duration::from_millis(30);
/// Further than anybody waits, and near enough to calculate with.
const FOR_EVER: Duration = Duration::from_secs(3_000_000_000);

/// Ends the waits that it was given to.
#[pyclass(frozen, module = "llmlb_lock._native")]
pub(crate) struct Interrupt(pub(crate) llmlb_lock_cluster::Interrupt);

#[pymethods]
impl Interrupt {
    #[new]
    fn new() -> Self {
        Self(llmlb_lock_cluster::Interrupt::new())
    }

    fn set(&self, py: Python<'_>) {
        py.detach(|| self.0.interrupt());
    }
}

/// Whoever brings an interrupt ends the call by it, and needs no signals: it is another thread's.
pub(crate) struct Ends {
    pub(crate) interrupt: llmlb_lock_cluster::Interrupt,
    by_signals: bool,
}

impl Ends {
    pub(crate) fn new(interrupt: Option<&Bound<'_, Interrupt>>) -> Self {
        Self {
            interrupt: interrupt.map_or_else(Default::default, |given| given.get().0.clone()),
            by_signals: interrupt.is_none(),
        }
    }
}

/// Infinity is a long time.
pub(crate) fn bounded(timeout: Seconds) -> Duration {
    timeout.0.min(FOR_EVER)
}

enum Message<T> {
    Note(PyErr),
    Done(Result<T, ClusterError>),
}

/// Sends what is said of a call while it lasts.
pub(crate) struct Notes<T>(Sender<Message<T>>);

impl<T> Notes<T> {
    /// Not lost, unless the call was left or the interpreter ends.
    pub(crate) fn say(&self, error: &ClusterError) {
        let Some(_entry) = Entry::new() else { return };
        if let Some(error) = Python::try_attach(|py| to_python(py, error, false)) {
            let _ = self.0.send(Message::Note(error));
        }
    }
}

/// Runs `work` without the interpreter's lock.
pub(crate) fn run<T: Send + 'static>(
    py: Python<'_>,
    ends: &Ends,
    waits: bool,
    work: impl FnOnce() -> Result<T, ClusterError> + Send + 'static,
) -> PyResult<T> {
    run_with_notes(py, ends, waits, |_| Ok(()), |_| work())
}

/// The same, with what is said meanwhile given to `heard`, which may end it.
pub(crate) fn run_with_notes<T: Send + 'static>(
    py: Python<'_>,
    ends: &Ends,
    waits: bool,
    mut heard: impl FnMut(PyErr) -> PyResult<()>,
    work: impl FnOnce(Notes<T>) -> Result<T, ClusterError> + Send + 'static,
) -> PyResult<T> {
    logging::connect(py)?;
    let (tell, mut told) = mpsc::channel();
    let notes = Notes(tell.clone());
    thread::Builder::new()
        .name("llmlb-call".into())
        // When nobody listens any more, what it has got is dropped there.
        .spawn(move || drop(tell.send(Message::Done(work(notes)))))?;
    let step = if ends.by_signals {
        SIGNALS_STEP
    } else {
        FOR_EVER
    };
    loop {
        let (message, entry);
        (message, told, entry) = py.detach(move || {
            let message = told.recv_timeout(step);
            (message, told, Entry::or_stay())
        });
        drop(entry);
        let raised = match message {
            Ok(Message::Done(Ok(value))) => return Ok(value),
            Ok(Message::Done(Err(error))) => return Err(to_python(py, &error, waits)),
            Ok(Message::Note(error)) => heard(error),
            Err(RecvTimeoutError::Timeout) => py.check_signals(),
            Err(RecvTimeoutError::Disconnected) => {
                return Err(PyRuntimeError::new_err("a thread of llmlb_lock has failed"));
            }
        };
        if let Err(raised) = raised {
            py.detach(move || leave(&ends.interrupt, told));
            return Err(raised);
        }
    }
}

/// Whatever it still gets is dropped in a thread, as that may take its time.
fn leave<T: Send + 'static>(
    interrupt: &llmlb_lock_cluster::Interrupt,
    told: mpsc::Receiver<Message<T>>,
) {
    interrupt.interrupt();
    while let Ok(message) = told.recv_timeout(GRACE) {
        if let Message::Done(done) = message {
            in_background(move || drop(done));
            return;
        }
    }
}

/// For what may take its time and has nobody to wait for it.
pub(crate) fn in_background(work: impl FnOnce() + Send + 'static) {
    // Without a thread the closure is dropped, and does it here.
    let _ = thread::Builder::new().name("llmlb-call".into()).spawn(work);
}
