//! The cluster's errors as the exceptions of `llmlb_lock/cluster/_errors.py`.

use llmlb_lock_cluster::ClusterError;
use pyo3::prelude::*;
use pyo3::types::PyDict;

/// The exception for `error`; after a wait, running out of time is one of its own.
pub(crate) fn to_python(py: Python<'_>, error: &ClusterError, waited: bool) -> PyErr {
    raise(py, error, waited).unwrap_or_else(|e| e)
}

fn raise(py: Python<'_>, error: &ClusterError, waited: bool) -> PyResult<PyErr> {
    let details = PyDict::new(py);
    let mut cause = None;
    let class = match error {
        ClusterError::InvalidUrl { url, reason } => {
            details.set_item("url", url)?;
            details.set_item("reason", reason)?;
            "InvalidUrl"
        }
        ClusterError::Certificate { path, reason } => {
            details.set_item("path", path)?;
            details.set_item("reason", reason)?;
            "CertificateError"
        }
        ClusterError::InvalidTiming { reason } => {
            details.set_item("reason", reason)?;
            "InvalidTiming"
        }
        ClusterError::InvalidRecord { what, reason } => {
            details.set_item("what", what)?;
            details.set_item("reason", reason)?;
            "InvalidRecord"
        }
        ClusterError::AlreadyActive {
            service,
            host,
            port,
            pid,
            started_at,
            token,
        } => {
            details.set_item("service", service)?;
            details.set_item("host", host)?;
            details.set_item("port", port)?;
            details.set_item("pid", pid)?;
            details.set_item("started_at", started_at)?;
            details.set_item("token", token)?;
            if waited {
                "AcquireTimeout"
            } else {
                "AlreadyActive"
            }
        }
        ClusterError::ActiveUnknown {
            service,
            key,
            reason,
        } => {
            details.set_item("service", service)?;
            details.set_item("key", key)?;
            details.set_item("reason", reason)?;
            "ActiveUnknown"
        }
        ClusterError::NotYet { service, wait } => {
            details.set_item("service", service)?;
            details.set_item("wait", wait.as_secs_f64())?;
            "NotYet"
        }
        ClusterError::Unreachable { endpoints } => {
            let endpoints: Vec<_> = endpoints
                .iter()
                .map(|endpoint| (&endpoint.address, &endpoint.reason))
                .collect();
            details.set_item("endpoints", endpoints)?;
            "Unreachable"
        }
        ClusterError::Refused {
            address,
            code,
            message,
        } => {
            details.set_item("address", address)?;
            details.set_item("code", code)?;
            details.set_item("message", message)?;
            "Refused"
        }
        ClusterError::NotEtcd { address, reason } => {
            details.set_item("address", address)?;
            details.set_item("reason", reason)?;
            "NotEtcd"
        }
        ClusterError::Corrupt { key, reason } => {
            details.set_item("key", key)?;
            details.set_item("reason", reason)?;
            "Corrupt"
        }
        ClusterError::Lost {
            service,
            token,
            reason,
        } => {
            details.set_item("service", service)?;
            details.set_item("token", token)?;
            details.set_item("reason", reason)?;
            "LeaseLost"
        }
        ClusterError::ReleaseFailed {
            service,
            ttl,
            source,
        } => {
            details.set_item("service", service)?;
            details.set_item("ttl", ttl.as_secs_f64())?;
            cause = Some(to_python(py, source, false));
            "LeaseNotReleased"
        }
        ClusterError::Thread(source) => {
            if let Some(errno) = source.raw_os_error() {
                details.set_item("errno", errno)?;
            }
            "ThreadError"
        }
        ClusterError::Watchdog(source) => {
            if let Some(errno) = source.raw_os_error() {
                details.set_item("errno", errno)?;
            }
            "WatchdogError"
        }
        ClusterError::Interrupted => "Interrupted",
        _ => "ClusterError",
    };
    let class = py.import("llmlb_lock.cluster._errors")?.getattr(class)?;
    let exception = class.call((error.to_string(),), Some(&details))?;
    let exception = PyErr::from_value(exception);
    if cause.is_some() {
        exception.set_cause(py, cause);
    }
    Ok(exception)
}
