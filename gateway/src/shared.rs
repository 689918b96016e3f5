//! What all parts of one gateway look at: its options, its backends, how far it has come.

use std::io;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use serde_json::Value;

use crate::auth::ApiKey;
use crate::backend::{Care, Thresholds};
use crate::life::Life;
use crate::limits::Limits;
use crate::live::Live;
use crate::metrics::Metrics;
use crate::options::Options;

/// The owner's words, in the owner's order.
type Description = Vec<(String, Value)>;

pub(crate) struct Shared {
    pub(crate) since: Instant,
    pub(crate) options: Options,
    description: Mutex<Description>,
    pub(crate) limits: Limits,
    pub(crate) live: Live,
    pub(crate) metrics: Metrics,
    pub(crate) life: Life,
}

impl Shared {
    pub(crate) fn new(options: Options) -> io::Result<Self> {
        let thresholds = Thresholds {
            rise: options.health_rise,
            fall: options.health_fall,
        };
        let care = Care {
            thresholds,
            connect_timeout: options.connect_timeout,
            key: options.backend_api_key.as_ref().and_then(ApiKey::header),
        };
        Ok(Self {
            since: Instant::now(),
            description: Mutex::new(options.description.clone()),
            live: Live::new(care),
            metrics: Metrics::new().map_err(io::Error::other)?,
            life: Life::new(),
            limits: Limits::find(options.max_requests),
            options,
        })
    }

    pub(crate) fn description(&self) -> MutexGuard<'_, Description> {
        self.description
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}
