//! One backend: where it is, how it is, what it serves, what it has in hand.

mod condition;
mod connection;
pub(crate) mod models;
mod pool;

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use arc_swap::{ArcSwap, ArcSwapOption};
use axum::http::HeaderValue;

use condition::Condition;
pub(crate) use condition::{State, Thresholds};
pub(crate) use connection::{Connection, keep_alive};
pub(crate) use models::Models;
use pool::Pool;

use crate::choose::Standing;
use crate::set::BackendSpec;
use crate::url::BackendUrl;

/// How backends are looked after, whichever they are.
#[derive(Debug, Clone)]
pub(crate) struct Care {
    pub(crate) thresholds: Thresholds,
    pub(crate) connect_timeout: Duration,
    /// What those are shown that have no key of their own.
    pub(crate) key: Option<HeaderValue>,
}

/// What its owner wants of it, ready for use. Changes while it serves.
struct Settings {
    spec: BackendSpec,
    key: Option<HeaderValue>,
}

pub(crate) struct Backend {
    /// As metrics and logs call it.
    pub(crate) name: String,
    pub(crate) url: BackendUrl,
    pub(crate) host_header: HeaderValue,
    pub(crate) pool: Arc<Pool>,
    care: Care,
    settings: ArcSwap<Settings>,
    condition: Condition,
    /// None when it does not say. Outlasts being down.
    models: ArcSwapOption<Models>,
    retired: AtomicBool,
    load: Load,
    since: Instant,
    /// Of an answer's body, in milliseconds after `since`; 0: there was none.
    last_byte: AtomicU64,
}

/// What is read of each backend for each request, side by side in memory.
struct Load {
    in_flight: AtomicUsize,
    weight: AtomicU32,
    max: AtomicUsize,
    turn: AtomicU64,
}

impl Backend {
    pub(crate) fn new(spec: BackendSpec, care: &Care) -> Self {
        let url = spec.url.clone();
        let host_header = HeaderValue::from_str(url.authority());
        let backend = Self {
            name: url.to_string(),
            #[expect(clippy::expect_used, reason = "an authority has no control characters")]
            host_header: host_header.expect("an authority is a valid header value"),
            url,
            pool: Arc::default(),
            care: care.clone(),
            settings: ArcSwap::from_pointee(settings(spec.clone(), care)),
            condition: Condition::new(care.thresholds),
            models: ArcSwapOption::empty(),
            retired: AtomicBool::new(false),
            load: Load {
                in_flight: AtomicUsize::new(0),
                weight: AtomicU32::new(1),
                max: AtomicUsize::new(usize::MAX),
                turn: AtomicU64::new(0),
            },
            since: Instant::now(),
            last_byte: AtomicU64::new(0),
        };
        backend.instruct(spec);
        backend
    }

    /// Does what its owner says now, from the next request on.
    pub(crate) fn instruct(&self, spec: BackendSpec) {
        let max = spec.max.map_or(usize::MAX, usize::from);
        self.load.max.store(max, Ordering::Relaxed);
        self.load.weight.store(spec.weight.get(), Ordering::Relaxed);
        let settings = settings(spec, &self.care);
        self.settings.store(Arc::new(settings));
        self.retired.store(false, Ordering::Relaxed);
        self.pool.open();
    }

    /// It is no longer one of the backends: what it has in hand ends whole, and its connections
    /// with that.
    pub(crate) fn retire(&self) {
        self.retired.store(true, Ordering::Relaxed);
        self.pool.close();
    }

    /// What it is shown in place of what the client showed.
    pub(crate) fn key(&self) -> Option<HeaderValue> {
        self.settings.load().key.clone()
    }

    pub(crate) fn origin(&self) -> Option<String> {
        self.settings.load().spec.origin.clone()
    }

    pub(crate) async fn connect(&self) -> io::Result<Connection> {
        let patience = self.care.connect_timeout;
        Connection::open(self.url.host(), self.url.port(), patience).await
    }

    pub(crate) fn is_up(&self) -> bool {
        self.condition.is_up()
    }

    pub(crate) fn state(&self) -> (State, Option<String>) {
        self.condition.state()
    }

    /// Whether it only finishes what it has.
    pub(crate) fn is_retired(&self) -> bool {
        self.retired.load(Ordering::Relaxed)
    }

    /// It was found in order.
    pub(crate) fn succeeded(&self) {
        self.condition.succeeded(&self.name);
    }

    /// It was found out of order.
    pub(crate) fn failed(&self, problem: String) {
        self.condition.failed(&self.name, problem);
    }

    pub(crate) fn models(&self) -> Option<Arc<Models>> {
        self.models.load_full()
    }

    /// Returns whether that is news.
    pub(crate) fn set_models(&self, models: Option<Models>) -> bool {
        let news = self.models.load().as_deref() != models.as_ref();
        if news {
            self.models.store(models.map(Arc::new));
        }
        news
    }

    pub(crate) fn standing(&self) -> Standing {
        if !self.condition.is_up() {
            Standing::Out
        } else if self.in_flight() >= self.load.max.load(Ordering::Relaxed) {
            Standing::Full
        } else {
            Standing::Ready
        }
    }

    pub(crate) fn in_flight(&self) -> usize {
        self.load.in_flight.load(Ordering::Relaxed)
    }

    pub(crate) fn weight(&self) -> u32 {
        self.load.weight.load(Ordering::Relaxed)
    }

    pub(crate) fn turn(&self) -> u64 {
        self.load.turn.load(Ordering::Relaxed)
    }

    pub(crate) fn set_turn(&self, turn: u64) {
        self.load.turn.store(turn, Ordering::Relaxed);
    }

    /// Notes that a piece of an answer has come.
    pub(crate) fn answering(&self) {
        let now = u64::try_from(self.since.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.last_byte.store(now.max(1), Ordering::Relaxed);
    }

    /// Whether a piece of an answer came within this time.
    pub(crate) fn answered_within(&self, time: Duration) -> bool {
        let last = Duration::from_millis(self.last_byte.load(Ordering::Relaxed));
        !last.is_zero() && self.since.elapsed().saturating_sub(last) < time
    }
}

fn settings(spec: BackendSpec, care: &Care) -> Settings {
    let own = spec.key.as_ref().and_then(crate::auth::ApiKey::header);
    Settings {
        key: own.or_else(|| care.key.clone()),
        spec,
    }
}

/// A request's place at a backend: it is in flight there until this is dropped.
pub(crate) struct Place(Arc<Backend>);

impl Place {
    pub(crate) fn take(backend: Arc<Backend>) -> Self {
        backend.load.in_flight.fetch_add(1, Ordering::Relaxed);
        Self(backend)
    }
}

impl std::ops::Deref for Place {
    type Target = Arc<Backend>;

    fn deref(&self) -> &Arc<Backend> {
        &self.0
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.0.load.in_flight.fetch_sub(1, Ordering::Relaxed);
    }
}
