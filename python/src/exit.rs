//! The interpreter's end: handlers of logs may be gone from then on.

use std::sync::atomic::{AtomicBool, Ordering};

use pyo3::prelude::*;

static BEGUN: AtomicBool = AtomicBool::new(false);

pub(crate) fn has_begun() -> bool {
    BEGUN.load(Ordering::SeqCst)
}

#[pyfunction]
#[cfg_attr(not(target_os = "linux"), expect(unused_variables))]
fn at_exit(py: Python<'_>) {
    #[cfg(target_os = "linux")]
    crate::entry::let_in_this_thread_alone();
    BEGUN.store(true, Ordering::SeqCst);
    #[cfg(target_os = "linux")]
    py.detach(crate::entry::wait_for_others);
}

pub(crate) fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    let py = module.py();
    let at_exit = wrap_pyfunction!(at_exit, module)?;
    py.import("atexit")?.call_method1("register", (at_exit,))?;
    Ok(())
}
