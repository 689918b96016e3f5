//! What Python passes in, checked: nothing that a caller writes may come as a surprise to core.

use std::time::Duration;

use pyo3::exceptions::{PyOverflowError, PyTypeError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::PyBool;

/// An integer; `None` where it is too large for any purpose here.
fn integer(object: Borrowed<'_, '_, PyAny>) -> PyResult<Option<i64>> {
    // True is 1 in Python, and 1 the first of all processes.
    no_bool(object, "an integer")?;
    match object.extract::<i64>() {
        Ok(number) => Ok(Some(number)),
        Err(e) if e.is_instance_of::<PyOverflowError>(object.py()) => Ok(None),
        Err(e) => Err(e),
    }
}

fn no_bool(object: Borrowed<'_, '_, PyAny>, needed: &str) -> PyResult<()> {
    if object.is_instance_of::<PyBool>() {
        let message = format!("{} is not {needed}", object.str()?);
        return Err(PyTypeError::new_err(message));
    }
    Ok(())
}

/// A port from 1 to 65535.
#[derive(Clone, Copy)]
pub(crate) struct Port(pub(crate) u16);

impl FromPyObject<'_, '_> for Port {
    type Error = PyErr;

    fn extract(object: Borrowed<'_, '_, PyAny>) -> PyResult<Self> {
        let port = integer(object)?.and_then(|number| u16::try_from(number).ok());
        match port.filter(|&port| port != 0) {
            Some(port) => Ok(Self(port)),
            None => Err(PyValueError::new_err(format!(
                "Invalid port {}: a lock needs a port from 1 to 65535",
                object.str()?
            ))),
        }
    }
}

/// A process id; `None` for a number that can't be one.
pub(crate) struct Pid(pub(crate) Option<u32>);

impl FromPyObject<'_, '_> for Pid {
    type Error = PyErr;

    fn extract(object: Borrowed<'_, '_, PyAny>) -> PyResult<Self> {
        let number = integer(object)?;
        Ok(Self(number.and_then(|number| u32::try_from(number).ok())))
    }
}

/// A span of seconds; infinity is one without end.
#[derive(Clone, Copy)]
pub(crate) struct Seconds(pub(crate) Duration);

impl FromPyObject<'_, '_> for Seconds {
    type Error = PyErr;

    fn extract(object: Borrowed<'_, '_, PyAny>) -> PyResult<Self> {
        no_bool(object, "a number of seconds")?;
        let seconds: f64 = object.extract()?;
        if seconds.is_nan() || seconds < 0.0 {
            return Err(PyValueError::new_err(format!(
                "Invalid timeout {seconds}: it must be a number of seconds, 0 or more"
            )));
        }
        let longest = Duration::MAX;
        Ok(Self(
            Duration::try_from_secs_f64(seconds).unwrap_or(longest),
        ))
    }
}
