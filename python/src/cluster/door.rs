//! A cluster, as Python's object: what `llmlb_lock.cluster.Cluster` stands on.

use std::path::PathBuf;
use std::time::Duration;

use llmlb_lock_cluster::{ClusterUrl, Options, Timing};
use pyo3::prelude::*;

use crate::arguments::Seconds;
use crate::cluster::call::{Ends, Interrupt, bounded, run, run_with_notes};
use crate::cluster::errors::to_python;
use crate::cluster::records::{Given, given};
use crate::cluster::{Exclusive, Registration, StopRequests, StopTicket, Watch};
use crate::wait::detached;

/// One etcd, below one prefix.
#[pyclass(frozen, module = "llmlb_lock._native")]
pub(crate) struct Cluster(llmlb_lock_cluster::Cluster);

/// Records, each with whether it is registered and whether it leaves; keys that are none, each with
/// the reason.
type ListingFields<'py> = (Vec<(Bound<'py, PyAny>, bool, bool)>, Vec<(String, String)>);

#[pymethods]
impl Cluster {
    #[new]
    fn new(
        py: Python<'_>,
        url: &str,
        login: Option<(String, String)>,
        ca: Option<PathBuf>,
        certificate: Option<(PathBuf, PathBuf)>,
    ) -> PyResult<Self> {
        let connected = detached(py, || {
            let mut url = ClusterUrl::parse(url)?;
            if let Some((user, password)) = login {
                url = url.with_user(user, password);
            }
            if let Some(ca) = ca {
                url = url.with_ca(ca);
            }
            if let Some((certificate, key)) = certificate {
                url = url.with_certificate(certificate, key);
            }
            llmlb_lock_cluster::Cluster::connect(&url)
        })?;
        connected
            .map(Self)
            .map_err(|error| to_python(py, &error, false))
    }

    fn register(&self, py: Python<'_>, record: Given, ttl: Seconds) -> PyResult<Registration> {
        let ttl = bounded(ttl).max(Duration::from_secs(1));
        let registered = detached(py, || self.0.register_with_ttl(record.0, ttl))?;
        registered
            .map(Registration::new)
            .map_err(|error| to_python(py, &error, false))
    }

    #[expect(clippy::too_many_arguments, reason = "Python names them")]
    fn acquire(
        &self,
        py: Python<'_>,
        service: String,
        record: Given,
        ttl: Seconds,
        drain: Seconds,
        lock_delay: Seconds,
        self_fencing: bool,
        timeout: Option<Seconds>,
        on_wait: Option<Bound<'_, PyAny>>,
        interrupt: Option<&Bound<'_, Interrupt>>,
    ) -> PyResult<Exclusive> {
        let ends = Ends::new(interrupt);
        let timing = Timing::new(bounded(ttl), bounded(drain))
            .map_err(|error| to_python(py, &error, false))?;
        let mut options = Options::new(record.0, timing)
            .with_lock_delay(bounded(lock_delay))
            .with_interrupt(&ends.interrupt);
        if self_fencing {
            let fenced = options.with_self_fencing();
            options = fenced.map_err(|error| to_python(py, &error, false))?;
        }
        let heard = |reason: PyErr| match &on_wait {
            Some(call) => call.call1((reason.into_value(py),)).map(drop),
            None => Ok(()),
        };
        let cluster = self.0.clone();
        let exclusive = run_with_notes(py, &ends, timeout.is_some(), heard, move |notes| {
            let options = options.on_wait(move |reason| notes.say(reason));
            match timeout {
                None => cluster.acquire(&service, options),
                Some(timeout) => {
                    let timeout = (timeout.0 != Duration::MAX).then(|| bounded(timeout));
                    cluster.acquire_timeout(&service, options, timeout)
                }
            }
        })?;
        Ok(Exclusive::new(exclusive))
    }

    fn servers<'py>(
        &self,
        py: Python<'py>,
        service: Option<String>,
        interrupt: Option<&Bound<'_, Interrupt>>,
    ) -> PyResult<ListingFields<'py>> {
        let ends = Ends::new(interrupt);
        let (cluster, stop) = (self.0.clone(), ends.interrupt.clone());
        let listing = run(py, &ends, false, move || {
            cluster.servers(service.as_deref(), &stop)
        })?;
        let servers = listing
            .servers
            .iter()
            .map(|server| {
                let record = given(py, &server.record)?;
                Ok((record, server.registered, server.leaving))
            })
            .collect::<PyResult<_>>()?;
        let skipped = listing.skipped.into_iter();
        Ok((servers, skipped.map(|one| (one.key, one.reason)).collect()))
    }

    fn watch(&self, py: Python<'_>, service: Option<&str>) -> PyResult<Watch> {
        detached(py, || self.0.watch(service))?
            .map(Watch::new)
            .map_err(|error| to_python(py, &error, false))
    }

    fn request_stop(
        &self,
        py: Python<'_>,
        server: Given,
        from_host: String,
        interrupt: Option<&Bound<'_, Interrupt>>,
    ) -> PyResult<StopTicket> {
        let ends = Ends::new(interrupt);
        let (cluster, stop) = (self.0.clone(), ends.interrupt.clone());
        run(py, &ends, false, move || {
            cluster.request_stop(&server.0, &from_host, &stop)
        })
        .map(StopTicket::new)
    }

    fn stop_requests(&self, py: Python<'_>, server: Given) -> PyResult<StopRequests> {
        detached(py, || self.0.stop_requests(&server.0))?
            .map(StopRequests::new)
            .map_err(|error| to_python(py, &error, false))
    }
}
