//! Forked children have what their parent had but none of its threads. What lives in threads is
//! the parent's: a child must not touch it, as it would wait for what nobody does.

use std::sync::atomic::{AtomicUsize, Ordering};

use pyo3::prelude::*;
use pyo3::types::PyDict;

static GENERATION: AtomicUsize = AtomicUsize::new(0);

/// Another in each child.
#[cfg_attr(not(target_os = "linux"), allow(dead_code, reason = "for clusters"))]
pub(crate) fn generation() -> usize {
    GENERATION.load(Ordering::Relaxed)
}

#[pyfunction]
fn after_fork() {
    GENERATION.fetch_add(1, Ordering::Relaxed);
    crate::entry::forget_others();
}

pub(crate) fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    let py = module.py();
    let options = PyDict::new(py);
    options.set_item("after_in_child", wrap_pyfunction!(after_fork, module)?)?;
    py.import("os")?
        .call_method("register_at_fork", (), Some(&options))?;
    Ok(())
}
