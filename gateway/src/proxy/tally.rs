//! What an answer about a model is measured by: when its pieces come, and what it says of tokens.

use std::sync::Arc;

use axum::http::{HeaderMap, StatusCode};
use prometheus::Histogram;
use tokio::time::Instant;

use crate::backend::Backend;
use crate::form::Form;
use crate::metrics::Metrics;
use crate::usage::{Tail, Usage};

pub(super) struct Tally {
    /// One that a backend lists: what clients make up is no label.
    model: Arc<str>,
    /// Of the answer, where it can be read.
    form: Option<Form>,
    tail: Tail,
    /// When the last piece of a stream came, and where the times between two go.
    last: Option<(Instant, Histogram)>,
}

impl Tally {
    pub(super) fn new(model: Arc<str>) -> Self {
        Self {
            model,
            form: None,
            tail: Tail::default(),
            last: None,
        }
    }

    pub(super) fn model(&self) -> &str {
        &self.model
    }

    /// An answer begins.
    pub(super) fn begin(&mut self, status: StatusCode, headers: &HeaderMap) {
        let is_read = status.is_success();
        self.form = is_read.then(|| Form::of(headers)).flatten();
    }

    /// A piece of it has come from this backend.
    pub(super) fn piece(
        &mut self,
        data: &[u8],
        (started, now): (Instant, Instant),
        backend: &Backend,
        metrics: &Metrics,
    ) {
        let Some(form) = self.form else {
            return;
        };
        if data.is_empty() {
            return;
        }
        self.tail.push(data);
        if form == Form::Document {
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
