//! What is counted, and told in Prometheus' text format.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use prometheus::{
    Encoder, HistogramOpts, HistogramVec, IntCounterVec, IntGaugeVec, Opts, Registry, TextEncoder,
    exponential_buckets,
};

use crate::backend::Backend;
use crate::error::Refusal;

pub(crate) const FORMAT: &str = prometheus::TEXT_FORMAT;

/// The code for a request whose client left before it was answered, as nginx counts them.
pub(crate) const CLIENT_LEFT: u16 = 499;

pub(crate) struct Metrics {
    registry: Registry,
    reading: Mutex<()>,
    requests: IntCounterVec,
    in_flight: IntGaugeVec,
    up: IntGaugeVec,
    first_byte: HistogramVec,
    total: HistogramVec,
}

impl Metrics {
    pub(crate) fn new() -> prometheus::Result<Self> {
        // From a cached answer to a generation that takes half an hour.
        let buckets = exponential_buckets(0.001, 2.0, 21)?;
        let seconds = |name, help| HistogramOpts::new(name, help).buckets(buckets.clone());
        let metrics = Self {
            registry: Registry::new(),
            reading: Mutex::new(()),
            requests: IntCounterVec::new(
                Opts::new(
                    "llmlb_requests_total",
                    "Requests by backend (none: the gateway answered) and status code",
                ),
                &["backend", "code"],
            )?,
            in_flight: IntGaugeVec::new(
                Opts::new(
                    "llmlb_requests_in_flight",
                    "Requests in flight, streams included",
                ),
                &["backend"],
            )?,
            up: IntGaugeVec::new(
                Opts::new("llmlb_backend_up", "Whether the backend is up"),
                &["backend"],
            )?,
            first_byte: HistogramVec::new(
                seconds(
                    "llmlb_time_to_first_byte_seconds",
                    "From the request to the first byte of the answer's body",
                ),
                &["backend"],
            )?,
            total: HistogramVec::new(
                seconds(
                    "llmlb_request_duration_seconds",
                    "From the request to the end of the answer",
                ),
                &["backend"],
            )?,
        };
        let registry = &metrics.registry;
        registry.register(Box::new(metrics.requests.clone()))?;
        registry.register(Box::new(metrics.in_flight.clone()))?;
        registry.register(Box::new(metrics.up.clone()))?;
        registry.register(Box::new(metrics.first_byte.clone()))?;
        registry.register(Box::new(metrics.total.clone()))?;
        Ok(metrics)
    }

    /// A request has ended at a backend.
    pub(crate) fn ended(
        &self,
        backend: &str,
        code: u16,
        first_byte: Option<Duration>,
        total: Duration,
    ) {
        self.count(backend, code);
        if let Some(time) = first_byte {
            let histogram = self.first_byte.with_label_values(&[backend]);
            histogram.observe(time.as_secs_f64());
        }
        let histogram = self.total.with_label_values(&[backend]);
        histogram.observe(total.as_secs_f64());
    }

    /// The gateway itself has answered.
    pub(crate) fn refused(&self, refusal: &Refusal) {
        self.count("", refusal.status().as_u16());
    }

    pub(crate) fn count(&self, backend: &str, code: u16) {
        let mut digits = [0; 3];
        for (digit, unit) in digits.iter_mut().zip([100, 10, 1]) {
            *digit = b'0' + u8::try_from(code / unit % 10).unwrap_or(0);
        }
        let code = std::str::from_utf8(&digits).unwrap_or_default();
        self.requests.with_label_values(&[backend, code]).inc();
    }

    /// All of it, with these backends as they are now.
    pub(crate) fn text(&self, backends: &[Arc<Backend>]) -> prometheus::Result<Vec<u8>> {
        // One at a time, so that none sees the gauges of those that are gone half taken away.
        let _alone = self.reading.lock().unwrap_or_else(PoisonError::into_inner);
        self.in_flight.reset();
        self.up.reset();
        for backend in backends {
            let name = backend.name.as_str();
            let in_flight = i64::try_from(backend.in_flight()).unwrap_or(i64::MAX);
            self.in_flight.with_label_values(&[name]).set(in_flight);
            let up = i64::from(backend.is_up());
            self.up.with_label_values(&[name]).set(up);
        }
        let mut text = Vec::new();
        TextEncoder::new().encode(&self.registry.gather(), &mut text)?;
        Ok(text)
    }
}
