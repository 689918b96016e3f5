//! What all parts of one gateway look at: its options, its backends, how far it has come.

use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use axum::http::HeaderValue;
use serde_json::Value;
use tokio::sync::Semaphore;

use crate::affinity::Homes;
use crate::backend::Care;
use crate::body::Intake;
use crate::bygone::Bygone;
use crate::catalog::{Catalog, Catalogs};
use crate::history::{History, Sample};
use crate::life::Life;
use crate::limits::Limits;
use crate::listen::entrance::Entrance;
use crate::live::Live;
use crate::made::Made;
use crate::metrics::Metrics;
use crate::options::Options;
use crate::via;

/// A browser's is answered in no time; more at a time are no browsers'.
const PREFLIGHTS: usize = 64;

/// The owner's words, in the owner's order.
type Description = Vec<(String, Value)>;

pub(crate) struct Shared {
    pub(crate) since: Instant,
    pub(crate) options: Options,
    /// What requests that came through here are known by.
    pub(crate) via: HeaderValue,
    description: Mutex<Description>,
    pub(crate) limits: Limits,
    pub(crate) entrance: Entrance,
    /// For requests that are passed on.
    pub(crate) slots: Arc<Semaphore>,
    /// For those of strangers, apart, so that they keep nobody waiting.
    pub(crate) preflights: Arc<Semaphore>,
    pub(crate) intake: Intake,
    pub(crate) made: Made,
    pub(crate) homes: Homes,
    catalogs: Catalogs,
    pub(crate) live: Live,
    pub(crate) metrics: Metrics,
    pub(crate) history: History,
    pub(crate) bygone: Bygone,
    pub(crate) life: Life,
}

impl Shared {
    pub(crate) fn new(options: Options) -> io::Result<Self> {
        let via = via::name_for_this_gateway();
        let limits = Limits::find(options.max_requests, options.workers.get());
        let care = Care::of(&options, limits.workers, via.clone());
        Ok(Self {
            since: Instant::now(),
            via,
            description: Mutex::new(options.description.clone()),
            live: Live::new(care, options.queue),
            metrics: Metrics::new().map_err(io::Error::other)?,
            history: History::default(),
            bygone: Bygone::default(),
            life: Life::new(),
            slots: Arc::new(Semaphore::new(limits.requests.min(Semaphore::MAX_PERMITS))),
            preflights: Arc::new(Semaphore::new(PREFLIGHTS)),
            entrance: Entrance::new(limits.clients),
            intake: Intake::new(limits.uploads()),
            made: Made::new(),
            homes: Homes::new(),
            catalogs: Catalogs::default(),
            limits,
            options,
        })
    }

    /// The models of all backends as they are now.
    pub(crate) fn catalog(&self) -> Arc<Catalog> {
        self.catalogs.now(&self.live, &self.options.naming)
    }

    pub(crate) fn description(&self) -> MutexGuard<'_, Description> {
        self.description
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// Keeps how things are for those who look later, and nothing of backends that are long gone.
    pub(crate) fn sample(&self) {
        self.bygone.see(&self.live.all(), &self.metrics);
        let all = self.metrics.summary().all;
        self.history.push(Sample {
            at: self.since.elapsed().as_secs_f64(),
            in_flight: self.life.in_flight(),
            requests: all.requests,
            failures: all.failures,
            tokens_in: all.tokens_in,
            tokens_out: all.tokens_out,
            first_token_sum: all.first_token_sum,
            first_token_count: all.first_token_count,
        });
    }
}
