//! One backend: where it is, how it is, what it serves, what it has in hand.

mod address;
mod bars;
mod busy;
mod condition;
mod connection;
mod ejection;
mod load;
mod loaded;
pub(crate) mod models;
mod place;
mod pool;
mod ramp;
mod waiting;

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use arc_swap::{ArcSwap, ArcSwapOption};
use axum::http::HeaderValue;
use tokio::sync::Notify;
use tokio::time::{Instant, sleep, timeout_at};

use address::Addresses;
use busy::{Busy, Work};
use condition::Condition;
pub(crate) use condition::{State, Thresholds, Trouble};
pub(crate) use connection::{Connection, keep_alive};
use ejection::Ejection;
pub(crate) use load::{Load, Slot};
use loaded::Loaded;
pub(crate) use models::Models;
pub(crate) use place::Place;
use pool::Pool;
pub(crate) use ramp::WHOLE;
pub(crate) use waiting::{Usher, Waiting};

use crate::auth::ApiKey;
use crate::counters::Counters;
use crate::options::Options;
use crate::outlier::Record;
use crate::set::BackendSpec;
use crate::slots::Slots;
use crate::tls::BackendTls;
use crate::url::BackendUrl;
use crate::warnings::Warnings;

/// How backends are looked after, whichever they are.
#[derive(Debug, Clone)]
pub(crate) struct Care {
    pub(crate) thresholds: Thresholds,
    pub(crate) connect_timeout: Duration,
    pub(crate) health_interval: Duration,
    /// How long one that has requests in hand may say nothing at all.
    pub(crate) busy_timeout: Duration,
    /// How long one that fails requests is left out at first.
    pub(crate) ejection_time: Duration,
    /// What those are shown that have no key of their own.
    pub(crate) key: Option<HeaderValue>,
    /// How probes name this gateway.
    pub(crate) via: HeaderValue,
    /// How many threads keep connections.
    pub(crate) workers: usize,
    /// Who waits for a place.
    pub(crate) waiting: Arc<Waiting>,
    /// How those are spoken to that speak TLS.
    pub(crate) tls: BackendTls,
}

impl Care {
    pub(crate) fn of(options: &Options, workers: usize, via: HeaderValue) -> Self {
        Self {
            workers,
            tls: options.backend_tls.clone(),
            waiting: Arc::default(),
            thresholds: Thresholds {
                rise: options.health_rise,
                fall: options.health_fall,
            },
            connect_timeout: options.connect_timeout,
            health_interval: options.health_interval,
            busy_timeout: options.busy_timeout,
            ejection_time: options.ejection_time,
            key: options.backend_api_key.as_ref().and_then(ApiKey::header),
            via,
        }
    }
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
    /// Boxed, as are others that are seldom read: so those that are read often stay close together.
    pub(crate) care: Box<Care>,
    addresses: Addresses,
    settings: ArcSwap<Settings>,
    condition: Condition,
    ejection: Box<Ejection>,
    busy: Box<Busy>,
    pub(crate) warnings: Box<Warnings>,
    pub(crate) counters: Box<Counters>,
    /// Told when it is down.
    fell: Notify,
    /// None when it does not say. Outlasts being down.
    models: ArcSwapOption<Models>,
    pub(crate) loaded: Loaded,
    pub(crate) slots: Box<Slots>,
    retired: AtomicBool,
    load: Slot,
    finished: AtomicU64,
    /// Of an answer's body, in milliseconds after `since`.
    last_piece: AtomicU64,
    /// The same of a good probe.
    last_probe: AtomicU64,
    /// The same of the time for which it is to be spared.
    spared_until: AtomicU64,
}

impl Backend {
    pub(crate) fn new(spec: BackendSpec, care: &Care, slot: Slot) -> Self {
        let url = spec.url.clone();
        let host_header = HeaderValue::from_str(url.authority());
        let backend = Self {
            name: url.to_string(),
            #[expect(clippy::expect_used, reason = "an authority has no control characters")]
            host_header: host_header.expect("an authority is a valid header value"),
            addresses: Addresses::of(url.host(), url.port()),
            url,
            pool: Arc::new(Pool::new(care.workers)),
            care: Box::new(care.clone()),
            settings: ArcSwap::from_pointee(settings(spec.clone(), care)),
            condition: Condition::new(care.thresholds),
            ejection: Box::new(Ejection::new(care.ejection_time)),
            busy: Box::default(),
            warnings: Box::default(),
            counters: Box::default(),
            fell: Notify::new(),
            models: ArcSwapOption::empty(),
            loaded: Loaded::default(),
            slots: Box::default(),
            retired: AtomicBool::new(false),
            load: slot,
            finished: AtomicU64::new(0),
            last_piece: AtomicU64::new(0),
            last_probe: AtomicU64::new(0),
            spared_until: AtomicU64::new(0),
        };
        backend.instruct(spec);
        backend
    }

    /// Does what its owner says now, from the next request on.
    pub(crate) fn instruct(&self, spec: BackendSpec) {
        let weight = u64::from(spec.weight.get()) * WHOLE;
        self.load.weight.store(weight, Ordering::Relaxed);
        let settings = settings(spec, &self.care);
        self.settings.store(Arc::new(settings));
        self.limit();
        self.retired.store(false, Ordering::Relaxed);
        self.pool.open();
    }

    /// How many it may have in flight, if there is a limit.
    pub(crate) fn max(&self) -> Option<usize> {
        let said = self.settings.load().spec.max.map(usize::from);
        said.or(self.slots.told())
    }

    /// Has it given no more at a time than its owner says, or else the server itself.
    pub(crate) fn limit(&self) {
        let max = self.max().unwrap_or(usize::MAX);
        self.load.max.store(max, Ordering::Relaxed);
        self.care.waiting.changed();
    }

    /// It has come to others that serve already: its share is to grow.
    pub(crate) fn start_slowly(&self) {
        self.load.ramp.prepare();
        if self.is_up() {
            self.load.ramp.rose(self.load.age());
        }
    }

    /// A trial has shown that it serves again.
    fn returned(&self) {
        self.load.ramp.begin(self.load.age());
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

    /// Finds out where it is, if it is known by a name.
    pub(crate) async fn resolve(&self) -> io::Result<()> {
        self.addresses.resolve().await
    }

    /// All of it, TLS included, takes no longer than connecting may.
    pub(crate) async fn connect(&self) -> io::Result<Connection> {
        let patience = self.care.connect_timeout;
        let deadline = Instant::now() + patience;
        let stream = self.addresses.connect(patience).await?;
        stream.set_nodelay(true)?;
        keep_alive(&stream);
        let Some(name) = self.url.server_name() else {
            return Connection::over(stream).await;
        };
        let speaking = self.care.tls.connect(name.clone(), stream);
        let stream = timeout_at(deadline, speaking).await;
        Connection::over(stream.map_err(|_| io::ErrorKind::TimedOut)??).await
    }

    /// Whether it answers probes. It may be ejected all the same.
    pub(crate) fn is_up(&self) -> bool {
        !self.load.bars.is_down()
    }

    /// Whether it has yet to be looked at for the first time.
    pub(crate) fn is_unseen(&self) -> bool {
        self.load.bars.is_unseen()
    }

    pub(crate) fn is_ejected(&self) -> bool {
        self.load.bars.is_ejected()
    }

    /// And what is wrong with it.
    pub(crate) fn state(&self) -> (State, Option<String>) {
        let (state, problem) = self.condition.state();
        (state, problem.or_else(|| self.ejection.problem()))
    }

    /// Whether it only finishes what it has.
    pub(crate) fn is_retired(&self) -> bool {
        self.retired.load(Ordering::Relaxed)
    }

    /// A probe found it in order.
    pub(crate) fn succeeded(&self) {
        note(&self.last_probe, self.load.age());
        let load = &self.load;
        if self.condition.succeeded(&self.name, &load.bars) {
            self.ejection.rose(&load.bars);
            load.ramp.rose(self.load.age());
        }
        let last_piece = self.load.since + self.last_piece();
        if self.ejection.probed(&self.name, last_piece, &load.bars) {
            self.returned();
        }
        self.care.waiting.room_at(self);
    }

    /// It was found out of order.
    pub(crate) fn failed(&self, trouble: Trouble) {
        self.slots.forget();
        if self.condition.failed(&self.name, trouble, &self.load.bars) {
            self.load.ramp.prepare();
            self.fell.notify_one();
            self.care.waiting.changed();
        }
    }

    /// Waits until it is time to look at it again, having begun the last look at this time.
    pub(crate) async fn rest(&self, begun: Instant) {
        let interval = self.care.health_interval;
        // What its silence means had better be known before it hangs.
        let is_unknown = self.in_flight() > 0 && self.busy.is_worth_a_try();
        let time = || {
            if is_unknown || self.condition.may_start_soon() {
                interval.min(SOON)
            } else {
                interval
            }
        };
        tokio::select! {
            () = sleep(time().saturating_sub(begun.elapsed())) => {}
            () = async {
                self.fell.notified().await;
                sleep(time()).await;
            } => {}
        }
    }

    /// What it has in hand.
    pub(crate) fn work(&self) -> Work {
        Work {
            in_flight: self.in_flight(),
            finished: self.finished.load(Ordering::Relaxed),
        }
    }

    /// It answered a probe, having had this in hand before.
    pub(crate) fn answered(&self, before: Work) {
        self.busy.answered(before, self.work(), self.last_piece());
    }

    /// It did not answer a probe. Returns whether that is because it does one thing at a time, for
    /// all that is known of it.
    pub(crate) fn may_be_busy(&self, before: Work) -> bool {
        let busy = before.in_flight > 0 || self.in_flight() > 0;
        let last = self.last_piece().max(self.since_start(&self.last_probe));
        let silent = self.load.age().saturating_sub(last);
        if busy && self.busy.has_no_excuse() {
            self.busy.accuse(self.load.age());
            return false;
        }
        busy && silent < self.care.busy_timeout
    }

    /// The others have this many good answers, and one of its own requests failed.
    pub(crate) fn request_failed(&self, others_good: u64) -> Record {
        self.slots.forget();
        self.ejection.failed(others_good, &self.load.bars)
    }

    /// Returns whether that is news.
    pub(crate) fn eject(&self, problem: &str) -> bool {
        let load = &self.load;
        self.ejection.eject(&self.name, problem, &load.bars)
    }

    pub(crate) fn good_answers(&self) -> u64 {
        self.ejection.good_answers()
    }

    pub(crate) fn failure_share(&self) -> f64 {
        self.ejection.failure_share()
    }

    /// It has enough for so long, unless it has said longer before: others come first.
    pub(crate) fn cool(self: &Arc<Self>, time: Duration) {
        let until = millis(self.load.age() + time);
        self.spared_until.fetch_max(until, Ordering::SeqCst);
        if self.load.bars.cool() {
            tokio::spawn(Arc::clone(self).rest_out());
        }
    }

    /// Ends with the time for which it is to be spared.
    async fn rest_out(self: Arc<Self>) {
        loop {
            let left = self.since_start(&self.spared_until);
            let left = left.saturating_sub(self.load.age());
            if !left.is_zero() {
                sleep(left).await;
                continue;
            }
            self.load.bars.warm_up();
            // Who said longer just before that saw that somebody waits already.
            let is_over = self.since_start(&self.spared_until) <= self.load.age();
            if is_over || !self.load.bars.cool() {
                break;
            }
        }
        self.care.waiting.room_at(&self);
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

    /// What choosing looks at.
    pub(crate) fn load(&self) -> &Slot {
        &self.load
    }

    pub(crate) fn in_flight(&self) -> usize {
        self.load.in_flight()
    }

    /// Notes that a piece of an answer has come just now.
    pub(crate) fn answering(&self, now: Instant) {
        let at = now.saturating_duration_since(self.load.since);
        note(&self.last_piece, at);
    }

    /// When a piece of an answer came last.
    pub(crate) fn last_answer(&self) -> Instant {
        self.load.since + self.last_piece()
    }

    fn last_piece(&self) -> Duration {
        self.since_start(&self.last_piece)
    }

    fn since_start(&self, noted: &AtomicU64) -> Duration {
        Duration::from_millis(noted.load(Ordering::Relaxed))
    }
}

fn note(when: &AtomicU64, at: Duration) {
    when.store(millis(at), Ordering::Relaxed);
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

/// How soon one that may start at any moment is looked at again.
const SOON: Duration = Duration::from_millis(500);

fn settings(spec: BackendSpec, care: &Care) -> Settings {
    let own = spec.key.as_ref().and_then(crate::auth::ApiKey::header);
    Settings {
        key: own.or_else(|| care.key.clone()),
        spec,
    }
}
