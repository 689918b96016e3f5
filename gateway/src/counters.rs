//! The counters of one backend and of its models, found by their labels once and not for each request.
//!
//! One that has counted nothing is not made: it would be told of as zero.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use prometheus::{Histogram, IntCounter};

/// Of one backend.
#[derive(Default)]
pub(crate) struct Counters {
    /// Requests that were answered with 200.
    pub(crate) ok: OnceLock<IntCounter>,
    pub(crate) first_byte: OnceLock<Histogram>,
    pub(crate) total: OnceLock<Histogram>,
    models: Mutex<HashMap<String, Arc<ModelCounters>>>,
}

/// Of one model there.
#[derive(Default)]
pub(crate) struct ModelCounters {
    pub(crate) ok: OnceLock<IntCounter>,
    pub(crate) first_token: OnceLock<Histogram>,
    pub(crate) inter_token: OnceLock<Histogram>,
    pub(crate) tokens_in: OnceLock<IntCounter>,
    pub(crate) tokens_out: OnceLock<IntCounter>,
}

impl Counters {
    /// Those of a model that a backend lists: what clients make up is no label.
    pub(crate) fn model(&self, name: &str) -> Arc<ModelCounters> {
        let mut models = self.models.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = models.get(name) {
            return Arc::clone(known);
        }
        Arc::clone(models.entry(name.to_owned()).or_default())
    }
}
