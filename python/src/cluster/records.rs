//! Records as Python has them: `llmlb_lock/cluster/_records.py`.

use chrono::{DateTime, FixedOffset, SubsecRound};
use llmlb_lock_cluster::Record;
use pyo3::exceptions::{PyOverflowError, PyTypeError};
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyString, PyTuple};

use crate::cluster::errors::to_python;

/// What Python calls a record, checked field by field: what is out of bounds is told by name.
pub(crate) struct Given(pub(crate) Record);

impl FromPyObject<'_, '_> for Given {
    type Error = PyErr;

    fn extract(object: Borrowed<'_, '_, PyAny>) -> PyResult<Self> {
        let py = object.py();
        let class = py
            .import("llmlb_lock.cluster._records")?
            .getattr("Record")?;
        if !object.is_instance(&class)? {
            let kind = object.get_type().name()?;
            return Err(PyTypeError::new_err(format!("{kind} is not a Record")));
        }
        let text = |name: &str| -> PyResult<String> { object.getattr(name)?.extract() };
        let mut record = Record::new(text("service")?, text("host")?, 0);
        record.port = number(&object, "port")?.unwrap_or(0);
        record.url = text("url")?;
        record.pid = number(&object, "pid")?.unwrap_or(0);
        let started_at: DateTime<FixedOffset> = object.getattr("started_at")?.extract()?;
        record.started_at = started_at.to_utc().trunc_subsecs(6);
        record.nonce = text("nonce")?;
        record.token = optional(&object, "token")?;
        record.exclusive = object.getattr("exclusive")?.is_truthy()?;
        record.models = object.getattr("models")?.extract()?;
        record.slots = optional(&object, "slots")?;
        record.software = object.getattr("software")?.extract()?;
        record.version = number(&object, "version")?.unwrap_or(0);
        record.validate().map_err(|e| to_python(py, &e, false))?;
        Ok(Self(record))
    }
}

/// `None` where it does not fit, which a record says in its own words.
fn number<T>(object: &Borrowed<'_, '_, PyAny>, name: &str) -> PyResult<Option<T>>
where
    T: for<'a, 'py> FromPyObject<'a, 'py, Error = PyErr>,
{
    match object.getattr(name)?.extract::<T>() {
        Ok(number) => Ok(Some(number)),
        Err(e) if e.is_instance_of::<PyOverflowError>(object.py()) => Ok(None),
        Err(e) => Err(e),
    }
}

fn optional<T>(object: &Borrowed<'_, '_, PyAny>, name: &str) -> PyResult<Option<T>>
where
    T: for<'a, 'py> FromPyObject<'a, 'py, Error = PyErr>,
{
    let value = object.getattr(name)?;
    if value.is_none() {
        return Ok(None);
    }
    value.extract().map(Some)
}

pub(crate) fn given<'py>(py: Python<'py>, record: &Record) -> PyResult<Bound<'py, PyAny>> {
    let fields = PyDict::new(py);
    fields.set_item("url", &record.url)?;
    fields.set_item("pid", record.pid)?;
    // Another writer's may be finer than what Python can hold.
    fields.set_item("started_at", record.started_at.trunc_subsecs(6))?;
    fields.set_item("nonce", &record.nonce)?;
    fields.set_item("token", record.token)?;
    fields.set_item("exclusive", record.exclusive)?;
    fields.set_item("models", PyTuple::new(py, &record.models)?)?;
    fields.set_item("slots", record.slots)?;
    fields.set_item("software", record.software.as_deref())?;
    fields.set_item("version", record.version)?;
    let who = (
        PyString::new(py, &record.service),
        PyString::new(py, &record.host),
        record.port,
    );
    py.import("llmlb_lock.cluster._records")?
        .getattr("Record")?
        .call(who, Some(&fields))
}
