//! What is counted, and told in Prometheus' text format.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use prometheus::core::{Collector, MetricVec, MetricVecBuilder};
use prometheus::proto::Metric;
use prometheus::{
    Encoder, Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGaugeVec, Opts,
    Registry, TextEncoder, exponential_buckets,
};

use crate::backend::Backend;
use crate::error::Refusal;
use crate::summary::{Summary, label};
use crate::usage::Usage;

pub(crate) const FORMAT: &str = prometheus::TEXT_FORMAT;

/// The code for a request whose client left before it was answered, as nginx counts them.
pub(crate) const CLIENT_LEFT: u16 = 499;

pub(crate) struct Metrics {
    registry: Registry,
    /// What has been forgotten, added up. Held while all is read, so that none sees the gauges of
    /// those that are gone half taken away.
    forgotten: Mutex<Summary>,
    requests: IntCounterVec,
    in_flight: IntGaugeVec,
    up: IntGaugeVec,
    first_byte: HistogramVec,
    total: HistogramVec,
    failures: IntCounterVec,
    retries: IntCounterVec,
    model_requests: IntCounterVec,
    first_token: HistogramVec,
    inter_token: HistogramVec,
    tokens: IntCounterVec,
    queue_depth: IntGaugeVec,
    queue_wait: HistogramVec,
}

/// Of one model at one backend.
const MODEL: &[&str] = &["model", "backend"];

impl Metrics {
    pub(crate) fn new() -> prometheus::Result<Self> {
        let registry = Registry::new();
        let made = Make(&registry);
        // From a cached answer to a generation that takes half an hour.
        let long = exponential_buckets(0.001, 2.0, 21)?;
        let short = exponential_buckets(0.0005, 2.0, 16)?;
        let metrics = Self {
            forgotten: Mutex::default(),
            requests: made.counters(
                "llmlb_requests_total",
                "Requests by backend (none: the gateway answered) and status code; 499: the client \
                 left, 502: the answer broke off",
                &["backend", "code"],
            )?,
            in_flight: made.gauges(
                "llmlb_requests_in_flight",
                "Requests in flight, streams included",
                &["backend"],
            )?,
            up: made.gauges(
                "llmlb_backend_up",
                "Whether the backend is up, and not ejected",
                &["backend"],
            )?,
            first_byte: made.histograms(
                "llmlb_time_to_first_byte_seconds",
                "From the request to the first byte of the answer's body",
                &["backend"],
                &long,
            )?,
            total: made.histograms(
                "llmlb_request_duration_seconds",
                "From the request to the end of the answer",
                &["backend"],
                &long,
            )?,
            failures: made.counters(
                "llmlb_backend_failures_total",
                "Failures by backend and reason",
                &["backend", "reason"],
            )?,
            retries: made.counters(
                "llmlb_retries_total",
                "Requests that went on from this backend, to another or over a new connection",
                &["backend"],
            )?,
            model_requests: made.counters(
                "llmlb_model_requests_total",
                "Requests by model (those that backends list), backend and status code",
                &["model", "backend", "code"],
            )?,
            first_token: made.histograms(
                "llmlb_time_to_first_token_seconds",
                "From the request to the first piece of a streamed answer",
                MODEL,
                &long,
            )?,
            inter_token: made.histograms(
                "llmlb_inter_token_seconds",
                "Between two pieces of a streamed answer",
                MODEL,
                &short,
            )?,
            tokens: made.counters(
                "llmlb_tokens_total",
                "Tokens read (in) and made (out), as the backends' answers tell",
                &["model", "backend", "direction"],
            )?,
            queue_depth: made.gauges(
                "llmlb_queue_depth",
                "Requests that wait for a backend which has as many as it may",
                &[],
            )?,
            queue_wait: made.histograms(
                "llmlb_queue_wait_seconds",
                "How long requests have waited for that, those in vain included",
                &[],
                &long,
            )?,
            registry: registry.clone(),
        };
        let build = made.gauges("llmlb_build_info", "The version that runs", &["version"])?;
        build.with_label_values(&[env!("CARGO_PKG_VERSION")]).set(1);
        Ok(metrics)
    }

    /// A backend has failed a request, or is left out because of that.
    pub(crate) fn failed(&self, backend: &str, reason: &str) {
        self.failures.with_label_values(&[backend, reason]).inc();
    }

    /// A request goes on elsewhere.
    pub(crate) fn retried(&self, backend: &str) {
        self.retries.with_label_values(&[backend]).inc();
    }

    /// The first piece of a streamed answer has come. Returns where the times to the next go.
    pub(crate) fn first_token(&self, model: &str, backend: &Backend, after: Duration) -> Histogram {
        let labels = [model, &backend.name];
        let counters = backend.counters.model(model);
        let first = || self.first_token.with_label_values(&labels);
        let first = counters.first_token.get_or_init(first);
        first.observe(after.as_secs_f64());
        let inter = || self.inter_token.with_label_values(&labels);
        counters.inter_token.get_or_init(inter).clone()
    }

    /// A request for a model that is listed has ended at a backend.
    pub(crate) fn model_ended(
        &self,
        model: &str,
        backend: &Backend,
        code: u16,
        usage: Option<Usage>,
    ) {
        let (name, counters) = (backend.name.as_str(), backend.counters.model(model));
        let counter = |code: &Code| {
            let labels = [model, name, code.text()];
            self.model_requests.with_label_values(&labels)
        };
        count(&counters.ok, code, counter);
        let Some(usage) = usage else {
            return;
        };
        for (cell, direction, count) in [
            (&counters.tokens_in, "in", usage.input),
            (&counters.tokens_out, "out", usage.output),
        ] {
            let tokens = || self.tokens.with_label_values(&[model, name, direction]);
            cell.get_or_init(tokens).inc_by(count);
        }
    }

    /// A request has ended at a backend.
    pub(crate) fn ended(
        &self,
        backend: &Backend,
        code: u16,
        first_byte: Option<Duration>,
        total: Duration,
    ) {
        let (name, counters) = (backend.name.as_str(), &backend.counters);
        count(&counters.ok, code, |code| self.requests_of(name, code));
        if let Some(time) = first_byte {
            let histogram = || self.first_byte.with_label_values(&[name]);
            let histogram = counters.first_byte.get_or_init(histogram);
            histogram.observe(time.as_secs_f64());
        }
        let histogram = || self.total.with_label_values(&[name]);
        let histogram = counters.total.get_or_init(histogram);
        histogram.observe(total.as_secs_f64());
    }

    /// A request has been in the queue for so long.
    pub(crate) fn waited(&self, time: Duration) {
        let wait = self.queue_wait.with_label_values::<&str>(&[]);
        wait.observe(time.as_secs_f64());
    }

    /// The gateway itself has answered.
    pub(crate) fn refused(&self, refusal: &Refusal) {
        self.answered(refusal.status().as_u16());
    }

    /// The same, by the code.
    pub(crate) fn answered(&self, code: u16) {
        self.requests_of("", &Code::new(code)).inc();
    }

    fn requests_of(&self, backend: &str, code: &Code) -> IntCounter {
        self.requests.with_label_values(&[backend, code.text()])
    }

    /// What the page shows.
    pub(crate) fn summary(&self) -> Summary {
        let forgotten = self.forgotten();
        let mut summary = Summary::default();
        summary.add_all(&self.registry.gather(), |_| true);
        summary.add_past(&forgotten);
        summary
    }

    /// Tells no more of backends that are gone.
    pub(crate) fn forget(&self, is_gone: impl Fn(&str) -> bool) {
        // Without a name, it is the gateway that has answered.
        let is_gone = |metric: &Metric| {
            label(metric, "backend").is_some_and(|name| !name.is_empty() && is_gone(name))
        };
        let mut forgotten = self.forgotten();
        let past = &mut *forgotten;
        forget(&self.requests, is_gone, past);
        forget(&self.first_byte, is_gone, past);
        forget(&self.total, is_gone, past);
        forget(&self.failures, is_gone, past);
        forget(&self.retries, is_gone, past);
        forget(&self.model_requests, is_gone, past);
        forget(&self.first_token, is_gone, past);
        forget(&self.inter_token, is_gone, past);
        forget(&self.tokens, is_gone, past);
        let mut present = Summary::default();
        present.add_all(&self.registry.gather(), |_| true);
        past.keep_models_of(&present);
    }

    fn forgotten(&self) -> MutexGuard<'_, Summary> {
        self.forgotten
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// All of it, with these backends as they are now.
    pub(crate) fn text(
        &self,
        backends: &[Arc<Backend>],
        waiting: usize,
    ) -> prometheus::Result<Vec<u8>> {
        let _alone = self.forgotten();
        let depth = self.queue_depth.with_label_values::<&str>(&[]);
        depth.set(i64::try_from(waiting).unwrap_or(i64::MAX));
        self.in_flight.reset();
        self.up.reset();
        for backend in backends {
            let name = backend.name.as_str();
            let in_flight = i64::try_from(backend.in_flight()).unwrap_or(i64::MAX);
            self.in_flight.with_label_values(&[name]).set(in_flight);
            let up = i64::from(backend.is_up() && !backend.is_ejected());
            self.up.with_label_values(&[name]).set(up);
        }
        let mut text = Vec::new();
        TextEncoder::new().encode(&self.registry.gather(), &mut text)?;
        Ok(text)
    }
}

/// Counts one more with this code, of which the counter for 200 is kept.
fn count(ok: &OnceLock<IntCounter>, code: u16, find: impl FnOnce(&Code) -> IntCounter) {
    if code == 200 {
        ok.get_or_init(|| find(&Code::new(code))).inc();
    } else {
        find(&Code::new(code)).inc();
    }
}

/// Takes those out of a family that are gone, and adds them up.
fn forget<T: MetricVecBuilder>(
    family: &MetricVec<T>,
    is_gone: impl Fn(&Metric) -> bool,
    past: &mut Summary,
) {
    let told = family.collect();
    past.add_all(&told, &is_gone);
    let all = told.iter().flat_map(|family| family.get_metric());
    for metric in all.filter(|metric| is_gone(metric)) {
        let labels = metric.get_label().iter();
        let labels: HashMap<_, _> = labels.map(|label| (label.name(), label.value())).collect();
        // It was there a moment ago, and only this takes any away.
        let _ = family.remove(&labels);
    }
}

/// Makes families, and has them told.
struct Make<'a>(&'a Registry);

impl Make<'_> {
    fn register<F: Collector + Clone + 'static>(&self, family: F) -> prometheus::Result<F> {
        self.0.register(Box::new(family.clone()))?;
        Ok(family)
    }

    fn counters(
        &self,
        name: &str,
        help: &str,
        labels: &[&str],
    ) -> prometheus::Result<IntCounterVec> {
        self.register(IntCounterVec::new(Opts::new(name, help), labels)?)
    }

    fn gauges(&self, name: &str, help: &str, labels: &[&str]) -> prometheus::Result<IntGaugeVec> {
        self.register(IntGaugeVec::new(Opts::new(name, help), labels)?)
    }

    fn histograms(
        &self,
        name: &str,
        help: &str,
        labels: &[&str],
        buckets: &[f64],
    ) -> prometheus::Result<HistogramVec> {
        let options = HistogramOpts::new(name, help).buckets(buckets.to_vec());
        self.register(HistogramVec::new(options, labels)?)
    }
}

/// A status code as a label, without the heap.
struct Code([u8; 3]);

impl Code {
    fn new(code: u16) -> Self {
        let digit = |unit| b'0' + u8::try_from(code / unit % 10).unwrap_or(0);
        Self([digit(100), digit(10), digit(1)])
    }

    fn text(&self) -> &str {
        std::str::from_utf8(&self.0).unwrap_or_default()
    }
}
