//! What an answer about a model is measured by: when its pieces come, and what it says of tokens.

use std::sync::Arc;

use axum::http::header::{CONTENT_ENCODING, CONTENT_TYPE};
use axum::http::{HeaderMap, StatusCode};
use prometheus::Histogram;
use tokio::time::Instant;

use crate::backend::Backend;
use crate::metrics::Metrics;
use crate::usage::{Tail, Usage};

pub(super) struct Tally {
    /// One that a backend lists: what clients make up is no label.
    model: Arc<str>,
    kind: Kind,
    tail: Tail,
    /// When the last piece of a stream came, and where the times between two go.
    last: Option<(Instant, Histogram)>,
}

/// How an answer comes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Stream,
    Document,
    /// Not to be read here.
    Opaque,
}

impl Tally {
    pub(super) fn new(model: Arc<str>) -> Self {
        Self {
            model,
            kind: Kind::Opaque,
            tail: Tail::default(),
            last: None,
        }
    }

    pub(super) fn model(&self) -> &str {
        &self.model
    }

    /// An answer begins.
    pub(super) fn begin(&mut self, status: StatusCode, headers: &HeaderMap) {
        self.kind = if status.is_success() {
            kind(headers)
        } else {
            Kind::Opaque
        };
    }

    /// A piece of it has come from this backend.
    pub(super) fn piece(
        &mut self,
        data: &[u8],
        (started, now): (Instant, Instant),
        backend: &Backend,
        metrics: &Metrics,
    ) {
        if self.kind == Kind::Opaque || data.is_empty() {
            return;
        }
        self.tail.push(data);
        if self.kind != Kind::Stream {
            return;
        }
        let gaps = match self.last.take() {
            Some((last, gaps)) => {
                gaps.observe((now - last).as_secs_f64());
                gaps
            }
            None => metrics.first_token(&self.model, backend, now - started),
        };
        self.last = Some((now, gaps));
    }

    pub(super) fn usage(&self) -> Option<Usage> {
        self.tail.usage()
    }
}

fn kind(headers: &HeaderMap) -> Kind {
    let value = |name| headers.get(name).and_then(|value| value.to_str().ok());
    if headers.contains_key(CONTENT_ENCODING) {
        return Kind::Opaque;
    }
    let essence = value(CONTENT_TYPE).and_then(|text| text.split(';').next());
    match essence.map(str::trim) {
        Some("text/event-stream" | "application/x-ndjson") => Kind::Stream,
        Some("application/json") => Kind::Document,
        _ => Kind::Opaque,
    }
}
